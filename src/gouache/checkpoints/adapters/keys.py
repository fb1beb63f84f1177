"""The names of a LoRA's tensors, taken apart: which layer, and which role. Names only, and no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gouache.checkpoints.formats.header import TensorInfo

_ROLES = (
    # kohya; PEFT, with or without the adapter's name; diffusers in its times, oldest last
    r"\.lora_(?P<kohya>down|up|mid)\.weight",
    r"\.lora_(?P<peft>A|B)(?:\.\w+)?\.weight",
    r"[._]lora\.(?P<diffusers>down|up)\.weight",
    r"\.lora_linear_layer\.(?P<linear>down|up)\.weight",
    r"\.(?P<alpha>alpha)",
    # LyCORIS and PEFT: LoHa, LoKr; DoRA by LyCORIS and by PEFT
    r"\.(?P<lycoris>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|dora_scale)",
    r"\.lora_(?P<magnitude>magnitude)_vector(?:\.\w+)?(?:\.weight)?",
)
_KEY = re.compile(rf"(?P<base>.+?)(?:{'|'.join(_ROLES)})")
RANKED = ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
"""Roles whose first axis is the rank."""
TEXT_PREFIXES = ("lora_te", "text_encoder")
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def split_key(key: str) -> tuple[str, str] | None:
    """A tensor's name as (spelling of its layer, role: down, up, mid, alpha, magnitude, hada_w1_a, lokr_w1, ...); None
    if it is no adapter's.

    >>> split_key("unet.mid.attn1.processor.to_out_lora.up.weight")
    ('unet.mid.attn1.to_out.0', 'up')
    """
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    role = match["kohya"] or {"A": "down", "B": "up"}.get(match["peft"]) or match["diffusers"] or match["linear"]
    return _present(match["base"]), role or match["lycoris"] or match["magnitude"] or "alpha"


def _present(base: str) -> str:
    """Today's name of a layer that an older diffusers called otherwise."""
    base = base.replace(".processor.", ".")
    head, _, last = base.rpartition(".")
    if head.endswith("self_attn") and last in _OLD_TEXT:
        return f"{head}.{_OLD_TEXT[last]}"
    return f"{base}.0" if last == "to_out" else base


def lora_summary(tensors: Mapping[str, TensorInfo]) -> str:
    """What a LoRA changes, in a few words; empty if these are no LoRA's tensors.

    >>> lora_summary({"lora_unet_x.lora_down.weight": TensorInfo("F16", (8, 320))})
    'rank 8 in 1 layer of the U-Net'
    """
    ranks: set[int] = set()
    unet: set[str] = set()
    text: set[str] = set()
    for name, info in tensors.items():
        layer, role = split_key(name) or ("", "")
        if role in RANKED and info.shape:
            ranks.add(info.shape[0])
        if role in (*RANKED, "lokr_w1") and info.shape:
            (text if layer.startswith(TEXT_PREFIXES) else unet).add(layer)
    parts = [_layers(len(unet), "the U-Net"), _layers(len(text), "the text encoders")]
    if not ranks:
        return " and ".join(part for part in parts if part)
    rank = str(min(ranks)) if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"
    return f"rank {rank} in {' and '.join(part for part in parts if part)}"


def _layers(count: int, where: str) -> str:
    return f"{count} layer{'s' * (count != 1)} of {where}" if count else ""
