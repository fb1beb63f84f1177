"""The careful reading of pictures from outside, and of those that a request names. Nothing here imports torch.

Colours are sRGB in 8 bits. Pictures hold straight alpha, as PNG does.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageColor, ImageFilter, ImageOps

from gouache.environment import Variable
from gouache.errors import InvalidInput, PictureError
from gouache.pipeline.fields.values import MIN_SIDE, SURROUNDINGS
from gouache.pipeline.inputs.plain import plain
from gouache.pipeline.inputs.png import for_pillow
from gouache.pipeline.request import MAX_PIXELS, ResizeMode

READABLE = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""Formats that are opened. Not among them: those that Pillow reads through another program."""
MAX_BYTES = 256 * 2**20
Resample = Image.Resampling
Pixels = npt.NDArray[np.uint8]
_DAMAGES = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
)
"""What Pillow's readers raise for files that are truncated or damaged."""


def read_picture(source: Path | bytes, *, where: str = "picture", max_pixels: int | None = None) -> Image.Image:
    """Open, check and decode one picture, upright, as 8-bit sRGB.

    Arguments, picture and errors are those of `read_with_notes`.
    """
    return read_with_notes(source, where=where, max_pixels=max_pixels)[0]


def read_with_notes(
    source: Path | bytes, *, where: str = "picture", max_pixels: int | None = None, first_frame: bool = False
) -> tuple[Image.Image, tuple[str, ...]]:
    """As `read_picture`, with notes on what was left aside: the one reader, for painting and for training.

    Args:
        source: a file's path or its bytes. The format is told by content, never by suffix.
        where: what to call it in an error; a path names itself.
        max_pixels: refused, before anything is decoded, if it has more pixels; None takes `allowed_pixels()`.
        first_frame: take the first frame of an animation, with a note, instead of refusing it.

    Returns:
        A picture of mode RGB, or RGBA if the file has transparency, W x H; and the notes.

    Raises:
        PictureError: no picture, truncated, animated, too large, or of a kind that has no fixed range of brightness.
    """
    where = str(source) if isinstance(source, Path) else where
    data = _bytes_of(source) if isinstance(source, Path) else source
    if len(data) > MAX_BYTES:
        raise PictureError(where, given=f"{len(data)} bytes", expected=f"at most {MAX_BYTES} bytes")
    with warnings.catch_warnings():
        # Our own limit on pixels stands instead of Pillow's warning; what it says of odd metadata changes nothing.
        warnings.simplefilter("ignore")
        picture = _opened(data, where)
        try:
            frames = _frames(picture)
            _check_extent(picture, where, allowed_pixels() if max_pixels is None else max_pixels)
            if frames > 1 and not first_frame:
                raise PictureError(
                    where,
                    given="an animation or several pages",
                    expected="a single picture",
                    cure="Save one frame as PNG.",
                )
            picture.load()
        except _DAMAGES as error:
            reason = str(error) or type(error).__name__
            raise PictureError(
                where, given=reason, expected="a whole picture", cure="The file is truncated or damaged."
            ) from error
        result, notes = plain(picture, where)
    return result, (f"first of {frames} frames", *notes) if frames > 1 else notes


def allowed_pixels() -> int:
    """How many pixels a picture from outside may have: ``GOUACHE_MAX_PIXELS``, else 64 Mi.

    Raises:
        InvalidInput: the variable holds no whole number above 0.
    """
    text = os.environ.get(Variable.MAX_PIXELS, "").strip()
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or not int(text):
        raise InvalidInput(
            Variable.MAX_PIXELS, given=repr(text), expected="a whole number of pixels", cure="For example 1000000."
        )
    return int(text)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise PictureError(
            str(path), given=reason.lower(), expected="a readable file", cure="Check the path."
        ) from error


def _opened(data: bytes, where: str) -> Image.Image:
    try:
        whole, profile = for_pillow(data)
        picture = Image.open(io.BytesIO(whole), formats=READABLE)
        if profile is not None:
            picture.info["icc_profile"] = profile
        return picture
    except Image.DecompressionBombError as error:
        raise PictureError(where, given=str(error), expected=f"at most {MAX_PIXELS} pixels") from error
    except _DAMAGES as error:
        raise PictureError(
            where,
            given=f"{len(data)} bytes that are no known picture",
            expected=f"one of {', '.join(READABLE)}",
            cure="Save it as PNG or JPEG first.",
        ) from error


def _check_extent(picture: Image.Image, where: str, max_pixels: int) -> None:
    if picture.width * picture.height > max_pixels:
        raise PictureError(
            where,
            given=f"{picture.width}x{picture.height} pixels",
            expected=f"at most {max_pixels} pixels",
            cure="Make it smaller first.",
        )


def _frames(picture: Image.Image) -> int:
    """How many frames or pages. A phone's JPEG (MPO) carries further views behind the first; that is no animation."""
    return 1 if picture.format == "MPO" else int(getattr(picture, "n_frames", 1))


def on_background(picture: Image.Image, background: str) -> Image.Image:
    """Lay transparency on a colour (`white`, `#rrggbb` ...); `transparent` keeps it, as `surroundings` does, which are
    another's to find."""
    if background in ("transparent", SURROUNDINGS):
        return picture
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    ground = Image.new("RGBA", picture.size, (*ImageColor.getrgb(background)[:3], 255))
    return Image.alpha_composite(ground, picture).convert("RGB")


def nearest_size(width: int, height: int, multiple: int) -> tuple[int, int]:
    """The stated rule for sizes: each side goes to the nearest multiple of the model's factor, at least one of it, and
    no less than a request may have.

    >>> nearest_size(500, 3, 64)
    (512, 64)
    >>> nearest_size(500, 3, 4)
    (500, 8)
    """
    least = -(-MIN_SIDE // multiple) * multiple

    def nearest(side: int) -> int:
        return max(least, (side + multiple // 2) // multiple * multiple)

    return nearest(width), nearest(height)


def fit(picture: Image.Image, width: int, height: int, mode: ResizeMode) -> Image.Image:
    """Bring a picture to a size.

    Args:
        picture: mode L, RGB or RGBA.
        width: wanted width in pixels.
        height: wanted height in pixels.
        mode: `stretch` ignores the shape, `crop` fills and cuts the middle, `pad` fits and repeats the border.
    """
    if picture.size == (width, height):
        return picture
    if mode == "stretch":
        return picture.resize((width, height), Resample.LANCZOS)
    if mode == "crop":
        return ImageOps.fit(picture, (width, height), Resample.LANCZOS)
    small = picture.resize(_contained(picture.size, width, height), Resample.LANCZOS)
    left, top = (width - small.width) // 2, (height - small.height) // 2
    return extend(small, left, top, width - small.width - left, height - small.height - top)


def _contained(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """The largest size of this shape that fits; a picture too thin for that keeps a line of one pixel."""
    if size[0] / size[1] > width / height:
        return width, max(1, round(size[1] / size[0] * width))
    return max(1, round(size[0] / size[1] * height)), height


def extend(picture: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """Add a border that repeats the outermost pixels."""
    pixels = np.asarray(picture)
    width = ((top, bottom), (left, right), (0, 0))[: pixels.ndim]
    return Image.fromarray(np.pad(pixels, width, mode="edge"), picture.mode)


def read_mask(mask: Image.Image, size: tuple[int, int], *, where: str = "mask") -> Image.Image:
    """A mask as mode L, white = paint. Transparent parts of a mask count as black.

    Raises:
        PictureError: the mask has another size than the picture.
    """
    if mask.size != size:
        raise PictureError(
            where,
            given=f"{mask.width}x{mask.height} pixels",
            expected=f"the picture's {size[0]}x{size[1]}",
            cure="Resize the mask to the picture's size.",
        )
    return on_background(mask, "black").convert("L") if mask.mode != "L" else mask


def is_opaque(picture: Image.Image) -> bool:
    """Whether nothing shows through it."""
    return picture.mode != "RGBA" or picture.getchannel("A").getextrema()[0] == 255


def transparency_mask(picture: Image.Image, *, where: str = "mask") -> Image.Image:
    """The transparent part of a picture as a mask: white where it is transparent."""
    if picture.mode != "RGBA":
        raise PictureError(
            where,
            given="a picture without transparency and no mask",
            expected="a mask or transparent pixels",
            cure="Name a mask, or make the part to paint transparent.",
        )
    return ImageChops.invert(picture.getchannel("A"))


def soften(mask: Image.Image, blur: int) -> Image.Image:
    """Blur a mask's edge; the edge keeps its place."""
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask


def paste_back(original: Image.Image, painted: Image.Image, mask: Image.Image) -> Image.Image:
    """`painted` where the mask is white, `original` where it is black, bit for bit there; a blend between.

    Colours are blended as far as they are opaque: those under transparent pixels are anything.

    Args:
        original: mode RGB or RGBA.
        painted: of the same size.
        mask: mode L, of the same size.
    """
    if "RGBA" not in (original.mode, painted.mode):
        return Image.composite(painted.convert("RGB"), original.convert("RGB"), mask)
    under, over = (np.asarray(picture.convert("RGBA"), dtype=np.float64) for picture in (original, painted))
    share = np.asarray(mask, dtype=np.float64)[..., None] / 255  # [H,W,1]
    weights = (1 - share) * under[..., 3:], share * over[..., 3:]
    alpha = weights[0] + weights[1]
    colours = (weights[0] * under[..., :3] + weights[1] * over[..., :3]) / np.maximum(alpha, 1e-9)
    blend = np.rint(np.concatenate([colours, alpha], axis=2))
    blend = np.where(share == 0, under, np.where(share == 1, over, blend))
    return Image.fromarray(blend.astype(np.uint8), "RGBA")


HASH = "sha256:"


class References:
    """Reads each picture of a request once.

    Args:
        attachments: bytes by name, or by hexadecimal sha256 for names of the form `sha256:...`.
    """

    def __init__(self, attachments: Mapping[str, bytes] | None = None) -> None:
        self._given = dict(attachments or {})
        self._bytes: dict[str, bytes] = {}
        self._notes: dict[str, tuple[str, ...]] = {}

    def picture(self, name: str) -> Image.Image:
        """The picture, mode RGB or RGBA.

        Raises:
            PictureError: it is not there, or no picture.
        """
        picture, self._notes[name] = read_with_notes(self.data(name), where=name)
        return picture

    def data(self, name: str) -> bytes:
        """The file's bytes; errors as `picture`."""
        if name not in self._bytes:
            self._bytes[name] = self._found(name)
        return self._bytes[name]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left aside of the pictures that were read."""
        return tuple(f"picture {Path(name).name[:80]}: {note}" for name, notes in self._notes.items() for note in notes)

    def digests(self) -> dict[str, str]:
        """sha256 of every picture that was read."""
        return {name: sha256(data).hexdigest() for name, data in self._bytes.items()}

    def _found(self, name: str) -> bytes:
        for key in (name, name.removeprefix(HASH)):
            if key in self._given:
                return self._given[key]
        if name.startswith(HASH):
            raise PictureError(
                name,
                given="no bytes for this hash",
                expected="the picture beside the request",
                cure="Pass it in `attachments`.",
            )
        try:
            return Path(name).expanduser().read_bytes()
        except (OSError, RuntimeError, ValueError) as error:  # "~nobody" has no home, a NUL is in no path
            given = (getattr(error, "strerror", None) or str(error)).lower()
            raise PictureError(name, given=given, expected="a readable file", cure="Check the path.") from error
