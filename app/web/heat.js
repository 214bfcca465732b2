// Weights to colours, by the same rules as the server's own pictures.

import { COLORMAPS } from "/web/colormaps.js";

const MAX_GAIN = 100; // the colours never end below this part of the largest weight
const WIDEST = 320; // pixels: enough for a smooth look, few enough to paint while a finger moves

/** The weight at which the colours end: a percentile of the weights above zero, linear between ranks as in NumPy. */
export function ceilingOf(weights, clip) {
  const positive = Float64Array.from(weights.filter((weight) => weight > 0)).sort();
  if (!positive.length) return 0;
  const rank = (positive.length - 1) * clip / 100;
  const below = Math.floor(rank);
  const above = Math.min(below + 1, positive.length - 1);
  const percentile = positive[below] + (positive[above] - positive[below]) * (rank - below);
  return Math.max(percentile, positive.at(-1) / MAX_GAIN);
}

/** Paints weights [rows, columns] onto a canvas: one pixel a cell, or bilinear between the cells' centres. */
export function paintHeat(canvas, map, ceiling, colormap, smooth) {
  const { columns, rows, weights } = map;
  const factor = smooth ? Math.max(1, Math.floor(WIDEST / columns)) : 1;
  const width = columns * factor;
  const height = rows * factor;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const colors = COLORMAPS[colormap];
  const scaled = weights.map((weight) => Math.min(255, (ceiling > 0 ? weight / ceiling : 0) * 255));
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
      const upper = scaled[top + left] + (scaled[top + right] - scaled[top + left]) * part;
      const lower = scaled[bottom + left] + (scaled[bottom + right] - scaled[bottom + left]) * part;
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

/** A weight as people read it: 12.3 %, or 0.0042 % where there is little. */
export function percent(weight) {
  const value = 100 * weight;
  if (value > 0 && value < 0.001) return "< 0.001 %";
  return `${value >= 10 ? value.toFixed(1) : Number(value.toPrecision(2))} %`;
}
