"""FreeU: on the way up, a U-Net's own features weigh more and the kept ones' coarse part less (Si et al. 2023,
arXiv:2309.11497, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Stages = Literal["blocks", "widths"]


@dataclass(frozen=True, slots=True)
class FreeU:
    """Settings of FreeU.

    Attributes:
        b1, b2: factors on half of the channels that come from below, at the first and the second stage.
        s1, s2: factors on the lowest frequencies of the kept feature maps.
        version: 2 = the factor b varies over the picture with the features' mean; 1 = the same everywhere.
        stages: the first two levels of the way up ("blocks"), or wherever the features are 4 and 2 times as wide as the
            first level's ("widths"), as the authors' code.
    """

    b1: float = 1.3
    b2: float = 1.4
    s1: float = 0.9
    s2: float = 0.2
    version: int = 2
    stages: Stages = "blocks"

    def factors(self, place: int, width: int, first_width: int) -> tuple[float, float] | None:
        """b and s for the features of a level on the way up, or None where it does nothing.

        Args:
            place: level of the way up, 0 at the bottom.
            width: channels that come from below.
            first_width: channels of the U-Net's first level.
        """
        if self.stages == "blocks":
            stage = place if place < 2 else None
        else:
            stage = {4 * first_width: 0, 2 * first_width: 1}.get(width)
        return None if stage is None else ((self.b1, self.s1), (self.b2, self.s2))[stage]


def free_u(x: Tensor, skip: Tensor, settings: FreeU, place: int, first_width: int) -> tuple[Tensor, Tensor]:
    """Both inputs of a residual block on the way up (Si et al. 2023, arXiv:2309.11497, equations 2-5).

    Args:
        x: features from below. [B,C,h,w]
        skip: kept features. [B,D,h,w]
        settings: factors and where they hold.
        place, first_width: as in `FreeU.factors`.
    """
    factors = settings.factors(place, x.shape[1], first_width)
    if factors is None:
        return x, skip
    half = x.shape[1] // 2
    weight: float | Tensor = factors[0]
    if settings.version == 2:
        mean = x.mean(1, keepdim=True)  # [B,1,h,w]
        low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
        weight = (factors[0] - 1) * ((mean - low) / torch.where(high > low, high - low, torch.ones_like(high))) + 1
    return torch.cat([x[:, :half] * weight, x[:, half:]], dim=1), _low_frequencies_scaled(skip, factors[1])


def _low_frequencies_scaled(x: Tensor, factor: float) -> Tensor:
    """The two by two frequencies around the middle of the shifted spectrum times a factor. [B,C,h,w]"""
    # In fp32: half precision has no transform for sides that are no powers of two.
    spectrum = torch.fft.fftshift(torch.fft.fftn(x.float(), dim=(-2, -1)), dim=(-2, -1))
    rows, columns = x.shape[-2] // 2, x.shape[-1] // 2
    # Negative where a side is a single pixel: slices would count from the end.
    spectrum[..., max(rows - 1, 0) : rows + 1, max(columns - 1, 0) : columns + 1] *= factor
    shifted = torch.fft.ifftshift(spectrum, dim=(-2, -1))
    found: Tensor = torch.fft.ifftn(shifted, dim=(-2, -1)).real
    return found.to(x.dtype)
