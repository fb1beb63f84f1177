"""`gouache paint --from-file` as a batch on one machine: it goes on where it stopped, here and in an object store."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from gouache.errors import ClusterError, StoreAway, StoreError
from gouache.pipeline.batch import with_steady_seeds
from gouache.pipeline.output.recipe import model_ref
from gouache.pipeline.pipeline import open_pipeline
from gouache.pipeline.request import Request
from gouache.scale.folders import ObjectFolder, open_folder
from gouache.scale.painting import Line, PaintWork, checked, encoded

if TYPE_CHECKING:
    from tests.scale.conftest import Run

QUICK = ("--steps", "2", "--size", "32", "--model", "untrained")
LINES = """a red apple
{"prompt": "a blue car", "seed": 5, "count": 2}
# a note
a red apple
"""
BROKEN = '{"prompt": "a broken line"\n{"prompt": "another", "sampler": "nope"}\n{"prompt": "third", "stepps": 3}\n'


def digests(folder: Path) -> dict[str, str]:
    """Every file's name and sha256."""
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_batch_goes_on_with_what_is_missing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(LINES)
    (tmp_path / "out").mkdir()
    command = ("paint", "--from-file", "p.jsonl", "--resume", "-o", "out", *QUICK)
    code, out, _ = run(*command)
    whole = digests(tmp_path / "out")
    assert code == 0
    assert len(whole) == len(out.splitlines()) == 4, "one picture a line, and two for the line that asks for two"
    assert len(set(whole.values())) == 4, "equal lines have seeds of their own"
    (tmp_path / "out" / "a-blue-car-6.png").unlink()
    code, out, told = run(*command)
    assert (code, out.split()) == (0, ["out/a-blue-car-6.png"])
    assert "3 pictures were there already" in told
    assert digests(tmp_path / "out") == whole


def test_a_batch_paints_what_a_plain_run_paints(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(LINES)
    for folder in ("plain", "batch"):
        (tmp_path / folder).mkdir()
    assert run("paint", "--from-file", "p.jsonl", "--seed", "9", "-o", "plain", *QUICK)[0] == 0
    assert run("paint", "--from-file", "p.jsonl", "--seed", "9", "--resume", "-o", "batch", *QUICK)[0] == 0
    assert digests(tmp_path / "batch") == digests(tmp_path / "plain")
    assert "a-red-apple-9-2.png" in digests(tmp_path / "batch"), "equal names are numbered in the order of the lines"


def test_broken_lines_are_named_and_the_others_painted(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(LINES + BROKEN)
    (tmp_path / "out").mkdir()
    code, out, told = run("paint", "--from-file", "p.jsonl", "--resume", "--json", "-o", "out", *QUICK)
    found = json.loads(out)
    assert code == 2
    assert [one["line"] for one in found["not_painted"]] == ["p.jsonl:5", "p.jsonl:7", "p.jsonl:6"]
    assert len(found["pictures"]) == len(digests(tmp_path / "out")) == 4
    assert "3 of 6 lines not painted: 5, 7, 6" in told


def test_a_file_that_is_another_picture_is_kept(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red apple\na blue car\n")
    (tmp_path / "out").mkdir()
    command = ("paint", "--from-file", "p.txt", "--resume", "--seed", "1", "-o", "out", *QUICK)
    assert run(*command)[0] == 0
    Image.new("RGB", (8, 8)).save(tmp_path / "out" / "a-red-apple-1.png")
    before = digests(tmp_path / "out")
    code, _, told = run(*command)
    assert code == 2
    assert "out/a-red-apple-1.png: given a file that exists and is not this line's picture" in told
    assert digests(tmp_path / "out") == before
    code, _, told = run(*command, "--guidance", "2")
    assert (code, "2 of 2 lines" in told) == (2, True)
    assert run(*command, "--force")[0] == 0
    assert digests(tmp_path / "out") != before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--resume",), "no --from-file"),
        (("-o", "s3://bucket/x"), "no --from-file"),
        (("--from-file", "p.txt", "--resume", "--grid"), "--grid"),
        (("--from-file", "p.txt", "--resume", "-o", "p.txt/deep"), "p.txt: given a file"),
        (("--from-file", "p.txt", "-o", "nowhere://x"), "an address such as s3://bucket/prefix"),
        (("--from-file", "p.txt", "--ray", "127.0.0.1:9"), "the address of a cluster that runs"),
    ],
)
def test_what_a_batch_refuses(arguments: tuple[str, ...], says: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red apple\n")
    code, _, told = run("paint", *arguments, *QUICK)
    assert code != 0
    assert says in told


def test_seeds_follow_from_prompts() -> None:
    first = with_steady_seeds(
        [Request(prompt="a"), Request(prompt="b"), Request(prompt="a"), Request(prompt="c", seed=4)]
    )
    again = with_steady_seeds([Request(prompt="b"), Request(prompt="a"), Request(prompt="a", count=2)])
    assert len({one.seed for one in first}) == 4
    assert first[3].seed == 4
    assert (first[0].seed, first[1].seed, first[2].seed) == (again[1].seed, again[0].seed, again[2].seed)


def test_a_picture_that_came_back_wrong_is_not_taken() -> None:
    pipeline, _ = open_pipeline("untrained")
    plan = pipeline.plan(Request(prompt="a", seed=3, width=32, height=32, num_inference_steps=2))
    (painted,) = pipeline.paint(plan.request)
    model, line = model_ref(pipeline.bundle), Line("p.txt:1", plan, ("a.png",))
    whole = encoded(painted, ("a note",))
    assert checked(line, 0, whole, model).recipe.notes[0] == "a note"
    other = replace(painted, image=Image.new("RGB", (32, 32)))
    elsewhere = Line("p.txt:1", pipeline.plan(plan.request.replace({"seed": 4})), ("a.png",))
    for one, data, says in (
        (line, whole[:200], "p.txt:1"),
        (line, encoded(other, ()), "another sha256"),
        (elsewhere, whole, "another request"),
    ):
        with pytest.raises(ClusterError, match=says):
            checked(one, 0, data, model)
    with pytest.raises(ClusterError, match="by another"):
        checked(line, 0, whole, model.model_copy(update={"name": "another", "sha256": "ab" * 32}))


def test_a_node_of_another_build_refuses() -> None:
    with pytest.raises(ClusterError, match=r"torch .* for 0\.1"):
        PaintWork("untrained", None, None, None, {"torch": "0.1"}, {}, ())


@pytest.mark.usefixtures("s3")
def test_an_object_store_is_a_folder(run: Run, tmp_path: Path) -> None:
    import s3fs

    s3fs.S3FileSystem().mkdir("pictures")
    (tmp_path / "p.jsonl").write_text(LINES)
    (tmp_path / "here").mkdir()
    place = "s3://pictures/some/where"
    command = ("paint", "--from-file", "p.jsonl", *QUICK)
    code, out, _ = run(*command, "-o", place)
    assert code == 0
    assert all(line.startswith(f"{place}/") for line in out.splitlines())
    assert run(*command, "--resume", "-o", "here")[0] == 0
    folder = open_folder(place)
    stored = {name: sha256(folder.read(name)).hexdigest() for name in folder.names()}
    assert stored == digests(tmp_path / "here")
    s3fs.S3FileSystem().rm(f"{place}/a-blue-car-5.png")
    code, out, told = run(*command, "-o", place)
    assert (code, out.split()) == (0, [f"{place}/a-blue-car-5.png"])
    assert "3 pictures were there already" in told


@pytest.mark.usefixtures("s3")
def test_a_store_that_is_missing_away_or_full(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.txt").write_text("a red apple\n")
    code, _, told = run("paint", "--from-file", "p.txt", "-o", "s3://absent/x", *QUICK)
    assert code == StoreError.exit_code
    assert "a bucket that is there" in told
    with pytest.raises(StoreAway, match="full"):
        _full_disk(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreAway, match="answers"):
        ObjectFolder("s3://other/x").check()


def _full_disk(tmp_path: Path) -> None:
    """/dev/full takes no byte: the one disk that is surely full."""
    (tmp_path / "a.png").symlink_to("/dev/full")
    ObjectFolder(f"file://{tmp_path}").write("a.png", b"x" * 100_000)
