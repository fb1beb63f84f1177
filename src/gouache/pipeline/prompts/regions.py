"""Regions of one walk: the texts that hold at a step, and how much of each place is theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.perturbation import transformer_blocks
from gouache.models.regions import RegionTexts, Shares
from gouache.models.unet import UNet
from gouache.pipeline.generate.a1111_procedure import latent_sizes, middle_of
from gouache.pipeline.prompts.encode import PromptPlan
from gouache.pipeline.prompts.layout import Layout, Place, Thing, names_a_ground
from gouache.pipeline.prompts.syntax import branches, refuse_tags
from gouache.pipeline.request import Region, Request

MARGIN = 0.92
"""Share of a region's shorter side that a drafted thing fills."""
BARE = 0.1
"""Least share of the picture outside all regions for which the picture's own prompt is drafted."""


@dataclass(frozen=True, slots=True)
class PlannedRegions:
    """The regions of one walk.

    Attributes:
        plans: the prompt of each, encoded.
        shares: how much of each place is whose.
    """

    plans: tuple[PromptPlan, ...]
    shares: Shares
    _seen: dict[tuple[int, ...], RegionTexts] = field(default_factory=dict, repr=False)

    def at(self, step: int) -> RegionTexts:
        """The texts that hold at a step, counted from 1."""
        texts = [plan.at(step)[0][1] for plan in self.plans]
        key = tuple(map(id, texts))
        if key not in self._seen:
            contexts, masks = tuple(text.context for text in texts), tuple(text.mask for text in texts)
            self._seen[key] = RegionTexts(contexts, masks, self.shares)
        return self._seen[key]


def in_order(request: Request, areas: Tensor) -> tuple[list[Region], Tensor]:
    """The regions and their areas in an order of their own, so that the request's order changes no bit of a picture."""
    texts = [region.to_json() for region in request.regions]
    order = sorted(range(len(texts)), key=texts.__getitem__)
    return [request.regions[k] for k in order], areas[order]


def shares_of(regions: Sequence[Region], areas: Tensor, size: tuple[int, int]) -> Tensor:
    """How much of each place is whose: w_r = (1 - base_r) u_r / max(1, sum of all u) with u = weight * area.

    So shares never add up to more than 1, overlapping regions divide a place by their weights, and the picture's prompt
    has what is left: its `base` inside a region, all of it outside.

    Args:
        regions: in the order of the areas.
        areas: how much of each place lies in each. [R,H,W]
        size: wanted height and width.

    Returns:
        [R,h,w]
    """
    small = F.interpolate(areas[None], size=size, mode="area")[0]  # [R,h,w]
    columns = torch.tensor([[one.weight, 1 - one.base] for one in regions], dtype=small.dtype)[..., None, None]
    wanted = columns[:, 0] * small
    return columns[:, 1] * wanted / wanted.sum(0).clamp(min=1.0)


def planned_regions(
    requests: tuple[Request, Request], bundle: ModelBundle, areas: Tensor | None, plan: Callable[[str], PromptPlan]
) -> PlannedRegions | None:
    """The regions of a walk; None without any.

    Args:
        requests: the resolved one, and that of this walk, with its size.
        bundle: the model.
        areas: how much of each place of the whole picture lies in each region. [R,H,W]
        plan: encodes a prompt.
    """
    if areas is None:
        return None
    regions, areas = in_order(requests[0], areas)
    whole, size = latent_sizes(*requests, bundle.vae.config.downscale)
    shares = middle_of(shares_of(regions, areas, whole)[None], size)[0]
    return PlannedRegions(tuple(plan(one.prompt) for one in regions), Shares(shares))


def check_regions(request: Request, bundle: ModelBundle) -> None:
    """Refuse what can't hold in a part of the picture.

    Raises:
        InvalidInput: adapters or AND in a region's prompt, outpainting, or a model without attention to a text.
    """
    for number, region in enumerate(request.regions):
        where = f"regions[{number}].prompt"
        refuse_tags(region.prompt, where)
        if len(branches(region.prompt, request.emphasis)) > 1:
            raise InvalidInput(
                where,
                given="parts joined by AND",
                expected="one text: AND adds whole predictions, and a region is a part of one",
                cure="Make each part a region of its own, on the same area.",
            )
    if request.regions and request.outpaint is not None:
        raise InvalidInput(
            "regions",
            given="regions and outpaint",
            expected="one or the other: the areas would be those of a picture that grows",
            cure="Extend the picture first and paint the new part with --mask and --region.",
        )
    if request.regions and not (isinstance(bundle.unet, UNet) and transformer_blocks(bundle.unet)):
        raise InvalidInput(
            "regions",
            given=f"a value for {bundle.name or 'a model'} of family {bundle.family}",
            expected="nothing: its network has no cross-attention that could look at a text in one place only",
            cure="Leave them out, or choose a model of Stable Diffusion 1.x, 2.x or XL.",
        )


def region_notes(request: Request, bundle: ModelBundle) -> list[str]:
    """What of a resolved request its regions don't reach."""
    if not request.regions:
        return []
    notes = []
    if request.refiner is not None and request.refiner_switch_at < 1:
        notes.append("regions: on the base model only; the refiner paints by the prompt alone")
    prior = request.prior
    if bundle.prior is not None and prior is not None and prior.enabled and not prior.layout:
        notes.append("regions: without prior.layout the draft follows the prompt alone")
    return notes


@dataclass(frozen=True, slots=True)
class LaidOut:
    """What a model with a prior drafts for regions.

    Attributes:
        layout: each region's prompt as a thing that fills its area.
        bare: share of each place that lies in no region, if the picture's prompt is drafted there. [H,W]
    """

    layout: Layout
    bare: Tensor | None


def laid_out(request: Request, areas: Tensor, prompt: str) -> LaidOut:
    """The draft's layout: the thing of each region in its area, and around them what the prompt says.

    Args:
        request: resolved.
        areas: how much of each place lies in each region. [R,H,W]
        prompt: the picture's, with its style.
    """
    regions, areas = in_order(request, areas)
    things = tuple(
        Thing(one.prompt, (place,))
        for one, area in zip(regions, areas, strict=True)
        if (place := _place_of(area)) is not None
    )
    bare = 1 - areas.sum(0).clamp(max=1.0)
    shows = bool(prompt.strip()) and float(bare.mean()) >= BARE
    return LaidOut(Layout(things, names_a_ground(prompt)), bare if shows else None)


def _place_of(area: Tensor) -> Place | None:
    """The middle of an area and a side that fits into it; None for an empty one."""
    inside = area >= 0.5
    rows, columns = inside.any(1).nonzero().flatten().tolist(), inside.any(0).nonzero().flatten().tolist()
    if not rows or not columns:
        return None
    (height, width), tall, wide = area.shape, rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    middle = ((columns[0] + columns[-1] + 1) / 2 / width, (rows[0] + rows[-1] + 1) / 2 / height)
    return Place(*middle, MARGIN * min(wide, tall) / max(width, height))
