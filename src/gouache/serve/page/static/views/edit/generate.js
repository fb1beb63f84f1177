// From a drawing to a request and back: what is uploaded, what the request says, and what comes of the pictures.

import { api, attach } from "../../app/api.js";
import { NO_FRAME } from "./drawing.js";
import { extent } from "./strokes.js";

export const FIRST_SETTINGS = {
  prompt: "", strength: 0.75, count: 1, blur: 4, padding: 32, fill: "original", only_masked: false,
  overlap: 32, controls: [], more: {},
};
export const FILLS = ["original", "fill", "noise", "nothing"];

/** A canvas as a PNG: lossless, alpha kept. */
export async function png(canvas) {
  if (canvas.convertToBlob) return canvas.convertToBlob({ type: "image/png" });
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

/** A mask of one byte a pixel as a grey canvas, white = paint. */
export function greyCanvas(data, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const image = new ImageData(width, height);
  const words = new Uint32Array(image.data.buffer);
  for (let k = 0; k < words.length; k++) words[k] = 0xff000000 | (data[k] * 0x010101);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** A mask on the larger ground of a frame. */
export function framedMask(data, width, height, frame) {
  const w = width + frame.left + frame.right;
  const h = height + frame.top + frame.bottom;
  const made = new Uint8Array(w * h);
  for (let y = 0; y < height; y++) {
    made.set(data.subarray(y * width, (y + 1) * width), (y + frame.top) * w + frame.left);
  }
  return { data: made, width: w, height: h };
}

/**
 * What is painted anew where both a mask is brushed and the frame is dragged out. The engine's own outpainting masks its
 * border alone, so this is one inpainting of the larger picture: white in what is added and in the seam, and in the brushed
 * part as grey as its strength, since grey is a share of the strength (which is 1 then).
 */
export function bothMask(brushed, width, height, frame, overlap, strength) {
  const { data, width: w, height: h } = framedMask(brushed ?? new Uint8Array(width * height), width, height, frame);
  for (let k = 0; k < data.length; k++) data[k] = Math.round(data[k] * strength);
  const left = frame.left + (frame.left ? overlap : 0);
  const right = w - frame.right - (frame.right ? overlap : 0);
  const top = frame.top + (frame.top ? overlap : 0);
  const bottom = h - frame.bottom - (frame.bottom ? overlap : 0);
  for (let y = 0; y < h; y++) {
    const row = y * w;
    if (y < top || y >= bottom) data.fill(255, row, row + w);
    else {
      data.fill(255, row, row + Math.min(left, w));
      data.fill(255, row + Math.max(right, 0), row + w);
    }
  }
  return { data, width: w, height: h };
}

/**
 * Upload what a drawing shows and say what is to be done with it.
 *
 * @returns {Promise<{request: object, frame: object, mask: {data, width, height} | null, ground: OffscreenCanvas,
 *   size: number[]}>} the request; the frame that its pictures take in; where they may differ from the drawing, null =
 *   everywhere; what was seen in that frame, and the drawing's width and height.
 */
export async function requestOf(drawing, settings) {
  const { width, height, frame, framed } = drawing;
  const brushed = drawing.brushed();
  const regions = drawing.prompted();
  const controls = settings.controls.filter((one) => one.model);
  const both = framed && (brushed || regions.length || controls.length || settings.more.image_prompts?.length);
  const ground = both ? frame : NO_FRAME;
  const flat = both ? null : drawing.untouchedFile();
  const shown = drawing.flat(frame); // at once: while it is uploaded, the drawing may go on
  const upload = async (blob) => (await attach(blob)).name;
  const init = await upload(flat || (await png(both ? shown : drawing.flat(ground))));
  const request = { ...settings.more, prompt: settings.prompt, init_image: init, count: settings.count };
  const options = { blur: settings.blur, fill: settings.fill };
  const cropped = settings.only_masked ? { only_masked: true, padding: settings.padding } : {};
  let mask = null;
  if (both) {
    mask = bothMask(brushed, width, height, frame, settings.overlap, settings.strength);
    request.strength = 1;
    request.mask = { ...options, ...cropped, image: await upload(await png(greyCanvas(mask.data, mask.width, mask.height))) };
  } else if (framed) {
    mask = bothMask(null, width, height, frame, settings.overlap, 1);
    request.outpaint = { ...frame, overlap: settings.overlap };
    // Of a mask the engine takes these two for the border that it adds; the outermost pixels alone would show through.
    request.mask = { ...options, fill: settings.fill === "original" ? "fill" : settings.fill };
  } else {
    request.strength = settings.strength;
    if (brushed) {
      mask = { data: brushed, width, height };
      request.mask = { ...options, ...cropped, image: await upload(await png(greyCanvas(brushed, width, height))) };
    }
  }
  if (regions.length) {
    request.regions = [];
    for (const layer of regions) {
      const area = framedMask(layer.data, width, height, ground);
      const name = await upload(await png(greyCanvas(area.data, area.width, area.height)));
      request.regions.push({ prompt: layer.prompt, mask: name, weight: layer.weight });
    }
  }
  if (controls.length) {
    request.control = controls.map(({ model, image, preprocessor, canny_low, canny_high, weight, start, end }) => ({
      model, image: image || init, preprocessor, weight, start, end,
      ...(preprocessor === "canny" ? { canny_low, canny_high } : {}),
    }));
  }
  return { request, frame: framed ? { ...frame } : NO_FRAME, mask, ground: shown, size: [width, height] };
}

/** Where a preview of a running job is seen: its rectangle in the larger picture, null if there is no telling. */
export function previewBox(request, mask, frame, drawing) {
  const whole = { x: 0, y: 0, w: drawing.width + frame.left + frame.right, h: drawing.height + frame.top + frame.bottom };
  if (request.outpaint) return null; // it grows in steps, each of another part
  if (!request.mask?.only_masked) return whole;
  const inner = extent(mask.data, mask.width, mask.height);
  const reach = request.mask.padding + Math.ceil(request.mask.blur * 2.5);
  const x = Math.max(0, inner.x - reach);
  const y = Math.max(0, inner.y - reach);
  const w = Math.min(whole.w, inner.x + inner.w + reach) - x;
  const h = Math.min(whole.h, inner.y + inner.h + reach) - y;
  const aspect = whole.w / whole.h;
  const fitted = (start, size, wanted, limit) => {
    const length = Math.min(Math.max(size, Math.round(wanted)), limit);
    return [Math.max(0, Math.min(start - Math.floor((length - size) / 2), limit - length)), length];
  };
  const [left, wide] = fitted(x, w, h * aspect, whole.w);
  const [top, high] = fitted(y, h, w / aspect, whole.h);
  return { x: left, y: top, w: wide, h: high };
}

/** A preview on a canvas of the larger picture, seen only where the mask is. */
export async function previewCanvas(address, box, mask, frame, drawing) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.className = "edit-preview";
  canvas.width = drawing.width + frame.left + frame.right;
  canvas.height = drawing.height + frame.top + frame.bottom;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, box.x, box.y, box.w, box.h);
  if (mask) {
    const stencil = greyCanvas(mask.data, mask.width, mask.height);
    const alpha = stencil.getContext("2d").getImageData(0, 0, mask.width, mask.height);
    for (let k = 0; k < mask.data.length; k++) alpha.data[k * 4 + 3] = mask.data[k];
    stencil.getContext("2d").putImageData(alpha, 0, 0);
    context.globalCompositeOperation = "destination-in";
    context.drawImage(stencil, 0, 0);
  }
  return canvas;
}

function isOpaque(context, width, height) {
  const words = new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
  return words.every((word) => word >>> 24 === 255);
}

/** A finished picture as a canvas, its pixels as they are in the file. */
export async function pictureCanvas(id) {
  const answer = await fetch(`/v1/pictures/${encodeURIComponent(id)}/file`);
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  return { ...(await canvasOf(await answer.blob())), picture: id };
}

/**
 * A file as a canvas, upright; scaled down to at most so many pixels. Gives the file too if it is to go up as it is: a PNG
 * with transparency, since a canvas forgets the colours of transparent pixels. Any other goes up as it is seen here: two
 * decoders of one JPEG don't agree to the bit.
 */
export async function canvasOf(blob, mostPixels = Infinity) {
  const bitmap = await createImageBitmap(blob);
  const scale = Math.min(1, Math.sqrt(mostPixels / (bitmap.width * bitmap.height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(8, Math.floor(bitmap.width * scale));
  canvas.height = Math.max(8, Math.floor(bitmap.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const scaled = canvas.width !== bitmap.width || canvas.height !== bitmap.height;
  bitmap.close();
  const whole = !scaled && blob.type === "image/png" && !isOpaque(context, canvas.width, canvas.height);
  return { canvas, file: whole ? blob : null, scaled };
}

/**
 * A candidate as a layer: only what differs from the drawing, so that what lies below stays what it is and shows through
 * everywhere else. Where the picture is transparent a layer can't take anything away: then it is kept whole.
 *
 * @returns {{canvas: HTMLCanvasElement, hides: boolean}} hides: it replaces what lies below.
 */
export function layerOf(candidate, drawing, frame) {
  const { width, height } = candidate.canvas;
  const source = candidate.canvas.getContext("2d").getImageData(0, 0, width, height);
  const pixels = new Uint32Array(source.data.buffer);
  // What it was painted from: what was drawn since is no difference of the candidate's.
  const below = candidate.ground ?? drawing.flat(frame);
  const sameSize = below.width === width && below.height === height;
  const under = sameSize ? new Uint32Array(below.getContext("2d").getImageData(0, 0, width, height).data.buffer) : null;
  let hides = !sameSize;
  for (let k = 0; k < pixels.length && !hides; k++) hides = pixels[k] >>> 24 < 255 && pixels[k] !== under[k];
  if (!hides) {
    const { mask } = candidate;
    const old = { left: frame.left, top: frame.top, right: width - frame.right, bottom: height - frame.bottom };
    for (let k = 0; k < pixels.length; k++) {
      if (pixels[k] !== under[k]) continue;
      const x = k % width;
      const y = (k - x) / width;
      const added = x < old.left || x >= old.right || y < old.top || y >= old.bottom;
      if (!added && (!mask || !mask.data[k])) pixels[k] = 0;
    }
  }
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(source, 0, 0);
  return { canvas, hides };
}

/** Store a composed picture in the gallery; `parents` are the gallery's pictures that it was made of. */
export async function keepInGallery(drawing) {
  const parents = [...new Set(drawing.pictures.filter((one) => one.visible && one.picture).map((one) => one.picture))];
  const query = parents.slice(0, 50).map((id) => `parent=${encodeURIComponent(id)}`).join("&");
  const picture = await png(drawing.flat());
  try {
    return await api.post(`/v1/pictures${query && `?${query}`}`, picture);
  } catch (error) {
    if (error.status !== 404 || !query) throw error;
    return api.post("/v1/pictures", picture); // a parent was deleted
  }
}
