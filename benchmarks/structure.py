"""The shape of the source tree in figures, from its syntax trees alone: what a change of the layout should make better.

    python benchmarks/structure.py [--root src/gouache] [--list] [--json now.json]

Definitions
- modules: every .py file under the root, `__init__.py` and `__main__.py` too.
- importers of a module: other modules with an import statement for it, wherever it stands (in a function or under
  TYPE_CHECKING too), or with a string that is its dotted name, alone or followed by `:attribute`, as the tables of lazy
  names and the command lines of child processes have. `__init__` and `__main__` are not counted as imported; they
  count as importers.
- entry points: modules that a string `module:attribute` names, as the table of commands does. They have one importer
  by design, so "exactly one importer" leaves them out; a second figure has them in.
- largest folder: most .py files that stand directly in one folder, `__init__` aside.
- family literal: a string that is exactly a family's name, alone or as an argument, key or default, but not inside a
  docstring. "pocket" counts wherever it stands, though it is the name of the shipped model as well.
- type names: classes at the top of a module, and names that an assignment there gives a type: aliases such as
  `Picture = Annotated[...]` and type variables, so every capitalised name that is no constant. Names that occur twice
  or more count once each; classes alone are counted too.
- a prefix is what stands before the first `_` of a file's name, or the whole name; it counts where three or more files
  of one folder have it.
- comment lines have nothing but a comment; the share is of all lines that are not blank.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FAMILIES = ("sd1", "sd2", "sdxl", "sdxl-refiner", "pocket")
SPECIAL = ("__init__", "__main__")
SHORT = 60
"""A file with fewer lines than this, and one importer, might as well be a part of it."""
COMMON_PREFIX = 3


@dataclass(frozen=True)
class Module:
    """One source file.

    Attributes:
        path: relative to the root.
        name: its dotted name, with the package's.
        text: what stands in it.
    """

    path: Path
    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text, filename=str(self.path))

    @property
    def special(self) -> bool:
        """Whether it is an `__init__` or a `__main__`."""
        return self.path.stem in SPECIAL


def read_modules(root: Path) -> list[Module]:
    """Every module under a package's folder."""
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        parts = [root.name, *relative.with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(relative, name, path.read_text(encoding="utf-8")))
    return found


def importers(modules: list[Module]) -> dict[str, set[str]]:
    """Module -> modules that import it, by dotted name; `__init__` and `__main__` are not among the imported."""
    found: dict[str, set[str]] = {module.name: set() for module in modules if not module.special}
    for module in modules:
        for name in _imported(module):
            if name in found and name != module.name:
                found[name].add(module.name)
    return found


def _imported(module: Module) -> Iterator[str]:
    package = module.name if module.path.stem == "__init__" else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.partition(":")[0]


def entry_points(modules: list[Module]) -> set[str]:
    """Modules that a string `module:attribute` names."""
    strings = [
        node.value
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    known = {module.name for module in modules}
    return {text.partition(":")[0] for text in strings if ":" in text} & known


def single_importer(modules: list[Module], *, with_entry_points: bool = False) -> list[str]:
    """Modules that exactly one other imports; entry points aside unless they are asked for."""
    aside = set() if with_entry_points else entry_points(modules)
    return sorted(name for name, users in importers(modules).items() if len(users) == 1 and name not in aside)


def short_with_single_importer(modules: list[Module]) -> list[str]:
    """Of those, the files under 60 lines."""
    lines = {module.name: len(module.text.splitlines()) for module in modules}
    return [name for name in single_importer(modules) if lines[name] < SHORT]


def folder_sizes(modules: list[Module]) -> dict[str, int]:
    """Folder -> modules that stand directly in it, `__init__` aside; the largest first."""
    counts = Counter(module.path.parent.as_posix() for module in modules if module.path.stem != "__init__")
    return dict(counts.most_common())


def family_literals(modules: list[Module]) -> dict[str, list[int]]:
    """Path -> lines with a string that names a model family."""
    found: dict[str, list[int]] = {}
    for module in modules:
        lines = sorted(set(_family_lines(module.tree)))
        if lines:
            found[module.path.as_posix()] = lines
    return found


def _family_lines(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in FAMILIES:
            yield node.lineno


def repeated_classes(modules: list[Module]) -> dict[str, list[str]]:
    """Name -> modules with a class of that name, where there are two or more."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for module in modules:
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(module.name)
    return _repeated(found)


def repeated_types(modules: list[Module]) -> dict[str, list[str]]:
    """As `repeated_classes`, with aliases of types and type variables."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for module in modules:
        for name in sorted({name for node in module.tree.body for name in _type_names(node)}):
            found[name].append(module.name)
    return _repeated(found)


def _type_names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name for name in names if name[0].isupper() and not name.isupper())


def repeated_files(modules: list[Module]) -> dict[str, list[str]]:
    """File name -> paths, where there are two or more; `__init__` aside."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for module in modules:
        if module.path.stem != "__init__":
            found[module.path.name].append(module.path.as_posix())
    return _repeated(found)


def _repeated(found: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: places for name, places in sorted(found.items()) if len(places) > 1}


def shared_prefixes(modules: list[Module]) -> dict[str, list[str]]:
    """Folder and prefix -> files of that folder with the prefix, where there are three or more."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for module in modules:
        if not module.special:
            found[(module.path.parent / module.path.stem.partition("_")[0]).as_posix()].append(module.path.stem)
    return {place: names for place, names in sorted(found.items()) if len(names) >= COMMON_PREFIX}


def lines_with(modules: list[Module], mark: str) -> int:
    """Lines with a comment such as `# fmt: skip`."""
    return sum(mark in line for module in modules for line in module.text.splitlines())


def comment_share(modules: list[Module]) -> tuple[int, int]:
    """Comment lines, and lines that are not blank."""
    lines = [line.strip() for module in modules for line in module.text.splitlines() if line.strip()]
    return sum(line.startswith("#") for line in lines), len(lines)


def figures(modules: list[Module]) -> dict[str, float]:
    """Every figure by a few words."""
    folders = folder_sizes(modules)
    comments, lines = comment_share(modules)
    return {
        "modules": len(modules),
        "modules with exactly one importer": len(single_importer(modules)),
        "the same with entry points": len(single_importer(modules, with_entry_points=True)),
        "files under 60 lines with a single importer": len(short_with_single_importer(modules)),
        "modules in the largest folder": max(folders.values(), default=0),
        "files with a family literal": len(family_literals(modules)),
        "type names that exist twice or more": len(repeated_types(modules)),
        "class names that exist twice or more": len(repeated_classes(modules)),
        "file names that exist twice or more": len(repeated_files(modules)),
        "prefixes shared by three or more modules of a folder": len(shared_prefixes(modules)),
        "lines with # fmt: skip": lines_with(modules, "# fmt: skip"),
        "comment lines": comments,
        "comment lines, percent of lines that are not blank": round(100 * comments / max(lines, 1), 1),
    }


def details(modules: list[Module]) -> dict[str, object]:
    """What stands behind the figures, by name."""
    return {
        "one importer": single_importer(modules),
        "short with one importer": short_with_single_importer(modules),
        "entry points": sorted(entry_points(modules)),
        "no importer": sorted(name for name, users in importers(modules).items() if not users),
        "folders": folder_sizes(modules),
        "family literals": family_literals(modules),
        "type names": repeated_types(modules),
        "class names": repeated_classes(modules),
        "file names": repeated_files(modules),
        "prefixes": shared_prefixes(modules),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1] / "src" / "gouache")
    parser.add_argument("--list", action="store_true", help="also print what stands behind the figures")
    parser.add_argument("--json", type=Path, help="also write both here")
    options = parser.parse_args()
    modules = read_modules(options.root.resolve())
    found, behind = figures(modules), details(modules)
    sys.stdout.writelines(f"{value:8g}  {name}\n" for name, value in found.items())
    if options.list:
        sys.stdout.write(json.dumps(behind, indent=1) + "\n")
    if options.json:
        options.json.write_text(json.dumps({"figures": found, "details": behind}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
