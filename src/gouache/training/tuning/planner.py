"""Everything that a fine-tuning needs to be told, chosen from a model, some pictures and a time. No torch.

`gouache finetune` and the page's Train view plan with this module, so that both train the same.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gouache.checkpoints.identify import identify, read_card
from gouache.errors import GouacheError
from gouache.models.family import POCKET, family_named

Method = Literal["lora", "whole"]
Part = Literal["lora", "prior", "denoiser"]
SMALL_SET = 40
"""Pictures below which none is held out; as `training/batches/sources.py` has it, without loading torch."""
MOST_EXAMPLES = 20_000
"""Of whole models: pictures that are encoded at most, with each of their captions and mirror images."""
SHEETS, SHORTEST_SHEET = 5, 1.0
"""Sample sheets of a part, and the fewest minutes between two: drawing one takes some seconds."""
LONGEST_UNSAVED = 5.0
"""Minutes between two checkpoints."""
WHOLE_RATE, SMALL_WHOLE_RATE = 1e-5, 2e-4
"""Learning rates of a whole denoiser: the field's, and of a small model, a twentieth of the field's size, whose weights
move further."""
PRIOR_RATE = 2.5
"""The learning rate of the network that draws drafts, as a multiple of the denoiser's; it was trained with twice it."""
LORA_RATE = 1e-4
"""Learning rate of a LoRA, as the field's trainers have it."""
POCKET_LORA: dict[str, Any] = {
    "conv_rank": 16,
    "prior_learning_rate": 3e-4,
    "draft_dropout": 0.1,
    "timesteps": "logit_normal",
    "timestep_mean": -1.2,
}
"""The shipped model paints from a draft and a low noise level, so what it does elsewhere no picture shows. Most of its
layers are convolutions."""
POCKET_LORA_RATE = 2e-3


@dataclass(frozen=True, slots=True)
class StartTraits:
    """What a plan asks of the model to start from.

    Attributes:
        family: by name.
        side: of the pictures that it likes, in pixels.
        drafts: whether it begins with drafts of its own.
        variant: base, or what else it is shown beside texts.
    """

    family: str
    side: int
    drafts: bool = False
    variant: str = "base"

    @property
    def is_small(self) -> bool:
        """Whether it is of the small family that gouache ships."""
        return self.family == POCKET.name


START_OF_NOTHING = StartTraits(POCKET.name, 128)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a training takes where nobody said otherwise.

    Attributes:
        learning_rate: of the network that paints.
        batch_size: pictures a step.
        rank: of a LoRA's changes.
    """

    learning_rate: float
    batch_size: int
    rank: int = 16


def traits_of(path: Path) -> StartTraits:
    """What a model's files say, without their weights; of files that say nothing, what most models are."""
    with contextlib.suppress(GouacheError):
        identity = identify(path)
        card = read_card(path) if identity.layout == "gouache" else None
        if card is None:
            return StartTraits(identity.family, family_named(identity.family).training_size, variant=identity.variant)
        drafts = any(part.name == "prior" for part in card.parts)
        return StartTraits(identity.family, card.defaults.width, drafts, identity.variant)
    return StartTraits("unknown", 512)


def choose(method: Method, traits: StartTraits) -> Chosen:
    """Rates and sizes for a model."""
    if method == "lora":
        return Chosen(POCKET_LORA_RATE, 4) if traits.is_small else Chosen(LORA_RATE, 1)
    return Chosen(SMALL_WHOLE_RATE if traits.is_small else WHOLE_RATE, 8)


def parts_of(method: Method, *, drafts: bool) -> tuple[Part, ...]:
    """The stages of `gouache train` that a training takes, in order; each gets the same time."""
    if method == "lora":
        return ("lora",)
    return ("prior", "denoiser") if drafts else ("denoiser",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How to train.

    Attributes:
        method: a LoRA, or the whole model.
        start: where the model lies.
        family: of it.
        drafts: whether it begins with drafts of its own.
        size: side of the pictures.
        minutes: training time of all parts together.
        chosen: rates and sizes.
        flip: whether half of the pictures are mirrored.
    """

    method: Method
    start: Path
    family: str
    drafts: bool
    size: int
    minutes: float
    chosen: Chosen
    flip: bool = False

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is trained, in order."""
        return parts_of(self.method, drafts=self.drafts)

    @property
    def part_minutes(self) -> float:
        """Training time of each part."""
        return self.minutes / len(self.parts)

    def toml(self) -> str:
        """The config for `gouache train`."""
        chosen, start = self.chosen, self.start
        tables = {"data": {"size": self.size, "flip": self.flip, "examples": MOST_EXAMPLES}}
        if self.method == "lora":
            own = POCKET_LORA if self.family == POCKET.name else {"gradient_checkpointing": True}
            return to_toml(tables | {"lora": {"start": start, "rank": chosen.rank} | own} | self._loop("lora"))
        if self.drafts:
            rate = PRIOR_RATE * chosen.learning_rate
            tables |= {"prior": {"start": start}} | self._loop("prior", rate)
        # Its pictures begin on the draft; what it does without one, no picture shows.
        held = {"draft_dropout": 0.1} if self.drafts else {}
        return to_toml(tables | {"denoiser": {"start": start} | held} | self._loop("denoiser"))

    def _loop(self, part: Part, rate: float | None = None) -> dict[str, dict[str, Any]]:
        chosen = self.chosen
        return loop_tables(part, self.minutes, self.part_minutes, rate or chosen.learning_rate, chosen.batch_size)


def loop_tables(part: str, minutes: float, part_minutes: float, rate: float, batch: int) -> dict[str, dict[str, Any]]:
    """The tables of a part that say how long and how fast. Time ends it, not a number of images.

    Args:
        part: its stage.
        minutes: of the whole training.
        part_minutes: of this part.
        rate: learning rate.
        batch: pictures a step.
    """
    return {
        f"{part}.loop": {
            "batch_size": batch,
            "images": 100_000_000,
            "precision": "auto",
            "log_images": batch * max(1, round(minutes / 10)),
            "validate_images": 100_000_000,
            "validate_minutes": float(f"{max(SHORTEST_SHEET, part_minutes / SHEETS):g}"),
            "checkpoint_minutes": LONGEST_UNSAVED,
            "keep": 1,
        },
        f"{part}.optimizer": {"learning_rate": rate, "warmup_images": 5 * batch, "cooldown": 0.3},
    }


def to_toml(tables: dict[str, dict[str, Any]]) -> str:
    """Tables of plain values by name as TOML, whose strings, numbers, lists and booleans JSON's are."""
    return "\n".join(
        "\n".join([f"[{name}]", *(f"{key} = {json.dumps(_plain(value))}" for key, value in table.items()), ""])
        for name, table in tables.items()
    )


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
