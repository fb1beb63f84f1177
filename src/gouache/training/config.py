"""The configs of a training run. They are read from TOML, and travel inside every checkpoint."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field

from gouache.config import Config
from gouache.errors import ConfigError, DataError, unknown_name
from gouache.models.prior import PriorConfig
from gouache.models.quantizer import QuantizerConfig
from gouache.models.unet import UNetConfig
from gouache.models.vae import VAEConfig

StageName = Literal["vae", "clip", "tokens", "prior", "denoiser"]
STAGES: tuple[StageName, ...] = ("vae", "clip", "tokens", "prior", "denoiser")


class LoopConfig(Config):
    """How long to train, and what to write while doing so. Training is counted in images."""

    seed: int = 0
    """Seed of everything random in the run: initial weights, order of the data, noise."""
    batch_size: int = Field(default=64, ge=1)
    """Images a step, over all processes together."""
    images: int = Field(default=1_000_000, ge=1)
    """Images to train on."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the networks; weights and optimizer stay in fp32."""
    channels_last: bool = True
    """Memory layout of pictures and convolutions; about 1.3 times faster on a CPU."""
    compile: bool = False
    """Compile the network with `torch.compile`."""
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    """Minutes between checkpoints."""
    keep: int = Field(default=3, ge=1)
    """Checkpoints kept; older ones are deleted."""
    log_images: int = Field(default=2_048, ge=1)
    """Images between two lines of the log."""
    validate_images: int = Field(default=100_000, ge=1)
    """Images between two validations; a sample sheet is drawn with each."""


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2019) with weight decay on matrices and kernels only."""

    learning_rate: float = Field(default=3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    accumulation: int = Field(default=1, ge=1)
    """Forward and backward passes a step; the batch is cut into as many parts."""
    warmup_images: int = Field(default=10_000, ge=0)
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "constant"
    """Course of the learning rate after the warm-up."""
    decay_images: int = Field(default=200_000, ge=1)
    """`inverse_sqrt` only: images at which the rate starts to fall (Karras et al. 2024, equation 67)."""
    final_fraction: float = Field(default=0.01, ge=0, le=1)
    """`linear` and `cosine`: the rate at the end, as a share of the peak."""
    eight_bit: bool = False
    """Keep the optimizer's moments in 8 bits (needs the package bitsandbytes and its device)."""


class EmaConfig(Config):
    """Power-function averages of the weights (Karras et al. 2024, section 3)."""

    lengths: tuple[float, ...] = (0.05, 0.10)
    """Relative widths sigma_rel of the averages that are tracked."""
    use: float = 0.05
    """The width that validation, samples and export use."""


class VaeStage(Config):
    """Stage 1: the KL autoencoder (Rombach et al. 2022, section 3.1)."""

    network: VAEConfig
    l1: float = 1.0
    l2: float = 1.0
    edges: float = 1.0
    """Weight of the absolute difference of the pictures' gradients, at three scales."""
    kl: float = Field(default=1e-4, ge=0)
    """Weight of the Kullback-Leibler term, a mean over the latents."""
    adversarial: float = Field(default=0.0, ge=0)
    """Weight of the patch discriminator; 0 leaves it out."""
    adversarial_start: int = 0
    """Images seen before the discriminator counts."""


class ClipStage(Config):
    """Stage 2: text tower and image tower, aligned by a contrastive loss (Radford et al. 2021)."""

    start: Path | None = None
    """Folder of the sentence encoder to start from; none starts from random weights."""
    train_text: bool = True
    embedding_dim: int = 256
    image_channels: tuple[int, ...] = (48, 96, 192, 256)


class TokensStage(Config):
    """Stage 3: the quantizer over a coarse grid of the latent."""

    network: QuantizerConfig
    scale_dropout: float = Field(default=0.25, ge=0, lt=1)
    """Share of pictures whose finest scales are left out, so that a coarse draft is a picture too."""


class PriorStage(Config):
    """Stage 4: the autoregressive transformer over the tokens, given text."""

    network: PriorConfig
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    token_noise: float = Field(default=0.1, ge=0, lt=1)
    """Largest share of input tokens replaced by random ones."""
    patience: int = Field(default=0, ge=0)
    """Stop after so many validations without a better held-out likelihood; 0 never stops early."""


class DenoiserStage(Config):
    """Stage 5: the latent diffusion U-Net."""

    network: UNetConfig
    parameterization: Literal["eps", "v", "x0", "flow"] = "v"
    schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid", "flow"] = "cosine"
    zero_terminal_snr: bool = False
    weight: Literal["uniform", "min_snr", "edm", "truncated_snr", "p2"] = "uniform"
    weight_gamma: float = 5.0
    learned_variance: bool = False
    """Predict the variance too, and train with L_hybrid (Nichol & Dhariwal 2021, equation 16)."""
    hybrid_lambda: float = 0.001
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    draft_dropout: float = Field(default=0.5, ge=0, le=1)
    """Share of pictures trained without the prior's draft."""
    draft_noise: float = Field(default=0.2, ge=0, lt=1)
    """Largest share of the draft's tokens replaced by random ones."""
    noise_offset: float = Field(default=0.0, ge=0)
    input_perturbation: float = Field(default=0.0, ge=0)
    gradient_checkpointing: bool = False
    freeze: tuple[str, ...] = ()
    """Names of parameters (prefixes) that are not trained."""


class TrainConfig(Config):
    """One run: the loop, the optimizer, the averages, and the one stage it trains."""

    loop: LoopConfig = LoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    vae: VaeStage | None = None
    clip: ClipStage | None = None
    tokens: TokensStage | None = None
    prior: PriorStage | None = None
    denoiser: DenoiserStage | None = None


def read_config(path: Path, stage: str) -> TrainConfig:
    """Read a run's config from TOML and check that it holds the wanted stage.

    Raises:
        DataError: no such file.
        UnknownName: `stage` is not a stage.
        ConfigError: not TOML, an unknown key, a value out of range, or no table for the stage.
    """
    if stage not in STAGES:
        raise unknown_name("stage", stage, STAGES)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(str(path), given="no such file", expected="a TOML config", cure="Pass --config FILE.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), given=str(error), expected="TOML") from error
    config = TrainConfig.from_dict(values, where=str(path))
    if getattr(config, stage) is None:
        raise ConfigError(str(path), given="no table for it", expected=f"a table [{stage}]", cure="Add the table.")
    return config
