"""A fine-tuning from a folder of pictures to a file that paints: planned, run, stopped and gone on with.

What it leaves on the way (pictures as they are read, latents, checkpoints, sample sheets) lies in a folder of its own,
beside which nothing is needed to go on.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gouache.checkpoints import hub
from gouache.checkpoints.adapters.library import LORA, list_adapters
from gouache.errors import ConfigError, Conflict, InvalidInput
from gouache.files import atomic_write
from gouache.training.config import read_config
from gouache.training.loop import TrainingProgress
from gouache.training.pack import pack
from gouache.training.run import train_stage
from gouache.training.stage import Preparing
from gouache.training.state import full_disk_reported
from gouache.training.tuning.own_pictures import CaptionsFrom, OwnPictures, look_at, with_captions, written
from gouache.training.tuning.planner import SMALL_SET, Method, Part, Tuning, choose, traits_of

NAME = re.compile(r"\w[\w .-]{0,79}")
SUFFIX = ".safetensors"
PLAN, CONFIG, RUNS = "finetune.json", "config.toml", "finetune"
WORDS = {"lora.start": "MODEL", "denoiser.start": "MODEL", "prior.start": "MODEL", "data.size": "size"}
"""Keys of a config that nobody wrote, as a caller knows them."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the result goes.

    Attributes:
        name: of the result, as prompts or `--model` name it.
        path: the LoRA's file or the model's folder.
        run: folder of what is left on the way.
        is_found: whether the name finds it, because it lies in the models folder.
    """

    name: str
    path: Path
    run: Path
    is_found: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetuning:
    """A plan that can be run.

    Attributes:
        tuning: how to train.
        target: where the result goes.
        own: the pictures with their captions.
        as_found: the same as they lie there.
        model: the name that the model was asked for by; empty for the shipped one.
    """

    tuning: Tuning
    target: Target
    own: OwnPictures
    as_found: OwnPictures
    model: str

    def choices(self) -> list[str]:
        """Each thing that was chosen, in one line."""
        tuning, own, chosen = self.tuning, self.own, self.tuning.chosen
        result = f"a LoRA of rank {chosen.rank}; the model itself stays as it is"
        if tuning.method == "whole":
            result = "a model of its own; the one it starts from stays as it is"
        count = f"captions in {own.table}" if own.table else _counted(own)
        sides = (
            "never mirrored: a caption speaks of left or right" if own.speaks_of_sides else "mirrored half of the time"
        )
        if own.table:
            sides = "never mirrored, as captions may speak of left and right"
        judged = "some, which are held out"
        if len(own.captions) < SMALL_SET and not own.table:
            judged = f"the same ones: fewer than {SMALL_SET} are too few to hold some out"
        each = f", {tuning.part_minutes:g} for each of {' and '.join(tuning.parts)}" if len(tuning.parts) > 1 else ""
        return [
            f"model: {self.model or hub.SHIPPED} ({tuning.family}, {tuning.size} x {tuning.size} pixels)",
            f"result: {result}",
            f"pictures: {count}; {sides}",
            *([f"first caption: {own.first_caption}"] if own.first_caption else []),
            f"judged by: {judged}",
            f"time: {tuning.minutes:g} minutes of training{each}; learning rate {chosen.learning_rate:g},"
            f" {chosen.batch_size} pictures a step",
        ]

    def request(self) -> tuple[str, str]:
        """A prompt that shows what was learned, and the model to paint it with; empty for the shipped one."""
        prompt = self.own.first_caption
        if self.tuning.method == "whole":
            return prompt, self.target.name if self.target.is_found else str(self.target.path)
        return f"{prompt} <lora:{self.target.name}:1>".strip(), self.model


@dataclass(frozen=True, slots=True)
class Learning:
    """One step of training, already taken.

    Attributes:
        done: share of the whole training time that is over, 0..1.
        seconds_left: of training.
        sheet: sample pictures that were just drawn, if any.
        result: the result as it is by now, if it was just written.
    """

    done: float
    seconds_left: float
    sheet: Path | None = None
    result: Path | None = None


def target_of(out: str, method: Method) -> Target:
    """Where the result of a name or path goes.

    Raises:
        InvalidInput: a name that no file or prompt can have.
    """
    path = Path(out).expanduser()
    if path.name != out or path.suffix == SUFFIX:
        if method == "lora" and path.suffix != SUFFIX:
            path = path.with_name(f"{path.name}{SUFFIX}")
        name = path.stem if method == "lora" else path.name
        return Target(_checked(name), path, path.with_name(f"{name}.run"), False)
    folder = hub.models_folder()
    place = folder / "lora" / f"{_checked(out)}{SUFFIX}" if method == "lora" else folder / _checked(out)
    return Target(out, place, hub.data_folder() / RUNS / out, True)


def plan_finetuning(
    model: str,
    start: Path,
    folder: Path,
    out: str,
    *,
    minutes: float = 5.0,
    method: Method = "lora",
    caption: str = "",
    caption_from: CaptionsFrom | None = None,
    trigger: str = "",
    flip: bool | None = None,
) -> Finetuning:
    """Choose everything; nothing is written.

    Args:
        model: what the model was asked for by; empty for the shipped one.
        start: where it lies.
        folder: of the pictures.
        out: a name, under which prompts or `--model` find the result, or a path.
        minutes: training time; preparing comes on top.
        method: a LoRA, or the whole model.
        caption, caption_from, trigger: as `with_captions`.
        flip: whether half of the pictures are mirrored; None does so where no caption speaks of sides.

    Raises:
        InvalidInput, DataError: as `target_of`, `look_at` and `with_captions`; or the model takes more than texts.
        Conflict: the name is taken, or the run of this name was started with something else.
    """
    if not minutes > 0:
        raise InvalidInput("minutes", given=minutes, expected="a time above 0")
    traits, target, as_found = traits_of(start), target_of(out, method), look_at(folder)
    if traits.variant != "base":
        given = f"{model or start}, a model of the kind {traits.variant}"
        raise InvalidInput("MODEL", given=given, expected="one that paints from texts alone", cure="Choose another.")
    own = with_captions(as_found, caption=caption, caption_from=caption_from, trigger=trigger)
    tuning = Tuning(
        method=method,
        start=start.resolve(),
        family=traits.family,
        drafts=traits.drafts,
        size=traits.side,
        minutes=minutes,
        chosen=choose(method, traits),
        flip=not own.speaks_of_sides if flip is None else flip,
    )
    planned = Finetuning(tuning=tuning, target=target, own=own, as_found=as_found, model=model)
    _check_free(planned)
    return planned


def run_finetuning(
    planned: Finetuning, *, threads: int = 0, stop: Callable[[], bool] = lambda: False
) -> Iterator[Preparing | Learning]:
    """Run a plan, from where an earlier run of it ended. What is learned so far is written whenever it is judged.

    Raises:
        GouacheError: as `gouache.training.run.train_stage`.
    """
    tuning, target = planned.tuning, planned.target
    with full_disk_reported(target.run), _own_words():
        target.run.mkdir(parents=True, exist_ok=True)
        _write(target.run / PLAN, _marks(planned))
        config = target.run / CONFIG
        _write(config, tuning.toml())
        source = target.run / "captioned"
        packed = (target.run / f"pictures-{tuning.size}").is_dir()
        data = planned.own.folder if packed else written(planned.own, planned.as_found, source)
        for number, part in enumerate(tuning.parts):
            yield from _part(planned, part, number, config, data, threads, stop)
            if stop():
                break
        shutil.rmtree(source, ignore_errors=True)
        if tuning.method == "whole" and any(_result(target.run, part).is_file() for part in tuning.parts):
            _pack(planned, config)


def _part(
    planned: Finetuning, part: Part, number: int, config: Path, data: Path, threads: int, stop: Callable[[], bool]
) -> Iterator[Preparing | Learning]:
    tuning, run, shown = planned.tuning, planned.target.run, 0
    parts, minutes = len(tuning.parts), tuning.part_minutes
    for event in train_stage(part, config, data, run, minutes=minutes, threads=threads, stop=stop):
        if isinstance(event, Preparing):
            yield event
            continue
        assert isinstance(event, TrainingProgress), "there are no other events"
        left = min(event.seconds_left, 60 * minutes)
        done = (number + 1 - left / (60 * minutes)) / parts
        sheets = sorted((run / part / "samples").glob("*.png")) if event.figures else []
        sheet = sheets[-1] if len(sheets) > shown else None
        shown = len(sheets)
        result = None
        if event.figures and tuning.method == "lora":
            result = planned.target.path
            result.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(result) as file:
                file.write(_result(run, part).read_bytes())
        yield Learning(done, left + 60 * minutes * (parts - number - 1), sheet, result)


def _pack(planned: Finetuning, config: Path) -> None:
    """Write the whole model where it belongs, in place of what an earlier session of this run left there."""
    place, part = planned.target.path, planned.target.run / "model"
    shutil.rmtree(part, ignore_errors=True)
    pack(read_config(config, None), planned.target.run, part, name=planned.target.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        shutil.rmtree(place)
    shutil.move(part, place)


def _result(run: Path, part: Part) -> Path:
    return run / part / "last.safetensors"


def _check_free(planned: Finetuning) -> None:
    target, marks = planned.target, _marks(planned)
    plan = target.run / PLAN
    if plan.is_file():
        before = json.loads(plan.read_text(encoding="utf-8"))
        changed = [key for key, value in marks.items() if before.get(key) != value]
        if changed:
            given = f"a run of this name that was started with other {' and '.join(changed)}"
            cure = f"Choose another name, or delete {target.run} to begin anew."
            raise Conflict(f"out {target.name!r}", given=given, expected="the same, to go on with it", cure=cure)
        return
    if target.path.exists():
        given = f"{target.path}, which is there already"
        raise Conflict(f"out {target.name!r}", given=given, expected="a name that is free", cure="Choose another.")
    if planned.tuning.method == "lora" and target.is_found:
        alike = [one for one in list_adapters() if one.kind == LORA and target.name in one.names]
        if alike:
            given = f"the name of {alike[0].path}"
            raise Conflict(f"out {target.name!r}", given=given, expected="a name that is free", cure="Choose another.")


def _marks(planned: Finetuning) -> dict[str, str]:
    """What a run may not change on its way."""
    tuning = planned.tuning
    return {
        "model": str(tuning.start),
        "method": tuning.method,
        "pictures": planned.own.mark,
        "mirroring": str(tuning.flip),
    }


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        expected = "a name of letters, digits, spaces, dots and dashes, a letter or digit first"
        raise InvalidInput("out", given=repr(name)[:80], expected=expected)
    return name


def _counted(own: OwnPictures) -> str:
    count, silent = len(own.captions), len(own.captions) - own.captioned
    left_out = f", {silent} without a caption are left out" if silent else ""
    return f"{count - silent}{left_out}"


def _write(path: Path, content: str | dict[str, str]) -> None:
    text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


@contextmanager
def _own_words() -> Iterator[None]:
    """Say errors of a config that nobody wrote in the caller's words."""
    try:
        yield
    except ConfigError as error:
        where = WORDS.get(error.where)
        if where is None:
            raise
        raise InvalidInput(where, given=error.given, expected=error.expected, cure="Choose another model.") from error
