"""Reads files of LoRA and its relatives: changes of a model's layers.

`layer_names` knows the names, `forms` the sets of tensors that make a change, `deltas` and `multiplied` the
mathematics.

What fits is applied, what doesn't is left out and told in a note. A file of which nothing fits is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gouache.checkpoints.adapters.deltas import FirstInputs, LayerDelta, OfRows
from gouache.checkpoints.adapters.embedding import Embedding, bundled_embeddings
from gouache.checkpoints.adapters.forms import WHOLE, changes_of, is_whole, rank_of
from gouache.checkpoints.adapters.keys import LIST, is_bundled, split_key
from gouache.checkpoints.adapters.kinds import LORA_KINDS, find_adapter
from gouache.checkpoints.adapters.layer_names import TEXT, UNET, WEIGHT, LayerNames, LoraLayer
from gouache.checkpoints.adapters.peft_config import LayerSettings, PeftSettings
from gouache.checkpoints.formats.header import Header, few, open_source
from gouache.checkpoints.formats.safetensors import WeightSource
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint
from gouache.models.family import FAMILIES, UNKNOWN

ZERO_TERMINAL_SNR = "ss_zero_terminal_snr"
"""What kohya's trainer says in a file's metadata of the noise schedule; "True" or "False"."""
SHOWN = 5
FIRST_CONVOLUTION = LoraLayer(UNET, 0, "conv_in")
NO_LAYER = "match no layer of this model"
HALF = "are only half of a change"
SHAPE = "have another shape than their layers"
OWN = "are a layer's own, and no change of it"
MIXED = "change queries, keys and values together, which are layers of their own here"
ORDER = "are numbered in no order that this model's layers have"
TWICE = "change a layer a second time"
NUMBER = "have a bad alpha or no elements"


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file, matched with a model.

    Attributes:
        path: the file.
        changes: what it changes.
        notes: what was left out of it, and what was taken from beside it.
        embeddings: textual inversions that lie in it, by the word that each stands for.
        zero_terminal_snr: whether it was trained on a noise schedule whose last level is noise alone.
    """

    path: Path
    changes: Mapping[LoraLayer, LayerDelta]
    notes: tuple[str, ...] = ()
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)
    zero_terminal_snr: bool = False


@dataclass(slots=True)
class _Matching:
    """What was found for a file's tensors so far.

    Attributes:
        changes: by parameter.
        left_out: for each reason the tensors, with what is wrong about them.
        notes: what was done beyond that.
    """

    changes: dict[LoraLayer, LayerDelta] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave(self, reason: str, names: Sequence[str]) -> None:
        self.left_out.setdefault(reason, []).extend(names)


def read_lora(path: Path, names: LayerNames, family: str) -> Lora:
    """Read a LoRA file for a model.

    Args:
        path: .safetensors, or a torch file that holds tensors only.
        names: the model's layers.
        family: the model's, for example ``"sdxl"``.

    Raises:
        IncompatibleCheckpoint: no tensor of it fits the model, or not all of one that was trained for another family.
        CorruptCheckpoint, UnsafeCheckpoint: the file is damaged, holds NaN, or would have to be unpickled.
    """
    source = open_source(path)
    settings = PeftSettings.of(source.header)
    groups, strangers = _by_spelling(source.header)
    found = _Matching()
    if strangers:
        found.leave(NO_LAYER, strangers)
    if any(":" in spelling for spelling in groups):
        _match_numbered(source, groups, names, found)
    else:
        for spelling, roles in groups.items():
            _match(source, spelling, roles, names, settings, found)
    embeddings = bundled_embeddings(source)
    _refuse(source.header, found, family, embeddings)
    rescaled = source.header.metadata.get(ZERO_TERMINAL_SNR) == "True"
    return Lora(path, found.changes, (*settings.notes, *_notes(source.header, found)), embeddings, rescaled)


def _by_spelling(header: Header) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Tensor names by the spelling of their layer and by their role; names that are no adapter's."""
    groups: dict[str, dict[str, str]] = {}
    strangers = []
    for name in header.tensors:
        split = split_key(name)
        if split is not None:
            spelling, role = split
            # Two programs' names for one role of one layer: the second is a spelling of its own, and comes too late.
            spelling = name if role in groups.get(spelling, {}) else spelling
            groups.setdefault(spelling, {})[role] = name
        elif not is_bundled(name, header.metadata):
            strangers.append(name)
    return groups, strangers


def _match(
    source: WeightSource,
    spelling: str,
    roles: Mapping[str, str],
    names: LayerNames,
    settings: PeftSettings,
    found: _Matching,
) -> None:
    """Find the layer of one group of tensors, and note what they change."""
    layers = names.find(spelling)
    tensors = list(roles.values())
    pieces = () if layers else names.pieces(spelling)
    if not layers and not pieces:
        found.leave(NO_LAYER, tensors)
        return
    if WHOLE & roles.keys() and not settings.layer(spelling, 0).whole and "on_input" not in roles:
        found.leave(OWN, [name for role, name in roles.items() if role in WHOLE])
        roles = {role: name for role, name in roles.items() if role not in WHOLE}
        tensors = list(roles.values())
    if not is_whole(frozenset(roles)):
        if roles:
            found.leave(HALF, tensors)
        return
    parts = {role: _finite(source, name) for role, name in roles.items()}
    single = [parts[role].numel() == 1 for role in ("alpha", "scale", "on_input") if role in parts]
    if any(not tensor.numel() for tensor in parts.values()) or not all(single):
        found.leave(NUMBER, tensors)
        return
    changes = changes_of(parts, settings.layer(spelling, rank_of(parts)))
    if layers:
        _keep(changes, layers, tensors, names, found)
    elif not all(OfRows.by_rows(change) for change in changes.values()):
        found.leave(MIXED, tensors)
    else:
        split = {
            LoraLayer(layer.part, layer.index, layer.name, parameter): OfRows(change, what)
            for layer, what in pieces
            for parameter, change in changes.items()
        }
        if not all(place in names.shapes and change.fits(names.shapes[place]) for place, change in split.items()):
            found.leave(SHAPE, tensors)
        elif split.keys() & found.changes.keys():
            found.leave(TWICE, tensors)
        else:
            found.changes |= split


def _keep(
    changes: Mapping[str, LayerDelta],
    layers: Sequence[LoraLayer],
    tensors: Sequence[str],
    names: LayerNames,
    found: _Matching,
) -> None:
    """Note changes under the first of the layers whose shapes they fit."""
    for layer in layers:
        placed = {
            LoraLayer(layer.part, layer.index, layer.name, parameter): change for parameter, change in changes.items()
        }
        if all(place in names.shapes and change.fits(names.shapes[place]) for place, change in placed.items()):
            if placed.keys() & found.changes.keys():
                found.leave(TWICE, tensors)
            else:
                found.changes |= placed
            return
    first = FirstInputs(changes[WEIGHT], names.latent_channels) if WEIGHT in changes else None
    if first and layers[0] == FIRST_CONVOLUTION and first.fits(names.shapes[FIRST_CONVOLUTION]):
        found.notes.append(
            f"{tensors[0]} was applied to the first {first.inputs} channels, the others stay as they are"
        )
        _keep({**changes, WEIGHT: first}, layers, tensors, names, found)
        return
    shape = list(names.shapes[layers[0]])
    described = " and ".join(change.description() for change in changes.values())
    found.leave(SHAPE, [f"{tensors[0]} ({described} for a weight of {shape})", *tensors[1:]])


def _match_numbered(
    source: WeightSource, groups: Mapping[str, Mapping[str, str]], names: LayerNames, found: _Matching
) -> None:
    """Numbered layers of cloneofsimo's trainer: the order of the model's layers in which all of them fit."""
    for network in dict.fromkeys(spelling.partition(":")[0] for spelling in groups):
        own = {spelling: roles for spelling, roles in groups.items() if spelling.partition(":")[0] == network}
        numbers = sorted(own, key=lambda spelling: int(spelling.partition(":")[2]) if ":" in spelling else 0)
        tensors = [name for roles in own.values() for name in roles.values()]
        if not all(is_whole(frozenset(roles)) for roles in own.values()):
            found.leave(HALF, tensors)
            continue
        changes = [
            changes_of({role: _finite(source, name) for role, name in own[number].items()}, LayerSettings())["weight"]
            for number in numbers
        ]
        for order in _orders(network, names):
            if len(order) == len(changes) and all(
                change.fits(names.shapes.get(layer, ())) for layer, change in zip(order, changes, strict=True)
            ):
                found.changes |= dict(zip(order, changes, strict=True))
                break
        else:
            found.leave(ORDER, tensors)


def _orders(network: str, names: LayerNames) -> Iterator[Sequence[LoraLayer]]:
    """A bare list doesn't say which network it is of: the longer one is tried first."""
    for one in (UNET, TEXT) if network == LIST else (network,):
        yield from names.sequences(one)


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


def _refuse(header: Header, found: _Matching, family: str, embeddings: Mapping[str, Embedding]) -> None:
    """Refuse a file that the model can't use, with the true reason.

    Raises:
        IncompatibleCheckpoint: see `read_lora`.
    """
    adapter = find_adapter(header.tensors, header.metadata)
    theirs = adapter.family if adapter else UNKNOWN.name
    told = "; ".join(f"{len(names)} tensors that {why}: {few(names, SHOWN)}" for why, names in found.left_out.items())
    strange = theirs != family and UNKNOWN.name not in (theirs, family)
    misfits = 2 * len(found.left_out.get(SHAPE, ())) > len(header.tensors)
    if told and (strange or misfits):
        cure = "It was trained for a model of another family." if strange else "It was trained for another model."
        raise IncompatibleCheckpoint(
            str(header.path),
            given=f"a LoRA of {theirs}, with {told}" if strange else told,
            expected=f"a LoRA of {family}" if strange else "a LoRA of this model",
            cure=cure if theirs in FAMILIES else f"gouache runs no model of the family {theirs}.",
        )
    if found.changes or (embeddings and not told):
        return
    kinds = [kind for kind, marks in LORA_KINDS.items() if any(name.endswith(marks) for name in header.tensors)]
    raise IncompatibleCheckpoint(
        str(header.path),
        given=f"{f'a {kinds[0]} adapter' if kinds else 'a file'} of which nothing fits, with {told or 'no tensors'}",
        expected="a LoRA of this model, at least one tensor of which has its place",
        cure="It may be of another size of this model, or in names or a form that no reader knows yet.",
    )


def _notes(header: Header, found: _Matching) -> Iterator[str]:
    total = len(header.tensors)
    yield from (f"LoRA {header.path.stem!r}: {note}" for note in found.notes)
    for reason, names in found.left_out.items():
        matched = len({(layer.part, layer.index, layer.name) for layer in found.changes})
        yield (
            f"LoRA {header.path.stem!r}: {len(names)} of {total} tensors were left out, which {reason}: "
            f"{few(names, SHOWN)}; {matched} layers were changed"
        )
