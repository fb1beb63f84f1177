"""Depth, segments and masks from words, drawn by transformers' networks: its own results are the judge."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import T2IAdapter
from PIL import Image
from tests.pipeline.twins import SIDE, scrambled
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    ViTImageProcessor,
)

from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.checkpoints.adapters.preprocessor_library import drawable, find_preprocessor
from gouache.errors import ConfigError, IncompatibleCheckpoint, InvalidInput, MissingDependency, ModelNotFound
from gouache.pipeline.inputs.preprocessors import _opened, drawn, mask_from_words
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
SIZE = {"height": 32, "width": 32}


def save_depth(folder: Path, seed: int = 1) -> Any:
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    network = scrambled(DPTForDepthEstimation(config), seed)
    network.save_pretrained(folder)
    DPTImageProcessor(size=SIZE).save_pretrained(folder)
    return network


def save_segments(folder: Path, classes: int = 150) -> Any:
    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
        num_labels=classes,
    )
    network = scrambled(SegformerForSemanticSegmentation(config), 2)
    network.save_pretrained(folder)
    SegformerImageProcessor(size=SIZE).save_pretrained(folder)
    return network


def save_mask_maker(folder: Path, seed: int = 4) -> tuple[Any, Any]:
    """CLIPSeg with its processor."""
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder.mkdir(parents=True)
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {token: k for k, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    words = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    text = {**layers, "vocab_size": len(words), "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    config = CLIPSegConfig(
        text_config=text,
        vision_config={**layers, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    network = scrambled(CLIPSegForImageSegmentation(config), seed)
    network.save_pretrained(folder)
    processor = CLIPSegProcessor(ViTImageProcessor(size=SIZE), words)
    processor.save_pretrained(folder)
    return network, processor


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path))
    _opened.cache_clear()
    return tmp_path


def photo() -> Image.Image:
    y, x = np.mgrid[0:40, 0:56] / 40
    return Image.fromarray((np.stack([x / 2, y, (x + y > 1).astype(float)], -1) * 255).clip(0, 255).astype(np.uint8))


def test_depth_is_transformers(models: Path) -> None:
    network = save_depth(models / "Preprocessors" / "any-name")
    assert drawable() == ("depth",)
    processor = DPTImageProcessor(size=SIZE)
    with torch.no_grad():
        found = network(**processor(images=photo(), return_tensors="pt"))
    (wanted,) = processor.post_process_depth_estimation(found, target_sizes=[(40, 56)])
    depth = wanted["predicted_depth"].numpy()
    levels = (depth - depth.min()) / (depth.max() - depth.min()) * 255
    ours = drawn("depth", photo())
    assert (ours.mode, ours.size) == ("L", (56, 40))
    assert np.abs(np.asarray(ours, float) - levels).max() <= 0.51


def test_segments_have_the_colours_of_ade20k(models: Path) -> None:
    network = save_segments(models / "preprocessors" / "segmentation")
    processor = SegformerImageProcessor(size=SIZE)
    with torch.no_grad():
        found = network(**processor(images=photo(), return_tensors="pt"))
    (classes,) = processor.post_process_semantic_segmentation(found, target_sizes=[(40, 56)])
    ours = np.asarray(drawn("segmentation", photo()))
    # One colour for each class.
    pairs = {(int(one), tuple(colour)) for one, colour in zip(classes.flatten(), ours.reshape(-1, 3), strict=True)}
    assert len(pairs) == len({one for one, _ in pairs}) > 1
    known = {0: (120, 120, 120), 2: (6, 230, 230), 4: (4, 200, 3), 12: (150, 5, 61), 149: (92, 0, 255)}
    assert all(known[one] == colour for one, colour in pairs if one in known)


def test_a_drawn_picture_steers_as_a_ready_one(models: Path, twins: Twins) -> None:
    save_depth(models / "preprocessors" / "depth")
    T2IAdapter(channels=(16, 32, 32), downscale_factor=4).save_pretrained(models / "t2i_adapter" / "maps")
    pipe = Pipeline(twins.of("sd1", deep=True).ours.bundle)
    pipe.adapters.folder = AdapterFolder(models)
    picture = photo().resize((SIDE, SIDE))
    picture.save(models / "photo.png")
    drawn("depth", picture).save(models / "ready.png")
    base = Request(prompt="a cup", seed=1, num_inference_steps=2, sampler="euler")
    control = {"model": "maps", "image": str(models / "photo.png"), "preprocessor": "depth"}
    (found,) = pipe.paint(base.replace({"control": [control]}))
    ready = {"model": "maps", "image": str(models / "ready.png")}
    (wanted,) = pipe.paint(base.replace({"control": [ready]}))
    assert found.image.tobytes() == wanted.image.tobytes()
    assert [(ref.kind, ref.name) for ref in found.recipe.adapters] == [
        ("controlnet", "maps"),
        ("preprocessor", "depth"),
    ]
    pipe.adapters.expect(found.recipe.adapters)
    save_depth(models / "preprocessors" / "depth", seed=3)
    with pytest.raises(ModelNotFound, match="another file"):
        pipe.adapters.expect(found.recipe.adapters)


def likelihood(network: Any, processor: Any, text: str, picture: Image.Image) -> Any:
    """What transformers' network finds, made larger by Pillow; 0..255. [H,W]"""
    with torch.no_grad():
        logits = network(**processor(text=[text], images=[picture], return_tensors="pt")).logits
    found = Image.fromarray(logits.reshape(32, 32).numpy(), "F").resize(picture.size, Image.Resampling.BILINEAR)
    return 255 / (1 + np.exp(-np.asarray(found, float)))


def test_a_mask_from_words_is_transformers(models: Path) -> None:
    network, processor = save_mask_maker(models / "preprocessors" / "clipseg")
    assert drawable() == ()
    wanted = likelihood(network, processor, "a cup", photo())
    other = likelihood(network, processor, "a hat", photo())
    assert np.abs(wanted - other).max() > 1
    for threshold in (None, *np.quantile(wanted, [0.3, 0.6]).astype(int).tolist()):
        if wanted.max() < (threshold or 128):
            continue
        ours = mask_from_words("a cup", photo(), threshold)
        assert (ours.mode, ours.size) == ("L", (56, 40))
        clear = np.abs(wanted - (threshold or 128)) > 0.51
        assert clear.mean() > 0.9
        assert np.array_equal(np.asarray(ours)[clear] == 255, (wanted >= (threshold or 128))[clear])
    with pytest.raises(InvalidInput, match=r"mask\.text: .*seen nowhere"):
        mask_from_words("a cup", photo(), min(255, int(wanted.max()) + 2))
    with pytest.raises(InvalidInput, match="tokens"):
        mask_from_words("cup " * 100, photo(), None)


def test_words_mask_as_the_mask_that_they_make(models: Path, twins: Twins) -> None:
    network, processor = save_mask_maker(models / "preprocessors" / "clipseg")
    picture = photo().resize((SIDE, SIDE))
    picture.save(models / "photo.png")
    threshold = int(np.median(likelihood(network, processor, "a cup", picture)))
    mask_from_words("a cup", picture, threshold).save(models / "mask.png")
    pipe = Pipeline(twins.of("sd1").ours.bundle)
    base = Request(prompt="a hat", seed=1, num_inference_steps=2, sampler="euler", init_image=str(models / "photo.png"))
    (found,) = pipe.paint(base.replace({"mask": {"text": "a cup", "threshold": threshold, "blur": 2}}))
    (wanted,) = pipe.paint(base.replace({"mask": {"image": str(models / "mask.png"), "blur": 2}}))
    assert found.image.tobytes() == wanted.image.tobytes()
    assert [(ref.kind, ref.name) for ref in found.recipe.adapters] == [("preprocessor", "mask")]
    pipe.adapters.expect(found.recipe.adapters)
    with pytest.raises(ConfigError, match="image or text"):
        base.replace({"mask": {"text": "a cup", "image": "mask.png"}})


def test_what_a_mask_from_words_lacks_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFound, match=r"mask\.text: .*CLIPSegForImageSegmentation.*clipseg-rd64-refined"):
        mask_from_words("a cup", photo(), None)
    folder = models / "preprocessors" / "clipseg"
    save_mask_maker(folder)
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "vocab.json").unlink(missing_ok=True)
    with pytest.raises(IncompatibleCheckpoint, match="tokenizer's files"):
        mask_from_words("a cup", photo(), None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependency, match=r"mask\.text: .*gouache\[preprocess\]"):
        mask_from_words("a cup", photo(), None)


def test_what_is_missing_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFound, match="no network that draws it"):
        drawn("depth", photo())
    save_segments(models / "preprocessors" / "few", classes=3)
    with pytest.raises(IncompatibleCheckpoint, match="a network of 3 classes"):
        drawn("segmentation", photo())
    save_depth(models / "preprocessors" / "one")
    save_depth(models / "preprocessors" / "two")
    with pytest.raises(InvalidInput, match="2 networks: one, two"):
        find_preprocessor("depth")
    save_depth(models / "preprocessors" / "depth")
    assert find_preprocessor("depth").name == "depth"
    weights = models / "preprocessors" / "depth" / "model.safetensors"
    torch.save({}, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(IncompatibleCheckpoint, match=r"model\.safetensors"):
        drawn("depth", photo())
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependency, match=r"gouache\[preprocess\]"):
        drawn("depth", photo())
