"""Texts inside picture files, written and read back, in every format."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sd_parsers import ParserManager

from gouache.errors import InvalidInput, PictureError, RecipeError
from gouache.pipeline.output.metadata import ImageKind, encode_picture, kind_of, own_json, read_texts
from gouache.pipeline.output.recipe import Machine, ModelRef, Recipe, first_difference, package_versions, pixels_digest
from gouache.pipeline.request import Request

TEXT = st.text(st.characters(codec="utf-8"), max_size=120)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8))


def recipe_of(prompt: str, negative_prompt: str = "") -> Recipe:
    return Recipe(
        request=Request(prompt=prompt, negative_prompt=negative_prompt, seed=2**63 - 1),
        model=ModelRef(name="tiny", family="sd1"),
        machine=Machine(device="cpu", dtype="float32", processor="x", threads=1),
        versions=package_versions(),
        steps=("01234567", "89abcdef"),
        pixels=pixels_digest(PICTURE),
    )


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT, st.sampled_from(["png", "jpeg", "webp"]))
def test_any_prompt_comes_back_from_any_format(prompt: str, negative: str, kind: ImageKind) -> None:
    recipe = recipe_of(prompt, negative)
    data = encode_picture(PICTURE, kind, {"gouache": recipe.to_json()})
    values = own_json(read_texts(data), "picture")
    assert values is not None
    assert Recipe.from_dict(values) == recipe


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=80), st.sampled_from(["png", "jpeg"]))
def test_any_parameters_text_comes_back(text: str, kind: ImageKind) -> None:
    found = read_texts(encode_picture(PICTURE, kind, {"parameters": text})).get("parameters", "")
    # A byte order can only be told from text in which ordinary characters occur.
    if any("a" <= char <= "z" for char in text) or not text:
        assert found == text


@pytest.mark.parametrize("codec", ["utf-16-be", "utf-16-le"])
def test_both_byte_orders_of_a_comment_are_read(codec: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a cat\nSteps: 1, Sampler: Euler, Seed: 2".encode(codec)
    file = io.BytesIO()
    PICTURE.convert("RGB").save(file, "JPEG", exif=exif)
    assert read_texts(file.getvalue())["parameters"].startswith("a cat\nSteps: 1")


def test_png_and_full_quality_webp_keep_every_pixel() -> None:
    for kind in ("png", "webp"):
        read = Image.open(io.BytesIO(encode_picture(PICTURE, kind, quality=100)))
        assert pixels_digest(read.convert("RGBA")) == pixels_digest(PICTURE)


def test_a_recipe_too_long_for_jpeg_is_refused_with_a_cure() -> None:
    with pytest.raises(InvalidInput, match="PNG"):
        encode_picture(PICTURE, "jpeg", {"gouache": recipe_of("x" * 70_000).to_json()})
    assert encode_picture(PICTURE, "webp", {"gouache": recipe_of("x" * 70_000).to_json()})


def test_suffixes() -> None:
    assert kind_of(Path("a.JPG")) == "jpeg"
    with pytest.raises(InvalidInput, match=r"\.png"):
        kind_of(Path("a.tga"))


def test_damaged_recipes_and_files_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="JSON"):
        own_json({"gouache": "{"}, "a.png")
    with pytest.raises(RecipeError, match="object"):
        own_json({"gouache": "[1]"}, "a.png")
    assert own_json({}, "a.png") is None
    with pytest.raises(PictureError):
        read_texts(b"no picture")
    with pytest.raises(PictureError):
        read_texts(tmp_path / "absent.png")


def test_pixels_decide_the_digest_not_the_file() -> None:
    again = Image.open(io.BytesIO(encode_picture(PICTURE, "png", {"parameters": "x"})))
    assert pixels_digest(again) == pixels_digest(PICTURE)
    other = PICTURE.copy()
    other.putpixel((3, 3), (1, 2, 3, 4))
    assert pixels_digest(other) != pixels_digest(PICTURE)
    assert pixels_digest(Image.new("L", (2, 8))) != pixels_digest(Image.new("L", (8, 2)))


def test_the_first_difference() -> None:
    assert first_difference(("a", "b"), ("a", "b")) is None
    assert first_difference(("a", "b"), ("a", "c")) == 1
    assert first_difference(("a",), ("a", "b")) == 1


def test_the_recipe_is_plain_json() -> None:
    values = json.loads(recipe_of("a").to_json())
    assert values["request"]["prompt"] == "a"
    assert values["versions"]["gouache"]


def entries(exif: bytes, start: int) -> dict[int, tuple[int, bytes]]:
    """Tag -> type and value of one directory, after TIFF 6.0, section 2; start: from the header."""
    (count,) = struct.unpack_from(">H", exif, start)
    found = {}
    for k in range(count):
        tag, kind, length, place = struct.unpack_from(">HHII", exif, start + 2 + 12 * k)
        size = length * {2: 1, 4: 4, 7: 1}[kind]
        value = exif[start + 10 + 12 * k :][:4] if size <= 4 else exif[place:][:size]
        found[tag] = (kind, value[:size])
    return found


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["a cat", "", "a 猫 🦊", "x" * 999, "a\nb"])
def test_the_comment_in_exif_has_the_type_that_other_readers_want(kind: ImageKind, prompt: str) -> None:
    text = f"{prompt}\nSteps: 4, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 16x16, Model: m".strip()
    data = encode_picture(PICTURE, kind, {"parameters": text, "gouache": recipe_of(prompt).to_json()})
    exif = Image.open(io.BytesIO(data)).info["exif"].removeprefix(b"Exif\0\0")
    assert exif[:4] == b"MM\0*"
    first = entries(exif, 8)
    second = entries(exif, struct.unpack(">I", first[0x8769][1])[0])
    assert second[0x9286] == (7, b"UNICODE\0" + text.encode("utf-16-be"))
    assert first[0x010E][0] == 2
    assert first[0x010E][1].endswith(b"}\0")
    read = ParserManager().parse(io.BytesIO(data))
    assert read is not None
    assert [one.value for one in read.prompts] == ([prompt] if prompt else [])
    assert read.metadata["Size"] == "16x16"


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_picture_without_texts_has_no_exif(kind: ImageKind) -> None:
    assert "exif" not in Image.open(io.BytesIO(encode_picture(PICTURE, kind))).info
