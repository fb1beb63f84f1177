"""The families of models, and everything that follows from a family alone. No torch: headers are read without it.

A family is what a model's tensors were trained to be used as; two networks of the same shapes can belong to one family
and want different sizes, which is why some values here depend on more than the name. Adding a family means an entry
here, its rule in `checkpoints.detect`, and its names and prefixes in `checkpoints.save`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gouache.errors import unknown_name

PreviewMatrix = tuple[tuple[float, float, float], ...]

# One row for each latent channel, three colours: the linear fits that A1111's and ComfyUI's users know as
# "latent2rgb". Only for looking at; nothing else depends on them.
_SD_PREVIEW: PreviewMatrix = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
)
_SD3_PREVIEW: PreviewMatrix = (
    (-0.0645, 0.0177, 0.1052),
    (0.0028, 0.0312, 0.0650),
    (0.1848, 0.0762, 0.0360),
    (0.0944, 0.0360, 0.0889),
    (0.0897, 0.0506, -0.0364),
    (-0.0020, 0.1203, 0.0284),
    (0.0855, 0.0118, 0.0283),
    (-0.0539, 0.0658, 0.1047),
    (-0.0057, 0.0116, 0.0700),
    (-0.0412, 0.0281, -0.0039),
    (0.1106, 0.1171, 0.1220),
    (-0.0248, 0.0682, -0.0481),
    (0.0815, 0.0846, 0.1207),
    (-0.0120, -0.0055, -0.0867),
    (-0.0749, -0.0634, -0.0456),
    (-0.1418, -0.1457, -0.1259),
)
_SDXL_PREVIEW: PreviewMatrix = (
    (0.356, 0.429, 0.373),
    (-0.207, -0.049, 0.015),
    (0.041, 0.060, 0.013),
    (-0.326, -0.333, -0.380),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of models. The defaults are those of Stable Diffusion 1.x.

    Attributes:
        name: as headers, recipes and model.json give it.
        label: for people.
        size: edge of the pictures it was trained on, in pixels.
        v_size: the same for its networks that predict v, where they were trained on larger ones.
        training_size: edge of the pictures that a fine-tuning of it starts with.
        guidance_scale: of a request that leaves it open.
        latent_scale: normalised latents are raw latents times this, where no file says so.
        latent_shift: what is subtracted from raw latents before.
        latent_channels: of its autoencoder.
        preview: colours of the latent channels; None = latents can't be shown without the decoder.
        text_encoders: the folders of its text encoders, in the order in which their contexts are joined.
        context: the text encoder's state that is the context: the last one; the last but one behind the final norm; or
            the last but one as it is.
        text_rows: rows of the third text encoder (T5) that follow those of the CLIPs, which are padded to its width;
            0 = the context is that of the CLIPs, side by side.
        size_numbers: how many numbers its U-Net takes beside the pooled text; see `ModelBundle.size_condition`.
        zero_negative: an empty negative prompt is zeros, not the encoding of the empty text.
        shift: of its flow of noise levels; None = its noise schedule is SD 1.x's.
        prediction: what its networks predict; None = they differ, and only the file or the weights tell.
        align_your_steps: key of its table in `diffusion.samplers.sigmas`; empty = none was published.
        architecture: its name in the `modelspec` metadata of single files; empty = it has no single files.
        implementation: the code base that those files' layout comes from.
        pipelines: variant -> the class of diffusers that runs it; empty = none does.
        scheduler: the class of diffusers that its folders name.
        steps: of a request that leaves them open; None = 50.
    """

    name: str
    label: str
    size: int = 512
    v_size: int | None = None
    training_size: int = 512
    guidance_scale: float = 7.5
    latent_scale: float = 0.18215
    latent_shift: float = 0.0
    latent_channels: int = 4
    preview: PreviewMatrix | None = _SD_PREVIEW
    text_encoders: tuple[str, ...] = ("text_encoder",)
    context: Literal["last", "penultimate", "penultimate_raw"] = "last"
    text_rows: int = 0
    size_numbers: int = 0
    zero_negative: bool = False
    shift: float | None = None
    prediction: Literal["eps", "flow"] | None = "eps"
    align_your_steps: str = "sd1"
    architecture: str = ""
    implementation: Literal["ldm", "sgm"] = "ldm"
    pipelines: Mapping[str, str] = field(default_factory=dict)
    scheduler: str = "DDIMScheduler"
    steps: int | None = None

    def size_for(self, parameterization: str) -> int:
        """Edge of the pictures that a network with this parameterization was trained on."""
        return self.v_size if self.v_size is not None and parameterization == "v" else self.size


_SD_PIPELINES = {
    "base": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "instruct": "StableDiffusionInstructPix2PixPipeline",
    "depth": "StableDiffusionDepth2ImgPipeline",
}

SD1 = Family(
    name="sd1",
    label="Stable Diffusion 1.x",
    architecture="stable-diffusion-v1",
    pipelines=_SD_PIPELINES,
)
SD2 = Family(
    name="sd2",
    label="Stable Diffusion 2.x",
    # 2.0-base and 2.1-base predict eps at 512 pixels; 2.0 and 2.1 were trained further as v networks at 768.
    v_size=768,
    training_size=768,
    context="penultimate",
    prediction=None,
    architecture="stable-diffusion-v2",
    pipelines={**_SD_PIPELINES, "upscaler": "StableDiffusionUpscalePipeline"},
)
SDXL = Family(
    name="sdxl",
    label="Stable Diffusion XL",
    size=1024,
    training_size=1024,
    guidance_scale=5.0,
    latent_scale=0.13025,
    preview=_SDXL_PREVIEW,
    text_encoders=("text_encoder", "text_encoder_2"),
    context="penultimate_raw",
    size_numbers=6,
    # Training replaced the dropped texts' encodings by zeros (diffusers' `force_zeros_for_empty_prompt`).
    zero_negative=True,
    align_your_steps="sdxl",
    architecture="stable-diffusion-xl-v1-base",
    implementation="sgm",
    pipelines={
        "base": "StableDiffusionXLPipeline",
        "inpainting": "StableDiffusionXLInpaintPipeline",
        "instruct": "StableDiffusionXLInstructPix2PixPipeline",
    },
    scheduler="EulerDiscreteScheduler",
)
SDXL_REFINER = Family(
    name="sdxl-refiner",
    label="Stable Diffusion XL refiner",
    size=1024,
    guidance_scale=5.0,
    latent_scale=0.13025,
    preview=_SDXL_PREVIEW,
    # It reads bigG alone, which keeps the folder that it has in the base model.
    text_encoders=("text_encoder_2",),
    context="penultimate_raw",
    size_numbers=5,
    align_your_steps="sdxl",
    architecture="stable-diffusion-xl-v1-refiner",
    implementation="sgm",
    pipelines={"base": "StableDiffusionXLImg2ImgPipeline"},
    scheduler="EulerDiscreteScheduler",
)
SD3 = Family(
    name="sd3",
    label="Stable Diffusion 3",
    size=1024,
    training_size=1024,
    guidance_scale=7.0,
    latent_scale=1.5305,
    latent_shift=0.0609,
    latent_channels=16,
    preview=_SD3_PREVIEW,
    text_encoders=("text_encoder", "text_encoder_2"),
    context="penultimate_raw",
    text_rows=256,
    align_your_steps="",
    shift=3.0,
    prediction="flow",
    architecture="stable-diffusion-3",
    implementation="sgm",
    pipelines={"base": "StableDiffusion3Pipeline"},
    scheduler="FlowMatchEulerDiscreteScheduler",
    steps=28,
)
POCKET = Family(name="pocket", label="gouache's own pocket model", preview=None)
UNKNOWN = Family(name="unknown", label="family not told by the tensors", preview=None)
"""An adapter or a network alone, whose tensors fit several families; it is read as an SD 1.x one would be."""

FAMILIES: Mapping[str, Family] = {
    family.name: family for family in (SD1, SD2, SDXL, SDXL_REFINER, SD3, POCKET, UNKNOWN)
}


def family_label(name: str) -> str:
    """A family in words; one of another program's by the name that an adapter of it goes by."""
    return FAMILIES[name].label if name in FAMILIES else f"{name}, which gouache doesn't run"


def family_named(name: str, where: str = "family") -> Family:
    """The family of this name.

    Raises:
        UnknownName: there is none; the nearest name is offered.
    """
    if name not in FAMILIES:
        raise unknown_name(where, name, FAMILIES)
    return FAMILIES[name]
