"""Power-function averages of the weights, several lengths at once, and the post-hoc choice among them.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv 2312.02696), section 3
and appendix C. The profile of a power average grows with training time, so that one relative width sigma_rel is right
early and late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gouache.errors import InvalidInput
from gouache.nn.torch_private import lerp_all_
from gouache.training.sharding import local

Weights = dict[str, Tensor]


def gamma_of(sigma_rel: float) -> float:
    """Exponent of the average whose profile has the relative width `sigma_rel` (equation 126: a cubic's largest root).

    Args:
        sigma_rel: standard deviation of the profile over training time, 0 < sigma_rel < 0.289 (the uniform average).
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise InvalidInput("ema length", given=sigma_rel, expected="a relative width between 0 and 0.288")
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def beta(gamma: float, step: int) -> float:
    """Weight of the old average at `step` (from 1): (1 - 1/step) ** (gamma + 1)  (equation 127)."""
    return float((1 - 1 / step) ** (gamma + 1))


class PowerEma:
    """The averages of one network's floating-point weights.

    Attributes:
        averages: for every relative width, the averaged weights by name.
    """

    def __init__(self, network: nn.Module, lengths: Sequence[float]) -> None:
        self.gammas = {length: gamma_of(length) for length in lengths}
        self.averages: dict[float, Weights] = {
            length: {name: value.detach().clone() for name, value in network.state_dict().items()} for length in lengths
        }

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Mix the network's weights into every average; `step` counts optimizer steps from 1.

        Of sharded weights every process averages its own slices.
        """
        # Buffers of whole numbers have no meaningful average: the newest value is kept.
        current = network.state_dict()
        names = [name for name, value in current.items() if value.is_floating_point()]
        new = [local(current[name]) for name in names]
        for length, average in self.averages.items():
            weight = 1 - beta(self.gammas[length], step)
            # One fused call: thousands of small launches would cost more than the arithmetic.
            lerp_all_([local(average[name]) for name in names], new, weight)
            for name in current.keys() - set(names):
                average[name].copy_(current[name])


def profile_product(gamma_a: float, time_a: float, gamma_b: float, time_b: float) -> float:
    """Inner product of two profiles p(t) = (gamma + 1) t^gamma / T^(gamma + 1) on [0, T] (appendix C, equation 150)."""
    (earlier, _), (time, gamma_later) = sorted([(time_a, gamma_a), (time_b, gamma_b)])
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return float(scale * (earlier / time) ** gamma_later / time)


def synthesis_weights(
    gammas: Sequence[float], times: Sequence[float], wanted_gamma: float, wanted_time: float
) -> np.ndarray:
    """Weights by which stored averages add up to the wanted one: least squares over profiles (algorithm 3)."""
    gram = np.array(
        [
            [profile_product(a, s, b, t) for b, t in zip(gammas, times, strict=True)]
            for a, s in zip(gammas, times, strict=True)
        ]
    )
    right = np.array([profile_product(a, s, wanted_gamma, wanted_time) for a, s in zip(gammas, times, strict=True)])
    solution: np.ndarray = np.linalg.lstsq(gram, right, rcond=None)[0]
    return solution


def synthesise(snapshots: Sequence[tuple[float, float, Mapping[str, Tensor]]], length: float, time: float) -> Weights:
    """Build the average of any relative width after training (post-hoc EMA, section 3.2).

    Args:
        snapshots: (relative width, time of the snapshot, averaged weights); two widths at several times.
        length: the wanted relative width.
        time: the wanted end of the profile, at most the last snapshot's time.
    """
    if not snapshots:
        raise InvalidInput("snapshots", given="none", expected="at least one stored average")
    weights = synthesis_weights(
        [gamma_of(width) for width, _, _ in snapshots], [when for _, when, _ in snapshots], gamma_of(length), time
    )
    result = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in snapshots[0][2].items()}
    for weight, (_, _, average) in zip(weights, snapshots, strict=True):
        for name, value in average.items():
            result[name] += float(weight) * value.double()
    return {name: value.to(snapshots[0][2][name].dtype) for name, value in result.items()}
