"""The README is what its notebook says, its code runs, and its numbers are the committed runs'."""

import json
import re
import statistics
import subprocess
import sys

import pytest
from conftest import ROOT, quiet_environment

README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(seed):
    """The committed toy run of `seed`, its rows by (method, teacher, nfe)."""
    table = json.loads((ROOT / "results" / "reference" / f"toy_moons_seed{seed}.json").read_text())
    return {(r["method"], r["teacher"], r["nfe"]): r for r in table["rows"]}


def test_readme_is_current():
    done = subprocess.run([sys.executable, ROOT / "tools" / "readme.py", "--check"])
    assert done.returncode == 0, "run `make nbs` and `make readme`"


def test_files_that_the_readme_names_exist():
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link).exists()]


def test_make_targets_that_the_readme_names_exist():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True).stdout
    for target in set(re.findall(r"`?make ([a-z]+)`?", README)):
        assert re.search(rf"^{target}\s", listed, re.M), target


@pytest.mark.slow
def test_the_ten_lines_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 1
    done = subprocess.run(
        [sys.executable, "-c", blocks[0]],
        cwd=tmp_path,
        env=quiet_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1000, 2])" in done.stdout


def test_the_cifar10_table_is_that_of_the_runs_files():
    code = "import cifar10_tables as t; print(t.quality(t.read_results()))"
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=quiet_environment(**path)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in README, "run nbs/index.ipynb and `make readme`"


# the project's promises on moons: (method, teacher, nfe) -> sliced W2, paired error
BOUNDS = {
    ("teacher", None, 35): (0.025, None),
    ("cd", "learned", 1): (0.03, 0.03),
    ("cd", "exact", 1): (0.03, 0.03),
    ("ct", None, 1): (0.05, 0.11),
    ("direct", "learned", 1): (0.025, 0.03),
    ("pd", "learned", 2): (0.035, 0.03),
    ("pd", "learned", 1): (0.035, 0.03),
    ("boot", "learned", 1): (0.055, 0.07),
    ("boot", "guided", 1): (0.06, 0.1),
}


def median(key, field):
    return statistics.median(rows(seed)[key][field] for seed in (0, 1, 2))


@pytest.mark.parametrize("key", BOUNDS, ids=lambda key: f"{key[0]}-{key[1]}-{key[2]}")
def test_committed_runs_keep_the_promises(key):
    sliced, paired = BOUNDS[key]
    assert median(key, "sliced_w2") <= sliced
    assert paired is None or median(key, "paired_error") <= paired


@pytest.mark.parametrize("key", [("cd", "learned"), ("cd", "exact"), ("ct", None)])
def test_two_steps_are_not_worse_than_one(key):
    assert median((*key, 2), "sliced_w2") <= median((*key, 1), "sliced_w2") + 0.005
