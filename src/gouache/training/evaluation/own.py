"""The evaluation of a model on anyone's captioned pictures: what `gouache eval` does with a folder of your own.

Styles, scenes and Chinese are the stickers' own facts and are left out. What compares pictures with captions needs a
judge, and is left out without one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from gouache.config import Config
from gouache.data.buckets import Bucket
from gouache.data.packed import PackedPictures, pack_pictures
from gouache.data.readers import ReadReport
from gouache.errors import DataError, GouacheError
from gouache.models.bundle import ModelBundle
from gouache.pipeline.output.sheets import labelled_sheet
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request
from gouache.pipeline.resolve import resolve_request
from gouache.training.batches.sources import SMALL
from gouache.training.evaluation.figures import Evaluation, Figure
from gouache.training.evaluation.judge import Instrument
from gouache.training.evaluation.painting import PaintedPictures
from gouache.training.evaluation.retrieval import candidates, ranks
from gouache.training.evaluation.statistics import Interval, bootstrap_mean, bootstrap_share, kid
from gouache.training.evaluation.suite import Painting, bits, reconstruction

LEFT_OUT = "style, scenes and Chinese are left out: they need facts that only the recipe stickers has"
WITHOUT_JUDGE = "retrieval, caption score and KID are left out: they need --judge"
ALL_TOGETHER = "of so few pictures none was held out: the figures are of pictures that the model may have learnt from"


OWN_PICTURES = "own_pictures"
"""Key of an evaluation's JSON that tells of whose pictures it is; the sticker set's has none."""


def is_sticker_set(data: Path) -> bool:
    """Whether a folder is a built sticker set, rather than anyone's pictures."""
    return (data / "pictures.npy").is_file()


class OwnSettings(Config):
    """How much to measure."""

    limit: int = Field(default=100, ge=2)
    """Pictures of each group: held out, and learnt from."""
    steps: tuple[int, ...] = ()
    """Numbers of denoising steps to paint with; none takes the model's own."""
    captions: int = Field(default=100, ge=2)
    """Captions among which the own one must be found; fewer where there are fewer different ones."""
    levels: int = Field(default=16, ge=1)
    """Noise levels of the estimate of bits a dimension."""
    seed: int = Field(default=0, ge=0)
    sheet_rows: int = Field(default=16, ge=0)


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the pictures, uint8 [N,H,W,4], with the first caption of each."""

    name: str
    pictures: PaintedPictures
    captions: list[str]


@contextmanager
def packed_at(data: Path, width: int, height: int) -> Iterator[PackedPictures]:
    """Anyone's pictures in one size: a packed set of it as it is, anything else packed for as long as it is needed.

    Raises:
        DataError: as `pack_pictures`.
    """
    wanted = Bucket(width, height)
    if (data / "manifest.json").is_file() and (found := PackedPictures.open(data)).buckets == (wanted,):
        yield found
        return
    with tempfile.TemporaryDirectory() as place:
        list(pack_pictures(data, Path(place) / "set", [wanted], ReadReport()))
        yield PackedPictures.open(Path(place) / "set")


def groups_of(pictures: PackedPictures, limit: int, seed: int) -> tuple[list[Group], NDArray[np.int64]]:
    """What is asked for, and the rows of real pictures to compare with: those to learn from.

    Of few pictures there is one group, "all", as a training holds none of so few out.
    """
    rows = [row for row in range(len(pictures)) if not pictures.records[row].regularisation]
    if len(rows) < SMALL:
        chosen = {"all": rows}
        reference = rows
    else:
        held_out = set(pictures.indices("held_out").tolist())
        reference = [row for row in rows if row not in held_out]
        chosen = {"held_out": [row for row in rows if row in held_out], "seen": reference}
    generator = np.random.default_rng(seed)
    return [
        Group(
            name,
            np.stack([np.array(pictures.picture(row)) for row in asked]),
            [pictures.records[row].captions[0] for row in asked],
        )
        for name, found in chosen.items()
        if (asked := sorted(generator.permutation(found)[:limit].tolist()))
    ], np.array(reference, np.int64)


def evaluate_own(
    pipeline: Pipeline, data: Path, judge: Instrument | None, settings: OwnSettings
) -> Iterator[str | Painting | Evaluation]:
    """Measure a model on anyone's pictures; yields what to tell the user, progress, and last what was found.

    Args:
        pipeline: the model.
        data: a packed set, or anything that `gouache data build pictures` reads.
        judge: compares pictures with captions; None leaves that out.
        settings: how much to measure.

    Raises:
        DataError: the pictures can't be read.
    """
    request = resolve_request(Request(seed=settings.seed), pipeline.bundle)
    assert request.width is not None, "a resolved request has a size"
    assert request.height is not None, "a resolved request has a size"
    with packed_at(data, request.width, request.height) as pictures:
        run = _OwnEvaluation(pipeline, pictures, judge, settings, request)
        yield LEFT_OUT
        if judge is None:
            yield WITHOUT_JUDGE
        if run.groups[0].name == "all":
            yield ALL_TOGETHER
        yield from run.without_painting()
        yield from run.with_painting()
        yield run.result(str(data))


class _OwnEvaluation:
    """One running evaluation."""

    def __init__(
        self,
        pipeline: Pipeline,
        pictures: PackedPictures,
        judge: Instrument | None,
        settings: OwnSettings,
        request: Request,
    ) -> None:
        self.pipeline, self.judge, self.settings, self.request = pipeline, judge, settings, request
        self.bundle: ModelBundle = pipeline.bundle
        self.groups, reference = groups_of(pictures, settings.limit, settings.seed)
        if not self.groups:
            raise DataError(str(pictures.folder), given="no picture", expected="at least one")
        self.steps = settings.steps or (request.num_inference_steps or 1,)
        self.reference = None
        if judge is not None and len(reference) > 1:
            real = np.stack([np.array(pictures.picture(int(row))) for row in reference[:1000]])
            self.reference = judge.features(real).double().numpy()
        self.figures: list[Figure] = []
        self.columns: list[list[Image.Image]] = []
        self.done, self.total = 0, len(self.steps) * sum(len(group.captions) for group in self.groups)

    def without_painting(self) -> Iterator[str]:
        """Reconstruction and bits on the first group; the judge's figures for the real pictures, the upper bound."""
        first, seed = self.groups[0], self.settings.seed
        self.figures += reconstruction(self.bundle, first.pictures, seed=seed, group=first.name)
        try:
            found = bits(
                self.bundle, first.pictures, first.captions, levels=self.settings.levels, seed=seed, group=first.name
            )
            self.figures += found
        except GouacheError as error:
            yield f"bits are left out: {error}"
        for group in self.groups:
            self._judge(group, group.pictures, None)
        self._keep([group.pictures for group in self.groups])

    def with_painting(self) -> Generator[Painting, None, None]:
        """The figures of pictures painted for the captions."""
        for steps in self.steps:
            painted = []
            for group in self.groups:
                pictures = []
                for number, caption in enumerate(group.captions):
                    pictures.append(self._paint(caption, self.settings.seed + number, steps))
                    self.done += 1
                    yield Painting(self.done, self.total)
                painted.append(np.stack(pictures))
                self._judge(group, painted[-1], steps)
            if self.judge is not None and self.reference is not None and sum(map(len, painted)) > 1:
                features = self.judge.features(np.concatenate(painted)).double().numpy()
                self._add("kid", "all", kid(features, self.reference, seed=self.settings.seed), steps)
            self._keep(painted)

    def result(self, data: str) -> Evaluation:
        """All figures with their circumstances."""
        described: dict[str, str | int] = {
            "model": self.bundle.name or self.bundle.family,
            "model_sha256": self.bundle.sha256,
            "judge_sha256": "" if self.judge is None else self.judge.sha256,
            OWN_PICTURES: data,
            "limit": self.settings.limit,
            "captions": self._among(),
            "reference": 0 if self.reference is None else len(self.reference),
            "seed": self.settings.seed,
            "default_steps": self.request.num_inference_steps or 1,
            "interval": "95 % percentile bootstrap",
            "left_out": LEFT_OUT if self.judge is not None else f"{LEFT_OUT}; {WITHOUT_JUDGE}",
        }
        return Evaluation(tuple(self.figures), described, self._sheet())

    def _paint(self, caption: str, seed: int, steps: int) -> PaintedPictures:
        request = self.request.model_copy(update={"prompt": caption, "seed": seed, "num_inference_steps": steps})
        return np.array(self.pipeline.paint(request)[0].image.convert("RGBA"))

    def _among(self) -> int:
        different = {caption for group in self.groups for caption in group.captions}
        return min(self.settings.captions, len(different))

    def _judge(self, group: Group, pictures: PaintedPictures, steps: int | None) -> None:
        """Caption score and retrieval of pictures that were painted for a group's captions, or are its own."""
        if self.judge is None:
            return
        seed = self.settings.seed
        vectors, texts = self.judge.pictures(pictures), self.judge.captions(group.captions)
        scores = (vectors * texts).sum(1).double().numpy()
        self._add("caption_score", group.name, bootstrap_mean(scores, seed=seed), steps)
        if self._among() < 2:
            return
        keys = sorted({caption for one in self.groups for caption in one.captions})
        chosen = candidates(keys, group.captions, self._among(), seed)
        rank = ranks(vectors, self.judge.captions(keys), chosen)
        for depth in (1, 5):
            hits = (rank <= depth).double().numpy()
            self._add(f"retrieval_at_{depth}", group.name, bootstrap_share(hits, seed=seed), steps)

    def _add(self, name: str, group: str, interval: Interval, steps: int | None) -> None:
        self.figures.append(Figure(name, f"real {group}" if steps is None else group, interval, steps))

    def _keep(self, groups: Sequence[PaintedPictures]) -> None:
        rows = self.settings.sheet_rows // len(self.groups)
        self.columns.append([Image.fromarray(picture, "RGBA") for pictures in groups for picture in pictures[:rows]])

    def _sheet(self) -> Image.Image | None:
        each = self.settings.sheet_rows // len(self.groups)
        if not each:
            return None
        down = [caption for group in self.groups for caption in group.captions[:each]]
        across = ["real", *(f"{steps} steps" for steps in self.steps)]
        title = f"{self.bundle.name or self.bundle.family}: {', then '.join(group.name for group in self.groups)}"
        return labelled_sheet([list(row) for row in zip(*self.columns, strict=True)], across, down, title=title)
