"""Every stage can learn eight examples by heart, and its batches are pure functions of their numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.diffusion.noise_schedule import alpha_and_std
from gouache.errors import ConfigError
from gouache.training.batches.encoded import Shuffled
from gouache.training.loop import train
from gouache.training.stage import BatchNoise, Stage
from gouache.training.stages.denoiser import DenoiserTraining
from gouache.training.stages.prior import PriorTraining
from gouache.training.state import checkpoints

MakeStage = Callable[..., Stage[Any]]
NAMES = ("vae", "tokens", "prior", "denoiser")
FAST = {"learning_rate": 4e-3, "warmup_images": 64, "weight_decay": 0.0}


def over_fit(make_stage: MakeStage, name: str, run: Path, images: int, **changes: Any) -> dict[str, float]:
    """Train on 8 examples and return the last validation, which here is on the same 8."""
    loop = {"batch_size": 8, "images": images, "validate_images": images, "log_images": 800, "channels_last": False}
    stage = make_stage(name, loop=loop, optimizer=FAST, ema={"lengths": (0.05,), "use": 0.05}, **changes)
    *_, last = train(stage, stage.config, run)
    figures: dict[str, float] = last.figures
    return figures


def test_twenty_steps_on_eight_pictures_help(make_stage: MakeStage, tmp_path: Path) -> None:
    one, twenty = (over_fit(make_stage, "vae", tmp_path / str(steps), 8 * steps)["psnr"] for steps in (1, 20))
    assert twenty > one + 1


@pytest.mark.parametrize(("name", "figure"), [("tokens", "mse"), ("prior", "bits_per_token"), ("denoiser", "mse")])
def test_twenty_steps_on_eight_examples_help(name: str, figure: str, make_stage: MakeStage, tmp_path: Path) -> None:
    one, twenty = (over_fit(make_stage, name, tmp_path / str(steps), 8 * steps)[figure] for steps in (1, 20))
    assert twenty < 0.9 * one


def test_with_its_codes_held_the_quantizer_trains_its_decoder_and_every_picture_keeps_its_tokens(
    make_stage: MakeStage,
) -> None:
    held = ("encoder", "to_code", "from_code")
    stage = make_stage("tokens", freeze=held)
    batch = stage.batch(range(8))
    before = stage.trained.encode(batch["latents"])
    optimizer = torch.optim.AdamW((p for p in stage.trained.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = stage(batch)["loss"]
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert torch.equal(stage.trained.encode(batch["latents"]), before)
    for name, parameter in stage.trained.named_parameters():
        assert (parameter.grad is None) == name.startswith(held), name


@pytest.mark.slow
def test_the_autoencoder_learns_eight_pictures(make_stage: MakeStage, tmp_path: Path) -> None:
    assert over_fit(make_stage, "vae", tmp_path, 2400, kl=1e-6)["psnr"] > 22


@pytest.mark.slow
def test_the_quantizer_learns_eight_latents(make_stage: MakeStage, tmp_path: Path) -> None:
    assert over_fit(make_stage, "tokens", tmp_path, 2400, scale_dropout=0.0)["mse"] < 0.08


@pytest.mark.slow
def test_the_prior_learns_eight_token_grids(make_stage: MakeStage, tmp_path: Path) -> None:
    figures = over_fit(make_stage, "prior", tmp_path, 1600, token_noise=0.0, caption_dropout=0.0)
    assert figures["bits_per_token"] < 0.25
    # Eight equally likely pictures: without text 3 bits a picture are the least there can be; here text decides.
    assert figures["bits_per_token_without_text"] > figures["bits_per_token"]


@pytest.mark.slow
def test_a_prior_that_remembers_draws_what_it_never_trained_on(
    make_remembering: Callable[..., PriorTraining], tmp_path: Path
) -> None:
    loop = {"batch_size": 8, "images": 1600, "validate_images": 1600, "log_images": 800}
    stage = make_remembering(
        token_noise=0.0,
        caption_dropout=0.0,
        hidden_recall=0.0,
        loop=loop,
        optimizer=FAST,
        ema={"lengths": (0.05,), "use": 0.05},
    )
    *_, last = train(stage, stage.config, tmp_path)
    assert last.figures["bits_per_token"] < 1
    stage.trained.recall = None  # without its memory it knows nothing of them
    with torch.no_grad():
        assert stage.validate(stage.trained)["bits_per_token"] > 4


def test_a_memory_no_larger_than_what_is_recalled_is_refused(make_remembering: Callable[..., PriorTraining]) -> None:
    with pytest.raises(ConfigError, match=r"neighbours.*16 of 16 pictures.*fewer"):
        make_remembering(neighbours=16)


@pytest.mark.slow
def test_the_denoiser_learns_eight_latents(make_stage: MakeStage, tmp_path: Path) -> None:
    figures = over_fit(make_stage, "denoiser", tmp_path, 2400, caption_dropout=0.0)
    assert figures["mse"] < 0.2
    assert figures["mse_with_draft"] < 0.2


UNET = {
    "in_channels": 4,
    "draft_channels": 4,
    "out_channels": 8,
    "channels": (16, 32),
    "layers_per_level": 1,
    "transformer_layers": (0, 1),
    "heads": (2, 2),
    "context_width": 12,
    "pooled_width": 12,
    "norm_groups": 8,
}


def test_learned_variance_moves_the_variance_and_leaves_the_mean_alone(make_stage: MakeStage) -> None:
    stage = make_stage("denoiser", network=UNET, denoiser={"parameterization": "eps", "learned_variance": True})
    batch = stage.batch(range(4))
    losses = stage(batch)
    assert losses["loss"] > losses["mse"]
    torch.autograd.backward(losses["loss"] - losses["mse"])
    out = stage.trained.conv_out.weight.grad
    assert out is not None
    # L_vlb reaches the second half of the channels; what is left for the first half is L_simple's gradient.
    assert out[4:].abs().max() > 0
    simple = make_stage(
        "denoiser", network=UNET, denoiser={"parameterization": "eps", "learned_variance": True}, hybrid_lambda=0.0
    )
    torch.autograd.backward(simple(batch)["loss"])
    assert simple.trained.conv_out.weight.grad is not None
    assert torch.allclose(simple.trained.conv_out.weight.grad[:4], out[:4], atol=1e-6)


def test_channels_that_do_not_fit_the_variance_are_refused(make_stage: MakeStage) -> None:
    with pytest.raises(ConfigError, match="out_channels"):
        make_stage("denoiser", denoiser={"learned_variance": True})
    with pytest.raises(ConfigError, match="out_channels"):
        make_stage("denoiser", network=UNET)


@pytest.mark.parametrize("name", NAMES)
def test_batches_do_not_depend_on_how_they_are_cut(name: str, make_stage: MakeStage) -> None:
    stage = make_stage(name)
    whole, first, second = stage.batch(range(6, 14)), stage.batch(range(6, 10)), stage.batch(range(10, 14))
    for key, value in whole.items():
        assert torch.equal(value, torch.cat([first[key], second[key]])), key


@pytest.mark.parametrize("name", NAMES)
def test_what_a_stage_exports_is_its_averaged_network(name: str, make_stage: MakeStage, tmp_path: Path) -> None:
    stage = make_stage(name)
    list(train(stage, stage.config, tmp_path))
    header = read_header(tmp_path / "last.safetensors")
    tensors = load_tensors(tmp_path / "last.safetensors")
    assert header.metadata["component"] in ("vae", "quantizer", "prior", "unet")
    again = type(stage.trained)(type(stage.trained.config).from_json(header.metadata["config"]))
    again.load_state_dict(tensors)
    saved = load_tensors(checkpoints(tmp_path)[-1])
    averaged = {f"ema.{stage.config.ema.use}.{key}": value for key, value in tensors.items()}
    assert all(torch.equal(saved[key], value) for key, value in averaged.items())


@pytest.mark.parametrize("name", ["prior", "denoiser"])
def test_captions_and_drafts_are_dropped_as_often_as_asked(name: str, make_stage: MakeStage) -> None:
    for share in (0.0, 0.25, 1.0):
        batch = make_stage(name, caption_dropout=share).batch(range(2000))
        dropped = batch["pooled"].abs().sum(1) == 0  # the empty caption's vector is zero here, others are not
        assert float(dropped.float().mean()) == pytest.approx(share, abs=0.04)
        assert torch.equal(batch["context"].abs().sum((1, 2)) == 0, dropped), "states and vector go together"
        if "keep_draft" in batch:
            assert float(batch["keep_draft"].float().mean()) == pytest.approx(0.5, abs=0.04)


def test_noise_levels_are_uniform_or_logit_normal_in_the_schedules_index(make_stage: MakeStage) -> None:
    numbers = range(2000)
    plain = make_stage("denoiser")
    assert isinstance(plain, DenoiserTraining)
    uniform = BatchNoise(plain.seed, numbers).uniform("t").double() * (plain.denoising.schedule.num_timesteps - 1)
    assert torch.equal(plain.batch(numbers)["sigma"], plain.denoising.schedule.index_to_sigma(uniform))

    middle = make_stage("denoiser", timesteps="logit_normal", timestep_mean=-0.6, timestep_std=0.8)
    assert isinstance(middle, DenoiserTraining)
    place = middle.denoising.schedule.sigma_to_t(middle.batch(numbers)["sigma"]) / (
        middle.denoising.schedule.num_timesteps - 1
    )
    # The logits are N(-0.6, 0.8): four deviations of the mean and of the deviation of 2,000 draws.
    assert float(place.logit().mean()) == pytest.approx(-0.6, abs=4 * 0.8 / 2000**0.5)
    assert float(place.logit().std()) == pytest.approx(0.8, abs=4 * 0.8 / 4000**0.5)
    held_out = [
        middle._batch(middle.held_out, [0], [0], exact=True),
        plain._batch(plain.held_out, [0], [0], exact=True),
    ]
    assert torch.equal(held_out[0]["sigma"], held_out[1]["sigma"])


def test_offset_noise_moves_whole_channels_and_is_part_of_the_target(make_stage: MakeStage) -> None:
    """A channel of 64 numbers has the mean's variance 1 / 64, and the offset's squared deviation beside it."""
    plain, offset = (make_stage("denoiser", noise_offset=value).batch(range(512))["eps"] for value in (0.0, 0.5))
    difference = offset - plain
    assert torch.allclose(difference, difference[:, :, :1, :1].expand_as(difference), atol=1e-6)
    assert float(plain.mean((2, 3)).var()) == pytest.approx(1 / 64, rel=0.15)
    assert float(offset.mean((2, 3)).var()) == pytest.approx(1 / 64 + 0.25, rel=0.15)


def test_perturbed_input_hides_more_noise_than_the_target_names(make_stage: MakeStage) -> None:
    """Ning et al. 2023, algorithm 1: the network sees x_t of eps + gamma xi, and is asked for eps."""
    stage = make_stage("denoiser", input_perturbation=0.1, denoiser={"parameterization": "eps"})
    batch, seen = stage.batch(range(8)), []
    stage.trained.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    losses = stage(batch)
    alpha, std = alpha_and_std(batch["sigma"], "vp")
    x_t = alpha.view(-1, 1, 1, 1) * batch["x0"] + std.view(-1, 1, 1, 1) * (batch["eps"] + batch["perturbation"])
    assert torch.allclose(seen[0], x_t.float(), atol=1e-6)
    assert float(batch["perturbation"].std()) == pytest.approx(0.1, rel=0.05)
    # A network that starts as zero: what is left is the target, which doesn't know of the perturbation.
    assert float(losses["mse"]) == pytest.approx(float(batch["eps"].square().mean()), rel=1e-5)


def test_frozen_parts_get_no_gradient_and_no_place_in_the_checkpoint(make_stage: MakeStage) -> None:
    stage = make_stage("denoiser")
    torch.autograd.backward(stage(stage.batch(range(4)))["loss"])
    assert not any(name.startswith("quantizer.") for name in stage.saved())
    assert all(p.grad is None and not p.requires_grad for p in stage.get_submodule("quantizer").parameters())


def test_every_epoch_shows_every_example_once_in_another_order() -> None:
    order = Shuffled(50, 3)
    first, second = order.numbers(range(50)), order.numbers(range(50, 100))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert Shuffled(50, 3).numbers(range(40, 60)) == [*first[40:], *second[:10]]
