// What the gallery shows: filters in the address, pages of pictures, what is selected, and changes to many at once.
import { batch, computed, signal } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { on } from "../../app/events.js";
import { go, route } from "../../app/router.js";
import { toast } from "../../app/state.js";
import { explain, say } from "../../app/words.js";

const PAGE = 120;
const MOST_LISTED = 200;
/** Pictures that are selected together, and packed together, at most. */
const MOST_SELECTED = 5000;
const MOST_ZIPPED = 1000;
/** Pictures whose new state is asked for one by one when they were changed elsewhere. */
const MOST_ASKED = 20;
const NAMES = ["q", "by", "model", "sampler", "kind", "tag", "board", "starred", "deleted", "since", "until", "seed"];

/** The filters that the address says, by name, as texts; those that aren't set are missing. */
export const filters = computed(() => {
  const { view, query } = route.value;
  const given = view === "gallery" ? query : new URLSearchParams();
  return Object.fromEntries(NAMES.filter((name) => given.has(name)).map((name) => [name, given.get(name)]));
});
const key = computed(() => JSON.stringify(filters.value));

/** The filters as they stand in an address: "?q=fox" or "". */
export const search = computed(() => (Object.keys(filters.value).length ? `?${new URLSearchParams(filters.value)}` : ""));

/** Filters behind the button: those that no other part of the view shows. */
export const hidden = computed(() => ["model", "sampler", "kind", "tag", "since", "until", "seed"].filter((name) => name in filters.value));

/** Set filters; undefined or "" opens one, except that a board of "" means pictures on none. */
export function setFilters(changes) {
  const next = { ...filters.peek(), ...changes };
  for (const [name, value] of Object.entries(changes)) {
    if (value === undefined || value === null || (value === "" && name !== "board")) delete next[name];
  }
  clearSelection();
  const query = new URLSearchParams(next).toString();
  go(`/gallery${query && `?${query}`}`, { replace: true });
}

/** Pictures that are loaded, the newest first. */
export const pictures = signal([]);
/** "loading" at the first page, "more" at another, "ready", "end", or an error. */
export const state = signal("loading");
/** How a search by meaning was done, or null. */
export const compared = signal(null);
/** `PictureCounts` of the server; null until it is known. */
export const counts = signal(null);
/** The user's boards: {id, name, pictures}. */
export const boards = signal([]);
/** Ids of the selected pictures. */
export const selected = signal(new Set());
/** How many the filters give; null until it is known. */
export const total = computed(() => (filters.value.by === "meaning" && filters.value.q ? pictures.value.length : counts.value?.total ?? null));

const startOf = (day) => { const [y, m, d] = day.split("-").map(Number); return new Date(y, m - 1, d); };

/** The filters as parameters of `/v1/pictures`; a day ends where the user's clock says. */
function parameters(given) {
  const { q, by, since, until, ...plain } = given;
  const found = new URLSearchParams(plain);
  if (q) found.set(by === "meaning" ? "meaning" : "q", q);
  if (since) found.set("since", startOf(since).toISOString());
  if (until) { const end = startOf(until); end.setDate(end.getDate() + 1); found.set("until", end.toISOString()); }
  return found;
}

/** Whether a picture that just came belongs to what is shown. */
export function fits(picture, given) {
  const { q = "", by, model, sampler, kind, tag, board, starred, deleted, since, until, seed } = given;
  if (deleted || (by === "meaning" && q)) return false;
  const prompt = picture.prompt.toLowerCase();
  if (!q.toLowerCase().split(/\s+/).every((word) => prompt.includes(word))) return false;
  if (board !== undefined && (picture.board ?? "") !== board) return false;
  const made = picture.created * 1000;
  if (since && made < startOf(since)) return false;
  if (until && made >= startOf(until).getTime() + 86_400_000) return false;
  return (!model || picture.model === model) && (!sampler || picture.sampler === sampler) && (!kind || picture.kind === kind)
    && (!tag || picture.tags.includes(tag)) && (!starred || picture.starred) && (!seed || picture.seed === seed);
}

let shownKey = null;
let asking = null;

/** Load what the filters name, unless it is there already. */
export function show() {
  if (shownKey === key.peek() && typeof state.peek() === "string") return;
  reload();
}

/** Load it again from the first page. */
export async function reload() {
  const fresh = shownKey !== key.peek();
  shownKey = key.peek();
  batch(() => {
    state.value = "loading";
    if (fresh) { counts.value = null; compared.value = null; }
  });
  refreshCounts();
  await page(undefined, fresh);
}

/** Load the next page, if there is one. */
export function more() {
  if (state.peek() !== "ready") return Promise.resolve();
  state.value = "more";
  return page(pictures.peek().at(-1)?.seq);
}

async function page(before) {
  asking?.abort();
  const turn = new AbortController();
  asking = turn;
  const wanted = parameters(filters.peek());
  const byMeaning = wanted.has("meaning");
  const limit = byMeaning ? MOST_LISTED : PAGE;
  wanted.set("limit", limit);
  if (before !== undefined) wanted.set("before", before);
  try {
    const found = await api.get(`/v1/pictures?${wanted}`, { signal: turn.signal });
    const known = before === undefined ? [] : pictures.peek();
    const ids = new Set(known.map((one) => one.id));
    batch(() => {
      pictures.value = [...known, ...found.pictures.filter((one) => !ids.has(one.id))];
      compared.value = found.meaning;
      state.value = byMeaning || found.pictures.length < limit ? "end" : "ready";
    });
  } catch (error) {
    if (error.name === "AbortError") return;
    batch(() => { if (before === undefined) pictures.value = []; state.value = error; });
  }
}

let countTimer = 0;

/** Ask for the counts and the boards again, soon. */
export function refreshCounts(wait = 0) {
  clearTimeout(countTimer);
  countTimer = setTimeout(async () => {
    const asked = key.peek();
    const wanted = parameters(filters.peek());
    wanted.delete("meaning");
    try {
      const [counted, listed] = await Promise.all([api.get(`/v1/pictures/counts?${wanted}`), api.get("/v1/boards")]);
      if (asked === key.peek()) batch(() => { counts.value = counted; boards.value = listed; });
    } catch { /* The list itself says what is wrong. */ }
  }, wait);
}

function replace(picture) {
  const given = filters.peek();
  pictures.value = pictures.peek().flatMap((one) => (one.id !== picture.id ? [one] : given.by === "meaning" || fits(picture, given) ? [{ ...one, ...picture }] : []));
}

function drop(ids) {
  const gone = new Set(ids);
  batch(() => {
    pictures.value = pictures.peek().filter((one) => !gone.has(one.id));
    if ([...selected.peek()].some((id) => gone.has(id))) selected.value = new Set([...selected.peek()].filter((id) => !gone.has(id)));
  });
}

/** Follow what others, and other tabs, do to the pictures. */
export function follow() {
  const ends = [
    on("hello", () => { if (shownKey !== null && state.peek() !== "loading") catchUp(); }),
    on("picture", (picture) => {
      if (!fits(picture, filters.peek()) || pictures.peek().some((one) => one.id === picture.id)) return;
      pictures.value = [picture, ...pictures.peek()].sort((a, b) => b.seq - a.seq);
      refreshCounts(500);
    }),
    on("gallery", async ({ ids, change }) => {
      refreshCounts(500);
      if (change === "delete" && !filters.peek().deleted) return drop(ids);
      const shown = ids.filter((id) => pictures.peek().some((one) => one.id === id));
      if (change === "delete" || change === "restore" || shown.length > MOST_ASKED) return reload();
      if (filters.peek().deleted) return undefined;
      for (const id of shown) await api.get(`/v1/pictures/${id}`).then(replace, () => drop([id]));
      return undefined;
    }),
  ];
  return () => ends.forEach((end) => end());
}

/** What came while nobody listened. */
async function catchUp() {
  const newest = pictures.peek()[0]?.seq;
  if (filters.peek().by === "meaning") return;
  if (newest === undefined) { reload(); return; }
  const wanted = parameters(filters.peek());
  wanted.set("after", newest);
  wanted.set("limit", MOST_LISTED);
  try {
    const found = await api.get(`/v1/pictures?${wanted}`);
    if (found.pictures.length >= MOST_LISTED) { reload(); return; }
    const ids = new Set(pictures.peek().map((one) => one.id));
    const fresh = found.pictures.filter((one) => !ids.has(one.id));
    if (fresh.length) { pictures.value = [...fresh, ...pictures.peek()]; refreshCounts(); }
  } catch { /* The next event says more. */ }
}

/* Selection */

let anchor = null;

/** Select one more, or one less. */
export function toggle(id) {
  const next = new Set(selected.peek());
  if (!next.delete(id)) next.add(id);
  anchor = id;
  selected.value = next;
}

/** Select everything between the last one that was clicked and this one. */
export function selectTo(id) {
  const ids = pictures.peek().map((one) => one.id);
  const from = Math.max(0, ids.indexOf(anchor));
  const to = ids.indexOf(id);
  selected.value = new Set([...selected.peek(), ...ids.slice(Math.min(from, to), Math.max(from, to) + 1)]);
}

export function clearSelection() {
  anchor = null;
  if (selected.peek().size) selected.value = new Set();
}

/** Select all that the filters give; pages that are not there yet are loaded. */
export async function selectAll() {
  while (state.peek() === "ready" && pictures.peek().length < MOST_SELECTED) await more();
  selected.value = new Set(pictures.peek().slice(0, MOST_SELECTED).map((one) => one.id));
}

/* Changes */

async function bulk(body, told, undo) {
  try {
    await api.post("/v1/pictures/bulk", body);
  } catch (error) {
    toast(explain(error), { kind: "error" });
    return false;
  }
  if (told) toast(told, undo && { action: { label: say("app.undo"), run: undo } });
  refreshCounts(100);
  return true;
}

const change = (ids, make) => {
  const wanted = new Set(ids);
  const given = filters.peek();
  pictures.value = pictures.peek().flatMap((one) => {
    if (!wanted.has(one.id)) return [one];
    const next = make(one);
    return given.by === "meaning" || given.deleted || fits(next, given) ? [next] : [];
  });
};

export async function star(ids, starred) {
  if (await bulk({ ids, starred }, ids.length > 1 ? say(starred ? "gallery.starred" : "gallery.unstarred", { n: ids.length }) : "")) {
    change(ids, (one) => ({ ...one, starred }));
  }
}

export async function tag(ids, add, remove) {
  if (await bulk({ ids, add_tags: add, remove_tags: remove }, ids.length > 1 ? say("gallery.tagged", { n: ids.length }) : "")) {
    change(ids, (one) => ({ ...one, tags: [...new Set([...one.tags, ...add])].filter((name) => !remove.includes(name)).sort() }));
  }
}

export async function putOn(ids, board) {
  const name = boards.peek().find((one) => one.id === board)?.name;
  if (await bulk({ ids, board }, name ? say("gallery.moved", { n: ids.length, name }) : say("gallery.taken_off", { n: ids.length }))) {
    change(ids, (one) => ({ ...one, board: board || null }));
  }
}

export async function remove(ids) {
  const before = pictures.peek();
  drop(ids);
  const undo = () => bulk({ ids, restore: true }, "").then((done) => done && reload());
  if (!(await bulk({ ids, delete: true }, say("gallery.deleted", { n: ids.length }), undo))) pictures.value = before;
}

export async function restore(ids) {
  if (await bulk({ ids, restore: true }, say("gallery.restored", { n: ids.length }))) drop(ids);
}

/** Save pictures: one as it is, more in a zip. */
export function download(ids) {
  if (ids.length > MOST_ZIPPED) {
    toast(say("gallery.too_many", { n: MOST_ZIPPED }), { kind: "error" });
    return;
  }
  const link = document.createElement("a");
  link.href = ids.length === 1 ? `/v1/pictures/${ids[0]}/file` : `/v1/pictures/zip?ids=${ids.join(",")}`;
  link.download = ids.length === 1 ? `${ids[0]}.png` : "pictures.zip";
  link.click();
}

async function ofBoards(work) {
  try {
    const made = await work();
    refreshCounts();
    return made;
  } catch (error) {
    toast(explain(error), { kind: "error" });
    return null;
  }
}

export const addBoard = (name) => ofBoards(async () => {
  const made = await api.post("/v1/boards", { name });
  boards.value = [...boards.peek().filter((one) => one.id !== made.id), { pictures: 0, ...made }];
  return made;
});
export const renameBoard = (id, name) => ofBoards(() => api.patch(`/v1/boards/${id}`, { name }));
export const deleteBoard = (id) => ofBoards(async () => {
  await api.del(`/v1/boards/${id}`);
  if (filters.peek().board === id) setFilters({ board: undefined });
});
