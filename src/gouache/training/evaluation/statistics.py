"""Bootstrap intervals (Efron & Tibshirani 1993, chapters 13 and 16), and kernel inception distances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gouache.errors import InvalidInput, ShapeMismatch

RESAMPLES = 2000
LEVEL = 0.95
Values = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its interval.

    Attributes:
        value: the figure.
        low, high: ends of the interval.
        count: independent items it was measured on.
    """

    value: float
    low: float
    high: float
    count: int

    @property
    def significant(self) -> bool:
        """For a difference: whether the interval leaves out zero."""
        return not self.low <= 0 <= self.high


def bootstrap_mean(values: Values, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval:
    """The mean of independent values, with the percentile interval (Efron & Tibshirani 1993, equation 13.5).

    Raises:
        InvalidInput: no values, or one is not finite.
    """
    array = _checked(values)
    weights = resample_counts(len(array), seed=seed, resamples=resamples) / len(array)
    return _interval(float(array.mean()), weights @ array, len(array), level)


def bootstrap_share(values: Values, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval:
    """A share of hits, from values 0 and 1: as `bootstrap_mean`, but where all are alike, and resamples can't differ,
    the exact bound on the other side (Clopper & Pearson 1934).

    Raises:
        InvalidInput: another value than 0 or 1, or as `bootstrap_mean`.
    """
    array = _checked(values)
    if not np.isin(array, (0.0, 1.0)).all():
        raise InvalidInput("values", given="others", expected="0 and 1 only")
    value, count = float(array.mean()), len(array)
    bound = ((1 - level) / 2) ** (1 / count)  # the share of hits at which `count` hits in a row are that rare
    if value == 1:
        return Interval(1.0, bound, 1.0, count)
    if value == 0:
        return Interval(0.0, 0.0, 1 - bound, count)
    return bootstrap_mean(array, seed=seed, resamples=resamples, level=level)


def bootstrap_difference(
    first: Values, second: Values, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Mean of first - second over the same items: the items are drawn in pairs.

    Raises:
        InvalidInput: the two have different lengths, or as `bootstrap_mean`.
    """
    a, b = _checked(first), _checked(second)
    if len(a) != len(b):
        raise InvalidInput("paired values", given=f"{len(a)} and {len(b)}", expected="as many of both")
    return bootstrap_mean(a - b, seed=seed, resamples=resamples, level=level)


def bootstrap(
    count: int,
    statistic: Callable[[NDArray[np.float64]], float],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Any statistic that is a function of how often each item was drawn.

    Args:
        count: items.
        statistic: from weights [count] that sum to `count` to a number; all ones is the sample itself.
    """
    weights = resample_counts(count, seed=seed, resamples=resamples)
    drawn = np.array([statistic(row) for row in weights])
    return _interval(statistic(np.ones(count)), drawn, count, level)


def resample_counts(count: int, *, seed: int, resamples: int) -> NDArray[np.float64]:
    """How often each of `count` items is drawn in each resample [resamples, count]; every row sums to `count`."""
    if count < 1 or resamples < 1:
        raise InvalidInput("count, resamples", given=(count, resamples), expected="both at least 1")
    generator = np.random.default_rng(seed)
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def _interval(value: float, drawn: NDArray[np.float64], count: int, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), count)


def _checked(values: Values) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise InvalidInput("values", given=f"shape {array.shape}", expected="at least one finite number")
    return array


Array = NDArray[np.float64]
KID_RESAMPLES = 500


def polynomial_kernel(x: Array, y: Array) -> Array:
    """k(x, y) = (x.y / D + 1)^3 (Binkowski et al. 2018, arXiv:1801.01401, section 4). [N,D], [M,D] -> [N,M]"""
    kernel: Array = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def squared_mmd(xx: Array, yy: Array, xy: Array, x_weights: Array, y_weights: Array) -> float:
    """The unbiased squared maximum mean discrepancy (Gretton et al. 2012, equation 3), with weighted items.

    An item never meets itself, however often a resample drew it: else every repetition would look like similarity.

    Args:
        xx, yy, xy: kernel between the items of the two sets. [N,N], [M,M], [N,M]
        x_weights, y_weights: how often each item counts; all ones is the plain estimate. [N], [M]
    """
    return float(
        _mean_without_self(xx, x_weights)
        + _mean_without_self(yy, y_weights)
        - 2 * x_weights @ xy @ y_weights / (x_weights.sum() * y_weights.sum())
    )


def kid(pictures: Array, reference: Array, *, seed: int = 0, resamples: int = KID_RESAMPLES) -> Interval:
    """KID between two sets of features, unbiased, so it may be below zero; the interval resamples both sets.

    Args:
        pictures, reference: features. [N,D], [M,D]; both at least two rows.

    Raises:
        ShapeMismatch: the widths differ.
        InvalidInput: fewer than two pictures on a side, or features that are not finite.
    """
    x, y = np.asarray(pictures, np.float64), np.asarray(reference, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ShapeMismatch("features", given=f"{x.shape} and {y.shape}", expected="[N,D] and [M,D]")
    if min(len(x), len(y)) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InvalidInput("features", given=f"{len(x)} and {len(y)} rows", expected="two or more, all finite")
    xx, yy, xy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    other = np.random.default_rng(seed + 1)

    def statistic(weights: Array) -> float:
        # All ones is the sample itself; every resample of the pictures comes with one of the reference.
        plain = bool((weights == 1).all())
        drawn = np.ones(len(y)) if plain else other.multinomial(len(y), np.full(len(y), 1 / len(y))).astype(np.float64)
        return squared_mmd(xx, yy, xy, weights, drawn)

    return bootstrap(len(x), statistic, seed=seed, resamples=resamples)


def kid_difference(
    first: Array, second: Array, reference: Array, *, seed: int = 0, resamples: int = KID_RESAMPLES
) -> Interval:
    """KID of `first` minus KID of `second` to one reference; row k of both was made for one prompt, and they are drawn
    together. Below zero: the first is nearer.

    Args:
        first, second, reference: features. [N,D], [N,D], [M,D]
    """
    if first.shape != second.shape:
        raise ShapeMismatch("paired features", given=f"{first.shape} and {second.shape}", expected="the same shape")
    a, b, y = (np.asarray(features, np.float64) for features in (first, second, reference))
    kernels = [(polynomial_kernel(x, x), polynomial_kernel(x, y)) for x in (a, b)]

    def statistic(weights: Array) -> float:
        # The reference's own term is in both and falls out; a fixed reference is part of the question.
        values = [
            _mean_without_self(xx, weights) - 2 * float((weights @ xy).mean()) / weights.sum() for xx, xy in kernels
        ]
        return float(values[0] - values[1])

    return bootstrap(len(a), statistic, seed=seed, resamples=resamples)


def _mean_without_self(kernel: Array, weights: Array) -> float:
    diagonal = weights**2
    pairs = weights.sum() ** 2 - diagonal.sum()
    return float((weights @ kernel @ weights - diagonal @ np.diag(kernel)) / pairs) if pairs else 0.0
