"""Nothing broadcasts silently: at each seam with a user's code a wrong shape is one sentence."""

import math
import re

import pytest
import torch
from torch import nn

from consistency_edu.boot import (
    Boot,
    SignalModel,
    empty_batches,
    signal_euler,
    signal_heun,
    signal_linear,
    signal_of,
    solve_signal_ode,
)
from consistency_edu.consistency import ConsistencyModel, ExactConsistency
from consistency_edu.consistency_training import ConsistencyTraining
from consistency_edu.data import InputError, draw_normal, draw_uniform, toy
from consistency_edu.ddim import ddim_step, sample_ddim
from consistency_edu.ddpm import EpsDenoiser, EpsLoss, cosine_schedule, posterior_mean
from consistency_edu.distances import squared_l2, uniform_weight
from consistency_edu.distillation import ConsistencyDistillation
from consistency_edu.experiments.consistency import PathConsistency
from consistency_edu.guidance import Guided, GuidedByLabel, LabelDropout, with_weight
from consistency_edu.images.methods import PixelMLP
from consistency_edu.improved import EasyTuning, ImprovedTraining
from consistency_edu.meanflow import MeanFlow, MeanFlowModel
from consistency_edu.networks import MLP, UNet
from consistency_edu.pf_ode import (
    EDMDenoiser,
    FromVP,
    diffuse,
    edm_objective,
    euler_step,
    heun_step,
    karras_sigmas,
    solve_adams,
    solve_pf_ode,
    solve_reverse_sde,
)
from consistency_edu.progressive import (
    DirectDistillation,
    FewStepStudent,
    Pairs,
    ProgressiveDistillation,
)
from consistency_edu.sampling import sample_multistep, sample_one_step
from consistency_edu.score import (
    DenoisingScoreMatching,
    ExactDenoiser,
    annealed_langevin,
    langevin,
    log_uniform_sigmas,
)
from consistency_edu.training import train
from consistency_edu.trigflow import ContinuousConsistency, trig_model

B = 4
X, S = torch.randn(B, 2), torch.full((B,), 0.7)
SIGMAS = karras_sigmas(6, 0.002, 5.0)
EXACT = ExactDenoiser(toy("moons"))


def column(x, *rest):
    """What a network that forgot a dimension returns: `[B, 1]`."""
    return x[:, :1]


def one_row(x, *rest):
    """A network that answers for the first sample only: `[1, D]`."""
    return x[:1]


class Answers(nn.Module):
    """A backbone that answers with `shape(x)`."""

    def __init__(self, shape):
        super().__init__()
        self.weight, self.shape = nn.Parameter(torch.ones(())), shape

    def forward(self, x, c_noise, labels=None):
        return self.weight * self.shape(x)


def wide(a, b):
    """A distance `[B, 1]` where `[B]` is due."""
    return (a - b).square().sum(1, keepdim=True)


def model(kind=ConsistencyModel, network=None):
    return kind(network or MLP(), sigma_min=0.002, sigma_max=5.0)


def loss(objective, x=X):
    return objective(x, None, generator=torch.Generator().manual_seed(0))


def student():
    return FewStepStudent(EDMDenoiser(MLP()), SIGMAS[[0, -1]])


def pairs(sample):
    return DirectDistillation(student(), pairs=Pairs(X, sample))


def first_loss(objective):
    return next(train(objective, iter([(X, None)] * 2), steps=2))


class Mean(nn.Module):
    """An objective of a user's that returns `shape(loss)`."""

    def __init__(self, shape):
        super().__init__()
        self.online, self.shape = MLP(), shape

    def forward(self, x, labels=None, *, generator=None):
        return self.shape((self.online(x, x[:, 0]) - x).square().sum(1))


SCHEDULE = cosine_schedule(10)
GOOD = Answers(lambda x: x)
REFUSED = {}
for word, bad in {"[B, 1]": column, "[1, D]": one_row}.items():
    backbone = Answers(bad)
    REFUSED |= {
        f"EDM's backbone {word}": lambda n=backbone: EDMDenoiser(n)(X, S),
        f"a consistency model's backbone {word}": lambda n=backbone: model(network=n)(X, S),
        f"a signal model's backbone {word}": lambda n=backbone: model(SignalModel, n)(X, S),
        f"a noise predictor's backbone {word}": lambda n=backbone: EpsDenoiser(n)(X, S),
        f"a VP network {word}": lambda f=bad: FromVP(f, lambda s: s)(X, S),
        f"Euler's denoiser {word}": lambda f=bad: euler_step(f, X, S, S / 2),
        f"Heun's denoiser {word}": lambda f=bad: heun_step(f, X, S, S / 2),
        f"the ODE's denoiser {word}": lambda f=bad: solve_pf_ode(f, X, SIGMAS.flip(0)),
        f"the SDE's denoiser {word}": lambda f=bad: solve_reverse_sde(f, X, SIGMAS.flip(0)),
        f"Adams' denoiser {word}": lambda f=bad: solve_adams(f, X, SIGMAS.flip(0)),
        f"DDIM's denoiser {word}": lambda f=bad: sample_ddim(f, X, SCHEDULE, steps=3),
        f"a DDIM step's guess {word}": lambda f=bad: ddim_step(
            X, f(X), torch.tensor(1.0), torch.tensor(0.0)
        ),
        f"the posterior's guess {word}": lambda f=bad: posterior_mean(SCHEDULE, f(X), X, s=1, t=3),
        f"an exact f's denoiser {word}": lambda f=bad: ExactConsistency(f, steps=2)(X, S),
        f"a guided denoiser {word}": lambda f=bad: Guided(f, 2.0)(X, S, torch.zeros(B).long()),
        f"Langevin's score {word}": lambda f=bad: langevin(f, X, step_size=0.1, steps=1),
        f"annealed Langevin's denoiser {word}": lambda f=bad: annealed_langevin(
            f, X, SIGMAS.flip(0)
        ),
        f"a signal step's denoiser {word}": lambda f=bad: signal_euler(f, X, X, S, S / 2),
        f"a linear step's denoiser {word}": lambda f=bad: signal_linear(f, X, X, S, 0.9 * S),
        f"a Heun step's denoiser {word}": lambda f=bad: signal_heun(f, X, X, S, S / 2),
        f"the signal ODE's denoiser {word}": lambda f=bad: solve_signal_ode(f, X, SIGMAS.flip(0)),
        f"a signal's noise {word}": lambda f=bad: signal_of(X, f(X), S),
        f"denoising score matching's model {word}": lambda n=backbone: loss(
            DenoisingScoreMatching(n, log_uniform_sigmas(0.1, 1.0))
        ),
        f"the noise loss's model {word}": lambda n=backbone: loss(EpsLoss(n, SCHEDULE)),
        f"distillation's teacher {word}": lambda f=bad: loss(
            ConsistencyDistillation(model(), f, SIGMAS)
        ),
        f"progressive distillation's teacher {word}": lambda f=bad: loss(
            ProgressiveDistillation(EDMDenoiser(MLP()), f, SIGMAS[1:])
        ),
        f"progressive distillation's student {word}": lambda n=backbone: loss(
            ProgressiveDistillation(n, EXACT, SIGMAS[1:])
        ),
        f"BOOT's teacher {word}": lambda f=bad: loss(Boot(model(SignalModel), f, SIGMAS)),
        f"BOOT's boundary {word}": lambda f=bad: Boot(model(SignalModel), f, SIGMAS).boundary(
            X, None
        ),
        f"direct distillation's teacher {word}": lambda f=bad: loss(
            DirectDistillation(student(), f, SIGMAS)
        ),
        f"cached samples {word}": lambda f=bad: loss(pairs(f(X))),
        f"a model's samples {word}": lambda f=bad: sample_one_step(model(network=Answers(f)), X),
    }
for word, options in {
    "a distance [B, 1]": {"distance": wide},
    "a distance of one number": {"distance": lambda a, b: (a - b).square().mean()},
    "a distance that is no tensor": {"distance": lambda a, b: 0.5},
    "a weight [B, 1]": {"weight": lambda *levels: torch.ones(B, 1)},
    "a weight of one number": {"weight": lambda *levels: torch.ones(1)},
}.items():
    plain = {"distance": squared_l2, "weight": uniform_weight, **options}
    REFUSED |= {
        f"distillation: {word}": lambda o=plain: loss(
            ConsistencyDistillation(model(), EXACT, SIGMAS, **o)
        ),
        f"training: {word}": lambda o=plain: loss(ConsistencyTraining(model(), total_steps=1, **o)),
        f"paths: {word}": lambda o=plain: loss(
            PathConsistency(model(), SIGMAS, **o), torch.randn(B, 6, 2)
        ),
        f"BOOT: {word}": lambda o=plain: loss(Boot(model(SignalModel), EXACT, SIGMAS, **o)),
        f"progressive: {word}": lambda o=options: loss(
            ProgressiveDistillation(EDMDenoiser(MLP()), EXACT, SIGMAS[1:], **o)
        ),
    }
    if "weight" in options:
        REFUSED[f"denoising score matching: {word}"] = lambda o=options: loss(
            DenoisingScoreMatching(EXACT, log_uniform_sigmas(0.1, 1.0), **o)
        )
    else:
        REFUSED[f"direct: {word}"] = lambda o=options: loss(
            DirectDistillation(student(), EXACT, SIGMAS, **o)
        )
for word, levels in {"[B, 1]": S[:, None], "[1]": S[:1], "[B + 1]": torch.ones(B + 1)}.items():
    REFUSED |= {
        f"levels {word} for the exact denoiser": lambda s=levels: EXACT(X, s),
        f"levels {word} for EDM's denoiser": lambda s=levels: EDMDenoiser(MLP())(X, s),
        f"levels {word} for a consistency model": lambda s=levels: model()(X, s),
        f"levels {word} for a solver": lambda s=levels: euler_step(EXACT, X, s, s / 2),
        f"levels {word} for a network": lambda s=levels: MLP()(X, s),
        f"levels {word} for a U-Net": lambda s=levels: UNet(width=8)(torch.zeros(B, 1, 8, 8), s),
    }
for word, level in {
    "one level [] for all": torch.tensor(0.7),
    "a float for a level": 0.7,
}.items():
    REFUSED |= {
        f"{word}, {kind}": lambda f=f, s=level: f(X, s)
        for kind, f in {
            "the exact denoiser": EXACT,
            "the exact f": ExactConsistency(EXACT, steps=2),
            "EDM's denoiser": EDMDenoiser(MLP()),
            "a consistency model": model(),
            "a signal model": model(SignalModel),
            "a network": MLP(),
        }.items()
    }
REFUSED |= {
    "[1, 2] at [4] levels": lambda: EXACT(X[:1], S),
    "[1, 2] at [4] levels, EDM": lambda: EDMDenoiser(GOOD)(X[:1], S),
    "points of another width": lambda: EXACT(torch.randn(B, 1), S),
    "three channels for one": lambda: ExactDenoiser.of_points(torch.randn(9, 1, 4, 4))(
        torch.randn(B, 3, 4, 4), S
    ),
    "a student of one channel, images of three": lambda: UNet(1, width=8)(
        torch.zeros(B, 3, 8, 8), S
    ),
    "noise of another shape": lambda: SCHEDULE.add_noise(X, X[:, :1], 3),
    "whole numbers: noise": lambda: draw_normal(torch.zeros(B, 2, dtype=torch.int64)),
    "whole numbers: levels": lambda: draw_uniform(torch.zeros(B, 2, dtype=torch.uint8)),
    "whole numbers: a denoiser": lambda: EXACT(torch.zeros(B, 2, dtype=torch.int64), S),
    "whole numbers: a solver": lambda: solve_pf_ode(EXACT, X.long(), SIGMAS.flip(0)),
    "whole numbers: one step": lambda: sample_one_step(model(), X.long()),
    "whole numbers: many steps": lambda: sample_multistep(model(), X.long(), [5.0, 1.0]),
    "whole numbers: an objective": lambda: loss(edm_objective(EDMDenoiser(MLP())), X.long()),
    "a loss of one number in training": lambda: first_loss(Mean(torch.mean)),
    "a loss [B, 1] in training": lambda: first_loss(Mean(lambda loss: loss[:, None])),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_shapes_are_one_sentence_with_both_shapes(name):
    with pytest.raises(InputError) as refusal:
        REFUSED[name]()
    said = str(refusal.value)
    assert said.endswith(".") and "\n" not in said
    if "whole" not in name and "U-Net" not in said and "network takes" not in said:
        assert re.search(r"\[.*\].*\[.*\]|a float.*\[.*\]", said), said


# ------------------------------------------------------------------ types

NETWORKS = {
    "MLP": (MLP(), X),
    "U-Net": (UNet(width=8), torch.zeros(B, 1, 8, 8)),
    "MLP of pixels": (PixelMLP((1, 8, 8)), torch.zeros(B, 1, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_samples_of_another_type_are_one_sentence(name, kind):
    network, x = NETWORKS[name]
    with pytest.raises(InputError, match="samples of float.* network of float32: give x.to"):
        model(network=network)(x.to(kind), S)
    assert torch.equal(model(network=network)(x, S.double()), model(network=network)(x, S))


@pytest.mark.parametrize("kind", ["cd", "ct", "boot", "multistep"])
def test_objectives_and_samplers_say_so_too(kind):
    run = {
        "cd": lambda x: loss(ConsistencyDistillation(model(), EXACT, SIGMAS), x),
        "ct": lambda x: loss(ConsistencyTraining(model(), total_steps=1), x),
        "boot": lambda x: loss(Boot(model(SignalModel), EXACT, SIGMAS), x),
        "multistep": lambda x: sample_multistep(model(), x, [5.0, 1.0]),
    }[kind]
    with pytest.raises(InputError, match="float64 meet a network of float32"):
        run(X.double())
    run(X)


def test_an_empty_batch_is_no_fault_of_the_learning_rate():
    objective = ConsistencyTraining(model(), total_steps=5)
    with pytest.raises(InputError, match="a batch is empty: give at least one"):
        next(train(objective, iter([(X[:0], None)]), steps=1))


# ------------------------------------------------------------------ labels

TWO = torch.zeros(B).long()
LABELLED = {
    "MLP": MLP(num_classes=2),
    "U-Net": lambda x, s, labels: UNet(width=8, num_classes=2)(torch.zeros(B, 1, 8, 8), s, labels),
    "exact denoiser": EXACT,
}
LABELS = {
    "too few": TWO[:3],
    "only one": TWO[:1],
    "a column": TWO[:, None],
    "too high": TWO + 7,
    "negative": TWO - 1,
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", LABELLED)
def test_labels_that_do_not_fit_are_one_sentence(name, labels):
    with pytest.raises(InputError, match=r"\.$"):
        LABELLED[name](X, S, LABELS[labels])


@pytest.mark.parametrize("name", ["MLP", "U-Net"])
def test_labels_are_whole_numbers(name):
    with pytest.raises(InputError, match="whole numbers"):
        LABELLED[name](X, S, torch.zeros(B))


def test_pairs_of_labels_and_weights_have_their_shapes():
    teacher = GuidedByLabel(EDMDenoiser(MLP(num_classes=2)))
    assert teacher(X, S, with_weight(TWO, 2.0)).shape == X.shape
    for bad in (lambda: teacher(X, S, TWO), lambda: with_weight(TWO, torch.ones(B, 1))):
        with pytest.raises(InputError, match="must be"):
            bad()


def test_an_objective_that_hides_labels_needs_some():
    objective = LabelDropout(edm_objective(EDMDenoiser(MLP(num_classes=2))), 2)
    with pytest.raises(InputError, match="labels"):
        loss(objective)
    with pytest.raises(InputError, match="probability"):
        LabelDropout(objective, 2, math.nan)


# ------------------------------------------------------------------ values, at construction

NUMBERS = {
    f"{kind.__name__} {name} {value}": (kind, name, value)
    for kind, name in [
        (EDMDenoiser, "sigma_data"),
        (ConsistencyModel, "sigma_data"),
        (ConsistencyModel, "sigma_min"),
        (ConsistencyModel, "sigma_max"),
        (SignalModel, "sigma_data"),
        (SignalModel, "sigma_max"),
    ]
    for value in (0.0, -1.0, math.nan, math.inf)
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_models_are_checked_when_they_are_made(name):
    kind, option, value = NUMBERS[name]
    with pytest.raises(InputError):
        kind(MLP(), **{option: value})


LAWS = {
    "iCT": lambda **law: ImprovedTraining(model(), total_steps=1, **law),
    "ECT": lambda **law: EasyTuning(model(), total_steps=1, **law),
    "sCT": lambda **law: ContinuousConsistency(trig_model(MLP()), **law),
    "MeanFlow": lambda **law: MeanFlow(MeanFlowModel(MLP(use_gap=True)), **law),
    "EDM": lambda **law: edm_objective(EDMDenoiser(MLP()), **law),
}
WRONG_LAWS = [{"log_std": s} for s in (0.0, -2.0, math.nan, math.inf)]
WRONG_LAWS += [{"log_mean": m} for m in (math.nan, math.inf)]


@pytest.mark.parametrize("law", WRONG_LAWS, ids=str)
@pytest.mark.parametrize("name", LAWS)
def test_the_law_of_levels_is_checked_when_an_objective_is_made(name, law):
    with pytest.raises(InputError, match="ln sigma cannot be"):
        LAWS[name](**law)


@pytest.mark.parametrize("name", ["iCT", "ECT", "sCT", "MeanFlow"])
@pytest.mark.parametrize("mean", [1e3, -1e3])
def test_a_law_without_a_level_in_the_models_range_is_refused(name, mean):
    with pytest.raises(InputError, match="ln sigma (near|about) .*: move it"):
        loss(LAWS[name](log_mean=mean))


def test_a_factor_of_ects_stages_is_finite():
    for q in (1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="q above 1"):
            EasyTuning(model(), total_steps=1, q=q)


BAD = {"nan": math.nan, "inf": math.inf}
SAMPLERS = {
    "solve_pf_ode": lambda s: solve_pf_ode(EXACT, X, s),
    "solve_adams": lambda s: solve_adams(EXACT, X, s),
    "solve_reverse_sde": lambda s: solve_reverse_sde(EXACT, X, s),
    "sample_multistep": lambda s: sample_multistep(model(), X, s),
    "annealed_langevin": lambda s: annealed_langevin(EXACT, X, s),
    "solve_signal_ode": lambda s: solve_signal_ode(EXACT, X, s),
    "diffuse": lambda s: diffuse(X, s.flip(0)),
    "distillation": lambda s: ConsistencyDistillation(model(), EXACT, s.flip(0)),
    "training tracks": lambda s: PathConsistency(model(), s.flip(0), distance=squared_l2),
    "direct": lambda s: DirectDistillation(student(), EXACT, s.flip(0)),
    "few steps": lambda s: FewStepStudent(EXACT, s.flip(0)),
    "boot": lambda s: Boot(model(SignalModel), EXACT, s.flip(0)),
}


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_are_finite(name, place, value):
    sigmas = torch.tensor([5.0, 1.0, 0.002], dtype=torch.float64)
    sigmas[place] = BAD[value]
    with pytest.raises(InputError):
        SAMPLERS[name](sigmas)


@pytest.mark.parametrize("ends", [(0.002, 80.0), (0.1, 5.0)])
def test_a_grid_has_the_ends_of_its_model(ends):
    grid = karras_sigmas(6, *ends)
    for make in (
        lambda: ConsistencyDistillation(model(), EXACT, grid),
        lambda: Boot(model(SignalModel), EXACT, grid),
        lambda: DirectDistillation(student(), EXACT, grid),
        lambda: ProgressiveDistillation(model(), EXACT, karras_sigmas(5, *ends)),
    ):
        with pytest.raises(InputError, match="ends"):
            make()


@pytest.mark.parametrize(
    "options",
    [
        {"boundary_weight": math.nan},
        {"bootstrap_weight": math.inf},
        {"decay": math.nan},
        {"decay": 1.0},
        {"boundary_weight": -1.0},
    ],
)
def test_boots_options_are_finite(options):
    with pytest.raises(InputError):
        Boot(model(SignalModel), EXACT, SIGMAS, **options)


def test_nothing_is_refused_that_fits():
    for objective in (
        ConsistencyDistillation(model(), EXACT, SIGMAS),
        ConsistencyTraining(model(), total_steps=1),
        Boot(model(SignalModel), EXACT, SIGMAS),
        DirectDistillation(student(), EXACT, SIGMAS),
        ProgressiveDistillation(EDMDenoiser(MLP()), EXACT, SIGMAS[1:]),
        edm_objective(EDMDenoiser(MLP())),
        EpsLoss(EpsDenoiser(MLP()), SCHEDULE),
    ):
        assert loss(objective).shape == (B,)
    assert next(empty_batches((B, 2), num_classes=2))[1].shape == (B,)
