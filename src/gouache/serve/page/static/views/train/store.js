// What the Train view knows: runs, sets of pictures and models, kept up to date by the server's news.
import { computed, signal } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { on } from "../../app/events.js";
import { boot, keptSignal } from "../../app/state.js";
import { explain, say } from "../../app/words.js";

const RUNNING = ["preparing", "training", "packing", "stopping"];

/** Every run, the newest first; null before they are known. */
export const runs = signal(null);

/** Every set of pictures; null before they are known. */
export const sets = signal(null);

/** Models that a training may start from: {id, name, family, family_label, side}. */
export const models = signal([]);

/** What the form says; the server keeps it. */
export const plan = keptSignal("train", { data: "", model: "", stage: "lora", minutes: 5, name: "", size: 0, rate: 0, batch: 0 });

/** Why something could not be loaded. */
export const trouble = signal("");

export const isRunning = (run) => RUNNING.includes(run.phase);

/** The run under way, if there is one: there is one at a time. */
export const busy = computed(() => runs.value?.find(isRunning) ?? null);

/** The set that the form means: the chosen one while it is there, else the first. */
export const chosenSet = computed(() => sets.value?.find((one) => one.name === plan.value.data) ?? sets.value?.[0] ?? null);

/** Put a run that the server answered with in place of the one of its name. */
export function setRun(run) {
  const others = (runs.value ?? []).filter((one) => one.name !== run.name);
  runs.value = [run, ...others].sort((a, b) => b.created - a.created);
}

const path = (...parts) => `/v1/training/${parts.map(encodeURIComponent).join("/")}`;
const filePath = (set, kind, file) => `${path("sets", set, kind)}/${file.split("/").map(encodeURIComponent).join("/")}`;

export const runPath = (name, ...more) => path("runs", name, ...more);
export const thumbnail = (set, picture) => `${filePath(set, "thumbnails", picture.file)}?v=${picture.version}`;
export const sheetPath = (run, sheet) => `${runPath(run, "samples", sheet.images_seen)}?part=${sheet.part}`;

async function load(what, where) {
  try {
    where.value = await api.get(what);
  } catch (error) {
    trouble.value = explain(error);
  }
}

export const loadSets = () => load("/v1/training/sets", sets);

/** Read everything anew; the server's news do it from then on. */
export async function loadAll() {
  if (!boot.admin) return;
  await Promise.all([
    load("/v1/training/runs", runs),
    loadSets(),
    api.get("/v1/models").then((found) => { models.value = found.data; }, (error) => { trouble.value = explain(error); }),
  ]);
}

on("training", (data) => { runs.value = data.runs; });

export const picturesOf = (set) => api.get(path("sets", set, "pictures"));
export const setCaption = (set, file, caption) => api.put(filePath(set, "captions", file), { caption });
export const removePicture = (set, file) => api.del(filePath(set, "pictures", file));
export const removeSet = (set) => api.del(path("sets", set));

/** An error of a plan or a run as a sentence: what it is about here, else what errors of its kind mean anywhere. */
export function reason(error) {
  const key = Object.keys(REASONS).find((one) => REASONS[one].test(`${error.where}: ${error.given}`));
  return key ? say(`train.wrong.${key}`, { given: String(error.given).replaceAll("'", ""), expected: error.expected }) : explain(error);
}

const REASONS = {
  captions: /^data\b.*no caption/, taken: /^name: '/, name: /^(name|data|file|body.*name): /, busy: /^training: /, size: /^size: /,
  drafts: /^data\.size: /, model: /^model/, minutes: /minutes/, disk: /full disk|^disk/, memory: /memory/,
  loss: /^stage .*(loss|gradient) after/, unreadable: /without a caption/,
};

/** A name that no set, run or model has: the wanted one, or it with a number behind. */
export function freeName(wanted, taken) {
  let name = wanted;
  for (let number = 2; taken.includes(name); number += 1) name = `${wanted} ${number}`;
  return name;
}

/**
 * Put files into a set, one after the other; those that can't be used don't stop the others.
 *
 * @param {string} set
 * @param {File[]} files
 * @param {(done: number, total: number) => unknown} progress
 * @returns {Promise<{name: string, reason: string}[]>} the files that were refused.
 */
export async function upload(set, files, progress) {
  const refused = [];
  for (const [done, file] of files.entries()) {
    progress(done, files.length);
    try {
      await api.put(path("sets", set, file.name), file);
    } catch (error) {
      refused.push({ name: file.name, reason: explain(error) });
      if (error.status === 0 || error.status === 507) break;
    }
  }
  progress(files.length, files.length);
  await loadSets();
  return refused;
}
