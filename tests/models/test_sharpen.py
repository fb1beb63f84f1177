"""Edges made narrower: what stays, what gets steeper, and by how much."""

from __future__ import annotations

import pytest
import torch

from gouache.models.configs import VAEConfig
from gouache.models.vae import AutoencoderKL
from gouache.nn.sharpen import narrow_edges


def step(width: float, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
    """A vertical edge in the middle of 32 columns, blurred by a Gaussian of this deviation. [1,1,16,32]"""
    places = torch.arange(32) - 15.5
    edge: torch.Tensor = low + (high - low) * torch.special.ndtr(places / width)
    return edge.float().expand(1, 1, 16, 32)


def steepness(picture: torch.Tensor) -> float:
    return float((picture[..., 1:] - picture[..., :-1]).abs().max())


@pytest.mark.parametrize("width", [1.0, 1.5, 2.0])
def test_a_blurred_edge_gets_narrower_stays_in_its_place_and_overshoots_nowhere(width: float) -> None:
    blurred = step(width)
    sharp = narrow_edges(blurred, 1.0)
    assert steepness(sharp) > 1.3 * steepness(blurred)
    assert float(sharp.abs().max()) < 1.05
    torch.testing.assert_close(sharp, -sharp.flip(3), atol=1e-4, rtol=0)
    assert steepness(narrow_edges(blurred, 0.4)) < steepness(sharp)


def test_what_is_flat_or_evenly_shaded_stays() -> None:
    flat = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(narrow_edges(flat, 1.0), flat)
    ramp = torch.linspace(-0.3, 0.3, 32).expand(1, 1, 16, 32)
    torch.testing.assert_close(narrow_edges(ramp, 1.0)[..., 6:-6], ramp[..., 6:-6], atol=2e-3, rtol=0)


def test_all_channels_move_together() -> None:
    """Two colours and their alpha, which have the edge in one place: each pixel stays a mixture of the two sides."""
    share = (step(1.5) + 1) / 2
    left, right = torch.tensor([0.9, -0.5, 0.1, -1.0]), torch.tensor([-0.8, 0.4, 0.1, 1.0])
    picture = left.view(1, 4, 1, 1) * (1 - share) + right.view(1, 4, 1, 1) * share
    sharp = narrow_edges(picture, 1.0)
    found = (sharp[:, 3:] + 1) / 2
    expected = left.view(1, 4, 1, 1) * (1 - found) + right.view(1, 4, 1, 1) * found
    torch.testing.assert_close(sharp, expected, atol=1e-4, rtol=0)


def test_the_decoder_does_it_where_its_sizes_say_so() -> None:
    sizes = VAEConfig(image_channels=4, latent_channels=2, channels=(8, 8), layers_per_level=1, norm_groups=4)
    plain, latents = AutoencoderKL(sizes).eval(), torch.randn(2, 2, 8, 8)
    sharp = AutoencoderKL(sizes.model_copy(update={"narrow_edges": 1.0})).eval()
    sharp.load_state_dict(plain.state_dict())
    with torch.no_grad():
        decoded = plain.decode(latents)
        assert torch.equal(sharp.decode(latents), narrow_edges(decoded, 1.0))
        assert not torch.equal(sharp.decode(latents), decoded)
        assert torch.equal(narrow_edges(decoded, 0.0), decoded)
        half = narrow_edges(decoded.half(), 1.0)
    assert half.dtype == torch.float16
