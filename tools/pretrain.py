"""Make a student that comes with the course out of a finished run.

    python tools/pretrain.py runs/cd-mini-guided cifar10-mini --data cifar10 \\
        --note "the images were CIFAR-10 as lossy JPEGs" \\
        --teacher runs/cifar10-teacher-small-labels --start runs/cifar10-teacher-mini-labels

writes consistency_edu/pretrained/NAME/{model.safetensors,run.json,card.md}: weights rounded to 16
bits, their checksum, and a card with data, commands, scores (those of scores.json in the run's
folder, where benchmarks/cifar10.py puts them, or of evaluation.json), limits and licence.
`--data` names what the data are called elsewhere, if the run read them from a path of its machine;
`--teacher` and `--start` are the runs that it was given, for the command on the card.
"""

import argparse
import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load, save

from consistency_edu.checkpoints import checksum
from consistency_edu.data import InputError
from consistency_edu.evaluation import tell_numbers
from consistency_edu.files import write_file, write_json, write_text
from consistency_edu.images.methods import evaluations
from consistency_edu.images.recipes import RECIPES, Recipe
from consistency_edu.images.runs import PRETRAINED, card, check_info, load_run, read_json

LIMIT = 16_000_000
ROUNDED = "weights rounded to 16 bits after training"
LICENCES = {
    "cifar10": "the weights are the course's, under its licence (Apache 2.0). CIFAR-10 itself "
    "(Krizhevsky 2009) was published without one, its images collected from the web for research; "
    "none of them are in these files.",
    "digits": "the weights are the course's, under its licence (Apache 2.0); the scans are those "
    "of scikit-learn (UCI's optical digits, CC BY 4.0).",
}


def rounded(content: bytes, expected: str | None) -> bytes:
    """The weights in the safetensors file `content` in 16 bits; those of more need the checksum."""
    weights = load(content)
    is_half = all(w.dtype == torch.float16 for w in weights.values() if w.is_floating_point())
    if expected and checksum(content) != expected and not is_half:
        raise InputError("model.safetensors has another checksum than run.json says: copy it anew.")
    half = {k: w.half() if w.is_floating_point() else w for k, w in weights.items()}
    if not all(w.isfinite().all() for w in half.values()):
        raise InputError("some weights are too large for 16 bits: keep this run in 32.")
    return save(half)


def command_of(recipe: Recipe, seed: int, given: dict[str, str]) -> str:
    """The command that trains `recipe`, with what it changes of the one of that name, and `given`.

    `given` are the runs of teacher and start, if they are not the recipe's own.
    """
    base = RECIPES.get(recipe.name, Recipe(recipe.name))
    words = [f"consistency-edu train {recipe.name}"]
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        if value != getattr(base, field.name) and field.name != "about":
            words.append(f"--{field.name.replace('_', '-')} {value}")
    words += [f"--{name} {run}" for name, run in given.items() if run]
    return " ".join([*words, f"--seed {seed}"])


def as_it_went(info: dict, data: str) -> Recipe:
    """The recipe of `info` with its data called `data`, and the minutes that it really had."""
    recipe, minutes = info["recipe"], round(info["seconds"] / 60, 1)
    if recipe.minutes and abs(recipe.minutes - minutes) > 0.2:  # shortened to end in time
        recipe = dataclasses.replace(recipe, minutes=minutes)
    return dataclasses.replace(recipe, data=data or recipe.data)


def scores_of(folder: Path) -> list[dict]:
    """The rows of numbers beside the run in `folder`, each with its steps; none if there are no."""
    if (folder / "scores.json").exists():
        scores = read_json(folder / "scores.json")
        return [{"steps": int(steps), **row} for steps, row in scores.items() if steps.isdigit()]
    if (folder / "evaluation.json").exists():
        return read_json(folder / "evaluation.json")["rows"]
    return []


def told(recipe: Recipe, row: dict) -> str:
    """The numbers of one `row` as an item of the card."""
    nfe = evaluations(recipe, row["steps"])
    numbers = "; ".join(line.strip() for line in tell_numbers(row).splitlines())
    return f"- **{nfe} evaluation{'' if nfe == 1 else 's'}**: {numbers}"


def card_of(name: str, info: dict, command: str, rows: list[dict], note: str) -> str:
    """The card of the student `name`: the run's own, with all that a stranger has to know."""
    recipe = info["recipe"]
    own = [line for line in card(recipe, info).splitlines() if line.startswith("- **")]
    kept = [line for line in own if not line.startswith(("- **weights", "- **use", "- **limits"))]
    heading = [f"# {name}", "", "A student that comes with the course.", ""]
    made = [
        f"- **data**: {note}" if note else "",
        f"- **to make one alike**: `{command}`",
        f"- **weights**: the average (EMA) of the training; {ROUNDED}, `model.safetensors`",
        f'- **use**: `load_pretrained("{name}").sample(noise)` with standard normal noise, or '
        f"`consistency-edu sample {name}`",
        *[told(recipe, row) for row in rows],
        "" if rows else "- **scores**: none were taken",
        "- **limits**: it knows nothing but the images above, and their biases; the numbers here "
        "say how near its samples are to them, and nothing of any one sample.",
        f"- **licence**: {LICENCES[recipe.data]}",
    ]
    return "\n".join([*heading, *kept, *filter(None, made), ""])


def make(
    folder: Path, name: str, *, data: str = "", note: str = "", out: Path = PRETRAINED, **given: str
) -> Path:
    """Write the student `name` of the finished run in `folder` under `out`, and try it."""
    info = check_info(read_json(folder / "run.json"), folder)
    path = folder / "model.safetensors"
    content = rounded(path.read_bytes(), info["sha256"].get("model"))
    if len(content) > LIMIT:
        raise InputError(f"{len(content) / 1e6:.1f} MB in 16 bits are too many to carry along.")
    info["recipe"] = as_it_went(info, data)
    if info["recipe"].data not in LICENCES:
        raise InputError(f"the data are '{info['recipe'].data}': name them with --data.")
    command = command_of(info["recipe"], info["seed"], given)
    record = dataclasses.asdict(info["recipe"])
    notes = {"rounding": ROUNDED, **({"data": note} if note else {}), "command": command}
    goal = out / name
    write_file(goal / "model.safetensors", content)
    rows = scores_of(folder)
    write_text(goal / "card.md", card_of(name, info, command, rows, note))
    more = {"notes": notes, "scores": rows, "sha256": {"model": checksum(content)}}
    write_json(goal / "run.json", {**info, "recipe": record, **more})
    run = load_run(goal)
    image = run.sample(torch.randn(2, *run.shape, generator=torch.Generator().manual_seed(0)))
    if not image.isfinite().all():
        raise InputError("its samples are not finite: do not ship this run.")
    return goal


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("name", help="what users call the student")
    parser.add_argument("--data", default="", help="the name of its data elsewhere")
    parser.add_argument("--note", default="", help="what else must be said of the data")
    parser.add_argument("--teacher", default="", help="the run of its teacher, for the card")
    parser.add_argument("--start", default="", help="the run that it started from, for the card")
    args = vars(parser.parse_args())
    try:
        goal = make(args.pop("run"), args.pop("name"), **args)
    except InputError as error:
        raise SystemExit(f"pretrain: {error}") from None
    size = sum(file.stat().st_size for file in goal.iterdir())
    print(f"{goal}: {size / 1e6:.1f} MB\n\n{(goal / 'card.md').read_text()}")


if __name__ == "__main__":
    main()
