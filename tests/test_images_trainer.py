"""Runs in folders: progress, metrics, resuming, refusing, and what is left at the end."""

import dataclasses
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import pytest
import torch
from conftest import COMMAND, quiet_environment
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from consistency_edu import (
    acceleration,
    data,
    distillation,
    evaluation,
    files,
    guidance,
    image_loader,
    image_sets,
    progressive,
    viz,
)
from consistency_edu.checkpoints import checksum, weights_of
from consistency_edu.cli import main
from consistency_edu.data import InputError
from consistency_edu.files import BOUNDS
from consistency_edu.images import runs, setup, trainer
from consistency_edu.images.methods import override
from consistency_edu.images.progress import MetricsLogger, Progress, read_metrics
from consistency_edu.images.recipes import RECIPES, Recipe
from consistency_edu.images.runs import load_pretrained, load_run
from consistency_edu.images.setup import make_batches
from consistency_edu.images.trainer import Trainer, train_recipe
from consistency_edu.long_runs import CheckpointManager, Interrupted, hold
from consistency_edu.training import TrainingDiverged
from consistency_edu.viz import image_grid

TEACHER = override(RECIPES["digits-teacher"], {"steps": "60", "batch": "16"})


def short(name, **choices):
    recipe = dataclasses.replace(RECIPES[name], steps=14, batch=16)
    return dataclasses.replace(recipe, **{"pairs": 0, **choices})


def needs(method, teacher):
    """What train_recipe must be given for `method` besides its recipe."""
    start = {"start": teacher}
    given = {"ct": {}, "ict": {}, "meanflow": {}, "ect": start, "sct": start}
    return given.get(method, {"teacher": teacher})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return train_recipe(TEACHER, tmp_path_factory.mktemp("runs") / "teacher")


class Clock(Progress):
    """A run with half a second for each step."""

    @property
    def seconds(self):
        return 0.5 * self.step


@pytest.mark.parametrize("choices", [{"steps": 120}, {"steps": 7, "minutes": 1.0}])
def test_the_rate_ends_at_zero_by_steps_and_by_the_clock(choices):
    recipe = Recipe("try", warmup=10, **choices)
    progress, rates = Clock(recipe, nn.Module()), []
    for progress.step in range(121):
        rates.append(progress.rate(progress.step, 10**9))
    assert rates[0] == pytest.approx(0.1, abs=0.01) and rates[60] == pytest.approx(0.5)
    assert rates[120] == 0 and progress.fraction == 1
    assert all(a >= b for a, b in zip(rates[10:], rates[11:]))


def test_by_the_clock_the_objective_is_told_its_length():
    recipe, objective = Recipe("try", minutes=1.0), nn.Module()
    objective.total_steps = 5000
    progress = Clock(recipe, objective)
    state = type("State", (), {"step": 30})
    assert progress.update(state) and objective.total_steps == 120
    state.step = 120
    assert not progress.update(state)


def test_by_steps_the_length_is_left_alone():
    objective = nn.Module()
    objective.total_steps = 77
    Clock(Recipe("try", steps=50), objective).update(type("State", (), {"step": 30}))
    assert objective.total_steps == 77


@pytest.mark.parametrize(
    "method", ["cd", "ct", "ict", "ect", "scd", "sct", "meanflow", "dmd", "pd", "direct", "boot"]
)
def test_every_method_leaves_a_whole_run(method, teacher, tmp_path):
    folder = train_recipe(short(f"digits-{method}"), tmp_path / method, **needs(method, teacher))
    names = {path.name for path in folder.iterdir()}
    wanted = {"run.json", "recipe.json", "metrics.jsonl", "samples.png", "card.md"}
    assert wanted | {"model.safetensors"} <= names
    assert "checkpoints" not in names and not [n for n in names if n.startswith(".partial")]
    run = load_run(folder)
    noise = torch.randn(3, *run.shape)
    one = run.sample(noise)
    assert one.shape == noise.shape and one.isfinite().all()
    if method == "pd":
        assert not torch.equal(load_run(folder, steps=2).sample(noise), one)
    text = (folder / "card.md").read_text()
    assert ("no data" in text) == (method in ("dmd", "direct", "boot")) and "limits" in text


def interrupt_at(step, number=signal.SIGINT):
    class Struck(Trainer):
        def record(self, state):
            super().record(state)
            if state.step == step:
                signal.raise_signal(number)

    return Struck


@pytest.mark.parametrize("method", ["teacher", "pd", "boot"])
def test_a_resumed_run_ends_where_an_undisturbed_one_does(method, teacher, tmp_path, monkeypatch):
    recipe = short(f"digits-{method}")
    whole = train_recipe(recipe, tmp_path / "whole", teacher=teacher)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Trainer", interrupt_at(9))
        with pytest.raises(Interrupted):
            train_recipe(recipe, tmp_path / "broken", teacher=teacher)
    assert not (tmp_path / "broken" / "run.json").exists()
    broken = train_recipe(recipe, tmp_path / "broken", teacher=teacher, resume=True)
    pair = [load_file(folder / "model.safetensors") for folder in (whole, broken)]
    assert all(torch.equal(value, pair[1][name]) for name, value in pair[0].items())
    rows = [[(row["step"], row["loss"]) for row in read_metrics(run)] for run in (whole, broken)]
    assert rows[0] == rows[1] and rows[0][-1][0] == 14


def test_a_run_tells_what_it_was_made_from(teacher, tmp_path):
    plain = train_recipe(short("digits-teacher"), tmp_path / "plain", teacher=teacher)
    first = train_recipe(short("digits-cd"), tmp_path / "first", teacher=teacher)
    second = tmp_path / "second"
    options = {"teacher": teacher, "start": tmp_path / "plain" / ".." / "first"}
    train_recipe(short("digits-cd"), second, **options)
    told = [json.loads((run / "run.json").read_text()) for run in (first, second, plain)]
    name = Path(teacher).name
    assert [info.get("teacher") for info in told] == [name, name, None]
    assert [info.get("start") for info in told] == [None, "first", None]
    made = f"- **made from**: its teacher is `{name}`"
    assert made + "\n" in (first / "card.md").read_text()
    text = (second / "card.md").read_text()
    assert made + ", its first weights are those of `first`\n" in text
    assert str(tmp_path) not in text and "made from" not in (plain / "card.md").read_text()


def test_cached_pairs_are_made_by_a_teacher_that_is_fast_by_then(teacher, tmp_path, monkeypatch):
    order, first = [], setup.make_pairs

    def make_pairs(*args, **options):
        order.append(options["batch_size"])
        return first(*args, **options)

    monkeypatch.setattr(setup, "compile_objective", lambda *_: order.append("prepare"))
    monkeypatch.setattr(setup, "make_pairs", make_pairs)
    recipe = override(short("digits-direct"), {"batch": "24", "pairs": "40"})
    made = Trainer.from_recipe(recipe, tmp_path / "direct", teacher=teacher)
    assert order == ["prepare", 24]  # in batches of the size that was compiled
    assert len(made.objective.pairs.noise) == 40


def test_ect_without_a_denoiser_to_start_from_learns_to_denoise_or_is_refused(teacher, tmp_path):
    with pytest.raises(
        InputError, match="train digits-teacher first.* --start, or add --denoising"
    ):
        train_recipe(short("digits-ect"), tmp_path / "ect")
    assert not (tmp_path / "ect").exists()
    train_recipe(short("digits-ect", denoising=0.4), tmp_path / "ect")


@pytest.mark.parametrize("method", ["teacher", "cd", "direct"])
def test_a_batch_in_parts_is_one_step(method, teacher, tmp_path):
    seen, recipe = [], short(f"digits-{method}", steps=3, accumulate=4)
    made = Trainer.from_recipe(recipe, tmp_path / "run", **needs(method, teacher))
    made.objective.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    made.open_log()
    assert made.fit().step == 3 and seen == [4] * 12
    assert read_metrics(tmp_path / "run")[-1]["images_per_second"] == pytest.approx(
        48 / made.progress.seconds, rel=0.2
    )


@pytest.mark.parametrize(
    ("device", "precision", "has_units", "expected"),
    [
        ("cuda", "bfloat16", True, "bfloat16"),
        ("cuda", "bfloat16", False, "float16"),
        ("cuda", "float32", False, "float32"),
        ("cpu", "bfloat16", False, "bfloat16"),  # of what no CPU computes in anyway
    ],
)
def test_a_card_without_bfloat16_takes_float16(
    device, precision, has_units, expected, monkeypatch, recwarn
):
    monkeypatch.setattr(setup, "has_bfloat16_units", lambda _: has_units)
    recipe = setup.fit_precision(Recipe("try", precision=precision), torch.device(device))
    assert recipe == Recipe("try", precision=expected)
    assert ["training in float16" in str(w.message) for w in recwarn] == [True] * (
        expected != precision
    )


def test_a_run_takes_the_precision_that_fits(tmp_path, monkeypatch):
    def fit(recipe, device):
        return dataclasses.replace(recipe, precision="float16")

    monkeypatch.setattr(trainer, "fit_precision", fit)
    recipe = short("digits-teacher", steps=1, precision="bfloat16")
    folder = train_recipe(recipe, tmp_path / "run")
    assert load_run(folder).recipe.precision == "float16"
    assert train_recipe(recipe, folder, resume=True) == folder


def test_what_cached_pairs_cost_is_told(teacher, tmp_path, monkeypatch):
    first = setup.make_pairs
    slow = lambda *args, **options: (time.sleep(0.3), first(*args, **options))[1]  # noqa: E731
    monkeypatch.setattr(setup, "make_pairs", slow)
    recipe = override(short("digits-direct"), {"pairs": "40"})
    folder = train_recipe(recipe, tmp_path / "direct", teacher=teacher)
    assert load_run(folder).info["pairs_seconds"] >= 0.3
    assert "s for its pairs and" in (folder / "card.md").read_text()
    assert "its pairs" not in (teacher / "card.md").read_text()


def test_the_two_step_student_is_the_one_that_the_last_round_started_from(
    teacher, tmp_path, monkeypatch
):
    """Of 12 steps the round to 2 steps has 4, and the last one 8."""
    at_the_end_of_a_round = []

    class Watching(Trainer):
        def record(self, state):
            super().record(state)
            if state.step == 4:
                at_the_end_of_a_round.append(weights_of(state.objective.online))

    monkeypatch.setattr(trainer, "Trainer", Watching)
    recipe = short("digits-pd", steps=12, points=4)
    folder = train_recipe(recipe, tmp_path / "pd", teacher=teacher)
    two, one = (load_file(folder / f"{name}.safetensors") for name in ("two_steps", "model"))
    (student,) = at_the_end_of_a_round
    assert set(two) == set(student)
    assert all(torch.equal(value, student[name]) for name, value in two.items())
    assert any(not torch.equal(value, one[name]) for name, value in two.items())


def test_progressive_distillation_leaves_two_students(teacher, tmp_path):
    folder = train_recipe(short("digits-pd"), tmp_path / "pd", teacher=teacher)
    for steps, name in ((1, "model"), (2, "two_steps")):
        found, kept = load_run(folder, steps=steps), load_file(folder / f"{name}.safetensors")
        loaded = dict(found.model.named_parameters())
        assert any(torch.equal(loaded[key], kept[name]) for key, name in ends(loaded, kept))
        assert all(torch.equal(loaded[key], kept[name]) for key, name in ends(loaded, kept))


def ends(loaded, kept):
    """The pairs of names of which one ends with the other: a wrapper adds to their beginnings."""
    return [(key, name) for key in loaded for name in kept if key.endswith(name)]


def test_the_clock_and_tensorboard_go_on_at_a_resume(tmp_path, monkeypatch):
    accumulator = "tensorboard.backend.event_processing.event_accumulator"
    events, spent = pytest.importorskip(accumulator), []

    class Spy(Progress):
        def __init__(self, recipe, objective, seconds=0.0, step=0):
            super().__init__(recipe, objective, seconds, step)
            spent.append(seconds)

    monkeypatch.setattr(trainer, "Progress", Spy)
    recipe, options = short("digits-ct", steps=120), {"tensorboard": True, "save_every": 40}
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Trainer", interrupt_at(60))
        with pytest.raises(Interrupted):
            train_recipe(recipe, tmp_path / "run", **options)
    train_recipe(recipe, tmp_path / "run", resume=True, **options)
    events_of = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events_of.Reload()
    shown = [(event.step, event.value) for event in events_of.Scalars("loss")]
    rows = read_metrics(tmp_path / "run")
    assert [step for step, _ in shown] == [row["step"] for row in rows] == [50, 100, 120]
    assert [value for _, value in shown] == pytest.approx([row["loss"] for row in rows])
    assert spent[0] == 0 < spent[-1]
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["checkpoints"] == 3 and 0 < info["checkpoint_seconds"] < info["seconds"]


def test_without_tensorboard_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        train_recipe(short("digits-ct"), tmp_path / "run", tensorboard=True)


def test_damaged_weights_are_noticed(teacher, tmp_path):
    run = shutil.copytree(teacher, tmp_path / "run")
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-5] ^= 4
    (run / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="model.safetensors.*checksum is another one"):
        load_run(run)


def test_other_choices_are_not_resumed(teacher):
    for recipe, seed in ((override(TEACHER, {"lr": "1e-5"}), 0), (TEACHER, 1)):
        with pytest.raises(InputError, match="was begun with"):
            train_recipe(recipe, teacher, seed=seed, resume=True)
    assert train_recipe(TEACHER, teacher, resume=True) == teacher


def test_a_run_is_not_overwritten(teacher):
    with pytest.raises(InputError, match="--resume"):
        train_recipe(TEACHER, teacher)


def test_a_student_needs_its_teachers_run(tmp_path):
    with pytest.raises(InputError, match="train digits-teacher first"):
        train_recipe(short("digits-cd"), tmp_path / "cd")
    with pytest.raises(InputError, match="no finished run"):
        train_recipe(short("digits-cd"), tmp_path / "cd", teacher=tmp_path)
    assert not (tmp_path / "cd").exists()


def test_a_teacher_of_other_images_is_refused(teacher, tmp_path):
    from PIL import Image

    for k in range(3):
        Image.new("L", (12, 12), 40 * k).save(tmp_path / f"{k}.png")
    recipe = short("digits-cd", data=str(tmp_path), size=12)
    with pytest.raises(InputError, match="choose a teacher of this data"):
        train_recipe(recipe, tmp_path / "run", teacher=teacher)
    with pytest.raises(InputError, match="leave --labels off"):
        train_recipe(short("digits-teacher", data=str(tmp_path), labels=True), tmp_path / "run")


def test_no_gpu_is_one_sentence(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(InputError, match="sees no GPU"):
        train_recipe(short("cifar10-teacher"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_free_runs_see_no_data(teacher, tmp_path):
    made = Trainer.from_recipe(short("digits-boot"), tmp_path / "boot", teacher=teacher)
    x, labels = next(made.batches)
    assert x.shape == (16, 1, 8, 8) and x.isnan().all() and labels is None
    x, _ = next(Trainer.from_recipe(short("digits-ct"), tmp_path / "ct").batches)
    assert x.isfinite().all()


def test_a_run_starts_from_another_runs_weights(teacher, tmp_path):
    made = Trainer.from_recipe(short("digits-ct"), tmp_path / "ct", start=teacher)
    theirs = load_run(teacher).model.network.state_dict()
    ours = made.objective.online.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(v, theirs[name]) for name, v in ours.items())


@pytest.mark.parametrize("labels", [True, False])
def test_batches_without_data_draw_all_classes_and_as_many_numbers_without_labels(labels):
    recipe = override(RECIPES["digits-boot"], {"labels": labels, "batch": 400})
    rng, same = (torch.Generator().manual_seed(0) for _ in range(2))
    digits = image_sets.load_images("digits")
    x, drawn = next(make_batches(recipe, digits, torch.device("cpu"), rng))
    expected = (torch.rand(400, generator=same) * 10).long()
    assert x.shape == (400, 1, 8, 8) and x.isnan().all()
    assert torch.equal(rng.get_state(), same.get_state())
    assert torch.equal(drawn, expected) if labels else drawn is None
    assert expected.bincount(minlength=10).min() > 20


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    rows = [{"step": 50 * k, "seconds": 2.0 * k} for k in (1, 2, 3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 2')
    MetricsLogger(tmp_path, 100)
    assert [row["seconds"] for row in read_metrics(tmp_path)] == [2.0, 4.0]
    MetricsLogger(tmp_path)
    assert read_metrics(tmp_path) == []


def test_a_grid_keeps_each_image_together():
    x = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 3, 2, 2) / 3 - 1
    grid = image_grid(x, columns=4)
    assert grid.shape == (4, 8, 3)
    assert (grid[:2, 2:4] == (x[1, 0, 0, 0] + 1) / 2).all()
    assert (grid[2:, :2] == (x[4, 0, 0, 0] + 1) / 2).all() and (grid[2:, 4:] == 1).all()
    upright = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).expand(1, 1, 2, 2)
    assert image_grid(upright, columns=1)[..., 0].tolist() == [[0, 0], [1, 1]]


def test_the_average_is_what_is_kept(tmp_path):
    runs = [
        train_recipe(short("digits-teacher", ema=ema), tmp_path / str(ema)) for ema in (0.0, 0.9)
    ]
    pair = [load_file(run / "model.safetensors") for run in runs]
    assert any(not torch.equal(value, pair[1][name]) for name, value in pair[0].items())


def test_what_a_run_claims_is_bounded_before_it_is_read(tmp_path, monkeypatch):
    assert BOUNDS["bytes of weights"][0] >= 2**32  # more than any U-Net of the course has
    monkeypatch.setitem(BOUNDS, "bytes of weights", (2**20, "copy the file anew"))
    for name, read, most in (
        ("run.json", runs.read_json, 2**24),
        ("model.safetensors", runs.read_weights, 2**20),
    ):
        with (tmp_path / name).open("wb") as file:
            file.truncate(most + 1)  # a hole
        with pytest.raises(InputError, match=f"claims {most + 1:,} bytes.*copy the run anew"):
            read(tmp_path / name)
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="a pipe or a device.*copy the run anew"):
            read(tmp_path / name)


def test_weights_whose_headers_claim_too_much_are_refused(tmp_path):
    for claim in (
        {"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [0, 2**62, 8], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**62]}},
    ):
        header = json.dumps(claim).encode()
        path = tmp_path / "model.safetensors"
        for length in (len(header), 2**40, 2**63 + 1):
            path.write_bytes(length.to_bytes(8, "little") + header + bytes(4))
            with pytest.raises(InputError, match="cannot load"):
                runs.read_weights(path)


# ------------------------------------------------------------------ one run in one folder


def spellings(folder, tmp_path):
    """Other ways to name `folder`, which lies in `tmp_path`."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path, target_is_directory=True)
    ways = [folder, tmp_path / "x" / ".." / folder.name, link / folder.name, f"{folder}/"]
    return [*ways, os.path.relpath(folder)]


def test_a_folder_has_one_run_at_a_time_however_it_is_spelt(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    folder, said = tmp_path / "run", []
    ways = spellings(folder, tmp_path)

    class Second(Trainer):
        def record(self, state):
            super().record(state)
            for way in ways if state.step == 3 else ():
                for resume in (True, False):
                    with pytest.raises(InputError, match="another process is training the run"):
                        train_recipe(short("digits-ct"), way, resume=resume)
                    said.append(way)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Trainer", Second)
        train_recipe(short("digits-ct"), folder)
    assert len(said) == 10 and not list(folder.glob(".*"))
    assert train_recipe(short("digits-ct"), ways[1], resume=True) == ways[1]


def begin_and_wait(folder, steps=10**6):
    """A process of its own that trains into `folder`, once it has a checkpoint there."""
    options = ["--batch", "8", "--steps", str(steps), "--out", str(folder), "--save-every", "5"]
    command = [COMMAND, "train", "digits-ct", *options]
    process = subprocess.Popen(command, env=quiet_environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list((folder / "checkpoints").glob("step_*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


def test_a_second_process_is_kept_out_and_a_killed_one_is_not_waited_for(tmp_path, capsys):
    folder = tmp_path / "run"
    args = ["train", "digits-ct", "--batch=8", f"--out={folder}", "--resume"]
    first = begin_and_wait(folder)
    try:
        assert main([*args, "--steps=1000000"]) == 2
        assert "another process is training the run" in capsys.readouterr().err
    finally:
        first.kill(), first.wait()
    assert (folder / ".lock").exists()
    reached = int(CheckpointManager(folder / "checkpoints").folders[-1].name[5:])
    assert main([*args, "--steps=1000000", "--lr=1e-5"]) == 2
    assert "begun with lr" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Trainer", interrupt_at(reached + 3))
        assert main([*args, "--steps=1000000"]) == 130
    assert not (folder / ".lock").exists()


def test_a_lock_of_another_machine_is_a_persons_matter(tmp_path):
    (tmp_path / ".lock").write_text('{"process": 1, "machine": "far away"}')
    with pytest.raises(InputError, match="machine, 'far away'.*remove '.*.lock'"):
        train_recipe(short("digits-ct"), tmp_path)
    (tmp_path / ".lock").unlink()
    for torn in ("", "{", '{"process": 1', "[]", "7"):
        (tmp_path / ".lock").write_text(torn)
        with hold(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


# ------------------------------------------------------------------ what a run was begun with


def left_at_9(recipe, folder, monkeypatch, **options):
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Trainer", interrupt_at(9))
        with pytest.raises(Interrupted):
            train_recipe(recipe, folder, **options)
    return folder


def pictures(folder, shift=0):
    """A folder of twenty grey images of 8 x 8 pixels."""
    (folder / "a").mkdir(parents=True)
    for k in range(20):
        pixels = torch.rand(8, 8, generator=torch.Generator().manual_seed(k + shift))
        Image.fromarray((255 * pixels).byte().numpy()).save(folder / "a" / f"{k}.png")
    return folder


def test_teacher_start_and_data_of_a_resumed_run_are_its_own(teacher, tmp_path, monkeypatch):
    other = train_recipe(override(TEACHER, {"lr": "1e-3"}), tmp_path / "other")
    same = shutil.copytree(teacher, tmp_path / "moved")
    data = pictures(tmp_path / "data")
    recipe = short("digits-cd", data=str(data))
    options = {"teacher": teacher, "start": teacher}
    run = left_at_9(recipe, tmp_path / "run", monkeypatch, **options)
    for changed, words in (
        ({"teacher": other}, "another teacher"),
        ({"start": other}, "other first weights"),
        ({"start": None}, "other first weights"),
    ):
        with pytest.raises(InputError, match=f"was begun with {words}.*resume it as it was"):
            train_recipe(recipe, run, resume=True, **{**options, **changed})
    data.rename(tmp_path / "kept")
    pictures(data, shift=1)
    with pytest.raises(InputError, match="was begun with other images in its data"):
        train_recipe(recipe, run, resume=True, **options)
    shutil.rmtree(data), (tmp_path / "kept").rename(data)
    respelt = dataclasses.replace(recipe, data=f"{tmp_path}/run/../data/")
    train_recipe(respelt, run, resume=True, teacher=same, start=same)


def test_the_checkpoint_itself_says_what_it_was_begun_with(tmp_path, monkeypatch):
    recipe = short("digits-ct")
    run = left_at_9(recipe, tmp_path / "run", monkeypatch)
    begun = json.loads((run / "recipe.json").read_text())
    for name, value in (("seed", 7), ("recipe", {**begun["recipe"], "lr": 0.5})):
        (run / "recipe.json").write_text(json.dumps({**begun, name: value}))
        changed = {"seed": 7} if name == "seed" else {}
        asked = recipe if changed else dataclasses.replace(recipe, lr=0.5)
        with pytest.raises(InputError, match="was begun with"):  # the file agrees, not the weights
            train_recipe(asked, run, resume=True, **changed)


def test_a_checkpoint_that_says_nothing_of_it_is_resumed(tmp_path, monkeypatch):
    recipe = short("digits-ct")
    run = left_at_9(recipe, tmp_path / "run", monkeypatch)
    newest = CheckpointManager(run / "checkpoints").folders[-1]
    state = json.loads((newest / "state.json").read_text())
    del state["extra"]["begun"]
    (newest / "state.json").write_text(json.dumps(state))
    sums = json.loads((newest / "manifest.json").read_text())
    sums["state.json"] = checksum((newest / "state.json").read_bytes())
    (newest / "manifest.json").write_text(json.dumps(sums))
    old = {"recipe": dataclasses.asdict(recipe), "seed": 0}
    del old["recipe"]["clamp"]  # a field that is newer than the run
    (run / "recipe.json").write_text(json.dumps(old))
    assert load_run(train_recipe(recipe, run, resume=True)).info["steps"] == 14


# ------------------------------------------------------------------ roles


@pytest.fixture(scope="module")
def students(teacher, tmp_path_factory):
    place = tmp_path_factory.mktemp("students")
    methods = ("cd", "ct", "ict", "ect", "scd", "sct", "meanflow", "dmd", "pd", "direct", "boot")
    return {
        m: train_recipe(short(f"digits-{m}", steps=2), place / m, **needs(m, teacher))
        for m in methods
    }


def test_only_a_teacher_can_teach(students, tmp_path, capsys):
    for method, student in students.items():
        for pupil in ("cd", "pd", "direct", "boot"):
            with pytest.raises(InputError, match=f"a student, a run of {method}, and cannot"):
                train_recipe(short(f"digits-{pupil}"), tmp_path / "run", teacher=student)
    args = ["train", "digits-cd", f"--out={tmp_path / 'run'}", f"--teacher={students['boot']}"]
    assert main(args) == 2 and "cannot teach" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_to_start_from_mean_the_same(students, teacher, tmp_path):
    alike = ("cd", "ct", "ict", "ect", "scd", "sct", "dmd")
    pairs = {(a, b) for a in alike for b in alike} | {(m, m) for m in students}
    for method, student in students.items():
        for begun in ("teacher", *students):
            options = {"teacher": teacher, "start": student}
            recipe = short(f"digits-{begun}", steps=1)
            if (begun, method) in pairs:
                Trainer.from_recipe(recipe, tmp_path / "fine", **options)
                continue
            with pytest.raises(InputError, match=f"is a run of {method}, whose weights"):
                train_recipe(recipe, tmp_path / "run", **options)
    for begun in ("teacher", *students.keys() - {"meanflow"}):
        recipe = short(f"digits-{begun}", steps=1)
        Trainer.from_recipe(recipe, tmp_path / "fine", teacher=teacher, start=teacher)
    assert not (tmp_path / "run").exists()


def test_edits_need_a_student_that_jumps_from_any_level(students, teacher, tmp_path, capsys):
    Image.new("L", (8, 8), 100).save(tmp_path / "x.png")
    tasks = [["--task=stroke", f"--image={tmp_path / 'x.png'}"], ["--task=interpolate"]]
    for method, run in {**students, "teacher": teacher}.items():
        for task in tasks:
            status = main(["edit", str(run), *task, f"--out={tmp_path / 'y.png'}"])
            said = capsys.readouterr().err
            fits = method in ("cd", "ct", "ict", "ect", "scd", "sct", "meanflow", "dmd") or (
                task == tasks[1] and method != "teacher"
            )
            assert status == (0 if fits else 2), said
            assert fits or "a consistency model" in said or "is a teacher" in said


# ------------------------------------------------------------------ weights, pictures, spread


def poison(monkeypatch, at, spoil):
    """Let `spoil` change the weights of a run after step `at`, with a loss that stays finite."""

    class Poisoned(Trainer):
        def record(self, state):
            if state.step == at:
                with torch.no_grad():
                    for module in (state.objective.online, state.ema.model):
                        spoil(next(module.parameters()))
            super().record(state)

    monkeypatch.setattr(trainer, "Trainer", Poisoned)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e12])
@pytest.mark.parametrize("at", [9, 14])
def test_a_run_never_ends_well_with_bad_weights(at, value, tmp_path, monkeypatch):
    folder, recipe = tmp_path / "run", short("digits-ct")
    with monkeypatch.context() as patch:
        poison(patch, at, lambda weight: weight.fill_(value))
        with pytest.raises(TrainingDiverged, match="The last good checkpoint is '.*step_0") as told:
            train_recipe(recipe, folder, save_every=3)
    assert "--resume repeats the run from there" in str(told.value)
    kept = CheckpointManager(folder / "checkpoints").latest()
    assert kept.step < at and all(w.isfinite().all() for w in kept.objective.values())
    assert not (folder / "run.json").exists() and not (folder / "model.safetensors").exists()
    assert load_run(train_recipe(recipe, folder, resume=True)).info["steps"] == 14


def test_no_picture_is_drawn_of_nan(tmp_path, teacher, capsys, monkeypatch):
    figures = viz.plt.get_fignums()
    with pytest.raises(InputError, match="not finite"):
        image_grid(torch.full((4, 1, 2, 2), float("nan")))
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "draw_samples", lambda *args, **options: args[2] * torch.inf)
        with pytest.raises(TrainingDiverged, match="no picture of them is written"):
            with pytest.warns(UserWarning, match="samples of 'step .* no picture of them"):
                train_recipe(short("digits-ct"), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.png"))
    assert viz.plt.get_fignums() == figures
    run = shutil.copytree(teacher, tmp_path / "bad")
    weights = load_file(run / "model.safetensors")
    next(iter(weights.values()))[0] = float("nan")
    save_file(weights, run / "model.safetensors")
    info = json.loads((run / "run.json").read_text())
    info["sha256"]["model"] = checksum((run / "model.safetensors").read_bytes())
    (run / "run.json").write_text(json.dumps(info))
    assert main(["sample", str(run), f"--out={tmp_path / 'grid.png'}"]) == 2
    assert "not finite" in capsys.readouterr().err and not (tmp_path / "grid.png").exists()


def test_a_sigma_data_far_from_what_it_should_be_is_told(teacher, tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="sigma_data is 2, but the spread of its data is 0.54"):
        Trainer.from_recipe(short("digits-ct", sigma_data=2.0), tmp_path / "ct")
    for method in ("cd", "boot"):
        recipe = short(f"digits-{method}", sigma_data=0.3)
        with pytest.warns(UserWarning, match="but its teacher's is 0.54: .*--sigma-data 0.54"):
            Trainer.from_recipe(recipe, tmp_path / method, teacher=teacher)
    black = pictures(tmp_path / "black")
    for path in (black / "a").iterdir():
        Image.new("L", (8, 8)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Trainer.from_recipe(short("digits-boot", data=str(black)), tmp_path / "b", teacher=teacher)
        Trainer.from_recipe(short("digits-ct", data=str(black)), tmp_path / "c")


# ------------------------------------------------------------------ randomness and full disks


def test_loading_a_run_uses_up_no_random_numbers(teacher, students):
    for load in (lambda: load_run(teacher), lambda: load_pretrained("digits-cd")):
        before = torch.get_rng_state()
        load()
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["model.safetensors", "samples.png", "card.md", "run.json"])
def test_a_full_disk_leaves_nothing_half_written(name, tmp_path, monkeypatch):
    def full(path):
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    recipe, folder = short("digits-ct"), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", full)
        with pytest.raises(InputError, match="No space left .*make room. The last checkpoint"):
            train_recipe(recipe, folder, save_every=5)
    assert not [p for p in folder.rglob("*") if p.name.startswith((".partial", ".lock"))]
    assert not (folder / name).exists()
    assert load_run(train_recipe(recipe, folder, resume=True)).info["steps"] == 14


def test_weights_are_on_the_disk_before_checkpoints_go(tmp_path, monkeypatch):
    order, fsync, replace, remove = [], os.fsync, os.replace, shutil.rmtree

    def spy_fsync(number):
        order.append(("fsync", os.fstat(number).st_ino))
        return fsync(number)

    def spy_replace(source, goal):
        order.append(("replace", str(goal), os.stat(os.path.dirname(goal)).st_ino))
        return replace(source, goal)

    def spy_remove(path, **options):
        order.append(("rmtree", str(path)))
        return remove(path, **options)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    monkeypatch.setattr(shutil, "rmtree", spy_remove)
    train_recipe(short("digits-ct"), tmp_path / "run", save_every=5)
    gone = order.index(("rmtree", str(tmp_path / "run" / "checkpoints")))
    before = [entry for entry in order[:gone] if entry[0] != "rmtree"]
    assert [name for name, *_ in before[-3:]] == ["fsync", "replace", "fsync"]  # run.json, folder
    renamed = [k for k, (name, *_) in enumerate(before) if name == "replace"]
    assert any("step_" in before[k][1] for k in renamed)
    for k in renamed:  # the content before the name, and the name at once after it
        assert before[k - 1][0] == "fsync"
        assert before[k + 1] == ("fsync", before[k][2])


def test_a_line_of_metrics_is_whole_or_not_there(tmp_path, monkeypatch):
    path, logger = tmp_path / "metrics.jsonl", MetricsLogger(tmp_path)
    logger.log({"step": 7})

    class Full(io.StringIO):
        def __exit__(self, *error):
            with open(path, "a") as file:
                file.write(self.getvalue()[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *_, **__: Full())
        with pytest.raises(OSError):
            logger.log({"step": 50})
    assert path.read_text() == '{"step": 7}\n'


# ------------------------------------------------------------------ devices without float64


def floats_of(module):
    values = [*module.parameters(), *module.buffers()]
    return {value.dtype for value in values if value.is_floating_point()}


@pytest.mark.parametrize(
    "method", ["cd", "ct", "ict", "ect", "scd", "sct", "meanflow", "dmd", "pd", "direct", "boot"]
)
def test_where_float64_is_missing_runs_go_on_in_float32(method, teacher, tmp_path, monkeypatch):
    for module in (acceleration, data, evaluation, guidance, image_loader, progressive):
        monkeypatch.setattr(module, "widest", lambda device: torch.float32)  # as on a Mac's GPU
    opened, real = [], setup.compile_objective
    monkeypatch.setattr(setup, "compile_objective", lambda *a: opened.append(a[1]) or real(*a))
    recipe = short(f"digits-{method}", steps=2)
    folder = train_recipe(recipe, tmp_path / "run", **needs(method, teacher))
    run = load_run(folder)
    noise = torch.randn(4, *run.shape)
    assert floats_of(opened[0]) | floats_of(run.model) == {torch.float32}
    assert run.sample(noise).dtype == torch.float32 and run.sample(noise).isfinite().all()


def test_only_a_macs_gpu_lacks_float64():
    assert data.widest("mps") == torch.float32
    assert data.widest("cpu") == data.widest(torch.device("cuda:1")) == torch.float64


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_not_loaded(value, tmp_path):
    save_file({"a": torch.tensor([0.0, value])}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="some weights are not finite"):
        runs.read_weights(tmp_path / "model.safetensors")


def test_a_run_by_the_clock_has_no_number_of_steps_to_differ_in(tmp_path):
    begun, now = (
        {"recipe": dataclasses.asdict(Recipe("a", minutes=1.0, steps=n))} for n in (800_000, 5000)
    )
    setup.check_same(now, begun, tmp_path)
    for part in (begun, now):
        part["recipe"]["minutes"] = 0.0
    with pytest.raises(InputError, match="begun with steps = 800000, not 5000"):
        setup.check_same(now, begun, tmp_path)


# ------------------------------------------------------------------ one way to the loss


def test_the_way_from_the_command_to_the_loss_is_short(teacher, tmp_path, monkeypatch):
    here, way = str(Path(distillation.__file__).parent), []

    def loss(*_):
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(here)]
        way.extend((Path(frame.filename).stem, frame.name) for frame in frames)
        raise KeyboardInterrupt

    monkeypatch.setattr(distillation, "per_sample_loss", loss)
    plain = {"device": "cpu", "network": "mlp", "data": "digits", "precision": "float32"}
    plain |= {"compiles": "nothing", "minutes": 0, "steps": 1, "sigma-data": 0.54}
    words = [f"--{name}={value}" for name, value in plain.items()]
    main(["train", "cifar10-cd-small", *words, f"--teacher={teacher}", f"--out={tmp_path / 'run'}"])
    names = [name for name in way if not name[1].startswith("<")]
    assert names == [
        ("cli", "main"),
        ("cli", "attempt"),
        ("cli", "train_command"),
        ("trainer", "train_recipe"),
        ("trainer", "fit"),
        ("training", "train"),
        ("training", "add_gradient"),
        ("distillation", "forward"),
    ]
