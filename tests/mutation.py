"""Break each line that matters, one at a time, and see that a test notices.

    python tests/mutation.py                       # all mutants, 1 to 2 s each, on 2 processes
    python tests/mutation.py distillation boot     # those of these modules

The mutants of a module stand in `tests/mutants/MODULE.json`: a list of
{"line": ..., "broken": ..., "why": ...}, where "line" is the text of one line of
`consistency_edu/MODULE.py`, stripped, and there only once.  For each, the project is copied, the
line is replaced, and `tests/test_MODULE.py` (and what "tests" names) must fail there.  A module of
a subpackage is called PACKAGE.MODULE, its tests test_PACKAGE_MODULE.py; a module without tests of
its own has mutants that name theirs.
First all these tests run on the unbroken project, where they must pass, and it is noted which
lines each of them passes through: a mutant meets the quickest tests of its line first, and all
of its tests if it survives them.
The last line says how many were caught; the exit status is 0 only if all were.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = Path(__file__).with_name("mutants")
FORK = multiprocessing.get_context("fork")
LIMIT = 600  # seconds for the tests of one mutant
SLOW = "lpips matplotlib.pyplot pytest scipy.stats sklearn.datasets sklearn.linear_model torch tyro"


def mutants(modules):
    """All mutants of `modules`, each with the name of its module."""
    for module in modules:
        for mutant in json.loads((MUTANTS / f"{module}.json").read_text(encoding="utf-8")):
            yield {"module": module, **mutant}


def source_of(module):
    """Where the source of `module` stands in the project."""
    return Path("consistency_edu", *module.split(".")).with_suffix(".py")


def place_of(text, mutant):
    """The number, from 1, of the line of `mutant` in the source `text`."""
    wanted = mutant["line"].strip()
    found = [k for k, line in enumerate(text.splitlines(), 1) if line.strip() == wanted]
    if len(found) != 1:
        raise SystemExit(f"{mutant['module']}: {len(found)} lines read '{wanted}'")
    return found[0]


def broken(text, mutant):
    """The source `text` with the line of `mutant` replaced, its indentation kept."""
    lines, k = text.splitlines(keepends=True), place_of(text, mutant) - 1
    indent = lines[k][: -len(lines[k].lstrip())]
    lines[k] = indent + mutant["broken"].strip() + "\n"
    return "".join(lines)


def pytest(folder, tests, note=None):
    """Run `tests` of the copy of the project in `folder`; return pytest's status.

    They run in a fork of this process, which has imported PyTorch and all else that is slow.  The
    file `note` gets what they pass through (see Reach).
    """
    child = FORK.Process(target=work, args=(folder, tests, note))
    child.start()
    child.join(LIMIT)
    is_endless = child.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # with what its tests have started and left
    child.join()
    return 1 if is_endless else child.exitcode  # a loop that never ends does not pass either


def work(folder, tests, note):
    """What a fork does: pytest, silently, on the `tests` of the copy in `folder`."""
    os.setsid()
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if path != str(ROOT))]
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    reach = Reach(str(folder / "consistency_edu"))
    plugins = [reach] if note else []
    status = int(importlib.import_module("pytest").main([*options, *tests], plugins=plugins))
    if note:
        note.write_text(json.dumps(reach.tests))
    os._exit(status)


class Reach:
    """A plugin of pytest that notes seconds and lines, MODULE:NUMBER, of each test of a package."""

    def __init__(self, package):
        self.package, self.tests, self.lines = package, {}, set()

    def enter(self, frame, event, arg):
        """Follow a call if it is one of the package."""
        return self.step if frame.f_code.co_filename.startswith(self.package) else None

    def step(self, frame, event, arg):
        """Note a line."""
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self.step

    def module(self, name):
        """The dotted name of the module whose file is called `name`."""
        return ".".join(Path(name).relative_to(self.package).with_suffix("").parts)

    def pytest_runtest_logstart(self):
        """Begin anew for the next test."""
        self.lines, self.start = set(), time.perf_counter()
        sys.settrace(self.enter)

    def pytest_runtest_logfinish(self, nodeid):
        """Keep what the test has passed through."""
        sys.settrace(None)
        lines = sorted(f"{self.module(name)}:{number}" for name, number in self.lines)
        self.tests[nodeid] = (time.perf_counter() - self.start, lines)


def copy(folder):
    """Give `folder` what tests need: a copy of what is broken and of them, links to the rest."""
    for name in ("consistency_edu", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("results", "nbs", "tools", "pyproject.toml", "settings.ini"):
        (folder / name).symlink_to(ROOT / name)


def files_of(mutant):
    """The test files that have to notice `mutant`."""
    own = f"tests/test_{mutant['module'].replace('.', '_')}.py"
    return [*([own] if (ROOT / own).exists() else []), *mutant.get("tests", ())]


def reach_of(file):
    """What the tests in `file` pass through, on the unbroken project; they have to pass."""
    with tempfile.TemporaryDirectory() as name:
        copy(Path(name))
        note = Path(name) / "note.json"
        if pytest(Path(name), [file], note) != 0:
            raise SystemExit(f"{file} fails without any mutant: mend that first")
        return json.loads(note.read_text())


def quickest(mutant, number, reach, most=12):
    """The tests of `mutant` that pass through line `number` of its module, the quickest first."""
    place, files = f"{mutant['module']}:{number}", set(files_of(mutant))
    found = [
        (seconds, test)
        for file in files
        for test, (seconds, lines) in reach[file].items()
        if place in lines
    ]
    return [test for _, test in sorted(found)[:most]]


def is_caught(mutant, reach):
    """Whether a test fails once `mutant` has replaced its line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder)
        path = folder / source_of(mutant["module"])
        text = path.read_text(encoding="utf-8")
        path.write_text(broken(text, mutant), encoding="utf-8")
        tests = quickest(mutant, place_of(text, mutant), reach)
        if tests and pytest(folder, tests) in (1, 2):
            return True
        status = pytest(folder, files_of(mutant))
        if status in (3, 4, 5):  # not even collected: this mutant shows nothing
            print(f"pytest could not run for {mutant}: status {status}", flush=True)
            return False
        return status != 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="modules; all that have mutants by default")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "IN_TEST": "1"}
    sys.dont_write_bytecode = True
    for name in [*SLOW.split(), "sklearn.neural_network", "torchvision.datasets"]:
        importlib.import_module(name)
    modules = args.modules or sorted(path.stem for path in MUTANTS.glob("*.json"))
    todo, caught = list(mutants(modules)), 0
    files = sorted({file for mutant in todo for file in files_of(mutant)})
    with ThreadPoolExecutor(args.workers) as pool:
        reach = dict(zip(files, pool.map(reach_of, files)))
        print(f"{sum(map(len, reach.values()))} tests pass without any mutant", flush=True)
        for mutant, is_dead in zip(todo, pool.map(is_caught, todo, [reach] * len(todo))):
            caught += is_dead
            verdict = "caught" if is_dead else "MISSED"
            print(
                f"{verdict} {mutant['module']}: {mutant['line']} -> {mutant['broken']}", flush=True
            )
    print(f"caught {caught} of {len(todo)} mutants")
    return caught != len(todo)


if __name__ == "__main__":
    sys.exit(main())
