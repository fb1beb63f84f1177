// What a prompt may name beside its words: LoRA files with their weight, embeddings; and the networks that control pictures.
import { html, useEffect, useState } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { paintRequest, toast } from "../../app/state.js";
import { bytes, say } from "../../app/words.js";
import { go } from "../../app/router.js";
import { Button, Icon, Segmented } from "../../ui/controls.js";
import { arrivals } from "./adding.js";

const WEIGHT = 0.8;
const escaped = (text) => text.replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&");
const loraPattern = (name) => new RegExp(`\\s*<(?:lora|lyco):${escaped(name)}(?::(-?[\\d.]+))?[^>]*>`, "i");
const wordPattern = (word) => new RegExp(`(^|[\\s,(])${escaped(word)}(?=$|[\\s,:)])`, "i");

/** The weight with which a prompt names a LoRA; null where it doesn't. */
export function weightIn(prompt, name) {
  const found = loraPattern(name).exec(prompt);
  return found ? Number(found[1] ?? 1) : null;
}

/** The prompt with a LoRA of this weight, in place of what it says of it; null takes it out. */
export function withLora(prompt, name, weight) {
  const tag = weight === null ? "" : ` <lora:${name}:${weight}>`;
  const pattern = loraPattern(name);
  return (pattern.test(prompt) ? prompt.replace(pattern, tag) : `${prompt}${tag}`).trim();
}

/** The prompt with some words at its end, unless they are in it. */
export function withWords(prompt, words) {
  if (wordPattern(words).test(prompt)) return prompt;
  const before = prompt.trimEnd();
  return before && !before.endsWith(",") ? `${before}, ${words}` : `${before} ${words}`.trim();
}

const setText = (name, text) => { paintRequest.value = { ...paintRequest.value, [name]: text }; };
const toPaint = { label: say("models.to_paint"), run: () => go("/paint") };

function Family({ one, family }) {
  if (!one.family_label) return html`<span class="models-tag">${say("models.family_unknown")}</span>`;
  if (!family || one.family === family) return html`<span class="models-tag ${family ? "models-tag-on" : ""}">${one.family_label}</span>`;
  return html`<span class="models-tag models-tag-off" title=${say("models.other_family")}>${one.family_label}</span>`;
}

function Triggers({ one }) {
  const prompt = paintRequest.value.prompt ?? "";
  if (!one.triggers.length) return null;
  return html`<div class="models-triggers"><span class="small-text soft">${say(one.triggers_named ? "models.triggers" : "models.triggers_counted")}</span>
    ${one.triggers.map((word) => html`<button type="button" key=${word} class="models-chip" aria-pressed=${wordPattern(word).test(prompt)} onClick=${() => setText("prompt", withWords(prompt, word))}>${word}</button>`)}</div>`;
}

function Lora({ one, family }) {
  const prompt = paintRequest.value.prompt ?? "";
  const named = weightIn(prompt, one.name);
  const [chosen, setChosen] = useState(WEIGHT);
  const weight = named ?? chosen;
  const give = (value) => { setChosen(value); if (named !== null) setText("prompt", withLora(prompt, one.name, value)); };
  const add = () => { setText("prompt", withLora(prompt, one.name, chosen)); toast(say("models.in_prompt", { name: one.name }), { action: toPaint }); };
  const fits = !family || !one.family_label || one.family === family;
  return html`<li class="models-adapter" data-adapter=${one.name}>
    <div class="row"><b class="models-clip grow" title=${one.label}>${one.name}</b><${Family} one=${one} family=${family} /><span class="small-text soft">${bytes(one.bytes)}</span></div>
    ${one.usable ? html`${one.description && html`<p class="small-text soft">${one.description}</p>`}<${Triggers} one=${one} />
      <div class="row models-weight"><label class="grow"><span class="visually-hidden">${say("models.weight_of", { name: one.name })}</span>
          <input type="range" min="-1" max="2" step="0.05" value=${weight} onInput=${(event) => give(Number(event.target.value))} /></label>
        <output>${weight.toFixed(2)}</output>
        ${named === null ? html`<${Button} small onClick=${add} aria-label=${say("models.add_to_prompt_one", { name: one.name })} title=${fits ? null : say("models.other_family")}><${Icon} name="plus" />${say("models.add_to_prompt")}<//>`
          : html`<${Button} small pressed onClick=${() => setText("prompt", withLora(prompt, one.name, null))} aria-label=${say("models.take_out_one", { name: one.name })}>${say("models.take_out")}<//>`}</div>`
      : html`<p class="small-text bad">${say("models.unusable")}</p>`}</li>`;
}

function Embedding({ one, family }) {
  const add = (field) => {
    setText(field, withWords(paintRequest.value[field] ?? "", one.name));
    toast(say("models.in_prompt", { name: one.name }), { action: toPaint });
  };
  return html`<li class="models-adapter" data-adapter=${one.name}>
    <div class="row"><b class="models-clip grow">${one.name}</b><${Family} one=${one} family=${family} /><span class="small-text soft">${bytes(one.bytes)}</span></div>
    ${one.usable ? html`<div class="row"><${Button} small onClick=${() => add("prompt")} aria-label=${say("models.add_to_prompt_one", { name: one.name })}><${Icon} name="plus" />${say("models.add_to_prompt")}<//>
        <${Button} small onClick=${() => add("negative_prompt")} aria-label=${say("models.add_to_negative_one", { name: one.name })}>${say("models.add_to_negative")}<//></div>`
      : html`<p class="small-text bad">${say("models.unusable")}</p>`}</li>`;
}

function Network({ one, family }) {
  return html`<li class="models-adapter"><div class="row"><b class="models-clip grow" title=${one.label}>${one.name}</b>
    ${"family" in one && html`<${Family} one=${one} family=${family} />`}<span class="small-text soft">${bytes(one.bytes)}</span></div></li>`;
}

const TABS = [["lora", Lora], ["embedding", Embedding], ["control", Network], ["ip_adapter", Network], ["vae", Network]];

/**
 * The lists of everything that isn't a model.
 *
 * @param {{family: string}} props of the model that paints now; empty = unknown.
 */
export default function Adapters({ family }) {
  const [lists, setLists] = useState(null);
  const [tab, setTab] = useState("lora");
  const count = arrivals.value;
  useEffect(() => {
    const paths = ["adapters", "controls", "ip-adapters", "vaes"].map((name) => api.get(`/v1/models/${name}`));
    Promise.all(paths).then(([adapters, control, ip_adapter, vae]) => setLists({
      lora: adapters.filter((one) => one.kind === "lora"), embedding: adapters.filter((one) => one.kind !== "lora"), control, ip_adapter, vae,
    }), () => setLists({ lora: [], embedding: [], control: [], ip_adapter: [], vae: [] }));
  }, [count]);
  if (!lists) return null;
  const shown = TABS.filter(([name]) => name === "lora" || name === "embedding" || name === "control" || lists[name].length);
  const [, Row] = TABS.find(([name]) => name === tab);
  const fitting = (one) => Number(Boolean(family) && one.family !== family && Boolean(one.family_label));
  const rows = [...lists[tab]].sort((a, b) => fitting(a) - fitting(b));
  const label = (name) => [say(`models.tab_${name}`), lists[name].length || ""].join(" ").trim();
  const isNetwork = ["control", "ip_adapter", "vae"].includes(tab);
  return html`<section class="stack" aria-label=${say("models.beside")}><h2>${say("models.beside")}</h2>
    <div class="models-tabs"><${Segmented} label=${say("models.beside")} value=${tab} onChange=${setTab} options=${shown.map(([name]) => ({ value: name, label: label(name) }))} /></div>
    ${rows.length > 0 && html`<ul class="models-adapters">${rows.map((one) => html`<${Row} key=${one.name} one=${one} family=${family} />`)}</ul>`}
    ${(rows.length === 0 || isNetwork) && html`<p class="soft small-text">${say(rows.length ? `models.hint_${tab}` : `models.no_${tab}`)}</p>`}</section>`;
}
