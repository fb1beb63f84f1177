// A training in three steps: pictures, what is trained for how long, and what will happen then.
import { html, useEffect, useState } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { go } from "../../app/router.js";
import { boot } from "../../app/state.js";
import { duration, say } from "../../app/words.js";
import { Button, Icon, Segmented } from "../../ui/controls.js";
import { Drop, Pictures } from "./pictures.js";
import { busy, chosenSet, freeName, loadSets, models, plan, reason, runs, sets, setRun } from "./store.js";

const MINUTES = [5, 20, 60, 240];
const STAGES = ["lora", "denoiser", "decoder", "vae"];

const change = (values) => { plan.value = { ...plan.value, ...values }; };

function taken() {
  return [...(runs.value ?? []).map((one) => one.name), ...models.value.flatMap((one) => [one.id, one.name])];
}

/** The body of a request, with what the form leaves open filled in. */
function body() {
  const { stage, minutes, name, model, size, rate, batch } = plan.value;
  const data = chosenSet.value?.name ?? "";
  return {
    data, stage, minutes: Number(minutes),
    name: name.trim() || freeName(data, taken()),
    ...(stage !== "vae" && { model: model || boot.model }),
    ...(size > 0 && { size: Number(size) }), ...(rate > 0 && { learning_rate: Number(rate) }), ...(batch > 0 && { batch_size: Number(batch) }),
  };
}

function StepPictures() {
  const [name, setName] = useState("");
  const [isNew, setIsNew] = useState(false);
  const set = chosenSet.value;
  const adds = isNew || !set;
  const wanted = name || freeName(say("train.set_preset"), (sets.value ?? []).map((one) => one.name));
  return html`<section class="panel stack train-step"><h2><i>1</i>${say("train.step_pictures")}</h2>
    ${!adds && html`<div class="row train-choose">
      <label class="grow field">${say("train.set")}<select id="train-set" value=${set.name} onChange=${(event) => change({ data: event.target.value, name: "" })}>
        ${sets.value.map((one) => html`<option key=${one.name} value=${one.name}>${one.name} (${say("train.pictures", { n: one.pictures })})</option>`)}</select></label>
      <${Button} onClick=${() => { setIsNew(true); setName(""); }}><${Icon} name="plus" />${say("train.new_set")}<//></div>
      <${Pictures} set=${set} />`}
    ${adds && html`<label class="field">${say("train.set_name")}<input id="train-set-name" value=${name} placeholder=${wanted} maxlength="80" onInput=${(event) => setName(event.target.value)} /></label>
      <${Drop} name=${() => wanted} onDone=${async (made) => { await loadSets(); change({ data: made, name: "" }); setIsNew(false); }} />
      ${set && html`<${Button} onClick=${() => setIsNew(false)}>${say("app.cancel")}<//>`}`}
  </section>`;
}

function StepPlan() {
  const { stage, minutes, model, size, rate, batch, name } = plan.value;
  const preset = MINUTES.includes(Number(minutes)) ? String(minutes) : "";
  const made = name || (chosenSet.value ? freeName(chosenSet.value.name, taken()) : "");
  return html`<section class="panel stack train-step"><h2><i>2</i>${say("train.step_plan")}</h2>
    <fieldset class="train-stages"><legend class="label">${say("train.what")}</legend>
      ${STAGES.map((one) => html`<label key=${one} class="train-stage"><input type="radio" name="train-stage" value=${one} checked=${one === stage} onChange=${() => change({ stage: one })} />
        <span><b>${say(`train.stage.${one}`)}</b><small>${say(`train.stage_hint.${one}`)}</small></span></label>`)}</fieldset>
    ${stage !== "vae" && html`<label class="field">${say("train.model")}<select id="train-model" value=${model || boot.model} onChange=${(event) => change({ model: event.target.value })}>
      ${models.value.map((one) => html`<option key=${one.id} value=${one.id}>${one.id}${one.family_label ? ` · ${one.family_label}` : ""}</option>`)}</select>
      <span class="hint">${say("train.model_hint")}</span></label>`}
    <div class="field"><span class="label">${say("train.minutes")}</span><div class="row">
      <${Segmented} label=${say("train.minutes")} value=${preset} onChange=${(value) => change({ minutes: Number(value) })}
        options=${MINUTES.map((one) => ({ value: String(one), label: duration(60 * one) }))} />
      <label class="row train-own-minutes"><input id="train-minutes" type="number" min="0.1" max="43200" step="any" value=${minutes} onInput=${(event) => change({ minutes: event.target.value })} />${say("train.minutes_unit")}</label></div>
      <span class="hint">${say("train.minutes_hint")}</span></div>
    <label class="field">${say("train.name")}<input id="train-name" value=${name} placeholder=${made} maxlength="80" onInput=${(event) => change({ name: event.target.value })} /></label>
    <details><summary>${say("train.more")}</summary><div class="train-three">
      <label class="field">${say("train.size")}<input id="train-size" type="number" min="0" max="2048" step="8" value=${size || ""} placeholder=${say("train.own")} onInput=${(event) => change({ size: Number(event.target.value) })} /></label>
      <label class="field">${say("train.rate")}<input id="train-rate" type="number" min="0" max="1" step="any" value=${rate || ""} placeholder=${say("train.own")} onInput=${(event) => change({ rate: Number(event.target.value) })} /></label>
      <label class="field">${say("train.batch")}<input id="train-batch" type="number" min="0" max="256" value=${batch || ""} placeholder=${say("train.own")} onInput=${(event) => change({ batch: Number(event.target.value) })} /></label>
    </div></details>
  </section>`;
}

/** What the server says that the plan means, asked anew a moment after a change, also of its set's pictures. */
function useAnswer(asked, set) {
  const [answer, setAnswer] = useState({});
  const key = JSON.stringify([asked, set?.pictures, set?.captioned]);
  useEffect(() => {
    if (!asked.data || !(asked.minutes > 0)) {
      setAnswer({});
      return undefined;
    }
    let current = true;
    const timer = setTimeout(() => api.post("/v1/training/plan", asked).then(
      (found) => { if (current) setAnswer({ found }); },
      (error) => { if (current) setAnswer({ error }); },
    ), 250);
    return () => { current = false; clearTimeout(timer); };
  }, [key]);
  return answer;
}

function StepStart() {
  const [starting, setStarting] = useState(false);
  const [failed, setFailed] = useState(null);
  const asked = body();
  const set = chosenSet.value;
  // Once it starts its name is taken, and the same question would be refused.
  const { found, error } = useAnswer(starting ? {} : asked, set);
  const other = busy.value;
  const start = async () => {
    setStarting(true);
    setFailed(null);
    try {
      const run = await api.post("/v1/training/runs", body());
      setRun(run);
      change({ name: "" });
      go(`/train/runs/${encodeURIComponent(run.name)}`);
    } catch (trouble) {
      setFailed(trouble);
      setStarting(false);
    }
  };
  const wrong = failed ?? error;
  return html`<section class="panel stack train-step"><h2><i>3</i>${say("train.step_start")}</h2>
    ${!set && html`<p class="soft">${say("train.first_pictures")}</p>`}
    ${found && html`<ul class="train-will" id="train-will">
      <li>${say("train.will.read", { n: found.pictures, size: found.size })}</li>
      ${found.parts.map((part) => html`<li key=${part}>${say(`train.will.${part}`, { time: duration((60 * found.minutes) / found.parts.length) })}</li>`)}
      <li>${say(found.held_out ? "train.will.held_out" : "train.will.no_held_out")}</li>
      ${found.stage !== "vae" && html`<li>${say(found.stage === "lora" ? "train.will.lora_file" : "train.will.pack", { name: found.name })}</li>`}</ul>`}
    ${wrong && html`<p class="train-trouble" role="alert">${reason(wrong)}</p>`}
    ${other && html`<p class="row">${say("train.one_at_a_time", { name: other.name })} <a href=${`/train/runs/${encodeURIComponent(other.name)}`}>${say("train.see_it")}</a></p>`}
    <${Button} kind="primary" id="train-start" disabled=${!found || starting || Boolean(other)} onClick=${start}><${Icon} name="play" />${say("train.start")}<//>
  </section>`;
}

export function Plan() {
  if (!sets.value) return html`<p class="loading" role="status">${say("app.loading")}</p>`;
  return html`<div class="train-plan"><h1>${say("train.title")}</h1><p class="soft">${say("train.intro")}</p>
    <div class="train-columns"><${StepPictures} /><div class="stack"><${StepPlan} /><${StepStart} /></div></div></div>`;
}
