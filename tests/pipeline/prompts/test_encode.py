"""Chunks and emphasis: A1111's rule for filling chunks, the mean it keeps, ComfyUI's distance from the empty prompt."""

from __future__ import annotations

import pytest
import torch

from gouache.models.bundle import ModelBundle
from gouache.pipeline.prompts.chunks import MAX_CHUNKS, fill_chunks
from gouache.pipeline.prompts.encode import PromptReader
from gouache.pipeline.prompts.syntax import sections


def lengths(bundle: ModelBundle, text: str) -> list[int]:
    return [len(chunk.ids) for chunk in fill_chunks(bundle.text, sections(text))]


def test_chunks_hold_75_tokens(tiny: ModelBundle) -> None:
    assert lengths(tiny, "") == [0]
    assert lengths(tiny, "cat " * 75) == [75]
    assert lengths(tiny, "cat " * 76) == [75, 1]
    assert lengths(tiny, "cat " * 151) == [75, 75, 1]


def test_a_full_chunk_ends_at_a_near_comma(tiny: ModelBundle) -> None:
    assert lengths(tiny, "cat " * 60 + ", " + "dog " * 20) == [61, 20]
    assert lengths(tiny, "cat " * 50 + ", " + "dog " * 30) == [75, 6], "more than 20 tokens back is too far"
    assert lengths(tiny, "cat " * 74 + ", dog") == [75, 1]


def test_break_fills_up_the_chunk(tiny: ModelBundle) -> None:
    assert lengths(tiny, "cat BREAK dog dog") == [1, 2]


def test_tokens_carry_their_weight(tiny: ModelBundle) -> None:
    (chunk,) = fill_chunks(tiny.text, sections("a (cat:1.5) b"))
    assert chunk.weights == (1.0, 1.5, 1.0)
    assert list(chunk.ids) == tiny.text.tokenize("a cat b")


def test_a1111_emphasis_keeps_the_mean(tiny: ModelBundle) -> None:
    reader = PromptReader(tiny.text, "a1111", None)
    plain, strong = reader.encode("a cat").context, reader.encode("a (cat:1.5)").context
    assert strong.mean() == pytest.approx(float(plain.mean()), abs=1e-6)
    ratio = strong / plain
    assert torch.allclose(ratio[0, 2], 1.5 * ratio[0, 1], rtol=1e-3)
    assert torch.allclose(ratio[0, 1], ratio[0, 3], rtol=1e-3)


def test_comfy_emphasis_goes_away_from_the_empty_prompt(tiny: ModelBundle) -> None:
    reader = PromptReader(tiny.text, "comfy", None)
    empty, plain, strong = (reader.encode(text).context for text in ("", "a cat", "a (cat:1.5)"))
    assert torch.allclose(strong[0, 2] - empty[0, 2], 1.5 * (plain[0, 2] - empty[0, 2]), atol=1e-5)
    assert torch.equal(strong[0, 1], plain[0, 1])


def test_the_texts_of_a_step(tiny: ModelBundle) -> None:
    reader = PromptReader(tiny.text, "a1111", None)
    plan = reader.plan("a [cat:dog:2] AND a tree :0.5", 4)
    for step, animal in ((1, "cat"), (2, "cat"), (3, "dog"), (4, "dog"), (9, "dog")):
        (first, words), (second, tree) = plan.at(step)
        assert (first, second) == (1.0, 0.5)
        assert words is reader.encode(f"a {animal}")
        assert tree is reader.encode(" a tree")


def test_texts_are_encoded_once(tiny: ModelBundle) -> None:
    reader = PromptReader(tiny.text, "a1111", None)
    assert reader.encode("a cat") is reader.encode("a cat")


def test_clip_skip_counts_from_the_last_layer(tiny: ModelBundle) -> None:
    contexts = [PromptReader(tiny.text, "a1111", skip).encode("a cat").context for skip in (None, 1, 2)]
    assert torch.equal(contexts[0], contexts[1])
    assert not torch.equal(contexts[1], contexts[2])


def test_endless_prompts_are_cut_and_it_is_said(tiny: ModelBundle) -> None:
    reader = PromptReader(tiny.text, "a1111", None)
    encoded = reader.encode("cat " * (75 * MAX_CHUNKS) + "dog " * 5)
    assert encoded.context.shape[1] == 77 * MAX_CHUNKS
    assert reader.notes == ["prompt: the last 5 tokens were cut, from 'dog dog dog dog dog' on"]
