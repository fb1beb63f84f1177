// Every other field of a request, in folded groups, as the server describes them.
import { computed, html } from "../../app/preact.js";
import { paintOptions, paintRequest } from "../../app/state.js";
import { say } from "../../app/words.js";
import { changedIn, groupLabel, same, useFields } from "../../ui/fields.js";
import { Form } from "../../ui/form.js";
import { facts, problem } from "./session.js";

/** Fields that the view shows by itself. */
const ELSEWHERE = [
  ...["prompt", "negative_prompt", "style", "model", "width", "height", "count", "seed"],
  ...["num_inference_steps", "guidance_scale", "sampler", "schedule"],
];

let before = {};
/** The request without its texts, the same object as long as nothing in it changes: a key in the prompt draws nothing here. */
const others = computed(() => {
  const { prompt: _prompt, negative_prompt: _negative, ...rest } = paintRequest.value;
  if (!same(rest, before)) before = rest;
  return before;
});

function give(request) {
  const { prompt, negative_prompt: negative } = paintRequest.peek();
  problem.value = null;
  paintRequest.value = { prompt, ...(negative === undefined ? {} : { negative_prompt: negative }), ...request };
}

function Group({ group, isOpen }) {
  const request = others.value;
  const changed = changedIn({ fields: group.fields.filter((one) => !ELSEWHERE.includes(one.name)) }, request);
  const toggle = (event) => {
    const open = (paintOptions.peek().open ?? []).filter((name) => name !== group.name);
    if (event.target.open !== isOpen) paintOptions.value = { ...paintOptions.peek(), open: event.target.open ? [...open, group.name] : open };
  };
  return html`<details class="paint-group" open=${isOpen} onToggle=${toggle}>
    <summary>${groupLabel(group.name)}${changed > 0 && html`<b class="badge" aria-label=${say("paint.changed_count", { n: changed })}>${changed}</b>`}</summary>
    ${isOpen && html`<${Form} groups=${[group.name]} without=${ELSEWHERE} value=${request} facts=${facts.value} error=${problem.value} onChange=${give} />`}</details>`;
}

export default function More() {
  const known = useFields();
  const open = paintOptions.value.open ?? [];
  if (!known) return html`<p class="soft small-text" role="status">${say("app.loading")}</p>`;
  const shown = known.groups.filter((group) => group.fields.some((one) => !ELSEWHERE.includes(one.name)));
  return html`<div class="paint-groups">${shown.map((group) => html`<${Group} key=${group.name} group=${group} isOpen=${open.includes(group.name)} />`)}</div>`;
}
