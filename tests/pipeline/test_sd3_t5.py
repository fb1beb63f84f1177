"""Stable Diffusion 3 with its T5: folders of diffusers paint as there, and go through every layout unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.pipeline.sd3_twins import CONTEXT, Sd3Twins, text_encoder

from gouache.checkpoints.convert import convert
from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.identify import identify
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.t5_vocabulary import t5_tokenizer
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint, InvalidInput, ModelNotFound, UnknownFamily
from gouache.models.configs import T5Config
from gouache.models.text.unigram import UnigramTokenizer, published_vocabulary
from gouache.pipeline.diffusers_api import StableDiffusionPipeline
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

KIND = "3 medium"
REQUEST = Request(
    prompt="a red apple on a wooden table",
    negative_prompt="two dogs",
    num_inference_steps=2,
    guidance_scale=4.0,
    seed=3,
    width=32,
    height=32,
)


class WithT5(Sd3Twins):
    """Stable Diffusion 3 medium in small, with a third text encoder; as in the published models, the first is narrower
    than the second."""

    def __init__(self, folder: Path, twins: Any, pieces: list[tuple[str, float]]) -> None:
        super().__init__(folder, twins)
        self.pieces = pieces

    def _shared(self) -> dict[str, Any]:
        scrambled = self.twins.scrambled
        config = transformers.T5Config(
            vocab_size=256, d_model=CONTEXT, d_ff=48, num_layers=2, num_heads=4, d_kv=8, feed_forward_proj="gated-gelu"
        )
        transformers.T5Tokenizer(vocab=self.pieces).save_pretrained(self.folder / "t5")
        return {
            **super()._shared(),
            "text_encoder": scrambled(text_encoder(24, 16, "quick_gelu"), 1),
            "text_encoder_2": scrambled(text_encoder(32, 24, "gelu"), 2),
            "text_encoder_3": scrambled(transformers.T5EncoderModel(config), 5),
            "tokenizer_3": transformers.AutoTokenizer.from_pretrained(self.folder / "t5"),
        }


@pytest.fixture(scope="module")
def both(sd3: Sd3Twins, tmp_path_factory: pytest.TempPathFactory, t5_pieces: list[tuple[str, float]]) -> WithT5:
    return WithT5(tmp_path_factory.mktemp("sd3_t5"), sd3.twins, t5_pieces)


def psnr(ours: Pipeline, request: Request, expected: np.ndarray) -> float:
    found = np.asarray(ours.paint(request)[0].image, dtype=np.float64) / 255
    return float(-10 * np.log10(np.mean((found - np.round(expected.astype(np.float64) * 255) / 255) ** 2) + 1e-12))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"prompt_2": "a blue ball", "prompt_3": "a fox; naïve", "negative_prompt_3": "dogs", "max_sequence_length": 77},
    ],
)
def test_a_folder_with_t5_paints_as_in_diffusers(both: WithT5, more: dict[str, Any]) -> None:
    request = REQUEST.replace(more)
    theirs = {name: text for name, text in more.items() if name != "max_sequence_length"}
    assert psnr(both.ours(KIND), request, both.their_picture(both.theirs(KIND), request, **theirs)) >= 60


def test_the_lines_of_diffusers_work_with_the_import_changed(both: WithT5) -> None:
    call: dict[str, Any] = {
        "prompt": "a red apple",
        "prompt_3": "a fox",
        "negative_prompt": "dogs",
        "negative_prompt_3": "grey",
        "max_sequence_length": 77,
        "num_inference_steps": 2,
        "guidance_scale": 4.0,
        "height": 32,
        "width": 32,
    }
    images = StableDiffusionPipeline(both.ours(KIND))(**call, generator=torch.Generator().manual_seed(3)).images
    theirs = both.theirs(KIND)(**call, generator=torch.Generator().manual_seed(3), output_type="np").images[0]
    error = np.asarray(images[0], dtype=np.float64) / 255 - np.round(theirs.astype(np.float64) * 255) / 255
    assert -10 * np.log10(np.mean(error**2) + 1e-12) >= 60


def test_every_layout_keeps_t5_bit_for_bit(both: WithT5, tmp_path: Path) -> None:
    source = both.path(KIND)
    convert(source, tmp_path / "single.safetensors", "single-file")
    convert(tmp_path / "single.safetensors", tmp_path / "own", "gouache")
    convert(tmp_path / "own", tmp_path / "own.safetensors", "gouache")
    convert(tmp_path / "own.safetensors", tmp_path / "folder", "diffusers")
    first = load_file(source / "text_encoder_3" / "model.safetensors")
    last = load_file(tmp_path / "folder" / "text_encoder_3" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in first.items()} == {name: t.shape for name, t in last.items()}
    assert all(torch.equal(tensor, last[name]) for name, tensor in first.items())
    for name in ("single.safetensors", "own", "own.safetensors", "folder"):
        text = load_bundle(tmp_path / name).text
        assert text.t5 is not None, name
        assert all(torch.equal(tensor, first[key]) for key, tensor in text.t5.state_dict().items()), name
        assert text.t5_tokenizer is not None
        assert text.t5_tokenizer.pieces == tuple(both.pieces), name
    theirs = type(both.theirs(KIND)).from_pretrained(tmp_path / "folder")
    words = "the quick brown fox </s>"
    assert theirs.tokenizer_3(words)["input_ids"] == both.theirs(KIND).tokenizer_3(words)["input_ids"]


def test_the_parts_of_a_model_with_nodes_are_found_by_what_they_are(both: WithT5, tmp_path: Path) -> None:
    convert(both.path(KIND), tmp_path / "whole.safetensors", "single-file")
    tensors = load_file(tmp_path / "whole.safetensors")
    # Heads and activations, which the published ones have by their size.
    told = {
        key: value for key, value in read_header(tmp_path / "whole.safetensors").metadata.items() if ".config." in key
    }
    prefixes = {f"text_encoders.{name}.transformer.": name for name in ("clip_l", "clip_g", "t5xxl")}
    (tmp_path / "clip").mkdir()
    for prefix, name in prefixes.items():
        part = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        save_file(part, tmp_path / "clip" / f"part of {name}.safetensors", told)
        assert identify(tmp_path / "clip" / f"part of {name}.safetensors").kind == "text-encoder"
    rest = {key: tensor for key, tensor in tensors.items() if not key.startswith(tuple(prefixes))}
    save_file(rest, tmp_path / "sd3.safetensors", told)
    (tmp_path / "whole.safetensors").unlink()
    shutil.copytree(both.path(KIND) / "tokenizer_3", tmp_path / "tokenizer_3")
    expected = both.ours(KIND).paint(REQUEST)[0].image
    for path in (tmp_path, tmp_path / "sd3.safetensors"):
        painted = Pipeline.load(path).paint(REQUEST)[0]
        assert np.array_equal(np.asarray(painted.image), np.asarray(expected))
    assert any("beside the model: part of clip_l" in note for note in painted.recipe.notes)
    (tmp_path / "clip" / "part of clip_l.safetensors").unlink()
    with pytest.raises(IncompatibleCheckpoint, match="text encoder"):
        load_bundle(tmp_path / "sd3.safetensors")


def test_a_t5_in_fp8_is_read_as_the_numbers_it_holds(both: WithT5, tmp_path: Path) -> None:
    file = both.path(KIND) / "text_encoder_3" / "model.safetensors"
    folder = tmp_path / "model"
    shutil.copytree(both.path(KIND), folder)
    eighths = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(file).items()}
    save_file(eighths, folder / "text_encoder_3" / "model.safetensors")
    bundle = load_bundle(folder, dtype=torch.float32)
    assert bundle.text.t5 is not None
    found = bundle.text.t5.state_dict()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in eighths.items())


def test_the_published_vocabulary_reads_as_the_published_tokenizer() -> None:
    """The numbers are those of T5's own tokenizer.json, read by the package tokenizers."""
    pieces, table = published_vocabulary()
    tokenizer = UnigramTokenizer(pieces, normalizer=table)
    assert tokenizer.highest_id == 32099
    for text, ids in {
        "a photo of a cat": [3, 9, 1202, 13, 3, 9, 1712],
        "It's 8k; (best quality), masterpiece!!": [94, 31, 7, 505, 157, 117, 41, 9606, 463, 201, 20975, 1603],
        "Une tête à l'ombre": [2435, 9844, 3, 85, 3, 40, 31, 15729],
        "\ufb01ne \u2460\u2461\u2462 \uff26\uff55\uff4c\uff4c\u3000\uff57\uff49\uff44\uff54\uff48": [
            *(1399, 3, 14574, 4043, 9400),
        ],
        "\u4e2d\u6587 <extra_id_0> </s>": [3, 2, 32099, 1],
    }.items():
        assert tokenizer.ids(text) == ids, text


def vocabulary_file(pieces: list[tuple[str, float]], *, kind: int = 1) -> bytes:
    """A SentencePiece file as its protocol writes it, by the few rules that it needs."""

    def field(number: int, content: bytes) -> bytes:
        length, size = len(content), b""
        while length > 0x7F:
            size += bytes([length & 0x7F | 0x80])
            length >>= 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    message = b""
    for piece, score in pieces:
        message += field(1, field(1, piece.encode()) + b"\x15" + np.float32(score).tobytes() + b"\x18\x01")
    return message + field(2, b"\x18" + bytes([kind])) + field(3, field(1, b"nmt_nfkc") + b"\x18\x01")


CONFIG = T5Config(vocabulary_size=256)


def with_vocabulary(folder: Path, name: str, content: bytes) -> Path:
    """A model's folder, as far as the vocabulary of its T5 goes."""
    (folder / "tokenizer_3").mkdir()
    (folder / "tokenizer_3" / name).write_bytes(content)
    return folder


def test_a_sentencepiece_file_gives_the_same_tokens(both: WithT5, tmp_path: Path) -> None:
    pieces = [piece for piece in both.pieces if not piece[0].startswith("<extra_id_")]
    ours = t5_tokenizer(with_vocabulary(tmp_path, "spiece.model", vocabulary_file(pieces)), CONFIG)
    theirs = both.theirs(KIND).tokenizer_3
    for text in ("the quick brown fox", "naïve, 8k <extra_id_7>"):
        assert ours.ids(text) == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("name", "content", "kind", "told"),
    [
        ("spiece.model", b"\x0a\xff", CorruptCheckpoint, "SentencePiece"),
        ("spiece.model", b"", CorruptCheckpoint, "no pieces"),
        ("spiece.model", vocabulary_file([("<pad>", 0.0)], kind=2), IncompatibleCheckpoint, "byte pairs"),
        ("spiece.model", vocabulary_file([("<pad>", 0.0)]), IncompatibleCheckpoint, "no <unk>"),
        ("tokenizer.json", b"{", CorruptCheckpoint, "JSON"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}}}', IncompatibleCheckpoint, "BPE"),
        ("tokenizer.json", b'{"model": {"type": "Unigram", "vocab": [["a"]]}}', CorruptCheckpoint, "entries"),
        (
            "tokenizer.json",
            b'{"model": {"vocab": []}, "normalizer": {"type": "Lowercase"}}',
            IncompatibleCheckpoint,
            "Low",
        ),
        ("readme.txt", b"", ModelNotFound, "tokenizer_3"),
    ],
    ids=["cut", "empty", "byte pairs", "no unknown", "no JSON", "BPE", "no pieces", "normaliser", "none"],
)
def test_a_vocabulary_that_is_none_is_refused(
    tmp_path: Path, name: str, content: bytes, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        t5_tokenizer(with_vocabulary(tmp_path, name, content), CONFIG)


def test_a_t5_without_a_vocabulary_beside_it_has_the_published_one(tmp_path: Path) -> None:
    assert t5_tokenizer(tmp_path, T5Config()).pieces == published_vocabulary()[0]


def test_other_t5s_are_refused(both: WithT5, tmp_path: Path) -> None:
    folder = both.path(KIND)
    tensors = load_file(folder / "text_encoder_3" / "model.safetensors")
    for pattern, told in (("wi", "T5 1.0"), ("bias", "UMT5")):
        changed = dict(tensors)
        if pattern == "wi":
            changed["encoder.block.0.layer.1.DenseReluDense.wi.weight"] = torch.zeros(48, CONTEXT)
        else:
            name = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
            changed[name.format(1)] = tensors[name.format(0)].clone()
        save_file(changed, tmp_path / f"{pattern}.safetensors")
        with pytest.raises(UnknownFamily, match=told):
            identify(tmp_path / f"{pattern}.safetensors")


def test_texts_for_t5_are_refused_without_it(both: WithT5, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(both.path(KIND), folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / name)
        index[name] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    pipeline = Pipeline.load(folder)
    with pytest.raises(InvalidInput, match="prompt_3"):
        pipeline.resolve(REQUEST.replace({"prompt_3": "a fox"}))
    assert any("T5" in note for note in pipeline.paint(REQUEST)[0].recipe.notes)
