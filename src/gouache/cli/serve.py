"""`gouache serve`: the studio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; anything but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 7860,
    data: Annotated[Path | None, typer.Option(help="Folder of pictures and store; the user's data folder.")] = None,
    store: Annotated[str | None, typer.Option(envvar="GOUACHE_STORE", help="SQLAlchemy URL, for PostgreSQL.")] = None,
    models: Annotated[list[Path] | None, typer.Option(help="Folder with models; may be repeated.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of requests that name none.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="Name under which the studio is reached.")] = None,
    workers: Annotated[int, typer.Option(help="Worker processes; 0 if they run elsewhere.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps; a card if there is one.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of a worker; 0 leaves the choice to torch.")] = 0,
    page: Annotated[bool, typer.Option(help="Serve the web page at /.")] = True,
    search_tower: Annotated[
        Path | None, typer.Option(help="What `gouache train clip` left, to search pictures by what they show.")
    ] = None,
    admin: Annotated[list[str] | None, typer.Option(help="User who may train and fetch models, beside admin.")] = None,
    watermark: Annotated[str | None, typer.Option(help="Text to hide in every picture; at most 32 bytes.")] = None,
    safety: Annotated[
        str, typer.Option(help="off, blur or block: for pictures that the safety checker finds.")
    ] = "off",
    safety_checker: Annotated[Path | None, typer.Option(help="Its weights, in diffusers' layout.")] = None,
    new_token: Annotated[str | None, typer.Option(help="Make a token for this user, print it once, leave.")] = None,
    new_user: Annotated[str | None, typer.Option(help="Make an account; the password is asked for. Leave.")] = None,
) -> None:
    """Serve the web page and three APIs: /v1, A1111's /sdapi/v1 and OpenAI's /v1/images.

    Example: gouache serve --models ~/models
    """
    from gouache.serve.server import make_settings, run
    from gouache.serve.studio import Studio

    settings = make_settings(
        data=data,
        host=host,
        port=port,
        store=store,
        models=tuple(models or ()),
        default_model=model,
        allowed_hosts=tuple(allow_host or ()),
        workers=workers,
        device=device,
        threads=threads,
        page=page,
        admins=tuple(admin or ()),
        search_tower=search_tower,
        watermark=watermark,
        safety=safety,
        safety_checker=safety_checker,
    )
    studio = Studio(settings)
    if new_token is not None:
        typer.echo(studio.accounts.new_token(new_token))
    if new_user is not None:
        studio.accounts.set_password(new_user, typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    if new_token is None and new_user is None:
        run(studio, announce=typer.echo)
