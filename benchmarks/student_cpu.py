"""How many images does a student make a second on two CPU cores, and how many a teacher of its size?

    python benchmarks/student_cpu.py                        # the student that comes with the course
    python benchmarks/student_cpu.py --precision float32    # also where bfloat16 has units (AMX)
    python benchmarks/student_cpu.py runs/mine --threads 4 --batches 8 64

One row for each batch size and each layout of memory: pixels channel by channel, or the channels of
a pixel side by side (channels last).  Then the best of them again, beside a walk of 35
evaluations with the same network, as a teacher of its size takes, and their ratio.  "A core" counts the seconds in which a core
worked for this process, so other processes on the machine disturb it less.
"""

import argparse
import platform
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from consistency_edu.images.methods import PRECISIONS, network_in, sigma_grid
from consistency_edu.images.runs import load_run
from consistency_edu.pf_ode import EDMDenoiser, solve_pf_ode
from consistency_edu.sampling import sample_one_step

LAYOUTS = {"channel by channel": torch.contiguous_format, "channels last": torch.channels_last}


def processor():
    """The name of this machine's processor, if it tells."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def speed(sample, noise, seconds):
    """Images a second of `sample`, by the clock and by the busy time of one core."""
    with torch.inference_mode():
        sample(noise)
        clock, busy, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - clock < seconds:
            sample(noise)
            count += len(noise)
        spent = time.process_time() - busy
    return count / (time.perf_counter() - clock), count / spent


def bounds(draw, shape):
    """Billions of operations an image, and of those that a matrix product does in a second."""
    with FlopCounterMode(display=False) as counter:
        draw(torch.randn(1, *shape))
    a, size = torch.randn(1, 2048, 2048), 2 * 2048**3 / 1e9
    return counter.get_total_flops() / 1e9, size * speed(lambda x: x @ x, a, 1.0)[0]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", default="cifar10-mini", help="a name, or a folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 32, 64, 128])
    parser.add_argument("--precision", choices=(*PRECISIONS, "fast"), default="fast")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each row")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = load_run(args.run, precision=args.precision)
    network, recipe = network_in(run.model), run.recipe
    precision = "bfloat16" if getattr(network, "precision", None) else "float32"
    print(
        f"{processor()} ({torch.backends.cpu.get_cpu_capability()}), {args.threads} threads, "
        f"torch {torch.__version__}, {precision}; {recipe.name}, "
        f"{sum(p.numel() for p in network.parameters()):,} weights"
    )
    draw = lambda noise: sample_one_step(run.model, noise, run.labels_in_turn(len(noise)))
    work, product = bounds(draw, run.shape)
    print(
        f"{work:.2f} GFLOP an image; float32 matrix products run at {product:.0f} GFLOP/s, enough "
        f"for {product / work:.0f} images/s"
    )
    rates = {}
    for batch in args.batches:
        for layout in LAYOUTS:
            network.to(memory_format=LAYOUTS[layout])
            noise = torch.randn(batch, *run.shape).contiguous(memory_format=LAYOUTS[layout])
            clock, core = rates[layout, batch] = speed(draw, noise, args.seconds)
            print(f"batch {batch:3}, {layout:18} {clock:6.1f} images/s, {core:5.1f} a core")
    layout, batch = max(rates, key=lambda key: rates[key][0])
    network.to(memory_format=LAYOUTS[layout])
    noise = torch.randn(batch, *run.shape).contiguous(memory_format=LAYOUTS[layout])
    teacher = EDMDenoiser(network, recipe.sigma_data)
    grid = torch.cat([sigma_grid(recipe).flip(0), torch.zeros(1)])
    walk = speed(lambda noise: solve_pf_ode(teacher, noise, grid), noise, args.seconds)[0]
    jump = speed(draw, noise, args.seconds)[0]
    print(
        f"best: batch {batch}, {layout}: {jump:.1f} images/s in one step; a walk of "
        f"{2 * recipe.points - 1} evaluations {walk:.2f} images/s; {jump / walk:.1f} times as fast"
    )


if __name__ == "__main__":
    main()
