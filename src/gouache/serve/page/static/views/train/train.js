// The Train view: teach a model one's own pictures. At the left what there is, at the right a plan, a set or a run.
import { html, useEffect } from "../../app/preact.js";
import { boot } from "../../app/state.js";
import { say } from "../../app/words.js";
import { Button, Empty, Icon } from "../../ui/controls.js";
import { Pictures } from "./pictures.js";
import { Plan } from "./plan.js";
import { Run } from "./run.js";
import { isRunning, loadAll, runs, sets, trouble } from "./store.js";

export const runAddress = (name) => `/train/runs/${encodeURIComponent(name)}`;
export const setAddress = (name) => `/train/sets/${encodeURIComponent(name)}`;

const percent = (share) => `${Math.round(100 * share)} %`;

function Listed({ kind, name }) {
  const chosen = (one, what) => (what === kind && one === name ? "page" : null);
  return html`<nav class="train-list panel" aria-label=${say("train.list")}>
    <a class="button primary" id="train-new" href="/train" aria-current=${kind ? null : "page"}><${Icon} name="plus" />${say("train.new")}</a>
    <h2>${say("train.runs")}</h2>
    ${runs.value?.length === 0 && html`<p class="soft small-text">${say("train.no_runs")}</p>`}
    <ul>${runs.value?.map((run) => html`<li key=${run.name}><a href=${runAddress(run.name)} aria-current=${chosen(run.name, "runs")}>
      <span class="grow"><b>${run.name}</b><small>${say(`train.phase.${run.phase}`)}</small></span>
      ${isRunning(run) && html`<small class="train-share">${percent(run.progress)}</small>`}
      ${run.phase === "failed" && html`<${Icon} name="info" />`}</a></li>`)}</ul>
    <h2>${say("train.sets")}</h2>
    ${sets.value?.length === 0 && html`<p class="soft small-text">${say("train.no_sets")}</p>`}
    <ul>${sets.value?.map((set) => html`<li key=${set.name}><a href=${setAddress(set.name)} aria-current=${chosen(set.name, "sets")}>
      <span class="grow"><b>${set.name}</b><small>${say("train.pictures", { n: set.pictures })}</small></span></a></li>`)}</ul>
  </nav>`;
}

function Shown({ kind, name }) {
  if (kind === "runs") {
    const run = runs.value?.find((one) => one.name === name);
    if (run) return html`<${Run} key=${name} run=${run} />`;
    return runs.value && html`<${Empty} icon="spark" title=${say("train.no_such_run", { name })} />`;
  }
  if (kind === "sets") {
    const set = sets.value?.find((one) => one.name === name);
    if (set) return html`<div class="panel stack"><header class="row"><h1 class="grow">${set.name}</h1></header><${Pictures} key=${name} set=${set} whole /></div>`;
    return sets.value && html`<${Empty} icon="image" title=${say("train.no_such_set", { name })} />`;
  }
  return html`<${Plan} />`;
}

export default function Train({ route }) {
  useEffect(() => { loadAll(); }, []);
  if (!boot.admin) {
    return html`<${Empty} icon="lock" title=${say("train.not_admin")}>${say("train.not_admin_why")}<//>`;
  }
  const [kind = "", name = ""] = route.rest;
  return html`<div class="train">
    <${Listed} kind=${kind} name=${name} />
    <div class="train-main">
      ${trouble.value && html`<p class="train-trouble" role="alert">${trouble.value}
        <${Button} small onClick=${() => { trouble.value = ""; loadAll(); }}>${say("train.again")}<//></p>`}
      <${Shown} kind=${kind} name=${name} />
    </div></div>`;
}
