// The Explain view: what each part of the model did for one picture. A job of its own paints it and keeps what was seen.
import { html, signal, useEffect, useRef, useState } from "../../app/preact.js";
import { ApiError, api } from "../../app/api.js";
import { go } from "../../app/router.js";
import { isOver, jobs, keptSignal, previews, toast } from "../../app/state.js";
import { explain, language, say } from "../../app/words.js";
import { Button, Empty, Icon } from "../../ui/controls.js";
import { loadFields } from "../../ui/fields.js";

/** What stands in the fields. */
const asked = keptSignal("explain", { prompt: "", steps: "" });
/** The explanation that was read last: it stays while one looks at other views. */
const last = signal({ id: "", data: null });

const LANGUAGE = language.startsWith("zh") ? "zh" : "en";
const share = (value, whole) => `${Math.round((100 * value) / whole)} %`;
const number = (value, digits = 2) => value.toLocaleString(language, { maximumFractionDigits: digits });
const reading = new Map();

/** Read an explanation; a second call while the first is under way waits for the same answer. */
function read(id) {
  if (!reading.has(id)) reading.set(id, api.get(`/v1/explanations/${id}`).finally(() => reading.delete(id)));
  return reading.get(id);
}

/** The job of an address, followed by the news; and its explanation once it is done. */
function useExplanation(id) {
  const [own, setOwn] = useState(null);
  const [failed, setFailed] = useState(null);
  const job = jobs.value.get(id) ?? (own?.id === id ? own : null);
  useEffect(() => {
    let current = true;
    setFailed(null);
    if (id && !jobs.peek().has(id)) api.get(`/v1/jobs/${id}`).then((found) => { if (current) setOwn(found); }, (error) => { if (current) setFailed(error); });
    return () => { current = false; };
  }, [id]);
  const state = job?.state;
  useEffect(() => {
    let current = true;
    if (state === "done" && last.peek().id !== id) read(id).then((data) => { if (current) last.value = { id, data }; }, (error) => { if (current) setFailed(error); });
    return () => { current = false; };
  }, [id, state]);
  return { job, failed, data: last.value.id === id ? last.value.data : null };
}

function Ask({ busy }) {
  const [sending, setSending] = useState(false);
  const [error, setError] = useState(null);
  const { prompt, steps } = asked.value;
  const set = (more) => { asked.value = { ...asked.value, ...more }; };
  const send = async (event) => {
    event.preventDefault();
    setSending(true);
    setError(null);
    try {
      const count = Number(steps);
      const job = await api.post("/v1/explanations", { request: { prompt, ...(count > 0 && { num_inference_steps: count }) } });
      go(`/explain/${job.id}`);
    } catch (refused) {
      setError(refused);
    } finally {
      setSending(false);
    }
  };
  const keys = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event); };
  return html`<form class="panel explain-ask" onSubmit=${send}>
    <label class="field explain-prompt">${say("explain.prompt")}<textarea id="explain-prompt" rows="2" maxlength="4000" placeholder=${say("explain.placeholder")} value=${prompt} onInput=${(event) => set({ prompt: event.target.value })} onKeyDown=${keys}></textarea></label>
    <label class="field explain-steps">${say("explain.steps")}<input id="explain-steps" type="number" min="1" max="1000" inputmode="numeric" placeholder=${say("explain.steps_default")} value=${steps} onInput=${(event) => set({ steps: event.target.value })} /></label>
    <${Button} type="submit" kind="primary" id="explain-go" disabled=${sending || busy}><${Icon} name="eye" />${say("explain.go")}<//>
    ${error && html`<p class="bad small-text explain-error" role="alert" id="explain-error">${explain(error)}</p>`}
  </form>`;
}

function Working({ job }) {
  const cancel = () => api.post(`/v1/jobs/${job.id}/cancel`).catch((error) => toast(explain(error), { kind: "error" }));
  const preview = previews.value.get(job.id);
  return html`<div class="panel explain-working" role="status" id="explain-working">
    ${preview && html`<img src=${preview} alt="" />`}
    <div class="grow stack"><p>${say(job.state === "queued" ? "explain.waits" : "explain.works")}</p>
      <progress max="1" value=${job.state === "queued" ? 0 : job.progress} aria-label=${say("explain.works")}></progress></div>
    <${Button} small onClick=${cancel} disabled=${job.cancel_requested}>${say("app.cancel")}<//></div>`;
}

function Ended({ job, failed }) {
  const again = async () => {
    try {
      await api.post(`/v1/jobs/${job.id}/retry`);
    } catch (error) {
      toast(explain(error), { kind: "error" });
    }
  };
  if (failed?.status === 404) return html`<${Empty} icon="eye" title=${say("explain.gone")}>${say("explain.gone_hint")}<//>`;
  if (!failed && job.state === "cancelled") return html`<${Empty} icon="eye" title=${say("explain.cancelled")}><${Button} small onClick=${again}>${say("explain.again")}<//><//>`;
  const error = failed ?? new ApiError(422, job.error ?? {});
  return html`<div class="panel" role="alert" id="explain-failed"><h2 class="bad">${say("explain.failed")}</h2><p>${explain(error)}</p>
    <details class="small-text soft"><summary>${say("explain.details")}</summary>${error.message}</details></div>`;
}

function Section({ name, title, children }) {
  return html`<section class="panel stack" aria-labelledby="explain-${name}"><div><h2 id="explain-${name}">${say(`explain.${name}`)}</h2>
    ${title && html`<p class="explain-text">${title}</p>`}</div>${children}</section>`;
}

function Shown({ src, text, large }) {
  const image = useRef();
  const [small, setSmall] = useState(false);
  return html`<figure class="explain-figure ${large ? "large" : ""}"><img ref=${image} class="checker ${small ? "pixels" : ""}" src=${src} alt="" onLoad=${() => setSmall(image.current.naturalWidth < 128)} />
    <figcaption>${text}</figcaption></figure>`;
}

/** The picture, and its words: one that is pointed at or chosen shows where it acted. */
function Look({ data }) {
  const [over, setOver] = useState(null);
  const [fixed, setFixed] = useState(null);
  const shown = over ?? fixed;
  const map = shown === null ? null : data.tokens[shown]?.attention;
  const seen = data.tokens.some((token) => token.attention);
  const facts = say("explain.made", { model: data.model, seed: data.seed, steps: data.steps.length, sampler: data.sampler, guidance: number(data.guidance) });
  return html`<section class="panel explain-look" aria-label=${data.prompt || say("explain.no_prompt")}>
    <div class="explain-frame"><img id="explain-picture" src=${data.picture} alt=${data.prompt || say("explain.no_prompt")} width=${data.width} height=${data.height} />
      ${map && html`<img class="explain-heat" id="explain-heat" src=${map} alt="" />`}</div>
    <div class="stack"><div><h2>${data.prompt || say("explain.no_prompt")}</h2><p class="soft small-text">${facts}</p></div>
      ${seen && html`<p>${say("explain.hover")}</p><div class="row explain-said">${data.tokens.map((token, place) => token.attention && html`<${Button} key=${place} small pressed=${fixed === place} data-word=${place}
        onMouseEnter=${() => setOver(place)} onMouseLeave=${() => setOver(null)} onFocus=${() => setOver(place)} onBlur=${() => setOver(null)}
        onClick=${() => { setOver(null); setFixed(fixed === place ? null : place); }}>${token.text}<//>`)}</div>`}
      ${!seen && data.tokens.length > 0 && html`<p>${say("explain.attention_none")}</p>`}</div></section>`;
}

function Words({ data }) {
  if (!data.tokens.length) return html`<${Section} name="words" title=${say("explain.words_none")} />`;
  return html`<${Section} name="words" title=${say("explain.words_text")}>
    <ul class="explain-tokens">${data.tokens.map((token, place) => html`<li key=${place}><b>${token.text}</b> <span class="soft">${token.number}</span>
      ${token.nearest.map(([word, value]) => html`<div>${word} <span class="soft">${number(value)}</span></div>`)}</li>`)}</ul>
    ${data.tokens.length > 1 && html`<p class="explain-text">${say("explain.likeness")}</p>
      <div class="explain-scroll" tabindex="0" role="region" aria-label=${say("explain.likeness_name")}><table class="explain-likeness"><thead><tr><td></td>${data.tokens.map((token) => html`<th scope="col">${token.text}</th>`)}</tr></thead>
        <tbody>${data.likeness.map((row, place) => html`<tr key=${place}><th scope="row">${data.tokens[place].text}</th>${row.map((value) => html`<td style=${{ "--share": `${Math.max(0, Math.round(45 * value))}%` }}>${value.toFixed(1)}</td>`)}</tr>`)}</tbody></table></div>`}<//>`;
}

function Draft({ data }) {
  if (!data.draft) return null;
  if (!data.scales.length) return html`<${Section} name="draft" title=${say("explain.things_text")}><div class="row"><${Shown} src=${data.draft} text=${say("explain.draft_whole")} /></div><//>`;
  return html`<${Section} name="draft" title=${say("explain.draft_text")}><div class="row">${data.scales.map((one) => html`<${Shown} key=${one.tokens} src=${one.picture} text=${say("explain.draft_tokens", { n: one.tokens })} />`)}</div><//>`;
}

function Steps({ data }) {
  const [at, setAt] = useState(data.steps.length);
  if (!data.steps.length) return null;
  const step = data.steps[at - 1];
  const told = say("explain.step", { n: at, all: data.steps.length, sigma: step.sigma.toPrecision(3), seconds: number(step.seconds) });
  return html`<${Section} name="diffusion" title=${say("explain.diffusion_text")}>
    ${data.steps.length > 1 && html`<input id="explain-step" type="range" min="1" max=${data.steps.length} value=${at} aria-label=${say("explain.step_name")} aria-valuetext=${told} onInput=${(event) => setAt(Number(event.target.value))} />`}
    <p id="explain-told">${told}</p>
    <div class="row"><${Shown} large src=${step.shown} text=${say("explain.noisy")} /><${Shown} large src=${step.denoised} text=${say("explain.denoised")} /></div>
    <div class="row explain-strip">${data.steps.map((one, place) => html`<button type="button" key=${place} class="explain-thumb" aria-label=${say("explain.show_step", { n: place + 1 })} aria-pressed=${place + 1 === at} onClick=${() => setAt(place + 1)}><img src=${one.denoised} alt="" /></button>`)}</div><//>`;
}

function Times({ data }) {
  const whole = Math.max(1e-9, Object.values(data.seconds).reduce((sum, value) => sum + value, 0));
  return html`<${Section} name="times" title=${say("explain.times_text")}><dl class="explain-times">${Object.entries(data.seconds).map(([name, value]) => html`<div key=${name}><dt>${say(`explain.part_${name}`)}</dt>
    <dd><i style=${{ width: share(value, whole).replace(" ", "") }}></i></dd><dd>${number(value)} s, ${share(value, whole)}</dd></div>`)}</dl><//>`;
}

function Explained({ id, data }) {
  const page = `/v1/explanations/${id}/page?language=${LANGUAGE}`;
  return html`<div class="stack" id="explained"><${Look} data=${data} /><${Words} data=${data} /><${Draft} data=${data} /><${Steps} key=${id} data=${data} />
    ${data.features.length > 0 && html`<${Section} name="features" title=${say("explain.features_text")}><div class="row">${data.features.map((one) => html`<${Shown} key=${one.name} src=${one.picture} text=${one.name} />`)}</div><//>`}
    <${Times} data=${data} />
    <p class="row"><a class="button" id="explain-download" href=${page} download><${Icon} name="download" />${say("explain.download")}</a><span class="soft small-text">${say("explain.download_hint")}</span></p></div>`;
}

export default function Explain({ route }) {
  const id = route.rest[0] ?? last.peek().id;
  const { job, failed, data } = useExplanation(id);
  // What is refused is said in the words of the fields.
  useEffect(() => { loadFields().catch(() => {}); }, []);
  const ended = failed || (job && isOver(job) && job.state !== "done");
  return html`<div class="explain stack"><h1>${say("explain.title")}</h1><${Ask} busy=${Boolean(job && !isOver(job))} />
    ${!id ? html`<${Empty} icon="eye" title=${say("explain.empty")}>${say("explain.empty_hint")}<//>`
      : data ? html`<${Explained} key=${id} id=${id} data=${data} />`
        : ended ? html`<${Ended} job=${job} failed=${failed} />`
          : job && !isOver(job) ? html`<${Working} job=${job} />` : html`<p class="loading" role="status">${say("app.loading")}</p>`}</div>`;
}
