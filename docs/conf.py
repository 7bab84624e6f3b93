import html
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import yaml

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent)]
import nbdev_reader  # noqa: E402

from consistency_edu import _HOMES  # noqa: E402

ini = ConfigParser(delimiters=["="])
ini.read(here.parent / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]

project = cfg["title"]
author = cfg["author"]
copyright = cfg["copyright"]
release = cfg["version"]
description = cfg["description"]

extensions = ["myst_nb", "sphinx_external_toc", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
extensions += ["pages"]
external_toc_path = str(here / "_toc.yml")
exclude_patterns = ["_*", "**/.*", "**.ipynb_checkpoints"]

nb_execution_mode = "off"  # the notebooks are committed with their outputs
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # tables in outputs
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
suppress_warnings = ["myst.header"]

default_role = "code"  # docstrings write `x`
smartquotes_action = "qe"  # -- stays what one types
add_module_names = False
autosummary_generate = False
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}

html_theme = "sphinx_book_theme"
html_title = project
html_domain_indices = False
html_favicon = str(here / "_static" / "favicon.svg")
html_theme_options = {"navbar_persistent": []}
if cfg["user"] != cfg["repo"]:  # which is a placeholder: there is nothing to launch from
    html_theme_options |= {
        "repository_url": cfg["git_url"],
        "repository_branch": cfg["branch"],
        "path_to_docs": cfg["nbs_path"],
        "use_repository_button": True,
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
            "notebook_interface": "jupyterlab",
        },
    }
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_js_files = ["course.js"]
if (here / "_static" / "tex-svg.js").exists():  # `make docs` fetches it: the site works offline
    mathjax_path = "tex-svg.js"

parts = yaml.safe_load(Path(external_toc_path).read_text(encoding="utf-8"))["parts"]
plain = ("Appendix", "Reference")
chapters = [c for part in parts if part["caption"] not in plain for c in part["chapters"]]
row = ["index", *(chapter["file"] for chapter in chapters)]
beside = {page["file"]: c["file"] for c in chapters for page in c.get("sections", [])}

FRONT_DOOR = "What `from consistency_edu import …` gives, then all modules (:ref:`genindex`)."
GROUPS = {"": "Concepts", "images": "Image runs", "experiments": "Measurements"}


def titled(title, *paragraphs, line="="):
    return "\n\n".join([f"{title}\n{line * len(title)}", *paragraphs, ""])


def summaries(names):
    return ".. autosummary::\n\n" + "\n".join(f"   ~consistency_edu.{name}" for name in names)


def write_reference(nbs):
    """Write a page for each module that a notebook exports, and one of all, into `nbs`/api."""
    pages, groups = {}, {group: [] for group in GROUPS}
    for path in sorted(nbs.rglob("[0-9]*.ipynb")):
        for module in re.findall(r"#\| default_exp ([\w.]+)", path.read_text(encoding="utf-8")):
            home = f"Explained in :doc:`/{path.relative_to(nbs).with_suffix('')}`."
            directive = f".. automodule:: consistency_edu.{module}"
            pages[module] = ":orphan:\n\n" + titled(module, home, directive)
            groups[module.rpartition(".")[0]].append(module)
    names = [f"{module}.{name}" for module in _HOMES for name in _HOMES[module].split()]
    pages["index"] = titled("Every public name", FRONT_DOOR, summaries(names))
    for group, title in GROUPS.items():
        pages["index"] += titled(title, summaries(groups[group]), line="-")
    (nbs / "api").mkdir(exist_ok=True)
    for path in {*(nbs / "api").glob("*.rst"), *(nbs / "api" / f"{name}.rst" for name in pages)}:
        if path.stem not in pages:
            path.unlink()
        elif not path.exists() or path.read_text(encoding="utf-8") != pages[path.stem]:
            path.write_text(pages[path.stem], encoding="utf-8")  # else Sphinx need not read it


def read_notebook(app, page, content):
    """Give myst-nb what nbdev_reader makes of the notebook of `page`."""
    if app.env.doc2path(page).suffix == ".ipynb":
        content[0] = nbformat.writes(nbdev_reader.read(content[0], page))


def read_docstring(app, what, name, thing, options, lines):
    """Let `x` in docstrings be code whatever follows it (`size`²), and * be a plain character."""
    if lines and lines[0].startswith("Alias for field number"):  # of a named tuple
        lines.clear()
    for i, line in enumerate(lines):
        lines[i] = re.sub(r"(`[^`]+`)|\*", lambda m: rf"`{m[1]}`\ " if m[1] else r"\*", line)


def read_signature(app, what, name, thing, options, signature, returned):
    """Leave out modules where Sphinx cannot read the signature, as it has a <factory>."""
    if signature and "<factory>" in signature:
        signature = re.sub(r"~[\w.]+\.", "", signature)
    return signature, returned


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
    write_reference(Path(app.srcdir))
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted(here.glob("*.py")))
    app.add_config_value("sources", sources, "env")  # when they change, all pages do
    app.connect("source-read", read_notebook)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-process-signature", read_signature)
    app.connect("html-page-context", link_the_row)
