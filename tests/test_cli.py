"""The command line: exit statuses, one sentence for bad input, and files that are always whole."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from conftest import COMMAND, command, quiet_environment, run_cli
from PIL import Image

from consistency_edu import cli
from consistency_edu.cli import (
    COMMANDS,
    labels_for,
    noise_for,
    parse,
    sigmas_for,
    split_changes,
)
from consistency_edu.data import InputError
from consistency_edu.images import trainer
from consistency_edu.images.methods import override
from consistency_edu.images.recipes import RECIPES
from consistency_edu.images.runs import load_run
from consistency_edu.images.trainer import train_recipe
from consistency_edu.long_runs import WorkerLost
from consistency_edu.sampling import spherical_mix


def sentence(done):
    """The error a person sees: exactly one line, no traceback."""
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr and len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "remedy"),
    [
        (["--dataset", "moon"], "did you mean 'moons'?"),
        (["--dataset", "mnist"], "Choose one of moons, circles"),
        (["--out", "file"], "choose another folder with --out"),
        (["--out", "file/below"], "choose another folder with --out"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--samples", "1"], "samples at least 2"),
        (["--methods", "cd", "bot"], "did you mean 'boot'?"),
    ],
)
def test_bad_input_is_one_sentence(args, remedy, tmp_path):
    (tmp_path / "file").write_text("taken")
    done = run_cli("toy", *args, cwd=tmp_path)
    assert done.returncode == 2 and remedy in sentence(done)
    assert (tmp_path / "file").read_text() == "taken" and not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "args", [["tooy"], ["toy", "--stepz", "3"], ["toy", "--steps", "many"], []]
)
def test_unknown_words_exit_with_2(args, tmp_path):
    done = run_cli(*args, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "remedy"),
    [
        (["digits-cdd"], "did you mean 'digits-cd'?"),
        (["digits-teacher", "--lrr", "1"], "did you mean 'lr'?"),
        (["digits-teacher", "--lr", "fast"], "give a float"),
        (["digits-cd", "--network", "tiny"], "train digits-teacher first"),
        (["digits-cd", "--teacher", "nowhere"], "no finished run"),
        (["digits-teacher", "--data", "nowhere/here"], "check its path"),
        (["digits-teacher", "--device", "cuda:99"], "cuda"),
        (["digits-teacher", "--out", "file"], "--out"),
    ],
)
def test_train_refuses_in_one_sentence(args, remedy, tmp_path):
    (tmp_path / "file").write_text("taken")
    done = run_cli("train", *args, cwd=tmp_path)
    assert done.returncode == 2 and remedy in sentence(done)


@pytest.mark.slow
def test_train_runs_finds_its_teacher_and_resumes(tmp_path):
    for name, more in (("teacher", []), ("cd", ["--lr=1e-4"]), ("cd", ["--lr=1e-4", "--resume"])):
        done = run_cli("train", f"digits-{name}", "--steps", 5, *more, cwd=tmp_path)
        assert done.returncode == 0 and f"runs/digits-{name}/card.md" in done.stdout, done.stderr
    done = run_cli("train", "digits-cd", "--steps", 5, cwd=tmp_path)
    assert done.returncode == 2 and "--resume" in sentence(done)


def test_from_nothing_the_teacher_comes_first(tmp_path, monkeypatch, capsys):
    quick = dataclasses.replace(cli.RECIPES["digits-teacher"], steps=3)
    monkeypatch.setitem(cli.RECIPES, "digits-teacher", quick)
    for method, says in (("cd", True), ("ect", False), ("pd", False)):  # it is there by then
        args = ["train", f"digits-{method}", "--steps", "3", "--out", str(tmp_path / method)]
        assert cli.main(args) == 0
        assert ("First its teacher" in capsys.readouterr().out) == says
        told = json.loads((tmp_path / method / "run.json").read_text())
        role = "start" if method == "ect" else "teacher"
        assert told[role] == "digits-teacher"
        assert told.keys() & {"start", "teacher"} == {role}
    made = json.loads((tmp_path / "digits-teacher" / "run.json").read_text())
    assert made["steps"] == 3 and made["recipe"]["method"] == "teacher"


@pytest.mark.slow
def test_tables_of_what_there_is(tmp_path):
    for name, words in (
        ("recipes", "cifar10-cd-mini"),
        ("doctor", "torch"),
        ("sweep", "runs"),
    ):
        done = run_cli(name, cwd=tmp_path)
        assert done.returncode == 0 and words in done.stdout, done.stderr
    done = run_cli("sweep", "boott", cwd=tmp_path)
    assert done.returncode == 2 and "there is no sweep" in sentence(done)


@pytest.mark.slow
def test_the_digits_table_goes_on_method_by_method(tmp_path):
    common = ("digits", "--effort", 0.002, "--seed", 3)
    for only, count in ((["--only", "teacher"], 2), ([], 23)):
        done = run_cli(*common, *only, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        table = json.loads((tmp_path / "results" / "digits_seed3.json").read_text())
        assert len(table["rows"]) == count
    assert (tmp_path / "images" / "digits_seed3.png").exists()
    done = run_cli(*common[:1], "--only", "boott", cwd=tmp_path)
    assert done.returncode == 2 and "did you mean 'boot'?" in sentence(done)


def expected_steps(row, steps):
    """The training steps of a row: PD has half of them for six rounds, direct a quarter, guided
    BOOT a half (its own teacher is not counted)."""
    if row["teacher"] == "guided":
        return max(1, steps // 2)
    shared = {"exact": 0, "pd": 6 * max(1, steps // 12), "direct": max(1, steps // 4)}
    return shared.get(row["method"], steps)


@pytest.mark.slow
def test_a_small_run_writes_whole_files_and_overwrites_them(tmp_path):
    for steps in (2, 13):
        done = run_cli(
            "toy", "--steps", steps, "--samples", 40, "--seed", 7, "--methods", "all", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        table = json.loads((tmp_path / "results" / "toy_moons_seed7.json").read_text())
        for row in table["rows"]:
            assert row["steps"] == expected_steps(row, steps), row
    names = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert names == [f"toy_moons_seed7.{kind}" for kind in ("gif", "json", "png")]
    keys = {"method", "teacher", "nfe", "sliced_w2", "energy_distance", "train_seconds", "steps"}
    assert all(keys | {"paired_error"} == set(row) for row in table["rows"])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(tmp_path):
    rows = []
    for folder in ("one", "two"):
        run_cli("toy", "--steps", 5, "--samples", 40, "--out", folder, cwd=tmp_path)
        table = json.loads((tmp_path / folder / "results" / "toy_moons_seed0.json").read_text())
        for row in table["rows"]:
            del row["train_seconds"]
        rows.append(table["rows"])
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_ctrl_c_leaves_what_is_finished(tmp_path):
    command = [COMMAND, "toy", "--steps", "1500", "--samples", "200"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=quiet_environment(), **options)
    table = tmp_path / "results" / "toy_moons_seed0.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        table.exists() and '"method": "teacher"' in table.read_text()
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in said, said
    assert "What was finished is in" in said
    methods = [row["method"] for row in json.loads(table.read_text())["rows"]]
    assert methods[:2] == ["exact", "teacher"] and "boot" not in methods
    assert (tmp_path / "images" / "toy_moons_seed0.png").exists()
    assert not list(tmp_path.rglob(".partial-*"))


# ------------------------------------------------------------------ in this process


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A short run of each kind that samples in a way of its own."""
    place = tmp_path_factory.mktemp("runs")
    for name in ("teacher", "cd", "pd", "boot", "teacher-labels"):
        changes = {"steps": "8", "batch": "8", "points": "4"}
        recipe = override(RECIPES[f"digits-{name}"], changes)
        teacher = place / ("teacher-labels" if recipe.labels else "teacher")
        train_recipe(recipe, place / name, teacher=teacher)
    return place


def picture(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    ("name", "args", "rows", "columns"),
    [
        ("teacher", ["--nrow", 2, "--ncol", 3], 2, 3),
        ("teacher", ["--nrow", 2, "--path"], 2, 5),
        ("teacher", ["--nrow", 1, "--path", "--steps", 3], 1, 4),
        ("cd", ["--nrow", 2, "--ncol", 2, "--steps", 4], 2, 2),
        ("cd", ["--nrow", 2, "--path", "--sigmas", 10, 2, 1], 2, 6),
        ("cd", ["--nrow", 2, "--ncol", 4, "--interpolate"], 2, 4),
        ("pd", ["--nrow", 2, "--ncol", 2, "--steps", 2], 2, 2),
        ("boot", ["--nrow", 1, "--ncol", 2], 1, 2),
        ("teacher-labels", ["--nrow", 2, "--ncol", 2, "--labels", 3, 7], 2, 2),
    ],
)
def test_sample_draws_a_grid_of_its_size(name, args, rows, columns, runs, tmp_path):
    status, said = command("sample", runs / name, *args, "--out", tmp_path / "x" / "grid.png")
    assert status == 0 and "grid.png" in said, said
    height, width = picture(tmp_path / "x" / "grid.png").shape
    assert height * columns == width * rows
    assert [path.name for path in tmp_path.rglob("*.*")] == ["grid.png"]


@pytest.mark.parametrize(
    ("name", "args", "remedy"),
    [
        ("boot", ["--steps", 2], "'boot' student takes 1 step"),
        ("pd", ["--steps", 3], "'pd' student takes 1 step"),
        ("cd", ["--sigmas", 5, 1], "must start at the model's sigma_max"),
        ("cd", ["--labels", 1], "leave --labels off"),
        ("teacher-labels", ["--labels", 10], "between 0 and 9"),
        ("teacher", ["--path", "--interpolate"], "leave one of both off"),
        ("teacher", ["--sigmas", 10, 1, "--steps", 3], "give one of both"),
        ("teacher", ["--nrow", 0], "give 1 to 100"),
        ("teacher", ["--out", "grid.gif"], "ends in .png"),
        ("cd", ["--precision", "float8"], "did you mean"),
        ("nobody", [], "no finished run"),
    ],
)
def test_sample_refuses_in_one_sentence(name, args, remedy, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = command("sample", runs / name, *args)
    assert status == 2 and remedy in said and len(said.strip().splitlines()) == 1, said
    assert not list(tmp_path.iterdir())


def test_seeds_and_rows_of_samples(runs, tmp_path):
    def draw(*args):
        assert command("sample", runs / "cd", *args, "--out", tmp_path / "x.png")[0] == 0
        return picture(tmp_path / "x.png")

    size = ("--nrow", 2, "--ncol", 2)
    one, again, other = (draw(*size, "--seed", seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    two = draw(*size, "--steps", 2)
    config = parse(["sample", str(runs / "cd"), "--steps", "2"])
    run = load_run(runs / "cd")
    assert sigmas_for(run, config).tolist() == [run.recipe.sigma_max, run.recipe.middle]
    assert not np.array_equal(one, two)
    path = draw("--nrow", 2, "--path", "--steps", 1)
    assert path.shape[1] * 2 == path.shape[0] * 2  # noise and image, two rows
    mixed = draw("--nrow", 2, "--ncol", 3, "--interpolate")
    side = mixed.shape[0] // 2
    assert not np.array_equal(mixed[:side, :side], mixed[:side, 2 * side :])


def test_classes_and_noises_of_a_grid(runs):
    run, rng = load_run(runs / "teacher-labels"), torch.Generator().manual_seed(0)
    words = ["sample", str(runs), "--nrow", "2", "--ncol", "3", "--labels", "3", "7"]
    assert labels_for(run, parse(words), 6).tolist() == [3, 7, 3, 7, 3, 7]
    config = parse([*words, "--interpolate"])
    assert labels_for(run, config, 6).tolist() == [3, 3, 3, 7, 7, 7]
    assert labels_for(load_run(runs / "cd"), parse(words[:-3]), 6) is None
    noise = noise_for(run, config, rng).unflatten(0, (2, 3))
    assert torch.allclose(noise[:, 1], spherical_mix(noise[:, 0], noise[:, 2], 0.5), atol=1e-5)
    assert abs(noise.std() - 1) < 0.1


def test_sigterm_before_a_run_has_begun(monkeypatch):
    monkeypatch.setattr(cli, "train_recipe", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    assert command(*training())[0] == 143


def test_own_options_are_not_changes():
    args = ["train", "x", "--lr", "1", "--save-every", "3", "--keep=2", "--flip", "--resume"]
    left, changes = split_changes(args)
    assert changes == {"lr": "1", "flip": "true"}
    config = parse(["train", "digits-ct", *args[2:]])
    assert (config.save_every, config.keep, config.resume) == (3, 2, True)


def test_help_reads_well():
    for name in COMMANDS:
        status, said = command(name, "--help")
        assert status == 0 and "Traceback" not in said
    status, said = command("--help")
    assert status == 0 and all(name in said for name in COMMANDS)
    said = " ".join(command("train", "--help")[1].split())
    for words in ("--save-every", "--keep", "--resume", "--tensorboard", "1 %"):
        assert words in said


def training(*more):
    return ("train", "digits-ct", "--steps", 40, "--batch", 8, "--save-every", 10, *more)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_have_their_own_exit_status(number, tmp_path, monkeypatch):
    class Struck(trainer.Trainer):
        def record(self, state):
            super().record(state)
            if state.step == 13:
                signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Trainer", Struck)
        status, said = command(*training("--out", tmp_path / "run"))
    assert status == 128 + number and "step_000000014': go on with --resume" in said, said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    status, said = command(*training("--out", tmp_path / "run", "--resume"))
    assert status == 0 and "card.md" in said


def test_other_ends_have_their_exit_status_too(tmp_path, monkeypatch):
    for error, wanted in ((WorkerLost("lost"), 3), (KeyboardInterrupt(), 130)):
        with monkeypatch.context() as patch:
            patch.setattr(cli, "train_recipe", lambda *_, error=error, **__: throw(error))
            status, said = command(*training("--out", tmp_path / "run"))
        assert status == wanted and "Traceback" not in said
    assert "There is no checkpoint yet" in said


@pytest.mark.parametrize(
    ("args", "remedy"),
    [
        (("--keep", "0"), "keep is 0"),
        (("--save-every", "-1"), "save_every -1"),
        (("--device", "cuda:99"), "cuda:99"),
        (("--out", "taken"), "choose another folder with --out"),
        (("--out", "begun"), "use --resume"),
    ],
)
def test_a_student_that_cannot_begin_is_refused_before_its_teacher_is_trained(
    args, remedy, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "train_recipe", lambda *_, **__: pytest.fail("it was trained"))
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "begun" / "checkpoints" / "step_000000001").mkdir(parents=True)
    status, said = command("train", "digits-cd", *args)
    assert status == 2 and remedy in said and len(said.splitlines()) == 1, said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["begun", "taken"]  # nothing is left


def test_the_teachers_checkpoint_is_told_if_it_was_stopped(tmp_path, monkeypatch):
    def train_a_while(recipe, folder, **options):
        (folder / "checkpoints" / "step_000000009").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train_recipe", train_a_while)
    args = ("train", "digits-cd", "--out", tmp_path / "cd")
    status, said = command(*args)
    assert status == 130 and "teacher/checkpoints/step_000000009': the same command goes" in said
    monkeypatch.setattr(cli, "train_recipe", lambda *_, **__: throw(InputError("of another seed.")))
    status, said = command(*args)
    assert status == 2 and "of another seed. Or give a finished one, --teacher." in said


def test_a_bar_counts_the_evaluations_of_a_picture(runs, tmp_path, monkeypatch):
    class Bar(contextlib.nullcontext):
        def __init__(self, total, **options):
            super().__init__(self)
            self.total, self.done = total, 0
            bars.append(self)

        def update(self):
            self.done += 1
            return True  # as tqdm does when it has drawn itself

    bars = []
    monkeypatch.setattr(cli, "tqdm", Bar)
    out = tmp_path / "out.png"
    sample = ("--nrow", 20, "--ncol", 20, "--steps", 3, "--out", out)  # 400 images, in four parts
    for name, calls in (("teacher", 20), ("cd", 12)):
        status, said = command("sample", runs / name, *sample)
        assert status == 0 and Image.open(out).size == (160 * 3, 160 * 3), said
        assert bars[-1].done == bars[-1].total == calls
    Image.new("L", (8, 8), 100).save(tmp_path / "grey.png")
    edit = ("--task", "stroke", "--image", tmp_path / "grey.png", "--sigmas", 1, 0.5, "--out", out)
    assert command("edit", runs / "cd", *edit)[0] == 0
    assert bars[-1].done == bars[-1].total == 2
    monkeypatch.setattr(cli, "walk", lambda *_: throw(KeyboardInterrupt()))
    status, said = command("sample", runs / "cd", "--out", tmp_path / "no.png")
    assert status == 130 and "stopped. No picture was written." in said


def throw(error):
    raise error


def test_only_the_first_worker_speaks(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "train_recipe", lambda recipe, out, **_: out)
    assert "card.md" in command(*training("--out", tmp_path))[1]
    monkeypatch.setenv("RANK", "1"), monkeypatch.setenv("LOCAL_RANK", "1")
    assert command(*training("--out", tmp_path)) == (0, "")
    assert command("train", "digits-cdd")[1] == ""


def test_warnings_are_sentences(tmp_path):
    kept = tmp_path / "run" / "checkpoints"
    assert command(*training("--out", tmp_path / "one"))[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "export", lambda *_: throw(KeyboardInterrupt()))
        assert command(*training("--out", tmp_path / "run"))[0] == 130
    os.truncate(kept / "step_000000030" / "rest.pt", 10)
    status, said = command(*training("--out", tmp_path / "run", "--resume"))
    assert status == 0 and "consistency-edu: the checkpoint in" in said and "is damaged" in said
    pair = [load_run(tmp_path / name).model.state_dict() for name in ("one", "run")]
    assert all(torch.equal(value, pair[1][name]) for name, value in pair[0].items())


@pytest.mark.slow
def test_evaluate_prints_numbers_with_their_card_and_writes_them(tmp_path):
    done = run_cli("train", "digits-ct", "--steps", 5, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    common = ("evaluate", "runs/digits-ct", "--features", "pixels", "-n", 100)
    done = run_cli(*common, "--steps", 1, 2, "--batch", 30, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("Floor", "100 samples against 1,348 images of digits train", "2 NFE", "rounded"):
        assert word in done.stdout
    numbers = json.loads((tmp_path / "runs" / "digits-ct" / "evaluation.json").read_text())
    assert [row["nfe"] for row in numbers["rows"]] == [1, 2]
    assert numbers["rows"][0]["frechet"] != numbers["rows"][1]["frechet"]
    assert min(row["frechet"] for row in numbers["rows"]) > numbers["floor"]["frechet"]
    again = run_cli(*common, "--batch", 100, "--out", "again.json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    one = json.loads((tmp_path / "again.json").read_text())["rows"][0]
    assert one["frechet"] == pytest.approx(numbers["rows"][0]["frechet"], rel=1e-6)


@pytest.mark.slow
def test_evaluate_refuses_in_one_sentence(tmp_path):
    run_cli("train", "digits-ct", "--steps", 2, cwd=tmp_path)
    for args, remedy in (
        (["nowhere"], "no finished run"),
        (["runs/digits-ct", "--features", "incption"], "did you mean 'inception'?"),
        (["runs/digits-ct", "--steps", 3], "Choose one of 1, 2"),
        (["runs/digits-ct", "-n", 1], "at least 2"),
        (["runs/digits-ct", "--reference", "cifar"], "cifar10"),
        (["runs/digits-ct", "--device", "cuda:99"], "cuda"),
    ):
        done = run_cli("evaluate", *args, cwd=tmp_path)
        assert done.returncode == 2 and remedy in sentence(done), done.stderr


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A short run with the classes of a folder of images, of which cat10 are white."""
    place = tmp_path_factory.mktemp("pets")
    for kind, grey in (("cat10", 255), ("cat2", 0), ("dog", 128)):
        (place / "set" / kind).mkdir(parents=True)
        for number in range(4):
            pixels = Image.new("L", (8, 8), grey)
            pixels.save(place / "set" / kind / f"{number}.png")
    changes = {"steps": "8", "batch": "8", "points": "4", "data": str(place / "set")}
    recipe = override(RECIPES["digits-teacher-labels"], changes)
    train_recipe(recipe, place / "run")
    return place


def test_classes_go_by_their_names_from_the_folder_to_the_sample(pets, tmp_path):
    names = ["cat2", "cat10", "dog"]
    assert json.loads((pets / "run" / "run.json").read_text())["class_names"] == names
    assert "- **classes**: 0 cat2, 1 cat10, 2 dog" in (pets / "run" / "card.md").read_text()
    run = load_run(pets / "run")
    for words, numbers in ((["dog", 0, "cat10"], [2, 0, 1]), ([1], [1]), (["cat2", "2"], [0, 2])):
        config = parse(["sample", str(pets / "run"), "--labels", *map(str, words)])
        assert labels_for(run, config, len(numbers)).tolist() == numbers
    out = ["--nrow", 1, "--ncol", 2, "--out", tmp_path / "a.png"]
    assert command("sample", pets / "run", "--labels", "cat10", 2, *out)[0] == 0
    for word, remedy in (
        ("cat1", "did you mean 'cat10'"),
        ("3", "between 0 and 2"),
        ("-1", "0 and"),
    ):
        status, said = command("sample", pets / "run", "--labels", word, *out)
        assert status == 2 and remedy in said and "Traceback" not in said


def test_a_class_called_by_a_number_goes_before_that_number(pets):
    run = load_run(pets / "run")
    run.info["class_names"] = ("1", "5", "10")
    config = parse(["sample", str(pets / "run"), "--labels", "1", "5", "0", "2", "10"])
    assert labels_for(run, config, 5).tolist() == [0, 1, 0, 2, 2]


def test_runs_of_earlier_have_numbers_for_names(pets, tmp_path):
    shutil.copytree(pets / "run", tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    del info["class_names"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(info))
    run = load_run(tmp_path / "run")
    config = parse(["sample", str(tmp_path / "run"), "--labels", "2", "0"])
    assert labels_for(run, config, 2).tolist() == [2, 0]
    status, said = command(
        "sample", tmp_path / "run", "--labels", "cat", "--out", tmp_path / "a.png"
    )
    assert status == 2 and "there is no class 'cat': Choose one of 0, 1, 2" in said
    changes = {"data": str(pets / "set"), "steps": "2", "batch": "8", "points": "4"}
    recipe = override(RECIPES["digits-boot-guided"], changes)
    train_recipe(recipe, tmp_path / "student", teacher=tmp_path / "run")


def test_a_run_with_names_that_make_no_sense_is_damaged(pets, tmp_path):
    shutil.copytree(pets / "run", tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    for names in (["a", "b"], [1, 2, 3], "abc", {"a": 1}, 7):
        (tmp_path / "run" / "run.json").write_text(json.dumps(info | {"class_names": names}))
        with pytest.raises(InputError, match="damaged"):
            load_run(tmp_path / "run")


def test_other_classes_than_the_teachers_or_the_beginnings_are_refused(pets, tmp_path):
    shutil.copytree(pets / "set", tmp_path / "set")
    (tmp_path / "set" / "cat2").rename(tmp_path / "set" / "eel")  # and cat10 becomes class 0
    changes = {"data": str(tmp_path / "set"), "steps": "6", "batch": "8", "points": "4"}
    recipe = override(RECIPES["digits-boot-guided"], changes)
    with pytest.raises(InputError, match="other classes, or in another order"):
        train_recipe(recipe, tmp_path / "student", teacher=pets / "run")
    recipe = override(RECIPES["digits-teacher-labels"], changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "export", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_recipe(recipe, tmp_path / "left", save_every=2)
    (tmp_path / "set" / "eel").rename(tmp_path / "set" / "ant")
    with pytest.raises(InputError, match="begun with the classes cat10, dog, eel in this order"):
        train_recipe(recipe, tmp_path / "left", resume=True)
    (tmp_path / "set" / "ant").rename(tmp_path / "set" / "eel")
    train_recipe(recipe, tmp_path / "left", resume=True)


def pictures(folder, count, size=8, mode="L", seed=0):
    """A folder of `count` random pictures, and nothing else."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for k in range(count):
        shape = (size, size, 3) if mode == "RGB" else (size, size)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:03}.png")
    return folder


def test_two_folders_are_compared_without_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = pictures(tmp_path / "a", 70), pictures(tmp_path / "b", 90, seed=1)
    status, said = command("evaluate", "a", "--reference", "b", "--features", "pixels")
    assert status == 0, said
    assert "70 images of a against 90 images of b" in said
    assert said.count("70 images are no more than the 192 features") == 2  # a warning, and the card
    assert said.count("consistency-edu: 70 images") == 1
    numbers = json.loads((tmp_path / "a-evaluation.json").read_text())
    card = numbers["rows"][0]["card"]
    assert (numbers["images"], numbers["reference"]) == ("a", "b")
    assert (card["samples"], card["reference_images"]) == (70, 90) and "192" in card["bias"]
    assert len(list(a.iterdir())) == 70 and len(list(b.iterdir())) == 90
    options = ["--reference", "b", "--features", "pixels", "-n", 30, "--out", "few.json"]
    assert command("evaluate", "a", *options)[0] == 0
    few = json.loads((tmp_path / "few.json").read_text())["rows"][0]
    assert few["card"]["samples"] == 30 and few["frechet"] != numbers["rows"][0]["frechet"]


def test_a_folder_is_at_no_distance_from_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "a", 70)
    options = ["--reference", "a", "--features", "pixels"]
    assert command("evaluate", "a", *options)[0] == 0
    row = json.loads((tmp_path / "a-evaluation.json").read_text())["rows"][0]
    assert row["frechet"] < 1e-6 and row["precision"] == row["recall"] == 1


def test_sets_that_do_not_fit_are_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, options in (
        ("a", {}),
        ("large", {"size": 16}),
        ("colour", {"mode": "RGB"}),
        ("one", {"count": 1}),
    ):
        pictures(tmp_path / name, **{"count": 20, **options})
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for args, remedy in (
        (["a", "--reference", "large"], "bring both to one size"),
        (["a", "--reference", "colour"], "to grey or colour"),
        (["one", "--reference", "a"], "at least two on each side"),
        (["a", "--reference", "one"], "at least two on each side"),
        (["empty", "--reference", "a"], "holds no images"),
        (["a", "--reference", "nowhere"], "Choose one of digits, cifar10"),
        (["nowhere", "--reference", "a"], "no finished run"),
        (["a"], "by --reference"),
        (["a", "--reference", "a", "--steps", 2], "leave --steps off"),
        (["large", "--reference", "large", "--features", "digits"], "8 x 8"),
        (["digits-cd", "--reference", "large", "--features", "pixels"], "another --reference"),
        (["digits-cd", "--reference", "colour", "--features", "pixels"], "another --reference"),
    ):
        status, said = command(
            "evaluate", *args, *(() if "digits" in args else ("--features", "pixels"))
        )
        assert status == 2 and remedy in said and "Traceback" not in said, (args, said)
        assert said.strip().count("consistency-edu:") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_numbers_are_not_written_among_the_images(tmp_path, monkeypatch):
    a, b = pictures(tmp_path / "a", 20), pictures(tmp_path / "b", 20)
    for here, words in ((a, (".", "--reference", b)), (b, (a, "--reference", "."))):
        monkeypatch.chdir(here)
        status, said = command("evaluate", *words, "--features", "pixels")
        assert status == 2 and "--out" in said and len(list(here.iterdir())) == 20
    status, _ = command(
        "evaluate", a, "--reference", ".", "--features", "pixels", "--out", tmp_path / "x.json"
    )
    assert status == 0 and (tmp_path / "x.json").is_file() and len(list(b.iterdir())) == 20


def test_the_command_runs_the_code_of_a_file_only_with_trust(tmp_path, monkeypatch):
    class Mean(torch.nn.Module):
        def forward(self, pixels):
            return pixels.float().mean((2, 3))

    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "a", 20)
    torch.jit.script(Mean()).save("net.pt")
    words = ["evaluate", "a", "--reference", "a", "--features", "net.pt"]
    status, said = command(*words)
    assert status == 2 and "--trust" in said and "code" in said
    status, said = command(*words, "--trust")
    assert status == 0 and "Fréchet distance, net.pt" in said and "deprecated" not in said


def test_a_run_warns_once_of_few_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["-n", 100, "--steps", 1, 2, "--features", "pixels"]
    status, said = command("evaluate", "digits-cd", *words)
    assert status == 0 and said.count("consistency-edu:") == 1
    assert said.count("100 images are no more than the 192 features") == 4  # floor, 1 and 2 steps
