"""What is drawn for the loss of latent diffusion, and how errors count: by closed forms and by other tools' recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from PIL import Image

from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.diffusion.betas import alphas_cumprod_of, betas_of, scaled_linear_betas
from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.errors import ConfigError
from gouache.models.configs import DenoiserConfig
from gouache.pipeline.pipeline import Pipeline, untrained_bundle
from gouache.pipeline.request import Request
from gouache.training.config import read_config
from gouache.training.denoising import pyramid
from gouache.training.loop import TrainingProgress
from gouache.training.pack import pack
from gouache.training.run import train_stage
from gouache.training.stage import BatchNoise, Stage
from gouache.training.stage_tables import DenoiserStage
from gouache.training.stages.denoiser import DenoiserTraining
from gouache.training.state import checkpoints

MakeStage = Callable[..., Stage[Any]]


def test_pyramid_noise_belongs_to_its_picture_and_favours_what_is_coarse() -> None:
    numbers = list(range(12))
    noise = BatchNoise(5, numbers)
    eps = noise.normal("eps", (4, 32, 24))
    added = pyramid(eps, noise, 8, 0.5)
    alone = pyramid(eps[3:4], BatchNoise(5, [3]), 8, 0.5)
    assert torch.equal(added[3:4], alone)
    assert torch.allclose(added.flatten(1).std(1), torch.ones(12), atol=1e-6)

    def coarse(values: torch.Tensor) -> float:
        """Variance of means over 8 x 8 pixels, 1 / 64 for white noise."""
        return float(torch.nn.functional.avg_pool2d(values, 8).var())

    assert coarse(eps) == pytest.approx(1 / 64, rel=0.3)
    assert coarse(added) > 4 / 64
    assert len({float(value) for value in (added - eps).flatten(1).std(1)}) == 12, "each drew grids of its own"


def test_pyramid_noise_without_grids_or_room_for_them_is_the_plain_noise() -> None:
    noise = BatchNoise(5, [1, 2])
    eps = noise.normal("eps", (4, 8, 8))
    scale = eps.flatten(1).std(1).view(-1, 1, 1, 1)
    assert torch.equal(pyramid(eps, noise, 0, 0.5), eps / scale)
    row = noise.normal("eps", (4, 1, 8))
    assert torch.equal(pyramid(row, noise, 5, 0.5), row / row.flatten(1).std(1).view(-1, 1, 1, 1))


def test_pyramid_noise_is_drawn_in_training_only(make_stage: MakeStage) -> None:
    plain, coarse = make_stage("denoiser"), make_stage("denoiser", pyramid_levels=4)
    assert not torch.equal(plain.batch(range(4))["eps"], coarse.batch(range(4))["eps"])
    with torch.no_grad():
        assert plain.validate(plain.trained) == coarse.validate(plain.trained)


def test_a_picture_from_its_draft_is_on_the_straight_way_from_it(make_stage: MakeStage) -> None:
    """At the start's level the network sees the draft and the noise and nothing of the picture; below, the share that
    the level has of the start's."""
    stage = make_stage("denoiser", draft_start=0.4, draft_dropout=0.0, draft_noise=0.0)
    assert isinstance(stage, DenoiserTraining)
    batch: dict[str, torch.Tensor] = stage.batch(range(64))
    seen: list[torch.Tensor] = []
    stage.trained.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with torch.no_grad():
        stage.denoising.errors(stage.trained, batch)
    draft, sigma, chosen = stage.denoising.draft(batch), batch["sigma"].float(), batch["from_draft"]
    assert draft is not None
    assert 0.6 < float(chosen.float().mean()) < 0.95
    assert float(sigma[chosen].max()) == pytest.approx(0.4)
    assert 0.05 < float((sigma[chosen] > 0.3999).float().mean()) < 0.35
    noised = seen[0] * (1 + sigma**2).sqrt().view(-1, 1, 1, 1)
    share = torch.where(chosen, sigma / 0.4, torch.zeros_like(sigma)).view(-1, 1, 1, 1)
    expected = batch["x0"] + share * (draft - batch["x0"]) + sigma.view(-1, 1, 1, 1) * batch["eps"]
    torch.testing.assert_close(noised, expected, atol=1e-5, rtol=1e-4)


def test_what_was_drawn_without_a_start_on_the_draft_is_drawn_as_before(make_stage: MakeStage) -> None:
    plain, started = make_stage("denoiser").batch(range(8)), make_stage("denoiser", draft_start=0.4).batch(range(8))
    others = ~started["from_draft"]
    assert "from_draft" not in plain
    assert torch.equal(plain["sigma"][others], started["sigma"][others])
    assert torch.equal(plain["keep_draft"], started["keep_draft"])
    assert not bool((started["from_draft"] & ~started["keep_draft"]).any())


def test_the_loss_takes_the_shape_that_is_asked_for(make_stage: MakeStage) -> None:
    """At equal weights: a vast c makes squares of all errors, a tiny one lengths."""
    batch = make_stage("denoiser").batch(range(4))

    def losses(**changes: Any) -> dict[str, float]:
        stage = make_stage("denoiser", **changes)
        return {name: float(value.detach()) for name, value in stage(batch).items()}

    squares = losses()
    assert losses(loss="huber", huber_c=1e3) == pytest.approx(squares, rel=1e-3)
    lengths = losses(loss="smooth_l1", huber_c=1e-6)
    assert lengths["mse"] == squares["mse"]
    assert lengths["loss"] < 2 * squares["mse"] ** 0.5, "the mean of lengths is below the root of the mean square"


@pytest.mark.parametrize(("kind", "schedule"), [("eps", "scaled_linear"), ("flow", "flow"), ("v", "ve")])
def test_no_zero_terminal_snr_where_the_last_level_says_nothing(kind: str, schedule: str, tmp_path: Path) -> None:
    values = {"parameterization": kind, "schedule": {"name": schedule}}
    bundle = replace(untrained_bundle(), denoiser_config=DenoiserConfig.from_dict(values))
    start = write_model(bundle_to_write(bundle), tmp_path / "model", "gouache")
    (tmp_path / "config.toml").write_text(CONFIG.format(start=start))
    with pytest.raises(ConfigError, match=rf"denoiser\.zero_terminal_snr.*predicts {kind}.*noise_offset"):
        list(train_stage("denoiser", tmp_path / "config.toml", pictures(tmp_path / "data"), tmp_path / "run"))


def test_from_random_weights_the_schedule_itself_says_it() -> None:
    with pytest.raises(ConfigError, match=r"\[denoiser\.denoiser\.schedule\]"):
        DenoiserStage.from_dict({"network": {"context_width": 8}, "zero_terminal_snr": True})


CONFIG = """
[data]
size = 32
[denoiser]
start = "{start}"
zero_terminal_snr = true
prompts = ["grey number 4"]
gradient_checkpointing = true
[denoiser.loop]
batch_size = 4
images = 8
log_images = 4
[denoiser.optimizer]
accumulation = 2
"""


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for i in range(5):
        Image.fromarray(np.full((32, 32, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"grey number {i}")
    return folder


def test_a_tuning_with_zero_terminal_snr_is_packed_with_its_schedule(tmp_path: Path) -> None:
    """From a published layout, with checkpointing and accumulation, in two sessions."""
    bundle = replace(untrained_bundle(), denoiser_config=DenoiserConfig(parameterization="v"))
    start = write_model(bundle_to_write(bundle), tmp_path / "model", "diffusers")
    config, data = tmp_path / "config.toml", pictures(tmp_path / "data")
    config.write_text(CONFIG.format(start=start))
    first = list(train_stage("denoiser", config, data, tmp_path / "run", minutes=1e-9))
    assert isinstance(first[-1], TrainingProgress)
    assert first[-1].images_seen == 4, "the minutes end a run after the whole step, parts and all"
    list(train_stage("denoiser", config, data, tmp_path / "run"))
    assert checkpoints(tmp_path / "run" / "denoiser")[-1].stem == f"{8:012d}"
    packed = pack(read_config(config, "denoiser"), tmp_path / "run", tmp_path / "tuned", dtype="fp32")
    tuned = load_bundle(packed)
    assert tuned.denoiser_config.schedule.zero_terminal_snr
    theirs = rescale_zero_terminal_snr(scaled_linear_betas(1000).float()).double()
    schedule = make_noise_schedule(**tuned.denoiser_config.schedule.model_dump())
    ours = 1 / (1 + schedule.index_to_sigma(torch.arange(999, dtype=torch.float64)) ** 2)
    assert torch.allclose(ours, alphas_cumprod_of(theirs)[:999], atol=1e-5)
    assert torch.allclose(betas_of(ours), theirs[:999], atol=1e-4)
    painted = Pipeline(tuned).paint(Request(prompt="grey", seed=1, num_inference_steps=2, width=64, height=64))
    assert painted[0].image.size == (64, 64)
    sheets = sorted((tmp_path / "run" / "denoiser" / "prompts").iterdir())
    assert [path.stem for path in sheets] == [f"{4:012d}", f"{8:012d}"]
    with Image.open(sheets[-1]) as sheet:
        shown = np.asarray(sheet)
    request = Request(prompt="grey number 4", seed=0, num_inference_steps=20, width=32, height=32)
    alone = np.asarray(Pipeline(tuned).paint(request)[0].image)
    assert abs(alone.astype(int) - shown).max() <= 1, "as the result paints"
