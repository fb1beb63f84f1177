"""What can be explained: told without torch, before anything is painted."""

from __future__ import annotations

from gouache.errors import InvalidInput
from gouache.pipeline.request import Request

CUT = ("outpaint", "interpolation", "inversion", "hires", "refiner")
"""What a request may ask for that paints in several passes, of which this shows none."""


def check_explained(request: Request) -> None:
    """Refuse what can't be explained, before anything is painted.

    Args:
        request: of one picture, in one pass.

    Raises:
        InvalidInput: it paints in several passes, or several pictures, or leaves out blocks that are shown.
    """
    for name in CUT:
        if getattr(request, name) is not None:
            raise InvalidInput(name, given="one", expected="nothing: one pass is explained, and this adds another")
    leaving_out = [name for name in ("deep_cache", "block_cache") if getattr(request, name) is not None]
    if leaving_out or request.fast:
        name = leaving_out[0] if leaving_out else "fast"
        expected = "nothing: every step is explained from the network's deep blocks, which this leaves out"
        raise InvalidInput(name, given="one", expected=expected, cure="Leave it out.")
    if request.count != 1:
        raise InvalidInput("count", given=request.count, expected="1: one picture is explained")
