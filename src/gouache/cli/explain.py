"""`gouache explain`: one picture, and what each part of the model did for it, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gouache.cli.options import EDITING, option_specs, request_values, with_options
from gouache.cli.paint import Device, Force, Loading, Size, build_request, load
from gouache.errors import InvalidInput

SPECS = option_specs(without=(*EDITING, "count"))
HELP = """Paint one picture and write a page about how: words, draft, every step, attention, layers, times.

One HTML file that needs no network, for teaching and for curiosity. It takes the options of gouache paint. Example:

gouache explain "a red fox next to a blue cup" --seed 5 -o fox.html
"""
LANGUAGES = ("en", "zh")


def _explain(
    prompt: Annotated[str, typer.Argument(help="Prompt; - reads standard input.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("explained.html"),
    language: Annotated[str, typer.Option("--language", help="Of the page's texts: en or zh.")] = "en",
    size: Size = None,
    force: Force = False,
    device: Device = None,
    **options: object,
) -> None:
    from gouache.files import check_target, write_bytes
    from gouache.pipeline.explain.data import to_data
    from gouache.pipeline.explain.explanation import explain as explained
    from gouache.pipeline.explain.page import to_html

    if language not in LANGUAGES:
        raise InvalidInput("--language", given=repr(language), expected="en or zh")
    check_target(output, force=force)
    request = build_request(prompt, size, request_values(SPECS, options))
    pipeline = load(request.model, Loading(device))
    page = to_html(to_data(explained(pipeline, request)), "zh" if language == "zh" else "en")
    write_bytes(output, page.encode("utf-8"), force=force)
    typer.echo(str(output))


explain = with_options(_explain, SPECS, "explain", HELP)
