import { html } from "../../app/preact.js";
import { say } from "../../app/words.js";

export default function View() {
  return html`<h1>${say("nav.train")}</h1>`;
}
