// What an empty studio shows in place of pictures: three prompts that paint at a click, and how to get larger models.
import { html, useState } from "../../app/preact.js";
import { boot, usePaintRequest } from "../../app/state.js";
import { say } from "../../app/words.js";
import { Button, Icon } from "../../ui/controls.js";

/** Single things that the shipped model paints well nearly every time; with each, the words' key and its style. */
const EXAMPLES = [
  { key: "sunflower", style: "flat", icon: "M12 6.5a3 3 0 1 0 0 6 3 3 0 0 0 0-6zM12 2.5v2M12 14.5v7M6 9.5H4M20 9.5h-2M7.8 5.3 6.4 3.9M16.2 5.3l1.4-1.4M7.8 13.7l-1.4 1.4M16.2 13.7l1.4 1.4M12 20c2 0 3.5-1 4-2.5" },
  { key: "cherries", style: "flat", icon: "M7 13a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM17 13a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM7 13c1-4 4-8 8-9 1 3 2 6 2 9M15 4c3-1.5 5-1 6 .5-2 1.5-4 1.5-6-.5z" },
  { key: "rainbow", style: "flat", icon: "M3 18a9 9 0 0 1 18 0M6.5 18a5.5 5.5 0 0 1 11 0M10 18a2 2 0 0 1 4 0" },
];

/**
 * The guide.
 *
 * @param {{onPaint: () => unknown}} props called after an example was put into the fields: it paints.
 */
export default function FirstSteps({ onPaint }) {
  const [adding, setAdding] = useState(null);
  const [notice, setNotice] = useState(null);
  const paint = (example) => {
    const fits = boot.facts?.styles.includes(example.style);
    usePaintRequest({ prompt: say(`first.${example.key}`), ...(fits && { style: example.style }) });
    onPaint?.();
  };
  const open = async () => setAdding({ ...await import("../models/add_panel.js") });
  const offer = async (repo) => { const parts = adding ?? await import("../models/add_panel.js"); setAdding({ ...parts }); setNotice({ repo, variant: "fp16" }); };
  return html`<div class="first" id="first-steps">
    <section class="first-part" aria-labelledby="first-paint"><h2 id="first-paint">${say("first.title")}</h2><p class="soft">${say("first.text")}</p>
      <ul class="first-examples">${EXAMPLES.map((one) => html`<li key=${one.key}><button type="button" class="first-example" data-example=${one.key} onClick=${() => paint(one)}>
        <svg class="icon" viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><path d=${one.icon} /></svg>
        <span>${say(`first.${one.key}`)}</span></button></li>`)}</ul></section>
    ${boot.only_shipped && html`<section class="first-part" aria-labelledby="first-weights"><h2 id="first-weights">${say("first.weights")}</h2><p class="soft">${say("first.weights_text")}</p>
      ${boot.admin ? html`<div class="row first-ways">
          <${Button} onClick=${() => offer("stable-diffusion-v1-5/stable-diffusion-v1-5")}><${Icon} name="download" />Stable Diffusion 1.5 <small class="soft">2.1 GB</small><//>
          <${Button} onClick=${() => offer("stabilityai/stable-diffusion-xl-base-1.0")}><${Icon} name="download" />SDXL <small class="soft">6.9 GB</small><//>
          ${!adding && html`<${Button} onClick=${open}><${Icon} name="upload" />${say("first.own_file")}<//>`}
          <a class="button quiet" href="/models">${say("first.more")}</a></div>
        ${adding && html`<div class="first-adding"><${adding.Ways} /><${adding.WeightsDrop} /></div>`}`
      : html`<p class="small-text soft">${say("models.ask_admin")}</p>`}</section>`}
    ${notice && adding && html`<${adding.LicenceNotice} repo=${notice.repo} variant=${notice.variant} onClose=${() => setNotice(null)} />`}
  </div>`;
}
