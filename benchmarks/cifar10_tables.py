"""Make the CIFAR-10 tables and pictures from what the runs left in results/cifar10.

    python benchmarks/cifar10_tables.py            # results/cifar10/README.md, images/cifar10_*.png
    python benchmarks/cifar10_tables.py --check    # exit 1 if the README is out of date

No number of ours is typed: each is read from a run's run.json, scores.json, learning.json and
metrics.jsonl, or from floor, curves, speeds, structure, coverage (.json) and gallery.npz beside the
runs.  What is missing is left out of its table, and listed at the end as not run.  The numbers in
SLIDES, IMAGENET_AND_LSUN and BOOT_TABLE are quotations from the slides.
"""

import argparse
import dataclasses
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import to_rgb
from torch import Tensor

from consistency_edu import viz
from consistency_edu.image_methods import NEEDS_TEACHER, Recipe, evaluations
from consistency_edu.image_recipes import RECIPES
from consistency_edu.image_runs import read_metrics, show_images

ROOT = Path(__file__).resolve().parents[1]
TEACHER, SHIPPED = "teacher-small", "cd-mini"
CD = "best-small cd-small-vgg cd-small-huber"  # our CD is the first of them that was scored
PD = "pd-small-1 pd-small"  # the first was scored in one step and in two

HED = "VGG16 (HED) perceptual distance, unweighted"
TITLES = {  # the planned runs, in the order of the tables
    "teacher-small": "teacher (EDM)",
    "best-small": "CD, the longest run",
    "cd-small-huber": "CD, pseudo-Huber",
    "cd-small-vgg": f"CD, {HED}",
    "ct-small": "CT",
    "boot-small": "BOOT",
    "direct-small": "direct distillation",
    "pd-small": "progressive distillation",
    "teacher-mini": "teacher (EDM), `mini`",
    "cd-mini": "CD, `mini`, the student that ships",
}
SHORT = {
    "teacher-small": "teacher",
    "best-small": "CD, longest",
    "cd-small-huber": "CD, Huber",
    "cd-small-vgg": "CD, VGG16 (HED)",
    "ct-small": "CT",
    "boot-small": "BOOT",
    "direct-small": "direct",
    "pd-small": "PD",
    "teacher-mini": "teacher, mini",
    "cd-mini": "CD, mini",
}
METHODS = {"cd": "CD", "ct": "CT", "boot": "BOOT", "teacher": "teacher (EDM)"}
WEIGHTS = {"uniform": "weight 1", "root_gap": "weight 1/√gap"}
FILES = {  # what else is read, and what it is for
    "floor.json": "the distance of held-out images",
    "curves.json": "quality against NFE",
    "speeds.json": "samples per second",
    "structure.json": "the same noise in teacher and student",
    "coverage.json": "shares of the classes",
    "gallery.npz": "the pictures of the same noises",
}
SIDE = 32  # pixels
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()

# slides, table 1: CIFAR-10, FID; the run of ours, and the sampler in curves.json if it is not its own
SLIDES = [
    ("EDM, Heun", 35, 2.04, "teacher-small", "heun"),
    ("DDIM", 50, 4.67, "teacher-small", "ddim"),
    ("DDIM", 20, 6.84, "teacher-small", "ddim"),
    ("DDIM", 10, 8.23, "teacher-small", "ddim"),
    ("knowledge (direct) distillation", 1, 9.36, "direct-small", ""),
    ("PD", 1, 8.34, PD, ""),
    ("PD", 2, 5.58, PD, ""),
    ("CD", 1, 3.55, CD, ""),
    ("CD", 2, 2.93, CD, ""),
    ("CT", 1, 8.70, "ct-small", ""),
    ("CT", 2, 5.83, "ct-small", ""),
]
# slides, table 2: FID, precision, recall on ImageNet 64, LSUN bedroom 256, LSUN cat 256
IMAGENET_AND_LSUN = [
    ("EDM", 79, [(2.44, 0.71, 0.67), (3.57, 0.66, 0.45), (6.69, 0.70, 0.43)], "teacher-small"),
    ("PD", 1, [(15.39, 0.59, 0.62), (16.92, 0.47, 0.27), (29.6, 0.51, 0.25)], PD),
    ("PD", 2, [(8.95, 0.63, 0.65), (8.47, 0.56, 0.39), (15.5, 0.59, 0.36)], PD),
    (
        "CD",
        1,
        [(6.20, 0.68, 0.63), (7.80, 0.66, 0.34), (11.0, 0.65, 0.36)],
        CD,
    ),
    (
        "CD",
        2,
        [(4.70, 0.69, 0.64), (5.22, 0.68, 0.39), (8.84, 0.66, 0.40)],
        CD,
    ),
    ("CT", 1, [(13.0, 0.71, 0.47), (16.0, 0.60, 0.17), (20.7, 0.56, 0.23)], "ct-small"),
    ("CT", 2, [(11.1, 0.69, 0.56), (7.85, 0.68, 0.33), (11.7, 0.63, 0.36)], "ct-small"),
]
# slides, BOOT's table 1: FID and frames per second on FFHQ 64, LSUN 256, ImageNet 64
BOOT_TABLE = [
    ("DDIM", 50, [(7.6, 1.2), (13.5, 0.6), (13.7, 0.6)], "teacher-small", "ddim"),
    ("DDIM", 10, [(18.3, 5.3), (31.0, 3.1), (18.3, 3.3)], "teacher-small", "ddim"),
    ("DDIM", 1, [(225, 54), (308, 31), (237, 34)], "teacher-small", "ddim"),
    ("BOOT", 1, [(9.0, 54), (23.4, 32), (16.3, 34)], "boot-small", ""),
]
PUBLISHED_IMAGES = {"teacher": 200e6, "cd": 410e6, "ct": 410e6, "pd": 410e6}


def read_json(path: Path) -> dict:
    """Return the content of the JSON file `path`; nothing if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@dataclass
class Results:
    """All that lies in a folder of results: `runs` by name, and the files beside them."""

    folder: Path
    runs: dict[str, dict] = field(default_factory=dict)
    floor: dict = field(default_factory=dict)
    curves: dict = field(default_factory=dict)
    speeds: dict = field(default_factory=dict)
    structure: dict = field(default_factory=dict)
    coverage: dict = field(default_factory=dict)
    commands: str = ""
    gallery: dict[str, np.ndarray] = field(default_factory=dict)

    def score(self, name: str, steps: int = 1, key: str = "frechet") -> float | None:
        """Return a score of the run `name` with `steps` steps, or None."""
        return self.runs.get(name, {}).get("scores", {}).get(str(steps), {}).get(key)

    def on_curve(self, name: str, sampler: str, nfe: int) -> dict:
        """Return the row of `name` in curves.json with `sampler` and `nfe`; empty if none."""
        rows = self.curves.get(name, [])
        return next((r for r in rows if (r["sampler"], r["nfe"]) == (sampler, nfe)), {})

    def speed(self, name: str, sampler: str, nfe: int) -> float | None:
        """Return the images per second of `name`, or None."""
        for row in self.speeds.get("rows", []):
            same = (name_of(row["run"]), row["nfe"]) == (name, nfe)
            if same and sampler in ("", sampler_of(row)):
                return row["images_per_second"]
        return None

    def first(self, names: str, steps: int = 1) -> str:
        """Return the first of the blank-separated `names` scored in `steps` steps, or the first."""
        return next((n for n in names.split() if self.score(n, steps)), names.split()[0])

    def job(self, name: str) -> str:
        """Return the words of commands.txt that made the run `name`, as in ct-small=…; or ""."""
        found = re.search(rf"^.*?\s({re.escape(name)}=\S+)", self.commands, re.M)
        return found[1] if found else ""

    def parents(self, name: str) -> dict[str, str]:
        """Return the teacher of the run `name`, and the run from which it started if another."""
        run = self.runs.get(name, {})
        network = run.get("recipe", {}).get("network") or ("mini" if "mini" in name else "small")
        typed = dict(re.findall(r"[,](teacher|start)=([^,\s]+)", self.job(name)))
        told = {key: run[key] for key in ("teacher", "start") if key in run}
        return {"teacher": f"teacher-{network}", **typed, **told}

    def teacher_of(self, name: str) -> str:
        """Return the teacher of the run `name`: its own, or its network's; a teacher is its own."""
        if self.runs.get(name, {}).get("recipe", {}).get("method") == "teacher":
            return name
        return self.parents(name)["teacher"]

    def ratio(self, name: str, value: float | None) -> float | None:
        """Return the distance `value` over that of the teacher of the run `name`, or None."""
        teacher = self.score(self.teacher_of(name))
        return value / teacher if value and teacher else None


def read_results(folder: str | Path = ROOT / "results" / "cifar10") -> Results:
    """Return all results in `folder`, whatever is there."""
    folder = Path(folder)
    found = {f.stem: read_json(f) for f in folder.glob("*.json")}
    kept = {k: found.get(k, {}) for k in ("floor", "curves", "speeds", "structure", "coverage")}
    path = folder / "gallery.npz"
    gallery = dict(np.load(path)) if path.exists() else {}
    path = folder / "commands.txt"
    typed = path.read_text(encoding="utf-8") if path.exists() else ""
    results = Results(folder, commands=typed, gallery=gallery, **kept)
    names = {f.parent.name for f in folder.glob("*/run.json")}
    order = [*TITLES, *sorted(names)]
    for name in sorted(names, key=lambda n: (order.index(twin_of(n)), n)):
        run = read_json(folder / name / "run.json")
        run["scores"] = read_json(folder / name / "scores.json")
        run["learning"] = read_json(folder / name / "learning.json") or []
        run["metrics"] = read_metrics(folder / name)
        results.runs[name] = run
    return results


def twin_of(name: str) -> str:
    """Return the planned run that the run `name` (NAME-1: seed 1) repeats, or `name`."""
    base = re.sub(r"-\d+$", "", name)
    return base if base in TITLES else name


def name_of(key: str) -> str:
    """Return the run's name in a key like "ct-small/1"."""
    return key.split("/")[0]


def way_of(key: str) -> str:
    """Return how the run in a key like "ct-small/1" or "teacher-small/ddim50" samples, in words."""
    way = key.split("/")[1]
    steps = f"{way} step{'s' * (way != '1')}"
    return steps if way.isdigit() else re.sub(r"heun(\d+)", r"\1 NFE", way).replace("ddim", "DDIM ")


def sampler_of(row: dict) -> str:
    """Return the sampler of a `row` of speeds.json: "heun", "ddim", or nothing for a student."""
    way = row.get("sampler") or row["run"].split("/")[-1]
    return next((name for name in ("heun", "ddim") if name in way), "")


def distance_in_words(recipe: dict) -> str:
    """Return what the distance in the loss of `recipe` is called; nothing for a teacher."""
    kind = recipe.get("distance", "") if recipe.get("method") != "teacher" else ""
    if kind == "lpips" and recipe.get("backbone"):
        return HED if "hed" in Path(recipe["backbone"]).name else "VGG16 perceptual distance"
    words = {"pseudo_huber": "pseudo-Huber", "squared_l2": "squared l2", "lpips": "LPIPS"}
    return words.get(kind, "the judge's own features" if kind == "efficientnet" else kind)


def is_cut_short(run: dict) -> bool:
    """Return whether `run` had less than half of its minutes; pictures leave it out."""
    return run.get("seconds", 0) < 30 * run.get("recipe", {}).get("minutes", 0)


def title(results: Results, name: str) -> str:
    """Return what the run `name` is, and a consistency model's distance and weight in its loss.

    The weight is 1/gap if nothing is said.
    """
    recipe = results.runs.get(name, {}).get("recipe", {})
    method = recipe.get("method", "")
    twin = twin_of(name)
    words = TITLES.get(twin) or METHODS.get(method, name)
    words += name.removeprefix(twin).replace("-", ", seed ")
    if method not in ("cd", "ct"):
        return words
    distance, weight = distance_in_words(recipe), recipe.get("weight")
    parts = [words] + [distance] * (distance not in words)
    parts += [WEIGHTS[weight]] if weight in WEIGHTS else []
    run = results.runs[name]
    parts += [f"cut short at {run['seconds']:.0f} s"] if is_cut_short(run) else []
    return ", ".join(parts)


def number(value: float | None, form: str = ".2f") -> str:
    """Write `value`, or a dash if there is none."""
    return "–" if value is None else format(value, form)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def nfe_of(run: dict, steps: int) -> int:
    """Return how many evaluations a sample of `run` in `steps` costs."""
    return evaluations(Recipe(**run["recipe"]), steps)


def images_seen(run: dict) -> float:
    """Return how many images the training of `run` was shown."""
    return run.get("steps", 0) * run["recipe"]["batch"]


def told(results: Results, name: str, steps: int = 1) -> str:
    """Return a run's distance in words, with its ratio to the teacher's, or that it was not run."""
    value = results.score(name, steps)
    if value is None:
        return f"not run: {name}"
    ratio = results.ratio(name, value)
    return f"{value:.2f}" + (f" ({ratio:.2f} x the teacher's)" if ratio and ratio != 1 else "")


# ------------------------------------------------------------------------------------ the tables
def quality(results: Results, names: list[str] | None = None) -> str:
    """Return the table of the quality of all runs, or of those in `names`."""
    head = "run,name,NFE,Fréchet distance,x teacher,precision,recall,samples,training s,images M"
    rows = []
    if results.floor:
        near = [number(results.floor.get(key), ".3f") for key in ("precision", "recall")]
        count = results.floor.get("card", {}).get("samples", 10_000)
        distance = number(results.floor["frechet"], ".2f")
        rows.append(["held-out images", "–", "–", distance, "–", *near, f"{count:,}", "–", "–"])
    for name, run in results.runs.items():
        for steps in run["scores"] if names is None or name in names else ():
            rows.append(quality_row(results, name, int(steps)))
    return table(head.split(","), rows) if rows else "No run has been scored."


def planned(results: Results) -> list[str]:
    """Return the names of the planned runs and of their teachers."""
    return sorted({n for name in TITLES for n in (name, results.teacher_of(name))})


def quality_row(results: Results, name: str, steps: int) -> list[str]:
    """Return the row of the run `name` with `steps` steps in the table of quality."""
    run = results.runs[name]
    value = results.score(name, steps)
    samples = run["scores"][str(steps)].get("card", {}).get("samples")
    return [
        title(results, name),
        f"`{name}`",
        str(nfe_of(run, steps)),
        f"**{number(value)}**",
        number(results.ratio(name, value), ".2f"),
        *(number(results.score(name, steps, key), ".3f") for key in ("precision", "recall")),
        number(samples, ","),
        number(run.get("seconds"), ".0f"),
        number(images_seen(run) / 1e6, ".2f"),
    ]


def brief(results: Results) -> str:
    """Return a narrow table of quality: a row a run, without those that were cut short."""
    head = "run,training s,distance in one step,x teacher,in two,precision,recall"
    rows = []
    for name, run in pictured(results).items():
        if not run["scores"]:
            continue
        nfe, value = nfe_of(run, 1), results.score(name)
        near = [number(results.score(name, 1, key), ".3f") for key in ("precision", "recall")]
        whole = f"**{number(value)}**" + (f" ({nfe} NFE)" if nfe > 1 else "")
        ratio, second = results.ratio(name, value), results.score(name, 2)
        cells = [short(name), f"{run['seconds']:.0f}", whole, number(ratio), number(second), *near]
        rows.append(cells)
    return table(head.split(","), rows) if rows else "No run has been scored."


def card(results: Results) -> str:
    """Return what must stand beside the scores: judge, rules, counts, cards of the GPUs, seeds."""
    cards = [row.get("card", {}) for run in results.runs.values() for row in run["scores"].values()]
    cards = [c for c in [*cards, results.floor.get("card", {})] if c]
    lines = []
    for key, name in (
        ("metric", "distance"),
        ("features", "features, with the checksum of their weights"),
        ("resize", "resize"),
        ("rounding", "rounding"),
        ("reference", "reference"),
        ("reference_images", "images of the reference"),
        ("precision_recall", "precision and recall"),
    ):
        values = sorted({f"{c[key]:,}" if isinstance(c[key], int) else c[key] for c in cards})
        lines += [f"- **{name}**: {'; '.join(values)}"] if values else []
    counts = sorted({c["samples"] for c in cards}, reverse=True)
    lines += [f"- **samples**: {', '.join(f'{n:,}' for n in counts)}"] if counts else []
    runs = results.runs.values()
    weights = {r["recipe"]["network"]: r["parameters"] / 1e6 for r in runs if "parameters" in r}
    words = [f"`{name}` with {millions:.1f} M weights" for name, millions in weights.items()]
    lines += [f"- **networks**: {', '.join(words)}"] if words else []
    for name, values in (
        ("trained on", {run.get("device") for run in runs}),
        ("PyTorch", {run.get("versions", {}).get("torch") for run in runs}),
        ("seeds", {run.get("seed") for run in runs}),
    ):
        known = sorted(str(value) for value in values if value is not None)
        lines += [f"- **{name}**: {', '.join(known)}"] if known else []
    if any("own" in distance_in_words(run.get("recipe", {})) for run in runs):
        lines.append(
            "- **leak**: a loss that looks through the judge's own features is flattered by it "
            "([chapter 15](../../nbs/15_evaluation.ipynb))"
        )
    return "\n".join(lines) or "No run has been scored."


def quality_against_nfe(results: Results) -> str:
    """Return the table of quality against the number of evaluations."""
    rows = []
    for name, curve in results.curves.items():
        for row in sorted(curve, key=lambda r: (r["sampler"], r["nfe"])):
            levels = row.get("levels") or []
            places = ", ".join(f"{level:.3g}" for level in levels) if len(levels) <= 8 else "grid"
            cells = [title(results, name), row["sampler"], str(row["nfe"]), number(row["frechet"])]
            rows.append([*cells, f"{row['samples']:,}", places or "–"])
    head = ["run", "sampler", "NFE", "Fréchet distance", "samples", "noise levels"]
    return table(head, rows) if rows else "Not run."


def ours_beside(
    results: Results, name: str, sampler: str, nfe: int
) -> tuple[float | None, float | None, str]:
    """Return our distance beside a row of the slides, over the teacher's, and what it is of.

    DDIM's has the samples of its curve, and so has the teacher's under it.
    """
    if sampler == "ddim":
        value = results.on_curve(name, sampler, nfe).get("frechet")
        whole = results.on_curve(name, "heun", 35).get("frechet")
        return value, value / whole if value and whole else None, f"`{name}`, DDIM"
    value = results.score(name, 1 if sampler == "heun" else nfe)
    return value, results.ratio(name, value), f"`{name}`"


def counts_in_words(results: Results) -> str:
    """Return what DDIM's rows are of, and over which teachers the other rows are."""
    row = results.on_curve(TEACHER, "heun", 35)
    lines = []
    if row and results.on_curve(TEACHER, "ddim", 50):
        lines.append(
            f"DDIM's rows are of {row['samples']:,} samples, over the teacher's {row['frechet']:.2f} "
            "of as many."
        )
    names = [results.first(names, nfe) for _, nfe, _, names, sampler in SLIDES if not sampler]
    for name in dict.fromkeys(names):
        teacher = results.teacher_of(name)
        if results.score(name) and results.score(teacher) and teacher not in TITLES:
            lines.append(f"`{name}` is over `{teacher}` ({results.score(teacher):.2f}).")
    return " ".join(lines)


def why_none(results: Results, name: str) -> str:
    """Return why there is no number of the run `name`."""
    return "not measured" if name in results.runs else "not run"


def slides_table_1(results: Results) -> str:
    """Return the slides' table 1 for CIFAR-10 beside ours."""
    rows = []
    for method, nfe, fid, names, sampler in SLIDES:
        name = results.first(names, 1 if sampler else nfe)
        value, ratio, what = ours_beside(results, name, sampler, nfe)
        ours = [number(value) if value else why_none(results, name), number(ratio, ".2f"), what]
        rows.append([method, str(nfe), f"{fid:.2f}", f"{fid / SLIDES[0][2]:.2f}", *ours])
    head = "slides' method,NFE,FID,x EDM's,ours: Fréchet distance,x teacher's,run"
    return table(head.split(","), rows)


def slides_table_2(results: Results) -> str:
    """Return the slides' table 2 beside ours: distance over the teacher's, precision, recall."""
    edm = IMAGENET_AND_LSUN[0][2]
    rows = []
    for method, nfe, published, names in IMAGENET_AND_LSUN:
        steps = 1 if method == "EDM" else nfe
        name = results.first(names, steps)
        cells = [f"{f / t[0]:.2f}, {p:.2f}, {r:.2f}" for (f, p, r), t in zip(published, edm)]
        value = results.score(name, steps)
        near = [results.score(name, steps, key) for key in ("precision", "recall")]
        parts = [number(v, ".2f") for v in (results.ratio(name, value), *near)]
        ours = ", ".join(parts) if value else why_none(results, name)
        rows.append([method, str(nfe), *cells, ours, f"`{name}`"])
    head = "method,NFE,ImageNet 64,LSUN bedroom 256,LSUN cat 256,ours: CIFAR-10 (JPEG),run"
    return table(head.split(","), rows)


def slides_speed_table(results: Results) -> str:
    """Return BOOT's table of quality and speed beside ours."""
    rows = []
    for method, nfe, published, name, sampler in BOOT_TABLE:
        cells = [f"{fid:g}, {fps:g}" for fid, fps in published]
        value, _, what = ours_beside(results, name, sampler, nfe)
        ours = number(value) if value else why_none(results, name)
        speed = number(results.speed(name, sampler, nfe), ",.0f")
        rows.append([method, str(nfe), *cells, ours, speed, what])
    head = "method,NFE,FFHQ 64,LSUN 256,ImageNet 64,ours: Fréchet distance,ours: images/s,run"
    return table(head.split(","), rows)


def speed_table(results: Results) -> str:
    """Return the table of samples per second."""
    rows = results.speeds.get("rows", [])
    if not rows:
        return "Not run."
    cells = [
        [title(results, name_of(r["run"])), str(r["nfe"]), f"{r['images_per_second']:,.0f}"]
        for r in rows
    ]
    made = f"On one {results.speeds['device']}, batches of {results.speeds['batch']:,}:"
    return f"{made}\n\n{table(['run', 'NFE', 'images/s'], cells)}"


def structure_table(results: Results) -> str:
    """Return the table of distances from the teacher's image: same noise, another noise."""
    rows = [
        [
            f"{title(results, name_of(key))}, {way_of(key)}",
            f"{row['paired']:.3f}",
            f"{row['shuffled']:.3f}",
        ]
        + [f"{row['paired'] / row['shuffled']:.2f}", f"{row['count']:,}"]
        for key, row in likenesses(results).items()
    ]
    head = ["samples", "same noise", "another noise", "ratio", "images"]
    return table(head, rows) if rows else "Not run."


def likenesses(results: Results) -> dict[str, dict]:
    """Return the rows of structure.json, without that of the teacher against itself."""
    return {key: row for key, row in results.structure.items() if "/" in key and row["paired"]}


def likeness(results: Results, key: str) -> float | None:
    """Return the distance at the same noise over that at another noise, or None."""
    row = likenesses(results).get(key)
    return row["paired"] / row["shuffled"] if row else None


def shares(results: Results) -> dict[str, dict]:
    """Return the rows of coverage.json: of images ("real") and of runs."""
    return {k: row for k, row in results.coverage.items() if k == "real" or "/" in k}


def coverage_table(results: Results) -> str:
    """Return the table of the classes' shares."""
    rows = []
    for key, row in shares(results).items():
        parts = [f"{100 * share:.1f}" for share in row["shares"]]
        is_real = key == "real"
        name = "held-out images" if is_real else f"{title(results, name_of(key))}, {way_of(key)}"
        rows.append([name, *parts, f"{entropy_of(row):.3f}"])
    head = ["samples", *CLASSES, "entropy"]
    return table(head, rows) if rows else "Not run."


def texture(images: np.ndarray) -> dict[str, float]:
    """Return contrast, grain and variety of uint8 `images`, in grey levels.

    They are the spread of an image's numbers, the mean difference of neighbouring pixels, and the
    root mean square distance of an image from the next one in the gallery.
    """
    x = images.astype(np.float64)
    apart = np.sqrt(np.square(x - np.roll(x, 1, 0)).mean((1, 2, 3))).mean()
    contrast = x.reshape(len(x), -1).std(1).mean()
    return {"contrast": contrast, "grain": np.abs(np.diff(x, axis=3)).mean(), "variety": apart}


def texture_table(results: Results) -> str:
    """Return the table of contrast, grain and variety of the gallery's images."""
    rows = [
        [f"{title(results, name_of(key))}, {way_of(key)}"]
        + [f"{value:.1f}" for value in texture(images).values()]
        for key, images in results.gallery.items()
    ]
    count = len(next(iter(results.gallery.values()), []))
    head = [f"{count} images", "contrast", "grain", "variety"]
    return table(head, rows) if rows else "Not run."


def weight_in_words(results: Results, name: str) -> str:
    """Return the weight in the loss of the run `name`, as in "weight 1/gap"."""
    return WEIGHTS.get(results.runs[name]["recipe"]["weight"], "weight 1/gap")


def perceptual_in_words(results: Results) -> str:
    """Return how the run with the perceptual distance did beside that with pseudo-Huber."""
    other, name = "cd-small-huber", "cd-small-vgg"
    values = [results.score(run) for run in (name, other)]
    if not all(values):
        return ""
    text = (
        f"**The perceptual distance.** `{name}` ({weight_in_words(results, name)}) reached "
        f"{values[0]:.2f} where `{other}` ({weight_in_words(results, other)}) reached "
        f"{values[1]:.2f} in the same {results.runs[other]['seconds']:.0f} s."
    )
    pair = ("cd-small-vgg-root", "cd-small-root")
    if all(results.score(run, 2) for run in pair):
        one, two = ([results.score(run, steps) for run in pair] for steps in (1, 2))
        text += (
            f" With one and the same {weight_in_words(results, pair[0])} ({results.runs[pair[0]]['seconds']:.0f} and "
            f"{results.runs[pair[1]]['seconds']:.0f} s) it was {one[0]:.2f} against {one[1]:.2f} in one "
            f"step, and {two[0]:.2f} against {two[1]:.2f} in two."
        )
    seen = [results.gallery.get(key) for key in (f"{name}/1", f"{TEACHER}/heun35")]
    if any(images is None for images in seen):
        return text
    ours, theirs = map(texture, seen)
    return text + (
        f" The images of `{name}` have a contrast of {ours['contrast']:.1f} and a grain of "
        f"{ours['grain']:.1f}, the teacher's {theirs['contrast']:.1f} and {theirs['grain']:.1f}. "
        "Why was not found out. The weights are not LPIPS's, so this says nothing of LPIPS."
    )


def entropy_of(row: dict) -> float:
    """Return the entropy of the shares in `row`, in nats; ln 10 = 2.303 if all are equal."""
    shares = np.array(row["shares"])
    shares = shares[shares > 0] / shares.sum()
    return row.get("entropy", float(-(shares * np.log(shares)).sum()))


def commands_of(results: Results, *names: str) -> list[str]:
    """Return the commands that make the runs `names`, or all, as far as they are there."""
    runs = {name: run for name, run in results.runs.items() if name in (names or results.runs)}
    return [command(results, name) for name in runs]


def all_commands(results: Results) -> str:
    """Return commands.txt, or else a command for each run, as a block of Markdown."""
    lines = results.commands.splitlines() or commands_of(results) or ["# no run is here"]
    return "```sh\n" + "\n".join(lines) + "\n```"


def family(results: Results, name: str) -> list[str]:
    """Return the runs that had to be made for the run `name`, and it, as far as they are there."""
    is_teacher = results.runs.get(name, {}).get("recipe", {}).get("method") == "teacher"
    parents = [] if is_teacher else results.parents(name).values()
    return [n for n in dict.fromkeys([*parents, name]) if n in results.runs]


def cost(results: Results, name: str) -> str:
    """Return what the run `name` cost with its teacher, in a sentence."""
    names = family(results, name)
    if name not in names:
        return f"`{name}` was not run."
    parts = [
        f"`{name}` {minutes_of(run):.1f} minutes ({images_seen(run) / 1e6:.1f} M images)"
        for name, run in ((name, results.runs[name]) for name in names)
    ]
    whole = sum(minutes_of(results.runs[name]) for name in names)
    total = f" = {whole:.1f} minutes" if len(names) > 1 else ""
    return f"{' + '.join(parts)}{total} of one {results.runs[name]['device']}"


def minutes_of(run: dict) -> float:
    """Return the minutes of training of `run`, and of making its cached pairs, if it had some."""
    return (run["seconds"] + run.get("pairs_seconds", 0)) / 60


def costs(results: Results) -> str:
    """Return what the best students and the one that ships cost, as far as they were run."""
    names = [n for n in (results.first(CD), "direct-small", SHIPPED) if n in results.runs]
    found = [cost(results, n) for n in names]
    words = "What it cost, without loading and compiling"
    return f"{words}: {'; '.join(found)}." if found else ""


def cpus_in_words(folder: Path = ROOT / "benchmarks" / "results") -> str:
    """Return how fast the student that ships was on each CPU, from student_cpu.py's outputs."""
    rates, least = {}, 1.0
    for file in folder.glob("student_cpu_*.txt"):
        text = file.read_text(encoding="utf-8")
        found = [float(rate) for rate in re.findall(r" ([\d.]+) images/s, ", text)]
        best, least = max(found), min(least, min(found) / max(found))
        cpu, precision = re.match(r"(.*?) \(.*?, (\w+); cifar10", text).groups()
        cpu = cpu.replace("(R)", "").removesuffix(" Processor")
        rates[f"{cpu} in {precision}"] = best
    if not rates:
        return ""
    order = sorted(rates, key=rates.get, reverse=True)
    told = ", ".join(f"{rates[name]:.0f} ({name})" for name in order)
    return (
        f"Images a second in one step on two virtual CPU cores, with the best batch: {told}; others "
        f"give less, down to {least:.0%} of that. bfloat16 is taken where a processor has units for it. By `python "
        "benchmarks/student_cpu.py`; more in `benchmarks/README.md`."
    )


def command(results: Results, name: str) -> str:
    """Return the command that trains and scores the run `name`, as typed if commands.txt has it.

    Else it is the run's recipe, and what the run changes in it.
    """
    run = results.runs[name]
    recipe = run["recipe"]
    data, job = Path(recipe["data"]).name, results.job(name)
    if line := re.search(
        rf"^(consistency-edu train {recipe['name']} .*?)\s*(#|$)", results.commands, re.M
    ):
        return line[1]
    base = RECIPES.get(recipe["name"])
    known = dataclasses.asdict(base) if base else {}
    free = ("name", "about", "data", "source", "method")
    changed = {k: v for k, v in recipe.items() if k not in free and v != known.get(k)}
    changed |= {k: Path(v).name for k, v in changed.items() if k == "backbone"}
    extra = {"teacher": f"teacher-{recipe['network']}"} if recipe["method"] in NEEDS_TEACHER else {}
    extra |= {"seed": run["seed"]} if run["seed"] else {}
    words = ",".join([recipe["name"], *(f"{k}={v}" for k, v in {**changed, **extra}.items())])
    return f"python3 benchmarks/cifar10.py --data {data} {job or f'{name}={words}'}"


def not_run(results: Results) -> list[str]:
    """Return what was planned and is not there, in sentences."""
    lines = []
    for name in TITLES:
        if name not in results.runs:
            lines.append(f"`{name}` ({title(results, name)}) was not run.")
        elif not results.runs[name]["scores"]:
            lines.append(f"`{name}` ({title(results, name)}) was trained, and not scored.")
    for name, purpose in FILES.items():
        if not (results.folder / name).exists():
            lines.append(f"`{name}` is missing: {purpose} was not measured.")
    if len({run["seed"] for run in results.runs.values()}) < 2:
        lines.append("No run has a second seed: how far a distance scatters is not known.")
    return lines + [
        "A teacher that is told the class, and guidance distilled from it, were not run on CIFAR-10.",
        *(
            f"`{name}`: its samples from the same noises, its classes and its speed were not measured."
            for name in ("direct-small", "pd-small")
            if results.score(name) and f"{name}/1" not in results.structure
        ),
        "The lossless CIFAR-10, Inception's features (FID, Inception score) and LPIPS with its own "
        "weights were not at hand: no number here is an FID, and none is a published one's equal.",
    ]


def seeds_in_words(results: Results) -> str:
    """Return the distances of runs that differ in their seed alone."""
    lines = []
    for name, run in results.runs.items():
        names = [name, *(n for n in results.runs if n != name and twin_of(n) == name)]
        if len(names) < 2:
            continue
        told = [f"`{n}` (seed {results.runs[n]['seed']})" for n in names]
        parts = []
        for steps in run["scores"]:
            values = [number(results.score(n, int(steps))) for n in names]
            parts.append(f"{' and '.join(values)} at {nfe_of(run, int(steps))} NFE")
        lines.append(f"- {' and '.join(told)}: {', '.join(parts)}. {what_differs(results, names)}")
    return "\n".join(["**Another seed.**\n", *lines]) if lines else ""


def what_differs(results: Results, names: list[str]) -> str:
    """Return what is not the same in the runs `names`, besides their seeds."""
    runs = [results.runs[name] for name in names]
    teachers = {results.teacher_of(name) for name in names}
    if runs[0]["recipe"]["method"] == "teacher":
        words = ["First weights, noise and batches differ"]
    elif len(teachers) > 1:
        words = ["Teacher (and so the first weights), noise and batches differ"]
    else:
        words = ["Noise and batches differ; teacher and first weights are the same"]
    words += ["so do the GPUs"] * (len({run["device"] for run in runs}) > 1)
    return f"{', '.join(words)}."


def direct_in_words(results: Results) -> str:
    """Return how direct distillation did beside CD, and what its pairs cost."""
    name, others = "direct-small", ("cd-small-huber", "best-small")
    run = results.runs.get(name, {})
    teachers = [results.teacher_of(n) for n in (name, others[0])]
    if not all(results.score(n) for n in (name, *others, *teachers)):
        return ""
    rivals = [
        f"{results.score(other):.2f} after {results.runs[other]['seconds']:.0f} s (`{other}`)"
        for other in others
    ]
    pairs, told = run["recipe"].get("pairs", 0), [f"{results.score(n):.2f}" for n in teachers]
    kin = f"Their teacher is the same ({told[0]})"
    if teachers[0] != teachers[1]:
        kin = f"Their teachers differ in seed and distance ({' and '.join(told)})"
    took = run.get("pairs_seconds")
    spent = f", which took {took:.0f} s to make" if took else ""
    gpu = {n: results.runs[n].get("device", "a GPU") for n in (name, others[1])}
    also = results.score(others[1], 2)
    text = (
        f"**Direct distillation in minutes.** In one step `{name}` (one run on one {gpu[name]}, "
        f"{run['seconds']:.0f} s of training on {pairs:,} pairs{spent}) reached "
        f"{results.score(name):.2f}; CD (one {gpu[others[1]]}) reached {' and '.join(rivals)}"
        + (f", and {also:.2f} in two steps. {kin}." if also else f". {kin}.")
    )
    if results.score(name) > results.score(others[0]):
        return text
    return (
        f"{text} After days of training the order is the other way round (the slides' table 1). A "
        "possible reason, not tested: each step of direct distillation aims at a finished sample; CD "
        "has to carry it through the grid, from student to student."
    )


def rounding_in_words(results: Results, name: str = "best-small") -> str:
    """Return what 16 bits do to the run `name`, whose curve was measured with rounded weights."""
    row = results.on_curve(name, "consistency", 1)
    learned = results.runs.get(name, {}).get("learning")
    if not row or not learned:
        return ""
    return (
        f"**16 bits.** The weights of `{name}` were kept in 16 bits: rounded so, they draw at "
        f"{row['frechet']:.2f} in one step; unrounded, at the end of its learning curve, they drew "
        f"at {learned[-1]['frechet']:.2f} ({row['samples']:,} samples each)."
    )


def why_different(results: Results) -> str:
    """Return why our ratios are not the published ones."""
    lines = []
    for method, name in (
        ("teacher", TEACHER),
        ("cd", results.first(CD)),
        ("ct", "ct-small"),
    ):
        if name in results.runs:
            run = results.runs[name]
            share = images_seen(run) / PUBLISHED_IMAGES[method]
            lines.append(
                f"`{name}` saw {images_seen(run) / 1e6:.1f} M images in {run['seconds'] / 60:.1f} "
                f"minutes of one GPU, {share:.1%} of the published {PUBLISHED_IMAGES[method] / 1e6:.0f} M"
            )
    weights = {
        f"{run['parameters'] / 1e6:.0f} M" for n, run in results.runs.items() if "small" in n
    }
    size = f" (weights: {', '.join(sorted(weights))} against EDM's 56 M)" if weights else ""
    seen = f": {'; '.join(lines)}" if lines else ""
    return "\n".join(
        [
            f"- **Minutes against days**{seen}. The networks are smaller, too{size}.",
            "- **The data are lossy JPEGs** of CIFAR-10 (quality about 75), not CIFAR-10: both the "
            "training and the reference are softened alike.",
            "- **The judge is another**: Fréchet distance in EfficientNet-Lite0's features, not "
            "Inception's. Distances, and even their ratios, may not be compared across judges "
            "([chapter 15](../../nbs/15_evaluation.ipynb)); orders within a column may.",
            "- **The distance in CD's loss**: LPIPS in the slides; here pseudo-Huber, or the "
            "unweighted features of a VGG16 fine-tuned for edges (HED), as each row says.",
        ]
    )


# ---------------------------------------------------------------------------------- the pictures
MARKERS = dict(zip(TITLES, "o o s D ^ v P X h *".split()))
EXTRA = "1 2 3 4 + x".split()  # markers of the runs that were not planned


def short(name: str) -> str:
    """Return a few words for the run `name`, for legends."""
    twin = twin_of(name)
    return SHORT.get(twin, twin) + name.removeprefix(twin).replace("-", ", seed ")


def role_of(name: str) -> str:
    """Return the role, and so the colour, of the run `name`."""
    return "teacher" if name.startswith("teacher") else "student"


def shade_of(name: str) -> tuple[float, float, float]:
    """Return the colour of the run `name`: its role's, the later in the tables the darker."""
    order = [n for n in TITLES if role_of(n) == role_of(name)]
    twin = twin_of(name)
    place = order.index(twin) / len(order) if twin in order else 0.9
    return tuple((1 - 0.7 * place) * part for part in to_rgb(viz.COLORS[role_of(name)]))


def style_of(name: str) -> dict:
    """Return colour, marker, line and label of the run `name`."""
    extra = EXTRA[sum(map(ord, name)) % len(EXTRA)]
    style = {"color": shade_of(name), "marker": MARKERS.get(name, extra), "markersize": 4}
    lines = {"ct-small": "--", "boot-small": ":", "cd-small-vgg": "-.", "cd-mini": "--"}
    line = lines.get(name, "-" if name in TITLES else ":")
    return {**style, "linestyle": line, "label": short(name)}


def pictured(results: Results) -> dict[str, dict]:
    """Return the runs that the pictures show."""
    return {name: run for name, run in results.runs.items() if not is_cut_short(run)}


def figure_quality(results: Results) -> viz.plt.Figure:
    """Draw quality against NFE: curves where there are some, scores elsewhere."""
    figure, axis = viz.plt.subplots(figsize=(7, 3.6), layout="constrained")
    for name, curve in results.curves.items():
        for sampler in dict.fromkeys(row["sampler"] for row in curve):
            rows = sorted((r for r in curve if r["sampler"] == sampler), key=lambda r: r["nfe"])
            style = style_of(name)
            if role_of(name) == "teacher":
                line = {"heun": "-", "ddim": "--"}.get(sampler, ":")
                words = f"{short(name)}, {sampler}, {rows[0]['samples']:,} samples"
                style |= {"label": words, "linestyle": line}
            axis.plot([r["nfe"] for r in rows], [r["frechet"] for r in rows], **style)
    for name, run in pictured(results).items():  # scores, of more samples
        if not (results.curves.get(name) and role_of(name) == "student") and run["scores"]:
            places = [nfe_of(run, int(steps)) for steps in run["scores"]]
            values = [row["frechet"] for row in run["scores"].values()]
            style = style_of(name) | {"linewidth": 0.8}
            if role_of(name) == "teacher":
                style |= {"fillstyle": "none", "label": f"{short(name)}, as in the table"}
            axis.plot(places, values, **style)
    draw_floor(axis, results)
    axis.set(xscale="log", yscale="log", xlabel="network evaluations (NFE)")
    ticks = [1, 2, 4, 10, 20, 50]
    axis.set_xticks(ticks, ticks)
    axis.set(ylabel="Fréchet distance", title=best_in_words(results))
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_floor(axis: viz.plt.Axes, results: Results) -> None:
    """Draw the distance of held-out images as a grey line."""
    if results.floor:
        axis.axhline(results.floor["frechet"], color=viz.COLORS["data"], linewidth=1)
        axis.text(
            0.99,
            results.floor["frechet"],
            "held-out images",
            color=viz.COLORS["data"],
            transform=axis.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=7,
        )


def best_in_words(results: Results) -> str:
    """Return the title of the figure of quality: the best students in 1 and 2 steps, the teacher."""
    students = [n for n in pictured(results) if role_of(n) == "student" and n in TITLES]
    parts = []
    for steps, word in ((1, "one step"), (2, "two steps")):
        found = {name: results.score(name, steps) for name in students}
        found = {name: value for name, value in found.items() if value}
        if found:
            name = min(found, key=found.get)
            parts.append(f"{word}: {found[name]:.2f} ({short(name)})")
    if results.score(TEACHER):
        nfe = nfe_of(results.runs[TEACHER], 1)
        parts.append(f"{nfe} NFE: {results.score(TEACHER):.2f}")
    has_twins = any(twin_of(name) != name for name in results.runs)
    return "seed 0, " * has_twins + "; ".join(parts)


def figure_learning(results: Results) -> viz.plt.Figure:
    """Draw one-step distances, and losses, against the seconds of training."""
    runs = pictured(results)
    learners = {name: run["learning"] for name, run in runs.items() if run["learning"]}
    lossy = {name: run["metrics"] for name, run in runs.items() if run["metrics"]}
    figure, (left, right) = viz.plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for name, rows in learners.items():
        left.plot([r["seconds"] for r in rows], [r["frechet"] for r in rows], **style_of(name))
    for name, rows in lossy.items():
        style = style_of(name) | {"marker": "", "linewidth": 0.8}
        right.plot([r["seconds"] for r in rows], [r["loss"] for r in rows], **style)
    left.set(yscale="log", xlabel="training seconds", ylabel="Fréchet distance")
    left.set_title("one-step samples")
    right.set(yscale="log", xlabel="training seconds", ylabel="loss")
    right.set_title("losses: not comparable between methods")
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def pixels(images: np.ndarray) -> Tensor:
    """Return uint8 images as numbers in [-1, 1]."""
    return torch.from_numpy(images).float() / 127.5 - 1


def image_axes(
    size: tuple[int, int], places: list[tuple[int, int, int, int]]
) -> tuple[viz.plt.Figure, list[viz.plt.Axes]]:
    """Make a figure of `size` pixels with axes at `places`, each (left, bottom, width, height).

    Images that fill their axes at twice their size stay crisp, and small as files.
    """
    figure = viz.plt.figure(figsize=(size[0] / 96, size[1] / 96), dpi=96)
    parts = [(x / size[0], y / size[1], w / size[0], h / size[1]) for x, y, w, h in places]
    return figure, [figure.add_axes(part) for part in parts]


def figure_rows(rows: list[tuple[str, np.ndarray]], count: int) -> viz.plt.Figure:
    """Draw the first `count` images of each of `rows` (title, images) in a line of its own."""
    label, side = 150, 2 * SIDE
    places = [(label, 68 * k, side * count, side) for k in reversed(range(len(rows)))]
    figure, axes = image_axes((label + side * count, 68 * len(rows) - 4), places)
    for axis, (words, images) in zip(axes, rows):
        show_images(axis, pixels(images[:count]), columns=count)
        axis.set_ylabel(words, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def rows_of(results: Results, keys: list[str]) -> list[tuple[str, np.ndarray]]:
    """Return those of `keys` that the gallery has, as titles and images."""
    return [
        (row_title(results, key), results.gallery[key]) for key in keys if key in results.gallery
    ]


def row_title(results: Results, key: str) -> str:
    """Return the title of a row of images: run and sampler; likeness and distance, if known."""
    name, way = key.split("/")
    nfe = int(way.removeprefix("ddim")) if "ddim" in way else 0
    distance = (
        results.on_curve(name, "ddim", nfe).get("frechet") if nfe else results.score(name, way)
    )
    ratio, words = likeness(results, key), f"{short(name)}, {way_of(key)}"
    numbers = [f"{ratio:.2f}"] if ratio else []
    numbers += [f"distance {distance:.0f}"] if distance else []
    return words + ("\n" + "; ".join(numbers) if numbers else "")


def figure_same_noise(results: Results, count: int = 12) -> viz.plt.Figure:
    """Draw `count` noises through the teacher, CD, CT in 1 and 2 steps, and BOOT."""
    cd = results.first(CD)
    keys = [f"{TEACHER}/heun35", f"{cd}/1", "ct-small/1", "ct-small/2", "boot-small/1"]
    return figure_rows(rows_of(results, keys), count)


def figure_ddim(results: Results, count: int = 12) -> viz.plt.Figure:
    """Draw DDIM with 50, 10 and 1 steps, and one-step students, from `count` noises."""
    keys = [f"{TEACHER}/ddim{nfe}" for nfe in (50, 10, 1)]
    keys += ["boot-small/1", f"{results.first(CD)}/1"]
    return figure_rows(rows_of(results, keys), count)


def figure_classes(results: Results) -> viz.plt.Figure:
    """Draw the shares of the classes: images as grey bars, teacher and students as marks."""
    figure, axis = viz.plt.subplots(figsize=(8.8, 2.8), layout="constrained")
    place = np.arange(len(CLASSES))
    rows = {
        k: r for k, r in shares(results).items() if k == "real" or name_of(k) in pictured(results)
    }
    if "real" in rows:
        bars = {"color": viz.COLORS["data"], "alpha": 0.4, "label": "held-out images"}
        axis.bar(place, rows.pop("real")["shares"], **bars)
    for index, (key, row) in enumerate(rows.items()):
        shift = (index - (len(rows) - 1) / 2) * 0.7 / max(len(rows), 1)
        style = style_of(name_of(key)) | {"linestyle": "none"}
        style["fillstyle"] = "none" if key.endswith("/2") else "full"
        style["label"] = f"{short(name_of(key))}, {way_of(key)} ({entropy_of(row):.3f})"
        axis.plot(place + shift, row["shares"], **style)
    axis.set_xticks(place, CLASSES, fontsize=6.5)
    axis.set(
        ylabel="share", title="shares of the classes by a linear probe (entropy; even is 2.303)"
    )
    axis.legend(fontsize=6, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def figure_pair(results: Results) -> viz.plt.Figure:
    """Draw the gallery's noises through the teacher and through the best one-step student, side by side."""
    name = results.first(CD)
    count = len(results.gallery[f"{name}/1"])
    wide, high = 16 * SIDE, 2 * SIDE * -(-count // 8)
    places = [(x, 0, wide, high) for x in (0, wide + 16)]
    figure, axes = image_axes((2 * wide + 16, high + 24), places)
    named = [("teacher, 35 evaluations", TEACHER, "heun35"), ("student, 1 evaluation", name, "1")]
    for axis, (words, name, how) in zip(axes, named):
        value = results.score(name)
        words += f": Fréchet distance {value:.2f}" if value else ""
        show_images(axis, pixels(results.gallery[f"{name}/{how}"]), words)
    return figure


def has_images(results: Results, *keys: str) -> bool:
    """Return whether the gallery has all `keys`; "CD" stands for our CD student."""
    return all(key.replace("CD", results.first(CD)) in results.gallery for key in keys)


FIGURES = {  # file -> (what draws it, whether it can be drawn, what it shows)
    "quality": (
        figure_quality,
        lambda results: any(results.curves.values()),
        "Quality against the number of network evaluations",
    ),
    "learning": (
        figure_learning,
        lambda results: any(run["metrics"] for run in results.runs.values()),
        "Learning curves: one-step distance, and losses",
    ),
    "same_noise": (
        figure_same_noise,
        lambda results: has_images(results, f"{TEACHER}/heun35"),
        "The same noises (the slides' figure 5): distance from the teacher's image over that from "
        "another noise's; Fréchet distance",
    ),
    "ddim": (
        figure_ddim,
        lambda results: has_images(results, f"{TEACHER}/ddim50"),
        "DDIM with 50, 10 and 1 steps, and one-step students (BOOT's figure 6); numbers as above",
    ),
    "classes": (figure_classes, lambda results: shares(results), "Shares of the classes"),
    "pair": (
        figure_pair,
        lambda results: has_images(results, f"{TEACHER}/heun35", "CD/1"),
        "The teacher and the long CD run in one step, from the same noises",
    ),
}


def drawable(results: Results) -> list[str]:
    """Return the names of the figures for which there are results."""
    return [
        name for name, (_, has_what_it_needs, _) in FIGURES.items() if has_what_it_needs(results)
    ]


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Draw all figures for which there are results into `folder`; return their files."""
    viz.use_style()
    return [
        viz.save_figure(FIGURES[name][0](results), folder / f"cifar10_{name}.png")
        for name in drawable(results)
    ]


# ------------------------------------------------------------------------------------ the README
def picture(results: Results, name: str) -> str:
    """Return the Markdown of the figure `name`; nothing if there is none."""
    words = FIGURES[name][2]
    return f"![{words}](../../images/cifar10_{name}.png)" if name in drawable(results) else ""


def readme(results: Results) -> str:
    """Return the README of the results."""
    parts = [
        "# CIFAR-10 in minutes of one GPU",
        "Written by `python benchmarks/cifar10_tables.py` from the files in this folder; nothing is "
        "typed. The data are CIFAR-10 as lossy JPEGs, the distance is not FID: read *the card* "
        "before any number.",
        "## Quality",
        quality(results),
        "*Fréchet distance*: lower is better, and that of images which no training saw is the floor. "
        "*x teacher*: over the distance of its teacher (of CT, which has none: of `teacher-small`). "
        "*Precision*: how many samples look like images; *recall*: how many images are near a "
        "sample. *Images M*: shown in training, in millions. NFE: network evaluations a sample. Fewer *samples* make a distance "
        "larger. CD and CT: the distance in the loss; its weight is 1/gap unless another is named.",
        direct_in_words(results),
        seeds_in_words(results),
        picture(results, "pair"),
        costs(results),
        "### The card",
        card(results),
        "## Quality against NFE",
        picture(results, "quality"),
        quality_against_nfe(results),
        rounding_in_words(results),
        "## Learning",
        picture(results, "learning"),
        "## The slides' table 1 beside ours",
        slides_table_1(results),
        counts_in_words(results),
        "Inception scores are not here (the judge has no classes).",
        "## The slides' table 2 beside ours",
        "Distance over the teacher's (EDM's on the same data), precision, recall; our teacher has 35 "
        "NFE:",
        slides_table_2(results),
        "### Why the ratios differ",
        why_different(results),
        "## Samples per second",
        "BOOT's table: FID and images per second as the slides print them, and ours:",
        slides_speed_table(results),
        "A dash: the speed was not measured.",
        speed_table(results),
        picture(results, "ddim"),
        "## The same noise",
        "Root mean square distance, over all pixels in [-1, 1], between a student's image and the "
        "teacher's (Heun, 35 NFE) from the same noise, and from another noise:",
        structure_table(results),
        picture(results, "same_noise"),
        "## What the images look like, in numbers",
        "From the same noises, in grey levels (0 to 255). *Contrast*: the spread of the numbers of an "
        "image. *Grain*: how much neighbouring pixels differ. *Variety*: root mean square distance "
        "of an image from that of another noise.",
        texture_table(results),
        perceptual_in_words(results),
        "## Which classes are drawn",
        f"Shares of the classes, in %, by a linear probe on the judge's features{probe(results)}:",
        coverage_table(results),
        picture(results, "classes"),
        "## Commands",
        all_commands(results),
        "The data are a tar of class folders with JPEGs of CIFAR-10 (`--data cifar10` takes the "
        "lossless set from torchvision). A job's minutes may have been shortened so that all fitted "
        "into one sitting: the seconds in the table are those that the run took. The tables and "
        "pictures: `python benchmarks/cifar10_tables.py`.",
        "## What was not run",
        "\n".join(f"- {line}" for line in not_run(results)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def probe(results: Results) -> str:
    """Return how good the linear probe is, in words."""
    accuracy = results.coverage.get("real", {}).get("accuracy")
    return f" (right for {accuracy:.1%} of held-out images)" if accuracy else ""


def main() -> int:
    """Write the README and the pictures, or check the README."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "cifar10")
    parser.add_argument("--images", type=Path, default=ROOT / "images")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    results = read_results(args.results)
    path, text = args.results / "README.md", readme(results)
    if args.check:
        return int(not path.exists() or path.read_text(encoding="utf-8") != text)
    args.results.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    for file in [path, *draw_all(results, args.images)]:
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
