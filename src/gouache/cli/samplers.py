"""`gouache samplers`: every sampler and sigma schedule with the names that other tools use."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from gouache.diffusion.sampler_table import NOT_OFFERED, SAMPLER_INFOS, SCHEDULE_INFOS


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
    table = Table("sampler", "known as", "schedule", "random", "order", "calls", "also", title="Samplers")
    for info in SAMPLER_INFOS.values():
        table.add_row(
            info.name, info.label, info.default_schedule, info.stochastic, str(info.order), str(info.calls),
            ", ".join(info.aliases),
        )  # fmt: skip
    console.print(table)
    schedules = Table("schedule", "known as", "also", "source", title="Sigma schedules")
    for schedule in SCHEDULE_INFOS.values():
        schedules.add_row(schedule.name, schedule.label, ", ".join(schedule.aliases), schedule.source)
    console.print(schedules)
