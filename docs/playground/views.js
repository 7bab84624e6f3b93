// @ts-check
/**
 * What the panels are drawn with: elements, a plane with a point to drag, and a small chart.
 *
 * @typedef {import("./numerics.js").Point} Point
 * @typedef {{color: string, points: Point[], width?: number, dash?: number[], alpha?: number}} Line
 */

/** One meaning each, in all panels. @type {Record<string, string>} */
export const COLORS = { data: "#8c8c8c", teacher: "var(--play-teacher)", cd: "#E69F00", ct: "#009E73",
  boot: "#CC79A7", dmd: "#8C564B", other: "#9467BD", error: "#D62728", horizontal: "#808A1A",
  vertical: "#0F9FB5", ink: "var(--play-ink)" };
export const LIMIT = 1.6; // the plane reaches from -LIMIT to LIMIT
export const isStill = matchMedia("(prefers-reduced-motion: reduce)");

/** Make an element. @param {string} tag @param {Record<string, any>} [props]
 * @param {...(Node | string)} children @returns {any} */
export function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props))
    key in element && key !== "list" ? /** @type {any} */ (element)[key] = value
      : element.setAttribute(key, value);
  element.append(...children);
  return element;
}

let count = 0;

/** A slider with its name and its value in words. @param {string} name @param {number} most
 * @param {(value: number) => void} onInput @param {(value: number) => string} words
 * @returns {{box: HTMLElement, set: (value: number) => void}} */
export function slider(name, most, onInput, words) {
  const id = `play-${count++}`;
  const input = make("input", { type: "range", min: 0, max: most, step: 1, id });
  const says = make("span", { className: "play-value" });
  const set = (/** @type {number} */ value) => {
    input.value = value;
    says.textContent = words(value);
    input.setAttribute("aria-valuetext", says.textContent);
  };
  input.addEventListener("input", () => onInput(Number(input.value)));
  const label = make("label", { htmlFor: id }, name);
  return { box: make("div", { className: "play-control" }, label, input, says), set };
}

/** A button. @param {string} words @param {() => void} onClick @returns {HTMLButtonElement} */
export function button(words, onClick) {
  const made = make("button", { type: "button", className: "play-button" }, words);
  made.addEventListener("click", onClick);
  return made;
}

/** A list to choose from. @param {string} name @param {string[][]} options
 * @param {(value: string) => void} onChange @returns {{box: HTMLElement, input: any}} */
export function choice(name, options, onChange) {
  const id = `play-${count++}`;
  const items = options.map(([value, text]) => make("option", { value, textContent: text }));
  const input = make("select", { id }, ...items);
  input.addEventListener("change", () => onChange(input.value));
  const label = make("label", { htmlFor: id }, name);
  return { box: make("div", { className: "play-control" }, label, input), input };
}

/** What the marks of a picture mean: pairs of a swatch (its kind and colour) and words.
 * @param {string[][]} marks @returns {any} */
export const key = (marks) => make("div", { className: "play-key" }, ...marks.map(
  ([kind, color, words]) => make("span", {},
    make("i", { className: `play-${kind}`, style: `--mark: ${color}` }), words)));

/** A canvas that is drawn anew when its size, or day and night, change. */
export class View {
  /** @param {string} title @param {string} says what is there, for who cannot see it
   * @param {number} [ratio] height / width */
  constructor(title, says, ratio = 1) {
    this.canvas = make("canvas", { role: "img", "aria-label": says });
    this.frame = make("div", { className: "play-frame" }, this.canvas);
    this.frame.style.aspectRatio = `1 / ${ratio}`;
    this.box = make("div", { className: "play-view" },
      make("div", { className: "play-title" }, title), this.frame);
    this.context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    this.width = this.height = 0;
    this.style = getComputedStyle(this.frame);
  }

  /** A colour as the canvas takes it, which knows no variables. @param {string} color */
  color(color) {
    const [name] = color.match(/--[\w-]+/) ?? [];
    return name ? this.style.getPropertyValue(name) : color;
  }

  /** Clear the canvas, in the size that it has on the page now. */
  begin() {
    const scale = Math.max(1, devicePixelRatio || 1);
    [this.width, this.height] = [this.frame.clientWidth, this.frame.clientHeight];
    const [w, h] = [Math.round(this.width * scale), Math.round(this.height * scale)];
    if (this.canvas.width !== w || this.canvas.height !== h)
      [this.canvas.width, this.canvas.height] = [w, h];
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
    this.context.clearRect(0, 0, this.width, this.height);
    this.context.font = "13px system-ui, sans-serif";
    this.context.lineJoin = "round";
  }

  /** @param {Point} at @returns {Point} */
  place(at) {
    return [(at[0] / LIMIT + 1) / 2 * this.width, (1 - at[1] / LIMIT) / 2 * this.height];
  }

  /** @param {Line} line */
  line({ color, points, width = 1.5, dash = [], alpha = 1 }) {
    const c = this.context;
    c.globalAlpha = alpha;
    c.strokeStyle = this.color(color);
    c.lineWidth = width;
    c.setLineDash(dash);
    c.beginPath();
    points.forEach((p, i) => (i ? c.lineTo(...this.place(p)) : c.moveTo(...this.place(p))));
    c.stroke();
    c.setLineDash([]);
    c.globalAlpha = 1;
  }

  /** @param {Point} at @param {string} color @param {number} [size] @param {string} [kind]
   * @param {number} [alpha] */
  mark(at, color, size = 5, kind = "dot", alpha = 1) {
    const c = this.context, [x, y] = this.place(at);
    c.globalAlpha = alpha;
    c.fillStyle = c.strokeStyle = this.color(color);
    c.lineWidth = 2.5;
    c.beginPath();
    if (kind === "square") c.rect(x - size, y - size, 2 * size, 2 * size);
    else if (kind === "triangle") {
      c.moveTo(x, y - 1.2 * size);
      c.lineTo(x + 1.1 * size, y + size);
      c.lineTo(x - 1.1 * size, y + size);
      c.closePath();
    } else if (kind === "diamond") {
      for (const [u, v] of [[0, -1], [1, 0], [0, 1], [-1, 0]])
        c.lineTo(x + 1.35 * size * u, y + 1.35 * size * v);
      c.closePath();
    } else if (kind === "cross") {
      for (const up of [-1, 1]) {
        c.moveTo(x - size, y - up * size);
        c.lineTo(x + size, y + up * size);
      }
    } else c.arc(x, y, size, 0, 7);
    if (kind === "cross") c.stroke();
    else c.fill();
    if (kind !== "cross" && size >= 5) { // large marks have a rim, to be told from what they cover
      [c.strokeStyle, c.lineWidth] = [this.color(COLORS.ink), 1.2];
      c.stroke();
    }
    c.globalAlpha = 1;
  }

  /** @param {string} text @param {Point} at @param {number} [dx] @param {number} [dy]
   * @param {CanvasTextAlign} [align] */
  text(text, at, dx = 8, dy = 4, align = "left") {
    const [x, y] = this.place(at), c = this.context;
    c.textAlign = align;
    [c.fillStyle, c.strokeStyle] = [COLORS.ink, "--play-paper"].map((name) => this.color(name));
    c.lineWidth = 4;
    c.strokeText(text, x + dx, y + dy); // so that it is read on what it covers
    c.fillText(text, x + dx, y + dy);
  }

  /** Paint a lattice over the plane. @param {number} side @param {string} color
   * @param {(i: number) => number} opacity of cell i, row by row from the bottom */
  paint(side, color, opacity) {
    const image = new ImageData(side, side), rgb = color.match(/\w\w/g) ?? [];
    for (let row = 0; row < side; row++)
      for (let column = 0; column < side; column++) {
        const at = 4 * ((side - 1 - row) * side + column);
        rgb.forEach((hex, k) => (image.data[at + k] = parseInt(hex, 16)));
        image.data[at + 3] = 255 * Math.min(1, Math.max(0, opacity(row * side + column)));
      }
    const small = make("canvas", { width: side, height: side });
    small.getContext("2d").putImageData(image, 0, 0);
    this.context.imageSmoothingEnabled = true;
    this.context.drawImage(small, 0, 0, this.width, this.height);
  }
}

/** A plane with a point that is dragged, tapped or moved by the arrow keys. */
export class Plane extends View {
  /** @param {string} title @param {string} says @param {(at: Point) => void} onMove */
  constructor(title, says, onMove) {
    super(title, says);
    this.handle = make("button", { type: "button", className: "play-handle" });
    this.frame.append(this.handle);
    /** @type {Point} */
    this.at = [0, 0];
    const move = (/** @type {Point} */ [x, y]) => {
      const within = (/** @type {number} */ v) => Math.max(-1.5, Math.min(1.5, v));
      onMove([within(x), within(y)]);
    };
    const drop = (/** @type {PointerEvent} */ event) => {
      const box = this.frame.getBoundingClientRect();
      move([((event.clientX - box.left) / box.width * 2 - 1) * LIMIT,
        (1 - (event.clientY - box.top) / box.height * 2) * LIMIT]);
    };
    this.handle.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      this.handle.setPointerCapture(event.pointerId);
      this.handle.focus({ preventScroll: true });
    });
    this.handle.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
      if (this.handle.hasPointerCapture(event.pointerId)) drop(event);
    });
    this.canvas.addEventListener("click", drop);
    this.handle.addEventListener("focus", () => this.handle.matches(":focus-visible")
      && this.frame.scrollIntoView({ block: "nearest" }));
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    this.handle.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      const step = steps[/** @type {keyof typeof steps} */ (event.key)];
      if (!step) return;
      event.preventDefault();
      const length = event.shiftKey ? 0.2 : 0.04;
      move([this.at[0] + length * step[0], this.at[1] + length * step[1]]);
    });
  }

  /** @param {Point} at */
  put(at) {
    this.at = at;
    this.handle.style.left = `${(at[0] / LIMIT + 1) * 50}%`;
    this.handle.style.top = `${(1 - at[1] / LIMIT) * 50}%`;
    const says = `Yellow point, in the frame at ${at[0].toFixed(2)}, ${at[1].toFixed(2)}: `
      + "arrow keys move it, with Shift further";
    this.handle.setAttribute("aria-label", says);
  }
}

/** A chart, with its axes. */
export class Chart extends View {
  /** @param {string} title @param {string} says
   * @param {{x: [string, string], y: (number: number) => string, range: [number, number],
   *   ticks: number[], xlabel: string, at?: [string, number]}} axes x: what stands at its ends,
   *   at: and at one place between @param {number} [ratio] height / width */
  constructor(title, says, axes, ratio = 0.72) {
    super(title, says, ratio);
    this.axes = axes;
  }

  /** @param {Point} at x in 0 … 1, y in `range` @returns {Point} */
  place([x, y]) {
    const [low, high] = this.axes.range, [left, right, top, bottom] = [52, 12, 16, 40];
    const share = (Math.min(high, Math.max(low, y)) - low) / (high - low);
    return [left + x * (this.width - left - right),
      this.height - bottom - share * (this.height - top - bottom)];
  }

  begin() {
    super.begin();
    const { range, ticks, x, y, xlabel, at } = this.axes, [low] = range, c = this.context;
    for (const tick of ticks) {
      this.line({ color: COLORS.ink, points: [[0, tick], [1, tick]], width: 1, alpha: 0.18 });
      this.text(y(tick), [0, tick], -6, 4, "right");
    }
    this.line({ color: COLORS.ink, points: [[0, low], [1, low]], width: 1 });
    this.text(x[0], [0, low], 0, 17);
    this.text(x[1], [1, low], 0, 17, "right");
    if (at) {
      this.line({ color: COLORS.ink, points: [[at[1], low], [at[1], range[1]]], width: 1, alpha: 0.4 });
      this.text(at[0], [at[1], low], 0, 17, "center");
    }
    this.text(xlabel, [0.5, low], 0, 33, "center");
    c.textAlign = "left";
  }
}
