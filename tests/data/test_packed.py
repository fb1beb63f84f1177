"""Anyone's pictures, packed: what is stored, found again, split and streamed."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gouache.cli.data import data
from gouache.data.buckets import Bucket, bucket_batches, make_buckets
from gouache.data.packed import PackedPictures, PackedStream, Variety, pack_pictures
from gouache.data.readers import ReadReport
from gouache.data.stickers import Stickers
from gouache.errors import ConfigError, DataError, InvalidInput
from gouache.training.batches.sources import open_sources
from gouache.training.config import DataConfig

COUNT = 60


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures of random colours, every third one wide; two captions each; one broken."""
    folder = tmp_path_factory.mktemp("own")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(COUNT):
        colour = tuple(int(v) for v in generator.integers(0, 256, 4))
        image = Image.new("RGBA", (60, 30) if number % 3 == 0 else (32, 32), colour)
        image.paste((255, 255, 255, 255), (image.width // 2 - 8, 0, image.width // 2, 8))  # left and right differ
        image.save(folder / f"{number:03}.png")
        rows.append({"file_name": f"{number:03}.png", "captions": [f"thing {number}", f"number {number}"]})
    (folder / "broken.png").write_bytes(b"nothing")
    rows.append({"file_name": "broken.png", "captions": ["lost"]})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.fixture(scope="module")
def squares(source: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedPictures:
    folder = tmp_path_factory.mktemp("packed") / "squares"
    assert list(pack_pictures(source, folder, (Bucket(32, 32),), ReadReport()))[-1] == COUNT
    return PackedPictures.open(folder)


def test_pixels_and_captions_come_back(source: Path, squares: PackedPictures) -> None:
    squares.verify()
    assert (len(squares), squares.manifest.broken) == (COUNT, 1)
    assert squares.records[1].captions == ("thing 1", "number 1")
    assert np.array_equal(squares.picture(1), np.asarray(Image.open(source / "001.png")))


def test_buckets_keep_shapes_apart(source: Path, tmp_path: Path) -> None:
    list(pack_pictures(source, tmp_path / "set", make_buckets(32, step=8), ReadReport()))
    packed = PackedPictures.open(tmp_path / "set")
    assert len(packed.buckets) == 2
    assert packed.picture(0).shape[1] > packed.picture(0).shape[0]
    for batch in bucket_batches(packed.members, 4, seed=1, epoch=0):
        pictures = np.stack([packed.picture(row) for row in batch.rows])
        assert pictures.shape[1:] == (batch.bucket.height, batch.bucket.width, 4)


def test_the_stream_shows_every_training_picture_once_an_epoch(squares: PackedPictures) -> None:
    stream = PackedStream(squares, 4)
    count, held_out = len(stream.rows), squares.indices("held_out")
    assert 0 < len(held_out) == COUNT - count
    for epoch in range(2):
        numbers = [int(stream.example(epoch * count + i).caption.split()[1]) for i in range(count)]
        assert sorted(numbers) == stream.rows.tolist()
        assert not set(numbers) & set(held_out.tolist())
    backwards = [PackedStream(squares, 4).example(i).caption for i in (count + 3, 3)]
    assert backwards == [stream.example(count + 3).caption, stream.example(3).caption]
    assert stream.fingerprint != PackedStream(squares, 5).fingerprint


def test_flips_and_templates_are_drawn_for_every_picture_that_is_trained_on(squares: PackedPictures) -> None:
    templates = ("a photo of {}", "{}, as it is")
    plain, varied = PackedStream(squares, 4), PackedStream(squares, 4, variety=Variety(True, templates))
    flipped, framed = 0, Counter[str]()
    for number in range(2 * COUNT):
        before, after = plain.example(number), varied.example(number)
        flipped += not np.array_equal(before.picture, after.picture)
        assert np.array_equal(after.picture, before.picture) or np.array_equal(after.picture, before.picture[:, ::-1])
        words = re.fullmatch(r"(?:a photo of )?((?:thing|number) \d+)(?:, as it is)?", after.caption)
        assert words is not None
        assert words[1].split()[1] == before.caption.split()[1]
        framed[after.caption.replace(words[1], "{}")] += 1
    assert set(framed) == set(templates)
    assert min(framed.values()) > 0.35 * 2 * COUNT
    assert 0.35 < flipped / (2 * COUNT) < 0.65
    assert len({s.fingerprint for s in (plain, varied, PackedStream(squares, 4, variety=Variety(True)))}) == 3


def test_the_config_says_how_pictures_and_captions_are_varied(
    source: Path, mini_stickers: Stickers, tmp_path: Path
) -> None:
    for name, buckets in (("squares", (Bucket(32, 32),)), ("shapes", make_buckets(32, step=8))):
        list(pack_pictures(source, tmp_path / name, buckets, ReadReport()))
        config = DataConfig(size=32, templates=("a photo of {}",))
        sources = open_sources(tmp_path / name, config, batch=4)
        assert all(caption.startswith("a photo of ") for caption in sources.train.examples(range(4)).captions)
        assert not any(caption.startswith("a photo of ") for caption in sources.held_out.examples([0]).captions)
        plain = open_sources(tmp_path / name, DataConfig(size=32), batch=4)
        assert sources.train.fingerprint != plain.train.fingerprint
    with pytest.raises(ConfigError, match="where the caption goes"):
        DataConfig.from_dict({"templates": ["a photo"]})
    with pytest.raises(ConfigError, match="your own pictures"):
        open_sources(mini_stickers.folder, DataConfig(size=128, flip=True))


def test_a_small_set_holds_out_one_picture_with_its_copies(squares: PackedPictures) -> None:
    few = tuple(record for record in squares.records if not record.held_out)[:3]
    least = min(few, key=lambda record: record.sha256)
    small = PackedPictures(squares.folder, squares.manifest, (*few, least))
    held_out = small.indices("held_out").tolist()
    assert held_out == [few.index(least), 3]
    assert sorted([*held_out, *small.indices("train").tolist()]) == [0, 1, 2, 3]


def test_training_opens_it_as_a_source(squares: PackedPictures) -> None:
    sources = open_sources(squares.folder, DataConfig(size=32, seed=1))
    assert sources.train.examples([0, 1, 2]).pictures.shape == (3, 32, 32, 4)
    assert sources.held_out.examples([0]).captions[0].startswith("thing")
    with pytest.raises(DataError, match="64x64"):
        open_sources(squares.folder, DataConfig(size=64, seed=1))


def test_damage_is_found_and_a_full_folder_refused(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    list(pack_pictures(source, folder, (Bucket(16, 16),), ReadReport()))
    with pytest.raises(DataError, match="files"):
        list(pack_pictures(source, folder, (Bucket(16, 16),), ReadReport()))
    pixels = bytearray((folder / "pictures-16x16.bin").read_bytes())
    pixels[5] ^= 1
    (folder / "pictures-16x16.bin").write_bytes(pixels)
    with pytest.raises(DataError, match="sha256"):
        PackedPictures.open(folder).verify()
    (folder / "pictures-16x16.bin").write_bytes(pixels[:-1])
    with pytest.raises(DataError, match="bytes"):
        PackedPictures.open(folder)


def test_the_build_command_packs_and_reports(source: Path, tmp_path: Path) -> None:
    arguments = ["build", "pictures", str(tmp_path / "set"), "--from", str(source), "--size", "16", "--json"]
    answer = json.loads(CliRunner().invoke(data, arguments).stdout)
    assert (answer["pictures"], answer["broken"], answer["skipped"][0]["key"]) == (COUNT, 1, "broken.png")
    assert len(PackedPictures.open(tmp_path / "set")) == COUNT
    assert isinstance(CliRunner().invoke(data, arguments[:3]).exception, InvalidInput)
