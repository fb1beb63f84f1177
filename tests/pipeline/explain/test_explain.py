"""What `gouache explain` shows is what happened, and watching changes no picture."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tests.pipeline.conftest import make_bundle
from tests.training.test_from_packed import small_model
from torch.nn.functional import scaled_dot_product_attention

from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.errors import IncompatibleCheckpoint, InvalidInput
from gouache.nn.attention import Attention
from gouache.pipeline.explain.data import ExplanationData, to_data
from gouache.pipeline.explain.explanation import explain
from gouache.pipeline.explain.page import to_html, words
from gouache.pipeline.explain.watching import Watched, main_colours
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.sd3_twins import Sd3Twins


@pytest.mark.parametrize("kind", ["clip", "drafts"])
def test_the_picture_is_the_one_that_is_painted_without_watching(kind: str, tmp_path: Path) -> None:
    if kind == "clip":
        pipeline = Pipeline(make_bundle())
    else:
        pipeline = Pipeline.load(write_model(small_model(), tmp_path / "small", "gouache"), device="cpu")
    request = Request(prompt="a red fox", seed=3, width=32, height=32, num_inference_steps=3)
    seen = explain(pipeline, request)
    assert seen.painted.recipe.pixels == pipeline.paint(request)[0].recipe.pixels
    assert seen.tokens[0].text == "a"
    assert all(abs(row[i] - 1) < 1e-5 for i, row in enumerate(seen.likeness))
    assert len(seen.steps) == 3
    assert [step.sigma for step in seen.steps] == sorted((step.sigma for step in seen.steps), reverse=True)
    assert bool(seen.scales) == (seen.draft is not None) == (kind == "drafts")
    assert all(token.attention is not None for token in seen.tokens)
    assert not pipeline.bundle.unet._forward_hooks
    assert not any(one._forward_hooks for one in pipeline.bundle.unet.modules())


def test_attention_is_what_the_layer_computes() -> None:
    """With values that are the unit vectors of the tokens, attention's result is its weights."""
    torch.manual_seed(0)
    layer, places, tokens = Attention(8, heads=2, context_width=6), 16, 5
    x, context = torch.randn(2, places, 8), torch.randn(2, tokens, 6)
    seen = Watched(context[1:])
    seen.begin(torch.zeros(2, 4, 4, 4), context, None)
    seen.look(layer, x, context, None)
    q, k = (t.unflatten(2, (2, -1)).transpose(1, 2) for t in (layer.to_q(x[1:]), layer.to_k(context[1:])))
    weights = scaled_dot_product_attention(q, k, torch.eye(tokens).expand(1, 2, -1, -1)).mean(1)[0]  # [N,L]
    assert seen.maps is not None
    assert torch.allclose(seen.maps, weights.T.view(tokens, 4, 4), atol=1e-6)


def test_three_components_of_features_that_have_three_are_all_of_them() -> None:
    torch.manual_seed(0)
    colours = torch.rand(3, 5, 7)
    features = torch.einsum("kc,chw->khw", torch.randn(11, 3), colours)
    shown = main_colours(features)
    assert shown.shape == (3, 5, 7)
    assert (float(shown.min()), float(shown.max())) == pytest.approx((0.0, 1.0))
    # Whatever the mixture, the shown colours span the same three-dimensional space.
    both = torch.cat([shown, features, torch.ones(1, 5, 7)]).flatten(1).double()
    assert torch.linalg.matrix_rank(both, tol=1e-4) == 4


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_needs_nothing_else(language: str) -> None:
    request = Request(prompt='<b>"a" & b</b>', seed=1, width=32, height=32, num_inference_steps=2)
    data = to_data(explain(Pipeline(make_bundle()), request))
    assert ExplanationData.from_json(data.to_json()) == data
    page = to_html(data, "zh" if language == "zh" else "en")
    assert "&lt;b&gt;" in page
    assert "<b>&quot;a" not in page
    assert not re.findall(r"https?://|<link|url\(|<script[^>]* src", page)
    assert set(re.findall(r'src="([^"]{10})', page)) == {"data:image"}
    assert words("zh" if language == "zh" else "en")["title"] in page
    assert words("en").keys() == words("zh").keys()


@pytest.mark.parametrize(
    "changes", [{"count": 2}, {"hires": {"scale": 2.0}}, {"deep_cache": {}}, {"block_cache": {}}, {"fast": True}]
)
def test_several_passes_or_pictures_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="explained"):
        explain(Pipeline(make_bundle()), Request.from_dict({"prompt": "a", **changes}, where="request"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_other_families_are_explained(family: str, sd3: Sd3Twins) -> None:
    sdxl = Pipeline(make_bundle(family="sdxl", sdxl=True))
    pipeline = Pipeline.load(sd3.path("3.5 medium"), device="cpu") if family == "sd3" else sdxl
    request = Request(prompt="a red fox", seed=3, width=64, height=64, num_inference_steps=2)
    seen = explain(pipeline, request)
    assert seen.painted.recipe.pixels == pipeline.paint(request)[0].recipe.pixels
    # SD 3's transformer reads pictures and words in one row: there are no maps, and the page says so.
    assert all((token.attention is None) == (family == "sd3") for token in seen.tokens)
    assert (words("en")["attention.none"] in to_html(to_data(seen))) == (family == "sd3")


@pytest.mark.parametrize("own", [True, False], ids=["beside its own", "without an own"])
def test_an_autoencoder_that_is_named_is_the_one_that_decodes(own: bool, tmp_path: Path) -> None:
    model = write_model(bundle_to_write(make_bundle()), tmp_path / "model", "diffusers")
    beside = tmp_path / "beside"
    shutil.copytree(model / "vae", beside)
    if not own:
        shutil.rmtree(model / "vae")
        index = model / "model_index.json"
        index.write_text(json.dumps({k: v for k, v in json.loads(index.read_text()).items() if k != "vae"}))
    pipeline = Pipeline.load(model, device="cpu")
    request = Request(prompt="a red fox", vae=str(beside), seed=3, width=32, height=32, num_inference_steps=2)
    seen = explain(pipeline, request)
    assert seen.painted.recipe.pixels == pipeline.paint(request)[0].recipe.pixels
    if not own:
        with pytest.raises(IncompatibleCheckpoint, match="--vae FILE"):
            explain(pipeline, request.replace({"vae": None}))
