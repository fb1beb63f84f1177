// The prompt's editor: grows with its text, counts tokens, changes weights by keys, and completes names.
import { html, useEffect, useId, useRef, useSignal, useSignalEffect } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { paintRequest } from "../../app/state.js";
import { say } from "../../app/words.js";
import { facts, field, setFields, wrong } from "./session.js";

const STEP = 0.1;
const NETWORK_STEP = 0.05;
const BETWEEN_WORDS = /[\s.,\\/!?%^*;:{}=`~()[\]<>|，。；：！？、（）“”]/;
const NETWORK = /<(lora|lyco|hypernet):([^:<>]+)(?::(-?\d*\.?\d+))?([^<>]*)>/g;
const TOKENS_MILLISECONDS = 300;
const COMPLETE_MILLISECONDS = 120;
const LISTED = 8;
/** What a name may begin with: at least two letters, `<` or `__`. */
const BEGUN = /(?:<[^<>\n]*|__[\p{L}\p{N}_/-]*|(?<![\p{L}\p{N}_-])[\p{L}\p{N}_-]{2,})$/u;
const LONGEST_BEGUN = 100;
const MOST_COUNTED = 20_000;

const rounded = (value) => String(Number(value.toFixed(2)));

/** The block between two brackets around a place, as {from, to}; null for none. */
function blockAround(text, at, open, close) {
  let depth = 0;
  let from = -1;
  for (let k = at - 1; k >= 0 && from < 0; k -= 1) {
    if (text[k] === close) depth += 1;
    else if (text[k] === open && depth === 0) from = k;
    else if (text[k] === open) depth -= 1;
  }
  if (from < 0) return null;
  depth = 0;
  for (let k = from; k < text.length; k += 1) {
    if (text[k] === open) depth += 1;
    if (text[k] === close) depth -= 1;
    if (depth === 0) return { from, to: k + 1 };
  }
  return null;
}

/**
 * What changing a weight makes of a text: `(word:1.1)` around the selection or the word at the cursor, or the number
 * of the block or `<lora:...>` that it is in; at 1 the brackets go.
 *
 * @param {string} text
 * @param {number} start
 * @param {number} end of the selection.
 * @param {1 | -1} direction
 * @returns {{from: number, to: number, text: string, start: number, end: number} | null} what to put where, and the
 *   selection afterwards.
 */
export function reweighted(text, start, end, direction) {
  const network = blockAround(text, start, "<", ">");
  if (network && end <= network.to) {
    const inside = text.slice(network.from, network.to);
    const parts = /^<(\w+:[^:<>]+)(?::(-?\d*\.?\d+))?([^<>]*)>$/.exec(inside);
    if (!parts) return null;
    const changed = `<${parts[1]}:${rounded(Number(parts[2] ?? 1) + direction * NETWORK_STEP)}${parts[3]}>`;
    const cursor = Math.min(start, network.from + changed.length - 1);
    return { ...network, text: changed, start: cursor, end: cursor };
  }
  const around = blockAround(text, start, "(", ")");
  const weighted = around && end <= around.to && /^\(([^]*):(-?\d*\.?\d+)\)$/.exec(text.slice(around.from, around.to));
  if (weighted && end <= around.from + 1 + weighted[1].length) {
    const weight = Math.max(0, Number(weighted[2]) + direction * STEP);
    const bare = rounded(weight) === "1";
    const changed = bare ? weighted[1] : `(${weighted[1]}:${rounded(weight)})`;
    const first = around.from + (bare ? 0 : 1);
    return { ...around, text: changed, start: first, end: first + weighted[1].length };
  }
  let [from, to] = [start, end];
  if (from === to) {
    while (from > 0 && !BETWEEN_WORDS.test(text[from - 1])) from -= 1;
    while (to < text.length && !BETWEEN_WORDS.test(text[to])) to += 1;
  }
  while (from < to && /\s/.test(text[from])) from += 1;
  while (to > from && /\s/.test(text[to - 1])) to -= 1;
  if (from === to) return null;
  const word = text.slice(from, to);
  return { from, to, text: `(${word}:${rounded(1 + direction * STEP)})`, start: from + 1, end: to + 1 };
}

/** Adapters that a prompt names: {kind, name, weight, from, to}. */
export function networksIn(text) {
  return [...text.matchAll(NETWORK)].map((found) => ({
    kind: found[1], name: found[2], weight: Number(found[3] ?? 1), rest: found[4], from: found.index, to: found.index + found[0].length,
  }));
}

/** Replace a part of a text field as if it was typed, so that the browser's undo takes it back. */
export function typeInto(element, from, to, text) {
  element.focus();
  element.setSelectionRange(from, to);
  // Deprecated and without a successor: nothing else enters the field's own undo history.
  const typed = text ? document.execCommand("insertText", false, text) : document.execCommand("delete");
  if (!typed) {
    element.setRangeText(text, from, to, "end");
    element.dispatchEvent(new InputEvent("input", { bubbles: true }));
  }
}

/** The prompt's element, for whoever adds words to it. */
export const promptElement = () => document.getElementById("prompt");

/** Add a part to the end of the prompt, after a comma. */
export function addToPrompt(text) {
  const element = promptElement();
  const before = paintRequest.peek().prompt ?? "";
  const joint = !before.trim() || /[\s,，]$/.test(before) ? "" : ", ";
  if (element) typeInto(element, before.length, before.length, `${joint}${text}`);
  else setFields({ prompt: before + joint + text });
}

function Tokens({ name }) {
  const count = useSignal(null);
  useSignalEffect(() => {
    const text = field(name).value ?? "";
    const model = facts.value?.model;
    if (!text.trim()) { count.value = null; return undefined; }
    const stop = new AbortController();
    const timer = setTimeout(() => {
      api.post("/v1/prompts/tokens", { prompt: text.slice(0, MOST_COUNTED), ...(model ? { model } : {}) }, { signal: stop.signal })
        .then((found) => { count.value = found; }, () => {});
    }, TOKENS_MILLISECONDS);
    return () => { clearTimeout(timer); stop.abort(); };
  });
  const found = count.value;
  if (!found?.tokens) return null;
  const room = Math.max(1, found.chunks.length) * found.chunk_length;
  const told = [say("paint.tokens", { n: found.tokens, chunks: found.chunks.length, length: found.chunk_length })];
  if (found.cut) told.push(say("paint.tokens_cut", { n: found.cut }));
  if (found.unknown.length) told.push(say("paint.tokens_unknown", { names: found.unknown.join(", ") }));
  const bad = found.cut || found.unknown.length;
  return html`<span class="paint-tokens ${bad ? "bad" : ""}" tabindex=${bad ? 0 : null} title=${told.join("\n")} aria-label=${told.join(" ")} role="img">${found.tokens} / ${room}</span>`;
}

function grow(element) {
  if (CSS.supports("field-sizing", "content")) return;
  element.style.height = "auto";
  element.style.height = `${element.scrollHeight + 2}px`;
}

/**
 * A text of the request with its count of tokens.
 *
 * @param {{name: "prompt" | "negative_prompt", id: string, label: string, placeholder: string, children?: unknown}} props
 *   children: what stands beside the label.
 */
export function PromptEditor({ name, id, label, placeholder, children }) {
  const element = useRef();
  const list = useSignal(null);
  const listId = useId();
  const asking = useRef({ timer: 0, stop: null });

  useSignalEffect(() => {
    const value = field(name).value ?? "";
    if (element.current && element.current.value !== value) {
      element.current.value = value;
      grow(element.current);
    }
  });
  useEffect(() => {
    element.current.value = paintRequest.peek()[name] ?? "";
    grow(element.current);
    return () => clearTimeout(asking.current.timer);
  }, []);

  const close = () => {
    clearTimeout(asking.current.timer);
    asking.current.stop?.abort();
    list.value = null;
  };
  const complete = () => {
    close();
    const { value, selectionStart: at, selectionEnd } = element.current;
    const typed = at === selectionEnd ? BEGUN.exec(value.slice(Math.max(0, at - LONGEST_BEGUN), at))?.[0] : null;
    if (!typed) return;
    asking.current.timer = setTimeout(async () => {
      const stop = new AbortController();
      asking.current.stop = stop;
      const query = new URLSearchParams({ prefix: typed, limit: LISTED, model: facts.peek()?.model ?? "" });
      const found = await api.get(`/v1/prompts/completions?${query}`, { signal: stop.signal }).catch(() => []);
      const isHere = document.activeElement === element.current && element.current.selectionStart === at && element.current.value === value;
      const others = found.filter((one) => one.text !== typed);
      if (others.length && isHere) list.value = { items: others, from: at - typed.length, to: at, active: /^(<|__)/.test(typed) ? 0 : -1 };
    }, COMPLETE_MILLISECONDS);
  };
  const accept = (item) => {
    const { from, to } = list.value;
    close();
    if (["lora", "embedding", "wildcard"].includes(item.kind)) typeInto(element.current, from, to, item.text);
    else {
      typeInto(element.current, from, to, "");
      if (item.kind === "style") setFields({ style: item.text });
      else import("./presets.js").then((module) => module.applyNamed(item.text), () => {});
    }
    close();
  };
  const keys = (event) => {
    if (event.isComposing) return;
    // A plain word is completed only once an arrow chose something, so that Enter stays a new line.
    const shownList = list.value;
    if (shownList && !event.ctrlKey && !event.metaKey) {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const count = shownList.items.length;
      const active = shownList.items[shownList.active];
      if (step) list.value = { ...shownList, active: shownList.active < 0 && step < 0 ? count - 1 : (shownList.active + step + count) % count };
      else if (active && (event.key === "Enter" || event.key === "Tab")) accept(active);
      else if (event.key === "Escape") close();
      else return;
      event.preventDefault();
      event.stopPropagation();
      return;
    }
    const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (direction && (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey) {
      event.preventDefault();
      const { value, selectionStart, selectionEnd } = event.target;
      const change = reweighted(value, selectionStart, selectionEnd, direction);
      if (!change) return;
      typeInto(event.target, change.from, change.to, change.text);
      event.target.setSelectionRange(change.start, change.end);
      close();
    }
  };
  const text = wrong.value[name];
  const shownList = list.value;
  return html`<div class="field paint-prompt ${text ? "wrong" : ""}" data-field=${name}>
    <div class="paint-label"><label for=${id}>${label}</label><${Tokens} name=${name} />${children}</div>
    <div class="paint-editor">
      <textarea ref=${element} id=${id} placeholder=${placeholder} spellcheck="false" autocomplete="off" rows="1"
        aria-autocomplete="list" aria-haspopup="listbox" aria-controls=${shownList ? listId : null} aria-invalid=${Boolean(text)}
        aria-describedby=${text ? `${id}-wrong` : null} aria-activedescendant=${shownList?.active >= 0 ? `${listId}-${shownList.active}` : null}
        onInput=${(event) => { grow(event.target); setFields({ [name]: event.target.value || (name === "prompt" ? "" : undefined) }); complete(); }}
        onKeyDown=${keys} onBlur=${close} onClick=${close}></textarea>
      ${shownList && html`<ul class="paint-completions" role="listbox" id=${listId} aria-label=${say("paint.completions")}>
        ${shownList.items.map((item, number) => html`<li key=${item.kind + item.text} role="option" id=${`${listId}-${number}`} aria-selected=${number === shownList.active}
            onPointerDown=${(event) => { event.preventDefault(); accept(item); }}><span>${item.label}${item.about && item.kind === "preset" ? html` <i class="soft">${item.about}</i>` : null}</span><small>${say(`paint.kind_${item.kind}`)}</small></li>`)}
      </ul>`}
    </div>
    ${text && html`<p class="wrong-text" id=${`${id}-wrong`} role="alert">${text}</p>`}
  </div>`;
}
