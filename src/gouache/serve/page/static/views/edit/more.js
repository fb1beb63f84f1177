// Every other field of a request, by the form that the server's description of them makes.

import { html, useEffect, useState } from "../../app/preact.js";
import { say } from "../../app/words.js";
import { change, settings } from "./session.js";

/** Groups of fields that the canvas itself, or the panel beside it, stands for. */
export const OWN = ["picture", "mask", "outpaint", "control", "regions", "edits"];

export function More() {
  const [open, setOpen] = useState(false);
  return html`<details class="panel" id="edit-more" onToggle=${(event) => setOpen(event.target.open)}><summary>${say("edit.more_settings")}</summary>
    ${open && html`<p class="hint">…</p>`}</details>`;
}
void [useEffect, change, settings];
