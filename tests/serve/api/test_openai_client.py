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

from gouache.serve.models.facts import Facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.serve.conftest import MakeClient, Server


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


@pytest.mark.parametrize("name", ["dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-2", "pocket", None])
def test_openais_names_mean_the_served_model(api: openai.OpenAI, name: str | None) -> None:
    """Links for DALL-E's names, without transparency; the pictures themselves for others."""
    named: dict[str, Any] = {} if name is None else {"model": name}
    reply = api.images.generate(prompt="a fox", size="32x32", extra_body={"steps": 1}, **named)
    assert reply.data
    assert (reply.data[0].url is None) == (name is None or "dall" not in name)
    if reply.data[0].url:
        # Clients save a link's picture under the last part of its path.
        assert httpx.URL(reply.data[0].url).path.rsplit("/", 1)[1].endswith(".png")
        answer = httpx.get(reply.data[0].url, timeout=60)
        assert Image.open(io.BytesIO(answer.content)).size == (32, 32)
    if name is not None:
        assert api.models.retrieve(name).id == name


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_link_gives_the_format_that_was_asked_for(api: openai.OpenAI, kind: Any) -> None:
    reply = api.images.generate(
        prompt="a fox", size="32x32", response_format="url", output_format=kind, extra_body={"steps": 1}
    )
    assert reply.data
    url = reply.data[0].url or ""
    answer = httpx.get(url, timeout=60)
    assert (answer.headers["content-type"], Image.open(io.BytesIO(answer.content)).format) == (
        f"image/{kind}",
        kind.upper(),
    )


def test_a_link_opens_one_file_alone(make_client: MakeClient) -> None:
    """Sealed for exactly its path: neither another format nor another quality opens with it."""
    from gouache.serve.http.guard import seal

    client = make_client(lambda studio: studio.accounts.add_token("admin", "a-token-that-is-long-enough"))
    studio: Any = client.app.app.app.state.studio  # type: ignore[attr-defined]
    path = "/v1/images/files/100/0123-0000.png"
    link = seal(path, studio.secret, "link")
    assert client.get(f"{path}?link={link}").status_code == 404
    for other in (path.replace("png", "webp"), path.replace("100", "80"), path.replace("0123", "0124")):
        assert client.get(f"{other}?link={link}").status_code == 401


def test_a_style_is_noted_and_the_size_is_the_one_that_came(api: openai.OpenAI) -> None:
    reply = api.images.generate(prompt="a fox", style="vivid", quality="low", size="36x32", extra_body={"steps": 1})
    assert reply.data
    assert reply.size == "{}x{}".format(*opened(reply.data[0].b64_json).size)
    assert any(note.startswith("style: ignored") for note in reply.model_extra["notes"])  # type: ignore[index]


def test_several_pictures_are_laid_side_by_side(api: openai.OpenAI, server: Server) -> None:
    colours = ["red", "blue", "lime"]
    images = [(f"{name}.png", png(Image.new("RGB", (64, 64), name)), "image/png") for name in colours]
    reply = api.images.edit(
        image=images, prompt="", input_fidelity="high", extra_body={"steps": "1", "strength": "0", "size": "64x64"}
    )
    assert reply.data
    painted = opened(reply.data[0].b64_json).convert("RGB")
    recipe = json.loads(opened(reply.data[0].b64_json).info["gouache"])["request"]
    name = recipe["init_image"]
    assert painted.size == (64, 64)
    with Image.open(io.BytesIO(server.studio.file_store.attachment(name))) as sheet:
        found = [sheet.convert("RGB").getpixel(place) for place in ((16, 16), (48, 16), (16, 48), (48, 48))]
    assert found == [(255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 255)]


@pytest.mark.parametrize(("fidelity", "strength"), [("high", 0.5), ("low", 0.75), (None, 0.75)])
def test_input_fidelity_is_how_little_an_edit_changes(api: openai.OpenAI, fidelity: Any, strength: float) -> None:
    image = ("a.png", png(Image.new("RGB", (32, 32), "red")), "image/png")
    given = {} if fidelity is None else {"input_fidelity": fidelity}
    reply = api.images.edit(image=image, prompt="a hat", extra_body={"steps": "2"}, **given)
    assert reply.data
    assert json.loads(opened(reply.data[0].b64_json).info["gouache"])["request"]["strength"] == strength


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/images/x", "/v1/audio/speech", "/v1/nothing"])
def test_unknown_paths_are_told_in_openais_shape(server: Server, method: str, path: str) -> None:
    answer = httpx.request(method, server.url + path, timeout=60)
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"


def test_another_method_would_be_served(server: Server) -> None:
    for path, allowed in (("/v1/images/generations", "POST"), ("/sdapi/v1/interrogate", "POST"), ("/v1/jobs", "GET")):
        answer = httpx.delete(server.url + path, timeout=60)
        assert answer.status_code == 405
        assert allowed in answer.headers["allow"]


def test_an_unknown_model_is_not_found(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("nope")


def test_sizes_above_the_models_own(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with an upscaler enlarges; another paints a second pass from a first one of its own area."""
    from gouache.serve.api.openai import mapping
    from gouache.serve.api.openai.fields import Edits, Generations

    studio: Any = make_client().app.app.app.state.studio  # type: ignore[attr-defined]
    start = studio.file_store.attach(png(Image.new("RGB", (512, 256))))

    def made(size: str | None, facts: Facts, **pictures: object) -> Any:
        monkeypatch.setattr(mapping, "facts_of", lambda _: facts)
        body: Any = Edits(prompt="a", size=size) if pictures else Generations(prompt="a", size=size)
        return mapping.order_of(body, studio, "local", pictures).request

    small, large = Facts(trained_side=128, upscaler=True), Facts(trained_side=512)
    plain = made("1024x1024", small)
    assert (plain.width, plain.height, plain.upscale, plain.hires) == (1024, 1024, None, None)
    twice = made("1024x1024", large)
    assert (twice.width, twice.height) == (512, 512)
    assert (twice.hires.width, twice.hires.height) == (1024, 1024)
    wide = made("1792x1024", large)
    assert wide.hires.size_for(wide.width, wide.height) == (1792, 1024)
    assert abs(wide.width * wide.height / 512**2 - 1) < 0.05
    assert made("512x768", large).hires is None
    edit = made(None, small, init_image=start, start=(512, 256), strength=0.5)
    assert (edit.width, edit.height, edit.upscale.factor) == (128, 64, 4.0)
    masked = made(None, small, init_image=start, start=(512, 256), strength=0.5, mask={"blur": 0})
    assert (masked.width, masked.upscale) == (None, None)
    assert made("1024x1024", large, init_image=start, start=(512, 256)).width == 1024
