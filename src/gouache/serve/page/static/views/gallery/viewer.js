// One picture up close: zoom, the pictures beside it, everything it was painted by, and what can be done with it.
import { html, useEffect, useLayoutEffect, useRef, useState } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { on } from "../../app/events.js";
import { useHotkeys } from "../../app/keys.js";
import { go, route } from "../../app/router.js";
import { toast } from "../../app/state.js";
import { bytes, date, explain, say } from "../../app/words.js";
import { Button, Icon } from "../../ui/controls.js";
import { noteText, settingsOf, useSettings } from "../../ui/recall.js";
import { labelOf, rowsOf, valueOf } from "./settings.js";
import * as store from "./store.js";

const MOST_ZOOM = 16;
const STEP = 1.25;
const SWIPE = 60;
const VARIATIONS = 4;
const VARIATION_STRENGTH = 0.15;
const NEAR_END = 4;
const fileOf = (id) => `/v1/pictures/${id}/file`;

/* Zoom */

/** Zoom of an image by wheel, pinch, double click and keys; `scale` 1 shows all of it. */
function useZoom(frame, image, { onSwipe }) {
  const view = useRef({ scale: 1, x: 0, y: 0 });
  const [scale, setScale] = useState(1);
  const apply = (next) => {
    const { width, height } = frame.current.getBoundingClientRect();
    const zoom = Math.min(MOST_ZOOM, Math.max(1, next.scale));
    const reach = (size) => (size * (zoom - 1)) / 2;
    const bound = (value, size) => Math.min(reach(size), Math.max(-reach(size), value));
    view.current = { scale: zoom, x: bound(next.x, width), y: bound(next.y, height) };
    const { x, y } = view.current;
    image.current.style.transform = `translate(${x}px, ${y}px) scale(${zoom})`;
    setScale(zoom);
  };
  const around = (factor, clientX, clientY) => {
    const box = frame.current.getBoundingClientRect();
    const before = view.current;
    const zoom = Math.min(MOST_ZOOM, Math.max(1, before.scale * factor));
    const ratio = zoom / before.scale;
    const px = (clientX ?? box.left + box.width / 2) - box.left - box.width / 2;
    const py = (clientY ?? box.top + box.height / 2) - box.top - box.height / 2;
    apply({ scale: zoom, x: px - (px - before.x) * ratio, y: py - (py - before.y) * ratio });
  };
  const reset = () => image.current && apply({ scale: 1, x: 0, y: 0 });
  useEffect(() => {
    const element = frame.current;
    const pointers = new Map();
    let start = null;
    const wheel = (event) => { event.preventDefault(); around(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), event.clientX, event.clientY); };
    const spread = () => { const [a, b] = [...pointers.values()]; return { far: Math.hypot(a.x - b.x, a.y - b.y), x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 }; };
    const down = (event) => {
      if (event.button || event.target.closest("button, a")) return;
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      element.setPointerCapture(event.pointerId);
      start = pointers.size === 1 ? { x: event.clientX, y: event.clientY, touch: event.pointerType === "touch" } : null;
    };
    const move = (event) => {
      const known = pointers.get(event.pointerId);
      if (!known) return;
      const before = pointers.size === 2 ? spread() : null;
      const by = { x: event.clientX - known.x, y: event.clientY - known.y };
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (before) {
        const after = spread();
        around(after.far / Math.max(1, before.far), after.x, after.y);
        apply({ ...view.current, x: view.current.x + after.x - before.x, y: view.current.y + after.y - before.y });
      } else if (view.current.scale > 1) {
        apply({ ...view.current, x: view.current.x + by.x, y: view.current.y + by.y });
      }
    };
    const up = (event) => {
      if (!pointers.delete(event.pointerId)) return;
      if (start?.touch && view.current.scale === 1 && event.type === "pointerup") {
        const [x, y] = [event.clientX - start.x, event.clientY - start.y];
        if (Math.abs(x) > SWIPE && Math.abs(x) > 2 * Math.abs(y)) onSwipe.current(x < 0 ? 1 : -1);
      }
      start = null;
    };
    const twice = (event) => { if (!event.target.closest("button, a")) { if (view.current.scale > 1) reset(); else around(3, event.clientX, event.clientY); } };
    const listeners = { wheel, pointerdown: down, pointermove: move, pointerup: up, pointercancel: up, dblclick: twice };
    for (const [kind, listener] of Object.entries(listeners)) element.addEventListener(kind, listener, { passive: false });
    return () => { for (const [kind, listener] of Object.entries(listeners)) element.removeEventListener(kind, listener); };
  }, []);
  return { scale, around, reset };
}

function Stage({ picture, onStep, hasBefore, hasAfter }) {
  const frame = useRef();
  const image = useRef();
  const swipe = useRef(onStep);
  swipe.current = onStep;
  const { scale, around, reset } = useZoom(frame, image, { onSwipe: swipe });
  const [fit, setFit] = useState(1);
  useLayoutEffect(reset, [picture.id]);
  useLayoutEffect(() => {
    const measure = () => setFit(Math.min(frame.current.clientWidth / picture.width, frame.current.clientHeight / picture.height) || 1);
    const sizes = new ResizeObserver(measure);
    sizes.observe(frame.current);
    measure();
    return () => sizes.disconnect();
  }, [picture.id]);
  const whole = () => (document.fullscreenElement ? document.exitFullscreen() : frame.current.requestFullscreen?.());
  useHotkeys([
    { keys: "+", label: say("gallery.zoom_in"), run: () => around(STEP) },
    { keys: "-", label: say("gallery.zoom_out"), run: () => around(1 / STEP) },
    { keys: "0", label: say("gallery.fit"), run: reset },
    { keys: "f", label: say("gallery.full_screen"), run: whole },
  ]);
  return html`<div class="gallery-stage ${scale > 1 ? "zoomed" : ""}" ref=${frame} id="stage">
    <img ref=${image} class="checker ${scale * fit >= 3 ? "pixels" : ""}" id="picture" src=${fileOf(picture.id)} alt=${picture.prompt || say("gallery.untitled")} width=${picture.width} height=${picture.height} draggable=${false}
      style=${{ "--ratio": String(picture.width / picture.height) }} />
    ${hasBefore && html`<${Button} class="gallery-step left" id="viewer-before" label=${say("gallery.before")} onClick=${() => onStep(-1)}><${Icon} name="left" /><//>`}
    ${hasAfter && html`<${Button} class="gallery-step right" id="viewer-after" label=${say("gallery.after")} onClick=${() => onStep(1)}><${Icon} name="right" /><//>`}
    <div class="gallery-zoom"><${Button} small quiet label=${say("gallery.zoom_out")} onClick=${() => around(1 / STEP)}><${Icon} name="minus" /><//>
      <button type="button" class="gallery-scale" id="zoom" title=${say("gallery.fit")} onClick=${reset}>${Math.round(100 * scale * fit)} %</button>
      <${Button} small quiet id="zoom-in" label=${say("gallery.zoom_in")} onClick=${() => around(STEP)}><${Icon} name="plus" /><//>
      <${Button} small quiet id="full-screen" label=${say("gallery.full_screen")} onClick=${whole}><${Icon} name="zoom" /><//></div>
  </div>`;
}

/* Details */

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(say("gallery.copied"));
  } catch {
    toast(say("gallery.not_copied"), { kind: "error" });
  }
}

function Words({ title, name, text, settings }) {
  if (!text) return null;
  return html`<div class="gallery-text"><div class="row"><h3 class="grow">${title}</h3>
      <${Button} small quiet label=${say("gallery.copy")} onClick=${() => copy(text)}><${Icon} name="copy" /><//>
      <${Button} small quiet label=${say("gallery.use_one", { name: title })} id=${`use-${name}`} onClick=${() => useSettings({ request: { [name]: text }, notes: settings.notes }, { only: [name], show: false })}><${Icon} name="brush" /><//></div>
    <p>${text}</p></div>`;
}

function Rows({ picture, settings }) {
  const use = (name, value) => useSettings({ request: { ...settings.painted, ...settings.request, [name]: value }, notes: [] }, { only: [name], show: false });
  return html`<dl class="gallery-rows">${rowsOf(picture, settings).map(([name, value]) => html`<div key=${name}><dt>${labelOf(name)}</dt><dd id=${`value-${name}`}>${valueOf(value)}</dd>
    <${Button} small quiet label=${say("gallery.use_one", { name: labelOf(name) })} id=${`use-${name}`} onClick=${() => use(name, value)}><${Icon} name="brush" /><//></div>`)}</dl>`;
}

function Raw({ id }) {
  const [texts, setTexts] = useState(null);
  const load = async (event) => {
    if (!event.target.open || texts) return;
    try {
      const file = await (await fetch(fileOf(id))).blob();
      setTexts((await api.post("/v1/recipes/read", file)).raw);
    } catch (error) {
      setTexts({ "": explain(error) });
    }
  };
  return html`<details class="gallery-raw" onToggle=${load}><summary>${say("gallery.raw")}</summary>
    ${texts ? Object.entries(texts).map(([name, text]) => html`<div key=${name}><div class="row"><h3 class="grow">${name}</h3><${Button} small quiet label=${say("gallery.copy")} onClick=${() => copy(text)}><${Icon} name="copy" /><//></div><pre tabindex="0">${text}</pre></div>`) : html`<p class="soft">${say("app.loading")}</p>`}</details>`;
}

function Marks({ picture }) {
  const [text, setText] = useState("");
  const add = (event) => {
    event.preventDefault();
    const added = text.split(/[,，、]/).map((part) => part.trim().slice(0, 64)).filter(Boolean);
    if (added.length) store.tag([picture.id], added, []);
    setText("");
  };
  return html`<div class="gallery-marks">
    <form class="gallery-tags" onSubmit=${add} aria-label=${say("gallery.tags")}>${picture.tags.map((tag) => html`<button type="button" key=${tag} class="gallery-tag" aria-label=${say("gallery.remove_tag", { name: tag })} onClick=${() => store.tag([picture.id], [], [tag])}>${tag}<${Icon} name="close" /></button>`)}
      <input id="add-tag" aria-label=${say("gallery.add_tag")} placeholder=${say("gallery.add_tag")} maxlength="64" value=${text} onInput=${(event) => setText(event.target.value)} /></form>
    <select id="on-board" aria-label=${say("gallery.board")} value=${picture.board ?? ""} onChange=${(event) => store.putOn([picture.id], event.target.value)}>
      <option value="">${say("gallery.no_board")}</option>${store.boards.value.map((board) => html`<option key=${board.id} value=${board.id} selected=${board.id === picture.board}>${board.name}</option>`)}</select></div>`;
}

async function paint(request) {
  try {
    await api.post("/v1/jobs", { request });
    toast(say("gallery.painting"), { action: { label: say("nav.paint"), run: () => go("/paint") } });
  } catch (error) {
    toast(explain(error), { kind: "error" });
  }
}

/** Have this picture painted once more, and see what each part of the model does for it. */
async function explained(request) {
  try {
    const job = await api.post("/v1/explanations", { request: { ...request, count: 1 } });
    go(`/explain/${job.id}`);
  } catch (error) {
    await import("../../ui/fields.js").then(({ loadFields }) => loadFields().catch(() => {}));
    toast(explain(error), { kind: "error" });
  }
}

const randomSeed = () => BigInt(crypto.getRandomValues(new Uint32Array(1))[0]);

function Actions({ picture, settings, onDelete }) {
  const { request } = settings ?? {};
  const vary = () => paint({ ...request, count: VARIATIONS, subseed: randomSeed(), subseed_strength: VARIATION_STRENGTH });
  const again = () => { const { seed: _seed, subseed: _subseed, ...others } = request; paint(others); };
  const upscale = () => paint({ ...request, upscale: { ...request.upscale, factor: 2 * (request.upscale?.factor ?? 1) } });
  const part = (id, icon, text, run) => html`<${Button} small id=${id} disabled=${!settings} title=${say(`gallery.${text}_hint`)} onClick=${run}><${Icon} name=${icon} />${say(`gallery.${text}`)}<//>`;
  return html`<div class="gallery-actions" role="toolbar" aria-label=${say("gallery.actions")}>
    <${Button} small kind="primary" id="use-settings" disabled=${!settings} onClick=${() => useSettings(settings)}><${Icon} name="brush" />${say("gallery.use_settings")}<//>
    <a class="button small" id="edit-picture" href=${`/edit/${picture.id}`}><${Icon} name="edit" />${say("gallery.edit")}</a>
    ${part("upscale", "zoom", "upscale", upscale)}${part("vary", "grid", "vary", vary)}${part("again", "again", "again", again)}${part("explain", "eye", "explain", () => explained(request))}
    <span class="gallery-quiet"><a class="button small quiet" id="download" href=${fileOf(picture.id)} download=${`${picture.id}.png`} aria-label=${say("gallery.download")} title=${say("gallery.download")}><${Icon} name="download" /></a>
    <${Button} small quiet id="star" class=${picture.starred ? "gallery-on" : ""} pressed=${picture.starred} label=${say(picture.starred ? "gallery.unstar" : "gallery.star")} onClick=${() => store.star([picture.id], !picture.starred)}><${Icon} name="star" /><//>
    <${Button} small quiet id="delete" kind="danger" label=${say("gallery.delete")} onClick=${onDelete}><${Icon} name="trash" /><//></span></div>`;
}

function useSettingsFor(id) {
  const [settings, setSettings] = useState(null);
  useEffect(() => {
    let current = true;
    setSettings(null);
    settingsOf(id).then((found) => { if (current) setSettings(found); }, (error) => { if (current) toast(explain(error), { kind: "error" }); });
    return () => { current = false; };
  }, [id]);
  return settings;
}

/** The picture of an address: of the list if it is there, else asked for. */
function usePicture(id) {
  const listed = store.pictures.value.find((one) => one.id === id);
  const [own, setOwn] = useState(null);
  const [failed, setFailed] = useState(null);
  useEffect(() => {
    let current = true;
    setFailed(null);
    const ask = () => api.get(`/v1/pictures/${id}`).then((found) => { if (current) setOwn(found); }, (error) => { if (current) setFailed(error); });
    if (!store.pictures.peek().some((one) => one.id === id)) ask();
    const end = on("gallery", ({ ids }) => { if (ids.includes(id)) ask(); });
    return () => { current = false; end(); };
  }, [id]);
  return { picture: listed ?? (own?.id === id ? own : null), failed };
}

/** Which picture the address names now; a key may come before what it shows is drawn. */
const current = () => route.peek().rest[0];
const leave = () => go(`/gallery${store.search.peek()}`);
const show = (one) => go(`/gallery/${one.id}${store.search.peek()}`, { replace: true });

function step(by) {
  const list = store.pictures.peek();
  const at = list.findIndex((one) => one.id === current());
  const next = at >= 0 && list[at + by];
  if (next) show(next);
}

function remove() {
  const id = current();
  const list = store.pictures.peek();
  const at = list.findIndex((one) => one.id === id);
  const next = at >= 0 && (list[at + 1] ?? list[at - 1]);
  store.remove([id]);
  if (next) show(next);
  else leave();
}

export default function Viewer({ id }) {
  const { picture, failed } = usePicture(id);
  const settings = useSettingsFor(id);
  const element = useRef();
  const list = store.pictures.value;
  const at = list.findIndex((one) => one.id === id);
  useEffect(() => element.current?.focus({ preventScroll: true }), [Boolean(picture)]);
  useEffect(() => {
    if (at >= 0 && at >= list.length - NEAR_END) store.more();
    for (const near of [list[at + 1], list[at - 1]]) if (at >= 0 && near) new Image().src = fileOf(near.id);
  }, [id, list.length]);
  const isCurrent = () => current() === id;
  useHotkeys([
    { keys: "ArrowLeft", label: say("gallery.before"), run: () => step(-1) },
    { keys: "ArrowRight", label: say("gallery.after"), run: () => step(1) },
    { keys: "Escape", label: say("gallery.back"), run: leave },
    { keys: "s", label: say("gallery.star"), run: () => picture && isCurrent() && store.star([id], !picture.starred) },
    { keys: "u", label: say("gallery.use_settings"), run: () => settings && isCurrent() && useSettings(settings) },
    { keys: "Delete", label: say("gallery.delete"), run: remove },
  ], [id, picture, settings]);
  if (!picture) {
    return failed ? html`<div class="empty" role="alert" id="picture-gone"><${Icon} name="image" /><h2>${say("gallery.gone")}</h2><p>${failed.status === 404 ? say("gallery.gone_hint") : explain(failed)}</p><${Button} onClick=${leave}>${say("gallery.back")}<//></div>` : html`<p class="loading">${say("app.loading")}</p>`;
  }
  return html`<section class="gallery-close gallery-viewer" id="viewer" ref=${element} tabindex="-1" aria-label=${say("gallery.picture")}>
    <div class="gallery-look"><header class="gallery-close-head"><${Button} quiet id="viewer-close" label=${say("gallery.back")} onClick=${leave}><${Icon} name="left" /><span>${say("nav.gallery")}</span><//>
        <span class="grow"></span>${at >= 0 && html`<span class="soft small-text">${at + 1} / ${store.total.value ?? list.length}</span>`}</header>
      <${Stage} picture=${picture} onStep=${step} hasBefore=${at > 0} hasAfter=${at >= 0 && at < list.length - 1} /></div>
    <aside class="gallery-details" aria-label=${say("gallery.details")}>
      <${Actions} picture=${picture} settings=${settings} onDelete=${remove} />
      ${settings?.notes.length > 0 && html`<ul class="gallery-notes" id="notes">${settings.notes.map((note) => html`<li>${noteText(note)}</li>`)}</ul>`}
      ${settings ? html`<${Words} title=${say("gallery.prompt")} name="prompt" text=${picture.prompt} settings=${settings} />
        <${Words} title=${say("gallery.negative_prompt")} name="negative_prompt" text=${settings.painted.negative_prompt} settings=${settings} />
        <${Rows} picture=${picture} settings=${settings} />` : html`<div class="gallery-text"><p>${picture.prompt}</p></div>`}
      <${Marks} picture=${picture} />
      <p class="soft small-text">${picture.width} × ${picture.height} · ${bytes(picture.bytes)} · ${date(picture.created)} · ${say(`gallery.kind_${picture.kind || "text"}`)}</p>
      <${Raw} key=${id} id=${id} />
    </aside>
  </section>`;
}
