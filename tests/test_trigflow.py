"""TrigFlow and sCM: the change of variables, the tangent and what breaks it, derivatives, runs."""

import copy
import math

import pytest
import torch
from torch import nn

from consistency_edu import trigflow
from consistency_edu.checkpoints import load_checkpoint, save_checkpoint
from consistency_edu.consistency import (
    ConsistencyModel,
    ExactConsistency,
    quarter_log,
)
from consistency_edu.data import draw_normal, draw_points, per_sample, toy, toy_batches
from consistency_edu.dropout import Dropout
from consistency_edu.experiments import trigflow as lab
from consistency_edu.experiments.benchmarks import toy_benchmark
from consistency_edu.experiments.consistency_training import draw_clean
from consistency_edu.files import InputError
from consistency_edu.long_runs import SharedGenerator
from consistency_edu.networks import MLP, UNet
from consistency_edu.notation import angle_from_sigma, sigma_from_angle
from consistency_edu.pf_ode import EDMDenoiser, euler_step, slope
from consistency_edu.sampling import sample_multistep, sample_one_step
from consistency_edu.score import ExactDenoiser
from consistency_edu.training import TrainingDiverged, train
from consistency_edu.trigflow import (
    ContinuousConsistency,
    LearnedWeight,
    consistency_tangent,
    cos_and_sin,
    differentiable,
    network_change,
    network_output,
    normalize_tangent,
    trig_model,
    trig_velocity,
)

MOONS = toy("moons")
EXACT = ExactDenoiser(MOONS)
F_EXACT = ExactConsistency(EXACT, sigma_max=5.0, steps=16)


def plane_model(network, c_noise=angle_from_sigma, sigma_max=5.0):
    return trig_model(network, c_noise=c_noise, sigma_max=sigma_max)


def small(seed=0, c_noise=angle_from_sigma):
    torch.manual_seed(seed)
    return plane_model(MLP(width=16, depth=2), c_noise)


class Noisy:
    """256 noisy points in float64 at levels from .02 to 5, and what the exact denoiser says."""

    def __init__(self, count=256):
        generator = torch.Generator().manual_seed(0)
        x0 = draw_points(MOONS, count, generator=generator)[0].double()
        self.sigma = 0.02 * 250 ** torch.rand(count, generator=generator, dtype=torch.float64)
        self.noise = draw_normal(x0, generator)
        self.x0, self.x = x0, x0 + self.sigma[:, None] * self.noise
        self.denoised = EXACT(self.x, self.sigma)
        self.slope = slope(EXACT, self.x, self.sigma)
        self.cos, self.sin = cos_and_sin(self.sigma, self.x)
        self.t = angle_from_sigma(self.sigma)
        self.velocity = trig_velocity(self.x, self.denoised, self.sigma)


@pytest.fixture(scope="module")
def noisy():
    return Noisy()


# The change of variables


def test_times_and_levels_are_inverse():
    sigma = torch.logspace(-3, 2, 60).double()
    for data in (0.5, 1.3):
        t = angle_from_sigma(sigma, data)
        assert torch.allclose(sigma_from_angle(t, data), sigma, rtol=1e-12)
        assert (0 < t).all() and (t < math.pi / 2).all() and (t.diff() > 0).all()
        cos, sin = cos_and_sin(sigma, torch.empty(60, 1, 2, 2).double(), data)
        assert cos.shape == (60, 1, 1, 1)
        assert (cos.flatten() - t.cos()).abs().max() < 1e-14
        assert (sin.flatten() - t.sin()).abs().max() < 1e-14
    # the paper's two-step restart
    assert float(sigma_from_angle(torch.tensor(1.1))) == pytest.approx(0.982, abs=1e-3)
    assert float(angle_from_sigma(torch.tensor(80.0).double())) == pytest.approx(
        1.5645464, abs=1e-7
    )


def test_the_model_with_edms_coefficients_is_trigflows(noisy):
    """D and f = cos t x_t - sin t sigma_d F, with F(x_t / sigma_d, t) = - the network's output."""
    torch.manual_seed(0)
    network = MLP().double()
    x_t = noisy.cos * noisy.x
    assert (x_t / noisy.cos - noisy.x).abs().max() < 6e-15
    F = -network(x_t / 0.5, noisy.t)
    expected = noisy.cos * x_t - noisy.sin * 0.5 * F
    assert (plane_model(network)(noisy.x, noisy.sigma) - expected).abs().max() < 2e-15
    usual = plane_model(network, quarter_log)(noisy.x, noisy.sigma)
    assert (EDMDenoiser(network)(noisy.x, noisy.sigma) - usual).abs().max() < 2e-15
    F = -network(x_t / 0.5, noisy.sigma.log() / 4)
    assert (noisy.cos * x_t - noisy.sin * 0.5 * F - usual).abs().max() < 2e-15


def test_the_velocity_is_that_of_the_path_and_of_the_ray(noisy):
    """Against a difference along the solved path, 2e-9, and along x_0 + sigma z."""
    h = 1e-5

    def at(t, x):  # follow the ODE from t by 1 step of Heun so small that it is exact
        sigma = sigma_from_angle(t)
        gap = (sigma - noisy.sigma)[:, None]
        middle = noisy.x + gap / 2 * noisy.slope
        return t.cos()[:, None] * (noisy.x + gap * slope(EXACT, middle, (sigma + noisy.sigma) / 2))

    found = (at(noisy.t + h, noisy.x) - at(noisy.t - h, noisy.x)) / (2 * h)
    assert (found - noisy.velocity).abs().median() < 2e-9
    assert (found - noisy.velocity).abs().max() < 1e-6
    also = (noisy.cos * (noisy.cos * noisy.x) - noisy.denoised) / noisy.sin  # the paper's form
    assert (also - noisy.velocity).abs().max() < 2e-12
    ray = trig_velocity(noisy.x, noisy.x0, noisy.sigma)
    assert (ray - (noisy.cos * 0.5 * noisy.noise - noisy.sin * noisy.x0)).abs().max() < 1e-12


def test_a_turn_in_the_circle_is_eulers_step(noisy):
    """cos(s - t) x_t + sin(s - t) dx_t/dt, to 9e-16."""
    target = sigma_from_angle(0.6 * noisy.t)
    turn = (0.6 * noisy.t - noisy.t)[:, None]
    turned = turn.cos() * noisy.cos * noisy.x + turn.sin() * noisy.velocity
    stepped = euler_step(EXACT, noisy.x, noisy.sigma, target)
    assert (turned - cos_and_sin(target, noisy.x)[0] * stepped).abs().max() < 3e-15


# The tangent


def change_of(f, some, direction, level=1.0):
    """The derivative of f at the points of `some` along (direction, level)."""
    tangents = direction, torch.full_like(some.sigma, level)
    return torch.func.jvp(f, (some.x, some.sigma), tangents)[1]


def median(change):
    return float(change.norm(dim=1).median())


def test_the_exact_f_changes_along_other_directions_than_its_paths_alone():
    """At 64 points: medians .39, .20 and .55, along a path 3e-6 by 16 Runge-Kutta steps."""
    some = Noisy(64)
    level = change_of(F_EXACT, some, 0 * some.x)  # linear in the direction: add and subtract
    path = change_of(F_EXACT, some, some.slope, 0.0)
    ray = change_of(F_EXACT, some, some.noise, 0.0)
    assert median(level + path) < 1e-5
    coarse = ExactConsistency(EXACT, sigma_max=5.0, steps=8)
    order = math.log2(median(change_of(coarse, some, some.slope)) / median(level + path))
    assert order == pytest.approx(4, abs=0.7)
    assert 0.2 < median(level - path) < 0.6  # the slope's sign
    assert 0.1 < median(level) < 0.3  # no x-tangent
    assert 0.2 < median(level + ray) < 0.8  # z, where the slope belongs


class ExactNetwork(nn.Module):
    """The network of the exact f: what a TrigFlow model would have to answer."""

    def forward(self, z, t, labels=None):
        cos, sin, sigma = t.cos()[:, None], t.sin()[:, None], sigma_from_angle(t)
        return (F_EXACT(0.5 * z / cos, sigma) - cos * 0.5 * z) / (0.5 * sin)


def test_the_tangent_of_the_exact_f_is_zero():
    model, some = plane_model(ExactNetwork()), Noisy(64)
    assert (model(some.x, some.sigma) - F_EXACT(some.x, some.sigma)).abs().max() < 1e-13
    output, g = consistency_tangent(model, some.x, some.sigma, some.denoised)
    assert median(g) < 5e-6 and g.abs().max() < 1e-3
    x_t = some.cos * some.x
    assert (
        some.cos * x_t + some.sin * 0.5 * output - F_EXACT(some.x, some.sigma)
    ).abs().max() < 1e-13


@pytest.mark.parametrize("c_noise", [angle_from_sigma, quarter_log])
def test_the_tangent_is_cos_t_times_the_derivative_of_any_model(c_noise, noisy):
    torch.manual_seed(0)
    model = plane_model(MLP().double(), c_noise)
    for clean in (noisy.denoised, noisy.x0):
        _, g = consistency_tangent(model, noisy.x, noisy.sigma, clean)
        direction = (noisy.x - clean) / noisy.sigma[:, None]
        tangents = direction, torch.ones_like(noisy.sigma)
        with torch.no_grad():
            change = torch.func.jvp(model, (noisy.x, noisy.sigma), tangents)[1]
        expected = noisy.cos * change * 0.5 / noisy.cos**2  # d sigma / dt
        assert (g - expected).abs().max() < 3e-15


def test_its_parts_are_those_of_the_paper(noisy):
    """Step 4 of algorithm 1, and a warm-up that spares the first part."""
    torch.manual_seed(0)
    network = MLP().double().requires_grad_(False)
    model, x_t = plane_model(network), noisy.cos * noisy.x

    def paper(share, second=0.5):
        tangents = (noisy.cos * noisy.sin * noisy.velocity, noisy.t.cos() * noisy.t.sin() * second)
        inputs = x_t, 0.5 * noisy.t  # both divided by sigma_d, the result times sigma_d
        F, third = torch.func.jvp(lambda x, t: -0.5 * network(x / 0.5, t / 0.5), inputs, tangents)
        first = -(noisy.cos**2) * (F - noisy.velocity)
        return first - share * (noisy.cos * noisy.sin * x_t + third)

    for share in (0.0, 0.3, 1.0):
        _, g = consistency_tangent(model, noisy.x, noisy.sigma, noisy.denoised, share=share)
        assert (g - paper(share)).abs().max() < 3e-15
    wrong = (paper(1.0, second=1.0) - paper(1.0)).abs()
    assert wrong.max() > 1e-2  # the second tangent without sigma_d


def test_the_gradient_of_the_loss_is_the_tangents(noisy):
    """grad of the mean of (F - F_ - g)² is that of -2 g F."""
    torch.manual_seed(0)
    model = plane_model(MLP().double())
    output, g = consistency_tangent(model, noisy.x, noisy.sigma, noisy.denoised)
    assert output.requires_grad and not g.requires_grad
    F, grads = -output, []
    for loss in ((F - F.detach() - g).square().sum(), (-2 * g * F).sum()):
        grads.append(torch.autograd.grad(loss, model.network.parameters(), retain_graph=True))
    assert all((a - b).abs().max() < 1e-13 for a, b in zip(*grads))


def tangents_at(some, draws):
    """The CT tangents of the exact f `[B, draws, D]` at each point, for draws of its clean data.

    They are affine in the clean point: three of them tell all.
    """
    model, generator = plane_model(ExactNetwork()), torch.Generator().manual_seed(1)
    at = [torch.zeros(2), *torch.eye(2)]
    zero, *ones = (
        consistency_tangent(model, some.x, some.sigma, p.to(some.x).expand_as(some.x))[1]
        for p in at
    )
    matrix = torch.stack([one - zero for one in ones], 1)  # [B, D of the data, D]
    rows = (v.repeat_interleave(draws, 0) for v in (some.x, some.sigma))
    clean = draw_clean(EXACT, *rows, generator).reshape(len(zero), draws, 2)
    return zero[:, None] + clean @ matrix


def test_the_conditional_tangent_is_right_on_average_until_it_is_normalised():
    """16 z-scores, of 4,000 draws each; divided by its length, the mean is off."""
    g = tangents_at(Noisy(8), 4000)
    z = g.mean(1) / (g.std(1) / 4000**0.5)
    assert z.abs().max() < 3.5
    g = normalize_tangent(g.flatten(0, 1)).reshape(g.shape)
    z = g.mean(1) / (g.std(1) / 4000**0.5)
    assert z.abs().max() > 3.5


def test_normalised_tangents_are_shorter_than_1(generator):
    sizes = torch.logspace(-4, 4, 50)
    x = per_sample(sizes, torch.empty(50, 3, 4, 4)) * torch.randn(50, 3, 4, 4, generator=generator)
    found = normalize_tangent(x)
    length = x.flatten(1).norm(dim=1)
    assert torch.allclose(found.flatten(1).norm(dim=1), length / (length + 0.1), rtol=1e-5)
    assert torch.equal(normalize_tangent(torch.zeros(2, 2)), torch.zeros(2, 2))
    assert torch.allclose(normalize_tangent(x, 1e9) * 1e9, x, rtol=1e-4)


# Derivatives of the networks


def random_unet(**options):
    torch.manual_seed(0)
    net = UNet(1, width=8, **options).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return net


NETWORKS = {
    "MLP": (lambda: MLP(num_classes=3).double(), (2,)),
    "U-Net": (lambda: random_unet(num_classes=3), (1, 8, 8)),
    "U-Net with dropout": (lambda: random_unet(num_classes=3, dropout=0.3), (1, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_change_agrees_with_central_differences(name, generator):
    make, shape = NETWORKS[name]
    model = plane_model(make())
    x = draw_normal(torch.empty(6, *shape).double(), generator)
    clean, sigma = draw_normal(x, generator), torch.tensor([0.03, 0.2, 0.5, 1, 2, 4]).double()
    labels, h = torch.arange(6) % 3, 1e-3

    def after(k):  # k h further on in ln sigma
        torch.manual_seed(0)
        return network_output(model, x + k * h * (x - clean), sigma * math.exp(k * h), labels)

    torch.manual_seed(0)
    output, change = network_change(model, x, sigma, clean, labels)
    assert torch.equal(output, after(0))
    found = sum(w * (after(k) - after(-k)) for k, w in ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))) / h
    assert ((change - found).norm() / change.norm()) < 1e-8


def test_the_order_of_differences_and_the_floor_of_float32(noisy):
    """Slope 2 in float64; in float32 the best h is about 1e-3, and the jvp needs none."""
    torch.manual_seed(0)
    network = MLP().double().requires_grad_(False)

    def difference(h, dtype, network):
        x, t, v = (q.to(dtype) for q in (noisy.cos * noisy.x, noisy.t, noisy.velocity))
        up, down = (network(2 * (x + k * v), t + k) for k in (h, -h))
        return (up - down).double() / (2 * h)

    _, exact = torch.func.jvp(
        lambda x, t: network(2 * x, t),
        (noisy.cos * noisy.x, noisy.t),
        (noisy.velocity, torch.ones_like(noisy.t)),
    )
    errors = [
        float((difference(h, torch.float64, network) - exact).norm() / exact.norm())
        for h in (1e-1, 1e-2, 1e-3, 1e-4)
    ]
    rates = [math.log10(a / b) for a, b in zip(errors, errors[1:])]
    assert rates == pytest.approx([2, 2, 2], abs=0.1)
    single = copy.deepcopy(network).float()
    errors = {
        h: float((difference(h, torch.float32, single) - exact).norm() / exact.norm())
        for h in (1e-2, 1e-3, 1e-5)
    }
    assert 2e-5 < errors[1e-3] < 5e-4 < errors[1e-2] < errors[1e-5]
    x, t, v = ((q).float() for q in (noisy.cos * noisy.x, noisy.t, noisy.velocity))
    _, found = torch.func.jvp(lambda x, t: single(2 * x, t), (x, t), (v, torch.ones_like(t)))
    assert ((found - exact).norm() / exact.norm()) < 3e-6


@pytest.mark.parametrize("kind", [Dropout, nn.Dropout])
def test_output_and_tangent_drop_the_same_entries(kind, generator):
    """A network that drops has one pass for both; where it does not, a pass of its own agrees."""
    net = random_unet(dropout=0.5)
    for part in net.modules():
        if hasattr(part, "dropout"):
            part.dropout = kind(0.5)
    model, x = plane_model(net), draw_normal(torch.empty(4, 1, 8, 8), generator).double()
    sigma, calls = torch.tensor([0.1, 0.5, 1.0, 3.0]).double(), []
    net.register_forward_hook(lambda *args: calls.append(1))

    def ask():
        calls.clear()
        return consistency_tangent(model, x, sigma, 0 * x)

    for is_dropping in (True, False):
        model.train(is_dropping)
        torch.manual_seed(0)
        output, tangent = ask()
        assert len(calls) == (1 if is_dropping else 2)
        assert output.requires_grad and not tangent.requires_grad
        assert torch.equal(output, ask()[0]) is not is_dropping  # others in the next step
        torch.manual_seed(0)
        with torch.no_grad():
            alone = ask()
        assert len(calls) == 1 and not alone[0].requires_grad
        assert torch.equal(output, alone[0]) and torch.allclose(tangent, alone[1], atol=1e-12)


class Spy(nn.Module):
    """A network that notes in which state it is asked."""

    def __init__(self):
        super().__init__()
        self.scale, self.drop = nn.Parameter(torch.ones(())), nn.Dropout(0.0)
        self.unet, self.seen = UNet(1, width=8, precision=torch.bfloat16), []

    def forward(self, x, c_noise, labels=None):
        kernels = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
        self.seen.append((self.unet.precision, self.unet._compiled_call_impl, *kernels))
        return self.scale * x * c_noise[:, None, None, None]


def test_what_is_differentiated_is_not_rounded_and_compiled_as_a_whole(generator, monkeypatch):
    spy, whole = Spy(), []

    def compiled():
        return lambda *arguments: whole.append(1) or torch.func.jvp(*arguments)

    monkeypatch.setattr(trigflow, "compiled_jvp", compiled)
    loss = ContinuousConsistency(plane_model(spy))
    loss(torch.randn(4, 1, 8, 8), generator=generator)
    assert not whole
    spy.unet._compiled_call_impl = called = lambda *args: None
    loss(torch.randn(4, 1, 8, 8), generator=generator)
    derivative, trained = spy.seen[2:]
    assert derivative == (None, None, False, True) and whole == [1]
    assert trained == (torch.bfloat16, called, True, True)
    spy.drop.p = 0.5
    loss(torch.randn(4, 1, 8, 8), generator=generator)
    assert spy.seen[4:] == [derivative] and whole == [1]  # one pass for both, uncompiled
    with pytest.raises(ZeroDivisionError), differentiable(spy, torch.device("cpu")):
        assert spy.unet.precision is None
        raise ZeroDivisionError
    assert spy.unet.precision is torch.bfloat16 and spy.unet._compiled_call_impl is called


@pytest.mark.slow
def test_the_compiled_derivative_is_the_same_and_compiled_once(generator):
    torch.manual_seed(0)
    model, found = small(), []
    for compiles in (False, True):
        if compiles:
            model.network.compile(dynamic=False)
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
        for seed in range(3):
            x = draw_normal(torch.empty(8, 2), generator.manual_seed(seed))
            output, change = network_change(model, x, torch.linspace(0.1, 3, 8), x.roll(1, 0))
            model.zero_grad()
            output.sum().backward()
            found.append((output, change, *(p.grad for p in model.parameters())))
    counted = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] == 2 and not counted["graph_break"]
    for plain, fast in zip(found[:3], found[3:]):
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(plain, fast))


def test_under_autocast_the_derivative_stays_in_float32(generator):
    model, x = small(), draw_normal(torch.empty(8, 2), generator)
    sigma = torch.linspace(0.1, 3, 8)
    expected = network_change(model, x, sigma, x)
    with torch.autocast("cpu", torch.bfloat16):
        output, change = network_change(model, x, sigma, x)
    assert output.dtype is torch.bfloat16  # it is trained, in a pass of its own
    assert torch.allclose(change, expected[1], atol=1e-6)


# The objective


def batch(count=64):
    return draw_points(MOONS, count, generator=torch.Generator().manual_seed(5))[0]


def test_the_loss_is_that_of_the_paper(generator):
    """Its value is ||g||² / D, with the tangent of the present step, at the levels that it drew."""
    x, weight = batch(), LearnedWeight()
    nn.init.normal_(weight.last.weight)
    for teacher in (EXACT, None):
        for options in ({"c": None}, {"c": 0.2}, {"c": None, "adaptive": weight}):
            loss = ContinuousConsistency(small(), teacher, warmup=10, **options)
            loss.step = 4
            state = generator.get_state()
            found, sigma = loss(x, generator=generator), loss.last_sigma
            generator.set_state(state)
            again = trigflow.draw_lognormal(
                x, 0.002, 5.0, log_mean=-1.0, log_std=1.4, generator=generator
            )
            assert torch.equal(sigma, again)
            noisy = x + per_sample(sigma, x) * draw_normal(x, generator)
            clean = EXACT(noisy, sigma) if teacher else x
            _, g = consistency_tangent(loss.online, noisy, sigma, clean, share=0.4)
            g = normalize_tangent(g, 0.2) if options["c"] else g
            value = g.square().mean(1)
            if "adaptive" in options:
                w = weight(angle_from_sigma(sigma))
                value = w.exp() * value - w
            assert torch.allclose(found, value, rtol=1e-4, atol=1e-7)


def test_the_gradient_moves_the_network_by_its_tangent(generator):
    loss, x = ContinuousConsistency(small(), EXACT, c=None, warmup=0), batch()
    state = generator.get_state()
    loss(x, generator=generator).sum().backward()
    ours = [p.grad.clone() for p in loss.online.parameters()]
    generator.set_state(state)
    sigma = trigflow.draw_lognormal(x, 0.002, 5.0, log_mean=-1.0, log_std=1.4, generator=generator)
    noisy = x + per_sample(sigma, x) * draw_normal(x, generator)
    _, g = consistency_tangent(loss.online, noisy, sigma, EXACT(noisy, sigma))
    loss.zero_grad()
    # F = -output, so that (F - F_ - g)² pulls the output along -g
    (2 * g * network_output(loss.online, noisy, sigma)).sum(1).div(2).sum().backward()
    assert all(torch.allclose(a, p.grad, atol=1e-5) for a, p in zip(ours, loss.online.parameters()))


def test_the_derivative_comes_in_over_the_warmup():
    loss, found = ContinuousConsistency(small(), warmup=4), []
    for _ in range(7):
        found.append(loss.share)
        loss.after_step()
    assert found == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert ContinuousConsistency(small(), warmup=0).share == 1
    assert ContinuousConsistency(small()).warmup == 10_000


def test_the_levels_follow_their_law(generator):
    loss = ContinuousConsistency(small(), log_mean=-0.4, log_std=0.5)
    loss(batch(4000), generator=generator)
    levels = loss.last_sigma.log()
    assert float(levels.median()) == pytest.approx(-0.4, abs=0.03)
    assert float(levels.std()) == pytest.approx(0.5, abs=0.03)
    assert loss.last_sigma.min() >= 0.002 and loss.last_sigma.max() <= 5.0


def test_teacher_and_network_are_told_the_labels(generator):
    seen = []

    class Told(nn.Module):
        def forward(self, x, sigma, labels=None):
            seen.append(labels)
            return 0 * x

    labels, network = torch.arange(64) % 2, Told()
    network.scale = nn.Parameter(torch.ones(()))
    ContinuousConsistency(plane_model(network), Told())(batch(), labels, generator=generator)
    assert len(seen) == 3 and all(found is labels for found in seen)


def test_a_learned_weight_is_trained_with_it_and_begins_at_1(generator):
    weight = LearnedWeight()
    loss = ContinuousConsistency(small(), EXACT, adaptive=weight)
    plain = ContinuousConsistency(small(), EXACT)
    assert loss.also_trained == (weight,) and plain.also_trained == ()
    state = generator.get_state()
    ours = loss(batch(), generator=generator)
    assert torch.equal(ours, plain(batch(), generator=generator.set_state(state)))
    batches = toy_batches(MOONS, 64, generator=generator)
    *_, state = train(loss, batches, steps=60, lr=1e-2, generator=generator)
    w = weight(torch.linspace(0.1, 1.4, 5))
    assert (w.detach() != 0).all() and not hasattr(state.ema.model, "adaptive")


def test_training_takes_the_exact_network_nowhere(generator):
    """At the truth the tangent of distillation vanishes, so that nothing moves."""

    class Bent(ExactNetwork):
        def __init__(self):
            super().__init__()
            self.bend = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, z, t, labels=None):
            return super().forward(z, t, labels) + self.bend

    loss = ContinuousConsistency(plane_model(Bent()), EXACT, c=None, warmup=0)
    x = batch(16).double()
    loss(x, generator=generator).sum().backward()
    assert loss.online.network.bend.grad.norm() < 1e-4
    loss = ContinuousConsistency(plane_model(Bent()), None, c=None, warmup=0)
    loss(x, generator=generator).sum().backward()
    assert loss.online.network.bend.grad.norm() > 1e-2  # noise, of mean 0


@pytest.mark.parametrize("bad", ["data", "weights", "teacher"])
def test_what_is_not_finite_stops_the_run(bad, generator):
    teacher = (lambda x, sigma, labels=None: x * math.nan) if bad == "teacher" else EXACT
    loss = ContinuousConsistency(small(), teacher)
    if bad == "weights":
        loss.online.network.last.bias.data[0] = math.nan
    x = batch() * (math.nan if bad == "data" else 1)
    before = copy.deepcopy(loss.online.state_dict())
    with pytest.raises(TrainingDiverged, match="ContinuousConsistency is not finite at step 1"):
        next(train(loss, [(x, None)], steps=2, generator=generator))
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(before.values(), loss.online.state_dict().values())
    )


def test_two_workers_draw_what_one_does():
    x, losses = batch(16), []
    for rank, count in ((0, 1), (0, 2), (1, 2)):
        lot = SharedGenerator("cpu", (rank, count)).manual_seed(3)
        loss = ContinuousConsistency(small(), EXACT, adaptive=LearnedWeight())
        losses.append(loss(x.chunk(count)[rank], generator=lot))
    assert torch.allclose(losses[0], torch.cat(losses[1:]), atol=1e-6)


def test_a_checkpoint_restores_the_warmup(tmp_path):
    def begin(seed, **options):
        rng = torch.Generator().manual_seed(seed)
        objective = ContinuousConsistency(small(seed), warmup=16, adaptive=LearnedWeight())
        batches = toy_batches(MOONS, 16, generator=rng)
        return train(objective, batches, steps=16, generator=rng, **options)

    for state in begin(0):
        if state.step == 8:
            save_checkpoint(tmp_path / "last", state)
    (resumed, *rest) = begin(1, resume=load_checkpoint(tmp_path / "last"))
    assert resumed.objective.step == 16 and len(rest) == 7
    assert rest[-1].loss == state.loss


def test_short_training_makes_a_one_step_sampler(generator):
    bench = toy_benchmark("moons")
    loss = ContinuousConsistency(plane_model(MLP(width=64)), EXACT, warmup=50)
    batches = toy_batches(MOONS, 128, generator=generator)
    before = bench.evaluate(sample_one_step(loss.online, bench.noise))
    *_, state = train(loss, batches, steps=200, lr=5e-3, ema_decay=0.95, generator=generator)
    after = bench.evaluate(sample_one_step(state.ema.model, bench.noise))
    assert after["paired_error"] < 0.6 * before["paired_error"] and after["sliced_w2"] < 0.3
    restart = float(sigma_from_angle(torch.tensor(1.1)))
    again = sample_multistep(state.ema.model, bench.noise, [5.0, restart], generator=generator)
    assert again.isfinite().all() and not torch.equal(
        again, state.ema.model(bench.noise * 5, 5 * torch.ones(4000))
    )


class Narrow(nn.Module):
    def forward(self, x, c_noise, labels=None):
        return x[:, :1]


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda: ContinuousConsistency(ConsistencyModel(MLP())), "give trig_model"),
        (lambda: ContinuousConsistency(EDMDenoiser(MLP())), "must be a TrigFlow model"),
        (lambda: ContinuousConsistency(small(), warmup=-1), "warmup is -1"),
        (lambda: ContinuousConsistency(small(), c=0.0), "c 0.0"),
        (
            lambda: ContinuousConsistency(small(), lambda x, s, y=None: x[:1])(batch()),
            "the denoiser's output is",
        ),
        (
            lambda: ContinuousConsistency(plane_model(Narrow()))(batch()),
            "the network's output is",
        ),
        (
            lambda: ContinuousConsistency(small(), adaptive=nn.Identity())(batch()[:, None]),
            "this network takes points",
        ),
    ],
)
def test_bad_input_is_refused(action, sentence):
    with pytest.raises(InputError, match=sentence):
        action()


# What the sweeps run


def test_the_objectives_of_the_sweep(monkeypatch):
    teachers = {}
    for name, c_noise in (("timed_teacher", quarter_log), ("trig_teacher", angle_from_sigma)):
        teachers[c_noise] = plane_model(MLP(), c_noise).requires_grad_(False)
        found = teachers[c_noise], 7.0
        monkeypatch.setattr(lab, name, lambda *args, found=found: found)
    for setting in lab.CHOICES:
        objective, before = lab.trigflow_objective(setting, 0)
        online, teacher = objective.online, teachers[lab.C_NOISE[setting["c_noise"]]]
        assert online.c_noise is teacher.c_noise and objective.c == (setting["c"] or None)
        assert (objective.adaptive is not None) == setting["adaptive"]
        assert objective.warmup == 1000 and (before == 7.0) == (setting["start"] == "denoiser")
        if setting["method"] == "sct":
            assert objective.teacher is None
        else:
            is_exact = type(objective.teacher) is ExactDenoiser
            assert is_exact == (setting["teacher"] == "exact")
            assert is_exact or objective.teacher is teacher
        pairs = [*zip(online.network.parameters(), teacher.network.parameters())]
        assert all(a is not b and a.requires_grad and not b.requires_grad for a, b in pairs)
        is_copy = all(torch.equal(a, b) for a, b in pairs)
        assert is_copy == (setting["start"] == "denoiser")


def test_choices_are_compared_with_the_usual_runs_of_the_same_seeds():
    usual = [{"method": m, "seed": seed} for m in ("scd", "sct") for seed in range(5)]
    choices = [setting | {"seed": seed} for setting in lab.CHOICES for seed in (0, 1)]
    found = lab.choice_rows(usual, choices)
    assert list(found) == ["sCD", "sCT", *lab.CHANGES]
    assert all([row["seed"] for row in rows] == [0, 1] for rows in found.values())
    assert all(
        row["method"] == "sct" for name, rows in found.items() if "sCT" in name for row in rows
    )


def test_the_field_of_the_exact_f_has_no_error():
    bench = toy_benchmark("moons")
    exact = ExactConsistency(bench.exact, sigma_max=5.0)
    assert max(lab.measure_field(exact, bench)["field"]) == 0
    assert lab.RESTART == pytest.approx(0.982, abs=1e-3)
