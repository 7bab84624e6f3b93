"""Consistency distillation: who sees which argument, who gets a gradient, and what has no loss."""

import inspect
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import consistency_edu.distillation as cd
from consistency_edu import distances as d
from consistency_edu import features
from consistency_edu.consistency import ConsistencyModel, ExactConsistency
from consistency_edu.data import InputError, draw_points, load_digits, toy
from consistency_edu.distances import FeatureDistance
from consistency_edu.distillation import ConsistencyDistillation, SolverConsistency, TargetNetwork
from consistency_edu.experiments import benchmarks
from consistency_edu.experiments import distillation as lab
from consistency_edu.experiments.benchmarks import Magnified, bounded
from consistency_edu.experiments.distillation import (
    CD_SWEEPS,
    FLOWS,
    SwappedDistillation,
    ToySetting,
    UnstoppedDistillation,
)
from consistency_edu.features import ClassifierFeatures
from consistency_edu.metrics import frechet_distance
from consistency_edu.networks import MLP
from consistency_edu.pf_ode import EDMDenoiser, euler_step, heun_step, karras_sigmas, solve_pf_ode
from consistency_edu.sampling import sample_one_step
from consistency_edu.score import ExactDenoiser

GRID = karras_sigmas(9, 0.002, 5.0)


def students():
    torch.manual_seed(0)
    return ConsistencyModel(MLP(), sigma_max=5.0)


# --- the pair -----------------------------------------------------------------------------------


def test_intervals_are_neighbours_and_equally_likely(generator):
    low, high = cd.draw_interval(GRID, torch.empty(80_000, 2), generator)
    levels = GRID.float()
    n = (high[:, None] == levels).float().argmax(1)
    assert (levels[n] == high).all() and (levels[n - 1] == low).all() and n.min() == 1
    counts = n.bincount(minlength=9)[1:]
    assert (counts - 10_000).abs().max() < 500


class Spy(nn.Module):
    """Answers with `scale` times its input and remembers its arguments."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(scale)))
        self.calls = []

    def forward(self, x, sigma, labels=None):
        self.calls.append((x.detach().clone(), sigma.clone(), labels))
        return self.weight * x

    def __deepcopy__(self, memo):
        return Spy(float(self.weight.detach()))


def spied(kind, **options):
    online, teacher = Spy(), Spy(0.0)
    return kind(online, teacher, GRID, solver=euler_step, **options), online, teacher


def test_roles_see_the_right_arguments(generator):
    """Online at the noisier point, target one Euler step from it, the teacher where it starts."""
    objective, online, teacher = spied(ConsistencyDistillation, decay=0.5)
    target = objective.target.slow
    x, labels = torch.randn(4000, 2, generator=generator) * 0.5 + 3, torch.arange(4000)
    objective(x, labels, generator=generator)
    (noisy, high, given), (cleaner, low, also) = online.calls[0], target.calls[0]
    at, where, told = teacher.calls[0]
    assert len(online.calls) == len(target.calls) == len(teacher.calls) == 1
    assert (low < high).all() and torch.equal(objective.last_sigma, high)
    assert torch.equal(at, noisy) and torch.equal(where, high)
    assert all(torch.equal(labels, seen) for seen in (given, also, told))
    z = (noisy - x) / high[:, None]
    assert abs(float(z.mean())) < 0.05 and abs(float(z.std()) - 1) < 0.03
    # D is 0 here, so that an Euler step multiplies x by low / high
    assert torch.allclose(cleaner, noisy * (low / high)[:, None], rtol=1e-4, atol=1e-5)


def test_swapped_roles_keep_their_levels(generator):
    objective, online, _ = spied(SwappedDistillation, decay=0.5)
    objective(torch.randn(100, 2, generator=generator), generator=generator)
    (cleaner, low, _), (noisy, high, _) = online.calls[0], objective.target.slow.calls[0]
    assert torch.equal(high, objective.last_sigma) and (low < high).all()
    assert torch.allclose(cleaner, noisy * (low / high)[:, None], rtol=1e-4, atol=1e-5)


def test_defaults_are_heun_and_pseudo_huber():
    options = inspect.signature(ConsistencyDistillation).parameters
    assert options["solver"].default is heun_step
    assert options["distance"].default is d.pseudo_huber


def test_the_loss_is_weighted_and_taken_from_the_distance(generator):
    def loss(**options):
        objective, online, _ = spied(ConsistencyDistillation, distance=d.l1, **options)
        value = objective(torch.ones(500, 2), generator=torch.Generator().manual_seed(3))
        return value, online.calls

    plain, calls = loss(weight=d.uniform_weight)
    (cleaner, low, _), (noisy, high, _) = sorted(calls, key=lambda call: float(call[1].sum()))
    assert torch.allclose(plain, (noisy - cleaner).abs().sum(1))
    assert torch.allclose(loss(weight=d.inverse_gap)[0], plain / (high - low), rtol=1e-4)
    assert torch.allclose(loss()[0], plain / (high - low), rtol=1e-4)  # the default
    assert torch.allclose(loss(weight=d.root_gap)[0], plain / (high - low).sqrt(), rtol=1e-4)
    assert torch.allclose(loss(weight=lambda low, high: low)[0], plain * low, rtol=1e-4)


def test_distances_by_hand():
    a, b = torch.zeros(2, 1, 2), torch.tensor([[[0.3, -0.4]], [[0.0, 2.0]]])
    assert torch.allclose(d.l1(a, b), torch.tensor([0.7, 2.0]))
    assert torch.allclose(d.squared_l2(a, b), torch.tensor([0.25, 4.0]))
    expected = (torch.tensor([0.25, 4.0]) + 0.0009).sqrt() - 0.03
    assert torch.allclose(d.pseudo_huber(a, b), expected)
    assert torch.allclose(d.pseudo_huber(a, b, c=1.0), torch.tensor([1.25, 5.0]).sqrt() - 1)


# --- roles and gradients --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "traced"),
    [
        (ConsistencyDistillation, "noisier"),
        (SwappedDistillation, "cleaner"),
        (UnstoppedDistillation, "both"),
    ],
)
def test_only_the_noisier_answer_is_traced(kind, traced, generator):
    """... as in the paper, and what the two variations trace."""
    objective, online, _ = spied(kind, distance=d.l1, weight=d.uniform_weight)
    loss = objective(torch.ones(500, 2), generator=generator)
    (grad,) = torch.autograd.grad(loss.sum(), online.weight)
    sigmas = {bool((s == objective.last_sigma).all()): x for x, s, _ in online.calls}
    noisy, cleaner = sigmas[True], sigmas[False]
    sign = (noisy - cleaner).sign()  # l1's derivative with respect to the noisier answer
    parts = {"noisier": (sign * noisy).sum(), "cleaner": -(sign * cleaner).sum()}
    parts["both"] = parts["noisier"] + parts["cleaner"]
    assert torch.allclose(grad, parts[traced], rtol=1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_no_gradient_reaches_target_or_teacher(decay, generator):
    teacher = EDMDenoiser(MLP())
    objective = ConsistencyDistillation(students(), teacher, GRID, decay=decay)
    x = draw_points(toy("moons"), 64, generator=generator)[0]
    objective(x, generator=generator).mean().backward()
    assert all(p.grad is not None for p in objective.online.parameters())
    frozen = [*objective.target.parameters(), *teacher.parameters()]
    assert all(p.grad is None for p in frozen)
    assert (len(list(objective.target.parameters())) > 0) == (decay > 0)


def test_swapped_pairs_at_the_clean_end_teach_nothing(generator):
    tiny = karras_sigmas(2, 0.002, 5.0)
    pulls = {}
    for name, kind in FLOWS.items():
        online = students()
        kind(online, ExactDenoiser(toy("moons")), tiny)(
            torch.ones(64, 2), generator=generator
        ).mean().backward()
        pulls[name] = sum(float(p.grad.norm()) for p in online.parameters() if p.grad is not None)
    assert pulls["swapped"] == 0 and pulls["paper"] > 0 and pulls["unstopped"] > 0


def test_target_follows_slowly_and_only_if_it_is_slow():
    online = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(online.weight)
    slow, fast = TargetNetwork(online, is_slow=True), TargetNetwork(online, is_slow=False)
    nn.init.ones_(online.weight)
    slow.follow(0.9)
    assert abs(float(slow.slow.weight) - 0.1) < 1e-6
    fast.follow(0.9)
    assert fast.slow is None and not list(fast.parameters())
    slow.follow(0.9)
    assert abs(float(slow.slow.weight) - 0.19) < 1e-6


def test_the_objective_moves_its_target_by_its_own_decay(generator):
    objective, online, _ = spied(ConsistencyDistillation, decay=0.75)
    with torch.no_grad():
        online.weight.fill_(5.0)
    objective.after_step()
    assert abs(float(objective.target.slow.weight) - 2.0) < 1e-6
    assert spied(ConsistencyDistillation)[0].target.slow is None


# --- what has no loss: Theorem 1 ------------------------------------------------------------------


@pytest.mark.parametrize("solver", [euler_step, heun_step])
def test_the_solver_itself_has_no_loss(solver, blobs, generator):
    denoiser = ExactDenoiser(blobs)
    zero = SolverConsistency(denoiser, GRID, solver)
    objective = ConsistencyDistillation(
        zero,
        denoiser,
        GRID,
        solver=solver,
        distance=d.squared_l2,
        weight=d.uniform_weight,
    )
    x = draw_points(blobs, 300, generator=generator)[0].double()
    assert objective(x, generator=generator).max() < 1e-20


def test_solver_consistency_starts_each_row_at_its_own_level(blobs, generator):
    denoiser = ExactDenoiser(blobs)
    f = SolverConsistency(denoiser, GRID)
    assert f.sigma_min == 0.002 and f.sigma_max == 5.0
    noise = torch.randn(9, 2, generator=generator).double()
    found = f(noise * GRID[:, None], GRID)
    assert torch.equal(found[0], noise[0] * 0.002)
    for n in range(1, 9):
        alone = solve_pf_ode(denoiser, noise[n : n + 1], GRID[: n + 1].flip(0))
        assert torch.allclose(found[n], alone[0], atol=1e-12)
    with pytest.raises(InputError, match="levels of its grid"):
        f(noise, torch.full((9,), 0.3).double())


@pytest.mark.parametrize(("solver", "order"), [(euler_step, 1), (heun_step, 2)])
def test_theorem_1_holds_on_blobs_in_median_and_supremum(solver, order, blobs, generator):
    denoiser = ExactDenoiser(blobs)
    truth = ExactConsistency(denoiser, sigma_max=5.0, steps=96)
    x = 5 * torch.randn(100, 2, generator=generator).double()
    top = torch.full((100,), 5.0).double()
    ends, found, steps = truth(x, top), [], []
    for points in (73, 145, 289):
        grid = karras_sigmas(points, 0.002, 5.0)
        error = (SolverConsistency(denoiser, grid, solver)(x, top) - ends).norm(dim=1)
        found.append([error.median(), error.max()])
        steps.append(grid.diff().max())
    logs, h = torch.tensor(found).log(), torch.tensor(steps).double().log()
    assert ((logs.diff(dim=0).T / h.diff()) - order).abs().max() < 0.15


# --- feature distances ----------------------------------------------------------------------------


class TwoMaps(nn.Module):
    """Features by hand: x `[B, 2, 1, 2]` itself, and its mean over positions."""

    def forward(self, x):
        return [x, x.mean((2, 3))]


def test_feature_distance_by_hand():
    a = torch.tensor([[[[3.0, 1.0]], [[4.0, 0.0]]]])  # unit columns (0.6, 0.8) and (1, 0)
    b = torch.tensor([[[[8.0, 0.0]], [[6.0, 2.0]]]])  # (0.8, 0.6) and (0, 1)
    first = (2 * 0.2**2 + 2) / 2  # averaged over two positions
    root = 2**0.5
    second = 2 * (1 / root - 1 / root) ** 2  # both means have equal channels: (2, 2), (4, 4)
    assert torch.allclose(FeatureDistance(TwoMaps())(a, b), torch.tensor([first + second]))
    assert torch.allclose(FeatureDistance(TwoMaps())(a, 7 * b), torch.tensor([first + second]))
    differences = ((3 - 8) ** 2 + (4 - 6) ** 2 + 1 + (0 - 2) ** 2) / 2
    expected = torch.tensor([differences + 2 * 2.0**2])
    assert torch.allclose(FeatureDistance(TwoMaps(), use_unit=False)(a, b), expected)


def test_feature_distance_is_frozen_but_lets_gradients_through():
    torch.manual_seed(0)
    network = ClassifierFeatures(width=4)
    distance = FeatureDistance(network)
    a, b = torch.randn(5, 64, requires_grad=True), torch.randn(5, 64)
    distance(a, b).sum().backward()
    assert a.grad.norm() > 0 and not list(p for p in distance.parameters() if p.requires_grad)
    assert all(p.requires_grad for p in network.parameters())  # a copy was frozen
    assert distance(b, b).abs().max() == 0
    flat = torch.zeros(2, 64, requires_grad=True)
    zero_maps = FeatureDistance(nn.Sequential(nn.Identity()))
    zero_maps.features = lambda_maps()
    zero_maps(flat, torch.ones(2, 64)).sum().backward()
    assert flat.grad.isfinite().all()


def lambda_maps():
    class Raw(nn.Module):
        def forward(self, x):
            return [x.reshape(-1, 1, 8, 8)]

    return Raw()


def test_a_short_training_recognises_digits():
    network = features.train_digit_features(0, width=8, steps=80)
    images, labels = load_digits("test")
    assert (network.logits(images).argmax(1) == labels).float().mean() > 0.85
    assert network.logits(images[:3]).equal(network.logits(images[:3].flatten(1)))
    assert [m.shape[1:] for m in network(images[:1])] == [(8, 8, 8), (16, 4, 4), (32, 2, 2)]
    assert network.embed(images[:3]).shape == (3, 128)
    assert not any(p.requires_grad for p in network.parameters())


# --- runs -----------------------------------------------------------------------------------------


def test_the_benchmark_knows_the_exact_answer():
    bench = benchmarks.toy_benchmark("moons", 300)
    exact = ExactConsistency(ExactDenoiser(toy("moons")), sigma_max=5.0)
    best, bad = (
        bench.evaluate(sample_one_step(model, bench.noise)) for model in (exact, students())
    )
    assert best["paired_error"] < 1e-6 and best["sliced_w2"] < 0.08
    assert bad["paired_error"] > 0.1 and bad["sliced_w2"] > 0.1
    again = benchmarks.toy_benchmark.__wrapped__("moons", 300)
    assert all(map(torch.equal, again[1:4], bench[1:4]))
    assert (
        bench.evaluate(bench.fresh)["sliced_w2"] == 0 < bench.evaluate(bench.fresh)["paired_error"]
    )
    for bad in (torch.zeros(300, 3), torch.zeros(300, 1), torch.zeros(40, 2)):
        with pytest.raises(InputError):
            bench.evaluate(bad)
    assert bounded(float("nan")) == bounded(1e9) == 1000.0 and bounded(2.0) == 2.0


def small(monkeypatch):
    """Make runs small: benchmarks of 200 points, teachers of 12 steps."""
    bench, teacher = benchmarks.toy_benchmark, benchmarks.learned_teacher.__wrapped__
    monkeypatch.setattr(lab, "toy_benchmark", lambda dataset: bench(dataset, 200))
    remembered = {}

    def learn(dataset, seed, gain, steps):
        if (dataset, seed, gain, steps) not in remembered:
            remembered[dataset, seed, gain, steps] = teacher(dataset, seed, gain, 12)
        return remembered[dataset, seed, gain, steps]

    learn.cache_clear = remembered.clear
    monkeypatch.setattr(lab, "learned_teacher", learn)


def test_runs_repeat_and_differ_by_seed(monkeypatch):
    small(monkeypatch)
    first, again, other = (lab.distil_toy({"steps": 32, "batch": 16}, s) for s in (0, 0, 1))
    assert first == again != other
    assert first["step_curve"] == list(range(2, 33, 2))
    assert first["paired_error"] == first["paired_error_curve"][-1]
    assert first["sliced_w2"] == first["sliced_w2_curve"][-1]


def test_the_gap_of_online_and_target_is_zero_without_a_slow_target(monkeypatch):
    small(monkeypatch)
    monkeypatch.setattr(lab, "WATCHED", (2, 8))
    same, slow = (
        lab.watch_target({"steps": 8, "batch": 16, "decay": decay}, 0) for decay in (0.0, 0.9)
    )
    assert same["gap_falling"] == same["gap_constant"] == [0.0, 0.0]
    assert min(slow["gap_falling"] + slow["gap_constant"]) > 0
    assert slow["gap_falling"] != slow["gap_constant"]
    assert len(slow["error_falling"]) == len(slow["loss_constant"]) == 2


def test_a_setting_reaches_the_objective():
    setting = ToySetting(
        points=7, solver="euler", distance="l1", weight="uniform", decay=0.3, flow="swapped"
    )
    objective = setting.objective(students(), Spy())
    assert type(objective) is SwappedDistillation and objective.solver is euler_step
    assert objective.distance is d.l1 and objective.weight is d.uniform_weight
    assert objective.decay == 0.3 and objective.target.slow is not None
    assert torch.equal(objective.sigmas, karras_sigmas(7, 0.002, 5.0))
    for wrong in ({"solver": "rk4"}, {"distance": "l3"}, {"weight": "x"}, {"flow": "x"}):
        with pytest.raises(InputError):
            ToySetting(**wrong)
    with pytest.raises(InputError, match="exact, learned"):
        ToySetting(teacher="none")


def test_students_start_as_their_teacher(monkeypatch):
    small(monkeypatch)
    setting = ToySetting(teacher="learned", gain=4.0, steps=4, batch=16)
    teacher = lab.toy_teacher(setting, 0)
    student = lab.init_student(teacher, 4.0)
    pairs = zip(student.network.parameters(), teacher.network.parameters())
    assert all(torch.equal(a, b) for a, b in pairs)
    first = next(lab.distill_steps(setting, 0))
    assert first.objective.teacher is teacher and first.objective.online.network.gain == 4.0
    pairs = zip(first.objective.online.parameters(), teacher.parameters())
    assert all((a - b).abs().max() < 1e-3 for a, b in pairs)  # one step of a warming-up optimiser
    assert isinstance(lab.toy_teacher(ToySetting(), 0), ExactDenoiser)


def test_gain_magnifies_the_input():
    torch.manual_seed(0)
    network, x, c = MLP(), torch.randn(5, 2), torch.zeros(5)
    assert torch.equal(Magnified(network, 3.0)(x, c), network(3 * x, c))


def test_one_step_comparison_tells_teacher_from_student(monkeypatch):
    small(monkeypatch)
    exact = lab.compare_one_step({"steps": 4, "batch": 16}, 0)
    assert exact["teacher_paired_error"] < 1e-3 and exact["denoiser_error"] < 1e-6
    assert abs(exact["teacher_sliced_w2"] - exact["exact_sliced_w2"]) < 1e-3
    assert abs(exact["to_teacher"] - exact["paired_error"]) < 1e-2
    learned = lab.compare_one_step({"teacher": "learned", "steps": 4, "batch": 16}, 0)
    assert learned["teacher_paired_error"] > 0.02 and learned["denoiser_error"] > 0.02
    assert learned["teacher_sliced_w2"] > learned["exact_sliced_w2"]


def test_the_clock_stops_at_the_goal(monkeypatch):
    small(monkeypatch)
    setting = {"points": 9, "batch": 16, "steps": 60, "lr": 1e-2}
    early = lab.time_to_quality(setting, 0, goal=50.0, every=20)
    assert early["is_reached"] and early["taken"] == 20 and 0 < early["seconds"] < 20
    never = lab.time_to_quality(setting, 0, goal=0.0, every=20)
    assert not never["is_reached"] and never["taken"] == 60 and never["seconds"] > early["seconds"]
    assert early["teacher_seconds"] < 1
    seldom = lab.time_to_quality(setting, 0, goal=0.0, every=40)
    assert (
        seldom["sliced_w2"] == never["sliced_w2"] and seldom["taken"] == 60
    )  # the end is looked at, too


def test_the_clock_counts_all_training_and_no_judging(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(benchmarks.time, "process_time", lambda: next(clock))
    states = [SimpleNamespace(step=n, ema=SimpleNamespace(model=None)) for n in range(1, 7)]
    monkeypatch.setattr(benchmarks, "sample_one_step", lambda model, noise: noise)
    bench = SimpleNamespace(noise=None, evaluate=lambda cloud: {"sliced_w2": 1.0})
    found = benchmarks.race(iter(states), bench, 6, every=2)
    assert found["seconds"] == 3  # a tick for each of 3 looks


def test_digits_are_distilled_and_measured(monkeypatch):
    same, other = (features.ClassifierFeatures(width=w) for w in (2, 3))
    teacher = benchmarks.digits_teacher.__wrapped__(0, steps=3)
    monkeypatch.setattr(lab, "two_classifiers", lambda: (same, other))
    monkeypatch.setattr(lab, "digits_teacher", lambda seed: teacher)
    rows = {}
    for distance in ("squared_l2", "features", "unit_features"):
        setting = {"points": 9, "solver": "euler", "distance": distance, "steps": 3}
        rows[distance] = lab.distil_digits(setting, 0)
        assert rows[distance] == lab.distil_digits(setting, 0)
    assert set(lab.SPACES) <= set(rows["squared_l2"]) and rows["squared_l2"] != rows["features"]
    assert rows["features"] != rows["unit_features"]
    cloud, real = torch.randn(100, 64), benchmarks.digits_benchmark(shape=(64,)).train
    expected = frechet_distance(same.embed(cloud), same.embed(real))
    assert abs(lab.feature_distances(cloud)["same"] - expected) < 1e-6
    perfect = lab.feature_distances(real)
    assert set(perfect) == {"same", "other"}
    assert all(abs(value) < 1e-3 for value in perfect.values())


def test_sweeps_are_well_formed():
    for name, sweep in CD_SWEEPS.items():
        assert sweep.name == name and len(sweep.seeds) >= 3
        keys = [set(setting) for setting in sweep.settings]
        assert all(k == keys[0] for k in keys) and "seed" not in keys[0]
        runs = [tuple(sorted(setting.items())) for setting in sweep.settings]
        assert len(set(runs)) == len(runs)
        if sweep.work is not lab.distil_digits:
            assert all(ToySetting(**setting) for setting in sweep.settings)
    values = {(s["points"], s["solver"]) for s in CD_SWEEPS["cd_solver_points"].settings}
    assert values == {(n, s) for n in (9, 12, 18, 36, 50, 80) for s in ("euler", "heun")}


@pytest.mark.parametrize("bad", [GRID.flip(0), GRID[:1], GRID - 0.002, GRID[None]])
def test_bad_grids_are_refused(bad):
    with pytest.raises(InputError, match="ascend"):
        ConsistencyDistillation(students(), Spy(), bad)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_bad_decays_are_refused(decay):
    with pytest.raises(InputError, match="decay"):
        ConsistencyDistillation(students(), Spy(), GRID, decay=decay)


@pytest.mark.slow
def test_students_of_the_exact_teacher_reach_it():
    row = lab.distil_toy({"points": 18, "gain": 4.0, "steps": 2000}, 0)
    assert row["paired_error"] < 0.025


def test_networks_trained_on_the_side_leave_the_global_randomness_as_it_was():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    for make in (
        lambda: features.train_digit_features(0, width=2, steps=2),
        lambda: benchmarks.learned_teacher("moons", 0, 1.0, 2),
        lambda: benchmarks.digits_teacher(0, steps=2),
        lambda: benchmarks.digits_teacher(0, with_labels=True, steps=2),
    ):
        first = make()
        assert torch.equal(before, torch.get_rng_state())
        second = make()
        assert torch.equal(before, torch.get_rng_state())
        assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_features_of_digits_refuse_what_is_no_digit():
    network = features.ClassifierFeatures(width=2)
    for bad in (torch.zeros(6, 3, 32, 32), torch.zeros(6, 1, 8, 16), torch.zeros(2, 128)):
        for action in (network, network.embed, network.logits, lab.feature_distances):
            with pytest.raises(InputError, match="8 x 8"):
                action(bad)
