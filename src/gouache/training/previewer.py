"""What a network in training paints, for its sample sheets and for stages that train on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.diffusion.noise_schedule import NoiseSchedule
from gouache.diffusion.parameterization import denoised_from, network_input
from gouache.diffusion.samplers.registry import sample
from gouache.diffusion.samplers.sigmas import make_sigmas
from gouache.models.bundle import ModelBundle
from gouache.models.configs import DenoiserConfig
from gouache.models.mmdit import MMDiT
from gouache.models.unet import UNet
from gouache.pipeline.inputs.tensors import to_tensor
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.adapters import Adapters
from gouache.pipeline.request import Request
from gouache.training.batches.encoded import TextStates
from gouache.training.denoising import SizedNetwork, beside


class Previewer:
    """Samples latents from a U-Net in training.

    Args:
        unet: the network, in evaluation mode.
        config, schedule: of its denoiser.
        empty: states of the empty caption, for guidance.
    """

    def __init__(self, unet: SizedNetwork, config: DenoiserConfig, schedule: NoiseSchedule, empty: TextStates) -> None:
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
        prediction: Tensor = self.unet(
            network_input(x, sigma, path).float(),
            t,
            text.context.to(x.device),
            context_mask=text.mask.to(x.device),
            pooled=text.pooled.to(x.device) if self.unet.config.pooled_width else None,
            **beside(draft),
        )
        return denoised_from(prediction, x, sigma, self.config.parameterization, path)


MOST_STEPS = 20
"""Denoising steps of a prompt's picture, or fewer where the model is used with fewer: enough to see what it learns."""
NOWHERE = Path("/nonexistent")


def painted(pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], size: tuple[int, int]) -> Tensor:
    """One picture of each prompt, as anybody's request to the model gives it. [B,C,H,W] in [-1, 1]

    Adapters in the models folder are left out: one may have the name that is being trained.

    Args:
        pipeline: with the model.
        prompts: B of them.
        seeds: of each.
        size: height and width.
    """
    pipeline.adapters = Adapters(pipeline.bundle, AdapterFolder(NOWHERE))
    pictures = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        request = pipeline.resolve(Request(prompt=prompt, seed=seed, width=size[1], height=size[0]))
        steps = min(request.num_inference_steps or MOST_STEPS, MOST_STEPS)
        picture = pipeline.paint(request.model_copy(update={"num_inference_steps": steps}))[0].image
        pictures.append(to_tensor(picture, pipeline.bundle.vae.config.image_channels))
    return torch.stack(pictures)


class PromptPainter:
    """Paints fixed prompts with fixed seeds through a network in training, as `gouache paint` will with the result.

    Args:
        bundle: the model that is trained further; its other parts are used as they are.
        prompts: what to paint; the n-th with seed n.
        size: side of the pictures in pixels.
    """

    def __init__(self, bundle: ModelBundle, prompts: Sequence[str], size: int) -> None:
        self.bundle, self.prompts, self.size = bundle, prompts, size

    def sheet(self, network: UNet | MMDiT, device: torch.device) -> Tensor:
        """A picture for every prompt, [N,C,H,W] in [-1,1]; `network` takes the place of the model's own."""
        pipeline = Pipeline(replace(self.bundle, unet=network)).to(device)
        return painted(pipeline, self.prompts, range(len(self.prompts)), (self.size, self.size))
