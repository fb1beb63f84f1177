"""U-Nets whose config speaks block by block, as diffusers writes them.

The kind: an option that diffusers takes as one value or as a list, and options that repeat a default. The judge is
diffusers' own network with the same random weights; what changes the mathematics in another way is refused by its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from gouache.checkpoints.load import load_bundle
from gouache.errors import IncompatibleCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
Published = Callable[[str], Path]
PLAIN: dict[str, Any] = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "sample_size": 8,
}


def with_options(published: Path, folder: Path, **options: Any) -> tuple[Path, UNet2DConditionModel]:
    """The published folder with another U-Net."""
    shutil.copytree(published, folder, ignore=shutil.ignore_patterns("unet"))
    network = UNet2DConditionModel(**{**PLAIN, **options}).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = max(parameter[0].numel(), 1) ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    network.save_pretrained(folder / "unet")
    return folder, network


SAME: dict[str, dict[str, Any]] = {
    "one value each": {},
    "only_cross_attention for each block": {"only_cross_attention": [False, False, False]},
    "only_cross_attention in some blocks": {"only_cross_attention": [True, True, False]},
    "heads for each block": {"attention_head_dim": [2, 4, 8]},
    "depth for each block": {"transformer_layers_per_block": [2, 1, 1]},
    "depth for each layer": {
        "transformer_layers_per_block": [[1], [2], [1]],
        "reverse_transformer_layers_per_block": [[1, 1], [2, 1], [1, 1]],
    },
    "layers for each block": {"layers_per_block": [1, 1, 1]},
    "context for each block": {"cross_attention_dim": [32, 32, 32]},
    "a size of two sides": {"sample_size": [16, 8]},
    "time embedding said": {"time_embedding_dim": 128},
    "linear projections": {"use_linear_projection": True},
    "no middle": {"mid_block_type": None},
    "other groups": {"norm_num_groups": 16},
    "upcast attention": {"upcast_attention": True},
    "all defaults said": {
        "dual_cross_attention": False,
        "resnet_time_scale_shift": "default",
        "mid_block_scale_factor": 1.0,
        "resnet_out_scale_factor": 1,
        "act_fn": "swish",
        "class_embeddings_concat": False,
    },
}


@pytest.mark.parametrize("name", SAME)
def test_a_config_that_speaks_block_by_block_is_the_same_network(
    published: Published, tmp_path: Path, name: str
) -> None:
    folder, theirs = with_options(published("sd1"), tmp_path / "model", **SAME[name])
    bundle = load_bundle(folder)
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 32, generator=generator)
    time = torch.tensor([3.0, 700.0])
    with torch.no_grad():
        wanted = theirs(x, time, context).sample
        found = bundle.unet(x, time, context)
    assert torch.allclose(found, wanted, atol=2e-5 * float(wanted.abs().max())), float((found - wanted).abs().max())
    if name == "a size of two sides":
        factor = bundle.vae.config.downscale
        assert (bundle.defaults.height, bundle.defaults.width) == (16 * factor, 8 * factor)


REFUSED: dict[str, dict[str, Any]] = {
    "mid_block_only_cross_attention": {"mid_block_only_cross_attention": True},
    "time_embedding_dim": {"time_embedding_dim": 64},
    "resnet_time_scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "center_input_sample": {"center_input_sample": True},
    "act_fn": {"act_fn": "gelu"},
    "time_embedding_type": {"time_embedding_type": "fourier"},
    "conv_in_kernel": {"conv_in_kernel": 5},
    "flip_sin_to_cos": {"flip_sin_to_cos": False},
    "resnet_out_scale_factor": {"resnet_out_scale_factor": 2.0},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_the_network_is_refused_by_its_name(published: Published, tmp_path: Path, name: str) -> None:
    folder, _ = with_options(published("sd1"), tmp_path / "model", **REFUSED[name])
    with pytest.raises(IncompatibleCheckpoint, match=rf"given {name} = "):
        load_bundle(folder)
