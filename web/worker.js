// Runs the network, away from the page's own thread, on the processor (worker.js?on=wasm) or the graphics card (webgpu).
// In: {pixels, width, height, id}, out: progress, then the pixels. In: {trial: true}, out: {trial: {seconds, values}}.
import { TILE, cut, reflect, starts, windows } from "./tiles.js";

const MULTIPLE = 8, TRIAL = 256;
const on = new URL(self.location.href).searchParams.get("on") ?? "wasm";

let ort;

async function load() {
  ort = await import(`./vendor/ort.${on}.min.mjs`);
  ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
  return ort.InferenceSession.create(new URL("./model.onnx", import.meta.url).href, { executionProviders: [on] });
}

const loading = load();
loading.then(
  () => postMessage({ ready: true, threads: ort.env.wasm.numThreads }),
  (error) => postMessage({ fatal: `The network could not be loaded: ${error.message ?? error}` }));

/** One piece of an RGBA image as (1, 3, H, W) in [-0.5, 0.5]; beyond the image's end it is reflected. */
function toTensor({ pixels, width, height }, { top, left, height: H, width: W }) {
  const data = new Float32Array(3 * H * W);
  for (let y = 0; y < H; y++) {
    const row = reflect(top + y, height) * width;
    for (let x = 0; x < W; x++) {
      const from = 4 * (row + reflect(left + x, width));
      for (let c = 0; c < 3; c++) data[(c * H + y) * W + x] = pixels[from + c] / 255 - 0.5;
    }
  }
  return new ort.Tensor("float32", data, [1, 3, H, W]);
}

async function run(session, tensor) {
  const result = await session.run({ [session.inputNames[0]]: tensor });
  return result[session.outputNames[0]];
}

async function restore(image) {
  const { pixels, width, height, id } = image;
  const [paddedHeight, paddedWidth] = [height, width].map((side) => Math.ceil(side / MULTIPLE) * MULTIPLE);
  const session = await loading, pieces = cut(paddedHeight, paddedWidth);
  const single = pieces.length === 1;
  const rowWindows = single ? [] : windows(paddedHeight, TILE, starts(paddedHeight));
  const columnWindows = single ? [] : windows(paddedWidth, TILE, starts(paddedWidth));
  const sum = single ? null : new Float32Array(3 * height * width);
  const out = new Uint8ClampedArray(pixels);      // alpha stays
  for (const [k, piece] of pieces.entries()) {
    postMessage({ id, done: k, pieces: pieces.length });
    const tensor = await run(session, toTensor(image, piece));
    const values = tensor.data, [, , H, W] = tensor.dims;
    const rows = rowWindows[Math.floor(k / columnWindows.length)], columns = columnWindows[k % columnWindows.length];
    const lastRow = Math.min(piece.height, height - piece.top), lastColumn = Math.min(piece.width, width - piece.left);
    for (let c = 0; c < 3; c++) for (let y = 0; y < lastRow; y++) for (let x = 0; x < lastColumn; x++) {
      const value = Math.min(Math.max(values[(c * H + y) * W + x], -0.5), 0.5) + 0.5;
      if (!Number.isFinite(value)) throw new Error("the network's result is not finite");
      const at = (piece.top + y) * width + piece.left + x;
      if (single) out[4 * at + c] = Math.round(value * 255);
      else sum[c * height * width + at] += value * rows[y] * columns[x];
    }
    tensor.dispose();
  }
  if (sum) for (let c = 0; c < 3; c++) for (let at = 0; at < height * width; at++) {
    out[4 * at + c] = Math.round(sum[c * height * width + at] * 255);
  }
  return out;
}

/** The network's values for fixed noise, and the seconds that they take when everything is warm. */
async function trial() {
  const session = await loading;
  const noise = Float32Array.from({ length: 3 * TRIAL * TRIAL }, (_, i) => ((i * 7919) % 251) / 250 - 0.5);
  const input = new ort.Tensor("float32", noise, [1, 3, TRIAL, TRIAL]);
  await run(session, input);
  const started = performance.now(), result = await run(session, input);
  return { seconds: (performance.now() - started) / 1000, values: result.data };
}

async function answer(data) {
  if (data.trial) return postMessage({ trial: await trial() });
  const started = performance.now();
  try {
    const pixels = await restore(data);
    postMessage({ id: data.id, pixels, seconds: (performance.now() - started) / 1000 }, [pixels.buffer]);
  } catch (error) {
    postMessage({ id: data.id, error: String(error.message ?? error) });
  }
}

let last = loading;     // a session runs one image at a time
onmessage = ({ data }) => { last = last.then(() => answer(data)).catch((error) => postMessage({ fatal: String(error) })); };
