"""Write README.md from nbs/index.ipynb, as nbdev_readme does where Quarto is installed.

python tools/readme.py            # write
python tools/readme.py --check    # exit 1 if README.md is out of date
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import nbdev_reader  # noqa: E402

HEAD = "<!-- Written by tools/readme.py from nbs/index.ipynb: edit the notebook. -->\n"


def from_the_root(markdown: str) -> str:
    """Turn the links of a notebook in nbs/ into links that hold in the project's root.

    Files of the package that the text names become links, too; the site does not show them.
    """
    markdown = re.sub(r"\]\(\.\./", "](", markdown)  # ../images/x.png -> images/x.png
    markdown = re.sub(r"`(consistency_edu/\w+\.py)`", r"[`\1`](\1)", markdown)
    return re.sub(r"\]\((?!https?:|#|images/)([^)]+\.ipynb)", r"](nbs/\1", markdown)


def render(text: str) -> str:
    parts = [HEAD]
    for cell in nbdev_reader.read(text).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            parts.append(from_the_root(cell.source))
        elif cell.cell_type == "code" and cell.source:
            if "remove-input" not in tags:
                parts.append(f"```python\n{cell.source}\n```")
            for out in cell.outputs if "remove-output" not in tags else []:
                data = out.get("data", {})
                if "text/markdown" in data:
                    parts.append(from_the_root("".join(data["text/markdown"])))
                    continue
                txt = out.get("text") or data.get("text/plain", "")
                if txt and not any(k.startswith("image/") for k in data):
                    parts.append("    " + "".join(txt).rstrip().replace("\n", "\n    "))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    new = render((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    readme = ROOT / "README.md"
    if "--check" in sys.argv:
        return int(readme.read_text(encoding="utf-8") != new)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
