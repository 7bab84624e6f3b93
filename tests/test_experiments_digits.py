"""The judge of digits and the rows of its table."""

import numpy as np
import pytest
import torch

from consistency_edu.data import InputError
from consistency_edu.experiments.digits import DigitsConfig, DigitsJudge, run_digits, title
from consistency_edu.image_recipes import DIGITS_RECIPES, RECIPES
from consistency_edu.image_sets import load_images, to_floats


@pytest.fixture(scope="module")
def judge():
    return DigitsJudge()


def test_the_judge_is_fitted_to_training_scans_alone(judge):
    train, test = (to_floats(load_images("digits", s).images).flatten(1) for s in ("train", "test"))
    assert torch.equal(judge.mean, train.mean(0)) and len(judge.test) == len(test) == 449
    basis = torch.linalg.svd(train - train.mean(0), full_matrices=False).Vh[:20].T
    assert torch.allclose(judge.basis.abs(), basis.abs(), atol=1e-4)
    assert judge.project(judge.train).mean(0).abs().max() < 1e-4
    assert judge.classifier.n_iter_ > 1
    assert not (test[:, None] == train[None, :50]).all(2).any()


def test_real_digits_set_the_floor(judge):
    floor = judge.floor()
    assert 0.2 < floor["frechet"] < 0.45 and min(floor["precision"], floor["recall"]) > 0.85
    assert 0.9 < floor["confident"] < 0.98 and floor["copies"] == pytest.approx(0.05, abs=0.01)


def test_the_judge_sees_copies_and_missing_classes(judge):
    rows = torch.arange(judge.draws * judge.count)
    copies = judge.measure(judge.train[rows % len(judge.train)])
    assert copies["copies"] == 1 and copies["distance"] == 0
    ones = judge.train[judge.odds(judge.train).argmax(1) == 1]
    few = judge.measure(ones[rows % len(ones)])
    assert few["classes"][1] == 1 and few["recall"] < 0.2 and few["frechet"] > 5


def test_all_methods_of_a_seed_share_their_noise():
    one, again, other = DigitsJudge(1, 0), DigitsJudge(1, 0), DigitsJudge(1, 1)
    assert torch.equal(one.noise, again.noise) and not torch.equal(one.noise, other.noise)


def test_rows_have_names_of_their_own():
    names = {title(recipe, 1) for recipe in DIGITS_RECIPES}
    assert len(names) == len(DIGITS_RECIPES)
    assert title(RECIPES["digits-boot-guided"], 1) == "BOOT guided, w = 2, 1 NFE"


@pytest.mark.parametrize("bad", [{"effort": 0.0}, {"seed": -1}, {"only": ("boott",)}])
def test_bad_tables_are_refused(bad, tmp_path):
    with pytest.raises(InputError):
        run_digits(DigitsConfig(out=tmp_path, **bad))
    assert not list(tmp_path.iterdir())


def test_a_line_shows_the_numbers(judge):
    row = {"title": "real", **judge.floor(), "seconds": 3.0}
    assert f"{row['frechet']:.3f}" in format_row(row)


def test_what_is_no_digit_is_refused(judge):
    for bad in (torch.zeros(449, 3, 32, 32), torch.zeros(449, 1, 8, 16), torch.zeros(449, 1)):
        for action in (judge.measure, judge.look, judge.project, judge.nearest, judge.odds):
            with pytest.raises(InputError, match="8 x 8"):
                action(bad)
    for count in (0, 60, 450):
        with pytest.raises(InputError, match="449"):
            judge.measure(torch.zeros(count, 1, 8, 8))
    with pytest.raises(InputError, match="not finite"):
        judge.look(torch.full((4, 1, 8, 8), float("inf")))


def test_the_judge_leaves_the_global_randomness_as_it_was():
    torch.manual_seed(7)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    judge = DigitsJudge()
    judge.floor()
    assert torch.equal(before, torch.get_rng_state())
    assert (numpys == np.random.get_state()[1]).all()  # noqa: NPY002
