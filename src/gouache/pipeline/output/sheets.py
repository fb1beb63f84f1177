"""Several images in one file: sheets with words at rows and columns, in a font that has their characters, and films."""

from __future__ import annotations

import io
import math
import os
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gouache.environment import Variable
from gouache.errors import InvalidInput, MissingDependency
from gouache.pipeline.inputs.images import is_opaque, on_background

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
SUFFIXES = (".ttf", ".ttc", ".otf", ".otc")
WIDE_NAMES = (
    "cjk",
    "wqy",
    "sourcehan",
    "droidsansfallback",
    "pingfang",
    "hiragino",
    "stheiti",
    "songti",
    "heiti",
    "msyh",
    "msgothic",
    "yugoth",
    "meiryo",
    "malgun",
    "simsun",
    "simhei",
    "deng",
    "uming",
    "ukai",
    "nanum",
    "ipag",
    "unifont",
    "arialuni",
)
"""Parts of the names of fonts that have Chinese, Japanese or Korean characters; these are looked at first."""
MAX_LOOKED_AT = 60
NOWHERE = "\U0010ffff"
"""A character that no font has, so that it shows what a font draws for those it lacks."""


@dataclass(frozen=True, slots=True)
class Lettering:
    """A font for some words.

    Attributes:
        font: it.
        missing: characters of the words that no font on this machine has; they are left out.
    """

    font: Font
    missing: str

    def drawable(self, text: str) -> str:
        """The text without the characters that would be boxes."""
        return "".join(character for character in text if character not in self.missing)


def lettering(texts: Iterable[str], size: int, folders: Sequence[Path] | None = None) -> Lettering:
    """A font for words: Pillow's own where it has all their characters, else the first on the machine that has most.

    The font that the environment variable GOUACHE_FONT names comes first of all.

    Args:
        texts: the words.
        size: in pixels.
        folders: where to look; None takes the system's folders of fonts.
    """
    characters = "".join(sorted({character for text in texts for character in text if _is_seen(character)}))
    best: Lettering | None = None
    for font in _fonts(size, font_folders() if folders is None else folders):
        found = Lettering(font, lacking(font, characters))
        if best is None or len(found.missing) < len(best.missing):
            best = found
        if not best.missing:
            break
    return best or Lettering(ImageFont.load_default(size), characters)


def _is_seen(character: str) -> bool:
    """Not a blank, a control character, or a mark that only changes another character."""
    return not character.isspace() and unicodedata.category(character) not in ("Cc", "Cf", "Mn", "Me")


def lacking(font: Font, characters: str) -> str:
    """Those of the characters that a font draws as it draws what it doesn't have."""
    nothing = _drawn(font, NOWHERE)
    return "".join(character for character in characters if _drawn(font, character) == nothing)


def _drawn(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    try:
        mask = font.getmask(character)
    except (UnicodeError, OSError):  # Pillow's font of last resort knows Latin only
        return (0, 0), b""
    return mask.size, bytes(mask)


def font_folders() -> list[Path]:
    """Where systems keep their fonts."""
    home = Path.home()
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    if sys.platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts", local / "Microsoft" / "Windows" / "Fonts"]
    data = Path(os.environ.get(Variable.XDG_DATA_HOME) or home / ".local" / "share")
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), data / "fonts", home / ".fonts"]


def _fonts(size: int, folders: Sequence[Path]) -> Iterator[Font]:
    chosen = os.environ.get(Variable.FONT)
    if chosen:
        yield from _opened(Path(chosen).expanduser(), size)
    yield ImageFont.load_default(size)
    files = sorted({path for folder in folders for path in _files(folder)})
    for path in sorted(files, key=lambda path: (not _is_wide(path), path.name.lower(), path))[:MAX_LOOKED_AT]:
        yield from _opened(path, size)


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root) / name for name in names if name.lower().endswith(SUFFIXES))


def _is_wide(path: Path) -> bool:
    name = path.name.lower().replace("-", "").replace(" ", "")
    # Upright and of usual weight first: bold ones have names of their own.
    return any(part in name for part in WIDE_NAMES) and "bold" not in name and "black" not in name


def _opened(path: Path, size: int) -> Iterator[Font]:
    """The font in a file; a file that is none is passed over."""
    try:
        yield ImageFont.truetype(path, size)
    except OSError:
        return


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


KINDS = (".gif", ".webp", ".mp4", ".png")


def encode_film(pictures: Sequence[Image.Image], suffix: str, *, fps: float = 8.0) -> bytes:
    """Pictures as one file's bytes.

    Args:
        pictures: at least one, all of one size.
        suffix: .gif and .webp repeat for ever, .mp4 plays once, .png is a strip of all.
        fps: frames a second.

    Raises:
        InvalidInput: another suffix, or no picture.
        MissingDependency: .mp4 without imageio and ffmpeg.
    """
    check_film(suffix)
    if not pictures:
        raise InvalidInput("film", given="no pictures", expected="at least one")
    kind = suffix.lower()
    if kind == ".mp4":
        return _mp4(pictures, fps)
    buffer = io.BytesIO()
    if kind == ".png":
        labelled_sheet([pictures], [""] * len(pictures), [""]).save(buffer, "PNG")
        return buffer.getvalue()
    first, *others = pictures
    milliseconds = round(1000 / fps)
    options = {"save_all": True, "append_images": others, "duration": milliseconds, "loop": 0}
    if kind == ".gif":
        first, *options["append_images"] = [_stencilled(picture) for picture in pictures]
        first.save(buffer, "GIF", disposal=2, **options)
    else:
        first.save(buffer, "WEBP", lossless=True, **options)
    return buffer.getvalue()


def _stencilled(picture: Image.Image) -> Image.Image:
    """A picture as GIF shows it: a pixel is there or not, and what is half there is laid on white.

    Pillow alone makes every pixel visible that is not wholly transparent, the faintest haze too.
    """
    if is_opaque(picture):
        return picture.convert("RGB")
    stencil = picture.getchannel("A").point(lambda value: 255 if value >= 128 else 0)
    clear = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    clear.paste(on_background(picture, GROUND), (0, 0), stencil)
    return clear


def check_film(suffix: str) -> None:
    """Refuse before the painting what `encode_film` would refuse after it.

    Raises:
        InvalidInput: another suffix.
        MissingDependency: .mp4 without imageio and ffmpeg.
    """
    if suffix.lower() not in KINDS:
        raise InvalidInput(
            "film", given=f"the suffix {suffix!r}", expected=f"one of {', '.join(KINDS)}", cure="Name the file so."
        )
    if suffix.lower() == ".mp4" and (find_spec("imageio") is None or find_spec("imageio_ffmpeg") is None):
        raise MissingDependency(
            "mp4", given="no imageio with ffmpeg", expected="both installed", cure="pip install 'gouache[media]'"
        )


def _mp4(pictures: Sequence[Image.Image], fps: float) -> bytes:
    import imageio.v3 as imageio

    frames = [np.asarray(on_background(picture, "white")) for picture in pictures]
    # The usual players want even sides.
    even = [np.pad(f, ((0, f.shape[0] % 2), (0, f.shape[1] % 2), (0, 0)), mode="edge") for f in frames]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        imageio.imwrite(path, np.stack(even), fps=fps, codec="libx264", macro_block_size=1)
        return path.read_bytes()
