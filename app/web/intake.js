// The ways a picture comes in: chosen, photographed, dropped, pasted, or a sample.

import { Problem, get } from "/web/api.js";

// Browsers differ in whether they give out a picture that is dragged from another page.
const NO_FILE = { title: "No picture", detail: "What was dropped is no file. Save the picture first, or copy and paste it." };
const firstOf = (files) => new Problem({ title: "One picture at a time",
  detail: `This is ${files[0].name}, the first of the ${files.length} files.` });
const byId = (id) => document.getElementById(id);

/** @param onPicture called with a function that gives a File or Blob, or a promise of one, and a Problem to tell then */
export function listenForPictures(onPicture) {
  const takeOne = (files) => onPicture(() => files[0], files.length > 1 ? firstOf(files) : null);
  for (const id of ["file", "camera"]) {
    const input = byId(id);
    const take = () => {
      const files = [...input.files];
      input.value = ""; // so that the same file can be chosen again
      if (files.length) takeOne(files);
    };
    input.addEventListener("change", take);
    take(); // what was chosen before the page's scripts were there
  }
  byId("samples").addEventListener("click", (event) => {
    const source = event.target.closest("button")?.dataset.src;
    if (source) onPicture(async () => (await get(source)).blob());
  });
  document.addEventListener("paste", ({ clipboardData: { files } }) => files.length && takeOne([...files]));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").hidden = !event.dataTransfer.types.includes("Files");
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) byId("drop").hidden = true; });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").hidden = true;
    const files = [...event.dataTransfer.files];
    if (files.length) takeOne(files);
    else onPicture(() => Promise.reject(new Problem(NO_FILE)));
  });
}
