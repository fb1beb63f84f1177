"""PNGs whose texts, profile or chunks stand where Pillow doesn't look, or are larger than it allows.

The kind: a picture that every viewer opens, with something beside the pixels that must not decide whether the pixels or
the recipe are read: texts of all three sorts in front of the pixels and behind them (as ImageMagick writes them), over
1 MiB unpacked, damaged, doubled, in another encoding than the specification says; profiles of several MiB; a damaged
EXIF block. Bombs are left out by name, and cost no memory. Pillow's own reader of texts is the judge on files it reads.
"""

from __future__ import annotations

import io
import tracemalloc
import zlib
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from gouache.errors import RecipeError
from gouache.pipeline.inputs.images import read_picture
from gouache.pipeline.inputs.png import MAX_PROFILE, MAX_TEXT, chunks, for_pillow, png_texts
from gouache.pipeline.output.foreign import read_recipe
from gouache.pipeline.output.metadata import encode_picture, read_texts, read_whole

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
INFO = "a cat\nSteps: 3, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 64x64"


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    check = zlib.crc32(kind + body) if checksum is None else checksum
    return len(body).to_bytes(4, "big") + kind + body + check.to_bytes(4, "big")


def text_chunk(sort: str, key: str, text: str) -> bytes:
    name = key.encode("latin-1") + b"\0"
    if sort == "tEXt":
        return chunk(b"tEXt", name + text.encode("latin-1"))
    if sort == "zTXt":
        return chunk(b"zTXt", name + b"\0" + zlib.compress(text.encode("latin-1")))
    packed = sort == "packed iTXt"
    raw = text.encode()
    return chunk(b"iTXt", name + bytes([packed, 0]) + b"\0\0" + (zlib.compress(raw) if packed else raw))


def png(*, front: bytes = b"", behind: bytes = b"") -> bytes:
    """A plain PNG with chunks in front of its pixels and behind them."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    plain = file.getvalue()
    pixels, end = plain.index(b"IDAT") - 4, plain.index(b"IEND") - 4
    return plain[:pixels] + front + plain[pixels:end] + behind + plain[end:]


def is_whole(data: bytes) -> bool:
    return bool((np.asarray(read_picture(data)) == PIXELS).all())


@pytest.mark.parametrize("sort", ["tEXt", "zTXt", "iTXt", "packed iTXt"])
@pytest.mark.parametrize("place", ["front", "behind"])
def test_every_sort_of_text_is_read_in_both_places(sort: str, place: str) -> None:
    data = png(**{place: text_chunk(sort, "parameters", INFO)})
    assert read_texts(data) == {"parameters": INFO}
    assert read_recipe(data).request.seed == 7
    assert is_whole(data)


SORTED = st.sampled_from(["tEXt", "zTXt", "iTXt", "packed iTXt"])
KEY = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
TEXT = st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=40)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(SORTED, st.booleans(), KEY, TEXT), max_size=5))
def test_pillow_finds_the_same_texts_once_it_has_decoded_the_pixels(listed: list[tuple[str, bool, str, str]]) -> None:
    front = b"".join(text_chunk(sort, key, text) for sort, before, key, text in listed if before)
    behind = b"".join(text_chunk(sort, key, text) for sort, before, key, text in listed if not before)
    data = png(front=front, behind=behind)
    picture = Image.open(io.BytesIO(data))
    assert isinstance(picture, PngImagePlugin.PngImageFile)
    assert png_texts(data).texts == {key: str(text) for key, text in picture.text.items()}


@pytest.mark.parametrize("place", ["front", "behind"])
@pytest.mark.parametrize("sort", ["tEXt", "zTXt", "iTXt", "packed iTXt"])
def test_texts_over_a_mebibyte_are_read_and_the_picture_is_one(sort: str, place: str) -> None:
    """A graph with a picture inside it."""
    long = "x" * (3 * 2**20)
    data = png(**{place: text_chunk(sort, "workflow", long) + text_chunk("tEXt", "parameters", INFO)})
    assert read_texts(data)["workflow"] == long
    assert read_recipe(data).request.seed == 7
    assert is_whole(data)


def test_many_texts_that_are_large_together() -> None:
    data = png(front=b"".join(text_chunk("zTXt", f"k{k}", "y" * 2**20) for k in range(66)))
    assert is_whole(data)
    whole = read_whole(data)
    assert len(whole.texts) == 64
    assert whole.left_out


@pytest.mark.parametrize("sort", ["zTXt", "packed iTXt"])
def test_a_bomb_is_left_out_by_name_and_costs_little(sort: str) -> None:
    bomb = text_chunk(sort, "workflow", "z" * (MAX_TEXT + 2**20))
    data = png(front=bomb, behind=text_chunk("tEXt", "parameters", INFO))
    deep = zlib.compress(b"\0" * 2**26)
    data = data.replace(bomb, bomb + chunk(b"zTXt", b"deep\0\0" + deep))
    tracemalloc.start()
    found = read_recipe(data)
    assert tracemalloc.get_traced_memory()[1] < 8 * MAX_TEXT
    tracemalloc.stop()
    assert found.request.seed == 7
    assert sum("larger" in note for note in found.notes) == 2
    assert is_whole(data)


def test_only_a_bomb_is_no_recipe_and_says_so() -> None:
    data = png(front=text_chunk("zTXt", "parameters", "z" * (MAX_TEXT + 1)))
    with pytest.raises(RecipeError, match="larger than"):
        read_recipe(data)


DAMAGED = {
    "checksum": chunk(b"tEXt", b"comment\0x", 0),
    "unpacking": chunk(b"zTXt", b"comment\0\0no zlib"),
    "compressed iTXt": chunk(b"iTXt", b"comment\0\1\0\0\0no zlib"),
    "no keyword": chunk(b"tEXt", b"nothing"),
    "empty": chunk(b"zTXt", b""),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("place", ["front", "behind"])
def test_a_damaged_text_spoils_neither_the_picture_nor_the_others(name: str, place: str) -> None:
    data = png(**{place: DAMAGED[name] + text_chunk("tEXt", "parameters", INFO)})
    assert read_recipe(data).request.seed == 7
    assert is_whole(data)


@cache
def profile(size: int) -> bytes:
    """A display's profile with nothing more in it, made longer by a private tag's worth of noise."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    longer = plain + np.random.default_rng(1).bytes(max(size - len(plain), 0))
    return len(longer).to_bytes(4, "big") + longer[4:]


@pytest.mark.parametrize("size", [0, 2**20 + 1000, 3 * 2**20])
def test_profiles_of_several_mebibytes_are_applied(size: int) -> None:
    body = b"icc\0\0" + zlib.compress(profile(size))
    data = png(front=chunk(b"iCCP", body))
    assert is_whole(data), "sRGB to sRGB changes nothing"
    slim, handed_on = for_pillow(data)
    assert (handed_on is None) is (size == 0)
    assert handed_on is None or handed_on == profile(size)
    assert (slim == data) is (size == 0)


def test_a_large_profile_of_other_colours_acts_as_a_small_one_does() -> None:
    """A profile with red and blue exchanged, once small and once padded over Pillow's limit."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = {plain[132 + 12 * k : 136 + 12 * k]: 132 + 12 * k for k in range(int.from_bytes(plain[128:132], "big"))}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    other = bytearray(plain)
    other[red + 4 : red + 12], other[blue + 4 : blue + 12] = plain[blue + 4 : blue + 12], plain[red + 4 : red + 12]
    # Its name must not say sRGB, or it would be left alone.
    small = bytes(other).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap")
    large = small + np.random.default_rng(2).bytes(2 * 2**20)
    large = len(large).to_bytes(4, "big") + large[4:]
    pictures = [
        np.asarray(read_picture(png(front=chunk(b"iCCP", b"icc\0\0" + zlib.compress(one))))) for one in (small, large)
    ]
    assert (pictures[0] == pictures[1]).all()
    assert not (pictures[0] == PIXELS).all()


def test_a_profile_that_is_a_bomb_or_damaged_is_left_aside() -> None:
    for body in (zlib.compress(b"\0" * (MAX_PROFILE + 1)), b"no zlib"):
        assert is_whole(png(front=chunk(b"iCCP", b"icc\0\0" + body)))


def test_utf8_where_latin1_is_asked_for() -> None:
    """stable-diffusion.cpp writes its prompt so; true Latin-1 stays what it is."""
    for raw, text in ((INFO.replace("cat", "猫 é").encode(), "a 猫 é"), ("a café\n".encode("latin-1"), "a café")):
        data = png(front=chunk(b"tEXt", b"parameters\0" + raw))
        assert read_texts(data)["parameters"].startswith(text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=20))
def test_what_we_write_in_latin1_comes_back(text: str) -> None:
    assert read_texts(encode_picture(Image.fromarray(PIXELS), "png", {"parameters": text}))["parameters"] == text
    misread = "Ã©" + text
    assert read_texts(encode_picture(Image.fromarray(PIXELS), "png", {"parameters": misread}))["parameters"] == misread


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200), st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"]))
def test_no_bytes_beside_the_pixels_break_a_reader(body: bytes, cut: int, kind: bytes) -> None:
    data = png(front=chunk(kind, body), behind=chunk(kind, body))
    for one in (data, data[:cut]):
        list(chunks(one))
        png_texts(one)
        for_pillow(one)
    read_texts(data)
    assert is_whole(data)


def test_exif_in_its_three_places() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + INFO.encode("utf-16-be")
    block = exif.tobytes()
    digits = f"\nexif\n{len(block):8d}\n{block.hex()}\n"
    for data in (
        png(front=chunk(b"eXIf", block.removeprefix(b"Exif\0\0"))),
        png(behind=chunk(b"eXIf", block.removeprefix(b"Exif\0\0"))),
        png(behind=text_chunk("zTXt", "Raw profile type exif", digits)),
    ):
        assert read_recipe(data).request.seed == 7
