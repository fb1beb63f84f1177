"""The Train tab: pictures in, a run in a process of its own, its loss and its samples. For administrators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from gouache.errors import GouacheError
from gouache.serve.http.access import check_admin, is_admin
from gouache.serve.page import parts
from gouache.serve.page.parts import plain
from gouache.serve.page.requests import owner_of
from gouache.serve.page.words import said
from gouache.serve.studio import Studio
from gouache.serve.training.plan import STAGES
from gouache.serve.training.runs import RUNNING, TrainingRun

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 14, 30
MOST_POINTS = 600
SMOOTHING = 0.9
Point = tuple[float, float]


def smooth(points: Sequence[Point]) -> list[Point]:
    """The exponential running mean, started without bias."""
    mean, weight, out = 0.0, 0.0, []
    for x, y in points:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * y, SMOOTHING * weight + 1 - SMOOTHING
        out.append((x, mean / weight))
    return out


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS`, evenly; the last always stays."""
    step = -(-len(points) // MOST_POINTS) or 1
    return [*points[:-1:step], *points[-1:]]


def loss_chart(log: Sequence[dict[str, float]], words: tuple[str, str, str]) -> str:
    """The chart, or nothing before there are two points.

    Args:
        log: lines of a run.
        words: names of the mean, of the validations, and of the horizontal axis.
    """
    losses = [(line["images_seen"], line["loss"]) for line in log if "loss" in line]
    checks = [(line["images_seen"], line["validation/score"]) for line in log if "validation/score" in line]
    if len(losses) < 2:
        return ""
    means = thinned(smooth(losses))
    losses = thinned(losses)
    # The first values dwarf the rest: the axis ends at the 97th percentile.
    values = sorted(y for _, y in [*losses, *checks])
    low, high = values[0], values[int(0.97 * (len(values) - 1))]
    span = (high - low) or abs(high) or 1.0
    low, high, last = low - 0.05 * span, high + 0.08 * span, max(x for x, _ in [*losses, *checks])

    def place(point: Point) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * point[0] / last
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - min(max(point[1], low), high)) / (high - low)
        return f"{x:.1f},{y:.1f}"

    parts = [_rules(low, high), _feet(last, words[2])]
    for name, points in (("g-raw", losses), ("g-mean", means)):
        parts.append(f'<polyline class="{name}" points="{" ".join(place(point) for point in points)}"/>')
    for check in thinned(checks):
        x, y = place(check).split(",")
        parts.append(f'<circle cx="{x}" cy="{y}" r="4"><title>{check[1]:.4g}</title></circle>')
    label = f"{words[0]}: {means[-1][1]:.4g}"
    legend = f'<p class="g-legend"><span><i></i>{plain(label)}</span>'
    if checks:
        legend += f'<span><i class="g-dot"></i>{plain(words[1])}: {checks[-1][1]:.4g}</span>'
    chart = f'<svg class="g-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{plain(label)}">'
    return f"{chart}{''.join(parts)}</svg>{legend}</p>"


def _rules(low: float, high: float) -> str:
    rows = []
    for i in range(5):
        y = TOP + (HEIGHT - TOP - BOTTOM) * i / 4
        value = high + (low - high) * i / 4
        rows.append(f'<line class="g-rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        rows.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    return "".join(rows)


def _feet(last: float, unit: str) -> str:
    ends = ((LEFT, "start", "0"), (WIDTH - RIGHT, "end", f"{last:,.0f} {unit}"))
    return "".join(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="{at}">{plain(text)}</text>' for x, at, text in ends)


STARTED = ("set", "stage", "model", "name", "minutes", "size", "rate", "batch")
COLOURS = {"failed": "g-red", "stopped": "g-grey", "interrupted": "g-grey", "done": "g-grey"}
SAMPLES_SHOWN = 8


def train_tab(studio: Studio, say: gr.I18n, page: gr.Blocks, tab: gr.Tab) -> None:
    """Build the tab."""
    refused = gr.HTML(elem_id="train-refused")
    with gr.Row(equal_height=False, visible=False, elem_id="train-parts") as allowed:
        with gr.Column(scale=2, min_width=300, elem_classes="g-panel"):
            fields = _fields(say)
        with gr.Column(scale=3, min_width=300, elem_classes="g-panel"):
            runs = gr.HTML(elem_id="run-list", js_on_load=parts.PICK)
            state = gr.HTML(elem_id="run-state")
            with gr.Row(elem_classes="g-tight"):
                stop = gr.Button(say("stop"), size="sm", elem_id="run-stop", visible=False, min_width=90)
                more = gr.Number(
                    0, label=say("more_minutes"), minimum=0, visible=False, min_width=110, elem_id="run-more"
                )
                go_on = gr.Button(say("go_on"), size="sm", elem_id="run-resume", visible=False, min_width=90)
                delete = gr.Button(
                    say("delete_run"), variant="stop", size="sm", elem_id="run-delete", visible=False, min_width=90
                )
            chart = gr.HTML(elem_id="run-chart")
            samples = gr.HTML(elem_id="run-samples")
    chosen, seen, timer = gr.State(""), gr.State([]), gr.Timer(2.0, active=False)
    acts = _TrainActions(studio, say)
    shown = [runs, state, stop, more, go_on, delete, chart, samples, timer]
    gr.on(
        [page.load, tab.select],
        acts.opened,
        chosen,
        [
            refused,
            allowed,
            fields["data_title"],
            fields["plan_title"],
            fields["set"],
            fields["model"],
            chosen,
            *shown,
            seen,
        ],
        **parts.QUIET,
    )
    fields["upload"].upload(
        acts.upload,
        [fields["upload"], fields["upload_to"]],
        [fields["upload"], fields["set"], fields["note"]],
        **parts.QUIET,
    )
    fields["start"].click(acts.start, [fields[name] for name in STARTED], [chosen, *shown, seen], **parts.QUIET)
    fields["stage"].input(acts.staged, fields["stage"], fields["model"], **parts.QUIET)
    runs.select(acts.select, None, [chosen, *shown, seen], **parts.QUIET)
    stop.click(acts.stop, chosen, [*shown, seen], **parts.QUIET)
    go_on.click(acts.go_on, [chosen, more], [*shown, seen], **parts.QUIET)
    delete.click(acts.delete, chosen, [chosen, *shown, seen], **parts.QUIET)
    timer.tick(acts.look, [chosen, seen], [*shown, seen], **parts.QUIET)


def _fields(say: gr.I18n) -> dict[str, Any]:
    found: dict[str, Any] = {"data_title": gr.HTML(elem_id="data-title")}
    found["upload_to"] = gr.Textbox(
        label=say("upload_to"), placeholder=say("upload_name_hint"), max_lines=1, elem_id="upload-to"
    )
    found["upload"] = gr.File(
        label=say("upload"), file_count="multiple", type="filepath", height=132, elem_id="upload-pictures"
    )
    found["note"] = gr.HTML(elem_id="upload-note")
    found["plan_title"] = gr.HTML(elem_id="plan-title")
    found["set"] = gr.Dropdown([], label=say("set"), elem_id="train-set")
    found["stage"] = gr.Radio(
        [(say("stage_denoiser"), "denoiser"), (say("stage_decoder"), "decoder"), (say("stage_vae"), "vae")],
        value="denoiser",
        label=say("stage"),
        elem_id="train-stage",
    )
    found["model"] = gr.Dropdown([], label=say("start_from"), elem_id="train-model")
    with gr.Row(elem_classes="g-tight"):
        found["name"] = gr.Textbox(
            label=say("run_name"), placeholder=say("run_name_hint"), max_lines=1, min_width=140, elem_id="run-name"
        )
        found["minutes"] = gr.Number(60, label=say("minutes"), minimum=0.05, min_width=90, elem_id="run-minutes")
    with gr.Accordion(say("settings"), open=False, elem_id="train-settings"):
        found["size"] = gr.Slider(0, 1024, 0, step=8, label=say("size"), info=say("zero_is_own"), elem_id="train-size")
        with gr.Row(elem_classes="g-tight"):
            found["rate"] = gr.Number(0, label=say("rate"), info=say("rate_hint"), minimum=0, maximum=1, min_width=120)
            found["batch"] = gr.Number(
                8, label=say("batch"), info=" ", precision=0, minimum=1, maximum=256, min_width=110
            )
    found["start"] = gr.Button(say("start"), variant="primary", elem_id="train-start")
    return found


class _TrainActions:
    """What the buttons do."""

    def __init__(self, studio: Studio, say: gr.I18n) -> None:
        self.studio, self.say, self.training = studio, say, studio.training

    def opened(self, chosen: str, request: gr.Request) -> Any:
        owner = owner_of(request)
        if not is_admin(self.studio, owner):
            refusal = parts.empty(said("not_admin", request), said("not_admin_hint", request, owner))
            return [refusal, gr.update(visible=False), *[gr.skip()] * 15]
        names = [entry.name for entry in self.studio.catalog.models()]
        models = gr.update(choices=names, value=self.studio.default_model(owner))
        titles = [
            parts.heading(said(f"{key}_title", request), said(f"{key}_text", request)) for key in ("data", "plan")
        ]
        return ["", gr.update(visible=True), *titles, self._sets(request), models, *self._chosen(chosen, request)]

    def upload(self, files: list[str] | None, name: str, request: gr.Request) -> Any:
        self._check(request)
        if not (name or "").strip():
            raise gr.Error(said("name_set", request))
        try:
            for file in files or []:
                found = self.studio.add_to_set(owner_of(request), name, Path(file).name, Path(file).read_bytes())
        except GouacheError as error:
            return None, self._sets(request), parts.trouble(said("failed", request), self.studio.told(error))
        note = said("added", request, found.name, found.pictures, found.captioned) if files else ""
        return None, self._sets(request, found.name if files else None), parts.notice(note)

    def staged(self, stage: str) -> Any:
        return gr.update(visible=stage != "vae")  # Which starts from nothing.

    def start(
        self,
        data: str | None,
        stage: str,
        model: str | None,
        name: str,
        minutes: float,
        size: int,
        rate: float,
        batch: int,
        request: gr.Request,
    ) -> Any:
        owner = self._check(request)
        if not data:
            raise gr.Error(said("choose_set", request))
        if not (name or "").strip():
            raise gr.Error(said("name_run", request))
        try:
            run = self.training.start(
                owner=owner,
                name=name,
                stage=next(one for one in STAGES if one == stage),
                data=data,
                minutes=float(minutes or 0),
                model=model,
                size=int(size or 0) or None,
                learning_rate=float(rate or 0) or None,
                batch_size=int(batch or 1),
            )
        except GouacheError as error:
            raise gr.Error(self.studio.told(error)) from error
        return self._chosen(run.plan.name, request)

    def stop(self, chosen: str, request: gr.Request) -> Any:
        self._check(request)
        self._try(self.training.stop, chosen)
        return self._shown(chosen, request)

    def go_on(self, chosen: str, minutes: float | None, request: gr.Request) -> Any:
        self._check(request)
        self._try(lambda name: self.training.resume(name, minutes=float(minutes or 0)), chosen)
        return self._shown(chosen, request)

    def delete(self, chosen: str, request: gr.Request) -> Any:
        self._check(request)
        self._try(self.training.delete, chosen)
        return self._chosen("", request)

    def select(self, event: gr.EventData, request: gr.Request) -> Any:
        self._check(request)
        return self._chosen(parts.picked(event), request)

    def look(self, chosen: str, seen: list[Any], request: gr.Request) -> Any:
        if not is_admin(self.studio, owner_of(request)):
            return [gr.skip()] * 10
        *now, key = self._shown(chosen, request)
        if key == seen:
            return [gr.skip()] * 10
        # The frame of unchanged parts stays, so that nothing flickers or loses the keyboard's focus.
        return [*(gr.skip() if old == new else value for value, old, new in zip(now, seen, key, strict=True)), key]

    def _check(self, request: gr.Request) -> str:
        owner = owner_of(request)
        try:
            check_admin(self.studio, owner)
        except GouacheError as error:
            raise gr.Error(self.studio.told(error)) from error
        return owner

    def _try(self, action: Any, name: str) -> None:
        try:
            action(name)
        except GouacheError as error:
            raise gr.Error(self.studio.told(error)) from error

    def _sets(self, request: gr.Request, value: str | None = None) -> Any:
        found = self.training.sets.listing()
        choices = [(said("set_of", request, each.name, each.pictures, each.captioned), each.name) for each in found]
        return gr.update(choices=choices, value=value or (found[0].name if found else None))

    def _chosen(self, chosen: str, request: gr.Request) -> list[Any]:
        runs = self.training.listing()
        names = [run.plan.name for run in runs]
        name = chosen if chosen in names else next(iter(names), "")
        return [name, *self._shown(name, request)]

    def _shown(self, chosen: str, request: gr.Request) -> list[Any]:
        """The nine parts of the right side, the timer last, and what tells whether they changed."""
        runs = self.training.listing()
        run = next((run for run in runs if run.plan.name == chosen), None)
        listed = self._list(runs, chosen, request)
        if run is None:
            hidden = [gr.update(visible=False)] * 4
            return [listed, "", *hidden, "", "", gr.Timer(active=False), [listed, "", *[False] * 4, "", "", False]]
        busy = run.phase in RUNNING
        texts = (listed, self._state(run, request), self._chart(run, request), self._samples(run, request))
        can_stop, is_over = busy and run.phase != "stopping", not busy
        flags = (can_stop, is_over, is_over, is_over)
        values = [texts[0], texts[1], *(gr.update(visible=flag) for flag in flags), texts[2], texts[3]]
        return [*values, gr.Timer(active=busy), [texts[0], texts[1], *flags, texts[2], texts[3], busy]]

    def _list(self, runs: list[TrainingRun], chosen: str, request: gr.Request) -> str:
        head = parts.heading(said("runs_title", request))
        if not runs:
            return (
                head
                + '<div style="height:12px"></div>'
                + parts.empty(said("no_runs", request), said("no_runs_hint", request))
            )
        rows = [self._row(run, request, chosen=run.plan.name == chosen) for run in runs]
        return f'{head}<div style="height:12px"></div>{parts.items(rows)}'

    def _row(self, run: TrainingRun, request: gr.Request, *, chosen: bool) -> str:
        plan = run.plan
        below = " · ".join(part for part in (plan.stage, plan.data, plan.model) if part)
        tag, kind = said(f"phase_{run.phase}", request), COLOURS.get(run.phase, "")
        return parts.item(plan.name, plan.name, below, chosen=chosen, tag=tag, kind=kind, side=f"{run.fraction:.0%}")

    def _state(self, run: TrainingRun, request: gr.Request) -> str:
        title = said(f"phase_{run.phase}", request)
        if run.phase == "failed":
            return parts.trouble(title, run.error)
        seen = said("seen", request, run.images_seen) if run.images_seen else ""
        trained = said(
            "trained", request, parts.time_of(run.seconds, request), parts.time_of(60 * run.plan.minutes, request)
        )
        if run.phase not in RUNNING:
            made = (self.training.models / run.plan.name).is_dir()
            makes = said("makes", request, run.plan.name) if made else ""
            return parts.notice(title, trained, seen, makes)
        doing = run.doing if run.doing.startswith("encoding") else ""
        return parts.progress(title, [trained, seen, doing], run.fraction if run.seconds else None)

    def _chart(self, run: TrainingRun, request: gr.Request) -> str:
        words = (said("loss", request), said("held_out", request), said("pictures_axis", request))
        chart = loss_chart(self.training.log(run.plan.name), words)
        if not chart and run.phase in RUNNING:
            return f'<p class="g-p">{parts.plain(said("no_curve", request))}</p>'
        return chart

    def _samples(self, run: TrainingRun, request: gr.Request) -> str:
        sheets = [path for path in self.training.samples(run.plan.name) if path.stem.isdecimal()][-SAMPLES_SHOWN:]
        command = f'<p class="g-p">{parts.plain(said("same_command", request))}</p>'
        command += f'<pre class="g-code">{parts.plain(self.training.command(run))}</pre>'
        return _sheets(run.plan.name, [int(path.stem) for path in reversed(sheets)], request) + command


def _sheets(name: str, seen: list[int], request: gr.Request) -> str:
    from urllib.parse import quote

    figures = []
    for number in seen:
        address = f"/v1/training/runs/{quote(name)}/samples/{number}"
        label = parts.plain(said("sample_at", request, number))
        figures.append(
            f'<figure><a class="g-shot" data-large href="{address}" data-name="sample-{number}.png">'
            f'<img src="{address}" alt="{label}"></a><figcaption class="g-p">{label}</figcaption></figure>'
        )
    return f'<div class="g-grid">{"".join(figures)}</div><div style="height:16px"></div>' if figures else ""
