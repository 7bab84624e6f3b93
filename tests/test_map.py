"""The map: its tables say what the files say, name every method, and give every number a source."""

import importlib
import inspect
import json
import re
import statistics

import pytest
from conftest import ROOT
from torch import nn

PAGE = json.loads((ROOT / "nbs" / "21_map.ipynb").read_text(encoding="utf-8"))


def tables():
    """The tables that the page shows, each a list of rows by the names of its columns."""
    for cell in PAGE["cells"]:
        for output in cell.get("outputs", []):
            text = "".join(output.get("data", {}).get("text/markdown", ""))
            lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
            if lines:
                yield [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


*PUBLISHED, OURS = tables()
WORKS = [row for table in PUBLISHED for row in table]
OF = {re.match(r"\[(.+?)\*?\]", row["method"])[1]: row for row in OURS}


def read(name):
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


def of_seeds(pattern):
    paths = sorted((ROOT / "results").glob(pattern))
    return [json.loads(path.read_text(encoding="utf-8"))["rows"] for path in paths]


TOY, DIGITS = of_seeds("reference/toy_moons_seed?.json"), of_seeds("digits_seed?.json")
# the names of the map's rows in the tables of the toy and of digits
KEYS = {
    "teacher": ("teacher", None),
    "direct": ("direct", "learned"),
    "PD": ("pd", "learned"),
    "BOOT": ("boot", "learned"),
    "CD": ("cd", "learned"),
    "sCD": ("scd", "learned"),
    "CT": ("ct", None),
    "iCT": ("ict", None),
    "ECT": ("ect", "learned"),
    "sCT": ("sct", "learned"),
    "MeanFlow": ("meanflow", None),
}
SWEPT = {
    "iMF": ("meanflow", {"velocity": "data", "own": True}),
    "MeanFlow of a teacher": ("meanflow", {"velocity": "learned"}),
    "DMD": ("matching", {"method": "matching"}),
}
METHOD = {name: method for name, (method, _) in KEYS.items()} | {"DMD": "dmd"}


def told(values):
    """A median with its range, as tables write it."""
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


@pytest.mark.parametrize("name", KEYS)
def test_our_table_is_what_the_files_say(name):
    method, teacher = KEYS[name]
    steps = 35 if name == "teacher" else 1
    rows = [r for seed in TOY for r in seed
            if (r["method"], r["teacher"], r["nfe"]) == (method, teacher, steps)]  # fmt: skip
    assert len(rows) == 3
    assert OF[name]["W2"] == told([row["sliced_w2"] for row in rows])
    assert OF[name]["paired error"] == told([row["paired_error"] for row in rows])
    spent = f"{statistics.median(row['train_seconds'] for row in rows):.0f}"
    assert OF[name]["s"].split(" + ")[0] == spent
    assert ("+" in OF[name]["s"]) == (teacher == "learned")


@pytest.mark.parametrize("name", OF)
def test_distances_on_digits_are_what_the_files_say(name):
    recipe = f"digits-{METHOD.get(name)}"
    plain = [row for seed in DIGITS for row in seed if row["recipe"] == recipe]
    medians = [statistics.median(row["frechet"] for row in plain if row["nfe"] == nfe)
               for nfe in dict.fromkeys(row["nfe"] for row in plain)]  # fmt: skip
    assert OF[name]["digits"] == (", ".join(f"{value:.2f}" for value in medians) or "–")


@pytest.mark.parametrize("name", SWEPT)
def test_rows_of_the_labs_are_what_the_sweeps_say(name):
    sweep, setting = SWEPT[name]
    rows = [row for row in read(f"sweeps/{sweep}")["rows"] if setting.items() <= row.items()]
    assert len(rows) == 5 and "*]" in OF[name]["method"]
    for title, key in (("W2", "sliced_w2"), ("paired error", "paired_error")):
        assert OF[name][title] == told([row[key] for row in rows])


@pytest.mark.parametrize("name", OF)
def test_runs_of_cifar_are_what_their_files_say(name):
    cell = OF[name]["CIFAR-10"]
    if cell == "–":
        return
    numbers, run, minutes = re.fullmatch(r"([\d., ]+) \(`(.+)`, ([\d.]+) min\)", cell).groups()
    scores, info = read(f"cifar10/{run}/scores"), read(f"cifar10/{run}/run")
    assert info["recipe"]["method"] == METHOD[name]
    assert info["recipe"]["labels"]  # as the text above the table says of all
    scores = [row["frechet"] for steps, row in scores.items() if steps.isdigit()]
    assert numbers == ", ".join(f"{value:.2f}" for value in scores)
    assert minutes == f"{(info['seconds'] + info.get('pairs_seconds', 0)) / 60:.1f}"


def test_whatever_was_measured_has_its_place():
    """A method in the files of the toy, of digits or of CIFAR-10 has a number in our table."""
    shown = {METHOD[name] for name, row in OF.items() if row["digits"] != "–"}
    assert {row["method"] for seed in DIGITS for row in seed} == shown
    assert {row["method"] for seed in TOY for row in seed} - {"exact"} <= set(METHOD.values())
    scored = [path.parent.name for path in (ROOT / "results/cifar10").glob("*/scores.json")]
    trained = {read(f"cifar10/{run}/run")["recipe"]["method"] for run in scored}
    shown = {METHOD[name] for name, row in OF.items() if row["CIFAR-10"] != "–"}
    assert trained == shown


def objectives():
    """The losses of the core: modules that are called with a batch and a generator."""
    for path in sorted((ROOT / "consistency_edu").glob("[!_]*.py")):
        module = importlib.import_module(f"consistency_edu.{path.stem}")
        for name, thing in vars(module).items():
            is_here = inspect.isclass(thing) and thing.__module__ == module.__name__
            if is_here and issubclass(thing, nn.Module):
                if {"x", "generator"} <= set(inspect.signature(thing.forward).parameters):
                    yield name


def test_every_objective_has_a_row():
    named = set(re.findall(r"`(\w+)`", " ".join(row["objective"] for row in OURS)))
    assert set(objectives()) - named == {"LabelDropout"}  # around a loss, none of its own
    assert named <= set(objectives())


NUMBER = r"\d+\.\d+ \(\d+\)( [a-zA-Z0-9 -]+)?"
SOURCE = r"(paper|CD's paper|abstract|others|slides)"
GROUP = re.compile(rf"(CIFAR-10|ImageNet-(64|256|512)): {NUMBER}(, {NUMBER})* \[{SOURCE}\]")


@pytest.mark.parametrize("row", WORKS, ids=lambda row: row["method"].split("]")[0][1:])
def test_every_published_number_names_its_set_its_nfe_and_its_source(row):
    assert re.fullmatch(r"\[.+\]\(https://arxiv.org/abs/\d{4}\.\d{4,5}\), 20\d\d", row["method"])
    cell = row["FID (NFE) [source]"]
    assert cell == "–" or all(GROUP.fullmatch(group) for group in cell.split("; ")), cell


@pytest.mark.parametrize("row", WORKS, ids=lambda row: row["method"].split("]")[0][1:])
def test_numbers_come_from_what_was_read(row):
    sources = set(re.findall(r"\[([a-zA-Z' ]+)\]", row["FID (NFE) [source]"]))
    is_read = row["read"].startswith(("in full", "main text"))
    assert is_read or "paper" not in sources
    assert is_read or "abstract" in row["read"] or "abstract" not in sources
    assert row["read"] != "abstract only" or sources <= {"abstract"}
    assert row["read"] != "from memory" or not sources
    assert "slides" not in sources or row["read"] == "slides only"


def test_every_wrong_number_would_be_found():
    """The pattern of a published number refuses one without its set, its NFE or its source."""
    whole = "CIFAR-10: 3.55 (1), 2.93 (2) [paper]"
    assert GROUP.fullmatch(whole)
    for part in ("CIFAR-10: ", " (1)", " (2)", " [paper]", "[paper]"):
        assert not GROUP.fullmatch(whole.replace(part, ""))
