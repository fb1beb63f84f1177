"""Guiders in A1111's texts, as Forge's extensions, sd-dynamic-thresholding and sd-webui-freeu write them."""

from __future__ import annotations

from typing import Any

import pytest

from gouache.pipeline.output.a1111_text import infotext_of, left_out, request_of
from gouache.pipeline.output.infotext import format_infotext, parse_infotext
from gouache.pipeline.output.recipe import Machine, ModelRef, Recipe
from gouache.pipeline.request import FreeU, Mimic, Pag, Request, Sag

BASE = "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512, "
STAGES = (
    r'FreeU Stages: "[{\"backbone_factor\": 1.2, \"skip_factor\": 0.9}, '
    r'{\"backbone_factor\": 1.4, \"skip_factor\": 0.2}]", FreeU Schedule: "0.0, 1.0, 0.0", '
)
FORGE_DT = (
    "dynthres_enabled: True, dynthres_mimic_scale: 6, dynthres_threshold_percentile: 0.95, "
    "dynthres_mimic_mode: Constant, dynthres_mimic_scale_min: 0, dynthres_cfg_mode: Constant, "
    "dynthres_cfg_scale_min: 0, dynthres_sched_val: 1, "
    "dynthres_separate_feature_channels: disable, dynthres_scaling_startpoint: ZERO, "
    "dynthres_variability_measure: STD, dynthres_interpolate_phi: 0.7, "
)
SAG = "sag_enabled: True, sag_scale: 0.5, sag_blur_sigma: 2, "
FREE_U = "freeu_enabled: True, freeu_b1: 1.01, freeu_b2: 1.02, freeu_s1: 0.99, freeu_s2: 0.95, "
READ: dict[str, tuple[str, dict[str, Any]]] = {
    "Forge's PAG": (
        "PerturbedAttentionGuidance_enabled: True, PerturbedAttentionGuidance_scale: 3, ",
        {"pag": Pag(scale=3.0)},
    ),
    "Forge's SAG": (SAG + "sag_threshold: 1.5, ", {"sag": Sag(scale=0.5, blur_sigma=2, threshold=1.5)}),
    "older SAG": (SAG, {"sag": Sag(scale=0.5, blur_sigma=2)}),
    "Forge's FreeU": (FREE_U, {"freeu": FreeU(b1=1.01, b2=1.02, s1=0.99, s2=0.95, version=2, stages="widths")}),
    "FreeU by stages": (
        STAGES + "FreeU Version: 2, ",
        {"freeu": FreeU(b1=1.2, b2=1.4, s1=0.9, s2=0.2, version=2, stages="widths")},
    ),
    "first FreeU": (STAGES, {"freeu": FreeU(b1=1.2, b2=1.4, s1=0.9, s2=0.2, version=1, stages="widths")}),
    "Forge's thresholding": (
        FORGE_DT,
        {"mimic": Mimic(scale=6, percentile=0.95, by_channel=False, centre="zero", spread="std", phi=0.7)},
    ),
    "thresholding": (
        "Dynamic thresholding enabled: True, Mimic scale: 7, Threshold percentile: 99, ",
        {"mimic": Mimic(scale=7, percentile=0.99)},
    ),
    "newer thresholding": (
        "Dynamic thresholding enabled: True, Mimic scale: 1, Separate Feature Channels: False, "
        "Scaling Startpoint: MEAN, Variability Measure: AD, Interpolate Phi: 0.3, Threshold percentile: 100, ",
        {"mimic": Mimic(scale=1, by_channel=False, phi=0.3)},
    ),
}
LEFT_OUT = {
    "mode": "Dynamic thresholding enabled: True, Mimic scale: 7, Threshold percentile: 99, Mimic mode: Cosine Up, ",
    "Forge's mode": FORGE_DT.replace("cfg_mode: Constant", "cfg_mode: Sawtooth"),
    "more of a stage": STAGES.replace("1.2,", r"1.2, \"backbone_width\": 0.3,"),
    "schedule": STAGES.replace("0.0, 1.0, 0.0", "0.2, 1.0, 0.0"),
    "no stages": STAGES.replace("[", "{"),
    "out of range": SAG.replace("2", "0"),
    "share of the steps": FREE_U + "freeu_start: 0.3, ",
    "no number": "PerturbedAttentionGuidance_enabled: True, PerturbedAttentionGuidance_scale: much, ",
    "another's PAG": "PAG Active: True, PAG Scale: 2, ",
    "off": "sag_enabled: False, sag_scale: 0.5, sag_blur_sigma: 2, ",
}
OPTIONS = ("pag", "sag", "slg", "freeu", "perp_neg", "mimic")


@pytest.mark.parametrize("name", READ)
def test_keys_that_mean_an_option_are_it(name: str) -> None:
    text, expected = READ[name]
    info = parse_infotext(f"{BASE}{text}Version: f2.0.1v1.10.1")
    request = request_of(info, "text")
    assert {option: getattr(request, option) for option in OPTIONS} == {**dict.fromkeys(OPTIONS), **expected}
    assert not [note for note in left_out(info) if "aren't repeated" in note]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_has_no_word_of_ours_is_listed(name: str) -> None:
    info = parse_infotext(f"{BASE}{LEFT_OUT[name]}Version: v1.10.1")
    request = request_of(info, "text")
    assert [getattr(request, option) for option in OPTIONS] == [None] * len(OPTIONS)
    assert [note for note in left_out(info) if "aren't repeated" in note]


def test_ours_are_written_in_forges_words_and_read_back() -> None:
    written = {
        "pag": Pag(scale=2.5),
        "sag": Sag(scale=0.4, blur_sigma=1.5, threshold=0.9),
        "freeu": FreeU(b1=1.1, stages="widths"),
        "mimic": Mimic(scale=5.0, percentile=0.9, spread="std"),
    }
    for changes in (written, {"pag": Pag(layers=("up",)), "sag": Sag(end=0.5), "freeu": FreeU()}):
        request = Request(prompt="a", seed=1, num_inference_steps=4, width=64, height=64, **changes)
        recipe = Recipe(
            request=request,
            model=ModelRef(name="m", family="sd1"),
            machine=Machine(device="cpu", dtype="float32", processor="", threads=1),
            versions={"gouache": "1"},
        )
        found = request_of(parse_infotext(format_infotext(infotext_of(recipe))), "text")
        expected = changes if changes is written else {}
        assert {name: getattr(found, name) for name in changes} == {**dict.fromkeys(changes), **expected}
