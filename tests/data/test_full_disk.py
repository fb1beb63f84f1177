"""A data set on a disk that is too small, wherever the room ends: on real file systems of a few hundred KiB."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image

from gouache.data.buckets import make_buckets
from gouache.data.packed import pack_pictures
from gouache.data.readers import ReadReport
from gouache.data.stickers_recipe import StickerSources, build_stickers

SCRIPT = Path(__file__).parent / "build_on_small_disks.py"
NAMESPACE = ["unshare", "--map-root-user", "--mount"]
"""A mount made in there is seen by nobody else and ends with the process."""
TRY = "mount -t tmpfs tmpfs /mnt"


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "sh", "-c", TRY], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not can_mount(), reason="a small disk needs leave to mount one (unshare)")


class Recipe(Protocol):
    folder: Path
    sources: StickerSources


def on_disks_of(folder: Path, build: Callable[..., Iterator[Any]], sizes: range) -> dict[int, Any]:
    """For each size in KiB: (error, its text, what is there, what the other file says)."""
    disk, pickled = folder / "disk", folder / "build.pickle"
    disk.mkdir()
    pickled.write_bytes(pickle.dumps(build))
    command = [*NAMESPACE, sys.executable, str(SCRIPT), str(disk), str(pickled), *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return {int(size): found for size, found in json.loads(done.stdout).items()}


def check(found: dict[int, Any], disk: Path) -> None:
    """Too small disks are reported and keep only what was there; the larger ones get the whole set."""
    enough = [size for size, (error, *_) in found.items() if not error]
    assert 0 < len(enough) < len(found)
    assert enough == [size for size in found if size >= min(enough)]
    for size, (error, text, names, other) in found.items():
        assert other == "stays"
        if size in enough:
            assert names == ["other", "set"]
            continue
        assert error == "DataError", text
        assert text.startswith(f"{disk / 'set'}: given a full disk"), text
        assert "Nothing was kept" in text
        assert names == ["other"]


def test_stickers_on_a_full_disk(mini_recipe: Recipe, tmp_path: Path) -> None:
    build = partial(build_stickers, size=32, tarball_folder=mini_recipe.folder, sources=mini_recipe.sources)
    check(on_disks_of(tmp_path, build, range(12, 480, 12)), tmp_path / "disk")


def test_pictures_on_a_full_disk(tmp_path: Path) -> None:
    source, generator = tmp_path / "pictures", np.random.default_rng(0)
    source.mkdir()
    for number in range(12):
        shape = (64, 64, 3) if number % 3 else (64, 32, 3)
        Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(source / f"{number}.png")
        (source / f"{number}.txt").write_text(f"noise {number}")
    build = partial(pack_pictures, str(source), buckets=make_buckets(64, step=16), report=ReadReport())
    check(on_disks_of(tmp_path, build, range(12, 320, 12)), tmp_path / "disk")
