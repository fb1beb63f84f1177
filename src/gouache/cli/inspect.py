"""`gouache inspect` says what a weight file or a model folder is; `gouache convert` writes it in another layout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gouache.models.family import UNKNOWN, family_label

if TYPE_CHECKING:
    from gouache.checkpoints.detect import Identity
    from gouache.errors import GouacheError

NAMINGS = {
    "ours": "diffusers",
    "old_diffusers": "old diffusers",
    "clip_model": "CLIP",
    "open_clip": "OpenCLIP",
    "ldm": "CompVis",
}
LONGEST_SHOWN = 100


def inspect(
    model: Annotated[str, typer.Argument(help="A weight file, a model folder, or a name that `gouache models` lists.")],
    sha256: Annotated[bool, typer.Option("--sha256", help="Read the whole files and print their sha256.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Identify a file or folder: family, parts, types, parameters, prediction type, metadata.

    Says too whether it loads, and if not, why, in the words in which loading would refuse it. Reads headers only, of
    small models the numbers too; --sha256 reads everything. Nothing in the file is ever executed.

    Example: gouache inspect model.safetensors --json
    """
    from gouache.checkpoints.identify import identify

    path = _found(model)
    identity = identify(path)
    found = describe(path, identity)
    reason = _why_not(path, identity, whole=sha256)
    found |= {"loads": reason is None, "reason": "" if reason is None else str(reason)}
    if sha256:
        found["sha256"] = _sums(path)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        _print(found)


def _why_not(path: Path, identity: Identity, *, whole: bool) -> GouacheError | None:
    """Why a model doesn't load, by the function that loads it; None if it does."""
    from gouache.checkpoints.load import why_not

    return why_not(path, identity, whole=whole)


def _found(name: str) -> Path:
    """The path of a model, an adapter, a ControlNet or an IP-Adapter by path or name."""
    from gouache.checkpoints.adapters.controlnet_library import list_controls
    from gouache.checkpoints.adapters.ip_adapter_library import list_ip_adapters
    from gouache.checkpoints.adapters.library import list_adapters
    from gouache.checkpoints.hub import find
    from gouache.errors import ModelNotFound

    try:
        return find(name)
    except ModelNotFound:
        adapter = next((file.path for file in list_adapters() if name in file.names), None)
        places = {one.name: one.path for one in list_ip_adapters()} | {one.name: one.path for one in list_controls()}
        found = adapter or places.get(name)
        if found is None:
            raise
        return found


def describe(path: Path, identity: Identity) -> dict[str, Any]:
    """An identity as plain values."""
    return {
        "path": str(path),
        "kind": identity.kind,
        "family": identity.family,
        "variant": identity.variant,
        "layout": identity.layout,
        "label": identity.label,
        "changes": _changes(path, identity),
        "prediction": identity.prediction,
        "prediction_source": identity.prediction_source,
        "sampling": identity.sampling,
        "notes": [*identity.notes, *_advice(path, identity)],
        "parameters": sum(part.parameters for part in identity.parts.values()),
        "parts": {
            name: {
                "file": str(part.header.path),
                "naming": part.naming,
                "dtypes": list(part.dtypes),
                "tensors": len(part.tensors()),
                "parameters": part.parameters,
                "config": part.config.model_dump(mode="json"),
            }
            for name, part in identity.parts.items()
        },
        "left_out": dict(identity.left_out),
        "unexplained": list(identity.unexplained),
        "loading_notes": list(identity.notes_on_loading()),
        "metadata": _metadata(path, identity),
    }


def _changes(path: Path, identity: Identity) -> str:
    """What a LoRA changes, and what PEFT says beside it; empty for anything else."""
    from gouache.checkpoints.adapters.keys import lora_summary
    from gouache.checkpoints.adapters.peft_config import PeftSettings, weights_of
    from gouache.checkpoints.formats.header import open_header

    file = weights_of(path) if path.is_dir() else path
    if identity.kind != "lora" or file is None:
        return ""
    header = open_header(file)
    return "; ".join((lora_summary(header.tensors), *PeftSettings.of(header).notes))


def _advice(path: Path, identity: Identity) -> list[str]:
    """What a file that only its name, or a LoRA's metadata, calls a few-step one is painted with."""
    few_steps, what = identity.few_steps, "the model"
    if identity.kind == "lora":
        from gouache.checkpoints.adapters.library import few_steps_of_lora

        few_steps, what = few_steps_of_lora(path), "the LoRA"
    asks = few_steps is not None and (identity.kind == "lora" or few_steps.source == "name")
    return [f"{few_steps.advice(what)}; say so in the request"] if few_steps is not None and asks else []


def _metadata(path: Path, identity: Identity) -> dict[str, str]:
    """The file's own strings; a folder's are its parts' and say nothing of the whole."""
    if path.is_dir():
        return {}
    for part in identity.parts.values():
        return dict(part.header.metadata)
    from gouache.checkpoints.formats.header import open_header

    return dict(open_header(path).metadata)


def _sums(path: Path) -> dict[str, str]:
    from gouache.checkpoints.hub import file_sha256

    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix() if path.is_dir() else file.name: file_sha256(file) for file in files}


def _print(found: Mapping[str, Any]) -> None:
    rows = [
        ("file", found["path"]),
        ("is", _what(found)),
        ("layout", found["layout"]),
        ("changes", found["changes"]),
        ("prediction", f"{found['prediction']} ({found['prediction_source']})" if found["prediction"] else ""),
        ("unknown", found["prediction_source"] if not found["prediction"] else ""),
        ("sampling", found["sampling"]),
        ("parameters", short_count(found["parameters"]) if found["parts"] else ""),
    ]
    for label, value in rows:
        if value:
            typer.echo(f"{'prediction' if label == 'unknown' else label:<12}{value}")
    for note in found["notes"]:
        typer.echo(f"{'note':<12}{note}")
    for name, part in found["parts"].items():
        types = "/".join(part["dtypes"])
        typer.echo(f"  {name:<16}{short_count(part['parameters']):>8}  {types:<9} {NAMINGS[part['naming']]} names")
    for reason, count in found["left_out"].items():
        typer.echo(f"{'left out':<12}{count} tensors: {reason}")
    for note in found["loading_notes"]:
        typer.echo(f"{'note':<12}{note}")
    typer.echo(f"{'loads':<12}{'yes' if found['loads'] else 'no: ' + found['reason']}")
    for key, value in found["metadata"].items():
        if key.startswith("gouache.config."):
            continue  # the parts' configs: --json shows them
        text = " ".join(str(value).split())
        shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text)} characters)"
        typer.echo(f"{'metadata':<12}{key} = {shown}")
    for file, digest in found.get("sha256", {}).items():
        typer.echo(f"{'sha256':<12}{digest}  {file}")


def _what(found: Mapping[str, Any]) -> str:
    family = family_label(found["family"])
    variant = "" if found["variant"] == "base" else f", {found['variant']}"
    label = f" ({found['label']})" if found["label"] else ""
    return (
        f"{found['kind']} of {family}{variant}{label}"
        if found["family"] != UNKNOWN.name
        else f"{found['kind']}{label}; {family}"
    )


def short_count(number: int) -> str:
    """A count for people: 860 M, 1.3 k."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number // size} {unit}"
    return str(number)


class TargetLayout(StrEnum):
    """Layouts that can be written."""

    diffusers = "diffusers"
    single_file = "single-file"
    gouache = "gouache"


class Precision(StrEnum):
    """Types that weights can be written in."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


def convert(
    source: Annotated[str, typer.Argument(help="A model: file, folder, or a name that `gouache models` lists.")],
    target: Annotated[Path, typer.Argument(help="Where to write; nothing may be there yet.")],
    to: Annotated[TargetLayout, typer.Option("--to", help="The layout to write.")],
    dtype: Annotated[Precision | None, typer.Option("--dtype", help="Change the type; else bit for bit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Convert a model to a diffusers folder, a single file, or gouache's own format.

    Tensors pass one at a time, so models larger than memory convert too. With --to gouache, a target that ends in
    .safetensors becomes one file, any other a folder.

    Example: gouache convert v1-5.ckpt v1-5 --to diffusers --dtype fp16
    """
    from gouache.checkpoints.convert import PRECISIONS
    from gouache.checkpoints.convert import convert as convert_model
    from gouache.checkpoints.hub import find

    started = time.perf_counter()
    told = counter()
    identity = convert_model(
        find(source), target, to.value, dtype=PRECISIONS[dtype.value] if dtype else None, on_tensor=told
    )
    seconds = round(time.perf_counter() - started, 2)
    left_out = dict(identity.left_out)
    if as_json:
        result = {
            "path": str(target),
            "family": identity.family,
            "to": to.value,
            "seconds": seconds,
            "left_out": left_out,
        }
        typer.echo(json.dumps(result))
        return
    typer.echo(str(target))
    for reason, count in left_out.items():
        typer.echo(f"left out: {count} tensors: {reason}", err=True)


def counter() -> Callable[[str], None]:
    """A line on standard error that counts tensors, on a terminal only."""
    from gouache.cli.output import rewrites

    if not rewrites():
        return lambda _: None
    count = 0

    def told(name: str) -> None:
        nonlocal count
        count += 1
        sys.stderr.write(f"\r{count} tensors, {name[:60]:<60}")
        sys.stderr.flush()

    return told
