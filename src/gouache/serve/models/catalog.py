"""Which models there are, by name. Only what lies inside the given folders can be named, and never by a path."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import Row, select

from gouache.checkpoints import hub
from gouache.checkpoints.hub import SHIPPED
from gouache.checkpoints.identify import identify, known_sha256
from gouache.errors import GouacheError, ModelNotFound, StoreError, unknown_name
from gouache.serve.models.added_folders import added_folders
from gouache.serve.store.database import Database, upsert
from gouache.serve.store.tables import models

"""Name of the model that needs no file."""
SUFFIXES = {".safetensors", ".ckpt", ".gguf"}
_FOLDER_MARKS = ("model.json", "model_index.json")
_NETWORK_MARK = "config.json"
"""In a folder with weights: one network, in diffusers' layout."""
_ELSEWHERE = hub.NO_MODELS
"""What lies in folders of these names is listed as adapters and ControlNets."""
MODEL, UNUSABLE = "model", ""
_DEPTH = 4
_SNAPSHOT = re.compile(r"^models--(.+?)--(.+)/snapshots/[0-9a-f]{8,}")


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model that can be asked for.

    Attributes:
        name: path below its folder, with forward slashes; or `pocket`.
        path: where it lies; None for the shipped one.
        size: bytes on disk.
        modified: seconds since 1970.
        sha256: of the weights if they were hashed once, else None.
        kind: "model", or empty for a file that can't be used; its facts say why.
    """

    name: str
    path: Path | None
    size: int
    modified: float
    sha256: str | None = None
    kind: str = MODEL

    @property
    def title(self) -> str:
        """As A1111 shows it: name and the first ten digits of the hash."""
        return f"{self.name} [{self.sha256[:10]}]" if self.sha256 else self.name

    @property
    def stem(self) -> str:
        """The last part of the name without its suffix."""
        last = self.name.rsplit("/", 1)[-1]
        return last.rsplit(".", 1)[0] if Path(last).suffix.lower() in SUFFIXES else last

    def is_called(self, name: str) -> bool:
        """Whether this is its name, stem or title; case, a title's hash and the kind of slash don't count."""
        return _loose(name) in (_loose(self.name), _loose(self.stem))


class ModelCatalog:
    """The models in some folders.

    Args:
        folders: where to look, beside those that were added to the store.
        database: remembers hashes and added folders.
        default: name for requests that give none.
        patience: seconds after a look at the folders in which a name that isn't there makes for no other one.
    """

    def __init__(
        self, folders: Sequence[Path], database: Database, default: str | None = None, patience: float = 1.0
    ) -> None:
        self._given = [folder.resolve() for folder in folders]
        self.folders = self._given
        self.database = database
        self.default = default or SHIPPED
        self.patience = patience
        self._entries: list[ModelEntry] = []
        self._seen: tuple[int, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Look again what is there, also in the folders that were added since."""
        self._looked = time.monotonic()
        with contextlib.suppress(StoreError):  # Without them meanwhile.
            added = [folder.resolve() for folder in added_folders(self.database)]
            self.folders = list(dict.fromkeys([*self._given, *added]))
        self._seen = self._times()
        found = [ModelEntry(SHIPPED, None, 0, 0.0)]
        for folder in self.folders:
            found += [entry for path in _models_below(folder, folder, _DEPTH) if (entry := _entry(folder, path))]
        self._entries = [
            entry for entry in {one.name: one for one in found}.values() if entry.kind in (MODEL, UNUSABLE)
        ]

    def models(self) -> list[ModelEntry]:
        """Every model that can be painted with, the shipped one first."""
        return [entry for entry in self.entries() if entry.kind == MODEL]

    def entries(self) -> list[ModelEntry]:
        """Those, and files that can't be used. Adapters, ControlNets and single networks are never among them."""
        if self._seen != self._times():  # A training has put its model there, or somebody a file.
            self.refresh()
        known = {row.path: row for row in self.database.rows(select(models))}
        return [_hashed(entry, known) for entry in self._entries]

    def _times(self) -> tuple[int, ...]:
        """When something was last put into each folder itself, or taken out."""
        times = []
        for folder in self.folders:
            try:
                times.append(folder.stat().st_mtime_ns)
            except OSError:
                times.append(0)
        return tuple(times)

    def find(self, name: str | None) -> ModelEntry:
        """A model by name, stem, A1111 title, or hash (ten digits or all).

        Where nothing is called exactly so, case, the hash in a title and the kind of slash are passed over. What isn't
        known may have come since the last look: another process pulled it, somebody copied it.

        Raises:
            ModelNotFound: no such model here.
        """
        try:
            return self._known(name)
        except ModelNotFound:
            if time.monotonic() - self._looked < self.patience:
                raise
        self.refresh()
        return self._known(name)

    def _known(self, name: str | None) -> ModelEntry:
        wanted = name or self.default
        entries = self.entries()
        for entry in entries:
            hashes = (entry.sha256, entry.sha256[:10]) if entry.sha256 else ()
            if wanted in (entry.name, entry.stem, entry.title, *hashes):
                return entry
        if _HASH.fullmatch(wanted):
            for entry in entries:
                if _recorded_sha256(entry).startswith(wanted.lower()):
                    return entry
        alike = [entry for entry in entries if entry.is_called(wanted)]
        if len(alike) == 1:
            return alike[0]
        near = unknown_name("model", wanted, [entry.name for entry in entries])
        raise ModelNotFound("model", given=repr(wanted), expected=near.expected, cure=near.cure)

    def remember_hash(self, entry: ModelEntry, sha256: str) -> None:
        """Keep the hash of a model's weights until the file changes."""
        if entry.path is None or not sha256:
            return
        with self.database.write() as connection:
            values = {"size": entry.size, "modified": entry.modified, "sha256": sha256}
            upsert(connection, models, {"path": str(entry.path)}, values)


_HASH = re.compile(r"[0-9a-fA-F]{10}|[0-9a-fA-F]{64}")
_TITLE_HASH = re.compile(r" \[[0-9a-fA-F]{8,64}\]$")


def _loose(name: str) -> str:
    return _TITLE_HASH.sub("", name.strip()).replace("\\", "/").casefold()


def _recorded_sha256(entry: ModelEntry) -> str:
    """The hash that the model's files record, with which its recipes name it before it was ever loaded; or empty."""
    path = entry.path or hub.shipped_model()
    return _sha256_in_headers(path, entry.modified) if path is not None else ""


@lru_cache(maxsize=4096)
def _sha256_in_headers(path: Path, _modified: float) -> str:
    try:
        return known_sha256(identify(path))
    except (GouacheError, OSError):
        return ""


def _models_below(folder: Path, root: Path, depth: int) -> list[Path]:
    if depth == 0 or not folder.is_dir():
        return []
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if not path.resolve().is_relative_to(root) or path.name.startswith("."):
            continue
        if path.is_dir():
            if folder == root and path.name.lower() in _ELSEWHERE:
                continue
            found += [path] if _is_whole(path) else _models_below(path, root, depth - 1)
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
    return found


def _is_whole(folder: Path) -> bool:
    """Whether a folder is one model or one network, not a place where such lie."""
    if any((folder / mark).is_file() for mark in _FOLDER_MARKS):
        return True
    return (folder / _NETWORK_MARK).is_file() and any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())


def _name(root: Path, path: Path) -> str:
    """Below its folder; a snapshot in the hub's cache has the name of its repository."""
    return _SNAPSHOT.sub(r"\1/\2", path.relative_to(root).as_posix())


def _entry(root: Path, path: Path) -> ModelEntry | None:
    try:
        files = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
        size = sum(part.stat().st_size for part in files)
        newest = max((part.stat().st_mtime for part in files), default=0.0)
        return ModelEntry(_name(root, path), path, size, path.stat().st_mtime, kind=_kind(path, size, newest))
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _kind(path: Path, _size: int, _newest: float) -> str:
    """What the headers say it is, read once until a file changes."""
    try:
        return identify(path).kind
    except (GouacheError, OSError):
        return UNUSABLE


def _hashed(entry: ModelEntry, known: dict[str, Row[Any]]) -> ModelEntry:
    row = known.get(str(entry.path))
    if row is None or (row.size, row.modified) != (entry.size, entry.modified):
        return entry
    return replace(entry, sha256=row.sha256)
