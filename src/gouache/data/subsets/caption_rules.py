"""What becomes of a caption each time its picture is shown: trigger words, shuffled and dropped tags, none at all."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from gouache.config import Config


class CaptionRules(Config):
    """How captions are varied. Every draw is the image's own: a resumed run shows the same."""

    prefix: str = ""
    """Words in front of every caption, a trigger word for example; never moved or dropped."""
    suffix: str = ""
    """Words behind every caption; never moved or dropped."""
    separator: str = Field(default=",", min_length=1)
    """What stands between two tags."""
    shuffle: bool = False
    """Put a caption's tags into another order each time."""
    keep: int = Field(default=0, ge=0)
    """The first tags, so many of them, stay in front and are never dropped."""
    keep_separator: str = ""
    """Where a caption holds it, for example "|||", the tags before it stay instead, and those behind a second one."""
    tag_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of the other tags that are left out."""
    dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of captions that are left out whole, trigger words too."""

    @property
    def draws(self) -> bool:
        """Whether the same caption may read differently another time."""
        return self.shuffle or self.tag_dropout > 0 or self.dropout > 0

    def applied(self, caption: str, generator: np.random.Generator) -> str | None:
        """The caption as it is shown this time; None if it is dropped.

        Args:
            caption: as the set has it.
            generator: decides, and isn't asked where nothing is drawn.
        """
        if self.dropout and generator.random() < self.dropout:
            return None
        if self.shuffle or self.tag_dropout or (self.keep_separator and self.keep_separator in caption):
            caption = self._retagged(caption, generator)
        return self.framed(caption)

    def framed(self, caption: str) -> str:
        """The caption between its trigger words."""
        return " ".join(filter(None, (self.prefix, caption, self.suffix)))

    def _retagged(self, caption: str, generator: np.random.Generator) -> str:
        if self.keep_separator and self.keep_separator in caption:
            before, _, behind = caption.partition(self.keep_separator)
            between, _, after = behind.partition(self.keep_separator)
            first, loose, last = (self._tags(part) for part in (before, between, after))
        else:
            tags = self._tags(caption)
            first, loose, last = tags[: self.keep], tags[self.keep :], []
        if self.tag_dropout:
            loose = [tag for tag in loose if generator.random() >= self.tag_dropout]
        if self.shuffle:
            loose = [loose[place] for place in generator.permutation(len(loose))]
        return f"{self.separator.rstrip()} ".join((*first, *loose, *last))

    def _tags(self, text: str) -> list[str]:
        return [tag for part in text.split(self.separator) if (tag := part.strip())]


AS_IT_IS = CaptionRules()
