"""What sceneries there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Light", "PlaceName", "Scenery", "SceneryUse", "Season"]

PlaceName = Literal[
    "land",
    "beach",
    "sea",
    "underwater",
    "meadow",
    "hill",
    "mountains",
    "desert",
    "forest",
    "sky",
    "space",
    "moon",
    "room",
    "street",
]
Light = Literal["day", "sunset", "night"]
Season = Literal["summer", "autumn", "winter"]
SceneryUse = Literal["draw", "drop", "ignore"]
"""What to do with a scenery that a prompt names: draw it, drop its words, or leave them to the model."""

FLOATING = ("sky", "space", "underwater")
FOOT = {"sea": 0.8, "hill": 0.79}
"""Height that things stand at, where it isn't `GROUND`."""
GROUND = 0.88


@dataclass(frozen=True, slots=True)
class Scenery:
    """What stands around a thing.

    Attributes:
        place: land is open land, for a scenery that only has a season, a light or rain.
        light: time of day.
        season: winter has snow, autumn coloured leaves.
        rain: whether it rains.
        aloft: whether the thing is above it all, in the air.
        bare: whether the thing itself is a light of the sky, which then has none of its own.
    """

    place: PlaceName = "land"
    light: Light = "day"
    season: Season = "summer"
    rain: bool = False
    aloft: bool = False
    bare: bool = False

    @property
    def floats(self) -> bool:
        """Whether things float here, and stand on no ground."""
        return self.aloft or self.place in FLOATING

    @property
    def over_ground(self) -> bool:
        """Whether what floats does so over a ground."""
        return self.floats and self.place not in FLOATING

    @property
    def foot(self) -> float:
        """Height of what a thing stands on."""
        return FOOT.get(self.place, GROUND)
