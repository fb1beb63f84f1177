// What is being edited, shared by the parts of the view and kept while other views are shown: the drawing, its settings, the
// tool in hand, the job under way and its candidates.

import { batch, computed, effect, signal } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { boot, isOver, jobs, previews, toast } from "../../app/state.js";
import { explain, say } from "../../app/words.js";
import { Drawing, NO_FRAME } from "./drawing.js";
import { FIRST_SETTINGS, canvasOf, keepInGallery, layerOf, pictureCanvas, png, previewBox, previewCanvas, requestOf } from "./generate.js";
import { load, save } from "./store.js";
import { extent, grown } from "./strokes.js";

const SAVE_AFTER = 300; // ms without a change
export const drawing = new Drawing();
export const settings = signal({ ...FIRST_SETTINGS });
export const tool = signal("brush");
export const brush = signal({ size: 48, hardness: 0.8, opacity: 1, colour: [225, 29, 72] });
export const zoom = signal(1);
export const masksShown = signal(true); // on the canvas; what is repainted is the same
export const subtract = signal(false);
export const growing = signal(null); // the frame while its edge is dragged
/** What is handed in: {sending, id, request, frame, mask}; null if nothing is. */
export const running = signal(null);
/** Finished pictures to choose from: {list: [{canvas, picture, mask}], index, frame}; null if there are none. */
export const candidates = signal(null);
export const split = signal(0); // before and after: share of the old picture, 0 shows the new one
export const shownPreview = signal(null); // {canvas, frame}
export const problem = signal(null); // what the server said of the last request, for the form's fields
export const restored = signal(false);
export const job = computed(() => (running.value?.id ? jobs.value.get(running.value.id) ?? null : null));

export const change = (values) => (settings.value = { ...settings.value, ...values });
const told = (error) => toast(explain(error), { kind: "error" });
const refused = (error) => {
  problem.value = error;
  told(error);
};

// --- kept by the browser

let timer = 0;
let saving = Promise.resolve();

/** The job whose pictures are still to be chosen from. */
function undecided() {
  const { id, frame } = running.peek()?.id ? running.peek() : candidates.peek() ?? {};
  return id ? { id, frame } : null;
}

export function store() {
  clearTimeout(timer);
  timer = 0;
  const kept = { ...settings.peek(), tool: tool.peek(), brush: brush.peek(), running: undecided() };
  saving = saving.then(() => save(boot.user, drawing, kept)).catch((error) => console.warn("edit: not kept", error));
  return saving;
}

/** Waits until everything is kept. */
export async function settled() {
  while (timer) await new Promise((done) => setTimeout(done, 50));
  await saving;
}

function soon() {
  if (!restored.peek()) return;
  clearTimeout(timer);
  timer = setTimeout(() => (drawing.under ? soon() : store()), SAVE_AFTER);
}

let begun = null;

/** Read what was kept, once. */
export function restore() {
  begun ??= load(boot.user, drawing)
    .catch((error) => console.warn("edit: nothing restored", error))
    .then((kept) => {
      batch(() => {
        if (kept) {
          const { tool: held, brush: last, running: open, ...rest } = kept;
          settings.value = { ...FIRST_SETTINGS, ...rest };
          tool.value = held ?? "brush";
          brush.value = { ...brush.peek(), ...last };
          if (open) follow(open);
        }
        restored.value = true;
      });
      effect(() => {
        void [drawing.changed.value, settings.value, brush.value, tool.value, running.value, candidates.value];
        soon();
      });
      addEventListener("visibilitychange", () => document.hidden && timer && store());
    });
  return begun;
}

/** Take up a job that was handed in before the page was loaded anew. */
async function follow(open) {
  running.value = { ...open, mask: null, request: null };
  try {
    const found = await api.get(`/v1/jobs/${open.id}`);
    if (!jobs.peek().has(found.id)) jobs.value = new Map(jobs.peek()).set(found.id, found);
  } catch {
    running.value = null;
  }
}

// --- pictures

/** Put a file on the canvas: as the picture where there is none, else as a layer. */
export async function openFile(file, { anew = false } = {}) {
  try {
    const { canvas, file: whole, scaled } = await canvasOf(file, boot.limits?.pixels);
    if (scaled) toast(say("edit.scaled", { width: canvas.width, height: canvas.height }));
    put(canvas, { name: file.name?.replace(/\.\w+$/, "") || say("edit.layer.picture"), file: whole }, anew);
  } catch {
    toast(say("edit.no_picture", { name: file.name ?? "" }), { kind: "error" });
  }
}

/** Open a picture of the gallery. */
export async function openPicture(id) {
  try {
    const { canvas, file } = await pictureCanvas(id);
    put(canvas, { name: say("edit.layer.picture"), file, picture: id }, true);
  } catch (error) {
    told(error);
  }
}

function put(canvas, values, anew) {
  candidates.value = null;
  if (drawing.empty || anew) {
    era++;
    running.value = null; // what is painted for the old one ends in the gallery
    shownPreview.value = null;
    const had = !drawing.empty;
    drawing.open(canvas, values);
    if (had) toast(say("edit.replaced"), { action: { label: say("app.undo"), run: () => drawing.undo() } });
    return;
  }
  const scale = Math.min(1, drawing.width / canvas.width, drawing.height / canvas.height);
  const place = {
    x: Math.round((drawing.width - canvas.width * scale) / 2), y: Math.round((drawing.height - canvas.height * scale) / 2),
    scaleX: scale, scaleY: scale,
  };
  drawing.add("picture", { canvas, ...values, ...place });
  tool.value = "move";
}

/** Hand the picture out as a file. */
export async function download() {
  const address = URL.createObjectURL(await png(drawing.flat()));
  const link = document.createElement("a");
  link.href = address;
  link.download = "gouache.png";
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** Store the picture in the gallery. */
export async function keep() {
  try {
    const kept = await keepInGallery(drawing);
    toast(say("edit.kept"), { action: { label: say("edit.show"), run: () => import("../../app/router.js").then(({ go }) => go(`/gallery/${kept.id}`)) } });
  } catch (error) {
    told(error);
  }
}

// --- masks

export const resizeBrush = (factor) => {
  const size = brush.peek().size;
  const next = factor > 1 ? Math.max(size + 1, Math.round(size * factor)) : Math.min(size - 1, Math.round(size * factor));
  brush.value = { ...brush.peek(), size: Math.min(512, Math.max(1, next)) };
};

export function maskAction(action, pixels = 8) {
  if (drawing.empty) return;
  masksShown.value = true;
  const layer = drawing.maskForStrokes(say("edit.layer.mask"));
  if (action === "invert") drawing.remask(layer, (old) => old.map((value) => 255 - value));
  else if (action === "clear") {
    if (extent(layer.data, layer.canvas.width, layer.canvas.height)) drawing.remask(layer, (old) => old.map(() => 0));
  } else drawing.remask(layer, (old, width, height) => grown(old, width, height, action === "grow" ? pixels : -pixels));
}

// --- painting

export async function generate() {
  if (drawing.empty || running.peek()) return;
  era++;
  running.value = { sending: true };
  problem.value = null;
  candidates.value = null;
  try {
    const { request, ...painted } = await requestOf(drawing, settings.peek());
    const made = await api.post("/v1/jobs", { request }, { headers: { "Idempotency-Key": crypto.randomUUID?.() ?? `${Date.now()}${Math.random()}` } });
    batch(() => {
      running.value = { id: made.id, request, ...painted };
      if (!jobs.peek().has(made.id)) jobs.value = new Map(jobs.peek()).set(made.id, made);
    });
  } catch (error) {
    running.value = null;
    refused(error);
  }
}

export async function cancel() {
  const id = running.peek()?.id;
  try {
    if (id) await api.post(`/v1/jobs/${id}/cancel`);
  } catch (error) {
    told(error);
  }
}

const loading = new Set();
let era = 0; // counts pictures on the canvas and jobs: what was loaded for an earlier one comes too late

effect(() => {
  const now = job.value;
  if (!now) return;
  for (const id of now.pictures ?? []) if (!loading.has(id)) take(id);
  if (!isOver(now)) return;
  if (now.state === "failed") refused(Object.assign(new Error(now.error?.message ?? ""), now.error));
  setTimeout(() => {
    if (running.peek()?.id === now.id) running.value = null;
    shownPreview.value = null;
  });
});

/** Load a finished picture beside the others of its job. */
async function take(id) {
  loading.add(id);
  const mine = era;
  const { id: jobId, mask, frame, ground, size } = running.peek();
  try {
    const made = { ...(await pictureCanvas(id)), mask, ground, size };
    if (mine !== era) return;
    const now = candidates.peek();
    candidates.value = now ? { ...now, list: [...now.list, made] } : { id: jobId, list: [made], index: 0, frame };
  } catch (error) {
    told(error);
  }
}

effect(() => {
  const now = running.value;
  const address = now?.id && previews.value.get(now.id);
  if (!address || !now.request) return;
  const box = previewBox(now.request, now.mask, now.frame, drawing);
  if (!box) return;
  previewCanvas(address, box, now.mask, now.frame, drawing).then((canvas) => {
    if (running.peek()?.id === now.id) shownPreview.value = { canvas, frame: now.frame };
  }, () => {});
});

/** Put the candidate that is shown onto the drawing. */
export function accept() {
  const { list, index, frame: painted } = candidates.peek();
  const chosen = list[index];
  // The canvas may have been grown or cut since by undoing: then there is no frame left to take over.
  const same = !chosen.size || (chosen.size[0] === drawing.width && chosen.size[1] === drawing.height);
  const frame = same ? painted : NO_FRAME;
  const { canvas, hides } = layerOf(chosen, drawing, frame);
  batch(() => {
    candidates.value = null;
    split.value = 0;
    masksShown.value = false; // the mask would hide what was just painted; it stays for another try
    const width = drawing.width + frame.left + frame.right;
    const height = drawing.height + frame.top + frame.bottom;
    const place = { scaleX: width / canvas.width, scaleY: height / canvas.height };
    drawing.accept(canvas, { name: say("edit.layer.result"), picture: chosen.picture, ...place }, frame, hides);
  });
}

/** Drop the candidate that is shown. It stays in the gallery. */
export function reject() {
  const { list, index } = candidates.peek();
  const left = list.toSpliced(index, 1);
  candidates.value = left.length ? { ...candidates.peek(), list: left, index: Math.min(index, left.length - 1) } : null;
}

export const showCandidate = (index) => {
  const now = candidates.peek();
  if (now) candidates.value = { ...now, index: (index + now.list.length) % now.list.length };
};
