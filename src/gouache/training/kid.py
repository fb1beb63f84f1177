"""Kernel inception distance: how far apart two sets of pictures are, in the features of a judge."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gouache.errors import InvalidInput, ShapeMismatch
from gouache.training.bootstrap import Interval, bootstrap

Array = NDArray[np.float64]
RESAMPLES = 500


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


def kid(pictures: Array, reference: Array, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
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
    first: Array, second: Array, reference: Array, *, seed: int = 0, resamples: int = RESAMPLES
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
