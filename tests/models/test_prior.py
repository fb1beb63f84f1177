"""The prior: causality, the cache, exact likelihood, the truncations, completion."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch
from torch import nn

from gouache.errors import ConfigError, InvalidInput, ShapeMismatch
from gouache.models.memory.recall import FOLLOWED, Recall
from gouache.models.prior import Draw, Prior, PriorConfig, draw_order, inverse_transform, prior_inputs, truncate
from gouache.models.quantizer import Quantizer, QuantizerConfig

Order = Literal["raster", "scales", "turns", "recall"]
Text = Literal["prefix", "cross"]
SIZES = {"width": 32, "depth": 2, "heads": 4, "context_dim": 12, "pooled_dim": 6, "features": 8}


def networks(order: Order, text: Text = "prefix", levels: tuple[int, ...] = (3, 3)) -> tuple[Quantizer, Prior]:
    scales = (4,) if order == "raster" else (1, 2, 4)
    sizes = {"latent_channels": 4, "latent_size": 8, "features": 8, "width": 16, "blocks": 1}
    quantizer = QuantizerConfig.from_dict({**sizes, "levels": levels, "scales": scales})
    groups = (1,) * 16 if order == "raster" else quantizer.groups
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        turns = (1, 4, 4) if order in ("turns", "recall") else ()
        recall = {"neighbours": 3, "memory": 7} if order == "recall" else {}
        prior = Prior(
            PriorConfig(vocabulary=quantizer.vocabulary, groups=groups, turns=turns, text=text, **recall, **SIZES)
        )
        if prior.recall is not None:
            prior.recall.remember(torch.randn(7, 6), torch.randint(quantizer.vocabulary, (7, prior.config.length)))
            nn.init.normal_(prior.recall.out.weight)
        return Quantizer(quantizer).eval(), prior.eval()


def text_states(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    mask = torch.ones(batch, 5, dtype=torch.bool)
    mask[0, 3:] = False
    return torch.randn(batch, 5, 12, generator=generator), torch.randn(batch, 6, generator=generator), mask


def random_tokens(prior: Prior, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randint(prior.config.vocabulary, (batch, prior.config.length), generator=generator)


CASES = list(itertools.product(("raster", "scales", "turns", "recall"), ("prefix", "cross")))


@pytest.mark.parametrize(("order", "text"), CASES)
def test_cached_sampling_sees_the_logits_of_the_full_pass(order: Order, text: Text) -> None:
    quantizer, prior = networks(order, text)
    tokens, (context, pooled, mask) = random_tokens(prior, 3), text_states(3)
    full = prior(prior_inputs(prior.config, quantizer, tokens), context, pooled, mask).softmax(-1)
    # Draw with a uniform number just inside the true token's share: exact logits give back the true tokens.
    edges = full.double().cumsum(-1)
    low = torch.nn.functional.pad(edges, (1, 0)).gather(2, tokens[..., None])
    for place in (0.001, 0.999):
        uniform = torch.lerp(low, edges.gather(2, tokens[..., None]), place).squeeze(2)
        *_, drawn = prior.sample(quantizer, context, pooled, uniform, context_mask=mask)
        assert torch.equal(drawn, tokens)


@pytest.mark.parametrize(("order", "text"), CASES)
def test_guided_sampling_sees_the_mixture_of_two_full_passes(order: Order, text: Text) -> None:
    quantizer, prior = networks(order, text)
    tokens, own, (context, pooled, _) = random_tokens(prior, 3), text_states(3), text_states(3)
    without = (context[:, :2].flip(0), pooled.flip(0), None)  # shorter, and not masked
    inputs = prior_inputs(prior.config, quantizer, tokens)
    full = torch.lerp(prior(inputs, *without), prior(inputs, *own), 1.5).softmax(-1)
    edges = full.double().cumsum(-1)
    low = torch.nn.functional.pad(edges, (1, 0)).gather(2, tokens[..., None])
    uniform = torch.lerp(low, edges.gather(2, tokens[..., None]), 0.5).squeeze(2)
    draw = Draw(guidance_scale=1.5)
    *_, drawn = prior.sample(quantizer, own[0], own[1], uniform, context_mask=own[2], draw=draw, unconditional=without)
    assert torch.equal(drawn, tokens)


@pytest.mark.parametrize(("order", "text"), CASES)
def test_logits_depend_on_the_turns_before_only(order: Order, text: Text) -> None:
    quantizer, prior = networks(order, text)
    tokens, (context, pooled, mask) = random_tokens(prior, 2), text_states(2)
    a = prior(prior_inputs(prior.config, quantizer, tokens), context, pooled, mask)
    drawn = torch.split(prior.order.order, prior.order.sizes)
    for turn in range(len(drawn) - 1):
        changed = tokens.clone()
        changed[:, drawn[turn]] = (changed[:, drawn[turn]] + 1) % prior.config.vocabulary
        b = prior(prior_inputs(prior.config, quantizer, changed), context, pooled, mask)
        differs = (a - b).abs().amax((0, 2)) > 1e-6
        assert not differs[torch.cat(drawn[: turn + 1])].any()
        assert differs[drawn[turn + 1]].all()


def test_a_scale_in_turns_begins_far_apart_and_each_turn_follows_its_own_cell() -> None:
    order = draw_order((1, 16), (1, 4))
    assert [places.tolist() for places in order.rounds[1]] == [
        [1, 3, 9, 11],
        [6, 8, 14, 16],
        [2, 4, 10, 12],
        [5, 7, 13, 15],
    ]
    assert order.before.tolist() == [-1, -1, 6, -1, 8, 2, 1, 4, 3, -1, 14, -1, 16, 10, 9, 12, 11]
    assert order.order[order.place_in_order].tolist() == list(range(17))
    assert draw_order((1, 4), ()).order.tolist() == list(range(5))


def test_a_prior_without_weights_knows_its_order() -> None:
    with torch.device("meta"):
        prior = Prior(PriorConfig(groups=(1, 4, 64), turns=(1, 4, 16), **SIZES))  # type: ignore[arg-type]
    assert sorted(prior.order.order.tolist()) == list(range(69))


@pytest.mark.parametrize(
    ("groups", "turns"), [((1, 4), (1,)), ((1, 4), (1, 2)), ((1, 4, 16), (1, 4, 16)), ((6,), (4,))]
)
def test_turns_that_do_not_tile_a_scale_are_refused(groups: tuple[int, ...], turns: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"prior.turns.*a square cell that tiles"):
        PriorConfig.from_dict({"groups": groups, "turns": turns})


def test_padding_of_the_text_changes_nothing() -> None:
    quantizer, prior = networks("scales")
    tokens, (context, pooled, mask) = random_tokens(prior, 3), text_states(3)
    inputs = prior_inputs(prior.config, quantizer, tokens)
    filled = torch.where(mask[..., None], context, torch.full_like(context, 9.0))
    assert torch.allclose(prior(inputs, context, pooled, mask), prior(inputs, filled, pooled, mask), atol=1e-5)


@pytest.mark.parametrize("turns", [(), (1, 4)])
def test_the_likelihoods_of_all_pictures_add_up_to_one(turns: tuple[int, ...]) -> None:
    sizes = {"latent_channels": 2, "latent_size": 2, "features": 8, "width": 8, "blocks": 1}
    quantizer = Quantizer(QuantizerConfig.from_dict({**sizes, "levels": (3,), "scales": (1, 2)})).eval()
    prior = Prior(PriorConfig(vocabulary=3, groups=(1, 4), turns=turns, **SIZES)).eval()  # type: ignore[arg-type]
    every = torch.tensor(list(itertools.product((0, 1, 2), repeat=5)))
    context, pooled, _ = (t[:1].expand(len(every), *t.shape[1:]) for t in text_states(2))
    total = prior.log_likelihood(quantizer, every, context, pooled).sum(1).double().exp().sum()
    assert abs(total.item() - 1) < 1e-5


def test_completion_keeps_the_known_tokens() -> None:
    quantizer, prior = networks("scales")
    tokens, (context, pooled, mask) = random_tokens(prior, 2), text_states(2)
    known = tokens.clone()
    known[:, 8:] = -1
    uniform = torch.rand(2, prior.config.length, generator=torch.Generator().manual_seed(1))
    *_, drawn = prior.sample(quantizer, context, pooled, uniform, context_mask=mask, known=known)
    assert torch.equal(drawn[:, :8], tokens[:, :8])
    assert not torch.equal(drawn[:, 8:], tokens[:, 8:])


def test_guidance_of_one_is_plain_sampling_and_zero_ignores_the_text() -> None:
    quantizer, prior = networks("scales")
    context, pooled, mask = text_states(2)
    empty = (torch.zeros_like(context), torch.zeros_like(pooled), mask)
    uniform = torch.rand(2, prior.config.length, generator=torch.Generator().manual_seed(1))
    *_, unguided = prior.sample(quantizer, *empty[:2], uniform, context_mask=mask)
    *_, zero = prior.sample(
        quantizer, context, pooled, uniform, context_mask=mask, draw=Draw(guidance_scale=0.0), unconditional=empty
    )
    assert torch.equal(zero, unguided)
    with pytest.raises(InvalidInput, match="unconditional"):
        list(prior.sample(quantizer, context, pooled, uniform, draw=Draw(guidance_scale=2.0)))


def test_truncation_keeps_the_smallest_nucleus() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert torch.allclose(truncate(logits, Draw(top_p=0.6)), torch.tensor([4 / 7, 3 / 7, 0, 0]))
    assert torch.allclose(truncate(logits, Draw(top_k=1)), torch.tensor([1.0, 0, 0, 0]))
    assert torch.allclose(truncate(logits, Draw(temperature=0.5)), torch.tensor([16, 9, 4, 1]) / 30.0)
    assert torch.allclose(truncate(logits, Draw()), logits.exp())


def test_inverse_transform_draws_each_code_with_its_probability() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.25]).expand(8, 4)
    drawn = inverse_transform(probabilities, torch.arange(8) / 8)
    assert drawn.tolist() == [0, 0, 0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_draws_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        Draw(**bad)  # type: ignore[arg-type]


def test_shapes_that_do_not_fit_are_refused() -> None:
    quantizer, prior = networks("scales")
    context, pooled, _ = text_states(2)
    with pytest.raises(ShapeMismatch, match="inputs"):
        prior(torch.zeros(2, 5, 8), context, pooled)
    with pytest.raises(ShapeMismatch, match=r"groups"):
        prior_inputs(PriorConfig(groups=(2, 2)), quantizer, random_tokens(prior, 1))


def remembering() -> Recall:
    """Four remembered pictures whose captions are the axes of space; the first network's weights."""
    config = PriorConfig(vocabulary=9, groups=(1, 4), neighbours=2, memory=4, **{**SIZES, "pooled_dim": 4})  # type: ignore[arg-type]
    recall = Recall(config)
    recall.remember(3 * torch.eye(4), torch.arange(20).view(4, 5) % 9)
    return recall


def test_the_nearest_captions_are_recalled_and_the_nearest_can_be_hidden() -> None:
    recall, asked = remembering(), torch.tensor([[0.1, 5.0, 2.0, 0.2], [0.3, 0.2, 0.1, 1.0]])
    found = recall.find(asked, torch.tensor([False, True]))
    assert found.tokens[0].tolist() == [[5, 6, 7, 8, 0], [1, 2, 3, 4, 5]]
    assert found.tokens[1].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 0]]
    assert torch.equal(found.captions[0], torch.eye(4)[[1, 2]])


def test_copying_is_a_mixture_of_the_networks_own_and_the_neighbours_tokens() -> None:
    recall = remembering()
    found, states, logits = recall.find(torch.eye(4)[:1]), torch.randn(1, 5, 32), torch.randn(1, 5, 9)
    own = logits.softmax(-1)
    mixed = recall.copy(states, logits, found, torch.arange(5)).exp()
    gate = torch.tensor(-2.0).sigmoid()
    torch.testing.assert_close(mixed.sum(-1), torch.ones(1, 5))
    copied = mixed - (1 - gate) * own
    for place in range(5):
        asked = sorted({*found.tokens[0, :, place].tolist()})
        torch.testing.assert_close(copied[0, place, asked].sum(), gate)
    nn.init.constant_(recall.copy_gate.bias, -1e4)
    torch.testing.assert_close(recall.copy(states, logits, found, torch.arange(5)).exp(), own)
    nn.init.constant_(recall.copy_gate.bias, 1e4)
    sure = recall.copy(states, logits, found, torch.arange(5))
    assert bool(sure.isfinite().all())


def test_one_neighbour_is_followed_the_nearest_most_often() -> None:
    recall, asked = remembering(), torch.tensor([[1.0, 0.99, 0.2, 0.0]])
    one, other = (asked[0, k] / asked.norm() for k in (0, 1))
    share = float(1 / (1 + ((other - one) / FOLLOWED).exp()))
    assert 0.5 < share < 0.9
    chosen = torch.tensor([0.0, share - 1e-3, share + 1e-3, 1 - 1e-6])
    rows = recall.followed(asked.expand(4, -1), chosen)
    assert rows.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(recall.nearness(asked), one[None])


def test_tokens_of_what_is_followed_get_likelier_by_so_many_nats() -> None:
    quantizer, prior = networks("recall")
    context, pooled, mask = text_states(3)
    assert prior.recall is not None
    followed = prior.recall.tokens[prior.recall.followed(pooled, torch.zeros(3))].long()
    uniform = torch.rand(3, prior.config.length, generator=torch.Generator().manual_seed(1))

    def drawn(recall: float) -> torch.Tensor:
        draw = Draw(recall=recall)
        *_, tokens = prior.sample(quantizer, context, pooled, uniform, context_mask=mask, draw=draw)
        return tokens

    *_, plain = prior.sample(quantizer, context, pooled, uniform, context_mask=mask)
    assert torch.equal(drawn(0.0), plain)
    assert torch.equal(drawn(60.0), followed)
    shares = [float((drawn(nats) == followed).float().mean()) for nats in (0.0, 1.5, 3.0, 60.0)]
    assert shares == sorted(shares)
    assert shares[0] < shares[1] < 1
    # The first token alone: p e^r / (p e^r + 1 - p), as its uniform number shows.
    logits = prior(prior_inputs(prior.config, quantizer, plain), context, pooled, mask)[:, 0]
    raised = logits + 1.5 * torch.nn.functional.one_hot(followed[:, 0], prior.config.vocabulary)
    assert torch.equal(drawn(1.5)[:, 0], inverse_transform(raised.softmax(-1), uniform[:, 0]))


def test_recall_is_no_penalty() -> None:
    with pytest.raises(InvalidInput, match="recall"):
        Draw(recall=-1.0)


def test_a_memory_takes_tables_of_its_own_size_only() -> None:
    with pytest.raises(ShapeMismatch, match="recall: tokens"):
        remembering().remember(torch.eye(4), torch.zeros(4, 6))
