"""Loading what diffusers and transformers wrote."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gouache.checkpoints.convert import convert
from gouache.checkpoints.formats.header import open_header
from gouache.checkpoints.formats.safetensors import ALIGNMENT
from gouache.checkpoints.load import identify, load_bundle
from gouache.nn.layers import channels_last
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
Published = Callable[[str], Path]


@pytest.mark.parametrize("family", ["sd1", "sd1-inpainting", "sd1-instruct", "sd2", "sd2-v", "sdxl", "sdxl-refiner"])
def test_a_folder_of_each_family_is_told_apart(published: Published, family: str) -> None:
    identity = identify(published(family))
    expected, _, rest = family.partition("-")
    assert identity.kind == "model"
    assert identity.layout == "diffusers"
    assert identity.family == ("sdxl-refiner" if rest == "refiner" else expected)
    assert identity.variant == (rest if rest in ("inpainting", "instruct") else "base")
    assert identity.prediction == ("v" if rest == "v" else "eps")


def test_a_folder_of_each_family_loads_bit_for_bit(published: Published, family: str) -> None:
    folder = published(family)
    bundle = load_bundle(folder)
    for part, network in (("unet", bundle.unet), ("vae", bundle.vae)):
        wanted = load_file(folder / part / "diffusion_pytorch_model.safetensors")
        found = network.state_dict()
        assert set(found) == set(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_same_weights_at_another_place_in_the_file_paint_the_same_picture(
    published: Published, tmp_path: Path
) -> None:
    """Matrix libraries add in an order that depends on where a tensor begins; the file must not decide it."""
    convert(published("sdxl"), tmp_path / "plain.safetensors", "single-file")
    raw = (tmp_path / "plain.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    pictures = []
    for shift in (0, 1, 8, 24, 48):
        file = tmp_path / f"{shift}.safetensors"
        header = raw[8 : 8 + length] + b" " * shift
        file.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
        bundle = load_bundle(file, dtype=torch.float32)
        tensors = [tensor for network in bundle.networks().values() for tensor in network.state_dict().values()]
        assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors)
        # Without guidance every product of the time embedding has one row.
        request = Request(prompt="a fox", seed=3, num_inference_steps=2, guidance_scale=1.0, width=32, height=32)
        pictures.append(Pipeline(bundle).paint(request)[0])
    assert len({painted.recipe.steps for painted in pictures}) == 1
    assert len({painted.recipe.pixels for painted in pictures}) == 1


def test_convolutions_that_are_read_channels_last_lie_as_if_they_were_laid_out_later(published: Published) -> None:
    """1x1 convolutions too: torch takes another kernel by the strides of their weights."""
    folder = published("sd1")
    for number_format in (torch.float32, torch.bfloat16):  # as the file has them, and converted
        at_once, later = (load_bundle(folder, dtype=number_format, channels_last=one) for one in (True, False))
        for part in ("unet", "vae"):
            wanted = channels_last(getattr(later, part)).state_dict()
            for name, tensor in getattr(at_once, part).state_dict().items():
                assert tensor.stride() == wanted[name].stride(), name
                assert torch.equal(tensor, wanted[name]), name


def test_building_without_memory_does_not_import_torchs_compiler() -> None:
    code = """
import sys
from gouache.checkpoints.networks import build_on_meta
from gouache.models.configs import SentenceEncoderConfig, TextEncoderConfig, UNetConfig, VAEConfig
from gouache.models.prior import PriorConfig
from gouache.models.quantizer import QuantizerConfig
for kind in (SentenceEncoderConfig, TextEncoderConfig, UNetConfig, VAEConfig, PriorConfig, QuantizerConfig):
    network = build_on_meta(kind())
    assert all(tensor.is_meta for tensor in network.state_dict().values()), kind
heavy = {"sympy", "torch._dynamo", "torch._inductor"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_autoencoder_with_attention_names_of_before_loads_too(published: Published, tmp_path: Path) -> None:
    shutil.copytree(published("sd1"), tmp_path / "old")
    file = tmp_path / "old" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        tensors = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): t for name, t in tensors.items()}
    save_file(tensors, file)
    found, wanted = load_bundle(tmp_path / "old").vae.state_dict(), load_bundle(published("sd1")).vae.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(("spread", "prediction"), [(0.05, "eps"), (0.2, "v")])
def test_sd2_without_any_word_is_told_by_its_weights(
    published: Published, tmp_path: Path, spread: float, prediction: str
) -> None:
    convert(published("sd2"), tmp_path / "one.safetensors", "single-file")
    tensors = load_file(tmp_path / "one.safetensors")
    last = max(name for name in tensors if "output_blocks.5" in name and name.endswith("blocks.0.norm1.bias"))
    tensors[last] = torch.linspace(-1, 1, tensors[last].numel()) * spread * 3**0.5
    configs = {key: text for key, text in open_header(tmp_path / "one.safetensors").metadata.items() if "config" in key}
    save_file(tensors, tmp_path / "mute.safetensors", configs)
    assert identify(tmp_path / "mute.safetensors").prediction is None
    assert load_bundle(tmp_path / "mute.safetensors").denoiser_config.parameterization == prediction
    assert load_bundle(tmp_path / "mute.safetensors", prediction="x0").denoiser_config.parameterization == "x0"
