"""Two passes of a student drop the same entries, in every objective of the course."""

import dataclasses

import pytest
import torch
from test_distributed import together
from test_networks import awake
from torch import nn

from consistency_edu import boot, consistency_training, distillation, improved, meanflow, networks
from consistency_edu.acceleration import speed_up
from consistency_edu.boot import Boot, SignalModel
from consistency_edu.consistency import ConsistencyModel
from consistency_edu.consistency_training import ConsistencyTraining
from consistency_edu.data import draw_normal, toy
from consistency_edu.distances import squared_l2
from consistency_edu.dropout import Dropout, same_dropout
from consistency_edu.experiments import consistency as lab09
from consistency_edu.experiments import consistency_training as lab12
from consistency_edu.experiments import distillation as lab11
from consistency_edu.experiments.consistency import PathConsistency
from consistency_edu.experiments.consistency_training import AveragedTraining, FreshNoiseTraining
from consistency_edu.experiments.distillation import FLOWS
from consistency_edu.images.methods import METHODS, build_network, build_objective
from consistency_edu.images.recipes import Recipe
from consistency_edu.improved import EasyTuning, ImprovedTraining
from consistency_edu.meanflow import MeanFlow, MeanFlowModel
from consistency_edu.networks import UNet
from consistency_edu.pf_ode import EDMDenoiser, karras_sigmas
from consistency_edu.score import ExactDenoiser

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SIGMAS = karras_sigmas(18, 0.002, 5.0)
EXACT = ExactDenoiser(toy("moons"))
SEEN = []


def each_its_own(*passes):
    """What same_dropout was broken to: passes that draw masks of their own."""
    return [network(*inputs) for network, *inputs in passes]


def break_sharing(monkeypatch):
    concepts = boot, consistency_training, distillation, improved, meanflow
    for module in (*concepts, lab09, lab11, lab12):
        monkeypatch.setattr(module, "same_dropout", each_its_own)


class Thinned(nn.Module):
    """A backbone with PyTorch's own dropout; it remembers each mask that it drew."""

    def __init__(self):
        super().__init__()
        self.scale, self.drop = nn.Parameter(torch.ones(())), nn.Dropout(0.5)

    def forward(self, x, c_noise, labels=None, gap=None):
        mask = self.drop(torch.ones_like(x))
        if self.training:
            SEEN.append(mask)
        return self.scale * mask * x


def model(kind=ConsistencyModel):
    return kind(Thinned(), sigma_min=0.002, sigma_max=5.0)


def training(kind, **options):
    return kind(model(), total_steps=10, s0=18, s1=17, **{"mu0": 0.0, **options})


OBJECTIVES = {
    **{
        f"{flow}, decay {decay}": lambda kind=kind, decay=decay: kind(
            model(), EXACT, SIGMAS, decay=decay
        )
        for flow, kind in FLOWS.items()
        for decay in (0.0, 0.9)
    },
    "ct": lambda: training(ConsistencyTraining),
    "ct, slow target": lambda: training(ConsistencyTraining, mu0=0.9),
    "ict": lambda: ImprovedTraining(model(), total_steps=10),
    "ect": lambda: EasyTuning(model(), total_steps=10),
    "imf": lambda: MeanFlow(model(MeanFlowModel), use_own_tangent=True),
    "fresh noise": lambda: training(FreshNoiseTraining),
    "averaged": lambda: AveragedTraining(
        model(), EXACT, draws=3, total_steps=10, s0=18, s1=17, mu0=0.0
    ),
    "boot": lambda: Boot(model(SignalModel), EXACT, SIGMAS, boundary_weight=0.0),
    "boot, slow target": lambda: Boot(
        model(SignalModel), EXACT, SIGMAS, boundary_weight=0.0, decay=0.9
    ),
    "paths": lambda: PathConsistency(model(), SIGMAS[:5], distance=squared_l2),
}


def masks(name, x=None):
    """The masks of the passes of the student in one step of the objective `name`."""
    torch.manual_seed(0)
    objective = OBJECTIVES[name]()
    x = torch.randn(64, *((5, 2) if name == "paths" else (2,))) if x is None else x
    SEEN.clear()
    objective(x, generator=torch.Generator().manual_seed(0)).mean().backward()
    return list(SEEN)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_both_passes_drop_the_same_entries(name, monkeypatch):
    first, *rest = masks(name)
    assert len(rest) == (3 if name == "averaged" else 1) and 0.3 < (first == 0).float().mean() < 0.7
    assert all(torch.equal(first, other) for other in rest)
    break_sharing(monkeypatch)
    first, *rest = masks(name)
    assert not any(torch.equal(first, other) for other in rest)


@pytest.mark.parametrize("name", ["paper, decay 0.9", "ct, slow target"])
def test_a_target_copied_in_evaluation_mode_drops_as_well(name):
    torch.manual_seed(0)
    objective = OBJECTIVES[name]()
    objective.target.slow.eval()
    SEEN.clear()
    objective(torch.randn(64, 2))
    assert len(SEEN) == 2 and torch.equal(*SEEN)
    SEEN.clear(), objective.online.eval()
    objective(torch.randn(64, 2))
    assert not SEEN and not objective.target.slow.training


def test_each_step_drops_others_and_no_pass_moves_the_generator_twice():
    drop, x = nn.Dropout(0.5), torch.ones(64, 2)
    torch.manual_seed(0)
    once, after = drop(x), drop(x)
    torch.manual_seed(0)
    assert all(torch.equal(once, mask) for mask in same_dropout((drop, x), (drop, x)))
    assert torch.equal(drop(x), after) and not torch.equal(once, after)


@pytest.mark.parametrize("drop", [nn.Dropout(0.5), Dropout(0.5)], ids=["PyTorch's", "ours"])
def test_masks_do_not_follow_the_layout_in_memory(drop):
    x = torch.rand(4, 3, 8, 8) + 1
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(*same_dropout((drop, x), (drop, last)))


def test_our_own_masks_are_the_same_in_any_layout():
    drop, x = Dropout(0.5), torch.rand(4, 3, 8, 8) + 1
    torch.manual_seed(0)
    flat = drop(x)
    torch.manual_seed(0)
    assert torch.equal(flat, drop(x.to(memory_format=torch.channels_last)))


# ------------------------------------------------------------------ recipes


FINE = {"points": 1281, "s0": 1280, "s1": 1280, "sigma_max": 80.0, "stages": 1, "q": 4096.0}
PASSES = {"teacher": 1, "cd": 2, "ct": 2, "ict": 2, "ect": 2, "scd": 1, "sct": 1, "meanflow": 1}
PASSES |= {"pd": 1, "direct": 1, "boot": 2, "dmd": 1}


def recipe(method, dropout, **changes):
    changes = {"points": 2} if method == "pd" else changes
    own = {"distance": "squared_l2", "weight": "uniform", "boundary": 0.0, "batch": 16}
    return Recipe(method, "", method, network="tiny", dropout=dropout, **{**own, **changes})


def objective_of(method, dropout, device="cpu", **changes):
    """The objective of a recipe, all its networks of random weights, none of them zero."""
    torch.manual_seed(0)
    chosen = recipe(method, dropout, **changes)
    network = awake(build_network(chosen, (1, 8, 8)))
    teacher = EDMDenoiser(awake(build_network(dataclasses.replace(chosen, dropout=0.0), (1, 8, 8))))
    return build_objective(dataclasses.replace(chosen, copy_teacher=False), network, teacher).to(
        device
    )


def loss_of(objective, device="cpu"):
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(device) * 2 - 1
    return float(objective(x, generator=torch.Generator(device).manual_seed(2)).mean().detach())


def test_every_method_is_known_to_these_tests():
    assert set(PASSES) == set(METHODS)


@pytest.mark.parametrize("method", PASSES)
def test_every_recipe_drops_the_same_in_all_passes_of_the_student(method, monkeypatch):
    seen = {}

    def note(layer, inputs, output):
        if layer.training:
            seen.setdefault(layer.place, []).append(output == 0)

    def passes():
        objective = objective_of(method, 0.3)
        for network in (part for part in objective.modules() if isinstance(part, UNet)):
            for place, layer in enumerate(p for p in network.modules() if isinstance(p, Dropout)):
                layer.place = place
                layer.register_forward_hook(note)
        seen.clear()
        loss_of(objective)
        return list(seen.values())

    def are_alike(rows):
        return all(torch.equal(row[0], mask) for row in rows for mask in row)

    rows = passes()
    assert rows and all(len(row) == PASSES[method] for row in rows) and are_alike(rows)
    break_sharing(monkeypatch)
    assert are_alike(passes()) == (PASSES[method] == 1)


def fine_losses(method, device="cpu"):
    """The losses of random networks on a grid of 1,281 points, without dropout and with it."""
    plain = loss_of(objective_of(method, 0.0, device, **FINE), device)
    thinned = loss_of(objective_of(method, 0.3, device, **FINE), device)
    return plain, thinned


@pytest.mark.parametrize("method", ["cd", "ct", "ict", "ect", "boot"])
def test_dropout_leaves_the_loss_of_a_fine_grid_at_its_size(method, monkeypatch):
    plain, thinned = fine_losses(method)
    assert 0.2 * plain < thinned < 5 * plain
    break_sharing(monkeypatch)
    assert fine_losses(method)[1] > 100 * plain


# ------------------------------------------------------------------ several workers, GPUs


def worker_loss():
    return fine_losses("ct")


def test_workers_share_masks_between_passes_too(tmp_path):
    answers = together(2, worker_loss, tmp_path)
    assert all(
        0.2 * plain < thinned < 5 * plain for plain, thinned in (a["result"] for a in answers)
    )


@on_cuda
@pytest.mark.parametrize("method", ["cd", "ct", "boot"])
@pytest.mark.parametrize("compiles", ["nothing", "networks", "graphs"])
def test_dropout_leaves_the_loss_at_its_size_on_a_gpu(method, compiles):
    losses = []
    for dropout in (0.0, 0.3):
        objective = objective_of(method, dropout, "cuda", **FINE)
        batch = draw_normal(torch.empty(16, 1, 8, 8, device="cuda")), None
        assert speed_up(objective, batch, precision=None, compiles=compiles) == (
            compiles != "nothing"
        )
        losses.append([loss_of(objective, "cuda") for _ in range(5)])
    plain, thinned = losses
    assert all(0.2 * plain[0] < loss < 5 * plain[0] for loss in thinned)
    assert len({round(loss, 12) for loss in thinned}) > 1  # each step drops others


@on_cuda
def test_masks_of_two_layouts_agree_on_a_gpu():
    x = torch.rand(4, 3, 8, 8, device="cuda") + 1
    last = x.to(memory_format=torch.channels_last)
    for drop in (nn.Dropout(0.5), networks.Dropout(0.5)):
        assert torch.equal(*same_dropout((drop, x), (drop, last)))
