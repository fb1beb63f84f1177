"""Prompts that a graph lays on boxes of the picture, as regions of a request.

ComfyUI runs the network once for each such prompt and takes a mean of what it paints, weighted by strength; a request's
regions are one run, whose attention looks at each text in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gouache.pipeline.fields.values import MAX_REGIONS
from gouache.pipeline.output.comfyui.graph import Graph, Node

BOXES = ("ConditioningSetArea", "ConditioningSetAreaPercentage")


@dataclass(frozen=True, slots=True)
class Area:
    """A box with a weight.

    Attributes:
        left, top, width, height: in pixels, or as fractions of the picture.
        strength: weight among the prompts of a place.
        relative: they are fractions.
        node: whose they are.
    """

    left: float
    top: float
    width: float
    height: float
    strength: float
    relative: bool
    node: str

    def box(self, size: tuple[int, int] | None) -> tuple[float, float, float, float] | None:
        """Left, top, right, bottom as fractions of a picture; None if it has no such part, or no size."""
        across, down = (1, 1) if self.relative else size or (0, 0)
        if not across or not down:
            return None
        box = (self.left / across, self.top / down, (self.left + self.width) / across, (self.top + self.height) / down)
        left, top, right, bottom = (round(min(max(one, 0.0), 1.0), 6) for one in box)
        return (left, top, right, bottom) if left < right and top < bottom else None


def area_of(node: Node, graph: Graph) -> Area | None:
    """The box that a node lays a prompt on; None for any other node, or numbers that can't be followed."""
    if node.kind not in BOXES:
        return None
    numbers = [graph.number(node.inputs.get(name), name) for name in ("x", "y", "width", "height")]
    strength = graph.number(node.inputs.get("strength", 1.0), "strength")
    if strength is None or None in numbers:
        return None
    left, top, width, height = (float(number or 0) for number in numbers)
    return Area(left, top, width, height, float(strength), node.kind == "ConditioningSetAreaPercentage", str(node))


def regions_of(
    prompts: list[tuple[str, Area]], base: bool, size: tuple[int, int] | None, graph: Graph
) -> list[dict[str, Any]]:
    """Regions of a request, for prompts with their boxes.

    Args:
        prompts: what is laid where.
        base: another prompt holds for the whole picture.
        size: width and height of the picture that is painted.
        graph: gets notes on what is left out.
    """
    found: list[dict[str, Any]] = []
    for text, area in prompts:
        box = area.box(size)
        if box is None or not 0 < area.strength <= 10 or len(found) == MAX_REGIONS:
            reason = "it lies outside the picture" if box is None else "its strength or number is beyond a request's"
            graph.note(f"{area.node} lays {text!r} on a part of the picture, which is left out: {reason}")
            continue
        # Where the whole picture's prompt counts 1, its share of a place is 1 / (1 + strength).
        share = round(1 / (1 + area.strength), 6) if base else 0.0
        found.append({"prompt": text, "box": box, "weight": area.strength if not base else 1.0, "base": share})
    if found:
        graph.note(f"prompts on {len(found)} boxes are read as regions: here attention is divided, there predictions")
    return found
