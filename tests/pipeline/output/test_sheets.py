"""Fonts for sheets: what a font lacks is known, and left out rather than drawn as boxes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from gouache.pipeline.output import sheets
from gouache.pipeline.output import sheets as fonts
from gouache.pipeline.output.sheets import captioned_sheet, font_folders, labelled_sheet, lacking, left_out, lettering

LATIN, CHINESE = "a red apple, 3d: 100 % <x> {y} [z]", "红苹果"


def with_chinese() -> Path:
    """A font of this machine that has the characters."""
    for folder in font_folders():
        for path in sorted(folder.rglob("*.tt[cf]")):
            if not lacking(ImageFont.truetype(path, 12), CHINESE):
                return path
    pytest.skip("this machine has no font with Chinese characters")


def test_pillows_own_font_knows_plain_latin_only() -> None:
    font = ImageFont.load_default(12)
    assert lacking(font, LATIN) == ""
    assert lacking(font, "a红b果é") == "红果é"


def test_latin_words_stay_in_pillows_own_font() -> None:
    found = lettering([LATIN], 12)
    assert isinstance(found.font, ImageFont.FreeTypeFont)
    own = ImageFont.load_default(12)
    assert isinstance(own, ImageFont.FreeTypeFont)
    assert (found.font.getname(), found.missing) == (own.getname(), "")


def test_a_font_with_the_characters_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_chinese()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "broken.ttf").write_bytes(b"no font")
    assert lettering([LATIN, CHINESE], 12, [tmp_path]).missing == "".join(sorted(CHINESE))
    shutil.copy(path, tmp_path / "deep" / path.name)
    found = lettering([CHINESE], 12, [tmp_path])
    assert found.missing == ""
    assert found.drawable(CHINESE) == CHINESE
    monkeypatch.setenv("GOUACHE_FONT", str(path))
    assert lettering([CHINESE], 12, []).missing == ""


def test_without_such_a_font_the_characters_are_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "font_folders", list)
    monkeypatch.delenv("GOUACHE_FONT", raising=False)
    assert left_out(["a红", "果 b"]) == "".join(sorted("红果"))
    picture = Image.new("RGB", (48, 20), "blue")
    assert captioned_sheet([picture], ["a红b"]).tobytes() == captioned_sheet([picture], ["ab"]).tobytes()
    one, other = (labelled_sheet([[picture]], [f"x{word}"], [word], title=word) for word in ("红", ""))
    assert np.asarray(one).shape[0] >= np.asarray(other).shape[0]
    assert (np.asarray(one)[-20:] == np.asarray(other)[-20:]).all()


def test_chinese_captions_are_drawn_and_broken_between_characters() -> None:
    with_chinese()
    picture = Image.new("RGB", (60, 20), "blue")
    sheet, blank = (np.asarray(captioned_sheet([picture], [words])) for words in ("红苹果红苹果红苹果", ""))
    changed = (sheet != blank).any(-1).any(1)
    assert changed.sum() > 12, "two lines of words"


def test_lines_break_at_blanks_and_between_han_characters() -> None:
    assert sheets._words("a  red\napple") == ["a", " red", " apple"]
    assert sheets._words("红苹 果3d ok") == ["红", "苹", " 果", "3d", " ok"]
    assert sheets._words("红，苹3d。 ok！！") == ["红，", "苹", "3d。", " ok！！"]
    assert sheets._words("") == []
