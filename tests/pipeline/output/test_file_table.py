"""docs/files.md says what is measured: pictures and published files at every run, weights among the slow tests."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "files.md"
SCRIPT = ROOT / "benchmarks" / "file_table.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("file_table_benchmark", SCRIPT)
    assert spec is not None, "no file benchmarks/file_table.py"
    assert spec.loader is not None, "no loader for benchmarks/file_table.py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_the_page_says_of_pictures_what_is_measured(script: Any) -> None:
    rows = script.picture_rows()
    assert len(rows) > 30
    assert script.PICTURES_HEAD + script.table(rows) in PAGE.read_text(encoding="utf-8"), (
        "run `python benchmarks/file_table.py` and commit the new table"
    )


def test_every_picture_of_a_program_with_settings_is_read(script: Any) -> None:
    refused = {row.program for row in script.picture_rows() if row.verdict == "refused"}
    assert refused <= {"Midjourney", "any"}


def test_the_page_says_of_published_files_what_is_measured(script: Any) -> None:
    assert PAGE.read_text(encoding="utf-8").endswith(script.published_page()), (
        "run `python benchmarks/file_table.py --published` and commit the new tables"
    )


@pytest.mark.slow
def test_the_page_says_of_weights_what_is_measured(tmp_path: Path) -> None:
    """The whole script, as its user runs it."""
    page = tmp_path / "files.md"
    run = [sys.executable, str(SCRIPT), "--page", str(page)]
    subprocess.run(run, check=True, capture_output=True, timeout=280, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
