"""Bootstrap intervals (Efron & Tibshirani 1993, chapters 13 and 16)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gouache.errors import InvalidInput

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
