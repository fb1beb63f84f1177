"""Loss weights: the published formulas for the published prediction, and one meaning for all predictions."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gouache.diffusion.loss_weights import (
    LOSS_SHAPES,
    LOSS_WEIGHTS,
    LossWeight,
    loss_weight,
    shaped,
    x0_error_factor,
)
from gouache.diffusion.noise_schedule import Path, alpha_and_std
from gouache.diffusion.parameterization import PARAMETERIZATIONS, Parameterization, convert
from gouache.errors import InvalidInput, UnknownName
from gouache.training.stage_tables import DenoisingTable

SIGMA = torch.tensor([0.05, 0.4, 1.0, 3.0, 20.0], dtype=torch.float64)
SNR = SIGMA**-2.0
ONE = torch.ones_like(SIGMA)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("min_snr", "x0", SNR.clamp(max=5)),
        ("min_snr", "eps", SNR.clamp(max=5) / SNR),
        ("min_snr", "v", SNR.clamp(max=5) / (SNR + 1)),
        ("truncated_snr", "x0", SNR.clamp(min=1)),
        ("truncated_snr", "eps", (1 / SNR).clamp(min=1)),
        ("p2", "eps", 1 / (1 + SNR)),
        ("debiased", "eps", 1 / SNR.sqrt()),
        ("debiased", "v", SNR.sqrt() / (SNR + 1)),
        ("edm", "x0", (SIGMA**2 + 0.25) / (SIGMA * 0.5) ** 2),
        ("uniform", "eps", ONE),
        ("uniform", "v", ONE),
    ],
)
def test_weights_are_the_published_ones(name: LossWeight, kind: Parameterization, expected: torch.Tensor) -> None:
    torch.testing.assert_close(loss_weight(name, SIGMA, kind, "vp"), expected)


def test_edms_weight_times_c_out_squared_is_one() -> None:
    # Karras et al. 2022, section 5: lambda = 1 / c_out^2.
    c_out = SIGMA * 0.5 / (SIGMA**2 + 0.25).sqrt()
    torch.testing.assert_close(loss_weight("edm", SIGMA, "x0", "ve") * c_out**2, ONE)


def test_parameters_of_min_snr_and_p2_are_honoured() -> None:
    torch.testing.assert_close(loss_weight("min_snr", SIGMA, "x0", "vp", gamma=2.0), SNR.clamp(max=2))
    torch.testing.assert_close(loss_weight("p2", SIGMA, "eps", "vp", gamma=0.5, k=3.0), (3 + SNR) ** -0.5)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([name for name in LOSS_WEIGHTS if name != "uniform"]),
    st.sampled_from(PARAMETERIZATIONS),
    st.sampled_from(["vp", "flow", "ve"]),
    st.floats(0.02, 50),
    st.integers(0, 2**31),
)
def test_the_weighted_loss_is_the_same_whatever_the_network_predicts(
    name: LossWeight, kind: Parameterization, path: Path, sigma: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_t, truth, guess = torch.randn(3, 1, 8, generator=generator, dtype=torch.float64)
    level = torch.tensor(sigma, dtype=torch.float64)
    alpha, std = alpha_and_std(level, path)
    errors = [convert(x0, x_t, alpha, std, "x0", kind) for x0 in (guess, truth)]
    loss = loss_weight(name, level, kind, path) * ((errors[0] - errors[1]) ** 2).sum()
    expected = loss_weight(name, level, "x0", path) * ((guess - truth) ** 2).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)


def test_losses_are_squares_of_small_errors_and_lengths_of_large_ones() -> None:
    small, large = torch.tensor([1e-5, -2e-5], dtype=torch.float64), torch.tensor([1e5, -3e5], dtype=torch.float64)
    torch.testing.assert_close(shaped("l2", large**2), large**2)
    torch.testing.assert_close(shaped("huber", small**2, c=0.1), small**2, rtol=1e-5, atol=0)
    torch.testing.assert_close(shaped("huber", large**2, c=0.1), 0.2 * large.abs(), rtol=1e-5, atol=0)
    torch.testing.assert_close(shaped("smooth_l1", small**2, c=0.1), 10 * small**2, rtol=1e-5, atol=0)
    torch.testing.assert_close(shaped("smooth_l1", large**2, c=0.1), 2 * large.abs(), rtol=1e-5, atol=0)
    slope = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    shaped("huber", slope.square(), c=0.4).backward()  # type: ignore[no-untyped-call]
    assert slope.grad is not None
    assert float(slope.grad) == pytest.approx(2 * 0.4 * 0.3 / 0.5)


def test_what_a_config_may_name_is_what_there_is() -> None:
    fields = DenoisingTable.model_fields
    assert get_args(fields["weight"].annotation) == LOSS_WEIGHTS
    assert get_args(fields["loss"].annotation) == LOSS_SHAPES


def test_factors_have_their_closed_forms() -> None:
    torch.testing.assert_close(x0_error_factor(SIGMA, "eps", "vp"), SNR)
    torch.testing.assert_close(x0_error_factor(SIGMA, "v", "vp"), SNR + 1)
    torch.testing.assert_close(x0_error_factor(SIGMA, "flow", "flow"), (1 + 1 / SIGMA) ** 2)


def test_bad_input_is_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'min_snr'"):
        loss_weight("min-snr", SIGMA, "eps", "vp")  # type: ignore[arg-type]
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidInput, match="sigma"):
            loss_weight("min_snr", torch.tensor([bad]), "eps", "vp")
    with pytest.raises(InvalidInput, match="gamma"):
        loss_weight("min_snr", SIGMA, "eps", "vp", gamma=0.0)
    with pytest.raises(UnknownName, match="huber"):
        shaped("hubert", SIGMA)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="> 0"):
        shaped("huber", SIGMA, c=0.0)
