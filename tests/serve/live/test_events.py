"""`/v1/events` against a real server: nothing is missed, nobody else's is told, and it comes at once."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.serve.conftest import Server, StartServer
from tests.serve.served import Lock

from gouache.errors import WorkerError
from gouache.pipeline.request import Request
from gouache.serve.models.downloads import Pull
from gouache.serve.queue.job import Job
from gouache.serve.queue.leases import Leases
from gouache.serve.queue.order import QueueOrder
from gouache.serve.queue.queue import JobQueue
from gouache.serve.settings import Limits
from gouache.serve.store.database import Database
from gouache.serve.studio import Studio

TOKEN = "a-token-of-more-than-sixteen-characters-"


class Listener:
    """Reads one stream, in a thread of its own."""

    def __init__(self, url: str, path: str = "/v1/events", headers: dict[str, str] | None = None) -> None:
        self.seen: queue.Queue[tuple[float, str, Any]] = queue.Queue()
        self.last, self.status, self.ended = "", 0, threading.Event()
        self._client = httpx.Client(base_url=url, timeout=60, headers=headers)
        self._thread = threading.Thread(target=self._read, args=(path,), daemon=True)
        self._socket: socket.socket | None = None
        self._thread.start()

    def _read(self, path: str) -> None:
        with contextlib.suppress(httpx.HTTPError, httpx.StreamError), self._client.stream("GET", path) as response:
            self.status, kind = response.status_code, ""
            self._socket = response.extensions["network_stream"].get_extra_info("socket")
            for line in response.iter_lines():
                name, _, value = line.partition(": ")
                if name == "id":
                    self.last = value
                elif name == "event":
                    kind = value
                elif name == "data":
                    self.seen.put((time.time(), kind, json.loads(value)))
        self.ended.set()

    def wait(self, kind: str, seconds: float = 180, **wanted: object) -> Any:
        """The next event of a kind whose data have these values; gives its data."""
        return self.when(kind, seconds, **wanted)[1]

    def when(self, kind: str, seconds: float = 180, **wanted: object) -> tuple[float, Any]:
        """The same with the time at which it came."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                came, found, data = self.seen.get(timeout=left)
                if found == kind and wanted.items() <= data.items():
                    return came, data
        raise TimeoutError(f"no {kind} {wanted}")

    def rest(self, seconds: float) -> list[tuple[str, Any]]:
        """Everything that comes in so long."""
        time.sleep(seconds)
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self.seen.get_nowait()[1:])
        return found

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._client.close()
        self._thread.join(10)


@pytest.fixture
def listen() -> Iterator[Any]:
    made: list[Listener] = []

    def start(*args: Any, **values: Any) -> Listener:
        made.append(Listener(*args, **values))
        return made[-1]

    yield start
    for one in made:
        one.close()


def submit(server: Server, prompt: str = "a fox", owner: str = "local", **changes: Any) -> Job:
    request = Request(prompt=prompt, **{"num_inference_steps": 4, "seed": 1, **changes})
    return server.studio.submit(request, owner=owner, source="v1")[0]


def test_a_job_is_followed_from_the_click_to_its_pictures(server: Server, listen: Any) -> None:
    reader = listen(server.url, "/v1/events?previews=true")
    hello = reader.wait("hello")
    assert (hello["user"], hello["admin"], hello["afresh"]) == ("local", True, False)
    job = submit(server, num_inference_steps=30, count=2)
    first = reader.wait("job", id=job.id)
    assert first["prompt"] == "a fox"
    assert "request" not in first
    reader.wait("job", id=job.id, state="running")
    preview = reader.wait("preview", job=job.id)
    assert preview["picture"] in (0, 1)
    assert preview["jpeg"].startswith("/9j/")
    picture = reader.wait("picture", job=job.id, number=1)
    assert (picture["seed"], picture["prompt"]) == ("2", "a fox")
    done_at, done = reader.when("job", id=job.id, state="done")
    assert done["pictures"] == [f"{job.id}-0000", f"{job.id}-0001"]
    assert done_at - done["finished"] < 1.0  # Nearly always 0.01; the machine may be busy.
    reader.wait("queue", mine_running=0, mine_waiting=0)


def test_what_was_missed_is_told_to_whoever_comes_back(server: Server, listen: Any) -> None:
    reader = listen(server.url)
    reader.wait("hello")
    job = submit(server)
    reader.wait("job", id=job.id, state="done")
    last = reader.last
    reader.close()
    missed = submit(server, "missed")
    assert server.wait(missed.id).state == "done"
    server.studio.pictures.change(f"{missed.id}-0000", "local", starred=True)
    again = listen(server.url, headers={"Last-Event-ID": last})
    assert again.wait("hello")["afresh"] is False
    assert again.wait("picture")["id"] == f"{missed.id}-0000"
    assert again.wait("job", id=missed.id)["state"] == "done"
    assert again.wait("gallery") == {"ids": [f"{missed.id}-0000"], "change": "star"}
    beyond = listen(server.url, f"/v1/events?after={2**60}")
    assert beyond.wait("hello")["afresh"] is True


def test_a_reload_sees_what_is_open_in_the_order_that_the_user_gave(
    start_server: StartServer, listen: Any, store_url: str
) -> None:
    server = start_server(workers=0, store=store_url)
    client = httpx.Client(base_url=server.url)
    ids = [submit(server, str(k)).id for k in range(3)]
    reader = listen(server.url)
    assert [job["id"] for job in reader.wait("hello")["jobs"]] == ids
    answer = client.put(f"/v1/jobs/{ids[2]}/position", json={"before": ids[0]})
    assert (answer.status_code, answer.json()["position"]) == (200, 0)
    order = [ids[2], ids[0], ids[1]]
    assert [place["id"] for place in reader.wait("queue")["order"]] == order
    assert client.patch("/v1/queue", json={"paused": True}).json()["paused"] is True
    reader.wait("queue", paused=True)
    hello = listen(server.url).wait("hello")
    assert [(job["id"], job["position"]) for job in hello["jobs"]] == list(zip(order, range(3), strict=True))
    assert hello["queue"]["paused"] is True
    queue_now = client.get("/v1/queue").json()
    assert [job["id"] for job in queue_now["jobs"]] == order
    assert client.post("/v1/queue/cancel").json() == {"cancelled": 3}
    assert {reader.wait("job", state="cancelled")["id"] for _ in ids} == set(ids)
    assert [job["state"] for job in client.get("/v1/queue").json()["ended"]] == ["cancelled"] * 3
    client.close()


def test_what_another_server_does_is_heard_of_soon(start_server: StartServer, listen: Any, store_url: str) -> None:
    server = start_server(workers=0, store=store_url)
    reader = listen(server.url, "/v1/events?previews=true")
    reader.wait("hello")
    # Nothing of this goes through the server that tells of it.
    other = Database(store_url)
    job, _ = JobQueue(other, Limits()).submit(Request(prompt="x", seed=1), owner="local", source="cli")
    assert reader.wait("job", id=job.id)["position"] == 0
    leases = Leases(other)
    claimed = leases.claim("elsewhere:1:1", 60)
    assert claimed is not None
    leases.progress(claimed, picture=0, step=3, steps=9, jpeg=b"\xff\xd8")
    assert reader.wait("job", id=job.id, step=3)["steps"] == 9
    assert reader.wait("preview", job=job.id)["jpeg"] == "/9g="
    QueueOrder(other, 1).pause("local")
    reader.wait("queue", paused=True)
    leases.fail(claimed, WorkerError("worker", given="x", expected="y").to_dict())
    assert reader.wait("job", id=job.id, state="failed")["error"]["kind"] == "WorkerError"
    other.close()


def test_previews_come_when_they_are_asked_for_and_only_to_those_who_ask(server: Server, listen: Any) -> None:
    reader, other = listen(server.url), listen(server.url)
    stream = reader.wait("hello")["stream"]
    other.wait("hello")
    with httpx.Client(base_url=server.url) as client:
        assert client.put("/v1/events/nosuch/previews", json={"wanted": True}).status_code == 404
        assert client.put(f"/v1/events/{stream}/previews", json={"wanted": True}).status_code == 204
    job = submit(server, num_inference_steps=40)
    reader.wait("preview", job=job.id)
    reader.wait("job", id=job.id, state="done")
    assert "preview" not in [kind for kind, _ in other.rest(0.2)]


def test_an_idle_stream_looks_once_a_second_and_says_nothing(start_server: StartServer, listen: Any) -> None:
    server = start_server(workers=0)
    time.sleep(0.2)
    assert server.studio.feed.looks == 0, "nobody follows, and it looks all the same"
    readers = [listen(server.url) for _ in range(20)]
    for reader in readers:
        reader.wait("hello")
    time.sleep(1.2)
    before, used = server.studio.feed.looks, time.process_time()
    [reader.rest(0.0) for reader in readers]
    assert readers[0].rest(3.0) == []
    assert server.studio.feed.looks - before <= 4
    assert time.process_time() - used < 0.5


def test_a_store_that_is_away_is_told_and_what_happened_meanwhile_too(start_server: StartServer, listen: Any) -> None:
    server = start_server(workers=0)
    reader = listen(server.url)
    reader.wait("hello")
    with Lock(server.studio.settings.data / "studio.sqlite3"):
        with httpx.Client(base_url=server.url, timeout=30) as client:
            assert client.post("/v1/jobs", json={"request": {"prompt": "x"}}).status_code == 503
        reader.wait("outage", 10)
    reader.wait("back", 10)
    job = submit(server)
    reader.wait("job", 10, id=job.id)


def test_a_stream_too_many_is_refused_and_a_stop_ends_them_all(start_server: StartServer, listen: Any) -> None:
    server = start_server(workers=0, limits=Limits(streams=2), grace=30.0)
    readers = [listen(server.url) for _ in range(2)]
    for reader in readers:
        reader.wait("hello")
    assert httpx.get(f"{server.url}/v1/events").status_code == 429
    readers[0].close()
    until = time.monotonic() + 10
    while server.studio.streams["local"] > 1 and time.monotonic() < until:
        time.sleep(0.05)
    third = listen(server.url)
    third.wait("hello")
    begun = time.monotonic()
    server.stop()
    assert third.ended.wait(5)
    assert time.monotonic() - begun < 15, "the stop waited for streams that never end"


def test_a_signed_out_reader_is_told_nothing_more(start_server: StartServer, listen: Any) -> None:
    server = start_server(prepare=lambda studio: studio.accounts.add_token("ada", TOKEN), workers=0)
    reader = listen(server.url, headers={"Authorization": f"Bearer {TOKEN}"})
    reader.wait("hello")
    reader.wait("queue", 5)
    time.sleep(1.1)  # A reader is looked at once a second, when something is sent.
    server.studio.accounts.add_token("bob", TOKEN + "2")
    server.studio.accounts.revoke_tokens("ada")
    submit(server, "after", owner="ada")
    assert reader.ended.wait(10)
    assert "after" not in json.dumps(reader.rest(0.0))


def test_administrators_hear_of_training_and_downloads(start_server: StartServer, listen: Any) -> None:
    server = start_server(workers=0)
    reader = listen(server.url)
    hello = reader.wait("hello")
    assert (hello["training"], hello["pull"]) == ({"runs": []}, {"pulls": []})
    pulls = server.studio.pulls
    pulls._pulls = [Pull(repo="ada/cats", started=1.0, here=5, total=10)]
    assert reader.wait("pull", 10)["pulls"][0]["repo"] == "ada/cats"


def test_others_are_counted_and_never_named(start_server: StartServer, listen: Any) -> None:
    tokens = {name: TOKEN + name for name in ("ada", "bob")}

    def prepare(studio: Studio) -> None:
        for name, token in tokens.items():
            studio.accounts.add_token(name, token)

    server = start_server(prepare=prepare, workers=0)
    bob = listen(server.url, headers={"Authorization": f"Bearer {tokens['bob']}"})
    bob.wait("hello")
    job = submit(server, "ada's secret", owner="ada")
    assert bob.wait("queue", others_waiting=1)["order"] == []
    server.studio.cancel(job.id, "ada")
    bob.wait("queue", others_waiting=0)
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {tokens['bob']}"}) as client:
        assert client.put(f"/v1/jobs/{job.id}/position", json={"before": None}).status_code == 404
        assert client.get("/v1/queue").json()["ended"] == []
    assert "secret" not in json.dumps(bob.rest(0.1))
