// The fields of a request as the server describes them, a model's facts, lists of names, and values within a request.
//
// A request is a plain object that holds only what differs from the defaults, as `paintRequest` in app/state.js. A path
// names a value in it: "seed", "mask.blur", "control[0].weight". The same path with empty brackets names its field.
import { signal, useEffect } from "../app/preact.js";
import { api, exactJson } from "../app/api.js";
import { explainFields, knows, say } from "../app/words.js";

/** {groups: [{name, fields: [field]}], all: Map of path to field}; null until loaded. A field is a `FieldView` of
 * serve/api/request_fields.py. */
export const requestFields = signal(null);
let loading = null;

/** Load the description, once; gives it. */
export function loadFields() {
  loading ??= api.get("/v1/request-fields").then(
    (found) => {
      const all = new Map();
      const walk = (field) => { all.set(field.path, field); field.fields?.forEach(walk); };
      found.fields.forEach(walk);
      const groups = found.groups.map((group) => ({ name: group.name, fields: group.fields.map((name) => all.get(name)) }));
      requestFields.value = { groups, all };
      return requestFields.value;
    },
    (error) => { loading = null; throw error; },
  );
  return loading;
}

/** The description inside a component: null at first, and loaded by the way. */
export function useFields() {
  useEffect(() => { loadFields().catch(() => {}); }, []);
  return requestFields.value;
}

const factsOf = signal(new Map());

/** What a model is set to by itself and can be asked for (`Abilities` of serve/models/abilities.py); null until known. */
export function useFacts(model) {
  const key = model ?? "";
  useEffect(() => {
    if (factsOf.peek().has(key)) return;
    const keep = (value) => { factsOf.value = new Map(factsOf.peek()).set(key, value); };
    keep(null);
    api.get(`/v1/models/facts?model=${encodeURIComponent(key)}`).then(keep, () => {
      const left = new Map(factsOf.peek());
      left.delete(key);
      factsOf.value = left;
    });
  }, [key]);
  return factsOf.value.get(key) ?? null;
}

/** Forget facts and lists: models or adapters came or went. */
export function forgetLists() {
  factsOf.value = new Map();
  lists.value = new Map();
}

const PLACES = { models: "/v1/models", vaes: "/v1/models/vaes", controls: "/v1/models/controls", "ip-adapters": "/v1/models/ip-adapters" };
const FITTING = { controls: "controls", "ip-adapters": "ip_adapters" };
const lists = signal(new Map());

/** The choices for a field with names: [{value, label, fits}]; what fits the model first. */
export function useNames(field, facts) {
  const place = PLACES[field.source];
  useEffect(() => {
    if (!place || lists.peek().has(place)) return;
    lists.value = new Map(lists.peek()).set(place, []);
    api.get(place).then((found) => {
      const names = (found.data ?? found).map((one) => one.id ?? one.name);
      lists.value = new Map(lists.peek()).set(place, [...new Set(names)]);
    }, () => {});
  }, [place]);
  if (field.source === "styles") return (facts?.styles ?? []).map((value) => ({ value, label: value, fits: true }));
  if (!place) return (field.choices ?? []).map(({ value, label }) => ({ value, label: label || choiceLabel(field, value), fits: true }));
  const fitting = facts?.[FITTING[field.source]];
  const found = (lists.value.get(place) ?? []).map((value) => ({ value, label: value, fits: !fitting || fitting.includes(value) }));
  return [...found.filter((one) => one.fits), ...found.filter((one) => !one.fits)];
}

/** The path of the field that a path with numbers means. */
export const plainPath = (path) => path.replaceAll(/\[\d+\]/g, "[]");
const wordKey = (path) => plainPath(path).replaceAll("[]", "");

/** A field's name for people. */
export function fieldLabel(path) {
  const key = `field.${wordKey(path)}`;
  return knows(key) ? say(key) : path.split(".").at(-1).replaceAll("_", " ");
}

/** A field's explanation; the server's own where the page has none. */
export function fieldHelp(field) {
  const key = `field.${wordKey(field.path)}.help`;
  return knows(key) ? say(key) : field.help;
}

/** One of a field's values for people. */
export function choiceLabel(field, value) {
  const key = `choice.${wordKey(field.path)}.${value}`;
  return knows(key) ? say(key) : value;
}

/** A group's title. */
export const groupLabel = (name) => (knows(`group.${name}`) ? say(`group.${name}`) : name);

export const same = (one, other) => exactJson(one ?? null) === exactJson(other ?? null);

/** Whether a value, undefined where nothing is given, is another than the field's default. */
export const differs = (field, value) => value !== undefined && value !== null && !same(value, field.default ?? null);

/** How many of a group's fields differ from their defaults. */
export const changedIn = (group, request) => group.fields.filter((field) => differs(field, request[field.name])).length;

/**
 * The request with another value; a default or null takes the field out.
 *
 * @param {object} values a request, or a group within one.
 * @param {{name: string, default?: unknown}} field
 */
export function withValue(values, field, value) {
  const changed = { ...values };
  if (value === undefined || !differs(field, value)) delete changed[field.name];
  else changed[field.name] = value;
  return changed;
}

/** What a field without a value gets: the model's own where it is known, else the default. */
export function ownValue(field, facts) {
  const told = facts?.[field.path];
  return told || field.default === undefined || field.default === null ? told || null : field.default;
}

/** What stands where nothing is chosen: what that means, with the model's own value where it is known. */
export function emptyLabel(field, own) {
  const key = `none.${wordKey(field.path)}`;
  if (knows(key)) return say(key);
  return own ? say("form.automatic_is", { value: own }) : say("form.automatic");
}

const NO_FIELD = { size: "width", "width * height": "width", refiner: "refiner", picture: "init_image" };

/**
 * The path of the value that an error is about; empty where it is about none.
 *
 * @param {{where?: string, expected?: string}} error of the server: of a call, or of a job.
 */
export function errorPath(error) {
  const all = requestFields.peek()?.all;
  if (!error?.where || !all) return "";
  const where = error.where.replace(/^(body\.)?request\b[:.]?\s*/, "").replaceAll(/\.(\d+)(?=\.|$)/g, "[$1]");
  const found = NO_FIELD[where] ?? where.replace(/ .*/, "");
  // A rule about several values begins with the name of one: "mask beside init_image", "start below end".
  const first = (error.expected ?? "").match(/^[a-z_.]+/)?.[0] ?? "";
  const group = plainPath(found).replace(/\[\]$/, "");
  if (!found) return all.has(first) ? first : "";
  if (["group", "groups"].includes(all.get(group)?.kind)) {
    const inner = `${found}.${first}`;
    return first && all.has(plainPath(inner)) ? inner : found.replace(/\[\d+\]$/, "");
  }
  return all.has(plainPath(found)) ? found : "";
}

/** A range as "1 to 150", with what is excluded in words. */
function range(field) {
  const number = (value) => (typeof value === "string" ? value : Number(value).toLocaleString("en-US", { useGrouping: false, maximumFractionDigits: 6 }));
  const low = field.min ?? field.above;
  const high = field.max ?? field.below;
  return { low: low === undefined ? "" : number(low), high: high === undefined ? "" : number(high) };
}

/** What a value of the field has to be, as a sentence; about the value that is given, if it is known. */
export function requirement(field, value) {
  const label = fieldLabel(field.path);
  const { low, high } = range(field);
  if (["integer", "number", "seed"].includes(field.kind)) {
    const whole = field.kind !== "number" && value !== undefined && typeof value !== "bigint" && !Number.isInteger(value);
    if (low !== "" && high !== "") {
      if (field.above !== undefined) return say(field.below === undefined ? "error.field.above_to" : "error.field.between", { label, low, high });
      if (field.below !== undefined) return say("error.field.from_below", { label, low, high });
      return say(whole ? "error.field.whole_range" : "error.field.range", { label, low, high });
    }
    if (low !== "") return say(field.above !== undefined ? "error.field.above" : "error.field.from", { label, low });
    return say("error.field.number", { label });
  }
  if (["picture", "pictures"].includes(field.kind)) return say("error.field.picture", { label });
  if (field.kind === "choice") return say("error.field.choice", { label, choices: field.choices.map((one) => choiceLabel(field, one.value)).join(say("form.comma")) });
  if (field.kind === "box") return say("error.field.box", { label });
  if (field.kind === "numbers") return say(field.path === "sigmas" ? "error.field.sigmas" : "error.field.pair", { label });
  if (field.kind === "colour") return say("error.field.colour", { label });
  if (field.kind === "aspect") return say("error.field.aspect", { label });
  if (["group", "groups"].includes(field.kind)) return say("error.field.group", { label, n: field.max_items ?? 1 });
  if (field.path === "watermark") return say("error.field.watermark", { label });
  if (["name", "names"].includes(field.kind)) return say("error.field.name", { label });
  return say("error.field.text", { label, n: field.max_length ?? 100000 });
}

/** Why a value can't be, as a sentence; empty where it can, as far as the field alone tells. */
export function complaint(field, value) {
  if (value === undefined || value === null || value === "") return "";
  if (["integer", "number", "seed"].includes(field.kind)) {
    const number = typeof value === "bigint" ? value : Number(value);
    const whole = typeof number === "bigint" || Number.isInteger(number);
    if (typeof value === "string" || Number.isNaN(number) || (field.kind !== "number" && !whole)) return requirement(field, value);
    const max = typeof field.max === "string" ? BigInt(field.max) : field.max;
    const wrong = number < (field.min ?? -Infinity) || number > (max ?? Infinity) || number <= (field.above ?? -Infinity) || number >= (field.below ?? Infinity);
    return wrong ? requirement(field) : "";
  }
  if (field.kind === "numbers") {
    const wrong = !Array.isArray(value) || value.some((one) => typeof one !== "number" || one < (field.min ?? -Infinity)) || value.length < field.min_items || value.length > field.max_items;
    return wrong ? requirement(field) : "";
  }
  if (field.kind === "aspect" && !/^[1-9]\d{0,4}:[1-9]\d{0,4}$/.test(value)) return requirement(field);
  if (field.kind === "line" && field.path === "watermark" && new TextEncoder().encode(value).length > 32) return requirement(field);
  return "";
}

// Rules about several fields, by the words in which the server says them.
const RULES = [
  [/is explained/, "rule.explained"], [/^(\w+(?:\.\w+)?) beside init_image/, "rule.needs_picture"], [/pixels$/, "rule.pixels"], [/low <= high/, "rule.low_high"],
  [/^apg or mimic/, "rule.apg_mimic"], [/last picture's seed/, "rule.last_seed"], [/^eta_noise_seed_delta of 0/, "rule.delta"],
  [/start below end/, "rule.start_end"], [/canny_low of at most/, "rule.canny"], [/^image or text/, "rule.mask_source"],
  [/either a mask or a box/, "rule.area"], [/left < right/, "rule.box"], [/^left, right, top, bottom or/, "rule.outpaint"],
  [/frame below frames/, "rule.frame"], [/folder of wildcards/, "rule.wildcard"], [/belongs to|reads no pictures|has no prior|no cross-attention|with a U-Net|^nothing/, "rule.not_this_model"],
];

explainFields((error) => {
  const path = errorPath(error);
  const field = path && requestFields.peek()?.all.get(plainPath(path));
  if (!field) return "";
  const label = fieldLabel(path);
  const rule = RULES.find(([pattern]) => pattern.test(error.expected ?? ""));
  if (rule) return say(`error.${rule[1]}`, { label, given: (error.given ?? "").replace(/^wildcard /, "") });
  const server = (error.expected ?? "").match(/^at most ([\d.]+)(?: on this server)?$/);
  if (server) return say("error.field.at_most", { label, high: server[1] });
  if (error.kind === "ModelNotFound" || error.kind === "UnknownName") return say("error.field.unknown", { label, given: (error.given ?? "").replace(/^'|'$/g, "") });
  if (error.expected === "a value") return say("error.field.missing", { label });
  return requirement(field);
});
