// What is seen of a drawing and moved by hand: the view (zoom, pan), strokes, selections. The browser's compositor lays the
// layers over each other, so that a stroke touches one canvas and zooming none.

import { effect } from "../../app/preact.js";
import { filled } from "./strokes.js";

const SVG = "http://www.w3.org/2000/svg";
const MOST_ZOOM = 32;
const QUICK = 350; // a second finger within so many ms means pinching, and the dab of the first was none
export const STROKES = new Set(["brush", "eraser", "paint"]);
/** What each of the last moves of strokes took in its handler, in ms: for benchmarks. */
export const strokeTimes = [];
const AREAS = new Set(["rectangle", "lasso"]);
const BY_KONVA = new Set(["frame", "move"]);

/** The stage in an element.
 * @param host where it stands
 * @param drawing what it shows
 * @param tools signals `tool`, `brush` {size, hardness, colour}, and what strokes do: `names` for new layers, `picked` */
export class Stage {
  constructor(host, drawing, tools) {
    Object.assign(this, { host, drawing, tools });
    this.view = { x: 0, y: 0, scale: 1 };
    this.pointers = new Map();
    this.gesture = null; // "stroke" | "area" | "pan" | "pinch" | "spent"
    this.board = element("div", "edit-board", host);
    this.grown = element("div", "edit-grown", this.board);
    this.stack = element("div", "edit-stack", this.board);
    this.above = element("div", "edit-above", this.board);
    this.svg = host.appendChild(document.createElementNS(SVG, "svg"));
    this.svg.classList.add("edit-marquee");
    this.outline = this.svg.appendChild(document.createElementNS(SVG, "polygon"));
    this.ring = element("div", "edit-ring", host);
    this.ring.hidden = true;
    this.line = element("div", "edit-split", null);
    this.overlay = null;
    this.stops = [
      effect(() => this.sync(drawing.changed.value)),
      effect(() => this.useTool(tools.tool.value)),
      effect(() => this.showRing(tools.brush.value)),
      effect(() => host.classList.toggle("edit-masks-hidden", !tools.masksShown.value)),
    ];
    const signal = (this.listening = new AbortController()).signal;
    const listen = (name, f, options) => host.addEventListener(name, f, { signal, ...options });
    listen("pointerdown", (event) => this.down(event));
    listen("pointermove", (event) => this.moved(event));
    listen("pointerup", (event) => this.up(event));
    listen("pointercancel", (event) => this.up(event, true));
    listen("pointerleave", () => (this.ring.hidden = true));
    listen("wheel", (event) => this.wheel(event), { passive: false });
    listen("blur", () => host.classList.remove("edit-by-pointer"));
    listen("contextmenu", (event) => event.preventDefault());
    this.sizes = new ResizeObserver(() => this.resized());
    this.sizes.observe(host);
  }

  close() {
    this.stops.forEach((stop) => stop());
    this.listening.abort();
    this.sizes.disconnect();
    this.overlay?.close();
    this.host.replaceChildren();
  }

  // --- what is shown

  sync() {
    const { drawing } = this;
    const wanted = [...drawing.pictures, ...drawing.masks];
    const canvases = wanted.map((layer) => layer.canvas);
    for (const layer of wanted) layer.canvas.classList.toggle("edit-mask", layer.kind === "mask");
    const there = [...this.stack.children];
    if (there.length !== canvases.length || there.some((one, k) => one !== canvases[k])) this.stack.replaceChildren(...canvases);
    for (const layer of wanted) this.place(layer.canvas, layer);
    const { left, top, right, bottom } = drawing.frame;
    const [w, h] = [drawing.width, drawing.height];
    set(this.stack, { width: `${w}px`, height: `${h}px` });
    set(this.grown, { left: `${-left}px`, top: `${-top}px`, width: `${w + left + right}px`, height: `${h + top + bottom}px` });
    this.grown.classList.toggle("edit-plain", !drawing.framed);
    this.board.hidden = drawing.empty;
    if (this.fittedFor !== `${w} ${h}`) {
      this.fittedFor = `${w} ${h}`;
      this.fit();
    }
    this.overlay?.sync();
  }

  place(canvas, { x, y, scaleX, scaleY, rotation, opacity, visible }) {
    const moved = x || y || rotation || scaleX !== 1 || scaleY !== 1;
    set(canvas, {
      transform: moved ? `translate(${x}px, ${y}px) rotate(${rotation}deg) scale(${scaleX}, ${scaleY})` : "",
      opacity: String(opacity), display: visible ? "" : "none",
    });
  }

  /** Lay a canvas over the layers: a preview or a candidate. `split` 0..1 shows the old picture left of it. */
  overlayCanvas(canvas, x = 0, y = 0, split = 0) {
    if (!canvas) return this.above.replaceChildren();
    if (this.above.firstChild !== canvas) this.above.replaceChildren(canvas, this.line);
    this.line.hidden = !split;
    set(this.line, { transform: `translate(${x + split * canvas.width}px, ${y}px)`, height: `${canvas.height}px` });
    set(canvas, { transform: `translate(${x}px, ${y}px)`, clipPath: split ? `inset(0 0 0 ${split * 100}%)` : "" });
  }

  // --- the view

  resized() {
    const { clientWidth, clientHeight } = this.host;
    if (!clientWidth) return;
    const before = this.room;
    this.room = [clientWidth, clientHeight];
    if (!before || this.isFitted) this.fit();
    this.overlay?.sync();
  }

  get box() {
    const { left, top, right, bottom } = this.drawing.frame;
    return { x: -left, y: -top, w: this.drawing.width + left + right, h: this.drawing.height + top + bottom };
  }

  /** Show everything again if a part of it lies outside. */
  fitIfOutside() {
    const { box, view } = this;
    const [left, top] = [box.x * view.scale + view.x, box.y * view.scale + view.y];
    const outside = left < 0 || top < 0 || left + box.w * view.scale > this.host.clientWidth || top + box.h * view.scale > this.host.clientHeight;
    if (outside) this.fit();
  }

  fit() {
    const [roomW, roomH] = [this.host.clientWidth, this.host.clientHeight];
    if (!this.drawing.width || !roomW) return;
    const box = this.box;
    const margin = Math.min(48, roomW / 12);
    const scale = Math.min((roomW - 2 * margin) / box.w, (roomH - 2 * margin) / box.h, 8);
    this.look({ scale, x: roomW / 2 - (box.x + box.w / 2) * scale, y: roomH / 2 - (box.y + box.h / 2) * scale });
    this.isFitted = true;
  }

  look(view) {
    this.isFitted = false;
    this.view = { ...view, x: Math.round(view.x), y: Math.round(view.y) };
    const { x, y, scale } = this.view;
    set(this.board, { transform: `translate(${x}px, ${y}px) scale(${scale})` });
    this.board.classList.toggle("edit-coarse", scale >= 3);
    this.board.style.setProperty("--edit-scale", scale);
    this.showRing(this.tools.brush.peek());
    this.tools.zoom.value = scale;
    this.overlay?.sync();
  }

  zoomAt(factor, x = this.host.clientWidth / 2, y = this.host.clientHeight / 2) {
    const { view } = this;
    const scale = Math.min(MOST_ZOOM, Math.max(0.02, view.scale * factor));
    const ratio = scale / view.scale;
    this.look({ scale, x: x - (x - view.x) * ratio, y: y - (y - view.y) * ratio });
  }

  zoomTo(scale) {
    this.zoomAt(scale / this.view.scale);
  }

  wheel(event) {
    if (this.drawing.empty) return;
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    const speed = event.ctrlKey ? 0.01 : 0.0016;
    const [x, y] = this.at(event);
    this.zoomAt(Math.exp(-event.deltaY * lines * speed), x, y);
  }

  /** An event's place in the host. */
  at(event) {
    // While a pointer is down the page doesn't scroll; else it may have.
    const box = this.pointers.size ? (this.rect ||= this.host.getBoundingClientRect()) : this.host.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  /** A place in the host as one in the drawing. */
  inDrawing([x, y]) {
    return [(x - this.view.x) / this.view.scale, (y - this.view.y) / this.view.scale];
  }

  // --- tools

  useTool(tool) {
    this.cancel();
    this.host.dataset.tool = tool;
    this.showRing(this.tools.brush.peek());
    if (BY_KONVA.has(tool) && !this.overlay) {
      this.loading ||= import("./overlay.js").then(({ makeOverlay }) => makeOverlay(this)).then((made) => {
        this.overlay = made;
        made.sync();
      }, () => (this.loading = null));
    }
    this.overlay?.sync();
  }

  showRing(brush) {
    const size = `${Math.max(3, brush.size * this.view.scale)}px`;
    set(this.ring, { width: size, height: size });
    if (!STROKES.has(this.tools.tool.peek())) this.ring.hidden = true;
  }

  down(event) {
    if (this.drawing.empty) return;
    this.rect = this.host.getBoundingClientRect();
    this.pointers.set(event.pointerId, this.at(event));
    this.host.classList.add("edit-by-pointer");
    this.host.focus({ preventScroll: true });
    if (this.pointers.size === 2) return this.startPinch();
    if (this.pointers.size > 2 || this.gesture) return;
    const tool = this.tools.tool.peek();
    const pan = event.button === 1 || this.tools.space || tool === "hand";
    if (!pan && (event.button !== 0 || BY_KONVA.has(tool))) return;
    event.preventDefault();
    this.host.setPointerCapture(event.pointerId);
    const place = this.at(event);
    if (pan) this.gesture = { kind: "pan", from: place, view: this.view };
    else if (tool === "pick") this.pick(place);
    else if (AREAS.has(tool)) this.gesture = { kind: "area", tool, erase: event.altKey, points: [this.inDrawing(place)] };
    else this.startStroke(tool, place, event);
  }

  startStroke(tool, place, event) {
    const { drawing, tools } = this;
    const brush = tools.brush.peek();
    let layer = null;
    if (tool === "paint") layer = drawing.layerForPaint(tools.names.paint);
    else if (tool === "eraser" && drawing.current?.kind === "paint") layer = drawing.current;
    else layer = drawing.maskForStrokes(tools.names.mask);
    if (layer.kind === "mask") tools.masksShown.value = true;
    if (!layer.visible) drawing.change(layer.id, { visible: true });
    layer = drawing.layer(layer.id);
    this.gesture = { kind: "stroke", since: performance.now() };
    drawing.startStroke(layer, ...this.inDrawing(place), { ...brush, erase: tool === "eraser" }, pressure(event));
  }

  moved(event) {
    const begun = performance.now();
    const place = this.at(event);
    if (event.pointerType !== "touch" && STROKES.has(this.host.dataset.tool) && !this.drawing.empty) {
      this.ring.hidden = false;
      set(this.ring, { transform: `translate(${place[0]}px, ${place[1]}px) translate(-50%, -50%)` });
    }
    if (!this.pointers.has(event.pointerId)) return;
    this.pointers.set(event.pointerId, place);
    const { gesture } = this;
    if (gesture?.kind === "stroke") {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const one of events.length ? events : [event]) {
        this.drawing.strokeTo(...this.inDrawing(this.at(one)), pressure(one));
      }
      strokeTimes.push(performance.now() - begun);
      if (strokeTimes.length > 1000) strokeTimes.shift();
    } else if (gesture?.kind === "area") this.select(gesture, this.inDrawing(place));
    else if (gesture?.kind === "pan") {
      this.look({ ...gesture.view, x: gesture.view.x + place[0] - gesture.from[0], y: gesture.view.y + place[1] - gesture.from[1] });
    } else if (gesture?.kind === "pinch") this.pinch(gesture);
  }

  up(event, cancelled = false) {
    this.pointers.delete(event.pointerId);
    const { gesture } = this;
    if (gesture?.kind === "stroke") {
      if (cancelled) this.drawing.cancelStroke();
      else this.drawing.endStroke();
    } else if (gesture?.kind === "area" && !cancelled) this.cover(gesture);
    // After a pinch nothing is painted until every finger is off.
    if (gesture?.kind === "pinch" && this.pointers.size) this.gesture = { kind: "spent" };
    else if (!this.pointers.size) this.gesture = null;
    this.outline.setAttribute("points", "");
    if (!this.pointers.size) this.rect = null;
  }

  /** Give up the stroke or the area under way; gives whether there was one. */
  cancel() {
    const found = ["stroke", "area"].includes(this.gesture?.kind);
    this.drawing.cancelStroke();
    if (this.gesture) this.gesture = { kind: "spent" };
    this.outline.setAttribute("points", "");
    return found;
  }

  startPinch() {
    const { gesture } = this;
    if (gesture?.kind === "stroke" && performance.now() - gesture.since > QUICK) this.drawing.endStroke();
    else this.drawing.cancelStroke();
    this.outline.setAttribute("points", "");
    this.overlay?.stop();
    const [one, other] = [...this.pointers.values()];
    this.gesture = { kind: "pinch", one, other, view: this.view };
  }

  pinch({ one, other, view }) {
    const [now, then] = [...this.pointers.values()];
    if (!then) return;
    const apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
    const middle = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
    const scale = Math.min(MOST_ZOOM, Math.max(0.02, (view.scale * apart(now, then)) / apart(one, other)));
    const [from, to] = [middle(one, other), middle(now, then)];
    const ratio = scale / view.scale;
    this.look({ scale, x: to[0] - (from[0] - view.x) * ratio, y: to[1] - (from[1] - view.y) * ratio });
  }

  select(area, point) {
    if (area.tool === "lasso") area.points.push(point);
    else {
      const [x, y] = area.points[0];
      area.points = [[x, y], [point[0], y], point, [x, point[1]]];
    }
    const { x, y, scale } = this.view;
    this.outline.setAttribute("points", area.points.map((p) => `${p[0] * scale + x},${p[1] * scale + y}`).join(" "));
  }

  cover({ tool, points, erase }) {
    if (points.length < 3) return;
    const layer = this.drawing.maskForStrokes(this.tools.names.mask);
    this.tools.masksShown.value = true;
    const round = tool === "rectangle" ? points.map((point) => point.map(Math.round)) : points;
    const mapped = round.map(([x, y]) => this.drawing.onLayer(layer, x, y));
    this.drawing.cover(layer, filled(mapped, layer.canvas.width, layer.canvas.height), erase || this.tools.subtract);
  }

  pick(place) {
    const [x, y] = this.inDrawing(place).map(Math.floor);
    const pixel = this.drawing.flat().getContext("2d").getImageData(x, y, 1, 1).data;
    if (pixel[3]) this.tools.picked([...pixel.slice(0, 3)]);
  }
}

function pressure(event) {
  return event.pointerType === "pen" && event.pressure ? Math.max(0.1, event.pressure) : 1;
}

function element(tag, name, parent) {
  const made = document.createElement(tag);
  made.className = name;
  parent?.appendChild(made);
  return made;
}

function set(target, values) {
  Object.assign(target.style, values);
}
