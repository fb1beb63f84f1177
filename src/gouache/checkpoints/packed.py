"""Names the ways in which weights are packed that gouache doesn't unpack, and says what to get in their place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gouache.checkpoints.formats.header import Header
from gouache.checkpoints.formats.scaled import FP8
from gouache.errors import IncompatibleCheckpoint

EXPECTED = "float32, float16, bfloat16, fp8 (with or without scales), or GGUF"
ELSE = "Get the model in float16, in fp8 or as GGUF: gouache reads those."

# Marks among the names of tensors -> what the packing is. Asked in this order.
PACKINGS = {
    "4-bit numbers of bitsandbytes (nf4)": r"\.quant_state\.bitsandbytes__nf4$",
    "4-bit numbers of bitsandbytes (fp4)": r"\.quant_state\.bitsandbytes__fp4$",
    "4-bit numbers of bitsandbytes": r"\.(absmax|quant_map|nested_absmax)$",
    "8-bit numbers of bitsandbytes (LLM.int8)": r"\.(SCB|weight_format)$",
    "4-bit numbers of SVDQuant, as nunchaku reads them": r"\.(wscales|wtscale|wcscales|smooth_factor|smooth_orig)$",
    "4-bit numbers of GPTQ": r"\.g_idx$",
    "4-bit numbers of AWQ or GPTQ": r"\.(qzeros|qweight)$",
    "numbers of optimum-quanto": r"\.weight\._(data|scale|shift)$",
    "numbers of torchao": r"_?weight_(qdata|scale_and_zero|packed)$|\.tensor_impl\.",
    "4-bit numbers of NVFP4": r"\.weight_scale_2$",
    "8-bit or 4-bit numbers of HQQ": r"\.W_q$",
}
_PACKINGS = {name: re.compile(pattern) for name, pattern in PACKINGS.items()}
COMFY_QUANT = "comfy_quant"
METHODS = {
    "bitsandbytes": "numbers of bitsandbytes",
    "gptq": "4-bit numbers of GPTQ",
    "awq": "4-bit numbers of AWQ",
    "quanto": "numbers of optimum-quanto",
    "torchao": "numbers of torchao",
    "svdquant": "4-bit numbers of SVDQuant, as nunchaku reads them",
    "gguf": "numbers of GGUF inside a folder",
}
"""``quant_method`` of a folder's ``config.json`` -> what it is."""


def name_packing(header: Header) -> str | None:
    """Which packing that gouache doesn't unpack a file's names show, or None."""
    names = list(header.tensors)
    found = _first(names)
    if found is not None:
        return found
    for name in names:
        matrix = header.tensors.get(f"{name.removesuffix(COMFY_QUANT)}weight") if name.endswith(COMFY_QUANT) else None
        if matrix is not None and header.stored.get(f"{name.removesuffix(COMFY_QUANT)}weight", matrix.dtype) not in FP8:
            return f"numbers of ComfyUI's own quantization ({matrix.dtype})"
    return None


def _first(names: Iterable[str]) -> str | None:
    return next((kind for kind, mark in _PACKINGS.items() if any(map(mark.search, names))), None)


def check_packing(header: Header) -> None:
    """See that the weights are numbers that gouache reads, and lie as it expects.

    Raises:
        IncompatibleCheckpoint: they are packed in another way, which is named; or SDXL's second text encoder has
            stable-diffusion.cpp's own name, from which it doesn't follow which way round its projection lies.
    """
    if any(name.startswith("cond_stage_model.1.") for name in header.tensors):
        raise IncompatibleCheckpoint(
            str(header.path),
            given="a second text encoder under stable-diffusion.cpp's name, cond_stage_model.1.",
            expected="the names of the single file that it was made from",
            cure="Convert the model again without --convert-name, or get its .safetensors.",
        )
    packing = name_packing(header)
    if packing is not None:
        raise IncompatibleCheckpoint(str(header.path), given=packing, expected=EXPECTED, cure=ELSE)


def check_quantization(values: Mapping[str, object], where: str) -> None:
    """The same of a folder's ``config.json``, whose ``quantization_config`` says how the weights beside it are packed.

    Raises:
        IncompatibleCheckpoint: it names a packing.
    """
    told = values.get("quantization_config")
    if not isinstance(told, dict):
        return
    method = str(told.get("quant_method", "an unnamed method"))[:40]
    raise IncompatibleCheckpoint(
        where,
        given=f"{METHODS.get(method, f'numbers packed by {method}')}, as quantization_config says",
        expected=EXPECTED,
        cure=ELSE,
    )
