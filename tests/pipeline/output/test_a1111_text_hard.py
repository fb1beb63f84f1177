"""The `parameters` text of whole recipes on hard prompts: by A1111's pattern and writing rule, and by sd_parsers."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from PIL import Image
from sd_parsers import ParserManager

from gouache.errors import RecipeError
from gouache.pipeline.output.a1111_text import infotext_of, left_out, request_of
from gouache.pipeline.output.infotext import Infotext, format_infotext, parse_infotext
from gouache.pipeline.output.metadata import encode_picture
from gouache.pipeline.output.recipe import AdapterRef, Recipe
from gouache.pipeline.request import Hires, Mask, Request

A1111 = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""The pattern of that tool's reader."""
ORDER = (
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Image CFG scale",
    "Seed",
    "Size",
    "Model hash",
    "Model",
    "Variation seed",
    "Variation seed strength",
    "Denoising strength",
    "Clip skip",
    "RNG",
    "Tiling",
)
HARD = {
    "commas": "a cat, a dog, , and: more, things",
    "quotes": 'a "quoted, \\"cat\\"": said "he"',
    "lines": "first line\nsecond, line\n\nfourth: 3, Steps: 9, Seed: 1",
    "tags": "a <lora:film grain:0.5:0.8> blob, (red:1.2) [a:b:0.5] AND b\\(c\\)",
    "scripts": "кот, 猫: 一只 🐈\u200d⬛, é",
    "pairs": "Steps: 1, Sampler: x, Seed: 3",
    "backslash": "a\\, b\\\\: \\n",
}
ADAPTERS = tuple(
    AdapterRef.from_dict({"name": name, "kind": kind, "sha256": digit * 64, "short_hash": digit * 12})
    for name, kind, digit in (
        ("film grain", "lora", "a"),
        ('odd, "name"', "lora", "b"),
        ("blob", "textual-inversion", "c"),
    )
)


def recipe_of(request: Request) -> Recipe:
    full = {
        "seed": 7,
        "width": 64,
        "height": 32,
        "num_inference_steps": 3,
        "guidance_scale": 7.0,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        **{name: getattr(request, name) for name in request.model_fields_set},
    }
    values = {
        "request": full,
        "adapters": [one.model_dump() for one in ADAPTERS],
        "versions": {"gouache": "1.2"},
        "model": {"name": 'tiny, "v2": a', "family": "sd1", "sha256": "d" * 64},
        "machine": {"device": "cpu", "dtype": "float32", "processor": "x", "threads": 1},
    }
    return Recipe.from_dict(values)


@pytest.mark.parametrize("name", HARD)
def test_a_hard_prompt_is_written_by_a1111s_rule_and_read_by_others(name: str) -> None:
    prompt, negative = HARD[name], HARD["quotes"].replace("cat", "rat")
    recipe = recipe_of(Request(prompt=prompt, negative_prompt=negative))
    text = format_infotext(infotext_of(recipe))
    *lines, last = text.split("\n")
    assert "\n".join(lines) == f"{prompt}\nNegative prompt: {negative}"
    pairs = A1111.findall(last)
    keys = [key for key, _ in pairs]
    assert [key for key in keys if key in ORDER] == [key for key in ORDER if key in keys]
    assert keys[0] == "Steps"
    assert keys[-1] == "Version"
    assert ", ".join(f"{key}: {value}" for key, value in pairs) == last, "nothing lies between the pairs"
    for _, value in pairs:
        plain = json.loads(value) if value.startswith('"') else value
        assert value == (json.dumps(plain, ensure_ascii=False) if re.search(r"[,\n:]", plain) else plain)
    values = {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}
    assert values["Lora hashes"] == 'film grain: aaaaaaaaaaaa, odd, "name": bbbbbbbbbbbb'
    assert values["TI hashes"] == "blob: cccccccccccc"
    assert values["Model"] == 'tiny, "v2": a'

    assert parse_infotext(text) == Infotext(prompt, negative, values)
    again = request_of(parse_infotext(text), "here")
    assert (again.prompt, again.negative_prompt, again.seed) == (prompt, negative, 7)

    found = ParserManager().parse(io.BytesIO(encode_picture(Image.new("RGB", (8, 8)), "png", {"parameters": text})))
    assert found is not None
    (sampler,) = found.samplers
    assert [one.value for one in sampler.prompts] == [prompt]
    assert [one.value for one in sampler.negative_prompts] == [negative]
    assert (sampler.name, sampler.parameters["seed"]) == ("DPM++ 2M", "7")


def test_every_setting_that_has_a_word_is_written_and_read_back() -> None:
    request = Request(
        prompt="a",
        clip_skip=2,
        subseed=9,
        subseed_strength=0.25,
        seamless="both",
        eta=0.5,
        emphasis="none",
        hires=Hires(width=96, height=48, upscaler="lanczos", strength=0.4, num_inference_steps=2),
    )
    again = request_of(parse_infotext(format_infotext(infotext_of(recipe_of(request)))), "here")
    for name in ("clip_skip", "subseed", "subseed_strength", "seamless", "eta", "emphasis", "hires"):
        assert getattr(again, name) == getattr(request, name), name
    mask = Mask(image="m.png", blur=7, fill="noise", only_masked=True, padding=12, invert=True)
    masked = Request(prompt="a", init_image="x.png", strength=0.3, mask=mask)
    values = infotext_of(recipe_of(masked)).values
    assert {key: values[key] for key in values if "ask" in key or "Inpaint" in key or "Denoising" in key} == {
        "Denoising strength": "0.3",
        "Mask blur": "7",
        "Mask mode": "Inpaint not masked",
        "Masked content": "latent noise",
        "Inpaint area": "Only masked",
        "Masked area padding": "12",
    }


SDXL_TEXTS: list[dict[str, Any]] = [
    {"prompt_2": "a blue boat, at sea: calm"},
    {"prompt_2": ""},
    {"prompt_2": 'a "quoted" one\nin two lines', "negative_prompt_2": "dark"},
    {"size_condition": {"original_width": 2048, "original_height": 1024, "crop_left": 8, "target_width": 512}},
    {"size_condition": {"aesthetic_score": 7.5, "negative_aesthetic_score": 1.0}},
    {"size_condition": {}},
]


@pytest.mark.parametrize("fields", SDXL_TEXTS)
def test_what_sdxl_is_told_beside_the_prompt_travels_in_the_text(fields: dict[str, Any]) -> None:
    request = Request.from_dict({"prompt": "a cat", "num_inference_steps": 4, "seed": 1, **fields}, where="request")
    text = format_infotext(infotext_of(recipe_of(request)))
    again = request_of(parse_infotext(text), "here")
    for name in ("prompt", "prompt_2", "negative_prompt_2", "size_condition"):
        assert getattr(again, name) == getattr(request, name)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_merged_tokens_travel_in_the_text_under_a1111s_key(ratio: float) -> None:
    recipe = recipe_of(Request(prompt="a cat", num_inference_steps=4, seed=1, token_merging=ratio))
    info = parse_infotext(format_infotext(infotext_of(recipe)))
    assert info.values.get("Token merging ratio") == (None if ratio == 0 else f"{ratio:g}")
    assert request_of(info, "here").token_merging == ratio
    assert not any("Token merging" in note for note in left_out(info))


@pytest.mark.parametrize("value", ["{", "5", '{"crop": 1}', '{"crop_top": -1}'])
def test_size_numbers_that_are_none_are_refused(value: str) -> None:
    info = Infotext("a cat", "", {"Steps": "4", "Seed": "1", "Size": "64x64", "Size condition": value})
    with pytest.raises(RecipeError, match=r"[Ss]ize[ _]condition"):
        request_of(info, "here")
