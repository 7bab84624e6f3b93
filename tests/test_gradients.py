"""No gradient reaches a teacher, a target network or a goal: a lost stop-gradient fails here."""

import copy

import pytest
import torch

from consistency_edu.boot import Boot, SignalModel
from consistency_edu.consistency import ConsistencyModel, edm_coefficients
from consistency_edu.consistency_training import ConsistencyTraining
from consistency_edu.data import draw_points, toy
from consistency_edu.distillation import ConsistencyDistillation
from consistency_edu.improved import EasyTuning, ImprovedTraining
from consistency_edu.matching import DistributionMatching
from consistency_edu.meanflow import MeanFlow, MeanFlowModel
from consistency_edu.networks import MLP
from consistency_edu.pf_ode import EDMDenoiser, karras_sigmas
from consistency_edu.progressive import FewStepStudent
from consistency_edu.trigflow import ContinuousConsistency

GRID = karras_sigmas(18, 0.002, 5.0)


def learner(kind):
    torch.manual_seed(0)
    return kind(MLP(), sigma_max=5.0)


def make(name):
    """One objective of each kind, and its teacher (or None)."""
    teacher = EDMDenoiser(MLP())
    if name == "ct":
        online = learner(ConsistencyModel)
        return ConsistencyTraining(online, total_steps=9, s0=8, s1=9, mu0=0.0), None
    if name == "ct slow":
        return ConsistencyTraining(learner(ConsistencyModel), total_steps=9, s0=8, s1=9), None
    if name in ("ict", "ect"):
        kind = {"ict": ImprovedTraining, "ect": EasyTuning}[name]
        return kind(learner(ConsistencyModel), total_steps=9), None
    if name in ("meanflow", "imf", "meanflow taught"):
        online = MeanFlowModel(MLP(use_gap=True), sigma_max=5.0)
        its = teacher if "taught" in name else None
        return MeanFlow(online, its, use_own_tangent=name == "imf"), its
    if name == "dmd":
        online = FewStepStudent(EDMDenoiser(MLP()), [0.0, 5.0])
        objective = DistributionMatching(online, teacher, EDMDenoiser(MLP()))
        objective.after_step()  # it is the student's turn
        return objective, torch.nn.ModuleList([teacher, objective.fake])
    if name in ("scd", "sct"):
        online = ConsistencyModel(MLP(), sigma_max=5.0, coefficients=edm_coefficients)
        return ContinuousConsistency(online, teacher if name == "scd" else None), teacher
    if name == "boot":
        return Boot(learner(SignalModel), teacher, GRID), teacher
    decay = 0.9 if name == "cd slow" else 0.0
    return ConsistencyDistillation(learner(ConsistencyModel), teacher, GRID, decay=decay), teacher


NAMES = ["cd", "cd slow", "ct", "ct slow", "ict", "ect", "scd", "sct", "boot"]
NAMES += ["meanflow", "imf", "meanflow taught", "dmd"]


class Watched(torch.nn.Module):
    """Passes calls on, and remembers the outputs that carry a gradient."""

    def __init__(self, model):
        super().__init__()
        self.model, self.traced = model, 0

    def __getattr__(self, name):
        return super().__getattr__(name) if name in ("model",) else getattr(self.model, name)

    def forward(self, *args):
        output = self.model(*args)
        self.__dict__["traced"] = self.__dict__.get("traced", 0) + int(output.requires_grad)
        return output


@pytest.mark.parametrize("name", NAMES)
def test_only_the_online_network_gets_a_gradient(name, generator):
    objective, teacher = make(name)
    x = draw_points(toy("moons"), 64, generator=generator)[0]
    objective(x, generator=generator).mean().backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in objective.online.parameters())
    frozen = list(teacher.parameters()) if teacher else []
    if hasattr(objective, "target"):
        frozen += list(objective.target.parameters())
        assert (len(list(objective.target.parameters())) > 0) == ("slow" in name)
    assert all(p.grad is None for p in frozen)


@pytest.mark.parametrize(
    ("name", "expected"), [("cd", 1), ("ct", 1), ("ict", 1), ("ect", 1), ("boot", 2)]
)
def test_goals_carry_no_gradient(name, expected, generator):
    """Of the online network's answers in one loss only those that are trained are traced."""
    objective, _ = make(name)
    watched = Watched(objective.online)
    objective.online = watched
    if hasattr(objective, "target"):
        objective.target._online[0] = watched
    x = draw_points(toy("moons"), 64, generator=generator)[0]
    objective(x, generator=generator).mean().backward()
    assert watched.__dict__["traced"] == expected


@pytest.mark.parametrize("name", ["cd", "scd", "boot", "meanflow taught"])
def test_the_teacher_is_asked_without_a_graph(name, generator):
    objective, teacher = make(name)
    traced = []
    teacher.register_forward_hook(lambda *args: traced.append(args[-1].requires_grad))
    objective(draw_points(toy("moons"), 64, generator=generator)[0], generator=generator)
    assert traced and not any(traced)


def test_consistency_training_uses_one_noise_for_both_points(generator):
    objective, _ = make("ct slow")
    seen = {}
    for role, model in (("goal", objective.target), ("answer", objective.online)):
        model.register_forward_pre_hook(lambda _, args, role=role: seen.update({role: args[:2]}))
    x = draw_points(toy("moons"), 64, generator=generator)[0]
    objective(x, generator=generator)
    noises = [(noisy - x) / sigma[:, None] for noisy, sigma in (seen["goal"], seen["answer"])]
    assert torch.allclose(*noises, atol=2e-3)
    assert (seen["goal"][1] < seen["answer"][1]).all()


@pytest.mark.parametrize("name", ["cd slow", "ct slow"])
def test_the_slow_target_follows_by_its_share(name):
    objective, _ = make(name)
    before = copy.deepcopy(objective.target.slow.state_dict())
    with torch.no_grad():
        for p in objective.online.parameters():
            p.add_(1.0)
    objective.after_step()
    for key, now in objective.target.slow.state_dict().items():
        if "frequencies" not in key:
            assert torch.allclose(now - before[key], torch.tensor(0.1), atol=1e-5), key


def test_with_decay_zero_the_target_is_the_online_network():
    objective, _ = make("cd")
    x, sigma = torch.randn(8, 2), torch.full((8,), 1.0)
    with torch.no_grad():
        objective.online.network.last.weight.mul_(2)
    assert torch.equal(objective.target(x, sigma), objective.online(x, sigma))
    assert not objective.target(x, sigma).requires_grad
    assert len(list(objective.parameters())) == len(
        [*objective.online.parameters(), *objective.teacher.parameters()]
    )


def test_the_target_sees_the_cleaner_point(generator):
    """Direction: the goal is made at the smaller sigma."""
    objective, _ = make("cd")
    seen = []
    objective.target.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    objective(draw_points(toy("moons"), 64, generator=generator)[0], generator=generator)
    assert (seen[0] < objective.last_sigma).all()


def test_data_free_objectives_need_no_data(generator):
    objective, _ = make("boot")
    assert objective(torch.full((16, 2), float("nan")), generator=generator).isfinite().all()
