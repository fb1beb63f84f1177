"""Stage 5: the network of latent diffusion, U-Net or transformer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gouache.checkpoints.detect import config_kind
from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import save_tensors
from gouache.checkpoints.networks import build
from gouache.models.configs import DenoiserConfig
from gouache.models.mmdit import MMDiT
from gouache.models.quantizer import Quantizer
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL
from gouache.training.batches.batch_shapes import batches_of_one_shape, check_square, order_of, shown
from gouache.training.batches.encoded import Encoded, drop_captions
from gouache.training.batches.loss_marks import marks_of
from gouache.training.batches.sources import Sources
from gouache.training.config import TrainConfig, stage_config
from gouache.training.denoising import Denoising, rescaled
from gouache.training.inputs import RunInputs, initial_weights, load_network, result_of
from gouache.training.previewer import Previewer, PromptPainter
from gouache.training.stage import Batch, BatchNoise, Losses, Preparing, Ready, Stage, freeze_parameters
from gouache.training.stage_tables import DenoiserStage


def new_network(config: DenoiserStage) -> UNet | MMDiT:
    """A network of a stage's sizes, with random weights."""
    network = build(config.sizes)
    assert isinstance(network, UNet | MMDiT), "the config decides the class"
    return network


SHOWN, SHOWN_TUNING = 16, 8


class DenoiserTraining(Stage[UNet | MMDiT]):
    """Predict what was added to the latents (Rombach et al. 2022, equation 3), given text and, at times, a draft."""

    name = "denoiser"
    kind = "U-Net"
    part = "unet"
    settings = {"denoiser": "denoiser_config"}  # noqa: RUF012 - declared as a ClassVar in Stage
    chooses_average = True
    config: DenoiserStage
    painter: PromptPainter | None = None
    """What the config's prompts are painted with."""

    def __init__(
        self,
        config: DenoiserStage,
        data: Encoded,
        held_out: Encoded,
        quantizer: Quantizer | None,
        vae: AutoencoderKL | None,
        seed: int,
        *,
        start: UNet | MMDiT | None = None,
    ) -> None:
        super().__init__()
        self.config, self.data, self.held_out, self.seed = config, data, held_out, seed
        if quantizer is not None:
            for part in (data, held_out):
                check_square(part, "denoiser with a draft")
        self.order = order_of(data, len(data), config.loop.batch_size, seed)
        self.denoising = Denoising(config, config.denoiser, config.sizes, quantizer)
        self.is_tuning = start is not None
        self.trained = start if start is not None else new_network(config)
        if start is None:
            self.trained.zero_residual_ends()
        freeze_parameters(self.trained, config.freeze, "denoiser.freeze")
        self.trained.set_gradient_checkpointing(config.gradient_checkpointing)
        self.quantizer, self.vae = quantizer, vae
        self.freeze(*(name for name in ("quantizer", "vae") if getattr(self, name) is not None))

    @classmethod
    def from_run(cls, inputs: RunInputs) -> Iterator[Preparing | Ready]:
        table, sources = inputs.table(cls.name, DenoiserStage), inputs.sources()
        if table.start is not None:
            yield from cls._fine_tuning(inputs, table, table.start, sources)
            return
        vae = inputs.vae()
        stores = yield from inputs.encoded(sources, inputs.encoders(vae))
        with initial_weights(table.loop.seed):
            drafts = inputs.quantizer() if table.sizes.draft_channels else None
            stage = cls(table, *stores, drafts, vae, table.loop.seed)
        yield Ready(stage, table)

    @classmethod
    def _fine_tuning(
        cls, inputs: RunInputs, table: DenoiserStage, start: Path, sources: Sources
    ) -> Iterator[Preparing | Ready]:
        """On a published or packed model, whose other parts stay as they are."""
        bundle, encoders = inputs.started(cls.name, start)
        stores = yield from inputs.encoded(sources, encoders)
        denoiser = rescaled(bundle.denoiser_config, table, cls.name)
        update = {"network": bundle.unet.config, "start": None, "denoiser": denoiser}
        # Both belong to a start, which the run's checkpoints don't name; prompts may change between two sessions.
        ready = table.model_copy(update={**update, "zero_terminal_snr": False, "prompts": ()})
        drafts = inputs.drafting(bundle) if ready.sizes.draft_channels else None
        stage = cls(ready, *stores, drafts, bundle.vae, table.loop.seed, start=bundle.unet)
        if table.prompts:
            stage.painter = PromptPainter(
                replace(bundle, denoiser_config=denoiser), table.prompts, inputs.config.data.size
            )
        yield Ready(stage, ready)

    @classmethod
    def base_model(cls, config: TrainConfig) -> Path | None:
        """The model that is fine-tuned.

        Raises:
            TrainingError: the config has no denoiser, without which there is nothing to pack.
        """
        # A model's quantizer or prior, or the network beside it that follows instructions, may be all that was trained.
        tuned = any(table is not None and table.start is not None for table in (config.tokens, config.prior))
        if config.instruct is None and not tuned:
            stage_config(config, cls.name)
        return config.denoiser.start if config.denoiser is not None else None

    @classmethod
    def model_parts(cls, inputs: RunInputs, others: Mapping[str, Any]) -> dict[str, Any]:
        del others
        path = result_of(inputs.run, cls.name)
        denoiser = DenoiserConfig.from_json(read_header(path).metadata["denoiser"], where=str(path))
        kind = config_kind(cls.part, read_header(path).metadata["config"])
        return {cls.part: load_network(build, kind, path), "denoiser_config": denoiser}

    def batch(self, indices: Sequence[int]) -> Batch:
        return self._batch(self.data, self.order.numbers(indices), indices)

    def forward(self, batch: Batch) -> Losses:
        weighted, plain = self.denoising.errors(self.trained, batch)
        return {"loss": weighted.mean(), "mse": plain.mean().detach()}

    def validate(self, network: UNet | MMDiT) -> dict[str, float]:
        """Unweighted error on held-out pictures at fixed noise, without a draft and with the true one."""
        errors: dict[str, list[Tensor]] = {"mse": []}
        if self.quantizer is not None:
            errors["mse_with_draft"] = []
        for numbers in batches_of_one_shape(self.held_out, len(self.held_out)):
            batch = {k: v.to(self.device) for k, v in self._batch(self.held_out, numbers, numbers, exact=True).items()}
            for name, values in errors.items():
                batch["keep_draft"] = torch.full_like(batch["keep_draft"], name == "mse_with_draft")
                values.append(self.denoising.errors(network, batch)[1])
        figures = {name: float(torch.cat(values).mean()) for name, values in errors.items()}
        return {"score": sum(figures.values()), **figures}

    def samples(self, network: UNet | MMDiT) -> Tensor | None:
        """For held-out captions: the picture, the U-Net's without a draft, and its with the true draft.

        Of a model that is trained further few, and only those that it paints as it does later: with its draft, if any.
        """
        if self.vae is None:
            return None
        numbers = shown(self.held_out, len(self.held_out), SHOWN_TUNING if self.is_tuning else SHOWN)
        latents = self.held_out.latents(numbers).to(self.device)
        text = self.held_out.text(numbers)
        preview = Previewer(network, self.config.denoiser, self.denoising.schedule, self.data.empty)
        noise = BatchNoise(self.seed, numbers).normal("samples", latents.shape[1:]).to(self.device)
        rows = [latents]
        if self.quantizer is None or not self.is_tuning:
            rows.append(preview.latents(text, noise, None))
        if self.quantizer is not None:
            rows.append(preview.latents(text, noise, self.quantizer.draft_of(latents)))
        return torch.stack([self.vae.decode(row) for row in rows], dim=1).flatten(0, 1)

    def prompted(self, network: UNet | MMDiT) -> Tensor | None:
        return None if self.painter is None else self.painter.sheet(network, self.device)

    def export(self, network: UNet | MMDiT, path: Path) -> None:
        """Write the U-Net with the denoiser's settings."""
        metadata = {"component": self.part, "config": network.config.to_json()}
        save_tensors(path, network.state_dict(), metadata | {"denoiser": self.config.denoiser.to_json()})

    def _batch(self, data: Encoded, numbers: list[int], indices: Sequence[int], *, exact: bool = False) -> Batch:
        """Latents, text and noise; `exact` leaves captions and drafts as they are."""
        noise, latents, text = BatchNoise(self.seed, indices), data.latents(numbers), data.text(numbers)
        if not exact:
            text = drop_captions(text, data.empty, noise.uniform("caption") < self.config.caption_dropout)
        marks = marks_of(data, numbers, latents.shape[2:], self.config.prior_loss_weight)
        return self.denoising.draws(latents, noise, exact=exact) | text.batch() | marks
