"""How many images a second do the training steps and the sampler handle, and how well is the card used?

    python3 benchmarks/throughput.py --minutes 8 --profile          # edm and small, all steps
    python3 benchmarks/throughput.py --network small --compiles graphs
    python3 benchmarks/throughput.py --network small --precision float32,bfloat16,float16
    python3 benchmarks/throughput.py --device cpu --tiny            # a rehearsal, in seconds
    torchrun --nproc_per_node 2 benchmarks/throughput.py --ddp      # two GPUs against one

Model FLOP utilisation (MFU) counts 3 forward passes for a pass with gradients and 1 for one without,
over the bfloat16 matrix product's own speed, measured in the same run.
"""

import argparse
import functools
import gc
import itertools
import json
import math
import os
import sys
import threading
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from consistency_edu.acceleration import compile_networks, set_precision, speed_up
from consistency_edu.consistency import ConsistencyModel
from consistency_edu.consistency_training import ConsistencyTraining
from consistency_edu.data import check_choice
from consistency_edu.distillation import ConsistencyDistillation
from consistency_edu.images.methods import PRECISIONS
from consistency_edu.long_runs import init_distributed
from consistency_edu.networks import named_unet
from consistency_edu.pf_ode import EDMDenoiser, edm_objective, karras_sigmas
from consistency_edu.sampling import sample_one_step
from consistency_edu.training import train

TARGETS = {
    ("edm", "EDM step"): 3700,
    ("edm", "consistency step"): 2700,
    ("edm", "CD step, Heun"): 1800,
    ("edm", "one-step sampling"): 11500,
    ("small", "EDM step"): 12000,
}
STEPS = {
    "edm": "EDM step",
    "cd": "CD step, Heun",
    "sampling": "one-step sampling",
    "consistency": "consistency step",
}
VARIANTS = {"graphs": "CUDA graphs", "stages": "by stages", "nothing": "not compiled"}
PASSES = {  # with gradients, without
    "EDM step": (1, 0),
    "consistency step": (1, 1),
    "CD step, Heun": (1, 3),
    "one-step sampling": (0, 1),
}


class Bench:
    """The device, the sizes, the clock and the rows of one run."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device(args.device)
        self.end = time.perf_counter() + 60 * args.minutes
        self.size = 8 if args.tiny else 32
        self.is_gpu = self.device.type == "cuda"
        self.precision = PRECISIONS[args.precision.split(",")[0]]
        self.rows, self.peak, self.clock = [], float("nan"), {}
        self.card = torch.cuda.get_device_name() if self.is_gpu else "cpu"
        clock_and_power(self)  # the first call is slow

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.end - time.perf_counter()

    def wait(self) -> float:
        """Wait for the device, and return the time."""
        if self.is_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def clear(self) -> None:
        """Free what the last measurement left on the device."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def seconds(self, step: Callable, least: float = 2.0, warm: int = 3) -> float:
        """Return the time of one `step`, over at least `least` seconds, without a wait in between.

        `clock` is then the card's clock in the midst of it.
        """
        for _ in range(warm):
            step()
        start = self.wait()
        for _ in range(2):
            step()
        guess = (self.wait() - start) / 2
        count = max(2, round((0.1 if self.args.tiny else least) / guess))
        look = threading.Timer(0.6 * least, lambda: self.clock.update(clock_and_power(self)))
        look.start()
        start = self.wait()
        for _ in range(count):
            step()
        took = self.wait() - start
        look.cancel()
        return took / count


def clock_and_power(bench: Bench) -> dict:
    """Return the card's clock in MHz, its power in W and its temperature, where they can be read."""
    if not bench.is_gpu:
        return {}
    try:
        return {
            "sm_mhz": torch.cuda.clock_rate(),
            "watts": torch.cuda.power_draw() / 1e3,
            "celsius": torch.cuda.temperature(),
        }
    except Exception:  # no driver library to ask
        return {}


def say(*words) -> None:
    """Print at once."""
    print(*words, flush=True)


def matmul_peak(bench: Bench) -> dict:
    """Return the speed of a bfloat16 matrix product in FLOP/s: P over a second, and in a burst."""
    n = 256 if bench.args.tiny else 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    bench.wait()
    time.sleep(0.0 if bench.args.tiny else 0.5)  # let the card cool
    start = bench.wait()
    for _ in range(10):
        a @ b
    burst = (bench.wait() - start) / 10
    lasting = bench.seconds(lambda: a @ b, least=1.5, warm=5)
    bench.peak = 2 * n**3 / lasting
    return {
        "peak_bf16_flops": bench.peak,
        "burst_bf16_flops": 2 * n**3 / burst,
        **bench.clock,
    }


def forward_flops(name: str, size: int) -> int:
    """Return the FLOPs of one image's way through the U-Net `name`."""
    with torch.device("meta"):
        network, x = named_unet(name), torch.zeros(1, 3, size, size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x, torch.zeros(1))
    return counter.get_total_flops()


def images(bench: Bench):
    """Yield endless batches (images, None) that lie on the device."""
    shape = (bench.args.batch, 3, bench.size, bench.size)
    some = [0.5 * torch.randn(shape, device=bench.device) for _ in range(4)]
    while True:
        for x in some:
            yield x, None


def make_objective(kind: str, network: nn.Module, make: Callable) -> nn.Module:
    """Build the objective of a kind of step around `network`; `make` builds a teacher's network."""
    if kind == "EDM step":
        return edm_objective(EDMDenoiser(network))
    model = ConsistencyModel(network)
    if kind == "consistency step":
        return ConsistencyTraining(model, total_steps=10_000, s0=10, s1=1280, mu0=0.0)
    teacher = EDMDenoiser(make()).requires_grad_(False).eval()
    return ConsistencyDistillation(model, teacher, karras_sigmas(18), decay=0.95)


def measure_step(bench: Bench, name: str, kind: str) -> dict:
    """Measure one kind of training step with the U-Net `name`, through the course's own `train`."""
    torch.manual_seed(0)
    make = lambda: named_unet(name, dropout=0.13)
    objective = make_objective(kind, make(), make)
    awaken(objective)
    objective = objective.to(bench.device)
    batches, start = images(bench), bench.wait()
    is_compiled = speed_up(
        objective, next(batches), precision=bench.precision, compiles=bench.args.compiles
    )
    first_call = bench.wait() - start
    generator = torch.Generator(bench.device).manual_seed(0)
    scaler = torch.amp.GradScaler(bench.device.type, enabled=bench.precision == torch.float16)
    options = {"lr": 1e-4, "generator": generator, "scaler": scaler}
    run = train(objective, batches, steps=10**6, **options)
    losses = [next(run).loss for _ in range(4)]
    say(f"    losses of the first steps: {', '.join(f'{loss:.4f}' for loss in losses)}")
    return finish(bench, (name, kind), lambda: next(run), first_call, is_compiled)


def finish(bench: Bench, what: tuple, step: Callable, first_call: float, is_compiled) -> dict:
    """Time `step`, and profile it if asked to; return the row."""
    row = row_of(bench, *what, bench.args.batch, bench.seconds(step), first_call, is_compiled)
    if bench.args.profile:
        row["profile"] = profile(bench, step)
    return row


def awaken(module: nn.Module) -> None:
    """Fill zero weights, so that nothing is timed on zeros."""
    for p in module.parameters():
        if p.ndim > 1 and not p.any():
            nn.init.normal_(p, std=0.01)


def measure_sampling(bench: Bench, name: str, kind: str) -> dict:
    """Measure one-step sampling with the U-Net `name`."""
    torch.manual_seed(0)
    model = ConsistencyModel(named_unet(name)).requires_grad_(False).eval()
    awaken(model)
    model = model.to(bench.device)
    set_precision(model, bench.precision)
    compiled = compile_networks(model, bench.args.compiles)
    shape = (bench.args.batch, 3, bench.size, bench.size)
    noise, start = torch.randn(shape, device=bench.device), bench.wait()
    step = lambda: sample_one_step(model, noise)
    for _ in range(3 if bench.args.compiles == "graphs" else 1):
        step()
    return finish(bench, (name, kind), step, bench.wait() - start, bool(compiled))


def row_of(bench, name, kind, batch, seconds, first_call, is_compiled) -> dict:
    """Return the numbers of a measurement as a row of the table."""
    with_gradients, without = PASSES[kind]
    flops = (3 * with_gradients + without) * forward_flops(name, bench.size)
    memory = torch.cuda.max_memory_allocated() / 2**30 if bench.is_gpu else float("nan")
    return {
        "network": name,
        "step": kind,
        "batch": batch,
        "images_per_second": batch / seconds,
        "mfu": flops * batch / seconds / bench.peak,
        "step_ms": 1e3 * seconds,
        "peak_memory_gib": memory,
        "compile_seconds": first_call,
        "compile_parts": compile_parts(),
        "is_compiled": is_compiled,
        "target": TARGETS.get((name, kind)),
        **bench.clock,
    }


def compile_parts(top: int = 14) -> dict[str, float]:
    """Return the seconds that the compiler's longest parts took since this was last asked."""
    times = getattr(torch._dynamo.utils, "compilation_time_metrics", {})
    total = {name: round(sum(seconds), 1) for name, seconds in times.items()}
    times.clear()
    return dict(sorted(total.items(), key=lambda item: -item[1])[:top])


KINDS = {  # words in the names of kernels, the first that fits
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "layout": ("nchwtonhwc", "nhwctonchw"),
    "convolution": ("conv", "fprop", "dgrad", "wgrad", "cudnn", "implicit"),
    "matmul": ("gemm", "nvjet", "cublas", "cutlass", "splitk"),
    "reduction": ("triton_red", "triton_per", "reduce_kernel", "triton_split"),
    "pointwise": ("triton_poi", "triton_for"),
    "optimiser": ("multi_tensor", "adam", "lerp"),
    "copies": ("memcpy", "memset", "copy"),
}


def profile(bench: Bench, step: Callable, steps: int = 3, top: int = 28) -> dict:
    """Print and return the ms per step by kind of kernel, and the longest kernels."""
    if not bench.is_gpu:
        return {}
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(steps):
            step()
        bench.wait()
    kinds, kernels = defaultdict(float), []
    for event in record.key_averages():
        ms = event.self_device_time_total / 1e3 / steps
        if ms <= 0:
            continue
        low = event.key.lower()
        kind = next((k for k, words in KINDS.items() if any(w in low for w in words)), "other")
        kinds[kind] += ms
        kernels.append((ms, event.count / steps, kind, event.key[:110]))
    say(
        "    ms per step:",
        ", ".join(f"{k} {v:.2f}" for k, v in sorted(kinds.items(), key=lambda i: -i[1])),
    )
    for ms, count, kind, key in sorted(kernels, reverse=True)[:top]:
        say(f"      {ms:8.3f} ms {count:5.0f} x {kind:11} {key}")
    return dict(kinds)


def report(bench: Bench, row: dict) -> None:
    """Print a row at once, and keep it."""
    bench.rows.append(row)
    target = f" (target {row['target']:,})" if row["target"] else ""
    say(
        f"{row['network']:6} {row.get('variant', ''):14} {row['step']:18} batch {row['batch']:5} "
        f"{row['images_per_second']:9,.0f} images/s{target}  MFU {row['mfu']:.3f}  "
        f"{row['step_ms']:.1f} ms  {row['peak_memory_gib']:.1f} GiB  "
        f"first call {row['compile_seconds']:.0f} s"
        + ("" if row["is_compiled"] else "  NOT COMPILED")
        + (f"  kernels {sum(row['profile'].values()):.1f} ms" if row.get("profile") else "")
        + f"  {bench.clock}"
        + f"  [{bench.left:.0f} s left]"
    )
    save(bench)


def save(bench: Bench) -> None:
    """Write all rows so far to the folder of results."""
    folder = Path(bench.args.out)
    folder.mkdir(parents=True, exist_ok=True)
    card = bench.card.lower().replace(" ", "_").replace("/", "_")
    flags = {"x2": bench.args.ddp, "tiny": bench.args.tiny, bench.args.title: bench.args.title}
    name = "_".join(["throughput", card, *(word for word, is_on in flags.items() if is_on)])
    content = {
        "card": bench.card,
        **bench.product,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if bench.is_gpu else None,
        "command": bench.args.command,
        "cache": "warm" if bench.args.cached else "cold",
        "rows": bench.rows,
    }
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def attempt(bench: Bench, title: str, work: Callable, needs: float = 20) -> None:
    """Do `work` if `needs` seconds are left, and go on whatever happens."""
    if bench.left < needs and not bench.args.tiny:
        say(f"skipped for lack of time ({bench.left:.0f} s left): {title}")
        return
    bench.clear()
    try:
        work()
    except Exception as error:
        say(f"FAILED {title}: {type(error).__name__}: {str(error)[:600]}")
        say(traceback.format_exc())


def run_all(bench: Bench) -> None:
    """Measure everything, in the order of the command line."""
    args = bench.args

    def work(name, kind, precision):
        bench.precision = PRECISIONS[precision]
        measure = measure_sampling if kind == "one-step sampling" else measure_step
        words = VARIANTS.get(args.compiles), precision if precision != "bfloat16" else None
        report(bench, {"variant": ", ".join(filter(None, words))} | measure(bench, name, kind))

    every = (part.split(",") for part in (args.network, args.only, args.precision))
    for name, word, precision in itertools.product(*every):
        title = f"{name}: {STEPS[word]}, {precision}"
        attempt(bench, title, functools.partial(work, name, STEPS[word], precision))


def time_together(bench: Bench, objective: nn.Module, batches, workers) -> tuple[float, float]:
    """Return the seconds of a step of the first worker alone, and of all together."""
    generator = torch.Generator(bench.device).manual_seed(0)
    options = {"steps": 10**6, "lr": 1e-4, "generator": generator}
    alone = math.nan
    workers.maximum([0.0])  # wait for each other
    if workers.rank == 0:
        run = train(objective, batches, **options)
        alone = bench.seconds(lambda: next(run))
    workers.maximum([0.0])
    run = train(objective, batches, workers=workers, **options)
    for _ in range(5):
        next(run)
    count = 4 if bench.args.tiny else 40
    workers.maximum([0.0])
    start = bench.wait()
    for _ in range(count):
        next(run)
    return alone, (bench.wait() - start) / count


def run_ddp(bench: Bench) -> None:
    """Measure the EDM step on one GPU, then on all, with the same batch on each."""
    args, name = bench.args, bench.args.network.split(",")[0]
    with init_distributed(args.device) as workers:
        if bench.is_gpu:
            bench.device = torch.device("cuda", torch.cuda.current_device())
        torch.manual_seed(0)
        objective = edm_objective(EDMDenoiser(named_unet(name, dropout=0.13)))
        awaken(objective)
        objective = objective.to(bench.device)
        batches, start = images(bench), bench.wait()
        options = {"precision": bench.precision, "compiles": args.compiles}
        is_compiled = speed_up(objective, next(batches), **options)
        first_call = bench.wait() - start
        say(f"worker {workers.rank}: first call {first_call:.0f} s, compiled: {is_compiled}")
        alone, together = time_together(bench, objective, batches, workers)
        if workers.rank > 0:
            return
        world = workers.count
        batch = args.batch * world
        row = row_of(bench, name, "EDM step", batch, together, first_call, is_compiled)
        row |= {"mfu": row["mfu"] / world, "step": f"EDM step, {world} GPUs", "target": None}
        row |= {"step_ms_alone": 1e3 * alone, "ratio_to_one": world * alone / together}
        report(bench, row | {"variant": VARIANTS.get(args.compiles, "")})
        say(f"{world} GPUs do {row['ratio_to_one']:.3f} times the work of one")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny network and batch, to rehearse")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="stop starting things after this"
    )
    parser.add_argument("--batch", type=int, default=0, help="images per step (default 512)")
    parser.add_argument(
        "--compiles", default="networks", help="networks, graphs, stages or nothing"
    )
    parser.add_argument("--network", default="edm,small", help="U-Nets; --ddp takes the first")
    parser.add_argument("--only", default=",".join(STEPS), help="the steps, in this order")
    parser.add_argument("--precision", default="bfloat16", help="on a GPU; --ddp takes the first")
    parser.add_argument(
        "--cached", action="store_true", help="note that the compiler's cache is warm"
    )
    parser.add_argument("--title", default="", help="added to the name of the results' file")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    for flag in ("profile", "ddp"):
        parser.add_argument(f"--{flag}", action="store_true")
    args = parser.parse_args()
    args.command = " ".join(sys.argv)
    args.batch = args.batch or (8 if args.tiny else 512)
    if args.device == "cpu":  # most are slow with anything else
        args.precision = "float32"
    for word in args.precision.split(","):
        check_choice("precision", word, PRECISIONS)
    return args


def main() -> None:
    """Run what the command line asks for."""
    args = parse()
    warnings.filterwarnings("ignore", message=".*(TF32|lr_scheduler|Profiler).*")
    if args.tiny:
        import consistency_edu.networks as networks

        tiny = dict(width=8, multipliers=(1, 2), blocks=1, attention=(False, True))
        networks.UNETS.update(edm=tiny, small=tiny)
        args.compiles = "nothing" if args.device == "cpu" else args.compiles
    if args.ddp and args.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    bench = Bench(args)
    say(f"{bench.card}, torch {torch.__version__}, cuda {torch.version.cuda}")
    bench.product = matmul_peak(bench)
    say(
        f"bfloat16 matrix product: {bench.peak / 1e12:.1f} TFLOP/s over a second, "
        f"{bench.product['burst_bf16_flops'] / 1e12:.1f} in a burst {bench.clock}"
    )
    (run_ddp if args.ddp else run_all)(bench)


if __name__ == "__main__":
    main()
