"""`gouache worker`: workers without a web server. Its options are some of the fields of `Settings`, as `serve` has."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from gouache.cli.serving.serve import option_of
from gouache.serve.settings import Settings

FIELDS = (
    *("store", "files", "data", "models", "default_model", "workers", "device", "threads"),
    *("safety_checker", "search_tower"),
)
"""What concerns whoever paints; the rest concerns whoever answers requests."""
RAY = "Address of a cluster of Ray, HOST:PORT or auto: its machines run the workers, as actors."
GPUS = "With --ray: GPUs of the cluster that each worker takes; a part of one if several share it."


def _worker(**given: Any) -> None:
    """Paint the jobs of a studio on this machine, without a web server; or on a cluster of Ray.

    Example: gouache worker --store postgresql+psycopg://user@host/gouache --files s3://bucket/studio
    """
    from gouache.serve.start import make_settings

    ray, gpus = given.pop("ray"), given.pop("gpus")
    if ray is None:
        from gouache.serve.worker.host import run_workers

        run_workers(make_settings(given), announce=typer.echo)
    else:
        from gouache.serve.worker.ray_workers import run_on_ray

        run_on_ray(make_settings(given), ray, gpus, announce=typer.echo)


_PARAMETERS = [
    *(option_of(name, Settings.model_fields[name]) for name in FIELDS),
    inspect.Parameter(
        "ray",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, typer.Option("--ray", metavar="ADDRESS", help=RAY)],
    ),
    inspect.Parameter(
        "gpus", inspect.Parameter.KEYWORD_ONLY, default=0.0, annotation=Annotated[float, typer.Option(min=0, help=GPUS)]
    ),
]
worker = _worker
worker.__name__ = "worker"
worker.__signature__ = inspect.Signature(_PARAMETERS)  # type: ignore[attr-defined]
worker.__annotations__ = {parameter.name: parameter.annotation for parameter in _PARAMETERS}
