"""A stream of captioned pictures, encoded once and kept: sharded safetensors, resumable, verified, reused.

Encoding costs as much as a training step of a small network; a run sees every picture many times.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import SafetensorsFile, load_tensors, save_tensors
from gouache.errors import CorruptCheckpoint, DataError
from gouache.models.text.stack import TextStack
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.inputs.tensors import rgba_to_tensor
from gouache.training.batches.batch_shapes import Batched, Shape, shapes_of
from gouache.training.batches.encoded import TextStates
from gouache.training.batches.loss_marks import Viewed

SIZES = "sizes"
SHARD = 2048
BATCH = 64


@dataclass(frozen=True, slots=True)
class Captioned:
    """Pictures uint8 [B,S,S,4] with straight alpha, and a caption for each."""

    pictures: NDArray[np.uint8]
    captions: list[str]


class CaptionedSource(Protocol):
    """Captioned pictures by number."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever what `examples` gives changes."""
        ...

    def examples(self, numbers: Sequence[int]) -> Captioned:
        """The examples with these numbers; a pure function."""
        ...


class FiniteSource(CaptionedSource, Protocol):
    """A source that ends."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Encoders:
    """What turns captioned pictures into latents and text states, with hashes that name the weights."""

    vae: AutoencoderKL
    text: TextStack
    sha256: str
    pooled: Callable[[Tensor | None], Tensor | None] = field(default=lambda pooled: pooled)
    """From the text's pooled vector to what the U-Net takes as `pooled`."""


def store_folder(root: Path, source: CaptionedSource, encoders: Encoders) -> Path:
    """The folder under `root` that belongs to this source and these encoders."""
    key = hashlib.sha256(f"{source.fingerprint}/{encoders.sha256}".encode()).hexdigest()[:16]
    return root / f"encoded-{key}"


def encode(folder: Path, source: CaptionedSource, encoders: Encoders, count: int) -> Iterator[int]:
    """Encode the first `count` examples into `folder`; yields the number done so far.

    Whole shards that are there already are kept; one that is damaged is made again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "empty.safetensors", _encode_text(encoders, [""]))
    for numbers in shards_of(count):
        if _is_whole(shard_file(folder, numbers), len(numbers)):
            yield numbers.stop
            continue
        parts = []
        for batch in batches_of(source, numbers):
            parts.append(encode_batch(source, encoders, batch))
            yield batch.stop
        save_shard(folder, numbers, parts)


def shards_of(count: int) -> list[range]:
    """The examples of each shard of a store."""
    return [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]


def shard_file(folder: Path, numbers: range) -> Path:
    """Where the shard of these examples lies."""
    return folder / f"{numbers.start:09d}.safetensors"


def missing_shards(folder: Path, count: int) -> list[range]:
    """The examples of each shard that a store of `count` examples lacks, or has damaged."""
    return [numbers for numbers in shards_of(count) if not _is_whole(shard_file(folder, numbers), len(numbers))]


def batches_of(source: CaptionedSource, numbers: range) -> list[range]:
    """The examples that are encoded together, of those of one shard: all of one shape."""
    starts = range(numbers.start, numbers.stop, BATCH)
    return [same for at in starts for same in _runs(source, range(at, min(at + BATCH, numbers.stop)))]


def save_shard(folder: Path, numbers: range, parts: Sequence[tuple[dict[str, Tensor], list[str]]]) -> None:
    """Write the shard of these examples from its batches, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    captions = json.dumps([caption for _, captions in parts for caption in captions])
    save_tensors(shard_file(folder, numbers), _joined([part for part, _ in parts]), {"captions": captions})


class EncodedStore:
    """Reads what `encode` wrote.

    Args:
        folder: of the store.
        count: examples to use, at most what is stored.
        source: what was encoded, which knows masks and weights.

    Raises:
        DataError: the store holds fewer.
    """

    def __init__(self, folder: Path, count: int, source: CaptionedSource | None = None) -> None:
        self.folder, self.count = folder, count
        self.source = source if isinstance(source, Viewed) else None
        shards = [folder / f"{start:09d}.safetensors" for start in range(0, count, SHARD)]
        if missing := [shard for shard in shards if not shard.exists()]:
            raise DataError(
                str(folder),
                given=f"{len(missing)} of {len(shards)} shards missing",
                expected=f"{count} examples",
                cure="Encode the data first; what is there is kept.",
            )
        self.shards = [SafetensorsFile(shard) for shard in shards]
        self.shapes = [shape for shard in self.shards for shape in _shapes(shard)]
        empty = load_tensors(folder / "empty.safetensors")
        self.length = max(int(s.read("offsets").diff().max()) for s in self.shards)
        self.empty = TextStates(
            empty["context"][None].float(),
            torch.ones(1, len(empty["context"]), dtype=torch.bool),
            empty["pooled"].float(),
        )

    def __len__(self) -> int:
        return self.count

    def latents(self, numbers: Sequence[int]) -> Tensor:
        """Latents [B,C,h,w] in fp32."""
        if len(shapes := {self.shapes[n] for n in numbers}) > 1:
            raise DataError(str(self.folder), given=f"a batch of {sorted(shapes)}", expected="one shape a batch")
        return torch.stack([self._latent(n) for n in numbers]).float()

    def _latent(self, number: int) -> Tensor:
        shard, i = self.shards[number // SHARD], number % SHARD
        if SIZES not in shard.header.tensors:
            return shard.read("latents")[i]
        shape = self.shapes[number]
        earlier = self.shapes[number - i : number].count(shape)
        return shard.read(_latents_of(shape))[earlier]

    def text(self, numbers: Sequence[int]) -> TextStates:
        """Text states in fp32, as long as the longest caption of the store, so that every batch has one shape."""
        rows = [self._text_row(number) for number in numbers]
        context = torch.zeros(len(rows), self.length, rows[0][0].shape[1])
        mask = torch.zeros(len(rows), self.length, dtype=torch.bool)
        for i, (row, _) in enumerate(rows):
            context[i, : len(row)], mask[i, : len(row)] = row, True
        return TextStates(context, mask, torch.stack([pooled for _, pooled in rows]).float())

    def captions(self, numbers: Sequence[int]) -> list[str]:
        """Captions of these examples."""
        return [self._captions(n // SHARD)[n % SHARD] for n in numbers]

    def _text_row(self, number: int) -> tuple[Tensor, Tensor]:
        shard, i = self.shards[number // SHARD], number % SHARD
        start, stop = shard.read("offsets")[i : i + 2].tolist()
        return shard.read("context")[start:stop], shard.read("pooled")[i]

    @lru_cache(maxsize=8)  # noqa: B019 - one store lives as long as its run
    def _captions(self, shard: int) -> list[str]:
        captions: list[str] = json.loads(self.shards[shard].header.metadata["captions"])
        return captions


def _latents_of(shape: Shape) -> str:
    """Name of the latents of one height and width, in a shard that holds several."""
    return f"latents.{shape[0]}x{shape[1]}"


def _shapes(shard: SafetensorsFile) -> list[Shape]:
    """Height and width of every latent of a shard."""
    if SIZES in shard.header.tensors:
        return [(int(height), int(width)) for height, width in shard.read(SIZES).tolist()]
    count, _, height, width = shard.header.tensors["latents"].shape
    return [(height, width)] * count


def _runs(source: CaptionedSource, numbers: range) -> list[range]:
    """The numbers in runs whose pictures have one shape."""
    if isinstance(source, Batched):
        return [numbers[k : k + source.batch] for k in range(0, len(numbers), source.batch)]
    shapes = shapes_of(source)
    if not shapes:
        return [numbers]
    starts = [n for n in numbers if n == numbers.start or shapes[n] != shapes[n - 1]]
    return [range(start, stop) for start, stop in pairwise([*starts, numbers.stop])]


def _is_whole(path: Path, count: int) -> bool:
    """Whether a shard is there, has `count` examples, and has the sha256 it was written with."""
    try:
        if not path.exists() or read_header(path).tensors["offsets"].shape[0] != count + 1:
            return False
        load_tensors(path)
    except CorruptCheckpoint:
        return False
    return True


@torch.no_grad()
def encode_batch(source: CaptionedSource, encoders: Encoders, numbers: range) -> tuple[dict[str, Tensor], list[str]]:
    """Latents, text states and captions of some examples of one shape."""
    examples = source.examples(numbers)
    device = next(encoders.vae.parameters()).device
    image = rgba_to_tensor(examples.pictures)[:, : encoders.vae.config.image_channels].to(device)
    latents = encoders.vae.normalise(encoders.vae.encode(image).mode())
    encoded = {"latents": latents.half().cpu()} | _encode_text(encoders, examples.captions)
    return encoded, examples.captions


@torch.no_grad()
def text_states(
    stack: TextStack, captions: list[str], pooled: Callable[[Tensor | None], Tensor | None] = lambda vector: vector
) -> TextStates:
    """As `states_of_texts`, without gradients."""
    return states_of_texts(stack, captions, pooled)


def states_of_texts(
    stack: TextStack, captions: list[str], pooled: Callable[[Tensor | None], Tensor | None] = lambda vector: vector
) -> TextStates:
    """What a text encoder says of captions; without a pooled vector that of no width.

    Args:
        stack: the encoder.
        captions: B texts; what is longer than one chunk is cut.
        pooled: from the text's pooled vector to what the U-Net takes.
    """
    states = stack.encode([stack.tokenize(caption)[: stack.chunk_length] for caption in captions])
    t5 = None
    if stack.t5_tokenizer is not None and stack.joint is not None:
        ids, rows = map(stack.t5_tokenizer.ids, captions), stack.joint.rows
        t5 = torch.cat([stack.encode_t5(one[: rows - 1]) for one in ids])
    context = stack.whole(states.context, t5)
    mask = states.mask if states.mask is not None else context.new_ones(context.shape[:2], dtype=torch.bool)
    vector = pooled(states.pooled)
    return TextStates(context, mask, states.context.new_zeros(len(captions), 0) if vector is None else vector)


def _encode_text(encoders: Encoders, captions: list[str]) -> dict[str, Tensor]:
    """Ragged text states: context [T,D] of all captions in a row, offsets [B+1], pooled [B,P]."""
    states = text_states(encoders.text, captions, encoders.pooled)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), states.mask.sum(1).cpu().cumsum(0)])
    context = states.context[states.mask].half().cpu()
    return {"context": context, "offsets": offsets, "pooled": states.pooled.half().cpu()}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    joined = {name: torch.cat([part[name] for part in parts]) for name in ("context", "pooled")} | _latents(parts)
    lengths = torch.cat([part["offsets"].diff() for part in parts])
    return joined | {"offsets": torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])}


def _latents(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Latents of one shape as `latents` [N,C,h,w]; of several as `latents.HxW`, with the `sizes` [N,2] of all."""
    by_shape: dict[Shape, list[Tensor]] = {}
    for part in parts:
        height, width = part["latents"].shape[2:]
        by_shape.setdefault((height, width), []).append(part["latents"])
    if len(by_shape) == 1:
        return {"latents": torch.cat([part["latents"] for part in parts])}
    sizes = torch.cat([torch.tensor(part["latents"].shape[2:]).expand(len(part["latents"]), 2) for part in parts])
    return {_latents_of(shape): torch.cat(own) for shape, own in by_shape.items()} | {SIZES: sizes.contiguous()}
