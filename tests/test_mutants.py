"""Every mutant of mutation.py still fits the source that it breaks."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("file", sorted(ROOT.glob("tests/mutants/*.json")), ids=lambda f: f.stem)
def test_the_lines_that_mutants_break_are_there_once(file):
    path = ROOT / "consistency_edu" / f"{file.stem.replace('.', '/')}.py"
    source = path.read_text(encoding="utf-8")
    lines = [line.strip() for line in source.splitlines()]
    for mutant in json.loads(file.read_text(encoding="utf-8")):
        count = lines.count(mutant["line"].strip())
        assert count == 1, f"{count} lines read '{mutant['line']}': mend {file.name}"
        assert mutant["line"].strip() != mutant["broken"].strip() and mutant["why"]
        assert all((ROOT / name).exists() for name in mutant.get("tests", ()))
        own = ROOT / f"tests/test_{file.stem.replace('.', '_')}.py"
        assert own.exists() or mutant.get("tests"), f"no test looks for '{mutant['why']}'"
