"""The reference made for the site names every module, command, option and key; none of it is listed by hand."""

from __future__ import annotations

import ast
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "docs" / "_ext"


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports one of the generator's modules."""
    monkeypatch.syspath_prepend(str(EXTENSION))
    yield import_module
    for file in EXTENSION.glob("*.py"):
        sys.modules.pop(file.stem, None)


def test_every_module_has_its_section(generator: Any) -> None:
    text = "\n".join(generator("api_pages").pages().values()) + "\n"
    source = ROOT / "src" / "gouache"
    for file in source.rglob("*.py"):
        parts = file.relative_to(source).with_suffix("").parts
        if "versions" in parts or any(part.startswith("_") for part in parts):
            continue
        assert f"automodule:: gouache.{'.'.join(parts)}\n" in text, file


def test_every_command_and_option_appears(generator: Any) -> None:
    from gouache.cli.main import LazyGroup, load_command

    pages = generator("command_pages").pages()
    assert set(pages) == {"index", *LazyGroup.homes}
    for name, (home, _) in LazyGroup.homes.items():
        command: Any = load_command(name, home)
        for one in (command, *getattr(command, "commands", {}).values()):
            for param in one.params:
                if param.param_type_name == "option" and not param.hidden and "completion" not in param.name:
                    assert all(f"``{flag}``" in pages[name] for flag in param.opts), (name, param.name)


def test_examples_of_a_command_are_blocks(generator: Any) -> None:
    assert ".. code-block:: text\n\n   gouache paint" in generator("command_pages").pages()["paint"]


def test_every_key_of_a_training_and_of_the_server_appears(generator: Any) -> None:
    from gouache.serve.settings import Limits, Settings
    from gouache.training.config import TrainConfig, stage_tables
    from gouache.training.loop_config import StageConfig

    pages = generator("setting_pages").pages()
    for table in stage_tables():
        assert f"``[{table}]``" in pages["training"]
    for key in (*TrainConfig.model_fields, *StageConfig.model_fields):
        assert f"``{key}``" in pages["training"], key
    for key in (*Settings.model_fields, *Limits.model_fields):
        assert f"``{key}``" in pages["server"], key


def cells(page: str) -> list[tuple[str, ...]]:
    """The rows of a page's tables."""
    rows = re.findall(r"^   \* - .*(?:\n     -.*)*", page, flags=re.MULTILINE)
    return [tuple(re.split(r"\n     -", row.removeprefix("   * -"))) for row in rows]


@pytest.mark.parametrize("kind", ["setting_pages", "command_pages"])
def test_no_cell_of_a_table_is_empty(generator: Any, kind: str) -> None:
    for name, page in generator(kind).pages().items():
        for row in cells(page):
            assert all(cell.strip() for cell in row), (name, row)


def test_defaults_of_a_request_stand_in_their_column(generator: Any) -> None:
    rows = {row[0].strip(): row[2].strip() for row in cells(generator("command_pages").pages()["edit"])}
    assert rows["``--count``, ``-n``"] == "1"
    assert rows["``--num-inference-steps``, ``--steps``, ``-s``"] == "the model's"
    assert [value for name, value in rows.items() if "``--preserve``" in name] == ["on"]
    assert rows["``--strength``"] == "0.75; outpainting 1"
    assert rows["``--model``, ``-m``"] == "the model shipped with gouache"


OTHERS = {"LOCALAPPDATA", "WINDIR", "JPY_PARENT_PID", "FSDP_VERSION"}
"""Variables of Windows, Jupyter and accelerate: their programs set them, nobody does so for gouache."""


def is_environment(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "environ"


def test_every_environment_variable_that_is_read_has_its_row(generator: Any) -> None:
    from gouache.environment import Variable

    page = generator("setting_pages").environment()
    for one in Variable:
        assert f"``{one}``" in page
        assert one.does
        assert one.values
        assert one.otherwise
    for file in (ROOT / "src" / "gouache").rglob("*.py"):
        if file.name == "environment.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            key: ast.AST | None = None
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                key = node.args[0] if node.func.attr == "get" and is_environment(node.func.value) else None
                assert node.func.attr != "getenv", file
            elif isinstance(node, ast.Subscript) and is_environment(node.value):
                key = node.slice
            elif isinstance(node, ast.Compare) and is_environment(node.comparators[0]):
                key = node.left
            elif isinstance(node, ast.Constant) and re.fullmatch(r"(GOUACHE|HF|RAY|XDG)_[A-Z_]+", str(node.value)):
                key = node if str(node.value) in set(Variable) else None
            if isinstance(key, ast.Constant):
                assert key.value in OTHERS, f"{file}: say Variable.{key.value!r}, and what it means in environment.py"


def test_every_environment_variable_is_read_somewhere(generator: Any) -> None:
    from gouache.environment import Variable

    assert set(generator("setting_pages").readers()) == {one.name for one in Variable}


def test_only_code_between_backticks_is_markup_in_docstrings(generator: Any) -> None:
    plain = generator("api_pages").plain
    assert plain("x * y | `a*b`, x_") == r"x \* y \| `a*b`, x\_"


@pytest.mark.parametrize(
    ("value", "on", "off"), [("", False, False), (" ", False, False), ("False", False, True), ("0", False, True)]
)
def test_words_that_say_no(monkeypatch: pytest.MonkeyPatch, value: str, on: bool, off: bool) -> None:
    from gouache.environment import Variable

    monkeypatch.setenv("GOUACHE_OFFLINE", value)
    assert (Variable.OFFLINE.is_on, Variable.OFFLINE.is_off) == (on, off)
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")
    assert Variable.OFFLINE.is_on


def test_chinese_is_found_by_pairs_of_characters(generator: Any) -> None:
    pytest.importorskip("sphinx")
    pieces = generator("chinese_search").pieces
    assert pieces("采样器v2") == ["采", "样", "器", "采样", "样器", "v2"]
    assert pieces("U") == ["U"]


def test_what_the_theme_navigates_by_has_titles_and_lists_of_pages_alone(generator: Any) -> None:
    pytest.importorskip("sphinx")
    from docutils import nodes
    from sphinx.addnodes import toctree

    def entry(title: str, *inner: nodes.Node) -> nodes.list_item:
        lists = [nodes.bullet_list("", *inner)] if inner else []
        return nodes.list_item("", nodes.paragraph("", title), *lists)

    whole = nodes.bullet_list("", entry("page", entry("section", entry("class")), toctree(entries=[("", "other")])))
    titles = generator("faster").titles_of(whole)
    assert [text.astext() for text in titles.findall(nodes.Text)] == ["page"]
    assert [one["entries"] for one in titles.findall(toctree)] == [[("", "other")]]
    assert "section" in whole.astext()
    assert (
        "section" not in generator("faster").titles_of(nodes.bullet_list("", entry("page", entry("section")))).astext()
    )
