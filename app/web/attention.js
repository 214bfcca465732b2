// Attention maps: which there are, fetching them, and what can be said about one.

import { getArray, getJson } from "/web/api.js";
import { classAt } from "/web/picture.js";

const KEPT_BYTES = 64 << 20;
const NAMES = { cca: "Criss-cross", afnb: "AFNB", apnb: "APNB", nl: "Non-local", pam: "Position attention" };
const EXPLAINED = {
  "cca:1": "One pass: a cell looks along its own row and column.",
  "cca:2": "The second pass alone, again along row and column.",
  "cca:composed": "Both passes, multiplied out: by way of a crossing, a cell reaches every other.",
  "afnb:all": "Pyramid attention: high-level features look at averages of low-level ones.",
  "apnb:all": "Pyramid of 110 anchors that average parts of the picture; overlaps show as lines.",
  "nl:": "Dense attention: every cell against every other.",
  "pam:": "Dense attention without a scale: every cell against every other.",
};

/** A map that can be asked for: {key, block, parameters, title, hint, grid, hasCross}. */
function choice(block, part, value, title) {
  const key = `${block.block}:${value ?? ""}`;
  const parameters = { block: block.block, ...(part && { [part]: value }) };
  const hasCross = block.block === "cca";
  return { key, parameters, title, hint: EXPLAINED[key] ?? "", grid: block.grid, hasCross, block: block.block };
}

function rollout(block) {
  const made = choice(block, "step", "composed", "Rollout");
  made.parameters.compose = "rollout";
  return { ...made, key: "cca:rollout", hint: "Both passes with their residuals, by which a cell keeps a part of itself." };
}

function grid(block, level, name) {
  const made = choice(block, "level", level, `${name}, ${level}×${level}`);
  return { ...made, hint: `Through the ${level} × ${level} grid of anchors alone.` };
}

/** All maps of a result's /info, in the network's order. */
export function choicesOf(info) {
  return info.blocks.flatMap((block) => {
    const name = NAMES[block.block];
    if (block.steps.length) {
      const steps = block.steps.map((step) => choice(block, "step", step, step === "composed" ? "Composed" : `Step ${step}`));
      return block.composes.includes("rollout") ? [...steps, rollout(block)] : steps;
    }
    if (!block.levels.length) return [choice(block, null, null, name)];
    return block.levels.map((level) => (level === "all" ? choice(block, "level", level, name) : grid(block, level, name)));
  });
}

const NO_ATTENTION = "There is no attention to show: this model has no maps, or it looked at the picture in several windows.";
const NOT_KEPT = "The server has no room to keep this result, so there is no attention to show and no link to it. A smaller picture may fit.";

/** Why a result has no maps. */
export const whyNone = ({ isKept }) => (isKept ? NO_ATTENTION : NOT_KEPT);

/** The map to begin with: all that the last block does; null if there are no maps. */
export function mainOf(choices) {
  if (!choices.length) return null;
  const { block } = choices.at(-1);
  const ofBlock = choices.filter((one) => one.block === block);
  return ofBlock.find(({ key }) => key === "cca:composed" || key.endsWith(":all")) ?? ofBlock.at(-1);
}

/** The map of a key, if there is one, else the main one; null if there are none. */
export function pick(choices, key) {
  return choices.find((one) => one.key === key) ?? mainOf(choices);
}

export function cellOf({ x, y }, size, grid) {
  return {
    row: Math.min(grid.height - 1, Math.floor((y + 0.5) * grid.height / size.height)),
    column: Math.min(grid.width - 1, Math.floor((x + 0.5) * grid.width / size.width)),
  };
}

export function attentionUrl(id, parameters, format) {
  return `/attention/${id}?${new URLSearchParams({ ...parameters, format })}`;
}

/** Fetches maps, and keeps the latest: all pixels of a cell have the same one. */
export class Maps {
  #kept = new Map();
  #bytes = 0;

  /**
   * @param about {x, y}, or {class} for the average over its pixels
   * @param signal of an AbortController, for when nobody waits for the map any more
   * @returns {{weights, rows, columns, cell, anchors}} cell only of a point; anchors only for pyramid blocks: {scale: [s][s]}
   */
  async fetch(result, choice, about, direction, signal) {
    const cell = about.class ? null : cellOf(about, result.info.image, choice.grid);
    const key = [result.id, choice.key, direction, about.class ?? `${cell.row},${cell.column}`].join();
    const kept = this.#kept.get(key);
    if (kept) return kept;
    const asked = { ...about, ...choice.parameters, ...(direction === "to" && { direction }) };
    const wantsAnchors = choice.parameters.level === "all" && direction !== "to";
    const [weights, numbers] = await Promise.all([
      getArray(attentionUrl(result.id, asked, "npy"), { signal }),
      wantsAnchors ? getJson(attentionUrl(result.id, { ...asked, weights: false }, "json"), { signal }) : null,
    ]);
    const map = { weights, rows: choice.grid.height, columns: choice.grid.width, cell, anchors: numbers?.anchors };
    this.#keep(key, map);
    return map;
  }

  clear() {
    this.#kept.clear();
    this.#bytes = 0;
  }

  #keep(key, map) {
    this.#kept.set(key, map);
    this.#bytes += map.weights.byteLength;
    for (const [oldest, { weights }] of this.#kept) {
      if (this.#bytes <= KEPT_BYTES) break;
      this.#kept.delete(oldest);
      this.#bytes -= weights.byteLength;
    }
  }
}

/** {sum, max, entropy in bits, onCross}: entropy and onCross (of a point's map) of the weights as shares of their sum. */
export function statistics({ weights, rows, columns, cell }) {
  let sum = 0;
  let max = 0;
  for (const weight of weights) {
    sum += weight;
    if (weight > max) max = weight;
  }
  let entropy = 0;
  for (const weight of weights) if (weight > 0) entropy -= weight / sum * Math.log2(weight / sum);
  if (!cell) return { sum, max, entropy, onCross: null };
  let onCross = -weights[cell.row * columns + cell.column];
  for (let column = 0; column < columns; column += 1) onCross += weights[cell.row * columns + column];
  for (let row = 0; row < rows; row += 1) onCross += weights[row * columns + cell.column];
  return { sum, max, entropy, onCross: onCross / sum };
}

/** How much of the weight lies on each class: [{id, share}], most first. */
export function byClass({ weights, rows, columns }, mask) {
  const shares = new Float64Array(256);
  const counts = cellCounts(mask, rows, columns);
  let sum = 0;
  weights.forEach((weight, cell) => {
    sum += weight;
    for (const [id, part] of counts[cell]) shares[id] += weight * part;
  });
  return Array.from(shares, (share, id) => ({ id, share: share / sum }))
    .filter(({ share }) => share > 0)
    .sort((a, b) => b.share - a.share);
}

const counted = new WeakMap(); // mask -> grid -> for each cell, [class id, share of its pixels]

function cellCounts(mask, rows, columns) {
  const byGrid = counted.get(mask) ?? new Map();
  counted.set(mask, byGrid);
  const name = `${rows}x${columns}`;
  if (!byGrid.has(name)) byGrid.set(name, countCells(mask, rows, columns));
  return byGrid.get(name);
}

function countCells(mask, rows, columns) {
  const pixels = Array.from({ length: rows * columns }, () => new Map());
  for (let y = 0, index = 0; y < mask.height; y += 1) {
    const row = Math.floor((y + 0.5) * rows / mask.height);
    for (let x = 0; x < mask.width; x += 1, index += 1) {
      const cell = pixels[row * columns + Math.floor((x + 0.5) * columns / mask.width)];
      cell.set(mask.ids[index], (cell.get(mask.ids[index]) ?? 0) + 1);
    }
  }
  return pixels.map((cell, index) => {
    const middle = { x: index % columns, y: Math.floor(index / columns) };
    if (!cell.size) return [[classAt(mask, { width: columns, height: rows }, middle), 1]]; // smaller than a pixel
    const total = [...cell.values()].reduce((sum, count) => sum + count, 0);
    return [...cell].map(([id, count]) => [id, count / total]);
  });
}

/**
 * Has a panel say so if its map takes long, and lose its colours until that has come: dense attention of many cells may
 * take seconds, the first time.
 */
export async function patiently(panel, work) {
  const timer = setTimeout(() => panel.showWait("Computing the attention"), 600);
  panel.element.classList.add("stale");
  try {
    const map = await work;
    panel.element.classList.remove("stale");
    return map;
  } finally {
    clearTimeout(timer);
    panel.showWait("");
  }
}

/** Runs `work` on the newest of what it is given, one at a time: what comes meanwhile replaces what waits or fails. */
export function newestOnly(work) {
  let waiting = null;
  let busy = false;
  return async (value) => {
    waiting = { value };
    if (busy) return;
    busy = true;
    try {
      while (waiting) {
        const next = waiting.value;
        waiting = null;
        await work(next).catch((error) => {
          if (!waiting || error.name === "AbortError") throw error;
        });
      }
    } finally {
      busy = false;
    }
  };
}
