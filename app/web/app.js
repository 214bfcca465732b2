// The page: posts an image, lays its mask over it, and asks for the attention of the point that is clicked.

const byId = (id) => document.getElementById(id);
let current = null; // {id, info, point} of the image on show
let picture = null; // the file it came from
let turns = 0; // counts what was asked, so that a late answer to an earlier question is dropped

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

async function ask(url, options) {
  const response = await fetch(url, options);
  if (!response.ok) throw new Error((await response.json()).detail);
  return response;
}

async function segment(file) {
  const turn = ++turns;
  picture = file;
  say("Segmenting…");
  const model = byId("model").value; // empty until the list of models has come
  const reply = await (await ask(model ? `/segment?model=${encodeURIComponent(model)}` : "/segment", { method: "POST", body: file })).json();
  const info = await (await ask(`/attention/${reply.id}/info`)).json();
  if (turn !== turns) return; // a newer picture was chosen meanwhile
  current = { id: reply.id, info, point: null };
  byId("image").src = `/results/${reply.id}?format=overlay&alpha=0`;
  byId("mask").src = `/results/${reply.id}?format=color`;
  byId("attention").removeAttribute("src");
  byId("summary").textContent = "";
  byId("views").hidden = false;
  await showLegend(reply);
  fill(byId("block"), current.info.blocks.map((block) => block.block));
  showParts();
  say(`${reply.model}: ${reply.timings_ms.forward.toFixed(0)} ms on the device.`);
}

async function showModels() {
  const models = await (await ask("/models")).json();
  fill(byId("model"), models.map((model) => model.name));
  byId("model").value = models.find((model) => model.default).name;
}

async function showLegend(reply) {
  const model = await (await ask(`/models/${reply.model}`)).json();
  byId("legend").replaceChildren(...reply.predictions.map((prediction) => {
    const item = document.createElement("li");
    const swatch = document.createElement("i");
    swatch.style.background = `rgb(${model.classes[prediction.class_id].color})`;
    item.append(swatch, `${prediction.class} ${(100 * prediction.fraction).toFixed(1)} %`);
    return item;
  }));
}

function fill(select, values) {
  select.replaceChildren(...values.map((value) => new Option(value, value)));
  select.disabled = values.length < 2;
}

function chosenBlock() {
  return current.info.blocks.find((block) => block.block === byId("block").value);
}

function showParts() {
  const { steps, levels } = chosenBlock();
  fill(byId("part"), steps.length ? [...steps].reverse() : levels);
}

async function look() {
  if (!current?.point) return;
  const turn = ++turns;
  const { block, steps } = chosenBlock();
  const query = new URLSearchParams({ ...current.point, block });
  if (byId("part").value) query.set(steps.length ? "step" : "level", byId("part").value);
  const reply = await (await ask(`/attention/${current.id}?${query}&format=json`)).json();
  if (turn !== turns) return;
  byId("attention").src = `/attention/${current.id}?${query}&format=overlay`;
  byId("summary").textContent =
    `entropy ${reply.entropy.toFixed(1)} bits, ${(100 * reply.on_cross).toFixed(0)} % on its own row and column`;
}

function guarded(action) {
  return (event) => Promise.resolve(action(event)).catch((error) => say(error.message, true));
}

byId("file").addEventListener("change", guarded((event) => event.target.files[0] && segment(event.target.files[0])));
byId("sample").addEventListener("click", guarded(async () => segment(await (await ask("/web/sample.jpg")).blob())));
byId("model").addEventListener("change", guarded(() => picture && segment(picture)));
byId("alpha").addEventListener("input", (event) => { byId("mask").style.opacity = event.target.value; });
byId("block").addEventListener("change", guarded(() => { showParts(); return look(); }));
byId("part").addEventListener("change", guarded(look));
byId("mask").style.opacity = byId("alpha").value;

byId("mask").addEventListener("click", guarded((event) => {
  const { width, height } = current.info.image;
  const box = event.target.getBoundingClientRect();
  current.point = {
    x: Math.min(width - 1, Math.floor((event.clientX - box.left) / box.width * width)),
    y: Math.min(height - 1, Math.floor((event.clientY - box.top) / box.height * height)),
  };
  return look();
}));

document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", guarded((event) => {
  event.preventDefault();
  return event.dataTransfer.files[0] && segment(event.dataTransfer.files[0]);
}));
document.addEventListener("paste", guarded((event) => event.clipboardData.files[0] && segment(event.clipboardData.files[0])));

guarded(showModels)();
