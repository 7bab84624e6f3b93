"""Does a digits teacher that computes in bfloat16 end where one in float32 does?

    python3 benchmarks/rounding.py --steps 2000 --seeds 3 --device cuda

Trains the `tiny` U-Net as `digits-teacher` does, seed by seed in both precisions, and judges each
average, in float32, by EDM's loss on digits that it has not seen, always at the same noise.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from consistency_edu.data import load_digits
from consistency_edu.networks import named_unet
from consistency_edu.pf_ode import EDMDenoiser, edm_objective
from consistency_edu.training import set_precision, train

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def end(precision, seed: int, args: argparse.Namespace) -> float:
    """Train with `precision` from `seed`, and return the loss on unseen digits."""
    device = torch.device(args.device)
    digits, unseen = (load_digits(split)[0].to(device) for split in ("train", "test"))
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    network = named_unet("tiny", 1)
    objective = edm_objective(EDMDenoiser(network, 0.54), log_mean=-0.8).to(device)
    set_precision(objective, precision)

    def batches():
        while True:
            rows = torch.randint(len(digits), (args.batch,), generator=generator, device=device)
            yield digits[rows], None

    run = train(objective, batches(), steps=args.steps, lr=4e-3, generator=generator)
    *_, last = run
    model = last.ema.model
    set_precision(model, None)
    with torch.no_grad():
        judge = edm_objective(model, log_mean=-0.8)
        dice = torch.Generator(device).manual_seed(9)
        losses = [judge(unseen, generator=dice).mean() for _ in range(40)]
    return float(torch.stack(losses).mean())


def main() -> None:
    """Train all seeds in both precisions, and say whether the means differ by less than the spread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--only", default=",".join(PRECISIONS))
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "rounding.json"))
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    card = torch.cuda.get_device_name() if args.device != "cpu" else "cpu"
    found = {"card": card, "torch": torch.__version__, **vars(args), "losses": {}}
    for seed in range(args.first, args.first + args.seeds):
        for name in args.only.split(","):
            start = time.perf_counter()
            loss = end(PRECISIONS[name], seed, args)
            found["losses"].setdefault(name, []).append(loss)
            Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
            print(
                f"seed {seed} {name:9} {loss:.5f}  {time.perf_counter() - start:.0f} s", flush=True
            )
    if len(found["losses"]) == 2:
        exact, rounded = (found["losses"][name] for name in PRECISIONS)
        gap = abs(sum(rounded) - sum(exact)) / len(exact)
        spread = max(exact) - min(exact)
        print(f"the means differ by {gap:.5f}, float32's seeds by {spread:.5f}", flush=True)


if __name__ == "__main__":
    main()
