// The list of hot-keys that `?` shows.
import { html } from "./preact.js";
import { hotkeys } from "./keys.js";
import { say } from "./words.js";
import { Dialog } from "../ui/dialog.js";

export default function KeyHelp({ onClose }) {
  const listed = hotkeys.value.filter((one) => one.label);
  return html`<${Dialog} title=${say("app.keys")} onClose=${onClose}><dl class="keys">
    ${listed.map((one) => html`<div><dt>${one.keys.split("+").map((key) => html`<kbd>${key}</kbd>`)}</dt><dd>${one.label}</dd></div>`)}
  </dl><//>`;
}
