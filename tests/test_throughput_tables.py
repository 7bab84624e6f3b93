"""The tables of the benchmarks follow from their files, and the README holds them."""

import importlib.util
import sys
from types import SimpleNamespace

import torch
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


def test_the_student_is_told_of_each_cpu_the_fastest_first(monkeypatch, tmp_path):
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    (tmp_path / "results").mkdir()
    for name, cpu, word, rate in (
        ("a", "Slow CPU (AVX2)", "float32", 30.0),
        ("b", "Some(R) CPU Processor (AVX512)", "bfloat16", 120.6),
    ):
        text = f"{cpu}, 2 threads, torch 2, {word}; cifar10-mini, 7 weights\n"
        text += "batch   4, channel by channel  900.0 images/s,  9.0 a core\n"
        text += f"batch   4, channels last   {rate} images/s,  9.0 a core\n"
        text += "batch   8, channels last     7.0 images/s,  3.5 a core\n"
        text += "best: batch 4, channels last: 999.0 images/s in one step; a walk\n"
        (tmp_path / "results" / f"student_cpu_{name}.txt").write_text(text)
    assert table.cpus().splitlines()[2:] == [
        "| Some CPU | bfloat16 | 7.0 to **120.6** | 4 |",
        "| Slow CPU | float32 | 7.0 to **30.0** | 4 |",
    ]


def test_a_row_tells_how_it_was_compiled_and_in_which_precision(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "throughput.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    seen = []
    monkeypatch.setattr(bench, "report", lambda _, row: seen.append((row["variant"], row["kind"])))
    monkeypatch.setattr(bench, "attempt", lambda _, title, work: work())
    monkeypatch.setattr(bench, "measure_step", lambda b, *_: {"kind": b.precision})
    args = SimpleNamespace(network="small", only="edm", precision="bfloat16,float16")
    for args.compiles in ("networks", "graphs"):
        bench.run_all(SimpleNamespace(args=args))
    kinds = torch.bfloat16, torch.float16
    told = "", "float16", "CUDA graphs", "CUDA graphs, float16"
    assert seen == list(zip(told, kinds * 2))
