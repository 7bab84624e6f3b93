"""Students that come with the course: their files, their names, and the tool that makes them."""

import importlib.util
import json
import shutil
import socket

import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

from consistency_edu.checkpoints import checksum
from consistency_edu.cli import EvaluateConfig, examine, file_of, main
from consistency_edu.data import InputError, load_digits
from consistency_edu.images import runs
from consistency_edu.images.runs import load_pretrained, load_run, pretrained_names, read_json

NAMES = ("cifar10-mini", "digits-cd")
PACKAGE = runs.PRETRAINED


def tool():
    """The script that makes a pretrained student, as a module."""
    spec = importlib.util.spec_from_file_location("pretrain", ROOT / "tools" / "pretrain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def students(tmp_path, monkeypatch):
    """A copy of the small student where pretrained students are looked for."""
    shutil.copytree(PACKAGE / "digits-cd", tmp_path / "students" / "digits-cd")
    monkeypatch.setattr(runs, "PRETRAINED", tmp_path / "students")
    return tmp_path / "students"


def test_there_are_two_students_where_the_package_is():
    assert pretrained_names() == NAMES
    assert PACKAGE == (ROOT / "consistency_edu" / "pretrained")


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small_whole_and_described(name):
    folder = PACKAGE / name
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "run.json", "card.md"}
    content, info = (folder / "model.safetensors").read_bytes(), read_json(folder / "run.json")
    assert len(content) < 16e6 and checksum(content) == info["sha256"]["model"]
    weights = load_file(folder / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}
    assert sum(w.numel() for w in weights.values()) == info["parameters"] + 16  # frequencies
    assert "16 bits" in info["notes"]["rounding"]
    card = (folder / "card.md").read_text(encoding="utf-8")
    for word in (
        f"# {name}",
        "16 bits",
        "trained on",
        "consistency-edu train",
        "licence",
        "limits",
    ):
        assert word in card, word
    if name.startswith("cifar10"):
        assert [row["steps"] for row in info["scores"]][0] == 1
        assert "JPEG" in card and "Fréchet distance" in card and "CIFAR-10 itself" in card
    for word in (
        "/work",
        "/tmp",
        "/home",
        ".jobs",
        ".tar",
    ):
        assert word not in info["recipe"]["data"] + info["notes"]["command"], word


@pytest.mark.parametrize(("name", "shape"), [(NAMES[0], (3, 32, 32)), (NAMES[1], (1, 8, 8))])
def test_they_load_in_32_bits_and_sample_without_a_network(name, shape, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket, "create_connection", refuse)
    run = load_pretrained(name)
    assert run.shape == shape and run.recipe.method == "cd" and not run.model.training
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in run.model.parameters())
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    one = run.sample(noise)
    two = run.sample(noise, steps=2, generator=torch.Generator().manual_seed(1))
    assert one.shape == two.shape == noise.shape
    assert one.isfinite().all() and (one - two).abs().max() > 1e-3
    assert one.abs().max() < 2 and (one[0] - one[1]).abs().mean() > 0.02


def test_networks_for_images_lie_channels_last():
    network = load_pretrained("cifar10-mini").model.network
    convolutions = [p for p in network.parameters() if p.ndim == 4 and p.shape[-1] == 3]
    assert len(convolutions) > 20
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)


def test_fast_means_bfloat16_where_it_has_units_and_draws_the_same(monkeypatch):
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    draw = lambda **options: load_pretrained("cifar10-mini", **options).sample(noise)  # noqa: E731
    full = draw(precision="float32")
    for has_units in (True, False):
        monkeypatch.setattr(runs, "has_bfloat16_units", lambda device, has=has_units: has)
        precision = load_pretrained("cifar10-mini").model.network.precision
        assert precision is (torch.bfloat16 if has_units else None)
        assert load_run("cifar10-mini").model.network.precision is None  # unless asked for
        assert load_run("cifar10-mini", precision="fast").model.network.precision is precision
        near, apart = draw(), (full - full.roll(1, 0)).square().mean().sqrt()
        error = (near - full).square().mean().sqrt()
        assert near.dtype == torch.float32 and error < 0.03 * apart  # rounding, no other images
        assert bool(error > 0) == has_units
    with pytest.raises(InputError, match="did you mean 'bfloat16'"):
        load_pretrained("cifar10-mini", precision="bfloat")


def test_units_for_bfloat16_are_asked_of_the_device(monkeypatch):
    cpu, has = torch.device("cpu"), runs.has_bfloat16_units
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert has(cpu) is True and has(torch.device("meta")) is False
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert has(cpu) is False
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert has(cpu) is False
    for version, is_fast in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, v=version: v)
        assert has(torch.device("cuda")) is is_fast


@pytest.mark.parametrize(
    ("name", "near"), [("cifar10-min", "cifar10-mini"), ("digit-cd", "digits-cd")]
)
def test_wrong_names_are_answered_with_the_nearest(name, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load in (load_pretrained, load_run):
        with pytest.raises(InputError, match=f"did you mean '{near}'") as error:
            load(name)
        assert "\n" not in str(error.value) and all(known in str(error.value) for known in NAMES)
    with pytest.raises(InputError, match="there is no pretrained student '../digits-cd'"):
        load_pretrained("../digits-cd")


def test_a_name_of_before_is_answered_with_that_of_today():
    for load in (load_pretrained, load_run):
        with pytest.raises(InputError, match="has given way to 'cifar10-mini', which knows cla"):
            load("cifar10-cd-mini")


def test_a_student_with_classes_draws_what_it_is_told():
    run = load_pretrained("cifar10-mini", precision="float32")
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).repeat(
        12, 1, 1, 1
    )
    in_turn, horses = run.sample(noise), run.sample(noise, labels=torch.full((12,), 7))
    assert run.labels_in_turn(12).tolist() == [*range(10), 0, 1]
    assert load_pretrained("digits-cd").labels_in_turn(12) is None
    apart = (in_turn[:10] - horses[:10]).square().flatten(1).mean(1).sqrt()
    assert apart[7] < 1e-4 and all(apart[k] > 0.1 for k in range(10) if k != 7)


def test_an_edit_is_told_the_class(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["edit", "cifar10-mini", "--task", "interpolate", "--count", "2", "--seed", "3"]
    pictures = []
    for labels in (["--labels", "horse"], ["--labels", "7"], ["--labels", "ship"], []):
        assert main([*words, "--out", "walk.png", *labels]) == 0
        pictures.append((tmp_path / "walk.png").read_bytes())
    assert pictures[0] == pictures[1] and len(set(pictures)) == 3
    assert main([*words, "--out", "walk.png", "--labels", "hors"]) == 2
    assert "did you mean 'horse'" in capsys.readouterr().err
    assert main(["edit", "digits-cd", *words[2:], "--out", "walk.png", "--labels", "7"]) == 2
    assert "trained without classes: leave --labels off" in capsys.readouterr().err


def test_a_name_stands_for_a_folder_but_a_folder_goes_first(students, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_run("digits-cd").info["seed"] == 0
    (tmp_path / "digits-cd").mkdir()
    assert load_run("digits-cd").info["seed"] == 0  # an empty folder is no run
    shutil.copytree(students / "digits-cd", tmp_path / "digits-cd", dirs_exist_ok=True)
    info = read_json(tmp_path / "digits-cd" / "run.json")
    (tmp_path / "digits-cd" / "run.json").write_text(json.dumps({**info, "seed": 7}))
    assert load_run("digits-cd").info["seed"] == 7
    assert load_pretrained("digits-cd").info["seed"] == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "no json", "other network"])
def test_a_damaged_student_is_one_sentence(students, damage):
    file, json_file = (
        students / "digits-cd" / "model.safetensors",
        students / "digits-cd" / "run.json",
    )
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-1000])
    elif damage == "flipped":
        content[-7] ^= 16
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    elif damage == "no json":
        json_file.write_text("{")
    else:
        weights = {name: w for name, w in load_file(file).items() if "bias" not in name}
        save_file(weights, file)
        info = read_json(json_file)
        sums = {"model": checksum(file.read_bytes())}
        json_file.write_text(json.dumps({**info, "sha256": sums}))
    with pytest.raises(InputError) as error:
        load_pretrained("digits-cd")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_commands_take_the_name_of_a_student(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "digits-cd", "--nrow", "2", "--ncol", "3", "--steps", "2"]) == 0
    assert Image.open("grid.png").size[0] > Image.open("grid.png").size[1]
    digit = ((load_digits("test")[0][0, 0] + 1) * 127.5).round().byte().numpy()
    Image.fromarray(digit).save("digit.png")
    words = ["--task", "superres", "--image", "digit.png", "--out", "out.png", "--steps", "2"]
    assert main(["edit", "digits-cd", *words]) == 0 and Image.open("out.png").size == (8, 8)
    assert main(["evaluate", "digits-cd", "-n", "40", "--features", "pixels"]) == 0
    rows = read_json(tmp_path / "digits-cd-evaluation.json")["rows"]
    assert rows[0]["card"]["samples"] == 40 and "Floor" in capsys.readouterr().out
    assert not (tmp_path / "digits-cd").exists()
    assert main(["sample", "digits-ce"]) == 2
    assert "did you mean 'digits-cd'" in capsys.readouterr().err


def test_numbers_go_beside_a_run_but_not_into_the_package(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    assert file_of(EvaluateConfig(tmp_path)) == tmp_path / "evaluation.json"
    name = "digits-cd"
    assert str(file_of(EvaluateConfig(runs.Path(name)))) == f"{name}-evaluation.json"
    assert file_of(EvaluateConfig(tmp_path, out=tmp_path / "x.json")) == tmp_path / "x.json"


def test_the_doctor_knows_them():
    assert all(name in examine()["students"] for name in NAMES)


def finished(folder, half=False):
    """A finished run in `folder`, in 32 bits with its checksum, or rounded with that of 32."""
    folder.mkdir()
    weights = load_file(PACKAGE / "digits-cd" / "model.safetensors")
    rng = torch.Generator().manual_seed(0)
    full = {
        k: w.float() * (1 + 1e-5 * torch.rand(w.shape, generator=rng)) for k, w in weights.items()
    }
    save_file(full, folder / "model.safetensors")
    info = read_json(PACKAGE / "digits-cd" / "run.json")
    info["sha256"] = {"model": checksum((folder / "model.safetensors").read_bytes())}
    info["recipe"] |= {"steps": 77, "data": "here/digits.tar", "minutes": 2.5}
    (folder / "run.json").write_text(json.dumps(info))
    if half:
        save_file({k: w.half() for k, w in full.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("half", [False, True])
def test_the_tool_rounds_and_seals_a_run(tmp_path, half):
    pretrain, run = tool(), finished(tmp_path / "run", half)
    card = {"metric": "Fréchet distance, digits", "samples": 9, "reference_images": 8}
    card |= {"reference": "digits train", "resize": "none", "rounding": "none", "features": "f"}
    row = {"frechet": 12.345, "precision": 0.5, "recall": 0.25, "card": card}
    row["card"]["precision_recall"] = "k = 3"
    (run / "scores.json").write_text(json.dumps({"1": row, "2": {**row, "frechet": 7.5}}))
    given = {"data": "digits", "note": "as they are", "teacher": "runs/big", "start": ""}
    made = pretrain.make(run, "mine", out=tmp_path, **given)
    assert {file.name for file in made.iterdir()} == {"model.safetensors", "run.json", "card.md"}
    info, weights = read_json(made / "run.json"), load_file(made / "model.safetensors")
    assert info["sha256"]["model"] == checksum((made / "model.safetensors").read_bytes())
    assert {w.dtype for w in weights.values()} == {torch.float16}
    given = load_file(run / "model.safetensors")
    assert all((weights[k].float() - w.float()).abs().max() < 2e-3 for k, w in given.items())
    assert info["recipe"]["data"] == "digits" and info["notes"]["data"] == "as they are"
    assert [(row["steps"], row["frechet"]) for row in info["scores"]] == [(1, 12.345), (2, 7.5)]
    command = "consistency-edu train digits-cd --steps 77 --minutes 1.1 --teacher runs/big --seed 0"
    assert info["notes"]["command"] == command
    text = (made / "card.md").read_text(encoding="utf-8")
    for word in ("**1 evaluation**: Fréchet distance, digits: 12.35", "**2 evaluations**", "7.5"):
        assert word in text
    assert "samples.png" not in text and "precision 0.500, recall 0.250" in text


def test_the_tool_refuses_what_should_not_travel(tmp_path, monkeypatch):
    pretrain, run = tool(), finished(tmp_path / "run")
    with pytest.raises(InputError, match="name them with --data"):
        pretrain.make(run, "mine", out=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "LIMIT", 1000)
        with pytest.raises(InputError, match="too many"):
            pretrain.make(run, "mine", data="digits", out=tmp_path)
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-7] ^= 16
    (run / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="another checksum"):
        pretrain.make(run, "mine", data="digits", out=tmp_path)
    weights = load_file(run / "model.safetensors")
    next(iter(weights.values())).fill_(1e6)
    save_file(weights, run / "model.safetensors")
    with pytest.raises(InputError, match="too large for 16 bits"):
        pretrain.rounded((run / "model.safetensors").read_bytes(), None)
    assert not (tmp_path / "mine").exists()
