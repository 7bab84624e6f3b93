"""Check the built site: local links and images exist, nothing loads from afar, figures have words.

python tools/check_site.py _build/html
"""

import argparse
import re
import sys
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


class Page(HTMLParser):
    """What a page links and loads, and its pictures that say nothing to who cannot see them."""

    def __init__(self):
        super().__init__()
        self.refs, self.pictures, self.mute = [], 0, []
        self.alt, self.caption = "", None

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        key = "href" if tag == "a" else LOADS.get(tag)
        if key and a.get(key) and not (tag == "link" and a.get("rel") in ("canonical",)):
            self.refs.append((tag, a[key]))
        if tag == "img" and "_images/" in a.get("src", ""):
            self.pictures += 1
            self.alt = (a.get("alt") or "").strip()
            if re.search(r"^$|\.(png|gif|svg|webp|jpe?g)$", self.alt):
                self.mute.append(f"{a['src']} has the alternative text {self.alt!r}")
        if tag == "figcaption":
            self.caption = ""

    def handle_data(self, data):
        if self.caption is not None:
            self.caption += data

    def handle_endtag(self, tag):
        if tag == "figcaption":
            if self.alt and self.caption.strip(" #\n") == self.alt:
                self.mute.append(f"the text {self.alt!r} is a caption and an alternative")
            self.caption = None


def main() -> int:
    ap = argparse.ArgumentParser()
    ap.add_argument("site", type=Path)
    ap.add_argument("--online-math", action="store_true", help="allow mathematics from the network")
    args = ap.parse_args()
    bad = pictures = mute = 0
    for path in sorted(args.site.rglob("*.html")):
        if "_static" in path.parts:
            continue
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        name = path.relative_to(args.site)
        for tag, ref in page.refs:
            u = urlsplit(ref)
            if u.scheme in ("http", "https") or ref.startswith("//"):
                if tag != "a" and not (args.online_math and "mathjax" in ref):
                    bad += 1
                    print(f"{name}: <{tag}> loads {ref}")
            elif not u.scheme and u.path and not (path.parent / unquote(u.path)).exists():
                bad += 1
                print(f"{name}: <{tag}> points at missing {ref}")
        pictures, mute = pictures + page.pictures, mute + len(page.mute)
        bad += len(page.mute)
        print("".join(f"{name}: {fault}\n" for fault in page.mute), end="")
    print(f"{pictures} pictures, {mute} without an alternative text of their own")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
