"""Regions: areas of a picture with prompts of their own. Judges: diffusers' pipelines with attention processors written
here, closed forms, and the plain picture where regions must change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from gouache.errors import ConfigError, InvalidInput, PictureError
from gouache.models.bundle import ModelBundle
from gouache.models.conditioning.controlnet import ControlNet, ControlNetConfig
from gouache.models.conditioning.controlnet_union import ControlNetUnion
from gouache.models.denoiser import Condition, Steering
from gouache.models.regions import RegionTexts, Shares
from gouache.models.unet import UNet
from gouache.nn.attention import Areas, Attention
from gouache.pipeline import composition
from gouache.pipeline.fields.values import MAX_REGIONS
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.inputs.images import References
from gouache.pipeline.inputs.regions import feathered, region_areas
from gouache.pipeline.pipeline import Pipeline, fill
from gouache.pipeline.prompts.regions import shares_of
from gouache.pipeline.request import Hires, Mask, Outpaint, Prior, Region, Request, Tiled

if TYPE_CHECKING:
    from tests.pipeline.twins import Pair, Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SIDE = 32
WHOLE, LEFT, RIGHT = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
BASE = Request(
    prompt="a quiet garden",
    negative_prompt="grey",
    seed=21,
    num_inference_steps=4,
    guidance_scale=4.0,
    sampler="euler",
    schedule="leading",
)


def paint(pipeline: Pipeline, request: Request, attachments: dict[str, bytes] | None = None) -> Painted:
    *_, painted = pipeline.run(request, attachments)
    assert isinstance(painted, Painted)
    return painted


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=np.float64) / 255


def psnr(first: Image.Image, second: np.ndarray) -> float:
    error = float(np.mean((pixels(first) - np.round(second * 255) / 255) ** 2))
    return float("inf") if error == 0 else -10 * np.log10(error)


def disc(size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    """A mask picture: a white disc with a grey rim, off the middle."""
    picture = Image.new("L", size, 0)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((2, 6, size[0] * 0.7, size[1] * 0.8), fill=255, outline=128)
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def reference(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


class Coupled:
    """An attention processor of diffusers: the prompt's half of the batch looks at several texts, each in its area."""

    def __init__(self, texts: list[Tensor], shares: Tensor) -> None:
        self.texts, self.shares = texts, shares

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        if encoder_hidden_states is None:
            return self._plain(attn, hidden_states, hidden_states)
        out = self._plain(attn, hidden_states, encoder_hidden_states)
        side = int(hidden_states.shape[1] ** 0.5)
        small = F.adaptive_avg_pool2d(self.shares[None], side)[0].reshape(len(self.texts), 1, -1, 1)
        half = len(out) // 2
        mixed = (1 - small.sum(0)) * out[half:]
        for share, text in zip(small, self.texts, strict=True):
            mixed = mixed + share * self._plain(attn, hidden_states[half:], text)
        return torch.cat([out[:half], mixed])

    def _plain(self, attn: Any, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = attn.to_q(x), attn.to_k(context), attn.to_v(context)
        q, k, v = (tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for tensor in (q, k, v))
        looked: Tensor = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1) @ v
        out: Tensor = attn.to_out[0](looked.transpose(1, 2).flatten(2))
        return out


def judged(pair: Pair, request: Request, shares: np.ndarray) -> np.ndarray:
    """Diffusers' picture with the regions' texts, encoded by its own pipeline."""
    texts = [
        pair.theirs.encode_prompt(one.prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[
            0
        ].detach()
        for one in request.regions
    ]
    before = pair.theirs.unet.attn_processors
    pair.theirs.unet.set_attn_processor(Coupled(texts, torch.from_numpy(shares).float()))
    try:
        return pair.text_to_image(request)
    finally:
        pair.theirs.unet.set_attn_processor(before)


@pytest.mark.every_time("sd1")
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_picture_is_diffusers_with_processors_of_its_own(twins: Twins, family: str) -> None:
    """A disc and a box that overlap, with weights and shares of the prompt; areas averaged over latents by numpy."""
    pair, mask = twins.of(family), disc()
    regions = (
        Region(prompt="a (red:1.3) ball", mask=reference(mask), weight=2.0, base=0.1),
        Region(prompt="a blue cup", box=(0.25, 0.0, 1.0, 0.75), weight=0.75, base=0.4),
    )
    request = BASE.replace({"regions": regions, "emphasis": "none"})
    round_area = np.asarray(Image.open(BytesIO(mask)), dtype=np.float64) / 255
    box_area = np.zeros((SIDE, SIDE))
    box_area[:24, 8:] = 1
    wanted = np.stack([2.0 * round_area, 0.75 * box_area]).reshape(2, 8, 4, 8, 4).mean((2, 4))
    shares = np.array([0.9, 0.6])[:, None, None] * wanted / np.maximum(wanted.sum(0), 1)
    painted = paint(pair.ours, request, {reference(mask): mask})
    assert psnr(painted.image, judged(pair, request, shares)) >= 60
    assert psnr(painted.image, pair.text_to_image(BASE)) < 40, "the regions changed nothing"


def test_shares_are_the_formula_and_never_more_than_all() -> None:
    areas = torch.zeros(3, 4, 4)
    areas[0, :, :2], areas[1, :, 1:], areas[2, 0] = 1, 1, 0.5
    regions = [
        Region(prompt="a", box=WHOLE, weight=1.0, base=0.0),
        Region(prompt="b", box=WHOLE, weight=3.0, base=0.5),
        Region(prompt="c", box=WHOLE, weight=0.5, base=0.0),
    ]
    found = shares_of(regions, areas, (4, 4))
    assert torch.allclose(found[:, 3, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert torch.allclose(found[:, 3, 1], torch.tensor([1 / 4, 0.5 * 3 / 4, 0.0]))
    assert torch.allclose(found[:, 3, 3], torch.tensor([0.0, 0.5, 0.0]))
    assert torch.allclose(found[:, 0, 0], torch.tensor([1 / 1.25, 0.0, 0.25 / 1.25]))
    assert float(found.sum(0).max()) <= 1 + 1e-6
    halves = shares_of(regions, areas, (2, 2))
    assert halves.shape == (3, 2, 2)


def test_boxes_cover_places_in_part_and_edges_fade_evenly() -> None:
    request = Request(width=40, height=20, regions=(Region(prompt="a", box=(0.0, 0.0, 0.26, 0.5), base=0.0),))
    areas = region_areas(request, None, References())
    assert areas is not None
    assert areas.shape == (1, 20, 40)
    assert areas[0, 0, 9:12].tolist() == pytest.approx([1.0, 0.4, 0.0])
    assert areas[0, 9:11, 0].tolist() == [1.0, 0.0]
    step = torch.zeros(20, 40)
    step[:, :20] = 1
    soft = feathered(step, 8)
    assert torch.allclose(soft[5, 15:25], torch.tensor([9, 8, 7, 6, 5, 4, 3, 2, 1, 0]) / 9)
    assert torch.equal(feathered(torch.ones(20, 40), 8).round(decimals=5), torch.ones(20, 40))
    huge = Request(width=4096, height=2048, regions=(Region(prompt="a", box=LEFT),))
    found = region_areas(huge, None, References())
    assert found is not None
    assert found.shape == (1, 512, 1024), "memory is bounded, whatever the size"


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "edited and weighted words": {"prompt": "a [cat:(dog:1.4):0.5], [sea|sky]"},
    "second pass": {"hires": Hires(scale=1.5, strength=0.6)},
    "starting picture": {"init_image": "start", "strength": 0.6},
    "mask": {"init_image": "start", "mask": Mask(image="mask", only_masked=True), "strength": 0.8},
    "tiles": {"tiled": Tiled(tile=16, overlap=0.5)},
    "perturbed": {"pag": {"scale": 2.0}, "perp_neg": {"scale": 1.0}},
    "seamless": {"seamless": "x"},
    "a1111": {"determinism": "a1111", "hires": Hires(width=44, height=32, strength=0.5)},
    "unguided": {"guidance_scale": 1.0, "negative_prompt": None},
}


@pytest.fixture(scope="module")
def attached() -> dict[str, bytes]:
    """A starting picture and its mask, by name."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    found = {}
    for name, values in (("start", np.stack([x, y, x * y], -1)), ("mask", (x > 0.4) & (y > 0.3))):
        file = BytesIO()
        Image.fromarray((np.asarray(values) * 255).astype(np.uint8)).save(file, "PNG")
        found[name] = file.getvalue()
    return found


@pytest.mark.parametrize("case", CASES)
def test_one_whole_region_is_the_plain_picture_bit_for_bit(
    pipe: Pipeline, attached: dict[str, bytes], case: str
) -> None:
    plain = BASE.replace({"prompt": "a red fire engine", **CASES[case]})
    expected = paint(pipe, plain, attached)
    region = {"prompt": plain.prompt, "box": WHOLE, "base": 0.0}
    found = paint(pipe, plain.replace({"prompt": "something else", "regions": (region,)}), attached)
    assert np.array_equal(pixels(found.image), pixels(expected.image))
    assert found.recipe.steps == expected.recipe.steps
    halves = tuple({"prompt": plain.prompt, "box": box, "feather": 0.2} for box in (LEFT, RIGHT))
    same = paint(pipe, plain.replace({"regions": halves}), attached)
    assert psnr(same.image, pixels(expected.image)) >= 60


def test_the_order_of_regions_changes_no_bit(pipe: Pipeline, pocket: ModelBundle) -> None:
    regions = (
        Region(prompt="a red apple", box=(0.0, 0.0, 0.6, 1.0), feather=0.1),
        Region(prompt="a blue cup", box=(0.4, 0.1, 1.0, 0.9), weight=2.0),
        Region(prompt="a cat", box=(0.2, 0.5, 0.7, 1.0), weight=0.5, base=0.0),
    )
    for pipeline in (pipe, Pipeline(pocket)):
        request = Request(prompt="a table", seed=3, num_inference_steps=2, regions=regions)
        first = paint(pipeline, request)
        again = paint(pipeline, request.replace({"regions": regions[::-1]}))
        assert first.recipe.steps == again.recipe.steps
        assert first.image.tobytes() == again.image.tobytes()
        without = paint(pipeline, request.replace({"regions": regions[:2]}))
        assert first.image.tobytes() != without.image.tobytes()


def test_other_places_and_other_rows_are_left_alone() -> None:
    """One attention of two rows, the second with a text of its own in half of its places."""
    generator = torch.Generator().manual_seed(2)
    attention = Attention(8, heads=2, context_width=6)
    fill(attention, generator)
    x, context = torch.randn(2, 4, 8, generator=generator), torch.randn(2, 5, 6, generator=generator)
    own = torch.randn(1, 3, 6, generator=generator)
    areas = Areas(torch.tensor([1]), (own,), (None,), {4: torch.tensor([[0.0, 0.0, 1.0, 0.25]])})
    with torch.no_grad():
        plain, other = attention(x, context), attention(x[1:], own)
        found = attention(x, context, areas=(areas,))
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1, :2], plain[1, :2])
    # Computed in batches of other shapes, whose products may round differently.
    assert torch.allclose(found[1, 2], other[0, 2])
    assert torch.allclose(found[1, 3], 0.75 * plain[1, 3] + 0.25 * other[0, 3])


def test_pictures_of_a_batch_are_those_made_alone(pipe: Pipeline) -> None:
    request = BASE.replace({"regions": ({"prompt": "a blue cup", "box": RIGHT},), "count": 2})
    alone = [paint(pipe, request.replace({"count": 1, "seed": 21 + k})) for k in range(2)]
    for level, least in (("exact", float("inf")), ("portable", 60)):
        events = pipe.run(request.replace({"determinism": level}))
        batch = [event for event in events if isinstance(event, Painted)]
        for one, other in zip(batch, alone, strict=True):
            assert psnr(one.image, pixels(other.image)) >= least


@pytest.mark.parametrize("kinds", [(), (3,)], ids=["plain", "union"])
def test_a_controlnet_sees_the_regions_too(tiny: ModelBundle, kinds: tuple[int, ...]) -> None:
    """D under a whole region with another prompt's context is D under that context, ControlNet and all."""
    assert isinstance(tiny.unet, UNet)
    config = ControlNetConfig(unet=tiny.unet.config, hint_widths=(8, 8, 8), union_types=8 if kinds else 0)
    network = (ControlNetUnion if kinds else ControlNet)(config).eval()
    fill(network, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(6)
    x, features = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 16, 8, 8, generator=generator)
    base, own = torch.randn(2, 1, 7, 32, generator=generator)
    steering = Steering(network, (features,), torch.ones(1), kinds=kinds)
    shares = Shares(torch.ones(1, 8, 8))
    regions = (RegionTexts((own[:, :5],), (None,), shares),)
    sigma = torch.tensor(2.0)
    with torch.no_grad():
        given = Condition(base, controls=(steering,), regions=regions)
        found = tiny.denoiser(x, sigma, given)
        assert torch.equal(found, tiny.denoiser(x, sigma, Condition(own[:, :5], controls=(steering,))))
        assert not torch.allclose(found, tiny.denoiser(x, sigma, Condition(base, controls=(steering,))))


def test_texts_are_looked_at_one_after_the_other(pipe: Pipeline) -> None:
    """Memory: no attention of eight regions is of more rows than the batch, and rows without regions take no part."""
    seen: list[int] = []
    hooks = [
        part.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
        for name, part in pipe.bundle.unet.named_modules()
        if name.endswith("attn2.to_k")
    ]
    regions = tuple(Region(prompt=f"thing {k}", box=(k / 8, 0.0, (k + 1) / 8, 1.0)) for k in range(MAX_REGIONS))
    try:
        paint(pipe, BASE.replace({"regions": regions, "num_inference_steps": 1}))
    finally:
        for hook in hooks:
            hook.remove()
    assert sorted(set(seen)) == [1, 2]
    assert seen.count(1) == MAX_REGIONS * seen.count(2)


def test_a_prior_drafts_each_region_in_its_place(pocket: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drafted, by which words and where; the prompt's own draft is drawn where a place is left for it."""
    laid: list[Any] = []
    seen: list[Any] = []
    lay, seen_in = composition._lay, composition._seen_in

    def noted_lay(*given: Any) -> None:
        laid.append(given[2])
        lay(*given)

    def noted_seen(picture: Image.Image, bare: Tensor) -> Image.Image:
        seen.append(bare)
        return seen_in(picture, bare)

    monkeypatch.setattr(composition, "_lay", noted_lay)
    monkeypatch.setattr(composition, "_seen_in", noted_seen)
    pipeline = Pipeline(pocket)
    request = Request(
        prompt="a table",
        seed=1,
        num_inference_steps=1,
        regions=(Region(prompt="an apple", box=LEFT), Region(prompt="a cup", box=(0.5, 0.0, 1.0, 0.5))),
    )
    first = paint(pipeline, request)
    assert sorted((place.x, place.y, round(place.side, 3)) for place in laid) == [(0.25, 0.5, 0.46), (0.75, 0.25, 0.46)]
    assert [float(bare.mean()) for bare in seen] == [0.25]
    whole = request.replace({"regions": (*request.regions, Region(prompt="a box", box=(0.5, 0.5, 1.0, 1.0)))})
    paint(pipeline, whole)
    assert len(seen) == 1, "no place is left for the prompt's own draft"
    unlaid = paint(pipeline, request.replace({"prior": Prior(layout=False)}))
    assert unlaid.image.tobytes() != first.image.tobytes()
    assert any("without prior.layout" in note for note in unlaid.recipe.notes)


def test_recipe_and_replay(pipe: Pipeline, tmp_path: Path) -> None:
    mask = tmp_path / "disc.png"
    mask.write_bytes(disc((48, 64)))  # another size and shape: cut as a starting picture is
    regions = (Region(prompt="a red ball", mask=str(mask)), Region(prompt="a cup", box=RIGHT, feather=0.1))
    request = BASE.replace({"regions": regions})
    assert request.pictures() == (str(mask),)
    painted = paint(pipe, request)
    assert painted.recipe.request.regions == regions
    assert painted.recipe.attachments[str(mask)] == sha256(mask.read_bytes()).hexdigest()
    assert Request.from_json(painted.recipe.request.to_json()).regions == regions
    again = paint(pipe, painted.recipe.request)
    assert again.recipe.steps == painted.recipe.steps
    assert again.recipe.pixels == painted.recipe.pixels


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"regions": ({"prompt": "a <lora:film:0.8>", "box": LEFT},)}, r"regions\[0\]\.prompt"),
        ({"regions": ({"prompt": "a cat AND a dog", "box": LEFT},)}, "region of its own"),
        ({"init_image": "start", "outpaint": Outpaint(left=8), "regions": ({"prompt": "a", "box": LEFT},)}, "grows"),
        ({"regions": ({"prompt": "a", "mask": "black"},)}, "without a single place"),
    ],
)
def test_what_can_not_hold_in_a_place_is_refused(
    pipe: Pipeline, attached: dict[str, bytes], changes: dict[str, Any], words: str
) -> None:
    file = BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    with pytest.raises(InvalidInput, match=words):
        paint(pipe, BASE.replace(changes), {**attached, "black": file.getvalue()})


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ({"prompt": "a"}, "either a mask or a box"),
        ({"prompt": "a", "box": LEFT, "mask": "m.png"}, "either a mask or a box"),
        ({"prompt": "a", "box": (0.5, 0.0, 0.5, 1.0)}, "left < right"),
        ({"prompt": "a", "box": (0.0, 0.0, 1.5, 1.0)}, "less than or equal to 1"),
        ({"prompt": "a", "box": LEFT, "weight": 0.0}, "greater than 0"),
        ({"prompt": "a", "box": LEFT, "feather": float("nan")}, "number|finite|less than"),
        ({"box": LEFT}, "prompt"),
        ({"prompt": "a", "box": LEFT, "strength": 1.0}, "strength"),
    ],
)
def test_a_region_that_is_none_is_refused(region: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BASE.replace({"regions": (region,)})
    with pytest.raises(ConfigError, match="8"):
        BASE.replace({"regions": ({"prompt": "a", "box": LEFT},) * (MAX_REGIONS + 1)})


def test_a_lost_mask_and_a_model_without_attention_are_refused(pipe: Pipeline, make_tiny: Callable[..., Any]) -> None:
    with pytest.raises(PictureError, match=r"lost\.png"):
        paint(pipe, BASE.replace({"regions": ({"prompt": "a", "mask": "lost.png"},)}))
    bundle = make_tiny()
    config = bundle.unet.config.model_copy(update={"transformer_layers": (0, 0), "middle_transformer_layers": 0})
    blind = replace(bundle, unet=type(bundle.unet)(config).eval())
    with pytest.raises(InvalidInput, match="cross-attention"):
        paint(Pipeline(blind), BASE.replace({"regions": ({"prompt": "a", "box": LEFT},)}))
