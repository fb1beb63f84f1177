"""Apply each deliberate fault of `faults.toml` to a copy of the package and show that its test fails.

    python tests/faults/run.py [words of a fault's name]

Leaves with 0 if every fault is caught. A test that can't even be collected does not count as one that failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COPIED = ("src", "tests", "benchmarks", "docs", "recipes", "pyproject.toml")
"""What the tests need. It is copied whole, so that work that goes on beside a run does not disturb it."""


@dataclass(frozen=True)
class Fault:
    """One slip: in `file`, `old` becomes `new`, and `test` must notice."""

    name: str
    file: str
    old: str
    new: str
    test: str


def say(line: str) -> None:
    """One line of the report, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def read_faults() -> list[Fault]:
    """Every fault of the list."""
    with (HERE / "faults.toml").open("rb") as file:
        return [Fault(**entry) for entry in tomllib.load(file)["fault"]]


def run_tests(tests: list[str], source: Path) -> tuple[int, str]:
    """pytest's exit status and output for these tests, with the package taken from `source`."""
    kept = {"PYTHONDONTWRITEBYTECODE": "1", "GOUACHE_TEST_CHANGING": "1"}
    environment = os.environ | kept | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    options = ["-x", "-q", "-m", "slow or not slow", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=source.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def copy_project(folder: Path) -> None:
    """Copy `COPIED` into a folder."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, folder / name)


def check_copy_is_used(source: Path) -> None:
    """Stop if an import would take the package from elsewhere: then every fault would seem uncaught."""
    code = "import gouache.diffusion as package; print(package.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )
    if not Path(told.stdout.strip()).is_relative_to(source):
        raise SystemExit(f"The copy in {source} is not what Python imports, but {told.stdout}{told.stderr}")


def is_caught(fault: Fault, source: Path) -> bool:
    """Apply the fault to the copy, run its test, and mend the copy."""
    path = source / "gouache" / fault.file
    sound = path.read_text(encoding="utf-8")
    if sound.count(fault.old) != 1:
        say(f"STALE   {fault.name}: its text occurs {sound.count(fault.old)} times in {fault.file}")
        return False
    path.write_text(sound.replace(fault.old, fault.new), encoding="utf-8")
    try:
        status, output = run_tests([fault.test], source)
    finally:
        path.write_text(sound, encoding="utf-8")
    if status == 1:
        say(f"caught  {fault.name}")
        return True
    say(f"MISSED  {fault.name}: {fault.test} left with {status}\n{output[-2000:]}")
    return False


def main(words: list[str]) -> int:
    """Run the faults whose name holds the words; the number of those that were missed."""
    faults = [fault for fault in read_faults() if " ".join(words) in fault.name]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        copy_project(Path(folder))
        check_copy_is_used(source)
        status, output = run_tests(sorted({fault.test for fault in faults}), source)
        if status != 0:
            say(f"The tests do not pass on the sound package, so nothing can be shown:\n{output[-4000:]}")
            return 1
        missed = sum(not is_caught(fault, source) for fault in faults)
    say(f"{len(faults) - missed} of {len(faults)} faults caught")
    return missed


if __name__ == "__main__":
    raise SystemExit(min(main(sys.argv[1:]), 1))
