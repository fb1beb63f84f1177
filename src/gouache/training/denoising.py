"""The loss of latent diffusion (Rombach et al. 2022, equation 3): what is drawn for it, and how a network errs.

Every stage that trains something to denoise uses it: whole networks, and what is added to frozen ones.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.diffusion.bound import hybrid_loss
from gouache.diffusion.chain import ForwardProcess
from gouache.diffusion.loss_weights import loss_weight, shaped
from gouache.diffusion.noise_schedule import NoiseSchedule, alpha_and_std, make_noise_schedule
from gouache.diffusion.parameterization import Prediction, target_of, to_x0
from gouache.errors import ConfigError
from gouache.models.configs import DenoiserConfig
from gouache.models.network_configs import NetworkConfig
from gouache.models.quantizer import Quantizer
from gouache.training.stage import Batch, BatchNoise
from gouache.training.stage_tables import DenoisingTable

FROM_DRAFT = 0.8
"""Share of the pictures with a draft whose way begins there, where `draft_start` is set; the others keep what is needed
to begin on noise, or on a picture to edit."""
AT_START = 1.2
"""Levels on that way are drawn uniformly up to this many times its first, and cut there: a sixth lie at the first."""


class Network(Protocol):
    """A network that denoises: latents [B,C,h,w], timesteps [B] and context [B,L,D] to its prediction [B,C,h,w]."""

    def __call__(self, x: Tensor, timestep: Tensor, context: Tensor, /, **given: Any) -> Tensor: ...


class SizedNetwork(Network, Protocol):
    """A network that says its sizes."""

    @property
    def config(self) -> NetworkConfig:
        """Its sizes."""
        ...


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
        if config.pyramid_levels and not exact:
            eps = pyramid(eps, noise, config.pyramid_levels, config.pyramid_discount)
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
            batch["refined"] = noise.uniform("residual") >= (0 if exact else config.residual_dropout)
        batch["keep_draft"] = noise.uniform("draft") >= config.draft_dropout
        if config.draft_start and not exact:
            batch["from_draft"] = batch["keep_draft"] & (noise.uniform("from draft") < FROM_DRAFT)
            level = config.draft_start * (noise.uniform("level") * AT_START).clamp(1e-3, 1)
            batch["sigma"] = torch.where(batch["from_draft"], level.to(batch["sigma"].dtype), batch["sigma"])
        return batch

    def errors(self, network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
        """Weighted and plain squared error of every picture [B], [B].

        Args:
            network: called with noised latents, timesteps and context.
            batch: what `draws` gave, with `context` [B,L,D], `mask` [B,L] and `pooled` [B,P]. With `loss_mask`
                [B,1,h,w] in 0..1, squared errors are multiplied by it, and their mean is still that over the whole
                picture, as in kohya's sd-scripts; with `loss_weight` [B], the weighted error is multiplied by that.
        """
        kind, sigma, draft = self.denoiser.parameterization, batch["sigma"], self.draft(batch)
        if draft is not None and "from_draft" in batch:
            # Painting begins at the draft plus noise of this level. Where the draft's own error fades with the noise, a
            # sampler's straight way from there ends at the true latents (flow matching, Lipman et al. 2023).
            error = batch["from_draft"].view(-1, 1, 1, 1) * (draft - batch["x0"])
            batch = batch | {"eps": batch["eps"] + error / self.config.draft_start}
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
            **beside(draft),
        )
        mean, interpolation = prediction.to(x_t.dtype), None
        if self.chain is not None:
            mean, interpolation = mean.chunk(2, dim=1)
        target = target_of(kind, batch["x0"], batch["eps"], alpha, std)
        squares = (mean - target).square()
        shapes = shaped(self.config.loss, squares, c=self.config.huber_c)
        if "loss_mask" in batch:
            squares, shapes = squares * batch["loss_mask"], shapes * batch["loss_mask"]
        plain, shape = squares.flatten(1).mean(1), shapes.flatten(1).mean(1)
        weight = loss_weight(self.config.weight, sigma, kind, self.schedule.path, gamma=self.config.weight_gamma)
        loss = weight.to(shape.dtype) * shape
        if self.chain is not None:
            guess = Prediction(to_x0(mean.detach(), x_t, alpha, std, kind), interpolation)
            lambda_ = self.config.hybrid_lambda
            loss = hybrid_loss(self.chain, batch["x0"], x_t, batch["step"], guess, loss, weight=lambda_)
        if "loss_weight" in batch:
            loss = loss * batch["loss_weight"]
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
            residuals = self.quantizer.residuals(batch["x0"][kept], tokens)
            if residuals is not None:
                residuals = self.quantizer.shared_residuals(residuals, tokens, wrong) * batch["refined"][kept, None]
            draft[kept] = self.quantizer.decode(wrong, residuals).to(draft.dtype)
        return draft

    def _places(self, noise: BatchNoise, *, exact: bool) -> Tensor:
        """Noise levels as places in the schedule's index, where the shift of flow matching acts too: [B] in 0..1."""
        config = self.config
        if exact or config.timesteps == "uniform":
            return noise.uniform("t")
        return torch.sigmoid(config.timestep_mean + config.timestep_std * noise.normal("t", (1,)).squeeze(1))


def _has_trained_weights(network: Network) -> bool:
    return isinstance(network, nn.Module) and any(weight.requires_grad for weight in network.parameters())


def pyramid(eps: Tensor, noise: BatchNoise, levels: int, discount: float) -> Tensor:
    """Noise [B,C,h,w] with coarser and coarser grids of noise added, scaled back to a deviation of 1 for each picture.

    What is known as multi-resolution noise (Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training").

    Args:
        eps: the finest grid. [B,C,h,w]
        noise: of the batch; each picture draws its own grids, and how much coarser they get.
        levels: grids to add, fewer if a side has come down to 1 before.
        discount: deviation of a grid as a share of the next finer one's.
    """
    height, width = eps.shape[2:]
    ratios = 2 + 2 * noise.uniform("pyramid ratio")
    grids = [noise.normal(f"pyramid {level}", eps.shape[1:]) for level in range(1, levels + 1)]
    result = []
    for number, (fine, ratio) in enumerate(zip(eps, ratios.tolist(), strict=True)):
        total, sides = fine[None], (height, width)
        for level, grid in enumerate(grids, start=1):
            if min(sides) == 1:
                break
            sides = (max(1, int(height / ratio**level)), max(1, int(width / ratio**level)))
            coarse = grid[number : number + 1, :, : sides[0], : sides[1]]
            total = total + discount**level * F.interpolate(coarse, (height, width), mode="bilinear")
        result.append(total[0] / total.std())
    return torch.stack(result)


def rescaled(denoiser: DenoiserConfig, table: DenoisingTable, stage: str) -> DenoiserConfig:
    """The settings of a model to start from, its schedule with zero terminal SNR if the table asks for it.

    Raises:
        ConfigError: what the network predicts, or its schedule, rules that out.
    """
    if not table.zero_terminal_snr:
        return denoiser
    whole = denoiser.with_zero_terminal_snr()
    if whole is None:
        raise ConfigError(
            f"{stage}.zero_terminal_snr",
            given=f"true, for one that predicts {denoiser.parameterization} on a {denoiser.schedule.name} schedule",
            expected="a network that predicts v or x0 on a table of noise levels",
            cure="Noise alone says nothing of the noise that was added: choose noise_offset or pyramid_levels instead.",
        )
    return whole


def refuse_prompts(table: DenoisingTable, stage: str) -> None:
    """Refuse prompts in a stage whose pictures begin on another picture, which a prompt alone doesn't bring.

    Raises:
        ConfigError: there are some.
    """
    if table.prompts:
        raise ConfigError(
            f"{stage}.prompts",
            given=f"{len(table.prompts)} prompts",
            expected="none: this stage's sheets show pictures of the set, each with the picture that it begins on",
        )


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
