// A picture with something laid over it, on which a point can be chosen by mouse, finger and keyboard.

import { cellOf } from "/web/attention.js";
import { newCanvas } from "/web/picture.js";

const SVG = "http://www.w3.org/2000/svg";
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const LEAP = 5; // cells, with Shift

export function element(name, properties = {}, ...children) {
  const { dataset, ...rest } = properties;
  const made = Object.assign(document.createElement(name), rest);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

export class Panel {
  /**
   * @param label what a screen reader calls it
   * @param onPoint called with {x, y} when a point is chosen; without it the panel only shows
   * @param tip called with {x, y}, returns what to say beside the mouse
   */
  constructor({ label, onPoint = null, tip = null, className = "" }) {
    this.base = newCanvas({ width: 1, height: 1 });
    this.overlay = element("canvas", { className: "overlay", width: 1, height: 1 });
    this.cross = document.createElementNS(SVG, "svg");
    this.cross.setAttribute("class", "cross");
    this.cross.setAttribute("aria-hidden", "true");
    this.cross.setAttribute("preserveAspectRatio", "none");
    this.ring = element("div", { className: "ring", hidden: true });
    this.tipBox = element("div", { className: "tip", hidden: true });
    this.wait = element("div", { className: "wait", hidden: true });
    this.element = element("div", { className: `panel ${className}` },
      this.base, this.overlay, this.cross, this.ring, this.tipBox, this.wait);
    this.element.setAttribute("aria-label", label);
    // A slider of two axes: to no other role does every screen reader leave the arrow keys.
    this.element.setAttribute("role", onPoint ? "slider" : "img");
    this.onPoint = onPoint;
    this.tip = tip;
    this.size = null;
    this.step = null; // [x, y] in pixels, of one press of an arrow key
    this.point = null;
    if (onPoint) this.#listen();
    if (tip) this.#listenForTips();
  }

  /** Puts a picture in: {canvas, width, height}. */
  show(picture, widest = Infinity) {
    const scale = Math.min(1, widest / picture.canvas.width);
    this.size = { width: picture.width, height: picture.height };
    this.base.width = Math.max(1, Math.round(picture.canvas.width * scale));
    this.base.height = Math.max(1, Math.round(picture.canvas.height * scale));
    const context = this.base.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(picture.canvas, 0, 0, this.base.width, this.base.height);
    this.element.style.setProperty("--ratio", picture.width / picture.height);
  }

  /** Over the picture, until it is told "": what is being waited for. */
  showWait(text) {
    this.wait.textContent = text;
    this.wait.hidden = !text;
  }

  mark(point, grid, hasCross) {
    this.point = point;
    this.ring.hidden = !point;
    this.cross.replaceChildren();
    if (this.onPoint) this.#tell(grid);
    if (!point) return;
    this.step = [this.size.width / grid.width, this.size.height / grid.height];
    this.ring.style.left = `${100 * (point.x + 0.5) / this.size.width}%`;
    this.ring.style.top = `${100 * (point.y + 0.5) / this.size.height}%`;
    if (hasCross) this.#drawCross(cellOf(point, this.size, grid), grid);
  }

  /** What a slider must have, for screen readers: the cell as a number, and in words. */
  #tell(grid) {
    const values = { min: 0, max: 0, now: 0, text: "no point" };
    if (this.point) {
      const { row, column } = cellOf(this.point, this.size, grid);
      const text = `column ${column}, row ${row} of ${grid.width} × ${grid.height}`;
      Object.assign(values, { max: grid.width * grid.height - 1, now: row * grid.width + column, text });
    }
    for (const [name, value] of Object.entries(values)) this.element.setAttribute(`aria-value${name}`, value);
  }

  #drawCross({ row, column }, grid) {
    this.cross.setAttribute("viewBox", `0 0 ${grid.width} ${grid.height}`);
    for (const [x, y, width, height] of [[0, row, grid.width, 1], [column, 0, 1, grid.height]]) {
      const band = document.createElementNS(SVG, "rect");
      for (const [name, value] of Object.entries({ x, y, width, height })) band.setAttribute(name, value);
      this.cross.append(band);
    }
  }

  /** The picture's pixel under a mouse or finger; a drag beyond the edge stays on it. */
  #pixel(event) {
    const box = this.base.getBoundingClientRect();
    const within = (share, length) => Math.min(length - 1, Math.max(0, Math.floor(share * length)));
    return {
      x: within((event.clientX - box.left) / box.width, this.size.width),
      y: within((event.clientY - box.top) / box.height, this.size.height),
    };
  }

  #listen() {
    const { element: target } = this;
    target.tabIndex = 0;
    target.setAttribute("aria-roledescription", "picture to point at");
    target.setAttribute("aria-describedby", "how-to-point");
    let dragging = false;
    let pressed = false; // the click that follows has been answered
    target.addEventListener("pointerdown", (event) => {
      // A finger on the picture may want to scroll the page: it drags only by the ring, and taps anywhere.
      pressed = event.button === 0 && (event.pointerType === "mouse" || event.target === this.ring);
      if (!pressed) return;
      event.preventDefault();
      target.focus({ preventScroll: true });
      target.setPointerCapture(event.pointerId);
      dragging = true;
      this.onPoint(this.#pixel(event));
    });
    target.addEventListener("pointermove", (event) => dragging && this.onPoint(this.#pixel(event)));
    for (const name of ["pointerup", "pointercancel"]) target.addEventListener(name, () => { dragging = false; });
    target.addEventListener("click", (event) => {
      if (event.detail > 0 && !pressed) this.onPoint(this.#pixel(event));
      pressed = false;
    });
    target.addEventListener("keydown", (event) => this.#onKey(event));
  }

  #onKey(event) {
    const arrow = ARROWS[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey || (!arrow && !["Enter", " "].includes(event.key))) return;
    event.preventDefault();
    const middle = { x: Math.floor(this.size.width / 2), y: Math.floor(this.size.height / 2) };
    if (!this.point || !arrow) {
      this.onPoint(middle);
      return;
    }
    const cells = event.shiftKey ? LEAP : 1;
    const moved = (value, cellsMoved, step, length) =>
      Math.min(length - 1, Math.max(0, Math.round(value + cellsMoved * Math.max(1, step))));
    this.onPoint({
      x: moved(this.point.x, arrow[0] * cells, this.step[0], this.size.width),
      y: moved(this.point.y, arrow[1] * cells, this.step[1], this.size.height),
    });
  }

  #listenForTips() {
    this.element.addEventListener("pointermove", (event) => {
      if (event.pointerType !== "mouse") return;
      this.tipBox.textContent = this.tip(this.#pixel(event)) ?? "";
      this.tipBox.hidden = !this.tipBox.textContent;
      const box = this.element.getBoundingClientRect();
      const x = event.clientX - box.left;
      this.tipBox.style.left = `${x}px`;
      this.tipBox.style.top = `${event.clientY - box.top}px`;
      this.tipBox.classList.toggle("left", x > box.width / 2);
    });
    this.element.addEventListener("pointerleave", () => {
      this.tipBox.hidden = true;
      this.tip(null);
    });
  }
}
