"""The gallery: search, look, star, tag, delete with undo, and settings that come back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from gouache.errors import GouacheError, NotFound
from gouache.pipeline.infotext import parse_infotext
from gouache.pipeline.metadata import OWN, PARAMETERS, read_texts
from gouache.pipeline.recipe_text import request_of
from gouache.serve.page.painting import owner_of, settings_of
from gouache.serve.page.words import said
from gouache.serve.pictures import Picture
from gouache.serve.studio import Studio

PAGE = 48


def gallery_tab(studio: Studio, say: gr.I18n, fields: Sequence[Any], tabs: gr.Tabs) -> None:
    """Build the tab; `fields` are those of the Paint tab that a picture's settings fill."""
    with gr.Row():
        words = gr.Textbox(label=say("search"), scale=3, elem_id="search")
        tag = gr.Textbox(label=say("tag"), scale=1, min_width=120)
        starred = gr.Checkbox(label=say("starred_only"), scale=1, min_width=120)
        refresh = gr.Button(say("refresh"), scale=1, min_width=100, elem_id="refresh-gallery")
    ids, chosen, deleted = gr.State([]), gr.State(""), gr.State("")
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            pictures = gr.Gallery(
                label=say("gallery"), columns=4, height=620, object_fit="cover", allow_preview=False, elem_id="pictures"
            )
            older = gr.Button(say("older"), size="sm")
        with gr.Column(scale=2, min_width=320):
            picture = gr.Image(
                label=say("results"), interactive=False, height=320, elem_id="chosen", format="png",
                buttons=["download", "fullscreen"],
            )  # fmt: skip
            detail = gr.Textbox(label=say("settings"), lines=4, interactive=False, elem_id="detail")
            with gr.Row():
                use = gr.Button(say("use_settings"), variant="primary", elem_id="use-settings")
                star = gr.Button(say("star"), min_width=60)
            tags = gr.Textbox(label=say("tags"))
            board = gr.Textbox(label=say("board"))
            with gr.Row():
                save = gr.Button(say("save"), min_width=60)
                delete = gr.Button(say("delete"), variant="stop", min_width=60, elem_id="delete")
                undo = gr.Button(say("undo"), min_width=60, elem_id="undo")
            drop = gr.File(label=say("drop"), file_count="single", type="binary", height=120, elem_id="drop")
    acts = _Actions(studio)
    filters, listed = [words, tag, starred], [pictures, ids]
    for trigger in (words.submit, refresh.click, tag.submit, starred.change):
        trigger(acts.find, filters, listed, show_progress="hidden", api_visibility="private")
    older.click(acts.older, [*filters, ids], listed, show_progress="hidden", api_visibility="private")
    pictures.select(acts.select, ids, [picture, detail, tags, board, chosen], api_visibility="private")
    use.click(acts.use, chosen, [*fields, tabs], api_visibility="private")
    star.click(acts.star, chosen, None, api_visibility="private")
    save.click(acts.save, [chosen, tags, board], None, api_visibility="private")
    delete.click(acts.delete, chosen, [picture, deleted], api_visibility="private").then(
        acts.find, filters, listed, api_visibility="private"
    )
    undo.click(acts.undo, deleted, None, api_visibility="private").then(
        acts.find, filters, listed, api_visibility="private"
    )
    drop.upload(acts.dropped, drop, [*fields, tabs], api_visibility="private")


class _Actions:
    """What the buttons do."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def find(self, words: str, tag: str, starred: bool, request: gr.Request) -> Any:
        return self._page(words, tag, starred, owner_of(request), None)

    def older(self, words: str, tag: str, starred: bool, ids: list[str], request: gr.Request) -> Any:
        owner = owner_of(request)
        before = self._get(ids[-1], request).seq if ids else None
        return self._page(words, tag, starred, owner, before)

    def _page(self, words: str, tag: str, starred: bool, owner: str, before: int | None) -> Any:
        found = self.studio.pictures.search(
            owner=owner, words=words or "", tag=tag or None, starred=starred or None, limit=PAGE, before=before
        )
        thumbnails = [(str(self.studio.vault.thumbnail(item.file)), item.prompt[:80]) for item in found]
        return thumbnails, [item.id for item in found]

    def _get(self, picture: str, request: gr.Request) -> Picture:
        try:
            return self.studio.pictures.get(picture, owner_of(request))
        except NotFound as error:
            raise gr.Error(said("choose_first", request)) from error

    def select(self, ids: list[str], event: gr.SelectData, request: gr.Request) -> Any:
        owner = owner_of(request)
        found = self._get(ids[int(event.index)], request)
        names = self.studio.pictures.boards(owner)
        text = f"{found.prompt}\n{found.width}x{found.height}, seed {found.seed}, {found.model}"
        file = str(self.studio.vault.path("pictures", found.file))
        tags = ", ".join(self.studio.pictures.tags_of(found.id))
        return file, text, tags, names.get(found.board or "", ""), found.id

    def use(self, chosen: str, request: gr.Request) -> Any:
        values = settings_of(self._get(chosen, request).recipe)
        return [*_in_order(values), gr.Tabs(selected="paint")]

    def star(self, chosen: str, request: gr.Request) -> None:
        found = self._get(chosen, request)
        self.studio.pictures.change(found.id, found.owner, starred=not found.starred)
        gr.Info("☆" if found.starred else "★")

    def save(self, chosen: str, tags: str, board: str, request: gr.Request) -> None:
        found = self._get(chosen, request)
        wanted = [part.strip()[:64] for part in tags.replace("，", ",").split(",") if part.strip()][:50]
        board_id = self.studio.pictures.add_board(found.owner, board.strip()[:100]) if board.strip() else ""
        self.studio.pictures.change(found.id, found.owner, new_tags=wanted, board=board_id)
        gr.Info("✓")

    def delete(self, chosen: str, request: gr.Request) -> Any:
        found = self._get(chosen, request)
        self.studio.pictures.delete(found.id, found.owner)
        return None, found.id

    def undo(self, deleted: str, request: gr.Request) -> None:
        if not deleted:
            raise gr.Error(said("no_undo", request))
        self.studio.pictures.restore(deleted, owner_of(request))

    def dropped(self, data: bytes | None, request: gr.Request) -> Any:
        owner_of(request)
        try:
            texts = read_texts(data or b"")
            if OWN in texts:
                values = settings_of(texts[OWN])
            else:
                read = request_of(parse_infotext(texts.get(PARAMETERS, "")), "picture")
                values = settings_of('{"request": ' + read.to_json() + "}")
        except (GouacheError, KeyError, ValueError) as error:
            raise gr.Error(said("no_settings", request) + f" {error}"[:200]) from error
        return [*_in_order(values), gr.Tabs(selected="paint")]


def _in_order(values: dict[str, Any]) -> list[Any]:
    names = ("prompt", "negative", "sampler", "schedule", "steps", "guidance", "width", "height", "seed")
    return [values[name] for name in names]
