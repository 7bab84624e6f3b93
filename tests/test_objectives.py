"""What an objective may be: with weights of its own, two networks in turn, a scaled loss."""

import copy
import dataclasses
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from consistency_edu.checkpoints import load_checkpoint, save_checkpoint
from consistency_edu.consistency import ConsistencyModel
from consistency_edu.files import InputError
from consistency_edu.images import trainer
from consistency_edu.images.methods import METHODS, Method, make_scaler, make_with_range, override
from consistency_edu.images.recipes import RECIPES
from consistency_edu.images.trainer import train_recipe
from consistency_edu.long_runs import Interrupted
from consistency_edu.training import (
    MOST_SKIPPED,
    TrainingDiverged,
    constant_rate,
    train,
    trained_weights,
)

STEPS, STOP = 24, 10


class Line(nn.Module):
    """The mean square of a linear function, counting its steps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.online, self.count = nn.Linear(2, 1), 0

    def forward(self, x, labels=None, *, generator=None):
        return (self.online(x) - x.sum(1, keepdim=True)).square().flatten(1).mean(1)

    def after_step(self):
        self.count += 1

    def get_extra_state(self):
        return {"count": self.count}

    def set_extra_state(self, state):
        self.count = state["count"]


class Weighed(Line):
    """A loss under a learned weight w: exp(w) loss - w, whose best w is -ln(loss)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(1, 1)
        self.also_trained = (self.weight,)

    def forward(self, x, labels=None, *, generator=None):
        w = self.weight(x[:, :1]).squeeze(1)
        return w.exp() * super().forward(x) - w


class InTurn(Line):
    """A critic is trained for five steps of each six, towards the network; then it for one."""

    def __init__(self):
        super().__init__()
        self.critic = nn.Linear(2, 1)
        self.also_trained = (self.critic,)

    def forward(self, x, labels=None, *, generator=None):
        if self.count % 6 < 5:
            return (self.critic(x) - self.online(x).detach()).square().flatten(1).mean(1)
        with torch.no_grad():
            goal = self.critic(x) + x.sum(1, keepdim=True)
        return (self.online(x) - goal).square().flatten(1).mean(1)


class Steep(Line):
    """A loss that is large enough to overflow at the largest scale."""

    def forward(self, x, labels=None, *, generator=None):
        return 64 * super().forward(x)


class Spiky(Line):
    """A loss whose gradient overflows at any scale, if one of its points lies far to the right."""

    def forward(self, x, labels=None, *, generator=None):
        loss = super().forward(x)
        is_far = bool((x[:, 0] > 2).any())
        return loss + (0 * self.online.bias.sum()).abs().sqrt() if is_far else loss


KINDS = {"own weights": Weighed, "in turn": InTurn, "scaled": Steep}


def batches(size=8):
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.randn(size, 2, generator=generator), None


def scaler_of(kind, scale=2.0**127):
    """A scale that overflows at first, for the loss that is scaled; None for the others."""
    return torch.amp.GradScaler("cpu", init_scale=scale) if kind == "scaled" else None


def begin(kind, source=None, **options):
    options = {"steps": STEPS, "lr": 1e-2, "scaler": scaler_of(kind), **options}
    return train(KINDS[kind](), source or batches(), **options)


def tensors_of(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------ weights of its own


def test_own_weights_move_with_the_network_and_have_no_average():
    *_, state = begin("own weights", steps=300, rate=constant_rate)
    start = Weighed()
    assert not torch.equal(state.objective.weight.bias, start.weight.bias)
    assert not torch.equal(state.objective.online.bias, start.online.bias)
    assert tensors_of(state.ema.model).keys() == tensors_of(start.online).keys()
    x, _ = next(batches(512))
    loss = Line.forward(state.objective, x).mean()
    w = state.objective.weight(x[:, :1]).mean()
    assert w > 0.5 and loss < 0.5  # the better the fit, the larger the weight


def test_without_them_the_network_alone_is_trained():
    weights = trained_weights(Line())
    assert [tuple(w.shape) for w in weights] == [(1, 2), (1,)]
    assert len(trained_weights(Weighed())) == 4


# ------------------------------------------------------------------ two networks in turn


def test_only_the_network_whose_turn_it_is_moves():
    objective = InTurn()
    before, moved = [tensors_of(objective.online), tensors_of(objective.critic)], []
    for state in train(objective, batches(), steps=12, lr=1e-2):  # noqa: B007
        now = [tensors_of(objective.online), tensors_of(objective.critic)]
        moved.append([not same(a, b) for a, b in zip(before, now)])
        before = now
    assert moved == ([[False, True]] * 5 + [[True, False]]) * 2
    assert state.ema.updates == 2  # the average moves with its network alone
    slots = [state.optimizer.state[weight] for weight in trained_weights(objective)]
    assert [int(slot["step"]) for slot in slots] == [2, 2, 10, 10]  # so do Adam's moments


def test_the_average_follows_its_network_alone():
    objective = InTurn()
    averages = [tensors_of(s.ema.model) for s in train(objective, batches(), steps=12, lr=1e-2)]
    assert all(same(averages[0], average) for average in averages[:5])
    assert not same(averages[4], averages[5]) and same(averages[5], averages[10])


# ------------------------------------------------------------------ a loss scale


def test_a_step_that_overflows_is_no_step():
    seen, objective = [], Steep()

    def source():
        for x, _ in batches():
            seen.append((x, tensors_of(objective.online), objective.count))
            yield x, None

    states = list(train(objective, source(), steps=6, lr=1e-2, scaler=scaler_of("scaled")))
    skipped = states[0].skipped
    assert skipped >= 2 and states[-1].skipped == skipped and len(seen) == 6 + skipped
    assert all(same(seen[0][1], weights) for _, weights, _ in seen[: skipped + 1])
    assert [count for *_, count in seen] == [0] * (skipped + 1) + [1, 2, 3, 4, 5]
    assert [state.step for state in states] == [1, 2, 3, 4, 5, 6] and states[-1].ema.updates == 6
    plain = list(train(Steep(), iter_from(skipped), steps=6, lr=1e-2))
    assert [s.rate for s in states] == [s.rate for s in plain]  # as if those had not been
    assert [s.loss for s in states] == [s.loss for s in plain]


def iter_from(count):
    source = batches()
    for _ in range(count):
        next(source)
    return source


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_powers_of_two_change_no_bit_of_the_weights(scale):
    *_, scaled = train(Line(), batches(), steps=8, clip=0.5, scaler=scaler_of("scaled", scale))
    *_, plain = train(Line(), batches(), steps=8, clip=0.5)
    assert same(tensors_of(scaled.objective), tensors_of(plain.objective))
    assert scaled.skipped == 0 and scaled.loss == plain.loss


class Kink(Line):
    """A finite loss whose gradient is infinite, from batch `start` on."""

    def __init__(self, start=0, every=1):
        super().__init__()
        self.start, self.every, self.calls = start, every, 0

    def forward(self, x, labels=None, *, generator=None):
        self.calls += 1
        loss = super().forward(x)
        is_bad = self.calls > self.start and self.calls % self.every == 0
        return loss + (0 * self.online.bias.sum()).abs().sqrt() if is_bad else loss


def test_overflow_without_end_is_divergence():
    reached, objective = [], Kink(start=3)
    with pytest.raises(TrainingDiverged, match=f"after step 3 .* of {MOST_SKIPPED} batches"):
        for state in train(objective, batches(), steps=10, scaler=scaler_of("scaled", 1.0)):
            reached.append(state.step)
    assert reached == [1, 2, 3] and all(p.isfinite().all() for p in objective.online.parameters())


def test_many_skipped_steps_with_good_ones_between_are_none():
    objective = Kink(every=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    *_, state = train(objective, batches(), steps=MOST_SKIPPED + 5, scaler=scaler)
    assert state.skipped >= MOST_SKIPPED and state.step == MOST_SKIPPED + 5


# ------------------------------------------------------------------ put down and taken up


@pytest.mark.parametrize("kind", KINDS)
def test_each_goes_on_bit_for_bit(kind, tmp_path):
    rows = [next(batches())[0] + k / 10 for k in range(5)]  # a source that knows its length
    source = [(x, None) for x in rows]
    losses = []
    for state in begin(kind, source):
        losses.append(state.loss)
        if state.step == STOP:
            save_checkpoint(tmp_path / "last", state)
    resumed = list(begin(kind, source, resume=load_checkpoint(tmp_path / "last")))
    assert [s.loss for s in resumed] == losses[STOP:]
    assert same(tensors_of(resumed[-1].objective), tensors_of(state.objective))
    assert same(tensors_of(resumed[-1].ema.model), tensors_of(state.ema.model))
    assert resumed[-1].skipped == state.skipped and (state.skipped % 5 > 0) == (kind == "scaled")
    assert resumed[-1].scaler.get_scale() == state.scaler.get_scale()


def test_a_checkpoint_of_before_has_skipped_nothing(tmp_path):
    for state in begin("own weights"):
        if state.step == STOP:
            save_checkpoint(tmp_path / "last", state)
    checkpoint = load_checkpoint(tmp_path / "last")
    del checkpoint.info["skipped"], checkpoint.rest["scaler"]
    *_, resumed = begin("own weights", resume=checkpoint)
    assert resumed.step == STEPS and resumed.skipped == 0


def test_bad_weights_of_its_own_are_not_kept(tmp_path):
    state = next(begin("in turn"))
    with torch.no_grad():
        state.objective.critic.bias.fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match="not finite"):
        save_checkpoint(tmp_path / "bad", state)


# ------------------------------------------------------------------ as a run


class ImagesInTurn(nn.Module):
    """Two models in turn, the second for two steps of each three."""

    def __init__(self, online):
        super().__init__()
        self.online, self.second, self.count = online, copy.deepcopy(online), 0
        self.also_trained = (self.second,)

    def forward(self, x, labels=None, *, generator=None):
        noise = torch.randn(x.shape, generator=generator)
        model = self.second if self.count % 3 < 2 else self.online
        return (model(x + noise, torch.ones(len(x))) - x).square().flatten(1).mean(1)

    after_step, get_extra_state = Line.after_step, Line.get_extra_state
    set_extra_state = Line.set_extra_state


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_run_with_two_networks_goes_on_where_it_was_stopped(precision, tmp_path, monkeypatch):
    method = Method(
        make_with_range(ConsistencyModel), lambda recipe, online, *_: ImagesInTurn(online), ()
    )
    monkeypatch.setitem(METHODS, "turns", method)
    choices = {"method": "turns", "steps": 14, "batch": 8, "precision": precision}
    recipe = dataclasses.replace(RECIPES["digits-ct"], **choices)
    whole = train_recipe(recipe, tmp_path / "whole")

    class Struck(trainer.Trainer):
        def record(self, state):
            super().record(state)
            if state.step == 7:
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Trainer", Struck)
        with pytest.raises(Interrupted):
            train_recipe(recipe, tmp_path / "broken")
    broken = train_recipe(recipe, tmp_path / "broken", resume=True)
    assert same(*(load_file(run / "model.safetensors") for run in (whole, broken)))


def test_only_float16_scales_its_loss():
    scalers = {
        precision: make_scaler(dataclasses.replace(RECIPES["digits-ct"], precision=precision))
        for precision in ("float32", "bfloat16", "float16")
    }
    assert [s.is_enabled() for s in scalers.values()] == [False, False, True]
    # of 2,000 steps, PyTorch's default, a run of minutes has a handful: a low scale would stay
    assert scalers["float16"].get_growth_interval() == 200


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(InputError, match="did you mean"):
        override(RECIPES["digits-ct"], {"precision": "float15"})
