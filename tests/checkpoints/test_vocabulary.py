"""A text encoder and the vocabulary it reads belong together; where they don't, loading says so.

The kind of fault: a table of token vectors that the tokenizer at hand has other numbers for, so that a token of a
prompt has no vector (an IndexError while painting) or another word's. Members: tables that are too small by any number,
padding outside of the table, other orders, other kinds of tokenizers, in folders, single files and the own format.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gouache.checkpoints.convert import convert
from gouache.checkpoints.diffusers.folder import check_tokenizer
from gouache.checkpoints.load import load_bundle
from gouache.errors import IncompatibleCheckpoint, InvalidInput
from gouache.models.configs import SentenceEncoderConfig, TextEncoderConfig
from gouache.models.text.clip import TextEncoder
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.stack import TextStack
from gouache.models.text.tokenizers import vocabulary
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request


def table_of(tensors: dict[str, torch.Tensor]) -> str:
    (name,) = [name for name in tensors if name.endswith("token_embedding.weight")]
    return name


@pytest.fixture
def folder(published: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a tiny SD 1.x folder by diffusers."""
    return Path(shutil.copytree(published("sd1"), tmp_path / "model"))


def with_table(folder: Path, rows: int) -> Path:
    """The same model with a table of so many tokens."""
    (weights,) = (folder / "text_encoder").glob("*.safetensors")
    tensors = load_file(weights)
    name = table_of(tensors)
    table = tensors[name]
    tensors[name] = torch.cat([table, table])[:rows].clone()
    save_file(tensors, weights, {"format": "pt"})
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": rows}))
    return folder


@pytest.mark.parametrize("rows", [1, 2, 1000, 21128, 32000, 49406, 49407])
def test_a_folder_with_a_smaller_table_is_refused(folder: Path, rows: int) -> None:
    with pytest.raises(IncompatibleCheckpoint, match=f"{rows} tokens") as error:
        load_bundle(with_table(folder, rows))
    assert "text_encoder" in error.value.where


@pytest.mark.parametrize("rows", [49408, 49409, 49500])
def test_a_larger_table_paints(folder: Path, rows: int) -> None:
    bundle = load_bundle(with_table(folder, rows))
    request = Request(prompt="a cat 猫", seed=1, num_inference_steps=1, width=16, height=16)
    assert Pipeline(bundle).paint(request)


def test_a_single_file_with_a_smaller_table_is_refused(folder: Path, tmp_path: Path) -> None:
    convert(with_table(folder, 49408), tmp_path / "single.safetensors", to="single-file")
    tensors = load_file(tmp_path / "single.safetensors")
    name = table_of(tensors)
    tensors[name] = tensors[name][:1000].clone()
    save_file(tensors, tmp_path / "small.safetensors")
    with pytest.raises(IncompatibleCheckpoint, match="1000 tokens"):
        load_bundle(tmp_path / "small.safetensors", verify=False)


@pytest.mark.parametrize(
    "kind",
    [
        "BertTokenizer",
        "BertTokenizerFast",
        "T5Tokenizer",
        "T5TokenizerFast",
        "XLMRobertaTokenizer",
        "LlamaTokenizer",
        "GemmaTokenizer",
        "Qwen2Tokenizer",
        "AlbertTokenizer",
        "PreTrainedTokenizerFast",
    ],
)
def test_other_tokenizers_are_refused_by_name(folder: Path, kind: str) -> None:
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    with pytest.raises(IncompatibleCheckpoint, match=kind):
        load_bundle(folder)


@pytest.mark.parametrize("file", ["vocab.json", "tokenizer.json"])
@pytest.mark.parametrize("change", ["none", "added", "swapped", "other", "missing"])
def test_the_vocabulary_of_a_folder_is_compared(tmp_path: Path, file: str, change: str) -> None:
    words = dict(vocabulary())
    if change == "added":
        words["<blob>"] = len(words)
    elif change == "swapped":
        words["cat</w>"], words["dog</w>"] = words["dog</w>"], words["cat</w>"]
    elif change == "other":
        words = {f"▁{word}": number for number, word in enumerate(("the", "a", "の"))}
    elif change == "missing":
        words = {word: number for word, number in words.items() if number < 1000}
    values: object = words if file == "vocab.json" else {"model": {"type": "BPE", "vocab": words}}
    (tmp_path / file).write_text(json.dumps(values))
    if change in ("swapped", "other"):
        with pytest.raises(IncompatibleCheckpoint, match="vocabulary"):
            check_tokenizer(tmp_path)
    else:
        check_tokenizer(tmp_path)


@pytest.mark.parametrize(("pad_id", "rows"), [(49408, 49408), (60000, 49408), (0, 49407), (49407, 1000)])
def test_clip_stacks_are_checked_wherever_they_are_made(pad_id: int, rows: int) -> None:
    config = TextEncoderConfig(
        vocabulary_size=rows, width=8, inner_width=8, layers=1, heads=2, positions=16, pad_id=pad_id
    )
    with pytest.raises(InvalidInput, match="tokens"):
        TextStack.of_clip([TextEncoder(config)])


@pytest.mark.parametrize("more", [1, 5, 1000])
def test_a_vocabulary_file_with_more_pieces_than_vectors_is_refused(more: int) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{k}" for k in range(6 + more))]
    config = SentenceEncoderConfig(
        vocabulary_size=10, width=8, inner_width=8, layers=1, heads=2, positions=16, max_tokens=8
    )
    with pytest.raises(InvalidInput, match=f"{10 + more}"):
        TextStack.of_sentences(SentenceEncoder(config), pieces)
    TextStack.of_sentences(SentenceEncoder(config), pieces[:10])
