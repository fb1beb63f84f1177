"""A1111's `parameters` text. `sd_parsers` is the outside judge of what we write."""

from __future__ import annotations

import io
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from sd_parsers import ParserManager

from gouache.errors import RecipeError
from gouache.pipeline.output.infotext import Infotext, format_infotext, is_lossless, parse_infotext, require_values

WORDS = st.text(st.characters(codec="utf-8"), max_size=80)
KEYS = st.text(st.sampled_from("abcXYZ0 -/"), min_size=2, max_size=12)
VALUES = {"Steps": "20", "Sampler": "Euler a", "CFG scale": "7.5", "Seed": "5", "Size": "512x512"}


@settings(max_examples=400, deadline=None)
@given(WORDS, WORDS, st.dictionaries(KEYS, WORDS, max_size=4))
def test_what_is_written_is_read_wherever_the_grammar_can_carry_it(
    prompt: str, negative: str, more: dict[str, str]
) -> None:
    info = Infotext(prompt, negative, {**VALUES, **more})
    if is_lossless(info):
        assert parse_infotext(format_infotext(info)) == info


@settings(max_examples=400, deadline=None)
@given(st.text(st.sampled_from('ab:, "\\\n') | st.characters(codec="utf-8"), max_size=80))
def test_no_text_breaks_the_reader(text: str) -> None:
    parse_infotext(text)


@pytest.mark.parametrize(
    ("info", "lossless"),
    [
        (Infotext("a", "b", VALUES), True),
        (Infotext(" a", "", VALUES), False),
        (Infotext("a\nNegative prompt: b", "", VALUES), False),
        (Infotext("a", "", {"Steps": "1"}), False),
        (Infotext("line\nline", "no\nno", VALUES), True),
        (Infotext("x: 1, y: 2, zz: 3", "", VALUES), True),
    ],
)
def test_known_ambiguities(info: Infotext, lossless: bool) -> None:
    assert is_lossless(info) is lossless
    assert (parse_infotext(format_infotext(info)) == info) is lossless


def test_a_text_as_a1111_writes_it() -> None:
    text = (
        "a (red:1.2) cat\nsitting\nNegative prompt: blurry, bad\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234, Size: 512x768, "
        'Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Lora hashes: "a: 12ab, b: 34cd", Version: v1.10.1'
    )
    info = parse_infotext(text)
    assert info.prompt == "a (red:1.2) cat\nsitting"
    assert info.negative_prompt == "blurry, bad"
    assert info.values["Lora hashes"] == "a: 12ab, b: 34cd"
    assert list(info.values)[:3] == ["Steps", "Sampler", "Schedule type"]
    assert format_infotext(info) == text


def test_few_pairs_are_prompt() -> None:
    assert parse_infotext("a cat\nstyle: oil, light: soft").prompt == "a cat\nstyle: oil, light: soft"
    with pytest.raises(RecipeError, match="Steps"):
        require_values(parse_infotext("a cat"), "picture.png")


def test_a_long_line_of_nothing_is_read_in_its_length() -> None:
    start = time.perf_counter()
    parse_infotext("x" * 200_000)
    parse_infotext("a " * 100_000)
    parse_infotext('ab: "' + "\\" * 100_000)
    assert time.perf_counter() - start < 2.0


@settings(max_examples=30, deadline=None)
@given(st.text(st.sampled_from("abc (),.:1é漢\n"), min_size=1, max_size=60), st.integers(0, 2**32 - 1))
def test_another_reader_agrees(prompt: str, seed: int) -> None:
    info = Infotext(prompt, "bad, worse", {**VALUES, "Seed": str(seed), "Model": "tiny"})
    if not is_lossless(info):
        return
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("parameters", format_infotext(info))
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunk)
    file.seek(0)
    found = ParserManager().parse(file)
    assert found is not None
    (sampler,) = found.samplers
    assert [text.value for text in sampler.prompts] == [prompt]
    assert [text.value for text in sampler.negative_prompts] == ["bad, worse"]
    assert sampler.name == "Euler a"
    assert sampler.parameters["seed"] == str(seed)
    assert sampler.parameters["steps"] == "20"
    assert found.metadata["Size"] == "512x512"
