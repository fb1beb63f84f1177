"""Graphs on the disk, so that a network is translated once.

Each lies in a folder of its own, named by all that it depends on, and appears there whole or not at all. One that was
changed or comes from elsewhere doesn't match the hashes beside it and is made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import gouache
from gouache.environment import Variable
from gouache.pipeline.engine.graph import Signature, weights_of
from gouache.pipeline.engine.names import version_of
from gouache.pipeline.output.recipe import cache_file, model_sha256

if TYPE_CHECKING:
    import openvino
    from torch import nn

LIMIT = 16 * 2**30
"""Bytes that all graphs may take; those that weren't used for longest leave first."""
ENTRY, GRAPH, NUMBERS = "entry.json", "graph.xml", "graph.bin"
SOURCES = (
    "nn/*.py",
    "models/**/*.py",
    "pipeline/engine/graph.py",
    "pipeline/engine/networks.py",
    "pipeline/engine/int8.py",
)
"""Files of the package whose code makes a graph what it is."""


def graphs_folder() -> Path:
    """Where the graphs are: `openvino` in the user's cache folder of gouache."""
    return cache_file().parent / "openvino"


def key_of(network: nn.Module, signature: Signature, more: str = "") -> str:
    """Name of a graph: changes with the network's shapes and config, the way it is called, our code, and the versions
    of torch and OpenVINO.

    Args:
        network: any of those shapes.
        signature: how it is called.
        more: what else the graph depends on.
    """
    shapes = [f"{name} {tuple(weight.shape)} {weight.dtype}" for name, weight in weights_of(network).items()]
    config = getattr(network, "config", None)
    parts = [
        _code(),
        *(f"{name} {version_of(name)}" for name in ("torch", "openvino")),
        repr(config),
        *shapes,
        signature.text,
        more,
    ]
    return sha256("\n".join(parts).encode()).hexdigest()[:40]


@cache
def _code() -> str:
    """Hash of the code that networks are made of."""
    package, digest = Path(gouache.__file__).parent, sha256()
    for file in sorted(file for pattern in SOURCES for file in package.glob(pattern)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def find(key: str, notes: list[str]) -> openvino.Model | None:
    """The graph of a key, if it is there and as it was written; one that isn't is named in the notes."""
    import openvino

    folder = graphs_folder() / key
    if not folder.is_dir():
        return None
    try:
        told = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
        if all(model_sha256(folder / name) == told[name] for name in (GRAPH, NUMBERS)):
            graph = openvino.Core().read_model(folder / GRAPH)
            with contextlib.suppress(OSError):
                os.utime(folder / ENTRY)
            return graph
    # OpenVINO reports a graph that it can't read by a bare RuntimeError.
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        pass
    notes.append(f"the kept graph {folder} was damaged and has been made again")
    return None


def keep(key: str, graph: openvino.Model, what: str, notes: list[str]) -> None:
    """Write a graph under its key, in place of one that can't be used; a folder that can't be written costs time,
    nothing else, and is named in the notes.

    Args:
        key: as `key_of` gives it.
        graph: without its weights.
        what: it is, for people who look into the folder.
        notes: what users are told.
    """
    import openvino

    folder = graphs_folder()
    part = folder / f".{key}.{secrets.token_hex(6)}.part"
    try:
        part.mkdir(parents=True)
        openvino.save_model(graph, part / GRAPH, compress_to_fp16=False)
        told = {name: model_sha256(part / name) for name in (GRAPH, NUMBERS)}
        (part / ENTRY).write_text(json.dumps({"what": what, **told}), encoding="utf-8")
        if (folder / key).is_dir():
            (folder / key).rename(part.with_suffix(".old"))
        # Another process may have been quicker; its graph is the same.
        with contextlib.suppress(FileExistsError):
            part.rename(folder / key)
    # OpenVINO's own reports of a full or read-only disk are RuntimeErrors.
    except (OSError, RuntimeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())[:200]
        notes.append(
            f"the graph couldn't be kept in {folder} ({why}), so every start makes it anew: make that folder writable,"
            f" with room for it, or name another cache folder by {Variable.XDG_CACHE_HOME}"
        )
    finally:
        for left in (part, part.with_suffix(".old")):
            shutil.rmtree(left, ignore_errors=True)
    _make_room(key)


def summary() -> tuple[int, int]:
    """How many graphs there are, and the bytes that they take."""
    sizes = [_size(folder) for folder in _entries()]
    return len(sizes), sum(sizes)


def _make_room(kept: str) -> None:
    entries = sorted(_entries(), key=lambda folder: (folder / ENTRY).stat().st_mtime)
    total = sum(_size(folder) for folder in entries)
    for folder in entries:
        if total <= LIMIT:
            return
        if folder.name != kept:
            total -= _size(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _entries() -> list[Path]:
    folder = graphs_folder()
    return [one for one in folder.iterdir() if (one / ENTRY).is_file()] if folder.is_dir() else []


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
