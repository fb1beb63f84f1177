"""ControlNets over HTTP: `webuiapi`, unmodified, and native jobs paint what the pipeline paints in Python."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
import webuiapi
from diffusers import ControlNetModel
from PIL import Image, ImageDraw

from gouache.errors import InvalidInput, ModelNotFound
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.request import Control, Request
from gouache.serve.queue.admission import admit
from gouache.serve.settings import Limits
from gouache.serve.studio import Studio

if TYPE_CHECKING:
    from tests.serve.conftest import MakeClient, Server, StartServer

    from gouache.pipeline.pipeline import Pipeline

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning")]
SIDE = 32


def save_controlnet(folder: Path, seed: int, width: int = 16) -> None:
    """A ControlNet of random weights for the tiny model, as diffusers writes it."""
    torch.manual_seed(seed)
    made = ControlNetModel(
        block_out_channels=(width, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        attention_head_dim=2,
        conditioning_embedding_out_channels=(4, 8, 8),
    )
    with torch.no_grad():
        for parameter in made.parameters():  # Its last convolutions are zero until it is trained.
            parameter.add_(torch.randn(parameter.shape) * 1.5 / max(parameter[0].numel(), 1) ** 0.5)
    made.save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_controlnet(folder / "ControlNet" / "lines", 1)
    save_controlnet(folder / "ControlNet" / "depth", 2)
    save_controlnet(folder / "ControlNet" / "wider", 3, width=24)
    return folder


@pytest.fixture(scope="module")
def folders(models: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOUACHE_MODELS", str(models))
        patch.setenv("HF_HUB_CACHE", str(models / "hub"))
        yield models


@pytest.fixture(scope="module")
def controlled(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose tiny model has ControlNets beside it."""
    from tests.serve.conftest import TINY_WORKER, Server, make_settings

    assert folders.is_dir()
    made = Server(Studio(make_settings(tmp_path_factory.mktemp("controlled")), TINY_WORKER)).start()
    yield made
    made.stop()


@pytest.fixture
def api(controlled: Server) -> Any:
    return webuiapi.WebUIApi(host="127.0.0.1", port=controlled.port, steps=4)


@pytest.fixture(scope="module")
def here(folders: Path) -> Iterator[Pipeline]:
    """The same model in this process, with one thread as the worker has, so that sums have the same order."""
    assert folders.is_dir()
    from tests.serve.tiny_worker import tiny_pipeline

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tiny_pipeline()
    torch.set_num_threads(threads)


def picture(size: tuple[int, int] = (SIDE, SIDE), shift: int = 0) -> Image.Image:
    """White lines on black, other ones for each shift."""
    made = Image.new("RGB", size)
    draw = ImageDraw.Draw(made)
    draw.line((shift, 0, size[0], size[1] - shift), "white", 3)
    draw.ellipse((4, 4 + shift, 20, 20 + shift), outline="white")
    return made


def paint(pipeline: Pipeline, folder: Path, pictures: dict[str, Image.Image], **values: Any) -> Painted:
    """The pipeline's own picture; `pictures` are named in the values by their keys."""
    for name, image in pictures.items():
        image.save(folder / f"{name}.png")
    plain = {"num_inference_steps": 4, "width": SIDE, "height": SIDE, "guidance_scale": 7.0, "sampler": "euler_a"}
    (painted,) = pipeline.paint(Request.from_dict({**plain, **values}))
    return painted


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.convert("RGB").tobytes() == second.convert("RGB").tobytes()


def steps_of(found: Image.Image) -> list[str]:
    return list(json.loads(str(found.info["gouache"]))["steps"])


def test_txt2img_with_a_unit_is_the_pipelines_picture(api: Any, here: Pipeline, tmp_path: Path) -> None:
    lines = picture((48, 40))
    unit = webuiapi.ControlNetUnit(
        image=lines, model="lines", weight=0.8, guidance_end=0.75, resize_mode="Resize and Fill"
    )
    values = {"prompt": "a cup", "seed": 7, "width": SIDE, "height": SIDE}
    found = api.txt2img(**values, sampler_name="Euler a", alwayson_scripts={}, controlnet_units=[unit]).image
    control = {"model": "lines", "image": str(tmp_path / "lines.png"), "weight": 0.8, "end": 0.75, "resize_mode": "pad"}
    own = paint(here, tmp_path, {"lines": lines}, prompt="a cup", seed=7, control=[control])
    assert same(found, own.image)
    assert "Model: lines" in found.info["parameters"]
    # The recipe's digests of the latents after each step tell more than a picture of random weights does.
    steps = steps_of(found)
    assert steps == list(own.recipe.steps)
    # Without `alwayson_scripts` this client would send the last call's units again.
    assert steps_of(api.txt2img(**values, sampler_name="Euler a", alwayson_scripts={}).image) != steps
    for change in ({"resize_mode": "crop"}, {"weight": 0.7}, {"end": 1.0}, {"model": "depth"}):
        other = paint(here, tmp_path, {}, prompt="a cup", seed=7, control=[control | change])
        assert list(other.recipe.steps) != steps


def test_img2img_with_two_units_is_the_pipelines_picture(api: Any, here: Pipeline, tmp_path: Path) -> None:
    """The second unit has no picture of its own and takes the starting picture; a third is off."""
    start, lines = picture(shift=9), picture()
    units = [
        webuiapi.ControlNetUnit(image=lines, model=api.controlnet_model_list()[1], resize_mode=0),
        webuiapi.ControlNetUnit(model="DEPTH", weight=0.5),
        webuiapi.ControlNetUnit(model="no such", module="canny", enabled=False),
    ]
    assert units[0].model.startswith("lines [")
    found = api.img2img(
        images=[start],
        prompt="a cup",
        seed=3,
        width=SIDE,
        height=SIDE,
        denoising_strength=0.8,
        sampler_name="Euler a",
        alwayson_scripts={},
        controlnet_units=units,
    ).image
    first, second = str(tmp_path / "lines.png"), str(tmp_path / "start.png")
    controls = [{"model": "lines", "image": first}, {"model": "depth", "image": second, "weight": 0.5}]
    own = paint(
        here,
        tmp_path,
        {"lines": lines, "start": start},
        prompt="a cup",
        seed=3,
        init_image=second,
        strength=0.8,
        resize_mode="stretch",
        control=controls,
    )
    assert same(found, own.image)
    assert steps_of(found) == list(own.recipe.steps)


def test_what_the_extensions_clients_ask_beside(api: Any, controlled: Server) -> None:
    assert api.controlnet_version() == 2
    listed = api.controlnet_model_list()
    assert [name.partition(" [")[0] for name in listed] == ["depth", "lines", "wider"]
    assert api.controlnet_module_list()[:2] == ["none", "canny"]
    assert api.get_scripts()["txt2img"] == ["controlnet"]
    assert httpx.get(f"{controlled.url}/controlnet/settings").json() == {"control_net_unit_count": 8}


GOOD = {"model": "lines", "image": "PICTURE"}
PLACE = "alwayson_scripts.ControlNet.args[0]"


@pytest.mark.parametrize(
    ("unit", "field"),
    [
        ({"module": "depth_midas"}, "module"),
        ({"module": "canny", "threshold_a": 2000}, "threshold_a"),
        ({"module": "openpose_full"}, "module"),
        ({"control_mode": "ControlNet is more important"}, "control_mode"),
        ({"control_mode": 1}, "control_mode"),
        ({"mask": "PICTURE"}, "mask"),
        ({"image": {"image": "PICTURE", "mask": "PICTURE"}}, "mask"),
        ({"hr_option": "Low res only"}, "hr_option"),
        ({"low_vram": True}, "low_vram"),
        ({"resize_mode": "Tile"}, "resize_mode"),
        ({"resize_mode": ["pad"]}, "resize_mode"),
        ({"model": "None"}, "model"),
        ({"model": "lins"}, "model"),
        ({"model": "lines [00000000]"}, "model"),
        ({"model": "../lines"}, "model"),
        ({"weight": "much"}, "weight"),
        ({"weight": 11}, "weight"),
        ({"guidance_end": 1.5}, "guidance_end"),
        ({"guidance_start": 0.8, "guidance_end": 0.2}, "guidance_end"),
        ({"image": ""}, "image"),
        ({"image": "http://127.0.0.1:1/x.png"}, "image"),
        ({"image": "bm90IGEgcGljdHVyZQ=="}, "image"),
        ({"enabled": "yes"}, "enabled"),
        ({"union_control_type": "edges"}, "union_control_type"),
        ({"ipadapter_input": ["x"]}, "ipadapter_input"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_what_a_unit_cant_have_is_refused_by_its_name(controlled: Server, unit: dict[str, Any], field: str) -> None:
    encoded = webuiapi.raw_b64_img(picture())
    args = [json.loads(json.dumps({**GOOD, **unit}).replace("PICTURE", encoded))]
    body = {"prompt": "x", "alwayson_scripts": {"controlnet": {"args": args}}}
    answer = httpx.post(f"{controlled.url}/sdapi/v1/txt2img", json=body, timeout=60)
    assert (answer.status_code, answer.json()["field"]) == (422, f"{PLACE}.{field}")


def test_a_controlnet_of_another_model_and_too_many_units_are_refused(controlled: Server) -> None:
    encoded = webuiapi.raw_b64_img(picture())
    wider = {"model": "wider", "input_image": encoded, "pixel_perfect": True, "processor_res": -1}
    for args, field in (([wider], f"{PLACE[:-3]}.model"), ([wider] * 9, PLACE[:-3]), ("all", PLACE[:-8])):
        body = {"width": SIDE, "height": SIDE, "steps": 1, "alwayson_scripts": {"ControlNet": {"args": args}}}
        answer = httpx.post(f"{controlled.url}/sdapi/v1/txt2img", json=body, timeout=60)
        assert (answer.status_code, answer.json()["field"]) == (422, field)
        assert str(controlled.studio.settings.data) not in answer.text
    for nothing in ([], [None], [{"enabled": False, "module": "canny"}]):
        body = {"width": SIDE, "height": SIDE, "steps": 1, "alwayson_scripts": {"ControlNet": {"args": nothing}}}
        assert httpx.post(f"{controlled.url}/sdapi/v1/txt2img", json=body, timeout=60).status_code == 200


def test_a_native_job_with_a_control_picture(controlled: Server, here: Pipeline, tmp_path: Path) -> None:
    lines = picture((40, 40), shift=3)
    buffer = io.BytesIO()
    lines.save(buffer, "PNG")
    with httpx.Client(base_url=controlled.url, timeout=60) as client:
        name = client.post("/v1/attachments", content=buffer.getvalue()).json()["name"]
        control = {"model": "depth", "image": name, "guess": True, "preprocessor": "canny"}
        values = {
            "prompt": "a cup",
            "seed": 5,
            "width": SIDE,
            "height": SIDE,
            "guidance_scale": 7.0,
            "sampler": "euler_a",
            "num_inference_steps": 4,
        }
        job = client.post("/v1/jobs", json={"request": {**values, "control": [control]}})
        assert job.status_code == 202
        assert controlled.wait(job.json()["id"]).state == "done"
        (made,) = client.get(f"/v1/jobs/{job.json()['id']}").json()["pictures"]
        found = Image.open(io.BytesIO(client.get(f"/v1/pictures/{made}/file").content))
        recipe = client.get(f"/v1/pictures/{made}/recipe").json()
        own = paint(
            here,
            tmp_path,
            {"lines": lines},
            prompt="a cup",
            seed=5,
            control=[control | {"image": str(tmp_path / "lines.png")}],
        )
        assert same(found, own.image)
        assert steps_of(found) == list(own.recipe.steps)
        assert [(one["kind"], one["name"]) for one in recipe["adapters"]] == [("controlnet", "depth")]
        for change, words in (
            ({"model": "nowhere"}, "depth"),
            ({"image": "/etc/passwd"}, "upload"),
            ({"image": f"sha256:{'0' * 64}"}, "upload"),
        ):
            refused = client.post("/v1/jobs", json={"request": {**values, "control": [control | change]}})
            assert (refused.status_code, words in refused.text.lower()) == (422, True)
            assert str(controlled.studio.settings.data.parent) not in refused.text


def test_adapters_and_controlnets_are_listed_as_what_they_are(
    make_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they lie: in the folders for them, loose among the models, or in the hub's cache."""
    from safetensors.torch import save_file

    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.pipeline.pipeline import untrained_bundle

    root, hub = tmp_path / "m", tmp_path / "hub"
    monkeypatch.setenv("GOUACHE_MODELS", str(root))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    write_model(bundle_to_write(untrained_bundle()), root / "tiny", "gouache")
    save_controlnet(root / "ControlNet" / "lines", 1)
    save_controlnet(hub / "models--ada--edges" / "snapshots" / "0123456789abcdef", 2)
    (hub / "models--ada--edges" / "refs").mkdir()
    (hub / "models--ada--edges" / "refs" / "main").write_text("0123456789abcdef")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{name}.lora_down.weight": torch.zeros(2, 320), f"{name}.lora_up.weight": torch.zeros(320, 2)}
    (root / "Lora").mkdir()
    for place in (root / "Lora" / "ink.safetensors", root / "loose.safetensors"):
        save_file(tensors, place)
    (root / "torn.safetensors").write_bytes(b"x")
    client = make_client(models=(root, hub))
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["pocket", "tiny"]
    assert [model["model_name"] for model in client.get("/sdapi/v1/sd-models").json()] == ["pocket", "tiny"]
    assert [found["name"] for found in client.get("/v1/models/adapters").json()] == ["ink"]
    controls = client.get("/v1/models/controls").json()
    assert [found["name"] for found in controls] == ["lines", "ada/edges"]
    assert str(tmp_path) not in client.get("/v1/models/controls").text
    for wrong in ("lines", "ada/edges", "ink", "loose"):
        refused = client.post("/v1/jobs", json={"request": {"prompt": "x", "model": wrong}})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "model")
    # A file that can't be used says why, and is offered nowhere.
    assert client.get("/v1/models/inspect", params={"model": "torn"}).status_code == 422


def test_control_pictures_count_in_the_limits(studio: Studio, folders: Path) -> None:
    assert folders.is_dir()
    buffer = io.BytesIO()
    picture((100, 60)).save(buffer, "PNG")
    name = studio.file_store.attach(buffer.getvalue())
    other = studio.file_store.attach(buffer.getvalue() + b"\0")
    request = Request(width=64, height=64, num_inference_steps=10, init_image=other)

    def admitted(limits: Limits, *models: str) -> Request:
        controls = [Control(model=model, image=name) for model in models]
        settings = studio.settings.model_copy(update={"limits": limits})
        return admit(request.replace({"control": controls}), settings, studio.catalog, studio.file_store.attachment)

    # The U-Net alone, and half a U-Net for each network.
    plain = 64 * 64 * 10
    admitted(Limits(work=plain))
    admitted(Limits(work=2 * plain), "lines", "depth")
    with pytest.raises(InvalidInput, match="pixel steps"):
        admitted(Limits(work=2 * plain - 1), "lines", "depth")
    # Both pictures once each, however often they are named.
    admitted(Limits(picture_pixels=12_000), "lines", "depth")
    with pytest.raises(InvalidInput, match="12000 pixels in all pictures"):
        admitted(Limits(picture_pixels=11_999), "lines")
    with pytest.raises(ModelNotFound, match="depth, lines, wider"):
        admitted(Limits(), "nowhere")


def test_two_files_of_one_name_are_told_without_their_place(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: Path
) -> None:
    for place in ("one", "two"):
        (tmp_path / "m" / "controlnet" / place).mkdir(parents=True)
        (tmp_path / "m" / "controlnet" / place / "lines.safetensors").write_bytes(b"")
    assert folders.is_dir()
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "m"))
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    control = Control(model="lines", image=studio.file_store.attach(buffer.getvalue()))
    with pytest.raises(InvalidInput, match="several files") as caught:
        admit(Request(control=(control,)), studio.settings, studio.catalog, studio.file_store.attachment)
    assert str(tmp_path) not in str(caught.value)


def test_the_limits_hold_for_the_server_too(start_server: StartServer, folders: Path) -> None:
    assert folders.is_dir()
    server = start_server(workers=0, limits=Limits(picture_pixels=1000))
    body = {
        "alwayson_scripts": {"ControlNet": {"args": [{"model": "lines", "image": webuiapi.raw_b64_img(picture())}]}}
    }
    answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=60)
    assert (answer.status_code, answer.json()["field"]) == (422, "pictures")
