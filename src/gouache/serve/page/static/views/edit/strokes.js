// Brushes and areas on plain arrays: coverage 0..255, one byte a pixel, rows from the top. Nothing here knows the page.

/** A rectangle of pixels, cut to a picture; null if nothing is left. Edges are whole numbers. */
export function clipped(left, top, right, bottom, width, height) {
  const x = Math.max(0, Math.floor(left));
  const y = Math.max(0, Math.floor(top));
  const w = Math.min(width, Math.ceil(right)) - x;
  const h = Math.min(height, Math.ceil(bottom)) - y;
  return w > 0 && h > 0 ? { x, y, w, h } : null;
}

/** The smallest rectangle around two; either may be null. */
export function joined(one, two) {
  if (!one || !two) return one || two;
  const x = Math.min(one.x, two.x);
  const y = Math.min(one.y, two.y);
  return { x, y, w: Math.max(one.x + one.w, two.x + two.w) - x, h: Math.max(one.y + one.h, two.y + two.h) - y };
}

/** How much a brush covers at each distance from its line, in quarters of a pixel: a table, since it is asked for
 * every pixel. Hardness 1 has an edge of one pixel, 0 fades from the middle. */
export function profile(radius, hardness) {
  const soft = Math.max(1, radius * (1 - hardness));
  const outer = Math.max(radius, 0.5) + (soft <= 1 ? 0.5 : 0);
  const table = new Uint8Array(Math.ceil(outer * 4) + 2);
  for (let k = 0; k < table.length; k++) {
    const share = Math.min(1, Math.max(0, (outer - k / 4) / soft));
    table[k] = Math.round(255 * (soft <= 1 ? share : share * share * (3 - 2 * share)));
  }
  return { table, outer };
}

/** The stretch of a stroke from (x0, y0) to (x1, y1) laid on `cover` by maximum, so that it may cross itself.
 * Gives the rectangle that it may have changed. */
export function stroke(cover, width, height, x0, y0, x1, y1, brush) {
  const { table, outer } = brush;
  const box = clipped(Math.min(x0, x1) - outer, Math.min(y0, y1) - outer, Math.max(x0, x1) + outer + 1,
    Math.max(y0, y1) + outer + 1, width, height);
  if (!box) return null;
  const dx = x1 - x0;
  const dy = y1 - y0;
  const length = dx * dx + dy * dy;
  const limit = outer * outer;
  for (let y = box.y; y < box.y + box.h; y++) {
    const py = y + 0.5 - y0;
    const row = y * width;
    for (let x = box.x; x < box.x + box.w; x++) {
      const px = x + 0.5 - x0;
      let along = length ? (px * dx + py * dy) / length : 0;
      along = along < 0 ? 0 : along > 1 ? 1 : along;
      const ex = px - along * dx;
      const ey = py - along * dy;
      const square = ex * ex + ey * ey;
      if (square >= limit) continue;
      const value = table[(Math.sqrt(square) * 4 + 0.5) | 0];
      if (value > cover[row + x]) cover[row + x] = value;
    }
  }
  return box;
}

/** A mask after a stroke: what it was, lighter where the brush covers, or darker where it erases. In place, in `box`. */
export function stain(mask, before, cover, width, box, erase) {
  for (let y = box.y; y < box.y + box.h; y++) {
    for (let k = y * width + box.x, end = k + box.w; k < end; k++) {
      const old = before[k];
      const value = cover[k];
      mask[k] = erase ? (old < 255 - value ? old : 255 - value) : old > value ? old : value;
    }
  }
}

/** RGBA pixels of `box` after a stroke in a colour [r, g, b], or after erasing (colour null), from the whole layer's
 * pixels before it. */
export function tint(before, cover, width, box, colour, opacity = 1) {
  const made = new Uint8ClampedArray(box.w * box.h * 4);
  let to = 0;
  for (let y = box.y; y < box.y + box.h; y++) {
    for (let k = y * width + box.x, end = k + box.w; k < end; k++, to += 4) {
      const from = k * 4;
      const share = (cover[k] / 255) * opacity;
      const old = before[from + 3] / 255;
      if (!colour) {
        made[to] = before[from];
        made[to + 1] = before[from + 1];
        made[to + 2] = before[from + 2];
        made[to + 3] = Math.round(255 * old * (1 - share));
        continue;
      }
      const alpha = share + old * (1 - share);
      const kept = alpha ? (old * (1 - share)) / alpha : 0;
      for (let c = 0; c < 3; c++) made[to + c] = colour[c] * (1 - kept) + before[from + c] * kept;
      made[to + 3] = Math.round(255 * alpha);
    }
  }
  return made;
}

/** A closed outline of [x, y] points as coverage with smooth edges. */
export function filled(points, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.beginPath();
  points.forEach(([x, y], k) => (k ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.closePath();
  context.fill();
  const pixels = context.getImageData(0, 0, width, height).data;
  const cover = new Uint8Array(width * height);
  for (let k = 0; k < cover.length; k++) cover[k] = pixels[k * 4 + 3];
  return cover;
}

/** A mask grown by so many pixels (shrunk if negative), rounded like an octagon. */
export function grown(mask, width, height, pixels) {
  let from = Uint8Array.from(mask);
  let to = new Uint8Array(mask.length);
  const lighter = pixels > 0;
  const step = (square) => {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const k = y * width + x;
        let best = from[k];
        for (let j = y > 0 ? -1 : 0; j <= (y < height - 1 ? 1 : 0); j++) {
          for (let i = x > 0 ? -1 : 0; i <= (x < width - 1 ? 1 : 0); i++) {
            if (!square && i && j) continue;
            const value = from[k + j * width + i];
            if (lighter ? value > best : value < best) best = value;
          }
        }
        to[k] = best;
      }
    }
    [from, to] = [to, from];
  };
  for (let k = 0; k < Math.abs(pixels); k++) step(k % 2 === 1);
  return from;
}

/** The rectangle in which a mask is not black; null if it is black. */
export function extent(mask, width, height) {
  let left = width;
  let right = -1;
  let top = -1;
  let bottom = -1;
  for (let y = 0; y < height; y++) {
    let first = -1;
    let last = -1;
    for (let k = y * width, x = 0; x < width; k++, x++) {
      if (!mask[k]) continue;
      if (first < 0) first = x;
      last = x;
    }
    if (first < 0) continue;
    if (top < 0) top = y;
    bottom = y;
    left = Math.min(left, first);
    right = Math.max(right, last);
  }
  return top < 0 ? null : { x: left, y: top, w: right - left + 1, h: bottom - top + 1 };
}

/** A rectangle of an array of one byte a pixel. */
export function cutOut(data, width, box) {
  const part = new Uint8Array(box.w * box.h);
  for (let y = 0; y < box.h; y++) {
    const start = (box.y + y) * width + box.x;
    part.set(data.subarray(start, start + box.w), y * box.w);
  }
  return part;
}

/** Put such a rectangle back. */
export function putBack(data, width, box, part) {
  for (let y = 0; y < box.h; y++) {
    data.set(part.subarray(y * box.w, (y + 1) * box.w), (box.y + y) * width + box.x);
  }
}
