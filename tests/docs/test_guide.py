"""The guide's two languages say the same with the same cells, and each formula names the code that computes it."""

from __future__ import annotations

import importlib
import re
from itertools import zip_longest
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
PAGES = sorted(page.name for page in (GUIDE / "en").glob("[0-9]*.md"))
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"^\$\$\n(.*?)^\$\$", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r"\{py:\w+\}`(?:[^`<]*<)?~?([\w.]+)>?`")
ALL_FORMULAS = 40
"""As many formulas as the guide links to code, at the least."""


def text_of(language: str, page: str) -> str:
    return (GUIDE / language / page).read_text(encoding="utf-8")


def named(reference: str) -> object:
    """The object behind a dotted name, or an error that says which part is not there."""
    parts = reference.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            annotations = getattr(found, "__annotations__", {})
            found = annotations[part] if part in annotations and not hasattr(found, part) else getattr(found, part)
        return found
    raise ModuleNotFoundError(reference)


def formulas(page: str) -> list[tuple[str, list[str]]]:
    """Each displayed formula of an English page with the references in the two paragraphs behind it."""
    text = CELL.sub("", text_of("en", page))
    found = []
    for match in FORMULA.finditer(text):
        behind = re.split(r"^\$\$\n|^#+ ", text[match.end() :], maxsplit=1, flags=re.MULTILINE)[0]
        paragraphs = behind.strip().split("\n\n")
        found.append((match[1].strip(), ROLE.findall(" ".join(paragraphs[:2]))))
    return found


def test_both_languages_have_the_same_pages() -> None:
    assert PAGES
    assert sorted(page.name for page in (GUIDE / "zh").glob("[0-9]*.md")) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_both_languages_share_their_cells_and_formulas(page: str) -> None:
    english, chinese = CELL.findall(text_of("en", page)), CELL.findall(text_of("zh", page))
    for number, (one, other) in enumerate(zip_longest(english, chinese, fillvalue="(no cell)"), start=1):
        assert one == other, f"cell {number} of {page} differs between en and zh"
    both = [[re.sub(r"\s", "", one) for one in FORMULA.findall(text_of(language, page))] for language in ("en", "zh")]
    assert both[0] == both[1], f"the formulas of {page} differ between en and zh"


@pytest.mark.parametrize("page", PAGES)
def test_chinese_pages_name_the_same_code(page: str) -> None:
    assert set(ROLE.findall(text_of("en", page))) == set(ROLE.findall(text_of("zh", page)))


@pytest.mark.parametrize("page", PAGES)
def test_each_formula_names_code_that_exists(page: str) -> None:
    for formula, references in formulas(page):
        assert references, f"{page}: no function is named beside the formula\n{formula}"
    for reference in ROLE.findall(text_of("en", page)):
        assert named(reference) is not None, reference


def test_formulas_are_many() -> None:
    assert sum(len(formulas(page)) for page in PAGES) >= ALL_FORMULAS
