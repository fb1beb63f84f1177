"""All five stages on a few pictures, from files to a painted picture, by what the command line calls."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gouache.data.buckets import Bucket
from gouache.data.packed import pack_pictures
from gouache.data.readers import ReadReport
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request
from gouache.training.config import read_config
from gouache.training.loop import TrainingProgress
from gouache.training.pack import pack
from gouache.training.run import train_stage

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (240, 210, 60)}
CONFIG = """
[data]
size = 32
examples = 64
[text]
max_tokens = 12

[vae]
kl = 1e-5
[vae.network]
image_channels = 4
latent_channels = 4
channels = [16, 32]
layers_per_level = 1
norm_groups = 8
patch_size = 4
middle_attention = false
scale = 1.0

[clip]
embedding_dim = 32
image_channels = [8, 16]

[tokens.network]
latent_channels = 4
latent_size = 4
features = 8
width = 32
blocks = 1
levels = [5, 5, 5]
scales = [1, 2, 4]

[prior.network]
vocabulary = 125
groups = [1, 4, 16]
turns = [1, 4, 4]
neighbours = 3
features = 8
width = 48
depth = 2
heads = 4

[denoiser.network]
in_channels = 4
draft_channels = 4
out_channels = 4
channels = [32, 48]
layers_per_level = 1
transformer_layers = [0, 1]
heads = [2, 2]
context_width = 384
pooled_width = 384
norm_groups = 8
"""
IMAGES = {"vae": 3200, "clip": 32, "tokens": 1600, "prior": 2400, "denoiser": 4000}
A_FEW = dict.fromkeys(IMAGES, 16)
TABLES = """
[{0}.loop]
batch_size = 8
images = {1}
log_images = 400
validate_images = 100000
[{0}.optimizer]
learning_rate = 3e-3
warmup_images = 160
[{0}.ema]
lengths = [0.1]
use = 0.1
"""


def captioned_folder(folder: Path) -> Path:
    """Thirty-two pictures with captions, as people keep them."""
    folder.mkdir()
    lines = []
    for name, colour in COLOURS.items():
        for shape, radius in itertools.product(("square", "disc"), (10, 11, 12, 13)):
            y, x = np.mgrid[:32, :32] - 15.5
            picture = np.zeros((32, 32, 4), np.uint8)
            inside = np.maximum(abs(y), abs(x)) < radius if shape == "square" else y**2 + x**2 < radius**2
            picture[inside] = (*colour, 255)
            file = f"{name}-{shape}-{radius}.png"
            Image.fromarray(picture).save(folder / file)
            lines.append(json.dumps({"file_name": file, "text": f"a {name} {shape}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def trained_and_packed(folder: Path, images: dict[str, int]) -> Pipeline:
    """Every stage after the other on so many images, packed and loaded."""
    data, run, config = folder / "data", folder / "run", folder / "config.toml"
    config.write_text(CONFIG + "".join(TABLES.format(stage, images[stage]) for stage in images))
    list(pack_pictures(captioned_folder(folder / "pictures"), data, [Bucket(32, 32)], ReadReport()))
    for stage, number in images.items():
        *_, last = train_stage(stage, config, data, run)
        assert isinstance(last, TrainingProgress)
        assert last.images_seen == number
    return Pipeline.load(pack(read_config(config, "denoiser"), run, folder / "model", dtype="fp32"))


def test_five_stages_end_in_a_model_that_paints(tmp_path: Path) -> None:
    pipeline = trained_and_packed(tmp_path, A_FEW)
    assert pipeline.bundle.prior is not None
    assert pipeline.bundle.quantizer is not None
    (painted,) = pipeline.paint(Request(prompt="a red square", seed=1, num_inference_steps=2))
    assert painted.image.convert("RGBA").size == (32, 32)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_stages_from_a_folder_of_pictures_to_a_painted_one(tmp_path: Path) -> None:
    pipeline = trained_and_packed(tmp_path, IMAGES)
    for name, colour in COLOURS.items():
        painted = pipeline.paint(Request(prompt=f"a {name} square", seed=1))[0]
        picture = np.asarray(painted.image.convert("RGBA")).astype(float)
        assert picture.shape == (32, 32, 4)
        middle, corners = picture[10:22, 10:22], picture[[0, 0, -1, -1], [0, -1, 0, -1]]
        shown = middle[..., :3].mean((0, 1))
        nearest = min(COLOURS, key=lambda n: float(np.abs(shown - COLOURS[n]).sum()))
        assert nearest == name, f"asked for {name}, painted {shown.round()}"
        assert middle[..., 3].mean() > 200, f"the middle of the {name} square is transparent, {colour} was asked for"
        assert corners[..., 3].mean() < 60, "the ground should be transparent"
