"""The configs of every network, apart from the networks: reading a file's header needs no torch.

The defaults of each are Stable Diffusion 1.x.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from gouache.config import Config
from gouache.errors import ConfigError
from gouache.models.scheduler_config import SchedulerConfig


class UNetConfig(Config):
    """Everything that decides the U-Net's tensors. The defaults are Stable Diffusion 1.x."""

    in_channels: int = Field(default=4, gt=0)
    """Channels of the noisy latents."""
    draft_channels: int = Field(default=0, ge=0)
    """Channels concatenated to the latents: 5 for inpainting (mask, masked latents), 4 for instruct-pix2pix,
    1 for depth, the prior's draft latents for the pocket model."""
    out_channels: int = Field(default=4, gt=0)
    """Channels of the output; twice `in_channels` for a network that predicts variances too."""
    channels: tuple[int, ...] = Field(default=(320, 640, 1280, 1280), min_length=1)
    """Width of each level, finest first."""
    layers_per_level: int = Field(default=2, gt=0)
    """Residual blocks of a level on the way down; the way up has one more."""
    transformer_layers: tuple[int, ...] = (1, 1, 1, 0)
    """Transformer blocks behind each residual block, by level; 0 = no attention at that level."""
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
    picture_width: int = Field(default=0, ge=0)
    """Width of a picture's embedding in networks that take it as `pooled`, with the waves of its noise level behind it
    (unCLIP); 0 = `pooled` is of the text."""
    pooled_grid_channels: int = Field(default=0, ge=0)
    """0: `pooled` is added to the time embedding. Else it is projected to this many channels, spread over the grid and
    concatenated to the latents: the simple form of conditioning."""
    norm_groups: int = Field(default=32, gt=0)
    """Groups of the group norms; divides every width."""

    @model_validator(mode="after")
    def _levels_agree(self) -> UNetConfig:
        levels = len(self.channels)
        up = self.up_transformer_layers
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

    def up_depths(self) -> list[list[int]]:
        """Transformer depth behind each residual block of the way up, coarsest level first."""
        if self.up_transformer_layers is not None:
            return [list(depths) for depths in self.up_transformer_layers]
        return [[depth] * (self.layers_per_level + 1) for depth in reversed(self.transformer_layers)]


class VAEConfig(Config):
    """Everything that decides the autoencoder's tensors and normalisation. The defaults are Stable Diffusion 1.x."""

    image_channels: int = Field(default=3, gt=0)
    """3 for RGB, 4 for RGBA."""
    latent_channels: int = Field(default=4, gt=0)
    channels: tuple[int, ...] = Field(default=(128, 256, 512, 512), min_length=1)
    """Width of each level, finest first; each level after the first halves the resolution."""
    layers_per_level: int = Field(default=2, gt=0)
    """Residual blocks of a level in the encoder; the decoder has one more."""
    norm_groups: int = Field(default=32, gt=0)
    middle_attention: bool = True
    """Whether the middle of encoder and decoder looks at all pixels."""
    quant_conv: bool = True
    """Whether 1x1 convolutions stand on both sides of the latents."""
    patch_size: int = Field(default=1, gt=0)
    """Above 1, patches of this edge are folded into channels in front of the encoder and unfolded behind the decoder,
    so that no convolution works at full resolution."""
    scale: float | tuple[float, ...] = 0.18215
    """Normalised latents are (moments - shift) * scale; one number, or one for each channel."""
    shift: float | tuple[float, ...] = 0.0
    decoder_channels: tuple[int, ...] = ()
    """Width of each level of the decoder, finest first, where they are others than the encoder's."""
    decoder_layers: int = Field(default=0, ge=0)
    """Residual blocks of a level in the decoder, where they are others than `layers_per_level` + 1; 0 = they aren't."""
    mask_condition: bool = False
    """Whether the decoder looks at the picture around a mask (AsymmetricAutoencoderKL)."""
    tiny_blocks: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Of a tiny autoencoder (`models.tiny_vae`): blocks of each level, the encoder's finest first, the decoder's
    coarsest first. Its `channels` are all the same, and it has no norms, attention and quant_conv."""

    @model_validator(mode="after")
    def _widths_agree(self) -> VAEConfig:
        for name, value in (("scale", self.scale), ("shift", self.shift)):
            if isinstance(value, tuple) and len(value) != self.latent_channels:
                raise ConfigError(
                    f"VAEConfig.{name}", given=f"{len(value)} numbers", expected=f"1 or {self.latent_channels}"
                )
        if len(self.decoder_channels) not in (0, len(self.channels)) or (
            self.tiny_blocks is not None and any(len(half) != len(self.channels) for half in self.tiny_blocks)
        ):
            raise ConfigError(
                "VAEConfig.decoder_channels",
                given=self.decoder_channels or self.tiny_blocks,
                expected=f"{len(self.channels)} levels, as the encoder has",
            )
        if any(width % self.norm_groups for width in (*self.channels, *self.decoder_channels)):
            raise ConfigError(
                "VAEConfig.channels", given=self.channels, expected=f"multiples of norm_groups {self.norm_groups}"
            )
        return self

    @property
    def downscale(self) -> int:
        """How many image pixels one latent pixel covers along an edge: 8 for Stable Diffusion."""
        return int(self.patch_size * 2 ** (len(self.channels) - 1))


class TextEncoderConfig(Config):
    """A CLIP text transformer and which of its states is the context. The defaults are those of ViT-L in SD 1.x."""

    vocabulary_size: int = Field(default=49408, gt=0)
    width: int = Field(default=768, gt=0)
    inner_width: int = Field(default=3072, gt=0)
    """Width inside the feed-forward network."""
    layers: int = Field(default=12, gt=0)
    heads: int = Field(default=12, gt=0)
    positions: int = Field(default=77, gt=2)
    """Tokens of one chunk, start and end included."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """OpenAI's CLIP has quick_gelu, OpenCLIP's ViT-H and bigG have gelu."""
    projection_width: int = Field(default=0, ge=0)
    """Width of the pooled vector; 0 = the file has no projection and the encoder gives no pooled vector."""
    skip_layers: int = Field(default=0, ge=0)
    """Layers left out at the end for the context: 0 = the last layer's state, 1 = the penultimate's."""
    final_norm: bool = True
    """Whether the last layer norm stands over the context (SD 1.x, 2.x: yes; SDXL: no)."""
    end_id: int = 49407
    """The token whose state becomes the pooled vector."""
    pad_id: int = 49407
    """What fills a chunk up: the end token for OpenAI's CLIP, 0 for OpenCLIP."""

    @model_validator(mode="after")
    def _layers_agree(self) -> TextEncoderConfig:
        if self.skip_layers >= self.layers:
            raise ConfigError(
                "TextEncoderConfig.skip_layers", given=self.skip_layers, expected=f"fewer than {self.layers} layers"
            )
        _check_heads("TextEncoderConfig", self.width, self.heads)
        return self


class SentenceEncoderConfig(Config):
    """A BERT-style encoder; the defaults are those of all-MiniLM-L6-v2."""

    vocabulary_size: int = Field(default=30522, gt=0)
    width: int = Field(default=384, gt=0)
    inner_width: int = Field(default=1536, gt=0)
    layers: int = Field(default=6, gt=0)
    heads: int = Field(default=12, gt=0)
    positions: int = Field(default=512, gt=2)
    max_tokens: int = Field(default=128, gt=2)
    """Tokens of one chunk, start and end included; not more than `positions`."""
    norm_eps: float = Field(default=1e-12, gt=0)
    lowercase: bool = True
    """Whether the tokenizer folds case and strips accents."""

    @model_validator(mode="after")
    def _sizes_agree(self) -> SentenceEncoderConfig:
        if self.max_tokens > self.positions:
            raise ConfigError(
                "SentenceEncoderConfig.max_tokens", given=self.max_tokens, expected=f"at most {self.positions}"
            )
        _check_heads("SentenceEncoderConfig", self.width, self.heads)
        return self


class ImageEncoderConfig(Config):
    """A CLIP vision tower with its projection; the defaults are those of ViT-L/14."""

    image_size: int = Field(default=224, gt=0)
    """Edge of the square picture, in pixels."""
    patch_size: int = Field(default=14, gt=0)
    width: int = Field(default=1024, gt=0)
    inner_width: int = Field(default=4096, gt=0)
    layers: int = Field(default=24, gt=0)
    heads: int = Field(default=16, gt=0)
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection_width: int = Field(default=768, gt=0)

    @model_validator(mode="after")
    def _sizes_agree(self) -> ImageEncoderConfig:
        if self.image_size % self.patch_size:
            raise ConfigError(
                "ImageEncoderConfig.image_size", given=self.image_size, expected=f"a multiple of {self.patch_size}"
            )
        _check_heads("ImageEncoderConfig", self.width, self.heads)
        return self


class IPAdapterConfig(Config):
    """An adapter through which pictures are looked at beside the text; the defaults are those of SD 1.5's plain one."""

    kind: Literal["plain", "plus", "full"] = "plain"
    """What makes tokens of a picture: one linear layer of its embedding (plain), a resampler of the tower's last states
    but one (plus), or two layers for each of these (full)."""
    tokens: int = Field(default=4, gt=0)
    """Tokens of a picture; those of the full kind are as many as the tower's states, whatever stands here."""
    picture_width: int = Field(default=1024, gt=0)
    """Width of what the tower gives: its projection for the plain kind, its states for the others."""
    context_width: int = Field(default=768, gt=0)
    """Width of the tokens, which is that of the text's."""
    block_widths: tuple[int, ...] = ()
    """Width of each cross-attention of the U-Net: way down, way up, middle."""
    width: int = Field(default=768, gt=0)
    """Width of the resampler."""
    inner_width: int = Field(default=3072, gt=0)
    """Width inside its feed-forward layers."""
    layers: int = Field(default=4, ge=0)
    """Layers of the resampler."""
    heads: int = Field(default=12, gt=0)
    """Attention heads of the resampler, each 64 wide."""


def _check_heads(where: str, width: int, heads: int) -> None:
    if width % heads:
        raise ConfigError(f"{where}.heads", given=heads, expected=f"a divisor of the width {width}")


class QuantizerConfig(Config):
    """Sizes of the quantizer."""

    latent_channels: int = 8
    latent_size: int = 16
    """Height and width of the latents."""
    features: int = 32
    """Channels of the feature map that is quantized."""
    width: int = 96
    """Channels of the convolutions around it."""
    blocks: int = 2
    """Residual blocks on each side."""
    levels: tuple[int, ...] = (5, 5, 5, 5)
    """Levels of every FSQ channel; their product is the size of the code book."""
    scales: tuple[int, ...] = (1, 2, 4, 8)
    """Side of every token grid, coarse to fine."""

    @model_validator(mode="after")
    def _scales_fit(self) -> QuantizerConfig:
        ascending = all(a < b for a, b in zip(self.scales, self.scales[1:], strict=False))
        if not self.scales or not ascending or self.latent_size % self.scales[-1]:
            raise ConfigError(
                "quantizer.scales", given=self.scales, expected=f"ascending sides, the last dividing {self.latent_size}"
            )
        if any(level < 3 for level in self.levels):
            raise ConfigError("quantizer.levels", given=self.levels, expected="3 or more levels in every channel")
        return self

    @property
    def vocabulary(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)

    @property
    def groups(self) -> tuple[int, ...]:
        """Number of tokens at every scale; their sum is the length of a picture in tokens."""
        return tuple(side * side for side in self.scales)


def _in_cells(tokens: int, turns: int, coarser: int) -> bool:
    """Whether a square grid falls into square cells of `turns` tokens, each within one of the `coarser` tokens."""
    side, cell = math.isqrt(tokens), math.isqrt(max(turns, 1))
    square = side * side == tokens and cell * cell == turns
    return turns == 1 or (square and cell & (cell - 1) == 0 and side % cell == 0 and turns * coarser <= tokens)


class PriorConfig(Config):
    """Sizes of the prior."""

    vocabulary: int = 625
    groups: tuple[int, ...] = (1, 4, 16, 64)
    """Tokens of every scale, in order; all ones is raster order."""
    turns: tuple[int, ...] = ()
    """Turns in which the tokens of every scale are drawn (1, 4, 16, ...); none: a scale at once."""
    features: int = 32
    """Channels of the quantized vectors it reads."""
    context_dim: int = 384
    pooled_dim: int = 384
    text: Literal["prefix", "cross"] = "prefix"
    width: int = 320
    depth: int = 8
    heads: int = 5
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    neighbours: int = Field(default=0, ge=0)
    """Remembered pictures that are recalled for a prompt; 0: none are remembered."""
    memory: int = Field(default=0, ge=0)
    """Pictures remembered; training fills it in."""

    @property
    def length(self) -> int:
        """Tokens of one picture."""
        return sum(self.groups)

    @property
    def in_turns(self) -> bool:
        """Whether any scale is drawn in more than one turn."""
        return any(turns > 1 for turns in self.turns)

    @model_validator(mode="after")
    def _turns_fit(self) -> PriorConfig:
        # A turn has a token in every coarser token's area, so that all that was drawn before can be seen from it.
        coarser = (1, *self.groups)
        fits = len(self.turns) in (0, len(self.groups)) and all(map(_in_cells, self.groups, self.turns, coarser))
        if not fits:
            raise ConfigError(
                "prior.turns",
                given=f"{self.turns} for scales of {self.groups} tokens",
                expected="for every scale 1, 4, 16, ...: a square cell that tiles its grid, no larger than a token of "
                "the scale before",
            )
        return self


class UpscalerConfig(Config):
    """Everything that decides the tensors of the up-sampling decoder."""

    image_channels: int = Field(default=4, gt=0)
    """3 for RGB, 4 for RGBA."""
    channels: int = Field(default=48, gt=0)
    """Width of the residual blocks."""
    blocks: int = Field(default=8, gt=0)
    scale: int = Field(default=4, ge=2)
    """How much larger the result is, on each side."""

    @property
    def radius(self) -> int:
        """How many pixels of the small picture it sees in each direction."""
        return 2 * self.blocks + 2


class NoiseScheduleConfig(Config):
    """Arguments of `diffusion.noise_schedule.make_noise_schedule`."""

    name: str = "scaled_linear"
    num_timesteps: int = Field(default=1000, gt=1)
    beta_start: float | None = None
    """None: the schedule's own; for scaled_linear 0.00085."""
    beta_end: float | None = None
    """None: the schedule's own; for scaled_linear 0.012."""
    continuous: bool = False
    zero_terminal_snr: bool = False
    shift: float = Field(default=1.0, gt=0)
    alphas_cumprod: tuple[float, ...] = ()
    """The table of a schedule named "table", which no formula gives."""
    sigma_min: float | None = Field(default=None, gt=0)
    """Least noise level of a schedule named "edm", in units of the data."""
    sigma_max: float | None = Field(default=None, gt=0)
    """Greatest noise level of the same."""
    sigma_data: float | None = Field(default=None, gt=0)
    """Deviation of the latents that its network's timestep is counted in."""


class DenoiserConfig(Config):
    """What turns the raw network into D(x, sigma)."""

    parameterization: Literal["eps", "v", "x0", "flow", "edm"] = "eps"
    """What the network's output means."""
    schedule: NoiseScheduleConfig = NoiseScheduleConfig()
    learned_variance: bool = False
    """Whether the second half of the network's output channels interpolates the variance."""


class GenerationDefaults(Config):
    """What a request that leaves these open gets from the model."""

    width: int = Field(default=512, gt=0)
    height: int = Field(default=512, gt=0)
    num_inference_steps: int = Field(default=50, gt=0)
    guidance_scale: float = 7.5
    sampler: str = "ddim"
    schedule: str = "uniform"
    """Name of the list of noise levels."""
    prior_temperature: float = Field(default=1.0, ge=0)
    prior_top_p: float = Field(default=1.0, gt=0, le=1)
    prior_guidance_scale: float = 1.0
    """How the prior draws, in models that have one."""
    prior_start_sigma: float = Field(default=0.0, ge=0)
    """Noise level at which the U-Net begins on its draft; 0 begins on noise alone."""
    scheduler: SchedulerConfig | None = None
    """The scheduler file of the folder that the model came from: the levels and options of the schedule "model"."""


class ControlNetConfig(Config):
    """Everything that decides a ControlNet's tensors. The defaults belong to Stable Diffusion 1.x."""

    unet: UNetConfig = UNetConfig()
    """The network it steers, of which it has the way down and the middle; depths of transformers may be its own."""
    hint_channels: int = Field(default=3, gt=0)
    """Channels of the control picture."""
    hint_widths: tuple[int, ...] = Field(default=(16, 32, 96, 256), min_length=1)
    """Widths of the convolutions that bring the control picture to the latents' size; each after the first halves."""
    hint_order: Literal["rgb", "bgr"] = "rgb"
    """Order of the control picture's channels."""
    pooled_residuals: bool = False
    """Whether only the means of its residuals over all pixels are added: the picture's content, not its structure."""

    @property
    def downscale(self) -> int:
        """How many pixels of the control picture one latent pixel covers along an edge."""
        return int(2 ** (len(self.hint_widths) - 1))
