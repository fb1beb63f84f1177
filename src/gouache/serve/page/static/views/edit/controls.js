// ControlNets: a picture of edges, depth or segments that steers what is painted, with what the preprocessor makes of it.

import { html, useEffect, useRef, useState } from "../../app/preact.js";
import { api, attach } from "../../app/api.js";
import { toast } from "../../app/state.js";
import { explain, say } from "../../app/words.js";
import { Button, DropZone, Icon } from "../../ui/controls.js";
import { png } from "./generate.js";
import { Slide } from "./parts.js";
import { change, drawing, settings } from "./session.js";

const FIRST = { model: "", image: "", preprocessor: "canny", canny_low: 100, canny_high: 200, weight: 1, start: 0, end: 1 };
const MOST = 3;
const AFTER = 400; // ms without a change until the preview is drawn again

let asked = null;
const offered = () => (asked ??= api.get("/v1/control-images").catch((error) => { asked = null; throw error; }));

export const address = (name) => `/v1/attachments/${name.replace("sha256:", "")}`;

function Preview({ control, open }) {
  const [shown, setShown] = useState(null);
  const [failed, setFailed] = useState("");
  const { image, preprocessor, canny_low: low, canny_high: high } = control;
  const version = image ? 0 : drawing.looks.value;
  const turn = useRef(0);
  useEffect(() => {
    if (!open) return undefined;
    if (preprocessor === "none" || (!image && drawing.empty)) {
      setShown(image ? address(image) : null);
      return undefined;
    }
    const mine = ++turn.current;
    const timer = setTimeout(async () => {
      try {
        const source = image || (await attach(await png(drawing.flat()))).name;
        const parameters = preprocessor === "canny" ? { canny_low: low, canny_high: high } : {};
        const made = await api.post("/v1/control-images", { image: source, preprocessor, parameters });
        if (mine !== turn.current) return;
        setShown(address(made.name));
        setFailed("");
      } catch (error) {
        if (mine === turn.current) setFailed(explain(error));
      }
    }, AFTER);
    return () => clearTimeout(timer);
  }, [image, preprocessor, low, high, version, open]);
  if (failed) return html`<p class="bad small-text" role="alert">${failed}</p>`;
  return shown && html`<img class="edit-control-preview" src=${shown} alt=${say("edit.control.preview")} />`;
}

function Control({ control, number, lists, open }) {
  const set = (values) => change({ controls: settings.value.controls.map((one, k) => (k === number ? { ...one, ...values } : one)) });
  const id = (name) => `edit-control-${number}-${name}`;
  const own = ([file]) => attach(file).then(({ name }) => set({ image: name }), (error) => toast(explain(error), { kind: "error" }));
  return html`<fieldset class="edit-control"><legend class="visually-hidden">${say("edit.control.slot", { n: number + 1 })}</legend>
    <div class="row"><div class="field grow"><label for=${id("model")}>${say("edit.control.model")}</label>
        <select id=${id("model")} value=${control.model} onChange=${(event) => set({ model: event.target.value })}>
          <option value="">${say("edit.control.choose")}</option>${lists.models.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}</select></div>
      <${Button} small kind="danger" label=${say("edit.control.remove")} onClick=${() => change({ controls: settings.value.controls.toSpliced(number, 1) })}><${Icon} name="trash" /><//></div>
    <div class="field"><label for=${id("preprocessor")}>${say("edit.control.preprocessor")}</label>
      <select id=${id("preprocessor")} value=${control.preprocessor} onChange=${(event) => set({ preprocessor: event.target.value })}>
        ${lists.preprocessors.map((name) => html`<option key=${name} value=${name}>${say(`edit.control.${name}`)}</option>`)}</select></div>
    ${control.image ? html`<div class="row"><span class="small-text grow">${say("edit.control.own")}</span><${Button} small onClick=${() => set({ image: "" })}>${say("edit.control.use_drawing")}<//></div>`
      : html`<${DropZone} class="edit-control-drop" label=${say("edit.control.drop")} onFiles=${own} />`}
    ${control.preprocessor === "canny" && html`<${Slide} id=${id("low")} label=${say("edit.control.low")} min=${0} max=${control.canny_high} value=${control.canny_low} onChange=${(low) => set({ canny_low: low })} />
      <${Slide} id=${id("high")} label=${say("edit.control.high")} min=${control.canny_low} max=${500} value=${control.canny_high} onChange=${(high) => set({ canny_high: high })} />`}
    <${Preview} control=${control} open=${open} />
    <${Slide} id=${id("weight")} label=${say("edit.control.weight")} min=${0} max=${2} step=${0.05} value=${control.weight} onChange=${(weight) => set({ weight })} />
    <${Slide} id=${id("start")} label=${say("edit.control.start")} min=${0} max=${0.95} step=${0.05} value=${control.start} onChange=${(start) => set({ start: Math.min(start, control.end - 0.05) })} />
    <${Slide} id=${id("end")} label=${say("edit.control.end")} min=${0.05} max=${1} step=${0.05} value=${control.end} onChange=${(end) => set({ end: Math.max(end, control.start + 0.05) })} />
  </fieldset>`;
}

/** Slots for control pictures; the lists are asked for when they are first opened. */
export function Controls() {
  const { controls } = settings.value;
  const [lists, setLists] = useState(null);
  const [failed, setFailed] = useState("");
  const [open, setOpen] = useState(controls.length > 0);
  useEffect(() => {
    if (open && !lists) offered().then(setLists, (error) => setFailed(explain(error)));
  }, [open]);
  return html`<details class="panel" id="edit-controls" open=${open} onToggle=${(event) => setOpen(event.target.open)}><summary>${say("edit.control.title")}</summary>
    ${failed && html`<p class="bad small-text">${failed}</p>`}
    ${lists && html`<div class="stack">
      ${!lists.models.length && html`<p class="hint">${say("edit.control.none_there")}</p>`}
      ${controls.map((control, k) => html`<${Control} key=${k} number=${k} control=${control} lists=${lists} open=${open} />`)}
      ${controls.length < MOST && html`<${Button} id="edit-add-control" onClick=${() => change({ controls: [...controls, { ...FIRST, model: lists.models[0] ?? "" }] })}><${Icon} name="plus" />${say("edit.control.add")}<//>`}
    </div>`}
  </details>`;
}
