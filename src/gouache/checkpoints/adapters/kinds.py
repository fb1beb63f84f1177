"""Tells adapters apart: LoRA and its relatives, textual inversion, ControlNet, T2I adapters; and names foreign models.

By tensor names and shapes only. Adapters are recognised and named here; who applies them reads more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gouache.checkpoints.adapters.embedding_names import inversion_of
from gouache.checkpoints.adapters.foreign import foreign_family
from gouache.checkpoints.adapters.keys import PRIOR, split_key
from gouache.checkpoints.formats.header import TensorInfo
from gouache.models.family import FAMILIES, POCKET, SD3, SDXL_REFINER

Tensors = Mapping[str, TensorInfo]

# Asked in this order: a file may hold several kinds, and the first named is the one that needs most care.
LORA_KINDS = {
    "DoRA": (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
    "LoHa": (".hada_w1_a", ".hada_w1_b"),
    "LoKr": (".lokr_w1", ".lokr_w1_a"),
    "GLoRA": (".a1.weight", ".b1.weight"),
    "BOFT": (".boft_R", ".boft_R.weight"),
    "OFT": (".oft_blocks", ".oft_diag", ".oft_R", ".oft_R.weight"),
    "IA3": (".on_input", ".ia3_l"),
    "LoCon": (".lora_mid.weight",),
    "LoRA": (
        ".lora_down.weight",
        ".lora_up.weight",
        ".lora_A.weight",
        ".lora_B.weight",
        "_lora.down.weight",
        "_lora.up.weight",
        "_lora1.down.weight",
        "_lora2.down.weight",
        ".lora.down.weight",
        ".lora.up.weight",
        ".lora_linear_layer.down.weight",
        ":up",
    ),
    "full difference": (".diff", ".diff_b", ".w_norm"),
}
NAMINGS = (
    (("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "oft_unet_"), "kohya"),
    (("lycoris_",), "LyCORIS"),
    (("diffusion_model.", "text_encoders."), "ComfyUI"),
    (("clip_l.", "clip_g.", "unet.input_blocks.", "unet.output_blocks.", "unet.middle_block."), "OneTrainer"),
    (("base_model.model.",), "PEFT"),
    (("unet:", "text_encoder:"), "cloneofsimo"),
)
"""Whose names a file has, by what they start with; the others are diffusers'."""
SECOND_ENCODER = ("lora_te2_", "text_encoder_2.", "clip_g.", "text_encoders.clip_g.", "lycoris_te2_", "te2_")
CONTEXT_WIDE = (
    "lora_down.weight",
    "lora_A.weight",
    "lora_A.default.weight",
    "lora.down.weight",
    "layer.down.weight",
    "hada_w1_b",
    "lokr_w2_b",
    ".diff",
    ".b2.weight",
)
"""Tensors whose last axis is as wide as what their layer takes in."""
NUMBERED_DOWN = (":down", *"13579")
DEEPER = re.compile(
    r"(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block).*transformer_blocks[._][1-9]\d*[._]"
)
FAMILY_OF_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""A U-Net's family by the width of its context."""

FOREIGN = {
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
        kind: ``"lora"``, ``"textual-inversion"``, ``"controlnet"``, ``"ip-adapter"`` or ``"t2i-adapter"``; or
            ``"image-encoder"``, the vision tower that IP-Adapters see pictures through.
        family: of the model it belongs to: sd1, sd2, sdxl, sdxl-refiner, "unknown", or one that gouache doesn't run, as
            "flux" (`foreign.foreign_family`).
        label: a few words for people, for example ``"LoHa, kohya names"``.
    """

    kind: str
    family: str
    label: str


def find_adapter(tensors: Tensors, metadata: Mapping[str, str]) -> Adapter | None:
    """Which adapter these tensors are, or None."""
    return (
        _ip_adapter(tensors)
        or _image_encoder(tensors)
        or _lora(tensors, metadata)
        or _controlnet(tensors)
        or _t2i(tensors)
        or _textual_inversion(tensors)
    )


def name_foreign(tensors: Tensors) -> str | None:
    """The name of a model family that gouache doesn't run, if the tensors are one's."""
    for name, marks in FOREIGN.items():
        if any(mark in tensor for tensor in tensors for mark in marks):
            return name
    return None


def _lora(tensors: Tensors, metadata: Mapping[str, str]) -> Adapter | None:
    if "lora_controlnet" in tensors:
        return Adapter("controlnet", _family_of_keys(tensors), "control-LoRA")
    kinds = [kind for kind, suffixes in LORA_KINDS.items() if any(name.endswith(suffixes) for name in tensors)]
    if not kinds and any((split_key(name) or ("", ""))[1] in ("down", "up") for name in tensors if "lora" in name):
        kinds = ["LoRA"]  # PEFT's names with a name of the adapter inside
    if not kinds and not _is_list(tensors):
        return None
    family = _lora_family(tensors, metadata)
    label = f"{kinds[0]}, {_naming(tensors)} names" if kinds else "LoRA, a list without names"
    strange = family not in FAMILIES
    return Adapter("lora", family, f"{label}; for {family}, which gouache doesn't run" if strange else label)


def _naming(tensors: Tensors) -> str:
    counts = {naming: sum(name.startswith(prefixes) for name in tensors) for prefixes, naming in NAMINGS}
    most = max(counts, key=lambda naming: counts[naming])
    return most if counts[most] else "diffusers"


def _is_list(tensors: Tensors) -> bool:
    """cloneofsimo's torch file: one list of up, down, up, down."""
    shapes = [info.shape for info in tensors.values()]
    pairs = zip(shapes[::2], shapes[1::2], strict=False)
    return (
        len(shapes) > 1
        and len(shapes) % 2 == 0
        and all(name.isdecimal() for name in tensors)
        and all(len(up) == len(down) >= 2 and up[1] == down[0] for up, down in pairs)
    )


def _lora_family(tensors: Tensors, metadata: Mapping[str, str]) -> str:
    """What the trainer wrote, else what the tensors show: the second text encoder, or the context's width."""
    base = metadata.get("ss_base_model_version", "") + metadata.get("modelspec.architecture", "")
    if base.startswith(POCKET.name) or any(name.startswith(PRIOR) for name in tensors):
        return POCKET.name
    if base.startswith(SDXL_REFINER.name) or SDXL_REFINER.architecture in base:
        return SDXL_REFINER.name
    if base.startswith("sdxl_") or "stable-diffusion-xl" in base:
        return "sdxl"
    if metadata.get("ss_v2") == "True" or "stable-diffusion-v2" in base:
        return "sd2"
    foreign = foreign_family(tensors, metadata)
    if foreign is not None:
        return foreign
    for name, info in tensors.items():
        attends = "attn2" in name and ("to_k" in name or "to_v" in name)
        if attends and name.endswith(CONTEXT_WIDE) and info.shape and info.shape[-1] in FAMILY_OF_WIDTH:
            return FAMILY_OF_WIDTH[info.shape[-1]]
    if any(name.startswith(SECOND_ENCODER) for name in tensors):
        return "sdxl"
    widths = [info.shape[-1] for name, info in tensors.items() if name.endswith(NUMBERED_DOWN) and info.shape]
    if widths and 320 in widths:  # cloneofsimo's trainer knew SD 1.x and 2.x
        return "sd2" if 1024 in widths else "sd1" if 768 in widths else "unknown"
    # Only SDXL puts more than one transformer block behind a residual block.
    if any(DEEPER.search(name) for name in tensors):
        return "sdxl"
    return "sd1" if metadata.get("ss_v2") == "False" or base.startswith("sd_v1") else "unknown"


JOINT_CONTROL_QKV = "transformer_blocks.0.attn.qkv.weight"
"""A tensor of Stability AI's own files of ControlNets for 3.5 large."""


def _controlnet(tensors: Tensors) -> Adapter | None:
    if "pos_embed_input.proj.weight" in tensors and "controlnet_blocks.0.weight" in tensors:
        naming = "its authors'" if JOINT_CONTROL_QKV in tensors else "diffusers"
        return Adapter("controlnet", SD3.name, f"ControlNet, {naming} names")
    if "task_embedding" in tensors and "controlnet_cond_embedding.conv_in.weight" in tensors:
        promax = "promax, " if tensors["task_embedding"].shape[0] > 6 else ""
        return Adapter("controlnet", _family_of_keys(tensors), f"ControlNet-Union, {promax}diffusers names")
    marks = {
        "control_model.input_hint_block.0.weight": "in a single file",
        "input_hint_block.0.weight": "extracted from a single file",
        "controlnet_cond_embedding.conv_in.weight": "diffusers names",
    }
    for mark, label in marks.items():
        if mark in tensors and "pos_embed_input.weight" not in tensors:  # XLabs' for FLUX.1 has a hint of that name
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
    found = inversion_of(tensors)
    return None if found is None else Adapter("textual-inversion", *found)


FACE_ID = ("perceiver_resampler.proj_in.weight", "norm.weight")
"""Tensors of the FaceID kinds: they read a face's vector, not CLIP's."""


IP_ADAPTERS = {
    "proj.weight": "plain",
    "proj.3.weight": "full face",
    "latents": "plus",
    **dict.fromkeys(FACE_ID, "FaceID"),
}
"""Tensor of the projection -> what the IP-Adapter is; asked in this order."""
SAVED_IP_ADAPTERS = {"image_embeds.weight": "plain", "ff.net.0.proj.weight": "full face", "latents": "plus"}
"""The same in diffusers' names."""


def _ip_adapter(tensors: Tensors) -> Adapter | None:
    """IP-Adapters in their authors' names, or as diffusers saves a U-Net's attention processors."""
    if any(name.startswith("ip_adapter.") for name in tensors):
        names = {name.removeprefix("image_proj.") for name in tensors if name.startswith("image_proj.")}
        marks, naming = IP_ADAPTERS, ""
    elif any(".attn2.processor.to_k_ip." in name for name in tensors) and "conv_in.weight" not in tensors:
        names = {name.split(".", 3)[-1] for name in tensors if name.startswith("encoder_hid_proj.")}
        marks, naming = SAVED_IP_ADAPTERS, ", diffusers names"
    else:
        return None
    kind = next((kind for mark, kind in marks.items() if mark in names), "of an unknown kind")
    return Adapter("ip-adapter", _ip_family(tensors), f"{kind}{naming}")


def _ip_family(tensors: Tensors) -> str:
    widths = (info.shape[1] for name, info in tensors.items() if ".to_k_ip." in name and len(info.shape) == 2)
    return FAMILY_OF_WIDTH.get(next(widths, 0), "unknown")


VISION_TOWERS = {1024: "ViT-L", 1280: "ViT-H", 1664: "ViT-bigG"}
"""By the width of the states."""


def _image_encoder(tensors: Tensors) -> Adapter | None:
    """CLIP's vision tower alone, with the projection; a safety checker and a whole CLIP are something else."""
    for prefix in ("vision_model.", ""):
        patches = tensors.get(f"{prefix}embeddings.patch_embedding.weight")
        if patches is not None and len(patches.shape) == 4 and "visual_projection.weight" in tensors:
            whole = any(name.startswith(("text_model.", "concept_embeds")) for name in tensors)
            kind = VISION_TOWERS.get(patches.shape[0], f"{patches.shape[0]} wide")
            return None if whole else Adapter("image-encoder", "unknown", f"CLIP's vision tower, {kind}")
    return None
