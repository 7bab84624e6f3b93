"""The numbers of chapter 2, against loops and closed forms."""

import math

import pytest
import torch

from consistency_edu.data import InputError
from consistency_edu.metrics import (
    EnergyTest,
    directions,
    energy_distance,
    energy_test,
    frechet_distance,
    gaussian_frechet,
    paired_error,
    precision_recall,
    sliced_w2,
)


def clouds(generator, count=40, dim=2):
    """Two different clouds, in float64."""
    a = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return a, 1.3 * torch.randn(count, dim, generator=generator, dtype=torch.float64) + 0.4


def energy_by_loops(a, b):
    """The unbiased energy distance, pair by pair."""

    def mean(pairs):
        return sum(math.dist(p, q) for p, q in pairs) / len(pairs)

    a, b = a.tolist(), b.tolist()

    def within(c):
        return mean([(c[i], c[j]) for i in range(len(c)) for j in range(len(c)) if i != j])

    return 2 * mean([(p, q) for p in a for q in b]) - within(a) - within(b)


@pytest.mark.parametrize("dim", [2, 5])
def test_directions_are_unit_vectors_without_a_favourite(dim):
    turn = directions(4000, dim)
    assert torch.allclose(turn.norm(dim=0), torch.ones(4000).double())
    assert torch.allclose(turn @ turn.T / 4000, torch.eye(dim).double() / dim, atol=0.02)
    assert torch.equal(turn, directions(4000, dim))


def test_sliced_w2_of_a_shift_and_of_a_stretch(generator):
    a = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    mixed = a[torch.randperm(300, generator=generator)]
    assert (
        abs(
            sliced_w2(a, mixed + torch.tensor([0.3, 0.4], dtype=torch.float64)) - 0.5 / math.sqrt(2)
        )
        < 1e-9
    )
    expected = 0.1 * float(a.square().mean().sqrt())
    assert abs(sliced_w2(a, 1.1 * mixed) - expected) < 1e-9
    for bad in (a[:299], a[:, :1]):
        with pytest.raises(InputError):
            sliced_w2(a, bad)


def test_energy_distance_is_that_of_loops(generator):
    a, b = clouds(generator)
    assert abs(energy_distance(a, b[:25]) - energy_by_loops(a, b[:25])) < 1e-10
    test = energy_test(a, b[:25], shuffles=20, generator=generator)
    assert abs(test.distance - energy_by_loops(a, b[:25])) < 1e-10
    with pytest.raises(InputError):
        energy_distance(a, b[:1])


def test_the_band_and_the_p_value_are_those_of_the_shuffles(generator):
    same = [
        energy_test(*torch.randn(2, 60, 2, generator=generator), shuffles=60, generator=generator)
        for _ in range(40)
    ]
    assert sum(test.is_inside for test in same) >= 36
    assert 0.35 < sum(test.p_value for test in same) / 40 < 0.65
    assert all(1 / 61 - 1e-6 < test.p_value <= 1 for test in same)
    pairs = (torch.randn(2, 12, 1, generator=generator) for _ in range(300))
    usual = [energy_test(*pair, generator=generator) for pair in pairs]
    ranks = {round(201 * test.p_value): test.is_inside for test in usual}
    assert all(inside == (rank > 3) for rank, inside in ranks.items())  # 1.5 % of equal clouds
    assert min(ranks) <= 3
    a, b = clouds(generator, 200)
    far = energy_test(a, b + 1, shuffles=99, generator=generator)
    assert not far.is_inside and abs(far.p_value - 0.01) < 1e-6
    low = energy_test(a, b, level=0.5, generator=torch.Generator().manual_seed(0))
    high = energy_test(a, b, level=0.99, generator=torch.Generator().manual_seed(0))
    assert low.band < high.band and low.distance == high.distance
    assert EnergyTest(0.1, 0.1, 0.5).is_inside and not EnergyTest(0.2, 0.1, 0.01).is_inside


def test_frechet_of_commuting_and_of_singular_covariances(generator):
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    s_a, s_b = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([2.0, 0.5, 3.0, 1.0])

    def cov(s):
        return turn @ s.double().square().diag() @ turn.T

    zero, one = torch.zeros(4).double(), torch.ones(4).double()
    expected = 4 + float((s_a - s_b).square().sum())
    assert abs(gaussian_frechet(zero, cov(s_a), one, cov(s_b)) - expected) < 1e-6
    assert gaussian_frechet(zero, cov(s_a), zero, cov(s_a)) < 1e-6
    with pytest.raises(InputError):
        gaussian_frechet(zero, cov(s_a), one[:3], cov(s_b))


def test_frechet_outlives_an_eigenvalue_solver_that_gives_up(monkeypatch):
    a, b = (torch.randn(9, 24, dtype=torch.float64) * scale for scale in (1.0, 0.4))  # rank 8 of 24
    moments = (a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    expected = gaussian_frechet(*moments)

    def give_up(matrix):
        raise torch.linalg.LinAlgError("linalg.eigh: the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", give_up)
    assert expected > 1 and abs(gaussian_frechet(*moments) - expected) < 1e-6 * expected


def test_frechet_of_samples_uses_the_unbiased_covariance():
    a = torch.tensor([[-1.0], [1.0]])  # variance 2 with n - 1
    b = torch.tensor([[-2.0], [2.0]])  # variance 8
    assert abs(frechet_distance(a, b) - (8**0.5 - 2**0.5) ** 2) < 1e-9
    assert abs(frechet_distance(a, b + 3) - 9 - (8**0.5 - 2**0.5) ** 2) < 1e-9
    with pytest.raises(InputError):
        frechet_distance(a, b * math.nan)


def test_precision_and_recall_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # k = 1 reaches 1, 1, 2, 7
    fake = torch.tensor([[-0.9], [2.2], [18.0], [40.0]])  # k = 1 reaches 3.1, 3.1, 15.8, 22
    found = precision_recall(real, fake, k=1)
    assert found.precision == 0.5  # -0.9 and 2.2
    assert found.recall == 1.0
    back = precision_recall(fake, real, k=1)
    assert (back.precision, back.recall) == (found.recall, found.precision)
    for k in (0, 4):
        with pytest.raises(InputError, match="more points|at least 1"):
            precision_recall(real, fake, k=k)


def precision_recall_by_loops(real, fake, k):
    """Precision and recall, a point at a time."""
    real, fake = real.tolist(), fake.tolist()

    def inside(points, centres):
        radii = [sorted(math.dist(p, c) for c in centres)[k] for p in centres]
        hits = [any(math.dist(p, c) <= r for c, r in zip(centres, radii)) for p in points]
        return sum(hits) / len(points)

    return inside(fake, real), inside(real, fake)


@pytest.mark.parametrize("block", [7, 50, 1000])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_are_those_of_loops_in_blocks_of_any_size(k, block, generator):
    real, fake = clouds(generator, 80, 6)
    got = precision_recall(real, fake[:60], k, block)
    assert tuple(got) == pytest.approx(precision_recall_by_loops(real, fake[:60], k), abs=1e-12)
    assert got.precision != got.recall


def test_paired_error_is_the_median_of_the_rows_distances():
    a = torch.zeros(3, 1, 2)
    b = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]], [[0.0, 90.0]]])
    assert paired_error(a, b) == 5.0
    with pytest.raises(InputError):
        paired_error(a, b[:2])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nothing_infinite_is_measured_by_moments_or_neighbours(value):
    good, bad = torch.randn(9, 2), torch.randn(9, 2)
    bad[3, 1] = value
    zero, eye = torch.zeros(2), torch.eye(2)
    for action in (
        lambda: frechet_distance(good, bad),
        lambda: precision_recall(bad, good),
        lambda: gaussian_frechet(zero, eye, bad[3], eye),
        lambda: gaussian_frechet(zero, eye * bad[3], zero, eye),
    ):
        with pytest.raises(InputError, match="not finite"):
            action()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1, 0, 1.5])
def test_counts_and_shares_that_are_none_are_refused(bad):
    a, b = torch.randn(20, 2), torch.randn(20, 2)
    actions = [
        lambda: sliced_w2(a, b, bad),
        lambda: energy_test(a, b, shuffles=bad),
        lambda: precision_recall(a, b, bad),
        lambda: precision_recall(a, b, 3, bad),
    ]
    if bad != 0:
        actions.append(lambda: energy_test(a, b, shuffles=9, level=bad))
    for action in actions:
        with pytest.raises(InputError):
            action()
