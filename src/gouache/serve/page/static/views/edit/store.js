// The drawing and its settings in the browser's own database, so that a reload loses nothing. Each user has their own.

import { show } from "./drawing.js";
import { png } from "./generate.js";

const NAME = "gouache-edit";

function opened() {
  return new Promise((done, failed) => {
    const asked = indexedDB.open(NAME, 1);
    asked.onupgradeneeded = () => {
      asked.result.createObjectStore("drawings");
      asked.result.createObjectStore("pixels");
    };
    asked.onsuccess = () => done(asked.result);
    asked.onerror = () => failed(asked.error);
  });
}

const answered = (asked) => new Promise((done, failed) => {
  asked.onsuccess = () => done(asked.result);
  asked.onerror = () => failed(asked.error);
});

const finished = (transaction) => new Promise((done, failed) => {
  transaction.oncomplete = done;
  transaction.onabort = transaction.onerror = () => failed(transaction.error);
});

/** Store what changed since the last time, in one transaction. */
export async function save(owner, drawing, settings) {
  const touched = [...drawing.touched];
  drawing.touched.clear();
  const state = drawing.state();
  const fresh = [];
  try {
    for (const layer of state.layers) {
      if (!touched.includes(layer.id)) continue;
      const pixels = layer.data ? { data: Uint8Array.from(layer.data) } : { blob: await png(layer.canvas) };
      fresh.push([`${owner} ${layer.id}`, pixels]);
    }
    const layers = state.layers.map(({ canvas, data: _data, ...rest }) => ({ ...rest, width: canvas.width, height: canvas.height }));
    const base = await opened();
    const transaction = base.transaction(["drawings", "pixels"], "readwrite");
    const pixels = transaction.objectStore("pixels");
    for (const [key, value] of fresh) pixels.put(value, key);
    transaction.objectStore("drawings").put({ ...state, layers, settings }, owner);
    const wanted = new Set(state.layers.map((layer) => `${owner} ${layer.id}`));
    const range = IDBKeyRange.bound(`${owner} `, `${owner} \uffff`);
    for (const key of await answered(pixels.getAllKeys(range))) if (!wanted.has(key)) pixels.delete(key);
    await finished(transaction);
    base.close();
  } catch (error) {
    for (const id of touched) drawing.touched.add(id);
    throw error;
  }
}

/** Put what was stored into an empty drawing; gives the settings, null if nothing was stored. */
export async function load(owner, drawing) {
  const base = await opened();
  const transaction = base.transaction(["drawings", "pixels"]);
  const kept = await answered(transaction.objectStore("drawings").get(owner));
  if (!kept) return null;
  const stored = await Promise.all(kept.layers.map((layer) => answered(transaction.objectStore("pixels").get(`${owner} ${layer.id}`))));
  base.close();
  const { settings, layers: plain, ...state } = kept;
  const layers = [];
  for (const [k, { width, height, ...rest }] of plain.entries()) {
    if (!stored[k]) continue;
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const layer = { ...rest, canvas };
    if (stored[k].data) {
      layer.data = stored[k].data;
      show(layer, { x: 0, y: 0, w: width, h: height });
    } else {
      const bitmap = await createImageBitmap(stored[k].blob);
      canvas.getContext("2d", { willReadFrequently: rest.kind === "paint" }).drawImage(bitmap, 0, 0);
      bitmap.close();
    }
    layers.push(layer);
  }
  drawing.restore({ ...state, layers });
  drawing.touched.clear();
  return settings;
}

/** Forget a user's drawing. */
export async function forget(owner) {
  const base = await opened();
  const transaction = base.transaction(["drawings", "pixels"], "readwrite");
  transaction.objectStore("drawings").delete(owner);
  transaction.objectStore("pixels").delete(IDBKeyRange.bound(`${owner} `, `${owner} \uffff`));
  await finished(transaction);
  base.close();
}
