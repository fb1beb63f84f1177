"""T5's encoder and tokenizer against transformers', with random weights and a vocabulary trained here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch import Tensor

from gouache.errors import ConfigError, InvalidInput, ShapeMismatch
from gouache.models.configs import T5Config
from gouache.models.text.t5 import T5Encoder, relative_bucket
from gouache.models.text.unigram import UnigramTokenizer

if TYPE_CHECKING:
    from tests.models.conftest import Agreement

CONFIG = T5Config(vocabulary_size=99, width=32, inner_width=48, layers=3, heads=4, head_width=10)


def pair(dtype: torch.dtype = torch.float32) -> tuple[T5Encoder, Any]:
    """The same random weights in both; theirs has its matrix `wo` in fp32 where the others are fp16."""
    config = transformers.T5Config(
        vocab_size=99, d_model=32, d_ff=48, num_layers=3, num_heads=4, d_kv=10, feed_forward_proj="gated-gelu"
    )
    theirs = transformers.T5EncoderModel(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim > 1 else 0.5) + ("norm" in name))
            parameter.copy_(parameter.to(dtype))
    ours = T5Encoder(CONFIG).eval()
    state = {name: value for name, value in theirs.state_dict().items() if name != "encoder.embed_tokens.weight"}
    ours.load_state_dict(state)
    theirs.to(dtype)
    if dtype == torch.float16:
        for block in theirs.encoder.block:
            block.layer[1].DenseReluDense.wo.float()
    return ours.to(dtype), theirs


def token_ids(length: int = 150) -> Tensor:
    """More places than the table of biases tells apart."""
    return torch.randint(3, 99, (2, length))


def test_states_agree_in_fp32(agree: Agreement) -> None:
    ours, theirs = pair()
    ids = token_ids()
    with torch.no_grad():
        encoding = ours(ids)
        agree(encoding.context, theirs(ids).last_hidden_state, 1e-5)
    assert encoding.pooled is None
    assert encoding.mask is None


def test_masked_padding_is_not_looked_at(agree: Agreement) -> None:
    ours, theirs = pair()
    ids, mask = token_ids(40), torch.ones(2, 40, dtype=torch.bool)
    mask[0, 7:] = mask[1, 39:] = False
    with torch.no_grad():
        found = ours(ids, mask).context
        agree(found[mask], theirs(ids, attention_mask=mask.long()).last_hidden_state[mask], 1e-5)
        agree(found[:1, :7], ours(ids[:1, :7]).context, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_fp32_as_theirs(dtype: torch.dtype) -> None:
    """The two add up in another order, so each is compared with fp32, on the same rounded weights."""
    ours, theirs = pair(dtype)
    exact, ids = T5Encoder(CONFIG).eval(), token_ids(60)
    exact.load_state_dict(ours.state_dict())
    with torch.no_grad():
        found, expected, truth = ours(ids).context, theirs(ids).last_hidden_state, exact(ids).context
    assert found.dtype == expected.dtype == dtype
    errors = [(one.float() - truth).square().mean().sqrt().item() for one in (found, expected)]
    assert 0 < errors[0] <= 1.1 * errors[1]


def test_fp16_that_overflows_stays_finite(agree: Agreement) -> None:
    ours, theirs = pair(torch.float16)
    with torch.no_grad():
        for network in (ours, theirs):
            network.get_parameter("encoder.block.0.layer.0.SelfAttention.o.weight").mul_(4e4)
            for number in range(CONFIG.layers):
                network.get_parameter(f"encoder.block.{number}.layer.1.DenseReluDense.wo.weight").mul_(300.0)
        ids = token_ids(20)[:1]
        found, expected = ours(ids).context, theirs(ids).last_hidden_state
    agree(found.float(), expected.float(), 16 * torch.finfo(torch.float16).eps)


def test_gradients_agree() -> None:
    ours, theirs = pair()
    ids, target = token_ids(20), torch.randn(2, 20, 32)
    (ours(ids).context * target).mean().backward()
    (theirs(ids).last_hidden_state * target).mean().backward()
    expected = dict(theirs.named_parameters())
    scale = max(p.grad.abs().max().item() for p in expected.values())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert (parameter.grad - expected[name].grad).abs().max().item() <= 1e-4 * scale, f"gradient of {name}"


def test_buckets_are_those_of_t5() -> None:
    offsets = torch.arange(-200, 201)
    expected = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(offsets)
    assert relative_bucket(offsets, 32, 128).tolist() == expected.tolist()


def test_wrong_shapes_and_configs_are_refused() -> None:
    ours, _ = pair()
    with pytest.raises(ShapeMismatch, match="token ids"):
        ours(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ShapeMismatch, match="mask"):
        ours(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ConfigError, match="buckets"):
        T5Config.from_dict({"buckets": 30})


TEXTS = [
    "",
    " ",
    "a red apple on a wooden table",
    "  two   spaces,\tand\na line ",
    "It's 8k; (best quality), masterpiece!!",
    "Une tête à l'ombre — naïve façade",
    "ﬁne ①②③ Ｆｕｌｌ　ｗｉｄｔｈ",
    "中文提示词 猫",
    "</s> <pad> <extra_id_0> <extra_id_99> <unk>",
    "emoji 🍎 and a zero\u200bwidth space",
    "▁ a lower one eighth block",
    "apple" * 30,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, t5_pieces: list[tuple[str, float]]) -> Path:
    """The folder of a tokenizer as transformers writes it."""
    folder = tmp_path_factory.mktemp("tokenizer_3")
    transformers.T5Tokenizer(vocab=t5_pieces).save_pretrained(folder)
    return folder


def test_texts_become_the_tokens_that_transformers_makes(folder: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    ours = UnigramTokenizer([tuple(piece) for piece in vocabulary])
    for text in TEXTS:
        expected = theirs(text, padding="max_length", max_length=77, truncation=True)["input_ids"]
        assert list(ours.frame(ours.ids(text)[:76], 77)) == expected, text
        assert ours.ids(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    assert ours.highest_id == len(vocabulary) - 1


def test_a_vocabulary_that_is_no_t5_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no <unk>"):
        UnigramTokenizer([("<pad>", 0.0), ("</s>", 0.0)])
    with pytest.raises(InvalidInput, match="twice"):
        UnigramTokenizer([("<pad>", 0.0), ("<pad>", 0.0)])
    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>", "▁")]
    with pytest.raises(InvalidInput, match="normalizer"):
        UnigramTokenizer(pieces, normalizer=b"\x01\x02")
    with pytest.raises(InvalidInput, match="at most 3"):
        UnigramTokenizer(pieces).frame([3, 3, 3, 3], 4)
