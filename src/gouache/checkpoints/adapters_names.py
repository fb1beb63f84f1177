"""What LoRA files call the layers of a model: one table from every spelling in use to our names.

kohya's trainer joins a module's path by underscores, which can't be undone ("a_b.c" and "a.b_c" look alike), so the
table is made from the modules that the model has. SDXL's files by kohya have CompVis's paths (sgm), all others
diffusers' paths; both are known for every family.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from gouache.checkpoints.keymaps import speller
from gouache.models.text_encoder import TextEncoder
from gouache.models.text_stack import TextStack
from gouache.models.unet import UNet

UNET, TEXT = "unet", "text"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a model that an adapter can change.

    Attributes:
        part: ``"unet"`` or ``"text"``.
        index: which text encoder, from 0; 0 for the U-Net.
        name: the layer inside its network, by our name.
    """

    part: str
    index: int
    name: str


def layer_table(unet: UNet, text: TextStack) -> Mapping[str, Layer]:
    """Every spelling of every linear and convolution layer."""
    table = dict(_unet_spellings(unet))
    encoders = list(text.encoders)
    for index, encoder in enumerate(encoders):
        if isinstance(encoder, TextEncoder):
            table |= dict(_text_spellings(encoder, index, alone=len(encoders) == 1))
    return table


def _unet_spellings(unet: UNet) -> Iterator[tuple[str, Layer]]:
    spell = speller(unet.config, "ldm")
    for name in _layers(unet):
        layer = Layer(UNET, 0, name)
        compvis = spell(f"{name}.weight").name.removesuffix(".weight")
        for spelling in (name, f"unet.{name}", f"base_model.model.{name}"):
            yield spelling, layer
        for path in (name, compvis):
            yield f"lora_unet_{_joined(path)}", layer


def _text_spellings(encoder: TextEncoder, index: int, *, alone: bool) -> Iterator[tuple[str, Layer]]:
    kohya = ("lora_te", "lora_te1") if alone else (f"lora_te{index + 1}",)
    diffusers = "text_encoder" if index == 0 else f"text_encoder_{index + 1}"
    for name in _layers(encoder):
        layer = Layer(TEXT, index, name)
        inside = name if name == "text_projection" else f"text_model.{name}"
        yield f"{diffusers}.{inside}", layer
        yield f"{diffusers}.{name}", layer
        for prefix in kohya:
            yield f"{prefix}_{_joined(inside)}", layer


def _layers(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def _joined(path: str) -> str:
    return path.replace(".", "_")


_ROLES = (
    # kohya; PEFT, with or without the adapter's name; diffusers in its times, oldest last
    r"\.lora_(?P<kohya>down|up|mid)\.weight",
    r"\.lora_(?P<peft>A|B)(?:\.\w+)?\.weight",
    r"[._]lora\.(?P<diffusers>down|up)\.weight",
    r"\.lora_linear_layer\.(?P<linear>down|up)\.weight",
    r"\.(?P<alpha>alpha)",
)
_KEY = re.compile(rf"(?P<base>.+?)(?:{'|'.join(_ROLES)})")
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def split_key(key: str) -> tuple[str, str] | None:
    """A tensor's name as (spelling of its layer, role: down, up, mid or alpha); None if it is no LoRA's.

    >>> split_key("unet.mid.attn1.processor.to_out_lora.up.weight")
    ('unet.mid.attn1.to_out.0', 'up')
    """
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    role = match["kohya"] or {"A": "down", "B": "up"}.get(match["peft"]) or match["diffusers"] or match["linear"]
    return _present(match["base"]), role or "alpha"


def _present(base: str) -> str:
    """Today's name of a layer that an older diffusers called otherwise."""
    base = base.replace(".processor.", ".")
    head, _, last = base.rpartition(".")
    if head.endswith("self_attn") and last in _OLD_TEXT:
        return f"{head}.{_OLD_TEXT[last]}"
    return f"{base}.0" if last == "to_out" else base
