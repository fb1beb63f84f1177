"""Where pictures go: names, formats, the lines and the JSON that a command prints."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer
from PIL import Image

from gouache.errors import Interrupted, InvalidInput, MissingDependency, PictureError
from gouache.files import check_target, slug, write_bytes
from gouache.pipeline.prompts.syntax import unmarked

if TYPE_CHECKING:
    from gouache.pipeline.generate.generation import Event, Painted
    from gouache.pipeline.output.recipe import Recipe
    from gouache.pipeline.request import Request


TRACED_COLOURS = 16
"""Colours of a traced picture. vtracer merges neighbours that differ little, so that soft shading swallows whole parts;
between few flat colours there is nothing to merge."""


def traced(picture: Image.Image) -> str:
    """The picture as SVG text, in a few flat colours; what is more than half transparent stays free.

    Raises:
        MissingDependency: vtracer is not installed.
    """
    if find_spec("vtracer") is None:
        raise MissingDependency(
            "svg", given="no vtracer", expected="the package vtracer", cure="pip install 'gouache[media]'"
        )
    import vtracer

    buffer = io.BytesIO()
    clear = picture.convert("RGBA")
    flat = clear.convert("RGB").quantize(TRACED_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    stencil = flat.convert("RGBA")
    stencil.putalpha(clear.getchannel("A").point(lambda value: 255 if value >= 128 else 0))
    stencil.save(buffer, "PNG")
    svg: str = vtracer.convert_raw_image_to_svg(
        buffer.getvalue(), img_format="png", colormode="color", layer_difference=0, path_precision=2
    )
    return svg


STANDARD = Path("-")
"""Standard input or output, where a file could be named."""
LONGEST_FOR_JPEG = 10_000
"""Characters of prompts that surely fit a JPEG's EXIF together with the rest of the recipe."""


@dataclass
class OutputWriter:
    """Writes pictures as they are finished and remembers what to print at the end.

    Attributes:
        output: a file, a folder, `-` for standard output, or None for the current folder.
        force: overwrite files.
        as_json: print one JSON object at the end instead of a path a line.
        quality: of jpeg and webp.
        suffix: format of pictures whose name is made here.
        svg: whether each picture is traced to SVG too.
        told: notes that the user has seen.
        noted: notes that belong to every picture, for its recipe.
    """

    output: str | None
    force: bool = False
    as_json: bool = False
    quality: int = 95
    suffix: str = ".png"
    svg: bool = False
    started: float = field(default_factory=time.perf_counter)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    _planned: dict[tuple[int, int], Path] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    noted: tuple[str, ...] = ()

    @property
    def to_stdout(self) -> bool:
        """Whether the picture itself goes to standard output."""
        return self.output == "-"

    def check(self, request: Request) -> None:
        """Refuse what would fail only after the painting.

        Args:
            request: resolved.

        Raises:
            PictureError: a file is there already and `force` is off, or the folder can't be made or written.
            InvalidInput: several pictures for standard output, or a recipe too long for JPEG.
        """
        if self.to_stdout and (request.count > 1 or self.as_json):
            raise InvalidInput("--output", given="-", expected="one picture and no --json for standard output")
        if self.to_stdout:
            return
        from gouache.pipeline.output.metadata import kind_of

        for index in range(request.count):
            path = self.free_path(request, index)
            if kind_of(path) == "jpeg" and len(request.prompt) + len(request.negative_prompt or "") > LONGEST_FOR_JPEG:
                raise InvalidInput(
                    "--output",
                    given="a prompt too long for a JPEG's recipe",
                    expected=".png or .webp",
                    cure="Choose another suffix.",
                )
            check_target(path, force=self.force)

    def free_path(self, request: Request, index: int) -> Path:
        """The picture's file; where another picture of this run has that name already, the next one: `name-2.png`."""
        path = first = self.path_for(request, index)
        number = 1
        while path in self._planned.values():
            number += 1
            path = first.with_stem(f"{first.stem}-{number}")
        self._planned[id(request), index] = path
        return path

    def path_for(self, request: Request, index: int) -> Path:
        """The file of picture `index`: `slug-seed.png`, with the subseed behind for variations, or the asked name."""
        vary = request.subseed_strength > 0
        seed = (request.seed or 0) + (0 if vary else index)
        tag = f"{seed}-{(request.subseed or 0) + index}" if vary else str(seed)
        target = Path(self.output) if self.output else Path()
        if target.suffix and not target.is_dir() and not (self.output or "").endswith(("/", os.sep)):
            return target if request.count == 1 else target.with_stem(f"{target.stem}-{tag}")
        return target / f"{slug(unmarked(request.prompt, request.emphasis))}-{tag}{self.suffix}"

    def keep(self, painted: Painted, request: Request) -> Path | None:
        """Write one picture; gives its path, or None for standard output."""
        from gouache.pipeline.output.metadata import kind_of

        if self.noted:
            notes = (*self.noted, *painted.recipe.notes)
            painted = replace(painted, recipe=painted.recipe.model_copy(update={"notes": notes}))
        self._tell(painted.recipe.notes)
        if self.to_stdout:
            write_stdout(painted.encode("png"))
            return None
        path = self._planned.get((id(request), painted.picture)) or self.path_for(request, painted.picture)
        data = painted.encode(kind_of(path), quality=self.quality)
        with interrupts_held():
            write_bytes(path, data, force=self.force)
            self.note_file(path)
            self.pictures.append(
                {
                    "path": str(path),
                    "seed": painted.seed,
                    "width": painted.image.width,
                    "height": painted.image.height,
                    "seconds": round(painted.seconds, 3),
                    "notes": list(painted.recipe.notes),
                }
            )
        if self.svg:
            write_bytes(path.with_suffix(".svg"), traced(painted.image).encode(), force=self.force)
            self.note_file(path.with_suffix(".svg"))
        return path

    def _tell(self, notes: Sequence[str]) -> None:
        """What was done otherwise than asked, once, on standard error; in JSON it stands beside the picture."""
        for note in notes:
            if note not in self.told and not self.as_json:
                typer.echo(f"gouache: {note}", err=True)
            self.told.add(note)

    def tell_left_out(self, characters: str) -> None:
        """Say which characters a sheet lacks, if there are any."""
        if characters:
            from gouache.environment import Variable

            typer.echo(
                f"gouache: no font on this machine has {characters[:20]}, so the sheet leaves them out; "
                f"{Variable.FONT} may name a font's file",
                err=True,
            )

    def check_single(self) -> None:
        """Refuse before the painting a target for the one file of a command that writes one.

        Raises:
            PictureError: it is there already and `force` is off, or the folder can't be made or written.
            InvalidInput: JSON and a file, both for standard output.
        """
        if not self.to_stdout:
            check_target(Path(self.output or ""), force=self.force)
        elif self.as_json:
            raise InvalidInput("--output", given="- and --json", expected="one of them for standard output")

    def write_single(self, data: bytes) -> None:
        """Write the one file of such a command."""
        if self.to_stdout:
            write_stdout(data)
            return
        path = Path(self.output or "")
        write_bytes(path, data, force=self.force)
        self.note_file(path)

    def note_file(self, path: Path) -> None:
        """Name a written file to the user, now or in the JSON."""
        self.files.append(str(path))
        if not self.as_json:
            typer.echo(str(path))

    def note_picture(self, path: str, recipe: Recipe, size: tuple[int, int], painted: bool) -> None:
        """Name one picture of a batch; one that was there before is named in the JSON alone.

        Args:
            path: or address.
            recipe: as it stands in the file.
            size: width and height.
            painted: in this run.
        """
        self._tell(recipe.notes)
        if painted:
            self.files.append(path)
            if not self.as_json:
                typer.echo(path)
        facts = {"path": path, "seed": recipe.request.seed, "width": size[0], "height": size[1]}
        self.pictures.append({**facts, "notes": list(recipe.notes), "painted": painted})

    def close(self, *, interrupted: bool = False, not_painted: list[dict[str, str]] | None = None) -> None:
        """Print the JSON object, if it was asked for; a batch's says which lines have no picture."""
        if self.as_json:
            seconds = round(time.perf_counter() - self.started, 3)
            result = {"pictures": self.pictures, "files": self.files, "seconds": seconds, "interrupted": interrupted}
            if not_painted is not None:
                result["not_painted"] = not_painted
            typer.echo(json.dumps(result, ensure_ascii=False))


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end, so that no file is written without being named."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        before(*held[0])


def write_stdout(data: bytes) -> None:
    """Write a file to standard output.

    Raises:
        PictureError: it is full. A reader that went away is left to the caller, as every program does.
    """
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        given = (error.strerror or str(error)).lower()
        raise PictureError("standard output", given=given, expected="room for the picture") from error


def interrupted(where: str, done: int, expected: str, outcome: OutputWriter) -> Interrupted:
    """The error for a Ctrl-C; it names what was kept."""
    kept = ", ".join(outcome.files) or "none"
    return Interrupted(where, given=f"an interrupt after {done}", expected=expected, cure=f"Kept: {kept}.")


def rewrites() -> bool:
    """Whether a line on standard error can be written over: on a terminal that isn't a notebook's.

    The terminal of a notebook's `!gouache` keeps every state of the line as a line of its own.
    """
    return sys.stderr.isatty() and "JPY_PARENT_PID" not in os.environ


def shown(events: Iterator[Event], *, label: str) -> Iterator[Event]:
    """Pass events on; on a terminal, show a progress bar on standard error meanwhile."""
    if not rewrites():
        yield from events
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=1.0)
        for event in events:
            fraction = getattr(event, "fraction", None)
            if fraction is not None:
                bar.update(task, completed=fraction)
            yield event
