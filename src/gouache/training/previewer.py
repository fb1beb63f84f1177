"""Samples latents from a network in training, for its sample sheets and for stages that train on what it paints."""

from __future__ import annotations

import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import NoiseSchedule
from gouache.diffusion.parameterization import denoised_from, network_input
from gouache.diffusion.samplers.registry import sample
from gouache.diffusion.samplers.sigmas import make_sigmas
from gouache.models.configs import DenoiserConfig
from gouache.models.mmdit import MMDiT
from gouache.models.unet import UNet
from gouache.training.batches.encoded import TextStates
from gouache.training.denoising import beside


class Previewer:
    """Samples latents from a U-Net in training.

    Args:
        unet: the network, in evaluation mode.
        config, schedule: of its denoiser.
        empty: states of the empty caption, for guidance.
    """

    def __init__(self, unet: UNet | MMDiT, config: DenoiserConfig, schedule: NoiseSchedule, empty: TextStates) -> None:
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
            conditional = self.denoised(x, sigma, text, draft)
            unconditional = self.denoised(x, sigma, self.empty.expanded(len(text.pooled)), draft)
            return unconditional + guidance_scale * (conditional - unconditional)

        start = noise * float((1 + sigmas[0] ** 2).sqrt())
        *_, last = sample("dpmpp_2m", denoise, start, sigmas)
        return last.x

    def denoised(self, x: Tensor, sigma: Tensor, text: TextStates, draft: Tensor | None) -> Tensor:
        """D(x, sigma) of x = x0 + sigma eps [B,C,h,w] with sigma [] or [B] (Karras et al. 2022, equation 7)."""
        path, count = self.schedule.path, len(x)
        t = self.schedule.sigma_to_t(sigma).to(x.device, torch.float32).expand(count)
        prediction = self.unet(
            network_input(x, sigma, path).float(),
            t,
            text.context.to(x.device),
            context_mask=text.mask.to(x.device),
            pooled=text.pooled.to(x.device) if self.unet.config.pooled_width else None,
            **beside(draft),
        )
        return denoised_from(prediction, x, sigma, self.config.parameterization, path)
