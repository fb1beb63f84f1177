"""Text of captions from files of any program: which encoding its bytes are in, decided by rules or refused.

A byte order mark decides; else UTF-8, if the bytes are valid UTF-8; else the one legacy encoding in which they are
plausible text. Where several are plausible and give different text, nothing is guessed.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gouache.errors import DataError

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LEGACY = ("gb18030", "big5", "cp932", "euc_jp", "euc_kr", "cp1252", "cp1251", "koi8_r", "cp1250", "cp1254")
LATIN_MARKS = frozenset("‘’“”–—…€™®©°·«»¿¡×£§½¼¾²³\xa0„‚•´")
_MISPLACED = re.compile(r"[^\W\d_](?:[„‚“«¡¿‘]|[”€™®©°»£§½¼¾²³\xa0•´][^\W\d_])")
"""Signs where no writer puts them: opening ones behind a letter, others between two."""
_NOT_WESTERN = re.compile(r"\bè\w|ì\w")
_HIGH = re.compile(r"[^\x00-\x7f]+")
_TIGHT = re.compile(r"[a-z]([^\x00-\x7f]+)|([^\x00-\x7f]+)[a-z]")
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class Decoded:
    """A text, and the encoding that it was in."""

    text: str
    encoding: str

    @property
    def is_legacy(self) -> bool:
        """Whether the encoding was concluded from the text, rather than marked or valid UTF-8."""
        return self.encoding in LEGACY


def decode_text(data: bytes, where: str, encoding: str | None = None, *, among: Iterable[str] = LEGACY) -> Decoded:
    """Decode a text file; nothing is replaced.

    Args:
        data: its bytes.
        where: its name, for the error.
        encoding: what the user says it is in; None decides.
        among: legacy encodings that come into question.

    Raises:
        DataError: it isn't valid in the given encoding, or which encoding it is in can't be decided.
    """
    if encoding is not None:
        return Decoded(_strictly(data, known_encoding(encoding), where).removeprefix("\ufeff"), encoding)
    for mark, name in MARKS:
        if data.startswith(mark):
            return Decoded(_strictly(data, name, where), name)
    if b"\0" in data:
        return Decoded(_strictly(data, _unmarked_utf16(data, where), where), "utf-16")
    unicode = _as_utf8(data)
    if unicode is not None and not _is_mixed(unicode):
        return Decoded(unicode, "utf-8")
    found = plausible(data, among)
    if unicode is not None and not found:
        return Decoded(unicode, "utf-8")
    if len(found) != 1:
        tried = ", ".join(("utf-8", "utf-16", *LEGACY))
        given = f"text that may be {' or '.join(found)}" if found else f"text in none of {tried}"
        raise DataError(
            where,
            given=given,
            expected="UTF-8, or an encoding that can be told from the text",
            cure="Name it (--encoding gbk, cp1252 ...), or save the file as UTF-8.",
        )
    return Decoded(data.decode(found[0]), found[0])


def _as_utf8(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _is_mixed(text: str) -> bool:
    """Whether words mix scripts as no language does: a few Chinese words in GBK are valid UTF-8 by chance."""
    if any(one > "\u07ff" for one in text):
        return False  # three valid bytes in a row are no chance
    for match in _HIGH.finditer(text):
        scripts = {unicodedata.name(one, "?").split()[0] for one in match[0] if one.isalpha()}
        before = text[: match.start()][-1:]
        if len(scripts) > 1 or (unicodedata.combining(match[0][0]) and not before.isalpha()):
            return True
    return False


def known_encoding(name: str) -> str:
    """Check an encoding's name.

    Raises:
        DataError: Python knows no such text encoding.
    """
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except (LookupError, ValueError, TypeError) as error:
        cure = "For example utf-8, gbk, big5, cp1252."
        raise DataError("encoding", given=repr(name)[:80], expected="a text encoding", cure=cure) from error


def plausible(data: bytes, among: Iterable[str] = LEGACY) -> list[str]:
    """The legacy encodings in which the bytes are plausible text, one for each different text."""
    texts: dict[str, str] = {}
    for name in among:
        try:
            text = data.decode(name)
        except UnicodeDecodeError:
            continue
        if _is_text(text) and _RULES[name](text):
            texts.setdefault(text, name)
    found = {name: text for text, name in texts.items()}
    if {"cp1251", "koi8_r"} <= found.keys():
        found.pop(_less_russian(found["cp1251"], found["koi8_r"]), None)
    return _without_chance(data, list(found)) if "cp1252" in found else list(found)


def _less_russian(cp1251: str, koi8_r: str) -> str:
    """The one of two with far fewer of the letters that Russian is mostly made of; "" where it's close."""

    def share(text: str) -> float:
        letters = [one for one in text.lower() if "\u0400" <= one <= "\u04ff"]
        return sum(one in "оеаинтсрв" for one in letters) / max(1, len(letters))

    difference = share(cp1251) - share(koi8_r)
    return "" if abs(difference) < 0.15 else "koi8_r" if difference > 0 else "cp1251"


def _without_chance(data: bytes, found: list[str]) -> list[str]:
    """Western text beside others: letters within or at the end of Latin words are no ideographs by chance."""
    touching = all(re.search(r"[A-Za-z]", _around(data, match)) for match in re.finditer(rb"[\x80-\xff]+", data))
    others = [name for name in found if name not in ("cp1252", "cp1250")]
    # Central European letters where Western ones do as well: Western is what programs without Unicode wrote most.
    return ["cp1252"] if (touching and "cp1254" not in found) or not others else found


def _around(data: bytes, match: re.Match[bytes]) -> str:
    before, after = data[max(0, match.start() - 1) : match.start()], data[match.end() : match.end() + 1]
    return (before + after).decode("ascii", errors="replace")


def _strictly(data: bytes, encoding: str, where: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeError as error:
        reason = f"bytes that are no {encoding}: {getattr(error, 'reason', error)}"
        cure = "Name the encoding (--encoding), or save the file as UTF-8."
        raise DataError(where, given=reason, expected=f"text in {encoding}", cure=cure) from error


def _unmarked_utf16(data: bytes, where: str) -> str:
    """UTF-16 without a mark shows by zeros on one side of its pairs: every blank and line end has one."""
    even, odd = data[0::2].count(0), data[1::2].count(0)
    if len(data) % 2 == 0 and (even > 2 * odd or odd > 2 * even):
        return "utf-16-be" if even > odd else "utf-16-le"
    cure = "Save the file as UTF-8."
    raise DataError(where, given="zero bytes", expected="text; UTF-8 or UTF-16", cure=cure)


def _is_text(text: str) -> bool:
    kinds = (unicodedata.category(one) for one in text if one not in "\t\n\r\f\ufeff")
    return all(kind not in ("Cc", "Cn", "Co", "Cs") for kind in kinds)


def _share(text: str, belongs: Callable[[str], bool]) -> float:
    high = [one for one in text if one > "\x7f"]
    return sum(map(belongs, high)) / max(1, len(high))


def _has_kana(text: str) -> bool:
    return any("\u3041" <= one <= "\u30fe" and one != "\u30fb" for one in text)


def _in(encoding: str, rows: range) -> Callable[[str], bool]:
    """Whether a character lies in these rows, the common ones, of a two-byte set."""

    def belongs(one: str) -> bool:
        try:
            code = one.encode(encoding)
        except UnicodeEncodeError:
            return False
        return len(code) == 2 and code[0] in rows

    return belongs


def _is_inside_words(text: str) -> bool:
    """Whether all that isn't ASCII is one or two characters at a small Latin letter: an accent, no ideograph."""
    tight = [one or other for one, other in _TIGHT.findall(text)]
    return len(tight) == len(_HIGH.findall(text)) and all(len(run) <= 2 for run in tight)


def _is_chinese(text: str) -> bool:
    """Simplified Chinese: nearly all of GB 2312, mostly of its frequent characters, and no kana."""
    if _has_kana(text) or _is_inside_words(text):
        return False
    frequent = _share(text, _in("gb2312", range(0xA1, 0xD8)))
    return frequent >= 0.75 and _share(text, _in("gb2312", range(0xA1, 0xF8))) >= 0.9


def _is_traditional(text: str) -> bool:
    """Traditional Chinese: nearly all of Big5's frequent characters and signs."""
    if _has_kana(text) or _is_inside_words(text):
        return False
    return _share(text, _in("big5", range(0xA1, 0xC7))) >= 0.9


def _is_japanese(text: str) -> bool:
    halves = sum("\uff61" <= one <= "\uff9f" for one in text)
    return _has_kana(text) and not halves and _share(text, _in("cp932", range(0x81, 0xF0))) >= 0.95


_SYLLABLES = frozenset(
    "이가은는을를의에고다한하지기도로나사리자인스라아대어서해시정그일제수전만과와으있들상보성구부원여장주게조"
    "안소무비공동유관진신치모세국면경거간물방중트마람오야위파노란빨초록색집꽃양개강산바늘운두"
)


def _is_korean(text: str) -> bool:
    """Hangul, unless a long run of it has none of the syllables that Korean is mostly made of."""
    if _is_inside_words(text) or _share(text, lambda one: one in "、。《》" or "\uac00" <= one <= "\ud7a3") < 0.95:
        return False
    return all(len(run) < 3 or _SYLLABLES & set(run) for run in _HIGH.findall(text))


def _is_cased(word: str) -> bool:
    return word == word.lower() or word == word.upper() or word[1:] == word[1:].lower()


def _is_latin(text: str) -> bool:
    """Words of Latin letters in usual case, few of them accented side by side, and typographic signs."""
    if any(len(run) > 2 and any(one.isalpha() for one in run) for run in _HIGH.findall(text)):
        return False
    if _MISPLACED.search(text):
        return False
    if not all(_is_cased(word) for word in _WORD.findall(text)):
        return False
    return all(one in LATIN_MARKS or one.isalpha() for one in text if one > "\x7f")


def _is_cyrillic(text: str) -> bool:
    """Words all Cyrillic or all Latin, in usual case and not all large, one of them of three letters or more."""
    words = [word for word in _WORD.findall(text) if word > "\x7f"]
    if (
        _MISPLACED.search(text)
        or any(word[0] in "ъьыЪЬЫ" for word in words)
        or not any(len(word) > 2 for word in words)
    ):
        return False
    if text == text.upper() or not all(
        _is_cased(word) and all("\u0400" <= one <= "\u04ff" for one in word) for word in words
    ):
        return False
    return all(one in LATIN_MARKS or one == "№" or one.isalpha() for one in text if one > "\x7f")


_RULES: dict[str, Callable[[str], bool]] = {
    "gb18030": _is_chinese,
    "big5": _is_traditional,
    "cp932": _is_japanese,
    "euc_jp": _is_japanese,
    "euc_kr": _is_korean,
    "cp1252": lambda text: _is_latin(text) and not _NOT_WESTERN.search(text),
    "cp1251": _is_cyrillic,
    "koi8_r": _is_cyrillic,
    "cp1250": _is_latin,
    "cp1254": _is_latin,
}
