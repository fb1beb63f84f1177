"""`gouache convert`: write a model in another layout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Layout(StrEnum):
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
    to: Annotated[Layout, typer.Option("--to", help="The layout to write.")],
    dtype: Annotated[Precision | None, typer.Option("--dtype", help="Change the type; else bit for bit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model as a diffusers folder, a single file, or in gouache's own format.

    Tensors pass one at a time, so models larger than memory convert too. With --to gouache, a target that ends in
    .safetensors becomes one file, any other a folder.

    Example: gouache convert v1-5.ckpt v1-5 --to diffusers --dtype fp16
    """
    from gouache.checkpoints.convert import PRECISIONS
    from gouache.checkpoints.convert import convert as convert_model
    from gouache.checkpoints.hub import find

    started = time.perf_counter()
    told = _counter()
    identity = convert_model(
        find(source), target, to.value, dtype=PRECISIONS[dtype.value] if dtype else None, told=told
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


def _counter() -> Callable[[str], None]:
    """A line on standard error that counts tensors, on a terminal only."""
    if not sys.stderr.isatty():
        return lambda _: None
    count = 0

    def told(name: str) -> None:
        nonlocal count
        count += 1
        sys.stderr.write(f"\r{count} tensors, {name[:60]:<60}")
        sys.stderr.flush()

    return told
