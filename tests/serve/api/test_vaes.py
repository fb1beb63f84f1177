"""Autoencoders over HTTP: A1111's `sd_vae` and a native request's `vae` paint what the pipeline paints in Python.

The kind: every way in which a client names an autoencoder, or none, or one that isn't there, or a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
import webuiapi
from diffusers import AutoencoderKL

from gouache.pipeline.request import Request
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from tests.serve.conftest import Server

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning")]
SIDE = 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    models = tmp_path_factory.mktemp("models")
    made = AutoencoderKL(
        block_out_channels=(16, 16, 32),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 1) ** 0.5)
    made.save_pretrained(models / "VAE" / "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOUACHE_MODELS", str(models))
        patch.setenv("HF_HUB_CACHE", str(models / "hub"))
        yield models


@pytest.fixture(scope="module")
def server(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from tests.serve.conftest import TINY_WORKER, Server, make_settings

    assert folders.is_dir()
    made = Server(Studio(make_settings(tmp_path_factory.mktemp("vaes")), TINY_WORKER)).start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def pictures(folders: Path) -> Iterator[dict[str | None, bytes]]:
    """What the same model paints in this process, with each autoencoder."""
    from tests.serve.tiny_worker import tiny_pipeline

    assert folders.is_dir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipeline = tiny_pipeline()
    size = {"width": SIDE, "height": SIDE, "num_inference_steps": 2, "guidance_scale": 7.0, "sampler": "euler"}
    yield {
        name: pipeline.paint(Request.from_dict({"prompt": "a cup", "seed": 7, "vae": name, **size}))[0]
        .image.convert("RGB")
        .tobytes()
        for name in (None, "mine")
    }
    torch.set_num_threads(threads)


SETTINGS: dict[str, tuple[dict[str, Any], str | None]] = {
    "a name": ({"sd_vae": "mine"}, "mine"),
    "another case": ({"sd_vae": "MINE"}, "mine"),
    "with a suffix": ({"sd_vae": "mine.safetensors"}, "mine"),
    "Automatic": ({"sd_vae": "Automatic"}, None),
    "None": ({"sd_vae": "None"}, None),
    "empty": ({"sd_vae": ""}, None),
    "nothing said": ({}, None),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_sd_vae_in_a_request(server: Server, pictures: dict[str | None, bytes], name: str) -> None:
    settings, wanted = SETTINGS[name]
    api = webuiapi.WebUIApi(host="127.0.0.1", port=server.port, steps=2)
    values = {"prompt": "a cup", "seed": 7, "width": SIDE, "height": SIDE, "sampler_name": "Euler", "cfg_scale": 7}
    found = api.txt2img(**values, override_settings=settings).image.convert("RGB").tobytes()
    assert found == pictures[wanted]
    assert pictures[None] != pictures["mine"]


def test_sd_vae_as_a_users_setting(server: Server, pictures: dict[str | None, bytes]) -> None:
    api = webuiapi.WebUIApi(host="127.0.0.1", port=server.port, steps=2)
    assert [one["model_name"] for one in api.get_sd_vae()] == ["mine"]
    api.set_options({"sd_vae": "mine"})
    try:
        assert api.get_options()["sd_vae"] == "mine"
        values = {"prompt": "a cup", "seed": 7, "width": SIDE, "height": SIDE, "sampler_name": "Euler", "cfg_scale": 7}
        assert api.txt2img(**values).image.convert("RGB").tobytes() == pictures["mine"]
    finally:
        api.set_options({"sd_vae": "Automatic"})


@pytest.mark.parametrize("name", ["other.pt", "../VAE/mine", "/etc/passwd", "VAE/mine", "VAE/mine/config.json"])
def test_what_is_no_name_of_an_autoencoder_is_refused(server: Server, folders: Path, name: str) -> None:
    for value in (name, str(folders / "VAE" / "mine")):
        fields = {"override_settings": {"sd_vae": value}}
        answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json=fields, timeout=60)
        assert (answer.status_code, answer.json()["field"]) == (422, "sd_vae")
        native = httpx.post(f"{server.url}/v1/jobs", json={"request": {"prompt": "a", "vae": value}}, timeout=60)
        assert native.status_code in (404, 422), native.text
