// Beside the canvas: what is painted anew and how, the candidates, layers and masks, control pictures.

import { html, useEffect, useRef, useState } from "../../app/preact.js";
import { boot } from "../../app/state.js";
import { say } from "../../app/words.js";
import { Button, Icon } from "../../ui/controls.js";
import { Controls } from "./controls.js";
import { FILLS } from "./generate.js";
import { More, Often, useUnusable } from "./more.js";
import { Range, Slide } from "./parts.js";
import * as session from "./session.js";

const { candidates, change, drawing, job, running, settings, split } = session;

const MOST = Math.min(16, boot.limits?.count ?? 16);
let known = { at: -1, masked: false }; // masks are looked through once for each change of the drawing

/** In a word what the button will do, since it follows from what is on the canvas. */
function deed() {
  if (drawing.empty) return "nothing";
  const at = drawing.changed.peek();
  if (known.at !== at) known = { at, masked: Boolean(drawing.brushed()) };
  if (drawing.framed) return known.masked ? "both" : "frame";
  return known.masked ? "mask" : "whole";
}

function Prompt() {
  void drawing.changed.value;
  const { prompt, count } = settings.value;
  const busy = running.value;
  const now = job.value;
  return html`<section class="panel edit-prompt">
    <div class="field"><label for="edit-prompt">${say("edit.prompt")}</label>
      <textarea id="edit-prompt" rows="3" placeholder=${say("edit.prompt_hint")} value=${prompt} onInput=${(event) => change({ prompt: event.target.value })}></textarea></div>
    <p class="hint" id="edit-deed">${say(`edit.deed.${deed()}`)}</p>
    <div class="row">
      ${busy ? html`<${Button} id="edit-cancel" class="grow" disabled=${!busy.id} onClick=${session.cancel}>${say("app.cancel")}<//>`
        : html`<${Button} id="edit-generate" class="grow" kind="primary" disabled=${drawing.empty} onClick=${session.generate}>${say("edit.generate")}<//>`}
      <label class="edit-count"><span>${say("edit.count")}</span><input id="edit-count" type="number" min="1" max=${MOST} value=${count}
        onChange=${(event) => change({ count: Math.min(MOST, Math.max(1, Math.round(Number(event.target.value)) || 1)) })} /></label>
    </div>
    ${busy && html`<div class="edit-progress" role="status" id="edit-progress"><progress max="1" value=${now?.progress ?? 0} aria-label=${say("edit.progress")}></progress>
      <span>${state(busy, now)}</span></div>`}
  </section>`;
}

function state(busy, now) {
  if (!now) return say(busy.sending ? "edit.sending" : "edit.waiting");
  if (now.state === "queued") return now.position ? say("edit.position", { n: now.position }) : say("edit.waiting");
  return `${Math.round(100 * now.progress)} %`;
}

function Candidates() {
  const found = candidates.value;
  if (!found) return null;
  const { list, index } = found;
  return html`<section class="panel edit-candidates" aria-label=${say("edit.candidates")}>
    <div class="edit-strip">${list.map((one, k) => html`<button type="button" key=${one.picture} aria-pressed=${k === index}
      aria-label=${say("edit.candidate", { n: k + 1 })} onClick=${() => session.showCandidate(k)}><img src=${`/v1/pictures/${one.picture}/thumbnail`} alt="" /></button>`)}</div>
    <label class="edit-range" for="edit-split"><span>${say("edit.before")}</span><input id="edit-split" type="range" min="0" max="1" step="0.01" value=${split.value}
      onInput=${(event) => (split.value = Number(event.target.value))} /><span>${say("edit.after")}</span></label>
    <div class="row"><${Button} id="edit-accept" class="grow" kind="primary" onClick=${session.accept}><${Icon} name="check" />${say("edit.accept")}<//>
      <${Button} id="edit-reject" class="grow" onClick=${session.reject}><${Icon} name="close" />${say("edit.reject")}<//></div>
  </section>`;
}

function Thumb({ layer }) {
  const holder = useRef();
  const count = drawing.changed.value;
  useEffect(() => {
    const context = holder.current.getContext("2d");
    const { width, height } = layer.canvas;
    const scale = Math.min(40 / width, 40 / height);
    context.clearRect(0, 0, 40, 40);
    context.drawImage(layer.canvas, (40 - width * scale) / 2, (40 - height * scale) / 2, width * scale, height * scale);
  }, [count, layer.canvas]);
  return html`<canvas ref=${holder} class="checker" width="40" height="40" aria-hidden="true"></canvas>`;
}

function Layer({ layer }) {
  const [naming, setNaming] = useState(false);
  void drawing.changed.value; // which one is active is no part of the layer
  const chosen = drawing.active === layer.id;
  const mask = layer.kind === "mask";
  const rename = (event) => {
    setNaming(false);
    const name = event.target.value.trim();
    if (name && name !== layer.name) drawing.change(layer.id, { name });
  };
  const shown = say(layer.visible ? "edit.hide" : "edit.unhide");
  return html`<li class="edit-layer ${chosen ? "chosen" : ""}">
    <div class="edit-layer-row">
      <${Button} small quiet label=${`${shown}: ${layer.name}`} pressed=${layer.visible} onClick=${() => drawing.change(layer.id, { visible: !layer.visible })}>
        <${Icon} name=${layer.visible ? "eye" : "minus"} /><//>
      ${naming ? html`<input class="edit-name" value=${layer.name} aria-label=${say("edit.name")} ref=${(field) => field?.focus()}
          onBlur=${rename} onKeyDown=${(event) => { if (event.key === "Enter") event.target.blur(); }} />`
        : html`<button type="button" class="edit-pick" aria-pressed=${chosen} onClick=${() => drawing.select(layer.id)} onDblClick=${() => setNaming(true)}>
          <${Thumb} layer=${layer} /><span>${layer.name}</span></button>`}
    </div>
    ${chosen && html`<div class="edit-layer-more">
      <div class="row"><${Button} small label=${say("edit.up")} onClick=${() => drawing.move(layer.id, 1)}><${Icon} name="up" /><//>
        <${Button} small label=${say("edit.down")} onClick=${() => drawing.move(layer.id, -1)}><${Icon} name="down" /><//>
        <${Button} small label=${say("edit.rename")} onClick=${() => setNaming(true)}><${Icon} name="edit" /><//>
        <${Button} small kind="danger" label=${say("edit.delete")} onClick=${() => drawing.remove(layer.id)}><${Icon} name="trash" /><//></div>
      <${Range} id=${`opacity-${layer.id}`} label=${say("edit.opacity")} min=${0} max=${1} step=${0.01} value=${layer.opacity}
        onInput=${(opacity) => drawing.change(layer.id, { opacity }, "opacity")} />
      ${mask && html`<${MaskPrompt} layer=${layer} />`}
    </div>`}
  </li>`;
}

function MaskPrompt({ layer }) {
  const unusable = useUnusable("regions");
  return html`<div class="field"><label for=${`prompt-${layer.id}`}>${say("edit.region_prompt")}</label>
      <textarea id=${`prompt-${layer.id}`} class="edit-region" rows="2" value=${layer.prompt} onInput=${(event) => drawing.change(layer.id, { prompt: event.target.value }, "prompt")}></textarea>
      <p class=${unusable && layer.prompt.trim() ? "bad small-text" : "hint"}>${say(unusable ? "edit.region_unusable" : "edit.region_hint")}</p></div>
    ${layer.prompt.trim() && html`<${Slide} id=${`weight-${layer.id}`} label=${say("edit.region_weight")} min=${0.1} max=${3} step=${0.1} value=${layer.weight}
      onChange=${(weight) => drawing.change(layer.id, { weight }, "weight")} />`}
    <label class="row"><input type="checkbox" checked=${layer.anew} onChange=${(event) => drawing.change(layer.id, { anew: event.target.checked })} />${say("edit.anew")}</label>`;
}

function Layers() {
  void drawing.changed.value;
  if (drawing.empty) return null;
  return html`<section class="panel edit-layers">
    <header class="row"><h2 class="grow">${say("edit.layers")}</h2>
      <${Button} small id="edit-add-paint" onClick=${() => drawing.add("paint", { name: say("edit.layer.paint") })}><${Icon} name="plus" />${say("edit.layer.paint")}<//>
      <${Button} small id="edit-add-mask" onClick=${() => drawing.add("mask", { name: say("edit.layer.mask") })}><${Icon} name="plus" />${say("edit.layer.mask")}<//></header>
    <ul>${[...drawing.masks.toReversed(), ...drawing.pictures.toReversed()].map((layer) => html`<${Layer} key=${layer.id} layer=${layer} />`)}</ul>
  </section>`;
}

function Anew() {
  const now = settings.value;
  return html`<details class="panel" open><summary>${say("edit.settings")}</summary><div class="stack">
    <${Slide} id="edit-strength" label=${say("edit.strength")} hint=${say("edit.strength_hint")} min=${0} max=${1} step=${0.01} value=${now.strength} onChange=${(strength) => change({ strength })} />
    <${Slide} id="edit-blur" label=${say("edit.blur")} min=${0} max=${64} unit="px" value=${now.blur} onChange=${(blur) => change({ blur })} />
    <div class="field"><label for="edit-fill">${say("edit.fill")}</label><select id="edit-fill" value=${now.fill} onChange=${(event) => change({ fill: event.target.value })}>
      ${FILLS.map((name) => html`<option key=${name} value=${name}>${say(`edit.fill.${name}`)}</option>`)}</select></div>
    <label class="row"><input id="edit-only-masked" type="checkbox" checked=${now.only_masked} onChange=${(event) => change({ only_masked: event.target.checked })} />${say("edit.only_masked")}</label>
    ${now.only_masked && html`<${Slide} id="edit-padding" label=${say("edit.padding")} min=${0} max=${256} unit="px" value=${now.padding} onChange=${(padding) => change({ padding })} />`}
    <${Slide} id="edit-overlap" label=${say("edit.overlap")} hint=${say("edit.overlap_hint")} min=${0} max=${128} unit="px" value=${now.overlap} onChange=${(overlap) => change({ overlap })} />
    <${Often} />
  </div></details>`;
}

export function Panel() {
  return html`<aside class="edit-panel" aria-label=${say("edit.panel")}>
    <${Candidates} /><${Prompt} /><${Layers} /><${Anew} /><${Controls} /><${More} />
  </aside>`;
}

