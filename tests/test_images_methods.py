"""Recipes as data, and the one path from a recipe to its objective for digits and photographs."""

import dataclasses
import hashlib
import warnings

import classifier as classifier_tool
import lpips
import pytest
import torch
from conftest import command
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import squeezenet1_1

from consistency_edu.data import InputError
from consistency_edu.distances import WEIGHTS, FeatureDistance
from consistency_edu.features import ClassifierFeatures
from consistency_edu.guidance import Guided
from consistency_edu.images import methods
from consistency_edu.images import perceptual as perceptual_module
from consistency_edu.images.methods import (
    METHODS,
    build_model,
    build_network,
    build_objective,
    check_recipe,
    distance_of,
    draw_samples,
    evaluations,
    network_in,
    override,
    sigma_grid,
    to_sampler,
    wrap_teacher,
)
from consistency_edu.images.perceptual import (
    EfficientNetMaps,
    LpipsMaps,
    load_classifier,
    perceptual,
    perceptual_distance,
)
from consistency_edu.images.recipes import RECIPES, Recipe, describe, measured_results
from consistency_edu.pf_ode import EDMDenoiser, heun_step
from consistency_edu.progressive import Halving
from consistency_edu.sampling import Clamped
from consistency_edu.training import train

SHAPE = (1, 4, 4)


def teacher_of(recipe, classes=0):
    torch.manual_seed(5)
    return EDMDenoiser(build_network(recipe, SHAPE, classes), recipe.sigma_data)


def objective_of(method, classes=0, **choices):
    recipe = Recipe("try", method=method, **{"points": 8, "steps": 14, **choices})
    torch.manual_seed(0)
    teacher = teacher_of(recipe, classes)
    return recipe, build_objective(recipe, build_network(recipe, SHAPE, classes), teacher, classes)


class Own(nn.Module):
    """A network of a user's own: one convolution, which is told the noise level."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, x, c_noise, labels=None, gap=None):
        level = c_noise[:, None, None, None].expand(-1, 1, *x.shape[2:])
        return self.conv(torch.cat([x, level], 1))


@pytest.fixture
def own(monkeypatch):
    build = lambda recipe, shape, classes: Own(shape[0])  # noqa: E731
    monkeypatch.setitem(methods.NETWORKS, "own", build)


@pytest.mark.parametrize("method", METHODS)
def test_a_network_of_ones_own_is_one_entry(method, own):
    recipe, objective = objective_of(method, network="own")
    loss = objective(torch.rand(3, *SHAPE) * 2 - 1, generator=torch.Generator().manual_seed(0))
    assert loss.shape == (3,) and loss.isfinite().all()
    assert isinstance(network_in(to_sampler(recipe, build_model(recipe, Own(1)))), Own)


def test_a_network_of_ones_own_is_trained_and_sampled_by_the_commands(own, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    few = ("--network=own", "--steps=2", "--batch=8", "--points=4")
    assert command("train", "digits-teacher", *few, "--out=teacher")[0] == 0
    assert command("train", "digits-cd", *few, "--out=student", "--teacher=teacher")[0] == 0
    assert command("sample", "student", "--nrow=2", "--ncol=2")[0] == 0
    monkeypatch.delitem(methods.NETWORKS, "own")
    status, said = command("sample", "student")
    assert status == 2 and "'own', is not known here: load the run where" in said
    assert "damaged" not in said


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"lrr": "1"}, "did you mean 'lr'?"),
        ({"lr": "fast"}, "give a float"),
        ({"steps": "1.5"}, "give a int"),
        ({"network": "smal"}, "did you mean 'small'?"),
        ({"method": "bot"}, "did you mean 'boot'?"),
        ({"batch": "0"}, "must be above 0"),
        ({"sigma_max": "0.1"}, "sigma_min < middle < sigma_max"),
        ({"method": "pd", "points": "18"}, "a power of 2 for pd"),
        ({"points": "1"}, "at least 2"),
        ({"guidance": "2"}, "guidance needs classes"),
        ({"accumulate": "3"}, "a batch of 128 has no 3 equal parts"),
        ({"accumulate": "2", "compiles": "graphs"}, "give --compiles networks"),
    ],
)
def test_bad_changes_are_refused_with_a_remedy(changes, remedy):
    with pytest.raises(InputError, match=remedy.replace("?", r"\?")):
        override(Recipe("plain"), changes)


def test_changes_take_the_type_of_their_field():
    recipe = override(Recipe("plain"), {"lr": "1e-3", "batch": "7", "flip": "true"})
    assert (recipe.lr, recipe.batch, recipe.flip) == (1e-3, 7, True)
    assert override(recipe, {"flip": "false"}).flip is False


NUMBERS = [f.name for f in dataclasses.fields(Recipe) if type(f.default) in (int, float)]


@pytest.mark.parametrize("field", NUMBERS)
def test_every_number_has_a_range(field):
    recipe = Recipe("plain", labels=True)
    for word in ("nan", "inf", "-inf", "1e999", "-1000", "1e30", str(10**30)):
        with pytest.raises(InputError, match=field):
            override(recipe, {field: word})
    for value in (float("nan"), float("inf"), None, "7", True):
        with pytest.raises(InputError, match=field):
            check_recipe(dataclasses.replace(recipe, **{field: value}))


@pytest.mark.parametrize("field", ["flip", "labels", "copy_teacher", "clamp"])
def test_words_for_switches_are_understood_or_refused(field):
    recipe = Recipe("plain")
    for words, value in (("yes on true 1 Y T YES", True), ("no off false 0 N F No", False)):
        for word in (*words.split(), value):
            assert getattr(override(recipe, {field: word}), field) is value
    for word in ("", "maybe", "2", "nan", "yess", "none", "tru"):
        with pytest.raises(InputError, match=f"{field} is '{word}': give yes or no"):
            override(recipe, {field: word})
    for value in (1, 0, "yes", None):
        with pytest.raises(InputError, match=field):
            check_recipe(dataclasses.replace(recipe, **{field: value}))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_the_recipes_of_the_course_are_in_range(recipe):
    assert check_recipe(recipe) is recipe


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_samples(method, generator):
    recipe, objective = objective_of(method)
    x = (
        torch.full((6, *SHAPE), float("nan"))
        if method in ("direct", "boot", "dmd")
        else torch.rand(6, *SHAPE)
    )
    if method == "dmd":
        objective.step = objective.turns - 1  # the student's turn, with a fake that has learned
        with torch.no_grad():
            for weight in objective.fake.parameters():
                weight.mul_(1.1)
    loss = objective(x, generator=generator)
    loss.mean().backward()
    assert loss.shape == (6,) and loss.isfinite().all()
    grads = [p.grad for p in objective.online.parameters() if p.grad is not None]
    assert grads and sum(float(g.abs().sum()) for g in grads) > 0
    shown = to_sampler(recipe, objective.online)
    noise = torch.randn(3, *SHAPE, generator=generator)
    assert draw_samples(recipe, shown, noise).shape == noise.shape


@pytest.mark.parametrize("method", ["cd", "pd", "direct", "boot"])
def test_teachers_get_no_gradient_and_students_their_weights(method):
    recipe, objective = objective_of(method)
    teacher = teacher_of(recipe)
    theirs, ours = teacher.network.state_dict(), objective.online.state_dict()
    assert all(any(torch.equal(v, o) for o in ours.values()) for v in theirs.values())
    source = objective.mentor if method == "pd" else objective.teacher
    assert not any(p.requires_grad for p in source.parameters())
    fresh = objective_of(method, copy_teacher=False)[1].online.state_dict()
    weights = [v for v in theirs.values() if v.ndim == 2]
    assert not any(torch.equal(v, o) for v in weights for o in fresh.values())


def test_a_student_without_a_teacher_is_told_to_get_one():
    recipe = Recipe("try", method="cd")
    with pytest.raises(InputError, match="--teacher"):
        build_objective(recipe, build_network(recipe, SHAPE))


def test_another_network_than_the_teachers_is_refused():
    recipe = Recipe("try", method="cd")
    teacher = EDMDenoiser(build_network(recipe, (1, 2, 2)))
    with pytest.raises(InputError, match="network is another one"):
        build_objective(recipe, build_network(recipe, SHAPE), teacher)


@pytest.mark.parametrize("method", ["teacher", "ct", "ict", "ect", "scd", "sct", "cd", "boot"])
def test_a_run_can_start_from_any_model_with_the_same_network(method):
    recipe = Recipe("try", method=method, points=8)
    teacher = EDMDenoiser(build_network(recipe, SHAPE))
    first = to_sampler(dataclasses.replace(recipe, method="boot"), objective_of("boot")[1].online)
    network = build_network(recipe, SHAPE)
    needs = teacher if METHODS[method].needs_teacher else None
    build_objective(recipe, network, needs, start=first)
    theirs = methods.network_in(first).state_dict()
    assert all(torch.equal(v, theirs[name]) for name, v in network.state_dict().items())
    other = EDMDenoiser(build_network(recipe, (1, 2, 2)))
    with pytest.raises(InputError, match="--start"):
        build_objective(recipe, network, needs, start=other)


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("ict", {"s0": 3, "s1": 12, "log_mean": 0.5, "log_std": 1.5}),
        ("ect", {"stages": 3, "q": 4.0, "denoising": 0.25, "log_mean": 0.5, "log_std": 1.5}),
    ],
)
def test_improved_methods_take_their_numbers_from_the_recipe(method, own):
    recipe, objective = objective_of(method, weight="uniform", distance="l1", **own)
    assert {key: getattr(objective, key) for key in own} == own
    assert objective.total_steps == recipe.steps and objective.target.slow is None
    assert (objective.distance, objective.weight) == (distance_of(recipe), WEIGHTS["uniform"])


def test_evaluations_are_counted():
    recipe, objective = objective_of("teacher", points=5)
    seen = []
    objective.online.register_forward_hook(lambda *args: seen.append(1))
    draw_samples(recipe, objective.online, torch.randn(2, *SHAPE))
    assert len(seen) == evaluations(recipe) == 9


def test_two_steps_of_a_consistency_model_start_at_the_top_and_land_in_the_middle():
    recipe, objective = objective_of("cd")
    levels = []
    objective.online.register_forward_hook(lambda m, args, out: levels.append(float(args[1][0])))
    draw_samples(recipe, objective.online, torch.randn(2, *SHAPE), steps=2)
    assert levels == pytest.approx([recipe.sigma_max, recipe.middle])


def test_a_clamped_teacher_stays_among_pixels():
    def loud(x, sigma, labels=None):
        return 50 * x

    out = Clamped(loud)(torch.tensor([[-1.0], [0.01], [1.0]]), torch.ones(3))
    assert out.flatten().tolist() == [-1.0, 0.5, 1.0]


def test_guidance_and_clamp_are_what_the_student_sees():
    recipe = Recipe("try", method="boot", labels=True, guidance=2.0, clamp=True, clamp_limit=1.5)
    seen = wrap_teacher(recipe, teacher_of(recipe, 3))
    assert isinstance(seen, Clamped) and isinstance(seen.model, Guided)
    assert seen.model.weight == 2.0 and seen.limit == 1.5
    assert isinstance(wrap_teacher(Recipe("try"), teacher_of(recipe, 3)), EDMDenoiser)


@pytest.mark.parametrize("method", ["teacher", "cd", "pd", "boot", "direct"])
def test_samples_are_clamped_if_the_recipe_says_so(method):
    """The network is scaled so that its answers, and PD's first of two, lie far beyond 1."""
    recipe = Recipe("try", method=method, sigma_max=10.0, points=4)
    model = build_model(recipe, build_network(recipe, SHAPE))
    for parameter in network_in(model).parameters():
        torch.nn.init.normal_(parameter, std=1.0, generator=torch.Generator().manual_seed(1))
    noise, images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2)), {}
    for clamp in (False, True):
        said = dataclasses.replace(recipe, clamp_samples=clamp)
        shown = to_sampler(said, model, 2 if method == "pd" else 1)
        images[clamp] = draw_samples(said, shown, noise, steps=2 if method == "cd" else 1)
    assert images[False].abs().max() > 2 and images[True].abs().max() < 1.05  # PD keeps some noise
    if method in ("cd", "pd"):  # the first answer is clamped as well, so the second is another
        assert (images[False].clamp(-1, 1) - images[True]).abs().max() > 0.1


def test_direct_distillation_learns_from_the_walk_down_to_zero():
    recipe, objective = objective_of("direct", points=5)
    assert objective.sigmas[0] == 0 and len(objective.sigmas) == 6


# the rounds of progressive distillation


def halving(total_steps=70, points=8, **options):
    recipe = Recipe("try", method="pd", points=points, sigma_max=10.0)
    return Halving(
        teacher_of(recipe),
        teacher_of(recipe),
        sigma_grid(recipe),
        total_steps=total_steps,
        **options,
    )


def rounds_of(objective):
    rounds = []
    for _ in range(objective.total_steps):
        rounds.append(objective.round)
        objective.after_step()
    return rounds


def test_the_last_rounds_take_two_and_four_times_as_long():
    rounds = rounds_of(halving())
    assert [rounds.count(k) for k in range(3)] == [10, 20, 40]
    long = rounds_of(halving(80, points=16))
    assert [long.count(k) for k in range(4)] == [10, 10, 20, 40]
    even = rounds_of(halving(60, points=16, last_round=2.0))
    assert [even.count(k) for k in range(4)] == [10, 10, 20, 20]


def test_each_round_halves_the_grid_and_promotes_the_student():
    objective = halving(solver=heun_step)
    x = torch.rand(4, *SHAPE)
    before = None
    for _ in range(objective.total_steps):
        objective(x)
        task = objective._task()
        assert len(task.sigmas) - 1 == 8 // 2**objective.round
        assert (task.solver is heun_step) == (objective.round == 0)
        with torch.no_grad():
            for p in objective.online.parameters():
                p.add_(0.01)
        before = objective.round
        objective.after_step()
        if objective.round > before:
            pairs = zip(objective.online.parameters(), objective.mentor.parameters())
            assert all(torch.equal(a, b) for a, b in pairs)
    first = next(teacher_of(Recipe("try", method="pd")).parameters())
    assert not torch.equal(first, next(objective.mentor.parameters()))


def test_the_rate_falls_anew_in_each_round():
    objective = halving()
    fractions = []
    for _ in range(objective.total_steps):
        fractions.append(objective.round_fraction)
        objective.after_step()
    assert fractions[0] == fractions[10] == fractions[30] == 0
    assert fractions[9] == pytest.approx(0.9) and fractions[29] == pytest.approx(0.95)
    assert objective.round_fraction == 1


def test_rounds_survive_a_checkpoint():
    objective, again = halving(), halving()
    for _ in range(25):
        objective.after_step()
    again.load_state_dict(objective.state_dict())
    assert (again.step, again.round, again.total_steps) == (25, 1, 70)


def test_a_one_step_student_of_pd_takes_one_step_and_a_two_step_one_two():
    recipe = Recipe("try", method="pd", points=8)
    model = build_model(recipe, build_network(recipe, SHAPE))
    assert to_sampler(recipe, model).steps == 1 and to_sampler(recipe, model, 2).steps == 2


def test_the_families_are_complete():
    left_out = {"cifar10-{}": {"scd", "sct", "meanflow", "dmd"}}
    left_out["cifar10-{}-small"] = {"meanflow", "dmd"}
    left_out["cifar10-{}-mini"] = METHODS.keys() - {"teacher", "cd"}  # --network mini makes others
    for family in ("digits-{}", *left_out):
        for method in METHODS.keys() - left_out.get(family, set()):
            recipe = RECIPES[family.format(method)]
            assert recipe.method == method and recipe.about
            needs = method not in ("teacher", "ct", "ict", "meanflow")
            assert recipe.source == (family.format("teacher") if needs else "")
            assert (recipe.device == "cpu") == family.startswith("digits")


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("cd", {"lr": 4e-4, "batch": 512, "points": 18, "decay": 0.0, "ema": 0.9999}),
        ("ct", {"lr": 4e-4, "s0": 2, "s1": 150, "mu0": 0.9, "steps": 800_000}),
        ("ict", {"lr": 1e-4, "batch": 1024, "s0": 10, "s1": 1280, "ema": 0.99993, "dropout": 0.3}),
        ("ict", {"log_mean": -1.1, "log_std": 2.0, "weight": "inverse_gap", "optimizer": "radam"}),
        ("ect", {"lr": 1e-4, "batch": 128, "stages": 8, "q": 2.0, "ema": 0.9999, "dropout": 0.2}),
        ("ect", {"log_mean": -1.1, "log_std": 2.0, "weight": "inverse_gap", "flip": False}),
        ("pd", {"lr": 5e-5, "batch": 512, "points": 8192, "ema": 0.0, "rate": "linear"}),
        ("pd", {"clip": 3 * 32 * 32, "restart": True, "optimizer": "adam", "dropout": 0.0}),
        ("teacher", {"lr": 1e-3, "batch": 512, "dropout": 0.13, "ema": 0.99929}),
    ],
)
def test_published_numbers(name, numbers):
    recipe = RECIPES[f"cifar10-{name}"]
    assert {key: getattr(recipe, key) for key in numbers} == numbers
    images = {"teacher": 200e6, "pd": 750_000 * 512, "ect": 25.6e6}.get(name, 410e6)
    assert recipe.steps * recipe.batch == pytest.approx(images, rel=0.01)


def test_the_rounds_of_cifar10_pd_are_those_of_cms_code():
    recipe = RECIPES["cifar10-pd"]
    tiny = dataclasses.replace(recipe, network="mlp", steps=recipe.steps // 10_000)
    objective = build_objective(tiny, build_network(tiny, SHAPE), teacher_of(tiny))
    rounds, students = rounds_of(objective), []
    for k in range(objective.rounds):
        students.append((len(sigma_grid(recipe)) - 1) // 2 ** (k + 1))
    assert students == [2**k for k in range(12, -1, -1)]  # 4096 ... 1
    assert [rounds.count(k) for k in range(13)] == [5] * 11 + [10, 10]


def test_a_new_round_begins_with_a_new_optimizer_if_the_recipe_says_so():
    for restart in (True, False):
        objective, counts = halving(14, restart=restart), []
        for state in train(objective, iter([(torch.rand(4, *SHAPE), None)] * 14), steps=14):
            moments = next(iter(state.optimizer.state.values()), {"step": torch.tensor(0)})
            counts.append(int(moments["step"]))
        assert counts == ([1, 0, 1, 2, 3, 0, *range(1, 9)] if restart else list(range(1, 15)))


def test_labels_reach_the_network_only_if_the_recipe_says_so():
    with_labels = build_network(Recipe("try", labels=True), SHAPE, 3)
    without = build_network(Recipe("try"), SHAPE, 3)
    x, c = torch.randn(2, *SHAPE), torch.zeros(2)
    labels = [torch.zeros(2).long(), torch.ones(2).long()]
    assert not torch.equal(*(with_labels(x, c, k) for k in labels))
    assert torch.equal(*(without(x, c, k) for k in labels))
    assert isinstance(with_labels, nn.Module)


# distances that look through a network


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A file of SqueezeNet's weights, drawn at random and named as torchvision names them."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("backbone") / "squeeze.safetensors"
    save_file(squeezenet1_1().state_dict(), file)
    return file


def pictures(count=3, size=48, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_lpips_with_fitting_weights_is_the_packages(backbone, monkeypatch):
    digest = hashlib.sha256(backbone.read_bytes()).hexdigest()
    monkeypatch.setitem(perceptual_module.TORCHVISION, "squeeze", digest[:8])
    a, b = pictures(), pictures(seed=1)
    for learned in (True, False):
        if not learned:
            monkeypatch.undo()
        maps = LpipsMaps("squeeze", backbone)
        theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, lpips=learned, verbose=False)
        theirs.net.load_state_dict(maps.network.state_dict())
        with torch.no_grad():
            ours, expected = perceptual(maps, 48)(a, b), theirs(a, b).flatten()
        assert maps.is_weighted == learned and len(maps.roots) == 7 * learned
        assert torch.allclose(ours, expected, rtol=1e-4)
        assert ours.shape == (3,) and ours.min() > 0


def test_a_backbone_that_is_missing_or_another_is_refused(tmp_path, backbone):
    with pytest.raises(InputError, match="no file"):
        LpipsMaps("squeeze", tmp_path / "nothing.pth")
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot read"):
        LpipsMaps("squeeze", tmp_path / "broken.pth")
    with pytest.raises(InputError, match="lacks features"):
        LpipsMaps("alex", backbone)


def test_a_failed_download_of_the_backbone_names_the_ways_out(monkeypatch):
    def fail(**options):
        raise OSError("no network")

    monkeypatch.setattr(lpips, "LPIPS", fail)
    with pytest.raises(InputError, match="--backbone.*--distance efficientnet"):
        LpipsMaps("squeeze")


def test_efficientnets_maps_are_those_before_each_halving_and_the_last():
    maps = EfficientNetMaps().eval()
    with torch.no_grad():
        seen = maps(pictures(2, 64))
        whole = maps.network.extract_features((127.5 * pictures(2, 64) + 0.5) / 128)
        head = maps.network._swish(maps.network._bn1(maps.network._conv_head(blocks(maps))))
    assert [m.shape[-1] for m in seen] == [32, 16, 8, 4, 2]
    assert torch.allclose(whole, head, atol=1e-4)  # the same numbers come in as in the judge
    for m in seen:
        assert torch.allclose(m.norm(dim=1), torch.ones(2, *m.shape[2:]), atol=1e-3)


def blocks(maps):
    """The last block's output, before it is brought to unit length."""
    found = []
    hook = maps.network._blocks[-1].register_forward_hook(lambda *args: found.append(args[2]))
    maps.eval()(pictures(2, 64))
    hook.remove()
    return found[0]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The file of a classifier of digits, made by the tool, which says how good it is."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "plain").mkdir()
    for k, x in enumerate(pictures(4, 8)):
        Image.fromarray(((x[0] + 1) * 127).byte().numpy()).save(folder / "plain" / f"{k}.png")
    with pytest.raises(InputError, match="has no classes: give a subfolder"):
        classifier_tool.main([str(folder / "plain"), "--out", str(folder / "none.safetensors")])
    words = ["digits", "--steps=150", "--width=8", "--batch=128", "--out"]
    assert classifier_tool.main([*words, str(folder / "digits.safetensors")]) > 0.8
    return folder / "digits.safetensors"


def test_a_classifiers_distance_compares_its_maps(classifier):
    looks, network = perceptual_distance("classifier", file=classifier), load_classifier(classifier)
    a, b = torch.rand(2, 5, 1, 8, 8) * 2 - 1
    gaps = [
        (F.normalize(m) - F.normalize(n)).square().sum(1).flatten(1)
        for m, n in zip(network(a), network(b))
    ]
    assert torch.allclose(looks(a, b), sum(gap.mean(1) for gap in gaps), rtol=1e-4)
    exact = looks(a, a + 1e-3 * b)  # neighbours, nearer than 16 bits can tell
    looks.speed_up(a, torch.bfloat16, "nothing")
    assert torch.allclose(looks(a, a + 1e-3 * b), exact, rtol=1e-4)
    with pytest.raises(InputError, match="8 x 8 pixels"):
        looks(pictures(), pictures())


def test_a_student_pleases_a_classifier_or_is_told_what_is_missing(classifier, backbone, tmp_path):
    words = ["train", "digits-ct", "--steps=3", "--distance=classifier", "--out", tmp_path / "run"]
    for more, said in (
        ([], "make them by tools/classifier.py, and name them with --backbone"),
        (["--backbone", backbone], "holds no classifier of tools/classifier.py"),
    ):
        status, found = command(*words, *more)
        assert status == 2 and said in found
    status, found = command(*words, "--backbone", classifier)
    assert status == 0, found
    for size in (2, 12):
        with pytest.raises(InputError, match=f"size is {size}: bring"):
            ClassifierFeatures(size=size)


def test_a_seen_distance_is_symmetric_enlarges_and_teaches_only_its_first_argument(backbone):
    looks = perceptual(LpipsMaps("squeeze", backbone), 48)
    a, b = pictures(3, 12)[:, :1].requires_grad_(), pictures(3, 12, seed=1)[:, :1]
    distance = looks(a, b)
    assert torch.allclose(distance, looks(b, a)) and looks(b, b).abs().max() < 1e-6
    distance.sum().backward()
    assert a.grad.isfinite().all() and a.grad.abs().max() > 0
    large = [torch.nn.functional.interpolate(x, (48, 48), mode="bilinear") for x in (a, b)]
    assert torch.allclose(distance, looks(*large), rtol=1e-4)
    assert not any(p.requires_grad for p in looks.distance.parameters())


def test_a_looking_distance_computes_in_the_recipes_precision(backbone):
    looks = perceptual(LpipsMaps("squeeze", backbone), 48)
    a, b = pictures(), pictures(seed=1)
    exact = looks(a, b)
    assert looks.speed_up(a, torch.bfloat16, "nothing") is False
    rounded = looks(a, b)
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, rtol=0.02) and not torch.equal(rounded, exact)
    looks.speed_up(a, None, "nothing")
    assert torch.equal(looks(a, b), exact)


@pytest.mark.parametrize("breaks", [False, True])
def test_a_looking_distance_is_compiled_or_says_that_it_is_not(breaks, backbone, monkeypatch):
    calls = []

    def compiled(*args, **options):
        calls.append(args)
        if breaks:
            raise RuntimeError("no compiler\nmuch more")
        return FeatureDistance.forward(looks.distance, *args)

    def compiles(self, **options):
        assert options == {"dynamic": False}
        self._compiled_call_impl = compiled

    monkeypatch.setattr(FeatureDistance, "compile", compiles)
    looks = perceptual(LpipsMaps("squeeze", backbone), 48)
    a, b = pictures(), pictures(seed=1)
    exact = looks(a, b)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert looks.speed_up(a, None, "networks") is not breaks
    story = "torch.compile failed, so images are compared without it: no compiler much more"
    told = [str(w.message) for w in said if "torch.compile failed" in str(w.message)]
    assert told == [story][:breaks]
    assert len(calls) == 1 and torch.equal(looks(a, b), exact) and len(calls) == 1 + (not breaks)


@pytest.mark.parametrize("method", ["cd", "ct", "ict", "ect", "pd", "direct", "boot"])
def test_every_student_can_learn_by_looking_and_keeps_the_network_to_itself(
    method, backbone, monkeypatch
):
    small = lambda kind, file: LpipsMaps("squeeze", backbone)  # noqa: E731
    monkeypatch.setattr(perceptual_module, "LpipsMaps", small)
    recipe, objective = objective_of(method, distance="lpips", enlarge=48, decay=0.5)
    x = torch.rand(2, *SHAPE) * 2 - 1
    plain, _ = objective_of(method)[1], objective.train()
    loss, other = (
        each(x, generator=torch.Generator().manual_seed(0)) for each in (objective, plain)
    )
    loss.mean().backward()
    assert loss.shape == (2,) and not torch.allclose(loss, other)
    assert objective.state_dict().keys() == objective_of(method, decay=0.5)[1].state_dict().keys()
    assert distance_of(recipe).distance.training is False


def test_two_steps_of_pd_are_its_own_and_no_restart():
    recipe, objective = objective_of("pd")
    sampler = to_sampler(recipe, objective.online, steps=2)
    noise = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    both = [draw_samples(recipe, sampler, noise, steps=steps) for steps in (1, 2)]
    assert torch.equal(*both) and sampler.steps == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar10-cd-mini", ["with --teacher teacher-small --start teacher-mini", "27.88 in 1"]),
        (
            "cifar10-direct-small",
            ["--labels --pairs 65536", "16.58 in 1", "against cifar10-jpeg.tar.xz"],
        ),
        (
            "cifar10-direct-small-guided",
            ["needs cuda and cifar10-teacher-small-labels", "12.37 in 1"],
        ),
        ("cifar10-cd", ["not run to its end: at 1,564 images a second about 73 hours", "24.9 GB"]),
        ("cifar10-boot", ["needs cuda and cifar10-teacher; 200,000 steps, 512", "not measured"]),
        ("digits-ct", ["needs cpu; 4,000 steps, 256", "0.59 in 1, 0.5 in 2"]),
    ],
)
def test_a_recipe_says_what_it_needs_and_what_came_of_it(name, words):
    said = " ".join(describe(RECIPES[name]).split())
    assert said.startswith(name) and all(word in said for word in words), said
    assert set(measured_results()) <= set(RECIPES)
