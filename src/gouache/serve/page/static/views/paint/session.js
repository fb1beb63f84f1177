// What the Paint view works with: its fields, the jobs it handed in, and the last pictures.
import { signal, computed, batch, effect } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { on } from "../../app/events.js";
import { boot, jobs, openJobs, paintOptions, paintRequest, queue, toast } from "../../app/state.js";
import { explain, say } from "../../app/words.js";
import { differs, errorPath, loadFields, requestFields } from "../../ui/fields.js";

/** Pictures in the strip. */
const STRIP = 30;
/** Largest seed there is; JavaScript's numbers end before it. */
export const MAX_SEED = 2n ** 63n - 1n;
/** Longest time that a finished picture is waited for before it is shown, in milliseconds. */
const DECODE_MILLISECONDS = 4000;

/** The user's last pictures, the newest first; null until they are known. */
export const recent = signal(null);
/** What the stage shows instead of what is painted now: {job, picture: id or null for all of the job}. */
export const chosen = signal(null);
/** Requests on their way to the server, which has not answered yet: {id, request, state: "sending"}. */
export const sent = signal([]);
/** The last job that failed since something was handed in, or null. */
export const failed = signal(null);
/** What is wrong with a field, as a sentence, by the field's name; "" for the request as a whole. */
export const wrong = signal({});
/** Whether the next picture is begun as soon as nothing waits. */
export const endless = signal(false);
/** What the request's model is set to by itself and can be asked for: `Abilities` of the server; null until known. */
export const facts = signal(boot.facts ?? null);
/** What the server said against the request, as it said it: for fields inside of groups; null for nothing. */
export const problem = signal(null);

const fieldSignals = new Map();

/** The value of one field of the request, as a signal that changes only when it does; undefined where it isn't set. */
export function field(name) {
  if (!fieldSignals.has(name)) fieldSignals.set(name, computed(() => paintRequest.value[name]));
  return fieldSignals.get(name);
}

/** Set fields of the request; undefined or null takes one out, which makes it the model's or the usual value. */
export function setFields(changes) {
  const next = { ...paintRequest.peek() };
  for (const [name, value] of Object.entries(changes)) {
    if (value === undefined || value === null) delete next[name];
    else next[name] = value;
  }
  batch(() => {
    paintRequest.value = next;
    problem.value = null;
    const gone = Object.keys(changes).filter((name) => name in wrong.peek());
    if (gone.length || "" in wrong.peek()) {
      wrong.value = Object.fromEntries(Object.entries(wrong.peek()).filter(([name]) => name && !gone.includes(name)));
    }
  });
}

/** Say what is wrong with one field; an empty text says that nothing is. */
export function complain(name, text) {
  const { [name]: before, ...others } = wrong.peek();
  if (before !== text) wrong.value = text ? { ...others, [name]: text } : others;
}

/** A request without what is as it would be anyway. */
export function withoutDefaults(request) {
  const known = requestFields.peek()?.all;
  return Object.fromEntries(Object.entries(request).filter(([name, value]) => {
    if (value === null || value === undefined) return false;
    return name === "prompt" || !known?.has(name) || differs(known.get(name), value);
  }));
}

/** Names of the set fields other than the texts, in the order of the form. */
export const changedFields = computed(() => {
  const set = Object.keys(paintRequest.value).filter((name) => !["prompt", "negative_prompt", "model"].includes(name));
  const order = requestFields.value?.groups.flatMap((group) => group.fields.map((one) => one.name)) ?? [];
  return set.sort((a, b) => order.indexOf(a) - order.indexOf(b));
});

/** A seed as text to the number that a request has; undefined for a random one. Throws a sentence. */
export function readSeed(text) {
  const plain = text.trim();
  if (plain === "" || plain === "-1") return undefined;
  if (!/^\d+$/.test(plain) || BigInt(plain) > MAX_SEED) throw new RangeError(say("paint.seed_wrong", { max: MAX_SEED }));
  const value = BigInt(plain);
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
}

/** A seed as nobody would choose it. */
export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** What waits or runs, oldest first, with what is on its way to the server. */
export const underWay = computed(() => [...openJobs.value.filter((job) => job.source !== "explain"), ...sent.value]);

const asked = new Map();
const lastPreviews = new Map();
const arrived = new Set();

/** The request of a job that was handed in here; undefined for others. */
export const requestOf = (id) => asked.get(id);
/** The last preview of a job, also after it ended. */
export const lastPreview = (id) => lastPreviews.get(id);

/** A job that ended and whose pictures are not here yet: what it showed last stays until they are. */
const settling = signal([]);

/** The job that the stage shows: the running one, else the next; undefined where nothing is painted. */
export const current = computed(() => {
  const open = underWay.value;
  return settling.value[0] ?? open.find((job) => job.state === "running") ?? open[0];
});

/** The pictures that the stage shows where nothing is painted, in order; empty for none. */
export const shown = computed(() => {
  const known = recent.value ?? [];
  const wanted = chosen.value ?? (known[0] && { job: known[0].job, picture: null });
  if (!wanted) return [];
  const ofJob = known.filter((one) => one.job === wanted.job).sort((a, b) => a.number - b.number);
  const one = wanted.picture && ofJob.find((picture) => picture.id === wanted.picture);
  return one ? [one] : ofJob;
});

const answer = (job) => { if (!jobs.peek().has(job.id)) jobs.value = new Map(jobs.peek()).set(job.id, job); };

/**
 * Hand in a request.
 *
 * @param {object} request
 * @param {{label?: string, quiet?: boolean, styles?: string[]}} [more] styles: of the user's, laid around the prompt; quiet: what the server says against it is thrown, not shown.
 * @returns {Promise<object | null>} the job; null if the server refused it.
 */
export async function submit(request, { label = "", quiet = false, styles = [] } = {}) {
  const id = crypto.randomUUID?.() ?? `${Date.now()}-${randomSeed()}`;
  batch(() => {
    sent.value = [...sent.peek(), { id, request, state: "sending", label }];
    if (!quiet) { chosen.value = null; failed.value = null; }
  });
  try {
    const choices = /\{[^{}]*\|[^{}]*\}|__[\w\-/]+__/.test(request.prompt ?? "");
    const job = await api.post("/v1/jobs", { request, label, ...(styles.length ? { styles } : {}), ...(choices ? { choices } : {}) }, { headers: { "Idempotency-Key": id } });
    asked.set(job.id, request);
    batch(() => { answer(job); sent.value = sent.peek().filter((one) => one.id !== id); });
    return job;
  } catch (error) {
    sent.value = sent.peek().filter((one) => one.id !== id);
    if (quiet) throw error;
    refused(error);
    return null;
  }
}

/** Show what the server said against a request at the field that it names. */
function refused(error) {
  endless.value = false;
  if (error.status !== 422) { toast(explain(error), { kind: "error" }); return; }
  const path = errorPath(error);
  const name = path.replace(/[.[].*/, "");
  const isShown = () => document.querySelector(`[data-field="${name}"] :is(input, textarea, select, button)`);
  batch(() => {
    problem.value = error;
    // What stands in the folded part of the form is said there, and beside the button.
    complain(name && path === name && isShown() ? name : "", explain(error));
  });
  isShown()?.focus();
}

/** Paint what the fields say. */
export function paint() {
  if (wrong.peek().seed) {
    document.getElementById("seed")?.focus();
    return Promise.resolve(null);
  }
  batch(() => { wrong.value = {}; problem.value = null; });
  return submit(paintRequest.peek(), { styles: paintOptions.peek().styles ?? [] });
}

/** Stop what is painted now, and painting without end. */
export async function cancel() {
  endless.value = false;
  const job = openJobs.peek().find((one) => one.state === "running" && !one.cancel_requested) ?? openJobs.peek()[0];
  if (!job) return;
  jobs.value = new Map(jobs.peek()).set(job.id, { ...job, cancel_requested: true });
  try {
    await api.post(`/v1/jobs/${job.id}/cancel`);
  } catch (error) {
    if (error.status !== 409) toast(explain(error), { kind: "error" });
  }
}

const fileOf = (picture) => picture.file ?? `/v1/pictures/${picture.id}/file`;

/** A picture joins the strip once it can be drawn, so that nothing flashes. */
async function arrive(picture) {
  if (arrived.has(picture.id)) return;
  arrived.add(picture.id);
  const image = new Image();
  image.src = fileOf(picture);
  await Promise.race([image.decode().catch(() => {}), new Promise((done) => { setTimeout(done, DECODE_MILLISECONDS); })]);
  batch(() => {
    const others = (recent.peek() ?? []).filter((one) => one.id !== picture.id);
    recent.value = [picture, ...others].sort((a, b) => b.seq - a.seq).slice(0, STRIP * 2);
    settle();
  });
}

const isSettled = (job) => job.pictures.every((id) => recent.peek()?.some((one) => one.id === id) || gone.has(id));
const gone = new Set();
function settle() {
  const left = settling.peek().filter((job) => !isSettled(job));
  if (left.length !== settling.peek().length) settling.value = left;
}

async function ended(job) {
  if (job.state === "failed" && asked.has(job.id)) {
    batch(() => { failed.value = job; endless.value = false; });
  }
  if (job.state !== "done" || !recent.peek()) return;
  if (!isSettled(job)) settling.value = [...settling.peek().filter((one) => one.id !== job.id), job];
  const missing = job.pictures.filter((id) => !arrived.has(id));
  await Promise.all(missing.map((id) => api.get(`/v1/pictures/${id}`).then(arrive, () => { gone.add(id); settle(); })));
  if (endless.peek() && queue.peek().mine_waiting === 0 && !openJobs.peek().length && !sent.peek().length) {
    const { seed: _seed, ...rest } = paintRequest.peek();
    submit(rest, { styles: paintOptions.peek().styles ?? [] });
  }
}

/** Mark or unmark a picture. */
export async function star(picture) {
  const starred = !picture.starred;
  patchRecent(picture.id, { starred });
  try {
    await api.patch(`/v1/pictures/${picture.id}`, { starred });
  } catch (error) {
    patchRecent(picture.id, { starred: !starred });
    toast(explain(error), { kind: "error" });
  }
}

function patchRecent(id, changes) {
  recent.value = (recent.peek() ?? []).map((one) => (one.id === id ? { ...one, ...changes } : one));
}

/** Delete a picture; a message offers to undo it. */
export async function remove(picture) {
  const before = recent.peek();
  forget([picture.id]);
  try {
    await api.del(`/v1/pictures/${picture.id}`);
  } catch (error) {
    recent.value = before;
    toast(explain(error), { kind: "error" });
    return;
  }
  toast(say("paint.deleted"), { action: { label: say("app.undo"), run: () => restore(picture) } });
}

async function restore(picture) {
  try {
    back(await api.post(`/v1/pictures/${picture.id}/restore`));
  } catch (error) {
    toast(explain(error), { kind: "error" });
  }
}

function back(picture) {
  const others = (recent.peek() ?? []).filter((one) => one.id !== picture.id);
  recent.value = [picture, ...others].sort((a, b) => b.seq - a.seq);
}

function forget(ids) {
  batch(() => {
    recent.value = (recent.peek() ?? []).filter((one) => !ids.includes(one.id));
    if (chosen.peek() && ids.includes(chosen.peek().picture)) chosen.value = null;
  });
}

/** The request that paints a picture again, as it was asked; null if the server doesn't say. */
export async function askedFor(picture) {
  try {
    const { request } = await api.get(`/v1/pictures/${picture.id}/request`);
    return withoutDefaults(request);
  } catch (error) {
    toast(explain(error), { kind: "error" });
    return null;
  }
}

async function readRecent() {
  try {
    const { pictures } = await api.get(`/v1/pictures?limit=${STRIP}`);
    pictures.forEach((one) => arrived.add(one.id));
    recent.value = pictures;
  } catch (error) {
    recent.value ??= [];
    if (error.status) toast(explain(error), { kind: "error" });
  }
}

async function readFacts(model = "") {
  try {
    const found = await api.get(`/v1/models/facts?model=${encodeURIComponent(model)}`);
    if (model === (field("model").peek() ?? "")) batch(() => { facts.value = found; complain("model", found.error ?? ""); });
  } catch (error) {
    if (model && error.status === 422) complain("model", explain(error));
  }
}

let opened = false;

/** Read what the view shows, once, and follow the news from then on. */
export function open() {
  if (opened) return;
  opened = true;
  readRecent();
  let first = true;
  effect(() => {
    const model = field("model").value;
    // The page came with the facts of the usual model.
    if (!first || model || !boot.facts) readFacts(model);
    first = false;
  });
  loadFields().catch(() => {});
  on("hello", (data) => { if (data.afresh) readRecent(); });
  on("preview", (data) => {
    lastPreviews.set(data.job, `data:image/jpeg;base64,${data.jpeg}`);
    if (lastPreviews.size > STRIP) lastPreviews.delete(lastPreviews.keys().next().value);
  });
  on("picture", arrive);
  on("job", (job) => { if (["done", "failed", "cancelled"].includes(job.state)) ended(job); });
  on("gallery", ({ ids, change }) => {
    if (change === "delete") forget(ids);
    if (change === "star" || change === "unstar") ids.forEach((id) => patchRecent(id, { starred: change === "star" }));
    if (change === "restore") ids.forEach((id) => api.get(`/v1/pictures/${id}`).then(back, () => {}));
  });
}
