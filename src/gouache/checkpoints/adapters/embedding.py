"""Reads textual inversions (Gal et al. 2022, arXiv:2208.01618): vectors that stand for a new word of a text encoder.

`embedding_names` knows the layouts. Torch files are read without unpickling, PNG files by `formats.png_embedding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gouache.checkpoints.adapters.embedding_names import FIRST, SECOND, bundled_names, embedding_names
from gouache.checkpoints.adapters.naming import folded
from gouache.checkpoints.formats.header import few, open_source
from gouache.checkpoints.formats.safetensors import WeightSource
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint

EXPECTED = "one tensor [n, width], or clip_l and clip_g"
MAX_VECTORS = 75


@dataclass(frozen=True, slots=True)
class Embedding:
    """A textual inversion.

    Attributes:
        path: the file.
        vectors: for each text encoder of the model n vectors. [n, width]
        left_out: tensors of the file that aren't used.
    """

    path: Path
    vectors: tuple[Tensor, ...]
    left_out: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many tokens the word takes."""
        return self.vectors[0].shape[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each text encoder that it belongs to."""
        return tuple(one.shape[1] for one in self.vectors)


def read_embedding(path: Path, word: str = "") -> Embedding:
    """Read a textual inversion.

    Args:
        path: .safetensors, a torch file, or a PNG with the vectors inside.
        word: which of the file's words; one that is none of them, as the file's own name, stands for all in turn.

    Raises:
        IncompatibleCheckpoint: it is none.
        CorruptCheckpoint, UnsafeCheckpoint: the file is damaged, holds NaN, or would have to be unpickled.
    """
    source = open_source(path)
    names = embedding_names(source.header.tensors)
    chosen = [slots for one, slots in names.words.items() if folded(one) == folded(word)]
    if not names.words:
        given = f"{len(names.left_out)} tensors of another kind: {few(names.left_out, 5)}"
        raise IncompatibleCheckpoint(str(path), given=given, expected=EXPECTED)
    parts = [_vectors_of(source, slots) for slots in chosen or names.words.values()]
    if len({tuple(one.shape[1] for one in part) for part in parts}) != 1:
        widths = [[one.shape[1] for one in part] for part in parts]
        raise IncompatibleCheckpoint(str(path), given=f"words of widths {widths[:5]}", expected=EXPECTED)
    vectors = tuple(torch.cat(slot) if len(slot) > 1 else slot[0] for slot in zip(*parts, strict=True))
    if len(vectors[0]) > MAX_VECTORS:
        raise IncompatibleCheckpoint(
            str(path), given=f"{len(vectors[0])} vectors", expected=f"at most {MAX_VECTORS} vectors for a word"
        )
    return Embedding(path, vectors, names.left_out)


def bundled_embeddings(source: WeightSource) -> dict[str, Embedding]:
    """The textual inversions that lie in a LoRA's file, by word; errors as in `read_embedding`."""
    header = source.header
    return {
        word: Embedding(header.path, _vectors_of(source, slots))
        for word, slots in bundled_names(header.tensors, header.metadata).items()
    }


def _vectors_of(source: WeightSource, slots: Mapping[int, str]) -> tuple[Tensor, ...]:
    path = source.header.path
    order = [slot for slot in (FIRST, SECOND) if slot in slots]
    vectors = tuple(_vectors(source.read(slots[slot]), path) for slot in order)
    if len({len(one) for one in vectors}) != 1:
        raise IncompatibleCheckpoint(str(path), given=f"{[len(one) for one in vectors]} vectors", expected=EXPECTED)
    return vectors


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
