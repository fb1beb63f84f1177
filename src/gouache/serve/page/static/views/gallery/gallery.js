// The gallery: search, filters, boards, the grid, what is done to many pictures at once, and one picture or two up close.
import { html, signal, useEffect, useLayoutEffect, useRef, useState } from "../../app/preact.js";
import { useHotkeys } from "../../app/keys.js";
import { go } from "../../app/router.js";
import { explain, say } from "../../app/words.js";
import { Button, Empty, Icon, Segmented } from "../../ui/controls.js";
import { Confirm, Dialog } from "../../ui/dialog.js";
import { DRAGGED, Grid } from "./grid.js";
import * as store from "./store.js";

const KINDS = ["text", "image", "inpaint", "outpaint", "control", "inversion", "interpolation", "edited"];
const SEARCH_MILLISECONDS = 250;
const filtersOpen = signal(false);

function Search() {
  const { q = "", by = "words" } = store.filters.value;
  const [text, setText] = useState(q);
  const timer = useRef(0);
  const written = useRef(q);
  useEffect(() => {
    if (q !== written.current) { written.current = q; setText(q); }
  }, [q]);
  useEffect(() => () => clearTimeout(timer.current), []);
  const send = (value) => { written.current = value.trim(); store.setFilters({ q: value.trim() }); };
  const input = (event) => {
    const { value } = event.target;
    setText(value);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => send(value), by === "meaning" ? 2 * SEARCH_MILLISECONDS : SEARCH_MILLISECONDS);
  };
  return html`<form class="gallery-search" role="search" onSubmit=${(event) => { event.preventDefault(); clearTimeout(timer.current); send(text); }}>
    <label class="gallery-words"><${Icon} name="search" /><span class="visually-hidden">${say("gallery.search")}</span>
      <input id="search" type="search" autocomplete="off" maxlength="200" placeholder=${say(by === "meaning" ? "gallery.search_meaning" : "gallery.search_words")} value=${text} onInput=${input} /></label>
    <${Segmented} label=${say("gallery.search_by")} value=${by} onChange=${(value) => store.setFilters({ by: value === "words" ? "" : value })}
      options=${[{ value: "words", label: say("gallery.by_words") }, { value: "meaning", label: say("gallery.by_meaning") }]} />
    <${Button} id="filters" pressed=${filtersOpen.value} aria-expanded=${filtersOpen.value} aria-controls="filter-panel" onClick=${() => { filtersOpen.value = !filtersOpen.value; }}>
      <${Icon} name="list" />${say("gallery.filters")}${store.hidden.value.length > 0 && html`<b class="badge">${store.hidden.value.length}</b>`}<//>
  </form>`;
}

function Choice({ name, label, options }) {
  const value = store.filters.value[name] ?? "";
  const listed = value && !options.some((one) => one.value === value) ? [{ value, label: value }, ...options] : options;
  return html`<div class="field"><label for=${`filter-${name}`}>${label}</label>
    <select id=${`filter-${name}`} value=${value} onChange=${(event) => store.setFilters({ [name]: event.target.value })}>
      <option value="">${say("gallery.any")}</option>
      ${listed.map((one) => html`<option key=${one.value} value=${one.value} selected=${one.value === value}>${one.label}${one.count === undefined ? "" : ` (${one.count})`}</option>`)}
    </select></div>`;
}

/** A seed that is being written stays as it is, whatever is drawn anew meanwhile. */
function SeedFilter() {
  const { seed = "" } = store.filters.value;
  const [text, setText] = useState(seed);
  useEffect(() => setText(seed), [seed]);
  return html`<div class="field"><label for="filter-seed">${say("gallery.seed")}</label><input id="filter-seed" inputmode="numeric" maxlength="20" value=${text}
    onInput=${(event) => setText(event.target.value)} onChange=${(event) => store.setFilters({ seed: event.target.value.replaceAll(/\D/g, "") })} /></div>`;
}

function Filters() {
  const counted = store.counts.value;
  const { since = "", until = "" } = store.filters.value;
  const listed = (found, label = (value) => value) => Object.entries(found ?? {}).filter(([value]) => value).map(([value, count]) => ({ value, count, label: label(value) }));
  const day = (name, value, label) => html`<div class="field"><label for=${`filter-${name}`}>${label}</label>
    <input id=${`filter-${name}`} type="date" value=${value} onChange=${(event) => store.setFilters({ [name]: event.target.value })} /></div>`;
  return html`<div class="panel gallery-filters" id="filter-panel" role="group" aria-label=${say("gallery.filters")}>
    <${Choice} name="model" label=${say("gallery.model")} options=${listed(counted?.models)} />
    <${Choice} name="sampler" label=${say("gallery.sampler")} options=${listed(counted?.samplers)} />
    <${Choice} name="kind" label=${say("gallery.kind")} options=${KINDS.filter((kind) => counted?.kinds[kind]).map((kind) => ({ value: kind, label: say(`gallery.kind_${kind}`), count: counted.kinds[kind] }))} />
    <${Choice} name="tag" label=${say("gallery.tag")} options=${listed(counted?.tags)} />
    ${day("since", since, say("gallery.since"))}${day("until", until, say("gallery.until"))}
    <${SeedFilter} />
    <div class="gallery-reset"><${Button} id="reset-filters" disabled=${!store.hidden.value.length} onClick=${() => store.setFilters(Object.fromEntries(store.hidden.value.map((name) => [name, ""])))}>${say("gallery.reset")}<//></div>
  </div>`;
}

/* Boards */

function Place({ id, icon, label, count, active, filters, onPictures, children }) {
  const [over, setOver] = useState(false);
  const takes = (event) => onPictures && event.dataTransfer.types.includes(DRAGGED);
  return html`<li class="gallery-place ${over ? "over" : ""}"
      onDragOver=${(event) => { if (takes(event)) { event.preventDefault(); event.dataTransfer.dropEffect = "move"; setOver(true); } }}
      onDragLeave=${() => setOver(false)}
      onDrop=${(event) => { setOver(false); if (takes(event)) { event.preventDefault(); onPictures(event.dataTransfer.getData(DRAGGED).split(",")); } }}>
    <button type="button" id=${id} aria-current=${active ? "true" : null} onClick=${() => store.setFilters(filters)}>
      <${Icon} name=${icon} /><span class="grow">${label}</span>${count !== undefined && html`<small>${count}</small>`}</button>${children}</li>`;
}

function NameDialog({ title, name = "", yes, onName, onClose }) {
  const [text, setText] = useState(name);
  const submit = (event) => { event.preventDefault(); if (text.trim()) { onName(text.trim()); onClose(); } };
  return html`<${Dialog} title=${title} onClose=${onClose}><form class="stack" onSubmit=${submit}>
    <div class="field"><label for="board-name">${say("gallery.board_name")}</label><input id="board-name" maxlength="100" required value=${text} onInput=${(event) => setText(event.target.value)} /></div>
    <footer><${Button} onClick=${onClose}>${say("app.cancel")}<//><${Button} kind="primary" type="submit" id="board-save">${yes}<//></footer></form><//>`;
}

function Boards() {
  const [adding, setAdding] = useState(false);
  const given = store.filters.value;
  const counted = store.counts.value;
  const plain = { board: undefined, starred: "", deleted: "" };
  const everything = given.board === undefined && !given.starred && !given.deleted;
  return html`<nav class="gallery-side" aria-label=${say("gallery.boards")}><ul>
    <${Place} id="all-pictures" icon="grid" label=${say("gallery.all")} active=${everything} filters=${plain} />
    <${Place} id="only-starred" icon="star" label=${say("gallery.only_starred")} count=${given.deleted ? undefined : counted?.starred} active=${Boolean(given.starred)} filters=${{ ...plain, starred: "true" }} onPictures=${(ids) => store.star(ids, true)} />
    <${Place} id="no-board" icon="image" label=${say("gallery.no_board")} active=${given.board === ""} filters=${{ ...plain, board: "" }} onPictures=${(ids) => store.putOn(ids, "")} />
    <${Place} id="trash" icon="trash" label=${say("gallery.trash")} active=${Boolean(given.deleted)} filters=${{ ...plain, deleted: "true" }} onPictures=${(ids) => store.remove(ids)} />
    </ul><div class="gallery-boards-head"><h2>${say("gallery.boards")}</h2><${Button} small quiet id="add-board" label=${say("gallery.add_board")} onClick=${() => setAdding(true)}><${Icon} name="plus" /><//></div>
    <ul>${store.boards.value.map((board) => html`<${Place} key=${board.id} id=${`board-${board.id}`} icon="box" label=${board.name} count=${board.pictures} active=${given.board === board.id}
        filters=${{ ...plain, board: board.id }} onPictures=${(ids) => store.putOn(ids, board.id)} />`)}
    ${!store.boards.value.length && html`<li class="hint gallery-boards-hint">${say("gallery.boards_hint")}</li>`}</ul>
    ${adding && html`<${NameDialog} title=${say("gallery.add_board")} yes=${say("gallery.add")} onName=${store.addBoard} onClose=${() => setAdding(false)} />`}
  </nav>`;
}

/** The board that is shown, and what can be done with it. */
function BoardHead() {
  const [asking, setAsking] = useState("");
  const board = store.boards.value.find((one) => one.id === store.filters.value.board);
  if (!board) return null;
  const close = () => setAsking("");
  return html`<div class="gallery-board-head"><h2 class="grow">${board.name}</h2>
    <${Button} small quiet id="rename-board" onClick=${() => setAsking("rename")}><${Icon} name="edit" />${say("gallery.rename")}<//>
    <${Button} small quiet kind="danger" id="delete-board" onClick=${() => setAsking("delete")}><${Icon} name="trash" />${say("gallery.delete_board")}<//>
    ${asking === "rename" && html`<${NameDialog} title=${say("gallery.rename_board")} name=${board.name} yes=${say("gallery.rename")} onName=${(name) => store.renameBoard(board.id, name)} onClose=${close} />`}
    ${asking === "delete" && html`<${Confirm} danger title=${say("gallery.delete_board")} text=${say("gallery.delete_board_text", { name: board.name })} yes=${say("gallery.delete_board")} onYes=${() => store.deleteBoard(board.id)} onClose=${close} />`}
  </div>`;
}

/* Many at once */

function Tags({ ids, onClose }) {
  const [text, setText] = useState("");
  const chosen = store.pictures.value.filter((one) => ids.includes(one.id));
  const [gone, setGone] = useState([]);
  const present = [...new Set(chosen.flatMap((one) => one.tags))].sort();
  const submit = (event) => {
    event.preventDefault();
    const added = text.split(/[,，、]/).map((part) => part.trim().slice(0, 64)).filter(Boolean);
    if (added.length || gone.length) store.tag(ids, added.slice(0, 50), gone);
    onClose();
  };
  return html`<${Dialog} title=${say("gallery.tags_of", { n: ids.length })} onClose=${onClose}><form class="stack" onSubmit=${submit}>
    <div class="field"><label for="new-tags">${say("gallery.add_tags")}</label><input id="new-tags" list="known-tags" autocomplete="off" value=${text} onInput=${(event) => setText(event.target.value)} /><span class="hint">${say("gallery.tags_hint")}</span>
      <datalist id="known-tags">${Object.keys(store.counts.value?.tags ?? {}).map((tag) => html`<option value=${tag}></option>`)}</datalist></div>
    ${present.length > 0 && html`<fieldset class="gallery-tags"><legend class="label">${say("gallery.remove_tags")}</legend>${present.map((tag) => html`<button type="button" key=${tag} class="gallery-tag" aria-pressed=${gone.includes(tag)}
      onClick=${() => setGone(gone.includes(tag) ? gone.filter((one) => one !== tag) : [...gone, tag])}>${tag}<${Icon} name="close" /></button>`)}</fieldset>`}
    <footer><${Button} onClick=${onClose}>${say("app.cancel")}<//><${Button} kind="primary" type="submit" id="tags-save">${say("gallery.save")}<//></footer></form><//>`;
}

function BoardChoice({ ids, onClose }) {
  const [adding, setAdding] = useState(!store.boards.value.length);
  if (adding) {
    return html`<${NameDialog} title=${say("gallery.add_board")} yes=${say("gallery.add")} onClose=${onClose}
      onName=${async (name) => { const made = await store.addBoard(name); if (made) store.putOn(ids, made.id); }} />`;
  }
  const put = (board) => { store.putOn(ids, board); onClose(); };
  return html`<${Dialog} title=${say("gallery.put_on")} onClose=${onClose}><div class="gallery-board-list">
    ${store.boards.value.map((board) => html`<${Button} key=${board.id} onClick=${() => put(board.id)}><${Icon} name="box" />${board.name}<//>`)}
    <${Button} onClick=${() => put("")}><${Icon} name="minus" />${say("gallery.take_off")}<//>
    <${Button} onClick=${() => setAdding(true)}><${Icon} name="plus" />${say("gallery.add_board")}<//></div><//>`;
}

function BulkBar() {
  const [asking, setAsking] = useState("");
  const ids = [...store.selected.value];
  if (!ids.length) return null;
  const stars = store.pictures.value.filter((one) => store.selected.value.has(one.id)).every((one) => one.starred);
  const { deleted } = store.filters.value;
  const done = (work) => { work(); store.clearSelection(); };
  const part = (id, icon, label, run, more = {}) => html`<${Button} small quiet id=${id} title=${label} onClick=${run} ...${more}><${Icon} name=${icon} /><span>${label}</span><//>`;
  return html`<div class="gallery-bulk" role="toolbar" aria-label=${say("gallery.selection")}>
    <b role="status" id="selected"><span>${say("gallery.selected", { n: ids.length })}</span><i aria-hidden="true">${ids.length}</i></b>
    ${part("select-all", "check", say("gallery.select_all"), store.selectAll)}<span class="grow"></span>
    ${deleted ? part("bulk-restore", "again", say("gallery.restore"), () => done(() => store.restore(ids))) : html`
      ${part("bulk-zip", "download", say(ids.length > 1 ? "gallery.zip" : "gallery.download"), () => store.download(ids))}
      ${part("bulk-star", "star", say(stars ? "gallery.unstar" : "gallery.star"), () => store.star(ids, !stars), { pressed: stars })}
      ${part("bulk-tag", "edit", say("gallery.tags"), () => setAsking("tags"))}
      ${part("bulk-board", "box", say("gallery.board"), () => setAsking("board"))}
      ${ids.length === 2 && part("bulk-compare", "compare", say("gallery.compare"), () => go(`/gallery/compare/${ids[0]}/${ids[1]}${store.search.value}`))}
      ${part("bulk-delete", "trash", say("gallery.delete"), () => done(() => store.remove(ids)), { kind: "danger" })}`}
    <${Button} small quiet id="clear-selection" label=${say("gallery.clear")} onClick=${store.clearSelection}><${Icon} name="close" /><//>
    ${asking === "tags" && html`<${Tags} ids=${ids} onClose=${() => setAsking("")} />`}
    ${asking === "board" && html`<${BoardChoice} ids=${ids} onClose=${() => setAsking("")} />`}
  </div>`;
}

function Found() {
  const { state, pictures, compared, total, filters } = store;
  const error = state.value instanceof Error ? state.value : null;
  if (error) {
    return html`<div class="empty" role="alert" id="gallery-error"><${Icon} name="cloud" /><h2>${say("gallery.failed")}</h2><p>${explain(error)}</p><${Button} onClick=${store.reload}>${say("gallery.try_again")}<//></div>`;
  }
  if (!pictures.value.length && state.value !== "loading") {
    const given = Object.keys(filters.value);
    if (filters.value.deleted) return html`<${Empty} icon="trash" title=${say("gallery.trash_empty")}>${say("gallery.trash_hint")}<//>`;
    if (given.length) {
      return html`<div id="none-found"><${Empty} icon="search" title=${say("gallery.none")}>${say("gallery.none_hint")}<//>
        <p class="gallery-centre"><${Button} onClick=${() => store.setFilters(Object.fromEntries(given.map((name) => [name, undefined])))}>${say("gallery.show_all")}<//></p></div>`;
    }
    return html`<${Empty} title=${say("gallery.empty")}>${say("gallery.empty_hint")}<//>`;
  }
  return html`<p class="gallery-count soft small-text" role="status" id="found">${total.value === null ? " " : say("gallery.count", { n: total.value })}
      ${compared.value && ` · ${say(`gallery.compared_${compared.value.by}`)}`}</p>
    <${Grid} />
    ${(state.value === "more" || (state.value === "loading" && !pictures.value.length)) && html`<p class="loading">${say("app.loading")}</p>`}`;
}

/* One picture or two up close, loaded when they are first needed. */

const close = new Map();

function Close({ from, ...props }) {
  const [Shown, setShown] = useState(() => close.get(from));
  useEffect(() => {
    let current = true;
    import(from).then((module) => { close.set(from, module.default); if (current) setShown(() => module.default); });
    return () => { current = false; };
  }, [from]);
  return Shown && close.get(from) === Shown ? html`<${Shown} ...${props} />` : html`<div class="gallery-close"></div>`;
}

let scrolled = 0;

export default function Gallery({ route }) {
  const [first, second, third] = route.rest;
  const isClose = Boolean(first);
  const key = JSON.stringify(store.filters.value);
  useEffect(() => store.follow(), []);
  useEffect(() => { store.show(); }, [key]);
  // Before the next frame: while the grid is hidden, the window scrolls to its top by itself.
  useLayoutEffect(() => {
    if (isClose) return undefined;
    scrollTo(0, scrolled);
    const keep = () => { scrolled = scrollY; };
    addEventListener("scroll", keep, { passive: true });
    return () => removeEventListener("scroll", keep);
  }, [isClose]);
  const shown = useRef(key);
  useLayoutEffect(() => {
    if (shown.current !== key) { shown.current = key; scrolled = 0; scrollTo(0, 0); }
  }, [key]);
  useHotkeys(isClose ? [] : [
    { keys: "/", label: say("gallery.search"), run: () => document.getElementById("search")?.focus() },
    { keys: "Ctrl+a", label: say("gallery.select_all"), run: store.selectAll },
    { keys: "Escape", label: say("gallery.clear"), run: store.clearSelection },
    { keys: "Delete", label: say("gallery.delete_selected"), run: () => { const ids = [...store.selected.peek()]; if (ids.length && !store.filters.peek().deleted) store.remove(ids); } },
  ], [isClose]);
  return html`<h1 class="visually-hidden">${say("nav.gallery")}</h1>
    <div class="gallery" inert=${isClose} hidden=${isClose}>
      <${Boards} /><div class="gallery-main"><${Search} />${filtersOpen.value && html`<${Filters} />`}<${BoardHead} /><${Found} /><${BulkBar} /></div>
    </div>
    ${first === "compare" && second && third ? html`<${Close} from="./compare.js" ids=${[second, third]} />` : first && html`<${Close} from="./viewer.js" id=${first} />`}`;
}
