"""What happens to pictures on their way out: judged against diffusers' own safety checker on random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gouache.environment import Variable
from gouache.errors import IncompatibleCheckpoint, ModelNotFound
from gouache.models.bundle import ModelBundle
from gouache.models.conditioning.image_encoder import preprocess
from gouache.pipeline.generate.generation import Painted, Progress
from gouache.pipeline.inputs.tensors import to_tensor
from gouache.pipeline.output.recipe import pixels_digest
from gouache.pipeline.output.safety import (
    SafetyGate,
    blurred,
    carries,
    load_safety_checker,
    open_gate,
    placeholder,
)
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def theirs() -> torch.nn.Module:
    """diffusers' class with random weights; thresholds that some of the pictures reach."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    checker: torch.nn.Module = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16)).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in checker.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.4)
        seen = torch.nn.functional.normalize(checker.visual_projection(checker.vision_model(batch())[1]))  # type: ignore[operator]
        for name, share in (("concept", 0.95), ("special_care", 0.7)):
            embeds = torch.nn.functional.normalize(checker.get_parameter(f"{name}_embeds"))
            checker.get_parameter(f"{name}_embeds_weights").copy_((seen @ embeds.T).quantile(share, dim=0))
    return checker


def batch() -> torch.Tensor:
    """60 pictures, preprocessed. [60,3,32,32]"""
    small = np.random.default_rng(2).integers(0, 256, (60, 4, 4, 3)).astype(np.uint8)
    pictures = [Image.fromarray(one).resize((48, 40), Image.Resampling.BICUBIC) for one in small]
    return torch.stack([preprocess(to_tensor(one, 3)[None], 32)[0] for one in pictures])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model") / "safety_checker"
    theirs().save_pretrained(place)  # type: ignore[operator]
    return place


def test_it_finds_what_diffusers_finds(folder: Path) -> None:
    found = [len(one) > 0 for one in load_safety_checker(folder)(batch())]
    _, expected = theirs()(batch(), [np.zeros((2, 2, 3)) for _ in range(60)])
    assert found == expected
    assert 5 < sum(found) < 55


def test_published_files_with_the_doubled_prefix_are_read_too(folder: Path, tmp_path: Path) -> None:
    plain = load_safety_checker(folder)
    values = {
        f"vision_model.{name}" if name.startswith("vision_model.") else name: value.contiguous()
        for name, value in theirs().state_dict().items()
    }
    values["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(values, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    again = load_safety_checker(tmp_path)
    assert again(batch()) == plain(batch())


def test_another_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(IncompatibleCheckpoint, match="diffusers' safety checker"):
        load_safety_checker(tmp_path / "other.safetensors")


def test_without_weights_nothing_is_painted(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(Variable.SAFETY_CHECKER, raising=False)
    with pytest.raises(ModelNotFound, match=Variable.SAFETY_CHECKER):
        pipe.run(Request(prompt="a", seed=1, safety="blur"))
    monkeypatch.setenv(Variable.SAFETY_CHECKER, "/nowhere/at/all")
    with pytest.raises(ModelNotFound, match="nothing at"):
        open_gate(None)


class Alarm(SafetyGate):
    """A gate that finds concept 3 in everything, or nothing in anything."""

    def __init__(self, finds: bool) -> None:
        self.name, self.finds = "alarm", finds

    def concepts(self, picture: Image.Image) -> tuple[int, ...]:
        del picture
        return (3,) if self.finds else ()


@pytest.fixture
def gated(tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setattr("gouache.pipeline.output.safety.open_gate", lambda _: Alarm(True))
    return Pipeline(tiny)


def painted(pipeline: Pipeline, **fields: object) -> Painted:
    request = Request.from_dict({"prompt": "a", "seed": 1, "num_inference_steps": 2, **fields})
    (one,) = pipeline.paint(request)
    return one


def test_a_found_picture_is_blurred_or_replaced_and_the_recipe_says_so(gated: Pipeline) -> None:
    plain = painted(gated)
    soft, blocked = painted(gated, safety="blur"), painted(gated, safety="block")
    assert soft.image.tobytes() == blurred(plain.image).tobytes()
    assert soft.recipe.notes[-1] == "safety: blurred, as alarm found its concepts 3"
    assert blocked.image.tobytes() == placeholder(plain.image.size).tobytes()
    assert blocked.recipe.notes[-1] == "safety: blocked, as alarm found its concepts 3"
    assert blocked.recipe.pixels == pixels_digest(blocked.image)
    assert np.asarray(blocked.image).max() > 100, "never black"


def test_previews_of_unchecked_pictures_are_blurred(gated: Pipeline) -> None:
    def looks(safety: str) -> list[bytes]:
        request = Request.from_dict({"prompt": "a", "seed": 1, "num_inference_steps": 2, "safety": safety})
        return [event.preview().tobytes() for event in gated.run(request) if isinstance(event, Progress)]

    assert len(looks("block")) == 2
    assert all(one != other for one, other in zip(looks("off"), looks("block"), strict=True))


def test_a_picture_that_passes_is_the_same_and_says_that_it_was_checked(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gouache.pipeline.output.safety.open_gate", lambda _: Alarm(False))
    pipe = Pipeline(tiny)
    one = painted(pipe, safety="block")
    assert one.image.tobytes() == painted(pipe).image.tobytes()
    assert one.recipe.notes[-1] == "safety: nothing found by alarm"


def test_the_watermark_is_in_the_picture_and_in_the_recipe(pipe: Pipeline) -> None:
    one = painted(pipe, watermark="ada", width=128, height=128)
    assert carries(one.image, "ada")
    assert one.recipe.request.watermark == "ada"
    assert one.recipe.notes[-1].startswith("watermark: 3 bytes")
    assert one.recipe.pixels == pixels_digest(one.image)
    again = pipe.paint(one.recipe.request)[0]
    assert again.image.tobytes() == one.image.tobytes()


def test_a_picture_grown_in_several_steps_is_marked_once(pipe: Pipeline, tmp_path: Path) -> None:
    Image.new("RGB", (96, 96), "white").save(tmp_path / "a.png")
    grown = {"init_image": str(tmp_path / "a.png"), "outpaint": {"right": 32}, "num_inference_steps": 1}
    plain, marked = painted(pipe, **grown), painted(pipe, **grown, watermark="ada")
    assert carries(marked.image, "ada")
    difference = np.abs(np.asarray(plain.image, int) - np.asarray(marked.image, int))
    assert difference.max() < 60
    assert [note for note in marked.recipe.notes if note.startswith("watermark")] == [marked.recipe.notes[-1]]
