"""The Models tab: what there is, what each model is, fetching one, and adapters for the prompt."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from gouache.checkpoints.adapters.controlnet_library import usable_controls
from gouache.checkpoints.adapters.library import EMBEDDING, AdapterFile, list_adapters
from gouache.cli.inspect import NAMINGS, short_count
from gouache.errors import GouacheError, ModelNotFound
from gouache.serve.http.access import check_admin, is_admin
from gouache.serve.models.catalog import ModelEntry
from gouache.serve.models.downloads import Pull
from gouache.serve.models.facts import facts_of, inspect
from gouache.serve.page import parts
from gouache.serve.page.paint_tab import styles_menu
from gouache.serve.page.requests import AUTOMATIC, Fields, owner_of
from gouache.serve.page.words import said
from gouache.serve.studio import Studio

WEIGHT = 0.8


def models_tab(studio: Studio, say: gr.I18n, page: gr.Blocks, tab: gr.Tab, fields: Fields, tabs: gr.Tabs) -> None:
    """Build the tab; `fields` are those of the Paint tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300, elem_classes="g-panel"):
            models = gr.HTML(elem_id="model-list", js_on_load=parts.PICK)
            refresh = gr.Button(say("refresh"), size="sm", elem_id="refresh-models")
            adapters = gr.HTML(elem_id="adapter-list", js_on_load=parts.PICK)
            controls = gr.HTML(elem_id="control-list")
        with gr.Column(scale=2, min_width=300, elem_classes="g-bare"):
            with gr.Column(elem_classes="g-panel"):
                detail = gr.HTML(elem_id="model-detail")
                choose = gr.Button(say("make_default"), variant="primary", elem_id="make-default")
                with gr.Accordion(say("details"), open=False, elem_id="model-inspect"):
                    everything = gr.HTML(elem_id="model-json")
            with gr.Column(elem_classes="g-panel", visible=False) as pulling:
                fetch = _pull_fields(say)
    chosen = gr.State("")
    timer, acts = fetch["timer"], _ModelActions(studio, say)
    shown = [models, adapters, controls, detail, everything]
    gr.on(
        [page.load, tab.select],
        acts.opened,
        chosen,
        [*shown, pulling, fetch["title"], fetch["state"], timer],
        **parts.QUIET,
    )
    refresh.click(acts.refreshed, chosen, shown, **parts.QUIET)
    models.select(acts.select, None, [models, detail, everything, chosen], **parts.QUIET)
    choose.click(
        acts.choose, [chosen, fields["model"], fields["style"]], [models, detail, fields["style"]], **parts.QUIET
    )
    adapters.select(acts.insert, fields["prompt"], [fields["prompt"], tabs], **parts.QUIET)
    gr.on(
        [fetch["go"].click, fetch["repo"].submit],
        acts.pull,
        [fetch["repo"], fetch["variant"]],
        [fetch["state"], timer],
        **parts.QUIET,
    )
    fetch["stop"].click(acts.cancel, None, fetch["state"], **parts.QUIET)
    timer.tick(acts.look, None, [fetch["state"], timer], **parts.QUIET).then(
        acts.arrived, chosen, models, **parts.QUIET
    )


def _pull_fields(say: gr.I18n) -> dict[str, Any]:
    title = gr.HTML(elem_id="pull-title")
    repo = gr.Textbox(label=say("pull_name"), placeholder=say("pull_hint"), max_lines=1, elem_id="pull-name")
    variant = gr.Textbox(label=say("variant"), placeholder=say("variant_hint"), max_lines=1, elem_id="pull-variant")
    with gr.Row(elem_classes="g-tight"):
        go = gr.Button(say("pull"), variant="primary", elem_id="pull-button", min_width=110)
        stop = gr.Button(say("cancel"), elem_id="pull-cancel", min_width=90)
    state = gr.HTML(elem_id="pull-state")
    return {
        "title": title,
        "repo": repo,
        "variant": variant,
        "go": go,
        "stop": stop,
        "state": state,
        "timer": gr.Timer(1.0, active=False),
    }


class _ModelActions:
    """What the buttons do."""

    def __init__(self, studio: Studio, say: gr.I18n) -> None:
        self.studio, self.say = studio, say

    def opened(self, chosen: str, request: gr.Request) -> Any:
        allowed = is_admin(self.studio, owner_of(request))
        title = parts.heading(said("pull_title", request), said("pull_text", request))
        state = self._pull_state(request) if allowed else ""
        busy = any(pull.state == "running" for pull in self.studio.pulls.listing())
        return [
            *self._all(chosen, request),
            gr.update(visible=allowed),
            title,
            state,
            gr.Timer(active=allowed and busy),
        ]

    def refreshed(self, chosen: str, request: gr.Request) -> Any:
        owner_of(request)
        self.studio.catalog.refresh()
        return self._all(chosen, request)

    def select(self, event: gr.EventData, request: gr.Request) -> Any:
        chosen = self._entry(parts.picked(event), request).name
        return self._models(chosen, request), *self._detail(chosen, request), chosen

    def choose(self, chosen: str, model: str, style: str, request: gr.Request) -> Any:
        owner = owner_of(request)
        name = self.studio.set_default_model(owner, self._entry(chosen, request).name)
        gr.Info(said("is_default", request, name))
        styles = styles_menu(self.studio, self.say, request, model, style) if model == AUTOMATIC else gr.skip()
        return self._models(name, request), self._detail(name, request)[0], styles

    def insert(self, prompt: str, event: gr.EventData, request: gr.Request) -> Any:
        owner_of(request)
        words = prompt_words(next(found for found in list_adapters() if found.name == parts.picked(event)))
        joined = f"{prompt.rstrip()} {words}" if (prompt or "").strip() else words
        return joined, gr.Tabs(selected="paint")

    def pull(self, repo: str, variant: str, request: gr.Request) -> Any:
        try:
            check_admin(self.studio, owner_of(request))
            self.studio.pulls.start(repo or "", variant=(variant or "").strip() or None)
        except GouacheError as error:
            return parts.trouble(said("failed", request), self.studio.told(error)), gr.Timer(active=False)
        return self._pull_state(request), gr.Timer(active=True)

    def cancel(self, request: gr.Request) -> str:
        check_admin(self.studio, owner_of(request))
        self.studio.pulls.cancel()
        return self._pull_state(request)

    def look(self, request: gr.Request) -> Any:
        newest = next(iter(self.studio.pulls.listing()), None)
        return self._pull_state(request), gr.Timer(active=newest is not None and newest.state == "running")

    def arrived(self, chosen: str, request: gr.Request) -> Any:
        newest = next(iter(self.studio.pulls.listing()), None)
        return self._models(chosen, request) if newest is not None and newest.state == "done" else gr.skip()

    def _all(self, chosen: str, request: gr.Request) -> list[Any]:
        chosen = chosen or self.studio.default_model(owner_of(request))
        lists = [self._models(chosen, request), self._adapters(request), _controls(request)]
        return [*lists, *self._detail(chosen, request)]

    def _entry(self, name: str, request: gr.Request) -> ModelEntry:
        try:
            return self.studio.catalog.find(name or self.studio.default_model(owner_of(request)))
        except ModelNotFound as error:
            raise gr.Error(self.studio.told(error)) from error

    def _models(self, chosen: str, request: gr.Request) -> str:
        default = self.studio.default_model(owner_of(request))
        head = parts.heading(said("models_title", request), said("models_text", request))
        rows = [_row(entry, request, chosen=chosen, default=default) for entry in self.studio.catalog.entries()]
        return f'{head}<div style="height:14px"></div>{parts.items(rows)}'

    def _detail(self, chosen: str, request: gr.Request) -> tuple[str, str]:
        try:
            entry = self.studio.catalog.find(chosen)
            found = facts_of(entry)
            said_all = inspect(entry)
        except GouacheError as error:
            return parts.heading(chosen) + parts.trouble(said("unusable", request), self.studio.told(error)), ""
        kinds = ", ".join(
            f"{name} {short_count(part['parameters'])} ({'/'.join(part['dtypes'])}, {NAMINGS[part['naming']]})"
            for name, part in said_all["parts"].items()
        )
        rows = {
            "description": found.description,
            "family": found.family,
            "licence": found.licence or said("licence_unknown", request),
            "parameters": short_count(found.parameters) if found.parameters else "",
            "parts": kinds,
            "layout": said_all.get("layout"),
            "prediction": said_all.get("prediction"),
            "own_settings": said_all.get("sampling"),
            "model_notes": "; ".join(said_all.get("notes", ())),
            "styles": ", ".join(found.styles),
            "on_disk": parts.size_of(entry.size) if entry.size else "",
            "hash": entry.sha256 or said("hash_unknown", request),
            "problem": found.error,
        }
        table = parts.facts({said(key, request): value for key, value in rows.items()})
        return f'{parts.heading(entry.name)}<div style="height:12px"></div>{table}', _pretty(said_all)

    def _adapters(self, request: gr.Request) -> str:
        found = list_adapters()
        if not found:
            return parts.empty(said("no_adapters", request), said("no_adapters_hint", request), low=True)
        head = parts.heading(said("adapters", request), said("adapters_text", request))
        rows = [
            parts.item(
                each.name,
                prompt_words(each),
                each.label,
                side=parts.size_of(each.bytes),
                tag=each.family,
                kind="g-grey",
            )
            for each in found
        ]
        return f'{head}<div style="height:14px"></div>{parts.items(rows)}'

    def _pull_state(self, request: gr.Request) -> str:
        newest = next(iter(self.studio.pulls.listing()), None)
        return "" if newest is None else _pull_line(newest, request)


def _controls(request: gr.Request) -> str:
    """The ControlNets, where there are any; the native interface and A1111's use them."""
    found = usable_controls()
    if not found:
        return ""
    head = parts.heading(said("controls", request), said("controls_text", request))
    families = {each.name: "" if each.family == "unknown" else f"{each.family} · " for each in found}
    rows = {each.name: families[each.name] + parts.size_of(each.bytes) for each in found}
    return f'{head}<div style="height:14px"></div>{parts.facts(rows)}'


def _pretty(values: dict[str, Any]) -> str:
    text = json.dumps(values, indent=1, ensure_ascii=False)
    return f'<pre class="g-code">{parts.plain(text)}</pre>'


def prompt_words(adapter: AdapterFile) -> str:
    """What a prompt says to use it."""
    return adapter.name if adapter.kind == EMBEDDING else f"<lora:{adapter.name}:{WEIGHT}>"


def _row(entry: ModelEntry, request: gr.Request, *, chosen: str, default: str) -> str:
    found = facts_of(entry)
    tags, kind = [said("default", request)] if entry.name == default else [], ""
    if found.error:
        tags.append(said("untrained" if entry.path is None else "unusable", request))
        kind = "g-grey" if entry.path is None else "g-red"
    licence = found.licence or said("licence_unknown", request)
    sha = f" · {entry.sha256[:10]}" if entry.sha256 else ""
    below = found.error if found.error and entry.path is not None else f"{found.family} · {licence}{sha}"
    side = parts.size_of(entry.size) if entry.size else ""
    return parts.item(
        entry.name, entry.name, below, chosen=entry.name == chosen, side=side, tag=" · ".join(tags), kind=kind
    )


def _pull_line(pull: Pull, request: gr.Request) -> str:
    if pull.state == "running":
        amount = said("of_bytes", request, parts.size_of(pull.here), parts.size_of(pull.total)) if pull.total else ""
        share = pull.here / pull.total if pull.total else None
        return parts.progress(said("pulling", request, pull.repo), [amount], share)
    if pull.state == "failed":
        return parts.trouble(said("pull_failed", request, pull.repo), pull.error)
    return parts.notice(said("pulled" if pull.state == "done" else "pull_cancelled", request, pull.repo))
