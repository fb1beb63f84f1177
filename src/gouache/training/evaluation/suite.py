"""The evaluation of a model that paints stickers: what `gouache eval` runs.

Every figure comes with a bootstrap interval over its pictures. Prompts and seeds are the same for every number of
steps, with and without the prior, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from gouache.config import Config
from gouache.data.captions import canonical_caption
from gouache.data.scene_rules import judge as check_scene
from gouache.data.scenes import Scene, Scenes
from gouache.data.stickers import Stickers
from gouache.errors import DataError, ShapeMismatch
from gouache.models.bundle import ModelBundle
from gouache.pipeline.inputs.tensors import rgba_to_tensor
from gouache.pipeline.likelihood import diffusion_bits, encode_captions, latents_of, prior_bits, tokens_of
from gouache.pipeline.output.sheets import labelled_sheet
from gouache.pipeline.request import Request
from gouache.pipeline.resolve import resolve_request
from gouache.training.evaluation.figures import Evaluation, Figure
from gouache.training.evaluation.judge import Judge
from gouache.training.evaluation.painting import BATCH, Paint, PaintedPictures, Setting
from gouache.training.evaluation.prompts import Judged, Prompt, RetrievalCaptions, choose_prompts, join
from gouache.training.evaluation.statistics import (
    Interval,
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_share,
    kid,
    kid_difference,
)
from gouache.training.losses import psnr
from gouache.training.stage import batched

CLAIMS = ("colour", "count", "position", "relation", "background")
FEW = 3


class EvaluationSettings(Config):
    """How much to measure."""

    limit: int = Field(default=100, ge=2)
    """Prompts of each group: seen pairs, held-out pairs, Chinese."""
    steps: tuple[int, ...] = (8, 12)
    """Numbers of denoising steps to paint with."""
    captions: int = Field(default=100, ge=2)
    """Captions among which the own one must be found."""
    reference: int = Field(default=1000, ge=2)
    """Real pictures that KID compares with."""
    levels: int = Field(default=16, ge=1)
    """Noise levels of the estimate of bits a dimension."""
    best_of: int = Field(default=4, ge=1)
    """Drafts for the re-ranking test; 1 leaves it out."""
    scenes: int = Field(default=250, ge=0)
    """Composed scenes to check by rule, a fifth of each kind; 0 leaves them out."""
    chinese: bool = True
    seed: int = Field(default=0, ge=0)
    sheet_rows: int = Field(default=16, ge=0)


@dataclass(frozen=True, slots=True)
class Painting:
    """Progress of the evaluation: `done` of `total` pictures are painted."""

    done: int
    total: int


def evaluate(
    bundle: ModelBundle,
    paint: Paint,
    stickers: Stickers,
    judge: Judge,
    settings: EvaluationSettings,
) -> Iterator[Painting | Evaluation]:
    """Measure a model; yields progress and, last, what was found.

    Args:
        bundle: the model, for the figures that need no painting.
        paint: paints with it; see `evaluation_paint.painter`.
        stickers: the data set.
        judge: towers that were trained apart from the model's.
        settings: how much to measure.

    Raises:
        DataError, ShapeMismatch: the data do not fit the model.
    """
    run = _Evaluation(bundle, paint, stickers, judge, settings)
    run.without_painting()
    yield from run.with_painting()
    yield run.result()


class _Evaluation:
    """One running evaluation."""

    def __init__(
        self, bundle: ModelBundle, paint: Paint, stickers: Stickers, judge: Judge, settings: EvaluationSettings
    ) -> None:
        self.bundle, self.paint, self.stickers, self.judge, self.settings = bundle, paint, stickers, judge, settings
        self.retrieval = RetrievalCaptions(judge, stickers, settings.captions, settings.seed)
        self.groups = {
            "seen": choose_prompts(stickers, "train", settings.limit, settings.seed),
            "held_out": choose_prompts(stickers, "held_out", settings.limit, settings.seed),
        }
        self.chinese = choose_prompts(stickers, "train", settings.limit, settings.seed, chinese=True)
        self.scenes = evaluation_scenes(stickers, settings.scenes, settings.seed) if settings.scenes else []
        self.drafts = (True, False) if bundle.prior is not None else (False,)
        self.usual = Setting(resolve_request(Request(seed=0), bundle).num_inference_steps or 1, self.drafts[0])
        self.reference = self._reference()
        self.figures: list[Figure] = []
        self.columns: list[tuple[str, list[Image.Image]]] = []
        self.done = 0
        self.total = self._total()

    def without_painting(self) -> None:
        """Reconstruction and bits on held-out pictures, and the judge's figures for the real ones, the upper bound."""
        settings, held_out = self.settings, self.groups["held_out"]
        pictures = self._real(held_out)
        captions = [canonical_caption(self.stickers.records[prompt.row]) for prompt in held_out]
        self.figures += reconstruction(self.bundle, pictures, seed=settings.seed)
        self.figures += bits(self.bundle, pictures, captions, levels=settings.levels, seed=settings.seed)
        judged = [self._judge(group, prompts, self._real(prompts), None) for group, prompts in self.groups.items()]
        self._measure_kid(join(judged), None)
        self.figures += scene_figures(self.scenes, [s.picture for s in self.scenes], "real scenes", settings.seed)
        self._keep("real", [self._real(prompts) for prompts in self.groups.values()])

    def with_painting(self) -> Iterator[Painting]:
        """The figures of generated pictures."""
        by_setting: dict[Setting, Judged] = {}
        for steps in self.settings.steps:
            for draft in self.drafts:
                by_setting[Setting(steps, draft)] = yield from self._paint_pairs(Setting(steps, draft))
            if len(self.drafts) == 2:
                self._compare(by_setting[Setting(steps, True)], by_setting[Setting(steps, False)], "prior", steps)
        if self.settings.chinese:
            wanted = [(prompt.text, prompt.seed) for prompt in self.chinese]
            pictures = yield from self._paint(wanted, self.usual)
            self._judge("chinese", self.chinese, pictures, self.usual)
        if self.scenes:
            yield from self._paint_scenes()
        if self._reranks:
            plain = by_setting.get(self.usual) or (yield from self._paint_pairs(self.usual))
            best = yield from self._paint_pairs(Setting(self.usual.steps, True, self.settings.best_of))
            self._compare(best, plain, "best_of", self.usual.steps)

    def result(self) -> Evaluation:
        """All figures with their circumstances."""
        settings = self.settings
        described: dict[str, str | int] = {
            "model": self.bundle.name or self.bundle.family,
            "model_sha256": self.bundle.sha256,
            "judge_sha256": self.judge.sha256,
            "data_sha256": self.stickers.manifest.sha256.get("pictures.npy", ""),
            "limit": settings.limit,
            "captions": self.retrieval.captions,
            "reference": len(self.reference),
            "seed": settings.seed,
            "default_steps": self.usual.steps,
            "interval": "95 % percentile bootstrap",
        }
        return Evaluation(tuple(self.figures), described, self._sheet())

    @property
    def _reranks(self) -> bool:
        return self.bundle.prior is not None and self.settings.best_of > 1

    def _total(self) -> int:
        """Pictures that will be painted."""
        pairs = sum(len(prompts) for prompts in self.groups.values())
        count = pairs * len(self.settings.steps) * len(self.drafts)
        count += len(self.chinese) * self.settings.chinese + len(self.scenes)
        return count + pairs * self._reranks * (1 if self.usual.steps in self.settings.steps else 2)

    def _paint(self, wanted: Sequence[tuple[str, int]], setting: Setting) -> Generator[Painting, None, PaintedPictures]:
        """Paint (prompt, seed) pairs: uint8 [N,S,S,4]."""
        pictures = []
        for part in batched(len(wanted), BATCH):
            prompts, seeds = zip(*(wanted[i] for i in part), strict=True)
            pictures.append(self.paint(prompts, seeds, setting))
            self.done += len(part)
            yield Painting(self.done, self.total)
        return np.concatenate(pictures)

    def _paint_pairs(self, setting: Setting) -> Generator[Painting, None, Judged]:
        """Paint both groups and note their figures; returns the judgement of all."""
        judged, shown = [], []
        for group, prompts in self.groups.items():
            shown.append((yield from self._paint([(prompt.text, prompt.seed) for prompt in prompts], setting)))
            judged.append(self._judge(group, prompts, shown[-1], setting))
        together = join(judged)
        self._measure_kid(together, setting)
        self._keep(_words(setting), shown)
        return together

    def _paint_scenes(self) -> Iterator[Painting]:
        seed = self.settings.seed
        wanted = [(scene.caption, seed + number) for number, scene in enumerate(self.scenes)]
        pictures = yield from self._paint(wanted, self.usual)
        self.figures += scene_figures(self.scenes, pictures, "scenes", seed, self.usual.steps, self.usual.draft)

    def _judge(
        self, group: str, prompts: Sequence[Prompt], pictures: PaintedPictures, setting: Setting | None
    ) -> Judged:
        judged = self.retrieval.judge_pictures(prompts, pictures)
        for name, interval in judged.intervals(self.settings.seed).items():
            self._add(name, group, interval, setting)
        return judged

    def _measure_kid(self, judged: Judged, setting: Setting | None) -> None:
        self._add("kid", "all", kid(judged.features, self.reference, seed=self.settings.seed), setting)

    def _add(self, name: str, group: str, interval: Interval, setting: Setting | None) -> None:
        if setting is None:
            self.figures.append(Figure(name, f"real {group}", interval))
        else:
            self.figures.append(Figure(name, group, interval, setting.steps, setting.draft, setting.best_of))

    def _compare(self, first: Judged, second: Judged, name: str, steps: int) -> None:
        """Paired differences first - second."""
        seed = self.settings.seed
        gain = bootstrap_difference(first.hits(1), second.hits(1), seed=seed)
        nearer = kid_difference(first.features, second.features, self.reference, seed=seed)
        self.figures.append(Figure(f"{name}_gain_in_retrieval_at_1", "all", gain, steps))
        self.figures.append(Figure(f"{name}_change_of_kid", "all", nearer, steps))

    def _real(self, prompts: Sequence[Prompt]) -> PaintedPictures:
        return np.stack([self.stickers.pictures[prompt.row] for prompt in prompts])

    def _reference(self) -> NDArray[np.float64]:
        """Features of real training pictures, none of which is asked for."""
        asked = {prompt.row for prompts in self.groups.values() for prompt in prompts}
        rows = [row for row in self.stickers.indices("train").tolist() if row not in asked]
        chosen = np.random.default_rng(self.settings.seed + 1).permutation(rows)[: self.settings.reference]
        if len(chosen) < 2:
            raise DataError(
                str(self.stickers.folder),
                given=f"{len(rows)} training pictures besides the {len(asked)} asked for",
                expected="two or more to compare with",
                cure="Lower --limit.",
            )
        return self.judge.features(np.asarray(self.stickers.pictures[np.sort(chosen)])).double().numpy()

    def _keep(self, words: str, groups: Sequence[PaintedPictures]) -> None:
        """Remember the first pictures of each group as a column of the sheet."""
        half = self.settings.sheet_rows // 2
        shown = [Image.fromarray(np.array(picture), "RGBA") for pictures in groups for picture in pictures[:half]]
        self.columns.append((words, shown))

    def _sheet(self) -> Image.Image | None:
        half = self.settings.sheet_rows // 2
        if not half:
            return None
        down = [prompt.text for prompts in self.groups.values() for prompt in prompts[:half]]
        rows = [list(row) for row in zip(*(pictures for _, pictures in self.columns), strict=True)]
        title = f"{self.bundle.name or self.bundle.family}: seen pairs above, held-out pairs below"
        return labelled_sheet(rows, [words for words, _ in self.columns], down, title=title)


def evaluation_scenes(stickers: Stickers, count: int, seed: int) -> list[Scene]:
    """Scenes whose captions can be checked by rule, as many of each kind."""
    scenes = Scenes(stickers)
    return [scenes.evaluation(seed, number) for number in range(count)]


def scene_figures(
    scenes: Sequence[Scene],
    pictures: Sequence[PaintedPictures] | PaintedPictures,
    group: str,
    seed: int,
    steps: int | None = None,
    draft: bool | None = None,
) -> list[Figure]:
    """How often each claim of the scenes' captions holds in pictures uint8 [N,S,S,4], by rule, and how often all do."""
    verdicts = [check_scene(np.asarray(picture), s.truth) for s, picture in zip(scenes, pictures, strict=True)]
    figures = []
    for claim in (*CLAIMS, "passed"):
        found = [float(value) for verdict in verdicts if (value := getattr(verdict, claim)) is not None]
        if found:
            figures.append(Figure(f"scene_{claim}", group, bootstrap_share(found, seed=seed), steps, draft))
    few = [
        float(verdict.count)
        for scene, verdict in zip(scenes, verdicts, strict=True)
        if verdict.count is not None and (scene.truth.count or 0) <= FEW
    ]
    if few:
        figures.append(Figure(f"scene_count_to_{FEW}", group, bootstrap_share(few, seed=seed), steps, draft))
    return figures


def _words(setting: Setting) -> str:
    prior = "prior" if setting.draft else "no prior"
    return f"{setting.steps}, {prior}" + (f", best of {setting.best_of}" if setting.best_of > 1 else "")


WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def ssim(picture: Tensor, target: Tensor, *, peak: float = 2.0) -> Tensor:
    """Mean structural similarity of each picture: equation 13 under a Gaussian window, equation 17 over the picture.

    Places whose window does not fit in the picture are left out; channels are averaged.

    Args:
        picture, target: [B,C,H,W], sides at least 11.
        peak: range of the values, 2 for [-1,1].

    Returns:
        [B], at most 1; 1 for equal pictures.

    Raises:
        ShapeMismatch: different shapes, or smaller than the window.
    """
    if picture.shape != target.shape or picture.ndim != 4 or min(picture.shape[2:]) < WINDOW:
        raise ShapeMismatch(
            "pictures",
            given=f"{tuple(picture.shape)} and {tuple(target.shape)}",
            expected=f"the same [B,C,H,W] with sides of {WINDOW} or more",
        )
    x, y = picture.double(), target.double()
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def _blur(x: Tensor) -> Tensor:
    """Gaussian window sums [B,C,H-10,W-10]."""
    places = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    window = torch.exp(-places.square() / (2 * SIGMA**2))
    window = window / window.sum()
    channels = x.shape[1]
    rows = window.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = window.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(x, rows, groups=channels), columns, groups=channels)


ReferencePictures = NDArray[np.uint8]
FigureValues = NDArray[np.float64]


@torch.no_grad()
def reconstruction(
    bundle: ModelBundle, pictures: ReferencePictures, *, seed: int, group: str = "held_out"
) -> list[Figure]:
    """PSNR over all channels and SSIM of the colours on white, of pictures uint8 [N,S,S,4] through the autoencoder.

    Raises:
        ShapeMismatch: the pictures' size does not fit the autoencoder.
    """
    ratios, similarities = [], []
    weight = next(bundle.vae.parameters())
    if pictures.shape[1] % bundle.vae.config.downscale:
        raise ShapeMismatch(
            "data",
            given=f"pictures of {pictures.shape[1]} pixels",
            expected=f"a multiple of {bundle.vae.config.downscale}",
        )
    for part in batched(len(pictures), 16):
        image = rgba_to_tensor(pictures[part])[:, : bundle.vae.config.image_channels]
        latents = bundle.vae.normalise(bundle.vae.encode(image.to(weight.device, weight.dtype)).mode())
        decoded = bundle.vae.decode(latents).float().cpu()
        ratios.append(psnr(decoded, image))
        similarities.append(ssim(decoded[:, :3].clamp(-1, 1), image[:, :3]))
    return [
        Figure("vae_psnr_db", group, bootstrap_mean(torch.cat(ratios).double().numpy(), seed=seed)),
        Figure("vae_ssim", group, bootstrap_mean(torch.cat(similarities).double().numpy(), seed=seed)),
    ]


def bits(
    bundle: ModelBundle,
    pictures: ReferencePictures,
    captions: Sequence[str],
    *,
    levels: int,
    seed: int,
    group: str = "held_out",
) -> list[Figure]:
    """Bits a token of the prior and bits a dimension of the diffusion model on real pictures, with their captions, and
    what the captions save."""
    parts: dict[str, list[FigureValues]] = {"diffusion": [], "diffusion_without": [], "prior": [], "prior_without": []}
    for part in batched(len(pictures), 16):
        for name, values in _bits(bundle, pictures[part], [captions[i] for i in part], levels, seed).items():
            parts[name].append(values)
    figures = []
    for name, unit in (("prior", "bits_per_token"), ("diffusion", "bits_per_dim")):
        if parts[name]:
            own, without = np.concatenate(parts[name]), np.concatenate(parts[f"{name}_without"])
            saved = bootstrap_difference(without, own, seed=seed)
            figures.append(Figure(f"{name}_{unit}", group, bootstrap_mean(own, seed=seed)))
            figures.append(Figure(f"{name}_{unit}_saved_by_caption", group, saved))
    return figures


def _bits(
    bundle: ModelBundle, pictures: ReferencePictures, captions: list[str], levels: int, seed: int
) -> dict[str, FigureValues]:
    """Per picture: bits a dimension, bits a token; with caption and without."""
    latents = latents_of(bundle, [Image.fromarray(picture, "RGBA") for picture in pictures])
    found: dict[str, FigureValues] = {}
    for suffix, texts in (("", captions), ("_without", [""] * len(captions))):
        text = encode_captions(bundle, texts)
        total = diffusion_bits(bundle, latents, text, levels=levels, seed=seed)
        found[f"diffusion{suffix}"] = (total.double() / latents[0].numel()).numpy()
        if bundle.prior is not None:
            tokens = tokens_of(bundle, latents)
            found[f"prior{suffix}"] = prior_bits(bundle, tokens, text).double().mean(1).numpy()
    return found
