"""The DDIM step of chapter 7: DDPM at eta = 1, Euler at eta = 0, and its way back."""

import pytest
import torch

from consistency_edu.data import InputError
from consistency_edu.ddim import alpha_sigma, ddim_step, invert_ddim, sample_ddim
from consistency_edu.ddpm import (
    cosine_schedule,
    kept_levels,
    linear_schedule,
    posterior_mean,
    posterior_variance,
    sample_ddpm,
)
from consistency_edu.score import ExactDenoiser

LINEAR = linear_schedule()
PAIRS = ((1, 0), (400, 150), (1000, 998))


def states(generator):
    """A noisy and a clean cloud, in float64."""
    return torch.randn(2, 30, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [LINEAR, cosine_schedule(50)])
def test_coefficients_follow_from_lam(schedule):
    alpha, sigma = alpha_sigma(schedule.lam)
    assert torch.allclose(alpha, schedule.alpha, atol=1e-12)
    assert torch.allclose(sigma, schedule.sigma, atol=1e-12)


@pytest.mark.parametrize("t, s", PAIRS)
def test_eta_zero_is_eulers_step_on_x_over_alpha(t, s, generator):
    z, x0 = states(generator)
    ours = ddim_step(z, x0, LINEAR.lam[t], LINEAR.lam[s]) / LINEAR.alpha[s]
    x, start, stop = z / LINEAR.alpha[t], LINEAR.ve_sigma[t], LINEAR.ve_sigma[s]
    assert torch.allclose(ours, x + (stop - start) * (x - x0) / start, atol=1e-10)


@pytest.mark.parametrize("t, s", PAIRS)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta_scales_the_deviation_of_ddpms_step(t, s, eta, generator):
    z, x0 = states(generator)

    def step(noise):
        return ddim_step(z, x0, LINEAR.lam[t], LINEAR.lam[s], eta=eta, noise=noise)

    mean, one = step(torch.zeros_like(z)), step(torch.ones_like(z))
    deviation = eta * posterior_variance(LINEAR, s=s, t=t).sqrt()
    assert torch.allclose(one - mean, deviation.expand(30, 2), atol=1e-9)
    if eta == 1:
        assert torch.allclose(mean, posterior_mean(LINEAR, x0, z, s=s, t=t), atol=1e-9)
    noise_left = (mean - LINEAR.alpha[s] * x0) / (z - LINEAR.alpha[t] * x0) * LINEAR.sigma[t]
    assert torch.allclose(noise_left**2 + deviation**2, LINEAR.sigma[s] ** 2, atol=1e-9)


def test_levels_may_differ_from_row_to_row(generator):
    z, x0 = states(generator)
    t, s = torch.arange(300, 330), torch.arange(100, 130)
    rows = ddim_step(z, x0, LINEAR.lam[t], LINEAR.lam[s])
    one = ddim_step(z[7:8], x0[7:8], LINEAR.lam[307], LINEAR.lam[107])
    assert torch.allclose(rows[7:8], one)


def test_what_makes_no_sense_is_refused(generator):
    z, x0 = states(generator)
    with pytest.raises(InputError, match="positive eta"):
        ddim_step(z, x0, LINEAR.lam[5], LINEAR.lam[3], eta=0.5)
    with pytest.raises(InputError, match="way to the data"):
        ddim_step(z, x0, LINEAR.lam[3], LINEAR.lam[5], eta=0.5, noise=z)


def test_the_sampler_steps_through_the_kept_levels(normal, generator):
    exact = ExactDenoiser(normal)
    noise = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    path = sample_ddim(exact, noise, LINEAR, steps=7, return_path=True)
    z = noise
    assert path.shape == (8, 40, 2) and torch.equal(path[0], noise)
    levels = kept_levels(LINEAR, 7)
    for k, (t, s) in enumerate(zip(levels[:-1], levels[1:])):
        z = ddim_step(z, LINEAR.denoise(exact, z, t), LINEAR.lam[t], LINEAR.lam[s])
        assert torch.allclose(path[k + 1], z)
    assert torch.equal(sample_ddim(exact, noise, LINEAR, steps=7), path[-1])


def test_eta_one_is_ddpm_with_the_same_dice(normal, generator):
    exact = ExactDenoiser(normal)
    noise = torch.randn(40, 2, generator=generator, dtype=torch.float64)

    def rng():
        return torch.Generator().manual_seed(7)

    ours = sample_ddim(exact, noise, LINEAR, steps=9, eta=1.0, generator=rng())
    theirs = sample_ddpm(exact, noise, LINEAR, steps=9, generator=rng())
    assert torch.allclose(ours, theirs, atol=1e-9)


def test_the_way_up_undoes_the_way_down_to_first_order(normal, generator):
    exact = ExactDenoiser(normal)
    x0 = 0.5 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
    errors = []
    for steps in (50, 100, 200):
        codes = invert_ddim(exact, x0, LINEAR, steps=steps)
        back = sample_ddim(exact, codes, LINEAR, steps=steps)
        errors.append(float((back - x0).abs().median()))
    assert errors[-1] < 0.02 and 1.6 < errors[0] / errors[1] < 2.4
    path = invert_ddim(exact, x0, LINEAR, steps=50, return_path=True)
    assert path.shape == (51, 200, 2) and torch.allclose(path[0], x0 * LINEAR.alpha[1])
    assert torch.equal(path[-1], invert_ddim(exact, x0, LINEAR, steps=50))
    first = ddim_step(path[0], LINEAR.denoise(exact, path[0], 1), LINEAR.lam[1], LINEAR.lam[20])
    assert torch.allclose(path[1], first)
    truth = (x0 - torch.tensor([0.3, -0.2])) / 0.5  # the Gaussian's own code, rank for rank
    fine = invert_ddim(exact, x0, LINEAR, steps=500)
    assert torch.allclose(fine, truth, atol=0.05)


def test_labels_are_passed_on():
    given = []

    def denoiser(x, sigma, labels):
        return given.append(labels) or x

    sample_ddim(denoiser, torch.zeros(2, 1), LINEAR, steps=2, labels="a")
    invert_ddim(denoiser, torch.zeros(2, 1), LINEAR, steps=2, labels="b")
    assert given == ["a", "a", "b", "b"]
