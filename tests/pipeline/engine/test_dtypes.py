"""Number formats: what "auto" chooses, that the recipe says it, and that a replay takes the recipe's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gouache.checkpoints.load import load_bundle
from gouache.errors import UnknownName
from gouache.models.bundle import ModelBundle
from gouache.models.configs import UNetConfig
from gouache.models.unet import UNet
from gouache.nn.processor import Processor, this_processor
from gouache.pipeline.engine.dtypes import LARGE, automatic_dtype, dtype_named, dtype_on
from gouache.pipeline.pipeline import Pipeline, open_pipeline, shipped_model
from gouache.pipeline.replay import replay
from gouache.pipeline.request import Request

MakeBundle = Callable[..., ModelBundle]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
FAST, SLOW = Processor("AuthenticAMD", avx512_bf16=True), Processor("AuthenticAMD")
REQUEST = Request(prompt="a cat", seed=3, width=64, height=64, num_inference_steps=2)


@pytest.mark.parametrize(
    ("weights", "processor", "chosen"),
    [
        (LARGE, FAST, torch.bfloat16),
        (LARGE - 1, FAST, torch.float32),
        (LARGE, SLOW, torch.float32),
        (LARGE - 1, SLOW, torch.float32),
    ],
)
def test_size_and_processor_decide(weights: int, processor: Processor, chosen: torch.dtype) -> None:
    assert automatic_dtype(weights, processor) == chosen


def test_the_size_is_the_networks_that_denoises(tiny: ModelBundle) -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig(context_width=tiny.text.context_width))  # but for this as Stable Diffusion 1.5
    choose = dtype_on(CPU, "auto", "torch")
    assert not isinstance(choose, torch.dtype), "it depends on the model"
    assert choose(replace(tiny, unet=unet)) == automatic_dtype(LARGE, this_processor())
    assert choose(tiny) == torch.float32
    assert dtype_on(CPU, None, "torch") == choose  # and so without a word


@pytest.mark.parametrize(
    ("device", "asked", "engine", "chosen"),
    [
        (CPU, None, "openvino", torch.float32),
        (GPU, None, "torch", torch.float16),
        (GPU, "auto", "torch", torch.float16),
        (CPU, "auto", "openvino", torch.float32),
        (CPU, "bfloat16", "torch", torch.bfloat16),
        (GPU, torch.float32, "torch", torch.float32),
    ],
)
def test_what_does_not_depend_on_the_model(
    device: torch.device, asked: torch.dtype | str | None, engine: str, chosen: torch.dtype
) -> None:
    assert dtype_on(device, asked, engine) == chosen


def test_a_wrong_name_is_refused_with_the_right_one() -> None:
    with pytest.raises(UnknownName, match="bfloat16"):
        dtype_named("bfloat6")
    with pytest.raises(UnknownName, match="auto"):
        open_pipeline("untrained", dtype="automatic")


def test_what_is_chosen_of_the_whole_model_is_what_it_is_loaded_in() -> None:
    path = shipped_model() or Path()
    asked: list[int] = []

    def choose(bundle: ModelBundle) -> torch.dtype:
        asked.append(sum(weight.numel() for weight in bundle.unet.parameters()))
        return torch.bfloat16

    bundle = load_bundle(path, dtype=choose)
    assert asked == [sum(weight.numel() for weight in bundle.unet.parameters())]
    assert {weight.dtype for part in bundle.networks().values() for weight in part.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("asked", "chosen"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_the_recipe_says_the_format_and_a_replay_takes_it(tmp_path: Path, asked: str, chosen: str) -> None:
    pipeline, _ = open_pipeline("untrained", dtype=asked)
    (painted,) = pipeline.paint(REQUEST.replace({"model": "untrained"}))
    assert painted.recipe.machine.dtype == chosen
    file = tmp_path / "cat.png"
    file.write_bytes(painted.encode("png"))
    again = replay(file)
    assert again.same
    assert again.painted.recipe.machine == painted.recipe.machine


def test_the_shipped_model_is_too_small_to_gain() -> None:
    assert Pipeline.load(dtype="auto", device="cpu").bundle.dtype == torch.float32
