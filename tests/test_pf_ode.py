"""Grids, steps, solvers, preconditioning, guidance and likelihood of chapter 8."""

import math

import pytest
import torch
from conftest import make_mixture

from consistency_edu.data import InputError, draw_normal
from consistency_edu.ddpm import linear_vp
from consistency_edu.guidance import Guided, LabelDropout, drop_labels
from consistency_edu.pf_ode import (
    Counted,
    EDMDenoiser,
    FromVP,
    ToVP,
    adams_weights,
    ancestral_step,
    check_decreasing,
    diffuse,
    dpm2_step,
    edm_objective,
    euler_step,
    heun_step,
    karras_sigmas,
    log_likelihood,
    slope,
    slope_and_divergence,
    solve_adams,
    solve_pf_ode,
    solve_reverse_sde,
)
from consistency_edu.score import ExactDenoiser

CENTRE = torch.tensor([0.3, -0.2]).double()


def exact_solution(x, start, stop, centre=CENTRE, std=0.5):
    """The ODE's solution for one Gaussian."""
    return centre + (x - centre) * ((std**2 + stop**2) / (std**2 + start**2)) ** 0.5


def test_the_grid_is_the_published_one():
    grid = karras_sigmas(18)
    assert grid[0] == 0.002 and grid[-1] == 80 and (grid.diff() > 0).all() and len(grid) == 18
    assert abs(float(grid[6]) - 0.58535) < 5e-6  # index 11 from the top
    even = karras_sigmas(5, 1.0, 16.0, rho=2.0).sqrt()
    assert torch.allclose(even.diff(), torch.full((4,), 0.75).double())
    single = karras_sigmas(3, dtype=torch.float32)
    assert single.dtype == torch.float32 and single[0] == torch.tensor(0.002)
    for bad in ((1,), (5, 0.0), (5, 2.0, 1.0)):
        with pytest.raises(InputError):
            karras_sigmas(*bad)


@pytest.mark.parametrize("step, order", [(euler_step, 1), (heun_step, 2), (dpm2_step, 2)])
def test_the_error_of_a_step_falls_with_its_order(step, order, normal):
    exact, x = ExactDenoiser(normal), torch.tensor([[1.0, 0.5], [-2.0, 1.0]]).double()

    def at(s):
        return torch.full((2,), s, dtype=torch.float64)

    def error(gap):
        return (step(exact, x, at(1.0), at(1 - gap)) - exact_solution(x, 1.0, 1 - gap)).norm()

    assert abs(float(error(0.004) / error(0.002)) - 2 ** (order + 1)) < 0.1 * 2**order


def test_slopes_point_away_from_the_denoised():
    x, sigma = torch.ones(2, 3), torch.tensor([0.5, 2.0])
    found = slope(lambda x, sigma, labels: 0 * x + labels, x, sigma, 0.25)
    assert torch.allclose(found, 0.75 / sigma[:, None].expand(2, 3))


@pytest.mark.parametrize("solve", [solve_pf_ode, solve_adams])
def test_solvers_scale_the_noise_and_end_at_the_last_level(solve, normal, generator):
    exact = Counted(ExactDenoiser(normal))
    noise = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    path = solve(exact, noise, karras_sigmas(200, 0.01, 10.0).flip(0), return_path=True)
    assert path.shape == (200, 50, 2) and torch.allclose(path[0], 10 * noise)
    assert torch.allclose(path[-1], exact_solution(10 * noise, 10.0, 0.01), atol=1e-3)
    assert exact.evaluations == (398 if solve is solve_pf_ode else 201)
    to_zero = solve(exact, noise, [0.5, 0.0])
    assert torch.allclose(to_zero, exact(0.5 * noise, torch.full((50,), 0.5).double()))
    for bad in ([5.0], [1.0, 2.0], [1.0, -1.0]):
        with pytest.raises(InputError):
            solve(exact, noise, bad)
    given = []
    solve(lambda x, s, labels: given.append(labels) or x, noise, [3.0, 2.0, 1.0], labels="c")
    assert set(given) == {"c"}


def test_zero_is_allowed_only_where_it_is_said():
    with pytest.raises(InputError):
        check_decreasing([1.0, 0.0])
    assert check_decreasing([1.0, 0.0], allow_zero=True).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_adams_has_its_order(order, blobs, generator):
    exact = ExactDenoiser(blobs)
    noise = torch.randn(40, 2, generator=generator, dtype=torch.float64)

    def solve(count):
        return solve_adams(exact, noise, karras_sigmas(count, 0.01, 10.0).flip(0), order=order)

    truth = solve_adams(exact, noise, karras_sigmas(1601, 0.01, 10.0).flip(0))
    errors = [float((solve(n) - truth).norm(dim=1).median()) for n in (101, 201)]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.2
    with pytest.raises(InputError):
        solve_adams(exact, noise, [2.0, 1.0], order=4)


def test_adams_weights_integrate_polynomials():
    nodes, end = torch.tensor([0.5, 1.3, 2.0]).double(), 0.1
    weights = adams_weights(nodes, end)
    for power in range(3):
        whole = (end ** (power + 1) - 0.5 ** (power + 1)) / (power + 1)
        assert abs(float(weights @ nodes**power) - whole) < 1e-12


def test_forward_increments_have_exact_variances(generator):
    sigmas = torch.tensor([0.5, 1.0, 3.0])
    path = diffuse(torch.full((40_000, 1), 2.0), sigmas, generator=generator)
    assert path.shape == (3, 40_000, 1) and abs(path[-1].mean() - 2) < 0.06
    for k, expected in enumerate((0.5, 0.75**0.5, 8**0.5)):
        kick = path[k] - (path[k - 1] if k else 2.0)
        assert abs(kick.std() / expected - 1) < 0.02
    for bad in ([2.0, 1.0], [-1.0, 1.0]):
        with pytest.raises(InputError):
            diffuse(torch.zeros(2, 1), bad)


def test_the_reverse_sde_keeps_a_gaussian(normal, generator):
    exact = ExactDenoiser(normal)
    x = CENTRE.float() + (0.25 + 1.0) ** 0.5 * torch.randn(40_000, 2, generator=generator)
    one, half = torch.ones(40_000), torch.full((40_000,), 0.5)
    denoised = exact(x, one)
    moved = ancestral_step(exact, x, one, half, generator=torch.Generator().manual_seed(2))
    noise = draw_normal(x, torch.Generator().manual_seed(2))
    assert torch.allclose(moved, 0.25 * x + 0.75 * denoised + 0.5 * 0.75**0.5 * noise, atol=1e-5)
    start = (x - CENTRE.float()) * (0.25 + 9) ** 0.5 / 1.25**0.5 + CENTRE.float()
    sigmas = torch.cat([karras_sigmas(80, 0.05, 3.0).flip(0), torch.zeros(1)])
    end = solve_reverse_sde(exact, start / 3, sigmas, generator=generator)
    assert (end.mean(0) - CENTRE).abs().max() < 0.01 and abs(end.std(0).mean() / 0.5 - 1) < 0.05
    again = solve_reverse_sde(exact, start / 3, sigmas, generator=generator, return_path=True)
    assert again.shape == (81, 40_000, 2) and (again[-1] - end).norm(dim=1).median() > 0.2


def test_vp_and_ve_are_one_road(blobs, generator):
    exact, vp = ExactDenoiser(blobs), linear_vp()
    t = torch.linspace(0.05, 1, 30, dtype=torch.float64)
    level, time = lambda t: vp.lam(t).exp(), lambda s: t
    x = torch.randn(30, 2, generator=generator, dtype=torch.float64) * (1 + level(t)[:, None])
    there = FromVP(ToVP(exact, level), time)
    assert torch.allclose(there(x, level(t)), exact(x, level(t)), atol=1e-9)
    z = x * vp.alpha(t)[:, None]
    noise = (z - vp.alpha(t)[:, None] * exact(x, level(t))) / vp.sigma(t)[:, None]
    assert torch.allclose(ToVP(exact, level)(z, t), noise, atol=1e-8)


def test_preconditioning_has_edms_coefficients(generator):
    seen = []
    network = torch.nn.Module()
    network.forward = lambda x, c, labels: seen.append((x, c, labels)) or torch.ones_like(x)
    x, sigma = torch.randn(4, 2, generator=generator), torch.tensor([0.01, 0.5, 2.0, 50.0])
    out = EDMDenoiser(network, 0.5)(x, sigma, "labels")
    s, total = sigma[:, None], (sigma[:, None] ** 2 + 0.25).sqrt()
    assert torch.allclose(seen[0][0], x / total) and torch.allclose(seen[0][1], sigma.log() / 4)
    assert seen[0][2] == "labels"
    assert torch.allclose(out, 0.25 / total**2 * x + s * 0.5 / total, atol=1e-6)


def test_edms_loss_is_one_per_coordinate_for_an_untrained_network(generator):
    network = torch.nn.Module()
    network.forward = lambda x, c, labels: torch.zeros_like(x)
    objective = edm_objective(EDMDenoiser(network, 0.5))
    x = 0.5 * torch.randn(40_000, 2, generator=generator)
    loss, levels = objective(x, generator=generator), objective.last_sigma.log()
    assert abs(levels.mean() + 1.2) < 0.03 and abs(levels.std() - 1.2) < 0.03
    for part in (levels < -2, levels > 0):
        assert abs(loss[part].mean() / 2 - 1) < 0.06


def test_labels_are_dropped_with_their_probability(generator):
    labels = torch.arange(4).repeat(5000)
    kept = drop_labels(labels, 4, 0.3, generator)
    assert abs((kept == 4).float().mean() - 0.3) < 0.02
    assert torch.equal(kept[kept != 4], labels[kept != 4])
    with pytest.raises(InputError):
        drop_labels(labels, 4, 1.5)
    told, steps = [], []
    inner = torch.nn.Module()
    inner.online, inner.after_step = torch.nn.Linear(1, 1), lambda: steps.append(1)
    inner.forward = lambda x, labels, generator=None: told.append(labels) or x[:, 0]
    objective = LabelDropout(inner, 4, 1.0)
    assert objective(torch.zeros(8, 1), labels[:8], generator=generator).shape == (8,)
    assert (told[0] == 4).all() and objective.online is inner.online
    objective.after_step()
    assert steps == [1]
    del inner.after_step
    LabelDropout(inner, 4).after_step()


def test_guidance_pushes_from_the_negative_to_the_class():
    answers = {None: 1.0, 0: 10.0, 1: 3.0}

    def denoiser(x, sigma, labels):
        return 0 * x + answers[None if labels is None else int(labels[0])]

    x, sigma, zero = torch.zeros(2, 1), torch.ones(2), torch.zeros(2, dtype=torch.int64)

    def ask(labels, *options):
        return float(Guided(denoiser, *options)(x, sigma, labels)[0])

    assert ask(zero, 1.0) == 10 and ask(zero, 0.0) == 1 and ask(zero, 3.0) == 1 + 3 * 9
    assert ask(zero, 2.0, 1) == 3 + 2 * 7 and ask(None, 5.0) == 1


def test_divergence_and_likelihood_are_the_known_ones(normal, generator):
    exact = ExactDenoiser(normal)
    x = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    sigma = torch.full((30,), 0.7).double()
    velocity, growth = slope_and_divergence(exact, x, sigma)
    assert torch.allclose(velocity, slope(exact, x, sigma))
    assert torch.allclose(growth, torch.full((30,), 2 * 0.7 / (0.25 + 0.49)).double())
    x = CENTRE + 0.5 * x
    found = log_likelihood(exact, x, karras_sigmas(200, 0.05, 40.0))
    assert (found - normal.log_density(x, 0.05)).abs().max() < 0.03
    narrow = make_mixture([[0.0, 0.0, 0.0]], [0.2])
    x = 0.2 * torch.randn(9, 3, generator=generator, dtype=torch.float64)
    found = log_likelihood(ExactDenoiser(narrow), x, karras_sigmas(200, 0.02, 40.0))
    assert (found - narrow.log_density(x, 0.02)).abs().max() < 0.03
    with pytest.raises(InputError):
        log_likelihood(exact, x, [2.0, 1.0])


def test_a_likelihood_leaves_its_points_as_they_were(normal, generator):
    exact, sigma = ExactDenoiser(normal), torch.full((5,), 0.7).double()
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    plain = slope_and_divergence(exact, x, sigma)
    assert not x.requires_grad
    graph = slope_and_divergence(exact, (2 * x.requires_grad_()) / 2, sigma)
    for a, b in zip(plain, graph):
        assert torch.allclose(a, b) and not b.requires_grad
