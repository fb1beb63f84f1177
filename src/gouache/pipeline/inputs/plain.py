"""From what a picture file holds to one form: upright, 8 bits, sRGB, with straight alpha if there is any.

Orientation as in EXIF 2.32 (tag 0x0112); colour profiles as in ICC.1:2022, converted by LittleCMS.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageCms, ImageOps

from gouache.errors import PictureError

WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes of Pillow with more than 8 bits of grey."""
_BITS, _PHOTOMETRIC = 258, 262
"""TIFF's tags for bits per sample, and for which end of the scale is white."""
_CLOSE = 2
"""Levels of 255 by which a profile may differ from sRGB and still be taken for it: rounding of its tables."""
_SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def plain(picture: Image.Image, where: str) -> tuple[Image.Image, tuple[str, ...]]:
    """A decoded picture, W x H, as mode RGB or RGBA, and notes on what had to be left aside.

    Args:
        picture: as Pillow opened and loaded it.
        where: what to call it in an error.

    Raises:
        PictureError: its pixels have no fixed range of brightness.
    """
    profile = picture.info.get("icc_profile")
    upright = _upright(_in_8_bits(picture, where))
    transparent = upright.mode in _ALPHA or "transparency" in upright.info
    grey = upright.mode in ("L", "LA", "1")
    full = upright if upright.mode in ("CMYK", "LAB") else upright.convert("RGBA" if transparent else "RGB")
    base = upright.convert("L") if grey else full
    notes: tuple[str, ...] = ()
    if profile:
        converted = _to_srgb(base, profile)
        if converted is None:
            notes = ("its colour profile can't be used, its colours are read as sRGB",)
        elif converted is not base:
            full = _with_alpha(converted, full) if transparent else converted
    result = full.convert("RGBA" if transparent else "RGB")
    result.info.clear()
    return result, notes


def _with_alpha(colours: Image.Image, source: Image.Image) -> Image.Image:
    result = colours.convert("RGBA")
    result.putalpha(source.getchannel("A"))
    return result


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF or XMP data say; data that can't be read say nothing."""
    try:
        return ImageOps.exif_transpose(picture)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, IndexError, struct.error, OverflowError):
        return picture


def _in_8_bits(picture: Image.Image, where: str) -> Image.Image:
    """Grey of more bits, scaled so that its white is 255."""
    if picture.mode not in (*WIDE, "F"):
        return picture
    tags = getattr(picture, "tag_v2", {}) if picture.format == "TIFF" else {}
    if picture.mode == "F" or (picture.mode == "I" and picture.format == "TIFF"):
        given = "floating-point pixels" if picture.mode == "F" else "pixels of 32 bits, or with a sign"
        raise PictureError(where, given=given, expected="8 or 16 bits", cure="Save it as a 16-bit PNG.")
    peak = 4095 if tuple(tags.get(_BITS, ())) == (12,) else 65535
    wide = np.asarray(picture).astype(np.int64).clip(0, peak)
    levels = ((wide * 255 + peak // 2) // peak).astype(np.uint8)
    result = Image.fromarray(255 - levels if tags.get(_PHOTOMETRIC) == 0 else levels, "L")
    invisible = picture.info.get("transparency")
    if isinstance(invisible, int):
        result.putalpha(Image.fromarray(np.where(wide == invisible, 0, 255).astype(np.uint8), "L"))
    result.info.update({key: value for key, value in picture.info.items() if key != "transparency"})
    result.getexif().update(picture.getexif())
    return result


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image | None:
    """`picture` itself where the profile is sRGB, converted where it is another, None where it can't be used.

    Args:
        picture: mode L, RGB, RGBA, CMYK or LAB.
        profile: an ICC profile.
    """
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        space = _SPACES.get(source.profile.xcolor_space.strip())
        if space is None:
            return None
        given = picture.convert("RGB") if (picture.mode, space) == ("L", "RGB") else picture
        mode = "RGBA" if given.mode == "RGBA" else "RGB"
        if given.mode.removesuffix("A") != space:
            return None
        transform = ImageCms.buildTransform(source, target, given.mode, mode)
        if space in ("L", "RGB") and _is_srgb(transform, given.mode):
            return picture
        return ImageCms.applyTransform(given, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return None


def _is_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform to sRGB changes nothing that counts. Its name proves nothing: there is a "linear sRGB"."""
    if mode == "L":
        lattice = Image.fromarray(np.arange(256, dtype=np.uint8)[None], "L")
    else:
        steps = np.linspace(0, 255, 16).round().astype(np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(1, -1, 3)
        lattice = Image.fromarray(colours, "RGB").convert(mode)
    seen = ImageCms.applyTransform(lattice, transform)
    if seen is None:
        return False
    before, after = (np.asarray(one.convert("RGB"), dtype=np.int16) for one in (lattice, seen))
    return int(np.abs(before - after).max()) <= _CLOSE
