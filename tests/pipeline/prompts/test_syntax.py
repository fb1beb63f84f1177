"""The prompt language. The golden cases are the documented examples of A1111's `prompt_parser.py` (doctests there)."""

from __future__ import annotations

import doctest
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gouache.pipeline.prompts.syntax as prompt_module
from gouache.errors import InvalidInput
from gouache.pipeline.prompts.syntax import Branch, PromptSpan, branches, schedule, sections, unmarked
from gouache.pipeline.request import Emphasis


def runs(text: str, rule: Emphasis = "a1111") -> list[tuple[str, float]]:
    (section,) = sections(text, rule)
    return [(run.text, run.weight) for run in section]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
        ("", [("", 1.0)]),
        ("a:b", [("a:b", 1.0)]),
        ("a\\", [("a\\", 1.0)]),
        ("(a:-0.5)", [("a", -0.5)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
    ],
)
def test_emphasis_as_a1111_documents_it(text: str, expected: list[tuple[str, float]]) -> None:
    assert runs(text) == expected


TEN_A_B = tuple((k, "a" if k % 2 else "(b:1.1)") for k in range(1, 11))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", ((10, "test"),)),
        ("a [b:3]", ((3, "a "), (10, "a b"))),
        ("a [b: 3]", ((3, "a "), (10, "a b"))),
        ("a [[[b]]:2]", ((2, "a "), (10, "a [[b]]"))),
        ("[(a:2):3]", ((3, ""), (10, "(a:2)"))),
        ("a [b : c : 1] d", ((1, "a b  d"), (10, "a  c  d"))),
        ("a[b:[c:d:2]:1]e", ((1, "abe"), (2, "ace"), (10, "ade"))),
        ("a [unbalanced", ((10, "a [unbalanced"),)),
        ("a [b:.5] c", ((5, "a  c"), (10, "a b c"))),
        ("a [{b|d{:.5] c", ((5, "a  c"), (10, "a {b|d{ c"))),
        ("((a][:b:c [d:3]", ((3, "((a][:b:c "), (10, "((a][:b:c d"))),
        ("[a|(b:1.1)]", TEN_A_B),
        (r"a \[b:3\]", ((10, r"a \[b:3\]"),)),
        ("[a:b:20]", ((10, "a"),)),
        ("[a:b:0]", ((10, "b"),)),
    ],
)
def test_prompt_editing_as_a1111_documents_it(text: str, expected: tuple[tuple[int, str], ...]) -> None:
    assert schedule(text, 10) == expected


def test_alternation_with_empty_options() -> None:
    words = dict(schedule("[fe|||]male", 10))
    assert [words[k] for k in (1, 4, 5, 8, 9, 10)] == ["female", "male", "female", "male", "female", "male"]


def test_break_starts_a_section_even_inside_brackets() -> None:
    assert sections("(a BREAK b:1.5) c") == (
        (PromptSpan("a", 1.5),),
        (PromptSpan("b", 1.5), PromptSpan(" c", 1.0)),
    )


def test_and_splits_with_weights() -> None:
    assert branches("a cat :1.2 AND a dog AND a penguin :2.2") == (
        Branch("a cat", 1.2),
        Branch(" a dog", 1.0),
        Branch(" a penguin", 2.2),
    )
    assert branches("SAND AND") == (Branch("SAND", 1.0), Branch("", 1.0))


def test_a_ratio_at_the_end_is_not_a_weight() -> None:
    assert branches("a poster, 16:9") == (Branch("a poster, 16:9", 1.0),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("((a) b:2) [c]", [("a", 2.2), (" b", 2.0), (" [c]", 1.0)]),
        ("((a:3):2)", [("a", 3.0)]),
        (r"\(a\) (b", [("(a) (b", 1.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("a BREAK b", [("a BREAK b", 1.0)]),
    ],
)
def test_comfy_sets_weights_from_the_outside_in(text: str, expected: list[tuple[str, float]]) -> None:
    found = runs(text, "comfy")
    assert [word for word, _ in found] == [word for word, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


def test_none_reads_everything_as_text() -> None:
    text = "a ((b:2)) [c|d] AND BREAK"
    assert runs(text, "none") == [(text, 1.0)]
    assert branches(text, "none") == (Branch(text, 1.0),)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab ()[]:|\\.19,AND BREAK"), max_size=40), st.integers(1, 6))
def test_no_prompt_breaks_the_parsers(text: str, steps: int) -> None:
    pieces = schedule(text, steps)
    assert pieces[-1][0] == steps
    assert [step for step, _ in pieces] == sorted({step for step, _ in pieces})
    for rule in ("a1111", "comfy", "none"):
        assert all(run.text or len(section) == 1 for section in sections(text, rule) for run in section)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters="()[]:|\\", codec="utf-8"), max_size=60))
def test_text_without_marks_stays_itself(text: str) -> None:
    if "BREAK" not in text and "AND" not in text:
        assert runs(text) == [(text, 1.0)]
        assert schedule(text, 7) == ((7, text),)


@pytest.mark.parametrize("rule", ["a1111", "comfy"])
def test_deep_nesting_and_huge_weights_are_refused(rule: Emphasis) -> None:
    with pytest.raises(InvalidInput, match="nested"):
        sections("(" * 100 + "a" + ")" * 100, rule)
    with pytest.raises(InvalidInput, match="weight"):
        sections("(a:" + "9" * 400 + ")", rule)


@pytest.mark.parametrize("text", ["[" * 10_000, "[a:" * 5_000, "[a|b]" * 2_000, "(a" * 5_000, "\\" * 9_999])
def test_hostile_prompts_take_no_longer_than_their_length(text: str) -> None:
    start = time.perf_counter()
    schedule(text, 20)
    assert time.perf_counter() - start < 2.0


def test_unmarked_gives_the_words() -> None:
    assert unmarked("a (red:1.2) [cat:dog:0.5] AND a tree") == "a red dog a tree"


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(prompt_module).failed == 0
