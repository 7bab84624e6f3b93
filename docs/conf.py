import html
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import yaml

here = Path(__file__).parent
sys.path.insert(0, str(here))
import nbdev_reader  # noqa: E402

ini = ConfigParser(delimiters=["="])
ini.read(here.parent / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]

project = cfg["title"]
author = cfg["author"]
copyright = cfg["copyright"]
release = cfg["version"]

extensions = ["myst_nb", "sphinx_external_toc"]
external_toc_path = str(here / "_toc.yml")
exclude_patterns = ["_*", "**/.*", "**.ipynb_checkpoints"]

nb_execution_mode = "off"  # the notebooks are committed with their outputs
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # tables in outputs
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
suppress_warnings = ["myst.header"]

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"navbar_persistent": []}
html_static_path = ["_static"]
html_css_files = ["course.css"]
if (here / "_static" / "tex-svg.js").exists():  # `make docs` fetches it: the site works offline
    mathjax_path = "tex-svg.js"

parts = yaml.safe_load(Path(external_toc_path).read_text(encoding="utf-8"))["parts"]
chapters = [c for part in parts if part["caption"] != "Appendix" for c in part["chapters"]]
row = ["index", *(chapter["file"] for chapter in chapters)]
beside = {page["file"]: c["file"] for c in chapters for page in c.get("sections", [])}


def read_notebook(app, page, content):
    """Give myst-nb what nbdev_reader makes of the notebook of `page`."""
    if app.env.doc2path(page).suffix == ".ipynb":
        content[0] = nbformat.writes(nbdev_reader.read(content[0], page))


def link_the_row(app, page, template, context, doctree):
    """Let next and previous lead along the chapters, and back to them from what stands beside."""
    context["next"] = context["prev"] = None
    if page in row or page in beside:
        at = row.index(beside.get(page, page))
        for name, place in {"next": at + 1, "prev": at - (page in row)}.items():
            if 0 <= place < len(row):
                title = html.escape(app.env.titles[row[place]].astext())
                link = app.builder.get_relative_uri(page, row[place])
                context[name] = {"link": link, "title": title}


def setup(app):
    app.connect("source-read", read_notebook)
    app.connect("html-page-context", link_the_row)
