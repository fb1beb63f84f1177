"""What a running generation tells its caller: progress after every step, and each finished picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from gouache.pipeline.output.a1111_text import format_infotext, infotext_of
from gouache.pipeline.output.metadata import OWN, PARAMETERS, Kind, encode_picture
from gouache.pipeline.output.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Progress:
    """One step is done.

    Attributes:
        picture: index of the picture, or of the first of the pictures that are painted together; from 0.
        pictures: how many pictures there will be.
        step: steps done for this picture, from 1.
        steps: steps this picture takes in all, second passes included.
        sigma: noise level after the step.
        preview: makes a quick look at the picture as it stands; costs nothing until called, valid until the next step.
        partial: decodes the first picture in full as it stands, for whoever stops here; None while there is none.
    """

    picture: int
    pictures: int
    step: int
    steps: int
    sigma: float
    preview: Callable[[], Image.Image]
    partial: Callable[[], Painted] | None = None

    @property
    def fraction(self) -> float:
        """Done, 0..1, over all pictures."""
        return (self.picture + self.step / self.steps) / self.pictures


@dataclass(frozen=True, slots=True)
class Painted:
    """One picture is finished.

    Attributes:
        picture: its index, from 0.
        image: mode RGB or RGBA.
        recipe: how to paint it again.
        seconds: time it took, with its share of what was done together.
    """

    picture: int
    image: Image.Image
    recipe: Recipe
    seconds: float

    @property
    def seed(self) -> int:
        """The picture's own seed."""
        return self.recipe.request.seed or 0

    def texts(self) -> dict[str, str]:
        """The texts that go into its file, by key."""
        return {PARAMETERS: format_infotext(infotext_of(self.recipe)), OWN: self.recipe.to_json()}

    def encode(self, kind: Kind = "png", *, quality: int = 95) -> bytes:
        """The picture as a file's bytes with its recipe inside."""
        return encode_picture(self.image, kind, self.texts(), quality=quality)


Event = Progress | Painted
