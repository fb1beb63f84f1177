"""How a recipe names model and machine: sha256 of a model's files, remembered between runs, and the device."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from hashlib import sha256
from pathlib import Path

import torch

from gouache.checkpoints.hub import file_sha256
from gouache.errors import DeviceUnavailable, unknown_name
from gouache.models.bundle import ModelBundle
from gouache.pipeline.output.files import write_bytes
from gouache.pipeline.output.recipe import Machine, ModelRef

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


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def check_device(device: str | None) -> torch.device:
    """A device that is really there; None takes a card if there is one.

    Raises:
        DeviceUnavailable: it isn't.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise DeviceUnavailable("device", given=repr(device), expected="cpu, cuda, cuda:0 or mps") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(wanted.type, False) or (
        wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count()
    ):
        raise DeviceUnavailable(
            "device",
            given=device,
            expected=f"one of {', '.join(name for name, found in there.items() if found)}",
            cure='Use device "cpu", or install a torch build and driver for your card; `gouache doctor` shows both.',
        )
    return wanted


def dtype_named(name: str | None) -> torch.dtype | None:
    """The number format of a name; None stays None.

    Raises:
        UnknownName: it is no such name.
    """
    if name is None:
        return None
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return DTYPES[name]


def model_ref(bundle: ModelBundle) -> ModelRef:
    """The model in a recipe's words; a hash that its files don't tell is taken of them."""
    digest = bundle.sha256
    if not digest and bundle.path is not None and bundle.path.exists():
        digest = model_sha256(bundle.path)
    return ModelRef(
        name=bundle.name or bundle.family,
        family=bundle.family,
        sha256=digest or None,
        path=None if bundle.path is None else str(bundle.path),
    )


def machine_of(bundle: ModelBundle) -> Machine:
    """Where the model is, in a recipe's words."""
    device = bundle.device
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    dtype = str(bundle.dtype).removeprefix("torch.")
    return Machine(device=device.type, dtype=dtype, processor=card, threads=torch.get_num_threads())


def processor_name() -> str:
    """The processor's name, as exact as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
