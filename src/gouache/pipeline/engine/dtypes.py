"""Number formats by name, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gouache.errors import unknown_name
from gouache.models.bundle import ModelBundle
from gouache.nn.processor import Processor, multiplies_faster_in_bf16, this_processor
from gouache.pipeline.engine.names import AUTO, OPENVINO, OPENVINO_INT8

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LARGE = 100_000_000
"""Numbers of a U-Net from which on it may be painted with in bfloat16: Stable Diffusion 1.5's has 860 million. The
shipped model's has 17, and gains nothing by it (docs/benchmarks.md)."""

Chosen = torch.dtype | Callable[[ModelBundle], torch.dtype]
"""A number format, or what says it once the size of a model is known."""


def automatic_dtype(weights: int, processor: Processor) -> torch.dtype:
    """What "auto" means on a CPU: bfloat16 for a large model where the processor is faster in it, else float32.

    Args:
        weights: numbers of the U-Net.
        processor: of the machine.
    """
    return torch.bfloat16 if weights >= LARGE and multiplies_faster_in_bf16(processor) else torch.float32


def dtype_on(device: torch.device, asked: torch.dtype | str | None, engine: str) -> Chosen:
    """The number format of a model's networks.

    Args:
        device: where they go.
        asked: one, its name, or "auto", which None means too: by size and processor on the CPU, float16 elsewhere.
        engine: what runs them; OpenVINO takes models in float32 alone.

    Raises:
        UnknownName: there is no such number format.
    """
    dtype = dtype_named(asked)
    if isinstance(dtype, torch.dtype):
        return dtype
    if device.type != "cpu":
        return torch.float16
    return torch.float32 if engine in (OPENVINO, OPENVINO_INT8) else _by_size


def _by_size(bundle: ModelBundle) -> torch.dtype:
    return automatic_dtype(sum(weight.numel() for weight in bundle.unet.parameters()), this_processor())


def dtype_named(name: torch.dtype | str | None) -> torch.dtype | str | None:
    """The number format of a name; "auto", None and a format itself stay what they are.

    Raises:
        UnknownName: it is no such name.
    """
    if not isinstance(name, str) or name == AUTO:
        return name
    if name not in DTYPES:
        raise unknown_name("dtype", name, (*DTYPES, AUTO))
    return DTYPES[name]


def automatic_in_words(processor: Processor) -> str:
    """What "auto" chooses on a CPU, for people."""
    if multiplies_faster_in_bf16(processor):
        return f"bfloat16 for models whose U-Net has {LARGE // 1_000_000} million numbers or more, else float32"
    return "float32: this processor is not faster in bfloat16"
