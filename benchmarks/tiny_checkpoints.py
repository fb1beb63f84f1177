"""Tiny checkpoints with random weights, one of each kind, written by diffusers, transformers and safetensors alone.

Nothing of gouache is imported, so the files are the same whatever becomes of its inner layout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

LEVELS = {
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {**LEVELS, "attention_head_dim": 8, "transformer_layers_per_block": 1, "layers_per_block": 2},
    "sd2": {**LEVELS, "attention_head_dim": [1, 1, 2], "use_linear_projection": True, "layers_per_block": 1},
    "sdxl": {
        "attention_head_dim": [1, 1, 2], "use_linear_projection": True, "transformer_layers_per_block": [1, 1, 2],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "layers_per_block": 1,
        "projection_class_embeddings_input_dim": 64 + 6 * 256,
    },
}  # fmt: skip
MODELS = {
    "tiny-sd1": ("sd1", 4, "epsilon"),
    "tiny-sd2": ("sd2", 4, "v_prediction"),
    "tiny-sdxl": ("sdxl", 4, "epsilon"),
    "tiny-inpaint": ("sd1", 9, "epsilon"),
    "tiny-instruct": ("sd1", 8, "epsilon"),
    "tiny-depth": ("sd2", 5, "epsilon"),
}
"""Name -> family, channels that the U-Net takes, what it predicts."""
TEXT = {"sd1": (32, "quick_gelu"), "sd2": (64, "gelu"), "sdxl": (32, "quick_gelu")}


def write_checkpoints(folder: Path) -> None:
    """Every model, ControlNet, adapter and upscaler under one models folder.

    Args:
        folder: made here; what `GOUACHE_MODELS` should name.
    """
    for name, (family, channels, prediction) in MODELS.items():
        _write_model(folder / name, family, channels, prediction)
    for seed, name in enumerate(("edges", "lines", "edges-xl")):
        _write_controlnet(folder / "controlnet" / name, folder / ("tiny-sdxl" if "xl" in name else "tiny-sd1"), seed)
    _write_adapters(folder)
    _write_esrgan(folder / "upscalers" / "esrgan.pth")


def write_safety_checker(folder: Path) -> None:
    """A checker that finds its concepts in about every picture, in diffusers' layout."""
    vision = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    checker: Any = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
    _fill(checker, 7)
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-1.0)
    checker.save_pretrained(folder)


def write_pictures(folder: Path) -> None:
    """Starting pictures, a mask, a depth map and a drawing for ControlNets."""
    y, x = np.mgrid[0:96, 0:128] / 96
    smooth = np.stack([x / 1.4, (x + 2 * y > 1.2).astype(float), np.cos(3 * y) ** 2], -1).clip(0, 1)
    start = Image.fromarray((smooth * 255).astype(np.uint8))
    start.save(folder / "start.png")
    start.rotate(180).save(folder / "end.png")
    start.resize((64, 64)).save(folder / "small.png")
    alpha = start.copy()
    alpha.putalpha(Image.fromarray(((x - 0.6) ** 2 + (y - 0.5) ** 2 > 0.06).astype(np.uint8) * 255))
    alpha.save(folder / "hole.png")
    mask = Image.new("L", start.size)
    ImageDraw.Draw(mask).ellipse((30, 20, 90, 80), fill=255)
    mask.save(folder / "mask.png")
    Image.fromarray((255 * y).astype(np.uint8)).save(folder / "depth.png")
    drawing = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(drawing).ellipse((12, 8, 50, 46), fill="black")
    drawing.save(folder / "drawing.png")


def _fill(network: nn.Module, seed: int) -> None:
    """Random weights large enough that every part matters, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                spread = 0.1 if tensor.ndim < 2 else tensor[0].numel() ** -0.5
                noise = torch.randn(tensor.shape, generator=generator) * spread
                tensor.copy_(noise + (0.5 if tensor.ndim == 1 else 0.0))


def _text(family: str, width: int, act: str, seed: int) -> Any:
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=1, hidden_act=act,
        projection_dim=width, bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    network = (CLIPTextModelWithProjection if (family, seed) == ("sdxl", 4) else CLIPTextModel)(config)
    _fill(network, seed)
    return network


def _write_model(folder: Path, family: str, channels: int, prediction: str) -> None:
    width, act = TEXT[family]
    unet: Any = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64, 128), cross_attention_dim=width + (64 if family == "sdxl" else 0),
        in_channels=channels, sample_size=16, **UNETS[family],
    )  # fmt: skip
    vae: Any = diffusers.AutoencoderKL(
        block_out_channels=(32, 32, 64), down_block_types=["DownEncoderBlock2D"] * 3, latent_channels=4,
        up_block_types=["UpDecoderBlock2D"] * 3, layers_per_block=1, sample_size=64,
        scaling_factor=0.13025 if family == "sdxl" else 0.18215,
    )  # fmt: skip
    _fill(vae, 1)
    _fill(unet, 2)
    parts = {"vae": vae, "unet": unet, "text_encoder": _text(family, width, act, 3)}
    if family == "sdxl":
        parts["text_encoder_2"] = _text(family, 64, "gelu", 4)
    parts["scheduler"] = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    index: dict[str, object] = {"_class_name": f"StableDiffusion{'XL' if family == 'sdxl' else ''}Pipeline"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = ["transformers" if name.startswith("text") else "diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))


def _write_controlnet(folder: Path, model: Path, seed: int) -> None:
    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet")
    network: Any = diffusers.ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(4, 8, 12), load_weights_from_unet=False
    )
    _fill(network, 10 + seed)
    network.save_pretrained(folder)


def _lora(model: Path, prefixes: dict[str, str], seed: int) -> dict[str, Tensor]:
    """LoRA of rank 2, as kohya's trainer names it, for the attention of a model's U-Net and text encoder."""
    from safetensors.torch import load_file

    generator, tensors = torch.Generator().manual_seed(seed), {}
    for part, prefix in prefixes.items():
        file = next((model / part).glob("*.safetensors"))
        for name, weight in load_file(file).items():
            if not name.endswith(("to_q.weight", "to_v.weight", "q_proj.weight")):
                continue
            path = name.removesuffix(".weight")
            if part != "unet" and not path.startswith("text_model."):
                path = f"text_model.{path}"
            key = f"{prefix}_{path.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=generator) * 0.3
            tensors[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 2, generator=generator) * 0.3
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
    return tensors


def _write_adapters(folder: Path) -> None:
    """Two LoRAs, and a textual inversion in each of three layouts."""
    for name in ("adapters", "embeddings"):
        (folder / name).mkdir()
    both = {"unet": "lora_unet", "text_encoder": "lora_te"}
    save_file(_lora(folder / "tiny-sd1", both, 5), folder / "adapters" / "film.safetensors")
    two = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    save_file(_lora(folder / "tiny-sdxl", two, 6), folder / "adapters" / "film-xl.safetensors")
    generator = torch.Generator().manual_seed(8)
    save_file({"emb_params": torch.randn(2, 32, generator=generator)}, folder / "embeddings" / "blob.safetensors")
    old = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.randn(3, 32, generator=generator)}}
    torch.save({**old, "name": "wisp", "step": 7}, folder / "embeddings" / "wisp.pt")
    pair = {key: torch.randn(1, width, generator=generator) for key, width in (("clip_l", 32), ("clip_g", 64))}
    save_file(pair, folder / "embeddings" / "glow.safetensors")


def _write_esrgan(path: Path) -> None:
    """A small RRDB network that enlarges 4 times, with Real-ESRGAN's names."""
    channels, growth, generator = 8, 4, torch.Generator().manual_seed(9)
    shapes = {f"body.0.rdb{k}.conv{j}": (growth if j < 5 else channels, channels + (j - 1) * growth)
              for k in (1, 2, 3) for j in range(1, 6)}  # fmt: skip
    shapes |= dict.fromkeys(("conv_body", "conv_up1", "conv_up2", "conv_hr"), (channels, channels))
    shapes |= {"conv_first": (channels, 3), "conv_last": (3, channels)}
    tensors = {}
    for name, (rows, columns) in shapes.items():
        tensors[f"{name}.weight"] = torch.randn(rows, columns, 3, 3, generator=generator) * (9 * columns) ** -0.5
        tensors[f"{name}.bias"] = torch.randn(rows, generator=generator) * 0.1
    path.parent.mkdir()
    torch.save({"params_ema": tensors}, path)
