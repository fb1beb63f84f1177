"""Puts the tabs together and wires them to the studio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from gouache.serve.page.gallery import gallery_tab
from gouache.serve.page.lists import models_tab, train_tab
from gouache.serve.page.painting import (
    AUTOMATIC,
    cancel_newest,
    edit_request,
    hand_in,
    last_seed,
    owner_of,
    request_of,
    sampler_choices,
    schedule_choices,
    status,
)
from gouache.serve.page.words import translations
from gouache.serve.studio import Studio

NAMES = (
    "prompt", "negative", "model", "sampler", "schedule", "steps", "guidance", "width", "height", "count", "seed",
)  # fmt: skip
RESTORED = ("prompt", "negative", "sampler", "schedule", "steps", "guidance", "width", "height", "seed")
Components = dict[str, Any]


def build_page(studio: Studio) -> tuple[gr.Blocks, gr.I18n]:
    """The page and its words."""
    say = translations()
    with gr.Blocks(title="gouache", analytics_enabled=False, fill_width=True, delete_cache=(3600, 7200)) as page:
        gr.Markdown("# gouache", elem_id="title")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab(say("paint"), id="paint", elem_id="paint-tab"):
                fields = _paint_tab(studio, say)
            with gr.Tab(say("edit"), id="edit", elem_id="edit-tab"):
                _edit_tab(studio, say)
            with gr.Tab(say("gallery"), id="gallery", elem_id="gallery-tab"):
                gallery_tab(studio, say, [fields[name] for name in RESTORED], tabs)
            with gr.Tab(say("models"), id="models", elem_id="models-tab"):
                models_tab(studio, say)
            with gr.Tab(say("train"), id="train", elem_id="train-tab"):
                train_tab(studio, say)
    return page, say


def _paint_tab(studio: Studio, say: gr.I18n) -> Components:
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            fields = _fields(studio, say)
        with gr.Column(scale=3, min_width=320):
            with gr.Row():
                paint = gr.Button(say("paint"), variant="primary", elem_id="paint-button")
                cancel = gr.Button(say("cancel"), elem_id="cancel-button")
            shown = _job_view(studio, say, "paint")
    inputs = [fields[name] for name in NAMES]

    def submit(*values: Any, request: gr.Request) -> Any:
        hand_in(studio, owner_of(request), request_of(dict(zip(NAMES, values, strict=True))))
        return status(studio, request)

    def stop(request: gr.Request) -> Any:
        cancel_newest(studio, owner_of(request))
        return status(studio, request)

    paint.click(_with_request(submit), inputs, shown, show_progress="hidden", api_visibility="private")
    cancel.click(stop, None, shown, show_progress="hidden", api_visibility="private")
    return fields


def _with_request(function: Any) -> Any:
    """Gradio fills a parameter of type Request by its annotation, which must not come after *values."""

    def called(request: gr.Request, *values: Any) -> Any:
        return function(*values, request=request)

    return called


def _fields(studio: Studio, say: gr.I18n) -> Components:
    fields: Components = {
        "prompt": gr.Textbox(label=say("prompt"), placeholder=say("prompt_hint"), lines=3, elem_id="prompt"),
        "negative": gr.Textbox(label=say("negative"), lines=1, elem_id="negative"),
    }
    models = [entry.name for entry in studio.shelf.entries()]
    with gr.Accordion(say("settings"), open=False, elem_id="settings"):
        fields["model"] = gr.Dropdown([AUTOMATIC, *models], value=AUTOMATIC, label=say("model"))
        with gr.Row():
            fields["sampler"] = gr.Dropdown(sampler_choices(), value=AUTOMATIC, label=say("sampler"), min_width=140)
            fields["schedule"] = gr.Dropdown(schedule_choices(), value=AUTOMATIC, label=say("schedule"), min_width=140)
        limits = studio.settings.limits
        with gr.Row():
            fields["steps"] = gr.Slider(0, limits.steps, 0, step=1, label=say("steps"), min_width=140)
            fields["guidance"] = gr.Slider(0, 20, 0, step=0.1, label=say("guidance"), min_width=140)
        with gr.Row():
            fields["width"] = gr.Slider(0, 2048, 0, step=8, label=say("width"), min_width=140)
            fields["height"] = gr.Slider(0, 2048, 0, step=8, label=say("height"), min_width=140)
        fields["count"] = gr.Slider(1, min(16, limits.count), 1, step=1, label=say("count"))
    fields["seed"] = gr.Number(-1, label=say("seed"), precision=0, elem_id="seed")
    with gr.Row():
        reuse, fresh = gr.Button(say("reuse_seed"), size="sm"), gr.Button(say("random_seed"), size="sm")

    def reused(request: gr.Request) -> int:
        return last_seed(studio, owner_of(request))

    reuse.click(reused, None, fields["seed"], api_visibility="private")
    fresh.click(lambda: -1, None, fields["seed"], api_visibility="private")
    return fields


def _job_view(studio: Studio, say: gr.I18n, name: str) -> Sequence[Any]:
    """Status, preview and pictures of the newest job, looked at again every second: a reload finds them too."""
    line = gr.Markdown(elem_id="status" if name == "paint" else f"{name}-status")
    preview = gr.Image(label=say("preview"), interactive=False, height=260, visible=False, buttons=["fullscreen"],
        elem_id=f"{name}-preview", format="jpeg",
    )  # fmt: skip
    pictures = gr.Gallery(label=say("results"), columns=3, height=420, object_fit="contain", buttons=["download"],
        elem_id=f"{name}-results",
    )  # fmt: skip
    shown = [line, preview, pictures]
    seen = gr.State("")

    def look(before: str, request: gr.Request) -> Any:
        text, image, files = status(studio, request)
        now = f"{text}|{files}"
        if now == before and not image["visible"]:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        return text, image, gr.skip() if before.endswith(f"|{files}") else files, now

    timer = gr.Timer(1.0)
    timer.tick(look, seen, [*shown, seen], show_progress="hidden", api_visibility="private")
    return shown


def _edit_tab(studio: Studio, say: gr.I18n) -> None:
    names = ("canvas", "prompt", "strength", "left", "right", "top", "bottom")
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            gr.Markdown(say("canvas_hint"))
            canvas = gr.ImageEditor(
                label=say("canvas"), type="pil", image_mode="RGBA", sources=("upload", "clipboard"), height=520,
                brush=gr.Brush(colors=["#e11d48"], color_mode="fixed", default_size=24), transforms=(), layers=False,
                elem_id="canvas", format="png",
            )  # fmt: skip
        with gr.Column(scale=2, min_width=320):
            prompt = gr.Textbox(label=say("prompt"), placeholder=say("prompt_hint"), lines=2, elem_id="edit-prompt")
            strength = gr.Slider(0, 1, 0.75, step=0.01, label=say("strength"))
            with gr.Accordion(say("outpaint"), open=False), gr.Row():
                sides = [
                    gr.Number(0, label=say(side), precision=0, minimum=0, maximum=1024, min_width=70)
                    for side in ("left", "right", "top", "bottom")
                ]
            with gr.Row():
                paint = gr.Button(say("edit"), variant="primary", elem_id="edit-button")
                cancel = gr.Button(say("cancel"), elem_id="edit-cancel-button")
            shown = _job_view(studio, say, "edit")

    def submit(*values: Any, request: gr.Request) -> Any:
        hand_in(studio, owner_of(request), edit_request(studio, dict(zip(names, values, strict=True)), request))
        return status(studio, request)

    def stop(request: gr.Request) -> Any:
        cancel_newest(studio, owner_of(request))
        return status(studio, request)

    inputs = [canvas, prompt, strength, *sides]
    paint.click(_with_request(submit), inputs, shown, show_progress="hidden", api_visibility="private")
    cancel.click(stop, None, shown, show_progress="hidden", api_visibility="private")
