"""Scenes: captions that hold by rule, determinism, the split; the stream that mixes them in."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from gouache.data.captions import canonical_caption, caption
from gouache.data.scene_rules import judge
from gouache.data.scenes import Scenes
from gouache.data.stickers import Stickers
from gouache.data.stream import StickerStream, may_flip
from gouache.errors import InvalidInput
from gouache.training.batches.sources import PlainStickers


@pytest.fixture(scope="module")
def scenes(mini_stickers: Stickers) -> Scenes:
    return Scenes(mini_stickers)


def test_the_generators_own_pictures_pass_the_rules(scenes: Scenes) -> None:
    passed, seen = Counter[str](), Counter[str]()
    for number in range(300):
        scene = scenes.evaluation(3, number)
        seen[scene.truth.kind] += 1
        passed[scene.truth.kind] += judge(scene.picture, scene.truth).passed
    assert set(seen) == {"coloured", "placed", "counted", "related", "grounded"}
    assert all(passed[kind] >= 0.95 * seen[kind] for kind in seen), passed


def test_a_scene_of_another_truth_fails_the_rules(scenes: Scenes) -> None:
    """The rules tell scenes apart: a picture judged by the next scene of its kind mostly fails."""
    failed = 0
    for number in range(100):
        scene, other = scenes.evaluation(3, number), scenes.evaluation(3, number + 5)
        failed += not judge(scene.picture, other.truth).passed
    assert failed >= 70


def test_captions_say_what_the_truth_says(scenes: Scenes) -> None:
    words = {2: "two", 3: "three", 4: "four", 5: "five"}
    for number in range(200):
        scene = scenes.scene(1, number)
        truth = scene.truth
        for thing in truth.objects:
            assert thing.noun in scene.caption
            assert thing.colour is None or f"{thing.colour} {thing.noun}" in scene.caption
        assert truth.count is None or scene.caption.startswith(words[truth.count])
        assert (truth.background is not None) == (" background" in scene.caption and "transparent" not in scene.caption)
        assert (scene.picture[..., 3] == 255).all() == (truth.background is not None)


def test_a_scene_is_a_function_of_seed_and_number(mini_stickers: Stickers, scenes: Scenes) -> None:
    backwards = [Scenes(mini_stickers).scene(7, number) for number in range(19, -1, -1)][::-1]
    for number, again in enumerate(backwards):
        scene = scenes.scene(7, number)
        assert np.array_equal(scene.picture, again.picture)
        assert (scene.caption, scene.truth) == (again.caption, again.truth)
    assert not np.array_equal(scenes.scene(8, 0).picture, scenes.scene(7, 0).picture)
    assert scenes.evaluation(7, 0).caption != scenes.scene(7, 0).caption


def test_training_scenes_never_show_a_held_out_pair(mini_stickers: Stickers, scenes: Scenes) -> None:
    used = {thing.row for number in range(400) for thing in scenes.scene(2, number).truth.objects}
    assert len(used) > 30
    assert not any(mini_stickers.records[row].held_out for row in used)


def test_the_stream_never_reads_a_held_out_picture(mini_stickers: Stickers) -> None:
    """Held-out pictures replaced by NaN-like noise change no example of the stream."""
    stream = StickerStream(mini_stickers, 5, scene_share=0.5, zh_share=0.2)
    pictures = np.array(mini_stickers.pictures)
    pictures[mini_stickers.indices("held_out")] = 77
    poisoned = Stickers(mini_stickers.folder, mini_stickers.manifest, mini_stickers.records, pictures)
    other = StickerStream(poisoned, 5, scene_share=0.5, zh_share=0.2)
    for index in range(250):
        assert np.array_equal(stream.example(index).picture, other.example(index).picture)


def test_the_stream_is_deterministic_and_shows_every_picture(mini_stickers: Stickers) -> None:
    stream = StickerStream(mini_stickers, 5)
    count = len(stream.rows)
    assert len({(index * 7919) % count for index in range(count)}) == count
    first, again = stream.example(11), StickerStream(mini_stickers, 5).example(11)
    assert np.array_equal(first.picture, again.picture)
    assert first.caption == again.caption
    changed = StickerStream(mini_stickers, 6), StickerStream(mini_stickers, 5, scene_share=0.1)
    assert len({stream.fingerprint, *(other.fingerprint for other in changed)}) == 3
    assert StickerStream(mini_stickers, 5).fingerprint == stream.fingerprint


def test_a_picture_has_many_captions_in_two_languages(mini_stickers: Stickers) -> None:
    record = mini_stickers.records[mini_stickers.find("1f400", "3d")]
    english = {caption(record, np.random.default_rng(seed)) for seed in range(200)}
    assert {"an apple, 3d style", "3d style, an apple", "apple", "an apple sticker in 3d style"} <= english
    assert canonical_caption(record) == "an apple, 3d style"
    chinese = {caption(record, np.random.default_rng(seed), zh_share=1) for seed in range(50)}
    assert chinese == {"东西0，立体风格", "立体风格的东西0", "东西0"}


def test_what_reads_differently_in_a_mirror_is_not_flipped(mini_stickers: Stickers) -> None:
    assert may_flip(mini_stickers.records[mini_stickers.find("1f400", "noto")])
    assert not may_flip(mini_stickers.records[mini_stickers.find("0039-20e3", "3d")])  # a symbol
    assert not may_flip(mini_stickers.records[mini_stickers.find("1f41b", "noto")])  # a clock


def test_held_out_examples_are_the_pictures_as_they_are(mini_stickers: Stickers) -> None:
    held_out = PlainStickers(mini_stickers, "mini", "held_out")
    assert len(held_out) == len(mini_stickers.indices("held_out")) > 0
    row = int(mini_stickers.indices("held_out")[0])
    assert np.array_equal(held_out.examples([0]).pictures[0], mini_stickers.pictures[row])
    assert held_out.examples([0]).captions == [canonical_caption(mini_stickers.records[row])]


def test_a_share_out_of_range_is_refused(mini_stickers: Stickers) -> None:
    with pytest.raises(InvalidInput, match="scene_share"):
        StickerStream(mini_stickers, 1, scene_share=1.5)


@pytest.mark.slow
def test_composing_keeps_up_with_training(scenes: Scenes) -> None:
    start = time.process_time()
    for number in range(300):
        scenes.scene(1, number)
    assert 300 / (time.process_time() - start) >= 300
