"""Every command on a run of every method: it works, or says in one sentence what to do."""

import json

import numpy as np
import pytest
from conftest import KINDS, command
from PIL import Image

from consistency_edu.cli import EDITS

JUMPS = ("cd", "ct", "ict", "ect", "scd", "sct", "meanflow", "dmd")  # from any level


@pytest.fixture
def place(every_run, tmp_path, monkeypatch):
    """A folder with a picture and a mask, in which commands are run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IN_TEST", "1")
    Image.fromarray(np.full((8, 8), 100, np.uint8)).save("digit.png")
    Image.fromarray(((np.arange(64).reshape(8, 8) > 31) * 255).astype(np.uint8)).save("mask.png")
    return tmp_path


def works(*args):
    status, said = command(*args)
    assert status == 0 and "Traceback" not in said, said
    return said


def refused(*args):
    """The one sentence with which the command ends."""
    status, said = command(*args)
    *before, last = said.splitlines()
    assert status == 2 and last.startswith("consistency-edu: "), said
    assert not any("Traceback" in line or "consistency-edu: " in line for line in before), said
    return last


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [(), ("--path", "--nrow=2"), ("--interpolate", "--nrow=2")])
def test_sample(kind, more, every_run, place):
    assert "grid.png" in works("sample", every_run / kind, *more)
    assert Image.open("grid.png").size[0] > 500


@pytest.mark.parametrize("kind", KINDS)
def test_sample_in_two_steps_and_in_more_than_there_are(kind, every_run, place):
    for steps in (2, 3, 100):
        knows = kind.startswith(("teacher", *JUMPS)) or (kind.startswith("pd") and steps == 2)
        args = ("sample", every_run / kind, "--nrow=1", "--ncol=1", "--steps", steps)
        assert works(*args) if knows else "leave --steps off" in refused(*args)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate(kind, every_run, place):
    out = ("--out", "numbers.json")
    common = ("evaluate", every_run / kind, "--features=pixels", "-n", 20, *out)
    assert "numbers.json" in works(*common)
    assert json.loads((place / "numbers.json").read_text())["rows"][0]["frechet"] > 0
    if kind.startswith((*JUMPS, "pd")):
        assert "2 NFE" in works(*common, "--steps", 1, 2)
    else:
        assert "leave --steps off" in refused(*common, "--steps", 2)


def given(task):
    """The options without which `task` makes no sense."""
    image = () if task == "interpolate" else ("--image", "digit.png")
    more = {"inpaint": ("--mask", "mask.png"), "denoise": ("--sigmas", 0.3)}
    return (*image, *more.get(task, ()))


@pytest.mark.parametrize("task", EDITS)
@pytest.mark.parametrize("kind", KINDS)
def test_edit(kind, task, every_run, place):
    method = kind.split("-")[0]
    args = ("edit", every_run / kind, "--task", task, "--out", "out.png", *given(task))
    remedies = {"teacher": "distil it by cd first"}
    if task == "colorize":
        assert remedies.get(method, "take a run in colour") in refused(*args)
    elif method in JUMPS or (task == "interpolate" and method != "teacher"):
        assert "out.png" in works(*args)
    else:
        assert remedies.get(method, "take a consistency model (of cd or ect, say)") in refused(
            *args
        )
    assert (place / "out.png").exists() == (command(*args)[0] == 0)


@pytest.mark.parametrize("kind", ["teacher", "cd", "pd-labels", "boot"])
def test_train_resume_and_not(kind, every_run, place):
    method, _, labels = kind.partition("-")
    args = ["train", f"digits-{method}", "--steps=1", "--batch=8", "--points=4"]
    args += ["--out", every_run / kind, *(["--labels"] if labels else [])]
    said = works(*args, "--resume")
    assert "card.md" in said and "First its teacher" not in said
    assert "use --resume, or another --out" in refused(*args)


@pytest.mark.parametrize("kind", ["teacher", "cd", "ct", "ect"])
def test_train_from_the_weights_of_a_run_of_the_same_kind(kind, every_run, place):
    start = ("train", "digits-ct", "--steps=1", "--batch=8", "--start", every_run / kind)
    assert "card.md" in works(*start, "--out", "new")


@pytest.mark.parametrize("kind", ["pd", "direct", "boot"])
def test_weights_of_another_kind_are_refused(kind, every_run, place):
    said = refused("train", "digits-ct", "--steps=1", "--start", every_run / kind, "--out", "new")
    assert "start from one of" in said and not (place / "new").exists()


def test_tables(place):
    for name, words in (("recipes", "digits-cd"), ("doctor", "torch"), ("sweep", "runs")):
        assert words in works(name)
