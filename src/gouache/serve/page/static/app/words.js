// The page's texts in the language that the server chose for it, and errors as sentences.
import texts from "gouache/words";

export const language = document.documentElement.lang;

/**
 * The text of a key.
 *
 * @param {string} key as in a `words.json`.
 * @param {Record<string, unknown>} [values] what `{name}` in it stands for. A text "one image|{n} images" has a form for n = 1.
 */
export function say(key, values = {}) {
  const forms = (texts[key] ?? key).split("|");
  const text = forms.length > 1 && Number(values.n) !== 1 ? forms[1] : forms[0];
  return text.replaceAll(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** Whether there is a text for a key. */
export const knows = (key) => key in texts;

let byField = () => "";

/** Let errors about fields of a request be explained by what knows the fields: (error) => a sentence, or "". */
export const explainFields = (explainer) => { byField = explainer; };

/**
 * An error as a sentence for whoever uses the page.
 *
 * @param {Error & {status?: number, kind?: string, where?: string, given?: string, expected?: string}} error of a call, or
 *   a job's.
 */
export function explain(error) {
  if (error.status === 0) return say("error.offline");
  const sentence = byField(error);
  if (sentence) return sentence;
  const values = { where: error.where ?? "", given: quoted(error.given), expected: error.expected ?? "" };
  for (const key of [`error.kind.${error.kind}`, `error.status.${error.status}`]) if (knows(key)) return say(key, values);
  return error.message || say("error.unknown");
}

/** What the server itself said, in English, for whoever wants to know more; empty where the sentence is all there is. */
export const details = (error) => (error.message && error.message !== explain(error) ? error.message : "");

const quoted = (given) => String(given ?? "").replace(/^['"]|['"]$/g, "").slice(0, 120);

const relative = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
const dates = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" });

/** A time of the past as "5 minutes ago", or as a date where it is more than a week ago. */
export function ago(seconds) {
  const passed = Date.now() / 1000 - seconds;
  const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
  if (passed > 7 * 86400) return dates.format(seconds * 1000);
  const [unit, length] = units.find(([, length]) => passed >= length) ?? ["second", 1];
  return relative.format(-Math.round(passed / length), unit);
}

/** A time as a date with the hour. */
export const date = (seconds) => dates.format(seconds * 1000);

/** A number of bytes as "1.4 GB". */
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, count)) / 3));
  return `${(count / 1000 ** power).toLocaleString(language, { maximumFractionDigits: power ? 1 : 0 })} ${units[power]}`;
}

/** A duration in seconds as "45 s", "3 min", "1.5 h". */
export function duration(seconds) {
  if (seconds < 60) return say("unit.seconds", { n: Math.max(1, Math.round(seconds)) });
  if (seconds < 3600) return say("unit.minutes", { n: Math.round(seconds / 60) });
  return say("unit.hours", { n: (seconds / 3600).toLocaleString(language, { maximumFractionDigits: 1 }) });
}
