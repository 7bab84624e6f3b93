"""Numbers for sets of images: moments, scores, feature networks, and the card beside them."""

import math
import zipfile

import numpy as np
import pytest
import scipy.linalg
import torch

from consistency_edu import evaluation
from consistency_edu.data import InputError
from consistency_edu.evaluation import (
    FewImages,
    Moments,
    as_rgb,
    card_of,
    copied_share,
    evaluate_images,
    fingerprint,
    frechet_of_moments,
    gather,
    inception_score,
    random_images,
    reference_of,
    tell_numbers,
)
from consistency_edu.features import FEATURES, Inception, Scripted, features_of_file, load_features
from consistency_edu.image_sets import ImageSet, load_images, to_floats, to_pixels


def cloud(count, dim=6, seed=0, shift=0.0):
    """Correlated Gaussian features `[count, dim]`, far from the origin."""
    rng = torch.Generator().manual_seed(seed)
    turn = torch.randn(dim, dim, generator=rng)
    return torch.randn(count, dim, generator=rng) @ turn + 5 + shift


def moments(rows, batch=64):
    summed = Moments()
    for part in rows.split(batch):
        summed.add(part)
    return summed


def released_frechet(a, b):
    """The Fréchet distance as the first released code computes it, with scipy's matrix root."""
    a, b = a.double().numpy(), b.double().numpy()
    covs = [np.cov(x, rowvar=False) for x in (a, b)]
    root = scipy.linalg.sqrtm(covs[0] @ covs[1]).real
    gap = a.mean(0) - b.mean(0)
    return gap @ gap + np.trace(covs[0] + covs[1] - 2 * root)


class Tiny(torch.nn.Module):
    """A fixed random map of pixels, with classes: a feature network that costs nothing."""

    title, rule = "tiny", "no resize"

    def __init__(self, size=8, seed=0):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.register_buffer("turn", torch.randn(3 * size * size, 12, generator=rng) / 10)

    def forward(self, pixels):
        return torch.tanh(pixels.flatten(1).float() / 128 - 1) @ self.turn

    def logits(self, features):
        return features[:, :4]


@pytest.fixture(scope="module")
def digits():
    return load_images("digits"), load_images("digits", "test")


@pytest.fixture(scope="module")
def tiny_reference(digits):
    return reference_of(digits[0], Tiny(), keep=300)


# moments and the Fréchet distance


def test_moments_in_batches_are_those_of_all_rows_and_unbiased():
    rows = cloud(1000)
    summed = moments(rows, 77)
    assert summed.count == 1000 and summed.covariance.dtype == torch.float64
    assert torch.allclose(summed.mean, rows.double().mean(0), rtol=1e-12)
    assert torch.allclose(summed.covariance, rows.double().T.cov(), rtol=1e-10)


def test_moments_far_from_the_origin_lose_nothing():
    rows = cloud(500).double() + 1e6
    assert torch.allclose(moments(rows, 50).covariance, rows.T.cov(), rtol=1e-6)


def test_the_distance_is_scipys():
    a, b = cloud(400, 24), cloud(300, 24, seed=1, shift=0.3)
    got = frechet_of_moments(moments(a), moments(b))
    assert got == pytest.approx(released_frechet(a, b), rel=1e-6)


def test_gaussians_have_their_closed_form():
    a, b = Moments(), Moments()
    a.count = b.count = 101
    a.mean, b.mean = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])
    a.scatter = 100 * torch.diag(torch.tensor([4.0, 9.0]))
    b.scatter = 100 * torch.diag(torch.tensor([1.0, 1.0]))
    assert frechet_of_moments(a, b) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 1) ** 2, rel=1e-9)
    assert frechet_of_moments(a, a) == pytest.approx(0, abs=1e-9)


def test_samples_of_one_gaussian_miss_by_what_the_count_predicts():
    """For equal Gaussians the expected distance is about (trace / n) (1 + D / 4) from one side."""
    dim, count = 8, 400
    rng, values = torch.Generator().manual_seed(0), []
    exact = Moments()
    exact.count, exact.mean, exact.scatter = 2, torch.zeros(dim), torch.eye(dim)
    for _ in range(60):
        values.append(frechet_of_moments(moments(torch.randn(count, dim, generator=rng)), exact))
    expected = dim / count + dim * (dim + 1) / (8 * count) * 2
    assert sum(values) / 60 == pytest.approx(expected, rel=0.15)


def test_too_few_or_broken_features_are_refused():
    with pytest.raises(InputError, match="covariance"):
        _ = moments(cloud(1)).covariance
    with pytest.raises(InputError, match="diverged"):
        Moments().add(torch.tensor([[1.0, math.nan]]))


# the inception score and copies


def test_inception_score_of_known_distributions():
    sure = 200 * torch.eye(10).repeat(20, 1)  # ten classes, evenly, each image sure of its own
    assert inception_score(sure, 10).mean == pytest.approx(10, rel=1e-9)
    assert inception_score(torch.zeros(50, 10)).mean == pytest.approx(1, rel=1e-9)
    one_class = torch.zeros(50, 10)
    one_class[:, 3] = 200
    assert inception_score(one_class).mean == pytest.approx(1, rel=1e-9)
    half = math.log(3) * torch.eye(2, dtype=torch.float64).repeat(30, 1)
    nats = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)  # H(y) - H(y | x)
    assert inception_score(half, 3).mean == pytest.approx(math.exp(nats), rel=1e-9)
    assert inception_score(half, 3).std == pytest.approx(0, abs=1e-9)


def test_inception_score_is_torch_fidelitys():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * torch.randn(400, 12, generator=torch.Generator().manual_seed(1))
    theirs = isc_features_to_metric(logits, splits=10, shuffle=False)
    ours = inception_score(logits, 10)
    assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert ours.std == pytest.approx(theirs["inception_score_std"], rel=1e-9)


def test_more_splits_than_images_are_refused():
    with pytest.raises(InputError, match="splits"):
        inception_score(torch.zeros(4, 10), 5)


def test_copies_are_caught_and_new_images_are_not():
    rng = torch.Generator().manual_seed(0)
    real, held, new = (torch.randn(400, 4, generator=rng) for _ in range(3))
    assert copied_share(real[:50], real, held) == 1
    assert copied_share(held, real, held, 0.2) == pytest.approx(0.2, abs=0.003)
    assert copied_share(new, real, held, 0.2) == pytest.approx(0.2, abs=0.07)
    assert copied_share(new + 100, real, held) == 0
    for share, fake in ((0, new), (1, new), (0.05, new[:, :3])):
        with pytest.raises(InputError, match="one width"):
            copied_share(fake, real, held, share)


# images and networks


def test_floats_are_clipped_and_rounded_and_grey_becomes_colour():
    x = torch.tensor([-1.5, -1.0, 0.0, 0.0041, 1.0, 2.0]).reshape(6, 1, 1, 1)
    pixels = as_rgb(x)
    assert pixels.shape == (6, 3, 1, 1) and pixels.dtype == torch.uint8
    assert pixels[:, 1, 0, 0].tolist() == [0, 0, 128, 128, 255, 255]
    assert as_rgb(torch.full((1, 1, 1, 1), 2 * 77.6 / 255 - 1)).unique().item() == 78
    colour = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    assert as_rgb(colour).equal(colour) and as_rgb(to_floats(colour)).equal(colour)


def test_what_is_no_image_is_refused():
    with pytest.raises(InputError, match="no images"):
        as_rgb(torch.zeros(3, 8, 8))
    with pytest.raises(InputError, match="not finite"):
        as_rgb(torch.full((1, 1, 2, 2), math.nan))


def test_gather_sees_every_image_once_whatever_the_batches(digits):
    images = digits[1].images
    whole = gather(Tiny(), images, batch=1000, keep=50)
    parts = gather(Tiny(), iter(to_floats(images).split(33)), batch=20, keep=50)
    assert whole.moments.count == parts.moments.count == len(images) == len(parts.logits)
    assert torch.allclose(whole.moments.covariance, parts.moments.covariance, rtol=1e-9)
    assert whole.features.shape == (50, 12) and torch.equal(whole.features, parts.features)
    with pytest.raises(InputError, match="no images"):
        gather(Tiny(), [])


def test_the_order_of_samples_does_not_matter(digits, tiny_reference):
    images = digits[1].images[:300]
    shuffled = images[torch.randperm(300, generator=torch.Generator().manual_seed(3))]
    row, other = (evaluate_images(x, tiny_reference, Tiny()) for x in (images, shuffled))
    assert row["frechet"] == pytest.approx(other["frechet"], rel=1e-9)
    assert (row["precision"], row["recall"]) == (other["precision"], other["recall"])


def test_noise_is_far_and_a_half_is_near(digits, tiny_reference):
    train = digits[0].images
    rng = torch.Generator().manual_seed(0)
    half = random_images(digits[0], 674)
    noise = torch.randint(256, train[:674].shape, dtype=torch.uint8, generator=rng)
    near, far = (evaluate_images(x, tiny_reference, Tiny()) for x in (half, noise))
    assert far["frechet"] > 100 * near["frechet"] and near["frechet"] < 0.01
    assert near["precision"] > 0.8 > 0.1 > far["precision"] and near["recall"] > 0.8


def test_precision_and_recall_are_not_swapped(digits, tiny_reference):
    few = random_images(digits[0], 8).repeat(40, 1, 1, 1)  # eight of the kept ones: no variety
    row = evaluate_images(few, tiny_reference, Tiny())
    assert row["precision"] > 0.9 and row["recall"] < 0.2


def test_reference_draws_what_it_keeps_from_all_images(digits):
    order = digits[0].labels.argsort()
    by_class = ImageSet(digits[0].images[order], digits[0].labels[order], digits[0].classes, "d")
    kept = reference_of(by_class, load_features("pixels"), keep=100).gathered.features
    pixels = as_rgb(by_class.images).flatten(1).float() / 255
    rows = (kept[:, None] == pixels).all(2).double().argmax(1)
    assert len(by_class.labels[rows].unique()) == 10


def test_random_images_are_different_and_fair(digits):
    drawn = random_images(digits[0], 500, seed=1)
    assert len(drawn.flatten(1).unique(dim=0)) >= 499
    assert not drawn.equal(random_images(digits[0], 500, seed=2))
    with pytest.raises(InputError, match="no more"):
        random_images(digits[0], 5000)


def test_references_are_kept_and_told_apart(digits, tmp_path, monkeypatch):
    first = reference_of(digits[0], Tiny(), keep=30, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(evaluation, "gather", lambda *a, **k: pytest.fail("computed again"))
    again = reference_of(digits[0], Tiny(), keep=30, cache=tmp_path)
    assert torch.equal(first.gathered.moments.covariance, again.gathered.moments.covariance)
    assert torch.equal(first.gathered.features, again.gathered.features)
    assert again.count == first.count == 1348 and again.network == first.network
    monkeypatch.undo()
    reference_of(digits[1], Tiny(), split="test", keep=30, cache=tmp_path)
    reference_of(digits[0], Tiny(seed=1), keep=30, cache=tmp_path)
    reference_of(digits[0], Tiny(), keep=31, cache=tmp_path)
    reference_of(ImageSet(digits[0].images[1:], name="digits"), Tiny(), keep=30, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_another_network_than_the_references_is_refused(digits, tiny_reference):
    with pytest.raises(InputError, match="same network"):
        evaluate_images(digits[1].images, tiny_reference, Tiny(seed=1))
    assert fingerprint(Tiny()) == fingerprint(Tiny()) != fingerprint(Tiny(seed=1))


def test_the_card_says_what_a_number_rests_on(digits, tiny_reference):
    row = evaluate_images(digits[1].images, tiny_reference, Tiny(), keep=300)
    text = tell_numbers(row)
    for word in ("Fréchet distance, tiny", "449", "1,348", "digits train", "no resize", "rounded"):
        assert word in text
    assert "FID" not in text and fingerprint(Tiny()) in text
    assert "300 samples and 300 images" in text and "inception score" in text


def test_an_unknown_network_is_answered_with_the_names(tmp_path):
    with pytest.raises(InputError, match="did you mean 'inception'"):
        load_features("incption")
    (tmp_path / "weights.pth").write_bytes(b"nothing")
    with pytest.raises(InputError, match="neither TorchScript"):
        load_features(tmp_path / "weights.pth")
    assert {"inception", "efficientnet-lite0", "pixels"} <= set(FEATURES)


def test_a_torchscript_file_is_a_feature_network(tmp_path, digits):
    class Mean(torch.nn.Module):
        def forward(self, pixels):
            return pixels.float().mean((2, 3))

    class Map(torch.nn.Module):
        def forward(self, pixels):
            return pixels.float()

    for kind in (Mean, Map):
        torch.jit.script(kind()).save(str(tmp_path / f"{kind.__name__}.pt"))
    network = load_features(tmp_path / "Mean.pt", trust=True)
    seen = gather(network, digits[1].images, keep=5)
    expected = digits[1].images.float().mean((2, 3)).expand(-1, 3)
    assert torch.allclose(seen.features, expected[:5]) and network.title == "Mean.pt"
    assert torch.allclose(seen.moments.mean, expected.double().mean(0))
    with pytest.raises(InputError, match="returns .250, D"):
        gather(load_features(tmp_path / "Map.pt", trust=True), digits[1].images)


def test_efficientnet_sees_images_as_its_package_does():
    network = load_features("efficientnet-lite0")
    pixels = to_pixels(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    large = torch.nn.functional.interpolate(pixels.float(), size=224, mode="bicubic")
    with torch.no_grad():
        features = network(pixels)
        classes = network.network._fc(features)
        expected = network.network((large - 127) / 128)
    assert features.shape == (2, 1280) and not network.training
    assert torch.allclose(classes, expected, atol=1e-4)
    assert not any(p.requires_grad for p in network.parameters())


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A file of Inception's weights, drawn at random."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Theirs

    file = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save({}, file)
    patch = pytest.MonkeyPatch()
    patch.setattr(Theirs, "load_state_dict", lambda self, state: None)
    torch.manual_seed(0)
    network = Theirs("random", ["2048"], feature_extractor_weights_path=str(file))
    patch.undo()
    state = network.state_dict()
    for name in state:
        if name.endswith("bn.weight"):
            state[name] *= 2  # so that signals do not fade on their way
    torch.save(state, file)
    return file


def test_inception_runs_from_a_file_as_torch_fidelity_runs_it(inception_file, digits):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Theirs
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    network = load_features(inception_file)
    assert isinstance(network, Inception) and not network.is_published
    images = [as_rgb(data.images[:3]) for data in digits]
    seen = [gather(network, to_floats(x), keep=3) for x in images]
    names, options = ["2048", "logits_unbiased"], {"feature_extractor_weights_path": inception_file}
    theirs = [Theirs("random", names, **options)(x) for x in images]
    for ours, (features, logits) in zip(seen, theirs):
        assert torch.allclose(ours.features, features, rtol=1e-4, atol=1e-5 * features.abs().max())
        assert torch.allclose(ours.logits, logits, rtol=1e-4, atol=1e-4 * logits.abs().max())
    few = [fid_features_to_statistics(f[:, ::16].double()) for f, _ in theirs]
    expected = fid_statistics_to_metric(*few, False)["frechet_inception_distance"]
    got = frechet_of_moments(*(Moments().add(g.features[:, ::16]) for g in seen))
    assert got == pytest.approx(expected, rel=1e-3)


def test_only_published_weights_are_called_fid(inception_file, digits, monkeypatch):
    network = Inception(inception_file)
    reference = reference_of(digits[0], Tiny(), keep=5)
    assert (
        card_of(network, reference, 6, 6)["metric"]
        == "Fréchet distance, Inception-v3 of random.pth"
    )
    network.is_published = True
    assert card_of(network, reference, 6, 6)["metric"] == "FID"


def test_a_missing_file_of_weights_is_refused():
    with pytest.raises(InputError, match="6726825d.pth"):
        Inception("nowhere.pth")


def test_a_failed_download_names_the_file(monkeypatch):
    import torch_fidelity.feature_extractor_inceptionv3 as theirs

    def fail(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(theirs, "load_state_dict_from_url", fail)
    with pytest.raises(InputError, match="6726825d.pth.*--features"):
        load_features("inception")


# which images a judge takes, how many it needs, and whose code it runs


def refusal(action):
    """The sentence with which `action` refuses."""
    with pytest.raises(InputError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_judge_says_what_it_takes_and_refuses_the_rest():
    digit, photo = (torch.zeros(2, 3, s, s, dtype=torch.uint8) for s in (8, 32))
    red = digit.clone()
    red[:, 0] = 200
    judge, pixels = load_features("digits"), load_features("pixels")
    assert "grey" in judge.takes and "8 x 8" in judge.takes and "any one size" in pixels.takes
    for bad in (
        photo,
        red,
        digit.float(),
        digit[:, :1],
        digit[0],
        torch.zeros(60, 3, 8, 16).byte(),
    ):
        assert "8 x 8" in refusal(lambda bad=bad: judge(bad))
    assert judge(digit).shape == (2, 256) and pixels(photo).shape == (2, 3072)
    for bad in (digit.float(), digit[:, :1], digit[0]):
        assert "any one size" in refusal(lambda bad=bad: pixels(bad))
        assert "224" in load_features("efficientnet-lite0").rule


def test_images_are_as_many_as_features(digits):
    class Cut(Tiny):
        def forward(self, pixels):
            return super().forward(pixels[:-1])

    class Map(Tiny):
        def forward(self, pixels):
            return pixels.float()

    for network in (Cut(), Map()):
        assert "[449, D]" in refusal(lambda n=network: gather(n, digits[1].images, batch=449))
    sizes = [torch.zeros(2, 1, s, s) for s in (8, 9)]
    assert "one size" in refusal(lambda: gather(load_features("pixels"), sizes))
    assert "at least one row" in refusal(lambda: gather(load_features("pixels"), sizes[0][:0]))
    assert "at least one row" in refusal(lambda: Moments().add(torch.tensor(1.0)))
    reference = reference_of(digits[0], load_features("pixels"), keep=5)
    bad = torch.zeros(9, 1, 9, 9)
    assert "243" in refusal(lambda: evaluate_images(bad, reference, load_features("pixels")))


@pytest.mark.parametrize("samples, images", [(12, 1348), (449, 12)])
def test_no_more_images_than_features_are_warned_of_on_either_side(digits, samples, images):
    few = ImageSet(digits[0].images[:images], name="few")
    reference = reference_of(few, Tiny(), keep=300)
    with pytest.warns(FewImages, match="12 images are no more than the 12 features") as seen:
        row = evaluate_images(digits[1].images[:samples], reference, Tiny())
    assert len(seen) == 1
    assert "12 images are no more than the 12 features" in tell_numbers(row)


def test_one_image_more_than_features_is_enough(digits, tiny_reference, recwarn):
    row = evaluate_images(digits[1].images[:13], tiny_reference, Tiny())
    assert not recwarn.list and "biased" not in tell_numbers(row) and "bias" not in row["card"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1, 0, 2.5, None, "many"])
def test_counts_that_are_none_are_refused(bad, digits, tiny_reference):
    images = digits[1].images
    actions = [
        lambda: gather(Tiny(), images, batch=bad),
        lambda: random_images(digits[1], bad),
        lambda: reference_of(digits[1], Tiny(), batch=bad),
        lambda: evaluate_images(images, tiny_reference, Tiny(), batch=bad),
        lambda: evaluate_images(images, tiny_reference, Tiny(), neighbours=bad),
        lambda: inception_score(torch.zeros(20, 10), bad),
    ]
    if bad != 0:
        actions.append(lambda: gather(Tiny(), images, keep=bad))
        actions.append(lambda: reference_of(digits[1], Tiny(), keep=bad))
        actions.append(lambda: evaluate_images(images, tiny_reference, Tiny(), keep=bad))
    for action in actions:
        assert "whole number" in refusal(action)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nothing_infinite_is_judged(value):
    assert "diverged" in refusal(lambda: Moments().add(torch.tensor([[1.0, value]])))
    assert "diverged" in refusal(lambda: as_rgb(torch.full((1, 1, 2, 2), value)))
    assert "diverged" in refusal(lambda: gather(Tiny(2), torch.full((1, 1, 2, 2), value)))


def test_the_inception_score_of_images_has_ten_splits(digits, tiny_reference):
    images = digits[1].images
    with torch.no_grad():
        logits = Tiny().logits(Tiny()(as_rgb(images)))
    row = evaluate_images(images, tiny_reference, Tiny())
    ten, one = inception_score(logits, 10), inception_score(logits, 1)
    assert (row["inception_score"], row["inception_score_std"]) == pytest.approx(tuple(ten))
    assert inception_score(logits) == ten != one and ten.std > 0 == one.std


def test_code_in_a_file_runs_only_if_its_maker_is_trusted(tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, pixels):
            return pixels.float().mean((2, 3))

    file = tmp_path / "net.pt"
    torch.jit.script(Mean()).save(str(file))
    opened = pytest.MonkeyPatch()
    opened.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("opened a stranger's code"))
    for action in (load_features, features_of_file, Scripted):
        said = refusal(lambda action=action: action(file))
        assert "--trust" in said and "code" in said and "trust=True" in said
    opened.undo()
    assert load_features(file, trust=True).title == "net.pt"
    (tmp_path / "cut.pt").write_bytes(file.read_bytes()[:-30])
    with zipfile.ZipFile(tmp_path / "odd.pt", "w") as archive:
        archive.writestr("net/constants.pkl", b"nothing")
    for name in ("cut.pt", "odd.pt"):
        refusal(lambda name=name: load_features(tmp_path / name, trust=True))


def test_no_message_advises_to_load_unsafely(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "mark").touch, ()

    for name, content in (
        ("bomb.pt", {"Mixed_7c.branch_pool.conv.weight": Bomb()}),
        ("list.pt", [1, 2]),
        ("tensor.pt", torch.zeros(3)),
        ("short.pt", {"Mixed_7c.branch_pool.conv.weight": torch.zeros(1)}),
    ):
        torch.save(content, tmp_path / name)
        for action in (load_features, Inception):
            said = refusal(lambda action=action, name=name: action(tmp_path / name))
            assert not any(word in said for word in ("weights_only", "pickle", "allow", "unsafe"))
    assert not (tmp_path / "mark").exists()


def test_a_scripted_network_that_fails_says_on_what(tmp_path, digits):
    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3072, 4)

        def forward(self, pixels):
            return self.layer(pixels.float().flatten(1))

    torch.jit.script(Wide()).save(str(tmp_path / "wide.pt"))
    network = load_features(tmp_path / "wide.pt", trust=True)
    said = refusal(lambda: gather(network, digits[1].images))
    assert "'wide.pt' takes no images [250, 3, 8, 8]" in said


@pytest.mark.parametrize("name", ["digits", "pixels", "efficientnet-lite0"])
def test_loading_a_judge_leaves_the_global_randomness_as_it_was(name):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = fingerprint(load_features(name))
    assert torch.equal(before, torch.get_rng_state())
    assert (numpys == np.random.get_state()[1]).all()  # noqa: NPY002
    torch.manual_seed(6)
    assert fingerprint(load_features(name)) == first


def test_inception_leaves_the_global_randomness_as_it_was(inception_file):
    before = torch.get_rng_state()
    load_features(inception_file)
    assert torch.equal(before, torch.get_rng_state())
