"""One walk over the syntax trees of the package: the rules of `docs/architecture.md`, enforced."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gouache"

LAYERS = {
    "errors": 0,
    "files": 0,
    "config": 0,
    "environment": 0,
    "notebook": 0,
    "colours": 1,
    "scenery": 1,
    "__init__": 6,
    "__main__": 6,
    "diffusion": 1,
    "nn": 2,
    "models": 2,
    "checkpoints": 3,
    "pipeline": 4,
    "pocket": 4,
    "data": 5,
    "training": 5,
    "scale": 5,
    "serve": 6,
    "cli": 6,
}
TORCH_LAYERS = range(1, 6)
TERMINAL_AND_HTTP = {
    "typer",
    "rich",
    "click",
    "fastapi",
    "starlette",
    "uvicorn",
    "prometheus_client",
    "sqlalchemy",
    "alembic",
}
TEST_ORACLES = {
    "diffusers",
    "transformers",
    "k_diffusion",
    "torchsde",
    "webuiapi",
    "openai",
    "sd_parsers",
    "hypothesis",
    "playwright",
}
# What judges tests and is an optional extra too, and the files that use it.
EXTRAS = {
    "transformers": (
        "src/gouache/pipeline/inputs/preprocessors.py",
        "src/gouache/data/subsets/captioner.py",
        "src/gouache/training/evaluation/judge.py",
    ),
}
LONGEST_FILE, LONGEST_FUNCTION = 500, 60
LARGEST_FOLDER = 20
# Files under 60 lines that only one other file imports, and why each is not a part of that file.
SHORT_AND_APART: dict[str, str] = {}
# Files that are one long table of names, and no code.
DATA_TABLES: set[str] = set()
GLOBAL_RANDOMNESS = {
    "torch.manual_seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.set_rng_state",
    "torch.seed",
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
}
CITATION = re.compile(r"[Ee]q(uation|s?\.)|[Aa]lgorithm|[Ss]ection|[Tt]able|[Aa]ppendix|[Pp]roposition")
SOURCE_OF_CITATION = re.compile(r"arXiv|\(\d{4}\)|\b(19|20)\d\d\b")


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


FILES = python_files(SOURCE)
TEST_FILES = [*python_files(ROOT / "tests"), *python_files(ROOT / "benchmarks")]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def layer_of(path: Path) -> int:
    return LAYERS[path.relative_to(SOURCE).parts[0].removesuffix(".py")]


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every imported module's dotted name with its line; `from a.b import c` gives both a.b and a.b.c."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_from_its_own_layer_and_below(path: Path) -> None:
    own = layer_of(path)
    for line, module in imported(tree_of(path)):
        parts = module.split(".")
        if parts[0] == "gouache" and len(parts) > 1 and parts[1] in LAYERS:
            assert LAYERS[parts[1]] <= own, f"{name_of(path)}:{line} imports {module}, which is in a higher layer"
        if parts[0] == "torch":
            assert own in TORCH_LAYERS or path.name == "__init__.py", (
                f"{name_of(path)}:{line} imports torch in layer {own}"
            )
        if parts[0] in TERMINAL_AND_HTTP:
            assert own == 6, f"{name_of(path)}:{line} imports {parts[0]}, which belongs to layer 6"
        assert parts[0] not in TEST_ORACLES or name_of(path) in EXTRAS.get(parts[0], ()), (
            f"{name_of(path)}:{line} imports {parts[0]}, which is for tests only"
        )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_functions_have_docstrings_and_no_catch_all_keywords(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), f"{name_of(path)} has no module docstring"
    for node in functions(tree):
        if node.name.startswith("_"):
            continue
        assert node.args.kwarg is None, (
            f"{name_of(path)}:{node.lineno} {node.name} takes **{node.args.kwarg and node.args.kwarg.arg}"
        )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_raise_and_assert_carries_a_sentence(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Assert):
            assert node.msg is not None, f"{where} asserts without a sentence"
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            assert node.exc.args or node.exc.keywords, f"{where} raises {dotted(node.exc.func)} without a sentence"
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id[0].isupper():
            raise AssertionError(f"{where} raises {node.exc.id} without a sentence")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_device_calls_and_no_global_random_state(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            where = f"{name_of(path)}:{node.lineno}"
            assert node.func.attr != "cuda", f"{where} calls .cuda(); take the device as an argument"
            assert dotted(node.func) not in GLOBAL_RANDOMNESS, f"{where} sets the global random state"


@pytest.mark.parametrize("path", [*FILES, *TEST_FILES], ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE or name_of(path) in DATA_TABLES, (
        f"{name_of(path)} has {lines} lines, over {LONGEST_FILE}"
    )
    for node in functions(tree_of(path)):
        length = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring_lines(node)
        assert length <= LONGEST_FUNCTION, (
            f"{name_of(path)}:{node.lineno} {node.name} has {length} lines, over {LONGEST_FUNCTION}"
        )


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if ast.get_docstring(node) is None:
        return 0
    return (first.end_lineno or first.lineno) - first.lineno + 1


@pytest.mark.parametrize("path", python_files(SOURCE / "diffusion"), ids=name_of)
def test_public_functions_of_the_mathematics_cite_equation_and_source(path: Path) -> None:
    """A function cites in its own docstring; a method may lean on its class's."""
    tree = tree_of(path)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            text = ast.get_docstring(node) or ""
            assert CITATION.search(text), f"{name_of(path)}:{node.lineno} {node.name} cites no equation"
            assert SOURCE_OF_CITATION.search(text), f"{name_of(path)}:{node.lineno} {node.name} names no source"


@pytest.fixture(scope="module")
def structure() -> Any:
    """The script that counts the figures of the source tree."""
    spec = importlib.util.spec_from_file_location("structure_benchmark", ROOT / "benchmarks" / "structure.py")
    assert spec is not None, "no file benchmarks/structure.py"
    assert spec.loader is not None, "no loader for benchmarks/structure.py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def modules(structure: Any) -> Any:
    return structure.read_modules(SOURCE)


def test_every_top_level_module_has_a_layer() -> None:
    found = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES}
    assert found <= set(LAYERS), f"give a layer to {sorted(found - set(LAYERS))}"


def test_a_folder_has_at_most_twenty_modules(structure: Any, modules: Any) -> None:
    full = {name: count for name, count in structure.folder_sizes(modules).items() if count > LARGEST_FOLDER}
    assert not full, f"divide by topic: {full}"


def test_a_prefix_shared_by_three_modules_is_a_folder(structure: Any, modules: Any) -> None:
    shared = structure.shared_prefixes(modules)
    assert not shared, f"make a folder of {shared}"


def test_a_short_file_with_one_importer_is_part_of_it(structure: Any, modules: Any) -> None:
    """The modules of commands are aside: a table names each once, by design."""
    short = set(structure.short_with_single_importer(modules))
    assert short <= set(SHORT_AND_APART), f"merge with their importers: {sorted(short - set(SHORT_AND_APART))}"
    assert set(SHORT_AND_APART) <= short, f"no longer an exception: {sorted(set(SHORT_AND_APART) - short)}"


def test_the_figures_of_the_tree_find_what_they_look_for(structure: Any, tmp_path: Path) -> None:
    """A tree with one fault of each kind."""
    folder = tmp_path / "tree" / "part"
    folder.mkdir(parents=True)
    (tmp_path / "tree" / "__init__.py").write_text("")
    (tmp_path / "tree" / "user.py").write_text("from tree.part import edit_one, many_0, many_1\n" + "x = 1\n" * 60)
    (tmp_path / "tree" / "other.py").write_text("from tree.part.many_0 import a\nCOMMAND = 'tree.part.edit_two:run'\n")
    for name in ("edit_one", "edit_two", "edit_three", *(f"many_{k}" for k in range(18))):
        (folder / f"{name}.py").write_text("a = 1\n" * (70 if name == "many_1" else 1))
    found = structure.read_modules(tmp_path / "tree")
    assert structure.folder_sizes(found)["part"] == 21
    assert set(structure.shared_prefixes(found)) == {"part/edit", "part/many"}
    # many_0 has two importers, many_1 is long, edit_two is a command.
    assert structure.short_with_single_importer(found) == ["tree.part.edit_one"]


def test_every_data_table_exists() -> None:
    for name in DATA_TABLES:
        assert (ROOT / name).is_file(), f"{name} is exempt as a data table but is not there"


@pytest.mark.parametrize("path", [*python_files(ROOT / "benchmarks"), *python_files(ROOT / "recipes")], ids=name_of)
def test_scripts_import_what_is_there(path: Path) -> None:
    """Nothing else runs these scripts in the suite, so that a moved module would be missed."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "gouache":
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            for name in missing:
                importlib.import_module(f"{node.module}.{name}")
