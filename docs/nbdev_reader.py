"""Read an nbdev notebook for the website: obey its `#|` lines, then drop them.

hide, default_exp, include: false -> the cell goes; echo: false -> its code goes;
output: false -> its output goes; code-fold -> its code folds, under its code-summary; on the site
cells of imports alone fold, so that a page opens with an idea; a heading ending in ` -` goes, as
do calls of nbdev_export.  The first markdown cell's `> summary` line stays a quote.
"""

import ast
import re

import nbformat

LINE = re.compile(r"^\s*#\s*\|\s*([\w-]+)(?:\s*:)?[ \t]*(.*)$")
GONE = {"hide", "default_exp"}
EXPORTS = "**This notebook exports**"


def directives(source: str) -> tuple[dict[str, str], str]:
    found, lines = {}, source.splitlines()
    while lines and (m := LINE.match(lines[0])):
        found[m[1]] = m[2].strip()
        lines.pop(0)
    body = "\n".join(x for x in lines if not re.search(r"#\|\s*hide_line\s*$", x))
    return found, body.strip("\n")


def is_imports(source: str) -> bool:
    """Whether `source` is Python that imports and does nothing else."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    return bool(body) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)


def number_title(markdown: str, page: str) -> str:
    """Begin the title in `markdown` with the number that the file name of `page` has, if any.

    "lab/11_distillation" makes "# Lab: consistency distillation" "# Lab 11 · Consistency …".
    """
    found = re.fullmatch(r"(?:(\w+)/)?((?!00|90)\d\d[a-z]?)_\w+", page)
    if not found:
        return markdown
    number = " ".join(filter(None, [(found[1] or "").capitalize(), found[2]]))
    title = re.match(r"# (?:Lab: |Images \w+: )?(\w)", markdown)
    return f"# {number} · {title[1].upper()}" + markdown[title.end() :] if title else markdown


def link_pages(outputs: list) -> None:
    """Let links to notebooks in Markdown outputs lead to their pages (MyST does it for prose)."""
    for out in outputs:
        markdown = out.get("data", {}).get("text/markdown")
        if markdown:
            pages = re.sub(r"\]\(([\w./]+)\.ipynb\)", r"](\1.html)", markdown)
            out["data"]["text/markdown"] = pages


def read(text: str, page: str = "") -> nbformat.NotebookNode:
    """Read the notebook `text`, for the site if `page` names it there ("lab/11_distillation")."""
    nb = nbformat.reads(text, as_version=4)
    kept, module = [], ""
    for cell in nb.cells:
        if cell.cell_type == "raw" and cell.source.strip().startswith("---"):
            continue
        if cell.cell_type == "markdown" and re.match(r"#+ .* -\s*$", cell.source):
            continue
        if cell.cell_type == "markdown":
            cell.source = number_title(cell.source, page)
        if cell.cell_type == "code":
            d, cell.source = directives(cell.source)
            module = d.get("default_exp", module)
            if (
                GONE & d.keys()
                or d.get("include", "").lower() == "false"
                or "nbdev_export(" in cell.source
            ):
                continue
            tags = set(cell.metadata.get("tags", []))
            if d.get("echo", "").lower() == "false":
                tags.add("remove-input")
            if d.get("output", "").lower() == "false":
                tags.add("remove-output")
            if d.get("code-fold", "").lower() in ("true", "show"):
                tags.add("hide-input")
            if page and is_imports(cell.source):
                tags.add("hide-input")
                d.setdefault("code-summary", "Imports")
            if "code-summary" in d:
                summary = d["code-summary"].strip("\"'")
                prompts = {"code_prompt_show": summary, "code_prompt_hide": summary}
                cell.metadata.setdefault("mystnb", {}).update(prompts)
            cell.metadata["tags"] = sorted(tags)
            if page:
                link_pages(cell.outputs)
            figure = {k: d[f"fig-{k}"].strip("\"'") for k in ("cap", "alt") if f"fig-{k}" in d}
            if "alt" in figure:
                cell.metadata.setdefault("mystnb", {})["image"] = {"alt": figure["alt"]}
            if "cap" in figure:
                cell.metadata.setdefault("mystnb", {})["figure"] = {"caption": figure["cap"]}
        kept.append(cell)
    if page and module:
        kept.append(nbformat.v4.new_markdown_cell(f"Reference: [`{module}`](/api/{module}.rst)."))
        for cell in kept[:2]:
            cell.source = cell.source.replace(EXPORTS, f"**[{EXPORTS[2:-2]}](/api/{module}.rst)**")
    nb.cells = kept
    return nb
