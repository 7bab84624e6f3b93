"""The front door: about thirty names, each loaded only when asked for, from its own module."""

import subprocess
import sys

import pytest
from conftest import quiet_environment

import consistency_edu
from consistency_edu import _HOME_OF


def run(code):
    """What `code` prints in a fresh process."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=quiet_environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(_HOME_OF))
def test_each_name_comes_from_the_module_that_defines_it(name):
    found = getattr(consistency_edu, name)
    assert found.__name__ == name and found.__module__ == f"consistency_edu.{_HOME_OF[name]}"
    assert name in dir(consistency_edu) and name in consistency_edu.__all__


def test_importing_the_package_loads_nothing_else():
    code = "import sys, consistency_edu; print([m for m in sys.modules if 'consistency_edu.' in m])"
    assert run(code).strip() == "[]"
    assert run("import sys, consistency_edu; print('torch' in sys.modules)").strip() == "False"


def test_a_star_import_brings_all_and_nothing_private():
    code = "from consistency_edu import *; print(len([n for n in dir() if n[0] != '_']))"
    assert int(run(code)) == len(_HOME_OF) <= 32


def test_submodules_still_import_and_other_names_do_not():
    from consistency_edu import boot

    assert boot.Boot is consistency_edu.Boot
    with pytest.raises(ImportError):
        from consistency_edu import nothing  # noqa: F401
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        consistency_edu.nothing  # noqa: B018
