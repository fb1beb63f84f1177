"""The U-Net of latent diffusion (Rombach et al. 2022, arXiv:2112.10752), one class for every published variant.

It is the *raw network*: it knows a timestep and a context, and neither sigma nor guidance. Its parameter names are
those of the published folders (`down_blocks.0.resnets.1.conv1.weight`), so that such weights load without a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gouache.errors import ShapeMismatch
from gouache.models.caching.block_cache import BlockCall
from gouache.models.caching.deep_cache import DeepCall
from gouache.models.configs import UNetConfig
from gouache.nn.attention import RowChanges, SpatialTransformer, key_mask
from gouache.nn.free_u import FreeU, free_u
from gouache.nn.layers import EmbeddingMLP, GroupNorm, guidance_embedding, time_and_pooled
from gouache.nn.resnet import Downsample, ResnetBlock, Upsample, zero_

__all__ = ["UNet", "UNetConfig", "block_shape", "down_levels"]


Changes = Mapping[nn.Module, RowChanges]
"""Transformer block -> what some rows of a batch do otherwise there."""
Place = tuple[int, bool]
"""A level of the way down, finest 0, and whether behind its downsampling or behind its last block."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What every block of one forward pass is given beside the feature map.

    Attributes:
        embedding: activated embedding of time (and pooled text). [B, 4 * first width]
        context: the text's tokens. [B, L, D]
        mask: which tokens may be looked at, or None for all. [B, 1, 1, L]
        changes: transformer block -> what some rows do otherwise there.
        free_u: what the way up weighs otherwise.
        inside: what is added on the way down, by its place.
        deep: what of the deep part is kept over steps.
    """

    embedding: Tensor
    context: Tensor
    mask: Tensor | None
    changes: Changes | None = None
    free_u: FreeU | None = None
    inside: Mapping[Place, Tensor] = field(default_factory=dict)
    deep: DeepCall | None = None

    def enough(self, skips: list[Tensor]) -> bool:
        """Whether the way down ends here: what is below was kept."""
        return self.deep is not None and self.deep.features is not None and len(skips) == self.deep.count

    def added(self, x: Tensor, place: Place) -> Tensor:
        """A feature map with what is added at its place. [B, C, h, w]"""
        more = self.inside.get(place)
        return x if more is None else x + more


@dataclass(frozen=True, slots=True)
class Residuals:
    """What ControlNets and T2I-Adapters add to the feature maps of a U-Net.

    Attributes:
        skips: for each map that is kept for the way up, in the order of the way down; empty = nothing.
            [B, C, h, w] or [B, C, 1, 1]; of a transformer for the tokens behind each block. [B, N, D]
        middle: for the middle's result. [B, C, h, w] or [B, C, 1, 1]
        inside: for maps on the way down, which the blocks behind them see too. [B, C, h, w]
    """

    skips: tuple[Tensor, ...] = ()
    middle: Tensor | None = None
    inside: Mapping[Place, Tensor] = field(default_factory=dict)

    def __add__(self, other: Residuals) -> Residuals:
        if self.skips and other.skips:
            skips = tuple(one + more for one, more in zip(self.skips, other.skips, strict=True))
        else:
            skips = self.skips or other.skips
        middles = [one for one in (self.middle, other.middle) if one is not None]
        inside = dict(self.inside)
        for place, more in other.inside.items():
            inside[place] = inside[place] + more if place in inside else more
        return Residuals(skips, reduce(add, middles) if middles else None, inside)

    def scaled(self, weight: Tensor) -> Residuals:
        """Each row times its own weight. [B]"""

        def times(one: Tensor) -> Tensor:
            return one * weight.reshape(-1, *(1,) * (one.ndim - 1))

        return Residuals(
            tuple(times(skip) for skip in self.skips),
            None if self.middle is None else times(self.middle),
            {place: times(more) for place, more in self.inside.items()},
        )


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What the blocks of one level have in common.

    Attributes:
        heads: attention heads of the level.
        embedding_width: width of the time embedding.
        context_width: width of the text's tokens.
        groups: groups of the group norms.
        linear: linear projections around the transformers (else 1x1 convolutions).
        crossing: both attentions of a transformer look at the text.
    """

    heads: int
    embedding_width: int
    context_width: int
    groups: int
    linear: bool
    crossing: bool = False

    def resnet(self, channels_in: int, channels_out: int) -> ResnetBlock:
        """A residual block that listens to the time embedding."""
        return ResnetBlock(channels_in, channels_out, embedding_width=self.embedding_width, groups=self.groups)

    def transformer(self, channels: int, depth: int) -> SpatialTransformer:
        """A spatial transformer of `depth` blocks."""
        return SpatialTransformer(
            channels,
            heads=self.heads,
            depth=depth,
            context_width=self.context_width,
            groups=self.groups,
            linear=self.linear,
            crossing=self.crossing,
        )


class Level(nn.Module):
    """Shared by the three kinds of block: residual blocks, each followed by a transformer where the depth is not 0.

    Args:
        widths: channels (in, out) of each residual block.
        depths: transformer blocks after each residual block.
        shape: what the level's blocks have in common.
    """

    def __init__(self, widths: list[tuple[int, int]], depths: list[int], shape: BlockShape) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.resnets = nn.ModuleList(shape.resnet(before, after) for before, after in widths)
        if any(depths):
            self.attentions = nn.ModuleList(
                shape.transformer(after, depth) for (_, after), depth in zip(widths, depths, strict=True)
            )

    def stage(self, i: int, x: Tensor, given: Conditioning) -> Tensor:
        """Residual block `i` and its transformer: x [B, C_in, h, w] -> [B, C_out, h, w]."""
        x = self._run(self.resnets[i], x, given.embedding)
        if hasattr(self, "attentions"):
            x = self._run(self.attentions[i], x, given.context, given.mask, given.changes)
        return x

    def _run(self, block: Callable[..., Tensor], *inputs: Tensor | Changes | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
            return out
        return block(*inputs)


class DownLevel(Level):
    """One level of the way down. Keeps every intermediate feature map for the way up."""

    def __init__(
        self, channels_in: int, channels_out: int, *, depths: list[int], shape: BlockShape, level: int, downsample: bool
    ) -> None:
        befores = [channels_in] + [channels_out] * (len(depths) - 1)
        super().__init__([(before, channels_out) for before in befores], depths, shape)
        self.level = level  # from the finest
        if downsample:
            self.downsamplers = nn.ModuleList([Downsample(channels_out)])

    def forward(self, x: Tensor, given: Conditioning, skips: list[Tensor], first: Tensor | None = None) -> Tensor:
        """x [B, C_in, h, w] -> [B, C_out, h / 2, w / 2] (h, w on the last level); appends to `skips`. `first`: what its
        first stage gives, where that is known."""
        for i in range(len(self.resnets)):
            if given.enough(skips):
                return x
            x = self.stage(i, x, given) if i or first is None else first
            if i == len(self.resnets) - 1:
                x = given.added(x, (self.level, False))
            skips.append(x)
        if hasattr(self, "downsamplers") and not given.enough(skips):
            x = given.added(self.downsamplers[0](x), (self.level, True))
            skips.append(x)
        return x


class MiddleLevel(Level):
    """A residual block, a transformer (depth 0 = none), the other residual blocks; channels and size stay."""

    def __init__(self, channels: int, layers: int, *, depth: int, shape: BlockShape) -> None:
        super().__init__([(channels, channels)] * layers, [0] * layers, shape)
        if depth:
            self.attentions = nn.ModuleList([shape.transformer(channels, depth)])

    def forward(self, x: Tensor, given: Conditioning) -> Tensor:
        """x [B, C, h, w] -> [B, C, h, w]."""
        x = self._run(self.resnets[0], x, given.embedding)
        if hasattr(self, "attentions"):
            x = self._run(self.attentions[0], x, given.context, given.mask, given.changes)
        for block in self.resnets[1:]:
            x = self._run(block, x, given.embedding)
        return x


class UpLevel(Level):
    """One level of the way up. Each residual block reads one kept feature map beside its input."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        skip_channels: list[int],
        *,
        depths: list[int],
        shape: BlockShape,
        upsample: bool,
        place: int,
        first_width: int,
    ) -> None:
        befores = [channels_in] + [channels_out] * (len(depths) - 1)
        widths = [(before + skip, channels_out) for before, skip in zip(befores, skip_channels, strict=True)]
        super().__init__(widths, depths, shape)
        self.place, self.first_width = place, first_width  # from the bottom; of the U-Net's first level, for FreeU
        if upsample:
            self.upsamplers = nn.ModuleList([Upsample(channels_out)])

    def forward(self, x: Tensor, given: Conditioning, skips: list[Tensor], left_out: int = 0) -> Tensor:
        """x [B, C_in, h, w] -> [B, C_out, 2h, 2w] (h, w on the last level); takes from the end of `skips`.

        `left_out` stages of the whole way up are not computed: x is what enters the first that is.
        """
        first = max(left_out - self.place * len(self.resnets), 0)
        if first >= len(self.resnets):
            return x
        for i in range(first, len(self.resnets)):
            if given.deep is not None and given.deep.features is None and len(skips) == given.deep.count:
                given.deep.keep(x)
            skip = skips.pop()
            if given.free_u is not None:
                x, skip = free_u(x, skip, given.free_u, self.place, self.first_width)
            x = self.stage(i, torch.cat([x, skip], dim=1), given)
        if hasattr(self, "upsamplers"):
            height, width = skips[-1].shape[-2:]
            x = self.upsamplers[0](x, (height, width))
        return x


class UNet(nn.Module):
    """`(x, timestep, context) -> output`; what the output means (eps, v, x0, velocity) is the denoiser's business."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        grid = config.pooled_grid_channels if config.pooled_width else 0
        self.conv_in = nn.Conv2d(config.in_channels + config.draft_channels + grid, config.channels[0], 3, padding=1)
        self.time_embedding = EmbeddingMLP(config.channels[0], config.embedding_width, config.guidance_width)
        if grid:
            self.pooled_grid = nn.Linear(config.pooled_width, grid)
        elif config.picture_width:
            self.class_embedding: nn.Module = EmbeddingMLP(config.pooled_width, config.embedding_width)
        elif config.pooled_width:
            self.add_embedding = EmbeddingMLP(config.pooled_width, config.embedding_width)
        if config.noise_levels:
            self.class_embedding = nn.Embedding(config.noise_levels, config.embedding_width)
        self.down_blocks, skip_channels = down_levels(config)
        if config.middle_layers:
            last = len(config.channels) - 1
            self.mid_block = MiddleLevel(
                config.channels[-1],
                config.middle_layers,
                depth=config.middle_transformer_layers,
                shape=replace(block_shape(config, last), crossing=False),
            )
        self.up_blocks = _up_levels(config, skip_channels)
        self.conv_norm_out = GroupNorm(config.norm_groups, config.channels[0])
        self.conv_out = nn.Conv2d(config.channels[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        *,
        context_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        draft: Tensor | None = None,
        residuals: Residuals | None = None,
        changes: Changes | None = None,
        free_u: FreeU | None = None,
        guidance: Tensor | None = None,
        noise_level: Tensor | None = None,
        deep: DeepCall | None = None,
        block_cache: BlockCall | None = None,
    ) -> Tensor:
        """One evaluation of the network.

        Args:
            x: noisy latents, scaled as the network was trained. [B, in_channels, h, w]
            timestep: the network's own time, real numbers. [B], or [] for all rows.
            context: the text's tokens. [B, L, context_width]
            context_mask: True where a token is real, or None for all. [B, L]
            pooled: text or picture as one vector; needed if and only if the config has a `pooled_width`.
                [B, pooled_width]
            draft: channels to lay beside `x`; needed if and only if the config has `draft_channels`.
                [B, draft_channels, h, w]
            residuals: what ControlNets and T2I-Adapters add to the feature maps.
            changes: transformer block -> what some rows do otherwise there.
            free_u: what the way up weighs otherwise.
            guidance: the guidance scale, for a network with a `guidance_width`; None tells it none. [B]
            noise_level: of the noise on the small picture in `draft`, whole numbers; needed if and only if the config
                has `noise_levels`. [B]
            deep: keeps the deep part's result, or brings it: then only the outermost blocks are evaluated.
            block_cache: keeps what all blocks behind the first add, or brings it: then only the first is evaluated.

        Returns:
            [B, out_channels, h, w].

        Raises:
            ShapeMismatch: an input is missing, not wanted, or has the wrong width.
        """
        self._check(x, context, pooled, draft)
        if guidance is not None and not self.config.guidance_width:
            raise ShapeMismatch("UNet input 'guidance'", given="a scale", expected="nothing: this network takes none")
        told = None if guidance is None else guidance_embedding(guidance, self.config.guidance_width)
        if (noise_level is None) != (self.config.noise_levels == 0):
            expected = "one for each row" if self.config.noise_levels else "nothing: this network takes none"
            given_levels = "nothing" if noise_level is None else "levels"
            raise ShapeMismatch("UNet input 'noise_level'", given=given_levels, expected=expected)
        further = None if noise_level is None else self.class_embedding(noise_level)
        given = Conditioning(
            embedding=self._embedding(timestep.expand(x.shape[0]), pooled, x.dtype, told, further),
            context=context,
            mask=key_mask(context_mask),
            changes=changes,
            free_u=free_u,
            inside={} if residuals is None else residuals.inside,
            deep=deep,
        )
        hidden: Tensor = self.conv_in(self._stem(x, pooled, draft))
        if block_cache is None:
            hidden = self._blocks(hidden, None, given, residuals)
        else:
            # Both, and the last block's result, are maps of the first level's width at the latents' size.
            entering, finest = hidden, self.down_blocks[0]
            assert isinstance(finest, DownLevel), "down_levels makes no other"
            first = finest.stage(0, entering, given)
            hidden = block_cache.through(entering, first, lambda: self._blocks(entering, first, given, residuals))
        out: Tensor = self.conv_out(self.conv_norm_out(hidden, activate=True))
        return out

    def _blocks(self, hidden: Tensor, first: Tensor | None, given: Conditioning, residuals: Residuals | None) -> Tensor:
        """All blocks, between the first and the last convolution; `first`: what the first one's first stage gives."""
        deep, skips = given.deep, [hidden]
        for down in self.down_blocks:
            hidden = down(hidden, given, skips, first if down is self.down_blocks[0] else None)
        left_out = sum(len(row) for row in self.config.up_depths()) - len(skips)
        if residuals is not None and residuals.skips:
            skips = [skip + more for skip, more in zip(skips, residuals.skips[: len(skips)], strict=True)]
        if deep is not None and deep.features is not None:
            hidden = deep.features
        else:
            hidden = self._middle(hidden, given, residuals)
        for up in self.up_blocks:
            hidden = up(hidden, given, skips, left_out)
        return hidden

    def _middle(self, x: Tensor, given: Conditioning, residuals: Residuals | None) -> Tensor:
        if self.config.middle_layers:
            x = self.mid_block(x, given)
        return x if residuals is None or residuals.middle is None else x + residuals.middle

    def _embedding(
        self,
        timestep: Tensor,
        pooled: Tensor | None,
        dtype: torch.dtype,
        guidance: Tensor | None,
        further: Tensor | None,
    ) -> Tensor:
        added = None
        if pooled is not None and not self.config.pooled_grid_channels:
            added = self.class_embedding if self.config.picture_width else self.add_embedding
        return time_and_pooled(self.time_embedding, added, timestep, pooled, dtype, guidance, further)

    def _stem(self, x: Tensor, pooled: Tensor | None, draft: Tensor | None) -> Tensor:
        """Everything that enters through the first convolution. [B, in + draft + grid channels, h, w]"""
        parts = [x] if draft is None else [x, draft]
        if pooled is not None and self.config.pooled_grid_channels:
            parts.append(self.pooled_grid(pooled)[:, :, None, None].expand(-1, -1, *x.shape[-2:]).to(x.dtype))
        return torch.cat(parts, dim=1) if len(parts) > 1 else x

    def _check(self, x: Tensor, context: Tensor, pooled: Tensor | None, draft: Tensor | None) -> None:
        config = self.config
        for name, tensor, axis, width in (
            ("x", x, 1, config.in_channels),
            ("context", context, 2, config.context_width),
            ("pooled", pooled, 1, config.pooled_width),
            ("draft", draft, 1, config.draft_channels),
        ):
            given = tensor.shape[axis] if tensor is not None and tensor.ndim > axis else 0
            if given != width:
                raise ShapeMismatch(
                    f"UNet input {name!r}",
                    given="nothing" if tensor is None else f"shape {tuple(tensor.shape)}",
                    expected=f"{width} channels on axis {axis}" if width else "nothing: this network takes none",
                )

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its activations (arXiv:1604.06174)."""
        for part in self.modules():
            if isinstance(part, Level):
                part.gradient_checkpointing = on

    def zero_residual_ends(self) -> None:
        """Zero the last layer of every residual branch and of the network: the start for training from scratch.

        As in Dhariwal and Nichol 2021 (arXiv:2105.05233): each block begins as the identity and the output as zero.
        """
        for part in self.modules():
            if isinstance(part, ResnetBlock):
                zero_(part.conv2)
            elif isinstance(part, SpatialTransformer):
                zero_(part.proj_out)
        zero_(self.conv_out)


def block_shape(config: UNetConfig, level: int) -> BlockShape:
    """What the blocks of a level have in common."""
    return BlockShape(
        heads=config.heads[level],
        embedding_width=config.embedding_width,
        context_width=config.context_width,
        groups=config.norm_groups,
        linear=config.linear_projection,
        crossing=bool(config.only_cross_attention) and config.only_cross_attention[level],
    )


def down_levels(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The way down, and the channels of every feature map that it keeps."""
    blocks, kept, before = nn.ModuleList(), [config.channels[0]], config.channels[0]
    for level, (width, depths) in enumerate(zip(config.channels, config.down_depths(), strict=True)):
        last = level == len(config.channels) - 1
        shape = block_shape(config, level)
        blocks.append(DownLevel(before, width, depths=depths, shape=shape, level=level, downsample=not last))
        kept += [width] * (config.layers_per_level + (0 if last else 1))
        before = width
    return blocks, kept


def _up_levels(config: UNetConfig, skip_channels: list[int]) -> nn.ModuleList:
    blocks, before, kept = nn.ModuleList(), config.channels[-1], list(skip_channels)
    for depths, level in zip(config.up_depths(), reversed(range(len(config.channels))), strict=True):
        width = config.channels[level]
        skips = [kept.pop() for _ in depths]
        shape = block_shape(config, level)
        blocks.append(
            UpLevel(
                before,
                width,
                skips,
                depths=depths,
                shape=shape,
                upsample=level > 0,
                place=len(blocks),
                first_width=config.channels[0],
            )
        )
        before = width
    return blocks
