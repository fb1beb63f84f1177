"""A1111's extension for ControlNets: the units of `alwayson_scripts.ControlNet`, and what its clients ask beside. Units
whose module is `ip-adapter...` are image prompts.

Formats as in sd-webui-controlnet's `external_code.py` and `api.py` (version 2), and as `webuiapi` sends them.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from fastapi import APIRouter, Request

from gouache.checkpoints.adapters.conditioning_files import ConditioningFile
from gouache.checkpoints.adapters.controlnet_library import usable_controls
from gouache.checkpoints.adapters.ip_adapter_library import list_ip_adapters
from gouache.checkpoints.adapters.naming import folded
from gouache.checkpoints.adapters.preprocessor_library import DRAWN, drawable
from gouache.checkpoints.diffusers.folder import weight_files
from gouache.errors import ConfigError, IncompatibleCheckpoint, InvalidInput, PictureError, unknown_name
from gouache.pipeline.fields.values import ControlType
from gouache.pipeline.request import Control, ImagePrompt, ResizeMode
from gouache.serve.api.a1111.fields import Detect, decoded
from gouache.serve.http.access import owner_of, studio_of
from gouache.serve.studio import Studio

router = APIRouter(tags=["a1111"])
SCRIPT = "alwayson_scripts.ControlNet"
TITLE = "controlnet"
"""Name of the script among the others, in any case."""
API_VERSION = 2
MAX_UNITS = 8

RESIZE_MODES: Mapping[object, ResizeMode] = {
    "Just Resize": "stretch",
    "Crop and Resize": "crop",
    "Resize and Fill": "pad",
    0: "stretch",
    1: "crop",
    2: "pad",
    "Inner Fit (Scale to Fit)": "crop",
    "Scale to Fit (Inner Fit)": "crop",
    "Outer Fit (Shrink to Fit)": "pad",
    "Envelope (Outer Fit)": "pad",
}
# Older names of a unit's fields.
ALIASES = {
    "input_image": "image",
    "guidance": "guidance_end",
    "lowvram": "low_vram",
    "guessmode": "guess_mode",
    "mask_image": "mask",
}
# Fields without a counterpart, and the values that ask for nothing. Null always asks for nothing.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "mask": ("",),
    "low_vram": (False,),
    "control_mode": ("Balanced", 0),
    "guess_mode": (False,),
    "hr_option": ("Both", 0),
    "save_detected_map": (False,),
    "inpaint_crop_input_image": (True,),
    "advanced_weighting": (),
    "effective_region_mask": ("",),
    "ipadapter_input": (),
    "input_mode": ("simple",),
    "batch_images": ("",),
    "use_preview_as_input": (False,),
    "generated_image": ("",),
    "is_ui": (False,),
    "loopback": (False,),
    "output_dir": ("",),
}
# What preprocessors are told. Of these only `canny` reads its thresholds; a picture is drawn at the result's size.
UNREAD = ("processor_res", "threshold_a", "threshold_b", "pixel_perfect")
READ = (
    *("enabled", "image", "model", "weight", "resize_mode", "guidance_start", "guidance_end"),
    *("union_control_type", "module"),
)
UNION_TYPES: dict[str, ControlType | None] = {
    "Unknown": None,
    "OpenPose": "openpose",
    "Depth": "depth",
    "Soft Edge": "softedge",
    "Hard Edge": "canny",
    "Normal Map": "normal",
    "Segmentation": "segmentation",
    "Tile": "tile",
    "Inpaint": "inpaint",
}
"""What a ControlNet-Union is told of a picture, in the extension's words."""
IP_MODULE = "ip-adapter"
IP_MODULES = (
    *("ip-adapter-auto", "ip-adapter_clip_sd15", "ip-adapter_clip_sdxl", "ip-adapter_clip_sdxl_plus_vith"),
    *("ip-adapter_clip_h", "ip-adapter_clip_g"),
)
"""Modules of units for IP-Adapters. Which vision tower sees the picture follows from the adapter."""
_HASHED = re.compile(r"(.+) \[([0-9a-f]{8})\]")
_OLD_HASH = (0x100000, 0x10000)
"""Where A1111's short hash of a file begins, and how many bytes it reads."""


def units_of(scripts: Mapping[str, object]) -> list[tuple[str, dict[str, Any]]]:
    """The units that are on, with their places for errors.

    Raises:
        InvalidInput: no list of units.
    """
    found = []
    for script in (value for name, value in scripts.items() if name.lower() == TITLE):
        args = script.get("args", []) if isinstance(script, dict) else script
        if not isinstance(args, list) or not all(isinstance(one, dict | None) for one in args):
            raise InvalidInput(SCRIPT, given=type(args).__name__, expected='{"args": [a unit, ...]}')
        for number, unit in enumerate(one for one in args if one is not None):
            enabled = True if unit.get("enabled") is None else unit["enabled"]
            if not isinstance(enabled, bool):
                given = repr(enabled)[:80]
                raise InvalidInput(f"{SCRIPT}.args[{number}].enabled", given=given, expected="true or false")
            if enabled:
                found.append((f"{SCRIPT}.args[{number}]", {ALIASES.get(key, key): unit[key] for key in unit}))
    if len(found) > MAX_UNITS:
        raise InvalidInput(f"{SCRIPT}.args", given=f"{len(found)} units", expected=f"at most {MAX_UNITS}")
    return found


def controls_of(
    scripts: Mapping[str, object], attach: Callable[[str, str], str], start: tuple[str, ResizeMode] | None
) -> list[Control]:
    """What the units ask for.

    Args:
        scripts: `alwayson_scripts`.
        attach: keeps a picture in base64; gives its name.
        start: the starting picture's name and how it is brought to size; a unit without a picture of its own takes it.

    Raises:
        InvalidInput: a field that can't be served; `where` is its name.
    """
    units = [(place, unit) for place, unit in units_of(scripts) if not _is_image_prompt(unit)]
    known = usable_controls() if units else []
    return [_control(place, unit, known, attach, start) for place, unit in units]


def image_prompts_of(
    scripts: Mapping[str, object], attach: Callable[[str, str], str], start: tuple[str, ResizeMode] | None
) -> list[ImagePrompt]:
    """What the units for IP-Adapters ask for; arguments and errors as `controls_of`."""
    units = [(place, unit) for place, unit in units_of(scripts) if _is_image_prompt(unit)]
    known = list_ip_adapters() if units else []
    return [_image_prompt(place, unit, known, attach, start) for place, unit in units]


def _is_image_prompt(unit: Mapping[str, Any]) -> bool:
    module = unit.get("module")
    return isinstance(module, str) and folded(module).startswith(IP_MODULE)


def _image_prompt(
    place: str,
    unit: Mapping[str, Any],
    known: list[ConditioningFile],
    attach: Callable[[str, str], str],
    start: tuple[str, ResizeMode] | None,
) -> ImagePrompt:
    if folded(unit["module"]) not in IP_MODULES:
        raise InvalidInput(
            f"{place}.module", given=repr(unit["module"])[:80], expected=f"one of {', '.join(IP_MODULES)}"
        )
    mask = unit.get("effective_region_mask") or None
    if mask is not None and not isinstance(mask, str):
        raise InvalidInput(f"{place}.effective_region_mask", given=type(mask).__name__, expected="a picture in base64")
    _refuse_unserved(place, {**unit, "module": None, "effective_region_mask": None})
    image, _ = _picture(place, unit, attach, start)
    values = {
        "adapter": _model(f"{place}.model", unit.get("model"), known, "an IP-Adapter"),
        "images": (image,),
        "weight": _number(place, unit, "weight", 1.0, 10.0),
        "start": _number(place, unit, "guidance_start", 0.0, 1.0),
        "end": _number(place, unit, "guidance_end", 1.0, 1.0),
        "mask": None if mask is None else attach(f"{place}.effective_region_mask", mask),
    }
    try:
        return ImagePrompt.from_dict(values, where=place)
    except ConfigError as error:
        raise _reversed(place, values) from error


def _reversed(place: str, values: Mapping[str, object]) -> InvalidInput:
    """Each number of a unit fits by itself, so that only their order can be wrong."""
    return InvalidInput(
        f"{place}.guidance_end", given=values["end"], expected=f"more than guidance_start, {values['start']}"
    )


def _control(
    place: str,
    unit: Mapping[str, Any],
    known: list[ConditioningFile],
    attach: Callable[[str, str], str],
    start: tuple[str, ResizeMode] | None,
) -> Control:
    _refuse_unserved(place, unit)
    image, mode = _picture(place, unit, attach, start)
    values = {
        "model": _model(f"{place}.model", unit.get("model"), known),
        "image": image,
        "resize_mode": mode,
        "weight": _number(place, unit, "weight", 1.0, 10.0),
        "start": _number(place, unit, "guidance_start", 0.0, 1.0),
        "end": _number(place, unit, "guidance_end", 1.0, 1.0),
        "control_type": _union_type(f"{place}.union_control_type", unit.get("union_control_type")),
        **_preprocessor(place, unit),
    }
    try:
        return Control.from_dict(values, where=place)
    except ConfigError as error:
        raise _reversed(place, values) from error


def _refuse_unserved(place: str, unit: Mapping[str, Any]) -> None:
    for name, value in unit.items():
        if name in READ or name in UNREAD or value is None:
            continue
        if name not in NEUTRAL:
            raise InvalidInput(f"{place}.{name}"[:200], given="a field", expected="one of a unit's fields")
        if value not in NEUTRAL[name]:
            expected, cure = _or_nothing(NEUTRAL[name]), "Leave the field out."
            raise InvalidInput(f"{place}.{name}", given=repr(value)[:80], expected=expected, cure=cure)


def _modules() -> list[str]:
    """Preprocessors that this server has what they need for."""
    return ["none", "canny", *drawable()]


def _preprocessor(place: str, unit: Mapping[str, Any]) -> dict[str, object]:
    """The module of a unit and, for canny, its thresholds."""
    given = unit.get("module")
    name = "none" if given in (None, "") else str(given).lower()
    if name not in _modules():
        raise InvalidInput(
            f"{place}.module",
            given=repr(given)[:80],
            expected=f"one of {', '.join(_modules())}",
            cure="Send the picture that the preprocessor made.",
        )
    if name != "canny":
        return {"preprocessor": name}
    low, high = sorted(_threshold(place, unit, key, usual) for key, usual in THRESHOLDS.items())
    return {"preprocessor": name, "canny_low": low, "canny_high": high}


THRESHOLDS = {"threshold_a": 100, "threshold_b": 200}


def _threshold(place: str, unit: Mapping[str, Any], name: str, usual: int) -> int:
    """A threshold of canny's; -1 leaves it to us, as it does there."""
    return usual if unit.get(name) == -1 else round(_number(place, unit, name, usual, 1000))


def _or_nothing(neutral: tuple[object, ...]) -> str:
    return f"{neutral[0]!r}: this server does nothing else" if neutral else "nothing: this server can't do it"


def _picture(
    place: str, unit: Mapping[str, Any], attach: Callable[[str, str], str], start: tuple[str, ResizeMode] | None
) -> tuple[str, ResizeMode]:
    """A unit's picture and how it is brought to size."""
    given = unit.get("image")
    if isinstance(given, dict):
        if given.get("mask"):
            raise InvalidInput(f"{place}.mask", given="a mask", expected="nothing: this server can't do it")
        given = given.get("image")
    fitted = "Crop and Resize" if unit.get("resize_mode") is None else unit["resize_mode"]
    mode = RESIZE_MODES.get(fitted) if isinstance(fitted, str | int) and not isinstance(fitted, bool) else None
    if mode is None:
        names = ", ".join(str(name) for name in RESIZE_MODES)
        raise InvalidInput(f"{place}.resize_mode", given=repr(fitted)[:80], expected=f"one of {names}")
    if given:
        if not isinstance(given, str):
            raise InvalidInput(f"{place}.image", given=type(given).__name__, expected="a picture in base64")
        return attach(f"{place}.image", given), mode
    if start is None:
        raise InvalidInput(f"{place}.image", given="none", expected="a picture in base64")
    return start


def _union_type(where: str, given: object) -> ControlType | None:
    if given is None:
        return None
    if not isinstance(given, str) or given not in UNION_TYPES:
        raise InvalidInput(where, given=repr(given)[:80], expected=f"one of {', '.join(UNION_TYPES)}")
    return UNION_TYPES[given]


def _number(place: str, unit: Mapping[str, Any], name: str, default: float, highest: float) -> float:
    value = unit.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= highest:
        raise InvalidInput(f"{place}.{name}", given=repr(value)[:80], expected=f"a number from 0 to {highest:g}")
    return float(value)


def _model(where: str, given: object, known: list[ConditioningFile], kind: str = "a ControlNet") -> str:
    """The name of a ControlNet, given as that or as the extension lists it, with a hash behind it."""
    if given in (None, "", "None") or not isinstance(given, str):
        raise InvalidInput(where, given=repr(given)[:80], expected=f"{kind} that /controlnet/model_list names")
    hashed = _HASHED.fullmatch(given)
    for file in known:
        if folded(file.name) == folded(given):
            return file.name
        if hashed and folded(file.name) == folded(hashed[1]) and short_hash(file) == hashed[2]:
            return file.name
    near = unknown_name("control", given[:200], [file.name for file in known])
    raise InvalidInput(where, given=repr(given)[:200], expected=near.expected, cure=near.cure)


def short_hash(file: ConditioningFile) -> str:
    """A1111's first hash of a file: eight digits of the sha256 of 64 KiB in its second MiB."""
    path = weight_files(file.path)[0] if file.path.is_dir() else file.path
    offset, length = _OLD_HASH
    with path.open("rb") as source:
        source.seek(offset)
        return sha256(source.read(length)).hexdigest()[:8]


@contextmanager
def in_words_of_units() -> Iterator[None]:
    """What a worker found out about a ControlNet, such as that it was made for another model, names its unit."""
    try:
        yield
    except InvalidInput as error:
        if error.where != "control.control_type":
            raise
        where, cure = f"{SCRIPT}.args.union_control_type", f"One of {', '.join(UNION_TYPES)}."
        raise InvalidInput(where, given=error.given, expected=error.expected, cure=cure) from error
    except IncompatibleCheckpoint as error:
        if not error.where.startswith(("control ", "image prompt ")):
            raise
        raise InvalidInput(
            f"{SCRIPT}.args.model", given=f"{error.where}, {error.given}", expected=error.expected, cure=error.cure
        ) from error


@router.get("/controlnet/version")
def version(request: Request) -> dict[str, int]:
    """The version of the extension's interface that is spoken here."""
    owner_of(request)
    return {"version": API_VERSION}


@router.get("/controlnet/model_list")
def model_list(request: Request) -> dict[str, list[str]]:
    """ControlNets and IP-Adapters that a unit may name."""
    owner_of(request)
    return {"model_list": _titles()}


def _titles() -> list[str]:
    return [f"{file.name} [{short_hash(file)}]" for file in (*usable_controls(), *list_ip_adapters())]


@router.get("/controlnet/module_list")
def module_list(request: Request) -> dict[str, Any]:
    """Preprocessors: the one that takes the picture as it is, and those of IP-Adapters."""
    owner_of(request)
    modules = [*_modules(), *IP_MODULES]
    return {"module_list": modules, "module_detail": {name: {"model_free": False, "sliders": []} for name in modules}}


@router.get("/controlnet/control_types")
def control_types(request: Request) -> dict[str, Any]:
    """Kinds of control: one, with everything in it."""
    owner_of(request)
    models = ["None", *_titles()]
    everything = {"module_list": _modules(), "model_list": models, "default_option": "none", "default_model": "None"}
    return {"control_types": {"All": everything}}


@router.post("/controlnet/detect")
async def detect(body: Detect, request: Request) -> dict[str, Any]:
    """What a preprocessor makes of pictures: `canny` draws their edges, `none` leaves them as they are; a worker draws
    what takes a network, `depth` and `segmentation`, where the server has one.

    Raises:
        InvalidInput: another preprocessor, one whose network can't be used, or something that is no picture.
        QueueFull: too many pictures wait for a worker.
        NobodyAnswers: no worker runs.
    """
    studio, owner = studio_of(request), owner_of(request)
    module = (body.controlnet_module or "none").lower()
    if module not in _modules():
        raise InvalidInput(
            "controlnet_module",
            given=repr(body.controlnet_module)[:80],
            expected=f"one of {', '.join(_modules())}",
            cure="Other pictures have to be made beforehand.",
        )
    told = {"threshold_a": body.controlnet_threshold_a, "threshold_b": body.controlnet_threshold_b}
    low, high = sorted(_threshold("controlnet", told, name, usual) for name, usual in THRESHOLDS.items())
    operation, more = ("edges", {"low": low, "high": high}) if module == "canny" else ("check", {})
    drawn = []
    for number, text in enumerate(body.controlnet_input_images):
        where = f"controlnet_input_images[{number}]"
        wanted = {"where": where, "max_pixels": studio.upload_pixels, **more}
        try:
            _, data = await studio.decoding.beside(studio.decoding.run, owner, operation, decoded(where, text), wanted)
        except PictureError as error:
            raise InvalidInput(where, given=error.given, expected=error.expected, cure=error.cure) from error
        if module in DRAWN:
            data = await _drawn_by_worker(studio, decoded(where, text), module, owner)
        plain = text.partition(",")[2] if text.startswith("data:") else text
        drawn.append(b64encode(data).decode() if module != "none" else plain)
    return {"images": drawn, "info": "Success"}


async def _drawn_by_worker(studio: Studio, data: bytes, module: str, owner: str) -> bytes:
    try:
        return await studio.draw_tasks.make(data, {"preprocessor": module}, owner)
    except InvalidInput as error:
        given = f"{module!r}: {error.where}, {error.given}"
        raise InvalidInput("controlnet_module", given=given, expected=error.expected, cure=error.cure) from error


@router.get("/controlnet/settings")
def settings(request: Request) -> dict[str, int]:
    """How many units one picture may have."""
    owner_of(request)
    return {"control_net_unit_count": MAX_UNITS}
