// A grid that was asked for: its cells fill in as their pictures come; it can be opened again, and saved as one picture.
import { html, useEffect, useState } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { go } from "../../app/router.js";
import { isOver, jobs, toast } from "../../app/state.js";
import { ago, explain, say } from "../../app/words.js";
import { Button, Empty, Icon } from "../../ui/controls.js";
import { grids } from "./grid.js";
import { Zoom } from "./look.js";

const AT_ONCE = 6;
/** Longest side of the saved picture, which browsers can draw. */
const LONGEST = 12_000;
const LABEL = 22;

const fileOf = (id) => `/v1/pictures/${id}/file`;

/** Read the jobs that the page doesn't know yet, a few at a time. */
function useJobs(cells) {
  const [read, setRead] = useState(new Map());
  useEffect(() => {
    let current = true;
    const missing = cells.filter((cell) => !jobs.peek().has(cell.job) && !read.has(cell.job)).map((cell) => cell.job);
    const next = async () => {
      const id = missing.shift();
      if (!id || !current) return;
      const job = await api.get(`/v1/jobs/${id}`).catch(() => ({ id, state: "failed", pictures: [] }));
      if (current) setRead((before) => new Map(before).set(id, job));
      await next();
    };
    Array.from({ length: AT_ONCE }, next);
    return () => { current = false; };
  }, [cells.length]);
  return (id) => jobs.value.get(id) ?? read.get(id);
}

function Cell({ cell, job, title, onOpen }) {
  const [id] = job?.pictures ?? [];
  if (id) return html`<button type="button" class="paint-grid-cell" aria-label=${say("paint.enlarge", { name: title })} onClick=${() => onOpen(id)}><img class="checker" src=${fileOf(id)} alt=${title} loading="lazy" /></button>`;
  const state = !cell ? "" : job?.state ?? "queued";
  return html`<span class="paint-grid-cell paint-blank ${state === "running" ? "now" : ""}" title=${job?.error ? explain(job.error) : ""}>${["failed", "cancelled"].includes(state) ? html`<${Icon} name="close" />` : null}</span>`;
}

function loaded(address) {
  const image = new Image();
  image.src = address;
  return image.decode().then(() => image, () => null);
}

function cut(context, text, width) {
  let shown = text;
  while (shown.length > 1 && context.measureText(shown).width > width) shown = `${shown.slice(0, -2)}…`;
  return shown;
}

/** Draw the whole grid with its labels; gives a PNG. */
async function drawn(grid, axes, pictureAt) {
  const [x, y, z] = axes;
  const images = await Promise.all(z.values.flatMap((_c, k) => y.values.flatMap((_b, j) => x.values.map((_a, i) => { const id = pictureAt(i, j, k); return id ? loaded(fileOf(id)) : null; }))));
  const first = images.find(Boolean);
  const [width, height] = [first?.naturalWidth ?? 256, first?.naturalHeight ?? 256];
  const left = y.values.length > 1 ? Math.max(120, Math.min(width, 260)) : 0;
  const section = (z.values.length > 1 ? LABEL * 2 : 0) + LABEL * 2 + y.values.length * (height + 8);
  const [fullWidth, fullHeight] = [left + x.values.length * (width + 8) + 8, z.values.length * section + 8];
  const scale = Math.min(1, LONGEST / Math.max(fullWidth, fullHeight));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.round(fullWidth * scale), Math.round(fullHeight * scale)];
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, fullWidth, fullHeight);
  context.fillStyle = "#1c1917";
  context.textBaseline = "middle";
  const write = (text, centre, middle, room, bold) => {
    context.font = `${bold ? "600 " : ""}15px system-ui, "Noto Sans CJK SC", sans-serif`;
    context.textAlign = "center";
    context.fillText(cut(context, text, room), centre, middle);
  };
  const named = (axis, k) => (axis.label ? `${axis.label}: ${axis.values[k]}` : axis.values[k]);
  z.values.forEach((_c, k) => {
    let top = k * section + 8;
    if (z.values.length > 1) { write(named(z, k), fullWidth / 2, top + LABEL, fullWidth - 20, true); top += LABEL * 2; }
    x.values.forEach((_a, i) => write(named(x, i), left + 8 + i * (width + 8) + width / 2, top + LABEL - 2, width - 8));
    top += LABEL * 2 - 8;
    y.values.forEach((_b, j) => {
      if (left) write(named(y, j), left / 2 + 4, top + j * (height + 8) + height / 2, left - 12);
      x.values.forEach((_a, i) => {
        const image = images[(k * y.values.length + j) * x.values.length + i];
        if (image) context.drawImage(image, left + 8 + i * (width + 8), top + j * (height + 8), width, height);
      });
    });
  });
  return new Promise((done) => { canvas.toBlob(done, "image/png"); });
}

export default function GridView({ id }) {
  const grid = grids.value.list.find((one) => one.id === id);
  const [open, setOpen] = useState(null);
  const [busy, setBusy] = useState(false);
  const jobOf = useJobs(grid?.cells ?? []);
  if (!grid) return html`<section class="paint-stage paint-nothing"><${Empty} icon="grid" title=${say("paint.grid_gone")}><a href="/paint">${say("paint.grid_back")}</a><//></section>`;
  const axes = [0, 1, 2].map((k) => grid.axes[k] ?? { label: "", values: [""] });
  const [x, y, z] = axes;
  const cellAt = (i, j, k) => grid.cells.find((cell) => cell.at[0] === i && cell.at[1] === j && cell.at[2] === k);
  const pictureAt = (i, j, k) => jobOf(cellAt(i, j, k)?.job)?.pictures[0];
  const titleAt = (i, j, k) => [[x, i], [y, j], [z, k]].filter(([axis]) => axis.values.length > 1).map(([axis, at]) => `${axis.label} ${axis.values[at]}`.trim()).join(", ") || grid.title;
  const total = x.values.length * y.values.length * z.values.length;
  const done = grid.cells.filter((cell) => { const job = jobOf(cell.job); return job && isOver(job); }).length;
  const left = grid.cells.filter((cell) => { const job = jobOf(cell.job); return job && !isOver(job); });
  const save = async () => {
    setBusy(true);
    try {
      const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(await drawn(grid, axes, pictureAt)), download: `grid-${grid.id}.png` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    } catch (error) {
      toast(explain(error), { kind: "error" });
    }
    setBusy(false);
  };
  const stop = () => left.forEach((cell) => api.post(`/v1/jobs/${cell.job}/cancel`).catch(() => {}));
  const listed = y.values.length === 1 && z.values.length === 1;
  return html`<section class="paint-stage paint-grid" aria-label=${say("paint.grids")}>
    <header class="row"><div class="grow"><h2>${grid.title || say("paint.grids")}</h2><p class="soft small-text" role="status" id="grid-state">${say("paint.grid_done", { done, n: total })} · ${ago(grid.created)}</p></div>
      ${left.length > 0 && html`<${Button} id="grid-stop" onClick=${stop}>${say("app.cancel")}<//>`}
      <${Button} id="grid-save" disabled=${!done || busy} onClick=${save}><${Icon} name="download" />${say("paint.grid_save")}<//>
      <${Button} label=${say("app.close")} onClick=${() => go("/paint")}><${Icon} name="close" /><//></header>
    <div class="paint-grid-scroll" tabindex="0">${listed
      ? html`<ol class="paint-grid-list">${x.values.map((value, i) => html`<li key=${i}><${Cell} cell=${cellAt(i, 0, 0)} job=${jobOf(cellAt(i, 0, 0)?.job)} title=${titleAt(i, 0, 0)} onOpen=${setOpen} /><span title=${value}>${x.label ? `${x.label} ${value}` : value}</span></li>`)}</ol>`
      : z.values.map((part, k) => html`<table key=${k}>${z.values.length > 1 && html`<caption>${z.label} ${part}</caption>`}
        <thead><tr><td><span class="visually-hidden">${y.label}</span></td>${x.values.map((value) => html`<th scope="col">${x.label} <b>${value}</b></th>`)}</tr></thead>
        <tbody>${y.values.map((row, j) => html`<tr key=${j}><th scope="row">${y.label} <b>${row}</b></th>${x.values.map((_value, i) => html`<td key=${i}><${Cell} cell=${cellAt(i, j, k)} job=${jobOf(cellAt(i, j, k)?.job)} title=${titleAt(i, j, k)} onOpen=${setOpen} /></td>`)}</tr>`)}</tbody></table>`)}
    </div>
    ${open && html`<${Opened} id=${open} onClose=${() => setOpen(null)} />`}
  </section>`;
}

function Opened({ id, onClose }) {
  const [picture, setPicture] = useState(null);
  useEffect(() => { api.get(`/v1/pictures/${id}`).then(setPicture, (error) => { toast(explain(error), { kind: "error" }); onClose(); }); }, [id]);
  return picture && html`<${Zoom} picture=${picture} group=${[picture]} onClose=${onClose} />`;
}
