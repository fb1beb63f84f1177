"""Low-rank changes of a frozen model's layers, in training: LoRA (Hu et al. 2021, arXiv:2106.09685, equation 3), LoCon
for convolutions, DoRA (Liu et al. 2024, arXiv:2402.09353, equation 5).

The model's own layers stay as they are. A hook on each adds what its change says to what the layer gives, so that no
network knows of it and the changes alone are trained, averaged and saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.nn.layers import Dropout

Layer = nn.Linear | nn.Conv2d


class LowRank(nn.Module):
    """The change of one layer: W + (alpha / rank) up down, with `dora` scaled to a trained length of every output row.

    Begins as no change: `up` is zero.

    Args:
        layer: which is changed; it is not kept.
        rank: of the change.
        alpha: the change is scaled by alpha / rank.
        dora: whether the length of the rows is trained beside their direction.
        dropout: share of the layer's inputs that the change doesn't see in a step.
    """

    def __init__(self, layer: Layer, rank: int, alpha: float, *, dora: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale, weight = alpha / rank, layer.weight
        self.rank, self.alpha = rank, alpha
        self.down = nn.Parameter(torch.empty(rank, *weight.shape[1:], dtype=torch.float32))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, *[1] * (weight.ndim - 2)))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.magnitude = nn.Parameter(_lengths(weight.detach().float())) if dora else None
        self.drop = Dropout(dropout)

    def forward(self, layer: Layer, x: Tensor, out: Tensor) -> Tensor:
        """What the changed layer gives, from its input `x` and from what it gives unchanged."""
        seen = self.drop(x)
        if isinstance(layer, nn.Conv2d):
            assert not isinstance(layer.padding, str), "torch's names of paddings are not used here"
            hidden = F.conv2d(seen, self.down.to(seen.dtype), None, layer.stride, layer.padding, layer.dilation)
            change = F.conv2d(hidden, self.up.to(hidden.dtype))
        else:
            hidden = F.linear(seen, self.down.to(seen.dtype))
            change = F.linear(hidden, self.up.to(hidden.dtype))
        change = (change * self.scale).to(out.dtype)
        if self.magnitude is None:
            return out + change
        # The length counts as a constant in the gradient (section 4.3): cheaper, and as good.
        with torch.no_grad():
            product = (self.up.flatten(1) @ self.down.flatten(1)).view_as(layer.weight)
            lengths = _lengths(layer.weight.float() + self.scale * product)
        shape = (1, -1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        factor = (self.magnitude / lengths).view(shape).to(out.dtype)
        bias: Tensor | float = 0.0 if layer.bias is None else layer.bias.view(shape).to(out.dtype)
        changed: Tensor = (out - bias + change) * factor + bias
        return changed


class LowRankChanges(nn.Module):
    """The changes of many layers, by the names that their file gives them."""

    def __init__(self, changes: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.changes = nn.ModuleDict(changes)

    def of(self, name: str) -> LowRank:
        """The change of one layer."""
        change = self.changes[name]
        assert isinstance(change, LowRank), "it holds nothing else"
        return change


class Attached:
    """Hooks on a model's layers, which add what the changes that are in use say.

    Args:
        layers: of the frozen model, by the names of their changes.
        changes: in use until others are.
    """

    def __init__(self, layers: Mapping[str, Layer], changes: LowRankChanges) -> None:
        self._changes: LowRankChanges | None = changes
        for name, layer in layers.items():
            layer.register_forward_hook(self._hook(name))

    @contextmanager
    def using(self, changes: LowRankChanges | None) -> Iterator[None]:
        """Use other changes for a while; None shows the model as it was."""
        before, self._changes = self._changes, changes
        try:
            yield
        finally:
            self._changes = before

    def _hook(self, name: str) -> Callable[[Layer, tuple[Tensor, ...], Tensor], Tensor]:
        def changed(layer: Layer, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
            if self._changes is None:
                return out
            result: Tensor = self._changes.of(name)(layer, inputs[0], out)
            return result

        return changed


def _lengths(weight: Tensor) -> Tensor:
    """Length of every output's row of weights. [out, ...] -> [out]"""
    lengths: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return lengths
