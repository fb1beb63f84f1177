"""Guiders beside the guidance scale, in one walk of the sampler: PAG, skip-layer and self-attention guidance, Perp-Neg,
FreeU.

Each acts on the prediction of one step, and all add up: guided + s_pag (cond - perturbed) + s_slg (cond - skipped) +
s_sag (blurred - D(blurred and noised)). Weakened passes are rows of the same network call as the prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gouache.diffusion.guidance import AdaptiveProjection, Guidance
from gouache.diffusion.guiders import DynamicThresholding, adapted_scale, blurred_where_attended
from gouache.diffusion.noise_schedule import NoiseSchedule
from gouache.diffusion.samplers.names import sampler_info
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.configs import MMDiTConfig
from gouache.models.denoiser import Condition
from gouache.models.perturbation import AttentionRecord, Perturbation, blocks_named
from gouache.nn.free_u import FreeU
from gouache.pipeline.fields.guiders import Timed
from gouache.pipeline.inputs.start import INSTRUCT, input_kind
from gouache.pipeline.prompts.encode import EncodedPrompt
from gouache.pipeline.request import Request, Sag

WATCHED = "mid_block.attentions.0.transformer_blocks.0"
"""The block whose self-attention says where a picture is salient (Hong et al. 2023, arXiv:2210.00939, section 5)."""
PASSES = ("pag", "slg", "sag")
"""Options that cost a pass of the network."""
OF_UNETS = ("pag", "sag", "freeu")
"""Guiders that know a U-Net's parts only."""
NEEDS_A_PROMPT_PAIR = (*PASSES, "perp_neg", "mimic")
"""Guiders of prompt and negative prompt; an instruct model guides by its picture too, and takes none of them."""


@dataclass(frozen=True, slots=True)
class WeakPass:
    """A weakened pass and how strongly to push away from it.

    Attributes:
        timed: when it acts.
        scale: how strongly.
        adaptive_scale: how fast that fades.
        perturbation: what weakens it.
    """

    timed: Timed
    scale: float
    adaptive_scale: float
    perturbation: Perturbation


@dataclass(frozen=True, slots=True)
class Guiders:
    """The guiders of one walk; none by default.

    Attributes:
        steps: of the walk.
        weak: weakened passes.
        sag: self-attention guidance.
        empty: the encoded empty prompt, where Perp-Neg measures from it.
        perp_neg: weight of Perp-Neg.
        free_u: FreeU's settings and when it acts.
        schedule: the model's, by which a scale fades.
        downscalings: of the network, between the latents and its middle.
    """

    steps: int = 1
    weak: tuple[WeakPass, ...] = ()
    sag: Sag | None = None
    empty: EncodedPrompt | None = None
    perp_neg: float = 0.0
    free_u: tuple[FreeU, Timed] | None = None
    schedule: NoiseSchedule | None = None
    downscalings: int = 0

    @property
    def add(self) -> bool:
        """Whether any adds to the guided prediction."""
        return bool(self.weak) or self.sag is not None

    def weak_at(self, step: int, sigma: Tensor) -> list[tuple[float, Perturbation]]:
        """Scales and weakened passes of a step, counted from 1; those without weight are left out."""
        acting = [one for one in self.weak if one.timed.is_on(step, self.steps)]
        scaled = [(adapted_scale(one.scale, one.adaptive_scale, self._elapsed(sigma)), one) for one in acting]
        return [(scale, one.perturbation) for scale, one in scaled if scale != 0]

    def sag_at(self, step: int) -> Sag | None:
        """Self-attention guidance, if it acts at a step."""
        sag = self.sag
        return sag if sag is not None and sag.scale != 0 and sag.is_on(step, self.steps) else None

    def free_u_at(self, step: int) -> FreeU | None:
        """FreeU's settings, if it acts at a step."""
        return self.free_u[0] if self.free_u is not None and self.free_u[1].is_on(step, self.steps) else None

    def _elapsed(self, sigma: Tensor) -> float:
        """Timesteps of a schedule of 1000 that lie behind at a noise level."""
        schedule = self.schedule
        if schedule is None:
            return 0.0
        t = float(schedule.sigma_to_t(sigma))
        if schedule.path == "ve":
            return 1000 * (schedule.t_max - t) / (schedule.t_max - schedule.t_min)
        return 1000 * (1 - t / schedule.num_timesteps)

    def blurred(self, denoised: Tensor, attended: Tensor, sag: Sag) -> Tensor:
        """The prediction, blurred where it is looked at. [B,C,h,w]; attended [B, places of the network's middle]"""
        height, width = denoised.shape[-2:]
        for _ in range(self.downscalings):
            height, width = -(-height // 2), -(-width // 2)
        return blurred_where_attended(
            denoised, attended.reshape(-1, height, width).to(denoised.device), sag.blur_sigma, sag.threshold
        )


@dataclass(slots=True)
class Beside:
    """What the guiders need of the latest prediction.

    Attributes:
        added: what weakened passes add. [B,C,h,w]
        base: the prediction that self-attention guidance blurs. [B,C,h,w]
        condition: under which it was made.
        attended: where the network looked then. [B, places of the network's middle]
        record: collects that.
    """

    added: Tensor | None = None
    base: Tensor | None = None
    condition: Condition | None = None
    attended: Tensor | None = None
    record: AttentionRecord = field(default_factory=lambda: AttentionRecord(WATCHED))


def guidance_of(request: Request) -> Guidance:
    """The guidance that a resolved request asks for."""
    if request.guidance_scale is None:
        raise InvalidInput("guidance_scale", given=None, expected="a number", cure="Resolve the request first.")
    low, high = request.guidance_interval or (0.0, float("inf"))
    apg, mimic = request.apg, request.mimic
    return Guidance(
        scale=request.guidance_scale / sampler_info(request.sampler or "ddim").guidance_divisor,
        rescale=request.guidance_rescale,
        sigma_low=low,
        sigma_high=high,
        projection=None if apg is None else AdaptiveProjection(apg.eta, apg.norm_threshold, apg.momentum),
        thresholding=None
        if mimic is None
        else DynamicThresholding(
            mimic_scale=mimic.scale,
            percentile=mimic.percentile,
            by_channel=mimic.by_channel,
            centre=mimic.centre,
            spread=mimic.spread,
            phi=mimic.phi,
        ),
    )


def guiders_of(request: Request, bundle: ModelBundle, steps: int, empty: EncodedPrompt | None) -> Guiders:
    """The guiders that a resolved request asks for.

    Args:
        request: it.
        bundle: the model.
        steps: of the walk.
        empty: the encoded empty prompt, for Perp-Neg.
    """
    weak = []
    if request.pag is not None:
        identity = Perturbation(identity=blocks_named(bundle.unet, request.pag.layers, "pag.layers"))
        weak.append(WeakPass(request.pag, request.pag.scale, request.pag.adaptive_scale, identity))
    if request.slg is not None:
        skipped = Perturbation(skipped=blocks_named(bundle.unet, request.slg.layers, "slg.layers"))
        weak.append(WeakPass(request.slg, request.slg.scale, 0.0, skipped))
    free_u = None
    if request.freeu is not None:
        given = request.freeu
        settings = FreeU(given.b1, given.b2, given.s1, given.s2, version=given.version, stages=given.stages)
        free_u = (settings, given)
    return Guiders(
        steps=steps,
        weak=tuple(weak),
        sag=request.sag,
        empty=empty,
        perp_neg=0.0 if request.perp_neg is None else request.perp_neg.scale,
        free_u=free_u,
        schedule=bundle.schedule,
        downscalings=bundle.unet.config.downscalings,
    )


def check_guiders(request: Request, bundle: ModelBundle) -> None:
    """Refuse guiders that this model, or the request beside them, can't have.

    Raises:
        InvalidInput: an instruct model, a U-Net without the attention or the widths that one needs, tiles.
        UnknownName: no layer of that name.
    """
    asked = [name for name in NEEDS_A_PROMPT_PAIR if getattr(request, name) is not None]
    if asked and input_kind(bundle) == INSTRUCT:
        raise InvalidInput(
            asked[0],
            given="an instruct model",
            expected="a model that is guided by its prompt alone",
            cure="Leave it out; guidance_scale and image_guidance_scale guide an instruct model.",
        )
    unknown = [name for name in OF_UNETS if getattr(request, name) is not None]
    if unknown and isinstance(bundle.unet.config, MMDiTConfig):
        raise InvalidInput(
            unknown[0],
            given=f"a value for {bundle.name or bundle.family}",
            expected="a model with a U-Net, whose parts it changes",
            cure="Leave it out; slg does something alike for this model's transformer.",
        )
    for name, group in (("pag", request.pag), ("slg", request.slg)):
        if group is not None:
            blocks_named(bundle.unet, group.layers, f"{name}.layers")
    if request.sag is not None:
        blocks_named(bundle.unet, [WATCHED], "sag")
        if request.tiled is not None:
            raise InvalidInput(
                "sag",
                given="tiled",
                expected="a picture painted as a whole: the attention that says what to blur is one picture's",
                cure="Leave one of them out, or use pag.",
            )
    config = bundle.unet.config
    if isinstance(config, MMDiTConfig):
        return
    widths = {factor * config.channels[0] for factor in (2, 4)}
    if request.freeu is not None and request.freeu.stages == "widths" and not widths & set(config.channels):
        raise InvalidInput(
            "freeu.stages",
            given=f"widths, for a U-Net with levels of {', '.join(map(str, config.channels))} channels",
            expected=f"levels of {' or '.join(map(str, sorted(widths)))} channels",
            cure="Use stages 'blocks'.",
        )
