"""The invisible watermark: the package invisible-watermark reads ours, and we read its."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gouache.errors import ConfigError, InvalidInput
from gouache.pipeline.output.safety import add_watermark, carries, read_watermark
from gouache.pipeline.request import Request

imwatermark = pytest.importorskip("imwatermark", reason="invisible-watermark is not installed")
TEXT = "gouache 画"


def painted(kind: str) -> Image.Image:
    height, width = 300, 289  # No multiples of 8 or 4: the rest at the edges belongs to nobody.
    y, x = np.mgrid[0:height, 0:width] / 300
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    sticker = np.full((height, width, 3), 255)
    sticker[60:220, 60:220] = (200, 40, 40)
    pictures = {
        "white": np.full((height, width, 3), 255),
        "black": np.zeros((height, width, 3)),
        "grey": np.full((height, width, 3), 130),
        "noise": noise,
        "smooth": np.stack([x, y, 1 - x], axis=-1) * 255,
        "sticker": sticker,
    }
    return Image.fromarray(pictures[kind].astype(np.uint8))


KINDS = ("white", "black", "grey", "noise", "smooth", "sticker")


def read_by_the_package(picture: Image.Image, length: int) -> bytes:
    blue_first = np.asarray(picture.convert("RGB"))[..., ::-1].copy()
    return bytes(imwatermark.WatermarkDecoder("bytes", 8 * length).decode(blue_first, "dwtDct"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_reads_what_we_wrote(kind: str) -> None:
    marked = add_watermark(painted(kind), TEXT)
    data = TEXT.encode()
    assert read_by_the_package(marked, len(data)) == data
    assert carries(marked, TEXT)
    assert not carries(painted(kind), TEXT)


@pytest.mark.parametrize("kind", ["black", "grey", "white", "sticker"])
def test_we_read_the_same_bytes_as_the_package_from_what_it_wrote(kind: str) -> None:
    encoder = imwatermark.WatermarkEncoder()
    encoder.set_watermark("bytes", b"SDV1")
    marked = encoder.encode(np.asarray(painted(kind))[..., ::-1].copy(), "dwtDct")
    picture = Image.fromarray(marked[..., ::-1].copy())
    assert read_watermark(picture, 4) == read_by_the_package(picture, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_hard_to_see(kind: str) -> None:
    before, after = (np.asarray(one, np.float64) for one in (painted(kind), add_watermark(painted(kind), TEXT)))
    noise = 10 * np.log10(255**2 / ((before - after) ** 2).mean())
    assert noise > 36  # dB; the package's own marks lie at 40 on even colours and at 15 on noise.
    brightness = (before - after) @ (0.299, 0.587, 0.114)
    assert np.abs(brightness).mean() < 1.5


def test_transparency_stays_and_the_colours_carry_the_text() -> None:
    picture = painted("smooth").convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    marked = add_watermark(picture, TEXT)
    assert marked.mode == "RGBA"
    assert marked.getchannel("A").tobytes() == picture.getchannel("A").tobytes()
    assert carries(marked, TEXT)


@settings(max_examples=25, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=4),
    colour=st.tuples(*[st.integers(30, 225)] * 3),
    size=st.tuples(st.integers(128, 200), st.integers(128, 200)),
)
def test_any_text_comes_back_from_any_even_colour(
    text: str, colour: tuple[int, int, int], size: tuple[int, int]
) -> None:
    assert carries(add_watermark(Image.new("RGB", size, colour), text), text)


def test_a_picture_without_room_is_refused() -> None:
    with pytest.raises(InvalidInput, match="Paint larger"):
        add_watermark(Image.new("RGB", (32, 32)), "too long")
    with pytest.raises(InvalidInput, match="length"):
        read_watermark(Image.new("RGB", (32, 32)), 3)


@pytest.mark.parametrize("text", ["", "x" * 33, "画" * 11, "\ud800"])
def test_a_request_refuses_texts_that_no_picture_takes(text: str) -> None:
    with pytest.raises(ConfigError, match="watermark"):
        Request.from_dict({"watermark": text})
