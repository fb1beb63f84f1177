"""The set that a run learns from, built in the run's folder where it is given pictures, and painted where it asks."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

from gouache.data.readers import AS_USUAL, Reading, ReadReport
from gouache.data.subsets.dataset_config import SUFFIXES
from gouache.data.subsets.plan import plan_set
from gouache.errors import ConfigError
from gouache.training.class_pictures import class_folder, paint_class_pictures
from gouache.training.config import DataConfig
from gouache.training.loop_config import StageConfig
from gouache.training.stage import Preparing
from gouache.training.stage_tables import DenoisingTable

BUILT = ("manifest.json", "pictures.npy")
"""Files that tell a built set from a folder of pictures."""


def built_set(
    data: Path, run: Path, config: DataConfig, *, painted: tuple[Path, int] | None = None, main: bool = True
) -> Generator[Preparing, None, Path]:
    """The built set that `data` is, or that is made of its pictures in the run's folder, once.

    Args:
        data: a built set, pictures as people have them, or a dataset config of sd-scripts.
        run: folder of the whole training.
        config: how pictures and captions are read.
        painted: folder and number of pictures of the class.
        main: whether this process builds; the others find what it built.

    Raises:
        DataError, ConfigError: as `plan_set` and `pack_pictures`.
    """
    if painted is not None and config.regularisation is not None:
        raise ConfigError("data.regularisation", given="a folder as well as class_prompt", expected="one of the two")
    regularisation, most = (config.regularisation, None) if painted is None else painted
    is_built = any((data / name).is_file() for name in BUILT)
    if regularisation is None and (is_built or not data.exists()):
        return data
    reading = Reading(missing=config.missing_caption, masks=config.masks)
    plan = plan_set(
        data,
        size=config.size,
        keep_shapes=config.keep_shapes,
        reading=reading,
        regularisation=regularisation,
        most=most,
    )
    is_plain = reading == AS_USUAL and not config.keep_shapes and regularisation is None and data.suffix not in SUFFIXES
    folder = run / (f"pictures-{config.size}" if is_plain else f"pictures-{config.size}-{plan.mark}")
    if main and not (folder / BUILT[0]).is_file():
        report = ReadReport()
        for _ in plan.built(folder, report):
            pass
        yield Preparing(0, 0, f"{folder}: {report.summary()}")
    return folder


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
