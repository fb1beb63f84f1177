"""Many requests from one: files of prompts, matrices, choices, wildcards, tables."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gouache.errors import ConfigError, GouacheError, InvalidInput
from gouache.pipeline import batch
from gouache.pipeline.batch import choose, matrix, read_axis, read_prompts, requests_of, table, with_value
from gouache.pipeline.request import Mask, Request


def test_prompts_come_from_lines_and_from_objects(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text('a cat\n\n# no\n{"prompt": "a dog", "seed": 7}\n{red|blue} car\n', encoding="utf-8")
    values = read_prompts(path)
    assert values == [{"prompt": "a cat"}, {"prompt": "a dog", "seed": 7}, {"prompt": "{red|blue} car"}]
    requests = requests_of({"seed": 1}, values)
    assert [request.seed for request in requests] == [1, 7, 1]
    path.write_text("\n# nothing\n")
    with pytest.raises(InvalidInput, match="no prompts"):
        read_prompts(path)
    path.write_text('{"prompt": ')
    with pytest.raises(InvalidInput, match=r"prompts\.txt:1"):
        read_prompts(path)
    with pytest.raises(GouacheError, match="absent"):
        read_prompts(tmp_path / "absent.txt")


def test_a_matrix_has_every_selection() -> None:
    assert len(matrix("a|b|c|d")) == 8
    assert matrix("plain") == ["plain"]
    with pytest.raises(InvalidInput, match="parts"):
        matrix("|".join("abcdefghijk"))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.text(st.sampled_from("ab {}|_"), max_size=30))
def test_choices_are_the_same_for_the_same_seed(seed: int, text: str) -> None:
    try:
        first = choose(text, seed)
    except InvalidInput:
        return
    assert first == choose(text, seed)


def test_choices_nest_and_all_come_up(tmp_path: Path) -> None:
    (tmp_path / "colour.txt").write_text("red\nblue\n# no\n")
    seen = {choose("a {big|{tiny|small}} __colour__ car", seed, tmp_path) for seed in range(100)}
    assert seen == {f"a {size} {colour} car" for size in ("big", "tiny", "small") for colour in ("red", "blue")}


def test_wildcards_stay_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "cards"
    folder.mkdir()
    (folder / "empty.txt").write_text("")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    for name in ("absent", "empty", "link"):
        with pytest.raises(InvalidInput):
            choose(f"__{name}__", 1, folder)
    with pytest.raises(InvalidInput, match="--wildcards"):
        choose("__colour__", 1)


def test_a_wildcard_that_names_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "loop.txt").write_text("a __loop__ a")
    assert "__loop__" in choose("__loop__", 1, tmp_path)


def test_fields_are_set_from_text() -> None:
    base = Request(prompt="a cat", init_image="a.png", mask=Mask(blur=3))
    assert with_value(base, "num_inference_steps", "7").num_inference_steps == 7
    assert with_value(base, "sampler", "DPM++ 2M").sampler == "DPM++ 2M"
    changed = with_value(base, "mask.padding", "9").mask
    assert changed is not None
    assert (changed.padding, changed.blur) == (9, 3)
    assert with_value(base, "prompt", "cat>dog").prompt == "a dog"
    assert with_value(base, "prompt", "a bird").prompt == "a bird"
    with pytest.raises(ConfigError, match="guidance_scale"):
        with_value(base, "guidance_scal", "7")
    with pytest.raises(ConfigError, match="seed"):
        with_value(base, "seed", "many")


def test_a_table_has_every_combination() -> None:
    cells = table(Request(prompt="a"), [read_axis("seed=1,2"), read_axis("num-inference-steps=3,4,5")])
    assert [values for values, _ in cells][:3] == [("1", "3"), ("1", "4"), ("1", "5")]
    assert [(one.seed, one.num_inference_steps) for _, one in cells][-1] == (2, 5)
    with pytest.raises(InvalidInput, match="grid"):
        table(Request(), [read_axis("seed=" + ",".join(map(str, range(300))))])


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(batch).failed == 0
