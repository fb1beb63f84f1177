"""What a mask keeps while the rest is painted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gouache.diffusion.samplers.step import Denoise
from gouache.pipeline.inputs.start import StartState


class OutsideKept:
    """Where the mask is 0 the estimate is the starting picture itself, and where it is grey until its steps come.

    Every sampler then carries x = x0 + sigma * noise along there, which is what blending the noised picture in after
    each step does for first-order samplers, and is right for the others too. A place of grey g is free in the last
    int(n * g) of n steps, so that it is painted as image to image with the strength g paints (Levin and Fried 2023,
    Differential Diffusion, arXiv:2306.00950, algorithm 1).

    Args:
        denoise: D(x, sigma).
        start_state: with the mask and the picture's latents; without either, nothing is kept.
        sigmas: the levels that are walked, descending. [n + 1]
        limit: cuts off what is painted, D -> D; the starting picture stays as it is.
    """

    def __init__(
        self,
        denoise: Denoise,
        start_state: StartState,
        sigmas: Tensor,
        limit: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.denoise, self.mask, self.latents = denoise, start_state.mask, start_state.latents
        self.limit = limit
        self._levels, self._level = sigmas.double().cpu(), float("inf")
        self._opens: Tensor | None = None
        if start_state.grey is not None and len(sigmas) > 1:
            steps = len(sigmas) - 1
            free = (start_state.grey.double().cpu() * steps + 1e-4).long()  # as `open_steps`
            self._opens = self._levels[steps - free]  # [1,1,h,w]
            self.reached(float(sigmas[0]))

    def reached(self, sigma: float) -> None:
        """A step begins at this level. What is free once stays so, for samplers that go up again."""
        if self._opens is None or self.mask is None:
            return
        self._level = min(self._level, sigma)
        opened = (self._opens >= self._level * (1 - 1e-6)) & (self._opens > self._levels[-1])
        self.mask = opened.to(self.mask)

    def limited(self, denoised: Tensor) -> Tensor:
        """An estimate cut off where it is painted. [B,C,h,w]"""
        if self.limit is None:
            return denoised
        if self.mask is None or self.latents is None:
            return self.limit(denoised)
        return torch.lerp(denoised, self.limit(denoised), self.mask.to(denoised))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x [B,C,h,w] -> denoised [B,C,h,w]."""
        if self.mask is None or self.latents is None:
            return self.denoise(x, sigma)
        return torch.lerp(self.latents.to(x), self.denoise(x, sigma), self.mask.to(x))
