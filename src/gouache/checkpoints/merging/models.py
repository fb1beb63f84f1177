"""Merges models: weighted sums, an added difference, LoRA files; one tensor in memory at a time.

A weighted sum is (1 - sum of m) A + m_B B + m_C C + ..., an added difference A + m (B - C), as AUTOMATIC1111's
checkpoint merger computes them. The arithmetic is fp32, rounded once to the type that is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gouache import __version__
from gouache.checkpoints.convert import model_at
from gouache.checkpoints.detect import Identity
from gouache.checkpoints.formats.header import TensorInfo, few
from gouache.checkpoints.formats.safetensors import TORCH_DTYPES, dtype_name
from gouache.checkpoints.merging.blocks import BASE, block_finder, read_blocks
from gouache.checkpoints.merging.loras import LoraToMerge, lora_terms
from gouache.checkpoints.save import SINGLE_FILE, Format, ModelToWrite, NetworkToWrite, write_model
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint, InvalidInput
from gouache.models.configs import NoiseScheduleConfig, UNetConfig
from gouache.models.denoiser import schedule_from

Method = Literal["weighted-sum", "add-difference"]
METHODS: tuple[Method, ...] = ("weighted-sum", "add-difference")
HALF = 0.5
FIRST_CONVOLUTION = "conv_in.weight"
MAX_MODELS = 16
RECIPE, MODELS = "sd_merge_recipe", "sd_merge_models"
"""Where A1111 keeps what a file was merged of."""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What to merge, and how.

    Attributes:
        method: how models are put together.
        weights: m of each model behind the first (one for an added difference); empty = 0.5 for the second, 1 for a
            difference.
        blocks: weights of blocks of the U-Net in place of m, as `read_blocks` takes them; two models, or a difference.
        base: m of everything outside the U-Net; None = as the others.
        vae: number of the model that the autoencoder comes from, from 1; None = it is merged.
        text: the same for the text encoders.
        loras: files that are merged into the result.
        dtype: what floating-point tensors become; None = the first model's.
    """

    method: Method = "weighted-sum"
    weights: tuple[float, ...] = ()
    blocks: str | None = None
    base: float | None = None
    vae: int | None = None
    text: int | None = None
    loras: tuple[LoraToMerge, ...] = ()
    dtype: torch.dtype | None = None


@dataclass(frozen=True, slots=True)
class Merged:
    """What came of it.

    Attributes:
        path: the model.
        identity: of the first model.
        notes: what was done beyond the formula.
    """

    path: Path
    identity: Identity
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Sources:
    """The opened models, and notes on them."""

    paths: tuple[Path, ...]
    models: tuple[ModelToWrite, ...]
    identity: Identity
    notes: list[str] = field(default_factory=list)


def merge(
    sources: Sequence[str | Path],
    target: str | Path,
    plan: MergePlan | None = None,
    *,
    to: Format | None = None,
    on_tensor: Callable[[str], None] = lambda _: None,
) -> Merged:
    """Merge models, or LoRA files into one, and write the result.

    Args:
        sources: models of one family, in any layouts that load.
        target: a path where nothing is yet.
        plan: how; None = half of each of two models.
        to: layout; None = a single file if `target` ends in ``.safetensors``, else diffusers' folder, and the own
            format for families that have neither.
        on_tensor: is called with each tensor's name as it is written.

    Raises:
        InvalidInput: weights, blocks or numbers that don't fit the models.
        IncompatibleCheckpoint: tensors of the models don't fit together; all are listed.
        The errors of `load_bundle`, `read_lora` and `write_model`.
    """
    plan = plan or MergePlan()
    opened = _open(sources)
    factors = _factors_of(plan, opened)
    parts = {name: _part(name, plan, opened) for name in _part_names(opened)}
    _check_fit(parts, opened)
    first = opened.models[0]
    networks = {
        name: merged_network(
            [(one.networks[name], k) for k, one in enumerate(opened.models) if k in chosen],
            lambda tensor, name=name, chosen=chosen: factors(name, tensor, chosen),  # type: ignore[misc]
            plan.dtype,
        )
        for name, chosen in parts.items()
    }
    terms, lora_notes = lora_terms(plan.loras, networks, first.family)
    networks = {name: _with_terms(network, terms.get(name, {}), name) for name, network in networks.items()}
    networks = {name: _told(network, name, on_tensor) for name, network in networks.items()}
    metadata = _metadata(plan, opened, [*opened.notes, *lora_notes])
    wanted = to or _layout(Path(target), first.family)
    path = write_model(replace(first, networks=networks, int8=(), metadata=metadata), target, wanted)
    return Merged(path, opened.identity, (*opened.notes, *lora_notes))


def _layout(target: Path, family: str) -> Format:
    if family not in SINGLE_FILE:
        return "gouache"
    return "single-file" if target.suffix == ".safetensors" else "diffusers"


def _open(sources: Sequence[str | Path]) -> _Sources:
    if not 1 <= len(sources) <= MAX_MODELS:
        raise InvalidInput("models", given=f"{len(sources)} of them", expected=f"1 to {MAX_MODELS}")
    paths = tuple(Path(source) for source in sources)
    found = [model_at(path) for path in paths]
    identity, first = found[0]
    for path, (_, model) in zip(paths[1:], found[1:], strict=True):
        for what, given, expected in (
            ("family", model.family, first.family),
            ("prediction", model.denoiser.parameterization, first.denoiser.parameterization),
        ):
            if given != expected:
                raise IncompatibleCheckpoint(
                    str(path),
                    given=f"a model of {what} {given}",
                    expected=f"{expected}, as {paths[0]} is",
                    cure="Only weights that mean the same can be added.",
                )
    notes = []
    if not all(_same_levels(model.denoiser.schedule, first.denoiser.schedule) for _, model in found[1:]):
        notes.append("noise schedules differ; the first model's was taken")
    return _Sources(paths, tuple(model for _, model in found), identity, notes)


def _same_levels(one: NoiseScheduleConfig, other: NoiseScheduleConfig) -> bool:
    """Whether two schedules are one, said as a formula or as a table."""
    if one == other:
        return True
    first, second = (getattr(schedule_from(config), "sigmas", None) for config in (one, other))
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)) or first.shape != second.shape:
        return False
    return torch.allclose(first, second, rtol=1e-3)


Factors = Callable[[str, str, tuple[int, ...]], Mapping[int, float]]
"""(part, tensor, models that have the part) -> factor of each of them."""


def _factors_of(plan: MergePlan, opened: _Sources) -> Factors:
    """The formula's factor of each model, for any tensor."""
    count = len(opened.models)
    weights = _weights(plan, count)
    unet = opened.models[0].networks["unet"].config
    if plan.blocks is not None and not isinstance(unet, UNetConfig):
        raise InvalidInput(
            "blocks", given=f"weights of blocks for {opened.models[0].family}", expected="a model with a U-Net"
        )
    if plan.blocks is not None and count != (3 if plan.method == "add-difference" else 2):
        raise InvalidInput("blocks", given=f"weights of blocks for {count} models", expected="one m: two models")
    weighed = unet if isinstance(unet, UNetConfig) and plan.blocks is not None else None
    blocks = {} if weighed is None else read_blocks(plan.blocks or "", weighed)
    if plan.base is not None and BASE in blocks:
        raise InvalidInput("base", given="a weight beside BASE in blocks", expected="one of them")
    base = blocks.get(BASE, plan.base)
    find = block_finder(weighed) if weighed is not None else None

    def m_of(part: str, tensor: str) -> tuple[float, ...]:
        if part != "unet":
            return weights if base is None else (base,) * len(weights)
        return weights if find is None else (blocks.get(find(tensor), weights[0]),)

    def factors(part: str, tensor: str, chosen: tuple[int, ...]) -> Mapping[int, float]:
        if len(chosen) < count:
            return {chosen[0]: 1.0}
        own = m_of(part, tensor)
        if plan.method == "add-difference":
            return {0: 1.0, 1: own[0], 2: -own[0]}
        return {0: 1.0 - sum(own), **{k + 1: one for k, one in enumerate(own)}}

    return factors


def _weights(plan: MergePlan, count: int) -> tuple[float, ...]:
    if plan.method == "add-difference":
        if count != 3:
            raise InvalidInput("models", given=f"{count} for a difference", expected="3: A + m (B - C)")
        wanted, plain = 1, (1.0,)
    else:
        wanted, plain = count - 1, (HALF,)
    weights = plan.weights or (plain if wanted == 1 else ())
    if len(weights) != wanted:
        raise InvalidInput(
            "weights",
            given=f"{len(weights)} for {count} models",
            expected=f"{wanted}: one for each model behind the first, which has the rest"
            if plan.method == "weighted-sum"
            else "one: m in A + m (B - C)",
        )
    if not all(-10 <= one <= 10 for one in (*weights, plan.base or 0.0)):
        raise InvalidInput("weights", given=str(weights), expected="numbers from -10 to 10, mostly 0 to 1")
    return weights


def _part_names(opened: _Sources) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for model in opened.models for name in model.networks))


def _part(name: str, plan: MergePlan, opened: _Sources) -> tuple[int, ...]:
    """Which models a part is made of: all, or one."""
    having = tuple(k for k, model in enumerate(opened.models) if name in model.networks)
    wanted = {"vae": plan.vae}.get(name, plan.text if name.startswith("text_encoder") else None)
    if wanted is not None:
        if wanted - 1 not in having:
            raise InvalidInput(
                "vae" if name == "vae" else "text",
                given=f"model {wanted}",
                expected=f"the number of a model with a {name}: {', '.join(str(k + 1) for k in having)}",
            )
        return (wanted - 1,)
    if len(having) < len(opened.models):
        opened.notes.append(f"{name} was taken from {opened.paths[having[0]].name}: not every model has one")
        return having[:1]
    return having


def _check_fit(parts: Mapping[str, tuple[int, ...]], opened: _Sources) -> None:
    """That all tensors of all models have the same names and shapes; a plain model fits into one whose first
    convolution takes more channels."""
    for name, chosen in parts.items():
        first = opened.models[chosen[0]].networks[name]
        for k in chosen[1:]:
            other = opened.models[k].networks[name]
            misfits = [f"missing {tensor}" for tensor in first.infos if tensor not in other.infos]
            misfits += [f"unexpected {tensor}" for tensor in other.infos if tensor not in first.infos]
            misfits += [
                f"{tensor} {list(other.infos[tensor].shape)} for {list(info.shape)}"
                for tensor, info in first.infos.items()
                if tensor in other.infos
                and other.infos[tensor].shape != info.shape
                and not (name == "unet" and _narrower(tensor, other, first))
            ]
            if misfits:
                raise IncompatibleCheckpoint(
                    str(opened.paths[k]),
                    given=f"{len(misfits)} tensors that don't fit {opened.paths[chosen[0]].name}'s {name}: "
                    + few(misfits),
                    expected="tensors of the same names and shapes in all models",
                    cure="Put the model with more input channels (inpainting, instruct, depth) first."
                    if any(FIRST_CONVOLUTION in misfit for misfit in misfits)
                    else "They are models of different builds.",
                )


def _narrower(tensor: str, other: NetworkToWrite, first: NetworkToWrite) -> bool:
    wide, narrow = first.infos[tensor].shape, other.infos[tensor].shape
    config = other.config
    plain = isinstance(config, UNetConfig) and narrow[1] == config.in_channels and config.draft_channels == 0
    same = (narrow[0], *narrow[2:]) == (wide[0], *wide[2:])
    return tensor == FIRST_CONVOLUTION and plain and same and narrow[1] < wide[1]


def merged_network(
    sources: Sequence[tuple[NetworkToWrite, int]],
    factors: Callable[[str], Mapping[int, float]],
    dtype: torch.dtype | None,
) -> NetworkToWrite:
    """A network whose tensors are sums of others', made when they are asked for.

    Args:
        sources: networks with the numbers of their models, the first of which has the names, shapes and types.
        factors: tensor -> factor of each model.
        dtype: what floating-point tensors become; None = the first's.
    """
    first = sources[0][0]
    infos = {
        name: TensorInfo(dtype_name(dtype) if dtype and _is_floating(info) else info.dtype, info.shape)
        for name, info in first.infos.items()
    }

    def tensor_of(name: str) -> Tensor:
        wanted = TORCH_DTYPES[infos[name].dtype]
        own = factors(name)
        acting = [(network, own[k]) for network, k in sources if own.get(k)]
        if not _is_floating(infos[name]) or [(network is first, factor) for network, factor in acting] == [(True, 1.0)]:
            return first.tensor_of(name).to(wanted)
        total = torch.zeros(infos[name].shape)
        # What a narrower first convolution knows nothing of stays the first model's.
        inputs = min(network.infos[name].shape[1] for network, _ in sources) if total.ndim > 1 else None
        for network, factor in acting:
            tensor = network.tensor_of(name).float()
            if inputs is None or total.shape[1] == inputs:
                total.add_(tensor, alpha=factor)
            else:
                total[:, :inputs].add_(tensor[:, :inputs], alpha=factor)
        if inputs is not None and total.shape[1] > inputs:
            total[:, inputs:] = first.tensor_of(name)[:, inputs:].float()
        return _finite(total.to(wanted), name)

    return NetworkToWrite(first.config, infos, tensor_of)


def _with_terms(network: NetworkToWrite, terms: Mapping[str, Callable[[Tensor], Tensor]], part: str) -> NetworkToWrite:
    """The network with changes added to some of its tensors, in fp32."""
    if not terms:
        return network

    def tensor_of(name: str) -> Tensor:
        tensor = network.tensor_of(name)
        if name not in terms:
            return tensor
        return _finite((tensor.float() + terms[name](tensor)).to(tensor.dtype), f"{part}.{name}")

    return NetworkToWrite(network.config, network.infos, tensor_of)


def _told(network: NetworkToWrite, part: str, on_tensor: Callable[[str], None]) -> NetworkToWrite:
    def tensor_of(name: str) -> Tensor:
        on_tensor(f"{part}.{name}")
        return network.tensor_of(name)

    return NetworkToWrite(network.config, network.infos, tensor_of)


def _is_floating(info: TensorInfo) -> bool:
    return TORCH_DTYPES[info.dtype].is_floating_point


def _finite(tensor: Tensor, name: str) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise CorruptCheckpoint(
            name,
            given=f"infinity after merging in {tensor.dtype}",
            expected="finite weights",
            cure="Use smaller weights, or write another type (--dtype fp32 or bf16).",
        )
    return tensor


def _metadata(plan: MergePlan, opened: _Sources, notes: Sequence[str]) -> dict[str, str]:
    """What was merged, in A1111's keys and, for what they have no word for, in our own."""
    hashes = [file_hashes(path) for path in opened.paths]
    single = [found[path.name] if path.is_file() else None for path, found in zip(opened.paths, hashes, strict=True)]
    weights = _weights(plan, len(opened.models)) if len(opened.models) > 1 else ()
    recipe = {
        "type": f"gouache {__version__}",
        "primary_model_hash": single[0],
        "secondary_model_hash": single[1] if len(single) > 1 else None,
        "tertiary_model_hash": single[2] if len(single) > 2 else None,
        "interp_method": {"weighted-sum": "Weighted sum", "add-difference": "Add difference"}[plan.method]
        if weights
        else "No interpolation",
        "multiplier": weights[0] if weights else 0.0,
        "save_as_half": plan.dtype == torch.float16,
        "weights": list(weights),
        "blocks": plan.blocks,
        "base": plan.base,
        "vae": plan.vae,
        "text": plan.text,
        "models": [{"name": path.name, "sha256": found} for path, found in zip(opened.paths, hashes, strict=True)],
        "loras": [
            {"name": one.path.name, "sha256": file_hashes(one.path), "weight": one.unet, "text_weight": one.text}
            for one in plan.loras
        ],
        "notes": list(notes),
    }
    models = {
        digest: {"name": path.stem, "legacy_hash": None, RECIPE: None}
        for path, digest in zip(opened.paths, single, strict=True)
        if digest is not None
    }
    return {RECIPE: json.dumps(recipe), MODELS: json.dumps(models)}


def file_hashes(path: Path) -> dict[str, str]:
    """sha256 of a file, or of every weight file of a folder, by name."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in _WEIGHT_FILES)
    found = {}
    for file in files:
        with file.open("rb") as opened:
            found[file.name if path.is_file() else file.relative_to(path).as_posix()] = hashlib.file_digest(
                opened, "sha256"
            ).hexdigest()
    return found


_WEIGHT_FILES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
