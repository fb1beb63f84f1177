"""The training loop, the same for every stage, with its whole state in one place.

`train` is a generator of `TrainingProgress`: the caller draws the bar, and stops by closing it or by `stop`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gouache.errors import NonFiniteLoss, TrainingError
from gouache.nn.processor import multiplies_faster_in_bf16, this_processor
from gouache.training.ema import PowerEma
from gouache.training.loop_config import StageConfig
from gouache.training.optimizer import RATE_FACTOR, learning_rate, make_optimizer, own_average, rate_found
from gouache.training.runlog import RunLog, save_sheet
from gouache.training.sharding import check_sharding, gathered, local, shard, sharding_asked, whole
from gouache.training.stage import Batch, Stage, seed_dropout
from gouache.training.state import Position, TrainState, checkpoints, full_disk_reported, load_state, save_state

if TYPE_CHECKING:
    from accelerate import Accelerator


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions in one call (a multiply-add counts as two)."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@lru_cache
def matrix_peak(device: torch.device, dtype: torch.dtype = torch.float32, *, tries: int = 4) -> float:
    """The machine's peak speed in a square matrix product, in FLOP a second: the best of a few tries."""
    size = 1024 if device.type == "cpu" else 8192  # a small product would measure how long a GPU takes to begin
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        (a @ b).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What networks compute in, by accelerate's name of the precision."""


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """One step of training, already taken.

    Attributes:
        images_seen: images trained on so far.
        images: images to train on.
        losses: means since the last line of the log; empty between two lines.
        figures: of the validation just made; empty otherwise.
        images_per_second: speed since the run was started or resumed.
        flops_share: matrix products and convolutions a second, as a share of the machine's measured matrix peak in the
            run's precision.
        checkpoint: the file just written, if any.
        seconds_left: until the images or the minutes are used up, whichever is sooner, at the speed so far.
    """

    images_seen: int
    images: int
    losses: dict[str, float]
    figures: dict[str, float]
    images_per_second: float
    flops_share: float
    checkpoint: Path | None
    seconds_left: float = math.nan


def spoken_time(seconds: float) -> str:
    """A time as people say it: hours, minutes or seconds."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def train(
    stage: Stage[Any],
    config: StageConfig,
    run: Path,
    *,
    minutes: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    accelerator: Accelerator | None = None,
) -> Iterator[TrainingProgress]:
    """Train a stage into the folder `run`, resuming from its last checkpoint.

    Args:
        stage: what is trained, on which data.
        config: loop, optimizer and averages.
        run: folder of the run; made if absent.
        minutes: stop after so much training time, over all sessions of the run; none trains on `loop.images`.
        stop: asked after every step; true ends the run with a checkpoint.
        accelerator: devices and processes; none makes one from the environment (`accelerate launch`, `torchrun`).

    Raises:
        NonFiniteLoss: a loss or gradient is NaN or infinite; the last good checkpoint stays.
        CheckpointError: the folder holds a run of another stage or config.
        TrainingError: the disk is full; the last good checkpoint stays.
    """
    with full_disk_reported(run):
        run.mkdir(parents=True, exist_ok=True)
        trainer = _Trainer(stage, config, run, accelerator or make_accelerator(config))
        try:
            yield from trainer.steps(minutes, stop)
        finally:
            trainer.close()


def make_accelerator(config: StageConfig) -> Accelerator:
    """Devices and processes as the environment says, in the configured precision.

    Raises:
        TrainingError: the environment asks for weights sharded in a way that this stage's config can't be, or the
            device doesn't compute in its precision.
    """
    from accelerate import Accelerator

    if sharding_asked():
        check_sharding(config)
    accelerator = Accelerator(mixed_precision=precision_of(config))
    if config.loop.precision == "fp16" and accelerator.device.type == "cpu":
        raise TrainingError(
            "loop.precision",
            given="fp16 on a CPU",
            expected='"fp32", "bf16", or "auto", which chooses',
            cure="Half precision is for GPUs: networks would be computed in fp32 here.",
        )
    return accelerator


def precision_of(config: StageConfig) -> str:
    """What a stage computes in, as accelerate names it: "no" (fp32), "bf16" or "fp16"."""
    chosen = config.loop.precision
    if chosen == "auto":
        chosen = "bf16" if computes_bf16() else "fp32"
    return "no" if chosen == "fp32" else chosen


def computes_bf16() -> bool:
    """Whether the device that trains is faster in bfloat16 than in fp32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.backends.mps.is_available():
        return False
    return multiplies_faster_in_bf16(this_processor())


def _ahead() -> ThreadPoolExecutor:
    """A thread that prepares batches while the step runs, without parallel regions of its own.

    With a second team of workers there are more of them than processors; then OpenMP puts every worker to sleep at the
    end of every region instead of letting it wait awake, and the step's thousands of regions pay for waking it.
    """
    threads = torch.get_num_threads()
    executor = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
    executor.submit(torch.get_num_threads).result()
    torch.set_num_threads(threads)  # the setting is each thread's own, but new threads take over the last one made
    return executor


class _Trainer:
    """One session of a run."""

    def __init__(self, stage: Stage[Any], config: StageConfig, run: Path, accelerator: Accelerator) -> None:
        self.stage, self.config, self.run, self.accelerator = stage, config, run, accelerator
        loop, processes = config.loop, accelerator.num_processes * config.optimizer.accumulation
        if loop.batch_size % processes:
            raise TrainingError(
                "loop.batch_size",
                given=loop.batch_size,
                expected=f"a multiple of processes x accumulation = {processes}",
            )
        if loop.channels_last:
            stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        stage.round_frozen(DTYPES[str(accelerator.mixed_precision)])
        self.main = accelerator.is_main_process
        self.sharded = sharding_asked() and torch.distributed.is_initialized()  # not of a single, plain process
        # Of a sharded network there is no copy to validate, so one stays as it was.
        self.blank: nn.Module | None = copy.deepcopy(stage.trained) if self.sharded and self.main else None
        stage.to(accelerator.device)
        if self.sharded:
            shard(stage, accelerator)
        self.state = TrainState(
            stage,
            make_optimizer(stage, config.optimizer, stage.rate_factors()),
            # Schedule-free training keeps an average of its own.
            PowerEma(stage.trained, () if config.optimizer.name == "schedule_free" else config.ema.lengths),
            Position(next_validation=loop.validate_images),
            accelerator.scaler,
        )
        # After sharding, so that each process loads its own slices.
        if saved := checkpoints(run):
            load_state(saved[-1], config, self.state)
        compiled = torch.compile(stage) if loop.compile else stage
        self.model: nn.Module = stage if self.sharded else accelerator.prepare_model(compiled)
        self.state.optimizer = accelerator.prepare_optimizer(self.state.optimizer)
        self.log = RunLog(run, self.state.position.images_seen, stage.name, config) if self.main else None
        self.sums: dict[str, float] = {}
        self.summed = 0
        self.started, self.first_image = time.monotonic(), self.state.position.images_seen
        self.earlier_seconds, self.last_save = self.state.position.seconds, time.monotonic()
        self.last_validation = time.monotonic()
        self.flops_per_image = 0.0
        self.peak = 0.0

    def steps(self, minutes: float | None, stop: Callable[[], bool]) -> Iterator[TrainingProgress]:
        """Step until the images, the minutes or the patience are used up, or `stop` returns true."""
        loop, position = self.config.loop, self.state.position
        if minutes is not None and position.images_seen and position.seconds >= 60 * minutes:
            return  # an earlier session used them up, and saved
        with _ahead() as ahead:
            # One batch ahead is enough, and safe: a batch depends on the images seen only, not on the network.
            following = ahead.submit(self._batch, position.images_seen)
            while position.images_seen < loop.images:
                batch = following.result()
                following = ahead.submit(self._batch, position.images_seen + loop.batch_size)
                self._measure(batch)
                losses = self._step(batch, self._done(minutes))
                position.seconds = self.earlier_seconds + time.monotonic() - self.started
                over = minutes is not None and position.seconds >= 60 * minutes
                ending, due, judge = self._any(
                    over or stop() or position.images_seen >= loop.images, self._due(), self._validation_due()
                )
                # Validation can end the run (patience), so it comes before the last checkpoint.
                figures = self._validate(ending or judge)
                if loop.patience:
                    (ending,) = self._any(ending or position.bad_validations >= loop.patience)
                yield self._progress(losses, figures, self._save() if due or ending else None, minutes)
                if ending:
                    following.cancel()
                    return

    def close(self) -> None:
        """End the session's log."""
        if self.log is not None:
            self.log.close()

    def _batch(self, first: int) -> list[Batch]:
        """This process's share of the images first..first+batch_size-1, in as many parts as gradients accumulate."""
        accelerator, parts = self.accelerator, self.config.optimizer.accumulation
        share = self.config.loop.batch_size // (accelerator.num_processes * parts)
        # Part i of all processes together is one contiguous run of images: how many processes there are changes neither
        # which images a step sees nor their noise.
        starts = [first + share * (accelerator.process_index + accelerator.num_processes * i) for i in range(parts)]
        return [self.stage.batch(range(start, start + share)) for start in starts]

    def _done(self, minutes: float | None) -> float:
        """Share of the run that is over: by images, or by the minutes it is given if those end it sooner."""
        position = self.state.position
        done = position.images_seen / self.config.loop.images
        if minutes is not None:
            by_time = torch.tensor(position.seconds / (60 * minutes), device=self.accelerator.device)
            # One rate for all processes, whose clocks differ.
            done = max(done, float(self.accelerator.reduce(by_time, reduction="mean")))
        return min(done, 1.0)

    def _step(self, parts: list[Batch], done: float) -> dict[str, float]:
        state, position, optimizer = self.state, self.state.position, self.config.optimizer
        rate = learning_rate(optimizer, position.images_seen, done)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group[RATE_FACTOR]
        # From the images seen and not from a running generator: a resumed run draws the same masks.
        seed_dropout(self.stage, self.config.loop.seed, self.accelerator.process_index, position.images_seen)
        self.model.train()
        means: dict[str, float] = {}
        for batch in parts:
            with self.accelerator.autocast():  # which accelerate adds to the networks that it prepares itself
                losses = self.model({name: self._to_device(value) for name, value in batch.items()})
            self._check_finite("loss", losses["loss"])
            # A mean over the parts, so that the learning rate means the same for any accumulation.
            self.accelerator.backward(losses["loss"] / len(parts))
            for name, value in losses.items():
                means[name] = means.get(name, 0.0) + float(value.detach()) / len(parts)
        norm = whole(self.accelerator.clip_grad_norm_(self.stage.parameters(), optimizer.gradient_clip))
        # Gradients that are too large for fp16 are left out, and the scaler lowers its scale, as at every start.
        too_large = state.scaler is not None and state.scaler.get_scale() > 1 and not bool(torch.isfinite(norm))
        if not too_large:
            # Before the step: no NaN ever reaches the weights, the averages or a checkpoint.
            self._check_finite("gradient", norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        position.steps += 1
        position.images_seen += self.config.loop.batch_size
        state.ema.update(self.stage.trained, position.steps)
        length = {} if too_large else {"gradient_norm": float(norm)}
        return self._logged(self._over_processes(means) | length, rate)

    def _over_processes(self, means: dict[str, float]) -> dict[str, float]:
        """Means over all processes, each of which saw its own share of the batch."""
        if self.accelerator.num_processes == 1:
            return means
        own = torch.tensor(list(means.values()), dtype=torch.float64, device=self.accelerator.device)
        shared: Tensor = self.accelerator.reduce(own, reduction="mean")  # type: ignore[assignment, unused-ignore]
        return dict(zip(means, shared.tolist(), strict=True))

    def _any(self, *votes: bool) -> list[bool]:
        """Whether any process says so, one vote after the other: clocks, signals and validations are each one's own."""
        if self.accelerator.num_processes == 1:
            return list(votes)
        own = torch.tensor([float(vote) for vote in votes], device=self.accelerator.device)
        total: Tensor = self.accelerator.reduce(own, reduction="sum")  # type: ignore[assignment, unused-ignore]
        return [vote > 0 for vote in total.tolist()]

    def _to_device(self, value: Tensor) -> Tensor:
        memory = torch.channels_last if value.ndim == 4 and self.config.loop.channels_last else torch.contiguous_format
        return value.to(self.accelerator.device, memory_format=memory)

    def _logged(self, losses: dict[str, float], rate: float) -> dict[str, float]:
        """Add up losses; at every `log_images`, write and return their means."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.summed += 1
        loop, seen = self.config.loop, self.state.position.images_seen
        if seen // loop.log_images == (seen - loop.batch_size) // loop.log_images:
            return {}
        means = {name: value / self.summed for name, value in self.sums.items()}
        self.sums, self.summed = {}, 0
        if self.log is not None:
            speed = self._speed()
            extra = {"learning_rate": rate, "images_per_second": speed, "flops_share": self._share(speed)}
            extra |= rate_found(self.config.optimizer, self.state.optimizer)
            self.log.write(seen, means | extra)
        return means

    def _validate(self, now: bool) -> dict[str, float]:
        position = self.state.position
        if position.images_seen < position.next_validation and not now:
            return {}
        position.next_validation = position.images_seen + self.config.loop.validate_images
        # Save before a long evaluation: a crash in it must not cost the run.
        save_state(self.run, self.config, self.state, write=self.main)
        network = self.averaged()
        if network is None:
            return {}
        self.stage.images_seen = position.images_seen
        with torch.no_grad():
            figures = self.stage.validate(network)
            sheets = {"samples": self.stage.samples(network), "prompts": self.stage.prompted(network)}
        score = figures.get("score", math.nan)
        improved = score < position.best
        if improved:
            position.best, position.best_images, position.bad_validations = score, position.images_seen, 0
            self.stage.export(network, self.run / "best.safetensors")
        else:
            position.bad_validations += 1
        self.stage.export(network, self.run / "last.safetensors")
        self.last_validation = time.monotonic()
        if self.log is not None:
            self.log.write(position.images_seen, {f"validation/{name}": value for name, value in figures.items()})
            for name, sheet in sheets.items():
                if sheet is not None:
                    picture = save_sheet(sheet, self.run / name / f"{position.images_seen:012d}.png")
                    self.log.picture(position.images_seen, picture, name)
        return figures

    def averaged(self) -> nn.Module | None:
        """A copy of the network with its averaged weights, in the main process; every process must call this."""
        averages = self.state.ema.averages
        weights = gathered(averages[self.config.ema.use], keep=self.main) if averages else None
        if not self.main:
            return None
        if weights is None:
            weights = own_average(self.stage.trained, self.state.optimizer)
        source = self.stage.trained if self.blank is None else self.blank
        network: nn.Module = copy.deepcopy(source).to(self.accelerator.device)
        network.load_state_dict(weights)
        return network.eval()

    def _due(self) -> bool:
        return time.monotonic() - self.last_save >= 60 * self.config.loop.checkpoint_minutes

    def _validation_due(self) -> bool:
        every = self.config.loop.validate_minutes
        return every > 0 and time.monotonic() - self.last_validation >= 60 * every

    def _save(self) -> Path | None:
        self.last_save = time.monotonic()
        path = save_state(self.run, self.config, self.state, write=self.main)
        return path if self.main else None

    def _measure(self, parts: list[Batch]) -> None:
        """Once a session: the FLOP of an image, forward and backward, and the machine's peak.

        A backward pass costs about two forward passes: one product for the inputs' gradient, one for the weights'.
        """
        if self.flops_per_image:
            return
        batch = {name: self._to_device(value[:1]) for name, value in parts[0].items()}
        with torch.no_grad():
            self.flops_per_image = 3.0 * count_flops(lambda: self.stage(batch))
        device, dtype = self.accelerator.device, DTYPES[str(self.accelerator.mixed_precision)]
        # Autocast leaves some operations in fp32, which is the quicker of the two on processors that emulate bfloat16.
        self.peak = max(matrix_peak(device, dtype), matrix_peak(device, torch.float32))
        self.started = time.monotonic()

    def _share(self, speed: float) -> float:
        return speed * self.flops_per_image / (self.peak * float(self.accelerator.num_processes))

    def _speed(self) -> float:
        return (self.state.position.images_seen - self.first_image) / (time.monotonic() - self.started)

    def _progress(
        self, losses: dict[str, float], figures: dict[str, float], saved: Path | None, minutes: float | None
    ) -> TrainingProgress:
        seen, images, speed = self.state.position.images_seen, self.config.loop.images, self._speed()
        left = max(0, images - seen) / max(speed, 1e-9)
        if minutes is not None:
            left = min(left, max(0.0, 60 * minutes - self.state.position.seconds))
        return TrainingProgress(seen, images, losses, figures, speed, self._share(speed), saved, left)

    def _check_finite(self, what: str, value: Tensor) -> None:
        if bool(torch.isfinite(value).all()):
            return
        seen = self.state.position.images_seen
        raise NonFiniteLoss(
            f"stage {self.stage.name}, {what} after {seen} images",
            given=f"{value.item()} ({self._first_bad()})",
            expected="a finite number",
            cure="Resume from the last checkpoint with a lower learning rate or higher precision.",
        )

    def _first_bad(self) -> str:
        for name, parameter in self.stage.named_parameters():
            if not bool(torch.isfinite(local(parameter)).all()):
                return f"first non-finite weight: {name}"
        for name, parameter in self.stage.named_parameters():
            if parameter.grad is not None and not bool(torch.isfinite(local(parameter.grad)).all()):
                return f"first non-finite gradient: {name}"
        return "weights and gradients are finite: the loss itself overflowed"
