"""Guiders in ComfyUI's graphs: inputs and defaults as its nodes (and two well-known packs of nodes) write them."""

from __future__ import annotations

from typing import Any

import pytest
from comfyui_graphs import graph, node, read

from gouache.pipeline.request import FreeU, Mimic, Pag, PerpNeg, Request, Sag

FREE_U = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
FULL = {
    "mimic_scale": 7.0,
    "threshold_percentile": 0.95,
    "mimic_mode": "Constant",
    "mimic_scale_min": 0.0,
    "cfg_mode": "Constant",
    "cfg_scale_min": 0.0,
    "sched_val": 1.0,
    "separate_feature_channels": "enable",
    "scaling_startpoint": "ZERO",
    "variability_measure": "STD",
    "interpolate_phi": 0.8,
}
PACK = {"scale": 2.0, "adaptive_scale": 0.0, "unet_block": "middle", "unet_block_id": 0}
KNOWN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("PerturbedAttentionGuidance", {"scale": 3.5}, {"pag": Pag(scale=3.5)}),
    ("PerturbedAttention", PACK, {"pag": Pag(scale=2.0)}),
    ("PerturbedAttention", {**PACK, "sigma_start": -1.0, "rescale": 0.0}, {"pag": Pag(scale=2.0)}),
    ("SelfAttentionGuidance", {"scale": 0.5, "blur_sigma": 2.0}, {"sag": Sag(scale=0.5, blur_sigma=2.0)}),
    ("FreeU_V2", FREE_U, {"freeu": FreeU(**FREE_U, version=2, stages="widths")}),
    ("FreeU", FREE_U, {"freeu": FreeU(**FREE_U, version=1, stages="widths")}),
    ("PerpNeg", {"empty_conditioning": ["7", 0], "neg_scale": 1.5}, {"perp_neg": PerpNeg(scale=1.5)}),
    (
        "DynamicThresholdingSimple",
        {"mimic_scale": 6.0, "threshold_percentile": 1.0},
        {"mimic": Mimic(scale=6.0, by_channel=False)},
    ),
    (
        "DynamicThresholdingFull",
        FULL,
        {"mimic": Mimic(scale=7.0, percentile=0.95, centre="zero", spread="std", phi=0.8)},
    ),
]


def with_model(kind: str, inputs: dict[str, Any], **more: Any) -> Any:
    values = graph(n10=node(kind, model=["4", 0], **inputs), **more)
    values["3"]["inputs"]["model"] = ["10", 0]
    return values


@pytest.mark.parametrize(("kind", "inputs", "expected"), KNOWN, ids=[f"{k}-{one[0]}" for k, one in enumerate(KNOWN)])
def test_a_node_is_its_option_and_no_longer_noted(kind: str, inputs: dict[str, Any], expected: dict[str, Any]) -> None:
    found = read(with_model(kind, inputs))
    assert {name: getattr(found.request, name) for name in expected} == expected
    assert not [note for note in found.notes if kind in note]
    assert found.request.model == "v1-5.safetensors"


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("PerturbedAttention", {**PACK, "adaptive_scale": 0.1}),
        ("PerturbedAttention", {**PACK, "unet_block": "output"}),
        ("PerturbedAttention", {**PACK, "unet_block_list": "d2,m0"}),
        ("DynamicThresholdingFull", {**FULL, "mimic_mode": "Cosine Up"}),
        ("SelfAttentionGuidance", {"scale": 0.5, "blur_sigma": 0.0}),
        ("FreeU_V2", {**FREE_U, "b1": 99}),
    ],
)
def test_what_has_no_word_of_ours_is_noted_by_its_name(kind: str, inputs: dict[str, Any]) -> None:
    found = read(with_model(kind, inputs))
    assert any(kind in note for note in found.notes)
    assert {name: getattr(found.request, name) for name in ("pag", "mimic", "sag", "freeu")} == dict.fromkeys(
        ("pag", "mimic", "sag", "freeu")
    )


def test_several_nodes_along_the_model_add_up() -> None:
    values = with_model("FreeU_V2", FREE_U, n11=node("PerturbedAttentionGuidance", model=["10", 0], scale=3.0))
    values["12"] = node("RescaleCFG", model=["11", 0], multiplier=0.7)
    values["13"] = node("PerturbedAttentionGuidance", model=["12", 0], scale=1.0)
    values["3"]["inputs"]["model"] = ["13", 0]
    found = read(values)
    assert isinstance(found.request, Request)
    assert (found.request.pag, found.request.guidance_rescale) == (Pag(scale=1.0), 0.7)
    assert found.request.freeu is not None
    assert any("before another that sets pag" in note for note in found.notes)
    assert any("RescaleCFG acts before pag" in note for note in found.notes)


def test_the_guider_of_custom_samplers() -> None:
    guider = node(
        "PerpNegGuider",
        model=["4", 0],
        positive=["6", 0],
        negative=["7", 0],
        empty_conditioning=["14", 0],
        cfg=6.5,
        neg_scale=0.8,
    )
    values = graph(
        n3=node(
            "SamplerCustomAdvanced",
            noise=["11", 0],
            guider=["10", 0],
            sampler=["12", 0],
            sigmas=["13", 0],
            latent_image=["5", 0],
        ),
        n10=guider,
        n11=node("RandomNoise", noise_seed=9),
        n12=node("KSamplerSelect", sampler_name="euler"),
        n13=node("BasicScheduler", model=["4", 0], scheduler="karras", steps=12, denoise=1.0),
        n14=node("CLIPTextEncode", text="", clip=["4", 1]),
    )
    found = read(values)
    assert (found.request.perp_neg, found.request.guidance_scale) == (PerpNeg(scale=0.8), 6.5)
    assert found.request.negative_prompt == "bad"
    assert not [note for note in found.notes if "PerpNeg" in note]
