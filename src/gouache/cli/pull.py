"""`gouache pull`: fetch a model from the Hugging Face hub."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer


def pull(
    repo: Annotated[str, typer.Argument(help="Repository, for example CompVis/stable-diffusion-v1-4.")],
    token: Annotated[str | None, typer.Option("--token", help="For gated models; else HF_TOKEN or the login.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
    variant: Annotated[str | None, typer.Option("--variant", help="Which weights to prefer, for example fp16.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fetch a model's weights, configs and tokenizer; never code. A download that stopped goes on where it was.

    Example: gouache pull CompVis/stable-diffusion-v1-4 --variant fp16
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from gouache.checkpoints.hub import pull as pull_model
    from gouache.checkpoints.identify import identify

    path = pull_model(repo, token=token, revision=revision, variant=variant)
    identity = identify(path, variant=variant)
    if as_json:
        typer.echo(json.dumps({"path": str(path), "name": repo, "kind": identity.kind, "family": identity.family}))
    else:
        typer.echo(str(path))
