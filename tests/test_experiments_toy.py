"""The toy experiment, small: its rows, its judges, and what is paired with what."""

import json

import pytest
import torch

from consistency_edu.consistency import ConsistencyModel
from consistency_edu.data import InputError
from consistency_edu.experiments import toy as recipes
from consistency_edu.experiments.benchmarks import toy_benchmark
from consistency_edu.experiments.toy import (
    METHODS,
    ToyConfig,
    chosen_methods,
    evaluate_cloud,
    guided_benchmark,
    label,
    run_toy,
    solution,
)
from consistency_edu.guidance import Guided
from consistency_edu.metrics import paired_error, sliced_w2
from consistency_edu.sampling import sample_one_step
from consistency_edu.training import Fitted


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of eight steps, and the rows that it wrote."""
    runs, start = [], recipes.start_run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "PAIRS", 64)
        patch.setattr(recipes, "animate_run", lambda run, student, path: path)
        patch.setattr(recipes, "start_run", lambda config: runs.append(start(config)) or runs[0])
        out = tmp_path_factory.mktemp("toy")
        config = ToyConfig(out=out, steps=8, samples=60, methods=("all",))
        files = run_toy(config, report=lambda text: None)
        return runs[0], json.loads(files["table"].read_text())["rows"]


@pytest.fixture
def run(finished):
    return finished[0]


@pytest.fixture
def rows(finished):
    return finished[1]


def test_every_method_has_its_rows(rows):
    kinds = [(row["method"], row["teacher"], row["nfe"]) for row in rows]
    students = [("direct", "learned", 1), ("pd", "learned", 2), ("pd", "learned", 1)]
    assert set(students + [("boot", "learned", 1), ("boot", "guided", 1)]) <= set(kinds)
    assert len(kinds) == len(set(kinds)) == 23
    assert len({label(row) for row in rows}) == 23


def test_only_walks_and_jumps_are_paired(rows):
    for row in rows:
        restarts = row["nfe"] == 2 and row["method"] in (
            "cd",
            "ct",
            "ict",
            "ect",
            "scd",
            "sct",
            "meanflow",
        )
        assert (row["paired_error"] is None) == restarts, row


def test_every_row_takes_its_share_of_the_steps(rows):
    few = {
        ("direct", "learned"): 2,
        ("pd", "learned"): 6,
        ("boot", "guided"): 4,
        ("exact", None): 0,
    }
    for row in rows:
        assert row["steps"] == few.get((row["method"], row["teacher"]), 8), row


def test_a_run_has_the_rows_of_the_methods_that_were_asked_for(tmp_path):
    config = ToyConfig(out=tmp_path, steps=2, samples=40, methods=("boot", "ct"))
    lines = []
    files = run_toy(config, report=lines.append)
    rows = json.loads(files["table"].read_text())["rows"]
    assert [row["method"] for row in rows] == ["exact", "teacher", "ct", "ct", "boot"]
    assert [line.partition(",")[0] for line in lines[2:]] == ["CT", "CT", "BOOT (learned teacher)"]
    assert all(path.stat().st_size for path in files.values()) and "animation" in files


def test_the_animation_shows_the_first_student(tmp_path, monkeypatch):
    shown = []
    fake = lambda run, student, path: shown.append(student) or path  # noqa: E731
    monkeypatch.setattr(recipes, "animate_run", fake)
    run_toy(ToyConfig(out=tmp_path, steps=2, samples=40, methods=("pd",)), report=print)
    assert [(row["method"], row["nfe"]) for row in shown] == [("pd", 1)]


def test_methods_are_chosen_by_name_in_the_tables_order():
    chosen = lambda *names: chosen_methods(ToyConfig(methods=names))  # noqa: E731
    assert chosen("boot", "cd", "boot") == ["cd", "boot"] and chosen() == []
    assert chosen("all") == chosen("all", "cd") == list(METHODS)
    short = chosen_methods(ToyConfig())
    assert set(METHODS) - set(short) == {
        "cd_exact",
        "ict",
        "ect",
        "scd",
        "sct",
        "meanflow",
        "boot_guided",
    }
    assert set(chosen("default", "cd_exact")) == {*short, "cd_exact"}


def test_an_unknown_method_is_told_of_before_any_work(tmp_path):
    with pytest.raises(InputError, match="did you mean 'boot'"):
        run_toy(ToyConfig(out=tmp_path, steps=2, samples=40, methods=("cd", "bot")), report=print)
    assert not list(tmp_path.iterdir())


def test_one_entry_is_a_method(tmp_path, monkeypatch):
    train = lambda run, teacher: Fitted(teacher, [0.5], 1.0)  # noqa: E731
    sample = lambda run, fitted: [recipes.walk(run, fitted.model, fitted)]  # noqa: E731
    entry = recipes.Method("Twin", "exact", train, sample)
    monkeypatch.setitem(METHODS, "twin", entry)
    monkeypatch.setitem(recipes.TITLES, "twin", "Twin")
    config = ToyConfig(out=tmp_path, steps=2, samples=40, methods=("twin",))
    rows = json.loads(run_toy(config, report=print)["table"].read_text())["rows"]
    own, exact = rows[-1], rows[0]
    assert (own["method"], own["teacher"], own["steps"]) == ("twin", "exact", 1)
    assert own["sliced_w2"] == exact["sliced_w2"]


def test_students_start_from_the_teacher_and_leave_it_alone(run):
    teacher = run.teachers["learned"]
    assert not any(p.requires_grad for p in teacher.parameters())
    copies = run.copied_teacher(), run.from_teacher(ConsistencyModel)
    for copied in copies:
        assert all(p.requires_grad for p in copied.parameters())
        assert copied.network is not teacher.network
        assert all(map(torch.equal, copied.network.parameters(), teacher.network.parameters()))


def test_the_direct_student_takes_one_step(run, monkeypatch):
    monkeypatch.setattr(recipes, "PAIRS", 64)
    assert recipes.train_direct(run, run.teachers["learned"]).model.steps == 1


def test_methods_are_trained_on_the_teacher_that_their_rows_name(run, monkeypatch):
    asked, rows = {}, list(run.rows)
    for name, method in METHODS.items():
        fake = lambda run, teacher, name=name: asked.update({name: teacher})  # noqa: E731
        monkeypatch.setitem(METHODS, name, method._replace(train=fake, sample=lambda *a: []))
    learned = run.teachers["learned"]
    list(recipes.measured_rows(run))
    teachers = dict(run.teachers)
    run.teachers["learned"], run.rows[:] = learned, rows
    assert asked == {name: teachers.get(method.teacher) for name, method in METHODS.items()}
    assert asked["cd"] is not asked["cd_exact"] is not None


def test_cd_asks_its_teacher(run):
    counted = recipes.Counted(run.bench.exact)
    recipes.train_cd(run, counted)
    assert counted.evaluations == 16  # Heun's two, in each of 8 steps


def test_two_steps_restart_at_tau(run, monkeypatch):
    levels, student = [], Fitted(run.from_teacher(ConsistencyModel), [], 0.0)
    fake = lambda model, noise, sigmas, generator: levels.extend(sigmas) or noise  # noqa: E731
    monkeypatch.setattr(recipes, "sample_multistep", fake)
    once, twice = recipes.sample_twice(run, student)
    assert levels == [5.0, 0.35]
    assert (once.nfe, once.is_paired, twice.nfe, twice.is_paired) == (1, True, 2, False)


def test_clouds_are_held_to_the_benchmark():
    bench = toy_benchmark("moons", 200)
    fresh, ends = (evaluate_cloud(cloud, bench) for cloud in (bench.fresh, bench.ends))
    assert fresh["sliced_w2"] == 0 < ends["sliced_w2"]
    assert ends["paired_error"] == 0 < fresh["paired_error"]
    assert fresh["energy_distance"] < ends["energy_distance"]
    assert evaluate_cloud(bench.ends, bench, is_paired=False)["paired_error"] is None
    fine = sample_one_step(solution(bench.exact, steps=48), bench.noise)
    assert paired_error(bench.ends, fine) < 1e-3


def test_the_guided_benchmark_asks_the_guided_teacher(generator):
    bench = toy_benchmark("moons", 200)
    teacher = Guided(bench.exact, 2.0)
    guided, labels = guided_benchmark(bench, teacher, generator)
    assert torch.equal(guided.noise, bench.noise)
    assert torch.bincount(labels).tolist() == [100, 100]
    exact = sample_one_step(solution(teacher, steps=24), bench.noise, labels)
    assert torch.allclose(guided.ends, exact)
    assert (guided.fresh - guided.ends).norm(dim=1).median() > 0.1  # from other noises
    assert sliced_w2(guided.ends, bench.fresh) > sliced_w2(bench.ends, bench.fresh)


def test_a_perfect_guided_student_has_no_paired_error(run, monkeypatch):
    perfect = Fitted(solution(Guided(run.bench.exact, 2.0), steps=24), [], 0.0)
    _, bench = recipes.train_guided_boot(run)
    (sampled,) = recipes.sample_guided(run, (perfect, bench))
    recipes.record(run, "boot", "guided", sampled)
    assert run.rows.pop()["paired_error"] < 1e-4


def test_the_guided_student_learns_from_the_guided_teacher(run, monkeypatch):
    teachers, boot = [], recipes.Boot
    spy = lambda online, teacher, grid: teachers.append(teacher) or boot(online, teacher, grid)  # noqa: E731
    monkeypatch.setattr(recipes, "Boot", spy)
    recipes.train_guided_boot(run)
    assert isinstance(teachers[0], Guided)
