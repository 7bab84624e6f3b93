"""The chain of chapter 6: its tables, its posterior, its loss and its strided sampler."""

import math

import pytest
import torch

from consistency_edu.data import InputError, draw_normal, draw_uniform
from consistency_edu.ddpm import (
    DiscreteSchedule,
    EpsDenoiser,
    EpsLoss,
    cosine_schedule,
    cosine_vp,
    jump_variance,
    kept_levels,
    linear_schedule,
    linear_vp,
    posterior_mean,
    posterior_variance,
    sample_ddpm,
)
from consistency_edu.score import ExactDenoiser

LINEAR = linear_schedule()


def test_tables_are_those_of_the_chain():
    chain = DiscreteSchedule(torch.tensor([0.36, 0.5]))
    assert chain.steps == 2 and chain.alpha.dtype == torch.float64
    assert torch.allclose(chain.alpha_bar, torch.tensor([1.0, 0.64, 0.32]).double())
    assert torch.allclose(chain.alpha**2 + chain.sigma**2, torch.ones(3).double())
    assert torch.allclose(chain.ve_sigma[1], torch.tensor(0.75).double())
    assert torch.allclose(chain.lam[1:], (chain.sigma / chain.alpha)[1:].log())
    for bad in ([], [0.0], [1.0], [[0.1]]):
        with pytest.raises(InputError):
            DiscreteSchedule(torch.tensor(bad))


def test_schedules_are_the_published_ones():
    assert torch.allclose(LINEAR.betas[[0, -1]], torch.tensor([1e-4, 0.02]).double())
    assert abs(float(LINEAR.alpha[-1]) - 0.00635) < 1e-5
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    for vp in (linear_vp(), cosine_vp()):
        assert torch.allclose(vp.alpha(t) ** 2 + vp.sigma(t) ** 2, torch.ones(9).double())
        assert torch.allclose(vp.lam(t), (vp.sigma(t) / vp.alpha(t)).log())
    rate = 0.1 * t + 19.9 * t**2 / 2
    assert torch.allclose(linear_vp().alpha(t), (-rate / 2).exp())

    def angle(t):
        return (t + 0.008) / 1.008 * math.pi / 2

    assert torch.allclose(cosine_vp().alpha(t), angle(t).cos() / math.cos(angle(0)))
    cosine = cosine_schedule()
    assert float(cosine.betas[-1]) == 0.999 and float(cosine.betas[:-1].max()) < 0.999
    assert abs(float(cosine.alpha[500]) - float(cosine_vp().alpha(torch.tensor(0.5)))) < 1e-6


def test_the_posterior_is_bayes_rule_for_any_pair():
    for s, t in ((0, 1), (150, 400), (998, 1000)):
        a_s, a_t, v_s = LINEAR.alpha[s], LINEAR.alpha[t], LINEAR.sigma[s] ** 2
        factor = a_t / a_s  # z_t = factor z_s + noise of variance `added`
        added = LINEAR.sigma[t] ** 2 - factor**2 * v_s
        assert torch.allclose(jump_variance(LINEAR, s, t), added, rtol=1e-9)
        expected = v_s * added / (factor**2 * v_s + added)
        assert torch.allclose(posterior_variance(LINEAR, s=s, t=t), expected, rtol=1e-9)
        x0, z = torch.tensor([[0.7]]).double(), torch.tensor([[-0.4]]).double()
        gain = factor * v_s / (factor**2 * v_s + added)
        mean = a_s * x0 + gain * (z - factor * a_s * x0)
        assert torch.allclose(posterior_mean(LINEAR, x0, z, s=s, t=t), mean, rtol=1e-9)
    for s in (5, 6):
        with pytest.raises(InputError):
            jump_variance(LINEAR, s, 5)


def test_a_denoiser_sees_the_unscaled_state_and_its_level():
    seen = []

    def denoiser(x, sigma, labels):
        return seen.append((x, sigma, labels)) or x

    z, t = torch.ones(3, 2), torch.tensor([1, 500, 1000])
    LINEAR.denoise(denoiser, z, t, "labels")
    x, sigma, labels = seen[0]
    assert torch.allclose(x, z / LINEAR.alpha[t].float()[:, None]) and labels == "labels"
    assert torch.allclose(sigma.double(), LINEAR.ve_sigma[t], rtol=1e-5)
    LINEAR.denoise(denoiser, z, 7)
    assert seen[1][1].shape == (3,)


def test_the_eps_denoiser_sees_the_vp_state_and_the_log_level():
    seen = []

    def network(z, c_noise, labels):
        return seen.append((z, c_noise, labels)) or torch.ones_like(z)

    x, sigma = torch.ones(2, 3), torch.tensor([0.5, 3.0])
    wrapped = torch.nn.Module()
    wrapped.forward = network
    out = EpsDenoiser(wrapped)(x, sigma, "labels")
    z, c_noise, labels = seen[0]
    assert torch.allclose(z, x / (1 + sigma**2).sqrt()[:, None]) and labels == "labels"
    assert torch.allclose(c_noise, sigma.log() / 4) and torch.allclose(out, x - sigma[:, None])


def test_the_loss_is_that_of_the_noise(generator):
    x = torch.randn(50, 3, generator=generator)
    replay = torch.Generator().manual_seed(3)
    t = 1 + (1000 * draw_uniform(x, replay)).long()
    noise = draw_normal(x, replay)

    def truth(y, sigma, labels):
        return x  # an oracle: its predicted noise is the noise itself

    objective = EpsLoss(truth, LINEAR)
    assert objective(x, generator=torch.Generator().manual_seed(3)).max() < 1e-4
    assert torch.allclose(objective.last_sigma.double(), LINEAR.ve_sigma[t], rtol=1e-5)
    blind = EpsLoss(lambda y, sigma, labels: y, LINEAR)  # predicts no noise at all
    loss = blind(x, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(loss, noise.square().sum(1), atol=1e-3)


def test_all_levels_are_drawn_and_no_other(generator):
    chain = DiscreteSchedule(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    objective = EpsLoss(lambda y, sigma, labels: y, chain)
    objective(torch.zeros(400, 1), generator=generator)
    found = objective.last_sigma.unique()
    assert torch.allclose(found.double(), chain.ve_sigma[1:], rtol=1e-5)


def test_kept_levels_run_from_the_top_to_zero():
    assert kept_levels(LINEAR, 4) == [1000, 750, 500, 250, 0]
    assert kept_levels(LINEAR) == list(range(1000, -1, -1))
    assert kept_levels(LINEAR, 1) == [1000, 0]
    for steps in (0, 1001):
        with pytest.raises(InputError):
            kept_levels(LINEAR, steps)


@pytest.mark.parametrize("steps", [1, 20, 100])
def test_strided_sampling_of_a_gaussian_has_the_moments_of_the_algebra(normal, steps, generator):
    exact, levels = ExactDenoiser(normal), kept_levels(LINEAR, steps)
    noise = torch.randn(20_000, 2, generator=generator)
    path = sample_ddpm(exact, noise, LINEAR, steps=steps, generator=generator, return_path=True)
    assert path.shape == (steps + 1, 20_000, 2) and torch.equal(path[0], noise)
    variance = torch.tensor(1.0).double()
    for t, s in zip(levels[:-1], levels[1:]):
        one, none = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
        on_x0 = posterior_mean(LINEAR, one, none, s=s, t=t)
        on_z = posterior_mean(LINEAR, none, one, s=s, t=t)
        gain = LINEAR.alpha[t] * 0.25 / (LINEAR.alpha[t] ** 2 * 0.25 + LINEAR.sigma[t] ** 2)
        variance = (on_z + on_x0 * gain) ** 2 * variance + posterior_variance(LINEAR, s=s, t=t)
    deviation = float(variance.sqrt())
    assert abs(path[-1].std(0).mean() - deviation) < 0.03 * deviation + 1e-4  # 1 step: almost none
    assert (path[-1].mean(0) - torch.tensor([0.3, -0.2])).abs().max() < 0.02


def test_noise_is_fresh_at_every_step_and_none_at_the_last(generator):
    def flat(x, sigma, labels):
        return torch.zeros_like(x)

    noise = torch.zeros(5000, 1)
    path = sample_ddpm(flat, noise, LINEAR, steps=3, generator=generator, return_path=True)
    assert torch.equal(path[-1], torch.zeros(5000, 1))
    first, second = (
        path[1],
        path[2]
        - path[1]
        * float(posterior_mean(LINEAR, torch.zeros(1, 1), torch.ones(1, 1), s=333, t=667)),
    )
    assert abs(torch.corrcoef(torch.stack([first[:, 0], second[:, 0]]))[0, 1]) < 0.06
    labels = []
    sample_ddpm(lambda x, sigma, c: labels.append(c) or x, noise, LINEAR, steps=2, labels="given")
    assert labels == ["given", "given"]
