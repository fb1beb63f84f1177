"""Token merging against loops over tokens, alone and in diffusers' U-Net, and by its properties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.models.caching.test_deep_cache import inputs, pair
from torch import Tensor

from gouache.models.perturbation import changes_of, finest_blocks
from gouache.nn.token_merging import TokenMerging, clusters

if TYPE_CHECKING:
    from gouache.models.unet import UNet

__all__ = ["pair"]
SIZES = [(8, 8), (4, 6), (5, 7), (2, 9)]


def groups_by_loops(tokens: Tensor, size: tuple[int, int], ratio: float) -> list[list[int]]:
    """The places [N, C] that are one, the taker of each group first; by Python's own loops."""
    height, width = size
    takers = [row * width + column for row in range(0, height - 1, 2) for column in range(0, width - 1, 2)]
    rows = [(token / token.norm()).tolist() for token in tokens.double()]
    found = []
    for place in range(height * width):
        if place not in takers:
            scores = [sum(a * b for a, b in zip(rows[place], rows[taker], strict=True)) for taker in takers]
            best = max(range(len(takers)), key=lambda k: scores[k])
            found.append((scores[best], place, takers[best]))
    found.sort(key=lambda one: -one[0])
    groups = {taker: [taker] for taker in takers}
    for _, place, taker in found[: int(height * width * ratio)]:
        groups[taker].append(place)
    alone = [[place] for _, place, _ in found[int(height * width * ratio) :]]
    return [*groups.values(), *alone]


def averaged_by_loops(values: Tensor, groups: list[list[int]]) -> Tensor:
    """Each place of [N, C] with the mean of its group."""
    out = torch.empty_like(values)
    for group in groups:
        mean = sum(values[place] for place in group) / len(group)
        for place in group:
            out[place] = mean
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 1.0])
def test_what_comes_back_is_the_mean_of_each_cluster(size: tuple[int, int], ratio: float) -> None:
    generator = torch.Generator().manual_seed(2)
    tokens, values = torch.randn(2, 3, size[0] * size[1], 6, generator=generator)
    found = clusters(tokens, size, ratio)
    assert found is not None
    small = found.merge(values)
    assert small.shape[1] == values.shape[1] - found.merged.shape[1]
    back = found.unmerge(small)
    for k in range(3):
        expected = averaged_by_loops(values[k], groups_by_loops(tokens[k], size, ratio))
        assert torch.allclose(back[k], expected, atol=1e-6)


def test_nothing_is_merged_by_no_share_or_where_no_place_takes_in() -> None:
    tokens = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0))
    assert clusters(tokens, (4, 4), 0.0) is None
    assert clusters(tokens, (4, 4), 0.06) is None, "less than one place"
    assert clusters(tokens, (1, 16), 0.5) is None
    assert clusters(tokens, (16, 1), 0.5) is None


def test_a_row_is_merged_as_alone() -> None:
    tokens = torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(1))
    together = clusters(tokens, (8, 8), 0.5)
    assert together is not None
    for k in range(4):
        alone = clusters(tokens[k : k + 1], (8, 8), 0.5)
        assert alone is not None
        assert torch.equal(
            alone.unmerge(alone.merge(tokens[k : k + 1]))[0], together.unmerge(together.merge(tokens))[k]
        )


def test_equal_tokens_lose_nothing() -> None:
    """Where places are alike in fours, all of them merge and all is as before."""
    coarse = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(3))
    tokens = coarse.reshape(1, 4, 4, 8).repeat_interleave(2, 1).repeat_interleave(2, 2).reshape(1, 64, 8)
    found = clusters(tokens, (8, 8), 0.75)
    assert found is not None
    assert found.merge(tokens).shape[1] == 16
    assert torch.allclose(found.unmerge(found.merge(tokens)), tokens, atol=1e-6)


@torch.no_grad()
def test_a_unet_is_diffusers_with_blocks_that_merge_by_loops(pair: tuple[UNet, Any]) -> None:
    ours, theirs = pair
    x, timestep, context = inputs(3, rows=2)
    plain = ours(x, timestep, context)
    assert torch.equal(ours(x, timestep, context, changes=changes_of(ours, (), None, merging=0.0)), plain)
    found = ours(x, timestep, context, changes=changes_of(ours, (), None, merging=0.5))
    attentions = [*theirs.down_blocks[0].attentions, *theirs.up_blocks[-1].attentions]
    restore: list[tuple[Any, Any]] = []
    for transformer in attentions:
        (block,) = transformer.transformer_blocks
        entered: list[Tensor] = []
        block.register_forward_pre_hook(lambda _, given, entered=entered: entered.append(given[0]))
        plain_attention = block.attn1.forward

        def merged(
            hidden: Tensor, *_: Any, entered: list[Tensor] = entered, attend: Any = plain_attention, **__: Any
        ) -> Tensor:
            rows = []
            for tokens, values in zip(entered.pop(), hidden, strict=True):
                groups = groups_by_loops(tokens, (8, 8), 0.5)
                means = torch.stack([values[group].mean(0) for group in groups])[None]
                seen = attend(means)[0]
                out = torch.empty_like(values)
                for group, one in zip(groups, seen, strict=True):
                    out[group] = one
                rows.append(out)
            return torch.stack(rows)

        restore.append((block.attn1, plain_attention))
        block.attn1.forward = merged
    try:
        expected = theirs(x, timestep, context).sample
    finally:
        for attention, forward in restore:
            attention.forward = forward
    assert torch.allclose(found, expected, atol=2e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_only_the_finest_level_merges(pair: tuple[UNet, Any]) -> None:
    ours, _ = pair
    changes = changes_of(ours, (), None, merging=0.4)
    level, blocks = finest_blocks(ours)
    assert level == 0
    assert len(blocks) == 5
    assert changes is not None
    assert set(changes) == set(blocks)
    assert {one.merging for one in changes.values()} == {TokenMerging(0.4)}
