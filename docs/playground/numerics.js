// @ts-check
/**
 * The numbers of the playground: what chapters 3, 8, 9, 10 and 14 do to points, in JavaScript.
 * `tests/test_playground.py` compares every function here with Python's.
 *
 * @typedef {[number, number]} Point
 * @typedef {{means: Float64Array, stds: Float64Array, weights: Float64Array}} Mixture
 * @typedef {(x: Point, sigma: number) => Point} Denoiser
 * @typedef {{shape: number[], data: Float32Array | Float64Array}} Tensor
 * @typedef {Record<string, Tensor>} Tensors
 */

export const SIGMA_MIN = 0.002, SIGMA_MAX = 5, SIGMA_DATA = 0.5;

/** `count` levels from `high` down to `low`, even in sigma^(1/7) (EDM eq. 5).
 * @param {number} count @param {number} [low] @param {number} [high] @returns {number[]} */
export function karrasSigmas(count, low = SIGMA_MIN, high = SIGMA_MAX) {
  const [a, b] = [high ** (1 / 7), low ** (1 / 7)];
  const levels = Array.from({ length: count }, (_, i) => (a + (b - a) * i / (count - 1)) ** 7);
  levels[0] = high;
  levels[count - 1] = low;
  return levels;
}

/** What a mixture knows at `x`: log-density, score, and the mean of the clean points behind x.
 * @param {Mixture} mixture @param {Point} x @param {number} sigma
 * @returns {{logDensity: number, score: Point, denoised: Point}} */
export function posterior({ means, stds, weights }, [x, y], sigma) {
  let top = -Infinity;
  const logs = new Float64Array(stds.length), noise = sigma ** 2;
  for (let k = 0; k < logs.length; k++) {
    const v = stds[k] ** 2 + noise, dx = x - means[2 * k], dy = y - means[2 * k + 1];
    logs[k] = Math.log(weights[k] / (2 * Math.PI * v)) - (dx * dx + dy * dy) / (2 * v);
    if (logs[k] > top) top = logs[k];
  }
  let total = 0, sx = 0, sy = 0, px = 0, py = 0;
  for (let k = 0; k < logs.length; k++) {
    const gamma = Math.exp(logs[k] - top), width = stds[k] ** 2, v = width + noise;
    total += gamma;
    sx += gamma / v * (means[2 * k] - x);
    sy += gamma / v * (means[2 * k + 1] - y);
    px += gamma / v * (width * x + noise * means[2 * k]);
    py += gamma / v * (width * y + noise * means[2 * k + 1]);
  }
  return {
    logDensity: top + Math.log(total),
    score: [sx / total, sy / total],
    denoised: [px / total, py / total],
  };
}

/** dx/dsigma of the probability-flow ODE.
 * @param {Denoiser} denoiser @param {Point} x @param {number} sigma @returns {Point} */
export function slope(denoiser, x, sigma) {
  const d = denoiser(x, sigma);
  return [(x[0] - d[0]) / sigma, (x[1] - d[1]) / sigma];
}

/** One Heun step, two evaluations (EDM algorithm 1).
 * @param {Denoiser} denoiser @param {Point} x @param {number} from @param {number} to
 * @returns {Point} */
export function heunStep(denoiser, x, from, to) {
  const gap = to - from, a = slope(denoiser, x, from);
  const b = slope(denoiser, [x[0] + gap * a[0], x[1] + gap * a[1]], to);
  return [x[0] + gap * (a[0] + b[0]) / 2, x[1] + gap * (a[1] + b[1]) / 2];
}

/** The path of the standard normal `noise` through decreasing `sigmas`, by Heun.
 * @param {Denoiser} denoiser @param {Point} noise @param {number[]} sigmas @returns {Point[]} */
export function heunPath(denoiser, noise, sigmas) {
  /** @type {Point[]} */
  const path = [[noise[0] * sigmas[0], noise[1] * sigmas[0]]];
  for (let i = 1; i < sigmas.length; i++)
    path.push(heunStep(denoiser, path[i - 1], sigmas[i - 1], sigmas[i]));
  return path;
}

/** The exact consistency function: Runge-Kutta of order 4, even in arcsinh(sigma / 0.05) (ch. 9).
 * @param {Denoiser} denoiser @param {Point} x @param {number} sigma @param {number} [steps]
 * @returns {Point} */
export function exactEnd(denoiser, x, sigma, steps = 64) {
  const knee = 0.05, start = Math.asinh(sigma / knee);
  const h = (Math.asinh(SIGMA_MIN / knee) - start) / steps;
  /** @param {Point} at @param {number} u @returns {Point} */
  const speed = (at, u) => {
    const [dx, dy] = slope(denoiser, at, knee * Math.sinh(u)), rate = knee * Math.cosh(u);
    return [rate * dx, rate * dy];
  };
  for (let k = 0; k < steps; k++) {
    const u = start + k * h;
    const a = speed(x, u);
    const b = speed([x[0] + h / 2 * a[0], x[1] + h / 2 * a[1]], u + h / 2);
    const c = speed([x[0] + h / 2 * b[0], x[1] + h / 2 * b[1]], u + h / 2);
    const d = speed([x[0] + h * c[0], x[1] + h * c[1]], u + h);
    x = [x[0] + h / 6 * (a[0] + 2 * b[0] + 2 * c[0] + d[0]),
      x[1] + h / 6 * (a[1] + 2 * b[1] + 2 * c[1] + d[1])];
  }
  return x;
}

/** `weight` times `inputs` plus `bias`, through SiLU unless it `isLast`.
 * @param {Tensor} weight @param {Tensor} bias @param {Float64Array} inputs
 * @param {boolean} isLast @returns {Float64Array} */
function layer({ data: weight }, { data: bias }, inputs, isLast) {
  const outputs = new Float64Array(bias.length);
  for (let row = 0, at = 0; row < outputs.length; row++) {
    let sum = bias[row];
    for (let i = 0; i < inputs.length; i++) sum += weight[at++] * inputs[i];
    outputs[row] = isLast ? sum : sum / (1 + Math.exp(-sum));
  }
  return outputs;
}

/** The course's MLP for points, its weights those of `tensors` under `name` (chapter 4).
 * @param {Tensors} tensors @param {string} name @returns {(x: Point, cNoise: number) => Point} */
export function mlp(tensors, name) {
  const layers = ["first", "hidden.0", "hidden.1", "last"].map((key) =>
    [tensors[`${name}.${key}.weight`], tensors[`${name}.${key}.bias`]]);
  const frequencies = tensors[`${name}.embed.frequencies`].data, size = frequencies.length;
  return ([x, y], cNoise) => {
    /** @type {Float64Array} */
    let h = new Float64Array(2 + 2 * size);
    [h[0], h[1]] = [x, y];
    frequencies.forEach((frequency, i) => {
      h[2 + i] = Math.sin(cNoise * frequency);
      h[2 + size + i] = Math.cos(cNoise * frequency);
    });
    for (const [weight, bias] of layers) h = layer(weight, bias, h, bias.shape[0] === 2);
    return [h[0], h[1]];
  };
}

/** A consistency model around `network`; without its boundary, what the network says alone.
 * @param {(x: Point, cNoise: number) => Point} network @param {boolean} [hasBoundary]
 * @returns {Denoiser} */
export function consistency(network, hasBoundary = true) {
  return ([x, y], sigma) => {
    const above = sigma - SIGMA_MIN, total = Math.hypot(sigma, SIGMA_DATA);
    const skip = hasBoundary ? SIGMA_DATA ** 2 / (above ** 2 + SIGMA_DATA ** 2) : 0;
    const out = hasBoundary ? SIGMA_DATA * above / total : 1;
    const [a, b] = network([x / total, y / total], Math.log(sigma) / 4);
    return [skip * x + out * a, skip * y + out * b];
  };
}

/** BOOT's student: the signal at `sigma` of the path from `noise` (chapter 14).  At SIGMA_MAX this
 * is a denoiser of that noise, and DMD's student is one (chapter 20).
 * @param {(x: Point, cNoise: number) => Point} network @returns {Denoiser} */
export function signalModel(network) {
  const total = Math.hypot(SIGMA_MAX, SIGMA_DATA), skip = (SIGMA_DATA / total) ** 2;
  const out = SIGMA_MAX * SIGMA_DATA / total;
  return ([u, v], sigma) => {
    const [x, y] = [SIGMA_MAX * u, SIGMA_MAX * v];
    const [a, b] = network([x / total, y / total], Math.log(sigma) / 4);
    return [skip * x + out * a, skip * y + out * b];
  };
}

/** BOOT's one step: its last signal, and the bit of noise that is left at sigma_min.
 * @param {Denoiser} signal @param {Point} noise @returns {Point} */
export function bootJump(signal, noise) {
  const [x, y] = signal(noise, SIGMA_MIN);
  return [x + SIGMA_MIN * noise[0], y + SIGMA_MIN * noise[1]];
}

/** One half-precision number, from its 16 bits. @param {number} bits @returns {number} */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = bits >> 10 & 31, rest = bits & 1023;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + rest / 1024) : 2 ** -24 * rest);
}

/** The tensors in the bytes of a safetensors file. @param {ArrayBuffer} buffer @returns {Tensors} */
export function readTensors(buffer) {
  const size = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  delete header.__metadata__;
  /** @type {Tensors} */
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    const bytes = buffer.slice(8 + size + from, 8 + size + to);
    const data = dtype === "F64" ? new Float64Array(bytes)
      : dtype === "F32" ? new Float32Array(bytes)
        : Float32Array.from(new Uint16Array(bytes), half);
    tensors[name] = { shape, data };
  }
  return tensors;
}

/** `count` standard normal numbers, the same for the same `seed` (mulberry32, Box and Muller).
 * @param {number} seed @param {number} count @returns {Float32Array} */
export function normals(seed, count) {
  let at = seed >>> 0;
  const uniform = () => {
    at = at + 0x6d2b79f5 >>> 0;
    let t = Math.imul(at ^ at >>> 15, at | 1);
    t ^= t + Math.imul(t ^ t >>> 7, t | 61);
    return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
  };
  return Float32Array.from({ length: count }, () =>
    Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
}

/** The noise at `t` of the great circle from `a` to `b` (chapter 10).
 * @param {Float32Array} a @param {Float32Array} b @param {number} t @returns {Float32Array} */
export function sphericalMix(a, b, t) {
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) {
    ab += a[i] * b[i];
    aa += a[i] ** 2;
    bb += b[i] ** 2;
  }
  const angle = Math.acos(Math.min(1 - 1e-6, Math.max(-1 + 1e-6, ab / Math.sqrt(aa * bb))));
  const [p, q] = [Math.sin((1 - t) * angle), Math.sin(t * angle)].map((s) => s / Math.sin(angle));
  return a.map((value, i) => p * value + q * b[i]);
}
