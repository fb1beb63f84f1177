"""Making pictures larger: Lanczos, a model's own upscaler, and upscalers from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.upscaler_files import LANCZOS, OWN, PictureUpscaler, load_upscaler, upscaler_of
from gouache.pipeline.request import MAX_PIXELS, Seamless

REACH = 4
"""Pixels that Lanczos sees beyond an edge, rounded up."""


def find_upscaler(name: str, bundle: ModelBundle | None = None) -> PictureUpscaler | None:
    """The network of an upscaler's name; None is Lanczos.

    Args:
        name: lanczos, model (the model's own), or the path of an upscaler's file.
        bundle: the model.

    Raises:
        InvalidInput: the model has no upscaler of its own.
        ModelNotFound, CheckpointError, MissingDependency: as `upscalers.load_upscaler`.
    """
    if name == LANCZOS:
        return None
    if name != OWN:
        return load_upscaler(Path(name))
    if bundle is None or bundle.upscaler is None:
        raise InvalidInput(
            "upscaler",
            given=repr(OWN),
            expected="lanczos or an upscaler's file: this model has none of its own",
            cure="Use lanczos, or a model that brings an upscaler.",
        )
    return upscaler_of(bundle.upscaler)


def enlarge_picture(
    picture: Image.Image, factor: float, upscaler: PictureUpscaler | None = None, *, seamless: Seamless = "none"
) -> Image.Image:
    """A picture `factor` times as large on each side.

    A network is run as often as it takes. Where it made too much, exact means of 2 by 2 or more pixels take it back,
    and Lanczos what is left.

    Args:
        picture: mode RGB or RGBA; where the network knows no transparency, alpha is enlarged by Lanczos.
        factor: above 0.
        upscaler: a network; None is Lanczos alone.
        seamless: which edges meet.

    Raises:
        InvalidInput: the result would have too many pixels.
    """
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    if size[0] * size[1] > MAX_PIXELS:
        raise InvalidInput(
            "upscale",
            given=f"{size[0]}x{size[1]} pixels",
            expected=f"at most {MAX_PIXELS} pixels",
            cure="Choose a smaller factor.",
        )
    if upscaler is not None:
        passes, halve = _passes(factor, upscaler.scale)
        for left in reversed(range(passes)):
            picture = _by_network(picture, upscaler, 1 if left else halve, seamless)
    return picture if picture.size == size else _resized(picture, size, seamless)


def _passes(factor: float, scale: int) -> tuple[int, int]:
    """How often a network of this scale is run, and how many pixels a side are averaged at the end."""
    if scale == 1:
        return 1, 1
    passes, reached = 0, 1
    while reached < factor - 1e-9:
        passes, reached = passes + 1, reached * scale
    halve = 1
    while scale % (2 * halve) == 0 and reached / (2 * halve) >= factor - 1e-9:
        halve *= 2
    return passes, halve


def _by_network(picture: Image.Image, upscaler: PictureUpscaler, halve: int, seamless: Seamless) -> Image.Image:
    if picture.mode == "RGB" or upscaler.channels == 4:
        return upscaler(picture, halve=halve, seamless=seamless)
    larger = upscaler(picture.convert("RGB"), halve=halve, seamless=seamless)
    larger.putalpha(_resized(picture.getchannel("A"), larger.size, seamless))
    return larger


def _resized(picture: Image.Image, size: tuple[int, int], seamless: Seamless) -> Image.Image:
    """By Lanczos, which looks around the edges that meet."""
    if seamless == "none":
        return picture.resize(size, Image.Resampling.LANCZOS)
    # Shrinking widens the filter.
    across, down = (
        REACH * max(1, -(-before // after)) if seamless in (axis, "both") else 0
        for axis, before, after in zip("xy", picture.size, size, strict=True)
    )
    pixels = np.asarray(picture)
    around = np.pad(pixels, ((down, down), (across, across), (0, 0))[: pixels.ndim], mode="wrap")
    box = (across, down, across + picture.width, down + picture.height)
    return Image.fromarray(around, picture.mode).resize(size, Image.Resampling.LANCZOS, box)
