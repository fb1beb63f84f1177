"""The loop: exact resume, what is kept, what stops it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.errors import CheckpointError, NonFiniteLoss, TrainingError
from gouache.training import state
from gouache.training.loop import matrix_peak, train
from gouache.training.runlog import read_log
from gouache.training.stage import Batch, Stage
from gouache.training.state import checkpoints

PRIOR = {"vocabulary": 125, "groups": (1, 4, 16), "features": 8, "context_dim": 12, "pooled_dim": 12, "width": 32}
PRIOR |= {"depth": 2, "heads": 4}
MakeStage = Callable[..., Stage[Any]]
STAGES = ("vae", "tokens", "prior", "denoiser")


def run(stage: Stage[Any], folder: Path, *, images: int = 64, **loop: Any) -> list[Any]:
    """Train to `images`; returns every event."""
    config = stage.config
    loop_config = config.loop.model_copy(update={"images": images, **loop})
    return list(train(stage, config.model_copy(update={"loop": loop_config}), folder))


def last_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(checkpoints(folder)[-1])


@pytest.mark.every_time("tokens", "prior", "denoiser")
@pytest.mark.parametrize("name", STAGES)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(name: str, make_stage: MakeStage, tmp_path: Path) -> None:
    run(make_stage(name), tmp_path / "whole")
    run(make_stage(name), tmp_path / "parts", images=24)
    run(make_stage(name), tmp_path / "parts", images=64)
    whole, parts = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    different = [key for key in whole if not torch.equal(whole[key], parts[key])]
    assert not different, f"these tensors differ after a resume: {different[:5]}"


def test_places_drawn_from_the_middle_are_the_same_after_a_resume(make_stage: MakeStage, tmp_path: Path) -> None:
    middle = {"timesteps": "logit_normal", "timestep_mean": -0.6}
    run(make_stage("denoiser", **middle), tmp_path / "whole")
    run(make_stage("denoiser", **middle), tmp_path / "parts", images=24)
    run(make_stage("denoiser", **middle), tmp_path / "parts")
    whole, parts = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_dropout_draws_the_same_masks_after_a_resume(make_stage: MakeStage, tmp_path: Path) -> None:
    def stage() -> Stage[Any]:
        return make_stage("prior", network={**PRIOR, "dropout": 0.2})

    run(stage(), tmp_path / "whole")
    run(stage(), tmp_path / "parts", images=32)
    run(stage(), tmp_path / "parts")
    whole, parts = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_the_log_of_a_resumed_run_has_every_line_once(make_stage: MakeStage, tmp_path: Path) -> None:
    run(make_stage("tokens"), tmp_path, images=40)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(json.dumps({"images_seen": 48, "loss": 1.0}) + "\n" + '{"images_seen": 5')
    run(make_stage("tokens"), tmp_path, images=64)
    seen = [line["images_seen"] for line in read_log(tmp_path) if "loss" in line]
    assert seen == [16, 32, 48, 64]


def test_tensorboard_shows_the_logs_figures_and_the_samples(make_stage: MakeStage, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(make_stage("vae"), tmp_path)
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for figure in ("loss", "learning_rate", "images_per_second", "flops_share", "validation/psnr"):
        logged = [(line["images_seen"], line[figure]) for line in read_log(tmp_path) if figure in line]
        shown = [(event.step, event.value) for event in board.Scalars(figure)]
        assert shown == [(seen, pytest.approx(value, rel=1e-6)) for seen, value in logged]
    assert [event.step for event in board.Images("samples")] == [32, 64]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["000000000032.png", "000000000064.png"]


def test_only_the_last_checkpoints_are_kept(make_stage: MakeStage, tmp_path: Path) -> None:
    run(make_stage("tokens"), tmp_path, checkpoint_minutes=1e-9, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["000000000056.safetensors", "000000000064.safetensors"]


def test_stopping_leaves_a_checkpoint_of_the_last_step(make_stage: MakeStage, tmp_path: Path) -> None:
    stage = make_stage("tokens")
    events = train(stage, stage.config, tmp_path, stop=lambda: True)
    assert [event.images_seen for event in events] == [8]
    assert [path.name for path in checkpoints(tmp_path)] == ["000000000008.safetensors"]


def test_the_budget_in_minutes_counts_earlier_sessions(make_stage: MakeStage, tmp_path: Path) -> None:
    stage = make_stage("tokens")
    list(train(stage, stage.config, tmp_path, minutes=1e-9))
    first = checkpoints(tmp_path)[-1]
    again = list(train(make_stage("tokens"), stage.config, tmp_path, minutes=1e-9))
    assert first.name == "000000000008.safetensors"
    assert not again, "the first session used them up"
    assert checkpoints(tmp_path) == [first]


def test_the_course_of_the_rate_is_fitted_to_the_minutes(make_stage: MakeStage, tmp_path: Path) -> None:
    loop = {"batch_size": 8, "images": 10**9, "log_images": 8, "validate_images": 10**9}
    optimizer = {"learning_rate": 1e-3, "warmup_images": 0, "schedule": "linear", "final_fraction": 0.0}
    stage = make_stage("tokens", loop=loop, optimizer=optimizer)
    list(train(stage, stage.config, tmp_path, minutes=0.02))
    rates = [line["learning_rate"] for line in read_log(tmp_path) if "learning_rate" in line]
    assert rates[0] == pytest.approx(1e-3, rel=1e-6)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.5 * rates[0]


def test_another_stage_or_config_is_refused_and_nothing_is_lost(make_stage: MakeStage, tmp_path: Path) -> None:
    run(make_stage("tokens"), tmp_path, images=16)
    with pytest.raises(CheckpointError, match="stage 'tokens'"):
        run(make_stage("prior"), tmp_path)
    with pytest.raises(CheckpointError, match="another scale_dropout"):
        run(make_stage("tokens", scale_dropout=0.9), tmp_path)
    assert len(checkpoints(tmp_path)) == 1
    run(make_stage("tokens"), tmp_path, images=24)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_weight(make_stage: MakeStage, tmp_path: Path) -> None:
    run(make_stage("tokens"), tmp_path, images=16)
    stage = make_stage("tokens")
    good = checkpoints(tmp_path)
    steps = train(stage, stage.config, tmp_path)
    next(steps)
    with torch.no_grad():
        stage.trained.to_code[0].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteLoss, match=r"stage tokens, loss after 24 images.*trained\.to_code\.0\.weight"):
        list(steps)
    assert checkpoints(tmp_path) == good


def test_a_full_disk_is_reported_and_leaves_the_checkpoint_before(
    make_stage: MakeStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_stage("tokens"), tmp_path, images=16)
    before = last_tensors(tmp_path)

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(state, "save_tensors", no_room)
    with pytest.raises(TrainingError, match=r"full disk.*000000000016"):
        run(make_stage("tokens"), tmp_path)
    monkeypatch.undo()
    after = last_tensors(tmp_path)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_share_of_the_peak_is_of_the_peak_in_the_runs_precision(make_stage: MakeStage, tmp_path: Path) -> None:
    plain, low = (matrix_peak(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16))
    flops = {}
    for precision, peak in (("fp32", plain), ("bf16", max(low, plain))):
        AcceleratorState._reset_state()  # one precision a process, as of a run
        *_, last = run(make_stage("tokens"), tmp_path / precision, images=16, precision=precision)
        flops[precision] = last.flops_share * peak / last.images_per_second
    AcceleratorState._reset_state()
    assert flops["bf16"] == pytest.approx(flops["fp32"], rel=1e-6), "an image's operations are as many in any precision"


@pytest.mark.slow
def test_gradients_too_large_for_fp16_are_left_out_and_the_scale_is_part_of_the_state(
    make_stage: MakeStage, tmp_path: Path
) -> None:
    """In fp16 with torch's own scaler, which accelerate makes for GPUs only, from a scale that is too much at first."""

    def scaled(folder: str, images: int) -> None:
        AcceleratorState._reset_state()
        stage, accelerator = make_stage("tokens"), Accelerator(mixed_precision="fp16")
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-8, growth_interval=5)
        loop = stage.config.loop.model_copy(update={"images": images, "log_images": 8})
        config = stage.config.model_copy(update={"loop": loop})
        list(train(stage, config, tmp_path / folder, accelerator=accelerator))
        AcceleratorState._reset_state()

    scaled("whole", 96)
    scaled("parts", 40)
    scaled("parts", 96)
    whole, parts = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "parts")
    assert 1 < float(whole["scaler.scale"]) < 2.0**40
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    lengths = ["gradient_norm" in line for line in read_log(tmp_path / "whole") if "loss" in line]
    assert not lengths[0]
    assert lengths[-1]


def test_half_precision_on_a_cpu_is_refused(make_stage: MakeStage, tmp_path: Path) -> None:
    AcceleratorState._reset_state()
    with pytest.raises(TrainingError, match="fp16 on a CPU"):
        run(make_stage("tokens"), tmp_path, precision="fp16")
    AcceleratorState._reset_state()


def test_a_full_disk_anywhere_in_the_run_is_reported(
    make_stage: MakeStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_stage("tokens"), tmp_path, images=16)
    lines = (tmp_path / "log.jsonl").read_bytes()

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stage = make_stage("tokens")
    monkeypatch.setattr(stage, "export", no_room)
    with pytest.raises(TrainingError, match=r"full disk.*000000000048"):
        run(stage, tmp_path)
    monkeypatch.setattr("gouache.files.os.fsync", no_room)
    with pytest.raises(TrainingError, match=r"full disk.*000000000048"):
        run(make_stage("tokens"), tmp_path)
    assert (tmp_path / "log.jsonl").read_bytes().startswith(lines)


def test_what_a_killed_process_left_half_written_is_cleared_away(make_stage: MakeStage, tmp_path: Path) -> None:
    run(make_stage("tokens"), tmp_path, images=16)
    part = tmp_path / "checkpoints" / ".000000000024.safetensors.0123456789ab.part"
    part.write_bytes(b"half")
    run(make_stage("tokens"), tmp_path, images=24)
    assert not part.exists()
    assert checkpoints(tmp_path)[-1].name == "000000000024.safetensors"


def test_accumulated_gradients_equal_those_of_the_whole_batch(make_stage: MakeStage, tmp_path: Path) -> None:
    fixed = {"learning_rate": 1e-3, "warmup_images": 0, "epsilon": 1e-3}
    run(make_stage("denoiser", optimizer=fixed), tmp_path / "one", images=24)
    run(make_stage("denoiser", optimizer={**fixed, "accumulation": 4}), tmp_path / "four", images=24)
    one, four = last_tensors(tmp_path / "one"), last_tensors(tmp_path / "four")
    for key in one:
        if key.startswith("network."):
            assert torch.allclose(one[key], four[key], atol=1e-5), key


@pytest.mark.parametrize(
    ("flags", "changes", "match"),
    [
        ({"FSDP_VERSION": "1"}, {}, r"version 1.*--fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "offloading"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "gradient_checkpointing"),
        ({}, {"loop": {"precision": "fp16"}}, "bf16"),
        ({}, {"loop": {"compile": True}}, "compile = false"),
        ({}, {"optimizer": {"name": "prodigy"}}, "optimizer prodigy"),
    ],
)
def test_what_sharded_weights_can_not_do_is_refused_by_name(
    flags: dict[str, str],
    changes: dict[str, Any],
    match: str,
    make_stage: MakeStage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for flag, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **flags}.items():
        monkeypatch.setenv(flag, value)
    stage = make_stage("tokens", **changes)
    with pytest.raises(TrainingError, match=rf"FSDP.*{match}"):
        list(train(stage, stage.config, tmp_path))


def test_of_one_process_alone_nothing_is_sharded(
    make_stage: MakeStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_stage("tokens"), tmp_path / "plain", images=16)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    run(make_stage("tokens"), tmp_path / "flagged", images=16)
    plain, flagged = last_tensors(tmp_path / "plain"), last_tensors(tmp_path / "flagged")
    assert all(torch.equal(plain[key], flagged[key]) for key in plain)


def test_batches_are_prepared_beside_the_step_without_workers_of_their_own(
    make_stage: MakeStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, before, seen = make_stage("tokens"), torch.get_num_threads(), set[int]()
    prepare = stage.batch

    def batch(indices: Sequence[int]) -> Batch:
        seen.add(torch.get_num_threads())
        return prepare(indices)

    monkeypatch.setattr(stage, "batch", batch)
    torch.set_num_threads(2)
    try:
        run(stage, tmp_path, images=16)
        assert seen == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_batch_that_processes_can_not_share_is_refused(make_stage: MakeStage, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="multiple of processes"):
        run(make_stage("tokens", optimizer={"accumulation": 3}), tmp_path)
