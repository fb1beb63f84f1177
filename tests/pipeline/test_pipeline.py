"""Text to image: every picture is its own, whatever its batch; progress, closing, defaults and refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gouache.errors import DeviceUnavailable, InvalidInput, ModelNotFound, UnknownName
from gouache.models.denoiser import Denoiser
from gouache.pipeline.generate.decode import RETRIED, decode
from gouache.pipeline.generate.generation import Painted, Progress
from gouache.pipeline.output.recipe import Recipe, pixels_digest
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Apg, Churn, Request

if TYPE_CHECKING:
    from tests.pipeline.conftest import MakeBundle

KINDS: dict[str, dict[str, Any]] = {
    "sd1": {},
    "sd2": {"family": "sd2", "parameterization": "v"},
    "sdxl": {"family": "sdxl", "sdxl": True},
    "rgba": {"family": "pocket", "image_channels": 4},
}


@pytest.mark.every_time("ddim-sd1", "euler_ancestral-rgba", "dpmpp_2m_sde-sdxl")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpmpp_2m_sde"])
def test_a_picture_of_a_batch_is_the_picture_made_alone(make_tiny: MakeBundle, kind: str, sampler: str) -> None:
    pipe = Pipeline(make_tiny(**KINDS[kind]))
    request = Request(prompt="a cat", seed=100, num_inference_steps=2, sampler=sampler)
    alone = [pipe.paint(request.replace({"seed": 100 + k}))[0] for k in range(7)]
    assert len({pixels_digest(painted.image) for painted in alone}) == 7
    for count in (2, 3, 7):
        batch = pipe.paint(request.replace({"count": count}))
        assert [painted.seed for painted in batch] == [100 + k for k in range(count)]
        for one, other in zip(batch, alone, strict=False):
            assert one.image.tobytes() == other.image.tobytes()
            assert one.recipe.steps == other.recipe.steps
            assert one.recipe == other.recipe


def test_a_recipe_paints_the_same_picture(pipe: Pipeline) -> None:
    request = Request(prompt="a [cat:dog:0.5] (in:1.3) snow", negative_prompt="bad", count=2, num_inference_steps=3)
    for painted in pipe.paint(request):
        recipe = Recipe.from_json(painted.recipe.to_json())
        (again,) = pipe.paint(recipe.request)
        assert again.image.tobytes() == painted.image.tobytes()
        assert again.recipe == painted.recipe


def test_portable_batches_agree_up_to_rounding(pipe: Pipeline) -> None:
    request = Request(prompt="a cat", seed=5, count=3, num_inference_steps=3)
    exact = pipe.paint(request)
    together = pipe.paint(request.replace({"determinism": "portable"}))
    for one, other in zip(exact, together, strict=True):
        difference = np.abs(np.asarray(one.image, int) - np.asarray(other.image, int))
        assert difference.max() <= 1


def test_a1111_noise_is_another_and_repeats(pipe: Pipeline) -> None:
    request = Request(prompt="a cat", seed=5, num_inference_steps=2, determinism="a1111")
    first, second = pipe.paint(request)[0], pipe.paint(request)[0]
    assert first.image.tobytes() == second.image.tobytes()
    assert first.image.tobytes() != pipe.paint(request.replace({"determinism": "exact"}))[0].image.tobytes()


def test_progress_counts_every_step_and_shows_the_picture(pipe: Pipeline) -> None:
    events = list(pipe.run(Request(prompt="a", seed=1, count=2, num_inference_steps=3)))
    assert [(e.picture, e.step, e.steps) for e in events if isinstance(e, Progress)] == [
        (0, 1, 3),
        (0, 2, 3),
        (0, 3, 3),
        (1, 1, 3),
        (1, 2, 3),
        (1, 3, 3),
    ]
    assert isinstance(events[3], Painted)
    assert isinstance(events[-1], Painted)
    fractions = [e.fraction for e in events if isinstance(e, Progress)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_a_preview_is_a_small_picture(pipe: Pipeline) -> None:
    for event in pipe.run(Request(prompt="a", seed=1, num_inference_steps=2)):
        if isinstance(event, Progress):
            assert event.preview().size == (8, 8)


def test_closing_stops_before_the_next_network_call(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted_calls(monkeypatch)
    walk = pipe.run(Request(prompt="a", seed=1, num_inference_steps=10, count=4))
    next(walk)
    walk.close()  # type: ignore[attr-defined]
    assert len(calls) == 1


def counted_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the denoiser's calls and their rows; the real one still answers."""
    rows: list[int] = []
    real = Denoiser.__call__

    def counting(self: Denoiser, x: Tensor, sigma: Tensor, condition: object) -> Tensor:
        rows.append(len(x))
        return real(self, x, sigma, condition)  # type: ignore[arg-type]

    monkeypatch.setattr(Denoiser, "__call__", counting)
    return rows


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ({"guidance_scale": 1.0}, [1, 1]),
        ({"guidance_scale": 0.5}, [2, 2]),
        ({"guidance_scale": 3.0}, [2, 2]),
        ({"prompt": "a AND b"}, [3, 3]),
        ({"prompt": "a " * 80}, [1, 1, 1, 1]),
        ({"sampler": "heun"}, [2, 2, 2]),
        ({"guidance_interval": [0.0, 3.0]}, [1, 2]),
    ],
)
def test_network_calls(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, values: dict[str, object], rows: list[int]
) -> None:
    calls = counted_calls(monkeypatch)
    pipe.paint(Request(prompt="a", seed=1, num_inference_steps=2, sampler="ddim", schedule="uniform").replace(values))
    assert calls == rows


def test_gaps_are_filled_from_the_model(pipe: Pipeline) -> None:
    resolved = pipe.resolve(Request(prompt="a"))
    assert (resolved.width, resolved.height, resolved.num_inference_steps) == (32, 32, 4)
    assert resolved.guidance_scale == 3.0
    assert resolved.seed is not None
    assert resolved.seed < 2**32
    assert pipe.resolve(resolved) == resolved
    assert pipe.resolve(Request(sampler="DPM++ 2M Karras")).schedule == "karras"
    assert pipe.resolve(Request(sampler="DPM++ 2M")).schedule == "karras"
    assert pipe.resolve(Request(sampler="Euler a", schedule="SGM Uniform")).schedule == "sgm_uniform"


def test_sizes_are_rounded_and_it_is_said(pipe: Pipeline) -> None:
    (painted,) = pipe.paint(Request(prompt="a", seed=1, width=37, height=62, num_inference_steps=1))
    assert painted.image.size == (36, 64)
    assert any("37x62" in note and "36x64" in note for note in painted.recipe.notes)


def test_emphasis_rules_differ_and_neutral_prompts_do_not(pipe: Pipeline) -> None:
    def picture(prompt: str, emphasis: str) -> bytes:
        request = Request(prompt=prompt, seed=3, num_inference_steps=2).replace({"emphasis": emphasis})
        return pipe.paint(request)[0].image.tobytes()

    strong = {rule: picture("a (cat:1.5)", rule) for rule in ("a1111", "comfy", "none")}
    assert len(set(strong.values())) == 3
    plain = {picture("a cat", rule) for rule in ("a1111", "comfy", "none")}
    assert len(plain) == 1


def test_long_prompts_are_cut_into_chunks_and_the_rest_is_named(pipe: Pipeline) -> None:
    (painted,) = pipe.paint(Request(prompt="word " * 3000, seed=1, num_inference_steps=1, guidance_scale=1.0))
    assert any("tokens were cut" in note and "word" in note for note in painted.recipe.notes)


def test_options_reach_the_sampler(pipe: Pipeline) -> None:
    base = Request(prompt="a", seed=1, num_inference_steps=3, sampler="euler", schedule="karras")
    plain = pipe.paint(base)[0].image.tobytes()
    assert pipe.paint(base.replace({"churn": Churn(amount=10.0)}))[0].image.tobytes() != plain
    assert pipe.paint(base.replace({"apg": Apg()}))[0].image.tobytes() != plain
    assert pipe.paint(base.replace({"sigmas": (10.0, 3.0, 0.5, 0.0)}))[0].image.tobytes() != plain
    with pytest.raises(InvalidInput, match="eta"):
        pipe.paint(base.replace({"eta": 0.5}))


def test_refusals_name_the_cure(pipe: Pipeline) -> None:
    with pytest.raises(UnknownName, match="euler"):
        pipe.run(Request(sampler="eulr"))
    with pytest.raises(UnknownName, match="karras"):
        pipe.run(Request(schedule="kerras"))
    with pytest.raises(InvalidInput, match="transparency"):
        pipe.run(Request(background="transparent"))
    if not torch.cuda.is_available():
        with pytest.raises(DeviceUnavailable, match="doctor"):
            pipe.to("cuda")
    with pytest.raises(DeviceUnavailable, match="cpu"):
        pipe.to("abacus")


@pytest.mark.parametrize("tag", ["<lora:film:0.8>", "<lyco:film>", "<hypernet:x:1>"])
def test_adapter_tags_do_not_pass_as_words(pipe: Pipeline, tag: str) -> None:
    with pytest.raises((InvalidInput, ModelNotFound), match=r"no such LoRA|hypernetworks can't be applied"):
        pipe.paint(Request(prompt=f"a cat {tag}"))
    with pytest.raises(InvalidInput, match="negative_prompt"):
        pipe.paint(Request(prompt="a cat", negative_prompt=tag))


def test_transparency_and_backgrounds(make_tiny: MakeBundle) -> None:
    pipe = Pipeline(make_tiny(**KINDS["rgba"]))
    request = Request(prompt="a", seed=1, num_inference_steps=1)
    clear = pipe.paint(request)[0].image
    assert clear.mode == "RGBA"
    red = pipe.paint(request.replace({"background": "#ff0000"}))[0].image
    assert red.mode == "RGB"
    ground = Image.new("RGBA", clear.size, "#ff0000")
    assert red.tobytes() == Image.alpha_composite(ground, clear).convert("RGB").tobytes()


def test_half_precision_overflow_is_decoded_again_and_noted(make_tiny: MakeBundle) -> None:
    bundle = make_tiny()
    bundle.vae.half()
    with torch.no_grad():
        bundle.vae.decoder.conv_in.weight.mul_(500.0)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 2000
    picture, notes = decode(bundle, latents)
    assert notes == [RETRIED]
    assert next(bundle.vae.parameters()).dtype == torch.float16
    assert len(set(picture.tobytes())) > 1


def test_nan_in_the_network_is_an_error_not_a_black_picture(make_tiny: MakeBundle) -> None:
    bundle = make_tiny()
    with torch.no_grad():
        bundle.unet.get_parameter("conv_out.weight").fill_(float("nan"))
    with pytest.raises(InvalidInput, match="float32"):
        Pipeline(bundle).paint(Request(prompt="a", seed=1))
