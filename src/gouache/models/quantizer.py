"""Multi-scale residual quantizer: latents -> a coarse-to-fine pyramid of tokens -> draft latents.

The code book is FSQ (Mentzer et al. 2024, "Finite Scalar Quantization"): every channel is rounded to a few levels, so
nothing can collapse. The pyramid is that of next-scale prediction (Tian et al. 2024, "Visual Autoregressive
Modeling", algorithm 1): each scale encodes what the coarser ones left over. One scale alone is a plain token grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gouache.errors import ConfigError, ShapeMismatch
from gouache.models.configs import QuantizerConfig
from gouache.models.memory.residuals import ResidualCodes, shared
from gouache.nn.layers import GroupNorm

__all__ = ["FSQ", "Quantizer", "QuantizerConfig"]


class FSQ(nn.Module):
    """Finite scalar quantization of the last dimension (Mentzer et al. 2024, equation 1, with its odd-even shift)."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels
        self.strides = tuple(math.prod(levels[:i]) for i in range(len(levels)))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Round `z` [..., D] of any size to codes in [-1, 1] (straight-through gradient) and their indices [...].

        In 32-bit floats: what lies just below a boundary is lost in half of them.
        """
        z = z.float()
        levels, half = z.new_tensor(self.levels), self._half(z)
        # Just below the outermost boundary, so that tanh can reach every level but none beyond.
        reach = (levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(z + torch.atanh(offset / reach)) * reach - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        digits = (rounded + half).round().long()
        return rounded / half, (digits * torch.tensor(self.strides, device=z.device)).sum(-1)

    def codes(self, indices: Tensor) -> Tensor:
        """The codes in [-1, 1] [..., D] of indices [...], as 32-bit floats."""
        levels, strides = (torch.tensor(t, device=indices.device) for t in (self.levels, self.strides))
        half = levels // 2
        return ((indices[..., None] // strides) % levels - half).float() / half

    def _half(self, like: Tensor) -> Tensor:
        return like.new_tensor([level // 2 for level in self.levels])


class Block(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = GroupNorm(8, width), GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x, activate=True))
        out: Tensor = x + self.conv2(self.norm2(h, activate=True))
        return out


def _levels(decoder: nn.Sequential) -> tuple[list[Block], list[Block]]:
    """A decoder's blocks before and behind its pixel shuffle."""
    levels: tuple[list[Block], list[Block]] = [], []
    behind = 0
    for layer in decoder:
        if isinstance(layer, Block):
            levels[behind].append(layer)
        behind += isinstance(layer, nn.PixelShuffle)
    return levels


class Quantizer(nn.Module):
    """Latents [B,C,h,w] <-> tokens [B,S], coarse scales first, each scale in raster order."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        c, f, w, d = config.latent_channels, config.features, config.width, len(config.levels)
        factor = config.latent_size // config.scales[-1]
        coarse, fine = config.decoder_depth
        self.encoder = nn.Sequential(
            nn.Conv2d(c, w, 3, padding=1),
            *(Block(w) for _ in range(config.blocks)),
            nn.Conv2d(w, w, factor, stride=factor),
            *(Block(w) for _ in range(config.blocks)),
            nn.Conv2d(w, f, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(f, w, 3, padding=1),
            *(Block(w) for _ in range(coarse)),
            nn.Conv2d(w, w * factor * factor, 1),
            nn.PixelShuffle(factor),
            *(Block(w) for _ in range(fine)),
            nn.Conv2d(w, c, 3, padding=1),
        )
        self.fsq = FSQ(config.levels)
        self.to_code = nn.ModuleList(nn.Linear(f, d) for _ in config.scales)
        self.from_code = nn.ModuleList(nn.Linear(d, f) for _ in config.scales)
        self.residual = ResidualCodes(config.residual_codes, c) if config.residual_codes else None

    @torch.no_grad()
    def take(self, other: Quantizer) -> None:
        """Copy another's weights. Blocks that only this decoder has begin as the identity: the drafts are the other's.

        Raises:
            ConfigError: the other's decoder is the deeper one.
        """
        depth, least = self.config.decoder_depth, other.config.decoder_depth
        if any(own < theirs for own, theirs in zip(depth, least, strict=True)):
            raise ConfigError(
                "quantizer.decoder_blocks", given=depth, expected=f"at least {least}, as in the weights to start from"
            )
        for own, theirs in zip(_levels(self.decoder), _levels(other.decoder), strict=True):
            for block, source in zip(own, theirs, strict=False):
                block.load_state_dict(source.state_dict())
            for block in own[len(theirs) :]:
                for parameter in block.conv2.parameters():
                    nn.init.zeros_(parameter)
        others = [[layer for layer in one.decoder if not isinstance(layer, Block)] for one in (self, other)]
        for layer, source in zip(*others, strict=True):
            layer.load_state_dict(source.state_dict())
        if self.residual is not None and other.residual is not None:
            self.residual.load_state_dict(other.residual.state_dict())
        for name in ("encoder", "to_code", "from_code"):
            self.get_submodule(name).load_state_dict(other.get_submodule(name).state_dict())

    def quantize(self, features: Tensor, *, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode features [B,F,s,s] into tokens [B,S] and their sum over scales [B,F,s,s].

        Args:
            features: what the encoder made of the latents.
            scales: number of scales kept for each picture [B]; the finer ones add nothing to the sum.
        """
        total = torch.zeros_like(features)
        tokens = []
        for k, side in enumerate(self.config.scales):
            left = F.adaptive_avg_pool2d(features - total, side)  # [B,F,k,k]
            code, index = self.fsq(self.to_code[k](left.flatten(2).mT))  # [B,k*k,D], [B,k*k]
            part = self._spread(self.from_code[k](code.to(features.dtype)), side)
            if scales is not None:
                part = part * (k < scales).view(-1, 1, 1, 1)
            total = total + part
            tokens.append(index)
        return torch.cat(tokens, dim=1), total

    def encode(self, latents: Tensor) -> Tensor:
        """Tokens [B,S] of normalised latents [B,C,h,w].

        Of whatever precision: a picture's latents are kept in fp32 where the networks compute in half.
        """
        self._check(latents)
        return self.quantize(self.encoder(latents.to(next(self.parameters()).dtype)))[0]

    def decode(self, tokens: Tensor, residuals: Tensor | None = None) -> Tensor:
        """Draft latents [B,C,h,w] of tokens [B,S], which may stop after any scale; residuals [B,h*w] refine them."""
        return self._refined(self.draft(self.features(tokens)[-1]), residuals)

    def residuals(self, latents: Tensor, tokens: Tensor) -> Tensor | None:
        """The residual codes [B,h*w] of latents [B,C,h,w] whose tokens [B,S] are known; None in a model without any."""
        if self.residual is None:
            return None
        self._check(latents)
        return self._left(latents, self.decode(tokens))

    def draft_of(self, latents: Tensor) -> Tensor:
        """The draft that latents [B,C,h,w] have themselves: through tokens and residual codes and back."""
        draft = self.decode(self.encode(latents))
        return self._refined(draft, self._left(latents, draft))

    def shared_residuals(self, residuals: Tensor, tokens: Tensor, other: Tensor) -> Tensor:
        """Residuals [B,h*w] of pictures with tokens [B,S] for drafts with others, where these are the same."""
        return shared(residuals, tokens, other, self.config.scales)

    def draft(self, total: Tensor) -> Tensor:
        """Draft latents of a sum of quantized features [B,F,s,s]."""
        draft: Tensor = self.decoder(total)
        return draft

    def reconstruct(self, latents: Tensor, *, scales: Tensor | None = None) -> Tensor:
        """Latents through the tokens and back, differentiable (straight-through)."""
        self._check(latents)
        return self.draft(self.quantize(self.encoder(latents), scales=scales)[1])

    def features(self, tokens: Tensor) -> list[Tensor]:
        """Running sums of quantized features [B,F,s,s] after 0, 1, ... of the scales that `tokens` [B,S'] covers."""
        side = self.config.scales[-1]
        weight = next(self.from_code.parameters())
        total = weight.new_zeros(len(tokens), self.config.features, side, side)
        sums, start = [total], 0
        for k, count in enumerate(self.config.groups):
            if start + count > tokens.shape[1]:
                break
            total = total + self._spread(self.vectors_of(k, tokens[:, start : start + count]), self.config.scales[k])
            sums.append(total)
            start += count
        if start != tokens.shape[1]:
            raise ShapeMismatch(
                "tokens", given=f"{tokens.shape[1]} of them", expected=f"whole scales of {self.config.groups} tokens"
            )
        return sums

    def inputs(self, tokens: Tensor) -> Tensor:
        """What the prior reads: for every scale, the sum of the coarser ones, at that scale's size [B,S,F].

        With tokens of the first K scales the result covers K + 1 scales, so that it serves training (all tokens) and
        sampling (the scale to come) alike.
        """
        sums = self.features(tokens)[: len(self.config.scales)]
        pooled = [F.adaptive_avg_pool2d(s, side) for s, side in zip(sums, self.config.scales, strict=False)]
        return torch.cat([p.flatten(2).mT for p in pooled], dim=1)

    def vectors(self, tokens: Tensor) -> Tensor:
        """The quantized vector of every token, each by its scale's own projection: tokens [B,S] -> [B,S,F]."""
        parts = torch.split(tokens, list(self.config.groups), dim=1)
        return torch.cat([self.vectors_of(k, part) for k, part in enumerate(parts)], dim=1)

    def vectors_of(self, scale: int, tokens: Tensor) -> Tensor:
        """The quantized vectors of tokens of one scale: [B,N] -> [B,N,F]."""
        project = self.from_code[scale]
        out: Tensor = project(self.fsq.codes(tokens).to(next(project.parameters()).dtype))
        return out

    def _left(self, latents: Tensor, draft: Tensor) -> Tensor | None:
        """The codes [B,h*w] of what a draft leaves of latents."""
        if self.residual is None:
            return None
        codes: Tensor = self.residual(latents.float() - draft.float())
        return codes

    def _refined(self, draft: Tensor, residuals: Tensor | None) -> Tensor:
        if residuals is None or self.residual is None:
            return draft
        return draft + self.residual.latents(residuals, self.config.latent_size).to(draft.dtype)

    def _spread(self, part: Tensor, side: int) -> Tensor:
        """Vectors of one scale [B,k*k,F] on the finest grid [B,F,s,s]."""
        grid = part.mT.reshape(len(part), -1, side, side)
        finest = self.config.scales[-1]
        return grid if side == finest else F.interpolate(grid, size=(finest, finest), mode="bilinear")

    def _check(self, latents: Tensor) -> None:
        config = self.config
        wanted = (config.latent_channels, config.latent_size, config.latent_size)
        if tuple(latents.shape[1:]) != wanted:
            raise ShapeMismatch(
                "latents", given=tuple(latents.shape), expected=f"[batch, {', '.join(map(str, wanted))}]"
            )
