"""The recipe of one picture: the resolved request, which model and machine painted it, and what makes a replay
checkable. Needs no torch, except to describe a machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from PIL import Image
from pydantic import Field, model_validator

from gouache.checkpoints.hub import file_sha256
from gouache.config import Config
from gouache.environment import Variable
from gouache.files import write_bytes
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from gouache.models.bundle import ModelBundle

RECIPE_VERSION = 7
"""1 to 5: the prior mixed what it remembers, and the words of a scenery were left to it. 1 to 4: a variation kept the
draft of the seed, and things were drafted in their colours. 1 to 3: every picture began on noise alone, unless its
request named a level. 1: the prior drafted every prompt as a whole. 1 and 2: the emphasis rule a1111 kept the mean of
every text encoder, an inversion took as many steps as the way back whatever was asked, an empty negative prompt was
none, masks were cut at 128, and what `_as_before` says."""
CUT_AT = 128
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
    kind: Literal["lora", "textual-inversion", "controlnet", "ip-adapter", "image-encoder", "preprocessor"]
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
    """Processor or GPU, by name."""
    threads: int
    """Threads of the tensor library; the order of additions depends on them."""
    engine: str = "torch"
    """What ran the U-Net: torch, openvino, openvino-int8 or compile. Each gives its own picture, bit for bit."""


class Recipe(Config):
    """Everything needed to paint one picture again, and to see where a second attempt leaves the first."""

    recipe: int = RECIPE_VERSION
    """Version of this format."""
    request: Request
    """Resolved, for this one picture: count 1, its own seed, nothing left at None that the model had to fill in."""
    model: ModelRef
    refiner: ModelRef | None = None
    """Of the model that painted the last steps, if there was one."""
    machine: Machine
    versions: dict[str, str]
    """Package name to version."""
    adapters: tuple[AdapterRef, ...] = ()
    """LoRA files and textual inversions that the prompt named (weights stand there), ControlNets of the request, and
    its IP-Adapters with the vision towers that they see pictures through."""
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
    def _older_requests_mean_what_they_meant(cls, data: Any) -> Any:
        """A picture of an older version comes out as it did, where a field means something else today."""
        if not isinstance(data, Mapping) or not isinstance(request := data.get("request"), Mapping):
            return data
        if data.get("recipe") in range(1, 7) and isinstance(prior := request.get("prior"), Mapping):
            request = {**request, "prior": {"synonyms": False, "pose": False, **prior}}
        if data.get("recipe") in (1, 2, 3, 4, 5) and isinstance(prior := request.get("prior"), Mapping):
            before = {"scenery": "ignore", **prior, "recall": prior.get("recall") or 0.0}
            request = {**request, "prior": before}
        if data.get("recipe") in (1, 2, 3, 4) and isinstance(prior := request.get("prior"), Mapping):
            varied = {"variation": 0.0} if request.get("subseed_strength") else {}
            request = {**request, "prior": {**prior, **varied, "plain": False}}
        if data.get("recipe") in (1, 2, 3) and isinstance(prior := request.get("prior"), Mapping):
            level = {"start_sigma": prior.get("start_sigma") or 0.0}
            request = {**request, "prior": {**prior, **level}}
        if data.get("recipe") == 1 and isinstance(prior := request.get("prior"), Mapping):
            request = {**request, "prior": {"layout": False, **prior}}
        if data.get("recipe") in (1, 2):
            request = _as_before(request)
        if data.get("recipe") in (1, 2) and request.get("emphasis", "a1111") == "a1111" and _has_brackets(request):
            request = {**request, "emphasis": "original"}
        if data.get("recipe") in (1, 2) and request.get("negative_prompt") == "":
            request = {**request, "negative_prompt": None}
        if data.get("recipe") in (1, 2) and isinstance(inversion := request.get("inversion"), Mapping):
            request = {**request, "inversion": {**inversion, "num_inference_steps": None}}
        if data.get("recipe") in (1, 2) and isinstance(mask := request.get("mask"), Mapping):
            request = {**request, "mask": {"threshold": CUT_AT, **mask}}
        return {**data, "request": request}


def _has_brackets(request: Mapping[str, Any]) -> bool:
    """Whether a stored request has a text that emphasis can stand in."""
    texts = [request.get("prompt"), request.get("negative_prompt")]
    for group, field in (("inversion", "source_prompt"), ("interpolation", "prompt")):
        if isinstance(values := request.get(group), Mapping):
            texts.append(values.get(field))
    return any("(" in text or "[" in text for text in texts if isinstance(text, str))


_ENDS_IN_BREAK = re.compile(r"\bBREAK\s*$")


def _as_before(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request of a recipe of version 2 in today's words: the level a1111 was its noise alone, one side of a second
    pass left the other to the scale, and a BREAK at the end began a chunk."""
    changes: dict[str, Any] = {}
    if request.get("determinism") == "a1111":
        changes["procedure"] = request.get("procedure") or "gouache"
    hires = request.get("hires")
    if isinstance(hires, Mapping) and (hires.get("width") is None) != (hires.get("height") is None):
        scale = hires.get("scale", 2.0)
        sides = {side: hires.get(side) or round((request.get(side) or 0) * scale) for side in ("width", "height")}
        changes["hires"] = {**hires, **sides}
    if request.get("emphasis", "a1111") == "a1111":
        for name in ("prompt", "negative_prompt"):
            text = request.get(name)
            if isinstance(text, str) and _ENDS_IN_BREAK.search(text):
                changes[name] = f"{text} BREAK"
    return {**request, **changes}


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


def first_difference(first: tuple[str, ...], second: tuple[str, ...]) -> int | None:
    """Index of the first step whose digests differ; None if both runs agree step by step.

    >>> first_difference(("a", "b"), ("a", "c"))
    1
    """
    for k, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return k
    return None if len(first) == len(second) else min(len(first), len(second))


def model_ref(bundle: ModelBundle) -> ModelRef:
    """The model in a recipe's words; a hash that its files don't tell is taken of them."""
    digest = bundle.sha256
    if not digest and bundle.path is not None and bundle.path.exists():
        digest = model_sha256(bundle.path)
    return ModelRef(
        name=bundle.name or bundle.family,
        family=bundle.family,
        sha256=digest or None,
        path=None if bundle.path is None else str(bundle.path),
    )


def machine_of(bundle: ModelBundle) -> Machine:
    """Where the model is, in a recipe's words."""
    import torch

    device = bundle.device
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    dtype = str(bundle.dtype).removeprefix("torch.")
    return Machine(device=device.type, dtype=dtype, processor=processor, threads=torch.get_num_threads())


def processor_name() -> str:
    """The processor's name, as exact as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def model_sha256(path: Path, cache: Path | None = None) -> str:
    """sha256 of a weight file; for a folder, over the sorted names and hashes of all weight files in it.

    Args:
        path: file or folder.
        cache: where hashes are remembered; the user's cache folder without it.
    """
    if path.is_file():
        return _remembered(path, cache or cache_file())
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    lines = [f"{file.relative_to(path).as_posix()} {_remembered(file, cache or cache_file())}" for file in files]
    return sha256("\n".join(lines).encode()).hexdigest()


def cache_file() -> Path:
    """`sha256.json` in the user's cache folder."""
    folder = os.environ.get(Variable.XDG_CACHE_HOME) or Path.home() / ".cache"
    return Path(folder) / "gouache" / "sha256.json"


def _remembered(file: Path, cache: Path) -> str:
    """The hash of a file; the remembered one if place, size and time of change are the same."""
    place = file.resolve()
    status = place.stat()
    key = f"{place} {status.st_size} {status.st_mtime_ns}"
    known = _read(cache)
    if key not in known:
        # Hashes of this place's earlier contents are of no use any more.
        known = {name: value for name, value in known.items() if not name.startswith(f"{place} ")}
        known[key] = file_sha256(place)
        # A cache that can't be written costs time, nothing else.
        with contextlib.suppress(OSError, ValueError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(cache, json.dumps(known).encode(), force=True)
    return known[key]


def _read(cache: Path) -> dict[str, str]:
    try:
        values = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in values.items()} if isinstance(values, dict) else {}
