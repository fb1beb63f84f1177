"""The one description of a generation: Python, command line, server and the recipe inside each picture share it.

Fields left at `None` mean "as the model likes it"; `Pipeline.resolve` fills them in, so that a recipe has no gaps.
Pictures are named, not embedded: a file's path, or `sha256:<64 hex digits>` for bytes that travel beside the JSON.
Nothing here imports torch: the command line builds its options from these classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from gouache.config import Config
from gouache.pipeline.fields.elsewhere import ELSEWHERE
from gouache.pipeline.fields.guiders import Apg, BlockCache, CfgCache, DeepCache, FreeU, Mimic, Pag, PerpNeg, Sag, Slg
from gouache.pipeline.fields.parts import (
    Churn,
    Control,
    Hires,
    ImagePrompt,
    Interpolation,
    Inversion,
    Mask,
    Outpaint,
    Prior,
    Region,
    SizeCondition,
    Tiled,
    Upscale,
)
from gouache.pipeline.fields.values import (
    MAX_BEST_OF,
    MAX_CONTROLS,
    MAX_COUNT,
    MAX_IMAGE_PROMPTS,
    MAX_PIXELS,
    MAX_PROMPT,
    MAX_REGIONS,
    MAX_SEED,
    MAX_SEED_DELTA,
    MAX_STEPS,
    MIN_SIDE,
    Determinism,
    Emphasis,
    Fraction,
    ImageReference,
    Name,
    Procedure,
    ResizeMode,
    Safety,
    Scale,
    Seamless,
    Seed,
    Side,
    StepCount,
    SwitchBy,
    Text,
    a_colour,
    a_watermark,
)

__all__ = [
    "MAX_COUNT",
    "MAX_PIXELS",
    "MAX_PROMPT",
    "MAX_SEED",
    "MAX_STEPS",
    "Apg",
    "BlockCache",
    "CfgCache",
    "Churn",
    "Control",
    "DeepCache",
    "Emphasis",
    "FreeU",
    "Hires",
    "ImagePrompt",
    "Interpolation",
    "Inversion",
    "Mask",
    "Mimic",
    "Outpaint",
    "Pag",
    "PerpNeg",
    "Prior",
    "Procedure",
    "Region",
    "Request",
    "ResizeMode",
    "Safety",
    "Sag",
    "Seamless",
    "SizeCondition",
    "Slg",
    "Tiled",
    "Upscale",
    "guidance_of_diffusers",
]


class Request(Config):
    """Everything that decides a generation. Frozen; JSON both ways by `to_json` and `from_json`."""

    elsewhere: ClassVar[Mapping[str, str]] = ELSEWHERE

    prompt: Text = ""
    """Prompt."""
    negative_prompt: Text | None = None
    """Negative prompt. SDXL models take zeros where none is given; an empty one is encoded."""
    prompt_2: Text | None = None
    """Prompt of an SDXL or SD 3 model's second text encoder (OpenCLIP's bigG). Default: the prompt."""
    negative_prompt_2: Text | None = None
    """Negative prompt of an SDXL or SD 3 model's second text encoder. Default: the negative prompt."""
    prompt_3: Text | None = None
    """Prompt of a Stable Diffusion 3 model's T5. Default: the prompt."""
    negative_prompt_3: Text | None = None
    """Negative prompt of a Stable Diffusion 3 model's T5. Default: the negative prompt."""
    max_sequence_length: Annotated[int, Field(ge=1, le=512)] | None = None
    """Tokens that Stable Diffusion 3's T5 reads, end and padding included: 256; ComfyUI has 77 for short prompts."""
    style: Name | None = None
    """A style the model was trained on; added to the prompt as the model wants it."""
    emphasis: Emphasis = "a1111"
    """How (word:1.2) acts: a1111 keeps the mean of encoders that have a steady one; original always keeps it, as
    A1111's Original; no_norm and ignore are A1111's too; comfy is ComfyUI's; none reads brackets as text."""
    clip_skip: Annotated[int, Field(ge=1, le=24)] | None = None
    """CLIP skip: text encoder layer counted from the last, 1 = last. Default: the model family's."""

    model: Name | None = None
    """Path or name of the model. Default: the model shipped with gouache."""
    vae: Name | None = None
    """Path or name of a VAE in place of the model's. Default: the model's own."""
    refiner: Name | None = None
    """Path or name of a second model that paints the last steps, as SDXL's refiner; in the second pass, if any."""
    refiner_switch_at: Fraction = 0.8
    """Share after which the refiner takes over (diffusers' denoising_end): 0 = at once, 1 = never."""
    refiner_switch_by: SwitchBy = "noise"
    """What that share is of: noise, in training timesteps as diffusers and A1111; or steps, as ComfyUI."""
    seed: Seed | None = None
    """Seed of the first image; image k uses seed + k. Default: random."""
    subseed: Seed | None = None
    """Variation seed."""
    subseed_strength: Fraction = 0.0
    """Variation strength: 0 = the seed's noise, 1 = the subseed's."""
    determinism: Determinism = "exact"
    """exact: bit-identical on this machine; portable: CPU noise, faster batches; a1111: AUTOMATIC1111's noise; cpu:
    torch.Generator's, as diffusers, ComfyUI and A1111's RNG: CPU draw it."""
    eta_noise_seed_delta: Annotated[int, Field(ge=0, le=MAX_SEED_DELTA)] = 0
    """ENSD: the noise of the steps is drawn with the seed plus this; for the levels a1111 and cpu."""
    procedure: Procedure | None = None
    """Whose steps, second pass, masks and rounding: gouache's or AUTOMATIC1111's. Default: a1111 with its noise."""

    count: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 1
    """Number of images."""
    width: Side | None = None
    """Width in pixels; the model's own, or the starting picture's. Above its own, its upscaler (if any) enlarges."""
    height: Side | None = None
    """Height in pixels; the model's own, or the starting picture's. Above its own, its upscaler (if any) enlarges."""
    background: Annotated[str, AfterValidator(a_colour)] | None = None
    """transparent, white, black or #rrggbb, for models with an alpha channel; opaque, for all, is white with those.
    surroundings: under what is painted into a picture that has no transparency lie the colours around the mask, and
    it stays opaque; any other picture may be transparent. Default: surroundings with a mask, else transparent."""
    best_of: Annotated[int, Field(ge=1, le=MAX_BEST_OF)] = 1
    """Sample this many drafts and use the most likely one."""

    num_inference_steps: StepCount | None = None
    """Denoising steps."""
    guidance_scale: Scale | None = None
    """Classifier-free guidance scale; 1 = off, one network call per step; 0 = the negative prompt alone (diffusers'
    0 is 1 here)."""
    guidance_rescale: Fraction = 0.0
    """Rescale the guided prediction's standard deviation towards the conditional one's."""
    guidance_interval: tuple[Annotated[float, Field(ge=0.0)], Annotated[float, Field(ge=0.0)]] | None = None
    """Apply guidance only while low <= sigma <= high."""
    apg: Apg | None = None
    """Use adaptive projected guidance (APG)."""
    mimic: Mimic | None = None
    """Keep the range of values that a lower guidance scale has."""
    perp_neg: PerpNeg | None = None
    """Take away only what the negative prompt says beside the prompt."""
    pag: Pag | None = None
    """Use perturbed-attention guidance (PAG)."""
    sag: Sag | None = None
    """Use self-attention guidance (SAG)."""
    slg: Slg | None = None
    """Use skip-layer guidance (SLG)."""
    freeu: FreeU | None = None
    """Use FreeU: weigh the U-Net's own features more and the coarse part of the kept ones less."""
    cfg_cache: CfgCache | None = None
    """Call the network for the negative prompt only at some steps (CFG-Cache)."""
    deep_cache: DeepCache | None = None
    """Evaluate the deep part of the U-Net only at some steps (DeepCache)."""
    block_cache: BlockCache | None = None
    """Evaluate only the network's first block while it changes little from step to step (FBCache)."""
    token_merging: Fraction = 0.0
    """Share of the places that self-attention sees as one with others, in the U-Net's finest level that has it (ToMe);
    0 = none, 0.75 = three of four, the most."""
    fast: bool = False
    """Fewer and cheaper network calls: known values for this family in block_cache, deep_cache and guidance_interval,
    where left open; a note says which."""
    image_guidance_scale: Scale | None = None
    """Image guidance scale of instruct (InstructPix2Pix) models."""
    sampler: Name | None = None
    """Sampler, optionally with a schedule, as in "DPM++ 2M Karras"."""
    schedule: Name | None = None
    """Noise schedule: how the noise levels are spaced."""
    sigmas: tuple[Annotated[float, Field(ge=0.0)], ...] | None = None
    """Explicit noise levels, descending; overrides schedule and steps."""
    eta: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    """Noise added per step by ancestral samplers and DDIM. Default: the sampler's."""
    churn: Churn | None = None
    """Noise re-added at every step (stochastic sampling)."""

    size_condition: SizeCondition | None = None
    """Size and crop numbers that SDXL models are told beside the prompt."""

    init_image: ImageReference | None = None
    """Starting image (img2img)."""
    strength: Fraction | None = None
    """Denoising strength: 0 keeps the starting image, 1 ignores it. Default: 0.75; outpainting 1."""
    depth_image: ImageReference | None = None
    """Depth map for depth models; white is near."""
    noise_level: Annotated[int, Field(ge=0, lt=1000)] | None = None
    """Noise on the small image that an upscaling model enlarges, as a timestep: more lets it invent more. Default: 20;
    published models know up to 350."""
    control: Annotated[tuple[Control, ...], Field(max_length=MAX_CONTROLS)] = ()
    """ControlNets, each with its control image."""
    image_prompts: Annotated[tuple[ImagePrompt, ...], Field(max_length=MAX_IMAGE_PROMPTS)] = ()
    """Image prompts: pictures that say what to paint, each read by an IP-Adapter."""
    regions: Annotated[tuple[Region, ...], Field(max_length=MAX_REGIONS)] = ()
    """Areas of the picture, each with a prompt of its own."""
    resize_mode: ResizeMode = "crop"
    """How to fit a starting image of another aspect ratio."""
    mask: Mask | None = None
    """Inpaint: change only the masked part of the starting image."""
    outpaint: Outpaint | None = None
    """Extend the starting image beyond its edges."""
    inversion: Inversion | None = None
    """Edit the starting image by inversion and a changed prompt."""
    interpolation: Interpolation | None = None
    """Generate the frames between two prompts, seeds or images."""

    hires: Hires | None = None
    """Second pass at a larger size."""
    tiled: Tiled | None = None
    """Diffuse in overlapping tiles."""
    vae_tiling: bool = False
    """Encode and decode with the VAE in tiles, to save memory."""
    seamless: Seamless = "none"
    """Tileable image: horizontally (x), vertically (y) or both."""
    upscale: Upscale | None = None
    """Enlarge the result."""
    prior: Prior | None = None
    """Settings of the autoregressive prior."""

    watermark: Annotated[str, AfterValidator(a_watermark)] | None = None
    """Text of an invisible watermark (readable by invisible-watermark, dwtDct)."""
    safety: Safety = "off"
    """Blur or block images flagged by a safety checker, whose weights you supply."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        for name in ("mask", "outpaint", "inversion"):
            if getattr(self, name) is not None and self.init_image is None:
                raise ValueError(f"{name} beside init_image")
        if self.prior is not None and self.prior.keep is not None and self.init_image is None:
            raise ValueError("prior.keep beside init_image")
        if (self.width or MIN_SIDE) * (self.height or MIN_SIDE) > MAX_PIXELS:
            raise ValueError(f"width * height of at most {MAX_PIXELS} pixels")
        if self.guidance_interval is not None and self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError("guidance_interval as low, high with low <= high")
        if self.apg is not None and self.mimic is not None:
            raise ValueError("apg or mimic: each is a rule of its own for the guidance scale")
        if max(self.seed or 0, self.subseed or 0) + self.count - 1 + self.eta_noise_seed_delta > MAX_SEED:
            raise ValueError(f"a last picture's seed of at most {MAX_SEED}")
        if self.eta_noise_seed_delta and self.determinism not in ("a1111", "cpu"):
            raise ValueError("eta_noise_seed_delta of 0 unless determinism is a1111 or cpu")
        if self.sigmas is not None:
            _check_sigmas(self.sigmas)
        return self

    def pictures(self) -> tuple[str, ...]:
        """Every picture that the request names, each once, in the order of the fields."""
        mask = self.mask.image if self.mask else None
        last = self.interpolation.image if self.interpolation else None
        names = (self.init_image, mask, self.depth_image, *(control.image for control in self.control), last)
        names += tuple(name for one in self.image_prompts for name in (*one.images, one.mask))
        names += tuple(region.mask for region in self.regions)
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        """Only what differs from the defaults: a hundred fields that say nothing hide the few that do."""
        for name, value in super().__repr_args__():
            if (
                name is None
                or name == "prompt"
                or value != type(self).model_fields[name].get_default(call_default_factory=True)
            ):
                yield name, value

    def replace(self, changes: Mapping[str, object]) -> Request:
        """A copy with other values, validated again.

        Args:
            changes: field to value; a group may be given as one or as a mapping.

        Raises:
            ConfigError: an unknown field or a value out of range.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        return type(self).from_dict({**values, **changes}, where="request")


def guidance_of_diffusers(scale: float) -> float:
    """A `guidance_scale` of diffusers as ours: up to 1 it leaves guidance off there, and the prompt holds.

    >>> [guidance_of_diffusers(scale) for scale in (0.0, 0.5, 1.0, 1.5)]
    [1.0, 1.0, 1.0, 1.5]
    """
    return 1.0 if scale <= 1 else scale


def _check_sigmas(sigmas: tuple[float, ...]) -> None:
    descending = all(a > b for a, b in pairwise(sigmas))
    if not (2 <= len(sigmas) <= MAX_STEPS + 1 and descending and all(map(math.isfinite, sigmas))):
        raise ValueError(f"sigmas as 2 to {MAX_STEPS + 1} finite, strictly descending noise levels")
