"""What a person does wrong, and consoles that cannot do much: one sentence, no traceback."""

import ast
import contextlib
import errno
import io
import os
import subprocess
import sys

import pytest
import torch
from conftest import COMMAND, ROOT, command, quiet_environment
from test_files import content, small_files

from consistency_edu import cli
from consistency_edu.cli import main, parse


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder in which commands are run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IN_TEST", "1")
    return tmp_path


def refused(*args):
    """The one sentence with which the command ends."""
    status, said = command(*args)
    *before, last = said.splitlines()
    assert status == 2 and last.startswith("consistency-edu: "), said
    assert "Traceback" not in said and not any("consistency-edu: " in line for line in before), said
    return last


# ------------------------------------------------------------------ words, numbers, names

SEEDED = {
    "toy": [],
    "digits": [],
    "train": ["digits-ct"],
    "sample": ["digits-cd"],
    "evaluate": ["digits-cd"],
    "edit": ["digits-cd", "--task=interpolate", "--out=x.png"],
}


@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, -(2**70)])
def test_seeds(name, seed, place):
    assert "seed is" in refused(name, *SEEDED[name], "--seed", seed)
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    "device", ["xpu", "meta", "cuda:9", "mps", "cuda:256", "cpu:1", "é", "CPU"]
)
def test_devices(device, place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for args in (
        ("sample", "digits-cd"),
        ("evaluate", "digits-cd"),
        ("train", "digits-ct"),
    ):
        assert f"'{device}'" in refused(*args, "--device", device)
    assert not list(place.iterdir())


EMPTY = [
    ("sample", ""),
    ("sample", "digits-cd", "--out", ""),
    ("sample", "digits-cd", "--out="),
    ("train", "digits-ct", "--out", ""),
    ("train", "digits-ct", "--data", ""),
    ("train", "digits-ct", "--data="),
    ("train", "digits-ct", "--lr"),
    ("train", "digits-ct", "--about", "a\0b"),
    ("sample", "a\0b"),
    ("evaluate", "digits-cd", "--reference="),
    ("sweep", ""),
]


@pytest.mark.parametrize("words", EMPTY, ids=repr)
def test_empty_words_and_nul(words, place):
    said = refused(*words)
    assert "empty" in said or "no value" in said or "NUL" in said
    assert not list(place.iterdir())


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ("sample", LONG),
        ("sample", "{run}", "--out", f"{LONG}.png"),
        ("sample", "{run}", "--out", "taken.png"),
        ("sample", "{run}", "--out", "broken/x.png"),
        ("sample", "taken.png"),
        ("sample", "broken"),
        ("edit", "{run}", "--task=interpolate", "--out", "taken.png"),
        ("edit", "{run}", "--task=stroke", "--image", "taken.png", "--out", "x.png"),
        ("edit", "{run}", "--task=stroke", "--image", LONG, "--out", "x.png"),
        ("evaluate", "{run}", "--features=pixels", "-n=20", "--out", "taken.png"),
        ("evaluate", "{run}", "--features=taken.png"),
        ("evaluate", "{run}", "--features=pixels", "--reference", "file"),
        ("evaluate", "{run}", "--features=pixels", "--reference", LONG),
        ("train", "digits-ct", "--out", "file"),
        ("train", "digits-ct", "--out", "broken"),
        ("train", "digits-ct", "--out", LONG),
        ("train", "digits-ct", "--start", "file", "--out", "new"),
        ("train", "digits-cd", "--teacher", "file", "--out", "new"),
        ("train", "digits-cd", "--teacher", "taken.png", "--out", "new"),
        ("train", "digits-ct", "--data", "broken", "--out", "new"),
        ("train", "digits-ct", "--data", LONG, "--out", "new"),
        ("toy", "--out", "file"),
        ("digits", "--out", "broken"),
        ("digits", "--effort", "nan"),
        ("sweep", "cd_toy", "--out", "file"),
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_files_and_folders_that_are_not_what_they_should_be(words, place):
    (place / "file").write_text("taken")
    (place / "taken.png").mkdir()
    (place / "broken").symlink_to(place / "nowhere" / "at all")
    before = content(place)
    refused(*(word.format(run="digits-cd") for word in words))
    assert content(place) == before and (place / "broken").is_symlink()


# ------------------------------------------------------------------ full disks, no memory, bugs


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "--out=grid.png"),
        ("edit", "--task=interpolate", "--count=40", "--out=row.png"),
        ("evaluate", "--features=pixels", "-n=200", "--out=numbers.json"),
    ],
)
def test_a_full_disk_is_a_sentence_and_leaves_the_earlier_file(words, place):
    name, *more = words
    assert command(name, "digits-cd", *more)[0] == 0
    whole = content(place)
    with small_files(60):
        said = refused(name, "digits-cd", *more, "--seed", 1)
    assert "make room" in said and os.strerror(errno.EFBIG) in said
    assert content(place) == whole and not list(place.glob(".*"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of matplotlib
def test_a_full_disk_in_the_middle_of_a_training(place):
    with small_files(3000):
        said = refused("train", "digits-ct", "--steps=60", "--batch=8", "--out=run")
    assert "make room" in said
    assert not [path for path in place.rglob(".*")]


ERRORS = [
    (MemoryError(), "not enough memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."), "not enough memory"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory: 9 bytes"), "not enough"),
    (OSError(errno.ENOSPC, "No space left on device", "x"), "'x' (No space left on device): make"),
    (OSError("12 requested and 0 written"), "12 requested"),
    (PermissionError(errno.EACCES, "Permission denied", "x"), "yours to read and write"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "choose a shorter name"),
]


@pytest.mark.parametrize(("error", "words"), ERRORS, ids=lambda value: str(value)[:30])
def test_what_the_machine_refuses_is_a_sentence(error, words, place, monkeypatch):
    monkeypatch.setattr(cli, "run_toy", lambda config: throw(error))
    assert words in refused("toy")


def test_a_fault_of_ours_shows_where_it_is(place, monkeypatch):
    monkeypatch.setattr(cli, "run_toy", lambda config: throw(RuntimeError("bug")))
    with pytest.raises(RuntimeError, match="bug"):
        command("toy")


def throw(error):
    raise error


# ------------------------------------------------------------------ consoles


@contextlib.contextmanager
def console(encoding, file=None):
    """Let both channels of this process go to one in `encoding` that refuses all else."""
    stream = io.TextIOWrapper(file or io.BytesIO(), encoding=encoding, errors="strict")
    with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(stream):
        yield stream


@pytest.mark.parametrize("encoding", ["ascii", "cp949", "cp1251"])
def test_a_console_that_lacks_letters(encoding, place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.delenv("IN_TEST")
    run = "digits-cd"
    done = [["recipes"], ["sweep"], ["evaluate", run, "--features=pixels", "-n=20", "--out=x.json"]]
    done += [["train", "digits-ct", "--steps=1", "--batch=8", "--out=é×…μ"]]
    wrong = [["sample", "nobody-é×…μ"], ["sample", "\udce9"], ["toy", "--seed", "-1"], ["toy", "é"]]
    for status, cases in ((0, done), (2, wrong)):
        for args in cases:
            with console(encoding) as stream:
                try:
                    assert main(args) == status
                except SystemExit as stop:  # tyro's own refusal
                    assert stop.code == status == 2
            assert stream.buffer.getvalue()


@pytest.mark.parametrize("name", [*cli.COMMANDS, ""])
def test_help_in_a_narrow_ascii_console(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    with console("ascii") as stream, pytest.raises(SystemExit) as stop:
        main([name, "--help"] if name else ["--help"])
    assert stop.value.code == 0 and len(stream.buffer.getvalue()) > 200


def test_nobody_reads_what_is_said(place):
    ends = os.pipe()
    os.close(ends[0])
    with console("utf-8", os.fdopen(ends[1], "wb")) as stream:
        assert main(["recipes"]) == 141
        stream.close()


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize(
    ("line", "status", "lines"),
    [("recipes | head -1", 0, 0), ("sweep | true", 0, 0), ("recipes > /dev/full", 2, 1)],
)
def test_pipes_that_end_and_disks_that_are_full(line, status, lines, place):
    shell = ["bash", "-c", f"'{COMMAND}' {line}; echo ${{PIPESTATUS[0]}} >&2"]
    done = subprocess.run(shell, env=quiet_environment(), capture_output=True, text=True)
    *said, last = done.stderr.splitlines()
    assert len(said) == lines and all(text.startswith("consistency-edu: ") for text in said), said
    assert int(last) in ({0, 141} if not lines else {status})


# ------------------------------------------------------------------ train's options


def fields_and_lines():
    """The fields of Recipe and the line below each, from the source."""
    tree = ast.parse(
        (ROOT / "consistency_edu" / "images" / "recipes.py").read_text(encoding="utf-8")
    )
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Recipe").body
    for field, line in zip(body, body[1:]):
        if isinstance(field, ast.AnnAssign):
            yield field.target.id, line.value.value


def words_of(text):
    return " ".join(text.replace("│", " ").replace("|", " ").split())


@pytest.mark.parametrize("named", [(), ("digits-cd",)])
def test_the_help_of_train_names_every_field_with_its_line(named, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    status, said = command("train", *named, "--help")
    said, found = words_of(said), list(fields_and_lines())
    assert status == 0 and len(found) > 35
    for name, line in found:
        assert f"--{name.replace('_', '-')}" in said and words_of(line) in said, name
    assert ("(default: digits-teacher)" in said) == bool(named)


def changes(*words):
    return parse(["train", *words]).changes


def test_changes_of_a_recipe():
    assert changes("digits-ct", "--lr", "1e-3", "--flip") == {"lr": "1e-3", "flip": "true"}
    assert changes("--flip", "digits-ct") == {"flip": "true"}
    assert changes("digits-ct", "--flip", "false") == changes("digits-ct", "--flip=false")
    assert changes("digits-ct", "--no-flip") == {"flip": "false"}
    assert changes("digits-cd", "--no-copy-teacher") == {"copy_teacher": "false"}
    assert changes("digits-cd", "--source=", "--clip", "-1") == {"source": "", "clip": "-1"}
    assert changes("digits-cd", "--source", "digits-teacher") == {"source": "digits-teacher"}
    assert parse(["train", "digits-ct", "--save_every", "3", "--no-resume"]).save_every == 3


@pytest.mark.parametrize(
    ("word", "near"),
    [("--sead=1", "'seed'"), ("--resum", "'resume'"), ("--no-flop", "flip"), ("--changes", "flip")],
)
def test_misspelt_options_name_the_nearest(word, near, place):
    assert near in refused("train", "digits-ct", word)
