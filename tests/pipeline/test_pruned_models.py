"""Whole models with a pruned U-Net, painted from diffusers' folder and as a single file, with a LoRA of their own.

The kind: a network that loads and whose blocks are counted, but whose pictures or adapters go by the full one's names.
Judge: diffusers' pipeline, with peft for the LoRA. The networks alone: `tests/checkpoints/test_pruned_unets.py`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.checkpoints.convert import convert
from gouache.checkpoints.load import load_bundle
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.adapters import Adapters
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
DOWN, UP, NO_DOWN, NO_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "DownBlock2D", "UpBlock2D"
SHARED: dict[str, Any] = {"sample_size": 16, "attention_head_dim": 2, "norm_num_groups": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SSD-1B": (
        "sdxl",
        {
            "down_block_types": (NO_DOWN, DOWN, DOWN),
            "up_block_types": (UP, UP, NO_UP),
            "block_out_channels": (16, 32, 32),
            "layers_per_block": 2,
            "transformer_layers_per_block": [1, 2, 4],
            "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
            "mid_block_type": "UNetMidBlock2D",
            "cross_attention_dim": 56,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 24 + 6 * 256,
        },
    ),
    "tiny-sd": (
        "sd1",
        {
            "down_block_types": (DOWN, DOWN, DOWN),
            "up_block_types": (UP, UP, UP),
            "block_out_channels": (16, 32, 32),
            "layers_per_block": 1,
            "mid_block_type": None,
            "cross_attention_dim": 32,
        },
    ),
    "uneven": (
        "sd1",
        {
            "down_block_types": (DOWN, DOWN),
            "up_block_types": (UP, UP),
            "block_out_channels": (16, 32),
            "layers_per_block": 2,
            "transformer_layers_per_block": [[3, 2], 1],
            "reverse_transformer_layers_per_block": [[1, 1, 2], [3, 4, 1]],
            "cross_attention_dim": 32,
        },
    ),
}


def psnr(first: Any, second: np.ndarray) -> float:
    error = float(np.mean((np.asarray(first, np.float64) / 255 - np.round(second * 255.0) / 255) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def lora_of(network: Any, folder: Path, kohya: bool) -> None:
    """A LoRA of every attention, as diffusers writes it or as kohya's trainer does."""
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            out, inside = module.weight.shape
            down, up = torch.randn(3, inside, generator=generator) * 0.2, torch.randn(out, 3, generator=generator) * 0.2
            if kohya:
                key = f"lora_unet_{name.replace('.', '_')}"
                tensors |= {
                    f"{key}.lora_down.weight": down,
                    f"{key}.lora_up.weight": up,
                    f"{key}.alpha": torch.tensor(3.0),
                }
            else:
                tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "ink.safetensors")


@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_model_is_painted_as_diffusers_paints_it(twins: Twins, tmp_path: Path, name: str) -> None:
    from tests.pipeline.twins import scrambled

    family, options = MODELS[name]
    base = twins.of(family).theirs
    network = scrambled(diffusers.UNet2DConditionModel(**SHARED, **options), 5)
    more: dict[str, Any] = {"add_watermarker": False} if family == "sdxl" else {"requires_safety_checker": False}
    judge = type(base)(**{**base.components, "unet": network}, **more)
    judge.scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    judge.set_progress_bar_config(disable=True)
    judge.save_pretrained(tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "one.safetensors", "single-file")
    lora_of(network, tmp_path / "adapters", kohya=name == "tiny-sd")

    def theirs() -> np.ndarray:
        generator = torch.Generator().manual_seed(3)
        picture: np.ndarray = judge(
            "a red cup", height=64, width=64, num_inference_steps=2, guidance_scale=3.0, generator=generator,
            output_type="np",
        ).images[0]  # fmt: skip
        return picture

    def ours(path: Path, prompt: str) -> Any:
        bundle = load_bundle(path)
        asked = {"num_inference_steps": 2, "guidance_scale": 3.0, "sampler": "euler", "schedule": "linspace"}
        request = Request.from_dict(
            {"prompt": prompt, "seed": 3, "determinism": "cpu", "width": 64, "height": 64, **asked}, where="request"
        )
        pipeline = Pipeline(bundle)
        pipeline.adapters = Adapters(bundle, AdapterFolder(tmp_path))
        return pipeline.paint(request)[0].image

    plain = theirs()
    judge.load_lora_weights(tmp_path / "adapters", weight_name="ink.safetensors")
    inked = theirs()
    assert np.abs(plain - inked).max() > 0.05
    for model in ("folder", "one.safetensors"):
        assert psnr(ours(tmp_path / model, "a red cup"), plain) >= 60
        assert psnr(ours(tmp_path / model, "a red cup<lora:ink:1>"), inked) >= 60
