"""Paint a picture again from the recipe inside it, and say where the second one leaves the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from gouache.errors import ModelNotFound, RecipeError
from gouache.pipeline.generate.generation import Event, Painted
from gouache.pipeline.inputs.images import References, read_picture
from gouache.pipeline.output.foreign import ForeignText, read_recipe
from gouache.pipeline.output.recipe import ModelRef, Recipe, first_difference, model_ref, pixels_digest
from gouache.pipeline.pipeline import Pipeline, open_pipeline

LOSSLESS = ("png",)
Show = Callable[[Iterator[Event]], Iterator[Event]]


@dataclass(frozen=True, slots=True)
class Replay:
    """The outcome.

    Attributes:
        same: every pixel is equal.
        first_step: index of the first step whose latents differ, from 0; None if all agree or none were recorded.
        largest: largest difference of a pixel's value, 0..255.
        painted: the second picture.
        reasons: what is different about this machine or installation, for the curious.
    """

    same: bool
    first_step: int | None
    largest: int
    painted: Painted
    reasons: tuple[str, ...]


def replay(
    path: Path,
    *,
    model: str | None = None,
    device: str | None = None,
    engine: str | None = None,
    attachments: Mapping[str, bytes] | None = None,
    show: Show = iter,
) -> Replay:
    """Paint `path` again and compare.

    Args:
        path: a picture painted by gouache.
        model: where its model is now; without it, where it was.
        device: where to paint; without it, the device of the recipe.
        engine: what runs the networks; without it, the engine of the recipe.
        attachments: pictures its request names, if they are no longer where they were.
        show: is handed the events as they come.

    Raises:
        RecipeError: the picture has no complete recipe, or one of its own pictures is missing or changed.
        ModelNotFound: the model or an adapter is not there, or not the one of the recipe.
        UnknownName, MissingDependency, InvalidInput: no such engine, not installed, or not for this model.
    """
    found = read_recipe(path)
    recipe = complete(found, str(path))
    pipeline = matching_pipeline(recipe, model, device, engine)
    _check_attachments(recipe, References(attachments))
    pipeline.adapters.expect(recipe.adapters)
    if recipe.refiner is not None and recipe.request.refiner is not None:
        pipeline.lend_refiner(recipe.request.refiner, matching_refiner(recipe.refiner, recipe, device, engine).bundle)
    events = show(pipeline.run(recipe.request, attachments))
    (painted,) = [event for event in events if isinstance(event, Painted)]
    original = read_picture(path)
    same = pixels_digest(painted.image) == (recipe.pixels or pixels_digest(original))
    return Replay(
        same=same,
        first_step=first_difference(recipe.steps, painted.recipe.steps),
        largest=0 if same else _largest(original, painted.image),
        painted=painted,
        reasons=differences(recipe, painted.recipe),
    )


def complete(found: ForeignText, where: str) -> Recipe:
    """The recipe, if it is ours and complete.

    Raises:
        RecipeError: another tool painted the picture.
    """
    if found.recipe is None:
        raise RecipeError(
            where,
            given=f"a picture by {found.tool}",
            expected="one painted by gouache",
            cure="`gouache paint --like` paints something near it.",
        )
    return found.recipe


def matching_pipeline(recipe: Recipe, model: str | None, device: str | None, engine: str | None = None) -> Pipeline:
    """Load the model of a recipe.

    Raises:
        ModelNotFound: it is not there, or its sha256 is another.
    """
    names: list[str | None] = [model] if model else [recipe.model.path, recipe.request.model, recipe.model.name]
    return _matching("model", recipe.model, names, recipe, (device, engine), "Name its place with --model.")


def matching_refiner(refiner: ModelRef, recipe: Recipe, device: str | None, engine: str | None = None) -> Pipeline:
    """Load the refiner of a recipe.

    Raises:
        ModelNotFound: it is not there, or its sha256 is another.
    """
    names = [refiner.path, recipe.request.refiner, refiner.name]
    cure = "Put it into the models folder under this name."
    return _matching("refiner", refiner, names, recipe, (device, engine), cure)


def _matching(
    where: str,
    wanted: ModelRef,
    names: list[str | None],
    recipe: Recipe,
    where_run: tuple[str | None, str | None],
    cure: str,
) -> Pipeline:
    """As above; `where_run` is device and engine, each the recipe's where it is None."""
    device, engine = where_run
    expected = f"the model {wanted.name!r} with sha256 {wanted.sha256 or 'unknown'}"
    error: ModelNotFound | None = None
    for name in (name for name in names if name):
        try:
            pipeline, _ = open_pipeline(
                name,
                device=device or recipe.machine.device,
                dtype=recipe.machine.dtype,
                engine=engine or recipe.machine.engine,
            )
        except ModelNotFound as missing:
            error = error or ModelNotFound(where, given=f"nothing at {name!r}", expected=expected, cure=cure)
            error.__cause__ = missing
            continue
        digest = model_ref(pipeline.bundle).sha256
        if wanted.sha256 and digest != wanted.sha256:
            given = f"{name!r} with sha256 {digest or 'unknown'}"
            error = ModelNotFound(where, given=given, expected=expected, cure=cure)
            continue
        return pipeline
    raise error or ModelNotFound(where, given="no name in the recipe", expected=expected, cure=cure)


def _check_attachments(recipe: Recipe, references: References) -> None:
    for name, digest in recipe.attachments.items():
        if not name.startswith("sha256:") and sha256(references.data(name)).hexdigest() != digest:
            raise RecipeError(
                name,
                given="a picture that has changed",
                expected=f"the one with sha256 {digest}",
                cure="Put the original back.",
            )


def differences(first: Recipe, second: Recipe) -> tuple[str, ...]:
    """What differs between two recipes' machines and packages."""
    found = [
        f"{name}: {first.versions[name]} then, {second.versions.get(name, 'absent')} now"
        for name in first.versions
        if first.versions[name] != second.versions.get(name)
    ]
    before, after = first.machine.model_dump(), second.machine.model_dump()
    found += [f"{key}: {before[key]} then, {after[key]} now" for key in before if before[key] != after[key]]
    return tuple(found)


def _largest(first: Image.Image, second: Image.Image) -> int:
    if first.size != second.size:
        return 255
    mode = "RGBA" if "RGBA" in (first.mode, second.mode) else "RGB"
    pixels = [np.asarray(picture.convert(mode), np.int16) for picture in (first, second)]
    return int(np.abs(pixels[0] - pixels[1]).max())
