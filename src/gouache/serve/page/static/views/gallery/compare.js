// Two pictures laid over one another: a slider says how much of each is seen; below it, what differs between their settings.
import { html, useEffect, useState } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { useHotkeys } from "../../app/keys.js";
import { go } from "../../app/router.js";
import { explain, say } from "../../app/words.js";
import { Button, Icon } from "../../ui/controls.js";
import { settingsOf } from "../../ui/recall.js";
import { search } from "./store.js";
import { labelOf, rowsOf, valueOf } from "./settings.js";

const fileOf = (id) => `/v1/pictures/${id}/file`;

export default function Compare({ ids }) {
  const [share, setShare] = useState(50);
  const [found, setFound] = useState(null);
  const [failed, setFailed] = useState(null);
  const [a, b] = ids;
  const back = () => go(`/gallery${search.peek()}`);
  useHotkeys([
    { keys: "Escape", label: say("app.close"), run: back },
    { keys: "s", label: say("gallery.swap"), run: () => go(`/gallery/compare/${b}/${a}${search.peek()}`, { replace: true }) },
  ], [a, b]);
  useEffect(() => {
    let current = true;
    Promise.all([a, b].map(async (id) => ({ picture: await api.get(`/v1/pictures/${id}`), settings: await settingsOf(id) }))).then(
      (both) => { if (current) setFound(both); },
      (error) => { if (current) setFailed(error); },
    );
    return () => { current = false; };
  }, [a, b]);
  if (failed) return html`<div class="empty" role="alert"><${Icon} name="image" /><h2>${say("gallery.gone")}</h2><p>${explain(failed)}</p><${Button} onClick=${back}>${say("gallery.back")}<//></div>`;
  const [one, other] = found ?? [];
  const rows = found ? differences(one, other) : [];
  return html`<section class="gallery-close gallery-compare" aria-label=${say("gallery.compare")}>
    <header class="gallery-close-head"><${Button} quiet id="viewer-close" label=${say("gallery.back")} onClick=${back}><${Icon} name="left" /><span>${say("nav.gallery")}</span><//>
      <span class="grow"></span><${Button} small id="compare-swap" onClick=${() => go(`/gallery/compare/${b}/${a}${search.peek()}`, { replace: true })}><${Icon} name="swap" />${say("gallery.swap")}<//></header>
    ${found && html`<div class="gallery-pair" style=${{ "--ratio": String(one.picture.width / one.picture.height) }}>
        <img src=${fileOf(b)} alt=${other.picture.prompt || say("gallery.untitled")} />
        <img src=${fileOf(a)} alt=${one.picture.prompt || say("gallery.untitled")} style=${{ clipPath: `inset(0 ${100 - share}% 0 0)` }} />
        <i style=${{ left: `${share}%` }}></i>
        <input id="compare-slider" type="range" min="0" max="100" step="0.5" value=${share} aria-label=${say("gallery.compare_slider")} onInput=${(event) => setShare(Number(event.target.value))} /></div>
      ${rows.length ? html`<table class="gallery-differences"><caption>${say("gallery.differences")}</caption><thead><tr><th scope="col">${say("gallery.setting")}</th><th scope="col">${say("gallery.left")}</th><th scope="col">${say("gallery.right")}</th></tr></thead>
        <tbody>${rows.map((row) => html`<tr key=${row.name}><th scope="row">${labelOf(row.name)}</th><td>${row.one}</td><td>${row.other}</td></tr>`)}</tbody></table>`
        : html`<p class="soft gallery-centre">${say("gallery.no_differences")}</p>`}`}
  </section>`;
}

function differences(one, other) {
  const [left, right] = [one, other].map(({ picture, settings }) => new Map([["prompt", picture.prompt], ["negative_prompt", settings.painted.negative_prompt ?? ""], ...rowsOf(picture, settings)]));
  return [...new Set([...left.keys(), ...right.keys()])]
    .map((name) => ({ name, one: valueOf(left.get(name)), other: valueOf(right.get(name)) }))
    .filter((row) => row.one !== row.other);
}
