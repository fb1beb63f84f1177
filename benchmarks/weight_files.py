"""Small files of weights as each program writes them, and what gouache makes of them when it uses them.

To add one: an entry in `ENTRIES` with a name, a program, how it is used (`model`, `lora`, `embedding`, `controlnet`,
`upscaler` or `inspect`) and a function that writes it into a folder and gives its path.
"""

from __future__ import annotations

import argparse
import collections
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image, PngImagePlugin
from published_files import identity_words
from safetensors.torch import load_file, save_file
from tiny_checkpoints import write_checkpoints
from torch import Tensor

from gouache.checkpoints.adapters.control_weights import load_controlnet
from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.checkpoints.convert import convert
from gouache.checkpoints.identify import identify
from gouache.checkpoints.load import load_bundle
from gouache.errors import GouacheError
from gouache.models.bundle import ModelBundle
from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.models.unet import UNet
from gouache.pipeline.generate.upscaler_files import load_upscaler
from gouache.pipeline.prompts.adapters import Adapters
from gouache.pipeline.request import Request

Write = Callable[[Path], Path]
Said = tuple[str, str]
"""Verdict and words."""


class _Stranger:
    """A class that only the program which wrote the file has."""


def _existing(name: str) -> Write:
    return lambda folder: folder / name


def _single(folder: Path, name: str = "single.safetensors") -> Path:
    """One file with CompVis' names."""
    path = folder / name
    if not path.exists():
        convert(folder / "tiny-sd1", path, "single-file")
    return path


def _changed(folder: Path, name: str, change: Callable[[dict[str, Tensor]], Any], *, save: bool = True) -> Path:
    """The single file with other tensors, as safetensors or whatever `change` makes of them, pickled by torch."""
    made = change(load_file(_single(folder)))
    path = folder / name
    if save:
        save_file(made, path)
    else:
        torch.save(made, path)
    return path


def _lightning(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A training's checkpoint: optimizer, callbacks, numbers of numpy's."""
    return {
        "state_dict": tensors, "global_step": 875_000, "epoch": np.float64(3.0),
        "callbacks": collections.defaultdict(list, {"best": [np.float32(0.5)]}),
        "hyper_parameters": argparse.Namespace(lr=1e-4), "optimizer_states": [{"exp_avg": torch.zeros(2)}],
    }  # fmt: skip


def _strays(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    more = {"embedding_manager.embedder.position_ids": torch.zeros(3), "scale_factor": torch.tensor(0.18215)}
    return {
        **tensors,
        **more,
        "safety_checker.concept_embeds": torch.zeros(2, 3),
        "lora_unet_x.alpha": torch.tensor(1.0),
    }


def _without(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: one for key, one in tensors.items() if not key.startswith(prefix)}


def _with_average(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    unet = {key: one for key, one in tensors.items() if key.startswith("model.diffusion_model.")}
    return {**tensors, **{f"model_ema.{key[6:].replace('.', '')}": one.clone() for key, one in unet.items()}}


def _folder_copy(folder: Path, name: str, change: Callable[[Path], None]) -> Path:
    path = folder / name
    shutil.copytree(folder / "tiny-sd1", path)
    change(path)
    return path


def _half(path: Path) -> None:
    for file in list(path.rglob("*.safetensors")):
        save_file({key: one.half() for key, one in load_file(file).items()}, file.with_suffix(".fp16.safetensors"))
        file.unlink()


def _as_bin(path: Path) -> None:
    for file in list(path.rglob("*.safetensors")):
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()


def _gguf(kind: str, folder: Path) -> Path:
    """Matrices in blocks, everything else in float16, by ggml's own package."""
    import gguf

    path = folder / f"{kind}.gguf"
    writer = gguf.GGUFWriter(path, "none")
    writer.kv_data[0].clear()  # stable-diffusion.cpp names no architecture
    for name, tensor in load_file(_single(folder)).items():
        values = tensor.float().numpy()
        blocks = values.ndim == 2 and values.shape[1] % 32 == 0 and len(values) < 10_000
        how = gguf.GGMLQuantizationType[kind if blocks else "F16"]
        writer.add_tensor(name, gguf.quants.quantize(values, how), raw_dtype=how)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _scaled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    made = {**tensors, "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        if name.startswith("model.diffusion_model.") and name.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.abs().amax() / 448
            made[name] = (tensor / scale).to(torch.float8_e4m3fn)
            made[f"{name.removesuffix('weight')}scale_weight"] = scale
    return made


def _in_nf4(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(name for name in tensors if name.endswith("attn1.to_q.weight"))
    packed = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
    state = torch.zeros(70, dtype=torch.uint8)
    return {**tensors, name: packed, f"{name}.quant_state.bitsandbytes__nf4": state, f"{name}.absmax": torch.ones(16)}


def _hypernetwork(folder: Path) -> Path:
    layers = [{"linear.0.weight": torch.zeros(64, 32), "linear.0.bias": torch.zeros(64)} for _ in range(2)]
    torch.save({768: layers, "step": 7, "name": "x", "layer_structure": [1, 2, 1]}, folder / "hypernetwork.pt")
    return folder / "hypernetwork.pt"


def _tensors(names: dict[str, tuple[int, ...]], file: str) -> Write:
    def write(folder: Path) -> Path:
        save_file({name: torch.zeros(shape) for name, shape in names.items()}, folder / file)
        return folder / file

    return write


def _bytes(data: bytes, file: str) -> Write:
    def write(folder: Path) -> Path:
        (folder / file).write_bytes(data)
        return folder / file

    return write


def _foreign_folder(folder: Path) -> Path:
    path = folder / "flux"
    path.mkdir()
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def _vae(kind: str, folder: Path) -> Path:
    makers: dict[str, Callable[[], Any]] = {
        "AutoencoderTiny": lambda: diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
        "AsymmetricAutoencoderKL": lambda: diffusers.AsymmetricAutoencoderKL(
            down_block_out_channels=(8,), up_block_out_channels=(8,), norm_num_groups=4
        ),
    }  # fmt: skip
    makers[kind]().save_pretrained(folder / kind)
    return folder / kind


def _pairs(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Down and up of rank 2 for every query and value of the tiny U-Net."""
    unet = load_file(next((folder / "tiny-sd1" / "unet").glob("*.safetensors")))
    layers = {
        key.removesuffix(".weight"): one for key, one in unet.items() if key.endswith(("to_q.weight", "to_v.weight"))
    }
    generator = torch.Generator().manual_seed(1)
    return {
        name: (
            torch.randn(2, weight.shape[1], generator=generator) * 0.1,
            torch.randn(weight.shape[0], 2, generator=generator) * 0.1,
        )
        for name, weight in layers.items()
    }


def _lora(name: str, spelled: Callable[[str, Tensor, Tensor], dict[str, Tensor]], folder: Path) -> Path:
    path = folder / "adapters" / f"{name}.safetensors"
    tensors: dict[str, Tensor] = {}
    for layer, (down, up) in _pairs(folder).items():
        tensors |= spelled(layer, down, up)
    save_file({key: one.clone().contiguous() for key, one in tensors.items()}, path)
    return path


def _kohya(layer: str) -> str:
    return f"lora_unet_{layer.replace('.', '_')}"


_ALPHA = torch.tensor(1.0)
_SPELLINGS: dict[str, Callable[[str, Tensor, Tensor], dict[str, Tensor]]] = {
    "kohya": lambda layer, down, up: {
        f"{_kohya(layer)}.lora_down.weight": down,
        f"{_kohya(layer)}.lora_up.weight": up,
        f"{_kohya(layer)}.alpha": _ALPHA,
    },
    "diffusers": lambda layer, down, up: {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up},
    "diffusers-old": lambda layer, down, up: {
        f"unet.{layer.rpartition('.')[0]}.processor.{layer.rpartition('.')[2]}_lora.down.weight": down,
        f"unet.{layer.rpartition('.')[0]}.processor.{layer.rpartition('.')[2]}_lora.up.weight": up,
    },
    "comfyui": lambda layer, down, up: {
        f"diffusion_model.{layer}.lora_A.weight": down,
        f"diffusion_model.{layer}.lora_B.weight": up,
    },
    "peft": lambda layer, down, up: {
        f"base_model.model.{layer}.lora_A.weight": down,
        f"base_model.model.{layer}.lora_B.weight": up,
    },
    "lycoris": lambda layer, down, up: {
        f"lycoris_{layer.replace('.', '_')}.lora_down.weight": down,
        f"lycoris_{layer.replace('.', '_')}.lora_up.weight": up,
    },
    "loha": lambda layer, down, up: {
        f"{_kohya(layer)}.hada_w1_a": up,
        f"{_kohya(layer)}.hada_w1_b": down,
        f"{_kohya(layer)}.hada_w2_a": up,
        f"{_kohya(layer)}.hada_w2_b": down,
        f"{_kohya(layer)}.alpha": _ALPHA,
    },
    "lokr": lambda layer, down, up: {
        f"{_kohya(layer)}.lokr_w1": torch.ones(1, 1),
        f"{_kohya(layer)}.lokr_w2_a": up,
        f"{_kohya(layer)}.lokr_w2_b": down,
        f"{_kohya(layer)}.alpha": _ALPHA,
    },
    "full": lambda layer, down, up: {f"{_kohya(layer)}.diff": up @ down},
    "dora": lambda layer, down, up: {
        f"{_kohya(layer)}.lora_down.weight": down,
        f"{_kohya(layer)}.lora_up.weight": up,
        f"{_kohya(layer)}.alpha": _ALPHA,
        f"{_kohya(layer)}.dora_scale": torch.ones(up.shape[0], 1),
    },
    "glora": lambda layer, down, up: {
        f"{_kohya(layer)}.a1.weight": up,
        f"{_kohya(layer)}.a2.weight": up.T,
        f"{_kohya(layer)}.b1.weight": up,
        f"{_kohya(layer)}.b2.weight": down,
        f"{_kohya(layer)}.alpha": _ALPHA,
    },
    "ia3": lambda layer, _, up: {
        f"{_kohya(layer)}.weight": torch.ones(up.shape[0], 1),
        f"{_kohya(layer)}.on_input": torch.tensor(False),
    },
    "stray": lambda layer, down, up: {
        f"{_kohya(layer)}.lora_down.weight": down,
        f"{_kohya(layer)}.lora_up.weight": up,
        "bundle_emb.x.string_to_param": up,
    },
    "flux": lambda layer, down, up: {
        f"lora_unet_double_blocks_{len(layer) % 19}_img_attn_qkv.lora_down.weight": down,
        f"lora_unet_double_blocks_{len(layer) % 19}_img_attn_qkv.lora_up.weight": up,
    },
}


def _embedding(name: str, suffix: str, values: Any, folder: Path) -> Path:
    path = folder / "embeddings" / f"{name}{suffix}"
    if suffix == ".safetensors":
        save_file(values, path)
    else:
        torch.save(values, path)
    return path


def _picture_embedding(folder: Path) -> Path:
    """A1111's embedding in a PNG's text (the pixels' variant holds the same)."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("sd-ti-embedding", json.dumps({"string_to_param": {"*": [[0.0] * 768]}, "name": "pictured"}))
    Image.new("RGB", (32, 32)).save(folder / "embeddings" / "pictured.png", pnginfo=chunks)
    return folder / "embeddings" / "pictured.png"


_VECTOR = torch.full((1, 768), 0.1)
_TI = {"string_to_token": {"*": 265}, "string_to_param": {"*": _VECTOR}, "name": "x", "step": 7, "sd_checkpoint": None}
_COMPVIS_TI = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": _VECTOR})}


def _spelled(name: str) -> Write:
    return partial(_lora, name, _SPELLINGS[name])


ENTRIES: tuple[tuple[str, str, str, Write], ...] = (
    ("folder, SD 1.x", "diffusers", "model", _existing("tiny-sd1")),
    ("folder, SD 2.x (v)", "diffusers", "model", _existing("tiny-sd2")),
    ("folder, SDXL", "diffusers", "model", _existing("tiny-sdxl")),
    ("folder, inpainting", "diffusers", "model", _existing("tiny-inpaint")),
    ("folder, InstructPix2Pix", "diffusers", "model", _existing("tiny-instruct")),
    ("folder, depth", "diffusers", "model", _existing("tiny-depth")),
    ("folder, `fp16` weights alone", "diffusers", "model", lambda to: _folder_copy(to, "half", _half)),
    ("folder, `.bin` weights", "diffusers before 0.19", "model", lambda to: _folder_copy(to, "bins", _as_bin)),
    ("folder, FLUX.1", "diffusers", "model", _foreign_folder),
    ("one file, CompVis' names", "A1111, ComfyUI, kohya", "model", _single),
    (
        "`.ckpt` with `state_dict`",
        "CompVis",
        "model",
        lambda to: _changed(to, "plain.ckpt", lambda one: {"state_dict": one, "global_step": 1}, save=False),
    ),
    (
        "`.ckpt` of a training",
        "PyTorch Lightning",
        "model",
        lambda to: _changed(to, "training.ckpt", _lightning, save=False),
    ),
    (
        "`.ckpt` with a class of its own",
        "any",
        "model",
        lambda to: _changed(to, "class.ckpt", lambda one: {"state_dict": one, "x": _Stranger()}, save=False),
    ),
    (
        "one file, half precision",
        "A1111",
        "model",
        lambda to: _changed(to, "half.safetensors", lambda one: {key: value.half() for key, value in one.items()}),
    ),
    ("one file, with averaged weights", "CompVis", "model", lambda to: _changed(to, "ema.safetensors", _with_average)),
    (
        "one file, with stray tensors",
        "merging programs",
        "model",
        lambda to: _changed(to, "strays.safetensors", _strays),
    ),
    (
        "one file without VAE",
        "merging programs",
        "model",
        lambda to: _changed(to, "bare.safetensors", _without("first_stage_model.")),
    ),
    (
        "U-Net alone, one file",
        "ComfyUI",
        "model",
        lambda to: _changed(to, "unet.safetensors", lambda one: _without("cond_stage")(_without("first_stage")(one))),
    ),
    ("AutoencoderTiny, folder", "diffusers", "inspect", partial(_vae, "AutoencoderTiny")),
    ("AsymmetricAutoencoderKL, folder", "diffusers", "inspect", partial(_vae, "AsymmetricAutoencoderKL")),
    ("VAE, folder", "diffusers", "inspect", _existing("tiny-sd1/vae")),
    (
        "FLUX.1 transformer",
        "Black Forest Labs",
        "inspect",
        _tensors({"double_blocks.0.img_attn.qkv.weight": (4, 4)}, "flux.safetensors"),
    ),
    (
        "IP-Adapter",
        "Tencent",
        "inspect",
        _tensors({"image_proj.proj.weight": (3072, 8), "ip_adapter.1.to_k_ip.weight": (4, 768)}, "ip.safetensors"),
    ),
    (
        "motion module",
        "AnimateDiff",
        "inspect",
        _tensors({"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (4,)}, "motion.safetensors"),
    ),
    ("GGUF, Q8_0, a whole model", "stable-diffusion.cpp", "model", partial(_gguf, "Q8_0")),
    ("GGUF, Q4_1, a whole model", "stable-diffusion.cpp", "model", partial(_gguf, "Q4_1")),
    ("fp8 with scales, one file", "ComfyUI", "model", lambda to: _changed(to, "fp8.safetensors", _scaled)),
    ("nf4, one file", "bitsandbytes", "model", lambda to: _changed(to, "nf4.safetensors", _in_nf4)),
    ("hypernetwork", "A1111", "inspect", _hypernetwork),
    (
        "Git LFS pointer",
        "git",
        "inspect",
        _bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer.safetensors"),
    ),
    (
        "a page of HTML under a model's name",
        "a browser",
        "inspect",
        _bytes(b"<!DOCTYPE html><html>", "page.safetensors"),
    ),
    ("LoRA", "kohya", "lora", _spelled("kohya")),
    ("LoRA, `unet.` names", "diffusers", "lora", _spelled("diffusers")),
    ("LoRA, processors' names", "diffusers before 0.22", "lora", _spelled("diffusers-old")),
    ("LoRA, `diffusion_model.` names", "ComfyUI", "lora", _spelled("comfyui")),
    ("LoRA, `base_model.model.` names", "PEFT", "lora", _spelled("peft")),
    ("LoRA, `lycoris_` names", "LyCORIS", "lora", _spelled("lycoris")),
    ("LoHa", "LyCORIS", "lora", _spelled("loha")),
    ("LoKr", "LyCORIS", "lora", _spelled("lokr")),
    ("full difference", "LyCORIS", "lora", _spelled("full")),
    ("DoRA", "kohya, LyCORIS", "lora", _spelled("dora")),
    ("GLoRA", "LyCORIS", "lora", _spelled("glora")),
    ("IA3", "LyCORIS", "lora", _spelled("ia3")),
    ("LoRA with a bundled embedding", "A1111", "lora", _spelled("stray")),
    ("LoRA for FLUX.1", "kohya", "lora", _spelled("flux")),
    ("textual inversion, `.pt`", "A1111", "embedding", partial(_embedding, "tia", ".pt", _TI)),
    ("textual inversion, `.pt` of a training", "CompVis", "embedding", partial(_embedding, "tib", ".pt", _COMPVIS_TI)),
    ("textual inversion, `.bin`", "diffusers", "embedding", partial(_embedding, "tic", ".bin", {"<cat>": _VECTOR[0]})),
    (
        "textual inversion, two words",
        "diffusers",
        "embedding",
        # As wide as SD 1.x: names of one's own are known by the width alone.
        partial(_embedding, "tid", ".safetensors", {"<cat>": torch.zeros(768), "<dog>": torch.ones(768)}),
    ),
    (
        "textual inversion, `emb_params`",
        "A1111, kohya",
        "embedding",
        partial(_embedding, "tie", ".safetensors", {"emb_params": _VECTOR}),
    ),
    ("textual inversion in a PNG", "A1111", "embedding", _picture_embedding),
    ("ControlNet, folder", "diffusers", "controlnet", _existing("controlnet/edges")),
    ("upscaler, `.pth`", "Real-ESRGAN", "upscaler", _existing("upscalers/esrgan.pth")),
)


def measured(folder: Path) -> Iterator[tuple[tuple[str, str], Said | GouacheError]]:
    """Name and program of each file, and what gouache says when it is used.

    Args:
        folder: empty; what `GOUACHE_MODELS` names.
    """
    write_checkpoints(folder)
    base = load_bundle(folder / "tiny-sd1")
    wide = _as_wide_as_sd1(base)
    for name, program, how, write in ENTRIES:
        path = write(folder)
        try:
            yield (name, program), _used(path, how, wide if how == "embedding" else replace(base), folder)
        except GouacheError as error:
            yield (name, program), error


def _as_wide_as_sd1(base: ModelBundle) -> ModelBundle:
    """The model with a text encoder as wide as SD 1.x's, which embeddings are known by."""
    encoder = base.text.encoders[0]
    assert isinstance(encoder, TextEncoder), "tiny-sd1 has CLIP's encoder"
    text = TextEncoder(encoder.config.model_copy(update={"width": 768}))
    unet = UNet(base.unet.config.model_copy(update={"context_width": 768}))
    return replace(base, text=TextStack.of_clip([text]), unet=unet)


def _used(path: Path, how: str, base: Any, folder: Path) -> Said:
    if how in ("lora", "embedding"):
        prompt = f"a <lora:{path.stem}:1> cat" if how == "lora" else f"a {path.stem} cat"
        adapted = Adapters(base, AdapterFolder(folder)).apply(Request(prompt=prompt))
        words = ", ".join(f"applied as {ref.kind}" for ref in adapted.refs)
        notes = "; ".join(adapted.notes)
        if not words:
            return "not known", notes or "no word of the prompt names it"
        return "read", "; ".join(filter(None, (identity_words(identify(path)), words, notes)))
    if how == "controlnet":
        load_controlnet(path)
        return "read", "loaded as a ControlNet"
    if how == "upscaler":
        return "read", f"loaded, enlarges {load_upscaler(path).scale:g} times"
    if how == "model":
        load_bundle(path)
        return "read", identity_words(identify(path))
    return "identified", identity_words(identify(path))
