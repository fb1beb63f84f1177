"""The configs of the networks that denoise: Stable Diffusion's U-Nets, and the transformer of its third version."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from gouache.config import Config
from gouache.errors import ConfigError


class UNetConfig(Config):
    """Everything that decides the U-Net's tensors. The defaults are Stable Diffusion 1.x."""

    in_channels: int = Field(default=4, gt=0)
    """Channels of the noisy latents."""
    draft_channels: int = Field(default=0, ge=0)
    """Channels concatenated to the latents: 5 for inpainting (mask, masked latents), 4 for instruct-pix2pix,
    1 for depth, 3 for the x4 upscaler (the small picture), the prior's draft latents for the pocket model."""
    out_channels: int = Field(default=4, gt=0)
    """Channels of the output; twice `in_channels` for a network that predicts variances too."""
    channels: tuple[int, ...] = Field(default=(320, 640, 1280, 1280), min_length=1)
    """Width of each level, finest first."""
    layers_per_level: int = Field(default=2, gt=0)
    """Residual blocks of a level on the way down; the way up has one more."""
    transformer_layers: tuple[int, ...] = (1, 1, 1, 0)
    """Transformer blocks behind each residual block, by level; 0 = no attention at that level."""
    down_transformer_layers: tuple[tuple[int, ...], ...] | None = None
    """The same block by block, finest level first, one number for each residual block; None = equal within a level.
    `transformer_layers` then has the first of each."""
    up_transformer_layers: tuple[tuple[int, ...], ...] | None = None
    """The same for the way up, coarsest level first, one number for each residual block; None = as on the way down."""
    middle_layers: int = Field(default=2, ge=0, le=2)
    """Residual blocks of the middle; some reduced networks have 1, or 0 and no middle at all."""
    middle_transformer_layers: int = Field(default=1, ge=0)
    """Transformer blocks behind the first residual block of the middle; 0 = none."""
    heads: tuple[int, ...] = (8, 8, 8, 8)
    """Attention heads by level; the middle has those of the last level."""
    context_width: int = Field(default=768, gt=0)
    """Width of the text's tokens."""
    linear_projection: bool = False
    """Linear layers around each transformer (SD 2.x, SDXL), not 1x1 convolutions (SD 1.x)."""
    only_cross_attention: tuple[bool, ...] = ()
    """Levels, finest first, whose transformers look at the text in place of their own pixels too; empty = none. The
    middle never does."""
    guidance_width: int = Field(default=0, ge=0)
    """Width of the guidance scale's embedding in networks that were distilled to be told it (latent consistency
    models); 0 = it isn't told."""
    pooled_width: int = Field(default=0, ge=0)
    """Width of the `pooled` vector; 0 = the network takes none. 2816 for SDXL (pooled text and six size numbers)."""
    pooled_grid_channels: int = Field(default=0, ge=0)
    """0: `pooled` is added to the time embedding. Else it is projected to this many channels, spread over the grid and
    concatenated to the latents: the simple form of conditioning."""
    picture_width: int = Field(default=0, ge=0)
    """Width of a picture's embedding in networks that take it as `pooled`, with the waves of its noise level behind it
    (unCLIP); 0 = `pooled` is of the text."""
    noise_levels: int = Field(default=0, ge=0)
    """Levels of the noise on a small picture beside the latents that the network tells apart (Stable Diffusion's x4
    upscaler: 1000); 0 = it is told none."""
    norm_groups: int = Field(default=32, gt=0)
    """Groups of the group norms; divides every width."""

    @model_validator(mode="after")
    def _levels_agree(self) -> UNetConfig:
        levels = len(self.channels)
        down, up = self.down_transformer_layers, self.up_transformer_layers
        crossing = len(self.only_cross_attention) not in (0, levels)
        wrong = len(self.transformer_layers) != levels or len(self.heads) != levels or (up and len(up) != levels)
        if wrong or crossing:
            raise ConfigError(
                "UNetConfig",
                given=f"{levels} channels, {len(self.transformer_layers)} transformer_layers, {len(self.heads)} heads",
                expected="one entry for each level in each of them",
            )
        for width, heads in zip(self.channels, self.heads, strict=True):
            if width % self.norm_groups or heads < 1 or width % heads:
                raise ConfigError(
                    "UNetConfig.channels",
                    given=width,
                    expected=f"a multiple of norm_groups {self.norm_groups} and of its level's {heads} heads",
                )
        if down is not None and (
            tuple(row[:1] for row in down) != tuple((first,) for first in self.transformer_layers)
            or any(len(row) != self.layers_per_level for row in down)
        ):
            raise ConfigError(
                "UNetConfig.down_transformer_layers",
                given=down,
                expected=f"{self.layers_per_level} numbers for each level, the first as in transformer_layers",
            )
        if any(len(depths) != self.layers_per_level + 1 for depths in up or ()):
            raise ConfigError(
                "UNetConfig.up_transformer_layers",
                given=up,
                expected=f"{self.layers_per_level + 1} numbers for each level",
            )
        return self

    @property
    def embedding_width(self) -> int:
        """Width of the time embedding."""
        return 4 * self.channels[0]

    @property
    def downscalings(self) -> int:
        """How often the feature maps are halved between the latents and the middle."""
        return len(self.channels) - 1

    @property
    def multiple(self) -> int:
        """What height and width of the latents are multiples of: any size will do."""
        return 1

    def down_depths(self) -> list[list[int]]:
        """Transformer depth behind each residual block of the way down, finest level first."""
        if self.down_transformer_layers is not None:
            return [list(depths) for depths in self.down_transformer_layers]
        return [[depth] * self.layers_per_level for depth in self.transformer_layers]

    def up_depths(self) -> list[list[int]]:
        """Transformer depth behind each residual block of the way up, coarsest level first."""
        if self.up_transformer_layers is not None:
            return [list(depths) for depths in self.up_transformer_layers]
        return [[depth] * (self.layers_per_level + 1) for depth in reversed(self.transformer_layers)]


class MMDiTConfig(Config):
    """Everything that decides the tensors of a multimodal diffusion transformer. The defaults are Stable Diffusion 3
    medium."""

    in_channels: int = Field(default=16, gt=0)
    """Channels of the noisy latents."""
    out_channels: int = Field(default=16, gt=0)
    """Channels of the prediction."""
    patch_size: int = Field(default=2, gt=0)
    """Edge of a patch, which is one token, in latent pixels."""
    layers: int = Field(default=24, gt=0)
    """Transformer blocks: 24 in medium, 38 in 3.5 large."""
    heads: int = Field(default=24, gt=0)
    """Attention heads."""
    head_width: int = Field(default=64, gt=0)
    """Channels of a head; `heads` times as many are the width of both streams."""
    context_width: int = Field(default=4096, gt=0)
    """Width of the text's tokens."""
    pooled_width: int = Field(default=2048, gt=0)
    """Width of the `pooled` vector."""
    grid: int = Field(default=192, gt=0)
    """Patches along an edge of the square that has codes of places, of which a picture takes the middle."""
    qk_norm: bool = False
    """Whether queries and keys are normed (RMS), as in 3.5."""
    dual_layers: tuple[int, ...] = ()
    """Blocks with a second attention among the picture's tokens: the first 13 of 3.5 medium."""

    @model_validator(mode="after")
    def _fits(self) -> MMDiTConfig:
        if self.width % 4 or any(not 0 <= layer < self.layers for layer in self.dual_layers):
            raise ConfigError(
                "MMDiTConfig",
                given=f"a width of {self.width}, {self.layers} layers, dual_layers {self.dual_layers}",
                expected="a width that is a multiple of 4, and dual layers among the layers",
            )
        return self

    @property
    def width(self) -> int:
        """Channels of both streams."""
        return self.heads * self.head_width

    @property
    def multiple(self) -> int:
        """What height and width of the latents are multiples of."""
        return self.patch_size

    @property
    def downscalings(self) -> int:
        """How often the feature maps are halved on the way: never."""
        return 0

    @property
    def draft_channels(self) -> int:
        """Channels beside the noisy latents: this network takes none."""
        return 0

    @property
    def guidance_width(self) -> int:
        """Width of the guidance scale's embedding: this network isn't told it."""
        return 0


NetworkConfig = UNetConfig | MMDiTConfig
"""Of a network that denoises."""
UNET_TAG, MMDIT_TAG = "", " "
"""Blank, so that errors don't show them."""


def _tag_of(value: object) -> str:
    keys = set(value) if isinstance(value, dict) else set()
    only_there = set(MMDiTConfig.model_fields) - set(UNetConfig.model_fields)
    return MMDIT_TAG if isinstance(value, MMDiTConfig) or keys & only_there else UNET_TAG


NetworkTable = Annotated[
    Annotated[UNetConfig, Tag(UNET_TAG)] | Annotated[MMDiTConfig, Tag(MMDIT_TAG)], Discriminator(_tag_of)
]
"""The same as a field of another config: its keys say which it is."""
