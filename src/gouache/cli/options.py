"""Command-line options made from the fields of `Request`: one description drives every command.

A field `guidance_scale` becomes ``--guidance-scale``; the field `blur` of the group `mask` becomes ``--mask-blur``. The
group's main field is the group's own option (``--mask FILE``), or the option is a switch (``--hires``). Giving any
option of a group turns the group on.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from gouache.config import Config
from gouache.errors import InvalidInput
from gouache.pipeline.request import ImagePrompt, Region, Request

SWITCHES = {"mask_preserve": "--preserve/--no-preserve", "mask_only_masked": "--only-masked/--whole-picture"}
"""Second names of switches."""
MAIN_FIELDS = {
    "mask": "image",
    "upscale": "factor",
    "churn": "amount",
    "inversion": "source_prompt",
    "prior": "enabled",
    "interpolation": "prompt",
    "pag": "scale",
    "sag": "scale",
    "slg": "scale",
    "perp_neg": "scale",
    "mimic": "scale",
    "cfg_cache": "interval",
    "deep_cache": "interval",
    "block_cache": "threshold",
}
"""Group -> the field that its own option sets. A group that isn't here is a switch."""
AREA_FORM = 'AREA[,FIELD=VALUE] "PROMPT"'
REPEATED = {"regions": "region"}
"""List of groups -> the name of its option, which is given once for each."""
FORMS = {
    "control": "MODEL:PICTURE[:WEIGHT][,FIELD=VALUE]",
    "image_prompts": "[ADAPTER:]PICTURE[+PICTURE][:WEIGHT][,FIELD=VALUE]",
}
"""How one of a list of groups is written."""
SHORT = {
    "num_inference_steps": ("--steps", "-s"),
    "count": ("-n",),
    "model": ("-m",),
    "guidance_scale": ("--guidance", "-g"),
    "negative_prompt": ("--negative",),
    "init_image": ("--init",),
    "width": ("-W",),
    "height": ("-H",),
    "image_prompts": ("--image-prompt",),
}
PANELS = {
    **dict.fromkeys(
        ("init_image", "strength", "resize_mode", "image_guidance_scale", "depth_image", "noise_level"),
        "Starting picture",
    ),
    **dict.fromkeys(("control", "image_prompts"), "Control"),
    **dict.fromkeys(("regions",), "Regions"),
    **dict.fromkeys(("mask",), "Mask"),
    **dict.fromkeys(("outpaint", "inversion", "interpolation"), "Edits"),
    **dict.fromkeys(("hires", "tiled", "vae_tiling", "seamless", "upscale"), "Large pictures"),
    **dict.fromkeys(("refiner", "refiner_switch_at", "refiner_switch_by"), "Refiner"),
    **dict.fromkeys(("sampler", "schedule", "sigmas", "eta", "churn", "num_inference_steps"), "Sampling"),
    **dict.fromkeys(("guidance_scale", "guidance_rescale", "guidance_interval", "apg"), "Guidance"),
    **dict.fromkeys(("mimic", "perp_neg", "pag", "sag", "slg", "freeu"), "Guidance"),
    **dict.fromkeys(("fast", "cfg_cache", "deep_cache", "block_cache", "token_merging"), "Speed"),
    **dict.fromkeys(
        ("seed", "subseed", "subseed_strength", "determinism", "eta_noise_seed_delta", "procedure"), "Randomness"
    ),
    **dict.fromkeys(("prior", "best_of"), "Prior"),
}
"""Where an option stands in the help."""
EDITING = (
    "init_image",
    "strength",
    "resize_mode",
    "mask",
    "outpaint",
    "inversion",
    "interpolation",
    "image_guidance_scale",
    "depth_image",
    "noise_level",
)
"""Fields about a starting picture: `paint` leaves them to the commands that take one."""


@dataclass(frozen=True, slots=True)
class OptionSpec:
    """One option and the field behind it.

    Attributes:
        path: ("seed",) or ("mask", "blur").
        name: the Python name of the option's variable, `mask_blur`.
        kind: str, int, float or bool as the command line parses it; lists come as text with commas.
        count: how many numbers a list has; 0 = no list, -1 = any number.
        metavar: what help shows for the value.
        help: the field's own explanation.
        group: of a list of groups, each given by an option of its own, the class of one.
        words: the list holds words, not numbers.
        values: how many values the option takes.
    """

    path: tuple[str, ...]
    name: str
    kind: type
    count: int
    metavar: str | None
    help: str
    group: type[Config] | None = None
    words: bool = False
    values: int = 1

    @property
    def flags(self) -> tuple[str, ...]:
        """``--mask-blur``; switches have a ``--no-`` twin; the best known have a short name."""
        long = "--" + self.name.replace("_", "-")
        if self.kind is bool:
            second = SWITCHES.get(self.name)
            return (f"{long}/--no-{long[2:]}", *((second,) if second else ()))
        return (long, *(SHORT.get(self.path[0], ()) if len(self.path) == 1 else ()))


def option_specs(without: Iterable[str] = ()) -> list[OptionSpec]:
    """Every option of a request except `prompt`, which is the argument, and the fields in `without`."""
    left_out = {"prompt", *without}
    specs: list[OptionSpec] = []
    for name, field in Request.model_fields.items():
        if name in left_out:
            continue
        group = _group_of(field)
        if group is None:
            specs.append(_spec((name,), name, field))
            continue
        main = MAIN_FIELDS.get(name)
        if main is None:
            specs.append(OptionSpec((name,), name, bool, 0, None, field.description or ""))
        # The main one stands first.
        for inner, inner_field in sorted(group.model_fields.items(), key=lambda one: one[0] != main):
            label = name if inner == main else f"{name}_{inner}"
            specs.append(_spec((name, inner), label, inner_field))
    return specs


def _group_of(field: FieldInfo) -> type[Config] | None:
    if get_origin(field.annotation) is tuple:
        return None
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Config):
            return kind
    return None


def _spec(path: tuple[str, ...], name: str, field: FieldInfo) -> OptionSpec:
    kind = _bare(field.annotation)
    text = field.description or ""
    if field.default is not None and field.default != "" and not isinstance(field.default, bool):
        text += f" [default: {field.default}]"
    if get_origin(kind) is Literal:
        return OptionSpec(path, name, str, 0, "|".join(get_args(kind)), text)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if parts[0] is Region:
            text = f"{text} {AREA_FORM}, the area a mask picture (white = here) or a box LEFT,TOP,RIGHT,BOTTOM in "
            text += "fractions; may be repeated."
            return OptionSpec(path, REPEATED[name], str, 0, "AREA PROMPT", text, Region, values=2)
        if isinstance(parts[0], type) and issubclass(parts[0], Config):
            form = FORMS[name]
            metavar = re.sub(r"\[[^]]*\]", "", form)
            return OptionSpec(path, name, str, 0, metavar, f"{text} {form}; may be repeated.", parts[0])
        count = -1 if parts[-1] is Ellipsis else len(parts)
        if _bare(parts[0]) is str:
            return OptionSpec(path, name, str, count, "NAME[,NAME]", text, words=True)
        return OptionSpec(path, name, str, count, ",".join(["NUMBER"] * max(count, 2)), text)
    if kind not in (str, int, float, bool):
        raise InvalidInput(".".join(path), given=str(kind), expected="a type that the command line can read")
    return OptionSpec(path, name, kind, 0, None, text)


def _bare(annotation: Any) -> Any:
    """The type without None and without its constraints."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _bare(next(kind for kind in get_args(annotation) if kind is not type(None)))
    return annotation


def request_values(specs: Iterable[OptionSpec], given: Mapping[str, object]) -> dict[str, Any]:
    """What was given on the command line, in the shape of a request's JSON."""
    values: dict[str, Any] = {}
    for spec in specs:
        value = given.get(spec.name)
        if value is None or value == []:
            continue
        if spec.values == 2 and isinstance(value, list):
            value = [read_region(spec.flags[0], str(area), str(prompt)) for area, prompt in value]
        elif spec.group is not None and isinstance(value, list):
            value = [read_group(spec.flags[0], str(one), spec.group) for one in value]
        if spec.words:
            value = [word.strip() for word in str(value).split(",")]
        elif spec.count:
            value = _numbers(spec, str(value))
        if len(spec.path) == 1 and _is_switch(spec):
            if value:
                values.setdefault(spec.path[0], {})
        elif len(spec.path) == 1:
            values[spec.path[0]] = value
        else:
            values.setdefault(spec.path[0], {})[spec.path[1]] = value
    return values


def _is_switch(spec: OptionSpec) -> bool:
    return _group_of(Request.model_fields[spec.path[0]]) is not None


def read_group(flag: str, text: str, group: type[Config]) -> dict[str, Any]:
    """One of a list of groups, as `FORMS` has it.

    Raises:
        InvalidInput: it can't be read so.
    """
    first, *pairs = re.split(rf",(?=(?:{'|'.join(group.model_fields)})=)", text)
    values = dict(pair.split("=", 1) for pair in pairs)
    if first.partition("=")[0] in group.model_fields:
        return {**dict([first.split("=", 1)]), **values}
    rest, again, weight = first.rpartition(":")
    if not (again and _is_number(weight)):
        rest, weight = first, ""
    model, colon, picture = rest.partition(":")
    told = {**({"weight": weight} if weight else {}), **values}
    if group is ImagePrompt:
        adapter, pictures = (model, picture) if colon else (None, rest)
        if pictures and adapter != "":
            return {"adapter": adapter, "images": _pictures(pictures), **told}
        raise InvalidInput(
            flag, given=repr(text), expected=FORMS["image_prompts"], cure="For example ip-adapter_sd15:cat.png:0.8"
        )
    if not (colon and model and picture):
        raise InvalidInput(flag, given=repr(text), expected=FORMS["control"], cure="For example canny:edges.png:0.8")
    return {"model": model, "image": picture, **told}


def _pictures(text: str) -> list[str]:
    """Pictures with + between them, unless one file's name is the whole."""
    return [text] if Path(text).expanduser().is_file() else text.split("+")


_BOX = re.compile(r"[-+.\d]+(?:,[-+.\d]+){3}")


def read_region(flag: str, area: str, prompt: str) -> dict[str, object]:
    """``MASK`` or ``LEFT,TOP,RIGHT,BOTTOM``, behind either ``,FIELD=VALUE`` for the region's other fields, and its
    prompt.

    Raises:
        InvalidInput: it can't be read so.
    """
    names = [name for name in Region.model_fields if name not in ("prompt", "mask", "box")]
    first, *pairs = re.split(rf",(?=(?:{'|'.join(names)})=)", area)
    values = dict[str, object](pair.split("=", 1) for pair in pairs)
    if not first or "=" in first:
        raise InvalidInput(
            flag,
            given=f"{area!r} {prompt!r}",
            expected=f"{AREA_FORM}, FIELD one of {', '.join(names)}",
            cure='For example --region 0,0,0.5,1,feather=0.1 "a red apple"',
        )
    place: dict[str, object] = {"mask": first}
    if _BOX.fullmatch(first):
        try:
            place = {"box": [float(number) for number in first.split(",")]}
        except ValueError as error:
            raise InvalidInput(flag, given=repr(first), expected="four numbers, or a mask picture") from error
    return {"prompt": prompt, **place, **values}


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\d+\.?\d*|\.\d+", text))


def _numbers(spec: OptionSpec, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInput(spec.flags[0], given=repr(text), expected="numbers with commas between") from error
    if spec.count > 0 and len(numbers) != spec.count:
        raise InvalidInput(spec.flags[0], given=repr(text), expected=f"{spec.count} numbers with commas between")
    return numbers


def with_options(
    command: Callable[..., None], specs: Iterable[OptionSpec], name: str, help_text: str
) -> Callable[..., None]:
    """A command that takes its own parameters and one option for each spec, all passed on by keyword."""

    def _run(**values: object) -> None:
        command(**values)

    own = list(inspect.signature(command, eval_str=True).parameters.values())
    own = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    specs = tuple(specs)
    made = [_parameter(spec) for spec in specs]
    _run.__name__, _run.__doc__ = name, help_text
    _run.__signature__ = inspect.Signature([*own, *made])  # type: ignore[attr-defined]
    _run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *made)}
    # Typer's lists are of single values; `load_command` makes each of these as many as it says.
    _run.values = {spec.name: spec.values for spec in specs if spec.values > 1}  # type: ignore[attr-defined]
    return _run


def _parameter(spec: OptionSpec) -> inspect.Parameter:
    panel = PANELS.get(spec.path[0], "Painting")
    option = typer.Option(*spec.flags, help=spec.help, metavar=spec.metavar, show_default=False, rich_help_panel=panel)
    kind: Any = spec.kind if spec.group is None else list[str] if spec.values == 1 else list[Any]
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(spec.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def ray_option(what: str, behind: str = "") -> Any:
    """The option ``--ray [ADDRESS]``.

    Args:
        what: what is done on the cluster, the beginning of the help.
        behind: its end.
    """
    address = (
        "HOST:PORT of its head; local, on this machine; without ADDRESS the one that RAY_ADDRESS names or that runs "
        "here, else as local."
    )
    return typer.Option("--ray", metavar="[ADDRESS]", help=f"{what}: {address}{behind}")


RayActors = Annotated[
    int | None, typer.Option("--ray-actors", min=1, help="Models on the cluster at most. Default: as many as fit.")
]
