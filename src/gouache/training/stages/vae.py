"""Stage 1: the KL autoencoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gouache.checkpoints.formats.safetensors import save_tensors
from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.diffusion.parameterization import expand_to
from gouache.models.configs import DenoiserConfig
from gouache.models.quantizer import Quantizer
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL, Moments
from gouache.pipeline.inputs.tensors import rgba_to_tensor
from gouache.training.batches.batch_shapes import batches_of_one_shape, shown
from gouache.training.batches.encoded import TextStates
from gouache.training.batches.store import CaptionedSource, FiniteSource, text_states
from gouache.training.config import TrainConfig
from gouache.training.inputs import RunInputs, autoencoder_of, initial_weights
from gouache.training.losses import PatchDiscriminator, adversarial_loss, edge_loss, psnr
from gouache.training.previewer import Previewer
from gouache.training.stage import Batch, BatchNoise, Losses, Preparing, Ready, Stage, freeze_parameters
from gouache.training.stage_tables import VaeStage
from gouache.training.stages.denoiser import DenoiserTraining

SHOWN, VALIDATED = 32, 256
QUANT_CONV = "quant_conv"


class DraftPainter(nn.Module):
    """Paints latents as the finished model does: from their own tokens' draft, without a caption.

    Args:
        unet, denoiser: the U-Net and its settings.
        quantizer: of the draft.
        empty: states of the empty caption, [1, ...].
    """

    STEPS = 2
    LAST = 0.05
    """The last noise level but 0: what it leaves can't be seen."""

    def __init__(self, unet: UNet, denoiser: DenoiserConfig, quantizer: Quantizer, empty: TextStates) -> None:
        super().__init__()
        self.unet, self.quantizer = unet, quantizer
        self.preview = Previewer(unet, denoiser, make_noise_schedule(**denoiser.schedule.model_dump()), empty)

    @classmethod
    def from_run(cls, inputs: RunInputs) -> DraftPainter:
        """From the results of stages `tokens` and `denoiser`.

        Raises:
            TrainingError: the run lacks one of them.
        """
        parts = DenoiserTraining.model_parts(inputs, {})
        empty = text_states(inputs.text()[0], [""])
        return cls(parts[DenoiserTraining.part], parts["denoiser_config"], inputs.quantizer(), empty)

    @torch.no_grad()
    def forward(self, latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Latents [B,C,h,w], noised to sigma [B] and denoised in `STEPS` steps of DDIM (Song et al. 2021)."""
        draft = self.quantizer.draft_of(latents)
        text = self.preview.empty.expanded(len(latents))
        x = latents + expand_to(sigma, latents) * noise
        for step in range(self.STEPS):
            clean = self.preview.denoised(x, sigma, text, draft)
            if step == self.STEPS - 1:
                break
            lower = torch.minimum(sigma, sigma * (self.LAST / sigma) ** (1 / (self.STEPS - 1 - step)))
            x, sigma = clean + expand_to(lower / sigma, x) * (x - clean), lower
        return clean


class VaeTraining(Stage[AutoencoderKL]):
    """Reconstruct pictures through the latents (Rombach et al. 2022, equation 25, with edges for the learned term)."""

    name = "vae"
    kind = "autoencoder"
    part = "vae"
    measured = ("scale", "shift")
    config: VaeStage

    def __init__(
        self,
        config: VaeStage,
        data: CaptionedSource,
        held_out: FiniteSource,
        seed: int,
        *,
        start: AutoencoderKL | None = None,
        painter: DraftPainter | None = None,
    ) -> None:
        super().__init__()
        self.config, self.data, self.held_out, self.seed = config, data, held_out, seed
        self.trained = start if start is not None else AutoencoderKL(config.sizes)
        self.encodes_as_before = "encoder" in config.freeze
        held = (QUANT_CONV,) if self.encodes_as_before and config.sizes.quant_conv else ()
        freeze_parameters(self.trained, (*config.freeze, *held), "vae.freeze")
        self.discriminator = PatchDiscriminator(config.sizes.image_channels) if config.adversarial else None
        self.painter = painter
        if painter is not None:
            self.freeze("painter")

    @classmethod
    def from_run(cls, inputs: RunInputs) -> Iterator[Preparing | Ready]:
        table = inputs.table(cls.name, VaeStage)
        sources = inputs.sources(table.loop.batch_size)
        with initial_weights(table.loop.seed):
            start = None if table.start is None else autoencoder_of(table.start).train().requires_grad_(True)
            if start is not None:
                table = table.model_copy(update={"network": start.config, "start": None})
            painter = DraftPainter.from_run(inputs) if table.painted else None
            stage = cls(table, sources.train, sources.held_out, table.loop.seed, start=start, painter=painter)
        yield Ready(stage, table)

    @classmethod
    def base_model(cls, config: TrainConfig) -> Path | None:
        """The model whose autoencoder is refined, where no denoiser is trained on its latents."""
        return config.vae.start if config.denoiser is None and config.vae is not None else None

    @classmethod
    def model_parts(cls, inputs: RunInputs, others: Mapping[str, Any]) -> dict[str, Any]:
        del others
        return {cls.part: inputs.vae()}

    def batch(self, indices: Sequence[int]) -> Batch:
        image = self._tensor(self.data, indices)
        height, width = (side // self.config.sizes.downscale for side in image.shape[-2:])
        noise = BatchNoise(self.seed, indices)
        shape = (self.config.sizes.latent_channels, height, width)
        batch = {"image": image, "noise": noise.normal("posterior", shape), "index": torch.tensor(indices)}
        if self.painter is not None:
            low, high = (math.log(level) for level in self.config.painted_from)
            batch["painted"] = noise.uniform("painted") < self.config.painted
            batch["sigma"] = torch.exp(low + (high - low) * noise.uniform("sigma"))
        return batch

    def forward(self, batch: Batch) -> Losses:
        config, image = self.config, batch["image"]
        moments = self._encoded(image)
        latents = self._painted(self.trained.normalise(moments.sample(batch["noise"])), batch)
        picture = self.trained.decode(_with_gradient(latents) if config.freeze else latents)
        losses = {
            "l1": (picture - image).abs().mean(),
            "l2": (picture - image).square().mean(),
            "edges": edge_loss(picture, image),
            "kl": moments.kl().mean() / moments.mean[0].numel(),
        }
        loss = config.l1 * losses["l1"] + config.l2 * losses["l2"] + config.edges * losses["edges"]
        loss = loss + config.kl * losses["kl"]
        if self.discriminator is not None:
            started = float(batch["index"][0] >= config.adversarial_start)
            weight = config.adversarial * started
            losses["adversarial"] = adversarial_loss(self.discriminator, picture, image, weight, loss)
            loss = loss + losses["adversarial"]
        return {"loss": loss, **losses}

    def _encoded(self, image: Tensor) -> Moments:
        if self.encodes_as_before:
            with torch.no_grad():
                return self.trained.encode(image)
        return self.trained.encode(_with_gradient(image) if self.config.freeze else image)

    def _painted(self, latents: Tensor, batch: Batch) -> Tensor:
        """The latents, some of them painted by the denoiser."""
        if self.painter is None or not len(chosen := batch["painted"].nonzero().squeeze(1)):
            return latents
        painted = self.painter(latents[chosen].float(), batch["noise"][chosen], batch["sigma"][chosen])
        return latents.index_copy(0, chosen, painted.to(latents.dtype))

    def validate(self, network: AutoencoderKL) -> dict[str, float]:
        """PSNR of held-out pictures through the latents' mode, in dB, and their KL in nats a latent."""
        ratios, kl = [], []
        for numbers in batches_of_one_shape(self.held_out, min(VALIDATED, len(self.held_out)), 32):
            image = self._tensor(self.held_out, numbers).to(self.device)
            moments = network.encode(image)
            ratios.append(psnr(_through(network, moments.mode()), image))
            kl.append(moments.kl() / moments.mean[0].numel())
        mean = float(torch.cat(ratios).mean())
        return {"score": -mean, "psnr": mean, "kl": float(torch.cat(kl).mean())}

    def samples(self, network: AutoencoderKL) -> Tensor:
        """Held-out pictures, each followed by its reconstruction."""
        image = self._tensor(self.held_out, shown(self.held_out, len(self.held_out), SHOWN)).to(self.device)
        vae = network
        return torch.stack([image, _through(vae, vae.encode(image).mode())], dim=1).flatten(0, 1)

    def export(self, network: AutoencoderKL, path: Path) -> None:
        """Write the autoencoder, with the scale and shift that normalise its latents of this data."""
        if self.encodes_as_before:
            config = network.config.to_json()
        else:
            config = measure_normalisation(network, [self._tensor(self.data, part) for part in self._parts(256)])
        save_tensors(path, network.state_dict(), {"component": self.part, "config": config})

    def _parts(self, count: int) -> list[list[int]]:
        """The first `count` numbers of the stream, each part within one batch and so of one shape."""
        batch = self.config.loop.batch_size
        return [list(range(k, min(k + batch, count))) for k in range(0, count, batch)]

    def _tensor(self, source: CaptionedSource, numbers: Sequence[int]) -> Tensor:
        return rgba_to_tensor(source.examples(numbers).pictures)[:, : self.config.sizes.image_channels]


def _with_gradient(x: Tensor) -> Tensor:
    """torch 2.13 crashes in the backward pass of a channels-last group norm whose input needs no gradient."""
    return x if x.requires_grad or not torch.is_grad_enabled() else x.detach().requires_grad_()


def _through(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    return vae.decode(vae.normalise(latents))


def measure_normalisation(vae: AutoencoderKL, images: Sequence[Tensor]) -> str:
    """The autoencoder's config as JSON, with the scale and shift that give its latents mean 0 and deviation 1."""
    device = next(vae.parameters()).device
    with torch.no_grad():
        parts = [vae.encode(part.to(device)).mode() for image in images for part in torch.split(image, 32)]
    latents = torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1)  # [C, N]
    mean, deviation = latents.mean(1), latents.std(1)
    update = {"scale": tuple((1 / deviation).tolist()), "shift": tuple(mean.tolist())}
    return vae.config.model_copy(update=update).to_json()
