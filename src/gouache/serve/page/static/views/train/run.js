// One training run: how far it is, its loss, its sample sheets over time, and what can be done with it.
import { html, useEffect, useState } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { go } from "../../app/router.js";
import { paintRequest, toast, usePaintRequest } from "../../app/state.js";
import { ago, duration, say } from "../../app/words.js";
import { Button, Icon, Segmented } from "../../ui/controls.js";
import { Confirm } from "../../ui/dialog.js";
import { Chart } from "./chart.js";
import { busy, isRunning, reason, runPath, runs, setRun, sheetPath } from "./store.js";

/** A time as it passes: in seconds for as long as minutes would not seem to move. */
const passed = (seconds) => (seconds < 120 ? say("unit.seconds", { n: Math.round(seconds) }) : duration(seconds));

function Progress({ run }) {
  const left = 60 * run.minutes - run.seconds;
  const unsure = run.phase !== "training";
  const facts = [
    say("train.trained", { done: passed(run.seconds), all: duration(60 * run.minutes) }),
    run.images_seen > 0 && say("train.seen", { n: run.images_seen.toLocaleString() }),
    run.images_per_second > 0 && say("train.speed", { n: run.images_per_second.toFixed(1) }),
    run.phase === "training" && left > 0 && say("train.left", { time: duration(left) }),
  ];
  const encoding = /encoding ([\d,]+)\/([\d,]+)/.exec(run.doing);
  return html`<div class="stack train-progress" role="status">
    <progress max="1" value=${unsure && run.seconds === 0 ? undefined : run.progress} aria-label=${say(`train.phase.${run.phase}`)}></progress>
    <p class="soft">${facts.filter(Boolean).join(" · ")}</p>
    ${run.phase === "preparing" && html`<p class="soft">${encoding ? say("train.encoding", { n: encoding[1], total: encoding[2] }) : say("train.preparing")}</p>`}
  </div>`;
}

/** The steps of the run as a row: done, under way, to come. */
function Steps({ run }) {
  const steps = ["data", ...run.parts, ...(run.stage === "vae" || run.stage === "lora" ? [] : ["pack"])];
  const over = run.phase === "done" || run.phase === "stopped";
  const at = { preparing: 0, packing: steps.length - 1 }[run.phase] ?? 1 + run.parts.indexOf(run.part);
  return html`<ol class="train-steps" aria-label=${say("train.steps")}>${steps.map((step, number) => {
    const made = step !== "pack" || run.has_model;
    const state = (over || number < at) && made ? "done" : number === at && isRunning(run) ? "now" : "later";
    return html`<li key=${step} class=${state} aria-current=${state === "now" ? "step" : null}>${state === "done" ? html`<${Icon} name="check" />` : html`<i></i>`}${say(`train.part.${step}`)}</li>`;
  })}</ol>`;
}

function Sheets({ run }) {
  const [chosen, setChosen] = useState(null);
  const last = run.sheets.length - 1;
  // The newest, unless another one was chosen: then that one stays.
  const at = chosen === null ? last : Math.min(chosen, last);
  if (last < 0) return isRunning(run) && html`<p class="soft">${say("train.no_sheets")}</p>`;
  const sheet = run.sheets[at];
  const label = say("train.sheet_at", { part: say(`train.part.${sheet.part}`), n: sheet.images_seen.toLocaleString() });
  return html`<section class="stack" aria-label=${say("train.sheets")}><h2>${say("train.sheets")}</h2>
    <a class="train-sheet checker" href=${sheetPath(run.name, sheet)} target="_blank"><img src=${sheetPath(run.name, sheet)} alt=${label} /></a>
    <p class="hint">${say(`train.sheet_shows.${sheet.part}`)}</p>
    ${last > 0 && html`<input type="range" id="train-sheet-slider" min="0" max=${last} value=${at} aria-label=${say("train.sheets")} aria-valuetext=${label}
      onInput=${(event) => { const value = Number(event.target.value); setChosen(value === last ? null : value); }} />`}
    <p class="soft small-text">${label}</p></section>`;
}

function Losses({ run }) {
  const begun = run.parts.slice(0, run.parts.indexOf(run.part) + 1);
  const [chosen, setChosen] = useState(null);
  const [lines, setLines] = useState([]);
  const part = chosen ?? run.part;
  // Of an earlier part nothing is added any more.
  const mark = part === run.part ? `${run.images_seen} ${run.sheets.length} ${run.phase}` : "";
  useEffect(() => {
    let current = true;
    api.get(`${runPath(run.name, "log")}?part=${part}`).then((found) => { if (current) setLines(found); }, () => {});
    return () => { current = false; };
  }, [run.name, part, mark]);
  return html`<section class="stack" aria-label=${say("train.loss")}><div class="row"><h2 class="grow">${say("train.loss")}</h2>
    ${begun.length > 1 && html`<${Segmented} label=${say("train.loss")} value=${part} onChange=${(value) => setChosen(value === run.part ? null : value)}
      options=${begun.map((one) => ({ value: one, label: say(`train.part.${one}`) }))} />`}</div>
    <${Chart} lines=${lines} />
    <p class="hint">${say("train.loss_hint")}</p></section>`;
}

function Actions({ run }) {
  const [minutes, setMinutes] = useState(20);
  const [asked, setAsked] = useState("");
  const other = busy.value && busy.value.name !== run.name;
  const act = async (path, body) => {
    try {
      setRun(await api.post(runPath(run.name, path), body));
    } catch (error) {
      toast(reason(error), { kind: "error" });
    }
  };
  const remove = async () => {
    try {
      await api.del(runPath(run.name));
      runs.value = runs.value.filter((one) => one.name !== run.name);
      go("/train", { replace: true });
    } catch (error) {
      toast(reason(error), { kind: "error" });
    }
  };
  const paint = () => {
    const prompt = paintRequest.value.prompt ?? "";
    const tag = `<lora:${run.name}:1>`;
    if (run.stage === "lora") usePaintRequest({ model: run.model, prompt: prompt.includes(tag) ? prompt : `${prompt} ${tag}`.trim() }, ["model", "prompt"]);
    else usePaintRequest({ model: run.name }, ["model"]);
    go("/paint");
  };
  const over = !isRunning(run);
  const extra = run.phase === "done" ? Number(minutes) : Math.max(0, Number(minutes) || 0);
  return html`<div class="row train-actions">
    ${over && run.has_model && html`<${Button} kind="primary" id="train-paint" onClick=${paint}><${Icon} name="brush" />${say("train.paint")}<//>`}
    ${!over && html`<${Button} id="train-stop" disabled=${run.phase === "stopping"} onClick=${() => setAsked("stop")}><${Icon} name="pause" />${say("train.stop")}<//>`}
    ${over && html`<span class="row train-again"><${Button} id="train-resume" disabled=${other || (run.phase === "done" && !(extra > 0))} onClick=${() => act("resume", { minutes: run.phase === "done" ? extra : 0 })}><${Icon} name="play" />
      ${say(run.phase === "done" ? "train.go_on_for" : "train.go_on")}<//>
      ${run.phase === "done" && html`<label class="row"><input type="number" min="0.1" max="43200" step="any" value=${minutes} onInput=${(event) => setMinutes(event.target.value)} />${say("train.minutes_unit")}</label>`}</span>`}
    ${over && html`<${Button} kind="danger" id="train-delete" onClick=${() => setAsked("delete")}><${Icon} name="trash" />${say("train.delete")}<//>`}
    ${asked === "stop" && html`<${Confirm} title=${say("train.stop")} text=${say("train.stop_ask")} yes=${say("train.stop")} onYes=${() => act("stop")} onClose=${() => setAsked("")} />`}
    ${asked === "delete" && html`<${Confirm} danger title=${say("train.delete_run")} text=${say(run.has_model ? "train.delete_run_ask" : "train.delete_run_ask_whole", { name: run.name })} yes=${say("train.delete")} onYes=${remove} onClose=${() => setAsked("")} />`}
  </div>`;
}

export function Run({ run }) {
  const facts = [say(`train.stage.${run.stage}`), run.model || null, run.data, `${run.size} px`];
  const ended = !isRunning(run);
  return html`<article class="stack train-run"><div class="panel stack">
    <header class="row"><div class="grow"><h1>${run.name}</h1><p class="soft small-text">${facts.filter(Boolean).join(" · ")} · ${ago(run.created)}</p></div>
      <b class="train-phase ${run.phase}" id="train-phase" data-phase=${run.phase}>${say(`train.phase.${run.phase}`)}</b></header>
    <${Steps} run=${run} />
    ${run.phase === "failed" && html`<div class="train-trouble" role="alert"><p><b>${say("train.failed")}</b></p><p>${run.problem && reason(run.problem)}</p>
      <details><summary>${say("train.server_said")}</summary><p class="train-said">${run.error}</p></details></div>`}
    ${!ended || run.seconds > 0 ? html`<${Progress} run=${run} />` : null}
    ${ended && run.has_model && html`<p>${say(run.stage === "lora" ? "train.makes_lora" : "train.makes", { name: run.name })}</p>`}
    ${run.phase === "interrupted" && html`<p>${say("train.interrupted")}</p>`}
    <${Actions} run=${run} /></div>
    <div class="train-columns"><div class="panel"><${Sheets} run=${run} /></div><div class="panel stack"><${Losses} run=${run} />
      <details><summary>${say("train.command")}</summary><p class="hint">${say("train.command_hint")}</p><pre class="train-command" tabindex="0">${run.command}</pre></details></div></div>
  </article>`;
}
