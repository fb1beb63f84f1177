"""Brownian motion as a binary tree of seeds, so that a seed alone decides the whole path, whatever points are asked.

The construction is the virtual Brownian tree (Gaines & Lyons 1997, "Variable step size control in the numerical
solution of stochastic differential equations", section 4; Li et al. 2020, arXiv:2001.01328, appendix E), halved down to
a tolerance. The seeds of its nodes are those of the torchsde package (2021), whose tree k-diffusion's SDE samplers,
A1111 and ComfyUI ask for noise: with them a path here is the path there, bit for bit. Painting needs this one class of
the package, and so doesn't depend on it; the tests do, as a judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gouache.errors import InvalidInput

TOLERANCE_DIGITS = 6
"""Times are rounded to so many decimals; the tree is no deeper than that needs (torchsde's tolerance 1e-6)."""
POOL_SIZE = 24
"""Words of entropy that numpy's SeedSequence mixes for a node."""

Draw = Callable[[int, Sequence[int]], Tensor]
"""(seed, shape) -> the standard normal numbers of a fresh generator with that seed, fp32 on the CPU."""


@dataclass(slots=True)
class _Node:
    """One interval of time and the path's increment over it.

    Attributes:
        start, end: rounded times.
        key, depth: place in the tree: the root is 0, 0; a left child has twice its parent's key, a right one 1 more.
        increment: W(end) - W(start).
        left, right: the halves, once someone asked for a point inside.
    """

    start: float
    end: float
    key: int
    depth: int
    increment: Tensor
    left: _Node | None = None
    right: _Node | None = None


class BrownianTree:
    """One path W of Brownian motion between two times (Li et al. 2020, arXiv:2001.01328, appendix E).

    Args:
        seed: decides the path.
        draw: the source of normal numbers.
        shape: of one value of the path.
        low, high: first and last time, low < high.
    """

    def __init__(self, seed: int, draw: Draw, shape: Sequence[int], low: float, high: float) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InvalidInput("times of a Brownian path", given=(low, high), expected="two finite times, low < high")
        self._seed, self._draw, self._shape = seed, draw, tuple(shape)
        first = np.random.SeedSequence(entropy=seed, pool_size=POOL_SIZE).generate_state(3)
        whole = draw(int(first[0]), self._shape) * math.sqrt(high - low)
        self._root = _Node(_rounded(low), _rounded(high), 0, 0, whole)

    def __call__(self, start: float, end: float) -> Tensor:
        """W(end) - W(start), start < end; times outside the path's are taken as its nearest. fp32, [shape]"""
        root = self._root
        start, end = (min(max(_rounded(time), root.start), root.end) for time in (start, end))
        if end <= start:
            return torch.zeros(self._shape)
        parts = self._parts(root, start, end)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def forget_above(self, time: float) -> None:
        """Drop what is known of the path later than this; it comes back the same if it is asked for again."""
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            if node.start >= time:
                node.left = node.right = None
            nodes += [child for child in (node.left, node.right) if child is not None]

    def _parts(self, node: _Node, start: float, end: float) -> list[Tensor]:
        """Increments of the nodes that make up the interval, in order."""
        if (start, end) == (node.start, node.end):
            return [node.increment]
        left, right = self._halves(node)
        if not node.start < left.end < node.end:
            # Neither half is narrower than the whole: this is as fine as rounded times go.
            return [node.increment]
        if end <= left.end:
            return self._parts(left, start, end)
        if start >= left.end:
            return self._parts(right, start, end)
        return [*self._parts(left, start, left.end), *self._parts(right, left.end, end)]

    def _halves(self, node: _Node) -> tuple[_Node, _Node]:
        """Both children: W in the middle is drawn from the Brownian bridge between the ends."""
        if node.left is None or node.right is None:
            middle = _rounded(0.5 * (node.end + node.start))
            spawned = np.random.SeedSequence(
                entropy=self._seed, spawn_key=(node.key, node.depth), pool_size=POOL_SIZE
            ).generate_state(4)
            before, after, per_whole = middle - node.start, node.end - middle, 1 / (node.end - node.start)
            noise = self._draw(int(spawned[0]), self._shape)
            left = before * node.increment * per_whole + math.sqrt(before * after * per_whole) * noise
            depth = node.depth + 1
            node.left = _Node(node.start, middle, 2 * node.key, depth, left)
            node.right = _Node(middle, node.end, 2 * node.key + 1, depth, node.increment - left)
        return node.left, node.right


def _rounded(time: float) -> float:
    return round(float(time), TOLERANCE_DIGITS)


class TreeNoise:
    """Step noise from one Brownian tree a picture, over sigma (a `NoiseSource`; the tree of Li et al. 2020,
    arXiv:2001.01328, appendix E).

    Args:
        seeds: one per picture.
        draw: the source of normal numbers.
        low, high: lowest and highest noise level of the walk above 0.
        levels: noise level -> the level to ask the tree for, where the two differ; see `stage_times`.
    """

    def __init__(
        self, seeds: Sequence[int], draw: Draw, low: float, high: float, levels: Mapping[float, float] | None = None
    ) -> None:
        self._seeds, self._draw = tuple(seeds), draw
        self._low, self._high, self._levels = _single(low), _single(high), dict(levels or {})
        self._trees: list[BrownianTree] = []

    def __call__(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """(W(sigma_next) - W(sigma)) / sqrt|sigma_next - sigma|. [B, ...]"""
        if len(x) != len(self._seeds):
            raise InvalidInput("noise", given=f"a batch of {len(x)}", expected=f"{len(self._seeds)}, one per seed")
        if not self._trees:
            shape, bounds = x.shape[1:], (self._low, self._high)
            self._trees = [BrownianTree(seed, self._draw, shape, *bounds) for seed in self._seeds]
        start, end = (self._levels.get(level, _single(level)) for level in (sigma, sigma_next))
        low, high = min(start, end), max(start, end)
        sign = 1.0 if end > start else -1.0
        increments = torch.stack([tree(low, high) for tree in self._trees])
        for tree in self._trees:
            # Walks go down: what lies above is not asked for again, and a deep tree holds many tensors.
            tree.forget_above(high)
        return (increments * (sign / math.sqrt(high - low))).to(x)


def _single(level: float) -> float:
    """The level rounded to fp32, in which the tools of this tree keep theirs; a path is rough at every scale, so that
    the last digit of a time shows."""
    return float(np.float32(level))


def stage_times(sigmas: Sequence[float], singles: Sequence[float], share: float = 0.5) -> dict[float, float]:
    """Levels of a sampler with a stage inside each step as its fp32 arithmetic finds them (k-diffusion 2023;
    Algorithm 1 of Lu et al. 2022, arXiv:2211.01095).

    It walks -log sigma: each level goes there and back, and the stage lies `share` of the way.

    Args:
        sigmas: the noise levels, descending.
        singles: the same in fp32.
        share: where the stage lies in log sigma, within (0, 1).

    Returns:
        Level in fp64 -> the same level there, for both ends and the stage of every step that doesn't end at 0.
    """
    found: dict[float, float] = {}
    for (sigma, single), (sigma_next, single_next) in pairwise(zip(sigmas, singles, strict=True)):
        if sigma_next <= 0:
            continue
        start, end = (torch.tensor(level, dtype=torch.float32).log().neg() for level in (single, single_next))
        stage = start + (end - start) * share
        middle = sigma ** (1 - share) * sigma_next**share
        for level, time in ((sigma, start), (middle, stage), (sigma_next, end)):
            found[level] = float(time.neg().exp())
    return found
