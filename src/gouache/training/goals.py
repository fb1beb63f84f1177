"""What the pocket model was meant to reach, set before it was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure and its bound.

    Attributes:
        words: what it is, for people.
        name, group: of the figure.
        bound: what to reach; None for a figure to compare with.
        sense: "least": the figure should be at least the bound; "most": at most; "above" and "below": the whole
            interval should lie on that side of it.
        unit: "%" for shares.
        steps: of the figure; None = the model's default.
    """

    words: str
    name: str
    group: str
    bound: float | None
    sense: Literal["least", "most", "above", "below"] = "least"
    unit: str = "%"
    steps: int | None = None

    @property
    def told(self) -> str:
        """The goal in words."""
        if self.bound is None:
            return ""
        if self.sense in ("above", "below"):
            return "significantly better"
        return f"{'≥' if self.sense == 'least' else '≤'} {self.shown(self.bound)}"

    def shown(self, value: object) -> str:
        """A value with its unit."""
        if not isinstance(value, int | float):
            return str(value)
        return f"{100 * value:.1f} %" if self.unit == "%" else f"{value:.3g} {self.unit}".rstrip()

    def find(self, figures: Sequence[Mapping[str, object]], steps: object) -> Mapping[str, object] | None:
        """The goal's figure: painted with one draft, and in `steps` steps unless the goal names a number."""
        wanted = (None, self.steps or steps)
        for figure in figures:
            plain = figure.get("draft") is not False and figure.get("best_of", 1) == 1
            if (figure["name"], figure["group"]) == (self.name, self.group) and figure.get("steps") in wanted and plain:
                return figure
        return None

    def met(self, figure: Mapping[str, object]) -> bool | None:
        """Whether a figure reaches the goal; None if there is nothing to reach."""
        if self.bound is None:
            return None
        end = {"least": "value", "most": "value", "above": "low", "below": "high"}[self.sense]
        value = figure[end]
        if not isinstance(value, int | float):
            return None
        if self.sense in ("least", "most"):
            return value >= self.bound if self.sense == "least" else value <= self.bound
        return value > self.bound if self.sense == "above" else value < self.bound


GOALS = (
    Goal("autoencoder, held-out pictures", "vae_psnr_db", "held_out", 31.0, unit="dB"),
    Goal("own caption best of 100, seen pairs", "retrieval_at_1", "seen", 0.85),
    Goal("own caption best of 100, held-out pairs", "retrieval_at_1", "held_out", 0.65),
    Goal("own caption best of 100, asked in Chinese", "retrieval_at_1", "chinese", 0.60),
    Goal("style right, seen pairs", "style", "seen", 0.95),
    Goal("style right, held-out pairs", "style", "held_out", 0.95),
    Goal("scenes: colour", "scene_colour", "scenes", 0.80),
    Goal("scenes: count up to 3", "scene_count_to_3", "scenes", 0.70),
    Goal("scenes: left, right, above, below", "scene_relation", "scenes", 0.70),
    Goal("scenes: background", "scene_background", "scenes", 0.95),
    Goal("the draft's gain at 8 steps, own caption best", "prior_gain_in_retrieval_at_1", "all", 0.0, "above", "%", 8),
    Goal("the draft's change of KID at 8 steps", "prior_change_of_kid", "all", 0.0, "below", "", 8),
    Goal("best of 4 drafts: gain, own caption best", "best_of_gain_in_retrieval_at_1", "all", 0.0, "above"),
    Goal("real pictures, seen pairs: the ceiling", "retrieval_at_1", "real seen", None),
    Goal("real pictures, held-out pairs: the ceiling", "retrieval_at_1", "real held_out", None),
    Goal("whole command, one picture", "command_seconds", "one picture", 4.0, "most", "s"),
    Goal("one picture, model loaded", "warm_seconds", "one picture", 0.6, "most", "s"),
    Goal("peak memory of that command", "command_peak_mb", "one picture", 700.0, "most", "MB"),
)
