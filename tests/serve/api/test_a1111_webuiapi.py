"""`webuiapi`, unmodified, walks its calls against a real server with a real worker."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import webuiapi
from PIL import Image
from sqlalchemy import delete

from gouache.checkpoints.hub import shipped_model
from gouache.diffusion.samplers.registry import sampler_options
from gouache.serve.api.a1111.mapping import TAKES_CHURN, TAKES_ETA
from gouache.serve.store.tables import presets

if TYPE_CHECKING:
    from tests.serve.conftest import Server


@pytest.fixture
def api(server: Server) -> Any:
    return webuiapi.WebUIApi(host="127.0.0.1", port=server.port, steps=2)


def test_txt2img_paints_the_asked_pictures_with_info(api: Any) -> None:
    result = api.txt2img(
        prompt="a cup",
        negative_prompt="blue",
        seed=11,
        batch_size=2,
        n_iter=2,
        width=32,
        height=48,
        cfg_scale=5,
        sampler_name="DPM++ 2M Karras",
    )
    assert [image.size for image in result.images] == [(32, 48)] * 4
    assert result.info["all_seeds"] == [11, 12, 13, 14]
    assert result.info["sampler_name"] == "DPM++ 2M"
    assert result.parameters["prompt"] == "a cup"
    assert result.parameters["hr_checkpoint_name"] is None
    assert result.info["infotexts"][0] == result.image.info["parameters"]
    assert "Schedule type: Karras" in result.info["infotexts"][0]


def test_a_batch_holds_the_pictures_painted_alone(api: Any) -> None:
    batch = api.txt2img(prompt="a cup", seed=5, batch_size=2, width=32, height=32)
    alone = api.txt2img(prompt="a cup", seed=6, width=32, height=32)
    assert batch.images[1].tobytes() == alone.image.tobytes()


def test_extras_resizes_and_png_info_reads_back(api: Any) -> None:
    image = api.txt2img(prompt="a cup", seed=1, width=32, height=32).image
    larger = api.extra_single_image(image=image, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=2)
    assert larger.image.size == (64, 64)
    several = api.extra_batch_images(
        images=[image, image], upscaler_1="Nearest", resize_mode=1, upscaling_resize_w=40, upscaling_resize_h=20
    )
    assert [picture.size for picture in several.images] == [(40, 20)] * 2
    info = api.png_info(image)
    assert info.info.startswith("a cup\nSteps: 2")
    assert info.parameters["Size"] == "32x32"


@pytest.mark.skipif(shipped_model() is None, reason="this build ships no model, so none with an upscaler")
def test_extras_use_the_upscaler_that_the_model_brings(api: Any, server: Server) -> None:
    from gouache.checkpoints.identify import identify
    from gouache.pipeline.generate.enlarge import enlarge_picture
    from gouache.pipeline.generate.upscaler_files import load_part

    listed = {entry["name"]: entry["model_name"] for entry in api.get_upscalers()}
    assert listed["model"] == "pocket"
    image = Image.effect_noise((40, 24), 60).convert("RGB").resize((80, 48))
    path = shipped_model() or Path()
    network = load_part(path, identify(path))
    larger = api.extra_single_image(image=image, upscaler_1="model", upscaling_resize=3).image
    assert larger.size == (240, 144)
    assert larger.convert("RGB").tobytes() == enlarge_picture(image, 3.0, network).convert("RGB").tobytes()
    square = api.extra_single_image(
        image=image, upscaler_1="model", resize_mode=1, upscaling_resize_w=200, upscaling_resize_h=200
    )
    assert square.image.size == (200, 200)
    smaller = api.extra_single_image(image=image, upscaler_1="model", upscaling_resize=0.5).image
    assert smaller.size == (40, 24)
    assert list((server.studio.settings.data / "tasks").iterdir()) == []


def test_adapters_on_the_disk_are_listed(api: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    for folder in ("loras", "embeddings"):
        (tmp_path / folder).mkdir()
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{name}.lora_down.weight": torch.zeros(2, 320), f"{name}.lora_up.weight": torch.zeros(320, 2)}
    save_file(tensors, tmp_path / "loras" / "ink.safetensors", {"ss_output_name": "inky"})
    save_file({"emb_params": torch.zeros(3, 768)}, tmp_path / "embeddings" / "zog.safetensors")
    (tmp_path / "embeddings" / "torn.safetensors").write_bytes(b"x")
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path))
    assert api.get_loras() == [{"name": "ink", "alias": "inky", "path": "ink.safetensors", "metadata": {}}]
    found = api.get_embeddings()
    assert (found["loaded"]["zog"]["vectors"], found["loaded"]["zog"]["shape"]) == (3, 768)
    assert list(found["skipped"]) == ["torn"]


def test_every_listing_has_the_shape_that_the_client_reads(
    api: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path))
    assert "Euler a" in api.util_get_sampler_names()
    assert "karras" in api.util_get_scheduler_names()
    assert api.util_get_model_names() == ["pocket"]
    assert api.get_sd_models()[0].keys() == {"title", "model_name", "hash", "sha256", "filename", "config"}
    assert [entry["name"] for entry in api.get_upscalers()][:3] == ["None", "Lanczos", "Nearest"]
    assert "Latent" in [entry["name"] for entry in api.get_latent_upscale_modes()]
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_scripts() == {"txt2img": ["controlnet"], "img2img": ["sd upscale", "controlnet"]}
    for name in (
        "sd_vae",
        "loras",
        "hypernetworks",
        "face_restorers",
        "realesrgan_models",
        "artists",
        "artist_categories",
        "prompt_styles",
    ):
        assert getattr(api, f"get_{name}")() == []
    assert api.get_cmd_flags()["api"] is True
    assert api.get_memory()["ram"]["total"] > 0
    assert api.refresh_checkpoints() is None
    assert (api.controlnet_version(), api.controlnet_model_list()) == (2, [])
    assert api.controlnet_module_list()[:2] == ["none", "canny"]


def test_options_are_kept_and_change_what_is_painted(api: Any) -> None:
    assert api.util_get_current_model() == "pocket"
    api.util_set_model("pocket")
    assert api.set_options({"samples_format": "jpg"}) is None
    try:
        assert api.get_options()["samples_format"] == "jpg"
        assert api.txt2img(prompt="a cup", width=32, height=32).image.format == "JPEG"
    finally:
        api.set_options({"samples_format": "png"})
    webp = api.txt2img(prompt="a cup", width=32, height=32, override_settings={"samples_format": "webp"})
    assert webp.image.format == "WEBP"
    assert api.get_options()["samples_format"] == "png"


def test_idle_progress_is_exactly_zero(api: Any) -> None:
    idle = api.get_progress()
    assert (idle["progress"], idle["eta_relative"], idle["state"]["job_count"]) == (0.0, 0.0, 0)
    api.util_wait_for_ready(check_interval=0.1)


def test_progress_with_a_preview_then_interrupt_ends_the_call(api: Any) -> None:
    results: list[Any] = []
    painting = threading.Thread(
        target=lambda: results.append(api.txt2img(prompt="slow", steps=100, n_iter=8, width=256, height=256))
    )
    painting.start()
    seen: dict[str, Any] = {}
    until = time.monotonic() + 120
    while time.monotonic() < until and not (seen.get("current_image") and seen["state"]["sampling_step"] > 1):
        seen = api.get_progress()
        time.sleep(0.05)
    assert 0 < seen["progress"] < 1
    assert seen["state"]["sampling_steps"] == 100
    assert seen["current_image"] is not None
    assert api.interrupt() == {}
    painting.join(60)
    assert not painting.is_alive()
    # As there: what was finished, and the current picture as it stood.
    assert 1 <= len(results[0].images) < 8
    recipe = json.loads(results[0].images[-1].info["gouache"])
    assert recipe["notes"][-1].startswith("interrupted after step ")


def test_the_async_client_works(api: Any) -> None:
    pytest.importorskip("aiohttp", reason="webuiapi's asynchronous calls need aiohttp")

    async def paint() -> Any:
        return await api.txt2img(prompt="a cup", seed=2, width=32, height=32, use_async=True)

    assert asyncio.run(paint()).image.size == (32, 32)


@pytest.mark.parametrize(
    ("call", "fields", "status", "field"),
    [
        ("txt2img", {"alwayson_scripts": {"Net": {"args": [{"model": "x"}]}}}, 422, "alwayson_scripts.Net"),
        ("txt2img", {"script_name": "x/y plot"}, 422, "script_name"),
        ("txt2img", {"override_settings": {"sd_vae": "other.pt"}}, 422, "sd_vae"),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": "../../etc/passwd"}}, 422, "sd_model_checkpoint"),
        ("txt2img", {"refiner_checkpoint": "sdxl-refiner"}, 422, "refiner_checkpoint"),
        ("txt2img", {"enable_hr": True, "hr_upscaler": "LDSR"}, 422, "hr_upscaler"),
        ("txt2img", {"seed_resize_from_h": 64, "height": 32}, 422, "seed_resize_from_h"),
        ("txt2img", {"steps": 5000}, 422, "steps"),
        ("txt2img", {"width": 16000, "height": 16000}, 422, "width"),
        ("txt2img", {"sampler_name": "Nope"}, 404, "sampler_name"),
        ("img2img", {}, 404, "init_images"),
        ("img2img", {"init_images": ["http://127.0.0.1:1/x.png"]}, 422, "init_images"),
        ("img2img", {"init_images": ["bm90IGEgcGljdHVyZQ=="]}, 422, "init_images"),
        ("interrogate", {"image": "", "model": "clip"}, 422, "model"),
    ],
)
def test_what_cant_be_served_is_refused_by_its_name(
    server: Server, call: str, fields: dict[str, object], status: int, field: str
) -> None:
    answer = httpx.post(f"{server.url}/sdapi/v1/{call}", json=fields, timeout=60)
    assert (answer.status_code, answer.json()["field"]) == (status, field)
    assert answer.json()["detail"]


def test_a_wrong_type_is_named(server: Server) -> None:
    answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json={"steps": "many"}, timeout=60)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "steps"]


def test_every_field_may_be_null(server: Server) -> None:
    from gouache.serve.api.a1111.fields import Txt2Img

    nulls: dict[str, object] = dict.fromkeys(Txt2Img.model_fields)
    answer = httpx.post(
        f"{server.url}/sdapi/v1/txt2img", json=nulls | {"width": 32, "height": 32, "steps": 1}, timeout=60
    )
    assert answer.status_code == 200
    assert len(answer.json()["images"]) == 1


def test_fields_that_are_not_given_come_from_the_infotext(server: Server) -> None:
    text = "a tree\nNegative prompt: fog\nSteps: 3, Sampler: Heun, CFG scale: 4, Seed: 77, Size: 32x32, Version: v1.9"
    answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json={"infotext": text, "seed": 5}, timeout=60)
    info = json.loads(answer.json()["info"])
    assert (info["prompt"], info["negative_prompt"], info["steps"], info["seed"]) == ("a tree", "fog", 3, 5)
    assert (info["sampler_name"], info["width"]) == ("Heun", 32)


def test_styles_are_laid_around_the_prompt(server: Server) -> None:
    style = {"name": "ink", "prompt": "ink drawing of {prompt}", "negative_prompt": "photo"}
    assert httpx.put(f"{server.url}/v1/presets", json=style, timeout=60).status_code == 200
    try:
        fields = {"prompt": "a cup", "styles": ["ink"], "width": 32, "height": 32, "steps": 1}
        info = json.loads(httpx.post(f"{server.url}/sdapi/v1/txt2img", json=fields, timeout=60).json()["info"])
        assert (info["prompt"], info["negative_prompt"]) == ("ink drawing of a cup", "photo")
    finally:
        with server.studio.database.write() as connection:
            connection.execute(delete(presets).where(presets.c.name == "ink"))


def test_the_samplers_that_take_eta_and_churn_are_those_of_the_sampler_room() -> None:
    from gouache.diffusion.samplers.names import SAMPLER_INFOS

    assert {name for name in SAMPLER_INFOS if "eta" in sampler_options(name)} == TAKES_ETA
    assert {name for name in SAMPLER_INFOS if "s_churn" in sampler_options(name)} == TAKES_CHURN


def test_samplers_and_lists_that_a1111_and_forge_have(api: Any) -> None:
    """They are listed by their labels and aliases, paint by name, and stand in the text of the picture."""
    samplers = {entry["name"]: entry["aliases"] for entry in api.get_samplers()}
    for label, alias in (
        ("DPM fast", "k_dpm_fast"),
        ("DPM adaptive", "k_dpm_ad"),
        ("DDIM CFG++", "ddim_cfgpp"),
        ("HeunPP2", "heunpp2"),
        ("IPNDM", "ipndm"),
        ("IPNDM_V", "ipndm_v"),
        ("DEIS", "deis"),
    ):
        assert alias in samplers[label]
    schedulers = {entry["label"]: entry["name"] for entry in api.get_schedulers()}
    assert schedulers["Turbo"] == "turbo"
    assert schedulers["Align Your Steps GITS"] == "align_your_steps_gits"
    assert schedulers["Align Your Steps 32"] == "align_your_steps_32"
    for sampler, scheduler in (
        ("DDIM CFG++", None),
        ("DPM fast", None),
        ("k_dpm_fast", "Turbo"),
        ("DDIM", "automatic"),
    ):
        fields = {} if scheduler is None else {"scheduler": scheduler}
        result = api.txt2img(prompt="a cup", seed=3, steps=3, width=32, height=32, sampler_name=sampler, **fields)
        expected = "DPM fast" if sampler == "k_dpm_fast" else sampler
        assert result.info["sampler_name"] == expected
        assert f"Sampler: {expected}," in result.info["infotexts"][0]
        assert ("Schedule type: Turbo" in result.info["infotexts"][0]) == (scheduler == "Turbo")


def test_img2img_starts_from_the_picture(api: Any) -> None:
    red = Image.new("RGB", (32, 32), "red")
    result = api.img2img(images=[red], prompt="a cup", denoising_strength=0.5, width=32, height=32, seed=1)
    assert result.image.size == (32, 32)
    assert result.parameters["init_images"] is None
    assert result.info["denoising_strength"] == 0.5


def test_a_mask_keeps_the_black_part_bit_for_bit(api: Any) -> None:
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (16, 0, 32, 32))
    painted = api.img2img(
        images=[picture],
        mask_image=mask,
        mask_blur=0,
        inpainting_fill=1,
        inpaint_full_res=False,
        prompt="a cup",
        width=32,
        height=32,
        seed=1,
        denoising_strength=1.0,
    )
    left, right = (0, 0, 16, 32), (16, 0, 32, 32)
    assert painted.image.convert("RGB").crop(left).tobytes() == picture.crop(left).tobytes()
    assert painted.image.convert("RGB").crop(right).tobytes() != picture.crop(right).tobytes()


def test_the_second_pass_is_larger(api: Any) -> None:
    result = api.txt2img(prompt="a cup", width=32, height=32, seed=1, enable_hr=True, hr_scale=2, hr_upscaler="Latent")
    assert result.image.size == (64, 64)
    assert "Hires upscale: 2" in result.info["infotexts"][0]


@pytest.mark.parametrize("rule", ["None", "Ignore", "Original", "No norm"])
def test_every_emphasis_of_a1111_can_be_chosen(api: Any, rule: str) -> None:
    """As `override_settings.emphasis`; the picture's text says which, as that tool's does, unless it is the default."""
    result = api.txt2img(
        prompt="a (cup:1.5)", seed=3, width=32, height=32, override_settings={"emphasis": rule, "samples_format": "png"}
    )
    said = result.info["infotexts"][0]
    assert (f"Emphasis: {rule}" in said) == (rule != "Original")
    plain = api.txt2img(prompt="a cup", seed=3, width=32, height=32)
    assert (result.image.tobytes() == plain.image.tobytes()) == (rule == "Ignore")
    assert api.get_options()["emphasis"] == "Original"


def test_an_unknown_emphasis_is_refused(api: Any) -> None:
    with pytest.raises(RuntimeError, match="emphasis"):
        api.txt2img(prompt="a cup", width=32, height=32, override_settings={"emphasis": "Loud"})
