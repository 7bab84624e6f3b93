"""Is a training step as fast as in another checkout?  Both are timed in turn, in one sitting.

    git worktree add ../before COMMIT
    python3 benchmarks/against.py ../before                                       # tiny, this CPU
    python3 benchmarks/against.py ../before --network small --device cuda --compiles graphs

One process imports the package there, one here; each builds and compiles an objective once, and
then they are timed one after the other, again and again.  It prints, for each objective, the
milliseconds of a step there and here (medians over the rounds) and their ratio, with its least and
largest value over the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def objectives(args):
    """What makes each objective that is timed, by its name, on a new network."""
    from consistency_edu.consistency import ConsistencyModel
    from consistency_edu.consistency_training import ConsistencyTraining
    from consistency_edu.distillation import ConsistencyDistillation
    from consistency_edu.networks import named_unet
    from consistency_edu.pf_ode import EDMDenoiser, edm_objective, karras_sigmas

    channels = 1 if args.size == 8 else 3
    make = lambda: named_unet(args.network, channels, dropout=args.dropout)
    teacher = lambda: EDMDenoiser(make()).requires_grad_(False).eval()
    student, grid = lambda: ConsistencyModel(make()), karras_sigmas(18)
    return {
        "EDM": lambda: edm_objective(EDMDenoiser(make())),
        "CD": lambda: ConsistencyDistillation(student(), teacher(), grid),
        "CT": lambda: ConsistencyTraining(student(), total_steps=10**6, s0=20, s1=20),
    }


def prepare(args, name):
    """The steps of the objective called `name`, compiled, as an endless generator."""
    import torch

    from consistency_edu import training

    try:
        from consistency_edu.acceleration import speed_up
    except ImportError:  # an older checkout
        speed_up = training.speed_up
    device = torch.device(args.device)
    torch.manual_seed(0)
    objective = objectives(args)[name]().to(device)
    batch = torch.randn(args.batch, 1 if args.size == 8 else 3, args.size, args.size, device=device)
    precision = torch.bfloat16 if device.type == "cuda" else None
    speed_up(objective, (batch, None), precision=precision, compiles=args.compiles)
    generator = torch.Generator(device).manual_seed(0)
    batches = iter(lambda: (batch, None), None)
    states = training.train(objective, batches, steps=10**9, generator=generator)
    for _ in range(5):
        next(states)
    return states


def answer(args):
    """For each name on the input, time its steps, and print their median in seconds."""
    current, states = None, None
    for name in map(str.strip, sys.stdin):
        if name != current:
            current, states = name, None  # which frees the one before
            states = prepare(args, name)
        took, end = [], time.perf_counter() + args.seconds
        while len(took) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            next(states)
            took.append(time.perf_counter() - start)
        print(json.dumps(statistics.median(took)), flush=True)


def child(checkout):
    """A process that imports the package of `checkout`, and answers names with seconds."""
    return subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], "--child"],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        cwd=checkout,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(process, name):
    """The seconds of a step of the objective called `name` in that `process`."""
    print(name, file=process.stdin, flush=True)
    for line in process.stdout:
        if line[:1].isdigit():
            return float(line)
    raise SystemExit(f"{name}: the process of one checkout has ended")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the folder of the other checkout")
    parser.add_argument("--network", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiles", default="nothing")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--only", default="EDM,CD,CT", help="the objectives, in this order")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return answer(args)
    there, here = child(args.other.resolve()), child(HERE)
    for name in args.only.split(","):
        for process in (there, here):
            ask(process, name)  # compiles, and is not counted
        pairs = []
        for k in range(args.rounds):
            order = (there, here) if k % 2 else (here, there)
            found = {process: 1e3 * ask(process, name) for process in order}
            pairs.append((found[there], found[here]))
        ratios = [b / a for a, b in pairs]
        before, after = map(statistics.median, zip(*pairs))
        print(
            f"{args.network}, {args.device}, {name} step: {before:.2f} ms there, {after:.2f} ms "
            f"here, ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
            flush=True,
        )
    for process in (there, here):
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    main()
