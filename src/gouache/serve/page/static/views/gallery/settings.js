// A picture's settings as rows: names in the page's language, values as texts.
import { exactJson } from "../../app/api.js";
import { knows, say } from "../../app/words.js";

/** Shown first, in this order; the others follow as the server names them. */
const FIRST = ["model", "seed", "width", "height", "num_inference_steps", "guidance_scale", "sampler", "schedule", "style", "strength", "subseed", "subseed_strength", "upscale", "hires"];
/** Texts, which are shown by themselves, and what says nothing of one picture. */
const APART = ["prompt", "negative_prompt", "count"];
/** What is asked for otherwise than it is painted: a larger size is painted small and enlarged. */
const AS_ASKED = ["width", "height", "upscale", "hires"];

/** Name and value of every setting of a picture, what the model filled in among them; seeds are exact. */
export function rowsOf(picture, { request, painted }) {
  const found = { ...painted, ...request };
  for (const name of AS_ASKED) {
    if (name in request) found[name] = request[name];
    else delete found[name];
  }
  found.width ??= picture.width;
  found.height ??= picture.height;
  const names = [...FIRST.filter((name) => name in found), ...Object.keys(found).filter((name) => !FIRST.includes(name))];
  return names.filter((name) => !APART.includes(name)).map((name) => [name, found[name]]);
}

/** A setting's name. */
export function labelOf(name) {
  const key = [`gallery.field_${name}`, `field.${name}`, `gallery.${name}`, `paint.${name}`].find(knows);
  return key ? say(key) : name.replaceAll("_", " ");
}

/** A setting's value as text. */
export function valueOf(value) {
  if (value === undefined || value === null) return "";
  if (typeof value === "object") {
    const text = exactJson(value).replaceAll(/sha256:([0-9a-f]{8})[0-9a-f]{56}/g, "$1…");
    return text.replaceAll(/["{}]/g, "").replaceAll(",", ", ").replaceAll(":", ": ");
  }
  return String(value).replace(/^sha256:([0-9a-f]{8})[0-9a-f]{56}$/, "$1…");
}
