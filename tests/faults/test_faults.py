"""The list of deliberate faults fits the code, and (slow) every fault on it is caught by its test."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTS: list[dict[str, str]] = tomllib.loads((Path(__file__).parent / "faults.toml").read_text(encoding="utf-8"))[
    "fault"
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"])
def test_a_fault_still_has_its_place_and_its_test(fault: dict[str, str]) -> None:
    assert set(fault) == {"name", "file", "old", "new", "test"}
    source = (ROOT / "src" / "gouache" / fault["file"]).read_text(encoding="utf-8")
    assert source.count(fault["old"]) == 1, "the text to change must be there exactly once"
    assert fault["new"] != fault["old"], "the fault must change something"
    ast.parse(source.replace(fault["old"], fault["new"]))
    file, _, name = fault["test"].partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, "its test is gone"


def test_names_are_unique() -> None:
    names = [fault["name"] for fault in FAULTS]
    assert len(names) == len(set(names))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_fault_is_caught() -> None:
    done = subprocess.run([sys.executable, "tests/faults/run.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
