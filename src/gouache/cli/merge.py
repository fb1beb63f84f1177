"""`gouache merge`: models and LoRA files into a new model, or a LoRA out of two models."""

from __future__ import annotations

import json
import re
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gouache.cli.inspect import Precision, counter
from gouache.errors import InvalidInput

if TYPE_CHECKING:
    from gouache.checkpoints.merging.loras import LoraToMerge
    from gouache.checkpoints.merging.models import MergePlan
    from gouache.checkpoints.save import Format

LORA_FORM = "FILE[:WEIGHT[:TEXT WEIGHT]]"
_WEIGHTED = re.compile(r"(?P<file>.+?)(?::(?P<unet>[-+]?\d*\.?\d+))?(?::(?P<text>[-+]?\d*\.?\d+))?")


class MergeLayout(StrEnum):
    """What is written."""

    diffusers = "diffusers"
    single_file = "single-file"
    gouache = "gouache"
    lora = "lora"


Weight = Annotated[
    list[float] | None,
    typer.Option(
        "--weight",
        "-w",
        help="Share of each model behind the first, in order; the first has the rest. Default: 0.5, of a difference 1.",
    ),
]
Blocks = Annotated[
    str | None,
    typer.Option("--blocks", help="Weights of the U-Net's blocks: all of IN00 to OUT11, or IN00=0.2,M00=1."),
]
Loras = Annotated[list[str] | None, typer.Option("--lora", help=f"{LORA_FORM}: merge a LoRA too; may be repeated.")]
To = Annotated[
    MergeLayout | None,
    typer.Option("--to", help="Layout; lora writes A - B as a LoRA, or the LoRA files as one, for model A."),
]
Rank = Annotated[int | None, typer.Option("--rank", help="With --to lora: rank. Default: 16; of files, all.")]


def merge(
    models: Annotated[list[str], typer.Argument(help="Models A, B, C ...: files, folders or names.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write; nothing may be there yet.")],
    weight: Weight = None,
    add_difference: Annotated[
        bool, typer.Option("--add-difference", help="A + weight * (B - C), in place of a weighted sum.")
    ] = False,
    blocks: Blocks = None,
    base: Annotated[float | None, typer.Option("--base", help="Weight of all parts but the U-Net.")] = None,
    vae: Annotated[int | None, typer.Option("--vae", min=1, help="Take the VAE of this model, 1 = A.")] = None,
    text: Annotated[int | None, typer.Option("--text", min=1, help="Take this model's text encoders.")] = None,
    lora: Loras = None,
    to: To = None,
    rank: Rank = None,
    conv_rank: Annotated[int, typer.Option("--conv-rank", help="The same for convolutions; 0 leaves them out.")] = 0,
    dtype: Annotated[Precision | None, typer.Option("--dtype", help="Type that is written. Default: A's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Merge models, merge LoRA files into a model, or write the difference of two models as a LoRA.

    Tensors pass one at a time, so that models larger than memory merge too. What was merged stands in the file.

    Examples:
    gouache merge a.safetensors b.safetensors -w 0.3 -o c.safetensors
    gouache merge a.safetensors --lora film.safetensors:0.8 -o c.safetensors
    gouache merge tuned.safetensors base.safetensors --to lora --rank 32 -o style.safetensors
    """
    from gouache.checkpoints.convert import PRECISIONS
    from gouache.checkpoints.hub import find
    from gouache.checkpoints.merging.models import MergePlan

    started = time.perf_counter()
    paths = [find(name) for name in models]
    plan = MergePlan(
        method="add-difference" if add_difference else "weighted-sum",
        weights=tuple(weight or ()),
        blocks=blocks,
        base=base,
        vae=vae,
        text=text,
        loras=tuple(read_lora_option(one) for one in lora or ()),
        dtype=PRECISIONS[dtype.value] if dtype else None,
    )
    if to is MergeLayout.lora:
        notes = _to_lora(paths, output, plan, rank, conv_rank)
    else:
        if rank is not None or conv_rank:
            raise InvalidInput("--rank", given="a rank", expected="--to lora beside it")
        notes = _to_model(paths, output, plan, to)
    if as_json:
        seconds = round(time.perf_counter() - started, 2)
        typer.echo(json.dumps({"path": str(output), "seconds": seconds, "notes": list(notes)}))
        return
    typer.echo(str(output))
    for note in notes:
        typer.echo(note, err=True)


def _to_model(paths: list[Path], output: Path, plan: MergePlan, to: MergeLayout | None) -> tuple[str, ...]:
    from gouache.checkpoints.merging.models import merge as merge_models

    if len(paths) == 1 and not plan.loras:
        raise InvalidInput("models", given="one, and no LoRA", expected="two or more, or --lora FILE")
    layouts: dict[MergeLayout | None, Format] = {
        MergeLayout.diffusers: "diffusers",
        MergeLayout.single_file: "single-file",
        MergeLayout.gouache: "gouache",
    }
    return merge_models(paths, output, plan, to=layouts.get(to), on_tensor=counter()).notes


def _to_lora(paths: list[Path], output: Path, plan: MergePlan, rank: int | None, conv_rank: int) -> tuple[str, ...]:
    from gouache.checkpoints.convert import PRECISIONS
    from gouache.checkpoints.merging.loras import extract_lora, merge_loras

    dtype = plan.dtype or PRECISIONS["fp16"]
    if plan.weights or plan.blocks or plan.base is not None or plan.vae or plan.text or plan.method != "weighted-sum":
        raise InvalidInput("--to lora", given="weights of models", expected="A and B, or A and --lora files")
    if plan.loras and len(paths) == 1:
        return merge_loras(plan.loras, paths[0], output, rank=rank, dtype=dtype)
    if plan.loras or len(paths) != 2:
        raise InvalidInput(
            "--to lora",
            given=f"{len(paths)} models and {len(plan.loras)} LoRA files",
            expected="two models, whose difference is written, or one model and the files that are put together",
        )
    return extract_lora(
        paths[0], paths[1], output, rank=rank or 16, conv_rank=conv_rank, dtype=dtype, on_layer=counter()
    )


def read_lora_option(text: str) -> LoraToMerge:
    """``FILE``, ``FILE:0.8`` or ``FILE:0.8:0.5``; the last is the text encoders' weight. A name of the adapters' folder
    is found too.

    Raises:
        ModelNotFound: there is no such file.
    """
    from gouache.checkpoints.adapters.library import AdapterFolder
    from gouache.checkpoints.merging.loras import LoraToMerge

    found = _WEIGHTED.fullmatch(text)
    if found is None:
        raise InvalidInput("--lora", given=repr(text), expected=LORA_FORM)
    path = Path(found["file"])
    if not path.exists():
        path = AdapterFolder().lora(found["file"]).path
    unet = float(found["unet"] or 1.0)
    return LoraToMerge(path, unet, unet if found["text"] is None else float(found["text"]))
