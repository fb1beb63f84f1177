"""Pictures of programs with formats of their own, in PNG, JPEG and WebP.

The kind: a file as some program writes it, with the settings in another place, container or encoding than A1111's. What
is read is the request; what isn't is noted; pictures that hold nothing to repeat are refused by the program's name.
Names of keys are those of the programs' writers; `sd_parsers` is the second opinion where it knows the program.
"""

from __future__ import annotations

import html
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from sd_parsers import ParserManager

from gouache.diffusion.samplers.names import resolve, resolve_schedule
from gouache.errors import RecipeError
from gouache.pipeline.output.foreign import ForeignText, as_infotext, read_recipe
from gouache.pipeline.output.metadata import read_texts

PLAIN = {
    "prompt": "a cat",
    "negative_prompt": "bad",
    "seed": 42,
    "num_inference_steps": 20,
    "width": 512,
    "height": 768,
}


def png(texts: dict[str, str], *, international: bool = False) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        (chunks.add_itxt if international else chunks.add_text)(key, text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def with_comment(kind: str, comment: bytes, software: str = "") -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    if software:
        exif[0x0131] = software
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, exif=exif)
    return file.getvalue()


def xmp(comment: str) -> str:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:exif="http://ns.adobe.com/exif/1.0/"><exif:UserComment><rdf:Alt>'
        f'<rdf:li xml:lang="x-default">{html.escape(comment)}</rdf:li></rdf:Alt></exif:UserComment></rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    )


FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "juggernautXL",
    "base_model_hash": "ab",
    "clip_skip": 2,
    "full_negative_prompt": ["bad"],
    "full_prompt": ["a cat, sharp"],
    "guidance_scale": 4.0,
    "lora_combined_1": "sd_xl_offset.safetensors : 0.1",
    "loras": [["sd_xl_offset", 0.1, "cd"]],
    "metadata_scheme": "fooocus",
    "negative_prompt": "bad",
    "performance": "Quality",
    "prompt": "a cat",
    "refiner_model": "None",
    "refiner_switch": 0.5,
    "resolution": "(512, 768)",
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "seed": "42",
    "sharpness": 2.0,
    "steps": 20,
    "styles": "['Fooocus V2']",
    "vae": "Default (model)",
    "version": "Fooocus v2.5.5",
}
RUINED = {
    "Prompt": "a cat",
    "Negative": "bad",
    "steps": 20,
    "cfg": 4.0,
    "width": 512,
    "height": 768,
    "seed": 42,
    "sampler_name": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "base_model_name": "x.safetensors",
    "base_model_hash": "",
    "loras": [["ab", "0.5 - film.safetensors"]],
    "software": "RuinedFooocus",
}
SWARM = {
    "sui_image_params": {
        "prompt": "a cat",
        "negativeprompt": "bad",
        "model": "OfficialStableDiffusion/sd_xl_base_1.0",
        "seed": 42,
        "steps": 20,
        "cfgscale": 6.5,
        "width": 512,
        "height": 768,
        "sampler": "dpmpp_2m",
        "scheduler": "karras",
        "loras": ["dir/film"],
        "loraweights": ["0.8"],
        "vae": "x",
        "swarm_version": "0.9.3.0",
    },
    "sui_models": [],
}
EASY = {
    "prompt": "a cat",
    "negative_prompt": "bad",
    "seed": 42,
    "use_stable_diffusion_model": "C:\\models\\sd-v1-5.ckpt",
    "clip_skip": True,
    "use_vae_model": "",
    "sampler_name": "euler_a",
    "width": 512,
    "height": 768,
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
    "use_lora_model": ["film"],
    "lora_alpha": [0.5],
}
EASY_FOR_PEOPLE = {
    "Prompt": "a cat",
    "Negative Prompt": "bad",
    "Seed": "42",
    "Stable Diffusion model": "sd-v1-5",
    "Clip Skip": "False",
    "VAE model": "None",
    "Sampler": "euler_a",
    "Width": "512",
    "Height": "768",
    "Steps": "20",
    "Guidance Scale": "7.5",
}
DRAW = {
    "c": "a cat",
    "uc": "bad",
    "model": "sd_v1.5_f16.ckpt",
    "sampler": "DPM++ 2M Karras",
    "scale": 7.5,
    "seed": 42,
    "size": "512x768",
    "steps": 20,
    "seed_mode": "Scale Alike",
    "strength": 1,
    "lora": [{"model": "film_lora_f16.ckpt", "weight": 0.6}],
}
INVOKE = {
    "positive_prompt": "a cat",
    "negative_prompt": "bad",
    "width": 512,
    "height": 768,
    "seed": 42,
    "cfg_scale": 7.5,
    "steps": 20,
    "scheduler": "euler_a",
    "model": {"key": "x", "hash": "y", "name": "dreamy", "base": "sd-1", "type": "main"},
    "app_version": "5.6.0",
    "loras": [{"model": {"name": "film"}, "weight": 0.75}],
}
DREAM = '"a cat [bad]" -s 20 -S 42 -W 512 -H 768 -C 7.5 -A k_euler_a'
NOVEL4 = {
    "prompt": "a cat",
    "uc": "bad",
    "steps": 20,
    "height": 768,
    "width": 512,
    "scale": 5.0,
    "seed": 42,
    "sampler": "k_euler_ancestral",
    "noise_schedule": "karras",
    "request_type": "PromptGenerateRequest",
    "v4_prompt": {"caption": {"base_caption": "a cat", "char_captions": [{"char_caption": "x", "centers": []}]}},
}
SD_METADATA = {
    "model": "stable diffusion",
    "model_weights": "sd-1.5",
    "app_id": "invoke-ai/InvokeAI",
    "image": {
        "prompt": [{"prompt": "a cat [bad]", "weight": 1}],
        "steps": 20,
        "cfg_scale": 7.5,
        "seed": 42,
        "width": 512,
        "height": 768,
        "sampler": "k_euler_a",
        "seamless": True,
        "hires_fix": True,
    },
}

FILES: dict[str, tuple[str, bytes]] = {
    "Fooocus, PNG": ("fooocus", png({"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"})),
    "Fooocus, JPEG": ("fooocus", with_comment("JPEG", json.dumps(FOOOCUS).encode(), "Fooocus v2.5.5")),
    "Fooocus, WebP": ("fooocus", with_comment("WEBP", b"UNICODE\0" + json.dumps(FOOOCUS).encode("utf-16-le"))),
    "RuinedFooocus": ("ruined-fooocus", png({"parameters": json.dumps(RUINED)})),
    "SwarmUI, PNG": ("swarmui", png({"parameters": json.dumps(SWARM, indent=2)}, international=True)),
    "SwarmUI, JPEG": ("swarmui", with_comment("JPEG", b"UNICODE\0" + json.dumps(SWARM).encode("utf-16-le"))),
    "Easy Diffusion, PNG": ("easy-diffusion", png({key: str(value) for key, value in EASY.items()})),
    "Easy Diffusion, for people": ("easy-diffusion", png(EASY_FOR_PEOPLE)),
    "Easy Diffusion, JPEG": (
        "easy-diffusion",
        with_comment("JPEG", b"UNICODE\0" + json.dumps(EASY).encode("utf-16-be")),
    ),
    "Easy Diffusion, WebP": ("easy-diffusion", with_comment("WEBP", b"ASCII\0\0\0" + json.dumps(EASY).encode())),
    "Draw Things": ("draw-things", png({"XML:com.adobe.xmp": xmp(json.dumps(DRAW))}, international=True)),
    "InvokeAI 5": ("invokeai", png({"invokeai_metadata": json.dumps(INVOKE), "invokeai_graph": "{}"})),
    "InvokeAI 2": ("invokeai", png({"sd-metadata": json.dumps(SD_METADATA), "Dream": DREAM})),
    "InvokeAI 1": ("invokeai", png({"Dream": DREAM})),
    "NovelAI 4": (
        "novelai",
        png({"Software": "NovelAI", "Source": "NovelAI Diffusion V4", "Comment": json.dumps(NOVEL4)}),
    ),
    "NovelAI, WebP": (
        "novelai",
        with_comment(
            "WEBP", json.dumps({"Software": "NovelAI", "Comment": json.dumps(NOVEL4), "Description": "a cat"}).encode()
        ),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_every_program_is_read(name: str) -> None:
    tool, data = FILES[name]
    found = read_recipe(data)
    request = found.request
    assert found.tool == tool
    prompt, *tags = request.prompt.split(" <")
    assert {**{key: getattr(request, key) for key in PLAIN}, "prompt": prompt} == PLAIN
    assert request.guidance_scale in (4.0, 5.0, 6.5, 7.5)
    assert len(tags) == (tool not in ("novelai",) and "people" not in name and name not in ("InvokeAI 2", "InvokeAI 1"))
    assert resolve(request.sampler or "")[0] in ("dpmpp_2m_sde", "dpmpp_2m", "euler_ancestral")
    if request.schedule is not None:
        # InvokeAI's samplers are classes of diffusers, with the lists of those classes.
        assert resolve_schedule(request.schedule) == ("diffusers" if name == "InvokeAI 5" else "karras")
    assert as_infotext(found).values["Seed"] == "42"


LEFT_OUT = {
    "Fooocus, PNG": ["Fooocus V2", "sharpness", "Quality"],
    "SwarmUI, PNG": ["vae"],
    "InvokeAI 2": ["hires_fix"],
    "NovelAI 4": ["1 characters", "NovelAI Diffusion V4"],
    "Draw Things": ["noise"],
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_not_repeated_is_noted(name: str) -> None:
    notes = "\n".join(read_recipe(FILES[name][1]).notes)
    assert all(word in notes for word in LEFT_OUT[name])


@pytest.mark.parametrize(
    ("version", "style", "expected"),
    [
        ("5.6.0", "watercolour", "watercolour"),
        ("4.2.9", "watercolour", "watercolour"),
        ("5.6.0", "a cat", None),
        ("5.6.0", " ", None),
        ("3.7.0", "watercolour", None),
    ],
)
def test_invokeais_style_prompt_is_the_second_encoders(version: str, style: str, expected: str | None) -> None:
    """From version 4 on its files say what bigG read; in version 3 prompt and style may have been joined."""
    values = {**INVOKE, "app_version": version, "positive_style_prompt": style, "negative_style_prompt": "grey"}
    found = read_recipe(png({"invokeai_metadata": json.dumps(values)}))
    assert found.request.prompt_2 == expected
    old = version.startswith("3.")
    assert found.request.negative_prompt_2 == (None if old else "grey")
    assert any("style_prompt" in note for note in found.notes) == old


def test_details() -> None:
    assert read_recipe(FILES["InvokeAI 2"][1]).request.seamless == "both"
    assert read_recipe(FILES["Fooocus, PNG"][1]).request.clip_skip == 2
    assert read_recipe(FILES["Easy Diffusion, PNG"][1]).request.model == "sd-v1-5"
    assert read_recipe(FILES["SwarmUI, PNG"][1]).request.model == "sd_xl_base_1.0"
    assert read_recipe(FILES["Draw Things"][1]).request.prompt == "a cat <lora:film:0.6:0.6>"


@pytest.mark.parametrize("name", ["Fooocus, PNG", "InvokeAI 1", "InvokeAI 2"])
def test_a_second_opinion(name: str) -> None:
    other = ParserManager().parse(io.BytesIO(FILES[name][1]))
    assert other is not None
    (sampler,) = other.samplers
    request = read_recipe(FILES[name][1]).request
    assert [one.value.strip() for one in sampler.prompts] == [request.prompt.split(" <")[0]]
    assert [one.value for one in sampler.negative_prompts] == [request.negative_prompt]
    assert int(sampler.parameters["steps"]) == request.num_inference_steps


NOTHING = {
    "Midjourney": png({"Description": "a cat --ar 3:2 --v 6 Job ID: 0123", "Author": "x"}),
    "ChatGPT": with_comment("WEBP", b"ASCII\0\0\0x", "OpenAI"),
    "Firefly": png({"Software": "Adobe Firefly"}),
}


@pytest.mark.parametrize("name", NOTHING)
def test_pictures_that_hold_nothing_to_repeat_are_refused_by_name(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"(?i){name}"):
        read_recipe(NOTHING[name])


INFO = "a 猫 é\nNegative prompt: bad\nSteps: 3, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 64x64"
COMMENTS = {
    "A1111, big-endian": b"UNICODE\0" + INFO.encode("utf-16-be"),
    "little-endian": b"UNICODE\0" + INFO.encode("utf-16-le"),
    "a mark of the byte order": b"UNICODE\0" + INFO.encode("utf-16"),
    "a big-endian mark": b"UNICODE\0\xfe\xff" + INFO.encode("utf-16-be"),
    "UTF-8 under the name of UTF-16": b"UNICODE\0" + INFO.encode(),
    "UTF-8 without a name": INFO.encode(),
    "no code named": b"\0" * 8 + INFO.encode(),
    "ASCII that isn't": b"ASCII\0\0\0" + INFO.encode(),
    "zeros behind": b"UNICODE\0" + INFO.encode("utf-16-be") + b"\0\0\0\0",
    "zeros behind UTF-8": b"ASCII\0\0\0" + INFO.encode() + b"\0\0",
}


@pytest.mark.parametrize("name", COMMENTS)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_comments_in_every_encoding(name: str, kind: str) -> None:
    request = read_recipe(with_comment(kind, COMMENTS[name])).request
    assert (request.prompt, request.negative_prompt, request.seed) == ("a 猫 é", "bad", 7)


def test_a_comment_of_jpeg_and_gif() -> None:
    for kind in ("JPEG", "GIF"):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, kind, comment=INFO.encode())
        assert read_recipe(file.getvalue()).request.seed == 7


@pytest.mark.parametrize(
    "block", [b"", b"x", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + b"\xff" * 30]
)
def test_damaged_exif_is_no_text_and_no_error(block: bytes) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=block)
    assert PARAMETERS not in read_texts(file.getvalue())


PARAMETERS = "parameters"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def mutated(whole: Any) -> st.SearchStrategy[dict[str, Any]]:
    """The same object with some values of any kind."""
    return st.dictionaries(st.sampled_from(sorted(whole)), VALUES, max_size=3).map(lambda change: {**whole, **change})


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        mutated(FOOOCUS).map(lambda one: {PARAMETERS: json.dumps(one)}),
        mutated(RUINED).map(lambda one: {PARAMETERS: json.dumps(one)}),
        mutated(SWARM["sui_image_params"]).map(lambda one: {PARAMETERS: json.dumps({"sui_image_params": one})}),
        mutated(EASY).map(lambda one: {PARAMETERS: json.dumps(one)}),
        mutated(DRAW).map(lambda one: {PARAMETERS: json.dumps(one)}),
        mutated(INVOKE).map(lambda one: {"invokeai_metadata": json.dumps(one)}),
        mutated(NOVEL4).map(lambda one: {"Software": "NovelAI", "Comment": json.dumps(one)}),
        st.text(max_size=40).map(lambda one: {"Dream": one}),
    )
)
def test_no_values_break_the_readers(texts: dict[str, str]) -> None:
    clean = {key: text.replace("\0", "") for key, text in texts.items()}
    try:
        found: ForeignText = read_recipe(png(clean))
    except RecipeError:
        return
    assert found.tool
