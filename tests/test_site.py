"""What the site makes of a notebook: its number, what folds, and the words of its figures."""

import re

import check_site
import nbdev_reader
import nbformat
import pytest
from conftest import ROOT

NBS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
DIRECTIVES = "hide|export|exporti|exports|eval|slow|echo|include|output|default_exp|code-fold"


def read(*sources, page="11_distillation", image=False):
    """The cells that the site has of code cells with `sources`, with a picture or a text each."""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    for cell in nb.cells:
        data = {"image/png": ""} if image else {"text/plain": ""}
        cell.outputs = [nbformat.v4.new_output("display_data", data)]
    return nbdev_reader.read(nbformat.writes(nb), page).cells


def summary(cell):
    """Under which words a cell is folded; None if it is open."""
    return (
        cell.metadata["mystnb"].get("code_prompt_show")
        if "hide-input" in cell.metadata.tags
        else None
    )


@pytest.mark.parametrize(
    ("page", "title", "numbered"),
    [
        ("11_distillation", "# Consistency distillation", "# 11 · Consistency distillation"),
        ("lab/14b_boot_figures", "# Lab: BOOT, measured", "# Lab 14b · BOOT, measured"),
        ("images/02a_perceptual", "# Images 2a: a distance", "# Images 02a · A distance"),
        ("howto/01_folder", "# A folder", "# A folder"),
        ("00_viz", "# Pictures", "# Pictures"),
        ("90_claims", "# Every claim", "# Every claim"),
        ("11_distillation", "## The loss", "## The loss"),
    ],
)
def test_titles_begin_with_the_number_of_their_file(page, title, numbered):
    assert nbdev_reader.number_title(title, page) == numbered


def test_directives_may_go_on():
    found, body = nbdev_reader.directives("#| fig-alt: Two moons,\n#|   and a net.\n#| hide\nx = 1")
    assert found == {"fig-alt": "Two moons, and a net.", "hide": ""} and body == "x = 1"
    found, body = nbdev_reader.directives(
        '#| fig-alt: Two\n#|   (thin) moons,\n#|   "one": up\n# | x'
    )
    assert found == {"fig-alt": 'Two (thin) moons, "one": up', "x": ""} and not body


def test_figures_have_their_words():
    (cell,) = read('#| fig-cap: "See."\n#| fig-alt: "There."\nplot()', image=True)
    assert cell.metadata["mystnb"] == {"image": {"alt": "There."}, "figure": {"caption": "See."}}


LONG = "\n".join(f"x{i} = {i}" for i in range(30))


def test_what_no_prose_discusses_folds():
    assert summary(*read("import math")) == "Imports"
    assert summary(*read(LONG, image=True)) == "Code of the figure"
    assert summary(*read(LONG)) == "Code of the numbers"
    assert summary(*read("#| export\ndef check_x(x): ...")) == "Helpers: check_x"
    assert len(read("#| export\nimport math", "import torch")) == 1  # one bar for both


def test_what_prose_discusses_stays_open():
    assert summary(*read("x = 1")) is None
    assert summary(*read("#| export\n" + LONG)) is None
    assert summary(*read("#| code-fold: false\n" + LONG)) is None
    assert summary(*read("import math", page="")) is None  # the README shows all


@pytest.mark.parametrize(
    ("alt", "mute"), [("", 1), ("_images/1.png", 1), ("See.", 1), ("Two moons in grey.", 0)]
)
def test_a_figure_without_words_of_its_own_is_found(alt, mute):
    page = check_site.Page()
    page.feed(f'<img src="_images/1.png" alt="{alt}"><figcaption>See.<a>#</a></figcaption>')
    assert page.pictures == 1 and len(page.mute) == mute


def test_pictures_of_the_playground_name_its_panels():
    """Each panel stands on the playground's page, and all but the images' in a chapter."""
    panels = re.search(r"PANELS = {([^}]*)}", (ROOT / "docs/playground/panels.js").read_text())[1]
    panels = set(re.findall(r"(\w+): \w+Panel", panels))
    picture = re.compile(r"images/playground_(\w+)\.png")
    found = {path: set(picture.findall(path.read_text(encoding="utf-8"))) for path in NBS}
    page = found.pop(ROOT / "nbs" / "playground.ipynb")
    assert len(panels) == 5 and page == panels | {"images"}
    assert set().union(*found.values()) == panels


@pytest.mark.parametrize("path", NBS, ids=lambda p: p.stem)
def test_a_line_that_goes_on_is_no_directive(path):
    """nbdev takes the first word of each `#|` line for a directive, also of one that goes on."""
    for cell in nbformat.read(path, as_version=4).cells:
        assert not re.search(rf"^#\|\s{{2,}}({DIRECTIVES})\b", cell.source, re.M), cell.id
