// A loss curve as a drawing of its own: the figures as they are, and their running mean.
import { html } from "../../app/preact.js";
import { language, say } from "../../app/words.js";

const WIDTH = 640;
const HEIGHT = 240;
const LEFT = 46;
const BOTTOM = 26;
const TOP = 8;
const MOST_POINTS = 400;

/** About `count` round numbers between two. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

function means(points) {
  const span = Math.max(1, Math.round(points.length / 12));
  return points.map(([x], at) => {
    const part = points.slice(Math.max(0, at - span + 1), at + 1);
    return [x, part.reduce((sum, [, y]) => sum + y, 0) / part.length];
  });
}

const thinned = (points) => points.filter((_, at) => at % Math.ceil(points.length / MOST_POINTS) === 0 || at === points.length - 1);

/**
 * @param {{lines: Record<string, number>[]}} props figures by `images_seen`, as the server's log has them.
 */
export function Chart({ lines }) {
  const losses = lines.filter((one) => Number.isFinite(one.loss)).map((one) => [one.images_seen, one.loss]);
  if (losses.length < 2) return html`<p class="soft">${say("train.no_curve")}</p>`;
  const shown = thinned(losses);
  const values = losses.map(([, y]) => y);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const first = losses[0][0];
  const last = losses.at(-1)[0];
  const x = (seen) => LEFT + ((WIDTH - LEFT - 8) * (seen - first)) / (last - first || 1);
  const y = (loss) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (loss - low) / (high - low || 1));
  const way = (points) => points.map(([a, b], at) => `${at ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  const number = (value) => value.toLocaleString(language, { maximumSignificantDigits: 3 });
  const from = number(losses[0][1]);
  const smooth = means(losses);
  const to = number(smooth.at(-1)[1]);
  return html`<svg class="train-chart" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label=${say("train.curve", { from, to, n: last })}>
    ${ticks(low, high, 4).map((value) => html`<g key=${value}><path class="grid" d="M${LEFT} ${y(value)}H${WIDTH - 8}" /><text x=${LEFT - 6} y=${y(value) + 4} text-anchor="end">${number(value)}</text></g>`)}
    ${ticks(first, last, 5).map((value) => html`<text key=${value} x=${x(value)} y=${HEIGHT - 6} text-anchor="middle">${number(value)}</text>`)}
    <path class="raw" d=${way(shown)} /><path class="mean" d=${way(thinned(smooth))} />
  </svg>`;
}
