"""The loss of latent diffusion (Rombach et al. 2022, equation 3): what is drawn for it, and how a network errs.

Every stage that trains something to denoise uses it: whole networks, and what is added to frozen ones.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gouache.diffusion.bound import hybrid_loss
from gouache.diffusion.chain import ForwardProcess
from gouache.diffusion.loss_weights import loss_weight
from gouache.diffusion.noise_schedule import NoiseSchedule, alpha_and_std, make_noise_schedule
from gouache.diffusion.parameterization import Prediction, target_of, to_x0
from gouache.errors import ConfigError
from gouache.models.configs import DenoiserConfig
from gouache.models.network_configs import NetworkConfig
from gouache.models.quantizer import Quantizer
from gouache.training.stage import Batch, BatchNoise
from gouache.training.stage_tables import DenoisingTable


class Network(Protocol):
    """A network that denoises: latents [B,C,h,w], timesteps [B] and context [B,L,D] to its prediction [B,C,h,w]."""

    def __call__(self, x: Tensor, timestep: Tensor, context: Tensor, /, **given: Any) -> Tensor: ...


class Denoising:
    """The loss, for networks of one shape.

    Args:
        config: weights, noise levels and dropouts.
        denoiser: what the network predicts, and its noise schedule.
        sizes: of the network.
        quantizer: which drafts are made with; None trains without.

    Raises:
        ConfigError: the variance is learned, and the network has no output for it, or the other way round.
    """

    def __init__(
        self, config: DenoisingTable, denoiser: DenoiserConfig, sizes: NetworkConfig, quantizer: Quantizer | None
    ) -> None:
        self.config, self.denoiser, self.sizes, self.quantizer = config, denoiser, sizes, quantizer
        self.schedule = make_noise_schedule(**denoiser.schedule.model_dump())
        self.chain = _chain_of(denoiser, sizes, self.schedule)

    def draws(self, latents: Tensor, noise: BatchNoise, *, exact: bool = False) -> Batch:
        """Latents [B,C,h,w] with everything that is drawn for them, each image from its own generator.

        `exact` leaves drafts as they are, and draws noise levels evenly: for validation.
        """
        config, eps = self.config, noise.normal("eps", latents.shape[1:])
        if config.noise_offset:
            eps = eps + config.noise_offset * noise.normal("offset", (latents.shape[1], 1, 1))
        place = self._places(noise, exact=exact).double() * (self.schedule.num_timesteps - 1)
        if self.chain is not None:
            place = place.round()  # the chain of L_vlb has whole steps only
        batch = {"x0": latents, "eps": eps, "sigma": self.schedule.index_to_sigma(place), "step": place.long()}
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

    def errors(self, network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
        """Weighted and plain squared error of every picture [B], [B].

        Args:
            network: called with noised latents, timesteps and context.
            batch: what `draws` gave, with `context` [B,L,D], `mask` [B,L] and `pooled` [B,P].
        """
        kind, sigma = self.denoiser.parameterization, batch["sigma"]
        alpha, std = (value.to(batch["x0"].dtype) for value in alpha_and_std(sigma, self.schedule.path))
        shown = batch["eps"] + batch["perturbation"] if "perturbation" in batch else batch["eps"]
        x_t = alpha.view(-1, 1, 1, 1) * batch["x0"] + std.view(-1, 1, 1, 1) * shown
        if torch.is_grad_enabled() and _has_trained_weights(network):
            # torch 2.13 crashes in the backward pass of a channels-last group norm with trained gains whose input needs
            # no gradient, as the first of a network does whose first layers are frozen.
            x_t.requires_grad_()
        prediction = network(
            x_t,
            self.schedule.sigma_to_t(sigma).to(x_t.dtype),
            batch["context"],
            context_mask=batch["mask"],
            pooled=batch["pooled"] if self.sizes.pooled_width else None,
            **beside(self.draft(batch)),
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
    def draft(self, batch: Batch) -> Tensor | None:
        """The draft of the true tokens, some of them replaced; zero where it is dropped, and in a model without."""
        if not self.sizes.draft_channels:
            return None
        draft, kept = torch.zeros_like(batch["x0"]), batch["keep_draft"].nonzero().squeeze(1)
        if len(kept) and self.quantizer is not None:
            tokens = self.quantizer.encode(batch["x0"][kept])
            wrong = torch.where(batch["wrong"][kept], batch["random"][kept], tokens)
            draft[kept] = self.quantizer.decode(wrong).to(draft.dtype)
        return draft

    def _places(self, noise: BatchNoise, *, exact: bool) -> Tensor:
        """Noise levels as places in the schedule's index, where the shift of flow matching acts too: [B] in 0..1."""
        config = self.config
        if exact or config.timesteps == "uniform":
            return noise.uniform("t")
        return torch.sigmoid(config.timestep_mean + config.timestep_std * noise.normal("t", (1,)).squeeze(1))


def _has_trained_weights(network: Network) -> bool:
    return isinstance(network, nn.Module) and any(weight.requires_grad for weight in network.parameters())


def beside(draft: Tensor | None) -> dict[str, Tensor]:
    """What a network is given beside latents, time and text: a draft, if there is one."""
    return {} if draft is None else {"draft": draft}


def _chain_of(denoiser: DenoiserConfig, sizes: NetworkConfig, schedule: NoiseSchedule) -> ForwardProcess | None:
    """The chain whose variance is learned; none if it is not."""
    learned, doubled = denoiser.learned_variance, sizes.out_channels == 2 * sizes.in_channels
    if learned != doubled or (learned and schedule.path != "vp"):
        raise ConfigError(
            "denoiser.network.out_channels",
            given=f"{sizes.out_channels} with learned_variance = {learned} on a {schedule.path} schedule",
            expected="twice in_channels on a variance-preserving schedule if the variance is learned, else in_channels",
        )
    return ForwardProcess(schedule) if learned else None
