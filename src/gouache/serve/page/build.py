"""Puts the tabs together."""

from __future__ import annotations

import gradio as gr

from gouache.serve.page import parts
from gouache.serve.page.edit_tab import edit_tab
from gouache.serve.page.gallery import Elsewhere, gallery_tab
from gouache.serve.page.job_view import BUSY_SECONDS, follow
from gouache.serve.page.look import BRAND
from gouache.serve.page.models_tab import models_tab
from gouache.serve.page.paint_tab import paint_tab
from gouache.serve.page.requests import NAMES
from gouache.serve.page.train_tab import train_tab
from gouache.serve.page.words import said, translations
from gouache.serve.studio import Studio


def build_page(studio: Studio) -> tuple[gr.Blocks, gr.I18n]:
    """The page and its words."""
    say = translations()
    with gr.Blocks(title="gouache", analytics_enabled=False, fill_width=True, delete_cache=(3600, 7200)) as page:
        timer = gr.Timer(BUSY_SECONDS)
        brand = gr.HTML(BRAND, elem_id="title")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab(say("paint"), id="paint", elem_id="paint-tab"):
                fields, paint_view = paint_tab(studio, say, page, timer)
            with gr.Tab(say("edit"), id="edit", elem_id="edit-tab"):
                canvas, frame, edit_view = edit_tab(studio, say, page, timer)
            with gr.Tab(say("gallery"), id="gallery", elem_id="gallery-tab") as tab:
                elsewhere = Elsewhere([fields[name] for name in NAMES], canvas, frame, tabs)
                gallery_tab(studio, say, page, tab, elsewhere)
            with gr.Tab(say("models"), id="models", elem_id="models-tab") as tab:
                models_tab(studio, say, page, tab, fields, tabs)
            with gr.Tab(say("train"), id="train", elem_id="train-tab") as tab:
                train_tab(studio, say, page, tab)
        follow(studio, page, timer, (paint_view, edit_view))
        page.load(_tagline, None, brand, **parts.QUIET)
    return page, say


def _tagline(request: gr.Request) -> str:
    return BRAND.replace("</strong>", f"</strong><span>{parts.plain(said('tagline', request))}</span>")
