"""What picture files of cameras, scanners and editors mean, for painting and for training alike.

The kind: whatever a file says about its pixels beside the pixels is obeyed: which way is up (EXIF, all eight, in every
format that carries it), how many bits make white, which end of the scale is white, which colours the numbers stand
for (ICC), what is transparent. What can't be obeyed is a typed error or a note. There is one reader, so training sees
what painting sees.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gouache.data.readers import decode, decode_with_notes
from gouache.errors import DataError, PictureError
from gouache.pipeline.inputs.images import read_picture, read_with_notes


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def both(data: bytes) -> np.ndarray:
    """What painting reads, after checking that training reads the same. [H,W,4]"""
    painted = np.asarray(read_picture(data).convert("RGBA"))
    assert np.array_equal(decode(data), painted)
    return painted


# EXIF 2.32, table of tag 0x0112: which side of the scene the first row and the first column are.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
SCENE = np.zeros((16, 32, 3), np.uint8)
SCENE[:8, :16], SCENE[:8, 16:], SCENE[8:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("turn", list(TURNS))
def test_every_orientation_in_every_format(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    found = both(saved(Image.fromarray(SCENE), kind, exif=exif))[..., :3].astype(int)
    wanted = TURNS[turn](SCENE).astype(int)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).mean() < 12  # the lossy formats blur the borders


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_turn_too(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.repeat(np.arange(16, dtype=np.uint16)[:, None] * 4096, 32, axis=1)
    found = both(saved(Image.fromarray(grey), kind, exif=exif))
    assert found.shape[:2] == (32, 16)
    assert found[0, 0, 0] > found[0, -1, 0]


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08"]
)
def test_broken_exif_says_nothing(exif: bytes) -> None:
    assert both(saved(Image.fromarray(SCENE), "PNG", exif=exif)).shape == (16, 32, 4)


RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(4, 16)


def tiff(values: np.ndarray, bits: int, photometric: int) -> bytes:
    """A grey TIFF written by hand: TIFF 6.0, one strip."""
    if bits == 12:
        digits = "".join(f"{one:012b}" for one in values.ravel().tolist())
        strip = int(digits, 2).to_bytes(len(digits) // 8, "big")
    else:
        strip = values.astype("<u2").tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height, 279: len(strip)}
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = start
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + strip


DEEP: dict[str, bytes] = {
    "grey png": saved(Image.fromarray(RAMP), "PNG"),
    "grey tiff": saved(Image.fromarray(RAMP), "TIFF"),
    "grey tiff, packed": saved(Image.fromarray(RAMP), "TIFF", compression="tiff_deflate"),
    "grey tiff, the other byte order": saved(Image.fromarray(RAMP.astype(">u2")), "TIFF"),
    "grey tiff by hand": tiff(RAMP, 16, 1),
    "grey tiff, white is 0": tiff(65535 - RAMP, 16, 0),
    "grey tiff, 12 bits": tiff((RAMP / 65535 * 4095).round().astype(np.uint16), 12, 1),
    "pgm": b"P5\n16 4\n65535\n" + RAMP.astype(">u2").tobytes(),
    "ppm": b"P6\n16 4\n65535\n" + np.repeat(RAMP[..., None], 3, axis=2).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("name", list(DEEP))
def test_white_is_white_however_many_bits_it_has(name: str) -> None:
    wanted = RAMP / 65535 * 255
    assert np.abs(both(DEEP[name])[..., 0] - wanted).max() <= 1


def test_a_transparent_level_of_sixteen_bits_stays_transparent() -> None:
    data = saved(Image.fromarray(RAMP), "PNG", transparency=65535)
    assert both(data)[..., 3].ravel().tolist() == [255] * 63 + [0]


@pytest.mark.parametrize("values", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 2**30, np.int32)])
def test_pixels_without_a_fixed_white_are_refused(values: np.ndarray) -> None:
    data = saved(Image.fromarray(values), "TIFF")
    with pytest.raises(PictureError, match="16-bit PNG"):
        read_picture(data)
    with pytest.raises(DataError, match=r"floating-point|32 bits"):
        decode(data)


# Profiles by ICC.1:2001-04, from published primaries; expected colours by the same primaries in closed form.
D50 = np.array([0.9642, 1.0, 0.8249])
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
REC2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """RGB to XYZ under D50, from chromaticities under D65. [3,3]"""
    white = np.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    under_d65 = columns * np.linalg.solve(columns, white)
    scale = np.diag((BRADFORD @ D50) / (BRADFORD @ white))
    return np.asarray(np.linalg.inv(BRADFORD) @ scale @ BRADFORD @ under_d65)


def profile(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", place + len(body), len(content))
        body += content
    size = place + len(body)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, kind, space, connection)
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + struct.pack(">III", *(int(v * 65536) for v in D50))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def named(text: str) -> bytes:
    return b"desc" + b"\0" * 4 + struct.pack(">I", len(text) + 1) + text.encode() + b"\0" * 80


def curve(gamma: float) -> bytes:
    return b"curv" + b"\0" * 4 + struct.pack(">IH", 1, round(gamma * 256))


def xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + b"\0" * 4 + struct.pack(">iii", *(round(float(v) * 65536) for v in values))


def rgb_profile(primaries: tuple[tuple[float, float], ...], gamma: float, name: str = "a space") -> bytes:
    matrix = to_xyz(primaries)
    tags = {b"desc": named(name), b"wtpt": xyz(D50)}
    tags |= {key: xyz(matrix[:, k]) for k, key in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return profile(b"RGB ", tags | {key: curve(gamma) for key in (b"rTRC", b"gTRC", b"bTRC")})


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", {b"desc": named("grey"), b"wtpt": xyz(D50), b"kTRC": curve(gamma)})


def encoded(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1."""
    linear = linear.clip(0, 1)
    return np.asarray(np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255)


COLOURS = np.array([[[200, 60, 40], [40, 180, 90], [128, 128, 128], [250, 240, 200], [90, 90, 200]]], np.uint8)


@pytest.mark.parametrize(
    ("primaries", "gamma"), [(P3, 2.2), (ADOBE, 2.19921875), (REC2020, 2.4), (SRGB, 1.0), (SRGB, 1.8), (P3, 2.6)]
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_colours_of_other_spaces_become_srgb(
    primaries: tuple[tuple[float, float], ...], gamma: float, kind: str
) -> None:
    linear = (COLOURS / 255.0) ** gamma @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T
    options = {"lossless": True} if kind == "WEBP" else {}
    # A name proves nothing.
    data = saved(Image.fromarray(COLOURS), kind, icc_profile=rgb_profile(primaries, gamma, "sRGB linear"), **options)
    assert np.abs(both(data)[..., :3] - encoded(linear)).max() <= 2


def test_transparency_and_palettes_keep_beside_a_profile() -> None:
    icc = rgb_profile(P3, 2.2)
    plain = both(saved(Image.fromarray(COLOURS), "PNG", icc_profile=icc))
    clear = Image.fromarray(COLOURS).convert("RGBA")
    clear.putalpha(77)
    found = both(saved(clear, "PNG", icc_profile=icc))
    assert np.array_equal(found[..., :3], plain[..., :3])
    assert (found[..., 3] == 77).all()
    palette = Image.fromarray(np.arange(5, dtype=np.uint8)[None], "P")
    palette.putpalette(COLOURS.tobytes())
    found = both(saved(palette, "PNG", icc_profile=icc, transparency=bytes([255, 255, 0, 255, 9])))
    assert np.array_equal(found[..., :3], plain[..., :3])
    assert found[0, :, 3].tolist() == [255, 255, 0, 255, 9]
    found = both(saved(Image.fromarray(COLOURS), "PNG", icc_profile=icc, transparency=(200, 60, 40)))
    assert found[0, :, 3].tolist() == [0, 255, 255, 255, 255]


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2, 3.0])
@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_of_another_gamma_becomes_srgb(gamma: float, mode: str) -> None:
    levels = np.array([[0, 20, 64, 128, 200, 255]], np.uint8)
    picture = Image.fromarray(levels, "L")
    if mode == "LA":
        picture.putalpha(55)
    if mode == "I;16":
        picture = Image.fromarray(levels.astype(np.uint16) * 257)
    found = both(saved(picture, "PNG", icc_profile=grey_profile(gamma)))
    assert np.abs(found[..., 0] - encoded((levels / 255) ** gamma)).max() <= 2
    assert (found[..., 3] == (55 if mode == "LA" else 255)).all()


def cmyk_profile() -> bytes:
    """A press in two steps an ink, as a table of L*a*b* (lut8Type): from paper white to black."""
    grid = b""
    for corner in range(16):
        inks = corner.bit_count()
        grid += bytes([round((100 - 25 * inks) / 100 * 255), 128, 128])
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(round(v * 65536) for v in np.eye(3).ravel()))
    table = b"mft1" + b"\0" * 4 + bytes([4, 3, 2, 0]) + matrix + identity * 4 + grid + identity * 3
    return profile(b"CMYK", {b"desc": named("press"), b"wtpt": xyz(D50), b"A2B0": table}, b"Lab ")


def test_cmyk_follows_its_press() -> None:
    picture = Image.fromarray(np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [255, 255, 0, 0]]], np.uint8), "CMYK")
    lightness = np.array([100.0, 75.0, 50.0])
    grey = encoded(((lightness + 16) / 116) ** 3)  # CIE 1976, without a hue
    found = both(saved(picture, "TIFF", icc_profile=cmyk_profile()))[0, :, :3]
    assert np.abs(found - grey[:, None]).max() <= 4
    large = picture.resize((48, 16), Image.Resampling.NEAREST)
    found = both(saved(large, "JPEG", quality=100, subsampling=0, icc_profile=cmyk_profile()))[8, 8::16, :3]
    assert np.abs(found - grey[:, None]).max() <= 6


def test_pictures_that_are_srgb_keep_every_value() -> None:
    """Digests of packed sets must stay: neither a plain picture nor an sRGB one changes by a single level."""
    from PIL import ImageCms

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        picture = Image.fromarray(pixels).convert(mode)
        wanted = np.asarray(picture.convert("RGBA"))
        assert np.array_equal(both(saved(picture, "PNG")), wanted), mode
        assert np.array_equal(both(saved(picture, "PNG", icc_profile=icc)), wanted), mode


@pytest.mark.parametrize("icc", [b"junk", grey_profile(2.2), cmyk_profile(), rgb_profile(P3, 2.2)[:150]])
def test_a_profile_that_does_not_fit_is_left_aside_with_a_note(icc: bytes) -> None:
    data = saved(Image.fromarray(COLOURS), "PNG", icc_profile=icc)
    picture, notes = read_with_notes(data)
    assert np.array_equal(np.asarray(picture), COLOURS)
    assert len(notes) == 1
    assert "colour profile" in notes[0]
    assert decode_with_notes(data)[1] == notes


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_training_takes_the_first_frame_and_says_so(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    pixels, notes = decode_with_notes(data)
    assert np.abs(pixels[8, 8, :3].astype(int) - (255, 0, 0)).max() <= 12
    assert notes == ("first of 3 frames",)
    with pytest.raises(PictureError, match="animation"):
        read_picture(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF"])
def test_damaged_files_end_in_typed_errors(kind: str) -> None:
    """Cut anywhere, and with bytes changed anywhere: a picture or a typed error, nothing else."""
    noise = np.random.default_rng(1)
    whole = saved(Image.fromarray(noise.integers(0, 256, (24, 24, 3), np.uint8)), kind)
    tried = [whole[: len(whole) * k // 12] for k in range(12)]
    for _ in range(60):
        broken = bytearray(whole)
        for place in noise.integers(0, min(len(whole), 400), 3):
            broken[place] = noise.integers(256)
        tried.append(bytes(broken))
    refused = 0
    for data in tried:
        try:
            read_picture(data, max_pixels=10**6)
        except PictureError:
            refused += 1
    assert refused > 3


def test_a_phone_picture_of_two_views_is_one_picture() -> None:
    first, second = Image.new("RGB", (16, 8), "red"), Image.new("RGB", (16, 8), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(first, "MPO", save_all=True, append_images=[second], exif=exif)
    assert both(data).shape == (16, 8, 4)
    assert read_with_notes(data)[1] == ()


def test_packed_training_pictures_stand_upright(tmp_path: Path) -> None:
    from gouache.data.readers import ReadReport, read_pictures

    exif = Image.Exif()
    exif[0x0112] = 8
    (tmp_path / "phone.jpg").write_bytes(saved(Image.fromarray(SCENE), "JPEG", exif=exif, quality=100, subsampling=0))
    (tmp_path / "phone.txt").write_text("four fields")
    (found,) = read_pictures(tmp_path, ReadReport())
    assert np.abs(found.picture[..., :3].astype(int) - TURNS[8](SCENE)).mean() < 3
