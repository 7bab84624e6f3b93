// @ts-check
/**
 * The panel that asks an image student, in onnxruntime-web: nothing is loaded before a click.
 *
 * @typedef {{name: string, file: string, bytes: number, shape: [number, number, number],
 *   classes: string[], levels: [number, number, number], steps: number[], strips: string | null}} About
 * @typedef {{about: About, ask: (x: Float32Array, sigma: number, label: number) =>
 *   Promise<Float32Array>}} Student
 * @typedef {{image: Float32Array, says: string}} Shot
 */

import { normals, sphericalMix } from "./numerics.js";
import { button, choice, make } from "./views.js";

const BASE = new URL(".", import.meta.url);
const megabytes = (/** @type {number} */ n) => `${(n / 1e6).toFixed(1)} MB`;
/** @type {Promise<any> | null} */
let runtime = null;
let tries = 0;

/** Fetch `file`, telling `onBytes` of each part that came. @param {string} file
 * @param {(count: number) => void} onBytes @returns {Promise<Uint8Array>} */
async function fetchBytes(file, onBytes) {
  const answer = await fetch(new URL(file, BASE));
  if (!answer.ok || !answer.body) throw new Error(`${file}: ${answer.status}`);
  const parts = [], reader = answer.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    onBytes(part.value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** Load onnxruntime-web on one thread; under a new address each time, for a browser remembers that an
 * import failed. @param {(count: number) => void} onBytes */
async function loadRuntime(onBytes) {
  const fresh = (/** @type {string} */ name) => new URL(`${name}.mjs?${tries}`, BASE).href;
  const ort = await import(fresh("ort.wasm.min"));
  ort.env.wasm.wasmBinary = await fetchBytes("ort-wasm-simd-threaded.wasm", onBytes);
  ort.env.wasm.wasmPaths = { mjs: fresh("ort-wasm-simd-threaded") };
  ort.env.wasm.numThreads = 1;
  return ort;
}

/** Open the student that `about` tells of. @param {About} about
 * @param {(count: number) => void} [onBytes] @returns {Promise<Student>} */
export async function open(about, onBytes = () => {}) {
  const ort = await (runtime ??= loadRuntime(onBytes));
  const session = await ort.InferenceSession.create(await fetchBytes(about.file, onBytes));
  return { about, async ask(x, sigma, label) {
    const inputs = { x: new ort.Tensor("float32", x, [1, ...about.shape]),
      sigma: new ort.Tensor("float32", [sigma], [1]) };
    if (about.classes.length)
      Object.assign(inputs, { labels: new ort.Tensor("int64", [BigInt(label)], [1]) });
    return (await session.run(inputs)).images.data;
  } };
}

/** Turn `noise` into an image (CM paper, algorithm 1); return all that is seen on the way.
 * @param {Student} student @param {Float32Array} noise
 * @param {{steps?: number, fresh?: Float32Array, label?: number}} [options] fresh: the second
 *   step's noise @returns {Promise<Shot[]>} */
export async function sample({ about, ask }, noise, { steps = 1, fresh, label = 0 } = {}) {
  const [top, middle, low] = about.levels;
  /** @type {Shot[]} */
  const shots = [{ image: noise.map((z) => z / 2), says: `noise, sigma ${top}` }];
  /** @type {Float32Array} */
  let image = await ask(noise.map((z) => z * top), top, label);
  shots.push({ image, says: "after 1 step" });
  if (steps > 1 && fresh) {
    const added = Math.sqrt(middle ** 2 - low ** 2), other = fresh;
    const noisy = image.map((v, i) => v + added * other[i]);
    shots.push({ image: noisy.map((v) => v / 2), says: `noise again, sigma ${middle}` });
    image = await ask(noisy, middle, label);
    shots.push({ image, says: "after 2 steps" });
  }
  return shots;
}

/** The pixels of an image in [-1, 1], as Python's course writes them: RGBA, 0 … 255.
 * @param {Float32Array} image @param {[number, number, number]} shape
 * @returns {Uint8ClampedArray<ArrayBuffer>} */
export function pixels(image, [channels, height, width]) {
  const size = height * width, bytes = new Uint8ClampedArray(4 * size);
  for (let i = 0; i < size; i++) {
    for (let k = 0; k < 3; k++) {
      const value = image[Math.min(k, channels - 1) * size + i];
      bytes[4 * i + k] = Math.round((Math.min(1, Math.max(-1, value)) + 1) * 127.5);
    }
    bytes[4 * i + 3] = 255;
  }
  return bytes;
}

/** @param {Shot} shot @param {About} about @param {number} number */
function figure({ image, says }, { shape }, number) {
  const canvas = make("canvas", { width: shape[2], height: shape[1], role: "img",
    "aria-label": `Image ${number}${says && `: ${says}`}` });
  canvas.getContext("2d").putImageData(new ImageData(pixels(image, shape), shape[2]), 0, 0);
  return make("figure", {}, canvas, make("figcaption", {}, says));
}

/** What can be shown. @type {Record<string, string>} */
const MODES = { samples: "samples", path: "the way of one sample", between: "between two seeds",
  classes: "one noise, every class" };

/** Put the panel in the place of `picture`. @param {Element} picture */
export async function show(picture) {
  const says = make("output");
  const [load, controls] = [0, 0].map(() => make("div", { className: "play-controls" }));
  const pictures = make("div", { className: "play-pictures", tabIndex: 0, role: "group",
    "aria-label": "Images of the student" });
  const title = "Ask a student for images";
  picture.replaceWith(make("section", { className: "play", "aria-label": `Playground: ${title}` },
    make("p", { className: "play-head" }, title),
    make("p", {}, "Choose a student: small colour photos (32×32) or handwritten digits (8×8). It runs "
      + "in your browser and turns noise into an image in one step or two; nothing is sent anywhere. "
      + "Its noise starts at sigma 80 (photos) or 10 (digits), as it was trained. "
      + "Expect rough pictures: the networks are small. Show “the way of one sample” with 2 steps to "
      + "see what the second step adds."),
    load, controls, says, pictures));
  const found = await fetch(new URL("images.json", BASE)).then((a) => a.json()).catch(() => null);
  if (!found?.students.length || typeof WebAssembly === "undefined") {
    pictures.remove();
    says.value = typeof WebAssembly === "undefined"
      ? "This browser runs no WebAssembly, which the student needs."
      : "No student of images is on this site: it was built without onnxruntime-web or onnx.";
    return;
  }
  chooseStudent(found, { says, load, controls, pictures });
}

/** Offer the students, and their size: the first is loaded by a click, others when they are chosen.
 * @param {{students: About[], runtime: {bytes: number}[]}} found
 * @param {Record<"says" | "load" | "controls" | "pictures", any>} parts */
function chooseStudent(found, parts) {
  let about = found.students.reduce((a, b) => (a.bytes > b.bytes ? a : b)), wish = 0;
  const size = () => found.runtime.reduce((sum, { bytes }) => sum + (runtime ? 0 : bytes), about.bytes);
  const names = found.students.map(({ name, shape, bytes }) => [name,
    `${name}: ${shape[0] > 1 ? "colour" : "grey"}, ${shape[2]}×${shape[1]}, ${megabytes(bytes)}`]);
  const which = choice("Student", names, (name) => {
    about = found.students.find((one) => one.name === name) ?? about;
    go.isConnected && bar.hidden ? offer() : load();
  });
  const bar = make("progress", { hidden: true, "aria-label": "Loading" });
  const go = button("", () => bar.hidden && load());
  const offer = () => (go.textContent = `Load ${about.name} (${megabytes(size())})`);
  which.input.value = about.name;
  parts.load.replaceChildren(which.box, go, bar);
  offer();

  async function load() {
    const mine = ++wish;
    Object.assign(bar, { hidden: false, max: size(), value: 0 });
    const tell = (/** @type {number} */ count) => {
      bar.value += count;
      parts.says.value = `${megabytes(bar.value)} of ${megabytes(bar.max)}`;
    };
    tell(0); // in place of what an earlier try said
    const student = await open(about, tell).catch(() => void ([runtime, tries] = [null, tries + 1]));
    if (mine !== wish) return; // another was chosen
    bar.hidden = true;
    if (student) {
      play(student, parts);
      if (document.activeElement === go) parts.controls.querySelector("select").focus();
      go.remove();
    } else {
      if (!go.isConnected) parts.load.append(go);
      offer();
      parts.says.value = "The student could not be loaded. Try again.";
    }
  }
}

let turn = 0; // of what is drawn

/** Show what `student` draws, and the controls of it. @param {Student} student
 * @param {Record<"says" | "controls" | "pictures", any>} parts */
function play(student, { says, controls, pictures }) {
  const { about } = student;
  const modes = Object.entries(MODES).filter(([key]) => key !== "classes" || about.classes.length);
  const number = (/** @type {string} */ name, /** @type {number} */ value) => {
    const id = `play-${name.replace(" ", "-")}`;
    const input = make("input", { type: "number", min: 0, max: 99999, value, id });
    input.addEventListener("change", () => {
      input.value = Math.min(99999, Math.max(0, Math.round(input.value)));
      draw();
    });
    return { input, box: make("div", { className: "play-control" },
      make("label", { htmlFor: id }, name), input) };
  };
  const options = (/** @type {number[]} */ list) => list.map((v) => [`${v}`, `${v}`]);
  const mode = choice("Show", modes, draw);
  const grid = choice("Images", options([4, 9, 16, 1]), draw);
  const kinds = about.classes.map((name, i) => [`${i}`, name]);
  const kind = choice("Class", [["", "each in turn"], ...kinds], draw);
  const seed = number("Seed", 1), other = number("Second seed", 2);
  const steps = choice("Steps", options(about.steps), draw);
  const again = button("New seed", () => {
    seed.input.value = Number(seed.input.value) + 1;
    draw();
  });
  controls.replaceChildren(mode.box, grid.box, ...(kinds.length ? [kind.box] : []), seed.box, other.box,
    ...(about.steps.length > 1 ? [steps.box] : []), again);
  const size = about.shape.reduce((a, b) => a * b);
  const label = (/** @type {number} */ i) => (kinds.length
    ? kind.input.value === "" ? i % kinds.length : Number(kind.input.value) : 0);

  /** What is to be drawn now, one after the other. @returns {(() => Promise<Shot[]>)[]} */
  function jobs() {
    const first = Number(seed.input.value), count = Number(grid.input.value);
    const ask = (/** @type {Float32Array} */ noise, /** @type {number} */ i, says = "") => async () => {
      const fresh = normals(1e6 + first, size);
      const shots = await sample(student, noise, { steps: Number(steps.input.value), fresh, label: i });
      return mode.input.value === "path" ? shots : [{ ...shots[shots.length - 1], says }];
    };
    const from = (/** @type {number} */ k) => normals(k, size);
    const name = (/** @type {number} */ i) => about.classes[i] ?? "";
    switch (mode.input.value) {
      case "path": return [ask(from(100 * first), label(0))];
      case "between": {
        const [a, b] = [from(100 * first), from(100 * Number(other.input.value))];
        return [0, 1, 2, 3, 4, 5, 6].map((k) => ask(sphericalMix(a, b, k / 6), label(0),
          k % 6 ? "" : `seed ${(k ? other : seed).input.value}`));
      }
      case "classes": return kinds.map((_, i) => ask(from(100 * first), i, name(i)));
      default: return Array.from({ length: count }, (_, i) =>
        ask(from(100 * first + i), label(i), name(label(i))));
    }
  }

  async function draw() {
    const mine = ++turn, start = performance.now(), is = mode.input.value;
    grid.box.hidden = is !== "samples";
    other.box.hidden = is !== "between";
    kind.box.hidden = is === "classes";
    const inTurn = kind.input.options[0]; // makes no sense for one image
    const [was, now] = [inTurn.disabled, is !== "samples" || grid.input.value === "1"];
    inTurn.hidden = inTurn.disabled = now;
    if (now && inTurn.selected) kind.input.value = "0";
    else if (was && !now && kind.input.value === "0") kind.input.value = "";
    const todo = jobs(), across = is === "samples" ? Math.sqrt(todo.length) : Infinity;
    pictures.replaceChildren();
    let done = 0;
    for (const job of todo) {
      const shots = await job();
      if (mine !== turn) return; // a newer wish came
      if (done++ % across === 0) pictures.append(make("div", { className: "play-row",
        style: `--across: ${Math.min(across, is === "between" ? 7 : 4)}` }));
      pictures.lastElementChild.append(...shots.map((shot, i) => figure(shot, about, done + i)));
      says.value = `${done} of ${todo.length}`;
      await new Promise((next) => setTimeout(next));
    }
    if (is === "path" && about.strips)
      pictures.append(make("p", {}, `Recorded, for four other noises${kinds.length
        ? ` (${about.classes.slice(0, 4).join(", ")})` : ""}: the teacher's walk from noise `
        + "to image, and last the student's one step."), make("img", { className: "play-strips",
        src: new URL(about.strips, BASE).href, alt: "Four rows that turn from noise into a clean "
        + "image, step by step; the last image of a row, the student's, resembles the one before" }),
      make("p", { className: "play-last" }, "the student's ↑"));
    const seconds = (performance.now() - start) / 1000;
    const each = steps.input.value === "1" ? "one evaluation" : "two evaluations";
    says.value = `${todo.length} image${todo.length > 1 ? "s" : ""} of ${about.name} in `
      + `${seconds.toFixed(1)} s, ${each} each.`;
    pictures.dataset.drawn = `${turn}`;
  }
  draw();
}
