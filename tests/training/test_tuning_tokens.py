"""`[tokens] start`: a finished model's quantizer is trained further, and the model packs whole with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.cli.test_train import run_here
from tests.training.test_from_packed import equal, small_model, weights_of
from tests.training.test_tuning_packed import squares, trained

from gouache.checkpoints.formats.safetensors import load_tensors, save_tensors
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import write_model
from gouache.errors import ConfigError, ModelNotFound
from gouache.training.config import read_config
from gouache.training.pack import assemble_bundle
from gouache.training.run import assemble
from gouache.training.stage import Ready
from gouache.training.stage_tables import TOKENS_STAY
from gouache.training.stages.denoiser import DenoiserTraining
from gouache.training.stages.prior import PriorTraining
from gouache.training.state import checkpoints

CONFIG = """
[data]
size = 32
[tokens]
start = "{start}"
[tokens.loop]
batch_size = 4
images = {images}
[tokens.optimizer]
learning_rate = 3e-3
"""
OTHERS = '[prior]\nstart = "{start}"\n[denoiser]\nstart = "{start}"\n'


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packed model in the models folder, where it has the name "small"."""
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "models"))
    return write_model(small_model(), tmp_path / "models" / "small", "gouache")


def test_a_models_quantizer_named_in_a_config_is_trained_and_packs_with_the_model(model: Path, tmp_path: Path) -> None:
    """Through the commands: its decoder learns, the tokens stay, and so do the others but for residual codes."""
    config, run, packed = tmp_path / "mine.toml", tmp_path / "run", tmp_path / "packed"
    config.write_text(CONFIG.format(start="small", images=32))
    code, _, errors = run_here(
        "train", "tokens", "--config", config, "--data", squares(tmp_path / "mine", 5), "--out", run
    )
    assert code == 0, errors
    code, _, errors = run_here("pack", run, packed, "--config", config, "--dtype", "fp32")
    assert code == 0, errors
    before, after = weights_of(model), weights_of(packed)
    assert {name for name in before if not equal(before[name], after[name])} == {"quantizer", "prior"}
    told = {name for name, one in before["prior"].items() if not torch.equal(one, after["prior"][name])}
    assert told == {"recall.residuals"}  # what the old decoder's drafts left
    assert not after["prior"]["recall.residuals"].any()
    changed = {name for name, one in before["quantizer"].items() if not torch.equal(one, after["quantizer"][name])}
    assert changed
    assert not any(name.startswith(TOKENS_STAY) for name in changed)


def test_it_resumes_exactly_and_the_runs_other_stages_draft_with_it(model: Path, tmp_path: Path) -> None:
    data, config = squares(tmp_path / "mine", 5), tmp_path / "config.toml"
    for run, ends in (("whole", [16]), ("parts", [8, 16])):
        for images in ends:
            config.write_text(CONFIG.format(start=model, images=images) + OTHERS.format(start=model))
            trained("tokens", config, data, tmp_path / run)
    whole, parts = (load_tensors(checkpoints(tmp_path / run / "tokens")[-1]) for run in ("whole", "parts"))
    assert equal(whole, parts)
    quantizer, settings = load_tensors(tmp_path / "whole" / "tokens" / "last.safetensors"), read_config(config, None)
    for stage in ("prior", "denoiser"):
        *_, ready = assemble(stage, settings, tmp_path / "whole" / "pictures-32", tmp_path / "whole")
        assert isinstance(ready, Ready)
        assert isinstance(ready.stage, PriorTraining | DenoiserTraining)
        assert ready.stage.quantizer is not None
        assert equal(dict(ready.stage.quantizer.state_dict()), quantizer)
    bundle = assemble_bundle(settings, tmp_path / "whole", "both", settings.defaults)
    assert bundle.quantizer is not None
    assert equal(dict(bundle.quantizer.state_dict()), quantizer)


def test_a_runs_quantizer_is_a_start_too(model: Path, tmp_path: Path) -> None:
    """The file that stage `tokens` left, in a run with the autoencoder that made its latents."""
    data, config = squares(tmp_path / "mine", 5), tmp_path / "config.toml"
    config.write_text(CONFIG.format(start=model, images=8))
    trained("tokens", config, data, tmp_path / "first")
    file = tmp_path / "first" / "tokens" / "last.safetensors"
    more, vae = tmp_path / "more.toml", load_bundle(model, dtype=torch.float32).vae
    more.write_text(CONFIG.format(start=file, images=8))
    metadata = {"component": "vae", "config": vae.config.to_json()}
    (tmp_path / "second" / "vae").mkdir(parents=True)
    save_tensors(tmp_path / "second" / "vae" / "last.safetensors", dict(vae.state_dict()), metadata)
    trained("tokens", more, data, tmp_path / "second")
    after = load_tensors(tmp_path / "second" / "tokens" / "last.safetensors")
    before = load_tensors(file)
    assert after.keys() == before.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])}
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith(TOKENS_STAY))


def test_what_would_break_the_models_prior_or_has_no_quantizer_is_refused(model: Path, tmp_path: Path) -> None:
    data, config = squares(tmp_path / "mine", 5), tmp_path / "config.toml"
    config.write_text(CONFIG.format(start=model, images=8).replace("[tokens.loop]", "freeze = []\n[tokens.loop]"))
    with pytest.raises(ConfigError, match=r"tokens.freeze: given \[\], expected .*the prior of .*small draws"):
        trained("tokens", config, data, tmp_path / "run")
    config.write_text(CONFIG.format(start="smal", images=8))
    with pytest.raises(ModelNotFound, match=r"model 'smal'.*small"):
        trained("tokens", config, data, tmp_path / "run")
    config.write_text(CONFIG.format(start=model, images=8) + "[tokens.network]\nlatent_channels = 4\nlatent_size = 8\n")
    with pytest.raises(ConfigError, match="both or neither of network and start"):
        trained("tokens", config, data, tmp_path / "run")
