// Presets, which are parts of a request under a name, and styles, which are texts laid around the prompt of each job.
import { html, useEffect, useState } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { paintOptions, paintRequest, toast, usePaintRequest } from "../../app/state.js";
import { explain, say } from "../../app/words.js";
import { fieldLabel } from "../../ui/fields.js";
import { Button, Empty, Icon, Segmented } from "../../ui/controls.js";
import { Dialog } from "../../ui/dialog.js";

const PLACE = "{prompt}";

const pathOf = (name) => `/v1/presets/${encodeURIComponent(name)}`;
const chosenStyles = () => paintOptions.peek().styles ?? [];

/** Put a preset into the form, or a style around the prompt; a message undoes it. */
export function apply(preset) {
  const [request, options] = [paintRequest.peek(), paintOptions.peek()];
  if (preset.request) {
    const prompt = request.prompt ?? "";
    usePaintRequest({ ...preset.request, prompt: preset.request.prompt || prompt });
  } else paintOptions.value = { ...options, styles: [...new Set([...chosenStyles(), preset.name])] };
  toast(say("paint.preset_applied", { name: preset.name }), { action: { label: say("app.undo"), run: () => { paintRequest.value = request; paintOptions.value = options; } } });
}

/** The same by name, as the prompt's completions know it. */
export async function applyNamed(name) {
  try {
    const found = (await api.get("/v1/presets")).find((one) => one.name === name);
    if (found) apply(found);
  } catch (error) {
    toast(explain(error), { kind: "error" });
  }
}

/** What a preset says, in a line. */
function summary(preset) {
  if (!preset.request) return [preset.prompt, preset.negative_prompt && `– ${preset.negative_prompt}`].filter(Boolean).join("  ");
  const { prompt, ...others } = preset.request;
  return [prompt, ...Object.keys(others).map(fieldLabel)].filter(Boolean).join(" · ");
}

function Row({ preset, onApply, onDelete }) {
  const isOn = !preset.request && (paintOptions.value.styles ?? []).includes(preset.name);
  return html`<li class="paint-preset"><button type="button" class="paint-row" aria-pressed=${isOn} onClick=${onApply}>
      <span class="paint-row-icon"><${Icon} name=${preset.request ? "gear" : "brush"} /></span>
      <span class="grow"><b>${preset.name}</b><small>${summary(preset)}</small></span>${isOn && html`<${Icon} name="check" />`}</button>
    <${Button} small quiet label=${say("paint.delete_preset", { name: preset.name })} onClick=${onDelete}><${Icon} name="trash" /><//></li>`;
}

function Save({ onSave }) {
  const [kind, setKind] = useState("preset");
  const [name, setName] = useState("");
  const [texts, setTexts] = useState({ prompt: PLACE, negative_prompt: "" });
  const save = (event) => {
    event.preventDefault();
    event.stopPropagation();
    if (name.trim()) onSave(name.trim(), kind === "preset" ? { request: paintRequest.peek() } : texts);
  };
  const text = (key, label) => html`<label class="field"><span>${label}</span><textarea rows="2" value=${texts[key]} onInput=${(event) => setTexts({ ...texts, [key]: event.target.value })}></textarea></label>`;
  return html`<form class="paint-save" onSubmit=${save}><h3>${say("paint.save_preset")}</h3>
    <${Segmented} label=${say("paint.save_preset")} value=${kind} onChange=${setKind} options=${[{ value: "preset", label: say("paint.save_settings") }, { value: "style", label: say("paint.save_style") }]} />
    ${kind === "style" ? html`${text("prompt", say("paint.style_prompt"))}${text("negative_prompt", say("paint.negative_prompt"))}` : html`<p class="hint">${say("paint.save_settings_hint")}</p>`}
    <div class="row"><input class="grow" id="preset-name" value=${name} maxlength="100" placeholder=${say("paint.preset_name")} aria-label=${say("paint.preset_name")} onInput=${(event) => setName(event.target.value)} />
      <${Button} type="submit" id="preset-save" disabled=${!name.trim()}>${say("paint.save")}<//></div></form>`;
}

export default function Presets({ onClose }) {
  const [found, setFound] = useState(null);
  const read = () => api.get("/v1/presets").then(setFound, (error) => { setFound([]); toast(explain(error), { kind: "error" }); });
  useEffect(() => { read(); }, []);
  const tried = (work) => work.then(read, (error) => toast(explain(error), { kind: "error" }));
  const save = (name, body) => tried(api.put(pathOf(name), body));
  const remove = (preset) => {
    const { name, ...body } = preset;
    paintOptions.value = { ...paintOptions.peek(), styles: chosenStyles().filter((one) => one !== name) };
    tried(api.del(pathOf(name)).then(() => toast(say("paint.preset_deleted", { name }), { action: { label: say("app.undo"), run: () => save(name, body) } })));
  };
  const toggle = (preset) => {
    if (!preset.request && chosenStyles().includes(preset.name)) {
      paintOptions.value = { ...paintOptions.peek(), styles: chosenStyles().filter((one) => one !== preset.name) };
    } else { apply(preset); onClose(); }
  };
  return html`<${Dialog} title=${say("paint.presets_title")} onClose=${onClose}><div class="paint-menu">
    ${found === null ? html`<p class="soft" role="status">${say("app.loading")}</p>`
      : found.length ? html`<ul class="paint-rows">${found.map((preset) => html`<${Row} key=${preset.name} preset=${preset} onApply=${() => toggle(preset)} onDelete=${() => remove(preset)} />`)}</ul>`
      : html`<${Empty} icon="list" title=${say("paint.no_presets")}>${say("paint.no_presets_hint")}<//>`}
    <${Save} onSave=${save} /></div><//>`;
}
