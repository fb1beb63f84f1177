"""One of the folders that a set is made of, and how its pictures and captions are shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gouache.config import Config
from gouache.data.readers import AS_USUAL, CaptionedPicture, Reading
from gouache.data.subsets.caption_rules import AS_IT_IS, CaptionRules


class SubsetRules(Config):
    """What a packed set remembers of a subset."""

    captions: CaptionRules = AS_IT_IS
    flip: bool = False
    """Mirror half of its pictures."""


PLAIN = SubsetRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """Pictures from one source.

    Attributes:
        source: as for `read_pictures`, or a packed set.
        name: tells it from the others of its set; "" where there is one.
        repeats: how often an epoch shows each of its pictures; None asks kohya's folders ``10_name``.
        regularisation: they are pictures of the class, for prior preservation (Ruiz et al. 2023, section 3.2).
        rules: how captions and pictures are varied.
        reading: how the source is read.
        most: so many of its usable pictures, the first; None takes all.
    """

    source: str | Path
    name: str = ""
    repeats: int | None = None
    regularisation: bool = False
    rules: SubsetRules = PLAIN
    reading: Reading = AS_USUAL
    most: int | None = None

    def own(self, item: CaptionedPicture) -> CaptionedPicture:
        """A picture of its source as this subset shows it."""
        return replace(
            item,
            key=f"{self.name}/{item.key}" if self.name else item.key,
            repeats=item.repeats if self.repeats is None else self.repeats,
            regularisation=self.regularisation or item.regularisation,
        )
