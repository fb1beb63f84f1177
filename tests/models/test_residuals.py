"""Residual codes: k-means against an independent one, the code that stands for nothing, and what drafts share."""

from __future__ import annotations

import pytest
import torch

from gouache.errors import ConfigError, ShapeMismatch
from gouache.models.memory.residuals import ResidualCodes, shared
from gouache.models.quantizer import Quantizer, QuantizerConfig


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitted(count: int = 8, channels: int = 3) -> tuple[ResidualCodes, torch.Tensor]:
    vectors = torch.randn(500, channels, generator=seeded())
    codes = ResidualCodes(count, channels)
    codes.fit(vectors, seeded(1))
    return codes, vectors


def test_every_code_but_the_first_is_the_mean_of_what_is_nearest_to_it() -> None:
    """What Lloyd's rounds end at, found here by plain distances."""
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 7.0], [-6.0, -6.0]])
    vectors = torch.cat([centre + 0.1 * torch.randn(50, 2, generator=seeded(3)) for centre in centres])
    codes = ResidualCodes(4, 2)
    codes.fit(vectors, seeded(2))
    own = torch.cdist(vectors, codes.codes).argmin(1)
    for number in range(1, 4):
        assert (own == number).any()
        torch.testing.assert_close(codes.codes[number], vectors[own == number].mean(0), atol=1e-5, rtol=1e-5)
    assert codes.codes[0].tolist() == [0.0, 0.0]


def test_a_place_gets_the_number_of_the_nearest_code() -> None:
    codes, _ = fitted()
    residual = torch.randn(2, 3, 4, 4, generator=seeded(5))
    numbers = codes(residual)
    assert numbers.shape == (2, 16)
    assert numbers.dtype == torch.uint8
    expected = torch.cdist(residual.flatten(2).mT, codes.codes).argmin(2)
    assert torch.equal(numbers.long(), expected)
    back = codes.latents(numbers, 4)
    assert torch.equal(back[1, :, 2, 3], codes.codes[expected[1, 2 * 4 + 3]])


def test_more_codes_leave_less() -> None:
    left = []
    for count in (2, 8, 32):
        codes, vectors = fitted(count)
        grid = vectors[:484].mT.reshape(1, 3, 22, 22)
        left.append(float((grid - codes.latents(codes(grid), 22)).square().mean()))
    assert left[0] > 1.5 * left[1] > 2 * left[2]
    plain = float(vectors[:484].square().mean())
    assert left[0] < plain


def test_nothing_is_the_first_code() -> None:
    codes, _ = fitted()
    assert not codes(torch.zeros(1, 3, 4, 4)).any()
    assert not codes.latents(torch.zeros(1, 16, dtype=torch.uint8), 4).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda codes: codes(torch.zeros(1, 5, 4, 4)), "residual: given"),
        (lambda codes: codes.latents(torch.zeros(1, 9, dtype=torch.uint8), 4), "residuals: given"),
        (lambda codes: codes.fit(torch.zeros(7, 3), seeded()), "vectors: given"),
    ],
)
def test_other_shapes_are_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ShapeMismatch, match=message):
        call(ResidualCodes(8, 3))


def test_a_draft_takes_residuals_where_all_tokens_over_a_place_are_the_same() -> None:
    residuals = torch.arange(1, 17, dtype=torch.uint8)[None].repeat(3, 1)  # 4x4 places
    tokens = torch.zeros(3, 1 + 4, dtype=torch.long)
    other = tokens.clone()
    other[1, 2] = 7  # the upper right cell of the 2x2 scale
    other[2, 0] = 7  # the whole picture's
    found = shared(residuals, tokens, other, (1, 2)).view(3, 4, 4)
    assert torch.equal(found[0], residuals[0].view(4, 4))
    assert not found[1, :2, 2:].any()
    assert torch.equal(found[1, :2, :2], residuals[0].view(4, 4)[:2, :2])
    assert torch.equal(found[1, 2:], residuals[0].view(4, 4)[2:])
    assert not found[2].any()


@pytest.fixture
def quantizer() -> Quantizer:
    torch.manual_seed(0)
    return Quantizer(QuantizerConfig(residual_codes=64)).eval()


@torch.no_grad()
def test_a_pictures_own_draft_is_its_tokens_draft_and_the_nearest_codes(quantizer: Quantizer) -> None:
    latents = torch.randn(4, 8, 16, 16, generator=seeded(7))
    tokens = quantizer.encode(latents)
    plain = quantizer.decode(tokens)
    assert quantizer.residual is not None
    assert torch.equal(quantizer.draft_of(latents), plain)  # before they are fitted all codes are zero
    quantizer.residual.fit((latents - plain).flatten(2).mT.flatten(0, 1), seeded())
    residuals = quantizer.residuals(latents, tokens)
    assert residuals is not None
    assert torch.equal(quantizer.draft_of(latents), quantizer.decode(tokens, residuals))
    assert torch.equal(quantizer.decode(tokens, residuals * 0), plain)
    error, before = ((draft - latents).square().mean() for draft in (quantizer.draft_of(latents), plain))
    assert error < 0.6 * before


def test_a_quantizer_without_codes_has_no_residuals() -> None:
    plain = Quantizer(QuantizerConfig()).eval()
    latents = torch.randn(1, 8, 16, 16, generator=seeded())
    tokens = plain.encode(latents)
    assert plain.residuals(latents, tokens) is None
    assert torch.equal(plain.draft_of(latents), plain.decode(tokens))
    assert not [name for name in plain.state_dict() if "residual" in name]


@pytest.mark.parametrize("count", [-1, 257])
def test_codes_are_numbered_by_a_byte(count: int) -> None:
    with pytest.raises((ConfigError, ValueError), match="residual_codes"):
        QuantizerConfig(residual_codes=count)
