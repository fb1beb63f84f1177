"""What CONTRIBUTING and docs/architecture.md say about files and functions is so."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gouache"
PAGES = (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md")
CHECKLISTS = ("a sampler", "a request option", "a family", "a stage", "an API route")

CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w.*-]+(?:/[\w.*-]+)*(?:\.(?:py|md|toml|txt|json)|/)")
NAMED = re.compile(r"`([\w./-]+\.py)`: (`[\w.]+`(?:(?:, | and )`[\w.]+`)*)")
ITEM = re.compile(r"^- \[ \] (\**)`([^`]+)`", re.MULTILINE)
GREP = re.compile(r"`git grep -l(w?)E? '?([^`']+?)'? -- ([^`]+)`")


def sections(page: Path) -> dict[str, str]:
    """Heading of the second level -> the text below it."""
    parts = re.split(r"^## (.+)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def found(path: str) -> list[Path]:
    """Files and folders of this name, from the project's root or the package's, `*` allowed."""
    return [place for base in (ROOT, SOURCE) for place in base.glob(path.rstrip("/"))]


@cache
def defined(path: Path) -> frozenset[str]:
    """Functions, classes and constants at the top of a module, and the methods as Class.method."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
            names |= {f"{node.name}.{one.name}" for one in inner}
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = {code for code in CODE.findall(text) if PATH.fullmatch(code)}
    assert len(named) > 20
    assert not sorted(name for name in named if not found(name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_function_that_a_page_names_is_in_its_file(page: Path) -> None:
    missing = []
    for path, functions in NAMED.findall(page.read_text(encoding="utf-8")):
        files = found(path)
        missing += [
            f"{path}: {name}" for name in CODE.findall(functions) if not any(name in defined(file) for file in files)
        ]
    assert not missing


def test_the_walks_of_the_architecture_page_name_functions() -> None:
    walks = {name: len(NAMED.findall(text)) for name, text in sections(PAGES[1]).items() if name.startswith("Follow")}
    assert len(walks) == 3
    assert all(stops >= 8 for stops in walks.values()), walks


@pytest.mark.parametrize("what", CHECKLISTS)
def test_a_checklist_names_files_that_are_there(what: str) -> None:
    items = ITEM.findall(sections(PAGES[0])[f"Add {what}"])
    assert len(items) >= 3
    assert not [path for _, path in items if not (ROOT / path).exists()]


@pytest.mark.parametrize("what", CHECKLISTS)
def test_the_example_of_a_checklist_is_found_in_its_bold_files_alone(what: str) -> None:
    """The same search as the page's command, on the files themselves."""
    text = sections(PAGES[0])[f"Add {what}"]
    example = GREP.search(text)
    assert example is not None, "no command that shows an example"
    word, pattern, places = example.groups()
    searched = re.compile(rf"\b(?:{pattern})\b" if word else pattern)
    files = [file for place in places.split() for file in (ROOT / place).rglob("*") if is_text(file)]
    holding = {file.relative_to(ROOT).as_posix() for file in files if searched.search(file.read_text(encoding="utf-8"))}
    assert {path for bold, path in ITEM.findall(text) if bold} == holding


def is_text(file: Path) -> bool:
    return file.suffix in (".py", ".md", ".toml", ".json", ".js", ".css") and "__pycache__" not in file.parts
