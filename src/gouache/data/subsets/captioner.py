"""Captions for pictures that have none, by a network that describes pictures: BLIP and its like, by transformers.

The networks are transformers' (the extra ``gouache[preprocess]``); users put their weights into the models folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gouache.checkpoints import hub
from gouache.checkpoints.adapters.preprocessor_library import class_of
from gouache.colours import Picture
from gouache.data.readers import decode, text_beside
from gouache.data.subsets.planes import CAPTION_SUFFIXES, Planes
from gouache.errors import DataError, IncompatibleCheckpoint, MissingDependency, ModelNotFound
from gouache.files import write_bytes
from gouache.pipeline.inputs.images import on_background

CLASSES = ("BlipForConditionalGeneration", "Blip2ForConditionalGeneration", "GitForCausalLM")
"""Classes of transformers that describe a picture without being asked a question."""
EXAMPLE = "Salesforce/blip-image-captioning-base"
TOKENS = 40
"""Length of a caption in the network's tokens, at most."""


def captioners(folder: Path | None = None) -> dict[str, Path]:
    """The networks in the models folder that describe pictures, by name: headers only.

    Args:
        folder: the models folder; None takes `hub.models_folder()`.
    """
    root = folder or hub.models_folder()
    configs = sorted({*root.glob("*/config.json"), *root.glob("*/*/config.json")}) if root.is_dir() else []
    return {config.parent.name: config.parent for config in configs if class_of(config) in CLASSES}


def find_captioner(name: str, folder: Path | None = None) -> Path:
    """The folder of a network that describes pictures.

    Args:
        name: its path, or its name in the models folder.
        folder: the models folder; None takes `hub.models_folder()`.

    Raises:
        ModelNotFound: there is none.
    """
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return path
    found = captioners(folder)
    if name not in found:
        raise ModelNotFound(
            "--model",
            given=name,
            expected=f"a folder of transformers with {' or '.join(CLASSES)}, or its name in the models folder"
            + (f" ({', '.join(found)})" if found else ""),
            cure=f"Download one, for example {EXAMPLE}.",
        )
    return found[name]


class Captioner:
    """Describes pictures. Nothing is downloaded, unpickled, or run from the folder.

    Args:
        path: its folder, as transformers writes it.

    Raises:
        MissingDependency: transformers isn't installed.
        IncompatibleCheckpoint: transformers can't load it, or it does something else.
    """

    def __init__(self, path: Path) -> None:
        try:
            import transformers
        except ImportError as error:
            raise MissingDependency(
                "captions",
                given="no package transformers",
                expected="it",
                cure="Install it with `pip install 'gouache[preprocess]'`.",
            ) from error
        if (kind := class_of(path / "config.json")) not in CLASSES:
            raise IncompatibleCheckpoint(str(path), given=kind or "no class", expected=" or ".join(CLASSES))
        safe = {"local_files_only": True, "trust_remote_code": False}
        try:
            network = getattr(transformers, kind).from_pretrained(str(path), use_safetensors=True, **safe)
            processor = transformers.AutoProcessor.from_pretrained(str(path), **safe)  # nosec B615
            self._processor: Any = processor
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise IncompatibleCheckpoint(
                str(path),
                given=" ".join(str(error).split())[:300],
                expected="config.json, model.safetensors, the processor's and the tokenizer's files of transformers",
            ) from error
        self._network: Any = network.eval().requires_grad_(False)

    @torch.inference_mode()
    def caption(self, picture: Picture) -> str:
        """What a picture shows; transparency is laid on white. The likeliest words, so always the same.

        Args:
            picture: uint8 [H,W,4], straight alpha.
        """
        shown = on_background(Image.fromarray(picture), "white")
        inputs = self._processor(images=shown, return_tensors="pt")
        tokens = self._network.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        [text] = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return " ".join(str(text).split())


@dataclass(frozen=True, slots=True)
class Described:
    """What became of one picture.

    Attributes:
        key: its name in the folder.
        caption: the one that was written; none if there was one already, or there is a reason.
        reason: why it has none.
    """

    key: str
    caption: str = ""
    reason: str = ""


def write_captions(
    folder: Path, captioner: Captioner, *, prefix: str = "", force: bool = False
) -> Iterator[tuple[Described, int]]:
    """Write a ``.txt`` beside every picture of a folder that has none; yields what was done, and of how many.

    Masks and conditions get none.

    Args:
        folder: searched at any depth.
        captioner: describes them.
        prefix: words in front of every caption, a trigger word for example.
        force: describe those with a caption again, and write over it.

    Raises:
        DataError: no such folder, no pictures, or a table says what they show, beside which texts count for nothing.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    pictures, _ = Planes(folder, files).pictures()
    if not pictures:
        raise DataError(str(folder), given="no picture", expected="a folder of pictures", cure="Check the path.")
    if table := next((path for path in files if path.name in ("metadata.jsonl", "metadata.csv")), None):
        raise DataError(str(folder), given=table.name, expected="no table of captions", cure="Take it out first.")
    for path in pictures:
        key, beside = path.relative_to(folder).as_posix(), text_beside(path)
        if beside is not None and beside.read_bytes().strip() and not force:
            yield Described(key), len(pictures)
            continue
        try:
            said = captioner.caption(decode(path))
        except DataError as error:
            yield Described(key, reason=str(error.given)), len(pictures)
            continue
        caption = " ".join(filter(None, (prefix, said)))
        if said:
            target = beside or path.with_suffix(CAPTION_SUFFIXES[0])
            write_bytes(target, f"{caption}\n".encode(), force=beside is not None)
        yield Described(key, caption if said else "", "" if said else "nothing was said of it"), len(pictures)
