"""Structural similarity (Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural
Similarity")."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gouache.errors import ShapeMismatch

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def ssim(picture: Tensor, target: Tensor, *, peak: float = 2.0) -> Tensor:
    """Mean structural similarity of each picture: equation 13 under a Gaussian window, equation 17 over the picture.

    Places whose window does not fit in the picture are left out; channels are averaged.

    Args:
        picture, target: [B,C,H,W], sides at least 11.
        peak: range of the values, 2 for [-1,1].

    Returns:
        [B], at most 1; 1 for equal pictures.

    Raises:
        ShapeMismatch: different shapes, or smaller than the window.
    """
    if picture.shape != target.shape or picture.ndim != 4 or min(picture.shape[2:]) < WINDOW:
        raise ShapeMismatch(
            "pictures", given=f"{tuple(picture.shape)} and {tuple(target.shape)}",
            expected=f"the same [B,C,H,W] with sides of {WINDOW} or more",
        )  # fmt: skip
    x, y = picture.double(), target.double()
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def _blur(x: Tensor) -> Tensor:
    """Gaussian window sums [B,C,H-10,W-10]."""
    places = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    window = torch.exp(-places.square() / (2 * SIGMA**2))
    window = window / window.sum()
    channels = x.shape[1]
    rows = window.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = window.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(x, rows, groups=channels), columns, groups=channels)
