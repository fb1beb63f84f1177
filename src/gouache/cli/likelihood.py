"""`gouache likelihood`: bits of a picture with and without its caption."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gouache.pipeline.likelihood import Likelihood


def likelihood(
    picture: Annotated[Path, typer.Argument(help="The picture.")],
    caption: Annotated[str, typer.Argument(help="What it should show.")],
    model: Annotated[str | None, typer.Option(help="Path or name of the model; the shipped one without it.")] = None,
    levels: Annotated[int, typer.Option(min=1, help="Noise levels of the estimate.")] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps.")] = None,
) -> None:
    """Say how many bits a picture costs under the prior and under the diffusion model, with its caption and without.

    The difference is an alignment score: how much the caption helps to foretell the picture.
    Example: gouache likelihood apple.png "a red apple, 3d style"
    """
    from json import dumps

    from gouache.pipeline.library import open_pipeline
    from gouache.pipeline.likelihood import picture_likelihood
    from gouache.pipeline.pixels import read_picture

    image = read_picture(picture, where=str(picture))
    pipeline, note = open_pipeline(model, device=device)
    if note:
        typer.echo(f"gouache: {note}", err=True)
    found = picture_likelihood(pipeline.bundle, image, caption, levels=levels, seed=seed)
    if as_json:
        typer.echo(dumps({"picture": str(picture), "caption": caption, **found.to_dict()}, ensure_ascii=False))
        return
    for line in _lines(found):
        typer.echo(line)


def _lines(found: Likelihood) -> list[str]:
    lines = [
        f"diffusion: {found.diffusion:.1f} bits with the caption, {found.diffusion_without:.1f} without "
        f"({found.diffusion / found.dimensions:.3f} a dimension of {found.dimensions})",
        f"diffusion alignment: {found.diffusion_alignment:+.1f} bits",
    ]
    if found.prior is not None and found.prior_without is not None:
        lines.append(
            f"prior: {found.prior:.1f} bits with the caption, {found.prior_without:.1f} without "
            f"({found.prior / found.tokens:.3f} a token of {found.tokens})"
        )
        lines.append(f"prior alignment: {found.prior_alignment:+.1f} bits")
    return lines
