"""All text encoders of a model as one: prompt to tokens to context and pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.errors import InvalidInput
from gouache.models.text.clip import TextEncoder, TextEncoding
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.t5 import T5Encoder
from gouache.models.text.tokenizers import END_ID, ClipTokenizer, TextTokenizer, WordPieceTokenizer
from gouache.models.text.unigram import UnigramTokenizer
from gouache.models.turns import awake


@dataclass(frozen=True, slots=True)
class Joint:
    """How Stable Diffusion 3 joins its text encoders (arXiv:2403.03206, section 4): the CLIPs side by side, padded with
    zeros to the width of T5, whose rows follow; the pooled vectors of both CLIPs side by side.

    Attributes:
        width: channels of the whole.
        rows: of T5, which are zeros in a stack without it.
    """

    width: int
    rows: int


class TextStack(nn.Module):
    """One or two CLIP text encoders, or a sentence encoder, with the tokenizer of each; and T5 behind two CLIPs.

    SD 1.x and 2.x have one encoder, SDXL two (their contexts stand side by side), its refiner one, SD 3 two and T5, the
    pocket model a sentence encoder. All tokenizers but T5's share their vocabulary and differ in padding only.

    Args:
        encoders: in the order of their channels in the context.
        tokenizers: one for each encoder.
        joint: how Stable Diffusion 3 joins them; None = side by side, and the last one gives the pooled vector.
        t5: the encoder whose rows follow, with its tokenizer; None = zeros in their place.

    Raises:
        InvalidInput: not one tokenizer for each encoder, or one with numbers that its encoder has no vector for.
    """

    def __init__(
        self,
        encoders: Sequence[TextEncoder | SentenceEncoder],
        tokenizers: Sequence[ClipTokenizer | WordPieceTokenizer],
        joint: Joint | None = None,
        t5: tuple[T5Encoder, UnigramTokenizer] | None = None,
    ) -> None:
        super().__init__()
        lengths = {tokenizer.max_length for tokenizer in tokenizers}
        if not encoders or len(encoders) != len(tokenizers) or len(lengths) != 1:
            raise InvalidInput(
                "text stack",
                given=f"{len(encoders)} encoders, {len(tokenizers)} tokenizers of lengths {sorted(lengths)}",
                expected="one tokenizer for each encoder, all of one length",
            )
        for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
            _check_table(encoder.config.vocabulary_size, tokenizer)
        self.encoders = nn.ModuleList(encoders)
        self.tokenizers: tuple[TextTokenizer, ...] = tuple(tokenizers)
        self.joint = joint
        self.t5: T5Encoder | None = None
        self.t5_tokenizer: UnigramTokenizer | None = None
        if t5 is not None:
            _check_t5(joint, *t5)
            self.t5, self.t5_tokenizer = t5

    @classmethod
    def of_clip(
        cls,
        encoders: Sequence[TextEncoder],
        joint: Joint | None = None,
        t5: tuple[T5Encoder, UnigramTokenizer] | None = None,
    ) -> TextStack:
        """A stack of CLIP encoders; each one's config says how its tokenizer pads. `joint` and `t5` as in the class."""
        tokenizers = [
            ClipTokenizer(pad_id=encoder.config.pad_id, max_length=encoder.config.positions) for encoder in encoders
        ]
        return cls(encoders, tokenizers, joint, t5)

    @classmethod
    def of_sentences(cls, encoder: SentenceEncoder, vocabulary: Sequence[str]) -> TextStack:
        """A sentence encoder and the pieces of its vocabulary."""
        config = encoder.config
        return cls(
            [encoder], [WordPieceTokenizer(vocabulary, max_length=config.max_tokens, lowercase=config.lowercase)]
        )

    @property
    def chunk_length(self) -> int:
        """How many of a prompt's tokens fit one chunk: 75 for CLIP."""
        return self.tokenizers[0].chunk_length

    @property
    def context_widths(self) -> tuple[int, ...]:
        """Channels of each encoder's part of the context."""
        return tuple(encoder.config.width for encoder in self._encoders())

    @property
    def context_width(self) -> int:
        """Channels of the context."""
        return sum(self.context_widths) if self.joint is None else self.joint.width

    @property
    def pooled_widths(self) -> tuple[int, ...]:
        """Channels of each encoder's part of the pooled vector; only a joint stack has more than the last one's."""
        encoders = self._encoders()
        last = len(encoders) - 1
        return tuple(
            (one.config.width if isinstance(one, SentenceEncoder) else one.config.projection_width)
            if self.joint is not None or i == last
            else 0
            for i, one in enumerate(encoders)
        )

    @property
    def pooled_width(self) -> int:
        """Channels of the pooled vector; 0 if the stack gives none."""
        return sum(self.pooled_widths)

    def tokenize(self, text: str) -> list[int]:
        """All tokens of the text, without start, end and padding."""
        return self.tokenizers[0].ids(text)

    def decode_tokens(self, ids: Sequence[int]) -> str:
        """The text of some tokens, as the tokenizer folded it."""
        return self.tokenizers[0].decode(ids)

    def encode(self, chunks: Sequence[Sequence[int]], *, skip_layers: int | None = None) -> TextEncoding:
        """Encode chunks of tokens.

        Args:
            chunks: N lists of at most `chunk_length` tokens, without start, end and padding: those are laid around
                here, for each encoder its own. Token k of a chunk is row k + 1 of its context.
            skip_layers: for CLIP, layers left out at the end; None = as the model was trained.

        Returns:
            context [N, chunk_length + 2, sum of context_widths], which `whole` makes the network's, pooled
            [N, pooled_width] or None, and the sentence encoder's mask.

        Raises:
            InvalidInput: no chunk, a chunk is too long, or `skip_layers` for a sentence encoder.
        """
        if not chunks:
            raise InvalidInput("chunks", given="none", expected="at least one list of tokens")
        parts = [
            self._encode_with(encoder, tokenizer, chunks, skip_layers)
            for encoder, tokenizer in zip(self._encoders(), self.tokenizers, strict=True)
        ]
        context = torch.cat([part.context for part in parts], dim=-1) if len(parts) > 1 else parts[0].context
        pooled = parts[-1].pooled
        if self.joint is not None:
            pooled = torch.cat([part.pooled for part in parts if part.pooled is not None], dim=-1)
        return TextEncoding(context, pooled, parts[-1].mask)

    def encode_t5(self, ids: Sequence[int], rows: int | None = None) -> Tensor:
        """T5's states of a text, or zeros in a stack without it.

        Args:
            ids: at most `rows` - 1 tokens, without end and padding, which are looked at as diffusers does.
            rows: length with end and padding; None = the stack's own.

        Returns:
            [1, rows, context_width]

        Raises:
            InvalidInput: too many tokens, or a stack that has no place for T5.
        """
        if self.joint is None:
            raise InvalidInput("t5", given="a text", expected="nothing: this model has no place for T5's states")
        rows = self.joint.rows if rows is None else rows
        if self.t5 is None or self.t5_tokenizer is None:
            place = next(awake(self._encoders()[0]).parameters())
            return torch.zeros(1, rows, self.joint.width, dtype=place.dtype, device=place.device)
        device = awake(self.t5).shared.weight.device
        framed = torch.tensor([self.t5_tokenizer.frame(ids, rows)], device=device)
        encoding: TextEncoding = self.t5(framed)
        return encoding.context

    def whole(self, context: Tensor, t5: Tensor | None = None) -> Tensor:
        """The context as the network takes it.

        Args:
            context: of all chunks. [N, L, sum of context_widths]
            t5: T5's states of the same texts, in a joint stack; None = those of a stack without it. [N, rows, width]

        Returns:
            [N, L, context_width]; in a joint stack padded with zeros to that width, and T5's rows behind: [N, L + rows,
            context_width].
        """
        if self.joint is None:
            return context
        if t5 is None:
            t5 = context.new_zeros(len(context), self.joint.rows, self.joint.width)
        return torch.cat([F.pad(context, (0, self.joint.width - context.shape[-1])), t5.to(context)], dim=1)

    def _encode_with(
        self,
        encoder: TextEncoder | SentenceEncoder,
        tokenizer: TextTokenizer,
        chunks: Sequence[Sequence[int]],
        skip_layers: int | None,
    ) -> TextEncoding:
        device = next(awake(encoder).parameters()).device
        ids = torch.tensor([tokenizer.frame(chunk) for chunk in chunks], device=device)  # [N, L]
        if isinstance(encoder, TextEncoder):
            clip: TextEncoding = encoder(ids, skip_layers=skip_layers)
            return clip
        if skip_layers is not None:
            raise InvalidInput("skip_layers", given=skip_layers, expected="nothing: a sentence encoder uses all layers")
        sentence: TextEncoding = encoder(ids, _real_tokens(chunks, ids))
        return sentence

    def _encoders(self) -> list[TextEncoder | SentenceEncoder]:
        return [part for part in self.encoders if isinstance(part, TextEncoder | SentenceEncoder)]


class NoTexts(TextStack):
    """What stands for the text encoders of a model that is shown a picture alone: every text is a row of zeros.

    Args:
        width: channels of the context.
    """

    def __init__(self, width: int) -> None:
        nn.Module.__init__(self)
        self.encoders = nn.ModuleList()
        self.tokenizers = (ClipTokenizer(pad_id=END_ID, max_length=77),)
        self.joint, self.t5, self.t5_tokenizer = None, None, None
        self.width = width

    @property
    def context_widths(self) -> tuple[int, ...]:
        """That of the context, as one encoder would give it."""
        return (self.width,)

    @property
    def pooled_widths(self) -> tuple[int, ...]:
        """None is pooled."""
        return (0,)

    def encode(self, chunks: Sequence[Sequence[int]], *, skip_layers: int | None = None) -> TextEncoding:
        """Zeros for N chunks, whatever they say. [N, 1, width]

        Raises:
            InvalidInput: `skip_layers`.
        """
        if skip_layers is not None:
            raise InvalidInput("skip_layers", given=skip_layers, expected="nothing: this model has no text encoder")
        return TextEncoding(torch.zeros(len(chunks), 1, self.width), None, None)


def _check_table(rows: int, tokenizer: TextTokenizer | UnigramTokenizer) -> None:
    if tokenizer.highest_id >= rows:
        raise InvalidInput(
            "text encoder",
            given=f"a table of {rows} tokens",
            expected=f"one for each of the tokenizer's {tokenizer.highest_id + 1}",
            cure="It was trained with another vocabulary: take the one that belongs to it.",
        )


def _check_t5(joint: Joint | None, encoder: T5Encoder, tokenizer: UnigramTokenizer) -> None:
    if joint is None or encoder.config.width != joint.width:
        raise InvalidInput(
            "t5",
            given=f"states of width {encoder.config.width}",
            expected="none: the model has no place for them" if joint is None else f"the network's {joint.width}",
        )
    _check_table(encoder.config.vocabulary_size, tokenizer)


def _real_tokens(chunks: Sequence[Sequence[int]], ids: Tensor) -> Tensor:
    """True for start, tokens and end, False for padding. [N, L]"""
    lengths = torch.tensor([len(chunk) + 2 for chunk in chunks], device=ids.device)
    return torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
