"""The autoencoder against diffusers' AutoencoderKL, its normalisation, its own layouts, and its tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import AutoencoderKL as DiffusersVAE
from torch import Tensor, nn

from gouache.errors import ConfigError, InvalidInput, ShapeMismatch
from gouache.models.configs import VAEConfig
from gouache.models.vae import AutoencoderKL, Moments

if TYPE_CHECKING:
    from tests.models.conftest import Agreement

SMALL: dict[str, Any] = {"channels": (16, 32, 32), "norm_groups": 8, "layers_per_level": 1}


def small(**changes: Any) -> AutoencoderKL:
    return AutoencoderKL(VAEConfig.from_dict(SMALL | changes)).eval()


def reference(config: VAEConfig) -> DiffusersVAE:
    levels = len(config.channels)
    return DiffusersVAE(
        in_channels=config.image_channels,
        out_channels=config.image_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_level,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        use_quant_conv=config.quant_conv,
        use_post_quant_conv=config.quant_conv,
        mid_block_add_attention=config.middle_attention,
    ).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers_per_level": 2, "image_channels": 4, "latent_channels": 8},
        {"quant_conv": False, "scale": 1.5305, "shift": 0.0609},
        {"middle_attention": False},
    ],
    ids=["sd1", "rgba", "no-quant-conv", "no-attention"],
)
def test_encode_and_decode_agree(changes: dict[str, Any], agree: Agreement) -> None:
    ours = small(**changes)
    theirs = reference(ours.config)
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(2, ours.config.image_channels, 32, 48) * 2 - 1
    latents = torch.randn(2, ours.config.latent_channels, 8, 12)
    scale, shift = ours.config.scale, ours.config.shift
    assert isinstance(scale, float)
    assert isinstance(shift, float)
    with torch.no_grad():
        moments, expected = ours.encode(image), theirs.encode(image).latent_dist
        agree(moments.mean, expected.mean)
        agree(moments.logvar, expected.logvar)
        agree(ours.normalise(moments.mode()), (expected.mode() - shift) * scale)
        agree(ours.decode(latents), theirs.decode(latents / scale + shift).sample)


def test_gradients_agree() -> None:
    ours = small()
    theirs = reference(ours.config)
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.autograd.backward(ours.decode(ours.normalise(ours.encode(image).mode())).square().mean())
    torch.autograd.backward(theirs.decode(theirs.encode(image).latent_dist.mode()).sample.square().mean())
    expected = dict(theirs.named_parameters())
    scale = max(p.grad.abs().max().item() for p in expected.values() if p.grad is not None)
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient"
        assert (parameter.grad - expected[key].grad).abs().max().item() <= 1e-4 * scale, f"gradient of {key} differs"


def test_normalise_and_denormalise_are_inverse_with_numbers_for_each_channel() -> None:
    vae = small(scale=(0.5, 1.0, 2.0, 4.0), shift=(0.0, 1.0, -1.0, 3.0))
    latents = torch.randn(2, 4, 3, 5)
    normal = vae.normalise(latents)
    torch.testing.assert_close(normal[:, 3], (latents[:, 3] - 3) * 4)
    torch.testing.assert_close(vae.denormalise(normal), latents)


def test_the_default_scale_is_the_published_one() -> None:
    assert VAEConfig().scale == 0.18215
    assert VAEConfig().downscale == 8


def test_moments_sample_and_kl_follow_the_gaussian() -> None:
    generator = torch.Generator().manual_seed(5)
    mean, logvar = torch.randn(2, 4, 2, 2, generator=generator), torch.randn(2, 4, 2, 2, generator=generator)
    moments = Moments(mean, logvar)
    noise = torch.randn(2, 4, 2, 2, generator=generator)
    std = logvar.exp().sqrt()
    torch.testing.assert_close(moments.sample(noise), mean + std * noise)
    ours = torch.distributions.Normal(mean, std)
    expected = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(moments.kl(), expected)


@pytest.mark.parametrize("patch", [2, 4])
def test_patches_fold_into_channels_and_back(patch: int) -> None:
    vae = small(image_channels=4, latent_channels=8, patch_size=patch, scale=1.0)
    assert vae.config.downscale == 4 * patch
    image = torch.rand(1, 4, 32, 64) * 2 - 1
    latents = vae.encode(image).mode()
    assert latents.shape == (1, 8, 32 // (4 * patch), 64 // (4 * patch))
    assert vae.decode(latents).shape == image.shape
    assert vae.encoder.conv_in.in_channels == vae.decoder.conv_out.out_channels == 4 * patch**2


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (torch.zeros(1, 1, 16, 16), "3, H, W"),
        (torch.zeros(1, 3, 16, 17), "multiples of 4"),
        (torch.zeros(3, 16, 16), "3, H, W"),
    ],
)
def test_a_picture_that_does_not_fit_is_refused(image: Tensor, expected: str) -> None:
    with pytest.raises(ShapeMismatch, match=expected):
        small().encode(image)


def test_latents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeMismatch, match="latents"):
        small().decode(torch.zeros(1, 8, 4, 4))


@pytest.mark.parametrize("changes", [{"scale": (1.0, 2.0)}, {"channels": (16, 33)}, {"patch_size": 0}])
def test_configs_that_can_not_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        VAEConfig.from_dict(SMALL | changes)


def largest_activation(vae: AutoencoderKL, run: str, x: Tensor, **tiles: int) -> tuple[Tensor, int]:
    """What a method gives, and the elements of the largest tensor that any layer put out on the way."""
    sizes: list[int] = []

    def note(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.append(output.numel())

    handles = [layer.register_forward_hook(note) for layer in vae.modules() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        result = getattr(vae, run)(x, **tiles)
    for handle in handles:
        handle.remove()
    return result.mean if isinstance(result, Moments) else result, max(sizes)


def largest_step(image: Tensor) -> float:
    """The largest difference of two neighbouring pixels, the picture's border apart."""
    inner = image[..., 16:-16, 16:-16]
    return max(inner.diff(dim=-1).abs().max().item(), inner.diff(dim=-2).abs().max().item())


def test_tiled_decoding_needs_less_memory_and_shows_no_seam() -> None:
    vae = small()
    y, x = torch.linspace(0, 3, 48)[:, None], torch.linspace(0, 4, 64)
    smooth = torch.stack([torch.sin(x + y), torch.cos(x - y), torch.sin(2 * x) + 0 * y, torch.cos(2 * y) + 0 * x])[None]
    whole, peak = largest_activation(vae, "decode", smooth)
    blended, tiled_peak = largest_activation(vae, "decode_in_tiles", smooth, size=24, overlap=12)
    hard, _ = largest_activation(vae, "decode_in_tiles", smooth, size=24, overlap=0)
    assert blended.shape == whole.shape
    assert tiled_peak * 5 < peak
    assert largest_step(hard) > 5 * largest_step(whole), "without overlap there are seams to be seen"
    assert largest_step(blended) < 1.1 * largest_step(whole), "with overlap no step is larger than the picture's own"


def test_tiled_encoding_needs_less_memory_and_stays_close() -> None:
    vae = small()
    image = torch.rand(1, 3, 128, 160) * 2 - 1
    whole, peak = largest_activation(vae, "encode", image)
    tiled, tiled_peak = largest_activation(vae, "encode_in_tiles", image, size=64, overlap=32)
    assert tiled_peak * 4 < peak
    assert (tiled - whole).std().item() < 0.1 * whole.std().item()


def test_one_tile_is_the_whole_bit_for_bit() -> None:
    vae = small()
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(vae.decode_in_tiles(latents), vae.decode(latents))


def test_tiles_off_the_grid_are_refused() -> None:
    with pytest.raises(InvalidInput, match="multiples of the downscale 4"):
        small().encode_in_tiles(torch.zeros(1, 3, 64, 64), size=30, overlap=8)
