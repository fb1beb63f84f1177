// Many pictures at once: an X/Y/Z plot, a prompt matrix, a list of prompts, or a folder of pictures.
import { html, useMemo, useRef, useState } from "../../app/preact.js";
import { go } from "../../app/router.js";
import { keptSignal, paintOptions, paintRequest, toast } from "../../app/state.js";
import { explain, language, say } from "../../app/words.js";
import { fieldLabel, useFields, useNames } from "../../ui/fields.js";
import { uploaded } from "../../ui/inputs.js";
import { Button, DropZone, Segmented } from "../../ui/controls.js";
import { Dialog } from "../../ui/dialog.js";
import { facts, randomSeed, submit } from "./session.js";
import { lineOf, matrix, plot, valuesOf } from "./grid_values.js";

const ASK_ABOVE = 50;
const MOST_CELLS = 1000;
const KEPT = 8;
const PLOTTED = ["integer", "number", "seed", "choice", "name", "flag"];
const FIRST = ["prompt_replace", "seed", "num_inference_steps", "guidance_scale", "sampler", "schedule", "model", "style", "strength"];
const EXAMPLES = { integer: "10, 20-40 (+10)", number: "1.5, 3-9 (+2)", seed: "1, 2, 3", replace: "red, blue, green", flag: "true, false" };

/** The user's last grids, as they were asked for: {list: [{id, kind, title, axes: [{label, values}], cells: [{at, job}], created}]}. */
export const grids = keptSignal("paint_grids", { list: [] });

function keep(grid) {
  const others = grids.peek().list.filter((one) => one.id !== grid.id);
  grids.value = { list: [grid, ...others].slice(0, KEPT) };
}

const told = (value) => (typeof value === "number" ? value.toLocaleString(language, { useGrouping: false, maximumFractionDigits: 6 }) : String(value));

/**
 * Hand in the cells of a grid, one job each, and show it.
 *
 * @param {{kind: string, title: string, axes: {label: string, values: string[]}[], cells: {request: object, at: number[]}[]}} wanted
 */
async function begin({ kind, title, axes, cells }) {
  const id = Date.now().toString(36);
  const styles = paintOptions.peek().styles ?? [];
  const grid = { id, kind, title, axes, cells: [], created: Date.now() / 1000 };
  keep(grid);
  go(`/paint/grid/${id}`);
  for (const { request, at } of cells) {
    try {
      const job = await submit(request, { label: `grid ${id} ${at.join(",")}`, styles, quiet: true });
      grid.cells.push({ at, job: job.id });
      keep({ ...grid, cells: [...grid.cells] });
    } catch (error) {
      toast(say("paint.grid_stopped", { at: grid.cells.length + 1, why: explain(error) }), { kind: "error" });
      return;
    }
  }
}

function Axis({ letter, value, onChange, fields }) {
  const field = fields.find((one) => one.name === value.name);
  const names = useNames(field?.source ? field : { source: null, choices: [] }, facts.value);
  const all = field?.source ? names.filter((one) => one.fits).map((one) => one.value) : (field?.choices ?? []).map((one) => one.value);
  const quote = (name) => (name.includes(",") ? `"${name}"` : name);
  return html`<div class="paint-axis" role="group" aria-label=${say("paint.grid_axis", { letter })}><b>${letter}</b>
    <select aria-label=${say("paint.grid_field", { letter })} id=${`axis-${letter}`} value=${value.name} onChange=${(event) => onChange({ name: event.target.value, text: "" })}>
      <option value="" selected=${!value.name}>${say("paint.grid_none")}</option>
      ${fields.map((one) => html`<option key=${one.name} value=${one.name} selected=${one.name === value.name}>${one.label}</option>`)}</select>
    <input id=${`values-${letter}`} class=${value.wrong ? "wrong" : ""} value=${value.text} disabled=${!field} aria-label=${say("paint.grid_values", { letter })} placeholder=${EXAMPLES[field?.kind] ?? (all.slice(0, 2).join(", ") || "")}
      onInput=${(event) => onChange({ ...value, text: event.target.value })} />
    ${all.length > 1 && html`<${Button} small onClick=${() => onChange({ ...value, text: all.map(quote).join(", ") })}>${say("paint.grid_all")}<//>`}
    ${value.wrong && html`<p class="wrong-text" role="alert">${value.wrong}</p>`}</div>`;
}

function plotOf(axes, fields, base) {
  const read = axes.map((axis) => {
    const field = fields.find((one) => one.name === axis.name);
    if (!field) return null;
    try {
      const values = valuesOf(field, axis.text);
      return { ...field, values };
    } catch (error) {
      return { ...field, values: [], wrong: error.message };
    }
  });
  const used = read.filter((axis) => axis && (axis.values.length || axis.wrong));
  const wrong = read.map((axis) => axis?.wrong ?? "");
  if (!used.length || wrong.some(Boolean)) return { wrong, cells: [] };
  const missing = used.find((axis) => axis.kind === "replace" && !`${base.prompt}\n${base.negative_prompt ?? ""}`.includes(axis.values[0]));
  if (missing) return { wrong: read.map((axis) => (axis?.kind === "replace" ? say("paint.grid_not_in_prompt", { text: axis.values[0] }) : "")), cells: [] };
  return { wrong, cells: plot(base, used), axes: used.map((axis) => ({ label: axis.label, values: axis.values.map(told) })) };
}

function listOf(text, base) {
  const lines = text.split("\n").map((line) => line.trim()).filter((line) => line && !line.startsWith("#"));
  const cells = [];
  for (const [number, line] of lines.entries()) {
    try { cells.push({ request: { ...base, ...lineOf(line) }, at: [number, 0, 0] }); } catch (error) { return { cells: [], wrong: say("paint.grid_line", { n: number + 1, why: error.message }) }; }
  }
  return { cells, axes: [{ label: "", values: cells.map((one) => one.request.prompt ?? "") }] };
}

export default function Grid({ onClose }) {
  const known = useFields();
  const [tab, setTab] = useState("plot");
  const [axes, setAxes] = useState([{ name: "", text: "" }, { name: "", text: "" }, { name: "", text: "" }]);
  const [text, setText] = useState("");
  const [files, setFiles] = useState([]);
  const [sure, setSure] = useState(false);
  const [busy, setBusy] = useState(false);
  const folder = useRef();
  const fields = useMemo(() => {
    const found = known?.groups.flatMap((group) => group.fields).filter((one) => PLOTTED.includes(one.kind)).map((one) => ({ ...one, label: fieldLabel(one.path) })) ?? [];
    const replace = { name: "prompt_replace", kind: "replace", label: say("paint.grid_replace") };
    const place = (one) => (FIRST.includes(one.name) ? FIRST.indexOf(one.name) : FIRST.length);
    return [replace, ...found].sort((a, b) => place(a) - place(b));
  }, [known]);
  const request = paintRequest.value;
  const base = useMemo(() => {
    const { count: _count, ...rest } = request;
    return { ...rest, seed: request.seed ?? randomSeed() };
  }, [request]);
  const parts = (request.prompt ?? "").split("|").length;
  const wanted = useMemo(() => {
    if (tab === "plot") return plotOf(axes, fields, base);
    if (tab === "matrix") {
      const found = parts > 1 && parts < 11 ? matrix(request.prompt) : [];
      return { cells: found.map((one, k) => ({ request: { ...base, prompt: one.prompt }, at: [k, 0, 0] })), axes: [{ label: "", values: found.map((one) => one.label) }] };
    }
    if (tab === "list") return listOf(text, base);
    return { cells: files.map((file, k) => ({ file, request: base, at: [k, 0, 0] })), axes: [{ label: "", values: files.map((file) => file.name) }] };
  }, [tab, axes, fields, base, text, files]);
  const count = wanted.cells.reduce((sum, cell) => sum + (cell.request.count ?? 1), 0);
  const start = async () => {
    if (count > ASK_ABOVE && !sure) { setSure(true); return; }
    setBusy(true);
    try {
      let { cells } = wanted;
      if (tab === "folder") {
        const names = await uploaded(files);
        cells = cells.map(({ at, request: one }, k) => ({ at, request: { ...one, init_image: names[k] } }));
      }
      begin({ kind: tab, title: request.prompt ?? "", axes: wanted.axes, cells });
      onClose();
    } catch (error) {
      toast(explain(error), { kind: "error" });
      setBusy(false);
    }
  };
  const tabs = ["plot", "matrix", "list", "folder"].map((value) => ({ value, label: say(`paint.grid_${value}`) }));
  const take = (list) => setFiles([...list].filter((file) => file.type.startsWith("image/")).sort((a, b) => a.name.localeCompare(b.name)));
  return html`<${Dialog} title=${say("paint.grids")} onClose=${onClose} wide><div class="paint-menu paint-gridding">
    <${Segmented} label=${say("paint.grids")} options=${tabs} value=${tab} onChange=${(value) => { setTab(value); setSure(false); }} />
    <p class="hint">${say(`paint.grid_${tab}_hint`)}</p>
    ${tab === "plot" && axes.map((axis, k) => html`<${Axis} key=${k} letter=${"XYZ"[k]} value=${{ ...axis, wrong: wanted.wrong?.[k] }} fields=${fields} onChange=${(value) => { setSure(false); setAxes(axes.map((one, j) => (j === k ? value : one))); }} />`)}
    ${tab === "matrix" && (parts > 1 && parts < 11 ? html`<ul class="paint-listed">${wanted.cells.slice(0, 12).map((cell) => html`<li>${cell.request.prompt}</li>`)}${wanted.cells.length > 12 && html`<li class="soft">…</li>`}</ul>` : html`<p class="soft">${say("paint.grid_matrix_needs")}</p>`)}
    ${tab === "list" && html`<div class="field ${wanted.wrong ? "wrong" : ""}"><label for="grid-lines">${say("paint.grid_lines")}</label><textarea id="grid-lines" rows="8" value=${text} onInput=${(event) => { setText(event.target.value); setSure(false); }}></textarea>
      ${wanted.wrong && html`<p class="wrong-text" role="alert">${wanted.wrong}</p>`}</div>
      <${DropZone} accept="text/plain,.txt" label=${say("paint.grid_file")} onFiles=${([file]) => file.text().then(setText)} />`}
    ${tab === "folder" && html`<${DropZone} multiple label=${say("paint.grid_pictures")} onFiles=${take} />
      <div class="row"><${Button} onClick=${() => folder.current.click()}>${say("paint.grid_choose_folder")}<//><input ref=${folder} type="file" webkitdirectory hidden onChange=${(event) => take(event.target.files)} />
      <span class="soft">${files.length ? say("paint.pictures", { n: files.length }) : ""}</span></div>`}
    <footer class="paint-grid-foot"><span class="grow" role="status" id="grid-count">${count > MOST_CELLS ? say("paint.grid_too_many", { n: count, most: MOST_CELLS }) : sure ? say("paint.grid_sure", { n: count }) : say("paint.grid_count", { n: count })}</span>
      <${Button} kind="primary" id="grid-start" disabled=${!count || count > MOST_CELLS || busy} onClick=${start}>${say(sure ? "paint.grid_yes" : "paint.paint")}<//></footer>
    ${grids.value.list.length > 0 && html`<details><summary>${say("paint.grid_last")}</summary><ul class="paint-listed">${grids.value.list.map((one) => html`<li key=${one.id}><a href=${`/paint/grid/${one.id}`} onClick=${onClose}>${one.title || say("paint.grids")}</a> <span class="soft">${one.axes.map((axis) => axis.label).filter(Boolean).join(" × ")} ${say("paint.pictures", { n: one.cells.length })}</span></li>`)}</ul></details>`}
  </div><//>`;
}
