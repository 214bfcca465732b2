// Pictures and masks as pixels, small enough for any browser's canvas.

import { get } from "/web/api.js";
import { readGray } from "/web/png.js";

const MOST_PIXELS = 2_000_000; // what is shown; phones refuse canvases far larger

/** @returns {{width, height}} the size at which a picture is worked with here */
export function workSize({ width, height }) {
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}

export function newCanvas({ width, height }) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

function drawn(bitmap, size) {
  const canvas = newCanvas(size);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, size.width, size.height);
  return canvas;
}

function isSeeThrough(canvas) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Uint32Array(data.buffer).some((pixel) => pixel < 0xff000000); // alpha comes last, and so is the highest byte
}

/** The picture upright on a canvas, with its full size; null if this browser can't read it, as with TIFF. */
export async function readPicture(blob) {
  try {
    const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
    const full = { width: bitmap.width, height: bitmap.height };
    const canvas = drawn(bitmap, workSize(full));
    return { canvas, isSeeThrough: blob.type !== "image/jpeg" && isSeeThrough(canvas), ...full };
  } catch {
    return null;
  }
}

/** The picture of a result, as the server keeps it. */
export async function fetchPicture(id) {
  const headers = { Accept: "image/webp, image/png;q=0.5" }; // WebP ends at 16,383 pixels
  return readPicture(await (await get(`/results/${id}?format=overlay&alpha=0`, { headers })).blob());
}

/** In place of a picture that neither this browser can read nor the server has kept. */
export function blankPicture(size) {
  const canvas = newCanvas(workSize(size));
  const context = canvas.getContext("2d");
  context.fillStyle = "#888";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return { canvas, ...size };
}

/** Class ids of a base64 PNG, at work size: {ids, width, height}. */
export async function readMask(base64, size) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const { width, height, data } = await readGray(bytes);
  const work = workSize(size);
  if (work.width === width) return { ...work, ids: data };
  const columns = Uint32Array.from({ length: work.width }, (_, x) => Math.floor((x + 0.5) * width / work.width));
  const ids = new Uint8Array(work.width * work.height);
  for (let y = 0, index = 0; y < work.height; y += 1) {
    const row = Math.floor((y + 0.5) * height / work.height) * width;
    for (const column of columns) ids[index++] = data[row + column];
  }
  return { ...work, ids };
}

/** The mask in its classes' colours; those that `isShown` (by id) refuses are left clear. */
export function paintMask(canvas, mask, classes, isShown) {
  Object.assign(canvas, { width: mask.width, height: mask.height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(mask.width, mask.height);
  const colors = new Uint32Array(256);
  const bytes = new Uint8Array(colors.buffer);
  for (const { id, color } of classes) if (isShown(id)) bytes.set([...color, 255], 4 * id);
  const pixels = new Uint32Array(image.data.buffer);
  mask.ids.forEach((id, index) => { pixels[index] = colors[id]; });
  context.putImageData(image, 0, 0);
}

/** @returns class id at a pixel of the full picture */
export function classAt(mask, size, { x, y }) {
  const column = Math.min(mask.width - 1, Math.floor((x + 0.5) * mask.width / size.width));
  const row = Math.min(mask.height - 1, Math.floor((y + 0.5) * mask.height / size.height));
  return mask.ids[row * mask.width + column];
}
