"""Several pictures on one sheet, with or without words at the rows and columns."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from PIL import Image, ImageDraw

from gouache.errors import InvalidInput
from gouache.pipeline.fonts import Font, lettering
from gouache.pipeline.pixels import on_background

GAP = 4
FONT_SIZE = 14
CAPTION_SIZE, CAPTION_LINES, MARGIN = 12, 2, 8
GROUND, INK = "white", "black"
UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Kana and Han characters, which are written without blanks."""
CLOSING = "，。、！？；：）》」』】"
"""Marks that no line begins with."""


def left_out(texts: Sequence[str]) -> str:
    """Characters that no font on this machine has, so that a sheet with these words leaves them out."""
    return lettering(texts, FONT_SIZE).missing


def contact_sheet(pictures: Sequence[Image.Image], *, columns: int | None = None) -> Image.Image:
    """Pictures in reading order on white, as near to a square as they go.

    Args:
        pictures: at least one; cells are as large as the largest.
        columns: pictures in a row.
    """
    _check(pictures)
    across = columns or math.ceil(math.sqrt(len(pictures)))
    rows = [list(pictures[k : k + across]) for k in range(0, len(pictures), across)]
    return labelled_sheet(rows, [""] * across, [""] * len(rows))


def captioned_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], *, columns: int | None = None
) -> Image.Image:
    """Pictures in reading order on white, each with its words below, at most two lines of them.

    Args:
        pictures: at least one; cells are as large as the largest.
        captions: one for each; "" for none.
        columns: pictures in a row; near to a square without it.
    """
    _check(pictures)
    if len(captions) != len(pictures):
        raise InvalidInput("captions", given=len(captions), expected=f"{len(pictures)}, one for each picture")
    across = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    letters = lettering(captions, CAPTION_SIZE)
    font = letters.font
    line = CAPTION_SIZE + GAP
    cell = (width + 2 * MARGIN, height + 2 * MARGIN + CAPTION_LINES * line)
    sheet = Image.new("RGB", (across * cell[0], math.ceil(len(pictures) / across) * cell[1]), GROUND)
    draw = ImageDraw.Draw(sheet)
    for k, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = (k % across) * cell[0] + MARGIN, (k // across) * cell[1] + MARGIN
        sheet.paste(on_background(picture, GROUND), (left + (width - picture.width) // 2, top))
        for number, words in enumerate(_wrapped(letters.drawable(caption), font, width + MARGIN)):
            draw.text((left + width / 2, top + height + GAP + number * line), words, INK, font, anchor="ma")
    return sheet


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """The first lines of a text, broken between words, in Chinese and Japanese anywhere; the rest is cut short."""
    lines = [""]
    for word in _words(text):
        longer = f"{lines[-1]}{word}" if lines[-1] else word.strip()
        if font.getlength(longer) <= width or len(lines) == CAPTION_LINES or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word.strip())
    return [_shortened(line, font, width) for line in lines]


def labelled_sheet(
    rows: Sequence[Sequence[Image.Image]], across: Sequence[str], down: Sequence[str], *, title: str = ""
) -> Image.Image:
    """A table of pictures with words over the columns and beside the rows.

    Args:
        rows: pictures, row by row; a row may be shorter than `across`.
        across: words over the columns; all empty = no line for them.
        down: words beside the rows; all empty = no column for them.
        title: words over everything.
    """
    flat = [picture for row in rows for picture in row]
    _check(flat)
    width, height = max(p.width for p in flat), max(p.height for p in flat)
    letters = lettering([title, *across, *down], FONT_SIZE)
    font, title = letters.font, letters.drawable(title)
    across, down = [letters.drawable(text) for text in across], [letters.drawable(text) for text in down]
    side = max((math.ceil(font.getlength(text)) + 2 * GAP for text in down if text), default=0)
    line = FONT_SIZE + 2 * GAP
    top = (line if title else 0) + (line if any(across) else 0)
    size = (side + len(across) * (width + GAP) + GAP, top + len(rows) * (height + GAP) + GAP)
    sheet = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, INK, font)
    for column, text in enumerate(across):
        left = side + GAP + column * (width + GAP)
        draw.text((left + width / 2, top - line / 2), _shortened(text, font, width), INK, font, anchor="mm")
    for row, (text, pictures) in enumerate(zip(down, rows, strict=True)):
        upper = top + GAP + row * (height + GAP)
        draw.text((GAP, upper + height / 2), text, INK, font, anchor="lm")
        for column, picture in enumerate(pictures):
            sheet.paste(on_background(picture, GROUND), (side + GAP + column * (width + GAP), upper))
    return sheet


def _words(text: str) -> list[str]:
    """Where a line may end: words with the blank before them, single characters of scripts without blanks."""
    return re.findall(rf" ?(?:[{UNSPACED}]|[^\s{UNSPACED}{CLOSING}]+|)[{CLOSING}]*", " ".join(text.split()))[:-1]


def _shortened(text: str, font: Font, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text


def _check(pictures: Sequence[Image.Image]) -> None:
    if not pictures:
        raise InvalidInput("sheet", given="no pictures", expected="at least one")
