"""The tables of the benchmarks follow from their files, and the README holds them."""

import importlib.util
import sys

from conftest import ROOT

spec = importlib.util.spec_from_file_location("table", ROOT / "benchmarks" / "table.py")
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)


def test_the_readme_of_the_benchmarks_is_up_to_date(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["table.py", "--check"])
    assert table.main() == 0, "run python benchmarks/table.py"


def test_two_gpus_are_told_beside_one():
    row = {"network": "small", "variant": "CUDA graphs", "batch": 600, "step_ms": 50.0, "mfu": 0.4}
    row |= {"step_ms_alone": 40.0, "ratio_to_one": 1.6, "images_per_second": 12_000.0}
    cells = [cell.strip() for cell in table.pair(row, {"card": "A card"}).split("|")[1:-1]]
    assert cells[0] == "A card, `small`, CUDA graphs"
    assert cells[1:] == ["40.0", "50.0", "**1.600**", "12,000", "7,500", "0.500"]
