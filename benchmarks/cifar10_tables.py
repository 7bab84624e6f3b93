"""Print the tables of CIFAR-10, as Markdown, from what the runs left in results/cifar10.

    python benchmarks/cifar10_tables.py          # print them
    python benchmarks/cifar10_tables.py --write  # put them between the markers of the README there
    python benchmarks/cifar10_tables.py --check  # exit 1 if that README is out of date

What was not measured is left out, and nothing is judged: what the numbers mean is told elsewhere.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from consistency_edu.images.methods import evaluations
from consistency_edu.images.recipes import Recipe

ROOT = Path(__file__).resolve().parents[1]
MARKERS = ("<!-- tables by cifar10_tables.py -->", "<!-- end of tables -->")
FILES = ("floor", "curves", "speeds", "structure", "texture", "coverage")


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

    def ratio(self, name: str, steps: int = 1) -> float | None:
        """Return a distance over that of the run's teacher (of CT: of teacher-small), or None.

        A guided student is compared with its teacher guided by the same weight.
        """
        run, value = self.runs[name], self.score(name, steps)
        is_teacher = run["recipe"]["method"] == "teacher"
        source, weight = run.get("teacher", "teacher-small"), run["recipe"].get("guidance", 1.0)
        teacher = self.score(name if is_teacher else source)
        if weight != 1:
            guided = self.runs.get(source, {}).get("guidance", [])
            teacher = next((row["frechet"] for row in guided if row["weight"] == weight), None)
        return value / teacher if value and teacher else None

    def on_curve(self, name: str, sampler: str, nfe: int) -> dict:
        """Return the row of `name` in curves.json with `sampler` and `nfe`; empty if none."""
        rows = self.files["curves"].get(name, [])
        return next((r for r in rows if (r["sampler"], r["nfe"]) == (sampler, nfe)), {})

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
    found = {
        name: runs[name] | {"scores": scores[name], "guidance": guided[name]} for name in order
    }
    return Results(found, {name: read_json(folder / f"{name}.json") for name in FILES})


def number(value: float | None, form: str = ".2f") -> str:
    """Write `value`, or a dash if there is none."""
    return "–" if value is None else format(value, form)


def table(head: str, rows: list[list[str]]) -> str:
    """Return a Markdown table whose comma-separated titles are `head`."""
    titles = head.split(",")
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *rows])


def nfe_of(run: dict, steps: int) -> int:
    """Return how many evaluations a sample of `run` in `steps` costs."""
    return evaluations(Recipe(**run["recipe"]), steps)


def minutes_of(run: dict) -> float:
    """Return the minutes of training of `run`, and of making its pairs if it had some."""
    return (run["seconds"] + run.get("pairs_seconds", 0)) / 60


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
            rows.append([*cells, number(results.ratio(name, int(steps))), *judged(row), *told])
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
        plain = run["scores"].get("1") if run["guidance"] else None
        curve = [{"weight": 1.0, **plain}] if plain else []
        for row in [*curve, *run["guidance"]]:
            told = [f"{row['weight']:g}", f"{row['frechet']:.2f}"]
            rows.append([f"`{name}`", *told, *(x for i, x in enumerate(judged(row)) if i != 2)])
    return table("run,weight,Fréchet distance,precision,recall,samples", rows)


def speeds(results: Results) -> str:
    """Return the table of samples per second."""
    rows = [
        [f"`{row['run']}`", str(row["nfe"]), f"{row['images_per_second']:,.0f}"]
        for row in results.files["speeds"].get("rows", [])
    ]
    return table("run and steps,NFE,images/s", rows)


def costs(results: Results) -> str:
    """Return the table of what each run cost, with the runs that it was made from."""
    rows = []
    for name, run in results.runs.items():
        parents = [run[key] for key in ("teacher", "start") if run.get(key) in results.runs]
        minutes = [minutes_of(results.runs[made]) for made in (*parents, name)]
        told = " + ".join(f"`{made}` {spent:.1f}" for made, spent in zip(parents, minutes)) or "–"
        rows.append([f"`{name}`", told, f"{minutes[-1]:.1f}", f"{sum(minutes):.1f}", run["device"]])
    return table("run,made from (minutes),own minutes,together,on one", rows)


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


def tables(results: Results) -> str:
    """Return all tables, each under its title."""
    parts = {"Quality": quality, "Guided teachers": guidance, "Quality against NFE": against_nfe}
    parts |= {"Samples per second": speeds}
    parts |= {"Costs": costs, "The same noises": same_noise, "The card": card}
    return "\n\n".join(f"## {title}\n\n{make(results)}" for title, make in parts.items())


def readme(text: str, results: Results) -> str:
    """Return the README `text` with the tables of `results` between its markers."""
    before, rest = text.split(MARKERS[0])
    return f"{before}{MARKERS[0]}\n\n{tables(results)}\n\n{MARKERS[1]}{rest.split(MARKERS[1])[1]}"


def main() -> int:
    """Print the tables, write them, or check what is written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "cifar10")
    for flag in ("write", "check"):
        parser.add_argument(f"--{flag}", action="store_true")
    args = parser.parse_args()
    results, path = read_results(args.results), args.results / "README.md"
    if not (args.write or args.check):
        print(tables(results))
        return 0
    text = path.read_text(encoding="utf-8")
    if args.write:
        path.write_text(readme(text, results), encoding="utf-8")
    return int(args.check and readme(text, results) != text)


if __name__ == "__main__":
    sys.exit(main())
