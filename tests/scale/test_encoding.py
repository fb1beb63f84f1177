"""`gouache data encode` writes what a training reads, and goes on with the shards that are missing."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.errors import ClusterError
from gouache.pipeline.pipeline import untrained_bundle
from gouache.scale.encoding import EncodeWork, packed, unpacked
from gouache.training.batches import store
from gouache.training.config import read_config

if TYPE_CHECKING:
    from tests.scale.conftest import Command, LocalCluster, Run

CONFIG = """
[data]
size = 32
examples = 8
[denoiser]
start = "{start}"
[vae]
start = "{start}"
"""


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A folder with a config and captioned pictures."""
    write_model(bundle_to_write(untrained_bundle()), tmp_path / "model", "diffusers")
    (tmp_path / "config.toml").write_text(CONFIG.format(start=tmp_path / "model"))
    (tmp_path / "pictures").mkdir()
    for i in range(24):
        pixels = np.full((32, 32, 3), 9 * i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text(f"square number {i}" + " and more" * (i % 3))
    return tmp_path


def files(run: Path) -> dict[str, str]:
    """Every file of the stores of a run, with its sha256."""
    found = sorted(path for path in run.glob("encoded-*/*") if path.is_file())
    return {str(path.relative_to(run)): sha256(path.read_bytes()).hexdigest() for path in found}


def encode(run: Run, into: str, *more: str) -> tuple[int, str, str]:
    return run("data", "encode", "pictures", "--config", "config.toml", "--out", into, *more)


def test_what_is_encoded_is_kept_and_what_is_lost_is_made_again(
    training: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SHARD", 8)
    monkeypatch.setattr(store, "BATCH", 4)
    code, out, told = encode(run, "run")
    assert code == 0, told
    whole = files(training / "run")
    assert {Path(name).parent.name for name in whole} == {Path(line).name for line in out.splitlines()}
    lost = sorted(training.glob("run/encoded-*/0*.safetensors"))[0]
    lost.write_bytes(lost.read_bytes()[:-1])
    assert encode(run, "run")[0] == 0
    assert files(training / "run") == whole


def test_a_stage_that_reads_pictures_is_told_so(training: Path, run: Run) -> None:
    code, _, told = encode(run, "run", "--stage", "vae")
    assert code == 2, training
    assert "a stage that trains on the pictures as they are" in told


def test_a_node_without_the_same_data_is_named(training: Path) -> None:
    settings = read_config(training / "config.toml", "denoiser")
    (training / "run").mkdir()
    from gouache.training.run import encode_data

    list(encode_data("denoiser", training / "config.toml", training / "pictures", training / "run"))
    with pytest.raises(ClusterError, match="another data set"):
        EncodeWork("denoiser", settings, training / "run" / "pictures-32", training / "run", 1, "encoded-x", {})


def test_a_batch_travels_whole() -> None:
    import torch

    tensors, captions = {"latents": torch.arange(6.0).reshape(2, 3)}, ["one", "two"]
    data = packed(tensors, captions)
    found, said = unpacked(data)
    assert torch.equal(found["latents"], tensors["latents"])
    assert said == captions


@pytest.mark.slow
def test_a_cluster_encodes_the_same_store(training: Path, run: Run, command: Command, cluster: LocalCluster) -> None:
    assert encode(run, "here")[0] == 0
    on_cluster = ("--config", "config.toml", "--out", "there", "--ray", cluster.address)
    process = command("data", "encode", "pictures", *on_cluster)
    told = process.communicate(timeout=280)[0]
    assert process.returncode == 0, told
    assert files(training / "there") == files(training / "here")
