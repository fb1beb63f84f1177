"""Go on from a packed model, which has no moments: its parts become what earlier stages left, its weights the start.

The parts are written into the run's folder as each stage would have left them, where that is still empty. So the run
packs into a whole model again, whichever stage was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from gouache.checkpoints.formats.safetensors import atomic_write, save_tensors, write_json
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import bundle_to_write
from gouache.config import Config
from gouache.errors import ConfigError, TrainingError
from gouache.models.bundle import ModelBundle
from gouache.models.sentence_encoder import SentenceEncoder
from gouache.training.build import Preparing, Ready, assemble, run_text_folder, stage_config, stage_run
from gouache.training.config import StageName, TrainConfig
from gouache.training.state import checkpoints

COMPONENTS: dict[StageName, str] = {
    "vae": "vae",
    "tokens": "quantizer",
    "prior": "prior",
    "denoiser": "unet",
    "upscaler": "upscaler",
}
MEASURED = {"vae": ("scale", "shift"), "prior": ("memory",)}
"""What training fills in, so that the config can't know it: the packed model's is taken."""
FREE = {"prior": ("dropout",)}
"""What decides no tensor: the config's is taken."""


def assemble_from_packed(
    name: StageName, config: TrainConfig, data: Path, run: Path, model: Path
) -> Iterator[Preparing | Ready]:
    """Build the stage as `assemble` does, on the results and from the weights of a packed model.

    Results that the run has already are kept. A run that has a checkpoint of the stage goes on from that.

    Args:
        name: which stage; all but `clip`.
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
    networks, text = _networks(bundle), bundle.text.encoders[0]
    for stage, network in networks.items():
        _leave(stage_run(run, stage) / "last.safetensors", stage, network, bundle)
    if config.text.folder is None and isinstance(text, SentenceEncoder):
        _leave_text(run_text_folder(run), text, bundle)
    started = bool(checkpoints(stage_run(run, name)))
    for event in assemble(name, fitted, data, run):
        if isinstance(event, Ready) and not started:
            event.stage.trained.load_state_dict(networks[name].state_dict())
        yield event


def _networks(bundle: ModelBundle) -> dict[StageName, nn.Module]:
    parts = bundle.networks()
    return {stage: parts[component] for stage, component in COMPONENTS.items() if component in parts}


def _fitted(name: StageName, config: TrainConfig, bundle: ModelBundle, model: Path) -> TrainConfig:
    """The config with what only the packed model knows of the stage's network; refuses what can't go on from it."""
    table, networks = stage_config(config, name), _networks(bundle)
    if not isinstance(bundle.text.encoders[0], SentenceEncoder):
        raise TrainingError(
            str(model),
            given=f"a model of family {bundle.family}",
            expected="one that gouache pack made from stages",
            cure="Name it as [denoiser] start instead, without --from-packed.",
        )
    if name not in networks:
        part = COMPONENTS.get(name, "image tower")
        raise TrainingError(
            str(model),
            given=f"no {part} in it",
            expected=f"the network that stage {name} trains",
            cure="Train the stage from nothing: leave out --from-packed.",
        )
    if getattr(table, "start", None) is not None:
        raise ConfigError(
            f"{name}.start",
            given="a start beside --from-packed",
            expected="one origin of the weights",
            cure=f"Give [{name}.network] instead of start, or leave out --from-packed.",
        )
    packed = bundle_to_write(bundle).networks[COMPONENTS[name]].config
    network: Config = getattr(table, "network")  # noqa: B009 - not every stage's table declares one
    update = {key: getattr(packed, key) for key in MEASURED.get(name, ())}
    fitted = network.model_copy(update=update)
    _check_equal(f"{name}.network", fitted, packed, FREE.get(name, ()), model)
    if config.denoiser is not None and name == "denoiser":
        _check_equal("denoiser.denoiser", config.denoiser.denoiser, bundle.denoiser_config, (), model)
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


def _leave(path: Path, stage: StageName, network: nn.Module, bundle: ModelBundle) -> None:
    """Write a part as its stage exports it, unless the run has a result of that stage."""
    if path.exists():
        return
    component = COMPONENTS[stage]
    metadata = {"component": component, "config": bundle_to_write(bundle).networks[component].config.to_json()}
    if stage == "denoiser":
        metadata["denoiser"] = bundle.denoiser_config.to_json()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, network.state_dict(), metadata)


def _leave_text(folder: Path, encoder: SentenceEncoder, bundle: ModelBundle) -> None:
    """Write the text encoder as such encoders are published, the weights last: they tell that the folder is whole."""
    weights = folder / "model.safetensors"
    if weights.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = encoder.config
    names = {
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.width,
        "intermediate_size": config.inner_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.positions,
        "layer_norm_eps": config.norm_eps,
    }
    write_json(folder / "config.json", names)
    with atomic_write(folder / "vocab.txt") as file:
        file.write(("\n".join(bundle_to_write(bundle).vocabulary) + "\n").encode("utf-8"))
    save_tensors(weights, encoder.state_dict())
