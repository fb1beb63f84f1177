"""What is known about a composed scene: the answer that its caption's checker needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

SceneKind = Literal["coloured", "placed", "counted", "related", "grounded"]
KINDS: tuple[SceneKind, ...] = get_args(SceneKind)


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        row: its row in the stickers.
        code: its concept.
        noun: what the caption calls it.
        colour: the colour that the caption gives it, measured on the picture; None where it gives none.
    """

    row: int
    code: str
    noun: str
    colour: str | None = None


@dataclass(frozen=True, slots=True)
class SceneTruth:
    """The claims of a scene's caption; None where it makes none.

    Attributes:
        kind: what the scene is about.
        objects: one, or two for a relation, in the order of the caption.
        style: style of all objects.
        count: how many copies of the object there are.
        position: the ninth of the picture it lies in, for example ``"top left"``.
        relation: where the first object lies, seen from the second.
        background: name of the ground's colour; None is transparent.
    """

    kind: SceneKind
    objects: tuple[SceneObject, ...]
    style: str
    count: int | None = None
    position: str | None = None
    relation: str | None = None
    background: str | None = None
