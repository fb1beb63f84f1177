// What the whole page shares: who uses it, what is kept by the server, what runs, and which view is shown.
import { signal, computed, effect } from "./preact.js";
import { api, exactParse } from "./api.js";

/** What the server knew when the page was loaded: `PageState` of serve/page/routes.py. */
export const boot = exactParse(document.getElementById("boot").textContent);

const KEEP_MILLISECONDS = 400;

/**
 * A signal whose value the server keeps for the user: a reload or another browser finds it.
 *
 * @param {string} name of the part: letters and underscores.
 * @param {object} fallback value where nothing was kept.
 */
export function keptSignal(name, fallback) {
  const kept = signal({ ...fallback, ...boot.state[name] });
  let timer = 0;
  let stored = kept.peek();
  const store = (more) => {
    clearTimeout(timer);
    timer = 0;
    stored = kept.peek();
    return api.put(`/v1/page/state/${name}`, stored, more).catch(() => { stored = null; });
  };
  effect(() => {
    if (kept.value === stored) return;
    clearTimeout(timer);
    timer = setTimeout(store, KEEP_MILLISECONDS);
  });
  addEventListener("pagehide", () => timer && store({ keepalive: true }));
  return kept;
}

/** Theme, language, notifications, previews. */
export const settings = keptSignal("settings", { theme: "system", language: "", notify: false, previews: true });

/** The request that the Paint view edits: only the fields that differ from their defaults. Seeds are BigInts or numbers. */
export const paintRequest = keptSignal("paint", { prompt: "" });

/** Choices of the Paint view that are no field of a request. */
export const paintOptions = keptSignal("paint_options", {});

/**
 * Put a request into the Paint view, in place of what stands there.
 *
 * @param {object} request fields of a request; those left out become their defaults.
 * @param {string[]} [only] take these fields alone and leave the others as they are.
 */
export function usePaintRequest(request, only) {
  const given = Object.fromEntries(Object.entries(request).filter(([, value]) => value !== null && value !== undefined));
  if (only) {
    const changed = { ...paintRequest.value };
    for (const name of only) {
      if (name in given) changed[name] = given[name];
      else delete changed[name];
    }
    paintRequest.value = changed;
  } else {
    paintRequest.value = { prompt: "", ...given };
  }
}

/** Open jobs and those that ended since the page was opened, by id; the newest state of each. */
export const jobs = signal(new Map());

/** Jobs that wait or run, in the order in which they were accepted. */
export const openJobs = computed(() => [...jobs.value.values()].filter((job) => !isOver(job)).sort((a, b) => a.seq - b.seq));

/** The newest preview of a running job, by the job's id: an address of a JPEG. */
export const previews = signal(new Map());

/** The queue: mine_waiting, mine_running, others_waiting, others_running, paused; order, the waiting jobs as {id,
 * eta_seconds}; at, when it was told, in milliseconds. */
export const queue = signal({ mine_waiting: 0, mine_running: 0, others_waiting: 0, others_running: 0, paused: false, order: [], at: 0 });

export const isOver = (job) => ["done", "failed", "cancelled"].includes(job.state);

/** "online", "connecting", "offline" while the server does not answer, "away" while its store does not. */
export const connection = signal("connecting");

/** Short messages at the edge of the page: {id, text, kind, action?: {label, run}}. */
export const toasts = signal([]);
let lastToast = 0;

/**
 * Show a short message.
 *
 * @param {string} text
 * @param {{kind?: "info" | "error", action?: {label: string, run: () => unknown}, seconds?: number}} [more]
 */
export function toast(text, { kind = "info", action, seconds = kind === "error" || action ? 10 : 4 } = {}) {
  const id = ++lastToast;
  toasts.value = [...toasts.value.slice(-3), { id, text, kind, action }];
  setTimeout(() => dismiss(id), seconds * 1000);
  return id;
}

/** Take a message away. */
export function dismiss(id) {
  toasts.value = toasts.value.filter((one) => one.id !== id);
}
