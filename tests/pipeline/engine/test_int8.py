"""The engine openvino-int8: near what torch computes, kept for a model's own weights, refused where not calibrated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.pipeline.conftest import seeded
from torch import Tensor

from gouache.errors import EngineError, MissingDependency
from gouache.models.bundle import ModelBundle
from gouache.models.unet import UNet
from gouache.pipeline.engine import names, store
from gouache.pipeline.engine.engine import Engine
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.replay import replay
from gouache.pipeline.request import Request

MakeBundle = Callable[..., ModelBundle]
REQUEST = Request(prompt="a cat", seed=3, width=48, height=32, num_inference_steps=2)
FARTHEST = 0.1
"""Of a U-Net's output in 8 bits from torch's, by their lengths: rounding to 1/127 of the largest number in each of
some dozen layers comes to several hundredths."""
LEAST_PSNR = 30.0
"""Of the shipped model's pictures, in dB: what is measured is above (docs/benchmarks.md)."""
needs_nncf = pytest.mark.skipif(not names.is_installed("openvino-int8"), reason="openvino or nncf isn't installed")


def inputs(unet: torch.nn.Module, height: int) -> tuple[Tensor, Tensor, Tensor]:
    assert isinstance(unet, UNet)
    draw = torch.Generator().manual_seed(height)
    context = torch.randn(2, 77, unet.config.context_width, generator=draw)
    return torch.randn(2, 4, height, 12, generator=draw), torch.rand(2, generator=draw) * 999, context


def test_without_nncf_it_names_what_to_install(tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "find_spec", lambda package: None if package == "nncf" else object())
    with pytest.raises(MissingDependency, match=r"no package nncf.*pip install 'gouache\[int8\]'"):
        Engine("openvino-int8", tiny)


@needs_nncf
def test_what_it_is_not_calibrated_for_is_refused_by_name(make_tiny: MakeBundle) -> None:
    bundle = make_tiny()
    engine = Engine("openvino-int8", bundle)
    with pytest.raises(EngineError, match="given control"):
        engine.fitted(bundle, REQUEST.replace({"control": [{"model": "edges", "image": "x.png"}]}))
    with pytest.raises(EngineError, match="given a refiner"):
        engine.fitted(replace(bundle, refiner=make_tiny()), REQUEST)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_nncf
@torch.no_grad()
def test_a_call_is_near_torch_s_at_other_sizes_and_other_weights_are_calibrated_for_themselves(
    make_tiny: MakeBundle,
) -> None:
    bundle = make_tiny()
    fitted = Engine("openvino-int8", bundle).fitted(bundle, REQUEST).bundle
    for height in (8, 9):
        given = inputs(bundle.unet, height)
        found, expected = fitted.unet(*given), bundle.unet(*given)
        assert 0 < (found - expected).norm() <= FARTHEST * expected.norm()
    before = store.summary()[0]
    other = make_tiny()
    seeded(other.unet, 99)
    fitted = Engine("openvino-int8", other).fitted(other, REQUEST).bundle
    found, expected = fitted.unet(*given), other.unet(*given)
    assert (found - expected).norm() <= FARTHEST * expected.norm()
    assert store.summary()[0] == before + 1
    again = Engine("openvino-int8", other).fitted(other, REQUEST).bundle
    assert torch.equal(again.unet(*given), found), "what is kept is what was made"
    assert store.summary()[0] == before + 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_nncf
def test_the_shipped_model_s_pictures_stay_near_and_replay_says_the_engine(tmp_path: Path) -> None:
    request = Request(prompt="a castle on a hill at night", seed=12)
    (by_torch,) = Pipeline.load(None).paint(request)
    (painted,) = Pipeline.load(None, engine="openvino-int8").paint(request)
    pixels = [np.asarray(one.image.convert("RGB")).astype(float) for one in (painted, by_torch)]
    assert 20 * np.log10(255) - 10 * np.log10(((pixels[0] - pixels[1]) ** 2).mean()) >= LEAST_PSNR
    assert painted.recipe.machine.engine == "openvino-int8"
    assert painted.recipe.versions["nncf"]
    file = tmp_path / "castle.png"
    file.write_bytes(painted.encode("png"))
    assert replay(file).same
    assert "engine: openvino-int8 then, torch now" in replay(file, engine="torch").reasons
