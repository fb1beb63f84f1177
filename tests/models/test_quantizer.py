"""The quantizer against an independent FSQ, and the laws of its pyramid."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch

from gouache.errors import ConfigError, ShapeMismatch
from gouache.models.quantizer import FSQ, Block, Quantizer, QuantizerConfig


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("levels", [(5, 5, 5, 5), (8, 5, 5, 5), (3, 3), (7, 4, 6)])
def test_codes_and_indices_are_those_of_vector_quantize_pytorch(levels: tuple[int, ...]) -> None:
    z = 3 * torch.randn(50, len(levels), generator=torch.Generator().manual_seed(1))
    reference_codes, reference_indices = vector_quantize_pytorch.FSQ(list(levels))(z[None])
    codes, indices = FSQ(levels)(z)
    assert torch.equal(indices, reference_indices[0].long())
    assert torch.allclose(codes, reference_codes[0], atol=1e-6)
    assert torch.equal(FSQ(levels).codes(indices), codes.detach())


def test_rounding_passes_the_gradient_straight_through() -> None:
    z = torch.zeros(4, 4, requires_grad=True)
    FSQ((5, 5, 5, 5))(z)[0].sum().backward()
    # At 0 the slope is that of tanh(z) * reach / half: reach = 2.002, half = 2.
    assert z.grad is not None
    assert torch.allclose(z.grad, torch.full_like(z, 1.001))


@pytest.mark.parametrize("scales", [(8,), (1, 2, 4, 8), (4, 16)])
def test_decoding_the_tokens_is_the_reconstruction(latents: torch.Tensor, scales: tuple[int, ...]) -> None:
    quantizer = Quantizer(QuantizerConfig(scales=scales)).eval()
    tokens = quantizer.encode(latents)
    assert tokens.shape == (3, sum(side * side for side in scales))
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 625
    assert torch.allclose(quantizer.decode(tokens), quantizer.reconstruct(latents), atol=1e-5)


def test_the_first_scales_alone_decode_as_a_picture_whose_finer_scales_were_left_out(latents: torch.Tensor) -> None:
    quantizer = Quantizer(QuantizerConfig()).eval()
    tokens = quantizer.encode(latents)
    coarse = quantizer.reconstruct(latents, scales=torch.tensor([2, 2, 2]))
    assert torch.allclose(quantizer.decode(tokens[:, :5]), coarse, atol=1e-5)


@pytest.mark.parametrize("blocks", [(2, 2), (3, 2), (2, 4), (5, 3)])
def test_a_deeper_decoder_begins_with_the_drafts_of_the_weights_it_takes(
    latents: torch.Tensor, blocks: tuple[int, int]
) -> None:
    shallow, deep = Quantizer(QuantizerConfig()).eval(), Quantizer(QuantizerConfig(decoder_blocks=blocks)).eval()
    deep.take(shallow)
    tokens = shallow.encode(latents)
    assert torch.equal(deep.encode(latents), tokens)
    assert torch.equal(deep.decode(tokens), shallow.decode(tokens))
    assert sum(isinstance(layer, Block) for layer in deep.decoder) == sum(blocks)
    # What was added can learn: its last convolution, which is 0, gets a gradient.
    torch.autograd.backward(deep.decode(tokens).square().mean())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in last_convolutions(deep))


def last_convolutions(quantizer: Quantizer) -> list[torch.Tensor]:
    """The weights that end each residual block of the decoder."""
    return [layer.conv2.weight for layer in quantizer.decoder if isinstance(layer, Block)]


@pytest.mark.parametrize("blocks", [(1, 3), (3, 1)])
def test_a_shallower_decoder_takes_no_deeper_ones_weights(blocks: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"decoder_blocks.*\(2, 2\)"):
        Quantizer(QuantizerConfig(decoder_blocks=blocks)).take(Quantizer(QuantizerConfig()))


def test_what_the_prior_reads_at_a_scale_depends_on_coarser_tokens_only(latents: torch.Tensor) -> None:
    quantizer = Quantizer(QuantizerConfig()).eval()
    tokens = quantizer.encode(latents)
    other = tokens.clone()
    other[:, 5:21] = (other[:, 5:21] + 1) % 625
    before, after = quantizer.inputs(tokens), quantizer.inputs(other)
    assert torch.equal(before[:, :21], after[:, :21])
    assert not torch.equal(before[:, 21:], after[:, 21:])
    assert torch.equal(quantizer.inputs(tokens[:, :5]), before[:, :21])


def test_wrong_shapes_and_scales_are_refused(latents: torch.Tensor) -> None:
    quantizer = Quantizer(QuantizerConfig())
    with pytest.raises(ShapeMismatch, match="expected"):
        quantizer.encode(latents[:, :4])
    with pytest.raises(ShapeMismatch, match="whole scales"):
        quantizer.decode(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ConfigError, match="scales"):
        QuantizerConfig.from_dict({"scales": (4, 2)})
    with pytest.raises(ConfigError, match="3 or more"):
        QuantizerConfig.from_dict({"levels": (2, 5)})
    with pytest.raises(ConfigError, match="decoder_blocks"):
        QuantizerConfig.from_dict({"decoder_blocks": (-1, 2)})
