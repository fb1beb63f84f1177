"""T2I-Adapter (Mou et al. 2023, arXiv:2302.08453): a small network turns a control picture into maps for the U-Net.

They are added on the U-Net's way down and are the same at every step, so that they are worked out once. Parameter names
are those of the published folders, without the ``adapter.`` before them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from gouache.models.configs import T2IAdapterConfig
from gouache.models.unet import Place, Residuals


class _Resnet(nn.Module):
    def __init__(self, channels: int, *, light: bool) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, 3 if light else 1, padding=1 if light else 0)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, C, h, w]."""
        out: Tensor = x + self.block2(F.relu(self.block1(x)))
        return out


class _Level(nn.Module):
    """A level that gives one map; light ones work in a quarter of its width."""

    def __init__(self, before: int, after: int, blocks: int, *, down: bool, light: bool) -> None:
        super().__init__()
        inner = after // 4 if light else after
        self.down = down
        self.in_conv = nn.Conv2d(before, inner, 1) if light or before != after else None
        self.resnets = nn.ModuleList(_Resnet(inner, light=light) for _ in range(blocks))
        self.out_conv = nn.Conv2d(inner, after, 1) if light else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C_in, h, w] -> [B, C_out, h / 2, w / 2], rounded up; h, w where it doesn't downsample."""
        if self.down:
            x = F.avg_pool2d(x, 2, stride=2, ceil_mode=True)
        if self.in_conv is not None:
            x = self.in_conv(x)
        for block in self.resnets:
            x = block(x)
        return x if self.out_conv is None else self.out_conv(x)


class T2IAdapter(nn.Module):
    """`hint -> maps`, and what the maps add to a U-Net."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        folded, light = config.hint_channels * config.fold**2, config.kind == "light"
        self.conv_in = None if light else nn.Conv2d(folded, config.channels[0], 3, padding=1)
        befores = [folded if light else config.channels[0], *config.channels[:-1]]
        self.body = nn.ModuleList(
            _Level(before, after, config.blocks, down=i == 2 if config.kind == "full_xl" else i > 0, light=light)
            for i, (before, after) in enumerate(zip(befores, config.channels, strict=True))
        )

    def embed(self, hint: Tensor) -> tuple[Tensor, ...]:
        """What the U-Net gets of a control picture.

        Args:
            hint: [B, hint_channels, H, W] in [0, 1]; sides that `fold` doesn't divide are extended by their edge.

        Returns:
            a map for each width of the config. [B, C, H / fold, W / fold] and smaller, rounded up
        """
        fold = self.config.fold
        right, below = -hint.shape[-1] % fold, -hint.shape[-2] % fold
        x = F.pixel_unshuffle(F.pad(hint, (0, right, 0, below), mode="replicate"), fold)
        x = x if self.conv_in is None else self.conv_in(x)
        maps = []
        for level in self.body:
            x = level(x)
            maps.append(x)
        return tuple(maps)

    def residuals(self, maps: Sequence[Tensor]) -> Residuals:
        """What maps add to the U-Net, each at its place: behind the last block of its level. The first of an SDXL
        adapter stands behind the first level's downsampling, and its last in the middle."""
        if self.config.kind != "full_xl":
            return Residuals(inside={(level, False): one for level, one in enumerate(maps)})
        inside: dict[Place, Tensor] = {(level, level == 0): one for level, one in enumerate(maps[:-1])}
        return Residuals(inside=inside, middle=maps[-1])
