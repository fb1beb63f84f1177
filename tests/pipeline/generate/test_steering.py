"""T2I-Adapters, ControlNet-Union and control-LoRA in the pipeline: diffusers with the same weights is the judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, MultiAdapter, T2IAdapter
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.pipeline.twins import SIDE, Pair, scrambled
from torch import Tensor

from gouache.checkpoints.adapters.controlnet_library import list_controls
from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.checkpoints.identify import identify
from gouache.checkpoints.keymaps import speller
from gouache.errors import CheckpointError, IncompatibleCheckpoint, InvalidInput
from gouache.models.configs import ControlNetConfig, UNetConfig
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Control, Hires, Mask, Request, Tiled

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The `vae_scale_factor` "),
]

BASE = Request(
    prompt="a red fire engine",
    negative_prompt="grey",
    seed=21,
    num_inference_steps=6,
    guidance_scale=4.0,
    sampler="euler",
    schedule="leading",
)
HINTS = (4, 8, 12)
# name -> (kind, family, their settings)
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lines": ("sd1", {"in_channels": 1, "channels": (16, 32, 32), "num_res_blocks": 2, "downscale_factor": 4}),
    "depth": ("sd1", {"in_channels": 3, "channels": (16, 32, 32), "num_res_blocks": 2, "downscale_factor": 4}),
    "colour": (
        "sd1",
        {"channels": (16, 32), "num_res_blocks": 3, "downscale_factor": 4, "adapter_type": "light_adapter"},
    ),
    "xl": (
        "sdxl",
        {"channels": (16, 32, 32, 32), "downscale_factor": 8, "adapter_type": "full_adapter_xl"},
    ),
}


class Bench:
    """One family of three levels, with whatever steers it, in both programs."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.pair, self.folder = pair, folder
        self.ours = Pipeline(pair.ours.bundle)
        self.ours.adapters.folder = AdapterFolder(folder)
        self.theirs: dict[str, Any] = {}
        for seed, (name, (family, settings)) in enumerate(ADAPTERS.items()):
            if family == pair.family:
                self.theirs[name] = scrambled(T2IAdapter(**settings), seed)
                self.theirs[name].save_pretrained(folder / "t2i_adapter" / name)

    def union(self, name: str = "union", kinds: int = 8) -> ControlNetUnionModel:
        if name not in self.theirs:
            unet = self.pair.theirs.unet.config
            made = ControlNetUnionModel(
                **{key: unet[key] for key in UNET_KEYS},
                conditioning_embedding_out_channels=HINTS,
                num_control_type=kinds,
                num_trans_channel=16,
                num_trans_head=2,
                num_trans_layer=2,
                num_proj_channel=16,
            )
            self.theirs[name] = scrambled(made, 5)
            made.save_pretrained(self.folder / "controlnet" / name)
        return self.theirs[name]

    def picture(self, name: str, size: tuple[int, int] = (SIDE, SIDE)) -> str:
        """Smooth colours with an edge, other ones for each name."""
        path = self.folder / f"{name}-{size[0]}x{size[1]}.png"
        y, x = np.mgrid[0 : size[1], 0 : size[0]] / SIDE
        shift = sum(name.encode()) % 7
        pixels = np.stack([x, (x + shift * y > 1).astype(float), np.cos(shift * y)], -1).clip(0, 1) * 255
        if name == "lines":
            pixels = pixels[..., [1, 1, 1]]
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        return str(path)

    def control(self, name: str, **settings: Any) -> Control:
        return Control.from_dict({"model": name, "image": self.picture(name), **settings})

    def paint(self, request: Request) -> Painted:
        (painted,) = self.ours.paint(request)
        return painted

    def judge(self, name: str, request: Request, parts: dict[str, Any], **more: Any) -> np.ndarray:
        """Their picture for the request, through one of their pipelines."""
        self.pair.use_scheduler(request)
        pipeline = self.pair.variant(name, **parts)
        picture: np.ndarray = pipeline(
            **self.pair.settings(request), latents=self.pair.scaled(request, self.pair.noise(request)), **more
        ).images[0]
        return picture


UNET_KEYS = (
    *("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "norm_num_groups"),
    *("cross_attention_dim", "attention_head_dim", "use_linear_projection", "addition_embed_type"),
    *("addition_time_embed_dim", "projection_class_embeddings_input_dim"),
)


@pytest.fixture(scope="module")
def bench(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    made: dict[str, Bench] = {}

    def of(family: str) -> Bench:
        if family not in made:
            made[family] = Bench(twins.of(family, deep=True), tmp_path_factory.mktemp(family))
        return made[family]

    return of


def psnr(first: Image.Image, second: np.ndarray) -> float:
    error = np.mean((np.asarray(first, float) / 255 - np.round(second.astype(float) * 255) / 255) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


@pytest.mark.every_time("colour", "lines,depth")
@pytest.mark.parametrize("names", ["colour", "lines,depth", "depth"])
def test_adapters_of_sd1_are_diffusers(bench: Callable[[str], Bench], names: str) -> None:
    """A light one, and full ones for grey and for coloured pictures together."""
    place, weights = bench("sd1"), [0.8, 0.6]
    controls = [place.control(name, weight=weight) for name, weight in zip(names.split(","), weights, strict=False)]
    request = BASE.replace({"control": controls})
    networks = [place.theirs[one.model] for one in controls]
    images = [Image.open(one.image).convert("L" if one.model == "lines" else "RGB") for one in controls]
    several = len(networks) > 1
    theirs = place.judge(
        "StableDiffusionAdapterPipeline",
        request,
        {"adapter": MultiAdapter(networks) if several else networks[0]},
        image=images if several else images[0],
        adapter_conditioning_scale=weights if several else weights[0],
    )
    found = place.paint(request).image
    assert psnr(found, theirs) >= 60
    assert psnr(found, np.asarray(place.paint(BASE).image) / 255) < 40, "the adapter changed nothing"


def test_an_adapter_of_sdxl_is_diffusers(bench: Callable[[str], Bench]) -> None:
    """For a part of the steps: their factor is our end."""
    place = bench("sdxl")
    control = place.control("xl", weight=0.9, end=0.5)
    request = BASE.replace({"control": [control]})
    theirs = place.judge(
        "StableDiffusionXLAdapterPipeline",
        request,
        {"adapter": place.theirs["xl"]},
        image=Image.open(control.image),
        adapter_conditioning_scale=0.9,
        adapter_conditioning_factor=0.5,
    )
    found = place.paint(request).image
    assert psnr(found, theirs) >= 60
    assert psnr(found, np.asarray(place.paint(BASE).image) / 255) < 40, "the adapter changed nothing"


def in_their_names(folder: Path, light: bool, blocks: int) -> dict[str, Tensor]:
    """As the authors' own files number the blocks: all of a full adapter in one list."""
    found = {}
    for name, tensor in load_file(folder / "diffusion_pytorch_model.safetensors").items():
        key = name.removeprefix("adapter.")
        parts = key.split(".")
        if light and parts[2] == "resnets":
            parts[2] = "body"
        elif not light and parts[0] == "body":
            level = int(parts[1])
            place = level * blocks + (int(parts[3]) if parts[2] == "resnets" else 0)
            parts = ["body", str(place), *(parts[4:] if parts[2] == "resnets" else parts[2:])]
        found[".".join(parts)] = tensor
    return found


def test_adapters_in_their_authors_names(bench: Callable[[str], Bench]) -> None:
    """Single files give the folder's picture; they don't tell the kind, which follows from the fold."""
    place = bench("sd1")
    for name, blocks in (("lines", 2), ("colour", 3)):
        folder = place.folder / "t2i_adapter" / name
        tensors = in_their_names(folder, light=name == "colour", blocks=blocks)
        save_file(tensors, place.folder / "t2i_adapter" / f"{name}-single.safetensors")
        torch.save(tensors, place.folder / "t2i_adapter" / f"{name}-old.pth")
        identity = identify(place.folder / "t2i_adapter" / f"{name}-single.safetensors")
        assert (identity.kind, identity.family) == ("t2i-adapter", "sd1")
        pictures = {
            place.paint(BASE.replace({"control": [place.control(name, model=model)]})).image.tobytes()
            for model in (name, f"{name}-single", f"{name}-old")
        }
        assert len(pictures) == 1
    assert {"lines", "colour-old"} <= {file.name for file in list_controls(place.folder)}


def test_what_is_no_adapter_for_this_model_is_refused(bench: Callable[[str], Bench]) -> None:
    place = bench("sd1")
    for name, channels, fold, words in (
        ("shallow", (16, 32), 4, r"widths: \(16, 32\), expected \(16, 32, 32\)"),
        ("coarse", (16, 32, 32), 8, "pixels of one latent: 8, expected 4"),
    ):
        T2IAdapter(channels=channels, downscale_factor=fold).save_pretrained(place.folder / "t2i_adapter" / name)
        with pytest.raises(IncompatibleCheckpoint, match=f"control '{name}': given {words}"):
            place.paint(BASE.replace({"control": [place.control(name)]}))
    tensors = load_file(place.folder / "t2i_adapter" / "lines" / "diffusion_pytorch_model.safetensors")
    tensors.pop("adapter.body.1.resnets.0.block2.bias")
    save_file(tensors, place.folder / "t2i_adapter" / "broken.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: adapter\.body\.1\.resnets\.0\.block2\.bias"):
        place.paint(BASE.replace({"control": [place.control("lines", model="broken")]}))


@pytest.mark.every_time("canny")
@pytest.mark.parametrize("kinds", ["canny", "canny,depth", "tile,openpose,depth"])
def test_a_union_is_diffusers(bench: Callable[[str], Bench], kinds: str) -> None:
    """One picture is weighed by what it adds, several by how strongly each is seen."""
    place, modes = bench("sdxl"), {"openpose": 0, "depth": 1, "canny": 3, "tile": 6}
    network = place.union()
    weights = [0.7, 0.9, 0.5][: kinds.count(",") + 1]
    controls = [
        place.control("union", image=place.picture(kind), weight=weight, control_type=kind)
        for kind, weight in zip(kinds.split(","), weights, strict=True)
    ]
    request = BASE.replace({"control": controls})
    theirs = place.judge(
        "StableDiffusionXLControlNetUnionPipeline",
        request,
        {"controlnet": network},
        control_image=[Image.open(one.image) for one in controls],
        control_mode=[modes[str(one.control_type)] for one in controls],
        controlnet_conditioning_scale=weights,
    )
    found = place.paint(request).image
    assert psnr(found, theirs) >= 60
    assert psnr(found, np.asarray(place.paint(BASE).image) / 255) < 40, "the union changed nothing"


def test_a_union_asks_what_the_picture_shows(bench: Callable[[str], Bench]) -> None:
    place = bench("sdxl")
    place.union()
    drawn = place.control("union", preprocessor="canny")
    said = place.control("union", preprocessor="canny", control_type="canny")
    first, second = (place.paint(BASE.replace({"control": [one]})).image.tobytes() for one in (drawn, said))
    assert first == second
    other = place.control("union", preprocessor="canny", control_type="softedge")
    assert place.paint(BASE.replace({"control": [other]})).image.tobytes() != first
    with pytest.raises(InvalidInput, match="what the picture shows, one of openpose, depth"):
        place.paint(BASE.replace({"control": [place.control("union")]}))
    place.union("small", kinds=6)
    assert "promax" in identify(place.folder / "controlnet" / "union").label
    assert "promax" not in identify(place.folder / "controlnet" / "small").label
    with pytest.raises(InvalidInput, match="given tile"):
        place.paint(BASE.replace({"control": [place.control("small", control_type="tile")]}))


def control_lora(place: Bench, rank: int = 3) -> ControlNetModel:
    """A file as Stability AI's are, and the ControlNet that it stands for, put together by hand."""
    unet = place.pair.theirs.unet
    whole = scrambled(
        ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINTS, load_weights_from_unet=False), 8
    )
    ours = place.pair.ours.bundle.unet.config
    assert isinstance(ours, UNetConfig)
    spell = speller(ControlNetConfig(unet=ours, hint_widths=HINTS), "ldm")
    base, generator = unet.state_dict(), torch.Generator().manual_seed(2)
    tensors, state = {"lora_controlnet": torch.zeros(0)}, whole.state_dict()
    for name in state:
        theirs = spell(name).name
        if name not in base:  # hint and zero convolutions
            tensors[theirs] = state[name]
        elif name.endswith(".bias") or base[name].ndim == 1:
            state[name] = base[name] + torch.randn(base[name].shape, generator=generator) * 0.02
            tensors[theirs] = state[name]
        else:
            up = torch.randn(len(base[name]), rank, generator=generator) * 0.1
            down = torch.randn(rank, *base[name].shape[1:], generator=generator) * 0.1
            tensors[theirs.replace(".weight", ".up")] = up
            tensors[theirs.replace(".weight", ".down")] = down
            state[name] = base[name] + (up @ down.flatten(1)).reshape(base[name].shape)
    whole.load_state_dict(state)
    (place.folder / "controlnet").mkdir(exist_ok=True)
    save_file(tensors, place.folder / "controlnet" / "slim.safetensors")
    return whole


@pytest.mark.every_time("sdxl")
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_control_lora_is_the_controlnet_that_it_stands_for(bench: Callable[[str], Bench], family: str) -> None:
    place = bench(family)
    whole = control_lora(place)
    control = place.control("slim", weight=0.8)
    request = BASE.replace({"control": [control]})
    name = "StableDiffusionXLControlNetPipeline" if family == "sdxl" else "StableDiffusionControlNetPipeline"
    theirs = place.judge(
        name, request, {"controlnet": whole}, image=Image.open(control.image), controlnet_conditioning_scale=0.8
    )
    before = {key: tensor.clone() for key, tensor in place.ours.bundle.unet.state_dict().items()}
    found = place.paint(request).image
    assert psnr(found, theirs) >= 60
    assert psnr(found, np.asarray(place.paint(BASE).image) / 255) < 40, "the control-LoRA changed nothing"
    assert all(torch.equal(tensor, before[key]) for key, tensor in place.ours.bundle.unet.state_dict().items())
    file = place.folder / "controlnet" / "slim.safetensors"
    assert (identify(file).kind, identify(file).label) == ("controlnet", "control-LoRA")
    tensors = load_file(file)
    damages: tuple[tuple[Callable[[dict[str, Tensor]], object], str], ...] = (
        (lambda t: t.pop("zero_convs.1.0.weight"), r"1 missing: zero_convs\.1\.0\.weight"),
        (lambda t: t.update({"input_blocks.1.0.in_layers.2.up": torch.ones(7, 3)}), "1 of another shape"),
        (lambda t: t.update(more=torch.ones(1)), "1 unexpected: more"),
    )
    for change, words in damages:
        damaged = dict(tensors)
        change(damaged)
        save_file(damaged, place.folder / "controlnet" / "damaged.safetensors")
        with pytest.raises(CheckpointError, match=words):
            place.paint(BASE.replace({"control": [place.control("damaged")]}))


@pytest.mark.every_time("tiled")
@pytest.mark.parametrize("case", ["hires", "tiled", "seamless", "odd", "masked"])
def test_they_steer_edits_too(bench: Callable[[str], Bench], case: str, tmp_path: Path) -> None:
    place = bench("sdxl")
    place.union()
    controls = [
        place.control("xl"),
        place.control("union", control_type="canny", end=0.7),
        place.control("union", control_type="depth", start=0.3, weight=0.5),
    ]
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (8, 8, 24, 24))
    mask.save(tmp_path / "mask.png")
    masked = {"mask": Mask(image=str(tmp_path / "mask.png"), only_masked=True, padding=4)}
    changes: dict[str, dict[str, Any]] = {
        "hires": {"hires": Hires(scale=2.0, num_inference_steps=3)},
        "tiled": {"tiled": Tiled(tile=SIDE), "width": 2 * SIDE},
        "seamless": {"seamless": "both"},
        "odd": {"width": SIDE + 4},
        "masked": {"init_image": place.picture("start"), **masked},
    }
    base = BASE.replace({**changes[case], "num_inference_steps": 3})
    plain = place.paint(base).image
    steered = place.paint(base.replace({"control": controls})).image
    assert steered.size == plain.size
    assert steered.tobytes() != plain.tobytes()


def test_a_picture_of_a_batch_is_the_picture_made_alone(bench: Callable[[str], Bench]) -> None:
    place = bench("sdxl")
    place.union()
    kinds = [place.control("union", control_type=kind) for kind in ("canny", "depth")]
    request = BASE.replace({"control": [place.control("xl"), *kinds], "num_inference_steps": 2})
    together = place.ours.paint(request.replace({"count": 2}))
    alone = place.paint(request.replace({"seed": 22}))
    assert alone.image.tobytes() == together[1].image.tobytes()
    assert {ref.name for ref in alone.recipe.adapters} == {"xl", "union"}
    portable = place.ours.paint(request.replace({"count": 2, "determinism": "portable"}))
    assert psnr(portable[1].image, np.asarray(alone.image) / 255) >= 50


def test_one_tile_is_the_whole_picture(bench: Callable[[str], Bench]) -> None:
    """Maps of every level are cut where the latents are."""
    place = bench("sd1")
    request = BASE.replace({"control": [place.control("depth")]})
    whole = place.paint(request).image
    assert psnr(place.paint(request.replace({"tiled": Tiled(tile=SIDE)})).image, np.asarray(whole) / 255) > 60
