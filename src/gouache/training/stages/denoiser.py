"""Stage 5: the network of latent diffusion, U-Net or transformer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gouache.checkpoints.detect import config_kind
from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import save_tensors
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.networks import build
from gouache.diffusion.bound import hybrid_loss
from gouache.diffusion.chain import ForwardProcess
from gouache.diffusion.loss_weights import loss_weight
from gouache.diffusion.noise_schedule import NoiseSchedule, alpha_and_std, make_noise_schedule
from gouache.diffusion.parameterization import Prediction, denoised_from, network_input, target_of, to_x0
from gouache.diffusion.samplers.registry import sample
from gouache.diffusion.samplers.sigmas import make_sigmas
from gouache.errors import ConfigError
from gouache.models.bundle import ModelBundle
from gouache.models.configs import DenoiserConfig
from gouache.models.family import POCKET
from gouache.models.mmdit import MMDiT
from gouache.models.quantizer import Quantizer
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL
from gouache.training.batches.batch_shapes import batches_of_one_shape, check_square, order_of, shown
from gouache.training.batches.encoded import Encoded, TextStates, drop_captions
from gouache.training.batches.sources import Sources
from gouache.training.batches.store import Encoders
from gouache.training.config import TrainConfig, stage_config
from gouache.training.inputs import RunInputs, initial_weights, load_network, result_of
from gouache.training.stage import Batch, BatchNoise, Losses, Preparing, Ready, Stage, freeze_parameters
from gouache.training.stage_tables import DenoiserStage


def new_network(config: DenoiserStage) -> UNet | MMDiT:
    """A network of a stage's sizes, with random weights."""
    network = build(config.sizes)
    assert isinstance(network, UNet | MMDiT), "the config decides the class"
    return network


def beside(draft: Tensor | None) -> dict[str, Tensor]:
    """What a network is given beside latents, time and text: a draft, if there is one."""
    return {} if draft is None else {"draft": draft}


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


SHOWN, SHOWN_TUNING = 16, 8


class DenoiserTraining(Stage[UNet | MMDiT]):
    """Predict what was added to the latents (Rombach et al. 2022, equation 3), given text and, at times, a draft."""

    name = "denoiser"
    kind = "U-Net"
    part = "unet"
    settings = {"denoiser": "denoiser_config"}  # noqa: RUF012 - declared as a ClassVar in Stage
    chooses_average = True
    config: DenoiserStage

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
        self.schedule = make_noise_schedule(**config.denoiser.schedule.model_dump())
        self.chain = _chain_of(config, self.schedule)
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
        """On a published or packed model, whose other parts stay as they are; drafts are its own quantizer's."""
        size = inputs.config.data.size
        bundle = start_model(start, size, cls.name)
        stores = yield from inputs.encoded(sources, encoders_of(bundle, start, size))
        update = {"network": bundle.unet.config, "start": None, "denoiser": bundle.denoiser_config}
        ready = table.model_copy(update=update)
        drafts = bundle.quantizer if ready.sizes.draft_channels else None
        yield Ready(cls(ready, *stores, drafts, bundle.vae, table.loop.seed, start=bundle.unet), ready)

    @classmethod
    def base_model(cls, config: TrainConfig) -> Path | None:
        """The model that is fine-tuned.

        Raises:
            TrainingError: the config has no denoiser, without which there is nothing to pack.
        """
        if config.prior is None or config.prior.start is None:  # whose model's prior may be all that was trained
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
        weighted, plain = self._errors(self.trained, batch)
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
                values.append(self._errors(network, batch)[1])
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
        preview = Previewer(network, self.config.denoiser, self.schedule, self.data.empty)
        noise = BatchNoise(self.seed, numbers).normal("samples", latents.shape[1:]).to(self.device)
        rows = [latents]
        if self.quantizer is None or not self.is_tuning:
            rows.append(preview.latents(text, noise, None))
        if self.quantizer is not None:
            rows.append(preview.latents(text, noise, self.quantizer.decode(self.quantizer.encode(latents))))
        return torch.stack([self.vae.decode(row) for row in rows], dim=1).flatten(0, 1)

    def export(self, network: UNet | MMDiT, path: Path) -> None:
        """Write the U-Net with the denoiser's settings."""
        metadata = {"component": self.part, "config": network.config.to_json()}
        save_tensors(path, network.state_dict(), metadata | {"denoiser": self.config.denoiser.to_json()})

    def _batch(self, data: Encoded, numbers: list[int], indices: Sequence[int], *, exact: bool = False) -> Batch:
        """Latents, text and noise; `exact` leaves captions and drafts as they are."""
        config, noise, latents = self.config, BatchNoise(self.seed, indices), data.latents(numbers)
        text = data.text(numbers)
        if not exact:
            text = drop_captions(text, data.empty, noise.uniform("caption") < config.caption_dropout)
        eps = noise.normal("eps", latents.shape[1:])
        if config.noise_offset:
            eps = eps + config.noise_offset * noise.normal("offset", (latents.shape[1], 1, 1))
        place = self._places(noise, exact=exact).double() * (self.schedule.num_timesteps - 1)
        if self.chain is not None:
            place = place.round()  # the chain of L_vlb has whole steps only
        sigma = self.schedule.index_to_sigma(place)
        batch = {"x0": latents, "eps": eps, "sigma": sigma, "step": place.long(), **text.batch()}
        if config.input_perturbation:
            batch["perturbation"] = config.input_perturbation * noise.normal("perturbation", latents.shape[1:])
        if self.quantizer is not None:
            tokens = self.quantizer.config
            share = noise.uniform("share") * (0 if exact else config.draft_noise)
            shape = (sum(tokens.groups),)
            batch["wrong"] = noise.uniform("wrong", shape) < share[:, None]
            batch["random"] = noise.integers("random", tokens.vocabulary, shape)
        batch["keep_draft"] = noise.uniform("draft") >= config.draft_dropout
        return batch

    def _places(self, noise: BatchNoise, *, exact: bool) -> Tensor:
        """Noise levels as places in the schedule's index, where the shift of flow matching acts too: [B] in 0..1."""
        config = self.config
        if exact or config.timesteps == "uniform":
            return noise.uniform("t")
        return torch.sigmoid(config.timestep_mean + config.timestep_std * noise.normal("t", (1,)).squeeze(1))

    def _errors(self, network: UNet | MMDiT, batch: Batch) -> tuple[Tensor, Tensor]:
        """Weighted and plain squared error of every picture [B], [B]."""
        kind = self.config.denoiser.parameterization
        sigma = batch["sigma"]
        alpha, std = (value.to(batch["x0"].dtype) for value in alpha_and_std(sigma, self.schedule.path))
        shown = batch["eps"] + batch["perturbation"] if "perturbation" in batch else batch["eps"]
        x_t = alpha.view(-1, 1, 1, 1) * batch["x0"] + std.view(-1, 1, 1, 1) * shown
        if self.config.freeze and torch.is_grad_enabled():
            # torch 2.13 crashes in the backward pass of a channels-last group norm whose input needs no gradient.
            x_t.requires_grad_()
        text = TextStates(batch["context"], batch["mask"], batch["pooled"])
        prediction = network(
            x_t,
            self.schedule.sigma_to_t(sigma).to(x_t.dtype),
            text.context,
            context_mask=text.mask,
            pooled=text.pooled if self.config.sizes.pooled_width else None,
            **beside(self._draft(batch)),
        )
        mean, interpolation = prediction.to(x_t.dtype), None
        if self.chain is not None:
            mean, interpolation = mean.chunk(2, dim=1)
        target = target_of(kind, batch["x0"], batch["eps"], alpha, std)
        plain = (mean - target).square().flatten(1).mean(1)
        weight = loss_weight(self.config.weight, sigma, kind, self.schedule.path, gamma=self.config.weight_gamma)
        loss = weight.to(plain.dtype) * plain
        if self.chain is not None:
            guess = Prediction(to_x0(mean.detach(), x_t, alpha, std, kind), interpolation)
            lambda_ = self.config.hybrid_lambda
            loss = hybrid_loss(self.chain, batch["x0"], x_t, batch["step"], guess, loss, weight=lambda_)
        return loss, plain

    @torch.no_grad()
    def _draft(self, batch: Batch) -> Tensor | None:
        """The draft of the true tokens, some of them replaced; zero where it is dropped, and in a model without."""
        if not self.config.sizes.draft_channels:
            return None
        draft, kept = torch.zeros_like(batch["x0"]), batch["keep_draft"].nonzero().squeeze(1)
        if len(kept) and self.quantizer is not None:
            tokens = self.quantizer.encode(batch["x0"][kept])
            wrong = torch.where(batch["wrong"][kept], batch["random"][kept], tokens)
            draft[kept] = self.quantizer.decode(wrong).to(draft.dtype)
        return draft


def start_model(path: Path, size: int, stage: str) -> ModelBundle:
    """A model to train further, in fp32.

    Args:
        path: where it lies.
        size: side of the pictures in pixels.
        stage: which trains it.

    Raises:
        ConfigError: it is shown pictures beside the text, or its drafts have another size.
    """
    bundle = load_bundle(path, dtype=torch.float32)
    shown, quantizer = bundle.unet.config.draft_channels, bundle.quantizer
    if bundle.picture_width or not bundle.reads_texts or (shown and quantizer is None and bundle.family != POCKET.name):
        raise ConfigError(
            f"{stage}.start", given=f"{path}, which is shown pictures", expected="a model trained on texts alone"
        )
    if quantizer is not None and (side := quantizer.config.latent_size * bundle.vae.config.downscale) != size:
        cure = f"Say [data] size = {side}."
        raise ConfigError("data.size", given=size, expected=f"{side}, as the drafts of {path} have", cure=cure)
    return bundle


def encoders_of(bundle: ModelBundle, path: Path, size: int) -> Encoders:
    """The encoders of a published model, for square pictures of `size` pixels."""
    numbers = bundle.size_condition(size, size)

    def pooled(text: Tensor | None) -> Tensor | None:
        rows = None if numbers is None or text is None else numbers.expand(len(text), -1)
        return bundle.pooled_vector(text, rows)

    sha = bundle.sha256 or f"{path.resolve()}/{_file_marks(path)}"
    return Encoders(bundle.vae, bundle.text, sha, pooled)


def _file_marks(path: Path) -> str:
    """Sizes and times of a model's files: enough to notice that it was replaced."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return "/".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files if f.is_file())


def _chain_of(config: DenoiserStage, schedule: NoiseSchedule) -> ForwardProcess | None:
    """The chain whose variance is learned; none if it is not."""
    learned, doubled = config.denoiser.learned_variance, config.sizes.out_channels == 2 * config.sizes.in_channels
    if learned != doubled or (learned and schedule.path != "vp"):
        raise ConfigError(
            "denoiser.network.out_channels",
            given=f"{config.sizes.out_channels} with learned_variance = {learned} on a {schedule.path} schedule",
            expected="twice in_channels on a variance-preserving schedule if the variance is learned, else in_channels",
        )
    return ForwardProcess(schedule) if learned else None
