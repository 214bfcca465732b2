// Several models on one picture: their masks, where they disagree, and the attention of the same point.

import { Maps, byClass, choicesOf, mainOf, newestOnly, patiently, statistics, whyNone } from "/web/attention.js";
import { percent } from "/web/heat.js";
import { colorOf, nameOf, paintMap, weightAt } from "/web/inspector.js";
import { fillLegend } from "/web/legend.js";
import { Panel, element } from "/web/panel.js";
import { classAt, paintMask } from "/web/picture.js";

const MARK = [255, 0, 170]; // a colour that no palette of ours has
const KINDS = { cca: "criss-cross, both passes", apnb: "pyramid (APNB)", afnb: "pyramid (AFNB)", nl: "dense (non-local)",
  pam: "dense (position attention)" };
const short = (result) => result.model.title.split(",")[0];

/** How long the network took, and how good it is if somebody has said. */
function figuresOf({ reply, model: { miou } }) {
  const took = `${reply.timings_ms.forward.toFixed(0)} ms`;
  return miou === null ? took : `${took} · ${miou.toFixed(1)} mIoU`;
}

export class Comparison {
  constructor(target, view, { onPoint, announce }) {
    Object.assign(this, { target, view, onPoint, announce });
    this.maps = new Maps();
    this.columns = [];
    this.abort = new AbortController();
  }

  show(results, picture) {
    this.abort.abort(); // what the last ones still compute
    Object.assign(this, { results, picture, abort: new AbortController() });
    this.columns = results.map((result) => this.#column(result));
    const cards = this.columns.map(({ card }) => card);
    const focused = this.#sliders().indexOf(document.activeElement);
    this.target.replaceChildren(...cards, ...(results.length > 1 ? [this.#disagreement()] : []));
    this.#sliders()[focused]?.focus({ preventScroll: true }); // results that have gone are made again while keys move the point
    this.paintMasks();
  }

  #sliders() {
    return [...this.target.querySelectorAll("[role='slider']")];
  }

  #panel(label, tip) {
    const panel = new Panel({ label, onPoint: this.onPoint, tip });
    panel.show(this.picture);
    return panel;
  }

  #column(result) {
    const size = result.info.image;
    const choice = mainOf(choicesOf(result.info));
    const column = { result, choice, map: null, about: null };
    column.follow = newestOnly((about) => this.#look(column, about));
    column.mask = this.#panel(`The mask of ${short(result)}`, (pixel) => pixel && nameOf(result, classAt(result.mask, size, pixel)));
    column.heat = this.#panel(`Attention of ${short(result)}`, (pixel) => pixel && column.map && percent(weightAt(column.map, size, pixel)));
    column.reads = element("p", { className: "reads" });
    column.card = element("article", { className: "card", dataset: { model: result.model.name } },
      element("h3", {}, short(result), " ", element("small", {}, figuresOf(result))),
      column.mask.element,
      element("h4", {}, "Attention: ", choice ? KINDS[choice.block] : result.isKept ? "none" : "not kept"),
      ...(choice ? [column.heat.element] : []), column.reads);
    return column;
  }

  paintMasks() {
    for (const { result, mask } of this.columns) {
      const isShown = (id) => !this.view.hidden.has(nameOf(result, id));
      paintMask(mask.overlay, result.mask, result.model.classes, isShown);
      mask.overlay.style.opacity = this.view.mask;
    }
  }

  /** Marks a point or a class at once; each model's map comes as soon as it can, and waits for no other's. */
  async follow(about) {
    const { columns } = this;
    const point = about.class ? null : about;
    const anyGrid = columns.find(({ choice }) => choice)?.choice.grid ?? columns[0].result.info.image;
    for (const { mask, heat, choice } of columns) {
      for (const panel of [mask, heat]) panel.mark(point, choice?.grid ?? anyGrid, Boolean(choice?.hasCross));
    }
    this.different?.mark(point, anyGrid, false);
    await Promise.all(columns.map((column) => column.follow(about)));
    const classOf = ({ result }) => `${short(result)}: ${nameOf(result, classAt(result.mask, result.info.image, point))}`;
    this.announce(point ? `Point ${point.x}, ${point.y}. ${columns.map(classOf).join(", ")}.` : `All of ${about.class}.`);
  }

  async #look(column, about) {
    const { result, choice, heat } = column;
    const { abort: { signal }, view: { direction } } = this;
    const has = !about.class || result.info.classes.some(({ name }) => name === about.class);
    const map = choice && has ? await patiently(heat, this.maps.fetch(result, choice, about, direction, signal)) : null;
    if (signal.aborted) return;
    Object.assign(column, { map, about });
    this.#paintColumn(column);
  }

  paint() {
    for (const column of this.columns) if (column.about) this.#paintColumn(column);
  }

  #paintColumn({ map, heat, choice, reads, result, about }) {
    if (!map) {
      heat.overlay.width = 1;
      delete heat.overlay.dataset.cell;
      reads.textContent = choice ? `No pixel is ${about.class}.` : whyNone(result);
      return;
    }
    paintMap(heat, map, this.view, { key: choice.key });
    const { entropy, onCross } = statistics(map);
    const most = byClass(map, result.mask).slice(0, 2).filter(({ share }) => share > 0.001)
      .map(({ id, share }) => `${nameOf(result, id)} ${percent(share)}`);
    const subject = about.class ? `All of ${about.class}` : `The point (${nameOf(result, classAt(result.mask, result.info.image, about))})`;
    const verb = this.view.direction === "to" ? "is looked at from" : "looks at";
    const cross = onCross === null ? "" : `, ${percent(onCross)} on its row and column`;
    const spread = `as wide as ${Math.round(2 ** entropy)} of ${map.weights.length} cells`;
    reads.textContent = `${subject} ${verb} ${most.join(", ")}; ${spread}${cross}.`;
  }

  #disagreement() {
    const { results } = this;
    const size = results[0].info.image;
    this.different = this.#panel("Where the models disagree", (pixel) => pixel && results
      .map((result) => `${short(result)}: ${nameOf(result, classAt(result.mask, size, pixel))}`).join("\n"));
    this.different.element.classList.add("gray");
    const { share, pairs } = this.#paintDifferences(this.different.overlay);
    const rows = pairs.map(({ names, share: part, most }) => element("li", {},
      element("b", {}, percent(part)), ` ${names.join(" and ")}`, element("small", {}, most ? `mostly ${most}` : "")));
    return element("article", { className: "card disagreement" },
      element("h3", {}, "Where they differ", " ", element("small", {}, `${percent(share)} of pixels`)),
      this.different.element, element("ul", { className: "pairs" }, ...rows), this.#legend());
  }

  /** Of the first model's classes; they are switched on and off for all. */
  #legend() {
    const [first] = this.results;
    const list = element("ul", { className: "chips" });
    const onChange = () => this.paintMasks();
    fillLegend(list, { predictions: first.reply.predictions, colorOf: (id) => colorOf(first, id), hidden: this.view.hidden, onChange });
    return list;
  }

  /** By the classes' names: models may number theirs differently. */
  #paintDifferences(canvas) {
    const { results } = this;
    const [{ mask: { width, height, ids } }] = results;
    Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const pairs = results.flatMap((one, index) => results.slice(index + 1).map((other) => ({ one, other, count: 0, kinds: new Map() })));
    const labels = new Map(results.map((result) => [result, result.model.classes.map(({ name }) => name)]));
    let different = 0;
    for (let index = 0; index < ids.length; index += 1) {
      let differing = 0;
      for (const pair of pairs) {
        const first = labels.get(pair.one)[pair.one.mask.ids[index]];
        const second = labels.get(pair.other)[pair.other.mask.ids[index]];
        if (first === second) continue;
        differing += 1;
        pair.count += 1;
        const kind = [first, second].sort().join(" or ");
        pair.kinds.set(kind, (pair.kinds.get(kind) ?? 0) + 1);
      }
      if (!differing) continue;
      different += 1;
      image.data.set([...MARK, 255 * differing / pairs.length], 4 * index);
    }
    context.putImageData(image, 0, 0);
    return {
      share: different / ids.length,
      pairs: pairs.map(({ one, other, count, kinds }) => ({
        names: [short(one), short(other)],
        share: count / ids.length,
        most: [...kinds].sort((a, b) => b[1] - a[1])[0]?.[0],
      })),
    };
  }
}
