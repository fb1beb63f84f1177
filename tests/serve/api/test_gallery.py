"""The gallery over HTTP: filters and counts, tags and boards, changes to many at once, zips, settings of files."""

from __future__ import annotations

import io
import json
import time
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, PngImagePlugin
from sqlalchemy import update
from test_foreign import COMFY_PROMPT, INVOKE, NOVEL, SD_CPP
from test_foreign import png as with_texts
from test_other_tools import FILES

from gouache.pipeline.output.recipe import Machine, ModelRef, Recipe
from gouache.pipeline.request import Mask, Request
from gouache.serve.store.gallery import Picture, row_of
from gouache.serve.store.tables import jobs, pictures
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from starlette.testclient import TestClient
    from tests.serve.conftest import MakeClient

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")
TOKENS = {name: f"the-token-of-{name}-which-is-long" for name in ("ada", "bob")}


def png(shade: int = 0, **texts: str) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_itxt(key, text)
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (shade % 256, 80, 120)).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def listed(
    studio: Studio, *, owner: str = "ada", model: str = "pocket", created: float | None = None, **request: Any
) -> Picture:
    """A finished picture, as a worker lists it."""
    asked = Request.from_dict({"seed": 1, "sampler": "euler", **request})
    job, _ = studio.jobs.submit(asked, owner=owner, source="v1")
    held = studio.leases.claim("w", 60)
    assert held is not None
    machine = Machine(device="cpu", dtype="float32", processor="x", threads=1)
    recipe = Recipe(request=asked, model=ModelRef(name=model, family="pocket"), machine=machine, versions={})
    data = png(job.seq, gouache=recipe.to_json())
    name = f"{job.id}-0000.png"
    studio.file_store.keep("pictures", name, data)
    with studio.database.write() as connection:
        studio.leases.add_picture(connection, row_of(held, 0, name, data, (32, 32), recipe))
        assert studio.leases.finish(connection, held)
        if created is not None:
            connection.execute(update(pictures).where(pictures.c.job == job.id).values(created=created))
    return studio.pictures.of_job(job.id)[0]


class Client:
    """Speaks for one user."""

    def __init__(self, client: TestClient, studio: Studio) -> None:
        self.http, self.studio = client, studio

    def ask(self, method: str, path: str, *, who: str = "ada", status: int = 200, **more: Any) -> Any:
        headers = {"authorization": f"Bearer {TOKENS[who]}", **more.pop("headers", {})}
        answer = self.http.request(method, path, headers=headers, **more)
        assert answer.status_code == status, answer.text
        kind = answer.headers.get("content-type", "")
        return answer.json() if "json" in kind and answer.content else answer.content

    def found(self, **filters: Any) -> list[str]:
        return [one["id"] for one in self.ask("GET", "/v1/pictures", params=filters)["pictures"]]


@pytest.fixture(params=["sqlite", "postgresql"])
def client(request: pytest.FixtureRequest, make_client: MakeClient) -> Client:
    kept: list[Studio] = []

    def prepare(studio: Studio) -> None:
        kept.append(studio)
        for name, token in TOKENS.items():
            studio.accounts.add_token(name, token)

    store = {}
    if request.param == "postgresql":
        store["store"] = str(request.getfixturevalue("postgres").new_database())
    return Client(make_client(prepare, **store), kept[0])


def test_filters_and_counts(client: Client) -> None:
    studio, day = client.studio, 86_400.0
    fox = listed(studio, prompt="a red fox", seed=2**63 - 5, created=10 * day)
    owl = listed(studio, prompt="an owl", model="big", sampler="dpmpp_2m", created=11 * day)
    name = studio.attachments.keep("ada", png())
    edit = listed(studio, prompt="a red owl", init_image=name, mask={"image": name}, created=12 * day)
    listed(studio, prompt="a red fox", owner="bob")
    board = client.ask("POST", "/v1/boards", json={"name": "birds"}, status=201)["id"]
    client.ask("PATCH", f"/v1/pictures/{owl.id}", json={"board": board, "tags": ["night", "bird"], "starred": True})

    assert client.found() == [edit.id, owl.id, fox.id]
    for filters, expected in (
        ({"q": "RED"}, [edit, fox]),
        ({"model": "big"}, [owl]),
        ({"sampler": "euler"}, [edit, fox]),
        ({"seed": str(2**63 - 5)}, [fox]),
        ({"kind": "inpaint"}, [edit]),
        ({"kind": "text"}, [owl, fox]),
        ({"since": "1970-01-12"}, [edit, owl]),
        ({"until": "1970-01-12"}, [owl, fox]),
        ({"since": "1970-01-11T00:00:01Z", "until": "1970-01-13T00:00:00+00:00"}, [owl]),
        ({"tag": "night"}, [owl]),
        ({"board": board}, [owl]),
        ({"board": ""}, [edit, fox]),
        ({"starred": "true", "q": "owl"}, [owl]),
        ({"before": str(edit.seq), "limit": "1"}, [owl]),
        ({"after": str(fox.seq)}, [edit, owl]),
    ):
        assert client.found(**filters) == [one.id for one in expected], filters
    counts = client.ask("GET", "/v1/pictures/counts", params={"model": "pocket"})
    assert counts == {
        "total": 2,
        "starred": 0,
        "models": {"pocket": 2, "big": 1},
        "samplers": {"euler": 2},
        "kinds": {"inpaint": 1, "text": 1},
        "boards": {"": 2},
        "tags": {},
    }
    assert client.ask("GET", "/v1/tags") == [{"tag": "bird", "pictures": 1}, {"tag": "night", "pictures": 1}]
    assert client.ask("GET", "/v1/tags", who="bob") == []
    for wrong in ({"since": "yesterday"}, {"kind": "oil"}, {"seed": "-1"}):
        client.ask("GET", "/v1/pictures", params=wrong, status=422)


def test_boards_are_renamed_and_deleted_and_pictures_stay(client: Client) -> None:
    picture = listed(client.studio, prompt="x")
    first, second = (client.ask("POST", "/v1/boards", json={"name": name}, status=201)["id"] for name in "ab")
    client.ask("PATCH", f"/v1/pictures/{picture.id}", json={"board": first})
    renamed = client.ask("PATCH", f"/v1/boards/{first}", json={"name": "c"})
    assert renamed == {"id": first, "name": "c", "pictures": 1}
    client.ask("PATCH", f"/v1/boards/{first}", json={"name": "b"}, status=409)
    for method in ("PATCH", "DELETE"):
        client.ask(method, f"/v1/boards/{first}", who="bob", status=404, json={"name": "mine"})
    client.ask("DELETE", f"/v1/boards/{first}", status=204)
    assert client.ask("GET", "/v1/boards") == [{"id": second, "name": "b", "pictures": 0}]
    assert client.ask("GET", f"/v1/pictures/{picture.id}")["board"] is None


def test_many_pictures_are_changed_together_or_not_at_all(client: Client) -> None:
    studio = client.studio
    mine = [listed(studio, prompt=f"n{k}") for k in range(3)]
    ids = [one.id for one in mine]
    theirs = listed(studio, prompt="theirs", owner="bob")
    board = client.ask("POST", "/v1/boards", json={"name": "b"}, status=201)["id"]

    def bulk(status: int = 200, **body: Any) -> Any:
        return client.ask("POST", "/v1/pictures/bulk", json=body, status=status)

    assert bulk(ids=[*ids, ids[0]], starred=True, add_tags=["x", "y"], board=board) == {"ids": ids}
    bulk(ids=ids[:1], remove_tags=["x"], board="", starred=False)
    states = [client.ask("GET", f"/v1/pictures/{one}") for one in ids]
    assert [(one["starred"], one["tags"], one["board"]) for one in states] == [
        (False, ["y"], None),
        (True, ["x", "y"], board),
        (True, ["x", "y"], board),
    ]
    bulk(ids=[*ids, theirs.id], delete=True, status=404)
    bulk(ids=ids, board="0" * 32, delete=True, status=404)
    bulk(ids=ids, delete=True, restore=True, status=422)
    bulk(ids=[], delete=True, status=422)
    assert len(client.found()) == 3
    bulk(ids=ids[:2], delete=True)
    assert client.found() == ids[2:]
    assert sorted(client.found(deleted=True)) == sorted(ids[:2])
    bulk(ids=ids[:2], restore=True)
    assert len(client.found()) == 3
    assert client.ask("GET", f"/v1/pictures/{theirs.id}", who="bob")["starred"] is False


def test_a_zip_holds_the_stored_files_under_speaking_names(client: Client) -> None:
    studio = client.studio
    mine = [listed(studio, prompt="a red fox!", seed=7) for _ in range(2)] + [listed(studio, prompt="狐狸", seed=8)]
    gone = listed(studio, prompt="gone")
    studio.file_store.discard(gone.file)
    theirs = listed(studio, prompt="theirs", owner="bob")
    ids = [one.id for one in (*mine, gone)]
    for packed in (
        client.ask("POST", "/v1/pictures/zip", json={"ids": ids}),
        client.ask("GET", "/v1/pictures/zip", params={"ids": ",".join(ids)}),
    ):
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            assert archive.testzip() is None
            names = archive.namelist()
            assert names == ["a-red-fox-7.png", "a-red-fox-7-2.png", "狐狸-8.png", "missing.txt"]
            for name, picture in zip(names, mine, strict=False):
                assert archive.read(name) == studio.file_store.read("pictures", picture.file)
            assert archive.read("missing.txt") == b"gone-1.png\n"
    client.ask("POST", "/v1/pictures/zip", json={"ids": [theirs.id]}, status=404)
    client.ask("POST", "/v1/pictures/zip", json={"ids": []}, status=422)
    client.ask("POST", "/v1/pictures/zip", json={"ids": ["x"] * 1001}, status=422)


A1111 = (
    "a (red:1.2) cat\nNegative prompt: blurry\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1234, Size: 512x768, Model hash: "
    "abcdef0123, Model: v1-5, Clip skip: 2, Denoising strength: 0.6, Hires upscale: 1.5, Hires steps: 10, "
    "Hires upscaler: 4x-UltraSharp, Version: v1.10.1"
)
ODD = A1111.replace("DPM++ 2M", "Magic 9000").replace("Karras", "Spiral")
READ: dict[str, tuple[bytes, dict[str, Any], tuple[str, ...]]] = {
    "a1111": (
        with_texts(parameters=A1111),
        {
            "sampler": "dpmpp_2m",
            "schedule": "karras",
            "clip_skip": 2,
            "seed": 1234,
            "width": 512,
            "height": 768,
            "hires": {"scale": 1.5, "strength": 0.6, "num_inference_steps": 10},
            "model": None,
        },
        ("model", "hires.upscaler"),
    ),
    "a1111-odd": (
        with_texts(parameters=ODD),
        {"sampler": None, "schedule": None, "num_inference_steps": 20},
        ("sampler", "schedule", "model", "hires.upscaler"),
    ),
    "sd.cpp": (with_texts(parameters=SD_CPP), {"sampler": "euler_ancestral", "schedule": "karras"}, ("model",)),
    "comfyui": (
        with_texts(prompt=json.dumps(COMFY_PROMPT)),
        {"sampler": "dpmpp_2m", "schedule": "karras", "seed": 8566257, "height": 640},
        ("model",),
    ),
    "invokeai": (
        with_texts(invokeai_metadata=json.dumps(INVOKE)),
        {"sampler": "dpmpp_2m", "schedule": "karras", "clip_skip": 2, "seamless": "x"},
        ("model",),
    ),
    "novelai": (
        with_texts(Software="NovelAI", Comment=json.dumps(NOVEL)),
        {"sampler": "euler_ancestral", "schedule": "karras"},
        (),
    ),
    **{
        name: (FILES[name][1], {"seed": 42, "num_inference_steps": 20}, ("model",) * (name not in ("NovelAI 4",)))
        for name in ("Fooocus, PNG", "SwarmUI, PNG", "InvokeAI 2", "Draw Things", "NovelAI 4")
    },
}


@pytest.fixture
def alone(make_client: MakeClient) -> Client:
    kept: list[Studio] = []
    made = make_client(kept.append)
    kept[0].accounts.add_token("ada", TOKENS["ada"])
    return Client(made, kept[0])


def test_other_programs_settings_come_in_this_servers_names(alone: Client) -> None:
    menus = alone.ask("GET", "/v1/capabilities")
    for name, (data, expected, left_out) in READ.items():
        found = alone.ask("POST", "/v1/recipes/read", content=data, headers={"content-type": "image/png"})
        request = found["request"]
        assert {key: request.get(key) for key in expected} == expected, name
        assert request.get("sampler") in (None, *menus["samplers"])
        assert request.get("schedule") in (None, *menus["schedules"])
        assert "model" not in request
        assert {note["about"] for note in found["notes"] if note["kind"] == "left_out"} == set(left_out), name
        assert (found["own"], found["picture"]) == (False, None)
        assert found["raw"]
        Request.from_dict(request)


def test_texts_are_read_as_pictures_are(alone: Client) -> None:
    own = Recipe(
        request=Request(prompt="a fox", seed=2**62 + 1, width=32, height=32),
        model=ModelRef(name="pocket", family="pocket"),
        machine=Machine(device="cpu", dtype="float32", processor="x", threads=1),
        versions={},
    )
    for text, tool, prompt in (
        (A1111, "a1111", "a (red:1.2) cat"),
        (own.to_json(), "gouache", "a fox"),
        (own.request.to_json(), "gouache", "a fox"),
        (json.dumps(COMFY_PROMPT), "comfyui", "a (red) cat"),
        (json.dumps(INVOKE), "invokeai", "a cat"),
    ):
        found = alone.ask("POST", "/v1/recipes/read", content=text.encode(), headers={"content-type": "text/plain"})
        assert (found["tool"], found["request"]["prompt"]) == (tool, prompt)
        if tool == "gouache":
            assert found["seeds"] == {"seed": str(2**62 + 1)}


def test_files_without_settings_are_refused_by_a_typed_error(alone: Client) -> None:
    plain = {"content-type": "text/plain"}
    for data, headers in (
        (png(), {}),
        (b"no picture", {}),
        (b"", {}),
        (b"just some words", plain),
        (b'{"a": 1}', plain),
        (b'{"request": {"steps": "x"}}', plain),
        (with_texts(gouache='{"request": 3}'), {}),
        (with_texts(parameters="Steps: x, Sampler: y, Seed: z"), {}),
    ):
        error = alone.ask("POST", "/v1/recipes/read", content=data, headers=headers, status=422)["error"]
        assert error["expected"]
        assert str(alone.studio.settings.data) not in json.dumps(error)
        assert "/" not in error["param"]


def test_a_picture_of_ones_own_gallery_is_known_again(alone: Client) -> None:
    picture = listed(alone.studio, prompt="mine", width=32, height=32)
    data = alone.ask("GET", f"/v1/pictures/{picture.id}/file")
    found = alone.ask("POST", "/v1/recipes/read", content=data)
    assert (found["picture"], found["own"]) == (picture.id, True)
    assert found["request"] == alone.ask("GET", f"/v1/pictures/{picture.id}/request")["request"]


def test_what_needs_anothers_pictures_is_left_out_with_a_note(alone: Client) -> None:
    recipe = Recipe(
        request=Request(prompt="edit", seed=1, init_image="sha256:" + "ab" * 32, mask=Mask(blur=2), strength=0.5),
        model=ModelRef(name="pocket", family="pocket"),
        machine=Machine(device="cpu", dtype="float32", processor="x", threads=1),
        versions={},
    )
    found = alone.ask("POST", "/v1/recipes/read", content=png(gouache=recipe.to_json()))
    assert [note["kind"] for note in found["notes"]] == ["picture"]
    assert found["request"].keys() & {"init_image", "mask", "strength"} == set()
    assert found["request"]["prompt"] == "edit"


def test_five_thousand_pictures_are_counted_and_listed_quickly(alone: Client) -> None:
    studio = alone.studio
    first = listed(studio, prompt="a red fox")
    row = studio.database.row(pictures.select().where(pictures.c.id == first.id))
    job = studio.database.row(jobs.select().where(jobs.c.id == first.job))
    assert row is not None
    assert job is not None
    plain, base = dict(row._mapping), dict(job._mapping)
    del plain["seq"], base["seq"]
    with studio.database.write() as connection:
        many = range(1, 5000)
        connection.execute(jobs.insert(), [base | {"id": f"{k:032x}", "idempotency_key": None} for k in many])
        connection.execute(
            pictures.insert(),
            [plain | {"id": f"{k:032x}-0000", "job": f"{k:032x}", "file": f"{k:032x}-0000.png"} for k in many],
        )
    started = time.monotonic()
    assert alone.ask("GET", "/v1/pictures/counts")["total"] == 5000
    assert len(alone.found(q="fox", limit=200)) == 200
    alone.ask("POST", "/v1/pictures/bulk", json={"ids": [f"{k:032x}-0000" for k in many], "add_tags": ["all"]})
    assert time.monotonic() - started < 20
    assert alone.ask("GET", "/v1/tags") == [{"tag": "all", "pictures": 4999}]
