"""Improved training and easy tuning: published numbers, one noise, goals at r = 0, the stages."""

import math

import pytest
import torch
from torch import nn

from consistency_edu.checkpoints import load_checkpoint, save_checkpoint
from consistency_edu.consistency import ConsistencyModel
from consistency_edu.consistency_training import ConsistencyTraining
from consistency_edu.data import draw_normal, draw_points, per_sample, toy, toy_batches
from consistency_edu.distances import inverse_gap, pseudo_huber, squared_l2
from consistency_edu.experiments import improved as lab
from consistency_edu.files import InputError
from consistency_edu.improved import (
    EasyTuning,
    ImprovedTraining,
    draw_lognormal,
    ect_goal_level,
    ict_points,
    ict_probabilities,
)
from consistency_edu.networks import MLP
from consistency_edu.pf_ode import karras_sigmas
from consistency_edu.training import train

MOONS = toy("moons")


def data(count=256):
    return draw_points(MOONS, count, generator=torch.Generator().manual_seed(0))[0]


def model(seed=0):
    torch.manual_seed(seed)
    return ConsistencyModel(MLP(width=16, depth=2), sigma_max=5.0)


class Witness(nn.Module):
    """Answers `value` everywhere, and remembers what it was asked."""

    sigma_min, sigma_max = 0.002, 5.0

    def __init__(self, value=0.0):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.seen = []

    def forward(self, x, sigma, labels=None):
        self.seen.append((x, sigma, labels))
        return 0 * x + self.value


# iCT's grid and its shares


@pytest.mark.parametrize(
    ("step", "points"),
    [(0, 11), (49_999, 11), (50_000, 21), (100_000, 41), (349_999, 641), (350_000, 1281)],
)
def test_the_published_number_of_points(step, points):
    assert ict_points(step, 400_000) == points
    assert ict_points(399_999, 400_000) == ict_points(10**9, 400_000) == 1281


def test_points_double_in_equal_times():
    counts = [ict_points(k, 4000, 10, 80) for k in range(4000)]
    assert {n: counts.count(n) for n in counts} == dict.fromkeys((11, 21, 41, 81), 1000)
    assert ict_points(-5, 4000) == 11 and {ict_points(k, 7, 5, 5) for k in range(9)} == {6}
    assert ict_points(99, 100, 10, 50) == 51 and ict_points(3, 3, 10, 1280) == 81  # too short


SHARES = {
    80.0: ".062633 .181737 .245501 .213494 .142446 .080605 .041080 .019580 .008944 .003980",
    5.0: ".025678 .065946 .113062 .147215 .157975 .147454 .124209 .096901 .071331 .050230",
}


@pytest.mark.parametrize("top", SHARES)
def test_the_shares_of_the_lognormal(top):
    expected = torch.tensor([float(word) for word in SHARES[top].split()]).double()
    found = ict_probabilities(karras_sigmas(11, 0.002, top))
    assert found.dtype == torch.float64 and (found - expected).abs().max() < 1e-6
    other = ict_probabilities(karras_sigmas(11, 0.002, top), log_mean=1.1, log_std=1.0)
    assert other.argmax() > found.argmax() and other.sum() == pytest.approx(1)


def test_the_gradient_counts_the_cleanest_intervals_most():
    sigmas = karras_sigmas(11, 0.002, 80.0)
    share = ict_probabilities(sigmas) / sigmas.diff()
    assert (share / share.sum())[:3].tolist() == pytest.approx([0.50, 0.32, 0.13], abs=0.006)


def ict(online=None, **options):
    options = {"total_steps": 4, "s0": 10, "s1": 80, **options}
    return ImprovedTraining(Witness() if online is None else online, **options)


def test_intervals_are_drawn_by_their_shares_on_the_present_grid(generator):
    loss = ict()
    for points in (11, 21, 41, 81):
        assert loss.points == points and len(loss.sigmas) == points  # asked for before the draw
        low, high = loss.levels(torch.empty(40_000, 2), generator)
        grid = loss.sigmas.float()
        n = torch.searchsorted(grid, low)
        assert torch.equal(grid[n], low) and torch.equal(grid[n + 1], high)
        assert torch.equal(loss.last_sigma, high)
        found = n.bincount(minlength=points - 1) / 40_000
        assert (found - ict_probabilities(loss.sigmas)).abs().max() < 0.008
        loss.after_step()


def test_the_last_draw_stays_on_the_grid(monkeypatch):
    monkeypatch.setattr("consistency_edu.improved.draw_uniform", lambda like, g: like[:, 0] * 0 + 1)
    low, high = ict().levels(torch.empty(3, 2), None)
    assert (low < high).all() and (high == 5.0).all()


def test_ict_has_no_slow_target_and_passes_its_choices_on(generator):
    loss = ict(Witness(0.5), distance=squared_l2)
    assert loss.target.slow is None and loss.mu0 == 0
    found = loss(data(), generator=generator)
    assert (found == 0).all()  # the same answer at both levels
    (cleaner, low, _), (noisy, high, _) = loss.online.seen
    noises = [(cleaner - data()) / low[:, None], (noisy - data()) / high[:, None]]
    far = low > 0.05
    assert torch.allclose(noises[0][far], noises[1][far], atol=1e-4)
    assert loss.weight is inverse_gap and ict().distance is pseudo_huber


# The slow target


class Line(nn.Module):
    """f = (eps / sigma) x + (1 - eps / sigma) theta."""

    sigma_min, sigma_max = 0.002, 5.0

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x, sigma, labels=None):
        keep = per_sample(self.sigma_min / sigma, x)
        return keep * x + (1 - keep) * self.theta


def slope(gap, lag, data=1.0):
    """dL/dtheta / gap at sigma = 0.5, for a target that lies `lag` off."""
    loss = ConsistencyTraining(Line(), total_steps=1, mu0=0.9, distance=squared_l2)
    loss.target.slow.theta.data += lag
    low, high = (torch.tensor([s]).double() for s in (0.5, 0.5 + gap))
    z = torch.tensor([[0.7]]).double()
    loss.compare((data + low * z, low, None), (data + high * z, high, None)).sum().backward()
    return float(loss.online.theta.grad)


def test_without_lag_the_gradient_tends_to_its_formula():
    for gap, expected in ((0.1, -0.0093), (0.01, -0.0109), (0.001, -0.01113)):
        assert slope(gap, 0.0) == pytest.approx(expected, abs=6e-5)
    limit = 2 * (0.3 - 1) * (0.002 / 0.25) * (1 - 0.002 / 0.5)
    assert limit == pytest.approx(-0.011155, abs=1e-6)
    assert slope(1e-6, 0.0) == pytest.approx(limit, rel=1e-5)


def test_with_lag_it_diverges_and_says_nothing_of_the_data():
    for gap, expected in ((0.1, -1.99), (0.01, -19.9), (0.001, -198)):
        assert slope(gap, 0.1) == pytest.approx(expected, rel=6e-3)
    assert slope(1e-4, 0.1, data=1.0) == pytest.approx(slope(1e-4, 0.1, data=-1.0), rel=1e-4)


# ECT's levels


TIMES = torch.tensor([0.05, 0.3, 0.821, 1, 2, 5, 20, 80]).double()
RATIOS = {
    0: [0, 0, 0, 0, 0.023188, 0.473229, 0.5, 0.5],
    1: [0, 0, 0.138897, 0.212117, 0.511594, 0.736614, 0.75, 0.75],
    2: [0.387497, 0.449443, 0.569449, 0.606059, 0.755797, 0.868307, 0.875, 0.875],
    7: [0.980859, 0.982795, 0.986545, 0.987689, 0.992369, 0.995885, 0.996094, 0.996094],
}


@pytest.mark.parametrize("stage", RATIOS)
def test_the_published_goal_levels(stage):
    found = ect_goal_level(TIMES, stage) / TIMES
    assert found.tolist() == pytest.approx(RATIOS[stage], abs=1e-6)
    assert torch.equal(ect_goal_level(TIMES, 7), ect_goal_level(TIMES, 0, q=256.0))
    assert torch.equal(ect_goal_level(TIMES, 1), ect_goal_level(TIMES, 0, q=4.0))


def test_where_the_goal_is_the_data():
    assert (ect_goal_level(TIMES, -1) == 0).all()
    for stage, edge in ((0, math.log(7)), (1, math.log(5 / 3))):
        below, above = torch.tensor([edge - 1e-6, edge + 1e-6]).double()
        assert ect_goal_level(below, stage) == 0 < ect_goal_level(above, stage)
    assert (ect_goal_level(torch.logspace(-4, 2, 50), 2) > 0).all()


@pytest.mark.parametrize(("stage", "share"), [(-1, 1.0), (0, 0.812), (1, 0.585), (2, 0.0)])
def test_the_share_of_pure_denoising(stage, share, generator):
    sigma = draw_lognormal(
        torch.empty(100_000, 1), 1e-6, 1e6, log_mean=-1.1, log_std=2.0, generator=generator
    )
    assert (ect_goal_level(sigma, stage) == 0).double().mean() == pytest.approx(share, abs=0.006)


def test_the_law_of_the_levels(generator):
    for low, high, mean, std in ((1e-5, 1e5, -1.1, 2.0), (0.002, 5.0, -1.1, 2.0), (0.1, 80, 1, 1)):
        law = {"log_mean": mean, "log_std": std}
        x = draw_lognormal(torch.empty(50_000, 3), low, high, **law, generator=generator)
        assert x.shape == (50_000,) and x.dtype == torch.float32
        assert low <= x.min() and x.max() <= high
        ends = torch.special.ndtr((torch.tensor([low, high]).log() - mean) / std)
        for place in (0.1, 0.5, 0.9):
            target = ends[0] + place * (ends[1] - ends[0])
            edge = (mean + std * torch.special.ndtri(target)).exp()
            assert (x < edge).double().mean() == pytest.approx(place, abs=0.01)


# ECT's loss


def ect(online=None, **options):
    return EasyTuning(Witness() if online is None else online, **{"total_steps": 8, **options})


def test_stages_are_equal_and_follow_the_denoising():
    loss, stages = ect(total_steps=80), []
    for _ in range(90):
        stages.append(loss.stage)
        loss.after_step()
    assert [stages[:80].count(s) for s in range(8)] == [10] * 8 and stages[80:] == [7] * 10
    loss, stages = ect(total_steps=100, denoising=0.4, stages=3), []
    for _ in range(100):
        stages.append(loss.stage)
        loss.after_step()
    assert [stages.count(s) for s in (-1, 0, 1, 2)] == pytest.approx([40, 20, 20, 20], abs=1)
    assert stages == sorted(stages)


@pytest.mark.parametrize("stage", [-1, 0, 1, 7])
def test_the_goal_is_the_data_exactly_where_r_is_0(stage, generator):
    seen, online = {}, Witness(0.25)

    def distance(answer, goal):
        seen["answer"], seen["goal"] = answer, goal
        return squared_l2(answer, goal)

    loss, x = ect(online, denoising=0.5, total_steps=16, distance=distance), data(2000)
    loss.step = 0 if stage < 0 else 8 + stage
    assert loss.stage == stage
    found = loss(x, generator=generator)
    (_, asked, _), (noisy, high, _) = online.seen
    low = ect_goal_level(high, stage)
    low = torch.where(low > 0.002, low, 0)
    is_data = low == 0
    assert is_data.all() if stage < 0 else (is_data.any() and not is_data.all())
    assert torch.equal(seen["goal"][is_data], x[is_data])
    assert (seen["goal"][~is_data] == 0.25).all() and (seen["answer"] == 0.25).all()
    assert asked.min() >= torch.tensor(0.002)  # so that ln 0 reaches no network
    assert torch.allclose(asked[~is_data], low[~is_data])
    expected = squared_l2(seen["answer"], seen["goal"]) / (high - low)
    assert torch.allclose(found, expected) and torch.equal(loss.last_sigma, high)


def same_noise(kind, generator):
    """The noises that the two passes of `kind` see, a row each, far from sigma_min."""
    loss = kind(Witness(), total_steps=8)
    loss.step, x = 7, data(2000)
    loss(x, generator=generator)
    (cleaner, low, _), (noisy, high, _) = loss.online.seen
    far = low > 0.05
    return [((v - x) / s[:, None])[far] for v, s in ((cleaner, low), (noisy, high))]


class Fresh(EasyTuning):
    """The classic mistake: another noise for the goal."""

    def forward(self, x, labels=None, *, generator=None):
        low, high = self.levels(x, generator)
        for model, sigma in ((self.target, low.clamp(min=0.002)), (self.online, high)):
            model(x + per_sample(sigma, x) * draw_normal(x, generator), sigma)


def test_one_noise_for_both_points(generator):
    ours, theirs = same_noise(EasyTuning, generator)
    assert torch.allclose(ours, theirs, atol=1e-4) and 0.9 < ours.std() < 1.1
    ours, theirs = same_noise(Fresh, generator)
    assert torch.corrcoef(torch.stack([ours[:, 0], theirs[:, 0]]))[0, 1].abs() < 0.1


@pytest.mark.parametrize("kind", [ImprovedTraining, EasyTuning])
def test_gradients_are_finite_and_the_goal_carries_none(kind, generator):
    online = model()
    loss = kind(online, total_steps=8, distance=squared_l2)
    for step in range(8):
        loss.step = step
        online.zero_grad()
        state = generator.get_state()
        loss(data(), generator=generator).mean().backward()
        found = torch.cat([p.grad.flatten() for p in online.parameters()])
        assert found.isfinite().all() and found.norm() > 0
        online.zero_grad()  # the same with another network for the goals, the weights its own
        fixed = model()
        fixed.load_state_dict(online.state_dict())
        fixed.requires_grad_(False)
        loss.target._online[0] = fixed
        loss(data(), generator=generator.set_state(state)).mean().backward()
        loss.target._online[0] = online
        again = torch.cat([p.grad.flatten() for p in online.parameters()])
        assert torch.allclose(found, again)


def test_labels_are_passed_on(generator):
    labels = torch.arange(256)
    for loss in (ict(), ect()):
        loss(data(), labels, generator=generator)
        assert all(seen[2] is labels for seen in loss.online.seen)


@pytest.mark.parametrize("kind", [ImprovedTraining, EasyTuning])
def test_a_checkpoint_restores_the_stage(kind, tmp_path):
    def begin(seed, **options):
        rng = torch.Generator().manual_seed(seed)
        objective = kind(model(seed), total_steps=16)
        batches = toy_batches(MOONS, 16, generator=rng)
        return train(objective, batches, steps=16, generator=rng, **options)

    for state in begin(0):
        if state.step == 8:
            save_checkpoint(tmp_path / "last", state)
    (resumed, *rest) = begin(1, resume=load_checkpoint(tmp_path / "last"))
    assert resumed.objective.step == 16 and len(rest) == 7
    assert rest[-1].loss == state.loss
    fresh = kind(model(), total_steps=16)
    fresh.load_state_dict(fresh.state_dict() | {"_extra_state": {"step": 8}})
    assert fresh.step == 8
    assert (fresh.points == 161) if kind is ImprovedTraining else (fresh.stage == 4)


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda: ict_points(0, 10, 0, 5), "1 <= s0 <= s1 and total >= 1 are needed"),
        (lambda: ict_points(0, 10, 9, 5), "not s0=9, s1=5, total=10"),
        (lambda: ict(total_steps=0), "total=0"),
        (lambda: ect(total_steps=0), "total_steps and stages must be at least 1"),
        (lambda: ect(stages=0), "not 8, 0, 2.0 and 0.0"),
        (lambda: ect(q=1.0), "q above 1"),
        (lambda: ect(denoising=1.0), r"denoising in \[0, 1\)"),
        (lambda: ect(denoising=-0.1), "and -0.1"),
    ],
)
def test_bad_input_is_refused(action, sentence):
    with pytest.raises(InputError, match=sentence):
        action()


# What the sweeps run


def test_the_objectives_of_the_sweep():
    expected = {"ct": ConsistencyTraining, "even": lab.EvenTraining, "ict": ImprovedTraining}
    for method, kind in expected.items():
        objective, before = lab.student_objective({"method": method, "c": 0.5}, 0)
        assert type(objective) is kind and before == 0
        assert objective.distance.keywords == {"c": 0.5}
    plain, _ = lab.student_objective(lab.PAPER, 0)
    assert plain.distance is squared_l2 and plain.target.slow is not None and plain.points == 2
    assert lab.EvenTraining.levels is ConsistencyTraining.levels


def test_tuning_starts_from_the_denoiser_and_does_not_move_it(monkeypatch):
    torch.manual_seed(3)
    teacher = lab.EDMDenoiser(MLP())
    monkeypatch.setattr(lab, "timed_teacher", lambda *a: (teacher.requires_grad_(False), 7.0))
    for method in ("ect", "cd"):
        objective, before = lab.student_objective({"method": method}, 0)
        pairs = zip(objective.online.network.parameters(), teacher.network.parameters())
        assert before == 7.0
        assert all(a is not b and a.requires_grad and torch.equal(a, b) for a, b in pairs)


def test_the_centre_of_a_pseudo_huber(generator):
    cloud = draw_normal(torch.empty(400, 3).double(), generator).exp()
    for c in (0.0, 0.1, 1.0):
        shift = cloud - lab.huber_centre(cloud, c)
        pulls = shift / (shift.square().sum(1, keepdim=True) + c**2).sqrt()
        assert pulls.mean(0).norm() < 1e-7
    twice = torch.cat([cloud, cloud[:200]])
    odds = torch.ones(400).double()
    odds[:200] = 2
    assert torch.allclose(lab.huber_centre(cloud, 0.1, odds / 600), lab.huber_centre(twice, 0.1))
    noise = lab.draw_skewed(100_000, 4, generator)
    assert noise.square().sum(1).mean() == pytest.approx(1, abs=0.03)
    assert (noise**3).mean() == pytest.approx(2 / 8, abs=0.04)
