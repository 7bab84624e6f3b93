// @ts-check
/**
 * The five panels on the plane.  They share one point of noise, one noise level, one data set.
 *
 * @typedef {import("./numerics.js").Point} Point
 * @typedef {import("./numerics.js").Denoiser} Denoiser
 * @typedef {import("./numerics.js").Mixture} Mixture
 * @typedef {{mixture: Mixture, denoiser: Denoiser, students: Record<string, Denoiser>,
 *   ends: Point[], cache: Map<string, any>, walk?: Walk}} Data
 * @typedef {{at: Point, noise: Point, path: Point[], line: Point[], end: Point}} Walk
 * @typedef {{element: HTMLElement, says: HTMLOutputElement, views: View[],
 *   draw: (data: Data) => void}} Panel
 */

import * as N from "./numerics.js";
import { COLORS, Chart, LIMIT, Plane, View, button, choice, isStill, key, make, slider } from "./views.js";

export const LEVELS = N.karrasSigmas(18);
const LAST = LEVELS.length - 1;
/** Those that jump: name, title and mark. */
const JUMPERS = [["cd", "CD", "dot"], ["ct", "CT", "triangle"], ["boot", "BOOT", "square"],
  ["dmd", "DMD", "diamond"]];
const DATA = ["square", COLORS.data, "the data"];
const END = ["cross", COLORS.ink, "exact end: the path in very many steps"];
export const SETS = ["moons", "circles", "swiss_roll", "eight_gaussians", "checkerboard", "pinwheel"];
const BASE = new URL(".", import.meta.url);

/** What the panels share. @type {{at: Point, level: number, set: string}} */
export const state = { at: [0.8, 0.8], level: 9, set: "moons" };
/** @type {Panel[]} */
const shown = [];
/** @type {Map<string, Promise<Data>>} */
const sets = new Map();
/** The recorded training, of the set that has one. @type {{sigmas: number[], errors: number[][]} | null} */
let climb = null;
let isWaiting = false, timer = 0;

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
  if ("climb.errors" in tensors)
    climb = { errors: rows("climb.errors"), sigmas: Array.from(get("climb.sigmas")) };
  const denoiser = (/** @type {Point} */ x, /** @type {number} */ sigma) =>
    N.posterior(mixture, x, sigma).denoised;
  const ends = /** @type {Point[]} */ (rows("ends"));
  return { mixture, denoiser, students, ends, cache: new Map() };
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

/** Lay out a panel: title, text, and columns of views, controls, words, and what else there is.
 * @param {string} title @param {string} text
 * @param {(View | HTMLElement[] | string | HTMLElement)[][]} columns @returns {HTMLElement} */
function lay(title, text, columns) {
  const boxes = columns.map((column) => make("div", { className: "play-view" }, ...column.map((part) =>
    (part instanceof View ? part.box : typeof part === "string" ? make("p", {}, part)
      : Array.isArray(part) ? make("div", { className: "play-controls" }, ...part) : part))));
  return make("section", { className: "play", "aria-label": `Playground: ${title}` },
    make("p", { className: "play-head" }, title), make("p", {}, text),
    make("div", { className: "play-views" }, ...boxes));
}

/** What a panel says; it can take the focus. @returns {HTMLOutputElement} */
const readout = () => make("output", { tabIndex: -1 });

/** Say whether students answer here, and a button to the set that has them.  It is made once:
 * were it made at each draw, a draw would take its focus, and a press begun on the one before.
 * @param {HTMLOutputElement} says */
function lack(says) {
  const back = button("Back to moons", () => {
    says.focus();
    update({ set: "moons" });
  });
  return { back, tell(/** @type {boolean} */ isLacking) {
    back.hidden = !isLacking;
    if (isLacking) says.value += " No student was trained on this set.";
  } };
}

/** Stop what plays, and stay at `level`. */
function pause(level = state.level) {
  clearInterval(timer);
  timer = 0;
  update({ level });
}

/** Controls of the noise level that all panels share: a slider, and if `isPlayed` a button that
 * moves it to the data.
 * @param {boolean} isPlayed @param {string} [name] @param {(level: number) => string} [words] */
function levelControls(isPlayed, name = "Noise", words = levelWords) {
  const { box, set } = slider(name, LAST, pause, words);
  const next = () => (state.level < LAST ? update({ level: state.level + 1 }) : pause());
  const go = button("Play", () => {
    if (timer) return pause();
    update({ level: isStill.matches || state.level === LAST ? (state.level + 1) % LEVELS.length
      : state.level });
    if (!isStill.matches) timer = setInterval(next, 180);
  });
  return { boxes: isPlayed ? [box, go] : [box], set() {
    set(state.level);
    go.textContent = isStill.matches ? "Next step" : timer ? "Pause" : "Play";
  } };
}

const setChoice = () =>
  choice("Data", SETS.map((name) => [name, name.replace("_", " ")]), (set) => update({ set }));

const move = (/** @type {Point} */ at) => update({ at });

/** Draw an arrow in a view. @param {View} view @param {Point} from @param {Point} by */
function arrow(view, from, by) {
  const to = /** @type {Point} */ ([from[0] + by[0], from[1] + by[1]]);
  view.line({ color: COLORS.teacher, points: [from, to], width: 1.4, alpha: 0.85 });
  const [[x, y], [u, v]] = [view.place(from), view.place(to)], angle = Math.atan2(v - y, u - x);
  const c = view.context;
  c.fillStyle = view.color(COLORS.teacher);
  c.beginPath();
  for (const turn of [0, 2.6, -2.6])
    c.lineTo(u + 4 * Math.cos(angle + turn), v + 4 * Math.sin(angle + turn));
  c.fill();
}

/** Draw a bar, and how long it is at level `sigma`. @param {View} view @param {number} [sigma] */
function scaleBar(view, sigma = N.SIGMA_MIN) {
  const s = scale(sigma), unit = [5, 2, 1, 0.5].find((length) => length * s < 0.8) ?? 0.5;
  view.line({ color: COLORS.ink, points: [[-1.5, -1.5], [-1.5 + unit * s, -1.5]], width: 3 });
  view.text(`${unit}, at ${sigma > N.SIGMA_MIN ? `sigma ${sigma.toPrecision(2)}` : "the data's scale"}`,
    [-1.5, -1.5], 0, -6);
}

/** Chapter 3. @returns {Panel} */
function scorePanel() {
  const plane = new Plane("Density, score, and the denoiser's answer", "Grey density of the noisy "
    + "data with blue arrows, the score; a dashed line leads from the yellow point to the denoiser's "
    + "answer.", move);
  const level = levelControls(false), set = setChoice(), says = readout();
  const element = lay("The score at one noise level",
    "Grey is where the data are after noise of level sigma was added. The arrows point along the "
    + "score: where that density rises fastest. Drag the yellow point: the denoiser answers with the "
    + "mean of all clean points that may lie behind it. Lower the noise: the point stays in the frame, "
    + "so x shrinks.",
    [[plane], [[...level.boxes, set.box], says, key([
      ["square", COLORS.data, "density of the noisy data"],
      ["line", COLORS.teacher, "arrow length: sigma times the score"],
      ["dash", COLORS.teacher, "from the point to the denoiser's answer"]])]]);
  return { element, says, views: [plane], draw(data) {
    const sigma = LEVELS[state.level], s = scale(sigma);
    level.set();
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
    plane.line({ color: COLORS.teacher, points: [state.at, goal], dash: [8, 4], width: 3.5 });
    plane.mark(goal, COLORS.teacher, 6);
    scaleBar(plane, sigma);
    plane.put(state.at);
    says.value = `At ${levelWords(state.level)} the point is x = ${pair(x)}. Its score is `
      + `${pair(found.score)}; the denoiser answers ${pair(found.denoised)}, which is x + sigma² · `
      + "score." + (sigma < 0.02 ? " So little noise moves a point by less than the data's own "
      + "spread: even off the grey the best guess is almost the point itself." : "");
  } };
}

const BEHIND = [...JUMPERS.map(([name, title]) => [name, `error of ${title}`]),
  ["parting", "where noises close together end far apart"]];

/** A number for a noise of the lattice: a student's error, or how fast noises close together part.
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
    + "student's jump is far from the end of the path, or where noises close together end far apart.",
  move);
  const level = levelControls(true, "Walk", (k) => `${2 * k} evaluations`);
  const set = setChoice(), says = readout(), { back, tell } = lack(says);
  let kind = "cd";
  const behind = choice("Red shows", BEHIND, (value) => {
    kind = value;
    update({});
  });
  const about = make("p"), full = make("span"), ramp = make("div", { className: "play-key" }, "0", make("i",
    { className: "play-ramp", style: `--mark: ${COLORS.error}` }), full);
  const marks = key([...JUMPERS.map(([name, title, mark]) => [mark, COLORS[name], title]),
    ["line", COLORS.teacher, "the walk"], END, DATA]);
  const element = lay("A walk of 34 evaluations, and jumps of one",
    "Drag the yellow point of noise. The blue line is the path on which the denoiser leads it to "
    + "the data (the probability-flow ODE), in 17 steps of two evaluations. CD, CT and BOOT were "
    + "trained in three ways to jump to the path's end in one. DMD was asked only for points like the "
    + "data: its jumps end on the data, but nearly never at the path's end.",
    [[plane, [...level.boxes, set.box], says, back, marks],
      [noises, ramp, [behind.box], about]]);
  return { element, says, views: [plane, noises], draw(data) {
    const { line, noise, path, end } = walk(data), sigma = LEVELS[state.level];
    level.set();
    set.input.value = state.set;
    plane.begin();
    paintDensity(plane, data, 0.02);
    plane.line({ color: COLORS.teacher, points: line, width: 1.5, alpha: 0.45 });
    plane.line({ color: COLORS.teacher, points: line.slice(0, state.level + 1), width: 3.5 });
    const errors = state.level < LAST ? [] : [`the walk ${written(distance(path[LAST], end))}`];
    plane.mark(line[state.level], COLORS.teacher, 7);
    JUMPERS.forEach(([name, title, mark], i) => {
      marks.children[i].hidden = !(name in data.students);
      if (!(name in data.students)) return;
      const to = jump(data, name, noise), color = COLORS[name];
      plane.line({ color, points: [state.at, to], dash: [5, 4], width: 1.5 });
      plane.mark(to, color, 7 - 0.6 * i, mark); // later ones leave some of the others
      errors.push(`${title} ${written(distance(to, end))}`);
    });
    plane.mark(end, COLORS.ink, 4, "cross");
    scaleBar(plane);
    plane.put(state.at);
    noises.begin();
    for (const option of behind.input.options)
      option.disabled = option.value !== "parting" && !(option.value in data.students);
    const now = kind in data.students ? kind : "parting", most = now === "parting" ? 6 : 0.5;
    behind.input.value = now;
    const map = mapOf(data, now);
    about.textContent = `The same point, among all noises. ${now === "dmd"
      ? "DMD was not asked for the path's end: here red is no fault."
      : "Drag it across the red line. Close to the line even the exact end lies off the data."}`;
    full.textContent = now === "parting" ? "6 times as far apart, or more"
      : `${most} from the exact end, or more`;
    noises.paint(Math.sqrt(data.ends.length), COLORS.error, (i) => ((map[i] || 0) / most) ** 0.7);
    scaleBar(noises, N.SIGMA_MAX);
    noises.put(state.at);
    says.value = `${2 * state.level} of ${2 * LAST} evaluations: sigma ${sigma.toPrecision(2)}.`
      + (errors.length ? ` How far from the exact end (cross): ${errors.join(", ")}.` : "");
    tell(!("cd" in data.students));
  } };
}

/** Chapter 9. @returns {Panel} */
function consistencyPanel() {
  const plane = new Plane("The path, and the answers along it", "A path from the yellow point to "
    + "the data, with a dot for each answer of the student.", move);
  const chart = new Chart("The answer at every level of the path", "Two curves, the "
    + "coordinates of the answer along the path, and two dashed lines, those of the path's end.",
  { x: ["sigma 5, noise", "0.002, data"], y: (v) => written(v, 0), range: [-1.6, 1.6],
    ticks: [-1, 0, 1], xlabel: "noise level along the path" }, 0.9);
  const level = levelControls(false), says = readout(), { back, tell } = lack(says);
  let name = "cd";
  const form = choice("Boundary condition", [["cd", "on (tied at 0.002)"], ["bare", "off"]], (value) => {
    name = value;
    update({});
  });
  const marks = key([["dot", COLORS.cd, "CD's answers"], ["dot", COLORS.other, "the other student's answers"],
    ["ring", COLORS.ink, "large: to this point"], ["line", COLORS.teacher, "the path, and its point"], END,
    DATA]);
  const element = lay("One answer along the whole path",
    "A consistency function answers every point of a path with the path's end: both curves, the "
    + "coordinates of CD's answer, should lie flat on the dashed lines. Its boundary condition ties the "
    + "answer at 0.002 to the point itself. Switch it off: then another student answers, first fitted to "
    + "the true ends, then trained on to agree with itself alone. It agrees on a wrong answer.",
    [[plane, [...level.boxes, form.box], says, back, marks],
    [chart, key([["line", COLORS.horizontal, "horizontal"], ["line", COLORS.vertical, "vertical"],
      ["dash", COLORS.data, "dashed: where the path ends"]])]]);
  return { element, says, views: [plane, chart], draw(data) {
    const { path, line, end } = walk(data), student = data.students[name];
    level.set();
    form.input.disabled = !student;
    ["cd", "bare"].forEach((one, i) => (marks.children[i].hidden = !student || one !== name));
    plane.begin();
    chart.begin();
    paintDensity(plane, data, 0.02);
    plane.line({ color: COLORS.teacher, points: line, width: 2, alpha: 0.6 });
    scaleBar(plane);
    plane.put(state.at);
    const colors = [COLORS.horizontal, COLORS.vertical];
    for (const k of [0, 1])
      chart.line({ color: colors[k], points: [[0, end[k]], [1, end[k]]], dash: [6, 4], width: 2 });
    plane.mark(line[state.level], COLORS.teacher, 6);
    says.value = "";
    if (student) {
      const answers = path.map((x, k) => student(x, LEVELS[k])), answer = answers[state.level];
      const color = name === "cd" ? COLORS.cd : COLORS.other;
      answers.forEach((a) => plane.mark(a, color, 4, "dot", 0.8));
      for (const k of [0, 1]) {
        const points = answers.map((a, i) => /** @type {Point} */ ([i / LAST, a[k]]));
        chart.line({ color: colors[k], points, width: 2.5 });
        chart.mark(points[state.level], colors[k], 6);
      }
      plane.mark(answer, color, 8);
      const ties = name === "cd" ? "the answer must equal" : "nothing ties it to";
      says.value = `At ${levelWords(state.level)} the answer is ${pair(answer)}, `
        + `${written(distance(answer, end))} from the exact end. At the lowest level, 0.002, ${ties} `
        + `the path's point there: ${written(distance(answers[LAST], path[LAST]), 4)} away.`;
    }
    tell(!student);
    plane.mark(end, COLORS.ink, 5, "cross"); // on top
  } };
}

/** Chapter 11. @returns {Panel} */
function neighboursPanel() {
  const plane = new Plane("Two neighbours, and their answers", "A path with two neighbouring "
    + "points, and dashed lines to the student's answers to them.", move);
  const bars = new Chart("The gaps of all 17 pairs (red: this one)", "One bar for each pair of "
    + "neighbours: the distance of the two answers.",
  { x: ["sigma 5, noise", "0.002, data"], y: String, range: [0, 0.1],
    ticks: [0, 0.05, 0.1], xlabel: "pairs of neighbouring levels" }, 0.5);
  const chart = new Chart("Error of another student, % of untrained (down to 0.12)", "Curves of the "
    + "error at each noise level, one for each hundred steps of a training; the current one is purple.",
  { x: ["sigma 5", "0.12"], y: (v) => `${100 * v} %`, range: [0, 1], ticks: [0, 0.5, 1],
    xlabel: "noise level, from noisy to clean", at: ["1", 0.4] }, 0.6);
  const pairs = slider("Pair", LAST - 1, pause,
    (k) => `${LEVELS[k].toPrecision(2)} and ${LEVELS[k + 1].toPrecision(2)}`);
  let step = 4;
  const training = slider("Training step", 32, (value) => {
    step = value;
    update({});
  }, (k) => `${25 * k} of 800`);
  const says = readout(), left = readout(), { back, tell } = lack(says);
  const marks = key([["dot", COLORS.teacher, "the two neighbours"],
    ["dot", COLORS.cd, "CD's answers to them"], DATA]);
  const element = lay("Two neighbours, one answer",
    "Consistency distillation (CD) takes two neighbours on a path, one step of the teacher apart, and "
    + "trains the student to answer both alike. Here it is trained: the gap, the distance of the two "
    + "answers, is mostly small.",
    [[plane, [pairs.box], says, back, marks],
    [bars, chart, [training.box], left, key([["line", COLORS.other, "this step"],
      ["line", COLORS.data, "after 0, 100 … 800 steps"]]),
    "Recorded, on a grid of 40 levels of the moons: the error that is left, as a share of the untrained "
    + "one. Look to the left of sigma 1: there each level falls only after the one on its right, so what "
    + "is true climbs to the noise. Between 1 and 0.1, where the error is smaller from the start, the "
    + "cleaner levels fall later."]]);
  return { element, says, views: [plane, bars, chart], draw(data) {
    const k = Math.min(state.level, LAST - 1), { line, path } = walk(data), student = data.students.cd;
    pairs.set(k);
    training.set(step);
    for (const view of [plane, chart]) view.begin();
    paintDensity(plane, data, 0.02);
    plane.line({ color: COLORS.teacher, points: line, width: 1.5, alpha: 0.5 });
    plane.line({ color: COLORS.teacher, points: line.slice(k, k + 2), width: 4 });
    for (const i of [k, k + 1]) plane.mark(line[i], COLORS.teacher, 6);
    scaleBar(plane);
    plane.put(state.at);
    says.value = "";
    bars.box.hidden = marks.children[1].hidden = !student;
    if (student) {
      const answers = path.map((x, i) => student(x, LEVELS[i]));
      const gaps = path.slice(1).map((_, i) => distance(answers[i], answers[i + 1]));
      const high = [0.02, 0.03, 0.05, 0.1, 0.2, 0.5].find((most) => gaps.every((gap) => gap < most)) ?? 2;
      Object.assign(bars.axes, { range: [0, high], ticks: [0, high / 2, high] });
      bars.begin();
      for (const i of [k, k + 1]) {
        plane.line({ color: COLORS.cd, points: [line[i], answers[i]], dash: [5, 4] });
        plane.mark(answers[i], COLORS.cd, 6);
      }
      bars.line({ color: COLORS.error, width: 14, alpha: 0.2,
        points: [[(k + 0.5) / LAST, 0], [(k + 0.5) / LAST, high]] });
      gaps.forEach((gap, i) => bars.line({ color: i === k ? COLORS.error : COLORS.cd, width: 8,
        points: [[(i + 0.5) / LAST, 0], [(i + 0.5) / LAST, Math.max(gap, high / 100)]] }));
      says.value = `The two answers, at ${levelWords(k)} and ${levelWords(k + 1)}, are `
        + `${written(gaps[k], 4)} apart.`;
    }
    tell(!student);
    if (!climb) return;
    const { errors, sigmas } = climb, first = sigmas.findIndex((sigma) => sigma > 0.09);
    const [start, end] = [sigmas[first], sigmas[sigmas.length - 1]].map(Math.log);
    const share = (/** @type {number} */ at, /** @type {number} */ i) => errors[at][i] / errors[0][i];
    const across = (/** @type {number} */ sigma) => (end - Math.log(sigma)) / (end - start);
    chart.axes.at = ["1", across(1)];
    const curve = (/** @type {number} */ at, /** @type {string} */ color, width = 1.2) =>
      chart.line({ color, width, points: sigmas.map((sigma, i) => /** @type {Point} */ (
        [across(sigma), share(at, i)])).slice(first) });
    for (let at = 0; at < errors.length; at += 4) curve(at, COLORS.data);
    curve(step, COLORS.other, 3);
    for (let at = 0; at <= 16; at += 4)
      chart.text(`${25 * at}`, [0, share(at, sigmas.length - 1)], 3, -3);
    left.value = `After ${25 * step} steps ${Math.round(100 * share(step, sigmas.length - 1))} % of the `
      + "error at the noisiest level is left.";
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
  const level = levelControls(true), set = setChoice(), noises = crowd(), says = readout();
  const { back, tell } = lack(says);
  const marks = key([["dot", COLORS.boot, "BOOT's guesses"], ["dash", COLORS.boot, "BOOT's guess of your "
    + "point's signal"], ["dot", COLORS.teacher, "exact"], ["ring", COLORS.ink, "large: of your point"],
    ["dot", COLORS.data, "300 noisy points x"],
    ["line", COLORS.teacher, "your point's path; its signal from noise to data"]]);
  const element = lay("BOOT's guess of the signal",
    "The signal is what is left of x when sigma times its starting noise is taken away: zero for all at "
    + "the start (sigma 5), about the mean of all data just below, the data point at low noise. BOOT "
    + "guesses it, at any level, from the starting noise alone. It is not exact: compare pink with blue "
    + "at low noise. Drag the yellow starting point, and play.",
    [[noisy, [...level.boxes, set.box]],
      [clear, says, back, marks]]);
  return { element, says, views: [noisy, clear], draw(data) {
    const { path, line, noise } = walk(data), sigma = LEVELS[state.level], student = data.students.boot;
    level.set();
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
      clear.mark(signal(p[state.level], noises[i], sigma), COLORS.teacher, 2.2, "dot", 0.7);
      if (guessed) clear.mark(guessed[i], COLORS.boot, 2.2, "dot", 0.9);
    });
    noisy.line({ color: COLORS.teacher, points: line, width: 1.5, alpha: 0.5 });
    noisy.line({ color: COLORS.teacher, points: line.slice(0, state.level + 1), width: 3 });
    noisy.mark(line[state.level], COLORS.teacher, 6);
    scaleBar(noisy, sigma);
    noisy.put(state.at);
    const exact = path.map((x, k) => signal(x, noise, LEVELS[k]));
    clear.line({ color: COLORS.teacher, points: exact, width: 2.5 });
    clear.mark(exact[state.level], COLORS.teacher, 8);
    says.value = `At ${levelWords(state.level)} the exact signal is ${pair(exact[state.level])}.`;
    scaleBar(clear);
    marks.children[0].hidden = marks.children[1].hidden = !student;
    tell(!student);
    if (!student) return;
    const learned = LEVELS.map((s) => student(noise, s));
    clear.line({ color: COLORS.boot, points: learned, width: 2.5, dash: [5, 4] });
    clear.mark(learned[state.level], COLORS.boot, 6);
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
