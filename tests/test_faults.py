"""What kills a run costs it nothing: SIGKILL at any instant, bad disks, full disks, NaN.

The kill test takes `SOAK_KILLS` (4; `make soak` sets 30) kills, and prints what they hit.
"""

import ctypes
import dataclasses
import errno
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import time
import warnings

import pytest
import torch
from safetensors.torch import load_file

from consistency_edu import checkpoints
from consistency_edu.checkpoints import DamagedCheckpoint, checksum, load_checkpoint
from consistency_edu.cli import main
from consistency_edu.data import InputError
from consistency_edu.images import setup, trainer
from consistency_edu.images.methods import override
from consistency_edu.images.progress import read_metrics
from consistency_edu.images.recipes import RECIPES
from consistency_edu.images.trainer import train_recipe
from consistency_edu.long_runs import CheckpointManager
from consistency_edu.training import TrainingDiverged

FORK = multiprocessing.get_context("fork")
try:
    import torch.utils.tensorboard  # noqa: F401 (here, so that the children need not wait for it)

    HAS_BOARD = True
except ImportError:
    HAS_BOARD = False
KILLS = int(os.environ.get("SOAK_KILLS", 4))
SMALL = override(RECIPES["digits-teacher"], {"steps": "30", "batch": "8"})


def weights(folder):
    return load_file(folder / "model.safetensors")


def lines(folder):
    return [(row["step"], row["loss"], row["rate"]) for row in read_metrics(folder)]


def same(one, other):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert lines(one) == lines(other)


def quiet_main(args):
    os.environ["IN_TEST"] = "1"
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os._exit(main(args))


def start(folder, steps):
    """Begin or resume a run in a child, which finds imported what this process has imported."""
    args = ["train", "digits-ct", "--batch", "8", "--steps", str(steps), "--out", str(folder)]
    args += ["--save-every", "5", "--resume", *(["--tensorboard"] if HAS_BOARD else [])]
    process = FORK.Process(target=quiet_main, args=(args,))
    process.start()
    return process


# ------------------------------------------------------------------ killed


def wait_for_steps(process, folder):
    """Wait until `process`, begun just now, has written recipe.json: from then on it trains."""
    path, last = folder / "recipe.json", time.time_ns()
    while process.is_alive() and not (path.exists() and path.stat().st_mtime_ns > last):
        time.sleep(0.002)
    return time.monotonic()


@pytest.mark.slow
def test_killed_at_random_instants_it_ends_bit_for_bit_where_it_would_have(tmp_path):
    rng, steps = random.Random(KILLS), 60 * KILLS
    train_recipe(override(SMALL, {"steps": "2"}), tmp_path / "warm", tensorboard=HAS_BOARD)
    process = start(tmp_path / "whole", steps)
    began = wait_for_steps(process, tmp_path / "whole")
    process.join()
    assert process.exitcode == 0
    span, torn, resumed = 1.5 * (time.monotonic() - began) / KILLS, 0, []
    kept = CheckpointManager(tmp_path / "run" / "checkpoints")
    for number in range(KILLS):
        process = start(tmp_path / "run", steps)
        if number % 5:  # one in five dies before its first step
            wait_for_steps(process, tmp_path / "run")
        process.join(rng.uniform(0, span))
        assert process.exitcode is None, "it ended by itself before the last kill"
        process.kill()
        process.join()
        torn += any(kept.folder.glob(".partial-*"))
        resumed.append(int(kept.folders[-1].name[5:]) if kept.folders else 0)
    process = start(tmp_path / "run", steps)
    process.join()
    assert process.exitcode == 0
    same(tmp_path / "whole", tmp_path / "run")
    if HAS_BOARD:
        assert tensorboard_rows(tmp_path / "run") == lines(tmp_path / "run")
    assert resumed == sorted(resumed) and resumed[-1] > 0
    print(f"\n{KILLS} kills in {steps} steps, {torn} of them within a checkpoint's writing;")
    print("resumed at", *resumed)


def tensorboard_rows(folder):
    """What TensorBoard would show of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    pairs = zip(events.Scalars("loss"), events.Scalars("rate"))
    rows = lines(folder)
    shown = [(one.step, one.value, two.value) for one, two in pairs]
    assert [row[0] for row in shown] == [row[0] for row in rows]  # no gap, no double
    return [row if ours == pytest.approx(row, rel=1e-6) else ours for ours, row in zip(shown, rows)]


# ------------------------------------------------------------------ bad disks


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A whole run of 30 steps, and one that was left at step 24 with three checkpoints."""
    place = tmp_path_factory.mktemp("runs")
    whole = train_recipe(SMALL, place / "whole", save_every=8)

    class Gone(trainer.Trainer):
        def record(self, state):
            super().record(state)
            if state.step == 25:
                raise MemoryError("gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Trainer", Gone)
        with pytest.raises(MemoryError):
            train_recipe(SMALL, place / "left", save_every=8)
    return whole, place / "left"


@pytest.fixture
def left(stopped, tmp_path):
    shutil.copytree(stopped[1], tmp_path / "run")
    return tmp_path / "run"


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path, rng):
    os.truncate(path, rng.randrange(path.stat().st_size))


def drop(path, rng):
    path.unlink()


FILES = ("objective.safetensors", "ema.safetensors", "rest.pt", "state.json", "manifest.json")


@pytest.mark.parametrize("harm", [flip, cut, drop])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(name, harm, left):
    kept, rng = CheckpointManager(left / "checkpoints"), random.Random(name)
    newest = kept.folders[-1]
    intact = (newest / name).read_bytes()
    for _ in range(10):
        harm(newest / name, rng)
        with pytest.raises(DamagedCheckpoint, match=newest.name):
            load_checkpoint(newest)
        with pytest.warns(UserWarning, match=f"{newest.name} is damaged .* one before"):
            assert kept.latest().step == 16
        (newest / name).write_bytes(intact)
    assert kept.latest().step == 24


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_a_run_goes_on_from_the_last_whole_checkpoint(damaged, stopped, left):
    assert [path.name for path in CheckpointManager(left / "checkpoints").folders] == [
        f"step_{step:09d}" for step in (8, 16, 24)
    ]
    for folder in CheckpointManager(left / "checkpoints").folders[3 - damaged :]:
        cut(folder / "objective.safetensors", random.Random(0))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train_recipe(SMALL, left, resume=True, save_every=8)
    assert sum("is damaged" in str(warning.message) for warning in told) == damaged
    same(stopped[0], left)


def test_if_none_is_whole_it_does_not_begin_again_in_silence(left):
    for folder in CheckpointManager(left / "checkpoints").folders:
        (folder / "state.json").write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="no checkpoint in .* is whole"):
            train_recipe(SMALL, left, resume=True)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def forge(folder, name, content):
    """Replace a file of a checkpoint, and its checksum."""
    (folder / name).write_bytes(content)
    sums = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(sums | {name: checksum(content)}))


def test_code_in_a_pickle_is_not_run(left, tmp_path):
    newest, mark = CheckpointManager(left / "checkpoints").folders[-1], tmp_path / "mark"
    forge(newest, "rest.pt", pickle.dumps({"optimizer": Bomb(mark)}))
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(newest)
    torch.save({"optimizer": Bomb(mark)}, tmp_path / "bomb.pt")
    forge(newest, "rest.pt", (tmp_path / "bomb.pt").read_bytes())
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(newest)
    assert not mark.exists()


# ------------------------------------------------------------------ full disks


def expect_room(folder):
    """Resume a run that will not find room, and see what it says and leaves."""
    before = {path.name for path in CheckpointManager(folder / "checkpoints").folders}
    with pytest.raises(InputError, match="make room. The last checkpoint is .*step_000000024"):
        train_recipe(SMALL, folder, resume=True, save_every=2)
    kept = CheckpointManager(folder / "checkpoints")
    assert {path.name for path in kept.folders} == before and kept.latest().step == 24
    assert not list(folder.rglob(".partial-*"))


@pytest.mark.parametrize("call", range(5))
def test_a_full_disk_costs_no_checkpoint(call, stopped, left, monkeypatch):
    calls = iter(range(100))

    def write(path, content):
        if next(calls) == call:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, content)

    write_bytes = checkpoints.write_bytes
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_bytes", write)
        expect_room(left)
    train_recipe(SMALL, left, resume=True)  # there is room again
    same(stopped[0], left)


def limited(folder, limit, out):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        expect_room(folder)
        status = 0
    except BaseException as error:
        print(error, flush=True)
        status = 1
    os._exit(status)


def test_a_file_that_may_not_grow_costs_no_checkpoint(left):
    process = FORK.Process(target=limited, args=(left, 300_000, None))
    process.start(), process.join(100)
    assert process.exitcode == 0
    assert CheckpointManager(left / "checkpoints").latest().step == 24


def test_a_small_tmpfs_that_fills_up_costs_no_checkpoint(stopped, tmp_path):
    disk, libc = tmp_path / "disk", ctypes.CDLL(None, use_errno=True)
    disk.mkdir()
    size = sum(path.stat().st_size for path in stopped[1].rglob("*") if path.is_file())
    options = f"size={size + 1_500_000}".encode()  # less than one checkpoint more
    if libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", 0, options):
        pytest.skip(f"no tmpfs can be mounted here ({os.strerror(ctypes.get_errno())})")
    try:
        shutil.copytree(stopped[1], disk / "run")
        expect_room(disk / "run")
    finally:
        libc.umount2(str(disk).encode(), 2)


# ------------------------------------------------------------------ NaN


def test_a_nan_stops_the_run_and_leaves_its_checkpoint(tmp_path, monkeypatch):
    def poisoned(*args, **options):
        objective = build(*args, **options)
        forward, calls = objective.forward, iter(range(1, 1000))

        def spoil(x, labels=None, *, generator=None):
            loss = forward(x, labels, generator=generator)
            return loss * torch.nan if next(calls) == 19 else loss

        objective.forward = spoil
        return objective

    build = setup.build_objective
    monkeypatch.setattr(setup, "build_objective", poisoned)
    recipe = dataclasses.replace(SMALL, steps=30)
    with pytest.raises(TrainingDiverged) as told:
        train_recipe(recipe, tmp_path / "run", save_every=8)
    said = str(told.value)
    assert "the loss of DenoisingScoreMatching is not finite at step 19 in 8 of 8 samples" in said
    assert "with noise levels from 0.0" in said and "step_000000016'" in said
    checkpoint = CheckpointManager(tmp_path / "run" / "checkpoints").latest()
    assert checkpoint.step == 16
    assert all(value.isfinite().all() for value in checkpoint.objective.values())
