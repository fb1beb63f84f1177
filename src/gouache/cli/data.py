"""`gouache data`: build recipes, look into folders of captioned pictures."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from gouache.cli.options import ray_option
from gouache.cli.output import rewrites

if TYPE_CHECKING:
    from gouache.data.readers import Reading

data = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Build and inspect data sets.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Encoding = Annotated[
    str | None,
    typer.Option("--encoding", help="Of captions in text files: utf-8, gbk, cp1252 ... Default: told from each text."),
]


@data.command()
def build(
    recipe: Annotated[str, typer.Argument(help="stickers, or pictures: your own.")],
    folder: Annotated[Path, typer.Argument(help="Where the data set shall be.")],
    tarballs: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="stickers: folder with the tarballs (else npm fetches them). pictures: the source, or a dataset "
            "config of kohya's sd-scripts (.toml, .json).",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Side of the pictures in pixels. Default: a dataset config's resolution, else 128."),
    ] = None,
    buckets: Annotated[bool, typer.Option(help="pictures: keep shapes, in aspect-ratio buckets.")] = False,
    masks: Annotated[
        str,
        typer.Option(
            help="pictures: where the loss counts: files (NAME-mask.png, masks/NAME.png), alpha, conditions, or none."
        ),
    ] = "files",
    missing_caption: Annotated[
        str, typer.Option(help="pictures: caption of those without one; {folder} in it is their folder's name.")
    ] = "",
    regularisation: Annotated[
        Path | None, typer.Option(help="pictures: a folder of pictures of the class, for prior preservation.")
    ] = None,
    encoding: Encoding = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Build a data set from its recipe. The folder appears whole or not at all.

    Examples:
      gouache data build stickers stickers --size 128
      gouache data build pictures mine --from my-pictures --size 128
      gouache data build pictures mine --from dataset.toml
    """
    from gouache.errors import unknown_name

    if recipe not in ("stickers", "pictures"):
        raise unknown_name("recipe", recipe, ("stickers", "pictures"))
    if recipe == "pictures":
        from gouache.data.readers import Reading
        from gouache.data.subsets.planes import MaskSource

        known: dict[str, MaskSource] = {name: name for name in get_args(MaskSource)}
        if masks not in known:
            raise unknown_name("--masks", masks, known)
        reading = Reading(encoding=encoding, missing=missing_caption, masks=known[masks])
        _build_pictures(tarballs, folder, size, reading, regularisation, buckets=buckets, as_json=json)
        return
    from gouache.data.stickers import Stickers
    from gouache.data.stickers_recipe import build_stickers

    _draw(
        (event.done, event.total)
        for event in build_stickers(folder, size=size or 128, tarball_folder=Path(tarballs) if tarballs else None)
    )
    stickers = Stickers.open(folder)
    stickers.verify()
    _print_stickers(stickers.manifest.count, stickers.manifest.counts, folder, as_json=json)


@data.command()
def inspect(
    source: Annotated[str, typer.Argument(help="Folder, .parquet or .tar file, or owner/name on the hub.")],
    encoding: Encoding = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read every picture of a data set; count and list what can't be used.

    Example: gouache data inspect my-pictures
    """
    from gouache.data.readers import Reading, ReadReport, inspect_pictures
    from gouache.data.stickers import Stickers

    if (Path(source) / "pictures.npy").is_file():
        stickers = Stickers.open(source)
        stickers.verify()
        _print_stickers(len(stickers), stickers.manifest.counts, Path(source), as_json=json)
        return
    report = ReadReport()
    found = inspect_pictures(source, report, Reading(encoding=encoding))
    if json:
        skipped = [{"key": key, "reason": reason} for key, reason in report.listed]
        counts = {"pictures": report.good, "broken": report.broken, "empty": report.empty, "skipped": skipped}
        counts |= {"notes": dict(report.notes)}
        buckets = {f"{bucket.width}x{bucket.height}": count for bucket, count in found.buckets.items()}
        facts = {"captions": found.captions, "with_alpha": found.with_alpha, "buckets": buckets}
        typer.echo(json_module.dumps({**counts, **facts}, ensure_ascii=False))
        return
    typer.echo(report.summary())
    typer.echo(f"{found.captions} captions, {found.with_alpha} pictures with alpha")
    for bucket, count in found.buckets.items():
        typer.echo(f"  {bucket.width}x{bucket.height}: {count}")


@data.command()
def caption(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures, searched at any depth.")],
    model: Annotated[
        str,
        typer.Option(help="BLIP or the like: a folder as transformers writes it, or its name in the models folder."),
    ],
    prefix: Annotated[str, typer.Option(help="Words in front of every caption, a trigger word for example.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Write over captions that are there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Describe the pictures of a folder that have no caption, in a .txt beside each.

    Example: gouache data caption my-pictures --model blip-image-captioning-base --prefix "sks dog,"
    """
    from gouache.data.subsets.captioner import Captioner, Described, find_captioner, write_captions

    done = list[Described]()

    def described() -> Iterable[tuple[int, int | None]]:
        for one, total in write_captions(folder, Captioner(find_captioner(model)), prefix=prefix, force=force):
            done.append(one)
            yield len(done), total

    _draw(described(), "Describing")
    written = {one.key: one.caption for one in done if one.caption}
    skipped = [{"key": one.key, "reason": one.reason} for one in done if one.reason]
    kept = len(done) - len(written) - len(skipped)
    if json:
        counts = {"folder": str(folder), "written": written, "kept": kept, "skipped": skipped}
        typer.echo(json_module.dumps(counts, ensure_ascii=False))
        return
    typer.echo(f"{folder}: {len(written)} captions written, {kept} kept, {len(skipped)} pictures without one")
    for key, text in written.items():
        typer.echo(f"  {key}: {text}")
    for one in skipped:
        typer.echo(f"  skipped {one['key']}: {one['reason']}")


@data.command()
def encode(
    folder: Annotated[Path, typer.Argument(help="Folder of captioned pictures, or of a built recipe.")],
    config: Annotated[Path, typer.Option(help="TOML file of the training.")],
    out: Annotated[Path, typer.Option(help="Folder of the run, with what earlier stages left there.")],
    stage: Annotated[str, typer.Option(help="The stage that will train on it.")] = "denoiser",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 lets torch choose.")] = 0,
    ray: Annotated[str | None, ray_option("Encode on a Ray cluster whose nodes see both folders")] = None,
    ray_actors: Annotated[
        int | None,
        typer.Option("--ray-actors", min=1, help="Encoders on the cluster at most. Default: as many as fit."),
    ] = None,
) -> None:
    """Encode a data set's latents and texts into a run's folder, as gouache train does before its first step.

    Whole shards of 2,048 examples are kept, so the same command goes on where it ended.

    Example: gouache data encode stickers --config recipes/pocket.toml --out runs/pocket --ray
    """
    if ray is None:
        from gouache.training.run import encode_data

        events = encode_data(stage, config, folder, out, threads=threads)
    else:
        from gouache.scale.encoding import encode_on_cluster

        events = encode_on_cluster(stage, config, folder, out, address=ray, actors=ray_actors, threads=threads)

    def counted() -> Iterator[tuple[int, int | None]]:
        for event in events:
            if event.note:
                typer.echo(f"gouache: {event.note}", err=True)
            yield event.done, event.total or None

    _draw(counted(), "Encoding")
    for store in sorted(out.glob("encoded-*")):
        typer.echo(str(store))


def _build_pictures(
    source: str | None,
    folder: Path,
    size: int | None,
    reading: Reading,
    regularisation: Path | None,
    *,
    buckets: bool,
    as_json: bool,
) -> None:
    from gouache.data.readers import ReadReport
    from gouache.data.subsets.plan import plan_set
    from gouache.errors import InvalidInput

    if source is None:
        expected = "a folder, .parquet, .tar or owner/name of pictures, or a dataset config"
        raise InvalidInput("--from", given="nothing", expected=expected)
    if size is not None and size < 8:
        raise InvalidInput("--size", given=size, expected="at least 8 pixels")
    report = ReadReport()
    plan = plan_set(source, size=size, keep_shapes=buckets, reading=reading, regularisation=regularisation)
    _draw((done, None) for done in plan.built(folder, report))
    if as_json:
        skipped = [{"key": key, "reason": reason} for key, reason in report.listed]
        counts = {"pictures": report.good, "broken": report.broken, "empty": report.empty, "notes": dict(report.notes)}
        typer.echo(json_module.dumps({"folder": str(folder), **counts, "skipped": skipped}, ensure_ascii=False))
        return
    typer.echo(f"{folder}: {report.summary()}")


def _print_stickers(count: int, counts: dict[str, int], folder: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json_module.dumps({"folder": str(folder), "pictures": count, "styles": counts}))
        return
    styles = ", ".join(f"{number} {style}" for style, number in counts.items())
    typer.echo(f"{folder}: {count} pictures ({styles}); credits in {folder / 'CREDITS.md'}")


def _draw(progress: Iterable[tuple[int, int | None]], verb: str = "Building") -> None:
    """Run a task that yields (done, total) to its end; on a terminal, with a bar on standard error."""
    if not rewrites():
        for _ in progress:
            pass
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=None)
        for done, total in progress:
            bar.update(task, completed=done, total=total, description=f"{verb}: {done} pictures")
