"""What names tell of a distillation: names of published files, with the settings of their cards, and names that only
sound like one."""

from __future__ import annotations

import pytest

from gouache.models.few_steps import few_steps_of, method_of

# name -> method, sampler, schedule, steps, guidance
PUBLISHED: dict[str, tuple[str, str, str, int, float]] = {
    "sd_xl_turbo_1.0_fp16": ("Turbo", "euler_ancestral", "trailing", 1, 1.0),
    "sdxl-turbo": ("Turbo", "euler_ancestral", "trailing", 1, 1.0),
    "SDXL Turbo 1.0": ("Turbo", "euler_ancestral", "trailing", 1, 1.0),
    "DreamShaperXL_Turbo_v2": ("Turbo", "euler_ancestral", "trailing", 4, 1.0),
    "sdxl_lightning_4step": ("SDXL-Lightning", "euler", "trailing", 4, 1.0),
    "sdxl_lightning_2step_lora": ("SDXL-Lightning", "euler", "trailing", 2, 1.0),
    "sdxl_lightning_1step_x0": ("SDXL-Lightning", "euler", "trailing", 1, 1.0),
    "SDXL-Lightning": ("SDXL-Lightning", "euler", "trailing", 4, 1.0),
    "dreamshaperXL_lightningDPMSDE": ("SDXL-Lightning", "euler", "trailing", 4, 1.0),
    "RealVisXL_V4.0_Lightning": ("SDXL-Lightning", "euler", "trailing", 4, 1.0),
    "juggernautXL_v9Rdphoto2Lightning": ("SDXL-Lightning", "euler", "trailing", 4, 1.0),
    "Hyper-SDXL-4steps-lora": ("Hyper-SD", "ddim", "trailing", 4, 1.0),
    "Hyper-SD15-8steps-CFG-lora": ("Hyper-SD", "ddim", "trailing", 8, 5.0),
    "Hyper-SDXL-12steps-CFG-lora": ("Hyper-SD", "ddim", "trailing", 12, 5.0),
    "Hyper-SD15-1step-lora": ("Hyper-SD", "tcd", "lcm", 1, 1.0),
    "lcm-lora-sdxl": ("LCM", "lcm", "lcm", 4, 1.0),
    "lcm-lora-sdv1-5": ("LCM", "lcm", "lcm", 4, 1.0),
    "LCM_Dreamshaper_v7": ("LCM", "lcm", "lcm", 4, 1.0),
    "TCD-SDXL-LoRA": ("TCD", "tcd", "lcm", 4, 1.0),
    "dmd2_sdxl_4step_lora_fp16": ("DMD2", "lcm", "trailing", 4, 1.0),
}
STRANGERS = (
    "lightning_bolt_style", "hyperrealism_xl", "turbo engine", "turbovisionxl", "calcmodel", "splcmix", "v1-5-pruned",
    "sd_xl_base_1.0", "20steps_to_heaven", "hyperion", "tcdrawing", "model",
)  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_give_their_cards_settings(name: str) -> None:
    found = method_of(name)
    assert found is not None
    settings = (found.method, found.sampler, found.schedule, found.steps, found.guidance_scale)
    assert settings == PUBLISHED[name]
    assert found.fits(found.sampler, found.steps, found.guidance_scale)
    assert not found.fits("ddim", 50, 9.0)


def test_other_names_give_none() -> None:
    assert [name for name in STRANGERS if method_of(name)] == []


def test_what_single_methods_bring_beside() -> None:
    assert [method_of(f"sdxl_lightning_{n}step").predicts for n in (1, 2)] == ["x0", ""]  # type: ignore[union-attr]
    assert [method_of(name).eta for name in ("TCD-SD15-LoRA", "Hyper-SDXL-1step-lora")] == [0.3, 1.0]  # type: ignore[union-attr]
    assert method_of("sd_turbo", family="sd2").sampler == "euler"  # type: ignore[union-attr]


def test_stable_diffusion_3_has_its_own() -> None:
    found = method_of("sd3.5_large_turbo", family="sd3")
    assert found is not None
    assert (found.sampler, found.schedule, found.steps, found.guidance_scale) == ("euler", "model", 4, 1.0)
    assert method_of("Hyper-SDXL-4steps-lora", family="sd3") is None
    assert method_of("sd3.5_large", family="sd3") is None


def test_metadata_wins_over_names_and_only_it_sets_defaults() -> None:
    named = few_steps_of({"lcm-lora-sdxl": "its name"}, {"modelspec.title": "a fine model"})
    assert named is not None
    assert (named.method, named.source, named.sets_defaults) == ("LCM", "name", False)
    told = few_steps_of({"lcm": "its name"}, {"modelspec.title": "sdxl_lightning_8step"})
    assert told is not None
    assert (told.method, told.steps, told.source, told.sets_defaults) == ("SDXL-Lightning", 8, "metadata", True)
    assert "modelspec.title" in told.told
    assert few_steps_of({"model": "its name"}, {}) is None
