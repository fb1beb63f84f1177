"""Every field of a request as a form shows it, made from `Request` itself.

Kind, range and default follow from a field's type, the help is its docstring. What no type tells stands in the tables
below: the group it is shown in, the range that a slider has, and which list a name is chosen from. A field that no
table knows is shown in the group `more`, so that none can be forgotten.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from gouache.config import Config
from gouache.diffusion.samplers.names import SAMPLER_INFOS, SCHEDULE_INFOS
from gouache.errors import InvalidInput
from gouache.pipeline.fields import values
from gouache.pipeline.request import Request
from gouache.serve.queue.admission import UPSCALERS
from gouache.serve.settings import Limits

Kind = Literal[
    "text",
    "line",
    "integer",
    "number",
    "flag",
    "choice",
    "name",
    "names",
    "seed",
    "colour",
    "aspect",
    "picture",
    "pictures",
    "numbers",
    "box",
    "group",
    "groups",
]
"""text has several lines, line one; seed is an integer that JavaScript can't hold; numbers, names and pictures are
lists; box is left, top, right, bottom as fractions; group is a mapping with the fields in `fields`, groups a list of
such."""
SAFE_INTEGER = 2**53 - 1
"""The largest that JavaScript holds exactly; what is larger is sent as text."""

PAGE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "negative_prompt", "style"),
    "model": ("model", "vae", "clip_skip"),
    "size": ("width", "height", "count", "background", "seamless"),
    "seeds": (*("seed", "subseed", "subseed_strength", "eta_noise_seed_delta", "determinism", "procedure"),),
    "sampling": (
        "sampler",
        "schedule",
        "num_inference_steps",
        "eta",
        "churn",
        "sigmas",
        "fast",
        "cfg_cache",
        "deep_cache",
        "block_cache",
        "token_merging",
    ),
    "guidance": (
        *("guidance_scale", "guidance_rescale", "guidance_interval", "apg", "mimic", "perp_neg", "pag", "sag", "slg"),
        "freeu",
    ),
    "picture": ("init_image", "strength", "resize_mode", "image_guidance_scale", "depth_image", "noise_level"),
    "mask": ("mask",),
    "outpaint": ("outpaint",),
    "edits": ("inversion", "interpolation"),
    "control": ("control",),
    "image_prompts": ("image_prompts",),
    "regions": ("regions",),
    "second_pass": ("hires", "refiner", "refiner_switch_at", "refiner_switch_by"),
    "large": ("upscale", "tiled", "vae_tiling"),
    "draft": ("prior", "best_of"),
    "texts": (
        *("emphasis", "prompt_2", "negative_prompt_2", "prompt_3", "negative_prompt_3", "max_sequence_length"),
        "size_condition",
    ),
    "output": ("watermark", "safety"),
}
"""Where the page shows a field, in order."""
MORE = "more"
"""The group of fields that the table doesn't know."""

Names = Literal["models", "vaes", "samplers", "schedules", "styles", "upscalers", "controls", "ip-adapters", "layers"]
NAMES: Mapping[str, Names] = {
    "model": "models",
    "refiner": "models",
    "vae": "vaes",
    "sampler": "samplers",
    "schedule": "schedules",
    "style": "styles",
    "hires.upscaler": "upscalers",
    "upscale.upscaler": "upscalers",
    "control[].model": "controls",
    "image_prompts[].adapter": "ip-adapters",
    "pag.layers": "layers",
    "slg.layers": "layers",
}
"""Which list a name is chosen from. Samplers, schedules, upscalers and layers are told here, the others by `/v1/models`
and the routes below it, styles by the model's facts."""
USUAL: Mapping[str, tuple[float, float]] = {
    "guidance_scale": (1, 20),
    "image_guidance_scale": (1, 5),
    "num_inference_steps": (1, 60),
    "hires.num_inference_steps": (1, 60),
    "inversion.num_inference_steps": (1, 60),
    "width": (64, 2048),
    "height": (64, 2048),
    "hires.scale": (1.05, 4),
    "hires.width": (64, 4096),
    "hires.height": (64, 4096),
    "upscale.factor": (1, 4),
    "tiled.tile": (64, 2048),
    "count": (1, 16),
    "best_of": (1, 16),
    "clip_skip": (1, 12),
    "eta": (0, 1),
    "noise_level": (0, 350),
    "churn.amount": (0, 100),
    "churn.sigma_min": (0, 20),
    "churn.sigma_max": (0, 100),
    "churn.noise": (0.9, 1.1),
    "apg.eta": (0, 2),
    "apg.norm_threshold": (0, 50),
    "apg.momentum": (-0.99, 0.99),
    "mimic.scale": (1, 20),
    "perp_neg.scale": (0, 5),
    "pag.scale": (0, 10),
    "pag.adaptive_scale": (0, 1),
    "slg.scale": (0, 10),
    "sag.scale": (0, 3),
    "sag.blur_sigma": (0.1, 5),
    "sag.threshold": (0, 3),
    "freeu.b1": (0, 2),
    "freeu.b2": (0, 2),
    "freeu.s1": (0, 2),
    "freeu.s2": (0, 2),
    "cfg_cache.interval": (2, 5),
    "deep_cache.interval": (2, 5),
    "deep_cache.branch": (0, 11),
    "block_cache.threshold": (0.01, 0.5),
    "token_merging": (0, 0.75),
    "mask.blur": (0, 64),
    "mask.padding": (0, 256),
    "outpaint.left": (0, 512),
    "outpaint.right": (0, 512),
    "outpaint.top": (0, 512),
    "outpaint.bottom": (0, 512),
    "outpaint.overlap": (0, 128),
    "control[].weight": (0, 2),
    "control[].canny_low": (0, 255),
    "control[].canny_high": (0, 255),
    "image_prompts[].weight": (0, 2),
    "regions[].weight": (0.05, 3),
    "prior.temperature": (0, 2),
    "prior.top_k": (0, 1000),
    "prior.guidance_scale": (0, 10),
    "prior.start_sigma": (0, 20),
    "prior.recall": (0, 10),
    "interpolation.frames": (2, 64),
    "interpolation.frame": (0, 63),
}
"""The range of a slider, where a field allows much more than is of use."""
UNITS: Mapping[str, str] = {
    **dict.fromkeys(("width", "height", "tiled.tile", "hires.width", "hires.height"), "px"),
    **dict.fromkeys(("mask.blur", "mask.padding", "outpaint.overlap"), "px"),
    **{f"outpaint.{side}": "px" for side in ("left", "right", "top", "bottom")},
    **{f"size_condition.{name}": "px" for name in ("original_width", "original_height", "crop_left", "crop_top")},
    **{f"size_condition.{name}": "px" for name in ("target_width", "target_height")},
}
SIDE_STEP = 8
"""Pixels: what every model's latents are a multiple of."""


class Choice(Config):
    """One of a field's values."""

    value: str
    label: str = ""
    """A proper name, the same in every language; empty where the value itself has to be put in words."""


class FieldView(Config):
    """One field."""

    name: str
    path: str
    """From the request on: `seed`, `mask.blur`, `control[].weight`; errors name fields so, with numbers in brackets."""
    kind: Kind
    group: str
    """Of the page; that of the outer field for one inside a group."""
    help: str
    required: bool = False
    """Has to be given as soon as its group is."""
    optional: bool = False
    """May be null, which leaves it to the model."""
    default: Any = None
    """Of a request without it; null also where it has to be given."""
    min: int | float | None = None
    max: int | float | str | None = None
    """As text where JavaScript's numbers end."""
    above: float | None = None
    """It has to be above this, not equal."""
    below: float | None = None
    step: int | float | None = None
    usual: tuple[float, float] | None = None
    """A slider's range, within what is allowed."""
    unit: str = ""
    choices: tuple[Choice, ...] = ()
    open: bool = False
    """Other values than the choices are allowed."""
    source: Names | None = None
    """The list that a name is chosen from."""
    min_items: int | None = None
    max_items: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    fields: tuple[FieldView, ...] = ()
    """Of a group, or of each in a list of groups."""


class FieldGroup(Config):
    """A group of the page."""

    name: str
    fields: tuple[str, ...]
    """Names, in order."""


class RequestFields(Config):
    """All fields of a request."""

    groups: tuple[FieldGroup, ...]
    fields: tuple[FieldView, ...]


def describe(limits: Limits | None = None) -> RequestFields:
    """All fields.

    Args:
        limits: of the server, which may allow less than a request does.
    """
    group_of = {name: group for group, names in PAGE_GROUPS.items() for name in names}
    rest = tuple(name for name in Request.model_fields if name not in group_of)
    groups = {**PAGE_GROUPS, MORE: rest}
    caps = {} if limits is None else _caps(limits)
    return RequestFields(
        groups=tuple(FieldGroup(name=name, fields=names) for name, names in groups.items() if names),
        fields=tuple(
            _view(name, name, group_of.get(name, MORE), field, caps) for name, field in Request.model_fields.items()
        ),
    )


def flattened(fields: tuple[FieldView, ...]) -> Iterator[FieldView]:
    """Every field, those inside groups behind the group."""
    for field in fields:
        yield field
        yield from flattened(field.fields)


def _caps(limits: Limits) -> dict[str, int]:
    return {
        "num_inference_steps": limits.steps,
        "hires.num_inference_steps": limits.steps,
        "count": limits.count,
        "best_of": limits.count,
        "interpolation.frames": limits.count,
    }


def _view(name: str, path: str, group: str, field: FieldInfo, caps: Mapping[str, int]) -> FieldView:
    bare, rules, optional = _unwrapped(field.annotation)
    rules += field.metadata
    shape = _shape(path, bare, rules)
    bounds = _bounds(rules, is_list=get_origin(bare) is tuple)
    if path in caps:
        bounds["max"] = min(bounds.get("max", caps[path]), caps[path])
    default = None if field.is_required() else field.default
    between = f"{path}[]." if shape["kind"] == "groups" else f"{path}."
    told: dict[str, Any] = {
        "name": name,
        "path": path,
        "group": group,
        "help": " ".join((field.description or "").split()),
        "required": field.is_required(),
        "optional": optional,
        "default": list(default) if isinstance(default, tuple) else default,
        "step": _step(path, shape["kind"], bounds),
        "usual": _usual(path, shape["kind"], bounds),
        "unit": UNITS.get(path, ""),
        "fields": tuple(_view(inner, between + inner, group, one, caps) for inner, one in _fields_of(bare)),
    }
    ends = {key: str(value) if key == "max" and value > SAFE_INTEGER else value for key, value in bounds.items()}
    return FieldView.from_dict({**told, **ends, **shape})


def _fields_of(bare: Any) -> Iterator[tuple[str, FieldInfo]]:
    kind = get_args(bare)[0] if get_origin(bare) is tuple else bare
    if isinstance(kind, type) and issubclass(kind, Config):
        # When a guider or a control picture acts comes behind what it does.
        yield from sorted(kind.model_fields.items(), key=lambda one: one[0] in ("start", "end"))


def _unwrapped(annotation: Any) -> tuple[Any, list[Any], bool]:
    """The type itself, its constraints, and whether null is allowed."""
    if get_origin(annotation) is Annotated:
        bare, rules, optional = _unwrapped(get_args(annotation)[0])
        for part in get_args(annotation)[1:]:
            rules += part.metadata if isinstance(part, FieldInfo) else [part]
        return bare, rules, optional
    if get_origin(annotation) in (Union, types.UnionType):
        inner = next(kind for kind in get_args(annotation) if kind is not type(None))
        bare, rules, _ = _unwrapped(inner)
        return bare, rules, True
    return annotation, [], False


_BOUNDS: tuple[tuple[type, str, str, str], ...] = (
    (Ge, "ge", "min", "min"),
    (Le, "le", "max", "max"),
    (Gt, "gt", "above", "above"),
    (Lt, "lt", "below", "below"),
    (MinLen, "min_length", "min_length", "min_items"),
    (MaxLen, "max_length", "max_length", "max_items"),
)
"""A constraint, its value, and our name of it for a single value and for a list."""


def _bounds(rules: list[Any], *, is_list: bool) -> dict[str, Any]:
    return {
        names[is_list]: getattr(rule, attribute)
        for rule in rules
        for kind, attribute, *names in _BOUNDS
        if isinstance(rule, kind)
    }


def _shape(path: str, bare: Any, rules: list[Any]) -> dict[str, Any]:
    """Kind, choices, and where names come from.

    Raises:
        InvalidInput: a type that no form has an input for.
    """
    if get_origin(bare) is Literal:
        return {"kind": "choice", "choices": tuple(Choice(value=value) for value in get_args(bare))}
    if get_origin(bare) is tuple:
        return _list_shape(path, get_args(bare))
    if isinstance(bare, type) and issubclass(bare, Config):
        return {"kind": "group"}
    if bare is int:
        return {
            "kind": "seed" if any(isinstance(rule, Le) and rule.le == values.MAX_SEED for rule in rules) else "integer"
        }
    if bare is str:
        return _text_shape(path, rules)
    if bare in (bool, float):
        return {"kind": "flag" if bare is bool else "number"}
    raise InvalidInput(path, given=str(bare), expected="a type that a form can show", cure="Give it a kind here.")


def _list_shape(path: str, parts: tuple[Any, ...]) -> dict[str, Any]:
    inner, rules, _ = _unwrapped(parts[0])
    if isinstance(inner, type) and issubclass(inner, Config):
        return {"kind": "groups"}
    if inner is str:
        return {"kind": "pictures"} if _checks(rules, _is_reference) else {"kind": "names", **_names(path)}
    count = 0 if parts[-1] is Ellipsis else len(parts)
    if count == len(BOX):
        return {"kind": "box", "min": 0, "max": 1}
    ends = {"min_items": count, "max_items": count} if count else {"min_items": 2, "max_items": values.MAX_STEPS + 1}
    return {"kind": "numbers", **_bounds(rules, is_list=False), **ends}


def _text_shape(path: str, rules: list[Any]) -> dict[str, Any]:
    for check, kind in ((_is_reference, "picture"), (values.a_colour, "colour"), (values.an_aspect, "aspect")):
        if _checks(rules, check):
            return {"kind": kind}
    longest = max((rule.max_length for rule in rules if isinstance(rule, MaxLen)), default=0)
    if longest == values.MAX_PROMPT:
        return {"kind": "text"}
    return {"kind": "name", **_names(path)} if path in NAMES else {"kind": "line"}


def _names(path: str) -> dict[str, Any]:
    source = NAMES.get(path)
    choices = _FINISHED if path == "upscale.upscaler" else _CHOICES.get(source or "", ())
    return {"source": source, "choices": choices, "open": source in OPEN}


_CHOICES: Mapping[str, tuple[Choice, ...]] = {
    "samplers": tuple(Choice(value=info.name, label=info.label) for info in SAMPLER_INFOS.values()),
    "schedules": tuple(
        Choice(value=info.name, label=info.label) for info in SCHEDULE_INFOS.values() if info.name != "custom"
    ),
    "upscalers": tuple(Choice(value=name) for name in UPSCALERS),
    "layers": tuple(Choice(value=name) for name in ("down", "mid", "up")),
}
_FINISHED = tuple(Choice(value=name) for name in UPSCALERS if not name.startswith("latent"))
"""A finished picture has no latents."""
OPEN = ("samplers", "schedules", "styles", "layers")
"""Lists beside which other names are understood: those of other tools, and parts of a network."""
BOX = ("left", "top", "right", "bottom")


def _checks(rules: list[Any], function: Any) -> bool:
    return any(isinstance(rule, AfterValidator) and rule.func is function for rule in rules)


_is_reference = next(rule.func for rule in get_args(values.ImageReference) if isinstance(rule, AfterValidator))


def _step(path: str, kind: Kind, bounds: Mapping[str, Any]) -> int | float | None:
    if kind == "integer":
        return SIDE_STEP if bounds.get("min") == values.MIN_SIDE else 1
    if kind not in ("number", "box"):
        return None
    low, high = _usual(path, kind, bounds) or (0.0, 1.0)
    return 0.01 if high - low <= 3 else 0.05 if high - low <= 10 else 0.1 if high - low <= 50 else 1


def _usual(path: str, kind: Kind, bounds: Mapping[str, Any]) -> tuple[float, float] | None:
    """A slider's range; None where no slider is of use."""
    if kind not in ("integer", "number"):
        return None
    low = bounds.get("min", bounds.get("above"))
    high = bounds.get("max", bounds.get("below"))
    if path in USUAL:
        first, last = USUAL[path]
        return first, last if high is None else min(last, high)
    if low is None or high is None or high - low > WIDEST_SLIDER:
        return None
    return low, high


WIDEST_SLIDER = 1000
