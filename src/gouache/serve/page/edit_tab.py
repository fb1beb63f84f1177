"""The Edit tab: a picture, a brush for what is painted anew, and a frame to grow it."""

from __future__ import annotations

import base64
import io
from typing import Any

import gradio as gr
from PIL import Image

from gouache.errors import GouacheError
from gouache.serve.page import parts
from gouache.serve.page.job_view import BUSY_SECONDS, View, cancel_newest, job_view, status
from gouache.serve.page.requests import SIDES, edit_request, hand_in, owner_of
from gouache.serve.page.words import said
from gouache.serve.studio import Studio

NAMES = ("canvas", "prompt", "strength", *SIDES)
THUMBNAIL = 240


def edit_tab(studio: Studio, say: gr.I18n, page: gr.Blocks, timer: gr.Timer) -> tuple[gr.ImageEditor, gr.HTML, View]:
    """Build the tab; gives its canvas and frame, so that the gallery can send a picture here, and its view."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300, elem_classes="g-panel"):
            gr.Markdown(say("canvas_hint"), elem_id="canvas-hint")
            canvas = _canvas(say)
        with gr.Column(scale=2, min_width=300, elem_classes="g-panel"):
            prompt = gr.Textbox(label=say("prompt"), placeholder=say("prompt_hint"), lines=2, elem_id="edit-prompt")
            strength = gr.Slider(0, 1, 0.75, step=0.01, label=say("strength"), info=say("strength_hint"))
            with gr.Accordion(say("outpaint"), open=False, elem_id="outpaint"):
                frame = gr.HTML(elem_id="frame")
                with gr.Row(elem_classes="g-tight"):
                    sides = [_side(say, side) for side in SIDES]
            with gr.Row(elem_classes="g-tight"):
                paint = gr.Button(say("edit"), variant="primary", elem_id="edit-button", scale=2, min_width=120)
                cancel = gr.Button(say("cancel"), elem_id="edit-cancel-button", scale=1, min_width=90)
            view = job_view("edit", "nothing_edited")

    def submit(request: gr.Request, *values: Any) -> Any:
        try:
            wanted = edit_request(studio, dict(zip(NAMES, values, strict=True)), request)
        except GouacheError as error:
            raise gr.Error(studio.told(error)) from error
        hand_in(studio, owner_of(request), wanted)
        return *status(studio, request, "nothing_edited"), gr.Timer(BUSY_SECONDS)

    def stop(request: gr.Request) -> Any:
        cancel_newest(studio, owner_of(request))
        return *status(studio, request, "nothing_edited"), gr.Timer(BUSY_SECONDS)

    def loaded(value: dict[str, Any] | None, request: gr.Request) -> str:
        return frame_of((value or {}).get("background"), request)

    def opened(request: gr.Request) -> Any:
        # Gradio's own placeholder is English only.
        return frame_of(None, request), gr.update(placeholder=said("canvas_empty", request))

    def unloaded(request: gr.Request) -> str:
        return frame_of(None, request)

    shown = [view.line, view.stage, timer]
    paint.click(submit, [canvas, prompt, strength, *sides], shown, **parts.QUIET)
    cancel.click(stop, None, shown, **parts.QUIET)
    canvas.upload(loaded, canvas, frame, **parts.QUIET)
    canvas.clear(unloaded, None, frame, **parts.QUIET)
    page.load(opened, None, [frame, canvas], **parts.QUIET)
    return canvas, frame, view


def _canvas(say: gr.I18n) -> gr.ImageEditor:
    return gr.ImageEditor(
        label=say("canvas"),
        show_label=False,
        type="pil",
        image_mode="RGBA",
        sources=("upload", "clipboard"),
        height=520,
        brush=gr.Brush(colors=["#e11d48"], color_mode="fixed", default_size=24),
        transforms=(),
        layers=False,
        elem_id="canvas",
        format="png",
        buttons=["fullscreen"],
        placeholder=" ",
    )


def _side(say: gr.I18n, side: str) -> gr.Number:
    return gr.Number(
        0,
        label=say(side),
        precision=0,
        minimum=0,
        maximum=1024,
        step=8,
        min_width=60,
        elem_id=f"outpaint-{side}",
    )


def frame_of(picture: Image.Image | None, request: gr.Request) -> str:
    """The picture inside its new canvas; `page.js` places it and lets its edges be dragged."""
    if picture is None:
        return f'<p class="g-p">{parts.plain(said("frame_empty", request))}</p>'
    # With its alpha: the colours under transparent pixels are anything.
    small = picture.convert("RGBA")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    names = {"left": "←", "right": "→", "top": "↑", "bottom": "↓"}
    handles = "".join(
        f'<button type="button" data-side="{side}" aria-label="{names[side]}"></button>' for side in SIDES
    )
    return (
        f'<p class="g-p">{parts.plain(said("frame", request))}</p>'
        f'<div class="g-frame" data-width="{picture.width}" data-height="{picture.height}"><div class="g-new"></div>'
        f'<div class="g-old" style="background-image:url(\'data:image/webp;base64,{data}\')"></div>'
        f"{handles}<output></output></div>"
    )
