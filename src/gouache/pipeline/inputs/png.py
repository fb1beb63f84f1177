"""The texts and the colour profile of a PNG, wherever they stand, and a copy that Pillow opens.

Chunks may stand in any order around the pixels (PNG specification, third edition, 2025, section 5.6): most programs
write texts in front, ImageMagick behind. Pillow sees the ones behind only once every pixel is decoded, and takes the
whole picture for damaged when a text or profile unpacks to more than 1 MiB. Everything here is capped against bombs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 16 * 2**20
"""Bytes of one text, unpacked. Graphs with pictures inside have reached a few million."""
MAX_TEXTS = 64 * 2**20
"""Bytes of all texts of a picture."""
MAX_PROFILE = 16 * 2**20
"""Bytes of a colour profile, unpacked; those of printers with large tables have a few million."""
_PILLOW_CHUNK, _PILLOW_TEXTS = 2**20, 48 * 2**20
_EXIF = b"Exif\0\0"
_TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt", b"comf")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk.

    Attributes:
        kind: four letters.
        start: where it begins in the file, with its length.
        end: where the next one begins.
        body: what it holds.
        sound: its checksum is right.
    """

    kind: bytes
    start: int
    end: int
    body: bytes
    sound: bool


def chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks for texts, EXIF and profile, in the file's order, up to its end or to where it is cut off."""
    position = len(SIGNATURE)
    while data.startswith(SIGNATURE) and position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):
            return
        if kind in _TEXT_KINDS or kind in (b"iCCP", b"eXIf"):
            body, checksum = data[position + 8 : end - 4], data[end - 4 : end]
            yield Chunk(kind, position, end, body, zlib.crc32(kind + body) == int.from_bytes(checksum))
        if kind == b"IEND":
            return
        position = end


@dataclass(frozen=True, slots=True)
class PngTexts:
    """What a PNG says beside its pixels.

    Attributes:
        texts: by keyword; of two with one keyword the later counts.
        exif: the EXIF block, with its head; empty if there is none.
        left_out: a sentence for each text that is too large or damaged.
    """

    texts: dict[str, str]
    exif: bytes
    left_out: tuple[str, ...]


def png_texts(data: bytes) -> PngTexts:
    """Every text of a PNG, in front of the pixels and behind them."""
    texts: dict[str, str] = {}
    exif, left_out, total = b"", [], 0
    for chunk in chunks(data):
        if chunk.kind == b"eXIf" and chunk.sound:
            exif = _EXIF + chunk.body.removeprefix(_EXIF)
        if chunk.kind not in _TEXT_KINDS:
            continue
        key, raw = _unpacked(chunk, MAX_TEXT)
        if raw is None or not chunk.sound:
            left_out.append(f"the text {key!r} is damaged and was left out")
        elif len(raw) > MAX_TEXT or total + len(raw) > MAX_TEXTS:
            left_out.append(f"the text {key!r} is larger than {MAX_TEXT} bytes unpacked and was left out")
        elif key:
            total += len(raw)
            texts[key] = raw.decode("utf-8", "replace") if chunk.kind == b"iTXt" else _plain_text(raw)
    if not exif:
        exif = _hexadecimal_exif(texts)
    return PngTexts(texts, exif, tuple(left_out))


def _plain_text(raw: bytes) -> str:
    """Latin-1 says the specification; UTF-8 is what some programs (stable-diffusion.cpp) write all the same."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def is_ambiguous(text: str) -> bool:
    """Whether a text in Latin-1 would be read back as UTF-8, so that it has to be written as UTF-8 itself."""
    if text.isascii():
        return False
    try:
        return text.encode("latin-1").decode("utf-8") != text
    except UnicodeError:
        return False


def _unpacked(chunk: Chunk, cap: int) -> tuple[str, bytes | None]:
    """Keyword and text of a chunk; one byte over the cap for a text that is longer, None for a damaged one."""
    key, zero, rest = chunk.body.partition(b"\0")
    name = key[:79].decode("latin-1")
    if not zero:
        return name, None
    if chunk.kind in (b"tEXt", b"comf"):
        return name, rest
    if chunk.kind == b"zTXt":
        return name, _inflated(rest[1:], cap) if rest[:1] == b"\0" else None
    packed, rest = rest[:1] == b"\1", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    return name, _inflated(rest, cap) if packed else rest


def _inflated(packed: bytes, cap: int) -> bytes | None:
    """What zlib packed, one byte over the cap if it is longer; None if it is damaged or cut off."""
    unpacking = zlib.decompressobj()
    try:
        found = unpacking.decompress(packed, cap + 1)
    except zlib.error:
        return None
    return found if unpacking.eof or len(found) > cap else None


def _hexadecimal_exif(texts: dict[str, str]) -> bytes:
    """The EXIF block that ImageMagick before version 7 keeps as a text: name, length and hexadecimal digits."""
    for name in ("exif", "APP1"):
        words = texts.get(f"Raw profile type {name}", "").split()
        try:
            block = bytes.fromhex("".join(words[2:]))
        except ValueError:
            continue
        if block.startswith(_EXIF):
            return block
    return b""


def for_pillow(data: bytes) -> tuple[bytes, bytes | None]:
    """The same PNG without what Pillow refuses, and the colour profile if that was among it.

    The pixels' chunks are not touched. A profile over `MAX_PROFILE`, or a damaged one, is left aside, as browsers do.
    """
    dropped: list[Chunk] = []
    profile, total = None, 0
    for chunk in chunks(data):
        if chunk.kind == b"eXIf":
            if not chunk.sound or chunk.body.removeprefix(_EXIF)[:4] not in (b"II*\0", b"MM\0*"):
                dropped.append(chunk)
            continue
        if chunk.kind == b"iCCP":
            method, packed = (rest := chunk.body.partition(b"\0")[2])[:1], rest[1:]
            whole = _inflated(packed, MAX_PROFILE) if chunk.sound and method == b"\0" else None
            if whole is None or len(whole) > _PILLOW_CHUNK:
                dropped.append(chunk)
                profile = whole if whole is not None and len(whole) <= MAX_PROFILE else None
            continue
        raw = _unpacked(chunk, _PILLOW_CHUNK)[1]
        size = 0 if raw is None else len(raw)
        total += size
        too_long = chunk.kind != b"tEXt" and size > _PILLOW_CHUNK
        if raw is None or not chunk.sound or too_long or total > _PILLOW_TEXTS:
            dropped.append(chunk)
            total -= size
    if not dropped:
        return data, None
    starts = [0, *(chunk.end for chunk in dropped)]
    ends = [*(chunk.start for chunk in dropped), len(data)]
    return b"".join(data[start:end] for start, end in zip(starts, ends, strict=True)), profile
