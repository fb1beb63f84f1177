"""Names the model that a LoRA was trained for, where it is none that gouache runs: Flux, Qwen-Image, Wan and others.

By the base model that the trainer wrote down, else by the names of tensors (with dots as underscores, since programs
differ in them), else, where several models have the same names, by how wide or how many their layers are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gouache.checkpoints.formats.header import TensorInfo

# Asked in this order; a word of the base model's name, as kohya, musubi-tuner and others write it -> the family.
BASES = (
    (r"flux[-_. ]?2|klein", "flux2"),
    (r"chroma", "chroma"),
    (r"flux", "flux"),
    (r"sd[-_]?3|stable-diffusion-3", "sd3"),
    (r"qwen", "qwen-image"),
    (r"hunyuan[-_ ]?image", "hunyuan-image"),
    (r"hunyuan[-_ ]?video|framepack|^fp", "hunyuan-video"),
    (r"hunyuan", "hunyuan-dit"),
    (r"(?<![a-z])wan(?![a-z])|wan[-_ ]?2", "wan"),
    (r"lumina", "lumina"),
    (r"z[-_ ]?image", "z-image"),
    (r"hidream", "hidream"),
    (r"pixart", "pixart"),
    (r"(?<![a-z])sana(?![a-z])", "sana"),
    (r"aura[-_ ]?flow", "auraflow"),
    (r"cascade|w(ue|u)rstchen", "stable-cascade"),
    (r"ltx", "ltx-video"),
    (r"cogvideo", "cogvideox"),
    (r"kolors", "kolors"),
    (r"mochi", "mochi"),
    (r"omnigen", "omnigen"),
    (r"(?<![a-z])anima(?![a-z])", "anima"),
    (r"cosmos", "cosmos"),
    (r"kandinsky", "kandinsky"),
    (r"stable-video|svd", "stable-video-diffusion"),
)
BASE_KEYS = ("ss_base_model_version", "modelspec.architecture", "ss_network_module")
# A pattern that some tensor's name has -> the family.
NAMES = (
    (r"motion_modules_", "animatediff"),
    (r"time_stack_|temporal_transformer_blocks_", "stable-video-diffusion"),
    (r"distilled_guidance_layer", "chroma"),
    (r"double_stream_modulation|single_stream_modulation|attn_to_qkv_mlp_proj", "flux2"),
    (r"double_stream_blocks_\d+_block|single_stream_blocks_\d+_block", "hidream"),
    (r"individual_token_refiner|token_refiner_refiner_blocks", "hunyuan-video"),
    (r"double_blocks_\d+_(img|txt)_(mlp_fc|mod_linear)|single_blocks_\d+_modulation_linear", "hunyuan-video"),
    (r"double_blocks_\d+_(img|txt)_(mlp_[02]|mod_lin(?!ear))|single_blocks_\d+_modulation_lin(?!ear)", "flux"),
    (r"double_blocks_\d+_processor_(qkv|proj)_lora|single_blocks_\d+_processor_(qkv|proj)_lora", "flux"),
    (r"txtfusion_|(^|_)blocks_\d+_attn_w[qkvo]_", "krea-2"),
    (r"llm_adapter_", "anima"),
    (r"joint_transformer_blocks_|double_layers_\d+_attn", "auraflow"),
    (r"joint_blocks_\d+_(x|context)_block", "sd3"),
    (r"transformer_blocks_\d+_(img|txt)_(mlp|mod)", "qwen-image"),
    (r"lora_prior_(unet|te)_|kv_mapper|clip_txt_mapper", "stable-cascade"),
    (r"(^|_)blocks_\d+_adaln_modulation|(^|_)blocks_\d+_(self|cross)_attn_(q|k|v|output)_proj", "cosmos or anima"),
    (
        r"(?<!\w)(lora_unet_|lycoris_|diffusion_model_|transformer_|base_model_model_)*blocks_\d+_(self|cross)_attn_(q|k|v|o)(_|$)",
        "wan",
    ),
    (r"(?<!\w)(lora_unet_|lycoris_|diffusion_model_|transformer_)*blocks_\d+_ffn_(0|2|net)", "wan"),
    (r"(^|_)blocks_\d+_attn[12]_(Wqkv|q_proj|kv_proj|out_proj)", "hunyuan-dit"),
    (r"(^|_)blocks_\d+_cross_attn_(q_linear|kv_linear)", "pixart"),
    (r"(^|_)blocks_\d+_attn_(qkv_x|qkv_y)", "mochi"),
    (r"(noise|context)_refiner_\d+_|(^|_)layers_\d+_attention_(qkv|out|to_)|(^|_)layers_\d+_feed_forward_w", "lumina?"),
    (r"(^|_)layers_\d+_self_attn_qkv_proj", "omnigen"),
    (r"encoder_hid_proj", "kolors"),
)
_BLOCK = re.compile(
    r"(?<!down_blocks)(?P<kind>double_blocks|single_blocks|single_transformer_blocks|transformer_blocks)_(?P<n>\d+)_"
)
_CONTEXT = re.compile(r"transformer_blocks_\d+_(ff_context|norm1_context)")
"""FLUX.1, Stable Diffusion 3 and others have a second stream of that name."""
_UNET = re.compile(r"(down|up)_blocks_\d|mid_block_|(in|out)put_blocks_\d|middle_block_\d")
_DOWN = ("lora_down.weight", "lora_A.weight", "lora_A.default.weight", "lora.down.weight")
WIDTHS = {
    1152: "pixart",
    1536: "sd3",
    2432: "sd3",
    2240: "sana",
    2304: "lumina",
    3072: "qwen-image",
    3840: "z-image",
    2048: "ltx-video",
    4096: "ltx-video",
    1920: "cogvideox",
}
"""Of the tokens in models of one transformer."""
OTHER = "another transformer"
FLUX_BLOCKS = {"double": 19, "single": 38}
"""Flux has as many; Hunyuan Video, whose layers have the same names, one and two more."""


def foreign_family(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> str | None:
    """The family of a LoRA for a model that gouache doesn't run; None if it may be one of gouache's."""
    joined = {name.replace(".", "_"): info for name, info in tensors.items()}
    told = " ".join(metadata.get(key, "") for key in BASE_KEYS)
    unet = any(_UNET.search(name) for name in joined)
    for pattern, family in BASES:
        if re.search(pattern, told, re.IGNORECASE) and not (
            unet and family not in ("kolors", "kandinsky", "stable-video-diffusion")
        ):
            return family
    for pattern, family in NAMES:
        if any(map(re.compile(pattern).search, joined)):
            return _by_width(joined, family.removesuffix("?")) if family.endswith("?") else family
    return None if unet else _by_blocks(joined)


def _by_blocks(joined: Mapping[str, TensorInfo]) -> str | None:
    """Transformers that share the names of their attention."""
    last: dict[str, int] = {}
    for name in joined:
        for match in _BLOCK.finditer(name):
            last[match["kind"]] = max(last.get(match["kind"], -1), int(match["n"]))
    double = last.get("double_blocks", -1)
    single = max(last.get("single_blocks", -1), last.get("single_transformer_blocks", -1))
    if double >= 0 or single >= 0:
        double = max(double, last.get("transformer_blocks", -1))
        if single > FLUX_BLOCKS["single"] + 1:
            return "flux2"
        more = double >= FLUX_BLOCKS["double"] or single >= FLUX_BLOCKS["single"]
        return "hunyuan-video" if more else "flux"
    if "transformer_blocks" not in last:
        return None
    if any(_CONTEXT.search(name) for name in joined):
        return _by_width(joined, "sd3")
    both = any("add_q_proj" in name or "add_k_proj" in name for name in joined)
    if both and last["transformer_blocks"] >= 38:
        return "qwen-image"
    if both:
        return {3072: "qwen-image"}.get(_width(joined), "sd3")
    return _by_width(joined, OTHER)


def _by_width(joined: Mapping[str, TensorInfo], otherwise: str) -> str:
    return WIDTHS.get(_width(joined), otherwise)


def _width(joined: Mapping[str, TensorInfo]) -> int:
    """How wide the tokens are that go into attention."""
    ends = tuple(end.replace(".", "_") for end in _DOWN)
    for name, info in joined.items():
        if name.endswith(ends) and re.search(r"attn1?_to_q|attention_(qkv|to_q)|attn_qkv", name) and info.shape:
            return info.shape[-1]
    return 0
