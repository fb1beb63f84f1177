"""CFG++: guidance moves the estimate, and the step's noise is the unconditional prediction's (Chung et al. 2024,
arXiv:2406.08070).

With D the guided estimate and U the unconditional one, a step is D + sigma' (x - U) / sigma. Where U = D, without
guidance, each sampler here is the one without CFG++ in its name. The scale is the paper's lambda, mostly in [0, 1].
"""

from __future__ import annotations

import math

from torch import Tensor

from gouache.diffusion.samplers.common import add_noise, ancestral_split, euler_step, intervals, level
from gouache.diffusion.samplers.exponential import phi_2
from gouache.diffusion.samplers.step import Denoise, NoiseSource, Step, Steps


def euler_ancestral_cfg_pp(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    unconditional: Denoise | None = None,
    noise: NoiseSource | None = None,
) -> Steps:
    """CFG++, Algorithm 2 (Chung et al. 2024, arXiv:2406.08070), with the noise of equation 16 of DDIM (Song et al.
    2021, arXiv:2010.02502).

    Args:
        denoise: D(x, sigma), guided.
        x: the state at sigmas[0]. [B, ...]
        sigmas: descending noise levels. [n + 1]
        eta: share of fresh noise, >= 0; 0 is `euler_cfg_pp`.
        s_noise: scale of that noise.
        unconditional: U(x, sigma), the estimate without the condition; None: D's own, that is no guidance.
        noise: needed where eta > 0.
    """
    negative = unconditional or denoise
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        if sigma_next == 0:
            x = denoised
        else:
            other = denoised if unconditional is None else negative(x, level(sigma))
            down, up = ancestral_split(sigma, sigma_next, eta)
            x = add_noise(_guided_step(x, denoised, other, sigma, down), up, noise, sigma, sigma_next, s_noise=s_noise)
        yield Step(i, sigma, sigma_next, x, denoised)


def euler_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Tensor, *, unconditional: Denoise | None = None) -> Steps:
    """CFG++, Algorithm 2 (Chung et al. 2024, arXiv:2406.08070), without noise.

    Args: as `euler_ancestral_cfg_pp`, whose eta = 0 this is.
    """
    yield from euler_ancestral_cfg_pp(denoise, x, sigmas, eta=0.0, unconditional=unconditional)


def ddim_cfg_pp(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 0.0,
    unconditional: Denoise | None = None,
    noise: NoiseSource | None = None,
) -> Steps:
    """CFG++, Algorithm 2 (Chung et al. 2024, arXiv:2406.08070): `euler_ancestral_cfg_pp` with DDIM's eta.

    It is offered apart since its users give the scale of plain guidance, 12.5 times lambda.

    Args: as `euler_ancestral_cfg_pp`.
    """
    yield from euler_ancestral_cfg_pp(denoise, x, sigmas, eta=eta, unconditional=unconditional, noise=noise)


def dpmpp_2m_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Tensor, *, unconditional: Denoise | None = None) -> Steps:
    """`dpmpp_2m` (Algorithm 2 of Lu et al. 2022, arXiv:2211.01095) as a CFG++ step (Chung et al. 2024,
    arXiv:2406.08070): D is extrapolated from the unconditional estimate of the step before.

    Args: as `euler_cfg_pp`.
    """
    previous: Tensor | None = None
    h_last = 0.0
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        other = denoised if unconditional is None else unconditional(x, level(sigma))
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            x = _guided_step(x, denoised, other, sigma, sigma_next)
            if previous is not None:
                x = x - math.expm1(-h) * (h / (2 * h_last)) * (denoised - previous)
            h_last = h
        previous = other
        yield Step(i, sigma, sigma_next, x, denoised)


def dpmpp_2s_ancestral_cfg_pp(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    unconditional: Denoise | None = None,
    noise: NoiseSource | None = None,
) -> Steps:
    """`dpmpp_2s_ancestral` (Algorithm 1 of Lu et al. 2022, arXiv:2211.01095) on the unconditional estimate; the guiding
    difference D - U is added whole after the step, as CFG++ does (Chung et al. 2024, arXiv:2406.08070).

    Args: as `euler_ancestral_cfg_pp`; two calls a step.
    """
    negative = unconditional or denoise
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        if sigma_next == 0:
            x = denoised
        else:
            other = denoised if unconditional is None else negative(x, level(sigma))
            down, up = ancestral_split(sigma, sigma_next, eta)
            guiding = denoised - other
            if down > 0:
                middle = math.sqrt(sigma * down)
                other = negative(euler_step(x, other, sigma, middle), level(middle))
            x = add_noise(euler_step(x, other, sigma, down), up, noise, sigma, sigma_next, s_noise=s_noise) + guiding
        yield Step(i, sigma, sigma_next, x, denoised)


def res_multistep_ancestral_cfg_pp(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    unconditional: Denoise | None = None,
    noise: NoiseSource | None = None,
) -> Steps:
    """`res_multistep_ancestral` (section 4 of Zhang et al. 2023, arXiv:2308.02157) on the unconditional estimate, with
    the state first moved by the guiding difference D - U (CFG++, Chung et al. 2024, arXiv:2406.08070).

    Args: as `euler_ancestral_cfg_pp`.
    """
    previous: Tensor | None = None
    above = reached = 0.0  # the level before, and the one that its step was solved down to
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        other = denoised if unconditional is None else unconditional(x, level(sigma))
        down, up = ancestral_split(sigma, sigma_next, eta)
        if down == 0 or previous is None:
            x = denoised if down == 0 else _guided_step(x, denoised, other, sigma, down)
        else:
            h = math.log(sigma / down)
            share = phi_2(-h) * h / math.log(reached / above)
            x = euler_step(x + (denoised - other), other, sigma, down) + h * share * (previous - other)
        x = add_noise(x, up, noise, sigma, sigma_next, s_noise=s_noise)
        previous, above, reached = other if down > 0 else None, sigma, down
        yield Step(i, sigma, sigma_next, x, denoised)


def res_multistep_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Tensor, *, unconditional: Denoise | None = None) -> Steps:
    """`res_multistep_ancestral_cfg_pp` without noise (section 4 of Zhang et al. 2023, arXiv:2308.02157; CFG++, Chung
    et al. 2024, arXiv:2406.08070).

    Args: as `euler_cfg_pp`.
    """
    yield from res_multistep_ancestral_cfg_pp(denoise, x, sigmas, eta=0.0, unconditional=unconditional)


def gradient_estimation_cfg_pp(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, gamma: float = 2.0, unconditional: Denoise | None = None
) -> Steps:
    """`gradient_estimation` (Permenter & Yuan 2024, arXiv:2306.04848, section 5) on the unconditional slope, the step
    itself as in CFG++ (Chung et al. 2024, arXiv:2406.08070).

    Args:
        denoise, x, sigmas, unconditional: as `euler_cfg_pp`.
        gamma: weight of the newest slope against the one before.
    """
    previous: Tensor | None = None
    for i, sigma, sigma_next in intervals(sigmas):
        denoised = denoise(x, level(sigma))
        other = denoised if unconditional is None else unconditional(x, level(sigma))
        slope = (x - other) / sigma
        if sigma_next == 0:
            x = denoised
        else:
            x = denoised + sigma_next * slope
            if previous is not None:
                x = x + (gamma - 1) * (sigma_next - sigma) * (slope - previous)
        previous = slope
        yield Step(i, sigma, sigma_next, x, denoised)


def _guided_step(x: Tensor, denoised: Tensor, other: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """D + sigma' (x - U) / sigma."""
    return denoised + (sigma_next / sigma) * (x - other)
