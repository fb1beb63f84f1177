// The grid: only the rows that are seen, and a few around them, are in the document, however many pictures there are.
import { html, useEffect, useLayoutEffect, useRef, useState } from "../../app/preact.js";
import { say } from "../../app/words.js";
import { Icon } from "../../ui/controls.js";
import { clearSelection, more, pictures, search, selected, selectTo, state, toggle } from "./store.js";

/** What a dragged picture carries: ids with commas between. */
export const DRAGGED = "application/x-gouache-pictures";
const GAP = 8;
const WIDEST = 216;
const FEWEST = 3;
const AROUND = 3;
const PRESS_MILLISECONDS = 450;
const PRESS_SLIP = 10;
const fine = matchMedia("(hover: hover) and (pointer: fine)");

/** Columns and their width for a grid so many pixels wide. */
export function columnsOf(width) {
  const columns = Math.max(FEWEST, Math.ceil((width + GAP) / (WIDEST + GAP)));
  return { columns, side: Math.floor((width - GAP * (columns - 1)) / columns) };
}

/** Long presses select, as they do in a phone's own gallery; gives the handlers of one cell. */
function usePress(id) {
  const press = useRef({ timer: 0, done: false });
  const end = () => clearTimeout(press.current.timer);
  useEffect(() => end, []);
  return {
    pressed: press,
    onPointerDown: (event) => {
      press.current.done = false;
      if (event.pointerType === "mouse") return;
      Object.assign(press.current, { x: event.clientX, y: event.clientY });
      press.current.timer = setTimeout(() => { press.current.done = true; navigator.vibrate?.(15); toggle(id); }, PRESS_MILLISECONDS);
    },
    onPointerMove: (event) => { if (Math.hypot(event.clientX - press.current.x, event.clientY - press.current.y) > PRESS_SLIP) end(); },
    onPointerUp: end,
    onPointerCancel: end,
    onContextMenu: (event) => { if (press.current.done) event.preventDefault(); },
  };
}

function Cell({ picture, index, place, side, count }) {
  const { pressed, ...handlers } = usePress(picture.id);
  const chosen = selected.value.has(picture.id);
  const choosing = selected.value.size > 0;
  const click = (event) => {
    if (pressed.current.done) event.preventDefault();
    else if (event.shiftKey) { event.preventDefault(); selectTo(picture.id); }
    else if (event.ctrlKey || event.metaKey || choosing) { event.preventDefault(); toggle(picture.id); }
  };
  const drag = (event) => {
    const ids = chosen ? [...selected.peek()] : [picture.id];
    event.dataTransfer.setData(DRAGGED, ids.join(","));
    event.dataTransfer.effectAllowed = "copyMove";
  };
  const name = picture.prompt || say("gallery.untitled");
  return html`<li class="gallery-cell ${chosen ? "chosen" : ""}" data-id=${picture.id} aria-setsize=${count} aria-posinset=${index + 1}
      style=${{ transform: `translate(${place.x}px, ${place.y}px)`, width: `${side}px`, height: `${side}px` }}>
    <a href=${`/gallery/${picture.id}${search.value}`} draggable=${fine.matches} onClick=${click} onDragStart=${drag} ...${handlers}
      aria-label=${say(picture.starred ? "gallery.open_starred" : "gallery.open", { name })} title=${picture.prompt}>
      <img class="checker" src=${picture.thumbnail} alt="" width=${picture.width} height=${picture.height} decoding="async" draggable=${false} /></a>
    <button type="button" class="gallery-tick" role="checkbox" aria-checked=${chosen} aria-label=${say("gallery.select", { name })}
      onClick=${(event) => (event.shiftKey ? selectTo(picture.id) : toggle(picture.id))}><${Icon} name="check" /></button>
    ${picture.starred && html`<span class="gallery-starred"><${Icon} name="star" /></span>`}
  </li>`;
}

/** Which rows are near the window. */
function useRows(root, count) {
  const [seen, setSeen] = useState({ width: 0, first: 0, last: 0 });
  useLayoutEffect(() => {
    let frame = 0;
    const look = () => {
      frame = 0;
      const element = root.current;
      if (!element) return;
      const { top, width } = element.getBoundingClientRect();
      if (!width) return;
      const { columns, side } = columnsOf(width);
      const row = side + GAP;
      const first = Math.max(0, Math.floor(-top / row) - AROUND);
      const last = Math.min(Math.ceil(count / columns), Math.ceil((innerHeight - top) / row) + AROUND);
      setSeen((before) => (before.width === width && before.first === first && before.last === last ? before : { width, first, last }));
      if (last >= Math.ceil(count / columns) - 1) more();
    };
    const soon = () => { frame ||= requestAnimationFrame(look); };
    look();
    const sizes = new ResizeObserver(soon);
    sizes.observe(root.current);
    addEventListener("scroll", soon, { passive: true });
    addEventListener("resize", soon);
    return () => { cancelAnimationFrame(frame); sizes.disconnect(); removeEventListener("scroll", soon); removeEventListener("resize", soon); };
  }, [count, state.value]);
  return seen;
}

function keys(event, columns) {
  const ids = pictures.peek().map((one) => one.id);
  const cell = event.target.closest("[data-id]");
  const at = ids.indexOf(cell?.dataset.id);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (step && at >= 0) {
    event.preventDefault();
    focus(event.currentTarget, ids[Math.min(ids.length - 1, Math.max(0, at + step))]);
    if (event.shiftKey) selectTo(ids[Math.min(ids.length - 1, Math.max(0, at + step))]);
  } else if ((event.key === " " || event.key === "x") && at >= 0 && event.target.matches("a")) {
    event.preventDefault();
    toggle(ids[at]);
  } else if (event.key === "Escape" && selected.peek().size) {
    event.preventDefault();
    clearSelection();
  }
}

function focus(root, id) {
  const link = root.querySelector(`[data-id="${CSS.escape(id)}"] a`);
  link?.focus();
  link?.scrollIntoView({ block: "nearest" });
}

/** All loaded pictures. */
export function Grid() {
  const root = useRef();
  const list = pictures.value;
  const { width, first, last } = useRows(root, list.length);
  const { columns, side } = columnsOf(width || 1);
  const row = side + GAP;
  const shown = width ? list.slice(first * columns, last * columns) : [];
  return html`<ul class="gallery-grid ${selected.value.size ? "choosing" : ""}" id="pictures" ref=${root} role="list" aria-label=${say("gallery.pictures")}
      aria-busy=${state.value === "loading"} style=${{ height: `${Math.max(0, Math.ceil(list.length / columns) * row - GAP)}px` }}
      onKeyDown=${(event) => keys(event, columns)}>
    ${shown.map((picture, k) => {
      const index = first * columns + k;
      const place = { x: (index % columns) * row, y: Math.floor(index / columns) * row };
      return html`<${Cell} key=${picture.id} picture=${picture} index=${index} place=${place} side=${side} count=${list.length} />`;
    })}
  </ul>`;
}
