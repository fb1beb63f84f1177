"""Weakened passes of a network, as guiders need them: which transformer blocks do otherwise, and for which rows.

A pass that sees less than the network can (Ahn et al. 2024, arXiv:2403.17377; skip-layer guidance of Stable Diffusion
3.5, 2024) is one more row of the batch: its picture costs no call of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gouache.errors import InvalidInput, unknown_name
from gouache.models.conditioning.controlnet import ControlBody
from gouache.models.conditioning.ip_adapter import Seen
from gouache.models.mmdit import MMDiT
from gouache.models.unet import UNet
from gouache.nn.attention import Areas, RowChanges, TransformerBlock
from gouache.nn.joint import JointBlock
from gouache.nn.token_merging import TokenMerging

PARTS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
"""Short names of a U-Net's parts."""
MIDDLE = (7 / 24, 10 / 24)
"""The share of an MMDiT's blocks that `mid` means: 7 to 9 of the 24 of 3.5 medium, whose published skip-layer guidance
leaves them out."""


@dataclass(frozen=True, slots=True)
class Perturbation:
    """What a row of a batch does otherwise.

    Attributes:
        identity: blocks whose self-attention sees nothing but its own place.
        skipped: blocks that are left out.
    """

    identity: frozenset[str] = frozenset()
    skipped: frozenset[str] = frozenset()


@dataclass(slots=True)
class AttentionRecord:
    """Collects the self-attention of one block: how much each place gets, for each row of each call.

    Attributes:
        block: its name.
        found: one tensor for each call of the network. [rows, places]
    """

    block: str
    found: list[Tensor] = field(default_factory=list)


def transformer_blocks(unet: UNet | MMDiT | ControlBody) -> dict[str, TransformerBlock | JointBlock]:
    """Every transformer block by its name: `mid_block.attentions.0.transformer_blocks.0`, or `transformer_blocks.7`."""
    return {name: part for name, part in unet.named_modules() if isinstance(part, TransformerBlock | JointBlock)}


def blocks_named(unet: UNet | MMDiT, layers: Sequence[str], where: str) -> frozenset[str]:
    """The transformer blocks that are meant.

    Args:
        unet: the network.
        layers: `down`, `mid`, `up`, or the beginning of a block's name up to any of its dots: `up_blocks.1`. Of an
            MMDiT `mid` or a block's number.
        where: the option, for the error.

    Raises:
        UnknownName: nothing is called so.
        InvalidInput: the network has no transformer block.
    """
    names = list(transformer_blocks(unet))
    if isinstance(unet, MMDiT):
        return _joint_blocks(len(names), layers, where)
    if not names:
        raise InvalidInput(where, given=", ".join(layers), expected="a model with self-attention in its U-Net")
    found: set[str] = set()
    for layer in layers:
        start = PARTS.get(layer, layer)
        meant = [name for name in names if name == start or name.startswith(f"{start}.")]
        if not meant:
            raise unknown_name(where, layer, _choices(names))
        found.update(meant)
    return frozenset(found)


def _joint_blocks(count: int, layers: Sequence[str], where: str) -> frozenset[str]:
    names = {str(number): f"transformer_blocks.{number}" for number in range(count)}
    first, end = (round(share * count) for share in MIDDLE)
    named = {"mid": set(range(first, max(end, first + 1))), **{number: {int(number)} for number in names}}
    named |= {name: {int(number)} for number, name in names.items()}
    for layer in layers:
        if layer not in named:
            raise unknown_name(where, layer, ["mid", *names])
    return frozenset(names[str(number)] for layer in layers for number in named[layer])


def _choices(names: Sequence[str]) -> list[str]:
    """Parts, levels and transformers that hold blocks."""
    short = {start: name for name, start in PARTS.items()}
    found = {short[name.split(".")[0]] for name in names}
    for name in names:
        pieces = name.split(".")
        found.update(".".join(pieces[:k]) for k in range(2, len(pieces) - 1) if pieces[k - 1].isdecimal())
    return sorted(found)


def finest_blocks(unet: UNet) -> tuple[int, list[TransformerBlock]]:
    """The finest level that has self-attention, 0 = that of the latents' own size, and its blocks on both ways; they
    have the largest feature maps. No blocks = none has any."""
    for level, down in enumerate(unet.down_blocks):
        parts = [part for way in (down, unet.up_blocks[-1 - level]) for part in way.modules()]
        found = [part for part in parts if isinstance(part, TransformerBlock) and not part.crossing]
        if found:
            return level, found
    return 0, []


def changes_of(
    unet: UNet | MMDiT | ControlBody,
    rows: Sequence[Perturbation | None],
    record: AttentionRecord | None,
    pictures: Sequence[Seen] = (),
    areas: tuple[Areas, ...] = (),
    merging: float = 0.0,
) -> Mapping[nn.Module, RowChanges] | None:
    """What each block does otherwise, for the rows of one call; blocks that do nothing so aren't named. None = none.

    Args:
        unet: the network.
        rows: one for each row; empty = none does otherwise.
        record: whose self-attention to note.
        pictures: what IP-Adapters show to the cross-attentions.
        areas: texts that rows look at in areas of their own.
        merging: share of the places that self-attention of the finest level sees as one with others.
    """
    if record is None and not any(rows) and not pictures and not areas and merging == 0:
        return None
    blocks = transformer_blocks(unet)
    # Adapters for other networks than U-Nets are refused where they are read.
    shown = [(one, one.adapter.blocks(unet)) for one in pictures if isinstance(unet, UNet)]
    device = next(unet.parameters()).device

    def marked(chosen: Callable[[Perturbation], frozenset[str]], name: str) -> Tensor | None:
        marks = [one is not None and name in chosen(one) for one in rows]
        return torch.tensor(marks, device=device)[:, None, None] if any(marks) else None

    finest = finest_blocks(unet)[1] if merging > 0 and isinstance(unet, UNet) else []
    found: dict[nn.Module, RowChanges] = {}
    for name, block in blocks.items():
        identity = marked(lambda one: one.identity, name)
        skipped = marked(lambda one: one.skipped, name)
        attended = record.found if record is not None and record.block == name else None
        seen = tuple(one.of_block(own[block]) for one, own in shown)
        merged = TokenMerging(merging) if block in finest else None
        if seen or areas or (identity, skipped, attended, merged) != (None, None, None, None):
            found[block] = RowChanges(identity, skipped, attended, seen, areas, merged)
    return found
