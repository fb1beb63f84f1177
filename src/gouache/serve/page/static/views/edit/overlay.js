// Handles above the drawing, by Konva: edges of the frame that grow the picture, and a box that moves, scales and turns a
// layer. Loaded when one of the two tools is taken up for the first time.

import { STEP } from "./drawing.js";

export const MOST = 1024; // pixels on one side
const SIDES = { left: [-1, 0], right: [1, 0], top: [0, -1], bottom: [0, 1] };

async function konva() {
  if (!globalThis.Konva) await import("../../vendor/konva.min.js");
  return globalThis.Konva;
}

export async function makeOverlay(stage) {
  return new Overlay(await konva(), stage);
}

class Overlay {
  constructor(Konva, stage) {
    this.stage = stage;
    this.holder = stage.host.appendChild(document.createElement("div"));
    this.holder.className = "edit-overlay";
    this.paper = new Konva.Stage({ container: this.holder, width: 1, height: 1 });
    this.layer = new Konva.Layer();
    this.paper.add(this.layer);
    const accent = getComputedStyle(stage.host).caretColor;
    this.edges = new Konva.Rect({ stroke: accent, strokeWidth: 1.5, dash: [6, 4], listening: false });
    this.layer.add(this.edges);
    this.handles = {};
    for (const [side, [x]] of Object.entries(SIDES)) {
      const handle = new Konva.Rect({
        width: 36, height: 8, offsetX: 18, offsetY: 4, cornerRadius: 4, rotation: x ? 90 : 0, fill: accent, stroke: "#fff",
        strokeWidth: 1.5, hitStrokeWidth: 36, draggable: true, name: side,
      });
      handle.on("mouseenter", () => (this.holder.style.cursor = x ? "ew-resize" : "ns-resize"));
      handle.on("mouseleave", () => (this.holder.style.cursor = ""));
      handle.on("dragstart", () => (this.before = { ...stage.drawing.frame }));
      handle.on("dragmove", () => this.grow(side, handle));
      handle.on("dragend", () => this.grown());
      this.handles[side] = handle;
      this.layer.add(handle);
    }
    this.group = new Konva.Group();
    this.ghost = new Konva.Rect({ draggable: true, fill: "rgba(0,0,0,0.001)" });
    this.group.add(this.ghost);
    this.turner = new Konva.Transformer({
      nodes: [this.ghost], anchorSize: matchMedia("(pointer: coarse)").matches ? 20 : 12, anchorCornerRadius: 3,
      borderStroke: accent, anchorStroke: accent, rotationSnaps: [0, 90, 180, 270], flipEnabled: false,
    });
    this.ghost.on("dragmove transform", () => this.follow(false));
    this.ghost.on("dragend transformend", () => this.follow(true));
    this.layer.add(this.group, this.turner);
  }

  close() {
    this.paper.destroy();
    this.holder.remove();
  }

  stop() {
    for (const node of [...Object.values(this.handles), this.ghost]) if (node.isDragging()) node.stopDrag();
    if (this.turner.isTransforming()) this.turner.stopTransform();
  }

  sync() {
    const { stage } = this;
    const { drawing, view, host } = stage;
    const tool = host.dataset.tool;
    this.holder.hidden = drawing.empty || !["frame", "move"].includes(tool);
    if (this.holder.hidden) return;
    if (this.paper.width() !== host.clientWidth || this.paper.height() !== host.clientHeight) {
      this.paper.size({ width: host.clientWidth, height: host.clientHeight });
    }
    const frame = tool === "frame";
    const box = stage.box;
    const [x, y] = [box.x * view.scale + view.x, box.y * view.scale + view.y];
    const [w, h] = [box.w * view.scale, box.h * view.scale];
    this.edges.setAttrs({ x, y, width: w, height: h, visible: frame });
    for (const [side, [dx, dy]] of Object.entries(SIDES)) {
      const handle = this.handles[side];
      handle.visible(frame);
      if (!handle.isDragging()) handle.position({ x: x + (w * (1 + dx)) / 2, y: y + (h * (1 + dy)) / 2 });
    }
    const layer = drawing.current;
    const moves = !frame && layer && layer.kind !== "mask" && layer.visible;
    this.group.visible(Boolean(moves));
    this.turner.visible(Boolean(moves));
    this.group.setAttrs({ x: view.x, y: view.y, scaleX: view.scale, scaleY: view.scale });
    if (moves && !this.ghost.isDragging() && !this.turner.isTransforming()) {
      const { x: left, y: top, scaleX, scaleY, rotation } = layer;
      this.ghost.setAttrs({ x: left, y: top, scaleX, scaleY, rotation, width: layer.canvas.width, height: layer.canvas.height });
      this.turner.forceUpdate();
    }
    this.layer.batchDraw();
  }

  grow(side, handle) {
    const { stage } = this;
    const { drawing, view } = stage;
    const [dx, dy] = SIDES[side];
    const edge = dx ? (dx < 0 ? view.x : view.x + drawing.width * view.scale) : dy < 0 ? view.y : view.y + drawing.height * view.scale;
    const out = ((dx ? handle.x() : handle.y()) - edge) * (dx + dy);
    const pixels = Math.min(MOST, Math.max(0, Math.round(out / view.scale / STEP) * STEP));
    const fixed = edge + pixels * view.scale * (dx + dy);
    const box = stage.box;
    handle.position(dx ? { x: fixed, y: (box.y + box.h / 2) * view.scale + view.y } : { x: (box.x + box.w / 2) * view.scale + view.x, y: fixed });
    drawing.frame = Object.freeze({ ...drawing.frame, [side]: pixels });
    stage.sync();
    stage.tools.growing(drawing.frame);
  }

  grown() {
    const { drawing } = this.stage;
    const wanted = drawing.frame;
    drawing.frame = Object.freeze(this.before);
    drawing.setFrame(wanted, null);
    this.stage.sync();
    this.stage.fitIfOutside();
  }

  follow(finished) {
    const { stage, ghost } = this;
    const layer = stage.drawing.current;
    // Whole pixels while nothing is scaled or turned: so every pixel stays what it is.
    const values = {
      x: Math.round(ghost.x()), y: Math.round(ghost.y()), scaleX: ghost.scaleX(), scaleY: ghost.scaleY(), rotation: ghost.rotation(),
    };
    stage.place(layer.canvas, { ...layer, ...values });
    if (finished) stage.drawing.change(layer.id, values);
  }
}
