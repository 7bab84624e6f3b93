"""Make what the site's playground loads: small students of the plane, and the images' as ONNX.

    python tools/playground.py train moons    # docs/playground/moons.safetensors (3 minutes)
    python tools/playground.py build _build/html/playground --runtime build/npm/node_modules
    python tools/playground.py strips digits-cd runs/digits-teacher
    python tools/playground.py pictures _build/html/playground    # images/playground_*.png

`train` distils the exact denoiser of a toy set into four students, takes the boundary condition
from a fifth, and records how truth climbs the grid of a training.  `build` copies the pages'
files, solves the exact ODE on a lattice of noises, and exports the pretrained students, whose
weights stay 16 bits wide in the file.  What it lacks, it leaves out, in one sentence.  `strips`
records the walk of a student's teacher, which does not ship.  `pictures` takes those that stand for
the panels in Jupyter and on GitHub.
"""

import argparse
import copy
import functools
import hashlib
import http.server
import importlib.util
import json
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from consistency_edu.consistency import ConsistencyModel, ExactConsistency
from consistency_edu.data import TOYS, tensor_batches, toy, toy_batches
from consistency_edu.distillation import ConsistencyDistillation
from consistency_edu.experiments import toy as lab
from consistency_edu.experiments.benchmarks import TOY_SIGMAS, Magnified, toy_benchmark
from consistency_edu.experiments.consistency import (
    LOSSES,
    PathConsistency,
    PathRegression,
    bare_coefficients,
    solved_paths,
)
from consistency_edu.experiments.matching import RUN
from consistency_edu.files import write_file
from consistency_edu.guidance import Guided
from consistency_edu.image_sets import to_pixels
from consistency_edu.images.methods import METHODS
from consistency_edu.images.runs import Run, folder_of, load_run, pretrained_names
from consistency_edu.matching import DistributionMatching
from consistency_edu.networks import MLP
from consistency_edu.pf_ode import EDMDenoiser, edm_objective, karras_sigmas, solve_pf_ode
from consistency_edu.progressive import FewStepStudent
from consistency_edu.sampling import sample_one_step
from consistency_edu.score import ExactDenoiser
from consistency_edu.training import constant_rate, fit, from_seed, train

SOURCE = Path(__file__).resolve().parents[1] / "docs" / "playground"
STUDENTS = {"cd": "cd_exact", "ct": "ct", "boot": "boot"}  # here: in the toy's lab
POINTS = 80, 1.6  # of the lattice of noises: its side, and how far it reaches on the screen
PANELS = ("score", "path", "consistency", "neighbours", "signal", "images")
PAGE = """<!doctype html><html lang="en" style="font-family: sans-serif"><title>Panel</title>
<p><img src="playground_{0}.png" alt="{0}"></p><script type="module">
import {{ start }} from "./playground/playground.js"; start();</script></html>"""
# what the page loads of onnxruntime-web 1.30.0, and the SHA-256 sum of all of it
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
CHECKSUM = "a14b58a071caa054f51192af2ef3920ac65f3f348993ea8bce60648c32f87653"


def train_students(dataset: str, seed: int) -> dict[str, nn.Module]:
    """Train CD, CT and BOOT on `dataset` as the toy's lab does, from its exact denoiser."""
    run = lab.ToyRun(lab.ToyConfig(dataset, seed))
    run.reseed("teacher")
    run.teachers["learned"] = lab.train_teacher(run).model  # the first weights of CD and BOOT
    found = {}
    for name, method in STUDENTS.items():
        run.reseed(method)
        model = lab.METHODS[method].train(run, run.bench.exact).model
        found[name] = getattr(model, "signal_model", model).network
    return found


def train_matching(dataset: str, seed: int, width: int = 112) -> nn.Module:
    """Train DMD as chapter 20 does, from the exact denoiser, in a network that is less wide."""
    s, bench = RUN, toy_benchmark(dataset)
    with from_seed(seed) as generator:
        batches = toy_batches(bench.mixture, s["batch"], generator=generator)
        learned = edm_objective(EDMDenoiser(MLP(width=width)))
        start = fit(learned, batches, steps=4000, lr=5e-3, generator=generator).model
    student, fake = (copy.deepcopy(start).requires_grad_(True) for _ in range(2))
    online = FewStepStudent(student, torch.tensor([0.0, TOY_SIGMAS[1]]))
    options = {"updates": s["updates"], "low": s["low"], "high": s["high"]}
    matching = DistributionMatching(online, bench.exact, fake, **options)
    adam = functools.partial(torch.optim.Adam, betas=(s["beta1"], 0.999), fused=True)
    options = {"steps": s["steps"] * matching.turns, "lr": s["lr"], "ema_decay": 0.999}
    with from_seed(seed) as generator:
        batches = toy_batches(bench.mixture, s["batch"], generator=generator)
        model = fit(matching, batches, optimizer=adam, generator=generator, **options).model
    return model.denoiser.network


def train_bare(dataset: str, seed: int) -> nn.Module:
    """Fit a network without a boundary condition to true ends, then train it on alone (ch. 9)."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    sigmas = karras_sigmas(18, *TOY_SIGMAS)
    paths = solved_paths(toy(dataset), sigmas, 2048, generator)
    online = ConsistencyModel(
        MLP(width=64), sigma_max=TOY_SIGMAS[1], coefficients=bare_coefficients
    )
    distance, weight = LOSSES["pseudo-Huber"]
    batches = functools.partial(tensor_batches, paths, None, 256, generator=generator)
    options = {"generator": generator}
    model = fit(PathRegression(online, sigmas), batches(), steps=700, lr=3e-3, **options).model
    model.requires_grad_(True)
    alone = PathConsistency(model, sigmas, distance=distance, weight=weight)
    options |= {"steps": 300, "lr": 1e-3, "rate": constant_rate}
    return fit(alone, batches(), **options).model.network


def record_climb(dataset: str, seed: int, steps: int = 800, every: int = 25) -> dict[str, Tensor]:
    """Train CD on 40 levels with a slow target (ch. 11); record its median errors by level."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    bench, sigmas = toy_benchmark(dataset), karras_sigmas(40, *TOY_SIGMAS)
    exact = ExactConsistency(bench.exact, sigma_max=TOY_SIGMAS[1], steps=32)
    shown = sigmas[3::2].float()
    asked = [(bench.fresh[:500] + s * bench.noise[:500], s.expand(500)) for s in shown]
    truths = [exact(*pair) for pair in asked]

    @torch.no_grad()
    def errors(model: nn.Module) -> Tensor:
        found = [(model(*pair) - truth).norm(dim=1).median() for pair, truth in zip(asked, truths)]
        return torch.stack(found)

    online = ConsistencyModel(Magnified(MLP(), 4.0), sigma_max=TOY_SIGMAS[1])
    objective = ConsistencyDistillation(online, bench.exact, sigmas, decay=0.95)
    rows, batches = [errors(online)], toy_batches(bench.mixture, 256, generator=generator)
    for state in train(objective, batches, steps=steps, lr=5e-3, generator=generator):
        if state.step % every == 0:
            rows.append(errors(online))
    counts = torch.arange(0, steps + 1, every).float()
    return {"climb.sigmas": shown, "climb.steps": counts, "climb.errors": torch.stack(rows)}


def train_command(dataset: str, seed: int, path: Path) -> None:
    """Write all that is trained for `dataset` to `path`: weights in 16 bits, the rest in 32."""
    networks = {**train_students(dataset, seed), "bare": train_bare(dataset, seed)}
    networks["dmd"] = train_matching(dataset, seed)
    tensors = record_climb(dataset, seed)
    for name, network in networks.items():
        weights = {k for k, _ in network.named_parameters()}
        for key, value in network.state_dict().items():
            tensors[f"{name}.{key}"] = value.half() if key in weights else value.float()
    about = f"python tools/playground.py train {dataset} --seed {seed}"
    write_file(path, save({k: v.contiguous() for k, v in tensors.items()}, {"command": about}))
    print(f"{path}: {path.stat().st_size:,} bytes")


def is_fresh(path: Path, *sources: Path) -> bool:
    """Whether `path` is younger than this tool and all `sources`."""
    sources = [Path(__file__), *filter(Path.exists, sources)]
    return path.exists() and path.stat().st_mtime > max(s.stat().st_mtime for s in sources)


def lattice() -> Tensor:
    """Return the standard normal noises `[side², 2]` at the cells of the plane, from the bottom."""
    side, limit = POINTS
    middles = ((torch.arange(side) + 0.5) / side * 2 - 1) * limit
    screen = torch.cartesian_prod(middles, middles).flip(1)
    sigma = TOY_SIGMAS[1]
    return screen * (sigma**2 + 0.25) ** 0.5 / (0.5 * sigma)


def build_plane(dataset: str, path: Path) -> None:
    """Write what the plane needs of `dataset`: its mixture, exact ends, any students."""
    trained = SOURCE / path.name
    if is_fresh(path, trained):
        return
    mixture = toy(dataset)
    exact = ExactConsistency(ExactDenoiser(mixture), sigma_max=TOY_SIGMAS[1], steps=24)
    tensors = load_file(trained) if trained.exists() else {}
    for name in ("means", "stds", "weights"):
        tensors[f"mixture.{name}"] = getattr(mixture, name).contiguous()
    tensors["ends"] = sample_one_step(exact, lattice()).half()
    write_file(path, save(tensors))


class Student(nn.Module):
    """A student's `model` as it is exported: `(x, sigma [B]) -> images`, or with labels `[B]`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.model(x, sigma, labels)


def shrink(graph) -> None:
    """Keep in 16 bits each of the ONNX `graph`'s weights that loses nothing by it; cast it back."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight) if weight.data_type == TensorProto.FLOAT else None
        with np.errstate(over="ignore"):
            half = None if values is None or values.size < 64 else values.astype(np.float16)
        if half is None or not (half == values).all():
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(half, f"{name}_16"))
        casts.append(helper.make_node("Cast", [f"{name}_16"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def export_student(run: Run, path: Path) -> None:
    """Write the student of `run` as the ONNX file `path`, for batches of any size."""
    import onnx

    x = torch.zeros(2, *run.shape)
    given = {"x": x, "sigma": torch.full((2,), run.recipe.sigma_max)}
    if run.recipe.labels:
        given["labels"] = torch.zeros(2, dtype=torch.int64)
    axes = {name: {0: "batch"} for name in (*given, "images")}
    names = {"input_names": list(given), "output_names": ["images"], "dynamic_axes": axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks of shapes become constants, as they should
        student = Student(run.model)
        torch.onnx.export(
            student, tuple(given.values()), path, opset_version=18, dynamo=False, **names
        )
    model = onnx.load(path)
    shrink(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def describe(name: str, run: Run, path: Path) -> dict:
    """Return what the page must know of the student `name` of `run`, exported to `path`."""
    recipe, classes = run.recipe, run.info["class_names"] if run.recipe.labels else []
    return {
        "name": name,
        "file": path.name,
        "bytes": path.stat().st_size,
        "shape": list(run.shape),
        "classes": list(classes),
        "levels": [recipe.sigma_max, recipe.middle, recipe.sigma_min],
        "steps": [1, 2] if METHODS[recipe.method].restarts else [1],
        "strips": f"{name}.strips.png" if (SOURCE / f"{name}.strips.png").exists() else None,
    }


def build_students(names: list[str], out: Path) -> Iterator[dict]:
    """Export the students `names`, pretrained ones or folders of runs; tell of each."""
    for name in names:
        run, path = load_run(name, precision="float32"), out / f"{Path(name).name}.onnx"
        if not is_fresh(path, folder_of(name) / "run.json"):
            export_student(run, path)
        yield describe(Path(name).name, run, path)


def copy_runtime(modules: Path, out: Path) -> list[dict]:
    """Copy onnxruntime-web from npm's folder `modules`; nothing if a file is not as expected."""
    files = [modules / "onnxruntime-web" / "dist" / name for name in RUNTIME]
    content = b"".join(file.read_bytes() for file in files if file.exists())
    if hashlib.sha256(content).hexdigest() != CHECKSUM:
        print("no onnxruntime-web of the pinned version here (npm fetches it): no images")
        return []
    for file in files:
        shutil.copy(file, out)
    return [{"file": file.name, "bytes": file.stat().st_size} for file in files]


def strips_command(student: str, teacher: str, path: Path) -> None:
    """Save rows of images as `path`: the walk of `teacher` from one noise, the `student`'s step."""
    run, guide = (load_run(name, precision="float32") for name in (student, teacher))
    noise = torch.randn(4, *run.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4) if run.recipe.labels else None
    grid = karras_sigmas(guide.recipe.points, guide.recipe.sigma_min, guide.recipe.sigma_max)
    sigmas = torch.cat([grid.flip(0), torch.zeros(1)])
    walker = Guided(guide.model, run.recipe.guidance)  # with a weight of 1 as it is
    walk = solve_pf_ode(walker, noise, sigmas, labels=labels, return_path=True)
    shown = torch.linspace(0, len(sigmas) - 1, 9).round().long()
    states = [walk[k] / float(1 + sigmas[k] ** 2) ** 0.5 for k in shown]
    rows = torch.stack([*states, run.sample(noise, labels=labels)], 1)  # [4, 10, C, H, W]
    rows = nn.functional.pad(rows, (0, 1, 0, 1), value=0.6)  # a line between neighbours
    picture = to_pixels(rows).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray(picture.squeeze(-1).numpy()).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


def build_command(out: Path, modules: Path, students: list[str], datasets: list[str]) -> None:
    """Write the playground of `datasets` and `students` into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for pattern in ("*.js", "*.css", "*.strips.png"):
        for file in SOURCE.glob(pattern):
            shutil.copy(file, out)
    for dataset in datasets:
        build_plane(dataset, out / f"{dataset}.safetensors")
    found, runtime = [], copy_runtime(modules, out)
    if runtime and importlib.util.find_spec("onnx") is None:
        print("no onnx here (pip install onnx): no images")
    elif runtime:
        found = list(build_students(students, out))
    (out / "images.json").write_text(json.dumps({"students": found, "runtime": runtime}, indent=1))
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {len(found)} students of images, {size / 1e6:.1f} MB in all")


def take_picture(browser, address: str, name: str) -> bytes:
    """Return a picture of the panel `name` at work, as PNG; the images' one is loaded first."""
    page = browser.new_page(viewport={"width": 900, "height": 700}, device_scale_factor=1.5)
    page.goto(f"{address}/{name}.html")
    page.wait_for_selector("html[data-playground=ready]")
    if name == "images":
        page.get_by_role("button", name="Load").click()
        page.get_by_label("Images", exact=True).select_option("9")
        page.wait_for_selector(".play-pictures[data-drawn] canvas >> nth=8")
        page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(1000)  # a picture, and the words below it
    picture = page.locator(".play").screenshot()
    page.close()
    return picture


def pictures_command(built: Path) -> None:
    """Save a picture of each panel of the `built` playground, to stand where it cannot run."""
    import oxipng
    from check_pages import BROWSERS, Quiet
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as library:
        shutil.copytree(built, Path(folder) / "playground")
        for name in PANELS:
            (Path(folder) / f"{name}.html").write_text(PAGE.format(name))
        handler = functools.partial(Quiet, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = library.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name in PANELS:
            picture = take_picture(browser, f"http://127.0.0.1:{server.server_port}", name)
            path = SOURCE.parents[1] / "images" / f"playground_{name}.png"
            write_file(path, oxipng.optimize_from_memory(picture, level=4))  # keep all colours
            print(f"{path.name}: {path.stat().st_size:,} bytes")
        browser.close()


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = ap.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train")
    one.add_argument("dataset", choices=TOYS)
    one.add_argument("--seed", type=int, default=0)
    one = commands.add_parser("build")
    one.add_argument("out", type=Path)
    one.add_argument("--runtime", type=Path, default=Path("build/npm/node_modules"))
    one.add_argument("--students", nargs="*", default=pretrained_names(), help="names or folders")
    one = commands.add_parser("strips")
    one.add_argument("student", help="a pretrained student, or the folder of a run")
    one.add_argument("teacher", help="the folder of its teacher's run")
    one = commands.add_parser("pictures")
    one.add_argument("built", type=Path)
    args = ap.parse_args()
    if args.command == "train":
        train_command(args.dataset, args.seed, SOURCE / f"{args.dataset}.safetensors")
    elif args.command == "strips":
        path = SOURCE / f"{Path(args.student).name}.strips.png"
        strips_command(args.student, args.teacher, path)
    elif args.command == "pictures":
        pictures_command(args.built)
    else:
        build_command(args.out, args.runtime, args.students, list(TOYS))


if __name__ == "__main__":
    main()
