"""A denoiser of one's own on a finished autoencoder and text encoder, which no stage of the run has trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from gouache.checkpoints.load import load_bundle
from gouache.errors import ConfigError, DataError
from gouache.pipeline.pipeline import shipped_model
from gouache.training.batches.store import text_states
from gouache.training.config import read_config
from gouache.training.pack import pack
from gouache.training.run import train_stage
from gouache.training.stage import Preparing

CONFIG = """
[data]
size = 32
[text]
start = "{text}"
[vae]
start = "{vae}"
[denoiser]
[denoiser.network]
in_channels = 8
out_channels = 8
channels = [8, 16]
layers_per_level = 1
transformer_layers = [0, 1]
heads = [1, 1]
context_width = 384
pooled_width = 384
norm_groups = 4
[denoiser.loop]
batch_size = 4
images = 8
log_images = 8
validate_images = 100000
[denoiser.ema]
lengths = [0.1]
use = 0.1
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} square", encoding="utf-8")
    return folder


def _trained(folder: Path, pictures: Path, *, vae: str = "pocket", text: str = "pocket") -> tuple[Path, list[str]]:
    config = folder / "own.toml"
    config.write_text(CONFIG.format(vae=vae, text=text), encoding="utf-8")
    events = train_stage("denoiser", config, pictures, folder / "run", threads=1)
    return config, [event.note for event in events if isinstance(event, Preparing) and event.note]


def test_the_packed_model_has_the_finished_parts_and_the_run_says_whose_they_are(
    tmp_path: Path, pictures: Path
) -> None:
    config, notes = _trained(tmp_path, pictures)
    shipped = shipped_model()
    assert shipped is not None
    assert f"The autoencoder is that of {shipped}, as vae.start says." in notes
    own = load_bundle(pack(read_config(config, None), tmp_path / "run", tmp_path / "model"), dtype=torch.float32)
    whole = load_bundle(shipped, dtype=torch.float32)
    latents = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(own.vae.decode(latents), whole.vae.decode(latents), rtol=0, atol=5e-3)
    assert (own.vae.config.scale, own.vae.config.shift) == (whole.vae.config.scale, whole.vae.config.shift)
    read, expected = (text_states(bundle.text, ["a red fox"]).context for bundle in (own, whole))
    torch.testing.assert_close(read, expected, rtol=0, atol=5e-3)


def test_a_name_that_no_model_has_is_refused_where_it_is_used(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match=r"poket.*vae\.start"):
        _trained(tmp_path, pictures, vae="poket")
    with pytest.raises(DataError, match=r"nowhere.*text\.start"):
        _trained(tmp_path, pictures, text="nowhere")


def test_a_text_encoder_has_one_origin_and_its_own_length(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(CONFIG.format(vae="pocket", text='pocket"\nfolder = "x'), encoding="utf-8")
    with pytest.raises(ConfigError, match="both folder and start"):
        read_config(path, None)


def test_another_number_of_tokens_is_refused(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ConfigError, match=r"text\.max_tokens.*given 20, expected 40"):
        _trained(tmp_path, pictures, text='pocket"\nmax_tokens = 20 # "')
