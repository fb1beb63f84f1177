// Looking closely: one picture over the whole window, and two of them laid over one another.
import { html, useEffect, useRef, useState } from "../../app/preact.js";
import { say } from "../../app/words.js";
import { Button, Icon } from "../../ui/controls.js";

const fileOf = (picture) => `/v1/pictures/${picture.id}/file`;

function Whole({ label, onClose, onStep, children }) {
  const element = useRef();
  useEffect(() => {
    const opened = element.current;
    opened.showModal();
    return () => opened.close();
  }, []);
  return html`<dialog ref=${element} class="paint-whole" aria-label=${label} onCancel=${(event) => { event.preventDefault(); onClose(); }}
      onClick=${(event) => { if (event.target === element.current || event.target.classList.contains("paint-whole-body")) onClose(); }}
      onKeyDown=${(event) => { const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key]; if (step && onStep && event.target.type !== "range") { event.preventDefault(); onStep(step); } }}>
    <div class="paint-whole-body">${children}</div>
    <${Button} class="paint-whole-close" label=${say("app.close")} onClick=${onClose}><${Icon} name="close" /><//>
    ${onStep && html`<${Button} class="paint-whole-step left" label=${say("paint.previous")} onClick=${() => onStep(-1)}><${Icon} name="left" /><//>
      <${Button} class="paint-whole-step right" label=${say("paint.following")} onClick=${() => onStep(1)}><${Icon} name="right" /><//>`}
  </dialog>`;
}

/** One picture as large as the window allows; a click shows it pixel by pixel, arrows lead to the others of its job. */
export function Zoom({ picture, group, onClose }) {
  const [at, setAt] = useState(Math.max(0, group.findIndex((one) => one.id === picture.id)));
  const [whole, setWhole] = useState(true);
  const one = group[at] ?? picture;
  const step = group.length > 1 ? (by) => setAt((before) => (before + by + group.length) % group.length) : null;
  return html`<${Whole} label=${one.prompt || say("paint.picture")} onClose=${onClose} onStep=${step}>
    <button type="button" class="paint-whole-picture ${whole ? "" : "pixels"}" aria-label=${say(whole ? "paint.actual_size" : "paint.fit")} onClick=${() => setWhole(!whole)}>
      <img class="checker" src=${fileOf(one)} alt=${one.prompt || say("paint.picture")} width=${one.width} height=${one.height} style=${{ "--ratio": String(one.width / one.height) }} /></button><//>`;
}

/** The picture over the one before it; the slider says how much of each is seen. */
export function Compare({ after, before, onClose }) {
  const [share, setShare] = useState(50);
  const shape = { "--ratio": String(after.width / after.height) };
  return html`<${Whole} label=${say("paint.compare")} onClose=${onClose}>
    <div class="paint-compare" style=${shape}>
      <img class="checker" src=${fileOf(before)} alt=${say("paint.before")} />
      <img class="checker" src=${fileOf(after)} alt=${say("paint.after")} style=${{ clipPath: `inset(0 0 0 ${share}%)` }} />
      <i style=${{ left: `${share}%` }}></i><b class="left">${say("paint.before")}</b><b class="right">${say("paint.after")}</b>
      <input type="range" min="0" max="100" step="0.5" value=${share} aria-label=${say("paint.compare_slider")} onInput=${(event) => setShare(Number(event.target.value))} />
    </div><//>`;
}
