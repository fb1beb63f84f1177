"""ControlNets in every published layout: what diffusers writes and reads is the judge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from gouache.checkpoints.adapters.control_weights import control_header, load_controlnet
from gouache.checkpoints.adapters.controlnet_library import find_control, list_controls
from gouache.checkpoints.identify import identify
from gouache.checkpoints.keymaps import speller
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.networks import build_on_meta
from gouache.checkpoints.shapes import controlnet_config
from gouache.errors import CheckpointError, IncompatibleCheckpoint, InvalidInput, ModelNotFound, UnknownFamily
from gouache.models.conditioning.controlnet import ControlNetConfig
from gouache.models.configs import UNetConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}
# Heads, groups and widths follow the published rules, as single files don't tell them.
SHAPES: dict[str, dict[str, Any]] = {
    "sd1": {"down_block_types": (CROSS, CROSS, PLAIN), "cross_attention_dim": 768},
    "sd2": {
        "down_block_types": (CROSS, CROSS, PLAIN),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "attention_head_dim": (1, 1, 2),
    },
    "sdxl": {
        "down_block_types": (PLAIN, CROSS, CROSS),
        "cross_attention_dim": 2048,
        "attention_head_dim": (1, 1, 2),
        "transformer_layers_per_block": (1, 1, 2),
        "projection_class_embeddings_input_dim": 64 + 6 * 256,
        **XL,
    },
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders that diffusers wrote."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            network = ControlNetModel(
                block_out_channels=(32, 64, 128),
                layers_per_block=1,
                conditioning_embedding_out_channels=(4, 8, 12, 16),
                **SHAPES[name],
            )
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
            made[name] = tmp_path_factory.mktemp(name) / name
            network.save_pretrained(made[name])
        return made[name]

    return folder


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def assert_same(found: torch.nn.Module, wanted: dict[str, Tensor]) -> None:
    state = found.state_dict()
    assert set(state) == set(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def in_their_names(folder: Path, prefix: str) -> dict[str, Tensor]:
    """As the authors' own files have it."""
    spell = speller(load_controlnet(folder).config, "ldm")
    return {prefix + spell(name).name: tensor for name, tensor in weights_of(folder).items()}


@pytest.mark.parametrize("name", SHAPES)
def test_a_folder_of_diffusers(published: Callable[[str], Path], name: str) -> None:
    found = identify(published(name))
    assert (found.kind, found.family) == ("controlnet", name)
    network = load_controlnet(published(name))
    assert_same(network, weights_of(published(name)))
    assert isinstance(network.config, ControlNetConfig)
    assert network.config.hint_widths == (4, 8, 12, 16)
    assert network.config.downscale == 8


@pytest.mark.parametrize("name", SHAPES)
def test_a_single_file_with_diffusers_names(published: Callable[[str], Path], name: str) -> None:
    """Without a config beside it everything is counted, and heads and groups follow the family's rules."""
    network = load_controlnet(published(name) / "diffusion_pytorch_model.safetensors")
    assert_same(network, weights_of(published(name)))
    assert network.config == load_controlnet(published(name)).config


XL_FULL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "attention_head_dim": (5, 10, 20),
}
FULL_SIZE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SD 1.5": ({"cross_attention_dim": 768}, {}),
    "SD 2.1": (
        {"cross_attention_dim": 1024, "use_linear_projection": True, "attention_head_dim": (5, 10, 20, 20)},
        {"context_width": 1024, "linear_projection": True, "heads": (5, 10, 20, 20)},
    ),
    "SDXL": (
        {**XL_FULL, "down_block_types": (PLAIN, CROSS, CROSS), "transformer_layers_per_block": (1, 2, 10)},
        {"transformer_layers": (0, 2, 10), "middle_transformer_layers": 10},
    ),
    "SDXL, mid": (
        {**XL_FULL, "down_block_types": (PLAIN, CROSS, CROSS), "transformer_layers_per_block": (1, 1, 1)},
        {"transformer_layers": (0, 1, 1)},
    ),
    "SDXL, small": (
        {**XL_FULL, "down_block_types": (PLAIN, PLAIN, PLAIN), "mid_block_type": "UNetMidBlock2D"},
        {
            "transformer_layers": (0, 0, 0),
            "middle_layers": 1,
            "middle_transformer_layers": 0,
            "context_width": 768,
            "linear_projection": False,
            "heads": (8, 8, 8),
        },
    ),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_networks_are_counted_right(name: str) -> None:
    """Names and shapes of the published sizes, without memory: the config is counted, and ours has the same tensors."""
    theirs, ours = FULL_SIZE[name]
    with torch.device("meta"):
        network = ControlNetModel(**theirs)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    config = controlnet_config(shapes, "ours", name)
    xl = {
        "channels": (320, 640, 1280),
        "context_width": 2048,
        "pooled_width": 2816,
        "linear_projection": True,
        "heads": (5, 10, 20),
    }
    wanted = UNetConfig.from_dict({**(xl if name.startswith("SDXL") else {}), **ours})
    assert config == ControlNetConfig(unet=wanted)
    built = build_on_meta(config).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in built.items()} == shapes


def test_a_pulled_network_is_found_by_its_repository(
    published: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "models"))
    repo = tmp_path / "cache" / "models--someone--control"
    shutil.copytree(published("sd1"), repo / "snapshots" / "0a1b2c")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0a1b2c")
    found = find_control("someone/control")
    assert (found.path.name, found.family) == ("0a1b2c", "sd1")
    assert list_controls() == []
    with pytest.raises(ModelNotFound, match="gouache pull someone/other"):
        find_control("someone/other")


def test_the_list_of_controlnets(published: Callable[[str], Path], tmp_path: Path) -> None:
    """Folders and files at any depth; something else among them is listed with what is wrong; twins are an error."""
    shutil.copytree(published("sdxl"), tmp_path / "ControlNet" / "xl" / "canny-xl")
    (tmp_path / "controlnets").mkdir()
    torch.save(in_their_names(published("sd1"), "control_model."), tmp_path / "controlnets" / "control_v11p_canny.pth")
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "controlnets" / "words.safetensors")
    (tmp_path / "controlnets" / "broken.safetensors").write_bytes(b"<html>")
    (tmp_path / "controlnets" / "readme.txt").write_text("no weights")
    found = {file.name: (file.family, file.label) for file in list_controls(tmp_path)}
    assert found == {
        "broken": ("unknown", "unusable: a web page or an error message"),
        "canny-xl": ("sdxl", "ControlNet, diffusers names"),
        "control_v11p_canny": ("sd1", "ControlNet, in a single file"),
        "words": ("sd1", "unusable: a textual-inversion"),
    }
    assert find_control("Canny-XL", tmp_path).name == "Canny-XL"
    shutil.copytree(published("sdxl"), tmp_path / "ControlNet" / "canny-xl")
    with pytest.raises(InvalidInput, match="2 files"):
        find_control("canny-xl", tmp_path)
    with pytest.raises(ModelNotFound, match="Did you mean 'canny-xl'"):
        find_control("canny-xxl", tmp_path)


@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_a_single_file_with_its_authors_names(
    published: Callable[[str], Path], name: str, prefix: str, tmp_path: Path
) -> None:
    """`from_single_file` has its own table of names, which judges ours. (It has none for SDXL.)"""
    file = tmp_path / "control.safetensors"
    save_file(in_their_names(published(name), prefix), file)
    wanted = weights_of(published(name))
    theirs = ControlNetModel.from_single_file(str(file), config=str(published(name)), local_files_only=True)
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in theirs.state_dict().items())
    found = identify(file)
    assert (found.kind, found.family) == ("controlnet", name)
    network = load_controlnet(file)
    assert_same(network, wanted)
    assert network.config == load_controlnet(published(name)).config


def test_a_whole_checkpoint_with_a_controlnet_and_its_base_model(
    published: Callable[[str], Path], tmp_path: Path
) -> None:
    """As the first ones were published, in a torch file."""
    tensors = in_their_names(published("sd1"), "control_model.")
    tensors |= {"model.diffusion_model.out.2.bias": torch.ones(4), "first_stage_model.quant_conv.bias": torch.ones(8)}
    tensors |= {"alphas_cumprod": torch.ones(3), "logvar": torch.ones(3)}
    torch.save({"state_dict": tensors}, tmp_path / "control_sd15_canny.pth")
    assert_same(load_controlnet(tmp_path / "control_sd15_canny.pth"), weights_of(published("sd1")))
    torch.save({**tensors, "something.else": torch.ones(1)}, tmp_path / "strange.pth")
    with pytest.raises(IncompatibleCheckpoint, match=r"1 unexpected: something\.else"):
        load_controlnet(tmp_path / "strange.pth")


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_half_precision_and_another_type(published: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    wanted = weights_of(published(name))
    save_file({key: tensor.half() for key, tensor in wanted.items()}, tmp_path / "half.safetensors")
    network = load_controlnet(tmp_path / "half.safetensors", dtype=torch.float32)
    assert_same(network, {key: tensor.half().float() for key, tensor in wanted.items()})


DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("controlnet_mid_block.bias"), "1 missing: controlnet_mid_block.bias"),
    "more": (lambda t: t.update(extra=torch.ones(1)), "1 unexpected: extra"),
    "shape": (lambda t: t.update({"conv_in.bias": torch.ones(7)}), r"conv_in.bias \[7\] for \[32\]"),
    "NaN": (lambda t: t["conv_in.bias"].fill_(float("nan")), "NaN in tensor 'conv_in.bias'"),
    "union": (lambda t: t.update(task_embedding=torch.ones(6, 320)), "transformer_layes.0.attn.in_proj_weight"),
    "difference": (lambda t: t.update(difference=torch.ones(1)), "a difference to its base model"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit_is_refused_by_name(published: Callable[[str], Path], damage: str, tmp_path: Path) -> None:
    change, words = DAMAGES[damage]
    tensors = weights_of(published("sd1"))
    change(tensors)
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load_controlnet(tmp_path / "bad.safetensors")


def test_a_config_that_disagrees_or_asks_for_more_is_refused(published: Callable[[str], Path], tmp_path: Path) -> None:
    values = json.loads((published("sd1") / "config.json").read_text())
    save_file(weights_of(published("sd1")), tmp_path / "diffusion_pytorch_model.safetensors")
    for change, words in (
        ({"conditioning_channels": 4}, "conditioning_channels = 4"),
        ({"class_embed_type": "projection"}, "class_embed_type"),
        ({"controlnet_conditioning_channel_order": "gbr"}, "gbr"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(IncompatibleCheckpoint, match=words):
            load_controlnet(tmp_path)


def test_other_files_are_no_controlnets(published: Callable[[str], Path], tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "words.safetensors")
    with pytest.raises(IncompatibleCheckpoint, match="a textual-inversion"):
        load_controlnet(tmp_path / "words.safetensors")
    save_file({"x": torch.ones(2), "y": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError):
        load_controlnet(tmp_path / "other.safetensors")
    with pytest.raises((IncompatibleCheckpoint, UnknownFamily), match="controlnet"):
        load_bundle(published("sd1"))
    assert control_header(published("sd1")).tensors
