"""`consistency-edu edit`: pictures in, pictures out, and one sentence when something is off."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from consistency_edu.checkpoints import weights_of
from consistency_edu.cli import main
from consistency_edu.data import load_digits
from consistency_edu.image_sets import to_pixels
from consistency_edu.images.methods import build_model, build_network
from consistency_edu.images.recipes import Recipe

TASKS = ("inpaint", "colorize", "superres", "stroke", "denoise", "interpolate")


def make_run(folder, method="cd", shape=(1, 8, 8)):
    """Write the finished run of an untrained student into `folder`."""
    torch.manual_seed(0)
    recipe = Recipe("small", method=method, sigma_max=10.0, points=4)
    model = build_model(recipe, build_network(recipe, shape))
    folder.mkdir()
    save_file(weights_of(model), folder / "model.safetensors")
    info = {"recipe": dataclasses.asdict(recipe), "shape": list(shape), "classes": 0}
    (folder / "run.json").write_text(json.dumps(info))
    return folder


def paint(path, pixels):
    """Save `pixels`, an array of 0 … 255, as the picture `path`."""
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return str(path)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with runs, pictures and masks, in which commands are run."""
    make_run(tmp_path / "grey")
    make_run(tmp_path / "colour", shape=(3, 8, 8))
    for method in ("boot", "pd", "direct", "teacher"):
        make_run(tmp_path / method, method)
    digit = to_pixels(load_digits("test")[0][0, 0]).numpy()
    paint(tmp_path / "digit.png", digit)
    paint(tmp_path / "small.png", digit[:4, :4])
    paint(tmp_path / "wide.png", digit[:, :6])
    paint(tmp_path / "mask.png", (np.arange(64).reshape(8, 8) > 31) * 255)
    paint(tmp_path / "grey_mask.png", np.full((8, 8), 100))
    paint(tmp_path / "black.png", np.zeros((8, 8)))
    paint(tmp_path / "white.png", np.full((8, 8), 255))
    (tmp_path / "broken.png").write_bytes((tmp_path / "digit.png").read_bytes()[:60])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels_of(path):
    """The picture at `path` as an array."""
    return np.asarray(Image.open(path)).astype(int)


def command(run, task, *more, image="digit.png", out="out.png"):
    """Run the edit; return its exit status."""
    given = [] if image is None else ["--image", image]
    return main(["edit", run, "--task", task, "--out", out, *given, *more])


def test_inpainting_keeps_pixels_bit_for_bit_and_repeats(place, capsys):
    more = ("--mask", "mask.png", "--steps", "3", "--count", "2")
    assert command("grey", "inpaint", *more) == 0
    assert "kept to within 0e+00" in capsys.readouterr().out
    made, digit = pixels_of("out.png"), pixels_of("digit.png")
    assert made.shape == (8, 16)
    assert (made[:4] == np.tile(digit[:4], 2)).all()
    assert (made[4:, :8] != made[4:, 8:]).any()
    for seed, is_same in (("0", True), ("1", False)):
        assert command("grey", "inpaint", *more, "--seed", seed, out="again.png") == 0
        assert (pixels_of("again.png") == made).all() == is_same
    assert not list(place.glob(".partial-*"))


@pytest.mark.parametrize("image", ["digit.png", "small.png"])
def test_super_resolution_takes_the_small_image_or_the_large(place, image, capsys):
    assert command("grey", "superres", "--sigmas", "0.5", "0.1", image=image) == 0
    assert pixels_of("out.png").shape == (8, 8)
    kept = float(capsys.readouterr().out.split("kept to within ")[1].split(",")[0])
    assert kept < 1e-6


def test_colour_strokes_noise_and_walks(place):
    assert command("colour", "colorize", "--steps", "2") == 0
    assert pixels_of("out.png").shape == (8, 8, 3)
    assert command("grey", "stroke", "--count", "3") == 0
    assert pixels_of("out.png").shape == (8, 24)
    assert command("grey", "denoise", "--sigmas", "0.3") == 0
    assert pixels_of("out.png").shape == (8, 8)
    for run in ("grey", "boot", "direct"):  # a walk takes one jump only
        assert command(run, "interpolate", "--count", "5", image=None) == 0
        assert pixels_of("out.png").shape == (8, 40)


def make_loud(folder):
    """Write the run of a student whose answers lie far beyond 1 into `folder`."""
    weights = load_file(make_run(folder) / "model.safetensors")
    rng = torch.Generator().manual_seed(1)
    loud = {k: torch.randn(v.shape, generator=rng) if v.ndim else v for k, v in weights.items()}
    save_file(loud, folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize("work", ["sample", "edit", "evaluate"])
def test_commands_clamp_after_every_jump_if_asked(place, work):
    """In one step the file would hide it; in two the second jump starts from another image."""
    run, made = make_loud(place / "loud"), {}
    args = {
        "sample": ["sample", run, "--steps", "2", "--nrow", "1", "--ncol", "2"],
        "edit": ["edit", run, "--task", "stroke", "--image", "digit.png"],
        "evaluate": ["evaluate", run, "--features", "pixels", "-n", "8", "--steps", "2"],
    }[work]
    for clamp in ((), ("--clamp-samples",)):
        out = "out.json" if work == "evaluate" else "out.png"
        assert main([*args, "--out", out, *clamp]) == 0
        made[bool(clamp)] = (place / out).read_bytes()
    assert made[False] != made[True]
    if work == "evaluate":
        told = [json.loads(made[clamp]) for clamp in (False, True)]
        assert [numbers["clamp_samples"] for numbers in told] == [False, True]
        free, clamped = (numbers["rows"][0]["frechet"] for numbers in told)
        assert abs(free - clamped) > 1e-3 * free


def test_a_run_whose_recipe_clamps_does_so_unasked(place):
    run = make_loud(place / "loud")
    images = []
    for clamp in (False, True):
        info = json.loads((place / "loud" / "run.json").read_text())
        info["recipe"]["clamp_samples"] = clamp
        (place / "loud" / "run.json").write_text(json.dumps(info))
        assert main(["sample", run, "--steps", "2", "--nrow", "1", "--out", "out.png"]) == 0
        images.append((place / "out.png").read_bytes())
    assert images[0] != images[1]


BAD = [
    ("grey", "inpant", (), "did you mean 'inpaint'?"),
    ("grey", "inpaint", (), "give one with --mask"),
    ("grey", "stroke", ("--mask", "mask.png"), "leave --mask off"),
    ("grey", "inpaint", ("--mask", "wide.png"), "6 x 8 pixels, the run makes 8 x 8"),
    ("grey", "inpaint", ("--mask", "grey_mask.png"), "white where to generate"),
    ("grey", "inpaint", ("--mask", "black.png"), "some of both"),
    ("grey", "inpaint", ("--mask", "white.png"), "the task stroke"),
    ("grey", "inpaint", ("--mask", "mask.png", "--sigmas", "0.1", "1"), "decreasing"),
    ("grey", "stroke", ("--sigmas", "11"), "up to sigma_max, 10"),
    ("grey", "superres", ("--patch", "3"), "do not divide by 3"),
    ("grey", "colorize", (), "take a run in colour"),
    ("grey", "denoise", (), "--sigmas 0.3"),
    ("grey", "denoise", ("--sigmas", "1", "0.5"), "--sigmas 0.3"),
    ("grey", "stroke", ("--count", "0"), "count is 0: give a number from 1 to 100"),
    ("grey", "stroke", ("--count", "1000000"), "count is 1000000: give"),
    ("grey", "stroke", ("--steps", "1000000000"), "from 1 to 10,000"),
    ("grey", "superres", ("--patch", "100"), "do not divide by 100"),
    ("grey", "superres", ("--patch", "2000"), "patch is 2000: give"),
    ("grey", "stroke", ("--seed", "-1"), "seed"),
    ("grey", "interpolate", (), "leave --image off"),
    ("boot", "inpaint", ("--mask", "mask.png"), "take a consistency model"),
    ("pd", "superres", (), "take a consistency model"),
    ("direct", "denoise", ("--sigmas", "10"), "take a consistency model"),
    ("teacher", "stroke", (), "is a teacher"),
    ("nowhere", "stroke", (), "no finished run"),
]


@pytest.mark.parametrize(("run", "task", "more", "remedy"), BAD)
def test_bad_edits_are_one_sentence_and_write_nothing(place, run, task, more, remedy, capsys):
    assert command(run, task, *more) == 2
    said = capsys.readouterr().err.strip()
    assert remedy in said and "\n" not in said
    assert not (place / "out.png").exists()


@pytest.mark.parametrize(
    ("image", "out", "remedy"),
    [
        (None, "out.png", "give one with --image"),
        ("wide.png", "out.png", "scale or crop"),
        ("broken.png", "out.png", "cannot read image 'broken.png'"),
        ("missing.png", "out.png", "cannot read image 'missing.png'"),
        ("digit.png", "out.jpg", "end with .png"),
        ("digit.png", "digit.png/out.png", "--out"),
    ],
)
def test_bad_files_are_one_sentence(place, image, out, remedy, capsys):
    assert command("grey", "stroke", image=image, out=out) == 2
    said = capsys.readouterr().err.strip()
    assert remedy in said and "\n" not in said


def test_every_task_is_known_to_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["edit", "--help"])
    text = capsys.readouterr().out
    assert all(task in text for task in TASKS)
