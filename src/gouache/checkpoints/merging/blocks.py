"""Weights for each block of a U-Net, as merge-block-weighted (A1111's extension, after kohya's script) names them.

IN00 to IN11, M00, OUT00 to OUT11: the blocks of CompVis's U-Net, 25 numbers for SD 1.x and 2.x; SDXL has 19 (IN00 to
IN08, M00, OUT00 to OUT08). The time embedding goes with IN00 and the last norm and convolution with the last OUT. BASE,
in front where it is given, is everything outside the U-Net.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from gouache.checkpoints.keymaps import speller
from gouache.errors import InvalidInput, unknown_name
from gouache.models.configs import UNetConfig

BASE = "BASE"
_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.")


def block_names(config: UNetConfig) -> tuple[str, ...]:
    """The names of a U-Net's blocks, in order; without BASE.

    >>> len(block_names(UNetConfig(channels=(320, 640, 1280, 1280), transformer_layers=(1, 1, 1, 0), heads=(8,) * 4)))
    25
    """
    levels = len(config.channels)
    down = 1 + levels * config.layers_per_level + levels - 1
    up = len([depth for depths in config.up_depths() for depth in depths])
    middle = ("M00",) if config.middle_layers else ()
    return (*(f"IN{k:02}" for k in range(down)), *middle, *(f"OUT{k:02}" for k in range(up)))


def block_finder(config: UNetConfig) -> Callable[[str], str]:
    """Our name of a U-Net's tensor -> the block that it lies in."""
    spell, names = speller(config, "ldm"), block_names(config)
    last = names[-1]

    def find(name: str) -> str:
        theirs = spell(name).name
        found = _BLOCK.match(theirs)
        if found is None:
            return last if theirs.startswith("out.") else names[0]
        if found[1] == "middle_block":
            return "M00"
        return f"{'IN' if found[1] == 'input_blocks' else 'OUT'}{int(found[2]):02}"

    return find


def read_blocks(text: str, config: UNetConfig) -> Mapping[str, float]:
    """Weights by block from ``0.1,0.2,...`` for all of them (BASE in front or not), or ``IN00=0.1,OUT03=0.5`` for some.

    Raises:
        InvalidInput: another number of them, or no numbers.
        UnknownName: the U-Net has no block of this name.
    """
    names = block_names(config)
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    try:
        if pieces and all("=" in piece for piece in pieces):
            pairs = [piece.split("=", 1) for piece in pieces]
            found = {name.strip().upper(): float(number) for name, number in pairs}
        else:
            numbers = [float(piece) for piece in pieces]
            whole = (BASE, *names) if len(numbers) == len(names) + 1 else names
            found = dict(zip(whole, numbers, strict=True))
    except ValueError as error:
        raise InvalidInput(
            "blocks",
            given=f"{len(pieces)} values, {text[:60]!r}",
            expected=f"{len(names)} numbers ({names[0]} to {names[-1]}), {len(names) + 1} with BASE in front, "
            "or NAME=NUMBER for some of them",
            cure="For example IN00=0.2,M00=0.5,OUT03=1",
        ) from error
    for name in found:
        if name not in (BASE, *names):
            raise unknown_name("blocks", name, (BASE, *names))
    return found
