"""Stage `inversion`: vectors for a new word of a finished model (Gal et al. 2022, arXiv:2208.01618, equation 2)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gouache.checkpoints.formats.safetensors import save_tensors
from gouache.errors import ConfigError, DataError
from gouache.files import write_bytes
from gouache.models.bundle import ModelBundle
from gouache.models.text.clip import TextEncoder
from gouache.models.text.tokenizers import TextTokenizer
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.adapters import vectors_of, with_words
from gouache.training.batches.batch_shapes import batches_of_one_shape, shown
from gouache.training.batches.tuning_set import Shown, Texts, TuningSet
from gouache.training.denoising import Denoising
from gouache.training.inputs import RunInputs, initial_weights
from gouache.training.previewer import painted
from gouache.training.stage import Batch, BatchNoise, Losses, Preparing, Ready, Stage
from gouache.training.stage_tables import InversionStage

SHOWN = 4
TEMPLATES = {
    "object": (
        "a photo of {}",
        "a picture of {}",
        "a close view of {}",
        "a bright photo of {}",
        "a dark photo of {}",
        "a sharp picture of {}",
        "a cropped photo of {}",
        "a small picture that shows {}",
        "one {} in the middle of the picture",
        "{} seen from nearby",
        "{} in plain daylight",
        "a good photo of a {}",
    ),
    "style": (
        "a picture in the style of {}",
        "a drawing in the style of {}",
        "a work in {} style",
        "{} style",
        "a colourful picture in the style of {}",
        "a detailed picture in {} style",
        "a small work in the style of {}",
        "a large picture, made in the style of {}",
    ),
}
"""What is said of every picture, in our own words; the first is what validation says."""
SHARES = 0.01, 0.99
"""Quantiles of the lengths of a model's own tokens between which `keep_length` holds the new ones."""
PAIR = ("clip_l", "clip_g")
"""Names of the vectors of the two text encoders of SDXL and Stable Diffusion 3."""


class NewWord(nn.Module):
    """Vectors of a new word for each text encoder.

    Args:
        vectors: what they are at first. [n, width] each
        lengths: least and largest length of each encoder's; None lets them grow.
    """

    def __init__(self, vectors: Sequence[Tensor], lengths: Sequence[tuple[float, float]] | None = None) -> None:
        super().__init__()
        self.vectors = nn.ParameterList(nn.Parameter(one.clone()) for one in vectors)
        self.lengths = lengths

    def rows(self, encoder: int) -> Tensor:
        """The vectors for one text encoder. [n, width]"""
        own: Tensor = self.vectors[encoder]
        if self.lengths is None:
            return own
        length = own.norm(dim=1, keepdim=True).clamp_min(1e-12)
        scaled: Tensor = own * (length.detach().clamp(*self.lengths[encoder]) / length)
        return scaled


class SpokenWord:
    """The new word's vectors that are in use: those that are trained, or their average."""

    def __init__(self, word: NewWord) -> None:
        self._word = word

    def rows(self, encoder: int) -> Tensor:
        """See `NewWord`."""
        return self._word.rows(encoder)

    @contextmanager
    def using(self, word: NewWord) -> Iterator[None]:
        """Use other vectors for a while."""
        before, self._word = self._word, word
        try:
            yield
        finally:
            self._word = before


class TrainedTokens(nn.Module):
    """A frozen table of token vectors, behind which stand the rows that are trained.

    Args:
        base: the table.
        rows: gives the rows. [n, width]
    """

    def __init__(self, base: nn.Embedding, rows: Callable[[], Tensor]) -> None:
        super().__init__()
        self.base, self._rows = base, rows

    def forward(self, ids: Tensor) -> Tensor:
        """ids [N, L] -> [N, L, width]."""
        return vectors_of(ids, self.base, self._rows())


class InversionTraining(Stage[NewWord]):
    """Minimise the denoiser's loss over the vectors of one new word."""

    name = "inversion"
    kind = "textual inversion"
    config: InversionStage

    def __init__(
        self,
        config: InversionStage,
        bundle: ModelBundle,
        data: TuningSet,
        held_out: TuningSet,
        pooled: Callable[[Tensor | None], Tensor | None],
        size: int,
    ) -> None:
        super().__init__()
        self.size = size
        self.config, self.data, self.held_out, self.seed = config, data, held_out, config.loop.seed
        encoders = clip_encoders(bundle, config)
        tables = [encoder.embeddings.token_embedding for encoder in encoders]
        first = [first_vectors(config, *pair) for pair in zip(tables, bundle.text.tokenizers, strict=True)]
        lengths = [lengths_of(table.weight) for table in tables] if config.keep_length else None
        self.trained = NewWord(first, lengths)
        self.spoken = SpokenWord(self.trained)
        text = with_words(bundle.text, encoders, {config.word: first})
        for number, (encoder, table) in enumerate(zip(encoders, tables, strict=True)):
            trained = TrainedTokens(table, partial(self.spoken.rows, number))
            encoder.embeddings.token_embedding = trained  # type: ignore[assignment]
        self.bundle = replace(bundle, text=text)
        self.text, self.unet, self.vae = text, bundle.unet, bundle.vae
        self.freeze("text", "unet", "vae")
        self.unet.set_gradient_checkpointing(config.gradient_checkpointing)
        self.texts = Texts(text, pooled)
        self.denoising = Denoising(config, bundle.denoiser_config, bundle.unet.config, None)
        self._check_captions()

    @classmethod
    def from_run(cls, inputs: RunInputs) -> Iterator[Preparing | Ready]:
        tuning = yield from inputs.tuning(cls.name, InversionStage, clip_encoders)
        pooled, size = tuning.encoders.pooled, inputs.config.data.size
        with initial_weights(tuning.table.loop.seed):
            stage = cls(tuning.table, tuning.bundle, tuning.data, tuning.held_out, pooled, size)
        yield Ready(stage, tuning.table)

    def batch(self, indices: Sequence[int]) -> Batch:
        pictures, noise = self.data.shown(indices), BatchNoise(self.seed, indices)
        latents = self.data.latents(pictures)
        batch = self.denoising.draws(latents, noise)
        batch |= self.data.marks(pictures, latents.shape[2:], self.config.prior_loss_weight)
        batch["dropped"] = noise.uniform("caption") < self.config.caption_dropout
        batch["place"] = torch.tensor(list(indices))
        return batch | {"template": noise.integers("template", len(self._templates))}

    def forward(self, batch: Batch) -> Losses:
        pictures = self.data.shown(batch["place"].tolist())
        told = zip(pictures, batch["template"].tolist(), batch["dropped"].tolist(), strict=True)
        said = ["" if dropped else self._said(picture, template) for picture, template, dropped in told]
        weighted, plain = self.denoising.errors(self.unet, batch | self.texts.live(said).batch())
        return {"loss": weighted.mean(), "mse": plain.mean().detach(), "length": self._length(self.trained).detach()}

    def validate(self, network: NewWord) -> dict[str, float]:
        """Errors on the held-out pictures at fixed noise and with the first template."""
        errors = []
        with self.spoken.using(network):
            for numbers in batches_of_one_shape(self.held_out, len(self.held_out), self.config.loop.batch_size):
                pictures, noise = self.held_out.plain(numbers), BatchNoise(self.seed, numbers)
                draws = self.denoising.draws(self.held_out.latents(pictures), noise, exact=True)
                batch = {name: value.to(self.device) for name, value in draws.items()}
                said = self.texts.live([self._said(picture, 0) for picture in pictures])
                errors.append(self.denoising.errors(self.unet, batch | said.batch())[1])
        mse = float(torch.cat(errors).mean())
        return {"score": mse, "mse": mse, "length": float(self._length(network))}

    def samples(self, network: NewWord) -> Tensor | None:
        """For held-out pictures: the picture, what the words of `init` paint, and what the new word paints."""
        numbers = shown(self.held_out, len(self.held_out), SHOWN)
        pictures = self.held_out.plain(numbers)
        latents = self.held_out.latents(pictures).to(self.device)
        rows = [self.vae.decode(latents)[:, :3].cpu()]
        with self.spoken.using(network):
            for word in (self.config.init, self.config.word):
                texts = [self._said(picture, n % len(self._templates), word) for n, picture in enumerate(pictures)]
                seeds, size = [self.seed] * len(texts), self.held_out.shapes[numbers[0]]
                rows.append(painted(Pipeline(self.bundle), texts, seeds, size)[:, :3])
        return torch.stack(rows, dim=1).flatten(0, 1)

    def prompted(self, network: NewWord) -> Tensor | None:
        """The prompts of the config, which may have the new word in them."""
        prompts, side = self.config.prompts, self.size
        if not prompts:
            return None
        with self.spoken.using(network):
            return painted(Pipeline(self.bundle), prompts, range(len(prompts)), (side, side))

    def export(self, network: NewWord, path: Path) -> None:
        """Write the vectors: for one text encoder by the word's name as diffusers does, and beside it as AUTOMATIC1111
        does, with the suffix .pt; for two as `clip_l` and `clip_g`."""
        rows = [network.rows(number).detach().float().cpu() for number in range(len(network.vectors))]
        if len(rows) > 1:
            save_tensors(path, dict(zip(PAIR, rows, strict=True)), {"word": self.config.word})
            return
        save_tensors(path, {self.config.word: rows[0]}, {"word": self.config.word})
        entry = {"string_to_token": {"*": 265}, "string_to_param": {"*": rows[0]}, "name": self.config.word}
        file = io.BytesIO()
        torch.save(entry, file)
        write_bytes(path.with_suffix(".pt"), file.getvalue(), force=True)

    @property
    def _templates(self) -> tuple[str, ...]:
        return self.config.templates or TEMPLATES.get(self.config.texts, ("{}",))

    def _said(self, picture: Shown, template: int, word: str | None = None) -> str:
        """What is said of a picture; another word may stand for the new one."""
        own = self.config.word
        if self.config.texts == "captions" or self.data.pictures.records[picture.row].regularisation:
            return picture.caption if word is None else picture.caption.replace(own, word)
        return self._templates[template].replace("{}", own if word is None else word)

    def _length(self, word: NewWord) -> Tensor:
        """Mean length of the vectors."""
        return torch.cat([word.rows(number).norm(dim=1) for number in range(len(word.vectors))]).mean()

    def _check_captions(self) -> None:
        """Raise `DataError` unless captions that are to have the word in them do."""
        if self.config.texts != "captions":
            return
        for part in (self.data, self.held_out):
            for record in (part.pictures.records[row] for row in part.rows):
                lacking = [one for one in record.captions if self.config.word not in one and not record.regularisation]
                if lacking:
                    raise DataError(
                        "inversion.texts",
                        given=f"the caption {lacking[0]!r}",
                        expected=f"the word {self.config.word} in every caption",
                        cure='Write it into the captions, or say texts = "object" or "style".',
                    )


def clip_encoders(bundle: ModelBundle, config: InversionStage) -> list[TextEncoder]:
    """The model's CLIP text encoders, for which the word is new.

    Raises:
        ConfigError: it has text encoders of another kind, or the word is one that they know.
    """
    encoders = [encoder for encoder in bundle.text.encoders if isinstance(encoder, TextEncoder)]
    if not encoders or len(encoders) != len(bundle.text.encoders):
        raise ConfigError(
            "inversion.start",
            given=f"{config.start}, which reads prompts with a sentence encoder",
            expected="a model with CLIP text encoders, where a prompt's new word has a place",
            cure="Teach this model with `gouache train lora` instead.",
        )
    if len(bundle.text.tokenize(config.word)) == 1:
        raise ConfigError(
            "inversion.word",
            given=config.word,
            expected="a word that the model has no vector for",
            cure=f"Choose one such as <{config.word}> or my-{config.word}.",
        )
    return encoders


@torch.no_grad()
def first_vectors(config: InversionStage, table: nn.Embedding, tokenizer: TextTokenizer) -> Tensor:
    """What the word is at first: the vectors of `init` in turn, or the mean of all tokens. [n, width]"""
    if not config.init:
        return table.weight.float().mean(0).expand(config.vectors, -1).contiguous()
    ids = tokenizer.ids(config.init)
    return table.weight[[ids[number % len(ids)] for number in range(config.vectors)]].float()


@torch.no_grad()
def lengths_of(table: Tensor) -> tuple[float, float]:
    """Between which lengths almost all of a table's vectors are. [rows, width]"""
    lengths = table.float().norm(dim=1)
    low, high = torch.quantile(lengths, lengths.new_tensor(SHARES)).tolist()
    return low, high
