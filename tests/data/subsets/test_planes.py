"""Masks and conditions: where they are found, and that they are cut exactly as their picture is."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gouache.data.buckets import Bucket, make_buckets
from gouache.data.packed import PackedPictures, pack_pictures
from gouache.data.readers import AS_USUAL, Reading, ReadReport, read_pictures
from gouache.errors import DataError

WIDE, TALL = (40, 24), (24, 40)


def gradient(size: tuple[int, int]) -> np.ndarray:
    """Grey levels that tell every place: rows and columns differ."""
    x, y = np.meshgrid(np.linspace(0, 250, size[0]), np.linspace(0, 250, size[1]))
    return np.stack([x, y, x], 2).round().astype(np.uint8)


def saved(path: Path, pixels: np.ndarray, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    if text:
        path.with_suffix(".txt").write_text(text)


def packed(source: Path, folder: Path, reading: Reading = AS_USUAL, *, shapes: bool = True) -> PackedPictures:
    buckets = make_buckets(32, step=8) if shapes else (Bucket(16, 16),)
    list(pack_pictures(source, folder, buckets, ReadReport(), reading))
    found = PackedPictures.open(folder)
    found.verify()
    return found


@pytest.mark.parametrize(
    ("picture", "mask", "condition"),
    [
        ("1.png", "1-mask.png", "conditioning/1.png"),
        ("1.png", "masks/1.png", "conditioning_images/1.jpg"),
        ("10_dog/1.png", "masks/10_dog/1.png", "control/1.png"),
        ("10_dog/1.png", "10_dog/1-masklabel.png", "10_dog/condition/1.png"),
        ("images/1.png", "masks/1.png", "conditions/1.png"),
        ("after/1.png", "mask/1.png", "before/1.png"),
        ("target/1.png", "target/1-mask.png", "source/1.png"),
    ],
)
def test_what_belongs_to_a_picture_is_found_and_is_no_picture_itself(
    picture: str, mask: str, condition: str, tmp_path: Path
) -> None:
    saved(tmp_path / picture, gradient(WIDE), "a thing")
    saved(tmp_path / mask, np.full((*WIDE[::-1], 3), 255, np.uint8))
    saved(tmp_path / condition, gradient(WIDE))
    saved((tmp_path / condition).with_name("lonely.png"), gradient(WIDE))
    report = ReadReport()
    [found] = read_pictures(tmp_path, report)
    assert (found.key, found.captions) == (picture, ("a thing",))
    assert found.mask is not None
    assert found.mask.min() == 255
    assert found.condition is not None
    assert report.notes["with a mask"] == report.notes["with a condition"] == 1
    assert report.notes["masks and conditions without a picture, left aside"] == 1


def test_a_captioned_folder_of_masks_holds_pictures(tmp_path: Path) -> None:
    saved(tmp_path / "hats" / "1.png", gradient(WIDE), "a hat")
    saved(tmp_path / "masks" / "1.png", gradient(WIDE), "a carnival mask")
    found = list(read_pictures(tmp_path, ReadReport()))
    assert [(one.captions, one.mask) for one in found] == [(("a hat",), None), (("a carnival mask",), None)]


@pytest.mark.parametrize("size", [WIDE, TALL])
@pytest.mark.parametrize("shapes", [True, False])
def test_planes_are_scaled_and_cut_exactly_as_their_picture(
    size: tuple[int, int], shapes: bool, tmp_path: Path
) -> None:
    """A condition that is the picture itself is the picture afterwards, and a mask of its red channel that channel."""
    pixels = gradient(size)
    saved(tmp_path / "set" / "1.png", pixels, "one")
    saved(tmp_path / "set" / "conditioning" / "1.png", pixels)
    saved(tmp_path / "set" / "masks" / "1.png", np.repeat(pixels[..., :1], 3, 2))
    # A picture before it without a mask, so that masks begin in the middle of a file.
    saved(tmp_path / "set" / "0.png", pixels, "zero")
    saved(
        tmp_path / "set" / "conditioning" / "0.png",
        np.asarray(Image.fromarray(pixels).resize((80, 80 * size[1] // size[0]))),
    )
    found = packed(tmp_path / "set", tmp_path / "packed", shapes=shapes)
    condition, mask = found.condition(1), found.mask(1)
    assert condition is not None
    assert mask is not None
    assert np.array_equal(condition, found.picture(1))
    assert np.array_equal(mask, found.picture(1)[..., 0])
    whole, scaled = found.mask(0), found.condition(0)
    assert whole is not None
    assert whole.min() == 255
    assert scaled is not None
    assert abs(scaled.astype(int) - found.picture(0)).max() < 16  # it went through another size


def test_alpha_and_conditions_can_be_masks(tmp_path: Path) -> None:
    pixels = np.dstack([gradient((16, 16)), np.tile(np.arange(16, dtype=np.uint8) * 17, (16, 1))])
    saved(tmp_path / "set" / "1.png", pixels, "one")
    by_alpha = packed(tmp_path / "set", tmp_path / "alpha", Reading(masks="alpha"), shapes=False)
    mask = by_alpha.mask(0)
    assert mask is not None
    assert np.array_equal(mask, pixels[..., 3])
    assert by_alpha.picture(0)[..., 3].min() == 255
    assert np.array_equal(by_alpha.picture(0)[..., :3], pixels[..., :3])
    plain = packed(tmp_path / "set", tmp_path / "plain", shapes=False)
    assert plain.mask(0) is None
    assert np.array_equal(plain.picture(0), pixels)
    saved(tmp_path / "elsewhere" / "1.jpg", np.full((16, 16, 3), 255, np.uint8))
    reading = Reading(masks="conditions", conditions=tmp_path / "elsewhere")
    by_condition = packed(tmp_path / "set", tmp_path / "condition", reading, shapes=False)
    mask = by_condition.mask(0)
    assert mask is not None
    assert mask.min() == 255
    assert by_condition.condition(0) is None


def test_another_shape_is_skipped_and_a_missing_condition_is_told(tmp_path: Path) -> None:
    for name in "123":
        saved(tmp_path / "set" / f"{name}.png", gradient((16, 16)), name)
    saved(tmp_path / "set" / "masks" / "2.png", gradient((16, 30)))
    report = ReadReport()
    list(pack_pictures(tmp_path / "set", tmp_path / "packed", (Bucket(16, 16),), report))
    assert (report.good, report.broken) == (2, 1)
    assert report.listed == [("2.png", "a mask of 16x30 for a picture of 16x16")]
    saved(tmp_path / "set" / "conditioning" / "1.png", gradient((16, 16)))
    with pytest.raises(DataError, match=r"1 of 2 pictures with a condition.*one for every picture"):
        list(pack_pictures(tmp_path / "set", tmp_path / "other", (Bucket(16, 16),), ReadReport()))
    assert not (tmp_path / "other").exists()
    with pytest.raises(DataError, match="3 broken"):
        list(read_pictures(tmp_path / "set", ReadReport(), Reading(conditions=tmp_path)))


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("condition", "picture", "caption"),
    [
        ("input_image", "edited_image", "edit_prompt"),
        ("original_image", "edited_image", "edit_prompt"),
        ("source_img", "target_img", "instruction"),
        ("conditioning_image", "image", "text"),
    ],
)
def test_published_layouts_of_pairs_are_read(condition: str, picture: str, caption: str, tmp_path: Path) -> None:
    import datasets

    before, after = gradient(WIDE), gradient(WIDE)[::-1]
    rows = {condition: [{"bytes": png(before)}], picture: [{"bytes": png(after)}], caption: ["turn it over"]}
    table = datasets.Dataset.from_dict(rows)
    for column in (condition, picture):
        table = table.cast_column(column, datasets.Image(decode=False))
    table.to_parquet(tmp_path / "rows.parquet")
    [found] = read_pictures(tmp_path / "rows.parquet", ReadReport())
    assert found.captions == ("turn it over",)
    assert np.array_equal(found.picture[..., :3], after)
    assert found.condition is not None
    assert np.array_equal(found.condition[..., :3], before)


def test_metadata_names_planes_inside_its_folder(tmp_path: Path) -> None:
    for name in ("a.png", "sub/c.png", "sub/m.png", "b.png"):
        saved(tmp_path / "set" / name, gradient(WIDE))
    rows = [
        {
            "file_name": "a.png",
            "text": "one",
            "conditioning_image_file_name": "sub/c.png",
            "mask_file_name": "sub/m.png",
        },
        {"file_name": "b.png", "text": "two", "conditioning_image": "../outside.png"},
    ]
    saved(tmp_path / "outside.png", gradient(WIDE))
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = ReadReport()
    [found] = read_pictures(tmp_path / "set", report)
    assert found.mask is not None
    assert found.condition is not None
    assert [key for key, _ in report.listed] == ["b.png"]


def test_the_report_tells_of_nothing_that_did_not_happen(tmp_path: Path) -> None:
    """One picture has a caption, one an empty file, one none; no folder said anything."""
    report = ReadReport()
    for name in ("one", "two", "three"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "one.txt").write_text("a red square")
    (tmp_path / "two.txt").write_text("")
    assert [found.key for found in read_pictures(tmp_path, report) if found.captions] == ["one.png"]
    assert not report.notes
