"""Files appear whole or not at all: a full disk or Ctrl-C leaves what was there and no more."""

import contextlib
import errno
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import quiet_environment
from PIL import Image

from consistency_edu import evaluation, features, image_sets, viz
from consistency_edu.experiments import sweeps
from consistency_edu.experiments.sweeps import Sweep, run_sweep
from consistency_edu.files import (
    InputError,
    check_writable,
    reason_of,
    stored_file,
    stored_json,
    whole_files,
    write_file,
    write_json,
)
from consistency_edu.image_sets import ImageSet, load_images, save_images
from consistency_edu.images.perceptual import load_backbone

ONE = Sweep("one", "nothing", lambda setting, seed: {"x": 1.0}, [{"a": 1}], (0,))


def draw():
    figure, axis = viz.plt.subplots()
    axis.plot(np.random.default_rng(0).normal(size=3000))
    return figure


def pictures(shade, with_labels=True):
    labels = torch.zeros(300, dtype=torch.int64) if with_labels else None
    return ImageSet(torch.full((300, 1, 16, 16), shade, dtype=torch.uint8), labels, ("a",))


def keep_reference(folder):
    seen = evaluation.gather(features.Pixels(), pictures(3).images)
    evaluation._write(folder / "reference.safetensors", seen)


WRITERS = {
    "bytes": lambda folder: write_file(folder / "x.bin", bytes(50_000)),
    "json": lambda folder: write_json(folder / "x.json", {"rows": list(range(20_000))}),
    "figure": lambda folder: viz.save_figure(draw(), folder / "x.png"),
    "animation": lambda folder: viz.save_animation(draw(), lambda k: None, 3, folder / "x.gif"),
    "images": lambda folder: save_images(pictures(9), folder),
    "reference": keep_reference,
}


def content(folder):
    """All that lies below `folder`."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@contextlib.contextmanager
def small_files(limit=4000):
    """No file may grow beyond `limit` bytes, as on a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="limits are those of Unix")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_what_was_there(kind, tmp_path):
    folder, figures = tmp_path / "out", viz.plt.get_fignums()
    with pytest.raises(OSError), small_files():
        WRITERS[kind](folder)
    assert not list(folder.iterdir()) and viz.plt.get_fignums() == figures
    WRITERS[kind](folder)
    whole = content(folder)
    assert whole
    with pytest.raises(OSError), small_files():
        WRITERS[kind](folder)
    assert content(folder) == whole and not list(folder.glob(".*"))
    WRITERS[kind](folder)
    assert content(folder) == whole


@pytest.mark.parametrize("kind", WRITERS)
def test_ctrl_c_before_the_name_is_there(kind, tmp_path, monkeypatch):
    def interrupted(*names):
        raise KeyboardInterrupt

    figures = viz.plt.get_fignums()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        WRITERS[kind](tmp_path)
    assert not list(tmp_path.iterdir()) and viz.plt.get_fignums() == figures


def test_several_files_come_together(tmp_path):
    save_images(pictures(1), tmp_path)
    with pytest.raises(ZeroDivisionError), whole_files(tmp_path) as new:
        (new / "classes.npy").write_text("half")
        1 / 0  # noqa: B018
    assert load_images(tmp_path).classes == ("a",)
    with whole_files(tmp_path / "deep" / "er") as new:
        (new / "a").write_text("a")
        (new / "b").mkdir()
    assert sorted(p.name for p in (tmp_path / "deep" / "er").iterdir()) == ["a", "b"]


def test_files_have_the_rights_of_others(tmp_path):
    (tmp_path / "plain").write_text("")
    write_file(tmp_path / "ours", b"")
    assert (tmp_path / "plain").stat().st_mode == (tmp_path / "ours").stat().st_mode


def test_two_writers_of_one_name_do_not_meet(tmp_path):
    with whole_files(tmp_path) as one, whole_files(tmp_path) as other:
        (one / "x").write_text("one"), (other / "x").write_text("other")
    assert (tmp_path / "x").read_text() == "one" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["taken", "x" * 300, "nul\0"])
def test_names_that_cannot_be_written(name, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="choose another folder with --out"):
        check_writable(tmp_path, name)
    check_writable(tmp_path, "free")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_room_is_asked_for_with_a_file(tmp_path):
    with small_files(0), pytest.raises(InputError, match=os.strerror(errno.EFBIG)):
        check_writable(tmp_path)


def test_a_full_disk_while_images_are_decoded(tmp_path):
    for k in range(40):
        (tmp_path / "set" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), k).save(tmp_path / "set" / "cat" / f"{k}.png")
    with pytest.raises(OSError), small_files():
        load_images(tmp_path / "set", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    found = load_images(tmp_path / "set", cache=tmp_path / "cache")
    assert len(found) == 40


def test_the_room_of_a_mapped_file_is_taken_at_once(tmp_path):
    image_sets._new_map(tmp_path / "x.npy", (1000, 1000), np.uint8)
    assert (tmp_path / "x.npy").stat().st_blocks * 512 >= 1_000_000


def test_a_sweeps_table_is_whole_or_told_of(tmp_path):
    run_sweep(ONE, tmp_path)
    whole = content(tmp_path)
    with pytest.raises((OSError, InputError)), small_files(10):
        run_sweep(Sweep("one", "", ONE.work, [{"a": 2}], (0,)), tmp_path)
    assert content(tmp_path) == whole
    for text in ("", "{", "[]", '{"rows": 3}', '{"rows": [3]}', "[" * 100_000):
        (tmp_path / "one.json").write_text(text)
        with pytest.raises(InputError, match="is no table of a sweep"):
            sweeps.load_sweep("one", tmp_path)


def test_numbers_that_only_the_repository_holds_are_told_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="only in the course's repository.*start this notebook"):
        stored_file("../results/part1_training.json")
    with pytest.raises(
        FileNotFoundError, match="course's repository.*or run `consistency-edu sweep"
    ):
        sweeps.load_sweep("letting_go")
    write_json(tmp_path / "here.json", {})
    assert stored_file("here.json").read_text() == "{}\n" and stored_json("here.json") == {}


def test_a_sweep_asks_for_its_place_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    never = Sweep("never", "", lambda setting, seed: 1 / 0, [{"a": 1}], (0,))
    with pytest.raises(InputError, match="cannot write into"):
        run_sweep(never, tmp_path / "file")


def test_a_reference_that_cannot_be_kept_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="is not kept in"):
        seen = evaluation.reference_of(
            pictures(3), features.Pixels(), cache=tmp_path / "file" / "cache"
        )
    assert seen.count == 300


@pytest.mark.parametrize("home", ["", "none"])
def test_without_a_home_downloads_have_a_place(home, tmp_path):
    """HOME is not set, and the system knows no user of that number."""
    code = "import pwd; pwd.getpwuid = lambda number: {}[number]\n" if home == "none" else ""
    command_line = "cli, " if home else ""  # once is enough: it imports everything
    code += f"from consistency_edu import {command_line}image_sets; print(image_sets.DOWNLOADS)"
    environment = quiet_environment(TMPDIR=str(tmp_path), MPLCONFIGDIR=str(tmp_path))
    environment.pop("HOME", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.path.isabs(done.stdout.strip())
    assert re.search(re.escape(str(tmp_path)), done.stdout) or not home


def test_no_message_passes_on_advice_to_run_what_is_in_a_file(tmp_path):
    objects = np.array([{"a": 1}, print], dtype=object)
    np.savez(tmp_path / "set.npz", train_images=objects)
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "train_images.npy", objects)
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(objects))
    torch.save(torch.nn.Linear(1, 1), tmp_path / "net.pth")
    actions = [lambda p=tmp_path / n: load_images(p) for n in ("set.npz", "folder", "raw.npz")]
    for action in (*actions, lambda: load_backbone(torch.nn.Identity(), tmp_path / "net.pth")):
        with pytest.raises(InputError) as error:
            action()
        for word in ("pickle", "weights_only", "trust", "unsafe", "arbitrary"):
            assert word not in str(error.value), error.value
    assert reason_of(OSError("it\nbreaks  off")) == "it breaks off" and reason_of(EOFError())
