"""The consistency function, its boundary condition, and learning it from tracks."""

import math

import pytest
import torch

from consistency_edu.consistency import (
    ConsistencyModel,
    ExactConsistency,
    classify,
    edm_coefficients,
    naive_coefficients,
    quarter_log,
    skip_coefficients,
)
from consistency_edu.data import GaussianMixture, InputError, tensor_batches, toy
from consistency_edu.experiments import consistency as lab
from consistency_edu.experiments.consistency import (
    COEFFICIENTS,
    CONSISTENCY_SWEEPS,
    LOSSES,
    PathConsistency,
    PathRegression,
    evaluate_student,
    make_student,
    parting_points,
    path_answers,
    predict_at_sigma_max,
    rays,
    run_consistency,
    solved_paths,
    spread_and_offset,
    steepness,
)
from consistency_edu.metrics import paired_error
from consistency_edu.networks import MLP
from consistency_edu.pf_ode import EDMDenoiser, karras_sigmas, solve_pf_ode
from consistency_edu.score import ExactDenoiser
from consistency_edu.training import EMA, constant_rate, train

GRID = karras_sigmas(18, 0.002, 5.0)
SQUARED = LOSSES["l2"][0]


class Recorder(torch.nn.Module):
    """A student `gain` · x that remembers what it was asked."""

    sigma_min, sigma_max = 0.002, 5.0

    def __init__(self):
        super().__init__()
        self.gain, self.seen = torch.nn.Parameter(torch.tensor(1.0)), []

    def forward(self, x, sigma, labels=None):
        self.seen.append((x, sigma, labels))
        return self.gain * x


def some_tracks(count=64, seed=0):
    return rays(toy("moons"), GRID, count, torch.Generator().manual_seed(seed))


def test_exact_consistency_follows_paths_and_ends_where_they_end(blobs, generator):
    denoiser = ExactDenoiser(blobs)
    noise = torch.randn(50, 2, generator=generator).double()
    sigmas = karras_sigmas(400, 0.002, 5.0).flip(0)
    path = solve_pf_ode(denoiser, noise, sigmas, return_path=True)
    answers = path_answers(ExactConsistency(denoiser, sigma_max=5.0), path[::57], sigmas[::57])
    assert (answers - path[-1]).abs().max() < 1e-4


def test_exact_consistency_is_fourth_order(normal):
    denoiser, x = ExactDenoiser(normal), torch.tensor([[2.0, -1.0]]).double()
    centre, sigma = torch.tensor([[0.3, -0.2]]).double(), torch.tensor([3.0]).double()
    truth = centre + math.sqrt((0.25 + 0.002**2) / (0.25 + 9)) * (x - centre)
    errors = [
        float((ExactConsistency(denoiser, steps=n)(x, sigma) - truth).norm()) for n in (16, 32, 64)
    ]
    assert 12 < errors[0] / errors[1] < 20 and 12 < errors[1] / errors[2] < 20


def test_exact_consistency_takes_a_level_for_each_sample(normal, generator):
    f = ExactConsistency(ExactDenoiser(normal), steps=64)
    x, sigma = torch.randn(6, 2, generator=generator).double(), torch.logspace(-2, 1, 6).double()
    one_by_one = torch.cat([f(x[k : k + 1], sigma[k : k + 1]) for k in range(6)])
    assert torch.allclose(f(x, sigma), one_by_one, atol=1e-12)


def test_exact_consistency_passes_labels_on():
    eight = toy("eight_gaussians")
    f = ExactConsistency(ExactDenoiser(eight), sigma_max=5.0, steps=24)
    labels = torch.arange(8)
    ends = f(torch.zeros(8, 2).double() + 0.01, torch.full((8,), 5.0).double(), labels)
    assert torch.equal(classify(ends, eight), labels)


def test_classify_weighs_width_and_weight():
    moons = toy("moons")
    assert torch.equal(classify(moons.means, moons), moons.labels)


def test_the_parting_line_is_where_the_class_changes():
    moons, radii = toy("moons"), torch.tensor([1.0, 6.0]).double()
    f = ExactConsistency(ExactDenoiser(moons), sigma_max=5.0, steps=24)
    at = parting_points(f, moons, radii)
    across = 1e-6 * at.flip(1) * torch.tensor([-1, 1])
    sides = [classify(f(at + s * across, torch.full((2,), 5.0).double()), moons) for s in (-1, 1)]
    assert (sides[0] != sides[1]).all() and (at[:, 0] > 0).all()
    assert torch.allclose(at.norm(dim=1), radii)
    with pytest.raises(InputError, match="other distances"):
        parting_points(Recorder().requires_grad_(False), toy("circles"), radii)


def test_steepness_is_the_largest_stretch_at_each_rows_own_level():
    stretch = torch.tensor([[0.5, 3.0], [0.0, 0.1]]).double()

    def model(x, sigma):
        return sigma[:, None] * (x @ stretch.T + 7)

    x, sigma = torch.randn(3, 2).double(), torch.tensor([1.0, 2.0, 5.0]).double()
    truth = sigma * torch.linalg.matrix_norm(stretch, ord=2)
    assert torch.allclose(steepness(model, x, sigma), truth, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("sigma_min", [0.002, 0.01, 1 / 3])
def test_the_boundary_holds_bit_for_bit(dtype, sigma_min, generator):
    x = torch.randn(100, 2, generator=generator).to(dtype)
    lowest = karras_sigmas(18, sigma_min, 5.0, dtype=dtype)[0].expand(100)
    for coefficients in (skip_coefficients, naive_coefficients):
        ends = {"sigma_min": sigma_min, "sigma_max": 5.0}
        model = ConsistencyModel(MLP(), coefficients=coefficients, **ends).to(dtype)
        assert torch.equal(model(x, lowest), x)
    c_skip, c_out = skip_coefficients(lowest, sigma_min, 0.5)
    assert (c_skip == 1).all() and (c_out == 0).all()


def test_skip_coefficients_follow_the_paper():
    sigma = torch.tensor([0.002, 0.1, 0.7, 80.0]).double()
    c_skip, c_out = skip_coefficients(sigma, 0.002, 0.5)
    for k, s in enumerate(sigma.tolist()):
        assert c_skip[k] == pytest.approx(0.25 / ((s - 0.002) ** 2 + 0.25), rel=1e-12)
        assert c_out[k] == pytest.approx(0.5 * (s - 0.002) / math.sqrt(s**2 + 0.25), rel=1e-12)


def test_edm_coefficients_are_the_teachers_and_miss_the_boundary(generator):
    network, x = MLP(), torch.randn(50, 2, generator=generator)
    sigma = torch.logspace(-2.7, 1, 50)
    theirs = EDMDenoiser(network)(x, sigma)
    ours = ConsistencyModel(network, coefficients=edm_coefficients)(x, sigma)
    assert torch.allclose(theirs, ours, atol=1e-6)
    c_skip, c_out = edm_coefficients(torch.tensor([0.002]).double(), 0.002, 0.5)
    assert float(c_skip) == pytest.approx(0.999984, abs=1e-6)
    assert float(c_out) == pytest.approx(0.002, abs=1e-6)


def test_coefficients_differ_as_measured():
    fine = karras_sigmas(4000)
    ours, theirs = (c(fine, 0.002, 0.5) for c in (skip_coefficients, edm_coefficients))
    gaps = [float((a - b).abs().max()) for a, b in zip(ours, theirs)]
    assert gaps == pytest.approx([2.6e-3, 2.0e-3], rel=0.02)


def test_naive_coefficients_switch_just_above_the_boundary():
    c_skip, c_out = naive_coefficients(torch.tensor([0.001, 0.002, 0.0021, 80.0]), 0.002, 0.5)
    assert c_skip.tolist() == [1, 1, 0, 0] and c_out.tolist() == [0, 0, 1, 1]


def test_the_network_sees_unit_variance_and_a_quarter_log_sigma(generator):
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, c_noise, labels=None):
            seen.append((x, c_noise, labels))
            return x

    x, sigma = torch.ones(3, 2), torch.tensor([0.1, 1.0, 10.0])
    labels = torch.tensor([0, 1, 2])
    ConsistencyModel(Spy())(x, sigma, labels)
    scaled, c_noise, passed = seen[0]
    assert torch.allclose(scaled, x / (sigma[:, None] ** 2 + 0.25).sqrt())
    assert torch.allclose(c_noise, sigma.log() / 4) and torch.equal(passed, labels)


def test_the_level_is_told_by_a_function_that_stays(generator):
    """By default bit for bit what it was; another is kept by copies, and asked for sigma_data."""
    network, x = MLP(), torch.randn(50, 2, generator=generator)
    sigma, seen = torch.logspace(-2.7, 1, 50), []

    def told(sigma, sigma_data):
        seen.append((sigma, sigma_data))
        return sigma.log() / 4

    plain = ConsistencyModel(network, sigma_data=0.7)
    assert plain.c_noise is quarter_log
    other = ConsistencyModel(network, sigma_data=0.7, c_noise=told)
    assert torch.equal(plain(x, sigma), other(x, sigma))
    assert len(seen) == 1 and seen[0][0] is sigma and seen[0][1] == 0.7
    average = EMA(other).model
    assert average.c_noise is told and average.coefficients is skip_coefficients
    assert plain.state_dict().keys() == other.state_dict().keys()  # old checkpoints load
    shifted = ConsistencyModel(network, sigma_data=0.7, c_noise=lambda sigma, data: sigma)
    assert not torch.allclose(shifted(x, sigma), plain(x, sigma))


def test_skip_model_has_the_slope_that_the_ode_asks_for(generator):
    """d f / d sigma at sigma_min is F there: finite, where the naive form's quotient explodes."""
    network, x = MLP().double(), torch.randn(20, 2, generator=generator).double()

    def at(sigma):
        return torch.full((20,), sigma, dtype=torch.float64)

    def rate(model, h):
        return (model(x, at(0.002 + h)) - x) / h

    skip = ConsistencyModel(network)
    naive = ConsistencyModel(network, coefficients=naive_coefficients)
    expected = network(x / math.sqrt(0.25 + 0.002**2), at(0.002).log() / 4)
    assert torch.allclose(rate(skip, 1e-8), expected, atol=1e-3)
    assert rate(naive, 1e-5).norm() > 90 * rate(naive, 1e-3).norm()


def test_f_solves_its_differential_equation(blobs):
    f, exact = ExactConsistency(ExactDenoiser(blobs), steps=128), ExactDenoiser(blobs)
    x, sigma, h = torch.tensor([[0.4, 0.5]]).double(), torch.tensor([0.7]).double(), 1e-4
    move = h * (x - exact(x, sigma)) / sigma
    along = f(x + move, sigma + h) - f(x - move, sigma - h)
    across = f(x, sigma + h) - f(x, sigma - h)
    assert along.norm() < 1e-4 * across.norm()


def test_path_answers_pair_states_with_levels():
    levels = torch.tensor([3.0, 2.0, 1.0])
    path = torch.ones(3, 4, 2)
    answers = path_answers(lambda x, sigma, labels: x * sigma[:, None], path, levels)
    assert torch.equal(answers[:, 0, 0], levels)
    with pytest.raises(InputError, match="3 states need as many sigmas"):
        path_answers(lambda *a: a[0], path, levels[:2])


# ---- learning from tracks


def test_the_answer_is_the_noisier_point():
    """Direction: the goal is the next cleaner point of the same track, the answer the noisier."""
    online, tracks = Recorder(), some_tracks()
    PathConsistency(online, GRID, distance=SQUARED)(tracks, generator=torch.Generator())
    (clean, low, _), (noisy, high, _) = online.seen
    index = (GRID.float()[:, None] == high).int().argmax(0)
    assert (index >= 1).all() and torch.equal(GRID.float()[index - 1], low)
    rows = torch.arange(64)
    assert torch.equal(noisy, tracks[rows, index]) and torch.equal(clean, tracks[rows, index - 1])


def test_the_goal_carries_no_gradient():
    """With stop-gradient only the noisier answer moves the gain; without, both do."""
    tracks = some_tracks()

    def gradient(use_stop_gradient):
        online = Recorder()
        options = {"distance": SQUARED, "use_stop_gradient": use_stop_gradient}
        objective = PathConsistency(online, GRID, **options)
        objective(tracks, generator=torch.Generator().manual_seed(0)).mean().backward()
        (clean, *_), (noisy, *_) = online.seen
        return float(online.gain.grad), clean, noisy

    stopped, clean, noisy = gradient(True)
    both, *_ = gradient(False)
    step = noisy - clean
    assert stopped == pytest.approx(float(2 * (step * noisy).sum(1).mean()), rel=1e-4)
    assert both == pytest.approx(float(2 * (step * step).sum(1).mean()), rel=1e-4)


def test_every_interval_is_drawn_and_weighed():
    tracks, online = some_tracks(2000), Recorder()
    weighed = PathConsistency(
        online, GRID, distance=SQUARED, weight=lambda low, high: 1 / (high - low)
    )(tracks, generator=torch.Generator().manual_seed(0))
    plain = PathConsistency(online, GRID, distance=SQUARED)(
        tracks, generator=torch.Generator().manual_seed(0)
    )
    low, high = online.seen[0][1], online.seen[1][1]
    assert len(set(high.tolist())) == 17 and len(set(low.tolist())) == 17
    assert torch.allclose(weighed, plain / (high - low), rtol=1e-4)


def test_losses_are_one_number_a_sample():
    a, b = torch.zeros(2, 3), torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    assert LOSSES["l2"][0](a, b).tolist() == [25, 0]
    huber, weight = LOSSES["pseudo-Huber"]
    assert huber(a, b).tolist() == pytest.approx([math.sqrt(25 + 0.03**2) - 0.03, 0], abs=1e-6)
    assert float(weight(torch.tensor(1.0), torch.tensor(3.0))) == 0.5


def test_regression_asks_for_the_first_point():
    tracks = some_tracks(500)
    online = Recorder()
    loss = PathRegression(online, GRID)(tracks, generator=torch.Generator().manual_seed(0))
    (x, sigma, _) = online.seen[0]
    assert torch.allclose(loss, (x - tracks[:, 0]).square().sum(1))
    index = (GRID.float()[:, None] == sigma).int().argmax(0)
    assert torch.equal(x, tracks[torch.arange(500), index]) and len(set(index.tolist())) == 18


@pytest.mark.parametrize("points", [5, 18, 40])
def test_tracks_end_where_f_says(points, generator):
    moons, grid = toy("moons"), karras_sigmas(points, 0.002, 5.0)
    f = ExactConsistency(ExactDenoiser(moons), sigma_max=5.0, steps=24)
    paths = solved_paths(moons, grid, 40, generator).double()
    assert paths.shape == (40, points, 2)
    some = [0, points // 2, points - 1]
    for answer in path_answers(f, paths.transpose(0, 1)[some], grid[some]):
        assert paired_error(answer, paths[:, 0]) < 1e-3


def test_solved_paths_start_from_noisy_data_not_from_noise(blobs, generator):
    shifted = GaussianMixture(blobs.means + 20, blobs.stds, blobs.weights, blobs.labels)
    paths = solved_paths(shifted, GRID, 200, generator)
    assert abs(float(paths[:, -1].mean()) - 20) < 1.5


def test_rays_keep_one_noise(generator):
    tracks = rays(toy("moons"), GRID, 100, generator)
    noise = (tracks[:, 1:] - tracks[:, :1]) / (GRID[1:] - GRID[0])[None, :, None]
    assert torch.allclose(noise, noise[:, -1:].expand_as(noise), atol=1e-3)
    assert abs(float(noise[:, -1].std()) - 1) < 0.15


def test_bad_tracks_are_refused():
    online = Recorder()
    with pytest.raises(InputError, match="ascending"):
        PathConsistency(online, GRID.flip(0), distance=SQUARED)
    with pytest.raises(InputError, match="18"):
        PathConsistency(online, GRID, distance=SQUARED)(some_tracks()[:, 1:])
    for bad in ((1.0, 0.5), (0.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(InputError, match="sigma_min < sigma_max"):
            ConsistencyModel(MLP(), sigma_min=bad[0], sigma_max=bad[1])


def test_students_are_what_their_names_say(generator):
    grid = GRID.float()
    for name, coefficients in COEFFICIENTS.items():
        student = make_student(name, sigmas=grid, generator=generator)
        assert student.coefficients is coefficients
        assert (student.sigma_min, student.sigma_max) == pytest.approx((0.002, 5.0))
    tracks = solved_paths(toy("moons"), grid, 256, generator)
    fitted = make_student("bare", truth=tracks, sigmas=grid, steps=60, generator=generator)
    fresh = make_student("bare", sigmas=grid, generator=generator)
    errors = [evaluate_student(m, tracks, grid)["paired_error"] for m in (fitted, fresh)]
    assert errors[0] < 0.8 * errors[1]
    assert all(p.requires_grad for p in fitted.parameters())


def test_spread_and_offset_are_fit_for_json():
    points = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert spread_and_offset(points) == pytest.approx((1.0, 2.0))
    assert spread_and_offset(torch.full((4, 2), float("nan"))) == (1e9, 1e9)


def test_judging_the_exact_f_finds_no_fault(generator):
    moons, grid = toy("moons"), GRID.float()
    held = solved_paths(moons, grid, 60, generator)
    f = ExactConsistency(ExactDenoiser(moons), sigma_max=5.0, steps=32)
    numbers = evaluate_student(f, held, grid)
    assert numbers["paired_error"] < 1e-3 and numbers["boundary_miss"] < 1e-6
    assert len(numbers["by_level"]) == 18 and numbers["by_level"][-1] == numbers["paired_error"]
    assert 0 < numbers["jump"] < 1e-4 and abs(numbers["spread"] - 0.5) < 0.12


def test_a_run_is_repeatable_and_survives_divergence(monkeypatch):

    def small(mixture, sigmas, count, generator):
        return solved_paths(mixture, sigmas, min(count, 128), generator)

    monkeypatch.setattr(lab, "solved_paths", small)
    setting = dict(CONSISTENCY_SWEEPS["parameterisation"].settings[0])
    first, again = (run_consistency(setting, 0, steps=12) for _ in range(2))
    assert first == again and first["lasted"] == 12
    assert [row[0] for row in first["trace"]] == [0, 10]
    wild = {**setting, "coefficients": "bare", "optimizer": "SGD", "lr": 1e6}
    diverged = run_consistency(wild, 0, steps=12)
    assert diverged["lasted"] < 12 and diverged["trace"][-1][1:] == (1e9, 1e9)


def test_sweeps_have_settings_with_equal_keys():
    for name, sweep in CONSISTENCY_SWEEPS.items():
        assert sweep.name == name and len({tuple(s) for s in sweep.settings}) == 1
        assert len({str(s) for s in sweep.settings}) == len(sweep.settings)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_boundary_condition_keeps_what_a_bare_network_forgets(seed):
    """Pseudo-Huber over the gap collapses a bare network under Adam; squared l2 only wanders."""
    moons, grid, kept = toy("moons"), GRID.float(), {}
    distance, weight = LOSSES["pseudo-Huber"]
    for kind in ("bare", "skip"):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        tracks = solved_paths(moons, grid, 2048, generator)
        model = make_student(kind, truth=tracks, sigmas=grid, steps=700, generator=generator)
        objective = PathConsistency(model, grid, distance=distance, weight=weight)
        batches = tensor_batches(tracks, None, 256, generator=generator)
        options = dict(steps=300, lr=1e-3, rate=constant_rate, generator=generator)
        for _ in train(objective, batches, **options):
            pass
        kept[kind] = spread_and_offset(predict_at_sigma_max(model, tracks))[0]
    assert kept["bare"] < 0.2 and kept["skip"] > 0.4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ],
)
def test_the_boundary_is_exact_in_every_precision(dtype, device):
    """On a GPU a number is subtracted from halves in single precision, where it is not the half."""
    sigma = torch.tensor([0.002], dtype=dtype, device=device)
    c_skip, c_out = skip_coefficients(sigma, 0.002, 0.5)
    assert c_skip.item() == 1 and c_out.item() == 0
