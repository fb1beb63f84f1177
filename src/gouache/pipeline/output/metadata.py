"""Pictures as bytes with their recipe inside: PNG text chunks, EXIF in JPEG and WebP."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from gouache.errors import InvalidInput, PictureError, RecipeError
from gouache.pipeline.inputs.images import MAX_BYTES, READABLE, on_background

PARAMETERS, OWN = "parameters", "gouache"
_EXIF_FOLDER, _USER_COMMENT, _DESCRIPTION = 0x8769, 0x9286, 0x010E
_UNICODE = b"UNICODE\0"
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
    exif = Image.Exif()
    if PARAMETERS in texts:
        comment = _UNICODE + texts[PARAMETERS].encode("utf-16-be")
        exif.get_ifd(_EXIF_FOLDER)[_USER_COMMENT] = comment
    if OWN in texts:
        # This tag holds ASCII, so the JSON escapes what isn't.
        exif[_DESCRIPTION] = json.dumps(json.loads(texts[OWN]), separators=(",", ":"))
    return exif.tobytes()


def read_texts(source: Path | bytes, *, where: str = "picture") -> dict[str, str]:
    """Every text in a picture's file, by key; EXIF's user comment is `parameters`, our JSON is `gouache`.

    Raises:
        PictureError: no picture.
    """
    where = str(source) if isinstance(source, Path) else where
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        if len(data) > MAX_BYTES:
            raise PictureError(where, given=f"{len(data)} bytes", expected=f"at most {MAX_BYTES} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=READABLE)
            texts = {
                key: value for key, value in picture.info.items() if isinstance(key, str) and isinstance(value, str)
            }
            comment = picture.info.get("comment")
            if isinstance(comment, bytes) and picture.format == "GIF":
                texts.setdefault(PARAMETERS, comment.decode("utf-8", "replace"))
            return texts | _exif_texts(picture.getexif())
    except Image.DecompressionBombError as error:
        raise PictureError(where, given=str(error), expected="a picture of ordinary size") from error
    except UnidentifiedImageError as error:
        raise PictureError(where, given="bytes that are no known picture", expected="a readable picture") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, PictureError):
            raise
        given = getattr(error, "strerror", None) or str(error)
        raise PictureError(where, given=given.lower(), expected="a readable picture") from error


def _exif_texts(exif: Image.Exif) -> dict[str, str]:
    texts: dict[str, str] = {}
    comment = exif.get_ifd(_EXIF_FOLDER).get(_USER_COMMENT)
    if isinstance(comment, bytes) and comment:
        texts[PARAMETERS] = _decoded_comment(comment)
    elif isinstance(comment, str):
        texts[PARAMETERS] = comment
    description = exif.get(_DESCRIPTION)
    if isinstance(description, str) and description.startswith("{"):
        texts[OWN] = description
    return texts


def _decoded_comment(comment: bytes) -> str:
    if comment.startswith(_UNICODE):
        body = comment[len(_UNICODE) :]
        # Writers disagree on the byte order; in the wrong one ordinary text is full of characters above U+0100.
        big = body.decode("utf-16-be", "replace")
        small = body.decode("utf-16-le", "replace")
        return min((big, small), key=lambda text: sum(ord(char) & 0xFF == 0 for char in text))
    return comment.removeprefix(b"ASCII\0\0\0").decode("utf-8", "replace").rstrip("\0")


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
