"""A run that is put down and taken up again ends, on a CPU, bit for bit where it would have."""

import pytest
import torch

from consistency_edu.boot import Boot, SignalModel
from consistency_edu.checkpoints import load_checkpoint, save_checkpoint
from consistency_edu.consistency import ConsistencyModel, edm_coefficients
from consistency_edu.consistency_training import ConsistencyTraining
from consistency_edu.data import InputError, load_digits, toy, toy_batches
from consistency_edu.distillation import ConsistencyDistillation
from consistency_edu.improved import EasyTuning, ImprovedTraining
from consistency_edu.matching import DistributionMatching
from consistency_edu.meanflow import MeanFlow, MeanFlowModel
from consistency_edu.networks import MLP, UNet
from consistency_edu.pf_ode import EDMDenoiser, edm_objective, karras_sigmas
from consistency_edu.progressive import DirectDistillation, FewStepStudent
from consistency_edu.training import train
from consistency_edu.trigflow import ContinuousConsistency, LearnedWeight

GRID, STEPS, STOP = karras_sigmas(9, 0.002, 5.0), 12, 5


def make(name, seed):
    """An objective of one kind; all have the same teacher, whatever their own seed."""
    torch.manual_seed(100)
    teacher = EDMDenoiser(MLP(width=16))
    torch.manual_seed(seed)
    if name == "dsm":
        return edm_objective(EDMDenoiser(MLP(width=16)))
    if name == "unet with dropout":
        return edm_objective(EDMDenoiser(UNet(width=8, dropout=0.3, num_classes=10)))
    if name == "boot":
        return Boot(SignalModel(MLP(width=16), sigma_max=5.0), teacher, GRID)
    if name in ("meanflow", "imf"):
        online = MeanFlowModel(MLP(width=16, use_gap=True), sigma_max=5.0)
        return MeanFlow(online, use_own_tangent=name == "imf")
    if name == "meanflow with a teacher":
        return MeanFlow(MeanFlowModel(MLP(width=16, use_gap=True), sigma_max=5.0), teacher)
    if name == "meanflow, unet with dropout":
        network = UNet(width=8, dropout=0.3, num_classes=10, use_gap=True)
        return MeanFlow(MeanFlowModel(network), use_own_tangent=True)
    if name.startswith("dmd"):
        unet = {"width": 8, "dropout": 0.3, "num_classes": 10}
        student, fake = (
            EDMDenoiser(UNet(**unet) if "unet" in name else MLP(width=16)) for _ in range(2)
        )
        online = FewStepStudent(student, [0.002, 5.0])
        more = DirectDistillation(online, teacher, GRID) if "regression" in name else None
        teacher = teacher if "unet" not in name else lambda x, sigma, labels: 0 * x
        return DistributionMatching(online, teacher, fake, updates=2, regression=more)
    model = ConsistencyModel(MLP(width=16), sigma_max=5.0)
    if name in ("ict", "ect"):
        return {"ict": ImprovedTraining, "ect": EasyTuning}[name](model, total_steps=STEPS)
    if name in ("scd", "sct"):
        model = ConsistencyModel(MLP(width=16), sigma_max=5.0, coefficients=edm_coefficients)
        options = {"warmup": STEPS, "adaptive": LearnedWeight()}
        return ContinuousConsistency(model, teacher if name == "scd" else None, **options)
    if name == "cd":
        return ConsistencyDistillation(model, teacher, GRID, decay=0.9)
    return ConsistencyTraining(model, total_steps=STEPS, s0=4, s1=20, mu0=0.9)


NAMES = ["dsm", "unet with dropout", "cd", "ct", "ict", "ect", "scd", "sct", "boot"]
NAMES += ["meanflow", "imf", "meanflow with a teacher", "meanflow, unet with dropout"]
NAMES += ["dmd", "dmd with regression", "dmd, unet with dropout"]


def batches_of(name, generator):
    """Points, or labelled digits, drawn from the run's generator."""
    if "unet" not in name:
        yield from toy_batches(toy("moons"), 16, generator=generator)
    images, labels = load_digits()
    while True:
        rows = torch.randint(len(images), (8,), generator=generator)
        yield images[rows], labels[rows]


def begin(name, seed, **options):
    """A run of `STEPS` steps."""
    generator = torch.Generator().manual_seed(seed)
    options = {"steps": STEPS, "generator": generator, **options}
    return train(make(name, seed), batches_of(name, generator), **options)


def everything(state):
    """All tensors and numbers of the objective, and the average."""
    objective = {k: v for k, v in state.objective.state_dict().items()}
    return objective | {f"ema.{k}": v for k, v in state.ema.model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_bit_for_bit_where_an_undisturbed_one_does(name, tmp_path):
    losses = []
    for state in begin(name, 0, clip=1.0):
        losses.append(state.loss)
        if state.step == STOP:
            save_checkpoint(tmp_path / "last", state)
    resumed = list(begin(name, 1, clip=1.0, resume=load_checkpoint(tmp_path / "last")))
    assert [s.step for s in resumed] == list(range(STOP + 1, STEPS + 1))
    assert [s.loss for s in resumed] == losses[STOP:]
    ours, theirs = everything(resumed[-1]), everything(state)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        same = torch.equal(value, theirs[key]) if torch.is_tensor(value) else value == theirs[key]
        assert same, key
    again, once = resumed[-1].optimizer.state_dict(), state.optimizer.state_dict()
    for k, slot in once["state"].items():
        assert all(torch.equal(slot[n], again["state"][k][n]) for n in slot)


def test_a_checkpoint_holds_no_teacher_and_no_code(tmp_path):
    saved = save_checkpoint(tmp_path / "runs" / "cd", next(begin("cd", 0)))
    checkpoint = load_checkpoint(saved)
    assert not [name for name in checkpoint.objective if name.startswith("teacher")]
    assert [name for name in checkpoint.objective if name.startswith("target.slow")]
    assert {p.suffix for p in saved.iterdir()} == {".json", ".safetensors", ".pt"}
    torch.load(saved / "rest.pt", weights_only=True)
    assert [p.name for p in saved.parent.iterdir()] == ["cd"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "ct", next(begin("ct", 0))))
    for name, options in (("cd", {}), ("ct", {"steps": 1}), ("ct", {"generator": None})):
        with pytest.raises(InputError):
            next(begin(name, 0, resume=checkpoint, **options))
