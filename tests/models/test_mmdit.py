"""The MMDiT against diffusers' SD3Transformer2DModel: random weights of every kind, forward and gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from gouache.checkpoints.networks import build_on_meta
from gouache.errors import ConfigError, ShapeMismatch
from gouache.models.configs import MMDiTConfig
from gouache.models.mmdit import MMDiT, position_table
from gouache.nn.attention import RowChanges

if TYPE_CHECKING:
    from tests.models.conftest import Agreement

KINDS = {
    "3 medium": MMDiTConfig(layers=3, heads=2, head_width=8, context_width=20, pooled_width=12, grid=10),
    "3.5 large": MMDiTConfig(layers=2, heads=3, head_width=8, context_width=20, pooled_width=12, grid=9, qk_norm=True),
    "3.5 medium": MMDiTConfig(
        layers=3, heads=2, head_width=16, context_width=20, pooled_width=12, grid=12, qk_norm=True, dual_layers=(0, 1)
    ),
}


def reference(config: MMDiTConfig, sample_size: int = 128) -> SD3Transformer2DModel:
    theirs = SD3Transformer2DModel(
        sample_size=sample_size,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.layers,
        attention_head_dim=config.head_width,
        num_attention_heads=config.heads,
        joint_attention_dim=config.context_width,
        caption_projection_dim=config.width,
        pooled_projection_dim=config.pooled_width,
        pos_embed_max_size=config.grid,
        dual_attention_layers=config.dual_layers,
        qk_norm="rms_norm" if config.qk_norm else None,
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return theirs.eval()


def twin(theirs: SD3Transformer2DModel, config: MMDiTConfig) -> MMDiT:
    ours = MMDiT(config).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours


def inputs(config: MMDiTConfig, batch: int = 2, size: tuple[int, int] = (8, 12)) -> tuple[Tensor, ...]:
    return (
        torch.randn(batch, config.in_channels, *size),
        torch.rand(batch) * 1000,
        torch.randn(batch, 7, config.context_width),
        torch.randn(batch, config.pooled_width),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_gradients_are_diffusers(kind: str, agree: Agreement) -> None:
    config = KINDS[kind]
    theirs = reference(config)
    ours = twin(theirs, config)
    x, t, context, pooled = inputs(config)
    for leaf in (x, context, pooled):
        leaf.requires_grad_()
    expected = theirs(x, context, pooled, t).sample
    found = ours(x, t, context, pooled=pooled)
    agree(found, expected, 1e-5)
    weight = torch.randn_like(expected)
    named = dict(theirs.named_parameters())
    leaves = [x, context, pooled, *named.values()]
    theirs_gradients = torch.autograd.grad((expected * weight).sum(), leaves)
    ours_gradients = torch.autograd.grad(
        (found * weight).sum(), [x, context, pooled, *(ours.get_parameter(name) for name in named)]
    )
    for name, one, other in zip(["x", "context", "pooled", *named], ours_gradients, theirs_gradients, strict=True):
        scale = other.abs().max().clamp_min(1e-6)
        assert (one - other).abs().max() <= 2e-5 * scale, name


@pytest.mark.parametrize("kind", KINDS)
def test_names_shapes_and_places_are_diffusers(kind: str) -> None:
    config = KINDS[kind]
    theirs = reference(config).state_dict()
    ours = MMDiT(config).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert torch.allclose(ours["pos_embed.pos_embed"], theirs["pos_embed.pos_embed"], atol=1e-5)


def test_the_published_sizes() -> None:
    """Parameters as the cards of the published networks have them: 2.0, 2.2 and 8.1 billion."""
    large = MMDiTConfig(layers=38, heads=38, qk_norm=True)
    medium = MMDiTConfig(grid=384, qk_norm=True, dual_layers=tuple(range(13)))
    networks = [build_on_meta(config) for config in (MMDiTConfig(), medium, large)]
    counts = [sum(parameter.numel() for parameter in one.parameters()) for one in networks]
    assert counts == [2_028_328_000, 2_243_171_520, 8_056_627_520]


def test_rows_can_leave_blocks_out_as_diffusers_skips_layers(agree: Agreement) -> None:
    config = KINDS["3.5 medium"]
    theirs = reference(config)
    ours = twin(theirs, config)
    x, t, context, pooled = inputs(config)
    skipped = {ours.transformer_blocks[1]: RowChanges(skipped=torch.tensor([False, True])[:, None, None])}
    found = ours(x, t, context, pooled=pooled, changes=skipped)
    agree(found[:1], theirs(x, context, pooled, t).sample[:1], 1e-5)
    agree(found[1:], theirs(x, context, pooled, t, skip_layers=[1]).sample[1:], 1e-5)


def test_tokens_outside_the_mask_are_not_seen() -> None:
    config = KINDS["3 medium"]
    ours = twin(reference(config), config)
    x, t, context, pooled = inputs(config)
    mask = torch.tensor([[True] * 5 + [False] * 2] * 2)
    short = ours(x, t, context[:, :5], pooled=pooled)
    assert torch.allclose(ours(x, t, context, pooled=pooled, context_mask=mask), short, atol=1e-5)


def test_checkpointing_changes_no_gradient() -> None:
    config = KINDS["3.5 medium"]
    ours = twin(reference(config), config)
    x, t, context, pooled = inputs(config)
    found = []
    for on in (False, True):
        ours.set_gradient_checkpointing(on)
        loss = ours(x, t, context, pooled=pooled).square().sum()
        found.append(torch.autograd.grad(loss, list(ours.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_it_begins_as_zero_and_refuses_what_does_not_fit() -> None:
    config = KINDS["3 medium"]
    ours = MMDiT(config)
    ours.zero_residual_ends()
    x, t, context, pooled = inputs(config)
    assert not ours(x, t, context, pooled=pooled).any()
    for wrong, word in (
        ((x, t, context, None), "pooled"),
        ((x, t, context[..., :3], pooled), "context"),
        ((x[:, :4], t, context, pooled), "channels"),
        ((x[..., :7], t, context, pooled), "multiples of 2"),
        ((torch.zeros(2, 16, 8, 22), t, context, pooled), "up to 20"),
    ):
        with pytest.raises(ShapeMismatch, match=word):
            ours(*wrong[:3], pooled=wrong[3])
    with pytest.raises(ConfigError, match="dual"):
        MMDiTConfig.from_dict({"layers": 2, "dual_layers": [2]})


def test_places_span_the_base_grid() -> None:
    """sin and cos of a place's column and row; 64 units along an edge whatever the grid."""
    table = position_table(8, 4).view(4, 4, 8)
    column = torch.tensor([0.0, 16.0, 32.0, 48.0])
    assert torch.allclose(table[0, :, 0], column.sin(), atol=1e-6)
    assert torch.allclose(table[:, 0, 4], column.sin(), atol=1e-6)
    assert torch.allclose(table[1, 2, 2:4], torch.tensor([32.0, 0.32]).cos(), atol=1e-6)
