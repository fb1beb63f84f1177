"""Text hidden in pixels; `sd_parsers` has a reader of its own."""

from __future__ import annotations

import gzip
import io
import json
import struct

import numpy as np
import pytest
from PIL import Image
from sd_parsers.extractors._png_stenographic_alpha import LSBExtractor

from gouache.errors import GouacheError
from gouache.pipeline.output.foreign import read_recipe
from gouache.pipeline.output.metadata import hidden_text

INFO = "a 猫\nNegative prompt: bad\nSteps: 3, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 64x64"
NOVEL = {
    "prompt": "a cat",
    "uc": "bad",
    "steps": 28,
    "height": 64,
    "width": 64,
    "scale": 5.0,
    "seed": 7,
    "sampler": "k_euler",
}


def hide(text: str, name: str, *, kind: str = "PNG", length: int | None = None, size: int = 80) -> bytes:
    """As the extension does, one bit after the other."""
    body = gzip.compress(text.encode()) if name.endswith("comp") else text.encode()
    bits = "".join(f"{byte:08b}" for byte in name.encode() + struct.pack(">I", length or 8 * len(body)) + body)
    alpha = "rgb" not in name
    picture = Image.new("RGBA" if alpha else "RGB", (size, size + 3), (8, 8, 8, 254) if alpha else (8, 8, 8))
    for k, bit in enumerate(bits):
        column, row = divmod(k if alpha else k // 3, picture.height)
        pixel = list(picture.getpixel((column, row)))  # type: ignore[arg-type]
        pixel[3 if alpha else k % 3] = (pixel[3 if alpha else k % 3] & 254) | int(bit)
        picture.putpixel((column, row), tuple(pixel))
    file = io.BytesIO()
    picture.save(file, kind, lossless=True, exact=True) if kind == "WEBP" else picture.save(file, kind)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Image.Image.getdata:DeprecationWarning")
@pytest.mark.parametrize("name", ["stealth_pnginfo", "stealth_pngcomp", "stealth_rgbinfo", "stealth_rgbcomp"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_all_four_names_are_read(name: str, kind: str) -> None:
    data = hide(INFO, name, kind=kind)
    assert hidden_text(data) == INFO
    found = read_recipe(data)
    assert (found.request.prompt, found.request.seed) == ("a 猫", 7)
    assert any("hidden" in note for note in found.notes)
    if name == "stealth_pngcomp":
        assert LSBExtractor.extract_from(Image.open(io.BytesIO(data))) == INFO


def test_novelai_hides_its_texts_as_one_object() -> None:
    packed = json.dumps({"Software": "NovelAI", "Comment": json.dumps(NOVEL), "Description": "a cat"})
    found = read_recipe(hide(packed, "stealth_pngcomp"))
    assert (found.tool, found.request.prompt, found.request.num_inference_steps) == ("novelai", "a cat", 28)


@pytest.mark.parametrize("length", [1, 2**31, 8 * 80 * 83])
def test_a_length_that_cannot_be_is_no_text(length: int) -> None:
    assert hidden_text(hide(INFO, "stealth_pnginfo", length=length)) is None


def test_plain_pictures_and_damaged_ones_hide_nothing() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 4), np.uint8)).save(file, "PNG")
    for data in (file.getvalue(), file.getvalue()[:60], b"", hide("x", "stealth_pngcomp").replace(b"IEND", b"XEND")):
        assert hidden_text(data) in (None, "x")
        with pytest.raises(GouacheError):
            read_recipe(data)
