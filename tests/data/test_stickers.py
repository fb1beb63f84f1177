"""The recipe from real tarballs to a set on disk, and its held-out split."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from gouache.data.drawing import render_raster, render_svg, svg_document
from gouache.data.packages import Package, fetch, members, tarballs, verify
from gouache.data.stickers import Stickers, is_held_out
from gouache.data.stickers_recipe import SOURCES, StickerSources, build_stickers, normal_code
from gouache.errors import ConfigError, DataError, InvalidInput, UnknownName


class Recipe(Protocol):
    folder: Path
    sources: StickerSources


def build(folder: Path, recipe: Recipe, size: int = 32) -> Stickers:
    for _ in build_stickers(folder, size=size, tarball_folder=recipe.folder, sources=recipe.sources):
        pass
    return Stickers.open(folder)


def test_every_labelled_picture_without_skin_tone_is_there_once(mini_stickers: Stickers) -> None:
    keys = [(record.code, record.style) for record in mini_stickers.records]
    assert len(keys) == len(set(keys)) == 62
    assert mini_stickers.manifest.counts == {"noto": 31, "3d": 31}
    assert ("0039-20e3", "3d") in keys
    assert ("1f403", "noto") in keys  # its name in the package ends in FE0F
    assert not [code for code, _ in keys if "1f3f" in code or code in ("1faeb", "fe0f")]


def test_a_record_knows_labels_in_both_languages_source_and_licence(mini_stickers: Stickers) -> None:
    record = mini_stickers.records[mini_stickers.find("1f400", "3d")]
    assert (record.label, record.keywords, record.zh_label, record.zh_keywords) == (
        "apple",
        ("apple", "thing"),
        "东西0",
        ("东西",),
    )
    assert (record.group, record.subgroup) == ("animals-nature", "food-fruit")
    assert (record.source, record.licence, record.file) == ("@mini/pictures@1.0.0", "MIT", "3d/1f400.webp")


def test_pictures_are_rendered_with_straight_alpha(mini_stickers: Stickers) -> None:
    wide = mini_stickers.pictures[mini_stickers.find("2049", "noto")]
    assert tuple(wide[64, 64]) == (255, 0, 0, 128)  # half-transparent red keeps full red
    assert not wide[:30].any()  # a 2:1 drawing is centred in the square, not stretched
    assert not wide[-30:].any()
    assert mini_stickers.pictures[mini_stickers.find("1f400", "noto")][64, 64].tolist() == [0xD8, 0x33, 0x2F, 255]


def test_scaling_a_raster_takes_no_colour_from_transparent_pixels() -> None:
    import io

    from PIL import Image

    array = np.zeros((64, 64, 4), np.uint8)
    array[..., 1] = 255  # transparent green all over
    array[16:47, 16:47] = (255, 0, 0, 255)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    small = render_raster(file.getvalue(), 20)
    assert small[small[..., 3] > 0][:, 1].max() <= 2


def test_another_size_is_rendered_from_the_source(mini_stickers: Stickers) -> None:
    row = mini_stickers.find("1f400", "noto")
    large = mini_stickers.render(row, 256)
    assert large.shape == (256, 256, 4)
    small = large.reshape(128, 2, 128, 2, 4).astype(float).mean((1, 3))
    assert np.abs(small - mini_stickers.pictures[row]).mean() < 1


def test_the_held_out_split_is_the_stated_one_and_never_in_training(mini_stickers: Stickers) -> None:
    for record in mini_stickers.records:
        expected = zlib.crc32(f"{record.code}{record.style}".encode()) % 20 == 0
        assert record.held_out == is_held_out(record.code, record.style) == expected
    train, held_out = set(mini_stickers.indices("train")), set(mini_stickers.indices("held_out"))
    assert held_out
    assert not train & held_out
    assert train | held_out == set(mini_stickers.indices("all")) == set(range(len(mini_stickers)))


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path, mini_recipe: Recipe) -> None:
    first, second = build(tmp_path / "a", mini_recipe), build(tmp_path / "b", mini_recipe)
    assert first.manifest == second.manifest


def test_a_built_set_is_left_alone_and_another_folder_refused(tmp_path: Path, mini_recipe: Recipe) -> None:
    stickers = build(tmp_path / "set", mini_recipe)
    before = (stickers.folder / "pictures.npy").stat().st_mtime_ns
    build(tmp_path / "set", mini_recipe)
    assert (stickers.folder / "pictures.npy").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="32 px"):
        build(tmp_path / "set", mini_recipe, size=48)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(DataError, match="other files"):
        build(tmp_path / "mine", mini_recipe)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"


def test_a_build_that_stops_leaves_nothing(tmp_path: Path, mini_recipe: Recipe) -> None:
    progress: Any = build_stickers(
        tmp_path / "set", size=32, tarball_folder=mini_recipe.folder, sources=mini_recipe.sources
    )
    assert (next(progress).done, next(progress).total) == (1, 62)
    progress.close()
    assert list(tmp_path.iterdir()) == []


def test_a_changed_file_is_found(tmp_path: Path, mini_recipe: Recipe) -> None:
    stickers = build(tmp_path / "set", mini_recipe)
    stickers.verify()
    with (stickers.folder / "CREDITS.md").open("a") as stream:
        stream.write("and me")
    with pytest.raises(DataError, match=r"CREDITS\.md"):
        stickers.verify()


def test_a_damaged_set_is_refused(tmp_path: Path, mini_recipe: Recipe) -> None:
    folder = build(tmp_path / "set", mini_recipe).folder
    records = (folder / "records.jsonl").read_text().splitlines()
    (folder / "records.jsonl").write_text("\n".join(records[:-1]))
    with pytest.raises(DataError, match="61 records"):
        Stickers.open(folder)
    (folder / "pictures.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="NumPy array"):
        Stickers.open(folder)
    (folder / "manifest.json").write_text(json.dumps({"recipe": "stickers"}))
    with pytest.raises(ConfigError):
        Stickers.open(folder)
    with pytest.raises(DataError, match="no such folder"):
        Stickers.open(tmp_path / "nowhere")


def test_an_unknown_pair_offers_a_near_one(mini_stickers: Stickers) -> None:
    with pytest.raises(UnknownName, match="1f40"):
        mini_stickers.find("1f499", "noto")


def test_a_tarball_of_other_bytes_is_refused(tmp_path: Path, mini_recipe: Recipe) -> None:
    package = mini_recipe.sources.labels
    with pytest.raises(DataError, match="sha512-"):
        verify(replace(package, integrity="sha512-AAAA"), mini_recipe.folder / package.tarball_name)
    with pytest.raises(DataError, match="no file"), tarballs((package,), tmp_path):
        pass
    (tmp_path / "x.tgz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="tarball"):
        list(members(tmp_path / "x.tgz"))


def test_offline_mode_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")
    with pytest.raises(DataError, match="--from DIR"):
        fetch(SOURCES.labels, tmp_path)


def test_sizes_out_of_range_and_broken_drawings_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="16 to 1024"):
        next(build_stickers(tmp_path / "set", size=8))
    with pytest.raises(DataError, match="resvg"):
        render_svg("<svg", 32)
    with pytest.raises(DataError, match="WebP"):
        render_raster(b"nothing", 32)
    assert render_svg(svg_document("", 32, 32), 16).shape == (16, 16, 4)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("1F34E", "1f34e"),
        ("2764-FE0F", "2764"),
        ("a9-fe0f", "00a9"),
        ("39-fe0f-20e3", "0039-20e3"),
        ("1f441-fe0f-200d-1f5e8-fe0f", "1f441-200d-1f5e8"),
    ],
)
def test_codes_are_normalised(name: str, code: str) -> None:
    assert normal_code(name) == code


def test_sources_and_credits_go_with_the_set(mini_stickers: Stickers) -> None:
    text = (mini_stickers.folder / "CREDITS.md").read_text()
    assert all(package.integrity in text for package in mini_stickers.manifest.packages)
    assert "62 pictures" in text
    with zipfile.ZipFile(mini_stickers.folder / "sources.zip") as archive:
        assert set(archive.namelist()) == {record.file for record in mini_stickers.records}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs the npm client")
def test_the_pinned_packages_build_the_stated_numbers(tmp_path: Path) -> None:
    reachable = subprocess.run(["npm", "view", SOURCES.labels.spec, "version"], capture_output=True, check=False)
    if reachable.returncode:
        pytest.skip("no package registry can be reached")
    for _ in build_stickers(tmp_path / "set", size=16):
        pass
    stickers = Stickers.open(tmp_path / "set")
    assert stickers.manifest.counts == {"noto": 1678, "twemoji": 1940, "flat": 1594, "3d": 1852}
    assert len({record.code for record in stickers.records}) == 1940
    assert stickers.records[stickers.find("1f34e", "flat")].zh_label == "红苹果"


def test_a_package_knows_its_tarballs_name() -> None:
    assert Package("@iconify-json/noto", "1.2.9", "").tarball_name == "iconify-json-noto-1.2.9.tgz"
