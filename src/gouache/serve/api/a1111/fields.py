"""The bodies that A1111's clients send. Every field may be left out or null; an unknown one is kept, so that it
can be named (`tolerance`)."""

from __future__ import annotations

import base64
import binascii
import math
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from gouache.errors import InvalidInput
from gouache.pipeline.request import MAX_SEED


def _whole(value: object) -> object:
    """A1111 cuts what stands behind the point; half of 25 steps is sent as 12.5."""
    return math.trunc(value) if isinstance(value, float) and math.isfinite(value) else value


Whole = Annotated[int, BeforeValidator(_whole)]
SeedField = Annotated[int, Field(ge=-1, le=MAX_SEED), BeforeValidator(_whole)]
SideField = Annotated[int, Field(ge=0, le=16_384), BeforeValidator(_whole)]
Few = Annotated[int, Field(ge=1, le=1000), BeforeValidator(_whole)]
Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
ShortText = Annotated[str, Field(max_length=1000)]
Base64 = Annotated[str, Field(max_length=512 * 2**20)]
"""A picture in base64, with or without `data:...;base64,` before it."""


class A1111Body(BaseModel):
    """Base of the bodies."""

    model_config = ConfigDict(extra="allow", frozen=True)


class GenerationBody(A1111Body):
    """What txt2img and img2img share."""

    prompt: str | None = ""
    negative_prompt: str | None = ""
    styles: list[ShortText] | None = None
    seed: SeedField | None = -1
    subseed: SeedField | None = -1
    subseed_strength: Number | None = 0.0
    seed_resize_from_h: Whole | None = -1
    seed_resize_from_w: Whole | None = -1
    sampler_name: ShortText | None = None
    sampler_index: ShortText | None = None
    scheduler: ShortText | None = None
    batch_size: Few | None = 1
    n_iter: Few | None = 1
    steps: Annotated[int, Field(ge=1, le=10_000), BeforeValidator(_whole)] | None = 50
    cfg_scale: Number | None = 7.0
    width: SideField | None = 512
    height: SideField | None = 512
    restore_faces: bool | None = None
    tiling: bool | None = None
    do_not_save_samples: bool | None = False
    do_not_save_grid: bool | None = False
    eta: Number | None = None
    s_min_uncond: Number | None = None
    s_churn: Number | None = None
    s_tmax: Annotated[float, Field(ge=-1e6, allow_inf_nan=True)] | None = None
    s_tmin: Number | None = None
    s_noise: Number | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool | None = True
    refiner_checkpoint: ShortText | None = None
    refiner_switch_at: Number | None = None
    disable_extra_networks: bool | None = False
    comments: dict[str, Any] | None = None
    script_name: ShortText | None = None
    script_args: list[Any] | None = None
    send_images: bool | None = True
    save_images: bool | None = False
    alwayson_scripts: dict[str, Any] | None = None
    force_task_id: ShortText | None = None
    infotext: str | None = None
    firstpass_image: str | None = None
    distilled_cfg_scale: Number | None = None
    clip_skip: Number | None = None
    background: ShortText | None = None
    """Not A1111's: a colour, or `transparent`, without which no picture with an alpha channel is sent."""


class Txt2Img(GenerationBody):
    """POST /txt2img."""

    enable_hr: bool | None = False
    denoising_strength: Number | None = None
    firstphase_width: Whole | None = 0
    firstphase_height: Whole | None = 0
    hr_scale: Number | None = 2.0
    hr_upscaler: ShortText | None = None
    hr_second_pass_steps: Annotated[int, Field(ge=0, le=10_000), BeforeValidator(_whole)] | None = 0
    hr_resize_x: SideField | None = 0
    hr_resize_y: SideField | None = 0
    hr_checkpoint_name: ShortText | None = None
    hr_sampler_name: ShortText | None = None
    hr_scheduler: ShortText | None = None
    hr_prompt: str | None = ""
    hr_negative_prompt: str | None = ""
    hr_cfg: Number | None = None
    hr_distilled_cfg: Number | None = None
    hr_additional_modules: list[Any] | None = None


class Img2Img(GenerationBody):
    """POST /img2img."""

    init_images: Annotated[list[Base64], Field(max_length=64)] | None = None
    resize_mode: Whole | None = 0
    denoising_strength: Number | None = 0.75
    image_cfg_scale: Number | None = None
    mask: Base64 | None = None
    mask_blur_x: Annotated[int, Field(ge=0, le=256), BeforeValidator(_whole)] | None = 4
    mask_blur_y: Annotated[int, Field(ge=0, le=256), BeforeValidator(_whole)] | None = 4
    mask_blur: Annotated[int, Field(ge=0, le=256), BeforeValidator(_whole)] | None = None
    mask_round: bool | None = True
    inpainting_fill: Whole | None = 0
    inpaint_full_res: bool | int | None = True
    inpaint_full_res_padding: Annotated[int, Field(ge=0, le=4096), BeforeValidator(_whole)] | None = 0
    inpainting_mask_invert: Whole | None = 0
    initial_noise_multiplier: Number | None = None
    latent_mask: Base64 | None = None
    include_init_images: bool | None = False


class Extras(A1111Body):
    """What both extras calls share."""

    resize_mode: Literal[0, 1] | None = 0
    show_extras_results: bool | None = True
    gfpgan_visibility: Number | None = 0
    codeformer_visibility: Number | None = 0
    codeformer_weight: Number | None = 0
    upscaling_resize: Annotated[float, Field(ge=0, le=16)] | None = 2
    upscaling_resize_w: SideField | None = 512
    upscaling_resize_h: SideField | None = 512
    upscaling_crop: Annotated[
        bool | None, Field(validation_alias=AliasChoices("upscaling_crop", "upscaling_resize_crop"))
    ] = True
    upscaler_1: ShortText | None = "None"
    upscaler_2: ShortText | None = "None"
    extras_upscaler_2_visibility: Number | None = 0
    upscale_first: bool | None = False


class ExtraSingle(Extras):
    """POST /extra-single-image."""

    image: Base64 = ""


class NamedImage(A1111Body):
    """One picture of a batch."""

    data: Annotated[Base64, Field(validation_alias=AliasChoices("data", "image"))]
    name: ShortText = ""


class ExtraBatch(Extras):
    """POST /extra-batch-images."""

    imageList: Annotated[  # noqa: N815
        list[NamedImage], Field(max_length=64, validation_alias=AliasChoices("imageList", "image_list"))
    ]


class PngInfo(A1111Body):
    """POST /png-info."""

    image: Base64


class Interrogate(A1111Body):
    """POST /interrogate."""

    image: Base64 = ""
    model: ShortText = "clip"


class Detect(A1111Body):
    """POST /controlnet/detect."""

    controlnet_module: ShortText | None = "none"
    controlnet_threshold_a: Annotated[float, Field(ge=-1, le=1000)] | None = None
    controlnet_threshold_b: Annotated[float, Field(ge=-1, le=1000)] | None = None
    controlnet_input_images: Annotated[list[Base64], Field(max_length=64)] = []


class TaskProgress(A1111Body):
    """POST /internal/progress."""

    id_task: ShortText | None = None
    id_live_preview: Whole | None = -1
    live_preview: bool | None = True


def decoded(field: str, text: str) -> bytes:
    """Bytes from base64, with or without a `data:` head.

    Raises:
        InvalidInput: no base64; an address is never fetched.
    """
    if text[:8].lower().startswith(("http://", "https://", "file:", "ftp:")):
        raise InvalidInput(field, given="an address", expected="a picture in base64", cure="Requests not allowed")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(field, given=str(error), expected="a picture in base64") from error
