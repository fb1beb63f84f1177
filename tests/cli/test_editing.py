"""edit, vary, interpolate, upscale, grid, show and replay from the outside."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.cli.main import app
from gouache.errors import GouacheError
from gouache.models.configs import UpscalerConfig
from gouache.models.upscalers import Upscaler
from gouache.pipeline.fields.values import MAX_FACTOR
from gouache.pipeline.output import sheets as fonts
from gouache.pipeline.output.foreign import read_recipe
from gouache.pipeline.output.metadata import encode_picture, read_texts
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.pipeline import untrained_bundle
from gouache.pipeline.request import Upscale

QUICK = ("--steps", "2", "--model", "untrained")


class Shell:
    """Runs commands in one folder, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*arguments])
        if isinstance(result.exception, GouacheError):
            return result.exception.exit_code, str(result.exception)
        return result.exit_code, result.stdout if result.exit_code in (0, 1) else result.stdout + result.stderr

    def open(self, name: str) -> Image.Image:
        with Image.open(self.folder / name) as picture:
            picture.load()
            return picture.copy()

    def frames(self, name: str) -> int:
        with Image.open(self.folder / name) as picture:
            return getattr(picture, "n_frames", 1)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A folder with one painted picture, a.png."""
    monkeypatch.chdir(tmp_path)
    made = Shell(tmp_path)
    assert made("paint", "a cat", *QUICK, "--size", "32", "--seed", "5", "-o", "a.png")[0] == 0
    return made


def test_edit_changes_the_whole_a_part_and_the_border(shell: Shell) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    Image.fromarray(mask).save("mask.png")
    code, _ = shell("edit", "a.png", "a dog", *QUICK, "--seed", "6", "--strength", "0.5", "-o", "whole.png")
    assert code == 0
    assert shell.open("whole.png").size == (32, 32)
    code, _ = shell("edit", "a.png", "a dog", *QUICK, "--mask", "mask.png", "--mask-blur", "0", "-o", "part.png")
    assert code == 0
    before, after = np.asarray(shell.open("a.png")), np.asarray(shell.open("part.png"))
    assert (before[mask == 0] == after[mask == 0]).all()
    assert shell("edit", "a.png", "a dog", *QUICK, "--mask", "mask.png", "--no-preserve", "-o", "loose.png")[0] == 0
    assert (np.asarray(shell.open("loose.png"))[mask == 0] != before[mask == 0]).any()
    code, _ = shell("edit", "a.png", "grass", *QUICK, "--outpaint-aspect", "2:1", "-o", "wide.png")
    assert code == 0
    assert shell.open("wide.png").size == (64, 32)
    assert read_recipe(Path("wide.png")).request.outpaint is not None


def test_edit_reads_standard_input(shell: Shell) -> None:
    data = (shell.folder / "a.png").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "gouache", "edit", "-", "a dog", *QUICK, "-o", "-"],
        input=data,
        capture_output=True,
        check=True,
        cwd=shell.folder,
    )
    assert Image.open(io.BytesIO(done.stdout)).size == (32, 32)


def test_vary_by_recipe_and_by_pixels(shell: Shell) -> None:
    code, out = shell("vary", "a.png", "-n", "2", "--seed", "9", "--json")
    assert code == 0
    values = json.loads(out.splitlines()[-1])
    assert values["files"] == ["a-cat-5-9.png", "a-cat-5-10.png"]
    request = read_recipe(Path("a-cat-5-10.png")).request
    assert (request.seed, request.subseed, request.subseed_strength) == (5, 10, 0.25)
    Image.new("RGB", (32, 32), "red").save("plain.png")
    code, _ = shell("vary", "plain.png", "-n", "1", "-m", "untrained", "--seed", "3", "-o", "varied.png")
    assert code == 0
    assert read_recipe(Path("varied.png")).request.strength == 0.25


@pytest.mark.parametrize(("suffix", "frames"), [("gif", 3), ("webp", 3), ("png", 1)])
def test_interpolate_writes_films_and_strips(shell: Shell, suffix: str, frames: int) -> None:
    arguments = ("a cat", "--to", "a dog", *QUICK, "--size", "32", "--seed", "1", "--frames", "3")
    code, _ = shell("interpolate", *arguments, "-o", f"way.{suffix}")
    assert code == 0
    film = shell.open(f"way.{suffix}")
    assert shell.frames(f"way.{suffix}") == frames
    assert film.width == (32 if frames == 3 else 3 * 36 + 4)
    assert shell("interpolate", *arguments, "-o", f"way.{suffix}")[0] == 2


# imageio leaves a pipe to ffmpeg to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning")
def test_interpolate_writes_mp4(shell: Shell) -> None:
    pytest.importorskip("imageio_ffmpeg")
    code, _ = shell("interpolate", "a", "--to-seed", "2", *QUICK, "--size", "36", "--frames", "4", "-o", "way.mp4")
    assert code == 0
    import imageio.v3 as imageio

    assert imageio.imread(shell.folder / "way.mp4").shape == (4, 36, 36, 3)


def test_upscale_keeps_the_recipe_which_repeats_it(shell: Shell) -> None:
    code, out = shell("upscale", "a.png", "--factor", "2")
    assert (code, out.strip()) == (0, "a-2x.png")
    assert shell.open("a-2x.png").size == (64, 64)
    assert read_recipe(Path("a-2x.png")).request.upscale is not None
    assert shell("replay", "a-2x.png")[0] == 0
    assert shell("upscale", "a.png", "--upscaler", "absent.pth", "-o", "b.png")[0] in (2, 3)
    assert not (shell.folder / "b.png").exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model on disk that brings an up-sampling decoder."""
    bundle = untrained_bundle()
    upscaler = Upscaler(UpscalerConfig(image_channels=bundle.vae.config.image_channels, channels=8, blocks=1))
    return write_model(bundle_to_write(replace(bundle, upscaler=upscaler)), tmp_path / "model", "gouache")


def test_upscale_by_a_model_s_own_decoder(shell: Shell, model: Path) -> None:
    ours = ("--model", str(model), "--steps", "2")
    assert shell("paint", "a cat", *ours, "--seed", "5", "-o", "own.png")[0] == 0
    side = shell.open("own.png").width
    code, out = shell("upscale", "own.png", "--scale", "4", "--model", str(model), "--json")
    assert code == 0
    assert json.loads(out) == {"path": "own-4x.png", "width": 4 * side, "height": 4 * side, "upscaler": "model"}
    assert shell("paint", "a cat", *ours, "--seed", "5", "--size", str(4 * side), "-o", "large.png")[0] == 0
    assert shell.open("large.png").tobytes() == shell.open("own-4x.png").tobytes()
    for name in ("own-4x.png", "large.png"):
        assert read_recipe(Path(name)).request.upscale == Upscale(factor=4.0, upscaler="model")
        assert shell("replay", name)[0] == 0
    code, message = shell("paint", "a cat", *ours, "--size", str(MAX_FACTOR * side + 8), "-o", "huge.png")
    assert (code, f"at most {MAX_FACTOR * side} pixels a side" in message) == (2, True)
    assert not (shell.folder / "huge.png").exists()


def test_upscale_any_picture_by_another_model_s_decoder(shell: Shell, model: Path) -> None:
    """a.png was painted by another model: its recipe then names the upscaler's place, and still repeats it."""
    assert shell("upscale", "a.png", "--scale", "2", "--upscaler", "model", "--model", str(model))[0] == 0
    assert read_recipe(Path("a-2x.png")).request.upscale == Upscale(factor=2.0, upscaler=str(model))
    assert shell("replay", "a-2x.png")[0] == 0
    Image.new("RGB", (7, 5), "teal").save("plain.png")
    assert shell("upscale", "plain.png", "--scale", "4", "--model", str(model))[0] == 0
    assert (shell.open("plain-4x.png").mode, shell.open("plain-4x.png").size) == ("RGB", (28, 20))
    code, message = shell("upscale", "plain.png", "--upscaler", "model", "--model", "absent", "-o", "b.png")
    assert (code, "absent" in message) == (3, True)


def test_a_grid_over_three_parameters(shell: Shell) -> None:
    axes = ("--x", "steps=1,2,3", "--y", "sampler=euler,DPM++ 2M", "--z", "prompt=cat>cat,cat>dog")
    code, _ = shell("grid", "a cat", "--model", "untrained", "--size", "32", *axes, "-o", "grid.png")
    assert code == 0
    sheet = shell.open("grid.png")
    assert sheet.width > 3 * 32
    assert sheet.height > 4 * 32
    code, message = shell("grid", "a", "--model", "untrained", "--x", "sampler=eulr", "-o", "b.png")
    assert (code, "euler" in message) == (2, True)
    assert shell("grid", "a", "--model", "untrained", "--x", "nonsense", "-o", "b.png")[0] == 2


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (("grid", "a cat", "--x", "seed=1,2"), "PNG"),
        (("interpolate", "a cat", "--to-seed", "2", "--frames", "2"), "GIF"),
    ],
)
def test_sheets_and_films_to_standard_output(shell: Shell, command: tuple[str, ...], kind: str) -> None:
    result = CliRunner().invoke(app, [*command, *QUICK, "--size", "32", "-o", "-"])
    assert result.exit_code == 0, result.stderr
    with Image.open(io.BytesIO(result.stdout_bytes)) as picture:
        assert picture.format == kind
        assert getattr(picture, "n_frames", 1) == (2 if kind == "GIF" else 1)
    assert sorted(path.name for path in shell.folder.iterdir()) == ["a.png"]
    code, message = shell(*command, *QUICK, "-o", "-", "--json")
    assert (code, "- and --json" in message) == (2, True)


def test_a_sheet_tells_which_characters_no_font_has(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "font_folders", lambda: [shell.folder])
    arguments = ("grid", "a cat", "--x", "prompt=cat>cat,cat>猫", *QUICK, "--size", "32", "-o")
    result = CliRunner().invoke(app, [*arguments, "g.png"])
    assert result.exit_code == 0
    assert "no font on this machine has 猫" in result.stderr
    assert "GOUACHE_FONT" in result.stderr
    (shell.folder / "p.txt").write_text("a cat\n一只猫\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["paint", "--from-file", "p.txt", "--grid", "--seed", "1", *QUICK, "--size", "32"])
    assert result.exit_code == 0
    assert "has 一只猫" in result.stderr


def test_show_prints_the_recipe(shell: Shell) -> None:
    code, out = shell("show", "a.png")
    assert code == 0
    assert "prompt: a cat" in out
    assert "seed: 5" in out
    values = json.loads(shell("show", "a.png", "--json")[1])
    assert values["tool"] == "gouache"
    assert values["recipe"]["model"]["name"] == "untrained"
    Image.new("RGB", (8, 8)).save("bare.png")
    code, message = shell("show", "bare.png")
    assert (code, "recipe" in message) == (2, True)


def test_replay_says_same_different_or_why_not(shell: Shell) -> None:
    code, out = shell("replay", "a.png", "-o", "again.png")
    assert (code, "identical" in out) == (0, True)
    assert shell.open("again.png").tobytes() == shell.open("a.png").tobytes()

    recipe = Recipe.from_json(read_texts(Path("a.png"))["gouache"])
    other = recipe.model_copy(update={"steps": (recipe.steps[0], "00000000"), "pixels": "0" * 64})
    Path("other.png").write_bytes(encode_picture(shell.open("a.png"), "png", {"gouache": other.to_json()}))
    code, out = shell("replay", "other.png", "--json")
    assert code == 1
    assert json.loads(out.splitlines()[-1])["first_different_step"] == 1

    model = recipe.model.model_copy(update={"name": "lost-model", "sha256": "ab" * 32})
    request = recipe.request.replace({"model": "lost-model"})
    lost = recipe.model_copy(update={"model": model, "request": request})
    Path("lost.png").write_bytes(encode_picture(shell.open("a.png"), "png", {"gouache": lost.to_json()}))
    code, message = shell("replay", "lost.png")
    assert code == 2
    assert "lost-model" in message
    assert "ab" * 32 in message

    Path("foreign.png").write_bytes(
        encode_picture(shell.open("a.png"), "png", {"parameters": "x\nSteps: 1, Sampler: Euler, Seed: 2"})
    )
    code, message = shell("replay", "foreign.png")
    assert (code, "a1111" in message) == (2, True)


def test_replay_notices_a_changed_starting_picture(shell: Shell) -> None:
    assert shell("edit", "a.png", "a dog", *QUICK, "-o", "b.png")[0] == 0
    assert shell("replay", "b.png")[0] == 0
    Image.new("RGB", (32, 32), "blue").save("a.png")
    code, message = shell("replay", "b.png")
    assert (code, "changed" in message) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("edit", "absent.png", "x"), "absent.png"),
        (("edit", "a.png", "x", "--outpaint"), "outpaint-left"),
        (("edit", "a.png", "x", "--mask", "absent.png"), "absent.png"),
        (("edit", "notes.txt", "x"), "notes.txt"),
        (("vary", "absent.png"), "absent.png"),
        (("interpolate", "a", "-o", "way.gif"), "prompt, seed or picture"),
        (("show", "notes.txt"), "notes.txt"),
        (("upscale", "notes.txt"), "notes.txt"),
    ],
)
def test_wrong_use_is_exit_code_two_with_a_cure(shell: Shell, arguments: tuple[str, ...], words: str) -> None:
    (shell.folder / "notes.txt").write_text("no picture")
    before = sorted(entry.name for entry in shell.folder.iterdir())
    more = () if arguments[0] in ("show", "upscale", "vary") else QUICK
    code, message = shell(*arguments, *more)
    assert code == 2
    assert words in message
    assert sorted(entry.name for entry in shell.folder.iterdir()) == before
