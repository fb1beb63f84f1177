// The Edit view: a canvas with layers and masks, tools at its side, and what is painted anew.

import { html, useEffect, useRef, useState } from "../../app/preact.js";
import { useHotkeys } from "../../app/keys.js";
import { go } from "../../app/router.js";
import { say } from "../../app/words.js";
import { Button, DropZone, Icon } from "../../ui/controls.js";
import { Menu } from "../../ui/dialog.js";
import { Panel } from "./panel.js";
import { Mark, Range } from "./parts.js";
import { Stage } from "./stage.js";
import * as session from "./session.js";

const { brush, candidates, drawing, growing, masksShown, shownPreview, split, subtract, tool, zoom } = session;
const TOOLS = [
  ["brush", "b", "M14.7 5.3 19 9.6 9.5 18H5v-4.5zM13 7l4.5 4.5"],
  ["eraser", "e", "M9 19h10M5.5 14.5l8-8a2 2 0 0 1 2.8 0l2.2 2.2a2 2 0 0 1 0 2.8L11 19H8.5l-3-3a1.1 1.1 0 0 1 0-1.5zM10 10l5 5"],
  ["rectangle", "m", "M5 5h3M10.5 5h3M16 5h3v3M19 10.5v3M19 16v3h-3M13.5 19h-3M8 19H5v-3M5 13.5v-3M5 8V5"],
  ["lasso", "l", "M12 5c4.4 0 8 2.2 8 5s-3.6 5-8 5c-1 0-2-.1-2.9-.3M12 5C7.6 5 4 7.2 4 10c0 1.6 1.2 3 3 4M7 14a1.8 1.8 0 1 0 1.5 3c.3 1.3-.4 2.5-2 3"],
  ["paint", "p", "M12 4s6 6.3 6 10a6 6 0 0 1-12 0c0-3.7 6-10 6-10zM9 14a3 3 0 0 0 3 3"],
  ["pick", "i", "M14 6l4 4M12.5 7.500l4 4M15 4.500a2.1 2.1 0 0 1 3.5 0 2.1 2.1 0 0 1 1 3.500L17 10.5 13.5 7zM14 9l-8 8-1 3 3-1 8-8"],
  ["move", "v", "M12 3v18M3 12h18M12 3 9.5 5.500M12 3l2.5 2.500M12 21l-2.5-2.500M12 21l2.5-2.500M3 12l2.5-2.500M3 12l2.5 2.500M21 12l-2.5-2.500M21 12l-2.5 2.5"],
  ["frame", "f", "M8 8h8v8H8zM12 5V2.500M12 21.500V19M5 12H2.500M21.5 12H19M10.5 4 12 2.5 13.5 4M10.5 20l1.5 1.5 1.5-1.500M4 10.5 2.5 12 4 13.500M20 10.500l1.5 1.5-1.5 1.5"],
  ["hand", "h", "M8 12V6.500a1.5 1.5 0 0 1 3 0V11M11 10V5a1.5 1.5 0 0 1 3 0v6M14 10.500V6.500a1.5 1.5 0 0 1 3 0V14a6 6 0 0 1-6 6c-3 0-4.5-1.5-6-4.500L3.5 12.500a1.4 1.4 0 0 1 2.4-1.400L8 13.5"],
];

const hex = (colour) => `#${colour.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
const rgb = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));

/** Undo and redo: at the tools' end, on phones above the canvas. */
function Steps({ id }) {
  void drawing.changed.value;
  const { done, undone } = drawing.history;
  return html`<${Button} id=${`${id}-undo`} quiet label=${`${say("edit.undo")} (Ctrl+Z)`} disabled=${!done.length} onClick=${() => drawing.undo()}>
      <${Mark} d="M4 9h10a5.5 5.5 0 0 1 0 11H9M4 9l4-4M4 9l4 4" /><//>
    <${Button} id=${`${id}-redo`} quiet label=${`${say("edit.redo")} (Ctrl+Shift+Z)`} disabled=${!undone.length} onClick=${() => drawing.redo()}>
      <${Mark} d="M20 9H10a5.5 5.5 0 0 0 0 11h5M20 9l-4-4M20 9l-4 4" /><//>`;
}

function Tools() {
  return html`<div class="edit-tools" role="toolbar" aria-label=${say("edit.tools")}>
    ${TOOLS.map(([name, key, d]) => html`<${Button} key=${name} id="edit-tool-${name}" quiet pressed=${tool.value === name}
      label=${`${say(`edit.tool.${name}`)} (${key.toUpperCase()})`} onClick=${() => (tool.value = name)}><${Mark} d=${d} /><//>`)}
    <span class="edit-gap"></span>
    <span class="edit-steps"><${Steps} id="edit" /></span>
  </div>`;
}

/** What the tool in hand can be set to. */
function Options() {
  const held = tool.value;
  const now = brush.value;
  const strokes = ["brush", "eraser", "paint"].includes(held);
  const masks = ["brush", "eraser", "rectangle", "lasso"].includes(held);
  const set = (values) => (brush.value = { ...now, ...values });
  void drawing.changed.value;
  return html`<div class="edit-options" role="group" aria-label=${say("edit.options")}>
    ${strokes && html`<${Range} id="edit-size" label=${say("edit.size")} min=${1} max=${512} value=${now.size} unit=" px" onInput=${(size) => set({ size })} />
      <${Range} id="edit-hardness" label=${say("edit.hardness")} min=${0} max=${1} step=${0.05} value=${now.hardness} onInput=${(hardness) => set({ hardness })} />`}
    ${["paint", "pick"].includes(held) && html`<label class="edit-colour"><span>${say("edit.colour")}</span>
      <input id="edit-colour" type="color" value=${hex(now.colour)} onInput=${(event) => set({ colour: rgb(event.target.value) })} /></label>
      ${held === "paint" && html`<${Range} id="edit-opacity" label=${say("edit.opacity")} min=${0.05} max=${1} step=${0.05} value=${now.opacity} onInput=${(opacity) => set({ opacity })} />`}`}
    ${["rectangle", "lasso"].includes(held) && html`<${Button} small id="edit-subtract" pressed=${subtract.value} onClick=${() => (subtract.value = !subtract.value)}>${say("edit.subtract")}<//>`}
    ${masks && html`<div class="edit-mask-actions">
      ${["invert", "grow", "shrink", "clear"].map((action) => html`<${Button} key=${action} small id="edit-mask-${action}" disabled=${drawing.empty}
        onClick=${() => session.maskAction(action)}>${say(`edit.mask.${action}`)}<//>`)}
      <${Button} small id="edit-mask-shown" pressed=${masksShown.value} label=${`${say("edit.mask.shown")} (Q)`} onClick=${() => (masksShown.value = !masksShown.value)}><${Icon} name="eye" /><//></div>`}
    ${held === "frame" && html`<${Sides} />`}
    ${held === "move" && html`<p class="hint">${say("edit.move_hint")}</p>`}
  </div>`;
}

/** The frame in numbers: for keyboards, and for whoever wants exactly 128. */
function Sides() {
  void drawing.changed.value;
  const frame = growing.value ?? drawing.frame;
  return html`<div class="edit-sides">${Object.keys(frame).map((side) => html`<label key=${side}><span>${say(`edit.side.${side}`)}</span>
    <input type="number" id="edit-side-${side}" min="0" max="1024" step="8" value=${frame[side]} disabled=${drawing.empty} onChange=${(event) => {
      const pixels = Math.min(1024, Math.max(0, Math.round(Number(event.target.value) / 8) * 8 || 0));
      event.target.value = String(pixels);
      drawing.setFrame({ ...drawing.frame, [side]: pixels }, null);
    }} /></label>`)}
    <output id="edit-frame-size">${drawing.width + frame.left + frame.right} × ${drawing.height + frame.top + frame.bottom}</output></div>`;
}

function Corner({ stage }) {
  return html`<div class="edit-corner" role="group" aria-label=${say("edit.zoom")}>
    <${Button} small quiet label=${`${say("edit.zoom_out")} (-)`} onClick=${() => stage.current?.zoomAt(1 / 1.25)}><${Icon} name="minus" /><//>
    <${Button} small quiet id="edit-zoom" title=${`${say("edit.zoom_one")} (1)`} onClick=${() => stage.current?.zoomTo(1)}>${Math.round(zoom.value * 100)} %<//>
    <${Button} small quiet label=${`${say("edit.zoom_in")} (+)`} onClick=${() => stage.current?.zoomAt(1.25)}><${Icon} name="plus" /><//>
    <${Button} small quiet id="edit-fit" onClick=${() => stage.current?.fit()}>${say("edit.fit")}<//>
  </div>`;
}

function File() {
  void drawing.changed.value;
  const input = useRef();
  const camera = useRef();
  const chosen = (anew) => (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) session.openFile(file, { anew });
  };
  const adds = useRef(false);
  return html`<div class="edit-file"><span class="edit-steps-above"><${Steps} id="edit-above" />
      <${Button} id="edit-above-generate" small kind="primary" disabled=${drawing.empty || Boolean(session.running.value)} onClick=${session.generate}>${say("edit.generate")}<//></span>
    <${Button} small id="edit-open" onClick=${() => { adds.current = false; input.current.click(); }}><${Icon} name="image" />${say("edit.open")}<//>
    <${Menu} label=${say("edit.more")} items=${[
      { label: say("edit.add_layer"), icon: "plus", run: () => { adds.current = true; input.current.click(); } },
      { label: say("edit.camera"), icon: "image", run: () => camera.current.click() },
      { label: say("edit.from_gallery"), icon: "grid", run: () => go("/gallery") },
      { label: say("edit.download"), icon: "download", run: session.download },
      { label: say("edit.keep"), icon: "upload", run: session.keep },
    ]} />
    <input ref=${input} id="edit-input" type="file" accept="image/*" hidden tabindex="-1" aria-hidden="true" onChange=${(event) => chosen(!adds.current)(event)} />
    <input ref=${camera} type="file" accept="image/*" capture="environment" hidden tabindex="-1" aria-hidden="true" onChange=${chosen(true)} />
  </div>`;
}

function useStage(host, stage) {
  useEffect(() => {
    const tools = {
      tool, brush, zoom, masksShown, space: false, names: { mask: say("edit.layer.mask"), paint: say("edit.layer.paint") },
      get subtract() { return subtract.peek(); },
      picked: (colour) => { brush.value = { ...brush.peek(), colour }; tool.value = "paint"; },
      growing: (frame) => (growing.value = frame),
    };
    const made = (stage.current = new Stage(host.current, drawing, tools));
    const space = (event) => {
      // A button that was clicked keeps the focus, but only a keyboard's focus means it.
      const at = event.target.closest?.("button, input, textarea, select, a, summary, [role=button]");
      if (event.code !== "Space" || (at && (!at.matches("button") || at.matches(":focus-visible")))) return;
      event.preventDefault();
      tools.space = event.type === "keydown";
      host.current.classList.toggle("edit-grabs", tools.space);
    };
    addEventListener("keydown", space);
    addEventListener("keyup", space);
    return () => {
      removeEventListener("keydown", space);
      removeEventListener("keyup", space);
      made.close();
      stage.current = null;
      if (session.restored.peek()) session.store();
    };
  }, []);
  const chosen = candidates.value;
  const preview = shownPreview.value;
  const share = split.value;
  useEffect(() => {
    const shown = chosen ? { canvas: chosen.list[chosen.index].canvas, frame: chosen.frame } : preview;
    stage.current.overlayCanvas(shown?.canvas, -(shown?.frame.left ?? 0), -(shown?.frame.top ?? 0), chosen ? share : 0);
  }, [chosen, preview, share]);
  void drawing.changed.value;
  useEffect(() => { growing.value = null; }, [drawing.changed.value]);
}

function useEditKeys(stage) {
  const nudge = (x, y) => () => {
    const layer = drawing.current;
    if (tool.peek() === "move" && layer && layer.kind !== "mask") drawing.change(layer.id, { x: layer.x + x, y: layer.y + y }, "move");
  };
  useHotkeys([
    ...TOOLS.map(([name, key]) => ({ keys: key, label: say(`edit.tool.${name}`), run: () => (tool.value = name) })),
    { keys: "q", label: say("edit.mask.shown"), run: () => (masksShown.value = !masksShown.value) },
    { keys: "Space", label: say("edit.space"), run: () => {} }, // useStage listens for it
    { keys: "[", label: say("edit.smaller"), run: () => session.resizeBrush(1 / 1.15) },
    { keys: "]", label: say("edit.larger"), run: () => session.resizeBrush(1.15) },
    { keys: "Ctrl+z", label: say("edit.undo"), run: (event) => (event.shiftKey ? drawing.redo() : drawing.undo()) },
    { keys: "Ctrl+Shift+z", label: say("edit.redo"), run: () => drawing.redo() },
    { keys: "Ctrl+y", run: () => drawing.redo() },
    { keys: "+", run: () => stage.current?.zoomAt(1.25) },
    { keys: "=", label: say("edit.zoom_in"), run: () => stage.current?.zoomAt(1.25) },
    { keys: "-", label: say("edit.zoom_out"), run: () => stage.current?.zoomAt(1 / 1.25) },
    { keys: "0", label: say("edit.fit"), run: () => stage.current?.fit() },
    { keys: "1", label: say("edit.zoom_one"), run: () => stage.current?.zoomTo(1) },
    { keys: "ArrowLeft", run: nudge(-1, 0) }, { keys: "ArrowRight", run: nudge(1, 0) },
    { keys: "ArrowUp", run: nudge(0, -1) }, { keys: "ArrowDown", run: nudge(0, 1) },
    { keys: "Escape", label: say("edit.stop"), run: () => stage.current?.cancel() || session.cancel() },
    { keys: "Ctrl+Enter", label: say("edit.generate"), inFields: true, run: () => session.generate() },
  ], []);
}

export default function Edit({ route }) {
  const host = useRef();
  const stage = useRef(null);
  const [over, setOver] = useState(false);
  useStage(host, stage);
  useEditKeys(stage);
  const wanted = route.rest[0];
  useEffect(() => {
    session.restore().then(() => {
      if (!wanted) return;
      session.openPicture(wanted);
      // What is on the canvas from now on is no longer that picture: a reload must not open it again.
      go("/edit", { replace: true });
    });
  }, [wanted]);
  useEffect(() => {
    const pasted = (event) => {
      const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
      if (file) {
        event.preventDefault();
        session.openFile(file);
      }
    };
    addEventListener("paste", pasted);
    return () => removeEventListener("paste", pasted);
  }, []);
  const dropped = (event) => {
    event.preventDefault();
    setOver(false);
    const [file] = event.dataTransfer.files;
    if (file) session.openFile(file);
  };
  void drawing.changed.value;
  const masked = drawing.masks.length;
  return html`<h1 class="visually-hidden">${say("nav.edit")}</h1><div class="edit">
    <${Tools} />
    <section class="edit-middle" aria-label=${say("edit.canvas")}>
      <div class="edit-head"><${Options} /><${File} /></div>
      <div class="edit-room ${over ? "edit-over" : ""}" onDragOver=${(event) => { event.preventDefault(); setOver(true); }}
          onDragLeave=${() => setOver(false)} onDrop=${dropped}>
        <div ref=${host} id="edit-stage" class="edit-stage" tabindex="0" role="application" aria-label=${say("edit.stage", { n: drawing.pictures.length, masks: masked })}></div>
        ${drawing.empty && session.restored.value && html`<${DropZone} id="edit-drop" class="edit-drop" label=${say("edit.drop")} onFiles=${([file]) => session.openFile(file)}>
          <${Icon} name="image" /><strong>${say("edit.drop")}</strong><span>${say("edit.drop_hint")}</span><//>`}
        ${!drawing.empty && html`<${Corner} stage=${stage} />`}
      </div>
    </section>
    <${Panel} />
  </div>`;
}

