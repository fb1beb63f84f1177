// The frame around the views: navigation, the queue's state, messages, and the view that the address names.
import { html, render, effect, useEffect, useState } from "./preact.js";
import { connect } from "./events.js";
import { useHotkeys } from "./keys.js";
import { go, route, VIEWS } from "./router.js";
import { boot, connection, dismiss, openJobs, queue, settings, toasts } from "./state.js";
import { say } from "./words.js";
import { Button, Icon } from "../ui/controls.js";

const ICONS = { paint: "brush", edit: "edit", gallery: "grid", queue: "list", explain: "eye", models: "box", train: "spark", settings: "gear" };

function Brand() {
  return html`<a class="brand" href="/paint" aria-label="gouache"><svg viewBox="0 0 28 28" fill="none" aria-hidden="true">
    <path d="M4 22c3.5.6 6-.4 6.6-3 .5-2-.9-3.6-2.7-3.6-3.2 0-1.6 4.2-3.9 6.6Z" fill="currentColor"/>
    <path d="M11.6 15.6 22.4 4.8a1.9 1.9 0 0 1 2.7 2.7L13.9 17.7" stroke="currentColor" stroke-width="2.2" stroke-linecap="round"/>
  </svg><strong>gouache</strong></a>`;
}

function Navigation({ view }) {
  const open = openJobs.value.length;
  return html`<nav class="nav" aria-label=${say("nav.views")}>
    ${VIEWS.filter((name) => name !== "train" || boot.admin).map((name) => html`<a key=${name} href="/${name}" id="nav-${name}"
        aria-current=${name === view ? "page" : null} title=${say(`nav.${name}`)}>
      <${Icon} name=${ICONS[name]} /><span>${say(`nav.${name}`)}</span>
      ${name === "queue" && open > 0 && html`<b class="badge" aria-label=${say("nav.open_jobs", { n: open })}>${open}</b>`}
    </a>`)}
  </nav>`;
}

function User() {
  if (boot.open) return null;
  return html`<form class="user" method="post" action="/logout"><b id="user" title=${say("nav.signed_in_as", { name: boot.user })}>${boot.user}</b>
    <${Button} id="sign-out" type="submit" small>${say("nav.sign_out")}<//></form>`;
}

function Progress() {
  const running = openJobs.value.find((job) => job.state === "running");
  return html`<div class="progress-line" hidden=${!running} role="presentation">
    <i style=${{ transform: `scaleX(${running?.progress ?? 0})` }}></i></div>`;
}

function Offline() {
  const state = connection.value;
  if (state !== "offline" && state !== "away") return null;
  return html`<p class="offline" role="status" id="offline"><${Icon} name="cloud" /> ${say(`app.${state}`)}</p>`;
}

function Toasts() {
  return html`<div class="toasts" role="status" aria-live="polite">
    ${toasts.value.map((one) => html`<div key=${one.id} class="toast ${one.kind}">
      <span>${one.text}</span>
      ${one.action && html`<${Button} small onClick=${() => { one.action.run(); dismiss(one.id); }}>${one.action.label}<//>`}
      <${Button} small quiet label=${say("app.dismiss")} onClick=${() => dismiss(one.id)}><${Icon} name="close" /><//>
    </div>`)}
  </div>`;
}

const loaded = new Map();

function View() {
  const { view } = route.value;
  const [Shown, setShown] = useState(() => loaded.get(view));
  const [failed, setFailed] = useState(null);
  useEffect(() => {
    let current = true;
    setFailed(null);
    import(`../views/${view}/${view}.js`).then(
      (module) => { loaded.set(view, module.default); if (current) setShown(() => module.default); },
      (error) => { if (current) setFailed(error); },
    );
    return () => { current = false; };
  }, [view]);
  if (failed) {
    return html`<div class="empty"><p>${say("app.view_failed")}</p><${Button} onClick=${() => location.reload()}>${say("app.reload")}<//></div>`;
  }
  return Shown && loaded.get(view) === Shown ? html`<${Shown} key=${view} route=${route.value} />` : html`<p class="loading" role="status">${say("app.loading")}</p>`;
}

function App() {
  const { view } = route.value;
  const [KeyHelp, setKeyHelp] = useState(null);
  const help = () => import("./key_help.js").then((module) => setKeyHelp(() => module.default));
  useHotkeys([
    { keys: "?", label: say("app.keys"), run: help },
    ...VIEWS.slice(0, 4).map((name, number) => ({ keys: `Ctrl+${number + 1}`, label: say(`nav.${name}`), inFields: true, run: () => go(`/${name}`) })),
  ]);
  return html`<a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>${say("app.skip")}</a>
    <header class="top"><${Brand} /><${Navigation} view=${view} /><${User} /></header>
    <${Progress} /><${Offline} />
    <main id="main" tabindex="-1" class="view view-${view}"><${View} /></main>
    <${Toasts} />${KeyHelp && html`<${KeyHelp} onClose=${() => setKeyHelp(null)} />`}`;
}

effect(() => {
  document.documentElement.dataset.theme = settings.value.theme;
});
effect(() => {
  const running = openJobs.value.find((job) => job.state === "running");
  const share = running && connection.value === "online" ? `${Math.round(100 * running.progress)} % · ` : queue.value.paused ? `${say("app.paused")} · ` : "";
  document.title = `${share}${say(`nav.${route.value.view}`)} · gouache`;
});

// A file that is dropped beside a drop zone must not replace the page; outside the editor a picture's settings are read.
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  const taken = event.defaultPrevented || route.peek().view === "edit";
  event.preventDefault();
  const file = [...(event.dataTransfer?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (file && !taken) import("../ui/recall.js").then(({ useSettingsIn }) => useSettingsIn(file));
});

connect();
render(html`<${App} />`, document.getElementById("app"));
