// Paint: words in, pictures out. The fields that everybody needs; what else there is comes when it is opened.
import { html, signal, useEffect, useRef, useSignal, useSignalEffect, useState } from "../../app/preact.js";
import { useHotkeys } from "../../app/keys.js";
import { paintRequest, paintOptions } from "../../app/state.js";
import { knows, say } from "../../app/words.js";
import { Button, Icon, Segmented } from "../../ui/controls.js";
import { fieldLabel, requestFields } from "../../ui/fields.js";
import { networksIn, PromptEditor, promptElement } from "./prompt.js";
import {
  cancel, changedFields, chosen, complain, current, endless, facts, failed, field, open, paint, readSeed, recent, setFields, underWay, wrong,
} from "./session.js";

const NARROW = matchMedia("(max-width: 760px)");
const ASPECTS = [["1:1", 1], ["4:3", 4 / 3], ["3:4", 3 / 4], ["16:9", 16 / 9], ["9:16", 9 / 16]];
const FACTORS = [1, 1.5, 2, 4];
const narrow = signal(NARROW.matches);
NARROW.addEventListener("change", () => { narrow.value = NARROW.matches; });

const modules = new Map();

/** A component of a module that is fetched when it is first needed. */
function Later({ from, name = "default", children = null, ...props }) {
  const [, set] = useState(0);
  const found = modules.get(from);
  useEffect(() => {
    if (!found) import(from).then((module) => { modules.set(from, module); set((count) => count + 1); }, () => {});
  }, [from]);
  return found ? html`<${found[name]} ...${props} />` : children;
}

function Labelled({ name, id, label, children, beside }) {
  const text = wrong.value[name];
  return html`<div class="field ${text ? "wrong" : ""}" data-field=${name}>
    <div class="paint-label"><label for=${id}>${label}</label>${beside}</div>${children}
    ${text && html`<p class="wrong-text" id=${`${id}-wrong`} role="alert">${text}</p>`}
  </div>`;
}

/** A number with a slider; an empty one is the model's own. */
function Range({ name, id, label, own, step, fallback }) {
  const value = field(name).value;
  const known = requestFields.value?.all.get(name);
  const [low, high] = known?.usual ?? fallback;
  const give = (text) => {
    const number = Number(text);
    if (text === "") setFields({ [name]: undefined });
    else if (Number.isFinite(number)) setFields({ [name]: number });
  };
  const number = html`<input class="paint-number" type="number" id=${id} value=${value ?? ""} placeholder=${own || say("paint.own")} min=${known?.min} max=${known?.max}
    step=${step} aria-invalid=${Boolean(wrong.value[name])} aria-describedby=${wrong.value[name] ? `${id}-wrong` : null} onInput=${(event) => give(event.target.value)} />`;
  return html`<${Labelled} name=${name} id=${id} label=${label} beside=${number}>
    <input type="range" class=${value === undefined ? "paint-unset" : ""} aria-label=${label} min=${low} max=${high} step=${step} value=${value ?? (own || (low + high) / 2)}
      onInput=${(event) => give(event.target.value)} /><//>`;
}

function Choice({ name, id, label }) {
  const value = field(name).value;
  const choices = requestFields.value?.all.get(name)?.choices ?? [];
  const own = facts.value?.[name];
  const ownLabel = choices.find((one) => one.value === own)?.label || own;
  const listed = value === undefined || choices.some((one) => one.value === value) ? choices : [...choices, { value, label: value }];
  return html`<${Labelled} name=${name} id=${id} label=${label}>
    <select id=${id} value=${value ?? ""} onChange=${(event) => setFields({ [name]: event.target.value || undefined })}>
      <option value="" selected=${value === undefined}>${ownLabel ? say("paint.own_is", { name: ownLabel }) : say("paint.own")}</option>
      ${listed.map((one) => html`<option key=${one.value} value=${one.value} selected=${one.value === value}>${one.label || one.value}</option>`)}
    </select><//>`;
}

function Model() {
  const [menu, setMenu] = useState("");
  const name = field("model").value ?? facts.value?.model ?? "";
  const known = facts.value;
  const networks = networksIn(field("prompt").value ?? "");
  const text = wrong.value.model;
  return html`<div class="field ${text ? "wrong" : ""}" data-field="model">
    <span class="label" id="model-label">${say("paint.model")}</span>
    <div class="paint-model"><button type="button" class="paint-picker" id="model" aria-labelledby="model-label model" aria-haspopup="dialog" onClick=${() => setMenu("models")}>
        <span class="grow">${name.split("/").at(-1).replace(/\.(safetensors|ckpt|gguf)$/, "") || say("paint.model_own")}</span>
        ${known?.label && html`<small>${known.label}</small>`}<${Icon} name="down" /></button>
      <${Button} class="paint-square" label=${say("paint.add_adapter")} id="add-adapter" aria-haspopup="dialog" onClick=${() => setMenu("adapters")}><${Icon} name="plus" /><//></div>
    ${text && html`<p class="wrong-text" role="alert">${text}</p>`}
    ${networks.length > 0 && html`<${Later} from="./menus.js" name="Networks" networks=${networks} />`}
    ${menu && html`<${Later} from="./menus.js" name="ModelMenu" tab=${menu} onClose=${() => setMenu("")} />`}
  </div>`;
}

function Style() {
  const styles = facts.value?.styles ?? [];
  const value = field("style").value ?? "";
  if (!styles.length && !value) return null;
  const options = [{ value: "", label: say("paint.any_style") }, ...styles.map((one) => ({ value: one, label: knows(`paint.style_${one}`) ? say(`paint.style_${one}`) : one }))];
  const give = (chosenStyle) => setFields({ style: chosenStyle || undefined });
  return html`<div class="field" data-field="style"><span class="label">${say("paint.style")}</span>
    ${options.length <= 5 ? html`<${Segmented} label=${say("paint.style")} options=${options} value=${value} onChange=${give} />`
      : html`<select aria-label=${say("paint.style")} value=${value} onChange=${(event) => give(event.target.value)}>${options.map((one) => html`<option key=${one.value} value=${one.value} selected=${one.value === value}>${one.label}</option>`)}</select>`}
  </div>`;
}

/** Sides of a ratio with the area of a square, as multiples that models like. */
export function sidesOf(ratio, area) {
  const multiple = area >= 512 * 512 ? 64 : 16;
  const fit = (side) => Math.max(multiple, Math.round(side / multiple) * multiple);
  return [fit(Math.sqrt(area * ratio)), fit(Math.sqrt(area / ratio))];
}

const isLocked = signal(false);

function Size() {
  const own = [facts.value?.width || 512, facts.value?.height || 512];
  const [width, height] = [field("width").value ?? own[0], field("height").value ?? own[1]];
  const ownArea = own[0] * own[1];
  const factor = FACTORS.find((one) => Math.abs(Math.sqrt((width * height) / ownArea) / one - 1) < 0.12);
  const aspect = ASPECTS.find(([, ratio]) => Math.abs(width / height / ratio - 1) < 0.08);
  const give = (w, h) => setFields({ width: w === own[0] && h === own[1] ? undefined : w, height: w === own[0] && h === own[1] ? undefined : h });
  const shape = (ratio, times) => {
    const [w, h] = sidesOf(ratio, ownArea);
    give(...(ratio === own[0] / own[1] ? own : [w, h]).map((side) => Math.round(side * times)));
  };
  const side = (which, text) => {
    const value = Math.round(Number(text));
    if (text === "" || !(value > 0)) { setFields({ [which]: undefined }); return; }
    const other = Math.max(8, Math.round((value * (which === "width" ? height / width : width / height)) / 8) * 8);
    if (isLocked.value) setFields(which === "width" ? { width: value, height: other } : { width: other, height: value });
    else setFields({ [which]: value });
  };
  const input = (which, placeholder) => html`<input type="number" id=${which} min="8" step="8" aria-label=${say(`paint.${which}`)} value=${field(which).value ?? ""}
    placeholder=${placeholder} aria-invalid=${Boolean(wrong.value[which])} onChange=${(event) => side(which, event.target.value)} />`;
  const text = wrong.value.width ?? wrong.value.height;
  return html`<div class="field ${text ? "wrong" : ""}" data-field="width"><span class="label" id="size-label">${say("paint.size")}</span>
    <div class="paint-shapes" role="group" aria-labelledby="size-label">
      ${ASPECTS.map(([label, ratio]) => html`<button type="button" key=${label} class="paint-shape" aria-pressed=${aspect?.[0] === label} aria-label=${say(`paint.aspect_${label.replace(":", "_")}`)}
          title=${say(`paint.aspect_${label.replace(":", "_")}`)} onClick=${() => shape(ratio, factor ?? 1)}><i style=${{ aspectRatio: String(ratio), [ratio >= 1 ? "width" : "height"]: "18px" }}></i><span>${label}</span></button>`)}
    </div>
    <div class="paint-sides">${input("width", own[0])}
      <${Button} class="paint-square" quiet label=${say("paint.swap")} onClick=${() => setFields({ width: height, height: width })}><${Icon} name="swap" /><//>
      ${input("height", own[1])}
      <${Button} class="paint-square" quiet label=${say("paint.lock")} pressed=${isLocked.value} onClick=${() => { isLocked.value = !isLocked.value; }}><${Icon} name="lock" /><//>
      <select aria-label=${say("paint.times")} title=${say("paint.times")} value=${factor ?? ""} onChange=${(event) => shape(aspect?.[1] ?? width / height, Number(event.target.value))}>
        ${!factor && html`<option value="" selected>–</option>`}${FACTORS.map((one) => html`<option key=${one} value=${one} selected=${one === factor}>${one}×</option>`)}</select>
    </div>
    ${text && html`<p class="wrong-text" role="alert">${text}</p>`}
  </div>`;
}

function Count() {
  const value = field("count").value ?? 1;
  const most = requestFields.value?.all.get("count")?.max ?? 16;
  const give = (number) => setFields({ count: number > 1 ? Math.min(most, number) : undefined });
  return html`<${Labelled} name="count" id="count" label=${say("paint.count")}><div class="paint-stepper">
    <${Button} class="paint-square" quiet label=${say("paint.fewer")} disabled=${value <= 1} onClick=${() => give(value - 1)}><${Icon} name="minus" /><//>
    <input type="number" id="count" min="1" max=${most} value=${value} onInput=${(event) => event.target.value && give(Math.round(Number(event.target.value)))} />
    <${Button} class="paint-square" quiet label=${say("paint.more")} disabled=${value >= most} onClick=${() => give(value + 1)}><${Icon} name="plus" /><//></div><//>`;
}

function Seed() {
  const text = useSignal(String(paintRequest.peek().seed ?? ""));
  useSignalEffect(() => {
    const value = field("seed").value;
    let written;
    try { written = readSeed(text.peek()); } catch { if (value === undefined) return; }
    if (written !== value) { text.value = String(value ?? ""); complain("seed", ""); }
  });
  const give = (written) => {
    text.value = written;
    try {
      setFields({ seed: readSeed(written) });
    } catch (error) {
      setFields({ seed: undefined });
      complain("seed", error.message);
    }
  };
  const last = recent.value?.[0]?.seed;
  return html`<${Labelled} name="seed" id="seed" label=${say("paint.seed")}><div class="paint-seed">
    <input id="seed" type="text" inputmode="numeric" autocomplete="off" placeholder=${say("paint.random")} value=${text.value} aria-invalid=${Boolean(wrong.value.seed)}
      aria-describedby=${wrong.value.seed ? "seed-wrong" : null} onInput=${(event) => give(event.target.value)} />
    <${Button} class="paint-square" quiet id="seed-random" label=${say("paint.seed_random")} disabled=${text.value === ""} onClick=${() => give("")}><${Icon} name="dice" /><//>
    <${Button} class="paint-square" quiet id="seed-last" label=${say("paint.seed_last")} disabled=${!last || last === text.value} onClick=${() => give(last)}><${Icon} name="again" /><//></div><//>`;
}

function Changed() {
  const names = changedFields.value;
  if (!names.length) return null;
  const label = (name) => (knows(`paint.${name}`) ? say(`paint.${name}`) : fieldLabel(name));
  return html`<div class="paint-changed" aria-label=${say("paint.changed")} role="group"><span class="soft">${say("paint.changed")}</span>
    ${names.map((name) => html`<button type="button" key=${name} class="paint-chip" title=${say("paint.reset_one", { name: label(name) })} aria-label=${say("paint.reset_one", { name: label(name) })}
        onClick=${() => setFields({ [name]: undefined })}>${label(name)}<${Icon} name="close" /></button>`)}
    <button type="button" class="paint-link" id="reset" onClick=${() => setFields(Object.fromEntries(names.map((name) => [name, undefined])))}>${say("paint.reset")}</button></div>`;
}

function More() {
  const isOpen = Boolean(paintOptions.value.more);
  return html`<details class="paint-more" open=${isOpen} onToggle=${(event) => { if (event.target.open !== isOpen) paintOptions.value = { ...paintOptions.peek(), more: event.target.open }; }}>
    <summary id="more"><${Icon} name="right" />${say("paint.more_settings")}</summary>
    ${isOpen && html`<${Later} from="./more.js" />`}</details>`;
}

function Foot() {
  const open_ = underWay.value.length;
  const [grids, setGrids] = useState(false);
  return html`<div class="paint-foot">
    ${wrong.value[""] && html`<p class="wrong-text" role="alert" id="request-wrong">${wrong.value[""]}</p>`}
    <${Button} kind="primary" id="paint" class="grow" title=${say("paint.paint_keys")} onClick=${paint}><${Icon} name="brush" />${say("paint.paint")}
      ${open_ > 0 && html`<b class="paint-count" aria-label=${say("nav.open_jobs", { n: open_ })}>${open_}</b>`}<//>
    ${(open_ > 0 || endless.value) && html`<${Button} id="cancel" title=${say("paint.cancel_keys")} onClick=${cancel}>${say("app.cancel")}<//>`}
    <${Button} class="paint-square" id="endless" label=${say("paint.endless")} pressed=${endless.value} onClick=${() => { endless.value = !endless.value; if (endless.value && !underWay.value.length) paint(); }}><${Icon} name="endless" /><//>
    <${Button} class="paint-square" id="grids" label=${say("paint.grids")} aria-haspopup="dialog" onClick=${() => setGrids(true)}><${Icon} name="grid" /><//>
    ${grids && html`<${Later} from="./grid.js" onClose=${() => setGrids(false)} />`}
  </div>`;
}

function Prompt() {
  return html`<${PromptEditor} name="prompt" id="prompt" label=${say("paint.prompt")} placeholder=${say("paint.prompt_hint")}>${!narrow.value && html`<${PresetButton} />`}<//>`;
}

function PresetButton() {
  const [isOpen, setOpen] = useState(false);
  return html`<${Button} small quiet id="presets" label=${say("paint.presets")} aria-haspopup="dialog" onClick=${() => setOpen(true)}><${Icon} name="list" />${say("paint.presets")}<//>
    ${isOpen && html`<${Later} from="./presets.js" onClose=${() => setOpen(false)} />`}`;
}

function Controls() {
  const small = narrow.value;
  return html`<form class="paint-controls" onSubmit=${(event) => { event.preventDefault(); paint(); }} aria-label=${say("paint.settings")}>
    <div class="paint-fields">
      ${!small && html`<${Prompt} />`}
      <${PromptEditor} name="negative_prompt" id="negative" label=${say("paint.negative_prompt")} placeholder=${say("paint.negative_hint")}>${small && html`<${PresetButton} />`}<//>
      <${Styles} /><${Inputs} /><${Model} /><${Style} /><${Size} />
      <div class="paint-two"><${Count} /><${Seed} /></div>
      <${Range} name="num_inference_steps" id="steps" label=${say("paint.num_inference_steps")} own=${facts.value?.num_inference_steps} step=${1} fallback=${[1, 60]} />
      <${Range} name="guidance_scale" id="guidance" label=${say("paint.guidance_scale")} own=${facts.value?.guidance_scale} step=${0.1} fallback=${[1, 20]} />
      <div class="paint-two"><${Choice} name="sampler" id="sampler" label=${say("paint.sampler")} /><${Choice} name="schedule" id="schedule" label=${say("paint.schedule")} /></div>
      <${More} /><${Changed} />
    </div>
    ${small ? html`<div class="paint-bar"><${Prompt} /><${Foot} /></div>` : html`<${Foot} />`}
  </form>`;
}

/** The user's styles that are laid around the prompt, if any. */
function Styles() {
  const names = paintOptions.value.styles ?? [];
  if (!names.length) return null;
  const without = (name) => { paintOptions.value = { ...paintOptions.peek(), styles: names.filter((one) => one !== name) }; };
  return html`<div class="paint-changed" role="group" aria-label=${say("paint.styles")}><span class="soft">${say("paint.styles")}</span>
    ${names.map((name) => html`<button type="button" key=${name} class="paint-chip" aria-label=${say("paint.remove_input", { name })} title=${say("paint.remove_input", { name })} onClick=${() => without(name)}>${name}<${Icon} name="close" /></button>`)}</div>`;
}

/** Pictures that the request starts from, if any. */
function Inputs() {
  const has = field("init_image").value || field("control").value?.length || field("image_prompts").value?.length;
  return has ? html`<${Later} from="./drop.js" name="Inputs" />` : null;
}

function Stage({ route }) {
  const known = recent.value;
  if (route.rest[0] === "grid") return html`<${Later} from="./grid_view.js" key="grid" id=${route.rest[1]} />`;
  if (known === null) return html`<section class="paint-stage" aria-label=${say("paint.result")} aria-busy="true"></section>`;
  if (!known.length && !current.value && !failed.value) {
    return html`<section class="paint-stage paint-nothing" aria-label=${say("paint.result")}><${Later} from="./first_steps.js" key="first" onPaint=${paint} /></section>`;
  }
  return html`<${Later} from="./stage.js" key="stage"><section class="paint-stage" aria-label=${say("paint.result")} aria-busy="true"></section><//>`;
}

/** Escape leaves what is open, the nearest first; only then does it stop the painting. */
function escape() {
  const one = chosen.peek();
  if (one?.picture && recent.peek()?.filter((picture) => picture.job === one.job).length > 1) chosen.value = { ...one, picture: null };
  else if (underWay.peek().length || endless.peek()) cancel();
  else chosen.value = null;
}

export default function Paint({ route }) {
  const root = useRef();
  const [files, setFiles] = useState(null);
  const [over, setOver] = useState(false);
  useEffect(() => {
    open();
    if (!narrow.peek() && document.activeElement === document.body) promptElement()?.focus({ preventScroll: true });
    // What the first press of Paint needs is there before it.
    const ready = () => import("./stage.js").then((module) => modules.set("./stage.js", module), () => {});
    for (const kind of ["keydown", "pointerdown"]) addEventListener(kind, ready, { once: true });
    const paste = (event) => {
      const pictures = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
      if (pictures.length && !document.querySelector("dialog[open]") && !event.defaultPrevented) { event.preventDefault(); setFiles(pictures); }
    };
    addEventListener("paste", paste);
    return () => { removeEventListener("paste", paste); for (const kind of ["keydown", "pointerdown"]) removeEventListener(kind, ready); };
  }, []);
  useHotkeys([
    { keys: "Ctrl+Enter", label: say("paint.paint"), inFields: true, run: paint },
    { keys: "Escape", label: say("paint.escape"), inFields: true, run: escape },
  ]);
  const drop = (event) => {
    setOver(false);
    const pictures = [...event.dataTransfer.files].filter((file) => file.type.startsWith("image/"));
    if (pictures.length) { event.preventDefault(); setFiles(pictures); }
  };
  return html`<div class="paint ${over ? "over" : ""}" ref=${root} onDrop=${drop}
      onDragOver=${(event) => { if (event.dataTransfer.types.includes("Files")) { event.preventDefault(); setOver(true); } }}
      onDragLeave=${(event) => { if (!root.current.contains(event.relatedTarget)) setOver(false); }}>
    <h1 class="visually-hidden">${say("nav.paint")}</h1>
    <${Controls} /><${Stage} route=${route} />
    ${over && html`<div class="paint-drop" aria-hidden="true"><${Icon} name="image" />${say("paint.drop_here")}</div>`}
    ${files && html`<${Later} from="./drop.js" files=${files} onClose=${() => setFiles(null)} />`}
  </div>`;
}
