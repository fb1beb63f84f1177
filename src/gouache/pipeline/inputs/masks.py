"""Masks: where to paint, what to crop, and how to put the painted part back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from gouache.errors import InvalidInput
from gouache.pipeline.inputs.images import fit, paste_back, read_mask, soften, transparency_mask
from gouache.pipeline.request import Mask, ResizeMode

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True, slots=True)
class Masked:
    """A starting picture with its mask, cut to the part that is worked on.

    Attributes:
        whole: the full picture.
        soft: the full mask with its soft edge, mode L, white = paint.
        part: the part of the picture that is worked on, at working size.
        hard: its mask at working size, 0 or 255 only: 255 wherever anything is painted.
        grey: its mask at working size, 0..255: which share of the strength each place gets.
        box: where the part lies in the whole.
        preserve: whether the pixels outside the mask must come back bit for bit.
        opaque: whether what shows through in a painted part is filled with the colours around the mask.
    """

    whole: Image.Image
    soft: Image.Image
    part: Image.Image
    hard: Image.Image
    grey: Image.Image
    box: Box
    preserve: bool
    opaque: bool

    @property
    def finish(self) -> Callable[[Image.Image], Image.Image]:
        """Puts a painted part back into the whole."""
        return self._put_back

    def _put_back(self, painted: Image.Image) -> Image.Image:
        left, top, right, bottom = self.box
        size = (right - left, bottom - top)
        if self.opaque and painted.mode == "RGBA":
            ground = surroundings(self.part, self.hard).resize(painted.size, Image.Resampling.BILINEAR).convert("RGBA")
            painted = Image.alpha_composite(ground, painted).convert("RGB")
        part = painted if painted.size == size else painted.resize(size, Image.Resampling.LANCZOS)
        if not self.preserve:
            whole = self.whole.copy().convert(part.mode)
            whole.paste(part, (left, top))
            return whole
        mode = "RGBA" if "RGBA" in (self.whole.mode, part.mode) else "RGB"
        full = Image.new(mode, self.whole.size)
        full.paste(part.convert(mode), (left, top))
        return paste_back(self.whole, full, self.soft)


def cut_alike(picture: Image.Image, masked: Masked | None, mode: ResizeMode) -> Image.Image:
    """A picture beside the starting picture, cut and brought to size as that was."""
    if masked is None:
        return picture
    part = fit(picture, *masked.whole.size, mode).crop(masked.box)
    return part if part.size == masked.part.size else part.resize(masked.part.size, Image.Resampling.LANCZOS)


SNAP = 5
"""Levels by which a black or white that went through JPEG may be off."""


def full_mask(options: Mask, picture: Image.Image, given: Image.Image | None) -> Image.Image:
    """The mask of a whole picture: from the mask picture, or from transparency; white = paint, grey = paint less.

    Raises:
        PictureError: another size, or neither mask nor transparency.
        InvalidInput: nothing is left to paint.
    """
    mask = transparency_mask(picture) if given is None else read_mask(given, picture.size)
    if options.threshold is not None:
        cut_at = options.threshold
        mask = mask.point(lambda value: 255 if value >= cut_at else 0)
    else:
        mask = mask.point(lambda value: 0 if value <= SNAP else 255 if value >= 255 - SNAP else value)
    if options.invert:
        mask = ImageChops.invert(mask)
    if mask.getbbox() is None:
        raise InvalidInput("mask", given="an empty mask", expected="some white pixels", cure="Try --mask-invert.")
    return mask


def grey_share(mask: Image.Image) -> float:
    """Share of a mask's pixels that are neither black nor white, 0..1."""
    counts = mask.histogram()
    return sum(counts[1:255]) / max(1, sum(counts))


def cut(
    picture: Image.Image,
    mask: Image.Image,
    options: Mask,
    width: int,
    height: int,
    *,
    steps: int,
    blend: bool = False,
    opaque: bool = False,
) -> Masked:
    """Bring picture and mask to working size: the whole, or with `only_masked` the masked part and its surroundings.

    Args:
        picture: the whole picture.
        mask: of its size, mode L; white gets all steps, grey its share of them.
        options: the request's.
        width: working width in pixels.
        height: working height in pixels.
        steps: how many are walked, which is how many levels of grey make a difference; grey too dark for one is black.
        blend: for models that can't paint a place less: lay the result over the picture as thick as the mask is.
        opaque: as `Masked` has it.
    """
    hard = mask.point(lambda value: 255 if value == 255 or open_steps(value / 255, steps) else 0)
    soft = _grown_and_soft(hard, options.blur)
    if blend and grey_share(mask):
        soft = ImageChops.lighter(soften(mask, options.blur), mask)
    box = (0, 0, *picture.size)
    if options.only_masked:
        box = crop_box(soft.getbbox() or box, picture.size, options.padding, width / height)
    size = (width, height)
    part = picture.crop(box)
    part = part if part.size == size else part.resize(size, Image.Resampling.LANCZOS)
    worked = hard.crop(box).resize(size, Image.Resampling.NEAREST)
    grey = mask.crop(box).resize(size, Image.Resampling.BILINEAR) if grey_share(mask) else worked
    return Masked(picture, soft, part, worked, grey, box, options.preserve, opaque)


def open_steps(share: float, steps: int) -> int:
    """How many of the walked steps may change a place whose mask has this value, 0..1: the last int(steps * share)."""
    return int(steps * share + 1e-4)


def _grown_and_soft(mask: Image.Image, blur: int) -> Image.Image:
    """A soft edge that lies outside the hard mask's core, so that what is painted is seen in full."""
    if not blur:
        return mask
    return ImageChops.lighter(soften(mask.filter(ImageFilter.MaxFilter(3)), blur), mask)


def crop_box(inner: Box, size: tuple[int, int], padding: int, aspect: float) -> Box:
    """The box around `inner` with padding, grown to an aspect ratio where the picture has room for it.

    >>> crop_box((40, 40, 60, 60), (100, 100), 10, 1.0)
    (30, 30, 70, 70)
    >>> crop_box((0, 40, 20, 60), (100, 100), 0, 2.0)
    (0, 40, 40, 60)
    """
    left, top = max(inner[0] - padding, 0), max(inner[1] - padding, 0)
    right, bottom = min(inner[2] + padding, size[0]), min(inner[3] + padding, size[1])
    width = max(right - left, round((bottom - top) * aspect))
    height = max(bottom - top, round((right - left) / aspect))
    left, right = _grown(left, right, width, size[0])
    top, bottom = _grown(top, bottom, height, size[1])
    return left, top, right, bottom


def _grown(start: int, end: int, wanted: int, limit: int) -> tuple[int, int]:
    wanted = min(wanted, limit)
    start = max(0, min(start - (wanted - (end - start)) // 2, limit - wanted))
    return start, start + wanted


def latent_mask(mask: Image.Image, factor: int) -> Tensor:
    """Of every latent pixel the lightest pixel that falls into it: 1 for white. [1,1,h,w]"""
    pixels = torch.from_numpy(np.asarray(mask).copy()).float()[None, None] / 255.0  # [1,1,H,W]
    return F.max_pool2d(pixels, factor)


def filled(picture: Image.Image, hard: Image.Image) -> Image.Image:
    """The picture with its masked part filled by the colours around, the coarser the further from the edge."""
    known = ImageChops.invert(hard)
    result = picture.convert("RGB")
    ground = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    source = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    source.paste(result, (0, 0), known)
    for radius in (256, 64, 16, 4, 2):
        blurred = source.filter(ImageFilter.GaussianBlur(radius))
        strong = blurred.getchannel("A").point(lambda value: 255 if value > 2 else 0)
        ground.paste(_undimmed(blurred), (0, 0), strong)
    return Image.composite(result, ground.convert("RGB"), known)


def surroundings(picture: Image.Image, hard: Image.Image) -> Image.Image:
    """The picture with the colours around its masked part drawn smoothly over it: a ground and no likeness.

    Gortler et al. 1996, "The lumigraph", section 3.5 (pull-push). What `filled` gives shows the steps of its bytes.
    """
    pixels = torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32).copy())
    colours = pixels.permute(2, 0, 1)[None]  # [1,3,H,W]
    known = torch.from_numpy(np.asarray(hard).copy() == 0).float()[None, None]  # [1,1,H,W]
    ground = _pulled_and_pushed(colours * known, known)
    return Image.fromarray(ground[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())


def _pulled_and_pushed(colours: Tensor, known: Tensor) -> Tensor:
    """Colours everywhere, from those that are known. [1,3,H,W], times how much is known of each place [1,1,H,W]"""
    own = colours / known.clamp_min(1e-6)
    height, width = known.shape[2:]
    if max(height, width) == 1:
        return own
    odd = (0, width % 2, 0, height % 2)
    pulled = [F.avg_pool2d(F.pad(one, odd), 2) * 4.0 for one in (colours, known)]
    over = pulled[1].clamp_min(1.0)  # a place is known once, however many know it
    coarse = _pulled_and_pushed(pulled[0] / over, pulled[1] / over)
    pushed = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)[..., :height, :width]
    return torch.lerp(pushed, own, known)


def _undimmed(picture: Image.Image) -> Image.Image:
    """Colours of a blurred cut-out, divided by how much of it there was."""
    pixels = np.asarray(picture, np.float32)
    alpha = np.maximum(pixels[..., 3:], 1.0)
    colours = np.clip(pixels[..., :3] * 255.0 / alpha, 0, 255).round().astype(np.uint8)
    return Image.fromarray(colours).convert("RGBA")
