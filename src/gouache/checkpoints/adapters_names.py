"""What LoRA files call the layers of a model: one table from every spelling in use to our names.

kohya's trainer joins a module's path by underscores, which can't be undone ("a_b.c" and "a.b_c" look alike), so the
table is made from the modules that the model has. SDXL's files by kohya have CompVis's paths (sgm), all others
diffusers' paths; both are known for every family.
"""

from __future__ import annotations

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
