"""How a model takes a picture's embedding itself, without an adapter: unCLIP (Ramesh et al. 2022, arXiv:2204.06125,
section 2.1, as Stable unCLIP does it), and SDXL in place of its pooled text ("ReVision").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gouache.diffusion.betas import cosine_betas
from gouache.errors import InvalidInput, ShapeMismatch
from gouache.models.conditioning.image_encoder import PictureEncoder
from gouache.nn.layers import sinusoidal_embedding

LEVELS = 1000
"""Noise levels of an embedding."""


@dataclass(frozen=True, slots=True)
class EmbeddingNoise:
    """Noise on a picture's embedding, by which a model is told how far to trust it.

    Attributes:
        mean, std: of the embeddings that the model was trained with. [P]
        alphas_cumprod: share of the signal that is left at each level. [T]
    """

    mean: Tensor
    std: Tensor
    alphas_cumprod: Tensor

    @classmethod
    def plain(cls, width: int) -> EmbeddingNoise:
        """For embeddings that aren't normalised, with the cosine levels."""
        return cls(torch.zeros(width), torch.ones(width), (1 - cosine_betas(LEVELS)).cumprod(0))

    def noised(self, embedding: Tensor, level: int, noise: Tensor) -> Tensor:
        """sqrt(acp) x + sqrt(1 - acp) eps, in units of deviations from the mean (Ho et al. 2020, arXiv:2006.11239,
        equation 4).

        Args:
            embedding: [1 or B, P].
            level: 0 = the least noise.
            noise: standard normal. [B, P]

        Raises:
            ShapeMismatch: embeddings of another width.
            InvalidInput: there is no such level.
        """
        if embedding.shape[-1] != len(self.mean):
            raise ShapeMismatch("embedding", given=tuple(embedding.shape), expected=f"{len(self.mean)} channels")
        if not 0 <= level < len(self.alphas_cumprod):
            raise InvalidInput("noise_level", given=level, expected=f"0 to {len(self.alphas_cumprod) - 1}")
        share = float(self.alphas_cumprod[level])
        mean, std = self.mean.to(embedding), self.std.to(embedding)
        scaled = (embedding - mean) / std
        noised: Tensor = (share**0.5 * scaled + (1 - share) ** 0.5 * noise.to(embedding)) * std + mean
        return noised

    def with_level(self, embedding: Tensor, level: int, noise: Tensor) -> Tensor:
        """The noised embedding and the waves of its level: [1 or B, P], noise [B, P] -> [B, 2 P]."""
        noised = self.noised(embedding, level, noise)
        waves = sinusoidal_embedding(torch.full((len(noised),), float(level)), noised.shape[-1])
        return torch.cat([noised, waves.to(noised)], dim=1)


@dataclass(frozen=True, slots=True)
class OwnPictures:
    """What a model reads pictures with by itself.

    Attributes:
        encoder: its vision tower.
        noise: what is laid on an embedding.
    """

    encoder: PictureEncoder
    noise: EmbeddingNoise
