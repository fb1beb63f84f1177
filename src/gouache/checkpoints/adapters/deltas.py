"""What adapters do to one layer's weight: LoRA (Hu et al. 2021, arXiv:2106.09685), LoHa (Hyeon-Woo et al. 2022,
arXiv:2108.06098), LoKr (Yeh et al. 2024, arXiv:2309.14859) and DoRA (Liu et al. 2024, arXiv:2402.09353).

Convolutions come in three forms: a matrix over input channels and kernel, a matrix with the layer's kernel, or (Tucker)
a core with the kernel between two matrices over channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gouache.checkpoints.shapes import THIRDS, ShapeChange

SMALLEST_NORM = torch.finfo(torch.float32).eps


class LayerDelta(Protocol):
    """What one adapter does to one layer."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it changes a weight of this shape."""
        ...

    def difference(self, weight: Tensor) -> Tensor:
        """What is added to a weight [out, in, ...] at an adapter's full weight, fp32."""
        ...

    def description(self) -> str:
        """Its shapes, for errors."""
        ...


@dataclass(frozen=True, slots=True)
class LowRank:
    """LoRA and LoCon: W + scale * up @ down.

    Attributes:
        down: [r, in] or [r, in, k, k].
        up: [out, r] or [out, r, 1, 1].
        mid: the core of a convolution, [r, r, k, k], or None.
        scale: factor on the product.
    """

    down: Tensor
    up: Tensor
    mid: Tensor | None
    scale: float

    @property
    def rank(self) -> int:
        """Rank of the change."""
        return self.down.shape[0]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `LayerDelta.fits`."""
        if min(self.down.ndim, self.up.ndim) < 2 or self.up[0].numel() != self.rank:
            return False
        out, inside, kernel = self.up.shape[0], self.down.shape[1], tuple(self.down.shape[2:])
        if self.mid is not None:
            core = tuple(self.mid.shape)
            if core[:2] != (self.rank, self.rank) or set(kernel) - {1}:
                return False
            kernel = core[2:]
        return same_layer((out, inside, *kernel), shape)

    def difference(self, weight: Tensor) -> Tensor:
        """See `LayerDelta.difference`."""
        up, down = self.up.flatten(1).float(), self.down.float()  # [out, r], [r, in, ...]
        if self.mid is None:
            product = up @ down.flatten(1)  # [out, in * k * k]
        else:
            product = torch.einsum("or,rskl,si->oikl", up, self.mid.float(), down.flatten(1))
        return product.reshape(weight.shape) * self.scale

    def description(self) -> str:
        """See `LayerDelta.description`."""
        return f"LoRA {list(self.up.shape)} x {list(self.down.shape)}"


@dataclass(frozen=True, slots=True)
class Factors:
    """One matrix, or kernels, as a product of two smaller ones.

    Attributes:
        a: [out, r]; with a core [r, out].
        b: [r, in] or [r, in * k * k].
        core: [r, r, k, k], or None.
    """

    a: Tensor
    b: Tensor
    core: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the product; () if the factors don't fit together."""
        if self.a.ndim != 2 or self.b.ndim != 2:
            return ()
        if self.core is None:
            return (self.a.shape[0], self.b.shape[1]) if self.a.shape[1] == self.b.shape[0] else ()
        fits = self.core.ndim == 4 and tuple(self.core.shape[:2]) == (self.a.shape[0], self.b.shape[0])
        return (self.a.shape[1], self.b.shape[1], *self.core.shape[2:]) if fits else ()

    def product(self) -> Tensor:
        """[out, in], [out, in * k * k] or, with a core, [out, in, k, k]; fp32."""
        a, b = self.a.float(), self.b.float()
        return a @ b if self.core is None else torch.einsum("rskl,ro,si->oikl", self.core.float(), a, b)


@dataclass(frozen=True, slots=True)
class Hadamard:
    """LoHa: W + scale * (a1 @ b1) * (a2 @ b2), element by element."""

    first: Factors
    second: Factors
    scale: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `LayerDelta.fits`."""
        return self.first.shape == self.second.shape and same_layer(self.first.shape, shape)

    def difference(self, weight: Tensor) -> Tensor:
        """See `LayerDelta.difference`."""
        return (self.first.product() * self.second.product()).reshape(weight.shape) * self.scale

    def description(self) -> str:
        """See `LayerDelta.description`."""
        return f"LoHa {list(self.first.shape)} * {list(self.second.shape)}"


@dataclass(frozen=True, slots=True)
class Kronecker:
    """LoKr: W + scale * kron(first, second), where each factor may itself be a product.

    Attributes:
        first: [a, b].
        second: [c, d], [c, d * k * k] or [c, d, k, k].
        scale: factor on the product.
    """

    first: Tensor | Factors
    second: Tensor | Factors
    scale: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `LayerDelta.fits`."""
        left, right = tuple(self.first.shape), tuple(self.second.shape)
        if len(left) != 2 or len(right) not in (2, 4):
            return False
        return same_layer((left[0] * right[0], left[1] * right[1], *right[2:]), shape)

    def difference(self, weight: Tensor) -> Tensor:
        """See `LayerDelta.difference`."""
        left, right = _whole(self.first), _whole(self.second).contiguous()
        product = torch.kron(left.reshape(*left.shape, *(1 for _ in right.shape[2:])), right)
        return product.reshape(weight.shape) * self.scale

    def description(self) -> str:
        """See `LayerDelta.description`."""
        return f"LoKr {list(self.first.shape)} x {list(self.second.shape)}"


@dataclass(frozen=True, slots=True)
class Decomposed:
    """DoRA: magnitude * (W + inner) / |W + inner|, the norm taken over each output (equation 5) or input.

    Attributes:
        inner: the change of the direction.
        magnitude: one number for each output or input.
        by_output: which of the two.
    """

    inner: LayerDelta
    magnitude: Tensor
    by_output: bool

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `LayerDelta.fits`."""
        return self.inner.fits(shape) and self.magnitude.numel() == shape[0 if self.by_output else 1]

    def difference(self, weight: Tensor) -> Tensor:
        """See `LayerDelta.difference`."""
        own = weight.float()
        changed = own + self.inner.difference(weight).to(own.device)
        axis = 0 if self.by_output else 1
        others = [k for k in range(weight.ndim) if k != axis]
        norm = changed.square().sum(others, keepdim=True).sqrt().clamp_min(SMALLEST_NORM)
        magnitude = self.magnitude.float().to(own.device).reshape(norm.shape)
        return changed * (magnitude / norm) - own

    def description(self) -> str:
        """See `LayerDelta.description`."""
        return f"{self.inner.description()} and {self.magnitude.numel()} magnitudes"


@dataclass(frozen=True, slots=True)
class Added:
    """A difference as it is: LyCORIS's full matrices, norms and biases.

    Attributes:
        tensor: of the parameter's shape.
        scale: factor on it.
    """

    tensor: Tensor
    scale: float = 1.0

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `LayerDelta.fits`."""
        return tuple(self.tensor.shape) == shape or same_layer(tuple(self.tensor.shape), shape)

    def difference(self, weight: Tensor) -> Tensor:
        """See `LayerDelta.difference`."""
        return self.tensor.float().reshape(weight.shape) * self.scale

    def description(self) -> str:
        """See `LayerDelta.description`."""
        return f"difference {list(self.tensor.shape)}"


@dataclass(frozen=True, slots=True)
class Replaced:
    """A parameter that was trained as a whole, as PEFT's ``modules_to_save``.

    Attributes:
        tensor: of the parameter's shape.
    """

    tensor: Tensor

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `LayerDelta.fits`."""
        return tuple(self.tensor.shape) == shape

    def difference(self, weight: Tensor) -> Tensor:
        """See `LayerDelta.difference`."""
        return self.tensor.float().to(weight.device) - weight.float()

    def description(self) -> str:
        """See `LayerDelta.description`."""
        return f"parameter {list(self.tensor.shape)}"


@dataclass(frozen=True, slots=True)
class FirstInputs:
    """A change of a layer's first inputs only.

    That of a plain model's first convolution in one that takes more channels (inpainting, depth), as A1111 widens it.

    Attributes:
        inner: what it does to a weight of so many inputs.
        inputs: how many.
    """

    inner: LayerDelta
    inputs: int

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `LayerDelta.fits`."""
        return len(shape) > 1 and shape[1] > self.inputs and self.inner.fits((shape[0], self.inputs, *shape[2:]))

    def difference(self, weight: Tensor) -> Tensor:
        """See `LayerDelta.difference`."""
        changed = torch.zeros_like(weight, dtype=torch.float32)
        changed[:, : self.inputs] = self.inner.difference(weight[:, : self.inputs])
        return changed

    def description(self) -> str:
        """See `LayerDelta.description`."""
        return f"{self.inner.description()} of the first {self.inputs} inputs"


@dataclass(frozen=True, slots=True)
class OfRows:
    """A change of a matrix that holds our layer's rows among others, or in another order (`ShapeChange`): of one matrix
    for queries, keys and values, or of scale and shift the other way round.

    Attributes:
        inner: what it does to that matrix.
        change: what our layer is of it.
    """

    inner: LayerDelta
    change: ShapeChange

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `LayerDelta.fits`."""
        rows = shape[0] * (3 if self.change in THIRDS else 1)
        return self.by_rows(self.inner) and self.inner.fits((rows, *shape[1:]))

    def difference(self, weight: Tensor) -> Tensor:
        """See `LayerDelta.difference`."""
        if self.change not in THIRDS:
            return self.inner.difference(weight.roll(len(weight) // 2, 0)).roll(-(len(weight) // 2), 0)
        # The other thirds are never looked at: ours stands in for them.
        whole = weight.repeat(3, *(1 for _ in weight.shape[1:]))
        return self.inner.difference(whole).chunk(3)[THIRDS.index(self.change)]

    def description(self) -> str:
        """See `LayerDelta.description`."""
        return f"{self.inner.description()} of {'three matrices in one' if self.change in THIRDS else 'turned rows'}"

    @staticmethod
    def by_rows(inner: LayerDelta) -> bool:
        """Whether no row of the result depends on another row of the weight, so that the other rows may be unknown."""
        if isinstance(inner, Decomposed):
            return inner.by_output and OfRows.by_rows(inner.inner)
        return isinstance(inner, LowRank | Hadamard | Kronecker | Added | Replaced)


def _whole(factor: Tensor | Factors) -> Tensor:
    return factor.float() if isinstance(factor, Tensor) else factor.product()


def same_layer(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """A matrix over channels and kernel may stand for a convolution; a 1x1 convolution and a linear layer are one."""
    if min(len(found), len(wanted)) < 2 or found[0] != wanted[0]:
        return False
    kernel, wanted_kernel = found[2:], wanted[2:]
    if found[1] == wanted[1]:
        return kernel == wanted_kernel or not (set(kernel) | set(wanted_kernel)) - {1}
    return not kernel and found[1] == math.prod(wanted[1:])
