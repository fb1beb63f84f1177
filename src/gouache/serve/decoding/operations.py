"""What is done with the bytes of a picture, in a process of its own; nothing here needs torch.

Each operation takes the bytes and its arguments, and gives facts that can be JSON, and bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageOps

from gouache.errors import GouacheError, InvalidInput, PictureError, RecipeError, WorkerError
from gouache.pipeline.inputs.edges import canny
from gouache.pipeline.inputs.images import fit, on_background, read_picture
from gouache.pipeline.output.foreign import as_infotext, read_recipe, read_recipe_text
from gouache.pipeline.output.infotext import format_infotext, parse_infotext
from gouache.pipeline.output.metadata import PARAMETERS, encode_picture, read_texts, read_whole
from gouache.serve.store.file_store import THUMBNAIL_SIDE
from gouache.serve.training.sets import TrainingSets

Facts = dict[str, Any]
Answer = tuple[Facts, bytes]
HEAD = struct.Struct(">IQ")
"""Before each message: the lengths of its JSON and of its bytes."""
LONGEST_TEXT = 2**20
"""Characters of a text in a picture that are told of."""
OWN_MEMORY = 2 * 2**30
"""Bytes that a process may take beside what it has when it starts."""


def check(data: bytes, wanted: Facts) -> Answer:
    """Decode a picture to the end, so that nothing else is kept or painted from.

    Args:
        data: of the picture.
        wanted: `where` to name in an error, `max_pixels`.
    """
    picture = read_picture(data, where=wanted["where"], max_pixels=wanted["max_pixels"])
    clear = picture.mode == "RGBA" and picture.getchannel("A").getextrema()[0] == 0
    return {"width": picture.width, "height": picture.height, "mode": picture.mode, "clear": clear}, b""


def edges(data: bytes, wanted: Facts) -> Answer:
    """Canny's edges of a picture, as a PNG; `low`, `high`, `where`, `max_pixels`."""
    picture = read_picture(data, where=wanted["where"], max_pixels=wanted["max_pixels"])
    found = canny(on_background(picture, "white"), wanted["low"], wanted["high"])
    return {}, encode_picture(found.convert("RGB"), "png")


def encode(data: bytes, wanted: Facts) -> Answer:
    """A picture in another format, its texts inside and beside it; `kind`, `quality`, `max_pixels`."""
    found = read_texts(data)
    picture = read_picture(data, max_pixels=wanted["max_pixels"])
    return {"texts": found}, encode_picture(picture, wanted["kind"], found, quality=wanted["quality"])


def thumbnail(data: bytes, _wanted: Facts) -> Answer:
    """A small WebP of a finished picture."""
    picture = read_picture(data)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85)
    return {}, buffer.getvalue()


def resize(data: bytes, wanted: Facts) -> Answer:
    """A picture in another size, as A1111's extras do it.

    Args:
        data: of the picture.
        wanted: `width`, `height`, `crops`, `resample`, `max_pixels`, and `texts` to write in, or None for its own.
    """
    picture = read_picture(data, max_pixels=wanted["max_pixels"])
    found = read_texts(data) if wanted["texts"] is None else wanted["texts"]
    size = (wanted["width"], wanted["height"])
    if picture.size != size:
        picture = fit(picture, *size, "crop") if wanted["crops"] else picture.resize(size, wanted["resample"])
    return {}, encode_picture(picture, "png", found)


def fitted(data: bytes, wanted: Facts) -> Answer:
    """A picture brought to `width` and `height` by a resize mode, `mode`; `where`, `max_pixels` as for `check`."""
    picture = read_picture(data, where=wanted["where"], max_pixels=wanted["max_pixels"])
    return {}, encode_picture(fit(picture, wanted["width"], wanted["height"], wanted["mode"]), "png")


def white_mask(data: bytes, wanted: Facts) -> Answer:
    """OpenAI's mask is transparent where to paint; ours is white there.

    Args:
        data: of the mask.
        wanted: `width`, `height` of the picture, `max_pixels`.
    """
    mask = read_picture(data, where="mask", max_pixels=wanted["max_pixels"])
    if mask.size != (wanted["width"], wanted["height"]):
        expected = f"{wanted['width']}x{wanted['height']}"
        raise InvalidInput("mask", given=f"{mask.width}x{mask.height}", expected=expected)
    if mask.mode != "RGBA":
        raise InvalidInput("mask", given="a picture without transparency", expected="transparent pixels where to paint")
    white = mask.getchannel("A").point([255] + [0] * 255)
    return {}, encode_picture(white.convert("RGB"), "png")


def side_by_side(data: bytes, wanted: Facts) -> Answer:
    """Several pictures as one of the first one's size, in rows and columns on white.

    Args:
        data: of all the pictures, one behind the other.
        wanted: the `lengths` of their bytes, `max_pixels` of each.
    """
    stream = io.BytesIO(data)
    parts = [read_picture(stream.read(n), where="image", max_pixels=wanted["max_pixels"]) for n in wanted["lengths"]]
    sheet = on_one_sheet(parts)
    return {"width": sheet.width, "height": sheet.height}, encode_picture(sheet, "png")


def on_one_sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Several pictures as one of the first one's size, in rows and columns on white. Mode RGB."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width, height), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = column * width // columns, row * height // rows
        right, bottom = (column + 1) * width // columns, (row + 1) * height // rows
        cell = max(1, right - left), max(1, bottom - top)
        small = ImageOps.contain(on_background(picture, "white"), cell, Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (cell[0] - small.width) // 2, top + (cell[1] - small.height) // 2))
    return sheet


def texts(data: bytes, wanted: Facts) -> Answer:
    """The texts inside a picture in A1111's words, as its `png-info` tells them; `max_pixels` of those that are
    decoded for a text that hides in their pixels."""
    found = read_texts(data, where="image")
    info = found.pop(PARAMETERS, "")
    read = parse_infotext(info)
    if not read.values:
        # Another program's settings, as far as they can be said in A1111's words.
        with contextlib.suppress(RecipeError):
            foreign = read_recipe(data, where="image", max_pixels=wanted["max_pixels"])
            found |= {PARAMETERS: info} if info else {}
            found |= {"notes": "\n".join(foreign.notes)} if foreign.notes else {}
            read = as_infotext(foreign)
            info = format_infotext(read)
    named = {"Prompt": read.prompt, "Negative prompt": read.negative_prompt or ""} if info else {}
    return {"info": info, "items": found, "parameters": {**named, **read.values}}, b""


def recipe(data: bytes, wanted: Facts) -> Answer:
    """The request that a picture or a text says, notes on what was left out of it, and whether it is our own recipe.

    Args:
        data: of the picture, or of a text in UTF-8.
        wanted: `max_pixels` of a picture that is decoded for a text in its pixels; `text`, whether it is a text.
    """
    if wanted.get("text"):
        found, size = read_recipe_text(data.decode("utf-8", "replace")), (0, 0)
    else:
        found, size = read_recipe(data, max_pixels=wanted["max_pixels"]), read_whole(data).size
    values = parse_infotext(found.texts.get(PARAMETERS, "")).values
    return {
        "request": found.request.model_dump(mode="json"),
        "notes": list(found.notes),
        "own": found.recipe is not None,
        "tool": found.tool,
        "prompt_known": found.prompt_known,
        "size": size,
        "model_hash": values.get("Model hash", ""),
        "texts": {key: text[:LONGEST_TEXT] for key, text in found.texts.items()},
    }, b""


def add_to_set(data: bytes, wanted: Facts) -> Answer:
    """Put a file into a set of training pictures; `root`, `name`, `file`."""
    added = TrainingSets(Path(wanted["root"])).add(wanted["name"], wanted["file"], data)
    return dataclasses.asdict(added), b""


Operation = Callable[[bytes, Facts], Answer]
OPERATIONS: Mapping[str, Operation] = {
    operation.__name__: operation
    for operation in (
        check,
        edges,
        encode,
        thumbnail,
        resize,
        fitted,
        white_mask,
        side_by_side,
        texts,
        recipe,
        add_to_set,
    )
}


def send(stream: IO[bytes], facts: Mapping[str, Any], data: bytes) -> None:
    """Write one message."""
    head = json.dumps(dict(facts)).encode()
    stream.write(HEAD.pack(len(head), len(data)) + head)
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> Answer | None:
    """Read one message; None at the end."""
    packed = stream.read(HEAD.size)
    if len(packed) < HEAD.size:
        return None
    head, body = HEAD.unpack(packed)
    facts, data = stream.read(head), stream.read(body)
    return None if len(facts) + len(data) < head + body else (json.loads(facts), data)


def main() -> None:
    """Answer until standard input ends."""
    given, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Whatever a library prints must not be read as an answer.
    _limit_memory()
    send(answers, {"ready": True}, b"")
    while (asked := receive(given)) is not None:
        facts, data = asked
        try:
            made, result = OPERATIONS[facts.pop("operation")](data, facts)
            answer: tuple[Facts, bytes] = {"made": made}, result
        except GouacheError as error:
            answer = {"error": error.to_dict()}, b""
        except MemoryError:
            short = PictureError("picture", given="one that takes too much memory", expected="a smaller picture")
            answer = {"error": short.to_dict()}, b""
        except Exception as error:
            fault = WorkerError("picture", given=type(error).__name__, expected="no such fault")
            answer = {"error": fault.to_dict()}, b""
        send(answers, *answer)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + OWN_MEMORY, hard))


if __name__ == "__main__":
    Image.MAX_IMAGE_PIXELS = None  # Our own limits stand instead: each operation names its own.
    main()
