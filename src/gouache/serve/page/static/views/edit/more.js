// Every other field of a request, by the form that the server's description of them makes.

import { html, useState } from "../../app/preact.js";
import { say } from "../../app/words.js";
import { changedIn, groupLabel, useFacts, useFields } from "../../ui/fields.js";
import { Field, Form } from "../../ui/form.js";
import { change, problem, settings } from "./session.js";

/** Groups that the canvas or the panel stands for. */
const OWN_GROUPS = ["prompt", "picture", "mask", "outpaint", "control", "regions", "edits"];
/** Fields that stand in the panel; the size is that of the canvas. */
const OWN = ["count", "model", "seed", "sampler", "num_inference_steps", "guidance_scale", "width", "height"];
const FIRST = ["negative_prompt", "model", "sampler", "num_inference_steps", "guidance_scale", "seed"];

const put = (more) => {
  problem.value = null;
  change({ more });
};

/** What is changed most often. */
export function Often() {
  const { more } = settings.value;
  const facts = useFacts(more.model);
  return html`<div class="stack edit-often">${FIRST.map((name) => html`<${Field} key=${name} name=${name} value=${more} facts=${facts} error=${problem.value} onChange=${put} />`)}</div>`;
}

function Group({ group, more, facts }) {
  const [open, setOpen] = useState(false);
  const changed = changedIn(group, more);
  return html`<details open=${open} onToggle=${(event) => { if (event.target === event.currentTarget) setOpen(event.target.open); }}>
    <summary>${groupLabel(group.name)}${changed > 0 && html` <b class="badge">${changed}</b>`}</summary>
    ${open && html`<${Form} groups=${[group.name]} without=${OWN} value=${more} facts=${facts} error=${problem.value} onChange=${put} />`}</details>`;
}

export function More() {
  const { more } = settings.value;
  const facts = useFacts(more.model);
  const groups = (useFields()?.groups ?? []).filter((group) => !OWN_GROUPS.includes(group.name) && group.fields.some((field) => !OWN.includes(field.name)));
  return html`<details class="panel" id="edit-more"><summary>${say("edit.more_settings")}</summary>
    <div class="stack">${groups.map((group) => html`<${Group} key=${group.name} group=${group} more=${more} facts=${facts} />`)}</div></details>`;
}

/** Whether the model that is chosen has no use for a field; false until that is known. */
export function useUnusable(name) {
  return Boolean(useFacts(settings.value.more.model)?.unusable?.includes(name));
}
