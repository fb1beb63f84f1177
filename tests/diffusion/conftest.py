"""Closed-form oracles for the mathematics: distributions whose denoiser, score and density are known exactly.

For a type annotation in a test module: `if TYPE_CHECKING: from tests.diffusion.conftest import GaussianMixture`.
"""

from __future__ import annotations

import importlib
import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianMixture:
    """sum_k weights[k] N(means[k], diag(stds[k]^2)), seen through x = x0 + sigma * eps. fp64.

    `denoise` is a `Denoise` for samplers: x [B, *E], sigma a scalar tensor (or [B]) -> E[x0 | x].
    """

    weights: Tensor  # [K]
    means: Tensor  # [K, *E]
    stds: Tensor  # [K, *E]

    def _parts(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Log of weights[k] N(x; ...) [B, K]; offsets x - means [B, K, *E]; variances at sigma [B or 1, K, *E]."""
        level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, *(1 for _ in self.means.shape[1:]))  # [B|1,1,1..]
        variances = self.stds.to(x) ** 2 + level**2  # [B|1, K, *E]
        offsets = x[:, None] - self.means.to(x)  # [B, K, *E]
        exponents = -(offsets**2 / variances + (2 * math.pi * variances).log()) / 2  # [B, K, *E]
        return exponents.flatten(2).sum(-1) + self.weights.to(x).log(), offsets, variances

    def log_density(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """log p(x; sigma) in nats. [B]"""
        return self._parts(x, sigma)[0].logsumexp(1)

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x0 | x0 + sigma eps = x]. [B, *E]"""
        logs, offsets, variances = self._parts(x, sigma)
        shares = logs.softmax(1).reshape(*logs.shape, *(1 for _ in self.means.shape[1:]))  # [B, K, 1..]
        return (shares * (self.means.to(x) + self.stds.to(x) ** 2 / variances * offsets)).sum(1)

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Gradient of log p(x; sigma), from its own formula rather than from `denoise`. [B, *E]"""
        logs, offsets, variances = self._parts(x, sigma)
        shares = logs.softmax(1).reshape(*logs.shape, *(1 for _ in self.means.shape[1:]))
        return (shares * (-offsets / variances)).sum(1)

    def sample(self, number: int, generator: torch.Generator, sigma: float = 0.0) -> Tensor:
        """Draw from p(x; sigma). [number, *E] fp64"""
        which = torch.multinomial(self.weights, number, replacement=True, generator=generator)
        noise = torch.randn((number, *self.means.shape[1:]), generator=generator, dtype=torch.float64)
        return self.means[which] + (self.stds[which] ** 2 + sigma**2).sqrt() * noise

    @property
    def mean(self) -> Tensor:
        """Mean of the data, flattened. [D]"""
        return self.weights @ self.means.flatten(1)

    @property
    def covariance(self) -> Tensor:
        """Covariance of the data, flattened. [D, D]"""
        means, variances = self.means.flatten(1), self.stds.flatten(1) ** 2
        second = torch.einsum("k,ki,kj->ij", self.weights, means, means) + torch.diag(self.weights @ variances)
        return second - torch.outer(self.mean, self.mean)


@dataclass(frozen=True)
class OneGaussian(GaussianMixture):
    """A mixture of one: its probability-flow ODE has a closed-form solution."""

    def flow(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """The ODE dx/dsigma = (x - D) / sigma carried exactly from sigma to sigma_next. [B, *E]"""
        mean, variance = self.means[0].to(x), self.stds[0].to(x) ** 2
        return mean + (x - mean) * ((variance + sigma_next**2) / (variance + sigma**2)).sqrt()


@pytest.fixture(scope="session")
def mixture() -> GaussianMixture:
    """Three lopsided components in the plane: E = (2,)."""
    return GaussianMixture(
        weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        means=torch.tensor([[0.8, 0.4], [-0.9, 0.1], [0.2, -1.1]], dtype=torch.float64),
        stds=torch.tensor([[0.3, 0.2], [0.15, 0.35], [0.25, 0.25]], dtype=torch.float64),
    )


@pytest.fixture(scope="session")
def picture_mixture() -> GaussianMixture:
    """Two components over latents: E = (4, 2, 2)."""
    generator = torch.Generator().manual_seed(3)
    return GaussianMixture(
        weights=torch.tensor([0.6, 0.4], dtype=torch.float64),
        means=torch.randn(2, 4, 2, 2, generator=generator, dtype=torch.float64),
        stds=torch.rand(2, 4, 2, 2, generator=generator, dtype=torch.float64) * 0.4 + 0.2,
    )


@pytest.fixture(scope="session")
def gaussian() -> OneGaussian:
    """One Gaussian in the plane, E = (2,), with the exact solution of its ODE."""
    return OneGaussian(
        weights=torch.ones(1, dtype=torch.float64),
        means=torch.tensor([[0.5, -0.3]], dtype=torch.float64),
        stds=torch.tensor([[0.6, 0.25]], dtype=torch.float64),
    )


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh CPU generator, always the same."""
    return torch.Generator().manual_seed(20240229)


class InDoubles(types.ModuleType):
    """A module, but its float32 is its float64."""

    def __init__(self, module: types.ModuleType) -> None:
        super().__init__(module.__name__)
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, "float64" if name == "float32" else name)


@pytest.fixture
def read_in_fp64(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], types.ModuleType]:
    """Make a module of diffusers work in fp64 where it says fp32, so that methods and not roundings are compared."""

    def read(name: str) -> types.ModuleType:
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "torch", InDoubles(torch))
        monkeypatch.setattr(module, "np", InDoubles(np))
        return module

    return read
