"""What a run starts from and what it must leave alone. Text to image starts from a blank one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from gouache.diffusion.step import Denoise


def unchanged(picture: Image.Image) -> Image.Image:
    """The finish of a run that has nothing to put back."""
    return picture


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The ground of a picture.

    Attributes:
        latents: the starting picture, normalised; None = start from noise alone. [1 or B,C,h,w]
        under_mask: what stands under the mask at the start, if not the picture itself. [1,C,h,w]
        skipped: noise levels left out at the start: 0 starts from pure noise.
        mask: 1 where to paint, 0 where the latents stay; None = everywhere. [1,1,h,w]
        state: the noisy latents to start from, instead of anything drawn. [1,C,h,w]
        draft: channels for networks that take some beside the latents. [1,Cd,h,w]
        hints: the control pictures, in the request's order, cut as the starting picture is.
        finish: what is done to the painted picture at the end, such as putting back what must not change.
    """

    latents: Tensor | None = None
    under_mask: Tensor | None = None
    skipped: int = 0
    mask: Tensor | None = None
    state: Tensor | None = None
    draft: Tensor | None = None
    hints: tuple[Image.Image, ...] = ()
    finish: Callable[[Image.Image], Image.Image] = unchanged

    def tail(self, sigmas: Tensor) -> Tensor:
        """The noise levels that are left to walk. [n + 1]"""
        return sigmas[self.skipped :]

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """The state at the first level: x = x0 + sigma * noise, with x0 = 0 where everything is new. [B,C,h,w]"""
        if self.state is not None:
            return self.state.to(noise).expand(len(noise), -1, -1, -1)
        scaled = noise * sigma
        if self.latents is None:
            return scaled
        latents = self.latents.to(scaled)
        begun = latents if self.under_mask is None else self.under_mask.to(scaled)
        if self.mask is None:
            return scaled if self.skipped == 0 else begun + scaled
        new = torch.zeros_like(begun) if self.skipped == 0 else begun
        return torch.lerp(latents, new, self.mask.to(scaled)) + scaled


def keep_outside(denoise: Denoise, canvas: Canvas) -> Denoise:
    """Where the mask is 0 the estimate is the starting picture itself.

    Every sampler then carries x = x0 + sigma * noise along there, which is what blending the noised picture in after
    each step does for first-order samplers, and is right for the others too.
    """
    if canvas.mask is None or canvas.latents is None:
        return denoise
    mask, latents = canvas.mask, canvas.latents

    def kept(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.lerp(latents.to(x), denoise(x, sigma), mask.to(x))

    return kept


def steps_to_skip(steps: int, strength: float) -> int:
    """How many of the steps a strength leaves out: the last int(steps * strength) are walked."""
    return steps - min(int(steps * strength), steps)
