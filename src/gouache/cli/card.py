"""`gouache card`: the page that goes with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def card(
    model: Annotated[Path, typer.Argument(help="Folder that gouache pack wrote.")],
    data: Annotated[Path, typer.Option(help="Folder of the sticker set it learnt from.")],
    run: Annotated[list[Path] | None, typer.Option(help="Folder of its training; may be given several times.")] = None,
    config: Annotated[Path | None, typer.Option(help="The TOML file of the training, shown whole.")] = None,
    evaluation: Annotated[Path | None, typer.Option("--eval", help="JSON that gouache eval wrote.")] = None,
    words: Annotated[Path | None, typer.Option(help="Markdown to begin with: purpose, limits, more credits.")] = None,
) -> None:
    """Write README.md and CREDITS.md beside a model's weights: figures, data, training, credits.

    Example: gouache card models/mine --data stickers --run runs/pocket --eval eval.json --words recipes/pocket_card.md
    """
    from gouache.training.model_card import write_model_card

    typer.echo(write_model_card(model, data=data, runs=run or (), config=config, evaluation=evaluation, words=words))
