"""Search by meaning: the nearest pictures by the towers' own vectors, and who may find what."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import torch
from sqlalchemy import insert

from gouache.checkpoints.load import Sentences
from gouache.errors import ModelNotFound
from gouache.models.configs import SentenceEncoderConfig
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.stack import TextStack
from gouache.pipeline.inputs.images import read_picture
from gouache.pipeline.request import Request
from gouache.serve.http.replies import NobodyAnswers
from gouache.serve.queue.tasks import TaskQueue
from gouache.serve.search.index import Index, packed
from gouache.serve.search.vectors import ByPictures, ByPrompts, open_embedder
from gouache.serve.store.tables import jobs, meanings, pictures
from gouache.serve.store.wanted import Wanted
from gouache.serve.studio import Studio
from gouache.training.evaluation.judge import load_judge
from gouache.training.towers import Towers, TowersConfig

if TYPE_CHECKING:
    from tests.serve.conftest import StartServer

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "fox", "boat", "on", "water")
TEXT = SentenceEncoderConfig(
    vocabulary_size=len(WORDS), width=16, inner_width=32, layers=1, heads=2, positions=32, max_tokens=16
)


def drawn(network: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Towers(TowersConfig(text=TEXT, embedding_dim=8, channels=(8, 16), image_size=32), WORDS)
    drawn(made, 3)
    path = tmp_path_factory.mktemp("towers") / "towers.safetensors"
    made.save(path)
    return path


def sentences() -> Sentences:
    encoder = SentenceEncoder(TEXT)
    drawn(encoder, 4)
    return Sentences(TextStack.of_sentences(encoder, WORDS), "ab" * 32)


def found_by(client: httpx.Client, wanted: int, **query: Any) -> dict[str, Any]:
    """The reply once every picture has its vector."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        answer = client.get("/v1/pictures", params=query)
        assert answer.status_code in (200, 504), answer.text
        if answer.status_code == 200 and len(answer.json()["pictures"]) >= wanted:
            return dict(answer.json())
        time.sleep(0.1)
    raise TimeoutError("the pictures got no vectors")


def test_a_server_with_towers_finds_the_nearest_pictures_first(start_server: StartServer, towers: Path) -> None:
    server = start_server(search_tower=str(towers))
    for seed, prompt in enumerate(("a red fox", "a green boat", "water")):
        server.wait(server.studio.submit(Request(prompt=prompt, seed=seed), owner="local", source="v1")[0].id)
    with httpx.Client(base_url=server.url, timeout=30) as client:
        reply = found_by(client, 3, meaning="a fox on water")
        assert client.get("/v1/pictures", params={"q": "fox"}).json()["meaning"] is None
        only = client.get("/v1/pictures", params={"meaning": "a fox on water", "q": "boat"}).json()
        client.delete(f"/v1/pictures/{reply['pictures'][0]['id']}")
        left = client.get("/v1/pictures", params={"meaning": "a fox on water"}).json()
    judge = load_judge(towers)
    assert reply["meaning"] == {"by": "pictures", "model": judge.sha256}
    # The truth: the judge itself on the stored files.
    asked = judge.captions(["a fox on water"]).numpy()[0]
    cosines = {}
    for picture in reply["pictures"]:
        file = server.studio.file_store.read("pictures", f"{picture['id']}.png")
        pixels = np.asarray(read_picture(file).convert("RGBA"))
        cosines[picture["id"]] = float(judge.pictures(pixels[None]).numpy()[0] @ asked)
    assert [picture["id"] for picture in reply["pictures"]] == sorted(cosines, key=lambda name: -cosines[name])
    for picture in reply["pictures"]:
        assert picture["score"] == pytest.approx(cosines[picture["id"]], abs=2e-3)
    assert [picture["prompt"] for picture in only["pictures"]] == ["a green boat"]
    assert [picture["id"] for picture in left["pictures"]] == [picture["id"] for picture in reply["pictures"]][1:]


def test_without_a_model_the_answer_says_what_is_missing(start_server: StartServer) -> None:
    server = start_server()
    until = time.monotonic() + 200
    answer = httpx.get(f"{server.url}/v1/pictures", params={"meaning": "a fox"}, timeout=30)
    while answer.status_code == 504 and time.monotonic() < until:  # The worker still starts.
        answer = httpx.get(f"{server.url}/v1/pictures", params={"meaning": "a fox"}, timeout=30)
    if answer.status_code == 200:
        assert answer.json()["meaning"]["by"] in ("pictures", "prompts"), "this build ships a model"
        return
    assert answer.status_code == 422
    assert "--search-tower" in answer.json()["error"]["message"]


def test_without_a_worker_the_answer_comes_after_a_while(studio: Studio) -> None:
    studio.semantic_search.timeout = 0.3
    with pytest.raises(NobodyAnswers, match="a worker that runs"):
        asyncio.run(studio.semantic_search.search("a fox", Wanted(owner="local")))


def listed(studio: Studio, name: str, owner: str, vector: np.ndarray[Any, Any] | None, prompt: str = "x") -> None:
    """A row of the gallery, with a vector of the space `s`."""
    job = {
        "id": name,
        "state": "done",
        "owner": owner,
        "source": "v1",
        "label": "",
        "priority": 0,
        "request": "{}",
        "fingerprint": name,
        "created": 0.0,
        "pictures": 1,
    }
    row = {
        "id": name,
        "job": name,
        "number": 0,
        "owner": owner,
        "created": 0.0,
        "file": f"{name}.png",
        "bytes": 1,
        "sha256": "",
        "width": 8,
        "height": 8,
        "prompt": prompt,
        "seed": 0,
        "model": "m",
        "recipe": "{}",
    }
    with studio.database.write() as connection:
        connection.execute(insert(jobs).values(job))
        connection.execute(insert(pictures).values(row))
        if vector is not None:
            connection.execute(insert(meanings).values(picture=name, space="s", vector=packed(vector)))


def test_the_order_is_that_of_the_exact_cosines_and_others_pictures_stay_hidden(studio: Studio) -> None:
    vectors = np.random.default_rng(1).standard_normal((40, 12)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for k, vector in enumerate(vectors):
        listed(studio, f"{k:032x}", "ada" if k % 2 else "eve", vector)
    found = studio.pictures.nearest(vectors[7], "s", Wanted(owner="ada"), 5)
    mine = sorted(range(1, 40, 2), key=lambda k: -float(vectors[k] @ vectors[7]))[:5]
    assert [picture.id for picture, _ in found] == [f"{k:032x}" for k in mine]
    assert found[0][1] == pytest.approx(1.0, abs=1e-3)
    assert studio.pictures.nearest(vectors[7], "another space", Wanted(owner="ada"), 5) == []


def test_pictures_get_vectors_once_also_when_one_file_is_gone(studio: Studio, towers: Path, tmp_path: Path) -> None:
    from PIL import Image

    embedder = ByPictures(towers)
    for k, colour in enumerate(("red", "green", "blue")):
        listed(studio, f"{k:032x}", "ada", None)
        if colour != "green":
            Image.new("RGB", (40 + 20 * k, 40), colour).save(tmp_path / "a.png")
            studio.file_store.keep("pictures", f"{k:032x}.png", (tmp_path / "a.png").read_bytes())
    tasks = TaskQueue(studio.database, "host:1:1", 60, lambda _: None)
    index = Index(studio.database, studio.file_store, tasks, lambda: embedder)
    assert index.catch_up()
    assert not index.catch_up()
    rows = studio.database.rows(meanings.select().order_by(meanings.c.picture))
    assert [row.picture for row in rows] == [f"{k:032x}" for k in (0, 2)]
    assert {row.space for row in rows} == {embedder.space}
    assert np.linalg.norm(np.frombuffer(rows[0].vector, np.float16).astype(float)) == pytest.approx(1, abs=1e-3)


def test_prompts_are_compared_where_no_tower_looks_at_pictures() -> None:
    embedder = ByPrompts(sentences())
    assert embedder.space == "prompts:" + "ab" * 32
    kept = embedder.pictures([b"", b""], ["a red fox", "a green boat " * 20])
    asked = embedder.words(["a red fox"])[0]
    assert kept @ asked == pytest.approx([1.0, float(kept[1] @ kept[0])], abs=1e-5)
    assert np.linalg.norm(kept, axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_a_tower_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="gouache train clip"):
        open_embedder(tmp_path / "none.safetensors")
