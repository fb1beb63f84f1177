"""Sets of pictures by HTTP: listed, captioned, shown small, thinned out; tables and kohya's folders; nobody else's."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from PIL import Image

from gouache.errors import InvalidInput, NotFound
from gouache.serve.studio import Studio
from gouache.serve.training.plan import PLAN, STATE, RunState, write_text
from gouache.serve.training.run_process import parts_of_error

if TYPE_CHECKING:
    from tests.serve.conftest import Server, StartServer


def png(colour: str = "red", side: int = 600) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side // 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


def filled(root: Path) -> None:
    """A set with a caption, one without, and one in a folder of kohya's kind."""
    folder = root / "training" / "cats"
    (folder / "10_tabby cat").mkdir(parents=True)
    for name in ("one.png", "two & three.png", "10_tabby cat/four.png"):
        (folder / name).write_bytes(png())
    (folder / "one.txt").write_text("a cat\nan animal\n")


def test_a_sets_pictures_are_listed_captioned_shown_and_removed(start_server: StartServer) -> None:
    server = start_server(workers=0, prepare=lambda studio: filled(studio.settings.data))
    with httpx.Client(base_url=f"{server.url}/v1/training", timeout=60) as client:
        found = {one["file"]: one["caption"] for one in client.get("/sets/cats/pictures").json()}
        assert found == {"one.png": "a cat\nan animal", "two & three.png": "", "10_tabby cat/four.png": "tabby cat"}
        [counted] = client.get("/sets").json()
        assert (counted["pictures"], counted["captioned"]) == (3, 2)

        for file in found:
            small = client.get(f"/sets/cats/thumbnails/{file}")
            assert small.headers["content-type"] == "image/webp"
            assert max(Image.open(io.BytesIO(small.content)).size) < 600
        said = client.put("/sets/cats/captions/two & three.png", json={"caption": "  two cats \n\n and one "}).json()
        assert said["caption"] == "two cats\nand one"
        assert (
            client.put("/sets/cats/captions/10_tabby cat/four.png", json={"caption": "four"}).json()["caption"]
            == "four"
        )
        assert client.put("/sets/cats/captions/one.png", json={"caption": ""}).json()["caption"] == ""
        assert client.put("/sets/cats/captions/one.png", json={"caption": "x\0"}).status_code == 422
        assert client.put("/sets/cats/captions/one.png", json={"caption": "x" * 5000}).status_code == 422

        left = client.delete("/sets/cats/pictures/10_tabby cat/four.png").json()
        assert (left["pictures"], left["captioned"]) == (2, 1)
        folder = server.studio.training.sets.folder("cats")
        assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
            "one.png",
            "two & three.png",
            "two & three.txt",
        ]
        # What is trained on is what the page shows.
        from gouache.data.readers import ReadReport, read_pictures

        read = {one.key: one.captions for one in read_pictures(folder, ReadReport())}
        assert read == {"two & three.png": ("two cats", "and one")}
        assert [one["name"] for one in client.get("/sets").json()] == ["cats"]  # No folder of thumbnails beside it.
        assert client.delete("/sets/cats").status_code == 204
        assert client.get("/sets").json() == []
        assert client.get("/sets/cats/pictures").status_code == 404


@pytest.mark.parametrize("file", ["../secret.png", "..%2Fsecret.png", "link.png", "none.png", "one.txt"])
def test_no_file_outside_the_set_is_read_or_removed(studio: Studio, file: str) -> None:
    filled(studio.settings.data)
    secret = studio.training.sets.root / "secret.png"
    secret.write_bytes(png())
    (studio.training.sets.root / "cats" / "link.png").symlink_to(secret)
    sets = studio.training.sets
    for act in (sets.picture, sets.remove, sets.thumbnail, lambda name, path: sets.caption(name, path, "x")):
        with pytest.raises(NotFound):
            act("cats", file)
    with pytest.raises(InvalidInput):
        sets.pictures("../training")
    assert secret.is_file()
    assert not secret.with_suffix(".txt").exists()


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_table_of_captions_can_be_changed_one_by_one(studio: Studio, kind: str) -> None:
    sets = studio.training.sets
    for name in ("a.png", "b.png"):
        sets.add("cats", name, png())
    rows = [{"file_name": "a.png", "text": "an a"}, {"file_name": "b.png", "text": "a b"}]
    table = "\n".join(json.dumps(row) for row in rows) if kind == "jsonl" else "file_name,text\na.png,an a\nb.png,a b\n"
    sets.add("cats", f"metadata.{kind}", table.encode())
    assert [one.caption for one in sets.pictures("cats")] == ["an a", "a b"]
    sets.caption("cats", "b.png", "another b")
    assert [one.caption for one in sets.pictures("cats")] == ["an a", "another b"]
    assert not list(sets.folder("cats").glob("metadata.*"))


def test_a_zip_of_kohyas_folders_brings_their_captions(studio: Studio) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("img/10_red square/1.png", png())
        archive.writestr("img/10_red square/2.png", png())
        archive.writestr("img/10_red square/2.caption", "a square of its own")
    found = studio.training.sets.add("squares", "kohya.zip", buffer.getvalue())
    assert (found.pictures, found.captioned) == (2, 2)
    assert [one.caption for one in studio.training.sets.pictures("squares")] == ["red square", "a square of its own"]


def test_a_plan_is_told_and_nothing_started(start_server: StartServer) -> None:
    server = start_server(workers=0, prepare=lambda studio: filled(studio.settings.data))
    with httpx.Client(base_url=f"{server.url}/v1/training", timeout=60) as client:
        body = {"name": "mine", "data": "cats", "minutes": 30, "model": "pocket"}
        told = client.post("/plan", json=body).json()
        # The shipped model begins on drafts: what draws them learns too.
        assert (told["parts"], told["size"], told["pictures"]) == (["prior", "denoiser"], 128, 3)
        assert told["held_out"] is False
        assert client.post("/plan", json={**body, "data": "dogs"}).status_code == 404
        assert client.post("/plan", json={**body, "stage": "decoder"}).json()["parts"] == ["vae"]
        assert client.get("/runs").json() == []
        assert not (server.studio.settings.data / "runs").exists()


@pytest.mark.usefixtures("stopped_run")
def test_an_error_comes_in_its_parts_and_names_no_folder(studio_page: Server) -> None:
    with httpx.Client(base_url=studio_page.url, timeout=60) as client:
        run = client.get("/v1/training/runs/cats").json()
        assert [sheet["images_seen"] for sheet in run["sheets"]] == [3200, 6400]
        assert run["problem"] is None
        assert str(studio_page.studio.settings.data) not in json.dumps(run)
        folder = studio_page.studio.training.root / "cats"
        said = f"data: given {folder}/x, expected a picture. Add one."
        write_text(folder / STATE, RunState(result="failed", error=said).to_json())
        problem = client.get("/v1/training/runs/cats").json()["problem"]
        assert (problem["where"], problem["expected"], problem["cure"]) == ("data", "a picture", "Add one.")
        assert str(folder) not in json.dumps(problem)
        assert (folder / PLAN).is_file()
    assert parts_of_error("KeyError: 'x' (exit status 1)")["message"] == "KeyError: 'x' (exit status 1)"


def test_a_model_that_a_training_made_can_be_named_at_once(studio: Studio, tmp_path: Path) -> None:
    """Also in the workers, whose catalogs nobody refreshes."""
    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.pipeline.pipeline import untrained_bundle

    catalog, folder = studio.catalog, studio.settings.data / "models"
    assert [entry.name for entry in catalog.models()] == ["pocket"]
    made = write_model(bundle_to_write(untrained_bundle()), tmp_path / "made", "gouache")
    folder.mkdir()
    made.rename(folder / "mine")  # As a run publishes it.
    assert catalog.find("mine").path == folder.resolve() / "mine"
    assert [entry.name for entry in catalog.models()] == ["pocket", "mine"]
