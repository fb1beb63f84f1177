"""Captioned pictures that a finished model is tuned on: each is encoded once, and its caption is drawn anew every time.

Sets are small, and what is said of a picture may change from step to step. So the latents of every picture (and of its
mirror image) are stored, and captions are encoded when they come.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gouache.data.packed import PackedPictures, PackedStream, Variety
from gouache.data.stickers import Split
from gouache.data.stream import Example
from gouache.errors import DataError
from gouache.models.text.stack import TextStack
from gouache.training.batches.batch_shapes import order_of
from gouache.training.batches.encoded import TextStates
from gouache.training.batches.loss_marks import loss_marks
from gouache.training.batches.sources import few_packed, stacked
from gouache.training.batches.store import Captioned, EncodedStore, Encoders, encode, states_of_texts, store_folder
from gouache.training.config import DataConfig
from gouache.training.denoising import Denoising
from gouache.training.stage import Batch, BatchNoise, Preparing

KEPT = 256
"""Captions whose states are kept; those of SDXL take 0.6 MB each."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture as one step sees it.

    Attributes:
        row: of the set's records.
        mirrored: left and right changed.
        caption: as it was drawn.
    """

    row: int
    mirrored: bool
    caption: str


class EachView:
    """Every picture of some rows, and its mirror image if it is shown, once: what a store of latents is made of."""

    def __init__(self, pictures: PackedPictures, rows: Sequence[int], variety: Variety | None) -> None:
        members = pictures.members
        self._pictures = pictures
        ordered = sorted(set(rows), key=lambda row: (members[row], row))
        self.views = [
            (row, mirrored)
            for row in ordered
            for mirrored in ((False, True) if variety is not None and variety.flips(pictures, row) else (False,))
        ]
        self.shapes = [(members[row].height, members[row].width) for row, _ in self.views]
        marks = hashlib.sha256(repr(self.views).encode()).hexdigest()
        self.fingerprint = f"{PackedStream(pictures, 0, split='all').fingerprint}/views/{marks}"

    def __len__(self) -> int:
        return len(self.views)

    def examples(self, numbers: Sequence[int]) -> Captioned:
        """Views by number, each with its picture's first caption."""
        return stacked([self._example(*self.views[number]) for number in numbers])

    def _example(self, row: int, mirrored: bool) -> Example:
        picture = np.array(self._pictures.picture(row))
        caption = self._pictures.records[row].captions[0]
        return Example(np.ascontiguousarray(picture[:, ::-1]) if mirrored else picture, caption)


class TuningSet:
    """The pictures of one split, in the order in which a run sees them.

    Args:
        pictures: the set.
        rows: those that are shown, each as often as an epoch shows it.
        store: latents of every view.
        views: what lies where in the store.
        variety: flips, templates and what becomes of captions.
        seed: of order and of what is drawn.
        batch: images of a step, which share a shape.

    Attributes:
        views: every picture, and its mirror image where that is shown.
        shapes: (height, width) of every row.
    """

    def __init__(
        self,
        pictures: PackedPictures,
        rows: Sequence[int],
        store: EncodedStore,
        views: EachView,
        variety: Variety,
        seed: int,
        batch: int,
    ) -> None:
        self.pictures, self.rows, self._store, self.views = pictures, list(rows), store, views
        self._variety, self._seed = variety, seed
        self._places = {view: place for place, view in enumerate(views.views)}
        members = pictures.members
        self.shapes = [(members[row].height, members[row].width) for row in self.rows]
        self._order = order_of(self, len(self.rows), batch, seed)

    def __len__(self) -> int:
        return len(self.rows)

    def shown(self, indices: Sequence[int]) -> list[Shown]:
        """What stands at these places of the endless stream; a pure function of (seed, place)."""
        rows = [self.rows[number] for number in self._order.numbers(indices)]
        return [self._drawn(row, index) for row, index in zip(rows, indices, strict=True)]

    def plain(self, numbers: Sequence[int]) -> list[Shown]:
        """Pictures as they are, with their first captions."""
        rows = [self.rows[number] for number in numbers]
        return [Shown(row, False, self.pictures.records[row].captions[0]) for row in rows]

    def latents(self, shown: Sequence[Shown]) -> Tensor:
        """Normalised latents [B,C,h,w] in fp32."""
        return self._store.latents([self._places[one.row, one.mirrored] for one in shown])

    def marks(self, shown: Sequence[Shown], latent_size: Sequence[int], prior_loss_weight: float) -> Batch:
        """Where and how much their losses count, as `loss_marks`."""
        views = [(one.row, one.mirrored) for one in shown]
        return loss_marks(self.pictures, views, latent_size, prior_loss_weight)

    def draws(self, denoising: Denoising, shown: Sequence[Shown], noise: BatchNoise, *, exact: bool = False) -> Batch:
        """Their latents with what is drawn for the loss and how much it counts; `exact` keeps drafts as they are."""
        latents = self.latents(shown)
        batch = denoising.draws(latents, noise, exact=exact)
        batch |= self.marks(shown, latents.shape[2:], denoising.config.prior_loss_weight)
        if exact:
            batch["keep_draft"] = torch.ones_like(batch["keep_draft"])
        return batch

    def _drawn(self, row: int, index: int) -> Shown:
        generator = np.random.Generator(np.random.Philox(key=[self._seed, index], counter=[0, 0, 0, 11]))
        mirrored = self._variety.flips(self.pictures, row) and bool(generator.random() < 0.5)
        return Shown(row, mirrored, self._variety.caption(self.pictures, row, generator))


class Texts:
    """Captions as a network sees them; those of late are kept.

    Args:
        stack: the model's text encoders.
        pooled: from the text's pooled vector to what the network takes.
    """

    def __init__(self, stack: TextStack, pooled: Callable[[Tensor | None], Tensor | None]) -> None:
        self.stack, self.pooled = stack, pooled
        self._known: OrderedDict[str, TextStates] = OrderedDict()

    @torch.no_grad()
    def states(self, captions: Sequence[str]) -> TextStates:
        """States [B,L,D], as long as the longest, on the CPU in fp32. Each caption is encoded alone, so that its
        numbers don't depend on its neighbours."""
        return joined([self._one(caption) for caption in captions])

    def live(self, captions: Sequence[str]) -> TextStates:
        """The same with gradients, where the encoders are trained; on their device."""
        return states_of_texts(self.stack, list(captions), self.pooled)

    def _one(self, caption: str) -> TextStates:
        if caption not in self._known:
            states = states_of_texts(self.stack, [caption], self.pooled)
            self._known[caption] = TextStates(
                states.context.float().cpu(), states.mask.cpu(), states.pooled.float().cpu()
            )
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(caption)
        return self._known[caption]


def joined(parts: Sequence[TextStates]) -> TextStates:
    """States of several captions [1,L,D] as one batch [B,L,D], zero behind the end."""
    length = max(part.context.shape[1] for part in parts)
    context = parts[0].context.new_zeros(len(parts), length, parts[0].context.shape[2])
    mask = torch.zeros(len(parts), length, dtype=torch.bool)
    for row, part in enumerate(parts):
        own = part.context.shape[1]
        context[row, :own], mask[row, :own] = part.context[0], part.mask[0]
    return TextStates(context, mask, torch.cat([part.pooled for part in parts]))


def tuning_sets(
    folder: Path, run: Path, encoders: Encoders, config: DataConfig, batch: int
) -> Generator[Preparing, None, tuple[TuningSet, TuningSet]]:
    """The pictures to train on and those to judge by, with their latents; what is encoded already is kept.

    Args:
        folder: of the packed set.
        run: folder of the whole training, where latents are stored.
        encoders: of the model that is tuned.
        config: of the data.
        batch: images of a step.

    Raises:
        DataError: no packed set, or pictures of another size.
    """
    if not (folder / "records.jsonl").is_file() or (folder / "pictures.npy").is_file():
        raise DataError(
            str(folder),
            given="no pictures of your own",
            expected="a folder of pictures, or what `gouache data build pictures` made of one",
        )
    pictures = PackedPictures.open(folder)
    few, note = few_packed(pictures, config)
    if note:
        yield Preparing(0, 0, note)
    split: Split = "all" if few else "train"
    shown = pictures.weighted(split).tolist()
    held_out = pictures.indices("all" if few else "held_out").tolist()
    held_out = [row for row in held_out if not pictures.records[row].regularisation]
    variety = Variety(config.flip, config.templates, config.captions)
    sets = []
    for rows, shown_in in ((shown, variety), (held_out, None)):
        views = EachView(pictures, rows, shown_in)
        where = store_folder(run, views, encoders)
        for done in encode(where, views, encoders, len(views)):
            yield Preparing(done, len(views))
        store = EncodedStore(where, len(views))
        sets.append(TuningSet(pictures, rows, store, views, variety, config.seed, batch))
    return sets[0], sets[1]
