"""The JSON and tokenizer files of a diffusers folder, made from our configs, so that `from_pretrained` takes it."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from gouache.checkpoints.diffusers.scheduler import EDM_PREDICTIONS, PREDICTIONS, SCHEDULES
from gouache.checkpoints.formats.safetensors import write_json
from gouache.errors import IncompatibleCheckpoint
from gouache.files import atomic_write
from gouache.models.configs import (
    ControlNetConfig,
    DenoiserConfig,
    JointControlNetConfig,
    MMDiTConfig,
    NetworkConfig,
    T5Config,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)
from gouache.models.family import SD3, family_named
from gouache.models.scheduler_config import SCHEDULER_CLASSES, SchedulerConfig
from gouache.models.text.tokenizers import END, END_ID, MERGES, MERGES_FILE, START, START_ID
from gouache.models.text.unigram import SENTINELS, UNIGRAM_END, UNIGRAM_PAD, UNIGRAM_UNKNOWN, UnigramTokenizer

OURS_TO_PREDICTION = {ours: theirs for theirs, ours in PREDICTIONS.items()}
EDM_TO_PREDICTION = {ours: theirs for theirs, ours in EDM_PREDICTIONS.items()}
OURS_TO_SCHEDULE = {ours: theirs for theirs, ours in SCHEDULES.items()}
LAYOUT_VERSION = "0.35.0"
"""The version of diffusers whose files these are; it asks folders for one."""
BETAS = {"scaled_linear": (0.00085, 0.012), "linear": (0.0001, 0.02)}


def model_index(
    family: str, variant: str, where: str, scheduler: SchedulerConfig | None = None, *, t5: bool = False
) -> dict[str, object]:
    """``model_index.json``: which class runs each part; `t5` says whether there is a third text encoder.

    Raises:
        IncompatibleCheckpoint: diffusers has no pipeline for this family and variant.
    """
    traits = family_named(family, where)
    if variant not in traits.pipelines:
        raise IncompatibleCheckpoint(
            where,
            given=f"a {family} {variant} model",
            expected="one that diffusers has a pipeline for",
            cure="Convert it with --to gouache.",
        )
    kind = None if scheduler is None else SCHEDULER_CLASSES[scheduler.class_name].kind
    index: dict[str, object] = {
        "_class_name": traits.pipelines[variant],
        **({"is_cosxl_edit": True} if variant == "instruct" and kind == "edm" else {}),
        "_diffusers_version": LAYOUT_VERSION,
        "scheduler": ["diffusers", traits.scheduler if scheduler is None else scheduler.class_name],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    text, text_2 = ["transformers", "CLIPTextModel"], ["transformers", "CLIPTextModelWithProjection"]
    tokenizer, absent = ["transformers", "CLIPTokenizer"], [None, None]
    if family == SD3.name:
        del index["unet"]
        index |= {"transformer": ["diffusers", "SD3Transformer2DModel"], "text_encoder": text_2, "tokenizer": tokenizer}
        third, tokenizer_3 = ["transformers", "T5EncoderModel"], ["transformers", "T5TokenizerFast"]
        index |= {"text_encoder_2": text_2, "tokenizer_2": tokenizer}
        index |= {"text_encoder_3": third if t5 else absent, "tokenizer_3": tokenizer_3 if t5 else absent}
        return index | {"image_encoder": absent, "feature_extractor": absent}
    if traits.text_encoders == ("text_encoder",):
        index |= {"text_encoder": text, "tokenizer": tokenizer}
        index |= {"depth_estimator": absent} if variant == "depth" else {"safety_checker": absent}
        index |= {"feature_extractor": absent}
        if variant == "upscaler":
            index |= {"low_res_scheduler": ["diffusers", "DDPMScheduler"], "watermarker": absent}
        else:
            index |= {"image_encoder": absent, "requires_safety_checker": False}
    else:
        refiner = "text_encoder" not in traits.text_encoders
        index |= {"text_encoder": absent if refiner else text, "tokenizer": absent if refiner else tokenizer}
        index |= {
            "text_encoder_2": text_2,
            "tokenizer_2": tokenizer,
            "force_zeros_for_empty_prompt": traits.zero_negative,
        }
        index |= {"requires_aesthetics_score": True} if refiner else {}
    return index


def network_folder(config: NetworkConfig) -> str:
    """The folder of a network that denoises."""
    return "transformer" if isinstance(config, MMDiTConfig) else "unet"


def network_json(config: NetworkConfig, sample_size: int, where: str) -> dict[str, object]:
    """The ``config.json`` of a network that denoises. Errors as in `unet_json`."""
    return mmdit_json(config, sample_size) if isinstance(config, MMDiTConfig) else unet_json(config, sample_size, where)


def mmdit_json(config: MMDiTConfig, sample_size: int) -> dict[str, object]:
    """An MMDiT's ``config.json``."""
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": sample_size,
        "patch_size": config.patch_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_layers": config.layers,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_width,
        "joint_attention_dim": config.context_width,
        "caption_projection_dim": config.width,
        "pooled_projection_dim": config.pooled_width,
        "pos_embed_max_size": config.grid,
        "dual_attention_layers": list(config.dual_layers),
        "qk_norm": "rms_norm" if config.qk_norm else None,
    }


def unet_json(config: UNetConfig, sample_size: int, where: str) -> dict[str, object]:
    """A U-Net's ``config.json``.

    Raises:
        IncompatibleCheckpoint: the network has something that diffusers' config can't say.
    """
    depths = list(config.transformer_layers)
    # There is one entry for the last level and the middle; a level without attention ignores its own.
    if config.middle_transformer_layers and not depths[-1]:
        depths[-1] = config.middle_transformer_layers
    one_resnet = config.middle_layers == 1 and not config.middle_transformer_layers
    plain = config.middle_layers == 2 and config.middle_transformer_layers == depths[-1]
    if config.pooled_grid_channels or not (plain or one_resnet or config.middle_layers == 0):
        raise IncompatibleCheckpoint(
            where,
            given="a U-Net with a middle or a conditioning of gouache's own",
            expected="one that diffusers' config can describe",
            cure="Convert it with --to gouache.",
        )
    up, uneven = config.up_transformer_layers, config.down_transformer_layers is not None
    # The middle is as deep as the first block of the last level.
    rows = [[depth or 1 for depth in row] for row in config.down_depths()]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": sample_size,
        "in_channels": config.in_channels + config.draft_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.layers_per_level,
        "down_block_types": ["CrossAttnDownBlock2D" if n else "DownBlock2D" for n in config.transformer_layers],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if plain else "UNetMidBlock2D" if one_resnet else None,
        "up_block_types": ["CrossAttnUpBlock2D" if any(row) else "UpBlock2D" for row in config.up_depths()],
        "transformer_layers_per_block": [*rows[:-1], [depths[-1] or 1, *rows[-1][1:]]]
        if uneven
        else [depth or 1 for depth in depths],
        "reverse_transformer_layers_per_block": [[depth or 1 for depth in row] for row in config.up_depths()]
        if uneven or up is not None
        else None,
        "attention_head_dim": list(config.heads) if len(set(config.heads)) > 1 else config.heads[0],
        "cross_attention_dim": config.context_width,
        "use_linear_projection": config.linear_projection,
        "only_cross_attention": list(config.only_cross_attention) or False,
        "time_cond_proj_dim": config.guidance_width or None,
        "addition_embed_type": "text_time" if config.pooled_width else None,
        "addition_time_embed_dim": 256 if config.pooled_width else None,
        "projection_class_embeddings_input_dim": config.pooled_width or None,
        "num_class_embeds": config.noise_levels or None,
        "norm_num_groups": config.norm_groups,
    }


CONTROLNET_KEYS = (
    "in_channels",
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "mid_block_type",
    "transformer_layers_per_block",
    "attention_head_dim",
    "cross_attention_dim",
    "use_linear_projection",
    "only_cross_attention",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "norm_num_groups",
)
"""What a ControlNet's ``config.json`` says as its U-Net's does."""


def controlnet_json(config: ControlNetConfig | JointControlNetConfig, where: str) -> dict[str, object]:
    """A ControlNet's ``config.json``. Errors as in `unet_json`."""
    if isinstance(config, JointControlNetConfig):
        return mmdit_json(config.transformer, config.transformer.grid) | {
            "_class_name": "SD3ControlNetModel",
            "extra_conditioning_channels": 0,
            "use_pos_embed": config.own_places,
            "force_zeros_for_pooled_projection": config.zero_pooled,
        }
    shared = unet_json(config.unet, 0, where)
    return {key: shared[key] for key in CONTROLNET_KEYS} | {
        "_class_name": "ControlNetModel",
        "conditioning_channels": config.hint_channels,
        "conditioning_embedding_out_channels": list(config.hint_widths),
        "controlnet_conditioning_channel_order": config.hint_order,
        "global_pool_conditions": config.pooled_residuals,
    }


def vae_json(config: VAEConfig, sample_size: int, where: str, sigma_data: float = 1.0) -> dict[str, object]:
    """An autoencoder's ``config.json``; latents have the deviation 1 here and `sigma_data` there. Errors as in
    `unet_json`."""
    if config.patch_size != 1 or config.narrow_edges:
        raise IncompatibleCheckpoint(
            where,
            given="an autoencoder with patches, or whose decoder narrows edges",
            expected="one that diffusers' config can describe",
            cure="Convert it with --to gouache.",
        )
    levels = len(config.channels)
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": sample_size,
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.layers_per_level,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": config.norm_groups,
        "mid_block_add_attention": config.middle_attention,
        "use_quant_conv": config.quant_conv,
        "use_post_quant_conv": config.quant_conv,
        **_latents_json(config, sigma_data),
    }


def _latents_json(config: VAEConfig, sigma_data: float) -> dict[str, object]:
    """How raw latents become those of the network, whose deviation is `sigma_data`."""
    scale, shift = config.scale, config.shift
    if not isinstance(scale, tuple) and not isinstance(shift, tuple):
        return {"scaling_factor": scale * sigma_data, "shift_factor": shift or None}
    scales = scale if isinstance(scale, tuple) else (scale,) * config.latent_channels
    shifts = shift if isinstance(shift, tuple) else (shift,) * config.latent_channels
    return {
        "scaling_factor": sigma_data,
        "latents_mean": list(shifts),
        "latents_std": [1 / one for one in scales],
    }


def text_json(config: TextEncoderConfig, *, projection: bool) -> dict[str, object]:
    """A CLIP text encoder's ``config.json``."""
    return {
        "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.width,
        "intermediate_size": config.inner_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.positions,
        "hidden_act": config.activation,
        "projection_dim": config.projection_width or config.width,
        "layer_norm_eps": 1e-5,
        "bos_token_id": START_ID,
        "eos_token_id": config.end_id,
        "pad_token_id": 1,
    }


def t5_json(config: T5Config) -> dict[str, object]:
    """The ``config.json`` of T5's encoder."""
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": config.vocabulary_size,
        "d_model": config.width,
        "d_ff": config.inner_width,
        "d_kv": config.head_width,
        "num_layers": config.layers,
        "num_heads": config.heads,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def scheduler_json(
    config: DenoiserConfig, family: str, where: str, scheduler: SchedulerConfig | None = None
) -> dict[str, object]:
    """``scheduler_config.json``: the model's own scheduler if it came with one, else its family's.

    Raises:
        IncompatibleCheckpoint: diffusers' schedulers have no such schedule or prediction.
    """
    name = family_named(family, where).scheduler if scheduler is None else scheduler.class_name
    kind = SCHEDULER_CLASSES[name].kind
    values: dict[str, object] = {"_class_name": name}
    if config.schedule.name == "edm" and config.parameterization in EDM_TO_PREDICTION and scheduler is not None:
        values["prediction_type"] = EDM_TO_PREDICTION[config.parameterization]
    elif config.schedule.name == "flow" and kind == "flow":
        values["shift"] = config.schedule.shift
    elif config.schedule.name == "flow" and scheduler is not None:
        values["prediction_type"] = "flow_prediction"
    else:
        values |= _noise_json(config, where)
    values["num_train_timesteps"] = config.schedule.num_timesteps
    if scheduler is not None:
        return values | scheduler.model_dump(exclude_none=True, exclude={"class_name"})
    if kind == "flow":
        return values
    own = {"clip_sample": False, "set_alpha_to_one": False} if kind == "chain" else {}
    return values | {"steps_offset": 1, "timestep_spacing": "leading"} | own


def _noise_json(config: DenoiserConfig, where: str) -> dict[str, object]:
    """The part of `scheduler_json` that was trained: the noise schedule and the prediction."""
    schedule = config.schedule
    table = schedule.name == "table"
    if (schedule.name not in OURS_TO_SCHEDULE and not table) or config.parameterization not in OURS_TO_PREDICTION:
        raise IncompatibleCheckpoint(
            where,
            given=f"a {config.parameterization} network on the schedule {schedule.name}",
            expected=f"{', '.join(OURS_TO_PREDICTION)} on {', '.join(OURS_TO_SCHEDULE)}",
            cure="Convert it with --to gouache.",
        )
    start, end = BETAS.get(schedule.name, (0.0001, 0.02))
    return {
        "beta_schedule": "linear" if table else OURS_TO_SCHEDULE[schedule.name],
        "trained_betas": _betas(schedule.alphas_cumprod) if table else None,
        "beta_start": start if schedule.beta_start is None else schedule.beta_start,
        "beta_end": end if schedule.beta_end is None else schedule.beta_end,
        "prediction_type": OURS_TO_PREDICTION[config.parameterization],
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
    }


def _betas(alphas_cumprod: tuple[float, ...]) -> list[float]:
    return [1 - after / before for before, after in pairwise((1.0, *alphas_cumprod))]


def write_tokenizer(folder: Path, config: TextEncoderConfig) -> None:
    """CLIP's vocabulary and merges in the files that transformers' `CLIPTokenizer` reads."""
    folder.mkdir(exist_ok=True)
    merges = gzip.decompress(MERGES_FILE.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    write_json(folder / "vocab.json", dict(_vocabulary(merges)))
    with atomic_write(folder / "merges.txt") as file:
        file.write("\n".join(["#version: 0.2", *merges, ""]).encode("utf-8"))
    pad = "!" if config.pad_id == 0 else END
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": config.positions,
            "do_lower_case": True,
            "errors": "replace",
            **special,
        },
    )


def write_t5_tokenizer(folder: Path, tokenizer: UnigramTokenizer) -> None:
    """T5's vocabulary in the files that transformers' `T5TokenizerFast` reads."""
    folder.mkdir(exist_ok=True)
    with atomic_write(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_json().encode("utf-8"))
    special = {"eos_token": UNIGRAM_END, "unk_token": UNIGRAM_UNKNOWN, "pad_token": UNIGRAM_PAD}
    write_json(folder / "special_tokens_map.json", special)
    values = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": SENTINELS, **special}
    write_json(folder / "tokenizer_config.json", values)


def _vocabulary(merges: list[str]) -> Mapping[str, int]:
    """CLIP's numbering: the bytes as printable characters, the same at a word's end, the merges, start and end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    words = [*characters, *(f"{c}</w>" for c in characters), *(merge.replace(" ", "") for merge in merges), START, END]
    vocabulary = {word: i for i, word in enumerate(words)}
    if vocabulary[END] != END_ID:
        raise AssertionError(f"The packaged merges give {END} the number {vocabulary[END]}, not {END_ID}.")
    return vocabulary
