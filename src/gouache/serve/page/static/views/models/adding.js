// Weights on their way into the studio, whatever view is shown: files that this browser sends, and pulls from the hub.
import { signal } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { on } from "../../app/events.js";
import { boot, toast } from "../../app/state.js";
import { say } from "../../app/words.js";
import { explainModel } from "./errors.js";

const FIRST_PIECE = 4 * 2 ** 20;
/** Seconds that a piece should take: long enough to be worth a request, short enough that little is sent twice. */
const PIECE_SECONDS = 4;
const TRIES = 6;
export const SUFFIXES = [".safetensors", ".ckpt", ".gguf", ".pt", ".pth", ".bin"];

/** Files that are sent: {key, name, size, received, speed, state: "waiting" | "sending" | "checking" | "done" | "failed" | "cancelled", kind, error}. */
export const uploads = signal([]);

/** Pulls from the hub, the newest first, as `GET /v1/models/pulls` gives them; null until they are known. */
export const pulls = signal(null);

/** Grows whenever a model or something else that a prompt may name came in: lists are then read anew. */
export const arrivals = signal(0);

const controllers = new Map();
let lastKey = 0;
let sending = Promise.resolve();

function change(key, more) {
  uploads.value = uploads.value.map((one) => (one.key === key ? { ...one, ...more } : one));
}

/** Take a line off the list; one that is being sent is cancelled. */
export function forget(key) {
  controllers.get(key)?.abort();
  uploads.value = uploads.value.filter((one) => one.key !== key);
}

/**
 * Send files, one after the other.
 *
 * @param {File[]} files
 */
export function send(files) {
  for (const file of files) {
    const key = ++lastKey;
    uploads.value = [...uploads.value, { key, name: file.name, size: file.size, received: 0, speed: 0, state: "waiting", kind: "", file }];
    sending = sending.then(() => sendOne(key, file));
  }
}

/** Send a file once more; what is already there is not sent again. */
export function sendAgain(key) {
  const { file } = uploads.value.find((one) => one.key === key);
  change(key, { state: "waiting", error: null });
  sending = sending.then(() => sendOne(key, file));
}

const pause = (seconds) => new Promise((resolve) => { setTimeout(resolve, 1000 * seconds); });

async function sendOne(key, file) {
  if (!uploads.value.some((one) => one.key === key)) return;
  const controller = new AbortController();
  controllers.set(key, controller);
  let id = "";
  try {
    const begin = () => api.post("/v1/models/files", { name: file.name, size: file.size, modified: Math.max(0, file.lastModified) }, { signal: controller.signal });
    let view = await begin();
    id = view.id;
    change(key, { state: "sending", received: view.received });
    let [piece, tries] = [FIRST_PIECE, 0];
    const marks = [[performance.now(), view.received]];
    while (!view.done) {
      const start = performance.now();
      const end = Math.min(file.size, view.received + Math.min(piece, view.piece));
      if (end === file.size) change(key, { state: "checking" });
      try {
        view = await api.put(`/v1/models/files/${id}?offset=${view.received}`, file.slice(view.received, end), { signal: controller.signal });
        tries = 0;
      } catch (error) {
        // The network, or a server that starts anew: ask how far it is, and go on from there.
        if (controller.signal.aborted || ![0, 408, 409, 502, 503].includes(error.status) || ++tries > TRIES || error.kind === "NoRoom") throw error;
        await pause(Math.min(10, 2 ** tries / 2));
        piece = Math.max(2 ** 18, piece / 2);
        view = await begin();
        continue;
      }
      const seconds = (performance.now() - start) / 1000;
      piece = Math.min(view.piece, Math.max(2 ** 18, piece * Math.min(2, PIECE_SECONDS / Math.max(0.1, seconds))));
      marks.push([performance.now(), view.received]);
      if (marks.length > 8) marks.shift();
      const [[first, from], [last, to]] = [marks[0], marks.at(-1)];
      change(key, { received: view.received, kind: view.kind, speed: (1000 * (to - from)) / Math.max(1, last - first), state: "sending" });
    }
    change(key, { state: "done", kind: view.kind, id: view.name, received: file.size });
    arrivals.value += 1;
    toast(say("models.added", { name: file.name }));
  } catch (error) {
    if (controller.signal.aborted) {
      if (id) api.del(`/v1/models/files/${id}`).catch(() => {});
    } else {
      change(key, { state: "failed", error: explainModel(error) });
    }
  } finally {
    controllers.delete(key);
  }
}

addEventListener("beforeunload", (event) => {
  if (controllers.size) event.preventDefault();
});

let following = false;

/** Hear of pulls from now on. */
export function followPulls() {
  if (following || !boot.admin) return;
  following = true;
  on("pull", (data) => setPulls(data.pulls));
  api.get("/v1/models/pulls").then(setPulls, () => {});
}

function setPulls(found) {
  const before = pulls.peek()?.[0];
  pulls.value = found;
  const newest = found[0];
  if (newest && before?.started === newest.started && before.state === "running" && newest.state === "done") {
    arrivals.value += 1;
    toast(say("models.added", { name: newest.repo }));
  }
}

/** Fetch a model from the hub. */
export async function pull(repo, variant) {
  const begun = await api.post("/v1/models/pulls", { repo, variant: variant || null });
  setPulls([begun, ...(pulls.peek() ?? []).filter((one) => one.started !== begun.started)]);
}

export const cancelPull = () => api.del("/v1/models/pulls").catch((error) => toast(explainModel(error), { kind: "error" }));
