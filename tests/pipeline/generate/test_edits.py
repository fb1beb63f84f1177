"""Edits by what must hold: strength limits, untouched pixels, seams, ends of a way, inversion, wrapping."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from gouache.diffusion.samplers.registry import sample
from gouache.errors import InvalidInput, PictureError
from gouache.pipeline.generate.decode import decode
from gouache.pipeline.generate.generation import Painted, Progress
from gouache.pipeline.generate.outpaint import border_of, growth_steps
from gouache.pipeline.generate.tiling import circular
from gouache.pipeline.inputs.start import encode, input_kind
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Hires, Interpolation, Inversion, Mask, Outpaint, Request, Seamless, Tiled, Upscale

if TYPE_CHECKING:
    from tests.pipeline.conftest import MakeBundle

SIDE = 32


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A smooth picture of the model's size."""
    return saved(tmp_path / "start.png", smooth(SIDE, SIDE))


def smooth(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    return Image.fromarray((np.stack([x, y, 1 - x], -1) * 255).astype(np.uint8))


def saved(path: Path, picture: Image.Image) -> Path:
    picture.save(path)
    return path


def request_from(start: Path, **changes: object) -> Request:
    base = Request(prompt="a cat", seed=4, num_inference_steps=4, sampler="ddim", schedule="leading")
    return base.replace({"init_image": str(start), **changes})


def only(pipe: Pipeline, request: Request, attachments: dict[str, bytes] | None = None) -> Painted:
    (painted,) = pipe.paint(request, attachments)
    return painted


def psnr(first: Image.Image, second: Image.Image) -> float:
    error = np.mean((np.asarray(first, float) - np.asarray(second, float)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def test_strength_zero_returns_the_decoded_picture(pipe: Pipeline, start: Path) -> None:
    painted = only(pipe, request_from(start, strength=0.0))
    expected, _ = decode(pipe.bundle, encode(pipe.bundle, Image.open(start)))
    assert painted.image.tobytes() == expected.tobytes()
    assert painted.recipe.notes == ("strength 0: 0 of 4 steps",)


def test_strength_one_ignores_the_picture(pipe: Pipeline, start: Path, tmp_path: Path) -> None:
    other = saved(tmp_path / "other.png", Image.new("RGB", (SIDE, SIDE), "red"))
    pictures = {only(pipe, request_from(path, strength=1.0)).image.tobytes() for path in (start, other)}
    blank = only(pipe, request_from(start).replace({"init_image": None, "strength": None}))
    assert pictures == {blank.image.tobytes()}


def test_the_number_of_real_steps_is_stated(pipe: Pipeline, start: Path) -> None:
    events = list(pipe.run(request_from(start, strength=0.5)))
    assert len([event for event in events if isinstance(event, Progress)]) == 2
    assert any("2 of 4 steps" in note for note in events[-1].recipe.notes if isinstance(events[-1], Painted))  # type: ignore[union-attr]


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("fill", ["original", "fill", "noise", "nothing"])
def test_pixels_outside_the_mask_are_untouched(pipe: Pipeline, tmp_path: Path, fill: str, only_masked: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    first = saved(tmp_path / "noise.png", Image.fromarray(noise))
    pixels = np.zeros((48, 64), np.uint8)
    pixels[20:30, 30:50] = 255
    mask = saved(tmp_path / "mask.png", Image.fromarray(pixels))
    options = Mask(image=str(mask), blur=2, padding=6, only_masked=only_masked).model_copy(update={"fill": fill})
    painted = np.asarray(only(pipe, request_from(first, mask=options)).image)
    assert painted.shape == noise.shape
    far = np.ones((48, 64), bool)
    far[8:42, 18:62] = False
    assert (painted[far] == noise[far]).all()
    inside = np.s_[22:28, 34:46]
    assert (painted[inside] != noise[inside]).mean() > 0.9
    loose = only(pipe, request_from(first, mask=options.model_copy(update={"preserve": False})))
    changed = (np.asarray(loose.image)[far] != noise[far]).mean()
    assert changed > 0.5 or only_masked


def test_an_inverted_mask_paints_the_rest(pipe: Pipeline, start: Path, tmp_path: Path) -> None:
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[:, 16:] = 255
    mask = saved(tmp_path / "mask.png", Image.fromarray(pixels))
    original = np.asarray(Image.open(start))
    plain = np.asarray(only(pipe, request_from(start, mask=Mask(image=str(mask), blur=0))).image)
    inverted = np.asarray(only(pipe, request_from(start, mask=Mask(image=str(mask), blur=0, invert=True))).image)
    assert (plain[:, :16] == original[:, :16]).all()
    assert (inverted[:, 16:] == original[:, 16:]).all()
    assert (inverted[:, :16] != original[:, :16]).mean() > 0.5


def test_transparency_is_a_mask(pipe: Pipeline, tmp_path: Path) -> None:
    picture = smooth(SIDE, SIDE).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 16, SIDE))
    path = saved(tmp_path / "clear.png", picture)
    painted = only(pipe, request_from(path, mask=Mask(blur=0))).image
    assert np.asarray(painted)[:, 16:].tobytes() == np.asarray(picture)[:, 16:].tobytes()


def test_masks_that_do_not_fit_are_refused(pipe: Pipeline, start: Path, tmp_path: Path) -> None:
    small = saved(tmp_path / "small.png", Image.new("L", (8, 8), 255))
    black = saved(tmp_path / "black.png", Image.new("L", (SIDE, SIDE)))
    with pytest.raises(PictureError, match="8x8"):
        pipe.run(request_from(start, mask=Mask(image=str(small))))
    with pytest.raises(InvalidInput, match="--mask-invert"):
        pipe.run(request_from(start, mask=Mask(image=str(black))))
    with pytest.raises(PictureError, match="transparency"):
        pipe.run(request_from(start, mask=Mask()))
    with pytest.raises(PictureError, match=r"absent\.png"):
        pipe.run(request_from(tmp_path / "absent.png"))
    with pytest.raises(PictureError, match="attachments"):
        pipe.run(request_from(start).replace({"init_image": "sha256:" + "0" * 64}))


def test_attached_bytes_stand_for_the_file(pipe: Pipeline, start: Path) -> None:
    from hashlib import sha256

    data = start.read_bytes()
    name = sha256(data).hexdigest()
    by_file = only(pipe, request_from(start))
    by_hash = only(pipe, request_from(start).replace({"init_image": f"sha256:{name}"}), {name: data})
    assert by_hash.image.tobytes() == by_file.image.tobytes()
    assert by_hash.recipe.attachments == {f"sha256:{name}": name}


def test_outpainting_keeps_the_old_picture_and_reaches_the_size(pipe: Pipeline, start: Path) -> None:
    grow = Outpaint(left=8, right=20, overlap=4)
    events = list(pipe.run(request_from(start, outpaint=grow)))
    painted = events[-1]
    assert isinstance(painted, Painted)
    assert painted.image.size == (SIDE + 28, SIDE)
    # The overlap and the blur of the mask's edge (4 pixels, three standard deviations) may change, the rest may not.
    middle = np.asarray(painted.image)[:, 8 + 15 : 8 + 17]
    assert np.abs(middle.astype(int) - np.asarray(Image.open(start))[:, 15:17]).max() <= 2
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].step == progress[-1].steps
    again = only(pipe, painted.recipe.request)
    assert again.image.tobytes() == painted.image.tobytes()


def test_an_aspect_ratio_is_reached_by_growing() -> None:
    assert border_of(Outpaint(aspect="16:9"), (90, 90)) == (35, 0, 35, 0)
    assert border_of(Outpaint(aspect="1:2"), (50, 50)) == (0, 25, 0, 25)
    assert border_of(Outpaint(aspect="1:1", right=10), (50, 50)) == (0, 5, 10, 5)
    with pytest.raises(InvalidInput, match="pixels"):
        border_of(Outpaint(left=16384, bottom=16384), (50, 50))


def test_outpainting_goes_in_steps_no_larger_than_half_the_model(pipe: Pipeline) -> None:
    steps = growth_steps((40, 0, 5, 0), pipe.bundle)
    assert [step for step in steps if step[0]] == [(13, 0, 0, 0), (13, 0, 0, 0), (14, 0, 0, 0)]
    assert sum(step[2] for step in steps) == 5


def test_a_way_begins_and_ends_at_the_originals(pipe: Pipeline) -> None:
    first = Request(prompt="a cat", seed=4, num_inference_steps=3)
    last = first.replace({"prompt": "a very long dog " * 30, "seed": 9})
    way = first.replace({"interpolation": Interpolation(prompt=last.prompt, seed=9, frames=4)})
    painted = pipe.paint(way)
    assert len(painted) == 4
    assert painted[0].image.tobytes() == only(pipe, first).image.tobytes()
    assert painted[-1].image.tobytes() == only(pipe, last).image.tobytes()
    assert len({one.image.tobytes() for one in painted}) == 4
    again = only(pipe, painted[1].recipe.request)
    assert again.image.tobytes() == painted[1].image.tobytes()


def test_a_way_between_pictures(pipe: Pipeline, start: Path, tmp_path: Path) -> None:
    end = saved(tmp_path / "end.png", Image.new("RGB", (SIDE, SIDE), "red"))
    way = Interpolation(image=str(end), frames=3)
    painted = pipe.paint(request_from(start, strength=0.5, interpolation=way))
    assert painted[0].image.tobytes() == only(pipe, request_from(start, strength=0.5)).image.tobytes()
    assert painted[2].image.tobytes() == only(pipe, request_from(end, strength=0.5)).image.tobytes()
    with pytest.raises(InvalidInput, match="prompt, seed or picture"):
        pipe.paint(request_from(start, interpolation=Interpolation()))


def test_subseeds_lead_from_one_picture_to_another(pipe: Pipeline) -> None:
    base = Request(prompt="a cat", seed=4, num_inference_steps=2)
    full = only(pipe, base.replace({"subseed": 9, "subseed_strength": 1.0}))
    assert full.image.tobytes() == only(pipe, base.replace({"seed": 9})).image.tobytes()
    some = pipe.paint(base.replace({"subseed": 9, "subseed_strength": 0.3, "count": 2}))
    assert [one.recipe.request.subseed for one in some] == [9, 10]
    assert {one.seed for one in some} == {4}


def gentle(make_tiny: MakeBundle) -> Pipeline:
    """A network whose answer changes slowly, as a trained one's does: a random one is too rough to be inverted."""
    bundle = make_tiny()
    with torch.no_grad():
        bundle.unet.get_parameter("conv_out.weight").mul_(0.1)
    return Pipeline(bundle)


def test_inversion_and_the_same_prompt_return_the_picture(make_tiny: MakeBundle, start: Path) -> None:
    pipe = gentle(make_tiny)
    same = request_from(start, inversion=Inversion(source_prompt="a cat"), num_inference_steps=20, guidance_scale=1.0)
    plain = only(pipe, request_from(start, strength=0.0)).image
    events = list(pipe.run(same))
    painted = events[-1]
    assert isinstance(painted, Painted)
    assert psnr(painted.image, plain) >= 30
    assert events[-2].step == 40  # type: ignore[union-attr]
    other = only(pipe, same.replace({"prompt": "a dog", "guidance_scale": 5.0}))
    assert other.image.tobytes() != painted.image.tobytes()
    with pytest.raises(InvalidInput, match="ddim"):
        pipe.paint(same.replace({"sampler": "euler_ancestral"}))


def test_a_second_pass_is_larger_and_repeats(pipe: Pipeline) -> None:
    for upscaler in ("latent", "latent-nearest", "lanczos"):
        request = Request(prompt="a cat", seed=4, num_inference_steps=3).replace(
            {"hires": Hires(scale=1.5, strength=0.5, upscaler=upscaler)}
        )
        events = list(pipe.run(request))
        painted = events[-1]
        assert isinstance(painted, Painted)
        assert painted.image.size == (48, 48)
        assert len(painted.recipe.steps) == 4
        assert events[-2].step == events[-2].steps == 4  # type: ignore[union-attr]
        assert only(pipe, painted.recipe.request).image.tobytes() == painted.image.tobytes()


def test_seamless_networks_have_no_edge(pipe: Pipeline) -> None:
    """Rolled latents give the rolled answer: no place is an edge. Without it they do not."""
    bundle = pipe.bundle
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 32, generator=generator)
    kinds: list[tuple[Seamless, tuple[int, ...]]] = [("both", (2, 3)), ("x", (3,)), ("y", (2,))]
    for seamless, dims in kinds:
        shift = tuple(2 for _ in dims)
        with torch.no_grad(), circular(bundle.unet, seamless):
            answer, rolled = (bundle.unet(state, torch.tensor([500.0]), context) for state in (x, x.roll(shift, dims)))
        assert torch.allclose(answer.roll(shift, dims), rolled, atol=1e-4)
        with torch.no_grad(), circular(bundle.vae.decoder, seamless):
            picture, moved = (bundle.vae.decode(state) for state in (x, x.roll(shift, dims)))
        assert torch.allclose(picture.roll(tuple(4 * s for s in shift), dims), moved, atol=1e-4)
    with torch.no_grad():
        plain, rolled = bundle.vae.decode(x), bundle.vae.decode(x.roll(2, 3))
    assert not torch.allclose(plain.roll(8, 3), rolled, atol=1e-4), "the network must be left as it was"


def test_seamless_pictures_wrap(pipe: Pipeline) -> None:
    """The step across the seam is like the steps between other columns that lie as it does on the latents' grid."""

    def jump(seamless: str, seed: int) -> float:
        request = Request(prompt="a cat", seed=seed, num_inference_steps=3).replace({"seamless": seamless})
        pixels = np.asarray(only(pipe, request).image, float)
        steps = np.abs(pixels - np.roll(pixels, 1, axis=1)).mean((0, 2))[::4]
        return float(steps[0] / steps[1:].mean())

    wrapped, usual = ([jump(kind, seed) for seed in range(6)] for kind in ("both", "none"))
    assert np.mean(wrapped) < 1.15
    assert np.mean(usual) > 1.3


def test_tiles_leave_no_seam(pipe: Pipeline) -> None:
    request = Request(prompt="a cat", seed=4, num_inference_steps=3, width=96, height=32, tiled=Tiled(tile=32))
    pixels = np.asarray(only(pipe, request).image, float)
    assert pixels.shape == (32, 96, 3)
    steps = np.abs(np.diff(pixels, axis=1)).mean((0, 2))
    at_seams = steps[[15, 31, 47, 63, 79]]
    assert at_seams.max() < steps.mean() + 4 * steps.std()


def test_one_tile_is_the_plain_run(pipe: Pipeline) -> None:
    request = Request(prompt="a cat", seed=4, num_inference_steps=2)
    plain, tiled = only(pipe, request).image, only(pipe, request.replace({"tiled": Tiled(tile=32)})).image
    assert np.abs(np.asarray(plain, int) - np.asarray(tiled, int)).max() <= 1


def test_results_can_be_enlarged(pipe: Pipeline) -> None:
    painted = only(pipe, Request(prompt="a", seed=1, num_inference_steps=1, upscale=Upscale(factor=2.5)))
    assert painted.image.size == (80, 80)


def test_models_that_need_a_picture_say_so(make_tiny: MakeBundle) -> None:
    for channels, kind, words in ((4, "instruct", "--init"), (1, "depth", "--depth-image")):
        pipe = Pipeline(make_tiny(draft_channels=channels))
        assert input_kind(pipe.bundle) == kind
        with pytest.raises(InvalidInput, match=words):
            pipe.run(Request(prompt="a", num_inference_steps=1))
    inpaint = Pipeline(make_tiny(draft_channels=5))
    assert only(inpaint, Request(prompt="a", seed=1, num_inference_steps=1)).image.size == (32, 32)
    with pytest.raises(InvalidInput, match="channels"):
        input_kind(make_tiny(draft_channels=3))


def test_awkward_starting_pictures_are_read_right(pipe: Pipeline) -> None:
    """CMYK, 16 bits and palettes give nearly the picture that plain colours give."""
    plain = Image.new("RGB", (40, 20), (200, 40, 40))
    kinds: dict[str, Image.Image] = {"TIFF": plain.convert("CMYK"), "PNG": plain.quantize(4)}
    expected = np.asarray(only(pipe, attached(plain, "PNG")[0], attached(plain, "PNG")[1]).image, int)
    for kind, picture in kinds.items():
        request, files = attached(picture, kind)
        assert np.abs(np.asarray(only(pipe, request, files).image, int) - expected).max() <= 12


def attached(picture: Image.Image, kind: str) -> tuple[Request, dict[str, bytes]]:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    request = Request(prompt="a", seed=1, num_inference_steps=2, width=32, height=32, strength=0.5, init_image="given")
    return request, {"given": buffer.getvalue()}


def test_the_sampler_for_inversion_is_the_projects_own() -> None:
    """A guard for the test above: walking up and down with D = 0 is exact."""
    sigmas = torch.tensor([4.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    *_, up = sample("ddim_inversion", lambda state, sigma: state * 0, x, sigmas)  # noqa: ARG005
    assert torch.isfinite(up.x).all()
