"""Limits and types of a request's fields, and what checks their text."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

MAX_PROMPT = 100_000
"""Characters in a prompt."""
MAX_SEED = 2**63 - 1
MAX_COUNT = 256
"""Pictures in one request."""
MIN_SIDE, MAX_SIDE = 8, 16_384
"""Pixels along one side."""
MAX_PIXELS = 64 * 2**20
"""Pixels of one picture."""
MAX_STEPS = 1000
MAX_BEST_OF = 64
MAX_FRAMES = 1000
MAX_CONTROLS = 8
"""ControlNets at once."""
MAX_REGIONS = 8
"""Areas with a prompt of their own."""
MAX_IMAGE_PROMPTS = 4
"""Image prompts at once."""
MAX_PROMPT_IMAGES = 8
"""Pictures of one image prompt."""
MAX_NOISE_LEVEL = 999
"""Of a picture's embedding."""
MAX_GUIDANCE = 1000.0
MAX_SEED_DELTA = 2**32
MAX_WATERMARK = 32
"""Bytes of a watermark in UTF-8."""

Emphasis = Literal["a1111", "original", "no_norm", "ignore", "comfy", "none"]
Determinism = Literal["exact", "portable", "a1111", "cpu"]
Procedure = Literal["gouache", "a1111"]
MaskFill = Literal["original", "fill", "noise", "nothing"]
Preprocessor = Literal["none", "canny", "inpaint", "depth", "segmentation"]
ControlType = Literal["openpose", "depth", "softedge", "canny", "normal", "segmentation", "tile", "inpaint"]
ResizeMode = Literal["stretch", "crop", "pad"]
Seamless = Literal["none", "x", "y", "both"]
Safety = Literal["off", "blur", "block"]
SwitchBy = Literal["noise", "steps"]

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
OPAQUE = "opaque"
"""The background of pictures without transparency: white where the model paints any."""
MAX_FACTOR = 16
"""Factor on width and height by which a finished picture may be enlarged."""
SURROUNDINGS = "surroundings"
"""The background of what is painted into a picture without transparency: the colours around it."""
_COLOUR = re.compile(rf"transparent|{OPAQUE}|{SURROUNDINGS}|white|black|#[0-9a-fA-F]{{6}}")
_ASPECT = re.compile(r"([1-9]\d{0,4}):([1-9]\d{0,4})")


def _reference(value: str) -> str:
    if value.startswith("sha256:") and not _HASH.fullmatch(value):
        raise ValueError("a picture's hash: sha256: and 64 small hex digits")
    if not value or "\0" in value:
        raise ValueError("a picture's path, or sha256:<64 hex digits>")
    return value


def a_colour(value: str) -> str:
    """Check a background colour."""
    if not _COLOUR.fullmatch(value):
        raise ValueError("transparent, opaque, surroundings, white, black or #rrggbb")
    return value


def an_aspect(value: str) -> str:
    """Check an aspect ratio such as 16:9."""
    if not _ASPECT.fullmatch(value):
        raise ValueError("an aspect ratio such as 16:9")
    return value


def _utf8(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("valid Unicode, without lone surrogates") from error
    return value


def a_watermark(value: str) -> str:
    """Check a watermark's length."""
    if not 1 <= len(_utf8(value).encode("utf-8")) <= MAX_WATERMARK:
        raise ValueError(f"1 to {MAX_WATERMARK} bytes in UTF-8")
    return value


ImageReference = Annotated[str, Field(max_length=4096), AfterValidator(_reference)]
"""A picture by name: a path, or `sha256:<hex>` of bytes that the caller passes beside the request."""
Text = Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_utf8)]
Name = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_utf8)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)]
StepCount = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Border = Annotated[int, Field(ge=0, le=MAX_SIDE)]
Scale = Annotated[float, Field(ge=-MAX_GUIDANCE, le=MAX_GUIDANCE)]
