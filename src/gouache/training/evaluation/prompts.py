"""The prompts of an evaluation and how their pictures are judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gouache.data.captions import ZH_STYLE_WORDS, canonical_caption
from gouache.data.stickers import Split, Stickers
from gouache.errors import DataError
from gouache.training.evaluation.judge import Judge
from gouache.training.evaluation.retrieval import best_of, candidates, ranks
from gouache.training.evaluation.statistics import Interval, bootstrap_share

PromptPictures = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of the evaluation.

    Attributes:
        text: the prompt.
        code, style: the (concept, style) pair that it asks for.
        row: of the real picture.
        seed: of the painting.
    """

    text: str
    code: str
    style: str
    row: int
    seed: int


def choose_prompts(stickers: Stickers, split: Split, count: int, seed: int, *, chinese: bool = False) -> list[Prompt]:
    """Pairs of one split, drawn without repetition, with their captions.

    Args:
        stickers: the data set.
        split: "train" for pairs that were trained on, "held_out" for those that never were.
        count: at most so many.
        seed: of the draw; prompt k is painted with `seed + k`.
        chinese: ask in Chinese.
    """
    rows = stickers.indices(split)
    chosen = np.random.default_rng([seed, split == "held_out"]).permutation(rows)[:count]
    if not len(chosen):
        raise DataError(str(stickers.folder), given=f"no {split} pictures", expected="at least one")
    prompts = []
    for number, row in enumerate(chosen.tolist()):
        record = stickers.records[row]
        text = f"{record.zh_label}，{ZH_STYLE_WORDS[record.style]}" if chinese else canonical_caption(record)
        prompts.append(Prompt(text, record.code, record.style, row, seed + number))
    return prompts


@dataclass(frozen=True, slots=True)
class Judged:
    """The judge's verdict on some pictures.

    Attributes:
        rank: of each picture's own caption among captions of the asked style. [N]
        style_right: whether the nearest of its concept's captions in all styles is that of the asked one. [N]
        features: for KID. [N,C]
    """

    rank: Tensor
    style_right: Tensor
    features: NDArray[np.float64]

    def hits(self, depth: int) -> NDArray[np.float64]:
        """1 where the own caption is among the best `depth`, else 0. [N]"""
        found: NDArray[np.float64] = (self.rank <= depth).double().numpy()
        return found

    def intervals(self, seed: int) -> dict[str, Interval]:
        """R@1, R@5 and style accuracy by name."""
        return {
            "retrieval_at_1": bootstrap_share(self.hits(1), seed=seed),
            "retrieval_at_5": bootstrap_share(self.hits(5), seed=seed),
            "style": bootstrap_share(self.style_right.double().numpy(), seed=seed),
        }


def join(parts: Sequence[Judged]) -> Judged:
    """Several sets as one."""
    return Judged(
        torch.cat([part.rank for part in parts]),
        torch.cat([part.style_right for part in parts]),
        np.concatenate([part.features for part in parts]),
    )


class RetrievalCaptions:
    """The captions of every concept in every style, among which a picture's own must be retrieved.

    Args:
        judge: the instrument.
        stickers: the data set.
        captions: among how many captions the own one must be found, itself included.
        seed: of the choice of the others.
    """

    def __init__(self, judge: Judge, stickers: Stickers, captions: int, seed: int) -> None:
        self.judge, self.seed = judge, seed
        concepts = {record.code: record for record in stickers.records}
        self.codes, self.styles = list(concepts), sorted(stickers.styles)
        self.captions = min(captions, len(self.codes))
        # A concept is asked for in every style, whether or not that picture exists.
        texts = [canonical_caption(replace(r, style=style)) for style in self.styles for r in concepts.values()]
        self.vectors = judge.captions(texts).view(len(self.styles), len(concepts), -1)  # [styles, M, E]

    def judge_pictures(self, prompts: Sequence[Prompt], pictures: PromptPictures) -> Judged:
        """Judge pictures uint8 [N,S,S,4] that were painted for these prompts."""
        features = self.judge.features(pictures)
        vectors = self.judge.towers.embed_features(features)
        chosen = candidates(self.codes, [prompt.code for prompt in prompts], self.captions, self.seed)
        rank = torch.zeros(len(prompts), dtype=torch.long)
        asked = torch.tensor([self.styles.index(prompt.style) for prompt in prompts])
        for number in range(len(self.styles)):
            of_style = (asked == number).nonzero()[:, 0]
            if len(of_style):
                rank[of_style] = ranks(vectors[of_style], self.vectors[number], chosen[of_style])
        own = self.vectors[:, chosen[:, 0]].movedim(0, 1)  # [N, styles, E]
        return Judged(rank, best_of(vectors, own) == asked, features.double().numpy())
