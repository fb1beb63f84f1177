"""DeepCache against an independent one: diffusers' U-Net whose blocks remember, as the authors' helper wraps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from gouache.models.caching.deep_cache import DeepCache, deep_call
from gouache.models.caching.rows import CachedRow, KeptMap
from gouache.models.configs import UNetConfig
from gouache.models.unet import Residuals, UNet

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = UNetConfig(
    channels=(16, 32, 32),
    layers_per_level=2,
    transformer_layers=(1, 1, 0),
    heads=(2, 2, 2),
    context_width=32,
    norm_groups=8,
)
MAPS = 9
"""Feature maps that this U-Net keeps for its way up."""


@pytest.fixture(scope="module")
def pair() -> tuple[UNet, Any]:
    """Ours and diffusers' with the same random weights."""
    from diffusers import UNet2DConditionModel

    theirs = UNet2DConditionModel(
        block_out_channels=CONFIG.channels,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 2, 2),
        cross_attention_dim=32,
        norm_num_groups=8,
    ).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in theirs.parameters():
            spread = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + (parameter.ndim == 1))
    ours = UNet(CONFIG).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(seed: int, rows: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, 8, 8, generator=generator)
    return x, torch.tensor(100.0 * seed), torch.randn(rows, 7, 32, generator=generator)


def layers_of(block: Any) -> list[list[Any]]:
    """Each residual block of one of diffusers' levels, with the transformer behind it."""
    behind = [[one] for one in getattr(block, "attentions", ())] or [[] for _ in block.resnets]
    return [[resnet, *more] for resnet, more in zip(block.resnets, behind, strict=True)]


class Remembering:
    """DeepCache on diffusers' U-Net: what stands inside the branch answers as it did at the last full evaluation.

    Blocks are numbered from the outside as in the authors' helper: on the way down those from the branch on are deep,
    on the way up those behind it.
    """

    def __init__(self, unet: Any, branch: int) -> None:
        self.full = True
        self.kept: dict[int, Any] = {}
        deep: list[Any] = [unet.mid_block]
        place = 0
        for block in unet.down_blocks:
            layers = [*layers_of(block), *([one] for one in block.downsamplers or [])]
            deep += [part for k, layer in enumerate(layers) for part in layer if place + k >= branch]
            place += len(layers)
        place = 0
        for block in reversed(unet.up_blocks):
            layers = [*reversed(layers_of(block))]
            deep += [part for k, layer in enumerate(layers) for part in layer if place + k > branch]
            place += len(layers)
        for block in unet.up_blocks:
            # An upsampler stands behind its level's last layer: deep if that is.
            if block.upsamplers and block.resnets[-1] in deep:
                deep += list(block.upsamplers)
        self.restore = [(part, part.forward) for part in deep]
        for part in deep:
            part.forward = self.remembering(part.forward, id(part))

    def remembering(self, forward: Callable[..., Any], key: int) -> Callable[..., Any]:
        def answer(*given: Any, **named: Any) -> Any:
            if self.full:
                self.kept[key] = forward(*given, **named)
            return self.kept[key]

        return answer

    def undo(self) -> None:
        for part, forward in self.restore:
            part.forward = forward


@torch.no_grad()
@pytest.mark.parametrize("branch", range(MAPS))
def test_cheap_steps_are_those_of_diffusers_blocks_that_remember(pair: tuple[UNet, Any], branch: int) -> None:
    ours, theirs = pair
    cache, wrapped = DeepCache(3, branch), Remembering(theirs, branch)
    try:
        for step in (1, 2, 3, 4):
            x, timestep, context = inputs(step)
            wrapped.full = step in (1, 4)
            call = deep_call([CachedRow(cache, ("a",), step)], torch.tensor(10.0 / step))
            assert call is not None
            assert (call.features is None) == wrapped.full
            found = ours(x, timestep, context, deep=call)
            expected = theirs(x, timestep, context).sample
            assert torch.allclose(found, expected, atol=2e-5), f"step {step}"
            exact = ours(x, timestep, context)
            assert torch.equal(found, exact) == wrapped.full
    finally:
        wrapped.undo()


@torch.no_grad()
def test_a_controlnets_residuals_still_reach_the_blocks_that_are_computed(pair: tuple[UNet, Any]) -> None:
    ours, theirs = pair
    cache, wrapped = DeepCache(2, 3), Remembering(theirs, 3)
    sizes = [(16, 8)] * 3 + [(16, 4)] + [(32, 4)] * 2 + [(32, 2)] * 3
    try:
        for step in (1, 2):
            x, timestep, context = inputs(step)
            generator = torch.Generator().manual_seed(step)
            skips = [torch.randn(1, width, side, side, generator=generator) for width, side in sizes]
            middle = torch.randn(1, 32, 2, 2, generator=generator)
            wrapped.full = step == 1
            call = deep_call([CachedRow(cache, ("a",), step)], torch.tensor(10.0 / step))
            found = ours(x, timestep, context, deep=call, residuals=Residuals(tuple(skips), middle))
            control = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
            assert torch.allclose(found, theirs(x, timestep, context, **control).sample, atol=2e-5)
    finally:
        wrapped.undo()


@torch.no_grad()
def test_rows_keep_their_own_maps_whatever_stands_beside_them(pair: tuple[UNet, Any]) -> None:
    """Two rows in one call are what each is alone, also where another order or number of rows comes next."""
    ours, _ = pair
    x, timestep, context = inputs(1, rows=2)
    y, later, _ = inputs(2, rows=2)

    def painted(order: list[int], cache: DeepCache) -> Tensor:
        names = [("a",), ("b",)]
        rows = [CachedRow(cache, names[k], 1) for k in (0, 1)]
        ours(x, timestep, context, deep=deep_call(rows, torch.tensor(2.0)))
        rows = [CachedRow(cache, names[k], 2) for k in order]
        call = deep_call(rows, torch.tensor(1.0))
        assert call is not None
        assert call.features is not None
        result: Tensor = ours(y[order], later, context[order], deep=call)
        return result

    both = painted([0, 1], DeepCache(2, 1))
    assert torch.allclose(painted([1, 0], DeepCache(2, 1)), both[[1, 0]], atol=1e-5)
    assert torch.allclose(painted([1], DeepCache(2, 1)), both[[1]], atol=1e-5)


def test_a_map_holds_for_its_interval_at_falling_levels_and_for_its_pictures() -> None:
    kept = KeptMap(torch.zeros(2, 1), step=3, level=5.0)
    assert [step for step in range(1, 9) if kept.holds(step, 1.0, 2, 3)] == [4, 5]
    assert not kept.holds(4, 6.0, 2, 3), "the level rose again"
    assert not kept.holds(4, 1.0, 1, 3), "another number of pictures"


def test_one_row_without_a_map_makes_the_call_full() -> None:
    cache = DeepCache(3, 0)
    cache.maps["a",] = KeptMap(torch.zeros(1, 2), 1, 9.0)
    known, new = CachedRow(cache, ("a",), 2), CachedRow(cache, ("b",), 2)
    level = torch.tensor(1.0)
    calls = [deep_call(rows, level) for rows in ([known], [known, new], [CachedRow(cache, ("a",), 2, full=True)])]
    assert [call is not None and call.features is not None for call in calls] == [True, False, False]
    assert deep_call([], level) is None
