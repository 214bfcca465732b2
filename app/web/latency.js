// Where a request's time went: one bar of its stages, one of the network's modules.

import { element } from "/web/panel.js";

const STAGES = { read: "upload", decode: "decode", queue: "wait", preprocess: "preprocess", forward: "network",
  postprocess: "postprocess", encode: "encode" };
const ATTENTION = /^(cca|afnb|apnb|nl|non_local)/;

/** @param results whose replies' `timings_ms` are shown; one that is fetched again has those of its batch alone */
export function fillLatency(target, results) {
  target.replaceChildren(...results.flatMap((result) => bars(result, results.length > 1 ? `${result.model.title}: ` : "")));
}

function bars({ reply: { timings_ms: timings }, elapsed }, prefix) {
  const stages = Object.entries(STAGES).filter(([name]) => name in timings)
    .map(([name, label]) => ({ label, name, ms: timings[name] }));
  const modules = Object.entries(timings).filter(([name]) => name.startsWith("module."))
    .map(([name, ms]) => ({ label: name.slice(7), name: name.slice(7), ms }));
  const total = stages.reduce((sum, { ms }) => sum + ms, 0);
  const heading = elapsed
    ? `${milliseconds(elapsed)} from here and back, ${milliseconds(total)} of them in the server`
    : `${milliseconds(total)} in the server`;
  return [
    bar(`${prefix}the request`, heading, stages),
    bar(`${prefix}inside the network, by module`, milliseconds(modules.reduce((sum, { ms }) => sum + ms, 0)), modules),
  ];
}

function milliseconds(ms) {
  return `${ms >= 100 ? ms.toFixed(0) : ms.toPrecision(2)} ms`;
}

function bar(title, note, parts) {
  const total = parts.reduce((sum, { ms }) => sum + ms, 0) || 1;
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
    element("h3", {}, title, element("small", {}, note)), strip, element("ul", {}, ...entries));
}
