"""The `openai` package, unmodified, synchronous and asynchronous, against a real server with a real worker."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.serve.conftest import Server


@pytest.fixture
def api(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def opened(text: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text or "")))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_generations_in_every_format(api: openai.OpenAI) -> None:
    for kind in ("png", "jpeg", "webp"):
        reply = api.images.generate(prompt="a fox", n=2, size="32x48", output_format=kind, extra_body={"steps": 2})
        pictures = [opened(item.b64_json) for item in reply.data or []]
        assert [(picture.format, picture.size) for picture in pictures] == [(kind.upper(), (32, 48))] * 2
        assert reply.output_format == kind


def test_own_fields_go_by_extra_body_and_stand_in_the_recipe(api: openai.OpenAI) -> None:
    reply = api.images.generate(
        prompt="a fox", size="32x32", extra_body={"seed": 4, "steps": 3, "sampler": "Heun", "negative_prompt": "dog"}
    )
    assert reply.data
    request = json.loads(opened(reply.data[0].b64_json).info["gouache"])["request"]
    assert (request["seed"], request["num_inference_steps"], request["sampler"]) == (4, 3, "heun")
    assert request["negative_prompt"] == "dog"


def test_a_url_opens_without_a_token_and_not_when_it_was_changed(api: openai.OpenAI) -> None:
    reply = api.images.generate(prompt="a fox", size="32x32", response_format="url", extra_body={"steps": 1})
    assert reply.data
    url = reply.data[0].url or ""
    answer = httpx.get(url, timeout=60)
    assert answer.status_code == 200
    assert Image.open(io.BytesIO(answer.content)).size == (32, 32)


def test_models_are_listed_as_the_client_reads_them(api: openai.OpenAI) -> None:
    assert [model.id for model in api.models.list()] == ["pocket"]


def test_streaming_sends_partial_images_and_the_finished_one(api: openai.OpenAI) -> None:
    stream = api.images.generate(prompt="a fox", size="64x64", stream=True, partial_images=2, extra_body={"steps": 80})
    events: list[Any] = list(stream)
    kinds = [event.type for event in events]
    assert kinds[-1] == "image_generation.completed"
    assert 1 <= kinds.count("image_generation.partial_image") <= 2
    assert [event.partial_image_index for event in events[:-1]] == list(range(len(events) - 1))
    assert opened(events[-1].b64_json).size == (64, 64)
    assert opened(events[0].b64_json).format == "PNG"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # Said of create_variation by the client itself.
def test_edits_and_variations_take_files(api: openai.OpenAI) -> None:
    image = Image.new("RGBA", (32, 32), "red")
    mask = Image.new("RGBA", (32, 32), "black")
    ImageDraw.Draw(mask).rectangle((0, 0, 15, 31), fill=(0, 0, 0, 0))
    edited = api.images.edit(
        image=[("a.png", png(image), "image/png")],
        mask=("m.png", png(mask), "image/png"),
        prompt="a hat",
        n=1,
        extra_body={"steps": "2"},
    )
    assert edited.data
    recipe = json.loads(opened(edited.data[0].b64_json).info["gouache"])["request"]
    assert recipe["mask"]["image"].startswith("sha256:")
    painted = opened(edited.data[0].b64_json).convert("RGB")
    assert painted.getpixel((31, 16)) == (255, 0, 0)
    assert painted.crop((0, 0, 16, 32)).getcolors() != [(512, (255, 0, 0))]
    varied = api.images.create_variation(image=("a.png", png(image), "image/png"), n=2, extra_body={"size": "32x32"})
    assert varied.data is not None
    assert len(varied.data) == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "huge"}, "size"),
        ({"size": "16000x16000"}, "size"),
        ({"n": 11}, "n"),
        ({"style": "loud"}, "style"),
        ({"quality": "best"}, "quality"),
        ({"model": "../secret"}, "model"),
        ({"output_compression": 50}, "output_compression"),
        ({"extra_body": {"wings": 2}}, "wings"),
    ],
)
def test_bad_requests_name_the_parameter(api: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.images.generate(prompt="a fox", **fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_a_mask_of_another_size_is_refused(api: openai.OpenAI) -> None:
    image, mask = png(Image.new("RGBA", (32, 32))), png(Image.new("RGBA", (16, 16)))
    with pytest.raises(openai.BadRequestError) as caught:
        api.images.edit(image=("a.png", image, "image/png"), mask=("m.png", mask, "image/png"), prompt="x")
    assert caught.value.param == "mask"


def test_a_retry_paints_nothing_twice(server: Server) -> None:
    body = {"prompt": "a retried fox", "size": "32x32", "steps": 1}
    texts = []
    for count in range(3):
        answer = httpx.post(
            f"{server.url}/v1/images/generations",
            json=body,
            headers={"x-stainless-retry-count": str(count)},
            timeout=60,
        )
        texts.append(answer.json()["data"][0]["b64_json"])
    assert len(set(texts)) == 1
    jobs = [job for job in server.studio.jobs.listing(source="openai") if "a retried fox" in job.request]
    assert len(jobs) == 1


def test_a_client_that_gives_up_and_retries_gets_the_first_job(server: Server) -> None:
    # The job takes far longer than two waits, and a wait is long enough for any server to accept it.
    impatient = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=1, timeout=1.5)
    with impatient, pytest.raises(openai.APITimeoutError):
        impatient.images.generate(prompt="impatience", size="256x256", n=10, extra_body={"steps": 100})
    jobs = [job for job in server.studio.jobs.listing(source="openai") if '"impatience"' in job.request]
    assert len(jobs) == 1
    server.studio.cancel(jobs[0].id, None)
    assert server.wait(jobs[0].id).state == "cancelled"


def test_an_idempotency_key_gives_the_same_job_and_refuses_another_request(server: Server) -> None:
    url, headers = f"{server.url}/v1/images/generations", {"Idempotency-Key": "once"}
    body = {"prompt": "keyed", "size": "32x32", "steps": 1}
    first, second = (httpx.post(url, json=body, headers=headers, timeout=60).json() for _ in range(2))
    assert first["data"] == second["data"]
    clash = httpx.post(url, json=body | {"prompt": "other"}, headers=headers, timeout=60)
    assert (clash.status_code, clash.json()["error"]["type"]) == (409, "conflict_error")


def test_the_async_client_paints_and_streams(server: Server) -> None:
    async def walk() -> tuple[Any, list[Any]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            reply = await client.images.generate(prompt="a fox", size="32x32", extra_body={"steps": 1})
            stream = await client.images.generate(prompt="a fox", size="32x32", stream=True, extra_body={"steps": 2})
            return reply, [event async for event in stream]

    reply, events = asyncio.run(walk())
    assert opened(reply.data[0].b64_json).size == (32, 32)
    assert events[-1].type == "image_generation.completed"
