// @ts-check
/**
 * The five panels on the plane.  They share one point of noise, one noise level, one data set.
 *
 * @typedef {import("./numerics.js").Point} Point
 * @typedef {import("./numerics.js").Denoiser} Denoiser
 * @typedef {import("./numerics.js").Mixture} Mixture
 * @typedef {{mixture: Mixture, denoiser: Denoiser, students: Record<string, Denoiser>,
 *   ends: Point[], climb: {sigmas: number[], steps: number[], errors: number[][]} | null,
 *   cache: Map<string, any>, walk?: Walk}} Data
 * @typedef {{at: Point, noise: Point, path: Point[], line: Point[], end: Point}} Walk
 * @typedef {{element: HTMLElement, says: HTMLOutputElement, views: View[],
 *   draw: (data: Data) => void}} Panel
 */

import * as N from "./numerics.js";
import { COLORS, Chart, LIMIT, Plane, View, choice, isStill, key, make, slider } from "./views.js";

export const LEVELS = N.karrasSigmas(18);
const LAST = LEVELS.length - 1, NAMES = { cd: "CD", ct: "CT", boot: "BOOT", dmd: "DMD" };
const KINDS = { cd: ["dot", COLORS.student], ct: ["triangle", COLORS.ct],
  boot: ["square", COLORS.boot], dmd: ["diamond", COLORS.dmd] };
const INK = "currentcolor", DATA = /** @type {[string, string, string]} */ (
  ["square", COLORS.data, "the data"]);
const NO_STUDENT = "No student was trained on this set. Choose Data: moons.";
export const SETS = ["moons", "circles", "swiss_roll", "eight_gaussians", "checkerboard", "pinwheel"];
const BASE = new URL(".", import.meta.url);

/** What the panels share. @type {{at: Point, level: number, set: string}} */
export const state = { at: [-1, 1.05], level: 9, set: "moons" };
/** @type {Panel[]} */
const shown = [];
/** @type {Map<string, Promise<Data>>} */
const sets = new Map();
let isWaiting = false;

/** Change what the panels share, and draw them all. @param {Partial<typeof state>} change */
export function update(change) {
  Object.assign(state, change);
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(async () => {
    isWaiting = false;
    const data = await load(state.set).catch(() => null);
    for (const panel of shown)
      data ? panel.draw(data) : panel.says.value = `The ${state.set} could not be loaded.`;
  });
}

/** Load a toy set, once. @param {string} name @returns {Promise<Data>} */
export function load(name) {
  const wanted = sets.get(name) ?? fetch(new URL(`${name}.safetensors`, BASE)).then(async (answer) => {
    if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
    return read(N.readTensors(await answer.arrayBuffer()));
  });
  sets.set(name, wanted);
  wanted.catch(() => sets.delete(name)); // to be asked for again
  return wanted;
}

/** @param {import("./numerics.js").Tensors} tensors @returns {Data} */
export function read(tensors) {
  const get = (/** @type {string} */ key) => tensors[key].data;
  const mixture = /** @type {Mixture} */ ({
    means: get("mixture.means"), stds: get("mixture.stds"), weights: get("mixture.weights"),
  });
  /** @type {Record<string, Denoiser>} */
  const students = {};
  for (const name of ["cd", "ct", "bare", "boot", "dmd"])
    if (`${name}.first.weight` in tensors) {
      const network = N.mlp(tensors, name);
      students[name] = name === "boot" || name === "dmd" ? N.signalModel(network)
        : N.consistency(network, name !== "bare");
    }
  const rows = (/** @type {string} */ key) => {
    const { shape, data } = tensors[key], width = shape[1];
    return Array.from({ length: shape[0] }, (_, i) =>
      Array.from(data.slice(i * width, (i + 1) * width)));
  };
  const climb = "climb.errors" in tensors ? { errors: rows("climb.errors"),
    sigmas: Array.from(get("climb.sigmas")), steps: Array.from(get("climb.steps")) } : null;
  const denoiser = (/** @type {Point} */ x, /** @type {number} */ sigma) =>
    N.posterior(mixture, x, sigma).denoised;
  const ends = /** @type {Point[]} */ (rows("ends"));
  return { mixture, denoiser, students, ends, climb, cache: new Map() };
}

/** What `make` returns, kept under `key`.
 * @template T @param {Data} data @param {string} key @param {() => T} make @returns {T} */
function keep(data, key, make) {
  if (!data.cache.has(key)) data.cache.set(key, make());
  return data.cache.get(key);
}

const scale = (/** @type {number} */ sigma) => 0.5 / Math.hypot(sigma, 0.5);
/** A point at level `sigma` on the screen. @param {Point} x @param {number} sigma @returns {Point} */
const onScreen = (x, sigma) => [x[0] * scale(sigma), x[1] * scale(sigma)];
const TOP = scale(N.SIGMA_MAX) * N.SIGMA_MAX; // what a noise of 1 measures on the screen
/** @param {Point} at @returns {Point} */
export const noiseAt = (at) => [at[0] / TOP, at[1] / TOP];
/** @param {Point} a @param {Point} b */
const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
const written = (/** @type {number} */ v, digits = 3) => v.toFixed(digits).replace("-", "−");
const pair = (/** @type {Point} */ p) => `(${written(p[0], 2)}, ${written(p[1], 2)})`;
const levelWords = (/** @type {number} */ k) => `sigma ${LEVELS[k].toPrecision(2)}`;

/** The Heun path from the noise that is dragged, and its exact end.
 * @param {Data} data @returns {Walk} */
export function walk(data) {
  if (data.walk?.at === state.at) return data.walk; // asked by several panels
  const noise = noiseAt(state.at), path = N.heunPath(data.denoiser, noise, LEVELS);
  const line = path.map((x, k) => onScreen(x, LEVELS[k]));
  data.walk = { at: state.at, noise, path, line,
    end: N.exactEnd(data.denoiser, path[0], N.SIGMA_MAX) };
  return data.walk;
}

/** Where the student `name` takes `noise` in one evaluation.
 * @param {Data} data @param {string} name @param {Point} noise @returns {Point} */
export function jump(data, name, noise) {
  const student = data.students[name];
  return name === "boot" ? N.bootJump(student, noise)
    : name === "dmd" ? student(noise, N.SIGMA_MAX)
    : student([noise[0] * N.SIGMA_MAX, noise[1] * N.SIGMA_MAX], N.SIGMA_MAX);
}

/** Cells of a lattice on the screen. @param {number} side @param {number} i @returns {Point} */
export const cell = (side, i) => [((i % side + 0.5) / side * 2 - 1) * LIMIT,
  ((Math.floor(i / side) + 0.5) / side * 2 - 1) * LIMIT];

/** Paint the density of the data with noise `sigma`. @param {View} view @param {Data} data
 * @param {number} sigma */
function paintDensity(view, data, sigma) {
  const side = 72;
  const logs = keep(data, `density ${sigma}`, () => Float64Array.from({ length: side ** 2 },
    (_, i) => {
      const at = cell(side, i), s = scale(sigma);
      return N.posterior(data.mixture, [at[0] / s, at[1] / s], sigma).logDensity;
    }));
  const top = keep(data, `top ${sigma}`, () => logs.reduce((a, b) => Math.max(a, b)));
  view.paint(side, COLORS.data, (i) => 0.75 * Math.exp(logs[i] - top));
}

/** Lay out a panel: title, text, columns of views with their controls below, and what they say.
 * @param {string} title @param {string} text @param {(View | HTMLElement[])[][]} columns
 * @returns {{element: HTMLElement, says: HTMLOutputElement}} */
function lay(title, text, columns) {
  const says = make("output");
  const boxes = columns.map((column) => make("div", { className: "play-view" }, ...column.map(
    (part) => (part instanceof View ? part.box : make("div", { className: "play-controls" }, ...part)))));
  if (columns.some(([part]) => !(part instanceof View))) boxes[boxes.length - 1].append(says);
  const element = make("section", { className: "play", "aria-label": `Playground: ${title}` },
    make("p", { className: "play-head" }, title), make("p", {}, text),
    make("div", { className: "play-views" }, ...boxes), ...(says.parentElement ? [] : [says]));
  return { element, says };
}

/** A button that moves the shared level from noise to data. @param {string} words */
function playButton(words) {
  const go = make("button", { type: "button", className: "play-button" }, words);
  let timer = 0;
  go.addEventListener("click", () => {
    clearInterval(timer);
    if (isStill.matches) return update({ level: LAST });
    update({ level: 0 });
    timer = setInterval(() => {
      state.level < LAST ? update({ level: state.level + 1 }) : clearInterval(timer);
    }, 180);
  });
  return go;
}

/** The slider of the noise level that all panels share. */
const levelSlider = (name = "Noise level (right: less)", words = levelWords) =>
  slider(name, LAST, (level) => update({ level }), words);

const setChoice = () => {
  const options = SETS.map((name) => /** @type {[string, string]} */ ([name, name.replace("_", " ")]));
  return choice("Data", options, (set) => update({ set }));
};

const move = (/** @type {Point} */ at) => update({ at });

/** Draw an arrow in a view. @param {View} view @param {Point} from @param {Point} by */
function arrow(view, from, by) {
  const to = /** @type {Point} */ ([from[0] + by[0], from[1] + by[1]]);
  view.line({ color: COLORS.teacher, points: [from, to], width: 1.4, alpha: 0.85 });
  const [[x, y], [u, v]] = [view.place(from), view.place(to)], angle = Math.atan2(v - y, u - x);
  const c = view.context;
  c.fillStyle = COLORS.teacher;
  c.beginPath();
  for (const turn of [0, 2.6, -2.6])
    c.lineTo(u + 4 * Math.cos(angle + turn), v + 4 * Math.sin(angle + turn));
  c.fill();
}

/** Chapter 3. @returns {Panel} */
function scorePanel() {
  const plane = new Plane("Density, score, and the denoiser's answer", "Grey density of the noisy "
    + "data with blue arrows, the score; a line leads from the yellow point to the denoiser's "
    + "answer.", move);
  const level = levelSlider(), set = setChoice();
  const { element, says } = lay("The score at one noise level",
    "Grey is where the data are after noise of level sigma was added. The arrows point along the "
    + "score: where that density rises fastest. Drag the yellow point. The denoiser answers with "
    + "the mean of all clean points that may lie behind it, and the score points there.",
    [[plane], [[level.box, set.box], [key([
      ["square", COLORS.data, "density of the noisy data, strongest at its peak (at low levels it is as "
        + "wide as the data's own spread, and the pixels blur it a little)"],
      ["line", COLORS.teacher, "arrows: the direction of the score. They are longer where sigma times "
        + "the score is larger, up to a limit. At low levels the score itself is large, yet sigma "
        + "times it is small."],
      ["dot", COLORS.teacher, "the denoiser's answer"],
      ["line", INK, "the bar: a length, its number above; every level has a scale of its own"]])]]]);
  return { element, says, views: [plane], draw(data) {
    const sigma = LEVELS[state.level], s = scale(sigma);
    level.set(state.level);
    set.input.value = state.set;
    plane.begin();
    paintDensity(plane, data, sigma);
    const arrows = keep(data, `arrows ${sigma}`, () => Array.from({ length: 169 }, (_, i) => {
      const at = cell(13, i);
      return { at, score: N.posterior(data.mixture, [at[0] / s, at[1] / s], sigma).score };
    }));
    for (const { at, score } of arrows) {
      const size = Math.hypot(...score), length = 0.2 * Math.tanh(0.5 * size * sigma) / size;
      arrow(plane, at, [score[0] * length, score[1] * length]);
    }
    const x = /** @type {Point} */ ([state.at[0] / s, state.at[1] / s]);
    const found = N.posterior(data.mixture, x, sigma), goal = onScreen(found.denoised, sigma);
    plane.line({ color: COLORS.teacher, points: [state.at, goal], width: 2.5 });
    plane.mark(goal, COLORS.teacher, 6);
    const unit = [5, 2, 1, 0.5].find((length) => length * s < 0.8) ?? 0.5;
    plane.line({ color: plane.ink, points: [[-1.5, -1.5], [-1.5 + unit * s, -1.5]], width: 3 });
    plane.text(`${unit}`, [-1.5, -1.5], 0, -6);
    plane.put(state.at);
    says.value = `At ${levelWords(state.level)} the point is x = ${pair(x)}. Its score is `
      + `${pair(found.score)}; the denoiser answers ${pair(found.denoised)}, which is x + sigma² · `
      + "score." + (sigma < 0.02 ? " So little noise moves a point by less than the data's own "
      + "spread: even off the grey the best guess is almost the point itself." : "");
  } };
}

const BEHIND = /** @type {[string, string][]} */ ([["cd", "error of CD"], ["ct", "error of CT"],
  ["boot", "error of BOOT"], ["dmd", "error of DMD"], ["parting", "where neighbours part"]]);

/** A number for a noise of the lattice: a student's error, or how fast neighbours part.
 * @param {Data} data @param {string} kind @param {number} i @returns {number} */
function hardness(data, kind, i) {
  const side = Math.sqrt(data.ends.length), end = data.ends[i];
  if (kind !== "parting") return distance(jump(data, kind, noiseAt(cell(side, i))), end);
  const right = data.ends[i % side < side - 1 ? i + 1 : i - 1];
  const above = data.ends[i + side < data.ends.length ? i + side : i - side];
  return Math.max(distance(end, right), distance(end, above)) / (2 * LIMIT / side / TOP);
}

/** That number for all noises, NaN for those whose turn has not come: 800 more with each call.
 * @param {Data} data @param {string} kind @returns {Float64Array} */
export function mapOf(data, kind) {
  const map = keep(data, `map ${kind}`, () => new Float64Array(data.ends.length).fill(NaN));
  const from = map.findIndex(Number.isNaN);
  if (from < 0) return map;
  for (let i = from; i < Math.min(from + 800, map.length); i++) map[i] = hardness(data, kind, i);
  setTimeout(() => update({}));
  return map;
}

/** Chapter 8. @returns {Panel} */
function pathPanel() {
  const plane = new Plane("The path, and four jumps", "A blue path from the yellow point of "
    + "noise to the grey data, and dashed lines to where four students jump.", move);
  const noises = new Plane("Every noise: which are hard?", "The plane of noises, red where a "
    + "student's jump is far from the end of the path, or where neighbours part.", move);
  const level = levelSlider("Walk", (k) => `${2 * k} evaluations`), set = setChoice();
  let kind = "cd";
  const behind = choice("Red shows", BEHIND, (value) => {
    kind = value;
    update({});
  });
  const go = playButton("Play the walk"), full = make("span");
  const scaleBar = make("div", { className: "play-key" }, "0", make("i",
    { className: "play-ramp", style: `--mark: ${COLORS.error}` }), full);
  const { element, says } = lay("A walk of 34 evaluations, and jumps of one",
    "Drag the yellow point of noise. The blue line is the path on which the denoiser leads it to "
    + "the data (the probability-flow ODE), in 17 steps of two evaluations. CD, CT and BOOT are "
    + "students, trained in three ways to jump from the noise to the path's end in one evaluation. "
    + "DMD (chapter 20) was asked for the cloud alone: its jumps end on the moons, but nearly every "
    + "noise somewhere else than its path. The second picture shows the same point among all "
    + "noises, and which of them are hard.",
  [[plane, [key([["line", COLORS.teacher, "the walk"],
    ...Object.entries(NAMES).map(([name, title]) => /** @type {[string, string, string]} */ (
      [...KINDS[/** @type {keyof KINDS} */ (name)], title])),
    ["cross", INK, "the exact end"], DATA])], [level.box, go, set.box]],
  [noises, [scaleBar], [behind.box]]]);
  return { element, says, views: [plane, noises], draw(data) {
    const { line, noise, path, end } = walk(data), sigma = LEVELS[state.level];
    level.set(state.level);
    set.input.value = state.set;
    plane.begin();
    paintDensity(plane, data, 0.02);
    plane.line({ color: COLORS.teacher, points: line, width: 1.5, alpha: 0.45 });
    plane.line({ color: COLORS.teacher, points: line.slice(0, state.level + 1), width: 3.5 });
    const errors = state.level < LAST ? [] : [`the walk ${written(distance(path[LAST], end))}`];
    plane.mark(line[state.level], COLORS.teacher, 7);
    for (const [name, title] of Object.entries(NAMES)) {
      if (!(name in data.students)) continue;
      const to = jump(data, name, noise), [shape, color] = KINDS[/** @type {keyof KINDS} */ (name)];
      plane.line({ color, points: [state.at, to], dash: [5, 4], width: 1.5 });
      plane.mark(to, color, 6, shape);
      errors.push(`${title} ${written(distance(to, end))}`);
    }
    plane.mark(end, plane.ink, 5, "cross");
    plane.put(state.at);
    noises.begin();
    for (const option of behind.input.options)
      option.disabled = option.value !== "parting" && !(option.value in data.students);
    const now = kind in data.students ? kind : "parting", isParting = now === "parting";
    behind.input.value = now;
    const map = mapOf(data, now), most = isParting ? 6 : 0.5;
    full.textContent = isParting ? "full red: the ends are 6 times as far apart as the noises, or more"
      : "full red: 0.5 from the exact end, or more";
    noises.paint(Math.sqrt(data.ends.length), COLORS.error, (i) => ((map[i] || 0) / most) ** 0.7);
    noises.put(state.at);
    says.value = `${2 * state.level} of ${2 * LAST} evaluations: sigma ${sigma.toPrecision(2)}.`
      + (errors.length ? ` How far from the exact end (cross): ${errors.join(", ")}.` : "")
      + ("cd" in data.students ? "" : ` ${NO_STUDENT}`);
  } };
}

/** Chapter 9. @returns {Panel} */
function consistencyPanel() {
  const plane = new Plane("The path, and the answers along it", "A path from the yellow point to "
    + "the data, with an orange dot for each answer of the student.", move);
  const chart = new Chart("The answer at every level of the path", "Two curves, the "
    + "coordinates of the answer along the path, and two dashed lines, those of the path's end.",
  { x: ["sigma 5, noise", "0.002, data"], y: (v) => written(v, 0), range: [-1.6, 1.6],
    ticks: [-1, 0, 1], xlabel: "noise level along the path" }, 0.9);
  const level = levelSlider(), names = /** @type {[string, string][]} */ (
    [["cd", "on (the answer is tied to the point at 0.002)"], ["bare", "off (nothing ties it)"]]);
  let name = "cd";
  const form = choice("Boundary condition", names, (value) => {
    name = value;
    update({});
  });
  const { element, says } = lay("One answer along the whole path",
    "A consistency function answers every point of a path with the path's end. So both curves, the "
    + "two coordinates of the student's answer, should be flat and lie on the dashed lines. The "
    + "student is the one of CD. Switch its boundary condition off: then another network answers, "
    + "which was first fitted to the true ends and then trained on to agree with itself alone. It "
    + "agrees on a wrong answer.",
  [[plane, [key([["line", COLORS.teacher, "the path"], ["dot", COLORS.teacher, "its point at this level"],
    ["dot", COLORS.student, "the student's answers; the large one: to this point"],
    ["cross", INK, "the path's exact end"], DATA])], [level.box, form.box]],
  [chart, [key([["line", COLORS.student, "horizontal"], ["line", COLORS.ct, "vertical"],
    ["dash", INK, "where the path ends"]])]]]);
  return { element, says, views: [plane, chart], draw(data) {
    level.set(state.level);
    plane.begin();
    chart.begin();
    const { path, line, end } = walk(data), student = data.students[name];
    paintDensity(plane, data, 0.02);
    plane.line({ color: COLORS.teacher, points: line, width: 2, alpha: 0.6 });
    plane.put(state.at);
    const colors = [COLORS.student, COLORS.ct];
    for (const k of [0, 1])
      chart.line({ color: colors[k], points: [[0, end[k]], [1, end[k]]], dash: [6, 4], width: 2 });
    plane.mark(line[state.level], COLORS.teacher, 6);
    plane.mark(end, plane.ink, 5, "cross");
    if (!student) return void (says.value = NO_STUDENT.replace(/[.]$/, " in a panel above."));
    const answers = path.map((x, k) => student(x, LEVELS[k]));
    answers.forEach((a) => plane.mark(a, COLORS.student, 4, "dot", 0.8));
    for (const k of [0, 1]) {
      const points = answers.map((a, i) => /** @type {Point} */ ([i / LAST, a[k]]));
      chart.line({ color: colors[k], points, width: 2.5 });
      chart.mark(points[state.level], colors[k], 6);
    }
    plane.mark(answers[state.level], COLORS.student, 8);
    plane.mark(end, plane.ink, 5, "cross"); // on top
    says.value = `At ${levelWords(state.level)} the answer is ${pair(answers[state.level])}, `
      + `${written(distance(answers[state.level], end))} from the path's end. At the lowest level, `
      + "0.002, the answer must equal the path's point there; it is "
      + `${written(distance(answers[LAST], path[LAST]), 4)} away.`;
  } };
}

/** Chapter 11. @returns {Panel} */
function neighboursPanel() {
  const plane = new Plane("Two neighbours, and their answers", "A path with two neighbouring "
    + "points, and dashed lines to the student's answers to them.", move);
  const bars = new Chart("The gap of each of the 17 pairs", "One bar for each pair of "
    + "neighbours: the distance of the two answers.",
  { x: ["sigma 5, noise", "0.002, data"], y: (v) => written(v, 2), range: [0, 0.1],
    ticks: [0, 0.05, 0.1], xlabel: "pairs of neighbouring levels" }, 0.5);
  const chart = new Chart("Another student, while it trains", "Curves of the error at each noise "
    + "level, one for each step of a training; the current one is orange.",
  { x: ["sigma 5", "0.12"], y: (v) => `${100 * v} %`, range: [0, 1], ticks: [0, 0.5, 1],
    xlabel: "noise level, from noisy to clean", at: ["1", 0.4] }, 0.6);
  const level = slider("Pair", LAST - 1, (k) => update({ level: k }),
    (k) => `${LEVELS[k].toPrecision(2)} and ${LEVELS[k + 1].toPrecision(2)}`);
  let step = 4;
  const training = slider("Training step", 32, (value) => {
    step = value;
    update({});
  }, (k) => `${25 * k} of 800`);
  const { element, says } = lay("Two neighbours, one answer",
    "Consistency distillation (CD) takes two neighbours on a path, one step of the teacher apart, "
    + "and asks the student about both. Training makes the gap small, the distance of the two answers. "
    + "The picture and the chart of gaps show a student already trained: its answers mostly lie on "
    + "one another. The chart with steps shows another student, on a grid of 40 levels, while it "
    + "trains (recorded): the error that is left, as a share of the untrained one. Each line is one "
    + "training step. Look to the left of sigma 1: there each level falls only after the one on its "
    + "right, so what is true climbs to the noise. Between 1 and 0.1, where the error is smaller "
    + "from the start, the cleaner levels fall later.",
  [[plane, [key([["dot", COLORS.teacher, "the two neighbours"],
    ["dot", COLORS.student, "the answers to them"], ["line", COLORS.error, "the gap"], DATA])],
  [level.box]],
  [bars, [key([["square", COLORS.student, "gaps"], ["square", COLORS.error, "this pair's"]])],
    chart, [key([["line", COLORS.student, "this step"],
      ["line", COLORS.data, "steps 0, 100 … 800 (the first five are numbered)"]])], [training.box]]]);
  return { element, says, views: [plane, bars, chart], draw(data) {
    const k = Math.min(state.level, LAST - 1), { line, path } = walk(data);
    level.set(k);
    training.set(step);
    const student = data.students.cd;
    const answers = student ? path.map((x, i) => student(x, LEVELS[i])) : path;
    const gaps = path.slice(1).map((_, i) => distance(answers[i], answers[i + 1]));
    const high = [0.02, 0.1, 0.5].find((most) => gaps.every((gap) => gap < most)) ?? 2;
    Object.assign(bars.axes, { range: [0, high], ticks: [0, high / 2, high] });
    for (const view of [plane, bars, chart]) view.begin();
    paintDensity(plane, data, 0.02);
    plane.line({ color: COLORS.teacher, points: line, width: 1.5, alpha: 0.5 });
    plane.line({ color: COLORS.teacher, points: line.slice(k, k + 2), width: 4 });
    plane.put(state.at);
    if (!student || !data.climb) return void (says.value = NO_STUDENT.replace(/[.]$/, " in a panel above."));
    for (const i of [k, k + 1]) {
      plane.line({ color: COLORS.student, points: [line[i], answers[i]], dash: [5, 4] });
      plane.mark(line[i], COLORS.teacher, 6);
    }
    plane.mark(answers[k], COLORS.student, 6);
    plane.mark(answers[k + 1], COLORS.student, 6);
    plane.line({ color: COLORS.error, points: [answers[k], answers[k + 1]], width: 4 });
    bars.line({ color: COLORS.error, width: 14, alpha: 0.2,
      points: [[(k + 0.5) / LAST, 0], [(k + 0.5) / LAST, high]] });
    gaps.forEach((gap, i) => bars.line({ color: i === k ? COLORS.error : COLORS.student, width: 8,
      points: [[(i + 0.5) / LAST, 0], [(i + 0.5) / LAST, Math.max(gap, high / 100)]] }));
    const { errors, sigmas } = data.climb, first = sigmas.findIndex((sigma) => sigma > 0.09);
    const [start, end] = [sigmas[first], sigmas[sigmas.length - 1]].map(Math.log);
    const share = (/** @type {number} */ at, /** @type {number} */ i) => errors[at][i] / errors[0][i];
    const across = (/** @type {number} */ sigma) => (end - Math.log(sigma)) / (end - start);
    chart.axes.at = ["1", across(1)];
    const curve = (/** @type {number} */ at, /** @type {string} */ color, width = 1.2) =>
      chart.line({ color, width, points: sigmas.map((sigma, i) => /** @type {Point} */ (
        [across(sigma), share(at, i)])).slice(first) });
    for (let at = 0; at < errors.length; at += 4) curve(at, COLORS.data);
    curve(step, COLORS.student, 3);
    const top = share(step, sigmas.length - 1);
    for (let at = 0; at <= 16; at += 4)
      chart.text(`${25 * at}`, [0, share(at, sigmas.length - 1)], 3, at ? -3 : 13);
    says.value = `The two answers, at ${levelWords(k)} and ${levelWords(k + 1)}, are `
      + `${written(gaps[k], 4)} apart. In the recorded training, after ${25 * step} steps `
      + `${Math.round(100 * top)} % of the error at the noisiest level is left.`;
  } };
}

/** 300 noises, the same every time. @returns {Point[]} */
function crowd() {
  const numbers = N.normals(7, 600);
  return Array.from({ length: 300 }, (_, i) => [numbers[2 * i], numbers[2 * i + 1]]);
}

/** Chapter 14. @returns {Panel} */
function signalPanel() {
  const noisy = new Plane("The noisy point x", "300 grey points on their way from noise to data, "
    + "and the path of the yellow point.", move);
  const clear = new View("The signals of these points", "300 signals, crowded in the middle at high noise "
    + "and spread along the data at low noise, with the signal of the yellow point.");
  const level = levelSlider(), set = setChoice(), noises = crowd();
  const { element, says } = lay("BOOT's guess of the signal",
    "The signal is what is left of x when sigma times its starting noise is taken away. At high "
    + "noise it is about the mean of all data; at low noise it is the data point. BOOT's student "
    + "guesses it, at any level, from the starting noise alone. BOOT is not exact: in the end some "
    + "orange dots stay between the moons. Drag the yellow starting point, and play.",
  [[noisy, [key([["dot", COLORS.data, "300 noisy points"], ["line", COLORS.teacher, "the path of yours"],
    ["dot", COLORS.teacher, "your x at this level"]])],
  [level.box, playButton("Play the levels"), set.box]],
  [clear, [key([["dot", COLORS.student, "BOOT's guess"], ["dot", COLORS.teacher, "exact"],
    ["ring", INK, "large, with a rim: of your point"]])]]]);
  return { element, says, views: [noisy, clear], draw(data) {
    const { path, line, noise } = walk(data), sigma = LEVELS[state.level], student = data.students.boot;
    level.set(state.level);
    set.input.value = state.set;
    noisy.begin();
    clear.begin();
    const paths = keep(data, "crowd", () =>
      noises.map((z) => N.heunPath(data.denoiser, z, LEVELS)));
    const signal = (/** @type {Point} */ x, /** @type {Point} */ z, /** @type {number} */ s) =>
      /** @type {Point} */ ([x[0] - s * z[0], x[1] - s * z[1]]);
    const guessed = student && keep(data, `crowd ${sigma}`, () => noises.map((z) => student(z, sigma)));
    paths.forEach((p, i) => {
      noisy.mark(onScreen(p[state.level], sigma), COLORS.data, 2.2, "dot", 0.8);
      clear.mark(signal(p[state.level], noises[i], sigma), COLORS.teacher, 2.2, "dot", 0.5);
      if (guessed) clear.mark(guessed[i], COLORS.student, 2.2, "dot", 0.9);
    });
    noisy.line({ color: COLORS.teacher, points: line, width: 1.5, alpha: 0.5 });
    noisy.line({ color: COLORS.teacher, points: line.slice(0, state.level + 1), width: 3 });
    noisy.mark(line[state.level], COLORS.teacher, 6);
    noisy.put(state.at);
    const exact = path.map((x, k) => signal(x, noise, LEVELS[k]));
    clear.line({ color: COLORS.teacher, points: exact, width: 2.5 });
    clear.mark(exact[state.level], COLORS.teacher, 8);
    says.value = `At ${levelWords(state.level)} the exact signal is ${pair(exact[state.level])}.`;
    if (!student) return void (says.value += ` ${NO_STUDENT}`);
    const learned = LEVELS.map((s) => student(noise, s));
    clear.line({ color: COLORS.student, points: learned, width: 2.5, dash: [5, 4] });
    clear.mark(learned[state.level], COLORS.student, 6);
    says.value += ` BOOT guesses ${pair(learned[state.level])}, `
      + `${written(distance(exact[state.level], learned[state.level]))} away.`;
  } };
}

export const PANELS = { score: scorePanel, path: pathPanel, consistency: consistencyPanel,
  neighbours: neighboursPanel, signal: signalPanel };

/** Put the panel `name` in the place of `picture`. @param {string} name @param {Element} picture */
export async function show(name, picture) {
  await load(state.set); // without it the picture stays
  const panel = PANELS[/** @type {keyof PANELS} */ (name)]();
  picture.replaceWith(panel.element);
  shown.push(panel);
  const sizes = new ResizeObserver(() => update({}));
  for (const view of panel.views) sizes.observe(view.frame);
  update({});
}

new MutationObserver(() => update({})).observe(document.documentElement,
  { attributes: true, attributeFilter: ["data-theme"] });
