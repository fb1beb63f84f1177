"""Writes models: diffusers folders, single files in CompVis's layout, and gouache's own format; converts between them.

A model is written tensor by tensor as it is read, so that converting takes little memory, whatever the model's size.
Whole folders and files appear under their name only when they are complete.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from gouache import __version__
from gouache.checkpoints.detect import CONFIG_KEY
from gouache.checkpoints.diffusers import write as diffusers_write
from gouache.checkpoints.formats.header import SCALE, TensorInfo, is_matrix
from gouache.checkpoints.formats.safetensors import dtype_name, quantise, write_json, write_tensors
from gouache.checkpoints.identify import (
    CARD_FILE,
    CARD_KEY,
    SYNONYMS_FILE,
    SYNONYMS_KEY,
    VOCABULARY_FILE,
    VOCABULARY_KEY,
    ModelCard,
    PartCard,
)
from gouache.checkpoints.keymaps import speller
from gouache.checkpoints.noise_table import (
    ALPHAS_CUMPROD,
    ZERO_TERMINAL_SNR,
    edm_marks,
    records_nothing_else,
    table_to_record,
)
from gouache.checkpoints.recorded import defaults_to_record
from gouache.checkpoints.shapes import THIRDS, Naming, ShapeChange
from gouache.checkpoints.t5_vocabulary import OWN_FILE, OWN_KEY, json_to_keep
from gouache.config import Config
from gouache.errors import IncompatibleCheckpoint, InvalidInput, unknown_name
from gouache.files import atomic_write
from gouache.models.bundle import ModelBundle
from gouache.models.configs import (
    DenoiserConfig,
    GenerationDefaults,
    NetworkConfig,
    NoiseScheduleConfig,
    T5Config,
    TextEncoderConfig,
    VAEConfig,
)
from gouache.models.family import SD1, SD2, SD3, SDXL, SDXL_REFINER, family_named
from gouache.models.text.unigram import UnigramTokenizer

Format = Literal["diffusers", "single-file", "gouache"]
FORMATS: tuple[Format, ...] = ("diffusers", "single-file", "gouache")

# Family -> part -> (prefix, naming) in a single file.
SINGLE_FILE: dict[str, dict[str, tuple[str, Naming]]] = {
    SD1.name: {"text_encoder": ("cond_stage_model.transformer.", "clip_model")},
    SD2.name: {"text_encoder": ("cond_stage_model.model.", "open_clip")},
    SDXL.name: {
        "text_encoder": ("conditioner.embedders.0.transformer.", "clip_model"),
        "text_encoder_2": ("conditioner.embedders.1.model.", "open_clip"),
    },
    SDXL_REFINER.name: {"text_encoder": ("conditioner.embedders.0.model.", "open_clip")},
    SD3.name: {
        "text_encoder": ("text_encoders.clip_l.transformer.", "clip_model"),
        "text_encoder_2": ("text_encoders.clip_g.transformer.", "clip_model"),
        "text_encoder_3": ("text_encoders.t5xxl.transformer.", "ours"),
    },
}
COMMON: dict[str, tuple[str, Naming]] = {
    "unet": ("model.diffusion_model.", "ldm"),
    "vae": ("first_stage_model.", "ldm"),
}


@dataclass(frozen=True, slots=True)
class NetworkToWrite:
    """One network's config, the types and shapes of its tensors by our names, and how to get each."""

    config: Config
    infos: Mapping[str, TensorInfo]
    tensor_of: Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class ModelToWrite:
    """A whole model on its way to the disk; `networks` by the part's name.

    `styles`, `synonyms`, `description`, `licence` and `int8` (parts whose matrices are stored in int8) are kept by the
    own format only. `metadata` stands in the file's, or in that of a folder's U-Net.
    """

    family: str
    variant: str
    name: str
    denoiser: DenoiserConfig
    defaults: GenerationDefaults
    networks: Mapping[str, NetworkToWrite]
    vocabulary: tuple[str, ...] = ()
    t5_tokenizer: UnigramTokenizer | None = None
    styles: tuple[str, ...] = ()
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    description: str = ""
    licence: str = ""
    int8: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def network_to_write(config: Config, network: nn.Module) -> NetworkToWrite:
    """A network that is in memory."""
    state = network.state_dict()
    infos = {name: TensorInfo(dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in state.items()}
    return NetworkToWrite(config, infos, lambda name: state[name])


def in_int8(network: NetworkToWrite) -> NetworkToWrite:
    """The same network with its matrices in int8 and a scale for each row; see `int8`."""
    matrices = {name: info for name, info in network.infos.items() if is_matrix(name, info)}
    infos = dict(network.infos)
    for name, info in matrices.items():
        infos |= {name: TensorInfo("I8", info.shape), name + SCALE: TensorInfo(info.dtype, (info.shape[0], 1))}

    def tensor_of(name: str) -> Tensor:
        if name in matrices:
            return quantise(network.tensor_of(name))[0]
        matrix = name.removesuffix(SCALE)
        return quantise(network.tensor_of(matrix))[1] if matrix in matrices else network.tensor_of(name)

    return NetworkToWrite(network.config, infos, tensor_of)


def bundle_to_write(bundle: ModelBundle, variant: str = "base") -> ModelToWrite:
    """A model that is in memory."""
    networks: dict[str, nn.Module] = {"unet": bundle.unet, "vae": bundle.vae}
    encoders = list(bundle.text.encoders)
    networks |= dict(zip(("text_encoder", "text_encoder_2"), encoders, strict=False))
    if bundle.text.t5 is not None:
        networks["text_encoder_3"] = bundle.text.t5
    if bundle.prior is not None and bundle.quantizer is not None:
        networks |= {"prior": bundle.prior, "quantizer": bundle.quantizer}
    if bundle.upscaler is not None:
        networks["upscaler"] = bundle.upscaler
    vocabulary = getattr(bundle.text.tokenizers[0], "vocabulary", ())
    return ModelToWrite(
        family=bundle.family,
        variant=variant,
        name=bundle.name,
        denoiser=bundle.denoiser_config,
        defaults=bundle.defaults,
        networks={name: network_to_write(_config_of(network), network) for name, network in networks.items()},
        vocabulary=tuple(vocabulary),
        t5_tokenizer=bundle.text.t5_tokenizer,
        styles=bundle.styles,
        synonyms={} if bundle.synonyms is None else bundle.synonyms.table,
    )


def _config_of(network: nn.Module) -> Config:
    config = network.config
    if not isinstance(config, Config):
        raise InvalidInput("network", given=type(network).__name__, expected="one of gouache's networks")
    return config


def write_model(model: ModelToWrite, path: str | Path, to: Format) -> Path:
    """Write a model.

    Args:
        model: what.
        path: where. ``to="gouache"`` writes one file if the path ends in ``.safetensors``, else a folder.
        to: one of `FORMATS`.

    Raises:
        UnknownName: `to` is no format.
        InvalidInput: something is at `path` already, or parts in int8 that are none or that the format can't hold.
        IncompatibleCheckpoint: the format has no words for this model.
    """
    path = Path(path)
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    if path.exists():
        raise InvalidInput(
            str(path), given="something there already", expected="a new path", cure="Name another, or remove it."
        )
    if unknown := sorted(set(model.int8) - set(model.networks if to == "gouache" else ())):
        raise InvalidInput(
            "int8", given=", ".join(unknown), expected=f"some of {', '.join(model.networks)}, in gouache's own format"
        )
    vae = model.networks["vae"].config if "vae" in model.networks else None
    unusual = isinstance(vae, VAEConfig) and (
        vae.tiny_blocks or vae.decoder_channels or vae.decoder_layers or vae.mask_condition
    )
    if to != "gouache" and unusual:
        raise IncompatibleCheckpoint(
            str(path),
            given="a tiny autoencoder, or one whose halves differ",
            expected="the published autoencoder, which this layout has names for",
            cure="Use --to gouache.",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if to == "single-file":
        _write_single_file(model, path)
    elif to == "diffusers":
        with _new_folder(path) as folder:
            _write_diffusers(model, folder, str(path))
    elif path.suffix == ".safetensors":
        _write_own_file(model, path)
    else:
        with _new_folder(path) as folder:
            _write_own_folder(model, folder)
    return path


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder that takes its name when everything in it is written."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    part.mkdir()
    try:
        yield part
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _stored(model: ModelToWrite) -> dict[str, NetworkToWrite]:
    """The networks as the own format holds them."""
    return {name: in_int8(network) if name in model.int8 else network for name, network in model.networks.items()}


def _write_own_folder(model: ModelToWrite, folder: Path) -> None:
    parts = []
    for name, network in _stored(model).items():
        metadata = {**_told(model, name), "component": name, "config": network.config.to_json()}
        sha256 = write_tensors(folder / f"{name}.safetensors", network.infos, network.tensor_of, metadata)
        parts.append(PartCard(name=name, file=f"{name}.safetensors", sha256=sha256))
    if model.vocabulary:
        with atomic_write(folder / VOCABULARY_FILE) as file:
            file.write("\n".join(model.vocabulary).encode("utf-8") + b"\n")
    if model.synonyms:
        with atomic_write(folder / SYNONYMS_FILE) as file:
            file.write(_table(model.synonyms).encode("utf-8"))
    for text in _t5_vocabulary(model).values():
        with atomic_write(folder / OWN_FILE) as file:
            file.write(text.encode("utf-8"))
    write_json(folder / CARD_FILE, _card(model, tuple(parts)).model_dump(mode="json"))


def _write_own_file(model: ModelToWrite, path: Path) -> None:
    networks = _stored(model)
    infos = {f"{part}.{name}": info for part, network in networks.items() for name, info in network.infos.items()}

    def tensor_of(name: str) -> Tensor:
        part, _, inner = name.partition(".")
        return networks[part].tensor_of(inner)

    own = {CARD_KEY: _card(model, ()).to_json(), **_config_metadata(model), **_t5_vocabulary(model)}
    metadata = {**model.metadata, **own}
    if model.vocabulary:
        metadata[VOCABULARY_KEY] = "\n".join(model.vocabulary)
    if model.synonyms:
        metadata[SYNONYMS_KEY] = _table(model.synonyms)
    write_tensors(path, infos, tensor_of, metadata)


def _table(synonyms: Mapping[str, Sequence[str]]) -> str:
    return "".join("\t".join((label, *names)) + "\n" for label, names in synonyms.items())


def _card(model: ModelToWrite, parts: tuple[PartCard, ...]) -> ModelCard:
    return ModelCard(
        producer=f"gouache {__version__}",
        family=model.family,
        name=model.name,
        variant=model.variant,
        denoiser=model.denoiser,
        defaults=model.defaults,
        parts=parts,
        int8=model.int8,
        styles=model.styles,
        description=model.description,
        licence=model.licence,
    )


def _t5_vocabulary(model: ModelToWrite) -> dict[str, str]:
    """What a file's metadata says of the vocabulary of its T5; nothing of the published one, which every reader has."""
    text = "" if model.t5_tokenizer is None else json_to_keep(model.t5_tokenizer)
    return {OWN_KEY: text} if text else {}


def _config_metadata(model: ModelToWrite) -> dict[str, str]:
    return {CONFIG_KEY + name: network.config.to_json() for name, network in model.networks.items()}


def _write_single_file(model: ModelToWrite, path: Path) -> None:
    """CompVis's layout (Stability's for SDXL), with the configs and the prediction type in the metadata."""
    if model.family not in SINGLE_FILE:
        raise IncompatibleCheckpoint(
            str(path),
            given=f"a {model.family} model",
            expected=f"one of {', '.join(SINGLE_FILE)}",
            cure="Use --to gouache.",
        )
    infos: dict[str, TensorInfo] = {}
    sources: dict[str, list[tuple[NetworkToWrite, str, ShapeChange]]] = {}
    configs = {}
    for (name, (prefix, naming)), network in _single_file_parts(model):
        configs[CONFIG_KEY + name] = network.config.to_json()
        spell = speller(network.config, naming)
        for ours, info in network.infos.items():
            spelling = spell(ours)
            theirs = prefix + spelling.name
            sources.setdefault(theirs, []).append((network, ours, spelling.change))
            infos[theirs] = TensorInfo(info.dtype, _their_shape(info.shape, spelling.change))
    family = family_named(model.family)
    prediction = {"eps": "epsilon", "x0": "sample"}.get(
        model.denoiser.parameterization, model.denoiser.parameterization
    )
    metadata = {
        **model.metadata,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.architecture + ("" if model.variant == "base" else f"-{model.variant}"),
        "modelspec.implementation": family.implementation,
        "modelspec.title": model.name or model.family,
        "modelspec.prediction_type": prediction,
    }
    metadata |= defaults_to_record(model.defaults, model.family)
    marks = _marks(model, str(path))
    infos |= {name: TensorInfo("F32", tuple(mark.shape)) for name, mark in marks.items()}

    def tensor_of(name: str) -> Tensor:
        return marks[name] if name in marks else _joined(sources[name], infos[name].shape)

    write_tensors(path, infos, tensor_of, metadata | configs | _t5_vocabulary(model))


def _marks(model: ModelToWrite, where: str) -> dict[str, Tensor]:
    """What tells other tools of a v network in SDXL's shape, of zero terminal SNR, and of any other noise schedule."""
    schedule = model.denoiser.schedule
    marks = {}
    if model.denoiser.parameterization == "v" and model.family == SDXL.name and schedule.name != "edm":
        marks["v_pred"] = torch.empty(0)
    if schedule.zero_terminal_snr:
        marks[ZERO_TERMINAL_SNR] = torch.empty(0)
    vae, shift = model.networks["vae"].config, family_named(model.family).shift
    if shift is not None and schedule == NoiseScheduleConfig(name="flow", shift=shift):
        return marks
    if schedule.name == "edm" and isinstance(vae, VAEConfig):
        return edm_marks(model.denoiser, vae, where)
    if not records_nothing_else(schedule):
        marks[ALPHAS_CUMPROD] = table_to_record(schedule, where)
    return marks


def _single_file_parts(model: ModelToWrite) -> Iterator[tuple[tuple[str, tuple[str, Naming]], NetworkToWrite]]:
    """Each part's name and place in a single file."""
    places = COMMON | SINGLE_FILE[model.family]
    for name, network in model.networks.items():
        # A lone encoder is the first in a single file, even where it is the second in folders, as the refiner's.
        alone = family_named(model.family).text_encoders == (name,)
        place = "text_encoder" if alone else name
        yield (place, places[place]), network


def _their_shape(shape: tuple[int, ...], change: ShapeChange) -> tuple[int, ...]:
    if change is ShapeChange.POINTWISE and len(shape) == 2:
        return (*shape, 1, 1)
    if change is ShapeChange.TRANSPOSED:
        return shape[::-1]
    return (3 * shape[0], *shape[1:]) if change in THIRDS else shape


def _joined(sources: list[tuple[NetworkToWrite, str, ShapeChange]], shape: tuple[int, ...]) -> Tensor:
    """A single file's tensor, made from one of ours or from three."""
    ordered = sorted(sources, key=lambda source: source[2].value)
    tensors = [network.tensor_of(name) for network, name, _ in ordered]
    if ordered[0][2] is ShapeChange.TRANSPOSED:
        return tensors[0].T
    if ordered[0][2] is ShapeChange.HALVES_SWAPPED:
        return torch.cat(tensors[0].chunk(2)[::-1])
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0].reshape(shape)


def _write_diffusers(model: ModelToWrite, folder: Path, where: str) -> None:
    scheduler = model.defaults.scheduler
    t5 = "text_encoder_3" in model.networks
    index = diffusers_write.model_index(model.family, model.variant, where, scheduler, t5=t5)
    write_json(folder / "model_index.json", index)
    size, deviation = model.defaults.width, model.denoiser.schedule.sigma_data or 1.0
    for name, network in model.networks.items():
        config = network.config
        if isinstance(config, NetworkConfig):
            values = diffusers_write.network_json(config, size // _downscale(model), where)
            part = folder / diffusers_write.network_folder(config)
            _write_part(part, network, values, metadata=_told(model, name))
        elif isinstance(config, VAEConfig):
            _write_part(folder / name, network, diffusers_write.vae_json(config, size, where, deviation))
        elif isinstance(config, T5Config):
            _write_part(folder / name, network, diffusers_write.t5_json(config), "model.safetensors")
        elif isinstance(config, TextEncoderConfig):
            encoders = family_named(model.family).text_encoders
            place = encoders[0] if len(encoders) == 1 else name
            _write_text(
                folder, place, network, config, projection=place == "text_encoder_2" or model.family == SD3.name
            )
    if model.t5_tokenizer is not None:
        diffusers_write.write_t5_tokenizer(folder / "tokenizer_3", model.t5_tokenizer)
    (folder / "scheduler").mkdir()
    values = diffusers_write.scheduler_json(model.denoiser, model.family, where, scheduler)
    write_json(folder / "scheduler" / "scheduler_config.json", values)
    if model.variant == "upscaler":
        (folder / "low_res_scheduler").mkdir()
        plain = diffusers_write.scheduler_json(model.denoiser, model.family, where)
        low = {**plain, "_class_name": "DDPMScheduler", "prediction_type": "epsilon"}
        write_json(folder / "low_res_scheduler" / "scheduler_config.json", low)


def _downscale(model: ModelToWrite) -> int:
    vae = model.networks["vae"].config
    return vae.downscale if isinstance(vae, VAEConfig) else 8


def _told(model: ModelToWrite, part: str) -> Mapping[str, str]:
    """What the file of a folder's denoising network says of the whole model."""
    return model.metadata if part == "unet" else {}


def _write_part(
    folder: Path,
    network: NetworkToWrite,
    values: Mapping[str, object],
    file: str = "diffusion_pytorch_model.safetensors",
    metadata: Mapping[str, str] | None = None,
) -> None:
    folder.mkdir()
    write_json(folder / "config.json", values)
    write_tensors(folder / file, network.infos, network.tensor_of, metadata)


def _write_text(
    folder: Path, place: str, network: NetworkToWrite, config: TextEncoderConfig, *, projection: bool
) -> None:
    """With the names under ``text_model.``, as every version of transformers reads them."""
    spell = speller(config, "clip_model")
    ours = {spell(name).name: name for name in network.infos}
    (folder / place).mkdir()
    values = diffusers_write.text_json(config, projection=projection)
    write_json(folder / place / "config.json", values)
    infos = {theirs: network.infos[name] for theirs, name in ours.items()}
    write_tensors(folder / place / "model.safetensors", infos, lambda theirs: network.tensor_of(ours[theirs]))
    diffusers_write.write_tokenizer(folder / place.replace("text_encoder", "tokenizer"), config)
