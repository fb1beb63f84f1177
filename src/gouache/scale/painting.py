"""Many prompts painted as one batch: what is there already is kept, and every picture is checked before it is.

A batch is a function of its file: a line's pictures have names and seeds of their own, so a second run of the same
command finds what the first one wrote and paints the rest, on one machine or on many.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gouache.diffusion.rng import seeds_of_batch
from gouache.errors import ClusterError, GouacheError, PictureError, RecipeError
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.inputs.images import References, read_picture
from gouache.pipeline.output.foreign import read_recipe
from gouache.pipeline.output.recipe import ModelRef, Recipe, model_ref, package_versions, pixels_digest
from gouache.pipeline.pipeline import Pipeline, open_pipeline
from gouache.pipeline.request import Request
from gouache.pipeline.resolve import Resolved
from gouache.scale.cluster import connected
from gouache.scale.folders import Folder, read_all
from gouache.scale.spread import Failed, Result, Room, check_build, spread

CHUNK = 256
"""Pictures of an earlier run that are read and compared together."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a batch, ready to be painted.

    Attributes:
        where: how to call it in an error, `prompts.jsonl:3`.
        plan: its request, resolved.
        names: the files of its pictures.
    """

    where: str
    plan: Resolved
    names: tuple[str, ...]

    def request_of(self, picture: int) -> Request:
        """What the recipe of one of its pictures says."""
        asked = self.plan.request
        seeds = seeds_of_batch(asked.seed or 0, asked.count, asked.subseed or 0, asked.subseed_strength)
        seed = seeds[picture]
        subseed = seed.subseed if seed.subseed_strength else None
        return asked.replace({"count": 1, "seed": seed.seed, "subseed": subseed})


@dataclass(frozen=True, slots=True)
class Kept:
    """A picture is in the folder.

    Attributes:
        name: of its file.
        recipe: read from the file.
        width, height: in pixels.
        painted: by this run; an earlier one left it otherwise.
    """

    name: str
    recipe: Recipe
    width: int
    height: int
    painted: bool


@dataclass(frozen=True, slots=True)
class NotPainted:
    """A line that has no, or not all, pictures.

    Attributes:
        where: the line.
        error: what stood in the way.
    """

    where: str
    error: GouacheError


@dataclass(frozen=True, slots=True)
class Painters:
    """How a cluster paints.

    Attributes:
        address: of the cluster, as `connected` has it.
        actors: at most so many; None is as many as there is room for.
        device, dtype: as `open_pipeline`, on the cluster's machines.
    """

    address: str
    actors: int | None = None
    device: str | None = None
    dtype: str | None = None


def paint_batch(
    pipeline: Pipeline,
    lines: Sequence[Line],
    folder: Folder,
    *,
    painters: Painters | None = None,
    noted: tuple[str, ...] = (),
    force: bool = False,
) -> Iterator[Kept | NotPainted]:
    """Paint the pictures that a folder lacks.

    Args:
        pipeline: the model; with `painters` it only plans and compares.
        lines: of the batch; names differ from each other.
        folder: where the pictures go.
        painters: paint on a cluster, not here.
        noted: notes for every recipe.
        force: paint anew what is there, and replace files that are other pictures.

    Yields:
        Each picture that is in the folder at the end, once, and each line that could not be painted.

    Raises:
        ClusterError, StoreError, PictureError: the cluster or the folder can't be used any more. What was finished is
            there, and the same call goes on with the rest.
    """
    folder.check()
    model = model_ref(pipeline.bundle)
    wanted = {number: tuple(range(len(line.names))) for number, line in enumerate(lines)}
    if not force:
        yield from _already_there(lines, folder, model, wanted)
    wanted = {number: pictures for number, pictures in wanted.items() if pictures}
    if not wanted:
        return
    if painters is None:
        yield from _painted_here(pipeline, lines, wanted, folder, noted)
    else:
        yield from _painted_there(model, lines, wanted, folder, noted, painters)


def _already_there(
    lines: Sequence[Line], folder: Folder, model: ModelRef, wanted: dict[int, tuple[int, ...]]
) -> Iterator[Kept | NotPainted]:
    """What an earlier run left; it is taken out of `wanted`, and so are lines whose files are other pictures."""
    names = folder.names()
    there = [(n, k) for n, line in enumerate(lines) for k, name in enumerate(line.names) if name in names]
    for start in range(0, len(there), CHUNK):
        chunk = there[start : start + CHUNK]
        found = read_all(folder, (lines[n].names[k] for n, k in chunk))
        for n, k in chunk:
            name = lines[n].names[k]
            try:
                kept = checked(lines[n], k, found[name], model)
            except GouacheError as error:
                wanted[n] = ()
                yield NotPainted(lines[n].where, _other_picture(folder.address(name), error))
                continue
            wanted[n] = tuple(one for one in wanted[n] if one != k)
            yield Kept(name, kept.recipe, kept.width, kept.height, painted=False)


def _other_picture(where: str, error: GouacheError) -> PictureError:
    return PictureError(
        where,
        given=f"a file that exists and is not this line's picture ({error.given})",
        expected="a free name, or the picture that this line makes",
        cure="Choose another folder, or use --force.",
    )


def checked(line: Line, picture: int, data: bytes, model: ModelRef) -> Kept:
    """A picture's file, once it is sure to be what the line asks for: recipe, model, and the sha256 of its pixels.

    Raises:
        ClusterError: it is not.
    """
    where = f"{line.where}, picture {picture}"
    try:
        recipe = read_recipe(data, where=where).recipe
        image = read_picture(data, where=where)
    except (PictureError, RecipeError) as error:
        raise ClusterError(where, given=str(error.given), expected="a picture with a recipe") from error
    if recipe is None or recipe.request != line.request_of(picture):
        raise ClusterError(where, given="a picture of another request", expected="the picture of this line")
    if recipe.model.sha256 != model.sha256:
        given = f"a picture by {recipe.model.name} {str(recipe.model.sha256)[:12]}"
        raise ClusterError(where, given=given, expected=f"one by {model.name} {str(model.sha256)[:12]}")
    if recipe.pixels != pixels_digest(image):
        raise ClusterError(where, given="pixels with another sha256 than the recipe's", expected="a picture as painted")
    return Kept(line.names[picture], recipe, image.width, image.height, painted=True)


def _painted_here(
    pipeline: Pipeline,
    lines: Sequence[Line],
    wanted: Mapping[int, tuple[int, ...]],
    folder: Folder,
    noted: tuple[str, ...],
) -> Iterator[Kept | NotPainted]:
    for number, pictures in wanted.items():
        line = lines[number]
        events = pipeline.run(line.plan)
        while True:
            # An error of the painting is the line's own; one of the folder ends the batch.
            try:
                event = next(events, None)
            except GouacheError as error:
                yield NotPainted(line.where, error)
                break
            if event is None:
                break
            if isinstance(event, Painted) and event.picture in pictures:
                name = line.names[event.picture]
                folder.write(name, encoded(event, noted))
                yield Kept(name, event.recipe, event.image.width, event.image.height, painted=True)


def encoded(painted: Painted, noted: tuple[str, ...]) -> bytes:
    """A picture's file, with these notes before those of its recipe."""
    if noted:
        notes = (*noted, *painted.recipe.notes)
        painted = replace(painted, recipe=painted.recipe.model_copy(update={"notes": notes}))
    return painted.encode("png")


def _painted_there(
    model: ModelRef,
    lines: Sequence[Line],
    wanted: Mapping[int, tuple[int, ...]],
    folder: Folder,
    noted: tuple[str, ...],
    painters: Painters,
) -> Iterator[Kept | NotPainted]:
    import torch

    tasks = {
        number: json.dumps(
            {"request": lines[number].plan.request.to_json(), "notes": lines[number].plan.notes, "pictures": pictures}
        )
        for number, pictures in wanted.items()
    }
    attachments = _attached(lines[number].plan.request for number in wanted)
    asked = lines[next(iter(wanted))].plan.request.model
    arguments = (asked, painters.device, painters.dtype, model.sha256, package_versions(), attachments, noted)

    kept: dict[tuple[int, int], Kept] = {}

    def check(number: int, picture: int, data: bytes) -> None:
        kept[number, picture] = checked(lines[number], picture, data, model)

    with connected(painters.address) as cluster:
        on_gpus = painters.device != "cpu" and cluster.has_gpus()
        room = Room(torch.get_num_threads(), gpus=1 if on_gpus else 0, actors=painters.actors)
        for event in spread(cluster, tasks, PaintWork, arguments, room, check):
            line = lines[event.key]
            if isinstance(event, Failed):
                yield NotPainted(line.where, event.error)
            elif isinstance(event, Result):
                folder.write(line.names[event.part], event.data)
                yield kept.pop((event.key, event.part))


def _attached(requests: Iterable[Request]) -> dict[str, bytes]:
    """The pictures that requests name: the cluster's machines don't have this one's files."""
    references = References()
    return {name: references.data(name) for request in requests for name in request.pictures()}


def checked_pipeline(
    model: str | None, device: str | None, dtype: str | None, digest: str | None, versions: Mapping[str, str]
) -> Pipeline:
    """The model, loaded on a node of a cluster.

    Args:
        model: path or name, on every machine.
        device, dtype: as `open_pipeline`.
        digest: sha256 that the model must have.
        versions: packages that the machine must have.

    Raises:
        ClusterError: the machine has another build or another model.
        ModelNotFound: it has no such model.
    """
    check_build(versions)
    pipeline, _ = open_pipeline(model, device=device, dtype=dtype)
    own = model_ref(pipeline.bundle)
    if own.sha256 != digest:
        raise ClusterError(
            f"model {own.path or own.name}",
            given=f"sha256 {str(own.sha256)[:12]} on a node",
            expected=f"{str(digest)[:12]}, as on the machine that asks",
            cure="Copy the same files to every node, to the same place.",
        )
    return pipeline


class PaintWork:
    """Paints lines in an actor of a cluster.

    Args:
        model, device, dtype, digest, versions: as `checked_pipeline`, with its errors.
        attachments: pictures by the names that requests have for them.
        noted: notes for every recipe.
    """

    def __init__(
        self,
        model: str | None,
        device: str | None,
        dtype: str | None,
        digest: str | None,
        versions: Mapping[str, str],
        attachments: Mapping[str, bytes],
        noted: tuple[str, ...],
    ) -> None:
        self._pipeline = checked_pipeline(model, device, dtype, digest, versions)
        self._attachments, self._noted = attachments, noted

    def __call__(self, task: str) -> Iterator[tuple[int, bytes]]:
        """The pictures that a line lacks, as files."""
        asked = json.loads(task)
        plan = Resolved(Request.from_json(asked["request"], where="request"), tuple(asked["notes"]))
        for event in self._pipeline.run(plan, self._attachments):
            if isinstance(event, Painted) and event.picture in asked["pictures"]:
                yield event.picture, encoded(event, self._noted)
