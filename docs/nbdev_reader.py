"""Read an nbdev notebook for the website: obey its `#|` lines, then drop them.

hide, default_exp, include: false -> the cell goes; echo: false -> its code goes;
output: false -> its output goes; code-fold: true -> its code folds, under its code-summary;
fig-cap, fig-alt -> the caption of its figure, and what one reads who cannot see it, which may go
on in lines of `#|   `; a heading ending in ` -` goes, as do calls of nbdev_export.

On the site the code that no prose discusses folds (`about`), unless the cell says code-fold: false;
titles begin with their number; a link leads to the reference.
"""

import ast
import re

import nbformat

LONG_FIGURE, LONG_RUN = 8, 12  # lines of code that may stay open before a figure, before numbers
LINE = re.compile(r"^\s*#\s*\|\s*([\w-]+)(?:\s*:)?[ \t]*(.*)$")
GONE = {"hide", "default_exp"}
EXPORTS = "**This notebook exports**"


def directives(source: str) -> tuple[dict[str, str], str]:
    found, lines, name = {}, source.splitlines(), ""
    while lines:
        line = lines[0]
        if name and line.startswith("#|  "):  # the line before goes on
            found[name] = f"{found[name]} {line[2:].strip()}"
        elif m := LINE.match(line):
            name = m[1]
            found[name] = m[2].strip()
        else:
            break
        lines.pop(0)
    body = "\n".join(x for x in lines if not re.search(r"#\|\s*hide_line\s*$", x))
    return found, body.strip("\n")


def about(cell: nbformat.NotebookNode, is_exported: bool) -> str:
    """Say what a code `cell` holds if no prose discusses its code, else return ""."""
    try:
        body = ast.parse(cell.source).body
    except SyntaxError:  # a line for IPython
        return ""
    body = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]
    if not body:
        return "Imports"
    names = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    lines = body[-1].end_lineno - body[0].lineno + 1
    outputs = [output.get("data", {}) for output in cell.outputs]
    if is_exported:
        helpers = [name for name in names if name.startswith(("_", "check_"))]
        return f"Helpers: {', '.join(names)}" if names and names == helpers else ""
    if lines > LONG_FIGURE and any({"image/png", "image/jpeg"} & kinds.keys() for kinds in outputs):
        return "Code of the figure"
    if lines > LONG_FIGURE and "save_animation(" in cell.source:
        return "Code of the animation"
    if lines > LONG_RUN:
        return "Code of the numbers" if outputs else f"Code: {', '.join(names) or 'preparation'}"
    return ""


def number_title(markdown: str, page: str) -> str:
    """Begin the title in `markdown` with the number that the file name of `page` has, if any.

    "lab/11_distillation" makes "# Lab: consistency distillation" "# Lab 11 · Consistency …"; the
    pages of howto/ have no numbers for a reader.
    """
    found = re.fullmatch(r"(?:(?!howto/)(\w+)/)?((?!00|90)\d\d[a-z]?)_\w+", page)
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


def is_gone(cell: nbformat.NotebookNode, d: dict[str, str]) -> bool:
    """Whether the `cell` with directives `d` is nothing for a reader."""
    if cell.cell_type == "raw":
        return cell.source.strip().startswith("---")
    if cell.cell_type == "markdown":
        return re.match(r"#+ .* -\s*$", cell.source) is not None
    hidden = GONE & d.keys() or d.get("include", "").lower() == "false"
    return bool(hidden) or "nbdev_export(" in cell.source


def obey(cell: nbformat.NotebookNode, d: dict[str, str]) -> None:
    """Write the directives `d` of a code `cell` as the tags and settings that myst-nb reads."""
    tags = {("echo", "false"): "remove-input", ("output", "false"): "remove-output"}
    tags |= {("code-fold", "true"): "hide-input"}
    found = {tag for (key, value), tag in tags.items() if d.get(key, "").lower() == value}
    cell.metadata["tags"] = sorted({*cell.metadata.get("tags", []), *found})
    words = {key: d[key].strip("\"'") for key in ("code-summary", "fig-cap", "fig-alt") if key in d}
    settings = cell.metadata.setdefault("mystnb", {})
    if "code-summary" in words:
        settings["code_prompt_show"] = settings["code_prompt_hide"] = words["code-summary"]
    if "fig-alt" in words:
        settings["image"] = {"alt": words["fig-alt"]}
    if "fig-cap" in words:
        settings["figure"] = {"caption": words["fig-cap"]}


def read(text: str, page: str = "") -> nbformat.NotebookNode:
    """Read the notebook `text`, for the site if `page` names it there ("lab/11_distillation")."""
    nb = nbformat.reads(text, as_version=4)
    kept, module, opened = [], "", ""
    for cell in nb.cells:
        d, summary = {}, ""
        if cell.cell_type == "code":
            d, cell.source = directives(cell.source)
            module = d.get("default_exp", module)
        if is_gone(cell, d):
            continue
        if page and cell.cell_type == "code":
            link_pages(cell.outputs)
            if "code-fold" not in d and (summary := about(cell, "export" in d)):
                d |= {"code-fold": "true", "code-summary": d.get("code-summary", summary)}
        elif page:
            cell.source = number_title(cell.source, page)
        if summary == opened == "Imports":  # one bar for two cells
            kept[-1].source += f"\n\n{cell.source}"
            continue
        if cell.cell_type == "code":
            obey(cell, d)
        kept.append(cell)
        opened = summary
    if page and module:
        kept.append(nbformat.v4.new_markdown_cell(f"Reference: [`{module}`](/api/{module}.rst)."))
        for cell in kept[:2]:
            cell.source = cell.source.replace(EXPORTS, f"**[{EXPORTS[2:-2]}](/api/{module}.rst)**")
    nb.cells = kept
    return nb
