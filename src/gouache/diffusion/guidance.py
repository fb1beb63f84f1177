"""Guidance: steering the denoiser towards its condition and away from another.

Everything is said of `denoised`. Since eps = (x - denoised) / sigma is affine in it, guiding denoised and guiding eps
are the same; only `rescaled` depends on the space, and works in the network's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gouache.diffusion.guiders import DynamicThresholding, thresholded
from gouache.diffusion.noise_schedule import Path, alpha_and_std
from gouache.diffusion.parameterization import Parameterization, convert
from gouache.diffusion.samplers.step import Denoise
from gouache.errors import InvalidInput, ShapeMismatch

DenoisePair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x, sigma) -> (conditional, unconditional) denoised, in one network call or two."""
Addition = Callable[[Tensor, Tensor], Tensor | None]
"""(x, sigma) -> what other guiders add to the guided denoised, or None; asked right after the prediction there."""


@dataclass(frozen=True, slots=True)
class AdaptiveProjection:
    """Settings of adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416, section 5).

    Attributes:
        eta: how much of the part parallel to the conditional prediction is kept, 0 = none, 1 = all. It oversaturates.
        norm_threshold: longest update that is let through, per picture; 0 = no limit.
        momentum: share of the earlier updates that is added; negative pushes away from them.
    """

    eta: float = 0.0
    norm_threshold: float = 15.0
    momentum: float = -0.5

    def __post_init__(self) -> None:
        _finite("eta", self.eta)
        _finite("norm_threshold", self.norm_threshold, least=0)
        _finite("momentum", self.momentum)


@dataclass(frozen=True, slots=True)
class Guidance:
    """How strongly, where and in which manner to guide.

    Attributes:
        scale: 1 = the conditional prediction alone, one network call; 0 = the unconditional alone; below 1 is honoured.
        rescale: phi of Lin et al. 2024, in [0, 1]: how much of the conditional prediction's contrast is restored.
        sigma_low, sigma_high: guide only where sigma_low < sigma <= sigma_high; elsewhere as with scale 1.
        projection: adaptive projected guidance, or None for the plain rule.
        thresholding: guidance in the range of values of a lower scale, or None for the plain rule.
    """

    scale: float = 7.5
    rescale: float = 0.0
    sigma_low: float = 0.0
    sigma_high: float = math.inf
    projection: AdaptiveProjection | None = None
    thresholding: DynamicThresholding | None = None

    def __post_init__(self) -> None:
        _finite("guidance_scale", self.scale)
        _finite("guidance_rescale", self.rescale, least=0, most=1)
        _finite("guidance interval's sigma_low", self.sigma_low, least=0)
        if math.isnan(self.sigma_high) or self.sigma_high < self.sigma_low:
            raise InvalidInput(
                "guidance interval", given=(self.sigma_low, self.sigma_high), expected="sigma_low <= sigma_high"
            )
        if self.projection is not None and self.thresholding is not None:
            raise InvalidInput("guidance", given="projection and thresholding", expected="one rule or the other")

    def acts_at(self, sigma: float) -> bool:
        """Whether both predictions are needed at this noise level."""
        return self.scale != 1 and self.sigma_low < sigma <= self.sigma_high


def classifier_free(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """unconditional + scale (conditional - unconditional) (Ho & Salimans 2022, arXiv:2207.12598, equation 6).

    Their w is scale - 1. A negative prompt takes the place of the empty one in `unconditional`. At 1 and at 0 the
    answer is bit for bit the one or the other.

    conditional, unconditional: denoised or eps. [B, ...]
    """
    _finite("guidance_scale", scale)
    _same_shape(conditional, unconditional)
    # u + 1 (c - u) is c only up to rounding.
    if scale == 1:
        return conditional
    return unconditional + scale * (conditional - unconditional)


def rescaled(guided: Tensor, conditional: Tensor, phi: float) -> Tensor:
    """phi guided std(conditional) / std(guided) + (1 - phi) guided (Lin et al. 2024, arXiv:2305.08891, eqs. 14-16).

    Takes back the contrast that guidance adds. Apply it to what the network predicts (eps or v), as the paper does.

    guided, conditional [B, ...]; the standard deviations are taken over each picture.
    """
    _finite("guidance_rescale", phi, least=0, most=1)
    _same_shape(guided, conditional)
    before, after = _std(conditional), _std(guided)
    # A picture without any contrast has none to restore.
    factor = torch.where(after > 0, before / after, torch.ones_like(after))
    return phi * (guided * factor) + (1 - phi) * guided


class ProjectedGuidance:
    """Adaptive projected guidance; holds the momentum of one generation (Sadat et al. 2024, arXiv:2410.02416, alg. 1).

    Args:
        settings: eta, threshold and momentum.
    """

    def __init__(self, settings: AdaptiveProjection) -> None:
        self.settings = settings
        self._running: Tensor | None = None

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Guide one denoised prediction; the updates of earlier calls weigh in by `momentum`. [B, ...]"""
        _same_shape(conditional, unconditional)
        update = conditional - unconditional
        if self._running is not None and self.settings.momentum != 0:
            update = update + self.settings.momentum * self._running
        self._running = update
        return projected_guidance(
            conditional, update, scale, eta=self.settings.eta, norm_threshold=self.settings.norm_threshold
        )


def projected_guidance(
    conditional: Tensor, update: Tensor, scale: float, *, eta: float = 0.0, norm_threshold: float = 0.0
) -> Tensor:
    """conditional + (scale - 1) (orthogonal + eta parallel) (Sadat et al. 2024, arXiv:2410.02416, algorithm 1).

    The update is first shortened to `norm_threshold`, then split along and across the conditional prediction, each
    picture by itself.

    Args:
        conditional: the conditional denoised. [B, ...]
        update: conditional - unconditional, perhaps with momentum. [B, ...]
        scale: guidance scale.
        eta: what is kept of the parallel part.
        norm_threshold: greatest length of the update; 0 = any.
    """
    _finite("guidance_scale", scale)
    _same_shape(conditional, update)
    axes = tuple(range(1, update.ndim))
    if norm_threshold > 0:
        length = torch.linalg.vector_norm(update, dim=axes, keepdim=True)
        update = update * (norm_threshold / length.clamp(min=1e-30)).clamp(max=1)
    # In fp64: the split subtracts nearly equal numbers when the update is nearly parallel.
    across, along = update.double(), conditional.double()
    squared = (along * along).sum(axes, keepdim=True)
    parallel = (across * along).sum(axes, keepdim=True) / squared.clamp(min=1e-30) * along
    return conditional + (scale - 1) * (across - parallel + eta * parallel).to(conditional)


def guided_denoiser(
    conditional: Denoise,
    pair: DenoisePair,
    guidance: Guidance,
    *,
    parameterization: Parameterization = "eps",
    path: Path = "vp",
    added: Addition | None = None,
) -> Denoise:
    """Wrap a denoiser in guidance (Ho & Salimans 2022, arXiv:2207.12598, equation 6; interval: Kynkaanniemi et al.
    2024, arXiv:2404.07724, section 3).

    With scale 1, and outside the interval, exactly one call of `conditional` and none of `pair`. The result holds the
    momentum of one generation: make a fresh one for each.

    Args:
        conditional: the denoiser under the prompt alone.
        pair: both predictions, (prompt, negative prompt).
        guidance: scale, rescale, interval, projection.
        parameterization, path: the network's own, the space in which `rescale` works.
        added: what other guiders add, inside the interval and outside; `rescale` sees it too.
    """
    projection = ProjectedGuidance(guidance.projection) if guidance.projection else None

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        # Where the other prediction has no weight it isn't made: half the time, and bit for bit the prompt alone.
        if not guidance.acts_at(float(sigma)):
            return _sum(conditional(x, sigma), added, x, sigma)
        positive, negative = pair(x, sigma)
        if projection is not None:
            guided = projection(positive, negative, guidance.scale)
        elif guidance.thresholding is not None:
            guided = thresholded(positive, negative, guidance.scale, guidance.thresholding)
        else:
            guided = classifier_free(positive, negative, guidance.scale)
        guided = _sum(guided, added, x, sigma)
        # Converting there and back would round, so rescaling by nothing leaves the prediction alone.
        if guidance.rescale == 0:
            return guided
        return rescaled_denoised(guided, positive, x, sigma, guidance.rescale, parameterization, path)

    return denoise


def _sum(denoised: Tensor, added: Addition | None, x: Tensor, sigma: Tensor) -> Tensor:
    more = None if added is None else added(x, sigma)
    return denoised if more is None else denoised + more


def rescaled_denoised(
    guided: Tensor,
    conditional: Tensor,
    x: Tensor,
    sigma: Tensor,
    phi: float,
    parameterization: Parameterization,
    path: Path,
) -> Tensor:
    """`rescaled`, carried out in the space of the network's prediction (Lin et al. 2024, arXiv:2305.08891, eq. 16).

    Args:
        guided, conditional: denoised. [B, ...]
        x: the noisy state that both were predicted from. [B, ...]
        sigma: its noise level. []
        phi: share of the contrast that is restored, 0..1.
        parameterization, path: the network's own.
    """
    # The contrast of `denoised` is a picture's, that of eps or v mostly noise's: the factor differs.
    alpha, std = alpha_and_std(sigma, path)
    x_t = alpha.to(x) * x
    strong = convert(guided, x_t, alpha, std, "x0", parameterization)
    plain = convert(conditional, x_t, alpha, std, "x0", parameterization)
    return convert(rescaled(strong, plain, phi), x_t, alpha, std, parameterization, "x0")


def _std(x: Tensor) -> Tensor:
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)


def _same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ShapeMismatch(
            "predictions to guide", given=f"{tuple(first.shape)} and {tuple(second.shape)}", expected="equal shapes"
        )


def _finite(where: str, value: float, *, least: float = -math.inf, most: float = math.inf) -> None:
    if math.isfinite(value) and least <= value <= most:
        return
    bounds = "" if least == -math.inf else f" >= {least:g}" if most == math.inf else f" in [{least:g}, {most:g}]"
    raise InvalidInput(where, given=value, expected=f"a finite number{bounds}")
