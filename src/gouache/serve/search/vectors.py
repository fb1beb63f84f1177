"""Pictures and words as vectors in one space: by trained towers, or by the prompts that the pictures were painted from.

A space is named `pictures:<sha256>` or `prompts:<sha256>` after what is compared and the model that does it, so that
vectors of different models are never compared.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gouache.errors import ModelNotFound

Vectors = NDArray[np.float32]


Comparison = Literal["pictures", "prompts"]
TOWERS_FILE = "towers.safetensors"
"""Towers that a shipped model may carry."""
UNTRAINED_SIDE = 128
LONGEST_PROMPT = 2000
"""Characters of a prompt that are compared; the encoder hears no more than that anyway."""
log = logging.getLogger("gouache.worker")


class Embedder(Protocol):
    """Vectors of length 1, as float32 [N,D]."""

    @property
    def space(self) -> str:
        """Name of the space."""
        ...

    def pictures(self, files: Sequence[bytes], prompts: Sequence[str]) -> Vectors:
        """Vectors of pictures, given their files and their prompts."""
        ...

    def words(self, texts: Sequence[str]) -> Vectors:
        """Vectors of what somebody looks for."""
        ...


def open_embedder(tower: Path | None) -> Embedder | None:
    """What this studio compares with: the given towers, the shipped model's, or its sentence encoder on prompts.

    Args:
        tower: a file that the training stage `clip` left.

    Returns:
        None where neither towers nor a shipped model are at hand.

    Raises:
        ModelNotFound, CheckpointError: the file isn't there or holds something else.
    """
    from gouache.checkpoints.load import load_sentences
    from gouache.pipeline.pipeline import shipped_model

    shipped = shipped_model()
    chosen = tower or (shipped / TOWERS_FILE if shipped is not None else None)
    if chosen is not None and chosen.is_file():
        return ByPictures(chosen)
    if tower is not None:
        raise missing_tower(tower)
    sentences = None if shipped is None else load_sentences(shipped)
    return None if sentences is None else ByPrompts(sentences)


def missing_tower(path: Path) -> ModelNotFound:
    """The error for towers that aren't where they should be."""
    return ModelNotFound(
        "search tower",
        given=str(path),
        expected="the file that `gouache train clip` left",
        cure="Name it with --search-tower, or leave the option out.",
    )


class ByPictures:
    """Looks at the pictures themselves.

    Args:
        path: towers of the stage `clip`.
    """

    def __init__(self, path: Path) -> None:
        from gouache.training.evaluation.judge import load_judge

        self._judge = load_judge(path)

    @property
    def space(self) -> str:
        """Named after the towers' file."""
        return f"pictures:{self._judge.sha256}"

    def pictures(self, files: Sequence[bytes], prompts: Sequence[str]) -> Vectors:
        """Vectors of pictures; each is brought into a square on white, so that no part of it is cut off."""
        del prompts
        side = self._judge.towers.config.image_size or UNTRAINED_SIDE
        return np.asarray(self._judge.pictures(np.stack([_square(file, side) for file in files])), np.float32)

    def words(self, texts: Sequence[str]) -> Vectors:
        """Vectors of words, by the text tower."""
        return np.asarray(self._judge.captions(texts), np.float32)


def _square(file: bytes, side: int) -> NDArray[np.uint8]:
    """A picture centred in a transparent square, [side,side,4]."""
    from gouache.pipeline.inputs.images import read_picture

    picture = read_picture(file).convert("RGBA")
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    square = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    square.paste(picture.resize(size, Image.Resampling.BICUBIC), ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(square, np.uint8)


class SentenceVectors(Protocol):
    """Texts to unit vectors, and the hash of the model that does it."""

    sha256: str

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """[N,D]"""
        ...


class ByPrompts:
    """Knows only what each picture was asked to be.

    Args:
        sentences: compares texts.
    """

    def __init__(self, sentences: SentenceVectors) -> None:
        self._sentences = sentences

    @property
    def space(self) -> str:
        """Named after the model."""
        return f"prompts:{self._sentences.sha256 or 'unknown'}"

    def pictures(self, files: Sequence[bytes], prompts: Sequence[str]) -> Vectors:
        """Vectors of the prompts."""
        del files
        return self._sentences.vectors([prompt[:LONGEST_PROMPT] for prompt in prompts])

    def words(self, texts: Sequence[str]) -> Vectors:
        """Vectors of words."""
        return self._sentences.vectors(texts)
