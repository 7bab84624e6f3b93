"""Look at every page of the built site in Chromium, on a phone and on a desk, by day and by night.

    python tools/check_pages.py _build/html [--axe build/npm/node_modules/axe-core/axe.min.js]

Nothing is wider than its page unless it scrolls, every formula is typeset, no script complains,
no more than 2 MB come before the reader scrolls, and axe finds no serious fault for those who do
not see or do not use a mouse.  With --table each page has a line: what share of its height is open
code, how many of its pictures say what is there, its weight, and its faults.  Without Chromium
nothing is looked at, and that is said.
"""

import argparse
import functools
import gzip
import http.server
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
LOADED = """(async () => {
  if (document.readyState !== "complete")
    await new Promise((done) => addEventListener("load", done));
  if (window.MathJax) await MathJax.startup.promise;
})()"""
# the panels of the playground come once the reader is near
PLAY = """(async () => {
  document.querySelector('img[src*="playground_"]')?.scrollIntoView();
  await window.playground;
})()"""
WIDER = """(() => {
  const width = document.documentElement.clientWidth;
  const holds = (box) => ["auto", "scroll", "hidden"].includes(getComputedStyle(box).overflowX);
  const out = (one) => {
    if (one.offsetParent === null || one.getBoundingClientRect().right <= width + 1) return false;
    for (let box = one.parentElement; box; box = box.parentElement) if (holds(box)) return false;
    return true;
  };
  const found = [...document.querySelectorAll("main *")].filter(out).slice(0, 3);
  if (document.documentElement.scrollWidth > width) found.push(document.documentElement);
  return found.map((one) => one.outerHTML.slice(0, 100) + " is wider than the page");
})()"""
FORMULAS = """(() => {
  const [all, set, red] = [".math", "mjx-container", "mjx-container [data-mml-node=merror]"]
    .map((which) => document.querySelectorAll(which).length);
  return set < all || red ? [`${all} formulas, ${set} typeset, ${red} errors`] : [];
})()"""
CODE = """(() => {
  const tall = (which) => [...document.querySelectorAll(which)]
    .filter((one) => one.checkVisibility())
    .reduce((sum, one) => sum + one.getBoundingClientRect().height, 0);
  return tall("article div.cell_input") / tall("article");
})()"""
ALT = """(() => {
  const all = [...document.querySelectorAll('article img[src*="_images/"]')];
  const [said, short] = [all.filter((one) => one.alt), /\\.(png|gif|svg|webp|jpe?g)$/];
  return [said.filter((one) => !short.test(one.alt)).length, all.length];
})()"""
FILES = """(() => {
  const came = ["navigation", "resource"].flatMap((kind) => performance.getEntriesByType(kind));
  const later = [...document.querySelectorAll("article img")].map((one) => one.src);
  const played = [...document.querySelectorAll("a.motion")].map((one) => one.href);
  return [came.map((one) => one.name), [...later, ...played]];
})()"""
HEAVY = 2e6  # bytes that may come before the reader scrolls
COLUMNS = "open code,alt,of,first kB,all kB,axe light,axe dark,wide 1440,wide 390".split(",")
# colours at rest; one span of each kind of code is enough for them; a formula is one box
AXE = """(async (rules) => {
  document.head.append(Object.assign(document.createElement("style"),
    { textContent: "* { transition: none !important; }" }));
  const seen = new Set();
  for (const span of document.querySelectorAll("pre span[class]"))
    seen.has(span.className) ? span.replaceWith(...span.childNodes) : seen.add(span.className);
  const formulas = [...document.querySelectorAll("mjx-container")];
  const boxes = formulas.map((one) => one.getBoundingClientRect());
  formulas.forEach((one, i) => {
    one.style.cssText += `display: inline-block; width: ${boxes[i].width}px`;
    one.replaceChildren();
  });
  const found = await axe.run({ exclude: ["mjx-container"] },
    { resultTypes: ["violations"], preload: false, ...rules && { runOnly: rules } });
  return found.violations.filter((v) => ["serious", "critical"].includes(v.impact))
    .map((v) => `${v.id}: ${v.nodes[0].html.slice(0, 120)} and ${v.nodes.length - 1} more`);
})"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Browser:
    """A headless Chromium, asked through its debugging port."""

    def __init__(self, program: str, folder: str):
        import websocket  # jupyter brings it

        flags = [*FLAGS.split(), "--remote-debugging-port=0", "--remote-allow-origins=*"]
        command = [program, *flags, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        port = Path(folder) / "DevToolsActivePort"
        for _ in range(600):
            if port.exists() and port.read_text().count("\n"):
                break
            time.sleep(0.1)
        address = f"http://127.0.0.1:{port.read_text().split()[0]}/json"
        with urllib.request.urlopen(address) as answer:
            (page,) = [tab for tab in json.load(answer) if tab["type"] == "page"]
        self.socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=120)
        self.numbers, self.complaints = itertools.count(), []
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("id") == number:
                return said["result"]
            if said.get("method") == "Runtime.exceptionThrown":
                details = said["params"]["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", "error"))

    def ask(self, code: str):
        """Return the value of the JavaScript expression `code`, once it is there."""
        done = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"])
        return done["result"].get("value")

    def show(self, width: int, scheme: str):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        wish = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[wish])

    def open(self, url: str):
        self.call("Page.navigate", url=url)
        self.ask(LOADED)


@functools.cache
def sent(path: Path) -> int:
    """Return how many bytes a server sends for the file `path`: what is text travels compressed."""
    data = path.read_bytes()
    is_text = path.suffix in (".html", ".js", ".css", ".svg", ".json")
    return len(gzip.compress(data) if is_text else data)


def weigh(browser: Browser, site: Path) -> tuple[int, int]:
    """Return the bytes of the page in `browser` before one scrolls, and when all has been seen."""
    time.sleep(0.3)  # for the pictures that are near
    places = (
        {site / unquote(urlsplit(name).path).lstrip("/") for name in names}
        for names in browser.ask(FILES)
    )
    first, later = ({place for place in some if place.is_file()} for some in places)
    return sum(map(sent, first)), sum(map(sent, first | later))


def look(browser: Browser, url: str, axe: str, site: Path) -> tuple[list[str], list]:
    """Return what is wrong with the page at `url`, on a desk, by night and on a phone; its line."""
    browser.complaints.clear()
    views = [(1440, "light", ""), (1440, "dark", '["color-contrast"]'), (390, "light", "")]
    faults, wide, bad = [], {}, {"light": 0, "dark": 0}
    for width, scheme, rules in views:
        browser.show(width, scheme)
        browser.open(url)
        if not wide:
            share, said, (first, whole) = browser.ask(CODE), browser.ask(ALT), weigh(browser, site)
            if first > HEAVY:
                faults.append(f"{first / 1e6:.1f} MB come before the reader scrolls")
        browser.ask(PLAY)
        found = browser.ask(WIDER)
        wide[width] = len(found)
        found += browser.ask(FORMULAS)
        if axe:
            browser.ask(axe + "; 0")
            serious = browser.ask(f"{AXE}({rules})")
            bad[scheme] += len(serious)
            found += serious
        faults += (f"{width} pixels, {scheme}: {fault}" for fault in found)
    faults += set(browser.complaints)
    kilobytes = (round(size / 1000) for size in (first, whole))
    told = "–" if share is None else f"{share:.0%}"  # the search page has no article of its own
    return faults, [told, *said, *kilobytes, *bad.values(), *wide.values()]


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("site", type=Path)
    ap.add_argument("--browser", default=next(filter(None, map(shutil.which, BROWSERS)), None))
    ap.add_argument("--axe", type=Path, help="axe-core's axe.min.js")
    ap.add_argument("--table", action="store_true", help="print a line for each page")
    ap.add_argument("--only", nargs="*", help="these pages, as in 11_distillation.html")
    args = ap.parse_args()
    if not args.browser:
        print("no Chromium here: the pages were not looked at")
        return 0
    axe = args.axe.read_text(encoding="utf-8") if args.axe and args.axe.exists() else ""
    if not axe:
        print("no axe-core here (npm fetches it): accessibility was not looked at")
    handler = functools.partial(Quiet, directory=args.site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pages = [p.relative_to(args.site) for p in sorted(args.site.rglob("*.html"))]
    pages = [page for page in pages if "_static" not in page.parts]
    if args.only:
        pages = [p for p in pages if str(p) in args.only]
    bad, start = 0, time.time()
    if args.table:
        print(" | ".join(["page", *COLUMNS]))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(args.browser, folder)
        try:
            for page in pages:
                url = f"http://127.0.0.1:{server.server_port}/{page}"
                faults, line = look(browser, url, axe, args.site)
                bad += len(faults)
                if args.table:
                    print(" | ".join(map(str, [page, *line])))
                print("".join(f"{page}: {fault}\n" for fault in faults), end="", flush=True)
        finally:
            browser.process.terminate()
            browser.process.wait()
    print(f"{len(pages)} pages looked at in {time.time() - start:.0f} s, {bad} faults")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
