"""The recipe of one picture: the resolved request, what painted it, and what makes a replay checkable."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field, model_validator

from gouache.config import Config
from gouache.pipeline.request import Request

RECIPE_VERSION = 2
"""1: the prior drafted every prompt as a whole."""
_PACKAGES = ("gouache", "torch", "numpy", "pillow", "tokenizers")

Digest = Annotated[str, Field(pattern=r"[0-9a-f]{8,64}")]


class ModelRef(Config):
    """Which weights painted the picture."""

    name: str
    """The model's name, for people."""
    family: str
    """sd1, sd2, sdxl, pocket ..."""
    sha256: str | None = None
    """Of the file, or over the parts of a folder; None for weights that were never in a file."""
    path: str | None = None
    """Where it lay; a hint for a replay, not a part of the recipe."""


class AdapterRef(Config):
    """An adapter that took part."""

    name: str
    """What the request calls it."""
    kind: Literal["lora", "textual-inversion", "controlnet"]
    sha256: Annotated[str, Field(pattern=r"[0-9a-f]{64}")]
    """Of the file."""
    short_hash: Annotated[str, Field(pattern=r"[0-9a-f]{12}")]
    """As A1111 writes it: of a safetensors file's tensors without the header; of a folder the start of its sha256."""


class Machine(Config):
    """Where the picture was painted. Bit-for-bit equality is promised on the same build and device only."""

    device: str
    """cpu, cuda, mps."""
    dtype: str
    """Number format of the networks: float32, float16, bfloat16."""
    processor: str
    """Processor or card, by name."""
    threads: int
    """Threads of the tensor library; the order of additions depends on them."""


class Recipe(Config):
    """Everything needed to paint one picture again, and to see where a second attempt leaves the first."""

    recipe: int = RECIPE_VERSION
    """Version of this format."""
    request: Request
    """Resolved, for this one picture: count 1, its own seed, nothing left at None that the model had to fill in."""
    model: ModelRef
    machine: Machine
    versions: dict[str, str]
    """Package name to version."""
    adapters: tuple[AdapterRef, ...] = ()
    """LoRA files and textual inversions that the prompt named (weights stand there), and ControlNets of the request."""
    attachments: dict[str, str] = Field(default_factory=dict)
    """Picture named in the request -> sha256 of its bytes."""
    notes: tuple[str, ...] = ()
    """What was done beyond the plain plan: a retry in float32, a size that was rounded, tokens that were cut."""
    steps: tuple[Digest, ...] = ()
    """Digest of the latents after each sampler step."""
    pixels: Digest | None = None
    """sha256 of the finished pixels, see `pixels_digest`."""

    @model_validator(mode="before")
    @classmethod
    def _old_drafts_were_whole(cls, data: Any) -> Any:
        """A picture of version 1 comes out as it did: what the request doesn't say had no layout."""
        if not isinstance(data, Mapping) or data.get("recipe") != 1:
            return data
        request = data.get("request")
        if not isinstance(request, Mapping) or not isinstance(prior := request.get("prior"), Mapping):
            return data
        return {**data, "request": {**request, "prior": {"layout": False, **prior}}}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a picture."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def pixels_digest(picture: Image.Image) -> str:
    """sha256 over mode, size and raw pixels, so that equal pictures agree whatever file they lie in."""
    head = f"{picture.mode} {picture.width}x{picture.height}\n".encode()
    return sha256(head + picture.tobytes()).hexdigest()


def attachment_digests(attachments: Mapping[str, bytes]) -> dict[str, str]:
    """sha256 of each picture that a request names."""
    return {name: sha256(data).hexdigest() for name, data in attachments.items()}


def first_difference(first: tuple[str, ...], second: tuple[str, ...]) -> int | None:
    """Index of the first step whose digests differ; None if both runs agree step by step.

    >>> first_difference(("a", "b"), ("a", "c"))
    1
    """
    for k, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return k
    return None if len(first) == len(second) else min(len(first), len(second))
