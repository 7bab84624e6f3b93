"""The benchmark of digits and the rows of its table."""

import dataclasses

import numpy as np
import pytest
import torch

from consistency_edu.data import InputError, draw_normal
from consistency_edu.experiments import digits
from consistency_edu.experiments.benchmarks import DigitsBenchmark
from consistency_edu.experiments.digits import (
    PROBES,
    DigitsConfig,
    format_row,
    run_digits,
    tangent_lengths,
    title,
)
from consistency_edu.image_sets import load_images, to_floats
from consistency_edu.images.recipes import DIGITS_RECIPES, RECIPES
from consistency_edu.images.trainer import train_recipe
from consistency_edu.trigflow import trig_model


@pytest.fixture(scope="module")
def bench():
    return DigitsBenchmark()


def test_the_benchmark_is_fitted_to_training_scans_alone(bench):
    train, test = (to_floats(load_images("digits", s).images).flatten(1) for s in ("train", "test"))
    assert torch.equal(bench.mean, train.mean(0)) and len(bench.test) == len(test) == 449
    basis = torch.linalg.svd(train - train.mean(0), full_matrices=False).Vh[:20].T
    assert torch.allclose(bench.basis.abs(), basis.abs(), atol=1e-4)
    assert bench.project(bench.train).mean(0).abs().max() < 1e-4
    assert bench.classifier.n_iter_ > 1
    assert not (test[:, None] == train[None, :50]).all(2).any()


def test_real_digits_set_the_floor(bench):
    floor = bench.floor()
    assert 0.2 < floor["frechet"] < 0.45 and min(floor["precision"], floor["recall"]) > 0.85
    assert 0.9 < floor["confident"] < 0.98 and floor["copies"] == pytest.approx(0.05, abs=0.01)


def test_the_benchmark_sees_copies_and_missing_classes(bench):
    rows = torch.arange(bench.draws * bench.count)
    copies = bench.evaluate(bench.train[rows % len(bench.train)])
    assert copies["copies"] == 1 and copies["nearest"] == 0
    ones = bench.train[bench.odds(bench.train).argmax(1) == 1]
    few = bench.evaluate(ones[rows % len(ones)])
    assert few["classes"][1] == 1 and few["recall"] < 0.2 and few["frechet"] > 5


def test_all_methods_of_a_seed_share_their_noise():
    one, again, other = DigitsBenchmark(1, 0), DigitsBenchmark(1, 0), DigitsBenchmark(1, 1)
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


def test_a_line_shows_the_numbers(bench):
    row = {"title": "real", **bench.floor(), "seconds": 3.0}
    assert f"{row['frechet']:.3f}" in format_row(row)


def test_flat_digits_are_the_same_digits(bench):
    flat = DigitsBenchmark(shape=(64,))
    assert flat.noise.shape == (1796, 64) and torch.equal(flat.noise, bench.noise.flatten(1))
    x = bench.train[torch.arange(1796) % len(bench.train)]
    found = flat.evaluate(x.flatten(1), flat.labels)
    own = (bench.odds(x).argmax(1) == bench.labels).double().mean()
    assert found.pop("own_class") == float(own) < 0.3 and found == bench.evaluate(x)


def test_what_is_no_digit_is_refused(bench):
    for bad in (torch.zeros(449, 3, 32, 32), torch.zeros(449, 1, 8, 16), torch.zeros(449, 1)):
        for action in (bench.evaluate, bench.look, bench.project, bench.nearest, bench.odds):
            with pytest.raises(InputError, match="8 x 8"):
                action(bad)
    for count in (0, 60, 450):
        with pytest.raises(InputError, match="449"):
            bench.evaluate(torch.zeros(count, 1, 8, 8))
    with pytest.raises(InputError, match="not finite"):
        bench.look(torch.full((4, 1, 8, 8), float("inf")))


def test_the_benchmark_leaves_the_global_randomness_as_it_was():
    torch.manual_seed(7)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    DigitsBenchmark().floor()
    assert torch.equal(before, torch.get_rng_state())
    assert (numpys == np.random.get_state()[1]).all()  # noqa: NPY002


def test_tangents_of_a_silent_network_are_known():
    x = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    silent = torch.nn.Flatten()  # some module
    silent.forward = lambda x, *_: 0 * x
    model = trig_model(silent, sigma_data=0.5)
    found = tangent_lengths(model, lambda x, sigma: x, x)  # f is cos² t · x, and x stands still
    noise = draw_normal(x, torch.Generator().manual_seed(0))
    for level, length in zip(PROBES, found):
        t = torch.tensor(level / 0.5).atan()
        lengths = 2 * t.cos() ** 2 * t.sin() * (x + level * noise).flatten(1).norm(dim=1)
        assert length == pytest.approx(float(lengths.median()), rel=0.006)


@pytest.mark.parametrize(
    ("method", "given"),
    [("cd", {"teacher"}), ("ect", {"start"}), ("ict", set()), ("boot", {"teacher"})],
)
def test_a_run_of_a_sweep_is_given_what_its_method_needs(
    method, given, bench, tmp_path, monkeypatch
):
    asked, known = {}, tmp_path / "teacher"

    def spy(recipe, folder, **options):
        asked.update(options, recipe=recipe)
        return train_recipe(recipe, folder, **options)

    train_recipe(dataclasses.replace(RECIPES["digits-teacher"], steps=2), known)
    monkeypatch.setattr(digits, "train_digits", lambda recipe, config: known)
    monkeypatch.setattr(digits, "digits_benchmark", lambda seed: bench)
    monkeypatch.setattr(digits, "train_recipe", spy)
    setting = {"method": method, "steps": 2, "batch": 8, "optimizer": "adam_without_momentum"}
    found = digits.run_setting(setting, 3)
    assert found.keys() == {"frechet"} and found["frechet"] > 1
    assert asked.keys() - {"recipe", "seed"} == given and asked["seed"] == 3
    assert all(getattr(asked["recipe"], key) == value for key, value in setting.items())


def test_the_sweep_of_batches_spends_the_same_images():
    settings = digits.DIGITS_SWEEPS["digits_batch"].settings
    assert {s["batch"] * s["steps"] for s in settings} == {2**19} and len(settings) == 3 * 3
    assert all(s.keys() == {"method", "batch", "steps"} for s in settings)
    assert all(RECIPES[f"digits-{s['method']}"].batch in digits.BATCHES for s in settings)


def test_layers_are_rounded_within_and_nowhere_else():
    layers = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))
    x = torch.rand(7, 3, generator=torch.Generator().manual_seed(0))
    before = layers(x)
    for precision in (torch.bfloat16, torch.float16):
        with digits.rounding_to(precision):
            hidden, after = layers[:2](x), layers(x)
        assert after.dtype == torch.float32 and torch.equal(after, after.to(precision).float())
        assert not torch.equal(hidden, hidden.to(precision).float())  # tanh is no linear layer
        assert 0 < (after - before).abs().max() < 4 * torch.finfo(precision).eps
    with digits.rounding_to(torch.float32):
        assert torch.equal(layers(x), before)
    with pytest.raises(KeyError), digits.rounding_to(torch.bfloat16):
        raise KeyError
    assert torch.equal(layers(x), before)


def test_a_rounded_run_is_a_run_of_the_rest_in_rounded_layers(monkeypatch):
    layer, x, seen = torch.nn.Linear(3, 4), torch.rand(2, 3), {}

    def run(setting, seed):
        seen.update(setting=setting, seed=seed, answer=layer(x))
        return {"frechet": 1.0}

    monkeypatch.setattr(digits, "run_setting", run)
    setting = {"method": "ect", "stages": 8, "precision": "bfloat16"}
    assert digits.run_rounded(setting, 3) == {"frechet": 1.0}
    assert seen["setting"] == {"method": "ect", "stages": 8} and seen["seed"] == 3
    assert torch.equal(seen["answer"], seen["answer"].bfloat16().float())


def test_the_sweep_of_rounding_changes_precision_and_stages_alone():
    settings = digits.DIGITS_SWEEPS["digits_rounding"].settings
    assert {(s["method"], s["steps"]) for s in settings} == {("ect", 1000)}
    assert len({(s["precision"], s["stages"]) for s in settings}) == len(settings) == 3 * 5
    assert RECIPES["digits-ect"].stages in digits.STAGES


def test_the_sweep_of_momentum_changes_nothing_else():
    settings = digits.DIGITS_SWEEPS["digits_momentum"].settings
    pairs = [{k: v for k, v in s.items() if k != "optimizer"} for s in settings]
    assert pairs[::2] == pairs[1::2] and len(settings) == 2 * (8 + 5)
    assert {s["optimizer"] for s in settings[::2]} == {"adam"}
    for setting in settings[17::2]:  # the whole recipes, as they are
        recipe = RECIPES[f"digits-{setting['method']}"]
        assert all(getattr(recipe, key) == value for key, value in setting.items())
