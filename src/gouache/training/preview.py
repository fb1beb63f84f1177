"""Short sampling runs for the sample sheets of training."""

from __future__ import annotations

import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import NoiseSchedule
from gouache.diffusion.parameterization import denoised_from, network_input
from gouache.diffusion.samplers import sample
from gouache.diffusion.sigmas import make_sigmas
from gouache.models.configs import DenoiserConfig
from gouache.models.unet import UNet
from gouache.training.encoded import TextStates


class Previewer:
    """Samples latents from a U-Net in training.

    Args:
        unet: the network, in evaluation mode.
        config, schedule: of its denoiser.
        empty: states of the empty caption, for guidance.
    """

    def __init__(self, unet: UNet, config: DenoiserConfig, schedule: NoiseSchedule, empty: TextStates) -> None:
        self.unet, self.config, self.schedule, self.empty = unet, config, schedule, empty

    @torch.no_grad()
    def latents(
        self, text: TextStates, noise: Tensor, draft: Tensor | None, *, steps: int = 12, guidance_scale: float = 3.0
    ) -> Tensor:
        """Latents [B,C,h,w] for captions from standard-normal noise, by DPM-Solver++(2M)."""
        sigmas = make_sigmas("karras", self.schedule, steps)
        if draft is None and (channels := self.unet.config.draft_channels):
            draft = noise.new_zeros(len(noise), channels, *noise.shape[2:])

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            conditional = self._denoised(x, sigma, text, draft)
            unconditional = self._denoised(x, sigma, self._empty_for(text), draft)
            return unconditional + guidance_scale * (conditional - unconditional)

        start = noise * float((1 + sigmas[0] ** 2).sqrt())
        *_, last = sample("dpmpp_2m", denoise, start, sigmas)
        return last.x

    def _denoised(self, x: Tensor, sigma: Tensor, text: TextStates, draft: Tensor | None) -> Tensor:
        path, count = self.schedule.path, len(x)
        t = self.schedule.sigma_to_t(sigma).to(x.device, torch.float32).expand(count)
        prediction = self.unet(
            network_input(x, sigma, path).float(), t, text.context.to(x.device), context_mask=text.mask.to(x.device),
            pooled=text.pooled.to(x.device) if self.unet.config.pooled_width else None, draft=draft,
        )  # fmt: skip
        return denoised_from(prediction, x, sigma, self.config.parameterization, path)

    def _empty_for(self, text: TextStates) -> TextStates:
        count = len(text.pooled)
        return TextStates(
            *(t.expand(count, *t.shape[1:]) for t in (self.empty.context, self.empty.mask, self.empty.pooled))
        )
