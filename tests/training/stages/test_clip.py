"""The stage `clip`: losses against closed forms and finite differences, its determinism, and what it learns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gouache.colours import SHADES
from gouache.data.captions import canonical_caption
from gouache.data.scenes import GROUNDS
from gouache.data.stickers import Sticker, StickerManifest, Stickers
from gouache.data.wording import NUMBERS, PLACES, RELATIONS, plural_of, with_article
from gouache.errors import CheckpointError, ConfigError, TrainingError
from gouache.models.configs import SentenceEncoderConfig
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.stack import TextStack
from gouache.training.batches.pairs import StickerPairs, open_pairs
from gouache.training.batches.store import Captioned
from gouache.training.batches.translations import (
    COLOURS,
    NUMBERS_ZH,
    PLACES_ZH,
    RELATIONS_ZH,
    foreign_characters,
    translation,
)
from gouache.training.evaluation.judge import load_judge
from gouache.training.inputs import load_text
from gouache.training.loop import train
from gouache.training.loop_config import EmaConfig, LoopConfig, OptimizerConfig
from gouache.training.losses import contrastive_loss
from gouache.training.stage_tables import ClipStage
from gouache.training.stages.clip import ClipTraining, _matches, augmented, character_vocabulary, token_set_distance
from gouache.training.towers import WORDS

SIZE = 32
NAMES = (("red apple", "红苹果"), ("blue fish", "蓝鱼"), ("green tree", "绿树"), ("yellow sun", "黄太阳"))
PAINT = ((220, 30, 30), (40, 60, 220), (30, 160, 60), (240, 210, 40))
TINY_TEXT = SentenceEncoderConfig(width=32, inner_width=64, layers=1, heads=4, positions=48, max_tokens=48)


@pytest.fixture
def stickers(tmp_path: Path) -> Stickers:
    """Eight pictures: four concepts as discs and as squares."""
    records, pictures = [], np.zeros((8, SIZE, SIZE, 4), np.uint8)
    rows, columns = np.indices((SIZE, SIZE)) - SIZE / 2
    for index in range(8):
        concept, square = index % 4, index >= 4
        inside = np.maximum(abs(rows), abs(columns)) < 10 if square else rows**2 + columns**2 < 100
        pictures[index][inside] = (*PAINT[concept], 255)
        label, chinese = NAMES[concept]
        style = "flat" if square else "3d"
        records.append(
            Sticker(index, f"c{concept}", style, label, (), chinese, (), "g", "s", f"{style}/{index}.svg", "s", "MIT")
        )
    manifest = StickerManifest(
        recipe="stickers", recipe_version=1, size=SIZE, count=8, counts={"3d": 4, "flat": 4}, packages=(), sha256={}
    )
    return Stickers(tmp_path, manifest, tuple(records), pictures)


def config_for(**values: object) -> ClipStage:
    base: dict[str, object] = {
        "text": TINY_TEXT,
        "train_text": "all",
        "embedding_dim": 32,
        "image_channels": (16, 32),
        "augment": False,
        "translation_every": 1,
        "ema": EmaConfig(lengths=(0.1,), use=0.1),
        "optimizer": OptimizerConfig(learning_rate=3e-3, warmup_images=0),
    }
    return ClipStage.from_dict({**base, **values})


def make_stage(stickers: Stickers, config: ClipStage, seed: int = 0, *, endless: bool = True) -> ClipTraining:
    data = StickerPairs(stickers, range(8), seed, endless=endless)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ClipTraining(config, data, StickerPairs(stickers, range(8), 0, endless=False), None, 48, seed)


def test_contrastive_loss_is_the_log_of_the_batch_for_vectors_that_are_all_alike() -> None:
    same = torch.ones(6, 4, dtype=torch.float64) / 2
    loss = contrastive_loss(same, same, torch.zeros((), dtype=torch.float64))
    assert loss.item() == pytest.approx(np.log(6), abs=1e-12)


def test_contrastive_loss_shares_the_target_among_all_that_match() -> None:
    """Two concepts of two pictures each; orthogonal concepts: every row's softmax is known."""
    vectors = torch.eye(2, dtype=torch.float64)[[0, 0, 1, 1]]
    key = torch.tensor([0, 0, 1, 1])
    same = key[:, None] == key
    loss = contrastive_loss(vectors, vectors, torch.tensor(1.5, dtype=torch.float64), same=same)
    scale = np.exp(1.5)
    assert loss.item() == pytest.approx(-np.log(np.exp(scale) / (2 * np.exp(scale) + 2)), abs=1e-12)
    plain = contrastive_loss(vectors, vectors, torch.tensor(1.5, dtype=torch.float64))
    assert plain.item() == pytest.approx(loss.item(), abs=1e-12)  # twins score alike: either target costs the same


def test_gradient_of_the_contrastive_loss_equals_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    text, image = (torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    key = torch.tensor([0, 1, 0, 2, 2])
    same = key[:, None] == key

    def loss(text: Tensor, image: Tensor, scale: Tensor) -> Tensor:
        return contrastive_loss(F.normalize(text, dim=1), F.normalize(image, dim=1), scale, same=same)

    assert torch.autograd.gradcheck(loss, (text, image, scale), eps=1e-6, atol=1e-8)


def test_token_set_distance_is_zero_for_one_set_in_another_order_and_ignores_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    goal = torch.randn(1, 4, 3, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    turned = goal[:, [2, 0, 1, 3]].clone()
    turned[0, 3] = 100.0
    assert token_set_distance(turned, mask, goal, mask).item() == pytest.approx(0, abs=1e-12)
    moved = goal + 0.01
    expected = 3 * 0.01**2 / goal[0, :3].square().sum(1).mean()
    assert token_set_distance(moved, mask, goal, mask).item() == pytest.approx(expected.item(), rel=1e-9)


def test_gradient_of_the_token_set_distance_equals_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens, goal = (torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    tokens.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: token_set_distance(t, mask, goal, mask), (tokens,), eps=1e-6, atol=1e-8)


@pytest.mark.slow
def test_eight_pictures_are_learnt_by_heart(stickers: Stickers, tmp_path: Path) -> None:
    """Over-fit: contrastive loss below 0.1, every caption found, every Chinese label found."""
    config = config_for(loop=LoopConfig(images=8 * 150, batch_size=8, log_images=64, validate_images=10_000))
    stage = make_stage(stickers, config, endless=False)
    steps = list(train(stage, config, tmp_path / "clip"))
    losses = [step.losses for step in steps if step.losses]
    assert losses[-1]["contrastive"] < 0.1
    figures = steps[-1].figures
    assert figures["r_at_1"] == 1.0
    assert figures["chinese_r_at_1"] == 1.0
    judge = load_judge(tmp_path / "clip" / "last.safetensors")
    pictures = judge.pictures(stickers.pictures)
    captions = judge.captions([canonical_caption(record) for record in stickers.records])
    assert (pictures @ captions.mT).argmax(1).tolist() == list(range(8))
    larger = stickers.pictures.repeat(3, axis=1).repeat(3, axis=2)  # brought back to the size it was trained on
    assert torch.allclose(judge.pictures(larger), pictures, atol=0.05)
    text, _ = load_text(tmp_path / "clip" / "last-text", 48)
    pooled = text.encode([text.tokenize("红苹果")]).pooled
    assert pooled is not None
    ids, mask = judge.towers.tokens(["红苹果"])
    assert torch.allclose(judge.towers.read(ids, mask).pooled, pooled, atol=1e-6)  # type: ignore[arg-type]


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(stickers: Stickers, tmp_path: Path) -> None:
    def run(folder: Path, *images: int) -> dict[str, Tensor]:
        for end in images:
            loop = LoopConfig(images=end, batch_size=8, log_images=64, validate_images=10_000)
            config = config_for(loop=loop, augment=True)
            stage = make_stage(stickers, config)
            for _ in train(stage, config, folder):
                pass
        return stage.trained.state_dict()

    whole, resumed = run(tmp_path / "a", 48), run(tmp_path / "b", 24, 48)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_with_added_rows_only_english_stays_bit_for_bit(stickers: Stickers) -> None:
    stage = make_stage(stickers, config_for(train_text="added"))
    before = {name: value.clone() for name, value in stage.trained.text.state_dict().items()}
    added = stage.trained.added_embeddings.detach().clone()
    optimizer = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    stage(stage.batch(range(8)))["loss"].backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in stage.trained.text.state_dict().items())
    assert not torch.equal(stage.trained.added_embeddings, added)
    merged = stage.trained.merged_text().get_parameter(WORDS)
    assert torch.equal(merged[: len(before[WORDS])], before[WORDS])
    assert len(merged) == len(stage.trained.vocabulary)


def test_a_frozen_text_tower_learns_no_chinese(stickers: Stickers) -> None:
    stage = make_stage(stickers, config_for(train_text="none"))
    batch = stage.batch(range(8))
    assert "chinese_ids" not in batch
    stage(batch)["loss"].backward()
    assert stage.trained.added_embeddings.grad is None
    assert all(p.grad is None for p in stage.trained.text.parameters())
    assert stage.trained.text_projection.weight.grad is not None


def test_a_picture_does_not_depend_on_its_batch(stickers: Stickers) -> None:
    stage = make_stage(stickers, config_for(augment=True), seed=5)
    batch, alone = stage.batch(range(16, 24)), stage.batch([19])
    for name in ("image", "place", "stain", "concept", "style", "styled"):
        assert torch.equal(batch[name][3], alone[name][0])
    length = alone["ids"].shape[1]
    assert torch.equal(batch["ids"][3, :length], alone["ids"][0])


def test_an_epoch_shows_every_picture_once(stickers: Stickers) -> None:
    pairs = StickerPairs(stickers, range(8), seed=1).pairs(range(8))
    assert sorted(zip(pairs.concepts, pairs.styles, strict=True)) == sorted((r.code, r.style) for r in stickers.records)


def test_a_caption_without_a_style_fits_the_concept_in_every_style(stickers: Stickers) -> None:
    """Were the twins negatives of one another, no network could go below log 2 for such captions."""
    stage = make_stage(stickers, config_for())
    pairs = stage.data.pairs(range(64))
    assert set(pairs.styled) == {True, False}
    batch = stage.batch(range(64))
    for i in range(64):
        row = [
            pairs.concepts[i] == c and (not pairs.styled[i] or pairs.styles[i] == s)
            for c, s in zip(pairs.concepts, pairs.styles, strict=True)
        ]
        assert _matches(batch)[i].tolist() == row


def test_augmentation_keeps_the_white_outside(stickers: Stickers) -> None:
    white = torch.ones(2, 3, SIZE, SIZE)
    place = torch.tensor([[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    assert torch.allclose(augmented(white, place, torch.zeros(2, 3, 8, 8)), white, atol=1e-6)
    middle = torch.full((1, 4), 0.5)
    middle[:, 3] = 0  # no shift, no scale, no blur, no stain: the picture itself
    image = make_stage(stickers, config_for()).batch([0])["image"]
    assert torch.allclose(augmented(image, middle, torch.zeros(1, 3, 8, 8)), image, atol=1e-5)


def test_chinese_characters_have_pieces_of_their_own(stickers: Stickers) -> None:
    stage = make_stage(stickers, config_for())
    tokenizer = stage.trained.tokenizer
    unknown, base = tokenizer.vocabulary.index("[UNK]"), stage.trained.config.text.vocabulary_size
    for record in stickers.records:
        assert unknown not in tokenizer.ids(record.zh_label)
        assert all(token >= base for token in tokenizer.ids(record.zh_label))
    assert len(tokenizer.ids("红苹果")) == 3
    assert foreign_characters(tokenizer, ["红苹果 apple", "红"]) == sorted("红苹果")


def test_pieces_that_an_encoder_has_but_never_learnt_are_replaced_and_english_is_not(stickers: Stickers) -> None:
    vocabulary = [*character_vocabulary(), "红", "apple"]
    sizes = TINY_TEXT.model_copy(update={"vocabulary_size": len(vocabulary)})
    text = TextStack.of_sentences(SentenceEncoder(sizes), vocabulary)
    data = StickerPairs(stickers, range(8), 0)
    towers = ClipTraining(config_for(text=None), data, None, text, 48, 0).trained
    assert towers.vocabulary.index("红") >= len(vocabulary)
    assert towers.tokenizer.ids("apple") == [len(vocabulary) - 1]
    before = text.encode([text.tokenize("a red apple")]).pooled
    after = TextStack.of_sentences(towers.merged_text(), towers.vocabulary)
    assert torch.equal(before, after.encode([after.tokenize("a red apple")]).pooled)  # type: ignore[arg-type]


def test_a_new_piece_starts_near_the_english_word_it_goes_with(stickers: Stickers) -> None:
    vocabulary = [*character_vocabulary(), "red", "blue", "green", "yellow", "apple", "fish", "tree", "sun"]
    # So wide that the random vectors of different words are nearly orthogonal, whatever was drawn.
    sizes = TINY_TEXT.model_copy(update={"vocabulary_size": len(vocabulary), "width": 512})
    text = TextStack.of_sentences(SentenceEncoder(sizes), vocabulary)
    towers = ClipTraining(config_for(text=None), StickerPairs(stickers, range(8), 0), None, text, 48, 0).trained
    words = F.normalize(towers.text.get_parameter(WORDS).detach(), dim=1)
    for foreign, english in (("红", "red"), ("鱼", "fish"), ("绿", "green")):
        row = towers.added_embeddings[towers.tokenizer.ids(foreign)[0] - len(vocabulary)].detach()
        near = (words @ row).topk(2).indices.tolist()  # colour and thing always stand together in these few labels
        assert towers.tokenizer.ids(english)[0] in near


def test_translations_say_the_same_colour_and_name_in_both_languages(stickers: Stickers) -> None:
    records = stickers.records
    for number in range(200):
        english, chinese = translation(records[number % 8], records, random.Random(number))
        record = records[number % 8]
        assert record.label in english or (plural_of(record.label) or "?") in english
        assert record.zh_label in chinese
        rest, zh_rest = english, chinese
        for other in records:  # the names themselves have colours in them
            rest, zh_rest = rest.replace(other.label, ""), zh_rest.replace(other.zh_label, "")
        for colour, zh_colour in COLOURS.items():
            if f"{with_article(colour)} " in rest:
                assert zh_colour in zh_rest


def test_every_word_that_scenes_use_has_a_translation() -> None:
    assert PLACES.keys() == PLACES_ZH.keys()
    assert RELATIONS.keys() == RELATIONS_ZH.keys()
    assert NUMBERS.keys() == NUMBERS_ZH.keys()
    assert {*SHADES, *GROUNDS} <= COLOURS.keys()


class Noise:
    """Eight captioned pictures of another kind."""

    fingerprint = "noise"

    def __len__(self) -> int:
        return 8

    def examples(self, numbers: Sequence[int]) -> Captioned:
        """Picture `number % 8`."""
        shown = [np.random.default_rng(number % 8).integers(0, 256, (SIZE, SIZE, 4), np.uint8) for number in numbers]
        return Captioned(np.stack(shown), [f"number {number % 8}" for number in numbers])


def test_any_captioned_pictures_will_do(tmp_path: Path) -> None:
    """Not stickers: captions are the concepts, there is no style and no Chinese."""
    train_on, held_out = open_pairs(tmp_path, Noise(), Noise(), "train", 0)
    config = config_for(train_text="added")
    stage = ClipTraining(config, train_on, held_out, None, 48, 0)
    batch = stage.batch(range(12))
    assert "chinese_ids" not in batch
    assert _matches(batch)[1].nonzero()[:, 0].tolist() == [1, 9]  # eight different captions
    stage(batch)["loss"].backward()
    figures = stage.validate(stage.trained)
    assert figures.keys() == {"score", "r_at_1", "r_at_5"}
    assert stage.trained.config.added == 0


def test_bad_configs_and_files_are_refused(stickers: Stickers, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="text tower"):
        make_stage(stickers, config_for(text=None))
    with pytest.raises(ConfigError, match="multiples of 8"):
        make_stage(stickers, config_for(image_channels=(12,)))
    with pytest.raises(ConfigError, match="train_text"):
        config_for(train_text="some")
    from gouache.checkpoints.formats.safetensors import save_tensors

    save_tensors(tmp_path / "vae.safetensors", {"a": torch.zeros(1)}, {"component": "vae", "config": "{}"})
    with pytest.raises(CheckpointError, match="gouache train clip"):
        load_judge(tmp_path / "vae.safetensors")
