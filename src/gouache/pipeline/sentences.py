"""Texts as unit vectors, by the text encoder of a model that has a sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from gouache.checkpoints.card import vocabulary_of
from gouache.checkpoints.identify import identify
from gouache.checkpoints.load import known_sha256
from gouache.checkpoints.networks import load_network, open_part
from gouache.models.configs import SentenceEncoderConfig
from gouache.models.sentence_encoder import SentenceEncoder
from gouache.models.text_stack import TextStack

Vectors = NDArray[np.float32]


class Sentences:
    """Compares texts by meaning.

    Args:
        stack: a sentence encoder with its tokenizer.
        sha256: of the model's weights.
    """

    def __init__(self, stack: TextStack, sha256: str) -> None:
        self.stack, self.sha256 = stack.eval().requires_grad_(False).float(), sha256

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> Vectors:
        """One unit vector a text: the mean of its chunks' vectors (Reimers and Gurevych 2019). [N,D]"""
        rows = []
        for text in texts:
            ids, length = self.stack.tokenize(text), self.stack.chunk_length
            pooled = self.stack.encode([ids[k : k + length] for k in range(0, max(len(ids), 1), length)]).pooled
            assert pooled is not None, "a sentence encoder always pools"
            rows.append(F.normalize(pooled.mean(0), dim=0))
        return np.stack([row.cpu().numpy() for row in rows]).astype(np.float32)


def load_sentences(path: Path) -> Sentences | None:
    """The sentence encoder of a model, without the model's other networks; None if it has none.

    Raises:
        CheckpointError: nothing that can be loaded.
    """
    identity = identify(path)
    for part in identity.parts.values():
        if isinstance(part.config, SentenceEncoderConfig):
            network, _ = load_network(part, open_part(part.header), identity.family, dtype=torch.float32)
            assert isinstance(network, SentenceEncoder), "the config decides the class"
            return Sentences(TextStack.of_sentences(network, vocabulary_of(path)), known_sha256(identity))
    return None
