"""ComfyUI's samplers: which of several painted the picture, second passes, refiners, and settings spread over nodes.

The kind is described in `test_comfyui_texts.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
from comfyui_graphs import TEXT, Graph, graph, node, read


def advanced(**more: Any) -> dict[str, Any]:
    plain = {
        "add_noise": "enable",
        "noise_seed": 42,
        "steps": 25,
        "cfg": 7.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "start_at_step": 0,
        "end_at_step": 10000,
        "return_with_leftover_noise": "disable",
        "model": ["4", 0],
        "positive": ["6", 0],
        "negative": ["7", 0],
        "latent_image": ["5", 0],
    }
    return node("KSamplerAdvanced", **{**plain, **more})


def test_base_and_refiner() -> None:
    """Prompt and model are the base's; the second sampler's model, first step and score are the refiner's."""
    values = graph(
        n3=advanced(end_at_step=20, return_with_leftover_noise="enable"),
        n10=node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors"),
        n11=node("CLIPTextEncodeSDXLRefiner", ascore=6, text="refined", clip=["10", 1]),
        n12=advanced(add_noise="disable", start_at_step=20, model=["10", 0], positive=["11", 0], latent_image=["3", 0]),
        n8=node("VAEDecode", samples=["12", 0], vae=["10", 2]),
    )
    found = read(values)
    request = found.request
    assert (request.prompt, request.model, request.num_inference_steps) == (TEXT, "v1-5.safetensors", 25)
    assert (request.refiner, request.refiner_switch_at, request.refiner_switch_by) == (
        "refiner.safetensors",
        0.8,
        "steps",
    )
    assert request.size_condition is not None
    assert request.size_condition.aesthetic_score == 6
    assert any("its own positive prompt" in note for note in found.notes)
    assert not any("left out" in note and "continues" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"steps": 30}, "steps"),
        ({"cfg": 4.0}, "cfg"),
        ({"sampler_name": "heun"}, "sampler"),
        ({"scheduler": "karras"}, "schedule"),
        ({"start_at_step": 0}, "it is left out"),
        ({"start_at_step": 30}, "it is left out"),
        ({"start_at_step": 18}, "stops at step 20"),
        ({"model": ["99", 0]}, "another model"),
    ],
)
def test_a_refiner_that_does_more_is_noted(change: dict[str, Any], word: str) -> None:
    plain: dict[str, Any] = {"add_noise": "disable", "start_at_step": 20, "model": ["10", 0], "latent_image": ["3", 0]}
    values = graph(
        n3=advanced(end_at_step=20, return_with_leftover_noise="enable"),
        n10=node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors"),
        n12=advanced(**{**plain, **change}),
        n8=node("VAEDecode", samples=["12", 0], vae=["10", 2]),
    )
    found = read(values)
    assert any(word in note for note in found.notes), found.notes
    assert (found.request.refiner is None) == ("left out" in word or "another" in word)


def second(**more: Any) -> dict[str, Any]:
    plain = {
        "seed": 7,
        "steps": 14,
        "cfg": 8,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        "denoise": 0.5,
        "model": ["4", 0],
        "positive": ["6", 0],
        "negative": ["7", 0],
    }
    return node("KSampler", **{**plain, **more})


ENLARGED: dict[str, tuple[Graph, dict[str, Any]]] = {
    "latents by a factor": (
        {"10": node("LatentUpscaleBy", samples=["3", 0], upscale_method="nearest-exact", scale_by=1.5)},
        {"scale": 1.5, "upscaler": "latent-nearest"},
    ),
    "latents to a size": (
        {
            "10": node(
                "LatentUpscale", samples=["3", 0], upscale_method="bicubic", width=768, height=960, crop="disabled"
            )
        },
        {"width": 768, "height": 960, "upscaler": "latent-bicubic"},
    ),
    "pixels by a factor": (
        {
            "13": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
            "14": node("ImageScaleBy", image=["13", 0], upscale_method="lanczos", scale_by=2.0),
            "10": node("VAEEncode", pixels=["14", 0], vae=["4", 2]),
        },
        {"scale": 2.0, "upscaler": "lanczos"},
    ),
    "pixels by a model, then to a size": (
        {
            "13": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
            "15": node("UpscaleModelLoader", model_name="4x-UltraSharp.pth"),
            "16": node("ImageUpscaleWithModel", upscale_model=["15", 0], image=["13", 0]),
            "14": node(
                "ImageScale", image=["16", 0], upscale_method="bilinear", width=1024, height=1280, crop="disabled"
            ),
            "10": node("VAEEncode", pixels=["14", 0], vae=["4", 2]),
        },
        {"width": 1024, "height": 1280, "upscaler": "lanczos"},
    ),
    "pixels by a model alone": (
        {
            "13": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
            "15": node("UpscaleModelLoader", model_name="2x.pth"),
            "14": node("ImageUpscaleWithModel", upscale_model=["15", 0], image=["13", 0]),
            "10": node("VAEEncode", pixels=["14", 0], vae=["4", 2]),
        },
        {"width": 64, "height": 80, "upscaler": "lanczos"},
    ),
    "the same size": ({"10": node("Reroute", **{"": ["3", 0]})}, {"width": 512, "height": 640, "upscaler": "latent"}),
}


@pytest.mark.parametrize("name", ENLARGED)
def test_a_second_pass_is_hires(name: str) -> None:
    nodes, expected = ENLARGED[name]
    values = {
        **graph(n12=second(latent_image=["10", 0]), n8=node("VAEDecode", samples=["12", 0], vae=["4", 2])),
        **nodes,
    }
    found = read(values, (64, 80))
    hires = found.request.hires
    assert hires is not None
    assert {key: getattr(hires, key) for key in expected} == expected
    # ComfyUI runs 14 steps, the last half of a schedule of 28.
    assert (hires.strength, hires.num_inference_steps) == (0.5, 28)
    assert (found.request.seed, found.request.num_inference_steps) == (42, 20)
    assert any("second pass" in note for note in found.notes)


def test_the_sampler_of_this_picture_is_taken_not_the_last_one() -> None:
    """Two pictures are saved by one graph; the file's name tells which one this is."""
    other = second(seed=9, denoise=1, positive=["21", 0], latent_image=["5", 0])
    values = graph(
        n20=other,
        n21=node("CLIPTextEncode", text="a dog", clip=["4", 1]),
        n22=node("VAEDecode", samples=["20", 0], vae=["4", 2]),
        n23=node("SaveImage", filename_prefix="sub/dogs", images=["22", 0]),
    )
    values["9"]["inputs"]["filename_prefix"] = "cats"
    assert read(values, where="/tmp/cats_00001_.png").request.prompt == TEXT
    assert read(values, where="/tmp/dogs_00001_.png").request.prompt == "a dog"
    unsure = read(values)
    assert any("saves several pictures" in note for note in unsure.notes)


def test_a_sampler_that_nothing_saves_is_not_the_pictures() -> None:
    other = second(seed=9, denoise=1, latent_image=["5", 0])
    values = graph(n20=other, n21=node("VAEDecode", samples=["20", 0], vae=["4", 2]))
    assert read(values).request.seed == 42


def test_the_size_tells_the_first_pass_from_the_second() -> None:
    values = graph(
        n10=node("LatentUpscaleBy", samples=["3", 0], upscale_method="bilinear", scale_by=2.0),
        n12=second(latent_image=["10", 0]),
        n13=node("VAEDecode", samples=["12", 0], vae=["4", 2]),
        n14=node("SaveImage", filename_prefix="ComfyUI", images=["13", 0]),
        n5=node("EmptyLatentImage", width=32, height=40, batch_size=1),
    )
    assert read(values, (32, 40)).request.hires is None
    assert read(values, (64, 80)).request.hires is not None


@pytest.mark.parametrize(
    "kind", ["PreviewImage", "SaveImageWebsocket", "Image Save", "SaveAnimatedWEBP", "Save Image w/Metadata"]
)
def test_other_nodes_that_save(kind: str) -> None:
    assert read(graph(n9=node(kind, images=["8", 0]))).request.prompt == TEXT


def test_faces_painted_over_are_noted_and_the_picture_stays_its_own() -> None:
    detail = node(
        "FaceDetailer",
        image=["8", 0],
        model=["4", 0],
        clip=["4", 1],
        vae=["4", 2],
        positive=["10", 0],
        negative=["7", 0],
        seed=1,
        steps=5,
        cfg=3,
        sampler_name="euler",
        scheduler="normal",
        denoise=0.4,
    )
    values = graph(n11=detail, n10=node("CLIPTextEncode", text="a face", clip=["4", 1]))
    values["9"]["inputs"]["images"] = ["11", 0]
    found = read(values)
    assert (found.request.prompt, found.request.seed) == (TEXT, 42)
    assert any("FaceDetailer" in note for note in found.notes)


def custom(**more: Any) -> Graph:
    """SamplerCustomAdvanced and its nodes."""
    plain = {
        "n3": node(
            "SamplerCustomAdvanced",
            noise=["30", 0],
            guider=["31", 0],
            sampler=["32", 0],
            sigmas=["33", 0],
            latent_image=["5", 0],
        ),
        "n30": node("RandomNoise", noise_seed=42),
        "n31": node("CFGGuider", model=["4", 0], positive=["6", 0], negative=["7", 0], cfg=6.5),
        "n32": node("KSamplerSelect", sampler_name="euler_ancestral"),
        "n33": node("BasicScheduler", model=["4", 0], scheduler="sgm_uniform", steps=12, denoise=1.0),
    }
    return graph(**{**plain, **more})


def test_custom_samplers() -> None:
    request = read(custom()).request
    assert (request.prompt, request.negative_prompt, request.seed) == (TEXT, "bad", 42)
    assert (request.num_inference_steps, request.guidance_scale) == (12, 6.5)
    assert (request.sampler, request.schedule, request.width) == ("euler_ancestral", "sgm_uniform", 512)
    plain = node(
        "SamplerCustom",
        add_noise=True,
        noise_seed=5,
        cfg=4.0,
        model=["4", 0],
        positive=["6", 0],
        negative=["7", 0],
        sampler=["32", 0],
        sigmas=["33", 0],
        latent_image=["5", 0],
    )
    request = read({**custom(), "3": plain}).request
    assert (request.seed, request.guidance_scale, request.num_inference_steps) == (5, 4.0, 12)


SCHEDULES: dict[str, tuple[dict[str, Any], str]] = {
    "Karras": (node("KarrasScheduler", steps=9, sigma_max=14.6, sigma_min=0.03, rho=7.0), "karras"),
    "exponential": (node("ExponentialScheduler", steps=9, sigma_max=14.6, sigma_min=0.03), "exponential"),
    "polyexponential": (
        node("PolyexponentialScheduler", steps=9, sigma_max=14.6, sigma_min=0.03, rho=1.0),
        "polyexponential",
    ),
    "beta": (node("BetaSamplingScheduler", model=["4", 0], steps=9, alpha=0.6, beta=0.6), "beta_time"),
    "AYS": (node("AlignYourStepsScheduler", model_type="SD1", steps=9, denoise=1.0), "align_your_steps"),
    "turbo": (node("SDTurboScheduler", model=["4", 0], steps=9, denoise=1.0), "trailing"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_nodes_of_noise_levels(name: str) -> None:
    levels, expected = SCHEDULES[name]
    request = read(custom(n33=levels)).request
    assert (request.schedule, request.num_inference_steps) == (expected, 9)


def test_levels_one_by_one_and_a_sampler_with_eta() -> None:
    request = read(custom(n33=node("ManualSigmas", sigmas="14.6, 5.0, 1.2, 0.0"))).request
    assert (request.sigmas, request.num_inference_steps) == ((14.6, 5.0, 1.2, 0.0), 3)
    request = read(custom(n32=node("SamplerEulerAncestral", eta=0.5, s_noise=1.0))).request
    assert (request.sampler, request.eta) == ("euler_ancestral", 0.5)


def test_guidance_without_a_negative_prompt() -> None:
    request = read(custom(n31=node("BasicGuider", model=["4", 0], conditioning=["6", 0]))).request
    assert (request.prompt, request.guidance_scale) == (TEXT, 1.0)


def test_a_schedule_in_two_parts_is_one_run() -> None:
    split = custom(
        n34=node("SplitSigmas", sigmas=["33", 0], step=8),
        n35=node("DisableNoise"),
        n36=node(
            "SamplerCustomAdvanced",
            noise=["35", 0],
            guider=["31", 0],
            sampler=["32", 0],
            sigmas=["34", 1],
            latent_image=["3", 0],
        ),
        n8=node("VAEDecode", samples=["36", 0], vae=["4", 2]),
    )
    split["3"]["inputs"]["sigmas"] = ["34", 0]
    request = read(split).request
    assert (request.seed, request.num_inference_steps, request.hires) == (42, 12, None)


LORAS: dict[str, tuple[dict[str, Any], str]] = {
    "core": (
        node("LoraLoader", lora_name="a\\film.safetensors", strength_model=0.8, strength_clip=0.5),
        "<lora:film:0.5:0.8>",
    ),
    "U-Net alone": (node("LoraLoaderModelOnly", lora_name="film.safetensors", strength_model=0.8), "<lora:film:0:0.8>"),
    "pysssss": (
        node(
            "LoraLoader|pysssss",
            lora_name={"content": "film.safetensors", "image": None},
            strength_model=1,
            strength_clip=1,
        ),
        "<lora:film:1:1>",
    ),
    "rgthree": (
        node(
            "Power Lora Loader (rgthree)",
            lora_1={"on": True, "lora": "film.safetensors", "strength": 0.7},
            lora_2={"on": False, "lora": "off.safetensors", "strength": 1},
        ),
        "<lora:film:0.7:0.7>",
    ),
    "rgthree's stack": (
        node("Lora Loader Stack (rgthree)", lora_01="film.safetensors", strength_01=0.7, lora_02="None", strength_02=1),
        "<lora:film:0.7:0.7>",
    ),
    "LoraManager": (
        node(
            "Lora Loader (LoraManager)",
            text="",
            loras={
                "__value__": [
                    {"name": "film", "strength": "0.7", "active": True, "clipStrength": "0.6"},
                    {"name": "off", "strength": 1, "active": False},
                ]
            },
        ),
        "<lora:film:0.6:0.7>",
    ),
}


@pytest.mark.parametrize("name", LORAS)
def test_loras_between_checkpoint_and_sampler(name: str) -> None:
    loader, expected = LORAS[name]
    values = graph(n10={**loader, "inputs": {**loader["inputs"], "model": ["4", 0], "clip": ["4", 1]}})
    values["3"]["inputs"]["model"] = ["10", 0]
    request = read(values).request
    assert request.prompt == f"{TEXT} {expected}"
    assert request.model == "v1-5.safetensors"


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        (
            node(
                "LoRA Stacker",
                input_mode="simple",
                lora_count=1,
                lora_name_1="film.safetensors",
                lora_wt_1=0.7,
                model_str_1=1,
                clip_str_1=1,
                lora_name_2="beyond.safetensors",
                lora_wt_2=1,
            ),
            "<lora:film:0.7:0.7>",
        ),
        (
            node(
                "CR LoRA Stack",
                switch_1="On",
                lora_name_1="film.safetensors",
                model_weight_1=0.7,
                clip_weight_1=0.6,
                switch_2="Off",
                lora_name_2="off.safetensors",
                model_weight_2=1,
                clip_weight_2=1,
            ),
            "<lora:film:0.6:0.7>",
        ),
    ],
    ids=["Efficiency", "Comfyroll"],
)
def test_stacks_of_loras(stack: dict[str, Any], expected: str) -> None:
    values = graph(n11=stack, n10=node("CR Apply LoRA Stack", model=["4", 0], clip=["4", 1], lora_stack=["11", 0]))
    values["3"]["inputs"]["model"] = ["10", 0]
    assert read(values).request.prompt == f"{TEXT} {expected}"


@pytest.mark.parametrize("kind", ["SkipLayerGuidanceSD3", "ModelSamplingDiscrete", "HyperTile", "IPAdapterApply"])
def test_what_changes_the_model_is_noted(kind: str) -> None:
    values = graph(n10=node(kind, model=["4", 0], scale=3.0))
    values["3"]["inputs"]["model"] = ["10", 0]
    found = read(values)
    assert found.request.model == "v1-5.safetensors"
    assert any(kind in note for note in found.notes)


@pytest.mark.parametrize(("shift", "noted"), [(3.0, False), (5.0, True)])
def test_a_shift_of_levels_is_noted_unless_it_is_the_models_own(shift: float, noted: bool) -> None:
    values = graph(n10=node("ModelSamplingSD3", model=["4", 0], shift=shift))
    values["3"]["inputs"]["model"] = ["10", 0]
    assert any("ModelSamplingSD3" in note for note in read(values).notes) == noted


def test_rescaled_guidance_has_a_word_of_ours() -> None:
    values = graph(n10=node("RescaleCFG", model=["4", 0], multiplier=0.7))
    values["3"]["inputs"]["model"] = ["10", 0]
    assert read(values).request.guidance_rescale == 0.7
