"""Checkpoints: nothing bad is written, nothing damaged or foreign is taken up."""

import io
import json
import math
import shutil

import pytest
import torch
from test_training import Cliff, Line, Noisy, endless
from torch import nn

from consistency_edu import checkpoints
from consistency_edu.checkpoints import (
    DamagedCheckpoint,
    checkpoint_files,
    checksum,
    load_checkpoint,
    load_weights,
    numbers_of,
    restore_randomness,
    save_checkpoint,
    weights_of,
)
from consistency_edu.data import InputError
from consistency_edu.training import TrainingDiverged, randomness_of, train


@pytest.fixture
def saved(tmp_path):
    """The folder of a checkpoint after the second of five steps."""
    run = train(Noisy(), endless(), steps=5)
    next(run)
    return save_checkpoint(tmp_path / "last", next(run), extra={"note": 3})


class Counter(nn.Module):
    """Keeps a number besides its weights, and a teacher."""

    def __init__(self):
        super().__init__()
        self.online, self.teacher, self.count = nn.Linear(2, 1), nn.Linear(2, 1), 7

    def get_extra_state(self):
        return {"count": self.count}

    def set_extra_state(self, state):
        self.count = state["count"]


def test_weights_are_copies_and_numbers_are_kept_apart():
    module = Counter()
    weights = weights_of(module)
    assert set(weights) == {"online.weight", "online.bias"}
    assert numbers_of(module) == {"_extra_state": {"count": 7}}
    nn.init.zeros_(module.online.weight)
    assert weights["online.weight"].abs().sum() > 0 and not weights["online.weight"].requires_grad


def test_the_files_say_what_they_are(saved):
    info = json.loads((saved / "state.json").read_text())
    assert (info["step"], info["ema_updates"], info["extra"]) == (2, 2, {"note": 3})
    assert (info["objective"], info["optimizer"]) == ("Noisy", "Adam")
    sums = json.loads((saved / "manifest.json").read_text())
    assert set(sums) == {p.name for p in saved.iterdir()} - {"manifest.json"}
    assert all(checksum((saved / name).read_bytes()) == value for name, value in sums.items())


def test_several_processes_keep_the_randomness_of_each():
    state = next(train(Line(), endless(), steps=5))
    each = [{"global": torch.full((3,), k).byte()} for k in range(2)]
    content = dict(checkpoint_files(state, randomness=each))["rest.pt"]
    rest = torch.load(io.BytesIO(content), weights_only=True)
    assert [int(r["global"][0]) for r in rest["randomness"]] == [0, 1]


@pytest.mark.parametrize("steep", [0.0, 1e30])
def test_weights_that_went_bad_are_not_kept(steep, tmp_path):
    options = {"steps": 3, "lr": 0.1, "optimizer": torch.optim.SGD, "rate": lambda k, n: 1.0}
    for state in train(Cliff(steep=steep), endless(), **options):
        bad = state.step == 3
        if not bad:
            save_checkpoint(tmp_path / "last", state)
    assert math.isfinite(state.loss) and bad
    with pytest.raises(TrainingDiverged, match="after step 3 some weights .* lower the learning"):
        save_checkpoint(tmp_path / "last", state)
    kept = load_checkpoint(tmp_path / "last")
    assert kept.step == 2 and all(w.isfinite().all() for w in kept.objective.values())
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_an_optimiser_that_went_bad_is_not_kept(tmp_path):
    state = next(train(Line(), endless(), steps=3))
    save_checkpoint(tmp_path / "good", state)
    state.optimizer.state[state.objective.online.weight]["exp_avg_sq"].fill_(math.inf)
    with pytest.raises(TrainingDiverged, match="after step 1"):
        save_checkpoint(tmp_path / "bad", state)
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_an_average_that_went_bad_is_not_kept(tmp_path):
    state = next(train(Line(), endless(), steps=3))
    state.ema.model.weight.fill_(math.nan)
    with pytest.raises(TrainingDiverged, match="after step 1"):
        save_checkpoint(tmp_path / "bad", state)
    assert not list(tmp_path.iterdir())


def test_a_buffer_that_went_bad_is_not_kept(tmp_path):
    objective = Line()
    objective.register_buffer("seen", torch.tensor([1e6]))  # large, and no weight
    state = next(train(objective, endless(), steps=3))
    save_checkpoint(tmp_path / "good", state)
    objective.seen.fill_(math.inf)
    with pytest.raises(TrainingDiverged, match="after step 1"):
        save_checkpoint(tmp_path / "bad", state)
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


@pytest.mark.parametrize("call", range(5))
def test_a_write_that_fails_leaves_the_one_before(call, saved, monkeypatch):
    whole, write, count = load_checkpoint(saved), checkpoints.write_bytes, iter(range(9))

    def full(path, content):
        if next(count) == call:
            raise OSError("no room")
        return write(path, content)

    monkeypatch.setattr(checkpoints, "write_bytes", full)
    state = next(train(Line(), endless(), steps=5))
    with pytest.raises(OSError, match="no room"):
        save_checkpoint(saved, state)
    assert load_checkpoint(saved).info == whole.info
    assert [path.name for path in saved.parent.iterdir()] == ["last"]


def test_left_overs_of_a_killed_run_are_in_nobodys_way(saved):
    for word in ("partial", "old"):
        (saved.parent / f".{word}-last").mkdir()
    save_checkpoint(saved, next(train(Line(), endless(), steps=5)))
    assert load_checkpoint(saved).step == 1
    assert [path.name for path in saved.parent.iterdir()] == ["last"]


NAMES = ["objective.safetensors", "ema.safetensors", "rest.pt", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_needed_whole(name, saved, tmp_path):
    content = (saved / name).read_bytes()
    for other in (None, b"", content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        folder = shutil.copytree(saved, tmp_path / "copy", dirs_exist_ok=True)
        (folder / name).unlink() if other is None else (folder / name).write_bytes(other)
        with pytest.raises(DamagedCheckpoint, match="copy is damaged.*take an earlier one"):
            load_checkpoint(folder)


def sealed(folder, name, content):
    """Replace a file of a checkpoint, and its checksum."""
    (folder / name).write_bytes(content)
    sums = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(sums | {name: checksum(content)}))


@pytest.mark.parametrize("step", [-1, "2", None, 1.5])
def test_a_step_that_is_none_is_refused(step, saved):
    info = json.loads((saved / "state.json").read_text())
    sealed(saved, "state.json", json.dumps(info | {"step": step}).encode())
    with pytest.raises(DamagedCheckpoint, match=f"step {step}"):
        load_checkpoint(saved)


def test_where_there_is_none(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nowhere"):
        with pytest.raises(InputError, match="no checkpoint in .*save_checkpoint"):
            load_checkpoint(tmp_path / name)


def test_weights_of_another_network_are_named():
    module = Counter()
    whole = weights_of(module) | numbers_of(module)
    load_weights(module, whole)
    for state, name in (
        ({k: v for k, v in whole.items() if k != "online.bias"}, "online.bias"),
        (whole | {"more": torch.ones(1)}, "more"),
        (whole | {"online.weight": torch.ones(3, 3)}, "online.weight"),
    ):
        with pytest.raises(InputError, match=f"another architecture .*{name}"):
            load_weights(module, state)


def test_a_run_of_another_kind_does_not_go_on(saved):
    resume = load_checkpoint(saved)

    def go_on(objective, **more):
        return next(train(objective, endless(), **{"steps": 5, "resume": resume, **more}))

    assert go_on(Noisy(seed=4)).step == 3
    with pytest.raises(InputError, match="at step 2 of 2: it is finished"):
        go_on(Noisy(), steps=2)
    with pytest.raises(InputError, match="objective is Noisy, not Line: use Noisy"):
        go_on(Line())
    with pytest.raises(InputError, match="optimizer is Adam, not SGD: use Adam"):
        go_on(Noisy(), optimizer=torch.optim.SGD)
    with pytest.raises(InputError, match="with a generator resumes with one"):
        go_on(Noisy(), generator=torch.Generator())


@pytest.mark.parametrize("part", ["optimizer", "batches", "randomness"])
def test_a_rest_that_lacks_a_part_does_not_fit(part, saved):
    resume = load_checkpoint(saved)
    del resume.rest[part]
    with pytest.raises(InputError, match="does not fit this run .*take one that this run wrote"):
        next(train(Noisy(), endless(), steps=5, resume=resume))


def test_a_process_that_was_not_there_keeps_its_own_randomness():
    kept = [randomness_of(torch.Generator().manual_seed(k)) for k in range(2)]
    for rank, seed in ((0, 0), (1, 1), (2, 0)):  # the third shares the first one's generator
        torch.manual_seed(50 + rank)
        own, generator = torch.get_rng_state(), torch.Generator().manual_seed(9)
        restore_randomness(kept, generator, rank)
        assert generator.get_state().equal(torch.Generator().manual_seed(seed).get_state())
        assert (rank == 2) == torch.get_rng_state().equal(own)
