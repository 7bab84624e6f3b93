"""Measure what a clamp between the two jumps of a student changes: results/clamping.json.

    # half an hour of one core
    OMP_NUM_THREADS=1 python benchmarks/clamping.py --data cifar10 --samples 800 --references 8000

From the same noises the student jumps twice, once as in the paper and once with its answers kept
between -1 and 1.  For each seed of noise: the share of numbers beyond ±1 after the first jump, how
far the final images are apart (root mean square, both cut off at ±1 as pictures are), and as a
yardstick how far another noise in the second jump moves them; with --data also both Fréchet
distances, in the features of EfficientNet-Lite0, to --references random training images.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

from consistency_edu.editing import add_noise
from consistency_edu.evaluation import Moments, frechet_of_moments
from consistency_edu.features import load_features
from consistency_edu.files import write_json
from consistency_edu.image_sets import load_images, to_pixels
from consistency_edu.images.runs import load_pretrained
from consistency_edu.sampling import Clamped, sample_one_step


def second_jump(model, first, level, seed, labels=None):
    """Noise the answers `first` of `labels` to `level`, and jump again."""
    noisy = add_noise(first, level, model.sigma_min, torch.Generator().manual_seed(seed))
    return model(noisy, torch.full((len(first),), level, device=first.device), labels)


def batches(run, seed, count, size):
    """Yield what `run` makes of `count` noises: first answers, and both second ones, and another."""
    level, rng = run.recipe.middle, torch.Generator().manual_seed(seed)
    for number in range(count // size):
        fresh, device = 10_000 * seed + number, next(run.model.parameters()).device
        noise = torch.randn(size, *run.shape, generator=rng).to(device)
        labels = run.labels_in_turn(size, device)
        first = sample_one_step(run.model, noise, labels)
        free = second_jump(run.model, first, level, fresh, labels)
        cut = second_jump(Clamped(run.model), first.clamp(-1, 1), level, fresh, labels)
        yield first, free.clamp(-1, 1), cut, (number, fresh)


def square(a, b):
    """The mean square of the difference."""
    return float((a - b).square().mean())


def features_of(network, pixels):
    """The features of `pixels`, in parts of 10: on a CPU larger ones take longer an image."""
    parts = pixels.split(10 if pixels.device.type == "cpu" else len(pixels))
    return torch.cat([network(part) for part in parts])


@torch.no_grad()
def measure(run, seed, args, network, whole):
    """The numbers of one seed of noise; moments of features go to `whole`, too."""
    seen = {"free": Moments(), "clamped": Moments()}
    sums, count = {"beyond": 0.0, "apart": 0.0}, args.samples // args.batch
    for first, free, cut, (number, fresh) in batches(run, seed, args.samples, args.batch):
        sums["beyond"] += float((first.abs() > 1).double().mean()) / count
        sums["apart"] += square(free, cut) / count
        if number == 0:  # the yardstick, from one batch
            labels = run.labels_in_turn(len(first), first.device)
            other = second_jump(run.model, first, run.recipe.middle, fresh + 5_000, labels)
            other_noise = square(free, other.clamp(-1, 1)) ** 0.5
        for name, images in (("free", free), ("clamped", cut)) if network else ():
            features = features_of(network, to_pixels(images))
            seen[name].add(features)
            whole[name].add(features)
    apart = sums["apart"] ** 0.5
    row = {"seed": seed, "beyond_after_first": sums["beyond"], "rms": apart}
    return {**row, "rms_other_noise": other_noise}, seen


@torch.no_grad()
def reference_of(args, network):
    """Moments of the features of random training images."""
    images = load_images(args.data).images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    moments = Moments()
    for rows in order[: args.references].split(args.batch):
        moments.add(features_of(network, images[rows].to(args.device)))
    return moments


def machine(device):
    """The name of the GPU, or of this machine's processor and its threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in lines.splitlines() if "model name" in line]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} thread"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="cifar10-mini")
    parser.add_argument("--data", default="", help="images to compare with; none: no distances")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=2000, help="for each seed")
    parser.add_argument("--references", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results/clamping.json"))
    args, start = parser.parse_args(), time.perf_counter()
    run = load_pretrained(args.student, args.device, "float32")
    network = load_features("efficientnet-lite0", args.device) if args.data else None
    data = ["--data", Path(args.data).name] if args.data else []
    places = ("--data", args.data, "--out", str(args.out))
    given = [word for word in sys.argv[1:] if word not in places]
    numbers = {
        "command": " ".join(["python benchmarks/clamping.py", *data, *given]),
        "machine": machine(args.device),
        "student": args.student,
        "levels": [run.recipe.sigma_max, run.recipe.middle],
        "samples": args.samples,
        "seeds": [],
    }
    whole, clouds = {"free": Moments(), "clamped": Moments()}, []
    for seed in args.seeds:
        row, seen = measure(run, seed, args, network, whole)
        numbers["seeds"].append(row)
        clouds.append(seen)
        write_json(args.out, numbers)
        print(json.dumps(row), f"{time.perf_counter() - start:.0f} s", flush=True)
    if network:
        reference = reference_of(args, network)
        numbers["references"] = reference.count
        numbers["features"] = "EfficientNet-Lite0"
        for row, seen in zip(numbers["seeds"], clouds):
            row["frechet"] = {k: frechet_of_moments(v, reference) for k, v in seen.items()}
        numbers["frechet_all"] = {k: frechet_of_moments(v, reference) for k, v in whole.items()}
        write_json(args.out, numbers)
        print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
