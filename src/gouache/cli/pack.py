"""`gouache pack`: the results of a training as one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pack(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as given to gouache train --out.")],
    out: Annotated[Path, typer.Argument(help="Folder of the model to write; must not be there yet.")],
    config: Annotated[Path, typer.Option(help="The TOML file the run was trained with.")],
    dtype: Annotated[str, typer.Option(help="fp16, bf16 or fp32.")] = "fp16",
    int8: Annotated[
        str, typer.Option(help="Parts whose matrices are stored in int8, with commas: text_encoder,prior.")
    ] = "",
    name: Annotated[str, typer.Option(help="The model's name.")] = "pocket",
    styles: Annotated[str, typer.Option(help="Styles that requests may name, with commas.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the weights, as an SPDX identifier.")] = "",
    ema: Annotated[
        float | None, typer.Option(help="Width of the denoiser's average, one of those tracked; else the config's.")
    ] = None,
) -> None:
    """Put the results of all stages together as one model, for gouache paint --model.

    Example: gouache pack runs/pocket models/mine --config recipes/pocket.toml
    """
    from gouache.training.config import read_config
    from gouache.training.pack import pack as pack_run

    written = pack_run(
        read_config(config, None), run, out, dtype=dtype, int8=_words(int8), name=name, styles=_words(styles),
        licence=licence, ema=ema,
    )  # fmt: skip
    typer.echo(written)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
