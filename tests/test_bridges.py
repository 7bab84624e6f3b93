"""Pipelines of diffusers come in, and our students go out as pipelines of diffusers."""

import ast
import copy
import json
import math
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

from consistency_edu import bridges
from consistency_edu.bridges import (
    Clipped,
    DiffusersBackbone,
    from_diffusers,
    grid_of,
    head_size,
    need_diffusers,
    pipeline_timesteps,
    to_diffusers,
    unet_options,
)
from consistency_edu.consistency import ConsistencyModel, naive_coefficients
from consistency_edu.data import InputError
from consistency_edu.distillation import ConsistencyDistillation
from consistency_edu.networks import MLP, UNet, named_unet
from consistency_edu.pf_ode import EDMDenoiser, karras_sigmas
from consistency_edu.sampling import (
    sample_multistep,
    sample_one_step,
    sampling_objective,
    search_time_points,
)


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def small_unet(diffusers, classes=None, seed=0, channels=3):
    """A random UNet2DModel like the published ones, whose output is not near zero."""
    torch.manual_seed(seed)
    unet = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=32,
        num_class_embeds=classes,
    )
    for name, p in unet.named_parameters():
        if p.ndim == 4 or "class_embedding" in name:
            nn.init.normal_(p, std=1.2 / math.sqrt(max(1, p[0].numel())) if p.ndim == 4 else 1.0)
    return unet.eval()


def pipeline_of(diffusers, unet, points=40, clip=True, sigma_max=80.0):
    scheduler = diffusers.CMStochasticIterativeScheduler(
        num_train_timesteps=points, clip_denoised=clip, sigma_max=sigma_max
    )
    pipe = diffusers.ConsistencyModelPipeline(unet=unet, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe, noise, labels, seed, **options):
    """Their images in [-1, 1] from `noise`, with fresh noise from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    options |= {"batch_size": len(noise), "latents": noise, "output_type": "pt"}
    labels = labels if labels is None else labels.clone()
    images = pipe(class_labels=labels, generator=generator, **options).images
    return 2 * images - 1


@pytest.mark.parametrize("classes", [None, 4])
@pytest.mark.parametrize("timesteps", [[0], [22, 0], [39, 30, 5, 0]])
def test_algorithm_1_is_that_of_the_pipeline(diffusers, classes, timesteps):
    pipe = pipeline_of(diffusers, small_unet(diffusers, classes))
    model = from_diffusers(pipe)
    noise = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 3, 0, 1]) if classes else None
    timesteps = [t for t in timesteps if t < 39]  # the last point is sigma_min: no jump from there
    sigmas = grid_of(model).flip(0)[timesteps[::-1]]
    assert pipeline_timesteps(sigmas, grid_of(model)) == timesteps
    expected = theirs(pipe, noise, labels, 7, num_inference_steps=None, timesteps=timesteps)
    rng = torch.Generator().manual_seed(7)
    ours = sample_multistep(Clipped(model), noise, sigmas, labels=labels, generator=rng)
    assert expected.std() > 0.2 and (expected.abs() < 0.99).float().mean() > 0.3
    assert (ours - expected).abs().max() < 1e-5
    if classes:  # two labels must differ, or nothing was seen of them
        changed = sample_one_step(Clipped(model), noise, (labels + 1) % classes)
        assert (changed - sample_one_step(Clipped(model), noise, labels)).abs().mean() > 1e-2
        again = theirs(pipe, noise, (labels + 1) % classes, 7, num_inference_steps=1)
        assert (again - changed).abs().max() < 1e-5
    if len(timesteps) > 1:  # the fresh noise is the same, and matters
        other = sample_multistep(Clipped(model), noise, sigmas, labels=labels)
        assert (other - ours).abs().max() > 0.1


def test_steps_by_number_and_another_top(diffusers):
    pipe = pipeline_of(diffusers, small_unet(diffusers), points=18, sigma_max=10.0)
    model = from_diffusers(pipe)
    assert model.sigma_max == 10 and len(grid_of(model)) == 18
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    expected = theirs(pipe, noise, None, 3, num_inference_steps=3)  # indices 0, 6, 12
    sigmas = grid_of(model).flip(0)[[0, 6, 12]]
    rng = torch.Generator().manual_seed(3)
    ours = sample_multistep(Clipped(model), noise, sigmas, generator=rng)
    assert (ours - expected).abs().max() < 1e-5


def test_the_network_is_told_250_ln_sigma(diffusers, monkeypatch):
    unet, told = small_unet(diffusers), []
    forward = unet.forward
    monkeypatch.setattr(
        unet, "forward", lambda x, t, **k: told.append((x, t)) or forward(x, t, **k)
    )
    model = from_diffusers(unet)
    x, sigma = torch.randn(3, 3, 16, 16), torch.tensor([0.002, 1.0, 80.0])
    answer = model(x, sigma)
    assert torch.allclose(told[0][1], 250 * sigma.log(), rtol=1e-5, atol=1e-4)
    scale = (sigma**2 + 0.25).rsqrt()[:, None, None, None]
    assert torch.allclose(told[0][0], scale * x, rtol=1e-5)
    assert torch.equal(answer[0], x[0])  # the boundary condition


def test_labels_are_needed_and_checked(diffusers):
    x, sigma = torch.randn(2, 3, 16, 16), torch.ones(2)
    model = from_diffusers(small_unet(diffusers, 4))
    for labels in (None, torch.tensor([0, 4]), torch.tensor([-1, 0])):
        with pytest.raises(InputError, match="label of 0 … 3"):
            model(x, sigma, labels)
    plain = from_diffusers(small_unet(diffusers))
    assert torch.equal(plain(x, sigma, torch.tensor([0, 1])), plain(x, sigma))
    with pytest.raises(InputError, match=r"\[B, 3, H, W\]"):
        plain(x[:, :1], sigma)


def test_clipped_keeps_the_levels(diffusers):
    model = from_diffusers(small_unet(diffusers), sigma_max=10.0)
    x, sigma = 50 * torch.randn(2, 3, 16, 16), torch.full((2,), 0.01)
    assert model(x, sigma).abs().max() > 1 and Clipped(model)(x, sigma).abs().max() == 1
    assert (Clipped(model).sigma_min, Clipped(model).sigma_max) == (0.002, 10.0)


def test_time_points_are_searched_here_and_used_there(diffusers):
    model = from_diffusers(small_unet(diffusers))
    noise = torch.randn(4, 3, 16, 16)
    objective = sampling_objective(Clipped(model), noise, lambda x: abs(float(x.std()) - 0.5))
    found = search_time_points(objective, grid_of(model), 3)
    timesteps = pipeline_timesteps(found.sigmas, grid_of(model))
    assert timesteps[-1] == 0 and len(timesteps) == 3
    assert torch.allclose(grid_of(model).flip(0)[timesteps[::-1]], found.sigmas)


@pytest.mark.parametrize("sigmas", [[80.0, 1.0], [40.0], [0.002, 80.0], [80.0, 80.0]])
def test_levels_off_the_grid_are_refused(sigmas):
    with pytest.raises(InputError, match="levels of its grid"):
        pipeline_timesteps(sigmas, karras_sigmas(18))


def test_a_round_trip_through_a_folder(diffusers, tmp_path):
    model = from_diffusers(small_unet(diffusers, 4), points=18, sigma_max=10.0)
    folder = to_diffusers(model, tmp_path / "out")
    pipe = diffusers.ConsistencyModelPipeline.from_pretrained(str(folder))
    assert type(pipe.unet).__name__ == "UNet2DModel"
    pipe.set_progress_bar_config(disable=True)
    again = from_diffusers(folder)
    assert isinstance(again, ConsistencyModel)
    assert (again.sigma_max, again.network.points, again.sigma_min) == (10.0, 18, 0.002)
    noise, labels = torch.randn(3, 3, 16, 16), torch.tensor([2, 0, 3])
    ours = sample_one_step(Clipped(model), noise, labels)
    assert torch.equal(sample_one_step(Clipped(again), noise, labels), ours)
    assert (theirs(pipe, noise, labels, 0, num_inference_steps=1) - ours).abs().max() < 1e-5
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n") and "class_labels=0" in card
    assert "import consistency_edu" not in card and "4 classes" in card
    alone = from_diffusers(folder / "unet", points=18, sigma_max=10.0)
    assert torch.equal(sample_one_step(Clipped(alone), noise, labels), ours)


def test_the_cards_own_lines_run(diffusers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    to_diffusers(ConsistencyModel(random_unet(), sigma_max=10.0), tmp_path / "out", size=8)
    card = (tmp_path / "out" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    scope = {}
    exec(code.replace("this folder, or its name on the Hub", str(tmp_path / "out")), scope)
    assert scope["image"].size == (8, 8)


def random_unet(classes=0, channels=3, **options):
    torch.manual_seed(3)
    unet = UNet(channels, width=32, num_classes=classes, **options)
    for p in unet.parameters():
        nn.init.normal_(p, std=0.1)
    return unet


@pytest.mark.parametrize("classes", [0, 4])
def test_our_own_unet_goes_out_and_comes_back(diffusers, classes, tmp_path):
    model = ConsistencyModel(random_unet(classes), sigma_max=10.0)
    folder = to_diffusers(model, tmp_path / "out", size=8, points=18)
    pipe = diffusers.ConsistencyModelPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0, 3]) if classes else None
    sigmas = karras_sigmas(18, 0.002, 10.0).flip(0)[[0, 9]]
    for network in (model, from_diffusers(folder)):
        rng = torch.Generator().manual_seed(5)
        ours = sample_multistep(Clipped(network), noise, sigmas, labels=labels, generator=rng)
        options = {"num_inference_steps": None, "timesteps": [9, 0]}
        expected = theirs(pipe, noise, labels, 5, **options)
        assert expected.std() > 0.05 and (ours - expected).abs().max() < 1e-5
    assert "import consistency_edu.bridges" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["tiny", "mini", "small"])
def test_options_rebuild_named_unets(name):
    with torch.device("meta"):
        unet = named_unet(name, 3, num_classes=7)
    options = unet_options(real(unet))
    assert json.loads(json.dumps(options)) == options
    again = UNet(**options)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in unet.state_dict().items()
    }


def real(unet):
    """A copy of a U-Net on the meta device whose frequencies are numbers."""
    unet = copy.deepcopy(unet)
    unet.context.embed.frequencies = torch.logspace(
        -2, 3, unet.context.embed.frequencies.numel(), base=2
    )
    return unet


def test_head_sizes():
    assert head_size({128: 2, 256: 4}) == 64 and head_size({128: 1, 256: 1}) == 256
    assert head_size({96: 1, 192: 3}) == 64
    with pytest.raises(InputError, match="no one size"):
        head_size({64: 1, 128: 1, 32: 32})


def test_a_unet_of_diffusers_is_trained_here(diffusers):
    student = from_diffusers(small_unet(diffusers))
    teacher = EDMDenoiser(DiffusersBackbone(small_unet(diffusers, seed=1)))
    objective = ConsistencyDistillation(student, teacher, karras_sigmas(8))
    x = 0.5 * torch.randn(2, 3, 16, 16)
    objective(x, generator=torch.Generator().manual_seed(0)).mean().backward()
    gradients = [p.grad for p in student.parameters()]
    assert any(g is not None and g.abs().max() > 0 for g in gradients)
    assert all(p.grad is None for p in teacher.parameters())


def test_half_precision_weights_are_fed_in_their_own(diffusers):
    model = from_diffusers(small_unet(diffusers).bfloat16())
    x = torch.randn(2, 3, 16, 16)
    answer = model(x, torch.ones(2))
    assert answer.dtype == torch.float32 and answer.isfinite().all()


def finished_run(folder):
    folder.mkdir()
    lines = ["# digits-cd\n\nA student.\n", "- **weights**: `model.safetensors`", "- **use**: `x`"]
    (folder / "card.md").write_text("\n".join([*lines, "- **training**: 7 steps, seed 3"]))
    (folder / "samples.png").write_bytes(b"png")
    return folder


def test_the_card_tells_of_the_run(diffusers, tmp_path):
    model = from_diffusers(small_unet(diffusers))
    run = finished_run(tmp_path / "run")
    folder = to_diffusers(model, tmp_path / "out", run=run)
    card = (folder / "README.md").read_text()
    assert "# digits-cd" in card and "7 steps, seed 3" in card and "**use**" not in card
    assert "safetensors`" not in card and (folder / "samples.png").read_bytes() == b"png"
    with pytest.raises(InputError, match="no card.md"):
        to_diffusers(model, tmp_path / "no", run=tmp_path)
    assert not (tmp_path / "no").exists()


def test_what_cannot_go_out_says_why(diffusers, tmp_path):
    unet = random_unet()
    for model, words in (
        (ConsistencyModel(MLP()), "around MLP cannot go out"),
        (ConsistencyModel(unet, coefficients=naive_coefficients), "cannot go out"),
        (ConsistencyModel(unet, c_noise=lambda sigma, data: sigma), "cannot go out"),
        (EDMDenoiser(unet), "EDMDenoiser around UNet cannot go out"),
        (ConsistencyModel(unet), "size of the images"),
    ):
        with pytest.raises(InputError, match=words):
            to_diffusers(model, tmp_path / "out")
    with pytest.raises(InputError, match="multiple of 2"):
        to_diffusers(ConsistencyModel(unet), tmp_path / "out", size=7)
    assert not (tmp_path / "out").exists()


def test_what_cannot_come_in_says_why(diffusers, tmp_path):
    with pytest.raises(InputError, match="no folder"):
        from_diffusers(tmp_path / "missing" / "deep")
    with pytest.raises(InputError, match="not MLP"):
        from_diffusers(MLP())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pipeline that can come in"):
        from_diffusers(tmp_path / "empty")
    pipe = diffusers.DDPMPipeline(small_unet(diffusers), diffusers.DDPMScheduler())
    pipe.save_pretrained(tmp_path / "ddpm")
    with pytest.raises(InputError, match="DDPMPipeline"):
        from_diffusers(tmp_path / "ddpm")
    other = pipeline_of(diffusers, small_unet(diffusers))
    other.scheduler.register_to_config(s_noise=1.01)
    with pytest.raises(InputError, match="s_noise 1.01"):
        from_diffusers(other)


@pytest.mark.parametrize("change", ["drop", "add", "resize"])
def test_weights_that_do_not_fit_are_named(diffusers, change, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = to_diffusers(from_diffusers(small_unet(diffusers)), tmp_path / "out")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    if change == "drop":
        del state["conv_in.bias"]
    elif change == "add":
        state["strange.weight"] = torch.zeros(2)
    else:
        state["conv_in.bias"] = torch.zeros(5)
    save_file(state, path)
    words = {"drop": "conv_in.bias' is missing", "add": "strange.weight' has no place"}
    with pytest.raises(InputError, match=words.get(change, "conv_in")):
        from_diffusers(folder)


def test_without_diffusers_the_install_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for action in (
        need_diffusers,
        lambda: from_diffusers(tmp_path),
        lambda: to_diffusers(ConsistencyModel(random_unet()), tmp_path / "out", size=8),
    ):
        with pytest.raises(InputError, match=r'pip install "consistency_edu\[diffusers\]"'):
            action()


def test_importing_the_module_does_not_import_diffusers():
    tree = ast.parse((ROOT / "consistency_edu" / "bridges.py").read_text())
    imports = [ast.unparse(n) for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert imports and not any("diffusers" in line for line in imports)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        bridges.Nothing  # noqa: B018
