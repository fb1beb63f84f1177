"""`gouache models` lists the models on this machine; `gouache pull` fetches one."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gouache.checkpoints.adapters.conditioning_files import ConditioningFile
    from gouache.checkpoints.adapters.library import AdapterFile
    from gouache.checkpoints.hub import OnDisk


def models(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List the models on the disk, in the models folder and in the hub's cache, adapters and ControlNets beside them.

    Adapters (LoRA files, textual inversions) lie in adapters, loras or embeddings inside the models folder; a prompt
    names them: <lora:NAME:0.8>, or an inversion's name as a word. ControlNets lie in controlnet, or come by pull;
    --control NAME:PICTURE uses one. IP-Adapters lie in ipadapter or controlnet, with their vision tower in
    image_encoder beside them; --image-prompt NAME:PICTURE uses one. The models folder is GOUACHE_MODELS, else models in
    GOUACHE_DATA, else in the platform's folder for data.

    Example: gouache models --json
    """
    from gouache.checkpoints.adapters.controlnet_library import list_controls
    from gouache.checkpoints.adapters.ip_adapter_library import list_ip_adapters
    from gouache.checkpoints.adapters.library import list_adapters
    from gouache.checkpoints.hub import model_folders, on_disk

    listing = [_describe(model) for model in on_disk()]
    adapters = [_describe_adapter(file) for file in list_adapters()]
    controls = [_describe_conditioning("controlnet", file) for file in list_controls()]
    pictures = [_describe_conditioning("IP-Adapter", file) for file in list_ip_adapters()]
    if as_json:
        folders = [str(folder) for folder in model_folders()]
        lists = {"models": listing, "adapters": adapters, "controls": controls, "ip_adapters": pictures}
        typer.echo(json.dumps({"folders": folders, **lists}))
        return
    for each in (*listing, *adapters, *controls, *pictures):
        typer.echo(f"{each['name']:<44} {_size(int(str(each['bytes']))):>9}  {each['is']}")
    if not listing:
        places = " and ".join(str(folder) for folder in model_folders())
        typer.echo(f"No models yet in {places}. Fetch one: gouache pull OWNER/NAME", err=True)


def _describe(model: OnDisk) -> dict[str, object]:
    """What a model is, or why it can't be used: one bad file must not hide the others."""
    from gouache.checkpoints.identify import identify
    from gouache.errors import GouacheError

    try:
        identity = identify(model.path)
        what = f"{identity.family} {identity.kind}" + ("" if identity.variant == "base" else f", {identity.variant}")
        if identity.few_steps is not None:
            what += f", {identity.few_steps.summary}"
    except GouacheError as error:
        what = f"unusable: {error.given}"
    return {"name": model.name, "path": str(model.path), "bytes": model.bytes, "is": what}


def _describe_adapter(file: AdapterFile) -> dict[str, object]:
    family = "" if file.family == "unknown" else f"{file.family} "
    return {
        "name": file.name,
        "aliases": list(file.aliases),
        "path": str(file.path),
        "bytes": file.bytes,
        "kind": file.kind,
        "family": file.family,
        "is": f"{family}{file.kind}" + (f", {file.label}" if file.label else ""),
    }


def _describe_conditioning(kind: str, file: ConditioningFile) -> dict[str, object]:
    family = "" if file.family == "unknown" else f"{file.family} "
    return {
        "name": file.name,
        "path": str(file.path),
        "bytes": file.bytes,
        "family": file.family,
        "is": f"{family}{kind}, {file.label}",
    }


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def pull(
    repo: Annotated[str, typer.Argument(help="Repository, for example CompVis/stable-diffusion-v1-4.")],
    token: Annotated[str | None, typer.Option("--token", help="For gated models; else HF_TOKEN or the login.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
    variant: Annotated[str | None, typer.Option("--variant", help="Which weights to prefer, for example fp16.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Download a model's weights, configs and tokenizer; never code. Interrupted downloads resume.

    Example: gouache pull CompVis/stable-diffusion-v1-4 --variant fp16
    """
    from gouache.cli.output import rewrites

    if not rewrites():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from gouache.checkpoints.hub import pull as pull_model
    from gouache.checkpoints.identify import identify

    path = pull_model(repo, token=token, revision=revision, variant=variant)
    identity = identify(path, variant=variant)
    if as_json:
        typer.echo(json.dumps({"path": str(path), "name": repo, "kind": identity.kind, "family": identity.family}))
    else:
        typer.echo(str(path))
