"""Training runs from the server: names and uploads that can't escape, who may, errors as they are, and a whole run."""

from __future__ import annotations

import io
import json
import os
import signal
import time
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from gouache.errors import Conflict, DataError, InvalidInput, ModelNotFound, NotFound, PictureError
from gouache.serve.http.access import check_admin, is_admin
from gouache.serve.http.replies import NotAllowed
from gouache.serve.studio import Studio
from gouache.serve.training.plan import PLAN, STATE, RunState, TrainingPlan, commands, read_state, toml_of, write_text
from gouache.serve.training.run_process import error_in, is_alive, take_lock
from gouache.serve.training.runs import TrainingRun

if TYPE_CHECKING:
    from tests.serve.conftest import StartServer


def png(colour: str = "red", side: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(method: int = zipfile.ZIP_STORED, /, **files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def squares(folder: Path, count: int = 8) -> None:
    """Captioned pictures; one in twenty is held out by content, these eight have one."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.full((32, 32, 3), 30 * i, np.uint8)
        pixels[8:24, 8:24] = (255, 20 * i, 0)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"square number {i}")


def until(studio: Studio, name: str, phases: tuple[str, ...], seconds: float = 200) -> TrainingRun:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        run = studio.training.get(name)
        if run.phase in phases:
            return run
        time.sleep(0.1)
    raise TimeoutError(f"{name} is {run.phase} after {seconds} s: {run.doing} {run.error}")


def plan(**changes: object) -> TrainingPlan:
    plain: dict[str, object] = {
        "name": "mine",
        "stage": "denoiser",
        "data": "cats",
        "pictures": 8,
        "model": "tiny",
        "start": 'a "b"/c',
        "size": 32,
        "minutes": 1,
        "learning_rate": 1e-4,
        "batch_size": 8,
        "created": 1.0,
        "owner": "local",
    }
    return TrainingPlan.from_dict({**plain, **changes})


def test_pictures_captions_and_zips_are_put_into_a_set(studio: Studio) -> None:
    sets = studio.training.sets
    sets.add("cats", "one.png", png())
    sets.add("cats", "one.txt", b"a cat")
    archive = {
        "deep/two.png": png(),
        "deep/two.txt": b"two",
        "__MACOSX/._two.png": b"x",
        "run.py": b"x",
        ".hidden.png": b"x",
    }
    found = sets.add("cats", "more.zip", zipped(**archive))
    assert (found.name, found.pictures, found.captioned) == ("cats", 2, 2)
    assert {path.name for path in sets.folder("cats").iterdir()} == {"one.png", "one.txt", "two.png", "two.txt"}
    assert [each.name for each in sets.listing()] == ["cats"]


@pytest.mark.parametrize("name", ["..", "../jobs", "a/b", "/etc", "a\0b", "", ".hidden", "x" * 90, "a\\b"])
def test_no_name_leads_out_of_the_folder(studio: Studio, name: str) -> None:
    with pytest.raises(InvalidInput):
        studio.training.sets.add(name, "one.png", png())
    with pytest.raises(InvalidInput):
        studio.training.sets.folder(name)
    with pytest.raises(InvalidInput):
        studio.training.get(name)
    assert not studio.training.sets.root.exists()


@pytest.mark.parametrize("file", ["one.py", "one.pt", "..", "one", "one.svg"])
def test_other_files_are_refused(studio: Studio, file: str) -> None:
    with pytest.raises(InvalidInput):
        studio.training.sets.add("cats", file, png())


def test_a_files_folder_is_cut_off(studio: Studio) -> None:
    studio.training.sets.add("cats", "../../escape.png", png())
    assert (studio.training.sets.folder("cats") / "escape.png").is_file()


def test_bad_uploads_are_named(studio: Studio) -> None:
    sets = studio.training.sets
    with pytest.raises(PictureError):
        sets.add("cats", "one.png", b"no picture")
    with pytest.raises(DataError, match="whole zip"):
        sets.add("cats", "one.zip", b"no zip")
    packed = bytearray(zipped(zipfile.ZIP_DEFLATED, **{"a.txt": b"a cat on a mat" * 50}))
    packed[40:46] = b"\xff" * 6  # Amid the packed bytes: the directory at the end is whole.
    with pytest.raises(DataError, match="whole zip"):
        sets.add("cats", "one.zip", bytes(packed))
    with pytest.raises(DataError, match="no picture and no caption"):
        sets.add("cats", "one.zip", zipped(**{"a.py": b"x"}))
    with pytest.raises(DataError, match="two files named"):
        sets.add("cats", "one.zip", zipped(**{"a/x.txt": b"1", "b/x.txt": b"2"}))
    with pytest.raises(InvalidInput):
        sets.add("cats", "one.zip", zipped(**{"a/what?.txt": b"1"}))
    assert not sets.root.exists()


def test_a_zip_that_unpacks_to_too_much_is_refused(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gouache.serve.training.sets.MOST_BYTES", 1000)
    with pytest.raises(DataError, match="bytes unpacked"):
        studio.training.sets.add("cats", "one.zip", zipped(**{"a.txt": b"x" * 2000}))


def test_a_linked_folder_is_no_set(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    studio.training.sets.root.mkdir()
    (studio.training.sets.root / "link").symlink_to(tmp_path / "elsewhere")
    assert studio.training.sets.listing() == []
    with pytest.raises(NotFound):
        studio.training.sets.folder("link")
    with pytest.raises(NotFound):
        studio.training.sets.add("link", "one.png", png())
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_cannot_be_trained_is_refused_before_anything_is_written(studio: Studio) -> None:

    def start(**asked: Any) -> None:
        studio.training.start(studio.training.plan(**asked))

    with pytest.raises(NotFound, match="none is there yet"):
        start(owner="local", name="run", stage="vae", data="cats", minutes=1)
    studio.training.sets.add("cats", "one.png", png())
    with pytest.raises(DataError, match="no caption"):
        start(owner="local", name="run", stage="vae", data="cats", minutes=1)
    studio.training.sets.add("cats", "one.txt", b"a cat")
    with pytest.raises(ModelNotFound):
        start(owner="local", name="run", stage="denoiser", data="cats", minutes=1, model="nowhere")
    for wrong in ({"minutes": 0.0}, {"minutes": float("nan")}, {"size": 33}, {"size": 100_000}, {"batch_size": 0}):
        with pytest.raises(InvalidInput):
            start(**{"owner": "local", "name": "run", "stage": "vae", "data": "cats", "minutes": 1.0, **wrong})
    assert not studio.training.root.exists()


def test_the_config_is_the_plans() -> None:
    config = tomllib.loads(toml_of(plan()))
    assert config["denoiser"]["start"] == 'a "b"/c'
    # Every picture is encoded once; the number is only the most that a large set's captions and flips may be.
    assert config["data"] == {"size": 32, "flip": False, "examples": 20_000}
    assert "prior" not in config
    assert config["denoiser"]["optimizer"]["learning_rate"] == 1e-4
    assert config["denoiser"]["loop"]["precision"] == "auto"
    config = tomllib.loads(toml_of(plan(drafts=True)))
    assert config["prior"]["start"] == config["denoiser"]["start"] == 'a "b"/c'
    assert config["prior"]["optimizer"]["learning_rate"] == 2.5e-4
    config = tomllib.loads(toml_of(plan(stage="lora", drafts=True, family="pocket", flip=True)))
    assert (config["lora"]["start"], config["data"]["flip"]) == ('a "b"/c', True)
    assert config["lora"]["prior_learning_rate"] == 3e-4
    config = tomllib.loads(toml_of(plan(stage="decoder")))
    assert (config["vae"]["start"], config["vae"]["freeze"]) == ('a "b"/c', ["encoder"])
    config = tomllib.loads(toml_of(plan(stage="vae", start=None, size=128)))
    assert config["vae"]["loop"]["batch_size"] == 8
    assert config["vae"]["network"]["patch_size"] == 4


@pytest.mark.parametrize(
    ("stage", "drafts"), [("lora", True), ("denoiser", False), ("denoiser", True), ("decoder", False), ("vae", False)]
)
def test_training_takes_the_config(tmp_path: Path, stage: str, drafts: bool) -> None:
    from gouache.training.config import read_config

    asked = plan(stage=stage, drafts=drafts)
    (tmp_path / "config.toml").write_text(toml_of(asked), encoding="utf-8")
    steps = commands(asked, tmp_path, tmp_path / "pictures")
    for part in asked.parts:
        assert read_config(tmp_path / "config.toml", part).data.size == 32
        assert steps[part][:2] == ["train", part]
        assert steps[part][-1] == f"{asked.minutes / len(asked.parts):g}"


def test_an_error_is_shown_as_it_is() -> None:
    assert error_in("noise\ngouache: data: given x, expected y. Do z.\n", 2) == "data: given x, expected y. Do z."
    assert error_in("Traceback\nKeyError: 'x'\n", 1) == "KeyError: 'x' (exit status 1)"
    assert error_in("", -9) == "no output (exit status -9)"


def test_a_lock_says_whether_a_run_lives(tmp_path: Path) -> None:
    assert not is_alive(tmp_path)
    lock = take_lock(tmp_path)
    assert lock is not None
    assert is_alive(tmp_path)
    assert take_lock(tmp_path) is None
    os.close(lock)
    assert not is_alive(tmp_path)


def test_a_run_that_died_too_often_is_given_up(studio: Studio) -> None:
    folder = studio.training.root / "mine"
    folder.mkdir(parents=True)
    write_text(folder / PLAN, plan().to_json())
    write_text(folder / STATE, RunState(pid=2**22 + 1, step="train", attempts=3).to_json())
    assert studio.training.get("mine").phase == "interrupted"
    studio.training.resume_all()
    run = studio.training.get("mine")
    assert (run.phase, run.error) == ("failed", "its process ended 3 times without a word")
    with pytest.raises(Conflict):
        studio.training.stop("mine")
    studio.training.delete("mine")
    with pytest.raises(NotFound):
        studio.training.get("mine")


def test_only_administrators_train(studio: Studio) -> None:
    assert is_admin(studio, "local")
    studio.accounts.add_token("ada", "a-token-that-is-long-enough")
    assert not is_admin(studio, "local")
    assert is_admin(studio, "admin")
    with pytest.raises(NotAllowed, match="--admin NAME"):
        check_admin(studio, "ada")


def test_others_get_403_on_every_route(start_server: StartServer) -> None:
    token = "a-token-that-is-long-enough"
    server = start_server(workers=0, prepare=lambda studio: studio.accounts.add_token("ada", token))
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
        body = {"name": "x", "data": "x", "minutes": 1}
        answers = [
            client.get("/v1/training/sets"),
            client.put("/v1/training/sets/cats/one.png", content=png()),
            client.get("/v1/training/sets/cats/pictures"),
            client.put("/v1/training/sets/cats/captions/one.png", json={"caption": "a cat"}),
            client.get("/v1/training/sets/cats/thumbnails/one.png"),
            client.delete("/v1/training/sets/cats/pictures/one.png"),
            client.delete("/v1/training/sets/cats"),
            client.post("/v1/training/plan", json=body),
            client.get("/v1/training/runs"),
            client.post("/v1/training/runs", json=body),
            client.get("/v1/training/runs/x"),
            client.get("/v1/training/runs/x/log"),
            client.get("/v1/training/runs/x/samples/1"),
            client.post("/v1/training/runs/x/stop"),
            client.post("/v1/training/runs/x/resume", json={}),
            client.delete("/v1/training/runs/x"),
            client.get("/v1/models/pulls"),
            client.post("/v1/models/pulls", json={"repo": "a/b"}),
            client.delete("/v1/models/pulls"),
        ]
        assert [answer.status_code for answer in answers] == [403] * len(answers)
        assert client.get("/v1/models/default").json() == {"model": "pocket"}
    assert not (server.studio.settings.data / "training").exists()


@pytest.mark.timeout(300)
def test_a_run_that_fails_says_why_in_its_own_words(start_server: StartServer) -> None:
    server = start_server(workers=0)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.put("/v1/training/sets/cats/one.png", content=png()).json()["pictures"] == 1
        assert client.put("/v1/training/sets/cats/more.zip", content=b"no zip").status_code == 422
        client.put("/v1/training/sets/cats/metadata.csv", content=b"file_name,nothing\none.png,x\n")
        body = {"name": "mine", "stage": "vae", "data": "cats", "minutes": 1, "size": 32}
        assert client.post("/v1/training/runs", json=body).status_code == 202
        assert client.post("/v1/training/runs", json={**body, "name": "second"}).status_code == 409
        run = until(server.studio, "mine", ("failed",))
        assert "expected columns file_name and text" in run.error
        view = client.get("/v1/training/runs/mine").json()
        assert view["phase"] == "failed"
        assert view["error"].startswith(".../training/cats/metadata.csv: given columns")  # And not where that lies.
        assert view["problem"]["expected"] == "columns file_name and text (or caption, captions)"
        assert client.delete("/v1/training/runs/mine").status_code == 204
        assert client.get("/v1/training/runs/mine").status_code == 404


def with_a_model_and_squares(start_server: StartServer, tmp_path: Path) -> Studio:
    """A server without workers, with a model to start from and a set to train on."""
    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.pipeline.pipeline import untrained_bundle

    write_model(bundle_to_write(untrained_bundle()), tmp_path / "data" / "models" / "tiny", "gouache")
    squares(tmp_path / "data" / "training" / "squares")
    return start_server(workers=0).studio


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_learns_is_killed_goes_on_is_stopped_and_paints(start_server: StartServer, tmp_path: Path) -> None:
    from gouache.checkpoints.load import load_bundle

    studio = with_a_model_and_squares(start_server, tmp_path)
    plan = studio.training.plan(
        owner="local", name="mine", stage="denoiser", data="squares", minutes=30, model="tiny", size=32
    )
    studio.training.start(plan)
    until(studio, "mine", ("training",))
    while not studio.training.log("mine"):
        time.sleep(0.2)
    state = read_state(studio.training.root / "mine")
    for process in (state.pid, state.child):
        os.kill(process, signal.SIGKILL)
    assert until(studio, "mine", ("interrupted",)).error == ""

    # Another server on the same folder goes on with it.
    second = Studio(studio.settings)
    second.training.resume_all()
    until(second, "mine", ("training",))
    with pytest.raises(Conflict, match="under way"):
        second.training.resume("mine")
    while read_state(second.training.root / "mine").since == 0:
        time.sleep(0.2)
    assert second.training.stop("mine").phase == "stopping"
    run = until(second, "mine", ("stopped",))
    assert run.images_seen > 0
    assert second.training.samples("mine")
    second.catalog.refresh()
    assert load_bundle(second.catalog.find("mine").path or "").name == "mine"
    lines = (studio.training.root / "mine" / "denoiser" / "log.jsonl").read_text().splitlines()
    assert all(json.loads(line)["images_seen"] for line in lines)
    second.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_refined_decoder_is_the_only_thing_that_differs(start_server: StartServer, tmp_path: Path) -> None:
    import torch

    from gouache.checkpoints.load import load_bundle

    studio = with_a_model_and_squares(start_server, tmp_path)
    plan = studio.training.plan(
        owner="local", name="sharp", stage="decoder", data="squares", minutes=0.05, model="tiny", size=32
    )
    studio.training.start(plan)
    run = until(studio, "sharp", ("done", "failed"), 600)
    assert (run.phase, run.error) == ("done", "")
    studio.catalog.refresh()
    before, after = (load_bundle(studio.catalog.find(name).path or "") for name in ("tiny", "sharp"))
    assert (after.name, after.family) == ("sharp", before.family)
    changed = {
        f"{part}.{name}"
        for part, network in before.networks().items()
        for name, weight in network.state_dict().items()
        if not torch.equal(weight.half(), after.networks()[part].state_dict()[name].half())  # Packed as fp16.
    }
    assert changed
    assert all(name.startswith(("vae.decoder.", "vae.post_quant_conv.")) for name in changed), changed
