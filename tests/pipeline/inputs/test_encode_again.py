"""An encoder that overflows in half precision is run again in float32, and the recipe says so.

The kind: every way in which a request's pictures pass the encoder. The judge of the numbers is the same autoencoder,
with the same half-precision weights, computing in float32 from the start.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.inputs.start import ENCODED_AGAIN, encode
from gouache.pipeline.likelihood import latents_of
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Hires, Interpolation, Inversion, Mask, Outpaint, Request

MakeBundle = Callable[..., ModelBundle]
SIDE = 32


def overflowing(bundle: ModelBundle) -> ModelBundle:
    """The model with an encoder whose first features are too large for half precision; its latents stay small."""
    with torch.no_grad():
        bundle.vae.encoder.conv_in.weight.mul_(5e4)
    bundle.vae.half()
    return bundle


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    pixels = np.stack([x, y, (x + y > 1).astype(float)], -1) * 255
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "start.png")
    return tmp_path / "start.png"


@pytest.mark.parametrize("tiled", [False, True])
def test_the_latents_are_those_of_float32(make_tiny: MakeBundle, picture: Path, tiled: bool) -> None:
    bundle = overflowing(make_tiny())
    image = Image.open(picture)
    notes: list[str] = []
    found = encode(bundle, image, tiled=tiled, notes=notes)
    twin = copy.deepcopy(bundle.vae).float()
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    assert torch.allclose(found, twin.normalise(twin.encode(pixels).mode()), rtol=1e-5, atol=1e-6)
    assert notes == [ENCODED_AGAIN]
    assert next(bundle.vae.parameters()).dtype == torch.float16
    assert torch.isfinite(latents_of(bundle, [image, image])).all()


def test_an_encoder_that_does_not_overflow_is_not_run_again(make_tiny: MakeBundle, picture: Path) -> None:
    bundle = make_tiny()
    notes: list[str] = []
    bundle.vae.half()
    encode(bundle, Image.open(picture), notes=notes)
    assert notes == []


def test_what_float32_cannot_hold_either_is_an_error(make_tiny: MakeBundle, picture: Path) -> None:
    bundle = make_tiny()
    with torch.no_grad():
        bundle.vae.encoder.conv_in.weight.view(-1)[0] = float("nan")
    with pytest.raises(InvalidInput, match=r"encoder: given NaN or infinity even in float32"):
        encode(bundle, Image.open(picture))


def requests(picture: str) -> dict[str, dict[str, Any]]:
    started = {"init_image": picture}
    return {
        "image to image": started,
        "in tiles": {**started, "vae_tiling": True},
        "several": {**started, "count": 2},
        "a mask": {**started, "mask": Mask(image=picture)},
        "a mask that is filled": {**started, "mask": Mask(image=picture, fill="fill")},
        "a mask over nothing": {**started, "mask": Mask(image=picture, fill="nothing")},
        "only the masked part": {**started, "mask": Mask(image=picture, only_masked=True)},
        "outpainting": {**started, "outpaint": Outpaint(right=16)},
        "a second pass of pixels": {"hires": Hires(scale=2.0, upscaler="lanczos")},
        "inversion": {**started, "inversion": Inversion(), "sampler": "ddim"},
        "a film from a picture": {**started, "interpolation": Interpolation(prompt="b", frames=2)},
        "a network for inpainting": {**started, "mask": Mask(image=picture)},
        "a network for instructions": started,
    }


@pytest.mark.parametrize("name", requests("a.png"))
def test_every_way_through_the_encoder_says_so(make_tiny: MakeBundle, picture: Path, name: str) -> None:
    channels = {"a network for inpainting": 5, "a network for instructions": 4}
    extra = next((number for start, number in channels.items() if name.startswith(start)), 0)
    bundle = overflowing(make_tiny(draft_channels=extra) if extra else make_tiny())
    wanted = {"prompt": "a", "seed": 1, "num_inference_steps": 2, "width": SIDE, "height": SIDE}
    painted = Pipeline(bundle).paint(Request(**{**wanted, **requests(str(picture))[name]}))
    assert all(ENCODED_AGAIN in one.recipe.notes for one in painted), painted[0].recipe.notes
    assert all(one.recipe.notes.count(ENCODED_AGAIN) == 1 for one in painted)
