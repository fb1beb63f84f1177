"""ESRGAN files in both published layouts, a model's own upscaler, and how either is run over pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from gouache.checkpoints.formats.safetensors import save_tensors
from gouache.errors import GouacheError, IncompatibleCheckpoint, InvalidInput, MissingDependency, UnknownFamily
from gouache.models.configs import UpscalerConfig
from gouache.models.upscalers import RRDBConfig, RRDBNet, Upscaler
from gouache.pipeline.generate.enlarge import enlarge_picture, find_upscaler
from gouache.pipeline.generate.upscaler_files import config_of, load_upscaler, upscaler_of
from gouache.pipeline.inputs.tensors import to_image, to_tensor
from gouache.pipeline.request import Seamless

SPANDREL = importlib.util.find_spec("spandrel") is not None
SMALL = RRDBConfig(channels=8, growth=4, blocks=2)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 26, 3), np.uint8))


def weights(config: RRDBConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = RRDBNet(config).state_dict()
    return {k: torch.randn(v.shape, generator=generator) * v[0].numel() ** -0.5 for k, v in shapes.items()}


def old_layout(state: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """The names of the first ESRGAN release (BasicSR's sequential model)."""
    ends = {
        "conv_first": "model.0",
        "conv_up1": "model.3",
        "conv_up2": "model.6",
        "conv_hr": "model.8",
        "conv_last": "model.10",
        "conv_body": f"model.1.sub.{blocks}",
    }
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
    monkeypatch.setattr("gouache.pipeline.generate.upscaler_files.TILE", 8)
    tiled = np.asarray(upscaler(PICTURE), int)
    # A margin of 16 pixels is less than the network sees, but more than matters.
    assert np.abs(whole - tiled).max() <= 2


def test_transparency_and_any_factor(tmp_path: Path) -> None:
    save_file(weights(SMALL), tmp_path / "a.safetensors")
    clear = PICTURE.convert("RGBA")
    clear.putalpha(Image.new("L", PICTURE.size, 77))
    large = enlarge_picture(clear, 5.0, load_upscaler(tmp_path / "a.safetensors"))
    assert (large.mode, large.size) == ("RGBA", (130, 100))
    assert large.getchannel("A").getextrema() == (77, 77)
    assert enlarge_picture(clear, 0.5).size == (13, 10)


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UnknownFamily if SPANDREL else MissingDependency, match="ESRGAN"):
        load_upscaler(tmp_path / "other.safetensors")
    state = weights(SMALL)
    state.pop("conv_hr.bias")
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(IncompatibleCheckpoint, match="conv_hr"):
        load_upscaler(tmp_path / "broken.safetensors")
    with pytest.raises(GouacheError, match="absent"):
        load_upscaler(tmp_path / "absent.pth")
    with pytest.raises(GouacheError, match="pixels"):
        enlarge_picture(Image.new("RGB", (4096, 4096)), 8.0)


def own_network(channels: int = 4) -> Upscaler:
    """An up-sampling decoder with random weights, whose changes to the bilinear enlargement are small but seen."""
    network = Upscaler(UpscalerConfig(image_channels=channels, channels=8, blocks=2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5 * 0.3)
    return network.eval()


def sticker(width: int, height: int) -> Image.Image:
    """Soft blobs of colour and of transparency."""
    y, x = np.mgrid[0:height, 0:width] * 2 * np.pi
    waves = [np.sin(x / width * a + y / height * b + c) for a, b, c in ((1, 2, 0), (2, 1, 1), (3, 2, 2), (1, 1, 4))]
    return Image.fromarray(((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8), "RGBA")


def test_the_own_upscaler_gives_the_network_s_pixels() -> None:
    network, picture = own_network(), sticker(40, 40)
    large = np.asarray(enlarge_picture(picture, 4.0, upscaler_of(network)), int)
    with torch.no_grad():
        expected = np.asarray(to_image(network(to_tensor(picture, 4)[None]).clamp(-1, 1)[0]), int)
    inside = slice(24, -24)  # nearer to the edge the network sees zeros there and repeated pixels here
    assert np.abs(large - expected)[inside, inside].max() <= 1


def test_half_of_four_times_is_the_exact_mean() -> None:
    network, picture = own_network(), sticker(40, 40)
    half = np.asarray(enlarge_picture(picture, 2.0, upscaler_of(network)), int)
    with torch.no_grad():
        large = network(to_tensor(picture, 4)[None]).clamp(-1, 1)
        expected = np.asarray(to_image(F.avg_pool2d(large, 2)[0]), int)
    assert np.abs(half - expected)[12:-12, 12:-12].max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize(("size", "factor"), [((17, 23), 4.0), ((1, 9), 2.0), ((23, 17), 3.0), ((9, 9), 8.0)])
def test_any_size_and_factor(mode: str, size: tuple[int, int], factor: float) -> None:
    large = enlarge_picture(sticker(*size).convert(mode), factor, upscaler_of(own_network()))
    assert (large.mode, large.size) == (mode, tuple(round(side * factor) for side in size))


def test_a_picture_without_alpha_is_an_opaque_one() -> None:
    network, plain = own_network(), sticker(20, 20).convert("RGB")
    with torch.no_grad():
        # What it would do to alpha is taken out, as in a network that has learnt what opaque means.
        network.conv_out.weight[-16:], network.get_parameter("conv_out.bias")[-16:] = 0.0, 0.0
    opaque = enlarge_picture(plain.convert("RGBA"), 4.0, upscaler_of(network))
    assert opaque.getchannel("A").getextrema() == (255, 255)
    assert opaque.convert("RGB").tobytes() == enlarge_picture(plain, 4.0, upscaler_of(network)).tobytes()


def test_the_own_upscaler_s_tiles_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler, picture = upscaler_of(own_network()), sticker(50, 34)
    for factor in (2.0, 4.0):
        whole = np.asarray(enlarge_picture(picture, factor, upscaler), int)
        with monkeypatch.context() as patch:
            patch.setattr("gouache.pipeline.generate.upscaler_files.TILE", 16)
            tiled = np.asarray(enlarge_picture(picture, factor, upscaler), int)
        # The margin is all that the network sees: what is left is rounding, on colours divided by alpha.
        visible = whole[..., 3] > 16
        assert np.abs(whole - tiled)[visible].max() <= 1
        assert np.abs(whole - tiled)[..., 3].max() <= 1


@pytest.mark.parametrize("name", ["own", "lanczos"])
def test_edges_that_meet_still_do(name: str) -> None:
    """Shifting the picture around its edges shifts the larger one, and nothing else."""
    upscaler, picture = upscaler_of(own_network(3)) if name == "own" else None, sticker(24, 20).convert("RGB")
    kinds: list[tuple[Seamless, tuple[int, int]]] = [("x", (0, 7)), ("y", (5, 0)), ("both", (5, 7))]
    for seamless, shift in kinds:
        moved = Image.fromarray(np.roll(np.asarray(picture), shift, (0, 1)))
        large = np.asarray(enlarge_picture(picture, 4.0, upscaler, seamless=seamless), int)
        there = np.asarray(enlarge_picture(moved, 4.0, upscaler, seamless=seamless), int)
        assert np.abs(np.roll(large, (4 * shift[0], 4 * shift[1]), (0, 1)) - there).max() <= 1
    plain = np.asarray(enlarge_picture(moved, 4.0, upscaler), int)
    assert np.abs(there - plain).max() > 1, "without it the edges are edges"


def test_a_network_that_keeps_the_size_is_run_once(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"scale": 1})
    save_file(weights(config), tmp_path / "a.safetensors")
    assert enlarge_picture(PICTURE, 2.0, load_upscaler(tmp_path / "a.safetensors")).size == (52, 40)


def test_the_stage_s_file_is_an_upscaler(tmp_path: Path) -> None:
    network = own_network()
    metadata = {"component": "upscaler", "config": network.config.to_json()}
    save_tensors(tmp_path / "last.safetensors", network.state_dict(), metadata)
    loaded = enlarge_picture(sticker(20, 20), 4.0, load_upscaler(tmp_path / "last.safetensors"))
    assert loaded.tobytes() == enlarge_picture(sticker(20, 20), 4.0, upscaler_of(own_network())).tobytes()
    state = {name: tensor for name, tensor in network.state_dict().items() if name != "conv_in.bias"}
    save_tensors(tmp_path / "broken.safetensors", state, metadata)
    with pytest.raises(IncompatibleCheckpoint, match="conv_in"):
        load_upscaler(tmp_path / "broken.safetensors")


def test_it_computes_in_float32_whatever_the_weights_are_in() -> None:
    half, rounded = own_network().half(), own_network().half().float()
    large = enlarge_picture(sticker(20, 20), 4.0, upscaler_of(half))
    assert large.tobytes() == enlarge_picture(sticker(20, 20), 4.0, upscaler_of(rounded)).tobytes()
    assert half.conv_in.weight.dtype == torch.float16, "the model's own network is left alone"


def test_names_of_upscalers(tmp_path: Path) -> None:
    assert find_upscaler("lanczos") is None
    with pytest.raises(InvalidInput, match="none of its own"):
        find_upscaler("model")
    with pytest.raises(GouacheError, match="absent"):
        find_upscaler(str(tmp_path / "absent.pth"))


@pytest.mark.skipif(SPANDREL, reason="spandrel is installed")
def test_without_spandrel_its_extra_is_named(tmp_path: Path) -> None:
    save_file({"layers.0.weight": torch.zeros(3, 3)}, tmp_path / "swin.safetensors")
    with pytest.raises(MissingDependency, match=r"gouache\[upscalers\]"):
        load_upscaler(tmp_path / "swin.safetensors")
