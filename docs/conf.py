import sys
from configparser import ConfigParser
from pathlib import Path

here = Path(__file__).parent
sys.path.insert(0, str(here))
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
nb_custom_formats = {".ipynb": ["nbdev_reader.read", {"for_site": True}, False]}
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # tables in outputs
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
suppress_warnings = ["myst.header"]

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"navbar_persistent": [], "show_navbar_depth": 2}
html_static_path = ["_static"]
html_css_files = ["course.css"]
if (here / "_static" / "tex-svg.js").exists():  # `make docs` fetches it: the site works offline
    mathjax_path = "tex-svg.js"
