// Which view the address names, and the ways to another.
import { signal } from "./preact.js";

export const VIEWS = ["paint", "edit", "gallery", "queue", "explain", "models", "train", "settings"];

function read() {
  const [view, ...rest] = location.pathname.split("/").filter(Boolean).map(decodeURIComponent);
  return { view: VIEWS.includes(view) ? view : "paint", rest, query: new URLSearchParams(location.search) };
}

/** The view that is shown: {view, rest: the parts of the path behind it, query}. */
export const route = signal(read());

/**
 * Show another view; Back returns from it.
 *
 * @param {string} path such as "/gallery/12ab?tag=fox".
 * @param {{replace?: boolean}} [more] replace: without a step in the history.
 */
export function go(path, { replace = false } = {}) {
  if (path !== location.pathname + location.search) history[replace ? "replaceState" : "pushState"](null, "", path);
  route.value = read();
}

addEventListener("popstate", () => { route.value = read(); });

addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  const plain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
  if (!link || !plain || event.defaultPrevented || link.target || link.hasAttribute("download")) return;
  const url = new URL(link.href);
  if (url.origin !== location.origin || !VIEWS.includes(url.pathname.split("/")[1])) return;
  event.preventDefault();
  go(url.pathname + url.search);
});
