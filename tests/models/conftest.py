"""What the tests of the networks share: seeded draws, and the measure of agreement."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Random weights and inputs are the same in every run, and nothing leaks out of a test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Agreement:
    """Asserts that two tensors agree, measured in the reference's own standard deviation."""

    def __call__(self, ours: Tensor, theirs: Tensor, bound: float = 1e-4) -> None:
        assert ours.shape == theirs.shape
        assert torch.isfinite(theirs).all()
        spread = theirs.std().item()
        assert spread > 0, "the reference is constant, agreement would say nothing"
        difference = (ours - theirs).abs().max().item() / spread
        assert difference <= bound, f"differs by {difference:.2e} standard deviations, more than {bound:.0e}"


@pytest.fixture
def agree() -> Agreement:
    return Agreement()
