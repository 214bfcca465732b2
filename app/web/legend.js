// The classes found: their colours and shares; each can be switched off, and pointed at to see it alone.
// All of them are one stop of the Tab key, and arrow keys move among them.

import { element } from "/web/panel.js";

/**
 * @param predictions as /segment has them
 * @param colorOf class id -> CSS colour
 * @param hidden set of class names that are switched off; changed here
 * @param onChange called with the id of the class to show alone, or null
 * @param onAsk called with the name of the class whose attention is asked for; without it that can't be
 */
export function fillLegend(list, { predictions, colorOf, hidden, onChange, onAsk = null }) {
  const largest = Math.max(...predictions.map(({ fraction }) => fraction));
  const rows = [...predictions].sort((a, b) => b.fraction - a.fraction).map((prediction) => {
    const name = prediction.class;
    const share = prediction.fraction < 0.001 ? "< 0.1 %" : `${(100 * prediction.fraction).toFixed(1)} %`;
    const bar = element("span", { className: "bar" });
    bar.style.setProperty("--share", prediction.fraction / largest);
    const button = element("button", { type: "button", className: "class" },
      element("i", { className: "swatch" }), element("span", { className: "name" }, name), bar,
      element("span", { className: "share" }, share));
    button.style.setProperty("--color", colorOf(prediction.class_id));
    button.title = `${name}: ${share} of the picture, mean confidence ${(100 * prediction.confidence).toFixed(0)} %`;
    const press = () => button.setAttribute("aria-pressed", String(!hidden.has(name)));
    press();
    button.addEventListener("click", () => {
      if (!hidden.delete(name)) hidden.add(name);
      press();
      onChange(null);
    });
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && onChange(prediction.class_id));
    button.addEventListener("pointerleave", () => onChange(null));
    if (!onAsk) return element("li", {}, button);
    const ask = element("button", { type: "button", className: "ask", title: `Attention of ${name}: the average over its pixels`,
      dataset: { class: name } }, "attention");
    ask.setAttribute("aria-label", `Attention of ${name}`);
    ask.setAttribute("aria-pressed", "false");
    ask.addEventListener("click", () => onAsk(name));
    return element("li", {}, button, ask);
  });
  list.replaceChildren(...rows);
  list.setAttribute("role", "toolbar");
  list.setAttribute("aria-label", "Classes");
  list.setAttribute("aria-describedby", "how-to-move");
  rove(list);
}

/** Up and down go from row to row, left and right through the buttons of all; where each row has one, it's the same. */
function rove(list) {
  const rows = [...list.children].map((row) => [...row.querySelectorAll("button")]);
  const buttons = rows.flat();
  const enter = (chosen) => { for (const button of buttons) button.tabIndex = button === chosen ? 0 : -1; };
  enter(buttons[0]);
  for (const row of list.children) row.setAttribute("role", "none");
  for (const button of buttons) button.addEventListener("focus", () => enter(button));
  list.onkeydown = (event) => {
    const at = buttons.indexOf(event.target);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: rows[0].length, ArrowUp: -rows[0].length, Home: -at, End: buttons.length - 1 - at };
    const next = buttons[at + steps[event.key]];
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    next?.focus();
  };
}

/** Shows which class's attention is on show; none if it is a point's. */
export function markAsked(list, name = null) {
  for (const ask of list.querySelectorAll(".ask")) ask.setAttribute("aria-pressed", String(ask.dataset.class === name));
}
