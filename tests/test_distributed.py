"""Several processes repeat one: the same losses and weights from the same global batch."""

import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COMMAND, quiet_environment, run_cli
from safetensors.torch import load_file
from torch import nn

from consistency_edu import image_loader, long_runs
from consistency_edu.data import InputError, draw_normal, draw_uniform
from consistency_edu.images import setup, trainer
from consistency_edu.images.methods import OPTIMIZERS, PixelMLP, override
from consistency_edu.images.progress import read_metrics
from consistency_edu.images.recipes import RECIPES
from consistency_edu.images.trainer import Trainer, train_recipe
from consistency_edu.long_runs import (
    CheckpointManager,
    Interrupted,
    InterruptHandler,
    SharedGenerator,
    WorkerLost,
    Workers,
    hold,
    init_distributed,
)
from consistency_edu.matching import DistributionMatching
from consistency_edu.meanflow import MeanFlow, MeanFlowModel
from consistency_edu.networks import MLP
from consistency_edu.pf_ode import EDMDenoiser
from consistency_edu.progressive import FewStepStudent
from consistency_edu.training import train, trained_weights

FORK = multiprocessing.get_context("fork")  # the children find everything imported
STEPS = 8


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def child(rank, count, port, work, out):
    """What one worker does: `work`, with the environment that torchrun would give it."""
    place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    os.environ |= {k: str(v) for k, v in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "IN_TEST": "1"}
    torch.set_num_threads(1)
    try:
        answer = {"result": work()}
    except Exception as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    torch.save(answer, out)
    os._exit(0)  # a group that has lost a worker cannot be left in good order


def together(count, work, folder):
    """Do `work` in `count` processes, and return what each returned or raised."""
    port = free_port()
    outs = [folder / f"out-{count}-{rank}.pt" for rank in range(count)]
    for out in outs:
        out.unlink(missing_ok=True)
    children = [
        FORK.Process(target=child, args=(rank, count, port, work, out))
        for rank, out in enumerate(outs)
    ]
    for process in children:
        process.start()
    for process in children:
        process.join(120)
    hanging = [process for process in children if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, f"{len(hanging)} of {count} workers hang"
    answers = [torch.load(out, weights_only=False) if out.exists() else {} for out in outs]
    print(*(answer.get("error", "") for answer in answers), sep="\n")  # shown if a test fails
    return answers


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    recipe = override(RECIPES["digits-teacher"], {"steps": "30", "batch": "16"})
    return train_recipe(recipe, tmp_path_factory.mktemp("runs") / "teacher")


def course(recipe, folder, teacher):
    """Train `recipe` for a few steps among the workers; return losses and weights."""
    with init_distributed() as workers:
        given = {"start" if recipe.method in ("ect", "sct") else "teacher": teacher}
        made = Trainer.from_recipe(recipe, folder, **given, seed=3, workers=workers)
        options = {"lr": recipe.lr, "optimizer": OPTIMIZERS[recipe.optimizer], "clip": 1.0}
        options |= {"generator": made.generator, "workers": workers, "steps": STEPS}
        with torch.no_grad():  # a fake denoiser that is the teacher's equal has no gradient to give
            for weight in getattr(made.objective, "fake", torch.nn.Identity()).parameters():
                weight.mul_(1.1)
        losses = [state.loss for state in train(made.objective, made.batches, **options)]
        workers.check_agreement(made.objective.online.parameters())
    weights = torch.cat([p.detach().flatten() for p in made.objective.online.parameters()])
    return losses, weights


@pytest.mark.parametrize(
    "method",
    ["teacher", "cd", "ct", "ict", "ect", "scd", "sct", "meanflow", "dmd", "boot", "direct"],
)
def test_two_and_three_workers_repeat_one(method, teacher, tmp_path):
    recipe = dataclasses.replace(RECIPES[f"digits-{method}"], lr=1e-3, batch=12, pairs=24)
    recipe = dataclasses.replace(recipe, tangent_warmup=0)  # Adam enlarges a gradient of rounding
    runs = {}
    for count in (1, 2, 3):
        answers = together(count, lambda: course(recipe, tmp_path / "run", teacher), tmp_path)
        runs[count] = [answer["result"] for answer in answers]
    losses, weights = runs[1][0]
    for count in (2, 3):
        for ours, mine in runs[count]:
            assert ours == pytest.approx(losses, rel=1e-6)
            assert (mine - weights).abs().max() < 1e-6


def test_a_batch_without_equal_shares_is_refused(tmp_path):
    recipe = dataclasses.replace(RECIPES["digits-teacher"], steps=STEPS, batch=16)
    answers = together(3, lambda: train_recipe(recipe, tmp_path / "run"), tmp_path)
    for answer in answers:
        assert answer["kind"] == "InputError"
        assert answer["error"].endswith("for 3 workers: use --batch 15 or 18.")
    parts = dataclasses.replace(recipe, batch=32, accumulate=4)
    (answer, *_) = together(3, lambda: train_recipe(parts, tmp_path / "run"), tmp_path)
    assert answer["error"].endswith("for 3 workers in 4 parts: use --batch 24 or 36.")
    assert not (tmp_path / "run").exists()
    assert Workers(0, 4).share(12) == 3
    with pytest.raises(InputError, match="use --batch 4"):
        Workers(0, 4).share(2)


# ------------------------------------------------------------------ gradients


class Roundabout(nn.Module):
    """A loss like MeanFlow's: its passes go round any wrapper, by functional_call and jvp."""

    def __init__(self, bad=None):
        super().__init__()
        torch.manual_seed(0)
        self.online, self.bad, self.count = nn.Linear(4, 4), bad, 0
        self.online.never = nn.Parameter(torch.ones(2))  # used by nobody
        self.online.seldom = nn.Parameter(torch.ones(()))  # used by worker 0 alone

    def forward(self, x, labels=None, *, generator=None):
        self.last_sigma = sigma = draw_uniform(x, generator)
        weights = dict(self.online.named_parameters())
        call = lambda z: torch.func.functional_call(self.online, weights, (z,))  # noqa: E731
        value, slope = torch.func.jvp(call, (x + draw_normal(x, generator),), (x,))
        loss = (value - slope.detach()).square().sum(1) * (1 + sigma)
        if labels is not None:
            loss = loss + labels * self.online.seldom
        self.count += 1
        if self.count == self.bad and labels is None:
            loss[1] = torch.nan
        return loss


def rounds(batches, **options):
    """Train a Roundabout on our rows of `batches`; return losses and weights by name."""
    with init_distributed() as workers:
        objective, generator = Roundabout(**options), SharedGenerator("cpu", workers.part)
        ours = []
        for x, labels in batches:
            rows = slice(workers.rank * len(x) // workers.count, None)
            rows = slice(rows.start, rows.start + workers.share(len(x)))
            labels = None if labels is None or not labels[rows].any() else labels[rows]
            ours.append((x[rows], labels))
        options = {"steps": len(ours), "generator": generator.manual_seed(1), "workers": workers}
        losses = [state.loss for state in train(objective, ours, **options)]
        workers.check_agreement(objective.online.parameters())
        return losses, {k: p.detach() for k, p in objective.online.named_parameters()}


def test_passes_that_go_round_a_wrapper_are_averaged(tmp_path):
    rng = torch.Generator().manual_seed(5)
    labels = torch.tensor([1.0, 2.0, 0.0, 0.0])
    batches = [(torch.randn(4, 4, generator=rng), labels) for _ in range(6)]
    (one,) = together(1, lambda: rounds(batches), tmp_path)
    for answer in together(2, lambda: rounds(batches), tmp_path):
        losses, weights = answer["result"]
        assert losses == pytest.approx(one["result"][0], rel=1e-6)
        for name, value in one["result"][1].items():
            assert (weights[name] - value).abs().max() < 1e-6, name
        assert torch.equal(weights["never"], torch.ones(2))
        assert weights["seldom"] != 1


def test_a_bad_loss_of_one_worker_stops_all_before_the_step(tmp_path):
    batches = [(torch.ones(4, 4), None) for _ in range(5)]
    answers = together(2, lambda: rounds(batches, bad=3), tmp_path)
    assert len({answer["error"] for answer in answers}) == 1
    assert answers[0]["kind"] == "TrainingDiverged"
    assert "Roundabout is not finite at step 3 in 2 of 4 samples" in answers[0]["error"]
    assert "noise levels from" in answers[0]["error"]


def drifted():
    with init_distributed() as workers:
        network = nn.Linear(3, 3)
        with torch.no_grad():
            network.weight.fill_(1 + 1e-4 * workers.rank)
            network.bias.zero_()
        workers.check_agreement(network.parameters())


def test_copies_that_drift_apart_are_noticed(tmp_path):
    for answer in together(2, drifted, tmp_path):
        assert "drifted apart" in answer["error"]


# ------------------------------------------------------------------ what workers share


def talk():
    with init_distributed() as workers:
        torch.manual_seed(workers.rank)
        generator = SharedGenerator("cpu", workers.part).manual_seed(4)
        rng = workers.gather_randomness(generator)
        rows = workers.gather(torch.full((2,), float(workers.rank)))
        most = workers.maximum([workers.rank, -workers.rank])
        return {
            "rows": rows.tolist(),
            "most": most,
            "mean": workers.mean(workers.rank),
            "globals": [bool((d["global"] == rng[0]["global"]).all()) for d in rng],
            "mine": bool((rng[workers.rank]["global"] == torch.get_rng_state()).all()),
        }


def test_what_workers_tell_each_other(tmp_path):
    for answer in together(3, talk, tmp_path):
        said = answer["result"]
        assert said["rows"] == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0] and said["most"] == [2.0, 0.0]
        assert said["mean"] == 1.0 and said["globals"] == [True, False, False] and said["mine"]


def test_one_alone_has_nobody_to_talk_to(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with init_distributed() as workers:
        assert not workers and workers.part == (0, 1) and workers.mean(2.5) == 2.5
    assert workers.maximum([1, 2]) == [1.0, 2.0] and not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_each_worker_needs_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 workers on a machine with 0 GPUs"):
        with init_distributed("cuda"):
            pass


# ------------------------------------------------------------------ stopping and resuming


class Forgetful(PixelMLP):
    """A network with dropout, so that each worker's own random numbers count."""

    def forward(self, x, c_noise, labels=None):
        return super().forward(nn.functional.dropout(x, 0.2, self.training), c_noise, labels)


def compute_in_64_bits():
    """Let this process train in float64, in which the order of a sum makes no difference to see."""
    torch.set_default_dtype(torch.float64)
    image_loader.to_floats = lambda pixels: pixels.double() / 127.5 - 1


def whole_run(recipe, folder, interrupt=None, exact=False, **options):
    """train_recipe, with `interrupt` = (rank, step, signal) that one worker gets."""
    if exact:
        compute_in_64_bits()

    class Struck(trainer.Trainer):
        def record(self, state):
            super().record(state)
            if interrupt and (int(os.environ["RANK"]), state.step) == interrupt[:2]:
                os.kill(os.getpid(), interrupt[2])

    trainer.Trainer = Struck
    if recipe.dropout:
        setup.build_network = lambda recipe, shape, classes: Forgetful(shape, width=32)
    try:
        train_recipe(recipe, folder, save_every=4, **options)
    except Interrupted as stop:
        return stop.number
    return 0


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    recipe = dataclasses.replace(RECIPES["digits-teacher"], steps=14, batch=12, dropout=0.2)
    answers = together(2, lambda: whole_run(recipe, folder / "run"), folder)
    assert [answer["result"] for answer in answers] == [0, 0]
    return recipe, weights(folder / "run"), read_metrics(folder / "run")


def test_a_signal_to_one_worker_stops_all_and_the_run_goes_on(undisturbed, tmp_path):
    recipe, whole, rows = undisturbed
    folder, stop = tmp_path / "run", (1, 9, signal.SIGTERM)
    answers = together(2, lambda: whole_run(recipe, folder, stop), tmp_path)
    assert [answer["result"] for answer in answers] == [signal.SIGTERM] * 2
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    assert sorted(names) == [f"step_{step:09d}" for step in (4, 8, 10)]
    answers = together(2, lambda: whole_run(recipe, folder, resume=True), tmp_path)
    assert [answer["result"] for answer in answers] == [0, 0]
    assert all(torch.equal(value, whole[name]) for name, value in weights(folder).items())
    again = [(row["step"], row["loss"]) for row in read_metrics(folder)]
    assert again == [(row["step"], row["loss"]) for row in rows]


def test_a_killed_worker_ends_the_run_which_resumes(undisturbed, tmp_path):
    recipe, whole, _ = undisturbed
    folder, stop = tmp_path / "run", (1, 10, signal.SIGKILL)
    first, second = together(2, lambda: whole_run(recipe, folder, stop), tmp_path)
    assert second == {} and first["kind"] == "WorkerLost"
    assert "step_000000008': go on with --resume" in first["error"]
    answers = together(2, lambda: whole_run(recipe, folder, resume=True), tmp_path)
    assert [answer["result"] for answer in answers] == [0, 0]
    assert all(torch.equal(value, whole[name]) for name, value in weights(folder).items())


def test_one_goes_on_where_two_stopped(teacher, tmp_path):
    recipe = dataclasses.replace(RECIPES["digits-teacher"], steps=14, batch=12)
    one, two, stop = tmp_path / "one", tmp_path / "two", (0, 8, signal.SIGINT)
    together(1, lambda: whole_run(recipe, one, exact=True), tmp_path)
    together(2, lambda: whole_run(recipe, two, stop, exact=True), tmp_path)
    together(1, lambda: whole_run(recipe, two, exact=True, resume=True), tmp_path)
    for name, value in weights(one).items():  # in float32 Adam makes 1e-6 of the order of sums
        assert value.dtype == torch.float64 and (value - weights(two)[name]).abs().max() < 1e-9


# ------------------------------------------------------------------ torchrun itself

TORCHRUN = COMMAND.with_name("torchrun")
TRAIN = ("train", "digits-teacher", "--lr", "1e-3", "--batch", "12", "--save-every", "5")


def launch(*options, steps, out, cwd, more=()):
    """Start torchrun with the very command line of one process."""
    command = [TORCHRUN, *options, "--no-python", COMMAND, *TRAIN, "--steps", str(steps)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        [*map(str, command), "--out", out, *more], cwd=cwd, env=quiet_environment(), **options
    )


def workers_below(agent):
    """The process ids of the workers that the torchrun process `agent` has started."""
    return [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]


@pytest.mark.slow
def test_two_machines_by_two_torchruns_repeat_one(tmp_path):
    address = ("--master-addr", "127.0.0.1", "--master-port", free_port())
    nodes = [
        launch(*address, "--nnodes", 2, "--node-rank", rank, steps=12, out="two", cwd=tmp_path)
        for rank in (0, 1)
    ]
    said = [node.communicate(timeout=400)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert [text.count("card.md") for text in said] == [1, 0]  # the first worker alone speaks
    done = run_cli(*TRAIN, "--steps", 12, "--out", "one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, value in weights(tmp_path / "one").items():
        assert (value - weights(tmp_path / "two")[name]).abs().max() < 1e-6
    assert json.loads((tmp_path / "two" / "run.json").read_text())["workers"] == 2


@pytest.mark.slow
def test_torchrun_loses_a_worker_and_the_run_resumes(tmp_path):
    options = ("--standalone", "--nproc-per-node", 2)
    agent = launch(*options, steps=100_000, out="run", cwd=tmp_path)
    kept, deadline = CheckpointManager(tmp_path / "run" / "checkpoints"), time.monotonic() + 300
    while not kept.folders and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(workers_below(agent.pid)[1], signal.SIGKILL)
    said = agent.communicate(timeout=120)[0]
    assert agent.returncode not in (0, None)
    assert "another worker of this run was lost" in said and "go on with --resume" in said, said
    reached = kept.latest().step
    agent = launch(*options, steps=100_000, out="run", cwd=tmp_path, more=["--resume"])
    while kept.folders[-1].name == f"step_{reached:09d}" and time.monotonic() < deadline + 200:
        time.sleep(0.05)
    agent.send_signal(signal.SIGTERM)
    said = agent.communicate(timeout=120)[0]
    assert "stopped. The last checkpoint is" in said, said
    assert kept.latest().step > reached and not list(kept.folder.glob(".partial-*"))


# ------------------------------------------------------------------ hanging, never starting, apart


def hung(patience=(60.0, 4.0), number=None):
    """Both meet; the second one then hangs, and the first may get a signal while it waits."""
    with init_distributed("cpu", patience) as workers, InterruptHandler() as signals:
        workers.interrupt, workers.is_prepared = signals, True
        workers.maximum([0.0])
        if workers.rank:
            time.sleep(25)
        elif number:
            threading.Timer(1.0, os.kill, (os.getpid(), number)).start()
        start = time.monotonic()
        try:
            workers.average_gradients(nn.Linear(2, 2).parameters())
        except (WorkerLost, Interrupted) as error:
            return type(error).__name__, str(error), time.monotonic() - start


@pytest.mark.slow
def test_a_worker_that_hangs_is_given_up(tmp_path):
    kind, said, seconds = together(2, hung, tmp_path)[0]["result"]
    assert kind == "WorkerLost" and "has not answered for 4 s: it hangs" in said
    assert 3.5 < seconds < 10


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_ctrl_c_ends_the_waiting_for_a_worker_that_hangs(number, tmp_path, monkeypatch):
    monkeypatch.setattr(long_runs, "GRACE", 2.0)
    work = lambda: hung((60.0, 60.0), number)  # noqa: E731
    kind, said, seconds = together(2, work, tmp_path)[0]["result"]
    assert kind == "Interrupted" and signal.Signals(number).name in said and seconds < 8


@pytest.mark.slow
def test_ctrl_c_is_heard_while_a_worker_is_awaited(tmp_path):
    place = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "PYTHONUNBUFFERED": 1}
    environment = quiet_environment(**{key: str(value) for key, value in place.items()})
    command = [COMMAND, "train", "digits-teacher", "--batch", "8", "--out", tmp_path / "run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    assert process.stdout.readline().startswith("Training digits-teacher")
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "stopped." in said and "Traceback" not in said
    assert time.monotonic() - start < 10


def never_met():
    os.environ["WORLD_SIZE"] = "2"
    with init_distributed("cpu", (3.0, 3.0)):
        pass


def test_a_worker_that_never_starts_is_given_up(tmp_path):
    (answer,) = together(1, never_met, tmp_path)
    assert answer["kind"] == "WorkerLost"
    assert answer["error"].startswith("not all workers of this run met within 3 s")


def apart(folder, teacher, spoil):
    """train_recipe, to which `spoil` gives worker 1 something else than worker 0."""
    recipe = dataclasses.replace(RECIPES["digits-cd"], steps=4, batch=12)
    options = {"teacher": teacher, "seed": 3, "start": None, "patience": (60.0, 30.0)}
    choices = {"recipe": recipe, "folder": folder, **options}
    if int(os.environ["RANK"]):
        choices |= spoil(recipe)
    return train_recipe(choices.pop("recipe"), choices.pop("folder"), **choices)


def test_workers_agree_before_the_first_step(teacher, tmp_path):
    other = override(RECIPES["digits-teacher"], {"steps": "3", "batch": "8"})
    other = train_recipe(other, tmp_path / "other")
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 8, 8), generator=rng).byte().numpy()
    np.savez(tmp_path / "more.npz", images=images)
    data = str(tmp_path / "more.npz")
    for spoil, word in (
        (lambda recipe: {"recipe": dataclasses.replace(recipe, lr=0.5)}, "lr"),
        (lambda recipe: {"recipe": dataclasses.replace(recipe, data=data)}, "data"),
        (lambda recipe: {"seed": 4}, "seed"),
        (lambda recipe: {"teacher": other}, "teacher"),
        (lambda recipe: {"start": other}, "start"),
    ):
        folder = tmp_path / word
        work = functools.partial(apart, folder, teacher, spoil)
        answers = together(2, work, tmp_path)
        assert [answer["kind"] for answer in answers] == ["InputError"] * 2
        assert len({answer["error"] for answer in answers}) == 1
        assert f"worker 1 was started with {word} = " in answers[0]["error"]
        assert "same command line" in answers[0]["error"] and not folder.exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_refuses_all_refuse(rank, teacher, tmp_path):
    def work():
        mine = int(os.environ["RANK"]) == rank
        recipe = dataclasses.replace(RECIPES["digits-cd"], steps=4, batch=12)
        return train_recipe(recipe, tmp_path / "run", teacher=tmp_path if mine else teacher)

    for answer in together(2, work, tmp_path):
        assert answer["kind"] == "InputError" and "no finished run" in answer["error"]
    assert not (tmp_path / "run").exists()


def test_weights_that_go_bad_end_all_workers_alike(tmp_path):
    def work():
        class Poisoned(trainer.Trainer):
            def record(self, state):
                if state.step == 6:
                    with torch.no_grad():
                        next(state.objective.online.parameters()).fill_(torch.nan)
                super().record(state)

        trainer.Trainer = Poisoned
        recipe = dataclasses.replace(RECIPES["digits-teacher"], steps=9, batch=12)
        return train_recipe(recipe, tmp_path / "run", save_every=3)

    for answer in together(2, work, tmp_path):
        assert answer["kind"] == "TrainingDiverged" and "step_000000003" in answer["error"]


def test_workers_share_one_lock_and_are_kept_out_together(tmp_path):
    recipe = dataclasses.replace(RECIPES["digits-teacher"], steps=4, batch=12)
    with hold(tmp_path / "run"):
        work = lambda: train_recipe(recipe, tmp_path / "run")  # noqa: E731
        for answer in together(2, lambda: (long_runs._HELD.clear(), work()), tmp_path):
            assert answer["kind"] == "InputError" and "another process" in answer["error"]
    answers = together(2, work, tmp_path)
    assert ["result" in answer for answer in answers] == [True, True]
    assert not (tmp_path / "run" / ".lock").exists()


def slow_first_worker():
    """The first worker takes longer than a step may, where it alone has something to do."""
    with init_distributed("cpu", (20.0, 1.0)) as workers:
        workers.is_prepared = True
        with workers.first_works():
            time.sleep(0 if workers.rank else 3)
        workers.maximum([0.0])
        return workers.is_prepared


def test_what_the_first_worker_does_alone_may_take_its_time(tmp_path):
    answers = together(2, slow_first_worker, tmp_path)
    assert [answer["result"] for answer in answers] == [True, True]


# ------------------------------------------------------------------ other shapes of objectives


def short_course(kind):
    """Twelve steps of an objective of `kind` among the workers: losses, weights, skipped steps."""
    from test_objectives import KINDS, Spiky, batches, scaler_of

    kinds = {**KINDS, "scaled": Spiky}  # of the same batches, whoever has the point

    with init_distributed() as workers:
        rows = ((workers.rows(x), None) for x, _ in batches(12))
        objective = kinds[kind]()
        options = {"scaler": scaler_of(kind, 2.0**16), "workers": workers}
        states = list(train(objective, rows, steps=12, lr=1e-2, **options))
        workers.check_agreement(trained_weights(objective))
    weights = torch.cat([p.detach().flatten() for p in trained_weights(objective)])
    return [state.loss for state in states], weights, states[-1].skipped


@pytest.mark.parametrize("kind", ["own weights", "in turn", "scaled"])
def test_workers_repeat_one_for_every_shape_of_objective(kind, tmp_path):
    runs = {
        count: [
            answer["result"] for answer in together(count, lambda: short_course(kind), tmp_path)
        ]
        for count in (1, 2, 3)
    }
    losses, weights, skipped = runs[1][0]
    assert (skipped > 0) == (kind == "scaled")
    for ours, mine, theirs in (*runs[2], *runs[3]):
        assert ours == pytest.approx(losses, rel=1e-5) and theirs == skipped
        assert (mine - weights).abs().max() < 1e-5


def mean_flow():
    """Improved MeanFlow of points."""
    return MeanFlow(MeanFlowModel(MLP(width=16, use_gap=True), sigma_max=5.0), use_own_tangent=True)


def matching():
    """Distribution matching of points, one update of the fake for each of the student's."""
    student, teacher, fake = (EDMDenoiser(MLP(width=16)) for _ in range(3))
    return DistributionMatching(FewStepStudent(student, [0.0, 5.0]), teacher, fake)


def points_course(make):
    """Eight steps of what `make` makes among the workers, which share its draws."""
    with init_distributed() as workers:
        torch.manual_seed(0)
        objective = make()
        generator = SharedGenerator(part=(workers.rank, workers.count)).manual_seed(0)
        lot = torch.Generator().manual_seed(1)
        rows = ((workers.rows(torch.randn(12, 2, generator=lot)), None) for _ in range(8))
        options = {"lr": 1e-2, "generator": generator, "workers": workers}
        losses = [state.loss for state in train(objective, rows, steps=8, **options)]
        workers.check_agreement(trained_weights(objective))
    return losses, torch.cat([p.detach().flatten() for p in trained_weights(objective)])


@pytest.mark.parametrize("make", [mean_flow, matching])
def test_workers_repeat_one_on_points(make, tmp_path):
    """Where derivatives run forward, and where two networks take turns."""
    runs = {}
    for count in (1, 2, 3):
        answers = together(count, lambda: points_course(make), tmp_path)
        runs[count] = [answer["result"] for answer in answers]
    losses, weights = runs[1][0]
    for ours, mine in (*runs[2], *runs[3]):
        assert ours == pytest.approx(losses, rel=1e-4)
        assert (mine - weights).abs().max() < 1e-4
