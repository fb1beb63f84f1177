"""IBM Model 1 on phrases whose dictionary is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from gouache.errors import InvalidInput
from gouache.training.batches.translations import align, expected_rows

PAIRS = [((10 + a, 10 + b), (a, b)) for a, b in itertools.permutations(range(5), 2)]
"""Source token 10 + k means target k; every phrase has two words, so one phrase alone tells nothing."""


def test_every_word_finds_its_meaning() -> None:
    table = align(PAIRS, rounds=15)
    for k in range(5):
        assert max(table[10 + k], key=table[10 + k].__getitem__) == k
        assert table[10 + k][k] > 0.95


def test_the_first_round_is_what_can_be_counted_by_hand() -> None:
    """Two phrases (a b | x y), (a | x): from the uniform start each target word is shared out in equal parts, so
    c(x|a) = 1/2 + 1 and c(y|a) = 1/2, which gives t(x|a) = 3/4; b has 1/2 of each."""
    table = align([((1, 2), (7, 8)), ((1,), (7,))], rounds=1)
    assert table[1] == pytest.approx({7: 0.75, 8: 0.25})
    assert table[2] == pytest.approx({7: 0.5, 8: 0.5})


def test_probabilities_add_up_and_the_likelihood_never_falls() -> None:
    before = -math.inf
    for rounds in range(1, 7):
        table = align(PAIRS, rounds=rounds)
        assert all(sum(row.values()) == pytest.approx(1) for row in table.values())
        likelihood = sum(math.log(sum(table[s][t] for s in source)) for source, target in PAIRS for t in target)
        assert likelihood >= before - 1e-12
        before = likelihood


def test_rows_are_means_under_the_alignment() -> None:
    words = torch.tensor([[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]])
    rows = expected_rows([5, 6], {5: {0: 0.25, 1: 0.75}}, words)
    assert rows[0].tolist() == [0.25, 1.5]
    assert torch.allclose(rows[1], words.mean(0))


def test_no_rounds_are_refused() -> None:
    with pytest.raises(InvalidInput, match="rounds"):
        align(PAIRS, rounds=0)
