"""Changes that are made of the layer's own weight: IA3 (Liu et al. 2022, arXiv:2205.05638), GLoRA (Chavan et al. 2023,
arXiv:2306.07967), OFT (Qiu et al. 2023, arXiv:2306.07280) and BOFT (Liu et al. 2024, arXiv:2311.06243).

LyCORIS and kohya turn a layer's outputs, PEFT and OneTrainer its inputs. A prompt's weight scales the finished change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gouache.checkpoints.adapters.deltas import same_layer
from gouache.checkpoints.adapters.peft_config import RotationSettings


@dataclass(frozen=True, slots=True)
class Rescaled:
    """IA3: every output (or input) channel times a number.

    Attributes:
        factors: one number for each channel.
        by_output: which channels.
        from_one: whether the numbers are factors (PEFT's), not the differences from 1 (LyCORIS's).
    """

    factors: Tensor
    by_output: bool
    from_one: bool

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `LayerDelta.fits`."""
        axis = 0 if self.by_output else 1
        return len(shape) > axis and self.factors.numel() == shape[axis]

    def difference(self, weight: Tensor) -> Tensor:
        """See `LayerDelta.difference`."""
        axis = 0 if self.by_output else 1
        factors = self.factors.float().flatten().to(weight.device) - float(self.from_one)
        return weight.float() * factors.reshape([-1 if k == axis else 1 for k in range(weight.ndim)])

    def description(self) -> str:
        """See `LayerDelta.description`."""
        return f"IA3 of {self.factors.numel()} {'outputs' if self.by_output else 'inputs'}"


@dataclass(frozen=True, slots=True)
class Generalised:
    """GLoRA: W + scale * (W @ a_up @ a_down + b_up @ b_down), as LyCORIS has it since its version 2.

    Attributes:
        a_up: [in, r].
        a_down: [r, in].
        b_up: [out, r].
        b_down: [r, in] or [r, in, k, k].
        scale: factor on the change.
    """

    a_up: Tensor
    a_down: Tensor
    b_up: Tensor
    b_down: Tensor
    scale: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `LayerDelta.fits`."""
        tensors = (self.a_up, self.a_down, self.b_up, self.b_down)
        if len(shape) < 2 or any(tensor.ndim < 2 for tensor in tensors):
            return False
        (inside, rank), (out, b_rank) = self.a_up.flatten(1).shape, self.b_up.flatten(1).shape
        return (
            tuple(self.a_down.flatten(1).shape) == (rank, inside)
            and inside == shape[1]
            and self.b_down.shape[0] == b_rank
            and same_layer((out, *self.b_down.shape[1:]), shape)
        )

    def difference(self, weight: Tensor) -> Tensor:
        """See `LayerDelta.difference`."""
        own = weight.float()
        a_up, a_down, b_up = (
            tensor.float().flatten(1).to(own.device) for tensor in (self.a_up, self.a_down, self.b_up)
        )
        turned = torch.einsum("oi...,ir,rj->oj...", own, a_up, a_down)
        added = b_up @ self.b_down.float().flatten(1).to(own.device)
        return (turned + added.reshape(own.shape)) * self.scale

    def description(self) -> str:
        """See `LayerDelta.description`."""
        return f"GLoRA {list(self.a_up.shape)} x {list(self.a_down.shape)} and {list(self.b_up.shape)}"


@dataclass(frozen=True, slots=True)
class OutputRotation:
    """OFT and BOFT of LyCORIS and kohya: the rows of W turned, in blocks.

    The rotation of a block is R = (I + Q)(I - Q)^-1 with the skew Q = B - B^T (Cayley). OFT has one stage, R^T W. BOFT
    has several, R W: in stage i the rows of a block lie 2^i * n / 2 apart, as in a butterfly.

    Attributes:
        blocks: B; OFT [k, n, n], BOFT [m, k, n, n].
        bound: largest norm of all Q together; 0 for none. (The file's alpha, times the number of outputs.)
        rescale: a factor for each output, or None.
    """

    blocks: Tensor
    bound: float
    rescale: Tensor | None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `LayerDelta.fits`."""
        sizes = tuple(self.blocks.shape)
        if len(sizes) not in (3, 4) or not shape:
            return False
        square = sizes[-1] == sizes[-2] and sizes[-3] * sizes[-2] == shape[0]
        stages = len(sizes) == 3 or (sizes[-1] % 2 == 0 and shape[0] % (2 ** sizes[0] * (sizes[-1] // 2)) == 0)
        return square and stages and (self.rescale is None or self.rescale.numel() == shape[0])

    def difference(self, weight: Tensor) -> Tensor:
        """See `LayerDelta.difference`."""
        own = weight.float()
        raw = self.blocks.float().to(own.device)
        skew = raw - raw.transpose(-1, -2)
        norm = float(skew.norm())
        if 0 < self.bound < norm:
            skew = skew * (self.bound / norm)
        one = torch.eye(skew.shape[-1], device=own.device)
        turns = torch.linalg.solve(one - skew, one + skew, left=False)
        rows = own.flatten(1)
        if turns.ndim == 3:
            rows = _turned(turns.transpose(-1, -2), rows)
        for stage, turn in enumerate(turns if turns.ndim == 4 else ()):
            apart = 2**stage * turn.shape[-1] // 2
            order = torch.arange(len(rows), device=own.device).view(-1, 2, apart).transpose(1, 2).flatten()
            rows = torch.empty_like(rows).index_copy_(0, order, _turned(turn, rows[order]))
        if self.rescale is not None:
            rows = rows * self.rescale.float().to(own.device).reshape(-1, 1)
        return rows.reshape(own.shape) - own

    def description(self) -> str:
        """See `LayerDelta.description`."""
        return f"{'BOFT' if self.blocks.ndim == 4 else 'OFT'} {list(self.blocks.shape)}"


@dataclass(frozen=True, slots=True)
class InputRotation:
    """OFT and BOFT of PEFT, OFT of OneTrainer: the inputs of W turned, in blocks.

    Attributes:
        blocks: OFT: what stands above the diagonal of each Q, row by row [k, n * (n - 1) / 2]; BOFT: one stage of
            whole matrices [1, k, n, n].
        settings: how rotations are made of them.
        rescale: a factor for each output, or None.
    """

    blocks: Tensor
    settings: RotationSettings
    rescale: Tensor | None = None

    @property
    def size(self) -> int:
        """n, the size of a block; 0 if the tensor can't be one."""
        if self.blocks.ndim == 4:
            return self.blocks.shape[-1] if self.blocks.shape[0] == 1 else 0
        count = self.blocks.shape[-1] if self.blocks.ndim == 2 else 0
        size = (1 + math.isqrt(1 + 8 * count)) // 2
        return size if count and size * (size - 1) == 2 * count else 0

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `LayerDelta.fits`."""
        if not self.size or len(shape) < 2:
            return False
        count, inputs = self.blocks.shape[-3 if self.blocks.ndim == 4 else 0], math.prod(shape[1:])
        fits = inputs % self.size == 0 if self.settings.shared else count * self.size == inputs
        return fits and (self.rescale is None or self.rescale.numel() == shape[0])

    def difference(self, weight: Tensor) -> Tensor:
        """See `LayerDelta.difference`."""
        own = weight.float()
        turns = self._turns().to(own.device)
        columns = own.flatten(1).T  # [in, out]
        if self.settings.shared:
            turns = turns.expand(len(columns) // self.size, -1, -1)
        rows = _turned(turns, columns).T
        if self.rescale is not None:
            rows = rows * self.rescale.float().to(own.device).reshape(-1, 1)
        return rows.reshape(own.shape) - own

    def _turns(self) -> Tensor:
        """The rotations [k, n, n]: (I - Q)(I + Q)^-1, or the series I + 2Q + 2Q^2 + ... + Q^(terms - 1)."""
        skew = self._skew()
        if self.settings.radius is not None:
            largest = self.settings.radius / math.sqrt(len(skew))
            norms = skew.norm(dim=(1, 2), keepdim=True)
            skew = torch.where(norms <= largest, skew, skew * (largest / norms))
        one = torch.eye(self.size)
        if self.blocks.ndim == 4 or not self.settings.terms:
            exact: Tensor = torch.linalg.solve(one + skew, one - skew, left=False)
            return exact
        total, power = one.expand_as(skew).clone(), one.expand_as(skew)
        short = self.settings.terms < 3
        last = 1 if short else max(3, self.settings.terms - 1)
        for k in range(1, last + 1 if self.settings.terms > 1 else 1):
            power = power @ skew
            total = total + power * (1.0 if k == last and not short else 2.0)
        return total

    def _skew(self) -> Tensor:
        if self.blocks.ndim == 4:
            whole = self.blocks[0].float()
            return 0.5 * (whole - whole.transpose(-1, -2))
        upper = torch.zeros(len(self.blocks), self.size, self.size)
        row, column = torch.triu_indices(self.size, self.size, 1)
        upper[:, row, column] = self.blocks.float()
        return upper - upper.transpose(-1, -2)

    def description(self) -> str:
        """See `LayerDelta.description`."""
        return f"{'BOFT' if self.blocks.ndim == 4 else 'OFT'} {list(self.blocks.shape)} of the inputs"


def _turned(turns: Tensor, rows: Tensor) -> Tensor:
    """Blocks of rows, each multiplied from the left: turns [k, n, n], rows [k * n, m] -> [k * n, m]."""
    return (turns @ rows.view(len(turns), turns.shape[-1], -1)).reshape(rows.shape)
