"""Write README.md from nbs/index.ipynb; with --check, exit 1 if README.md is out of date."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import nbdev_reader  # noqa: E402

PLACES = "(?:consistency_edu|results|benchmarks)"
HEAD = "<!-- Written by tools/readme.py from nbs/index.ipynb: edit the notebook. -->\n"


def from_the_root(markdown: str) -> str:
    """Turn links that hold in nbs/ into links from the root; link sources and results by name."""
    markdown = re.sub(r"\]\(((?!\w+:|\.\./)[^)]+\.ipynb)\)", r"](nbs/\1)", markdown)
    markdown = re.sub(rf"`({PLACES}/[\w/]+(\.py|\.md|/))`", r"[`\1`](\1)", markdown)
    return markdown.replace("](../", "](")


def render(text: str) -> str:
    """Return the README that the notebook `text` makes: its prose, open code, text and tables."""
    parts = [HEAD]
    for cell in nbdev_reader.read(text).cells:
        if cell.cell_type == "markdown":
            parts.append(from_the_root(cell.source))
            continue
        if "remove-input" not in cell.metadata.tags:
            parts.append(f"```python\n{cell.source}\n```")
        for out in cell.outputs:
            table = out.get("data", {}).get("text/markdown")
            parts.append(from_the_root(table) if table else f"```\n{out.text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    new = render((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    if "--check" in sys.argv:
        sys.exit((ROOT / "README.md").read_text(encoding="utf-8") != new)
    (ROOT / "README.md").write_text(new, encoding="utf-8")
