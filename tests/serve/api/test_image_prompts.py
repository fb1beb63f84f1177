"""Image prompts over HTTP: A1111's units for IP-Adapters become them, and what isn't there is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gouache.errors import InvalidInput, ModelNotFound
from gouache.models.conditioning.ip_adapter import IPAdapter, IPAdapterConfig
from gouache.pipeline.request import Request
from gouache.serve.api.a1111.units import _titles, controls_of, image_prompts_of
from gouache.serve.queue.admission import _check_ip_adapters

PLACE = "alwayson_scripts.ControlNet.args[0]"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with an IP-Adapter where A1111's users have theirs."""
    folder = tmp_path / "models" / "ControlNet"
    folder.mkdir(parents=True)
    network = IPAdapter(IPAdapterConfig(picture_width=24, context_width=768, block_widths=(16,)))
    save_file(network.state_dict(), folder / "ip-adapter_sd15.safetensors")
    save_file({"controlnet_cond_embedding.conv_in.weight": torch.zeros(16, 3, 3, 3)}, folder / "lines.safetensors")
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def kept(where: str, text: str) -> str:
    return f"{where.removeprefix(PLACE)} {text}"


GOOD = {"module": "ip-adapter_clip_sd15", "model": "ip-adapter_sd15", "image": "AAAA"}


def units(*given: dict[str, Any]) -> dict[str, object]:
    return {"ControlNet": {"args": list(given)}}


def test_a_unit_of_an_ip_adapter_is_an_image_prompt() -> None:
    more = {
        "weight": 0.7,
        "guidance_start": 0.1,
        "guidance_end": 0.8,
        "resize_mode": 1,
        "effective_region_mask": "BBBB",
    }
    other = {"module": "none", "model": "lines", "image": "CCCC"}
    scripts = units({**GOOD, **more, "processor_res": 512, "pixel_perfect": True}, other)
    (prompt,) = image_prompts_of(scripts, kept, None)
    assert (prompt.adapter, prompt.images, prompt.weight) == ("ip-adapter_sd15", (".image AAAA",), 0.7)
    assert (prompt.start, prompt.end, prompt.mask) == (0.1, 0.8, ".effective_region_mask BBBB")
    (control,) = controls_of(scripts, kept, None)
    assert control.model == "lines"
    titles = _titles()
    assert any(title.startswith("ip-adapter_sd15 [") for title in titles)
    (named,) = image_prompts_of(units({**GOOD, "model": titles[-1], "module": "ip-adapter-auto"}), kept, None)
    assert named.adapter == "ip-adapter_sd15"
    (started,) = image_prompts_of(units({**GOOD, "image": None}), kept, ("start.png", "crop"))
    assert started.images == ("start.png",)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"module": "ip-adapter_face_id"}, "module"),
        ({"model": "lines"}, "model"),
        ({"control_mode": "ControlNet is more important"}, "control_mode"),
        ({"weight": "much"}, "weight"),
        ({"guidance_start": 0.5, "guidance_end": 0.5}, "guidance_end"),
        ({"image": None}, "image"),
        ({"effective_region_mask": [1]}, "effective_region_mask"),
    ],
)
def test_what_such_a_unit_cant_have_is_refused_by_its_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        image_prompts_of(units({**GOOD, **change}), kept, None)
    assert caught.value.where == f"{PLACE}.{field}"


def test_a_path_is_no_name_over_http(models: Path) -> None:
    def asked(name: str) -> Callable[[], None]:
        request = Request.from_dict({"image_prompts": [{"adapter": name, "images": "a.png"}]})
        return lambda: _check_ip_adapters(request)

    asked("ip-adapter_sd15")()
    for name in (str(models / "ip-adapter_sd15.safetensors"), "ip-adapter_sd14"):
        with pytest.raises(ModelNotFound, match=r"image_prompts\.adapter") as caught:
            asked(name)()
        assert str(models) not in caught.value.expected + caught.value.cure
