"""Weakened passes of a U-Net, as guiders need them: which transformer blocks do otherwise, and for which rows.

A pass that sees less than the network can (Ahn et al. 2024, arXiv:2403.17377; skip-layer guidance of Stable Diffusion
3.5, 2024) is one more row of the batch: its picture costs no call of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gouache.errors import InvalidInput, unknown_name
from gouache.models.conditioning.ip_adapter import Seen
from gouache.models.unet import UNet
from gouache.nn.attention import RowChanges, TransformerBlock

PARTS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
"""Short names of a U-Net's parts."""


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


def transformer_blocks(unet: UNet) -> dict[str, TransformerBlock]:
    """Every transformer block by its name, as `mid_block.attentions.0.transformer_blocks.0`."""
    return {name: part for name, part in unet.named_modules() if isinstance(part, TransformerBlock)}


def blocks_named(unet: UNet, layers: Sequence[str], where: str) -> frozenset[str]:
    """The transformer blocks that are meant.

    Args:
        unet: the network.
        layers: `down`, `mid`, `up`, or the beginning of a block's name up to any of its dots: `up_blocks.1`.
        where: the option, for the error.

    Raises:
        UnknownName: nothing is called so.
        InvalidInput: the network has no transformer block.
    """
    names = list(transformer_blocks(unet))
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


def _choices(names: Sequence[str]) -> list[str]:
    """Parts, levels and transformers that hold blocks."""
    short = {start: name for name, start in PARTS.items()}
    found = {short[name.split(".")[0]] for name in names}
    for name in names:
        pieces = name.split(".")
        found.update(".".join(pieces[:k]) for k in range(2, len(pieces) - 1) if pieces[k - 1].isdecimal())
    return sorted(found)


def changes_of(
    unet: UNet, rows: Sequence[Perturbation | None], record: AttentionRecord | None, pictures: Sequence[Seen] = ()
) -> Mapping[nn.Module, RowChanges] | None:
    """What each block does otherwise, for the rows of one call; blocks that do nothing so aren't named. None = none.

    Args:
        unet: the network.
        rows: one for each row; empty = none does otherwise.
        record: whose self-attention to note.
        pictures: what IP-Adapters show to the cross-attentions.
    """
    if record is None and not any(rows) and not pictures:
        return None
    blocks = transformer_blocks(unet)
    shown = [(one, one.adapter.blocks(unet)) for one in pictures]
    device = unet.conv_in.weight.device

    def marked(chosen: Callable[[Perturbation], frozenset[str]], name: str) -> Tensor | None:
        marks = [one is not None and name in chosen(one) for one in rows]
        return torch.tensor(marks, device=device)[:, None, None] if any(marks) else None

    found: dict[nn.Module, RowChanges] = {}
    for name, block in blocks.items():
        identity = marked(lambda one: one.identity, name)
        skipped = marked(lambda one: one.skipped, name)
        attended = record.found if record is not None and record.block == name else None
        seen = tuple(one.of_block(own[block]) for one, own in shown)
        if seen or (identity, skipped, attended) != (None, None, None):
            found[block] = RowChanges(identity, skipped, attended, seen)
    return found
