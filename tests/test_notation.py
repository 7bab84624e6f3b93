"""The dictionary of chapter 0: levels, states, predictions and indices in every convention."""

import math

import pytest
import torch

from consistency_edu.notation import (
    SIGNAL,
    alpha_bar_from_sigma,
    angle_from_sigma,
    code_index,
    convert_state,
    denoised_from_noise,
    denoised_from_trig,
    denoised_from_v,
    lam_from_sigma,
    noise_from_denoised,
    noise_from_score,
    paper_index,
    score_from_noise,
    sigma_from_alpha_bar,
    sigma_from_angle,
    sigma_from_lam,
    v_from_denoised,
)
from consistency_edu.pf_ode import karras_sigmas

SIGMA = torch.tensor([0.002, 0.5, 3.0, 80.0], dtype=torch.float64)
MEAN, STD = 0.3, 0.7  # of the Gaussian data whose predictions are known


def test_levels_are_the_published_ones():
    assert float(angle_from_sigma(torch.tensor(80.0).double())) == pytest.approx(1.5645464081731977)
    assert float(sigma_from_angle(torch.tensor(1.1).double())) == pytest.approx(0.982, abs=5e-4)
    assert float(sigma_from_angle(torch.tensor(1.1), 1.0)) == pytest.approx(math.tan(1.1))
    assert float(angle_from_sigma(torch.tensor(2.0), 2.0)) == pytest.approx(math.pi / 4)
    assert float(sigma_from_alpha_bar(torch.tensor(0.2))) == pytest.approx(2)  # 0.8 noise, 0.2 data
    assert float(lam_from_sigma(torch.tensor(2.0))) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    "there, back",
    [
        (alpha_bar_from_sigma, sigma_from_alpha_bar),
        (lam_from_sigma, sigma_from_lam),
        (angle_from_sigma, sigma_from_angle),
    ],
)
def test_levels_come_back(there, back):
    assert torch.allclose(back(there(SIGMA)), SIGMA, rtol=1e-9)


def test_lam_is_minus_the_logarithm_of_signal_over_noise():
    alpha = alpha_bar_from_sigma(SIGMA).sqrt()
    noise = (1 - alpha**2).sqrt()
    assert torch.allclose(lam_from_sigma(SIGMA), -(alpha / noise).log(), atol=1e-6)


def coefficients():
    """Each convention's (signal, noise) at SIGMA, with data of spread 0.5, from its definition."""
    alpha_bar, t = 1 / (1 + SIGMA**2), SIGMA / (1 + SIGMA)
    angle = torch.atan(SIGMA / 0.5)
    return {
        "ve": (torch.ones(4).double(), SIGMA),
        "vp": (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()),
        "trig": (angle.cos(), angle.sin() * 0.5),  # its noise has the spread of the data
        "flow": (1 - t, t),
    }


def test_a_state_in_every_convention(generator):
    x0, noise = torch.randn(2, 4, 3, 2, generator=generator, dtype=torch.float64)
    column = lambda v: v.reshape(4, 1, 1)  # noqa: E731
    states = {k: column(a) * x0 + column(s) * noise for k, (a, s) in coefficients().items()}
    assert set(states) == set(SIGNAL)
    for source, x in states.items():
        for goal, wanted in states.items():
            assert torch.allclose(convert_state(x, SIGMA, source, goal), wanted, atol=1e-9)
    wide = convert_state(states["ve"], SIGMA, "ve", "trig", 1.0)
    assert torch.allclose(wide, column(torch.atan(SIGMA).cos()) * states["ve"], atol=1e-9)


@pytest.mark.parametrize("pair", [("edm", "vp"), ("ve", "ddpm")])
def test_an_unknown_convention_is_refused_with_the_known_ones(pair):
    with pytest.raises(ValueError, match="choose from .*'trig'"):
        convert_state(torch.ones(4, 2), SIGMA, *pair)


def gaussian(alpha, sigma, x):
    """E[x0 | x], E[noise | x] and the score of x = alpha x0 + sigma noise for Gaussian data."""
    pull = (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
    return MEAN + alpha * STD**2 * pull, sigma * pull, -pull


@pytest.mark.parametrize("kind", ["ve", "vp", "flow"])
def test_predictions_are_those_of_gaussian_data(kind, generator):
    alpha, sigma = coefficients()[kind]
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    denoised, noise, score = gaussian(alpha[:, None], sigma[:, None], x)
    close = lambda a, b: torch.allclose(a, b, rtol=1e-6, atol=1e-9)  # noqa: E731
    assert close(noise_from_denoised(denoised, x, alpha, sigma), noise)
    assert close(denoised_from_noise(noise, x, alpha, sigma), denoised)
    assert close(score_from_noise(noise, sigma), score)
    assert close(noise_from_score(score, sigma), noise)
    v = alpha[:, None] * noise - sigma[:, None] * denoised
    assert close(v_from_denoised(denoised, x, alpha, sigma), v)
    if kind == "vp":
        assert close(denoised_from_v(v, x, alpha, sigma), denoised)


def test_trigflows_network_is_a_v_prediction_in_units_of_the_data(generator):
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    t, spread = angle_from_sigma(SIGMA, 2.0), 2.0
    denoised, unit_noise, _ = gaussian(t.cos()[:, None], spread * t.sin()[:, None], x)
    slope = t.cos()[:, None] * spread * unit_noise - t.sin()[:, None] * denoised
    assert torch.allclose(denoised_from_trig(slope / spread, x, t, spread), denoised, atol=1e-9)


def test_indices_count_in_opposite_directions():
    assert [code_index(n, 40) for n in (1, 18, 40)] == [39, 22, 0]
    assert [paper_index(i, 40) for i in (39, 22, 0)] == [1, 18, 40]
    level = karras_sigmas(40)[paper_index(22, 40) - 1]  # the paper counts from 1, upwards
    assert float(level) == pytest.approx(1.3823679566485092)
    for action, number in ((code_index, 0), (code_index, 41), (paper_index, -1), (paper_index, 40)):
        with pytest.raises(ValueError, match="counts"):
            action(number, 40)
