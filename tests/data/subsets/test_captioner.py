"""Captions by a small BLIP with random weights, as transformers writes it; transformers alone is the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor
from typer.testing import CliRunner

from gouache.cli.data import data
from gouache.data.readers import ReadReport, read_pictures
from gouache.data.subsets.captioner import captioners
from gouache.errors import DataError, IncompatibleCheckpoint, ModelNotFound

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[DEC]",
    "[ENC]",
    "a",
    "red",
    "blue",
    "dog",
    "cat",
    "on",
    "the",
    "green",
    "field",
    "ball",
    "sky",
]


def save_blip(folder: Path) -> tuple[Any, Any]:
    """A small BLIP with its processor."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    words = BertTokenizer(str(folder / "vocab.txt"))
    layers = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **layers,
        "encoder_hidden_size": 32,
        "vocab_size": len(WORDS),
        "projection_dim": 16,
        "bos_token_id": WORDS.index("[DEC]"),
        "eos_token_id": WORDS.index("[SEP]"),
        "sep_token_id": WORDS.index("[SEP]"),
        "pad_token_id": 0,
        "max_position_embeddings": 64,
    }
    config = BlipConfig(
        text_config=text, vision_config={**layers, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(5)
        network = BlipForConditionalGeneration(config).eval()
    for parameter in network.parameters():
        parameter.data *= 4  # so that pictures matter
    network.save_pretrained(folder)
    processor = BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), words)
    processor.save_pretrained(folder)
    return network, processor


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "masks").mkdir(parents=True)
    for number, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (40, 30), colour).save(folder / f"{number}.png")
    Image.new("RGB", (40, 30), "white").save(folder / "masks" / "0.png")
    (folder / "1.txt").write_text("mine\n")
    (folder / "broken.png").write_bytes(b"nothing")
    return folder


def told(*arguments: str) -> dict[str, Any]:
    answer = CliRunner().invoke(data, ["caption", *arguments, "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def test_pictures_without_a_caption_get_the_one_that_transformers_gives(models: Path, pictures: Path) -> None:
    network, processor = save_blip(models / "captioners" / "blip-small")
    assert list(captioners()) == ["blip-small"]
    found = told(str(pictures), "--model", "blip-small", "--prefix", "sks,")
    expected = {}
    for name in ("0.png", "2.png"):
        inputs = processor(images=Image.open(pictures / name).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            tokens = network.generate(**inputs, max_new_tokens=40, do_sample=False)
        expected[name] = f"sks, {processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()}"
    assert all(len(text) > len("sks, ") for text in expected.values())
    assert found["written"] == expected
    assert (found["kept"], [one["key"] for one in found["skipped"]]) == (1, ["broken.png"])
    assert (pictures / "1.txt").read_text() == "mine\n"
    assert not list((pictures / "masks").glob("*.txt"))
    captions = {one.key: one.captions[0] for one in read_pictures(pictures, ReadReport())}
    assert captions == {**expected, "1.png": "mine"}
    assert told(str(pictures), "--model", "blip-small")["kept"] == 3
    again = told(str(pictures), "--model", str(models / "captioners" / "blip-small"), "--force")
    assert set(again["written"]) == {"0.png", "1.png", "2.png"}
    assert (pictures / "1.txt").read_text() != "mine\n"


def test_what_cannot_describe_is_refused(models: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="BlipForConditionalGeneration"):
        told(str(pictures), "--model", "blip")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    with pytest.raises(IncompatibleCheckpoint, match="CLIPModel"):
        told(str(pictures), "--model", str(tmp_path / "other"))
    (tmp_path / "other" / "config.json").write_text('{"architectures": ["BlipForConditionalGeneration"]}')
    with pytest.raises(IncompatibleCheckpoint):
        told(str(pictures), "--model", str(tmp_path / "other"))
    save_blip(models / "blip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture"):
        told(str(tmp_path / "empty"), "--model", "blip")
    (pictures / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}')
    with pytest.raises(DataError, match="no table of captions"):
        told(str(pictures), "--model", "blip")
    assert np.asarray(Image.open(pictures / "0.png")).any()
