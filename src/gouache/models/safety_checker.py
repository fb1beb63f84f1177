"""A checker for unwanted pictures: CLIP's vision tower, and vectors of concepts that a picture should not be near.

The rule is that of Stable Diffusion's published checker, described by Rando et al. 2022 (arXiv:2210.04610), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gouache.errors import ShapeMismatch
from gouache.models.configs import ImageEncoderConfig
from gouache.models.image_encoder import ImageEncoder

STRICTER = 0.01
"""How much nearer every concept counts once a picture is near one of those that need special care."""


class SafetyChecker(nn.Module):
    """Preprocessed pictures to the concepts they are too near to.

    Args:
        tower: sizes of the vision tower.
        concepts: unwanted concepts.
        special: concepts that only make the checker stricter.
    """

    def __init__(self, tower: ImageEncoderConfig, concepts: int = 17, special: int = 3) -> None:
        super().__init__()
        self.config = tower
        self.tower = ImageEncoder(tower)
        width = tower.projection_width
        self.concept_embeds = nn.Parameter(torch.ones(concepts, width))
        self.concept_embeds_weights = nn.Parameter(torch.ones(concepts))
        self.special_care_embeds = nn.Parameter(torch.ones(special, width))
        self.special_care_embeds_weights = nn.Parameter(torch.ones(special))

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[tuple[int, ...]]:
        """Numbers of the unwanted concepts of each picture; none = it may be shown.

        Args:
            image: as `image_encoder.preprocess` leaves it. [B,3,image_size,image_size]

        Raises:
            ShapeMismatch: another size.
        """
        if image.ndim != 4:
            raise ShapeMismatch("image", given=tuple(image.shape), expected="[B, 3, H, W]")
        embedding = F.normalize(self.tower(image).embedding.float())  # [B,P]
        special = embedding @ F.normalize(self.special_care_embeds.float()).T - self.special_care_embeds_weights.float()
        concepts = embedding @ F.normalize(self.concept_embeds.float()).T - self.concept_embeds_weights.float()
        return [_too_near(one.tolist(), other.tolist()) for one, other in zip(special, concepts, strict=True)]


def _too_near(special: list[float], concepts: list[float]) -> tuple[int, ...]:
    """Cosines above their thresholds, rounded to three digits as the published rule has it."""
    stricter = 0.0
    for excess in special:
        if round(excess + stricter, 3) > 0:
            stricter = STRICTER
    return tuple(number for number, excess in enumerate(concepts) if round(excess + stricter, 3) > 0)
