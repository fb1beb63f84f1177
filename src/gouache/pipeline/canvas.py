"""What a run starts from and what it must leave alone. Text to image starts from a blank one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from gouache.diffusion.step import Denoise


def _unchanged(picture: Image.Image) -> Image.Image:
    return picture


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The ground of a picture.

    Attributes:
        latents: the starting picture, normalised; None = start from noise alone. [1,C,h,w]
        skipped: share of the noise levels left out at the start, as steps: 0 starts from pure noise.
        mask: 1 where to paint, 0 where the latents stay; None = everywhere. [1,1,h,w]
        draft: channels for networks that take some beside the latents. [1,Cd,h,w]
        finish: what is done to the painted picture at the end, such as putting back what must not change.
        attachments: picture named in the request -> sha256 of its bytes.
    """

    latents: Tensor | None = None
    skipped: int = 0
    mask: Tensor | None = None
    draft: Tensor | None = None
    finish: Callable[[Image.Image], Image.Image] = _unchanged
    attachments: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def blank(cls) -> Canvas:
        """Nothing there yet."""
        return cls()

    def tail(self, sigmas: Tensor) -> Tensor:
        """The noise levels that are left to walk. [n + 1]"""
        return sigmas[self.skipped :]

    def start(self, noise: Tensor, sigmas: Tensor) -> Tensor:
        """The state at sigmas[0]: x = x0 + sigma * noise, with x0 = 0 where everything is new. [B,C,h,w]"""
        scaled = noise * float(sigmas[0])
        return scaled if self.latents is None or self.skipped == 0 else self.latents.to(scaled) + scaled


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
