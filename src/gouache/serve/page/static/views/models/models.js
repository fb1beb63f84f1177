// The models: which there are, which one paints, what else a prompt may name, and where more come from.
import { html, signal, useEffect, useState } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { go } from "../../app/router.js";
import { boot, paintRequest, toast } from "../../app/state.js";
import { bytes, say } from "../../app/words.js";
import { Button, Icon } from "../../ui/controls.js";
import { Dialog } from "../../ui/dialog.js";
import AddPanel from "./add_panel.js";
import Adapters from "./adapters.js";
import { arrivals } from "./adding.js";
import { explainModel } from "./errors.js";

/** What `GET /v1/models` lists; null until it is known. */
const models = signal(null);
const failed = signal(null);

const load = () => api.get("/v1/models?unusable=true").then((found) => { models.value = found.data; failed.value = null; }, (error) => { failed.value = error; });

/** Paint with a model from now on: the field of the Paint view, empty where it is the default one. */
export function chooseModel(model) {
  const { model: _, style, ...rest } = paintRequest.value;
  const kept = style && model.styles.includes(style) ? { style } : {};
  paintRequest.value = { ...rest, ...kept, ...(model.default ? {} : { model: model.id }) };
}

function makeDefault(model) {
  return api.put("/v1/models/default", { model: model.id }).then(({ model: id }) => {
    boot.model = id;
    models.value = models.value.map((one) => ({ ...one, default: one.id === id }));
    // A request that names the default one needn't.
    if (paintRequest.value.model === id) chooseModel({ ...model, default: true });
    toast(say("models.is_default", { name: model.name }));
  }, (error) => toast(explainModel(error), { kind: "error" }));
}

/** A family's name; the shipped one has a word of its own in each language. */
const family = (model) => (model.family === "pocket" ? say("models.family_pocket") : model.family_label);
const facts = (model) => [family(model), model.side > 0 && `${model.side}\u00a0px`, model.size > 0 && bytes(model.size).replace(" ", "\u00a0")].filter(Boolean).join(" · ");

function Details({ model, onClose }) {
  const rows = [
    [say("models.name"), model.id], [say("models.family"), family(model)], [say("models.licence"), model.licence || say("models.licence_unknown")],
    [say("models.variant"), model.variant !== "base" && say(`models.variant_${model.variant}`)], [say("models.resolution"), model.side > 0 && `${model.side} × ${model.side}`],
    [say("models.parameters"), model.parameters > 0 && (model.parameters >= 1e9 ? `${(model.parameters / 1e9).toFixed(2)} B` : `${Math.round(model.parameters / 1e6)} M`)],
    [say("models.prediction"), model.prediction], [say("models.few_steps"), model.few_steps], [say("models.styles"), model.styles.join(", ")],
    [say("models.size"), model.size > 0 && bytes(model.size)], ["SHA-256", model.sha256],
  ].filter(([, value]) => value);
  return html`<${Dialog} title=${model.name} onClose=${onClose}>${model.description && html`<p>${model.description}</p>`}
    <dl class="models-facts">${rows.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl><//>`;
}

function Card({ model, current }) {
  const [open, setOpen] = useState(false);
  const use = () => { chooseModel(model); go("/paint"); };
  return html`<li class="models-card ${model.usable ? "" : "models-unusable"}" data-model=${model.id}>
    <div class="models-picture checker">${model.thumbnail ? html`<img src=${model.thumbnail} alt=${say("models.painted_with", { name: model.name })} loading="lazy" />` : html`<${Icon} name=${model.usable ? "box" : "info"} />`}</div>
    <div class="models-about">
      <h3 class="models-clip" title=${model.id}>${model.name}</h3>
      ${(model.default || model.shipped || model.variant !== "base") && html`<p class="models-tags">${model.default && html`<span class="models-tag models-tag-on">${say("models.default")}</span>`}${model.shipped && html`<span class="models-tag">${say("models.shipped")}</span>`}${model.variant !== "base" && html`<span class="models-tag">${say(`models.variant_${model.variant}`)}</span>`}</p>`}
      ${model.usable ? html`<p class="small-text soft">${facts(model)}</p><p class="small-text soft models-clip">${model.licence || say("models.licence_unknown")}</p>`
        : html`<p class="small-text bad">${explainModel(model.problem ?? { message: say("models.unusable") })}</p>`}
    </div>
    <div class="row models-actions">
      ${model.usable && html`<${Button} small kind=${current ? "plain" : "primary"} pressed=${current || undefined} onClick=${use} aria-label=${say("models.use_one", { name: model.name })}>${current ? html`<${Icon} name="check" />${say("models.in_use")}` : say("models.use")}<//>
        ${!model.default && html`<${Button} small onClick=${() => makeDefault(model)} aria-label=${say("models.make_default_one", { name: model.name })}>${say("models.make_default")}<//>`}
        <${Button} small quiet label=${say("models.details", { name: model.name })} onClick=${() => setOpen(true)}><${Icon} name="info" /><//>`}
    </div>
    ${open && html`<${Details} model=${model} onClose=${() => setOpen(false)} />`}
  </li>`;
}

function Cards() {
  const [words, setWords] = useState("");
  if (failed.value) return html`<p class="bad" role="alert">${explainModel(failed.value)}</p>`;
  const all = models.value;
  if (!all) return html`<p class="loading" role="status">${say("app.loading")}</p>`;
  const chosen = paintRequest.value.model;
  const isCurrent = (model) => (chosen ? [model.id, model.name].includes(chosen) : model.default);
  const fit = all.filter((one) => `${one.id} ${one.family_label}`.toLowerCase().includes(words.trim().toLowerCase()));
  return html`${all.length > 8 && html`<input type="search" class="models-search" aria-label=${say("models.search")} placeholder=${say("models.search")} value=${words} onInput=${(event) => setWords(event.target.value)} />`}
    ${fit.length ? html`<ul class="models-cards">${fit.map((model) => html`<${Card} key=${model.id} model=${model} current=${isCurrent(model)} />`)}</ul>` : html`<p class="soft" role="status">${say("models.none_found")}</p>`}`;
}

export default function Models() {
  const [busy, setBusy] = useState(false);
  const count = arrivals.value;
  useEffect(() => { load(); }, [count]);
  const refresh = () => { setBusy(true); api.post("/v1/models/refresh").then(load).then(() => { arrivals.value += 1; }, (error) => toast(explainModel(error), { kind: "error" })).finally(() => setBusy(false)); };
  const current = models.value?.find((one) => (paintRequest.value.model ? [one.id, one.name].includes(paintRequest.value.model) : one.default));
  return html`<div class="models">
    <div class="models-main stack">
      <div class="row"><h1 class="grow">${say("nav.models")}</h1><${Button} small onClick=${refresh} disabled=${busy} id="models-refresh"><${Icon} name="again" />${say("models.refresh")}<//></div>
      <${Cards} /><${Adapters} family=${current?.family ?? ""} />
    </div>
    <aside class="panel models-side" aria-label=${say("models.add_title")}><${AddPanel} /></aside>
  </div>`;
}
