"""The judge: towers trained apart from the generator, used as a measuring instrument."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gouache.pipeline.inputs.tensors import rgba_to_tensor
from gouache.training.stage import batched
from gouache.training.towers import Towers


class Judge:
    """Unit vectors and features of pictures and captions.

    Args:
        towers: from the stage `clip`; pictures of another size than theirs are brought to it.
        sha256: of its file, or empty.
    """

    def __init__(self, towers: Towers, sha256: str = "") -> None:
        self.towers, self.sha256 = towers.eval().requires_grad_(False), sha256

    @torch.no_grad()
    def features(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Features of pictures on white: uint8 [N,S,S,4] with straight alpha -> [N,C]."""
        parts = [self.towers.image(self._image(pictures[part])) for part in batched(len(pictures))]
        return torch.cat(parts)

    def pictures(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Unit vectors of pictures on white: uint8 [N,S,S,4] with straight alpha -> [N,E]."""
        return self.towers.embed_features(self.features(pictures))

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors of captions [N,E]."""
        # A batch is as long as its longest caption, so captions of like length go together.
        order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
        vectors = torch.empty(len(captions), self.towers.config.embedding_dim)
        for part in batched(len(captions)):
            places = [order[k] for k in part]
            ids, mask = self.towers.tokens([captions[i] for i in places])
            pooled = self.towers.read(ids, mask).pooled
            assert pooled is not None, "a sentence encoder always pools"
            vectors[places] = self.towers.embed_text(pooled)
        return vectors

    def _image(self, pictures: NDArray[np.uint8]) -> Tensor:
        image, size = rgba_to_tensor(pictures)[:, :3], self.towers.config.image_size
        if size in (0, image.shape[-1]):
            return image
        return F.interpolate(image, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def load_judge(path: Path) -> Judge:
    """Load what the stage `clip` left.

    Raises:
        CheckpointError: not such a file, or damaged.
    """
    towers = Towers.load(path)
    with path.open("rb") as file:
        return Judge(towers, hashlib.file_digest(file, "sha256").hexdigest())
