"""No option of a request is dropped without a word.

The kind of fault: an option that a kind of model, or another option beside it, leaves without effect, and nobody says
so. Every field of `Request`, and what belongs to it, is set on every kind of model (plain, inpainting, instruct, depth,
v, SDXL, with a prior): the picture changes, or a note or a refusal names the option. What is exempt says why.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from gouache.config import Config
from gouache.errors import GouacheError
from gouache.models.bundle import ModelBundle
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Inversion, Mask, Outpaint, Prior, Request

if TYPE_CHECKING:
    from collections.abc import Callable


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "inpaint": {"draft_channels": 5},
    "instruct": {"draft_channels": 4},
    "depth": {"draft_channels": 1},
    "v": {"family": "sd2", "parameterization": "v"},
    "sdxl": {"family": "sdxl", "sdxl": True},
    "instruct-sdxl": {"family": "sdxl", "sdxl": True, "draft_channels": 4},
    "prior": {},
}
NEEDS = {"instruct": {"init_image": "a.png"}, "depth": {"depth_image": "c.png"}}
START = {"init_image": "a.png"}
MASKED = {**START, "mask": {"image": "m.png", "blur": 0}}
GROWN = {**START, "outpaint": {"right": 16, "overlap": 8}}
INVERTED: dict[str, Any] = {**START, "inversion": {}}
UNGUIDED = {"guidance_scale": 1.0}
SEEDS = {"interpolation": {"seed": 7, "frames": 3, "frame": 1}}
OFF = {"prior": {"enabled": False}}

Case = tuple[str, dict[str, Any], dict[str, Any]]
CASES: list[Case] = [
    ("prompt", {}, {"prompt": "a dog"}),
    ("negative_prompt", {}, {"negative_prompt": "bad"}),
    ("negative_prompt", UNGUIDED, {"negative_prompt": "bad"}),
    ("negative_prompt", {}, {"negative_prompt": ""}),
    ("prompt_2", {}, {"prompt_2": "a dog"}),
    ("negative_prompt_2", {}, {"negative_prompt_2": "bad"}),
    ("prompt_3", {}, {"prompt_3": "a dog"}),
    ("negative_prompt_3", {}, {"negative_prompt_3": "bad"}),
    ("max_sequence_length", {}, {"max_sequence_length": 77}),
    ("size_condition", {}, {"size_condition": {"original_width": 512}}),
    ("size_condition", {}, {"size_condition": {"negative_aesthetic_score": 1.0}}),
    ("style", {}, {"style": "flat"}),
    ("emphasis", {"prompt": "a (cat:1.4)"}, {"emphasis": "ignore"}),
    ("clip_skip", {"clip_skip": 1}, {"clip_skip": 2}),
    ("seed", {}, {"seed": 9}),
    ("subseed", {}, {"subseed": 5}),
    ("subseed", {"subseed_strength": 0.3, "subseed": 1}, {"subseed": 5}),
    ("subseed_strength", {"subseed": 5}, {"subseed_strength": 0.3}),
    ("subseed_strength", {**INVERTED, "subseed": 5}, {"subseed_strength": 0.3}),
    ("subseed_strength", {**SEEDS, "subseed": 5}, {"subseed_strength": 0.3}),
    ("determinism", {}, {"determinism": "a1111"}),
    ("count", SEEDS, {"count": 2}),
    ("width", {}, {"width": 48}),
    ("height", {}, {"height": 48}),
    ("width", GROWN, {"width": 64}),
    ("background", {}, {"background": "#ff0000"}),
    ("best_of", {}, {"best_of": 3}),
    ("best_of", INVERTED, {"best_of": 3}),
    ("best_of", OFF, {"best_of": 3}),
    ("num_inference_steps", {}, {"num_inference_steps": 3}),
    ("guidance_scale", {}, {"guidance_scale": 5.0}),
    ("guidance_rescale", {}, {"guidance_rescale": 0.7}),
    ("guidance_rescale", UNGUIDED, {"guidance_rescale": 0.7}),
    ("guidance_interval", {}, {"guidance_interval": (0.0, 1.0)}),
    ("guidance_interval", UNGUIDED, {"guidance_interval": (0.0, 1.0)}),
    ("apg", {}, {"apg": {}}),
    ("apg", UNGUIDED, {"apg": {}}),
    ("mimic", {}, {"mimic": {"scale": 1.5}}),
    ("mimic", UNGUIDED, {"mimic": {"scale": 1.5}}),
    ("perp_neg", {"negative_prompt": "bad"}, {"perp_neg": {"scale": 3.0}}),
    ("perp_neg", {}, {"perp_neg": {}}),
    ("perp_neg", UNGUIDED, {"perp_neg": {}}),
    ("pag", {}, {"pag": {}}),
    ("pag", UNGUIDED, {"pag": {}}),
    ("pag", {}, {"pag": {"start": 0.1, "end": 0.2}}),
    ("sag", {}, {"sag": {}}),
    ("slg", {}, {"slg": {}}),
    ("freeu", {}, {"freeu": {}}),
    ("cfg_cache", {"num_inference_steps": 3}, {"cfg_cache": {"start": 0.0}}),
    ("cfg_cache", UNGUIDED, {"cfg_cache": {}}),
    ("deep_cache", {"num_inference_steps": 3}, {"deep_cache": {}}),
    ("deep_cache", {}, {"deep_cache": {"start": 0.1, "end": 0.2}}),
    ("block_cache", {"num_inference_steps": 3}, {"block_cache": {"threshold": 10.0}}),
    ("block_cache", {}, {"block_cache": {"start": 0.1, "end": 0.2}}),
    ("token_merging", {}, {"token_merging": 0.5}),
    ("fast", {}, {"fast": True}),
    ("fast", {"num_inference_steps": 20}, {"fast": True}),
    ("image_guidance_scale", {}, {"image_guidance_scale": 3.0}),
    ("sampler", {}, {"sampler": "euler_a"}),
    ("schedule", {"num_inference_steps": 3}, {"schedule": "karras"}),
    ("sigmas", {}, {"sigmas": (5.0, 1.0, 0.0)}),
    ("eta", {}, {"eta": 0.7}),
    ("eta", {"sampler": "dpmpp_2m"}, {"eta": 0.7}),
    ("churn", {}, {"churn": {"amount": 3}}),
    ("churn", {"sampler": "euler"}, {"churn": {"amount": 3}}),
    ("init_image", {}, {"init_image": "b.png"}),
    ("strength", {}, {"strength": 0.5}),
    ("strength", START, {"strength": 0.5}),
    ("strength", MASKED, {"strength": 0.5}),
    ("strength", GROWN, {"strength": 0.5}),
    ("strength", INVERTED, {"strength": 0.5}),
    ("depth_image", {}, {"depth_image": "b.png"}),
    ("control", {}, {"control": [{"model": "none-such", "image": "b.png"}]}),
    ("noise_level", {}, {"noise_level": 3}),
    ("image_prompts", {}, {"image_prompts": [{"images": "b.png"}]}),
    ("regions", {}, {"regions": [{"prompt": "a dog", "mask": "m.png"}]}),
    ("resize_mode", {"init_image": None, "depth_image": None}, {"resize_mode": "pad"}),
    ("resize_mode", {"init_image": "wide.png", "width": 32, "height": 32}, {"resize_mode": "pad"}),
    ("mask", START, {"mask": {"image": "m.png"}}),
    ("mask.image", MASKED, {"mask": {"image": "n.png", "blur": 0}}),
    ("mask.blur", MASKED, {"mask": {"image": "m.png", "blur": 8}}),
    ("mask.padding", MASKED, {"mask": {"image": "m.png", "blur": 0, "padding": 2}}),
    ("mask.fill", MASKED, {"mask": {"image": "m.png", "blur": 0, "fill": "fill"}}),
    ("mask.fill", MASKED, {"mask": {"image": "m.png", "blur": 0, "fill": "noise"}}),
    ("mask.fill", MASKED, {"mask": {"image": "m.png", "blur": 0, "fill": "nothing"}}),
    ("mask.invert", MASKED, {"mask": {"image": "m.png", "blur": 0, "invert": True}}),
    ("mask.only_masked", MASKED, {"mask": {"image": "m.png", "blur": 0, "only_masked": True, "padding": 1}}),
    ("mask.preserve", MASKED, {"mask": {"image": "m.png", "blur": 0, "preserve": False}}),
    ("mask.image", GROWN, {"mask": {"image": "m.png", "fill": "fill"}}),
    ("mask.invert", GROWN, {"mask": {"invert": True, "fill": "fill"}}),
    ("mask.padding", GROWN, {"mask": {"padding": 3, "fill": "fill"}}),
    ("mask.only_masked", GROWN, {"mask": {"only_masked": True, "fill": "fill"}}),
    ("outpaint", START, {"outpaint": {"right": 16}}),
    ("outpaint.overlap", GROWN, {"outpaint": {"right": 16, "overlap": 16}}),
    ("inversion", START, {"inversion": {}}),
    ("inversion.source_prompt", INVERTED, {"inversion": {"source_prompt": "a dog"}}),
    ("inversion.num_inference_steps", INVERTED, {"inversion": {"num_inference_steps": 5}}),
    ("interpolation", {}, {"interpolation": {"prompt": "a dog", "frames": 3, "frame": 1}}),
    ("interpolation", START, {"interpolation": {"image": "b.png", "frames": 3, "frame": 1}}),
    ("interpolation.image", {}, {"interpolation": {"image": "b.png", "frames": 3, "frame": 1}}),
    ("hires", {}, {"hires": {}}),
    ("hires.strength", {"hires": {}}, {"hires": {"strength": 1.0}}),
    ("hires.upscaler", {"hires": {}}, {"hires": {"upscaler": "latent-nearest"}}),
    ("hires.num_inference_steps", {"hires": {}}, {"hires": {"num_inference_steps": 6}}),
    ("tiled", {"width": 64}, {"tiled": {"tile": 32}}),
    ("tiled.overlap", {"width": 64, "tiled": {"tile": 32}}, {"tiled": {"tile": 32, "overlap": 0.0}}),
    ("seamless", {}, {"seamless": "both"}),
    ("upscale", {}, {"upscale": {"upscaler": "lanczos"}}),
    ("prior", {}, {"prior": {"temperature": 3.0}}),
    ("prior", {}, OFF),
    ("prior", INVERTED, {"prior": {"temperature": 3.0}}),
    ("prior.keep", START, {"prior": {"keep": (0.0, 0.0, 0.5, 0.5)}}),
    ("watermark", {"width": 256, "height": 256, "num_inference_steps": 1}, {"watermark": "hi"}),
    ("safety", {}, {"safety": "block"}),
]
EXEMPT = {
    "refiner": "names a model; tested with refiners",
    "refiner_switch_at": "tested with refiners",
    "refiner_switch_by": "tested with refiners",
    "vae": "names a file; tested with the library of autoencoders",
    "procedure": "tested in generate/test_a1111_procedure.py",
    "eta_noise_seed_delta": "refused beside the levels whose noise it doesn't shift",
    "model": "names what is loaded; the picture is by the model at hand",
    "vae_tiling": "saves memory, on pictures larger than a tile; tested with the autoencoder",
}
NOTHING_ASKED = {("prior", kind) for kind in KINDS if kind != "prior"} | {("negative_prompt", kind) for kind in KINDS}
"""Switching off what a model doesn't have asks for nothing, nor does an empty negative prompt outside of SDXL."""


@cache
def picture(seed: int, width: int = 32) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return _png(Image.fromarray(noise).resize((width, 32), Image.Resampling.BICUBIC))


@cache
def mask(left: int) -> bytes:
    drawn = Image.new("L", (32, 32))
    drawn.paste(255, (left, 8, left + 12, 24))
    return _png(drawn)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


ATTACHMENTS = {
    "a.png": picture(1),
    "b.png": picture(2),
    "c.png": picture(3),
    "wide.png": picture(4, 48),
    "m.png": mask(8),
    "n.png": mask(12),
}


@pytest.fixture(scope="module")
def pipelines(make_tiny: Callable[..., ModelBundle], pocket: ModelBundle) -> dict[str, Pipeline]:
    return {name: Pipeline(pocket if name == "prior" else make_tiny(**parts)) for name, parts in KINDS.items()}


def request_for(kind: str, changes: Mapping[str, Any]) -> Request:
    base = {"prompt": "a cat", "seed": 3, "num_inference_steps": 2, "guidance_scale": 3.0}
    return Request.from_dict({**base, **NEEDS.get(kind.partition("-")[0], {}), **changes}, where="request")


def painted(pipeline: Pipeline, request: Request) -> tuple[list[bytes], tuple[str, ...]]:
    found = pipeline.paint(request, ATTACHMENTS)
    return [one.image.tobytes() for one in found], found[-1].recipe.notes


def test_every_field_is_tried() -> None:
    groups: dict[str, type[Config]] = {"mask": Mask, "outpaint": Outpaint, "inversion": Inversion, "prior": Prior}
    tried = {name.partition(".")[0] for name, _, _ in CASES}
    assert tried | set(EXEMPT) == set(Request.model_fields)
    assert all(
        name.partition(".")[2] in groups[name.partition(".")[0]].model_fields
        for name, _, _ in CASES
        if name.partition(".")[0] in groups and "." in name
    )


FAST = (
    "guidance_rescale",
    "guidance_interval",
    "cfg_cache",
    "deep_cache",
    "block_cache",
    "token_merging",
    "apg",
    "strength",
    "inversion",
    "tiled",
    "negative_prompt",
    "subseed",
)


def judge(pipelines: dict[str, Pipeline], kind: str, case: Case) -> None:
    name, beside, change = case
    try:
        before, _ = painted(pipelines[kind], request_for(kind, beside))
    except GouacheError:
        return
    refusal = ""
    try:
        after, notes = painted(pipelines[kind], request_for(kind, {**beside, **change}))
    except GouacheError as error:
        refusal = str(error)
    group = name.partition(".")[0]
    if refusal:
        assert group in refusal or "safety" in refusal, f"{name}: the refusal names another option: {refusal}"
        return
    told = any(note.startswith(part) for note in notes for part in (name, group))
    same = after == before and request_for(kind, {**beside, **change}) != request_for(kind, beside)
    assert not same or told or (name, kind) in NOTHING_ASKED, f"{name} beside {beside} is dropped by {kind}: {notes}"


@pytest.mark.parametrize("kind", ["plain", "instruct"])
@pytest.mark.parametrize("name", FAST)
def test_options_that_were_dropped_are_honoured_or_named(pipelines: dict[str, Pipeline], kind: str, name: str) -> None:
    for case in CASES:
        if case[0] == name:
            judge(pipelines, kind, case)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_no_option_of_any_kind_is_dropped(pipelines: dict[str, Pipeline], kind: str, case: Case) -> None:
    judge(pipelines, kind, case)
