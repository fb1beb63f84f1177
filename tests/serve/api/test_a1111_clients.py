"""Bodies as programs send them that were written for A1111: chats, drawing programs, bots, old scripts.

The kind: a field, value or spelling that A1111 passes over. Unknown fields (its forks', older versions', slips), the
placeholders of its documentation ("string", 0), null and "" and Infinity, switches that are off, built-in scripts. They
are ignored with a note in `info`, obeyed where there is something to obey, and refused by name only where the picture
would surely not be the wanted one.
"""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from gouache.errors import GouacheError, InvalidInput
from gouache.serve.api.a1111.fields import Img2Img, Txt2Img
from gouache.serve.api.a1111.mapping import MappedRequest, order_of
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from tests.serve.conftest import Server


def picture(value: int | None = None, size: tuple[int, int] = (32, 32)) -> str:
    stream = io.BytesIO()
    (Image.new("RGB", size, "red") if value is None else Image.new("L", size, value)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


SMALL: dict[str, Any] = {"prompt": "a cup", "width": 32, "height": 32, "steps": 1}
CHAT = {
    "sampler_name": "Euler a",
    "scheduler": "Automatic",
    "cfg_scale": 7,
    "restore_faces": True,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1.5,
    "hr_additional_modules": [],
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_vae": None, "forge_additional_modules": ["x"]},
    "override_settings_restore_afterwards": True,
    "clip_skip": 2,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
PLACEHOLDERS = {
    "enable_hr": False,
    "denoising_strength": 0,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "hr_scale": 2,
    "hr_upscaler": "string",
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_sampler_name": "string",
    "hr_prompt": "",
    "hr_negative_prompt": "",
    "styles": ["string"],
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "refiner_checkpoint": "string",
    "refiner_switch_at": 0,
    "batch_size": 1,
    "n_iter": 1,
    "cfg_scale": 7,
    "restore_faces": False,
    "tiling": False,
    "negative_prompt": "string",
    "eta": 0,
    "s_min_uncond": 0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 0,
    "override_settings": {},
    "script_args": [],
    "sampler_name": "string",
    "scheduler": "string",
    "sampler_index": "Euler",
    "script_name": "string",
    "firstpass_image": "string",
    "alwayson_scripts": {},
}
EVERYTHING_ON_THE_PAGE = {
    "comments": {},
    "disable_extra_networks": False,
    "distilled_cfg_scale": 3.5,
    "hr_distilled_cfg": 3.5,
    "hr_cfg": 1,
    "initial_noise_multiplier": 1,
    "image_cfg_scale": 1.5,
    "s_tmax": "Infinity",
    "seed_enable_extras": True,
    "ddim_discretize": "uniform",
    "mask_blur": 4,
    "alwayson_scripts": {
        "ADetailer": {"args": [False, False, {"ad_model": "face_yolov8n.pt"}]},
        "API payload": {"args": []},
        "Comments": {"args": []},
        "ControlNet": {"args": [{"enabled": False, "image": None}]},
        "Dynamic Prompts v2.17.1": {"args": [False, False, 1, False]},
        "Extra options": {"args": []},
        "Hypertile": {"args": []},
        "Never OOM Integrated": {"args": [False, False]},
        "Refiner": {"args": [False, "", 0.8]},
        "Sampler": {"args": [2, "DPM++ 2M", "Karras"]},
        "Seed": {"args": [-1, False, -1, 0, 0, 0]},
        "Soft Inpainting": {"args": [False, 1, 0.5, 4, 0, 0.5, 2]},
        "FreeU Integrated": {"args": [False, 1.01, 1.02, 0.99, 0.95]},
        "Never mind": {},
        "Nothing": None,
        "An empty unit": {"args": [{}]},
    },
}
BODIES: dict[str, dict[str, Any]] = {
    "a chat": CHAT,
    "the documentation's example": PLACEHOLDERS,
    "the web page's own": EVERYTHING_ON_THE_PAGE,
    "an agent's": {
        "hr_upscale_to_x": 0,
        "hr_upscale_to_y": 0,
        "truncate_x": 0,
        "truncate_y": 0,
        "applied_old_hires_behavior_to": None,
        "eta": None,
        "sampler_index": "DPM++ SDE Karras",
    },
    "a game's": {"step": 2, "enable_hr": False, "denoising_strength": 100, "restore_faces": False},
    "a novel painter's": {"enable_hr": "false", "hr_upscaler": "string", "width": "32", "seed": "5"},
    "C++": {"styles": [""], "s_tmax": 0, "s_noise": 0, "refiner_checkpoint": "", "refiner_switch_at": 0},
    "a bot's": {"loras": [{"name": "x", "weight": 1}], "model": "y", "user": 5, "status": "ACTIVE", "__v": 0},
    "a rerun of info": {"all_prompts": ["a"], "infotexts": ["a"], "job_timestamp": "1", "sd_model_hash": "6ce0161689"},
    "infinity": {"s_tmax": float("inf"), "override_settings": None, "script_args": None},
    "a refiner's switch alone": {"refiner_switch_at": 0.8},
    "a refiner that never comes": {"refiner_checkpoint": "xl", "refiner_switch_at": 1},
    "its own size to take noise from": {"seed_resize_from_h": 32, "seed_resize_from_w": 32},
    "styles that nobody wrote": {"styles": ["", "None", "Anime"]},
    "settings of others": {"override_settings": {"upcast_attn": True, "forge_preset": "sd", "return_grid": True}},
    "a number of steps with a point": {"override_settings": {"CLIP_stop_at_last_layers": 2.0, "samples_save": False}},
    "a bot that halves the steps": {
        "enable_hr": True,
        "hr_scale": 1,
        "hr_second_pass_steps": 12.5,
        "denoising_strength": None,
        "styles": ["None"],
        "sampler_index": "Euler a",
        "full_quality": True,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "face_restoration_model": "CodeFormer"},
    },
    "a plugin of a drawing program": {
        "selection_info": {"left": 0, "top": 0},
        "seed": "-1",
        "mask_expansion": 0,
        "hr_second_pass_steps": 0,
        "batch_size": "1",
        "use_prompt_shortcut": False,
        "controlnet_units": [],
        "alwayson_scripts": {
            "ADetailer": {"args": [False, {"ad_model": "None", "ad_confidence": 0.3}]},
            "controlnet": {"args": [{"enabled": False, "input_image": "", "mask": "", "module": "none", "model": ""}]},
        },
    },
    "npm's stable-diffusion-api": {
        "eta": 1.0,
        "seed_resize_from_h": 0,
        "seed_resize_from_w": 0,
        "script_name": None,
        "alwayson_scripts": {"ControlNet": {"args": []}},
        "use_deprecated_controlnet": False,
    },
    "pip's sd-backend-client": {
        "scheduler": "Automatic",
        "batch_size": 1,
        "restore_faces": False,
        "alwayson_scripts": {},
        "send_images": True,
        "force_task_id": "task(txt2img-0123)",
        "comments": None,
    },
    "an eta and a churn for nobody": {"sampler_name": "DPM++ 2M", "eta": 0.5, "s_churn": 3, "s_noise": 1.01},
}


def order(studio: Studio, **fields: Any) -> MappedRequest:
    kind = Img2Img if "init_images" in fields else Txt2Img
    return order_of(kind.model_validate({**SMALL, **fields}), studio, "local")


@pytest.mark.parametrize("name", list(BODIES))
def test_bodies_of_clients_are_taken(studio: Studio, name: str) -> None:
    made = order(studio, **BODIES[name])
    assert made.request.prompt == "a cup"
    unknown = set(BODIES[name]) - set(Txt2Img.model_fields)
    assert {note.split(":")[0] for note in made.notes} >= unknown


@pytest.mark.parametrize("name", ["a chat", "the documentation's example", "the web page's own"])
def test_bodies_of_clients_are_painted_and_told(server: Server, name: str) -> None:
    fields = {**BODIES[name], **SMALL}
    answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json=fields, timeout=120)
    assert answer.status_code == 200, answer.text
    info = json.loads(answer.json()["info"])
    assert len(answer.json()["images"]) == 1
    assert set(BODIES[name]) - set(Txt2Img.model_fields) <= {note.split(":")[0] for note in info["notes"]}
    if name == "a chat":
        assert info["clip_skip"] == 2
        assert any(note.startswith("restore_faces") for note in info["notes"])
        assert any("forge_additional_modules" in note for note in info["notes"])


def test_what_can_be_obeyed_is(studio: Studio) -> None:
    scripts = {"seed": {"args": [7, True, 9, 0.25, 0, 0]}, "SAMPLER": {"args": [3, "Heun", "Karras"]}}
    request = order(studio, seed=1, alwayson_scripts=scripts).request
    assert (request.seed, request.subseed, request.subseed_strength) == (7, 9, 0.25)
    assert (request.num_inference_steps, request.sampler, request.schedule) == (3, "heun", "karras")
    assert order(studio, clip_skip=2).request.clip_skip == 2
    assert order(studio, clip_skip=2, override_settings={"CLIP_stop_at_last_layers": 3}).request.clip_skip == 3
    assert order(studio, clip_skip=2, override_settings={"CLIP_stop_at_last_layers": 1}).request.clip_skip is None
    assert order(studio, clip_skip=40).request.clip_skip is None
    plain = order(studio, prompt="a <lora:x:1>cup", disable_extra_networks=True)
    assert plain.request.prompt == "a cup"
    assert plain.notes
    first = order(studio, width=64, height=48, enable_hr=True, firstphase_width=32, firstphase_height=24).request
    assert (first.width, first.height) == (32, 24)
    assert first.hires is not None
    assert (first.hires.width, first.hires.height) == (64, 48)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"hr_scale": 1}, None),
        ({"hr_scale": 1.0, "hr_upscaler": "no such"}, None),
        ({"hr_resize_x": 32, "hr_resize_y": 32}, None),
        ({"hr_scale": 2}, (2.0, None)),
        ({"hr_scale": 0.5, "width": 64, "height": 64}, (2.0, 32)),
        ({"hr_upscaler": "latent (ANTIALIASED)"}, (2.0, None)),
        ({"hr_upscaler": "None"}, (2.0, None)),
        ({"hr_sampler_name": "Use same sampler", "hr_scheduler": "Use same scheduler"}, (2.0, None)),
        ({"sampler_name": "Heun", "hr_sampler_name": "Heun", "hr_prompt": "a cup"}, (2.0, None)),
    ],
)
def test_a_second_pass_that_does_nothing_is_none(
    studio: Studio, fields: dict[str, Any], size: tuple[float, int | None] | None
) -> None:
    made = order(studio, enable_hr=True, **fields)
    assert (made.request.hires is None) == (size is None)
    if size is not None and made.request.hires is not None:
        assert (made.request.hires.scale, made.request.hires.width) == size
    else:
        assert any(note.startswith("enable_hr") for note in made.notes)


SAMPLERS = {
    "Euler a": "euler_ancestral",
    "EULER A": "euler_ancestral",
    "euler_a": "euler_ancestral",
    "k_euler_a": "euler_ancestral",
    "k_euler": "euler",
    "dpm++ 2m karras": "dpmpp_2m",
    "DPM++ 2M Karras": "dpmpp_2m",
    "k_dpmpp_2m_ka": "dpmpp_2m",
    "K_DPMPP_SDE_KA": "dpmpp_sde",
    "k_dpmpp_2s_a_ka": "dpmpp_2s_ancestral",
    "k_dpmpp_2m_sde_ka": "dpmpp_2m_sde",
    "k_dpmpp_2m_sde_exp": "dpmpp_2m_sde",
    "k_dpm_2_ka": "dpm_2",
    "k_dpm_2_a_ka": "dpm_2_ancestral",
    "k_lms_ka": "lms",
    "LMS Karras": "lms",
    "PLMS": "plms",
    "ddim": "ddim",
    "UniPC": "unipc_bh1",
    " Restart ": "restart",
}


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("field", ["sampler_name", "sampler_index"])
def test_samplers_of_all_spellings(studio: Studio, name: str, field: str) -> None:
    request = order(studio, **{field: name}).request
    assert request.sampler == SAMPLERS[name]
    ends = {"karras": "karras", "_ka": "karras", "_exp": "exponential"}
    assert request.schedule == next((ends[end] for end in ends if name.lower().strip().endswith(end)), None)


@pytest.mark.parametrize("name", ["", "Automatic", "automatic", "AUTOMATIC", "None", "string", None])
def test_no_schedule_of_all_spellings(studio: Studio, name: str | None) -> None:
    assert order(studio, scheduler=name, sampler_name="Euler").request.schedule is None


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        (
            {"alwayson_scripts": {"ADetailer": {"args": [True, True, {"ad_model": "face"}]}}},
            "alwayson_scripts.ADetailer",
        ),
        ({"alwayson_scripts": {"Refiner": {"args": [True, "xl", 0.8]}}}, "refiner_checkpoint"),
        ({"alwayson_scripts": {"Seed": {"args": [7, True, 9, 0, 512, 512]}}}, "seed_resize_from_h"),
        ({"alwayson_scripts": {"Sampler": {"args": ["many", "Euler", "Karras"]}}}, "alwayson_scripts"),
        ({"alwayson_scripts": {"Regional Prompter": ["BREAK", 1]}}, "alwayson_scripts.Regional Prompter"),
        ({"refiner_checkpoint": "xl", "refiner_switch_at": 0.8}, "refiner_checkpoint"),
        ({"seed_resize_from_w": 512}, "seed_resize_from_w"),
        ({"enable_hr": True, "hr_prompt": "another"}, "hr_prompt"),
        ({"enable_hr": True, "hr_sampler_name": "Heun", "sampler_name": "Euler"}, "hr_sampler_name"),
        ({"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "hr_upscaler"),
        ({"firstpass_image": picture()}, "firstpass_image"),
        ({"script_name": "x/y/z plot"}, "script_name"),
        ({"override_settings": {"sd_vae": "mse.pt"}}, "sd_vae"),
        ({"override_settings": {"eta_noise_seed_delta": -1}}, "eta_noise_seed_delta"),
        ({"init_images": [picture()], "latent_mask": picture(9)}, "latent_mask"),
        ({"init_images": [picture()], "initial_noise_multiplier": 1.1}, "initial_noise_multiplier"),
    ],
)
def test_what_would_change_the_picture_is_refused_by_name(studio: Studio, fields: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        order(studio, **fields)
    assert refused.value.where == where


def test_masks_are_soft_unless_rounding_is_asked_for(studio: Studio) -> None:
    fields = {"init_images": [picture()], "mask": picture(100)}
    soft = {"Soft inpainting": {"args": [True, 1, 0.5, 4, 0, 0.5, 2]}}

    def threshold(**more: Any) -> int | None:
        mask = order(studio, **fields, **more).request.mask
        assert mask is not None
        return mask.threshold

    assert threshold() is None
    assert threshold(mask_round=None) is None
    assert threshold(mask_round=False) is None
    assert threshold(mask_round=True) == 128
    assert threshold(mask_round=True, alwayson_scripts=soft) is None
    uneven = order(studio, **fields, mask_blur_x=2, mask_blur_y=6)
    assert uneven.request.mask is not None
    assert uneven.request.mask.blur == 4
    assert uneven.notes
    assert order(studio, **fields, image_cfg_scale=0, resize_mode=3, inpainting_mask_invert=False).request.resize_mode


def test_a_grey_mask_is_painted_and_noted_over_http(server: Server) -> None:
    fields = {**SMALL, "init_images": [picture()], "mask": picture(128), "steps": 4, "inpaint_full_res": False}
    for rounded in (False, True):
        fields["mask_round"] = rounded
        answer = httpx.post(f"{server.url}/sdapi/v1/img2img", json=fields, timeout=120)
        assert answer.status_code == 200, answer.text
        assert any("grey" in note for note in json.loads(answer.json()["info"])["notes"]) != rounded


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_thin_pictures_over_http(server: Server, mode: int) -> None:
    fields = {**SMALL, "init_images": [picture(size=(2000, 1))], "resize_mode": mode}
    answer = httpx.post(f"{server.url}/sdapi/v1/img2img", json=fields, timeout=120)
    assert answer.status_code == 200, answer.text


def test_the_other_calls_pass_over_what_they_do_not_know(server: Server) -> None:
    def post(call: str, fields: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{server.url}/sdapi/v1/{call}", json=fields, timeout=60)

    larger = {"image": picture(), "upscaler_1": "lanczos", "upscaler_2": "Lanczos", "extras_upscaler_2_visibility": 0}
    odd = {"gfpgan_visibility": 0.5, "upscaling_resize_w": 0, "rb_enabled": False}
    answer = post("extra-single-image", {**larger, **odd})
    assert answer.status_code == 200, answer.text
    assert "gfpgan_visibility" in answer.json()["html_info"]
    assert "rb_enabled" in answer.json()["html_info"]
    assert post("png-info", {"image": picture(), "more": 1}).status_code == 200
    assert post("interrogate", {"image": picture(), "model": "clip", "more": 1}).json()["field"] == "model"
    before = httpx.get(f"{server.url}/sdapi/v1/options", timeout=60).json()
    settings = {"img2img_fix_steps": True, "sd_vae": "None", "samples_save": False, "forge_preset": "sd"}
    assert post("options", settings).status_code == 200
    assert httpx.get(f"{server.url}/sdapi/v1/options", timeout=60).json() == before
    assert post("options", {"sd_model_checkpoint": "no such"}).status_code == 422


def test_pictures_have_an_alpha_channel_only_when_it_is_asked_for(studio: Studio) -> None:
    assert order(studio).request.background == "opaque"
    assert order(studio, init_images=[picture()]).request.background == "opaque"
    assert order(studio, background="transparent").request.background == "transparent"
    assert order(studio, background="#ff0000").request.background == "#ff0000"
    with pytest.raises(GouacheError, match="background"):
        order(studio, background="plaid")


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        ("steps", 12.5, 12),
        ("steps", 12.0, 12),
        ("steps", "12", 12),
        ("width", 33.9, 33),
        ("seed", 7.0, 7),
        ("batch_size", 2.9, 2),
        ("hr_second_pass_steps", 12.5, 12),
        ("hr_resize_x", 64.5, 64),
        ("n_iter", 1.5, 1),
        ("subseed", -1.0, -1),
    ],
)
def test_numbers_behind_the_point_are_cut_where_whole_ones_are_meant(field: str, given: object, kept: int) -> None:
    assert getattr(Txt2Img.model_validate({field: given}), field) == kept


@pytest.mark.parametrize("given", [float("nan"), float("inf"), "x", 1e300, [], {}])
def test_what_is_no_number_stays_refused(given: object) -> None:
    with pytest.raises(ValueError, match="steps"):
        Txt2Img.model_validate({"steps": given})


def test_every_listed_upscaler_is_taken(server: Server) -> None:
    with httpx.Client(base_url=f"{server.url}/sdapi/v1", timeout=120) as api:
        names = [entry["name"] for entry in api.get("/upscalers").json()]
        modes = [entry["name"] for entry in api.get("/latent-upscale-modes").json()]
        studio = server.studio
        for name in (*names, *modes):
            assert order(studio, enable_hr=True, hr_scale=2, hr_upscaler=name).request.hires is not None
        for name in names:
            body = {"image": picture(), "upscaler_1": name, "upscaling_resize": 1}
            assert api.post("/extra-single-image", json=body).status_code == 200


def test_settings_can_be_sent_back_as_they_were_listed(server: Server) -> None:
    with httpx.Client(base_url=f"{server.url}/sdapi/v1", timeout=60) as api:
        listed = api.get("/options").json()
        assert api.post("/options", json=listed).status_code == 200
        assert api.get("/options").json() == listed
        assert api.post("/options", json={"send_seed": not listed["send_seed"]}).status_code == 200
        assert api.get("/options").json()["send_seed"] is not listed["send_seed"]
        assert api.post("/options", json=listed).status_code == 200
        assert order(server.studio, override_settings=listed).notes == ()


def test_what_clients_ask_beside(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as api:
        types = api.get("/controlnet/control_types").json()["control_types"]
        assert types["All"]["default_option"] == "none"
        assert api.get("/sdapi/v1/sd-modules").json() == api.get("/sdapi/v1/sd-vae").json()
        assert api.get("/sdapi/v1/lycos").json() == []
        assert api.get("/queue/status").json()["queue_size"] == 0
        found = api.post(
            "/controlnet/detect", json={"controlnet_module": "none", "controlnet_input_images": [picture()]}
        )
        assert found.json() == {"images": [picture()], "info": "Success"}
        canny = {"controlnet_module": "canny", "controlnet_threshold_a": 50, "controlnet_input_images": [picture()]}
        (drawn,) = api.post("/controlnet/detect", json=canny).json()["images"]
        edges = Image.open(io.BytesIO(base64.b64decode(drawn)))
        assert (edges.size, edges.convert("L").point([1, *[0] * 254, 1]).getextrema()) == ((32, 32), (1, 1))
        for body in ({"controlnet_module": "depth"}, {"controlnet_input_images": ["aGk="]}):
            assert api.post("/controlnet/detect", json=body).status_code == 422
        missing = api.get("/sdapi/v1/nothing")
        assert (missing.status_code, missing.json()["error"]) == (404, "not_found_error")
        batch = {"image_list": [{"image": picture(), "name": "a"}, {"image": picture()}], "upscaling_resize_crop": True}
        assert len(api.post("/sdapi/v1/extra-batch-images", json=batch).json()["images"]) == 2


def test_sd_upscale_paints_over_the_enlarged_picture_in_tiles(studio: Studio, server: Server) -> None:
    fields = {
        "init_images": [picture(size=(48, 32))],
        "script_name": "SD upscale",
        "script_args": ["", 8, "Lanczos", 2.0],
    }
    request = order(studio, **fields).request
    assert (request.width, request.height) == (96, 64)
    assert request.tiled is not None
    assert (request.tiled.tile, request.tiled.overlap) == (32, 0.25)
    answer = httpx.post(f"{server.url}/sdapi/v1/img2img", json={**SMALL, **fields}, timeout=120)
    made = Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0])))
    assert (made.size, made.mode) == ((96, 64), "RGB")
    for wrong in (["", "8", "Lanczos", 2], ["", 8, "Lanczos", 0], ["", 8, "Lanczos", True]):
        with pytest.raises(InvalidInput, match="script_args"):
            order(studio, **{**fields, "script_args": wrong})
    with pytest.raises(InvalidInput, match="not found"):
        order(studio, script_name="SD upscale")


def test_progress_has_the_keys_of_a1111s_and_no_more(server: Server) -> None:
    """Clients make an object of the reply, whose constructor takes no others."""
    found = httpx.get(f"{server.url}/sdapi/v1/progress", timeout=60).json()
    assert found.keys() == {"progress", "eta_relative", "state", "current_image", "textinfo"}


def test_a_masked_picture_has_the_size_that_was_asked_for(server: Server) -> None:
    fields = {"init_images": [picture()], "mask": picture(255), "inpaint_full_res": False, "width": 64, "height": 48}
    answer = httpx.post(f"{server.url}/sdapi/v1/img2img", json={**SMALL, **fields}, timeout=120)
    assert Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0]))).size == (64, 48)
