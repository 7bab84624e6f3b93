"""Measure how the finished runs of the CIFAR-10 table sample: what cifar10.py does not.

    python benchmarks/cifar10_sampling.py --data cifar10 --search best-small cd-mini
    python benchmarks/cifar10_sampling.py --names teacher-small boot-small --only structure coverage

Reads the runs under --runs (those of --names only) and writes to --out: structure.json (how far
students' images lie from the teacher's of the same noise, and of another noise), gallery.npz (32
noises through all samplers), texture.json (their contrast, grain and variety), coverage.json (shares
of the classes, by a linear probe on the features), speeds.json (images per second on this card), curves.json (Fréchet distance of --samples samples against evaluations; for the
runs named by --search with time points found by ternary search), in this order; what does not fit
before --until seconds is left out.  What the files there say of other runs stays.  The teacher of the
comparisons is the run teacher-small.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from cifar10 import BATCH, START, Judge, fast, say, write

from consistency_edu.evaluation import as_rgb
from consistency_edu.image_sets import load_images
from consistency_edu.images.methods import evaluations, sigma_grid
from consistency_edu.pf_ode import euler_step, heun_step, karras_sigmas, solve_pf_ode
from consistency_edu.sampling import sample_multistep, search_time_points

HEUN = (2, 3, 5, 9, 18)  # points of the grid: 2 N - 1 evaluations
DDIM = (1, 2, 5, 10, 20, 50)  # evaluations
GALLERY = 32


class Late(Exception):
    """There is no time left."""


def walk(run, noise, sampler, count):
    """Samples of a teacher by "heun" with `count` points, or by "ddim" in `count` steps."""
    recipe, is_heun = run.recipe, sampler == "heun"
    points = count if is_heun else max(count, 2)
    grid = karras_sigmas(points, recipe.sigma_min, recipe.sigma_max).flip(0)
    grid = torch.cat([grid if count > 1 else grid[:1], torch.zeros(1)])
    return solve_pf_ode(run.model, noise, grid, step=heun_step if is_heun else euler_step)


def ways(runs):
    """Name -> function of (noise, generator), for all samplers of the gallery."""
    found = {}
    for name, run in runs.items():
        if run.recipe.method == "teacher":
            found[f"{name}/heun35"] = lambda z, g, run=run: walk(run, z, "heun", 18)
            for count in (50, 10, 1):
                way = f"{name}/ddim{count}"
                found[way] = lambda z, g, run=run, count=count: walk(run, z, "ddim", count)
            continue
        for steps in (1, 2) if run.recipe.method in ("cd", "ct") else (1,):
            found[f"{name}/{steps}"] = lambda z, g, run=run, steps=steps: run.sample(
                z, steps=steps, generator=g
            )
    return found


class Bench:
    """Noise, batches and the end of the time for all measurements."""

    def __init__(self, args, shape):
        self.args, self.shape = args, shape

    def check(self):
        if time.perf_counter() - START > self.args.until:
            raise Late

    def generator(self, seed=0):
        return torch.Generator(self.args.device).manual_seed(seed)

    @torch.no_grad()
    def batches(self, way, count, seed=0):
        """Yield `count` samples of `way`, always from the same noises."""
        self.check()
        rng, size = self.generator(seed), min(BATCH, count)
        for _ in range(count // size):
            noise = torch.randn(size, *self.shape, device=self.args.device, generator=rng)
            yield way(noise, rng)

    def all(self, way, count):
        return torch.cat(list(self.batches(way, count)))


def texture(images):
    """Return contrast, grain and variety of uint8 `images` `[B, C, H, W]`, in grey levels.

    They are the spread of an image's numbers, the mean difference of neighbouring pixels, and the
    root mean square distance of an image from the next one.
    """
    x = images.astype(float)
    apart = np.sqrt(np.square(x - np.roll(x, 1, 0)).mean((1, 2, 3))).mean()
    numbers = x.reshape(len(x), -1).std(1).mean(), np.abs(np.diff(x, axis=3)).mean(), apart
    return dict(zip(("contrast", "grain", "variety"), map(float, numbers)))


def structure(bench, runs, judge):
    """Paired and shuffled distances of students to the teacher; the gallery."""
    found = ways(runs)
    leader = next(n for n in found if n.endswith("/heun35"))
    count = min(1000, bench.args.samples)
    theirs, distances, gallery = bench.all(found[leader], count).float(), {}, {}
    for name, way in found.items():
        ours = bench.all(way, count).float()
        rounded = ((ours[:GALLERY].clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
        gallery[name] = rounded.numpy()
        pair, other = (
            (ours - goal).square().flatten(1).mean(1).sqrt().mean().item()
            for goal in (theirs, theirs.roll(1, 0))
        )
        distances[name] = {"paired": pair, "shuffled": other, "count": count}
    distances["teacher"] = leader
    file = bench.args.out / "gallery.npz"
    before = dict(np.load(file)) if file.exists() else {}
    np.savez_compressed(file, **(before | gallery))
    looks = {name: texture(images) for name, images in (before | gallery).items()}
    write(bench.args.out / "texture.json", {"count": GALLERY, **looks})
    return distances


def coverage(bench, runs, judge):
    """Shares of the ten classes among samples, by a linear probe on the features."""
    sets = {split: load_images(bench.args.data, split) for split in ("train", "test")}
    seen, labels = {}, {}
    for split, images in sets.items():
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:10_000]
        batches = images.images[rows].split(BATCH)
        seen[split], labels[split] = (
            features(judge, batches, bench.args.device),
            images.labels[rows].to(bench.args.device),
        )
    classes = len(sets["train"].classes)
    mean, spread = seen["train"].mean(0), seen["train"].std(0) + 1e-6

    def design(x):
        x = (x - mean) / spread
        return torch.cat([x, torch.ones_like(x[:, :1])], 1).double()

    x, y = design(seen["train"]), torch.nn.functional.one_hot(labels["train"], classes).double()
    ridge = 0.1 * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    probe = torch.linalg.solve(x.T @ x + ridge, x.T @ y)

    def shares(x):
        guess = (design(x) @ probe).argmax(1)
        part = torch.bincount(guess, minlength=classes).double() / len(guess)
        return guess, {"shares": part.tolist(), "entropy": -part.xlogy(part).sum().item()}

    guess, row = shares(seen["test"])
    accuracy = (guess == labels["test"]).double().mean().item()
    rows = {"real": {"accuracy": accuracy, **row}, "classes": list(sets["train"].classes)}
    for name, way in ways(runs).items():
        if "ddim" in name:
            continue
        try:
            batches = bench.batches(way, bench.args.samples)
            rows[name] = shares(features(judge, batches, bench.args.device))[1]
        except Late:
            say("no time for more shares")
            break
        say(name, "shares", [round(s, 3) for s in rows[name]["shares"]])
    return rows


@torch.no_grad()
def features(judge, batches, device):
    return torch.cat([judge.features(as_rgb(b.to(device))).float() for b in batches])


def speeds(bench, runs, judge):
    """Images per second of each sampler, batch 1000, the best of three."""
    rows = []
    for name, way in ways(runs).items():
        if "ddim" in name:
            continue
        run, steps = runs[name.split("/")[0]], name.split("/")[1]
        size, best = min(BATCH, bench.args.samples), 0.0
        repeats = 1 if "heun" in name else 20
        for _ in range(3):
            began = now(bench.args.device)
            for _ in range(repeats):
                for _ in bench.batches(way, size):
                    pass
            best = max(best, repeats * size / (now(bench.args.device) - began))
        nfe = evaluations(run.recipe, int(steps)) if steps.isdigit() else evaluations(run.recipe)
        rows.append({"run": name, "nfe": nfe, "images_per_second": best})
        say(name, f"{best:,.0f} images/s")
    is_gpu = bench.args.device != "cpu"
    device = torch.cuda.get_device_name() if is_gpu else "cpu"
    return {"device": device, "batch": size, "rows": rows}


def now(device):
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def curves(bench, runs, judge):
    """Fréchet distance against evaluations."""
    found = {}
    try:
        for name, run in runs.items():
            rows = found.setdefault(name, [])
            for row in points_of(bench, judge, name, run):
                rows.append(row)
                say(
                    name, row["sampler"], row["nfe"], f"{row['frechet']:.2f}", row.get("levels", "")
                )
    except Late:
        say("no time for more curves")
    return found


def points_of(bench, judge, name, run):
    """Yield the rows of one run's curve."""
    count, method = bench.args.samples, run.recipe.method

    def distance(way, count=count):
        return judge.score(bench.batches(way, count))["frechet"]

    if method == "teacher":
        for sampler, counts in (("heun", HEUN), ("ddim", DDIM)):
            for n in counts:
                value = distance(lambda z, g, s=sampler, n=n: walk(run, z, s, n))
                nfe = 2 * n - 1 if sampler == "heun" else n
                yield {"sampler": sampler, "nfe": nfe, "frechet": value, "samples": count}
    elif method in ("cd", "ct"):
        few = max(count // 2, 8)
        for steps in (1, 2, 3, 4) if name in bench.args.search else ():

            def objective(sigmas):
                return distance(
                    lambda z, g: sample_multistep(run.model, z, sigmas, generator=g), few
                )

            levels = search_time_points(objective, sigma_grid(run.recipe), steps).sigmas
            value = distance(lambda z, g: sample_multistep(run.model, z, levels, generator=g))
            row = {"sampler": "consistency", "nfe": steps, "levels": levels.tolist()}
            yield {**row, "frechet": value, "samples": count}
    else:
        value = distance(lambda z, g: run.sample(z))
        yield {"sampler": method, "nfe": 1, "frechet": value, "samples": count}


MEASURES = {m.__name__: m for m in (structure, coverage, speeds, curves)}


def joined(old, new):
    """`new`, and what `old` says of runs that are not in it."""
    if "rows" not in new:
        return old | new
    rows = {row["run"]: row for content in (old, new) for row in content["rows"]}
    return new | {"rows": list(rows.values())}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("results/cifar10"))
    parser.add_argument("--features", default="efficientnet-lite0")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--search", nargs="*", default=[])
    parser.add_argument("--until", type=float, default=float("inf"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--names", nargs="*", default=[], help="of the runs; all if not given")
    parser.add_argument("--only", nargs="*", choices=MEASURES, default=MEASURES)
    args = parser.parse_args()
    folders = [file.parent for file in args.runs.glob("*/run.json")]
    folders = [folder for folder in folders if not args.names or folder.name in args.names]
    folders.sort(key=lambda folder: (folder.name != "teacher-small", folder.name))
    runs = {folder.name: fast(folder, args.device) for folder in folders}
    judge = Judge(args.features, load_images(args.data, "train"), args.runs, args.device)
    say("runs:", ", ".join(runs))
    bench = Bench(args, next(iter(runs.values())).shape)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        file = args.out / f"{name}.json"
        try:
            found = MEASURES[name](bench, runs, judge)
            write(file, joined(json.loads(file.read_text()), found) if file.exists() else found)
            say(name, "done")
        except Late:
            say("no time for", name)


if __name__ == "__main__":
    main()
