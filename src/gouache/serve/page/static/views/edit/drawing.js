// The drawing: layers of pixels, masks, the frame, and every change to them as a step that can be undone.

import { signal } from "../../app/preact.js";
import { History } from "./history.js";
import { cutOut, extent, joined, profile, putBack, stain, stroke, tint } from "./strokes.js";

export const MASK_COLOURS = [[225, 29, 72], [37, 99, 235], [22, 163, 74], [217, 119, 6], [147, 51, 234]];
export const NO_FRAME = Object.freeze({ left: 0, top: 0, right: 0, bottom: 0 });
export const STEP = 8;

export function newCanvas(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

const pixelsOf = (canvas) => canvas.getContext("2d", { willReadFrequently: true });
const newId = () => crypto.getRandomValues(new Uint32Array(2)).join("-");
const bytesOf = (layer) => layer.canvas.width * layer.canvas.height * 4 + (layer.data?.length || 0);

export class Drawing {
  constructor() {
    this.width = 0;
    this.height = 0;
    this.frame = NO_FRAME;
    this.layers = []; // the lowest first; masks among them are shown above everything
    this.active = null;
    this.history = new History();
    this.changed = signal(0); // counts changes of structure: layers, frame, sizes
    this.looks = signal(0); // counts changes of what is seen of the pictures, masks aside
    this.touched = new Set(); // layers whose pixels are not stored yet
    this.under = null; // the stroke under way
  }

  get empty() {
    return !this.layers.length;
  }

  get current() {
    return this.layer(this.active);
  }

  get pictures() {
    return this.layers.filter((layer) => layer.kind !== "mask");
  }

  get masks() {
    return this.layers.filter((layer) => layer.kind === "mask");
  }

  get framed() {
    const { left, top, right, bottom } = this.frame;
    return left + top + right + bottom > 0;
  }

  layer(id) {
    return this.layers.find((layer) => layer.id === id) || null;
  }

  // --- steps

  state() {
    const { width, height, frame, active } = this;
    return { width, height, frame, active, layers: this.layers.map((layer) => ({ ...layer })) };
  }

  restore(state) {
    Object.assign(this, state, { layers: state.layers.map((layer) => ({ ...layer })) });
    for (const layer of this.layers) this.touched.add(layer.id);
    this.looks.value++;
    this.changed.value++;
  }

  /** Change the structure in one step. Layers are replaced, never changed in place, apart from their pixels. */
  step(change, key) {
    const before = this.state();
    change();
    const after = this.state();
    const kept = new Set(before.layers.map((layer) => layer.canvas));
    const left = new Set(after.layers.map((layer) => layer.canvas));
    const bytes = [...before.layers.filter((one) => !left.has(one.canvas)), ...after.layers.filter((one) => !kept.has(one.canvas))]
      .reduce((sum, layer) => sum + bytesOf(layer), 1024);
    this.history.add({ key, bytes, undo: () => this.restore(before), redo: () => this.restore(after) });
    this.looks.value++;
    this.changed.value++;
  }

  undo() {
    this.cancelStroke();
    return this.history.undo();
  }

  redo() {
    this.cancelStroke();
    return this.history.redo();
  }

  // --- layers

  made(kind, values = {}) {
    const mask = kind === "mask";
    const width = values.canvas?.width || this.width;
    const height = values.canvas?.height || this.height;
    const layer = {
      id: newId(), kind, name: "", visible: true, opacity: mask ? 0.5 : 1, x: 0, y: 0, scaleX: 1, scaleY: 1, rotation: 0,
      canvas: newCanvas(width, height), ...values,
    };
    if (mask) Object.assign(layer, { data: new Uint8Array(width * height), prompt: "", weight: 1, anew: true,
      colour: MASK_COLOURS[this.masks.length % MASK_COLOURS.length], ...values });
    return layer;
  }

  add(kind, values) {
    const layer = this.made(kind, values);
    this.touched.add(layer.id);
    this.step(() => {
      const at = this.layers.findIndex((one) => one.id === this.active);
      this.layers = this.layers.toSpliced(at < 0 || kind === "mask" ? this.layers.length : at + 1, 0, layer);
      this.active = layer.id;
    });
    return layer;
  }

  change(id, values, key) {
    this.step(() => {
      this.layers = this.layers.map((layer) => (layer.id === id ? { ...layer, ...values } : layer));
    }, key && `${id} ${key}`);
  }

  remove(id) {
    this.step(() => {
      this.layers = this.layers.filter((layer) => layer.id !== id);
      if (this.active === id) this.active = this.pictures.at(-1)?.id ?? null;
    });
  }

  move(id, by) {
    const layer = this.layer(id);
    const alike = this.layers.filter((one) => (one.kind === "mask") === (layer.kind === "mask"));
    const other = alike[alike.indexOf(layer) + by];
    if (!other) return;
    this.step(() => {
      const [i, j] = [this.layers.indexOf(layer), this.layers.indexOf(other)];
      this.layers = this.layers.with(i, other).with(j, layer);
    });
  }

  select(id) {
    this.active = id;
    this.changed.value++;
  }

  setFrame(frame, key = "frame") {
    this.step(() => {
      this.frame = Object.freeze({ ...frame });
    }, key);
  }

  /** Begin anew with a picture; the drawing before comes back by undo. */
  open(canvas, values) {
    this.cancelStroke();
    this.step(() => {
      Object.assign(this, { width: canvas.width, height: canvas.height, frame: NO_FRAME, layers: [] });
      const layer = this.made("picture", { canvas, ...values });
      this.layers = [layer];
      this.active = layer.id;
      this.touched.add(layer.id);
    });
  }

  /** Put a finished picture on top; `grown` is the frame that it was painted for, which the drawing then takes over. */
  accept(canvas, values, grown = NO_FRAME, hidden = false) {
    this.step(() => {
      this.grow(grown);
      if (hidden) this.layers = this.layers.map((one) => (one.kind === "mask" ? one : { ...one, visible: false }));
      const layer = this.made("picture", { canvas, ...values });
      const top = this.layers.findLastIndex((one) => one.kind !== "mask");
      this.layers = this.layers.toSpliced(top + 1, 0, layer);
      this.active = layer.id;
      this.touched.add(layer.id);
    });
  }

  grow({ left, top, right, bottom }) {
    if (!(left + top + right + bottom)) return;
    this.width += left + right;
    this.height += top + bottom;
    this.frame = NO_FRAME;
    this.layers = this.layers.map((layer) => {
      this.touched.add(layer.id);
      const plain = layer.scaleX === 1 && layer.scaleY === 1 && !layer.rotation && !layer.x && !layer.y;
      if (layer.kind === "picture" || !plain) return { ...layer, x: layer.x + left, y: layer.y + top };
      const canvas = newCanvas(this.width, this.height);
      if (layer.kind === "mask") {
        const data = new Uint8Array(this.width * this.height);
        putBack(data, this.width, { x: left, y: top, w: layer.canvas.width, h: layer.canvas.height }, layer.data);
        const larger = { ...layer, canvas, data };
        show(larger, { x: 0, y: 0, w: this.width, h: this.height });
        return larger;
      }
      pixelsOf(canvas).drawImage(layer.canvas, left, top);
      return { ...layer, canvas };
    });
  }

  // --- pixels

  /** Where a point of the drawing lies on a layer. */
  onLayer(layer, x, y) {
    const angle = (-layer.rotation * Math.PI) / 180;
    const [dx, dy] = [x - layer.x, y - layer.y];
    return [(dx * Math.cos(angle) - dy * Math.sin(angle)) / layer.scaleX,
      (dx * Math.sin(angle) + dy * Math.cos(angle)) / layer.scaleY];
  }

  /** Begin a stroke on a mask or a painted layer. `brush`: size, hardness, erase, colour [r, g, b]. */
  startStroke(layer, x, y, brush, pressure = 1) {
    const { width, height } = layer.canvas;
    const scale = Math.abs(layer.scaleX * layer.scaleY) ** 0.5;
    this.under = {
      layer, brush, width, height, scale,
      before: layer.data ? Uint8Array.from(layer.data) : pixelsOf(layer.canvas).getImageData(0, 0, width, height).data,
      cover: new Uint8Array(width * height), box: null, last: this.onLayer(layer, x, y), started: performance.now(),
    };
    this.strokeTo(x, y, pressure);
  }

  strokeTo(x, y, pressure = 1) {
    const under = this.under;
    if (!under) return;
    const { layer, brush, width, height } = under;
    const to = this.onLayer(layer, x, y);
    const size = Math.max(1, brush.size * pressure) / under.scale;
    if (under.size !== size) Object.assign(under, { size, shape: profile(size / 2, brush.hardness) });
    const box = stroke(under.cover, width, height, ...under.last, ...to, under.shape);
    under.last = to;
    if (!box) return;
    under.box = joined(under.box, box);
    this.lay(under, box);
  }

  lay({ layer, before, cover, width, brush }, box) {
    if (layer.data) {
      stain(layer.data, before, cover, width, box, brush.erase);
      show(layer, box);
    } else {
      const made = tint(before, cover, width, box, brush.erase ? null : brush.colour, brush.opacity ?? 1);
      pixelsOf(layer.canvas).putImageData(new ImageData(made, box.w, box.h), box.x, box.y);
    }
  }

  endStroke() {
    const under = this.under;
    this.under = null;
    if (!under?.box) return;
    const { layer, before, width, box } = under;
    this.pixelStep(layer, box, layer.data ? cutOut(before, width, box) : cutOut4(before, width, box));
  }

  cancelStroke() {
    const under = this.under;
    this.under = null;
    if (!under?.box) return;
    const { layer, before, width, box } = under;
    putPixels(layer, box, layer.data ? cutOut(before, width, box) : cutOut4(before, width, box));
  }

  pixelStep(layer, box, before) {
    const after = layer.data ? cutOut(layer.data, layer.canvas.width, box) : pixelsOf(layer.canvas).getImageData(box.x, box.y, box.w, box.h).data;
    const put = (part) => {
      const now = this.layer(layer.id);
      putPixels(now, box, part);
      this.pixelsChanged(now);
    };
    this.history.add({ bytes: before.length + after.length + 256, undo: () => put(before), redo: () => put(after) });
    this.pixelsChanged(layer);
  }

  pixelsChanged(layer) {
    this.touched.add(layer.id);
    if (layer.kind !== "mask") this.looks.value++;
    this.changed.value++;
  }

  /** A mask as a whole made anew by `make(old, width, height)`, or an area added to it or taken away. */
  remask(layer, make) {
    const { width, height } = layer.canvas;
    const before = Uint8Array.from(layer.data);
    const box = { x: 0, y: 0, w: width, h: height };
    layer.data.set(make(before, width, height));
    show(layer, box);
    this.pixelStep(layer, box, before);
  }

  cover(layer, cover, erase) {
    this.remask(layer, (old, width, height) => {
      const made = Uint8Array.from(old);
      stain(made, old, cover, width, { x: 0, y: 0, w: width, h: height }, erase);
      return made;
    });
  }

  /** The mask that strokes go to: the active one, else the topmost; made if there is none. */
  maskForStrokes(name) {
    if (this.current?.kind === "mask") return this.current;
    return this.masks.at(-1) || this.add("mask", { name });
  }

  layerForPaint(name) {
    if (this.current?.kind === "paint") return this.current;
    return this.add("paint", { name });
  }

  /** Everything that is brushed over, in one mask of the drawing's size; null if nothing is. */
  brushed() {
    const found = this.masks.filter((layer) => layer.visible && layer.anew && extent(layer.data, this.width, this.height));
    if (!found.length) return null;
    const made = new Uint8Array(this.width * this.height);
    for (const { data } of found) for (let k = 0; k < made.length; k++) if (data[k] > made[k]) made[k] = data[k];
    return made;
  }

  /** Masks with prompts of their own. */
  prompted() {
    return this.masks.filter((layer) => layer.visible && layer.prompt.trim() && extent(layer.data, this.width, this.height));
  }

  /** All visible pictures as one canvas; `frame` adds a border, filled by repeating the outermost pixels. */
  flat(frame = NO_FRAME) {
    const { left, top, right, bottom } = frame;
    const [w, h] = [this.width, this.height];
    const canvas = new OffscreenCanvas(w, h);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    for (const layer of this.pictures) {
      if (!layer.visible) continue;
      context.setTransform(1, 0, 0, 1, layer.x, layer.y);
      context.rotate((layer.rotation * Math.PI) / 180);
      context.scale(layer.scaleX, layer.scaleY);
      context.globalAlpha = layer.opacity;
      context.drawImage(layer.canvas, 0, 0);
    }
    if (!(left + top + right + bottom)) return canvas;
    const larger = new OffscreenCanvas(w + left + right, h + top + bottom);
    const border = larger.getContext("2d", { willReadFrequently: true });
    border.imageSmoothingEnabled = false;
    const columns = [[0, 1, 0, left], [0, w, left, w], [w - 1, 1, left + w, right]];
    const rows = [[0, 1, 0, top], [0, h, top, h], [h - 1, 1, top + h, bottom]];
    for (const [sx, sw, dx, dw] of columns) {
      for (const [sy, sh, dy, dh] of rows) if (dw && dh) border.drawImage(canvas, sx, sy, sw, sh, dx, dy, dw, dh);
    }
    return larger;
  }

  /** The file that a lone, unchanged picture was opened from: it goes up as it is, transparent pixels' colours too. */
  untouchedFile() {
    const seen = this.pictures.filter((layer) => layer.visible);
    const [only] = seen;
    const same = seen.length === 1 && only.file && only.opacity === 1 && !only.x && !only.y && !only.rotation &&
      only.scaleX === 1 && only.scaleY === 1 && only.canvas.width === this.width && only.canvas.height === this.height;
    return same ? only.file : null;
  }
}

/** Draw a mask's bytes in its colour. */
export function show(layer, box) {
  const width = layer.canvas.width;
  const image = new ImageData(box.w, box.h);
  // Red, green and blue of every pixel in one word, alpha in the highest byte: canvases are little-endian everywhere.
  const words = new Uint32Array(image.data.buffer);
  const [r, g, b] = layer.colour;
  const colour = r | (g << 8) | (b << 16);
  let to = 0;
  for (let y = box.y; y < box.y + box.h; y++) {
    for (let k = y * width + box.x, end = k + box.w; k < end; k++) words[to++] = (layer.data[k] << 24) | colour;
  }
  pixelsOf(layer.canvas).putImageData(image, box.x, box.y);
}

function putPixels(layer, box, part) {
  if (layer.data) {
    putBack(layer.data, layer.canvas.width, box, part);
    show(layer, box);
  } else pixelsOf(layer.canvas).putImageData(new ImageData(Uint8ClampedArray.from(part), box.w, box.h), box.x, box.y);
}

function cutOut4(data, width, box) {
  return new Uint8ClampedArray(cutOut(data, width * 4, { x: box.x * 4, y: box.y, w: box.w * 4, h: box.h }));
}
