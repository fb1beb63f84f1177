"""The Paint tab: words in, pictures out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from gouache.errors import GouacheError
from gouache.serve.models.facts import facts_of
from gouache.serve.page import parts
from gouache.serve.page.job_view import BUSY_SECONDS, View, cancel_newest, job_view, status
from gouache.serve.page.requests import (
    AUTOMATIC,
    NAMES,
    Fields,
    draft,
    filled,
    hand_in,
    keep_draft,
    last_seed,
    model_choices,
    owner_of,
    request_of,
    sampler_choices,
    schedule_choices,
)
from gouache.serve.studio import Studio


def paint_tab(studio: Studio, say: gr.I18n, page: gr.Blocks, timer: gr.Timer) -> tuple[Fields, View]:
    """Build the tab; gives its fields by name, and its view of the newest job. The timer looks at jobs."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300, elem_classes="g-panel"):
            fields, buttons = _fields(studio, say)
        with gr.Column(scale=3, min_width=300, elem_classes="g-panel"):
            view = job_view("paint", "nothing")
    inputs = [fields[name] for name in NAMES]

    # Gradio fills a parameter of type Request by its annotation, which must stand before *values.
    def submit(request: gr.Request, *values: Any) -> Any:
        given = dict(zip(NAMES, values, strict=True))
        owner = owner_of(request)
        keep_draft(studio, owner, given)
        try:
            wanted = request_of(given)
        except GouacheError as error:
            raise gr.Error(studio.told(error)) from error
        hand_in(studio, owner, wanted)
        return *status(studio, request, "nothing"), gr.Timer(BUSY_SECONDS)

    def stop(request: gr.Request) -> Any:
        cancel_newest(studio, owner_of(request))
        return *status(studio, request, "nothing"), gr.Timer(BUSY_SECONDS)

    def noted(request: gr.Request, *values: Any) -> None:
        keep_draft(studio, owner_of(request), dict(zip(NAMES, values, strict=True)))

    def opened(request: gr.Request) -> Any:
        values = draft(studio, owner_of(request))
        known = [name for _, name in model_choices(studio, "")]
        model = values.pop("model", AUTOMATIC)
        style = values.pop("style", AUTOMATIC)
        model = model if model in known else AUTOMATIC
        return filled(
            values
            | {
                "model": gr.update(choices=model_choices(studio, say("automatic")), value=model),
                "style": styles_menu(studio, say, request, model, style),
            }
        )

    shown = [view.line, view.stage, timer]
    buttons["paint"].click(submit, inputs, shown, **parts.QUIET)
    buttons["cancel"].click(stop, None, shown, **parts.QUIET)
    changed = [fields["prompt"].blur, fields["negative"].blur, fields["seed"].blur]
    changed += [fields[name].input for name in ("style", "model", "sampler", "schedule")]
    changed += [fields[name].release for name in ("steps", "guidance", "width", "height", "count")]
    gr.on(changed, noted, inputs, None, **parts.QUIET)
    page.load(opened, None, inputs, **parts.QUIET)
    return fields, view


def styles_menu(studio: Studio, say: gr.I18n, request: gr.Request, model: str | None, chosen: str = AUTOMATIC) -> Any:
    """The menu of the styles that a model names; hidden if it names none."""
    try:
        name = studio.default_model(owner_of(request)) if model in (None, AUTOMATIC) else model
        styles = facts_of(studio.catalog.find(name)).styles
    except GouacheError:
        styles = ()
    choices = [(say("no_style"), AUTOMATIC), *((style, style) for style in styles)]
    value = chosen if chosen in styles else AUTOMATIC
    return gr.update(choices=choices, value=value, visible=bool(styles))


def _fields(studio: Studio, say: gr.I18n) -> tuple[Fields, Fields]:
    fields: Fields = {
        "prompt": gr.Textbox(label=say("prompt"), placeholder=say("prompt_hint"), lines=3, elem_id="prompt"),
        "style": gr.Radio(
            [(say("no_style"), AUTOMATIC)], value=AUTOMATIC, label=say("style"), visible=False, elem_id="style"
        ),
    }
    with gr.Row(elem_classes="g-tight"):
        buttons: Fields = {
            "paint": gr.Button(say("paint"), variant="primary", elem_id="paint-button", scale=2, min_width=120),
            "cancel": gr.Button(say("cancel"), elem_id="cancel-button", scale=1, min_width=90),
        }
    fields["negative"] = gr.Textbox(label=say("negative"), lines=1, elem_id="negative")
    with gr.Row(elem_classes="g-tight"):
        fields["seed"] = gr.Number(
            -1, label=say("seed"), info=say("seed_hint"), precision=0, elem_id="seed", scale=3, min_width=90
        )
        fresh = gr.Button(say("random_seed"), size="sm", elem_id="seed-dice", elem_classes="g-icon", min_width=88)
        reuse = gr.Button(say("reuse_seed"), size="sm", elem_id="seed-last", elem_classes="g-icon", min_width=80)
    fields["count"] = gr.Slider(
        1, min(16, studio.settings.limits.count), 1, step=1, label=say("count"), elem_id="count"
    )
    with gr.Accordion(say("settings"), open=False, elem_id="settings"):
        _more_fields(studio, say, fields)

    def reused(request: gr.Request) -> int:
        return last_seed(studio, owner_of(request))

    def restyled(model: str, style: str, request: gr.Request) -> Any:
        return styles_menu(studio, say, request, model, style)

    reuse.click(reused, None, fields["seed"], **parts.QUIET)
    fresh.click(lambda: -1, None, fields["seed"], **parts.QUIET)
    fields["model"].input(restyled, [fields["model"], fields["style"]], fields["style"], **parts.QUIET)
    return fields, buttons


def _more_fields(studio: Studio, say: gr.I18n, fields: Fields) -> None:
    own, hint, limits = say("automatic"), say("zero_is_own"), studio.settings.limits
    fields["model"] = gr.Dropdown(
        model_choices(studio, own), value=AUTOMATIC, label=say("model"), elem_id="model", allow_custom_value=False
    )
    with gr.Row():
        fields["sampler"] = gr.Dropdown(sampler_choices(own), value=AUTOMATIC, label=say("sampler"), min_width=190)
        fields["schedule"] = gr.Dropdown(schedule_choices(own), value=AUTOMATIC, label=say("schedule"), min_width=190)
    with gr.Row():
        fields["steps"] = gr.Slider(0, limits.steps, 0, step=1, label=say("steps"), info=hint, min_width=190)
        fields["guidance"] = gr.Slider(0, 20, 0, step=0.1, label=say("guidance"), info=hint, min_width=190)
    with gr.Row():
        fields["width"] = gr.Slider(0, 2048, 0, step=8, label=say("width"), info=hint, min_width=190)
        fields["height"] = gr.Slider(0, 2048, 0, step=8, label=say("height"), info=hint, min_width=190)
