"""Pictures of several shapes: batches of one shape each, the latents' store, exact resume, and what wants squares."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.data.buckets import make_buckets
from gouache.data.packed import PackedPictures, pack_pictures
from gouache.data.readers import ReadReport
from gouache.errors import DataError
from gouache.pipeline.inputs.tensors import rgba_to_tensor
from gouache.training.batches.batch_shapes import Bucketed, batches_of_one_shape, shown
from gouache.training.batches.sources import open_sources
from gouache.training.batches.store import EncodedStore
from gouache.training.config import DataConfig
from gouache.training.inputs import load_vae
from gouache.training.loop import TrainingProgress
from gouache.training.run import train_stage
from gouache.training.state import checkpoints

COUNTS = {(2, 3): 5, (4, 4): 9, (3, 2): 2}
SHAPES = [shape for shape, count in COUNTS.items() for _ in range(count)]
CONFIG = """
[data]
size = 32
examples = 96
[vae.network]
image_channels = 3
latent_channels = 4
channels = [8, 16]
layers_per_level = 1
norm_groups = 4
patch_size = 2
middle_attention = false
[clip]
image_channels = [16, 32]
train_text = "all"
chinese = false
embedding_dim = 16
[clip.text]
width = 24
inner_width = 48
layers = 1
heads = 2
[tokens.network]
latent_channels = 4
latent_size = 8
features = 8
width = 16
blocks = 1
levels = [5, 5]
scales = [1, 2, 4]
[denoiser.network]
in_channels = 4
out_channels = 4
channels = [8, 16]
layers_per_level = 1
transformer_layers = [0, 1]
heads = [2, 2]
context_width = 384
norm_groups = 4
"""
LOOP = """
[{0}.loop]
batch_size = 4
images = {1}
log_images = 8
validate_images = 100000
"""


class Known:
    """Items that say their shapes."""

    shapes = SHAPES


def test_every_batch_has_one_shape_and_every_item_its_turn() -> None:
    order = Bucketed(SHAPES, 4, seed=3)
    seen = Counter[int]()
    for k in range(2000):
        numbers = order.numbers(range(4 * k, 4 * k + 4))
        assert len({SHAPES[number] for number in numbers}) == 1
        seen.update(numbers)
    # 500 times each on average; shapes are drawn at random, so about 10 % off for the rarest.
    assert set(seen) == set(range(16))
    assert all(350 < count < 650 for count in seen.values()), seen


def test_the_order_is_a_function_of_seed_and_place() -> None:
    whole = Bucketed(SHAPES, 4, seed=3).numbers(range(40, 80))
    late, other = Bucketed(SHAPES, 4, seed=3), Bucketed(SHAPES, 4, seed=4)
    assert late.numbers(range(60, 80)) == whole[20:]
    assert late.numbers(range(40, 60)) == whole[:20]
    assert other.numbers(range(40, 80)) != whole


def test_finite_sets_come_shape_by_shape() -> None:
    batches = list(batches_of_one_shape(Known(), 16, 4))
    assert sorted(number for batch in batches for number in batch) == list(range(16))
    assert all(len({SHAPES[number] for number in batch}) == 1 for batch in batches)
    assert [SHAPES[number] for number in shown(Known(), 16, 6)] == [(4, 4)] * 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures of three shapes."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    for i in range(60):
        size = ((40, 24), (32, 32), (24, 40))[i % 3]
        pixels = np.full((*size, 3), 4 * i, np.uint8)
        pixels[8:16, 8:16] = (255, 2 * i, 0)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"square number {i}")
    list(pack_pictures(folder / "pictures", folder / "set", make_buckets(32, step=8), ReadReport()))
    assert len(PackedPictures.open(folder / "set").buckets) == 3
    return folder / "set"


def trained(stage: str, data: Path, run: Path, images: int) -> TrainingProgress:
    """Train a stage to so many images; its last step."""
    config = run.parent / f"{run.name}.toml"
    config.write_text(CONFIG + LOOP.format(stage, images))
    *_, last = train_stage(stage, config, data, run)
    assert isinstance(last, TrainingProgress)
    return last


@pytest.mark.slow
def test_autoencoder_and_denoiser_learn_from_buckets_and_resume(data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trained("vae", data, whole, 24)
    for images in (12, 24):
        trained("vae", data, parts, images)
    last = trained("denoiser", data, whole, 24)
    assert last.figures["mse"] > 0
    (parts / "vae" / "last.safetensors").write_bytes((whole / "vae" / "last.safetensors").read_bytes())
    for images in (12, 24):
        trained("denoiser", data, parts, images)
    for stage in ("vae", "denoiser"):
        one, two = (load_tensors(checkpoints(run / stage)[-1]) for run in (whole, parts))
        assert all(torch.equal(one[name], two[name]) for name in one), stage
    check_store(data, whole)


def check_store(data: Path, run: Path) -> None:
    """The training examples' latents are those of the pictures, each in its own shape."""
    source = open_sources(data, DataConfig.from_dict(tomllib.loads(CONFIG)["data"])).every
    assert source is not None
    count = len(source)
    stores = [EncodedStore(folder, count) for folder in run.glob("encoded-*") if holds(folder, count)]
    assert len(stores) == 1
    assert {(10, 6), (8, 8), (6, 10)} == set(stores[0].shapes)
    vae = load_vae(run / "vae" / "last.safetensors")
    for number in (0, 20, 40, count - 1):
        picture = rgba_to_tensor(source.examples([number]).pictures)[:, :3]
        with torch.no_grad():
            wanted = vae.normalise(vae.encode(picture).mode())
        assert torch.allclose(stores[0].latents([number]), wanted, atol=2e-3)
    with pytest.raises(DataError, match="one shape a batch"):
        stores[0].latents(range(count))


def holds(folder: Path, count: int) -> bool:
    tensors = load_tensors(folder / "000000000.safetensors")
    return len(tensors["offsets"]) == count + 1


def test_the_towers_learn_from_buckets_and_resume(data: Path, tmp_path: Path) -> None:
    last = trained("clip", data, tmp_path / "whole", 24)
    assert last.figures["score"] > 0
    for images in (12, 24):
        trained("clip", data, tmp_path / "parts", images)
    one, two = (load_tensors(checkpoints(tmp_path / run / "clip")[-1]) for run in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_grid_of_tokens_wants_squares(data: Path, tmp_path: Path) -> None:
    trained("vae", data, tmp_path / "run", 4)
    with pytest.raises(DataError, match=r"stage tokens.*one square size"):
        trained("tokens", data, tmp_path / "run", 4)


def test_batches_that_straddle_two_shapes_are_refused(data: Path) -> None:
    source = open_sources(data, DataConfig(size=32), batch=4).train
    shapes = [source.examples(range(4 * k, 4 * k + 4)).pictures.shape for k in range(8)]
    turn = next(k for k in range(7) if shapes[k] != shapes[k + 1])
    with pytest.raises(DataError, match="batch_size"):
        source.examples(range(4 * turn + 2, 4 * turn + 6))
