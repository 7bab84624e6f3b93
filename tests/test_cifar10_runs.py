"""The scripts behind the CIFAR-10 table, rehearsed on digits from training to the last curve."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
JOBS = [
    "teacher-small=digits-teacher,steps=60,batch=16",
    "cd=digits-cd,steps=60,batch=16,teacher=teacher-small",
    "boot=digits-boot,steps=6,batch=16,teacher=teacher-small",
    "ct=digits-ct,steps=6,batch=16,start=teacher-small",
    "pd=digits-pd,steps=60,batch=16,teacher=teacher-small",
]


def script(name, folder, *args):
    options = ["--device", "cpu", "--data", "digits", "--features", "pixels", "--samples", "16"]
    options += ["--runs", str(folder / "runs"), "--out", str(folder / "out")]
    command = [sys.executable, str(ROOT / "benchmarks" / name), *options, *args]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_runs_are_trained_judged_and_sampled_in_every_way(tmp_path):
    out = tmp_path / "out"
    told = script("cifar10.py", tmp_path, *JOBS, "--floor")
    assert "failed" not in told
    for name, steps in (
        ("teacher-small", "1"),
        ("cd", "12"),
        ("boot", "1"),
        ("ct", "12"),
        ("pd", "12"),
    ):
        scores, info = read(out / name / "scores.json"), read(out / name / "run.json")
        assert list(scores) == list(steps) and all(row["frechet"] > 0 for row in scores.values())
        assert (out / name / "samples.png").stat().st_size > 1000
        assert (tmp_path / "runs" / name / "half.safetensors").exists()
        assert info.get("teacher") == (None if name in ("teacher-small", "ct") else "teacher-small")
        if name in ("cd", "ct"):
            curve = read(out / name / "learning.json")
            assert curve[-1]["step"] == info["steps"] and len(curve) >= 5
            ours, last = scores["1"]["frechet"], curve[-1]["frechet"]
            assert last == pytest.approx(ours, rel=1e-3)
    two_steps, one_step = (read(out / "pd/scores.json")[k]["frechet"] for k in "21")
    assert two_steps != one_step  # another network's
    assert read(out / "floor.json")["frechet"] < read(out / "cd/scores.json")["1"]["frechet"]

    first = (tmp_path / "runs/cd/model.safetensors").read_bytes()
    assert "training cd" in script("cifar10.py", tmp_path, "cd")  # only judged again
    assert (tmp_path / "runs/cd/model.safetensors").read_bytes() == first

    job = "labels=digits-teacher-labels,steps=60,batch=16"
    assert "guidance 2:" in script("cifar10.py", tmp_path, job, "--guidance", "2", "1")
    plain, pushed = read(out / "labels" / "guidance.json")  # in the order of their weights
    assert (plain["weight"], pushed["weight"]) == (1, 2)
    assert plain["frechet"] == pytest.approx(read(out / "labels/scores.json")["1"]["frechet"])
    assert pushed["frechet"] != plain["frechet"]
    shutil.rmtree(out / "labels"), shutil.rmtree(tmp_path / "runs" / "labels")

    script("cifar10_sampling.py", tmp_path, "--search", "cd")
    structure, gallery = read(out / "structure.json"), np.load(out / "gallery.npz")
    assert structure["teacher"] == "teacher-small/heun35"
    assert structure["teacher-small/heun35"]["paired"] == 0
    assert structure["cd/1"]["paired"] < structure["cd/1"]["shuffled"]
    assert gallery["cd/2"].shape == (16, 1, 8, 8) and gallery["cd/2"].dtype == np.uint8
    shares = read(out / "coverage.json")
    assert shares["real"]["accuracy"] > 0.8 and sum(shares["ct/2"]["shares"]) == pytest.approx(1)
    assert {row["run"] for row in read(out / "speeds.json")["rows"]} >= {"cd/1", "boot/1"}
    curves = read(out / "curves.json")
    assert [row["nfe"] for row in curves["cd"]] == [1, 2, 3, 4]
    levels = [row["levels"] for row in curves["cd"]]
    assert all(len(found) == k + 1 and found[0] == 10 for k, found in enumerate(levels))
    nfe = {(row["sampler"], row["nfe"]) for row in curves["teacher-small"]}
    assert nfe >= {("heun", 35), ("ddim", 1), ("ddim", 50)}
