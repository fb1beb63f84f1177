"""Tensors of weight files that are knowingly not loaded, each with the reason that `gouache inspect` gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gouache.models.configs import TextEncoderConfig
from gouache.models.family import SD2, SDXL

if TYPE_CHECKING:
    from gouache.checkpoints.detect import Part

SCHEDULE_TABLES = re.compile(
    r"^(betas|alphas_cumprod(_prev)?|sqrt_.*alphas_cumprod|log_one_minus_alphas_cumprod|posterior_.*|lvlb_weights"
    r"|logvar|denoiser\.(sigmas|log_sigmas)|(model\.)?model_sampling\.\w+)$"
)
LEFT_OUT: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(^|\.)model_ema\."), "the EMA copy of the weights"),
    (SCHEDULE_TABLES, "tables of the noise schedule"),
    (re.compile(r"\.(position_ids|attn_mask)$|^position_ids$"), "constant buffers"),
    (re.compile(r"(^|\.)logit_scale$"), "CLIP's logit scale, used in its training only"),
    (re.compile(r"^(first_stage_model\.)?loss\."), "the autoencoder's training losses"),
    (re.compile(r"^depth_model\."), "the MiDaS depth network"),
    (re.compile(r"^low_scale_model\."), "tables of the noise on small pictures"),
    (re.compile(r"^(embedder|noise_augmentor)\."), "the image embedder of unCLIP"),
    (re.compile(r"(^|\.)(visual|vision_model)\.|(^|\.)visual_projection\.weight$"), "CLIP's vision tower"),
    (re.compile(r"^safety_checker\."), "the safety checker"),
    (re.compile(r"(^|\.)(scaled_fp8|scale_input|input_scale|comfy_quant)$"), "what only multiplying in fp8 needs"),
    (re.compile(r"(^|\.)encoder\.embed_tokens\.weight$"), "a copy of T5's table of tokens"),
    (re.compile(r"(^|\.)decoder\.(block|embed_tokens|final_layer_norm)\.|^lm_head\."), "T5's decoder"),
    (re.compile(r"^(v_pred|ztsnr|edm_vpred\.sigma_(min|max)|edm_mean|edm_std)$"), "marks of the prediction type"),
)
LAST_TEXT_LAYER = "the last text layer and projection, which SD 2.x doesn't use"


def rest_of(parts: Mapping[str, Part], family: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Tensors outside every part: those known to be of no use, counted by reason, and the others."""
    counts: dict[str, int] = {}
    unexplained = []
    for header in {part.header.path: part.header for part in parts.values()}.values():
        here = {name: part for name, part in parts.items() if part.header.path == header.path}
        prefixes = tuple(part.prefix for part in here.values())
        for name in header.tensors:
            reason = left_out_reason(name, here, family)
            if reason:
                counts[reason] = counts.get(reason, 0) + 1
            elif not name.startswith(prefixes):
                unexplained.append(name)
    return counts, tuple(unexplained)


def left_out_reason(name: str, parts: Mapping[str, Part], family: str) -> str:
    """Why a tensor of a file is knowingly not loaded; empty if it has to be."""
    for pattern, reason in LEFT_OUT:
        if pattern.search(name):
            return reason
    text = parts.get("text_encoder")
    if text and family == SD2.name and text.naming == "open_clip" and isinstance(text.config, TextEncoderConfig):
        last = f"{text.prefix}transformer.resblocks.{text.config.layers}."
        if name.startswith(last) or name == f"{text.prefix}text_projection":
            return LAST_TEXT_LAYER
    if text and family == SDXL.name and name == f"{text.prefix}text_projection.weight":
        return LAST_TEXT_LAYER.replace("SD 2.x", "SDXL")
    return ""
