"""Guiders beside classifier-free guidance: what they make of predictions, as pure functions on `denoised`.

Perturbed-attention and skip-layer guidance need no function of their own: they push away from a weakened prediction as
guidance pushes away from the unconditional one. What weakens it is the network's business (`models/perturbation.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gouache.errors import InvalidInput, ShapeMismatch

BLUR_WIDTH = 9
"""Pixels along a side of the blur's kernel."""
Centre = Literal["mean", "zero"]
Spread = Literal["max", "std"]


@dataclass(frozen=True, slots=True)
class DynamicThresholding:
    """Settings of dynamic thresholding by a mimicked scale (A1111's extension of that name, "CFG scale fix", 2023).

    Attributes:
        mimic_scale: guidance scale whose range of values the picture keeps.
        percentile: share of the values, by size, that counts as their range; above it they are cut, 0..1.
        by_channel: measure each channel by itself, else all of a picture together.
        centre: measure and scale around each channel's mean, or around zero.
        spread: of the values: the greatest distance from the centre, or the standard deviation.
        phi: share of the result, 0..1; the rest is plain guidance.
    """

    mimic_scale: float = 7.0
    percentile: float = 1.0
    by_channel: bool = True
    centre: Centre = "mean"
    spread: Spread = "max"
    phi: float = 1.0

    def __post_init__(self) -> None:
        for name, value, most in (
            ("mimic_scale", self.mimic_scale, math.inf),
            ("percentile", self.percentile, 1),
            ("phi", self.phi, 1),
        ):
            if not (math.isfinite(value) and 0 <= value <= most):
                bounds = ">= 0" if most == math.inf else "in [0, 1]"
                raise InvalidInput(f"dynamic thresholding's {name}", given=value, expected=f"a finite number {bounds}")


def thresholded(conditional: Tensor, unconditional: Tensor, scale: float, settings: DynamicThresholding) -> Tensor:
    """Guidance at `scale` with the range of values that guidance at the mimicked scale has (after Saharia et al. 2022,
    arXiv:2205.11487, section 2.3, whose threshold is a picture's; this one works on latents).

    Args:
        conditional, unconditional: denoised. [B,C,h,w]
        scale: guidance scale.
        settings: how the range is measured; each picture by itself.
    """
    if conditional.shape != unconditional.shape or conditional.ndim != 4:
        given = f"{tuple(conditional.shape)} and {tuple(unconditional.shape)}"
        raise ShapeMismatch("predictions to guide", given=given, expected="equal shapes [B,C,h,w]")
    relative = conditional - unconditional
    strong, mimic = (unconditional + relative * factor for factor in (scale, settings.mimic_scale))
    means = strong.mean((2, 3), keepdim=True)
    strong_spread = _spread(strong, settings, settings.percentile)
    mimic_spread = _spread(mimic, settings, 1.0)
    if settings.centre == "zero":
        found = strong * (mimic_spread / _above_zero(strong_spread))
    elif settings.spread == "std":
        found = (strong - means) / _above_zero(strong_spread) * mimic_spread + means
    else:
        limit = torch.maximum(mimic_spread, strong_spread)
        found = torch.clamp(strong - means, -limit, limit) / _above_zero(limit) * mimic_spread + means
    return found if settings.phi == 1 else found * settings.phi + strong * (1 - settings.phi)


def _spread(x: Tensor, settings: DynamicThresholding, percentile: float) -> Tensor:
    """Distance of the values from their channel's mean. [B,C,1,1] or [B,1,1,1]"""
    centred = x - x.mean((2, 3), keepdim=True)
    rows = centred.flatten(2) if settings.by_channel else centred.flatten(1)[:, None]  # [B,C or 1,n]
    if settings.spread == "std":
        found = rows.std(dim=2)
    elif percentile == 1:
        found = rows.abs().amax(dim=2)
    else:
        # Picture by picture: torch.quantile takes no more than 2^24 numbers at once.
        exact = rows.abs().to(torch.promote_types(x.dtype, torch.float32))
        found = torch.stack([torch.quantile(one, percentile, dim=1) for one in exact]).to(x)
    return found[..., None, None]


def _above_zero(x: Tensor) -> Tensor:
    """Channels of one value have no range to divide by."""
    return torch.where(x > 0, x, torch.ones_like(x))


def perpendicular_negative(conditional: Tensor, negative: Tensor, empty: Tensor, scale: float) -> Tensor:
    """What stands for the conditional prediction with Perp-Neg (Armandpour et al. 2023, arXiv:2304.04968, section 4.1),
    where the empty prompt's stands for the unconditional one.

    Of the negative prompt's direction only the part perpendicular to the prompt's is taken away, so that what both say
    stays. Both are measured from the empty prompt, each picture by itself.

    Args:
        conditional, negative, empty: denoised under the prompt, the negative prompt and the empty one. [B, ...]
        scale: weight of what is taken away; 0 = the prompt alone.
    """
    if not conditional.shape == negative.shape == empty.shape:
        given = f"{tuple(conditional.shape)}, {tuple(negative.shape)} and {tuple(empty.shape)}"
        raise ShapeMismatch("predictions to guide", given=given, expected="equal shapes")
    axes = tuple(range(1, conditional.ndim))
    wanted, unwanted = (conditional - empty).double(), (negative - empty).double()
    # In fp64: nearly parallel directions leave a small difference of large numbers.
    squared = (wanted * wanted).sum(axes, keepdim=True)
    parallel = (unwanted * wanted).sum(axes, keepdim=True) / squared.clamp(min=1e-30) * wanted
    return conditional - (scale * (unwanted - parallel)).to(conditional)


def blurred_where_attended(denoised: Tensor, attended: Tensor, blur_sigma: float, threshold: float) -> Tensor:
    """The prediction with its salient parts blurred (Hong et al. 2023, arXiv:2210.00939, section 4.2).

    Args:
        denoised: the prediction. [B,C,h,w], both sides over 4
        attended: how much of the self-attention each place of a coarser map gets, the sum over all places that look,
            1 on average. [B,m,n]
        blur_sigma: standard deviation of the Gaussian blur, in latent pixels, > 0.
        threshold: a place is salient where it gets more than this.

    Raises:
        InvalidInput: too small a picture for the kernel.
    """
    height, width = denoised.shape[-2:]
    if min(height, width) <= BLUR_WIDTH // 2:
        raise InvalidInput("sag", given=f"latents of {width}x{height}", expected=f"over {BLUR_WIDTH // 2} a side")
    salient = (attended > threshold).to(denoised.dtype)[:, None]  # [B,1,m,n]
    salient = F.interpolate(salient, (height, width), mode="nearest")
    offsets = torch.arange(BLUR_WIDTH, dtype=torch.float32) - BLUR_WIDTH // 2
    kernel = torch.exp(-0.5 * (offsets / blur_sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(denoised)
    channels = denoised.shape[1]
    kernel_2d = (kernel[:, None] * kernel[None]).expand(channels, 1, -1, -1)
    padded = F.pad(denoised, [BLUR_WIDTH // 2] * 4, mode="reflect")
    blurred = F.conv2d(padded, kernel_2d, groups=channels)
    return blurred * salient + denoised * (1 - salient)


def adapted_scale(scale: float, adaptive_scale: float, elapsed: float) -> float:
    """scale - adaptive_scale * elapsed, at least 0: perturbed-attention guidance that fades (Ahn et al. 2024,
    arXiv:2403.17377, section 4, with the fading that diffusers adds).

    Args:
        scale: at the beginning.
        adaptive_scale: how fast it fades.
        elapsed: timesteps of the schedule's 1000 that lie behind.
    """
    return scale if adaptive_scale == 0 else max(scale - adaptive_scale * elapsed, 0.0)
