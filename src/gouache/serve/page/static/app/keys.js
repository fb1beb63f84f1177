// Hot-keys: what a view registers while it is shown, and the list that `?` shows.
import { signal, useEffect } from "./preact.js";

/** Hot-keys that act now: {keys: "Ctrl+Enter", label, run, inFields}. */
export const hotkeys = signal([]);

/**
 * Act on keys as long as the component is shown.
 *
 * @param {{keys: string, label: string, run: (event: KeyboardEvent) => unknown, inFields?: boolean}[]} list keys as
 *   "Ctrl+Enter", "?", "Escape", "["; inFields: also while a text is being written.
 * @param {unknown[]} dependencies of the closures.
 */
export function useHotkeys(list, dependencies = []) {
  useEffect(() => {
    hotkeys.value = [...hotkeys.peek(), ...list];
    return () => { hotkeys.value = hotkeys.peek().filter((one) => !list.includes(one)); };
  }, dependencies);
}

const isField = (element) => element?.matches?.("input:not([type=range], [type=checkbox]), textarea, select, [contenteditable]");

function named(event) {
  const control = event.ctrlKey || event.metaKey ? "Ctrl+" : "";
  const shift = event.shiftKey && event.key.length > 1 ? "Shift+" : "";
  return control + shift + (event.key.length === 1 && control ? event.key.toLowerCase() : event.key);
}

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.isComposing) return;
  // A dialog that is open has its own keys; a list of completions has the plain ones, Escape first of all.
  const isPlain = !event.ctrlKey && !event.metaKey;
  if (document.querySelector(isPlain ? "dialog[open], [role=listbox]:not([hidden])" : "dialog[open]")) return;
  const name = named(event);
  const found = hotkeys.peek().findLast((one) => one.keys === name && (one.inFields || !isField(event.target)));
  if (found) {
    event.preventDefault();
    found.run(event);
  }
});
