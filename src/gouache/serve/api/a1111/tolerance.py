"""What A1111 lets pass, and what is said about it: unknown fields, values that ask for nothing, built-in scripts.

That tool ignores a field that it doesn't know, and its clients count on it: they send fields of its forks, of older
versions, and the placeholders of its own documentation. Here such a field is named in the reply's notes. What would
change the picture in a way that the user surely wants is refused by its name (`mapping`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gouache.errors import InvalidInput
from gouache.serve.api.a1111.fields import A1111Body, GenerationBody, Img2Img, Txt2Img

PLACEHOLDER = "string"
"""What the documentation page of A1111's API puts into every text."""
NOTHING = ("", "None", "none", PLACEHOLDER)
MOST_NOTES = 50

# Fields without a counterpart, and the values that ask for nothing; another value is refused. Null asks for nothing.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "firstpass_image": ("", PLACEHOLDER),
    "latent_mask": ("", PLACEHOLDER),
    "initial_noise_multiplier": (0, 1),
}
# As above, but only while there is a second pass.
NEUTRAL_HIRES: dict[str, tuple[object, ...]] = {
    "hr_checkpoint_name": (*NOTHING, "Use same checkpoint"),
    "hr_sampler_name": (*NOTHING, "Use same sampler"),
    "hr_scheduler": (*NOTHING, "Use same scheduler", "Automatic", "automatic"),
    "hr_prompt": ("",),
    "hr_negative_prompt": ("",),
    "hr_cfg": (0, 1),
}
# What a second pass does as the first did.
SAME_AS = {
    "hr_sampler_name": "sampler_name",
    "hr_scheduler": "scheduler",
    "hr_prompt": "prompt",
    "hr_negative_prompt": "negative_prompt",
    "hr_cfg": "cfg_scale",
}
# Fields whose other values are left aside with a note: helpers behind the painting, tuning, other families' numbers.
NOTED: dict[str, tuple[object, ...]] = {
    "restore_faces": (False,),
    "s_min_uncond": (0,),
    "comments": ({},),
    "distilled_cfg_scale": (0, 3.5),
    "hr_distilled_cfg": (0, 3.5),
    "hr_additional_modules": ([], ["Use same choices"]),
}
# Always-on scripts that save memory or time, or write texts; the picture is the same.
HARMLESS = frozenset({"tiled vae", "never oom integrated", "comments", "extra options", "api payload", "api info"})
SEED, SAMPLER, REFINER, SOFT, CONTROLNET = "seed", "sampler", "refiner", "soft inpainting", "controlnet"
SD_UPSCALE = "sd upscale"
"""A1111's built-in script of img2img."""
_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")


def extra_notes(body: A1111Body) -> list[str]:
    """A note on each field that isn't known."""
    names = list(body.model_extra or {})
    notes = [f"{name[:80]}: ignored, an unknown field" for name in names[:MOST_NOTES]]
    return [*notes, f"{len(names) - MOST_NOTES} more unknown fields: ignored"] if len(names) > MOST_NOTES else notes


def settled(body: Txt2Img | Img2Img) -> tuple[Txt2Img | Img2Img, list[str]]:
    """The body with its built-in scripts worked in and without what asks for nothing, and notes on what was ignored.

    Raises:
        InvalidInput: what can't be done here and would change the picture; `where` is the field's name.
    """
    notes = extra_notes(body)
    _check_script(body)
    body, told = _with_scripts(body)
    notes += told
    for name, neutral in NOTED.items():
        value = getattr(body, name, None)
        if value is not None and value not in neutral:
            notes.append(f"{name}: ignored, {str(value)[:40]} has no counterpart here")
    if isinstance(body, Img2Img) and body.initial_noise_multiplier == 0:
        notes.append("initial_noise_multiplier: ignored, 0 is what clients send for nothing")
    body = _with_second_pass(body)
    _check_neutral(body)
    return _without_tags(body, notes), notes


def _check_neutral(body: GenerationBody) -> None:
    for name, neutral in NEUTRAL.items():
        value = getattr(body, name, None)
        if value is not None and value not in neutral and value != getattr(body, "mask", None):
            raise unserved(name, value)
    for name, side in (("seed_resize_from_h", body.height), ("seed_resize_from_w", body.width)):
        value = getattr(body, name)
        if value is not None and value > 0 and value != (side or 512):
            raise unserved(name, value)
    if isinstance(body, Txt2Img) and body.enable_hr:
        for name, neutral in NEUTRAL_HIRES.items():
            value, first = getattr(body, name), getattr(body, SAME_AS.get(name, name))
            if value is not None and value not in neutral and (name not in SAME_AS or value != first):
                raise unserved(name, value)


def unserved(name: str, value: object) -> InvalidInput:
    """The error for a field that can't be served."""
    return InvalidInput(
        name, given=repr(value)[:80], expected="nothing: this server can't do it", cure="Leave the field out."
    )


def _check_script(body: GenerationBody) -> None:
    name = (body.script_name or "").strip()
    if name not in NOTHING and not (isinstance(body, Img2Img) and name.lower() == SD_UPSCALE):
        cure = f"Script {body.script_name!r} not found"
        raise InvalidInput("script_name", given=repr(body.script_name), expected="nothing", cure=cure)


def _with_scripts(body: Txt2Img | Img2Img) -> tuple[Txt2Img | Img2Img, list[str]]:
    """Always-on scripts: those that every A1111 has are obeyed, idle ones passed over, others refused."""
    changes: dict[str, Any] = {}
    notes: list[str] = []
    for name, script in (body.alwayson_scripts or {}).items():
        kind, args = name.strip().lower(), _arguments(script)
        if kind == CONTROLNET or not args:
            continue
        if kind == SEED:
            changes |= _seed_values(args)
        elif kind == SAMPLER:
            changes |= _sampler_values(args)
        elif kind == REFINER:
            on = args[0] is True and len(args) > 1
            changes |= {"refiner_checkpoint": args[1], "refiner_switch_at": (*args, 0.8)[2]} if on else {}
        elif kind == SOFT:
            changes |= {"mask_round": False} if args[0] is True and isinstance(body, Img2Img) else {}
        elif kind in HARMLESS:
            notes.append(f"alwayson_scripts.{name[:80]}: ignored, it doesn't change the picture")
        elif _is_on(args):
            where = f"alwayson_scripts.{name}"[:200]
            raise InvalidInput(where, given="a script", expected="none", cure=f"always on script {name} not found")
    if not changes:
        return body, notes
    values = {field: getattr(body, field) for field in body.model_fields_set if field in type(body).model_fields}
    try:
        return type(body).model_validate({**values, **changes}), notes
    except ValueError as error:
        expected = "[seed, extras, subseed, strength, width, height]; [steps, sampler, scheduler]"
        raise InvalidInput("alwayson_scripts", given=str(error)[:120], expected=expected) from error


def _arguments(script: object) -> list[Any]:
    args = script.get("args") if isinstance(script, Mapping) else script
    if args is None:
        return []
    return args if isinstance(args, list) else [args]


def _seed_values(args: list[Any]) -> dict[str, Any]:
    """Seed's arguments: seed, whether there are extras, subseed, its strength, and the size to take noise from."""
    names = ("subseed", "subseed_strength", "seed_resize_from_w", "seed_resize_from_h")
    extras = dict(zip(names, args[2:6], strict=False)) if len(args) > 1 and args[1] is True else {}
    return {"seed": args[0], **extras}


def _sampler_values(args: list[Any]) -> dict[str, Any]:
    """Sampler's arguments: steps, name, schedule."""
    values = dict(zip(("steps", "sampler_name", "scheduler"), args[:3], strict=False))
    return {name: value for name, value in values.items() if value not in (None, "")}


def _is_on(args: list[Any]) -> bool:
    """Whether a script asks for anything. By custom the first argument is its switch, or a unit has one of its own."""
    if isinstance(args[0], bool):
        return args[0]
    switches = ("enabled", "enable", "is_enabled")
    units = [unit for unit in args if isinstance(unit, Mapping)]
    off = [unit for unit in units if any(unit.get(name) is False for name in switches)]
    return any(unit for unit in args if not isinstance(unit, Mapping)) or len(off) < len([u for u in units if u])


def _with_second_pass(body: Txt2Img | Img2Img) -> Txt2Img | Img2Img:
    """A first pass by its own size, as older clients ask for it."""
    if not isinstance(body, Txt2Img) or not body.enable_hr or not (body.firstphase_width and body.firstphase_height):
        return body
    first = {"width": body.firstphase_width, "height": body.firstphase_height}
    return body.model_copy(update={**first, "hr_resize_x": body.width or 512, "hr_resize_y": body.height or 512})


def _without_tags(body: Txt2Img | Img2Img, notes: list[str]) -> Txt2Img | Img2Img:
    """The prompts without adapters' tags, if the body turns these off."""
    if not body.disable_extra_networks:
        return body
    prompts = {name: _TAG.sub("", getattr(body, name) or "") for name in ("prompt", "negative_prompt")}
    if all(text == (getattr(body, name) or "") for name, text in prompts.items()):
        return body
    notes.append("disable_extra_networks: the prompt's adapters were left out")
    return body.model_copy(update=prompts)
