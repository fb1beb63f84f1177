// What stands on the axes of a grid, as text to values, and the requests that come of them. Nothing here touches the page.
import { say } from "../../app/words.js";

const RANGE = /^(-?\d+(?:\.\d+)?)\s*-\s*(-?\d+(?:\.\d+)?)\s*(?:\(\s*([+-]?\d+(?:\.\d+)?)\s*\)|\[\s*(\d+)\s*\])?$/;
/** Most values of one range. */
const MOST = 1000;
const WHOLE = ["integer", "seed"];

/** Parts of a text between commas; quotes hold a part together. */
export function partsOf(text) {
  const found = [];
  for (const match of text.matchAll(/\s*(?:"((?:[^"]|"")*)"|([^,，\n]*?))\s*(?:[,，\n]|$)/g)) {
    const part = match[1]?.replaceAll('""', '"') ?? match[2];
    if (part !== "" && part !== undefined) found.push(part);
  }
  return found;
}

/** A range as A1111 writes it: "3-9 (+2)" is 3, 5, 7, 9; "1-10 [4]" four numbers from 1 to 10; "1-3" all whole ones. */
function ranged(part, whole) {
  const match = RANGE.exec(part);
  if (!match) return null;
  const [from, to] = [Number(match[1]), Number(match[2])];
  const round = (value) => (whole ? Math.round(value) : Number(value.toFixed(6)));
  if (match[4]) {
    const count = Math.min(MOST, Number(match[4]));
    return count < 2 ? [from] : Array.from({ length: count }, (_, k) => round(from + ((to - from) * k) / (count - 1)));
  }
  const step = Math.abs(Number(match[3] ?? 1)) * (to < from ? -1 : 1);
  if (!step) return null;
  const count = Math.min(MOST, Math.floor(Math.abs(to - from) / Math.abs(step) + 1e-9) + 1);
  return Array.from({ length: count }, (_, k) => round(from + step * k));
}

/**
 * The values of one axis.
 *
 * @param {{kind: string, choices?: {value: string, label: string}[]}} field of the request; kind "replace" is A1111's S/R.
 * @param {string} text what was written.
 * @returns {unknown[]}
 * @throws {RangeError} a sentence.
 */
export function valuesOf(field, text) {
  const parts = partsOf(text);
  if (!["integer", "seed", "number"].includes(field.kind)) {
    if (field.kind === "flag") return parts.map((part) => ["true", "yes", "on", "1", "是"].includes(part.toLowerCase()));
    if (!field.choices?.length) return parts;
    const named = (part) => field.choices.find((one) => [one.value, one.label].some((name) => name?.toLowerCase() === part.toLowerCase()))?.value;
    return parts.map((part) => {
      const found = named(part) ?? (field.open ? part : undefined);
      if (found === undefined) throw new RangeError(say("paint.grid_not_known", { part }));
      return found;
    });
  }
  const whole = WHOLE.includes(field.kind);
  return parts.flatMap((part) => {
    const range = ranged(part, whole);
    if (range) return range;
    if (whole ? !/^-?\d+$/.test(part) : !Number.isFinite(Number(part))) throw new RangeError(say("paint.grid_no_number", { part }));
    return [whole && !Number.isSafeInteger(Number(part)) ? BigInt(part) : Number(part)];
  });
}

/** A request with a value of an axis. */
export function withAxis(request, axis, value) {
  if (axis.kind !== "replace") return { ...request, [axis.name]: value };
  const [searched] = axis.values;
  const put = (text) => (text ?? "").replaceAll(searched, () => value);
  const negative = request.negative_prompt?.includes(searched) ? { negative_prompt: put(request.negative_prompt) } : {};
  return { ...request, prompt: put(request.prompt), ...negative };
}

/** All cells of a plot in the order z, y, x: {request, at: [x, y, z]}. */
export function plot(request, axes) {
  const [x, y, z] = [0, 1, 2].map((k) => axes[k] ?? { values: [undefined] });
  const put = (base, axis, value) => (value === undefined ? base : withAxis(base, axis, value));
  return z.values.flatMap((c, k) => y.values.flatMap((b, j) => x.values.map((a, i) => ({ request: put(put(put(request, z, c), y, b), x, a), at: [i, j, k] }))));
}

/** A prompt matrix: "a|b|c" is a with none, each and all of the parts behind it. [{prompt, label}] */
export function matrix(prompt) {
  const [first, ...rest] = prompt.split("|").map((part) => part.trim());
  return Array.from({ length: 2 ** rest.length }, (_, mask) => {
    const chosen = rest.filter((_part, k) => mask & (1 << k));
    return { prompt: [first, ...chosen].join(", "), label: chosen.join(" + ") || first };
  });
}

const OPTIONS = {
  prompt: ["prompt", String], negative_prompt: ["negative_prompt", String], steps: ["num_inference_steps", Number], cfg_scale: ["guidance_scale", Number],
  width: ["width", Number], height: ["height", Number], seed: ["seed", (text) => (BigInt(text) < 0n ? undefined : BigInt(text))], sampler_name: ["sampler", String], scheduler: ["schedule", String],
  sd_model: ["model", String], n_iter: ["count", Number], batch_size: ["count", Number], subseed: ["subseed", (text) => BigInt(text)], subseed_strength: ["subseed_strength", Number], clip_skip: ["clip_skip", Number],
  styles: null, outpath_samples: null, outpath_grids: null, do_not_save_samples: null, do_not_save_grid: null, restore_faces: null, tiling: null,
};

/**
 * One line of a list of prompts: plain, or with A1111's options such as `--prompt "a cat" --steps 20`.
 *
 * @throws {RangeError} an option that isn't understood.
 */
export function lineOf(line) {
  if (!line.startsWith("--")) return { prompt: line };
  const fields = {};
  const words = [...line.matchAll(/"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|(\S+)/g)].map((match) => match[1]?.replaceAll('\\"', '"') ?? match[2] ?? match[3]);
  for (let k = 0; k < words.length; k += 1) {
    const name = words[k].replace(/^--/, "");
    if (!words[k].startsWith("--") || !(name in OPTIONS)) throw new RangeError(say("paint.grid_no_option", { option: words[k] }));
    const known = OPTIONS[name];
    let text = words[k + 1] ?? "";
    k += 1;
    while (known?.[1] === String && words[k + 1] !== undefined && !words[k + 1].startsWith("--")) { text += ` ${words[k + 1]}`; k += 1; }
    if (!known) continue;
    let value;
    try { value = known[1](text); } catch { throw new RangeError(say("paint.grid_no_number", { part: text })); }
    if (Number.isNaN(value)) throw new RangeError(say("paint.grid_no_number", { part: text }));
    fields[known[0]] = known[0] === "count" && fields.count ? fields.count * value : value;
  }
  return fields;
}
