"""A BERT-style sentence encoder (Reimers and Gurevych 2019, arXiv:1908.10084): the text encoder of small models.

The parameter names are those of transformers' `BertModel`, without its pooler, which mean pooling does not use.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gouache.errors import ShapeMismatch
from gouache.models.configs import SentenceEncoderConfig
from gouache.models.text.clip import TextEncoding
from gouache.nn.attention import attend, key_mask
from gouache.nn.layers import Linear

__all__ = ["SentenceEncoder", "SentenceEncoderConfig", "mean_pool"]


class SentenceEncoder(nn.Module):
    """Token ids and their mask to one vector a token and one a sentence."""

    def __init__(self, config: SentenceEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = _Layers(config)

    def forward(self, ids: Tensor, mask: Tensor) -> TextEncoding:
        """Encode chunks of tokens.

        Args:
            ids: with start, end and padding. [N, L], L at most `config.positions`.
            mask: True where a token is real. [N, L]

        Returns:
            context [N, L, width], zero where the mask is; pooled [N, width], the mean over the real tokens; the mask.
        """
        if ids.ndim != 2 or not 0 < ids.shape[1] <= self.config.positions or mask.shape != ids.shape:
            raise ShapeMismatch(
                "token ids and mask",
                given=f"{tuple(ids.shape)} and {tuple(mask.shape)}",
                expected=f"both [N, 1..{self.config.positions}]",
            )
        # What is padding in every row is computed for nothing: nothing looks at it, and its states are zero.
        length = int(mask.any(0).nonzero().max()) + 1 if bool(mask.any()) else 1
        real = mask[:, :length]
        hidden: Tensor = self.encoder(self.embeddings(ids[:, :length]), key_mask(real))
        context = F.pad(hidden * real[..., None].to(hidden.dtype), (0, 0, 0, ids.shape[1] - length))
        return TextEncoding(context, mean_pool(context, mask), mask)


def mean_pool(context: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens: context [N, L, D], mask [N, L] -> [N, D]."""
    weights = mask[..., None].to(context.dtype)
    return (context * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


class _Embeddings(nn.Module):
    """Word, place and segment; a sentence encoder knows segment 0 only."""

    def __init__(self, config: SentenceEncoderConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary_size, config.width)
        self.position_embeddings = nn.Embedding(config.positions, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [N, L] -> [N, L, width]."""
        places = self.position_embeddings.weight[: ids.shape[1]]
        out: Tensor = self.LayerNorm(self.word_embeddings(ids) + self.token_type_embeddings.weight[0] + places)
        return out


class _Layers(nn.Module):
    def __init__(self, config: SentenceEncoderConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [N, L, width], mask [N, 1, 1, L] -> [N, L, width]."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class _Layer(nn.Module):
    """Attention and feed-forward, each residual, each followed by a layer norm."""

    def __init__(self, config: SentenceEncoderConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Dense(config.width, config.inner_width)
        self.output = _ResidualDense(config.inner_width, config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [N, L, width] -> [N, L, width]."""
        x = self.attention(x, mask)
        out: Tensor = self.output(F.gelu(self.intermediate.dense(x)), x)
        return out


class _Attention(nn.Module):
    def __init__(self, config: SentenceEncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        # Named `self` in the published files.
        self.self = nn.ModuleDict({name: Linear(config.width, config.width) for name in ("query", "key", "value")})
        self.output = _ResidualDense(config.width, config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [N, L, width] -> [N, L, width]."""
        query, key, value = (self.self[name](x) for name in ("query", "key", "value"))
        out: Tensor = self.output(attend(query, key, value, heads=self.heads, mask=mask), x)
        return out


class _Dense(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.dense = Linear(width_in, width_out)


class _ResidualDense(nn.Module):
    def __init__(self, width_in: int, config: SentenceEncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(width_in, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """x [N, L, width_in], residual [N, L, width] -> [N, L, width]."""
        out: Tensor = self.LayerNorm(self.dense(x) + residual)
        return out
