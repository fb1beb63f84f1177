"""Reads files of LoRA and its relatives: changes of a model's layers, matched strictly; `deltas` has the mathematics.

What LoRA files call the layers of a model: one table from every spelling in use to our names.

kohya's trainer joins a module's path by underscores, which can't be undone ("a_b.c" and "a.b_c" look alike), so the
table is made from the modules that the model has. SDXL's files by kohya have CompVis's paths (sgm), all others
diffusers' paths; both are known for every family.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from gouache.checkpoints.adapters.deltas import LayerDelta, change_of, is_whole, rank_of
from gouache.checkpoints.adapters.keys import split_key
from gouache.checkpoints.adapters.kinds import LORA_KINDS
from gouache.checkpoints.formats.header import Header, few, open_source
from gouache.checkpoints.formats.safetensors import WeightSource
from gouache.checkpoints.keymaps import speller
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint
from gouache.models.text_encoder import TextEncoder
from gouache.models.text_stack import TextStack
from gouache.models.unet import UNet

UNET, TEXT = "unet", "text"


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """One layer of a model that an adapter can change.

    Attributes:
        part: ``"unet"`` or ``"text"``.
        index: which text encoder, from 0; 0 for the U-Net.
        name: the layer inside its network, by our name.
    """

    part: str
    index: int
    name: str


def layer_table(unet: UNet, text: TextStack) -> Mapping[str, LoraLayer]:
    """Every spelling of every linear and convolution layer."""
    table = dict(_unet_spellings(unet))
    encoders = list(text.encoders)
    for index, encoder in enumerate(encoders):
        if isinstance(encoder, TextEncoder):
            table |= dict(_text_spellings(encoder, index, alone=len(encoders) == 1))
    return table


def _unet_spellings(unet: UNet) -> Iterator[tuple[str, LoraLayer]]:
    spell = speller(unet.config, "ldm")
    for name in _layers(unet):
        layer = LoraLayer(UNET, 0, name)
        compvis = spell(f"{name}.weight").name.removesuffix(".weight")
        for spelling in (name, f"unet.{name}", f"base_model.model.{name}"):
            yield spelling, layer
        for path in (name, compvis):
            yield f"lora_unet_{_joined(path)}", layer


def _text_spellings(encoder: TextEncoder, index: int, *, alone: bool) -> Iterator[tuple[str, LoraLayer]]:
    kohya = ("lora_te", "lora_te1") if alone else (f"lora_te{index + 1}",)
    diffusers = "text_encoder" if index == 0 else f"text_encoder_{index + 1}"
    for name in _layers(encoder):
        layer = LoraLayer(TEXT, index, name)
        inside = name if name == "text_projection" else f"text_model.{name}"
        yield f"{diffusers}.{inside}", layer
        yield f"{diffusers}.{name}", layer
        for prefix in kohya:
            yield f"{prefix}_{_joined(inside)}", layer


def _layers(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def _joined(path: str) -> str:
    return path.replace(".", "_")


APPLIED = ("LoRA", "LoCon", "LoHa", "LoKr", "DoRA")
DIFFUSERS_METADATA = "lora_adapter_metadata"
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file, matched with a model.

    Attributes:
        path: the file.
        changes: what it changes.
    """

    path: Path
    changes: Mapping[LoraLayer, LayerDelta]


@dataclass(slots=True)
class _Pieces:
    """Tensor names of one layer by their role."""

    layer: LoraLayer
    by_role: dict[str, str] = field(default_factory=dict)


def read_lora(path: Path, table: Mapping[str, LoraLayer], shapes: Mapping[LoraLayer, tuple[int, ...]]) -> Lora:
    """Read a LoRA file for a model.

    Args:
        path: .safetensors, or a torch file that holds tensors only.
        table: the model's layers by every spelling, see `adapters_names.layer_table`.
        shapes: the shape of each layer's weight.

    Raises:
        IncompatibleCheckpoint: another kind of adapter; a tensor that matches no layer, or doesn't fit it.
        CorruptCheckpoint, UnsafeCheckpoint: the file is damaged, holds NaN, or would have to be unpickled.
    """
    source = open_source(path)
    _refuse_other_kinds(source.header)
    pieces = _matched(source.header, table)
    scaling = _Scaling.of(source.header)
    changes = {layer: _change(source, spelling, one, scaling) for layer, (spelling, one) in pieces.items()}
    wrong = [
        f"{pieces[layer][0]}: {change.description()} for a weight of {list(shapes[layer])}"
        for layer, change in changes.items()
        if not change.fits(shapes[layer])
    ]
    if wrong:
        raise IncompatibleCheckpoint(
            str(path),
            given=f"{len(wrong)} changes of another shape: {few(wrong, SHOWN)}",
            expected="a LoRA of this model",
            cure="It was trained for a model of another family or size.",
        )
    return Lora(path, changes)


def _refuse_other_kinds(header: Header) -> None:
    for kind, suffixes in LORA_KINDS.items():
        found = next((name for name in header.tensors if name.endswith(suffixes)), None)
        if kind not in APPLIED and found is not None:
            raise IncompatibleCheckpoint(
                str(header.path),
                given=f"a {kind} adapter ({found})",
                expected=f"one of {', '.join(APPLIED)}",
                cure="Merge it into the checkpoint with the program that trained it.",
            )


def _matched(header: Header, table: Mapping[str, LoraLayer]) -> dict[LoraLayer, tuple[str, _Pieces]]:
    """Every tensor under its layer; nothing is left over, nothing is there twice."""
    pieces: dict[LoraLayer, tuple[str, _Pieces]] = {}
    unmatched: list[str] = []
    for name in header.tensors:
        split = split_key(name)
        layer = None if split is None else table.get(split[0])
        if split is None or layer is None:
            unmatched.append(name)
            continue
        spelling, found = pieces.setdefault(layer, (split[0], _Pieces(layer)))
        if split[1] in found.by_role or spelling != split[0]:
            raise _bad(header, f"two tensors for one place: {name} and {found.by_role.get(split[1], spelling)}")
        found.by_role[split[1]] = name
    if unmatched:
        raise IncompatibleCheckpoint(
            str(header.path),
            given=f"{len(unmatched)} of {len(header.tensors)} tensors that match no layer: {few(unmatched, SHOWN)}",
            expected="a LoRA of this model, every tensor of which has its place",
            cure="It was trained for a model of another family.",
        )
    halves = [spelling for spelling, one in pieces.values() if not is_whole(frozenset(one.by_role))]
    if halves or not pieces:
        raise _bad(header, f"only half of a change: {few(halves, SHOWN)}" if halves else "no tensors")
    return pieces


def _bad(header: Header, given: str) -> IncompatibleCheckpoint:
    return IncompatibleCheckpoint(str(header.path), given=given, expected="one whole change for each layer")


def _change(source: WeightSource, spelling: str, pieces: _Pieces, scaling: _Scaling) -> LayerDelta:
    parts = {role: _finite(source, name) for role, name in pieces.by_role.items()}
    rank, alpha = rank_of(parts), parts.pop("alpha", None)
    if any(not tensor.numel() for tensor in parts.values()) or (alpha is not None and alpha.numel() != 1):
        raise _bad(source.header, f"rank {rank} or a bad alpha at {spelling}")
    if not rank:
        return change_of(parts, 1.0)  # LyCORIS writes the rank, which doesn't show here, as alpha of whole factors
    return change_of(parts, scaling.factor(spelling, rank) if alpha is None else alpha.item() / rank)


def _finite(source: WeightSource, name: str) -> Tensor:
    tensor = source.read(name)
    if not bool(torch.isfinite(tensor.float()).all()):
        raise CorruptCheckpoint(
            str(source.header.path),
            given=f"NaN or infinity in {name!r}",
            expected="finite numbers",
            cure="The adapter is badly trained; get another.",
        )
    return tensor


@dataclass(frozen=True, slots=True)
class _Scaling:
    """Factors of layers without an alpha of their own: 1, or what diffusers wrote into the metadata.

    Attributes:
        configs: for each part ("unet", "text_encoder", ...) PEFT's settings.
    """

    configs: Mapping[str, Mapping[str, object]]

    @classmethod
    def of(cls, header: Header) -> _Scaling:
        try:
            values = json.loads(header.metadata.get(DIFFUSERS_METADATA, "{}"))
        except json.JSONDecodeError as error:
            raise _bad(header, f"metadata {DIFFUSERS_METADATA} that is no JSON") from error
        configs: dict[str, dict[str, object]] = {}
        for key, value in values.items() if isinstance(values, dict) else ():
            part, _, setting = str(key).partition(".")
            configs.setdefault(part, {})[setting] = value
        return cls(configs)

    def factor(self, spelling: str, rank: int) -> float:
        part, _, layer = spelling.partition(".")
        config = self.configs.get(part, {})
        alpha = config.get("lora_alpha")
        patterns = config.get("alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            if re.fullmatch(rf"(?:.*\.)?{re.escape(pattern)}", layer):
                alpha = value
        if not isinstance(alpha, int | float):
            return 1.0
        return alpha / (rank**0.5 if config.get("use_rslora") else rank)
