"""The gallery: search by words and by meaning, look, star, tag, delete with undo, and settings that come back."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from gouache.errors import GouacheError, NotFound
from gouache.pipeline.inputs.images import read_picture
from gouache.pipeline.request import Request
from gouache.serve.page import parts
from gouache.serve.page.edit_tab import frame_of
from gouache.serve.page.requests import filled, names_not_offered, owner_of, settings_of
from gouache.serve.page.words import said
from gouache.serve.store.gallery import Picture
from gouache.serve.store.wanted import Wanted
from gouache.serve.studio import Studio

PAGE = 48
EVERY = "-"
MOST_NOTES = 4
"""Notes on another program's recipe that are shown at once."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Parts of other tabs that the gallery fills.

    Attributes:
        fields: of the Paint tab, in order.
        canvas, frame: of the Edit tab.
        tabs: all tabs.
    """

    fields: Sequence[Any]
    canvas: gr.ImageEditor
    frame: gr.HTML
    tabs: gr.Tabs


def gallery_tab(studio: Studio, say: gr.I18n, page: gr.Blocks, tab: gr.Tab, elsewhere: Elsewhere) -> None:
    """Build the tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300, elem_classes="g-panel"):
            filters = _filters(say)
            line = gr.HTML(elem_id="found")
            grid = gr.HTML(elem_id="pictures", js_on_load=parts.PICK)
            older = gr.Button(say("older"), size="sm", elem_id="older", visible=False)
        with gr.Column(scale=2, min_width=300, elem_classes="g-panel"):
            detail = gr.HTML(elem_id="chosen")
            with gr.Column(visible=False, elem_classes="g-bare") as tools:
                buttons = _tools(say)
            undo = gr.Button(say("undo"), size="sm", visible=False, elem_id="undo")
            drop = gr.File(label=say("drop"), file_count="single", type="binary", height=132, elem_id="drop")
    chosen, deleted, shown = gr.State(""), gr.State(""), gr.State(PAGE)
    acts = _GalleryActions(studio, say)
    listed = [line, grid, older]
    asked = [filters[name] for name in ("words", "by", "tag", "board", "starred")]
    chosen_parts = [detail, tools, buttons["tags"], buttons["board"]]

    finds = [filters["words"].submit, filters["tag"].submit, filters["by"].input, filters["board"].input]
    finds += [filters["starred"].input, filters["refresh"].click]
    gr.on(finds, acts.find, [*asked, chosen], [*listed, shown], **parts.QUIET)
    gr.on(
        [page.load, tab.select],
        acts.opened,
        [*asked, chosen, shown],
        [*listed, filters["board"], *chosen_parts],
        **parts.QUIET,
    )
    older.click(acts.more, [*asked, chosen, shown], [*listed, shown], **parts.QUIET)
    grid.select(acts.select, [*asked, shown], [*listed, *chosen_parts, chosen], **parts.QUIET)
    buttons["use"].click(acts.use, chosen, [*elsewhere.fields, elsewhere.tabs], **parts.QUIET)
    buttons["edit"].click(acts.edit, chosen, [elsewhere.canvas, elsewhere.frame, elsewhere.tabs], **parts.QUIET)
    buttons["star"].click(acts.star, [*asked, chosen, shown], [*listed, detail], **parts.QUIET)
    buttons["save"].click(
        acts.save,
        [chosen, buttons["tags"], buttons["board"]],
        [detail, buttons["board"], filters["board"]],
        **parts.QUIET,
    )
    buttons["delete"].click(acts.delete, chosen, [detail, tools, undo, chosen, deleted], **parts.QUIET).then(
        acts.again, [*asked, chosen, shown], listed, **parts.QUIET
    )
    undo.click(acts.undo, deleted, [undo, deleted], **parts.QUIET).then(
        acts.again, [*asked, chosen, shown], listed, **parts.QUIET
    )
    drop.upload(acts.dropped, drop, [*elsewhere.fields, elsewhere.tabs, drop], **parts.QUIET)


def _filters(say: gr.I18n) -> dict[str, Any]:
    with gr.Row(elem_classes="g-tight"):
        words = gr.Textbox(
            label=say("search"), placeholder=say("search_hint"), scale=4, min_width=180, elem_id="search", max_lines=1
        )
        refresh = gr.Button(say("refresh"), size="sm", scale=1, min_width=84, elem_id="refresh-gallery")
    by = gr.Radio(
        [(say("by_words"), "words"), (say("by_meaning"), "meaning")],
        value="words",
        label=say("search_by"),
        elem_id="search-by",
    )
    with gr.Row(elem_classes="g-tight"):
        tag = gr.Textbox(label=say("tag"), min_width=110, max_lines=1, elem_id="tag")
        board = gr.Dropdown(
            [(say("all_boards"), EVERY)], value=EVERY, label=say("board"), min_width=130, elem_id="board"
        )
    starred = gr.Checkbox(label=say("starred_only"), container=False, elem_id="starred")
    return {"words": words, "refresh": refresh, "by": by, "tag": tag, "board": board, "starred": starred}


def _tools(say: gr.I18n) -> dict[str, Any]:
    with gr.Row(elem_classes="g-tight"):
        use = gr.Button(say("use_settings"), variant="primary", elem_id="use-settings", scale=2, min_width=150)
        edit = gr.Button(say("edit_this"), elem_id="edit-this", min_width=80)
        star = gr.Button(say("star"), elem_id="star", min_width=80)
    with gr.Row(elem_classes="g-tight"):
        tags = gr.Textbox(label=say("tags"), info=say("tags_hint"), min_width=130, max_lines=1, elem_id="tags")
        board = gr.Dropdown(
            [], label=say("board"), info=say("board_hint"), allow_custom_value=True, min_width=130, elem_id="to-board"
        )
    with gr.Row(elem_classes="g-tight"):
        save = gr.Button(say("save"), size="sm", min_width=90, elem_id="save")
        delete = gr.Button(say("delete"), variant="stop", size="sm", min_width=90, elem_id="delete")
    return {"use": use, "edit": edit, "star": star, "tags": tags, "board": board, "save": save, "delete": delete}


class _GalleryActions:
    """What the buttons do. `asked` in the comments are the five filters."""

    def __init__(self, studio: Studio, say: gr.I18n) -> None:
        self.studio, self.say = studio, say

    async def find(
        self, words: str, by: str, tag: str, board: str, starred: bool, chosen: str, request: gr.Request
    ) -> Any:
        return [*await self._listed(words, by, tag, board, starred, chosen, PAGE, request), PAGE]

    async def more(
        self, words: str, by: str, tag: str, board: str, starred: bool, chosen: str, shown: int, request: gr.Request
    ) -> Any:
        limit = int(shown) + PAGE
        return [*await self._listed(words, by, tag, board, starred, chosen, limit, request), limit]

    async def again(
        self, words: str, by: str, tag: str, board: str, starred: bool, chosen: str, shown: int, request: gr.Request
    ) -> Any:
        return await self._listed(words, by, tag, board, starred, chosen, int(shown), request)

    async def opened(
        self, words: str, by: str, tag: str, board: str, starred: bool, chosen: str, shown: int, request: gr.Request
    ) -> Any:
        listed = await self._listed(words, by, tag, board, starred, chosen, int(shown), request)
        return [*listed, self._boards(request), *self._chosen(chosen, request)]

    async def select(
        self,
        words: str,
        by: str,
        tag: str,
        board: str,
        starred: bool,
        shown: int,
        event: gr.EventData,
        request: gr.Request,
    ) -> Any:
        chosen = parts.picked(event)
        listed = await self._listed(words, by, tag, board, starred, chosen, int(shown), request)
        return [*listed, *self._chosen(chosen, request), chosen]

    async def star(
        self, words: str, by: str, tag: str, board: str, starred: bool, chosen: str, shown: int, request: gr.Request
    ) -> Any:
        found = self._get(chosen, request)
        self.studio.pictures.change(found.id, found.owner, starred=not found.starred)
        gr.Info(said("unstarred" if found.starred else "starred", request))
        listed = await self._listed(words, by, tag, board, starred, chosen, int(shown), request)
        return [*listed, self._detail(self._get(chosen, request), request)]

    async def _listed(
        self, words: str, by: str, tag: str, board: str, starred: bool, chosen: str, limit: int, request: gr.Request
    ) -> list[Any]:
        """The line above the grid, the grid, and whether there is more."""
        owner, words = owner_of(request), (words or "").strip()
        wanted = Wanted(
            owner=owner,
            words="" if by == "meaning" else words,
            tag=(tag or "").strip() or None,
            board=None if board in (None, "", EVERY) else board,
            starred=starred or None,
        )
        line = ""
        if by == "meaning" and words:
            try:
                found = await self.studio.semantic_search.search(words, wanted, limit=limit)
            except GouacheError as error:
                return [
                    parts.trouble(said("none_found", request), self.studio.told(error)),
                    "",
                    gr.update(visible=False),
                ]
            pictures = [picture for picture, _ in found.pictures]
            line = f'<p class="g-p">{parts.plain(said(f"compared_{found.compared}", request))}</p>'
        else:
            pictures = self.studio.pictures.find(wanted, limit)
        if not pictures:
            key = "none_found" if words or tag or starred or wanted.board else "no_pictures"
            return ["", parts.empty(said(key, request), said(f"{key}_hint", request)), gr.update(visible=False)]
        return [line, parts.thumbs(pictures, chosen), gr.update(visible=len(pictures) >= limit)]

    def _boards(self, request: gr.Request) -> Any:
        boards = self.studio.pictures.boards(owner_of(request))
        return gr.update(choices=[(self.say("all_boards"), EVERY), *((name, key) for key, name in boards.items())])

    def _get(self, picture: str, request: gr.Request) -> Picture:
        try:
            return self.studio.pictures.get(picture, owner_of(request))
        except NotFound as error:
            raise gr.Error(said("choose_first", request)) from error

    def _chosen(self, chosen: str, request: gr.Request) -> list[Any]:
        """The picture's facts, its tools, its tags and its board."""
        try:
            found = self.studio.pictures.get(chosen, owner_of(request))
        except NotFound:
            nothing = parts.empty(said("no_choice", request), said("no_choice_hint", request))
            return [nothing, gr.update(visible=False), "", gr.update(value=None)]
        boards = self.studio.pictures.boards(found.owner)
        tags = ", ".join(self.studio.pictures.tags_of(found.id))
        board = gr.update(choices=list(boards.values()), value=boards.get(found.board or ""))
        return [self._detail(found, request), gr.update(visible=True), tags, board]

    def _detail(self, found: Picture, request: gr.Request) -> str:
        asked = json.loads(found.recipe)["request"]
        sampler = " · ".join(str(asked[name]) for name in ("sampler", "schedule") if asked.get(name))
        rows = {
            "prompt": found.prompt,
            "negative": asked.get("negative_prompt") or "",
            "model": found.model,
            "sampler": sampler,
            "steps": asked.get("num_inference_steps"),
            "guidance": asked.get("guidance_scale"),
            "size": f"{found.width} × {found.height}",
            "seed": str(found.seed),
            "painted": time.strftime("%Y-%m-%d %H:%M", time.localtime(found.created)),
        }
        shown = parts.facts({said(name, request): value for name, value in rows.items()})
        return f'<div class="g-one">{parts.shot(found, small=True)}</div><div style="height:16px"></div>{shown}'

    def use(self, chosen: str, request: gr.Request) -> Any:
        return [*filled(settings_of(self._get(chosen, request).recipe)), gr.Tabs(selected="paint")]

    def edit(self, chosen: str, request: gr.Request) -> Any:
        found = self._get(chosen, request)
        try:
            data = self.studio.file_store.read("pictures", found.file)
            picture = read_picture(data, max_pixels=self.studio.upload_pixels).convert("RGBA")
        except GouacheError as error:
            raise gr.Error(self.studio.told(error)) from error
        canvas = {"background": picture, "layers": [], "composite": picture}
        return canvas, frame_of(picture, request), gr.Tabs(selected="edit")

    def save(self, chosen: str, tags: str, board: str | None, request: gr.Request) -> Any:
        found = self._get(chosen, request)
        wanted = [part.strip()[:64] for part in (tags or "").replace("，", ",").split(",") if part.strip()][:50]
        name = (board or "").strip()[:100]
        board_id = self.studio.pictures.add_board(found.owner, name) if name else ""
        changed = self.studio.pictures.change(found.id, found.owner, new_tags=wanted, board=board_id)
        gr.Info(said("saved", request))
        boards = self.studio.pictures.boards(found.owner)
        return (
            self._detail(changed, request),
            gr.update(choices=list(boards.values()), value=name),
            self._boards(request),
        )

    def delete(self, chosen: str, request: gr.Request) -> Any:
        found = self._get(chosen, request)
        self.studio.pictures.delete(found.id, found.owner)
        return parts.notice(said("deleted", request)), gr.update(visible=False), gr.update(visible=True), "", found.id

    def undo(self, deleted: str, request: gr.Request) -> Any:
        if not deleted:
            raise gr.Error(said("no_undo", request))
        self.studio.pictures.restore(deleted, owner_of(request))
        return gr.update(visible=False), ""

    def dropped(self, data: bytes | None, request: gr.Request) -> Any:
        owner, decoding = owner_of(request), self.studio.decoding
        try:
            facts, _ = decoding.run(owner, "recipe", data or b"", {"max_pixels": self.studio.upload_pixels})
            values = settings_of(json.dumps({"request": facts["request"]}))
            asked = Request.from_dict(facts["request"], where="recipe")
        except (GouacheError, KeyError, ValueError) as error:
            raise gr.Error(said("no_settings", request) + f" {error}"[:200]) from error
        for note in () if facts["own"] else [*names_not_offered(asked), *facts["notes"]][:MOST_NOTES]:
            gr.Info(note)
        return [*filled(values), gr.Tabs(selected="paint"), None]
