// Weights to colours, by the same rules as the server's own pictures.

import { COLORMAPS } from "/web/colormaps.js";

const MAX_GAIN = 100; // the colours never end below this part of the largest weight
const DECADES = 4; // of a logarithmic scale
const DIM = 0.1; // of the way through the colours: below that a cell can't be told from one without weight
const WIDEST = 320; // pixels: enough for a smooth look, few enough to paint while a finger moves

/**
 * The server's four norms, over the weights of one map, or of several that share their colours.
 * @returns {{start, end, toShare}} texts for the colours' ends, and a function from a weight to 0 ... 1
 */
export function scaleOf(weights, { norm, clip }) {
  const positive = Float64Array.from(weights.filter((weight) => weight > 0)).sort();
  if (!positive.length) return { start: "0", end: "", toShare: () => 0 };
  if (norm === "rank" || norm === "sum") return runningScale(positive, norm);
  const ceiling = Math.max(percentile(positive, clip), positive.at(-1) / MAX_GAIN);
  const end = `${ceiling < positive.at(-1) ? "≥ " : ""}${bound(ceiling)}`;
  if (norm === "max") return { start: "0", end, toShare: (weight) => within(weight / ceiling) };
  const start = `≤ ${bound(ceiling / 10 ** DECADES)}`;
  return { start, end, toShare: (weight) => within(1 + Math.log10(weight / ceiling) / DECADES) };
}

/** As `percent`, but a number however small it is: "≥ < 0.001 %" says nothing. */
const bound = (weight) => (weight >= 1e-5 ? percent(weight) : `${(100 * weight).toExponential(0)} %`);

const within = (share) => Math.min(1, Math.max(0, share));

/** Linear between ranks, as NumPy has it. */
function percentile(sorted, clip) {
  const rank = (sorted.length - 1) * clip / 100;
  const below = Math.floor(rank);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (rank - below);
}

/** By the share of cells, or of the weight, that lies on cells no heavier. */
function runningScale(sorted, norm) {
  const running = new Float64Array(sorted.length + 1);
  sorted.forEach((weight, index) => { running[index + 1] = running[index] + (norm === "rank" ? 1 : weight); });
  const toShare = (weight) => within(running[countUpTo(sorted, weight)] / running.at(-1));
  return norm === "rank"
    ? { start: "lightest cell", end: "heaviest", toShare }
    : { start: "0", end: "the whole sum", toShare };
}

function countUpTo(sorted, weight) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= weight) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The cells that are bright enough to see: {count, share of the weight, isAll if no other cell has any}. */
export function brightest(weights, toShare) {
  let [count, positive, seen, sum] = [0, 0, 0, 0];
  for (const weight of weights) {
    sum += weight;
    positive += weight > 0;
    if (toShare(weight) < DIM) continue;
    count += 1;
    seen += weight;
  }
  return { count, share: seen / sum, isAll: count >= positive };
}

/** Paints weights [rows, columns] onto a canvas: one pixel a cell, or bilinear between the cells' centres. */
export function paintHeat(canvas, map, toShare, colormap, smooth) {
  const { columns, rows, weights } = map;
  const factor = smooth ? Math.max(1, Math.floor(WIDEST / columns)) : 1;
  const width = columns * factor;
  const height = rows * factor;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const colors = COLORMAPS[colormap];
  const levels = weights.map((weight) => Math.round(toShare(weight) * 255));
  const across = stops(columns, factor);
  const down = stops(rows, factor);
  for (let y = 0, index = 0; y < height; y += 1) {
    const top = down.cell[y] * columns;
    const bottom = Math.min(down.cell[y] + 1, rows - 1) * columns;
    const low = down.part[y];
    for (let x = 0; x < width; x += 1, index += 1) {
      const left = across.cell[x];
      const right = Math.min(left + 1, columns - 1);
      const part = across.part[x];
      const upper = levels[top + left] + (levels[top + right] - levels[top + left]) * part;
      const lower = levels[bottom + left] + (levels[bottom + right] - levels[bottom + left]) * part;
      pixels[index] = colors[Math.round(upper + (lower - upper) * low)];
    }
  }
  context.putImageData(image, 0, 0);
}

/** For each of `count * factor` pixels: the cell whose centre lies before it, and how far it is to the next. */
function stops(count, factor) {
  const cell = new Int32Array(count * factor);
  const part = new Float64Array(count * factor);
  for (let index = 0; index < cell.length; index += 1) {
    const position = Math.min(count - 1, Math.max(0, (index + 0.5) / factor - 0.5));
    cell[index] = Math.floor(position);
    part[index] = position - cell[index];
  }
  return { cell, part };
}

export function paintLegend(canvas, colormap) {
  Object.assign(canvas, { width: 256, height: 1 });
  const context = canvas.getContext("2d");
  const image = context.createImageData(256, 1);
  new Uint32Array(image.data.buffer).set(COLORMAPS[colormap]);
  context.putImageData(image, 0, 0);
}

/** A weight as people read it: 12.3 %, or 0.0042 % where there is little; no line ends within it. */
export function percent(weight) {
  const value = 100 * weight;
  if (value > 0 && value < 0.001) return "<\u00a00.001\u00a0%";
  return `${value >= 10 ? value.toFixed(1) : Number(value.toPrecision(2))}\u00a0%`;
}
