"""Whole runs with guiders against diffusers' pipelines on the same weights; what they cost, refuse and leave alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers.guiders import PerturbedAttentionGuidance, SkipLayerGuidance
from diffusers.hooks import LayerSkipConfig, apply_layer_skip
from diffusers.hooks.layer_skip import HookRegistry
from tests.pipeline.test_parity import NEGATIVE, PROMPT, psnr

from gouache.errors import ConfigError, InvalidInput, UnknownName
from gouache.models.bundle import ModelBundle
from gouache.models.configs import UNetConfig
from gouache.models.denoiser import Condition
from gouache.models.perturbation import Perturbation, blocks_named, changes_of
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.conftest import MakeBundle
    from tests.pipeline.twins import Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning"),
]

MAPS_ALONE = {"skip_attention": False, "skip_ff": False, "skip_attention_scores": True}
BASE = Request(
    prompt=PROMPT,
    negative_prompt=NEGATIVE,
    seed=11,
    num_inference_steps=3,
    guidance_scale=4.0,
    sampler="ddim",
    schedule="leading",
)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "middle": ("sd1", {"pag": {"scale": 3.0}}, {"pag_scale": 3.0}),
    "v": ("sd2", {"pag": {"scale": 2.0}}, {"pag_scale": 2.0}),
    "sdxl": ("sdxl", {"pag": {"scale": 3.0}}, {"pag_scale": 3.0}),
    "fading": ("sd1", {"pag": {"scale": 3.0, "adaptive_scale": 3e-3}}, {"pag_scale": 3.0, "pag_adaptive_scale": 3e-3}),
    "alone": ("sd1", {"pag": {"scale": 3.0}, "guidance_scale": 1.0, "negative_prompt": ""}, {"pag_scale": 3.0}),
    "rescaled": ("sd2", {"pag": {"scale": 3.0}, "guidance_rescale": 0.7}, {"pag_scale": 3.0, "guidance_rescale": 0.7}),
}


def differs(picture: np.ndarray, other: np.ndarray) -> bool:
    """Whether a guider changed the reference enough for agreement to say something."""
    return float(np.abs(picture - other).mean()) > 0.01


def test_pag_is_diffusers(twins: Twins) -> None:
    check_pag(twins, "middle")


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name in CASES if name != "middle"])
def test_pag_is_diffusers_in_every_family_and_manner(twins: Twins, case: str) -> None:
    check_pag(twins, case)


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["mid", "down_blocks.1", "up_blocks.0.attentions.0", "up"])
def test_pag_layers_are_those_of_diffusers(twins: Twins, layers: str) -> None:
    check_pag(twins, "middle", layers)


def check_pag(twins: Twins, case: str, layers: str = "mid") -> None:
    family, ours, theirs = CASES[case]
    pair = twins.of(family)
    request = BASE.replace(ours)
    request = request.replace({"pag": {**request.pag.model_dump(), "layers": [layers]}}) if request.pag else request
    pair.use_scheduler(request)
    name = "StableDiffusionXLPAGPipeline" if family == "sdxl" else "StableDiffusionPAGPipeline"
    more = {"add_watermarker": False} if family == "sdxl" else {}
    pipeline = pair.variant(name, pag_applied_layers=[layers], **more)
    settings = {**pair.settings(request), "latents": pair.scaled(request, pair.noise(request))}
    reference = pipeline(**settings, **theirs, height=32, width=32).images[0]
    plain = pipeline(**settings, **{**theirs, "pag_scale": 0.0}, height=32, width=32).images[0]
    assert differs(reference, plain)
    assert psnr(pair.ours.paint(request)[0].image, reference) >= 60


@pytest.mark.parametrize("scale", [4.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_sag_is_diffusers(twins: Twins, scale: float) -> None:
    pair = twins.of("sd1")
    request = BASE.replace({"sag": {"scale": 0.75}, "guidance_scale": scale})
    if scale == 1:
        request = request.replace({"negative_prompt": ""})
    pair.use_scheduler(request)
    pipeline = pair.variant("StableDiffusionSAGPipeline")
    settings = {**pair.settings(request), "latents": pair.scaled(request, pair.noise(request))}
    reference = pipeline(**settings, sag_scale=0.75, height=32, width=32).images[0]
    assert differs(reference, pipeline(**settings, sag_scale=0.0, height=32, width=32).images[0])
    # Without guidance diffusers adds scale (guided - degraded) where guided is the only prediction: the same.
    assert psnr(pair.ours.paint(request)[0].image, reference) >= 60


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_freeu_is_diffusers(twins: Twins, family: str) -> None:
    pair = twins.of(family)
    given = {"b1": 1.3, "b2": 1.2, "s1": 0.7, "s2": 0.3}
    request = BASE.replace({"freeu": {**given, "version": 1}})
    plain = pair.text_to_image(request)
    pair.theirs.enable_freeu(**given)
    try:
        reference = pair.text_to_image(request)
    finally:
        pair.theirs.disable_freeu()
    assert differs(reference, plain)
    assert psnr(pair.ours.paint(request)[0].image, reference) >= 60


def predictions(twins: Twins, perturbation: Perturbation) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Their U-Net with inputs, and what ours answers in a batch of a plain and a perturbed row."""
    pair = twins.of("sd1")
    generator = torch.Generator().manual_seed(2)
    x, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 32, generator=generator)
    condition = Condition(context, perturbations=(None, perturbation)).expand(2)
    bundle = pair.ours.bundle
    with torch.no_grad():
        rows = bundle.unet(
            x.repeat(2, 1, 1, 1),
            torch.tensor(500.0),
            condition.context,
            changes=changes_of(bundle.unet, condition.perturbations, None),
        )
        plain = bundle.unet(x, torch.tensor(500.0), context)
    assert torch.allclose(rows[:1], plain, atol=1e-5)  # the other row is left alone
    return pair.theirs.unet, x, context, rows


@pytest.mark.parametrize(
    ("name", "place", "config"),
    [
        ("skipped", "mid_block.attentions.0", {}),
        ("skipped", "up_blocks.0.attentions.1", {}),
        (
            "identity",
            "mid_block.attentions.0",
            {"skip_attention": False, "skip_ff": False, "skip_attention_scores": True},
        ),
    ],
)
def test_weakened_rows_are_diffusers_hooks(twins: Twins, name: str, place: str, config: dict[str, bool]) -> None:
    """Layers skipped, and attention maps made the identity, by the hooks of diffusers' own guiders."""
    unet = twins.of("sd1").ours.bundle.unet
    perturbation = Perturbation(**{name: blocks_named(unet, [place], "layers")})
    theirs, x, context, rows = predictions(twins, perturbation)
    with torch.no_grad():
        plain = theirs(x, 500, context).sample
        apply_layer_skip(theirs, LayerSkipConfig(indices=[0], fqn=f"{place}.transformer_blocks", **config))
        try:
            weak = theirs(x, 500, context).sample
        finally:
            HookRegistry.check_if_exists_or_initialize(theirs).remove_hook("layer_skip_hook", recurse=True)
        assert torch.equal(theirs(x, 500, context).sample, plain), "the hook stays"
    assert (weak - plain).abs().mean() > 0.01
    assert torch.allclose(rows[1:], weak, atol=1e-4)


def test_slg_and_pag_add_up_as_in_diffusers_guiders() -> None:
    """Their rule for prompt, negative prompt and weakened prediction, at numbers."""
    cond, uncond, weak = (torch.full((1, 1), value) for value in (3.0, 1.0, 2.5))
    expected = 1 + 4 * 2 + 2.8 * 0.5
    slg = SkipLayerGuidance(4.0, 2.8, skip_layer_guidance_layers=[0])
    pag = PerturbedAttentionGuidance(4.0, 2.8, perturbed_guidance_layers=[0])
    assert slg.forward(cond, uncond, weak).pred.item() == pytest.approx(expected)
    assert pag.forward(cond, uncond, weak).pred.item() == pytest.approx(expected)


@pytest.fixture(scope="module")
def tiny(make_tiny: MakeBundle) -> Pipeline:
    return Pipeline(make_tiny())


QUICK = Request(
    prompt="a cat", negative_prompt="bad", seed=4, num_inference_steps=2, sampler="euler", schedule="karras"
)
ALL: dict[str, dict[str, Any]] = {
    "pag": {"layers": ["mid", "up"]},
    "sag": {},
    "slg": {"layers": ["down"], "start": 0.5},
    "freeu": {},
    "perp_neg": {"scale": 2.0},
    "mimic": {"scale": 2.0, "percentile": 0.95},
}


def pixels(pipeline: Pipeline, request: Request) -> list[bytes]:
    return [one.image.tobytes() for one in pipeline.paint(request)]


@pytest.mark.parametrize("name", ALL)
def test_each_guider_changes_the_picture_and_replays(tiny: Pipeline, name: str) -> None:
    (painted,) = tiny.paint(QUICK.replace({name: ALL[name]}))
    (plain,) = tiny.paint(QUICK)
    assert painted.image.tobytes() != plain.image.tobytes()
    again = Request.from_json(painted.recipe.request.to_json())
    assert getattr(again, name) == getattr(painted.recipe.request, name)
    assert pixels(tiny, again) == [painted.image.tobytes()]
    assert not painted.recipe.notes


def test_a_picture_of_a_batch_is_the_picture_alone_with_all_of_them(tiny: Pipeline) -> None:
    request = QUICK.replace({**ALL, "count": 2})
    alone = [pixels(tiny, request.replace({"count": 1, "seed": 4 + k}))[0] for k in range(2)]
    assert pixels(tiny, request) == alone


@pytest.mark.parametrize("name", ["pag", "slg", "sag"])
def test_at_scale_zero_a_pass_changes_nothing_and_costs_nothing(tiny: Pipeline, name: str) -> None:
    assert pixels(tiny, QUICK.replace({name: {**ALL[name], "scale": 0.0}})) == pixels(tiny, QUICK)
    assert rows_of_calls(tiny, QUICK.replace({name: {**ALL[name], "scale": 0.0}})) == [2] * 2


def rows_of_calls(pipeline: Pipeline, request: Request) -> list[int]:
    """Rows of each call of the network."""
    seen: list[int] = []
    handle = pipeline.bundle.unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        pipeline.paint(request)
    finally:
        handle.remove()
    return seen


def test_extra_passes_are_rows_of_the_same_call(tiny: Pipeline) -> None:
    assert rows_of_calls(tiny, QUICK) == [2, 2]
    assert rows_of_calls(tiny, QUICK.replace({"pag": {}, "slg": {}, "perp_neg": {}})) == [5, 5]
    assert rows_of_calls(tiny, QUICK.replace({"pag": {}, "guidance_scale": 1.0})) == [2, 2]
    assert rows_of_calls(tiny, QUICK.replace({"pag": {"end": 0.5}})) == [3, 2]
    assert rows_of_calls(tiny, QUICK.replace({"sag": {"start": 0.5}})) == [2, 2, 1]
    assert rows_of_calls(tiny, QUICK.replace({"freeu": {}, "mimic": {}})) == [2, 2]
    # Faded to nothing at the end, where 1000 timesteps lie behind.
    assert rows_of_calls(tiny, QUICK.replace({"pag": {"scale": 1.0, "adaptive_scale": 0.002}}))[-1] == 2


def test_branches_joined_by_and_are_weakened_together(tiny: Pipeline) -> None:
    """A prompt AND itself, at half weight each, is the prompt; so are its weakened passes."""
    once = QUICK.replace({"prompt": "a cat", "pag": {}, "slg": {}})
    twice = once.replace({"prompt": "a cat :0.5 AND a cat :0.5"})
    first, second = (np.asarray(tiny.paint(request)[0].image, np.float64) for request in (once, twice))
    assert np.abs(first - second).mean() < 0.5


def test_perp_neg_keeps_what_both_prompts_say(tiny: Pipeline) -> None:
    """A negative prompt equal to the prompt has no perpendicular part: what is left is guidance from the empty one."""
    same = QUICK.replace({"negative_prompt": QUICK.prompt, "perp_neg": {"scale": 5.0}})
    empty = QUICK.replace({"negative_prompt": ""})
    first, second = (np.asarray(tiny.paint(request)[0].image, np.float64) for request in (same, empty))
    assert np.abs(first - second).mean() < 0.05


def test_tiles_take_weakened_passes(tiny: Pipeline) -> None:
    wide = QUICK.replace({"width": 64, "tiled": {"tile": 32}, "freeu": {}})
    assert pixels(tiny, wide.replace({"pag": {}})) != pixels(tiny, wide)


def test_what_cannot_be_is_refused_by_name(tiny: Pipeline, make_tiny: MakeBundle) -> None:
    instruct = Pipeline(make_tiny(draft_channels=4))
    for name in ("pag", "sag", "slg", "perp_neg", "mimic"):
        with pytest.raises(InvalidInput, match=f"{name}.*instruct"):
            instruct.resolve(QUICK.replace({name: {}}))
    with pytest.raises(UnknownName, match="mid"):
        tiny.paint(QUICK.replace({"pag": {"layers": ["middle"]}}))
    with pytest.raises(UnknownName, match=r"slg\.layers.*up_blocks\.0"):
        tiny.paint(QUICK.replace({"slg": {"layers": ["up_blocks.7"]}}))
    with pytest.raises(InvalidInput, match="tiled"):
        tiny.paint(QUICK.replace({"sag": {}, "tiled": {}}))
    with pytest.raises(ConfigError, match="apg or mimic"):
        QUICK.replace({"apg": {}, "mimic": {}})
    with pytest.raises(ConfigError, match="start below end"):
        QUICK.replace({"pag": {"start": 0.5, "end": 0.5}})
    for name in ("pag", "sag"):
        with pytest.raises(ConfigError, match="scale"):
            QUICK.replace({name: {"scale": float("nan")}})


def test_networks_without_what_a_guider_needs_say_so(make_tiny: MakeBundle) -> None:
    bundle: ModelBundle = make_tiny()
    config = bundle.unet.config
    assert isinstance(config, UNetConfig)
    wide = {2 * config.channels[0], 4 * config.channels[0]} & set(config.channels)
    request = QUICK.replace({"freeu": {"stages": "widths"}})
    assert wide, "the tiny network has a level twice as wide"
    assert pixels(Pipeline(bundle), request) != pixels(Pipeline(bundle), QUICK)


def test_a_guider_without_effect_is_noted(tiny: Pipeline) -> None:
    def notes(**changes: object) -> str:
        return " ".join(tiny.paint(QUICK.replace(changes))[0].recipe.notes)

    assert "perp_neg was not used: there is no negative prompt" in notes(perp_neg={}, negative_prompt="")
    assert "mimic was not used: guidance is off" in notes(mimic={}, guidance_scale=1.0)
    assert "pag was not used: none of 2 steps" in notes(pag={"start": 0.1, "end": 0.45})
    assert notes(pag={"start": 0.5, "end": 1.0}) == ""
