"""Average velocities: every identity of the exact ones, what the loss is made of, and the model."""

import math
import statistics

import pytest
import torch
from torch import nn

from consistency_edu.consistency import ExactConsistency
from consistency_edu.data import draw_normal, draw_points, per_sample, toy
from consistency_edu.dropout import Dropout
from consistency_edu.experiments import meanflow as lab
from consistency_edu.files import InputError
from consistency_edu.meanflow import (
    ExactFlowMap,
    FlowMap,
    MeanFlow,
    MeanFlowModel,
    change_along,
    flow_time,
    flow_velocity,
    noise_level,
    sample_flow_map,
)
from consistency_edu.networks import MLP, UNet
from consistency_edu.pf_ode import EDMDenoiser, slope
from consistency_edu.sampling import sample_multistep, sample_one_step
from consistency_edu.score import ExactDenoiser
from consistency_edu.training import TrainingDiverged, train

MOONS = toy("moons")
EXACT = ExactDenoiser(MOONS)
U = ExactFlowMap(EXACT, sigma_max=5.0, steps=48)


def data(count=256):
    return draw_points(MOONS, count, generator=torch.Generator().manual_seed(0))[0]


def setting(count=48, seed=0):
    """Points z at times t in [.05, .83], and times r below them, in float64."""
    lot = torch.Generator().manual_seed(seed)
    x = data(count).double()
    t, share = (torch.rand(count, generator=lot, dtype=torch.float64) for _ in range(2))
    t = 0.05 + 0.78 * t
    return torch.lerp(x, draw_normal(x, lot), t[:, None]), t * (0.02 + 0.9 * share), t


@pytest.fixture(scope="module")
def truth():
    """z, r, t, the exact u there, v, and t - r as a column."""
    z, r, t = setting()
    return z, r, t, U.velocity(z, r, t), flow_velocity(EXACT, z, t), (t - r)[:, None]


def along(z, r, t, *rates):
    """The change of the exact u, as z, r and t change at these `rates`."""
    return torch.func.jvp(U.velocity, (z, r, t), rates)[1]


def middle(x):
    return float(x.detach().abs().median())


def slopes(values, sizes):
    """The slopes of `values` over `sizes`, both on log axes."""
    pairs = list(zip(values, sizes))
    return [math.log(a / c) / math.log(b / d) for (a, b), (c, d) in zip(pairs[:-1], pairs[1:])]


# ------------------------------------------------------------------ the exact identities


def test_times_and_levels_are_inverse_and_z_is_a_straight_mixture():
    sigma = torch.tensor([0.0, 0.002, 1.0, 80.0]).double()
    assert torch.allclose(noise_level(flow_time(sigma)), sigma)
    assert flow_time(sigma).tolist() == pytest.approx([0, 0.002 / 1.002, 0.5, 80 / 81])
    x, e, t = data(8), torch.randn(8, 2), torch.full((8,), 0.3)
    noisy = x + noise_level(t)[:, None] * e
    z = 0.7 * x + 0.3 * e
    assert torch.allclose(z, noisy / (1 + noise_level(t))[:, None])


def test_the_velocity_is_the_slope_of_the_path(truth):
    z, _, t, _, v, _ = truth
    h = torch.full_like(t, 1e-4)
    difference = (U.move(z, t + h, t) - U.move(z, t - h, t)) / 2e-4
    assert middle(difference - v) < 1e-7 and middle(v) > 0.2
    sigma = noise_level(t)
    x = z * (1 + sigma)[:, None]  # dz/dt = (1 + sigma) dx/dsigma - x
    chain = (1 + sigma)[:, None] * slope(EXACT, x, sigma) - x
    assert torch.allclose(v, chain, atol=1e-10)


def test_the_exact_map_is_the_solution_of_the_ode(truth):
    z, r, t, u, _, gap = truth
    end = U.move(z, r, t)
    assert torch.equal(end, z - gap * u)
    steps = 1000  # plain midpoint steps, even in t
    moved, h = z, (r - t) / steps
    for k in range(steps):
        now = t + k * h
        half = moved + h[:, None] / 2 * flow_velocity(EXACT, moved, now)
        moved = moved + h[:, None] * flow_velocity(EXACT, half, now + h / 2)
    assert middle(moved - end) < 1e-5 and (moved - end).abs().max() < 0.01


def test_the_meanflow_identity(truth):
    z, r, t, u, v, gap = truth
    zero, one = torch.zeros_like(r), torch.ones_like(r)
    found, change = change_along(U, z, r, t, v)
    assert torch.equal(found, u)
    error = u - (v - gap * change)
    assert middle(error) < 1e-8 and error.abs().max() < 1e-3
    wrong = {
        "sign": v + gap * change,
        "r moves": v - gap * along(z, r, t, v, one, one),
        "z stays": v - gap * along(z, r, t, 0 * v, zero, one),
    }
    assert all(middle(u - goal) > 0.05 for goal in wrong.values())


def test_the_other_end_of_the_step(truth):
    z, r, t, u, _, gap = truth
    by_r = along(z, r, t, 0 * z, torch.ones_like(r), torch.zeros_like(r))
    arrival = flow_velocity(EXACT, U.move(z, r, t), r)
    error = u - gap * by_r - arrival
    assert middle(error) < 1e-8 and middle(u + gap * by_r - arrival) > 0.05


def test_short_steps_go_at_the_velocity(truth):
    z, _, t, _, v, _ = truth
    gaps = (1e-1, 1e-2, 1e-3)
    errors = [middle(U.velocity(z, t - g * t, t) - v) for g in gaps]
    assert slopes(errors, gaps) == pytest.approx([1, 1], abs=0.1)
    assert torch.allclose(U.velocity(z, t, t), v, atol=1e-12)  # and at r = t


def test_steps_add_up(truth):
    z, r, t, u, _, gap = truth
    for share in (0.5, 0.2):  # one half: the shortcut identity
        s = r + share * (t - r)
        there = U.move(z, s, t)
        first, second = U.velocity(z, s, t), U.velocity(there, r, s)
        total = (t - s)[:, None] * first + (s - r)[:, None] * second
        assert middle(gap * u - total) < 1e-8
        assert middle(gap * u - (t - s)[:, None] * first - (s - r)[:, None] * first) > 0.002
        stay = (s - r)[:, None] * U.velocity(z, r, s)
        assert middle(gap * u - (t - s)[:, None] * first - stay) > 0.002


def test_the_one_step_end_is_the_consistency_function():
    z, _, t = setting()
    x, sigma = z / (1 - t)[:, None], noise_level(t)
    exact = ExactFlowMap(EXACT, sigma_max=5.0, steps=128)
    errors = []
    for low in (0.02, 0.002, 0.0002):
        f = ExactConsistency(EXACT, sigma_min=low, sigma_max=5.0, steps=128)
        errors.append(float((exact(x, sigma) - f(x, sigma)).abs().max()))
    assert slopes(errors, (0.02, 0.002, 0.0002)) == pytest.approx([2, 2], abs=0.1)
    assert errors[1] < 1e-4
    assert torch.allclose(exact(x, sigma), z - t[:, None] * exact.velocity(z, 0 * t, t))


def posterior(z, t, draws, lot):
    """Draws of x0 given z, `[draws, 2]`."""
    sigma = noise_level(t)
    x = z / (1 - t)[:, None]
    gamma, _ = EXACT.posterior(x, sigma)
    k = torch.multinomial(gamma[0], draws, replacement=True, generator=lot)
    width = MOONS.stds[k, None].square()
    share = width / (width + sigma**2)
    mean = MOONS.means[k] + share * (x - MOONS.means[k])
    return mean + (share * sigma**2).sqrt() * draw_normal(mean, lot)


def test_the_goal_from_data_is_right_in_the_mean(generator):
    """The tangent e - x0 differs from draw to draw; du/dt is linear in it."""
    z, r, t = setting(24, seed=3)
    gap, still, one = (t - r)[:, None], torch.zeros_like(t), torch.ones_like(t)
    east, north = torch.eye(2).double()[:, None].expand(2, 24, 2)
    by_z = torch.stack([along(z, r, t, way, still, still) for way in (east, north)], 1)
    by_t, u = along(z, r, t, 0 * z, still, one), U.velocity(z, r, t)
    mean, scores, shares = flow_velocity(EXACT, z, t), [], []
    for k in range(24):
        clean = posterior(z[k : k + 1], t[k : k + 1], 4000, generator)
        v = (z[k] - clean) / t[k]  # e - x0
        for tangent in (v, mean[k : k + 1]):
            goals = v - gap[k] * (tangent @ by_z[k] + by_t[k])
            scores.append((goals.mean(0) - u[k]) / goals.std(0) * 4000**0.5)
            shares.append(float(goals.var(0).sum() / v.var(0).sum()))
    assert torch.stack(scores).abs().max() < 4.5
    assert 0.5 < statistics.median(shares[::2]) < 1  # MeanFlow's goals scatter less than e - x0
    assert shares[1::2] == pytest.approx([1] * 24)  # iMF's as much


def test_improved_meanflows_sum_is_the_velocity(truth):
    z, r, t, u, v, gap = truth
    _, change = change_along(U, z, r, t, U.velocity(z, t, t))
    assert middle(u + gap * change - v) < 1e-8


class Curved(FlowMap):
    """A smooth u that satisfies no identity."""

    def velocity(self, z, r, t, labels=None):
        r, t = r[:, None], t[:, None]
        return torch.sin(2 * z + t - r**2) + r * t * z.flip(1)


def test_alpha_flow_tends_to_meanflow(truth):
    """Goal alpha v + (1 - alpha) u(z - (t - s) v, r, s) with s = alpha r + (1 - alpha) t."""
    z, r, t, _, v, gap = truth
    alphas = (1e-1, 1e-2, 1e-3)

    def residual(model, a):
        s = a * r + (1 - a) * t
        goal = a * v + (1 - a) * model.velocity(z - (t - s)[:, None] * v, r, s)
        return (model.velocity(z, r, t) - goal) / a

    curved = Curved()
    u, change = change_along(curved, z, r, t, v)
    limit = u - (v - gap * change)
    errors = [middle(residual(curved, a) - limit) for a in alphas]
    assert slopes(errors, alphas) == pytest.approx([1, 1], abs=0.06) and middle(limit) > 0.1
    errors = [middle(residual(U, a)) for a in alphas]
    assert slopes(errors, alphas) == pytest.approx([1, 1], abs=0.3)
    at_once = curved.velocity(z, r, t) - v  # alpha = 1: s = r, plain flow matching
    assert torch.allclose(residual(curved, 1.0), at_once)


def test_ctm_is_meanflow_in_sigma():
    """G(x, t, s) = (s/t) x + (1 - s/t) g: g is x - t times the mean slope between the levels."""
    z, r, t = setting()
    low, high = noise_level(r)[:, None], noise_level(t)[:, None]
    x = z * (1 + high)

    def jump(x, s, t):
        return U.move(x / (1 + t), flow_time(s)[:, 0], flow_time(t)[:, 0]) * (1 + s)

    def g(x, s, t):
        return (jump(x, s, t) - s / t * x) / (1 - s / t)

    mean_slope = (x - jump(x, low, high)) / (high - low)
    assert torch.allclose(g(x, low, high), x - high * mean_slope, atol=1e-10)
    between = (low * high).sqrt()
    twice = jump(jump(x, between, high), low, between)
    assert middle(twice - jump(x, low, high)) < 1e-8
    gaps = (1e-1, 1e-2, 1e-3)
    denoised = EXACT(x, high[:, 0])
    errors = [middle(g(x, high * (1 - a), high) - denoised) for a in gaps]
    assert slopes(errors, gaps) == pytest.approx([1, 1], abs=0.15)


# ------------------------------------------------------------------ the model


def model(seed=0, **options):
    torch.manual_seed(seed)
    network = MLP(width=16, depth=2, use_gap=True, **options)
    return MeanFlowModel(network, sigma_max=5.0)


def heard(online, size=0.3):
    """`online` with a gap that it hears."""
    nn.init.normal_(online.network.embed_gap.mix.weight, std=size)
    return online


def test_a_fresh_model_goes_at_the_velocity_of_the_denoiser_with_its_weights():
    online = model().double()
    z, r, t = setting()
    for data_spread in (0.5, 1.3):
        online.sigma_data = data_spread
        denoiser = EDMDenoiser(lambda *args: online.network(*args), data_spread)
        v = flow_velocity(denoiser, z, t)
        for other in (r, 0 * r, t):
            assert torch.allclose(online.velocity(z, other, t), v, atol=1e-9)
    heard(online)
    assert middle(online.velocity(z, r, t) - online.velocity(z, t, t)) > 1e-3


def test_the_network_sees_unit_spread_the_level_and_the_gap(generator):
    seen = []

    class Witness(nn.Module):
        def forward(self, z, c_noise, labels, gap):
            seen.append((z, c_noise, labels, gap))
            return torch.ones_like(z)

    online = MeanFlowModel(Witness(), sigma_data=0.5)
    t, r = torch.full((40_000,), 0.3), torch.full((40_000,), 0.1)
    x = 0.5 * draw_normal(torch.empty(40_000, 2), generator)
    noise, labels = draw_normal(x, generator), torch.arange(40_000)
    z = torch.lerp(x, noise, per_sample(t, x))
    u = online.velocity(z, r, t, labels)
    (inside, c_noise, told, gap) = seen[0]
    assert inside.std() == pytest.approx(1, abs=0.01) and told is labels
    assert torch.allclose(c_noise, (t / (1 - t)).log() / 4) and torch.allclose(gap, t - r)
    skip = (u[0, 0] - u[1, 0]) / (z[0, 0] - z[1, 0])
    rest = (noise - x) - skip * z  # what the network has to learn at r = t: unit spread, too
    assert (rest / (skip * z - u)[0, 0]).std() == pytest.approx(1, abs=0.01)
    assert (rest * z).mean().abs() < 0.01  # and nothing that z tells linearly


def test_an_ordinary_one_step_student(generator):
    online, noise = heard(model()), draw_normal(torch.empty(64, 2), generator)
    one = sample_one_step(online, noise)
    assert torch.allclose(one, sample_flow_map(online, noise), atol=1e-6)
    top = 5 / 6
    z, t = top * noise, torch.full((64,), top)
    with torch.no_grad():
        assert torch.allclose(one, z - top * online.velocity(z, 0 * t, t), atol=1e-6)
    two = sample_multistep(online, noise, [5.0, 0.35], generator=generator)
    assert two.shape == noise.shape and not torch.allclose(one, two)


def test_many_steps_of_the_exact_map_end_where_one_does(generator):
    noise = draw_normal(torch.empty(32, 2).double(), generator)
    path = sample_flow_map(U, noise, 4, return_path=True)
    assert path.shape == (5, 32, 2) and torch.equal(path[0], 5 / 6 * noise)
    one = sample_flow_map(U, noise)
    assert middle(path[-1] - one) < 1e-6 and torch.equal(one, sample_flow_map(U, noise, 1))
    asked = []

    class Asked(Curved):
        def velocity(self, z, r, t, labels=None):
            asked.append((float(r[0]), float(t[0]), labels))
            return z

    labels = torch.arange(32)
    end = sample_flow_map(Asked(sigma_max=5.0), noise, 2, labels=labels)
    assert [a[:2] for a in asked] == [pytest.approx((5 / 12, 5 / 6)), pytest.approx((0, 5 / 12))]
    assert all(a[2] is labels for a in asked)
    assert torch.allclose(end, 5 / 6 * noise * (1 - 5 / 12) ** 2)


# ------------------------------------------------------------------ the loss


def test_the_law_of_the_two_times(generator):
    loss = MeanFlow(model(), share=0.25)
    r, t = loss.times(torch.empty(100_000, 2), generator)
    assert (r <= t).all() and torch.allclose(noise_level(t), loss.last_sigma, rtol=1e-4)
    low, high = noise_level(r), noise_level(t)
    assert high.min() >= 0.002 * (1 - 1e-5) and high.max() <= 5 * (1 + 1e-5)
    same = r == t
    assert same.double().mean() == pytest.approx(0.25, abs=0.006)
    assert ((low == 0) | (low > 0.0019)).all() and 0.01 < (low == 0).double().mean() < 0.05
    mixed = torch.cat([low, high])[torch.cat([~same, ~same])]
    cut = torch.special.ndtr(torch.tensor((math.log(5) + 2) / 2))
    for level in (0.05, 0.3, 1.0):  # both ends together are the plain law, cut at the top
        share = torch.special.ndtr(torch.tensor((math.log(level) + 2) / 2)) / cut
        assert (mixed < level).double().mean() == pytest.approx(float(share), abs=0.006)
    for share, expected in ((0.0, 0.0), (1.0, 1.0)):
        loss.share = share
        r, t = loss.times(torch.empty(5000, 2), generator)
        assert (r == t).double().mean() == pytest.approx(expected, abs=2e-3)


def fixed(loss, r, t):
    """`loss` with the times given."""
    loss.times = lambda x, generator: (r, t)
    return loss


@pytest.mark.parametrize("kind", ["data", "own", "teacher", "teacher and own"])
def test_the_loss_is_what_the_paper_says(kind, generator):
    teacher = EXACT if "teacher" in kind else None
    online = heard(model()).double()
    loss = MeanFlow(online, teacher, use_own_tangent="own" in kind, power=0.75, eps=1e-3)
    x, t = data(64).double(), setting(64)[2]
    r = setting(64)[1]
    found = fixed(loss, r, t)(x, generator=generator.manual_seed(5))
    noise = draw_normal(x, generator.manual_seed(5))
    z = (1 - t)[:, None] * x + t[:, None] * noise
    v = flow_velocity(EXACT, z, t) if teacher else noise - x
    tangent = online.velocity(z, t, t) if "own" in kind else v
    h = 1e-5
    later, before = (online.velocity(z + s * tangent, r, t + s).detach() for s in (h, -h))
    goal = v - (t - r)[:, None] * (later - before) / (2 * h)
    error = (online.velocity(z, r, t) - goal).square().sum(1)
    weight = (error.detach() + 1e-3) ** -0.75
    assert torch.allclose(found, weight * error, rtol=1e-6)
    parameters = list(online.parameters())
    ours = torch.autograd.grad(found.mean(), parameters)
    theirs = torch.autograd.grad(
        (weight * (online.velocity(z, r, t) - goal.detach()).square().sum(1)).mean(), parameters
    )
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(ours, theirs))


def test_where_the_times_agree_it_is_flow_matching(generator):
    online, x = heard(model()), data(64)
    t = torch.rand(64, generator=generator) * 0.8 + 0.01
    for own in (False, True):
        loss = fixed(MeanFlow(online, use_own_tangent=own), t, t)
        found = loss(x, generator=generator.manual_seed(5))
        noise = draw_normal(x, generator.manual_seed(5))
        z = torch.lerp(x, noise, t[:, None])
        plain = (online.velocity(z, t, t) - (noise - x)).square().sum(1)
        assert torch.allclose(found, plain, atol=1e-5)


def test_the_exact_map_has_no_loss_with_its_own_velocity():
    loss = MeanFlow(U, EXACT)
    z, r, t = setting(64)
    x = data(64).double()
    found = fixed(loss, r, t)(x, generator=torch.Generator().manual_seed(0))
    assert found.median() < 1e-15
    assert fixed(MeanFlow(U), r, t)(x).median() > 0.1  # the goals from data scatter


def test_labels_reach_network_and_teacher(generator):
    asked, labels = [], torch.arange(64) % 2

    def teacher(x, sigma, told=None):
        asked.append(told)
        return EXACT(x, sigma)

    online = model(num_classes=2)
    online.network.register_forward_pre_hook(lambda _, args: asked.append(args[2]))
    MeanFlow(online, teacher, use_own_tangent=True)(data(64), labels, generator=generator)
    assert len(asked) == 4 and all(told is labels for told in asked)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_number_ends_the_run_and_names_its_level(bad):
    rows = data(8)
    rows[3, 0] = bad
    loss, lot = MeanFlow(model()), torch.Generator().manual_seed(0)
    before = [p.clone() for p in loss.online.parameters()]
    with pytest.raises(TrainingDiverged, match="MeanFlow .* 1 of 8 .* levels from") as found:
        next(train(loss, [(rows, None)], steps=1, generator=lot))
    assert f"{float(loss.last_sigma[3]):.4g}" in str(found.value)
    assert all(torch.equal(a, b) for a, b in zip(before, loss.online.parameters()))


@pytest.mark.parametrize("own", [False, True])
def test_no_gradient_reaches_the_goal_or_a_teacher(own, generator):
    torch.manual_seed(1)
    teacher, online = EDMDenoiser(MLP(width=16)), heard(model())
    loss = MeanFlow(online, teacher, use_own_tangent=own)
    loss(data(64), generator=generator).mean().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.norm() > 0 for p in online.parameters())


# ------------------------------------------------------------------ forward mode


def unet(**options):
    torch.manual_seed(0)
    network = UNet(width=8, use_gap=True, **options)
    for p in network.parameters():
        if not p.any():
            p.data = 0.1 * torch.randn_like(p)
    return MeanFlowModel(network)


def images(count=4):
    lot = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 8, 8, generator=lot), *(
        torch.tensor(times) for times in ([0.1, 0.2, 0.0, 0.5], [0.3, 0.9, 0.5, 0.5])
    )


def test_forward_mode_through_the_unet_agrees_with_differences():
    online = unet().double()
    z, r, t = (v.double() for v in images())
    v, h = torch.randn_like(z), 1e-5
    u, change = change_along(online, z, r, t, v)
    later, before = (online.velocity(z + s * v, r, t + s) for s in (h, -h))
    assert torch.allclose(u, online.velocity(z, r, t))
    assert torch.allclose(change, (later - before) / (2 * h), atol=1e-6)


def test_it_is_never_computed_in_16_bits_and_the_setting_comes_back():
    online, seen = unet(precision=torch.bfloat16), []
    online.network.first.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    z, r, t = images()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        u, change = change_along(online, z, r, t, torch.randn_like(z))
    assert seen == [torch.float32] and online.network.precision == torch.bfloat16
    exact = unet()
    assert torch.allclose(u, exact.velocity(z, r, t), atol=1e-4)
    assert u.dtype == change.dtype == torch.float32
    with pytest.raises(InputError):
        change_along(online, z, r, t[:3], torch.randn_like(z))
    assert online.network.precision == torch.bfloat16


def test_one_pass_gives_u_and_its_change_with_the_same_dropout(generator):
    online, masks = unet(dropout=0.4).train(), {}
    for place, layer in enumerate(p for p in online.modules() if isinstance(p, Dropout)):
        layer.register_forward_hook(
            lambda _, args, out, place=place: masks.setdefault(place, []).append(out == 0)
        )
    MeanFlow(online, use_own_tangent=True)(images()[0], generator=generator)
    assert masks and all(len(rows) == 2 for rows in masks.values())
    assert all(torch.equal(*rows) for rows in masks.values())
    masks.clear()
    MeanFlow(online)(images()[0], generator=generator)
    assert all(len(rows) == 1 for rows in masks.values())


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda: MeanFlow(model(), share=1.5), r"share must be in \[0, 1\]"),
        (lambda: MeanFlow(model(), power=-1), "power at least 0"),
        (lambda: MeanFlow(model(), eps=0.0), "power at least 0 and eps above 0"),
        (lambda: sample_flow_map(model(), torch.zeros(2, 2), 0), "at least one"),
        (lambda: MeanFlowModel(MLP(use_gap=True), sigma_data=0), "sigma_data"),
        (lambda: MeanFlowModel(MLP(use_gap=True), sigma_min=5, sigma_max=1), "sigma_min"),
        (lambda: sample_one_step(MeanFlowModel(MLP()), torch.zeros(2, 2)), "use_gap=True"),
    ],
)
def test_bad_input_is_refused(action, sentence):
    with pytest.raises(InputError, match=sentence):
        action()


# ------------------------------------------------------------------ what the sweeps run


def test_the_objectives_of_the_sweeps():
    settings = [*lab.MEANFLOW.values(), *lab.MEANFLOW_SWEEPS["meanflow_more"].settings]
    for choices in settings:
        objective, before = lab.build_run(choices | {"steps": 5}, 0)
        assert type(objective) is MeanFlow and objective.power == choices.get("power", 0.0)
        assert objective.use_own_tangent == choices.get("own", False)
        taught = {"data": type(None), "exact": ExactDenoiser, "learned": EDMDenoiser}
        assert type(objective.teacher) is taught[choices["velocity"]]
        assert (before > 0) == (choices["start"] or choices["velocity"] == "learned")
        assert objective.online.sigma_max == 5.0


def test_a_run_from_a_denoiser_starts_with_its_velocity_and_leaves_it_alone():
    objective, _ = lab.build_run({"velocity": "learned", "start": True, "steps": 5}, 0)
    z, r, t = (v.float() for v in setting())
    with torch.no_grad():
        ours, theirs = objective.online.velocity(z, r, t), flow_velocity(objective.teacher, z, t)
        for p in objective.online.parameters():
            p.add_(1.0)
        again = flow_velocity(objective.teacher, z, t)
    assert torch.allclose(ours, theirs, atol=1e-3) and torch.equal(again, theirs)


def test_errors_are_distances_to_the_exact_ends():
    x, ends = (v[:100] for v in lab.noisy_points("moons", 0.35))

    def shifted(x, sigma):
        return ends + torch.tensor([0.03, 0.04])

    assert torch.allclose(lab.errors_at(shifted, x, ends, 0.35), torch.tensor(0.05), atol=1e-5)
    assert lab.errors_at(U, x, ends, 0.35).median() < 1e-4


def test_a_field_lies_row_by_row_from_below():
    f = ExactConsistency(lab.toy_benchmark("moons").exact, sigma_max=5.0)

    def off_to_the_right(x, sigma):
        return f(x, sigma) + x.clamp(min=0) * torch.tensor([0.1, 0.0])

    errors = lab.error_field(off_to_the_right, "moons", 0.35, 2.0, 3)
    assert torch.allclose(errors, torch.tensor([0.0, 0.0, 0.2]).repeat(3), atol=1e-6)
