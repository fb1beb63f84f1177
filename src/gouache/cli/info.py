"""`gouache samplers` and `gouache doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from gouache.diffusion.samplers.names import NOT_OFFERED, SAMPLER_INFOS, SCHEDULE_INFOS


def samplers(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """List every sampler and every sigma schedule, with their aliases."""
    if as_json:
        listing = {
            "samplers": [asdict(info) for info in SAMPLER_INFOS.values()],
            "schedules": [asdict(info) for info in SCHEDULE_INFOS.values()],
            "not_offered": NOT_OFFERED,
        }
        typer.echo(json.dumps(listing, ensure_ascii=False))
        return
    _print_tables()


def _print_tables() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("sampler", "random", "order", "calls", "schedule", "also known as", title="Samplers")
    table.columns[0].no_wrap = table.columns[4].no_wrap = True
    for info in SAMPLER_INFOS.values():
        names = ", ".join((info.label, *info.aliases))
        table.add_row(info.name, info.stochastic, str(info.order), str(info.calls), info.default_schedule, names)
    console.print(table)
    schedules = Table("schedule", "also known as", "source", title="Sigma schedules")
    schedules.columns[0].no_wrap = True
    for schedule in SCHEDULE_INFOS.values():
        schedules.add_row(schedule.name, ", ".join((schedule.label, *schedule.aliases)), schedule.source)
    console.print(schedules)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show versions, processor features, devices, free memory and model folders.

    Example: gouache doctor --json
    """
    from gouache.pipeline.doctor import checkup

    found = checkup()
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    for section, values in found.items():
        typer.echo(f"{section}:")
        for key, value in values.items():
            typer.echo(f"  {key}: {value}")
