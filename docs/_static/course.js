document.addEventListener("DOMContentLoaded", () => {
  // a long animation waits until the reader scrolls; a click, or Enter, plays or stops it
  const motions = document.querySelectorAll("a.motion");
  const play = (link, on) => {
    const picture = link.querySelector("img");
    picture.src = on ? link.href : (link.dataset.still ??= picture.src);
  };
  motions.forEach((link) => {
    play(link, false);
    link.addEventListener("click", (event) => {
      event.preventDefault();
      play(link, link.querySelector("img").src !== link.href);
    });
  });
  const watch = new IntersectionObserver((seen) => seen.filter((one) => one.isIntersecting)
    .forEach((one) => { play(one.target, true); watch.unobserve(one.target); }));
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches)
    addEventListener("scroll", () => motions.forEach((link) => watch.observe(link)), { once: true });

  // the playground's pictures come to life when the reader is a screen away; they stay pictures
  // where its files are missing
  const pictures = document.querySelectorAll('img[src*="playground_"]');
  if (pictures.length) {
    const root = new URL(document.documentElement.dataset.content_root, location);
    window.playground = new Promise((isNear) => {
      const near = new IntersectionObserver((seen) => {
        if (!seen.some((one) => one.isIntersecting)) return;
        near.disconnect();
        isNear(import(new URL("playground/playground.js", root)));
      }, { rootMargin: "100% 0px" });
      pictures.forEach((one) => near.observe(one));
    }).then((found) => found.start()).catch(() => {});
  }

  // names for what the theme leaves without one, and the keyboard for what scrolls sideways
  document.querySelectorAll(".bd-sidenav summary").forEach((mark) =>
    mark.setAttribute("aria-label", "Beside " + mark.closest("li").querySelector("a").textContent));
  document.querySelector(".search-button-field")?.removeAttribute("aria-label");
  document.querySelectorAll(".bd-article :is(p, figure, .cell_output):has(img.wide)").forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  });

  // the search shows what a page says, not the theme's lists of links, nor code
  if (typeof Search === "undefined") return;
  const text = Search.htmlToText;
  Search.htmlToText = (page, anchor) => text(page
    .replace(/(<main[^>]*>)[^]*?(<article[^]*<\/article>)[^]*<\/main>/, "$1$2</main>")
    .replace(/<pre>[^]*?<\/pre>|<h1>[^]*?<\/h1>/g, ""), anchor);
});
