"""Pictures to tensors and back, and every kind of awkward or hostile file. Pillow and numpy write the files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from gouache.errors import PictureError, ShapeMismatch
from gouache.pipeline.inputs import images as pixels
from gouache.pipeline.inputs.images import fit, nearest_size, on_background, read_mask, read_picture
from gouache.pipeline.inputs.tensors import rgba_to_tensor, tensor_to_rgba, to_image, to_tensor


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def corners() -> Image.Image:
    """2 wide, 3 high, a different colour in each pixel."""
    rows = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)], [(0, 255, 255), (255, 0, 255)]]
    return Image.fromarray(np.array(rows, np.uint8))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rgb_there_and_back_is_the_identity(seed: int) -> None:
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8))
    tensor = to_tensor(picture, 3)
    assert tensor.shape == (3, 5, 4)
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    assert to_image(tensor).tobytes() == picture.tobytes()


def test_every_level_of_grey_has_its_value() -> None:
    picture = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(1, 256)).convert("RGB")
    expected = torch.arange(256) / 127.5 - 1
    assert torch.allclose(to_tensor(picture, 3)[0, 0], expected, atol=1e-6)
    assert to_image(to_tensor(picture, 3)).tobytes() == picture.tobytes()


def test_rgba_is_laid_on_white_and_comes_back() -> None:
    values = np.random.default_rng(1).integers(0, 256, (8, 8, 4), np.uint8)
    picture = Image.fromarray(values)
    tensor = to_tensor(picture, 4)
    on_white = Image.alpha_composite(Image.new("RGBA", (8, 8), "white"), picture)
    shown = (tensor.permute(1, 2, 0)[..., :3] + 1) * 127.5
    assert np.abs(shown.numpy() - np.asarray(on_white)[..., :3]).max() <= 1
    back = np.asarray(to_image(tensor))
    assert (back[..., 3] == values[..., 3]).all()
    opaque = values[..., 3] > 0
    assert np.abs(back[opaque].astype(int) - values[opaque])[:, :3].max() <= 1
    assert (back[~opaque] == (255, 255, 255, 0)).all()


def test_rgba_in_batches_is_rgba_one_by_one() -> None:
    values = np.random.default_rng(3).integers(0, 256, (2, 3, 8, 8, 4), np.uint8)
    batch = rgba_to_tensor(values)
    assert batch.shape == (2, 3, 4, 8, 8)
    assert torch.equal(batch[1, 2], to_tensor(Image.fromarray(values[1, 2]), 4))
    assert (tensor_to_rgba(batch)[1, 2] == np.asarray(to_image(batch[1, 2]))).all()


def test_out_of_range_values_are_clipped() -> None:
    tensor = torch.tensor([-3.0, 0.0, 3.0]).reshape(3, 1, 1)
    assert to_image(tensor).getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4), (1, 3, 4, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match="picture tensor"):
        to_image(torch.zeros(shape))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the transposition that stored it so
    stored = corners()
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_picture(saved(stored, "PNG", exif=exif))
    assert read.size == (2, 3)
    assert read.tobytes() == corners().tobytes()


def test_sixteen_bit_grey_keeps_its_scale() -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    read = read_picture(saved(Image.fromarray(values)))
    assert [read.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


def test_cmyk_is_turned_to_rgb() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("TIFF", "JPEG"):
        red, green, blue = np.asarray(read_picture(saved(cmyk, kind))).reshape(-1, 3).mean(0)
        assert (red, green, blue) == pytest.approx((255, 0, 0), abs=4)


def test_palettes_keep_colour_and_transparency() -> None:
    palette = corners().quantize(8)
    assert read_picture(saved(palette)).tobytes() == corners().tobytes()
    index = palette.getpixel((0, 0))
    read = read_picture(saved(palette, "PNG", transparency=index))
    assert read.mode == "RGBA"
    assert read.getchannel("A").getpixel((0, 0)) == 0
    assert read.getchannel("A").getpixel((1, 2)) == 255


@pytest.mark.parametrize(("mode", "colour"), [("1", 1), ("L", 255), ("LA", (255, 255))])
def test_grey_kinds_become_colour(mode: str, colour: int | tuple[int, ...]) -> None:
    read = read_picture(saved(Image.new(mode, (3, 2), colour)))
    assert read.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_an_embedded_profile_is_applied() -> None:
    wide = Image.new("RGB", (4, 4), (100, 150, 50))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    assert read_picture(saved(wide, icc_profile=srgb.tobytes())).getpixel((0, 0)) == (100, 150, 50)
    # A profile of another colour space does not fit RGB pixels; as in a browser, the picture is still shown.
    assert read_picture(saved(wide, icc_profile=lab.tobytes())).getpixel((0, 0)) == (100, 150, 50)
    assert read_picture(saved(wide, icc_profile=b"nonsense")).getpixel((0, 0)) == (100, 150, 50)


@pytest.mark.parametrize(
    "data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(PictureError, match="hello"):
        read_picture(data, where="hello")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_truncated_pictures_are_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = saved(noise, kind)
    with pytest.raises(PictureError):
        read_picture(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    with pytest.raises(PictureError, match="animation"):
        read_picture(saved(frames[0], kind, save_all=True, append_images=frames[1:]))


def png_bomb(side: int) -> bytes:
    """A small file that claims to be side x side pixels, all black."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9000, 20000, 2**31 - 1])
def test_bombs_are_refused_before_decoding(side: int) -> None:
    with pytest.raises(PictureError, match="pixels"):
        read_picture(png_bomb(side))


def test_the_pixel_cap_is_the_callers() -> None:
    with pytest.raises(PictureError, match="at most 10 pixels"):
        read_picture(saved(Image.new("RGB", (4, 4))), max_pixels=10)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="no such file"):
        read_picture(tmp_path / "absent.png")
    with pytest.raises(PictureError, match="directory"):
        read_picture(tmp_path)


def test_the_suffix_does_not_decide(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(saved(corners(), "PNG"))
    assert read_picture(path).tobytes() == corners().tobytes()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([8, 16, 64]))
def test_sizes_go_to_the_nearest_multiple(width: int, height: int, multiple: int) -> None:
    for side, rounded in zip((width, height), nearest_size(width, height, multiple), strict=True):
        assert rounded % multiple == 0
        assert rounded >= multiple
        assert abs(side - rounded) <= multiple // 2 or rounded == multiple


def test_fitting_keeps_or_breaks_the_shape_as_asked() -> None:
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (0, 0, 10, 20))
    assert fit(picture, 20, 20, "crop").getpixel((0, 10)) == (255, 0, 0)
    assert fit(picture, 20, 20, "stretch").getpixel((1, 10)) == (0, 0, 255)
    padded = fit(picture, 40, 40, "pad")
    assert padded.size == (40, 40)
    assert padded.getpixel((0, 0)) == (0, 0, 255)


def test_masks() -> None:
    with pytest.raises(PictureError, match="4x4"):
        read_mask(Image.new("L", (4, 4)), (8, 8))
    mask = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    mask.putpixel((1, 0), (255, 255, 255, 0))
    assert list(read_mask(mask, (2, 1)).tobytes()) == [255, 0]
    assert list(pixels.transparency_mask(mask).tobytes()) == [0, 255]
    with pytest.raises(PictureError, match="transparen"):
        pixels.transparency_mask(Image.new("RGB", (2, 2)))


def test_paste_back_blends_colours_as_far_as_they_are_opaque() -> None:
    original = Image.new("RGBA", (3, 1), (10, 200, 30, 0))  # transparent; its green must never be seen
    painted = Image.new("RGBA", (3, 1), (200, 20, 40, 100))
    mask = Image.fromarray(np.array([[0, 51, 255]], dtype=np.uint8))
    joined = np.asarray(pixels.paste_back(original, painted, mask))[0].tolist()
    assert joined == [[10, 200, 30, 0], [200, 20, 40, 20], [200, 20, 40, 100]]
    half = Image.fromarray(np.array([[128, 128, 128]], dtype=np.uint8))
    opaque = Image.new("RGBA", (3, 1), (0, 0, 255, 255))
    blue, red = 255 * (1 - 128 / 255), 100 * 128 / 255
    expected = [200 * red / (blue + red), 20 * red / (blue + red), (255 * blue + 40 * red) / (blue + red), blue + red]
    assert np.asarray(pixels.paste_back(opaque, painted, half))[0, 0].tolist() == [round(value) for value in expected]


def test_paste_back_keeps_black_parts_bit_for_bit() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), np.uint8)
    original, painted = Image.fromarray(noise[0]), Image.fromarray(noise[1])
    mask = pixels.soften(Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), 12)), 3)
    joined = np.asarray(pixels.paste_back(original, painted, mask))
    black = np.asarray(mask) == 0
    assert 0 < black.sum() < black.size
    assert (joined[black] == noise[0][black]).all()
    assert (joined[16, 16] != noise[0][16, 16]).any()


def test_backgrounds() -> None:
    picture = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert on_background(picture, "transparent") is picture
    assert on_background(picture, "#0000ff").getpixel((0, 0)) == (128, 0, 127)
    assert on_background(picture, "white").mode == "RGB"
