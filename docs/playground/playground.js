// @ts-check
/** Bring the playground's pictures on a page to life: each makes way for the panel it shows. */

import { PANELS, show } from "./panels.js";

const style = Object.assign(document.createElement("link"), { rel: "stylesheet",
  href: new URL("playground.css", import.meta.url).href });
const isStyled = new Promise((done) => style.addEventListener("load", done));

/** @param {Element} image */
async function enliven(image) {
  const name = (image.getAttribute("src") ?? "").match(/playground_(\w+)\.png/)?.[1] ?? "";
  const place = image.closest("p") ?? image;
  if (name in PANELS) await show(name, place);
  else if (name === "images") (await import("./images.js")).show(place);
}

/** Do so for all of them, one after the other. */
export async function start() {
  document.head.append(style);
  await isStyled;
  for (const image of document.querySelectorAll('img[src*="playground_"]')) await enliven(image);
  document.documentElement.dataset.playground = "ready";
}
