"""Pages of the API reference: one for every folder, its modules as sections."""

from __future__ import annotations

import re
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "gouache"
LAYERS = (
    ("Ground", ("",)),
    ("Mathematics, sceneries", ("diffusion", "scenery")),
    ("Networks", ("nn", "models")),
    ("Checkpoints", ("checkpoints",)),
    ("Pipeline", ("pipeline",)),
    ("Data, training, scale", ("data", "training", "scale")),
    ("Interfaces", ("cli", "serve")),
)
"""The layers of docs/architecture.md and their folders."""

LEFT_OUT = ("serve/store/migrations/versions",)
"""Folders without a page. Steps from the tables of one version to the next: only Alembic calls them."""

MARKED = re.compile(r"(``[^`]+``|`[^`\s](?:[^`]*[^`\s])?`(?!\w))")


def heading(text: str, mark: str) -> str:
    """A title with its line."""
    return f"{text}\n{mark * len(text)}\n\n"


def plain(line: str) -> str:
    """A docstring's line in which only code between backticks is markup: formulas are full of stars and bars.

    >>> plain("x * y | `a*b` x_")
    'x \\\\* y \\\\| `a*b` x\\\\_'
    """
    parts = MARKED.split(line)
    parts[::2] = [re.sub(r"(?<!\\)([*|]|_(?=\W|$))", r"\\\1", part).replace("`", r"\`") for part in parts[::2]]
    # Inside of backticks a backslash is a backslash.
    return "".join(parts)


def modules_of(folder: Path) -> list[Path]:
    """A folder's public modules; the package itself first."""
    files = sorted(folder.glob("*.py"))
    return [file for file in files if file.stem == "__init__" or not file.stem.startswith("_")]


def dotted(file: Path) -> str:
    """The name under which a file is imported."""
    parts = ("gouache", *file.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


def page(folder: Path) -> str:
    """The page of one folder."""
    name = dotted(folder / "__init__.py")
    text = heading(name, "=")
    for file in modules_of(folder):
        module = dotted(file)
        if module == "gouache":
            continue
        package = file.stem == "__init__"
        if not package:
            text += heading(module.rpartition(".")[2], "-")
        text += f".. automodule:: {module}\n"
        text += "   :members:\n   :ignore-module-all:\n   :show-inheritance:\n\n"
    return text


def folders_below(top: str) -> list[Path]:
    """A top folder and those inside it that hold modules."""
    if not top:
        return [SOURCE]
    files = (SOURCE / top).rglob("*.py")
    return sorted({file.parent for file in files} - {SOURCE / left_out for left_out in LEFT_OUT})


def modules() -> list[str]:
    """Every module that has a section."""
    folders = [folder for _, tops in LAYERS for top in tops for folder in folders_below(top)]
    return [dotted(file) for folder in folders for file in modules_of(folder)]


def pages() -> dict[str, str]:
    """Name of a page -> its text; `index` lists them by layer."""
    found: dict[str, str] = {}
    index = heading("Modules", "=")
    for number, (title, tops) in enumerate(LAYERS):
        folders = [folder for top in tops for folder in folders_below(top)]
        names = [dotted(folder / "__init__.py") for folder in folders]
        found |= {name: page(folder) for name, folder in zip(names, folders, strict=True)}
        index += heading(f"Layer {number}: {title}", "-")
        index += ".. toctree::\n   :maxdepth: 1\n\n" + "".join(f"   {name}\n" for name in names) + "\n"
    found["index"] = index
    return found
