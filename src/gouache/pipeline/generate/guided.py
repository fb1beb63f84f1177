"""One run of a sampler: prompts and guidance around the denoiser, noise levels, noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, zeros_like

from gouache.diffusion.brownian_tree import TreeNoise
from gouache.diffusion.guidance import Guidance, guided_denoiser, rescaled_denoised
from gouache.diffusion.guiders import perpendicular_negative
from gouache.diffusion.rng import BrownianNoise, ImageNoise
from gouache.diffusion.samplers.ancestral import Restart, restart_plan
from gouache.diffusion.samplers.dpm_solver import fast_orders
from gouache.diffusion.samplers.names import sampler_info
from gouache.diffusion.samplers.registry import Option, sample, sampler_options
from gouache.diffusion.samplers.sigmas import discard_penultimate, make_sigmas
from gouache.diffusion.samplers.step import Denoise, NoiseSource, Steps
from gouache.errors import InvalidInput
from gouache.models.bundle import AESTHETIC_SCORE, LOW_AESTHETIC_SCORE, ModelBundle
from gouache.models.denoiser import Condition, Steering, stack
from gouache.models.family import SDXL_REFINER
from gouache.models.perturbation import Perturbation
from gouache.models.regions import RegionTexts
from gouache.models.scheduler_config import SchedulerConfig, number, sampler_of
from gouache.pipeline.generate.a1111_procedure import follows, step_noise, tree_noise
from gouache.pipeline.generate.guiders import Beside, Guiders
from gouache.pipeline.generate.sampler_settings import own_settings, scaled_at_the_end
from gouache.pipeline.generate.savings import Savings
from gouache.pipeline.generate.scheduler_levels import Levels, patches_of, scheduler_levels, scheduler_of
from gouache.pipeline.prompts.encode import EncodedPrompt, PromptPlan
from gouache.pipeline.request import Request, SizeCondition

if TYPE_CHECKING:
    from gouache.pipeline.generate.controlnets import TimedControl
    from gouache.pipeline.generate.image_prompts import PooledPicture, TimedPictures
    from gouache.pipeline.prompts.regions import PlannedRegions

NO_GUIDERS = Guiders()
Network = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x [B,C,h,w], sigma [], condition) -> denoised [B,C,h,w]."""


@dataclass(frozen=True, slots=True)
class NetworkInputs:
    """Inputs of the network besides the latents and the text; every tensor has one row, or one for each picture.

    Attributes:
        draft: channels laid beside the latents. [1 or B, Cd, h, w]
        numbers: SDXL's size numbers. [1, 6 or 5]
        negative_numbers: the same for the negative prompt; None = `numbers`.
        controls: networks that steer, with the steps at which each does.
        pictures: what IP-Adapters show, with the steps at which each does.
        noise_level: of a small picture in `draft`.
        regions: texts with areas of their own, beside the prompt.
        pooled: a picture in place of the pooled text, or of the whole.
    """

    draft: Tensor | None = None
    numbers: Tensor | None = None
    negative_numbers: Tensor | None = None
    controls: tuple[TimedControl, ...] = ()
    pictures: tuple[TimedPictures, ...] = ()
    noise_level: int | None = None
    regions: PlannedRegions | None = None
    pooled: PooledPicture | None = None

    def region_texts(self, moment: int) -> tuple[RegionTexts, ...]:
        """What a condition under the prompt is given of the regions at a step."""
        return () if self.regions is None else (self.regions.at(moment),)


class PromptedDenoiser:
    """D(x, sigma) under a prompt and a negative prompt, with guidance; `step` says which texts hold.

    Args:
        bundle: the model.
        network: its denoiser, or one that works in tiles.
        positive, negative: the encoded prompts.
        guidance: how strongly to guide.
        inputs: what else the network takes.
        guiders: what guides beside the scale.
        savings: what is kept over steps; of this walk alone.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        network: Network,
        positive: PromptPlan,
        negative: PromptPlan,
        guidance: Guidance,
        inputs: NetworkInputs,
        guiders: Guiders = NO_GUIDERS,
        savings: Savings | None = None,
    ) -> None:
        self.network, self.guiders, self._savings = network, guiders, savings or Savings()
        self.bundle, self.positive, self.negative, self.inputs = bundle, positive, negative, inputs
        self.step = 1
        self.call: int | None = None
        """Which text holds: None = as `step` says, else it counts network calls, from 1."""
        self._told: Tensor | None = None
        if bundle.unet.config.guidance_width:
            # It was distilled from a guided network, which one call of it stands for.
            self._told = torch.tensor([guidance.scale], dtype=torch.float32)
            guidance = Guidance(scale=1.0)
        self._guidance = guidance
        self._latest: tuple[Tensor, float, Tensor] | None = None  # state, level, what `unconditional` answers there
        self._beside = Beside()
        self._guided = guided_denoiser(
            self._conditional,
            self._pair,
            guidance,
            parameterization=bundle.denoiser_config.parameterization,
            path=bundle.schedule.path,
            added=self._added if guiders.add else None,
        )

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x [B,C,h,w], sigma [] -> denoised [B,C,h,w]."""
        denoised = self._guided(x, sigma)
        if not self._guides_at(float(sigma)):
            self._latest = (x, float(sigma), denoised)
        if self.call is not None:
            self.call += 1
        return denoised

    @property
    def _moment(self) -> int:
        return self.step if self.call is None else self.call

    def _guides_at(self, level: float) -> bool:
        return self._guidance.sigma_low < level <= self._guidance.sigma_high

    def unconditional(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D under the negative prompt alone, or as without guidance where guidance doesn't act; for CFG++. Right after
        a call at the same place it costs no call of the network, but with scale 1. [B,C,h,w]"""
        level = float(sigma)
        if self._latest is not None and self._latest[0] is x and self._latest[1] == level:
            return self._latest[2]
        if not self._guides_at(level):
            return self._conditional(x, sigma)
        moment = self.step if self.call is None else max(self.call - 1, 1)  # of the call before
        text = self.negative.at(moment)[0][1] if self.guiders.empty is None else self.guiders.empty
        last = 0 if self.guiders.empty is None else 1
        return self.network(x, sigma, self._condition(text, last, negative=True))

    def _conditional(self, x: Tensor, sigma: Tensor) -> Tensor:
        texts = self.positive.at(self._moment)
        if len(texts) > 1 or texts[0][0] != 1.0:
            return self._pair(x, sigma)[0]
        return self._predict(x, sigma, [self._condition(texts[0][1], 0, negative=False)], [])[0]

    def _pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Both predictions; branches joined by AND are summed as unconditional + sum of w (conditional - unconditional)
        (Liu et al. 2022, arXiv:2206.01714, equation 11). With Perp-Neg the empty prompt's is the unconditional one."""
        texts = self.positive.at(self._moment)
        alone, level = len(texts) == 1 and texts[0][0] == 1.0, float(sigma)
        difference = self._savings.difference_at(self.step, level, len(x)) if alone else None
        if difference is not None:
            conditional = self._conditional(x, sigma)
            self._latest = (x, level, conditional - difference)
            return conditional, conditional - difference
        positives = [self._condition(text, k, negative=False) for k, (_, text) in enumerate(texts)]
        others = [self._condition(self.negative.at(self._moment)[0][1], 0, negative=True)]
        if self.guiders.empty is not None:
            others.append(self._condition(self.guiders.empty, 1, negative=True))
        predicted = self._predict(x, sigma, positives, others)
        unconditional = predicted[-1]
        self._latest = (x, level, unconditional)
        total = predicted[0]
        self._savings.keep(total - unconditional, self.step, level)
        if not alone:
            total = unconditional
            for (weight, _), positive in zip(texts, predicted, strict=False):
                total = total + weight * (positive - unconditional)
        if self.guiders.empty is not None:
            total = perpendicular_negative(total, predicted[-2], unconditional, self.guiders.perp_neg)
        return total, unconditional

    def _predict(self, x: Tensor, sigma: Tensor, positives: list[Condition], others: list[Condition]) -> list[Tensor]:
        """D under each condition, and beside them what the guiders need: weakened passes under the positive ones, and
        where the network looked."""
        weak, sag = self.guiders.weak_at(self.step, sigma), self.guiders.sag_at(self.step)
        self._beside = beside = Beside()
        plain = [*positives, *others]
        rows = [*plain, *(self._weakened(one, weakness) for _, weakness in weak for one in positives)]
        if sag is not None:
            rows = [replace(one, record=beside.record) for one in rows]
        found = self._run(x, sigma, rows)
        weights = [weight for weight, _ in self.positive.at(self._moment)]
        at = len(plain)
        for scale, _ in weak:
            for k, weight in enumerate(weights):
                more = scale * weight * (found[k] - found[at + k])
                beside.added = more if beside.added is None else beside.added + more
            at += len(weights)
        if sag is not None:
            # The unconditional prediction where there is one, else the only one.
            beside.base, beside.condition = found[len(plain) - 1], plain[-1]
            beside.attended = torch.cat(beside.record.found).chunk(len(rows))[len(plain) - 1]
        return found[: len(plain)]

    def _weakened(self, condition: Condition, weakness: Perturbation) -> Condition:
        by = "skipped" if weakness.skipped else "identity"
        return replace(condition, perturbations=(weakness,), cached=tuple(row.within(by) for row in condition.cached))

    def _added(self, x: Tensor, sigma: Tensor) -> Tensor | None:
        """What the guiders add to the latest prediction; self-attention guidance calls the network once more."""
        sag, beside = self.guiders.sag_at(self.step), self._beside
        if sag is None or beside.base is None or beside.condition is None or beside.attended is None:
            return beside.added
        blurred = self.guiders.blurred(beside.base, beside.attended, sag)
        # The noise that was found in x, on the blurred picture.
        more = sag.scale * (blurred - self.network(x + (blurred - beside.base), sigma, beside.condition))
        return more if beside.added is None else beside.added + more

    def _run(self, x: Tensor, sigma: Tensor, conditions: list[Condition]) -> list[Tensor]:
        """One network call for all if the texts are equally long, else one for each."""
        if len({tuple(condition.context.shape[1:]) for condition in conditions}) > 1 or len(conditions) == 1:
            return [self.network(x, sigma, condition) for condition in conditions]
        rows = stack([condition.expand(len(x)) for condition in conditions])
        repeated = x.repeat(len(conditions), *(1 for _ in x.shape[1:]))
        return list(self.network(repeated, sigma, rows).chunk(len(conditions)))

    def _condition(self, text: EncodedPrompt, place: int, *, negative: bool) -> Condition:
        inputs, draft = self.inputs, self.inputs.draft
        numbers = inputs.numbers if not negative or inputs.negative_numbers is None else inputs.negative_numbers
        if negative and draft is not None and self.bundle.prior is not None:
            # The prior's draft is a condition as the text is, and was left out in training as the text was: so guidance
            # strengthens what both say. 11 points of R@1 over guiding by the text alone (docs/log.md).
            draft = torch.zeros_like(draft)
        if inputs.pooled is not None:
            text = inputs.pooled.in_place_of(text, self.step, negative=negative)
        return Condition(
            context=text.context,
            mask=text.mask,
            pooled=self.bundle.pooled_vector(text.pooled, numbers),
            draft=draft,
            controls=self._controls(negative=negative),
            pictures=tuple(one.on_side(negative=negative) for one in inputs.pictures if one.is_on(self.step)),
            free_u=self.guiders.free_u_at(self.step),
            guidance=self._told,
            noise_level=self._noise_level,
            regions=() if negative else inputs.region_texts(self._moment),
            cached=self._savings.rows(self.step, "negative" if negative else "prompt", place),
            merging=self._savings.merging,
        )

    @property
    def _noise_level(self) -> Tensor | None:
        """[1] for a network that is told it."""
        told = self.inputs.noise_level is not None and self.bundle.noise_levels > 0
        return torch.tensor([self.inputs.noise_level]) if told else None

    def _controls(self, *, negative: bool) -> tuple[Steering, ...]:
        if self.inputs.controls:
            from gouache.pipeline.generate.controlnets import steering_at

            return steering_at(self.inputs.controls, self.step, negative=negative)
        return ()


def denoiser_of(bundle: ModelBundle, request: Request) -> Network:
    """The model's denoiser, in tiles if asked."""
    if request.tiled is None:
        return bundle.denoiser
    from gouache.pipeline.generate.tiling import tiled_network

    return tiled_network(bundle, request.tiled)


def sigmas_of(request: Request, bundle: ModelBundle, steps: int | None = None) -> Tensor:
    """The noise levels of a resolved request, descending, the last 0; `steps` for another number than it asks for.
    [n + 1] fp64"""
    return levels_of(request, bundle, steps).sigmas


def levels_of(request: Request, bundle: ModelBundle, steps: int | None = None) -> Levels:
    """As `sigmas_of`, with what a scheduler of diffusers says beside its list."""
    if request.sigmas is not None:
        return Levels(torch.tensor(request.sigmas, dtype=torch.float64))
    name, steps = request.schedule or "uniform", steps or request.num_inference_steps or 1
    scheduler = scheduler_of(request.sampler or "ddim", name, bundle)
    if scheduler is not None:
        known = request.width is not None and request.height is not None
        size = patches_of(request.width or 0, request.height or 0, bundle) if known else None
        return scheduler_levels(scheduler, bundle.schedule, steps, size)
    options = {"family": bundle.traits.align_your_steps} if name.startswith("align_your_steps") else {}
    like_a1111 = request.determinism == "a1111" or follows(request)
    if like_a1111 and sampler_info(request.sampler or "ddim").discard_penultimate:
        return Levels(discard_penultimate(make_sigmas(name, bundle.schedule, steps + 1, options=options)))
    return Levels(make_sigmas(name, bundle.schedule, steps, options=options))


def steps_of(request: Request, sigmas: Tensor) -> int:
    """How many steps the sampler takes over these levels: restart walks some of them again, dpm_fast takes fewer; how
    many dpm_adaptive takes shows on the way."""
    if request.sampler == "restart" and len(sigmas) > 1:
        return len(restart_plan(sigmas.tolist(), (Restart(),)))
    if request.sampler == "dpm_fast" and len(sigmas) > 2:
        return len(fast_orders(len(sigmas) - 1))
    return max(len(sigmas) - 1, 0)


def counted_steps(request: Request, sigmas: Tensor) -> int:
    """The steps that are counted over these levels: a sampler with levels of its own tells the list's."""
    walked = len(sigmas) - 1
    return max(walked if sampler_info(request.sampler or "ddim").own_levels else steps_of(request, sigmas), 1)


def run_sampler(
    request: Request,
    bundle: ModelBundle,
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: ImageNoise,
    *,
    whole: Tensor | None = None,
    unconditional: Denoise | None = None,
    limit: Callable[[Tensor], Tensor] | None = None,
) -> Steps:
    """Start the request's sampler.

    Args:
        request: resolved.
        bundle: the model.
        denoise: D(x, sigma).
        x: the state at sigmas[0]. [B,C,h,w]
        sigmas: descending noise levels.
        noise: the pictures' streams.
        whole: the list that `sigmas` is the end of; without it, it is all of it.
        unconditional: D under the negative prompt, which CFG++ takes.
        limit: cuts off an estimate, D -> D.
    """
    name = request.sampler or "ddim"
    source: NoiseSource = BrownianNoise(noise) if "sde" in name else noise
    scheduler = scheduler_of(name, request.schedule or "", bundle)
    options = own_settings(request, bundle.schedule) | _options(request, name, scheduler)
    whole = sigmas if whole is None else whole
    if follows(request) and not (noise.mode == "torch" and "sde" in name):
        source = step_noise(request, name, noise, sigmas, whole, bundle.schedule)
    elif name == "dpmpp_sde" and noise.mode == "cpu":
        # Every tool of this noise takes it from the tree here; for the others of the name they differ.
        source = tree_noise(request, name, noise, whole, bundle.schedule)
    if isinstance(source, TreeNoise) and name == "dpmpp_sde":
        options["one_path"] = False
    if name == "lcm":
        scaling = (number(scheduler, "timestep_scaling") if scheduler is not None else None) or LCM_SCALING
        times = scaling / LCM_SCALING
        options["timestep_of"] = lambda sigma: times * float(bundle.schedule.sigma_to_t(torch.tensor(sigma)))
    if unconditional is not None and sampler_info(name).cfg_pp:
        options["unconditional"] = unconditional
    if limit is not None and name == "ddim":
        options["limit"] = limit
    elif limit is not None:
        whole_estimate, cut = denoise, limit
        denoise = lambda x, sigma: cut(whole_estimate(x, sigma))  # noqa: E731
    steps = sample(name, denoise, x, sigmas, options=options, noise=source)
    return scaled_at_the_end(request, steps, len(sigmas) - 1)


LCM_SCALING = 10.0
"""What `lcm` multiplies a timestep by in its boundary condition."""


def _options(request: Request, name: str, scheduler: SchedulerConfig | None) -> dict[str, Option]:
    """What the request asks for, over what the model's scheduler sets for this sampler."""
    options: dict[str, Option] = {}
    if scheduler is not None and (choice := sampler_of(scheduler)).name == name:
        options |= choice.options
    if request.eta is not None:
        options["eta"] = request.eta
    if request.churn is not None and request.churn.amount > 0:
        churn = request.churn
        options |= {"s_churn": churn.amount, "s_tmin": churn.sigma_min, "s_noise": churn.noise}
        if churn.sigma_max is not None:
            options["s_tmax"] = churn.sigma_max
    refused = sorted(set(options) - set(sampler_options(name)))
    if refused:
        raise InvalidInput(
            "eta" if "eta" in refused else "churn",
            given=f"a value for {name}",
            expected=f"nothing: {name} takes {', '.join(sampler_options(name)) or 'no options'}",
            cure="Leave it out or choose another sampler.",
        )
    return options


def size_conditions(bundle: ModelBundle, request: Request) -> tuple[Tensor | None, Tensor | None]:
    """Numbers for the prompt [1, 6 or 5], and those for the negative prompt where they differ; see
    `ModelBundle.size_condition`."""
    width, height = request.width or 0, request.height or 0
    told = request.size_condition or SizeCondition()
    original = (told.original_width or width, told.original_height or height)
    target = (told.target_width or width, told.target_height or height)
    scores = (
        AESTHETIC_SCORE if told.aesthetic_score is None else told.aesthetic_score,
        LOW_AESTHETIC_SCORE if told.negative_aesthetic_score is None else told.negative_aesthetic_score,
    )
    numbers, negative_numbers = (
        bundle.size_condition(
            width, height, original=original, crop=(told.crop_left, told.crop_top), target=target, score=score
        )
        for score in scores
    )
    return numbers, negative_numbers if bundle.size_numbers == SDXL_REFINER.size_numbers else None


IMAGE_GUIDANCE = 1.5


class InstructDenoiser:
    """D(x, sigma) = uncond + s_i (picture - uncond) + s_t (text and picture - picture)
    (Brooks et al. 2023, arXiv:2211.09800, equation 3); outside the guidance interval the first term alone.

    Args:
        bundle: the model.
        network: its denoiser, or one that works in tiles.
        positive, negative: the encoded prompts.
        inputs: the picture's latents as the network takes them, as `draft` [1,C,h,w], and SDXL's size numbers.
        guidance: the text's scale s_t, rescale and interval.
        image_scale: s_i.
        guiders: FreeU, the only one of them that it has.
        savings: what is kept over steps; of this walk alone.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        network: Network,
        positive: PromptPlan,
        negative: PromptPlan,
        inputs: NetworkInputs,
        guidance: Guidance,
        *,
        image_scale: float,
        guiders: Guiders = NO_GUIDERS,
        savings: Savings | None = None,
    ) -> None:
        if len(positive.branches) > 1:
            raise InvalidInput(
                "prompt",
                given="parts joined by AND",
                expected="one instruction for an instruct model",
                cure="Write it as one sentence, or edit in two goes.",
            )
        self.bundle, self.network, self.positive, self.negative = bundle, network, positive, negative
        self.inputs, self.guidance, self.image_scale = inputs, guidance, image_scale
        self.guiders, self._savings = guiders, savings or Savings()
        self.step = 1
        self.call: int | None = None
        """As in `PromptedDenoiser`."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x [B,C,h,w], sigma [] -> denoised [B,C,h,w]."""
        guidance, inputs = self.guidance, self.inputs
        if inputs.draft is None:
            raise InvalidInput("init_image", given="nothing", expected="the picture that an instruct model changes")
        moment = self.step if self.call is None else self.call
        self.call = None if self.call is None else self.call + 1
        text = self.positive.at(moment)[0][1]
        if not guidance.sigma_low < float(sigma) <= guidance.sigma_high:
            return self.network(x, sigma, self._condition("full", text, inputs.draft, inputs.region_texts(moment)))
        other = self.negative.at(moment)[0][1]
        blank = zeros_like(inputs.draft)
        conditions = [
            self._condition("full", text, inputs.draft, inputs.region_texts(moment)),
            self._condition("picture", other, inputs.draft),
            self._condition("neither", other, blank),
        ]
        if text.context.shape == other.context.shape:
            rows = stack([condition.expand(len(x)) for condition in conditions])
            full, picture, neither = self.network(x.repeat(3, 1, 1, 1), sigma, rows).chunk(3)
        else:
            full, picture, neither = (self.network(x, sigma, condition) for condition in conditions)
        guided = neither + self.image_scale * (picture - neither) + guidance.scale * (full - picture)
        if guidance.rescale == 0:
            return guided
        parameterization, path = self.bundle.denoiser_config.parameterization, self.bundle.schedule.path
        return rescaled_denoised(guided, full, x, sigma, guidance.rescale, parameterization, path)

    def _condition(
        self, slot: str, text: EncodedPrompt, draft: Tensor, regions: tuple[RegionTexts, ...] = ()
    ) -> Condition:
        return Condition(
            context=text.context,
            mask=text.mask,
            pooled=self.bundle.pooled_vector(text.pooled, self.inputs.numbers),
            draft=draft,
            free_u=self.guiders.free_u_at(self.step),
            regions=regions,
            cached=self._savings.rows(self.step, slot),
            merging=self._savings.merging,
        )
