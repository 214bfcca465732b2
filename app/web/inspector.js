// One model's view of the picture: its mask, the attention of a point, and all maps there are of it as small multiples.

import { Maps, byClass, cellOf, choicesOf, newestOnly, patiently, pick, statistics, whyNone } from "/web/attention.js";
import { brightest, paintHeat, paintLegend, percent, scaleOf } from "/web/heat.js";
import { fillLegend, markAsked } from "/web/legend.js";
import { Panel, element } from "/web/panel.js";
import { classAt, paintMask } from "/web/picture.js";

const TILE = 320; // pixels across
const BLOCKS = { cca: "Criss-cross attention", apnb: "APNB: 110 anchors at four scales", afnb: "AFNB: high-level features look at low-level ones",
  nl: "Non-local attention", pam: "Position attention" };
const MOST_CLASSES = 4;
const LEAST_SHARE = 0.0005; // of the weight: less is not worth a line
const FEW_CELLS = 0.01; // of all: a map with no more of them in sight looks empty
const byId = (id) => document.getElementById(id);

export const colorOf = (result, id) => `rgb(${result.model.classes[id].color})`;
export const nameOf = (result, id) => result.model.classes[id].name;

/** Lays a map over a panel, and leaves word of the cell and the map that is shown. */
export function paintMap(panel, map, view, { key, scale = scaleOf(map.weights, view), smooth = view.smooth }) {
  paintHeat(panel.overlay, map, scale.toShare, view.colormap, smooth);
  panel.overlay.classList.toggle("pixelated", !smooth);
  panel.overlay.style.opacity = view.heat;
  panel.overlay.dataset.map = key;
  panel.overlay.dataset.cell = map.cell ? `${map.cell.row},${map.cell.column}` : "all"; // last: it tells that the map is on show
}

export function weightAt(map, size, pixel) {
  const { row, column } = cellOf(pixel, size, { width: map.columns, height: map.rows });
  return map.weights[row * map.columns + column];
}

const nameOfTile = ({ title, parameters: { level } }) => (level === "all" ? "all scales" : level ? `${level} × ${level}` : title);

export class Inspector {
  /** @param view what is set on the page: see app.js */
  constructor(view, { onPoint, onClass, onMap, announce }) {
    Object.assign(this, { view, onClass, onMap, announce });
    this.maps = new Maps();
    this.abort = new AbortController();
    this.shown = null; // the map in the large panel, with its key
    this.maskPanel = new Panel({ label: "The mask over the picture", onPoint, tip: (pixel) => this.#classTip(pixel) });
    this.heatPanel = new Panel({ label: "Attention of the point over the picture", onPoint, tip: (pixel) => this.#weightTip(pixel) });
    byId("mask-stage").append(this.maskPanel.element);
    byId("heat-stage").append(this.heatPanel.element);
  }

  get choice() {
    return pick(this.choices, this.view.map);
  }

  show(result, picture) {
    this.abort.abort(); // what the last one still computes
    Object.assign(this, { result, picture, shown: null, found: null, choices: choicesOf(result.info), abort: new AbortController() });
    this.fetch = newestOnly((about) => this.#fetch(about));
    for (const panel of [this.maskPanel, this.heatPanel]) panel.show(picture);
    this.clearHeat();
    this.paintMask();
    fillLegend(byId("legend"), {
      predictions: result.reply.predictions,
      colorOf: (id) => colorOf(result, id),
      hidden: this.view.hidden,
      onChange: (only) => this.paintMask(only),
      onAsk: this.choice && this.onClass,
    });
    this.#makeTiles();
    for (const part of document.querySelectorAll("#mask-part .hint, #heat-stage, #heat-part .scale, #faint")) part.hidden = !this.choice;
    byId("heat-part").classList.toggle("none", !this.choice);
    if (this.choice) return;
    byId("heat-title").textContent = "Attention";
    byId("heat-hint").textContent = whyNone(result);
  }

  clearHeat() {
    const { overlay } = this.heatPanel;
    overlay.width = 1;
    delete overlay.dataset.cell;
    byId("readout").hidden = true;
    for (const panel of [this.maskPanel, this.heatPanel]) panel.mark(null);
  }

  paintMask(only = null) {
    const { hidden, mask } = this.view;
    const isShown = (id) => (only === null ? !hidden.has(nameOf(this.result, id)) : id === only);
    paintMask(this.maskPanel.overlay, this.result.mask, this.result.model.classes, isShown);
    this.maskPanel.overlay.style.opacity = only === null ? mask : Math.max(mask, 0.7);
    this.maskPanel.element.classList.toggle("spotlight", only !== null);
  }

  #makeTiles() {
    this.tiles = new Map();
    const blocks = [...new Set(this.choices.map(({ block }) => block))];
    byId("tiles").replaceChildren(...blocks.map((block) => {
      const tiles = this.choices.filter((choice) => choice.block === block).map((choice) => this.#makeTile(choice));
      const group = element("fieldset", { className: "tiles" }, element("legend", {}, BLOCKS[block]), ...tiles);
      group.hidden = this.choices.length < 2;
      group.style.setProperty("--count", tiles.length);
      return group;
    }));
  }

  #makeTile(choice) {
    const panel = new Panel({ label: choice.title, className: "small" });
    panel.show(this.picture, TILE);
    panel.element.setAttribute("aria-hidden", "true"); // the radio button has the name
    const radio = element("input", { type: "radio", name: "map", value: choice.key, checked: choice.key === this.choice.key });
    radio.addEventListener("change", () => this.onMap(choice.key));
    const share = element("small");
    this.tiles.set(choice.key, { panel, share, choice });
    return element("label", { className: "tile", title: choice.hint }, radio, panel.element, element("span", {}, nameOfTile(choice), share));
  }

  /** Marks a point or a class at once, then shows its maps. */
  async follow(about) {
    const { result, choice } = this;
    const point = about.class ? null : about;
    if (!choice) {
      this.maskPanel.mark(point, result.info.image, false);
      this.announce(`Point ${point.x}, ${point.y}: ${nameOf(result, classAt(result.mask, result.info.image, point))}.`);
      return;
    }
    for (const panel of [this.maskPanel, this.heatPanel]) panel.mark(point, choice.grid, choice.hasCross);
    markAsked(byId("legend"), about.class);
    await this.fetch(about);
  }

  /** Fetches all maps there are, then paints them at once. */
  async #fetch(about) {
    const { result, choice, choices, abort: { signal }, view: { direction } } = this;
    const wanted = choices.filter((one) => one === choice || (one.parameters.level ?? "all") === "all");
    const fetched = await patiently(this.heatPanel,
      Promise.all(wanted.map((one) => this.maps.fetch(result, one, about, direction, signal))));
    if (signal.aborted) return;
    this.found = new Map(wanted.map((one, index) => [one.key, fetched[index]]));
    this.about = about;
    this.paint();
    this.#report(about);
  }

  /** Paints the maps that are there, by the settings of now. */
  paint() {
    const { view, choice } = this;
    if (!choice) return;
    const subject = this.about?.class ?? "the point";
    byId("heat-title").textContent = `${view.direction === "to" ? `Who looks at ${subject}` : `Where ${subject} looks`}: ${choice.title}`;
    byId("heat-hint").textContent = choice.hint;
    paintLegend(byId("colors-bar"), view.colormap);
    const map = this.found?.get(choice.key);
    if (!map) return;
    this.shown = map;
    this.scale = scaleOf(map.weights, view);
    paintMap(this.heatPanel, map, view, { key: choice.key, scale: this.scale });
    byId("colors-start").textContent = this.scale.start;
    byId("colors-end").textContent = this.scale.end;
    this.#helpIfFaint();
    for (const tile of this.tiles.values()) this.#paintTile(tile);
  }

  /** Says what to do about a map that looks empty, since a few cells have nearly all its weight. */
  #helpIfFaint() {
    const { shown: { weights }, scale, view } = this;
    const isFaint = ({ count, isAll }) => !isAll && count <= FEW_CELLS * weights.length;
    const { count, share, isAll } = brightest(weights, scale.toShare);
    byId("faint").style.visibility = isFaint({ count, isAll }) ? "visible" : "hidden"; // nothing jumps during a drag
    if (!isFaint({ count, isAll })) return;
    const isByLog = view.norm !== "log" && !isFaint(brightest(weights, scaleOf(weights, { ...view, norm: "log" }).toShare));
    const part = share >= 0.95 ? "Nearly all" : percent(share);
    const how = view.norm === "max" && view.clip > 99 ? " lower the clip percentile, or" : "";
    byId("faint-said").textContent = `${part} of it lies on ${count} of ${weights.length.toLocaleString("en")} cells:${how}`;
    byId("brighter").textContent = isByLog ? "see the rest by logarithm" : "see the rest by rank";
    byId("brighter").value = isByLog ? "log" : "rank";
  }

  #paintTile({ panel, share, choice }) {
    const { level } = choice.parameters;
    const map = this.found.get(choice.key);
    const { anchors, cell } = this.found.get(`${choice.block}:all`) ?? {};
    const isGrid = anchors && level !== "all";
    panel.element.parentElement.hidden = !isGrid && !map; // who looks here is not a question to anchors
    if (!isGrid) {
      share.textContent = "";
      if (!map) return;
      paintMap(panel, map, this.view, { key: choice.key });
      panel.mark(this.heatPanel.point, choice.grid, choice.hasCross);
      return;
    }
    panel.mark(null);
    const weights = Float64Array.from(anchors[level].flat());
    const scale = scaleOf(Float64Array.from(Object.values(anchors).flat(2)), this.view); // the four share their colours
    const size = Number(level);
    paintMap(panel, { weights, rows: size, columns: size, cell }, this.view, { key: choice.key, scale, smooth: false });
    share.textContent = percent(weights.reduce((sum, weight) => sum + weight, 0));
  }

  #report(about) {
    const { result, shown, choice } = this;
    const { sum, max, entropy, onCross } = statistics(shown);
    const own = about.class ?? nameOf(result, classAt(result.mask, result.info.image, about));
    const pixels = result.info.classes.find(({ name }) => name === about.class)?.pixels;
    const classes = byClass(shown, result.mask).slice(0, MOST_CLASSES).filter(({ share }) => share >= LEAST_SHARE);
    byId("readout").hidden = false;
    byId("reads-title").textContent = this.view.direction === "to" ? "Looked at from" : "Looks at";
    byId("reads-subject").textContent = about.class ? "Class" : "Point";
    byId("reads-class").textContent = about.class ? `${own}, the average over its ${pixels.toLocaleString("en")} pixels` : own;
    for (const one of document.querySelectorAll("#readout .of-point")) one.hidden = Boolean(about.class);
    if (shown.cell) byId("reads-cell").textContent = `column ${shown.cell.column}, row ${shown.cell.row} of ${shown.columns}\u00a0×\u00a0${shown.rows}`;
    byId("reads-spread").textContent = `as wide as ${Math.round(2 ** entropy)} of ${shown.weights.length} cells (${entropy.toFixed(1)} bits)`;
    if (shown.cell) byId("reads-cross").textContent = percent(onCross);
    byId("reads-max").textContent = percent(max);
    byId("reads-sum").textContent = percent(sum);
    byId("reads-classes").replaceChildren(...classes.map(({ id, share }) => {
      const row = element("li", {}, element("i", { className: "swatch" }), element("span", {}, nameOf(result, id)),
        element("b", {}, percent(share)));
      row.style.setProperty("--color", colorOf(result, id));
      row.style.setProperty("--share", share);
      return row;
    }));
    const looked = classes.slice(0, 2).map(({ id, share }) => `${nameOf(result, id)} ${percent(share)}`).join(", ");
    const subject = about.class ? `All of ${own}` : `Point ${about.x}, ${about.y}: ${own}`;
    this.announce(`${subject}. ${choice.title} attention: ${looked}.`);
  }

  #classTip(pixel) {
    if (!pixel) return "";
    return nameOf(this.result, classAt(this.result.mask, this.result.info.image, pixel));
  }

  #weightTip(pixel) {
    byId("colors-mark").hidden = true;
    if (!pixel || !this.shown) return "";
    const weight = weightAt(this.shown, this.result.info.image, pixel);
    byId("colors-mark").hidden = false;
    byId("colors-mark").style.left = `${100 * this.scale.toShare(weight)}%`;
    return `${percent(weight)} · ${nameOf(this.result, classAt(this.result.mask, this.result.info.image, pixel))}`;
  }
}
