"""An explanation as one HTML file: it needs no network and no other file, and shows everything without a script too."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from importlib.resources import files
from typing import Literal

from gouache.pipeline.explain.data import DataUri, ExplanationData, TokenData

Language = Literal["en", "zh"]
STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #fff; --ink: #22201c; --soft: #6b665d; --line: #dcd7cc;
  --accent: #b4532a }
@media (prefers-color-scheme: dark) {
  :root { --paper: #1c1b19; --card: #262421; --ink: #ece8df; --soft: #a39d91; --line: #3a3833; --accent: #e08a5c } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem }
h1 { font-size: 1.7rem; margin: 0 0 .3rem } h2 { font-size: 1.2rem; margin: 2.5rem 0 .4rem }
p { margin: .3rem 0 1rem; max-width: 44rem } .soft { color: var(--soft) }
.row { display: flex; flex-wrap: wrap; gap: .8rem }
figure { margin: 0; break-inside: avoid } figcaption { font-size: .85rem; color: var(--soft); text-align: center }
img { display: block; width: 8rem; height: auto; border: 1px solid var(--line); border-radius: 4px }
img.small { image-rendering: pixelated } img.large, .frame img { width: 16rem; max-width: 100% }
.frame { position: relative; width: 16rem; max-width: 100%; isolation: isolate; background: #fff }
.frame .heat { position: absolute; inset: 0; height: 100%; border-color: transparent; mix-blend-mode: multiply;
  opacity: .85 }
.look, .steps { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
.said { display: flex; flex-wrap: wrap; gap: .4rem; margin: 0 } .look > div:last-child { flex: 1 1 16rem }
button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .3rem .7rem; min-height: 2.2rem; cursor: pointer }
button:hover, button[aria-pressed=true] { border-color: var(--accent); color: var(--accent) }
.token { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .4rem .7rem;
  font-size: .85rem; break-inside: avoid }
.token b { font-size: 1rem } .token small { color: var(--soft) } .token div { white-space: nowrap }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .8rem }
td { min-width: 2rem; height: 2rem; text-align: center } td i { color: var(--ink); font-style: normal }
th { font-weight: normal; padding: 0 .4rem; text-align: right; white-space: nowrap }
th.top { writing-mode: vertical-rl; vertical-align: bottom; padding: .4rem 0 }
.steps input { width: 100%; accent-color: var(--accent); min-height: 2rem }
.steps label { display: block; flex: 1 0 100% }
.bar { display: flex; align-items: center; gap: .6rem; font-size: .9rem; max-width: 44rem }
.bar span { flex: 0 0 7rem; white-space: nowrap } .bar span:first-child { flex-basis: 8rem; text-align: right }
.bar div { flex: 1; min-width: 2rem }
.bar i { display: block; background: var(--accent); height: .8rem; min-width: 1px }
summary { cursor: pointer }
pre { white-space: pre-wrap; word-break: break-word; font-size: .75rem; color: var(--soft) }
@media print { main { padding: 0 } .look, .steps { display: none } * { print-color-adjust: exact } }
"""
SCRIPT = """
const make = (name, more, ...inside) => {
  const made = Object.assign(document.createElement(name), more);
  made.append(...inside);
  return made;
};
const words = JSON.parse(document.getElementById("words").textContent);
const look = document.getElementById("look");
const maps = [...document.querySelectorAll("#maps figure")];
if (look && maps.length) {
  const heat = make("img", { className: "heat", alt: "", hidden: true });
  let fixed = null;
  const buttons = maps.map((figure) => {
    const map = figure.querySelector("img").src;
    const button = make("button", { type: "button" }, figure.querySelector("figcaption").textContent);
    button.setAttribute("aria-pressed", "false");
    const show = (src) => { heat.hidden = !src; if (src) heat.src = src; };
    button.onmouseenter = button.onfocus = () => show(map);
    button.onmouseleave = button.onblur = () => show(fixed);
    button.onclick = () => {
      fixed = fixed === map ? null : map;
      for (const one of buttons) one.setAttribute("aria-pressed", String(one === button && fixed === map));
      show(fixed);
    };
    return button;
  });
  look.querySelector(".frame").append(heat);
  look.append(make("div", {}, make("p", {}, words.hover), make("div", { className: "said" }, ...buttons)));
}
const steps = [...document.querySelectorAll("#steps figure")];
if (steps.length > 1) {
  const [noisy, clean] = [0, 1].map(() => make("img", {}));
  const told = make("span", {});
  const slider = make("input", { type: "range", min: 1, max: steps.length, value: steps.length });
  const show = () => {
    const figure = steps[slider.value - 1];
    [noisy, clean].forEach((image, number) => {
      const from = figure.querySelectorAll("img")[number];
      Object.assign(image, { src: from.src, alt: from.alt, className: `large ${from.className}` });
    });
    told.textContent = figure.querySelector("figcaption").textContent;
  };
  slider.oninput = show;
  show();
  const part = (image, text) => make("figure", {}, image, make("figcaption", {}, text));
  document.getElementById("steps").before(make("div", { className: "steps" },
    make("label", {}, words.slider, " ", told, slider), part(noisy, words.shown), part(clean, words.denoised)));
}
"""


@cache
def words(language: Language) -> dict[str, str]:
    """The page's texts in one language."""
    table = json.loads(files(__package__).joinpath("words.json").read_text(encoding="utf-8"))
    return {key: texts[language] for key, texts in table.items()}


def to_html(seen: ExplanationData, language: Language = "en") -> str:
    """The explanation as a page.

    Args:
        seen: what was seen.
        language: of its texts.
    """
    say = words(language)
    made = say["made"].format(
        model=seen.model,
        seed=seen.seed,
        steps=len(seen.steps),
        sampler=seen.sampler,
        guidance=f"{seen.guidance:g}",
    )
    recipe = json.dumps(seen.recipe, ensure_ascii=False)
    parts = [
        f"<h1>{say['title']}</h1>",
        f"<p><b>{say['prompt']}:</b> {escape(seen.prompt)}<br><span class=soft>{escape(made)}</span></p>",
        f"<div class=look id=look><div class=frame>{_picture(seen.picture, 'plain', seen.prompt)}</div></div>",
        _words(seen, say),
        _draft(seen, say),
        _section(say, "steps", f"<div class=row id=steps>{_steps(seen, say)}</div>"),
        _attention(seen, say),
        _section(say, "features", f"<div class=row>{_features(seen)}</div>") if seen.features else "",
        _section(say, "picture", _picture(seen.picture, "large", seen.prompt)),
        _section(say, "times", _times(seen, say)),
        f"<h2>{say['recipe']}</h2><p>{say['recipe.text']}</p><details><summary>{say['recipe.show']}</summary>"
        f"<pre>{escape(recipe)}</pre></details>",
    ]
    told = {name: say[f"script.{name}"] for name in ("hover", "slider", "shown", "denoised")}
    return (
        f'<!doctype html>\n<html lang="{"zh-CN" if language == "zh" else "en"}">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(seen.prompt)} – {say['title']}</title>\n<style>{STYLE}</style>\n"
        f"<main>\n{''.join(parts)}\n</main>\n"
        f'<script type="application/json" id="words">{json.dumps(told)}</script>\n<script>{SCRIPT}</script>\n</html>\n'
    )


def _section(say: dict[str, str], name: str, content: str) -> str:
    return f"<h2>{say[name]}</h2><p>{say[f'{name}.text']}</p>{content}"


def _picture(uri: DataUri, kind: str, alt: str) -> str:
    return f'<img class="{kind}" alt="{escape(alt, quote=True)}" src="{uri}">'


def _figure(caption: str, *pictures: tuple[DataUri, str, str]) -> str:
    """Pictures one above the other, each with its class and its text, and what stands below."""
    shown = "".join(_picture(uri, kind, alt) for uri, kind, alt in pictures)
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def _words(seen: ExplanationData, say: dict[str, str]) -> str:
    if not seen.tokens:
        return f"<h2>{say['words']}</h2><p>{say['words.none']}</p>"
    tokens = f"<div class=row>{''.join(map(_token, seen.tokens))}</div>"
    alike = "" if len(seen.tokens) == 1 else f"<p>{say['likeness']}</p><div class=wide>{_likeness(seen)}</div>"
    return _section(say, "words", tokens) + alike


def _token(token: TokenData) -> str:
    nearest = "".join(f"<div>{escape(word)} <small>{value:.2f}</small></div>" for word, value in token.nearest)
    return f"<div class=token><b>{escape(token.text)}</b> <small>{token.number}</small>{nearest}</div>"


def _likeness(seen: ExplanationData) -> str:
    names = [escape(token.text) for token in seen.tokens]
    head = "".join(f"<th class=top scope=col>{name}</th>" for name in names)
    rows = []
    for name, row in zip(names, seen.likeness, strict=True):
        cells = "".join(
            f'<td style="background: color-mix(in srgb, var(--accent) {max(0, round(70 * value))}%, transparent)">'
            f"<i>{value:.1f}</i></td>"
            for value in row
        )
        rows.append(f"<tr><th scope=row>{name}</th>{cells}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _draft(seen: ExplanationData, say: dict[str, str]) -> str:
    if seen.draft is None:
        return ""
    figures = [
        _figure(
            say["draft.one"] if scale.tokens == 1 else say["draft.tokens"].format(count=scale.tokens),
            (scale.picture, "plain", ""),
        )
        for scale in seen.scales
    ]
    text = say["draft.text"] if figures else say["things.text"]
    figures = figures or [_figure(say["draft.whole"], (seen.draft, "plain", ""))]
    return f"<h2>{say['draft']}</h2><p>{text}</p><div class=row>{''.join(figures)}</div>"


def _steps(seen: ExplanationData, say: dict[str, str]) -> str:
    return "".join(
        _figure(
            f"{number}: σ {step.sigma:.3g}, {step.seconds:.2f} s",
            (step.shown, "small", say["script.shown"]),
            (step.denoised, "small", say["script.denoised"]),
        )
        for number, step in enumerate(seen.steps, 1)
    )


def _attention(seen: ExplanationData, say: dict[str, str]) -> str:
    maps = [_figure(one.text, (one.attention, "small", "")) for one in seen.tokens if one.attention is not None]
    if not maps:
        return f"<h2>{say['attention']}</h2><p>{say['attention.none' if seen.tokens else 'words.none']}</p>"
    return _section(say, "attention", f"<div class=row id=maps>{''.join(maps)}</div>")


def _features(seen: ExplanationData) -> str:
    return "".join(_figure(one.name, (one.picture, "small", "")) for one in seen.features)


def _times(seen: ExplanationData, say: dict[str, str]) -> str:
    whole = max(sum(seen.seconds.values()), 1e-9)
    return "".join(
        f"<div class=bar><span>{say[f'part.{name}']}</span>"
        f'<div><i style="width: {100 * value / whole:.1f}%"></i></div>'
        f"<span>{say['seconds'].format(seconds=f'{value:.2f}')}, {100 * value / whole:.0f} %</span></div>"
        for name, value in seen.seconds.items()
    )
