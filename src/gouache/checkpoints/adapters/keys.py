"""The names of a LoRA's tensors, taken apart: which layer, and which role. Names only, and no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gouache.checkpoints.formats.header import TensorInfo

_ROLES = (
    # kohya; PEFT, with or without the adapter's name; diffusers in its times, oldest last
    r"\.lora_(?P<kohya>down|up|mid)(?:\.weight)?",
    r"\.lora_(?P<peft>A|B)(?:\.(?!bias\b)\w+)?(?:\.weight)?",
    r"[._]lora\.(?P<diffusers>down|up)\.weight",
    r"\.lora_linear_layer\.(?P<linear>down|up)\.weight",
    r"\.lora_(?P<up_bias>up|B(?:\.\w+)?)\.bias",
    r"\.(?P<number>alpha|scale)",
    # LyCORIS and PEFT: LoHa, LoKr; DoRA by LyCORIS and by PEFT
    r"\.(?P<lycoris>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|dora_scale)(?:\.default)?",
    r"\.lora_(?P<magnitude>magnitude)_vector(?:\.\w+)?(?:\.weight)?",
    # LyCORIS: GLoRA, differences, norms, IA3, OFT and BOFT
    r"\.(?P<glora>[ab][12]|bm)\.weight",
    r"\.(?P<plain>diff|diff_b|w_norm|b_norm|on_input|oft_blocks|oft_diag|rescale)",
    # PEFT: IA3, OFT, BOFT
    r"\.(?P<rotation>ia3_l|oft_R|boft_R|boft_s)(?:\.default)?(?:\.weight)?",
    # cloneofsimo: numbered layers
    r":(?P<numbered>up|down)",
    # A tensor of the layer itself: the vector of LyCORIS's IA3, or what PEFT trained as a whole.
    r"\.(?P<own>weight|bias)",
)
_KEY = re.compile(rf"(?P<base>.+?)(?:{'|'.join(_ROLES)})")
_GROUPS = ("diffusers", "linear", "lycoris", "magnitude", "glora", "plain", "rotation", "numbered", "number", "own")
RANKED = ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b", "a2")
"""Roles whose first axis is the rank."""
CHANGING = (*RANKED, "lokr_w1", "diff", "w_norm", "oft_blocks", "oft_R", "boft_R", "ia3_l", "on_input")
"""Roles of which a changed layer has at least one."""
LIST = "list"
"""What stands for the network where a file is one bare list: `list:3` is its fourth layer."""
BUNDLED = "bundle_emb."
"""Before the name of a textual inversion that lies in a LoRA's file (A1111, kohya, OneTrainer)."""
CLONEOFSIMO_EMBEDDING = "<embed>"
"""What cloneofsimo's trainer says in the metadata of such a one, under its name."""
PRIOR = "lora_prior_layers_"
"""What layers of the prior begin with, which only the pocket model has."""
_TEXT = re.compile(r"text_model|text_encoder|resblocks|encoder[._]layers|(^|[._])(te[12]?|clip_[lgh])[._:]")
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def split_key(key: str) -> tuple[str, str] | None:
    """A tensor's name as (spelling of its layer, role: down, up, mid, alpha, magnitude, hada_w1_a, lokr_w1, ...); None
    if it is no adapter's.

    >>> split_key("unet.mid.attn1.processor.to_out_lora.up.weight")
    ('unet.mid.attn1.to_out.0', 'up')
    >>> split_key("7")
    ('list:3', 'down')
    """
    if key.isdecimal():  # cloneofsimo's list: up, down, up, down
        return f"{LIST}:{int(key) // 2}", "down" if int(key) % 2 else "up"
    match = _KEY.fullmatch(key)
    if match is None or key.startswith(BUNDLED):
        return None
    role = match["kohya"] or {"A": "down", "B": "up"}.get(match["peft"]) or ("up_bias" if match["up_bias"] else None)
    return _present(match["base"]), role or next(match[group] for group in _GROUPS if match[group])


def is_bundled(name: str, metadata: Mapping[str, str]) -> bool:
    """Whether a tensor belongs to a textual inversion that lies in a LoRA's file."""
    return name.startswith(BUNDLED) or metadata.get(name) == CLONEOFSIMO_EMBEDDING


def is_text(spelling: str) -> bool:
    """Whether a layer's spelling is a text encoder's.

    >>> is_text("lora_te1_text_model_encoder_layers_0_mlp_fc1"), is_text("lora_unet_conv_in")
    (True, False)
    """
    return _TEXT.search(spelling) is not None


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
    prior: set[str] = set()
    text: set[str] = set()
    for name, info in tensors.items():
        layer, role = split_key(name) or ("", "")
        if role in RANKED and info.shape:
            ranks.add(info.shape[0])
        if role in CHANGING:
            (prior if layer.startswith(PRIOR) else text if is_text(layer) else unet).add(layer)
    denoiser = "the transformer" if any("transformer." in layer[:12] for layer in unet) else "the U-Net"
    parts = [
        _layers(len(unet), denoiser),
        _layers(len(prior), "the prior"),
        _layers(len(text), "the text encoders"),
    ]
    if not ranks:
        return " and ".join(part for part in parts if part)
    rank = str(min(ranks)) if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"
    return f"rank {rank} in {' and '.join(part for part in parts if part)}"


def _layers(count: int, where: str) -> str:
    return f"{count} layer{'s' * (count != 1)} of {where}" if count else ""
