"""Prompts for two CLIPs and T5: against diffusers' Stable Diffusion 3, and weights, lengths and mixtures on top."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
import transformers

from gouache.errors import InvalidInput
from gouache.models.configs import T5Config
from gouache.models.text.stack import Joint, TextStack
from gouache.models.text.t5 import T5Encoder
from gouache.models.text.unigram import UnigramTokenizer
from gouache.pipeline.prompts.encode import PromptReader, Texts

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins

LONG = "a photo of a cat, " * 20
WIDTH = 64


class Both:
    """The same three text encoders in diffusers and in ours."""

    def __init__(self, twins: Twins, folder: Path, pieces: list[tuple[str, float]]) -> None:
        parts = [twins._text(width, width, "sdxl", seed) for width, seed in ((32, 1), (24, 2))]
        helpers = sys.modules[type(twins).__module__]
        config = transformers.T5Config(
            vocab_size=256, d_model=WIDTH, d_ff=48, num_layers=2, num_heads=4, d_kv=8, feed_forward_proj="gated-gelu"
        )
        t5 = helpers.scrambled(transformers.T5EncoderModel(config), 3)
        transformers.T5Tokenizer(vocab=pieces).save_pretrained(folder)
        network = diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=56,
            out_channels=4,
        )
        self.theirs = diffusers.StableDiffusion3Pipeline(
            network,
            diffusers.FlowMatchEulerDiscreteScheduler(),
            None,
            parts[0][0],
            helpers.tokenizer(folder / "first", "<|endoftext|>"),
            parts[1][0],
            helpers.tokenizer(folder / "second", "!"),
            t5,
            transformers.AutoTokenizer.from_pretrained(folder),
        )
        ours = T5Encoder(T5Config(vocabulary_size=256, width=WIDTH, inner_width=48, layers=2, heads=4, head_width=8))
        state = {key: value for key, value in t5.state_dict().items() if key != "encoder.embed_tokens.weight"}
        ours.load_state_dict(state)
        clips = [clip for _, clip in parts]
        self.ours = TextStack.of_clip(clips, Joint(WIDTH, 256), (ours.eval(), UnigramTokenizer(pieces))).eval()
        self.without = TextStack.of_clip(clips, Joint(WIDTH, 256)).eval()

    def expected(self, texts: Texts, *, t5: bool = True, rows: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
        """Context and pooled vector of diffusers."""
        kept, self.theirs.text_encoder_3 = self.theirs.text_encoder_3, self.theirs.text_encoder_3 if t5 else None
        try:
            with torch.no_grad():
                found = self.theirs.encode_prompt(*texts, do_classifier_free_guidance=False, max_sequence_length=rows)
        finally:
            self.theirs.text_encoder_3 = kept
        return found[0], found[2]


@pytest.fixture(scope="module")
def both(twins: Twins, tmp_path_factory: pytest.TempPathFactory, t5_pieces: list[tuple[str, float]]) -> Both:
    return Both(twins, tmp_path_factory.mktemp("tokenizer_3"), t5_pieces)


def reader(stack: TextStack, emphasis: Any = "a1111", **more: Any) -> PromptReader:
    return PromptReader(stack, emphasis, None, **more)


@pytest.mark.parametrize(
    ("texts", "rows"),
    [
        (("a red apple", None, None), 256),
        (("a red apple", "two dogs", "the quick brown fox; naïve"), 77),
        (("", None, "a cat"), 3),
    ],
)
def test_three_texts_become_what_diffusers_makes_of_them(both: Both, texts: Texts, rows: int) -> None:
    context, pooled = both.expected(texts, rows=rows)
    (found,) = (text for _, text in reader(both.ours, t5_rows=rows).plan_of(texts, 4).at(1))
    assert found.context.shape == (1, 77 + rows, WIDTH)
    assert (found.context - context).abs().max() <= 1e-5 * context.abs().max()
    assert found.pooled is not None
    assert (found.pooled - pooled).abs().max() <= 1e-5 * pooled.abs().max()


def test_zeros_stand_for_a_t5_that_is_missing(both: Both) -> None:
    texts: Texts = ("a red apple", "two dogs", None)
    context, pooled = both.expected(texts, t5=False)
    (found,) = (text for _, text in reader(both.without).plan_of(texts, 4).at(1))
    assert (found.context - context).abs().max() <= 1e-5 * context.abs().max()
    assert found.pooled is not None
    assert (found.pooled - pooled).abs().max() <= 1e-5 * pooled.abs().max()


def test_what_is_too_long_for_t5_is_cut_with_a_note_and_clip_reads_it_in_chunks(both: Both) -> None:
    one = reader(both.ours, t5_rows=77)
    found = one.encode(LONG)
    chunks, states = found.parts
    assert chunks.shape[1] == 2 * 77
    context, _ = both.expected((LONG, None, None), rows=77)
    assert (states - context[:, 77:]).abs().max() <= 1e-5 * context.abs().max()
    assert any("T5 was not given the last" in note for note in one.notes)


def test_weights_act_on_t5_by_the_rule(both: Both) -> None:
    plain, empty = (reader(both.ours).encode(text).parts[1] for text in ("a cat", ""))
    tokenizer = both.ours.t5_tokenizer
    assert tokenizer is not None
    first, length = len(tokenizer.ids("a")), len(tokenizer.ids("a cat"))
    weighed = slice(first, length)
    for rule, expected in (
        ("comfy", (plain - empty) * 1.5 + empty),
        ("no_norm", plain * 1.5),
        ("a1111", plain * 1.5),
    ):
        one = reader(both.ours, rule)
        found = one.encode("a (cat:1.5)").parts[1]
        assert torch.allclose(found[:, weighed], expected[:, weighed], atol=1e-5), rule
        assert torch.equal(found[:, :first], plain[:, :first]), rule
        assert torch.equal(found[:, length:], plain[:, length:]), rule
        assert any("T5 has no steady mean" in note for note in one.notes) == (rule == "a1111"), rule
    mean = reader(both.ours, "original").encode("a (cat:1.5)").parts[1].mean()
    assert mean == pytest.approx(float(plain.mean()), abs=1e-5)
    ignored = reader(both.ours, "ignore").encode("a (cat:1.5)").parts[1]
    assert torch.equal(ignored, plain)


def test_mixtures_keep_t5s_rows_at_the_end(both: Both) -> None:
    one = reader(both.ours)
    first, last = one.plan(LONG, 1), one.plan("a cat", 1)
    mixed = first.mixed(last, 0.25).at(1)[0][1]
    parts = [text.at(1)[0][1].parts for text in (first, last)]
    assert torch.equal(mixed.parts[1], torch.lerp(parts[0][1], parts[1][1], 0.25))
    padded = torch.zeros_like(parts[0][0])
    padded[:, :77] = parts[1][0]
    assert torch.equal(mixed.parts[0], torch.lerp(parts[0][0], padded, 0.25))


def test_texts_for_t5_take_part_in_and(both: Both) -> None:
    one = reader(both.ours)
    plan = one.plan_of(("a cat AND a dog", None, "a fox"), 4)
    assert all(torch.equal(text.parts[1], one.encode("a fox").parts[1]) for _, text in plan.at(1))
    with pytest.raises(InvalidInput, match="prompt_3"):
        one.plan_of(("a AND b AND c", None, "a AND b"), 4)


def test_a_t5_that_does_not_fit_is_refused(both: Both) -> None:
    encoder, tokenizer = both.ours.t5, both.ours.t5_tokenizer
    assert encoder is not None
    assert tokenizer is not None
    clips: Any = list(both.ours.encoders)
    with pytest.raises(InvalidInput, match="width 64"):
        TextStack.of_clip(clips, Joint(96, 256), (encoder, tokenizer))
    with pytest.raises(InvalidInput, match="no place"):
        TextStack.of_clip(clips, None, (encoder, tokenizer))
    short = T5Encoder(T5Config(vocabulary_size=8, width=WIDTH, inner_width=8, layers=1, heads=1, head_width=8))
    with pytest.raises(InvalidInput, match="tokens"):
        TextStack.of_clip(clips, Joint(WIDTH, 256), (short, tokenizer))
    with pytest.raises(InvalidInput, match="no place"):
        TextStack.of_clip(clips).encode_t5(())
