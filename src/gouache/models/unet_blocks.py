"""The levels of the U-Net: residual blocks with optional transformers, then a change of resolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gouache.nn.resnet import Downsample, ResnetBlock, Upsample
from gouache.nn.transformer import SpatialTransformer


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What every block of one forward pass is given beside the feature map.

    Attributes:
        embedding: activated embedding of time (and pooled text). [B, 4 * first width]
        context: the text's tokens. [B, L, D]
        mask: which tokens may be looked at, or None for all. [B, 1, 1, L]
    """

    embedding: Tensor
    context: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Residuals:
    """What a ControlNet adds to the feature maps of a U-Net.

    Attributes:
        skips: for each map that is kept for the way up, in the order of the way down. [B, C, h, w] or [B, C, 1, 1]
        middle: for the middle's result. [B, C, h, w] or [B, C, 1, 1]
    """

    skips: tuple[Tensor, ...]
    middle: Tensor

    def __add__(self, other: Residuals) -> Residuals:
        skips = tuple(one + more for one, more in zip(self.skips, other.skips, strict=True))
        return Residuals(skips, self.middle + other.middle)

    def scaled(self, weight: Tensor) -> Residuals:
        """Each row times its own weight. [B]"""
        factor = weight[:, None, None, None]
        return Residuals(tuple(skip * factor for skip in self.skips), self.middle * factor)


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What the blocks of one level have in common.

    Attributes:
        heads: attention heads of the level.
        embedding_width: width of the time embedding.
        context_width: width of the text's tokens.
        groups: groups of the group norms.
        linear: linear projections around the transformers (else 1x1 convolutions).
    """

    heads: int
    embedding_width: int
    context_width: int
    groups: int
    linear: bool

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
            x = self._run(self.attentions[i], x, given.context, given.mask)
        return x

    def _run(self, block: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
            return out
        return block(*inputs)


class DownLevel(Level):
    """One level of the way down. Keeps every intermediate feature map for the way up."""

    def __init__(
        self, channels_in: int, channels_out: int, *, depths: list[int], shape: BlockShape, downsample: bool
    ) -> None:
        befores = [channels_in] + [channels_out] * (len(depths) - 1)
        super().__init__([(before, channels_out) for before in befores], depths, shape)
        if downsample:
            self.downsamplers = nn.ModuleList([Downsample(channels_out)])

    def forward(self, x: Tensor, given: Conditioning, skips: list[Tensor]) -> Tensor:
        """x [B, C_in, h, w] -> [B, C_out, h / 2, w / 2] (h, w on the last level); appends to `skips`."""
        for i in range(len(self.resnets)):
            x = self.stage(i, x, given)
            skips.append(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
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
            x = self._run(self.attentions[0], x, given.context, given.mask)
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
    ) -> None:
        befores = [channels_in] + [channels_out] * (len(depths) - 1)
        widths = [(before + skip, channels_out) for before, skip in zip(befores, skip_channels, strict=True)]
        super().__init__(widths, depths, shape)
        if upsample:
            self.upsamplers = nn.ModuleList([Upsample(channels_out)])

    def forward(self, x: Tensor, given: Conditioning, skips: list[Tensor]) -> Tensor:
        """x [B, C_in, h, w] -> [B, C_out, 2h, 2w] (h, w on the last level); takes from the end of `skips`."""
        for i in range(len(self.resnets)):
            x = self.stage(i, torch.cat([x, skips.pop()], dim=1), given)
        if hasattr(self, "upsamplers"):
            height, width = skips[-1].shape[-2:]
            x = self.upsamplers[0](x, (height, width))
        return x
