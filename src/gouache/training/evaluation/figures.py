"""What an evaluation found: figures with intervals, as JSON and as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from PIL import Image

from gouache.training.evaluation.statistics import Interval


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured, for example "retrieval_at_1".
        group: on what: "seen", "held_out", "chinese", "scenes", "all"; with "real " in front it is the ceiling.
        interval: the number, its bootstrap interval and the count of items.
        steps: denoising steps; None for what was not painted.
        draft: whether the prior drafted; None for what was not painted.
        best_of: drafts among which the likeliest was painted.
    """

    name: str
    group: str
    interval: Interval
    steps: int | None = None
    draft: bool | None = None
    best_of: int = 1

    def to_dict(self) -> dict[str, str | int | float | bool | None]:
        """Plain values for JSON."""
        values = asdict(self)
        interval = values.pop("interval")
        return {**values, **interval}

    def row(self) -> tuple[str, str, str, str, str, str, str]:
        """Words for a table: name, group, steps, prior, value, interval, count."""
        value = self.interval
        prior = "" if self.draft is None else ("with" if self.draft else "without")
        prior += f", best of {self.best_of}" if self.best_of > 1 else ""
        steps = "" if self.steps is None else str(self.steps)
        return (
            self.name,
            self.group,
            steps,
            prior,
            f"{value.value:.4g}",
            f"{value.low:.4g} to {value.high:.4g}",
            str(value.count),
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that one evaluation found.

    Attributes:
        figures: the numbers.
        described: model, judge, data and settings, by name.
        sheet: real and painted pictures side by side.
    """

    figures: tuple[Figure, ...]
    described: dict[str, str | int]
    sheet: Image.Image | None

    def to_json(self) -> str:
        """One JSON object."""
        values = {**self.described, "figures": [figure.to_dict() for figure in self.figures]}
        return json.dumps(values, ensure_ascii=False, indent=1)

    def find(self, name: str, group: str, *, steps: int | None = None, draft: bool | None = None) -> Figure | None:
        """The first figure that fits, if there is one."""
        return first(self.figures, name, group, steps, draft)


def first(
    figures: Sequence[Figure], name: str, group: str, steps: int | None = None, draft: bool | None = None
) -> Figure | None:
    """The first figure of this name, group, steps and draft; steps and draft None take any."""
    for figure in figures:
        same = (figure.name, figure.group) == (name, group) and steps in (None, figure.steps)
        if same and draft in (None, figure.draft):
            return figure
    return None
