"""An explanation as one HTML file: it needs no network, no script and no other file."""

from __future__ import annotations

import base64
import io
import json
from functools import cache
from html import escape
from importlib.resources import files
from typing import Literal

from PIL import Image

from gouache.pipeline.explain.explanation import Explanation, Token

Language = Literal["en", "zh"]
STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --ink: #22201c; --soft: #6b665d; --line: #dcd7cc;
  --accent: #b4532a }
@media (prefers-color-scheme: dark) {
  :root { --paper: #1c1b19; --ink: #ece8df; --soft: #a39d91; --line: #3a3833; --accent: #e08a5c } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Noto Sans CJK SC", sans-serif }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem }
h1 { font-size: 1.7rem; margin: 0 0 .3rem } h2 { font-size: 1.2rem; margin: 2.5rem 0 .4rem }
p { margin: .3rem 0 1rem; max-width: 44rem } .soft { color: var(--soft) }
.row { display: flex; flex-wrap: wrap; gap: .8rem }
figure { margin: 0 } figcaption { font-size: .85rem; color: var(--soft); text-align: center }
img { display: block; width: 8rem; height: auto; border: 1px solid var(--line); border-radius: 4px }
img.small { image-rendering: pixelated } img.large { width: 16rem }
.token { border: 1px solid var(--line); border-radius: 6px; padding: .4rem .7rem; font-size: .85rem }
.token b { font-size: 1rem } .token small { color: var(--soft) } .token div { white-space: nowrap }
table { border-collapse: collapse; font-size: .8rem } td { width: 2rem; height: 2rem; text-align: center }
th { font-weight: normal; padding: 0 .4rem; text-align: right }
th.top { writing-mode: vertical-rl; vertical-align: bottom; padding: .4rem 0 }
.bar { display: flex; align-items: center; gap: .6rem; font-size: .9rem }
.bar span:first-child { width: 9rem; text-align: right } .bar i { background: var(--accent); height: .8rem }
pre { white-space: pre-wrap; word-break: break-word; font-size: .75rem; color: var(--soft) }
"""


@cache
def words(language: Language) -> dict[str, str]:
    """The page's texts in one language."""
    table = json.loads(files(__package__).joinpath("words.json").read_text(encoding="utf-8"))
    return {key: texts[language] for key, texts in table.items()}


def to_html(seen: Explanation, language: Language = "en") -> str:
    """The explanation as a page.

    Args:
        seen: what was seen.
        language: of its texts.
    """
    say, request = words(language), seen.painted.recipe.request
    made = say["made"].format(
        model=seen.model,
        seed=seen.painted.seed,
        steps=len(seen.steps),
        sampler=request.sampler,
        guidance=f"{request.guidance_scale or 0:g}",
    )
    parts = [
        f"<h1>{say['title']}</h1>",
        f"<p><b>{say['prompt']}:</b> {escape(request.prompt)}<br><span class=soft>{escape(made)}</span></p>",
        _picture(seen.painted.image, "large", request.prompt),
        _section(say, "words", f"<div class=row>{''.join(map(_token, seen.tokens))}</div>"),
        f"<p>{say['likeness']}</p>{_likeness(seen)}",
        _draft(seen, say),
        _section(say, "steps", f"<div class=row>{_steps(seen)}</div>"),
        _attention(seen, say),
        _section(say, "features", f"<div class=row>{_features(seen)}</div>") if seen.features else "",
        f"<h2>{say['picture']}</h2>{_picture(seen.painted.image, 'large', request.prompt)}",
        f"<h2>{say['times']}</h2>{_times(seen, say)}",
        f"<h2>{say['recipe']}</h2><pre>{escape(seen.painted.recipe.to_json())}</pre>",
    ]
    return (
        f'<!doctype html>\n<html lang="{"zh-CN" if language == "zh" else "en"}">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(request.prompt)} – {say['title']}</title>\n<style>{STYLE}</style>\n"
        f"<main>\n{''.join(parts)}\n</main>\n</html>\n"
    )


def _section(say: dict[str, str], name: str, content: str) -> str:
    return f"<h2>{say[name]}</h2><p>{say[f'{name}.text']}</p>{content}"


def _picture(image: Image.Image, kind: str, alt: str) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img class="{kind}" alt="{escape(alt, quote=True)}" src="data:image/png;base64,{data}">'


def _figure(image: Image.Image, caption: str, *others: Image.Image) -> str:
    pictures = "".join(_picture(one, "small" if one.width < 128 else "plain", caption) for one in (image, *others))
    return f"<figure>{pictures}<figcaption>{escape(caption)}</figcaption></figure>"


def _token(token: Token) -> str:
    nearest = "".join(f"<div>{escape(word)} <small>{value:.2f}</small></div>" for word, value in token.nearest)
    return f"<div class=token><b>{escape(token.text)}</b> <small>{token.number}</small>{nearest}</div>"


def _likeness(seen: Explanation) -> str:
    names = [escape(token.text) for token in seen.tokens]
    head = "".join(f"<th class=top>{name}</th>" for name in names)
    rows = []
    for name, row in zip(names, seen.likeness, strict=True):
        cells = "".join(
            f'<td style="background: color-mix(in srgb, var(--accent) {max(0, round(100 * value))}%, transparent)"'
            f' title="{value:.2f}"></td>'
            for value in row
        )
        rows.append(f"<tr><th>{name}</th>{cells}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _draft(seen: Explanation, say: dict[str, str]) -> str:
    if seen.draft is None:
        return ""
    counts = [say["draft.one"] if n == 1 else say["draft.tokens"].format(count=n) for n, _ in seen.scales]
    figures = [_figure(image, count) for count, (_, image) in zip(counts, seen.scales, strict=True)]
    text = say["draft.text"] if figures else say["things.text"]
    figures = figures or [_figure(seen.draft, say["draft.whole"])]
    return f"<h2>{say['draft']}</h2><p>{text}</p><div class=row>{''.join(figures)}</div>"


def _steps(seen: Explanation) -> str:
    return "".join(
        _figure(step.shown, f"{number}: σ {step.sigma:.3g}, {step.seconds:.2f} s", step.denoised)
        for number, step in enumerate(seen.steps, 1)
    )


def _attention(seen: Explanation, say: dict[str, str]) -> str:
    maps = [_figure(token.attention, token.text) for token in seen.tokens if token.attention is not None]
    if not maps:
        return f"<h2>{say['attention']}</h2><p>{say['attention.none']}</p>"
    return _section(say, "attention", f"<div class=row>{''.join(maps)}</div>")


def _features(seen: Explanation) -> str:
    return "".join(_figure(image, name) for name, image in seen.features)


def _times(seen: Explanation, say: dict[str, str]) -> str:
    whole = max(sum(seen.seconds.values()), 1e-9)
    return "".join(
        f"<div class=bar><span>{say[f'part.{name}']}</span>"
        f'<i style="width: {30 * value / whole:.2f}rem"></i>'
        f"<span>{say['seconds'].format(seconds=f'{value:.2f}')}</span></div>"
        for name, value in seen.seconds.items()
    )
