"""A font that has the characters of some words, among those on the machine; none is brought along."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
FONT_VARIABLE = "GOUACHE_FONT"
SUFFIXES = (".ttf", ".ttc", ".otf", ".otc")
WIDE_NAMES = (
    "cjk", "wqy", "sourcehan", "droidsansfallback", "pingfang", "hiragino", "stheiti", "songti", "heiti", "msyh",
    "msgothic", "yugoth", "meiryo", "malgun", "simsun", "simhei", "deng", "uming", "ukai", "nanum", "ipag", "unifont",
    "arialuni",
)  # fmt: skip
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
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), data / "fonts", home / ".fonts"]


def _fonts(size: int, folders: Sequence[Path]) -> Iterator[Font]:
    chosen = os.environ.get(FONT_VARIABLE)
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
