"""Build a stage that is ready to train: from its run's folder, or on a packed model.

A packed model has weights and no averages or moments. Its parts are written into the run's folder as each stage would
have left them, where that is still empty. So the run packs into a whole model again, whichever stage was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import torch
from torch import nn

from gouache.checkpoints.formats.safetensors import save_tensors
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import bundle_to_write
from gouache.config import Config
from gouache.data.readers import AS_USUAL, Reading, ReadReport
from gouache.data.subsets.dataset_config import SUFFIXES
from gouache.data.subsets.plan import plan_set
from gouache.errors import ConfigError, TrainingError
from gouache.models.bundle import ModelBundle
from gouache.models.text.sentence import SentenceEncoder
from gouache.notebook import telling
from gouache.training.class_pictures import painted_class
from gouache.training.config import DataConfig, TrainConfig, read_config, stage_config
from gouache.training.inputs import RunInputs, last_result, run_text_folder, stage_run
from gouache.training.loop import TrainingProgress, make_accelerator, spoken_time, train
from gouache.training.optimizer import check_optimizer
from gouache.training.runlog import check_log
from gouache.training.stage import Preparing, Ready
from gouache.training.stages.registry import STAGES
from gouache.training.state import checkpoints, full_disk_reported
from gouache.training.towers import write_sentence_encoder


def assemble(name: str, config: TrainConfig, data: Path, run: Path) -> Iterator[Preparing | Ready]:
    """Build the stage; yields what it prepares first and the stage last.

    Args:
        name: which stage.
        config: of the whole training; must have the stage's table.
        data: folder of the data set.
        run: folder of the whole training, with the results of the stages before.

    Raises:
        DataError: no such data set.
        TrainingError: a stage that this one builds on has left no result.
    """
    stage_config(config, name)
    yield from STAGES[name].from_run(RunInputs(config, data, run))


def assemble_from_packed(
    name: str, config: TrainConfig, data: Path, run: Path, model: Path
) -> Iterator[Preparing | Ready]:
    """Build the stage as `assemble` does, on the results and from the weights of a packed model.

    Results that the run has already are kept. A run that has a checkpoint of the stage resumes from it.

    Args:
        name: which stage; its network must be a part of the model.
        config: of the whole training; the stage's sizes must be the packed model's.
        data: folder of the data set.
        run: folder of the whole training.
        model: folder or file that `gouache pack` wrote.

    Raises:
        ConfigError: the config's sizes are not the packed model's, or it names a start of its own.
        TrainingError: the model lacks what the stage needs, or is none that `pack` makes from stages.
    """
    bundle = load_bundle(model, dtype=torch.float32)
    fitted = _fitted(name, config, bundle, model)
    if STAGES[name].redrafts:
        bundle.forget_residuals()
    networks, text = _networks(bundle), bundle.text.encoders[0]
    for stage, network in networks.items():
        _leave(last_result(run, stage), stage, network, bundle)
    if config.text.folder is None and isinstance(text, SentenceEncoder):
        folder = run_text_folder(run)
        if not (folder / "model.safetensors").exists():
            write_sentence_encoder(text, bundle_to_write(bundle).vocabulary, folder)
    started = bool(checkpoints(stage_run(run, name)))
    for event in assemble(name, fitted, data, run):
        if isinstance(event, Ready) and not started:
            event.stage.start_from(networks[name])
        yield event


def _networks(bundle: ModelBundle) -> dict[str, nn.Module]:
    """The model's networks by the stage that trains them."""
    parts = bundle.networks()
    return {name: parts[stage.part] for name, stage in STAGES.items() if stage.part in parts}


def _fitted(name: str, config: TrainConfig, bundle: ModelBundle, model: Path) -> TrainConfig:
    """The config with what only the packed model knows of the stage's network; refuses what can't continue from it."""
    table, stage = stage_config(config, name), STAGES[name]
    if not isinstance(bundle.text.encoders[0], SentenceEncoder):
        raise TrainingError(
            str(model),
            given=f"a model of family {bundle.family}",
            expected="one that gouache pack made from stages",
            cure="Name it as [denoiser] start instead, without --from-packed.",
        )
    if name not in _networks(bundle):
        raise TrainingError(
            str(model),
            given=f"no {stage.part or stage.kind} in it",
            expected=f"the network that stage {name} trains",
            cure="Train the stage from nothing: leave out --from-packed.",
        )
    if getattr(table, "start", None) is not None:
        raise ConfigError(
            f"{name}.start",
            given="a start as well as --from-packed",
            expected="one origin of the weights",
            cure=f"Give [{name}.network] instead of start, or leave out --from-packed.",
        )
    packed = bundle_to_write(bundle).networks[stage.part].config
    network: Config = getattr(table, "network")  # noqa: B009 - not every stage's table declares one
    fitted = network.model_copy(update={key: getattr(packed, key) for key in stage.measured})
    _check_equal(f"{name}.network", fitted, packed, (*stage.free, *stage.grown), model)
    for key, numbers in stage.grown.items():
        given, least = getattr(fitted, numbers), getattr(packed, numbers)
        if any(own < theirs for own, theirs in zip(given, least, strict=True)):
            raise _unequal(f"{name}.network.{key}", given, f"at least {least}", model)
    for key, attribute in stage.settings.items():
        _check_equal(f"{name}.{key}", getattr(table, key), getattr(bundle, attribute), (), model)
    tokens = bundle.text.encoders[0].config.max_tokens
    if config.text.folder is None and config.text.max_tokens != tokens:
        raise _unequal("text.max_tokens", config.text.max_tokens, tokens, model)
    return config.model_copy(update={name: table.model_copy(update={"network": fitted})})


def _check_equal(where: str, given: Config, packed: Config, free: tuple[str, ...], model: Path) -> None:
    for key in type(given).model_fields:
        if key not in free and getattr(given, key) != getattr(packed, key):
            raise _unequal(f"{where}.{key}", getattr(given, key), getattr(packed, key), model)


def _unequal(where: str, given: object, packed: object, model: Path) -> ConfigError:
    return ConfigError(
        where,
        given=given,
        expected=f"{packed}, as in {model}",
        cure="Write the packed model's value into the config, or train from nothing: leave out --from-packed.",
    )


def _leave(path: Path, name: str, network: nn.Module, bundle: ModelBundle) -> None:
    """Write a part as its stage exports it, unless the run has a result of that stage."""
    if path.exists():
        return
    stage = STAGES[name]
    metadata = {"component": stage.part, "config": bundle_to_write(bundle).networks[stage.part].config.to_json()}
    metadata |= {key: getattr(bundle, attribute).to_json() for key, attribute in stage.settings.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, network.state_dict(), metadata)


def _told(event: Preparing | TrainingProgress) -> tuple[float, str] | None:
    """What a notebook's bar says of an event."""
    if isinstance(event, Preparing):
        text = f"{event.what} {event.done:,} of {event.total:,}"
        return None if event.note else (event.done / max(event.total, 1), text)
    text = f"{event.images_seen:,} of {event.images:,} images, {event.images_per_second:.1f}/s"
    if event.seconds_left < math.inf:
        text += f", {spoken_time(event.seconds_left)} left"
    return event.images_seen / event.images, text


@telling(_told)
def train_stage(
    stage: str,
    config: Path,
    data: Path,
    run: Path,
    *,
    minutes: float | None = None,
    threads: int = 0,
    from_packed: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Preparing | TrainingProgress]:
    """Train `stage` as the TOML file `config` says on the data set `data` into `run`/`stage`; resume an existing run.

    `data` is a built set; or pictures as people have them, or a dataset config of sd-scripts, which are packed into the
    run's folder first (stage `upscaler` takes them in their own size), with pictures of the class that are painted
    before, where the stage's table has a class_prompt.

    With `from_packed`, a model that `gouache pack` wrote, results that the run lacks and the stage's first weights come
    from that model; a run that has a checkpoint of the stage resumes from the checkpoint.

    `stop` is asked while data are encoded, too; what was encoded whole stays. Of several processes all train, and only
    the main one tells of it. A notebook shows a bar meanwhile.

    Raises:
        UnknownName, ConfigError, DataError, TrainingError, CheckpointError: as the parts raise them; nothing is lost.
        MissingDependency: of a package that the config needs, before anything is encoded.
    """
    if threads:
        torch.set_num_threads(threads)
    settings = read_config(config, stage)
    table = stage_config(settings, stage)
    # Before hours of encoding, not after them.
    check_optimizer(table.optimizer)
    check_log(table.loop)
    accelerator = make_accelerator(table)
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    ready = None
    with full_disk_reported(stage_run(run, stage)):
        main, size = accelerator.is_main_process, settings.data.size
        table = stage_config(settings, stage)
        painted = yield from painted_class(table, from_packed, run, size, main=main, stop=stop)
        interrupted = painted is not None and stop()  # while pictures of the class were painted
        if not interrupted and STAGES[stage].packs_pictures:
            data = yield from built_set(data, run, settings.data, painted=painted, main=main)
        for event in () if interrupted else _events(stage, settings, data, run, from_packed):
            if isinstance(event, Ready):
                ready = event
                continue
            if main:
                yield event
            if stop():
                break  # whole shards stay, as whole pictures do
    if accelerator.is_main_process:
        # What the main process encoded, the others only read.
        accelerator.wait_for_everyone()
    if ready is not None:
        folder = stage_run(run, stage)
        for progress in train(ready.stage, ready.config, folder, minutes=minutes, stop=stop, accelerator=accelerator):
            if accelerator.is_main_process:
                yield progress


def encode_data(
    stage: str,
    config: Path,
    data: Path,
    run: Path,
    *,
    threads: int = 0,
    inputs: Callable[[TrainConfig, Path, Path], RunInputs] = RunInputs,
) -> Iterator[Preparing]:
    """Encode what `stage` trains on into `run`, as `train_stage` does before its first step; what is there is kept.

    Args:
        stage, config, data, run, threads: as `train_stage`.
        inputs: makes what the stage takes from its run; another than `RunInputs` may encode elsewhere.

    Raises:
        TrainingError: the stage trains on pictures as they are, or an earlier stage has left no result.
        UnknownName, ConfigError, DataError: as the parts raise them; whole shards stay.
    """
    if threads:
        torch.set_num_threads(threads)
    settings, encoded = read_config(config, stage), False
    with full_disk_reported(stage_run(run, stage)):
        table = stage_config(settings, stage)
        painted = yield from painted_class(table, None, run, settings.data.size, main=True, stop=lambda: False)
        if STAGES[stage].packs_pictures:
            data = yield from built_set(data, run, settings.data, painted=painted, main=True)
        for event in STAGES[stage].from_run(inputs(settings, data, run)):
            if isinstance(event, Ready):
                break
            encoded = encoded or event.total > 0
            yield event
    if not encoded:
        given, cure = "a stage that trains on the pictures as they are", "Start `gouache train` at once."
        raise TrainingError(stage, given=given, expected="one that trains on encoded examples", cure=cure)


def _events(
    name: str, settings: TrainConfig, data: Path, run: Path, from_packed: Path | None
) -> Iterator[Preparing | Ready]:
    if from_packed is None:
        return assemble(name, settings, data, run)
    return assemble_from_packed(name, settings, data, run, from_packed)


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
