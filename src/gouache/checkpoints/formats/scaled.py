"""fp8 matrices with a scale, as ComfyUI and others write them: W = F * scale, in float32.

F is stored under the matrix's name (``X.weight``, e4m3 or e5m2), the scale under ``X.scale_weight`` or
``X.weight_scale``: one number, or one a row. ``scaled_fp8``, ``X.scale_input``, ``X.input_scale`` and ``X.comfy_quant``
lie beside them; they are for multiplying in fp8 and change no weight. fp8 without scales are plain numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gouache.checkpoints.formats.header import Header, TensorInfo
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint

if TYPE_CHECKING:
    from torch import Tensor

    from gouache.checkpoints.formats.safetensors import WeightSource

FP8 = ("F8_E4M3", "F8_E5M2")
FLOATS = (*FP8, "F16", "BF16", "F32")
SCALE_TYPES = ("F16", "BF16", "F32")


def _scale_of(name: str, header: Header) -> str:
    """The name of a matrix's scale; empty if it has none.

    ``weight_scale`` beside other types than fp8 belongs to other quantizations, int8 among them.
    """
    stem, _, last = name.rpartition("weight")
    if last or not name.endswith(".weight") or header.tensors[name].dtype not in FLOATS:
        return ""
    names = [f"{stem}scale_weight", *([f"{stem}weight_scale"] if header.tensors[name].dtype in FP8 else [])]
    return next((scale for scale in names if scale in header.tensors), "")


def unscaled_header(header: Header) -> Header:
    """The header as if the scales were multiplied in and the matrices stored in float32; itself if there are none.

    Raises:
        IncompatibleCheckpoint: scales of another shape or type than one number or one a row.
    """
    if not any(name.endswith(("scale_weight", "weight_scale")) for name in header.tensors):
        return header
    scales = {name: scale for name in header.tensors if (scale := _scale_of(name, header))}
    for name, scale in scales.items():
        info = header.tensors[scale]
        shape = header.tensors[name].shape
        rows = shape[0] if shape else 1
        if info.dtype not in SCALE_TYPES or (info.elements != 1 and (info.elements != rows or info.shape[0] != rows)):
            raise IncompatibleCheckpoint(
                str(header.path),
                given=f"scales {info.dtype} {list(info.shape)} of the {header.tensors[name].dtype} tensor {name!r}",
                expected="one number, or one a row",
                cure="Get the model in fp16, or in fp8 with one scale a tensor.",
            )
    used = set(scales.values())
    tensors = {
        name: TensorInfo("F32", info.shape, info.start, info.end) if name in scales else info
        for name, info in header.tensors.items()
        if name not in used
    }
    return replace(header, tensors=tensors, stored={name: header.tensors[name].dtype for name in scales})


class ScaledSource:
    """A weight file whose scales are multiplied in as it is read; a `WeightSource`.

    Args:
        source: the file as it is.
        header: what `unscaled_header` made of the file's.
    """

    def __init__(self, source: WeightSource, header: Header) -> None:
        self.header, self._source = header, source

    def read(self, name: str, *, mapped: bool = True) -> Tensor:
        """One tensor; see `WeightSource.read`.

        Raises:
            CorruptCheckpoint: a scale that isn't finite.
        """
        if name not in self.header.stored:
            return self._source.read(name, mapped=mapped)
        import torch

        scale = self._source.read(_scale_of(name, self._source.header), mapped=False).float().reshape(-1)
        if not bool(torch.isfinite(scale).all()):
            raise CorruptCheckpoint(
                str(self.header.path), given=f"a scale of {name!r} that is no number", expected="finite scales"
            )
        numbers = self._source.read(name, mapped=False).float()
        return numbers.mul_(scale.view(-1, *(1 for _ in numbers.shape[1:])) if numbers.ndim else scale.view(()))
