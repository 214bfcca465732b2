// How masks and maps are drawn, as the sliders and menus set it.

import { DEFAULTS } from "/web/link.js";

const byId = (id) => document.getElementById(id);

/** The view that a link asks for; its parts are changed in place by the controls. */
export function viewOf(link) {
  return {
    map: link.map,
    direction: link.direction,
    mask: Number(link.mask),
    heat: Number(link.heat),
    clip: Number(link.clip),
    norm: link.norm,
    colormap: link.colors,
    smooth: link.cells === "smooth",
    hidden: new Set(link.hide ? link.hide.split(",") : []),
    toLink() {
      const { map, direction, mask, heat, clip, norm, colormap: colors } = this;
      return { map, direction, mask, heat, clip, norm, colors, cells: this.smooth ? "smooth" : "exact", hide: [...this.hidden].join(",") };
    },
  };
}

/** Only where colours end at a weight, not where cells are ranked. */
function letClip({ norm }) {
  byId("clip").disabled = ["rank", "sum"].includes(norm);
}

/** @param onChange called after each change, with whether the server must be asked anew */
export function bindSettings(view, onChange) {
  const controls = { mask: "mask", heat: "heat", clip: "clip", norm: "norm", colors: "colormap", direction: "direction" };
  for (const [id, name] of Object.entries(controls)) {
    const control = byId(id);
    const isNumber = control.type === "range";
    const tell = () => {
      if (!isNumber) return;
      const value = id === "clip" ? String(view.clip) : `${Math.round(100 * view[name])} %`;
      byId(`${id}-value`).textContent = value;
      control.setAttribute("aria-valuetext", value);
    };
    control.value = view[name];
    if (!control.value) control.value = DEFAULTS[id]; // a menu has not what the link says: it was cut off, or typed
    view[name] = isNumber ? Number(control.value) : control.value; // a slider has ends
    tell();
    letClip(view);
    control.addEventListener("input", () => {
      view[name] = isNumber ? Number(control.value) : control.value;
      tell();
      letClip(view);
      onChange(id === "direction");
    });
  }
  byId("cells").value = view.smooth ? "smooth" : "exact";
  byId("cells").addEventListener("input", (event) => {
    view.smooth = event.target.value === "smooth";
    onChange(false);
  });
  byId("settings").addEventListener("submit", (event) => event.preventDefault());
}
