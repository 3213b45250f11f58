// The page: photographs wait in a queue, a worker restores one after another, and one of them is shown before and after.
import { OVERLAP, TILE, cut } from "./tiles.js";

const $ = (id) => document.getElementById(id);
const FORMATS = { "image/jpeg": "jpg", "image/png": "png", "image/webp": "webp" };
const LONGEST = 65535;      // pixels of a side
const LARGEST = 64e6;       // pixels; canvases and 32-bit memory end not far beyond

const PATIENCE = 30000;     // ms in which a graphics card must have loaded and tried the network
const chosen = new URLSearchParams(location.search).get("on");      // ?on=wasm or ?on=webgpu: no trial

let worker, on = chosen === "webgpu" ? "webgpu" : "wasm", tried = Boolean(chosen), better = null;
let ready = false, running = null, next = 0;
const items = [];

function startWorker() {
  ready = false;
  worker = new Worker(`worker.js?on=${on}`, { type: "module" });
  listen();
}

function listen() {
  worker.onmessage = ({ data }) => receive(data);
  worker.onerror = (event) => say(`The network could not be started: ${event.message || "this browser cannot run it"}.`);
}

function say(text) { $("state").textContent = text; }

/** Moves to the graphics card if there is one, it gives the processor's values, and it is quicker. */
async function tryGraphicsCard() {
  if (!(await navigator.gpu?.requestAdapter())) return;
  const processor = await trial(worker);       // a worker that is replaced meanwhile does not answer
  tried = true;
  if (!processor) return;
  const candidate = new Worker("worker.js?on=webgpu", { type: "module" }), card = await trial(candidate, PATIENCE);
  const same = card?.values.every((value, i) => Math.abs(value - processor.values[i]) < 0.5 / 255);
  if (!same || card.seconds >= processor.seconds) return candidate.terminate();
  better = { candidate, ratio: processor.seconds / card.seconds };
  advance();
}

/** What a worker computes of a small image; null after `patience` ms. Without it, it waits for images in progress. */
function trial(worker, patience) {
  return new Promise((resolve) => {
    if (patience) setTimeout(resolve, patience, null);
    worker.addEventListener("message", ({ data }) => { if (data.trial || data.fatal) resolve(data.trial); });
    worker.postMessage({ trial: true });
  });
}

function takeBetter() {
  worker.terminate();
  [worker, on] = [better.candidate, "webgpu"];
  listen();
  say(`Ready, on the graphics card, ${better.ratio.toFixed(1)} times as fast as the processor.`);
  better = null;
}

function receive(data) {
  if (data.ready) {
    ready = true;
    say(`Ready, ${on === "webgpu" ? "on the graphics card" : data.threads === 1 ? "one thread" : `${data.threads} threads`}.`);
    if (!tried) tryGraphicsCard();
    return advance();
  }
  if (data.fatal) return say(data.fatal);
  const item = items.find((each) => each.id === data.id);
  if (!item || item !== running) return;
  if (data.error && on === "webgpu") return useProcessor(item);
  if (data.error) finish(item, "failed", `Failed: ${data.error}.`);
  else if (data.pixels) {
    deliver(item, data).catch((error) => { if (running === item) finish(item, "failed", `Failed: ${error.message}.`); });
  }
  else progress(item, data.done, data.pieces);
}

function progress(item, done, pieces) {
  const bar = item.element.querySelector("progress");
  if (pieces === 1) { bar.removeAttribute("value"); return message(item, "Restoring …"); }
  bar.max = pieces;
  bar.value = done;
  const passed = (performance.now() - item.began) / 1000;
  const left = done ? `, about ${Math.ceil((passed / done) * (pieces - done))} s left` : "";
  message(item, `Tile ${done + 1} of ${pieces} (${TILE} pixels, overlapping by ${OVERLAP})${left}`);
}

/** Again, after the graphics card has failed: its memory may be too small, or the system has taken it away. */
function useProcessor(item) {
  [on, running, item.status] = ["wasm", null, "waiting"];
  worker.terminate();
  startWorker();
}

async function deliver(item, { pixels, seconds }) {
  const canvas = new OffscreenCanvas(item.width, item.height);
  canvas.getContext("2d").putImageData(new ImageData(pixels, item.width, item.height), 0, 0);
  const type = FORMATS[item.file.type] ? item.file.type : "image/png";
  const blob = await canvas.convertToBlob({ type, quality: 0.95 });  // a PNG where it cannot encode the type
  if (running !== item) return;  // cancelled
  item.restored = URL.createObjectURL(blob);
  item.download = `${item.file.name.replace(/\.[^.]*$/, "")}-deblurred.${FORMATS[blob.type]}`;
  const pieces = cut(item.height, item.width).length;
  item.facts = `${item.width} × ${item.height} pixels, ${pieces === 1 ? "in one piece" : `${pieces} tiles`}, ` +
    `${seconds.toFixed(1)} s on this device.`;
  finish(item, "done", `Done in ${seconds.toFixed(1)} s.`);
  show(item);
}

function add(files) {
  for (const file of files) {
    const item = { id: next++, file, status: "waiting" };
    item.element = describe(item);
    items.push(item);
    $("items").append(item.element);
  }
  $("queue").hidden = items.length === 0;
  advance();
}

function describe(item) {
  const element = document.createElement("li");
  const label = document.createElement("span"), bar = document.createElement("progress");
  const text = document.createElement("span"), actions = document.createElement("span");
  label.className = "label"; label.textContent = item.file.name;
  bar.hidden = true; bar.setAttribute("aria-label", `Progress of ${item.file.name}`);
  text.className = "message"; text.textContent = "Waiting";
  actions.className = "actions";
  actions.append(button("Cancel", `Cancel ${item.file.name}`, () => cancel(item)));
  element.append(label, actions, bar, text);
  return element;
}

function button(text, name, action) {
  const made = document.createElement("button");
  made.type = "button"; made.textContent = text; made.setAttribute("aria-label", name);
  made.addEventListener("click", action);
  return made;
}

function message(item, text, bad = false) {
  const line = item.element.querySelector(".message");
  line.textContent = text;
  line.classList.toggle("error", bad);
}

async function advance() {
  if (!ready || running) return;
  if (better) takeBetter();
  const item = items.find((each) => each.status === "waiting");
  if (!item) return;
  running = item;
  item.status = "running";
  item.element.querySelector("progress").hidden = false;
  message(item, "Reading …");
  try {
    const pixels = await read(item);
    if (running !== item) return;       // cancelled meanwhile
    item.began = performance.now();
    worker.postMessage({ id: item.id, pixels, width: item.width, height: item.height }, [pixels.buffer]);
  } catch (error) {
    finish(item, "failed", `Failed: ${error.message}`);
  }
}

/** RGBA values, turned as EXIF says. */
async function read(item) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(item.file, { imageOrientation: "from-image" });
  } catch {
    throw new Error("this browser cannot read the file as a photograph; it may be damaged, or of another format.");
  }
  [item.width, item.height] = [bitmap.width, bitmap.height];
  if (bitmap.width * bitmap.height > LARGEST || Math.max(bitmap.width, bitmap.height) > LONGEST) {
    throw new Error(`${bitmap.width} × ${bitmap.height} pixels are more than a browser can hold; make it smaller.`);
  }
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  item.original = URL.createObjectURL(item.file);
  return context.getImageData(0, 0, item.width, item.height).data;
}

function finish(item, status, text) {
  item.status = status;
  item.element.querySelector("progress").hidden = true;
  message(item, text, status === "failed");
  const actions = item.element.querySelector(".actions");
  actions.replaceChildren();
  if (status === "done") actions.append(button("Show", `Show ${item.file.name}`, () => show(item)));
  if (running === item) running = null;
  advance();
}

function cancel(item) {
  const busy = running === item;
  finish(item, "cancelled", "Cancelled.");
  if (busy) {       // a run cannot be interrupted, its worker can
    worker.terminate();
    startWorker();
  }
}

function show(item) {
  for (const each of items) each.element.classList.toggle("shown", each === item);
  $("viewer").hidden = false;
  $("name").textContent = item.file.name;
  $("before").src = item.original;
  $("after").src = item.restored;
  $("pictures").dataset.width = item.width;
  $("facts").textContent = item.facts;
  Object.assign($("download"), { href: item.restored, download: item.download, hidden: false });
  zoom("fit");
}

function zoom(level) {
  for (const id of ["fit", "full", "double"]) $(id).setAttribute("aria-pressed", String(id === level));
  const width = Number($("pictures").dataset.width) / devicePixelRatio;
  $("pictures").style.width = level === "fit" ? "100%" : `${width * (level === "full" ? 1 : 2)}px`;
}

function split() {
  const value = $("split").value;
  $("before").style.clipPath = `inset(0 ${100 - value}% 0 0)`;
  $("line").style.left = `${value}%`;
}

$("files").addEventListener("change", (event) => { add(event.target.files); event.target.value = ""; });
$("split").addEventListener("input", split);
for (const id of ["fit", "full", "double"]) $(id).addEventListener("click", () => zoom(id));
$("pictures").addEventListener("pointermove", (event) => {
  if (event.pointerType === "mouse" && event.buttons !== 1) return;
  const box = $("pictures").getBoundingClientRect();
  $("split").value = Math.round((100 * (event.clientX - box.left)) / box.width);
  split();
});
$("pictures").addEventListener("dragstart", (event) => event.preventDefault());
for (const kind of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") add(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) add(event.clipboardData.files); });

startWorker();
