"""How a remembered thing stands in a variation: mirrored, turned, moved, smaller.

A draft that follows one remembered picture follows the same one in each of its variations, which would be all alike.
What has a right way round, as letters, flags and clocks, is never mirrored. Pictures that are no variation stand as
what they follow: mirroring half of the seeds was tried, and a judge found the right caption less often (docs/log.md).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from PIL import Image

from gouache.diffusion.rng import generator_for

TURN, SHRINK, MOVE = 20.0, 0.25, 0.05
"""Of the freest variation: largest angle in degrees, share of the size, and distance as a share of the picture."""
ONE_WAY_ROUND = re.compile(
    r"\b(letters?|alphabet|numbers?|digits?|keycaps?|flags?|arrows?|buttons?|clocks?|watch|o.clock|calendar|newspaper"
    r"|signs?|symbols?|logos?|text|words?|left|right|east|west|maps?|globe|notes?|music\w*|questions?|exclamation"
    r"|plus|minus|dollars?|euros?|yen|pounds?|abc|abcd|atm|sos|zzz|ok|dice|cards?|keyboard|calculator|receipt)\b"
    r"|[旗左右东西]|字母|数字|文字|箭头|钟|手表|日历|报纸|标志|符号|地图|地球|按钮|问号|音符|键盘",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Pose:
    """What is done to the picture of a thing.

    Attributes:
        mirrored: left and right change sides.
        turn: degrees, counter-clockwise.
        scale: of the size, 1 or smaller.
        right, down: shares of the picture that it is moved by.
    """

    mirrored: bool = False
    turn: float = 0.0
    scale: float = 1.0
    right: float = 0.0
    down: float = 0.0

    def of(self, picture: Image.Image) -> Image.Image:
        """The picture (RGBA) in this pose; only mirrored, each pixel is one of its own."""
        if self.mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if (self.turn, self.scale, self.right, self.down) == (0.0, 1.0, 0.0, 0.0):
            return picture
        width, height = picture.size
        middle, to = (width / 2, height / 2), (width * (0.5 + self.right), height * (0.5 + self.down))
        # For every place of the result the one that is seen there; "RGBa" is multiplied by alpha: no fringe bleeds in.
        cos, sin = (f(math.radians(self.turn)) / self.scale for f in (math.cos, math.sin))
        matrix = (cos, -sin, middle[0] - cos * to[0] + sin * to[1], sin, cos, middle[1] - sin * to[0] - cos * to[1])
        moved = picture.convert("RGBa").transform(
            picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
        )
        return moved.convert("RGBA")


def pose_of(words: str, stream: str, subseed: int, variation: float) -> Pose | None:
    """The pose of a thing in a variation; None shows it as it is.

    Args:
        words: what it is called; what has a right way round isn't mirrored.
        stream: name of its random numbers.
        subseed: of the variation.
        variation: how free it is: 0 keeps everything, 1 allows any pose.
    """
    if variation == 0:
        return None
    turned, *drawn = torch.rand(5, generator=generator_for(subseed, f"{stream}/pose")).tolist()
    turn, smaller, right, down = (variation * (2 * value - 1) for value in drawn)
    mirrored = turned < variation / 2 and ONE_WAY_ROUND.search(words) is None
    return Pose(mirrored, TURN * turn, 1 - SHRINK * abs(smaller), MOVE * right, MOVE * down)
