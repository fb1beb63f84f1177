// Settings: what this user's page looks like and does, what the server does with images, the keys, and what it is made of.
import { html, useEffect, useState } from "../../app/preact.js";
import { api } from "../../app/api.js";
import { hotkeys } from "../../app/keys.js";
import { setNotify } from "../../app/notices.js";
import { boot, settings, toast } from "../../app/state.js";
import { bytes, language, say } from "../../app/words.js";
import { Button, Segmented } from "../../ui/controls.js";

const LANGUAGES = [["en", "English"], ["zh", "简体中文"]];

const set = (more) => { settings.value = { ...settings.value, ...more }; };

/** Another language means other words: they come with the page, which is loaded anew once the choice is kept. */
async function choose(chosen) {
  if (chosen === (settings.value.language || language) && settings.value.language) return;
  set({ language: chosen });
  try {
    await api.put("/v1/page/state/settings", settings.value);
    location.reload();
  } catch (error) {
    toast(error.message, { kind: "error" });
  }
}

async function notify(wanted) {
  if (!(await setNotify(wanted)) && wanted) toast(say("settings.notify_denied"), { kind: "error" });
}

function Row({ id, title, hint, children }) {
  return html`<div class="settings-row"><div><span class="label" id=${id}>${title}</span>${hint && html`<p class="small-text soft">${hint}</p>`}</div><div class="settings-control">${children}</div></div>`;
}

function Switch({ id, title, hint, checked, onChange }) {
  return html`<label class="settings-row settings-switch"><span><span class="label">${title}</span>${hint && html`<span class="small-text soft settings-hint">${hint}</span>`}</span>
    <input type="checkbox" id=${id} role="switch" checked=${checked} onChange=${(event) => onChange(event.target.checked)} /></label>`;
}

function Looks() {
  const { theme, previews, notify: isNotified } = settings.value;
  return html`<section class="panel stack" aria-labelledby="settings-page"><h2 id="settings-page">${say("settings.page")}</h2>
    <${Row} title=${say("settings.theme")}><${Segmented} label=${say("settings.theme")} value=${theme} onChange=${(value) => set({ theme: value })}
      options=${["system", "light", "dark"].map((value) => ({ value, label: say(`settings.theme_${value}`) }))} /><//>
    <${Row} title=${say("settings.language")}><${Segmented} label=${say("settings.language")} value=${settings.value.language || language} onChange=${choose} options=${LANGUAGES.map(([value, label]) => ({ value, label }))} /><//>
    <${Switch} id="settings-previews" title=${say("settings.previews")} hint=${say("settings.previews_hint")} checked=${previews !== false} onChange=${(value) => set({ previews: value })} />
    <${Switch} id="settings-notify" title=${say("settings.notify")} hint=${say("settings.notify_hint")} checked=${Boolean(isNotified)} onChange=${notify} /></section>`;
}

function Images({ about }) {
  return html`<section class="panel stack" aria-labelledby="settings-images"><h2 id="settings-images">${say("settings.images")}</h2>
    <${Row} title=${say("settings.watermark")} hint=${say(about?.watermark ? "settings.watermark_on" : "settings.watermark_off")}><span class="settings-value">${about ? (about.watermark ? say("settings.on") : say("settings.off")) : ""}</span><//>
    <${Row} title=${say("settings.safety")} hint=${say(`settings.safety_${about?.safety ?? "off"}_hint`)}><span class="settings-value">${about ? say(`settings.safety_${about.safety}`) : ""}</span><//>
    <p class="small-text soft">${say("settings.images_hint")}</p></section>`;
}

function Keys() {
  const listed = hotkeys.value.filter((one) => one.label);
  const texts = [["Ctrl+Enter", "settings.key_paint"], ["Ctrl+↑ ↓", "settings.key_weight"], ["Escape", "settings.key_escape"]].filter(([keys]) => !listed.some((one) => one.keys === keys));
  return html`<section class="panel stack" aria-labelledby="settings-keys"><h2 id="settings-keys">${say("app.keys")}</h2>
    <dl class="keys">${[...listed.map((one) => [one.keys, one.label]), ...texts.map(([keys, key]) => [keys, say(key)])].map(([keys, label]) => html`<div key=${keys}>
      <dt>${keys.split("+").map((key) => html`<kbd>${key}</kbd>`)}</dt><dd>${label}</dd></div>`)}</dl>
    <p class="small-text soft">${say("settings.keys_hint")}</p></section>`;
}

function Account() {
  return html`<section class="panel stack" aria-labelledby="settings-account"><h2 id="settings-account">${say("settings.account")}</h2>
    ${boot.open ? html`<p class="soft">${say("settings.open")}</p>` : html`<form method="post" action="/logout" class="row"><p class="grow">${say("nav.signed_in_as", { name: boot.user })}${boot.admin ? ` · ${say("settings.admin")}` : ""}</p>
      <${Button} type="submit" id="settings-sign-out">${say("nav.sign_out")}<//></form>`}</section>`;
}

function About({ about }) {
  return html`<section class="panel stack" aria-labelledby="settings-about"><h2 id="settings-about">${say("settings.about")}</h2>
    <p>gouache ${boot.version} · Apache-2.0</p>
    ${about?.free !== null && about && html`<p class="soft">${say("settings.free", { size: bytes(about.free) })}</p>`}
    <details><summary>${say("settings.libraries")}</summary><div class="settings-scroll" tabindex="0" role="region" aria-label=${say("settings.libraries")}><table class="settings-table small-text">
      <thead><tr><th scope="col">${say("settings.library")}</th><th scope="col">${say("settings.version")}</th><th scope="col">${say("models.licence")}</th></tr></thead>
      <tbody>${about?.libraries.map((one) => html`<tr key=${one.file}><td>${one.name}</td><td>${one.version}</td><td>${one.licence}</td></tr>`)}</tbody></table></div></details></section>`;
}

export default function Settings() {
  const [about, setAbout] = useState(null);
  useEffect(() => { api.get("/v1/page/about").then(setAbout, () => {}); }, []);
  return html`<div class="settings stack"><h1>${say("nav.settings")}</h1>
    <div class="settings-columns"><div class="stack"><${Looks} /><${Images} about=${about} /><${Account} /></div><div class="stack"><${Keys} /><${About} about=${about} /></div></div></div>`;
}
