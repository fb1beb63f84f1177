"""Writes matrices in int8 and reads them back; see `int8` for the scheme."""

from __future__ import annotations

import torch
from torch import Tensor

from gouache.checkpoints.format import DTYPE_NAMES, WeightSource
from gouache.checkpoints.header import DOWNLOAD_AGAIN, Header
from gouache.checkpoints.int8 import SCALE
from gouache.errors import CorruptCheckpoint, InvalidInput

LARGEST = 127


def quantise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers and scales of a matrix.

    Args:
        matrix: floating point. [R, ...]

    Returns:
        int8 from -127 to 127 [R, ...], and scales in the matrix's type [R, 1]. The scale is rounded first and upwards,
        so that no number is cut off and each comes back within half a scale.

    Raises:
        InvalidInput: it holds NaN or infinity, or is no matrix of a known floating-point type.
    """
    if not matrix.is_floating_point() or matrix.ndim < 2 or matrix.dtype not in DTYPE_NAMES:
        given = f"{matrix.dtype} {list(matrix.shape)}"
        raise InvalidInput("matrix", given=given, expected="floating point with two or more axes")
    rows = matrix.detach().float().flatten(1)
    peak = rows.abs().amax(1, keepdim=True)
    if not bool(torch.isfinite(peak).all()):
        raise InvalidInput("matrix", given="NaN or infinity", expected="finite numbers")
    kind = torch.finfo(matrix.dtype)
    scale = (peak * ((1 + kind.eps) / LARGEST)).clamp(min=kind.tiny).to(matrix.dtype)
    whole = (rows / scale.float()).round().to(torch.int8)
    return whole.view(matrix.shape), scale


def dequantise(whole: Tensor, scale: Tensor) -> Tensor:
    """whole [R, ...] int8 times scale [R, 1], in the scale's type."""
    return (whole.flatten(1).to(scale.dtype) * scale).view(whole.shape)


class Int8Source:
    """A weight file with int8 matrices, read as if they were floating point; a `WeightSource`.

    Args:
        source: the file as it is.
        header: what `dequantised_header` made of the file's.
    """

    def __init__(self, source: WeightSource, header: Header) -> None:
        self.header, self._source = header, source

    def read(self, name: str, *, mapped: bool = True) -> Tensor:
        """One tensor; see `WeightSource.read`.

        Raises:
            CorruptCheckpoint: a scale that is not above zero and finite, or a number outside -127 to 127.
        """
        if name not in self.header.int8:
            return self._source.read(name, mapped=mapped)
        whole, scale = self._source.read(name, mapped=False), self._source.read(name + SCALE, mapped=False)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()) or bool((whole == -LARGEST - 1).any()):
            raise CorruptCheckpoint(
                str(self.header.path), given=f"int8 tensor {name!r} with a scale or a number out of range",
                expected="scales above 0 and numbers from -127 to 127", cure=DOWNLOAD_AGAIN,
            )  # fmt: skip
        return dequantise(whole, scale)
