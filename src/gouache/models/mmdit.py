"""The multimodal diffusion transformer of Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206, section 4).

It is the *raw network*, called as the U-Net is: it knows a timestep and a context, and neither sigma nor guidance. Its
parameter names are those of the published folders (`transformer_blocks.0.attn.to_q.weight`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gouache.errors import ShapeMismatch
from gouache.models.caching.block_cache import BlockCall
from gouache.models.configs import MMDiTConfig
from gouache.nn.attention import RowChanges
from gouache.nn.joint import JointBlock, Modulation, modulated, normed
from gouache.nn.layers import EmbeddingMLP, Linear, silu, sinusoidal_embedding

__all__ = ["MMDiT", "MMDiTConfig", "position_table"]

TIME_WIDTH = 256
"""Channels that the timestep is embedded in before its two linear layers."""
BASE = 64
"""Patches along an edge of the pictures that the published networks were trained on first, of 1024 pixels."""


def position_table(width: int, grid: int) -> Tensor:
    """Sine-cosine codes of the places of a square grid (Dosovitskiy et al. 2021, arXiv:2010.11929, appendix D.4): one
    half of the channels says the column, the other the row, sines before cosines; the grid spans `BASE` units.

    Returns:
        [1, grid * grid, width] in fp32.
    """
    places = torch.arange(grid, dtype=torch.float64) * (BASE / grid)
    cosines, sines = sinusoidal_embedding(places, width // 2).chunk(2, dim=-1)  # [grid, width / 4]
    codes = torch.cat([sines, cosines], dim=-1)
    columns, rows = codes[None].expand(grid, -1, -1), codes[:, None].expand(-1, grid, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, grid * grid, width)


class PatchEmbedding(nn.Module):
    """Patches of the latents as tokens, each with the code of its place: the middle of a table that is stored."""

    pos_embed: Tensor

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.patch_size, self.grid = config.patch_size, config.grid
        self.proj = nn.Conv2d(config.in_channels, config.width, config.patch_size, stride=config.patch_size)
        self.register_buffer("pos_embed", position_table(config.width, config.grid))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, h * w / patch_size^2, width]."""
        tokens = self.proj(x).flatten(2).transpose(1, 2)
        rows, columns = (side // self.patch_size for side in x.shape[-2:])
        top, left = (self.grid - rows) // 2, (self.grid - columns) // 2
        table = self.pos_embed.view(self.grid, self.grid, -1)[top : top + rows, left : left + columns]
        out: Tensor = tokens + table.reshape(1, rows * columns, -1).to(tokens.dtype)
        return out


class TimeAndText(nn.Module):
    """The embedding of timestep and pooled text together."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.timestep_embedder = EmbeddingMLP(TIME_WIDTH, config.width)
        self.text_embedder = EmbeddingMLP(config.pooled_width, config.width)

    def forward(self, timestep: Tensor, pooled: Tensor) -> Tensor:
        """timestep [B], pooled [B, pooled_width] -> [B, width], activated."""
        waves = sinusoidal_embedding(timestep, TIME_WIDTH).to(pooled.dtype)
        # Every modulation activates it first; doing it once here gives the same numbers.
        return silu(self.timestep_embedder(waves) + self.text_embedder(pooled))


class MMDiT(nn.Module):
    """`(x, timestep, context) -> output`; what the output means (velocity, as published) is the denoiser's business."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.pos_embed = PatchEmbedding(config)
        self.time_text_embed = TimeAndText(config)
        self.context_embedder = Linear(config.context_width, config.width)
        self.transformer_blocks = nn.ModuleList(
            JointBlock(
                config.width,
                config.heads,
                qk_norm=config.qk_norm,
                dual=i in config.dual_layers,
                last=i == config.layers - 1,
            )
            for i in range(config.layers)
        )
        self.norm_out = Modulation(config.width, 2)
        self.proj_out = Linear(config.width, config.patch_size**2 * config.out_channels)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        *,
        context_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        changes: Mapping[nn.Module, RowChanges] | None = None,
        residuals: Sequence[Tensor] = (),
        block_cache: BlockCall | None = None,
    ) -> Tensor:
        """One evaluation of the network.

        Args:
            x: noisy latents, scaled as the network was trained; height and width are multiples of `patch_size`, at most
                `grid` patches. [B, in_channels, h, w]
            timestep: the network's own time, real numbers. [B], or [] for all rows.
            context: the text's tokens. [B, L, context_width]
            context_mask: True where a token is real, or None for all. [B, L]
            pooled: the text as one vector. [B, pooled_width]
            changes: block -> what some rows of the batch do otherwise there.
            residuals: what ControlNets add to the picture's tokens, behind each block but the last; empty = nothing.
                [B, h * w / patch_size^2, width] each
            block_cache: keeps what all blocks behind the first add, or brings it: then only the first is evaluated.

        Returns:
            [B, out_channels, h, w].

        Raises:
            ShapeMismatch: an input is missing, or has the wrong width or size.
        """
        pooled = self._checked(x, context, pooled)
        tokens = self.pos_embed(x)
        embedding = self.time_text_embed(timestep.expand(x.shape[0]), pooled)
        text: Tensor = self.context_embedder(context)
        mask = None
        if context_mask is not None:
            mask = F.pad(context_mask.bool(), (tokens.shape[1], 0), value=True)[:, None, None, :]

        def through(numbers: range, tokens: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
            for number in numbers:
                block = self.transformer_blocks[number]
                inputs = (tokens, text, embedding, mask, changes.get(block) if changes else None)
                if self.gradient_checkpointing and torch.is_grad_enabled():
                    tokens, text = checkpoint(block, *inputs, use_reentrant=False)
                else:
                    tokens, text = block(*inputs)
                if residuals and not block.last:
                    tokens = tokens + residuals[number]
            return tokens, text

        count = len(self.transformer_blocks)
        if block_cache is None:
            tokens, _ = through(range(count), tokens, text)
        else:
            first, first_text = through(range(1), tokens, text)
            tokens = block_cache.through(tokens, first, lambda: through(range(1, count), first, first_text)[0])
        scale, shift = self.norm_out(embedding)
        return self._unpatched(self.proj_out(modulated(normed(tokens), shift, scale)), x.shape[-2:])

    def _unpatched(self, tokens: Tensor, size: torch.Size) -> Tensor:
        """[B, N, p * p * C] -> [B, C, h, w]; a token has its patch row by row, the channels of a pixel side by side."""
        patch = self.config.patch_size
        rows, columns = size[0] // patch, size[1] // patch
        grid = tokens.reshape(len(tokens), rows, columns, patch, patch, self.config.out_channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), self.config.out_channels, *size)

    def _checked(self, x: Tensor, context: Tensor, pooled: Tensor | None) -> Tensor:
        config = self.config
        for name, tensor, axis, width in (
            ("x", x, 1, config.in_channels),
            ("context", context, 2, config.context_width),
            ("pooled", pooled, 1, config.pooled_width),
        ):
            if tensor is None or tensor.ndim <= axis or tensor.shape[axis] != width:
                raise ShapeMismatch(
                    f"MMDiT input {name!r}",
                    given="nothing" if tensor is None else f"shape {tuple(tensor.shape)}",
                    expected=f"{width} channels on axis {axis}",
                )
        most = config.grid * config.patch_size
        if any(side % config.patch_size or side > most for side in x.shape[-2:]):
            raise ShapeMismatch(
                "MMDiT input 'x'",
                given=f"latents of {x.shape[-1]} x {x.shape[-2]}",
                expected=f"multiples of {config.patch_size} up to {most}, the grid that its places are coded on",
            )
        assert pooled is not None, "the loop above refuses a missing one"
        return pooled

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its activations (arXiv:1604.06174)."""
        self.gradient_checkpointing = on

    def zero_residual_ends(self) -> None:
        """Zero every modulation and the last layer: the start for training from scratch, where each block begins as the
        identity (adaLN-Zero, arXiv:2212.09748, section 3.2)."""
        ends = [self.proj_out, *(part.linear for part in self.modules() if isinstance(part, Modulation))]
        for end in ends:
            nn.init.zeros_(end.weight)
            nn.init.zeros_(end.bias)
