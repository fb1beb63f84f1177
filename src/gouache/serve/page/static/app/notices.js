// Desktop notifications for long jobs that end while nobody looks at the page.
import { settings } from "./state.js";
import { explain, say } from "./words.js";

/** A job that took less is over before anybody has turned to something else. */
const LONG_SECONDS = 20;

/** Whether notifications can be had at all: browsers show them for secure addresses only. */
export const canNotify = () => "Notification" in window && isSecureContext && Notification.permission !== "denied";

/** Whether they are shown. */
export const notifies = () => settings.value.notify === true && canNotify() && Notification.permission === "granted";

/**
 * Turn them on or off; the browser asks the user where it has not yet. Call it from a click only.
 *
 * @param {boolean} wanted
 * @returns {Promise<boolean>} whether they are on now.
 */
export async function setNotify(wanted) {
  const allowed = wanted && canNotify() && (await Notification.requestPermission()) === "granted";
  settings.value = { ...settings.value, notify: allowed };
  return allowed;
}

/** A job of this page ended just now. */
export function noteEnd(job) {
  if (!document.hidden || !settings.peek().notify || !("Notification" in window) || Notification.permission !== "granted") return;
  if (job.state === "cancelled" || (job.finished ?? 0) - (job.started ?? job.created) < LONG_SECONDS) return;
  const picture = job.pictures.at(-1);
  const shown = new Notification(say(job.state === "done" ? "notice.done" : "notice.failed", { n: job.picture_count }), {
    body: job.state === "done" ? job.label || job.prompt : explain(job.error ?? {}),
    icon: picture && `/v1/pictures/${picture}/thumbnail`,
    tag: `gouache-${job.id}`, // Of several tabs only one is seen.
  });
  shown.onclick = () => { window.focus(); shown.close(); };
}
