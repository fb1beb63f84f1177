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
SMALLEST = torch.finfo(torch.float32).eps
"""Length of a row of zeros, which would be divided by."""


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

    squares: Tensor

    def __init__(self, layer: Layer, rank: int, alpha: float, *, dora: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale, weight = alpha / rank, layer.weight
        self.rank, self.alpha = rank, alpha
        self.down = nn.Parameter(torch.empty(rank, *weight.shape[1:], dtype=torch.float32))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, *[1] * (weight.ndim - 2)))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.magnitude: nn.Parameter | None = None
        if dora:
            self.register_buffer("squares", weight.detach().float().flatten(1).square().sum(1), persistent=False)
            self.magnitude = nn.Parameter(self.squares.sqrt())
        self.drop = Dropout(dropout)

    def forward(self, layer: Layer, x: Tensor, out: Tensor) -> Tensor:
        """What the changed layer gives, from its input `x` and from what it gives unchanged."""
        changed = self._added(layer, self.drop(x), out)
        if self.magnitude is None:
            return changed
        shape = (1, -1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        factor = (self.magnitude / self._lengths(layer)).view(shape).to(out.dtype)
        if layer.bias is None:
            return changed * factor
        bias = layer.bias.view(shape).to(out.dtype)
        return torch.addcmul(bias, changed - bias, factor)

    def _added(self, layer: Layer, seen: Tensor, out: Tensor) -> Tensor:
        """The layer's output with scale * up down x added in one pass over it."""
        up, down = (self.scale * self.up).to(out.dtype), self.down.to(seen.dtype)
        if isinstance(layer, nn.Linear):
            hidden = F.linear(seen, down)  # [..., r]
            rows = torch.addmm(out.flatten(0, -2), hidden.flatten(0, -2).to(out.dtype), up.t())
            return rows.view_as(out)
        assert not isinstance(layer.padding, str), "torch's names of paddings are not used here"
        hidden = F.conv2d(seen, down, None, layer.stride, layer.padding, layer.dilation)
        return out + F.conv2d(hidden, up)

    @torch.no_grad()
    def _lengths(self, layer: Layer) -> Tensor:
        """Lengths of the rows of W + scale * up down, from |w|^2 + 2 w c + |c|^2, so that no matrix of the layer's size
        is made. They count as constants in the gradient (section 4.3): cheaper, and as good. [out]"""
        up, down = self.scale * self.up.flatten(1), self.down.flatten(1)  # [out, r], [r, in]
        with torch.autocast(up.device.type, enabled=False):
            across = (up * (layer.weight.float().flatten(1) @ down.t())).sum(1)
            own = (up @ (down @ down.t()) * up).sum(1)
        lengths: Tensor = (self.squares + 2 * across + own).clamp_min(0).sqrt().clamp_min(SMALLEST)
        return lengths


class LowRankChanges(nn.Module):
    """The changes of many layers, by the names that their file gives them.

    Attributes:
        names: of the layers, in their order.
    """

    def __init__(self, changes: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.names = tuple(changes)
        self.changes = nn.ModuleDict({_key(name): change for name, change in changes.items()})

    def of(self, name: str) -> LowRank:
        """The change of one layer."""
        change = self.changes[_key(name)]
        assert isinstance(change, LowRank), "it holds nothing else"
        return change


def _key(name: str) -> str:
    """torch's names of modules have no dots."""
    return name.replace(".", "/")


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


def used_layers(layers: Mapping[str, Layer], run: Callable[[], Tensor]) -> set[str]:
    """The names of those layers on which the result of a run depends.

    The others would be trained by nothing, and several processes would wait for their gradients.
    """
    marks = {name: torch.zeros((), requires_grad=True) for name in layers}

    def marked(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        return lambda _layer, _inputs, out: out + marks[name].to(out)

    hooks = [layer.register_forward_hook(marked(name)) for name, layer in layers.items()]
    try:
        with torch.enable_grad():
            gradients = torch.autograd.grad(run(), list(marks.values()), allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    return {name for name, gradient in zip(marks, gradients, strict=True) if gradient is not None}
