"""A make target does not install this clone into another clone's environment."""

import os
import subprocess

import pytest
from conftest import ROOT


def make_docs(folder, home):
    """`make docs` with an environment whose Python says that its package stands at `home`."""
    python = folder / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.write_text(f'#!/bin/sh\n[ "$1" = -I ] && echo "{home}" && exit\necho "$@" >&2\nexit 3\n')
    python.chmod(0o755)
    command = ["make", "docs", f"VENV={folder}"]
    alone = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))
    }
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=alone)


def test_another_clones_environment_is_left_alone(tmp_path):
    done = make_docs(tmp_path, "/elsewhere/consistency_edu/__init__.py")
    assert done.returncode == 2 and "/elsewhere/consistency_edu" in done.stdout
    assert len(done.stdout.splitlines()) == 1 and "pip install" not in done.stderr + done.stdout


@pytest.mark.parametrize("home", ["", ROOT / "consistency_edu" / "__init__.py"])
def test_an_environment_of_ones_own_is_installed_into(tmp_path, home):
    assert "pip install" in make_docs(tmp_path, home).stderr
