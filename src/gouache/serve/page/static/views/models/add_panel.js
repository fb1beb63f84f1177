// Adding weights: a file that is dropped, a published model from the hub with its licence, a folder of this machine.
import { html, useEffect, useId, useState } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { boot } from "../../app/state.js";
import { bytes, duration, say } from "../../app/words.js";
import { Button, DropZone, Icon } from "../../ui/controls.js";
import { Dialog } from "../../ui/dialog.js";
import { arrivals, cancelPull, followPulls, forget, pull, pulls, send, sendAgain, SUFFIXES, uploads } from "./adding.js";
import { explainModel } from "./errors.js";

const LICENCES = { "creativeml-openrail-m": "CreativeML OpenRAIL-M", "openrail++": "CreativeML Open RAIL++-M", openrail: "OpenRAIL", "apache-2.0": "Apache-2.0", mit: "MIT" };
const here = ["127.0.0.1", "localhost", "[::1]"].includes(location.hostname);

/** A bar with how much of how much, how fast, and how long still. */
export function Bar({ received, size, speed, label }) {
  const share = size ? Math.min(1, received / size) : 0;
  const left = speed > 0 ? (size - received) / speed : 0;
  return html`<div class="models-bar" role="progressbar" aria-label=${label} aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.floor(100 * share)}>
      <i style=${{ transform: `scaleX(${share})` }}></i></div>
    <p class="small-text soft models-numbers"><span>${size ? say("models.of", { here: bytes(received), total: bytes(size) }) : bytes(received)}</span>
      ${speed > 0 && html`<span>${say("models.speed", { speed: bytes(speed) })}${left > 1 ? ` · ${say("models.left", { time: duration(left) })}` : ""}</span>`}</p>`;
}

function Sent({ one }) {
  const kind = one.kind ? say(`models.kind_${one.kind.replaceAll("-", "_")}`) : "";
  return html`<li class="models-way" data-state=${one.state}>
    <div class="row"><b class="grow models-clip" title=${one.name}>${one.name}</b>${kind && html`<span class="models-tag">${kind}</span>`}
      ${one.state === "failed" && html`<${Button} small onClick=${() => sendAgain(one.key)}>${say("models.again")}<//>`}
      <${Button} small quiet label=${["done", "failed"].includes(one.state) ? say("app.dismiss") : say("models.cancel_file", { name: one.name })} onClick=${() => forget(one.key)}><${Icon} name="close" /><//></div>
    ${one.state === "failed" && html`<p class="bad small-text" role="alert">${one.error}</p>`}
    ${one.state === "waiting" && html`<p class="soft small-text">${say("models.waiting")}</p>`}
    ${one.state === "done" && html`<p class="small-text models-good"><${Icon} name="check" />${say("models.added_as", { size: bytes(one.size) })}</p>`}
    ${["sending", "checking"].includes(one.state) && html`<${Bar} received=${one.received} size=${one.size} speed=${one.speed} label=${one.name} />`}
    ${one.state === "checking" && html`<p class="soft small-text">${say("models.checking")}</p>`}
  </li>`;
}

/** What is on its way: files, and the newest pull. */
export function Ways() {
  useEffect(followPulls, []);
  const newest = pulls.value?.[0];
  const [dismissed, setDismissed] = useState(0);
  const shown = newest && newest.started !== dismissed && (newest.state === "running" || Date.now() / 1000 - newest.started < 86400) ? newest : null;
  if (!uploads.value.length && !shown) return null;
  return html`<ul class="models-ways" aria-label=${say("models.ways")}>
    ${shown && html`<li class="models-way" data-state=${shown.state} id="pull-state">
      <div class="row"><b class="grow models-clip">${shown.repo}</b>
        ${shown.state === "running" ? html`<${Button} small id="pull-cancel" onClick=${cancelPull}>${say("app.cancel")}<//>`
          : html`${["failed", "cancelled"].includes(shown.state) && html`<${Button} small onClick=${() => pull(shown.repo, shown.variant)}>${say("models.again")}<//>`}
            <${Button} small quiet label=${say("app.dismiss")} onClick=${() => setDismissed(shown.started)}><${Icon} name="close" /><//>`}</div>
      ${shown.state === "running" && html`<${Bar} received=${shown.bytes} size=${shown.total} speed=${shown.speed} label=${shown.repo} />`}
      ${shown.state === "failed" && html`<p class="bad small-text" role="alert">${explainModel(shown.problem ?? { message: shown.error })}</p>`}
      ${shown.state === "cancelled" && html`<p class="soft small-text">${say("models.pull_cancelled")}</p>`}
      ${shown.state === "done" && html`<p class="small-text models-good"><${Icon} name="check" />${say("models.added_as", { size: bytes(shown.bytes) })}</p>`}
    </li>`}
    ${uploads.value.map((one) => html`<${Sent} key=${one.key} one=${one} />`)}
  </ul>`;
}

/**
 * What a pull would fetch and under which licence, before it starts.
 *
 * @param {{repo: string, variant?: string, onClose: () => unknown}} props
 */
export function LicenceNotice({ repo, variant = "", onClose }) {
  const [offer, setOffer] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    const controller = new AbortController();
    const query = new URLSearchParams({ repo, ...(variant && { variant }) });
    api.get(`/v1/models/pulls/about?${query}`, { signal: controller.signal }).then(setOffer, (problem) => problem.name === "AbortError" || setError(problem));
    return () => controller.abort();
  }, [repo, variant]);
  const start = () => pull(offer.repo, variant).then(onClose, setError);
  const wanted = offer ? offer.bytes - offer.here : 0;
  return html`<${Dialog} title=${offer?.repo ?? repo} onClose=${onClose}>
    ${!offer && !error && html`<p role="status" class="soft">${say("models.asking_hub")}</p>`}
    ${error && html`<p class="bad" role="alert">${explainModel(error)}</p>`}
    ${offer && html`<dl class="models-facts">
        <dt>${say("models.licence")}</dt><dd>${offer.licence ? html`<b>${LICENCES[offer.licence] ?? offer.licence}</b>` : say("models.licence_unknown")}
          ${!offer.licence_said && offer.licence && html` <span class="soft">${say("models.licence_recalled")}</span>`}</dd>
        <dt>${say("models.size")}</dt><dd>${bytes(offer.bytes)}${offer.here > 0 ? ` · ${say("models.partly_here", { size: bytes(offer.here) })}` : ""} <span class="soft">· ${say("models.disk_free", { size: bytes(offer.free) })}</span></dd>
      </dl>
      <p class="row">${offer.licence_link && html`<a href=${offer.licence_link} target="_blank" rel="noreferrer noopener">${say("models.read_licence")}</a>`}
        <a href=${offer.page} target="_blank" rel="noreferrer noopener">${say("models.hub_page")}</a></p>
      ${offer.commercial === null && offer.licence && html`<p class="small-text soft">${say("models.read_terms")}</p>`}
      ${offer.gated && html`<p class="models-notice"><${Icon} name="lock" />${say("models.gated")}</p>`}
      ${wanted > offer.free && html`<p class="bad" role="alert">${say("models.too_large")}</p>`}
      <details><summary>${say("models.files", { n: Object.keys(offer.files).length })}</summary>
        <ul class="models-files small-text">${Object.entries(offer.files).map(([name, size]) => html`<li key=${name}><span>${name}</span><span class="soft">${bytes(size)}</span></li>`)}</ul></details>`}
    <footer><${Button} onClick=${onClose}>${say("app.cancel")}<//>
      <${Button} kind="primary" id="pull-accept" disabled=${!offer || wanted > offer.free} onClick=${start}>${say("models.accept")}<//></footer><//>`;
}

function Hub() {
  const [listed, setListed] = useState([]);
  const [asked, setAsked] = useState(null);
  const [repo, setRepo] = useState("");
  const id = useId();
  useEffect(() => { api.get("/v1/models/recommended").then(setListed, () => {}); }, [arrivals.value]);
  const ask = (event) => { event.preventDefault(); if (repo.trim()) setAsked({ repo: repo.trim(), variant: "" }); };
  return html`<section class="stack models-hub" aria-label=${say("models.from_hub")}><h3>${say("models.from_hub")}</h3>
    <ul class="models-offers">${listed.map((one) => html`<li key=${one.repo}>
      <div class="grow"><b>${one.title}</b><p class="small-text soft">${[`${one.side} px`, `≈ ${bytes(one.bytes)}`, one.licence].join(" · ")}${one.mirror ? ` · ${say("models.mirror")}` : ""}</p></div>
      ${one.here ? html`<span class="models-good small-text"><${Icon} name="check" />${say("models.here")}</span>`
        : html`<${Button} small aria-label=${say("models.get_one", { name: one.title })} onClick=${() => setAsked(one)}>${one.gated && html`<${Icon} name="lock" />`}${say("models.get")}<//>`}</li>`)}</ul>
    <form class="row models-repo" onSubmit=${ask}><div class="field grow"><label for=${id}>${say("models.other_repo")}</label>
      <input id=${id} class="models-repo-name" value=${repo} onInput=${(event) => setRepo(event.target.value)} placeholder="owner/name" autocomplete="off" spellcheck=${false} /></div>
      <${Button} type="submit" disabled=${!repo.trim()}>${say("models.get")}<//></form>
    ${asked && html`<${LicenceNotice} repo=${asked.repo} variant=${asked.variant} onClose=${() => setAsked(null)} />`}</section>`;
}

function Folders() {
  const [folders, setFolders] = useState([]);
  const [path, setPath] = useState("");
  const [error, setError] = useState("");
  const id = useId();
  const take = (list) => { setFolders(list); setError(""); arrivals.value += 1; };
  const fail = (problem) => setError(explainModel(problem));
  useEffect(() => { api.get("/v1/models/folders").then(setFolders, () => {}); }, []);
  const add = (event) => { event.preventDefault(); api.post("/v1/models/folders", { path: path.trim() }).then((list) => { setPath(""); take(list); }, fail); };
  return html`<section class="stack" aria-label=${say("models.folder")}><h3>${say("models.folder")}</h3><p class="small-text soft">${say("models.folder_hint")}</p>
    <form class="row models-repo" onSubmit=${add}><div class="field grow ${error ? "wrong" : ""}"><label for=${id}>${say("models.folder_path")}</label>
      <input id=${id} class="models-folder-path" value=${path} onInput=${(event) => setPath(event.target.value)} autocomplete="off" spellcheck=${false} placeholder=${say("models.folder_example")}
        aria-invalid=${Boolean(error)} aria-describedby=${error ? `${id}-wrong` : null} /></div>
      <${Button} type="submit" disabled=${!path.trim()}>${say("models.add")}<//></form>
    ${error && html`<p class="bad small-text" role="alert" id=${`${id}-wrong`}>${error}</p>`}
    ${folders.length > 0 && html`<ul class="models-folders">${folders.map((one) => html`<li key=${one.path} class="row"><span class="grow models-clip" title=${one.path}>${one.path}</span>
      <span class="small-text soft">${say("models.count", { n: one.models })}</span>
      <${Button} small quiet label=${say("models.folder_remove", { name: one.path })} onClick=${() => api.del(`/v1/models/folders/${one.number}`).then(take, fail)}><${Icon} name="close" /><//></li>`)}</ul>`}</section>`;
}

/** A box into which weight files are dropped. */
export function WeightsDrop() {
  return html`<${DropZone} id="weights-drop" accept=${SUFFIXES.join(",")} multiple onFiles=${send} label=${say("models.drop_label")}>
    <${Icon} name="upload" /><b>${say("models.drop")}</b><span class="small-text">${say("models.drop_hint")}</span><//>`;
}

/** All ways to add weights, and what is on its way. */
export default function AddPanel() {
  const [room, setRoom] = useState(null);
  useEffect(() => { api.get("/v1/models/room").then(setRoom, () => {}); }, [arrivals.value]);
  if (!boot.admin) return html`<p class="soft small-text">${say("models.ask_admin")}</p>`;
  return html`<div class="models-add stack"><div><h2>${say("models.add_title")}</h2>${room && html`<p class="small-text soft">${say("models.disk_free", { size: bytes(Math.max(0, room.free - room.reserve)) })}</p>`}</div>
    <${Ways} /><${WeightsDrop} /><${Hub} />${here && html`<${Folders} />`}</div>`;
}
