"""Break each line that matters, one at a time, and see that a test notices.

    python tests/mutation.py                       # all mutants, about 3 s each, on 2 processes
    python tests/mutation.py distillation boot     # those of these modules

The mutants of a module stand in `tests/mutants/MODULE.json`: a list of
{"line": ..., "broken": ..., "why": ...}, where "line" is the text of one line of
`consistency_edu/MODULE.py`, stripped, and there only once.  For each, the project is copied, the
line is replaced, and `tests/test_MODULE.py` (and what "tests" names) must fail there.
The last line says how many were caught; the exit status is 0 only if all were.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
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


def broken(text, mutant):
    """The source `text` with the line of `mutant` replaced, its indentation kept."""
    lines = text.splitlines(keepends=True)
    found = [i for i, line in enumerate(lines) if line.strip() == mutant["line"].strip()]
    if len(found) != 1:
        raise SystemExit(f"{mutant['module']}: {len(found)} lines read '{mutant['line']}'")
    indent = lines[found[0]][: -len(lines[found[0]].lstrip())]
    lines[found[0]] = indent + mutant["broken"].strip() + "\n"
    return "".join(lines)


def pytest(folder, module, also=()):
    """Run the tests of `module` in the copy of the project in `folder`; return pytest's status.

    They run in a fork of this process, which has imported PyTorch and all else that is slow.
    """
    child = FORK.Process(target=work, args=(folder, [f"tests/test_{module}.py", *also]))
    child.start()
    child.join(LIMIT)
    if child.is_alive():
        child.kill()
        child.join()
        return 1  # a loop that never ends does not pass either
    if child.exitcode not in (0, 1, 2):  # others: broken so badly that pytest was interrupted
        raise SystemExit(f"pytest could not run for {module}: status {child.exitcode}")
    return child.exitcode


def work(folder, files):
    """What a fork does: pytest, silently, on the `files` of the copy in `folder`."""
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if path != str(ROOT))]
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    os._exit(int(importlib.import_module("pytest").main([*options, *files])))


def copy(folder):
    """Give `folder` what tests need: a copy of what is broken and of them, links to the rest."""
    for name in ("consistency_edu", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("results", "nbs", "tools", "pyproject.toml", "settings.ini"):
        (folder / name).symlink_to(ROOT / name)


def is_caught(mutant):
    """Whether a test fails once `mutant` has replaced its line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder)
        path = folder / "consistency_edu" / f"{mutant['module']}.py"
        path.write_text(broken(path.read_text(encoding="utf-8"), mutant), encoding="utf-8")
        return pytest(folder, mutant["module"], mutant.get("tests", ())) != 0


def are_sound(module):
    """Whether the tests of `module` pass on the unbroken project."""
    with tempfile.TemporaryDirectory() as name:
        copy(Path(name))
        also = {t for mutant in mutants([module]) for t in mutant.get("tests", ())}
        return pytest(Path(name), module, sorted(also)) == 0


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
    for module in modules:
        if not are_sound(module):
            raise SystemExit(f"the tests of {module} fail without any mutant: mend them first")
    todo, caught = list(mutants(modules)), 0
    with ThreadPoolExecutor(args.workers) as pool:
        for mutant, is_dead in zip(todo, pool.map(is_caught, todo)):
            caught += is_dead
            verdict = "caught" if is_dead else "MISSED"
            print(
                f"{verdict} {mutant['module']}: {mutant['line']} -> {mutant['broken']}", flush=True
            )
    print(f"caught {caught} of {len(todo)} mutants")
    return caught != len(todo)


if __name__ == "__main__":
    sys.exit(main())
