"""Files of networks through which pictures steer: what the lists of their kinds share. Headers only, and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gouache.checkpoints import hub
from gouache.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class ConditioningFile:
    """A ControlNet, a T2I-Adapter or an IP-Adapter on the disk.

    Attributes:
        name: what a request calls it.
        family: of the models it belongs to: sd1, sd2, sdxl, or "unknown".
        label: a few words for people: its kind, or why it can't be used.
        path: its file, or its folder with config.json.
        bytes: its size.
    """

    name: str
    family: str
    label: str
    path: Path
    bytes: int


def named_weights(root: Path, folders: Sequence[str], suffixes: Sequence[str], what: str) -> list[tuple[str, Path]]:
    """Names and places of the weight files, and of diffusers' folders, inside some folders of the models folder.

    Args:
        root: the models folder.
        folders: their names, any case.
        suffixes: of files that count.
        what: the files are, for people.

    Raises:
        InvalidInput: a folder can't be read.
    """
    try:
        return [(path.name if path.is_dir() else path.stem, path) for path in hub.weights_in(root, folders, suffixes)]
    except OSError as error:
        raise InvalidInput(
            str(error.filename or root),
            given=(error.strerror or str(error)).lower(),
            expected=f"a folder of {what} that can be read",
            cure="Change its permissions.",
        ) from error


def bytes_at(path: Path) -> int:
    """Size of a file, or of everything in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def key_of(path: Path) -> tuple[Path, int]:
    """A file or folder as it is now: what was loaded of it may be kept as long as this stays the same."""
    return path, path.stat().st_mtime_ns
