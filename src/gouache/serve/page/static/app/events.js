// The one stream of news from the server, and what it changes in the page's state.
import { batch, effect } from "./preact.js";
import { exactParse } from "./api.js";
import { connection, isOver, jobs, previews, queue, settings } from "./state.js";

const listeners = new Map();

/**
 * Hear of one kind of news.
 *
 * @param {string} kind job, picture, preview, queue, gallery, training, pull.
 * @param {(data: any) => unknown} listener
 * @returns {() => void} ends it.
 */
export function on(kind, listener) {
  const known = listeners.get(kind) ?? new Set();
  listeners.set(kind, known.add(listener));
  return () => known.delete(listener);
}

function tell(kind, data) {
  for (const listener of listeners.get(kind) ?? []) listener(data);
}

function setJob(job) {
  jobs.value = new Map(jobs.value).set(job.id, job);
  if (isOver(job) && previews.value.has(job.id)) {
    const left = new Map(previews.value);
    left.delete(job.id);
    previews.value = left;
  }
}

const effects = {
  hello: (data) => batch(() => {
    data.jobs?.forEach(setJob);
    if (data.queue) queue.value = data.queue;
  }),
  job: setJob,
  queue: (data) => { queue.value = data; },
  preview: (data) => { previews.value = new Map(previews.value).set(data.job, `data:image/jpeg;base64,${data.jpeg}`); },
  picture: () => {},
  gallery: () => {},
  training: () => {},
  pull: () => {},
};

const FIRST_WAIT = 500;
const LONGEST_WAIT = 10_000;
let source = null;
let wait = FIRST_WAIT;
let retry = 0;

/** Follow the server's news from now on. */
export function connect() {
  source?.close();
  clearTimeout(retry);
  source = new EventSource(`/v1/events?previews=${settings.peek().previews !== false && !document.hidden}`);
  source.onopen = () => { connection.value = "online"; wait = FIRST_WAIT; };
  source.onerror = () => {
    connection.value = "offline";
    source.close();
    retry = setTimeout(connect, wait);
    wait = Math.min(LONGEST_WAIT, wait * 2);
  };
  for (const [kind, apply] of Object.entries(effects)) {
    source.addEventListener(kind, (event) => {
      const data = exactParse(event.data);
      apply(data);
      tell(kind, data);
    });
  }
}

let shown = settings.peek().previews;
effect(() => {
  if (settings.value.previews !== shown) {
    shown = settings.value.previews;
    if (source) connect();
  }
});
