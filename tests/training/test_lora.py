"""Stage `lora`: low-rank changes of a frozen model, trained, saved, and used by the name of their file."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.training.test_from_packed import equal, small_model
from tests.training.test_tuning_packed import squares, trained
from torch import nn

from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import write_model
from gouache.models.configs import GenerationDefaults
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.adapters import Adapters
from gouache.pipeline.request import Request
from gouache.training.low_rank import Attached, LowRank, LowRankChanges
from gouache.training.state import checkpoints

CONFIG = """
[data]
size = 32
flip = true
[lora]
start = "{start}"
rank = 4
[lora.loop]
images = {images}
log_images = 8
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model whose pictures begin on a draft, as the shipped one's do."""
    return write_model(small_model(), tmp_path_factory.mktemp("model") / "small", "gouache")


def test_a_lora_of_a_model_with_drafts_changes_prior_and_denoiser_and_resumes_exactly(
    model: Path, tmp_path: Path
) -> None:
    data, config = squares(tmp_path / "mine", 5), tmp_path / "config.toml"
    for run, ends in (("whole", [32]), ("parts", [16, 32])):
        for images in ends:
            config.write_text(CONFIG.format(start=model, images=images))
            _, steps = trained("lora", config, data, tmp_path / run)
            assert steps[-1].figures["bits_per_token"] > 0
    whole, parts = (load_tensors(checkpoints(tmp_path / run / "lora")[-1]) for run in ("whole", "parts"))
    assert equal(whole, parts)
    saved = load_tensors(tmp_path / "whole" / "lora" / "last.safetensors")
    assert {name.split("_")[1] for name in saved} == {"unet", "prior"}
    assert all(float(saved[name].abs().max()) > 0 for name in saved if name.endswith("lora_up.weight"))


def test_a_lora_with_zero_terminal_snr_brings_its_schedule_and_shows_prompts(tmp_path: Path) -> None:
    few_steps = replace(small_model(), defaults=GenerationDefaults(width=32, height=32, num_inference_steps=2))
    start, config = write_model(few_steps, tmp_path / "small", "gouache"), tmp_path / "config.toml"
    text = CONFIG.format(start=start, images=8).replace("rank = 4", "rank = 4\nzero_terminal_snr = true\nPROMPTS")
    config.write_text(text.replace("PROMPTS", 'prompts = ["a square"]'))
    trained("lora", config, squares(tmp_path / "mine", 5), tmp_path / "run")
    config.write_text(text.replace("PROMPTS", 'prompts = ["a square", "a disc"]').replace("= 8", "= 16", 1))
    trained("lora", config, tmp_path / "mine", tmp_path / "run")
    sheets = sorted((tmp_path / "run" / "lora" / "prompts").iterdir())
    sizes = []
    for path in sheets:
        with Image.open(path) as sheet:
            sizes.append(sheet.size)
            shown = np.asarray(sheet.crop((0, 0, 32, 32)).convert("RGB")).astype(int)
    assert sizes == [(32, 32), (64, 32)], "prompts may change between sessions"
    folder = tmp_path / "adapters"
    folder.mkdir()
    shutil.copy(tmp_path / "run" / "lora" / "last.safetensors", folder / "mine.safetensors")
    adapters = Adapters(load_bundle(start), AdapterFolder(tmp_path))
    adapted = adapters.apply(Request(prompt="a square <lora:mine:1>", seed=0))
    assert adapted.bundle.denoiser_config.schedule.zero_terminal_snr
    assert "zero terminal SNR, which it paints with" in adapted.notes[-1]
    assert not adapters.bundle.denoiser_config.schedule.zero_terminal_snr
    painted = Pipeline(adapted.bundle).paint(Request(prompt="a square", seed=0))[0].image.convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", painted.size, "white"), painted).convert("RGB")
    opaque = np.asarray(painted)[..., 3] == 255
    assert abs(np.asarray(on_white).astype(int) - shown)[opaque].max(initial=0) <= 3, "up to the file's 16 bits"


def test_a_lora_of_a_sentence_encoder_resumes_exactly_and_has_a_weight_of_its_own(tmp_path: Path) -> None:
    """The text encoder's part changes the picture; with weight 0 every picture is the base model's bit for bit."""
    few_steps = replace(small_model(), defaults=GenerationDefaults(width=32, height=32, num_inference_steps=2))
    start = write_model(few_steps, tmp_path / "small", "gouache")
    data, config = squares(tmp_path / "mine", 2), tmp_path / "config.toml"
    for run, ends in (("whole", [16]), ("parts", [8, 16])):
        for images in ends:
            text = CONFIG.format(start=start, images=images).replace("rank = 4", "rank = 4\ntext = true")
            config.write_text(text + "[lora.optimizer]\nlearning_rate = 2e-2\nwarmup_images = 0\n")
            trained("lora", config, data, tmp_path / run)
    whole, parts = (load_tensors(checkpoints(tmp_path / run / "lora")[-1]) for run in ("whole", "parts"))
    assert equal(whole, parts)
    file = tmp_path / "whole" / "lora" / "last.safetensors"
    header = read_header(file)
    assert {name.split("_")[1] for name in header.tensors} == {"unet", "prior", "te"}
    assert header.metadata["ss_text_encoder_lr"] == header.metadata["ss_unet_lr"] == "0.02"
    base = load_bundle(start)
    linear = [name for name, one in base.text.encoders[0].named_modules() if isinstance(one, nn.Linear)]
    of_text = {name.partition(".")[0] for name in header.tensors if name.startswith("lora_te_")}
    assert of_text == {f"lora_te_{name.replace('.', '_')}" for name in linear}
    folder = tmp_path / "adapters"
    folder.mkdir()
    shutil.copy(file, folder / "mine.safetensors")
    adapters, plain = Adapters(base, AdapterFolder(tmp_path)), Request(prompt="a square", seed=0)

    def picture(tag: str) -> bytes:
        adapted = adapters.apply(plain.model_copy(update={"prompt": f"a square {tag}"}))
        assert not adapted.notes, "every tensor has its place"
        return Pipeline(adapted.bundle).paint(plain)[0].image.tobytes()

    unchanged = Pipeline(base).paint(plain)[0].image.tobytes()
    changed = [picture(f"<lora:mine:{weights}>") for weights in ("1", "1:0", "0:1")]
    assert len({unchanged, *changed}) == 4
    assert picture("<lora:mine:0>") == unchanged


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_hook_gives_what_the_merged_layer_gives(kind: str, dora: bool) -> None:
    """W + s up down, and with DoRA m (W + s up down) / |W + s up down| row by row, as one layer's weight."""
    torch.manual_seed(0)
    layer: nn.Linear | nn.Conv2d = nn.Linear(6, 5) if kind == "linear" else nn.Conv2d(6, 5, 3, padding=1, stride=2)
    assert layer.bias is not None
    x = torch.randn(2, 6) if kind == "linear" else torch.randn(2, 6, 7, 7)
    change = LowRank(layer, 3, 1.5, dora=dora)
    assert torch.allclose(change(layer, x, layer(x)), layer(x), atol=1e-6)
    nn.init.normal_(change.up)
    if change.magnitude is not None:
        nn.init.uniform_(change.magnitude, 0.5, 2.0)
    weight = layer.weight + 0.5 * (change.up.flatten(1) @ change.down.flatten(1)).view_as(layer.weight)
    if change.magnitude is not None:
        lengths = weight.flatten(1).norm(dim=1)
        weight = weight * (change.magnitude / lengths).view(-1, *[1] * (weight.ndim - 1))
    plain = layer(x)
    changes = LowRankChanges({"one": change})
    attached = Attached({"one": layer}, changes)
    merged = torch.func.functional_call(
        nn.Linear(6, 5) if kind == "linear" else nn.Conv2d(6, 5, 3, padding=1, stride=2),
        {"weight": weight, "bias": layer.bias},
        (x,),
    )
    assert torch.allclose(layer(x), merged, atol=1e-5)
    with attached.using(None):
        assert torch.equal(layer(x), plain)
