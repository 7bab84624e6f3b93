"""BOOT: identities in float64, orders, stop-gradients, clocks, guidance, no look at the data."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import make_mixture

from consistency_edu import guidance, sampling
from consistency_edu.boot import (
    Boot,
    BootStudent,
    SignalModel,
    draw_between,
    empty_batches,
    over_delta,
    residual_weight,
    signal_euler,
    signal_heun,
    signal_linear,
    signal_of,
    signal_step,
    solve_signal_ode,
    vp_sigmas,
)
from consistency_edu.consistency import ExactConsistency
from consistency_edu.data import InputError, draw_normal, toy
from consistency_edu.ddim import alpha_sigma, ddim_step
from consistency_edu.ddpm import cosine_vp
from consistency_edu.distances import l1, squared_l2
from consistency_edu.distillation import draw_interval
from consistency_edu.experiments import benchmarks
from consistency_edu.experiments import boot as lab
from consistency_edu.experiments.boot import ProgressiveTime
from consistency_edu.guidance import Guided, GuidedByLabel, admit_weight, with_weight
from consistency_edu.networks import MLP, UNet
from consistency_edu.pf_ode import EDMDenoiser, euler_step, karras_sigmas, solve_pf_ode
from consistency_edu.sampling import sample_one_step
from consistency_edu.score import ExactDenoiser
from consistency_edu.training import fit

GRID = karras_sigmas(12, 0.002, 5.0)
MOONS = ExactDenoiser(toy("moons"))


def learner(seed=0, **options):
    torch.manual_seed(seed)
    return SignalModel(MLP(**options), sigma_max=5.0)


@pytest.fixture
def noise(generator):
    return draw_normal(torch.empty(200, 2).double(), generator)


def levels(value, count=200):
    return torch.full((count,), value, dtype=torch.float64)


def test_the_signal_is_the_same_in_every_form(noise):
    x, sigma = noise.roll(1, 0), torch.rand(200, dtype=torch.float64) + 0.1
    alpha, vp_sigma = alpha_sigma(sigma.log())
    y = signal_of(x, noise, sigma)
    assert torch.allclose(y + sigma[:, None] * noise, x)
    assert torch.allclose(signal_of(alpha[:, None] * x, noise, vp_sigma, alpha), y)


def test_a_step_is_ddims(noise):
    lam, lam_next = torch.tensor(1.0).double(), torch.tensor(0.3).double()
    (a, s), (a_next, s_next) = alpha_sigma(lam), alpha_sigma(lam_next)
    signal, guess = noise.roll(1, 0), noise.roll(2, 0)
    expected = ddim_step(a * signal + s * noise, guess, lam, lam_next)
    made = a_next * signal_step(signal, guess, lam, lam_next) + s_next * noise
    assert (expected - made).abs().max() < 1e-13


def test_the_walk_is_ddim_and_starts_where_it_is_told(noise):
    grid = GRID.flip(0)
    walk = solve_signal_ode(MOONS, noise, grid)
    assert walk.shape == (12, 200, 2) and not walk[0].any()
    ddim = solve_pf_ode(MOONS, noise, grid, step=euler_step, return_path=True)
    assert (walk + grid[:, None, None] * noise - ddim).abs().max() < 1e-12
    late = solve_signal_ode(MOONS, noise, grid[4:], start=walk[4])
    assert torch.equal(late, walk[4:])
    ones = torch.ones(200).long()
    own = solve_signal_ode(MOONS, noise, grid, labels=ones)
    by_hand = solve_signal_ode(lambda x, sigma, _: MOONS(x, sigma, ones), noise, grid)
    assert torch.equal(own, by_hand) and not torch.equal(own[-1], walk[-1])


STEPS = [(signal_euler, 1), (signal_linear, 1), (signal_heun, 2)]


@pytest.mark.parametrize(("step", "order"), STEPS)
def test_orders(step, order, blobs, noise):
    soft, some = ExactDenoiser(blobs), noise[:100]
    truth = ExactConsistency(soft, sigma_min=0.02, sigma_max=5.0)(5 * some, levels(5.0, 100))
    errors = []
    for count in (40, 80):
        grid = torch.linspace(math.log(5), math.log(0.02), count + 1).double().exp()
        end = solve_signal_ode(soft, some, grid, step=step)[-1] + grid[-1] * some
        errors.append(float((end - truth).norm(dim=1).median()))
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.2


def test_steps_pass_labels_on_and_count_evaluations(noise):
    seen = []

    def spy(x, sigma, labels=None):
        seen.append((sigma, labels))
        return MOONS(x, sigma, labels)

    labels = torch.arange(200) % 2
    for step, count in ((signal_euler, 1), (signal_linear, 1), (signal_heun, 2)):
        seen.clear()
        step(spy, 0 * noise, noise, levels(1.0), levels(0.8), labels)
        assert len(seen) == count and all(had is labels for _, had in seen)
        assert [float(sigma[0]) for sigma, _ in seen] == [1.0, 0.8][:count]


def test_the_linear_step_is_the_first_term_and_warns(noise):
    signal, near = 0.3 * noise, (levels(1.0), levels(0.999))
    change = signal_linear(MOONS, signal, noise, *near) - signal
    exponential = signal_euler(MOONS, signal, noise, *near) - signal
    assert torch.allclose(change / exponential, torch.full_like(noise, 1.0005), atol=1e-5)
    with pytest.warns(UserWarning, match="overshoots.*1.61"):
        signal_linear(MOONS, signal, noise, levels(1.0), levels(0.2))
    half = {"gain": lambda sigma, sigma_next: torch.full_like(sigma, 0.5)}
    other = signal_linear(MOONS, signal, noise, levels(1.0), levels(0.2), **half)
    guess = MOONS(signal + noise, levels(1.0))
    assert torch.allclose(other, (signal + guess) / 2)


def test_the_student_starts_as_its_teacher(generator):
    teacher = EDMDenoiser(MLP(), sigma_data=0.7).requires_grad_(False)
    model = SignalModel.of_teacher(teacher, sigma_min=0.01, sigma_max=5.0)
    noise = torch.randn(50, 2, generator=generator)
    assert torch.allclose(model(noise, top := torch.full((50,), 5.0)), teacher(5 * noise, top))
    assert (model.sigma_min, model.sigma_max, model.sigma_data) == (0.01, 5.0, 0.7)
    assert all(p.requires_grad for p in model.parameters())
    assert model.network is not teacher.network
    # below, only the stage changes: its input keeps the scale of pure noise
    low = torch.full((50,), 0.1)
    total = (25 + 0.49) ** 0.5
    output = teacher.network(5 * noise / total, low.log() / 4)
    expected = (0.7 / total) ** 2 * 5 * noise + 5 * 0.7 / total * output
    assert torch.allclose(model(noise, low), expected, atol=1e-6)
    with pytest.raises(InputError, match="no network to copy"):
        SignalModel.of_teacher(MOONS)


def test_the_student_answers_at_sigma_max_alone(generator):
    model, noise = learner(), torch.randn(50, 2, generator=generator)
    student, last = BootStudent(model), torch.full((50,), 0.002)
    expected = model(noise, last) + 0.002 * noise
    assert torch.allclose(sample_one_step(student, noise), expected, atol=1e-6)
    assert torch.allclose(student(5.0 * noise, torch.full((50,), 5.0)), expected, atol=1e-6)
    with pytest.raises(InputError, match="sample it in one step"):
        student(noise, torch.full((50,), 4.9))


def clock(sigma):
    """Where `sigma` stands in GRID, in points, interpolated in ln sigma."""
    return torch.from_numpy(np.interp(sigma.log(), GRID.log(), range(len(GRID))))


def test_between_draws_any_time_and_one_tick_back(generator):
    low, high = draw_between(GRID, torch.empty(20_000).double(), generator)
    assert (clock(high) - clock(low) - 1).abs().max() < 1e-6
    assert 1 <= clock(high).min() < 1.02 and 10.98 < clock(high).max() <= 11
    assert abs(float(clock(high).mean()) - 6) < 0.1
    low, high = draw_between(GRID[:2], torch.empty(5).double(), generator)
    assert torch.allclose(low, GRID[:1].expand(5)) and torch.allclose(high, GRID[1:2].expand(5))


@pytest.mark.parametrize(("window", "reach"), [(1.0, 11), (0.2, 3)])
def test_progressive_time_comes_down(window, reach, generator):
    draw, seen = ProgressiveTime(11, window), []
    for _ in range(12):
        low, high = draw(GRID, torch.empty(4000).double(), generator)
        index = torch.searchsorted(GRID, low)
        assert torch.equal(GRID[index + 1], high)
        seen.append((int(index.min()), int(index.max())))
    assert seen[0] == (10, 10) and seen[4] == (6, 10 if window == 1 else 8)
    assert seen[10][0] == 0 and seen[11] == (0, reach - 1)
    assert int(draw.state_dict()["calls"]) == 12  # a resumed run goes on where it stopped


def test_weights():
    low, high = torch.tensor([0.5, 1.0]), torch.tensor([1.0, 4.0])
    assert torch.allclose(residual_weight(low, high), torch.tensor([4.0, 16 / 9]))
    assert over_delta(11)(low, high).tolist() == [100.0, 100.0]


def by_hand(model, noise, low, high):
    signal = model(noise, high)
    share = (1 - low / high)[:, None]
    goal = signal + share * (MOONS(signal + high[:, None] * noise, high) - signal)
    return (model(noise, low) - goal.detach()) / share


def test_the_losses_are_the_slides(generator):
    model, x = learner(), torch.full((300, 2), math.nan)
    losses = {}
    for name, bs, bc in (("both", 2.0, 3.0), ("bs", 1.0, 0.0), ("bc", 0.0, 1.0)):
        objective = Boot(model, MOONS, GRID, bootstrap_weight=bs, boundary_weight=bc)
        losses[name] = objective(x, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(losses["both"], 2 * losses["bs"] + 3 * losses["bc"])
    g = torch.Generator().manual_seed(5)
    low, high = draw_interval(GRID, x, g)
    noise = draw_normal(x, g)
    assert torch.allclose(losses["bs"], by_hand(model, noise, low, high).square().sum(1), rtol=1e-4)
    top = torch.full((300,), 5.0)
    first = (model(noise, top) - MOONS(5 * noise, top)).square().sum(1)
    assert torch.allclose(losses["bc"], first, rtol=1e-4)
    assert torch.equal(objective.last_sigma, high)


def test_no_gradient_through_the_goal_or_into_the_teacher(generator):
    model, teacher = learner(), EDMDenoiser(MLP())
    objective = Boot(model, teacher, GRID)
    x = torch.full((64, 2), math.nan)
    objective(x, generator=generator).mean().backward()
    assert all(p.grad is None for p in teacher.parameters())
    goal = objective.goal(x.nan_to_num(1.0), torch.full((64,), 0.5), torch.full((64,), 1.0), None)
    assert not goal.requires_grad
    assert all(p.grad.isfinite().all() and p.grad.norm() > 0 for p in model.parameters())


def test_labels_reach_student_target_and_teacher():
    """Each of the three answers of a loss, and of its boundary, depends on the label."""
    model, x = learner(num_classes=2), torch.full((40, 2), math.nan)
    noise, low, high = torch.ones(40, 2), torch.full((40,), 0.5), torch.full((40,), 1.0)
    first, second = torch.zeros(40).long(), torch.ones(40).long()
    blind = Boot(model, lambda x, sigma, labels: 0 * x, GRID)
    seeing = Boot(model, lambda x, sigma, labels: x + labels[:, None], GRID)
    assert not torch.equal(model(noise, low, first), model(noise, low, second))
    assert not torch.equal(
        blind.goal(noise, low, high, first), blind.goal(noise, low, high, second)
    )
    gap = seeing.goal(noise, low, high, second) - blind.goal(noise, low, high, second)
    assert not torch.allclose(gap, seeing.goal(noise, low, high, first) - blind.goal(
        noise, low, high, first), atol=1e-3)  # fmt: skip
    for objective in (blind, seeing):
        assert not torch.equal(objective.boundary(noise, first), objective.boundary(noise, second))
    losses = [blind(x, k, generator=torch.Generator().manual_seed(0)) for k in (first, second)]
    assert not torch.equal(*losses)


def test_choices_reach_the_loss(generator):
    x, loss = torch.full((64, 2), math.nan), {}
    choices = {
        "plain": {},
        "heun": {"solver": signal_heun},
        "between": {"draw": draw_between},
        "weight": {"weight": over_delta(12)},
        "distance": {"distance": l1},
    }
    for name, options in choices.items():
        objective = Boot(learner(), MOONS, GRID, **options)
        loss[name] = objective(x, generator=torch.Generator().manual_seed(0))
    assert len({float(value.detach().sum()) for value in loss.values()}) == 5
    assert Boot(learner(), MOONS, GRID).distance is squared_l2


def test_the_slow_target_makes_the_goals():
    objective = Boot(learner(), MOONS, GRID, decay=0.9)
    before = copy.deepcopy(objective.target.slow)
    with torch.no_grad():
        objective.online.network.last.bias += 1
    objective.after_step()
    ours, old = objective.target.slow.network.last.bias, before.network.last.bias
    assert torch.allclose(ours, old + 0.1)
    noise, low, high = torch.ones(4, 2), torch.full((4,), 0.5), torch.full((4,), 1.0)
    expected = signal_euler(MOONS, objective.target.slow(noise, high), noise, high, low)
    assert torch.allclose(objective.goal(noise, low, high, None), expected)
    assert Boot(learner(), MOONS, GRID).target.slow is None


class Locked(torch.Tensor):
    """Raises if its content is used; shape, dtype and device may be read."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        is_converting = function.__name__ == "to" and not isinstance(args[0], Locked)
        if function.__name__ not in {"__get__", "__len__", "dim", "size"} and not is_converting:
            raise AssertionError(f"touched the data by {function.__name__}")
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"draw": draw_between}, {"draw": ProgressiveTime(9)}])
def test_the_data_are_never_touched(options, generator):
    locked = torch.zeros(16, 2).as_subclass(Locked)
    loss = Boot(learner(), MOONS, GRID, **options)(locked, generator=generator)
    assert loss.shape == (16,) and loss.isfinite().all()
    with pytest.raises(AssertionError, match="touched"):
        locked + 1


def test_empty_batches(generator):
    x, labels = next(empty_batches((5, 1, 8, 8)))
    assert x.shape == (5, 1, 8, 8) and x.isnan().all() and labels is None
    x, labels = next(empty_batches((3000, 2), num_classes=3, generator=generator))
    assert labels.dtype == torch.int64 and torch.bincount(labels).min() > 900
    batches = empty_batches((3000, 2), num_classes=3, weights=(1.0, 3.0), generator=generator)
    (_, pairs), (_, again) = next(batches), next(batches)
    w = pairs[:, 1]
    assert pairs.shape == (3000, 2) and 1 <= w.min() < 1.01 and 2.99 < w.max() <= 3
    assert not torch.equal(pairs, again) and set(pairs[:, 0].tolist()) == {0.0, 1.0, 2.0}


def test_vp_grids_stand_at_even_times():
    schedule, grid = cosine_vp(), vp_sigmas(cosine_vp(), 11, t_min=0.1, t_max=0.6)
    for k, t in enumerate(torch.linspace(0.1, 0.6, 11, dtype=torch.float64)):
        assert abs(grid[k] - schedule.sigma(t) / schedule.alpha(t)) < 1e-9
    for bad in ({"count": 1}, {"count": 5, "t_min": 0.0}, {"count": 5, "t_max": 1.5}):
        with pytest.raises(InputError):
            vp_sigmas(cosine_vp(), **bad)


@pytest.mark.parametrize("negative", [None, 1])
def test_each_row_is_guided_by_its_own_weight(negative, noise):
    labels, w = torch.arange(200) % 2, torch.linspace(0, 4, 200)
    made = GuidedByLabel(MOONS, negative)(noise, levels(0.7), with_weight(labels, w))
    for k in (0, 57, 199):
        one = Guided(MOONS, float(w[k]), negative)
        expected = one(noise[k : k + 1], levels(0.7, 1), labels[k : k + 1])
        assert torch.allclose(made[k : k + 1], expected, atol=1e-6)
    assert with_weight(labels, 2.5)[:, 1].unique().tolist() == [2.5]


@pytest.mark.parametrize("kind", [MLP, UNet])
def test_networks_learn_to_read_weights(kind, generator):
    torch.manual_seed(0)
    plain = kind(num_classes=3).eval()
    x = torch.randn(6, 2) if kind is MLP else torch.randn(6, 1, 8, 8)
    if kind is UNet:  # its output is 0 until it is trained
        [torch.nn.init.normal_(p, std=0.1) for p in plain.parameters()]
    reads, c_noise, labels = admit_weight(copy.deepcopy(plain)), torch.zeros(6), torch.arange(6) % 3
    expected = plain(x, c_noise, labels)
    assert torch.allclose(reads(x, c_noise, with_weight(labels, 3.0)), expected, atol=1e-6)
    assert torch.allclose(reads(x, c_noise, labels), expected, atol=1e-6)
    assert torch.allclose(reads(x, c_noise), plain(x, c_noise), atol=1e-6)
    swapped = next(m for m in reads.modules() if isinstance(m, guidance.WeightEmbedding))
    torch.nn.init.normal_(swapped.mix.weight)
    answers = [reads(x, c_noise, with_weight(labels, w)) for w in (0.0, 1.0, 4.0)]
    assert min(float((a - b).detach().abs().max()) for a, b in zip(answers, answers[1:])) > 1e-3
    with pytest.raises(InputError, match="num_classes"):
        admit_weight(kind())


def test_bad_input_names_the_remedy():
    for options in ({"bootstrap_weight": 0.0, "boundary_weight": 0.0}, {"boundary_weight": -1.0}):
        with pytest.raises(InputError, match="above 0"):
            Boot(learner(), MOONS, GRID, **options)
    for grid in (karras_sigmas(12, 0.002, 4.0), karras_sigmas(12, 0.003, 5.0)):
        with pytest.raises(InputError, match="same ends"):
            Boot(learner(), MOONS, grid)
    with pytest.raises(InputError, match="ascend"):
        Boot(learner(), MOONS, GRID.flip(0))
    with pytest.raises(InputError, match="decreasing"):
        solve_signal_ode(MOONS, torch.zeros(3, 2), GRID)
    for bad in ({"steps": 0}, {"steps": 5, "window": 0.0}, {"steps": 5, "window": 1.5}):
        with pytest.raises(InputError):
            ProgressiveTime(**bad)


def test_it_learns_the_path_of_a_gaussian(generator):
    """A student of a Gaussian's exact teacher: the whole path is known in closed form."""
    torch.manual_seed(0)
    mean, std = torch.tensor([0.3, -0.2]), 0.5
    teacher = ExactDenoiser(make_mixture([[0.3, -0.2]], [0.5]))
    objective = Boot(SignalModel(MLP(width=64), sigma_max=5.0), teacher, GRID)
    options = {"steps": 200, "lr": 5e-3, "ema_decay": 0.95, "generator": generator}
    model = fit(objective, empty_batches((128, 2)), **options).model
    noise = torch.randn(500, 2, generator=generator)
    scale = std / (25 + std**2) ** 0.5
    exact = mean + scale * (5 * noise - mean)
    made = sample_one_step(BootStudent(model), noise)
    assert float((made - exact).norm(dim=1).median()) < 0.12


# --- the experiments ------------------------------------------------------------------------------


def test_settings_build_what_they_say():
    base = {**lab.BOOT_TOY, "points": 9}
    assert lab.boot_toy_objective(base, 0).boundary_weight == 1.0
    made = lab.boot_toy_objective({**base, "solver": "heun", "beta": 0.0, "decay": 0.5}, 0)
    assert made.solver is signal_heun and made.boundary_weight == 0 and made.target.slow is not None
    assert lab.boot_toy_objective({**base, "draw": "moving"}, 0).draw.window == 0.2
    assert lab.boot_toy_objective({**base, "draw": "growing"}, 0).draw.window == 1.0
    assert lab.boot_toy_objective({**base, "draw": "between"}, 0).draw is draw_between
    weight = lab.boot_toy_objective({**base, "weight": "delta"}, 0).weight
    assert float(weight(torch.ones(1), torch.ones(1))) == 64
    vp = lab.boot_toy_objective({**base, "form": "vp"}, 0)
    assert vp.online.sigma_max == pytest.approx(float(vp.sigmas[-1])) and vp.sigmas[-1] > 30
    same = [lab.boot_toy_objective(base, seed).online.network.last.weight for seed in (3, 3, 4)]
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])


def test_the_benchmark_of_a_grid_knows_the_truth():
    bench = lab.grid_benchmark("moons", GRID)
    signals, few = lab.exact_signals(bench, GRID), bench.noise[:1000]
    end = signals[0] + 0.002 * few
    assert (end - bench.ends[:1000]).norm(dim=1).median() < 2e-3
    assert not signals[-1].any() and signals.shape == (12, 1000, 2)
    perfect = lab.evaluate_cover(bench.ends, bench)
    assert perfect["paired_error"] == 0 and perfect["mode_recall"] == 1
    assert perfect["sliced_w2"] < 0.06 and perfect["rarest_class"] > 0.8
    halved = lab.evaluate_cover(bench.ends[bench.ends[:, 1] > 0].repeat(3, 1)[:4000], bench)
    assert halved["mode_recall"] < 1 and halved["recall"] < perfect["recall"]
    answers = dict(zip(GRID.float().tolist(), signals))
    shifted = lambda noise, sigma: answers[float(sigma[0])] + 0.3  # noqa: E731
    off = lab.signal_errors(shifted, signals, bench.noise, GRID)
    assert off == pytest.approx([0.3 * 2**0.5] * 12, abs=1e-4)
    other = lab.grid_benchmark("moons", torch.tensor([0.002, 1.0]))
    assert not torch.equal(other.ends, bench.ends) and torch.equal(other.noise, bench.noise)


def test_the_solver_alone_takes_its_own_steps_from_the_first_guess(noise):
    objective = lab.boot_toy_objective({**lab.BOOT_TOY, "points": 9, "solver": "heun"}, 0)
    grid, few = objective.sigmas, noise[:20]
    alone = lab.solver_signals(objective, few)
    assert torch.equal(alone[-1], MOONS(5 * few, levels(5.0, 20)))
    for k in (0, 7):
        high, low = (sigma.expand(20) for sigma in (grid[k + 1], grid[k]))
        step = signal_heun(MOONS, alone[k + 1], few, high, low)
        assert torch.allclose(step, alone[k])


def test_errors_are_carried_as_a_gaussian_carries_them(noise):
    """Its path shrinks like sqrt(s² + sigma²), so that much of an error is left, at any size."""
    gaussian = ExactDenoiser(make_mixture([[0.0, 0.0]], [0.5]))
    walk = solve_signal_ode(gaussian, noise, GRID.flip(0), step=signal_heun).flip(0)
    expected = ((0.25 + GRID[0] ** 2) / (0.25 + GRID**2)).sqrt()
    for size in (0.1, 1.0):
        shares = lab.carried_shares(gaussian, walk, noise, GRID, size=size)
        assert torch.tensor(shares) == pytest.approx(expected, abs=0.01)


def test_noisy_models_differ_in_what_their_network_predicts_alone(generator):
    torch.manual_seed(0)
    noise, sigma = (
        torch.randn(50, 2, generator=generator),
        torch.rand(50, generator=generator) + 0.1,
    )
    network = MLP()
    plain, noisy, scaled = (k(network, sigma_max=5.0) for k in lab.PREDICTIONS.values())
    x, put_in = plain(noise, sigma), sigma[:, None] * noise
    assert torch.allclose(noisy(noise, sigma), x - put_in, atol=1e-6)
    spread = (sigma**2 + 0.25).sqrt()[:, None] / 0.5
    assert torch.allclose(scaled(noise, sigma), spread * x - put_in, atol=1e-5)


def test_a_search_of_the_noise_keeps_what_is_known_and_what_belongs_to_it(generator):
    class Tied(sampling.OneStepStudent):
        def jump(self, x, labels=None):
            return torch.stack([x[:, 0], 2 * x[:, 0] + x[:, 1]], 1) / 10

    student = Tied(sigma_min=0.002, sigma_max=5.0, method="BOOT")
    noise = torch.randn(1000, 2, generator=generator)
    known = torch.linspace(-1, 1, 1000)[:, None]
    found = lab.fill_by_search(student, known, noise, generator=generator)
    rest = found[:, 1] - 2 * known[:, 0]
    assert torch.equal(found[:, :1], known)
    assert abs(rest.mean()) < 0.1 and rest.std() == pytest.approx(0.5, abs=0.1)


def test_grids_are_refined_within():
    fine = lab.subdivide_grid(GRID, 3)
    assert len(fine) == 34 and torch.allclose(fine[::3], GRID) and (fine.diff() > 0).all()


def test_pictures_survive_packing(generator):
    x = 2 * torch.rand(7, 64, generator=generator) - 1
    assert (lab.decode_images(lab.encode_images(x)).flatten(1) - x).abs().max() <= 1 / 15 + 1e-6
    assert lab.encode_images(torch.full((1, 64), -3.0)) == ["0" * 64]
    assert lab.encode_images(torch.full((1, 64), 3.0)) == ["f" * 64]


def test_mixes(generator):
    a, b = torch.randn(2, 40, 64, generator=generator)
    for mix in (sampling.linear_mix, sampling.spherical_mix):
        assert torch.allclose(mix(a, b, 0.0), a, atol=1e-4)
        assert torch.allclose(mix(a, b, 1.0), b, atol=1e-4)
        assert torch.allclose(mix(a, b, 0.3), mix(b, a, 0.7), atol=1e-5)
    unit = [v / v.norm(dim=1, keepdim=True) for v in (a, b)]
    for t in (-0.5, 0.3, 1.5):
        assert torch.allclose(
            sampling.spherical_mix(*unit, t).norm(dim=1), torch.ones(40), atol=1e-4
        )


def test_the_great_circle_of_equal_and_of_opposite_noises(generator):
    """Their angles, 0 and pi, have a sine of 0, by which nothing may be divided."""
    a = torch.randn(40, 64, generator=generator)
    for t in (0.0, 0.3, 1.0):
        assert torch.allclose(sampling.spherical_mix(a, a, t), a, atol=1e-3)
        assert sampling.spherical_mix(a, -a, t).isfinite().all()


def test_data_for_cd(generator):
    full = lab.choose_data("digits", "100%", generator)
    some = lab.choose_data("digits", "1%", generator)
    assert (len(full), len(some), some.shape[1]) == (1348, 13, 64)
    assert (some[:, None] == full).all(2).any(1).all()
    other = lab.choose_data("digits", "elsewhere", generator)
    assert torch.cdist(other[:50], full).min() > 0.5 and other.abs().max() <= 1
    noise = lab.choose_data("moons", "noise", generator)
    assert noise.shape == (4000, 2) and abs(float(noise.std()) - 0.5) < 0.05
    assert len(lab.choose_data("moons", "1%", generator)) == 40


def test_sweeps_are_fit_to_run():
    for name, sweep in lab.BOOT_SWEEPS.items():
        assert name == sweep.name and len({frozenset(s) for s in sweep.settings}) == 1
        assert len({str(sorted(s.items(), key=str)) for s in sweep.settings}) == len(sweep.settings)
    row = lab.run_boot_toy({**lab.BOOT_TOY, "points": 9, "steps": 32, "watch": True}, 0)
    assert list(row["history"]) == ["2", "4", "8", "16", "32"] and len(row["history"]["32"]) == 9
    assert len(row["to_solver"]) == 9 and row["to_solver"] != row["history"]["32"]


@pytest.mark.slow
def test_boot_on_moons():
    """The target of the course: sliced W2 of at most 0.05 in one step."""
    row = lab.run_boot_toy({**lab.BOOT_TOY, "steps": 2000}, 0)
    assert row["sliced_w2"] <= 0.05 and row["paired_error"] < 0.08


def test_teachers_leave_the_global_randomness_as_it_was_the_first_time_too(monkeypatch):
    short = lambda *args, **options: fit(*args, **options | {"steps": 2})  # noqa: E731
    for module in (lab, benchmarks):
        monkeypatch.setattr(module, "fit", short)
    kinds = lab.learned_teacher, lab.learned_noise_predictor
    denoiser, predictor = (make.__wrapped__ for make in kinds)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    for make in (
        lambda: denoiser("moons", 0),
        lambda: predictor("moons", 0),
    ):
        one, other = make(), make()
        assert torch.equal(before, torch.get_rng_state())
        assert all(map(torch.equal, one.parameters(), other.parameters()))
