// Small parts that every view uses: icons, buttons, segments, empty states, places to drop a file.
import { html, useRef, useState } from "../app/preact.js";

const PATHS = {
  brush: "M14.7 5.3 19 9.6 9.5 18H5v-4.5zM13 7l4.5 4.5", edit: "M4 20h4L19 9l-4-4L4 16zM13.5 6.5l4 4",
  grid: "M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z", list: "M8 6h12M8 12h12M8 18h12M4 6h.01M4 12h.01M4 18h.01",
  box: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM12 12l8-4.5M12 12v9M12 12L4 7.5", spark: "M12 3v4M12 17v4M3 12h4M17 12h4M6 6l2.5 2.5M15.5 15.5 18 18M6 18l2.5-2.5M15.5 8.5 18 6",
  gear: "M12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6zM12 3v2.5M12 18.5V21M3 12h2.5M18.5 12H21M5.6 5.6l1.8 1.8M16.6 16.6l1.8 1.8M5.6 18.4l1.8-1.8M16.6 7.4l1.8-1.8",
  close: "M6 6l12 12M18 6L6 18", cloud: "M7 18h10a4 4 0 0 0 .6-7.95A6 6 0 0 0 6.2 9.6 4.2 4.2 0 0 0 7 18zM4 4l16 16",
  star: "M12 4l2.5 5.2 5.7.7-4.2 3.9 1.1 5.6L12 16.6l-5.1 2.8L8 13.8 3.8 9.9l5.7-.7z", trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14", upload: "M12 16V5M7 9l5-5 5 5M5 20h14", plus: "M12 5v14M5 12h14", minus: "M5 12h14",
  swap: "M7 4 3 8l4 4M3 8h13M17 12l4 4-4 4M21 16H8", lock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3", dice: "M5 5h14v14H5zM9 9h.01M15 15h.01M12 12h.01M15 9h.01M9 15h.01",
  again: "M4 12a8 8 0 0 1 14-5l2 2M20 4v5h-5M20 12a8 8 0 0 1-14 5l-2-2M4 20v-5h5", up: "M6 15l6-6 6 6", down: "M6 9l6 6 6-6", left: "M15 6l-6 6 6 6", right: "M9 6l6 6-6 6",
  grip: "M9 6h.01M15 6h.01M9 12h.01M15 12h.01M9 18h.01M15 18h.01", pause: "M8 5v14M16 5v14", play: "M7 5l11 7-11 7z", search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l5 5", more: "M6 12h.01M12 12h.01M18 12h.01",
  compare: "M12 3v18M4 7h5v10H4zM15 7h5v10h-5z", check: "M5 12l5 5 9-10", eye: "M3 12s3.5-6 9-6 9 6 9 6-3.5 6-9 6-9-6-9-6zM12 10a2 2 0 1 0 0 4 2 2 0 0 0 0-4z",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01", copy: "M9 9h11v11H9zM5 15H4V4h11v1", zoom: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l5 5M11 8v6M8 11h6", info: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM12 11v5M12 8h.01",
  endless: "M7 8.5c-2.2 0-4 1.5-4 3.5s1.8 3.5 4 3.5c4.2 0 5.8-7 10-7 2.2 0 4 1.5 4 3.5s-1.8 3.5-4 3.5c-4.2 0-5.8-7-10-7z",
};

/**
 * A line drawing of 24 by 24, coloured as the text.
 *
 * @param {{name: string}} props one of the names above.
 */
export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round"
    stroke-linejoin="round" aria-hidden="true"><path d=${PATHS[name] ?? PATHS.more} /></svg>`;
}

/**
 * A button.
 *
 * @param {{kind?: "plain" | "primary" | "danger", small?: boolean, quiet?: boolean, label?: string, pressed?: boolean}} props
 *   label: its name where only an icon is shown, also as a tooltip; quiet: without a frame; pressed: of a switch. All other
 *   props are the element's own.
 */
export function Button({ kind = "plain", small = false, quiet = false, label, pressed, children, class: extra = "", type = "button", ...rest }) {
  const names = ["button", kind, small && "small", quiet && "quiet", extra].filter(Boolean).join(" ");
  return html`<button type=${type} class=${names} aria-label=${label} title=${label} aria-pressed=${pressed} ...${rest}>${children}</button>`;
}

/**
 * One choice of a few, all of them seen.
 *
 * @param {{label: string, options: {value: string, label: string}[], value: string, onChange: (value: string) => unknown}} props
 */
export function Segmented({ label, options, value, onChange }) {
  return html`<div class="segmented" role="group" aria-label=${label}>
    ${options.map((one) => html`<button type="button" key=${one.value} aria-pressed=${one.value === value} onClick=${() => onChange(one.value)}>${one.label}</button>`)}
  </div>`;
}

/** What stands where nothing is yet: a drawing, a line, and what to do. */
export function Empty({ icon = "image", title, children }) {
  return html`<div class="empty"><${Icon} name=${icon} /><h2>${title}</h2>${children && html`<p>${children}</p>`}</div>`;
}

/**
 * A place to drop, paste or choose files.
 *
 * @param {{accept?: string, multiple?: boolean, onFiles: (files: File[]) => unknown, label: string, id?: string, class?: string}} props
 */
export function DropZone({ accept = "image/*", multiple = false, onFiles, label, children, id, class: extra = "" }) {
  const [over, setOver] = useState(false);
  const input = useRef();
  const give = (list) => { const files = [...list]; if (files.length) onFiles(multiple ? files : files.slice(0, 1)); };
  return html`<div id=${id} class="drop-zone ${over ? "over" : ""} ${extra}" role="button" tabindex="0" aria-label=${label}
      onClick=${() => input.current.click()}
      onKeyDown=${(event) => { if (event.target === event.currentTarget && ["Enter", " "].includes(event.key)) { event.preventDefault(); input.current.click(); } }}
      onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)}
      onDrop=${(event) => { event.preventDefault(); event.stopPropagation(); setOver(false); give(event.dataTransfer.files); }}
      onPaste=${(event) => give(event.clipboardData.files)}>
    ${children ?? html`<${Icon} name="upload" /><span>${label}</span>`}
    <input ref=${input} type="file" accept=${accept} multiple=${multiple} hidden tabindex="-1" aria-hidden="true"
      onClick=${(event) => event.stopPropagation()} onChange=${(event) => { give(event.target.files); event.target.value = ""; }} />
  </div>`;
}
