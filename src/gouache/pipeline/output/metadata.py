"""Pictures as bytes with their recipe inside: PNG text chunks, EXIF in JPEG and WebP."""

from __future__ import annotations

import contextlib
import html
import io
import json
import re
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from gouache.errors import InvalidInput, PictureError, RecipeError
from gouache.pipeline.inputs.images import MAX_BYTES, READABLE, on_background
from gouache.pipeline.inputs.png import MAX_TEXT, for_pillow, is_ambiguous, png_texts
from gouache.pipeline.request import MAX_PIXELS

PARAMETERS, OWN = "parameters", "gouache"
_EXIF_FOLDER, _USER_COMMENT, _DESCRIPTION, _SOFTWARE = 0x8769, 0x9286, 0x010E, 0x0131
_NAMED_JSON = re.compile(r"\s*(\w[\w -]{0,40}):\s*(?=[{\[])")
_XMP = "XML:com.adobe.xmp"
_XMP_COMMENT = re.compile(r"<exif:UserComment>\s*(?:<rdf:Alt>\s*<rdf:li[^>]*>)?([^<]*)<")
_UNICODE = b"UNICODE\0"
_EXIF_HEAD = b"Exif\0\0"
_TIFF_HEAD = b"MM\0\x2a\0\0\0\x08"
"""Of an EXIF block: big-endian, with the first directory at byte 8."""
_ASCII, _LONG, _UNDEFINED = 2, 4, 7
_TYPE_BYTES = {_ASCII: 1, _LONG: 4, _UNDEFINED: 1}
MAX_JPEG_EXIF = 65_533
ImageKind = Literal["png", "jpeg", "webp"]
KINDS: dict[str, ImageKind] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def kind_of(path: Path) -> ImageKind:
    """The format that a file's suffix asks for.

    Raises:
        InvalidInput: a suffix that isn't written.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise InvalidInput(
            str(path),
            given=f"the suffix {path.suffix!r}",
            expected=f"one of {', '.join(KINDS)}",
            cure="Name the file .png to keep everything.",
        )
    return kind


def encode_picture(
    picture: Image.Image, kind: ImageKind, texts: Mapping[str, str] | None = None, *, quality: int = 95
) -> bytes:
    """A picture as a file's bytes.

    Args:
        picture: mode RGB or RGBA; JPEG has no transparency and lays it on white.
        kind: png (lossless), jpeg or webp.
        texts: `parameters` (A1111's text) and `gouache` (the recipe's JSON); PNG takes any further keys too.
        quality: 1..100, for jpeg and webp; a webp of 100 is lossless.

    Raises:
        InvalidInput: the texts are too long for JPEG's EXIF.
    """
    buffer = io.BytesIO()
    if kind == "png":
        chunks = PngImagePlugin.PngInfo()
        for key, text in (texts or {}).items():
            if is_ambiguous(text):
                chunks.add_itxt(key, text)
            else:
                chunks.add_text(key, text)
        picture.save(buffer, "PNG", pnginfo=chunks)
        return buffer.getvalue()
    exif = _exif(texts or {})
    if kind == "webp":
        picture.save(buffer, "WEBP", quality=quality, lossless=quality == 100, exact=quality == 100, exif=exif)
        return buffer.getvalue()
    if len(exif) > MAX_JPEG_EXIF:
        raise InvalidInput(
            "recipe",
            given=f"{len(exif)} bytes",
            expected=f"at most {MAX_JPEG_EXIF} bytes in a JPEG",
            cure="Save as PNG or WebP, or shorten the prompt.",
        )
    on_background(picture, "white").save(buffer, "JPEG", quality=quality, exif=exif)
    return buffer.getvalue()


def _exif(texts: Mapping[str, str]) -> bytes:
    """An EXIF block: the recipe's JSON as description, A1111's text as user comment.

    Written here and not by Pillow, which gives bytes the type BYTE. EXIF 2.3, section 4.6.5, wants UNDEFINED of a user
    comment, and the readers of A1111 and of its relatives (the package piexif) take nothing else.
    """
    description = b""
    if OWN in texts:
        # This tag holds ASCII, so the JSON escapes what isn't.
        description = json.dumps(json.loads(texts[OWN]), separators=(",", ":")).encode("ascii") + b"\0"
    comment = b""
    if PARAMETERS in texts:
        comment = _UNICODE + texts[PARAMETERS].encode("utf-16-be")
    first = [(_DESCRIPTION, _ASCII, description)] if description else []
    if not comment:
        return _EXIF_HEAD + _TIFF_HEAD + _directory(first, len(_TIFF_HEAD)) if first else b""
    # The pointer to the second directory stands in the first, whose length doesn't depend on it.
    start = len(_directory([*first, (_EXIF_FOLDER, _LONG, b"1234")], 0)) + len(_TIFF_HEAD)
    first.append((_EXIF_FOLDER, _LONG, struct.pack(">I", start)))
    second = _directory([(_USER_COMMENT, _UNDEFINED, comment)], start)
    return _EXIF_HEAD + _TIFF_HEAD + _directory(first, len(_TIFF_HEAD)) + second


def _directory(entries: Sequence[tuple[int, int, bytes]], start: int) -> bytes:
    """One directory of TIFF 6.0, section 2, big-endian, with its values behind it.

    Args:
        entries: tag, type and value, by ascending tag; values over four bytes lie behind the directory.
        start: where the directory stands, in bytes from the header.
    """
    table, values = struct.pack(">H", len(entries)), b""
    behind = start + 2 + 12 * len(entries) + 4
    for tag, kind, value in entries:
        table += struct.pack(">HHI", tag, kind, len(value) // _TYPE_BYTES[kind])
        if len(value) <= 4:
            table += value.ljust(4, b"\0")
            continue
        table += struct.pack(">I", behind + len(values))
        values += value + b"\0" * (len(value) % 2)  # Offsets are even.
    return table + struct.pack(">I", 0) + values


def read_texts(source: Path | bytes, *, where: str = "picture") -> dict[str, str]:
    """Every text in a picture's file, by key; EXIF's user comment is `parameters`, our JSON is `gouache`.

    Texts of PNG are read in front of the pixels and behind them; up to `png.MAX_TEXT` bytes each.

    Raises:
        PictureError: no picture.
    """
    return read_whole(source, where=where).texts


@dataclass(frozen=True, slots=True)
class PictureTexts:
    """What a picture's file says beside its pixels.

    Attributes:
        texts: as `read_texts` gives them.
        left_out: a sentence for each text that is too large or damaged.
        size: width and height in pixels, as they are stored.
    """

    texts: dict[str, str]
    left_out: tuple[str, ...]
    size: tuple[int, int]


def read_whole(source: Path | bytes, *, where: str = "picture") -> PictureTexts:
    """As `read_texts`, with what was left out and the picture's size."""
    where = str(source) if isinstance(source, Path) else where
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        if len(data) > MAX_BYTES:
            raise PictureError(where, given=f"{len(data)} bytes", expected=f"at most {MAX_BYTES} bytes")
        with warnings.catch_warnings():
            # Our own limit on pixels stands instead of the first, and what is odd in EXIF is left aside.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            picture = Image.open(io.BytesIO(for_pillow(data)[0]), formats=READABLE)
            texts = {
                key: value for key, value in picture.info.items() if isinstance(key, str) and isinstance(value, str)
            }
            if picture.format == "PNG":
                inside = png_texts(data)
                found = texts | inside.texts
                read = with_comments(found | _exif_texts(inside.exif), found.get(_XMP, ""))
                return PictureTexts(read, inside.left_out, picture.size)
            comment = picture.info.get("comment")
            if isinstance(comment, bytes) and (picture.format == "GIF" or b"Steps: " in comment):
                texts.setdefault(PARAMETERS, comment.decode("utf-8", "replace"))
            xmp = picture.info.get("xmp", b"")
            read = with_comments(texts | _exif_texts(picture.info.get("exif", b"")), _text_of(xmp))
            return PictureTexts(read, (), picture.size)
    except Image.DecompressionBombError as error:
        raise PictureError(where, given=str(error), expected="a picture of ordinary size") from error
    except UnidentifiedImageError as error:
        raise PictureError(where, given="bytes that are no known picture", expected="a readable picture") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, PictureError):
            raise
        given = getattr(error, "strerror", None) or str(error)
        raise PictureError(where, given=given.lower(), expected="a readable picture") from error


def _exif_texts(block: object) -> dict[str, str]:
    """The texts of an EXIF block; a damaged block has none, and the picture is a picture all the same."""
    exif, comment = Image.Exif(), None
    with contextlib.suppress(SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error):
        exif.load(block if isinstance(block, bytes) else b"")
        comment = exif.get_ifd(_EXIF_FOLDER).get(_USER_COMMENT)
    texts: dict[str, str] = {}
    for tag, value in exif.items():
        text = _text_of(value) if isinstance(value, str | bytes) else ""
        named = _NAMED_JSON.match(text)
        if named:
            # ComfyUI's way in WebP and JPEG: `prompt:{...}` in Model, `workflow:{...}` in Make and the tags below it.
            texts.setdefault(named[1].lower(), text[named.end() :])
        elif tag == _DESCRIPTION and text.startswith("{") and '"request"' in text:
            texts[OWN] = text
        elif tag == _SOFTWARE and text:
            texts["Software"] = text
    if isinstance(comment, bytes) and comment:
        texts[PARAMETERS] = _decoded_comment(comment)
    elif isinstance(comment, str):
        texts[PARAMETERS] = _text_of(comment)
    return texts


def _text_of(value: object) -> str:
    """EXIF's and XMP's text: UTF-8 if it can be read so, whatever the tag says."""
    if isinstance(value, str):
        try:
            value = value.encode("latin-1")
        except UnicodeEncodeError:
            return str(value).strip("\0")
    if not isinstance(value, bytes):
        return ""
    try:
        return value.decode("utf-8").strip("\0")
    except UnicodeDecodeError:
        return value.decode("latin-1").strip("\0")


def _decoded_comment(comment: bytes) -> str:
    """EXIF 2.3, section 4.6.5: eight bytes name the character code; writers disagree on what follows."""
    if comment.startswith(_UNICODE):
        body = comment[len(_UNICODE) :]
        if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return body.decode("utf-16", "replace").rstrip("\0")
        if b"\0" not in body.rstrip(b"\0"):
            # Ordinary text has zeros in UTF-16.
            with contextlib.suppress(UnicodeDecodeError):
                return body.rstrip(b"\0").decode("utf-8")
        # Writers disagree on the byte order; in the wrong one ordinary text is full of characters above U+0100.
        big = body.decode("utf-16-be", "replace")
        small = body.decode("utf-16-le", "replace")
        return min((big, small), key=lambda text: sum(ord(char) & 0xFF == 0 for char in text)).rstrip("\0")
    for code in (b"ASCII\0\0\0", b"\0" * 8):
        comment = comment.removeprefix(code)
    return comment.decode("utf-8", "replace").rstrip("\0")


def with_comments(texts: dict[str, str], xmp: str) -> dict[str, str]:
    """The same with what some programs pack into one comment: XMP's (Draw Things), a graph's two halves (ComfyUI)."""
    comment = _XMP_COMMENT.search(xmp)
    if comment and PARAMETERS not in texts:
        texts = {**texts, PARAMETERS: html.unescape(comment[1]).strip()}
    packed = texts.get(PARAMETERS, "")
    if not packed.startswith("{"):
        return texts
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(packed)
        if isinstance(values, dict) and ("workflow" in values or values.get("Software") == "NovelAI"):
            plain = {key: one if isinstance(one, str) else json.dumps(one) for key, one in values.items()}
            return {**plain, **{key: text for key, text in texts.items() if key != PARAMETERS}}
    return texts


def own_json(texts: dict[str, str], where: str) -> dict[str, object] | None:
    """The recipe's JSON among a picture's texts, as plain values; None if there is none.

    Raises:
        RecipeError: it is there and damaged.
    """
    if OWN not in texts:
        return None
    try:
        values = json.loads(texts[OWN])
    except json.JSONDecodeError as error:
        raise RecipeError(where, given=str(error), expected="the recipe as JSON") from error
    if not isinstance(values, dict):
        raise RecipeError(where, given=type(values).__name__, expected="the recipe as a JSON object")
    return values


_STEALTH = {b"stealth_pnginfo": False, b"stealth_pngcomp": True, b"stealth_rgbinfo": False, b"stealth_rgbcomp": True}
_STEALTH_NAME = 15
_GZIP = 31
"""zlib's word for data with gzip's head."""


def hidden_text(data: bytes, max_pixels: int = MAX_PIXELS) -> str | None:
    """The text hidden in the lowest bits of a PNG's or a lossless WebP's pixels; None if there is none.

    A1111's stealth extension and NovelAI keep a copy of the texts there. The bits run down each column, column after
    column: a name of fifteen letters, the length in bits (32 bits, big-endian), then UTF-8, plain or packed by gzip.
    `stealth_pnginfo` and `stealth_pngcomp` use alpha, `stealth_rgbinfo` and `stealth_rgbcomp` red, green and blue.

    Args:
        data: the file.
        max_pixels: a picture with more is not decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(for_pillow(data)[0]), formats=("PNG", "WEBP"))
        if picture.mode not in ("RGB", "RGBA") or picture.width * picture.height > max_pixels:
            return None
        pixels = np.asarray(picture).transpose(1, 0, 2)  # [W,H,C], so that columns come one after the other
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return None
    for channels in ([pixels[..., 3:]] if picture.mode == "RGBA" else []) + [pixels[..., :3]]:
        found = _bits_text(channels.reshape(-1))
        if found is not None:
            return found
    return None


def _bits_text(values: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> str | None:
    """The text in the lowest bits of these values."""
    head = np.packbits(values[: 8 * (_STEALTH_NAME + 4)] & 1).tobytes()
    packed = _STEALTH.get(head[:_STEALTH_NAME])
    length = int.from_bytes(head[_STEALTH_NAME:], "big")
    if packed is None or length % 8 or length > min(8 * MAX_TEXT, values.size - 8 * len(head)):
        return None
    body = np.packbits(values[8 * len(head) : 8 * len(head) + length] & 1).tobytes()
    if packed:
        try:
            body = zlib.decompressobj(_GZIP).decompress(body, MAX_TEXT)
        except zlib.error:
            return None
    return body.decode("utf-8", "replace")
