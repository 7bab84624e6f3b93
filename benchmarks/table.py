"""Put the tables of `results/*.json` into this folder's README, between its markers.

python3 benchmarks/table.py            # and `--check` says whether they are up to date
"""

import json
import math
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
HEAD = (
    "| network, step | batch | images/s | target | MFU | ms a step | of these kernels | memory, GiB | "
    "first call, s | MHz | P, TFLOP/s |\n|---|---|---|---|---|---|---|---|---|---|---|"
)
KINDS = ("convolution", "matmul", "attention", "pointwise", "reduction", "optimiser")


def number(value, form: str = ",.0f") -> str:
    """Write `value`, or nothing if there is none."""
    return "" if value is None or math.isnan(value) else format(value, form)


def line(row: dict, content: dict) -> str:
    """Return a row of the table."""
    peak, cache = content["peak_bf16_flops"], content.get("cache")
    name = f"`{row['network']}`, {row['step']}" + (f" ({row['variant']})" * bool(row["variant"]))
    cells = [
        name,
        f"{row['batch']:,}",
        f"**{number(row['images_per_second'])}**" if row["images_per_second"] else "",
        number(row["target"]),
        number(row["mfu"], ".3f"),
        number(row["step_ms"], ".1f"),
        number(sum(row["profile"].values()) if row.get("profile") else None, ".1f"),
        number(row["peak_memory_gib"], ".1f"),
        number(row["compile_seconds"] or None) + " (warm)" * (cache == "warm"),
        number(row.get("sm_mhz")),
        number(peak / 1e12),
    ]
    return "| " + " | ".join(cells) + " |"


def times(row: dict) -> str:
    """Return one line that says where a step's time goes."""
    spent, step = row["profile"], row["step_ms"]
    parts = [f"{kind} {spent[kind]:.1f}" for kind in KINDS if spent.get(kind, 0) > 0.05]
    rest = sum(spent.values()) - sum(spent.get(kind, 0) for kind in KINDS)
    variant = f", {row['variant']}" if row["variant"] else ""
    busy = sum(spent.values())
    return (
        f"- `{row['network']}`, {row['step']}{variant}: {step:.1f} ms a step; kernels {busy:.1f}: "
        + ", ".join(parts)
        + f", other {rest:.1f}"
    )


PAIR = (
    "| two GPUs, network | ms a step alone | together | times one | images/s | images/s of one | MFU of "
    "one |\n|---|---|---|---|---|---|---|"
)


def pair(row: dict, content: dict) -> str:
    """Return a row of the table of two GPUs against one, with the same batch on each."""
    alone = row["step_ms_alone"]
    world = round(row["ratio_to_one"] * row["step_ms"] / alone)
    name = f"{content['card']}, `{row['network']}`" + f", {row['variant']}" * bool(row["variant"])
    rate, mfu = 1e3 * row["batch"] / world / alone, row["mfu"] * row["step_ms"] / alone
    numbers = [f"{alone:.1f}", f"{row['step_ms']:.1f}", f"**{row['ratio_to_one']:.3f}**"]
    rates = [number(row["images_per_second"]), number(rate), number(mfu, ".3f")]
    return "| " + " | ".join([name, *numbers, *rates]) + " |"


def cpus() -> str:
    """Return the table of the student that ships on two cores of each CPU, the fastest first."""
    rows = {}
    for path in FOLDER.glob("results/student_cpu_*.txt"):
        text = path.read_text(encoding="utf-8")
        cpu, precision = re.match(r"(.*?) \(.*?, (\w+); cifar10", text).groups()
        found = {
            float(rate): batch
            for batch, rate in re.findall(r"batch +(\d+), channels last +([\d.]+) images/s", text)
        }
        low, high = min(found), max(found)
        cpu = cpu.replace("(R)", "").removesuffix(" Processor")
        rows[high] = f"| {cpu} | {precision} | {low} to **{high}** | {found[high]} |"
    head = "| two virtual cores of | precision | images/s | images at once, at best |"
    return "\n".join(
        [head, "|---|---|---|---|", *(rows[key] for key in sorted(rows, reverse=True))]
    )


def tables() -> str:
    """Return the tables of all results of GPUs, as Markdown."""
    cards, profiles, pairs = {}, [], [PAIR]
    for path in sorted(FOLDER.glob("results/throughput_*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        lines = cards.setdefault(content["card"], [HEAD])
        lines += [line(row, content) for row in content["rows"]]
        pairs += [pair(row, content) for row in content["rows"] if "ratio_to_one" in row]
        profiles += [times(row) for row in content["rows"] if row.get("profile")]
    out = ["\n\n".join(f"{card}:\n\n" + "\n".join(rows) for card, rows in cards.items())]
    out += ["", *pairs]
    commands = {
        json.loads(path.read_text(encoding="utf-8"))["command"]
        for path in FOLDER.glob("results/throughput_*.json")
    }
    listed = "\n".join(f"    {runner(command)} {command}" for command in sorted(commands))
    return (
        "\n".join(out)
        + f"\n\nBy these commands:\n\n{listed}\n\nms of a step:\n\n"
        + "\n".join(profiles)
    )


def runner(command: str) -> str:
    """Return what starts `command`: several processes if it needs them."""
    return "torchrun --nproc_per_node 2" if "--ddp" in command else "python3"


def between(text: str, start: str, table: str) -> str:
    """Return `text` with `table` between the marker `start` and the next end of tables."""
    end = "<!-- end of tables -->"
    before, rest = text.split(start)
    return f"{before}{start}\n\n{table}\n\n{end}{rest.split(end, 1)[1]}"


def main() -> int:
    """Write the tables, or check them."""
    path = FOLDER / "README.md"
    text = path.read_text(encoding="utf-8")
    new = between(text, "<!-- tables by table.py -->", tables())
    new = between(new, "<!-- CPUs by table.py -->", cpus())
    if "--check" in sys.argv:
        return int(new != text)
    path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
