"""Train the runs of the CIFAR-10 table one after another, judge each, and keep its records.

    python benchmarks/cifar10.py --data cifar10 --until 540 \\
        teacher-small=cifar10-teacher-small,minutes=7 \\
        cd-small=cifar10-cd-small,minutes=8,teacher=teacher-small

A job is NAME=RECIPE with changed fields; `teacher` and `start` name earlier jobs (the student's
teacher, and the run whose weights it starts from if not the teacher's), `seed` its seed.  A run
that is finished is only judged (NAME alone will do), one that was cut off (SIGTERM: it writes a
checkpoint) goes on from there.  `--until` are the seconds from now by which all training ends, so
that there is time to judge: a job's minutes are shortened to fit.  Weights stay under --runs (in
half precision too: NAME/half.safetensors); what is committed goes to --out:
NAME/{run.json,scores.json,learning.json,metrics.jsonl,samples.png,card.md}.

Scores: Fréchet distance, precision and recall of --samples samples against the training images, in
the features of --features, and how many of 10,000 lie nearer to a training image, or to its mirror,
than 95 % of the held-out images do; students with 1 and 2 steps, teachers with their own grid.  The
learning
curve has one-step distances, of at most 10,000 samples, at each fifth of a student's run.
`--guidance 1 1.5 2` adds guidance.json for teachers with labels: 10,000 samples with each of these
weights.  `--floor` adds the scores of held-out images.  `--device cpu` is for rehearsals.
"""

import argparse
import dataclasses
import json
import shutil
import time
import traceback
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from consistency_edu.acceleration import compile_networks, set_precision
from consistency_edu.checkpoints import load_weights, weights_of
from consistency_edu.evaluation import (
    copied_share,
    evaluate_images,
    gather,
    random_images,
    reference_of,
    tell_numbers,
)
from consistency_edu.features import load_features
from consistency_edu.guidance import Guided
from consistency_edu.image_sets import load_images
from consistency_edu.images import progress, setup, trainer
from consistency_edu.images.methods import METHODS, override
from consistency_edu.images.progress import read_metrics
from consistency_edu.images.recipes import RECIPES
from consistency_edu.images.runs import load_run
from consistency_edu.images.trainer import train_recipe
from consistency_edu.long_runs import Interrupted

START = time.perf_counter()
KEPT = ("run.json", "metrics.jsonl", "samples.png", "card.md")
BATCH = 1000
KEPT_SAMPLES = 10_000


def say(*words):
    print(f"[{time.perf_counter() - START:6.1f} s]", *words, flush=True)


def job_of(text, data, device):
    """Parse NAME=RECIPE,field=value,...: its name, recipe, and what is not of the recipe."""
    name, _, rest = text.partition("=")
    if not rest:
        return name, None, {}
    base, *words = rest.split(",")
    changes = dict(word.split("=", 1) for word in words)
    extra = {key: changes.pop(key) for key in ("teacher", "start", "seed") if key in changes}
    if device == "cpu":
        changes = {"device": "cpu", "precision": "float32", "compiles": "nothing", **changes}
    return name, override(RECIPES[base], {"data": data, **changes}), extra


def shortened(recipe, until, spent):
    """`recipe` with at most the minutes that are left until `until`, and those `spent` before."""
    left = (until - (time.perf_counter() - START) + spent) / 60
    if not recipe.minutes or recipe.minutes <= left:
        return recipe
    say(f"{recipe.name}: {left:.1f} minutes are left of {recipe.minutes:g}")
    return dataclasses.replace(recipe, minutes=max(left, 0.1))


def late(until):
    """Shorten a run when its clock starts, which is after compiling."""
    first = progress.Progress.__init__

    def start(self, recipe, objective, seconds=0.0, step=0):
        first(self, shortened(recipe, until, seconds), objective, seconds, step)

    progress.Progress.__init__ = start


def keep_the_fifths():
    """Let a run keep its averaged weights, halved, beside the samples that it shows."""
    first = trainer.Trainer.draw

    def draw(self, model, path, title):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name == "samples":
            save_file(halves(weights_of(model)), path.with_suffix(".safetensors"))
        return first(self, model, path, title)

    trainer.Trainer.draw = draw


def train_job(name, recipe, extra, runs):
    """Train, or go on with, one job; return the folder of its run.

    Where CUDA graphs fail, networks are compiled without them.
    """
    if recipe is None:
        return runs / name
    options = {key: runs / extra[key] for key in ("teacher", "start") if key in extra}
    options |= {"seed": int(extra.get("seed", 0)), "resume": True}
    folder = runs / name
    if (folder / "recipe.json").exists():  # begun, perhaps with another way to compile
        begun = json.loads((folder / "recipe.json").read_text())["recipe"]["compiles"]
        recipe = dataclasses.replace(recipe, compiles=begun)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="torch.compile failed, so training")
            return train_recipe(recipe, folder, **options)
    except Interrupted:
        raise
    except Exception as error:
        if recipe.compiles != "graphs":
            raise
        shutil.rmtree(folder, ignore_errors=True)
        say(name, f"no CUDA graphs ({type(error).__name__}: {str(error)[:300]})")
    torch.cuda.empty_cache()
    recipe = dataclasses.replace(recipe, compiles="networks")
    return train_recipe(recipe, folder, **options)


def keep(folder, out):
    """Copy the records of the run in `folder` to `out`, and halve its weights where they are."""
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copy(folder / name, out / name)
    save_file(halves(load_file(folder / "model.safetensors")), folder / "half.safetensors")


def halves(weights):
    """`weights` in half precision."""
    return {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}


def samples_of(run, count, steps, device):
    """Yield `count` samples of `run` in batches, always from the same noise; classes take turns."""
    rng, size = torch.Generator(device).manual_seed(0), min(BATCH, count)
    with torch.no_grad():
        for _ in range(count // size):
            noise = torch.randn(size, *run.shape, device=device, generator=rng)
            yield run.sample(noise, steps=steps, generator=rng)


def fast(folder, device, steps=1):
    """The finished run in `folder`, to be sampled in `steps`; on a GPU in bfloat16 and compiled."""
    run = load_run(folder, device, steps)
    if device != "cpu":
        set_precision(run.model, torch.bfloat16)
        compile_networks(run.model)
    return run


class Judge:
    """Scores of sets of images against the training images, whose moments are cached in `runs`.

    `held` are images `[K, C, H, W]` of the same kind that no run has seen.
    """

    def __init__(self, features, images, runs, device, held=None):
        self.features = load_features(features, device)
        self.size = min(BATCH, len(images))
        self.images, self.held, self.device = images.to(device), held, device
        options = {"cache": runs / "reference", "batch": self.size}
        self.reference = reference_of(self.images, self.features, **options)
        self.clouds = None

    def features_of(self, images):
        """The features of all `images`, a tensor, where the network is."""
        found = gather(self.features, images, batch=self.size, keep=len(images))
        return found.features.to(self.device)

    def copied(self, images):
        """The share of `images` that lie nearer to training images than nearly all new ones do."""
        if self.clouds is None:
            known = [self.images.images, self.images.images.flip(3)]
            self.clouds = torch.cat(list(map(self.features_of, known))), self.features_of(self.held)
        return copied_share(self.features_of(images), *self.clouds)

    def score(self, images, nearest=False):
        """The numbers of `images`, an iterable of batches; `nearest` adds their share of copies."""
        some = []

        def seen():
            for part in images:
                if nearest and sum(map(len, some)) < KEPT_SAMPLES:
                    some.append(part)
                yield part

        row = evaluate_images(seen(), self.reference, self.features, batch=self.size)
        if nearest:
            found = torch.cat(some)[:KEPT_SAMPLES]
            told = (
                f"nearer to a training image or its mirror than 95 % of {len(self.held):,} new ones"
            )
            row["card"] |= {"copied": f"of {len(found):,} samples, {told}; new images: 0.05"}
            row = row | {"copied": self.copied(found)}
        return row


def judge_job(name, judge, folder, args):
    """Score the run in `folder` with all the steps it can take; write and tell that."""
    run, scores = fast(folder, args.device), {}
    method = METHODS[run.recipe.method]
    for steps in method.steps:
        if run.recipe.method == "pd" and steps == 2:  # another network takes them
            run = fast(folder, args.device, steps)
        row = judge.score(samples_of(run, args.samples, steps, args.device), nearest=True)
        scores[str(steps)] = row
        say(name, f"steps {steps}:", tell_numbers(row).splitlines()[0])
    write(args.out / name / "scores.json", scores)
    if method.restarts:
        learning_job(name, judge, run, folder, args)


def guidance_job(name, judge, folder, args):
    """Write the scores of the teacher in `folder`, guided with each of the weights asked for."""
    run, file = fast(folder, args.device), args.out / name / "guidance.json"
    plain, rows = run.model, json.loads(file.read_text()) if file.exists() else []
    for weight in args.guidance:
        run.model = plain if weight == 1 else Guided(plain, weight)
        row = judge.score(samples_of(run, min(args.samples, 10_000), 1, args.device))
        say(name, f"guidance {weight:g}:", tell_numbers(row).splitlines()[0])
        rows.append({"weight": weight, **row})
        write(file, sorted(rows, key=lambda row: row["weight"]))


def learning_job(name, judge, run, folder, args):
    """Write the learning curve: one-step scores of the weights kept at each fifth, and at the end."""
    count = min(args.samples, 10_000)
    rows = {row["step"]: row for row in read_metrics(folder)}
    last = run.info["steps"]
    files = {int(f.stem.split("_")[1]): f for f in (folder / "samples").glob("*.safetensors")}
    curve = []
    for step, file in sorted({**files, last: folder / "model.safetensors"}.items()):
        load_weights(run.model, {k: v.float() for k, v in load_file(file).items()})
        near = min(rows, key=lambda at: abs(at - step))
        seconds = run.info["seconds"] if step == last else rows[near]["seconds"]
        found = judge.score(samples_of(run, count, 1, args.device))["frechet"]
        curve.append({"step": step, "seconds": seconds, "frechet": found})
    say(name, "learned:", ", ".join(f"{r['frechet']:.1f} ({r['seconds']:.0f} s)" for r in curve))
    write(args.out / name / "learning.json", curve)


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
    parser.add_argument("--guidance", type=float, nargs="*", default=())
    parser.add_argument("--floor", action="store_true")
    args = parser.parse_args()
    jobs = [job_of(text, args.data, args.device) for text in args.jobs]  # before any work
    late(args.until)
    keep_the_fifths()
    train, judge = load_images(args.data, "train"), None
    held = load_images(args.data, "test")
    held = random_images(held, min(len(held), 10_000))
    setup.load_images = lambda *_, **__: train  # decoded once for all jobs
    for name, recipe, extra in jobs:
        say("training", name)
        try:
            folder = train_job(name, recipe, extra, args.runs)
            keep(folder, args.out / name)
            judge = judge or Judge(args.features, train, args.runs, args.device, held)
            if not (args.guidance and (args.out / name / "scores.json").exists()):
                judge_job(name, judge, folder, args)
            if args.guidance:
                guidance_job(name, judge, folder, args)
        except Interrupted as stop:
            return say(name, stop)
        except Exception:  # the other jobs need not suffer
            say(name, "failed:")
            traceback.print_exc()
    if args.floor:
        row = judge.score([held[: args.samples]])
        say("held-out images:", tell_numbers(row).splitlines()[0])
        write(args.out / "floor.json", row)


if __name__ == "__main__":
    main()
