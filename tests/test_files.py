"""Writing pictures: whole or not at all, never over another file; names that no prompt can turn into a path."""

from __future__ import annotations

import doctest
import os
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gouache import files
from gouache.checkpoints import hub
from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.vae_library import find_vae
from gouache.errors import GouacheError, PictureError
from gouache.files import check_target, existing, slug, write_bytes
from gouache.pipeline.inputs.images import References


def test_a_file_is_written_once_and_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_bytes(path, b"one")
    with pytest.raises(PictureError, match="--force"):
        write_bytes(path, b"two")
    assert path.read_bytes() == b"one"
    write_bytes(path, b"two", force=True)
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_the_file_has_the_ordinary_permissions(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.png", b"one")
    (tmp_path / "b.png").write_bytes(b"one")
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == stat.S_IMODE((tmp_path / "b.png").stat().st_mode)


def test_a_missing_folder_is_made_and_a_file_in_its_place_named(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "deep" / "a.png"
    check_target(path)
    assert not path.parent.exists()
    write_bytes(path, b"one")
    assert path.read_bytes() == b"one"
    with pytest.raises(PictureError, match=r"a\.png"):
        check_target(path / "x" / "b.png")
    with pytest.raises(PictureError, match=r"a\.png"):
        write_bytes(path / "x" / "b.png", b"two")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux's full disk")
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def open_on_full_disk(path: Path, flags: int, mode: int = 0o777) -> int:
        real_open(path, flags, mode)
        return real_open("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(os, "open", open_on_full_disk)
    with pytest.raises(PictureError, match="no space left"):
        write_bytes(tmp_path / "a.png", b"one" * 10_000)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300))
def test_a_slug_is_one_harmless_name(words: str) -> None:
    name = slug(words)
    assert name
    assert len(f"{name}-18446744073709551615.png".encode()) < 255
    assert not set(name) & set('/\\\0.:*?"<>| \n')
    assert not name.startswith("-")


def test_a_slug_ends_at_a_word() -> None:
    assert slug("word " * 50) == "-".join(["word"] * 12)
    assert slug("一只红色的苹果") == "一只红色的苹果"


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(files).failed == 0


NOWHERE = ["x" * 5000, "a\0b", "~nobody-of-this-name/x", "/" + "y/" * 3000, "no such file", "C:\\x:y", "\n", "*"]


@pytest.mark.parametrize("name", NOWHERE, ids=lambda name: repr(name[:12]))
def test_a_name_that_can_be_no_path_names_nothing(name: str) -> None:
    """The kind: text of a user that a file system refuses with an error of its own instead of "not there"."""
    assert existing(name) is None


@pytest.mark.parametrize("name", NOWHERE, ids=lambda name: repr(name[:12]))
def test_every_place_that_takes_a_name_says_not_found(name: str) -> None:
    for search in (hub.find, find_vae, read_header, References({}).picture):
        with pytest.raises(GouacheError):
            search(name)
