"""The set that a run learns from, built in the run's folder where it is given pictures, and painted where it asks."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from gouache.data.readers import AS_USUAL, Reading, ReadReport
from gouache.data.subsets.dataset_config import SUFFIXES
from gouache.data.subsets.plan import plan_set
from gouache.errors import ConfigError
from gouache.training.config import DataConfig
from gouache.training.stage import Preparing

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
