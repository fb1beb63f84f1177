// A list that is put in order by dragging, with a finger too, or by keys.
import { html, signal, useEffect, useRef, useState } from "../../app/preact.js";
import { Icon } from "../../ui/controls.js";
import { say } from "../../app/words.js";

/** The job that was moved last by a key or button: {id, button: which to focus again, text: what is said of it}. */
export const placeOf = signal({ id: "", button: "", text: "" });

/** Near the edge of the window the page scrolls while something is dragged. */
const EDGE = 60;
const SCROLL = 12;

/**
 * An ordered list.
 *
 * @param {{items: {job: {id: string}}[], render: Function, onMove: (id: string, to: number) => unknown}} props render gets
 *   the item, its number and the handle to drag by; `to` is the place, from 0.
 */
export function Sortable({ items, render, onMove }) {
  const list = useRef();
  const [drag, setDrag] = useState(null);
  const ids = items.map((item) => item.job.id);
  const latest = useRef();
  latest.current = { ids, drag };

  useEffect(() => {
    // The browser takes the focus from an element that it moves.
    const { id, button } = placeOf.value;
    const row = id && list.current.querySelector(`[data-job="${id}"]`);
    if (!row || !button || row.contains(document.activeElement)) return;
    const wanted = row.querySelector(button === "handle" ? ".queue-handle" : `[data-move=${button}]:not(:disabled)`);
    (wanted ?? row.querySelector("[data-move]:not(:disabled)"))?.focus();
  }, [ids.join()]);

  const end = (move) => {
    const { drag: last, ids: now } = latest.current;
    setDrag(null);
    if (move && last && now.indexOf(last.id) !== last.to && now.includes(last.id)) onMove(last.id, last.to);
  };
  useEffect(() => {
    if (!drag) return undefined;
    const escape = (event) => { if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); end(false); } };
    addEventListener("keydown", escape, true);
    return () => removeEventListener("keydown", escape, true);
  }, [drag !== null]);

  const begin = (event, id) => {
    if (event.button !== 0) return;
    event.preventDefault();
    event.currentTarget.focus();
    event.currentTarget.setPointerCapture(event.pointerId);
    const rows = [...list.current.children].map((row) => row.getBoundingClientRect());
    const from = ids.indexOf(id);
    const middles = rows.map((row) => row.top + row.height / 2 + scrollY);
    const gap = rows.length > 1 ? rows[1].top - rows[0].bottom : 0;
    setDrag({ id, from, to: from, start: event.clientY + scrollY, by: 0, middles, height: rows[from].height + gap });
  };
  const follow = (event) => {
    const { drag: last } = latest.current;
    if (!last) return;
    if (event.clientY < EDGE) scrollBy(0, -SCROLL);
    else if (event.clientY > innerHeight - EDGE) scrollBy(0, SCROLL);
    const by = event.clientY + scrollY - last.start;
    const middle = last.middles[last.from] + by;
    const to = last.middles.filter((other, number) => number !== last.from && (number < last.from ? other <= middle : other < middle)).length;
    setDrag({ ...last, by, to });
  };
  const keys = (event, number, id) => {
    const to = { ArrowUp: number - 1, ArrowDown: number + 1, Home: 0, End: ids.length - 1 }[event.key];
    if (to === undefined || to < 0 || to >= ids.length || to === number) return;
    event.preventDefault();
    placeOf.value = { id, button: "handle", text: say("queue.moved", { n: to + 1 }) };
    onMove(id, to);
  };
  /** How far a row gives way to the one that is dragged. */
  const shift = (number) => {
    if (!drag) return 0;
    if (number === drag.from) return drag.by;
    if (number > drag.from && number <= drag.to) return -drag.height;
    return number < drag.from && number >= drag.to ? drag.height : 0;
  };
  return html`<ol class="queue-list ${drag ? "dragging" : ""}" ref=${list}>
    ${items.map((item, number) => html`<li key=${item.job.id} data-job=${item.job.id}
        class="queue-job waiting panel ${drag?.id === item.job.id ? "dragged" : ""}" style=${{ transform: drag ? `translateY(${shift(number)}px)` : null }}>
      ${render(item, number, html`<button type="button" class="queue-handle" aria-label=${say("queue.handle", { n: number + 1 })} title=${say("queue.drag")}
        onPointerDown=${(event) => begin(event, item.job.id)} onPointerMove=${follow} onPointerUp=${() => end(true)} onPointerCancel=${() => end(false)}
        onKeyDown=${(event) => keys(event, number, item.job.id)}><${Icon} name="grip" /></button>`)}
    </li>`)}
  </ol><p class="visually-hidden" role="status">${placeOf.value.text}</p>`;
}
