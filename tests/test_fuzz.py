"""Malformed input of every kind: one sentence, status 2, nothing written elsewhere, no code run.

All commands run in this process, in a folder of their own.  What is mangled: command lines,
recipes' fields, image archives and folders, checkpoints, and the folders of finished runs.
"""

import io
import json
import os
import pickle
import random
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from conftest import command
from PIL import Image

from consistency_edu import image_sets
from consistency_edu.checkpoints import checksum
from consistency_edu.images.methods import override
from consistency_edu.images.recipes import RECIPES
from consistency_edu.images.trainer import train_recipe
from consistency_edu.long_runs import CheckpointManager

SEEN = {"command lines": 0, "fields": 0, "archives": 0, "checkpoints": 0, "runs": 0}
FOUND = []


class Bomb:
    """A pickle of this leaves the file `bomb` behind, where it is opened."""

    def __reduce__(self):
        return os.system, ("touch bomb",)


def listing(folder, but=()):
    """All files below `folder` with their content, but those below `but`."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {p: checksum(p.read_bytes()) for p in files if not {*but} & {*p.parents}}


def is_refused(kind, *args, cwd, outs=(), may_work=False):
    """See that `args` end in one sentence (or work) and leave no file but below `outs`."""
    before = listing(cwd.parents[1], outs)
    SEEN[kind] += 1
    try:
        status, said = command(*args)
    except Exception as error:
        FOUND.append((args, repr(error)[:200]))
        return
    words = [str(word)[-60:] for word in args]
    if "Traceback" in said or not (status == 2 or (may_work and status == 0)):
        FOUND.append((words, status, said[-300:]))
    if status == 2 and not said.strip():
        FOUND.append((words, "says nothing"))
    if listing(cwd.parents[1], outs) != before or (cwd / "bomb").exists():
        FOUND.append((words, "wrote a file"))


@pytest.fixture(autouse=True)
def nothing_found():
    """Tell all that a test found at its end."""
    FOUND.clear()
    yield
    assert not FOUND, "\n".join(map(str, FOUND))


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    """A working folder, three levels down, so that what climbs out is seen."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(image_sets, "DOWNLOADS", folder / "downloads")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished teacher, and a run that stopped with three checkpoints."""
    place = tmp_path_factory.mktemp("runs")
    recipe = override(RECIPES["digits-teacher"], {"steps": "12", "batch": "8"})
    train_recipe(recipe, place / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consistency_edu.images.trainer.Trainer.export", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_recipe(recipe, place / "left", save_every=3)
    return place


# ------------------------------------------------------------------ command lines and fields

WORDS = ["", "-", "--", "---", "--=", "=", "--out", "--seed", "--steps", "--lr", "\x00", "é\u202e"]
WORDS += ["../../..", "/dev/null", "/dev/full/x", "~", "$HOME", "a" * 5000, "-1", "1e999", "nan"]
WORDS += ["None", "[]", "{}", "%s%n", "'; touch bomb; '", "digits-pd", "--resume=maybe", "--keep"]


def test_command_lines_of_random_words(cwd):
    rng = random.Random(0)
    for _ in range(60):
        name = rng.choice(["toy", "digits", "train", "sample", "sweep", "doctor", "", "trian"])
        words = [rng.choice(WORDS) for _ in range(rng.randrange(1, 4))]
        if name in ("toy", "digits"):
            words += ["--stepz", "1"]  # none of these is to begin to work
        args = [name, *words] if name != "doctor" else [name, *words, "more"]
        if any(word in ("-h", "--help") for word in args):
            continue
        is_refused("command lines", *args, cwd=cwd, may_work=name == "sweep")


VALUES = ["", "nan", "inf", "-inf", "-1", "0", "1e400", "abc", "None", "0x10", "١", "1,000", "\x00"]
VALUES += ["99999999999999999999", "1e-400"]
FIELDS = ["batch", "steps", "lr", "sigma_min", "sigma_max", "sigma_data", "points", "ema", "clip"]
FIELDS += [
    "size",
    "warmup",
    "minutes",
    "middle",
    "network",
    "method",
    "optimizer",
    "data",
    "device",
]


def test_fields_with_bad_values(cwd):
    rng = random.Random(1)
    pairs = [(field, value) for field in FIELDS for value in VALUES]
    pairs.remove(("minutes", "١"))  # it is a 1, and would be obeyed
    for field, value in rng.sample(pairs, 90):
        args = ["train", "digits-teacher", "--batch", "8", "--steps", "2", "--out", "run"]
        args += [f"--{field}={value}"]
        shutil.rmtree(cwd / "run", ignore_errors=True)
        is_refused("fields", *args, cwd=cwd, outs=[cwd / "run"], may_work=True)


# ------------------------------------------------------------------ archives and folders


def png(size=8):
    file = io.BytesIO()
    Image.fromarray(np.zeros((size, size), np.uint8)).save(file, "PNG")
    return file.getvalue()


def tar(path, members, mode="w"):
    """A tar of `members`, (name or TarInfo, bytes)."""
    with tarfile.open(path, mode) as archive:
        for info, content in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))


def link(kind, target):
    info = tarfile.TarInfo("a/link.png")
    info.type, info.linkname = kind, target
    return info


def test_archives_that_mean_harm(cwd):
    rng, whole = random.Random(2), [(f"{c}/{k}.png", png()) for c in "ab" for k in range(4)]
    names = [
        "../../evil.png",
        "/tmp/evil.png",
        "a/../../../evil.png",
        "a\\..\\evil.png",
        "\x01/x.png",
    ]
    cases = [("climbs", [*whole, (name, png())]) for name in names]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        cases.append(("link", [*whole, (link(kind, "/etc/passwd"), b"")]))
    cases += [("empty", []), ("no images", [("a/x.txt", b"x")]), ("bad", [("a/x.png", b"no png")])]
    cases += [("sizes", [("a/x.png", png(8)), ("a/y.png", png(9))])]
    cases += [("bomb", [("a/x.png", pickle.dumps(Bomb()))])]
    paths = []
    for number, (kind, members) in enumerate(cases):
        paths.append(cwd / f"{number}-{kind.replace(' ', '')}.tar")
        tar(paths[-1], members)
    tar(cwd / "whole.tar", whole)
    content = (cwd / "whole.tar").read_bytes()
    for number in range(12):
        paths.append(cwd / f"cut{number}.tar")
        paths[-1].write_bytes(content[: rng.randrange(1, 7000)])
    for number in range(6):
        paths.append(cwd / f"noise{number}.tar")
        paths[-1].write_bytes(rng.randbytes(rng.randrange(2000)))
    for name, array in (
        ("object.npy", np.array([Bomb()], dtype=object)),
        ("flat.npy", np.zeros(9, np.uint8)),
        ("floats.npy", np.zeros((3, 8, 8), np.float32)),
        ("none.npy", np.zeros((0, 8, 8), np.uint8)),
    ):
        paths.append(cwd / name)
        np.save(paths[-1], array, allow_pickle=True)
    np.savez(cwd / "other.npz", other=np.zeros(3))
    with zipfile.ZipFile(cwd / "zip.npz", "w") as archive:
        archive.writestr("../evil.npy", b"x")
    (cwd / "folder").mkdir()
    (cwd / "folder" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + rng.randbytes(300))
    (cwd / "gone").mkdir()
    (cwd / "gone" / "x.png").symlink_to("/nowhere")
    paths += [cwd / "other.npz", cwd / "zip.npz", cwd / "folder", cwd / "gone", cwd / "missing"]
    for path in paths:
        args = ["train", "digits-teacher", "--steps=1", "--batch=2", f"--data={path}", "--out=run"]
        shutil.rmtree(cwd / "run", ignore_errors=True)
        outs = [cwd / "run", cwd / "downloads"]
        # a backslash is a letter of a name here, and nothing is unpacked
        is_refused("archives", *args, cwd=cwd, outs=outs, may_work=path.name.startswith("3-"))


# ------------------------------------------------------------------ checkpoints and runs


def mangle(content, rng):
    """`content`, harmed in one of five ways."""
    kind, place = rng.randrange(5), rng.randrange(len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return (
            content[:place]
            + bytes([content[place] ^ (1 << rng.randrange(8))])
            + content[place + 1 :]
        )
    if kind == 2:
        return rng.randbytes(rng.randrange(500))
    if kind == 3:
        return content[:place] + rng.randbytes(20) + content[place:]
    return pickle.dumps(Bomb())


@pytest.mark.slow
def test_checkpoints_that_were_mangled(cwd, runs):
    rng = random.Random(3)
    names = ["objective.safetensors", "ema.safetensors", "rest.pt", "state.json", "manifest.json"]
    for number in range(40):
        shutil.rmtree(cwd / "run", ignore_errors=True)
        shutil.copytree(runs / "left", cwd / "run")
        forged = number % 2  # with sums that fit
        for folder in CheckpointManager(cwd / "run" / "checkpoints").folders:
            name = rng.choice(names[: 4 if forged else 5])
            (folder / name).write_bytes(mangle((folder / name).read_bytes(), rng))
            if forged:
                sums = json.loads((folder / "manifest.json").read_text())
                sums[name] = checksum((folder / name).read_bytes())
                (folder / "manifest.json").write_text(json.dumps(sums))
        args = ["train", "digits-teacher", "--steps=12", "--batch=8", "--out=run", "--resume"]
        is_refused("checkpoints", *args, cwd=cwd, outs=[cwd / "run"], may_work=forged)


def test_runs_of_strangers(cwd, runs):
    rng, info = random.Random(4), json.loads((runs / "teacher" / "run.json").read_text())
    harms = [{"shape": value} for value in ([], [1, 8], "abc", [1, -8, 8], [10**9] * 3, None)]
    harms += [{"classes": value} for value in (-1, 10**12, "ten", None, 1.5)]
    harms += [{"recipe": value} for value in ({}, [], "x", None, {"name": 3})]
    for field, value in (("method", "exec"), ("network", "../../x"), ("points", 1), ("steps", "x")):
        harms.append({"recipe": info["recipe"] | {field: value}})
    harms += [{"sha256": value} for value in ({"model": "0" * 64}, "x", {"model": 3})]
    fine = [{"recipe": {"name": "x" * 9}}, {"sha256": []}]  # all defaults; no sum to hold against
    texts = [json.dumps(info | harm) for harm in harms]
    texts += ["", "{", "[]", "null", "[" * 100_000, "\x00", '{"recipe": NaN}', "é" * 10]
    for text in [*texts, *(json.dumps(info | harm) for harm in fine)]:
        shutil.rmtree(cwd / "run", ignore_errors=True)
        shutil.copytree(runs / "teacher", cwd / "run")
        (cwd / "run" / "run.json").write_text(text, encoding="latin-1")
        args = ["sample", "run", "--nrow=2", "--ncol=2", "--out=out/grid.png"]
        is_refused("runs", *args, cwd=cwd, outs=[cwd / "out"], may_work=text not in texts)
    shutil.copy(runs / "teacher" / "run.json", cwd / "run" / "run.json")
    content = (runs / "teacher" / "model.safetensors").read_bytes()
    for number in range(25):
        (cwd / "run" / "model.safetensors").write_bytes(mangle(content, rng))
        if number % 2:
            shown = {"model": checksum((cwd / "run" / "model.safetensors").read_bytes())}
            (cwd / "run" / "run.json").write_text(json.dumps(info | {"sha256": shown}))
        out = [cwd / "out"]
        args = ["run", "--nrow=1", "--ncol=1", "--steps=2", "--out=out/grid.png"]
        is_refused("runs", "sample", *args, cwd=cwd, outs=out, may_work=number % 2)


def test_samples_that_cannot_be(cwd, runs):
    for words in (
        ["--out=grid.exe"], ["--out=/dev/full/x.png"], ["--nrow=0"], ["--ncol=-1"],
        ["--nrow=10000"], ["--steps=-1"], ["--steps=1.5"], ["--seed=x"], ["--seed", 2**70],
        ["--labels", 3], ["--sigmas", 1, 2], ["--sigmas", "nan"], ["--sigmas", 0],
        ["--sigmas", 10, 10], ["--sigmas", "inf", 1], ["--path", "--interpolate"],
        ["--sigmas", 10, 1, "--steps", 3], ["--device", "cuda:77"], ["--device", "gpu"],
    ):  # fmt: skip
        is_refused("command lines", "sample", runs / "teacher", *words, cwd=cwd)


def test_that_there_were_enough():
    """Counted after all others in this file; alone it has nothing to count."""
    print("\n", SEEN, "in all", sum(SEEN.values()))
    assert sum(SEEN.values()) >= 200 or not all(SEEN.values())
