"""Tells adapters apart: LoRA and its relatives, textual inversion, ControlNet, T2I adapters; and names foreign models.

By tensor names and shapes only. Adapters are recognised and named here; who applies them reads more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gouache.checkpoints.formats.header import TensorInfo

Tensors = Mapping[str, TensorInfo]

# Asked in this order: a file may hold several kinds, and the first named is the one that needs most care.
LORA_KINDS = {
    "DoRA": (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
    "LoHa": (".hada_w1_a", ".hada_w1_b"),
    "LoKr": (".lokr_w1", ".lokr_w1_a"),
    "GLoRA": (".a1.weight", ".b1.weight"),
    "OFT": (".oft_blocks", ".oft_diag"),
    "IA3": (".on_input",),
    "LoCon": (".lora_mid.weight",),
    "LoRA": (
        ".lora_down.weight",
        ".lora_up.weight",
        ".lora_A.weight",
        ".lora_B.weight",
        "_lora.down.weight",
        "_lora.up.weight",
        ".lora.down.weight",
        ".lora.up.weight",
        ".lora_linear_layer.down.weight",
    ),
    "full difference": (".diff", ".diff_b", ".w_norm"),
}
KOHYA_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "oft_unet_", "lycoris_")
FAMILY_OF_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""A U-Net's family by the width of its context."""

FOREIGN = {
    "Flux": ("double_blocks.0.img_attn.", "double_stream_blocks.0."),
    "Stable Diffusion 3": ("joint_blocks.0.",),
    "PixArt or Sana": ("blocks.0.cross_attn.q_linear.", "adaln_single."),
    "Stable Cascade": ("down_blocks.0.2.kv_mapper.", "clip_txt_mapper."),
    "AuraFlow": ("double_layers.0.attn.",),
    "HunyuanDiT or Hunyuan Video": ("txt_in.individual_token_refiner.", "mlp_t5."),
    "Wan": ("head.modulation",),
    "LTX Video": ("patchify_proj.",),
    "AnimateDiff motion module": ("down_blocks.0.motion_modules.",),
    "Stable Video Diffusion": ("input_blocks.1.1.time_stack.", "time_mix_blocks"),
    "IP-Adapter": ("image_proj.", "ip_adapter."),
    "GLIGEN": ("position_net.",),
    "CLIP vision tower": ("vision_model.encoder.", "visual.transformer."),
    "T5 text encoder": ("encoder.block.0.layer.0.SelfAttention.",),
    "upscaler (ESRGAN kind)": ("RRDB_trunk.", "body.0.rdb1.", "model.1.sub.0.RDB1."),
    "TAESD": ("taesd_encoder.", "taesd_decoder.", "decoder.layers."),
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that was recognised.

    Attributes:
        kind: ``"lora"``, ``"textual-inversion"``, ``"controlnet"`` or ``"t2i-adapter"``.
        family: of the model it belongs to: sd1, sd2, sdxl, sdxl-refiner, or "unknown".
        label: a few words for people, for example ``"LoHa, kohya names"``.
    """

    kind: str
    family: str
    label: str


def find_adapter(tensors: Tensors, metadata: Mapping[str, str]) -> Adapter | None:
    """Which adapter these tensors are, or None."""
    return _lora(tensors, metadata) or _controlnet(tensors) or _t2i(tensors) or _textual_inversion(tensors)


def name_foreign(tensors: Tensors) -> str | None:
    """The name of a model family that gouache doesn't run, if the tensors are one's."""
    for name, marks in FOREIGN.items():
        if any(mark in tensor for tensor in tensors for mark in marks):
            return name
    return None


def _lora(tensors: Tensors, metadata: Mapping[str, str]) -> Adapter | None:
    if "lora_controlnet" in tensors:
        return Adapter("controlnet", _family_of_keys(tensors), "control-LoRA")
    for kind, suffixes in LORA_KINDS.items():
        if any(name.endswith(suffixes) for name in tensors):
            names = "kohya" if any(name.startswith(KOHYA_PREFIXES) for name in tensors) else "diffusers"
            return Adapter("lora", _lora_family(tensors, metadata), f"{kind}, {names} names")
    return None


def _lora_family(tensors: Tensors, metadata: Mapping[str, str]) -> str:
    """What the trainer wrote, else what the tensors show: the second text encoder, or the context's width."""
    base = metadata.get("ss_base_model_version", "") + metadata.get("modelspec.architecture", "")
    if base.startswith("sdxl_") or "stable-diffusion-xl" in base:
        return "sdxl"
    if metadata.get("ss_v2") == "True" or "stable-diffusion-v2" in base:
        return "sd2"
    if any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in tensors):
        return "sdxl"
    for name, info in tensors.items():
        attends = "attn2" in name and ("to_k" in name or "to_v" in name)
        if attends and name.endswith(
            ("lora_down.weight", "lora_A.weight", "lora.down.weight", "hada_w1_b", "lokr_w2_b")
        ):
            return FAMILY_OF_WIDTH.get(info.shape[-1] if info.shape else 0, "unknown")
    # Only SDXL puts more than one transformer block behind a residual block.
    if any("transformer_blocks_1_" in name or "transformer_blocks.1." in name for name in tensors):
        return "sdxl"
    return "sd1" if metadata.get("ss_v2") == "False" or base.startswith("sd_v1") else "unknown"


def _controlnet(tensors: Tensors) -> Adapter | None:
    marks = {
        "control_model.input_hint_block.0.weight": "in a single file",
        "input_hint_block.0.weight": "extracted from a single file",
        "controlnet_cond_embedding.conv_in.weight": "diffusers names",
        "control_add_embedding.linear_1.weight": "union",
    }
    for mark, label in marks.items():
        if mark in tensors:
            kind = "difference to the base model, " if "difference" in tensors else ""
            return Adapter("controlnet", _family_of_keys(tensors), f"ControlNet, {kind}{label}")
    return None


def _family_of_keys(tensors: Tensors) -> str:
    for name, info in tensors.items():
        if name.endswith("attn2.to_k.weight") and len(info.shape) == 2:
            return FAMILY_OF_WIDTH.get(info.shape[1], "unknown")
    return "unknown"


def _t2i(tensors: Tensors) -> Adapter | None:
    names = [name.removeprefix("adapter.") for name in tensors]
    if not any(name.startswith(("body.0.in_conv.", "body.0.resnets.0.", "body.0.block1.")) for name in names):
        return None
    stem = next(
        (info for name, info in tensors.items() if name.endswith("conv_in.weight") and "body" not in name), None
    )
    light = stem is None
    # SDXL's adapters fold the picture by 16, so that 3 channels become 768 and 1 becomes 256.
    xl = stem is not None and len(stem.shape) == 4 and stem.shape[1] in (256, 768)
    return Adapter("t2i-adapter", "sdxl" if xl else "sd1", "light T2I adapter" if light else "T2I adapter")


def _textual_inversion(tensors: Tensors) -> Adapter | None:
    if not 1 <= len(tensors) < 10:
        return None
    if {"clip_l", "clip_g"} <= set(tensors):
        return Adapter("textual-inversion", "sdxl", f"{tensors['clip_l'].shape[0]} vectors for each text encoder")
    for name, info in tensors.items():
        named = name == "emb_params" or name.startswith("string_to_param.")
        alone = len(tensors) == 1 and len(info.shape) in (1, 2) and "." not in name
        families = {768: "sd1", 1024: "sd2", 1280: "sdxl"}
        if info.shape and (named or (alone and info.shape[-1] in families)):
            count = info.shape[0] if len(info.shape) == 2 else 1
            family = families.get(info.shape[-1], "unknown")
            return Adapter("textual-inversion", family, f"{count} vector{'s' if count > 1 else ''}")
    return None
