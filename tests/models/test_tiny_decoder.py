"""The tiny autoencoder against diffusers' AutoencoderTiny, and the exactness of its tiles."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import AutoencoderTiny as DiffusersTiny

from gouache.errors import ConfigError, ShapeMismatch
from gouache.models.configs import TinyVAEConfig
from gouache.models.tiny_decoder import AutoencoderTiny
from gouache.nn.tiling import Tiles, in_tiles

if TYPE_CHECKING:
    from tests.models.conftest import Agreement


def test_the_published_layout_agrees(agree: Agreement) -> None:
    theirs, ours = DiffusersTiny().eval(), AutoencoderTiny(TinyVAEConfig()).eval()
    ours.load_state_dict(theirs.state_dict())
    image, latents = torch.rand(1, 3, 64, 48) * 2 - 1, 2 * torch.randn(1, 4, 8, 6)
    with torch.no_grad():
        agree(ours.encode(image), theirs.encode(image).latents)
        agree(ours.decode(latents), theirs.decode(latents).sample)


def test_tiles_equal_the_whole_where_the_overlap_covers_what_a_pixel_sees() -> None:
    tiny = AutoencoderTiny(TinyVAEConfig(channels=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1))).eval()
    latents = torch.randn(1, 4, 70, 50)
    with torch.no_grad():
        whole = tiny.decode(latents)
        # A pixel sees 1 + 3 latents at the coarse level and (1 + 3 + 1) / 2 more behind the upsampling: less than 7.
        tiled = in_tiles(tiny.decode, latents, Tiles(64, 28), Fraction(2))
        starved = in_tiles(tiny.decode, latents, Tiles(16, 4), Fraction(2))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-6)
    assert (starved - whole).abs().max() > 1e-4


def test_what_does_not_fit_is_refused() -> None:
    tiny = AutoencoderTiny(TinyVAEConfig(channels=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1)))
    with pytest.raises(ShapeMismatch, match="multiples of 2"):
        tiny.encode(torch.zeros(1, 3, 9, 8))
    with pytest.raises(ShapeMismatch, match="latents"):
        tiny.decode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match="as many as encoder_blocks"):
        TinyVAEConfig.from_dict({"encoder_blocks": (1, 1, 1), "decoder_blocks": (1, 1)})
