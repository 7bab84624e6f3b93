"""Train the runs of the CIFAR-10 table one after another, judge each, and keep its records.

    python benchmarks/cifar10.py --data cifar10 --until 540 \\
        teacher-small=cifar10-teacher-small,minutes=7 \\
        cd-small=cifar10-cd-small,minutes=8,teacher=teacher-small

A job is NAME=RECIPE with changed fields; `teacher` and `start` name earlier jobs (the student's
teacher, and the run whose weights it starts from if not the teacher's), `seed` its seed.  A run
that is finished is only judged, one that was cut off goes on from its checkpoint.  `--until` are
the seconds from now by which all training ends, so that there is time to judge: a job's minutes are
shortened to fit.  Weights stay under --runs (in half precision too: NAME/half.safetensors); what is
committed goes to --out: NAME/{run.json,scores.json,metrics.jsonl,samples.png,card.md}.

Scores: Fréchet distance, precision and recall of --samples samples against the training images, in
the features of --features; students with 1 and 2 steps, teachers with their own grid.  `--floor`
adds those of held-out images.  `--device cpu` is for rehearsals.
"""

import argparse
import dataclasses
import json
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from consistency_edu import image_runs
from consistency_edu.data import load_images
from consistency_edu.evaluation import (
    evaluate_images,
    load_features,
    random_images,
    reference_of,
    tell_numbers,
)
from consistency_edu.image_methods import override
from consistency_edu.image_recipes import RECIPES
from consistency_edu.training import compile_networks, set_precision

START = time.perf_counter()
KEPT = ("run.json", "recipe.json", "metrics.jsonl", "samples.png", "card.md")
BATCH = 1000


def say(*words):
    print(f"[{time.perf_counter() - START:6.1f} s]", *words, flush=True)


def job_of(text, data, device):
    """Parse NAME=RECIPE,field=value,...: its name, recipe, and what is not of the recipe."""
    name, _, rest = text.partition("=")
    base, *words = rest.split(",")
    changes = dict(word.split("=", 1) for word in words)
    extra = {key: changes.pop(key) for key in ("teacher", "start", "seed") if key in changes}
    if device == "cpu":
        changes = {"device": "cpu", "precision": "float32", "compiles": "nothing", **changes}
    return name, override(RECIPES[base], {"data": data, **changes}), extra


def shortened(recipe, until):
    """`recipe` with at most the minutes that are left until `until`."""
    left = (until - (time.perf_counter() - START)) / 60
    if not recipe.minutes or recipe.minutes <= left:
        return recipe
    say(f"{recipe.name}: {left:.1f} minutes are left of {recipe.minutes:g}")
    return dataclasses.replace(recipe, minutes=max(left, 0.1))


def late(until):
    """Pace that shortens a run when its clock starts, which is after compiling."""
    first = image_runs.Pace.__init__

    def start(self, recipe, *args, **options):
        first(self, shortened(recipe, until), *args, **options)

    image_runs.Pace.__init__ = start


def train_job(name, recipe, extra, runs):
    """Train, or go on with, one job; return the folder of its run."""
    folders = {key: runs / extra[key] for key in ("teacher", "start") if key in extra}
    seed = int(extra.get("seed", 0))
    return image_runs.train_recipe(recipe, runs / name, seed=seed, resume=True, **folders)


def keep(folder, out):
    """Copy the records of the run in `folder` to `out`, and halve its weights where they are."""
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copy(folder / name, out / name)
    weights = load_file(folder / "model.safetensors")
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    save_file(half, folder / "half.safetensors")


def samples_of(run, count, steps, device):
    """Yield `count` samples of `run` in batches, always from the same noise."""
    dice, size = torch.Generator(device).manual_seed(0), min(BATCH, count)
    with torch.no_grad():
        for _ in range(count // size):
            noise = torch.randn(size, *run.shape, device=device, generator=dice)
            yield run.sample(noise, steps=steps, generator=dice)


def fast(folder, device):
    """The finished run in `folder`; on a GPU in bfloat16 and compiled."""
    run = image_runs.load_run(folder, device)
    if device != "cpu":
        set_precision(run.model, torch.bfloat16)
        compile_networks(run.model)
    return run


class Judge:
    """Scores of sets of images against the training images, whose moments are cached in `runs`."""

    def __init__(self, features, images, runs, device):
        self.features = load_features(features, device)
        size = min(BATCH, len(images))
        images = images.to(device)
        self.reference = reference_of(images, self.features, cache=runs / "reference", batch=size)
        self.size = size

    def score(self, images):
        return evaluate_images(images, self.reference, self.features, batch=self.size)


def judge_job(name, judge, run, args):
    """Score a run with all the steps it can take; write and tell them."""
    scores = {}
    for steps in (1, 2) if run.recipe.method in ("cd", "ct") else (1,):
        row = judge.score(samples_of(run, args.samples, steps, args.device))
        scores[str(steps)] = row
        say(name, f"steps {steps}:", tell_numbers(row).splitlines()[0])
    write(args.out / name / "scores.json", scores)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("jobs", nargs="+", metavar="NAME=RECIPE[,field=value...]")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("results/cifar10"))
    parser.add_argument("--features", default="efficientnet-lite0")
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--until", type=float, default=float("inf"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--floor", action="store_true")
    args = parser.parse_args()
    jobs = [job_of(text, args.data, args.device) for text in args.jobs]  # before any work
    late(args.until)
    train, judge = load_images(args.data, "train"), None
    image_runs.load_images = lambda *_, **__: train  # decoded once for all jobs
    for name, recipe, extra in jobs:
        say("training", name)
        folder = train_job(name, recipe, extra, args.runs)
        keep(folder, args.out / name)
        judge = judge or Judge(args.features, train, args.runs, args.device)
        judge_job(name, judge, fast(folder, args.device), args)
    if args.floor:
        held_out = random_images(load_images(args.data, "test"), min(args.samples, 10_000))
        row = judge.score(held_out)
        say("held-out images:", tell_numbers(row).splitlines()[0])
        write(args.out / "floor.json", row)


if __name__ == "__main__":
    main()
