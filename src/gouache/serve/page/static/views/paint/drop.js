// Pictures that come in: by dropping, pasting, or from the result. One with settings fills the form, another is painted from.
import { html, useEffect, useState } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { paintRequest, toast, usePaintRequest } from "../../app/state.js";
import { explain, say } from "../../app/words.js";
import { Button, Icon } from "../../ui/controls.js";
import { Dialog } from "../../ui/dialog.js";
import { uploaded } from "../../ui/inputs.js";
import { facts, field, setFields, withoutDefaults } from "./session.js";

const USES = ["init_image", "image_prompts", "control"];
const ICONS = { init_image: "image", image_prompts: "eye", control: "grid" };

/** The ways in which the chosen model can use a picture. */
function usable() {
  const known = facts.value;
  const can = { init_image: true, image_prompts: known?.reads_pictures || known?.ip_adapters?.length, control: known?.controls?.length };
  return USES.filter((use) => can[use]);
}

/**
 * Paint from a picture from now on.
 *
 * @param {Blob} blob
 * @param {"init_image" | "image_prompts" | "control"} use
 */
export async function takeIn(blob, use) {
  const known = facts.peek();
  if (!usable().includes(use)) {
    toast(say(`paint.cannot_${use}`), { kind: "error" });
    return;
  }
  let name;
  try {
    [name] = await uploaded([blob]);
  } catch (error) {
    toast(explain(error), { kind: "error" });
    return;
  }
  const before = paintRequest.peek();
  if (use === "init_image") setFields({ init_image: name });
  else if (use === "image_prompts") {
    const adapter = known.reads_pictures ? {} : { adapter: known.ip_adapters[0] };
    setFields({ image_prompts: [...(before.image_prompts ?? []), { ...adapter, images: [name] }] });
  } else setFields({ control: [...(before.control ?? []), { model: known.controls[0], image: name }] });
  toast(say(`paint.taken_${use}`), { action: { label: say("app.undo"), run: () => { paintRequest.value = before; } } });
}

function Thumbnail({ name, label, onRemove, children }) {
  const [lost, setLost] = useState(false);
  return html`<li class="paint-input"><span class="paint-input-picture checker">${lost ? html`<${Icon} name="image" />`
    : html`<img src=${`/v1/attachments/${name.replace("sha256:", "")}`} alt="" onError=${() => setLost(true)} />`}</span>
    <div class="grow"><div class="paint-label"><span class="label">${label}</span>
      <${Button} small quiet label=${say("paint.remove_input", { name: label })} onClick=${onRemove}><${Icon} name="close" /><//></div>${children}</div></li>`;
}

function Strength({ value, onInput, label, most = 1 }) {
  return html`<div class="paint-strength"><input type="range" min="0" max=${most} step="0.01" value=${value} aria-label=${label} onInput=${(event) => onInput(Number(event.target.value))} /><output>${value}</output></div>`;
}

/** The pictures that the request is painted from, each with how much it counts. */
export function Inputs() {
  const [start, strength] = [field("init_image").value, field("strength").value];
  const lists = ["image_prompts", "control"].flatMap((use) => (field(use).value ?? []).map((one, number) => ({ use, one, number })))
    .filter(({ use, one }) => (use === "control" ? one.image : one.images?.[0]));
  const put = (use, number, one) => {
    const list = paintRequest.peek()[use].toSpliced(number, 1, ...(one ? [one] : []));
    setFields({ [use]: list.length ? list : undefined });
  };
  const removeStart = () => setFields(Object.fromEntries(["init_image", "strength", "mask", "outpaint", "inversion"].map((name) => [name, undefined])));
  return html`<ul class="paint-inputs" aria-label=${say("paint.inputs")}>
    ${start && html`<${Thumbnail} name=${start} label=${say("paint.init_image")} onRemove=${removeStart}>
      <${Strength} value=${strength ?? 0.75} label=${say("paint.strength")} onInput=${(value) => setFields({ strength: value })} /><//>`}
    ${lists.map(({ use, one, number }) => html`<${Thumbnail} key=${use + number} name=${use === "control" ? one.image : one.images[0]} label=${say(`paint.${use}`)} onRemove=${() => put(use, number, null)}>
      <${Strength} value=${one.weight ?? 1} most=${2} label=${say("paint.weight_of", { name: say(`paint.${use}`) })} onInput=${(weight) => put(use, number, { ...one, weight })} /><//>`)}
  </ul>`;
}

/** What a dropped or pasted picture is for: its settings where it has some, else the user says. */
export default function Dropped({ files, onClose }) {
  const [asked, setAsked] = useState(false);
  const [file] = files;
  useEffect(() => {
    let current = true;
    api.post("/v1/recipes/read", file).then((found) => {
      if (!current) return;
      const before = paintRequest.peek();
      usePaintRequest(withoutDefaults(found.request));
      const note = found.notes?.[0]?.text;
      toast([say("paint.settings_read"), note].filter(Boolean).join(" "), { action: { label: say("app.undo"), run: () => { paintRequest.value = before; } } });
      onClose();
    }, (error) => {
      if (!current) return;
      if (error.kind === "RecipeError" || error.status === 422 || error.status === 404) { setAsked(true); return; }
      toast(explain(error), { kind: "error" });
      onClose();
    });
    return () => { current = false; };
  }, [file]);
  if (!asked) return null;
  return html`<${Dialog} title=${say("paint.use_picture")} onClose=${onClose}><div class="paint-uses">
    ${usable().map((use) => html`<button type="button" key=${use} class="paint-row" id=${`use-${use}`} onClick=${() => { takeIn(file, use); onClose(); }}>
      <span class="paint-row-icon"><${Icon} name=${ICONS[use]} /></span><span class="grow"><b>${say(`paint.${use}`)}</b><small>${say(`paint.${use}_hint`)}</small></span></button>`)}</div><//>`;
}
