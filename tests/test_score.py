"""Scores, denoisers and walks of chapter 3, against forms that share no line with them."""

import pytest
import torch
from conftest import make_mixture

from consistency_edu.consistency import ExactConsistency
from consistency_edu.data import GaussianMixture, InputError, draw_normal, squared_distances, toy
from consistency_edu.score import (
    DenoisingScoreMatching,
    ExactDenoiser,
    annealed_langevin,
    langevin,
    log_uniform_sigmas,
    posterior_weights,
    score_from_denoised,
)

UNEVEN = make_mixture([[-1.0, 0.2], [0.8, 0.0], [0.1, 0.9]], [0.2, 0.5, 0.9], [0.5, 0.2, 0.3])


def by_autograd(mixture, x, sigma):
    """The score of `mixture` at `x` and `sigma` `[B]`, by differentiating its log-density."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(mixture.log_density(x, sigma).sum(), x)[0]


@pytest.mark.parametrize("mixture", [UNEVEN, make_mixture([[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.3])])
def test_score_and_denoiser_are_those_of_the_log_density(mixture, generator):
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    sigma = torch.rand(60, generator=generator, dtype=torch.float64) + 0.05
    truth, exact = by_autograd(mixture, x, sigma), ExactDenoiser(mixture)
    assert torch.allclose(exact.score(x, sigma), truth, rtol=1e-9)
    assert torch.allclose(exact(x, sigma), x + sigma[:, None] ** 2 * truth, rtol=1e-9)
    assert torch.allclose(score_from_denoised(exact(x, sigma), x, sigma), truth, rtol=1e-7)


def test_posterior_weights_are_bayes_rule(generator):
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    variance = UNEVEN.stds**2 + 0.3**2
    joint = torch.stack(
        [
            w * torch.distributions.Normal(m, v.sqrt()).log_prob(x).sum(1).exp()
            for w, m, v in zip(UNEVEN.weights, UNEVEN.means, variance)
        ],
        1,
    )
    found = posterior_weights(x, variance.expand(20, 3), UNEVEN.means, UNEVEN.weights)
    assert torch.allclose(found, joint / joint.sum(1, keepdim=True), rtol=1e-9)


def test_labels_leave_only_their_own_class(generator):
    mixture = GaussianMixture(UNEVEN.means, UNEVEN.stds, UNEVEN.weights, torch.tensor([0, 1, 1]))
    x, sigma = torch.randn(10, 2, generator=generator), torch.full((10,), 2.0)
    alone = ExactDenoiser(make_mixture([[-1.0, 0.2]], [0.2]))
    labels = torch.zeros(10, dtype=torch.int64)
    assert torch.allclose(ExactDenoiser(mixture)(x, sigma, labels), alone(x, sigma), atol=1e-6)
    assert not torch.allclose(ExactDenoiser(mixture)(x, sigma), alone(x, sigma), atol=1e-2)


def test_a_finite_set_keeps_shape_dtype_and_labels(generator):
    images = torch.randn(6, 1, 2, 2, generator=generator)
    exact = ExactDenoiser.of_points(images, torch.arange(6))
    x, sigma = images + 0.5, torch.full((6,), 0.7)
    assert exact(x, sigma).shape == images.shape and exact(x, sigma).dtype == torch.float32
    assert torch.allclose(exact(x, sigma, torch.arange(6)), images, atol=1e-6)
    assert exact.score(x, sigma).shape == images.shape
    far = ExactDenoiser.of_points(images)(x, torch.full((6,), 1e3))
    assert torch.allclose(far, images.mean(0).expand_as(far), atol=1e-2)  # all equally likely


def test_noise_levels_are_even_in_their_logarithm(generator):
    sigma = log_uniform_sigmas(0.01, 100.0)(torch.empty(20_000, 2), generator)
    assert sigma.shape == (20_000,) and 0.01 <= sigma.min() < sigma.max() <= 100
    assert abs(sigma.log10().mean()) < 0.05 and abs(sigma.log10().std() - 4 / 12**0.5) < 0.03
    with pytest.raises(InputError):
        log_uniform_sigmas(1.0, 0.5)


def test_the_loss_is_the_weighted_squared_error_summed_over_coordinates(generator):
    x, replay = torch.randn(5, 3, generator=generator), torch.Generator().manual_seed(1)
    told = []

    def online(noisy, sigma, labels):
        return told.append((noisy, sigma, labels)) or 0 * noisy

    def levels(x, g):
        return torch.full((len(x),), 2.0)

    objective = DenoisingScoreMatching(online, levels)
    loss = objective(x, "labels", generator=torch.Generator().manual_seed(1))
    noisy = x + 2.0 * draw_normal(x, replay)
    assert torch.equal(told[0][0], noisy) and told[0][2] == "labels"
    assert torch.equal(objective.last_sigma, torch.full((5,), 2.0))
    assert torch.allclose(loss, x.square().sum(1) / 4)
    plain = DenoisingScoreMatching(online, levels, torch.ones_like)
    assert torch.allclose(plain(x), x.square().sum(1))


def test_langevin_keeps_a_gaussian(generator):
    start = 0.5 * torch.randn(20_000, 1, generator=generator)
    path = langevin(
        lambda x: -x / 0.25, start, step_size=0.01, steps=60, generator=generator, return_path=True
    )
    assert path.shape == (61, 20_000, 1) and torch.equal(path[0], start)
    assert abs(path[-1].std() / 0.5 - 1) < 0.03 and abs(path[-1].mean()) < 0.02
    with pytest.raises(InputError):
        langevin(lambda x: -x, start, step_size=0.0, steps=1)


def test_annealing_ends_at_the_last_level(generator):
    exact = ExactDenoiser(make_mixture([[0.4, -0.3]], [0.2]))
    noise = torch.randn(8000, 2, generator=generator)
    sigmas = torch.logspace(0.5, -1, 12)
    path = annealed_langevin(exact, noise, sigmas, generator=generator, return_path=True)
    assert path.shape == (13, 8000, 2)
    assert torch.allclose(path[0], noise * float(sigmas[0]))
    assert (path[-1].mean(0) - torch.tensor([0.4, -0.3])).abs().max() < 0.02
    # the walk's own error: a step of 0.2 sigma² is not small beside the variance
    assert abs(path[-1].std(0).mean() / (0.2**2 + 0.1**2) ** 0.5 - 1) < 0.06
    for bad in ([], [1.0, 2.0], [1.0, 0.0]):
        with pytest.raises(InputError):
            annealed_langevin(exact, noise, bad)


# ------------------------------------------------------------------ forward mode


def test_squared_distances_are_those_of_plain_differences():
    a, b = torch.randn(40, 3).double(), torch.randn(60, 3).double()
    plain = (a[:, None] - b).square().sum(-1)
    assert (squared_distances(a, b) - plain).abs().max() < 3e-16 * plain.max()
    b[:40] = a + 1e-9  # where a matrix product would keep nothing
    near = squared_distances(a, b).diagonal()
    assert torch.allclose(near, torch.full_like(near, 3e-18), rtol=1e-5)


@pytest.mark.parametrize("name", ["denoiser", "score", "consistency function", "of points"])
def test_the_exact_answers_have_tangents(name):
    exact = ExactDenoiser(toy("moons"))
    memory = ExactDenoiser.of_points(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    function = {
        "denoiser": exact,
        "score": exact.score,
        "consistency function": ExactConsistency(exact, steps=16),
        "of points": memory,
    }[name]
    generator = torch.Generator().manual_seed(1)
    x, dx = torch.randn(2, 6, 2, generator=generator, dtype=torch.float64)
    sigma = torch.linspace(0.3, 2, 6, dtype=torch.float64)
    shifted = [function(x + h * dx, sigma + h * 0.7) for h in (-1e-5, 1e-5)]
    value, tangent = torch.func.jvp(function, (x, sigma), (dx, torch.full_like(sigma, 0.7)))
    assert torch.equal(value, function(x, sigma)) and tangent.norm() > 0.1
    assert torch.allclose(tangent, (shifted[1] - shifted[0]) / 2e-5, atol=1e-6)
