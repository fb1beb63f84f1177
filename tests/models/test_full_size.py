"""The published sizes, with random weights, against diffusers: the same tensors move from their network to ours."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import AutoencoderKL as DiffusersVAE
from diffusers import SD3Transformer2DModel, UNet2DConditionModel

from gouache.models.configs import MMDiTConfig, UNetConfig
from gouache.models.mmdit import MMDiT
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL, VAEConfig
from gouache.nn.layers import sinusoidal_embedding

if TYPE_CHECKING:
    from tests.models.conftest import Agreement

SDXL = UNetConfig(
    channels=(320, 640, 1280),
    transformer_layers=(0, 2, 10),
    middle_transformer_layers=10,
    heads=(5, 10, 20),
    context_width=2048,
    linear_projection=True,
    pooled_width=2816,
)


def moved(theirs: UNet2DConditionModel, config: UNetConfig) -> UNet:
    """Our network around their tensors, without a second copy."""
    with torch.device("meta"):
        ours = UNet(config)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    return ours.eval()


def diffusers_sdxl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ).eval()


def test_sdxl_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        theirs, ours = diffusers_sdxl(), UNet(SDXL)
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in ours.parameters()) == 2_567_463_684


@pytest.mark.slow
def test_stable_diffusion_1_at_full_size(agree: Agreement) -> None:
    theirs = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval()
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 859_520_964
    x, timestep, context = torch.randn(2, 4, 64, 64), torch.tensor([981.0, 1.0]), torch.randn(2, 77, 768)
    with torch.no_grad():
        expected = theirs(x, timestep, context).sample
        ours = moved(theirs, UNetConfig())
        del theirs
        agree(ours(x, timestep, context), expected)


@pytest.mark.slow
def test_sdxl_at_full_size(agree: Agreement) -> None:
    theirs = diffusers_sdxl()
    x, timestep, context = torch.randn(1, 4, 32, 32), torch.tensor([500.0]), torch.randn(1, 77, 2048)
    text, numbers = torch.randn(1, 1280), torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]])
    with torch.no_grad():
        expected = theirs(x, timestep, context, added_cond_kwargs={"text_embeds": text, "time_ids": numbers}).sample
        ours = moved(theirs, SDXL)
        del theirs
        pooled = torch.cat([text, sinusoidal_embedding(numbers, 256).flatten(1)], dim=1)
        agree(ours(x, timestep, context, pooled=pooled), expected)


SD3_MEDIUM = MMDiTConfig(grid=384, qk_norm=True, dual_layers=tuple(range(13)))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two billion random numbers take minutes by themselves
def test_stable_diffusion_3_5_medium_at_full_size(agree: Agreement) -> None:
    theirs = SD3Transformer2DModel(
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=384,
        dual_attention_layers=SD3_MEDIUM.dual_layers,
        qk_norm="rms_norm",
    ).eval()
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 2_243_171_520
    with torch.device("meta"):
        ours = MMDiT(SD3_MEDIUM)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    x, timestep = torch.randn(1, 16, 16, 16), torch.tensor([500.0])
    context, pooled = torch.randn(1, 77, 4096), torch.randn(1, 2048)
    with torch.no_grad():
        expected = theirs(x, context, pooled, timestep).sample
        del theirs
        agree(ours(x, timestep, context, pooled=pooled), expected)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # twenty trillion multiplications take minutes on a core
def test_stable_diffusion_3_5_medium_takes_a_step_at_1024_pixels_in_memory() -> None:
    """In float32, which every processor has: 9 GB of weights, 4,096 tokens of the picture and 333 of the text; half of
    the weights' memory in bfloat16."""
    with torch.device("meta"):
        ours = MMDiT(SD3_MEDIUM).eval()
    ours.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in ours.state_dict().values():
        # One row of random numbers for all rows of a matrix: two billion draws would take longer than the step.
        row = torch.randn(tensor.shape[-1], generator=generator) * 0.02 + (tensor.ndim == 1)
        tensor.copy_(row.expand(tensor.shape))
    x, context, pooled = torch.randn(1, 16, 128, 128), torch.randn(1, 333, 4096), torch.randn(1, 2048)
    with torch.no_grad():
        out = ours(x, torch.tensor([500.0]), context, pooled=pooled)
    assert out.shape == x.shape
    assert bool(torch.isfinite(out).all())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 12 * 2**20, "more than 12 GiB"


@pytest.mark.slow
def test_the_published_autoencoder_at_full_size(agree: Agreement) -> None:
    theirs = DiffusersVAE(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
    ).eval()
    ours = AutoencoderKL(VAEConfig()).eval()
    ours.load_state_dict(theirs.state_dict())
    image, latents = torch.rand(1, 3, 256, 256) * 2 - 1, torch.randn(1, 4, 32, 32)
    with torch.no_grad():
        agree(ours.encode(image).mean, theirs.encode(image).latent_dist.mean)
        agree(ours.decode(latents), theirs.decode(latents / 0.18215).sample)
