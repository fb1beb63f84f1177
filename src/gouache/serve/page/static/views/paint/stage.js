// The result: what is painted now, the pictures that came of it and what can be done with them, and the last ones in a strip.
import { html, useEffect, useRef, useState } from "../../app/preact.js";
import { go } from "../../app/router.js";
import { useHotkeys } from "../../app/keys.js";
import { paintRequest, previews, settings, toast, usePaintRequest } from "../../app/state.js";
import { ago, duration, explain, say } from "../../app/words.js";
import { Button, Icon } from "../../ui/controls.js";
import { Menu } from "../../ui/dialog.js";
import {
  askedFor, chosen, current, facts, failed, lastPreview, randomSeed, readSeed, recent, remove, requestOf, setFields, shown, star, submit, underWay,
} from "./session.js";
import { Compare, Zoom } from "./look.js";

const WAITING_SHOWN = 5;
const FULL_SIZED = 9;
const VARIATIONS = 4;
const VARIATION_STRENGTH = 0.25;
/** How many times larger than it is a small picture is shown at most. */
const ENLARGED = 4;

const fileOf = (picture) => `/v1/pictures/${picture.id}/file`;
const thumbnailOf = (picture) => `/v1/pictures/${picture.id}/thumbnail`;
const name = (picture) => picture.prompt || say("paint.picture");

/** Columns that show so many pictures of a shape largest in a frame that is a little wider than high. */
const columnsOf = (count, ratio) => Math.max(1, Math.min(count, Math.round(Math.sqrt((count * 1.25) / ratio))));
const sizeProperties = (width, height) => ({ "--ratio": String(width / height), "--most": `${width * ENLARGED}px` });

function jobText(job) {
  if (job.cancel_requested) return say("paint.stopping");
  if (job.state === "sending") return say("paint.sending");
  if (job.state === "queued") return job.position ? say("paint.ahead", { n: job.position }) : say("paint.next");
  if (!job.step) return say("paint.loading_model");
  const parts = [say("paint.step", { step: job.step, steps: job.steps })];
  if (job.picture_count > 1) parts.unshift(say("paint.picture_of", { n: Math.min(job.picture_count, job.picture + 1), count: job.picture_count }));
  if (job.eta_seconds > 1.5) parts.push(say("paint.left", { time: duration(job.eta_seconds) }));
  return parts.join(" · ");
}

/** A job under way: its preview, or where the picture will be, and how far it is. */
function Live({ job }) {
  const request = requestOf(job.id) ?? job.request ?? {};
  const preview = settings.value.previews ? previews.value.get(job.id) ?? lastPreview(job.id) : undefined;
  const [width, height] = [request.width ?? facts.value?.width ?? 512, request.height ?? facts.value?.height ?? 512].map((side) => side || 512);
  const count = job.picture_count ?? request.count ?? 1;
  const finished = (recent.value ?? []).filter((one) => one.job === job.id).sort((a, b) => a.number - b.number);
  const cells = [...finished.map((picture) => html`<img key=${picture.id} class="checker" src=${fileOf(picture)} alt=${name(picture)} />`)];
  while (cells.length < count) {
    const now = cells.length === finished.length;
    cells.push(now && preview ? html`<img key=${`cell${cells.length}`} class="paint-preview" src=${preview} alt=${say("paint.preview")} />` : html`<div key=${`cell${cells.length}`} class="paint-blank ${now && job.state === "running" ? "now" : ""}"></div>`);
  }
  return html`<div class="paint-figure" style=${sizeProperties(width, height)}>
    <div class="paint-cells ${count > 1 ? "many" : ""}" style=${{ "--columns": columnsOf(count, width / height), "--rows": Math.ceil(count / columnsOf(count, width / height)) }}>${cells}</div>
    <div class="paint-state" role="status" id="job-state"><span>${jobText(job)}</span>
      <progress value=${job.state === "running" ? job.progress : 0} max="1" aria-label=${say("paint.progress")}></progress></div>
  </div>`;
}

function Failure() {
  const job = failed.value;
  if (!job) return null;
  const again = async () => { await submit(requestOf(job.id)); };
  return html`<div class="paint-failed" role="alert" id="job-failed"><p><b>${say("paint.failed")}</b> ${explain(job.error ?? {})}</p>
    <${Button} small onClick=${again}>${say("paint.try_again")}<//>
    <${Button} small quiet label=${say("app.dismiss")} onClick=${() => { failed.value = null; }}><${Icon} name="close" /><//></div>`;
}

async function painted(picture, change) {
  const request = await askedFor(picture);
  if (request) submit(change(request));
}

/** Take a picture into the request as something to paint from. */
async function useAs(picture, use) {
  const { takeIn } = await import("./drop.js");
  const answer = await fetch(fileOf(picture));
  takeIn(await answer.blob(), use);
}

async function useSettings(picture) {
  const request = await askedFor(picture);
  if (!request) return;
  const before = paintRequest.peek();
  usePaintRequest(request);
  toast(say("paint.settings_used"), { action: { label: say("app.undo"), run: () => { paintRequest.value = before; } } });
}

async function copy(picture) {
  try {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": fetch(fileOf(picture)).then((answer) => answer.blob()) })]);
    toast(say("paint.copied"));
  } catch {
    toast(say("paint.not_copied"), { kind: "error" });
  }
}

function Actions({ picture, previous, onCompare }) {
  const labelled = (id, icon, text, run) => html`<${Button} small id=${id} title=${say(`paint.${id.replace("do-", "")}_hint`)} onClick=${run}><${Icon} name=${icon} /><span>${text}</span><//>`;
  return html`<div class="paint-actions" role="toolbar" aria-label=${say("paint.actions")}>
    <a class="button small" id="do-edit" href=${`/edit/${picture.id}`} title=${say("paint.edit_hint")}><${Icon} name="edit" /><span>${say("paint.edit")}</span></a>
    ${labelled("do-upscale", "zoom", say("paint.upscale"), () => painted(picture, (request) => ({ ...request, upscale: { factor: 2 } })))}
    ${labelled("do-vary", "grid", say("paint.vary"), () => painted(picture, (request) => ({ ...request, count: VARIATIONS, subseed: randomSeed(), subseed_strength: VARIATION_STRENGTH })))}
    ${labelled("do-again", "again", say("paint.again"), () => painted(picture, ({ seed: _seed, subseed: _subseed, subseed_strength: _strength, ...request }) => request))}
    <span class="grow"></span>
    <${Button} small quiet id="do-compare" label=${say("paint.compare")} disabled=${!previous} onClick=${onCompare}><${Icon} name="compare" /><//>
    <a class="button small quiet" id="do-download" href=${fileOf(picture)} download=${`${picture.id}.png`} aria-label=${say("paint.download")} title=${say("paint.download")}><${Icon} name="download" /></a>
    <${Button} small quiet id="do-star" class=${picture.starred ? "paint-starred" : ""} label=${say("paint.star")} pressed=${picture.starred} onClick=${() => star(picture)}><${Icon} name="star" /><//>
    <${Button} small quiet id="do-delete" label=${say("paint.delete")} onClick=${() => remove(picture)}><${Icon} name="trash" /><//>
    <${Menu} label=${say("paint.more_actions")} items=${[
      { label: say("paint.use_settings"), icon: "gear", run: () => useSettings(picture) },
      { label: say("paint.use_init_image"), icon: "image", run: () => useAs(picture, "init_image") },
      { label: say("paint.use_image_prompts"), icon: "eye", run: () => useAs(picture, "image_prompts") },
      { label: say("paint.use_control"), icon: "grid", run: () => useAs(picture, "control") },
      { label: say("paint.copy"), icon: "copy", run: () => copy(picture) },
      { label: say("paint.in_gallery"), icon: "grid", run: () => go(`/gallery/${picture.id}`) },
    ]} />
  </div>`;
}

function Facts({ picture }) {
  return html`<p class="paint-facts"><span class="paint-seed-of">${say("paint.seed")} <b id="seed-of">${picture.seed}</b>
      <button type="button" class="paint-link" id="reuse-seed" onClick=${() => setFields({ seed: readSeed(picture.seed) })}>${say("paint.reuse")}</button></span>
    <span>${picture.width} × ${picture.height}</span><span class="paint-model-of">${picture.model.split("/").at(-1)}</span><span>${ago(picture.created)}</span></p>`;
}

function Single({ picture, group, previous }) {
  const [look, setLook] = useState("");
  useEffect(() => setLook(""), [picture.id]);
  const at = group.findIndex((one) => one.id === picture.id);
  const step = (by) => { const next = group[(at + by + group.length) % group.length]; chosen.value = { job: next.job, picture: next.id }; };
  return html`<div class="paint-figure" style=${sizeProperties(picture.width, picture.height)}>
      <button type="button" class="paint-picture" id="picture" aria-label=${say("paint.enlarge", { name: name(picture) })} onClick=${() => setLook("zoom")}>
        <img class="checker" src=${fileOf(picture)} alt=${name(picture)} width=${picture.width} height=${picture.height} /></button>
      ${group.length > 1 && html`<div class="paint-pager">
        <${Button} small label=${say("paint.previous")} onClick=${() => step(-1)}><${Icon} name="left" /><//>
        <${Button} small id="to-grid" label=${say("paint.all_of_them")} onClick=${() => { chosen.value = { job: picture.job, picture: null }; }}><${Icon} name="grid" />${at + 1} / ${group.length}<//>
        <${Button} small label=${say("paint.following")} onClick=${() => step(1)}><${Icon} name="right" /><//></div>`}
    </div>
    <${Actions} picture=${picture} previous=${previous} onCompare=${() => setLook("compare")} /><${Facts} picture=${picture} />
    ${look === "zoom" && html`<${Zoom} picture=${picture} group=${group} onClose=${() => setLook("")} />`}
    ${look === "compare" && html`<${Compare} after=${picture} before=${previous} onClose=${() => setLook("")} />`}`;
}

function Group({ pictures }) {
  const [{ width, height }] = pictures;
  const columns = columnsOf(pictures.length, width / height);
  return html`<div class="paint-figure" style=${sizeProperties(width, height)}>
      <div class="paint-cells many" style=${{ "--columns": columns, "--rows": Math.ceil(pictures.length / columns) }}>
        ${pictures.map((one) => html`<button type="button" key=${one.id} class="paint-cell" aria-label=${say("paint.enlarge", { name: `${name(one)} (${one.seed})` })}
            onClick=${() => { chosen.value = { job: one.job, picture: one.id }; }}>
          <img class="checker" src=${pictures.length <= FULL_SIZED ? fileOf(one) : thumbnailOf(one)} alt="" width=${one.width} height=${one.height} />
          ${one.starred && html`<${Icon} name="star" />`}</button>`)}
      </div></div>
    <div class="paint-actions" role="toolbar" aria-label=${say("paint.actions")}>
      <${Button} small id="do-again" title=${say("paint.again_hint")} onClick=${() => painted(pictures[0], ({ seed: _seed, ...request }) => ({ ...request, count: pictures.length }))}><${Icon} name="again" /><span>${say("paint.again")}</span><//>
      <span class="grow"></span><span class="soft small-text">${say("paint.group_hint", { n: pictures.length })}</span></div>
    <p class="paint-facts"><span>${say("paint.pictures", { n: pictures.length })}</span><span>${width} × ${height}</span><span class="paint-model-of">${pictures[0].model.split("/").at(-1)}</span><span>${ago(pictures[0].created)}</span></p>`;
}

function Strip() {
  const root = useRef();
  const waiting = underWay.value;
  const visible = shown.value;
  const live = !chosen.value && current.value;
  const keys = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const entries = [...root.current.querySelectorAll("button")];
    entries[Math.max(0, Math.min(entries.length - 1, entries.indexOf(document.activeElement) + step))]?.focus();
  };
  return html`<ul class="paint-strip" ref=${root} onKeyDown=${keys} aria-label=${say("paint.strip")}>
    ${waiting.slice(0, WAITING_SHOWN).map((job) => html`<li key=${job.id}><button type="button" class="paint-thumb waiting ${job.state}" aria-current=${live?.id === job.id ? "true" : null}
        aria-label=${jobText(job)} title=${jobText(job)} onClick=${() => { chosen.value = null; }}>
        ${previews.value.has(job.id) && html`<img src=${previews.value.get(job.id)} alt="" />`}<i style=${{ transform: `scaleX(${job.progress ?? 0})` }}></i></button></li>`)}
    ${waiting.length > WAITING_SHOWN && html`<li key="more"><a class="paint-thumb waiting" href="/queue" aria-label=${say("nav.open_jobs", { n: waiting.length })}>+${waiting.length - WAITING_SHOWN}</a></li>`}
    ${(recent.value ?? []).slice(0, 30).map((one) => html`<li key=${one.id}><button type="button" class="paint-thumb" data-picture=${one.id} aria-label=${name(one)} title=${name(one)}
        aria-current=${!live && visible.length === 1 && visible[0].id === one.id ? "true" : null} onClick=${() => { chosen.value = { job: one.job, picture: one.id }; }}>
        <img class="checker" src=${thumbnailOf(one)} alt="" loading="lazy" decoding="async" />${one.starred && html`<${Icon} name="star" />`}</button></li>`)}
  </ul>`;
}

export default function Stage() {
  const job = chosen.value ? undefined : current.value;
  const pictures = shown.value;
  const known = recent.value ?? [];
  const one = pictures.length === 1 ? pictures[0] : null;
  const group = one ? known.filter((picture) => picture.job === one.job).sort((a, b) => a.number - b.number) : pictures;
  const place = one ? known.findIndex((picture) => picture.id === one.id) : -1;
  const walk = (by) => {
    const { picture } = chosen.peek() ?? {};
    const from = known.findIndex((each) => each.id === (picture ?? one?.id));
    const next = known[Math.max(0, Math.min(known.length - 1, from + by))];
    if (next) chosen.value = { job: next.job, picture: next.id };
  };
  useHotkeys([
    { keys: "ArrowRight", label: say("paint.older"), run: () => walk(1) },
    { keys: "ArrowLeft", label: say("paint.newer"), run: () => walk(-1) },
  ], [one?.id, known]);
  return html`<section class="paint-stage" aria-label=${say("paint.result")}>
    <${Failure} />
    <div class="paint-shown">${job ? html`<${Live} job=${job} />` : one ? html`<${Single} key="one" picture=${one} group=${group} previous=${known[place + 1]} />`
      : pictures.length > 1 ? html`<${Group} pictures=${pictures} />` : html`<div class="paint-figure"></div>`}</div>
    <${Strip} />
  </section>`;
}
