"""Says what lies at a path: a file or a folder, of any layout. Headers only, and no torch.

The own format is described here too: what `model.json` (or the metadata of one file) says of a model's parts. A folder
holds ``model.json`` and one safetensors file a part; one file holds all parts, each under its name and a dot, with the
same JSON under ``gouache.model``. Each part's config travels in the metadata of the file that holds the part: under
``config`` in a folder, under ``gouache.config.PART`` in one file.
"""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from gouache.checkpoints import detect, joined
from gouache.checkpoints.adapters import peft_config
from gouache.checkpoints.detect import CONFIG_KEY, Identity, Part
from gouache.checkpoints.diffusers import folder as folders
from gouache.checkpoints.foreign import check_class
from gouache.checkpoints.formats.header import SHA256, Header, dequantised_header, open_header, read_header
from gouache.config import Config
from gouache.errors import CorruptCheckpoint, ModelNotFound, UnknownFamily, unknown_name
from gouache.models.configs import (
    DenoiserConfig,
    GenerationDefaults,
    PriorConfig,
    QuantizerConfig,
    SentenceEncoderConfig,
    TextEncoderConfig,
    UpscalerConfig,
)
from gouache.models.family import FAMILIES, SD3, UNKNOWN

CARD_FILE = "model.json"
CARD_KEY = "gouache.model"
VOCABULARY_FILE = "vocab.txt"
VOCABULARY_KEY = "gouache.vocabulary"
SYNONYMS_FILE = "synonyms.tsv"
SYNONYMS_KEY = "gouache.synonyms"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "prior", "quantizer", "upscaler")


class PartCard(Config):
    """Where a part of a folder lies."""

    name: str
    """One of `PARTS`."""
    file: str
    """Name of a file in the folder."""
    sha256: str = ""
    """Of the file's tensors, as the file's own metadata records it too."""


class ModelCard(Config):
    """What a model is, apart from its networks' configs."""

    format: str = "1"
    """Version of this format."""
    producer: str = ""
    family: str
    name: str = ""
    variant: str = "base"
    denoiser: DenoiserConfig = DenoiserConfig()
    defaults: GenerationDefaults = GenerationDefaults()
    parts: tuple[PartCard, ...] = ()
    """For a folder: its files. Empty for one file."""
    int8: tuple[str, ...] = ()
    """Parts whose matrices are stored in int8 with a scale a row; see `int8`."""
    styles: tuple[str, ...] = ()
    """Styles that a request may name; empty for a model that knows none by name."""
    description: str = ""
    licence: str = ""


def part_config(name: str, text: str, where: str) -> Config:
    """Parse a part's config.

    Raises:
        ConfigError: it is no config of that part.
    """
    if name in ("text_encoder", "text_encoder_2"):
        kind: type[Config] = SentenceEncoderConfig if '"max_tokens"' in text else TextEncoderConfig
    elif name in ("prior", "quantizer"):
        kind = PriorConfig if name == "prior" else QuantizerConfig
    elif name == "upscaler":
        kind = UpscalerConfig
    else:
        kind = detect.config_kind(name, text)
    return kind.from_json(text, where=where)


def read_card(path: Path) -> ModelCard | None:
    """The card of a folder or a file in the own format; None if it has none."""
    if path.is_dir():
        file = path / CARD_FILE
        return ModelCard.from_json(file.read_text(encoding="utf-8"), where=str(file)) if file.is_file() else None
    text = read_header(path).metadata.get(CARD_KEY)
    return ModelCard.from_json(text, where=f"{path} metadata {CARD_KEY}") if text is not None else None


def identify(path: str | Path, *, variant: str | None = None, vae: str | Path | None = None) -> Identity:
    """Say what a file or folder is.

    Args:
        path: a weight file, a diffusers folder, a network's own folder, a folder with the parts of one model in files
            of their own, or a folder in gouache's format.
        variant: for diffusers folders, which weights to prefer, for example ``"fp16"``.
        vae: an autoencoder to take in place of the model's own, or where it has none: a file or a folder. A model
            without one takes the file ``NAME.vae.safetensors`` beside it, and says so in `loading_notes`; so does
            Stable Diffusion 3 with text encoders.

    Raises:
        ModelNotFound: nothing is there, or a part is missing.
        CorruptCheckpoint, UnsafeCheckpoint, IncompatibleCheckpoint: a file can't be used; the message names it.
        UnknownFamily: it is nothing that gouache knows.
    """
    path = Path(path)
    identity = _identify_folder(path, variant) if path.is_dir() else _identify_file(path)
    if identity.family == SD3.name and "unet" in identity.parts and identity.kind != "model" and path.is_file():
        identity = joined.with_texts_beside(identity, path)
    if vae is not None:
        return joined.with_vae(identity, identify(vae, variant=variant), Path(vae))
    own = joined.beside(path) if identity.kind == "model" and "vae" not in identity.parts else None
    if own is None:
        return identity
    note = f"the autoencoder is {own.name}, which lies beside the model"
    completed = joined.with_vae(identity, identify(own), own)
    return replace(completed, loading_notes=(*completed.loading_notes, note))


def _identify_file(path: Path) -> Identity:
    header = open_header(path)
    if CARD_KEY in header.metadata:
        own = read_card(path)
        if own is not None:
            return _own_file(header, own)
    return detect.identify(header)


def _identify_folder(path: Path, variant: str | None) -> Identity:
    own = read_card(path)
    if own is not None:
        return _own_folder(path, own)
    if folders.is_diffusers_folder(path):
        return folders.identify_diffusers(path, variant=variant)
    adapter_weights = peft_config.weights_of(path)
    if adapter_weights is not None:
        return identify(adapter_weights)
    adapter = folders.lone_adapter(path, variant=variant)
    if adapter is not None:
        return Identity(adapter.kind, adapter.family, "network", label=adapter.label)
    part = folders.lone_network(path, variant=variant)
    if part is not None:
        alone = {part.name: part}
        left_out, _ = detect.rest_of(alone, UNKNOWN.name)
        return Identity(detect.kind_of(alone), UNKNOWN.name, "network", parts=alone, left_out=left_out)
    files = joined.weight_files(path)
    if len(files) == 1:
        return identify(files[0])
    together = joined.join(files, str(path)) if files else None
    if together is not None:
        return together
    for config in sorted(path.glob("*/config.json")):
        check_class(folders.read_json(config), str(config.parent))
    if not any(path.iterdir()):
        raise ModelNotFound(str(path), given="an empty folder", expected="a model", cure="Check the path.")
    raise UnknownFamily(
        str(path),
        given=f"a folder with {len(files)} weight files" if files else "a folder without weights",
        expected="one weight file, the parts of a pipeline (model_index.json), or one U-Net, its text encoders and an "
        "autoencoder in files of their own",
        cure="Name the file you mean." if files else "",
    )


def _own_folder(folder: Path, card: ModelCard) -> Identity:
    """What a folder in the own format holds.

    Raises:
        CorruptCheckpoint: the card names a part or a file that can't be, or a file has another sha256 than it says.
        UnknownFamily: the card names a family that isn't one; the nearest name is offered.
    """
    parts = {}
    for part in card.parts:
        name = part.name
        if name not in PARTS or Path(part.file).name != part.file:
            raise CorruptCheckpoint(
                str(folder / CARD_FILE),
                given=f"part {name!r} in file {part.file!r}",
                expected=f"one of {', '.join(PARTS)}, in a file of this folder",
            )
        header = read_header(folder / part.file)
        recorded = header.metadata.get("gouache.sha256", "")
        if part.sha256 and recorded != part.sha256:
            raise CorruptCheckpoint(
                str(header.path),
                given=f"sha256 {recorded[:16] or 'none'}",
                expected=f"{part.sha256[:16]}, as {CARD_FILE} records",
                cure="The folder mixes files of two models; copy it again.",
            )
        if name in card.int8:
            header = dequantised_header(header, ("",))
        config = part_config(name, header.metadata.get("config", "{}"), str(header.path))
        parts[name] = Part(name, header, "", "ours", config)
    return _identity(card, parts, str(folder / CARD_FILE))


def _own_file(header: Header, card: ModelCard) -> Identity:
    """What one file in the own format holds; every part that its metadata has a config of."""
    parts = {}
    if card.int8:
        header = dequantised_header(header, [f"{name}." for name in card.int8])
    for name in PARTS:
        text = header.metadata.get(CONFIG_KEY + name)
        if text is not None:
            config = part_config(name, text, f"{header.path} metadata {CONFIG_KEY}{name}")
            parts[name] = Part(name, header, f"{name}.", "ours", config)
    prefixes = tuple(part.prefix for part in parts.values())
    unexplained = tuple(name for name in header.tensors if not name.startswith(prefixes))
    return _identity(card, parts, str(header.path), unexplained)


def _identity(card: ModelCard, parts: dict[str, Part], where: str, unexplained: tuple[str, ...] = ()) -> Identity:
    if card.family not in FAMILIES:
        near = unknown_name("family", card.family, FAMILIES)
        raise UnknownFamily(where, given=f"family {near.given}", expected=near.expected, cure=near.cure)
    return Identity(
        kind="model",
        family=card.family,
        layout="gouache",
        variant=card.variant,
        label=card.name,
        parts=parts,
        prediction=card.denoiser.parameterization,
        prediction_source="the model's card",
        unexplained=unexplained,
    )


def vocabulary_of(path: Path) -> tuple[str, ...]:
    """The pieces of a sentence encoder's vocabulary, one a line beside the weights or in the file's metadata.

    Raises:
        CorruptCheckpoint: there is none.
    """
    if path.is_dir():
        file = path / VOCABULARY_FILE
        text = file.read_text(encoding="utf-8") if file.is_file() else None
    else:
        text = read_header(path).metadata.get(VOCABULARY_KEY)
    if text is None:
        raise CorruptCheckpoint(
            str(path), given="a sentence encoder without a vocabulary", expected=f"{VOCABULARY_FILE} or its metadata"
        )
    return tuple(text.removesuffix("\n").split("\n"))


def synonyms_of(path: Path) -> dict[str, tuple[str, ...]]:
    """What else the things are called that a model remembers: label, then its other names, one thing a line, with tabs.

    None in a model whose files have no such table.
    """
    if path.is_dir():
        file = path / SYNONYMS_FILE
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
    else:
        text = read_header(path).metadata.get(SYNONYMS_KEY, "")
    return {label: tuple(names) for label, *names in (line.split("\t") for line in text.splitlines() if line)}


def known_sha256(identity: Identity) -> str:
    """A hash of the model's weights, if its files tell theirs without being read; else empty.

    Files that gouache wrote record the sha256 of their tensors, and the hub's cache names files by theirs. The hash of
    a model of several files is that of their hashes, by part.
    """
    known = {name: _recorded_sha256(part.header) for name, part in identity.parts.items()}
    if not all(known.values()):
        return ""
    if len(set(known.values())) == 1:
        return next(iter(known.values()))
    return sha256("\n".join(f"{name} {known[name]}" for name in sorted(known)).encode()).hexdigest()


def _recorded_sha256(header: Header) -> str:
    if header.files:
        return ""
    blob = header.path.resolve().name
    return header.metadata.get(SHA256, blob if re.fullmatch(r"[0-9a-f]{64}", blob) else "")
