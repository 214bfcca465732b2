// The state in the page's address, after the #: the server never sees it, but whoever gets the link does.

/** What a view starts with; a link has only what differs. */
export const DEFAULTS = { view: "one", model: "", map: "", direction: "from", x: "", y: "", class: "", mask: "0.55", heat: "0.65",
  clip: "99", norm: "max", colors: "inferno", cells: "smooth", hide: "", ids: "" };

/** @returns {object} all of DEFAULTS' keys, as text */
export function readLink(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  return Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, given.get(name) ?? value]));
}

export function writeLink(values) {
  const kept = Object.entries(values).filter(([name, value]) => String(value) !== DEFAULTS[name]);
  return `#${new URLSearchParams(kept)}`;
}
