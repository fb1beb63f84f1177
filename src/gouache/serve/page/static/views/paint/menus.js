// Which model paints, and the adapters beside it: the dialog that chooses them, and a slider for each that the prompt names.
import { html, useEffect, useRef, useState } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { paintRequest } from "../../app/state.js";
import { bytes, explain, say } from "../../app/words.js";
import { Button, Empty, Icon, Segmented } from "../../ui/controls.js";
import { Dialog } from "../../ui/dialog.js";
import { addToPrompt, networksIn } from "./prompt.js";
import { facts, field, setFields } from "./session.js";

const LOWEST = -1;
const HIGHEST = 2;

/** Put another text in place of a part of the prompt; the field shows it at once. */
function replaced(from, to, text) {
  const prompt = paintRequest.peek().prompt ?? "";
  setFields({ prompt: (prompt.slice(0, from) + text + prompt.slice(to)).replace(/^[\s,]+|[\s,]+$/g, "").replaceAll(/\s*,\s*,\s*/g, ", ") });
}

/** One slider for each adapter that the prompt names; it changes the number in `<lora:name:0.8>`. */
export function Networks({ networks }) {
  return html`<ul class="paint-networks" aria-label=${say("paint.adapters")}>
    ${networks.map((one, number) => html`<li key=${`${one.name}${number}`}><span class="grow" title=${one.name}>${one.name}</span>
      <input type="range" min=${Math.min(LOWEST, one.weight)} max=${Math.max(HIGHEST, one.weight)} step="0.05" value=${one.weight} aria-label=${say("paint.weight_of", { name: one.name })}
        onInput=${(event) => {
          const now = networksIn(paintRequest.peek().prompt ?? "")[number];
          if (now) replaced(now.from, now.to, `<${now.kind}:${now.name}:${Number(event.target.value)}${now.rest}>`);
        }} /><output>${one.weight}</output>
      <${Button} small quiet label=${say("paint.remove_adapter", { name: one.name })} onClick=${() => replaced(one.from, one.to, "")}><${Icon} name="close" /><//></li>`)}
  </ul>`;
}

function Row({ title, note, picture, icon, pressed, unfit, onClick }) {
  return html`<li><button type="button" class="paint-row ${unfit ? "unfit" : ""}" aria-pressed=${pressed} onClick=${onClick}>
    ${picture ? html`<img src=${picture} alt="" loading="lazy" />` : html`<span class="paint-row-icon"><${Icon} name=${icon} /></span>`}
    <span class="grow"><b>${title}</b>${note && html`<small>${note}</small>`}</span>${pressed && html`<${Icon} name="check" />`}</button></li>`;
}

const matches = (text, words) => words.toLowerCase().split(/\s+/).every((word) => text.toLowerCase().includes(word));
const plainName = (id) => id.split("/").at(-1).replace(/\.(safetensors|ckpt|gguf)$/, "");

function useListed(path) {
  const [found, setFound] = useState(null);
  useEffect(() => {
    api.get(path).then((data) => setFound(data.data ?? data), (error) => setFound({ error }));
  }, [path]);
  return found;
}

function Listed({ found, words, children, nothing }) {
  if (!found) return html`<p class="soft" role="status">${say("app.loading")}</p>`;
  if (found.error) return html`<p class="bad" role="alert">${explain(found.error)}</p>`;
  return found.length ? html`<ul class="paint-rows">${children}</ul>` : html`<${Empty} icon="box" title=${say(words ? "paint.none_found" : nothing)} />`;
}

function Models({ words, onClose }) {
  const found = useListed("/v1/models");
  const named = field("model").value ?? facts.value?.model;
  const fitting = found?.filter?.((one) => matches(`${one.id} ${one.title} ${one.family_label ?? ""}`, words)) ?? found;
  return html`<${Listed} found=${fitting} words=${words} nothing="paint.no_models">${fitting?.map?.((one) => html`<${Row} key=${one.id} title=${one.name ?? plainName(one.id)} icon="box" picture=${one.thumbnail}
    note=${[one.family_label, one.side ? `${one.side} px` : "", one.default ? say("paint.default_model") : "", one.size ? bytes(one.size) : ""].filter(Boolean).join(" · ")}
    pressed=${one.id === named} unfit=${one.usable === false} onClick=${() => { setFields({ model: one.default ? undefined : one.id }); onClose(); }} />`)}<//>`;
}

function Adapters({ words }) {
  const found = useListed("/v1/models/adapters");
  const prompt = field("prompt").value ?? "";
  const known = facts.value;
  const fits = (one) => !known || [...(known.adapters ?? []), ...(known.embeddings ?? [])].includes(one.name);
  const isWord = (one) => !/lora|lokr|loha|lyco|network/i.test(one.kind);
  const has = (one) => (isWord(one) ? prompt.includes(one.name) : networksIn(prompt).some((each) => each.name === one.name));
  const toggle = (one) => {
    if (!has(one)) {
      const triggers = (one.triggers ?? []).slice(0, one.triggers_named ? 3 : 0).filter((word) => !prompt.includes(word));
      addToPrompt([isWord(one) ? one.name : `<lora:${one.name}:1>`, ...triggers].join(", "));
    } else if (isWord(one)) {
      const at = prompt.indexOf(one.name);
      replaced(at, at + one.name.length, "");
    } else {
      const each = networksIn(prompt).find((network) => network.name === one.name);
      replaced(each.from, each.to, "");
    }
  };
  const fitting = found?.filter?.((one) => matches(`${one.name} ${one.title ?? ""} ${(one.triggers ?? []).join(" ")}`, words)).sort((a, b) => fits(b) - fits(a)) ?? found;
  return html`<${Listed} found=${fitting} words=${words} nothing="paint.no_adapters">${fitting?.map?.((one) => html`<${Row} key=${one.name} title=${one.title || one.name} icon="spark" pressed=${has(one)} unfit=${!fits(one)}
    note=${[isWord(one) ? say("paint.kind_embedding") : say("paint.kind_lora"), one.family_label ?? one.family, fits(one) ? "" : say("paint.unfit"), (one.triggers ?? []).slice(0, 3).join(", ")].filter(Boolean).join(" · ")}
    onClick=${() => toggle(one)} />`)}<//>`;
}

/** The dialog with models and adapters. */
export function ModelMenu({ tab, onClose }) {
  const [shown, setShown] = useState(tab);
  const [words, setWords] = useState("");
  const search = useRef();
  useEffect(() => { search.current?.focus(); }, [shown]);
  const tabs = [{ value: "models", label: say("paint.models") }, { value: "adapters", label: say("paint.adapters") }];
  return html`<${Dialog} title=${say("paint.choose_model")} onClose=${onClose}><div class="paint-menu">
    <div class="row"><${Segmented} label=${say("paint.choose_model")} options=${tabs} value=${shown} onChange=${setShown} />
      <input ref=${search} type="search" class="grow" value=${words} placeholder=${say("paint.search")} aria-label=${say("paint.search")} onInput=${(event) => setWords(event.target.value)} /></div>
    ${shown === "models" ? html`<${Models} words=${words} onClose=${onClose} />` : html`<${Adapters} words=${words} />`}
    <p class="small-text soft"><a href="/models">${say("paint.manage_models")}</a></p></div><//>`;
}
