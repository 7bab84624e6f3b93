"""The order of the chapters is the order of the imports, and every chapter is fit to be read."""

import ast
import configparser
import json
import re

import pytest
from conftest import ROOT

NBS = sorted(p for p in (ROOT / "nbs").rglob("[0-9]*.ipynb") if ".ipynb_checkpoints" not in p.parts)
HOWTOS = [p for p in NBS if p.parent.name == "howto"]
PACKAGE = ROOT / "consistency_edu"
MODULES = sorted(PACKAGE.rglob("[!_]*.py"))
# nothing to draw there
HELPERS = {
    *("00_exercises", "00_files", "00_ledger", "00_sweeps", "00_benchmarks"),
    *("23_cli", "90_claims"),
}
# what each part of the package may import besides the modules above it in its own part
BELOW = {"": (), "images": ("",), "experiments": ("", "images")}


def dotted(path):
    """The name of the module at `path` inside the package: "boot", "experiments.boot"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def part_of(name):
    """The subpackage of a module's dotted name, "" for the core."""
    return name.rpartition(".")[0]


def stairs():
    """The modules in the order of the table of contents, those of its appendix first."""
    contents = (ROOT / "docs" / "_toc.yml").read_text(encoding="utf-8")
    chapters, appendix = contents.split("caption: Appendix")
    pages = re.findall(r"\bfile: (?!api/)(\S+)", appendix + chapters)
    texts = [(ROOT / "nbs" / f"{page}.ipynb").read_text(encoding="utf-8") for page in pages]
    return [name for text in texts for name in re.findall(r"#\| default_exp ([\w.]+)", text)]


STAIRS = stairs()


def named(node, part):
    """The dotted names, from "consistency_edu" on, of what an import statement may import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        here = ["consistency_edu", *filter(None, part.split("."))]
        base = here[: len(here) + 1 - node.level] if node.level else []
        source = ".".join([*base, *filter(None, [node.module])])
        return [f"{source}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if function in ("import_module", "__import__"):
            return [str(node.args[0].value)]
    return []


def ours(source, part=""):
    """The modules of the package that `source`, of a module in `part`, imports in any form.

    The package itself, whose __init__ leads to everything, counts as "".
    """
    modules = {dotted(path) for path in MODULES}
    for node in ast.walk(ast.parse(source)):
        for name in named(node, part):
            first, *rest = name.split(".")
            if first != "consistency_edu":
                continue
            if rest and rest[0].startswith("__"):  # the version, say, is no module
                continue
            while rest and ".".join(rest) not in modules:
                rest.pop()
            yield ".".join(rest)


def strangers(name, source):
    """What the module `name` imports, by its `source`, that its reader has not met yet."""
    above, part = STAIRS[: STAIRS.index(name)], part_of(name)
    if name == "cli":  # the commands lead to everything
        return []
    allowed = {m for m in above if part_of(m) == part}
    allowed |= {m for m in STAIRS if part_of(m) in BELOW[part] and m != "cli"}
    return sorted(set(ours(source, part)) - allowed)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_modules_import_only_from_above(path):
    assert dotted(path) in STAIRS, f"{path.name} has no notebook in docs/_toc.yml"
    found = strangers(dotted(path), path.read_text(encoding="utf-8"))
    assert not found, f"{dotted(path)} imports {found}, which the reader has not met yet"


UPWARDS = [
    "from .boot import Boot",
    "from consistency_edu.boot import Boot",
    "from consistency_edu.boot import (\n    Boot,\n)",
    "from consistency_edu import boot",
    "from consistency_edu import (\n    score,\n    boot,\n)",
    "from . import boot",
    "import consistency_edu.boot",
    "import math, consistency_edu.boot as b",
    "def late():\n    from .boot import Boot",
    "import importlib\nimportlib.import_module('consistency_edu.boot')",
    "__import__('consistency_edu.boot')",
    "import consistency_edu",
    "from consistency_edu import Boot",
]


@pytest.mark.parametrize("source", UPWARDS)
def test_no_form_of_import_leads_up_unseen(source):
    assert strangers("distillation", source), f"'{source}' was not seen"
    down = source.replace("boot", "score")
    assert down == source or not strangers("distillation", down)


@pytest.mark.parametrize("part", ["experiments", "images"])
def test_the_core_reaches_neither_experiments_nor_images(part):
    above = [name for name in STAIRS if part_of(name) == part][:1]
    for name in above:
        *_, last = (m for m in STAIRS if m != "cli" and not part_of(m))
        word = name.split(".")[1]
        for source in (f"from .{name} import x", f"from .{part} import {word}"):
            assert strangers(last, source) == [name]


@pytest.mark.parametrize("part", ["experiments", "images"])
def test_relative_imports_resolve_from_subpackages(part):
    assert list(ours("from ..boot import Boot", part)) == ["boot"]
    assert list(ours("from .. import boot", part)) == ["boot"]
    assert list(ours("from . import nothing", part)) == [""]


def names_of(source):
    """The names that `source` defines at its top level, without Python's own (__all__)."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        else:
            continue
        yield from (name for name in found if not name.startswith("__"))


def test_one_name_has_one_meaning():
    """Each experiment may have a BATCH of its own; elsewhere a name stands in one module."""
    homes = {}
    for path in MODULES:
        if part_of(dotted(path)) != "experiments":
            for name in set(names_of(path.read_text(encoding="utf-8"))):
                homes.setdefault(name, []).append(dotted(path))
    twice = {name: modules for name, modules in homes.items() if len(modules) > 1}
    assert not twice, f"these names mean two things: {twice}"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
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
    pictures = sum("image/" in str(o.get("data", {}).keys()) for c in code for o in c["outputs"])
    markdown = "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown")
    is_lab = path.parent.name in ("lab", "images")
    assert is_lab or pictures or re.search(r"\]\((\.\./)+images/", markdown) or path.stem in HELPERS
    is_short = is_lab or path.stem in {*HELPERS, "00_viz", "01c_image_loader", "22_toy"}
    assert len(markdown.split()) >= (100 if is_short else 300 if path in HOWTOS else 400)
    for prose in ("TODO", "TBD", "lorem"):
        assert prose not in markdown


@pytest.mark.parametrize("path", HOWTOS, ids=lambda p: p.stem)
def test_howtos_are_short_and_easy_to_find(path):
    """700 words at most, a figure with its words, how long it takes, and two ways to get there."""
    source = {kind: "" for kind in ("markdown", "code")}
    for cell in cells(path):
        source[cell["cell_type"]] += "".join(cell["source"]) + "\n"
    assert len(source["markdown"].split()) <= 700
    assert "#| fig-cap: " in source["code"] and "#| fig-alt: " in source["code"]
    assert re.search(r"\*\*Time\*\* \d+ minutes; .* on one core\.", source["markdown"])
    assert "on a GPU" in source["markdown"].replace("On a GPU", "on a GPU")
    for name in ("docs/_toc.yml", "nbs/index.ipynb"):
        assert f"howto/{path.stem}" in (ROOT / name).read_text(encoding="utf-8"), name


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
