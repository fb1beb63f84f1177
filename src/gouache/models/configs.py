"""The configs of every network, apart from the networks: reading a file's header needs no torch. Those of the networks
that denoise are in `network_configs`.

The defaults of each are Stable Diffusion 1.x.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from gouache.config import Config
from gouache.errors import ConfigError
from gouache.models.network_configs import MMDiTConfig as MMDiTConfig
from gouache.models.network_configs import NetworkConfig as NetworkConfig
from gouache.models.network_configs import UNetConfig as UNetConfig
from gouache.models.scheduler_config import SchedulerConfig


class VAEConfig(Config):
    """Everything that decides the autoencoder's tensors and normalisation. The defaults are Stable Diffusion 1.x."""

    image_channels: int = Field(default=3, gt=0)
    """3 for RGB, 4 for RGBA."""
    latent_channels: int = Field(default=4, gt=0)
    """Channels of the latents."""
    channels: tuple[int, ...] = Field(default=(128, 256, 512, 512), min_length=1)
    """Width of each level, finest first; each level after the first halves the resolution."""
    layers_per_level: int = Field(default=2, gt=0)
    """Residual blocks of a level in the encoder; the decoder has one more."""
    norm_groups: int = Field(default=32, gt=0)
    """Groups of every group norm; divides all `channels`."""
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
    """Subtracted from the moments before they are scaled; one number, or one for each channel."""
    decoder_channels: tuple[int, ...] = ()
    """Width of each level of the decoder, finest first, where they are others than the encoder's."""
    decoder_layers: int = Field(default=0, ge=0)
    """Residual blocks of a level in the decoder, where they are others than `layers_per_level` + 1; 0 = they aren't."""
    mask_condition: bool = False
    """Whether the decoder looks at the picture around a mask (AsymmetricAutoencoderKL)."""
    narrow_edges: float = Field(default=0.0, ge=0, le=4)
    """How far the decoder's last step moves colours away from edges, for drawings (`nn/sharpen.py`); 0 = not at all."""
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
    """Tokens it knows."""
    width: int = Field(default=384, gt=0)
    """Width of a token's vector."""
    inner_width: int = Field(default=1536, gt=0)
    """Width inside the feed-forward network."""
    layers: int = Field(default=6, gt=0)
    """Transformer blocks."""
    heads: int = Field(default=12, gt=0)
    """Attention heads; divides `width`."""
    positions: int = Field(default=512, gt=2)
    """Places that have a vector of their own."""
    max_tokens: int = Field(default=128, gt=2)
    """Tokens of one chunk, start and end included; not more than `positions`."""
    norm_eps: float = Field(default=1e-12, gt=0)
    """Added to the variance in every layer norm."""
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


class T5Config(Config):
    """The encoder of T5 1.1; the defaults are those of T5-XXL, which Stable Diffusion 3 reads with."""

    vocabulary_size: int = Field(default=32128, gt=0)
    """Rows of the table of tokens; the vocabulary has fewer."""
    width: int = Field(default=4096, gt=0)
    inner_width: int = Field(default=10240, gt=0)
    """Width inside the feed-forward network."""
    layers: int = Field(default=24, gt=0)
    heads: int = Field(default=64, gt=0)
    head_width: int = Field(default=64, gt=0)
    buckets: int = Field(default=32, ge=4)
    """Rows of the table of biases for the places' distances."""
    max_distance: int = Field(default=128, gt=0)
    """From here on all distances share one row."""
    norm_eps: float = Field(default=1e-6, gt=0)

    @model_validator(mode="after")
    def _buckets_agree(self) -> T5Config:
        if self.buckets % 4 or self.max_distance <= self.buckets // 4:
            raise ConfigError(
                "T5Config.buckets",
                given=f"{self.buckets} for distances up to {self.max_distance}",
                expected="a multiple of 4, and fewer than 4 times the distance",
            )
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
    """Channels of the latents that it quantizes."""
    latent_size: int = 16
    """Height and width of the latents."""
    features: int = 32
    """Channels of the feature map that is quantized."""
    width: int = 96
    """Channels of the convolutions around it."""
    blocks: int = 2
    """Residual blocks on each side."""
    decoder_blocks: tuple[int, int] | None = None
    """Residual blocks of the decoder, on the finest token grid and at the latents' size; none takes `blocks` for both.
    A decoder may be deeper than the encoder that made the tokens."""
    levels: tuple[int, ...] = (5, 5, 5, 5)
    """Levels of every FSQ channel; their product is the size of the code book."""
    scales: tuple[int, ...] = (1, 2, 4, 8)
    """Side of every token grid, coarse to fine."""
    residual_codes: int = Field(default=0, ge=0, le=256)
    """Codes for what a draft leaves of the latents at a place (`models/memory/residuals.py`); 0: it is lost."""

    @model_validator(mode="after")
    def _scales_fit(self) -> QuantizerConfig:
        ascending = all(a < b for a, b in zip(self.scales, self.scales[1:], strict=False))
        if not self.scales or not ascending or self.latent_size % self.scales[-1]:
            raise ConfigError(
                "quantizer.scales", given=self.scales, expected=f"ascending sides, the last dividing {self.latent_size}"
            )
        if any(level < 3 for level in self.levels):
            raise ConfigError("quantizer.levels", given=self.levels, expected="3 or more levels in every channel")
        if self.decoder_blocks is not None and min(self.decoder_blocks) < 0:
            raise ConfigError("quantizer.decoder_blocks", given=self.decoder_blocks, expected="0 or more, twice")
        return self

    @property
    def decoder_depth(self) -> tuple[int, int]:
        """Residual blocks of the decoder, on the finest token grid and at the latents' size."""
        return self.decoder_blocks or (self.blocks, self.blocks)

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
    """Tokens that it chooses from."""
    groups: tuple[int, ...] = (1, 4, 16, 64)
    """Tokens of every scale, in order; all ones is raster order."""
    turns: tuple[int, ...] = ()
    """Turns in which the tokens of every scale are drawn (1, 4, 16, ...); none: a scale at once."""
    features: int = 32
    """Channels of the quantized vectors it reads."""
    context_dim: int = 384
    """Width of the text encoder's states."""
    pooled_dim: int = 384
    """Width of the text's pooled vector."""
    text: Literal["prefix", "cross"] = "prefix"
    """How the text is read: its states stand before the tokens, or cross-attention looks at them."""
    width: int = 320
    """Width of a token's vector."""
    depth: int = 8
    """Transformer blocks."""
    heads: int = 5
    """Attention heads; divides `width`."""
    mlp_ratio: float = 4.0
    """Width inside the feed-forward network, as a multiple of `width`."""
    dropout: float = 0.0
    """Share of activations set to 0 in training."""
    neighbours: int = Field(default=0, ge=0)
    """Remembered pictures that are recalled for a prompt; 0: none are remembered."""
    memory: int = Field(default=0, ge=0)
    """Pictures remembered; training fills it in."""
    residuals: int = Field(default=0, ge=0)
    """Places of a remembered picture whose residual codes are kept; training fills it in."""

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
    """Residual blocks."""
    scale: int = Field(default=4, ge=2)
    """How much larger the result is, on each side."""

    @property
    def radius(self) -> int:
        """How many pixels of the small picture it sees in each direction."""
        return 2 * self.blocks + 2


class NoiseScheduleConfig(Config):
    """Arguments of `diffusion.noise_schedule.make_noise_schedule`."""

    name: str = "scaled_linear"
    """The schedule: one of `diffusion.noise_schedule.NAMES`, "table" or "edm"."""
    num_timesteps: int = Field(default=1000, gt=1)
    """Timesteps T of the table."""
    beta_start: float | None = None
    """None: the schedule's own; for scaled_linear 0.00085."""
    beta_end: float | None = None
    """None: the schedule's own; for scaled_linear 0.012."""
    continuous: bool = False
    """Whether the closed form in continuous time is used instead of the table."""
    zero_terminal_snr: bool = False
    """Whether the table is rescaled so that its end is noise alone (Lin et al. 2024, arXiv:2305.08891)."""
    shift: float = Field(default=1.0, gt=0)
    """Shift of the levels of "flow"; 1 leaves them."""
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

    def with_zero_terminal_snr(self) -> DenoiserConfig | None:
        """The same with a schedule whose last level is noise alone (Lin et al. 2024, algorithm 1).

        None where that can't be: noise alone says nothing of the noise in it, and only tables of variance-preserving
        schedules are rescaled.
        """
        schedule = self.schedule
        if self.parameterization not in ("v", "x0") or schedule.continuous or schedule.name in ("flow", "ve", "edm"):
            return None
        return self.model_copy(update={"schedule": schedule.model_copy(update={"zero_terminal_snr": True})})


class GenerationDefaults(Config):
    """What a request that leaves these open gets from the model."""

    width: int = Field(default=512, gt=0)
    """Width of a picture in pixels."""
    height: int = Field(default=512, gt=0)
    """Height of a picture in pixels."""
    num_inference_steps: int = Field(default=50, gt=0)
    """Denoising steps."""
    guidance_scale: float = 7.5
    """Classifier-free guidance scale; 1 = off."""
    sampler: str = "ddim"
    """Name of the sampler."""
    schedule: str = "uniform"
    """Name of the list of noise levels."""
    prior_temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature of the prior, in models that have one; 0 = greedy."""
    prior_top_p: float = Field(default=1.0, gt=0, le=1)
    """Top-p (nucleus) sampling of the prior."""
    prior_guidance_scale: float = 1.0
    """How the prior draws, in models that have one."""
    prior_start_sigma: float = Field(default=0.0, ge=0)
    """Noise level at which the U-Net begins on its draft; 0 begins on noise alone."""
    prior_recall: float = Field(default=0.0, ge=0)
    """How closely a draft follows one remembered picture, in models whose prior has a memory."""
    prior_num_inference_steps: int | None = Field(default=None, gt=0)
    """Steps of a picture that begins on its draft, which has less noise to take away; None takes as many as others."""
    scheduler: SchedulerConfig | None = None
    """The scheduler file of the folder that the model came from: the levels and options of the schedule "model"."""

    def of_a_tuned_prior(self) -> GenerationDefaults:
        """The same for a prior that was trained further: it drafts as it has learned since, not as it remembers."""
        return self.model_copy(update={"prior_recall": 0.0})


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
    union_types: int = Field(default=0, ge=0)
    """Kinds of picture that a ControlNet-Union tells apart; 0 = it knows one kind and is told none."""
    union_layers: int = Field(default=1, gt=0)
    """Blocks in which a ControlNet-Union weighs its pictures."""

    @property
    def downscale(self) -> int:
        """How many pixels of the control picture one latent pixel covers along an edge."""
        return int(2 ** (len(self.hint_widths) - 1))


class JointControlNetConfig(Config):
    """Everything that decides the tensors of a ControlNet of Stable Diffusion 3, and how it was trained."""

    transformer: MMDiTConfig = MMDiTConfig()
    """Its own blocks; sizes of latents, patches and texts are those of the transformer that it steers."""
    reads_text: bool = True
    """Whether its blocks look at the text's tokens; not those of Stability AI's for 3.5 large."""
    own_places: bool = True
    """Whether it has a patch embedding of its own for the noisy latents; else it takes the transformer's."""
    zero_pooled: bool = True
    """Whether it was trained with zeros as the pooled text, and on latents without the autoencoder's shift."""


class T2IAdapterConfig(Config):
    """Everything that decides a T2I-Adapter's tensors. The defaults belong to Stable Diffusion 1.x."""

    kind: Literal["full", "full_xl", "light"] = "full"
    """Full adapters have a map for each level of the U-Net; SDXL's begin behind the first level's downsampling and end
    in the middle; light ones work in a quarter of the width."""
    hint_channels: int = Field(default=3, gt=0)
    """Channels of the control picture: 3, or 1 for pictures of lines."""
    fold: int = Field(default=8, gt=0)
    """Side of the squares of pixels that are folded into channels."""
    channels: tuple[int, ...] = Field(default=(320, 640, 1280, 1280), min_length=1)
    """Widths of the maps that it gives, finest first."""
    blocks: int = Field(default=2, gt=0)
    """Residual blocks for each map."""
