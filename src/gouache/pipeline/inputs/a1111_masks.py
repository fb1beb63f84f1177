"""Masks as AUTOMATIC1111 makes them: blurred first, then rounded for the latents and doubled for the seam.

Read in that program's version 1.10 (2024: processing.py, masking.py, images.py). Its Gaussian blur is OpenCV's
with 2 floor(2.5 sigma + 1/2) + 1 weights, which numpy computes here bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from gouache.pipeline.inputs.images import on_background
from gouache.pipeline.inputs.masks import Box, Masked
from gouache.pipeline.request import Mask, ResizeMode

RADII = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""Blurs that fill a masked part, and how often each is laid over the coarser ones."""
Resample = Image.Resampling
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class A1111Masked(Masked):
    """A masked picture cut to the part that is worked on, and put together again, as that program does.

    Attributes:
        latent: the mask from which the latents' one is made, at working size, soft, mode L.
        overlay: the picture without what is painted, laid over it at the end. Mode RGBA
        pasted: whether only the box is painted.
    """

    latent: Image.Image
    overlay: Image.Image
    pasted: bool

    def _put_back(self, painted: Image.Image) -> Image.Image:
        # A second pass, which that program never has here, makes it larger.
        base = painted.convert("RGBA")
        if not self.pasted and base.size != self.overlay.size:
            base = base.resize(self.overlay.size, Resample.LANCZOS)
        if self.pasted:
            left, top, right, bottom = self.box
            base = Image.new("RGBA", self.overlay.size)
            base.paste(_filling(painted, right - left, bottom - top), (left, top))
        return Image.alpha_composite(base, self.overlay).convert("RGB")

    def latent_mask(self, size: tuple[int, int]) -> Tensor:
        """1 where the latents are painted, 0 where they stay: the mask made small, and rounded. (h, w) -> [1,1,h,w]"""
        small = self.latent.convert("RGB").resize((size[1], size[0]), Resample.BICUBIC).getchannel(0)
        return torch.from_numpy(np.around(np.asarray(small, np.float32) / 255))[None, None]


def mask_of(options: Mask, picture: Image.Image, given: Image.Image | None) -> Image.Image:
    """The whole picture's mask with its soft edge, mode L, white = paint.

    A mask with transparency is read by its alpha, any other by its grey; without one the picture's transparent part
    is painted.
    """
    if given is None:
        hard = ImageChops.invert(picture.convert("RGBA").getchannel("A"))
    elif given.mode == "RGBA" and given.getextrema()[-1] != (255, 255):
        hard = given.getchannel("A").point(lambda value: 255 if value > 128 else 0)
    else:
        hard = given.convert("RGB").convert("L") if given.mode != "L" else given
    if options.threshold is not None:
        cut_at = options.threshold
        hard = hard.point(lambda value: 255 if value >= cut_at else 0)
    if options.invert:
        hard = ImageChops.invert(hard)
    return blurred(hard, options.blur)


def blurred(mask: Image.Image, sigma: int) -> Image.Image:
    """A Gaussian blur along rows and then columns, in OpenCV's arithmetic for bytes: weights in 256ths, whose rounding
    errors are passed on towards the middle, and a border that is mirrored without repeating its last line."""
    if sigma <= 0:
        return mask
    weights = _weights(sigma)
    pixels = np.asarray(mask, np.int64)
    for axis in (1, 0):
        pixels = np.clip((_convolved(pixels, weights, axis) + 128) >> 8, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def _weights(sigma: int) -> Whole:
    reach = int(2.5 * sigma + 0.5)
    exact = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    exact = 256 * exact / exact.sum()
    weights = np.zeros(len(exact), np.int64)
    error = 0.0
    for k in range(reach):
        wanted = exact[k] + error
        weights[k] = weights[-1 - k] = round(wanted)
        error = wanted - weights[k]
    weights[reach] = 256 - weights.sum()
    return weights


def _convolved(pixels: Whole, weights: Whole, axis: int) -> Whole:
    length, reach = pixels.shape[axis], len(weights) // 2
    period = max(2 * (length - 1), 1)
    total = np.zeros_like(pixels)
    for offset, weight in zip(range(-reach, reach + 1), weights, strict=True):
        place = np.abs(np.arange(length) + offset) % period
        total += weight * pixels.take(np.minimum(place, period - place), axis=axis)
    return total


def cut_like_a1111(
    picture: Image.Image, mask: Image.Image, options: Mask, width: int, height: int, mode: ResizeMode
) -> A1111Masked:
    """Bring picture and mask to working size, and prepare what is laid over the painted picture.

    Args:
        picture: the whole.
        mask: as `mask_of` gives it, of the picture's size.
        options: of the mask.
        width, height: the working size in pixels.
        mode: how a picture of another shape is brought to it.
    """
    picture = on_background(picture, "white")
    if options.only_masked and (inner := mask.getbbox()) is not None:
        box = _expanded(_padded(inner, options.padding, mask.size), (width, height), mask.size)
        soft, seam = resized(mask.crop(box), width, height, "pad"), mask
        part, pasted = resized(picture.crop(box), width, height, "pad"), True
    else:
        box, pasted = (0, 0, width, height), False
        picture, soft = resized(picture, width, height, mode), resized(mask, width, height, mode)
        seam = soft.point(lambda value: min(2 * value, 255))
        part = picture
    if options.fill != "original":
        part = filled_like_a1111(part, soft)
    overlay = Image.new("RGBa", picture.size)
    overlay.paste(picture.convert("RGBA").convert("RGBa"), mask=ImageChops.invert(seam))
    return A1111Masked(
        whole=picture,
        soft=seam,
        part=part,
        hard=(hard := soft.point(lambda value: 255 if value > 127 else 0)),
        grey=hard,
        box=box,
        preserve=options.preserve,
        opaque=False,  # what a model paints that this is for shows nothing through
        latent=soft,
        overlay=overlay.convert("RGBA"),
        pasted=pasted,
    )


def _padded(box: Box, padding: int, size: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    return max(left - padding, 0), max(top - padding, 0), min(right + padding, size[0]), min(bottom + padding, size[1])


def _expanded(box: Box, working: tuple[int, int], size: tuple[int, int]) -> Box:
    """The box grown to the working size's proportions, moved back into the picture, and cut at its far edge."""
    left, top, right, bottom = box
    wanted = working[0] / working[1]
    if (right - left) / (bottom - top) > wanted:
        top, bottom = _longer(top, bottom, int((right - left) / wanted - (bottom - top)), size[1])
    else:
        left, right = _longer(left, right, int((bottom - top) * wanted - (right - left)), size[0])
    return left, top, right, bottom


def _longer(start: int, end: int, more: int, limit: int) -> tuple[int, int]:
    start, end = start - more // 2, end + more - more // 2
    if end >= limit:
        start, end = start - (end - limit), limit
    if start < 0:
        start, end = 0, end - start
    return start, min(end, limit)


def resized(picture: Image.Image, width: int, height: int, mode: ResizeMode) -> Image.Image:
    """A picture or mask at another size; `pad` stretches the outermost line of pixels over what is missing."""
    if mode == "stretch":
        return picture.resize((width, height), Resample.LANCZOS)
    if mode == "crop":
        return _filling(picture, width, height)
    wide = width / height < picture.width / picture.height
    size = (
        (width, picture.height * width // picture.width) if wide else (picture.width * height // picture.height, height)
    )
    small = picture.resize((max(size[0], 1), max(size[1], 1)), Resample.LANCZOS)
    ground = Image.new(picture.mode, (width, height))
    left, top = width // 2 - small.width // 2, height // 2 - small.height // 2
    ground.paste(small, (left, top))
    if wide and top > 0:
        ground.paste(small.resize((width, top), box=(0, 0, width, 0)), (0, 0))
        rest = small.resize((width, top), box=(0, small.height, width, small.height))
        ground.paste(rest, (0, top + small.height))
    elif left > 0:
        ground.paste(small.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        rest = small.resize((left, height), box=(small.width, 0, small.width, height))
        ground.paste(rest, (left + small.width, 0))
    return ground


def _filling(picture: Image.Image, width: int, height: int) -> Image.Image:
    """A picture that covers a size, its middle kept."""
    wide = width / height > picture.width / picture.height
    size = (
        (width, picture.height * width // picture.width) if wide else (picture.width * height // picture.height, height)
    )
    larger = picture.resize((max(size[0], 1), max(size[1], 1)), Resample.LANCZOS)
    ground = Image.new(picture.mode, (width, height))
    ground.paste(larger, (width // 2 - larger.width // 2, height // 2 - larger.height // 2))
    return ground


def filled_like_a1111(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """A picture whose masked part is filled by blurs of what is around it, mode RGB."""
    known = Image.new("RGBa", picture.size)
    known.paste(picture.convert("RGBA").convert("RGBa"), mask=ImageChops.invert(mask.convert("L")))
    result = Image.new("RGBA", picture.size)
    for radius, repeats in RADII:
        layer = known.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(repeats):
            result.alpha_composite(layer)
    return result.convert("RGB")
