"""What can be exact is exact: identities in float64, fixtures, orders of convergence."""

import math

import pytest
import torch

from consistency_edu import sampling
from consistency_edu.consistency import (
    ConsistencyModel,
    ExactConsistency,
    naive_coefficients,
    skip_coefficients,
)
from consistency_edu.consistency_training import num_points, target_decay
from consistency_edu.data import TOYS, draw_normal, draw_points, toy
from consistency_edu.distillation import ConsistencyDistillation
from consistency_edu.metrics import energy_test
from consistency_edu.networks import MLP
from consistency_edu.pf_ode import euler_step, heun_step, karras_sigmas, solve_pf_ode
from consistency_edu.sampling import sample_multistep
from consistency_edu.score import ExactDenoiser, score_from_denoised

DOWN = karras_sigmas(18).flip(0)


def slope(errors, sizes):
    """The slope of log error against log size, between each two neighbours."""
    errors, sizes = torch.as_tensor(errors).double(), torch.as_tensor(sizes).double()
    return errors.log().diff() / sizes.log().diff()


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("level", [1e-3, 0.05, 1.0, 100.0])
def test_score_is_the_gradient_of_the_log_density(name, level, generator):
    mixture = toy(name)
    x = draw_points(mixture, 100, generator=generator)[0].double()
    x = (x + level * draw_normal(x, generator)).requires_grad_()
    truth = torch.autograd.grad(mixture.log_density(x, level).sum(), x)[0]
    denoiser, sigma = ExactDenoiser(mixture), torch.full((100,), level, dtype=torch.float64)
    x = x.detach()
    assert (denoiser.score(x, sigma) - truth).norm() < 1e-8 * truth.norm()
    by_tweedie = score_from_denoised(denoiser(x, sigma), x, sigma)
    assert (by_tweedie - truth).norm() < 1e-8 * truth.norm()


@pytest.mark.parametrize("level", [1e-3, 0.05, 1.0, 100.0])
def test_finite_set_denoiser_is_a_softmax_average(level, generator):
    points = torch.randn(50, 3, generator=generator).double()
    x = points[:20] + level * torch.randn(20, 3, generator=generator).double()
    logits = torch.stack([-(p - x).square().sum(1) / (2 * level**2) for p in points], 1)
    expected = torch.stack([w @ points for w in logits.softmax(1)])
    denoiser = ExactDenoiser.of_points(points)
    found = denoiser(x, torch.full((20,), level, dtype=torch.float64))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    single = denoiser(x.float(), torch.full((20,), level))
    assert single.dtype == torch.float32 and single.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("coefficients", [skip_coefficients, naive_coefficients])
def test_boundary_holds_bit_for_bit(coefficients, dtype, generator):
    x = torch.randn(100, 2, generator=generator, dtype=dtype)
    for sigma_min in (0.002, 0.01, 0.3):
        lowest = karras_sigmas(7, sigma_min, 5.0, dtype=dtype)[0].expand(100)
        ends = {"sigma_min": sigma_min, "sigma_max": 5.0}
        model = ConsistencyModel(MLP().to(dtype), coefficients=coefficients, **ends)
        assert torch.equal(model(x, lowest), x)
        c_skip, c_out = skip_coefficients(lowest, sigma_min, 0.5)
        assert (c_skip == 1).all() and (c_out == 0).all()


def test_skip_coefficients_against_the_paper():
    sigma = torch.tensor([0.5, 2.0]).double()
    c_skip, c_out = skip_coefficients(sigma, 0.002, 0.5)
    assert torch.allclose(c_skip, 0.25 / ((sigma - 0.002) ** 2 + 0.25), rtol=1e-14)
    assert torch.allclose(c_out, 0.5 * (sigma - 0.002) / (0.25 + sigma**2).sqrt(), rtol=1e-14)


def test_grids_match_the_published_values():
    fixtures = {(11, 18): 0.5853481231945422, (22, 40): 1.3823679566485092}
    fixtures |= {(16, 40): 5.380004445858736, (20, 40): 2.2404397589312026}
    for (index, count), sigma in fixtures.items():  # indices count from the noisy end
        assert float(karras_sigmas(count).flip(0)[index]) == pytest.approx(sigma, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 3, 18, 151, 1281])
def test_grids_ascend_and_pin_their_ends(count, dtype):
    grid = karras_sigmas(count, dtype=dtype)
    assert (grid.diff() > 0).all() and len(grid) == count
    assert torch.equal(grid[[0, -1]], torch.tensor([0.002, 80.0], dtype=dtype))


@pytest.mark.parametrize(("step", "order"), [(euler_step, 1), (heun_step, 2)])
def test_global_order_of_the_solvers(step, order, blobs, generator):
    noise, denoiser = torch.randn(300, 2, generator=generator).double(), ExactDenoiser(blobs)
    ends = ExactConsistency(denoiser, steps=400)(80 * noise, torch.full((300,), 80.0).double())
    counts = [72, 144, 288, 576]
    errors = []
    for count in counts:
        found = solve_pf_ode(denoiser, noise, karras_sigmas(count).flip(0), step=step)
        errors.append((found - ends).norm(dim=1).median())
    slopes = slope(errors, [n - 1 for n in counts])
    assert (slopes + order).abs().max() < 0.15, slopes


def test_exact_consistency_against_the_closed_form(normal, generator):
    centre, spread = normal.means, 0.25
    sigma = torch.logspace(math.log10(0.002), math.log10(80), 100).double().clamp(0.002, 80)
    z = torch.randn(100, 2, generator=generator).double()
    x = centre + (0.25 + sigma**2).sqrt()[:, None] * z
    factor = ((spread + 0.002**2) / (spread + sigma**2)).sqrt()[:, None]
    truth = centre + factor * (x - centre)
    found = ExactConsistency(ExactDenoiser(normal), steps=256)(x, sigma)
    assert (found - truth).norm() < 1e-8 * truth.norm()


def test_exact_consistency_is_constant_along_paths(generator):
    moons = toy("moons")
    f = ExactConsistency(ExactDenoiser(moons), sigma_max=5.0, steps=200)
    noise = torch.randn(100, 2, generator=generator).double()
    levels = karras_sigmas(400, 0.002, 5.0).flip(0)
    path = solve_pf_ode(f.denoiser, noise, levels, return_path=True)
    for k in (0, 150, 300, 399):
        gap = (f(path[k], levels[k].expand(100)) - path[-1]).norm(dim=1)
        assert gap.median() < 1e-4


@pytest.mark.parametrize(("solver", "order"), [(euler_step, 1), (heun_step, 2)])
def test_exact_consistency_has_no_distillation_loss(solver, order, blobs, generator):
    """Up to the local error of one step, which falls one order faster than the global one."""
    f = ExactConsistency(ExactDenoiser(blobs), sigma_max=5.0, steps=64)
    x = draw_points(blobs, 500, generator=generator)[0].double()
    counts, errors = [37, 73, 145], []
    for count in counts:
        objective = ConsistencyDistillation(
            f,
            f.denoiser,
            karras_sigmas(count, 0.002, 5.0),
            solver=solver,
            distance=lambda a, b: (a - b).norm(dim=1),
            weight=lambda low, high: torch.ones_like(high),
        )
        errors.append(objective(x, generator=torch.Generator().manual_seed(1)).median())
    assert abs(float(slope(errors, [n - 1 for n in counts])[-1]) + order + 1) < 0.25


SCHEDULE = {0: 2, 1: 3, 175: 3, 176: 4, 421: 4, 422: 5, 1000: 6, 10_000: 17}
SCHEDULE |= {100_000: 54, 400_000: 107, 799_999: 151, 800_000: 151, 900_000: 151}


def test_number_of_points_matches_the_table():
    assert {k: num_points(k, 800_000, 2, 150) for k in SCHEDULE} == SCHEDULE
    assert num_points(800_000, 800_000, 2, 200) == 201
    every = [num_points(k, 5000, 10, 80) for k in range(5001)]
    assert every == sorted(every) and every[0] == 10 and every[-1] == 81
    for k in range(0, 5001, 7):  # the formula as it is printed
        inside = k / 5000 * (81**2 - 10**2) + 10**2
        assert every[k] == math.ceil(math.sqrt(inside) - 1 - 1e-12) + 1


def test_target_decay_matches_the_table():
    assert target_decay(17, 2, 0.9) == pytest.approx(0.98768, abs=1e-5)
    assert target_decay(17, 2, 0.9, "N-1") == pytest.approx(0.98692, abs=1e-5)
    assert target_decay(107, 2, 0.9) == pytest.approx(0.99803, abs=1e-5)
    assert target_decay(2, 2, 0.9) == pytest.approx(0.9) and target_decay(2, 2, 0.0) == 0
    assert target_decay(2, 2, 0.9, "N-1") == pytest.approx(0.81)


@pytest.mark.parametrize(("scale", "is_inside"), [(1.0, True), (1.5, False)])
def test_algorithm_1_leaves_the_distribution_alone(scale, is_inside, generator, monkeypatch):
    """With an exact f, jumping and re-noising changes nothing; noise 1.5 times too strong does."""
    moons = toy("moons")
    f = ExactConsistency(ExactDenoiser(moons), sigma_max=5.0, steps=32)
    noise = torch.randn(1500, 2, generator=generator)
    sigmas = torch.cat([torch.tensor([5.0]), torch.linspace(0.6, 0.4, 8)])
    monkeypatch.setattr(sampling, "draw_normal", lambda x, g: scale * draw_normal(x, g))
    samples = sample_multistep(f, noise, sigmas, generator=generator)
    fresh = draw_points(moons, 1500, generator=generator)[0]
    assert energy_test(samples, fresh, generator=generator).is_inside == is_inside


@pytest.mark.parametrize("tau", [0.0021, 0.5, 4.0])
def test_multistep_adds_exactly_the_missing_variance(tau, generator):
    """The noise of the second jump has variance tau² - sigma_min², and is fresh."""

    class Origin(torch.nn.Module):
        sigma_min, sigma_max = 0.002, 5.0

        def forward(self, x, sigma, labels=None):
            return 0 * x

    noise = torch.randn(200_000, 1, generator=generator).double()
    path = sample_multistep(Origin(), noise, [5.0, tau], generator=generator, return_path=True)
    second = path[2]
    assert second.var() == pytest.approx(tau**2 - 0.002**2, rel=0.02)
    assert abs(float((second * noise).mean())) < 5 * second.std() / 200_000**0.5
