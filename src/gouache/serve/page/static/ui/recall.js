// Settings that come back: of a picture of the gallery, and of a file that is dropped on the page.
import { api } from "../app/api.js";
import { paintRequest, toast, usePaintRequest } from "../app/state.js";
import { go, route } from "../app/router.js";
import { explain, knows, say } from "../app/words.js";

const MOST_NOTES = 3;

/** A note on settings as a sentence in the page's language, or as the server says it. */
export const noteText = (note) => (knows(`recall.${note.kind}`) ? say(`recall.${note.kind}`, note) : note.text);

/** The request of the server's answer, with seeds that are exact in every browser. */
export function exactRequest({ request, seeds }) {
  const exact = { ...request };
  for (const [path, text] of Object.entries(seeds)) {
    const [group, field] = path.split(".");
    if (field) exact[group] = { ...exact[group], [field]: BigInt(text) };
    else exact[group] = BigInt(text);
  }
  return exact;
}

/** What a picture of the gallery was asked for: the server's answer, its request exact. */
export async function settingsOf(id) {
  const found = await api.get(`/v1/pictures/${id}/request`);
  return { ...found, request: exactRequest(found) };
}

/**
 * Put settings into the Paint view, and say so.
 *
 * @param {{request: object, notes: {kind: string, about: string, text: string}[]}} settings
 * @param {{only?: string[], show?: boolean}} [more] only: these fields alone; show: go to the Paint view.
 */
export function useSettings({ request, notes }, { only, show = true } = {}) {
  const before = paintRequest.peek();
  usePaintRequest(request, only);
  const told = only ? [] : notes.slice(0, MOST_NOTES).map(noteText);
  const rest = only ? 0 : notes.length - told.length;
  if (rest > 0) told.push(say("recall.more", { n: rest }));
  toast([say(only ? "recall.field_used" : "recall.used"), ...told].join(" "), { action: { label: say("app.undo"), run: () => { paintRequest.value = before; } } });
  if (show && route.peek().view !== "paint") go("/paint");
}

/** Use the settings of a picture of the gallery. */
export async function useSettingsOf(id) {
  try {
    useSettings(await settingsOf(id));
  } catch (error) {
    toast(explain(error), { kind: "error" });
  }
}

/** Use the settings inside a picture's file; without any, nothing changes. */
export async function useSettingsIn(file) {
  try {
    const found = await api.post("/v1/recipes/read", file);
    useSettings({ ...found, request: exactRequest(found) });
  } catch (error) {
    toast(error.status === 422 ? say("recall.none", { name: file.name ?? "" }) : explain(error), { kind: "error" });
  }
}
