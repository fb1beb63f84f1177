"""The endless stream of training examples made from a built `stickers` set; a pure function of (seed, number)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gouache.colours import Picture, main_colour, visible
from gouache.data.captions import canonical_caption, caption
from gouache.data.drawing import fitted, lay, on_ground
from gouache.data.scenes import GROUNDS, SCENE_VERSION, Scenes
from gouache.data.stickers import Split, Sticker, Stickers
from gouache.data.wording import with_article
from gouache.data.wording_zh import background
from gouache.errors import InvalidInput

STREAM_VERSION = 2
ZH_VERSION = 1
"""Of the Chinese captions; streams without them don't depend on it."""
# Groups that read differently in a mirror: letters, signs, arrows, flags, clocks.
DIRECTED = ("symbols", "flags", "letters")
DIRECTED_WORDS = ("left", "right", "clock", "watch", "arrow", "book", "newspaper", "letter", "sign")


@dataclass(frozen=True, slots=True)
class Example:
    """A captioned picture: uint8 [S,S,4] with straight alpha, and what it shows."""

    picture: NDArray[np.uint8]
    caption: str


class StickerStream:
    """Single stickers with small shifts, scales and flips, some on a named background, mixed with composed scenes.

    Args:
        stickers: the set.
        seed: of the stream, 0 to 2**64 - 1.
        split: whose pictures are used.
        scene_share: share of composed scenes, 0..1.
        background_share: share of pictures on a coloured background, named in the caption.
        zh_share: share of captions in Chinese, of stickers and of scenes whose labels allow it.
    """

    def __init__(
        self,
        stickers: Stickers,
        seed: int,
        *,
        split: Split = "train",
        scene_share: float = 0.0,
        background_share: float = 0.15,
        zh_share: float = 0.0,
    ) -> None:
        self.stickers, self.seed = stickers, seed
        for name, share in (
            ("scene_share", scene_share),
            ("background_share", background_share),
            ("zh_share", zh_share),
        ):
            if not 0 <= share <= 1:
                raise InvalidInput(name, given=share, expected="a share from 0 to 1")
        self.split, self.scene_share = split, scene_share
        self.background_share, self.zh_share = background_share, zh_share
        self._scenes = Scenes(stickers, split=split) if scene_share > 0 else None
        self.rows = stickers.indices(split)

    @property
    def fingerprint(self) -> str:
        """Changes whenever the stream does."""
        digests = json.dumps(self.stickers.manifest.sha256, sort_keys=True)
        versions: tuple[object, ...] = (STREAM_VERSION, SCENE_VERSION, self.seed, self.split)
        if self.zh_share > 0:
            versions += (ZH_VERSION,)
        shares = (self.scene_share, self.background_share, self.zh_share)
        return hashlib.sha256(f"{digests}/{versions}/{shares}".encode()).hexdigest()

    def example(self, index: int) -> Example:
        """The example with this number, from 0 without end."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, index]))
        if self._scenes is not None and generator.random() < self.scene_share:
            scene = self._scenes.scene(self.seed, index)
            chinese = self.zh_share > 0 and generator.random() < self.zh_share
            return Example(scene.picture, scene.zh_caption if chinese and scene.zh_caption else scene.caption)
        # Every picture once in len(rows) examples, so that rare ones are not left to chance.
        row = int(self.rows[(index * 7919) % len(self.rows)])
        record, picture = self.stickers.records[row], np.asarray(self.stickers.pictures[row])
        text = caption(record, generator, zh_share=self.zh_share)
        if may_flip(record) and generator.random() < 0.5:
            picture = picture[:, ::-1]
        picture = moved(picture, generator)
        if generator.random() < self.background_share:
            main = main_colour(visible(picture)).name
            names = [name for name in GROUNDS if name != main]
            name = names[int(generator.integers(len(names)))]
            picture, text = on_ground(picture, GROUNDS[name]), with_background(text, name)
        return Example(np.ascontiguousarray(picture), text)


def with_background(text: str, colour: str) -> str:
    """The caption with its background named, in the caption's own language."""
    chinese = any("\u4e00" <= character <= "\u9fff" for character in text)
    return f"{text}，{background(colour)}" if chinese else f"{text}, on {with_article(colour)} background"


def plain_example(stickers: Stickers, row: int) -> Example:
    """A picture as it is, with its canonical caption."""
    return Example(np.array(stickers.pictures[row]), canonical_caption(stickers.records[row]))


def may_flip(record: Sticker) -> bool:
    """Whether the mirrored picture still shows what the caption says."""
    return record.group not in DIRECTED and not any(word in record.label for word in DIRECTED_WORDS)


def moved(picture: Picture, generator: np.random.Generator) -> Picture:
    """The picture at a slightly smaller scale and another place; half of the time as it is."""
    if generator.random() < 0.5:
        return picture
    side = picture.shape[0]
    sprite = fitted(picture, round(side * float(generator.uniform(0.75, 1.0))))
    x, y = (int(v) for v in generator.integers(0, side - sprite.shape[0] + 1, 2))
    canvas = np.zeros_like(picture)
    lay(canvas, sprite, x, y)
    return canvas
