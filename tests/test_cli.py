"""The command line: exit statuses, one sentence for bad input, and files that are always whole."""

import json
import signal
import subprocess
import time

import pytest
from conftest import COMMAND, quiet_environment, run_cli


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
        (["digits-cd", "--out", "x"], "train digits-teacher first"),
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


@pytest.mark.slow
def test_tables_of_what_there_is(tmp_path):
    for command, words in (
        ("recipes", "cifar10-boot-mini"),
        ("doctor", "torch"),
        ("sweep", "runs"),
    ):
        done = run_cli(command, cwd=tmp_path)
        assert done.returncode == 0 and words in done.stdout, done.stderr
    done = run_cli("sweep", "boott", cwd=tmp_path)
    assert done.returncode == 2 and "there is no sweep" in sentence(done)


@pytest.mark.slow
def test_the_digits_table_goes_on_method_by_method(tmp_path):
    common = ("digits", "--effort", 0.002, "--seed", 3)
    for only, count in ((["--only", "teacher"], 2), ([], 11)):
        done = run_cli(*common, *only, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        table = json.loads((tmp_path / "results" / "digits_seed3.json").read_text())
        assert len(table["rows"]) == count
    assert (tmp_path / "images" / "digits_seed3.png").exists()
    done = run_cli(*common[:1], "--only", "boott", cwd=tmp_path)
    assert done.returncode == 2 and "did you mean 'boot'?" in sentence(done)


@pytest.mark.slow
def test_a_small_run_writes_whole_files_and_overwrites_them(tmp_path):
    for steps in (2, 13):
        done = run_cli("toy", "--steps", steps, "--samples", 40, "--seed", 7, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        table = json.loads((tmp_path / "results" / "toy_moons_seed7.json").read_text())
        for row in table["rows"]:  # PD shares its steps among six rounds, guidance between two
            shared = {"exact": 0, "pd": 6 * max(1, steps // 6)}.get(row["method"], steps)
            assert row["steps"] == (max(1, steps // 2) if row["teacher"] == "guided" else shared)
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
