"""Sweeps: the same numbers from one process and from several, and nothing lost in between."""

import json
import os

import pytest
import torch

from consistency_edu.data import InputError
from consistency_edu.experiments.digits import DIGITS_SWEEPS
from consistency_edu.experiments.sweeps import Sweep, load_sweep, run_sweep, summary


def add(setting, seed):
    return {"sum": setting["a"] + 10 * seed}


TRIAL = Sweep("trial", "sums", add, [{"a": 1}, {"a": 2}], (0, 1, 2))


@pytest.mark.slow
def test_several_processes_write_what_one_writes(tmp_path):
    one = run_sweep(TRIAL, tmp_path / "one")
    two = run_sweep(TRIAL, tmp_path / "two", workers=2)
    assert one.read_bytes() == two.read_bytes()


def test_rows_of_old_settings_are_dropped_and_the_rest_is_kept(tmp_path):
    path = run_sweep(TRIAL, tmp_path)
    content = json.loads(path.read_text())
    content["rows"] = [{"a": 5, "seed": 0, "sum": 5}] + content["rows"][1:]
    content["rows"][1]["sum"] = -1  # a stored number is believed, not recomputed
    path.write_text(json.dumps(content))
    run_sweep(TRIAL, tmp_path)
    rows = load_sweep("trial", tmp_path)
    assert [row["a"] for row in rows] == [1, 2] * 3
    assert [row["sum"] for row in rows] == [1, -1, 11, 12, 21, 22]


def test_summary_takes_medians_and_ranges_by_setting():
    rows = [{"a": a, "seed": s, "x": a * s} for a in (1, 2) for s in (0, 5, 1)]
    assert summary(rows, ["a"], "x") == {(1,): (1, 0, 5, 3), (2,): (2, 0, 10, 3)}


def draw(setting, seed):
    return {"number": torch.rand(1).item()}


def test_each_run_starts_from_its_own_seed(tmp_path):
    first, again, other = (
        load_sweep(run_sweep(Sweep(n, "", draw, [{}], seeds), tmp_path).stem, tmp_path)
        for n, seeds in (("first", (0, 1)), ("again", (1, 0)), ("other", (2,)))
    )
    assert [row["number"] for row in first] == [row["number"] for row in again[::-1]]
    assert len({row["number"] for row in first + other}) == 3


def test_a_table_of_a_former_benchmark_is_not_gone_on_with(tmp_path):
    path = run_sweep(TRIAL, tmp_path)
    content = json.loads(path.read_text())
    content["rows"][0]["w2"] = 0.1
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    for action in (lambda: run_sweep(TRIAL, tmp_path), lambda: load_sweep("trial", tmp_path)):
        with pytest.raises(InputError, match="sweep trial"):
            action()
    assert path.read_bytes() == before


def test_numbers_are_stored_with_eight_digits_and_settings_as_they_are(tmp_path):
    numbers = {"x": 1 / 3, "ends": [2 / 3, [0.1, 5]], "history": {"loss": [1e-7 / 3]}}
    sweep = Sweep("thirds", "numbers", lambda setting, seed: numbers, [{"a": 1 / 3}])
    row, *_ = load_sweep(run_sweep(sweep, tmp_path).stem, tmp_path)
    assert row["a"] == 1 / 3 and row["x"] == 0.33333333
    assert row["ends"] == [0.66666667, [0.1, 5]] and row["history"] == {"loss": [3.3333333e-8]}
    before = (tmp_path / "thirds.json").read_bytes()
    run_sweep(sweep, tmp_path)  # the setting is known again
    assert (tmp_path / "thirds.json").read_bytes() == before


def test_a_number_does_not_replace_a_setting(tmp_path):
    sweep = Sweep("trial", "sums", lambda setting, seed: {"a": 1.0}, [{"a": 3}])
    with pytest.raises(InputError, match="a: a setting"):
        run_sweep(sweep, tmp_path)


def test_what_all_runs_of_a_seed_read_is_made_once_and_before_them(tmp_path):
    """Of two workers that made it at once, one was turned away, and the sweep ended."""
    seen = []

    def work(setting, seed):
        return {"before": seen.count(seed)}

    sweep = Sweep("trial", "", work, [{"a": 1}, {"a": 2}], (4, 5), seen.append)
    rows = load_sweep(run_sweep(sweep, tmp_path).stem, tmp_path)
    assert seen == [4, 5] and all(row["before"] == 1 for row in rows)
    run_sweep(sweep, tmp_path)  # nothing is left to do
    assert seen == [4, 5]
    assert all(sweep.prepare for sweep in DIGITS_SWEEPS.values())  # they share their teachers


def test_a_run_has_one_thread_and_no_bars_and_what_comes_after_has_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("IN_TEST", raising=False)
    before = torch.get_num_threads()

    def work(setting, seed):
        return {"threads": torch.get_num_threads(), "hidden": os.environ["IN_TEST"]}

    torch.set_num_threads(2)
    try:
        (row,) = load_sweep(
            run_sweep(Sweep("t", "", work, [{"a": 1}], [0]), tmp_path).stem, tmp_path
        )
        assert row["threads"] == 1 and row["hidden"] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert not os.environ["IN_TEST"]  # the next sweep shows its bar
