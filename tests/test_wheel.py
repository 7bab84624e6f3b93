"""The built package works for a user who has its requirements, and none of the course's tools."""

import importlib.metadata as metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, quiet_environment

SOURCES = ["settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"]
TOOLS = ["nbdev", "fastcore", "execnb", "IPython", "jupyter", "notebook", "ipykernel", "nbformat"]

PACKAGE = ROOT / "consistency_edu"

pytestmark = pytest.mark.slow


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(name):
    """The names that an installed distribution requires without extras, on this machine."""
    from packaging.requirements import Requirement

    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def closure(names):
    """All distributions that `names` need, directly or not."""
    found, todo = {}, list(names)
    while todo:
        name = normal(todo.pop())
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # another platform's
        todo += requirements(name)
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the project is built from."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "consistency_edu", source / "consistency_edu", ignore=skip)
    return source


@pytest.fixture(scope="module")
def wheel(source):
    """The wheel, built from a copy of the project."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", source / "dist", source], check=True, capture_output=True)
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def user_python(wheel, tmp_path_factory):
    """The interpreter of an environment with the wheel, its requirements, and nothing else."""
    folder = tmp_path_factory.mktemp("user")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        (card,) = [n for n in archive.namelist() if n.endswith("METADATA")]
        text = archive.read(card).decode()
    names = re.findall(r"^Requires-Dist: ([\w.-]+)(?!.*extra ==)", text, re.M)
    assert "torch" in names and not set(names) & {"nbdev", "jupyter", "fastcore"}
    for distribution in closure(names).values():
        home = Path(distribution.locate_file(""))
        for top in {f.parts[0] for f in distribution.files or [] if f.parts[0] != ".."}:
            if not (site / top).exists() and (home / top).exists():
                (site / top).symlink_to(home / top)
    return folder / "bin" / "python"


def test_every_module_imports_without_the_tools(user_python, tmp_path):
    paths = (p.relative_to(ROOT).with_suffix("") for p in PACKAGE.rglob("[!_]*.py"))
    modules = sorted(".".join(path.parts) for path in paths)
    code = f"""
import importlib, importlib.util, sys
assert not [name for name in {TOOLS} if importlib.util.find_spec(name)]
for name in {modules}:
    module = importlib.import_module(name)
    assert "site-packages" in module.__file__, module.__file__
print(len({modules}), "modules")
"""
    command = [user_python, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=quiet_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{len(modules)} modules" and len(modules) >= 14


def test_the_toy_runs_from_the_wheel(user_python, tmp_path):
    start = "from consistency_edu.cli import main; raise SystemExit(main())"
    command = [user_python, "-c", start, "toy", "--steps", "3", "--samples", "50"]
    done = subprocess.run(
        command, cwd=tmp_path, env=quiet_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "toy_moons_seed0.json").exists()


def test_the_students_travel_in_the_wheel(user_python, tmp_path):
    code = """
import torch
from consistency_edu import load_pretrained
for name in ("digits-cd", "cifar10-mini"):
    run = load_pretrained(name)
    print(name, list(run.sample(torch.randn(2, *run.shape)).shape))
"""
    done = subprocess.run(
        [user_python, "-c", code],
        cwd=tmp_path,
        env=quiet_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "digits-cd [2, 1, 8, 8]\ncifar10-mini [2, 3, 32, 32]\n"


def test_the_wheel_is_small_and_holds_no_pictures(wheel):
    assert wheel.stat().st_size < 20e6
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith((".png", ".ipynb", ".jsonl"))]
    assert "consistency_edu/pretrained/cifar10-mini/card.md" in names


def test_type_checkers_are_told_that_the_package_has_types(wheel, source):
    with zipfile.ZipFile(wheel) as archive:
        assert "consistency_edu/py.typed" in archive.namelist()
        (card,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        assert "Classifier: Typing :: Typed" in archive.read(card).decode().splitlines()
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (path,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        assert f"{path.name.removesuffix('.tar.gz')}/consistency_edu/py.typed" in archive.getnames()
