"""Shelves of checkpoints, signals between two steps, and what workers share."""

import signal
import threading
import time
import warnings

import pytest
import torch

from consistency_edu import long_runs
from consistency_edu.data import InputError, draw_normal, draw_uniform, toy, toy_batches
from consistency_edu.long_runs import (
    CheckpointManager,
    Group,
    Interrupted,
    InterruptHandler,
    SharedGenerator,
    Workers,
    answered,
    init_distributed,
    is_first,
)
from consistency_edu.long_runs import WorkerLost as Lost
from consistency_edu.networks import MLP
from consistency_edu.pf_ode import EDMDenoiser, edm_objective
from consistency_edu.training import train


@pytest.fixture(scope="module")
def states():
    """A function that gives the state of a small run after so many steps."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    batches = toy_batches(toy("moons"), 4, generator=generator)
    objective = edm_objective(EDMDenoiser(MLP(width=8)))
    run = train(objective, batches, steps=100, generator=generator)
    past = {}

    def after(step):
        while step not in past:
            state = next(run)
            past[state.step] = state
        return past[step]

    return after


def steps_on(kept):
    return [int(folder.name[5:]) for folder in kept.folders]


def test_the_last_few_stay(states, tmp_path):
    kept = CheckpointManager(tmp_path / "kept", keep=2)
    assert kept.latest() is None and "no checkpoint yet" in kept.left
    for step in (1, 5, 9, 10):
        path = kept.save(states(step), extra={"at": step})
    assert steps_on(kept) == [9, 10] and path == kept.folders[-1]
    assert kept.latest().info["extra"] == {"at": 10}
    assert kept.count == 4 and kept.seconds >= kept.cost > 0
    assert "step_000000010': go on with --resume" in kept.left


def test_what_is_written_now_is_never_dropped_for_a_later_damaged_one(states, tmp_path):
    kept = CheckpointManager(tmp_path, keep=1)
    kept.save(states(10))
    (kept.folders[0] / "rest.pt").unlink()
    kept.save(states(4))
    assert steps_on(kept) == [4, 10]
    with pytest.warns(UserWarning, match="step_000000010 is damaged"):
        assert kept.latest().step == 4


def test_no_silent_beginning(states, tmp_path):
    kept = CheckpointManager(tmp_path)
    kept.save(states(3))
    (kept.folders[0] / "manifest.json").write_text("[]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="is whole: remove the run"):
            kept.latest()


def test_when_one_is_due(tmp_path):
    often = CheckpointManager(tmp_path, every=4)
    assert [step for step in range(1, 13) if often.is_due(step)] == [4, 8, 12]
    kept, now = CheckpointManager(tmp_path), time.perf_counter()
    for cost, ago, is_due in ((0.1, 59, False), (0.1, 61, True), (2, 490, False), (2, 510, True)):
        kept.cost, kept.last = cost, now - ago
        assert kept.is_due(1) == is_due
    for options in ({"keep": 0}, {"every": -1}):
        with pytest.raises(InputError, match="keep is .*, save_every .*: give"):
            CheckpointManager(tmp_path, **options)


def test_signals_wait_for_the_end_of_a_step():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with InterruptHandler() as signals:
        assert signals.number == 0
        signal.raise_signal(signal.SIGTERM), signal.raise_signal(signal.SIGTERM)
        assert signals.number == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
        assert signals.number == signal.SIGTERM
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(Interrupted) as stop, InterruptHandler() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.number == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert stop.value.number == signal.SIGINT and isinstance(stop.value, KeyboardInterrupt)
    with pytest.raises(Interrupted, match="SIGTERM"), InterruptHandler(at_once=True):
        signal.raise_signal(signal.SIGTERM)


def test_signals_in_a_thread_are_left_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def block():
        with InterruptHandler() as signals:
            seen.append((signals.before, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=block)
    thread.start(), thread.join()
    assert seen == [({}, before)]


def test_shares_are_the_rows_of_one_draw():
    for draw in (draw_normal, draw_uniform):
        whole = draw(torch.empty(6, 2), torch.Generator().manual_seed(3))
        for count in (1, 2, 3):
            shares = []
            for rank in range(count):
                generator = SharedGenerator("cpu", (rank, count)).manual_seed(3)
                shares.append(draw(torch.empty(6 // count, 2), generator))
                after = torch.rand(1, generator=generator)
            assert torch.equal(torch.cat(shares), whole)
            assert after != 0 and torch.equal(Workers(1, 2).rows(whole), whole[3:])


def test_who_is_first(monkeypatch):
    assert is_first() and is_first("LOCAL_RANK")
    monkeypatch.setenv("RANK", "2"), monkeypatch.setenv("LOCAL_RANK", "0")
    assert not is_first() and is_first("LOCAL_RANK")


class Unfinished:
    """A message that no other worker ever answers."""

    def __init__(self):
        self.end = time.monotonic() + 30

    def is_completed(self):
        assert time.monotonic() < self.end, "this waits for ever"
        return False

    def wait(self, timeout=None):
        raise RuntimeError("timed out")


def test_a_worker_that_does_not_answer_is_lost():
    group = Group(0, 2, patience=(0.3, 0.1))
    for is_prepared, seconds in ((False, 0.3), (True, 0.1)):
        group.is_prepared, start = is_prepared, time.monotonic()
        with pytest.raises(Lost, match="has not answered for"):
            group.wait(Unfinished())
        assert seconds < time.monotonic() - start < seconds + 5


def test_a_signal_ends_the_waiting(monkeypatch):
    monkeypatch.setattr(long_runs, "GRACE", 0.1)
    group = Group(0, 2, patience=(60.0, 60.0))
    group.interrupt.number, start = signal.SIGTERM, time.monotonic()
    with pytest.raises(Interrupted) as stopped:
        group.wait(Unfinished())
    assert stopped.value.number == signal.SIGTERM and 0.1 < time.monotonic() - start < 5


def test_a_broken_connection_is_a_lost_worker(monkeypatch):
    with pytest.raises(Lost, match="another worker of this run was lost"):
        with answered():
            raise RuntimeError("connection closed by peer")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with init_distributed() as workers:
        assert not workers and workers.share(7) == 7
