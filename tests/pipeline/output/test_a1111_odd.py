"""Texts of A1111's kind as its relatives and extensions write them.

The kind: a `parameters` text that A1111's own reader takes, or that one of its relatives writes (Forge, reForge,
SD.Next, stable-diffusion.cpp, Fooocus' scheme of that name, ComfyUI's savers, Civitai's generator), in which a value is
at the edge of its range or a part stands where a simple reader doesn't look. What a request of ours can't repeat is
noted.
"""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from gouache.errors import RecipeError
from gouache.pipeline.batch import read_axis
from gouache.pipeline.output.foreign import ForeignText, read_recipe
from gouache.pipeline.output.infotext import parse_infotext
from gouache.pipeline.request import MAX_SEED

A1111 = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""The pattern of that tool's reader."""
BASE = "Steps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 5, Size: 512x768"


def read(text: str) -> ForeignText:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    return read_recipe(file.getvalue())


VALUES: dict[str, tuple[str, dict[str, Any]]] = {
    "guidance 0": (BASE.replace("scale: 7", "scale: 0"), {"guidance_scale": 0.0}),
    "guidance 0 beside a distilled one": (
        BASE.replace("scale: 7", "scale: 0") + ", Guidance: 3.5",
        {"guidance_scale": 0.0},
    ),
    "guidance 1": (BASE.replace("scale: 7", "scale: 1.0"), {"guidance_scale": 1.0}),
    "whole numbers with a point": (BASE.replace("Steps: 20", "Steps: 20.0"), {"num_inference_steps": 20}),
    "any seed": (BASE.replace("Seed: 5", "Seed: -1"), {"seed": None}),
    "a seed of 64 bits": (BASE.replace("Seed: 5", f"Seed: {2**64 - 1}"), {"seed": MAX_SEED}),
    "clip skip 0": (BASE + ", Clip skip: 0", {"clip_skip": 1}),
    "clip skip from the end": (BASE + ", Clip skip: -2", {"clip_skip": 2}),
    "size with blanks": (BASE.replace("512x768", "512 x 768"), {"width": 512, "height": 768}),
    "no sampler": (BASE.replace("Sampler: DPM++ 2M, ", ""), {"sampler": None}),
    "the program's own sampler": (BASE.replace("DPM++ 2M", "Default") + ", App: SD.Next", {"sampler": None}),
    "automatic schedule": (BASE + ", Schedule type: Automatic", {"schedule": None}),
    "SD.Next's schedule": (BASE + ", App: SD.Next, Sampler sigma: karras", {"schedule": "karras"}),
    "SD.Next's variation": (
        BASE + ", Variation seed: 9, Variation strength: 0.5",
        {"subseed": 9, "subseed_strength": 0.5},
    ),
    "SD.Next's rescale": (BASE + ", CFG rescale: 0.7", {"guidance_rescale": 0.7}),
    "Forge draws as A1111": (BASE + ", Version: f2.0.1v1.10.1-previous-659-gc055f2d4", {"determinism": "a1111"}),
    "Forge on the CPU": (BASE + ", RNG: CPU, Version: f2.0.1v1.10.1", {"determinism": "cpu"}),
    "reForge": (BASE + ", Version: v1.0.5-v1.10.1RC-latest-2182", {"determinism": "a1111"}),
    "no version": (BASE, {"determinism": "a1111"}),
    "another program": (BASE + ", Version: ComfyUI", {"determinism": "exact"}),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_at_the_edge(name: str) -> None:
    line, expected = VALUES[name]
    request = read(f"a cat\nNegative prompt: bad\n{line}").request
    assert {key: getattr(request, key) for key in expected} == expected
    assert (request.prompt, request.negative_prompt) == ("a cat", "bad")


HIRES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "twice": ("Hires upscale: 2, Denoising strength: 0.6", {"scale": 2.0, "strength": 0.6}),
    "once": ("Hires upscale: 1, Denoising strength: 0.5", {"width": 512, "height": 768, "strength": 0.5}),
    "once, with a point": (
        "Hires upscale: 1.0, Hires steps: 8",
        {"width": 512, "height": 768, "num_inference_steps": 8},
    ),
    "smaller": ("Hires upscale: 0.5", {"width": 256, "height": 384}),
    "a size": ("Hires resize: 1024x1536", {"width": 1024, "height": 1536}),
    "one side": ("Hires resize: 0x1536", {"width": None, "height": 1536}),
    "the other side": ("Hires resize: 1024x0", {"width": 1024, "height": None}),
    "no side": ("Hires resize: 0x0, Hires upscale: 2", {"scale": 2.0}),
    "as many steps": ("Hires upscale: 2, Hires steps: 0", {"num_inference_steps": None}),
    "antialiased": ("Hires upscale: 2, Hires upscaler: Latent (antialiased)", {"upscaler": "latent-antialiased"}),
    "nearest-exact": ("Hires upscale: 2, Hires upscaler: Latent (nearest-exact)", {"upscaler": "latent-nearest-exact"}),
    "none": ("Hires upscale: 2, Hires upscaler: None", {"upscaler": "lanczos"}),
    "a file": ("Hires upscale: 2, Hires upscaler: 4x-UltraSharp", {"upscaler": "4x-UltraSharp"}),
    "SD.Next": ("Second pass: True, Hires scale: 1.5, Denoising strength: 0.3", {"scale": 1.5, "strength": 0.3}),
    "not there": ("Denoising strength: 0.4", None),
    "zero": ("Hires upscale: 0", None),
}


@pytest.mark.parametrize("name", HIRES)
def test_second_passes(name: str) -> None:
    line, expected = HIRES[name]
    hires = read(f"a cat\n{BASE}, {line}").request.hires
    if expected is None:
        assert hires is None
    else:
        assert hires is not None
        assert {key: getattr(hires, key) for key in expected} == expected


PARTS: dict[str, tuple[str, str, str]] = {
    "no negative prompt": (f"a cat\n{BASE}", "a cat", ""),
    "no prompt": (f"Negative prompt: bad\n{BASE}", "", "bad"),
    "nothing but the line": (BASE, "", ""),
    "an empty negative prompt": (f"a cat\nNegative prompt: \n{BASE}", "a cat", ""),
    "several lines": (f"a\nb\n\nc\nNegative prompt: d\ne\n{BASE}", "a\nb\n\nc", "d\ne"),
    "windows' line ends": (f"a cat\r\nNegative prompt: bad\r\n{BASE}\r\n", "a cat", "bad"),
    "steps in the prompt": (
        f"Steps: 9, Sampler: x, Seed: 1\nNegative prompt: bad\n{BASE}",
        "Steps: 9, Sampler: x, Seed: 1",
        "bad",
    ),
    "steps in the negative prompt": (
        f"a\nNegative prompt: Steps: 1, b: 2, cc: 3\n{BASE}",
        "a",
        "Steps: 1, b: 2, cc: 3",
    ),
    "a template below": (
        f"a cat\nNegative prompt: bad\n{BASE}\nTemplate: {{a|b}} cat\nNegative Template: bad",
        "a cat",
        "bad",
    ),
    "a remark below": (f"a cat\nNegative prompt: bad\n{BASE}\nLoaded from a style", "a cat", "bad"),
    "quotes": (f'a "cat", \\"x\\"\nNegative prompt: "bad"\n{BASE}', 'a "cat", \\"x\\"', '"bad"'),
    "colons and tags": (f"a: b, c: d <lora:x:0.5>\n{BASE}", "a: b, c: d <lora:x:0.5>", ""),
    "emoji": (f"猫 🐈, é\nNegative prompt: 坏\n{BASE}", "猫 🐈, é", "坏"),
}


@pytest.mark.parametrize("name", PARTS)
def test_where_the_prompt_ends(name: str) -> None:
    text, prompt, negative = PARTS[name]
    found = read(text)
    assert (found.request.prompt, found.request.negative_prompt) == (prompt, negative or None)
    assert (found.request.seed, found.request.num_inference_steps) == (5, 20)


def test_a_prompt_of_pairs_alone_is_no_recipe() -> None:
    with pytest.raises(RecipeError, match="Steps"):
        read("Steps: 9, Sampler: x, Seed: 1\nNegative prompt: bad")


ODD_VALUES: dict[str, tuple[str, str, str]] = {
    "a quoted list": ('Lora hashes: "a: 12, b: 34"', "Lora hashes", "a: 12, b: 34"),
    "escaped quotes": ('ADetailer prompt: "a \\"face\\", red"', "ADetailer prompt", 'a "face", red'),
    "a line inside": ('ADetailer prompt: "a\\nface, red"', "ADetailer prompt", "a\nface, red"),
    "json without quotes": (
        'Civitai resources: [{"type":"checkpoint","modelVersionId":1},{"weight":0.8}]',
        "Civitai resources",
        '[{"type":"checkpoint","modelVersionId":1},{"weight":0.8}]',
    ),
    "pairs inside json": (
        'Civitai metadata: {"name":"x, Seed: 99, Steps: 1"}',
        "Civitai metadata",
        '{"name":"x, Seed: 99, Steps: 1"}',
    ),
    "json in quotes": ('Hashes: "{\\"model\\": \\"ab\\", \\"b\\": 1}"', "Hashes", '{"model": "ab", "b": 1}'),
    "a bracket that isn't json": ("Mask mode: [x", "Mask mode", "[x"),
    "a path": ("Model: SD15/x y.z (1)", "Model", "SD15/x y.z (1)"),
    "grid values": ('X Type: Prompt S/R, X Values: "cat, dog"', "X Values", "cat, dog"),
    "a unit": (
        'ControlNet 0: "Module: canny, Model: a [1], Weight: 1.0"',
        "ControlNet 0",
        "Module: canny, Model: a [1], Weight: 1.0",
    ),
}


@pytest.mark.parametrize("name", ODD_VALUES)
@pytest.mark.parametrize("place", ["in the middle", "at the end"])
def test_odd_values_do_not_spoil_the_others(name: str, place: str) -> None:
    part, key, value = ODD_VALUES[name]
    line = f"{BASE}, {part}, Version: v1.10.1" if place == "in the middle" else f"{BASE}, {part}"
    info = parse_infotext(f"a cat\n{line}")
    assert info.values[key] == value
    assert (info.values["Seed"], info.values["Steps"], info.values["Size"]) == ("5", "20", "512x768")
    assert ("Version" in info.values) is (place == "in the middle")
    if "json without" not in name and "inside json" not in name:
        # A1111's own pattern finds the same keys.
        assert list(info.values) == [key for key, _ in A1111.findall(line)]


NOTED = {
    "ADetailer": (
        'ADetailer model: face_yolov8n.pt, ADetailer prompt: "a, b", ADetailer version: 24.9.0',
        "face_yolov8n.pt",
    ),
    "ControlNet": ('ControlNet 0: "Module: canny, Weight: 1"', "ControlNet 0"),
    "VAE": ("VAE hash: ab, VAE: kl-f8.ckpt", "kl-f8.ckpt"),
    "hires prompt": ('Hires upscale: 2, Hires prompt: "a, b"', "Hires prompt"),
    "face restoration": ("Face restoration: CodeFormer", "CodeFormer"),
    "img2img": ("Denoising strength: 0.6", "starts from a picture"),
    "FreeU": ("FreeU Stages: x", "FreeU Stages"),
    "dynamic thresholding": (
        "Dynamic thresholding enabled: True, Mimic scale: 7, Mimic mode: Cosine Up",
        "Mimic scale",
    ),
    "a seed beyond ours": (f"Seed: {2**64 - 1}", "none of ours"),
}


@pytest.mark.parametrize("name", NOTED)
def test_what_is_not_repeated_is_noted(name: str) -> None:
    line, word = NOTED[name]
    assert any(word in note for note in read(f"a cat\n{BASE}, {line}").notes)


REFINERS: dict[str, tuple[str, tuple[str | None, float, str]]] = {
    "with a hash": ("Refiner: xl_refiner [ab12cd34ef], Refiner switch at: 0.7", ("xl_refiner", 0.7, "noise")),
    "without": ("Refiner: xl_refiner, Refiner switch at: 0.8", ("xl_refiner", 0.8, "noise")),
    "brackets of its own": ("Refiner: a[b] c [ab12cd34ef], Refiner switch at: 0.7", ("a[b] c", 0.7, "noise")),
    "by steps": (
        "Refiner: r [ab12cd34ef], Refiner switch at: 0.5, Refiner switch by sampling steps: True",
        ("r", 0.5, "steps"),
    ),
    "no share": ("Refiner: r [ab12cd34ef]", ("r", 0.8, "noise")),
    "at once": ("Refiner: r, Refiner switch at: 0", ("r", 0.0, "noise")),
    "never": ("Refiner: r, Refiner switch at: 1", (None, 0.8, "noise")),
    "none": ("Refiner: None, Refiner switch at: 0.8", (None, 0.8, "noise")),
    "a share alone": ("Refiner switch at: 0.8", (None, 0.8, "noise")),
    "in quotes": ('Refiner: "a, b [ab12cd34ef]", Refiner switch at: 0.6', ("a, b", 0.6, "noise")),
}


@pytest.mark.parametrize("name", REFINERS)
def test_a_refiner_is_read(name: str) -> None:
    line, wanted = REFINERS[name]
    found = read(f"a cat\n{BASE}, {line}")
    request = found.request
    assert (request.refiner, request.refiner_switch_at, request.refiner_switch_by) == wanted
    assert not any("Refiner" in note for note in found.notes)


def test_plain_texts_need_no_note() -> None:
    line = f'{BASE}, Model hash: ab, Model: m, Clip skip: 2, Lora hashes: "a: 1", Version: v1.10.1'
    assert read(f"a cat\n{line}").notes == ()


PROGRAMS = {
    "a1111": "Version: v1.10.1",
    "forge": "Version: f2.0.1v1.10.1",
    "sd.next": "App: SD.Next, Version: 27ee0b3",
    "sd.cpp": "Version: stable-diffusion.cpp",
    "fooocus": "Version: Fooocus v2.5.5",
    "comfyui": "Version: ComfyUI",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_relatives_are_told_apart(program: str) -> None:
    assert read(f"a cat\n{BASE}, {PROGRAMS[program]}").tool == program


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('prompt=cat, "dog, red"', ["cat", "dog, red"]),
        ('prompt="cat, black", "dog, red"', ["cat, black", "dog, red"]),
        ('prompt= "cat" , dog', ["cat", "dog"]),
        ('prompt=cat,  "a ""big"" dog"', ["cat", 'a "big" dog']),
        ('prompt=5" disk, 3" disk', ['5" disk', '3" disk']),
        ('prompt=cat, ""', ["cat", ""]),
        ('sampler=Euler a, "DPM++ 2M"', ["Euler a", "DPM++ 2M"]),
        ("steps=5, 10 ,20", ["5", "10", "20"]),
        ('prompt=cat, "dog', ["cat", '"dog']),
        ('prompt="cat">dog', ['"cat">dog']),
    ],
)
def test_grid_values_are_read_as_csv_with_blanks(text: str, values: list[str]) -> None:
    """A1111's grids read their values so (Python's csv with `skipinitialspace`)."""
    assert read_axis(text)[1] == values
