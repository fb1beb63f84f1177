"""U-Nets with fewer blocks than the published ones: counted from names, written back, and painted as diffusers does.

The kind: reduced networks (SSD-1B, Segmind Vega, KOALA, small-sd, tiny-sd), whose transformers are of several depths
within a level, whose middle lacks its transformer or is missing. Judge: diffusers' own network over the same weights.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from gouache.checkpoints.detect import family_of
from gouache.checkpoints.diffusers.component_config import unet_from_json
from gouache.checkpoints.diffusers.write import unet_json
from gouache.checkpoints.keymaps import speller
from gouache.checkpoints.shapes import unet_config
from gouache.errors import ConfigError, UnknownFamily
from gouache.models.configs import UNetConfig
from gouache.models.unet import UNet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
DOWN, UP, NO_DOWN, NO_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "DownBlock2D", "UpBlock2D"
SDXL: dict[str, Any] = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": (NO_DOWN, DOWN, DOWN),
    "up_block_types": (UP, UP, NO_UP),
    "layers_per_block": 2,
    "cross_attention_dim": 48,
    "use_linear_projection": True,
    "attention_head_dim": (1, 1, 1),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 24 + 6 * 256,
}
SD1: dict[str, Any] = {
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": (DOWN, DOWN, DOWN, NO_DOWN),
    "up_block_types": (NO_UP, UP, UP, UP),
    "layers_per_block": 1,
    "cross_attention_dim": 48,
    "attention_head_dim": 8,
}
THREE: dict[str, Any] = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": (DOWN, DOWN, DOWN),
    "up_block_types": (UP, UP, UP),
}
DEPTHS, UP_DEPTHS = "transformer_layers_per_block", "reverse_transformer_layers_per_block"
PRUNED: dict[str, dict[str, Any]] = {
    "SSD-1B": SDXL | {DEPTHS: [1, 2, 4], UP_DEPTHS: [[4, 4, 10], [2, 1, 1], 1], "mid_block_type": "UNetMidBlock2D"},
    "Vega": SDXL | {DEPTHS: [1, 1, 2], UP_DEPTHS: [[2, 2, 2], [1, 1, 1], 1], "mid_block_type": "UNetMidBlock2D"},
    "KOALA-700M": SDXL | {"layers_per_block": 1, DEPTHS: [1, 2, 5], "mid_block_type": None},
    "KOALA-1B": SDXL | {"layers_per_block": 1, DEPTHS: [1, 2, 6]},
    "small-sd": SD1,
    "tiny-sd": SD1 | THREE | {"mid_block_type": None},
    "uneven on the way down": SDXL | {DEPTHS: [1, [2, 1], [3, 2]], UP_DEPTHS: [[2, 3, 1], [2, 1, 1], 1]},
    "uneven everywhere, SD 1.x": SD1
    | {"layers_per_block": 2, DEPTHS: [[1, 2], [1, 1], [2, 1], 1], UP_DEPTHS: [1, [1, 1, 2], [2, 1, 1], [1, 2, 1]]},
    "even down, uneven up": SDXL | {DEPTHS: [1, 2, 3], UP_DEPTHS: [[3, 2, 1], [2, 2, 1], 1]},
    "uneven down, even up": SDXL | {DEPTHS: [1, [1, 2], [2, 1]], UP_DEPTHS: [[2, 2, 2], [1, 1, 1], 1]},
}


def theirs(**options: Any) -> Any:
    network = UNet2DConditionModel(sample_size=8, **options).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return network


QUICK = ("SSD-1B", "KOALA-700M", "tiny-sd", "uneven everywhere, SD 1.x")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else (pytest.mark.slow,)) for name in PRUNED]
)
def test_a_pruned_network_is_diffusers_in_both_layouts(name: str) -> None:
    judge = theirs(**PRUNED[name])
    state = judge.state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    counted = unet_config(shapes, "ours", "here")
    config = unet_from_json(json.loads(json.dumps(dict(judge.config))), counted, "here")
    assert config == counted, "a single file has no config: heads and groups follow from the family's rules"
    spell = speller(config, "ldm")
    assert unet_config({spell(key).name: shape for key, shape in shapes.items()}, "ldm", "here") == config
    assert family_of(config, {}) == ("sdxl" if config.pooled_width else "sd1")
    again = UNet2DConditionModel.from_config(unet_json(config, 8, "here"))
    assert {key: tuple(tensor.shape) for key, tensor in again.state_dict().items()} == shapes
    ours = UNet(UNetConfig.from_json(config.to_json(), where="here")).eval()
    ours.load_state_dict(state)
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 48, generator=generator)
    text, numbers = torch.randn(1, 24, generator=generator), torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    added = {"text_embeds": text, "time_ids": numbers} if config.pooled_width else None
    pooled = None if added is None else torch.cat([text, judge.add_time_proj(numbers.flatten()).reshape(1, -1)], 1)
    with torch.no_grad():
        wanted = judge(x, 431.0, encoder_hidden_states=context, added_cond_kwargs=added).sample
        found = ours(x, torch.tensor(431.0), context, pooled=pooled)
    assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def test_what_cannot_be_counted_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="down_transformer_layers"):
        UNetConfig.from_dict({"down_transformer_layers": ((1, 1), (2, 1), (1, 1), (0, 0))}, where="here")
    with pytest.raises(ConfigError, match="down_transformer_layers"):
        UNetConfig.from_dict({"down_transformer_layers": ((1,), (1,), (1,), (0,))}, where="here")
    shapes = {key: tuple(tensor.shape) for key, tensor in theirs(**SD1 | {"layers_per_block": 2}).state_dict().items()}
    half = {key: shape for key, shape in shapes.items() if not key.startswith("down_blocks.0.attentions.1.transformer")}
    with pytest.raises(UnknownFamily, match="transformers behind all of its blocks or none"):
        unet_config(half, "ours", "here")
