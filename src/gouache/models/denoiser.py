"""The denoiser: a raw network, what its output means, and its noise schedule, as one D(x, sigma)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TypeVar

import torch
from torch import Tensor

from gouache.diffusion.noise_schedule import NoiseSchedule, make_noise_schedule
from gouache.diffusion.parameterization import Parameterization, Prediction, denoised_from, network_input
from gouache.diffusion.samplers.step import Denoise
from gouache.errors import ConfigError, ShapeMismatch
from gouache.models.caching.block_cache import block_call
from gouache.models.caching.deep_cache import deep_call
from gouache.models.caching.rows import CachedRow
from gouache.models.conditioning.controlnet import ControlNet
from gouache.models.conditioning.controlnet_union import ControlNetUnion
from gouache.models.conditioning.ip_adapter import Seen
from gouache.models.conditioning.sd3_controlnet import JointControlNet, spread
from gouache.models.conditioning.t2i_adapter import T2IAdapter
from gouache.models.configs import DenoiserConfig, NoiseScheduleConfig
from gouache.models.mmdit import MMDiT
from gouache.models.perturbation import AttentionRecord, Perturbation, changes_of
from gouache.models.regions import RegionTexts, areas_of
from gouache.models.turns import awake
from gouache.models.unet import Residuals, UNet
from gouache.nn.attention import Areas
from gouache.nn.free_u import FreeU

SteeringNetwork = ControlNet | ControlNetUnion | T2IAdapter | JointControlNet


@dataclass(frozen=True, slots=True)
class Steering:
    """A network that steers the one that denoises, with what it sees; every tensor has B rows, or one for all.

    Attributes:
        network: it.
        features: what its `embed` gave: of a ControlNet's picture, of each of a union's, the maps of a T2I-Adapter;
            the picture's latents for a transformer's. [B, C, h, w]
        weight: factor on what it adds. [B]
        guess: weigh coarse residuals more than fine ones.
        kinds: of each of a union's pictures.
        scales: how strongly each of a union's pictures is seen; empty = 1 for all.
    """

    network: SteeringNetwork
    features: tuple[Tensor, ...]
    weight: Tensor
    guess: bool = False
    kinds: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()

    def map(self, change: Callable[[Tensor], Tensor]) -> Steering:
        """The same with changed tensors."""
        return replace(self, features=tuple(change(one) for one in self.features), weight=change(self.weight))

    def residuals(
        self, main: UNet | MMDiT, x: Tensor, timestep: Tensor, given: Condition, areas: tuple[Areas, ...] = ()
    ) -> Residuals:
        """What it adds to the feature maps or tokens of the network that it steers, for the same inputs."""
        if isinstance(self.network, T2IAdapter):
            return self.network.residuals(self.features).scaled(self.weight)
        inputs = (x, timestep, given.context)
        if isinstance(self.network, JointControlNet):
            assert isinstance(main, MMDiT), "others are refused when they are loaded"
            own = self.network(
                *inputs, self.features[0], places=main.pos_embed, context_mask=given.mask, pooled=given.pooled
            )
            return Residuals(spread(own, len(main.transformer_blocks))).scaled(self.weight)
        changes = changes_of(self.network, (), None, areas=areas)
        if isinstance(self.network, ControlNetUnion):
            found: Residuals = self.network(
                *inputs,
                self.features,
                self.kinds,
                scales=self.scales,
                context_mask=given.mask,
                pooled=given.pooled,
                guess=self.guess,
                changes=changes,
            )
        else:
            found = self.network(
                *inputs,
                self.features[0],
                context_mask=given.mask,
                pooled=given.pooled,
                guess=self.guess,
                changes=changes,
            )
        return found.scaled(self.weight)

    def cut(self, top: int, left: int, rows: int, columns: int, size: tuple[int, int]) -> Steering:
        """What it sees of a part of the latents.

        Args:
            top, left, rows, columns: the part.
            size: height and width of all latents. Coarser maps are cut at the nearest of their own pixels.
        """

        def part(one: Tensor) -> Tensor:
            y, x = (-(-whole // side) for whole, side in zip(size, one.shape[-2:], strict=True))
            high, wide = -(-rows // y), -(-columns // x)
            first, second = min(round(top / y), one.shape[-2] - high), min(round(left / x), one.shape[-1] - wide)
            return one[..., first : first + high, second : second + wide]

        return replace(self, features=tuple(part(one) for one in self.features))


def joined(controls: Sequence[Steering]) -> tuple[Steering, ...]:
    """The same, where a ControlNet-Union sees all of its pictures in one evaluation.

    A picture alone is weighed by what it adds, several by how strongly each is seen.
    """
    found: list[Steering] = []
    for one in controls:
        place = next((k for k, other in enumerate(found) if other.network is one.network), None)
        if place is None or not isinstance(one.network, ControlNetUnion) or found[place].guess != one.guess:
            found.append(one)
            continue
        other = found[place]
        found[place] = replace(
            other,
            features=other.features + one.features,
            weight=torch.ones_like(one.weight),
            kinds=other.kinds + one.kinds,
            scales=(other.scales or (float(other.weight),)) + (float(one.weight),),
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Condition:
    """What the network is given beside the noisy latents; every tensor has B rows, or one for all.

    Attributes:
        context: the text's tokens. [B, L, D]
        mask: True where a token is real; None = all. [B, L]
        pooled: the ready vector of a network that takes one. [B, P]
        draft: channels laid beside the latents by a network that takes them. [B, Cd, h, w]
        controls: networks that steer this one.
        pictures: what IP-Adapters show it beside the text.
        perturbations: what rows do otherwise in the network, one for each row or one for all; empty = nothing.
        free_u: what the network weighs otherwise, in all rows.
        record: whose self-attention to note, in all rows.
        guidance: scale that a network with a `guidance_width` is told. [B]
        noise_level: of a small picture in `draft`, for a network with `noise_levels`. [B]
        regions: texts with areas of their own, for each row or one for all; empty = none.
        cached: where what is kept of the rows over steps lies, for each row or one for all; empty = nowhere.
        merging: share of the finest places that self-attention sees as one with others, in all rows.
    """

    context: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None
    draft: Tensor | None = None
    controls: tuple[Steering, ...] = ()
    pictures: tuple[Seen, ...] = ()
    perturbations: tuple[Perturbation | None, ...] = ()
    free_u: FreeU | None = None
    record: AttentionRecord | None = None
    guidance: Tensor | None = None
    noise_level: Tensor | None = None
    regions: tuple[RegionTexts | None, ...] = ()
    cached: tuple[CachedRow, ...] = ()
    merging: float = 0.0

    def rows(self, start: int, end: int) -> Condition:
        """Rows `start` (included) to `end` (excluded) of every tensor."""
        perturbations, regions = self.perturbations[start:end], self.regions[start:end]
        found = self._map(lambda tensor: tensor[start:end])
        return replace(found, perturbations=perturbations, regions=regions, cached=self.cached[start:end])

    def expand(self, batch: int) -> Condition:
        """One row for all as `batch` rows (no copy); `batch` rows as they are."""
        perturbations = self.perturbations * batch if len(self.perturbations) == 1 else self.perturbations
        regions = self.regions * batch if len(self.regions) == 1 else self.regions
        cached = self.cached * batch if len(self.cached) == 1 else self.cached
        expanded = self._map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))
        return replace(expanded, perturbations=perturbations, regions=regions, cached=cached)

    def to(self, device: torch.device, dtype: torch.dtype) -> Condition:
        """The same on another device; floating-point tensors in another precision."""
        return self._map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        mask, pooled, draft, guidance, noise_level = (
            None if tensor is None else change(tensor)
            for tensor in (self.mask, self.pooled, self.draft, self.guidance, self.noise_level)
        )
        return replace(
            self,
            context=change(self.context),
            mask=mask,
            pooled=pooled,
            draft=draft,
            controls=tuple(control.map(change) for control in self.controls),
            pictures=tuple(one.map(change) for one in self.pictures),
            guidance=guidance,
            noise_level=noise_level,
        )


def stack(conditions: Sequence[Condition]) -> Condition:
    """Conditions under one another, for one network call: rows add up.

    Raises:
        ShapeMismatch: one has a mask, pooled vector, draft or control and another has not, or they weigh otherwise.
    """
    if len({condition.free_u for condition in conditions}) > 1:
        raise ShapeMismatch("conditions' free_u", given="several", expected="the same in all")
    batches = [len(condition.context) for condition in conditions]
    return Condition(
        context=torch.cat([condition.context for condition in conditions]),
        mask=_stack("mask", [condition.mask for condition in conditions]),
        pooled=_stack("pooled", [condition.pooled for condition in conditions]),
        draft=_stack("draft", [condition.draft for condition in conditions]),
        controls=_stack_controls([condition.controls for condition in conditions]),
        pictures=_stack_pictures([condition.pictures for condition in conditions]),
        perturbations=_stack_rows([condition.perturbations for condition in conditions], batches),
        free_u=conditions[0].free_u,
        record=conditions[0].record,
        guidance=_stack("guidance", [condition.guidance for condition in conditions]),
        noise_level=_stack("noise_level", [condition.noise_level for condition in conditions]),
        regions=_stack_rows([condition.regions for condition in conditions], batches),
        cached=tuple(row for one in conditions for row in one.expand(len(one.context)).cached),
        merging=conditions[0].merging,
    )


Row = TypeVar("Row")


def _stack_rows(given: list[tuple[Row | None, ...]], batches: list[int]) -> tuple[Row | None, ...]:
    """What rows have one by one; empty if none has anything."""
    if not any(given):
        return ()
    rows = [(one or (None,)) * batch if len(one) < 2 else one for one, batch in zip(given, batches, strict=True)]
    return tuple(one for part in rows for one in part)


def _stack_controls(rows: list[tuple[Steering, ...]]) -> tuple[Steering, ...]:
    if len({tuple(id(control.network) for control in controls) for controls in rows}) > 1:
        counts = ", ".join(str(len(controls)) for controls in rows)
        raise ShapeMismatch("conditions' controls", given=f"{counts} of them", expected="the same networks in all")
    return tuple(
        replace(
            same[0],
            features=tuple(map(torch.cat, zip(*(control.features for control in same), strict=True))),
            weight=torch.cat([control.weight for control in same]),
        )
        for same in zip(*rows, strict=True)
    )


def _stack_pictures(rows: list[tuple[Seen, ...]]) -> tuple[Seen, ...]:
    if len({tuple(id(one.adapter) for one in seen) for seen in rows}) > 1:
        counts = ", ".join(str(len(seen)) for seen in rows)
        raise ShapeMismatch("conditions' pictures", given=f"{counts} of them", expected="the same adapters in all")
    return tuple(
        replace(
            same[0],
            tokens=torch.cat([one.tokens for one in same]),
            weight=torch.cat([one.weight for one in same]),
            mask=_stack("mask of pictures", [one.mask for one in same]),
        )
        for same in zip(*rows, strict=True)
    )


def _stack(name: str, tensors: list[Tensor | None]) -> Tensor | None:
    there = [tensor for tensor in tensors if tensor is not None]
    if not there:
        return None
    if len(there) != len(tensors):
        raise ShapeMismatch(f"conditions' {name}", given=f"{len(there)} of {len(tensors)}", expected="all or none")
    return torch.cat(there)


class Denoiser:
    """D(x, sigma, condition) -> denoised. The only thing a sampler ever sees of a model.

    Args:
        network: the raw network.
        parameterization: what its output means.
        schedule: which timestep belongs to which sigma, and how its input is scaled.
        learned_variance: the second half of its output channels speaks of the variance.
        timesteps: noise level -> timestep, where a list of levels brings timesteps that aren't the schedule's.

    Raises:
        ConfigError: the network's channels do not fit.
    """

    def __init__(
        self,
        network: UNet | MMDiT,
        parameterization: Parameterization,
        schedule: NoiseSchedule,
        *,
        learned_variance: bool = False,
        timesteps: Mapping[float, float] | None = None,
    ) -> None:
        channels = network.config.in_channels
        wanted = 2 * channels if learned_variance else channels
        if network.config.out_channels != wanted:
            raise ConfigError(
                "denoiser",
                given=f"a network with {network.config.out_channels} channels out",
                expected=f"{wanted} for {channels} in and learned_variance={learned_variance}",
            )
        self.network = network
        self.parameterization: Parameterization = parameterization
        self.schedule = schedule
        self.learned_variance = learned_variance
        self.timesteps = dict(timesteps or {})

    @classmethod
    def from_config(
        cls, network: UNet | MMDiT, config: DenoiserConfig, *, timesteps: Mapping[float, float] | None = None
    ) -> Denoiser:
        """The denoiser that a model's config describes; `timesteps` as in the class."""
        return cls(
            network,
            config.parameterization,
            schedule_from(config.schedule),
            learned_variance=config.learned_variance,
            timesteps=timesteps,
        )

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Estimate x0 from x = x0 + sigma * eps.

        Args:
            x: [B, C, h, w], in any floating-point type; the network works in its own.
            sigma: noise level, [] or [B], >= 0.
            condition: B rows, or one for all.

        Returns:
            [B, C, h, w] in the type of `x`.
        """
        return self.predict(x, sigma, condition).x0

    def predict(self, x: Tensor, sigma: Tensor, condition: Condition) -> Prediction:
        """As a call, with the learned variance if there is one."""
        weight = next(awake(self.network).parameters())
        given = condition.expand(x.shape[0]).to(weight.device, weight.dtype)
        noisy = network_input(x, sigma, self.schedule.path).to(weight.dtype)
        timestep = self._timestep(sigma).to(weight.device, torch.float32)
        levels = len(self.network.config.channels) if isinstance(self.network, UNet) else 0
        areas = areas_of(given.regions, levels, weight.device, weight.dtype)
        changes = changes_of(self.network, given.perturbations, given.record, given.pictures, areas, given.merging)
        shared = {"context_mask": given.mask, "pooled": given.pooled, "changes": changes}
        steered = _sum([control.residuals(self.network, noisy, timestep, given, areas) for control in given.controls])
        if isinstance(self.network, MMDiT):
            added = steered.skips if steered else ()
            output: Tensor = self.network(
                noisy, timestep, given.context, **shared, residuals=added, block_cache=block_call(given.cached, sigma)
            )
        else:
            output = self.network(
                noisy,
                timestep,
                given.context,
                **shared,
                draft=given.draft,
                residuals=steered,
                free_u=given.free_u,
                guidance=given.guidance,
                noise_level=given.noise_level,
                deep=deep_call(given.cached, sigma),
                block_cache=block_call(given.cached, sigma),
            )
        # Back in the state's own type, fp32 as a rule: in half precision the last steps would drown in rounding.
        raw, variance = self._split(output.to(x.dtype))
        denoised = denoised_from(raw, x, sigma, self.parameterization, self.schedule.path)
        return Prediction(denoised, variance)

    def bind(self, condition: Condition) -> Denoise:
        """D(x, sigma) for one condition, as a sampler wants it."""
        return lambda x, sigma: self(x, sigma, condition)

    def _timestep(self, sigma: Tensor) -> Tensor:
        """The listed timestep of a listed level, else the schedule's. [] or [B]"""
        given = self.schedule.sigma_to_t(sigma)
        if not self.timesteps:
            return given
        levels, plain = sigma.double().flatten().tolist(), given.flatten().tolist()
        listed = [self.timesteps.get(level, t) for level, t in zip(levels, plain, strict=True)]
        return torch.tensor(listed, dtype=given.dtype, device=given.device).reshape(given.shape)

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.learned_variance:
            return output, None
        raw, variance = output.chunk(2, dim=1)
        return raw, variance


def _sum(residuals: Sequence[Residuals]) -> Residuals | None:
    return reduce(add, residuals) if residuals else None


def schedule_from(config: NoiseScheduleConfig) -> NoiseSchedule:
    """The noise schedule that a config describes."""
    return make_noise_schedule(
        config.name,
        num_timesteps=config.num_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        continuous=config.continuous,
        zero_terminal_snr=config.zero_terminal_snr,
        shift=config.shift,
        alphas_cumprod=config.alphas_cumprod,
        sigma_min=config.sigma_min,
        sigma_max=config.sigma_max,
        sigma_data=config.sigma_data,
    )
