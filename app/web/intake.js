// The ways a picture comes in: chosen, photographed, dropped, pasted, or a sample.

import { Problem, get } from "/web/api.js";

// Browsers differ in whether they give out a picture that is dragged from another page.
const NO_FILE = { title: "No picture", detail: "What was dropped is no file. Save the picture first, or copy and paste it." };
const byId = (id) => document.getElementById(id);

/** @param onPicture called with a File or Blob, or a promise of one */
export function listenForPictures(onPicture) {
  for (const id of ["file", "camera"]) {
    const input = byId(id);
    const take = () => {
      const [file] = input.files;
      input.value = ""; // so that the same file can be chosen again
      if (file) onPicture(file);
    };
    input.addEventListener("change", take);
    take(); // what was chosen before the page's scripts were there
  }
  byId("samples").addEventListener("click", (event) => {
    const source = event.target.closest("button")?.dataset.src;
    if (source) onPicture(get(source).then((response) => response.blob()));
  });
  document.addEventListener("paste", (event) => event.clipboardData.files[0] && onPicture(event.clipboardData.files[0]));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").hidden = !event.dataTransfer.types.includes("Files");
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) byId("drop").hidden = true; });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").hidden = true;
    onPicture(event.dataTransfer.files[0] ?? Promise.reject(new Problem(NO_FILE)));
  });
}
