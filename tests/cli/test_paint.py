"""`gouache paint` from the outside: files, JSON, exit codes, streams; options and the request have the same fields."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gouache.cli import paint as paint_module
from gouache.cli.main import app
from gouache.cli.options import EDITING, option_specs, request_values
from gouache.cli.output import interrupts_held, shown, traced
from gouache.errors import GouacheError, InvalidInput
from gouache.pipeline.output.foreign import read_recipe
from gouache.pipeline.request import BlockCache, DeepCache, Request

QUICK = ["--steps", "2", "--size", "32", "--model", "untrained"]


def gouache(*arguments: str, folder: Path, text: str | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own, on one thread."""
    return subprocess.run(
        [sys.executable, "-m", "gouache", *arguments],
        cwd=folder,
        input=None if text is None else text.encode(),
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run_here(*arguments: str, monkeypatch: pytest.MonkeyPatch, folder: Path, given: bytes = b"") -> tuple[int, str]:
    """Run the command in this process, which is quicker; gives exit code and standard output."""
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, [*arguments], input=given)
    if isinstance(result.exception, GouacheError):
        return result.exception.exit_code, str(result.exception)
    return result.exit_code, result.stdout


def test_every_field_of_the_request_has_an_option() -> None:
    found = {spec.path for spec in option_specs()}
    for name, field in Request.model_fields.items():
        assert name == "prompt" or any(path[0] == name for path in found), f"{name} has no option"
        assert field.description
    names = [spec.name for spec in option_specs()]
    assert len(names) == len(set(names)), "two options share a name"
    left = {spec.path[0] for spec in option_specs(EDITING)}
    assert left == set(Request.model_fields) - set(EDITING) - {"prompt"}


def test_options_become_the_request_they_name() -> None:
    specs = option_specs()
    given = {
        "seed": 3,
        "mask": "m.png",
        "mask_blur": 9,
        "hires": True,
        "hires_scale": 1.5,
        "upscale": 4.0,
        "apg": True,
        "fast": True,
        "deep_cache_branch": 1,
        "block_cache": 0.2,
        "guidance_interval": "0.5,4",
        "sigmas": "10,1,0",
        "prior": False,
        "init_image": "a.png",
        "vae_tiling": True,
        "control": ["canny:a:b.png:0.5,end=0.6", "model=depth,image=c,d.png,guess=true"],
        "image_prompts": ["faces:a.png+b.png:0.5,mask=m.png,start=0.1", "c.png:0.25", "adapter=x,images=d.png"],
    }
    request = Request.from_dict(request_values(specs, given))
    assert request.seed == 3
    assert request.mask is not None
    assert (request.mask.image, request.mask.blur) == ("m.png", 9)
    assert request.hires is not None
    assert request.hires.scale == 1.5
    assert request.upscale is not None
    assert request.upscale.factor == 4
    assert request.apg is not None
    assert request.guidance_interval == (0.5, 4)
    assert request.fast
    assert request.deep_cache == DeepCache(branch=1)
    assert request.block_cache == BlockCache(threshold=0.2)
    assert request.sigmas == (10, 1, 0)
    assert request.prior is not None
    assert request.prior.enabled is False
    first, second = request.control
    assert (first.model, first.image, first.weight, first.end) == ("canny", "a:b.png", 0.5, 0.6)
    assert (second.model, second.image, second.weight, second.guess) == ("depth", "c,d.png", 1.0, True)
    one, two, third = request.image_prompts
    assert (one.adapter, one.images, one.weight) == ("faces", ("a.png", "b.png"), 0.5)
    assert (one.mask, one.start, one.end) == ("m.png", 0.1, 1.0)
    assert (two.adapter, two.images, two.weight) == (None, ("c.png",), 0.25)
    assert (third.adapter, third.images, third.weight) == ("x", ("d.png",), 1.0)
    with pytest.raises(InvalidInput, match="ADAPTER:"):
        request_values(specs, {"image_prompts": ["faces:"]})
    assert request_values(specs, {"control": []}) == {}
    areas = [("0,0,.5,1,weight=2,feather=0.1", "a red apple"), ("a,b.png,base=0", "")]
    box, mask = Request.from_dict(request_values(specs, {"region": areas})).regions
    assert (box.box, box.weight, box.feather, box.prompt) == ((0, 0, 0.5, 1), 2, 0.1, "a red apple")
    assert (mask.mask, mask.base, mask.prompt) == ("a,b.png", 0, "")
    for area in ("", "weight=2", "0,0,.5,1,colour=red"):
        with pytest.raises(InvalidInput, match="AREA"):
            request_values(specs, {"region": [(area, "a cup")]})
    with pytest.raises(InvalidInput, match="MODEL:PICTURE"):
        request_values(specs, {"control": ["edges.png"]})
    assert request_values(specs, {}) == {}
    with pytest.raises(InvalidInput, match="numbers"):
        request_values(specs, {"sigmas": "a,b"})


def test_regions_take_two_values_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    areas = ("--region", "0,0,.5,1", "a red apple", "--region", ".5,0,1,1,base=0", "a blue cup")
    code, out = run_here("paint", "fruit", *QUICK, *areas, "--seed", "7", monkeypatch=monkeypatch, folder=tmp_path)
    assert (code, out.split()) == (0, ["fruit-7.png"])
    regions = read_recipe(tmp_path / "fruit-7.png").request.regions
    assert [(one.prompt, one.box, one.base) for one in regions] == [
        ("a red apple", (0, 0, 0.5, 1), 0.2),
        ("a blue cup", (0.5, 0, 1, 1), 0),
    ]


def test_pictures_are_written_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out = run_here(
        "paint", "A red Apple!", *QUICK, "--seed", "7", "-n", "2", "--grid", monkeypatch=monkeypatch, folder=tmp_path
    )
    assert code == 0
    assert out.split() == ["a-red-apple-7.png", "a-red-apple-8.png", "a-red-apple-7-grid.png"]
    assert read_recipe(tmp_path / "a-red-apple-8.png").request.seed == 8
    with Image.open(tmp_path / "a-red-apple-7-grid.png") as sheet:
        assert sheet.width > 64
    (tmp_path / "prompts.txt").write_text("a cat\na very long story of a dog that never comes to an end\n")
    code, out = run_here(
        "paint", "--from-file", "prompts.txt", *QUICK, "--seed", "7", "--grid", monkeypatch=monkeypatch, folder=tmp_path
    )
    assert (code, len(out.split())) == (0, 3)
    with Image.open(tmp_path / "a-cat-7-grid.png") as sheet:
        words = np.asarray(sheet.convert("L"))[-30:]
        assert words.min() < 128, "the prompts stand below their pictures"
        assert words.max() == 255


def test_what_was_cut_from_a_long_prompt_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prompt = ("apple " * 4000).strip()
    result = CliRunner().invoke(app, ["paint", prompt, *QUICK, "--seed", "7", "--count", "2"])
    assert result.exit_code == 0
    assert result.stderr.count("tokens were cut, from 'apple apple") == 1
    assert len(result.stdout.split()) == 2


def test_json_is_one_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out = run_here("paint", "x", *QUICK, "--seed", "7", "--json", monkeypatch=monkeypatch, folder=tmp_path)
    values = json.loads(out)
    assert code == 0
    assert values["pictures"][0]["seed"] == 7
    assert values["files"] == ["x-7.png"]
    assert values["interrupted"] is False


def test_files_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x-7.png").write_bytes(b"mine")
    arguments = ("paint", "x", *QUICK, "--seed", "7")
    code, message = run_here(*arguments, monkeypatch=monkeypatch, folder=tmp_path)
    assert (code, "--force" in message) == (2, True)
    assert (tmp_path / "x-7.png").read_bytes() == b"mine"
    assert run_here(*arguments, "--force", monkeypatch=monkeypatch, folder=tmp_path)[0] == 0
    assert read_recipe(tmp_path / "x-7.png").request.seed == 7


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_other_formats_keep_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    code, _ = run_here("paint", "x", *QUICK, "-o", f"out.{suffix}", monkeypatch=monkeypatch, folder=tmp_path)
    assert code == 0
    assert read_recipe(tmp_path / f"out.{suffix}").request.prompt == "x"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--steps", "0"), 2, "num_inference_steps"),
        (("--size", "big"), 2, "512x768"),
        (("--sampler", "eulr"), 2, "euler"),
        (("--model", "no-such-model"), 3, "gouache models"),
        (("--device", "cuda:77"), 2, "doctor"),
        (("--dtype", "int4"), 2, "float16"),
        (("-o", "/dev/null/x.png"), 2, "folder"),
        (("-o", "x.tga"), 2, ".png"),
        (("-o", "-", "-n", "2"), 2, "standard output"),
        (("--like", "absent.png"), 2, "absent.png"),
    ],
)
def test_wrong_use_has_its_exit_code_and_a_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, words: str
) -> None:
    found, message = run_here("paint", "x", *QUICK, *arguments, monkeypatch=monkeypatch, folder=tmp_path)
    assert found == code
    assert words in message
    assert list(tmp_path.iterdir()) == []


def test_like_starts_from_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_here("paint", "a cat", *QUICK, "--seed", "7", "-o", "a.png", monkeypatch=monkeypatch, folder=tmp_path)
    code, _ = run_here(
        "paint", "--like", "a.png", "--seed", "8", "-o", "b.png", monkeypatch=monkeypatch, folder=tmp_path
    )
    assert code == 0
    first, second = read_recipe(tmp_path / "a.png").request, read_recipe(tmp_path / "b.png").request
    assert second == first.replace({"seed": 8})


def test_the_streams(tmp_path: Path) -> None:
    done = gouache("paint", "-", *QUICK, "-o", "-", folder=tmp_path, text="words from a pipe\n")
    assert done.returncode == 0
    assert read_recipe(done.stdout).request.prompt == "words from a pipe"
    assert Image.open(io.BytesIO(done.stdout)).size == (32, 32)
    assert b"untrained" in done.stderr
    assert b"%" not in done.stderr, "a progress bar went to a pipe"


def test_an_interrupt_keeps_what_is_finished(tmp_path: Path) -> None:
    """Ctrl-C (SIGINT) in the middle of a long run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gouache", "paint", "x", "--model", "untrained", "--seed", "1", "-n", "200", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A test run in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "x-1.png").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - started < 10
    values = json.loads(out)
    assert values["interrupted"] is True
    assert 1 <= len(values["files"]) < 200
    assert "x-1.png" in err.decode()
    for name in values["files"]:
        with Image.open(tmp_path / name) as picture:
            picture.load()
            assert picture.size == (128, 128)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(values["files"])


def test_an_interrupt_waits_until_a_file_is_named() -> None:
    """Between writing a picture and naming it, Ctrl-C would leave a file that nobody is told of."""
    done: list[str] = []

    def written_and_named() -> None:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            done.append("named")

    with pytest.raises(KeyboardInterrupt):
        written_and_named()
    assert done == ["named"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_pictures_are_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vtracer")
    code, out = run_here("paint", "x", *QUICK, "--seed", "7", "--svg", monkeypatch=monkeypatch, folder=tmp_path)
    assert (code, out.split()) == (0, ["x-7.png", "x-7.svg"])
    text = (tmp_path / "x-7.svg").read_text()
    assert "<svg" in text
    assert "<path" in text


def test_a_traced_picture_looks_like_the_picture() -> None:
    pytest.importorskip("vtracer")
    resvg = pytest.importorskip("resvg_py")
    # Soft shading from dark to light inside a disc: a tracer that merges neighbours paints it in one colour.
    rows, columns = np.mgrid[:128, :128]
    shade = np.clip(20 + 1.7 * columns, 0, 255).astype(np.uint8)
    inside = ((rows - 64) ** 2 + (columns - 64) ** 2 < 50**2).astype(np.uint8) * 255
    picture = Image.fromarray(np.dstack([shade, shade // 2, 255 - shade, inside]), "RGBA")
    drawn = Image.open(io.BytesIO(bytes(resvg.svg_to_bytes(svg_string=traced(picture))))).convert("RGBA")
    wanted, found = (np.asarray(one, dtype=float) for one in (picture, drawn))
    assert found[0, 0, 3] == 0
    core = (rows - 64) ** 2 + (columns - 64) ** 2 < 46**2
    assert np.abs(wanted - found)[core].mean() < 6


def test_a_notebook_gets_no_progress_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("JPY_PARENT_PID", "1")  # ipykernel sets it for all that a cell starts
    assert list(shown(iter(()), label="frames")) == []
    assert capsys.readouterr().err == ""


def test_every_command_asks_in_one_place_whether_a_line_can_be_written_over() -> None:
    folder = Path(paint_module.__file__).parent
    asking = [path.name for path in folder.rglob("*.py") if "stderr.isatty" in path.read_text(encoding="utf-8")]
    assert asking == ["output.py"]


def test_many_prompts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts.txt").write_text('a cat\n{"prompt": "a dog", "seed": 9}\n')
    arguments = ("paint", *QUICK, "--seed", "7")
    code, out = run_here(*arguments, "--from-file", "prompts.txt", monkeypatch=monkeypatch, folder=tmp_path)
    assert (code, out.split()) == (0, ["a-cat-7.png", "a-dog-9.png"])
    typed = b'# from a pipe\na cat\n\n{"prompt": "\xe7\x8b\x97", "seed": 9}\n'
    code, out = run_here(
        *arguments, "--from-file", "-", "--force", monkeypatch=monkeypatch, folder=tmp_path, given=typed
    )
    assert (code, out.split()) == (0, ["a-cat-7.png", "\u72d7-9.png"])
    for more, words in ((("-",), "one thing from standard input"), ((), "no prompts")):
        code, out = run_here("paint", *more, "--from-file", "-", monkeypatch=monkeypatch, folder=tmp_path)
        assert (code, words in out) == (2, True), out
    code, out = run_here(*arguments, "--from-file", "-", monkeypatch=monkeypatch, folder=tmp_path, given=b"\xff\xfe")
    assert (code, "prompts in UTF-8" in out) == (2, True), out
    code, out = run_here(*arguments, "city|night", "--matrix", monkeypatch=monkeypatch, folder=tmp_path)
    assert (code, out.split()) == (0, ["city-7.png", "city-night-7.png"])
    code, out = run_here(*arguments, "{red|blue} car", "--dynamic", "-n", "3", monkeypatch=monkeypatch, folder=tmp_path)
    assert code == 0
    assert {name.partition("-car")[0] for name in out.split()} <= {"red", "blue"}
    assert [name.rpartition("-")[2] for name in out.split()] == ["7.png", "8.png", "9.png"]


def test_sizes() -> None:
    assert paint_module.read_size("512") == (512, 512)
    assert paint_module.read_size("512x768") == (512, 768)
