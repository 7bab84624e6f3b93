"""Make the pages of results/cifar10 from what the runs left there: tables, figures, ten pictures.

    python benchmarks/cifar10_tables.py --write  # write README.md, numbers.md and PICTURES
    python tools/run_notebooks.py --shrink images/cifar10_{minutes,quality}.png  # then
    python benchmarks/cifar10_tables.py --check  # exit 1 if the tables on the pages are out of date

What was not measured is left out, and nothing is judged: what the numbers mean is told elsewhere.
"""

import argparse
import dataclasses
import json
import re
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from consistency_edu import viz
from consistency_edu.images.methods import evaluations
from consistency_edu.images.recipes import RECIPES, Recipe
from consistency_edu.images.runs import load_pretrained

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ("minutes.png", "quality.png", "classes_1.jpg", "classes_2.jpg", "five_minutes.jpg")
PART = re.compile(r"(<!-- (\w+) by cifar10_tables.py -->\n\n).*?<!-- end -->", re.DOTALL)
FILES = ("floor", "curves", "speeds", "structure", "texture", "coverage", "slides", "tried")
FILES += ("precision",)
ASIDE = {"name", "about", "data", "source", "device", "compiles", "steps", "minutes"}
METHODS = {  # of each method the run to tell of
    "teacher-small-labels": "teacher, 35 NFE",
    "direct-small-labels": "direct distillation",
    "cd-small-5min": "CD",
    "pd-small-5min": "PD",
    "boot-small-5min": "BOOT",
    "ect-small-5min": "ECT",
    "scd-small-5min": "sCD",
    "sct-small-5min": "sCT",
    "ict-small-5min": "iCT",
    "ct-small-5min": "CT",
    "meanflow-small": "MeanFlow",
    "direct-small-guided": "direct, guided",
    "cd-small-guided": "CD, guided",
    "cd-mini-guided": "CD, guided: **ships**",
    "dmd-small-guided": "distribution matching",
}
NOISES = slice(1, 10)  # of these the rows of five_minutes.jpg, in this order
# What was chosen, then words and run of this, and of another choice.
CHOICES = (
    (
        "CD's distance, 800 steps",
        "pseudo-Huber",
        "cd-small-800",
        "of features",
        "cd-small-800-classifier",
    ),
    ("guidance of the teacher", "2", "teacher-small-labels@2", "1", "teacher-small-labels@1"),
    ("precision of CD, 90 s", "bfloat16", "cd-small-90s", "float16", "cd-small-90s-float16"),
)


def read_json(path: Path) -> dict:
    """Return what the JSON file `path` holds; nothing if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@dataclass
class Results:
    """What lies in a folder: `runs` by name, teachers first, and the `files` beside them."""

    runs: dict[str, dict]
    files: dict[str, dict]

    def score(self, name: str, steps: int = 1, key: str = "frechet") -> float | None:
        """Return the score `key` of the run `name` with `steps` steps, or None."""
        return self.runs.get(name, {}).get("scores", {}).get(str(steps), {}).get(key)

    def compared(self, name: str) -> dict:
        """Return the scores of the teacher that the run `name` is compared with; empty if none.

        Its own, or the one that it started from, or of its kind (with classes or without); a guided
        student's is guided by the same weight.
        """
        run, recipe = self.runs[name], self.runs[name]["recipe"]
        plain = "teacher-small-labels" if recipe.get("labels") else "teacher-small"
        source = run.get("teacher", run.get("start", plain))
        if recipe["method"] == "teacher":
            source = name
        weight = recipe.get("guidance", 1.0)
        if weight != 1:
            return self.guided(source, weight)
        return self.runs.get(source, {}).get("scores", {}).get("1", {})

    def guided(self, name: str, weight: float) -> dict:
        """Return the scores of the teacher `name` guided with `weight`; empty if none."""
        rows = self.runs.get(name, {}).get("guidance", [])
        return next((row for row in rows if row["weight"] == weight), {})

    def ratio(self, name: str, steps: int = 1) -> float | None:
        """Return a distance over that of the teacher that the run is compared with, or None."""
        value, teacher = self.score(name, steps), self.compared(name).get("frechet")
        return value / teacher if value and teacher else None

    def told_ratio(self, name: str, steps: int = 1) -> str:
        """Write the ratio, a bound where one of two distances is too large, being of fewer samples."""
        value, row = self.ratio(name, steps), self.runs[name]["scores"].get(str(steps), {})
        if value is None:
            return "–"
        mine, its = (each.get("card", {}).get("samples", 0) for each in (row, self.compared(name)))
        return f"{'≥ ' * (mine > its)}{'≤ ' * (mine < its)}{value:.2f}"

    def on_curve(self, name: str, sampler: str, nfe: int) -> dict:
        """Return the row of `name` in curves.json with `sampler` and `nfe`; empty if none."""
        rows = self.files["curves"].get(name, [])
        return next((r for r in rows if (r["sampler"], r["nfe"]) == (sampler, nfe)), {})

    def spent(self, name: str) -> tuple[list[str], list[float]]:
        """Return the runs that `name` was made from, and their minutes and its own."""
        run = self.runs[name]
        parents = [run[key] for key in ("teacher", "start") if run.get(key) in self.runs]
        return parents, [minutes_of(self.runs[made]) for made in (*parents, name)]

    def likeness(self, key: str) -> float | None:
        """Return the distance to the teacher's image over that to another noise's, or None."""
        row = self.files["structure"].get(key)
        return row["paired"] / row["shuffled"] if row else None


def read_results(folder: str | Path = ROOT / "results" / "cifar10") -> Results:
    """Return all results in `folder`, whatever is there."""
    folder = Path(folder)
    runs = {path.parent.name: read_json(path) for path in sorted(folder.glob("*/run.json"))}
    order = sorted(runs, key=lambda name: runs[name]["recipe"]["method"] != "teacher")
    scores = {name: read_json(folder / name / "scores.json") for name in order}
    guided = {name: read_json(folder / name / "guidance.json") or [] for name in order}
    learned = {name: read_json(folder / name / "learning.json") or [] for name in order}
    found = {
        name: runs[name]
        | {"scores": scores[name], "guidance": guided[name], "learning": learned[name]}
        for name in order
    }
    return Results(found, {name: read_json(folder / f"{name}.json") for name in FILES})


def number(value: float | None, form: str = ".2f") -> str:
    """Write `value`, or a dash if there is none."""
    return "–" if value is None else format(value, form)


def table(head: str, rows: list[list[str]]) -> str:
    """Return a Markdown table whose comma-separated titles are `head`."""
    titles = head.split(",")
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *rows])


def pair(values: list[float | None]) -> str:
    """Write `values`, such as those in one step and in two; a dash if there are none."""
    return ", ".join(number(value) for value in values if value) or "–"


def nfe_of(run: dict, steps: int) -> int:
    """Return how many evaluations a sample of `run` in `steps` costs."""
    return evaluations(Recipe(**run["recipe"]), steps)


def minutes_of(run: dict) -> float:
    """Return the minutes of training of `run`, and of making its pairs if it had some."""
    return (run["seconds"] + run.get("pairs_seconds", 0)) / 60


def recipe_of(run: dict) -> Recipe:
    """Return the recipe that `run` is of: that with just its settings, or else that of its name."""
    same = (r for r in RECIPES.values() if r.method == run["recipe"]["method"])
    own = RECIPES[run["recipe"]["name"]]
    return next((recipe for recipe in (own, *same) if not changed(run, recipe)), own)


def changed(run: dict, recipe: Recipe) -> dict:
    """Return the settings of `run` that `recipe` has otherwise; what it lacks was the default."""
    given = dataclasses.asdict(Recipe("")) | run["recipe"]
    settings = (field.name for field in dataclasses.fields(Recipe) if field.name not in ASIDE)
    return {name: given[name] for name in settings if given[name] != getattr(recipe, name)}


def options(changes: dict) -> str:
    """Write the `changes` of a recipe, value by name, as options of the command."""
    said = {True: "", False: "no-"}
    told = [(name.replace("_", "-"), value) for name, value in changes.items()]
    return " ".join(
        f"--{said[value]}{name}" if isinstance(value, bool) else f"--{name} {value}"
        for name, value in told
    )


def judged(row: dict) -> list[str]:
    """Return precision, recall, share of copies and number of samples of a `row` of scores."""
    samples, keys = row.get("card", {}).get("samples"), ("precision", "recall", "copied")
    return [*(number(row.get(key), ".3f") for key in keys), number(samples, ",")]


def quality(results: Results) -> str:
    """Return the table of all scores, a row for each run and number of steps."""
    floor, rows = results.files["floor"], []
    if floor:
        head = ["held-out images", "–", number(floor["frechet"]), "–", *judged(floor)]
        rows.append([*head, "–", "–", "–"])
    for name, run in results.runs.items():
        seen = run["steps"] * run["recipe"]["batch"] / 1e6
        told = [str(run["seed"]), f"{run['seconds']:.0f}", f"{seen:.2f}"]
        for steps, row in run["scores"].items():
            cells = [f"`{name}`", str(nfe_of(run, int(steps))), f"**{row['frechet']:.2f}**"]
            rows.append([*cells, results.told_ratio(name, int(steps)), *judged(row), *told])
    head = "run,NFE,Fréchet distance,x teacher,precision,recall,copied,samples,seed,training s,images M"
    return table(head, rows)


def against_nfe(results: Results) -> str:
    """Return the table of quality against the number of evaluations."""
    rows = []
    for name, curve in results.files["curves"].items():
        for row in sorted(curve, key=lambda row: (row["sampler"], row["nfe"])):
            levels = ", ".join(f"{sigma:.3g}" for sigma in row.get("levels") or []) or "–"
            cells = [f"`{name}`", row["sampler"], str(row["nfe"]), f"{row['frechet']:.2f}"]
            rows.append([*cells, f"{row['samples']:,}", levels])
    return table("run,sampler,NFE,Fréchet distance,samples,noise levels", rows)


def guidance(results: Results) -> str:
    """Return the table of teachers with classes, guided by different weights."""
    rows = []
    for name, run in results.runs.items():
        for row in run["guidance"]:
            told = [f"{row['weight']:g}", f"{row['frechet']:.2f}"]
            rows.append([f"`{name}`", *told, *(x for i, x in enumerate(judged(row)) if i != 2)])
    return table("run,weight,Fréchet distance,precision,recall,samples", rows)


def precisions(results: Results) -> str:
    """Return the table of equal seconds in several precisions; seeds of one kind share a row."""
    kinds, rows = defaultdict(list), []
    for row in results.files["precision"].get("rows", []):
        kinds[row["method"], row["precision"]].append(row)
    for kind, same in kinds.items():
        cells = [", ".join(f"{row[key]:,}" for row in same) for key in ("steps", "overflowed")]
        cells += [f"{statistics.mean(row['seconds'] for row in same):.0f}"]
        cells += [pair([row.get("frechet", {}).get(k) for row in same]) for k in "12"]
        cells += [f"{statistics.mean(row['images_per_second'] for row in same):,.0f}"]
        rows.append([*kind, *cells, f"{max(row['gigabytes'] for row in same):.1f}"])
    head = "method,precision,steps,overflowed,seconds,one step,two,images/s,GB"
    return table(head, rows)


def speeds(results: Results) -> str:
    """Return the table of samples per second."""
    rows = [
        [f"`{row['run']}`", str(row["nfe"]), f"{row['images_per_second']:,.0f}"]
        for row in results.files["speeds"].get("rows", [])
    ]
    return table("run and steps,NFE,images/s", rows)


def costs(results: Results) -> str:
    """Return the table of what each run is and what it cost, with the runs that it was made from."""
    rows = []
    for name, run in results.runs.items():
        parents, minutes = results.spent(name)
        told = " + ".join(f"`{made}` {spent:.1f}" for made, spent in zip(parents, minutes)) or "–"
        recipe = recipe_of(run)
        words = f"{recipe.name.removeprefix('cifar10-')} {options(changed(run, recipe))}"
        spent = [f"{minutes[-1]:.1f}", f"{sum(minutes):.1f}", run["device"].removeprefix("NVIDIA ")]
        rows.append([f"`{name}`", f"`{words.strip()}`", told, *spent])
    head = "run,recipe cifar10-… and options,made from (minutes),own minutes,together,on one"
    return table(head, rows)


def same_noise(results: Results) -> str:
    """Return the table of what samplers make of the same noises."""
    rows, files = [], results.files
    for key in (key for key in files["structure"] if "/" in key):
        look = [
            files["texture"].get(key, {}).get(part) for part in ("contrast", "grain", "variety")
        ]
        entropy = number(files["coverage"].get(key, {}).get("entropy"), ".3f")
        cells = [f"`{key}`", number(results.likeness(key)), *(number(x, ".1f") for x in look)]
        rows.append([*cells, entropy])
    return table("run and steps,likeness,contrast,grain,variety,entropy of classes", rows)


def card(results: Results) -> str:
    """Return what must stand beside the scores: the judge, its rules, the machines."""
    runs, found = [run for run in results.runs.values() if run["scores"]], {}
    for row in [results.files["floor"], *(row for run in runs for row in run["scores"].values())]:
        for key, value in row.get("card", {}).items():
            found.setdefault(key.replace("_", " "), set()).add(value)
    found |= {"weights": {run["parameters"] for run in runs}}
    found |= {"trained on": {run["device"] for run in runs}}
    found |= {"PyTorch": {run["versions"]["torch"] for run in runs}}
    say = lambda value: f"{value:,}" if isinstance(value, int) else value
    return "\n".join(f"- **{key}**: {'; '.join(map(say, sorted(found[key])))}" for key in found)


def methods(results: Results) -> str:
    """Return the table of methods, a run of each, with the slides' ratios to their teacher."""
    rows, published = [], results.files["slides"].get("CIFAR-10", {})
    for name, title in METHODS.items():
        if name not in results.runs:
            continue
        spent, fids = results.spent(name)[1], published.get(title, [])
        cells = [pair([results.score(name, k) for k in (1, 2)])]
        cells += [", ".join(results.told_ratio(name, int(k)) for k in results.runs[name]["scores"])]
        cells += [pair([fid / published["EDM"] for fid in fids])]
        cells += [number(results.score(name, key="copied"), ".3f")]
        rows.append([title, *cells, f"{spent[-1]:.1f}", f"{sum(spent):.1f}"])
    return table("method,distance,x teacher,slides,copied,minutes,in all", rows)


def distances(results: Results, name: str) -> str:
    """Write the distances of a run in one step and two, or of a teacher `name`@`weight`."""
    name, _, weight = name.partition("@")
    if not weight:
        return pair([results.score(name, steps) for steps in (1, 2)])
    return pair([results.guided(name, float(weight)).get("frechet")])


def choices(results: Results) -> str:
    """Return the table of what was chosen, with the distances of this and of another choice."""
    rows = [
        [what, a, distances(results, run), b, distances(results, other)]
        for what, a, run, b, other in CHOICES
    ]
    return table("choice,taken,distance,instead,distance", rows)


def five_minutes(results: Results) -> str:
    """Return the table of unguided students with classes after about five minutes, best first."""
    rows = []
    for name, run in results.runs.items():
        recipe, spent = run["recipe"], minutes_of(run)
        is_plain = recipe["method"] != "teacher" and recipe.get("guidance", 1.0) == 1
        if is_plain and recipe.get("labels") and run["scores"] and 4.9 < spent < 6.1:
            score = run["scores"]["1"]
            seen = [f"{spent:.1f}", f"{run['steps']:,}", recipe["precision"], *judged(score)[:3]]
            told = [f"`{name}`", METHODS.get(name, "–"), distances(results, name)]
            rows.append((score["frechet"], [*told, *seen]))
    head = "run,method,distance,minutes,steps,precision of numbers,precision,recall,copied"
    return table(head, [row for _, row in sorted(rows)])


def slides(results: Results) -> str:
    """Return the table of the slides' FIDs over their teacher's, beside our ratios."""
    published, rows = results.files["slides"], []
    ours = {title: name for name, title in METHODS.items() if name in results.runs}
    for title in ("PD", "CD", "CT"):
        for steps in (1, 2) if published and title in ours else ():
            theirs = [row[title][steps - 1] / row["EDM"] for row in published.values()]
            ratio = results.ratio(ours[title], steps)
            cells = [title, str(steps), *map(number, (*theirs, ratio)), f"`{ours[title]}`"]
            rows.append(cells)
    return table(f"method,NFE,{','.join(published)},ours,run", rows)


def tried(results: Results) -> str:
    """Return the table of what was tried and not kept."""
    said = lambda value: value if isinstance(value, str) else number(value)
    rows = results.files["tried"] or []
    keys = ("what", "one", "two", "beside")
    return table("what,one step,two,beside it", [[said(row[key]) for key in keys] for row in rows])


RIGHT = (5, -2), "left"
LABELS = {  # the words beside the end of a curve, where they are others or stand elsewhere
    "cd-small-guided": ("CD, guided", (5, -4), "left"),
    "direct-small-labels": ("direct", (-4, -9), "right"),
    "direct-small-guided": ("direct, guided", (6, -3), "left"),
    "dmd-small-guided": ("distribution matching", (-5, 0), "right"),
    "boot-small-5min": ("BOOT", (-5, -3), "right"),
    "ect-small-5min": ("ECT", (5, -5), "left"),
    "scd-small-5min": ("sCD", (-5, 1), "right"),
    "sct-small-5min": ("sCT", (5, 1), "left"),
    "best-small": ("CD, no classes", (3, 6), "center"),
}


def draw_curves(curves: list[tuple], ticks: tuple, **settings):
    """Return a figure of `curves`, each (x, y, look, colour, words, their shift, their side)."""
    viz.use_style()
    drawn, axis = viz.plt.subplots(figsize=(4.7, 2.6), layout="constrained")
    for x, y, look, color, words, shift, side in curves:
        axis.loglog(x, y, look, color=color, markersize=4)
        here = {"xytext": shift, "textcoords": "offset points", "ha": side, "fontsize": 7}
        axis.annotate(words, (x[-1], y[-1]), **here)
    axis.set_xticks(ticks, map(str, ticks))
    axis.minorticks_off()
    axis.set_yticks((2, 5, 10, 20, 50, 100, 200), ("2", "5", "10", "20", "50", "100", "200"))
    axis.set(**settings)
    return drawn


def draw_minutes(results: Results):
    """Return the figure of one-step distances against minutes, of each `small` student."""
    level = results.score("teacher-small-labels")
    blue, words = viz.COLORS["teacher"], "teacher, 35 evaluations"
    curves = [((20, 0.9), (level, level), "-", blue, words, (6, 4), "left")]
    for name, title in {**METHODS, "best-small": "CD, no classes"}.items():
        run = results.runs[name]
        if run["recipe"]["method"] == "teacher" or run["recipe"]["network"] != "small":
            continue
        x = [row["seconds"] / 60 for row in run["learning"]] or [minutes_of(run)]
        y = [row["frechet"] for row in run["learning"]] or [results.score(name)]
        color = viz.COLORS["student"] if title.startswith("CD") else "0.45"
        curves.append((x, y, "o-", color, *LABELS.get(name, (title, *RIGHT))))
    title, x = "Fréchet distance in one step", "minutes of a student's training"
    return draw_curves(
        curves, (1, 2, 5, 10, 14), xlim=(0.9, 20), ylim=(8, 250), title=title, xlabel=x
    )


def draw_evaluations(results: Results):
    """Return the figure of distances against network evaluations: teacher, CD and the others."""
    floor, curves = results.files["floor"]["frechet"], []
    curves.append(((50, 1), (floor, floor), "-", viz.COLORS["data"], "new images", (0, 4), "left"))
    blue, orange = viz.COLORS["teacher"], viz.COLORS["student"]
    for name, sampler, *look in (
        ("teacher-small", "heun", "o-", blue, "teacher, Heun", (-4, 5), "left"),
        ("teacher-small", "ddim", "s--", blue, "teacher, DDIM", (0, 5), "left"),
        ("best-small", "consistency", "o-", orange, "CD", *RIGHT),
    ):
        rows = [row for row in results.files["curves"][name] if row["sampler"] == sampler]
        rows = sorted(rows, key=lambda row: row["nfe"], reverse=sampler != "consistency")
        curves.append(([row["nfe"] for row in rows], [row["frechet"] for row in rows], *look))
    for name, marker in zip(
        ("direct-small-labels", "pd-small-5min", "boot-small-5min", "ct-small-5min"), "^PvD"
    ):
        y = [row["frechet"] for row in results.runs[name]["scores"].values()]
        place = ((6, -11), "left") if name == "direct-small-labels" else RIGHT
        curves.append((range(1, 1 + len(y)), y, marker + ":", "0.45", METHODS[name], *place))
    title, x = "Fréchet distance", "network evaluations (NFE)"
    return draw_curves(curves, (1, 2, 4, 10, 20, 50), ylim=(1.7, 700), title=title, xlabel=x)


@torch.no_grad()
def draw_classes(seed: int = 0) -> list:
    """Return two figures of what the student that ships makes of one noise for its ten classes."""
    run, drawn = load_pretrained("cifar10-mini"), []
    noise = torch.randn(1, *run.shape, generator=torch.Generator().manual_seed(seed))
    images = run.sample(noise.expand(10, -1, -1, -1).clone())
    for half in (slice(5), slice(5, 10)):
        whole, axes = viz.plt.subplots(1, 5, figsize=(4.7, 1.15), layout="constrained")
        for axis, image, name in zip(axes, images[half], run.info["class_names"][half]):
            viz.show_images(axis, image[None], name, 1)
        drawn.append(whole)
    return drawn


def draw_noises(folder: Path):
    """Return the figure of eight noises in one step of nine methods, a row of pixels for each."""
    rows = list(METHODS.values())[NOISES]
    pixels = viz.plt.imread(folder / "five_minutes.jpg")
    drawn, axis = viz.plt.subplots(figsize=(5.2, 3.9), layout="constrained")
    axis.imshow(pixels)
    height = len(pixels) / len(rows)
    axis.set_yticks([height * (k + 0.5) for k in range(len(rows))], rows)
    axis.tick_params(length=0)
    axis.set_xticks([])
    axis.spines[:].set_visible(False)
    return drawn


def tables(results: Results) -> str:
    """Return the tables of all numbers, each under its title."""
    parts = {"Quality": quality, "Guided teachers": guidance, "Quality against NFE": against_nfe}
    parts |= {"Equal seconds in several precisions": precisions}
    parts |= {"Samples per second": speeds, "Costs": costs, "The same noises": same_noise}
    parts |= {"Five minutes each": five_minutes}
    parts |= {"The slides' ratios beside ours": slides, "Tried, and not kept": tried}
    parts |= {"The card": card}
    return "\n\n".join(f"## {title}\n\n{make(results)}" for title, make in parts.items())


def fill(text: str, results: Results) -> str:
    """Return the page `text` with each of its marked parts made anew from `results`."""
    makers = {"methods": methods, "choices": choices, "numbers": tables}
    return PART.sub(lambda part: f"{part[1]}{makers[part[2]](results)}\n\n<!-- end -->", text)


def main() -> int:
    """Write the pages and their pictures, or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "cifar10")
    action = parser.add_mutually_exclusive_group(required=True)
    for flag in ("write", "check"):
        action.add_argument(f"--{flag}", action="store_true")
    args = parser.parse_args()
    results, stale = read_results(args.results), False
    for path in (args.results / "README.md", args.results / "numbers.md"):
        text = path.read_text(encoding="utf-8")
        new = fill(text, results)
        stale = stale or new != text
        if args.write:
            path.write_text(new, encoding="utf-8")
    if args.write:
        drawn = [
            draw_minutes(results),
            draw_evaluations(results),
            *draw_classes(),
            draw_noises(args.results),
        ]
        viz.plt.rcParams["savefig.dpi"] = 192
        for figure, name in zip(drawn, PICTURES):
            viz.save_figure(figure, ROOT / "images" / f"cifar10_{name}")
    return int(args.check and stale)


if __name__ == "__main__":
    sys.exit(main())
