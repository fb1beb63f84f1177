"""Every family's entry against diffusers, and that nothing else in the package knows a family by its name."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import diffusers
import pytest
from diffusers.schedulers import AysSchedules

from gouache.checkpoints import save
from gouache.diffusion.samplers.sigmas import ALIGN_YOUR_STEPS
from gouache.errors import UnknownName
from gouache.models.bundle import AESTHETIC_SCORE, LOW_AESTHETIC_SCORE
from gouache.models.family import FAMILIES, POCKET, SD1, SD2, SD3, SDXL, SDXL_REFINER, UNKNOWN, Family, family_named

SOURCE = Path(__file__).parents[2] / "src" / "gouache"
PUBLISHED = (SD1, SD2, SDXL, SDXL_REFINER, SD3)
WITH_LITERALS = {
    "models/family.py",
    "diffusion/samplers/published.py",  # keys of published tables, one layer below the families
    "diffusion/samplers/sigmas.py",
    "checkpoints/adapters/foreign.py",  # families by the names and widths of foreign adapters' tensors
    "checkpoints/adapters/kinds.py",  # families by the widths of adapters' tensors
    "checkpoints/adapters/embedding_names.py",  # and of textual inversions
    "serve/models/recommended.py",  # published models, each with its family
}


def default(function: object, name: str) -> object:
    assert callable(function)
    return inspect.signature(function).parameters[name].default


@pytest.mark.parametrize("family", PUBLISHED, ids=lambda family: family.name)
def test_a_family_agrees_with_the_pipelines_of_diffusers(family: Family) -> None:
    for name in family.pipelines.values():
        assert hasattr(diffusers, name), f"diffusers has no {name}"
    pipeline = getattr(diffusers, family.pipelines["base"])
    assert default(pipeline.__call__, "guidance_scale") == family.guidance_scale
    assert hasattr(diffusers, family.scheduler)
    components = set(inspect.signature(pipeline.__init__).parameters)
    assert set(family.text_encoders) <= components


def test_what_the_authors_publish_of_each_family() -> None:
    assert default(diffusers.AutoencoderKL.__init__, "scaling_factor") == SD1.latent_scale == SD2.latent_scale
    assert SDXL.latent_scale == SDXL_REFINER.latent_scale == 0.13025  # vae/config.json of both
    assert [family.size for family in PUBLISHED] == [512, 512, 1024, 1024, 1024]
    assert [SD2.size_for("eps"), SD2.size_for("v"), SDXL.size_for("v")] == [512, 768, 1024]
    base, refiner = diffusers.StableDiffusionXLPipeline, diffusers.StableDiffusionXLImg2ImgPipeline
    assert default(base.__init__, "force_zeros_for_empty_prompt") == SDXL.zero_negative
    # original size, crop and target, or original size, crop and score: `_get_add_time_ids` of either pipeline
    assert (SDXL.size_numbers, SDXL_REFINER.size_numbers, SD1.size_numbers, SD2.size_numbers) == (6, 5, 0, 0)
    steps, channels = (default(diffusers.StableDiffusion3Pipeline.__call__, "num_inference_steps"), SD3.latent_channels)
    assert (steps, channels) == (SD3.steps, default(diffusers.SD3Transformer2DModel.__init__, "in_channels"))
    assert (SD3.latent_scale, SD3.latent_shift, SD3.shift) == (1.5305, 0.0609, 3.0)  # the published folder's files
    assert default(refiner.__call__, "aesthetic_score") == AESTHETIC_SCORE
    assert default(refiner.__call__, "negative_aesthetic_score") == LOW_AESTHETIC_SCORE


@pytest.mark.parametrize(("key", "theirs"), [("sd1", "StableDiffusionSigmas"), ("sdxl", "StableDiffusionXLSigmas")])
def test_the_align_your_steps_table_is_that_of_the_family(key: str, theirs: str) -> None:
    assert list(ALIGN_YOUR_STEPS[key][:10]) == AysSchedules[theirs][:10]
    users = {family.name for family in FAMILIES.values() if family.align_your_steps == key}
    assert users == ({"sdxl", "sdxl-refiner"} if key == "sdxl" else {"sd1", "sd2", "pocket", "unknown"})


def test_only_families_with_the_published_autoencoders_have_a_linear_preview() -> None:
    assert POCKET.preview is None
    assert UNKNOWN.preview is None
    assert SD1.preview == SD2.preview != SDXL.preview == SDXL_REFINER.preview
    assert all(family.preview and len(family.preview) == family.latent_channels for family in PUBLISHED)


def test_every_published_family_can_be_written_as_a_single_file() -> None:
    with_names = {family.name for family in FAMILIES.values() if family.architecture}
    assert with_names == set(save.SINGLE_FILE) == {family.name for family in PUBLISHED}


def test_an_unknown_family_is_an_error_that_offers_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'sdxl-refiner'"):
        family_named("sdxl-refner")
    assert all(family_named(name).name == name for name in FAMILIES)


def test_few_files_know_a_family_by_its_name() -> None:
    names = set(FAMILIES) - {UNKNOWN.name}
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert found == WITH_LITERALS
