"""What a request from outside may ask for. The pipeline itself allows more; a server shared by many does not."""

from __future__ import annotations

import io
import re
import secrets
from collections.abc import Callable

from PIL import Image

from gouache.checkpoints.adapters.controlnet_library import find_control, usable_controls
from gouache.checkpoints.adapters.ip_adapter_library import find_ip_adapter, list_ip_adapters
from gouache.checkpoints.adapters.preprocessor_library import DRAWN, MASK, drawable, find_preprocessor
from gouache.checkpoints.vae_library import find_vae
from gouache.diffusion.samplers.names import resolve, resolve_schedule
from gouache.errors import InvalidInput, ModelNotFound, PictureError, unknown_name
from gouache.pipeline.request import MAX_PIXELS, Request, Safety
from gouache.serve.models.catalog import ModelCatalog
from gouache.serve.settings import Limits, Settings

DRAWN_SEEDS = 2**32
STRICTNESS: tuple[Safety, ...] = ("off", "blur", "block")
_JOINED = re.compile(r"\bAND\b")
_SIDE = 512
_STEPS = 20


def admit(request: Request, settings: Settings, catalog: ModelCatalog, attachment: Callable[[str], bytes]) -> Request:
    """Check a request against the limits, and draw its seeds, so that a second attempt paints the same pictures.

    The studio's watermark and safety gate are added: a request may ask for another text and a stricter gate, not for
    less.

    Args:
        request: as it came.
        settings: of the studio.
        catalog: the models.
        attachment: gives the bytes of a picture that this user sent; raises PictureError for every other name.

    Raises:
        InvalidInput: over a limit, a path where a name should be, or a sampler that isn't there.
        ModelNotFound: no such model.
        PictureError: a picture that was not uploaded.
    """
    limits = settings.limits
    _check_pictures(request, limits, attachment)
    _check_texts(request, limits)
    _check_names(request)
    _check_controls(request)
    _check_ip_adapters(request)
    _check_size(request, limits)
    catalog.find(request.model)
    if request.refiner is not None:
        _check_refiner(request.refiner, catalog)
    return request.replace(
        {
            "seed": secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed,
            "subseed": secrets.randbelow(DRAWN_SEEDS)
            if request.subseed is None and request.subseed_strength > 0
            else request.subseed,
            "watermark": request.watermark or settings.watermark,
            "safety": max(request.safety, settings.safety, key=STRICTNESS.index),
        }
    )


def _check_pictures(request: Request, limits: Limits, attachment: Callable[[str], bytes]) -> None:
    pixels = 0
    for name in request.pictures():
        if not name.startswith("sha256:"):
            raise PictureError(
                "picture", given="a path", expected="sha256:<hex> of an uploaded picture", cure="Upload it first."
            )
        pixels += _pixels_of(attachment(name))
    if pixels > limits.picture_pixels:
        given = f"{pixels} pixels in all pictures"
        raise InvalidInput("pictures", given=given, expected=f"at most {limits.picture_pixels} on this server")


def _pixels_of(data: bytes) -> int:
    """From the header alone: an upload was decoded once, when it came."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.width * picture.height
    except OSError as error:
        raise PictureError("picture", given="other bytes", expected="a picture", cure="Upload it again.") from error


def _check_texts(request: Request, limits: Limits) -> None:
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt or ""}
    texts |= {"prompt_2": request.prompt_2 or "", "negative_prompt_2": request.negative_prompt_2 or ""}
    texts |= {"prompt_3": request.prompt_3 or "", "negative_prompt_3": request.negative_prompt_3 or ""}
    if request.interpolation is not None and request.interpolation.prompt is not None:
        texts["interpolation.prompt"] = request.interpolation.prompt
    if request.inversion is not None:
        texts["inversion.source_prompt"] = request.inversion.source_prompt
    texts |= {f"regions[{number}].prompt": region.prompt for number, region in enumerate(request.regions)}
    for where, text in texts.items():
        if len(text) > limits.prompt:
            raise InvalidInput(where, given=f"{len(text)} characters", expected=f"at most {limits.prompt}")
        if "\0" in text:
            raise InvalidInput(where, given="a NUL character", expected="text")
        parts = 1 + len(_JOINED.findall(text))
        if parts > limits.prompt_parts:
            given = f"{parts} parts joined by AND"
            raise InvalidInput(where, given=given, expected=f"at most {limits.prompt_parts} on this server")


def _check_names(request: Request) -> None:
    """Names only: the pipeline would read a path."""
    upscalers = {
        "hires.upscaler": request.hires.upscaler if request.hires else None,
        "upscale.upscaler": request.upscale.upscaler if request.upscale else None,
    }
    for where, name in upscalers.items():
        if name is not None and name not in UPSCALERS:
            raise InvalidInput(where, given=repr(name), expected=f"one of {', '.join(UPSCALERS)}")
    if request.vae is not None:
        find_vae(request.vae, paths=False)
    if request.sampler is not None:
        resolve(request.sampler)
    if request.schedule is not None:
        resolve_schedule(request.schedule)


def _check_refiner(name: str, catalog: ModelCatalog) -> None:
    try:
        catalog.find(name)
    except ModelNotFound as error:
        raise ModelNotFound("refiner", given=error.given, expected=error.expected, cure=error.cure) from error


def _check_controls(request: Request) -> None:
    """That each ControlNet is there, and what draws its picture or the mask; where they lie is not told."""
    if request.mask is not None and request.mask.text is not None:
        try:
            find_preprocessor(MASK)
        except (ModelNotFound, InvalidInput) as error:
            expected, cure = "a server that has the network for it (CLIPSeg)", "Send a mask image instead."
            raise InvalidInput("mask.text", given=repr(request.mask.text)[:80], expected=expected, cure=cure) from error
    for kind in dict.fromkeys(control.preprocessor for control in request.control if control.preprocessor in DRAWN):
        try:
            find_preprocessor(kind)
        except (ModelNotFound, InvalidInput) as error:
            known = ", ".join(drawable()) or "canny, which needs no network"
            raise InvalidInput(
                "control.preprocessor", given=kind, expected=f"one that this server has the network for: {known}"
            ) from error
    for name in dict.fromkeys(control.model for control in request.control):
        try:
            find_control(name)
        except ModelNotFound as error:
            near = unknown_name("control", name, [file.name for file in usable_controls()])
            raise ModelNotFound("control", given=repr(name), expected=near.expected, cure=near.cure) from error
        except InvalidInput as error:
            raise InvalidInput(
                "control",
                given=f"{name!r}, which several files are called",
                expected="the name of one file",
                cure="Rename one of them.",
            ) from error


def _check_ip_adapters(request: Request) -> None:
    """That each IP-Adapter is there; where it lies is not told."""
    for name in dict.fromkeys(one.adapter for one in request.image_prompts if one.adapter is not None):
        try:
            find_ip_adapter(name, paths=False)
        except ModelNotFound as error:
            near = unknown_name("adapter", name, [file.name for file in list_ip_adapters()])
            raise ModelNotFound(
                "image_prompts.adapter", given=repr(name), expected=near.expected, cure=near.cure
            ) from error
        except InvalidInput as error:
            raise InvalidInput(
                "image_prompts.adapter",
                given=f"{name!r}, which several files are called",
                expected="the name of one file",
                cure="Rename one of them.",
            ) from error


UPSCALERS = (
    *("latent", "latent-antialiased", "latent-bicubic", "latent-bicubic-antialiased"),
    *("latent-nearest", "latent-nearest-exact", "lanczos", "model"),
)
"""Upscalers that need no file."""


def _check_size(request: Request, limits: Limits) -> None:
    steps = request.num_inference_steps or _STEPS
    if request.sigmas is not None:
        steps = len(request.sigmas) - 1
    second = request.hires.num_inference_steps if request.hires else None
    frames = request.interpolation.frames if request.interpolation else 1
    pixels = _pixels(request)
    count = request.count * frames
    # Prompt and negative prompt are two rows of a call; a guider's pass is one, and a ControlNet half of two. A region
    # costs an attention to its text, a small part of one.
    passes = sum(group is not None for group in (request.pag, request.slg, request.sag, request.perp_neg))
    work = count * steps * max(pixels, _tiled(request)) * (2 + passes + len(request.control)) // 2
    for where, given, limit, unit in (
        ("width * height", pixels, limits.pixels, "pixels"),
        ("num_inference_steps", max(steps, second or 0), limits.steps, "steps"),
        ("count", count, limits.count, "pictures"),
        ("best_of", request.best_of, limits.count, "drafts"),
        ("count * steps * pixels", work, limits.work, "pixel steps"),
        ("upscale", _enlarged(request, pixels), MAX_PIXELS, "pixels"),
    ):
        if given > limit:
            raise InvalidInput(where, given=f"{given} {unit}", expected=f"at most {limit} on this server")


TILE = 256
"""Side in pixels of the smallest tile that takes less time than a smaller one."""


def _tiled(request: Request) -> int:
    """Pixels that the network is run on in each step, where tiles overlap; 0 without tiles of a size that is said."""
    tiled = request.tiled
    if tiled is None:
        return 0
    width, height = _painted(request)
    tile = tiled.tile or _SIDE
    calls = 1
    for length in (width, height):
        stride = max(round(tile * (1.0 - tiled.overlap)), 8)
        calls *= 1 + -(-max(length - tile, 0) // stride)
    return calls * max(min(tile, width) * min(tile, height), TILE**2 if calls > 1 else 1)


def _pixels(request: Request) -> int:
    width, height = _painted(request)
    return width * height


def _painted(request: Request) -> tuple[int, int]:
    width, height = request.width or _SIDE, request.height or _SIDE
    if request.outpaint is not None:
        width += request.outpaint.left + request.outpaint.right
        height += request.outpaint.top + request.outpaint.bottom
    return (width, height) if request.hires is None else request.hires.size_for(width, height)


def _enlarged(request: Request, pixels: int) -> int:
    return pixels if request.upscale is None else int(pixels * request.upscale.factor**2)
