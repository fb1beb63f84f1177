// The inputs of a form, one for each kind of field. All take {field, path, id, value, set, own, wrong, facts}: value is
// undefined where nothing is given, `own` is what the model or the default then means, set(null) takes the value away.
import { html, signal, useEffect, useRef, useState } from "../app/preact.js";
import { attach } from "../app/api.js";
import { explain, language, say } from "../app/words.js";
import { Button, DropZone, Icon } from "./controls.js";
import { choiceLabel, emptyLabel, fieldLabel, useNames } from "./fields.js";

const described = ({ id, wrong, hints }) => ({
  "aria-invalid": wrong ? "true" : undefined,
  "aria-describedby": [wrong && `${id}-wrong`, hints && `${id}-help`].filter(Boolean).join(" ") || undefined,
});
const shown = (number) => (number === null || number === undefined ? "" : String(number));

export function TextInput({ id, field, value, set, ...rest }) {
  const rows = Math.min(8, Math.max(2, Math.ceil((value ?? "").length / 60)));
  return html`<textarea id=${id} rows=${rows} maxlength=${field.max_length} value=${value ?? field.default ?? ""} ...${described({ id, ...rest })}
    onInput=${(event) => set(event.target.value === "" && field.optional ? null : event.target.value)}></textarea>`;
}

export function LineInput({ id, value, set, ...rest }) {
  return html`<input type="text" id=${id} value=${value ?? ""} autocomplete="off" ...${described({ id, ...rest })} onInput=${(event) => set(event.target.value || null)} />`;
}

export function FlagInput({ id, field, value, set, ...rest }) {
  return html`<input type="checkbox" id=${id} checked=${value ?? field.default ?? false} ...${described({ id, ...rest })} onChange=${(event) => set(event.target.checked)} />`;
}

export function NumberInput({ id, field, value, set, own, ...rest }) {
  const [draft, setDraft] = useState(null);
  const given = typeof value === "number" ? value : null;
  const [low, high] = field.usual ?? [];
  const type = (text) => {
    setDraft(text);
    const number = text.trim() === "" ? null : Number(text);
    set(number === null ? null : Number.isNaN(number) ? text : number);
  };
  const at = given ?? (typeof own === "number" ? own : low);
  const typed = html`<input type="text" inputmode=${field.kind === "integer" ? "numeric" : "decimal"} id=${id} class="form-number" autocomplete="off"
    value=${draft ?? shown(value)} placeholder=${shown(own) || say("form.auto")} ...${described({ id, ...rest })}
    onInput=${(event) => type(event.target.value)} onBlur=${() => setDraft(null)}
    onKeyDown=${(event) => {
      const step = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      setDraft(null);
      set(clipped(field, rounded((given ?? Number(own ?? low ?? 0)) + step * (field.step ?? 1))));
    }} />`;
  if (!field.usual) return typed;
  return html`<div class="form-slide">
    <input type="range" class=${given === null ? "unset" : ""} min=${low} max=${high} step=${field.step ?? "any"} value=${at} aria-label=${say("form.slider", { label: fieldLabel(rest.path) })}
      onInput=${(event) => { setDraft(null); set(clipped(field, rounded(Number(event.target.value)))); }} />${typed}</div>`;
}

const rounded = (number) => Number(number.toFixed(6));
const clipped = (field, number) => Math.min(Number(field.max ?? Infinity), Math.max(Number(field.min ?? -Infinity), number));

/** Seeds are text: what is typed is what is sent, however large. */
export function SeedInput({ id, value, set, ...rest }) {
  const type = (text) => {
    const trimmed = text.trim();
    if (trimmed === "") set(null);
    else if (/^\d+$/.test(trimmed)) set(Number.isSafeInteger(Number(trimmed)) ? Number(trimmed) : BigInt(trimmed));
    else set(trimmed);
  };
  return html`<div class="form-seed"><input type="text" inputmode="numeric" id=${id} value=${shown(value)} placeholder=${say("form.random")} autocomplete="off" spellcheck=${false}
      ...${described({ id, ...rest })} onInput=${(event) => type(event.target.value)} onBlur=${() => value === "-1" && set(null)} />
    <${Button} label=${say("form.random_seed")} onClick=${() => set(null)}><${Icon} name="dice" /><//></div>`;
}

export function ChoiceInput({ id, field, value, set, own, ...rest }) {
  const automatic = emptyLabel(field, own && choiceLabel(field, own));
  return html`<select id=${id} value=${value ?? field.default ?? ""} ...${described({ id, ...rest })} onChange=${(event) => set(event.target.value || null)}>
    ${field.optional && html`<option value="">${automatic}</option>`}
    ${field.choices.map((one) => html`<option key=${one.value} value=${one.value}>${choiceLabel(field, one.value)}</option>`)}</select>`;
}

const FEW = 9;

export function NameInput({ id, field, value, set, own, facts, ...rest }) {
  const names = useNames(field, facts);
  const label = (name) => names.find((one) => one.value === name)?.label ?? name;
  const automatic = emptyLabel(field, own && label(own));
  if (names.length > FEW || (field.open && !names.length)) {
    return html`<${Combobox} id=${id} options=${names} value=${value ?? null} own=${automatic} open=${field.open} optional=${field.optional || field.default !== undefined} onChange=${set} ...${rest} />`;
  }
  const listed = value && !names.some((one) => one.value === value) ? [{ value, label: value, fits: true }, ...names] : names;
  return html`<select id=${id} value=${value ?? ""} ...${described({ id, ...rest })} onChange=${(event) => set(event.target.value || null)}>
    <option value="">${field.required ? say("form.choose") : automatic}</option>
    ${listed.map((one) => html`<option key=${one.value} value=${one.value}>${one.fits ? one.label : say("form.other_family", { name: one.label })}</option>`)}</select>`;
}

/** A text field with a list of what is meant: arrows choose, Enter takes, Escape closes. */
export function Combobox({ id, options, value, own, open: free, optional, onChange, ...rest }) {
  const [draft, setDraft] = useState(null);
  const [at, setAt] = useState(-1);
  const [isOpen, setOpen] = useState(false);
  const list = useRef();
  const words = (draft ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (one) => words.every((word) => `${one.label} ${one.value}`.toLowerCase().includes(word));
  const found = [...(optional && !words.length ? [{ value: null, label: own, fits: true }] : []), ...options.filter(fits)].slice(0, 100);
  const label = options.find((one) => one.value === value)?.label ?? value ?? "";
  const close = () => { setOpen(false); setDraft(null); setAt(-1); };
  const take = (chosen) => { onChange(chosen); close(); };
  const leave = () => {
    if (draft !== null && isOpen) {
      const exact = options.find((one) => [one.label, one.value].some((name) => name.toLowerCase() === draft.trim().toLowerCase()));
      if (draft.trim() === "" && optional) onChange(null);
      else if (exact) onChange(exact.value);
      else if (free && draft.trim()) onChange(draft.trim());
    }
    close();
  };
  const keys = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      setOpen(true);
      setAt((at + step + found.length) % Math.max(1, found.length));
    } else if (event.key === "Enter" && isOpen) {
      event.preventDefault();
      if (found[at]) take(found[at].value);
      else if (found.length && words.length) take(found[0].value);
      else leave();
    } else if (event.key === "Escape" && isOpen) {
      event.preventDefault();
      event.stopPropagation();
      close();
    }
  };
  useEffect(() => { list.current?.children[at]?.scrollIntoView({ block: "nearest" }); }, [at]);
  return html`<div class="form-combo"><input type="text" role="combobox" id=${id} value=${draft ?? label} placeholder=${own} autocomplete="off" spellcheck=${false}
      aria-expanded=${isOpen} aria-controls=${`${id}-list`} aria-autocomplete="list" aria-activedescendant=${isOpen && at >= 0 ? `${id}-${at}` : undefined} ...${described({ id, ...rest })}
      onInput=${(event) => { setDraft(event.target.value); setOpen(true); setAt(-1); }} onClick=${() => setOpen(true)} onBlur=${leave} onKeyDown=${keys} />
    <${Icon} name="down" />
    <ul class="form-options" role="listbox" id=${`${id}-list`} ref=${list} aria-labelledby=${`${id}-label`} hidden=${!isOpen || !found.length}>
      ${isOpen && found.map((one, number) => html`<li key=${one.value} id=${`${id}-${number}`} role="option" aria-selected=${one.value === value} class=${number === at ? "at" : ""}
        onPointerDown=${(event) => { event.preventDefault(); take(one.value); }}>${one.fits ? one.label : say("form.other_family", { name: one.label })}</li>`)}
    </ul></div>`;
}

/** A text with commas between its parts; `read` makes the value of them. */
function Listed({ id, value, set, read, placeholder, ...rest }) {
  const [draft, setDraft] = useState(null);
  const text = Array.isArray(value) ? value.join(", ") : shown(value);
  return html`<input type="text" id=${id} value=${draft ?? text} placeholder=${placeholder} autocomplete="off" spellcheck=${false} ...${described({ id, ...rest })}
    onInput=${(event) => {
      setDraft(event.target.value);
      const parts = event.target.value.split(/[,，\s]+/).filter(Boolean);
      set(parts.length ? read(parts, event.target.value) : null);
    }} onBlur=${() => setDraft(null)} />`;
}

export const NumbersInput = (props) => html`<${Listed} ...${props} placeholder=${props.field.max_items === 2 ? say("form.low_high") : say("form.levels")}
  read=${(parts, text) => (parts.every((part) => Number.isFinite(Number(part))) ? parts.map(Number) : text)} />`;

export const NamesInput = (props) => html`<${Listed} ...${props} placeholder=${(props.field.default ?? []).join(", ")} read=${(parts) => parts} />`;

const ASPECTS = ["1:1", "5:4", "4:3", "3:2", "16:9", "21:9", "4:5", "3:4", "2:3", "9:16"];

export function AspectInput({ id, value, set, ...rest }) {
  return html`<input type="text" id=${id} list=${`${id}-list`} value=${value ?? ""} placeholder="16:9" autocomplete="off" ...${described({ id, ...rest })} onInput=${(event) => set(event.target.value.trim().replace("：", ":") || null)} />
    <datalist id=${`${id}-list`}>${ASPECTS.map((one) => html`<option value=${one} />`)}</datalist>`;
}

const COLOURS = ["transparent", "opaque", "surroundings", "white", "black"];

export function ColourInput({ id, field, value, set, facts, ...rest }) {
  const own = value?.startsWith("#");
  const offered = COLOURS.filter((one) => one !== "transparent" || facts?.alpha !== false || value === one);
  return html`<div class="form-slide"><select id=${id} value=${own ? "#" : value ?? ""} ...${described({ id, ...rest })} onChange=${(event) => set(event.target.value === "#" ? "#808080" : event.target.value || null)}>
      <option value="">${emptyLabel(field)}</option>${offered.map((one) => html`<option key=${one} value=${one}>${choiceLabel(field, one)}</option>`)}<option value="#">${say("form.own_colour")}</option></select>
    ${own && html`<input type="color" value=${value} aria-label=${say("form.own_colour")} onInput=${(event) => set(event.target.value)} />`}</div>`;
}

const SIDES = ["left", "top", "right", "bottom"];

export function BoxInput({ id, value, set, ...rest }) {
  const box = value ?? [0, 0, 1, 1];
  const put = (number, text) => set(box.map((one, k) => (k === number ? Number(text) || 0 : one)));
  return html`<div class="form-box" role="group" aria-labelledby=${`${id}-label`} ...${described({ id, ...rest })}>${SIDES.map((side, number) => html`<label key=${side} class="hint">${say(`form.${side}`)}
    <input type="number" min="0" max="1" step="0.01" value=${value ? box[number] : ""} placeholder=${box[number]} onInput=${(event) => put(number, event.target.value)} /></label>`)}</div>`;
}

const local = signal(new Map());

/** Where the browser gets a picture that a request names. */
const addressOf = (name) => local.value.get(name) ?? `/v1/attachments/${name.replace("sha256:", "")}`;

/** Send pictures to the server; gives their names for a request. */
export async function uploaded(files) {
  const names = [];
  for (const file of files) {
    const { name } = await attach(file);
    local.value = new Map(local.value).set(name, URL.createObjectURL(file));
    names.push(name);
  }
  return names;
}

function Thumbnail({ name, label, onRemove }) {
  const [lost, setLost] = useState(false);
  return html`<div class="form-picture checker">${lost ? html`<${Icon} name="image" />` : html`<img src=${addressOf(name)} alt=${label} onError=${() => setLost(true)} />`}
    <${Button} small class="form-picture-remove" label=${say("form.remove", { label })} onClick=${onRemove}><${Icon} name="close" /><//></div>`;
}

export function PicturesInput({ id, field, path, value, set, wrong }) {
  const [failed, setFailed] = useState("");
  const [busy, setBusy] = useState(false);
  const many = field.kind === "pictures";
  const names = many ? value ?? [] : value ? [value] : [];
  const label = fieldLabel(path);
  const keep = (list) => set(many ? list : list.at(-1) ?? (field.required ? "" : null));
  const add = async (files) => {
    setBusy(true);
    setFailed("");
    try {
      keep([...(many ? names : []), ...(await uploaded(files))]);
    } catch (error) {
      setFailed(explain(error));
    }
    setBusy(false);
  };
  const room = many ? names.length < (field.max_items ?? 1) : !names.length;
  return html`<div class="form-pictures" lang=${language}>
    ${names.map((name, number) => html`<${Thumbnail} key=${name} name=${name} label=${names.length > 1 ? say("form.number_of", { label, n: number + 1 }) : label} onRemove=${() => keep(names.toSpliced(number, 1))} />`)}
    ${room && html`<${DropZone} id=${id} class=${wrong ? "wrong" : ""} multiple=${many} label=${say("form.drop", { label })} onFiles=${add}><${Icon} name="upload" /><span>${busy ? say("form.sending") : say("form.drop_here")}</span><//>`}
    ${failed && html`<p class="wrong-text" role="alert">${failed}</p>`}</div>`;
}

export const PictureInput = PicturesInput;
