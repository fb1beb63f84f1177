"""Models over the interface: what they are, which one is the default, and fetching one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.loopback_hub import REPO, Hub, served_hub

from gouache.checkpoints import hub
from gouache.checkpoints.hub import shipped_model
from gouache.checkpoints.identify import identify, known_sha256
from gouache.errors import Conflict, HubError, InvalidInput, ModelNotFound
from gouache.pipeline.request import Request
from gouache.serve.models.catalog import ModelCatalog
from gouache.serve.models.downloads import Pull, Pulls, offer_of
from gouache.serve.models.facts import facts_of, inspect
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from tests.serve.conftest import MakeClient

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def ended(pulls: Pulls, seconds: float = 60) -> Pull:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        newest = pulls.listing()[0]
        if newest.state != "running":
            return newest
        time.sleep(0.01)
    raise TimeoutError("the pull goes on")


@pytest.fixture
def model(studio: Studio) -> str:
    """A tiny model in the data folder's models, by name."""
    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.pipeline.pipeline import untrained_bundle

    write_model(bundle_to_write(untrained_bundle()), studio.settings.data / "models" / "tiny", "gouache")
    studio.catalog.refresh()
    return "tiny"


def test_a_models_facts_come_from_its_headers(studio: Studio, model: str) -> None:
    entry = studio.catalog.find(model)
    found = facts_of(entry)
    assert (found.family, found.kind, found.error) == ("Stable Diffusion 1.x", "model", "")
    assert found.parameters > 10_000
    said = inspect(entry)
    assert said["path"] == "tiny"
    assert str(studio.settings.data) not in repr(said)
    assert set(said["parts"]) == {"unet", "vae", "text_encoder"}


def test_a_broken_file_says_why(studio: Studio) -> None:
    folder = studio.settings.data / "models"
    folder.mkdir()
    (folder / "broken.safetensors").write_bytes(b"no weights")
    studio.catalog.refresh()
    entry = studio.catalog.find("broken")
    assert "broken.safetensors" in facts_of(entry).error
    with pytest.raises(InvalidInput, match="broken") as caught:
        inspect(entry)
    assert str(folder) not in f"{caught.value} {facts_of(entry).error}"


def test_each_user_chooses_a_default_that_every_interface_uses(studio: Studio, model: str) -> None:
    assert studio.default_model("ada") == studio.catalog.default
    assert studio.set_default_model("ada", "tiny") == model
    assert studio.default_model("bob") == studio.catalog.default
    job, _ = studio.submit(Request(prompt="x"), owner="ada", source="v1")
    assert job.parsed().model == "tiny"
    other, _ = studio.submit(Request(prompt="x"), owner="bob", source="v1")
    assert other.parsed().model is None
    with pytest.raises(ModelNotFound):
        studio.set_default_model("ada", "nowhere")
    # A model that is gone gives way.
    (studio.settings.data / "models" / "tiny").rename(studio.settings.data / "gone")
    studio.catalog.refresh()
    assert studio.default_model("ada") == studio.catalog.default


def test_a_worker_finds_what_came_since_it_started(studio: Studio, tmp_path: Path) -> None:
    """Also where the folder itself shows no change: deeper inside, as pulls lie."""
    inside = tmp_path / "new" / "deeper"
    inside.mkdir(parents=True)
    worker = ModelCatalog([tmp_path / "new"], studio.database, patience=0.0)
    server = ModelCatalog([tmp_path / "new"], studio.database, patience=60.0)
    with pytest.raises(ModelNotFound):
        worker.find("late")
    (inside / "late").mkdir()
    (inside / "late" / "model_index.json").write_text("{}")
    assert worker.find("late").path == inside / "late"
    with pytest.raises(ModelNotFound):
        server.find("late")


def test_a_snapshot_in_the_hubs_cache_has_its_repositorys_name(studio: Studio, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--painter--tiny-sd" / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    catalog = ModelCatalog([tmp_path / "hub"], studio.database)
    assert catalog.find("painter/tiny-sd").path == snapshot


def test_over_http(client: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path))
    assert client.get("/v1/models/default").json() == {"model": "pocket"}
    assert client.put("/v1/models/default", json={"model": "nowhere"}).status_code == 422
    assert client.put("/v1/models/default", json={"model": "pocket"}).json() == {"model": "pocket"}
    assert client.get("/v1/models/inspect", params={"model": "pocket"}).json()["family"] == "pocket"
    assert client.get("/v1/models/inspect", params={"model": "../x"}).status_code == 422
    assert client.post("/v1/models/refresh").status_code == 204
    assert client.get("/v1/models/adapters").json() == []
    assert client.post("/v1/models/pulls", json={"repo": "../../etc"}).status_code == 422
    assert client.post("/v1/models/pulls", json={"repo": "painter/tiny"}).status_code == 202
    until = time.monotonic() + 60
    while client.get("/v1/models/pulls").json()[0]["state"] == "running" and time.monotonic() < until:
        time.sleep(0.05)
    newest = client.get("/v1/models/pulls").json()[0]
    assert newest["state"] == "failed"
    assert "GOUACHE_OFFLINE" in newest["error"]
    assert client.delete("/v1/models/pulls").status_code == 204


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a tiny model."""
    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.pipeline.pipeline import untrained_bundle

    write_model(bundle_to_write(untrained_bundle()), tmp_path / "repository", "gouache")
    with served_hub(tmp_path / "repository", tmp_path, monkeypatch) as served:
        yield served


def test_a_pull_over_http_tells_its_terms_first(hub_server: Hub, make_client: MakeClient, tmp_path: Path) -> None:
    hub_server.card = {"license": "creativeml-openrail-m"}
    client = make_client(models=(tmp_path / "models", tmp_path / "cache"))
    offer = client.get("/v1/models/pulls/about", params={"repo": f" https://huggingface.co/{REPO}/ "}).json()
    assert (offer["repo"], offer["licence"], offer["licence_said"]) == (REPO, "creativeml-openrail-m", True)
    assert offer["bytes"] == sum(offer["files"].values()) > 0 == offer["here"]
    assert client.get("/v1/models/pulls/about", params={"repo": "painter/none"}).status_code == 424
    assert client.get("/v1/models/pulls/about", params={"repo": "none"}).status_code == 422
    assert client.post("/v1/models/pulls", json={"repo": REPO}).status_code == 202
    until = time.monotonic() + 60
    while client.get("/v1/models/pulls").json()[0]["state"] == "running" and time.monotonic() < until:
        time.sleep(0.05)
    newest = client.get("/v1/models/pulls").json()[0]
    assert (newest["state"], newest["problem"], newest["bytes"]) == ("done", None, offer["bytes"])
    assert REPO in [model["id"] for model in client.get("/v1/models").json()["data"]]


def test_a_pull_that_was_cancelled_keeps_the_files_that_are_whole(
    hub_server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub_server.pause = 0.002
    whole = {name: data for name, data in hub_server.files.items() if name != "text_encoder.safetensors"}
    pulls = Pulls(lambda: None)
    pulls.start(REPO)
    while not all(hub_server.was_sent(name) for name in whole):
        assert pulls.listing()[0].state == "running"
        time.sleep(0.01)
    hub_server.pause = 0.05
    time.sleep(0.2)
    pulls.cancel()
    assert ended(pulls).state == "cancelled"
    hub_server.pause = 0.0
    hub_server.asked.clear()
    pulls.start(REPO)
    assert ended(pulls).state == "done"
    fetched = {path.rsplit("/", 1)[-1] for method, path, _ in hub_server.asked if method == "GET" and "resolve" in path}
    assert fetched == {"text_encoder.safetensors"}


def test_a_pulls_error_comes_in_parts(hub_server: Hub) -> None:
    hub_server.token = "right"
    pulls = Pulls(lambda: None)
    pulls.start(REPO)
    failed = ended(pulls)
    assert (failed.state, failed.problem["kind"]) == ("failed", "HubError")
    assert "gated" in failed.problem["given"]
    assert failed.problem["message"] == failed.error


def test_an_offer_says_what_a_pull_would_fetch_and_under_which_licence(hub_server: Hub) -> None:
    hub_server.card = {"license": "other", "license_name": "painters-own", "license_link": "LICENCE.md"}
    offer = offer_of(REPO)
    assert (offer.licence, offer.gated, offer.here) == ("painters-own", False, 0)
    assert (offer.page, offer.licence_link) == (
        f"{hub_server.url}/{REPO}",
        f"{hub_server.url}/{REPO}/blob/main/LICENCE.md",
    )
    assert not [path for _, path, _ in hub_server.asked if "resolve" in path]
    folder = hub.pull(REPO)
    assert {name for name in offer.files if (folder / name).is_file()} == set(offer.files)
    assert offer.bytes == sum((folder / name).stat().st_size for name in offer.files)
    hub_server.card = {"license": "openrail++"}
    assert (offer_of(REPO).licence, offer_of(REPO).here) == ("openrail++", offer.bytes)
    with pytest.raises(HubError, match="no such repository"):
        offer_of("painter/nothing")


@pytest.mark.parametrize("repo", ["", "one", "a/b/c", "../b", "a/../b", "a b/c", "http://x/y", "a/b?c"])
def test_only_a_repositorys_name_is_fetched(repo: str) -> None:
    with pytest.raises(InvalidInput):
        Pulls(lambda: None).start(repo)


def test_a_pull_reports_is_alone_and_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is replaced by one that never ends; the real one is pulled from in tests/checkpoints/test_hub.py."""

    def endless(repo: str, *, revision: str | None, variant: str | None, progress: hub.Report) -> Path:
        assert (revision, variant) == (None, "fp16")
        try:
            for here in range(10**9):
                progress(here, 10**9)
                time.sleep(0.001)
        except Exception as error:
            raise HubError(repo, given=str(error), expected="an answer") from error
        raise AssertionError("nobody cancelled")

    monkeypatch.setattr("gouache.checkpoints.hub.pull", endless)
    arrived: list[bool] = []
    pulls = Pulls(lambda: arrived.append(True))
    assert pulls.start("painter/tiny", variant="fp16").state == "running"
    with pytest.raises(Conflict, match="one at a time"):
        pulls.start("painter/other")
    while pulls.listing()[0].here == 0:
        time.sleep(0.01)
    assert pulls.listing()[0].total == 10**9
    pulls.cancel()
    assert ended(pulls).state == "cancelled"
    assert arrived == []


@pytest.mark.parametrize(
    "spelled",
    ["{name}", "{NAME}", " {name} ", "{name} [0123456789]", "{hash}", "{HASH}", "{sha256}", "{name}.safetensors"],
)
def test_models_by_the_names_that_clients_have(studio: Studio, tmp_path: Path, spelled: str) -> None:
    """Titles, stems, hashes as recipes write them, other case, a hash that is out of date."""
    sha256 = known_sha256(identify(shipped_model() or tmp_path))
    names = {"name": "pocket", "NAME": "POCKET", "hash": sha256[:10], "HASH": sha256[:10].upper(), "sha256": sha256}
    if spelled.endswith(".safetensors"):
        with pytest.raises(ModelNotFound):
            studio.catalog.find(spelled.format(**names))
    else:
        assert studio.catalog.find(spelled.format(**names)).name == "pocket"
