"""Distribution matching: the gradient of KL in closed form, the turns, and what must not move."""

import copy
import math

import pytest
import torch
from torch import nn

from consistency_edu import matching
from consistency_edu.acceleration import try_out
from consistency_edu.consistency import ConsistencyModel
from consistency_edu.data import draw_points, toy
from consistency_edu.experiments import matching as lab
from consistency_edu.files import InputError
from consistency_edu.matching import DistributionMatching, denoised_gap, inverse_error
from consistency_edu.networks import MLP, UNet
from consistency_edu.pf_ode import EDMDenoiser, edm_objective
from consistency_edu.progressive import DirectDistillation, FewStepStudent, Pairs
from consistency_edu.sampling import OneStepStudent, sample_one_step
from consistency_edu.score import ExactDenoiser
from consistency_edu.training import TrainingDiverged, train, trained_weights

MOONS = toy("moons")
EXACT = ExactDenoiser(MOONS)


def data(count=64):
    return draw_points(MOONS, count, generator=torch.Generator().manual_seed(0))[0]


def student(**options):
    torch.manual_seed(0)
    return FewStepStudent(EDMDenoiser(MLP(width=16, **options)), [0.0, 5.0])


def denoiser(seed=1, **options):
    torch.manual_seed(seed)
    return EDMDenoiser(MLP(width=16, **options))


def copies(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------ the gradient of KL


class Linear(OneStepStudent):
    """A generator A z: the start, sigma_max times z, times A / sigma_max."""

    def __init__(self, matrix, sigma_max=5.0):
        super().__init__(sigma_max=sigma_max, method="a test")
        self.matrix = nn.Parameter(matrix.clone())

    def jump(self, x, labels=None):
        return x @ self.matrix.T / self.sigma_max


def gaussian_denoiser(covariance):
    """The denoiser of N(0, `covariance`)."""

    def denoise(x, sigma, labels=None):
        kept = covariance @ torch.linalg.inv(covariance + sigma[0] ** 2 * torch.eye(2).double())
        return x @ kept.T

    return denoise


def gaussian_kl(a, b):
    """KL between two normal laws of mean 0 with covariances `a` and `b`."""
    return (torch.trace(torch.linalg.solve(b, a)) + torch.logdet(b) - torch.logdet(a) - 2) / 2


def nodes():
    """Eight points of the plane for z and the noise, exact for what is quadratic in both."""
    points = 2 * torch.cat([torch.eye(4), -torch.eye(4)]).double()
    return points[:, :2], points[:, 2:]


def quadrature(objective, sigma, monkeypatch, draws=None, x=None):
    """The loss on given draws (of z, then of the noise) at the one level `sigma`."""
    rows = iter(draws or nodes())
    monkeypatch.setattr(matching, "draw_normal", lambda like, generator=None: next(rows))
    objective.draw_sigma = lambda like, generator=None: torch.full(
        (len(like),), sigma, dtype=torch.float64
    )
    return objective(torch.zeros(8, 2).double() if x is None else x)


def inverse_square(x, real, sigma):
    return sigma**-2


def of_kl(matrix, target, sigma, monkeypatch, fake=None, **options):
    """The gradient by `matrix` of the loss, over sigma squared, averaged over all draws."""
    online = Linear(matrix)
    fake = fake or gaussian_denoiser(matrix @ matrix.T)
    options = {"updates": 0, "weight": inverse_square, **options}
    objective = DistributionMatching(online, gaussian_denoiser(target), fake, **options)
    quadrature(objective, sigma, monkeypatch).mean().backward()
    return online.matrix.grad


def test_the_gradient_of_a_gaussian_in_closed_form(monkeypatch):
    theta, s, sigma = 0.8, 0.5, 0.6
    expected = 2 * theta * (1 / (s**2 + sigma**2) - 1 / (theta**2 + sigma**2))
    assert expected == pytest.approx(1.022951, abs=5e-7)
    found = of_kl(theta * torch.eye(2).double(), s**2 * torch.eye(2).double(), sigma, monkeypatch)
    assert float(found.trace()) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("sigma", [0.1, 0.6, 3.0])
def test_the_gradient_of_a_linear_generator_is_that_of_kl(sigma, monkeypatch, generator):
    noise = sigma**2 * torch.eye(2).double()
    for _ in range(5):
        matrix, root = torch.randn(2, 2, 2, generator=generator).double()
        target, unknown = root @ root.T, matrix.clone().requires_grad_()
        gaussian_kl(unknown @ unknown.T + noise, target + noise).backward()
        found = of_kl(matrix, target, sigma, monkeypatch)
        assert (found - unknown.grad).abs().max() < 1e-10 * unknown.grad.abs().max()
        no_fake = of_kl(matrix, target, sigma, monkeypatch, lambda x, sigma, labels: x)
        wide = of_kl(matrix, target, sigma, monkeypatch, gaussian_denoiser(1.1 * matrix @ matrix.T))
        size = unknown.grad.norm()
        assert (no_fake - unknown.grad).norm() > 0.01 * size
        assert (wide - unknown.grad).norm() > 1e-3 * size


def test_a_distribution_that_is_right_has_no_gradient(monkeypatch):
    target, turn = torch.tensor(
        [[[0.5, 0.2], [0.2, 0.3]], [[0.6, -0.8], [0.8, 0.6]]], dtype=torch.float64
    )
    matrix = torch.linalg.cholesky(target) @ turn  # any root will do: pairing does not count
    assert of_kl(matrix, target, 0.5, monkeypatch).abs().max() < 1e-14


def grid(limit=3.5, count=141):
    """A lattice over the plane, and the area of its cells."""
    line = torch.linspace(-limit, limit, count, dtype=torch.float64)
    return torch.cartesian_prod(line, line), float((line[1] - line[0]) ** 2)


def test_shifted_moons():
    """Moons moved by .2: the derivative of KL by the shift, by differences and by the scores."""
    (x, area), sigma, way = grid(), 0.3, torch.tensor([0.6, 0.8], dtype=torch.float64)
    level = torch.full((len(x),), sigma, dtype=torch.float64)

    def divergence(shift):
        fake, real = MOONS.log_density(x - shift * way, sigma), MOONS.log_density(x, sigma)
        return float((fake.exp() * (fake - real)).sum() * area)

    h = 1e-4
    difference = (divergence(0.2 + h) - divergence(0.2 - h)) / (2 * h)
    fake = lambda x, sigma, labels: EXACT(x - 0.2 * way, sigma) + 0.2 * way  # noqa: E731
    gap, real = denoised_gap(fake, EXACT, x, level)
    density = MOONS.log_density(x - 0.2 * way, sigma).exp()
    by_scores = float((density[:, None] * gap / sigma**2 * way).sum() * area)
    assert by_scores == pytest.approx(1.08897225, abs=2e-8)
    assert difference == pytest.approx(by_scores, abs=1e-6)
    assert torch.equal(real, EXACT(x, level))
    scores = EXACT.score(x - 0.2 * way, level) - EXACT.score(x, level)
    assert torch.allclose(gap, sigma**2 * scores, atol=1e-12)


# ------------------------------------------------------------------ the loss


def test_the_loss_has_the_gap_as_its_gradient(generator):
    online, fake = student(), denoiser()
    objective = DistributionMatching(online, EXACT, fake, weight=inverse_error)
    samples = data().requires_grad_()
    loss = objective.student_loss(samples, None, generator.manual_seed(3))
    (found,) = torch.autograd.grad(loss.sum(), samples)
    lot = generator.manual_seed(3)
    sigma = 0.02 * (5 / 0.02) ** torch.rand(1, 64, generator=lot)[0]
    noisy = samples.detach() + sigma[:, None] * torch.randn(1, 64, 2, generator=lot)[0]
    real = EXACT(noisy, sigma)
    gap = (fake(noisy, sigma) - real).detach() / (samples.detach() - real).abs().mean(1)[:, None]
    assert torch.allclose(objective.last_sigma, sigma) and sigma.min() < 0.1 and sigma.max() > 2
    assert torch.allclose(found, gap, atol=1e-5)
    assert torch.allclose(loss, gap.square().sum(1) / 2, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(0.02, None), (0.5, 2.0)])
def test_levels_are_even_in_their_logarithm(low, high, generator):
    options = {"low": low, "high": high, "updates": 0}
    objective = DistributionMatching(student(), EXACT, EXACT, **options)
    objective(torch.zeros(20_000, 2), generator=generator)
    place = (objective.last_sigma / low).log() / math.log((high or 5.0) / low)
    assert place.min() >= -1e-6 and place.max() <= 1 + 1e-6
    for share in (0.1, 0.5, 0.9):
        assert (place < share).double().mean() == pytest.approx(share, abs=0.015)


def test_the_fake_learns_the_students_samples(generator):
    online, fake = student(), denoiser()
    objective = DistributionMatching(online, EXACT, fake, log_mean=-0.5, log_std=0.7)
    found = objective(data(), generator=generator.manual_seed(3))
    lot = generator.manual_seed(3)
    samples = sample_one_step(online, torch.randn(1, 64, 2, generator=lot)[0])
    plain = edm_objective(fake, log_mean=-0.5, log_std=0.7)
    assert torch.allclose(found, plain(samples, None, generator=lot), atol=1e-5)
    assert torch.equal(objective.last_sigma, plain.last_sigma)


def test_the_weight_of_dmd():
    x, real = torch.zeros(2, 1, 2, 2), torch.arange(8.0).reshape(2, 1, 2, 2)
    assert torch.allclose(inverse_error(x, real, None), torch.tensor([1 / 1.5, 1 / 5.5]))
    assert inverse_error(x, x, None).isfinite().all()


@pytest.mark.parametrize("exists", [True, False])
def test_samples_are_those_of_the_highest_level(exists, generator):
    """A consistency model is asked at sigma_max alone, as a one-step student is."""
    online = ConsistencyModel(MLP(width=16), sigma_max=5.0) if exists else student()
    asked = []
    online.register_forward_pre_hook(lambda _, args: asked.append(args[1]))
    objective = DistributionMatching(online, EXACT, denoiser())
    samples = objective.sample(data(), None, generator.manual_seed(3))
    noise = torch.randn(1, 64, 2, generator=generator.manual_seed(3))[0]
    assert torch.equal(samples, sample_one_step(online, noise))
    assert all((sigma == 5.0).all() for sigma in asked)


def test_the_data_count_by_their_shape_alone(generator):
    for turn in (0, 1):
        objective = DistributionMatching(student(), EXACT, denoiser())
        objective.step = turn
        x = torch.full((16, 2), math.nan)
        assert objective(x, generator=generator).isfinite().all()


def test_labels_reach_all_three(generator):
    asked, labels = [], torch.arange(64) % 2

    def teacher(x, sigma, told=None):
        asked.append(told)
        return EXACT(x, sigma, told)

    online, fake = student(num_classes=2), denoiser(num_classes=2)
    for part in (online.denoiser, fake):
        part.network.register_forward_pre_hook(lambda _, args: asked.append(args[2]))
    objective = DistributionMatching(online, teacher, fake)
    for count in (2, 5):  # the fake's turn: student and fake; then the student's: all three
        objective(data(), labels, generator=generator)
        objective.after_step()
        assert len(asked) == count and all(told is labels for told in asked)


# ------------------------------------------------------------------ the turns


@pytest.mark.parametrize("updates", [1, 2, 5])
def test_whose_turn_it_is_moves_alone(updates, generator):
    objective = DistributionMatching(student(), denoiser(2), denoiser(), updates=updates)
    parts, moved = (objective.online, objective.fake, objective.teacher), []
    before = [copies(part) for part in parts]
    rows = [(data(), None)]
    for state in train(objective, rows, steps=2 * updates + 2, lr=1e-2, generator=generator):  # noqa: B007
        now = [copies(part) for part in parts]
        moved.append([not same(a, b) for a, b in zip(before, now)])
        before = now
    assert moved == ([[False, True, False]] * updates + [[True, False, False]]) * 2
    assert state.ema.updates == 2
    slots = [int(state.optimizer.state[w]["step"]) for w in trained_weights(objective)]
    ours = len(list(objective.online.parameters()))
    assert slots == [2] * ours + [2 * updates] * (len(slots) - ours)


def test_without_updates_only_the_student_is_trained(generator):
    objective = DistributionMatching(student(), EXACT, ExactDenoiser.of_points(data()), updates=0)
    assert not objective.is_fakes_turn and objective.also_trained == ()
    for state in train(objective, [(data(), None)], steps=3, generator=generator):  # noqa: B007
        assert not objective.is_fakes_turn
    assert state.ema.updates == 3


def test_gradients_reach_the_one_whose_turn_it_is(generator):
    online, teacher, fake = student(), denoiser(2), denoiser()
    traced = []
    objective = DistributionMatching(online, teacher, fake)
    for part in (teacher, fake, online):
        part.register_forward_hook(lambda *args: traced.append((args[0], args[2].requires_grad)))
    for trained, others in ((fake, (online, teacher)), (online, (fake, teacher))):
        traced.clear()
        objective(data(), generator=generator).mean().backward()
        assert all(p.grad is not None and p.grad.norm() > 0 for p in trained.parameters())
        assert all(p.grad is None for part in others for p in part.parameters())
        assert [part for part, is_traced in traced if is_traced] == [trained]
        trained.zero_grad(set_to_none=True)
        objective.after_step()


class Dropping(nn.Module):
    """A backbone that drops, and remembers when."""

    def __init__(self):
        super().__init__()
        self.scale, self.drops = nn.Parameter(torch.ones(())), []

    def forward(self, x, c_noise, labels=None):
        self.drops.append(self.training)
        return self.scale * nn.functional.dropout(x, 0.5, self.training)


def test_the_fake_drops_only_while_it_learns(generator):
    fake, online = EDMDenoiser(Dropping()).eval(), FewStepStudent(EDMDenoiser(Dropping()), [0, 5.0])
    objective = DistributionMatching(online, EXACT, fake, updates=2)
    for _ in train(objective, [(data(), None)], steps=6, generator=generator):
        pass
    assert fake.network.drops == [True, True, False] * 2
    assert online.denoiser.network.drops == [True] * 6


def test_images_with_labels_are_trained_as_points_are(generator):
    torch.manual_seed(0)
    nets = [EDMDenoiser(UNet(width=8, num_classes=10)) for _ in range(2)]
    online = FewStepStudent(nets[0], [0.0, 20.0], method="distribution matching")
    teacher, before = copy.deepcopy(nets[1]), copies(nets[0])
    objective = DistributionMatching(online, teacher, nets[1], weight=inverse_error)
    rows = [(torch.zeros(4, 1, 8, 8), torch.arange(4))]
    *_, state = train(objective, rows, steps=2, generator=generator)
    assert math.isfinite(state.loss) and not same(before, copies(nets[0]))
    with pytest.raises(InputError, match="distribution matching exists at sigma_max = 20 alone"):
        online(torch.zeros(4, 1, 8, 8), torch.ones(4))


# ------------------------------------------------------------------ DMD's regression


def test_the_regression_is_added_in_the_students_turn_alone(generator):
    online, lot = student(), generator.manual_seed(5)
    noise = torch.randn(32, 2, generator=lot)
    regression = DirectDistillation(online, pairs=Pairs(noise, -noise))
    both = DistributionMatching(online, EXACT, denoiser(), regression=regression)
    plain = DistributionMatching(online, EXACT, denoiser())
    for turn in (0, 1):
        both.step = plain.step = turn
        found = both(data(), generator=generator.manual_seed(3))
        alone = plain(data(), generator=generator.manual_seed(3))
        more = regression(data(), generator=generator) if turn else 0  # the draws that follow
        assert torch.allclose(found, alone + more, atol=1e-5)
    assert both.state_dict().keys() == plain.state_dict().keys()


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("turn", [0, 1])
def test_a_bad_answer_ends_the_run_and_names_its_level(bad, turn, generator):
    def teacher(x, sigma, labels=None):
        return torch.where(sigma[:, None] > 1, bad, x)

    online = student()
    if not turn:
        with torch.no_grad():
            online.denoiser.network.last.bias.fill_(bad)
    objective = DistributionMatching(online, teacher, denoiser())
    objective.step, before = turn, copies(online)
    with pytest.raises(TrainingDiverged, match="DistributionMatching .* of 64 .* levels from"):
        next(train(objective, [(data(), None)], steps=1, generator=generator))
    assert turn == 0 or same(before, copies(online))


SHARED = denoiser()
FROZEN = denoiser().requires_grad_(False)


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda: DistributionMatching(student(), EXACT, denoiser(), updates=-1), "updates is -1"),
        (lambda: DistributionMatching(student(), EXACT, denoiser(), low=0.0), "sigma_min"),
        (lambda: DistributionMatching(student(), EXACT, denoiser(), low=6.0), "6.0 and 5.0"),
        (lambda: DistributionMatching(student(), EXACT, denoiser(), log_std=0.0), "ln sigma"),
        (lambda: DistributionMatching(student(), EXACT, FROZEN), "no weight of the fake"),
        (lambda: DistributionMatching(student(), EXACT, EXACT), "needs no training and updates=0"),
        (lambda: DistributionMatching(student(), EXACT, lambda x, s, labels: x), "no weight of"),
        (lambda: DistributionMatching(student(), SHARED, SHARED), "shares weights"),
        (
            lambda: DistributionMatching(FewStepStudent(SHARED, [0.0, 5.0]), EXACT, SHARED),
            "copy.deepcopy",
        ),
    ],
)
def test_bad_input_is_refused(action, sentence):
    with pytest.raises(InputError, match=sentence):
        action()


@pytest.mark.parametrize(
    "broken",
    [
        {"teacher": lambda x, sigma, labels: x[:1]},
        {"fake": lambda x, sigma, labels: x[:, :1]},
        {"weight": lambda x, real, sigma: sigma[:, None]},
        {"online": OneStepStudent(lambda x, labels: x[:, :1], sigma_max=5.0, method="a test")},
    ],
)
def test_a_wrong_shape_is_refused(broken, generator):
    parts = {"online": student(), "teacher": EXACT, "fake": EXACT, "updates": 0, **broken}
    with pytest.raises(InputError, match="shape|should"):
        DistributionMatching(**parts)(data(), generator=generator)


# ------------------------------------------------------------------ a second step


class Recording(nn.Module):
    """A student that multiplies by a weight, and remembers the levels that it was asked at."""

    sigma_min, sigma_max = 0.3, 5.0

    def __init__(self):
        super().__init__()
        self.weight, self.asked = nn.Parameter(torch.tensor(0.1).double()), []

    def forward(self, x, sigma, labels=None):
        self.asked.append((float(sigma[0]), x.requires_grad, torch.is_grad_enabled()))
        return self.weight * x


def test_every_other_sample_is_one_of_two_steps(generator):
    def still(x, sigma, labels=None):
        return torch.zeros_like(x)

    options = {"updates": 0, "low": 0.1, "high": 0.2}
    task = DistributionMatching(Recording(), still, still, middle=0.5, **options)
    x = torch.empty(20_000, 2, dtype=torch.float64)
    spread = []
    for _ in range(4):
        task.online.asked.clear()
        spread.append(float(task.sample(x, None, generator).detach().std()))
        if task.is_second:  # the first jump has no gradient, and the second starts from its end
            assert task.online.asked == [(5.0, False, False), (0.5, False, True)]
        else:
            assert task.online.asked == [(5.0, False, True)]
        task.after_step()
    one = 0.1 * 5.0
    two = 0.1 * math.sqrt(one**2 + 0.5**2 - 0.3**2)  # 8 % more with noise of the whole level
    assert spread == pytest.approx([one, two, one, two], rel=0.03)


def test_both_networks_see_samples_of_both_kinds():
    task = DistributionMatching(
        ConsistencyModel(MLP(width=16), sigma_max=5.0), EXACT, denoiser(), updates=2, middle=0.5
    )
    assert task.turns == 3
    kinds = []
    for step in range(6):
        task.step = step
        kinds.append((task.is_fakes_turn, task.is_second))
    assert kinds == [(True, False)] * 2 + [(False, False)] + [(True, True)] * 2 + [(False, True)]


# ------------------------------------------------------------------ what the sweeps run


@pytest.fixture
def quick(monkeypatch):
    """Denoisers of a few steps, and few pairs, for the runs of the sweeps."""
    untrained = {gain: lab.timed_teacher("moons", 0, 2, gain) for gain in (1.0, 4.0)}
    monkeypatch.setattr(lab, "timed_teacher", lambda dataset, seed, steps, gain: untrained[gain])
    pairs = Pairs(torch.randn(8, 2), torch.randn(8, 2))
    monkeypatch.setattr(lab, "ode_pairs", lambda dataset: pairs)
    lab.short_cd.cache_clear()


def test_the_objectives_of_the_sweeps(quick):
    settings = [setting for sweep in lab.MATCHING_SWEEPS.values() for setting in sweep.settings]
    for setting in settings:
        objective, before = lab.build_run(setting, 0)
        s = lab.RUN | setting
        assert before > 0 and objective.draw_sigma(torch.zeros(99, 2)).max() <= s["high"] + 1e-6
        assert isinstance(objective.fake, lab.SampledFake) == (s["fake"] == "samples")
        assert objective.updates == (0 if s["fake"] == "samples" else s["updates"])
        assert isinstance(objective.teacher, ExactDenoiser) == (s["teacher"] == "exact")
        assert objective.online.denoiser.network.gain == s["gain"]
        loss = objective.student_loss(objective.sample(data(), None, None), None, None)
        objective.step = objective.updates
        assert bool(objective._more) == (s["regression"] > 0) and loss.isfinite().all()
    lab.short_cd.cache_clear()


def test_a_fake_of_samples_follows_the_student_at_once():
    online = student()
    fake = lab.SampledFake(online, 500)
    x, sigma = torch.zeros(4, 2), torch.full((4,), 0.5)
    before = fake(x, sigma)
    with torch.no_grad():
        online.denoiser.network.last.bias.add_(10.0)
    assert (fake(x, sigma) - before).norm(dim=1).min() > 0.1 and not fake.state_dict()


def test_shares_and_distances_among_the_components():
    mixture = toy("eight_gaussians")
    cloud = draw_points(mixture, 20_000, generator=torch.Generator().manual_seed(0))[0]
    found = lab.fit_to_components(cloud, mixture)
    assert found["share_off"] < 0.01 and found["least_share"] == pytest.approx(0.125, abs=0.01)
    assert found["middle"] == pytest.approx(math.sqrt(2 * math.log(2)), abs=0.02)
    assert found["beyond_three"] == pytest.approx(math.exp(-4.5), abs=0.003)
    assert found["outside"] < 0.001
    kept = cloud[(cloud[:, 0] > 0.5) & (cloud[:, 1].abs() < 0.25)]  # the component on the right
    alone = lab.fit_to_components(kept, mixture)
    assert alone["share_off"] == pytest.approx(0.875, abs=0.01) and alone["least_share"] == 0


def test_lag_and_signal_are_told_apart():
    online = FewStepStudent(EXACT, [0.0, 5.0])
    late = lab.SampledFake(online, 2000)
    task = DistributionMatching(online, EXACT, late, updates=0)
    lag, signal = lab.lag_and_signal(task, EXACT)
    assert lag < 0.05 and signal > 0.1  # one step of the denoiser is far from the data
    task.fake = EXACT
    lag, again = lab.lag_and_signal(task, EXACT)
    assert lag == again == signal


def test_both_turns_are_tried_and_leave_no_trace(generator):
    online, fake = student(), denoiser()
    task = DistributionMatching(online, EXACT, fake, updates=2)
    seen = []
    for part in (online, fake):
        part.register_forward_hook(lambda part, *_: seen.append((part is fake, part.training)))
    before = copies(task)
    try_out(task, (data(8), None))
    fakes = [training for is_fake, training in seen if is_fake]
    assert fakes == [True, True, False]  # it learns twice, and then it is asked
    assert task.step == 0 and same(before, copies(task))
    assert all(weight.grad is None for weight in task.parameters())
