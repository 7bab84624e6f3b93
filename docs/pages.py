"""Finish the pages that Sphinx and its theme make.

Pictures have their size, so that a page keeps its place while they come, and come when they are
near; an animation shows its last frame until the reader scrolls or asks for it
(`_static/course.js`).  A page says in its head what stands under its title.
"""

import html
import re
from pathlib import Path

from PIL import Image, ImageSequence

WIDE = 600  # pixels of a picture that scrolls on a phone, where its letters would be too small
PICTURE = re.compile(r'<img (?=[^>]*?src="((?:\.\./)*_images/([^"]+))")[^>]*?/?>')
SIZE = re.compile(r' (width|height)="(\d+)"')
PROMISE = re.compile(r"<blockquote>\s*<div>\s*<p>(.*?)</p>", re.S)


def save_last_frame(animation: Image.Image, path: Path) -> None:
    """Save the frame on which `animation` ends as the PNG file `path`."""
    *_, last = ImageSequence.Iterator(animation)
    path.parent.mkdir(exist_ok=True)
    last.convert("RGB").quantize(256).save(path, optimize=True)


def dress(app, tag: str, address: str, name: str) -> str:
    """Return the <img> `tag` of the file `name`, at `address`, with its size, lazy or still.

    A notebook's figure has the size that stands with it there, half as wide as it has pixels.
    """
    (source,) = (Path(app.srcdir) / path for path, to in app.builder.images.items() if to == name)
    with Image.open(source) as picture:
        size = {"width": picture.width, "height": picture.height} | dict(SIZE.findall(tag))
        told = "".join(f' {side}="{length}"' for side, length in size.items())
        told += ' class="wide"' if int(size["width"]) > WIDE else ""
        tag = re.sub(r"\s*/?>$", f'{told} loading="lazy">', SIZE.sub("", tag))
        if not getattr(picture, "is_animated", False):
            return tag
        save_last_frame(picture, Path(app.outdir) / "_images" / f"{name}.png")
    still = tag.replace(f'src="{address}"', f'src="{address}.png"')
    return f'<a class="motion" href="{address}" title="Play or stop">{still}</a>'


def finish(app, page, template, context, doctree):
    """Finish the body and the head of `page`."""
    body = context.get("body", "")
    body = PICTURE.sub(lambda found: dress(app, *found.group(0, 1, 2)), body)
    # what is folded says itself what it is
    context["body"] = body.replace(' aria-label="Toggle hidden content"', "")
    promise = PROMISE.search(body)
    text = re.sub(r"<.*?>|\s+", " ", promise[1]) if promise else app.config.description
    tag = f'<meta name="description" content="{html.escape(html.unescape(text), quote=True)}">'
    context["metatags"] = context.get("metatags", "") + tag


def setup(app):
    app.add_config_value("description", "", "html")
    app.connect("html-page-context", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
