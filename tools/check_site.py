"""Check the built site: local links and images exist, nothing loads from afar, math is typeset.

python tools/check_site.py _build/html [--browser chromium]
"""

import argparse
import re
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {
    "script": "src",
    "img": "src",
    "source": "src",
    "video": "src",
    "iframe": "src",
    "link": "href",
}
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update "
    "--disable-sync --virtual-time-budget=15000 --dump-dom"
).split()


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.refs, self.math = [], 0

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.math += "math" in (a.get("class") or "").split()
        key = "href" if tag == "a" else LOADS.get(tag)
        if key and a.get(key) and not (tag == "link" and a.get("rel") in ("canonical",)):
            self.refs.append((tag, a[key]))


def main() -> int:
    ap = argparse.ArgumentParser()
    ap.add_argument("site", type=Path)
    ap.add_argument("--browser")
    ap.add_argument("--online-math", action="store_true", help="allow mathematics from the network")
    args = ap.parse_args()
    bad = 0
    for path in sorted(args.site.rglob("*.html")):
        if "_static" in path.parts:
            continue
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        for tag, ref in page.refs:
            u = urlsplit(ref)
            if u.scheme in ("http", "https") or ref.startswith("//"):
                if tag != "a" and not (args.online_math and "mathjax" in ref):
                    bad += 1
                    print(f"{path.name}: <{tag}> loads {ref}")
            elif not u.scheme and u.path and not (path.parent / unquote(u.path)).exists():
                bad += 1
                print(f"{path.name}: <{tag}> points at missing {ref}")
        if args.browser and page.math:
            with tempfile.TemporaryDirectory() as d:
                dom = subprocess.run(
                    [args.browser, *FLAGS, f"--user-data-dir={d}", path.resolve().as_uri()],
                    capture_output=True,
                    text=True,
                    timeout=120,
                ).stdout
            done, red = (
                dom.count("<mjx-container"),
                len(
                    re.findall(
                        r'<g data-mml-node="merror"|<g data-mml-node="mtext" fill="red"', dom
                    )
                ),
            )
            if done < page.math or red:
                bad += 1
                print(f"{path.name}: {page.math} formulas, {done} typeset, {red} errors")
            else:
                print(f"{path.name}: {done} formulas typeset")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
