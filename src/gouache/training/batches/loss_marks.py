"""Where and how much the loss of a picture counts: its mask, and the weight of pictures of the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F

from gouache.data.packed import PackedPictures
from gouache.training.stage import Batch

View = tuple[int, bool]
"""A picture's row in its set, and whether left and right are changed."""


@runtime_checkable
class Viewed(Protocol):
    """A source of examples that knows which picture of a packed set each shows."""

    pictures: PackedPictures

    def view(self, number: int) -> View:
        """The picture of an example."""
        ...


@runtime_checkable
class Marked(Protocol):
    """Encoded examples that know where they come from."""

    source: Viewed | None


def loss_marks(
    pictures: PackedPictures, views: Sequence[View], latent_size: Sequence[int], prior_loss_weight: float
) -> Batch:
    """What the loss of diffusion takes besides a batch: `loss_mask` [B,1,h,w] in 0..1 where the set has masks, and
    `loss_weight` [B] where it has regularisation pictures (Ruiz et al. 2023, equation 2).

    Args:
        pictures: the set.
        views: of the batch, which has one shape.
        latent_size: h and w.
        prior_loss_weight: of regularisation pictures; others have 1.
    """
    batch: Batch = {}
    if pictures.manifest.masks:
        masks = [_mask(pictures, *view) for view in views]
        full = torch.from_numpy(np.stack(masks)).float()[:, None] / 255  # [B,1,H,W]
        batch["loss_mask"] = F.interpolate(full, size=tuple(latent_size), mode="area")
    if pictures.to_learn < len(pictures):
        weights = [prior_loss_weight if pictures.records[row].regularisation else 1.0 for row, _ in views]
        batch["loss_weight"] = torch.tensor(weights)
    return batch


def marks_of(data: object, numbers: Sequence[int], latent_size: Sequence[int], prior_loss_weight: float) -> Batch:
    """As `loss_marks`, of encoded examples; nothing where they come from no packed set."""
    if not isinstance(data, Marked) or data.source is None:
        return {}
    views = [data.source.view(number) for number in numbers]
    return loss_marks(data.source.pictures, views, latent_size, prior_loss_weight)


def _mask(pictures: PackedPictures, row: int, mirrored: bool) -> np.ndarray:
    mask = pictures.mask(row)
    assert mask is not None, "the manifest says that there are masks"
    return mask[:, ::-1] if mirrored else mask
