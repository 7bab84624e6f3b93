"""Collect what the runs of each recipe took and gave into consistency_edu/images/measured.json.

    python benchmarks/measured.py          # write it
    python benchmarks/measured.py --check  # exit 1 if it is out of date

Of a recipe it keeps one run that was scored, with its card: that with the fewest settings of its own,
then the longest; of digits the medians of three seeds; of a published schedule, which
nobody has run to its end here, the speed of its step.  A run's memory is the peak of its process,
which may have trained others before: memory.json goes before.
"""

import json
import statistics
import sys
from pathlib import Path

import cifar10_tables as tables

from consistency_edu.images.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "consistency_edu" / "images" / "measured.json"
DIGITS = {"device": "a CPU", "gigabytes": None, "run": "results/digits_seed?.json"}
DIGITS |= {"data": "held-out digits", "features": "20 principal components of the training scans"}
STEPS = {"EDM step": "teacher", "CD step, Heun": "cd", "consistency step": "ct"}


def measured_run(folder: Path, run: dict) -> dict:
    """Return what the scored `run` in `folder` gave, as measured.json tells it."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    memory = [json.loads(line).get("gigabytes") or 0 for line in lines]
    alone = tables.read_json(folder.parent / "memory.json").get(tables.recipe_of(run).name)
    is_teacher = run["recipe"]["method"] == "teacher"
    scores = {
        str(tables.nfe_of(run, 1)) if is_teacher else steps: round(row["frechet"], 2)
        for steps, row in run["scores"].items()
    }
    told = next(iter(run["scores"].values()))["card"]
    found = {"minutes": round(tables.minutes_of(run), 1), "device": run["device"]}
    found |= {"gigabytes": alone or max(memory, default=0) or None, "features": told["features"]}
    found |= {"data": told["reference"], "samples": told["samples"], "frechet": scores}
    changes = changes_of(run)
    found |= {"with": tables.options(changes)} if changes else {}
    return found | {"seeds": [run["seed"]], "run": f"results/cifar10/{folder.name}"}


def changes_of(run: dict) -> dict:
    """Return what `run` was given besides its recipe's name, value by option."""
    recipe = tables.recipe_of(run)
    own = recipe.source.removeprefix("cifar10-")
    changes = {"teacher": run["teacher"]} if run.get("teacher", own) != own else {}
    changes |= {"start": run["start"]} if "start" in run else {}
    return changes | tables.changed(run, recipe)


def rank(run: dict) -> tuple:
    """Return what makes a scored `run` the one to tell of: the recipe's settings, length, judge."""
    samples = max(row.get("card", {}).get("samples", 0) for row in run["scores"].values())
    return (
        -len(changes_of(run)),
        round(tables.minutes_of(run), 1),
        samples,
        len(run["scores"]),
        -run["seed"],
    )


def measured_digits(stored: list[dict]) -> dict[str, dict]:
    """Return what the recipes of digits gave: medians over the tables `stored`, a seed each."""
    found, seeds = {}, [table["seed"] for table in stored]
    for row in stored[0]["rows"] if stored else ():
        same = [r for t in stored for r in t["rows"] if r["title"] == row["title"]]
        minutes = statistics.median(r["seconds"] for r in same) / 60
        entry = DIGITS | {"samples": stored[0]["held_out"], "seeds": seeds, "frechet": {}}
        entry = found.setdefault(row["recipe"], entry | {"minutes": round(minutes, 1)})
        entry["frechet"][str(row["nfe"])] = round(statistics.median(r["frechet"] for r in same), 2)
    return found


def measured(results: tables.Results, folder: Path) -> str:
    """Return measured.json: of each recipe the scored run that ranks first."""
    scored = [
        (name, run)
        for name, run in results.runs.items()
        if run["scores"] and run["recipe"]["method"] == RECIPES[run["recipe"]["name"]].method
    ]
    best = {
        tables.recipe_of(run).name: (name, run)
        for name, run in sorted(scored, key=lambda x: rank(x[1]))
    }
    found = {key: measured_run(folder / name, run) for key, (name, run) in sorted(best.items())}
    digits = sorted(folder.parent.glob("digits_seed?.json"))
    found |= measured_digits([tables.read_json(path) for path in digits])
    found |= measured_speeds(ROOT / "benchmarks" / "results")
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def measured_speeds(folder: Path) -> dict[str, dict]:
    """Return the speed and memory of the steps of the published recipes, from the files there."""
    found = {}
    for path in sorted(folder.glob("throughput_*.json")):
        content = tables.read_json(path)
        for row in content["rows"]:
            name, speed = STEPS.get(row["step"]), row["images_per_second"]
            if row["network"] == "edm" and name and speed and not row.get("variant"):
                found[f"cifar10-{name}"] = {
                    "images_per_second": round(speed),
                    "device": content["card"],
                    "gigabytes": round(row["peak_memory_gib"] * 2**30 / 1e9, 1),
                    "run": f"benchmarks/results/{path.name}",
                }
    return found


def main() -> int:
    """Write measured.json, or check it."""
    results = ROOT / "results" / "cifar10"
    text = measured(tables.read_results(results), results)
    if "--check" in sys.argv[1:]:
        return int(FILE.read_text(encoding="utf-8") != text)
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
