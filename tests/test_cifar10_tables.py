"""The CIFAR-10 tables and pictures follow from the runs' files, and need none of them."""

import dataclasses
import importlib.util
import json
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT

from consistency_edu.images.methods import evaluations
from consistency_edu.images.recipes import RECIPES

FILE = ROOT / "benchmarks" / "cifar10_tables.py"
spec = importlib.util.spec_from_file_location("cifar10_tables", FILE)
tables = sys.modules["cifar10_tables"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)

CARD = {
    "metric": "Fréchet distance, a judge",
    "features": "a judge 0123456789ab",
    "resize": "none",
    "rounding": "to the nearest",
    "samples": 50_000,
    "reference": "images train",
    "reference_images": 50_000,
    "precision_recall": "k = 3",
}
DISTANCES = {  # made up, in 1 step and in 2
    "teacher-small": (9.0,),
    "best-small": (27.0, 18.0),
    "cd-small-huber": (45.0, 22.5),
    "cd-small-vgg": (36.0, 20.0),
    "ct-small": (54.0, 31.0),
    "boot-small": (63.0,),
    "direct-small": (70.0,),
    "pd-small": (50.0, 30.0),
    "teacher-mini": (15.0,),
    "cd-mini": (60.0, 35.0),
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_run(folder, name, distances):
    """Write the files of a made-up run."""
    words = name.split("-")
    method = {"best": "cd"}.get(words[0], words[0])
    recipe = dataclasses.asdict(RECIPES[f"cifar10-{method}-{words[1]}"])
    info = {"recipe": {**recipe, "minutes": 3.25, "data": "somewhere/cifar10-jpeg.tar.xz"}}
    info |= {"seed": 0, "steps": 2000, "seconds": 195.2, "parameters": 19_000_000}
    info |= {"device": "a GPU", "versions": {"torch": "2.x"}}
    write(folder / name / "run.json", info)
    rows = {
        str(steps): {"frechet": value, "precision": 0.7, "recall": 0.4, "card": CARD}
        for steps, value in enumerate(distances, 1)
    }
    write(folder / name / "scores.json", rows)
    curve = [
        {"step": 400 * k, "seconds": 40 * k, "frechet": 200 / k + sum(distances)}
        for k in (1, 2, 3, 4)
    ]
    write(folder / name / "learning.json", curve)
    lines = [
        {"step": 50 * k, "loss": 900 / k + 9 * sum(distances), "seconds": 5.0 * k}
        for k in range(1, 40)
    ]
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def make_results(folder):
    """Write made-up results of all kinds into `folder`."""
    for name, distances in DISTANCES.items():
        make_run(folder, name, distances)
    write(folder / "floor.json", {"frechet": 1.23, "precision": 0.8, "recall": 0.8, "card": CARD})
    curves = {"teacher-small": [], "best-small": [], "ct-small": []}
    for nfe in (1, 10, 20, 50):
        row = {"sampler": "ddim", "nfe": nfe, "samples": 10_000}
        curves["teacher-small"].append({**row, "frechet": 10 + 300 / nfe})
    for nfe in (5, 11, 35):
        row = {"sampler": "heun", "nfe": nfe, "samples": 10_000}
        curves["teacher-small"].append({**row, "frechet": 9 + 400 / nfe**2})
    for nfe in (1, 2, 4):
        row = {"sampler": "consistency", "nfe": nfe, "levels": [80, 0.8], "samples": 10_000}
        curves["best-small"].append({**row, "frechet": 14 + 13 / nfe})
    write(folder / "curves.json", curves)
    speeds = [("teacher-small/heun35", 35), ("best-small/1", 1), ("best-small/2", 2)]
    rows = [{"run": run, "nfe": nfe, "images_per_second": 30_000 / nfe} for run, nfe in speeds]
    write(folder / "speeds.json", {"device": "a GPU", "batch": 1000, "rows": rows})
    students = [f"{name}/1" for name in list(DISTANCES)[1:6]] + ["ct-small/2"]
    teachers = [f"teacher-small/{way}" for way in ("heun35", "ddim50", "ddim10", "ddim1")]
    rows = {k: {"paired": 0.2, "shuffled": 0.5, "count": 1000} for k in students + teachers[1:]}
    rows |= {teachers[0]: {"paired": 0.0, "shuffled": 0.5, "count": 1000}}
    write(folder / "structure.json", {**rows, "teacher": teachers[0]})
    shares = [0.1 + 0.01 * (-1) ** k for k in range(10)]
    rows = {key: {"shares": shares, "entropy": 2.29} for key in [teachers[0], *students]}
    rows |= {"real": {"accuracy": 0.9, "shares": [0.1] * 10}, "classes": tables.CLASSES}
    write(folder / "coverage.json", rows)
    dice, keys = np.random.default_rng(0), [f"{n}/1" for n in DISTANCES if "teacher" not in n]
    keys += ["best-small/2", "ct-small/2"]
    keys += teachers
    images = {key: dice.integers(0, 255, (48, 3, 32, 32), dtype=np.uint8) for key in keys}
    np.savez(folder / "gallery.npz", **images)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    make_results(folder)
    return folder


def rows_of(table):
    """The rows of a Markdown table, as lists of cells."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_quality_has_a_row_for_every_score(full):
    rows = rows_of(tables.quality(tables.read_results(full)))
    assert rows[0][0] == "held-out images" and rows[0][3] == "1.23"
    assert len(rows) == 1 + sum(map(len, DISTANCES.values()))
    found = {(row[1], row[2]): row for row in rows}
    assert found["`teacher-small`", "35"][3:5] == ["**9.00**", "1.00"]
    best = ["**18.00**", "2.00", "0.700", "0.400", "50,000", "195", "1.02"]
    assert found["`best-small`", "2"][3:] == best
    assert found["`cd-mini`", "1"][4] == "4.00"  # over its own teacher, not the small one
    nfe = evaluations(RECIPES["cifar10-teacher-small"])
    assert nfe == 35 and ("`teacher-mini`", str(nfe)) in found


def test_the_slides_table_1_stands_beside_ours(full):
    rows = {(r[0], r[1]): r for r in rows_of(tables.slides_table_1(tables.read_results(full)))}
    assert rows["CD", "1"] == ["CD", "1", "3.55", "1.74", "27.00", "3.00", "`best-small`"]
    assert rows["CD", "2"][3:6] == ["1.44", "18.00", "2.00"]
    assert rows["CT", "1"][2:6] == ["8.70", "4.26", "54.00", "6.00"]
    assert rows["PD", "2"][4] == "30.00"
    assert rows["DDIM", "10"][4:] == ["40.00", "4.29", "`teacher-small`, DDIM"]
    assert rows["EDM, Heun", "35"][4:6] == ["9.00", "1.00"]


def test_the_slides_table_2_and_speeds_stand_beside_ours(full):
    results = tables.read_results(full)
    rows = {(r[0], r[1]): r for r in rows_of(tables.slides_table_2(results))}
    assert rows["CD", "1"][2] == "2.54, 0.68, 0.63" and rows["CD", "1"][5] == "3.00, 0.70, 0.40"
    assert rows["EDM", "79"][5] == "1.00, 0.70, 0.40"
    rows = {(r[0], r[1]): r for r in rows_of(tables.slides_speed_table(results))}
    assert rows["DDIM", "50"][5:7] == ["16.00", "–"] and rows["BOOT", "1"][5:7] == ["63.00", "–"]
    assert results.speed("teacher-small", "heun", 35) == pytest.approx(30_000 / 35)
    assert results.speed("best-small", "", 2) == 15_000
    assert results.speed("best-small", "", 4) is None


def test_likeness_and_shares_leave_out_what_is_no_row(full):
    results = tables.read_results(full)
    assert tables.likeness(results, "ct-small/1") == pytest.approx(0.4)
    assert tables.likeness(results, "teacher-small/heun35") is None
    assert [row[0] for row in rows_of(tables.structure_table(results))][-1].endswith("DDIM 1")
    rows = rows_of(tables.coverage_table(results))
    assert {"held-out images", "teacher (EDM), 35 NFE", "CT, pseudo-Huber, 2 steps"} <= {
        row[0] for row in rows
    }


def test_published_numbers_are_the_slides():
    found = {(method, nfe): fid for method, nfe, fid, *_ in tables.SLIDES}
    assert found["CD", 1] == 3.55 and found["CD", 2] == 2.93 and found["EDM, Heun", 35] == 2.04
    assert found["CT", 1] == 8.70 and found["CT", 2] == 5.83 and found["PD", 1] == 8.34
    for _, _, published, _ in tables.IMAGENET_AND_LSUN:
        assert len(published) == 3 and all(0 < p < 1 and 0 < r < 1 for _, p, r in published)


def test_readme_and_pictures_of_everything(full, tmp_path):
    results = tables.read_results(full)
    text = tables.readme(results)
    for name in DISTANCES:
        assert f"`{name}`" in text
    assert "a judge 0123456789ab" in text and "a GPU" in text and "seeds**: 0" in text
    end = text.split("## What was not run")[1]
    assert "was not run." not in end and "missing" not in end and "second seed" in end
    made = tables.draw_all(results, tmp_path)
    assert {f.name for f in made} == {f"cifar10_{name}.png" for name in tables.FIGURES}
    assert all(1000 < f.stat().st_size < 900_000 for f in made)
    shown = re.findall(r"images/(cifar10_\w+\.png)", text)
    assert sorted(shown) == sorted(f.name for f in made)


@pytest.mark.parametrize("missing", [*DISTANCES, *tables.FILES])
def test_what_is_missing_is_said_and_breaks_nothing(full, tmp_path, missing):
    folder = tmp_path / "results"
    shutil.copytree(full, folder)
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    results = tables.read_results(folder)
    text = tables.readme(results)
    assert f"`{missing}`" in text.split("## What was not run")[1]
    for name in tables.FIGURES:
        assert (name in tables.drawable(results)) == (f"cifar10_{name}.png" in text)
    if missing in ("gallery.npz", "curves.json", "best-small"):  # what figures stand on
        tables.draw_all(results, tmp_path)


@pytest.mark.parametrize("part", ["scores.json", "learning.json", "metrics.jsonl"])
def test_runs_may_lack_a_file(full, tmp_path, part):
    folder = tmp_path / "results"
    shutil.copytree(full, folder)
    for file in folder.glob(f"*/{part}"):
        file.unlink()
    text = tables.readme(tables.read_results(folder))
    assert ("trained, and not scored" in text) == (part == "scores.json")
    tables.draw_all(tables.read_results(folder), tmp_path / "images")


def test_nothing_at_all_gives_a_list_of_what_is_missing(tmp_path):
    results = tables.read_results(tmp_path / "nowhere")
    text = tables.readme(results)
    assert text.count("was not run.") == len(tables.TITLES) and "![" not in text
    assert tables.draw_all(results, tmp_path) == []
    assert tables.told(results, "ct-small") == "not run: ct-small"


def test_commands_say_what_differs_from_the_recipe(full):
    results = tables.read_results(full)
    assert tables.command(results, "cd-small-huber") == (
        "python3 benchmarks/cifar10.py --data cifar10-jpeg.tar.xz "
        "cd-small-huber=cifar10-cd-small,minutes=3.25,teacher=teacher-small"
    )
    assert "somewhere" not in tables.readme(results)
    assert len(tables.commands_of(results, "teacher-small", "best-small", "nobody")) == 2


TYPED = """# what was typed
consistency-edu train cifar10-teacher-small --minutes 7.5   # ended sooner
python3 benchmarks/cifar10.py --data x \\
    cd-mini=cifar10-cd-mini,minutes=7.5,teacher=teacher-small,start=teacher-mini \\
    ct-small=cifar10-ct-small,minutes=1
"""


def test_typed_commands_go_before_guessed_ones(full, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(full, folder)
    assert tables.read_results(folder).teacher_of("cd-mini") == "teacher-mini"
    (folder / "commands.txt").write_text(TYPED)
    results = tables.read_results(folder)
    assert tables.command(results, "ct-small").endswith(" ct-small=cifar10-ct-small,minutes=1")
    line = "consistency-edu train cifar10-teacher-small --minutes 7.5"
    assert tables.command(results, "teacher-small") == line
    assert results.parents("cd-mini") == {"teacher": "teacher-small", "start": "teacher-mini"}
    assert results.ratio("cd-mini", 60.0) == pytest.approx(60 / 9)
    assert tables.family(results, "cd-mini") == ["teacher-small", "teacher-mini", "cd-mini"]
    assert f"```sh\n{TYPED}```" in tables.readme(results)
    run = results.runs["cd-mini"]
    write(folder / "cd-mini" / "run.json", {**run, "teacher": "teacher-mini", "start": "ct-small"})
    told = tables.read_results(folder)  # what the run itself says goes before what was typed
    assert told.parents("cd-mini") == {"teacher": "teacher-mini", "start": "ct-small"}


def test_the_cost_is_that_of_teacher_and_student(full, tmp_path):
    results = tables.read_results(full)
    text = tables.cost(results, "best-small")
    assert text.startswith("`teacher-small` 3.3 minutes (1.0 M images) + `best-small` 3.3 minutes")
    assert text.endswith(" = 6.5 minutes of one a GPU")
    assert tables.cost(results, "teacher-small").count("minutes") == 1
    assert "was not run" in tables.cost(tables.read_results(tmp_path), "best-small")


def test_texture_sees_contrast_grain_and_variety():
    flat = np.full((4, 3, 8, 8), 100, np.uint8)
    assert tables.texture(flat) == {"contrast": 0, "grain": 0, "variety": 0}
    ramp = flat + np.arange(8, dtype=np.uint8)
    assert tables.texture(ramp)["grain"] == 1 and tables.texture(ramp)["variety"] == 0
    shift = flat + 10 * np.arange(4, dtype=np.uint8)[:, None, None, None]
    assert tables.texture(shift) == {"contrast": 0, "grain": 0, "variety": (30 + 10 * 3) / 4}


def test_a_second_seed_is_a_run_of_its_own(full, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(full, folder)
    shutil.copytree(folder / "best-small", folder / "best-small-1")
    run = json.loads((folder / "best-small-1" / "run.json").read_text())
    write(folder / "best-small-1" / "run.json", {**run, "seed": 1})
    results = tables.read_results(folder)
    text = tables.readme(results)
    assert "`best-small-1`" in text and "second seed" not in text and "seeds**: 0, 1" in text
    order = list(results.runs)
    assert order.index("best-small-1") == order.index("best-small") + 1  # beside its twin
    assert "CD, the longest run, seed 1" in text and "CD, longest, seed 1" == tables.short(order[2])
    value = results.score("best-small")
    told = "`best-small` (seed 0) and `best-small-1` (seed 1): "
    assert told + f"{value:.2f} and {value:.2f} at 1 NFE, " in text
    assert "teacher and first weights are the same" in text and "GPUs" not in text
    assert "Another seed" not in tables.readme(tables.read_results(full))
    assert "seed=1" in tables.command(results, "best-small-1")


def test_a_twin_of_another_teacher_and_card_is_said_to_be_one(full, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(full, folder)
    for name in ("teacher-small", "pd-small"):
        shutil.copytree(folder / name, folder / f"{name}-1")
        run = json.loads((folder / f"{name}-1" / "run.json").read_text())
        run |= {"seed": 1, "teacher": "teacher-small-1", "device": "another GPU"}
        write(folder / f"{name}-1" / "run.json", run)
    scores = json.loads((folder / "pd-small" / "scores.json").read_text())
    write(folder / "pd-small" / "scores.json", {"1": scores["1"]})
    results = tables.read_results(folder)
    text = tables.readme(results)
    assert "Teacher (and so the first weights), noise and batches differ, so do the GPUs." in text
    assert "First weights, noise and batches differ, so do the GPUs." in text
    assert results.ratio("teacher-small-1", results.score("teacher-small-1")) == 1
    assert results.teacher_of("pd-small-1") == "teacher-small-1"
    rows = {(row[0], row[1]): row for row in rows_of(tables.slides_table_1(results))}
    assert rows["PD", "1"][-1] == rows["PD", "2"][-1] == "`pd-small-1`"  # which has both
    assert "`pd-small-1` is over `teacher-small-1` (9.00)." in text


def test_direct_distillation_is_told_beside_cd_with_the_cost_of_its_pairs(full, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(full, folder)
    text = tables.direct_in_words(tables.read_results(folder))
    assert "on one a GPU, 195 s of" in text and "reached 70.00; CD" in text
    assert "45.00 after 195 s" in text and "and 18.00 in two steps" in text
    assert "the same (9.00)" in text and "other way round" not in text and "to make" not in text
    write(folder / "direct-small" / "scores.json", {"1": {"frechet": 20.0}})
    run = json.loads((folder / "direct-small" / "run.json").read_text())
    write(folder / "direct-small" / "run.json", {**run, "pairs_seconds": 56.8})
    text = tables.direct_in_words(tables.read_results(folder))
    assert "which took 57 s to make" in text and "other way round" in text
    whole = (run["seconds"] + 56.8) / 60
    assert f"`direct-small` {whole:.1f} minutes" in tables.costs(tables.read_results(folder))
    assert tables.best_in_words(tables.read_results(folder)).startswith("one step: 20.00 (direct)")
    (folder / "cd-small-huber" / "scores.json").unlink()
    assert tables.direct_in_words(tables.read_results(folder)) == ""


def test_the_speed_of_the_student_is_told_of_each_cpu(tmp_path):
    assert tables.cpus_in_words(tmp_path) == ""
    for name, cpu, word, rate in (
        ("a", "Some(R) CPU Processor (AVX512)", "bfloat16", 120.6),
        ("b", "Other CPU (AVX2)", "float32", 30.0),
    ):
        head = f"{cpu}, 2 threads, torch 2, {word}; cifar10-cd-mini, 7 weights\n"
        rows = f"batch   4, channels last   {rate} images/s,  9.0 a core\n"
        rows += "batch   8, channels last     7.0 images/s,  3.5 a core\n"
        end = "best: batch 4, channels last: 999.0 images/s in one step; a walk\n"
        (tmp_path / f"student_cpu_{name}.txt").write_text(head + rows + end)
    told = tables.cpus_in_words(tmp_path)
    assert ": 121 (Some CPU in bfloat16), 30 (Other CPU in float32); " in told
    assert "down to 6% of that" in told  # 7.0 of 120.6
    assert "133 (Intel Xeon in bfloat16)" in tables.cpus_in_words()


def test_the_brief_table_has_a_row_for_each_whole_run(full, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(full, folder)
    run = json.loads((folder / "ct-small" / "run.json").read_text())
    write(folder / "ct-small" / "run.json", {**run, "seconds": 1.0})  # cut short
    results = tables.read_results(folder)
    text = tables.brief(results)
    rows = [line.split(" | ") for line in text.splitlines()[2:]]
    assert len({len(row) for row in rows}) == 1 and not any("CT" in row[0] for row in rows)
    by_name = {row[0].strip("| "): row for row in rows}
    one, two = results.score("best-small"), results.score("best-small", 2)
    assert by_name["CD, longest"][2] == f"**{one:.2f}**"
    assert by_name["CD, longest"][4] == f"{two:.2f}"
    assert by_name["teacher"][2].endswith("** (35 NFE)") and by_name["teacher"][4] == "–"


def test_the_distance_in_the_loss_is_named():
    name = lambda **recipe: tables.distance_in_words({"method": "cd", **recipe})  # noqa: E731
    assert name(distance="pseudo_huber") == "pseudo-Huber"
    hed = name(distance="lpips", backbone="somewhere/vgg16-hed-fp16.safetensors")
    assert hed == "VGG16 (HED) perceptual distance, unweighted"
    assert name(distance="lpips") == "LPIPS" and name(distance="l1") == "l1"
    assert "judge" in name(distance="efficientnet") and name(method="teacher") == ""


def test_a_loss_through_the_judge_is_said_to_leak(full, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(full, folder)
    assert "flattered" not in tables.readme(tables.read_results(folder))
    run = json.loads((folder / "best-small" / "run.json").read_text())
    write(
        folder / "best-small" / "run.json",
        run | {"recipe": run["recipe"] | {"distance": "efficientnet"}},
    )
    results = tables.read_results(folder)
    assert "flattered" in tables.readme(results)
    assert tables.title(results, "best-small") == "CD, the longest run, the judge's own features"
    assert tables.title(results, "ct-small") == "CT, pseudo-Huber"


def test_a_run_cut_short_says_so_and_is_in_no_picture(full, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(full, folder)
    run = json.loads((folder / "ct-small" / "run.json").read_text())
    assert "ct-small" in tables.pictured(tables.read_results(folder))
    write(folder / "ct-small" / "run.json", {**run, "seconds": 46.4})
    results = tables.read_results(folder)
    assert tables.title(results, "ct-small") == "CT, pseudo-Huber, cut short at 46 s"
    assert "ct-small" not in tables.pictured(results)
    labels = tables.figure_quality(results).axes[0].get_legend_handles_labels()[1]
    assert "CT" not in labels and "BOOT" in labels


def test_entropy_of_even_shares_is_largest():
    even = tables.entropy_of({"shares": [0.1] * 10})
    assert abs(even - np.log(10)) < 1e-12
    assert tables.entropy_of({"shares": [1.0] + [0.0] * 9}) == 0
    assert tables.entropy_of({"shares": [0.19, 0.01] + [0.1] * 8}) < even


def test_the_committed_readme_is_what_its_files_say():
    results = tables.read_results()
    path = results.folder / "README.md"
    assert path.read_text(encoding="utf-8") == tables.readme(results), f"run {FILE.name}"
    for name in re.findall(r"images/(cifar10_\w+\.png)", path.read_text(encoding="utf-8")):
        assert (ROOT / "images" / name).exists(), f"run {FILE.name}"


@pytest.mark.parametrize(
    ("recipe", "runs"),
    [
        ("teacher-small", ["teacher-small", "teacher-small-1"]),
        ("cd-small", ["best-small", "cd-small-huber"]),
        ("ct-small", ["ct-small"]),
        ("boot-small", ["boot-small"]),
        ("pd-small", ["pd-small", "pd-small-1"]),
        ("direct-small", ["direct-small"]),
        ("cd-mini", ["cd-mini"]),
    ],
)
def test_what_a_recipe_says_of_its_results_is_what_the_runs_files_say(recipe, runs):
    from consistency_edu.images.XXX import FOUND

    results = tables.read_results()
    said = set(re.findall(r"\d+\.?\d*", FOUND[recipe].replace(",", "")))
    for run in runs:
        for steps in results.runs[run]["scores"]:
            value = results.score(run, int(steps))
            assert {f"{value:.1f}", f"{value:.0f}"} & said, (run, value)
        assert f"{results.runs[run]['seconds'] / 60:.1f}" in said
    if recipe == "boot-small":
        assert f"{results.score(runs[0], 1, 'recall'):.2f}" in said


def test_what_is_said_of_patches_is_what_their_files_say():
    folder = ROOT / "results" / "cifar10_patches"
    text = (folder / "README.md").read_text(encoding="utf-8")
    scores = tables.read_json(folder / "teacher-mini" / "scores.json")
    names = ("teacher-mini", "cd-mini")
    runs = {name: tables.read_json(folder / name / "run.json") for name in names}
    minutes = {name: run["seconds"] / 60 for name, run in runs.items()}
    loss = tables.read_metrics(folder / "cd-mini")[-1]["loss"]
    fastest = max(
        map(float, re.findall(r"([\d.]+) images/s, ", (folder / "student_cpu.txt").read_text()))
    )
    ships = tables.read_results()
    for said in (
        f"| {fastest:.1f} ([student_cpu.txt]",
        f"| {scores['1']['frechet']:.2f} after {minutes['teacher-mini']:.1f} minutes |",
        f"| 66.97 after {minutes['cd-mini']:.1f} minutes | "
        f"{ships.score('cd-mini'):.2f} after {ships.runs['cd-mini']['seconds'] / 60:.1f} minutes |",
        f"| {loss:.2f} |",
        f"{runs['cd-mini']['parameters'] / 1e6:.2f} M weights",
        "cd-mini steps 1: Fréchet distance, EfficientNet-Lite0: 66.97",
    ):
        assert said in text, said


def rates_in(file):
    """The images a second in the rows of student_cpu.py's output `file`, with channels last."""
    return [float(x) for x in re.findall(r"channels last +([\d.]+) images/s, ", file.read_text())]


def test_what_is_said_of_narrow_networks_is_what_their_files_say():
    folder, ships = ROOT / "results" / "cifar10_narrow", tables.read_results()
    text = (folder / "README.md").read_text(encoding="utf-8")
    names = ("48-1-2-4", "64-1-1-2-3")
    runs = [tables.read_results(folder / name) for name in names]
    said = [f"{max(rates_in(folder / n / 'student_cpu.txt'))} ([rows]({n}/" for n in names]
    said += [" | ".join(f"{run.score('teacher-mini'):.2f}" for run in runs)]
    one = [(r.score("cd-mini"), r.runs["cd-mini"]["seconds"]) for r in (*runs, ships)]
    said += [" | ".join(f"{value:.2f} after {seconds:.0f} s" for value, seconds in one)]
    said += [" | ".join(f"{r.score('cd-mini', 2):.2f}" for r in (*runs, ships))]
    seen = [tables.images_seen(r.runs["cd-mini"]) / 1e6 for r in (*runs, ships)]
    said += ["{:.1f} and {:.1f} M against {:.1f} M".format(*seen)]
    for words in said:
        assert words in text, words
    assert all(r.runs["cd-mini"]["teacher"] == "teacher-small-1" for r in runs)


def test_what_is_said_of_two_cpu_cores_is_what_their_files_say():
    folder = ROOT / "benchmarks"
    text = (folder / "README.md").read_text(encoding="utf-8")
    table = text.split("## Two CPU cores")[1].split("## GPUs")[0]
    rows = re.findall(
        r"\((results/student_cpu_\w+\.txt)\).*?\| ([\d.]+) to ([\d.]+), .*\| 60 \| (\w+)", table
    )
    assert len(rows) == len(list(folder.glob("results/student_cpu_*.txt"))) == 3
    for file, low, high, verdict in rows:
        rates = rates_in(folder / file)
        assert (float(low), float(high)) == (min(rates), max(rates)), file
        assert verdict == ("met" if min(rates) > 60 else "missed"), file
