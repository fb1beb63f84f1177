// A form for a request, made of what the server says of its fields: every field there is, none written down here.
//
//   import { Form, Field } from "../../ui/form.js";
//   import { useFacts, useFields, changedIn, groupLabel } from "../../ui/fields.js";
//
//   html`<${Form} groups=${["sampling", "guidance"]} value=${paintRequest.value} facts=${useFacts(paintRequest.value.model)}
//           error=${error} onChange=${(request) => { paintRequest.value = request; }} />`
//   html`<${Field} name="seed" value=${request} error=${error} onChange=${setRequest} />`
//
// value: a request that holds only what differs from the defaults. onChange gets a new one; seeds in it are BigInts where
// they are larger than numbers. error: an ApiError, or a job's error: it is shown at the field that it names, and
// `errorPath(error)` of fields.js is "" where it names none. A group shows its fields plainly, without a frame or a
// heading: `groupLabel(name)` is the heading, `changedIn(group, request)` how many of its fields were changed,
// `useFields()?.groups` all groups in order. What the model has no use for stands at the end, folded away.
import { html, useEffect, useId, useMemo, useRef } from "../app/preact.js";
import { explain, say } from "../app/words.js";
import { Button, Icon } from "./controls.js";
import { complaint, differs, errorPath, fieldHelp, fieldLabel, ownValue, useFields, withValue } from "./fields.js";
import { AspectInput, BoxInput, ChoiceInput, ColourInput, FlagInput, LineInput, NameInput, NamesInput, NumberInput, NumbersInput, PictureInput, PicturesInput, SeedInput, TextInput } from "./inputs.js";

const INPUTS = {
  text: TextInput, line: LineInput, integer: NumberInput, number: NumberInput, flag: FlagInput, choice: ChoiceInput, name: NameInput,
  names: NamesInput, seed: SeedInput, colour: ColourInput, aspect: AspectInput, picture: PictureInput, pictures: PicturesInput,
  numbers: NumbersInput, box: BoxInput, group: GroupInput, groups: GroupsInput,
};
const WIDE = ["text", "picture", "pictures", "box", "group", "groups", "numbers"];
/** Kinds with several controls, or none that a label may name; they are named by the heading instead. */
const LABELLED_BY = ["picture", "pictures", "box", "group", "groups"];
/** What a group or one of a list begins with, where it can't be empty. */
const FIRST = { outpaint: { right: 128 }, "regions[]": { prompt: "", box: [0, 0, 0.5, 1] }, "control[]": { model: "", image: "" }, "image_prompts[]": { images: [] } };

/**
 * Several groups of fields, or some fields.
 *
 * @param {{groups?: string[], only?: string[], without?: string[], value: object, onChange: (request: object) => unknown,
 *   facts?: object | null, error?: object | null, hints?: boolean}} props groups: names, default all; only: names of
 *   fields, in this order; without: fields that stand elsewhere; hints: whether explanations are shown below the fields.
 */
export function Form({ groups, only, without = [], value, onChange, facts = null, error = null, hints = true }) {
  const known = useFields();
  if (!known) return html`<p class="soft small-text" role="status">${say("app.loading")}</p>`;
  const wanted = only
    ? only.map((name) => known.all.get(name)).filter(Boolean)
    : known.groups.filter((group) => !groups || groups.includes(group.name)).flatMap((group) => group.fields);
  const shown = wanted.filter((field) => !without.includes(field.name));
  const sole = shown.length === 1 && shown[0].kind === "groups";
  return html`<${Rows} fields=${shown} values=${value} onChange=${onChange} facts=${facts} error=${error} hints=${hints} before="" sole=${sole} />`;
}

/**
 * One field by its name.
 *
 * @param {{name: string, value: object, onChange: (request: object) => unknown, facts?: object | null, error?: object | null,
 *   hints?: boolean}} props as of a Form.
 */
export function Field({ name, value, onChange, facts = null, error = null, hints = false }) {
  const field = useFields()?.all.get(name);
  const latest = useLatest(value, onChange);
  return field && html`<${Row} field=${field} path=${name} values=${value} latest=${latest} facts=${facts} error=${error} hints=${hints} />`;
}

function Rows({ fields, values, onChange, facts, error, hints, before, sole = false }) {
  const latest = useLatest(values, onChange);
  const unusable = (field) => !before && facts?.unusable?.includes(field.path) && !differs(field, values[field.name]);
  const row = (field) => html`<${Row} key=${field.path} field=${field} path=${before + field.name} values=${values} latest=${latest} facts=${facts} error=${error} hints=${hints} sole=${sole} />`;
  const hidden = fields.filter(unusable);
  return html`<div class="form-rows">${fields.filter((field) => !unusable(field)).map(row)}</div>
    ${hidden.length > 0 && html`<details class="form-unusable"><summary class="small-text">${say("form.unusable", { n: hidden.length })}</summary>
      <div class="form-rows">${hidden.map(row)}</div></details>`}`;
}

/** The values as the last change left them: a second one may come before the first was rendered. */
function useLatest(values, onChange) {
  const latest = useRef();
  latest.current = { values, onChange };
  return latest;
}

function Row({ field, path, values, latest, facts, error, hints, sole = false }) {
  const set = useMemo(() => (value) => {
    latest.current.values = withValue(latest.current.values, field, value);
    latest.current.onChange(latest.current.values);
  }, [field]);
  const id = `field-${path.replaceAll(/[^a-z0-9_]+/gi, "-")}-${useId()}`;
  const named = error ? errorPath(error) : "";
  const mine = named === path;
  const inside = named.startsWith(`${path}.`) || named.startsWith(`${path}[`);
  const value = values[field.name];
  const element = useRef();
  useEffect(() => { if (mine) element.current?.scrollIntoView({ block: "nearest" }); }, [mine, error]);
  return useMemo(() => {
    const missing = field.required && (value === undefined || value.length === 0);
    const wrong = mine ? (missing ? say("error.field.missing", { label: fieldLabel(path) }) : explain(error)) : complaint(field, value);
    const shared = { field, path, id, value, set, facts, error: inside ? error : null, hints, wrong, own: ownValue(field, facts) };
    const Input = INPUTS[field.kind];
    const changed = differs(field, value) && !field.required;
    const help = fieldHelp(field);
    const needless = facts?.unusable?.includes(path);
    const hint = hints && help && html`<p class="hint" id=${`${id}-help`}>${help}</p>`;
    const above = field.fields !== undefined;
    const tip = hints ? undefined : help;
    const heading = LABELLED_BY.includes(field.kind)
      ? html`<span class="label" id=${`${id}-label`} title=${tip}>${fieldLabel(path)}</span>`
      : html`<label for=${id} id=${`${id}-label`} title=${tip}>${fieldLabel(path)}</label>`;
    return html`<div ref=${element} class=${["field form-row", WIDE.includes(field.kind) && "wide", wrong && "wrong", changed && "changed", `kind-${field.kind}`].filter(Boolean).join(" ")} data-path=${path}>
      <div class="form-head ${sole ? "visually-hidden" : ""}">
        ${field.kind === "flag" && html`<${FlagInput} ...${shared} />`}${heading}
        ${field.unit && html`<span class="hint">${field.unit}</span>`}
        ${field.kind === "group" && html`<${Switch} ...${shared} />`}
        ${changed && html`<${Button} small quiet class="form-reset" label=${say("form.reset", { label: fieldLabel(path) })} onClick=${() => set(null)}><${Icon} name="again" /><//>`}
      </div>
      ${above && hint}
      ${field.kind !== "flag" && html`<${Input} ...${shared} />`}
      ${wrong && html`<p class="wrong-text" id=${`${id}-wrong`} role=${mine ? "alert" : undefined}>${wrong}</p>`}
      ${needless && changed && html`<p class="hint bad">${say("form.needless")}</p>`}
      ${!above && hint}
    </div>`;
  }, [field, path, value, set, facts, mine || inside ? error : null, hints, id]);
}

function Switch({ field, path, id, value, set }) {
  const on = value !== undefined && value !== null;
  return html`<label class="form-switch"><input type="checkbox" role="switch" checked=${on} aria-labelledby=${`${id}-label`}
    onChange=${() => set(on ? null : structuredClone(FIRST[field.path] ?? {}))} /></label>`;
}

function GroupInput({ field, path, id, value, set, facts, error, hints }) {
  if (value === undefined || value === null) return null;
  return html`<fieldset class="form-group" aria-labelledby=${`${id}-label`}>
    <${Rows} fields=${field.fields} values=${value} onChange=${set} facts=${facts} error=${error} hints=${hints} before=${`${path}.`} /></fieldset>`;
}

function GroupsInput({ field, path, id, value, set, facts, error, hints }) {
  const list = value ?? [];
  const put = (number, changed) => set(list.map((one, k) => (k === number ? changed : one)));
  const item = say(`item.${field.path}`);
  const title = (number) => say("form.number_of", { label: item, n: number + 1 });
  return html`<div class="form-list">
    ${list.map((one, number) => html`<fieldset class="form-group" key=${number} aria-label=${title(number)}>
      <div class="form-head"><span class="label">${title(number)}</span>
        <${Button} small quiet label=${say("form.remove", { label: title(number) })} onClick=${() => set(list.toSpliced(number, 1))}><${Icon} name="trash" /><//></div>
      <${Rows} fields=${field.fields} values=${one} onChange=${(changed) => put(number, changed)} facts=${facts} error=${error} hints=${hints} before=${`${path}[${number}].`} />
    </fieldset>`)}
    ${list.length < (field.max_items ?? 1) && html`<${Button} small class="form-add" id=${id}
      onClick=${() => set([...list, structuredClone(FIRST[`${field.path}[]`] ?? {})])}><${Icon} name="plus" /> ${say("form.add", { label: item })}<//>`}
  </div>`;
}
