// Small parts of the view: sliders with their number, and icons of tools.

import { html } from "../../app/preact.js";

export const Mark = ({ d }) => html`<svg class="icon" viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.7"
  stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><path d=${d} /></svg>`;

/** A slider with its value behind it. */
export function Range({ id, label, value, min, max, step = 1, unit = "", onInput }) {
  return html`<label class="edit-range" for=${id}><span>${label}</span><input id=${id} type="range" min=${min} max=${max} step=${step} value=${value}
    onInput=${(event) => onInput(Number(event.target.value))} /><output for=${id}>${Math.round(value * 100) / 100}${unit}</output></label>`;
}

/** A slider below its label and a field for exact numbers. */
export function Slide({ id, label, hint, value, min, max, step = 1, unit = "", onChange }) {
  return html`<div class="field edit-slide"><div class="edit-slide-head"><label for=${id}>${label}</label>
      <input id=${`${id}-number`} type="number" aria-label=${label} min=${min} max=${max} step=${step} value=${value}
        onChange=${(event) => onChange(Math.min(max, Math.max(min, Number(event.target.value) || 0)))} />${unit && html`<span class="hint">${unit}</span>`}</div>
    <input id=${id} type="range" min=${min} max=${max} step=${step} value=${value} onInput=${(event) => onChange(Number(event.target.value))} />
    ${hint && html`<p class="hint">${hint}</p>`}</div>`;
}
