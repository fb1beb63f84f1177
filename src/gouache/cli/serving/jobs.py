"""`gouache jobs`: the studio's queue from the command line, also while no server runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gouache.environment import Variable

if TYPE_CHECKING:
    from gouache.serve.queue.job import Job
    from gouache.serve.studio import Studio

app = typer.Typer(help="List, cancel, retry and export the studio's jobs; back the studio up.", no_args_is_help=True)
Data = Annotated[Path | None, typer.Option(help="The studio's data folder. Default: the user's.")]
Store = Annotated[
    str | None, typer.Option(envvar=Variable.STORE, help="The store's URL. Default: SQLite in the data folder.")
]
Files = Annotated[
    str | None,
    typer.Option(
        envvar=Variable.FILES,
        help="URL of the object store with its pictures. Default: none; they lie in the data folder.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _studio(data: Path | None, store: str | None, files: str | None = None) -> Studio:
    from gouache.checkpoints.hub import data_folder
    from gouache.serve.settings import Settings
    from gouache.serve.studio import Studio

    return Studio(Settings(data=(data or data_folder()).expanduser(), store=store, files=files, workers=0))


def _plain(job: Job) -> dict[str, object]:
    return {
        "id": job.id,
        "state": job.state,
        "owner": job.owner,
        "source": job.source,
        "created": job.created,
        "progress": job.fraction,
        "attempts": job.attempts,
        "error": job.error_parts(),
        "prompt": job.parsed().prompt,
    }


@app.command("list")
def listing(
    data: Data = None,
    store: Store = None,
    state: Annotated[list[str] | None, typer.Option(help="queued, running, done, failed, cancelled.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many, newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    found = _studio(data, store).jobs.listing(states=state or (), limit=limit)
    if as_json:
        typer.echo(json.dumps({"jobs": [_plain(job) for job in found]}, ensure_ascii=False))
        return
    for job in found:
        typer.echo(f"{job.id}  {job.state:9}  {job.fraction:4.0%}  {job.owner:12}  {job.parsed().prompt[:60]}")


@app.command()
def cancel(job: Annotated[str, typer.Argument(help="A job's id.")], data: Data = None, store: Store = None) -> None:
    """Stop one job after its current step, or take it out of the queue."""
    typer.echo(_studio(data, store).cancel(job, None).state)


@app.command()
def retry(
    job: Annotated[str, typer.Argument(help="A job's id.")], data: Data = None, store: Store = None, files: Files = None
) -> None:
    """Put a failed or cancelled job back into the queue."""
    typer.echo(_studio(data, store, files).retry(job, None).state)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where to put the pictures; made if it is missing.")],
    data: Data = None,
    store: Store = None,
    files: Files = None,
) -> None:
    """Copy every picture, with an index.jsonl of prompts, seeds and recipes."""
    from gouache.files import write_bytes
    from gouache.serve.store.gallery import describe

    studio = _studio(data, store, files)
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    before: int | None = None
    while page := studio.pictures.search(limit=200, before=before):
        for picture in page:
            write_bytes(folder / picture.file, studio.file_store.read("pictures", picture.file), force=True)
            lines.append(describe(picture) + "\n")
        before = page[-1].seq
    write_bytes(folder / "index.jsonl", "".join(lines).encode(), force=True)
    typer.echo(f"{len(lines)} pictures")


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="A new tar file.")],
    data: Data = None,
    store: Store = None,
    files: Files = None,
) -> None:
    """Write jobs, pictures, accounts and settings into one file; the server may run meanwhile."""
    from gouache.serve.store.upkeep import back_up

    studio = _studio(data, store, files)
    typer.echo(f"{back_up(studio.database, studio.file_store, file)} pictures")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `backup` wrote.")],
    data: Data = None,
    store: Store = None,
    files: Files = None,
) -> None:
    """Fill an empty studio from a backup."""
    from gouache.serve.store.upkeep import restore as fill

    studio = _studio(data, store, files)
    typer.echo(f"{fill(studio.database, studio.file_store, file)} pictures")
