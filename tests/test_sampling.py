"""One step, Algorithm 1, and the search for its levels."""

import itertools

import pytest
import torch

from consistency_edu import sampling
from consistency_edu.boot import BootStudent, SignalModel
from consistency_edu.consistency import ConsistencyModel, ExactConsistency
from consistency_edu.data import InputError, draw_normal, draw_points, toy
from consistency_edu.editing import renoise_and_denoise
from consistency_edu.experiments import sampling as runs
from consistency_edu.experiments.sampling import (
    SAMPLING_SWEEPS,
    run_sampling,
    steps_evenly,
    toy_student,
)
from consistency_edu.metrics import energy_test
from consistency_edu.networks import MLP
from consistency_edu.pf_ode import karras_sigmas, solve_pf_ode
from consistency_edu.sampling import (
    Clamped,
    OneStepStudent,
    check_time_points,
    sample_multistep,
    sample_one_step,
    sampling_objective,
    search_time_points,
    ternary_search,
)
from consistency_edu.score import ExactDenoiser

PUBLISHED = {5: 3.649, 9: 3.319, 10: 3.051, 11: 2.928, 12: 3.049, 13: 3.277, 14: 3.460}


class Spy(torch.nn.Module):
    """A model that maps everything to the origin (times `gain`) and remembers its questions."""

    sigma_min, sigma_max = 0.002, 5.0

    def __init__(self, gain=0.0):
        super().__init__()
        self.gain, self.seen = gain, []

    def forward(self, x, sigma, labels=None):
        self.seen.append((x, sigma, labels))
        return self.gain * x


def test_one_step_scales_the_noise_itself(generator):
    spy, noise = Spy(1.0), torch.randn(5, 2, generator=generator)
    samples = sample_one_step(spy, noise, torch.arange(5))
    (x, sigma, labels) = spy.seen[0]
    assert torch.equal(x, 5 * noise) and torch.equal(samples, x)
    assert (sigma == 5).all() and sigma.shape == (5,) and torch.equal(labels, torch.arange(5))


@pytest.mark.parametrize("tau", [0.0021, 0.5, 4.0])
def test_multistep_adds_exactly_the_missing_variance(tau, generator):
    noise = torch.randn(100_000, 1, generator=generator).double()
    path = sample_multistep(Spy(), noise, [5.0, tau], generator=generator, return_path=True)
    assert path[2].var() == pytest.approx(tau**2 - 0.002**2, rel=0.02)


def test_the_noise_is_fresh(generator):
    """Neither the first noise nor the noise of another round, nor the sample, is in it."""
    noise = torch.randn(50_000, 1, generator=generator)
    path = sample_multistep(
        Spy(), noise, [5.0, 3.0, 2.0, 1.0], generator=generator, return_path=True
    )
    rows = torch.stack([noise[:, 0], *path[2::2, :, 0]])
    likeness = torch.corrcoef(rows) - torch.eye(4)
    assert likeness.abs().max() < 0.03


def test_multistep_starts_each_round_from_the_last_sample(generator):
    spy, noise = Spy(0.5), torch.randn(20_000, 1, generator=generator)
    path = sample_multistep(
        spy, noise, [5.0, 1.0], labels=torch.zeros(20_000), generator=generator, return_path=True
    )
    assert torch.equal(path[0], 5 * noise) and torch.equal(path[1], 0.5 * path[0])
    assert (path[2] - path[1]).std() == pytest.approx(1.0, rel=0.02)
    assert [float(sigma[0]) for _, sigma, _ in spy.seen] == [5.0, 1.0]
    assert all(labels is not None for *_, labels in spy.seen)
    again = sample_multistep(
        Spy(0.5), noise, [5.0, 1.0], generator=torch.Generator().manual_seed(7)
    )
    assert not torch.equal(again, path[3])


@pytest.mark.parametrize(("scale", "is_inside"), [(1.0, True), (1.5, False)])
def test_only_the_right_noise_leaves_the_law_alone(scale, is_inside, generator, monkeypatch):
    moons = toy("moons")
    f = ExactConsistency(ExactDenoiser(moons), sigma_max=5.0, steps=12)
    noise = torch.randn(1000, 2, generator=generator)
    monkeypatch.setattr(sampling, "draw_normal", lambda x, g: scale * draw_normal(x, g))
    samples = sample_multistep(f, noise, [5.0, 0.6, 0.55, 0.5, 0.45, 0.4], generator=generator)
    fresh = draw_points(moons, 1000, generator=generator)[0]
    assert energy_test(samples, fresh, generator=generator).is_inside == is_inside


@pytest.mark.parametrize(
    "sigmas", [[0.5, 5.0], [4.0], [5.1, 1.0], [5.0, 0.002], [5.0, 0.0], [5.0, 5.0], []]
)
def test_bad_levels_are_refused(sigmas):
    spy = Spy()
    with pytest.raises(InputError):
        sample_multistep(spy, torch.zeros(3, 2), sigmas)
    assert not spy.seen  # before any work


def test_levels_just_above_the_end_and_from_float32_are_accepted():
    levels = karras_sigmas(18, 0.002, 5.0, dtype=torch.float32).flip(0)[:-1]
    assert len(check_time_points(Spy(), levels)) == 17
    assert len(check_time_points(Spy(), [5.0 * (1 + 1e-7), 0.00201])) == 2


def test_students_with_one_level_say_so_before_any_work():
    calls = []
    student = OneStepStudent(
        lambda x, labels: calls.append(x) or 0.6 * x, sigma_max=5.0, method="direct distillation"
    )
    noise = torch.ones(4, 2)
    assert torch.equal(sample_one_step(student, noise), 3 * noise)
    assert torch.equal(sample_multistep(student, noise, [5.0]), 3 * noise) and len(calls) == 2
    with pytest.raises(InputError, match="no second jump: sample it in one step"):
        sample_multistep(student, noise, [5.0, 0.5])
    with pytest.raises(InputError, match="made by direct distillation exists at sigma_max = 5"):
        student(noise, torch.tensor([5.0, 5.0, 0.5, 5.0]))
    assert len(calls) == 2


class Halver(OneStepStudent):
    """A student with weights of its own, that defines its jump."""

    def __init__(self):
        super().__init__(sigma_max=5.0, sigma_min=0.0, method="halving")
        self.share = torch.nn.Parameter(torch.tensor(0.5))

    def jump(self, x, labels=None):
        return self.share * x if labels is None else self.share * x + labels[:, None]


def test_a_one_step_student_may_be_a_subclass_or_wrap_a_network():
    noise, labels = torch.ones(4, 2), torch.arange(4)
    student = Halver()
    assert torch.equal(sample_one_step(student, noise), 2.5 * noise)
    assert torch.equal(sample_one_step(student, noise, labels), 2.5 * noise + labels[:, None])
    assert student(noise, torch.full((4,), 5.0)).requires_grad  # it can be trained as it is
    network = torch.nn.Bilinear(2, 1, 2)
    wrapped = OneStepStudent(network, sigma_max=5.0, method="hand")
    assert list(wrapped.state_dict()) == ["jump.weight", "jump.bias"]
    assert torch.equal(
        wrapped(noise, torch.full((4,), 5.0), noise[:, :1]), network(noise, noise[:, :1])
    )
    with pytest.raises(InputError, match="made by halving"):
        student(noise, torch.full((4,), 4.9))


def test_boots_student_says_so_too():
    student = BootStudent(SignalModel(MLP(), sigma_max=5.0))
    with pytest.raises(InputError, match="one step"):
        sample_multistep(student, torch.zeros(4, 2), [5.0, 0.5])


# ---- the search


def test_the_published_curve_takes_seven_looks():
    found = ternary_search(PUBLISHED.__getitem__, 1, 16)
    assert found.best == 11 and found.value == 2.928
    assert list(found.seen) == [5, 11, 9, 13, 14, 10, 12]


def test_ternary_search_finds_every_minimum():
    """All valleys up to 40 long, with the minimum anywhere, ends included, and lopsided sides."""
    for n in range(1, 41):
        for at in range(n):
            for left, right in ((1.0, 1.0), (100.0, 0.01), (0.01, 100.0)):

                def valley(i, at=at, left=left, right=right):
                    return left * (at - i) if i < at else right * (i - at)

                found = ternary_search(valley, 0, n - 1)
                assert found.best == at and found.value == 0, (n, at)
                assert set(found.seen) <= set(range(n))


def test_ternary_search_finds_every_minimum_of_every_small_unimodal_function():
    """Every strictly unimodal order of up to 9 distinct values."""
    for n in range(1, 10):
        for left in itertools.product((False, True), repeat=n - 1):
            # place values n-1, n-2, … at one end or the other: all unimodal orders, once each
            values, low, high = [0.0] * n, 0, n - 1
            for value, goes_left in zip(range(n, 1, -1), left):
                values[low if goes_left else high] = float(value)
                low, high = (low + 1, high) if goes_left else (low, high - 1)
            values[low] = 1.0
            assert ternary_search(values.__getitem__, 0, n - 1).best == low


def test_ternary_search_shifts_with_its_range_and_looks_once():
    looks = []

    def valley(i):
        looks.append(i)
        return (i - 107) ** 2

    found = ternary_search(valley, 100, 130)
    assert found.best == 107 and len(looks) == len(set(looks)) == len(found.seen)
    assert min(looks) >= 100 and max(looks) <= 130 and len(looks) < 13


def test_a_clamp_comes_after_every_jump(generator):
    spy, noise = Spy(3.0), torch.randn(500, 2, generator=generator)
    options = {"labels": torch.arange(500), "return_path": True}
    path = sample_multistep(Clamped(spy), noise, [5.0, 0.5], generator=generator, **options)
    there = 3 * (5 * noise)
    assert torch.equal(path[0], 5 * noise) and torch.equal(path[1], there.clamp(-1, 1))
    assert (path[2] - path[1]).std() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(path[3], (3 * path[2]).clamp(-1, 1))
    assert all(torch.equal(labels, torch.arange(500)) for _, _, labels in spy.seen)
    assert torch.equal(sample_one_step(Clamped(spy, 2.0), noise), there.clamp(-2, 2))


def test_a_clamp_leaves_levels_and_refusals_as_they_are():
    student = OneStepStudent(lambda x, labels: x, sigma_max=3.0, sigma_min=0.1, method="hand")
    clamped = Clamped(student)
    assert (clamped.sigma_min, clamped.sigma_max) == (0.1, 3.0)
    with pytest.raises(InputError, match="no second jump"):
        sample_multistep(clamped, torch.ones(2, 2), [3.0, 1.0])
    with pytest.raises(InputError, match="take a consistency model"):
        renoise_and_denoise(clamped, torch.ones(2, 2), [1.0])


def test_a_denoiser_can_be_clamped(generator):
    noise = torch.randn(200, 2, generator=generator)
    ended = solve_pf_ode(Clamped(lambda x, sigma, labels: 9 * x), noise, [5.0, 1.0, 0.0])
    assert ended.abs().max() == 1


def test_bad_searches_are_refused():
    with pytest.raises(InputError, match="low <= high"):
        ternary_search(float, 3, 2)
    with pytest.raises(InputError, match="not a number at"):
        ternary_search(lambda i: float("nan"), 0, 5)
    grid = karras_sigmas(6)
    for bad, count in ((grid.flip(0), 2), (grid[None], 2), (grid, 0), (grid, 6), (grid[:1], 1)):
        with pytest.raises(InputError):
            search_time_points(lambda sigmas: 0.0, bad, count)


def test_the_search_over_levels_finds_the_published_tau():
    grid = karras_sigmas(18)
    down = grid.flip(0).tolist()
    found = search_time_points(lambda s: PUBLISHED[down.index(float(s[1]))], grid, 2)
    assert found.sigmas.tolist() == pytest.approx([80.0, 0.5853481231945422], rel=1e-12)
    assert found.value == 2.928 and len(found.seen) == 7


def test_the_search_is_greedy_and_freezes_earlier_levels():
    grid = karras_sigmas(12, 0.002, 5.0)
    down, asked = grid.flip(0), []

    def objective(sigmas):
        asked.append(sigmas.tolist())
        return float((sigmas.log() - down[[0, 3, 7, 9]][: len(sigmas)].log()).abs().sum())

    found = search_time_points(objective, grid, 4)
    assert torch.equal(found.sigmas, down[[0, 3, 7, 9]])
    assert all(levels == sorted(levels, reverse=True) for levels in asked)
    triples = [levels for levels in asked if len(levels) == 3]
    assert triples and all(levels[1] == float(down[3]) for levels in triples)
    assert len(asked) == len(found.seen) == len({tuple(levels) for levels in asked})
    assert found.value == found.seen[tuple(found.sigmas.tolist())]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_search_leaves_room_for_the_remaining_levels(count):
    """Even an objective that always wants the lowest level gets as many as were asked for."""
    grid = karras_sigmas(6)
    found = search_time_points(lambda sigmas: float(sigmas.sum()), grid, count)
    assert len(found.sigmas) == count and found.sigmas[0] == 80 and found.sigmas[-1] > 0.002
    assert (found.sigmas.diff() < 0).all()
    assert found.value == pytest.approx(float(found.sigmas.sum()))
    lowest = [80.0, *grid[1:count].flip(0).tolist()]
    assert found.sigmas.tolist() == pytest.approx(lowest)


def test_the_objective_repeats_its_noise(generator):
    noise = torch.randn(30, 2, generator=generator)
    clouds = []
    objective = sampling_objective(
        Spy(0.3), noise, lambda cloud: clouds.append(cloud) or cloud.sum(), seed=3
    )
    first, _, again = (objective(s) for s in ([5.0, 1.0], [5.0, 2.0], [5.0, 1.0]))
    assert first == again and torch.equal(clouds[0], clouds[2])
    assert torch.allclose(
        (clouds[1] - 0.45 * noise) / (clouds[0] - 0.45 * noise), torch.tensor(2.0), rtol=1e-3
    )
    other = sampling_objective(Spy(0.3), noise, lambda cloud: float(cloud.sum()), seed=4)
    assert other([5.0, 1.0]) != first


def test_the_objective_samples_in_batches_with_their_labels(generator):
    noise, labels = torch.randn(10, 2, generator=generator), torch.arange(10)
    spy, sizes = Spy(1.0), []
    objective = sampling_objective(
        spy, noise, lambda cloud: sizes.append(len(cloud)) or 0.0, labels=labels, batch_size=4
    )
    objective([5.0])
    assert sizes == [10] and [len(x) for x, *_ in spy.seen] == [4, 4, 2]
    assert torch.equal(torch.cat([labels for *_, labels in spy.seen]), labels)
    assert torch.equal(torch.cat([x for x, *_ in spy.seen]), 5 * noise)


def test_even_steps_start_at_the_top_and_stay_above_the_end():
    model = ConsistencyModel(MLP(), sigma_max=5.0)
    assert steps_evenly(model, 1).tolist() == [5.0]
    levels = steps_evenly(model, 17)
    assert torch.equal(levels, karras_sigmas(18, 0.002, 5.0).flip(0)[:-1])
    check_time_points(model, levels)


def test_runs_of_the_sweep_are_repeatable_and_whole(monkeypatch):
    monkeypatch.setattr(
        runs, "toy_student", lambda *a: ConsistencyModel(MLP(width=16), sigma_max=5.0)
    )
    setting = dict(SAMPLING_SWEEPS["sampling_steps"].settings[0])
    first, again = (run_sampling(setting, 0, count=100) for _ in range(2))
    assert first == again and len(first["even"]) == 8 and len(first["by_tau"]) == 16
    for k, levels in enumerate(first["levels"]):
        assert len(levels) == k + 2 and levels[0] == pytest.approx(5.0)
    index = first["taus"].index(first["levels"][0][1])
    assert first["by_tau_again"][index] == pytest.approx(first["searched"][0])


def test_searched_levels_are_judged_with_noise_and_data_that_the_search_has_not_seen(monkeypatch):
    seeds, data, given = [], [], runs.sampling_objective
    monkeypatch.setattr(
        runs, "toy_student", lambda *a: ConsistencyModel(MLP(width=16), sigma_max=5.0)
    )
    monkeypatch.setattr(
        runs,
        "sampling_objective",
        lambda *a, seed: seeds.append(seed) or data.append(a[2].args[0]) or given(*a, seed=seed),
    )
    for seed in (0, 1):
        run_sampling(dict(SAMPLING_SWEEPS["sampling_steps"].settings[0]), seed, count=20)
    assert len(set(seeds)) == len(seeds) == 4
    assert len({float(points.sum()) for points in data}) == 4


def test_the_search_looks_no_more_than_it_must():
    for n, most in ((1, 1), (2, 2), (16, 8), (60, 15)):
        looks = [
            len(ternary_search(lambda i, at=at: abs(i - at), 0, n - 1).seen) for at in range(n)
        ]
        assert max(looks) == most


@pytest.mark.slow
def test_a_toy_student_learns(generator):
    torch.manual_seed(0)
    moons = toy("moons")
    student = toy_student("moons", 18, generator, steps=1000)
    f = ExactConsistency(ExactDenoiser(moons), sigma_max=5.0, steps=24)
    noise = torch.randn(500, 2, generator=generator)
    gap = (sample_one_step(student, noise) - sample_one_step(f, noise)).norm(dim=1).median()
    assert gap < 0.15
