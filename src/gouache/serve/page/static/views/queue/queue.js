// The Queue view: what runs, what waits in an order that the user sets, and what ended last.
import { html, computed, signal, useEffect, useState } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { on } from "../../app/events.js";
import { canNotify, notifies, setNotify } from "../../app/notices.js";
import { isOver, jobs, previews, queue, toast } from "../../app/state.js";
import { ago, duration, explain, knows, say } from "../../app/words.js";
import { Button, Empty, Icon } from "../../ui/controls.js";
import { Confirm } from "../../ui/dialog.js";
import { Sortable, placeOf } from "./order.js";

/** Ended jobs that are shown. */
const ENDED = 20;
/** Estimates count down by themselves. */
const TICK_MILLISECONDS = 5000;

/** Jobs that ended before the page was opened, the newest first; null until they are known. */
const earlier = signal(null);
const ended = computed(() => {
  const all = new Map((earlier.value ?? []).map((job) => [job.id, job]));
  for (const job of jobs.value.values()) {
    if (isOver(job)) all.set(job.id, job);
    else all.delete(job.id);
  }
  return [...all.values()].sort((a, b) => b.finished - a.finished).slice(0, ENDED);
});
const running = computed(() => [...jobs.value.values()].filter((job) => job.state === "running").sort((a, b) => a.started - b.started));
const waiting = computed(() => (queue.value.order ?? [])
  .map((place) => ({ job: jobs.value.get(place.id), eta: place.eta_seconds }))
  .filter(({ job }) => job?.state === "queued"));

const readEnded = () => api.get(`/v1/queue?ended=${ENDED}`).then((found) => { earlier.value = found.ended; });

async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    toast(explain(error), { kind: "error" });
    return null;
  }
}

/** Let a waiting job go to another place, from 0; shown at once, and taken back where the server refuses. */
async function move(id, to) {
  const before = queue.peek();
  const places = waiting.peek();
  const ids = places.map(({ job }) => job.id).filter((one) => one !== id);
  ids.splice(to, 0, id);
  // Estimates belong to the places, not to the jobs, until the server has worked them out anew.
  queue.value = { ...before, order: ids.map((one, number) => ({ id: one, eta_seconds: places[number].eta })) };
  try {
    await api.put(`/v1/jobs/${id}/position`, { before: ids[to + 1] ?? null });
  } catch (error) {
    queue.value = before;
    toast(explain(error), { kind: "error" });
  }
}

const pause = (paused) => attempt(async () => {
  const found = await api.patch("/v1/queue", { paused });
  queue.value = { ...queue.peek(), paused: found.paused };
});
const cancel = (job) => attempt(() => api.post(`/v1/jobs/${job.id}/cancel`));
const retry = (job) => attempt(() => api.post(`/v1/jobs/${job.id}/retry`));
const cancelAll = () => attempt(async () => {
  const { cancelled } = await api.post("/v1/queue/cancel");
  toast(say("queue.cancelled_all", { n: cancelled }));
});

/** What one sees of a job: its preview, else its last picture. */
function Face({ job, size }) {
  const preview = previews.value.get(job.id);
  const picture = job.pictures.at(-1);
  const source = (job.state === "running" && preview) || (picture && `/v1/pictures/${picture}/thumbnail`);
  return html`<span class="queue-face ${size}">${source ? html`<img src=${source} alt="" />` : html`<${Icon} name="image" />`}</span>`;
}

function Pictures({ job }) {
  if (!job.pictures.length) return null;
  return html`<ul class="queue-pictures" aria-label=${say("queue.finished")}>
    ${job.pictures.slice(-12).map((id) => html`<li key=${id}><a href="/gallery/${id}" aria-label=${say("queue.open_picture", { n: job.pictures.indexOf(id) + 1 })}>
      <img src="/v1/pictures/${id}/thumbnail" alt="" loading="lazy" /></a></li>`)}
  </ul>`;
}

function Title({ job }) {
  return html`<p class="queue-title">${job.label && html`<b class="queue-label">${job.label}</b> `}${job.prompt || html`<i>${say("queue.no_prompt")}</i>`}</p>`;
}

function Running({ job, now }) {
  const left = job.eta_seconds === null ? null : job.eta_seconds - (now - (heard.get(job) ?? now)) / 1000;
  const parts = [
    job.cancel_requested ? say("queue.stopping") : job.steps ? say("queue.step", { step: job.step, steps: job.steps }) : say("queue.starting"),
    job.picture_count > 1 && say("queue.picture_of", { n: Math.min(job.picture + 1, job.picture_count), count: job.picture_count }),
    left !== null && !job.cancel_requested && say("queue.left", { time: duration(Math.max(1, left)) }),
  ];
  return html`<li class="queue-job running panel" data-job=${job.id}>
    <${Face} job=${job} size="large" />
    <div class="queue-words"><${Title} job=${job} />
      <p class="soft small-text">${parts.filter(Boolean).join(" · ")}</p>
      <progress class="queue-progress" max="1" value=${job.progress} aria-label=${say("queue.progress")}></progress>
      <${Pictures} job=${job} /></div>
    <${Button} small quiet label=${say("queue.cancel")} disabled=${job.cancel_requested} onClick=${() => cancel(job)}><${Icon} name="close" /><//>
  </li>`;
}

/** When each state of a job was heard of, in milliseconds: estimates count from there. */
const heard = new WeakMap();
on("job", (job) => heard.set(job, Date.now()));

function Waiting({ job, eta, now, number, last, handle }) {
  const left = eta === null ? null : eta - (now - queue.value.at) / 1000;
  const parts = [
    job.picture_count > 1 && say("queue.pictures", { n: job.picture_count }),
    left !== null && say("queue.done_in", { time: duration(Math.max(1, left)) }),
  ];
  const words = { name: job.label || job.prompt.slice(0, 60) };
  const to = (place, button) => { placeOf.value = { id: job.id, button, text: say("queue.moved", { n: place + 1 }) }; move(job.id, place); };
  return html`${handle}
    <b class="queue-number" aria-hidden="true">${number + 1}</b>
    <div class="queue-words"><${Title} job=${job} /><p class="soft small-text">${parts.filter(Boolean).join(" · ") || say("queue.waits")}</p></div>
    <div class="queue-buttons">
      <${Button} small quiet data-move="up" label=${say("queue.up", words)} disabled=${number === 0} onClick=${() => to(number - 1, "up")}><${Icon} name="up" /><//>
      <${Button} small quiet data-move="down" label=${say("queue.down", words)} disabled=${last} onClick=${() => to(number + 1, "down")}><${Icon} name="down" /><//>
      <${Button} small quiet label=${say("queue.cancel_one", words)} onClick=${() => cancel(job)}><${Icon} name="close" /><//>
    </div>`;
}

/** Why a job failed, in the page's language where the kind of fault is known; the server's own sentence below it. */
function Reason({ error }) {
  const key = [`queue.why.${error.kind}.${error.where}`, `queue.why.${error.kind}`].find(knows) ?? "queue.why.other";
  return html`<p class="bad small-text">${say(key, { given: error.given, where: error.where })}</p>
    <details class="queue-details small-text soft"><summary>${say("queue.details")}</summary>${error.message}</details>`;
}

function Ended({ job }) {
  const state = { done: "queue.done", failed: "queue.failed", cancelled: "queue.cancelled" }[job.state];
  const time = job.state === "done" && job.started ? say("queue.took", { time: duration(job.finished - job.started) }) : "";
  const face = html`<${Face} job=${job} size="small" />`;
  const explained = job.source === "explain" && job.state === "done";
  return html`<li class="queue-job ended ${job.state}" data-job=${job.id}>
    ${job.pictures.length ? html`<a href="/gallery/${job.pictures.at(-1)}" class="queue-open" aria-label=${say("queue.open_last")}>${face}</a>` : explained ? html`<a href="/explain/${job.id}" class="queue-open" aria-label=${say("queue.open_explanation")}>${face}</a>` : face}
    <div class="queue-words"><${Title} job=${job} />
      <p class="soft small-text">${[explained ? say("queue.explained") : say(state, { n: job.pictures.length }), time, ago(job.finished)].filter(Boolean).join(" · ")}</p>
      ${job.state === "failed" && job.error && html`<${Reason} error=${job.error} />`}
      ${job.pictures.length > 1 && html`<${Pictures} job=${job} />`}</div>
    ${job.state !== "done" && html`<${Button} small onClick=${() => retry(job)}><${Icon} name="again" />${say("queue.retry")}<//>`}
  </li>`;
}

function Notify() {
  if (!canNotify()) return null;
  const change = async () => {
    const wanted = !notifies();
    if (!(await setNotify(wanted)) && wanted) toast(say("queue.notify_refused"), { kind: "error" });
  };
  return html`<${Button} id="queue-notify" pressed=${notifies()} title=${say("queue.notify_hint")} onClick=${change}>${say("queue.notify")}<//>`;
}

function Head() {
  const [asking, setAsking] = useState(false);
  const { paused, mine_waiting: mine, others_waiting: waits, others_running: runs } = queue.value;
  const counted = (running, waiting) => [running && say("queue.count_running", { n: running }), waiting && say("queue.count_waiting", { n: waiting })]
    .filter(Boolean).join(say("queue.and"));
  const others = waits + runs > 0 && say("queue.others", { counts: counted(runs, waits) });
  const own = counted(queue.value.mine_running, mine) || say("queue.empty");
  return html`<header class="queue-head"><div class="grow"><h1>${say("nav.queue")}</h1>
      <p class="soft" id="queue-counts">${[own, others].filter(Boolean).join(" · ")}</p></div>
    <div class="row"><${Notify} />
      <${Button} id="queue-pause" kind=${paused ? "primary" : "plain"} onClick=${() => pause(!paused)}>
        <${Icon} name=${paused ? "play" : "pause"} />${say(paused ? "queue.resume" : "queue.pause")}<//>
      <${Button} id="queue-cancel-all" kind="danger" disabled=${!mine} onClick=${() => setAsking(true)}><${Icon} name="trash" />${say("queue.cancel_all")}<//></div>
    ${asking && html`<${Confirm} danger title=${say("queue.cancel_all")} text=${say("queue.cancel_all_text", { n: mine })} yes=${say("queue.cancel_all_yes")}
      onYes=${cancelAll} onClose=${() => setAsking(false)} />`}
  </header>`;
}

export default function QueueView() {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    attempt(readEnded);
    const timer = setInterval(() => setNow(Date.now()), TICK_MILLISECONDS);
    const stop = on("hello", (data) => { if (data.afresh) readEnded().catch(() => {}); });
    return () => { clearInterval(timer); stop(); };
  }, []);
  const listed = waiting.value;
  const hiddenOnes = queue.value.mine_waiting - listed.length;
  const nothing = !running.value.length && !listed.length;
  const render = ({ job, eta }, number, handle) => html`<${Waiting} job=${job} eta=${queue.value.paused ? null : eta} now=${Math.max(now, queue.value.at)}
    number=${number} last=${number === listed.length - 1 && hiddenOnes <= 0} handle=${handle} />`;
  return html`<div class="queue"><${Head} />
    ${queue.value.paused && html`<p class="queue-paused" role="status"><${Icon} name="pause" />${say("queue.paused_text")}</p>`}
    ${running.value.length > 0 && html`<section aria-labelledby="queue-running"><h2 id="queue-running">${say("queue.running")}</h2>
      <ul class="queue-list">${running.value.map((job) => html`<${Running} key=${job.id} job=${job} now=${now} />`)}</ul></section>`}
    ${listed.length > 0 && html`<section aria-labelledby="queue-waiting"><h2 id="queue-waiting">${say("queue.waiting")}</h2>
      <${Sortable} items=${listed} render=${render} onMove=${move} />
      ${hiddenOnes > 0 && html`<p class="soft queue-more">${say("queue.more", { n: hiddenOnes })}</p>`}</section>`}
    ${nothing && html`<${Empty} icon="list" title=${say("queue.empty")}><a href="/paint">${say("queue.empty_hint")}</a><//>`}
    ${ended.value.length > 0 && html`<section aria-labelledby="queue-ended"><h2 id="queue-ended">${say("queue.ended")}</h2>
      <ul class="queue-list">${ended.value.map((job) => html`<${Ended} key=${job.id} job=${job} />`)}</ul></section>`}
  </div>`;
}
