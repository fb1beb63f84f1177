"""What goes wrong at the keyboard: every message is one sentence with a cure, and nothing half-written stays."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from typer.testing import CliRunner

from gouache.cli.main import app
from gouache.cli.output import write_stdout
from gouache.errors import GouacheError, PictureError
from gouache.files import check_target, write_bytes
from gouache.pipeline.generate.generation import Event
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

QUICK = ("--steps", "1", "--model", "untrained")
SMALL = (*QUICK, "--size", "32", "--seed", "5")


def run(*arguments: str, given: bytes | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*arguments], input=given)
    if isinstance(result.exception, GouacheError):
        return result.exception.exit_code, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout + result.stderr


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a folder of its own, with a file that is no picture."""
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("no picture")
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("folder").mkdir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("interpolate", "a", "--to", "b", "-o", "way.avi", *SMALL), "suffix '.avi'"),
        (("interpolate", "a", "--to", "b", "-o", "notes.txt/way.gif", *SMALL), "notes.txt: given a file"),
        (("grid", "a", "--x", "steps=1,2", "-o", "notes.txt/g.png", *QUICK), "notes.txt: given a file"),
        (("paint", "a", "-o", "notes.txt/deep/", *SMALL), "notes.txt: given a file"),
        (("explain", "a", "-o", "notes.txt", *SMALL), "a file that exists"),
        (("grid", "a cat", "--x", "prompt=dog>cow", *QUICK), "words of the prompt 'a cat'"),
        (("grid", "a cat", "--x", "prompt.blur=1", *QUICK), "no group of settings"),
        (("paint", "__latin__", "--wildcards", ".", *SMALL), "in UTF-8"),
        (("paint", "--from-file", "latin.txt", *SMALL), "in UTF-8"),
        (("paint", "--from-file", "folder", *SMALL), "is a directory"),
        (("paint", "x", "--best-of", "4", *SMALL), "no prior"),
        (("edit", "folder", "x", *SMALL), "given a folder"),
        (("edit", "-", "x", *SMALL), "standard input: given nothing"),
        (("show", "notes.txt"), "no known picture"),
        (("show", "folder"), "is a directory"),
        (("vary", "notes.txt"), "no known picture"),
    ],
)
def test_it_is_said_before_anything_is_painted(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(Path.cwd().iterdir())
    monkeypatch.setattr("gouache.pipeline.generate.generation.Generation.group", None)
    code, message = run(*arguments)
    assert (code, words in message, " at 0x" in message) == (2, True, False), message
    assert sorted(Path.cwd().iterdir()) == before


def test_every_command_makes_the_folder_that_it_writes_to() -> None:
    Path("prompts.txt").write_text("a cat\na dog\n")
    for words, files in (
        (("paint", "a cat", *SMALL, "-o", "one"), ["one/a-cat-5.png"]),
        (("paint", "a cat", *SMALL, "-o", "two.of/"), ["two.of/a-cat-5.png"]),
        (("paint", "a cat", *SMALL, "-o", "three/deep/x.png"), ["three/deep/x.png"]),
        (("paint", "--from-file", "prompts.txt", *SMALL, "-o", "four"), ["four/a-cat-5.png", "four/a-dog-5.png"]),
        (("paint", "--from-file", "prompts.txt", "--resume", *SMALL, "-o", "five"), ["five/a-cat-5.png"]),
        (("interpolate", "a", "--to", "b", "--frames", "2", *SMALL, "-o", "six/way.gif"), ["six/way.gif"]),
        (("grid", "a", "--x", "seed=1,2", *SMALL[:-2], "-o", "seven/g.png"), ["seven/g.png"]),
        (("edit", "one/a-cat-5.png", "x", *SMALL, "-o", "eight"), ["eight/x-5.png"]),
        (("vary", "one/a-cat-5.png", "-n", "1", "--seed", "3", "-o", "nine"), ["nine/a-cat-5-3.png"]),
        (("upscale", "one/a-cat-5.png", "-u", "lanczos", "-o", "ten/x.png"), ["ten/x.png"]),
        (("replay", "one/a-cat-5.png", "-o", "eleven/x.png"), ["eleven/x.png"]),
    ):
        code, message = run(*words)
        assert code == 0, message
        assert all(Path(file).is_file() for file in files), (words, sorted(Path().rglob("*")))


def test_pictures_of_one_run_never_fight_for_a_name() -> None:
    Path("prompts.txt").write_text("a cat\na cat\na dog\n")
    code, out = run("paint", "--from-file", "prompts.txt", *SMALL)
    assert (code, [line for line in out.split() if line.endswith(".png")]) == (
        0,
        ["a-cat-5.png", "a-cat-5-2.png", "a-dog-5.png"],
    )
    assert run("paint", "a cat", *SMALL)[0] == 2


def test_show_reads_standard_input() -> None:
    assert run("paint", "a cat", *SMALL, "-o", "a.png")[0] == 0
    code, out = run("show", "-", "--json", given=Path("a.png").read_bytes())
    assert (code, json.loads(out)["request"]["seed"]) == (0, 5)


def interrupt_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C arrives when the picture of this number would begin."""
    calls = 0
    paint = Pipeline.run

    def counted(self: Pipeline, request: Request, attachments: Mapping[str, bytes] | None = None) -> Iterator[Event]:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGINT)
        return paint(self, request, attachments)

    monkeypatch.setattr(Pipeline, "run", counted)
    # A test run in the background ignores SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_interrupted_grid_keeps_its_finished_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(4, monkeypatch)
    axes = ("--x", "seed=1,2", "--y", "steps=1,2,3")
    code, message = run("grid", "a cat", *axes, *QUICK[2:], "--size", "32", "-o", "g.png")
    assert (code, "an interrupt after 3, expected 6 pictures. Kept: g.png" in message) == (130, True), message
    with Image.open("g.png") as sheet:
        assert sheet.height < 4 * 36, "two of three rows"
    assert sorted(path.name for path in Path.cwd().glob("*.part")) == []


def test_an_interrupted_grid_without_pictures_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(1, monkeypatch)
    code, message = run("grid", "a cat", "--x", "seed=1,2", *SMALL[:-2], "-o", "g.png")
    assert (code, "Kept: none" in message, Path("g.png").exists()) == (130, True, False), message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_standard_output_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=full))
        with pytest.raises(PictureError, match="no space left on device"):
            write_stdout(b"x" * 100_000)
        monkeypatch.undo()


def test_the_limit_on_pixels_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 30)).save("a.png")
    monkeypatch.setenv("GOUACHE_MAX_PIXELS", "1000")
    code, message = run("edit", "a.png", "x", *SMALL, "-o", "b.png")
    assert (code, "1200 pixels" in message or "40x30" in message, "1000" in message) == (2, True, True), message
    monkeypatch.setenv("GOUACHE_MAX_PIXELS", "many")
    code, message = run("edit", "a.png", "x", *SMALL, "-o", "b.png")
    assert (code, "GOUACHE_MAX_PIXELS" in message) == (2, True)
    monkeypatch.setenv("GOUACHE_MAX_PIXELS", "1200")
    assert run("edit", "a.png", "x", *SMALL, "-o", "b.png")[0] == 0


def test_an_inversion_chooses_its_sampler() -> None:
    assert run("paint", "a cat", *SMALL, "-o", "a.png")[0] == 0
    assert run("edit", "a.png", "a dog", "--inversion", "a cat", "--steps", "2", *QUICK[2:], "-o", "b.png")[0] == 0
    assert "sampler: ddim" in run("show", "b.png")[1]
    code, message = run("edit", "a.png", "a dog", "--inversion", "a cat", "--sampler", "heun", *QUICK, "-o", "c.png")
    assert (code, "--sampler ddim" in message) == (2, True)


def test_targets_are_checked_first(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.png", b"x")
    check_target(tmp_path / "a.png", force=True)
    check_target(tmp_path / "b.png")
    with pytest.raises(PictureError, match="--force"):
        check_target(tmp_path / "a.png")
    with pytest.raises(PictureError, match=r"a\.png: given a file, expected a folder"):
        check_target(tmp_path / "a.png" / "b.png")
    with pytest.raises(PictureError, match=r"a\.png/b\.png"):
        write_bytes(tmp_path / "a.png" / "b.png", b"x")
