"""sha256 of a model's files, remembered between runs: gigabytes are read once, not for every picture."""

from __future__ import annotations

import contextlib
import json
import os
from hashlib import sha256
from pathlib import Path

from gouache.checkpoints.hub import file_sha256
from gouache.pipeline.files import write_bytes

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def model_sha256(path: Path, cache: Path | None = None) -> str:
    """sha256 of a weight file; for a folder, over the sorted names and hashes of all weight files in it.

    Args:
        path: file or folder.
        cache: where hashes are remembered; the user's cache folder without it.
    """
    if path.is_file():
        return _remembered(path, cache or cache_file())
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    lines = [f"{file.relative_to(path).as_posix()} {_remembered(file, cache or cache_file())}" for file in files]
    return sha256("\n".join(lines).encode()).hexdigest()


def cache_file() -> Path:
    """`sha256.json` in the user's cache folder."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "gouache" / "sha256.json"


def _remembered(file: Path, cache: Path) -> str:
    """The hash of a file; the remembered one if place, size and time of change are the same."""
    place = file.resolve()
    status = place.stat()
    key = f"{place} {status.st_size} {status.st_mtime_ns}"
    known = _read(cache)
    if key not in known:
        # Hashes of this place's earlier contents are of no use any more.
        known = {name: value for name, value in known.items() if not name.startswith(f"{place} ")}
        known[key] = file_sha256(place)
        # A cache that can't be written costs time, nothing else.
        with contextlib.suppress(OSError, ValueError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(cache, json.dumps(known).encode(), force=True)
    return known[key]


def _read(cache: Path) -> dict[str, str]:
    try:
        values = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in values.items()} if isinstance(values, dict) else {}
