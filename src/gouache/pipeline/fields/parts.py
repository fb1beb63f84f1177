"""The groups of a request: mask, control images, second pass, prior and the like, each a frozen config."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from gouache.config import Config
from gouache.pipeline.fields.guiders import Timed
from gouache.pipeline.fields.values import (
    MAX_FACTOR,
    MAX_FRAMES,
    MAX_NOISE_LEVEL,
    MAX_PROMPT_IMAGES,
    MAX_SIDE,
    MIN_SIDE,
    Border,
    ControlType,
    Fraction,
    ImageReference,
    MaskFill,
    Name,
    Preprocessor,
    ResizeMode,
    Scale,
    Seed,
    Side,
    StepCount,
    Text,
    an_aspect,
)
from gouache.scenery.kinds import SceneryUse


class Churn(Config):
    """Noise put back at every step by euler, heun and dpm_2 (Karras et al. 2022, algorithm 2)."""

    amount: Annotated[float, Field(ge=0.0, le=1000.0)] = 0.0
    """S_churn: 0 is deterministic."""
    sigma_min: Annotated[float, Field(ge=0.0)] = 0.0
    """S_tmin: no churn below this sigma."""
    sigma_max: Annotated[float, Field(gt=0.0)] | None = None
    """S_tmax: no churn above this sigma."""
    noise: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    """S_noise: factor on the added noise."""


class Mask(Config):
    """Which part of the starting picture is painted anew. White = paint."""

    image: ImageReference | None = None
    """Mask image, white = inpaint. Default: the transparent part of the starting image."""
    text: Annotated[Text, Field(min_length=1, max_length=1000)] | None = None
    """What to paint anew, in words, instead of a mask image: a network in the models folder (CLIPSeg) finds it."""
    blur: Annotated[int, Field(ge=0, le=256)] = 4
    """Mask blur in pixels."""
    padding: Annotated[int, Field(ge=0, le=MAX_SIDE)] = 32
    """Padding around the mask with `only_masked`, in pixels."""
    fill: MaskFill = "original"
    """Initial content of the masked area."""
    invert: bool = False
    """Inpaint the black part instead."""
    only_masked: bool = False
    """Crop to the mask, inpaint at full resolution and paste back."""
    preserve: bool = True
    """Keep the pixels outside the mask unchanged, bit for bit."""
    threshold: Annotated[int, Field(ge=1, le=255)] | None = None
    """Cut the mask: grey from here on counts as white, the rest as black. Default: grey is a share of the strength; a
    mask from words is cut at 128."""

    @model_validator(mode="after")
    def _from_one_source(self) -> Self:
        if self.image is not None and self.text is not None:
            raise ValueError("image or text: a mask is a picture or comes from words")
        return self


class Control(Config):
    """A picture of edges, depth or a pose that steers the painting, and the network that reads it."""

    model: Name
    """The ControlNet, control-LoRA or T2I-Adapter, by a name that gouache models lists."""
    image: ImageReference
    """The control picture."""
    preprocessor: Preprocessor = "none"
    """canny draws a photograph's edges; depth and segmentation are drawn by a network in the models folder; inpaint
    hides what a mask or transparency covers; none takes the picture as it is."""
    canny_low: Annotated[int, Field(ge=0, le=1000)] = 100
    """Edges at least this strong count where they continue a strong one."""
    canny_high: Annotated[int, Field(ge=0, le=1000)] = 200
    """Edges at least this strong count by themselves."""
    weight: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    """How strongly it steers."""
    start: Fraction = 0.0
    """Share of the steps after which it begins."""
    end: Fraction = 1.0
    """Share of the steps after which it ends."""
    guess: bool = False
    """Steer the prompt's side alone, so that the picture counts more than the words."""
    control_type: ControlType | None = None
    """What the picture shows, for a ControlNet-Union. Default: what the preprocessor makes."""
    resize_mode: ResizeMode | None = None
    """How a control picture of another shape is brought to size; as the request's without it."""

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if self.start >= self.end:
            raise ValueError("start below end")
        if self.canny_low > self.canny_high:
            raise ValueError("canny_low of at most canny_high")
        return self


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class ImagePrompt(Timed):
    """Pictures that say what is painted, as words do, and the IP-Adapter that reads them."""

    adapter: Name | None = None
    """The IP-Adapter, by a name that gouache models lists. None for a model that takes a picture's embedding itself."""
    images: Annotated[
        tuple[ImageReference, ...], BeforeValidator(_one_or_several), Field(min_length=1, max_length=MAX_PROMPT_IMAGES)
    ]
    """The picture, or several that are looked at together."""
    weight: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    """How much the pictures count beside the words; 0 = not."""
    mask: ImageReference | None = None
    """Where in the painting they count: white = there. Default: everywhere."""
    noise_level: Annotated[int, Field(ge=0, le=MAX_NOISE_LEVEL)] = 0
    """Noise on the embedding of a picture that a model reads without an adapter (unCLIP, SDXL): more = less like it."""


class Outpaint(Config):
    """Grow the starting picture by pixels on each side, or centred to an aspect ratio."""

    left: Border = 0
    """Pixels to add on the left."""
    right: Border = 0
    """Pixels to add on the right."""
    top: Border = 0
    """Pixels to add above."""
    bottom: Border = 0
    """Pixels to add below."""
    aspect: Annotated[str, AfterValidator(an_aspect)] | None = None
    """Target aspect ratio, for example 16:9; the image is never cropped."""
    overlap: Annotated[int, Field(ge=0, le=MAX_SIDE)] = 32
    """Pixels of the original that are regenerated for a smooth seam."""

    @model_validator(mode="after")
    def _goes_somewhere(self) -> Self:
        if not (self.left or self.right or self.top or self.bottom or self.aspect):
            raise ValueError("left, right, top, bottom or an aspect")
        return self


class Region(Config):
    """An area of the picture with a prompt of its own, which holds there for the network's attention."""

    prompt: Text
    """What is to be seen there."""
    mask: ImageReference | None = None
    """The area as a picture, white = here; grey is here in part."""
    box: tuple[Fraction, Fraction, Fraction, Fraction] | None = None
    """The area as a box: left, top, right, bottom as fractions of the picture."""
    weight: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """How much it counts: against other regions where they overlap; below 1 the prompt keeps the rest."""
    feather: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Width over which its edge fades, as a fraction of the picture's shorter side."""
    base: Fraction = 0.2
    """Share that the picture's prompt keeps inside the area."""

    @model_validator(mode="after")
    def _is_one_area(self) -> Self:
        if (self.mask is None) == (self.box is None):
            raise ValueError("an area: either a mask or a box")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError("box as left, top, right, bottom with left < right and top < bottom")
        return self


class Hires(Config):
    """A second pass at a larger size: paint small, enlarge, paint over."""

    scale: Annotated[float, Field(gt=1.0, le=8.0)] = 2.0
    """Factor on width and height."""
    width: Side | None = None
    """Width of the second pass; overrides the scale. Alone, the height follows in proportion."""
    height: Side | None = None
    """Height of the second pass; overrides the scale. Alone, the width follows in proportion."""
    upscaler: Name = "latent"
    """latent, latent-antialiased, latent-bicubic, latent-bicubic-antialiased, latent-nearest, latent-nearest-exact,
    lanczos, model (the model's upscaler), or an upscaler's file."""
    strength: Fraction = 0.7
    """Denoising strength of the second pass."""
    num_inference_steps: StepCount | None = None
    """Steps of the second pass. Default: the first pass's."""

    def size_for(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the second pass of a first one; where one side is given, the other is in proportion."""
        if self.width is not None and self.height is None:
            return self.width, min(max(round(self.width * height / width), MIN_SIDE), MAX_SIDE)
        if self.height is not None and self.width is None:
            return min(max(round(self.height * width / height), MIN_SIDE), MAX_SIDE), self.height
        return self.width or round(width * self.scale), self.height or round(height * self.scale)


class Tiled(Config):
    """Diffuse a large picture in overlapping tiles of the size the model knows."""

    tile: Side | None = None
    """Tile size in pixels. Default: the model's native size."""
    overlap: Fraction = 0.5
    """Fraction of a tile that overlaps its neighbour."""


class Prior(Config):
    """The autoregressive prior that drafts the picture's structure, in models that have one."""

    enabled: bool = True
    """Use the prior."""
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    """Sampling temperature; 0 = greedy."""
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Top-k sampling; 0 = all tokens."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Top-p (nucleus) sampling."""
    guidance_scale: Scale | None = None
    """Classifier-free guidance scale of the prior's logits; 1 = off."""
    start_sigma: Annotated[float, Field(ge=0.0, le=10_000)] | None = None
    """Noise level at which the U-Net begins, on the draft with so much noise on it; 0 begins on noise alone."""
    recall: Annotated[float, Field(ge=0.0, le=1_000)] | None = None
    """How closely the draft follows one remembered picture, which the seed chooses among those whose captions are
    nearest to the prompt: added to the logits of its tokens; 0 = the network mixes the nearest ones."""
    variation: Fraction | None = None
    """How far the draft leaves that of the seed: the root of this share of its tokens is drawn anew from the subseed,
    the first one, its overall colour, only at 1. Default: `subseed_strength`."""
    keep: tuple[Fraction, Fraction, Fraction, Fraction] | None = None
    """Block of the starting image whose tokens are kept: left, top, right, bottom as fractions."""
    layout: bool = True
    """Draft the things of "a cat to the left of a tree" or "three cups" each by itself, and lay them out."""
    synonyms: bool = True
    """Draft a thing by the label that it is remembered by: "熊猫" as "panda", "a bowl of noodles" as "steaming
    bowl"."""
    pose: bool = True
    """Show what a draft follows turned, moved, smaller or mirrored in variations, so that they differ; letters, flags
    and the like are never mirrored."""
    plain: bool = True
    """Draft the things of "a blue cat" and "a cat on a yellow background" plain, and give the drafts colour and ground;
    only with `layout`."""
    scenery: SceneryUse | None = None
    """Where a thing is said to be "in the snow" or "on the beach": draw that behind it, drop those words, or ignore
    that they name a scenery; only with `plain`. Default: draw, or drop where `background` is given or a picture is
    painted into."""

    @model_validator(mode="after")
    def _block_has_an_area(self) -> Self:
        if self.keep is not None and not (self.keep[0] < self.keep[2] and self.keep[1] < self.keep[3]):
            raise ValueError("keep as left, top, right, bottom with left < right and top < bottom")
        return self


class Interpolation(Config):
    """Frames from this request's prompt, seed and picture to another's."""

    prompt: Text | None = None
    """Prompt of the last frame."""
    seed: Seed | None = None
    """Seed of the last frame."""
    image: ImageReference | None = None
    """Picture of the last frame; the first is `init_image`."""
    frames: Annotated[int, Field(ge=2, le=MAX_FRAMES)] = 8
    """Number of frames, both ends included."""
    frame: Annotated[int, Field(ge=0, lt=MAX_FRAMES)] | None = None
    """Paint this frame only, counted from 0."""

    @model_validator(mode="after")
    def _frame_is_one_of_them(self) -> Self:
        if self.frame is not None and self.frame >= self.frames:
            raise ValueError("frame below frames")
        return self


class Inversion(Config):
    """Edit by prompt change: find the noise that gives `init_image`, and paint from it with the new prompt."""

    source_prompt: Text = ""
    """Prompt that describes the original image."""
    num_inference_steps: StepCount | None = None
    """Inversion steps. Default: the number of denoising steps."""


class Upscale(Config):
    """Enlarge the finished picture."""

    factor: Annotated[float, Field(gt=0.0, le=MAX_FACTOR)] = 2.0
    """Factor on width and height."""
    upscaler: Name | None = None
    """model (the model's upscaler), lanczos, or an upscaler's file. Default: the model's if any, else lanczos."""


class SizeCondition(Config):
    """What SDXL is told of the picture's size (Podell et al. 2023, arXiv:2307.01952, section 2.2), and its refiner of
    its beauty. In training these were the photograph's own size and how it was cropped; what is left open is the
    picture's."""

    original_width: Side | None = None
    """Width before scaling and cropping, in pixels. Default: the picture's; small ones give blurred pictures."""
    original_height: Side | None = None
    """Height before scaling and cropping, in pixels. Default: the picture's."""
    crop_left: Annotated[int, Field(ge=0, le=MAX_SIDE)] = 0
    """Pixels cut off on the left; above 0, things stand off the left edge."""
    crop_top: Annotated[int, Field(ge=0, le=MAX_SIDE)] = 0
    """Pixels cut off at the top; above 0, things stand off the top edge."""
    target_width: Side | None = None
    """Width after scaling and cropping, in pixels. Default: the picture's."""
    target_height: Side | None = None
    """Height after scaling and cropping, in pixels. Default: the picture's."""
    aesthetic_score: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    """Aesthetic score that SDXL's refiner is told for the prompt. Default: 6."""
    negative_aesthetic_score: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    """Aesthetic score that SDXL's refiner is told for the negative prompt. Default: 2.5."""
