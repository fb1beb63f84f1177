"""ControlNets of Stable Diffusion 3: diffusers' networks and pipeline with the same random weights are the judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, SD3ControlNetModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.controlnets.controlnet_sd3 import SD3MultiControlNetModel
from PIL import Image
from safetensors.torch import load_file, save_file

from gouache.checkpoints.adapters.control_weights import load_controlnet
from gouache.checkpoints.adapters.controlnet_library import list_controls
from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.checkpoints.identify import identify
from gouache.errors import IncompatibleCheckpoint, UnknownFamily
from gouache.models.conditioning.sd3_controlnet import JointControlNet
from gouache.models.mmdit import MMDiT
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.replay import replay
from gouache.pipeline.request import Control, Request, Tiled

if TYPE_CHECKING:
    from tests.pipeline.sd3_twins import Sd3Twins
    from tests.pipeline.twins import Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SIDE, KIND = 32, "3.5 medium"
SIZES = {"num_attention_heads": 2, "attention_head_dim": 16, "sample_size": SIDE // 4}
TEXT = {"joint_attention_dim": 64, "caption_projection_dim": 32, "pooled_projection_dim": 40, "pos_embed_max_size": 12}
WITHOUT_TEXT = {
    **TEXT,
    "joint_attention_dim": None,
    "pos_embed_max_size": None,
    "pos_embed_type": None,
    "use_pos_embed": False,
    "force_zeros_for_pooled_projection": False,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "edges": {**TEXT, "num_layers": 2},
    "dual": {**TEXT, "num_layers": 1, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
    "large": {**WITHOUT_TEXT, "num_layers": 2},
}
"""As InstantX has them, the same of 3.5 medium's blocks, and as Stability AI has them for 3.5 large."""
BASE = Request(
    prompt="a red fire engine on a hill",
    negative_prompt="grey",
    seed=5,
    num_inference_steps=5,
    max_sequence_length=16,
    guidance_scale=5.0,
)


class Bench:
    """Three ControlNets in folders that diffusers wrote."""

    def __init__(self, sd3: Sd3Twins, folder: Path) -> None:
        self.sd3, self.folder = sd3, folder
        self.theirs = {name: self._network(name, seed) for seed, name in enumerate(NETWORKS)}
        self.ours = Pipeline(sd3.ours(KIND).bundle)
        self.ours.adapters.folder = AdapterFolder(folder)

    def _network(self, name: str, seed: int) -> Any:
        made = self.sd3.twins.scrambled(SD3ControlNetModel(**SIZES, **NETWORKS[name]), seed)
        made.save_pretrained(self.folder / "controlnet" / name)
        return made

    def path(self, name: str) -> Path:
        return self.folder / "controlnet" / name

    def picture(self, name: str) -> str:
        """Smooth colours with an edge, other ones for each name."""
        path = self.folder / f"{name}.png"
        y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
        pixels = np.stack([x, (x + len(name) * y > 2).astype(float), np.cos(len(name) * y)], -1).clip(0, 1) * 255
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        return str(path)

    def control(self, name: str, **settings: Any) -> Control:
        return Control.from_dict({"model": name, "image": self.picture(name), **settings})

    def judge(self, request: Request) -> np.ndarray:
        networks = [self.theirs[one.model] for one in request.control]
        images = [Image.open(one.image) for one in request.control]
        several = len(networks) > 1
        pipeline = self.sd3.variant(
            KIND,
            "StableDiffusion3ControlNetPipeline",
            controlnet=SD3MultiControlNetModel(networks) if several else networks[0],
        )
        return self.sd3.their_picture(
            pipeline,
            request,
            control_image=images if several else images[0],
            controlnet_conditioning_scale=[one.weight for one in request.control]
            if several
            else request.control[0].weight,
            control_guidance_start=[one.start for one in request.control],
            control_guidance_end=[one.end for one in request.control],
        )


@pytest.fixture(scope="module")
def bench(sd3: Sd3Twins, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(sd3, tmp_path_factory.mktemp("controls"))


@pytest.fixture(autouse=True)
def _mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' posterior gives its mode."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())  # noqa: ARG005


def psnr(first: Image.Image, second: np.ndarray) -> float:
    error = np.mean((np.asarray(first, float) / 255 - np.round(second.astype(float) * 255) / 255) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_diffusers(bench: Bench, name: str) -> None:
    theirs, ours = bench.theirs[name], load_controlnet(bench.path(name))
    assert isinstance(ours, JointControlNet)
    main = bench.ours.bundle.unet
    assert isinstance(main, MMDiT)
    x, hint, t = torch.randn(2, 16, 8, 12), torch.randn(2, 16, 8, 12), torch.tensor([900.0, 30.5])
    context, pooled = torch.randn(2, 7, 64), torch.randn(2, 40)
    found = ours(x, t, context, hint, places=main.pos_embed, pooled=pooled)
    own = theirs.config.use_pos_embed
    wanted = theirs(
        x if own else main.pos_embed(x),
        hint,
        encoder_hidden_states=context if own else None,
        pooled_projections=torch.zeros_like(pooled) if own else pooled,
        timestep=t,
        return_dict=False,
    )[0]
    assert len(found) == len(wanted) == theirs.config.num_layers
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize(
    "controls",
    [
        [("edges", {"weight": 0.8})],
        [("large", {"weight": 0.7, "end": 0.6})],
        [("edges", {"weight": 0.6}), ("edges", {"weight": 0.9, "start": 0.4})],
    ],
    ids=["one", "without text", "two"],
)
def test_pictures_are_diffusers(bench: Bench, controls: Any, scale: float) -> None:
    steering = [bench.control(name, **settings) for name, settings in controls]
    request = BASE.replace({"control": steering, "guidance_scale": scale})
    (painted,) = bench.ours.paint(request)
    theirs = bench.judge(request)
    assert theirs.std() > 0.05, "the reference is nearly constant, agreement would say nothing"
    assert psnr(painted.image, theirs) >= 60
    (plain,) = bench.ours.paint(request.replace({"control": []}))
    assert psnr(plain.image, theirs) < 40


def test_networks_of_different_depth_add_up(bench: Bench) -> None:
    """Each is spread over the transformer's blocks by itself; one of weight 0 changes nothing."""
    one = BASE.replace({"control": [bench.control("edges")]})
    both = one.replace({"control": [bench.control("edges"), bench.control("dual", weight=0.0)]})
    (first,), (second,) = bench.ours.paint(one), bench.ours.paint(both)
    assert psnr(first.image, np.asarray(second.image) / 255) > 55
    (third,) = bench.ours.paint(one.replace({"control": [bench.control("edges"), bench.control("dual")]}))
    assert psnr(first.image, np.asarray(third.image) / 255) < 40


def test_it_is_recognised_and_listed(bench: Bench) -> None:
    for name in NETWORKS:
        found = identify(bench.path(name))
        assert (found.kind, found.family, found.label) == ("controlnet", "sd3", "ControlNet, diffusers names")
    listed = {file.name: (file.family, file.label) for file in list_controls(bench.folder)}
    assert listed == dict.fromkeys(NETWORKS, ("sd3", "ControlNet, diffusers names"))


def in_their_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As Stability AI's files have it: one matrix for queries, keys and values."""
    words = (("norm1.linear", "adaLN_modulation.1"), ("attn.to_out.0", "attn.proj"), ("ff.net.0.proj", "mlp.fc1"))
    found = {}
    for name, tensor in state.items():
        if ".attn.to_q." in name:
            parts = [state[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            found[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif ".attn.to_k." not in name and ".attn.to_v." not in name:
            for ours, theirs in (*words, ("ff.net.2", "mlp.fc2")):
                name = name.replace(ours, theirs) if name.startswith("transformer_blocks.") else name
            found[name] = tensor
    return found


@pytest.mark.parametrize("naming", ["diffusers", "its authors'"])
def test_single_files(bench: Bench, tmp_path: Path, naming: str) -> None:
    state = load_file(bench.path("large") / "diffusion_pytorch_model.safetensors")
    file = tmp_path / "any.safetensors"
    save_file(state if naming == "diffusers" else in_their_names(state), file)
    assert identify(file).label == f"ControlNet, {naming} names"
    network = load_controlnet(file)
    assert isinstance(network, JointControlNet)
    assert not network.config.zero_pooled
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert len(network.state_dict()) == len(state)


def test_tiles_and_replay(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOUACHE_MODELS", str(bench.folder))
    request = BASE.replace({"control": [bench.control("large")], "num_inference_steps": 2, "tiled": Tiled(tile=16)})
    (painted,) = bench.ours.paint(request)
    file = tmp_path / "picture.png"
    file.write_bytes(painted.encode())
    assert replay(file, model=str(bench.sd3.path(KIND))).same


def test_an_inpainting_network_is_refused(tmp_path: Path) -> None:
    SD3ControlNetModel(**SIZES, **TEXT, num_layers=1, extra_conditioning_channels=1).save_pretrained(tmp_path / "fill")
    with pytest.raises(UnknownFamily, match=r"1 channels beside"):
        load_controlnet(tmp_path / "fill")


def test_networks_of_other_families_are_refused(bench: Bench, twins: Twins) -> None:
    theirs = twins.of("sd1").theirs
    ControlNetModel.from_unet(theirs.unet, conditioning_embedding_out_channels=(4, 8, 12)).save_pretrained(
        bench.folder / "controlnet" / "unet"
    )
    with pytest.raises(IncompatibleCheckpoint, match=r"steers a U-Net.*transformer"):
        bench.ours.paint(BASE.replace({"control": [bench.control("unet")]}))
    unet = Pipeline(twins.of("sd1").ours.bundle)
    unet.adapters.folder = AdapterFolder(bench.folder)
    with pytest.raises(IncompatibleCheckpoint, match=r"ControlNet of Stable Diffusion 3.*U-Net"):
        unet.paint(Request(prompt="x", seed=1, num_inference_steps=1, control=(bench.control("edges"),)))
