"""What one painted picture touches: files and functions of gouache that run in `gouache paint "a red apple, 3d style"`.

    python benchmarks/paint_trace.py                       # the numbers, and the files by folder
    python benchmarks/paint_trace.py --functions           # every function too
    python benchmarks/paint_trace.py --json now.json

A file counts as run if the body of at least one of its functions is executed, from the import on; bodies of modules and
of classes don't count, for an import executes them all. A function is a `def`, of a class or not; lambdas and
comprehensions belong to the function around them. Beside it stand how many files are imported at all, and the wider
count of functions: with lambdas and comprehensions, each name once a file.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import os
import runpy
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType

COMMAND = ("paint", "a red apple, 3d style", "--seed", "1")


class Trace:
    """Remembers which code is executed.

    Args:
        root: the package's folder; other code is not looked at.
    """

    def __init__(self, root: Path) -> None:
        self.root = f"{root}{os.sep}"
        self.codes: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """As `sys.setprofile` wants it."""
        del argument
        if event == "call":
            self.codes.add(frame.f_code)

    def functions(self) -> dict[str, list[str]]:
        """Functions that ran, by the file's path inside the package."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for code in self.codes:
            if code.co_filename.startswith(self.root) and is_function(code):
                found[code.co_filename.removeprefix(self.root)].add(f"{code.co_qualname}:{code.co_firstlineno}")
        return {file: sorted(names) for file, names in sorted(found.items())}

    def wider_count(self) -> int:
        """Names of functions, lambdas and comprehensions that ran, each once a file."""
        own = [code for code in self.codes if code.co_filename.startswith(self.root)]
        return len({(code.co_filename, code.co_name) for code in own if code.co_flags & inspect.CO_OPTIMIZED})


def is_function(code: CodeType) -> bool:
    """Whether it is the body of a `def`: not of a module, a class, a lambda or a comprehension."""
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.startswith("<")


def package_folder() -> Path:
    """Where the package lies."""
    import gouache

    return Path(gouache.__file__).parent


def trace_paint(arguments: Sequence[str] = COMMAND) -> Trace:
    """Run the command in this process, in an empty folder.

    Raises:
        SystemExit: the command failed.
    """
    trace, before = Trace(package_folder()), sys.argv
    for name in [name for name in sys.modules if name == "gouache" or name.startswith("gouache.")]:
        del sys.modules[name]  # the import is a part of it
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        os.environ.update(GOUACHE_OFFLINE="1", GOUACHE_MODELS=f"{place}/models", XDG_CACHE_HOME=f"{place}/cache")
        sys.argv = ["gouache", *arguments]
        threading.setprofile(trace)
        sys.setprofile(trace)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                runpy.run_module("gouache", run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            if stop.code:
                raise
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            sys.argv = before
        if not list(Path(place).glob("*.png")):
            sys.exit("the command painted nothing")
    return trace


def imported_files(root: Path) -> list[str]:
    """Files of the package that are imported now."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    found = {Path(file) for file in files if file is not None}
    return sorted(str(file.relative_to(root)) for file in found if file.is_relative_to(root))


def report(functions: Mapping[str, Sequence[str]], *, names: bool) -> list[str]:
    """The lines to print: each folder with its files."""
    lines: list[str] = []
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for file in functions:
        folders[str(Path(file).parent)].append(file)
    for folder, files in sorted(folders.items()):
        count = sum(len(functions[file]) for file in files)
        lines.append(f"{folder}: {len(files)} files, {count} functions")
        for file in files:
            lines.append(f"    {Path(file).name} {len(functions[file])}")
            lines += [f"        {name}" for name in functions[file]] if names else []
    return lines


def main() -> None:
    """Paint and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", action="store_true", help="name the functions too")
    parser.add_argument("--json", type=Path, help="also write files and functions here")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    trace = trace_paint()
    functions, imported = trace.functions(), imported_files(package_folder())
    total = sum(map(len, functions.values()))
    sys.stdout.write(f"{len(functions)} files with a function that runs, {len(imported)} files imported\n")
    sys.stdout.write(f"{total} functions; {trace.wider_count()} with lambdas and comprehensions, names once a file\n")
    sys.stdout.writelines(f"{line}\n" for line in report(functions, names=options.functions))
    if options.json:
        options.json.write_text(json.dumps({"functions": functions, "imported": imported}, indent=1) + "\n")


if __name__ == "__main__":
    main()
