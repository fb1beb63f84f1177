"""Published files and folders by what they are made of, and what gouache says of them; nothing is downloaded.

`tests/reference/published.toml` lists them; `tests/reference/names` has the names and shapes of their tensors, a line
for many: alternatives stand in round brackets, ``blocks.(0-2,7).attn.to_(k,q).weight 320x768``, and a scalar's shape
is ``-``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from gouache.checkpoints import detect
from gouache.checkpoints.foreign import check_pipeline
from gouache.checkpoints.formats.header import Header, TensorInfo
from gouache.errors import GouacheError

FOLDER = Path(__file__).parents[1] / "tests" / "reference"
Entry = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def entries(kind: str) -> list[Entry]:
    """Those of `published.toml` under ``file``, ``marks`` or ``folder``."""
    return list(tomllib.loads((FOLDER / "published.toml").read_text(encoding="utf-8"))[kind])


@cache
def shapes_of(name: str) -> Shapes:
    """Every tensor of a list; the averaged weights have the names of the others, without dots."""
    if name.endswith("-ema"):
        return {one.replace(".", ""): shape for one, shape in shapes_of(name.removesuffix("-ema")).items()}
    lines = (FOLDER / "names" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    found: Shapes = {}
    for line in lines:
        if not line.startswith("#"):
            pattern, _, shape = line.rpartition(" ")
            sizes = () if shape == "-" else tuple(map(int, shape.split("x")))
            found |= dict.fromkeys(expanded(pattern), sizes)
    return found


def expanded(pattern: str) -> Iterator[str]:
    """Every name that a line stands for."""
    start, bracket, rest = pattern.partition("(")
    if not bracket:
        yield start
        return
    inside, _, end = rest.partition(")")
    for choice in inside.split(","):
        span = re.fullmatch(r"(\d+)-(\d+)", choice)
        for word in map(str, range(int(span[1]), int(span[2]) + 1)) if span else (choice,):
            for tail in expanded(end):
                yield f"{start}{word}{tail}"


def header_of(entry: Entry) -> Header:
    """The header that a file of `published.toml` has."""
    shapes: Shapes = {}
    for name, prefix in entry.get("names", {}).items():
        shapes |= {prefix + one: shape for one, shape in shapes_of(name).items()}
    shapes |= {name: tuple(shape) for name, shape in (entry.get("changed", {}) | entry.get("more", {})).items()}
    left_out = tuple(entry.get("without", ()))
    kept = {name: shape for name, shape in shapes.items() if not (left_out and name.startswith(left_out))}
    packed = {name for name, shape in kept.items() if len(shape) > 1} if "stored" in entry else set()
    tensors = {name: TensorInfo("F32" if name in packed else "F16", shape) for name, shape in kept.items()}
    stored = dict.fromkeys(packed, entry.get("stored", ""))
    return Header(Path(entry["name"]), tensors, entry.get("metadata", {}), stored=stored)


def header_of_marks(entry: Entry) -> Header:
    """The header of a file that is known by some tensors."""
    tensors = {name: TensorInfo("F16", (8, 8)) for name in entry["mark"].split()}
    return Header(Path("model.safetensors"), tensors)


def told(header: Header) -> detect.Identity | GouacheError:
    """What `identify` says of a header."""
    try:
        return detect.identify(header)
    except GouacheError as error:
        return error


def told_of_folder(entry: Entry) -> GouacheError | None:
    """Why a folder with that pipeline is refused; None if it is taken."""
    try:
        check_pipeline({"_class_name": entry["class"]}, entry["name"])
    except GouacheError as error:
        return error
    return None


def identity_words(found: detect.Identity) -> str:
    """What `identify` says, in words."""
    parts = f" of {', '.join(found.parts)}" if found.kind == "model" else ""
    words = [found.kind + parts, found.family if found.family != "unknown" else "", found.label]
    words += [found.variant] if found.variant != "base" else []
    words += [f"{count} tensors left out: {reason}" for reason, count in found.left_out.items()]
    return "; ".join(filter(None, words))
