"""Look at every page of the built site in Chromium, on a phone and on a desk, by day and by night.

    python tools/check_pages.py _build/html [--axe build/npm/node_modules/axe-core/axe.min.js]

Nothing is wider than its page unless it scrolls, every formula is typeset, no script complains,
and axe finds no serious fault for those who do not see or do not use a mouse.  Without Chromium
nothing is looked at, and that is said.
"""

import argparse
import functools
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

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
LOADED = """(async () => {
  if (document.readyState !== "complete")
    await new Promise((done) => addEventListener("load", done));
  if (window.MathJax) await MathJax.startup.promise;
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
# colours at rest; one span of each kind of code is enough for them
AXE = """(async (rules) => {
  document.head.append(Object.assign(document.createElement("style"),
    { textContent: "* { transition: none !important; }" }));
  const seen = new Set();
  for (const span of document.querySelectorAll("pre span[class]"))
    seen.has(span.className) ? span.replaceWith(...span.childNodes) : seen.add(span.className);
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


def look(browser: Browser, url: str, axe: str):
    """Yield what is wrong with the page at `url`, on a desk, by night, and on a phone."""
    browser.complaints.clear()
    views = [(1440, "light", ""), (1440, "dark", '["color-contrast"]'), (390, "light", "")]
    for width, scheme, rules in views:
        browser.show(width, scheme)
        browser.open(url)
        found = [*browser.ask(WIDER), *browser.ask(FORMULAS)]
        if axe:
            browser.ask(axe + "; 0")
            found += browser.ask(f"{AXE}({rules})")
        yield from (f"{width} pixels, {scheme}: {fault}" for fault in found)
    yield from set(browser.complaints)


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("site", type=Path)
    ap.add_argument("--browser", default=next(filter(None, map(shutil.which, BROWSERS)), None))
    ap.add_argument("--axe", type=Path, help="axe-core's axe.min.js")
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
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(args.browser, folder)
        try:
            for page in pages:
                for fault in look(browser, f"http://127.0.0.1:{server.server_port}/{page}", axe):
                    bad += 1
                    print(f"{page}: {fault}")
        finally:
            browser.process.terminate()
            browser.process.wait()
    print(f"{len(pages)} pages looked at in {time.time() - start:.0f} s, {bad} faults")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
