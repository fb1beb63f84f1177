// What opens above the page: dialogs and menus, by the browser's own elements.
import { html, useEffect, useId, useRef, useState } from "../app/preact.js";
import { say } from "../app/words.js";
import { Button, Icon } from "./controls.js";

/**
 * A dialog that is open as long as it is shown; Escape and a click beside it close it.
 *
 * @param {{title: string, onClose: () => unknown, wide?: boolean}} props
 */
export function Dialog({ title, onClose, wide = false, children }) {
  const element = useRef();
  const id = useId();
  useEffect(() => {
    const opened = element.current;
    opened.showModal();
    return () => opened.close();
  }, []);
  return html`<dialog ref=${element} class="dialog ${wide ? "wide" : ""}" aria-labelledby=${id}
      onCancel=${(event) => { event.preventDefault(); onClose(); }} onClick=${(event) => event.target === element.current && onClose()}>
    <div class="dialog-body"><header><h2 id=${id}>${title}</h2>
      <${Button} quiet label=${say("app.close")} onClick=${onClose}><${Icon} name="close" /><//></header>${children}</div>
  </dialog>`;
}

/**
 * A question before something that can't be undone.
 *
 * @param {{title: string, text: string, yes: string, onYes: () => unknown, onClose: () => unknown, danger?: boolean}} props
 */
export function Confirm({ title, text, yes, onYes, onClose, danger = false }) {
  return html`<${Dialog} title=${title} onClose=${onClose}><p>${text}</p><footer>
    <${Button} onClick=${onClose}>${say("app.cancel")}<//>
    <${Button} kind=${danger ? "danger" : "primary"} onClick=${() => { onYes(); onClose(); }}>${yes}<//></footer><//>`;
}

/**
 * A button that opens a short list of actions.
 *
 * @param {{label: string, icon?: string, items: {label: string, icon?: string, run: () => unknown, danger?: boolean}[]}} props
 */
export function Menu({ label, icon = "more", items }) {
  const [open, setOpen] = useState(false);
  const root = useRef();
  useEffect(() => {
    if (!open) return undefined;
    root.current.querySelector("[role=menuitem]")?.focus();
    const away = (event) => { if (!root.current.contains(event.target)) setOpen(false); };
    addEventListener("pointerdown", away);
    return () => removeEventListener("pointerdown", away);
  }, [open]);
  const keys = (event) => {
    const entries = [...root.current.querySelectorAll("[role=menuitem]")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape" && open) {
      event.stopPropagation();
      event.preventDefault();
      setOpen(false);
      root.current.querySelector("button").focus();
    } else if (step && open) {
      event.preventDefault();
      entries[(entries.indexOf(document.activeElement) + step + entries.length) % entries.length].focus();
    }
  };
  return html`<div class="menu" ref=${root} onKeyDown=${keys}>
    <${Button} quiet label=${label} aria-haspopup="menu" aria-expanded=${open} onClick=${() => setOpen(!open)}><${Icon} name=${icon} /><//>
    ${open && html`<div class="menu-list" role="menu" aria-label=${label}>
      ${items.map((one) => html`<button type="button" role="menuitem" class=${one.danger ? "danger" : ""}
          onClick=${() => { setOpen(false); one.run(); }}>${one.icon && html`<${Icon} name=${one.icon} />`}${one.label}</button>`)}
    </div>`}
  </div>`;
}
