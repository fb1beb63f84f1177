"""The U-Net against diffusers' UNet2DConditionModel: random weights of every family, forward and gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from gouache.models.configs import UNetConfig
from gouache.models.unet import UNet
from gouache.nn.layers import channels_last, sinusoidal_embedding

if TYPE_CHECKING:
    from tests.models.conftest import Agreement

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UP = {CROSS: "CrossAttnUpBlock2D", PLAIN: "UpBlock2D"}
SIZE_NUMBERS, NUMBER_WIDTH, POOLED_TEXT = 6, 8, 24


@dataclass(frozen=True)
class Family:
    """One published shape, made small, in their words and in ours."""

    down: tuple[str, ...]
    ours: UNetConfig
    theirs: dict[str, Any] = field(default_factory=dict)

    def reference(self) -> UNet2DConditionModel:
        config = self.ours
        return UNet2DConditionModel(
            sample_size=16,
            in_channels=config.in_channels + config.draft_channels,
            out_channels=config.out_channels,
            block_out_channels=config.channels,
            down_block_types=self.down,
            up_block_types=tuple(UP[block] for block in reversed(self.down)),
            layers_per_block=config.layers_per_level,
            cross_attention_dim=config.context_width,
            attention_head_dim=config.heads,
            norm_num_groups=config.norm_groups,
            use_linear_projection=config.linear_projection,
            **self.theirs,
        ).eval()


def small(**changes: Any) -> UNetConfig:
    base: dict[str, Any] = {
        "channels": (32, 32, 64, 64),
        "transformer_layers": (1, 1, 1, 0),
        "heads": (2, 2, 2, 2),
        "context_width": 24,
        "norm_groups": 8,
    }
    return UNetConfig.from_dict(base | changes)


SD1 = (CROSS, CROSS, CROSS, PLAIN)
SDXL_EMBEDDING = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": NUMBER_WIDTH,
    "projection_class_embeddings_input_dim": POOLED_TEXT + SIZE_NUMBERS * NUMBER_WIDTH,
}
SDXL_POOLED = POOLED_TEXT + SIZE_NUMBERS * NUMBER_WIDTH
FAMILIES = {
    "sd1": Family(SD1, small()),
    "sd2": Family(SD1, small(heads=(2, 4, 8, 8), linear_projection=True)),
    "sdxl": Family(
        (PLAIN, CROSS, CROSS),
        small(
            channels=(32, 32, 64),
            transformer_layers=(0, 2, 3),
            middle_transformer_layers=3,
            heads=(2, 4, 8),
            linear_projection=True,
            pooled_width=SDXL_POOLED,
        ),
        {"transformer_layers_per_block": (1, 2, 3), **SDXL_EMBEDDING},
    ),
    "sdxl-refiner": Family(
        (PLAIN, CROSS, CROSS, PLAIN),
        small(
            transformer_layers=(0, 2, 2, 0),
            middle_transformer_layers=2,
            linear_projection=True,
            pooled_width=SDXL_POOLED,
        ),
        {"transformer_layers_per_block": 2, **SDXL_EMBEDDING},
    ),
    "reduced": Family(
        (PLAIN, CROSS, CROSS),
        small(
            channels=(32, 32, 64),
            transformer_layers=(0, 2, 4),
            up_transformer_layers=((4, 4, 1), (2, 1, 1), (0, 0, 0)),
            middle_layers=0,
            heads=(2, 4, 8),
            linear_projection=True,
            pooled_width=SDXL_POOLED,
        ),
        {
            "transformer_layers_per_block": (0, 2, 4),
            "reverse_transformer_layers_per_block": [[4, 4, 1], [2, 1, 1], 1],
            "mid_block_type": None,
            **SDXL_EMBEDDING,
        },
    ),
    "one-layer": Family(SD1, small(layers_per_level=1)),
    "inpainting": Family(SD1, small(draft_channels=5)),
    "instruct": Family(SD1, small(draft_channels=4)),
    "depth": Family(SD1, small(draft_channels=1)),
    "learned-variance": Family(SD1, small(out_channels=8)),
}


@dataclass(frozen=True)
class Inputs:
    x: Tensor
    timestep: Tensor
    context: Tensor
    draft: Tensor | None
    text: Tensor | None
    numbers: Tensor | None

    @classmethod
    def of(cls, config: UNetConfig, height: int = 16, width: int = 16) -> Inputs:
        return cls(
            x=torch.randn(2, config.in_channels, height, width),
            timestep=torch.tensor([981.0, 3.25]),
            context=torch.randn(2, 7, config.context_width),
            draft=torch.randn(2, config.draft_channels, height, width) if config.draft_channels else None,
            text=torch.randn(2, POOLED_TEXT) if config.pooled_width else None,
            numbers=torch.randint(0, 1024, (2, SIZE_NUMBERS)).float() if config.pooled_width else None,
        )

    def ours(self, unet: UNet) -> Tensor:
        out: Tensor = unet(self.x, self.timestep, self.context, pooled=self.pooled(), draft=self.draft)
        return out

    def pooled(self) -> Tensor | None:
        if self.text is None or self.numbers is None:
            return None
        return torch.cat([self.text, sinusoidal_embedding(self.numbers, NUMBER_WIDTH).flatten(1)], dim=1)

    def theirs(self, unet: UNet2DConditionModel) -> Tensor:
        x = self.x if self.draft is None else torch.cat([self.x, self.draft], dim=1)
        added = None if self.text is None else {"text_embeds": self.text, "time_ids": self.numbers}
        out: Tensor = unet(x, self.timestep, self.context, added_cond_kwargs=added).sample
        return out


def pair(family: Family) -> tuple[UNet, UNet2DConditionModel]:
    """The same random weights in both; loading is strict, so every name and shape agrees."""
    theirs, ours = family.reference(), UNet(family.ours)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", FAMILIES)
def test_forward_agrees_with_and_without_gradients(name: str, agree: Agreement) -> None:
    ours, theirs = pair(FAMILIES[name])
    inputs = Inputs.of(ours.config)
    with torch.no_grad():
        expected = inputs.theirs(theirs)
        agree(inputs.ours(ours), expected)
    agree(inputs.ours(ours).detach(), expected)


@pytest.mark.every_time("False-sd1", "True-sdxl")
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_agree(name: str, checkpointing: bool) -> None:
    ours, theirs = pair(FAMILIES[name])
    ours.set_gradient_checkpointing(checkpointing)
    inputs = Inputs.of(ours.config)
    target = torch.randn(2, ours.config.out_channels, 16, 16)
    for output in (inputs.ours(ours.train()), inputs.theirs(theirs.train())):
        torch.autograd.backward((output - target).square().mean())
    expected = dict(theirs.named_parameters())
    worst = max(gradient.abs().max().item() for gradient in (p.grad for p in expected.values()) if gradient is not None)
    for key, parameter in ours.named_parameters():
        reference = expected[key].grad
        assert parameter.grad is not None, f"{key} has no gradient"
        assert reference is not None, f"{key} has no gradient in the reference"
        # A tensor whose gradient is next to nothing is rounding alone, so the network's largest counts too.
        bound = 1e-4 * max(reference.std(correction=0).item(), 1e-3 * worst)
        assert (parameter.grad - reference).abs().max().item() <= bound, f"gradient of {key} differs"


@pytest.mark.parametrize("size", [(10, 14), (9, 7)])
def test_sizes_that_do_not_halve_evenly_agree(size: tuple[int, int], agree: Agreement) -> None:
    ours, theirs = pair(FAMILIES["sd1"])
    inputs = Inputs.of(ours.config, *size)
    with torch.no_grad():
        agree(inputs.ours(ours), inputs.theirs(theirs))


def test_channels_last_agrees(agree: Agreement) -> None:
    ours, theirs = pair(FAMILIES["sd2"])
    inputs = Inputs.of(ours.config)
    with torch.no_grad():
        expected = inputs.theirs(theirs)
        agree(inputs.ours(channels_last(ours)), expected)


def test_a_masked_context_agrees_and_hides_its_tokens(agree: Agreement) -> None:
    ours, theirs = pair(FAMILIES["sd1"])
    inputs = Inputs.of(ours.config)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    with torch.no_grad():
        expected = theirs(inputs.x, inputs.timestep, inputs.context, encoder_attention_mask=mask).sample
        agree(ours(inputs.x, inputs.timestep, inputs.context, context_mask=mask), expected)
        changed = inputs.context.masked_fill(~mask[..., None], 100.0)
        agree(ours(inputs.x, inputs.timestep, changed, context_mask=mask), expected)
