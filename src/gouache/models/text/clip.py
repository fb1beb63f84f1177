"""CLIP's text transformer: ViT-L of SD 1.x, OpenCLIP's ViT-H of SD 2.x and bigG of SDXL.

The parameter names are those of transformers' `CLIPTextModel` without a prefix, plus `text_projection.weight`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gouache.errors import InvalidInput, ShapeMismatch
from gouache.models.configs import TextEncoderConfig
from gouache.nn.clip import ClipTransformer

__all__ = ["TextEncoder", "TextEncoderConfig", "TextEncoding"]


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """What an encoder makes of N chunks of tokens.

    Attributes:
        context: one vector a token. [N, L, D]
        pooled: one vector a chunk; None if the encoder has none. [N, P]
        mask: True where a token is real; None if all are to be looked at, padding too, as Stable Diffusion does. [N, L]
    """

    context: Tensor
    pooled: Tensor | None
    mask: Tensor | None = None


class TextEmbeddings(nn.Module):
    """A vector for each token plus one for each place."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.position_embedding = nn.Embedding(config.positions, config.width)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [N, L] -> [N, L, width]."""
        out: Tensor = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        return out


class TextEncoder(nn.Module):
    """Token ids to context and pooled vector; which state is the context, the config says."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.encoder = ClipTransformer(
            config.layers,
            config.width,
            inner=config.inner_width,
            heads=config.heads,
            activation=config.activation,
            causal=True,
        )
        self.final_layer_norm = nn.LayerNorm(config.width)
        if config.projection_width:
            self.text_projection = nn.Linear(config.width, config.projection_width, bias=False)

    def forward(self, ids: Tensor, *, skip_layers: int | None = None) -> TextEncoding:
        """Encode chunks of tokens, each with start, end and padding.

        Args:
            ids: [N, L], L at most `config.positions`.
            skip_layers: layers left out at the end for the context; None = as the config says. The pooled vector
                always comes from the last layer.

        Returns:
            context [N, L, width]; pooled [N, projection_width], or None without a projection.
        """
        self._check(ids)
        config = self.config
        skip = config.skip_layers if skip_layers is None else skip_layers
        if not 0 <= skip < config.layers:
            raise InvalidInput("skip_layers", given=skip, expected=f"an integer from 0 to {config.layers - 1}")
        hidden: Tensor = self.encoder(self.embeddings(ids), end=config.layers - skip)
        context = self.final_layer_norm(hidden) if config.final_norm else hidden
        if not config.projection_width:
            return TextEncoding(context, None)
        last: Tensor = self.final_layer_norm(self.encoder(hidden, first=config.layers - skip))  # [N, L, width]
        pooled: Tensor = self.text_projection(last[torch.arange(len(ids), device=ids.device), self._end_of(ids)])
        return TextEncoding(context, pooled)

    def _end_of(self, ids: Tensor) -> Tensor:
        """The place of each row's first end token. [N]"""
        return (ids == self.config.end_id).int().argmax(dim=-1)

    def _check(self, ids: Tensor) -> None:
        if ids.ndim != 2 or not 0 < ids.shape[1] <= self.config.positions:
            raise ShapeMismatch("token ids", given=tuple(ids.shape), expected=f"[N, 1..{self.config.positions}]")
