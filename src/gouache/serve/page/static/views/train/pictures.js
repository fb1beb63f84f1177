// A set of pictures: drop files, see them small, write what they show.
import { html, useEffect, useRef, useState } from "../../app/preact.js";
import { go } from "../../app/router.js";
import { toast } from "../../app/state.js";
import { explain, say } from "../../app/words.js";
import { Button, DropZone, Icon } from "../../ui/controls.js";
import { Confirm } from "../../ui/dialog.js";
import { loadSets, picturesOf, plan, removePicture, removeSet, setCaption, thumbnail, upload } from "./store.js";

const ACCEPT = "image/*,.txt,.caption,.jsonl,.csv,.zip";
const SHOWN = 60;

/** Where pictures, captions or a zip are dropped; `onDone` is told the set's name. */
export function Drop({ name, onDone, compact = false }) {
  const [at, setAt] = useState(null);
  const [refused, setRefused] = useState([]);
  const give = async (files) => {
    setRefused([]);
    const set = name().trim();
    if (!set) return;
    const found = await upload(set, files, (done, total) => setAt({ done, total }));
    setAt(null);
    setRefused(found);
    if (found.length < files.length) onDone(set);
  };
  return html`<div class="stack">
    <${DropZone} id="train-drop" class=${compact ? "train-drop-small" : "train-drop"} accept=${ACCEPT} multiple onFiles=${give} label=${say("train.drop")}>
      <${Icon} name="upload" />
      <b>${at ? say("train.uploading", at) : say("train.drop")}</b>
      ${!compact && html`<span class="small-text">${say("train.drop_hint")}</span>`}
    <//>
    ${at && html`<progress max=${at.total} value=${at.done} aria-label=${say("train.uploading", at)}></progress>`}
    ${refused.length > 0 && html`<div class="train-trouble" role="alert"><p>${say("train.refused", { n: refused.length })}</p>
      <ul>${refused.slice(0, 5).map((one) => html`<li><b>${one.name}</b> ${one.reason}</li>`)}</ul></div>`}
  </div>`;
}

function Caption({ set, picture, onChange }) {
  const [text, setText] = useState(picture.caption);
  const [state, setState] = useState("");
  useEffect(() => setText(picture.caption), [picture.caption]);
  const keep = async () => {
    if (text.trim() === picture.caption) return;
    setState("keeping");
    try {
      onChange(await setCaption(set.name, picture.file, text));
      setState("kept");
    } catch (error) {
      setState("");
      toast(explain(error), { kind: "error" });
    }
  };
  return html`<textarea rows="2" class=${text.trim() ? "" : "train-mute"} value=${text} placeholder=${say("train.caption_hint")}
    aria-label=${say("train.caption_of", { name: picture.file })} data-state=${state}
    onInput=${(event) => { setText(event.target.value); setState(""); }} onBlur=${keep}
    onKeyDown=${(event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.blur(); }}></textarea>`;
}

/**
 * The pictures of a set with their captions.
 *
 * @param {{set: {name: string, pictures: number, captioned: number}, whole?: boolean}} props whole: as a page of its own,
 *   where the set can be deleted.
 */
export function Pictures({ set, whole = false }) {
  const [found, setFound] = useState(null);
  const [count, setCount] = useState(SHOWN);
  const [asked, setAsked] = useState(false);
  const [onlyMute, setOnlyMute] = useState(false);
  const current = useRef(set.name);
  current.current = set.name;
  useEffect(() => {
    picturesOf(set.name).then(
      (list) => { if (current.current === set.name) setFound(list); },
      (error) => toast(explain(error), { kind: "error" }),
    );
  }, [set.name, set.pictures, set.captioned]);
  const put = (changed) => { setFound((list) => list.map((one) => (one.file === changed.file ? changed : one))); loadSets(); };
  const remove = async (picture) => {
    try {
      await removePicture(set.name, picture.file);
      setFound((list) => list.filter((one) => one.file !== picture.file));
      loadSets();
    } catch (error) {
      toast(explain(error), { kind: "error" });
    }
  };
  const mute = found?.filter((one) => !one.caption).length ?? 0;
  const listed = (found ?? []).filter((one) => !onlyMute || !one.caption);
  return html`<section class="stack" aria-label=${say("train.pictures_of", { name: set.name })}>
    <div class="row"><p class="grow">${say("train.pictures", { n: set.pictures })}
      ${found && (mute ? html` · <span class="bad">${say("train.mute", { n: mute })}</span>` : html` · <span class="soft">${say("train.all_captioned")}</span>`)}</p>
      ${(mute > 0 || onlyMute) && html`<label class="row"><input type="checkbox" checked=${onlyMute} onChange=${(event) => setOnlyMute(event.target.checked)} />${say("train.only_mute")}</label>`}
      ${whole && html`<${Button} small onClick=${() => { plan.value = { ...plan.value, data: set.name, name: "" }; go("/train"); }}><${Icon} name="spark" />${say("train.use_set")}<//>
        <${Button} small kind="danger" onClick=${() => setAsked(true)}><${Icon} name="trash" />${say("train.delete_set")}<//>`}</div>
    <${Drop} compact name=${() => set.name} onDone=${() => loadSets()} />
    <ul class="train-grid ${whole ? "whole" : ""}">${listed.slice(0, count).map((picture) => html`<li key=${picture.file} class="train-card">
      <div class="train-thumb checker"><img src=${thumbnail(set.name, picture)} alt=${picture.caption || picture.file} loading="lazy" />
        <${Button} small quiet class="train-remove" label=${say("train.remove_picture", { name: picture.file })} onClick=${() => remove(picture)}><${Icon} name="close" /><//></div>
      <${Caption} set=${set} picture=${picture} onChange=${put} /></li>`)}</ul>
    ${listed.length > count && html`<${Button} onClick=${() => setCount(count + 4 * SHOWN)}>${say("train.more_pictures", { n: listed.length - count })}<//>`}
    ${asked && html`<${Confirm} danger title=${say("train.delete_set")} text=${say("train.delete_set_ask", { name: set.name, n: set.pictures })} yes=${say("train.delete")}
      onYes=${() => removeSet(set.name).then(() => { go("/train"); loadSets(); }, (error) => toast(explain(error), { kind: "error" }))} onClose=${() => setAsked(false)} />`}
  </section>`;
}
