"""sha256 of models: right, remembered, and renewed when a file changes."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from gouache.checkpoints.hub import file_sha256
from gouache.pipeline.output import recipe as recipes
from gouache.pipeline.output.recipe import model_sha256


def test_a_file_has_its_own_hash_and_a_folder_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    first, second = tmp_path / "unet" / "a.safetensors", tmp_path / "b.bin"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    (tmp_path / "notes.txt").write_text("of no account")
    cache = tmp_path / "cache.json"
    one, two = (sha256(data).hexdigest() for data in (b"one", b"two"))
    assert model_sha256(first, cache) == one
    expected = sha256(f"b.bin {two}\nunet/a.safetensors {one}".encode()).hexdigest()
    assert model_sha256(tmp_path, cache) == expected


def test_hashes_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache, read = tmp_path / "a.safetensors", tmp_path / "cache.json", list[Path]()

    def counting(path: Path) -> str:
        read.append(path)
        return file_sha256(path)

    monkeypatch.setattr(recipes, "file_sha256", counting)
    file.write_bytes(b"one")
    assert model_sha256(file, cache) == model_sha256(file, cache)
    assert len(read) == 1
    file.write_bytes(b"two!")
    assert model_sha256(file, cache) == sha256(b"two!").hexdigest()
    assert len(json.loads(cache.read_text())) == 1


def test_a_broken_or_unwritable_cache_does_no_harm(tmp_path: Path) -> None:
    file, cache = tmp_path / "a.safetensors", tmp_path / "cache.json"
    file.write_bytes(b"one")
    for content in ("", "[]", "{", "null"):
        cache.write_text(content)
        assert model_sha256(file, cache) == sha256(b"one").hexdigest()
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert model_sha256(file, blocked / "cache.json") == sha256(b"one").hexdigest()
