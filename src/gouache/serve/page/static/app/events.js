// The one stream of news from the server, and what it changes in the page's state. Nothing here asks again and again.
import { batch, effect } from "./preact.js";
import { api, exactParse } from "./api.js";
import { connection, isOver, jobs, openJobs, previews, queue, settings } from "./state.js";

const listeners = new Map();

/**
 * Hear of one kind of news.
 *
 * @param {string} kind job, picture, preview, queue, gallery, training, pull; hello, with `afresh` where more was missed than
 *   is told again.
 * @param {(data: any) => unknown} listener
 * @returns {() => void} ends it.
 */
export function on(kind, listener) {
  const known = listeners.get(kind) ?? new Set();
  listeners.set(kind, known.add(listener));
  return () => known.delete(listener);
}

function tell(kind, data) {
  for (const listener of listeners.get(kind) ?? []) {
    // What goes wrong in one view must not keep the news from the others.
    try { listener(data); } catch (error) { reportError(error); }
  }
}

function setJob(job) {
  const before = jobs.peek().get(job.id);
  jobs.value = new Map(jobs.peek()).set(job.id, job);
  if (isOver(job) && previews.peek().has(job.id)) {
    const left = new Map(previews.peek());
    left.delete(job.id);
    previews.value = left;
  }
  const wasOpen = vanished.delete(job.id) || (before && !isOver(before));
  // The module is fetched by tabs that nobody looks at and that shall tell of it.
  if (wasOpen && isOver(job) && document.hidden && settings.peek().notify) import("./notices.js").then((notices) => notices.noteEnd(job));
}

/** Jobs that ended while no news came; the server tells of them after its first message. */
const vanished = new Set();

function setOpen(found) {
  const kept = [...jobs.peek()].filter(([id, job]) => isOver(job) || !vanished.add(id));
  jobs.value = new Map([...kept, ...found.map((job) => [job.id, job])]);
  previews.value = new Map([...previews.peek()].filter(([id]) => jobs.peek().has(id)));
}

const effects = {
  hello: (data) => batch(() => {
    stream = data.stream;
    wait = FIRST_WAIT;
    connection.value = "online";
    setOpen(data.jobs);
    setQueue(data.queue);
    showPreviews();
  }),
  job: setJob,
  queue: setQueue,
  preview: (data) => { previews.value = new Map(previews.peek()).set(data.job, `data:image/jpeg;base64,${data.jpeg}`); },
  outage: () => { connection.value = "away"; },
  back: () => { connection.value = "online"; },
  picture: null,
  gallery: null,
  training: null,
  pull: null,
  alive: null,
};

function setQueue(data) {
  queue.value = { ...data, at: Date.now() };
}

const FIRST_WAIT = 500;
const LONGEST_WAIT = 10_000;
/** So long after the tab was hidden no previews are drawn for it, and a little later, with nothing to wait for, it sleeps. */
const HIDDEN_MILLISECONDS = 3000;
const SLEEP_MILLISECONDS = 60_000;
/** A server that is only started again is back within this time: nobody needs a notice. */
const NOTICE_MILLISECONDS = 800;
/** The server says something at least every 15 seconds; a stream that is silent for so long leads nowhere. */
const SILENT_MILLISECONDS = 40_000;

let source = null;
let stream = null;
let lastId = "";
let wait = FIRST_WAIT;
let retry = 0;
let notice = 0;
let silence = 0;
let asleep = 0;
let turn = null;
let hidden = 0;
let sentPreviews = null;
let visible = !document.hidden;

const wantsPreviews = () => settings.peek().previews !== false && visible;

/** Follow the server's news from now on. */
export function connect() {
  close();
  const address = new URL("/v1/events", location.href);
  sentPreviews = wantsPreviews();
  address.searchParams.set("previews", sentPreviews);
  if (lastId) address.searchParams.set("after", lastId);
  const opened = new EventSource(address);
  source = opened;
  opened.onerror = () => { if (source === opened) lost(); };
  for (const [kind, apply] of Object.entries(effects)) {
    opened.addEventListener(kind, (event) => {
      if (source !== opened) return;
      lastId = event.lastEventId || lastId;
      expectMore();
      const data = exactParse(event.data);
      if (kind === "hello") clearTimeout(notice);
      apply?.(data);
      tell(kind, data);
    });
  }
}

function close() {
  source?.close();
  source = stream = null;
  clearTimeout(retry);
  clearTimeout(silence);
}

/** A machine that slept, or another network, leaves a connection that nobody ends and nothing comes through. */
function expectMore() {
  clearTimeout(silence);
  silence = setTimeout(lost, SILENT_MILLISECONDS);
}

function lost() {
  close();
  if (connection.peek() === "online" || connection.peek() === "connecting") {
    clearTimeout(notice);
    notice = setTimeout(() => { if (!stream) connection.value = "offline"; }, NOTICE_MILLISECONDS);
  }
  // Not all at the same moment: many pages may have lost one server.
  retry = setTimeout(comeBack, wait * (0.75 + 0.5 * Math.random()));
  wait = Math.min(LONGEST_WAIT, wait * 2);
}

/** Ask first: a stream that is refused doesn't say why, and who was signed out is to sign in. */
async function comeBack() {
  clearTimeout(retry);
  try {
    await api.get("/v1/queue?ended=0");
    connect();
  } catch (error) {
    lost();
    connection.value = error.status === 0 ? "offline" : "away";
  }
}

/** Have previews drawn, or no longer. */
function showPreviews() {
  if (!stream || sentPreviews === wantsPreviews()) return;
  sentPreviews = wantsPreviews();
  api.put(`/v1/events/${stream}/previews`, { wanted: sentPreviews }).catch(() => { sentPreviews = null; });
}

/** Browsers allow few connections to one server: of all hidden tabs one goes on listening, as long as there are open jobs. */
function sleep() {
  if (openJobs.peek().length && (turn || !navigator.locks)) {
    asleep = setTimeout(sleep, SLEEP_MILLISECONDS);
    return;
  }
  const waits = openJobs.peek().length > 0;
  close();
  turn?.();
  turn = null;
  connection.value = "connecting";
  if (waits) takeTurn();
}

function takeTurn() {
  navigator.locks.request("gouache-hidden-tab", () => new Promise((done) => {
    if (!document.hidden) {
      done();
      return;
    }
    turn = done;
    connect();
    asleep = setTimeout(sleep, SLEEP_MILLISECONDS);
  }));
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(hidden);
  clearTimeout(asleep);
  if (document.hidden) {
    hidden = setTimeout(() => { visible = false; showPreviews(); }, HIDDEN_MILLISECONDS);
    asleep = setTimeout(sleep, SLEEP_MILLISECONDS);
    return;
  }
  visible = true;
  turn?.();
  turn = null;
  if (source) showPreviews();
  else connect();
});
addEventListener("online", () => { if (!stream) comeBack(); });
// A page that the browser keeps for "Back" must not keep its connection, and wakes with the state of now.
addEventListener("pagehide", close);
addEventListener("pageshow", (event) => { if (event.persisted) connect(); });

effect(() => {
  settings.value;
  showPreviews();
});
