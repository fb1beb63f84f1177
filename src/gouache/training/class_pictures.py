"""Pictures of a class, painted with the model that is tuned: what keeps it from forgetting the class (Ruiz et al. 2023,
section 3.2, "class-specific prior preservation loss").
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from gouache.errors import ConfigError, InvalidInput
from gouache.files import write_bytes
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request
from gouache.training.inputs import file_marks
from gouache.training.loop_config import StageConfig
from gouache.training.stage import Preparing
from gouache.training.stage_tables import DenoisingTable


def class_folder(run: Path, model: Path, prompt: str, *, size: int, seed: int) -> Path:
    """Where a run keeps its pictures of a class; another model, prompt, size or seed has another folder."""
    key = hashlib.sha256(f"{file_marks(model)}/{prompt}/{size}/{seed}".encode()).hexdigest()[:8]
    return run / f"class-pictures-{key}"


def paint_class_pictures(
    folder: Path, model: Path, prompt: str, count: int, *, size: int, seed: int = 0
) -> Iterator[int]:
    """Paint pictures of a class into `folder`, each with its prompt in a ``.txt`` beside it; yields how many are there.

    Picture i is what ``gouache paint PROMPT --seed seed+i`` makes at the model's defaults, so that it is the same
    whenever it is painted. Those that are there are kept, and the model is loaded only if one lacks.

    Args:
        folder: made if it isn't there.
        model: what paints them, of any kind that gouache loads.
        prompt: what they show, for example "a photo of a dog".
        count: how many.
        size: side in pixels.
        seed: of the first.

    Raises:
        InvalidInput: the prompt is empty, or the model can't paint this.
        ModelNotFound, CheckpointError: nothing there, or nothing that can be loaded.
    """
    if not prompt.strip():
        raise InvalidInput("class_prompt", given="nothing", expected="what the pictures of the class show")
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = None
    for number in range(count):
        path = folder / f"{number:05d}.png"
        if not path.is_file():
            pipeline = pipeline or Pipeline.load(model)
            request = Request(prompt=prompt, seed=seed + number, width=size, height=size)
            [painted] = pipeline.paint(request)
            # The text first: a picture that is there has one.
            write_bytes(path.with_suffix(".txt"), f"{prompt}\n".encode(), force=True)
            write_bytes(path, painted.encode(), force=True)
        yield number + 1


def painted_class(
    table: StageConfig,
    model: Path | None,
    run: Path,
    size: int,
    *,
    main: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[Preparing, None, tuple[Path, int] | None]:
    """Paint the pictures of the class that a stage's table asks for; gives their folder and number, None for none.

    Args:
        table: the stage's.
        model: what the run starts from, if its table doesn't say.
        run: folder of the whole training.
        size: side of the pictures.
        main: whether this process paints.
        stop: asked after each; those that are painted stay, and the run is to end.

    Raises:
        ConfigError: there is no model to paint them with.
        GouacheError: as `paint_class_pictures`.
    """
    if not isinstance(table, DenoisingTable) or not table.class_prompt:
        return None
    model = getattr(table, "start", None) or model
    if model is None:
        raise ConfigError("class_prompt", given=table.class_prompt, expected="a model to start from, which paints them")
    count, seed = table.class_pictures, table.loop.seed
    folder = class_folder(run, model, table.class_prompt, size=size, seed=seed)
    if main:
        for done in paint_class_pictures(folder, model, table.class_prompt, count, size=size, seed=seed):
            yield Preparing(done, count, what=f"painting {table.class_prompt!r}")
            if stop():
                break
    return folder, count
