"""Is a training step as fast as in another checkout?  Both are timed in turn, in one run.

    git worktree add ../before COMMIT
    python3 benchmarks/against.py ../before                                       # tiny, this CPU
    python3 benchmarks/against.py ../before --network small --device cuda --compiles graphs

It prints, for each objective, the milliseconds of a step there and here (medians over the rounds)
and their ratio, with its least and largest value over the rounds.
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


def objectives(network, image, dropout):
    """The objectives that are timed, by name, each on a new network."""
    from consistency_edu.consistency import ConsistencyModel
    from consistency_edu.consistency_training import ConsistencyTraining
    from consistency_edu.distillation import ConsistencyDistillation
    from consistency_edu.networks import named_unet
    from consistency_edu.pf_ode import EDMDenoiser, edm_objective, karras_sigmas

    make = lambda: named_unet(network, image[0], dropout=dropout)
    teacher = EDMDenoiser(make()).requires_grad_(False).eval()
    yield "EDM step", edm_objective(EDMDenoiser(make()))
    yield "CD step", ConsistencyDistillation(ConsistencyModel(make()), teacher, karras_sigmas(18))
    yield "CT step", ConsistencyTraining(ConsistencyModel(make()), total_steps=10**6, s0=20, s1=20)


def time_steps(args):
    """Print the median seconds of a training step of each objective, as JSON."""
    import torch

    from consistency_edu.training import speed_up, train

    device, seconds = torch.device(args.device), {}
    image = (1, 8, 8) if args.size == 8 else (3, args.size, args.size)
    torch.manual_seed(0)
    batch = torch.randn(args.batch, *image, device=device), None
    precision = torch.bfloat16 if device.type == "cuda" else None
    for name, objective in objectives(args.network, image, args.dropout):
        objective = objective.to(device)
        speed_up(objective, batch, precision=precision, compiles=args.compiles)
        generator, took = torch.Generator(device).manual_seed(0), []
        states = train(objective, iter(lambda: batch, None), steps=10**6, generator=generator)
        end = time.perf_counter() + args.seconds
        while len(took) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            next(states)
            took.append(time.perf_counter() - start)
        seconds[name] = statistics.median(took[2:])
    print(json.dumps(seconds))


def child(checkout, arguments):
    """The seconds of a step in a process that imports the package of `checkout`."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, __file__, *arguments, "--child"]
    done = subprocess.run(
        command, env=environment, cwd=checkout, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the folder of the other checkout")
    parser.add_argument("--network", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiles", default="nothing")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return time_steps(args)
    pairs = []
    for k in range(args.rounds):
        order = [args.other.resolve(), HERE] if k % 2 else [HERE, args.other.resolve()]
        found = {checkout: child(checkout, sys.argv[1:]) for checkout in order}
        pairs.append((found[args.other.resolve()], found[HERE]))
    for name in pairs[0][0]:
        there, here = ([1e3 * row[name] for row in rows] for rows in zip(*pairs))
        ratios = [b / a for a, b in zip(there, here)]
        print(
            f"{args.network}, {args.device}, {name}: {statistics.median(there):.2f} ms there, "
            f"{statistics.median(here):.2f} ms here, ratio {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
