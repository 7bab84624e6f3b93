"""Direct and progressive distillation: identities to 1e-12, and every role where it belongs."""

import math

import pytest
import torch
from torch import nn

from consistency_edu.data import InputError, draw_normal
from consistency_edu.ddim import ddim_step
from consistency_edu.experiments import progressive as lab
from consistency_edu.experiments.benchmarks import toy_benchmark
from consistency_edu.experiments.progressive import velocity_objective
from consistency_edu.networks import MLP
from consistency_edu.pf_ode import Counted, EDMDenoiser, euler_step, heun_step, karras_sigmas
from consistency_edu.pf_ode import solve_pf_ode as solve
from consistency_edu.progressive import (
    DirectDistillation,
    FewStepStudent,
    Pairs,
    ProgressiveDistillation,
    check_halving,
    cosine_sigmas,
    draw_double_step,
    jump_goal,
    make_pairs,
    progressive_rounds,
    sample_progressive,
    truncated_snr,
)
from consistency_edu.sampling import sample_one_step
from consistency_edu.score import ExactDenoiser

GRIDS = {"edm": karras_sigmas(9, 0.002, 5.0), "vp": cosine_sigmas(9, 5.0)}


class Constant(nn.Module):
    """A denoiser that always answers `value`: its ODE paths are straight, so Euler is exact."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(value)))

    def forward(self, x, sigma, labels=None):
        return self.value.to(x) * torch.ones_like(x)


def labelled(x, sigma, labels=None):
    """A denoiser that answers with the label."""
    return torch.zeros_like(x) + labels[:, None]


def at(value, rows):
    return torch.full((rows,), value, dtype=torch.float64)


@pytest.fixture
def exact(blobs):
    return ExactDenoiser(blobs)


@pytest.fixture
def noise(generator):
    return draw_normal(torch.empty(64, 2, dtype=torch.float64), generator)


# --- the student as a model f(x, sigma)


@pytest.mark.parametrize("form", GRIDS)
def test_a_student_walks_its_grid_with_euler(form, exact, noise):
    student = FewStepStudent(exact, GRIDS[form])
    truth = solve(exact, noise, GRIDS[form].flip(0), step=euler_step)
    assert student.steps == 8 and (student.sigma_min, student.sigma_max) == (GRIDS[form][0], 5.0)
    assert torch.equal(sample_one_step(student, noise), truth)
    path = sample_progressive(student, noise, return_path=True)
    assert path.shape == (9, 64, 2) and torch.equal(path[-1], truth)
    assert torch.equal(path[0], 5.0 * noise)


def test_a_student_exists_at_sigma_max_alone(exact, noise):
    student = FewStepStudent(exact, [0.002, 5.0])
    for level in (4.99, 0.1, 5.1):
        with pytest.raises(InputError, match="sigma_max = 5 alone"):
            student(noise, at(level, 64))
    one_is_off = at(5.0, 64)
    one_is_off[3] = 1.0
    with pytest.raises(InputError):
        student(noise, one_is_off)
    student(noise.float(), torch.full((64,), 5.0))


def test_a_student_hands_labels_on(noise):
    labels = torch.arange(64) % 3
    student = FewStepStudent(labelled, [0.0, 5.0])
    for cloud in (
        sample_one_step(student, noise, labels),
        sample_progressive(student, noise, labels=labels),
    ):
        assert torch.allclose(cloud, labels[:, None].double().expand(64, 2), atol=1e-12)


@pytest.mark.parametrize("grid", [[5.0, 0.0], [1.0], [-1.0, 5.0], [0.1, 0.1, 5.0], [[0.1, 5.0]]])
def test_grids_that_do_not_ascend_are_refused(grid):
    with pytest.raises(InputError, match="ascends"):
        FewStepStudent(Constant(0), torch.tensor(grid))


# --- direct distillation


@pytest.mark.parametrize("solver, calls", [(heun_step, 16), (euler_step, 8)])
def test_pairs_are_solved_in_batches(solver, calls, exact, noise):
    counted = Counted(exact)
    pairs = make_pairs(counted, noise, GRIDS["edm"], solver=solver, batch_size=24)
    assert counted.evaluations == 3 * calls  # 24, 24 and 16 rows
    assert torch.equal(pairs.noise, noise)
    truth = solve(exact, noise, GRIDS["edm"].flip(0), step=solver)
    assert torch.allclose(pairs.sample, truth, atol=1e-12)


def test_pairs_keep_their_labels(noise):
    labels = torch.arange(64) % 5
    pairs = make_pairs(labelled, noise, [0.0, 1.0, 5.0], labels=labels, batch_size=10)
    assert torch.allclose(pairs.sample[:, 0], labels.double(), atol=1e-12)
    assert torch.equal(pairs.labels, labels)


def test_direct_distillation_is_zero_for_the_teachers_map(generator):
    task = DirectDistillation(
        FewStepStudent(Constant(0.3), [0.002, 5.0]), Constant(0.3), GRIDS["edm"]
    )
    assert task(torch.full((32, 2), torch.nan), generator=generator).max() < 1e-10


def test_direct_distillation_measures_the_gap_of_the_ends(generator):
    task = DirectDistillation(FewStepStudent(Constant(0.5), [0.0, 5.0]), Constant(0.3), GRIDS["vp"])
    loss = task(torch.full((32, 2), torch.nan), generator=generator)
    assert torch.allclose(loss, torch.tensor(2 * 0.2**2), atol=1e-6)
    assert torch.equal(task.last_sigma, torch.full((32,), 5.0))
    loss.mean().backward()
    assert task.online.denoiser.value.grad != 0 and task.teacher.value.grad is None


def test_on_the_fly_costs_one_solve_a_batch(exact):
    counted = Counted(exact)
    task = DirectDistillation(
        FewStepStudent(EDMDenoiser(MLP()), [0.002, 5.0]), counted, GRIDS["edm"]
    )
    for batches in (1, 2):
        assert task(torch.full((16, 2), torch.nan)).shape == (16,)
        assert counted.evaluations == 16 * batches
    fresh = [task.draw(torch.empty(16, 2), None, None).noise for _ in range(2)]
    assert not torch.equal(*fresh)


def test_on_the_fly_solves_the_batchs_own_labels():
    labels = torch.arange(16) % 3
    task = DirectDistillation(FewStepStudent(labelled, [0.0, 5.0]), labelled, [0.0, 1.0, 5.0])
    assert task(torch.zeros(16, 2), labels).max() < 1e-10
    assert torch.equal(task.draw(torch.empty(16, 2), labels, None).labels, labels)


def test_cached_pairs_stay_together_and_all_get_drawn(generator):
    rows = torch.arange(50).float()
    pairs = Pairs(rows[:, None].expand(50, 2), 10 * rows[:, None].expand(50, 2), rows.long())
    task = DirectDistillation(FewStepStudent(Constant(0), [0.002, 5.0]), pairs=pairs)
    drawn = task.draw(torch.full((20_000, 2), torch.nan), None, generator)
    assert torch.equal(drawn.sample, 10 * drawn.noise)
    assert torch.equal(drawn.noise[:, 0], drawn.labels.float())
    counts = torch.bincount(drawn.labels, minlength=50)
    assert (counts - 400).abs().max() < 100


def test_the_student_sees_scaled_noise_and_the_drawn_labels(generator):
    seen = []

    def spy(x, sigma, labels=None):
        seen.append((x, labels))
        return x * 0

    pairs = Pairs(torch.ones(4, 2), torch.zeros(4, 2), torch.full((4,), 7))
    task = DirectDistillation(FewStepStudent(spy, [0.002, 5.0]), pairs=pairs)
    task(torch.zeros(8, 2), torch.zeros(8).long(), generator=generator)
    assert torch.equal(seen[0][0], torch.full((8, 2), 5.0))
    assert torch.equal(seen[0][1], torch.full((8,), 7))


def test_direct_distillation_needs_a_source():
    for missing in ({}, {"teacher": Constant(0)}, {"sigmas": GRIDS["edm"]}):
        with pytest.raises(InputError, match="finished pairs"):
            DirectDistillation(FewStepStudent(Constant(0), [0.002, 5.0]), **missing)


# --- two steps are one


@pytest.mark.parametrize("form", GRIDS)
def test_one_student_step_is_two_teacher_steps(form, exact, noise):
    sigmas = GRIDS[form]
    task = ProgressiveDistillation(Constant(0), exact, sigmas)
    for i in range(0, 8, 2):
        low, middle, high = (at(s, 64) for s in sigmas[i : i + 3].tolist())
        x = noise * high[:, None]
        two = euler_step(exact, euler_step(exact, x, high, middle), middle, low)
        goal = task.goal(x, (low, middle, high))
        one = euler_step(lambda *_, goal=goal: goal, x, high, low)
        assert (one - two).abs().max() < 1e-12


def test_at_the_last_step_to_zero_the_goal_is_the_teachers_last_guess(exact, noise):
    low, middle, high = at(0.0, 64), at(0.1, 64), at(0.2, 64)
    goal = ProgressiveDistillation(Constant(0), exact, GRIDS["vp"]).goal(noise, (low, middle, high))
    last = exact(euler_step(exact, noise, high, middle), middle)
    assert torch.allclose(goal, last, atol=1e-14)


@pytest.mark.parametrize("form", GRIDS)
def test_perfect_rounds_end_where_the_first_teacher_ends(form, exact, noise):
    class Perfect(nn.Module):
        """The student whose loss is zero: it answers with the goal."""

        def __init__(self, task):
            super().__init__()
            self.task = task

        def forward(self, x, sigma, labels=None):
            grid = self.task.sigmas
            i = int((grid - sigma[0]).abs().argmin())
            return self.task.goal(x, tuple(grid[k].expand(len(x)) for k in (i - 2, i - 1, i)))

    model, sigmas = exact, GRIDS[form]
    while len(sigmas) > 2:
        model, sigmas = Perfect(ProgressiveDistillation(Constant(0), model, sigmas)), sigmas[::2]
    one_step = sample_one_step(FewStepStudent(model, sigmas), noise)
    eight = solve(exact, noise, GRIDS[form].flip(0), step=euler_step)
    assert (one_step - eight).abs().max() < 1e-11


def test_the_goal_is_the_papers_in_vp_form(exact, noise):
    """x~ = (z'' - (sigma''/sigma) z) / (alpha'' - (sigma''/sigma) alpha), after two DDIM steps."""

    def alpha(level):
        return (1 + level**2) ** -0.5

    def ve(z, level):
        return exact(z / alpha(level), at(level, 64))

    def lam(level):
        return torch.tensor(level, dtype=torch.float64).log()

    low, middle, high = 0.3, 0.9, 2.0
    z = alpha(high) * high * noise
    z1 = ddim_step(z, ve(z, high), lam(high), lam(middle))
    z2 = ddim_step(z1, ve(z1, middle), lam(middle), lam(low))
    ratio = alpha(low) * low / (alpha(high) * high)
    paper = (z2 - ratio * z) / (alpha(low) - ratio * alpha(high))
    task = ProgressiveDistillation(Constant(0), exact, torch.tensor([low, middle, high]))
    ours = task.goal(high * noise, tuple(at(s, 64) for s in (low, middle, high)))
    assert (ours - paper).abs().max() < 1e-12


def test_the_goal_of_a_jump_to_zero_is_its_end(noise):
    assert torch.equal(jump_goal(noise, 3 * noise, at(1.0, 64), at(0.0, 64)), 3 * noise)


# --- weights and grids


def test_the_weight_is_the_truncated_snr_of_both_forms():
    sigma = torch.tensor([0.01, 0.5, 1.0, 2.0, 100.0]).double()
    alpha, sigma_vp = (1 + sigma**2).rsqrt(), sigma * (1 + sigma**2).rsqrt()
    assert torch.allclose(truncated_snr(sigma), torch.tensor([1e4, 4.0, 1.0, 1.0, 1.0]).double())
    assert torch.allclose(truncated_snr(sigma), (alpha / sigma_vp).square().clamp(min=1))


def test_the_cosine_grid_is_even_in_the_angle():
    grid = cosine_sigmas(17, 5.0)
    assert grid[0] == 0 and grid[-1] == 5 and len(grid) == 17 and grid.dtype == torch.float64
    assert torch.allclose(grid.atan().diff(), torch.tensor(math.atan(5.0) / 16).double())
    assert torch.allclose(grid[::2], cosine_sigmas(9, 5.0), atol=1e-14)
    for bad in ((1, 5.0), (5, 0.0)):
        with pytest.raises(InputError):
            cosine_sigmas(*bad)


def test_double_steps_are_drawn_evenly_and_in_order(generator):
    sigmas = GRIDS["edm"]
    low, middle, high = draw_double_step(sigmas, torch.empty(8000, 2).double(), generator)
    index = torch.searchsorted(sigmas, low)
    assert set(index.tolist()) == {0, 2, 4, 6}
    assert torch.equal(sigmas[index + 1], middle) and torch.equal(sigmas[index + 2], high)
    assert (torch.bincount(index)[::2] - 2000).abs().max() < 200


# --- the objective


def test_the_loss_is_the_weighted_distance_to_the_goal(generator):
    task = ProgressiveDistillation(Constant(0.5), Constant(0.3), GRIDS["edm"])
    loss = task(torch.zeros(256, 2).double(), generator=generator)
    assert set(task.last_sigma.tolist()) == set(GRIDS["edm"][2::2].tolist())
    expected = (1 / task.last_sigma.square()).clamp(min=1) * 2 * 0.2**2
    assert torch.allclose(loss, expected, rtol=1e-6)
    loss.mean().backward()
    assert task.online.value.grad != 0 and task.teacher.value.grad is None


def test_points_are_noised_to_the_noisier_end_of_the_step(generator):
    seen = []

    def spy(x, sigma, labels=None):
        seen.append((x, sigma, labels))
        return 0 * x

    labels = torch.arange(40_000) % 2
    x = torch.full((40_000, 1), 10.0).double()
    task = ProgressiveDistillation(spy, spy, torch.tensor([0.5, 1.0, 2.0]))
    task(x, labels, generator=generator)
    assert len(seen) == 3 and all(tags is labels for _, _, tags in seen)  # teacher, teacher, online
    noisy, sigma, tags = seen[-1]
    assert torch.equal(sigma, torch.full_like(sigma, 2.0)) and torch.equal(tags, labels)
    assert abs(noisy.mean() - 10) < 0.05 and abs(noisy.std() - 2) < 0.03


def test_a_step_costs_two_evaluations_and_needs_data(exact, generator):
    counted = Counted(exact)
    task = ProgressiveDistillation(Constant(0.0), counted, GRIDS["vp"])
    assert task(torch.zeros(16, 2), generator=generator).isfinite().all()
    assert counted.evaluations == 2
    assert task(torch.full((16, 2), torch.nan), generator=generator).isnan().all()


def test_other_solvers_need_a_grid_from_above_zero(exact):
    ProgressiveDistillation(Constant(0), exact, GRIDS["edm"], solver=heun_step)
    with pytest.raises(InputError, match="only Euler"):
        ProgressiveDistillation(Constant(0), exact, GRIDS["vp"], solver=heun_step)


@pytest.mark.parametrize("points", [2, 4, 8])
def test_odd_numbers_of_intervals_are_refused(points):
    with pytest.raises(InputError, match="pair up"):
        check_halving(karras_sigmas(points))


def test_the_goal_hands_labels_on(noise):
    labels = torch.arange(64) % 3
    task = ProgressiveDistillation(Constant(0), labelled, GRIDS["edm"])
    goal = task.goal(noise, (at(0.1, 64), at(0.2, 64), at(0.4, 64)), labels)
    assert torch.allclose(goal, labels[:, None].double().expand(64, 2), atol=1e-12)


def test_the_goal_carries_no_gradient(noise):
    task = ProgressiveDistillation(Constant(0), Constant(0.3), GRIDS["edm"])
    assert not task.goal(noise, (at(0.1, 64), at(0.2, 64), at(0.4, 64))).requires_grad
    pairs = make_pairs(Constant(0.3), noise, GRIDS["edm"])
    assert not pairs.sample.requires_grad


# --- rounds


def batches():
    while True:
        yield torch.zeros(8, 2), None


def run_rounds(steps=2, points=9, **options):
    """Rounds on a tiny network, and what each objective was given."""
    torch.manual_seed(0)
    given, online = [], EDMDenoiser(MLP(width=4, depth=1))

    def objective(student, teacher, sigmas):
        before = [p.detach().clone() for p in student.parameters()]
        given.append((student, teacher.denoiser, sigmas, before))
        return ProgressiveDistillation(student, teacher, sigmas)

    first = EDMDenoiser(MLP(width=4, depth=1)).requires_grad_(False)
    rounds = progressive_rounds(
        online, first, karras_sigmas(points, 0.002, 5.0), batches(), steps=steps,
        objective=objective, lr=1e-2, **options,
    )  # fmt: skip
    return online, first, list(rounds), given


def test_rounds_halve_to_one_and_pass_the_student_on():
    online, first, rounds, given = run_rounds()
    assert [r.student.steps for r in rounds] == [4, 2, 1]
    assert [len(g[2]) for g in given] == [9, 5, 3]
    for r in rounds:
        assert (r.student.sigma_min, r.student.sigma_max) == (0.002, 5.0)
        assert r.evaluations == 2 * 2 and len(r.fitted.losses) == 2
    assert given[0][0] is online and given[0][1] is first
    for before, after in zip(rounds, given[1:]):
        assert after[1] is before.student.denoiser is before.fitted.model  # student, now teacher
        assert after[0] is not after[1]
        assert all(p.requires_grad for p in after[0].parameters())
        assert all(map(torch.equal, after[3], after[1].parameters()))  # starts as its copy
        assert torch.equal(before.student.sigmas, after[2])
    middle = karras_sigmas(9, 0.002, 5.0)[4]
    assert rounds[1].student.sigmas[1] == middle


def test_rounds_may_have_lengths_of_their_own():
    _, _, rounds, _ = run_rounds(steps=lambda n: 3 if n == 1 else 1)
    assert [len(r.fitted.losses) for r in rounds] == [1, 1, 3]


@pytest.mark.parametrize("points, hint", [(7, "cannot be halved"), (4, "pair up"), (2, "pair up")])
def test_rounds_refuse_what_they_cannot_halve(points, hint):
    with pytest.raises(InputError, match=hint):  # at the call, not at the first round
        progressive_rounds(
            Constant(0), Constant(0), karras_sigmas(points), batches(), steps=1
        )  # fmt: skip


# --- the bench


def test_the_velocity_objective_is_even_in_the_angle(generator):
    task = velocity_objective(EDMDenoiser(MLP(), 1.0), 5.0)
    sigma = task.draw_sigma(torch.empty(20_000, 2).double(), generator)
    share = sigma.atan() / math.atan(5.0)
    assert 0 < share.min() and share.max() <= 1 and abs(share.mean() - 0.5) < 0.01
    assert torch.allclose(
        share.quantile(torch.tensor(0.25).double()), torch.tensor(0.25).double(), atol=0.02
    )
    assert torch.allclose(task.weight(torch.tensor([0.5, 2.0])), torch.tensor([5.0, 1.25]))


@pytest.fixture
def quick(monkeypatch):
    """Teachers of twenty training steps, and a hundred noises."""
    short = {
        form: lambda *a, learn=learn, steps=0: learn(*a, steps=20)
        for form, learn in lab.TEACHERS.items()
    }
    monkeypatch.setattr(lab, "TEACHERS", short)
    monkeypatch.setattr(lab, "toy_benchmark", lambda dataset: toy_benchmark(dataset, 100))


@pytest.mark.parametrize("form, sigma_data, low", [("edm", 0.5, 0.002), ("vp", 1.0, 0.0)])
def test_students_have_two_forms(form, sigma_data, low, quick):
    setup = lab.ProgressiveSetup(form=form)
    grid = lab.GRIDS[form](8)
    assert len(grid) == 9 and (grid[0], grid[-1]) == (low, 5.0)
    student = setup.init_student()
    assert setup.teacher.sigma_data == student.sigma_data == sigma_data
    assert student is not setup.teacher and all(p.requires_grad for p in student.parameters())
    assert not any(p.requires_grad for p in setup.teacher.parameters())
    assert all(map(torch.equal, student.parameters(), setup.teacher.parameters()))
    source = Counted(setup.teacher)
    for pairs, asked in ((600, 2), (0, 3)):  # two batches of pairs; one for each of three steps
        source.evaluations = 0
        direct = lab.direct_student(setup, source, pairs, 3)
        assert direct.steps == 1 and source.evaluations == asked * (34 if form == "edm" else 33)
    walk = FewStepStudent(setup.bench.exact, lab.GRIDS[form](64))
    numbers = setup.evaluate(walk, setup.bench.exact)
    assert numbers["paired_error"] == numbers["to_teacher"] < 0.05
    assert setup.evaluate(walk, setup.teacher)["to_teacher"] > 0.1


def test_stretch_and_the_share_of_the_steepest_tenth(generator):
    class Bent(nn.Module):
        """Slope 3 to the right of 0, 1 to the left."""

        sigma_min, sigma_max = 0.002, 1.0

        def forward(self, x, sigma, labels=None):
            return torch.where(x > 0, 3 * x, x)

    noise = torch.tensor([[2.0], [-2.0]]).double()
    assert torch.allclose(lab.stretch(Bent(), noise, generator), torch.tensor([3.0, 1.0]).double())
    error, steepness = torch.tensor([3.0] + [1.0] * 18 + [9.0]), torch.arange(20.0).flip(0)
    found = lab.compare_errors(error, steepness)
    assert found == pytest.approx({"steep": 1.0, "flat": 1.0, "share": 10 / 108})


@pytest.mark.parametrize("name", lab.PROGRESSIVE_SWEEPS)
def test_every_sweep_can_do_a_short_run(name, quick):
    sweep = lab.PROGRESSIVE_SWEEPS[name]
    assert sweep.name == name and len(sweep.seeds) >= 3
    for setting in (sweep.settings[0], sweep.settings[-1]):
        short = {**setting, "steps": 12}
        short |= {"pairs": 600} if setting.get("pairs") else {}
        numbers = sweep.work(short, 0)
        assert all(math.isfinite(v) for v in numbers.values())


def test_both_methods_start_from_the_teacher_and_pay_twice_a_step(quick):
    for method in ("cd", "pd256", "pd"):
        setting = {"dataset": "moons", "method": method, "distance": "squared_l2", "steps": 12}
        numbers = lab.run_versus(setting, 0)
        assert numbers["evaluations_1"] == 2 * (12 if method != "pd256" else 8)
    assert numbers["evaluations_8"] == 12  # three of the six rounds
    one_step = {"method": "pd", "teacher": "learned", "form": "vp", "steps": 12, "samples": 300}
    assert lab.run_one_step(one_step, 0)["evaluations"] == 24
    assert lab.run_versus(setting, 0) == numbers


def test_a_teacher_leaves_the_global_randomness_as_it_was_the_first_time_too():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    for form in ("edm", "vp", "edm"):
        lab.TEACHERS[form]("moons", 0, steps=3)
        assert torch.equal(before, torch.get_rng_state())
