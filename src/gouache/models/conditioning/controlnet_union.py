"""ControlNet-Union (xinsir 2024, github.com/xinsir6/ControlNetPlus): one ControlNet for all kinds of picture.

It is told what each picture shows, and sees several control pictures in one evaluation. Parameter names are those of
the published folders.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.errors import ShapeMismatch
from gouache.models.conditioning.controlnet import ControlBody
from gouache.models.configs import ControlNetConfig
from gouache.models.unet import Changes, Residuals
from gouache.nn.layers import EmbeddingMLP, sinusoidal_embedding, time_and_pooled

KIND_WIDTH = 256
"""Channels in which it is told of each kind whether a picture of it is there."""


class _Values(nn.Module):
    """The value path of an attention whose only key is the query itself.

    The published networks were trained with their attention along the batch: at inference, where all rows of a batch
    show the same picture, its softmax averages equal values, so that queries and keys decide nothing. Taking each row
    by itself gives the same numbers, whatever else is in the batch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        width = x.shape[-1]
        out: Tensor = self.out_proj(F.linear(x, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :]))
        return out


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D], with the quick form of GELU."""
        inner = self.c_fc(x)
        out: Tensor = self.c_proj(inner * torch.sigmoid(1.702 * inner))
        return out


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = _Values(width)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = _MLP(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class ControlNetUnion(ControlBody):
    """`(x, timestep, context, features, kinds) -> residuals`; of each picture it is told what it shows."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        width = config.unet.channels[0]
        self.task_embedding = nn.Parameter(torch.zeros(config.union_types, width))
        self.transformer_layes = nn.ModuleList(_Block(width) for _ in range(config.union_layers))
        self.spatial_ch_projs = nn.Linear(width, width)
        self.control_add_embedding = EmbeddingMLP(KIND_WIDTH * config.union_types, config.unet.embedding_width)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        features: Sequence[Tensor],
        kinds: Sequence[int],
        *,
        scales: Sequence[float] = (),
        context_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        guess: bool = False,
        changes: Changes | None = None,
    ) -> Residuals:
        """One evaluation for all pictures.

        Args:
            x, timestep, context, context_mask, pooled, guess, changes: as in `ControlNet.forward`.
            features: of each control picture, see `embed`. [B, C, h, w]
            kinds: what each picture shows, a number below the config's `union_types`.
            scales: how strongly each picture is seen; none = 1 for all.

        Raises:
            ShapeMismatch: a picture has another size than the latents, no or another number of kinds, or `pooled`
                doesn't fit.
        """
        if not features or len(kinds) != len(features) or max(kinds) >= self.config.union_types:
            raise ShapeMismatch(
                "ControlNet-Union",
                given=f"{len(features)} pictures of kinds {list(kinds)}",
                expected=f"a kind below {self.config.union_types} for each",
            )
        for one in features:
            self.check(x, one, pooled)
        told = torch.zeros(self.config.union_types, device=x.device)
        told[list(kinds)] = 1.0
        further = self.control_add_embedding(sinusoidal_embedding(told, KIND_WIDTH).flatten()[None].to(x.dtype))
        embedding = time_and_pooled(
            self.time_embedding, self.add_embedding, timestep.expand(len(x)), pooled, x.dtype, further=further
        )
        hidden: Tensor = self.conv_in(x)
        seen = hidden
        for one, kind, scale in zip(features, kinds, scales or [1.0] * len(features), strict=True):
            token = (one.mean((2, 3)) + self.task_embedding[kind]) * scale  # [B, C]
            for layer in self.transformer_layes:
                token = layer(token)
            seen = seen + (one + self.spatial_ch_projs(token)[:, :, None, None]) * scale
        return self.steered(seen, embedding, context, context_mask, guess=guess, changes=changes)
