"""Between our configs and the JSON files of a diffusers folder.

Reading: what names and shapes show is counted (`blocks`); the JSON adds what they can't show, and where it speaks of
the same things it has to agree. Options that change the mathematics in a way gouache doesn't know are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Never, TypeVar

from gouache.errors import IncompatibleCheckpoint
from gouache.models.configs import (
    ControlNetConfig,
    JointControlNetConfig,
    MMDiTConfig,
    NetworkConfig,
    T2IAdapterConfig,
    T5Config,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)

Json = Mapping[str, object]

# Option -> what gouache's U-Net does. Another value means another network.
UNET_OPTIONS: dict[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, "text_time"),
    "addition_time_embed_dim": (None, 256),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "norm_eps": (1e-5,),
    "only_cross_attention": (False, True),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
MMDIT_OPTIONS: dict[str, tuple[object, ...]] = {"qk_norm": (None, "rms_norm")}
CONTROLNET_OPTIONS: dict[str, tuple[object, ...]] = {
    "controlnet_conditioning_channel_order": ("rgb", "bgr"),
    "global_pool_conditions": (False, True),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
}
JOINT_CONTROLNET_OPTIONS: dict[str, tuple[object, ...]] = {
    "extra_conditioning_channels": (0,),
    "pos_embed_type": ("sincos", None),
}
VAE_OPTIONS: dict[str, tuple[object, ...]] = {"act_fn": ("silu", "swish")}
TINY_VAE_OPTIONS: dict[str, tuple[object, ...]] = {
    "act_fn": ("relu",),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
}
TEXT_OPTIONS: dict[str, tuple[object, ...]] = {"layer_norm_eps": (1e-5,), "hidden_act": ("quick_gelu", "gelu")}
T5_OPTIONS: dict[str, tuple[object, ...]] = {"feed_forward_proj": ("gated-gelu",), "is_decoder": (False,)}
END_ID = 49407


def unet_from_json(values: Json, counted: UNetConfig, where: str) -> UNetConfig:
    """A U-Net's config: counted blocks, heads and groups from the JSON.

    Raises:
        IncompatibleCheckpoint: the JSON and the weights disagree, or an option is not one of ours.
    """
    own = {"class_embed_type": ("projection",), "addition_embed_type": (None,)} if counted.picture_width else {}
    known = {**UNET_OPTIONS, "time_embedding_dim": (None, counted.embedding_width), **own}
    _check_options(values, known, where)
    levels = len(counted.channels)
    _check_agreement(
        values,
        {
            "in_channels": counted.in_channels + counted.draft_channels,
            "out_channels": counted.out_channels,
            "block_out_channels": list(counted.channels),
            "use_linear_projection": counted.linear_projection if any(counted.transformer_layers) else None,
            "projection_class_embeddings_input_dim": counted.pooled_width or None,
        },
        where,
    )
    if values.get("num_class_embeds") != (counted.noise_levels or None):
        _disagree(where, "num_class_embeds", values.get("num_class_embeds"), counted.noise_levels or None)
    if values.get("time_cond_proj_dim") != (counted.guidance_width or None):
        _disagree(where, "time_cond_proj_dim", values.get("time_cond_proj_dim"), counted.guidance_width or None)
    crossing = values.get("only_cross_attention") or False
    crossings = tuple(map(bool, crossing)) if isinstance(crossing, list) else (bool(crossing),) * levels
    # The published files call the number of heads `attention_head_dim`.
    heads = values.get("num_attention_heads") or values.get("attention_head_dim", 8)
    return _updated(
        counted,
        {
            "heads": tuple(heads) if isinstance(heads, list) else (heads,) * levels,
            "norm_groups": values.get("norm_num_groups", 32),
            "only_cross_attention": crossings if any(crossings) else (),
        },
        where,
    )


def network_from_json(values: Json, counted: NetworkConfig, where: str) -> NetworkConfig:
    """The config of a network that denoises. Errors as in `unet_from_json`."""
    if isinstance(counted, MMDiTConfig):
        return mmdit_from_json(values, counted, where)
    return unet_from_json(values, counted, where)


def mmdit_from_json(values: Json, counted: MMDiTConfig, where: str) -> MMDiTConfig:
    """An MMDiT's config: counted blocks, heads from the JSON. Errors as in `unet_from_json`."""
    _check_options(values, MMDIT_OPTIONS, where)
    heads, head_width = values.get("num_attention_heads", 18), values.get("attention_head_dim", 64)
    if not isinstance(heads, int) or not isinstance(head_width, int) or heads * head_width != counted.width:
        _disagree(where, "num_attention_heads x attention_head_dim", f"{heads} x {head_width}", counted.width)
    dual = values.get("dual_attention_layers") or ()
    _check_agreement(
        {**values, "dual_attention_layers": list(dual) if isinstance(dual, list | tuple) else dual},
        {
            "in_channels": counted.in_channels,
            "out_channels": counted.out_channels,
            "patch_size": counted.patch_size,
            "num_layers": counted.layers,
            "joint_attention_dim": counted.context_width,
            "pooled_projection_dim": counted.pooled_width,
            "pos_embed_max_size": counted.grid,
            "dual_attention_layers": list(counted.dual_layers),
        },
        where,
    )
    if bool(values.get("qk_norm")) != counted.qk_norm:
        _disagree(where, "qk_norm", values.get("qk_norm"), "rms_norm" if counted.qk_norm else None)
    return _updated(counted, {"heads": heads, "head_width": head_width}, where)


def controlnet_from_json(values: Json, counted: ControlNetConfig, where: str) -> ControlNetConfig:
    """A ControlNet's config: counted blocks; heads, groups and the order of colours from the JSON. Errors as above."""
    _check_options(values, CONTROLNET_OPTIONS, where)
    hint: Json = {
        "conditioning_channels": counted.hint_channels,
        "conditioning_embedding_out_channels": list(counted.hint_widths),
        "num_control_type": counted.union_types or None,
    }
    _check_agreement(values, hint, where)
    return ControlNetConfig(
        unet=unet_from_json(values, counted.unet, where),
        hint_channels=counted.hint_channels,
        hint_widths=counted.hint_widths,
        hint_order="bgr" if values.get("controlnet_conditioning_channel_order") == "bgr" else "rgb",
        pooled_residuals=bool(values.get("global_pool_conditions", False)),
        union_types=counted.union_types,
        union_layers=counted.union_layers,
    )


def joint_controlnet_from_json(values: Json, counted: JointControlNetConfig, where: str) -> JointControlNetConfig:
    """A ControlNet of Stable Diffusion 3: counted blocks; heads and training from the JSON. Errors as above."""
    _check_options(values, JOINT_CONTROLNET_OPTIONS, where)
    if values.get("use_pos_embed", True) != counted.own_places:
        _disagree(where, "use_pos_embed", values.get("use_pos_embed"), counted.own_places)
    # Of a network that looks at no text neither its width nor norms of queries and keys mean anything.
    unread: tuple[str, ...] = () if counted.reads_text else ("joint_attention_dim", "qk_norm", "dual_attention_layers")
    unread += () if counted.own_places else ("pos_embed_max_size",)
    transformer = {key: value for key, value in values.items() if key not in unread}
    return counted.model_copy(
        update={
            "transformer": mmdit_from_json(
                {**transformer, "out_channels": None},  # it has no such layer
                counted.transformer,
                where,
            ),
            "zero_pooled": bool(values.get("force_zeros_for_pooled_projection", True)),
        }
    )


T2I_KINDS = {"full_adapter": "full", "full_adapter_xl": "full_xl", "light_adapter": "light"}


def t2i_from_json(values: Json, counted: T2IAdapterConfig, where: str) -> T2IAdapterConfig:
    """A T2I-Adapter's config: counted blocks, its kind from the JSON. Errors as in `unet_from_json`."""
    _check_options(values, {"adapter_type": (*T2I_KINDS,)}, where)
    kind = T2I_KINDS[str(values.get("adapter_type", "full_adapter"))]
    if (kind == "light") != (counted.kind == "light"):
        _disagree(where, "adapter_type", values.get("adapter_type"), f"{counted.kind}_adapter")
    # A light one's last level is as wide as the one before it, and isn't listed.
    channels = list(counted.channels[:-1] if kind == "light" else counted.channels)
    told: Json = {"channels": channels, "num_res_blocks": counted.blocks, "downscale_factor": counted.fold}
    _check_agreement(values, {**told, "in_channels": counted.hint_channels}, where)
    return T2IAdapterConfig.from_dict({**counted.model_dump(), "kind": kind}, where=where)


def vae_from_json(values: Json, counted: VAEConfig, where: str) -> VAEConfig:
    """An autoencoder's config: counted blocks; groups, scale and shift from the JSON. Errors as in `unet_from_json`."""
    tiny, asymmetric = counted.tiny_blocks, "down_block_out_channels" in values
    _check_options(values, VAE_OPTIONS if tiny is None else TINY_VAE_OPTIONS, where)
    shared: Json = {"in_channels": counted.image_channels, "latent_channels": counted.latent_channels}
    if tiny is not None:
        halves: Json = {"num_encoder_blocks": list(tiny[0]), "num_decoder_blocks": list(tiny[1])}
        _check_agreement(values, {**shared, **halves}, where)
        scale, shift = values.get("scaling_factor", 1.0), values.get("shift_factor") or 0.0
        return _updated(counted, {"scale": scale, "shift": shift}, where)
    blocks: Json = {"block_out_channels": list(counted.channels), "layers_per_block": counted.layers_per_level}
    if asymmetric:
        blocks = {
            "down_block_out_channels": list(counted.channels),
            "up_block_out_channels": list(counted.decoder_channels or counted.channels),
            "layers_per_down_block": counted.layers_per_level,
        }
    _check_agreement(values, {**shared, **blocks}, where)
    scale, shift = values.get("scaling_factor", counted.scale), values.get("shift_factor", counted.shift) or 0.0
    mean, std = values.get("latents_mean"), values.get("latents_std")
    if isinstance(mean, list) and isinstance(std, list) and isinstance(scale, int | float):
        scale, shift = tuple(scale / width for width in std), tuple(mean)
    return _updated(counted, {"norm_groups": values.get("norm_num_groups", 32), "scale": scale, "shift": shift}, where)


def text_from_json(values: Json, counted: TextEncoderConfig, pad_id: int | None, where: str) -> TextEncoderConfig:
    """A text encoder's config: counted layers; heads and activation from the JSON, the padding from the tokenizer."""
    inner = values.get("text_config")
    values = inner if isinstance(inner, dict) else values
    _check_options(values, TEXT_OPTIONS, where)
    _check_agreement(
        values,
        {
            "hidden_size": counted.width,
            "intermediate_size": counted.inner_width,
            "num_hidden_layers": counted.layers,
            "vocab_size": counted.vocabulary_size,
            "max_position_embeddings": counted.positions,
        },
        where,
    )
    return _updated(
        counted,
        {
            "heads": values.get("num_attention_heads", counted.heads),
            "activation": values.get("hidden_act", counted.activation),
            "pad_id": counted.pad_id if pad_id is None else pad_id,
        },
        where,
    )


def t5_from_json(values: Json, counted: T5Config, where: str) -> T5Config:
    """The config of T5's encoder: counted layers; the norms' epsilon and the largest distance from the JSON."""
    _check_options(values, T5_OPTIONS, where)
    _check_agreement(
        values,
        {
            "vocab_size": counted.vocabulary_size,
            "d_model": counted.width,
            "d_ff": counted.inner_width,
            "d_kv": counted.head_width,
            "num_layers": counted.layers,
            "num_heads": counted.heads,
            "relative_attention_num_buckets": counted.buckets,
        },
        where,
    )
    eps, distance = values.get("layer_norm_epsilon", 1e-6), values.get("relative_attention_max_distance", 128)
    return _updated(counted, {"norm_eps": eps, "max_distance": distance}, where)


AnyConfig = TypeVar("AnyConfig", UNetConfig, MMDiTConfig, VAEConfig, TextEncoderConfig, T5Config)


def _updated(config: AnyConfig, update: dict[str, object], where: str) -> AnyConfig:
    return type(config).from_dict({**config.model_dump(), **update}, where=where)


def _check_options(values: Json, options: Mapping[str, tuple[object, ...]], where: str) -> None:
    for key, known in options.items():
        given = values.get(key, known[0])
        # A list says it for each block.
        if any(one not in known for one in (given if isinstance(given, list) and given else [given])):
            raise IncompatibleCheckpoint(
                where,
                given=f"{key} = {values[key]!r}",
                expected=f"one of {', '.join(map(repr, known))}",
                cure="gouache doesn't know networks with this option.",
            )


def _check_agreement(values: Json, counted: Json, where: str) -> None:
    for key, found in counted.items():
        configured = values.get(key)
        if configured is not None and found is not None and configured != found:
            _disagree(where, key, configured, found)


def _disagree(where: str, key: str, configured: object, found: object) -> Never:
    raise IncompatibleCheckpoint(
        where,
        given=f"{key} = {configured!r}",
        expected=f"{found!r}, as the weights beside it show",
        cure="The folder mixes files of two models; get it again.",
    )
