"""Shared by all tests: where the project is, and one way to run its commands."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from consistency_edu.data import GaussianMixture
from consistency_edu.images import trainer

ROOT = Path(__file__).resolve().parents[1]
COMMAND = Path(sys.executable).with_name("consistency-edu")


def quiet_environment(**more):
    """This environment with one thread a process, no bars and no window."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "IN_TEST": "1", **more}


def run_cli(*args, cwd, **options):
    """Run `consistency-edu` with `args` in `cwd`, and return the finished process with output."""
    command = [COMMAND, *map(str, args)]
    options = {"capture_output": True, "text": True, "timeout": 900, **options}
    return subprocess.run(command, cwd=cwd, env=quiet_environment(), **options)


def make_mixture(means, stds, weights=None):
    """A float64 mixture of one class."""
    means, stds = torch.tensor(means).double(), torch.tensor(stds).double()
    weights = torch.ones(len(means)).double() if weights is None else torch.tensor(weights).double()
    return GaussianMixture(means, stds, weights / weights.sum(), torch.zeros(len(means)).long())


@pytest.fixture(scope="session")
def blobs():
    """Three wide, overlapping blobs: no parting line, so that solver errors converge soon."""
    return make_mixture([[-0.4, 0.0], [0.3, 0.4], [0.2, -0.4]], [0.3, 0.35, 0.4])


@pytest.fixture(scope="session")
def normal():
    """A single Gaussian off the origin, whose ODE has a closed form."""
    return make_mixture([[0.3, -0.2]], [0.5])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


METHODS = ("teacher", "cd", "ct", "ict", "ect", "scd", "sct", "meanflow", "dmd", "pd", "direct")
METHODS += ("boot",)
KINDS = [f"{method}{labels}" for labels in ("", "-labels") for method in METHODS]


def command(*args):
    """Run `consistency-edu` with `args` in this process; return its status and what it said."""
    from consistency_edu.cli import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            return main([str(arg) for arg in args]), said.getvalue()
        except SystemExit as stop:
            return stop.code, said.getvalue()


@pytest.fixture(scope="session")
def every_run(tmp_path_factory):
    """The folder of a run of one step by each method, without labels and with."""
    place = tmp_path_factory.mktemp("every-run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IN_TEST", "1")
        patch.setattr(trainer, "save_grid", lambda x, path, title: path)  # most of the time
        for kind in KINDS:
            method, _, labels = kind.partition("-")
            args = ["--steps=1", "--batch=8", "--points=4", "--out", place / kind]
            args += ["--labels"] if labels else []
            args += ["--pairs=64"] if method == "direct" else []  # not 32,768 in batches of 8
            if method in ("ect", "sct"):
                args += ["--start", place / kind.replace(method, "teacher")]
            elif method not in ("teacher", "ct", "ict", "meanflow"):
                args += ["--teacher", place / kind.replace(method, "teacher")]
            status, said = command("train", f"digits-{method}", *args)
            assert status == 0, said
    return place
