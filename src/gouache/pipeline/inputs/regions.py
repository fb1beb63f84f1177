"""Where a picture's regions lie: boxes and mask pictures as shares of each place."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gouache.errors import InvalidInput
from gouache.pipeline.inputs.images import References, fit, on_background
from gouache.pipeline.inputs.masks import Masked, cut_alike
from gouache.pipeline.request import Region, Request

LARGEST = 1024
"""Longest side of an area's map: a network's attention never sees it finer than this."""


def region_areas(request: Request, masked: Masked | None, references: References) -> Tensor | None:
    """How much of each place lies in each region of a resolved request. [R,H,W] in [0, 1]; None without regions

    Areas are of the whole picture: of a masked one that is worked on in part, the part is cut out of them.

    Args:
        request: with the size that is painted.
        masked: the starting picture with its mask.
        references: gives the mask pictures.

    Raises:
        PictureError: a mask picture that isn't one.
        InvalidInput: an area without a single place.
    """
    if not request.regions:
        return None
    width, height = request.width or 1, request.height or 1
    shrink = min(1.0, LARGEST / max(width, height))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    whole, part = _whole_and_part(size, masked)
    found = []
    for number, region in enumerate(request.regions):
        if region.box is not None:
            area = _box_area(region, size, part)
        else:
            picture = on_background(references.picture(region.mask or ""), "black").convert("L")
            part_of_it = cut_alike(picture, masked, request.resize_mode)
            area = _picture_area(fit(part_of_it, width, height, request.resize_mode), size)
        if not bool(area.any()) and masked is None:
            raise InvalidInput(
                f"regions[{number}]",
                given=f"an area without a single place ({region.mask or region.box})",
                expected="white where its prompt holds",
                cure="White is the region, black the rest; transparent counts as black.",
            )
        found.append(feathered(area, region.feather * min(whole)))
    return torch.stack(found)


def _whole_and_part(size: tuple[int, int], masked: Masked | None) -> tuple[tuple[float, float], tuple[float, ...]]:
    """Height and width of the whole picture in places of the map, and the painted part of it as a box in fractions."""
    if masked is None:
        return (float(size[0]), float(size[1])), (0.0, 0.0, 1.0, 1.0)
    (width, height), (left, top, right, bottom) = masked.whole.size, masked.box
    whole = (size[0] * height / (bottom - top), size[1] * width / (right - left))
    return whole, (left / width, top / height, right / width, bottom / height)


def _box_area(region: Region, size: tuple[int, int], part: tuple[float, ...]) -> Tensor:
    """How much of each place a box covers. [H,W]"""
    left, top, right, bottom = region.box or (0.0, 0.0, 1.0, 1.0)
    rows = _covered(size[0], (top - part[1]) / (part[3] - part[1]), (bottom - part[1]) / (part[3] - part[1]))
    columns = _covered(size[1], (left - part[0]) / (part[2] - part[0]), (right - part[0]) / (part[2] - part[0]))
    return (rows[:, None] * columns[None]).float()


def _covered(length: int, start: float, end: float) -> Tensor:
    """How much of each of so many places lies between two fractions of them all. [length] fp64"""
    edges = torch.arange(length + 1, dtype=torch.float64)
    return (edges[1:].clamp(max=end * length) - edges[:-1].clamp(min=start * length)).clamp(0.0, 1.0)


def _picture_area(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    values = torch.from_numpy(np.asarray(picture).copy()).float()[None, None] / 255
    return F.interpolate(values, size=size, mode="area")[0, 0]


def feathered(area: Tensor, width: float) -> Tensor:
    """An area [H,W] whose edges fade evenly over so many places, half of them on either side."""
    reach = round(width / 2)
    if reach == 0:
        return area
    whole = area[None, None]
    padded = F.pad(whole, (reach, reach, reach, reach), mode="replicate")
    down = F.avg_pool2d(padded, (2 * reach + 1, 1), stride=1)
    return F.avg_pool2d(down, (1, 2 * reach + 1), stride=1)[0, 0]
