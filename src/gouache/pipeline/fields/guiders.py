"""Groups of a request about guidance, beside its scale, and about steps that cost less. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gouache.config import Config
from gouache.pipeline.fields.values import Fraction, Name

MAX_LAYERS = 64
MAX_INTERVAL, MAX_BRANCH = 100, 100
Layers = Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_LAYERS)]
Factor = Annotated[float, Field(ge=0.0, le=10.0)]


class Apg(Config):
    """Adaptive projected guidance: weaken the part of the guidance that is parallel to the prediction."""

    eta: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Weight of the component parallel to the prediction; 1 = standard guidance."""
    norm_threshold: Annotated[float, Field(ge=0.0, le=1e6)] = 15.0
    """Maximum norm of the guidance vector; 0 = no limit."""
    momentum: Annotated[float, Field(gt=-1.0, lt=1.0)] = -0.5
    """Momentum over earlier steps; negative values push away from their mean."""


class Timed(Config):
    """A guider that acts during a share of the steps."""

    start: Fraction = 0.0
    """Share of the steps after which it begins."""
    end: Fraction = 1.0
    """Share of the steps after which it ends."""

    @model_validator(mode="after")
    def _starts_before_its_end(self) -> Self:
        if self.start >= self.end:
            raise ValueError("start below end")
        return self

    def is_on(self, step: int, steps: int) -> bool:
        """Whether it acts at a step, counted from 1, of so many; the step has to lie within its share as a whole."""
        return (step - 1) / steps >= self.start and step / steps <= self.end


class Pag(Timed):
    """Perturbed-attention guidance: away from what the network paints where its self-attention sees nothing."""

    scale: Annotated[float, Field(ge=0.0, le=100.0)] = 3.0
    """Perturbed-attention guidance (PAG) scale; 0 = off. Sounder structure, also without classifier-free guidance."""
    adaptive_scale: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """How fast the scale fades, for each timestep of the schedule; 0 = not."""
    layers: Layers = ("mid",)
    """Where self-attention is perturbed: down, mid, up, or a part of them such as up_blocks.1.attentions.0."""


class Slg(Timed):
    """Skip-layer guidance: away from what the network paints without some of its transformer blocks."""

    scale: Annotated[float, Field(ge=0.0, le=100.0)] = 2.8
    """Skip-layer guidance (SLG) scale; 0 = off."""
    layers: Layers = ("mid",)
    """Which transformer blocks are skipped, named as for PAG."""


class Sag(Timed):
    """Self-attention guidance: away from a picture that is blurred where the network looks most."""

    scale: Annotated[float, Field(ge=-10.0, le=100.0)] = 0.75
    """Self-attention guidance (SAG) scale; 0 = off. Costs a second network call at every step."""
    blur_sigma: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """Standard deviation of the blur, in latent pixels."""
    threshold: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    """A place is blurred where it gets more than this of the self-attention; 1 = the average."""


class FreeU(Timed):
    """FreeU: reweigh the U-Net's way up, at no cost."""

    b1: Factor = 1.3
    """Factor on the features from below, first stage; 1 = unchanged."""
    b2: Factor = 1.4
    """Factor on the features from below, second stage; 1 = unchanged."""
    s1: Factor = 0.9
    """Factor on the coarse part of the kept features, first stage; 1 = unchanged."""
    s2: Factor = 0.2
    """Factor on the coarse part of the kept features, second stage; 1 = unchanged."""
    version: Annotated[int, Field(ge=1, le=2)] = 2
    """2 varies the factors b over the picture (ComfyUI's FreeU_V2); 1 doesn't (diffusers' enable_freeu)."""
    stages: Literal["blocks", "widths"] = "blocks"
    """blocks: the first two levels of the way up, as diffusers; widths: where it is 4 and 2 times as wide as the first
    level, as ComfyUI and A1111."""


class PerpNeg(Config):
    """Perp-Neg: take away only what the negative prompt says beside the prompt."""

    scale: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    """Weight of the negative prompt's part that is perpendicular to the prompt (Perp-Neg)."""


class Mimic(Config):
    """Dynamic thresholding: guide strongly, but keep the range of values that a lower scale has."""

    scale: Annotated[float, Field(ge=0.0, le=1000.0)] = 7.0
    """Dynamic thresholding (CFG fix): guidance scale whose range of values is kept."""
    percentile: Fraction = 1.0
    """Share of the values that counts as the range; what lies beyond is cut. 1 = all."""
    by_channel: bool = True
    """Measure each latent channel by itself."""
    centre: Literal["mean", "zero"] = "mean"
    """Scale around each channel's mean, or around zero."""
    spread: Literal["max", "std"] = "max"
    """What measures the range: the largest deviation, or the standard deviation."""
    phi: Fraction = 1.0
    """Share of the result; the rest is plain guidance."""


class CfgCache(Timed):
    """Guide by a difference between prompt and negative prompt that is kept over steps (CFG-Cache)."""

    interval: Annotated[int, Field(ge=2, le=MAX_INTERVAL)] = 2
    """Steps from one call with the negative prompt to the next; between them the prompt's alone is made (CFG-Cache)."""
    start: Fraction = 0.5
    """Share of the steps after which it begins; the first ones decide the composition."""


class DeepCache(Timed):
    """DeepCache: compute only the U-Net's outermost blocks at most steps, with the deep features of an earlier one."""

    interval: Annotated[int, Field(ge=2, le=MAX_INTERVAL)] = 2
    """Steps from one evaluation of the whole U-Net to the next (DeepCache)."""
    branch: Annotated[int, Field(ge=0, le=MAX_BRANCH)] = 0
    """How many blocks of the way down, and as many more of the way up, are computed at every step; 0 = the last of
    the way up alone."""


class BlockCache(Timed):
    """First-block cache (FBCache): while the first block answers nearly as before, reuse what the rest added."""

    threshold: Annotated[float, Field(gt=0.0, le=10.0)] = 0.1
    """Relative change of the first block's residual, since the last evaluation in full, up to which the rest is reused
    (FBCache, TeaCache): less saves less and changes less."""
