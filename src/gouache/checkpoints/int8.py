"""Matrices stored in int8, as headers tell of them; no tensor is read, and torch is not needed.

A matrix W [rows, ...] is stored as whole numbers Q from -127 to 127 under its own name and one scale a row under
the name and `SCALE`, so that W = Q * scale: the symmetric scheme of Jacob et al. 2018 (arXiv:1712.05877, equation 1,
with zero point 0). Half the bytes of float16, for an error of at most 1/254 of each row's largest number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gouache.checkpoints.header import DOWNLOAD_AGAIN, Header, TensorInfo
from gouache.errors import CorruptCheckpoint

SCALE = "_scale"
"""Behind a matrix's name, as the `weight_scale` of other tools' int8 files."""
SCALE_TYPES = ("F16", "BF16", "F32")
SHORTEST_ROW = 32
"""Numbers in a row below which the scales would cost too much."""


def is_matrix(name: str, info: TensorInfo) -> bool:
    """Whether a tensor is worth storing in int8: weights with long rows, and the captions that a prior remembers.

    Biases and norms stay as they are.
    """
    long = len(info.shape) >= 2 and info.elements >= SHORTEST_ROW * info.shape[0]
    return name.endswith(("weight", "recall.captions")) and info.dtype in SCALE_TYPES and long


def dequantised_header(header: Header, parts: Sequence[str]) -> Header:
    """The header as if the matrices of these parts were stored in the type of their scales.

    Args:
        header: of the file.
        parts: what the int8 tensors' names start with: ``""`` for a file of one part.

    Raises:
        CorruptCheckpoint: a part has no int8 matrix, or a scale is missing or of a wrong shape or type.
    """
    found = {
        name: _checked(header, name)
        for name, info in header.tensors.items()
        if info.dtype == "I8" and name.startswith(tuple(parts))
    }
    for part in parts:
        if not any(name.startswith(part) for name in found):
            raise _damaged(header.path, f"no int8 matrix in {part or 'the part'}", "some, as the model's card says")
    tensors = {
        name: found.get(name, info) for name, info in header.tensors.items() if name.removesuffix(SCALE) not in found
    }
    tensors |= found
    order = [name for name in header.tensors if name in tensors]
    return replace(header, tensors={name: tensors[name] for name in order}, int8=frozenset(found))


def _checked(header: Header, name: str) -> TensorInfo:
    info, scale = header.tensors[name], header.tensors.get(name + SCALE)
    if scale is None:
        raise _damaged(header.path, f"int8 tensor {name!r} without a scale", f"a tensor {name + SCALE!r}")
    if not info.shape or scale.shape != (info.shape[0], 1) or scale.dtype not in SCALE_TYPES:
        raise _damaged(
            header.path,
            f"scales {scale.dtype} {list(scale.shape)} of the int8 tensor {name!r} {list(info.shape)}",
            f"one of {', '.join(SCALE_TYPES)} a row",
        )
    return replace(info, dtype=scale.dtype)


def _damaged(path: Path, given: str, expected: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(str(path), given=given, expected=expected, cure=DOWNLOAD_AGAIN)
