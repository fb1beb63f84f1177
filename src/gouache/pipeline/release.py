"""The last thing that happens to a finished picture before anybody sees it: the safety gate and the watermark.

Both are off unless the request asks for them, and both are written down in the picture's recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from gouache.pipeline.events import Event, Painted, Progress
from gouache.pipeline.recipe import pixels_digest
from gouache.pipeline.request import Request
from gouache.pipeline.safety import SafetyGate, blurred, open_gate, placeholder
from gouache.pipeline.watermark import READABLE_PIXELS, add_watermark, carries


class Release:
    """One model's way out.

    Args:
        model: where the model lies; a checker may lie beside it.
    """

    def __init__(self, model: Path | None) -> None:
        self.model = model
        self._gate: SafetyGate | None = None

    def apply(self, request: Request, events: Iterator[Event]) -> Iterator[Event]:
        """The events with every picture checked and marked as the request says; the very same ones if it says nothing.

        Raises:
            ModelNotFound: a check is asked for and there is no checker; nothing is painted then.
            InvalidInput: while iterating, if a picture is too small for the watermark.
        """
        if request.safety == "off" and request.watermark is None:
            return events
        if request.safety != "off" and self._gate is None:
            self._gate = open_gate(self.model)
        return self._released(request, events, self._gate if request.safety != "off" else None)

    def _released(self, request: Request, events: Iterator[Event], gate: SafetyGate | None) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Painted):
                yield released(event, request, gate)
            else:
                yield _unseen(event, request, gate)


def _unseen(progress: Progress, request: Request, gate: SafetyGate | None) -> Progress:
    """The same progress; a picture that was not checked yet is only shown blurred, and an unfinished one is checked."""
    look, stop = progress.preview, progress.partial
    return replace(
        progress,
        preview=look if gate is None else lambda: blurred(look()),
        partial=None if stop is None else lambda: released(stop(), request, gate),
    )


def released(painted: Painted, request: Request, gate: SafetyGate | None) -> Painted:
    """A finished picture as it may be shown, with notes of what was done."""
    picture, notes = painted.image, []
    if gate is not None:
        picture, note = _checked(picture, request, gate)
        notes.append(note)
    if request.watermark is not None:
        picture = add_watermark(picture, request.watermark)
        notes.append(_watermark_note(picture, request.watermark))
    recipe = painted.recipe.model_copy(
        update={"notes": (*painted.recipe.notes, *notes), "pixels": pixels_digest(picture)}
    )
    return replace(painted, image=picture, recipe=recipe)


def _checked(picture: Image.Image, request: Request, gate: SafetyGate) -> tuple[Image.Image, str]:
    concepts = gate.concepts(picture)
    if not concepts:
        return picture, f"safety: nothing found by {gate.name}"
    numbers = ", ".join(map(str, concepts))
    if request.safety == "blur":
        return blurred(picture), f"safety: blurred, as {gate.name} found its concepts {numbers}"
    return placeholder(picture.size), f"safety: blocked, as {gate.name} found its concepts {numbers}"


def _watermark_note(picture: Image.Image, text: str) -> str:
    said = f"watermark: {len(text.encode('utf-8'))} bytes"
    if not carries(picture, text):
        return f"{said}, not readable: these colours leave no room for it"
    if picture.width * picture.height < READABLE_PIXELS:
        return f"{said}, in a picture that is too small for other programs to look"
    return f"{said}, dwtDct"
