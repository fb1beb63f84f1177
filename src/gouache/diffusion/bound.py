"""The variational bound, term by term, and the losses made from it.

    L_vlb = L_T + sum_{t=1}^{T-1} L_t + L_0
    L_T = KL(q(x_T | x0) || N(0, I))
    L_t = KL(q(x_{t-1} | x_t, x0) || p_theta(x_{t-1} | x_t))
    L_0 = -log p_theta(x0 | x_1)

(Ho et al. 2020, arXiv:2006.11239, equation 5.) Indices here count from 0, so term t is that of the step from level t
down to t - 1, and term 0 is the decoder. All is in nats, summed over a picture, unless it says bits per dimension.

The variational bound in continuous time: -log p(x0) as an integral of the denoiser's error over all noise levels.

    -log p(x0) <= KL(q(x | x0; sigma_max) || N(0, sigma_max^2)) + E[-log N(x0; D, sigma_min^2)]
                  + integral over log sigma of E |x0 - D(x0 + sigma eps, sigma)|^2 / sigma^2

(Kingma et al. 2021, arXiv:2107.00630, equations 11 and 15, with SNR = 1 / sigma^2, so that -dSNR / 2 = d log sigma /
sigma^2.) It holds for every schedule and parameterization alike, needs no backward pass, and costs one call of the
denoiser per noise level.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gouache.diffusion.chain import ForwardProcess, Gaussian, Predict, Variance, reverse_step
from gouache.diffusion.parameterization import Prediction
from gouache.diffusion.samplers.step import Denoise
from gouache.errors import InvalidInput, ShapeMismatch, unknown_name

DecoderKind = Literal["discrete", "continuous"]
DECODERS: tuple[DecoderKind, ...] = get_args(DecoderKind)


def prior_term(process: ForwardProcess, x0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x0) || N(0, I)) (Ho et al. 2020, equation 5). x0 [B, ...] -> [B] nats"""
    last = process.marginal(x0, process.num_timesteps - 1)
    return last.kl(Gaussian(torch.zeros_like(x0), torch.zeros_like(x0))).flatten(1).sum(1)


def discretised_log_likelihood(x0: Tensor, decoder: Gaussian, levels: int = 256) -> Tensor:
    """log of the Gaussian's mass in the bin of each value (Ho et al. 2020, arXiv:2006.11239, equation 13).

    The bins have width 2 / (levels - 1) around the values k * 2 / (levels - 1) - 1; the outermost reach to infinity.

    Args:
        x0: values in [-1, 1] on the grid of `levels`. [B, ...]
        decoder: p(x0 | x_1).
        levels: 256 for 8-bit pictures.

    Returns:
        nats per component. [B, ...]
    """
    if levels < 2:
        raise InvalidInput("levels", given=levels, expected="an integer >= 2")
    if not bool((x0.abs() <= 1 + 1e-6).all()):
        raise InvalidInput("x0", given="values outside", expected="values in [-1, 1]")
    half = 1 / (levels - 1)
    scale = (decoder.log_variance / 2).exp()
    upper, lower = (x0 + half - decoder.mean) / scale, (x0 - half - decoder.mean) / scale
    # Mirror so that both ends lie where log_ndtr is accurate: mass = cdf(high) - cdf(low) = cdf(-low) - cdf(-high).
    mirror = upper + lower > 0
    high, low = torch.where(mirror, -lower, upper), torch.where(mirror, -upper, lower)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    inside = log_high + torch.log1p(-(log_low - log_high).clamp(max=-1e-30).exp())
    first, last = x0 <= -1 + half, x0 >= 1 - half
    return torch.where(first, torch.special.log_ndtr(upper), torch.where(last, torch.special.log_ndtr(-lower), inside))


def vlb_term(
    process: ForwardProcess,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    prediction: Prediction,
    variance: Variance,
    decoder: DecoderKind = "discrete",
) -> Tensor:
    """L_t for t >= 1 and L_0 for t = 0 (Ho et al. 2020, arXiv:2006.11239, equation 5).

    Args:
        process: the chain.
        x0, x_t: data and the draw from q(x_t | x0). [B, ...]
        t: integers in [0, T). [B]
        prediction: the network's word at (x_t, t).
        variance: the reverse step's.
        decoder: L_0 by bins of 8-bit values, or by the Gaussian's density.

    Returns:
        [B] nats.
    """
    if decoder not in DECODERS:
        raise unknown_name("decoder", str(decoder), DECODERS)
    model = reverse_step(process, prediction, x_t, t, variance)
    divergence = process.posterior(x0, x_t, t).kl(model).flatten(1).sum(1)
    first = (t == 0).to(divergence.device)
    if not bool(first.any()):
        return divergence
    log_p = discretised_log_likelihood(x0, model) if decoder == "discrete" else model.log_density(x0)
    return torch.where(first, -log_p.flatten(1).sum(1), divergence)


@dataclass(frozen=True, slots=True)
class VariationalBound:
    """L_vlb of each picture, an upper bound of -log p(x0).

    Attributes:
        terms: L_0, L_1, ..., L_{T-1}. [B, T] nats
        prior: L_T. [B] nats
        dimensions: numbers in one picture.
    """

    terms: Tensor
    prior: Tensor
    dimensions: int

    @property
    def total(self) -> Tensor:
        """The bound. [B] nats"""
        return self.terms.sum(1) + self.prior

    @property
    def bits_per_dimension(self) -> Tensor:
        """The bound in bits per dimension; with the discrete decoder, of the 8-bit picture. [B]"""
        return bits_per_dimension(self.total, self.dimensions)


def variational_bound(
    process: ForwardProcess,
    x0: Tensor,
    predict: Predict,
    noises: Iterable[Tensor],
    *,
    variance: Variance = "fixed_small",
    decoder: DecoderKind = "discrete",
) -> VariationalBound:
    """L_vlb with one draw of x_t per term (Ho et al. 2020, equation 5; Nichol & Dhariwal 2021, equations 4-7).

    Args:
        process: the chain; T network calls are made.
        x0: [B, ...]
        predict: the network.
        noises: at least T standard normal tensors of x0's shape, one per term.
        variance, decoder: as in `vlb_term`.

    Raises:
        InvalidInput: there are fewer noises than terms.
    """
    terms: list[Tensor] = []
    for t, noise in zip(range(process.num_timesteps), noises, strict=False):
        times = torch.full((len(x0),), t, dtype=torch.long)
        x_t = process.diffuse(x0, times, noise)
        terms.append(vlb_term(process, x0, x_t, times, predict(x_t, times), variance, decoder))
    if len(terms) < process.num_timesteps:
        raise InvalidInput("noises", given=len(terms), expected=f"{process.num_timesteps}, one per term")
    return VariationalBound(torch.stack(terms, 1), prior_term(process, x0), math.prod(x0.shape[1:]))


def simple_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """L_simple: each picture's mean squared error (Ho et al. 2020, arXiv:2006.11239, equation 14). [B, ...] -> [B]"""
    if prediction.shape != target.shape:
        raise ShapeMismatch("prediction", given=tuple(prediction.shape), expected=f"{tuple(target.shape)}")
    return ((prediction - target) ** 2).flatten(1).mean(1)


def hybrid_loss(
    process: ForwardProcess,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    prediction: Prediction,
    simple: Tensor,
    *,
    weight: float = 0.001,
    decoder: DecoderKind = "continuous",
) -> Tensor:
    """L_hybrid = L_simple + weight L_vlb (Nichol & Dhariwal 2021, arXiv:2102.09672, equation 16).

    L_vlb is estimated by T times the term of the drawn t, in bits per dimension; its gradient reaches the variance
    only, the mean learns from L_simple.

    Args:
        process, x0, x_t, t: as in `vlb_term`.
        prediction: with the network's interpolation.
        simple: L_simple of the same draw. [B]
        weight: the paper's lambda.
        decoder: the paper's pixels are discrete; latents are continuous.

    Returns:
        [B]
    """
    mean_fixed = Prediction(prediction.x0.detach(), prediction.interpolation)
    term = vlb_term(process, x0, x_t, t, mean_fixed, "learned", decoder)
    return simple + weight * process.num_timesteps * bits_per_dimension(term, math.prod(x0.shape[1:]))


def bits_per_dimension(nats: Tensor, dimensions: int, bin_width: float | None = None) -> Tensor:
    """nats / (D log 2), and minus log2(bin_width) if nats is a density's (Theis et al. 2016, arXiv:1511.01844, section
    3.1).

    Args:
        nats: negative log-likelihood of each picture. [B]
        dimensions: D, numbers in one picture.
        bin_width: for a continuous density: the width of one level, 2 / 256 for 8-bit values spread over [-1, 1].
            None if nats is already that of discrete values.
    """
    if dimensions < 1:
        raise InvalidInput("dimensions", given=dimensions, expected="an integer >= 1")
    bits = nats / (dimensions * math.log(2))
    return bits if bin_width is None else bits - math.log2(bin_width)


@dataclass(frozen=True, slots=True)
class ContinuousBound:
    """The bound of each picture, in nats, by its three parts.

    Attributes:
        integral: over the noise levels. [B]
        decoder: -log N(x0; D, sigma_min^2) at the least noise. [B]
        prior: KL at the most noise. [B]
        dimensions: numbers in one picture.
    """

    integral: Tensor
    decoder: Tensor
    prior: Tensor
    dimensions: int

    @property
    def total(self) -> Tensor:
        """Upper bound of -log p(x0), a density's. [B] nats"""
        return self.integral + self.decoder + self.prior

    @property
    def bits(self) -> Tensor:
        """The same in bits. [B]"""
        return self.total / math.log(2)


def stratified_sigmas(sigma_min: float, sigma_max: float, offsets: Sequence[float]) -> Tensor:
    """One noise level in each of as many equal strata of log sigma as there are offsets in [0, 1): the low-variance
    sampler of Kingma et al. 2021 (arXiv:2107.00630, appendix I.1), each stratum with its own offset.

    Returns:
        [K] fp64, ascending.
    """
    if not (0 < sigma_min < sigma_max and math.isfinite(sigma_max)):
        raise InvalidInput("sigma_min, sigma_max", given=(sigma_min, sigma_max), expected="0 < sigma_min < sigma_max")
    if not offsets or any(not 0 <= offset < 1 for offset in offsets):
        raise InvalidInput("offsets", given=len(offsets), expected="one or more numbers in [0, 1)")
    places = (torch.arange(len(offsets), dtype=torch.float64) + torch.tensor(offsets, dtype=torch.float64)) / len(
        offsets
    )
    return (math.log(sigma_min) + places * math.log(sigma_max / sigma_min)).exp()


def continuous_bound(
    denoise: Denoise, x0: Tensor, sigmas: Tensor, noises: Tensor, *, sigma_min: float, sigma_max: float
) -> ContinuousBound:
    """An unbiased estimate of the bound (Kingma et al. 2021, arXiv:2107.00630, equations 11 and 15).

    With the same levels and noises two conditions are compared with far less noise than either has.

    Args:
        denoise: D(x, sigma).
        x0: data. [B, ...]
        sigmas: from `stratified_sigmas` with these ends. [K]
        noises: standard normal, one for each level and one more for the decoder's term. [K+1, B, ...]
        sigma_min, sigma_max: ends of the integral.
    """
    if noises.shape != (len(sigmas) + 1, *x0.shape):
        raise ShapeMismatch(
            "noises", given=tuple(noises.shape), expected=f"({len(sigmas) + 1}, {', '.join(map(str, x0.shape))})"
        )
    total = x0.new_zeros(len(x0))
    for sigma, noise in zip(sigmas, noises[1:], strict=True):
        total = total + _squared_error(denoise, x0, sigma, noise) / float(sigma) ** 2
    width = math.log(sigma_max / sigma_min)
    least = torch.tensor(sigma_min, dtype=torch.float64)
    error = _squared_error(denoise, x0, least, noises[0])
    dimensions = math.prod(x0.shape[1:])
    decoder = error / (2 * sigma_min**2) + dimensions * math.log(2 * math.pi * sigma_min**2) / 2
    prior = x0.square().flatten(1).sum(1) / (2 * sigma_max**2)
    return ContinuousBound(total * width / len(sigmas), decoder, prior, dimensions)


def _squared_error(denoise: Denoise, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """|x0 - D(x0 + sigma eps, sigma)|^2 of each picture. [B]"""
    x = x0 + float(sigma) * noise
    return (x0 - denoise(x, sigma)).square().flatten(1).sum(1)
