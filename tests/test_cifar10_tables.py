"""The CIFAR-10 tables follow from the runs' files, and need none of them."""

import dataclasses
import importlib.util
import json
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT

from consistency_edu.images.recipes import RECIPES


def load(name):
    """Return the script `name` of the benchmarks as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load("cifar10_tables")
gathered = load("measured")
RUNS = {"teacher-small": (9.0,), "cd-small": (27.0, 18.0), "cd-small-1": (30.0, 20.0)}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    """A folder of made-up results."""
    folder = tmp_path / "cifar10"
    for name, distances in RUNS.items():
        recipe = dataclasses.asdict(RECIPES[f"cifar10-{name.removesuffix('-1')}"])
        run = {"recipe": recipe, "seed": int(name.endswith("-1")), "steps": 2000, "seconds": 195.2}
        run |= {"parameters": 19, "device": "a GPU", "versions": {"torch": "2.x"}}
        write(folder / name / "run.json", run)
        rest = {
            "precision": 0.7,
            "recall": 0.4,
            "copied": 0.045,
            "card": {"features": "a judge", "samples": 500, "reference": "a set"},
        }
        scores = {str(k): {"frechet": x, **rest} for k, x in enumerate(distances, 1)}
        write(folder / name / "scores.json", scores)
        write(folder / name / "metrics.jsonl", {"gigabytes": 1.5})
    write(folder / "floor.json", {"frechet": 1.23})
    curve = [{"sampler": "ddim", "nfe": 10, "samples": 100, "frechet": 40.5}]
    write(folder / "curves.json", {"teacher-small": curve})
    speed = {"run": "cd-small/1", "nfe": 1, "images_per_second": 30_000.0}
    write(folder / "speeds.json", {"rows": [speed]})
    write(
        folder / "tried.json",
        [{"what": "a smaller one", "one": 9.5, "two": None, "beside": "9.00"}],
    )
    row = {"paired": 0.1, "shuffled": 0.5}
    same = {"method": "CD", "seconds": 9.0, "gigabytes": 7.5, "precision": "float16"}
    rows = [
        {"steps": 40, "overflowed": 2, "images_per_second": 6000, "frechet": {"1": 8, "2": 6}},
        {"steps": 30, "overflowed": 1, "images_per_second": 4000, "frechet": {"1": 7.5, "2": 5}},
        {"steps": 20, "overflowed": 0, "images_per_second": 2000, "precision": "float32"},
    ]
    write(folder / "precision.json", {"rows": [same | row for row in rows]})
    write(folder / "structure.json", {"cd-small/1": row, "teacher": "teacher-small/heun35"})
    return folder


def test_all_numbers_of_the_files_are_in_the_tables(folder):
    text = tables.tables(tables.read_results(folder))
    for row in (
        "| held-out images | – | 1.23 | – | – | – | – | – | – | – | – |",
        "| `teacher-small` | 35 | **9.00** | 1.00 | 0.700 | 0.400 | 0.045 | 500 | 0 | 195 | 1.02 |",
        "| `cd-small-1` | 2 | **20.00** | 2.22 | 0.700 | 0.400 | 0.045 | 500 | 1 | 195 | 1.02 |",
        "| `teacher-small` | ddim | 10 | 40.50 | 100 | – |",
        "| `cd-small/1` | 1 | 30,000 |",
        "| `cd-small` | `cd-small` | – | 3.3 | 3.3 | a GPU |",
        "| CD | float16 | 40, 30 | 2, 1 | 9 | 8.00, 7.50 | 6.00, 5.00 | 5,000 | 7.5 |",
        "| CD | float32 | 20 | 0 | 9 | – | – | 2,000 | 7.5 |",
        "| `cd-small/1` | 0.20 | – | – | – | – |",
        "- **features**: a judge",
        "| a smaller one | 9.50 | – | 9.00 |",
    ):
        assert row in text, row


@pytest.mark.parametrize("missing", ["cd-small-1", "curves.json", "floor.json", "speeds.json"])
def test_what_is_missing_leaves_out_its_row(folder, missing):
    words = {"curves.json": "40.50", "floor.json": "1.23", "speeds.json": "30,000"}
    words = words.get(missing, "`cd-small-1`")
    assert words in tables.tables(tables.read_results(folder))
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert words not in tables.tables(tables.read_results(folder))


def test_a_runs_own_teacher_counts_and_is_paid_for(folder):
    run = json.loads((folder / "cd-small" / "run.json").read_text())
    write(
        folder / "cd-small" / "run.json",
        run
        | {"teacher": "teacher-small", "start": "cd-small-1"}
        | {"recipe": run["recipe"] | {"lr": 1e-5}},
    )
    results = tables.read_results(folder)
    told = "| `cd-small --lr 1e-05` | `teacher-small` 3.3 + `cd-small-1` 3.3 | 3.3 | 9.8 | a GPU |"
    assert results.ratio("cd-small") == 3 and told in tables.costs(results)
    write(folder / "cd-small" / "run.json", run | {"teacher": "cd-small-1"})
    assert tables.read_results(folder).ratio("cd-small") == pytest.approx(0.9)


def test_a_run_without_a_teacher_is_compared_with_the_one_it_started_from(folder):
    run = json.loads((folder / "cd-small" / "run.json").read_text())
    write(folder / "cd-small" / "run.json", run | {"start": "cd-small-1"})
    assert tables.read_results(folder).ratio("cd-small") == pytest.approx(0.9)
    write(folder / "cd-small" / "run.json", run | {"start": "unknown"})
    assert tables.read_results(folder).ratio("cd-small") is None
    assert tables.read_results(folder).ratio("cd-small-1") == pytest.approx(30 / 9)
    labels = run | {"recipe": run["recipe"] | {"labels": True}}
    write(folder / "cd-small-1" / "run.json", labels)
    assert tables.read_results(folder).ratio("cd-small-1") is None  # not one without classes


def test_five_minutes_are_those_of_unguided_students_with_classes_and_sorted(folder):
    run = json.loads((folder / "cd-small" / "run.json").read_text()) | {"seconds": 301.0}
    plain, labels = run["recipe"], {"labels": True}
    run["recipe"] = plain | labels
    others = {"cd-small": {"seconds": 240.0, "pairs_seconds": 100.0}, "cd-small-1": {"steps": 4000}}
    others["guided"] = {"recipe": plain | labels | {"guidance": 2.0}}
    others |= {"long": {"seconds": 400.0}, "short": {"seconds": 200.0}, "plain": {"recipe": plain}}
    others["teacher-small"] = {"recipe": plain | labels | {"method": "teacher"}}
    for name, changes in others.items():
        write(folder / name / "run.json", run | changes)
    shutil.copytree(folder / "cd-small", folder / "none")
    (folder / "none" / "scores.json").unlink()
    rows = tables.five_minutes(tables.read_results(folder)).split("\n")[2:]
    assert rows[0].startswith("| `cd-small` | – | 27.00, 18.00 | 5.7 | 2,000 | ") and len(rows) == 2
    assert rows[1].startswith("| `cd-small-1` | – | 30.00, 20.00 | 5.0 | 4,000 | ")


def test_a_guided_student_is_compared_with_its_teacher_guided_alike(folder):
    run = json.loads((folder / "cd-small" / "run.json").read_text())
    guided = run | {"teacher": "teacher-small", "recipe": run["recipe"] | {"guidance": 2.0}}
    write(folder / "cd-small" / "run.json", guided)
    assert tables.read_results(folder).ratio("cd-small") is None  # not that of the plain teacher
    rest = {"precision": 0.8, "recall": 0.3, "card": {"samples": 100}}
    curve = [{"weight": w, "frechet": x, **rest} for w, x in ((1.0, 9.5), (2.0, 6.0), (3.0, 12.0))]
    write(folder / "teacher-small" / "guidance.json", curve)
    results = tables.read_results(folder)
    assert results.ratio("cd-small") == 27 / 6 and results.ratio("teacher-small") == 1
    text = tables.tables(results)
    assert "| `teacher-small` | 1 | 9.50 | 0.800 | 0.300 | 100 |" in text  # as many as the others
    assert tables.distances(results, "teacher-small@1") == "9.50"
    assert results.told_ratio("cd-small") == "≥ 4.50"  # the teacher's samples are fewer
    assert results.told_ratio("cd-small-1") == "3.33"
    few = json.loads((folder / "cd-small-1" / "scores.json").read_text())
    few["1"]["card"]["samples"] = 50
    write(folder / "cd-small-1" / "scores.json", few)  # of fewer samples than its teacher's
    assert tables.read_results(folder).told_ratio("cd-small-1") == "≤ 3.33"
    assert "| `teacher-small` | 3 | 12.00 | 0.800 | 0.300 | 100 |" in text


def test_measured_takes_the_longest_scored_run_and_medians_of_digits(folder):
    for seed, distance in enumerate((3.0, 1.0, 2.0)):
        row = {"recipe": "digits-cd", "title": "CD", "nfe": 1, "seconds": 60, "frechet": distance}
        table = {"seed": seed, "held_out": 449, "rows": [row]}
        write(folder.parent / f"digits_seed{seed}.json", table)

    def tell():
        return json.loads(gathered.measured(tables.read_results(folder), folder))

    found = tell()["cifar10-cd-small"]
    assert found["run"] == "results/cifar10/cd-small"  # of equally long runs the first seed
    assert found["frechet"] == {"1": 27.0, "2": 18.0} and found["gigabytes"] == 1.5
    assert tell()["cifar10-teacher-small"]["frechet"] == {"35": 9.0}
    write(folder / "memory.json", {"cifar10-cd-small": 0.5})  # alone in its process
    assert tell()["cifar10-cd-small"]["gigabytes"] == 0.5
    digits = tell()["digits-cd"]
    assert (digits["frechet"], digits["minutes"], digits["seeds"]) == ({"1": 2.0}, 1.0, [0, 1, 2])
    run = json.loads((folder / "cd-small-1" / "run.json").read_text())
    write(folder / "cd-small-1" / "run.json", run | {"seconds": 500.0})
    assert tell()["cifar10-cd-small"]["run"] == "results/cifar10/cd-small-1"
    write(folder / "cd-small-1" / "run.json", run | {"seconds": 500.0, "teacher": "another"})
    assert tell()["cifar10-cd-small"]["run"] == "results/cifar10/cd-small"  # of the recipe's own
    other = run["recipe"] | {"method": "ct"}  # a run of another recipe
    write(folder / "cd-small-1" / "run.json", run | {"seconds": 500.0, "recipe": other})
    assert tell()["cifar10-cd-small"]["run"] == "results/cifar10/cd-small"
    other = run["recipe"] | {"labels": True, "pairs": 5, "clamp_limit": 1.5}
    del other["batch"]  # an older run, which had the default: 128, not the recipe's 512
    given = {"recipe": other, "teacher": "another", "start": "one"}
    for name in ("cd-small", "cd-small-1"):
        write(folder / name / "run.json", run | given)
    told = "--teacher another --start one --labels --batch 128 --pairs 5 --clamp-limit 1.5"
    assert tell()["cifar10-cd-small"]["with"] == told  # as options of the command
    write(folder / "cd-small" / "run.json", run)
    other = {**run["recipe"], "lr": 1e-5}  # longer, and not what the recipe says
    write(folder / "cd-small-1" / "run.json", run | {"seconds": 500.0, "recipe": other})
    assert tell()["cifar10-cd-small"]["run"] == "results/cifar10/cd-small"
    write(folder / "cd-small-1" / "run.json", run | {"seconds": 500.0})
    (folder / "cd-small-1" / "scores.json").unlink()
    assert tell()["cifar10-cd-small"]["run"] == "results/cifar10/cd-small"


def test_a_run_with_just_the_settings_of_another_recipe_is_of_that_one():
    own, guided = RECIPES["cifar10-cd-small"], RECIPES["cifar10-cd-small-guided"]
    begun = dataclasses.asdict(own)
    run = {"recipe": begun | {"labels": True, "guidance": 2.0, "minutes": 3.0}}
    assert tables.recipe_of(run) is guided and not tables.changed(run, guided)
    more = {"recipe": run["recipe"] | {"lr": 1e-5}}  # of neither: the name decides
    assert tables.recipe_of(more) is own
    assert tables.changed(more, own) == {"labels": True, "guidance": 2.0, "lr": 1e-5}
    assert tables.recipe_of({"recipe": begun}) is own


@pytest.mark.parametrize("script", [tables, gathered], ids=lambda script: script.__name__)
def test_the_committed_files_are_what_the_runs_say(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["a script", "--check"])
    assert script.main() == 0, f"run {script.__name__}.py"


def test_published_recipes_have_the_speed_of_their_step():
    found = json.loads(gathered.FILE.read_text(encoding="utf-8"))
    for name in ("teacher", "cd", "ct"):
        entry = found[f"cifar10-{name}"]
        assert entry["images_per_second"] > 1000 and 20 < entry["gigabytes"] < 30
        assert (ROOT / entry["run"]).is_file() and "minutes" not in entry


def test_the_ratios_beside_the_slides_are_those_of_the_runs():
    results = tables.read_results()
    text = (ROOT / "results/cifar10/README.md").read_text(encoding="utf-8")
    row = r"\| ([^|]+) \| [\d., ]+ \| ([≥\d., ]+) \| ([\d., ]+|–) \| [\d.]+ \| [\d.]+ \| [\d.]+ \|"
    rows = re.findall(row, text)
    assert [title for title, *_ in rows] == list(tables.METHODS.values())  # none without copied
    for name, (_, said, _) in zip(tables.METHODS, rows):
        steps = 1 + np.arange(1 + said.count(","))
        assert ", ".join(results.told_ratio(name, int(k)) for k in steps) == said, name
    published = {title: theirs for title, _, theirs in rows if theirs != "–"}
    assert published == {"CD": "1.74, 1.44", "PD": "4.09, 2.74", "CT": "4.26, 2.86"}
    # 3.55 and 2.93, 8.34 and 5.58, 8.70 and 5.83 over 2.04
    told = "| CT | 2 | 2.86 | 4.55 | 2.20 | 1.75 | 11.90 | `ct-small-5min` |"
    assert told in tables.slides(results)


def test_every_method_and_choice_is_of_a_run_and_every_picture_is_there():
    results = tables.read_results()
    recipes = {run["recipe"]["method"] for run in results.runs.values()}
    assert recipes == {results.runs[name]["recipe"]["method"] for name in tables.METHODS}
    for *_, taken, words, instead in tables.CHOICES:
        assert words and "–" not in (tables.distances(results, x) for x in (taken, instead))
    for name in tables.PICTURES:
        assert (ROOT / "images" / f"cifar10_{name}").is_file()
    strip = tables.viz.plt.imread(ROOT / "results/cifar10/five_minutes.jpg")
    assert len(strip) == 59 * len(list(tables.METHODS)[tables.NOISES])  # a row of pixels for each
    for draw, others in (
        (tables.draw_minutes, {"direct", "direct, guided", "CD, guided", "iCT"}),
        (tables.draw_evaluations, {"direct distillation", "teacher, DDIM"}),
    ):
        said = {text.get_text() for text in draw(results).axes[0].texts}
        assert {"CD", "PD", "CT", "BOOT"} | others <= said


def test_texture_sees_contrast_grain_and_variety(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    texture = load("cifar10_sampling").texture
    flat = np.full((4, 3, 8, 8), 100, np.uint8)
    assert texture(flat) == {"contrast": 0, "grain": 0, "variety": 0}
    ramp = flat + np.arange(8, dtype=np.uint8)
    assert texture(ramp)["grain"] == 1 and texture(ramp)["variety"] == 0
    shift = flat + 10 * np.arange(4, dtype=np.uint8)[:, None, None, None]
    assert texture(shift) == {"contrast": 0, "grain": 0, "variety": (30 + 10 * 3) / 4}
