"""Image prompts in the pipeline: diffusers' `load_ip_adapter` on the same random weights is the judge."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from gouache.checkpoints.adapters.controlnet_library import list_controls
from gouache.checkpoints.adapters.ip_adapter import load_ip_adapter
from gouache.checkpoints.adapters.ip_adapter_library import list_ip_adapters
from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.checkpoints.identify import identify
from gouache.checkpoints.vision import load_image_encoder
from gouache.errors import ConfigError, IncompatibleCheckpoint, InvalidInput, ModelNotFound
from gouache.models.conditioning.image_encoder import ImageEncoder, PictureEncoder
from gouache.models.configs import IPAdapterConfig
from gouache.pipeline.diffusers_api import StableDiffusionPipeline
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.generate.image_prompts import check_fits, tower_pixels
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import ImagePrompt, Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Pair, Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The `vae_scale_factor` "),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

SIDE = 32
TOWER, EMBEDDING = 32, 24
"""Width of the tower's states, and of its projection."""
BASE = Request(
    prompt="a red fire engine",
    negative_prompt="grey",
    seed=21,
    num_inference_steps=5,
    guidance_scale=4.0,
    sampler="euler",
    schedule="leading",
)
KINDS = ("plain", "plus", "full")
FILES = {"plain": "plain.safetensors", "plus": "plus.safetensors", "full": "full.bin"}


def adapter_file(unet: Any, kind: str, seed: int, path: Path) -> dict[str, torch.Tensor]:
    """Random weights in the layout of the published files."""
    draw = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn(shape, generator=draw) * shape[-1] ** -0.5
        return drawn

    def vector(width: int, centre: float = 0.0) -> torch.Tensor:
        return torch.randn(width, generator=draw) * 0.1 + centre

    context = unet.config.cross_attention_dim
    state: dict[str, torch.Tensor] = {}

    def layer(name: str, out: int, width: int, *, bias: bool = True) -> None:
        state[f"image_proj.{name}.weight"] = matrix(out, width)
        if bias:
            state[f"image_proj.{name}.bias"] = vector(out)

    def norm(name: str, width: int) -> None:
        state[f"image_proj.{name}.weight"], state[f"image_proj.{name}.bias"] = vector(width, 1.0), vector(width)

    if kind == "plain":
        layer("proj", 4 * context, EMBEDDING)
        norm("norm", context)
    elif kind == "full":
        layer("proj.0", TOWER, TOWER)
        layer("proj.2", context, TOWER)
        norm("proj.3", context)
    else:
        width, inner = 40, 2 * 64
        state["image_proj.latents"] = matrix(1, 6, width)
        layer("proj_in", width, TOWER)
        layer("proj_out", context, width)
        norm("norm_out", context)
        for i in range(4):
            norm(f"layers.{i}.0.norm1", width)
            norm(f"layers.{i}.0.norm2", width)
            layer(f"layers.{i}.0.to_q", inner, width, bias=False)
            layer(f"layers.{i}.0.to_kv", 2 * inner, width, bias=False)
            layer(f"layers.{i}.0.to_out", width, inner, bias=False)
            norm(f"layers.{i}.1.0", width)
            layer(f"layers.{i}.1.1", 4 * width, width, bias=False)
            layer(f"layers.{i}.1.3", width, 4 * width, bias=False)
    crossing = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for i, name in enumerate(crossing):
        width = unet.get_submodule(name.removesuffix(".processor")).to_q.weight.shape[0]
        state[f"ip_adapter.{2 * i + 1}.to_k_ip.weight"] = matrix(width, context)
        state[f"ip_adapter.{2 * i + 1}.to_v_ip.weight"] = 2 * matrix(width, context)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".bin":
        nested: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for key, tensor in state.items():
            part, _, rest = key.partition(".")
            nested[part][rest] = tensor
        torch.save(nested, path)
    else:
        save_file(state, path)
    return state


class Bench:
    """One family with an adapter of each kind and their tower, in both programs."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.pair, self.folder = pair, folder
        self.adapters = folder / "ipadapter"
        for seed, kind in enumerate(KINDS):
            adapter_file(
                pair.theirs.unet, kind, seed, self.adapters / f"{kind}{'.bin' if kind == 'full' else '.safetensors'}"
            )
        shape = {"hidden_size": TOWER, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
        tower = CLIPVisionModelWithProjection(
            CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=EMBEDDING, hidden_act="gelu", **shape)
        ).eval()
        draw = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in tower.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
        tower.save_pretrained(self.adapters / "image_encoder")
        self.tower = tower
        self.ours = Pipeline(pair.ours.bundle)
        self.ours.adapters.folder = AdapterFolder(folder)

    def picture(self, name: str, size: tuple[int, int] = (45, 33)) -> str:
        path = self.folder / f"{name}-{size[0]}x{size[1]}.png"
        y, x = np.mgrid[0 : size[1], 0 : size[0]] / SIDE
        shift = sum(name.encode()) % 7
        pixels = np.stack([x, (x + shift * y > 1).astype(float), np.cos(shift * y)], -1).clip(0, 1) * 255
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        return str(path)

    def prompt(self, adapter: str, *pictures: str, **settings: Any) -> ImagePrompt:
        images = [self.picture(name) for name in pictures or ("apple",)]
        return ImagePrompt.from_dict({"adapter": adapter, "images": images, **settings})

    def paint(self, request: Request) -> Painted:
        (painted,) = self.ours.paint(request)
        return painted

    def blank_unet(self) -> Any:
        """Their U-Net, anew: adapters stay in the one that they were loaded into."""
        unet = type(self.pair.theirs.unet).from_config(self.pair.theirs.unet.config).eval()
        unet.load_state_dict(self.pair.theirs.unet.state_dict())
        return unet

    def judge(self, request: Request, first_scale: float | None = None, **more: Any) -> np.ndarray:
        """Their picture for the request."""
        prompts, pair = request.image_prompts, self.pair
        pair.use_scheduler(request)
        sdxl = pair.family == "sdxl"
        name = "StableDiffusionXLPipeline" if sdxl else "StableDiffusionPipeline"
        pipeline = pair.variant(name, image_encoder=None, unet=self.blank_unet())
        files = [FILES[str(one.adapter)] for one in prompts]
        pipeline.load_ip_adapter(str(self.adapters), subfolder="", weight_name=files)
        pipeline.set_ip_adapter_scale([one.weight for one in prompts] if first_scale is None else first_scale)
        picture: np.ndarray = pipeline(
            **pair.settings(request),
            latents=pair.scaled(request, pair.noise(request)),
            ip_adapter_image=[[Image.open(name).convert("RGB") for name in one.images] for one in prompts],
            height=SIDE,
            width=SIDE,
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


CASES: dict[str, list[tuple[str, tuple[str, ...], float]]] = {
    "plain": [("plain", ("apple",), 1.0)],
    "plus": [("plus", ("apple",), 0.8)],
    "full": [("full", ("apple",), 0.6)],
    "several pictures": [("plus", ("apple", "pear"), 0.7)],
    "two adapters": [("plain", ("apple",), 0.5), ("plus", ("pear",), 0.6)],
}


@pytest.mark.every_time("sd1-plain", "sd1-plus", "sd1-two adapters", "sdxl-plain", "sdxl-plus")
@pytest.mark.parametrize(
    ("family", "case"), [*(("sd1", case) for case in CASES), ("sdxl", "plain"), ("sdxl", "plus"), ("sd2", "plain")]
)
def test_the_picture_is_diffusers(bench: Callable[[str], Bench], family: str, case: str) -> None:
    place = bench(family)
    prompts = [place.prompt(adapter, *pictures, weight=weight) for adapter, pictures, weight in CASES[case]]
    request = BASE.replace({"image_prompts": prompts})
    found = place.paint(request).image
    assert psnr(found, place.judge(request)) >= 60
    assert psnr(found, np.asarray(place.paint(BASE).image) / 255) < 40, "the image prompt changed nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_diffusers(bench: Callable[[str], Bench], kind: str) -> None:
    """Tower and projection, from the same files, on a picture of another shape than the tower's."""
    place = bench("sd1")
    name = FILES[kind]
    pipeline = place.pair.variant("StableDiffusionPipeline", image_encoder=None, unet=place.blank_unet())
    pipeline.load_ip_adapter(str(place.adapters), subfolder="", weight_name=name)
    picture = Image.open(place.picture("apple")).convert("RGB")
    states, nothing = pipeline.encode_image(picture, "cpu", 1, kind != "plain")
    with torch.no_grad():
        theirs = [pipeline.unet.encoder_hid_proj([one[None]])[0][:, 0] for one in (states, nothing)]
        encoder = PictureEncoder(load_image_encoder(place.adapters / "image_encoder"))
        adapter = load_ip_adapter(place.adapters / name)
        ours = [adapter.tokens(one) for one in (encoder.encode(tower_pixels(picture, 28)), encoder.blank(1))]
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).abs().max() / other.abs().max()) <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_own_layout_is_read_too(bench: Callable[[str], Bench], kind: str, tmp_path: Path) -> None:
    place = bench("sd1")
    name = FILES[kind]
    pipeline = place.pair.variant("StableDiffusionPipeline", image_encoder=None, unet=place.blank_unet())
    pipeline.load_ip_adapter(str(place.adapters), subfolder="", weight_name=name, image_encoder_folder=None)
    marks = (".processor.to_k_ip.", ".processor.to_v_ip.", "encoder_hid_proj.")
    state = pipeline.unet.state_dict()
    found = {key: tensor.clone() for key, tensor in state.items() if any(mark in key for mark in marks)}
    save_file(found, tmp_path / "a.safetensors")
    assert identify(tmp_path / "a.safetensors").kind == "ip-adapter"
    ours, saved = load_ip_adapter(place.adapters / name), load_ip_adapter(tmp_path / "a.safetensors")
    assert ours.config == saved.config
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[key]), key


def test_a_mask_says_where(bench: Callable[[str], Bench]) -> None:
    place = bench("sd1")
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (0, 0, 16, SIDE))
    mask.save(place.folder / "left.png")
    request = BASE.replace({"image_prompts": [place.prompt("plus", mask=str(place.folder / "left.png"))]})
    processed = IPAdapterMaskProcessor().preprocess([mask], height=SIDE, width=SIDE)
    theirs = place.judge(request, cross_attention_kwargs={"ip_adapter_masks": [processed.reshape(1, 1, SIDE, SIDE)]})
    found = place.paint(request).image
    assert psnr(found, theirs) >= 60
    everywhere = BASE.replace({"image_prompts": [place.prompt("plus")]})
    assert psnr(found, np.asarray(place.paint(everywhere).image) / 255) < 40


def test_only_a_share_of_the_steps(bench: Callable[[str], Bench]) -> None:
    """diffusers has no such option: its scale is set to 0 between the steps."""
    place = bench("sd1")
    request = BASE.replace({"image_prompts": [place.prompt("plain", start=0.2, end=0.6)]})

    def switch(pipeline: Any, step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipeline.set_ip_adapter_scale(1.0 if step + 1 in (1, 2) else 0.0)
        return values

    theirs = place.judge(request, first_scale=0.0, callback_on_step_end=switch)
    assert psnr(place.paint(request).image, theirs) >= 60


def test_weight_zero_is_no_image_prompt(bench: Callable[[str], Bench]) -> None:
    place = bench("sd1")
    plain, off = place.paint(BASE), place.paint(BASE.replace({"image_prompts": [place.prompt("plain", weight=0.0)]}))
    assert off.recipe.steps == plain.recipe.steps
    assert any("image_prompts[0] was not used: its weight is 0" in note for note in off.recipe.notes)


def test_the_recipe_names_everything_and_replays(bench: Callable[[str], Bench]) -> None:
    place = bench("sd1")
    prompts = [place.prompt("plain", weight=0.5), place.prompt("full", "pear", "plum", start=0.2)]
    request = BASE.replace({"image_prompts": prompts, "count": 2})
    together = place.ours.paint(request)
    recipe = together[1].recipe
    assert [one.kind for one in recipe.adapters] == ["ip-adapter", "ip-adapter", "image-encoder"]
    digests = {name: sha256(Path(name).read_bytes()).hexdigest() for name in recipe.request.pictures()}
    assert len(digests) == 3
    assert recipe.attachments == digests
    alone = place.paint(Recipe.from_json(recipe.to_json()).request)
    assert (alone.recipe.steps, alone.recipe.pixels) == (recipe.steps, recipe.pixels)
    place.ours.adapters.expect(recipe.adapters)
    other = recipe.adapters[0].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ModelNotFound, match="sha256 0000"):
        place.ours.adapters.expect([other])


def test_a_picture_is_seen_once(bench: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    place = bench("sd1")
    request = BASE.replace({"image_prompts": [place.prompt("plus", "melon")]})
    place.paint(request)

    def refuse(*_: object) -> None:
        pytest.fail("the tower ran again")

    monkeypatch.setattr(ImageEncoder, "forward", refuse)
    place.paint(request.replace({"seed": 22}))


def test_another_family_is_refused_with_both_names(bench: Callable[[str], Bench]) -> None:
    place = bench("sd1")
    config = IPAdapterConfig(context_width=2048, block_widths=(16,))
    both = r"for Stable Diffusion XL .* expected one for Stable Diffusion 1\.x"
    with pytest.raises(IncompatibleCheckpoint, match=both):
        check_fits(config, place.ours.bundle, "image prompt 'x'")
    strange = place.prompt(str(bench("sdxl").adapters / "plain.safetensors"))
    with pytest.raises(IncompatibleCheckpoint, match="an IP-Adapter for"):
        place.paint(BASE.replace({"image_prompts": [strange]}))


def test_without_a_tower_that_fits_it_says_which_is_wanted(bench: Callable[[str], Bench], tmp_path: Path) -> None:
    place = bench("sd1")
    adapters = tmp_path / "models" / "controlnet"
    adapters.mkdir(parents=True)
    shutil.copy(place.adapters / "plain.safetensors", adapters)
    pipe = Pipeline(place.pair.ours.bundle)
    pipe.adapters.folder = AdapterFolder(tmp_path / "models")
    request = BASE.replace({"image_prompts": [place.prompt("plain")]})
    with pytest.raises(ModelNotFound, match=r"no vision tower, expected .* 24 wide, as folder image_encoder beside"):
        pipe.paint(request)
    shutil.copytree(place.adapters / "image_encoder", tmp_path / "models" / "clip_vision" / "tiny")
    (painted,) = pipe.paint(request)
    assert painted.recipe.steps == place.paint(request).recipe.steps
    assert [file.name for file in list_ip_adapters(tmp_path / "models")] == ["plain"]
    assert list_controls(tmp_path / "models") == []


def test_face_id_is_refused_by_name(bench: Callable[[str], Bench], tmp_path: Path) -> None:
    state = load_file(bench("sd1").adapters / "plain.safetensors")
    state["image_proj.proj.0.weight"] = state.pop("image_proj.proj.weight")
    save_file(state, tmp_path / "face.safetensors")
    assert identify(tmp_path / "face.safetensors").label == "FaceID"
    with pytest.raises(IncompatibleCheckpoint, match="FaceID kind, which reads InsightFace's vector"):
        load_ip_adapter(tmp_path / "face.safetensors")


def test_no_adapter_and_an_unknown_one_are_refused(bench: Callable[[str], Bench]) -> None:
    place = bench("sd1")
    with pytest.raises(InvalidInput, match=r"image_prompts\[0\]\.adapter: given none"):
        place.paint(BASE.replace({"image_prompts": [{"images": [place.picture("apple")]}]}))
    with pytest.raises(ModelNotFound, match=r"no such IP-Adapter.*plain"):
        place.paint(BASE.replace({"image_prompts": [place.prompt("plian")]}))
    with pytest.raises(ConfigError, match="start below end"):
        place.prompt("plain", start=0.5, end=0.5)


def test_guiders_tiles_and_a_second_pass_go_with_it(bench: Callable[[str], Bench]) -> None:
    """Weakened passes see the picture as the prompt's side does; a tile sees its part of the mask."""
    place = bench("sd1")
    prompt = place.prompt("plain", mask=place.picture("mask", (SIDE, SIDE)))
    request = BASE.replace({"image_prompts": [prompt], "num_inference_steps": 2})
    whole = place.paint(request)
    one_tile = place.paint(request.replace({"tiled": {"tile": SIDE}}))
    assert psnr(one_tile.image, np.asarray(whole.image) / 255) >= 60
    without = {"image_prompts": ()}
    for other in ({"pag": {"scale": 2.0}}, {"hires": {"scale": 2.0}}, {"tiled": {"tile": 16}}):
        changed = request.replace(other)
        assert place.paint(changed).recipe.steps != place.paint(changed.replace(without)).recipe.steps


def test_regions_and_a_controlnet_go_with_it(bench: Callable[[str], Bench]) -> None:
    """What it shows is seen at every place, whichever text holds there: one whole region is the plain prompt."""
    place = bench("sd1")
    network = ControlNetModel.from_unet(
        place.pair.theirs.unet, conditioning_embedding_out_channels=(4, 8, 12), load_weights_from_unet=False
    )
    draw = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = 0.1 if parameter.ndim == 1 else 0.7 * parameter[0].numel() ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=draw) * spread)
    network.save_pretrained(place.folder / "ControlNet" / "edges")
    plain = BASE.replace(
        {
            "image_prompts": [place.prompt("plus", "pear", mask=place.picture("mask", (SIDE, SIDE)))],
            "control": [{"model": "edges", "image": place.picture("plum", (SIDE, SIDE))}],
            "num_inference_steps": 2,
        }
    )
    whole = {"prompt": plain.prompt, "box": (0.0, 0.0, 1.0, 1.0), "base": 0.0}
    expected = place.paint(plain)
    found = place.paint(plain.replace({"prompt": "a cat", "regions": [whole]}))
    assert found.recipe.steps == expected.recipe.steps
    halves = [{**whole, "box": (0.0, 0.0, 0.5, 1.0)}, {**whole, "prompt": "a blue cup", "box": (0.5, 0.0, 1.0, 1.0)}]
    request = plain.replace({"prompt": "a cat", "regions": halves})
    together = place.ours.paint(request.replace({"count": 2}))
    assert together[1].recipe.steps == place.paint(together[1].recipe.request).recipe.steps
    for left_out in ("image_prompts", "control", "regions"):
        assert place.paint(request.replace({left_out: ()})).recipe.steps != together[0].recipe.steps, left_out


def test_diffusers_lines_paint_the_same(bench: Callable[[str], Bench]) -> None:
    place = bench("sd1")
    pipe = StableDiffusionPipeline(Pipeline(place.pair.ours.bundle))
    pipe.load_ip_adapter(place.adapters, weight_name=["plain.safetensors", "plus.safetensors"])
    pipe.set_ip_adapter_scale([0.6, 0.4])
    pictures = [Image.open(place.picture(name)) for name in ("apple", "pear")]
    generator = torch.Generator().manual_seed(3)
    both: list[Image.Image | list[Image.Image]] = [pictures[0], [pictures[1]]]
    painted = pipe("a cat", ip_adapter_image=both, num_inference_steps=2, generator=generator).painted[0]
    request = painted.recipe.request.replace(
        {"image_prompts": [place.prompt("plain", weight=0.6), place.prompt("plus", "pear", weight=0.4)]}
    )
    assert place.paint(request).recipe.pixels == painted.recipe.pixels
    with pytest.raises(InvalidInput, match="1 for 2 IP-Adapters"):
        pipe("a cat", ip_adapter_image=pictures[0])
