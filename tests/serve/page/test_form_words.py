"""The forms' words: a name and an explanation of every field, choice and error, in English and in Chinese."""

from __future__ import annotations

import re

import pytest

import gouache.serve.server  # noqa: F401  Every error that the interface can answer with is defined somewhere below it.
from gouache.errors import GouacheError
from gouache.serve.api.request_fields import PAGE_GROUPS, describe, flattened
from gouache.serve.page.files import STATIC, current

FIELDS = list(flattened(describe().fields))
CHINESE = re.compile(r"[\u4e00-\u9fff]")
PROPER = re.compile(r"^[\w .+/()-]*$", re.ASCII)
"""Names that are the same in Chinese."""


def key_of(path: str) -> str:
    return path.replace("[]", "")


def kinds_below(kind: type[GouacheError]) -> list[type[GouacheError]]:
    return [kind, *(found for narrower in kind.__subclasses__() for found in kinds_below(narrower))]


def check(key: str) -> None:
    words = current().words.get(key)
    assert words is not None, f"no words for {key}"
    assert words["en"].strip(), key
    assert not CHINESE.search(words["en"]), key
    assert words["zh"].strip(), key


@pytest.mark.parametrize("path", [field.path for field in FIELDS])
def test_a_field_has_a_name_and_an_explanation_in_both_languages(path: str) -> None:
    check(f"field.{key_of(path)}")
    check(f"field.{key_of(path)}.help")
    assert CHINESE.search(current().words[f"field.{key_of(path)}.help"]["zh"])
    label = current().words[f"field.{key_of(path)}"]["zh"]
    assert CHINESE.search(label) or PROPER.match(label)


def test_every_choice_without_a_proper_name_is_put_in_words() -> None:
    wanted = [f"choice.{key_of(field.path)}.{one.value}" for field in FIELDS for one in field.choices if not one.label]
    assert len(wanted) > 50
    for key in wanted:
        check(key)


def test_every_group_and_every_kind_of_list_has_a_title() -> None:
    for name in (*PAGE_GROUPS, "more"):
        check(f"group.{name}")
    for field in FIELDS:
        if field.kind == "groups":
            check(f"item.{field.path}")


@pytest.mark.parametrize("kind", sorted({kind.__name__ for kind in kinds_below(GouacheError)}))
def test_every_error_that_the_server_can_answer_has_a_sentence_in_both_languages(kind: str) -> None:
    key = f"error.kind.{kind}"
    check(key)
    words = current().words[key]
    assert words["en"].endswith(".")
    assert words["zh"].endswith("。")
    assert CHINESE.search(words["zh"])


@pytest.mark.parametrize("status", [401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 500, 501, 502, 503, 504])
def test_a_refusal_without_a_kind_has_a_sentence_by_its_status(status: int) -> None:
    check(f"error.status.{status}")


def test_no_words_are_left_over_for_fields_that_are_gone() -> None:
    known = {key_of(field.path) for field in FIELDS}
    choices = {f"{key_of(field.path)}.{one.value}" for field in FIELDS for one in field.choices}
    choices |= {f"background.{name}" for name in ("transparent", "opaque", "surroundings", "white", "black")}
    kinds = {kind.__name__ for kind in kinds_below(GouacheError)}
    for key in current().words:
        start, _, rest = key.partition(".")
        if start == "field":
            assert rest.removesuffix(".help") in known, key
        elif start == "choice":
            assert rest in choices, key
        elif key.startswith("error.kind."):
            assert key.removeprefix("error.kind.") in kinds, key


def test_the_forms_say_nothing_without_words() -> None:
    words = current().words
    for name in ("form.js", "fields.js", "inputs.js"):
        text = (STATIC / "ui" / name).read_text(encoding="utf-8")
        for key in re.findall(r'(?<![\w.])"((?:form|error|rule|group|item|none)\.[a-z_.]+)"', text):
            whole = f"error.{key}" if key.startswith("rule.") else key
            assert whole in words, f"{name}: {key}"


def test_a_sentence_has_the_same_places_for_values_in_both_languages() -> None:
    for key, words in current().words.items():
        if key.startswith(("form.", "error.")):
            english = set(re.findall(r"\{(\w+)\}", words["en"]))
            assert set(re.findall(r"\{(\w+)\}", words["zh"])) <= english, key
