"""ControlNets in the pipeline: diffusers' pipelines with the same random weights are the judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import load_file, save_file

from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.errors import ConfigError, IncompatibleCheckpoint, InvalidInput, ModelNotFound
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.inputs.edges import canny
from gouache.pipeline.inputs.images import fit
from gouache.pipeline.output.a1111_text import infotext_of
from gouache.pipeline.output.metadata import encode_picture
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Control, Hires, Interpolation, Mask, Outpaint, Request, Tiled

if TYPE_CHECKING:
    from tests.pipeline.twins import Pair, Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The `vae_scale_factor` "),
]

SIDE = 32
BASE = Request(
    prompt="a red fire engine",
    negative_prompt="grey",
    seed=21,
    num_inference_steps=6,
    guidance_scale=4.0,
    sampler="euler",
    schedule="leading",
)


class Bench:
    """One family with two ControlNets, `edges` and `depth`, in both programs."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.pair, self.folder = pair, folder
        self.theirs = {name: self._network(name, seed) for seed, name in enumerate(("edges", "depth"))}
        self.ours = Pipeline(pair.ours.bundle)
        self.ours.adapters.folder = AdapterFolder(folder)

    def _network(self, name: str, seed: int) -> ControlNetModel:
        config = self.pair.theirs.unet.config
        heads = config.attention_head_dim
        made = ControlNetModel.from_unet(
            self.pair.theirs.unet, conditioning_embedding_out_channels=(4, 8, 12), load_weights_from_unet=False
        )
        assert made.config.attention_head_dim == heads
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in made.parameters():
                spread = 0.1 if parameter.ndim == 1 else 0.7 * parameter[0].numel() ** -0.5
                parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
        made.eval().save_pretrained(self.folder / "ControlNet" / name)
        return made

    def picture(self, name: str, size: tuple[int, int] = (SIDE, SIDE)) -> str:
        """Smooth colours with an edge, other ones for each name."""
        path = self.folder / f"{name}-{size[0]}x{size[1]}.png"
        y, x = np.mgrid[0 : size[1], 0 : size[0]] / SIDE
        shift = sum(name.encode()) % 7
        pixels = np.stack([x, (x + shift * y > 1).astype(float), np.cos(shift * y)], -1).clip(0, 1) * 255
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        return str(path)

    def control(self, name: str, **settings: Any) -> Control:
        values = {"model": name, "image": self.picture(name), **settings}
        return Control.from_dict(values)

    def paint(self, request: Request) -> Painted:
        (painted,) = self.ours.paint(request)
        return painted

    def judge(self, request: Request, **more: Any) -> np.ndarray:
        """Their picture for the request, through their own pipeline for several networks."""
        controls = request.control
        pair = self.pair
        pair.use_scheduler(request)
        name = "StableDiffusionXLControlNetPipeline" if pair.family == "sdxl" else "StableDiffusionControlNetPipeline"
        pipeline = pair.variant(name, controlnet=[self.theirs[one.model] for one in controls])
        images = [Image.open(one.image).convert("RGB") for one in controls]
        picture: np.ndarray = pipeline(
            **pair.settings(request),
            image=images,
            latents=pair.scaled(request, pair.noise(request)),
            controlnet_conditioning_scale=[one.weight for one in controls],
            control_guidance_start=[one.start for one in controls],
            control_guidance_end=[one.end for one in controls],
            guess_mode=controls[0].guess,
            **more,
        ).images[0]
        return picture


@pytest.fixture(scope="module")
def bench(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    made: dict[str, Bench] = {}

    def of(family: str) -> Bench:
        if family not in made:
            made[family] = Bench(twins.of(family), tmp_path_factory.mktemp(family))
        return made[family]

    return of


def psnr(first: Image.Image, second: np.ndarray) -> float:
    error = np.mean((np.asarray(first, float) / 255 - np.round(second.astype(float) * 255) / 255) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


CASES: dict[str, list[dict[str, Any]]] = {
    "one": [{"model": "edges"}],
    "weaker": [{"model": "edges", "weight": 0.4}],
    "two": [{"model": "edges", "weight": 0.7}, {"model": "depth", "weight": 0.9}],
    "a part of the steps": [{"model": "edges", "start": 0.2, "end": 0.7}, {"model": "depth", "end": 0.5}],
    "guess": [{"model": "edges", "guess": True}, {"model": "depth", "guess": True}],
}


@pytest.mark.every_time("sd1-one", "sd1-two", "sd1-a part of the steps", "sdxl-guess")
@pytest.mark.parametrize(
    ("family", "case"), [*(("sd1", case) for case in CASES), ("sd2", "two"), ("sdxl", "two"), ("sdxl", "guess")]
)
def test_the_picture_is_diffusers(bench: Callable[[str], Bench], family: str, case: str) -> None:
    place = bench(family)
    controls = [place.control(settings["model"], **settings) for settings in CASES[case]]
    request = BASE.replace({"control": controls})
    found = place.paint(request).image
    assert psnr(found, place.judge(request)) >= 60
    assert psnr(found, np.asarray(place.paint(BASE).image) / 255) < 40, "the control changed nothing"


def test_an_edited_picture_is_diffusers(bench: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """Image to image, with steps left out: shares are of the steps that are walked."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.pipelines.controlnet import pipeline_controlnet_img2img as module

    place = bench("sd1")
    control = place.control("edges", end=0.6)
    request = BASE.replace({"init_image": place.picture("start"), "strength": 0.7, "control": [control]})
    noise = place.pair.noise(request)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise.clone())
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())  # noqa: ARG005
    place.pair.use_scheduler(request)
    pipeline = place.pair.variant("StableDiffusionControlNetImg2ImgPipeline", controlnet=place.theirs["edges"])
    theirs = pipeline(
        **place.pair.settings(request),
        image=Image.open(str(request.init_image)),
        strength=0.7,
        control_image=Image.open(control.image),
        control_guidance_end=0.6,
        controlnet_conditioning_scale=1.0,
    ).images[0]
    assert psnr(place.paint(request).image, theirs) >= 60


def test_inpainting_hides_what_is_masked(
    bench: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The masked part of the control picture is -1, as the published network for inpainting wants it."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.pipelines.controlnet import pipeline_controlnet_inpaint as module

    place = bench("sd1")
    start = place.picture("start")
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (16, 12, 32, 28))
    mask.save(tmp_path / "mask.png")
    options = Mask(image=str(tmp_path / "mask.png"), blur=0, preserve=False)
    control = place.control("edges", image=start, preprocessor="inpaint")
    request = BASE.replace({"init_image": start, "strength": 0.7, "mask": options, "control": [control]})
    pixels = np.asarray(Image.open(start), np.float32) / 255
    pixels[np.asarray(mask) > 127] = -1
    hint = torch.from_numpy(pixels).movedim(-1, 0)[None]
    place.pair.use_scheduler(request)
    noise = place.pair.noise(request)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise.clone())
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())  # noqa: ARG005
    pipeline = place.pair.variant("StableDiffusionControlNetInpaintPipeline", controlnet=place.theirs["edges"])
    theirs = pipeline(
        **place.pair.settings(request),
        image=Image.open(start),
        mask_image=mask,
        control_image=hint,
        strength=0.7,
        controlnet_conditioning_scale=1.0,
    ).images[0]
    found = place.paint(request).image
    assert psnr(found, theirs) >= 60
    clear = Image.open(start).convert("RGBA")
    clear.putalpha(mask.point(lambda value: 255 - value))
    clear.save(tmp_path / "clear.png")
    transparent = place.control("edges", image=str(tmp_path / "clear.png"), preprocessor="inpaint")
    again = request.replace({"control": [transparent]})
    assert place.paint(again).image.tobytes() == found.tobytes()
    without = {"init_image": None, "mask": None, "strength": None}
    assert place.paint(again.replace(without)).image.tobytes() != place.paint(BASE).image.tobytes()
    with pytest.raises(InvalidInput, match="transparent where it is to be filled"):
        place.paint(request.replace(without))


def test_a_picture_of_a_batch_is_the_picture_made_alone(bench: Callable[[str], Bench]) -> None:
    place = bench("sd1")
    request = BASE.replace({"control": [place.control("edges"), place.control("depth", weight=0.5)]})
    together = place.ours.paint(request.replace({"count": 3}))
    for k, painted in enumerate(together):
        alone = place.paint(request.replace({"seed": 21 + k}))
        assert alone.image.tobytes() == painted.image.tobytes()
        assert alone.recipe.steps == painted.recipe.steps
    portable = place.ours.paint(request.replace({"count": 3, "determinism": "portable"}))
    for one, other in zip(together, portable, strict=True):
        assert psnr(one.image, np.asarray(other.image) / 255) >= 50


def test_weight_zero_and_zero_convolutions_change_nothing(bench: Callable[[str], Bench], tmp_path: Path) -> None:
    place = bench("sd1")
    plain = place.paint(BASE)
    assert (
        place.paint(BASE.replace({"control": [place.control("edges", weight=0.0)]})).recipe.steps == plain.recipe.steps
    )
    untrained = tmp_path / "controlnet" / "fresh"
    made = ControlNetModel.from_unet(place.pair.theirs.unet, conditioning_embedding_out_channels=(4, 8, 12))
    made.save_pretrained(untrained)
    pipe = Pipeline(place.pair.ours.bundle)
    pipe.adapters.folder = AdapterFolder(tmp_path)
    fresh = place.control("edges", model="fresh")
    assert pipe.paint(BASE.replace({"control": [fresh]}))[0].recipe.steps == plain.recipe.steps


def test_the_loaded_model_stays_and_the_network_is_kept(bench: Callable[[str], Bench]) -> None:
    place = bench("sd1")
    before = {name: tensor.clone() for name, tensor in place.ours.bundle.unet.state_dict().items()}
    first = place.paint(BASE)
    request = BASE.replace({"control": [place.control("edges")]})
    place.paint(request)
    kept = next(iter(place.ours.adapters.controls._kept.values()))
    place.paint(request)
    assert next(iter(place.ours.adapters.controls._kept.values())) is kept
    assert place.paint(BASE).image.tobytes() == first.image.tobytes()
    assert all(torch.equal(tensor, before[name]) for name, tensor in place.ours.bundle.unet.state_dict().items())
    assert not place.ours.bundle.controls


def test_edges_are_drawn_on_the_way(bench: Callable[[str], Bench], tmp_path: Path) -> None:
    """`canny` is the same as a picture of edges that is ready; black under what is transparent."""
    place = bench("sd1")
    drawn = place.control("edges", preprocessor="canny", canny_low=50, canny_high=120)
    edges = canny(Image.open(drawn.image), 50, 120)
    edges.save(tmp_path / "edges.png")
    clear = Image.new("RGBA", edges.size, (255, 255, 255, 0))
    clear.putalpha(edges)
    clear.save(tmp_path / "clear.png")
    assert 0 < np.asarray(edges).mean() < 255
    pictures = {
        place.paint(BASE.replace({"control": [one]})).image.tobytes()
        for one in (
            drawn,
            place.control("edges", image=str(tmp_path / "edges.png")),
            place.control("edges", image=str(tmp_path / "clear.png")),
        )
    }
    assert len(pictures) == 1


def test_larger_passes_tiles_ways_and_masks_are_steered_too(bench: Callable[[str], Bench], tmp_path: Path) -> None:
    place = bench("sd1")
    control = place.control("edges", image=place.picture("edges", (2 * SIDE, SIDE)))
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (8, 8, 24, 24))
    mask.save(tmp_path / "mask.png")
    start = place.picture("start")
    for changes in (
        {"hires": Hires(scale=2.0, num_inference_steps=3)},
        {"tiled": Tiled(tile=SIDE), "width": 2 * SIDE},
        {"seamless": "both"},
        {"init_image": start, "mask": Mask(image=str(tmp_path / "mask.png"), only_masked=True, padding=4)},
    ):
        plain = place.paint(BASE.replace(changes)).image
        steered = place.paint(BASE.replace({**changes, "control": [control]})).image
        assert steered.size == plain.size
        assert steered.tobytes() != plain.tobytes(), changes
    way = BASE.replace({"control": [control], "interpolation": Interpolation(seed=5, frames=3)})
    ends = [painted.image.tobytes() for painted in place.ours.paint(way)]
    assert len(set(ends)) == 3
    assert ends[0] == place.paint(BASE.replace({"control": [control]})).image.tobytes()


def test_only_masked_sees_its_part_of_the_control_picture(bench: Callable[[str], Bench], tmp_path: Path) -> None:
    """What the control picture shows outside the part that is worked on plays no role."""
    place = bench("sd1")
    mask = Image.new("L", (2 * SIDE, 2 * SIDE))
    mask.paste(255, (40, 40, 56, 56))
    mask.save(tmp_path / "mask.png")
    hint = Image.open(place.picture("edges", (2 * SIDE, 2 * SIDE)))
    other = hint.copy()
    other.paste((255, 0, 0), (0, 0, 24, 24))
    hint.save(tmp_path / "hint.png")
    other.save(tmp_path / "other.png")
    options = Mask(image=str(tmp_path / "mask.png"), only_masked=True, padding=4)
    base = BASE.replace({"init_image": place.picture("start", (2 * SIDE, 2 * SIDE)), "mask": options})
    painted = [
        place.paint(base.replace({"control": [place.control("edges", image=str(tmp_path / name))]})).image.tobytes()
        for name in ("hint.png", "other.png")
    ]
    assert painted[0] == painted[1]


def test_a_control_picture_may_be_brought_to_size_in_its_own_way(bench: Callable[[str], Bench], tmp_path: Path) -> None:
    place = bench("sd1")
    wide = place.control("edges", image=place.picture("edges", (2 * SIDE, SIDE)))
    fit(Image.open(wide.image), SIDE, SIDE, "pad").save(tmp_path / "padded.png")
    ready = place.control("edges", image=str(tmp_path / "padded.png"))
    own = wide.model_copy(update={"resize_mode": "pad"})
    painted = [
        place.paint(BASE.replace({"control": [control], "resize_mode": mode}))
        for control, mode in ((ready, "crop"), (own, "crop"), (wide, "pad"), (wide, "crop"))
    ]
    first, second, third, other = (one.image.tobytes() for one in painted)
    assert first == second == third != other
    assert "Resize Mode: Resize and Fill" in str(infotext_of(painted[1].recipe).values["ControlNet 0"])


def test_recipe_and_replay(bench: Callable[[str], Bench]) -> None:
    place = bench("sd1")
    control = place.control("edges", weight=0.8, end=0.9)
    painted = place.paint(BASE.replace({"control": [control]}))
    (ref,) = painted.recipe.adapters
    assert (ref.name, ref.kind) == ("edges", "controlnet")
    assert set(painted.recipe.attachments) == {control.image}
    assert painted.recipe.request.control == (control,)
    text = infotext_of(painted.recipe).values["ControlNet 0"]
    assert text == (
        f"Module: none, Model: edges [{ref.short_hash[:8]}], Weight: 0.8, Resize Mode: Crop and Resize, "
        "Guidance Start: 0, Guidance End: 0.9, Control Mode: Balanced"
    )
    place.ours.adapters.expect(painted.recipe.adapters)
    again = place.paint(painted.recipe.request)
    assert again.recipe.steps == painted.recipe.steps
    wrong = ref.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ModelNotFound, match=r"another file.*controlnet"):
        place.ours.adapters.expect((wrong,))
    place.ours.adapters.expect(())
    assert encode_picture(painted.image, "png", {"gouache": painted.recipe.to_json()})


def test_what_can_not_be_steered_is_refused(bench: Callable[[str], Bench], tmp_path: Path) -> None:
    place = bench("sd1")
    control = place.control("edges")
    start = place.picture("start")
    with pytest.raises(ModelNotFound, match=r"'edgse'.*edges"):
        place.paint(BASE.replace({"control": [place.control("edges", model="edgse")]}))
    with pytest.raises(ModelNotFound, match="no such ControlNet"):
        place.paint(BASE.replace({"control": [place.control("edges", model=str(place.folder / "ControlNet/edges"))]}))
    with pytest.raises(InvalidInput, match="outpaint"):
        place.paint(BASE.replace({"control": [control], "init_image": start, "outpaint": Outpaint(left=8)}))
    with pytest.raises(ConfigError, match="start below end"):
        place.control("edges", start=0.5, end=0.5)
    with pytest.raises(ConfigError, match="canny_low"):
        place.control("edges", canny_low=300)
    other = bench("sdxl")
    place_of_other = Pipeline(place.pair.ours.bundle)
    place_of_other.adapters.folder = AdapterFolder(other.folder)
    with pytest.raises(IncompatibleCheckpoint, match="width of the text: 56"):
        place_of_other.paint(BASE.replace({"control": [control]}))
    damaged = tmp_path / "controlnet"
    damaged.mkdir()
    tensors = load_file(place.folder / "ControlNet" / "edges" / "diffusion_pytorch_model.safetensors")
    del tensors["controlnet_mid_block.weight"]
    save_file(tensors, damaged / "edges.safetensors")
    place_of_other.adapters.folder = AdapterFolder(tmp_path)
    with pytest.raises(IncompatibleCheckpoint, match=r"1 missing: controlnet_mid_block\.weight"):
        place_of_other.paint(BASE.replace({"control": [control]}))
    assert json.loads(BASE.replace({"control": [control]}).to_json())["control"][0]["model"] == "edges"
