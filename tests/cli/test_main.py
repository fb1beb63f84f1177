"""The command itself: quick help, no torch where none is needed, one line of help for each command, doctor."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from gouache.cli.main import LazyGroup, app, load_command
from gouache.environment import sleep_where_crowded

TORCH_FREE = [["--help"], ["--version"], ["paint", "--help"], ["samplers", "--json"]]


@pytest.mark.parametrize("arguments", TORCH_FREE, ids=" ".join)
def test_help_imports_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom gouache.cli.main import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_show_imports_no_torch(tmp_path: Path) -> None:
    """For a picture of A1111's; that of a recipe of our own is read by the same module."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "a cup\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=texts)
    test_help_imports_no_torch(["show", str(tmp_path / "a.png")])


def processor_seconds(*command: str) -> float:
    """What one run of Python costs in processor time, in seconds, the smallest of three."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def test_help_is_quick() -> None:
    """At most twice what the help of an empty program of the same library costs on the same machine."""
    empty = "import typer\napp = typer.Typer()\n@app.command()\ndef paint() -> None:\n    'Paint.'\napp(['--help'])"
    assert processor_seconds("-m", "gouache", "--help") < 2 * processor_seconds("-c", empty)


@pytest.mark.parametrize("name", LazyGroup.homes)
def test_every_command_can_be_loaded_and_explains_itself(name: str) -> None:
    command = load_command(name, LazyGroup.homes[name][0])
    assert command.help
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert "gouache" in result.stdout


def test_an_unknown_command_is_wrong_use() -> None:
    assert CliRunner().invoke(app, ["pant"]).exit_code == 2


def test_completion_knows_commands_and_options() -> None:
    words = {"COMP_WORDS": "gouache pai", "COMP_CWORD": "1", "_GOUACHE_COMPLETE": "complete_bash"}
    result = CliRunner().invoke(app, [], env=words, prog_name="gouache")
    assert "paint" in result.stdout.split()


def test_doctor_tells_versions_devices_and_folders() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    values = json.loads(result.stdout)
    assert values["versions"]["torch"]
    assert values["devices"]["cpu"] == "yes"
    assert set(values) == {"versions", "processor", "devices", "memory", "engines", "models"}
    assert "python:" in CliRunner().invoke(app, ["doctor"]).stdout


ABSENT = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name}}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = ["gouache", *{arguments!r}]
from gouache.cli.main import main
main()
"""


@pytest.mark.every_time("uvicorn-serve")
@pytest.mark.parametrize(("package", "extra"), [("uvicorn", "serve"), ("accelerate", "train")])
def test_a_missing_extra_is_named(package: str, extra: str, tmp_path: Path) -> None:
    """A finder that knows nothing of the package stands for an installation without it."""
    (tmp_path / "config.toml").write_text("[vae.network]\n")
    files = ["--config", str(tmp_path / "config.toml"), "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    arguments = ["train", "vae", *files] if extra == "train" else ["serve"]
    code = ABSENT.format(package=package, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'gouache[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("load", "given", "expected"),
    [(0.5, None, None), (64.0, None, "passive"), (64.0, "active", "active"), (0.5, "passive", "passive")],
)
def test_waiting_threads_sleep_where_other_programs_want_the_processors(
    load: float, given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load is set: a test can't wait until the machine is crowded."""
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    else:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    sleep_where_crowded()
    assert os.environ.get("OMP_WAIT_POLICY") == expected
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
