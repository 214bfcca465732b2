// Where a request's time went: one bar of its stages, one of the network's modules.

import { element } from "/web/panel.js";

const STAGES = { read: "upload", decode: "decode", queue: "wait", preprocess: "preprocess", forward: "network",
  postprocess: "postprocess", encode: "encode" };
const ATTENTION = /^(cca|afnb|apnb|nl|non_local|pam|cam|gc)/;

/** @param results whose replies' `timings_ms` are shown; one that is fetched again has those of its batch alone */
export function fillLatency(target, results) {
  const longest = Math.max(...results.map(({ reply }) => sumOf(modulesOf(reply.timings_ms))));
  target.replaceChildren(...results.length > 1
    ? results.map(({ reply, model }) => moduleBar(model.title, modulesOf(reply.timings_ms), longest))
    : [requestBar(results[0]), moduleBar("Inside the network, by module", modulesOf(results[0].reply.timings_ms), longest)]);
}

const sumOf = (parts) => parts.reduce((sum, { ms }) => sum + ms, 0);

function modulesOf(timings) {
  return Object.entries(timings).filter(([name]) => name.startsWith("module."))
    .map(([name, ms]) => ({ label: name.slice(7), name: name.slice(7), ms }));
}

function moduleBar(title, modules, longest) {
  const made = bar(title, milliseconds(sumOf(modules)), modules);
  made.style.setProperty("--length", sumOf(modules) / longest);
  return made;
}

function requestBar({ reply: { timings_ms: timings }, elapsed }) {
  const stages = Object.entries(STAGES).filter(([name]) => name in timings)
    .map(([name, label]) => ({ label, name, ms: timings[name] }));
  const total = sumOf(stages);
  const heading = elapsed
    ? `${milliseconds(elapsed)} from here and back, ${milliseconds(total)} of them in the server`
    : `${milliseconds(total)} in the server`;
  return bar("This request", heading, stages);
}

function milliseconds(ms) {
  return `${ms >= 99.5 ? ms.toFixed(0) : ms.toPrecision(2)}\u00a0ms`;
}

function bar(title, note, parts) {
  const total = sumOf(parts) || 1;
  const segments = parts.map(({ name, label, ms }, index) => {
    const segment = element("span", { className: "segment", title: `${label}: ${milliseconds(ms)}` });
    segment.style.flexGrow = String(ms / total);
    segment.style.setProperty("--index", index);
    segment.classList.toggle("attention", ATTENTION.test(name));
    return segment;
  });
  const entries = parts.map(({ name, label, ms }, index) => {
    const swatch = element("i", { className: "swatch" });
    swatch.style.setProperty("--index", index);
    const entry = element("li", {}, swatch, `${label} `, element("b", {}, milliseconds(ms)));
    entry.classList.toggle("attention", ATTENTION.test(name));
    return entry;
  });
  const strip = element("div", { className: "strip" }, ...segments);
  strip.setAttribute("aria-hidden", "true");
  return element("section", { className: "latency" },
    element("h3", {}, title, " ", element("small", {}, note)), strip, element("ul", {}, ...entries));
}
