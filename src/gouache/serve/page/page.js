// Keys, the large view of a picture, and the dragged frame of an outpainting.
"use strict";

const visible = (id) => {
  const button = document.getElementById(id);
  return button && button.offsetParent !== null && !button.disabled ? button : null;
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    const button = visible("paint-button") || visible("edit-button");
    if (button) {
      event.preventDefault();
      // Gradio takes a field's text when the field changes; waiting makes sure that it has.
      setTimeout(() => button.click(), 150);
    }
  }
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    const button = visible("cancel-button") || visible("edit-cancel-button");
    if (button) button.click();
  }
});

// Signed out elsewhere, or the token was revoked: what stands on the page is nobody's to use any longer.
const plainFetch = window.fetch;
window.fetch = async (...asked) => {
  const answer = await plainFetch(...asked);
  if (answer.status === 401 && new URL(answer.url).origin === location.origin) location.assign("/login");
  return answer;
};

const isChinese = () => navigator.language.toLowerCase().startsWith("zh");

const show = (link) => {
  const dialog = document.createElement("dialog");
  dialog.className = "g-large";
  const image = document.createElement("img");
  image.src = link.href;
  image.alt = link.querySelector("img")?.alt || "";
  const save = document.createElement("a");
  save.href = link.href;
  save.download = link.dataset.name || "picture.png";
  save.textContent = isChinese() ? "下载" : "Download";
  const close = document.createElement("button");
  close.textContent = isChinese() ? "关闭" : "Close";
  close.onclick = () => dialog.close();
  const bar = document.createElement("nav");
  bar.append(save, close);
  dialog.append(image, bar);
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
};

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-large]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  show(link);
});

// --- The frame: the picture inside its new canvas. The four number fields are the truth.
const SIDES = ["left", "right", "top", "bottom"];
const field = (side) => document.querySelector(`#outpaint-${side} input`);
const border = (side) => Math.max(0, Math.round(Number(field(side)?.value) || 0));

const draw = (frame) => {
  const [width, height] = [Number(frame.dataset.width), Number(frame.dataset.height)];
  const room = [frame.clientWidth - 64, frame.clientHeight - 56];
  if (!width || room[0] <= 0) return;
  const grown = Object.fromEntries(SIDES.map((side) => [side, border(side)]));
  const all = [width + grown.left + grown.right, height + grown.top + grown.bottom];
  // While a handle is held the scale stays, so that the frame follows the pointer.
  const scale = Number(frame.dataset.held) || Math.min(room[0] / all[0], room[1] / all[1], room[1] / height * 0.72);
  frame.dataset.scale = scale;
  const size = all.map((side) => side * scale);
  const at = [(frame.clientWidth - size[0]) / 2, (frame.clientHeight - size[1]) / 2];
  const put = (part, x, y, w, h) =>
    Object.assign(part.style, { left: `${x}px`, top: `${y}px`, width: `${w}px`, height: `${h}px` });
  put(frame.querySelector(".g-new"), ...at, ...size);
  put(frame.querySelector(".g-old"), at[0] + grown.left * scale, at[1] + grown.top * scale, width * scale, height * scale);
  const middle = [at[0] + size[0] / 2, at[1] + size[1] / 2];
  const places = { left: [at[0], middle[1]], right: [at[0] + size[0], middle[1]], top: [middle[0], at[1]], bottom: [middle[0], at[1] + size[1]] };
  for (const side of SIDES) {
    const handle = frame.querySelector(`[data-side=${side}]`);
    Object.assign(handle.style, { left: `${places[side][0]}px`, top: `${places[side][1]}px` });
  }
  frame.querySelector("output").textContent = `${all[0]} × ${all[1]}`;
};

const drawAll = () => document.querySelectorAll(".g-frame").forEach(draw);

const grow = (side, pixels) => {
  const input = field(side);
  if (!input) return;
  const value = String(Math.min(1024, Math.max(0, Math.round(pixels / 8) * 8)));
  if (input.value === value) return;
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
};

document.addEventListener("input", (event) => {
  if (event.target.closest?.("[id^=outpaint-]")) drawAll();
});
addEventListener("resize", drawAll);
new MutationObserver((changes) => {
  if (changes.some((change) => [...change.addedNodes].some((node) => node.nodeType === 1 && (node.matches(".g-frame") || node.querySelector(".g-frame"))))) {
    requestAnimationFrame(drawAll);
  }
}).observe(document.documentElement, { childList: true, subtree: true });

document.addEventListener("pointerdown", (event) => {
  const handle = event.target.closest?.(".g-frame [data-side]");
  if (!handle) return;
  event.preventDefault();
  const frame = handle.closest(".g-frame");
  const side = handle.dataset.side;
  const from = { at: [event.clientX, event.clientY], pixels: border(side) };
  frame.dataset.held = frame.dataset.scale;
  // Both edges of a centred frame move, hence the factor of two.
  const move = (to) => {
    const delta = side === "left" ? from.at[0] - to.clientX : side === "right" ? to.clientX - from.at[0]
      : side === "top" ? from.at[1] - to.clientY : to.clientY - from.at[1];
    grow(side, from.pixels + (2 * delta) / Number(frame.dataset.held));
  };
  const end = () => {
    removeEventListener("pointermove", move);
    delete frame.dataset.held;
    drawAll();
  };
  addEventListener("pointermove", move);
  addEventListener("pointerup", end, { once: true });
});

document.addEventListener("keydown", (event) => {
  const side = event.target.dataset?.side;
  const steps = { ArrowLeft: side === "left" ? 8 : -8, ArrowRight: side === "left" ? -8 : 8, ArrowUp: side === "top" ? 8 : -8, ArrowDown: side === "top" ? -8 : 8 };
  if (side && event.key in steps) {
    event.preventDefault();
    grow(side, border(side) + steps[event.key]);
  }
});
