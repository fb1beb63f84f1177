"""Stage 2: text tower and image tower, aligned."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gouache.errors import TrainingError
from gouache.models.configs import SentenceEncoderConfig
from gouache.models.text.clip import TextEncoding
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.stack import TextStack
from gouache.models.text.tokenizers import CLS, MASK, PAD, SEP, UNKNOWN, WordPieceTokenizer
from gouache.pipeline.inputs.tensors import rgba_to_tensor
from gouache.training.batches.batch_shapes import batches_of_one_shape
from gouache.training.batches.pairs import FinitePairs, Pairs, PairSource, StickerPairs, open_pairs
from gouache.training.batches.translations import align, expected_rows, foreign_characters
from gouache.training.evaluation.retrieval import candidates, ranks
from gouache.training.inputs import RunInputs, initial_weights, load_text, sentence_encoder_folder
from gouache.training.losses import contrastive_loss
from gouache.training.stage import Batch, BatchNoise, Losses, Preparing, Ready, Stage, batched
from gouache.training.stage_tables import ClipStage
from gouache.training.towers import WORDS, Towers, TowersConfig, write_sentence_encoder

LARGEST_LOG_SCALE = 4.6052  # log 100 (Radford et al. 2021, section 2.5)
TRANSLATION_LOG_SCALE = 3.0
VALIDATED = 512
STAIN_SIDE = 8


class ClipTraining(Stage[Towers]):
    """Pull a picture and its captions together (Radford et al. 2021, figure 3), and Chinese texts to the English ones.

    The Chinese part is distillation in the manner of Reimers & Gurevych 2020 (arXiv:2004.09813, equation 1): the
    English states are the teacher's.

    Args:
        config: of the stage.
        data: pairs to train on, an endless stream.
        held_out: pairs to validate on, in their own order; or none.
        text: the text tower to start from; must be none just if the config has sizes of its own.
        max_tokens: longest text in tokens, start and end included.
        seed: of the run.
    """

    name = "clip"
    kind = "image tower"
    config: ClipStage

    def __init__(
        self,
        config: ClipStage,
        data: PairSource,
        held_out: FinitePairs | None,
        text: TextStack | None,
        max_tokens: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.config, self.data, self.held_out, self.seed = config, data, held_out, seed
        self.trained = _towers(config, data, text, max_tokens)
        self.teacher: SentenceEncoder | None = None
        if config.train_text == "all":
            self.teacher = copy.deepcopy(self.trained.text)
            self.freeze("teacher")
        else:
            self.trained.text.requires_grad_(False)
        if config.train_text == "none":
            self.trained.added_embeddings.requires_grad_(False)

    @classmethod
    def from_run(cls, inputs: RunInputs) -> Iterator[Preparing | Ready]:
        table, text = inputs.table(cls.name, ClipStage), inputs.config.text
        sources, seed = inputs.sources(table.loop.batch_size), table.loop.seed
        with initial_weights(seed):
            train, held_out = open_pairs(inputs.data, sources.train, sources.held_out, table.split, seed)
            start = None if table.text else load_text(sentence_encoder_folder(text.folder), text.max_tokens)[0]
            stage = cls(table, train, held_out, start, text.max_tokens, seed)
        yield Ready(stage, table)

    @property
    def translates(self) -> bool:
        """Whether Chinese texts are learnt."""
        return self.config.chinese and self.config.train_text != "none"

    def batch(self, indices: Sequence[int]) -> Batch:
        pairs = self.data.pairs(indices)
        ids, mask = self.trained.tokens(pairs.captions)
        batch = {
            "image": _on_white(pairs),
            "ids": ids,
            "mask": mask,
            "concept": _numbers(pairs.concepts),
            "style": _numbers(pairs.styles),
            "styled": torch.tensor(pairs.styled),
        }
        if self.config.augment:
            noise = BatchNoise(self.seed, indices)
            batch |= {
                "place": noise.uniform("place", (4,)),
                "stain": noise.normal("stain", (3, STAIN_SIDE, STAIN_SIDE)) * noise.uniform("amount", (1, 1, 1)),
            }
        if self.translates and pairs.translations:
            both = [
                t for i, t in zip(indices, pairs.translations, strict=True) if i % self.config.translation_every == 0
            ]
            if both:
                batch["english_ids"], batch["english_mask"] = self.trained.tokens([english for english, _ in both])
                batch["chinese_ids"], batch["chinese_mask"] = self.trained.tokens([chinese for _, chinese in both])
        return batch

    def forward(self, batch: Batch) -> Losses:
        towers, config = self.trained, self.config
        image = augmented(batch["image"], batch["place"], batch["stain"]) if "place" in batch else batch["image"]
        states = self._english(batch["ids"], batch["mask"])
        text, pictures = towers.embed_text(_pooled(states)), towers.embed_features(towers.image(image))
        same = _matches(batch)
        scale = towers.log_scale.clamp(max=LARGEST_LOG_SCALE)
        contrast = contrastive_loss(text, pictures, scale, same=same)
        losses = {"contrastive": contrast, "accuracy": _accuracy(text, pictures, same)}
        loss = contrast
        if self.teacher is not None:
            with torch.no_grad():
                start: TextEncoding = self.teacher(batch["ids"], batch["mask"])
            losses["keep_english"] = _relative_error(states.context, start.context)
            loss = loss + config.keep_english * losses["keep_english"]
        if "chinese_ids" in batch:
            losses |= self._translation(batch)
            loss = loss + config.translation * losses["translation"]
            loss = loss + config.translation_tokens * losses["translation_tokens"]
        return {"loss": loss, **losses}

    @torch.no_grad()
    def validate(self, network: Towers) -> dict[str, float]:
        """On held-out pairs: loss, R@1 and R@5 among 100 captions, and Chinese found by English."""
        if self.held_out is None:
            return {}
        count = min(VALIDATED, len(self.held_out))
        parts = [self.held_out.pairs(n) for n in batches_of_one_shape(self.held_out, count)]
        texts = [text for pairs in parts for text in pairs.captions]
        concepts = [concept for pairs in parts for concept in pairs.concepts]
        image = torch.cat([network.image(_on_white(pairs).to(self.device)) for pairs in parts])
        vectors = network.embed_features(image)
        captions = network.embed_text(_encoded(network, texts, self.device))
        loss = contrastive_loss(captions, vectors, network.log_scale.clamp(max=LARGEST_LOG_SCALE))
        figures = {"score": float(loss)}
        if (among := min(100, len(set(concepts)))) > 1:
            chosen = candidates(concepts, concepts, among, self.seed).to(self.device)
            own = torch.cat([torch.arange(count, device=self.device)[:, None], chosen[:, 1:]], dim=1)
            rank = ranks(vectors, captions, own)
            figures |= {f"r_at_{depth}": float((rank <= depth).float().mean()) for depth in (1, 5)}
        if self.translates and isinstance(self.held_out, StickerPairs):
            figures["chinese_r_at_1"] = self._chinese(network, self.held_out)
        return figures

    def export(self, network: Towers, path: Path) -> None:
        """Write both towers, and next to them the text tower alone in the form that the table [text] reads."""
        network.save(path)
        write_sentence_encoder(network.merged_text(), network.vocabulary, path.parent / f"{path.stem}-text")

    def _english(self, ids: Tensor, mask: Tensor) -> TextEncoding:
        """States of English texts; the gradient stops here unless the whole tower is trained."""
        with torch.set_grad_enabled(self.teacher is not None and torch.is_grad_enabled()):
            return self.trained.read(ids, mask)

    def _translation(self, batch: Batch) -> Losses:
        with torch.no_grad():
            teacher = self.teacher or self.trained.text
            english: TextEncoding = teacher(batch["english_ids"], batch["english_mask"])
        chinese = self.trained.read(batch["chinese_ids"], batch["chinese_mask"])
        goal, pooled = _pooled(english), _pooled(chinese)
        scale = torch.tensor(TRANSLATION_LOG_SCALE, device=goal.device)
        contrast = contrastive_loss(F.normalize(goal, dim=1), F.normalize(pooled, dim=1), scale)
        tokens = token_set_distance(chinese.context, batch["chinese_mask"], english.context, batch["english_mask"])
        return {"translation": _relative_error(pooled, goal) + 0.1 * contrast, "translation_tokens": tokens}

    def _chinese(self, network: Towers, held_out: StickerPairs) -> float:
        """Share of held-out Chinese labels whose nearest pooled vector among all English labels is their own."""
        records = {r.label: r.zh_label for r in held_out.records}
        english = F.normalize(_encoded(network, list(records), self.device), dim=1)
        chinese = F.normalize(_encoded(network, list(records.values()), self.device), dim=1)
        nearest = (chinese @ english.mT).argmax(1).cpu()
        return float((nearest == torch.arange(len(records))).float().mean())


def augmented(image: Tensor, place: Tensor, stain: Tensor) -> Tensor:
    """Pictures on white [B,3,H,W] shifted and scaled by up to an eighth, blurred and stained a little.

    Args:
        place: numbers in [0,1): shift right, shift down, scale, blur. [B,4]
        stain: coarse noise of the amplitude wanted. [B,3,h,w]
    """
    shift, scale = 0.25 * (place[:, :2] - 0.5), 1 + 0.25 * (place[:, 2] - 0.5)
    zeros = torch.zeros_like(scale)
    rows = [torch.stack([scale, zeros, shift[:, 0]], 1), torch.stack([zeros, scale, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(image.shape), align_corners=False)
    # Outside the picture is white, so white is what must be zero while sampling.
    moved = F.grid_sample(image - 1, grid, padding_mode="zeros", align_corners=False) + 1
    soft = F.interpolate(F.avg_pool2d(moved, 2), scale_factor=2.0, mode="bilinear", align_corners=False)
    moved = torch.lerp(moved, soft, place[:, 3, None, None, None])
    wide = F.interpolate(stain, size=image.shape[-2:], mode="bilinear", align_corners=False)
    return (moved + 0.1 * wide).clamp(-1, 1)


def token_set_distance(tokens: Tensor, mask: Tensor, goal: Tensor, goal_mask: Tensor) -> Tensor:
    """How far apart two texts' token vectors are as sets: the mean over each set of the squared distance to the
    nearest of the other (the Chamfer distance), relative to the goal's mean square.

    Args:
        tokens, goal: [B,L,D], [B,M,D]; gradients reach both.
        mask, goal_mask: true where a token is. [B,L], [B,M]

    Returns:
        Mean over the batch, [].
    """
    square = (tokens.square().sum(2)[:, :, None] + goal.square().sum(2)[:, None] - 2 * tokens @ goal.mT).clamp_min(0)
    far = square.masked_fill(~(mask[:, :, None] & goal_mask[:, None]), torch.inf)
    nearest = far.amin(2).masked_fill(~mask, 0).sum(1) / mask.sum(1)  # [B]
    covered = far.amin(1).masked_fill(~goal_mask, 0).sum(1) / goal_mask.sum(1)
    unit = goal.square().sum(2).masked_fill(~goal_mask, 0).sum(1) / goal_mask.sum(1)
    return (0.5 * (nearest + covered) / unit.detach()).mean()


def character_vocabulary() -> list[str]:
    """Pieces of a text tower without a published vocabulary: single letters, digits and signs."""
    letters = [chr(code) for code in range(0x21, 0x7F) if not chr(code).isupper()]
    return [PAD, UNKNOWN, CLS, SEP, MASK, *letters, *(f"##{letter}" for letter in letters)]


def _towers(config: ClipStage, data: PairSource, text: TextStack | None, max_tokens: int) -> Towers:
    if (text is None) == (config.text is None):
        raise TrainingError(
            "clip.text", given=config.text, expected="sizes of a new text tower, or a text encoder to start from"
        )
    if text is None:
        base, encoder = character_vocabulary(), None
        sizes = (config.text or SentenceEncoderConfig()).model_copy(
            update={"vocabulary_size": len(base), "max_tokens": max_tokens}
        )
    else:
        base, encoder = _parts(text)
        sizes = encoder.config
    known = data.known_translations if config.chinese else []
    tokenizer = WordPieceTokenizer(base, max_length=sizes.max_tokens, lowercase=sizes.lowercase)
    added = foreign_characters(tokenizer, (foreign for _, foreign in known))
    # A piece may stand in a vocabulary once, so the encoder's own Chinese ones make room; their rows stay in place.
    retired = set(added)
    pieces = [f"[retired {piece}]" if piece in retired else piece for piece in base]
    towers = Towers(
        TowersConfig(
            text=sizes,
            added=len(added),
            embedding_dim=config.embedding_dim,
            channels=config.image_channels,
            blocks=config.image_blocks,
            image_size=data.pairs([0]).pictures.shape[1],
        ),
        [*pieces, *added],
        encoder,
    )
    if added:
        _start_from_translations(towers, known)
    return towers


def _start_from_translations(towers: Towers, known: Sequence[tuple[str, str]]) -> None:
    """Start each added piece from the English words that it probably means."""
    base = towers.config.text.vocabulary_size
    tokens = towers.tokenizer.ids
    alignment = align((tokens(foreign), tokens(english)) for english, foreign in known)
    english = {s: {t: p for t, p in row.items() if t < base} for s, row in alignment.items()}
    words = towers.text.get_parameter(WORDS).detach()
    with torch.no_grad():
        towers.added_embeddings.copy_(expected_rows(range(base, len(towers.vocabulary)), english, words))


def _parts(text: TextStack) -> tuple[list[str], SentenceEncoder]:
    encoder, tokenizer = text.encoders[0], text.tokenizers[0]
    if not isinstance(encoder, SentenceEncoder) or not isinstance(tokenizer, WordPieceTokenizer):
        raise TrainingError("text", given=type(encoder).__name__, expected="a sentence encoder")
    return list(tokenizer.vocabulary), copy.deepcopy(encoder).requires_grad_(True)


def _on_white(pairs: Pairs) -> Tensor:
    return rgba_to_tensor(pairs.pictures)[:, :3]  # [B,3,S,S]


def _numbers(keys: Sequence[str]) -> Tensor:
    """A number for each key, the same in every process."""
    digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])


def _matches(batch: Batch) -> Tensor:
    """Which text [rows] fits which picture [columns]: the same concept, and the same style if the text says one."""
    concept, style = (batch[name][:, None] == batch[name] for name in ("concept", "style"))
    return concept & (style | ~batch["styled"][:, None])


def _pooled(states: TextEncoding) -> Tensor:
    if states.pooled is None:
        raise TrainingError("text tower", given="no pooled vector", expected="one")
    return states.pooled


def _encoded(network: Towers, texts: list[str], device: torch.device) -> Tensor:
    """Pooled vectors of texts [N,D]."""
    parts = []
    for part in batched(len(texts), 256):
        ids, mask = network.tokens([texts[i] for i in part])
        parts.append(_pooled(network.read(ids.to(device), mask.to(device))))
    return torch.cat(parts)


def _relative_error(value: Tensor, goal: Tensor) -> Tensor:
    return (value - goal).square().mean() / goal.square().mean()


def _accuracy(text: Tensor, image: Tensor, same: Tensor) -> Tensor:
    """Share of pictures whose nearest text of the batch is one of theirs."""
    nearest = (image.detach() @ text.detach().mT).argmax(1)
    return same.mT[torch.arange(len(same), device=same.device), nearest].float().mean()
