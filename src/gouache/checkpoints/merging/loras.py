"""LoRA files into a model, out of the difference of two, and several into one.

A LoRA out of a difference is its best approximation of a rank, layer by layer: the first r singular values and vectors
of the layer's weight as a matrix [out, in * kernel] (Eckart and Young 1936). Files are in kohya's layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gouache import __version__
from gouache.checkpoints.adapters.deltas import Decomposed, LayerDelta, LowRank
from gouache.checkpoints.adapters.layer_names import TEXT, WEIGHT, LayerNames, LoraLayer
from gouache.checkpoints.adapters.lora import Lora, read_lora
from gouache.checkpoints.convert import model_at
from gouache.checkpoints.formats.safetensors import save_tensors
from gouache.checkpoints.merging.lora_files import TEXT_PARTS, LoraFacts, lora_metadata, lora_tensors, spelled_layers
from gouache.checkpoints.networks import build_on_meta
from gouache.checkpoints.save import NetworkToWrite
from gouache.errors import IncompatibleCheckpoint, InvalidInput
from gouache.models.mmdit import MMDiT
from gouache.models.prior import Prior
from gouache.models.unet import UNet

SAME = 1e-8
"""Largest difference of weights that counts as none."""
MAX_RANK = 1024


@dataclass(frozen=True, slots=True)
class LoraToMerge:
    """A LoRA file and how much of it.

    Attributes:
        path: the file.
        unet: weight on the U-Net.
        text: weight on the text encoders.
    """

    path: Path
    unet: float = 1.0
    text: float = 1.0

    def weight(self, layer: LoraLayer) -> float:
        """That on a layer."""
        return self.text if layer.part == TEXT else self.unet


Terms = dict[str, dict[str, Callable[[Tensor], Tensor]]]
"""Part -> tensor -> what is added to it."""


def names_of(networks: Mapping[str, NetworkToWrite]) -> LayerNames:
    """The layers of a model on the disk, by every spelling; nothing is read."""
    unet = build_on_meta(networks["unet"].config)
    assert isinstance(unet, UNet | MMDiT), "the config of a network that denoises builds one"
    encoders = [build_on_meta(networks[part].config) for part in _text_parts(networks)]
    prior = build_on_meta(networks["prior"].config) if "prior" in networks else None
    assert prior is None or isinstance(prior, Prior), "the config of a prior builds one"
    return LayerNames(unet, encoders, prior)


def _text_parts(networks: Mapping[str, NetworkToWrite]) -> list[str]:
    return [part for part in TEXT_PARTS if part in networks]


def lora_terms(
    loras: Sequence[LoraToMerge], networks: Mapping[str, NetworkToWrite], family: str
) -> tuple[Terms, list[str]]:
    """What LoRA files add to a model's tensors: the sum of weight * difference, in fp32; and notes on them.

    Raises:
        IncompatibleCheckpoint: as `read_lora`; or one gives a bias to a layer that has none.
    """
    if not loras:
        return {}, []
    names = names_of(networks)
    changes: dict[tuple[str, str], list[tuple[float, LayerDelta]]] = {}
    notes: list[str] = []
    for one in loras:
        lora = read_lora(one.path, names, family)
        notes += lora.notes
        for layer, change in lora.changes.items():
            place = (_part_of(layer, networks), f"{layer.name}.{layer.parameter}")
            if place[1] not in networks[place[0]].infos:
                raise IncompatibleCheckpoint(
                    str(one.path),
                    given=f"a bias for {layer.name}, which has none",
                    expected="changes of tensors that the model's file holds",
                    cure="Name it in the prompt instead: <lora:NAME:WEIGHT>.",
                )
            if one.weight(layer):
                changes.setdefault(place, []).append((one.weight(layer), change))
    terms: Terms = {}
    for (part, tensor), added in changes.items():
        terms.setdefault(part, {})[tensor] = lambda weight, added=added: _sum_of(weight, added)  # type: ignore[misc]
    return terms, notes


def _sum_of(weight: Tensor, added: Sequence[tuple[float, LayerDelta]]) -> Tensor:
    total = torch.zeros(weight.shape)
    for factor, change in added:
        total.add_(change.difference(weight), alpha=factor)
    return total


def _part_of(layer: LoraLayer, networks: Mapping[str, NetworkToWrite]) -> str:
    return _text_parts(networks)[layer.index] if layer.part == TEXT else layer.part


def extract_lora(
    tuned: str | Path,
    base: str | Path,
    target: Path,
    *,
    rank: int = 16,
    conv_rank: int = 0,
    dtype: torch.dtype = torch.float16,
    on_layer: Callable[[str], None] = lambda _: None,
) -> tuple[str, ...]:
    """Write the difference of two models as a LoRA.

    Args:
        tuned: the model to come to.
        base: the model to come from, of the same family and build.
        target: a .safetensors file that isn't there yet.
        rank: of the linear layers and 1x1 convolutions inside transformers; at most what a layer has.
        conv_rank: of convolutions with larger kernels, in CompVis's blocks; 0 = none.
        dtype: of the file.
        on_layer: is called with each layer's name.

    Returns:
        Notes: how many layers differ, and how much of the difference the file holds.

    Raises:
        InvalidInput: a rank out of range, or something at `target`.
        IncompatibleCheckpoint: the models don't fit together, or don't differ.
    """
    _check_rank(rank, conv_rank, target)
    models = [model_at(path)[1] for path in (tuned, base)]
    if models[0].family != models[1].family:
        raise IncompatibleCheckpoint(str(tuned), given=f"a {models[0].family} model", expected=models[1].family)
    tensors: dict[str, Tensor] = {}
    whole = held = 0.0
    layers = 0
    for layer, spelled in spelled_layers(models[1]):
        part, tensor = _part_of(layer, models[1].networks), f"{layer.name}.{WEIGHT}"
        networks = [model.networks.get(part) for model in models]
        shapes = [None if one is None or tensor not in one.infos else one.infos[tensor].shape for one in networks]
        if shapes[0] != shapes[1] or networks[0] is None or networks[1] is None:
            raise IncompatibleCheckpoint(
                str(tuned),
                given=f"{part}.{tensor} of {shapes[0]}",
                expected=f"{shapes[1]}, as {base} has",
                cure="Both have to be of one build.",
            )
        on_layer(f"{part}.{layer.name}")
        own_rank = _rank_for(shapes[1] or (), rank, conv_rank)
        if own_rank == 0:
            continue
        difference = networks[0].tensor_of(tensor).float() - networks[1].tensor_of(tensor).float()
        if float(difference.abs().max()) <= SAME:
            continue
        down, up = factors_of(difference, own_rank)
        layers += 1
        whole += float(difference.double().square().sum())
        held += float((up.flatten(1) @ down.flatten(1)).double().square().sum())
        tensors |= lora_tensors(spelled, down, up, down.shape[0], dtype)
    if not tensors:
        raise IncompatibleCheckpoint(
            str(tuned), given=f"the same weights as {base} in every layer that a LoRA changes", expected="a difference"
        )
    share = 100 * held / whole
    _save(target, tensors, models[1].family, rank, conv_rank, f"{Path(tuned).name} minus {Path(base).name}")
    return (f"{layers} layers differ; the file holds {share:.1f} % of the squared difference in them",)


def _check_rank(rank: int, conv_rank: int, target: Path) -> None:
    if not (1 <= rank <= MAX_RANK and 0 <= conv_rank <= MAX_RANK):
        raise InvalidInput("rank", given=f"{rank} and {conv_rank}", expected=f"1 to {MAX_RANK}; 0 for no convolutions")
    if target.exists():
        raise InvalidInput(str(target), given="something there already", expected="a new path")


def _rank_for(shape: tuple[int, ...], rank: int, conv_rank: int) -> int:
    """The rank that a layer of this shape gets."""
    inner = 1
    for side in shape[1:]:
        inner *= side
    wanted = conv_rank if set(shape[2:]) - {1} else rank
    return min(wanted, shape[0], inner)


def factors_of(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The closest product of a rank: down [r, in, k, k], up [out, r, 1, 1] (without kernels for linear layers)."""
    u, s, vh = torch.linalg.svd(difference.flatten(1).double(), full_matrices=False)
    root = s[:rank].sqrt()
    up, down = (u[:, :rank] * root).float(), (root[:, None] * vh[:rank]).float()
    if difference.ndim == 2:
        return down, up
    return down.reshape(rank, *difference.shape[1:]), up.reshape(*up.shape, 1, 1)


def merge_loras(
    loras: Sequence[LoraToMerge],
    model: str | Path,
    target: Path,
    *,
    rank: int | None = None,
    dtype: torch.dtype = torch.float16,
) -> tuple[str, ...]:
    """Put several LoRA files together into one.

    Without a rank the result is exact: the ranks add up, ``up = [w1 up1, w2 up2]``, ``down = [down1; down2]``. With one
    it is the closest of that rank.

    Args:
        loras: files of any layout that gouache reads, with their weights.
        model: any model that they are for; only names and shapes are taken from it.
        target: a .safetensors file that isn't there yet.
        rank: of the result; needed for LoHa, LoKr and other forms that are no product of two matrices.
        dtype: of the file.

    Returns:
        Notes on the files.

    Raises:
        InvalidInput: no LoRA, a rank out of range, or something at `target`.
        IncompatibleCheckpoint: one doesn't fit the model, or its change depends on the model's weights (DoRA).
    """
    if not loras:
        raise InvalidInput("loras", given="none", expected="at least one LoRA file")
    _check_rank(rank or 1, 0, target)
    opened = model_at(model)[1]
    names, spelled = names_of(opened.networks), dict(spelled_layers(opened))
    found: dict[LoraLayer, list[tuple[float, LayerDelta]]] = {}
    notes: list[str] = []
    for one in loras:
        lora = read_lora(one.path, names, opened.family)
        notes += lora.notes
        for layer, change in lora.changes.items():
            _check_sum(lora, layer, change, spelled, rank)
            found.setdefault(layer, []).append((one.weight(layer), change))
    tensors: dict[str, Tensor] = {}
    for layer, added in found.items():
        down, up = _joined(added, names.shapes[layer], rank)
        tensors |= lora_tensors(spelled[layer], down, up, down.shape[0], dtype)
    largest = max(
        tensor.shape[0] for name, tensor in tensors.items() if name.endswith((".lora_down.weight", ".lora_A.weight"))
    )
    _save(target, tensors, opened.family, largest, 0, " + ".join(one.path.name for one in loras))
    return tuple(notes)


def _check_sum(
    lora: Lora, layer: LoraLayer, change: LayerDelta, spelled: Mapping[LoraLayer, str], rank: int | None
) -> None:
    """That a change can be a part of a LoRA in kohya's layout."""
    given = expected = ""
    if layer not in spelled:
        given, expected = f"a change of {layer.name}.{layer.parameter}", "layers that kohya's LoRA files have names for"
    elif isinstance(change, Decomposed):
        given, expected = f"DoRA in {layer.name}, which depends on the model's weights", "a plain sum"
    elif not (isinstance(change, LowRank) and change.mid is None) and rank is None:
        given, expected = f"{change.description()} in {layer.name}", "LoRA, or a rank for the result (--rank)"
    if given:
        raise IncompatibleCheckpoint(str(lora.path), given=given, expected=expected, cure="Merge it into the model.")


def _joined(
    added: Sequence[tuple[float, LayerDelta]], shape: tuple[int, ...], rank: int | None
) -> tuple[Tensor, Tensor]:
    """One product for a sum of changes."""
    if rank is not None:
        return factors_of(_sum_of(torch.empty(shape, device="cpu"), added), _rank_for(shape, rank, rank))
    downs, ups = [], []
    for factor, change in added:
        assert isinstance(change, LowRank), "others were refused"
        downs.append(change.down.float().reshape(change.rank, -1))
        ups.append(change.up.float().flatten(1) * (factor * change.scale))
    down, up = torch.cat(downs), torch.cat(ups, dim=1)
    return (down, up) if len(shape) == 2 else (down.reshape(-1, *shape[1:]), up[..., None, None])


def _save(target: Path, tensors: Mapping[str, Tensor], family: str, rank: int, conv_rank: int, what: str) -> None:
    facts = LoraFacts(
        family=family,
        name=target.stem,
        rank=rank,
        alpha=rank,
        conv_rank=conv_rank,
        comment=f"gouache {__version__}: {what}",
    )
    save_tensors(target, tensors, lora_metadata(facts, tensors))
