"""The order of the chapters is the order of the imports, and every chapter is fit to be read."""

import ast
import configparser
import json
import re

import pytest
from conftest import ROOT

NBS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
EXPORTS = [re.findall(r"#\| default_exp (\w+)", p.read_text(encoding="utf-8")) for p in NBS]
STAIRS = [names[0] if names else "" for names in EXPORTS]  # file names carry the order
# nothing to draw there
HELPERS = {"00_exercises", "00_files", "00_ledger", "00_sweeps", "19_cli", "90_claims"}
MODULES = sorted((ROOT / "consistency_edu").glob("[!_]*.py"))


def ours(path):
    """The modules of the package that the module at `path` imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else [alias.name for alias in node.names]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_modules_import_only_from_above(path):
    assert path.stem in STAIRS, f"{path.name} has no notebook"
    below = [m for m in ours(path) if STAIRS.index(m) >= STAIRS.index(path.stem)]
    assert not below, f"{path.stem} imports {below}, which the reader has not met yet"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_public_things_have_docstrings(path):
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = [n for n in ast.walk(tree) if isinstance(n, kinds) and not n.name.startswith("_")]
    inner = {f for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) for f in n.body}
    bare = [n.name for n in nodes if n not in inner and not ast.get_docstring(n)]
    assert not bare


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NBS, ids=lambda p: p.stem)
def test_notebooks_are_lessons(path):
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    source = ["".join(c["source"]) for c in code]
    assert path.stat().st_size < 700_000
    assert any("assert" in s for s in source), "no cell checks anything"
    pictures = sum("image/png" in o.get("data", {}) for c in code for o in c["outputs"])
    markdown = "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown")
    assert pictures or "](../images/" in markdown or path.stem in HELPERS
    is_short = path.stem in {*HELPERS, "00_viz", "18_recipes"}
    assert len(markdown.split()) >= (100 if is_short else 400)
    for prose in ("TODO", "TBD", "lorem"):
        assert prose not in markdown


@pytest.mark.parametrize("path", NBS, ids=lambda p: p.stem)
def test_cells_ran_in_order_and_kept_their_outputs(path):
    silent = ("#| export", "#| hide", "#| default_exp")
    for cell in cells(path):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "print(" in source and not source.startswith(silent):
            assert cell["outputs"], f"cell {cell['id']} has no stored output: run `make nbs`"


def test_both_nbdevs_read_the_same_flags():
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini")
    toml = (ROOT / "pyproject.toml").read_text()
    table = toml[toml.index("[tool.nbdev]") :]
    for key in ("lib_path", "tst_flags"):
        assert f'{key} = "{ini["DEFAULT"][key]}"' in table


def test_the_project_stands_alone():
    """No path of a machine, and no word about folders outside the project, in what is committed."""
    files = [*ROOT.glob("*.*"), *ROOT.glob("tools/*"), *ROOT.glob("docs/*.*"), *NBS, *MODULES]
    pattern = re.compile(r"\.\./shared|/work/|/home/|/root/")
    files = [p for p in files if p.is_file() and p.name != ".git"]  # a worktree's own note
    texts = {p: p.read_text(errors="ignore") for p in files}
    assert not [p for p, text in texts.items() if pattern.search(text)]
