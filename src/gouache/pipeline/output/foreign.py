"""Reads the recipe of a picture, whoever painted it: gouache, A1111 and its relatives, ComfyUI, InvokeAI, NovelAI,
Fooocus, SwarmUI, Easy Diffusion, Draw Things. docs/files.md has the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gouache.errors import ConfigError, RecipeError
from gouache.pipeline.output.a1111_text import left_out, request_of
from gouache.pipeline.output.comfyui.recipe import recipe_of_graph
from gouache.pipeline.output.infotext import Infotext, parse_infotext, require_values
from gouache.pipeline.output.metadata import (
    OWN,
    PARAMETERS,
    PictureTexts,
    hidden_text,
    own_json,
    read_whole,
    with_comments,
)
from gouache.pipeline.output.other_tools import OTHERS, UNREAD
from gouache.pipeline.output.recipe import Recipe
from gouache.pipeline.request import MAX_PIXELS, MAX_SEED, Request


@dataclass(frozen=True, slots=True)
class ForeignText:
    """What a picture says of its making.

    Attributes:
        tool: gouache, a1111, forge, sd.next, sd.cpp, comfyui, invokeai, novelai, fooocus, ruined-fooocus, swarmui,
            easy-diffusion or draw-things.
        request: what to paint; for other tools as near as our words come.
        recipe: ours, complete; None for other tools' pictures.
        texts: every text in the file, as it stands.
        notes: what of it could not be followed, or has no place in a request.
        prompt_known: False if no prompt could be followed; the request's is empty then.
    """

    tool: str
    request: Request
    recipe: Recipe | None
    texts: Mapping[str, str]
    notes: tuple[str, ...] = ()
    prompt_known: bool = True


def read_recipe(source: Path | bytes, *, where: str = "picture", max_pixels: int = MAX_PIXELS) -> ForeignText:
    """Read a picture's recipe.

    Args:
        source: a file's path or its bytes.
        where: what to call it in an error; a path names itself.
        max_pixels: a picture with more is not decoded to look for a text that hides in its pixels.

    Raises:
        PictureError: no picture.
        RecipeError: no recipe that is known, or a damaged one.
    """
    where = str(source) if isinstance(source, Path) else where
    whole = read_whole(source, where=where)
    found = _read(whole, where)
    if found is None:
        hidden = hidden_text(source.read_bytes() if isinstance(source, Path) else source, max_pixels)
        if hidden is not None:
            texts = with_comments({**whole.texts, PARAMETERS: hidden}, "")
            found = _read(replace(whole, texts=texts, left_out=(*whole.left_out, HIDDEN_NOTE)), where)
    if found is None:
        raise _nothing(whole, where)
    return found


def read_recipe_text(text: str, *, where: str = "text") -> ForeignText:
    """Read a recipe that was copied out of a picture, or a request.

    Args:
        text: A1111's parameters, our JSON of a recipe or a request, ComfyUI's graph, InvokeAI's metadata.
        where: what to call it in an error.

    Raises:
        RecipeError: it is none of these, or damaged.
    """
    values = _json_object(text)
    if values is not None and not values.keys() - Request.model_fields.keys() and isinstance(values.get("prompt"), str):
        try:
            return ForeignText("gouache", Request.from_dict(values, where=where), None, {"request": text})
        except ConfigError as error:
            raise RecipeError(where, given=f"{error.where}: {error.given}", expected=error.expected) from error
    found = _read(PictureTexts({_key_of(values): text}, (), (0, 0)), where)
    if found is None:
        raise RecipeError(
            where,
            given=repr(text[:80]),
            expected="settings that were copied out of a picture, such as a line that begins with Steps:",
        )
    return found


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _key_of(values: Mapping[str, Any] | None) -> str:
    """Under which name a picture has such a text."""
    if values is None:
        return PARAMETERS
    if isinstance(values.get("request"), dict):
        return OWN
    if isinstance(values.get("nodes"), list):
        return "workflow"
    if any(isinstance(node, dict) and "class_type" in node for node in values.values()):
        return "prompt"
    return "invokeai_metadata" if "positive_prompt" in values else PARAMETERS


HIDDEN_NOTE = "the file's texts are gone; read from the copy hidden in its pixels"


def _read(whole: PictureTexts, where: str) -> ForeignText | None:
    """What the texts say; None if they are of no known kind."""
    texts = whole.texts
    own = own_json(texts, where)
    try:
        if own is not None:
            recipe = Recipe.from_dict(own, where=where)
            return ForeignText("gouache", recipe.request, recipe, texts, whole.left_out)
        for tool, is_here, read in OTHERS:
            if is_here(texts):
                notes = list(whole.left_out)
                return _foreign(tool, read(texts, notes), texts, notes, where)
        if texts.get("prompt", "").startswith("{") or _is_workflow(texts):
            return _comfyui(whole, where)
        if parse_infotext(texts.get(PARAMETERS, "")).values or (PARAMETERS in texts and not _unread(texts)):
            return _a1111(texts, list(whole.left_out), where)
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(where, given=str(error)[:500], expected="a recipe that can be read") from error
    return None


def _nothing(whole: PictureTexts, where: str) -> RecipeError:
    unread = _unread(whole.texts)
    if unread:
        return RecipeError(where, given=f"a picture by {unread}", expected="a recipe that can be painted again")
    found = f"texts {sorted(whole.texts)}" if whole.texts else "no text"
    return RecipeError(
        where,
        given="; ".join([found, *whole.left_out]),
        expected="a recipe inside the picture",
        cure="Only files saved with their metadata can be repeated; screenshots and re-encoded copies lose it.",
    )


def _unread(texts: Mapping[str, str]) -> str:
    """The program, and why its pictures can't be repeated; empty if it is none of these."""
    return next((f"{program}, {why}" for program, is_here, why in UNREAD if is_here(texts)), "")


def _foreign(
    tool: str, fields: Mapping[str, Any], texts: Mapping[str, str], notes: list[str], where: str
) -> ForeignText:
    given = {key: value for key, value in fields.items() if value is not None}
    seed = given.get("seed")
    if isinstance(seed, int) and not 0 <= seed <= MAX_SEED:
        given["seed"] = seed % (MAX_SEED + 1)
        notes.append(f"the seed {seed} is beyond ours and became {given['seed']}")
    request = Request.from_dict(given, where=where)
    return ForeignText(tool, request, None, texts, tuple(dict.fromkeys(notes)), "prompt" in given)


def _is_workflow(texts: Mapping[str, str]) -> bool:
    return texts.get("workflow", "").startswith("{") and PARAMETERS not in texts


def _comfyui(whole: PictureTexts, where: str) -> ForeignText:
    """By its graph; by the text beside it where the graph has no sampler, or no prompt that can be followed."""
    texts, notes = whole.texts, list(whole.left_out)
    beside = parse_infotext(texts.get(PARAMETERS, ""))
    try:
        found = _foreign("comfyui", recipe_of_graph(texts, where, notes, whole.size), texts, notes, where)
    except (ConfigError, RecipeError) as error:
        if not beside.values:
            raise
        notes = [f"the graph can't be followed ({error.given}); read from the text `{PARAMETERS}` beside it"]
        return _a1111(texts, notes, where)
    if not found.prompt_known and beside.values and beside.prompt:
        notes.append(f"the graph can't be followed to its prompt; read from the text `{PARAMETERS}` beside it")
        return _a1111(texts, notes, where)
    return found


def _a1111(texts: Mapping[str, str], notes: list[str], where: str) -> ForeignText:
    info = require_values(parse_infotext(texts[PARAMETERS]), where)
    request = request_of(info, where)
    return ForeignText(_program(info), request, None, texts, tuple(dict.fromkeys([*notes, *left_out(info)])))


def as_infotext(found: ForeignText) -> Infotext:
    """What was read, in A1111's words, for programs that know no others."""
    request = found.request
    size = f"{request.width}x{request.height}" if request.width and request.height else None
    values = {
        "Steps": request.num_inference_steps,
        "Sampler": request.sampler,
        "Schedule type": request.schedule,
        "CFG scale": request.guidance_scale,
        "Seed": request.seed,
        "Size": size,
        "Model": request.model,
        "Clip skip": request.clip_skip,
    }
    plain = {
        key: f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in values.items()
        if value is not None
    }
    # They know one prompt: a graph of SDXL's may give it to the second encoder alone.
    negative = request.negative_prompt or request.negative_prompt_2 or ""
    return Infotext(request.prompt or request.prompt_2 or "", negative, plain)


def _program(info: Infotext) -> str:
    """Who wrote a text of A1111's kind."""
    version, app = info.values.get("Version", ""), info.values.get("App", "")
    for mark, program in (("stable-diffusion.cpp", "sd.cpp"), ("ComfyUI", "comfyui"), ("Fooocus", "fooocus")):
        if mark in version:
            return program
    if app == "SD.Next":
        return "sd.next"
    return "forge" if version.startswith(("f0.", "f1.", "f2.", "neo", "classic")) else "a1111"
