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


def test_the_readme_is_short():
    prose = re.sub(r"^(\|[^\n]*|```.*?```)$", "", README, flags=re.M | re.S)
    assert len(prose.split()) <= 900


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


LESSONS = re.findall(r"^\| \[.+\]\((nbs/.+)\) \| .+ \| (\d+) \|$", README, re.M)


def test_the_map_has_every_lesson():
    found = {path for path, _ in LESSONS}
    lessons = [path.name for path in (ROOT / "nbs").glob("[01]?_*.ipynb")]
    lessons = {f"nbs/{name}" for name in lessons if 1 <= int(name[:2]) <= 16}
    assert len(lessons) == 16 and lessons <= found


@pytest.mark.parametrize(("path", "minutes"), LESSONS)
def test_the_minutes_are_those_that_the_lesson_says(path, minutes):
    assert re.search(rf"\*\*Time\*\* {minutes} minutes", (ROOT / path).read_text("utf-8"))


PLACES = re.findall(r"^\| .+ \| \[`.+`\]\((consistency_edu/.+)\) \| `(.+)` \|$", README, re.M)


@pytest.mark.parametrize(("path", "name"), PLACES)
def test_what_the_readme_points_at_stands_there(path, name):
    text = (ROOT / path).read_text("utf-8")
    for part in name.split("."):
        assert re.search(rf"^ *(class|def) {part}\b|^{part}\b.* = ", text, re.M), part


def median(key, field):
    return statistics.median(rows(seed)[key][field] for seed in (0, 1, 2))


def test_the_numbers_are_those_of_the_files():
    keys = [("teacher", None, 35), ("cd", "learned", 1), ("ct", None, 1)]
    keys += [("pd", "learned", 1), ("boot", "learned", 1)]
    told = re.findall(r"^\| .+ NFE \| (\S+) \S+ \| (\S+) \S+ \| (\d+) \|$", README, re.M)
    fields = {"sliced_w2": ".3f", "paired_error": ".3f", "train_seconds": ".0f"}
    assert told == [tuple(f"{median(key, f):{form}}" for f, form in fields.items()) for key in keys]


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


@pytest.mark.parametrize("key", BOUNDS, ids=lambda key: f"{key[0]}-{key[1]}-{key[2]}")
def test_committed_runs_keep_the_promises(key):
    sliced, paired = BOUNDS[key]
    assert median(key, "sliced_w2") <= sliced
    assert paired is None or median(key, "paired_error") <= paired


@pytest.mark.parametrize("key", [("cd", "learned"), ("cd", "exact"), ("ct", None)])
def test_two_steps_are_not_worse_than_one(key):
    assert median((*key, 2), "sliced_w2") <= median((*key, 1), "sliced_w2") + 0.005
