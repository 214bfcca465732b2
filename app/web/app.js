// The page: takes a picture, has it segmented, and shows what the models made of it.

import { Problem, getJson, segment } from "/web/api.js";
import { Comparison } from "/web/compare.js";
import { closeable, fillDownloads, saveFile } from "/web/downloads.js";
import { Inspector } from "/web/inspector.js";
import { fillLatency } from "/web/latency.js";
import { DEFAULTS, readLink, writeLink } from "/web/link.js";
import { element } from "/web/panel.js";
import { bindSettings, viewOf } from "/web/settings.js";
import { listenForPictures } from "/web/intake.js";
import { fetchPicture, readPicture } from "/web/picture.js";
import { sourceOf, toResult } from "/web/results.js";

const byId = (id) => document.getElementById(id);
const link = readLink(location.hash);
const view = viewOf(link);
const state = {
  models: [], // of /models
  model: "", // the one inspected
  comparing: false,
  file: null, // the picture as it was chosen; null when it came by a link
  picture: null, // the same as pixels
  results: new Map(), // model name -> result, all of this picture
  about: null, // what the attention is of: a point {x, y}, or a class {class}
  abort: new AbortController(),
};

// ---- what is said -------------------------------------------------------------------------------------------------

let saying = 0;
function announce(text) { // not at every step of a drag: a screen reader would never come to an end
  clearTimeout(saying);
  saying = setTimeout(() => { byId("said").textContent = text; }, 400);
}

function showBusy(text, share = null) {
  byId("busy").hidden = !text;
  byId("status").textContent = text;
  if (share === null) byId("progress").removeAttribute("value");
  else byId("progress").value = share;
}

/**
 * @param again does anew what failed, if that may help
 * @param of "map" if it is settled by the next map that comes
 */
function showProblem(error, again = null, of = "") {
  if (error.name === "AbortError") return; // something newer is under way, and says so itself
  showBusy("");
  const expired = error.type === "result-expired";
  byId("problem").hidden = false;
  byId("problem").dataset.of = of;
  byId("problem-title").textContent = expired ? "This result is gone." : `${error.title ?? "The page failed"}:`;
  byId("problem-detail").textContent = expired
    ? `The server keeps results for a while only: ${error.message}. Choose the picture again; your settings are kept.`
    : error.message + (error.wait ? `; try again in ${Math.ceil(error.wait)} s` : "");
  byId("problem-id").textContent = error.instance ? `request ${error.instance}` : "";
  byId("problem-again").hidden = !again || !mayPass(error);
  byId("problem-again").onclick = (event) => { hideProblem(event); again(); };
  if (!error.type) console.error(error); // a bug of the page's own
}

let before = null; // what had the focus before one of the problem's buttons

/** The focus goes back to where it was, lest keys begin at the top again. Whoever clicks has scrolled to what they see. */
function hideProblem({ detail: clicks = 0 } = {}) {
  const hadFocus = byId("problem").contains(document.activeElement);
  byId("problem").hidden = true;
  if (!hadFocus) return;
  const places = [before, ...document.querySelectorAll("#file, [role='slider']")];
  places.find((place) => place?.checkVisibility()).focus({ preventScroll: clicks > 0 });
}

/** What the server may take a little later: it is busy, not ready, or out of reach. */
const mayPass = ({ type, status }) => type === "unreachable" || status === 429 || status >= 500;

const guarded = (action) => async function run(...values) {
  try {
    return await action(...values);
  } catch (error) {
    showProblem(error, () => run(...values));
    return null;
  }
};

// ---- from a picture to results ------------------------------------------------------------------------------------

/** Until it has succeeded, all stays as it was. */
async function open(file) {
  state.abort.abort();
  state.abort = new AbortController();
  hideProblem();
  const { signal } = state.abort;
  showBusy("Reading the picture");
  const fresh = { file, picture: await readPicture(file), results: new Map(), about: null };
  if (signal.aborted) return;
  await need(wanted(), fresh);
  Object.assign(state, fresh);
  showAll();
}

const wanted = () => (state.comparing ? comparable() : [state.model]);

/** Has a picture segmented by those of the models that haven't done it yet: {file, picture, results}. */
async function need(names, work = state) {
  const { signal } = state.abort;
  const { results } = work;
  const missing = names.filter((name) => !results.has(name));
  if (!missing.length) return;
  const who = missing.length > 1 ? `${missing.length} models are` : `${modelNamed(missing[0]).title} is`;
  const onProgress = (share) => (share < 1 ? showBusy("Uploading", share) : showBusy(`${who} at work`));
  onProgress(0);
  const { replies, failures, elapsed } = await segment(await sourceOf(work), missing, onProgress, signal);
  const made = await Promise.all(replies.map((reply) => toResult(reply, modelNamed(reply.model), work, missing.length > 1 ? null : elapsed)));
  if (signal.aborted) throw new DOMException("a newer picture was chosen", "AbortError");
  for (const result of made) results.set(result.model.name, result);
  showBusy("");
  if (failures.length) showProblem(failureOf(failures), () => switching(state.model, state.comparing));
}

/** What to say where some of several models failed. */
function failureOf([{ model, problem }, ...others]) {
  const more = others.length ? `; ${others.length} more failed` : "";
  return new Problem({ ...problem, title: `${modelNamed(model).title}: ${problem.title}`, detail: problem.detail + more });
}

/** Results as their models are listed, in whichever order they came. */
const inOrder = () => state.models.map(({ name }) => state.results.get(name)).filter(Boolean);

const isReady = (model) => model.state === "ready";
const comparable = () => state.models.filter(isReady).map(({ name }) => name);

/** Those that are looked at. */
const inView = () => (state.comparing ? inOrder() : [state.results.get(state.model)]);

const modelNamed = (name) => state.models.find((model) => model.name === name);

// ---- showing ------------------------------------------------------------------------------------------------------

/** On phones its map is far above the class. */
function lookAtClass(name) {
  if (byId("heat-stage").getBoundingClientRect().bottom < 0) byId("heat-part").scrollIntoView();
  look({ class: name });
}

const handlers = { onPoint: (point) => look(point), onClass: lookAtClass, onMap: (key) => { view.map = key; restyle(true); }, announce };
const inspector = new Inspector(view, handlers);
const comparison = new Comparison(byId("cards"), view, handlers);
const stage = () => (state.comparing ? comparison : inspector);

function showAll() {
  const results = inView();
  if (!results[0]) return; // another model was chosen meanwhile, which is at work
  byId("start").hidden = true;
  byId("work").hidden = false;
  byId("one").hidden = state.comparing;
  byId("many").hidden = !state.comparing;
  byId("compare").setAttribute("aria-pressed", String(state.comparing));
  byId("model").value = state.model;
  byId("model").disabled = state.comparing;
  byId("settings").classList.toggle("mask-only", results.every(({ info }) => !info.blocks.length));
  byId("share").hidden = !results.every(({ isKept }) => isKept);
  if (state.comparing) comparison.show(results, state.picture);
  else inspector.show(results[0], state.picture);
  fillLatency(byId("latency"), results);
  // In reach of both: under the large pictures, or under all models' columns.
  if (state.comparing) byId("many").after(byId("settings"));
  else byId("classes-part").before(byId("settings"));
  const isThere = ({ info }) => info.classes.some(({ name }) => name === state.about.class);
  if (!state.about || (state.about.class && !results.some(isThere))) {
    state.about = { x: Math.floor(state.picture.width / 2), y: Math.floor(state.picture.height / 2) };
  }
  look(state.about);
}

/** Follows the point, or shows a class. A result that the server has let go is made again, as long as the picture is here. */
async function look(about) {
  state.about = about;
  noteChange();
  try {
    await stage().follow(about);
    if (byId("problem").dataset.of === "map") hideProblem();
  } catch (error) {
    if (error.type !== "result-expired" || !state.file) return showProblem(error, () => look(state.about), "map");
    const fresh = { file: state.file, picture: state.picture, results: new Map() };
    await guarded(async () => { await need([...state.results.keys()], fresh); Object.assign(state, fresh); showAll(); })();
  }
  return null;
}

/** After a change of how things are drawn, or of what is asked about the point. */
function restyle(asksAnew) {
  noteChange();
  if (byId("work").hidden) return;
  inspector.result && inspector.paintMask();
  comparison.paintMasks();
  if (asksAnew && state.about) look(state.about);
  else stage().paint();
}

let noting = 0;
function noteChange() { // browsers stop pages that change their address at every step of a drag
  fillDownloads(byId("downloads"), state, view, guarded(saveFile));
  clearTimeout(noting);
  noting = setTimeout(() => history.replaceState(null, "", writeLink(linkValues())), 200);
}

function linkValues() {
  const { x = "", y = "", class: name = "" } = state.about ?? {};
  const ids = inOrder().filter(({ isKept }) => isKept).map(({ id }) => id).join(",");
  const isDefault = modelNamed(state.model)?.default;
  return { ...view.toLink(), view: state.comparing ? "many" : DEFAULTS.view, model: isDefault ? "" : state.model, x, y, class: name, ids };
}

// ---- the controls -------------------------------------------------------------------------------------------------

async function switchTo(model, comparing) {
  const before = { model: state.model, comparing: state.comparing };
  Object.assign(state, { model, comparing });
  try {
    await opening;
    await need(wanted());
  } catch (error) {
    if (error.name !== "AbortError") Object.assign(state, before); // which is still on show
    byId("model").value = state.model;
    throw error;
  }
  showAll();
}

/** Browsers keep the clipboard from pages that come by plain HTTP from another machine, but let them copy what is selected. */
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = element("textarea", { className: "out-of-sight", value: text });
  byId("share").after(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  byId("share").focus();
  if (!isCopied) throw new Problem({ title: "Not copied", detail: "This browser lets the page copy nothing. The link is in the address bar." });
  return null;
}

async function copyLink() {
  const url = new URL(writeLink(linkValues()), location.href).href;
  history.replaceState(null, "", url);
  await copy(url);
  byId("share").textContent = "Copied";
  announce("The link is copied. It shows this view for as long as the server keeps the result.");
  setTimeout(() => { byId("share").textContent = "Copy link"; }, 2000);
}

/** The browser's way back leads to the picture that is on show, as its link does. */
function leaveBehind() {
  clearTimeout(noting);
  history.replaceState(null, "", writeLink(linkValues()));
  history.pushState(null, "", writeLink({ ...linkValues(), x: "", y: "", class: "", ids: "" }));
}

function startOver() {
  leaveBehind();
  state.abort.abort(); // what the old picture still waits for
  state.abort = new AbortController();
  showBusy("");
  hideProblem();
  byId("work").hidden = true;
  byId("start").hidden = false;
  byId("start").scrollIntoView();
  byId("file").focus();
}

async function restore() {
  showBusy("Fetching the result");
  const found = await Promise.allSettled(link.ids.split(",").map((id) => getJson(`/results/${encodeURIComponent(id)}?format=json`)));
  const replies = found.flatMap(({ value }) => value ?? []);
  const failed = found.find(({ reason }) => reason && (reason.type !== "result-expired" || !replies.length));
  if (failed) throw failed.reason;
  state.picture = await fetchPicture(replies[0].id);
  for (const reply of replies) state.results.set(reply.model, await toResult(reply, modelNamed(reply.model), state));
  if (replies.length < found.length) await need(wanted()); // older than the others, it has gone before them
  if (!state.results.has(state.model)) state.model = replies[0].model;
  if (link.class) state.about = { class: link.class };
  else if (link.x && link.y) state.about = { x: Number(link.x), y: Number(link.y) };
  showBusy("");
  showAll();
}

function optionOf(model) {
  const { title, name, reason } = model;
  if (isReady(model)) return new Option(title, name);
  const why = model.state === "available" ? "not loaded" : model.state;
  return Object.assign(new Option(`${title || name} (${why})`, name), { disabled: true, title: reason ?? "" });
}

async function begin() {
  state.models = await getJson("/models");
  const inTurn = [modelNamed(link.model), state.models.find((model) => model.default), ...state.models].filter(Boolean);
  state.model = (inTurn.find(isReady) ?? inTurn[0]).name;
  state.comparing = link.view === "many";
  byId("model").replaceChildren(...state.models.map(optionOf));
  byId("model").value = state.model;
  byId("compare").hidden = comparable().length < 2;
  if (link.ids) await restore();
}

window.addEventListener("hashchange", () => { // another link, or the one before: the page's own changes don't come here
  clearTimeout(noting);
  location.reload();
});
bindSettings(view, restyle);
closeable(byId("menu"));
const switching = guarded(switchTo);
byId("model").addEventListener("change", (event) => switching(event.target.value, false));
byId("compare").addEventListener("click", () => switching(state.model, !state.comparing));
byId("share").addEventListener("click", guarded(copyLink));
byId("another").addEventListener("click", startOver);
byId("problem-close").addEventListener("click", hideProblem);
byId("problem").addEventListener("focusin", ({ relatedTarget }) => {
  if (relatedTarget && !byId("problem").contains(relatedTarget)) before = relatedTarget; // none: the window has come back
});
const ready = guarded(begin)();
let opening = Promise.resolve(); // until the newest picture is there, or has failed
listenForPictures(guarded((fetchFile, note) => {
  // Together, so that a picture that can't be had before all is ready is heard of, and no stray error.
  const opened = Promise.all([fetchFile(), ready]).then(async ([file]) => {
    if (!state.models.length) await begin(); // which has failed before
    await open(file);
    if (note) showProblem(note);
  });
  opening = opened.catch(() => null);
  return opened;
}));
byId("brighter").addEventListener("click", (event) => {
  byId("norm").value = event.target.value;
  byId("norm").dispatchEvent(new Event("input"));
  byId("norm").focus({ preventScroll: true }); // the button is gone
});
