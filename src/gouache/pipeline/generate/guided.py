"""One run of a sampler: prompts and guidance around the denoiser, noise levels, noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor, zeros_like

from gouache.diffusion.brownian_tree import TreeNoise
from gouache.diffusion.guidance import AdaptiveProjection, Guidance, guided_denoiser
from gouache.diffusion.rng import BrownianNoise, ImageNoise
from gouache.diffusion.samplers.ancestral import Restart, restart_plan
from gouache.diffusion.samplers.names import sampler_info
from gouache.diffusion.samplers.registry import Option, sample, sampler_options
from gouache.diffusion.samplers.sigmas import discard_penultimate, make_sigmas
from gouache.diffusion.samplers.step import Denoise, NoiseSource, Steps
from gouache.errors import InvalidInput
from gouache.models.bundle import LOW_AESTHETIC_SCORE, ModelBundle
from gouache.models.denoiser import Condition, stack
from gouache.models.family import SDXL_REFINER
from gouache.pipeline.generate.a1111_procedure import follows, step_noise, tree_noise
from gouache.pipeline.prompts.encode import EncodedPrompt, PromptPlan
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from gouache.pipeline.generate.controlnets import TimedControl

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
    """

    draft: Tensor | None = None
    numbers: Tensor | None = None
    negative_numbers: Tensor | None = None
    controls: tuple[TimedControl, ...] = ()


class PromptedDenoiser:
    """D(x, sigma) under a prompt and a negative prompt, with guidance; `step` says which texts hold.

    Args:
        bundle: the model.
        network: its denoiser, or one that works in tiles.
        positive, negative: the encoded prompts.
        guidance: how strongly to guide.
        inputs: what else the network takes.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        network: Network,
        positive: PromptPlan,
        negative: PromptPlan,
        guidance: Guidance,
        inputs: NetworkInputs,
    ) -> None:
        self.network = network
        self.bundle, self.positive, self.negative, self.inputs = bundle, positive, negative, inputs
        self.step = 1
        self.call: int | None = None
        """Which text holds: None = as `step` says, else it counts network calls, from 1."""
        self._guided = guided_denoiser(
            self._conditional,
            self._pair,
            guidance,
            parameterization=bundle.denoiser_config.parameterization,
            path=bundle.schedule.path,
        )

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x [B,C,h,w], sigma [] -> denoised [B,C,h,w]."""
        denoised = self._guided(x, sigma)
        if self.call is not None:
            self.call += 1
        return denoised

    @property
    def _moment(self) -> int:
        return self.step if self.call is None else self.call

    def _conditional(self, x: Tensor, sigma: Tensor) -> Tensor:
        texts = self.positive.at(self._moment)
        if len(texts) > 1 or texts[0][0] != 1.0:
            return self._pair(x, sigma)[0]
        return self.network(x, sigma, self._condition(texts[0][1], negative=False))

    def _pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Both predictions; branches joined by AND are summed as unconditional + sum of w (conditional - unconditional)
        (Liu et al. 2022, arXiv:2206.01714, equation 11)."""
        texts = self.positive.at(self._moment)
        conditions = [self._condition(text, negative=False) for _, text in texts]
        conditions.append(self._condition(self.negative.at(self._moment)[0][1], negative=True))
        *positives, unconditional = self._predict(x, sigma, conditions)
        if len(texts) == 1 and texts[0][0] == 1.0:
            return positives[0], unconditional
        total = unconditional
        for (weight, _), positive in zip(texts, positives, strict=True):
            total = total + weight * (positive - unconditional)
        return total, unconditional

    def _predict(self, x: Tensor, sigma: Tensor, conditions: list[Condition]) -> list[Tensor]:
        """One network call for all if the texts are equally long, else one for each."""
        if len({tuple(condition.context.shape[1:]) for condition in conditions}) > 1:
            return [self.network(x, sigma, condition) for condition in conditions]
        rows = stack([condition.expand(len(x)) for condition in conditions])
        repeated = x.repeat(len(conditions), *(1 for _ in x.shape[1:]))
        return list(self.network(repeated, sigma, rows).chunk(len(conditions)))

    def _condition(self, text: EncodedPrompt, *, negative: bool) -> Condition:
        inputs = self.inputs
        numbers = inputs.numbers if not negative or inputs.negative_numbers is None else inputs.negative_numbers
        draft = inputs.draft
        if negative and draft is not None and self.bundle.prior is not None:
            # The prior's draft is a condition as the text is, and was left out in training as the text was: so guidance
            # strengthens what both say. 11 points of R@1 over guiding by the text alone (docs/log.md).
            draft = torch.zeros_like(draft)
        return Condition(
            context=text.context,
            mask=text.mask,
            pooled=self.bundle.pooled_vector(text.pooled, numbers),
            draft=draft,
            controls=tuple(one.on_side(negative=negative) for one in inputs.controls if one.is_on(self.step)),
        )


def denoiser_of(bundle: ModelBundle, request: Request) -> Network:
    """The model's denoiser, in tiles if asked."""
    if request.tiled is None:
        return bundle.denoiser
    from gouache.pipeline.generate.tiling import tiled_network

    return tiled_network(bundle, request.tiled)


def guidance_of(request: Request) -> Guidance:
    """The guidance that a resolved request asks for."""
    if request.guidance_scale is None:
        raise InvalidInput("guidance_scale", given=None, expected="a number", cure="Resolve the request first.")
    low, high = request.guidance_interval or (0.0, float("inf"))
    apg = request.apg
    return Guidance(
        scale=request.guidance_scale,
        rescale=request.guidance_rescale,
        sigma_low=low,
        sigma_high=high,
        projection=None if apg is None else AdaptiveProjection(apg.eta, apg.norm_threshold, apg.momentum),
    )


def sigmas_of(request: Request, bundle: ModelBundle, steps: int | None = None) -> Tensor:
    """The noise levels of a resolved request, descending, the last 0; `steps` for another number than it asks for.
    [n + 1] fp64"""
    if request.sigmas is not None:
        return torch.tensor(request.sigmas, dtype=torch.float64)
    name, steps = request.schedule or "uniform", steps or request.num_inference_steps or 1
    options = {"family": bundle.traits.align_your_steps} if name == "align_your_steps" else {}
    like_a1111 = request.determinism == "a1111" or follows(request)
    if like_a1111 and sampler_info(request.sampler or "ddim").discard_penultimate:
        return discard_penultimate(make_sigmas(name, bundle.schedule, steps + 1, options=options))
    return make_sigmas(name, bundle.schedule, steps, options=options)


def steps_of(request: Request, sigmas: Tensor) -> int:
    """How many steps the sampler takes over these levels; restart walks some of them again."""
    if request.sampler == "restart" and len(sigmas) > 1:
        return len(restart_plan(sigmas.tolist(), (Restart(),)))
    return max(len(sigmas) - 1, 0)


def run_sampler(
    request: Request,
    bundle: ModelBundle,
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: ImageNoise,
    whole: Tensor | None = None,
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
    """
    name = request.sampler or "ddim"
    source: NoiseSource = BrownianNoise(noise) if "sde" in name else noise
    options = _options(request, name)
    whole = sigmas if whole is None else whole
    if follows(request) and not (noise.mode == "torch" and "sde" in name):
        source = step_noise(request, name, noise, sigmas, whole, bundle.schedule)
    elif name == "dpmpp_sde" and noise.mode == "cpu":
        # Every tool of this noise takes it from the tree here; for the others of the name they differ.
        source = tree_noise(request, name, noise, whole, bundle.schedule)
    if isinstance(source, TreeNoise) and name == "dpmpp_sde":
        options["one_path"] = False
    if name == "lcm":
        options["timestep_of"] = lambda sigma: float(bundle.schedule.sigma_to_t(torch.tensor(sigma)))
    return sample(name, denoise, x, sigmas, options=options, noise=source)


def _options(request: Request, name: str) -> dict[str, Option]:
    options: dict[str, Option] = {}
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


def digest_of(x: Tensor) -> str:
    """Eight hex digits of a state, to see where two runs part."""
    values = x.detach().to("cpu", torch.float32).contiguous()
    return blake2b(values.numpy().tobytes(), digest_size=4).hexdigest()


def size_conditions(bundle: ModelBundle, request: Request) -> tuple[Tensor | None, Tensor | None]:
    """Numbers for the prompt [1, 6 or 5], and those for the negative prompt where they differ; see
    `ModelBundle.size_condition`."""
    width, height = request.width or 0, request.height or 0
    numbers = bundle.size_condition(width, height)
    if bundle.size_numbers == SDXL_REFINER.size_numbers:
        return numbers, bundle.size_condition(width, height, score=LOW_AESTHETIC_SCORE)
    return numbers, None


IMAGE_GUIDANCE = 1.5


class InstructDenoiser:
    """D(x, sigma) = uncond + s_i (picture - uncond) + s_t (text and picture - picture)
    (Brooks et al. 2023, arXiv:2211.09800, equation 3).

    Args:
        bundle: the model.
        positive, negative: the encoded prompts.
        draft: the picture's latents as the network takes them. [1,C,h,w]
        text_scale, image_scale: the two weights.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        positive: PromptPlan,
        negative: PromptPlan,
        draft: Tensor,
        *,
        text_scale: float,
        image_scale: float,
    ) -> None:
        self.bundle, self.positive, self.negative, self.draft = bundle, positive, negative, draft
        self.text_scale, self.image_scale = text_scale, image_scale
        self.step = 1
        self.call: int | None = None
        """As in `PromptedDenoiser`."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x [B,C,h,w], sigma [] -> denoised [B,C,h,w]."""
        moment = self.step if self.call is None else self.call
        self.call = None if self.call is None else self.call + 1
        text = self.positive.at(moment)[0][1]
        other = self.negative.at(moment)[0][1]
        blank = zeros_like(self.draft)
        conditions = [self._condition(text, self.draft), self._condition(other, self.draft)]
        conditions.append(self._condition(other, blank))
        if text.context.shape == other.context.shape:
            rows = stack([condition.expand(len(x)) for condition in conditions])
            full, picture, neither = self.bundle.denoiser(x.repeat(3, 1, 1, 1), sigma, rows).chunk(3)
        else:
            full, picture, neither = (self.bundle.denoiser(x, sigma, condition) for condition in conditions)
        return neither + self.image_scale * (picture - neither) + self.text_scale * (full - picture)

    def _condition(self, text: EncodedPrompt, draft: Tensor) -> Condition:
        return Condition(context=text.context, mask=text.mask, pooled=text.pooled, draft=draft)
