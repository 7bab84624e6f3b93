"""`consistency-edu train` with something wrong: one sentence that names it, and nothing written."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from consistency_edu.cli import main

TRAIN = ["train", "digits-teacher", "--steps", "2"]


@pytest.fixture(autouse=True)
def without_bars(monkeypatch):
    monkeypatch.setenv("IN_TEST", "1")


def picture(shade):
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of two images each."""
    for kind in ("cat", "dog"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for k in range(2):
            (tmp_path / "set" / kind / f"{k}.png").write_bytes(picture(50 * k))
    return tmp_path / "set"


def refused(capsys, tmp_path, *args):
    """The one line that `consistency-edu train` stops with; the run's folder is not begun."""
    out = tmp_path / "run"
    assert main([*TRAIN, "--out", str(out), *map(str, args)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("consistency-edu: ") and "\n" not in said and "Traceback" not in said
    assert not out.exists() or not list(out.iterdir())
    return said


def test_a_good_folder_is_not_refused(capsys, tmp_path, folder):
    out = str(tmp_path / "run")
    assert main([*TRAIN, "--out", out, "--data", str(folder)]) == 0


def test_a_tar_that_climbs_out(capsys, tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name in ("cat/0.png", "../../escaped.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture(9))
            archive.addfile(member, io.BytesIO(picture(9)))
    said = refused(capsys, tmp_path, "--data", tmp_path / "set.tar")
    assert "climbs out of its folder ('../../escaped.png')" in said
    assert not list(tmp_path.parent.parent.glob("escaped*"))


def test_a_corrupt_image_is_named(capsys, tmp_path, folder):
    (folder / "dog" / "1.png").write_bytes(picture(3)[:40])
    said = refused(capsys, tmp_path, "--data", folder)
    assert "dog/1.png" in said and "replace or remove it" in said


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 5], [0, 1, -1]])
def test_labels_that_do_not_match(capsys, tmp_path, labels):
    images = np.zeros((3, 8, 8, 1), np.uint8)
    content = {"images": images, "labels": np.array(labels), "classes": np.array(["a", "b"])}
    np.savez(tmp_path / "set.npz", **content)
    said = refused(capsys, tmp_path, "--data", tmp_path / "set.npz", "--labels")
    assert "labels" in said and ("number the classes" in said or "give a whole number" in said)


@pytest.mark.parametrize(
    ("args", "remedy"),
    [
        (["--lerning-rate", "1"], "there is no field 'lerning_rate'"),
        (["--bacth", "8"], "did you mean 'batch'?"),
        (["--network", "smal"], "did you mean 'small'?"),
        (["--precision", "bfloat"], "did you mean 'bfloat16'?"),
        (["--batch", "0"], "it must be above 0"),
    ],
)
def test_an_override_with_a_typo(capsys, tmp_path, args, remedy):
    assert remedy in refused(capsys, tmp_path, *args)


def test_no_gpu_where_one_was_asked_for(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "PyTorch sees no GPU: choose 'cpu'" in refused(capsys, tmp_path, "--device", "cuda")
