"""Growing a picture beyond its edges, side by side, in steps that overlap what is there."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from PIL import Image

from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.generation import Event, Painted, Progress
from gouache.pipeline.inputs.images import References, extend, nearest_size
from gouache.pipeline.inputs.masks import crop_box
from gouache.pipeline.inputs.start import DEPTH, input_kind
from gouache.pipeline.request import MAX_PIXELS, Mask, Outpaint, Request
from gouache.pipeline.resolve import factor_of

Margins = tuple[int, int, int, int]
"""Pixels added on the left, top, right, bottom."""
RunRequest = Callable[[Request, Mapping[str, bytes]], Iterator[Event]]


@dataclass(frozen=True, slots=True)
class Growth:
    """One step: the picture on a larger canvas, and which part of it is to be painted."""

    picture: Image.Image
    mask: Image.Image


def outpaint(
    request: Request, bundle: ModelBundle, references: References, run: RunRequest, notes: list[str]
) -> Iterator[Event]:
    """Paint every picture of a resolved request with `outpaint`.

    Args:
        request: resolved.
        bundle: the model.
        references: where its starting picture is.
        run: paints one masked step.
        notes: what was noted of the whole request.

    Raises:
        InvalidInput: the result would be too large, or the model needs the depth of what isn't there yet.
    """
    if request.outpaint is None or request.init_image is None:
        raise InvalidInput("outpaint", given="nothing", expected="a border and a starting picture")
    if input_kind(bundle) == DEPTH:
        raise InvalidInput(
            "outpaint",
            given="a depth model",
            expected="a model that paints without a depth map",
            cure="Extend the picture and its depth map yourself, and paint the new part with --mask.",
        )
    start = references.picture(request.init_image)
    borders = growth_steps(border_of(request.outpaint, start.size), bundle)
    return _noted(_all(request, start, borders, bundle, run), notes)


def _noted(events: Iterator[Event], notes: list[str]) -> Iterator[Event]:
    """The same events; recipes tell what was noted of the whole request, and of its last step."""
    for event in events:
        if isinstance(event, Painted) and notes:
            told = tuple(dict.fromkeys((*notes, *event.recipe.notes)))
            yield replace(event, recipe=event.recipe.model_copy(update={"notes": told}))
        else:
            yield event


def _all(
    request: Request, start: Image.Image, borders: list[Margins], bundle: ModelBundle, run: RunRequest
) -> Iterator[Event]:
    for index in range(request.count):
        seed = (request.seed or 0) + index
        yield from _one(request.replace({"seed": seed, "count": 1}), index, request.count, start, borders, bundle, run)


def _one(
    request: Request,
    index: int,
    count: int,
    picture: Image.Image,
    borders: list[Margins],
    bundle: ModelBundle,
    run: RunRequest,
) -> Iterator[Event]:
    overlap = request.outpaint.overlap if request.outpaint else 0
    digests: list[str] = []
    seconds = 0.0
    for k, border in enumerate(borders):
        step, attachments = _step(request, grown(picture, border, overlap), border, bundle)
        for event in run(step, attachments):
            if isinstance(event, Progress):
                done = k * event.steps + event.step
                steps = len(borders) * event.steps
                # Half of a strip is no picture.
                yield replace(event, picture=index, pictures=count, step=done, steps=steps, partial=None)
                continue
            picture = event.image
            digests += event.recipe.steps
            seconds += event.seconds
            if k == len(borders) - 1:
                recipe = event.recipe.model_copy(update={"request": request, "steps": tuple(digests)})
                yield Painted(index, picture, recipe, seconds)


def _step(request: Request, growth: Growth, border: Margins, bundle: ModelBundle) -> tuple[Request, dict[str, bytes]]:
    """The masked request of one step: only the new strip and its surroundings are worked on."""
    attachments = {sha256(data).hexdigest(): data for data in (_png(growth.picture), _png(growth.mask))}
    first, second = (f"sha256:{name}" for name in attachments)
    options = request.mask or Mask(fill="fill")
    side = min(bundle.defaults.width, bundle.defaults.height)
    padding = max(0, side - max(border))
    mask = options.model_copy(update={"image": second, "invert": False, "only_masked": True, "padding": padding})
    box = crop_box(growth.mask.getbbox() or (0, 0, *growth.mask.size), growth.mask.size, padding, 1.0)
    width, height = _working_size(box[2] - box[0], box[3] - box[1], side)
    width, height = nearest_size(width, height, factor_of(bundle))
    changes = {"init_image": first, "mask": mask, "outpaint": None, "width": width, "height": height}
    changes["procedure"] = "gouache"  # no other program grows pictures in these steps
    return request.replace(changes), attachments


def _working_size(width: int, height: int, side: int) -> tuple[int, int]:
    """The box's own size, made smaller if it is much larger than the model knows."""
    scale = min(1.0, 1.5 * side / max(width, height))
    return round(width * scale), round(height * scale)


def grown(picture: Image.Image, border: Margins, overlap: int) -> Growth:
    """The picture with its edge repeated outwards, and a mask over the new border and an overlap with the old part."""
    left, top, right, bottom = border
    larger = extend(picture, left, top, right, bottom)
    kept = (
        left + (overlap if left else 0),
        top + (overlap if top else 0),
        left + picture.width - (overlap if right else 0),
        top + picture.height - (overlap if bottom else 0),
    )
    mask = Image.new("L", larger.size, 255)
    if kept[0] < kept[2] and kept[1] < kept[3]:
        mask.paste(0, kept)
    return Growth(larger, mask)


def border_of(options: Outpaint, size: tuple[int, int]) -> Margins:
    """The whole border in pixels; an aspect ratio is reached by growing evenly on two sides.

    Raises:
        InvalidInput: the result would have too many pixels.
    """
    width, height = size[0] + options.left + options.right, size[1] + options.top + options.bottom
    left, top, right, bottom = options.left, options.top, options.right, options.bottom
    if options.aspect is not None:
        across, down = (int(part) for part in options.aspect.split(":"))
        more_width = max(0, math.ceil(height * across / down) - width)
        more_height = max(0, math.ceil(width * down / across) - height)
        left, right = left + more_width // 2, right + more_width - more_width // 2
        top, bottom = top + more_height // 2, bottom + more_height - more_height // 2
    total = (size[0] + left + right) * (size[1] + top + bottom)
    if total > MAX_PIXELS:
        raise InvalidInput("outpaint", given=f"{total} pixels", expected=f"at most {MAX_PIXELS}", cure="Grow less.")
    return left, top, right, bottom


def growth_steps(border: Margins, bundle: ModelBundle) -> list[Margins]:
    """The border side by side, none of the steps larger than half of what the model knows.

    Raises:
        InvalidInput: there is nothing to add.
    """
    most = max(8, min(bundle.defaults.width, bundle.defaults.height) // 2)
    steps: list[Margins] = []
    for side, total in enumerate(border):
        count = -(-total // most)
        for k in range(count):
            part = total * (k + 1) // count - total * k // count
            steps.append(tuple(part if place == side else 0 for place in range(4)))  # type: ignore[arg-type]
    if not steps:
        raise InvalidInput("outpaint", given="a border of 0 pixels", expected="some pixels to add")
    return steps


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
