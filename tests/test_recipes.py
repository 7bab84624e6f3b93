"""The toy experiment, small: its rows, its judges, and what is paired with what."""

import json

import pytest
import torch

from consistency_edu import recipes
from consistency_edu.data import toy
from consistency_edu.metrics import sliced_w2
from consistency_edu.pf_ode import Guided
from consistency_edu.recipes import Judge, ToyConfig, label, run_toy, solution
from consistency_edu.sampling import sample_one_step
from consistency_edu.score import ExactDenoiser


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "PAIRS", 64)
        patch.setattr(recipes, "animate_run", lambda run, path: path)
        out = tmp_path_factory.mktemp("toy")
        files = run_toy(ToyConfig(out=out, steps=8, samples=60), report=lambda text: None)
        return json.loads(files["table"].read_text())["rows"]


def test_every_method_has_its_rows(rows):
    kinds = [(row["method"], row["teacher"], row["nfe"]) for row in rows]
    students = [("direct", "learned", 1), ("pd", "learned", 2), ("pd", "learned", 1)]
    assert set(students + [("boot", "learned", 1), ("boot", "guided", 1)]) <= set(kinds)
    assert len(kinds) == len(set(kinds)) == 13
    assert len({label(row) for row in rows}) == 13


def test_only_walks_and_jumps_are_paired(rows):
    for row in rows:
        restarts = row["nfe"] == 2 and row["method"] in ("cd", "ct")
        assert (row["paired_error"] is None) == restarts, row


def test_the_guided_judge_asks_the_guided_teacher(generator):
    mixture = toy("moons")
    judge = Judge.of(mixture, 200, generator)
    teacher = Guided(ExactDenoiser(mixture), 2.0)
    guided = judge.guided(teacher, generator)
    assert torch.equal(guided.noise, judge.noise)
    assert torch.bincount(guided.labels).tolist() == [100, 100]
    exact = sample_one_step(solution(teacher, steps=24), judge.noise, guided.labels)
    assert torch.allclose(guided.ends, exact)
    assert (guided.fresh - guided.ends).norm(dim=1).median() > 0.1  # from other noises
    assert sliced_w2(guided.ends, judge.fresh) > sliced_w2(judge.ends, judge.fresh)
