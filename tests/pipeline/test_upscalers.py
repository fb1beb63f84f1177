"""ESRGAN files in both published layouts; the network against its formula written out with torch's functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from gouache.errors import GouacheError, IncompatibleCheckpoint, UnknownFamily
from gouache.models.rrdb import RRDBConfig, RRDBNet
from gouache.pipeline.enlarge import enlarge_picture
from gouache.pipeline.upscalers import config_of, load_upscaler

SMALL = RRDBConfig(channels=8, growth=4, blocks=2)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 26, 3), np.uint8))


def weights(config: RRDBConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = RRDBNet(config).state_dict()
    return {k: torch.randn(v.shape, generator=generator) * v[0].numel() ** -0.5 for k, v in shapes.items()}


def old_layout(state: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """The names of the first ESRGAN release (BasicSR's sequential model)."""
    ends = {"conv_first": "model.0", "conv_up1": "model.3", "conv_up2": "model.6", "conv_hr": "model.8",
            "conv_last": "model.10", "conv_body": f"model.1.sub.{blocks}"}  # fmt: skip
    renamed = {}
    for name, tensor in state.items():
        head, _, tail = name.partition(".")
        if head == "body":
            block, dense, conv, kind = tail.split(".")
            renamed[f"model.1.sub.{block}.{dense.upper()}.{conv}.0.{kind}"] = tensor
        else:
            renamed[f"{ends[head]}.{tail}"] = tensor
    return renamed


def written_out(state: dict[str, Tensor], x: Tensor, config: RRDBConfig) -> Tensor:
    """Figure 4 of the paper, line by line."""

    def conv(name: str, value: Tensor) -> Tensor:
        return F.conv2d(value, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def dense(name: str, value: Tensor) -> Tensor:
        seen = value
        for k in range(1, 5):
            seen = torch.cat([seen, F.leaky_relu(conv(f"{name}.conv{k}", seen), 0.2)], 1)
        return value + 0.2 * conv(f"{name}.conv5", seen)

    first = trunk = conv("conv_first", x)
    for block in range(config.blocks):
        inner = trunk
        for k in (1, 2, 3):
            inner = dense(f"body.{block}.rdb{k}", inner)
        trunk = trunk + 0.2 * inner
    value = first + conv("conv_body", trunk)
    for name in ("conv_up1", "conv_up2"):
        value = F.leaky_relu(conv(name, value.repeat_interleave(2, 2).repeat_interleave(2, 3)), 0.2)
    return conv("conv_last", F.leaky_relu(conv("conv_hr", value), 0.2))


def test_the_network_is_its_formula() -> None:
    state = weights(SMALL)
    network = RRDBNet(SMALL)
    network.load_state_dict(state)
    x = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(network(x), written_out(state, x, SMALL), atol=1e-5)
        assert network(x).shape == (1, 3, 36, 28)


@pytest.mark.parametrize("wrapper", ["", "params_ema."])
def test_both_layouts_are_the_same_upscaler(tmp_path: Path, wrapper: str) -> None:
    state = weights(SMALL)
    save_file({wrapper + name: tensor for name, tensor in state.items()}, tmp_path / "new.safetensors")
    save_file(old_layout(state, SMALL.blocks), tmp_path / "old.safetensors")
    large = load_upscaler(tmp_path / "new.safetensors")(PICTURE)
    assert large.size == (104, 80)
    assert large.tobytes() == load_upscaler(tmp_path / "old.safetensors")(PICTURE).tobytes()


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_sizes_are_read_from_the_shapes(tmp_path: Path, scale: int) -> None:
    config = SMALL.model_copy(update={"scale": scale})
    state = weights(config)
    assert config_of(state) == config
    save_file(state, tmp_path / "a.safetensors")
    assert load_upscaler(tmp_path / "a.safetensors")(PICTURE).size == (26 * scale, 20 * scale)


def test_torch_files_are_read_without_unpickling(tmp_path: Path) -> None:
    state = weights(SMALL)
    torch.save({"params_ema": state}, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    expected = load_upscaler(tmp_path / "a.safetensors")(PICTURE)
    assert load_upscaler(tmp_path / "a.pth")(PICTURE).tobytes() == expected.tobytes()


def test_tiles_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(weights(SMALL), tmp_path / "a.safetensors")
    upscaler = load_upscaler(tmp_path / "a.safetensors")
    whole = np.asarray(upscaler(PICTURE), int)
    monkeypatch.setattr("gouache.pipeline.upscalers.TILE", 8)
    tiled = np.asarray(upscaler(PICTURE), int)
    # A margin of 16 pixels is less than the network sees, but more than matters.
    assert np.abs(whole - tiled).max() <= 2


def test_transparency_and_any_factor(tmp_path: Path) -> None:
    save_file(weights(SMALL), tmp_path / "a.safetensors")
    clear = PICTURE.convert("RGBA")
    clear.putalpha(Image.new("L", PICTURE.size, 77))
    large = enlarge_picture(clear, 5.0, str(tmp_path / "a.safetensors"))
    assert (large.mode, large.size) == ("RGBA", (130, 100))
    assert large.getchannel("A").getextrema() == (77, 77)
    assert enlarge_picture(clear, 0.5).size == (13, 10)


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UnknownFamily, match="ESRGAN"):
        load_upscaler(tmp_path / "other.safetensors")
    state = weights(SMALL)
    state.pop("conv_hr.bias")
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(IncompatibleCheckpoint, match="conv_hr"):
        load_upscaler(tmp_path / "broken.safetensors")
    with pytest.raises(GouacheError, match="absent"):
        enlarge_picture(PICTURE, 2.0, str(tmp_path / "absent.pth"))
    with pytest.raises(GouacheError, match="pixels"):
        enlarge_picture(Image.new("RGB", (4096, 4096)), 8.0)
