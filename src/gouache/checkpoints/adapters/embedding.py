"""Reads textual inversions (Gal et al. 2022, arXiv:2208.01618): vectors that stand for a new word of a text encoder.

Layouts: A1111's ``string_to_param`` (a torch file, or safetensors), kohya's ``emb_params``, diffusers' one tensor under
its token, and SDXL's ``clip_l`` and ``clip_g``. Torch files are read without unpickling.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gouache.checkpoints.formats.header import open_source
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint

BOTH = ("clip_l", "clip_g")
EXPECTED = "one tensor [n, width], or clip_l and clip_g"
MAX_VECTORS = 75


@dataclass(frozen=True, slots=True)
class Embedding:
    """A textual inversion.

    Attributes:
        path: the file.
        vectors: for each text encoder of the model n vectors. [n, width]
    """

    path: Path
    vectors: tuple[Tensor, ...]

    @property
    def count(self) -> int:
        """How many tokens the word takes."""
        return self.vectors[0].shape[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each text encoder that it belongs to."""
        return tuple(one.shape[1] for one in self.vectors)


def read_embedding(path: Path) -> Embedding:
    """Read a textual inversion.

    Raises:
        IncompatibleCheckpoint: it is none, or one with several words.
        CorruptCheckpoint, UnsafeCheckpoint: the file is damaged, holds NaN, or would have to be unpickled.
    """
    source = open_source(path)
    names = list(source.header.tensors)
    chosen = list(BOTH) if set(names) == set(BOTH) else names
    if len(chosen) != 1 and chosen != list(BOTH):
        raise IncompatibleCheckpoint(
            str(path), given=f"{len(names)} tensors: {', '.join(names[:5])}", expected=EXPECTED
        )
    vectors = tuple(_vectors(source.read(name), path) for name in chosen)
    if len({len(one) for one in vectors}) != 1:
        raise IncompatibleCheckpoint(str(path), given=f"{[len(one) for one in vectors]} vectors", expected=EXPECTED)
    return Embedding(path, vectors)


def _vectors(tensor: Tensor, path: Path) -> Tensor:
    rows = tensor[None] if tensor.ndim == 1 else tensor
    if rows.ndim != 2 or not 1 <= len(rows) <= MAX_VECTORS or not rows.shape[1] or not rows.is_floating_point():
        raise IncompatibleCheckpoint(
            str(path),
            given=f"a tensor {list(tensor.shape)} of {tensor.dtype}",
            expected=f"{EXPECTED}, with at most {MAX_VECTORS} vectors",
        )
    if not bool(torch.isfinite(rows.float()).all()):
        raise CorruptCheckpoint(str(path), given="NaN or infinity", expected="finite numbers")
    return rows
