"""The tabs that mostly list: models and training runs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from gouache.serve.page.painting import owner_of
from gouache.serve.studio import Studio


def models_tab(studio: Studio, say: gr.I18n) -> None:
    """Every model, with its size and hash."""
    refresh = gr.Button(say("refresh"), size="sm", elem_id="refresh-models")
    table = gr.Dataframe(
        headers=["model", "size", "sha256"], value=_models(studio), label=say("known_models"), interactive=False,
        wrap=True, elem_id="model-table",
    )  # fmt: skip

    def looked(request: gr.Request) -> Any:
        owner_of(request)
        studio.shelf.refresh()
        return _models(studio)

    refresh.click(looked, None, table, api_visibility="private")


def _models(studio: Studio) -> list[list[str]]:
    return [[entry.name, f"{entry.size / 2**20:,.0f} MiB", entry.sha256 or ""] for entry in studio.shelf.entries()]


def train_tab(studio: Studio, say: gr.I18n) -> None:
    """Runs below the data folder with their loss curves."""
    gr.Markdown(say("train_text"))
    refresh = gr.Button(say("refresh"), size="sm")
    curves = gr.Gallery(label=say("runs"), columns=2, height=480, object_fit="contain")

    def looked(request: gr.Request) -> list[tuple[str, str]]:
        owner_of(request)
        root = studio.settings.data / "runs"
        found = sorted(root.glob("*/*/losses.png")) if root.is_dir() else []
        inside = [path for path in found if path.resolve().is_relative_to(root.resolve())]
        return [(str(path), path.parent.relative_to(root).as_posix()) for path in inside]

    refresh.click(looked, None, curves, api_visibility="private")
