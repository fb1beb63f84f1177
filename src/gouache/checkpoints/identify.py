"""Says what lies at a path: a file or a folder, of any layout. Headers only, and no torch."""

from __future__ import annotations

from pathlib import Path

from gouache.checkpoints import card, detect
from gouache.checkpoints.detect import Identity
from gouache.checkpoints.diffusers import folder as folders
from gouache.checkpoints.formats.open import open_header
from gouache.errors import ModelNotFound, UnknownFamily


def identify(path: str | Path, *, variant: str | None = None) -> Identity:
    """Say what a file or folder is.

    Args:
        path: a weight file, a diffusers folder, a network's own folder, or a folder in gouache's format.
        variant: for diffusers folders, which weights to prefer, for example ``"fp16"``.

    Raises:
        ModelNotFound: nothing is there, or a part is missing.
        CorruptCheckpoint, UnsafeCheckpoint, IncompatibleCheckpoint: a file can't be used; the message names it.
        UnknownFamily: it is nothing that gouache knows.
    """
    path = Path(path)
    if path.is_dir():
        return _identify_folder(path, variant)
    header = open_header(path)
    if card.CARD_KEY in header.metadata:
        own = card.read_card(path)
        if own is not None:
            return card.identify_file(header, own)
    return detect.identify(header)


def _identify_folder(path: Path, variant: str | None) -> Identity:
    own = card.read_card(path)
    if own is not None:
        return card.identify_folder(path, own)
    if folders.is_diffusers_folder(path):
        return folders.identify_diffusers(path, variant=variant)
    adapter = folders.lone_adapter(path, variant=variant)
    if adapter is not None:
        return Identity(adapter.kind, adapter.family, "network", label=adapter.label)
    part = folders.lone_network(path, variant=variant)
    if part is not None:
        return Identity(detect.kind_of({part.name: part}), "unknown", "network", parts={part.name: part})
    files = [file for file in sorted(path.iterdir()) if file.suffix in (".safetensors", ".ckpt")]
    if len(files) == 1:
        return identify(files[0])
    if not any(path.iterdir()):
        raise ModelNotFound(str(path), given="an empty folder", expected="a model", cure="Check the path.")
    raise UnknownFamily(
        str(path),
        given=f"a folder with {len(files)} weight files" if files else "a folder without weights",
        expected="one weight file, or the parts of a pipeline (model_index.json)",
        cure="Name the file you mean." if files else "",
    )
