"""ControlNet against diffusers' ControlNetModel: random weights of every family, alone and several at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from gouache.errors import ShapeMismatch
from gouache.models.conditioning.controlnet import ControlNet, ControlNetConfig
from gouache.models.configs import UNetConfig
from gouache.models.unet import Residuals, UNet
from gouache.nn.layers import sinusoidal_embedding

if TYPE_CHECKING:
    from tests.models.conftest import Agreement

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UP = {CROSS: "CrossAttnUpBlock2D", PLAIN: "UpBlock2D"}
POOLED, NUMBERS, NUMBER_WIDTH = 24, 6, 8
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": NUMBER_WIDTH,
    "projection_class_embeddings_input_dim": POOLED + NUMBERS * NUMBER_WIDTH,
}
HINTS = (4, 8, 12, 16)


@dataclass(frozen=True)
class Family:
    """A published shape, made small: its levels, our config, and what diffusers calls the rest."""

    down: tuple[str, ...]
    ours: UNetConfig
    theirs: dict[str, Any] = field(default_factory=dict)
    control: dict[str, Any] = field(default_factory=dict)


def config(**changes: Any) -> UNetConfig:
    base = {
        "channels": (16, 32, 32),
        "layers_per_level": 2,
        "transformer_layers": (1, 1, 0),
        "heads": (2, 2, 2),
        "context_width": 24,
        "norm_groups": 8,
    }
    return UNetConfig.from_dict({**base, **changes})


XL_OURS = {"pooled_width": POOLED + NUMBERS * NUMBER_WIDTH, "linear_projection": True, "heads": (2, 2, 4)}
FAMILIES = {
    "sd1": Family((CROSS, CROSS, PLAIN), config()),
    "sd2": Family((CROSS, CROSS, PLAIN), config(linear_projection=True, heads=(1, 2, 4))),
    "sdxl": Family(
        (PLAIN, CROSS, CROSS),
        config(transformer_layers=(0, 1, 2), middle_transformer_layers=2, **XL_OURS),
        {"transformer_layers_per_block": (1, 1, 2), **XL},
    ),
    "sdxl-small": Family(
        (PLAIN, PLAIN, PLAIN),
        config(transformer_layers=(0, 0, 0), middle_layers=1, middle_transformer_layers=0, **XL_OURS),
        XL,
        {"mid_block_type": "UNetMidBlock2D"},
    ),
    "bgr": Family((CROSS, CROSS, PLAIN), config(), {}, {"controlnet_conditioning_channel_order": "bgr"}),
    "pooled": Family((CROSS, CROSS, PLAIN), config(), {}, {"global_pool_conditions": True}),
}


def scrambled(network: nn.Module, seed: int) -> nn.Module:
    """Zero convolutions would hide everything behind them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return network.eval()


def reference(family: Family, seed: int) -> ControlNetModel:
    unet = family.ours
    made = ControlNetModel(
        block_out_channels=unet.channels,
        down_block_types=family.down,
        layers_per_block=unet.layers_per_level,
        cross_attention_dim=unet.context_width,
        attention_head_dim=unet.heads,
        norm_num_groups=unet.norm_groups,
        use_linear_projection=unet.linear_projection,
        conditioning_embedding_out_channels=HINTS,
        **family.theirs,
        **family.control,
    )
    scrambled(made, seed)
    return made


def ours_of(family: Family, theirs: ControlNetModel) -> ControlNet:
    """The same weights; loading is strict, so every name and shape agrees."""
    order = family.control.get("controlnet_conditioning_channel_order", "rgb")
    pooled = family.control.get("global_pool_conditions", False)
    made = ControlNet(ControlNetConfig(unet=family.ours, hint_widths=HINTS, hint_order=order, pooled_residuals=pooled))
    made.load_state_dict(theirs.state_dict())
    return made.eval()


class Inputs:
    """One batch of two rows."""

    def __init__(self, unet: UNetConfig) -> None:
        self.x = torch.randn(2, 4, 8, 12)
        self.t = torch.tensor([981.0, 3.25])
        self.context = torch.randn(2, 7, unet.context_width)
        self.text = torch.randn(2, POOLED) if unet.pooled_width else None
        self.numbers = torch.randint(0, 1024, (2, NUMBERS)).float() if unet.pooled_width else None

    @property
    def added(self) -> dict[str, Tensor | None] | None:
        return None if self.text is None else {"text_embeds": self.text, "time_ids": self.numbers}

    @property
    def pooled(self) -> Tensor | None:
        if self.text is None or self.numbers is None:
            return None
        return torch.cat([self.text, sinusoidal_embedding(self.numbers, NUMBER_WIDTH).flatten(1)], dim=1)

    def ours(self, control: ControlNet, hint: Tensor, *, guess: bool = False) -> Residuals:
        found: Residuals = control(self.x, self.t, self.context, control.embed(hint), pooled=self.pooled, guess=guess)
        return found


@torch.no_grad()
@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_residual_agrees(name: str, guess: bool, agree: Agreement) -> None:
    family = FAMILIES[name]
    theirs = reference(family, 1)
    given, hint = Inputs(family.ours), torch.rand(2, 3, 64, 96)
    skips, middle = theirs(
        given.x, given.t, given.context, hint, added_cond_kwargs=given.added, guess_mode=guess, return_dict=False
    )
    found = given.ours(ours_of(family, theirs), hint, guess=guess)
    assert len(found.skips) == len(skips)
    for our_skip, their_skip in zip(found.skips, skips, strict=True):
        agree(our_skip, their_skip, 1e-4)
    assert found.middle is not None
    agree(found.middle, middle, 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd1", "sdxl", "pooled"])
def test_a_unet_steered_by_two_networks_agrees(name: str, agree: Agreement) -> None:
    family = FAMILIES[name]
    unet = family.ours
    theirs_unet = UNet2DConditionModel(
        block_out_channels=unet.channels,
        down_block_types=family.down,
        layers_per_block=unet.layers_per_level,
        up_block_types=tuple(UP[block] for block in reversed(family.down)),
        cross_attention_dim=unet.context_width,
        attention_head_dim=unet.heads,
        norm_num_groups=unet.norm_groups,
        use_linear_projection=unet.linear_projection,
        **family.theirs,
    )
    scrambled(theirs_unet, 7)
    ours_unet = UNet(unet)
    ours_unet.load_state_dict(theirs_unet.state_dict())
    given = Inputs(unet)
    skips, middle, ours = None, None, None
    for seed, weight in ((1, 0.6), (2, 1.3)):
        theirs, hint = reference(family, seed), torch.rand(2, 3, 64, 96)
        more, more_middle = theirs(
            given.x, given.t, given.context, hint, weight, added_cond_kwargs=given.added, return_dict=False
        )
        skips = more if skips is None else [a + b for a, b in zip(skips, more, strict=True)]
        middle = more_middle if middle is None else middle + more_middle
        one = given.ours(ours_of(family, theirs), hint).scaled(torch.full((2,), weight))
        ours = one if ours is None else ours + one
    wanted = theirs_unet(
        given.x,
        given.t,
        given.context,
        added_cond_kwargs=given.added,
        down_block_additional_residuals=skips,
        mid_block_additional_residual=middle,
    ).sample
    found = ours_unet(given.x, given.t, given.context, pooled=given.pooled, residuals=ours)
    plain = ours_unet(given.x, given.t, given.context, pooled=given.pooled)
    agree(found, wanted, 1e-4)
    assert (found - plain).abs().max() > 0.05 * wanted.std()


@torch.no_grad()
def test_a_hint_of_another_size_is_refused() -> None:
    family = FAMILIES["sd1"]
    control = ControlNet(ControlNetConfig(unet=family.ours, hint_widths=HINTS))
    with pytest.raises(ShapeMismatch, match="control picture"):
        Inputs(family.ours).ours(control, torch.rand(2, 3, 32, 32))
