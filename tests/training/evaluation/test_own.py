"""`gouache eval` and `gouache card` on anyone's pictures, with a published CLIP as the judge, and without a judge."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.training.test_from_packed import small_model
from tests.training.test_tuning_packed import squares
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel
from typer.testing import CliRunner

from gouache.checkpoints.save import write_model
from gouache.cli.main import app
from gouache.data.buckets import Bucket
from gouache.data.packed import PackedPictures, pack_pictures
from gouache.data.readers import ReadReport
from gouache.errors import CheckpointError, DataError, InvalidInput
from gouache.models.configs import GenerationDefaults
from gouache.training.evaluation.judge import ClipJudge, open_instrument
from gouache.training.evaluation.own import groups_of, packed_at


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small packed model that paints 32 x 32 in two steps."""
    defaults = GenerationDefaults(width=32, height=32, num_inference_steps=2, sampler="dpmpp_2m", schedule="karras")
    whole = replace(small_model(), defaults=defaults)
    return write_model(whole, tmp_path_factory.mktemp("model") / "small", "gouache")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published CLIP's folder, but for its size and its random weights."""
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**width, "eos_token_id": 49407},
        vision_config={**width, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    return folder


def run(*arguments: str | Path) -> tuple[str, BaseException | None]:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    return result.output, result.exception


def test_a_plain_folder_is_measured_without_a_judge(model: Path, tmp_path: Path) -> None:
    data = squares(tmp_path / "mine", 5)
    written, sheet = tmp_path / "eval.json", tmp_path / "eval.png"
    command = ("eval", model, "--data", data, "--json", written, "--sheet", sheet, "--runs", "0")
    said, failed = run(*command)
    assert failed is None, said
    assert "they need --judge" in said
    assert "none was held out" in said
    found = json.loads(written.read_text())
    names = {(figure["name"], figure["group"]) for figure in found["figures"]}
    assert {("vae_psnr_db", "all"), ("diffusion_bits_per_dim", "all"), ("prior_bits_per_token", "all")} <= names
    assert not any("retrieval" in name for name, _ in names)
    with Image.open(sheet) as shown:
        assert shown.height > 5 * 32
    card, failed = run("card", model, "--data", data, "--eval", written)
    assert failed is None, card
    text = (model / "README.md").read_text()
    assert "5 pictures of one's own" in text
    assert "vae_psnr_db" in text
    assert "goal" not in text, "goals are the shipped model's"
    assert not (model / "CREDITS.md").exists()
    (model / "README.md").unlink()


def test_with_a_clip_captions_are_scored_and_pictures_compared(model: Path, clip: Path, tmp_path: Path) -> None:
    squares(tmp_path / "mine", 6)
    list(pack_pictures(tmp_path / "mine", tmp_path / "set", [Bucket(32, 32)], ReadReport()))
    command = ("eval", model, "--data", tmp_path / "set", "--judge", clip, "--runs", "0", "--steps", "1,2")
    said, failed = run(*command, "--json", tmp_path / "eval.json", "--sheet", tmp_path / "eval.png")
    assert failed is None, said
    figures = json.loads((tmp_path / "eval.json").read_text())["figures"]
    for name in ("caption_score", "retrieval_at_1", "retrieval_at_5"):
        assert [figure["steps"] for figure in figures if figure["name"] == name] == [None, 1, 2]
    assert [figure["steps"] for figure in figures if figure["name"] == "kid"] == [1, 2]
    assert all(-1 <= figure["value"] <= 1 for figure in figures if figure["name"] == "caption_score")


def test_clips_vectors_are_those_of_transformers(clip: Path) -> None:
    judge = open_instrument(clip)
    assert isinstance(judge, ClipJudge)
    assert len(judge.sha256) == 64
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 4), np.uint8)
    pixels[..., 3] = 255
    theirs = CLIPModel.from_pretrained(clip).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    images = [Image.fromarray(np.ascontiguousarray(one[..., :3])) for one in pixels]
    ids = torch.full((2, 77), 49407)
    ids[0, :3], ids[1, :4] = torch.tensor([49406, 320, 2368]), torch.tensor([49406, 320, 736, 1615])
    with torch.no_grad():
        found = theirs(pixel_values=processor(images=images, return_tensors="pt")["pixel_values"], input_ids=ids)
    assert torch.allclose(judge.pictures(pixels), found.image_embeds, atol=1e-5)
    assert torch.allclose(judge.captions(["a cat", "A red  car"]), found.text_embeds, atol=1e-5)
    large = np.repeat(np.repeat(pixels, 4, 1), 4, 2)
    similar = (judge.pictures(large) * judge.pictures(pixels)).sum(1)
    assert bool((similar > 0.9).all()), "pictures of another size are brought to its own"


def test_many_pictures_are_split_as_a_training_splits_them(tmp_path: Path) -> None:
    squares(tmp_path / "mine", 60)
    list(pack_pictures(tmp_path / "mine", tmp_path / "set", [Bucket(32, 32)], ReadReport()))
    with packed_at(tmp_path / "set", 32, 32) as pictures:
        assert pictures.folder == tmp_path / "set", "a set of that size is read as it is"
        groups, reference = groups_of(pictures, 20, 0)
        held_out = PackedPictures.open(tmp_path / "set").indices("held_out")
    assert [group.name for group in groups] == ["held_out", "seen"]
    assert len(groups[0].captions) == min(20, len(held_out))
    assert set(reference.tolist()).isdisjoint(held_out.tolist())
    with packed_at(tmp_path / "set", 16, 16) as smaller:
        assert smaller.buckets == (Bucket(16, 16),)


def test_what_is_missing_is_named(model: Path, clip: Path, tmp_path: Path) -> None:
    data = squares(tmp_path / "mine", 2)
    assert isinstance(run("eval", model, "--data", tmp_path / "nothing")[1], DataError)
    assert isinstance(run("eval", model, "--data", data, "--bf16")[1], InvalidInput)
    (tmp_path / "other").mkdir()
    assert isinstance(run("eval", model, "--data", data, "--judge", tmp_path / "other")[1], CheckpointError)
    broken = shutil.copytree(clip, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    assert isinstance(run("eval", model, "--data", data, "--judge", broken)[1], CheckpointError)
