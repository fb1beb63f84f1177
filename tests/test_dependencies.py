"""What `pyproject.toml` declares is what `src` imports: nothing more, and nothing less."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {"pillow": "PIL"}
"""Distributions whose module has another name."""
NOT_IMPORTED = {
    "psycopg": "SQLAlchemy imports it for a postgresql URL",
    "python_multipart": "Starlette imports it for forms",
    "imageio_ffmpeg": "imageio imports it for films",
    "s3fs": "fsspec imports it for an s3:// URL",
    "tensorboard": "torch.utils.tensorboard imports it",
}
COMES_ALONG = {
    "starlette": "fastapi",
    "click": "typer",
    "fsspec": "huggingface_hub",
    "botocore": "s3fs",
    "pydantic_core": "pydantic",
}
"""Modules of a declared distribution's own dependencies, used through its public interface."""


def declared() -> set[str]:
    """Modules of every declared distribution, those for tests and documentation aside."""
    lines = [*PROJECT["dependencies"]]
    for extra, names in PROJECT["optional-dependencies"].items():
        lines += names if extra not in ("test", "docs") else []
    found = {re.split(r"[<>=!\\[ ]", line)[0].lower().replace("-", "_") for line in lines}
    return {MODULES.get(name, name) for name in found if name != "gouache"}


def imported() -> set[str]:
    """Top-level modules that any file of `src` imports, at its top or inside a function."""
    found: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"gouache"}


def test_everything_declared_is_used() -> None:
    idle = declared() - imported() - set(NOT_IMPORTED)
    assert not idle, f"declared in pyproject.toml and imported by no file of src: {sorted(idle)}"


def test_everything_used_is_declared() -> None:
    assert set(COMES_ALONG.values()) <= declared(), "what brings a module along is declared"
    missing = imported() - declared() - set(COMES_ALONG)
    assert not missing, f"imported by src and declared nowhere in pyproject.toml: {sorted(missing)}"
