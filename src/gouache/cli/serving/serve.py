"""`gouache serve`, the studio, and `gouache worker`, its workers alone.

Their options are the fields of `Settings`, as those of `paint` are those of `Request`.
"""

from __future__ import annotations

import inspect
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from gouache.environment import Variable
from gouache.serve.settings import Settings

FLAGS = {
    "default_model": "--model",
    "model_aliases": "--model-alias",
    "allowed_hosts": "--allow-host",
    "admins": "--admin",
    "device": "--device --devices",
}
"""Fields whose option has another name, or two."""
VARIABLES = {"store": Variable.STORE, "files": Variable.FILES}
"""Fields that an environment variable sets too."""
WITHOUT_OPTION = ("model_memory", "lease", "grace", "wait", "limits")
"""Fields that only an embedding program sets."""
ACCOUNTS = {
    "new_token": "Create a token for this user, print it once and exit, as gouache accounts add.",
    "new_user": "Create an account, or change its password, which is asked for; then exit.",
    "revoke_token": "Revoke every token of this user and exit; see gouache accounts.",
}
"""Options that do not serve."""


PAINTING = (
    *("store", "files", "data", "models", "default_model", "workers", "device", "dtype", "engine"),
    *("threads", "safety_checker", "search_tower"),
)
"""What concerns whoever paints; the rest concerns whoever answers requests."""
RAY = "Address of a cluster of Ray, HOST:PORT or auto: its machines run the workers, as actors."
GPUS = "With --ray: GPUs of the cluster that each worker takes; a part of one if several share it."


def _serve(**given: Any) -> None:
    """Serve the web page and three APIs: /v1, A1111's /sdapi/v1 and OpenAI's /v1/images.

    Example: gouache serve --models ~/models
    """
    from gouache.serve.server import run
    from gouache.serve.start import make_settings
    from gouache.serve.studio import Studio

    new_token, new_user, revoke_token = (given.pop(name) for name in ACCOUNTS)
    studio = Studio(make_settings(given))
    if new_token is not None:
        typer.echo(studio.accounts.new_token(new_token))
    if new_user is not None:
        studio.accounts.set_password(new_user, typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    if revoke_token is not None:
        typer.echo(f"{studio.accounts.revoke_tokens(revoke_token)} revoked")
    if new_token is None and new_user is None and revoke_token is None:
        run(studio, announce=typer.echo)


def option_of(name: str, field: FieldInfo) -> inspect.Parameter:
    """One field as an option; a tuple becomes an option that may be repeated."""
    kind, many = _plain(field.annotation)
    flag = FLAGS.get(name, "--" + name.replace("_", "-"))
    given = None if field.is_required() or many or field.default_factory else field.default
    option = typer.Option(
        *([f"{flag}/--no-{flag[2:]}"] if kind is bool else flag.split()),
        help=(field.description or "") + (" May be repeated." if many else ""),
        envvar=VARIABLES.get(name),
        show_default=given is not None,
    )
    annotation: Any = Annotated[(list[kind] if many else kind) | (None if given is None else kind), option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=given, annotation=annotation)


def _plain(annotation: Any) -> tuple[type, bool]:
    """The type that the command line parses, without None and constraints, and whether there may be many of it."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _plain(next(kind for kind in get_args(annotation) if kind is not type(None)))
    if get_origin(annotation) is tuple:
        return _plain(get_args(annotation)[0])[0], True
    if get_origin(annotation) is Literal:
        return str, False
    return annotation, False


def _account_parameter(name: str) -> inspect.Parameter:
    option = typer.Option("--" + name.replace("_", "-"), metavar="USER", help=ACCOUNTS[name])
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


_PARAMETERS = [
    *(option_of(name, field) for name, field in Settings.model_fields.items() if name not in WITHOUT_OPTION),
    *(_account_parameter(name) for name in ACCOUNTS),
]
serve = _serve
serve.__name__ = "serve"
serve.__signature__ = inspect.Signature(_PARAMETERS)  # type: ignore[attr-defined]
serve.__annotations__ = {parameter.name: parameter.annotation for parameter in _PARAMETERS}


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


_WORKER_PARAMETERS = [
    *(option_of(name, Settings.model_fields[name]) for name in PAINTING),
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
worker.__signature__ = inspect.Signature(_WORKER_PARAMETERS)  # type: ignore[attr-defined]
worker.__annotations__ = {parameter.name: parameter.annotation for parameter in _WORKER_PARAMETERS}
