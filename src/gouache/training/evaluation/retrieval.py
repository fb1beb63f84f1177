"""Retrieval of a picture's caption among others, by unit vectors of a judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gouache.errors import InvalidInput, ShapeMismatch


def candidates(keys: Sequence[str], owners: Sequence[str], count: int, seed: int) -> Tensor:
    """Choose for each picture the captions among which its own is to be found.

    Args:
        keys: what each caption speaks of, for example the concept. [M]
        owners: what each picture shows; one of `keys`. [N]
        count: captions a picture, its own included.
        seed: of the choice of the others.

    Returns:
        Places in `keys` [N, count]: first the picture's own, then others that speak of something else, no key twice.

    Raises:
        InvalidInput: there are fewer than `count` different keys, or a picture's own is missing.
    """
    place = {key: i for i, key in reversed(list(enumerate(keys)))}
    if not 2 <= count <= len(place):
        raise InvalidInput("count", given=count, expected=f"2 to {len(place)} different captions")
    if missing := [owner for owner in owners if owner not in place]:
        raise InvalidInput("owners", given=f"{missing[0]!r} without a caption", expected="a caption for each picture")
    names = sorted(place)
    rows = []
    for i, owner in enumerate(owners):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
        order = torch.randperm(len(names), generator=generator)[:count].tolist()
        others = [names[j] for j in order if names[j] != owner][: count - 1]
        rows.append([place[owner], *(place[other] for other in others)])
    return torch.tensor(rows)


def ranks(pictures: Tensor, captions: Tensor, chosen: Tensor) -> Tensor:
    """Rank of each picture's own caption among its candidates; 1 is best, a tie counts as lost.

    Args:
        pictures: unit vectors. [N,E]
        captions: unit vectors. [M,E]
        chosen: candidates, each picture's own first. [N,K]

    Returns:
        [N] integers from 1 to K.
    """
    if pictures.shape[1:] != captions.shape[1:] or len(chosen) != len(pictures):
        raise ShapeMismatch(
            "pictures, captions, chosen",
            given=f"{tuple(pictures.shape)}, {tuple(captions.shape)}, {tuple(chosen.shape)}",
            expected="[N,E], [M,E], [N,K]",
        )
    scores = (pictures @ captions.mT).gather(1, chosen)  # [N,K]
    return 1 + (scores[:, 1:] >= scores[:, :1]).sum(1)


def best_of(pictures: Tensor, captions: Tensor) -> Tensor:
    """For each picture [N,E] the nearest of its own captions [N,K,E]: its place, [N]."""
    return torch.einsum("ne,nke->nk", pictures, captions).argmax(1)
