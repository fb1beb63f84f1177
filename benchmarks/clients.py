r"""Other programs' clients against a real `gouache serve`, unmodified: what each did, and what came.

    pip install --target PACKAGES webuiapi sd-backend-client openai langchain-community litellm haystack-ai \
        sd-parsers piexif
    npm install --prefix NPM stable-diffusion-api openai @langchain/openai @langchain/core ai @ai-sdk/openai
    python benchmarks/clients.py --packages PACKAGES --npm NPM    # prints the table of docs/serving.md

What isn't on the package index (aaa1111, sd_prompt_reader) is taken from PACKAGES too, where its folder lies there.
Programs that can't be run alone are represented by the bodies that they send.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

HERE = Path(__file__).resolve().parent
SECONDS = 900.0
"""Longest time that one client may take."""
SIZE = 64


@dataclass(frozen=True)
class Client:
    """A client, and how it is run.

    Attributes:
        name: as its users call it.
        package: whose version is printed; a folder, if the index has none; empty for bodies.
        did: for people.
        run: drives it; raises what goes wrong.
    """

    name: str
    package: str
    did: str
    run: Callable[[str], None]


def picture(colour: str = "red", size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """A plain picture."""
    return Image.new("RGB", size, colour)


def png(image: Image.Image) -> bytes:
    """A picture as a file."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def text_of(image: Image.Image) -> str:
    """A picture in base64."""
    return base64.b64encode(png(image)).decode("ascii")


def opened(text: str) -> Image.Image:
    """A picture from base64."""
    return Image.open(io.BytesIO(base64.b64decode(text)))


def check(holds: object, what: str) -> None:
    """Say what doesn't hold."""
    if not holds:
        raise AssertionError(what)


def webuiapi(url: str) -> None:
    """Paint, edit, enlarge, read the texts, send the settings back."""
    import webuiapi

    parts = httpx.URL(url)
    api = webuiapi.WebUIApi(host=parts.host, port=parts.port)
    small = {"steps": 2, "width": SIZE, "height": SIZE}
    painted = api.txt2img(prompt="a fox", **small)
    check(painted.image.mode == "RGB", "nobody asked for transparency")
    api.img2img(images=[painted.image], prompt="a hat", **small)
    api.img2img(images=[painted.image], mask_image=picture("white"), prompt="a hat", **small)
    larger = api.extra_single_image(painted.image, upscaler_1="Lanczos", upscaling_resize=2)
    check(larger.image.size == (2 * SIZE, 2 * SIZE), "twice the size")
    check("Steps: 2" in api.png_info(painted.image).info, "the text inside")
    api.set_options(api.get_options())
    api.util_set_model(api.util_get_model_names()[0])


def sd_backend_client(url: str) -> None:
    """Everything that the client finds the server able to."""
    from sd_backend_client.api.detect import connect_to_backend
    from sd_backend_client.api.webui.diffusion_request_body import DiffusionRequestBody

    api = connect_to_backend(url)
    can = api.get_capabilities()
    check(can.controlnet and can.scheduler, "ControlNets and schedules are found")
    body = DiffusionRequestBody(prompt="a fox", steps=2, width=SIZE, height=SIZE)
    check(api.txt2img(body)["info"] is not None, "info that the client's types take")
    edit = body.model_copy(update={"init_images": [picture()], "mask": picture("white")})
    for handle in (api.submit_txt2img(body), api.submit_img2img(edit), api.submit_inpaint(edit)):
        check(handle.wait().images, "pictures")
    check(api.upscale(picture(), 2 * SIZE, 2 * SIZE)["images"], "an enlarged picture")
    api.controlnet_preprocessor_preview(picture(), None, api.get_controlnet_preprocessors()[0])
    api.get_controlnet_type_categories()
    check(api.get_controlnet_control_types(), "types of control")
    for name in ("checkpoints", "vaes", "loras", "samplers", "schedulers", "upscalers", "hypernetworks"):
        getattr(api, f"list_{name}")()
    api.set_config(api.get_config())
    api.interrupt()


def aaa1111(url: str) -> None:
    """Both ways of painting, synchronous and asynchronous, with every default of the client."""
    from aaa1111 import AAA1111
    from aaa1111.types import IMG2IMG, TXT2IMG

    api = AAA1111(base_url=url, client_kwargs={"timeout": SECONDS})
    small: dict[str, Any] = {"prompt": "a fox", "steps": 2, "width": SIZE, "height": SIZE}
    check(api.txt2img(TXT2IMG(**small)).images, "pictures")
    check(api.img2img(IMG2IMG(**small, init_images=[picture()])).images, "pictures")
    asyncio.run(_in_a_loop(api, TXT2IMG(**small)))
    for name in ("samplers", "upscalers", "latent_upscale_modes", "sd_models", "sd_vae", "embeddings", "memory"):
        getattr(api, name)()
    for name in ("scripts", "script_info", "loras", "lycos", "progress", "cmd_flags", "prompt_styles"):
        getattr(api, name)()


async def _in_a_loop(api: Any, body: Any) -> None:
    check((await api.atxt2img(body)).images, "pictures")
    await api.aclient.aclose()


def openai_python(url: str) -> None:
    """Its models' names, sizes, styles, streams, several pictures, links."""
    import openai

    api = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=SECONDS)
    old = api.images.generate(model="dall-e-3", prompt="a fox", style="vivid", size="1024x1024")
    check(httpx.get(old.data[0].url, timeout=60).status_code == 200, "a link that opens")
    check(old.size == "1024x1024", "the size that came")
    new = api.images.generate(model="gpt-image-1", prompt="a fox", background="transparent", quality="low")
    check(opened(new.data[0].b64_json).mode == "RGBA", "transparency that was asked for")
    files = [("a.png", png(picture()), "image/png"), ("b.png", png(picture("blue")), "image/png")]
    api.images.edit(model="gpt-image-1", image=files, prompt="a fox", input_fidelity="high")
    events = [event.type for event in api.images.generate(prompt="a fox", stream=True, partial_images=1)]
    check(events[-1] == "image_generation.completed", "a stream")
    check(api.models.retrieve("gpt-image-1").id == "gpt-image-1", "a model by its name")


def langchain_python(url: str) -> None:
    """A picture by the tool's defaults: dall-e-2, 1024x1024, a link."""
    from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

    link = DallEAPIWrapper(api_key="none", base_url=f"{url}/v1").run("a fox")
    check(Image.open(io.BytesIO(httpx.get(link, timeout=60).content)).size == (1024, 1024), "1024x1024")


def litellm(url: str) -> None:
    """Three of OpenAI's names through the proxy library."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    for name in ("dall-e-2", "dall-e-3", "gpt-image-1"):
        reply = litellm.image_generation(model=f"openai/{name}", prompt="a fox", api_base=f"{url}/v1", api_key="none")
        check(reply.data[0].url or reply.data[0].b64_json, "a picture")


def haystack(url: str) -> None:
    """The image generator's defaults."""
    from haystack.components.generators.openai_image_generator import OpenAIImageGenerator
    from haystack.utils import Secret

    generator = OpenAIImageGenerator(api_base_url=f"{url}/v1", api_key=Secret.from_token("none"), timeout=SECONDS)
    generator.warm_up()
    check(generator.run("a fox")["images"], "pictures")


def recipes(url: str) -> None:
    """JPEG and WebP from the server, whose texts three other readers find."""
    import piexif
    import piexif.helper
    from sd_parsers import ParserManager

    for kind in ("jpg", "webp"):
        body = {"prompt": "a 猫, a fox", "negative_prompt": "bad", "steps": 2, "width": 256, "height": 256, "seed": 5}
        settings = {"override_settings": {"samples_format": kind}}
        reply = httpx.post(f"{url}/sdapi/v1/txt2img", json={**body, **settings}, timeout=SECONDS).json()
        data = base64.b64decode(reply["images"][0])
        with Image.open(io.BytesIO(data)) as image:
            comment = piexif.load(image.info["exif"])["Exif"][piexif.ExifIFD.UserComment]
            size = image.size
        check(piexif.helper.UserComment.load(comment) == json.loads(reply["info"])["infotexts"][0], "piexif reads it")
        read = ParserManager().parse(io.BytesIO(data))
        check(read is not None and read.metadata["Size"] == "{}x{}".format(*size) == "256x256", "sd-parsers reads it")
        _prompt_reader(data, size)


def _prompt_reader(data: bytes, size: tuple[int, int]) -> None:
    from sd_prompt_reader.image_data_reader import ImageDataReader

    read = ImageDataReader(io.BytesIO(data))
    check(read.positive == "a 猫, a fox", "sd-prompt-reader finds the prompt")
    check(read.negative == "bad", "sd-prompt-reader finds the negative prompt")
    check(read.parameter["size"] == "{}x{}".format(*size), "sd-prompt-reader finds the size")
    check(read.parameter["seed"] == "5", "sd-prompt-reader finds the seed")


UNIT = {"enabled": False, "input_image": "", "mask": "", "module": "none", "model": "None", "weight": 1}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "SillyTavern": (
        "/sdapi/v1/txt2img",
        {
            "prompt": "a fox",
            "negative_prompt": "bad",
            "sampler_name": "DPM++ 2M",
            "scheduler": "Karras",
            "steps": 20,
            "cfg_scale": 7,
            "width": 512,
            "height": 512,
            "restore_faces": False,
            "enable_hr": False,
            "hr_upscaler": "Latent",
            "hr_scale": 1.5,
            "hr_additional_modules": [],
            "denoising_strength": 0.7,
            "hr_second_pass_steps": 0,
            "seed": -1,
            "override_settings": {"CLIP_stop_at_last_layers": 1, "forge_additional_modules": []},
            "override_settings_restore_afterwards": True,
            "clip_skip": 1,
            "save_images": True,
            "send_images": True,
            "do_not_save_grid": False,
            "do_not_save_samples": False,
        },
    ),
    "Open WebUI (A1111)": (
        "/sdapi/v1/txt2img",
        {"prompt": "a fox", "batch_size": 1, "width": 512, "height": 512, "steps": 50, "negative_prompt": ""},
    ),
    "Open WebUI (OpenAI)": (
        "/v1/images/generations",
        {"model": "dall-e-2", "prompt": "a fox", "n": 1, "size": "512x512", "response_format": "b64_json"},
    ),
    "LibreChat (A1111)": (
        "/sdapi/v1/txt2img",
        {"prompt": "a fox", "negative_prompt": "bad", "cfg_scale": 4.5, "steps": 22, "width": 1024, "height": 1024},
    ),
    "LibreChat (DALL-E 3)": (
        "/v1/images/generations",
        {"model": "dall-e-3", "prompt": "a fox", "n": 1, "quality": "standard", "style": "vivid", "size": "1024x1024"},
    ),
    "LibreChat (gpt-image-1)": (
        "/v1/images/generations",
        {
            "model": "gpt-image-1",
            "prompt": "a fox",
            "n": 1,
            "background": "auto",
            "output_format": "webp",
            "output_compression": 100,
            "quality": "auto",
            "size": "auto",
        },
    ),
    "Auto-Photoshop-StableDiffusion-Plugin": (
        "/sdapi/v1/img2img",
        {
            "prompt": "a fox",
            "negative_prompt": "",
            "steps": 4,
            "cfg_scale": 7,
            "width": 128,
            "height": 128,
            "sampler_name": "Euler a",
            "seed": "-1",
            "batch_size": 1,
            "denoising_strength": 0.7,
            "init_images": [f"data:image/png;base64,{text_of(picture())}"],
            "mask": f"data:image/png;base64,{text_of(picture('white'))}",
            "expanded_mask": text_of(picture("white")),
            "mask_expansion": 12,
            "mask_blur": 0,
            "inpaint_full_res": False,
            "inpaint_full_res_padding": 0,
            "inpainting_fill": 1,
            "selection_info": {"left": 0, "top": 0, "width": 128, "height": 128},
            "use_prompt_shortcut": False,
            "controlnet_units": [UNIT],
            "subseed": -1,
            "override_settings": {},
            "override_settings_restore_afterwards": True,
            "alwayson_scripts": {
                "ADetailer": {"args": [False, {"ad_model": "None", "ad_confidence": 0.3}]},
                "controlnet": {"args": [UNIT]},
            },
        },
    ),
    "aiyabot": (
        "/sdapi/v1/txt2img",
        {
            "prompt": "a fox",
            "negative_prompt": "",
            "steps": 25,
            "width": 128,
            "height": 128,
            "cfg_scale": "7.0",
            "sampler_index": "Euler a",
            "seed": 7,
            "seed_resize_from_h": -1,
            "seed_resize_from_w": -1,
            "denoising_strength": "0.75",
            "n_iter": 1,
            "batch_size": 1,
            "styles": ["None"],
            "enable_hr": True,
            "hr_upscaler": "Latent",
            "hr_scale": 1,
            "hr_second_pass_steps": 12.5,
            "restore_faces": True,
            "override_settings": {"CLIP_stop_at_last_layers": 1, "face_restoration_model": "CodeFormer"},
        },
    ),
}


def body_of(name: str) -> Callable[[str], None]:
    """Sends a body, and wants a picture of the asked size."""
    path, body = BODIES[name]

    def run(url: str) -> None:
        reply = httpx.post(url + path, json=body, timeout=SECONDS)
        check(reply.status_code == 200, reply.text[:300])
        found = reply.json()
        texts = found.get("images") or [item.get("b64_json") for item in found["data"]]
        data = httpx.get(found["data"][0]["url"], timeout=60).content if not texts[0] else base64.b64decode(texts[0])
        size = body.get("size", f"{body.get('width')}x{body.get('height')}")
        with Image.open(io.BytesIO(data)) as image:
            check(size == "auto" or "{}x{}".format(*image.size) == size, f"{image.size} for {size}")
            check("A1111" in name or image.mode == "RGB" or body.get("background"), "no transparency unasked")

    return run


def node(name: str, npm: Path) -> Callable[[str], None]:
    """One client of clients.mjs, whose packages lie below `npm`."""

    def run(url: str) -> None:
        script = npm / "clients.mjs"  # Node looks for packages beside the script.
        shutil.copy(HERE / "clients.mjs", script)
        command = ["node", str(script), name, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        check(done.returncode == 0, (done.stderr or done.stdout)[-500:])

    return run


def clients(npm: Path | None) -> list[Client]:
    """All of them."""
    found = [
        Client("webuiapi", "webuiapi", "txt2img, img2img, mask, extras, png-info, options", webuiapi),
        Client("sd-backend-client", "sd-backend-client", "finds, lists, paints, edits, enlarges", sd_backend_client),
        Client("AAA1111", "aaa1111", "txt2img, img2img, both loops, listings", aaa1111),
        Client("openai (Python)", "openai", "three calls, stream, several pictures, links", openai_python),
        Client("LangChain (Python) `DallEAPIWrapper`", "langchain-community", "defaults", langchain_python),
        Client("LiteLLM", "litellm", "`dall-e-2`, `dall-e-3`, `gpt-image-1`", litellm),
        Client("Haystack `OpenAIImageGenerator`", "haystack-ai", "defaults", haystack),
        Client("piexif, sd-parsers, sd-prompt-reader", "piexif", "read recipes in JPEG and WebP", recipes),
    ]
    if npm is not None:
        more = {
            "stable-diffusion-api": ("stable-diffusion-api (npm)", "paints, edits, masks, extras, lists, options"),
            "openai": ("openai (npm)", "generations, stream, models"),
            "langchain": ("LangChain (JS) `DallEAPIWrapper`", "defaults, link and base64"),
            "vercel": ("Vercel AI SDK `generateImage`", "`dall-e-3`, `gpt-image-1`, edit of two pictures"),
        }
        found += [Client(label, name, did, node(name, npm)) for name, (label, did) in more.items()]
    return [*found, *(Client(name, "", "its body", body_of(name)) for name in BODIES)]


NODE_PACKAGES = {"langchain": "@langchain/openai", "vercel": "ai"}


def version_of(client: Client, npm: Path | None) -> str:
    """Of the installed package; "sent" for a body."""
    if not client.package:
        return "sent"
    manifest = (npm or Path()) / "node_modules" / NODE_PACKAGES.get(client.package, client.package) / "package.json"
    if npm is not None and client.run.__qualname__.startswith("node.") and manifest.is_file():
        return str(json.loads(manifest.read_text("utf-8"))["version"])
    try:
        return importlib.metadata.version(client.package)
    except importlib.metadata.PackageNotFoundError:
        return "its repository"


@contextmanager
def served() -> Iterator[str]:
    """The address of a `gouache serve` with an empty folder and the shipped model."""
    environment = {key: value for key, value in os.environ.items() if key != "GOUACHE_TOKEN"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gouache", "serve", "--data", folder, "--port", "0"]
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        try:
            assert server.stdout is not None, "a pipe was asked for"
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
            server.wait(60)


def main() -> None:
    """Run them, one process each, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, action="append", default=[], help="folder of Python packages")
    parser.add_argument("--npm", type=Path, help="folder with node_modules")
    parser.add_argument("--only", default="", help="clients whose name holds this")
    parser.add_argument("--url", help="of a running server; by default one is started")
    given = parser.parse_args()
    chosen = [client for client in clients(given.npm) if given.only in client.name]
    if given.url and os.environ.get("GOUACHE_CLIENT"):
        (client,) = (one for one in chosen if one.name == os.environ["GOUACHE_CLIENT"])
        client.run(given.url)
        print(version_of(client, given.npm))  # noqa: T201
        return
    print("| client | version | what it did | result |\n|---|---|---|---|")  # noqa: T201
    with served() if given.url is None else _at(given.url) as url:
        for client in chosen:
            print(row_of(client, url, given.packages, given.npm), flush=True)  # noqa: T201


@contextmanager
def _at(url: str) -> Iterator[str]:
    yield url


def row_of(client: Client, url: str, packages: list[Path], npm: Path | None) -> str:
    """Run one client in a process of its own, with the packages in front of ours."""
    path = os.pathsep.join([*map(str, packages), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--url", url, *(["--npm", str(npm)] if npm else [])]
    environment = {**os.environ, "PYTHONPATH": path, "GOUACHE_CLIENT": client.name}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    last = (done.stdout or done.stderr).strip().splitlines()[-1:] or [""]
    problem = (done.stderr.strip().splitlines() or ["no word"])[-1]
    version, result = (last[0], "works") if done.returncode == 0 else ("", problem[:160].replace("|", "/"))
    print(f"{client.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)  # noqa: T201
    return f"| {client.name} | {version} | {client.did} | {result} |"


if __name__ == "__main__":
    main()
