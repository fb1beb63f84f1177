"""kohya's dataset configs and folders: what they say, what is refused by name, and the set that comes of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gouache.cli.data import data
from gouache.data.buckets import Bucket
from gouache.data.packed import PackedPictures, PackedStream, Variety, pack_pictures
from gouache.data.readers import ReadReport, read_pictures
from gouache.data.subsets.dataset_config import read_dataset_config
from gouache.data.subsets.plan import plan_set
from gouache.errors import ConfigError, DataError

TOML = """
[general]
shuffle_caption = true
caption_extension = ".caption"
keep_tokens = 1
color_aug = false

[[datasets]]
resolution = 32
batch_size = 4
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = "dog"
  class_tokens = "sks dog"
  num_repeats = 3
  caption_prefix = "sks,"
  flip_aug = true

  [[datasets.subsets]]
  is_reg = true
  image_dir = "reg"
  class_tokens = "dog"
  keep_tokens = 0
  shuffle_caption = false
"""


def pictures(folder: Path, count: int, captions: dict[int, str] | None = None, *, start: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.full((32, 32, 3), 40 + 3 * (start + i), np.uint8)
        pixels[:, : 4 + i] = (255, 0, start)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        if captions and i in captions:
            (folder / f"{i}.caption").write_text(captions[i])
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    pictures(tmp_path / "dog", 4, {0: "a, b, c, d", 1: "x"})
    pictures(tmp_path / "reg", 6, start=50)
    (tmp_path / "dataset.toml").write_text(TOML)
    return tmp_path / "dataset.toml"


def test_a_key_is_taken_from_the_innermost_table_that_says_it(config: Path) -> None:
    found = read_dataset_config(config)
    dog, reg = found.subsets
    assert found.size == 32
    assert (dog.name, dog.repeats, dog.regularisation, dog.reading.missing) == ("dog", 3, False, "sks dog")
    assert (dog.rules.captions.keep, dog.rules.captions.shuffle, dog.rules.captions.prefix) == (2, True, "sks,")
    assert dog.rules.flip
    assert (reg.repeats, reg.regularisation, reg.rules.captions.keep, reg.rules.captions.shuffle) == (1, True, 0, False)
    assert dog.reading.caption_suffixes == (".caption",)
    assert len(found.notes) == 1
    assert "batch_size is passed over: it belongs to [STAGE.loop]" in found.notes[0]


def test_the_command_builds_it_and_the_stream_follows_its_rules(config: Path, tmp_path: Path) -> None:
    answer = CliRunner().invoke(data, ["build", "pictures", str(tmp_path / "set"), "--from", str(config), "--json"])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    assert told["pictures"] == 10
    assert told["notes"]["without a caption of their own, captioned 'sks dog'"] == 2
    assert told["notes"]["without a caption of their own, captioned 'dog'"] == 6
    packed = PackedPictures.open(tmp_path / "set")
    packed.verify()
    assert (len(packed), packed.to_learn) == (10, 4)
    assert all(not packed.records[row].regularisation for row in packed.indices("held_out"))
    stream = PackedStream(packed, 3, split="all")
    # Repeats of the one subset count against nothing, so 4 and 6 pictures come as nearly as often as can be.
    rows = Counter(packed.records[row].subset for row in stream.rows)
    assert rows == {"dog": 8, "reg": 6}
    captions = Counter(stream.example(n).caption for n in range(40 * len(stream.rows)))
    assert set(captions) == {"sks, a, b, c, d", "sks, a, b, d, c", "sks, x", "sks, sks dog", "dog"}
    assert abs(captions["sks, a, b, c, d"] - captions["sks, a, b, d, c"]) < 40
    flipped = {subset: set[bytes]() for subset in rows}
    for number in range(4 * len(stream.rows)):
        example = stream.example(number)
        flipped["reg" if example.caption == "dog" else "dog"].add(example.picture.tobytes())
    assert {subset: len(found) for subset, found in flipped.items()} == {"dog": 8, "reg": 6}
    again = PackedStream(PackedPictures.open(tmp_path / "set"), 3, split="all")
    assert again.example(123).caption == stream.example(123).caption
    assert (
        again.fingerprint == stream.fingerprint != PackedStream(packed, 3, variety=Variety(), split="train").fingerprint
    )


def test_json_says_the_same_and_paths_may_be_from_here(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomllib

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "dataset.json").write_text(json.dumps(tomllib.loads(config.read_text())))
    monkeypatch.chdir(tmp_path)
    found = read_dataset_config(elsewhere / "dataset.json")
    assert [subset.rules for subset in found.subsets] == [one.rules for one in read_dataset_config(config).subsets]
    monkeypatch.chdir(elsewhere)
    with pytest.raises(DataError, match=r"image_dir.*dog, which isn't there"):
        read_dataset_config(elsewhere / "dataset.json")


@pytest.mark.parametrize(
    ("line", "place", "cure"),
    [
        ("color_aug = true", "color_aug", "isn't supported"),
        ("random_crop = true", "random_crop", "cut in the middle"),
        ("face_crop_aug_range = [1.0, 2.0]", "face_crop_aug_range", "cut in the middle"),
        ("shufle_caption = true", "shufle_caption", "shuffle_caption"),
        ("num_repeat = 3", "num_repeat", "num_repeats"),
        ("enable_wildcard = true", "enable_wildcard", "one caption a line"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(line: str, place: str, cure: str, config: Path) -> None:
    plain = TOML.replace("color_aug = false\n", "")
    for text in (
        plain.replace("[general]", f"[general]\n{line}"),
        plain.replace('image_dir = "dog"', f'image_dir="dog"\n{line}'),
    ):
        config.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_dataset_config(config)
        assert place in caught.value.where
        assert cure in caught.value.cure


def test_resolutions_and_buckets(config: Path) -> None:
    def read(replacement: str) -> tuple[Bucket, ...]:
        config.write_text(TOML.replace("resolution = 32", replacement))
        return plan_set(config, size=None).buckets

    assert read('resolution = "32,32"') == read("resolution = [32, 32]") == (Bucket(32, 32),)
    assert read("") == (Bucket(128, 128),)
    shapes = read(
        "resolution = 32\nenable_bucket = true\nbucket_reso_steps = 8\nmin_bucket_reso = 24\nmax_bucket_reso = 40"
    )
    assert shapes == (Bucket(24, 40), Bucket(32, 32), Bucket(40, 24))
    for wrong, match in (("resolution = [32, 64]", "a square"), ('resolution = "large"', "number of pixels")):
        with pytest.raises(ConfigError, match=match):
            read(wrong)
    with pytest.raises(ConfigError, match="a divisor of it"):
        read("resolution = 32\nenable_bucket = true\nbucket_reso_steps = 24")
    config.write_text(TOML)
    with pytest.raises(ConfigError, match=r"resolution.*given 32.*expected 64"):
        plan_set(config, size=64)
    config.write_text(TOML + '\n[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "dog"\n')
    with pytest.raises(ConfigError, match="one for all datasets"):
        read_dataset_config(config)


def test_a_metadata_file_names_captions_and_tags(config: Path, tmp_path: Path) -> None:
    said = {"0": {"tags": "p, q"}, "1.png": {"caption": "whole", "tags": "r"}, "9": {"caption": "gone"}}
    (tmp_path / "meta.json").write_text(json.dumps(said))
    config.write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "dog"\nmetadata_file = "meta.json"\n')
    report = ReadReport()
    [subset] = read_dataset_config(config).subsets
    found = {one.key: one.captions for one in read_pictures(subset.source, report, subset.reading)}
    assert found == {"0.png": ("p, q",), "1.png": ("whole, r",)}
    assert [key for key, _ in report.listed] == ["9"]


def test_kohyas_regularisation_folder_and_metadata_lines(tmp_path: Path) -> None:
    pictures(tmp_path / "all" / "img" / "4_sks dog", 3)
    pictures(tmp_path / "all" / "reg" / "1_dog", 5, start=50)
    report = ReadReport()
    list(pack_pictures(tmp_path / "all", tmp_path / "set", (Bucket(32, 32),), report))
    assert report.notes["regularisation pictures"] == 5
    packed = PackedPictures.open(tmp_path / "set")
    assert Counter((one.captions[0], one.regularisation) for one in packed.records) == {
        ("sks dog", False): 3,
        ("dog", True): 5,
    }
    assert Counter(packed.records[row].regularisation for row in packed.weighted("all")) == {False: 6, True: 5}


def test_a_set_that_is_built_can_be_built_again_with_pictures_of_the_class(tmp_path: Path) -> None:
    pictures(tmp_path / "dog", 4, dict.fromkeys(range(4), "sks dog"))
    pictures(tmp_path / "class", 2, dict.fromkeys(range(2), "a dog"), start=50)
    list(plan_set(tmp_path / "dog", size=32).built(tmp_path / "first", ReadReport()))
    plan = plan_set(tmp_path / "first", regularisation=tmp_path / "class")
    list(plan.built(tmp_path / "second", ReadReport()))
    first, second = (PackedPictures.open(tmp_path / name) for name in ("first", "second"))
    assert [one.sha256 for one in second.records[:4]] == [one.sha256 for one in first.records]
    assert [one.key for one in second.records[4:]] == ["regularisation/0.png", "regularisation/1.png"]
    assert [one.regularisation for one in second.records] == [False] * 4 + [True] * 2
    assert plan.mark != plan_set(tmp_path / "first").mark


def test_a_set_of_version_1_still_opens_and_streams_as_it_did(tmp_path: Path) -> None:
    """Written as version 1 wrote it; the fingerprint is the one it had, so that encoded stores stay valid."""
    import hashlib

    pictures(tmp_path / "dog", 3, dict.fromkeys(range(3), "a dog"))
    list(pack_pictures(tmp_path / "dog", tmp_path / "set", (Bucket(32, 32),), ReadReport()))
    records, manifest = tmp_path / "set" / "records.jsonl", tmp_path / "set" / "manifest.json"
    old = []
    for line in records.read_text().splitlines():
        row = json.loads(line)
        del row["subset"], row["regularisation"]
        old.append(json.dumps(row))
    records.write_text("\n".join(old) + "\n")
    about = json.loads(manifest.read_text())
    about["sha256"]["records.jsonl"] = hashlib.sha256(records.read_bytes()).hexdigest()
    for key in ("subsets", "masks", "conditions"):
        del about[key]
    manifest.write_text(json.dumps(about | {"recipe_version": 1}))
    packed = PackedPictures.open(tmp_path / "set")
    packed.verify()
    assert (packed.mask(0), packed.condition(0), packed.records[0].regularisation) == (None, None, False)
    digests = json.dumps(about["sha256"], sort_keys=True)
    expected = hashlib.sha256(f"{digests}/{(1, 7, 'train', False)}".encode()).hexdigest()
    assert PackedStream(packed, 7).fingerprint == expected
    manifest.write_text(json.dumps(about | {"recipe_version": 3}))
    with pytest.raises(DataError, match="version 3"):
        PackedPictures.open(tmp_path / "set")
