"""Watches a U-Net while it paints: what each word is looked at for, what it was shown, and what its layers hold.

Hooks on the modules see what goes in and out; nothing that is computed changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.models.mmdit import MMDiT
from gouache.models.unet import UNet
from gouache.nn.attention import Attention, TransformerBlock


class Watched:
    """What was seen of a U-Net.

    Args:
        context: of the prompt; rows of a batch with another one (guidance's) are left out. [1,L,D]

    Attributes:
        shown: the latents that each call was given, scaled as the network takes them. [1,C,h,w] each
        seconds: of each call.
        first: `time.perf_counter()` when the first call began; None before it.
        maps: what share of each place's attention each token has, a mean over layers, heads and calls. [L,h,w]
        draft: what was given beside them, in models that take a draft. [1,C,h,w]
        features: output of each block at the last call, by the block's name. [C,h,w] each
    """

    def __init__(self, context: Tensor) -> None:
        self.shown: list[Tensor] = []
        self.seconds: list[float] = []
        self.first: float | None = None
        self.draft: Tensor | None = None
        self.features: dict[str, Tensor] = {}
        self._context = context
        self._sum: Tensor | None = None
        self._layers = 0
        self._size = (1, 1)
        self._begun = 0.0
        self._row = 0

    @property
    def maps(self) -> Tensor | None:
        """See the class; None if no layer looks from the picture to the words."""
        return None if self._sum is None else self._sum / self._layers

    def begin(self, x: Tensor, context: Tensor, draft: Tensor | None) -> None:
        """A call of the network begins."""
        self._row = next(iter(self._rows(context)), 0)
        own = slice(self._row, self._row + 1)
        self.draft = None if draft is None else draft[own].detach()
        self._size = (x.shape[2], x.shape[3])
        self.shown.append(x[own].detach().float().cpu())
        self._begun = time.perf_counter()
        self.first = self._begun if self.first is None else self.first

    def keep(self, name: str, out: Tensor) -> None:
        """A block gives feature maps [B,C,h,w]; those of the prompt's row are kept."""
        self.features[name] = out[min(self._row, len(out) - 1)].detach().float().cpu()

    def end(self) -> None:
        """It ends."""
        self.seconds.append(time.perf_counter() - self._begun)

    def look(self, layer: Attention, x: Tensor, context: Tensor, mask: Tensor | None) -> None:
        """A layer looks from the places of `x` [B,N,W] to the tokens of `context` [B,L,D]."""
        rows = self._rows(context)
        if not len(rows):
            return
        query, key = layer.to_q(x[rows]), layer.to_k(context[rows])
        q, k = (t.unflatten(2, (layer.heads, -1)).transpose(1, 2).float() for t in (query, key))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B,heads,N,L]
        if mask is not None:
            scores = scores.masked_fill(~mask[rows].bool(), -torch.inf)
        weights = scores.softmax(-1).mean((0, 1)).mT  # [L,N]
        height, width = _grid(weights.shape[1], self._size)
        small = weights.view(1, -1, height, width)
        whole = F.interpolate(small, size=self._size, mode="bilinear", align_corners=False)[0].cpu()
        self._sum = whole if self._sum is None else self._sum + whole
        self._layers += 1

    def _rows(self, context: Tensor) -> list[int]:
        own = self._context[0].to(context.device, context.dtype)
        length = min(own.shape[0], context.shape[1])
        return [i for i, row in enumerate(context) if torch.equal(row[:length], own[:length])]


@contextmanager
def watching(unet: UNet | MMDiT, context: Tensor) -> Iterator[Watched]:
    """Watch a network as long as the block lasts.

    Args:
        unet: the network. Of a transformer that reads pictures and words in one row, the words' maps stay empty.
        context: of the prompt, as the network is given it. [1,L,D]
    """
    seen = Watched(context)
    with ExitStack() as stack:

        def hook(module: nn.Module, call: Callable[..., None], *, before: bool = False) -> None:
            add = module.register_forward_pre_hook if before else module.register_forward_hook
            handle = add(call, with_kwargs=True)
            stack.callback(handle.remove)

        hook(unet, lambda _module, inputs, named: seen.begin(inputs[0], inputs[2], named.get("draft")), before=True)
        hook(unet, lambda _module, _inputs, _named, _out: seen.end())
        for block in unet.modules():
            if isinstance(block, TransformerBlock):
                hook(block.attn2, _looking(seen))
        for name in ("down_blocks", "mid_block", "up_blocks"):
            part = getattr(unet, name, None)
            parts = list(part) if isinstance(part, nn.ModuleList) else [part]
            for number, module in enumerate(parts):
                if isinstance(module, nn.Module):
                    label = f"{name}.{number}" if len(parts) > 1 else name
                    hook(module, _keeping(seen, label))
        yield seen


def _looking(seen: Watched) -> Callable[..., None]:
    def look(layer: Attention, inputs: tuple[Any, ...], named: dict[str, Any], _out: object) -> None:
        given = dict(zip(("x", "context", "mask"), inputs, strict=False)) | named
        if given.get("context") is not None:
            seen.look(layer, given["x"], given["context"], given.get("mask"))

    return look


def _keeping(seen: Watched, name: str) -> Callable[..., None]:
    def keep(_module: nn.Module, _inputs: object, _named: object, out: Any) -> None:
        first = out[0] if isinstance(out, tuple) else out
        if isinstance(first, Tensor) and first.ndim == 4:
            seen.keep(name, first)

    return keep


def _grid(places: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a feature map of so many places, of a picture whose latents have this size."""
    factor = 1
    while -(-size[0] // factor) * -(-size[1] // factor) > places:
        factor *= 2
    return -(-size[0] // factor), -(-size[1] // factor)


def main_colours(features: Tensor) -> Tensor:
    """Feature maps [C,h,w] as colours [3,h,w] in 0..1: their three principal components, each over its whole range."""
    channels, height, width = features.shape
    flat = features.flatten(1).T.double()  # [h*w,C]
    centred = flat - flat.mean(0)
    # The right singular vectors, so that the result doesn't depend on the sign that a library happens to choose.
    _, _, vh = torch.linalg.svd(centred, full_matrices=False)
    axes = vh[: min(3, channels)]
    axes = axes * axes[torch.arange(len(axes)), axes.abs().argmax(1)].sign()[:, None]
    shown = (centred @ axes.T).T  # [3,h*w]
    low, high = shown.min(1, keepdim=True).values, shown.max(1, keepdim=True).values
    scaled = ((shown - low) / (high - low).clamp(min=1e-9)).float()
    whole = torch.cat([scaled, scaled.new_zeros(3 - len(scaled), scaled.shape[1])])
    return whole.view(3, height, width)
