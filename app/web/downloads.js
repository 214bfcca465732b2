// What can be taken home: the API's own files of what is on show.

import { get } from "/web/api.js";
import { attentionUrl, choicesOf, pick } from "/web/attention.js";
import { element } from "/web/panel.js";

/** @param save called with the address and the name of a file that is wanted */
export function fillDownloads(list, { results, model, about }, view, save) {
  const result = results.get(model);
  if (!result) return;
  const entries = result.isKept ? entriesOf(result, about, view) : [
    ["Mask, class ids", "png", `data:image/png;base64,${result.reply.segmentation_mask}`], // all that there is of it
  ];
  list.replaceChildren(...entries.map(([title, kind, href]) => {
    const download = `${model}-${title.toLowerCase().replace(/[^a-z]+/g, "-")}.${kind}`;
    const link = element("a", { href, download }, title, element("small", {}, kind.toUpperCase()));
    if (result.isKept) link.addEventListener("click", (event) => { event.preventDefault(); save(href, download); });
    return element("li", {}, link);
  }));
}

/**
 * Not the browser's own way, which tells nobody why there is no file.
 * @throws {Problem}
 */
export async function saveFile(href, download) {
  const address = URL.createObjectURL(await (await get(href)).blob());
  element("a", { href: address, download }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // browsers say nowhere when they have read it
}

/** Has a menu, which is a <details>, close by Escape and by a click elsewhere, as menus do. */
export function closeable(menu) {
  document.addEventListener("click", (event) => { if (!menu.contains(event.target)) menu.open = false; });
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
}

/** Of what the server keeps: [title, kind, address]. */
function entriesOf(result, about, view) {
  const entries = [
    ["Mask, class ids", "png", `/results/${result.id}?format=png`],
    ["Mask, in colours", "png", `/results/${result.id}?format=palette`],
    ["Mask over the picture", "png", `/results/${result.id}?format=overlay&alpha=${view.mask}`],
    ["Classes and timings", "json", `/results/${result.id}?format=json`],
  ];
  const choice = pick(choicesOf(result.info), view.map);
  if (about && choice) {
    const asked = { ...about, ...choice.parameters, ...(view.direction === "to" && { direction: "to" }) };
    const drawn = { ...asked, clip: view.clip, norm: view.norm, interp: view.smooth ? "bilinear" : "nearest", colormap: view.colormap };
    entries.push(
      ["Attention over the picture", "png", attentionUrl(result.id, { ...drawn, alpha: view.heat }, "overlay")],
      ["Attention alone", "png", attentionUrl(result.id, drawn, "png")],
      ["Attention, the weights", "npy", attentionUrl(result.id, asked, "npy")],
      ["Attention, all numbers", "json", attentionUrl(result.id, asked, "json")],
    );
  }
  return entries;
}
