"""What the tables of all stages share: how long to train, by which optimizer, and with which averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from gouache.config import Config
from gouache.errors import ConfigError


class LoopConfig(Config):
    """How long to train, and what to write while doing so. Training is counted in images."""

    seed: int = 0
    """Seed of everything random in the run: initial weights, order of the data, noise."""
    batch_size: int = Field(default=64, ge=1)
    """Images a step, over all processes together."""
    images: int = Field(default=1_000_000, ge=1)
    """Images to train on."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Arithmetic of the networks; weights and optimizer stay in fp32. "auto" is bf16 where the device is faster in
    it (`gouache doctor` tells of a CPU), and fp32 elsewhere."""
    channels_last: bool = True
    """Memory layout of pictures and convolutions; about 1.3 times faster on a CPU."""
    compile: bool = False
    """Compile the network with `torch.compile`."""
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    """Minutes between checkpoints."""
    keep: int = Field(default=3, ge=1)
    """Checkpoints kept; older ones are deleted."""
    log_images: int = Field(default=2_048, ge=1)
    """Images between two lines of the log."""
    validate_images: int = Field(default=100_000, ge=1)
    """Images between two validations; a sample sheet is drawn with each."""
    validate_minutes: float = Field(default=0.0, ge=0)
    """Minutes between two validations, where they come sooner than by images; 0 goes by images only."""
    patience: int = Field(default=0, ge=0)
    """Stop after so many validations without a better held-out score; 0 never stops early."""
    wandb: str = ""
    """Project of Weights & Biases that figures and sample sheets go to as well (needs the package wandb); none if
    empty. Its own variables count, such as WANDB_MODE=offline."""


OptimizerName = Literal["adamw", "adamw8bit", "adafactor", "prodigy", "schedule_free"]

RATES: dict[OptimizerName, tuple[float, float, float]] = {
    "adamw": (3e-4, 1e-4, 1e-3),
    "adamw8bit": (3e-4, 1e-4, 1e-3),
    "adafactor": (1e-2, 3e-3, 1e-1),
    "prodigy": (1.0, 1.0, 1.0),
    "schedule_free": (1e-3, 3e-4, 3e-3),
}
"""Of every optimizer the usual learning rate from random weights, that of a training that starts from a model, and that
of low-rank changes, which bear more."""


class OptimizerConfig(Config):
    """What turns gradients into steps. Weight decay acts on matrices and kernels only."""

    name: OptimizerName = "adamw"
    """`adamw` (Loshchilov & Hutter 2019); `adamw8bit`, the same with moments in 8 bits (Dettmers et al. 2022);
    `adafactor`, whose second moments are sums over rows and columns and whose rate is a share of each tensor's own size
    (Shazeer & Stern 2018); `prodigy`, which finds the rate itself (Mishchenko & Defazio 2024); `schedule_free`, AdamW
    that keeps an average of its own instead of lowering the rate (Defazio et al. 2024)."""
    learning_rate: float = Field(default=RATES["adamw"][0], gt=0)
    """The peak of the rate; where it is left out, what is usual for the optimizer. Of `prodigy` a factor on the rate
    that it finds."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the two moments, in [0, 1); not of `adafactor`."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment; not of `adafactor`."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Share of a weight that a step takes away, times the learning rate."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    accumulation: int = Field(default=1, ge=1)
    """Forward and backward passes a step; the batch is cut into as many parts."""
    warmup_images: int = Field(default=10_000, ge=0)
    """Images over which the learning rate rises from 0 to its peak."""
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "constant"
    """Course of the learning rate after the warm-up; `schedule_free` takes none."""
    decay_images: int = Field(default=200_000, ge=1)
    """`inverse_sqrt` only: images at which the rate starts to decay (Karras et al. 2024, equation 67)."""
    final_fraction: float = Field(default=0.01, ge=0, le=1)
    """`linear` and `cosine`: the rate at the end, as a share of the peak."""
    cooldown: float = Field(default=0.0, ge=0, le=1)
    """Last share of the run in which the rate also falls linearly to 0, under any schedule (Hägele et al. 2024,
    arXiv:2405.18392)."""

    @model_validator(mode="before")
    @classmethod
    def _its_usual_rate(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("learning_rate") is not None or values.get("name") not in RATES:
            return values
        return {**values, "learning_rate": RATES[values["name"]][0]}

    @model_validator(mode="after")
    def _its_own_ways(self) -> OptimizerConfig:
        """Refuse what the optimizer would ignore or misunderstand."""
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError("optimizer.betas", given=list(self.betas), expected="two numbers from 0 to below 1")
        usual = OptimizerConfig.model_fields
        moments = (self.betas, self.epsilon) != (usual["betas"].default, usual["epsilon"].default)
        scheduled = self.schedule != "constant" or self.cooldown > 0
        for wrong, key, given, expected, cure in (
            (
                self.name == "adafactor" and moments,
                "betas",
                f"{list(self.betas)} and epsilon {self.epsilon} with adafactor",
                "no moments' settings, which adafactor has its own of",
                "Leave out betas and epsilon.",
            ),
            (
                self.name == "prodigy" and not 0.1 <= self.learning_rate <= 10,
                "learning_rate",
                f"{self.learning_rate} with prodigy",
                "a factor from 0.1 to 10 on the rate that prodigy finds",
                "Leave it out: 1 is usual.",
            ),
            (
                self.name == "schedule_free" and scheduled,
                "schedule",
                f"{self.schedule} and cooldown {self.cooldown} with schedule_free",
                'schedule = "constant" and cooldown = 0',
                "Leave out both; a warm-up is welcome.",
            ),
            (
                self.name == "schedule_free" and self.betas[0] == 0,
                "betas",
                f"{list(self.betas)} with schedule_free",
                "a first number above 0, by which its average is found",
                "Leave it out.",
            ),
        ):
            if wrong:
                raise ConfigError(f"optimizer.{key}", given=given, expected=expected, cure=cure)
        return self


class EmaConfig(Config):
    """Power-function averages of the weights (Karras et al. 2024, section 3)."""

    lengths: tuple[float, ...] = Field(default=(0.05, 0.10), min_length=1)
    """Relative widths sigma_rel of the averages that are tracked."""
    use: float = 0.05
    """The width that validation, samples and export use; the first of `lengths` where those alone are given."""

    @model_validator(mode="before")
    @classmethod
    def _one_is_used(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        lengths, use = values.get("lengths"), values.get("use")
        if lengths and use is None and isinstance(lengths, list | tuple):
            return {**values, "use": lengths[0]}
        if lengths is None and isinstance(use, float) and use not in (0.05, 0.10):
            return {**values, "lengths": (use,)}
        return values

    @model_validator(mode="after")
    def _it_is_tracked(self) -> EmaConfig:
        if self.use not in self.lengths:
            raise ConfigError(
                "ema.use", given=self.use, expected=f"one of lengths: {', '.join(map(str, self.lengths))}"
            )
        return self


class StageConfig(Config):
    """What every stage's table may hold besides its own keys."""

    loop: LoopConfig = LoopConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()


TUNING: dict[str, dict[str, Any]] = {
    "optimizer": {"warmup_images": 100},
    "ema": {"lengths": (0.1,), "use": 0.1},
}
"""What a stage that starts from a finished network takes where its table says nothing: a warm-up that a run of minutes
gets through, and one average. Its rate is the second one of `RATES`: a tenth or so of what it was trained with.
"""


def tuned(values: Any) -> Any:
    """A stage's table, with the values that suit the start it names."""
    if not isinstance(values, dict) or values.get("start") is None:
        return values
    return filled(values, TUNING, 1)


def filled(values: Any, usual_tables: Mapping[str, Mapping[str, Any]], rate: int) -> Any:
    """A stage's table, with usual values where it says nothing, and the `rate`-th of its optimizer's."""
    if not isinstance(values, dict):
        return values
    filled = dict(values)
    for table, usual in usual_tables.items():
        given = values.get(table, {})
        if isinstance(given, dict):
            if given.get("name", "adamw") != "adamw":
                usual = {key: value for key, value in usual.items() if key != "learning_rate"}
            # Widths and the one in use belong together: whoever names either chooses both.
            filled[table] = given if table == "ema" and given else {**usual, **given}
    optimizer = filled["optimizer"]
    if isinstance(optimizer, dict) and (rates := RATES.get(optimizer.get("name", "adamw"))):
        filled["optimizer"] = {"learning_rate": rates[rate], **optimizer}
    return filled
