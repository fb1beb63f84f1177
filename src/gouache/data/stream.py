"""The endless stream of training examples made from a built `stickers` set; a pure function of (seed, number)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gouache.data.captions import canonical_caption, caption
from gouache.data.stickers import Split, Sticker, Stickers

STREAM_VERSION = 1
# Groups that read differently in a mirror: letters, signs, arrows, flags, clocks.
DIRECTED = ("symbols", "flags", "letters")
DIRECTED_WORDS = ("left", "right", "clock", "watch", "arrow", "book", "newspaper", "letter", "sign")
BACKGROUNDS = {
    "white": (255, 255, 255), "black": (24, 24, 24), "gray": (150, 150, 150), "red": (215, 50, 50),
    "orange": (245, 150, 40), "yellow": (250, 220, 70), "green": (70, 170, 80), "blue": (60, 110, 220),
    "light blue": (160, 210, 245), "purple": (140, 80, 190), "pink": (250, 175, 200), "brown": (130, 85, 50),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Example:
    """A captioned picture: uint8 [S,S,4] with straight alpha, and what it shows."""

    picture: NDArray[np.uint8]
    caption: str


class StickerStream:
    """Single stickers with small shifts, scales and flips, some on a named background.

    Args:
        stickers: the set; only its training split is used.
        seed: of the stream.
        background_share: share of pictures on a coloured background, named in the caption.
        zh_share: share of captions in Chinese.
    """

    def __init__(
        self,
        stickers: Stickers,
        seed: int,
        *,
        split: Split = "train",
        background_share: float = 0.15,
        zh_share: float = 0.0,
    ) -> None:
        self.stickers, self.seed = stickers, seed
        self.background_share, self.zh_share = background_share, zh_share
        self.rows = stickers.indices(split)

    @property
    def fingerprint(self) -> str:
        """Changes whenever the stream does."""
        digests = json.dumps(self.stickers.manifest.sha256, sort_keys=True)
        settings = (STREAM_VERSION, self.seed, self.background_share, self.zh_share)
        return hashlib.sha256(f"{digests}/{len(self.rows)}/{settings}".encode()).hexdigest()

    def example(self, index: int) -> Example:
        """The example with this number, from 0 without end."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, index]))
        # Every picture once in len(rows) examples, so that rare ones are not left to chance.
        row = int(self.rows[(index * 7919) % len(self.rows)])
        record, picture = self.stickers.records[row], np.asarray(self.stickers.pictures[row])
        text = caption(record, generator, zh_share=self.zh_share)
        if may_flip(record) and generator.random() < 0.5:
            picture = picture[:, ::-1]
        picture = moved(picture, generator)
        if generator.random() < self.background_share:
            name = list(BACKGROUNDS)[int(generator.integers(len(BACKGROUNDS)))]
            picture, text = on_background(picture, BACKGROUNDS[name]), f"{text}, on a {name} background"
        return Example(np.ascontiguousarray(picture), text)


def held_out_examples(stickers: Stickers) -> list[Example]:
    """Every held-out pair as it is, with its canonical caption."""
    rows = stickers.indices("held_out")
    return [Example(np.array(stickers.pictures[row]), canonical_caption(stickers.records[row])) for row in rows]


def may_flip(record: Sticker) -> bool:
    """Whether the mirrored picture still shows what the caption says."""
    return record.group not in DIRECTED and not any(word in record.label for word in DIRECTED_WORDS)


def moved(picture: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """The picture at a slightly smaller scale and another place; half of the time as it is."""
    if generator.random() < 0.5:
        return picture
    side = picture.shape[0]
    small = round(side * float(generator.uniform(0.75, 1.0)))
    # Pillow scales premultiplied colours ("RGBa"), so that no fringe of the transparent colour bleeds in.
    scaled = Image.fromarray(picture).convert("RGBa").resize((small, small), Image.Resampling.LANCZOS).convert("RGBA")
    x, y = (int(v) for v in generator.integers(0, side - small + 1, 2))
    canvas = np.zeros_like(picture)
    canvas[y : y + small, x : x + small] = np.asarray(scaled)
    return canvas


def on_background(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The picture on an opaque ground of one colour."""
    alpha = picture[..., 3:].astype(np.float32) / 255
    flat = picture[..., :3] * alpha + np.array(colour, np.float32) * (1 - alpha)
    return np.concatenate([flat.round().astype(np.uint8), np.full_like(picture[..., 3:], 255)], axis=2)
