"""What the loop asks of a stage. A stage is a module: its forward pass turns a batch into losses.

All randomness of a step (noise, noise levels, dropped captions) is drawn image by image into the batch, each image from
its own generator. So the forward pass is a pure function, and neither the number of processes nor an interruption
changes what is computed.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from gouache.errors import ConfigError
from gouache.nn.layers import Dropout
from gouache.training.config import TrainConfig
from gouache.training.loop_config import StageConfig

if TYPE_CHECKING:
    from gouache.training.inputs import RunInputs

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]


N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Preparing:
    """Encoding, or `what` else, goes on: `done` of `total` are there; or something that people should know."""

    done: int
    total: int
    note: str = ""
    what: str = "encoding"


@dataclass(frozen=True, slots=True)
class Ready:
    """The stage is built; `config` is its table with what only the start model knew filled in."""

    stage: Stage[Any]
    config: StageConfig


class Stage(nn.Module, ABC, Generic[N]):
    """One stage of training. It describes itself, so that the loop, `build` and `pack` know no stage by name.

    Attributes:
        name: the stage's name, as on the command line, in the config and in the run's folder.
        kind: what its network is called in messages.
        part: the part of a model that its network becomes, as `ModelBundle.networks` names it; empty if none.
        measured: keys of the network's config that training fills in, so that no config file can know them.
        free: keys of the network's config that decide no tensor, so that they may change with the same weights.
        grown: keys of the network's config that may be larger than in a packed model to start from, with the property
            that gives their numbers.
        settings: keys of the stage's table that are written beside the weights, with the model's attribute for each.
        packs_pictures: whether own pictures are packed at the run's size before the stage is built; one that does not
            finds them as people have them.
        redrafts: whether drafts change by it, so that what a prior remembers of the old ones' errors no longer holds.
        chooses_average: whether `gouache pack --ema` chooses among the averages of this stage.
        config: its table of the config.
        trained: the network that is trained, averaged and exported; a sub-module of the stage.
    """

    name: str
    kind: ClassVar[str] = "network"
    part: ClassVar[str] = ""
    measured: ClassVar[tuple[str, ...]] = ()
    free: ClassVar[tuple[str, ...]] = ()
    grown: ClassVar[Mapping[str, str]] = {}
    settings: ClassVar[Mapping[str, str]] = {}
    packs_pictures: ClassVar[bool] = True
    redrafts: ClassVar[bool] = False
    chooses_average: ClassVar[bool] = False
    config: StageConfig
    trained: N
    frozen: tuple[str, ...] = ()
    """Sub-modules that are only used, and so are no part of the run's state."""
    images_seen: int = 0
    """Images that the averaged network was trained on; the loop sets it before it asks for figures and files."""

    @classmethod
    @abstractmethod
    def from_run(cls, inputs: RunInputs) -> Iterator[Preparing | Ready]:
        """Build the stage on the data and the earlier results of a run; yields what it prepares, the stage last."""

    @classmethod
    def base_model(cls, config: TrainConfig) -> Path | None:
        """The model of which a training with this config replaces this stage's part only, if it is such a training."""
        del config
        return None

    @classmethod
    def model_parts(cls, inputs: RunInputs, others: Mapping[str, Any]) -> dict[str, Any]:
        """What the run's result adds to a packed model, as arguments of `ModelBundle`.

        Args:
            inputs: of the run.
            others: what the stages after this one add; they decide whether its part is used.

        Raises:
            TrainingError: the model needs the part, and the stage has left no result.
        """
        del inputs, others
        return {}

    def start_from(self, network: N) -> None:
        """Take the weights of a finished network of this stage."""
        self.trained.load_state_dict(network.state_dict())

    def freeze(self, *names: str) -> None:
        """Mark sub-modules as only used: no gradient, no dropout, not saved."""
        self.frozen = names
        for name in names:
            self.get_submodule(name).requires_grad_(False)

    def rate_factors(self) -> Mapping[nn.Parameter, float]:
        """What the learning rate is multiplied by for some parameters; 1 for all others."""
        return {}

    def round_frozen(self, dtype: torch.dtype) -> None:
        """Keep large networks that are only used in the type that the run computes in; the loop says it once, first.

        Autocast would round frozen weights again at every step.
        """
        del dtype

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def saved(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint: all but those of the frozen sub-modules."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if not any(name.startswith(f"{part}.") for part in self.frozen)
        }

    @property
    def device(self) -> torch.device:
        """Where the trained network lives."""
        return next(self.trained.parameters()).device

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> Batch:
        """The images with these numbers of the endless stream, with their noise; a pure function. On the CPU."""

    @abstractmethod
    def forward(self, batch: Batch) -> Losses:
        """Losses of a batch, means over its images; the one called "loss" is minimised."""

    @abstractmethod
    def validate(self, network: N) -> dict[str, float]:
        """Figures of `network` (the averaged copy of `trained`) on held-out pictures. "score" is lower for better."""

    def samples(self, network: N) -> Tensor | None:
        """A sheet of pictures [N,C,H,W] in [-1,1] made with fixed seeds, or nothing to show."""
        del network
        return None

    def prompted(self, network: N) -> Tensor | None:
        """Pictures [N,C,H,W] in [-1,1] of the prompts that the config asks to see, with fixed seeds; or none."""
        del network
        return None

    @abstractmethod
    def export(self, network: N, path: Path) -> None:
        """Write `network` as a model file of its own."""


def freeze_parameters(network: nn.Module, prefixes: tuple[str, ...], where: str) -> None:
    """Train every parameter of `network` but those whose names begin with one of `prefixes`.

    Raises:
        ConfigError: a prefix fits no parameter, or nothing is left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    if idle := [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]:
        tops = sorted({name.split(".")[0] for name in names})
        raise ConfigError(where, given=idle[0], expected=f"beginnings of parameter names, as {', '.join(tops)}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not any(name.startswith(prefix) for prefix in prefixes))
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(where, given=", ".join(prefixes), expected="some parameters left to train")


def batched(length: int, size: int = 64) -> Iterator[list[int]]:
    """The numbers 0..length-1, `size` at a time."""
    for start in range(0, length, size):
        yield list(range(start, min(start + size, length)))


class BatchNoise:
    """Random numbers for the images of one batch, each from its own generator.

    Args:
        seed: seed of the run.
        indices: numbers of the images in the endless stream.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.seed, self.indices = seed, indices

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers [B, *shape]."""
        return torch.stack([torch.randn(*shape, generator=g) for g in self._generators(purpose)])

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Numbers in [0, 1) [B, *shape]."""
        return torch.stack([torch.rand(tuple(shape), generator=g) for g in self._generators(purpose)])

    def integers(self, purpose: str, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Whole numbers in [0, high) [B, *shape]."""
        return torch.stack([torch.randint(high, tuple(shape), generator=g) for g in self._generators(purpose)])

    def _generators(self, purpose: str) -> Iterator[torch.Generator]:
        for index in self.indices:
            digest = hashlib.blake2b(f"{self.seed}/{index}/{purpose}".encode(), digest_size=8).digest()
            yield torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def seed_dropout(module: nn.Module, seed: int, rank: int, images_seen: int) -> None:
    """Re-seed every dropout layer for one step from (seed, rank, images seen)."""
    for number, layer in enumerate(m for m in module.modules() if isinstance(m, Dropout)):
        digest = hashlib.blake2b(f"{seed}/{rank}/{images_seen}/{number}".encode(), digest_size=8).digest()
        layer.seed(int.from_bytes(digest, "little") >> 1)
