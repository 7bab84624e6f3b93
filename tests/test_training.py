"""The training loop's promises, on a CPU and, where there is one, on a GPU."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from consistency_edu import acceleration
from consistency_edu.acceleration import compile_networks, set_precision, speed_up, try_out
from consistency_edu.checkpoints import load_checkpoint, save_checkpoint, weights_of
from consistency_edu.data import InputError
from consistency_edu.networks import MLP, Stage, UNet
from consistency_edu.pf_ode import EDMDenoiser, edm_objective
from consistency_edu.training import (
    EMA,
    TrainingDiverged,
    add_gradient,
    check_loss,
    constant_rate,
    cosine_decay,
    cosine_rate,
    fit,
    from_seed,
    linear_decay,
    make_optimizer,
    move_towards,
    randomness_of,
    read_later,
    set_randomness,
    train,
)

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]


class Line(nn.Module):
    """An objective without noise: the mean square of a linear function."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.online, self.calls = nn.Linear(2, 1), 0

    def forward(self, x, labels=None, *, generator=None):
        self.last_sigma = torch.arange(len(x), device=x.device).float()
        return self.online(x).square().sum(1)

    def after_step(self):
        self.calls += 1


class Noisy(Line):
    """The same with noise of the global generator, from which loaders draw, too."""

    def forward(self, x, labels=None, *, generator=None):
        return super().forward(x + torch.randn(x.shape))


def endless(size=8, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(size, 2, generator=generator).to(device), None


def images(size=4, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(size, 1, 8, 8, generator=generator).to(device), None


def painter(seed=0, **options):
    torch.manual_seed(seed)
    return edm_objective(EDMDenoiser(UNet(width=8, **options)))


# ------------------------------------------------------------------ one step


def test_a_frozen_model_is_refused_and_moves_again_when_it_is_told():
    first, second = Line(), Line()
    second.online = fit(first, endless(), steps=3).model
    with pytest.raises(InputError, match=r"frozen until .*requires_grad_\(True\)"):
        fit(second, endless(), steps=3)
    second.online.requires_grad_(True)
    fit(second, endless(), steps=3)


def test_a_step_is_adams_step_at_the_schedules_rate():
    ours, theirs = Line(), Line()
    run = train(ours, endless(), steps=5, lr=0.1, rate=cosine_rate)
    adam = torch.optim.Adam(theirs.online.parameters())
    for k, (x, _) in zip(range(5), endless()):
        state = next(run)
        adam.param_groups[0]["lr"] = 0.1 * cosine_rate(k, 5)
        loss = theirs(x).mean()
        adam.zero_grad(), loss.backward(), adam.step()
        assert state.step == k + 1 and state.loss == loss.item()
        assert state.rate == 0.1 * cosine_rate(k, 5)
        assert torch.equal(ours.online.weight, theirs.online.weight)
    assert ours.calls == 5 and next(run, None) is None
    assert all(p.grad is None for p in ours.online.parameters())


def test_the_average_follows_every_step():
    objective = Line()
    average = EMA(objective.online, 0.9)
    for state in train(objective, endless(), steps=6, lr=0.1, ema_decay=0.9):
        average.update(objective.online)
        assert torch.equal(state.ema.model.weight, average.model.weight)
    assert state.ema.updates == 6
    assert not torch.equal(state.ema.model.weight, objective.online.weight)


class Shared:
    """Can be iterated again by its looks, but hands out one and the same iterator."""

    def __init__(self, batches):
        self.left = iter(batches)

    def __iter__(self):
        return self.left


def a_few(count=3):
    return [batch for _, batch in zip(range(count), endless())]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_that_can_be_iterated_again_are_begun_anew(accumulate):
    few, options = a_few(), {"steps": 7, "lr": 0.1, "accumulate": accumulate}
    loader = torch.utils.data.DataLoader(few, batch_size=None)
    runs = [list(train(Line(), batches, **options)) for batches in (few * 5, few, loader)]
    assert [[s.loss for s in run] for run in runs[1:]] == [[s.loss for s in runs[0]]] * 2
    assert len(runs[0]) == 7


def test_batches_that_end_say_how_far_the_run_has_come():
    for make in (iter, Shared, lambda few: (batch for batch in few)):
        for accumulate, reached in ((1, 3), (2, 1)):
            run, options = [], {"steps": 10, "accumulate": accumulate}
            with pytest.raises(InputError, match=f"after {reached} of 10 steps: pass .*again"):
                run.extend(train(Line(), make(a_few()), **options))
    with pytest.raises(InputError, match="after 3 of 10 steps"):
        fit(Line(), iter(a_few()), steps=10)
    for empty in ([], iter([]), torch.utils.data.DataLoader([])):
        with pytest.raises(InputError, match="after 0 of 5 steps"):
            fit(Line(), empty, steps=5)


@pytest.mark.parametrize("stop", [2, 3, 7])
def test_a_list_and_a_loader_are_resumed_in_their_middle(stop, tmp_path):
    few = a_few()
    for batches in (few, torch.utils.data.DataLoader(few, batch_size=None)):
        torch.manual_seed(0)
        whole = [save_at(stop, state, tmp_path) for state in train(Noisy(), batches, steps=9)]
        torch.manual_seed(7)
        resume = load_checkpoint(tmp_path / "last")
        rest = [state.loss for state in train(Noisy(), batches, steps=9, resume=resume)]
        assert rest == whole[stop:]


def save_at(step, state, folder):
    if state.step == step:
        save_checkpoint(folder / "last", state)
    return state.loss


def test_accumulated_halves_equal_the_whole():
    whole, halves = Line(), Line()
    pairs = [batch for _, batch in zip(range(3), endless(16))]
    cut = [(half, None) for x, _ in pairs for half in x.chunk(2)]
    once = list(train(whole, pairs, steps=3, lr=0.1))
    twice = list(train(halves, cut, steps=3, lr=0.1, accumulate=2))
    assert torch.allclose(whole.online.weight, halves.online.weight, atol=1e-6)
    assert [s.loss for s in once] == pytest.approx([s.loss for s in twice], rel=1e-5)


def test_clipping_shortens_the_gradient_and_only_then():
    for clip, lengths in ((0.01, True), (1e6, False)):
        objective, lr = Line(), 1.0
        before = objective.online.weight.detach().clone()
        options = dict(optimizer=torch.optim.SGD, rate=lambda k, n: 1.0, clip=clip)
        next(train(objective, endless(), steps=1, lr=lr, **options))
        moved = (objective.online.weight.detach() - before).norm().item()
        assert (moved <= 0.0101) == lengths and moved > 0


def test_schedules():
    assert cosine_decay(3, 9) == pytest.approx(0.75) and linear_decay(3, 9) == pytest.approx(2 / 3)
    assert cosine_decay(1.0) == linear_decay(1.0) == 0
    assert cosine_rate(0, 100, warmup=10) == 0.1 and constant_rate(4, 100, warmup=10) == 0.5
    assert cosine_rate(50, 100) == pytest.approx(0.5) and constant_rate(99, 100) == 1
    assert cosine_rate(100, 100) == pytest.approx(0) and constant_rate(0, 9, warmup=0) == 1


def test_the_average_ramps_up_and_copies_buffers():
    one = nn.BatchNorm1d(1)
    ema = EMA(one, 0.9)
    with torch.no_grad():
        one.weight.fill_(2.0), one.running_mean.fill_(5.0)
    ema.update(one)
    assert ema.model.weight.item() == pytest.approx(1 + 0.9) and ema.model.running_mean == 5
    ema.updates = 1000
    with torch.no_grad():
        one.weight.fill_(0.0)
    ema.update(one)
    assert ema.model.weight.item() == pytest.approx(0.9 * 1.9)
    assert not ema.model.training and not ema.model.weight.requires_grad
    move_towards(ema.model, one, 1.0)
    assert ema.model.weight.item() == 0
    with pytest.raises(InputError):
        EMA(one, 1.0)


# ------------------------------------------------------------------ what must not happen


@pytest.mark.parametrize("device", DEVICES)
def test_a_bad_loss_stops_before_the_weights_are_harmed(device):
    batches = [next(endless(device=device))[0] for _ in range(4)]
    batches[2][5, 0] = math.nan
    objective = Line().to(device)
    run, states = train(objective, [(x, None) for x in batches], steps=4, lr=0.1), []
    with pytest.raises(TrainingDiverged, match="Line .* step 3 in 1 of 8 .* from 5 to 5"):
        for state in run:
            states.append(state)
            good = weights_of(objective)
    assert len(states) == 2 and objective.calls == 2
    for name, value in weights_of(objective).items():
        assert torch.equal(value, good[name])


class Huge(Line):
    """Losses that are finite, and too many for their mean to be."""

    def forward(self, x, labels=None, *, generator=None):
        return super().forward(x) * 0 + 3e38


def test_a_mean_that_overflows_stops_the_run():
    with pytest.raises(TrainingDiverged, match="Huge are finite at step 1, but their mean is inf"):
        next(train(Huge(), endless(), steps=3))


class Cliff(Line):
    """Finite losses, the last of which has a gradient that is not finite, or one that is huge."""

    def __init__(self, last=3, steep=0.0):
        super().__init__()
        self.last, self.steep = last, steep

    def forward(self, x, labels=None, *, generator=None):
        loss = super().forward(x)
        if self.calls + 1 < self.last:
            return loss
        if self.steep:
            return loss * self.steep
        return loss + (self.online.bias - self.online.bias.detach()).square().sqrt().nan_to_num()


@pytest.mark.parametrize("steep", [0.0, 1e30])
def test_fit_returns_no_weights_that_went_bad(steep):
    options = {"steps": 3, "lr": 0.1, "optimizer": torch.optim.SGD, "rate": lambda k, n: 1.0}
    *_, last = train(Cliff(steep=steep), endless(), **options)
    assert math.isfinite(last.loss)
    with pytest.raises(TrainingDiverged, match="after step 3 some weights .* lower the learning"):
        fit(Cliff(steep=steep), endless(), ema_decay=0.0, **options)


class Halfway:
    """What train asks of a checkpoint, for a run of `Line`."""

    def __init__(self, weights, step):
        self.weights, self.step, self.asked = weights, step, None

    def restore(self, state, steps, rank=0):
        state.objective.load_state_dict(self.weights)
        self.asked = steps, rank
        return self.step


def test_a_run_goes_on_from_whatever_restores_it():
    whole = list(train(Line(), [(torch.ones(8, 2), None)], steps=5, optimizer=torch.optim.SGD))
    first = next(train(Line(), [(torch.ones(8, 2), None)], steps=5, optimizer=torch.optim.SGD))
    resume = Halfway(weights_of(first.objective), 1)
    options = {"steps": 5, "optimizer": torch.optim.SGD, "resume": resume}
    rest = list(train(Line(seed=9), [(torch.ones(8, 2), None)], **options))
    assert resume.asked == (5, 0) and [s.step for s in rest] == [2, 3, 4, 5]
    assert [(s.loss, s.rate) for s in rest] == [(s.loss, s.rate) for s in whole[1:]]


def test_a_run_does_not_go_on_from_a_path():
    with pytest.raises(InputError, match="resume is 'runs/a'.*load_checkpoint"):
        next(train(Line(), endless(), steps=5, resume="runs/a"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_numbers_that_are_none_are_refused(bad):
    for options in ({"lr": bad}, {"clip": bad}, {"ema_decay": bad}, {"accumulate": bad}):
        with pytest.raises(InputError):
            next(train(Line(), endless(), steps=1, **options))


def test_check_loss_names_the_noise_levels_of_the_bad_rows():
    objective = Line()
    objective.last_sigma = torch.tensor([0.1, 0.2, 3.0])
    check_loss(torch.ones(3), objective, 1)
    with pytest.raises(TrainingDiverged, match="2 of 3 samples.* 0.2 to 3"):
        check_loss(torch.tensor([1.0, math.inf, math.nan]), objective, 1)
    with pytest.raises(InputError):
        next(train(objective, endless(), steps=0))
    with pytest.raises(InputError):
        next(train(objective, endless(), steps=1, accumulate=0))


@pytest.mark.parametrize("device", DEVICES)
def test_read_later_reads_what_was_there(device):
    value = torch.tensor(2.5, device=device)
    read = read_later(value)
    if device == "cuda":
        value.fill_(7.0)  # queued behind the copy
    assert read() == 2.5


@pytest.mark.parametrize("device", DEVICES)
def test_add_gradient_adds(device):
    objective, (x, _) = Line().to(device), next(endless(device=device))
    mean = add_gradient(objective, (x, None), 1)
    first = objective.online.weight.grad.clone()
    assert add_gradient(objective, (x, None), 1, share=0.5) == mean
    assert torch.allclose(objective.online.weight.grad, 1.5 * first)


# ------------------------------------------------------------------ optimisers


@pytest.mark.parametrize("device", DEVICES)
def test_optimisers_are_made_as_asked(device):
    weights = list(nn.Linear(2, 2).to(device).parameters())
    adam = make_optimizer(partial(torch.optim.Adam, betas=(0.8, 0.9)), weights, 0.01)
    assert adam.defaults["betas"] == (0.8, 0.9) and adam.defaults["lr"] == 0.01
    assert bool(adam.defaults["fused"]) == (device == "cuda")
    looped = make_optimizer(partial(torch.optim.Adam, foreach=False), weights, 0.01)
    assert not looped.defaults["fused"]
    assert isinstance(make_optimizer(torch.optim.RAdam, weights, 0.01), torch.optim.RAdam)


# ------------------------------------------------------------------ fast


def test_set_precision_reaches_every_unet_and_no_weight():
    objective = painter()
    objective.teacher = EDMDenoiser(UNet(width=8))
    set_precision(objective, torch.bfloat16)
    nets = [part for part in objective.modules() if isinstance(part, UNet)]
    assert len(nets) == 2 and all(net.precision == torch.bfloat16 for net in nets)
    assert all(p.dtype == torch.float32 for p in objective.parameters())
    weight = objective.online.network.middle[0].block.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert EMA(objective.online).model.network.precision == torch.bfloat16


def test_compile_networks_picks_networks_or_stages():
    for compiles, kind in (("networks", UNet), ("graphs", UNet), ("stages", Stage)):
        objective = painter()
        parts = compile_networks(objective, compiles)
        assert parts and all(isinstance(part, kind) for part in parts)
        assert all(part._compiled_call_impl is not None for part in parts)
    assert compile_networks(painter(), "nothing") == []
    assert compile_networks(edm_objective(EDMDenoiser(MLP())), "networks") == []
    with pytest.raises(InputError, match="stages"):
        compile_networks(painter(), "everything")


def test_a_failing_compiler_costs_one_warning():
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    objective, twin = painter(), painter()
    batches = images()
    with pytest.warns(UserWarning, match="goes on without it.*"):
        assert not speed_up(objective, next(batches), precision=None, backend=broken)
    set_precision(twin, None)
    runs = [
        [s.loss for s in train(o, images(), steps=2, generator=torch.Generator().manual_seed(0))]
        for o in (objective, twin)
    ]
    assert runs[0] == runs[1]


def test_speed_up_does_not_hide_errors_that_are_not_the_compilers():
    with pytest.raises(InputError, match="multiples"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        speed_up(painter(), (torch.zeros(2, 1, 7, 8), None), compiles="nothing")


def test_too_little_memory_is_not_blamed_on_the_compiler(monkeypatch):
    def full(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    objective = painter()
    monkeypatch.setattr(acceleration, "try_out", full)
    with pytest.raises(torch.cuda.OutOfMemoryError), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        speed_up(objective, next(images()))
    assert objective.online.network._compiled_call_impl is None


def test_try_out_leaves_no_trace():
    objective, before = painter(dropout=0.5), randomness_of(None)
    objective.train()
    weights = copy.deepcopy(weights_of(objective))
    try_out(objective, next(images()))
    assert all(p.grad is None for p in objective.parameters())
    assert torch.equal(randomness_of(None)["global"], before["global"])
    assert all(torch.equal(v, weights[k]) for k, v in weights_of(objective).items())
    torch.rand(3)
    set_randomness(before)
    assert torch.equal(randomness_of(None)["global"], before["global"])


@pytest.mark.slow
def test_compiled_on_a_cpu_it_learns_the_same():
    objective, twin = painter(), painter()
    assert speed_up(objective, next(images()), precision=None)
    runs = [
        [s.loss for s in train(o, images(), steps=5, generator=torch.Generator().manual_seed(0))]
        for o in (objective, twin)
    ]
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


@on_cuda
@pytest.mark.parametrize("compiles", ["networks", "graphs", "stages", "nothing"])
def test_on_cuda_rounded_and_compiled_it_learns_nearly_the_same(compiles):
    runs = []
    for fast in (True, False):
        objective = painter(num_classes=0).cuda()
        if fast:
            speed_up(objective, next(images(device="cuda")), compiles=compiles)
        generator = torch.Generator("cuda").manual_seed(0)
        run = train(objective, images(device="cuda"), steps=5, generator=generator)
        runs.append([state.loss for state in run])
    assert runs[0] == pytest.approx(runs[1], rel=0.05)


def test_what_is_seeded_leaves_the_global_randomness_as_it_was():
    before = torch.get_rng_state()
    with from_seed(5) as generator:
        inside = torch.rand(3), torch.rand(3, generator=generator)
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(*inside)
    assert torch.equal(inside[0], torch.rand(3, generator=torch.Generator().manual_seed(5)))
    with pytest.raises(ZeroDivisionError), from_seed(5):
        torch.rand(1 // 0)
    assert torch.equal(before, torch.get_rng_state())
