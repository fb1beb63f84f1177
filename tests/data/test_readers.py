"""Folders, parquet and webdataset shards that people have; buckets; the commands."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gouache.cli.data import data
from gouache.data.buckets import Bucket, bucket_batches, fit_to_bucket, make_buckets, nearest_bucket
from gouache.data.readers import ReadReport, read_pictures
from gouache.data.stickers import Stickers
from gouache.errors import DataError, InvalidInput, UnknownName


def png(colour: tuple[int, ...] = (200, 30, 30, 90), size: tuple[int, int] = (12, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


FILES = {"a.png": png(), "b.png": png((1, 2, 3)), "broken.png": png()[:40], "mute.png": png()}
CAPTIONS = {"a.png": "a red thing", "b.png": "dark", "broken.png": "lost", "mute.png": "", "gone.png": "not there"}


def pictures_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def with_jsonl(folder: Path) -> Path:
    rows = [json.dumps({"file_name": name, "text": text}) for name, text in CAPTIONS.items()]
    (pictures_in(folder) / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def with_csv(folder: Path) -> Path:
    with (pictures_in(folder) / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file_name", "caption"), *CAPTIONS.items()])
    return folder


def with_texts(folder: Path) -> Path:
    for name, text in CAPTIONS.items():
        (pictures_in(folder) if not folder.exists() else folder).joinpath(name).with_suffix(".txt").write_text(text)
    return folder


def parquet(folder: Path) -> Path:
    import datasets

    folder.mkdir(parents=True)
    rows = {"image": [{"bytes": FILES[n], "path": n} for n in FILES], "text": [CAPTIONS[n] for n in FILES]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    table.to_parquet(folder / "part.parquet")
    return folder / "part.parquet"


def shard(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with tarfile.open(folder / "000.tar", "w") as archive:
        for name, content in FILES.items():
            for member, held in ((name, content), (name.replace(".png", ".txt"), CAPTIONS[name].encode())):
                entry = tarfile.TarInfo(member)
                entry.size = len(held)
                archive.addfile(entry, io.BytesIO(held))
    return folder


@pytest.mark.parametrize("make", [with_jsonl, with_csv, with_texts, parquet, shard])
def test_every_form_gives_the_same_pictures_and_counts_the_rest(tmp_path: Path, make: object) -> None:
    assert callable(make)
    report = ReadReport()
    found = list(read_pictures(make(tmp_path / "source"), report))
    assert [item.captions for item in found] == [("a red thing",), ("dark",)]
    assert found[0].picture.shape == (8, 12, 4)
    assert found[0].picture[0, 0].tolist() == [200, 30, 30, 90]
    assert found[1].picture[0, 0].tolist() == [1, 2, 3, 255]
    assert (report.good, report.empty) == (2, 1)
    assert report.broken == (2 if make in (with_jsonl, with_csv) else 1)  # those two name a file that is not there
    assert "2 pictures" in report.summary()
    assert len(report.listed) == report.broken + report.empty


def test_several_captions_of_a_picture_are_kept(tmp_path: Path) -> None:
    folder = pictures_in(tmp_path / "many")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "captions": ["one", " ", "two"]}))
    assert next(read_pictures(folder, ReadReport())).captions == ("one", "two")
    (pictures_in(tmp_path / "lines") / "a.txt").write_text("one\n\ntwo\n")
    assert next(read_pictures(tmp_path / "lines", ReadReport())).captions == ("one", "two")


def test_metadata_reaches_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    folder = pictures_in(tmp_path / "set")
    names = ("../secret.png", str(tmp_path / "secret.png"), "a.png")
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": n, "text": "x"}) for n in names))
    report = ReadReport()
    assert [item.key for item in read_pictures(folder, report)] == ["a.png"]
    assert report.broken == 2


def test_sources_without_anything_to_train_on_are_typed_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(source: str | Path) -> None:
        list(read_pictures(source, ReadReport()))

    with pytest.raises(DataError, match="no such folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture"):
        read(tmp_path / "empty")
    with pytest.raises(DataError, match="no caption"):
        read(pictures_in(tmp_path / "mute"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "x.png").write_bytes(b"nothing")
    (broken / "x.txt").write_text("a thing")
    with pytest.raises(DataError, match="1 broken"):
        read(broken)
    (broken / "metadata.jsonl").write_text('{"name": "x.png"}')
    with pytest.raises(DataError, match="columns name"):
        read(broken)
    (broken / "metadata.jsonl").write_text("{nonsense")
    with pytest.raises(DataError, match=r"readable table|json file"):
        read(broken)
    (tmp_path / "bad.parquet").write_bytes(b"PAR?")
    with pytest.raises(DataError, match="parquet"):
        read(tmp_path / "bad.parquet")
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")
    with pytest.raises(DataError, match="offline"):
        read("somebody/pictures")


def test_buckets_keep_area_and_step() -> None:
    buckets = make_buckets(512)
    assert Bucket(512, 512) in buckets
    assert all(b.width % 64 == b.height % 64 == 0 and b.width * b.height <= 512 * 512 for b in buckets)
    assert all(Bucket(b.height, b.width) in buckets for b in buckets)
    assert nearest_bucket(1000, 1000, buckets) == Bucket(512, 512)
    wide = nearest_bucket(1600, 900, buckets)
    assert wide.width / wide.height == pytest.approx(16 / 9, rel=0.12)
    for values in ({"size": 100}, {"size": 512, "longest": 0.5}):
        with pytest.raises(InvalidInput):
            make_buckets(int(values["size"]), longest=float(values.get("longest", 2)))


def test_fitting_covers_the_bucket_and_keeps_the_middle() -> None:
    picture = np.zeros((100, 300, 4), np.uint8)
    picture[:, 100:200] = (10, 200, 30, 255)
    middle = fit_to_bucket(picture, Bucket(64, 64))
    assert middle.shape == (64, 64, 4)
    assert (middle[:, 4:-4] == (10, 200, 30, 255)).all()
    crops = [
        fit_to_bucket(picture, Bucket(64, 64), crop="random", generator=np.random.default_rng(s)) for s in (1, 1, 2)
    ]
    assert np.array_equal(crops[0], crops[1])
    assert not np.array_equal(crops[0], crops[2])
    with pytest.raises(InvalidInput, match="generator"):
        fit_to_bucket(picture, Bucket(64, 64), crop="random")


def test_batches_are_of_one_bucket_and_a_function_of_seed_and_epoch() -> None:
    members = [Bucket(64, 128) if row % 3 else Bucket(128, 64) for row in range(50)]
    epoch = list(bucket_batches(members, 8, seed=1, epoch=0))
    assert epoch == list(bucket_batches(members, 8, seed=1, epoch=0))
    assert epoch != list(bucket_batches(members, 8, seed=1, epoch=1))
    assert sorted(row for batch in epoch for row in batch.rows) == list(range(50))
    assert all(members[row] == batch.bucket for batch in epoch for row in batch.rows)
    full = list(bucket_batches(members, 8, seed=1, epoch=0, rest="drop"))
    assert [len(batch.rows) for batch in full] == [8] * 6
    with pytest.raises(InvalidInput, match="batch_size"):
        list(bucket_batches(members, 0, seed=1, epoch=0))


def test_the_inspect_command(tmp_path: Path, mini_stickers: Stickers) -> None:
    folder = with_jsonl(tmp_path / "set")
    plain = CliRunner().invoke(data, ["inspect", str(folder)])
    assert "2 pictures, 2 broken, 1 without a caption" in plain.stdout
    answer = json.loads(CliRunner().invoke(data, ["inspect", str(folder), "--json"]).stdout)
    assert (answer["pictures"], answer["captions"], answer["with_alpha"]) == (2, 2, 1)
    answer = json.loads(CliRunner().invoke(data, ["inspect", str(mini_stickers.folder), "--json"]).stdout)
    assert answer["styles"] == {"noto": 31, "3d": 31}


def test_the_build_command_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    result = CliRunner().invoke(data, ["build", "stikers", str(tmp_path / "set")])
    assert isinstance(result.exception, UnknownName)
    result = CliRunner().invoke(data, ["build", "stickers", str(tmp_path / "set"), "--from", str(tmp_path)])
    assert isinstance(result.exception, DataError)
    assert not (tmp_path / "set").exists()
