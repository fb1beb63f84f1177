"""Finds the parts of a diffusers folder: which file of each part to read, and the configs beside the weights.

Only weights and JSON are looked at. Code in a model folder is never run, and `auto_map` is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from gouache.checkpoints.adapters.kinds import Adapter, find_adapter
from gouache.checkpoints.detect import (
    MARKS,
    Identity,
    Part,
    Place,
    check_known,
    family_of,
    kind_of,
    label_of,
    left_out_reason,
    of_family,
    part_tensors,
    used_text_config,
    variant_of,
)
from gouache.checkpoints.diffusers import component_config as diffusers_config
from gouache.checkpoints.diffusers.scheduler import Scheduler, read_scheduler
from gouache.checkpoints.foreign import check_class, check_pipeline
from gouache.checkpoints.formats.header import Header, TensorInfo, open_header
from gouache.checkpoints.packed import check_packing, check_quantization
from gouache.checkpoints.recorded import few_steps_of_folder
from gouache.checkpoints.shapes import network_config, t5_config, text_config, vae_config
from gouache.config import Config
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint, ModelNotFound, UnknownFamily
from gouache.models.configs import DenoiserConfig, VAEConfig
from gouache.models.family import UNKNOWN

PART_NAMES = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Folders of parts; what is in `transformer` is the part `unet`."""
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
VARIATIONS = "StableDiffusionImageVariationPipeline"
"""The pipeline that is shown a picture in place of a text."""
SCHEDULER_FILE = "scheduler_config.json"
MAX_JSON_BYTES = 16 << 20
VOCABULARY_BYTES = 1 << 19
"""Files of JSON from this size on are vocabularies; CLIP's has 1 MB, a config a few kB."""


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file.

    Raises:
        CorruptCheckpoint: it is too large, or no JSON object.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CorruptCheckpoint(str(path), given=f"{path.stat().st_size} bytes of JSON", expected="a few kilobytes")
    contents = path.read_bytes()
    try:
        values = (_parsed if len(contents) >= VOCABULARY_BYTES else json.loads)(contents)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(str(path), given=str(error)[:100], expected="a JSON object") from error
    if not isinstance(values, dict):
        raise CorruptCheckpoint(str(path), given=f"a JSON {type(values).__name__}", expected="a JSON object")
    return dict(values)


@lru_cache(maxsize=2)
def _parsed(contents: bytes) -> object:
    """A vocabulary is the same in every folder, is asked for twice, and takes longer to parse than a header to read."""
    parsed: object = json.loads(contents)
    return parsed


def weight_files(folder: Path, *, variant: str | None = None) -> tuple[Path, ...]:
    """The file, or the shards, that hold a part's weights.

    Args:
        folder: the part's folder.
        variant: the word in the file's name to prefer, for example ``"fp16"``. None prefers files without one.
            Whichever is there is taken; safetensors always comes before the torch files.

    Raises:
        ModelNotFound: there is no weight file.
        CorruptCheckpoint: an index of shards names no file of the folder.
    """
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []
    words = [variant, None, "fp16"] if variant else [None, "fp16"]
    words += sorted({parts[1] for name in names if len(parts := name.split(".")) == 3 and parts[0] in STEMS})
    for ending in ("safetensors", "bin"):
        for word in words:
            for stem in STEMS:
                dotted = f".{word}" if word else ""
                if f"{stem}{dotted}.{ending}" in names:
                    return (folder / f"{stem}{dotted}.{ending}",)
                index = f"{stem}.{ending}.index{dotted}.json"
                if index in names:
                    return _shards(folder / index)
    raise ModelNotFound(
        str(folder),
        given=f"the files {', '.join(names[:8]) or '(none)'}",
        expected="diffusion_pytorch_model.safetensors, model.safetensors, or shards with an index",
        cure="Get the folder again; the download may have stopped half way.",
    )


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    files = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    for name in files:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise CorruptCheckpoint(
                str(index), given=f"the shard {name!r}", expected="a file of this folder", cure="Get the folder again."
            )
    if not files:
        raise CorruptCheckpoint(str(index), given="no weight_map", expected="a JSON index of shards")
    return tuple(index.parent / name for name in files)


def joined_header(files: tuple[Path, ...]) -> Header:
    """The header of a file, or one header for all shards of a part.

    Raises:
        CorruptCheckpoint: two shards hold the same tensor.
    """
    headers = [open_header(path) for path in files]
    if len(headers) == 1:
        return headers[0]
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        twice = tensors.keys() & header.tensors.keys()
        if twice:
            raise CorruptCheckpoint(
                str(header.path), given=f"{min(twice)!r} in two shards", expected="each tensor once"
            )
        tensors |= header.tensors
    stored = {name: kind for header in headers for name, kind in header.stored.items()}
    return Header(files[0].parent, tensors, headers[0].metadata, files=files, stored=stored)


def is_diffusers_folder(folder: Path) -> bool:
    """Whether a folder has the parts of a diffusers pipeline."""
    return (folder / "model_index.json").is_file() or (network_folder(folder) / "config.json").is_file()


def network_folder(folder: Path) -> Path:
    """Where a folder has the network that denoises: a U-Net, or Stable Diffusion 3's transformer."""
    transformer = folder / "transformer"
    return transformer if transformer.is_dir() and not (folder / "unet").is_dir() else folder / "unet"


def identify_diffusers(folder: Path, *, variant: str | None = None) -> Identity:
    """What a diffusers folder holds.

    Raises:
        ModelNotFound, CorruptCheckpoint, UnknownFamily, IncompatibleCheckpoint: a part is missing, damaged, of an
            unknown kind, or disagrees with the config beside it.
    """
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    notes = check_pipeline(index, str(folder))
    places = {"unet" if name == "transformer" else name: folder / name for name in _present(folder, index)}
    headers = {name: joined_header(weight_files(place, variant=variant)) for name, place in places.items()}
    if not headers:
        raise UnknownFamily(
            str(folder),
            given=f"a {index.get('_class_name', 'folder without parts')}",
            expected="a Stable Diffusion pipeline, with unet, vae and text_encoder",
        )
    unet = None
    if "unet" in headers:
        file = places["unet"] / "config.json"
        check_class(_config(file), str(file))
        check_quantization(_config(file), str(file))
        check_known(headers["unet"], {"unet": Place(headers["unet"], "", "ours")})
        counted = network_config(_shapes(headers["unet"].tensors), "ours", str(headers["unet"].path))
        unet = diffusers_config.network_from_json(_config(file), counted, str(file))
    family = family_of(unet, headers) if unet else UNKNOWN.name
    parts = {}
    for name, header in headers.items():
        if unet and name == "unet":
            parts[name] = Part(name, header, "", "ours", unet)
        else:
            parts[name] = part_of_folder(places[name], name, header, family)
    left_out, unexplained = _rest(parts, family)
    shown = index.get("_class_name") == VARIATIONS and "unet" in parts and (folder / "image_encoder").is_dir()
    scheduler = scheduler_of_folder(folder, family)
    prediction = None if scheduler is None else scheduler.denoiser.parameterization
    if scheduler is not None and "vae" in parts:
        parts["vae"] = in_units_of_data(parts["vae"], scheduler.denoiser)
    return Identity(
        kind="model" if shown else kind_of(parts),
        family=family,
        layout="diffusers",
        variant="variation" if shown else variant_of(unet),
        label=" ".join(filter(None, (str(index.get("_class_name", "")), label_of(unet)))),
        parts=parts,
        prediction=prediction,
        prediction_source="" if scheduler is None else SCHEDULER_FILE,
        left_out=left_out,
        unexplained=unexplained,
        loading_notes=notes,
        sampling="" if scheduler is None else scheduler.taken,
        notes=() if scheduler is None else scheduler.notes,
        few_steps=few_steps_of_folder(folder, index, scheduler, unet, family),
    )


def in_units_of_data(vae: Part, denoiser: DenoiserConfig) -> Part:
    """An autoencoder whose latents have the deviation 1 where an EDM network's have sigma_data."""
    deviation = denoiser.schedule.sigma_data or 1.0
    if deviation == 1 or not isinstance(vae.config, VAEConfig):
        return vae
    scale = vae.config.scale
    divided = tuple(one / deviation for one in scale) if isinstance(scale, tuple) else scale / deviation
    return replace(vae, config=vae.config.model_copy(update={"scale": divided}))


def scheduler_of_folder(folder: Path, family: str) -> Scheduler | None:
    """What the folder's scheduler makes of the model; None if there is none.

    Raises:
        IncompatibleCheckpoint: it is of a kind that gouache doesn't know.
    """
    file = folder / "scheduler" / SCHEDULER_FILE
    if not file.is_file():
        return None
    values = read_json(file)
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    named = index.get("scheduler")
    if "_class_name" not in values and isinstance(named, list) and len(named) == 2 and isinstance(named[1], str):
        values = {**values, "_class_name": named[1]}
    unet = network_folder(folder) / "config.json"
    paths = [index.get("_name_or_path"), read_json(unet).get("_name_or_path") if unet.is_file() else None]
    names = " ".join([folder.name, *(path for path in paths if isinstance(path, str))])
    return read_scheduler(values, str(file), pipeline=str(index.get("_class_name", "")), family=family, names=names)


def part_of_folder(folder: Path, name: str, header: Header, family: str) -> Part:
    """One network of a folder: the config beside it, checked against its weights; errors as `identify_diffusers`."""
    file = folder / "config.json"
    values = _config(file)
    where = str(header.path)
    check_quantization(values, str(file))
    check_packing(header)
    if not name.startswith("text_encoder"):
        check_class(values, str(file))
    kind = "text_encoder" if name.startswith("text_encoder") else name
    for part, prefix, naming, mark in MARKS:
        if part not in (kind, name) or prefix or mark not in header.tensors:
            continue
        shapes = _shapes(header.tensors)
        if kind == "unet":
            counted_network = network_config(shapes, naming, where)
            config: Config = diffusers_config.network_from_json(values, counted_network, str(file))
        elif part == "text_encoder_3":
            config = diffusers_config.t5_from_json(values, t5_config(shapes, where), str(file))
        elif kind == "vae":
            counted_vae = of_family(vae_config(shapes, naming, where), family)
            config = diffusers_config.vae_from_json(values, counted_vae, str(file))
        else:
            counted = text_config(shapes, naming, where)
            tokenizer = folder.parent / name.replace("text_encoder", "tokenizer")
            check_tokenizer(tokenizer)
            pad_id = _pad_id(tokenizer)
            text = diffusers_config.text_from_json(values, counted, pad_id, str(file))
            config = used_text_config(text, family, naming, first=name == "text_encoder")
        return Part(name, header, "", naming, config)
    raise UnknownFamily(
        where,
        given=f"a {values.get('_class_name', name)} with other tensors",
        expected=f"the {kind} of Stable Diffusion",
    )


def _present(folder: Path, index: Mapping[str, object]) -> list[str]:
    """The parts a folder has; a part that its index sets to null is absent on purpose."""
    return [
        name
        for name in PART_NAMES
        if (folder / name).is_dir() and (not index or index.get(name) not in (None, [None, None]))
    ]


def _config(file: Path) -> dict[str, object]:
    if not file.is_file():
        raise ModelNotFound(
            str(file), given="no file there", expected="the part's config", cure="Get the folder again, whole."
        )
    return read_json(file)


def _pad_id(folder: Path) -> int | None:
    """The token that fills a chunk up, as the tokenizer's files say; None if there are none."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            token = read_json(folder / name).get("pad_token")
            text = token.get("content") if isinstance(token, dict) else token
            if text == "<|endoftext|>":
                return diffusers_config.END_ID
            if isinstance(text, str):
                return _token_id(folder, text)
    return None


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer that numbers words otherwise than CLIP's, which is the one that prompts are read by.

    Raises:
        IncompatibleCheckpoint: it is of another kind, or has another vocabulary.
    """
    told = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    kind = told.get("tokenizer_class", "CLIPTokenizer")
    if kind not in CLIP_TOKENIZERS:
        raise _other_vocabulary(folder, f"a {kind}")
    theirs: object = None
    if (folder / "vocab.json").is_file():
        theirs = read_json(folder / "vocab.json")
    elif (folder / "tokenizer.json").is_file():
        model = read_json(folder / "tokenizer.json").get("model")
        theirs = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(theirs, dict) or not theirs:
        return
    from gouache.models.text.tokenizers import vocabulary

    ours = vocabulary()
    if theirs == ours:
        return
    # Words that were added to CLIP's have numbers behind it.
    known = range(len(ours))
    other = next((word for word, number in theirs.items() if number in known and ours.get(word) != number), None)
    if other is not None:
        raise _other_vocabulary(folder, f"a vocabulary with {other[:40]!r} as number {theirs[other]}")


def _other_vocabulary(folder: Path, given: str) -> IncompatibleCheckpoint:
    return IncompatibleCheckpoint(
        str(folder),
        given=given,
        expected="CLIP's tokenizer, with its vocabulary",
        cure="This model reads its prompts by a vocabulary that gouache doesn't have; take a model with CLIP's.",
    )


def _token_id(folder: Path, token: str) -> int:
    numbers = read_json(folder / "vocab.json") if (folder / "vocab.json").is_file() else {"!": 0}
    number = numbers.get(token)
    if not isinstance(number, int):
        raise CorruptCheckpoint(str(folder), given=f"pad_token {token[:40]!r}", expected="a token of its vocabulary")
    return number


def _rest(parts: Mapping[str, Part], family: str) -> tuple[dict[str, int], tuple[str, ...]]:
    counts: dict[str, int] = {}
    for part in parts.values():
        for name in part.header.tensors:
            reason = left_out_reason(name, {part.name: part}, family)
            if reason:
                counts[reason] = counts.get(reason, 0) + 1
    return counts, ()


def _shapes(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in part_tensors(tensors, "").items()}


def lone_adapter(folder: Path, *, variant: str | None = None) -> Adapter | None:
    """The ControlNet or other adapter that lies in a folder of its own (config.json and weights); None if none does.

    Raises:
        UnknownFamily: its config.json names a network of another kind.
    """
    if not (folder / "config.json").is_file():
        return None
    check_class(read_json(folder / "config.json"), str(folder))
    header = joined_header(weight_files(folder, variant=variant))
    return find_adapter(header.tensors, header.metadata)


def lone_network(folder: Path, *, variant: str | None = None) -> Part | None:
    """The network of a part's own folder (config.json and weights); None if it is no such folder."""
    if not (folder / "config.json").is_file():
        return None
    header = joined_header(weight_files(folder, variant=variant))
    for name, prefix, _, mark in MARKS:
        if not prefix and mark in header.tensors:
            return part_of_folder(folder, name, header, UNKNOWN.name)
    return None
