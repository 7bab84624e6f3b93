"""Editing: what is kept, where the noise goes, and how far from the exact conditional."""

import dataclasses
import functools
import math

import pytest
import torch
from conftest import make_mixture

from consistency_edu.boot import BootStudent, SignalModel
from consistency_edu.consistency import ConsistencyModel, ExactConsistency
from consistency_edu.data import InputError, draw_normal, draw_points, toy
from consistency_edu.editing import (
    LUMINANCE,
    Operator,
    add_noise,
    basis_from,
    denoise,
    edit,
    enlarge,
    from_patches,
    geometric,
    interpolate,
    keep_along,
    keep_grey,
    keep_means,
    renoise_and_denoise,
    to_patches,
)
from consistency_edu.experiments import editing as lab
from consistency_edu.experiments.editing import (
    EDITING_SWEEPS,
    FIRST_KNOWN,
    KNOWN_VALUES,
    LEVEL_SCHEMES,
    ConditionalBenchmark,
    condition,
    draw_conditional,
    editing_model,
    run_rounds,
    run_steps,
    w2_band,
)
from consistency_edu.experiments.sampling import steps_evenly
from consistency_edu.metrics import sliced_w2
from consistency_edu.networks import MLP
from consistency_edu.progressive import FewStepStudent
from consistency_edu.sampling import OneStepStudent, linear_mix, spherical_mix
from consistency_edu.score import ExactDenoiser

HOLE = Operator(torch.arange(8) > 4)
ALL = {"hole": HOLE, "grey": keep_grey(), "means": keep_means(2), "large": keep_means(4)}


class Spy(torch.nn.Module):
    """A model that multiplies by `gain` and remembers its questions."""

    def __init__(self, gain=0.0, sigma_min=0.002):
        super().__init__()
        self.sigma_min, self.sigma_max, self.gain, self.seen = sigma_min, 5.0, gain, []

    def forward(self, x, sigma, labels=None):
        self.seen.append((x, sigma, labels))
        return self.gain * x


@pytest.fixture
def images(generator):
    return torch.rand(6, 3, 8, 8, generator=generator).double() * 2 - 1


# ---- operators


@pytest.mark.parametrize("name", ALL)
def test_the_maps_are_orthogonal_and_undone(name, images):
    operator = ALL[name]
    there = operator.forward(images)
    assert (operator.inverse(there) - images).abs().max() < 1e-14
    lengths = [x.flatten(1).norm(dim=1) for x in (there, images)]
    assert torch.allclose(*lengths, rtol=1e-14)


@pytest.mark.parametrize("name", ALL)
def test_the_projection_takes_each_coefficient_from_its_side(name, images, generator):
    operator, x = ALL[name], draw_normal(images, generator)
    mixed = operator.forward(operator.project(x, images))
    free = operator.free.expand_as(mixed)
    assert (mixed - operator.forward(images))[~free].abs().max() < 1e-14
    assert (mixed - operator.forward(x))[free].abs().max() < 1e-14
    assert (operator.kept(x)[free] == 0).all() and (operator.kept(x)[~free] != 0).all()


def test_inpainting_copies_bit_for_bit(images, generator):
    mixed = HOLE.project(draw_normal(images, generator), images)
    assert torch.equal(mixed[..., :5], images[..., :5])


def test_the_published_basis_of_grey():
    basis = basis_from(LUMINANCE)
    published = torch.tensor([0.44711344, 0.87807155, 0.17052838]).double()
    assert (basis[:, 0] - published).abs().max() < 1e-6 and basis.dtype == torch.float64
    assert (basis_from(-LUMINANCE)[:, 0] + published).abs().max() < 1e-6


def test_grey_is_kept_and_means_are_kept(images, generator):
    x = draw_normal(images, generator)
    gap = keep_grey().project(x, images) - images
    assert torch.einsum("c,bchw->bhw", LUMINANCE.double(), gap).abs().max() < 1e-14
    mean = torch.nn.functional.avg_pool2d
    assert (mean(keep_means(4).project(x, images), 4) - mean(images, 4)).abs().max() < 1e-14


def test_any_line_in_the_plane(generator):
    x, known = draw_normal(torch.empty(2, 50, 2), generator).double()
    along = torch.tensor([3.0, 4.0]).double() / 5
    mixed = keep_along(along).project(x, known)
    across = torch.tensor([4.0, -3.0]).double() / 5
    assert ((mixed - known) @ along).abs().max() < 1e-14
    assert ((mixed - x) @ across).abs().max() < 1e-14


def test_patches_are_cut_and_put_back(images):
    patches = to_patches(images, 2)
    assert patches.shape == (6, 3, 4, 4, 4)
    assert torch.equal(patches[1, 2, 3, 0], images[1, 2, 6:8, 0:2].flatten())
    assert torch.equal(from_patches(patches), images)
    wide = images[..., :4]
    assert torch.equal(from_patches(to_patches(wide, 4)), wide)
    with pytest.raises(InputError, match="8 x 4 pixels do not divide by 3"):
        to_patches(wide, 3)
    for crooked in (images[..., :6], images[..., :6, :]):  # one side divides by 4
        with pytest.raises(InputError, match="divide by 4"):
            to_patches(crooked, 4)


def test_enlarging_keeps_the_means():
    small = torch.rand(2, 1, 4, 2)
    assert torch.equal(to_patches(enlarge(small, 3), 3).amax(-1), small)
    assert torch.equal(to_patches(enlarge(small, 3), 3).amin(-1), small)


# ---- Algorithm 4


@pytest.mark.parametrize("name", ALL)
def test_every_step_keeps_what_is_known(name, images, generator):
    operator, spy = ALL[name], Spy(0.7)
    sigmas = [5.0, 2.0, 0.5, 0.1]
    path = edit(spy, images.float(), operator, sigmas, generator=generator, return_path=True)
    assert path.shape == (9, *images.shape)
    truth = operator.kept(images.float())
    for clean in path[::2]:  # the known part, and the edit after each step
        assert (operator.kept(clean) - truth).abs().max() < 1e-6
    last = edit(spy, images.float(), operator, sigmas, generator=generator)
    assert last.shape == images.shape and not torch.equal(last, path[-1])


@pytest.mark.parametrize("name", ALL)
def test_what_is_free_is_wiped_out_first(name, images, generator):
    operator = ALL[name]
    other = operator.project(draw_normal(images, generator), images)
    edits = [
        edit(Spy(0.5), x, operator, [3.0, 1.0], generator=torch.Generator().manual_seed(1))
        for x in (images, other)
    ]
    assert (edits[0] - edits[1]).abs().max() < 1e-13


def test_the_first_round_adds_the_whole_level(generator):
    spy = Spy(0.0, sigma_min=0.4)
    image = torch.tensor([[0.3, 9.0]]).double().repeat(100_000, 1)
    path = edit(spy, image, FIRST_KNOWN, [3.0, 0.5], generator=generator, return_path=True)
    start = torch.tensor([0.3, 0.0]).double()
    assert torch.equal(path[0], start.expand(100_000, 2))
    assert (path[1] - start).std(0) == pytest.approx(torch.tensor([3.0, 3.0]).double(), rel=0.02)
    assert (path[3] - path[2]).std(0).numpy() == pytest.approx([0.3, 0.3], rel=0.02)  # 3-4-5
    assert (path[1] - start).mean(0).abs().max() < 0.05
    likeness = torch.corrcoef(torch.stack([path[1][:, 1], (path[3] - path[2])[:, 1]]))[0, 1]
    assert likeness.abs() < 0.02


def test_each_jump_starts_at_its_level_with_the_labels(generator):
    spy, labels = Spy(0.5), torch.arange(4)
    path = edit(
        spy, torch.ones(4, 2), FIRST_KNOWN, [4.0, 1.0], labels=labels,
        generator=generator, return_path=True,
    )  # fmt: skip
    assert [float(sigma[0]) for _, sigma, _ in spy.seen] == [4.0, 1.0]
    assert all(len(sigma) == 4 and torch.equal(asked, labels) for _, sigma, asked in spy.seen)
    for (x, _, _), noisy, clean in zip(spy.seen, path[1::2], path[2::2]):
        assert torch.equal(x, noisy) and torch.equal(clean[:, 1], 0.5 * noisy[:, 1])
        assert (clean[:, 0] == 1).all()


def test_no_gradient_and_no_hidden_randomness():
    model = ConsistencyModel(MLP(), sigma_max=5.0)
    torch.manual_seed(0)
    image = torch.randn(3, 2)
    runs = [
        edit(model, image, FIRST_KNOWN, [5.0, 1.0], generator=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert not runs[0].requires_grad
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


ONE_STEP = {
    "direct": lambda: OneStepStudent(lambda z, labels: z, sigma_max=5.0, method="direct"),
    "boot": lambda: BootStudent(SignalModel(MLP(), sigma_max=5.0)),
    "pd": lambda: FewStepStudent(MLP(), torch.tensor([0.002, 5.0])),
}


@pytest.mark.parametrize("name", ONE_STEP)
@pytest.mark.parametrize("work", ["edit", "renoise_and_denoise", "denoise"])
def test_one_step_students_cannot_edit(name, work):
    actions = {
        "edit": lambda m: edit(m, torch.zeros(2, 2), FIRST_KNOWN, [5.0]),
        "renoise_and_denoise": lambda m: renoise_and_denoise(m, torch.zeros(2, 2), [5.0]),
        "denoise": lambda m: denoise(m, torch.zeros(2, 2), 5.0),
    }
    with pytest.raises(InputError, match=r"at sigma_max = 5 alone.*take a consistency model"):
        actions[work](ONE_STEP[name]())


@pytest.mark.parametrize(
    ("sigmas", "remedy"),
    [
        ([1.0, 5.0], "decreasing"),
        ([], "decreasing"),
        ([1.0, 1.0], "decreasing"),
        ([6.0, 1.0], "up to sigma_max, 5; got 6 to 1"),
        ([5.0, 0.002], "above sigma_min, 0.002"),
        ([5.0, 0.0], "positive"),
    ],
)
def test_bad_levels_are_refused_before_any_work(sigmas, remedy):
    spy = Spy()
    for work in (
        lambda: edit(spy, torch.zeros(2, 2), FIRST_KNOWN, sigmas),
        lambda: renoise_and_denoise(spy, torch.zeros(2, 2), sigmas),
    ):
        with pytest.raises(InputError, match=remedy):
            work()
    assert not spy.seen


def test_levels_may_start_below_the_top_and_from_float32():
    for sigmas in ([0.5, 0.1], torch.tensor([5.0 * (1 + 1e-7), 0.0021], dtype=torch.float32)):
        assert edit(Spy(), torch.zeros(2, 2), FIRST_KNOWN, sigmas).shape == (2, 2)


def test_bad_operators_are_refused():
    image, spy = torch.rand(2, 1, 8, 8) + 1, Spy()
    everything = dataclasses.replace(HOLE, free=torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(InputError, match="frees everything.*renoise_and_denoise"):
        edit(spy, image, everything, [1.0])
    with pytest.raises(InputError, match=r"\[7\] does not fit images \[2, 1, 8, 8\]"):
        edit(spy, image, Operator(torch.arange(7) > 3), [1.0])
    with pytest.raises(InputError, match=r"\[3, 1, 8, 8\] does not fit"):
        edit(spy, image, Operator(torch.rand(3, 1, 8, 8) > 0.5), [1.0])
    wrong = Operator(torch.arange(8) > 3, lambda x: 2 * x, lambda x: x)
    with pytest.raises(InputError, match="inverse does not undo"):
        edit(spy, image, wrong, [1.0])
    assert not spy.seen


# ---- the exact conditional


def test_the_conditional_of_two_gaussians_is_the_textbooks():
    mixture = make_mixture([[0.0, -1.0], [1.0, 1.0]], [0.5, 0.25], [0.7, 0.3])
    given = condition(mixture, FIRST_KNOWN, torch.tensor([[0.8, 5.0]]))
    parts = ((0.7, 0.0, 0.5), (0.3, 1.0, 0.25))
    shares = torch.tensor([w / s * math.exp(-((0.8 - m) ** 2) / (2 * s**2)) for w, m, s in parts])
    assert torch.allclose(given.weights.float(), shares / shares.sum(), rtol=1e-5)
    assert torch.equal(given.means, mixture.means)


def test_two_known_coordinates_count_twice():
    mixture = make_mixture([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [0.5, 1.0])
    operator = Operator(torch.tensor([False, False, True]))
    given = condition(mixture, operator, torch.zeros(1, 3))
    assert given.weights.tolist() == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize("along", [[1.0, 0.0], [0.6, -0.8]])
def test_exact_draws_agree_with_rejection(along, blobs):
    rng = torch.Generator().manual_seed(0)
    operator, line = keep_along(torch.tensor(along)), torch.tensor(along)
    known = 0.2 * line[None]
    draws = draw_conditional(blobs, operator, known, 2000, generator=rng)
    assert ((draws - known) @ line).abs().max() < 1e-6
    pool = draw_points(blobs, 400_000, generator=rng)[0]
    near = pool[(pool @ line - 0.2).abs() < 0.02][:2000]
    across = torch.tensor([-along[1], along[0]])
    assert sliced_w2((near @ across)[:, None], (draws @ across)[:, None], 1) < 0.05


def test_small_levels_from_the_truth_stay_there_and_large_ones_blur():
    """The resting law of Algorithm 4's rounds: the conditional for small tau only."""
    diagonal = make_mixture([[k / 8, k / 8] for k in range(-8, 9)], [0.1] * 17)
    f = ExactConsistency(ExactDenoiser(diagonal), sigma_max=5.0, steps=6)
    off = {}
    for tau in (0.03, 1.0):
        rng = torch.Generator().manual_seed(0)
        options = {"generator": rng}
        truth, x = (
            draw_conditional(diagonal, FIRST_KNOWN, torch.tensor([[0.5, 0.0]]), 1000, **options)
            for _ in range(2)
        )
        for _ in range(6):
            x = FIRST_KNOWN.project(
                f(add_noise(x, tau, 0.002, rng), torch.full((1000,), tau)), truth
            )
        band = w2_band(x, truth, count=16, shuffles=50, generator=rng)
        off[tau] = sliced_w2(x, truth, 16) / band
    assert off[0.03] < 1.5 and off[1.0] > 3


def test_the_band_is_a_quantile_of_shuffles(generator):
    a, b = draw_normal(torch.empty(2, 100, 2), generator)
    options = {"count": 8, "shuffles": 100}
    low, high = (
        w2_band(a, b, level=p, generator=torch.Generator().manual_seed(0), **options)
        for p in (0.5, 0.99)
    )
    assert low < high < 1
    assert sliced_w2(a, b, 8) < high < sliced_w2(a, b + 1, 8)
    apart = w2_band(a, b + 50, generator=generator, **options)
    assert 1 < apart < sliced_w2(a, b + 50, 8)  # shuffled, the two are alike


# ---- strokes, noise, interpolation


def test_a_stroke_is_not_wiped_out(generator):
    spy, stroke = Spy(1.0), torch.full((50_000, 2), 7.0).double()
    path = renoise_and_denoise(spy, stroke, [0.5, 0.3], generator=generator, return_path=True)
    assert torch.equal(path[0], stroke) and path.shape == (5, 50_000, 2)
    assert (path[1] - stroke).std() == pytest.approx(0.5, rel=0.02)
    assert (path[1] - stroke).mean().abs() < 0.02
    assert (path[3] - path[2]).std() == pytest.approx((0.3**2 - 0.002**2) ** 0.5, rel=0.02)
    assert torch.equal(path[2], path[1]) and torch.equal(path[4], path[3])
    assert [float(sigma[0]) for _, sigma, _ in spy.seen] == [0.5, 0.3]


def test_a_stroke_knows_sigma_min(generator):
    start, sigmas = torch.zeros(50_000, 1), [0.5, 0.5 - 1e-9]
    path = renoise_and_denoise(Spy(1.0, 0.4), start, sigmas, generator=generator, return_path=True)
    assert path[1].std() == pytest.approx(0.5, rel=0.02)
    assert (path[3] - path[2]).std() == pytest.approx(0.3, rel=0.02)


def test_labels_reach_strokes_and_denoising():
    spy, labels = Spy(1.0), torch.arange(3)
    renoise_and_denoise(spy, torch.zeros(3, 2), [1.0], labels=labels)
    denoise(spy, torch.zeros(3, 2), 1.0, labels=labels)
    assert len(spy.seen) == 2 and all(torch.equal(asked, labels) for *_, asked in spy.seen)


def test_denoising_adds_nothing_and_starts_at_the_given_level(generator):
    spy, noisy = Spy(3.0), torch.randn(5, 2, generator=generator)
    assert torch.equal(denoise(spy, noisy, 0.7), 3 * noisy)
    (x, sigma, _), *rest = spy.seen
    assert torch.equal(x, noisy) and not rest and (sigma == torch.tensor(0.7)).all()
    for bad in (6.0, 0.001):
        with pytest.raises(InputError, match="sigma_max"):
            denoise(spy, noisy, bad)


def test_interpolation_has_an_angle_for_every_pair(generator):
    first = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    second = torch.tensor([[0.0, 2.0], [-0.5, 3**0.5 / 2]])  # 90 and 120 degrees apart
    path = interpolate(Spy(0.2), first, second, 3)
    assert path.shape == (3, 2, 2)
    assert torch.allclose(path[0], first, atol=1e-5) and torch.allclose(path[2], second, atol=1e-5)
    middle = torch.tensor([[2**0.5, 2**0.5], [0.5, 3**0.5 / 2]])
    assert torch.allclose(path[1], middle, atol=1e-4)
    straight = interpolate(Spy(0.2), first, second, 3, mix=linear_mix)
    assert torch.allclose(straight[1], (first + second) / 2, atol=1e-5)
    uneven = interpolate(Spy(0.2), first, second, 5)
    assert torch.allclose(uneven[1], spherical_mix(first, second, 0.25), atol=1e-5)


def test_interpolation_takes_labels_and_one_step_students():
    spy, labels, noise = Spy(1.0), torch.arange(4), torch.randn(4, 2)
    interpolate(spy, noise, noise.flip(0), 3, labels=labels)
    assert len(spy.seen) == 3 and all(torch.equal(asked, labels) for *_, asked in spy.seen)
    assert interpolate(ONE_STEP["direct"](), noise, noise.flip(0), 2).shape == (2, 4, 2)
    with pytest.raises(InputError, match="two ends"):
        interpolate(spy, noise, noise, 1)


# ---- sweeps


def test_geometric_levels_fall_from_high_to_low():
    assert geometric(0.1, 1.0, 1).tolist() == [1.0]
    levels = geometric(0.1, 10.0, 3)
    assert levels.tolist() == pytest.approx([10.0, 1.0, 0.1]) and levels.dtype == torch.float64


def test_the_judge_holds_independent_exact_draws(generator, blobs):
    judge = ConditionalBenchmark(blobs, 200, generator)
    assert judge.truth.shape == judge.other.shape == (1000, 2)
    for value, group in zip(KNOWN_VALUES, judge.known.split(200)):
        assert (group[:, 0] == torch.tensor(value)).all() and (group[:, 1] == 0).all()
    assert torch.equal(judge.known[800:, 0], judge.other[800:, 0])
    assert not torch.equal(judge.truth, judge.other)
    assert judge.distances(judge.truth) == [0.0] * 5
    near = zip(judge.distances(judge.other), judge.bands())
    assert all(0 < distance < 1.3 * band for distance, band in near)
    assert all(share < 0.02 for share in judge.stray(judge.truth))
    assert judge.stray(judge.truth + 9) == [1.0] * 5


def test_runs_are_repeatable_and_whole(monkeypatch):
    def quick(kind, generator):
        model = editing_model("exact", generator)
        model.steps = 2
        return model

    assert editing_model("exact", None).sigma_max == 5.0
    monkeypatch.setattr(lab, "editing_model", quick)
    monkeypatch.setattr(lab, "w2_band", functools.partial(w2_band, shuffles=3))
    for name, run in (("editing_steps", run_steps), ("editing_rounds", run_rounds)):
        setting = dict(EDITING_SWEEPS[name].settings[0])
        more = {"steps": (1, 2)} if run is run_steps else {"rounds": 2}
        first, again = (run(setting, 0, count=40, **more) for _ in range(2))
        assert first == again and len(first["band"]) == 5
        assert run(setting, 1, count=40, **more) != first
    first = run_steps({"model": "exact", "levels": "even"}, 0, count=40, steps=(1, 2))
    assert len(first["sliced_w2"]) == len(first["stray"]) == 2
    walk = run_rounds({"tau": 0.1}, 0, count=40, rounds=2)
    assert len(walk["exact"]) == len(walk["jump"]) == 3
    assert walk["exact"][0][3] < 0.1 < walk["jump"][0][3]  # one starts from the truth


def test_the_levels_of_the_sweep():
    model = Spy()
    assert torch.equal(LEVEL_SCHEMES["even"](model, 4), steps_evenly(model, 4))
    assert LEVEL_SCHEMES["middle"](model, 4).tolist() == pytest.approx(
        geometric(0.05, 1, 4).tolist()
    )


def test_a_judge_of_edits_takes_the_shape_of_what_is_known():
    judge = ConditionalBenchmark(toy("moons"), 20, torch.Generator().manual_seed(0))
    for bad in (judge.known[:-1], judge.known[:20], torch.zeros(len(judge.known), 3)):
        for action in (judge.distances, judge.stray, judge.evaluate):
            with pytest.raises(InputError, match="edits of `known`"):
                action(bad)
