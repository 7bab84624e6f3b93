"""The playground in a browser: its numbers are Python's, and each control does what it says."""

import functools
import http.server
import json
import math
import re
import shutil
import threading

import check_pages
import playground
import pytest
import torch
from conftest import ROOT, command
from safetensors.torch import load_file

from consistency_edu.boot import BootStudent, SignalModel
from consistency_edu.consistency import ConsistencyModel, ExactConsistency
from consistency_edu.data import toy
from consistency_edu.experiments.consistency import bare_coefficients
from consistency_edu.image_sets import to_pixels
from consistency_edu.images.runs import load_run, pretrained_names
from consistency_edu.networks import MLP
from consistency_edu.pf_ode import EDMDenoiser, karras_sigmas, solve_pf_ode
from consistency_edu.progressive import FewStepStudent
from consistency_edu.sampling import sample_one_step, spherical_mix
from consistency_edu.score import ExactDenoiser

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: '.[playground]'")
BROWSER = next(filter(None, map(shutil.which, check_pages.BROWSERS)), None)
MODULES = ROOT / "build" / "npm" / "node_modules"
PANELS = ("score", "path", "consistency", "neighbours", "signal", "images")
HAS_RUNTIME = (MODULES / "onnxruntime-web").exists()
needs_runtime = pytest.mark.skipif(
    not HAS_RUNTIME or playground.importlib.util.find_spec("onnx") is None,
    reason="no onnxruntime-web or onnx: `make playground` fetches them",
)
PAGE = """<!doctype html><html lang="en" data-theme="light"><title>Panels</title><main>
<h1>Panels</h1>{pictures}</main><script type="module">
import {{ start }} from "./playground/playground.js"; await start();</script></html>"""


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """The folder of a student of digits by class, hardly trained."""
    folder = tmp_path_factory.mktemp("labelled") / "digits-by-class"
    options = ("--steps=30", "--batch=16", "--points=4", "--lr=6e-3", "--optimizer=adam")
    options += ("--labels", "--out", folder)
    status, said = command("train", "digits-ct", *options)
    assert status == 0, said
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory, labelled):
    """The address of a small site with the playground; it is built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    students = [*pretrained_names(), str(labelled)]
    playground.build_command(folder / "playground", MODULES, students, ["moons", "circles"])
    picture = '<p><img src="_images/playground_{0}.png" alt="{0}"></p>'
    for name, panels in {"all": PANELS[:-1], **{name: [name] for name in PANELS}}.items():
        pictures = "\n".join(picture.format(panel) for panel in panels)
        (folder / f"{name}.html").write_text(PAGE.format(pictures=pictures))
    handler = functools.partial(check_pages.Quiet, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser, site):
    """A page that has the numerics at hand."""
    page = browser.new_page()
    page.goto(f"{site}/score.html")
    page.evaluate("""async () => Object.assign(window, {
      N: await import("./playground/numerics.js"), P: await import("./playground/panels.js"),
      I: await import("./playground/images.js")})""")
    page.evaluate("async () => { window.moons = await P.load('moons'); }")
    return page


def visit(browser, site, name, **options):
    """A new page that shows the panel `name`, alive."""
    page = browser.new_page(**options)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(f"{site}/{name}.html")
    page.wait_for_selector("html[data-playground=ready]")
    return page


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


MOONS, EXACT = toy("moons"), ExactDenoiser(toy("moons"))
NOISE = torch.randn(50, 2, generator=torch.Generator().manual_seed(5)).double()
LEVELS = karras_sigmas(18, 0.002, 5.0).flip(0)


def students():
    """The students of the plane in float64, as Python builds them."""
    weights = load_file(playground.SOURCE / "moons.safetensors")
    found = {}
    for name in ("cd", "ct", "boot", "bare", "dmd"):
        mine = {k.partition(".")[2]: v for k, v in weights.items() if k.startswith(f"{name}.")}
        network = MLP(width=len(mine["first.bias"])).double()
        network.load_state_dict(mine)
        if name == "dmd":
            model = FewStepStudent(EDMDenoiser(network), torch.tensor([0.0, 5.0]))
        elif name == "boot":
            model = SignalModel(network, sigma_max=5.0)
        else:
            options = {"coefficients": bare_coefficients} if name == "bare" else {}
            model = ConsistencyModel(network, sigma_max=5.0, **options)
        found[name] = model.eval().requires_grad_(False)
    return found


def test_levels_and_sets(page):
    assert page.evaluate("P.SETS") == list(playground.TOYS)
    assert page.evaluate("P.LEVELS") == pytest.approx(LEVELS.tolist(), rel=1e-12)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.7, 5.0])
@pytest.mark.parametrize("dataset", ["moons", "circles"])
def test_score_and_density(page, dataset, sigma):
    mixture, x = toy(dataset), 0.6 * NOISE + sigma * NOISE.flip(0)
    level, exact = torch.full((len(x),), sigma).double(), ExactDenoiser(mixture)
    found = page.evaluate(
        "async ([name, xs, sigma]) => { const { mixture } = await P.load(name);"
        "return xs.map((x) => N.posterior(mixture, x, sigma)); }",
        [dataset, x.tolist(), sigma],
    )
    score = exact.score(x, level)
    gap = (doubles([f["score"] for f in found]) - score).norm(dim=1)
    assert (gap / (1 + score.norm(dim=1))).max() < 1e-6
    assert torch.allclose(doubles([f["denoised"] for f in found]), exact(x, level), atol=1e-6)
    density = mixture.log_density(x, sigma)
    assert torch.allclose(doubles([f["logDensity"] for f in found]), density, atol=1e-6)


def test_paths_and_their_ends(page):
    found = page.evaluate(
        "zs => zs.map((z) => [N.heunPath(moons.denoiser, z, P.LEVELS),"
        "  N.exactEnd(moons.denoiser, [5 * z[0], 5 * z[1]], 5)])",
        NOISE.tolist(),
    )
    paths = solve_pf_ode(EXACT, NOISE, LEVELS, return_path=True)
    assert (doubles([f[0] for f in found]).transpose(0, 1) - paths).abs().max() < 1e-5
    ends = sample_one_step(ExactConsistency(EXACT, sigma_max=5.0), NOISE)
    assert (doubles([f[1] for f in found]) - ends).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["cd", "ct", "bare"])
def test_students_answer_along_the_path(page, name):
    paths = solve_pf_ode(EXACT, NOISE, LEVELS, return_path=True)
    code = """([name, paths]) => paths.map((xs, k) =>
      xs.map((x) => moons.students[name](x, P.LEVELS[k])))"""
    found = doubles(page.evaluate(code, [name, paths.tolist()]))
    model = students()[name]
    for ours, x, sigma in zip(found, paths, LEVELS):
        assert (ours - model(x, sigma.expand(len(x)))).abs().max() < 1e-5


def test_boot_predicts_signals_and_jumps(page):
    code = """zs => [P.LEVELS.map((s) => zs.map((z) => moons.students.boot(z, s))),
      zs.map((z) => P.jump(moons, "boot", z))]"""
    signals, jumps = page.evaluate(code, NOISE.tolist())
    model = students()["boot"]
    for ours, sigma in zip(doubles(signals), LEVELS):
        assert (ours - model(NOISE, sigma.expand(len(NOISE)))).abs().max() < 1e-5
    assert (doubles(jumps) - sample_one_step(BootStudent(model), NOISE)).abs().max() < 1e-5


def test_dmd_jumps_to_the_moons_but_not_to_the_paths_end(page):
    found = doubles(page.evaluate("zs => zs.map((z) => P.jump(moons, 'dmd', z))", NOISE.tolist()))
    assert (found - sample_one_step(students()["dmd"], NOISE)).abs().max() < 1e-5
    widths = (found[:, None] - MOONS.means).norm(dim=2).min(1).values / MOONS.stds[0]
    assert (widths < 4).double().mean() > 0.95
    ends = sample_one_step(ExactConsistency(EXACT, sigma_max=5.0), NOISE)
    assert ((found - ends).norm(dim=1) > 0.05).double().mean() > 0.9


def test_the_exact_map_lies_under_the_points_of_the_screen(page):
    """Row by row from the bottom, in half precision, away from the lines where ends part."""
    found = page.evaluate("[moons.ends, [0, 79, 3300, 6399].map((i) => P.noiseAt(P.cell(80, i)))]")
    noise = playground.lattice()
    assert torch.allclose(doubles(found[1]).float(), noise[[0, 79, 3300, 6399]], atol=1e-5)
    some = noise[::37].double()
    ends = sample_one_step(ExactConsistency(EXACT, sigma_max=5.0), some)
    assert (doubles(found[0])[::37] - ends).norm(dim=1).quantile(0.95) < 2e-3


def test_the_map_shows_each_students_error(page):
    """All cells in the end, each the distance of the jump from the exact map."""
    code = """async (kind) => {
      while (P.mapOf(moons, kind).some(Number.isNaN)) await new Promise(requestAnimationFrame);
      return [[...P.mapOf(moons, kind)], moons.ends];
    }"""
    some = torch.arange(0, len(playground.lattice()), 41)
    noise, model = playground.lattice()[some].double(), students()["cd"]
    errors, ends = page.evaluate(code, "cd")
    truth = (sample_one_step(model, noise) - doubles(ends)[some]).norm(dim=1)
    assert (doubles(errors)[some] - truth).abs().max() < 1e-5
    parting = doubles(page.evaluate(code, "parting")[0]).reshape(80, 80)
    assert (parting[40].argmax() - 40).abs() < 20 and parting.max() > 20 * parting.median()


def test_noise_is_normal_and_mixes_on_a_sphere(page):
    a, b = (torch.tensor(page.evaluate(f"[...N.normals({k}, 4000)]")) for k in (1, 2))
    assert abs(a.mean()) < 0.06 and abs(a.std() - 1) < 0.05 and abs((a * b).mean()) < 0.06
    assert page.evaluate("[...N.normals(1, 4000)]") == a.tolist()
    mixed = page.evaluate("[...N.sphericalMix(N.normals(1, 4000), N.normals(2, 4000), 0.3)]")
    assert torch.allclose(torch.tensor(mixed), spherical_mix(a[None], b[None], 0.3)[0], atol=1e-5)


SAID = "[...document.querySelectorAll('output')].map((one) => one.value).join(' ')"


def said(page):
    return page.evaluate(SAID)


def wait_until_said(page, pattern):
    page.wait_for_function(f"p => new RegExp(p).test({SAID})", arg=pattern)
    return said(page)


def test_the_point_is_dragged_tapped_and_moved_by_keys(browser, site):
    page = visit(browser, site, "path")
    handle, frame = page.locator(".play-handle").first, page.locator(".play-frame").first
    box = frame.bounding_box()
    page.wait_for_function("document.querySelector('output')?.value")
    seen = [said(page)]

    def name_after(act):
        before = handle.get_attribute("aria-label")
        act()
        code = "b => document.querySelector('.play-handle').getAttribute('aria-label') !== b"
        page.wait_for_function(code, arg=before)
        seen.append(said(page))
        return [float(v) for v in re.findall(r"-?\d\.\d+", handle.get_attribute("aria-label"))]

    def drag():
        at = handle.bounding_box()
        page.mouse.move(at["x"] + 13, at["y"] + 13)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.75 * box["height"])
        page.mouse.up()

    assert name_after(drag) == pytest.approx([-0.8, -0.8], abs=0.03)
    tap = {"position": {"x": box["width"] / 2, "y": box["height"] / 4}}
    assert name_after(lambda: frame.locator("canvas").click(**tap)) == pytest.approx(
        [0, 0.8], abs=0.03
    )
    handle.focus()
    assert name_after(lambda: page.keyboard.press("ArrowLeft")) == pytest.approx(
        [-0.04, 0.8], abs=0.03
    )
    assert name_after(lambda: page.keyboard.press("Shift+ArrowDown")) == pytest.approx(
        [-0.04, 0.6], abs=0.03
    )
    assert len(set(seen)) == 5 and not page.faults
    other = page.locator(".play-handle").nth(1)  # both planes show the same noise
    assert other.get_attribute("aria-label") == handle.get_attribute("aria-label")
    page.close()


def test_touch_drags_too(browser, site):
    page = visit(browser, site, "score", has_touch=True, viewport={"width": 390, "height": 800})
    box = page.locator(".play-frame").bounding_box()
    at = "p => new RegExp(p).test(document.querySelector('.play-handle').ariaLabel)"
    page.touchscreen.tap(box["x"] + 0.75 * box["width"], box["y"] + 0.75 * box["height"])
    page.wait_for_function(at, arg=" 0.8., -0.8")
    fingers = page.context.new_cdp_session(page)
    for kind, share in (("touchStart", 0.75), ("touchMove", 0.5), ("touchMove", 0.25)):
        point = {"x": box["x"] + share * box["width"], "y": box["y"] + share * box["height"]}
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function(at, arg=" -0.8., 0.8")
    style = page.locator(".play-handle").evaluate("h => getComputedStyle(h).touchAction")
    assert style == "none"  # a finger on the point moves the point, elsewhere the page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_the_score_panel_says_the_score(browser, site):
    page = visit(browser, site, "score")
    page.locator("input[type=range]").fill("0")
    text = wait_until_said(page, "sigma 5[.]")
    x, score, answer = (
        [float(v.replace("−", "-")) for v in pair]
        for pair in re.findall(r"\((−?[\d.]+), (−?[\d.]+)\)", text)
    )
    truth = EXACT.score(doubles([x]), doubles([5.0]))[0]
    assert score == pytest.approx(truth.tolist(), abs=0.006)
    assert answer == pytest.approx((doubles(x) + 25 * truth).tolist(), abs=0.02)
    page.locator("select").select_option("circles")
    assert wait_until_said(page, "sigma 5[.]") and not page.faults
    page.close()


def test_the_walk_counts_its_evaluations_and_plays(browser, site):
    page = visit(browser, site, "path")
    walk, play = page.locator("input[type=range]"), page.get_by_role("button", name="Play")
    pause = page.get_by_role("button", name="Pause")
    assert walk.get_attribute("max") == "17"
    walk.fill("3")
    assert "exact end" in wait_until_said(page, "^6 of 34")
    assert "walk 0." not in said(page)  # it has not come to its end
    play.click()
    wait_until_said(page, "^(8|10|12) of 34")
    pause.click()
    seen = said(page)
    page.wait_for_timeout(500)
    assert said(page) == seen and not pause.count()
    play.click()  # goes on
    wait_until_said(page, f"^{int(seen.split()[0]) + 2} of 34")
    walk.fill("3")  # a hand on the slider stops it
    wait_until_said(page, "^6 of 34")
    page.wait_for_timeout(500)
    assert said(page).startswith("6 of 34")
    play.click()
    assert re.search(r"walk 0\.0\d+, CD 0", wait_until_said(page, "^34 of 34"))
    assert re.search(r"BOOT \d\.\d+, DMD \d\.\d+[.]", said(page))
    marks = page.locator(".play-key span:visible")
    assert "DMD" in marks.all_inner_texts()
    assert marks.filter(has_text="DMD").locator(".play-diamond").count() == 1
    before = page.screenshot()
    behind = page.get_by_label("Red shows")
    behind.select_option("parting")
    page.wait_for_timeout(300)
    assert page.screenshot() != before
    assert "Drag it across the red line" in page.locator(".play p").last.inner_text()
    behind.select_option("dmd")
    page.wait_for_timeout(300)
    assert "red is no fault" in page.locator(".play p").last.inner_text()
    behind.select_option("ct")
    page.get_by_label("Data", exact=True).select_option("circles")
    wait_until_said(page, "No student")
    assert behind.input_value() == "parting"  # all there is without students
    assert behind.locator("option:disabled").count() == 4
    assert "exact end" in marks.all_inner_texts()[1] and "DMD" not in marks.all_inner_texts()
    page.get_by_role("button", name="Back to moons").press("Enter")
    wait_until_said(page, "BOOT")
    assert page.evaluate("document.activeElement.tagName") == "OUTPUT"
    assert "DMD" in marks.all_inner_texts()
    assert behind.input_value() == "ct" and not behind.locator("option:disabled").count()
    page.get_by_label("Data", exact=True).select_option("pinwheel")  # not built here
    assert wait_until_said(page, "could not be loaded") and not page.faults
    page.close()


def test_who_wants_no_motion_gets_one_step_a_press(browser, site):
    page = visit(browser, site, "path", reduced_motion="reduce")
    step = page.get_by_role("button", name="Next step")
    wait_until_said(page, "^18 of 34")
    for now in (20, 22):
        step.click()
        wait_until_said(page, f"^{now} of 34")
    page.wait_for_timeout(400)
    assert said(page).startswith("22 of 34")
    page.locator("input[type=range]").fill("17")
    step.click()  # from the end to the start
    wait_until_said(page, "^0 of 34")
    page.close()


def test_the_boundary_switch(browser, site):
    page = visit(browser, site, "consistency")
    last = r"the path's point there: ([\d.]+) away"
    with_it = re.search(last, wait_until_said(page, "must equal the path's"))[1]
    marks = page.locator(".play-key span:visible")
    assert "CD's answers" in marks.all_inner_texts()
    page.get_by_label("Boundary condition").select_option("bare")
    without = re.search(last, wait_until_said(page, "nothing ties it to the path's"))[1]
    assert "CD's answers" not in marks.all_inner_texts()
    assert float(with_it) == 0 and float(without) > 0.1
    page.close()


def test_neighbours_and_the_recorded_training(browser, site):
    page = visit(browser, site, "neighbours")
    page.get_by_label("Pair", exact=True).fill("10")
    page.get_by_label("Training step").fill("0")
    assert "100 % of the error" in wait_until_said(page, "After 0 steps")
    page.get_by_label("Training step").fill("32")
    text = wait_until_said(page, "After 800 steps")
    share = int(re.search(r"(\d+) % of the error", text)[1])
    assert share < 25 and f"sigma {float(LEVELS[10]):.2g}" in text
    page.close()


def test_the_recorded_training_stays_whatever_the_set(browser, site):
    page = visit(browser, site, "all")
    panel = page.get_by_label("Playground: Two neighbours, one answer")
    chart = panel.get_by_label("Curves of the error")
    wait_until_said(page, "apart[.] After 100 steps 84 %")
    before = drawn(chart)
    page.get_by_label("Data", exact=True).first.select_option("circles")
    wait_until_said(page, "on this set[.] After 100 steps 84 %")
    assert drawn(chart) == before and before["#9467bd"] > 100
    panel.get_by_label("Training step").fill("32")
    wait_until_said(page, "After 800 steps")
    assert drawn(chart) != before
    assert not panel.get_by_label("One bar for each pair").is_visible()  # nobody answers
    assert not panel.get_by_text("CD's answers to them").is_visible()
    signal = page.get_by_label("Playground: BOOT's guess of the signal")
    assert not signal.locator(".play-key").get_by_text("BOOT").first.is_visible()
    panel.get_by_role("button", name="Back to moons").click()
    wait_until_said(page, "apart[.] After 800 steps")
    assert panel.get_by_label("One bar for each pair").is_visible() and not page.faults
    page.close()


@pytest.mark.parametrize("dataset", ["moons", "circles"])
def test_no_draw_takes_a_control_from_the_hand(browser, site, dataset):
    page = visit(browser, site, "all")
    page.get_by_label("Data", exact=True).first.select_option(dataset)
    wait_until_said(page, "No student" if dataset == "circles" else "CD")
    page.evaluate("""async () => {
      window.P = await import("./playground/panels.js");
      window.controls = () => [...document.querySelectorAll(".play :is(button, select, input)")];
      window.before = controls();
    }""")
    again = """async () => {
      P.update({});
      await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    }"""
    page.evaluate(again)
    assert page.evaluate("before.length") > 15
    assert page.evaluate("controls().every((one, i) => one === before[i])")
    backs = page.get_by_role("button", name="Back to moons")
    assert backs.count() == (4 if dataset == "circles" else 0)
    if backs.count():
        backs.first.focus()
        page.evaluate(again)
        assert page.evaluate("document.activeElement.textContent") == "Back to moons"
        backs.last.hover()
        page.mouse.down()
        page.evaluate(again)
        page.mouse.up()  # a press that began before the draw
        wait_until_said(page, "CD")
        assert page.evaluate("document.activeElement.tagName") == "OUTPUT" and not backs.count()
    page.close()


def drawn(canvas):
    """How many pixels of each colour a canvas has."""
    return canvas.evaluate("""c => {
      const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height), found = {};
      for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 250) {
        const is = "#" + [0, 1, 2].map((k) => data[i + k].toString(16).padStart(2, "0")).join("");
        found[is] = (found[is] ?? 0) + 1;
      }
      return found;
    }""")


METHOD_COLORS = {"CD": "#e69f00", "CT": "#009e73", "BOOT": "#cc79a7", "DMD": "#8c564b"}


def test_a_colour_has_one_meaning(browser, site):
    """In the keys of all panels, and where BOOT and the coordinates are drawn."""
    page = visit(browser, site, "all")
    code = """[...document.querySelectorAll(".play-key i")].map((mark) =>
      [mark.style.getPropertyValue("--mark").toLowerCase(), mark.parentElement.textContent])"""
    keys = page.evaluate(code)
    for name, color in METHOD_COLORS.items():
        assert any(name in words for _, words in keys)
        assert all((mark == color) == (name in words) for mark, words in keys), name
    page.wait_for_timeout(300)
    signals = drawn(page.get_by_label("300 signals"))
    assert signals[METHOD_COLORS["BOOT"]] > 100 and METHOD_COLORS["CD"] not in signals
    coordinates = drawn(page.get_by_label("coordinates of the answer"))
    assert not coordinates.keys() & METHOD_COLORS.values()
    path = page.get_by_label("A blue path")
    assert drawn(path)["#0072b2"] > 50
    page.add_style_tag(content=DARK)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")  # where blue is lighter
    page.wait_for_timeout(300)
    found = drawn(path)
    assert found["#56b4e9"] > 50 and "#0072b2" not in found
    assert found["#ced6dd"] > 50 and "#000000" not in found  # the bar
    page.close()


@pytest.mark.parametrize("level", [0, 9, 17])
def test_every_plane_has_a_bar_of_its_length(browser, site, level):
    page = visit(browser, site, "all")
    page.evaluate("""() => {
      const context = CanvasRenderingContext2D.prototype, write = context.fillText;
      window.written = [];
      context.fillText = function (...what) { written.push(what[0]); write.apply(this, what); };
    }""")
    page.get_by_label("Noise", exact=True).first.fill(str(level))
    page.wait_for_timeout(500)
    lengths = page.evaluate("""() => [...document.querySelectorAll(".play-frame canvas")]
      .filter((c) => c.width === c.height).map((c) => {
        const at = (v) => Math.round((v / 1.6 + 1) / 2 * c.width), row = c.height - at(-1.5);
        const { data } = c.getContext("2d").getImageData(at(-1.5), row, c.width - at(-1.5), 1);
        let long = 0;
        while (data[4 * long] < 90 && data[4 * long + 3] > 200) long++;
        return long / c.width * 3.2;
      })""")
    here, last, first = (0.5 / math.hypot(sigma, 0.5) for sigma in (LEVELS[level], 0.002, 5.0))
    shown = 5 * here if level == 0 else 0.5 * here
    # score, path, all noises, consistency, neighbours, and the signal's two
    truth = [shown, 0.5 * last, 5 * first, 0.5 * last, 0.5 * last, shown, 0.5 * last]
    assert lengths == pytest.approx(truth, abs=0.02)
    near = "0.5, at the data's scale"
    now = {0: "5, at sigma 5.0", 9: "0.5, at sigma 0.23", 17: near}[level]
    labels = [text for text in page.evaluate("written") if ", at " in text]
    assert labels[-7:] == [now, near, "5, at sigma 5.0", near, near, now, near]
    page.close()


def test_the_first_point_is_one_that_students_take_to_the_moons(page):
    at, found = page.evaluate("""() => { const z = P.noiseAt(P.state.at);
      return [P.state.at, ["cd", "ct", "boot", "dmd"].map((name) => P.jump(moons, name, z))]; }""")
    assert max(map(abs, at)) < 1  # near the middle of the frame
    widths = (doubles(found)[:, None] - MOONS.means).norm(dim=2).min(1).values / MOONS.stds[0]
    assert widths.max() < 1.5


def test_on_a_phone_words_and_controls_stand_by_their_picture(browser, site):
    page = visit(browser, site, "all", viewport={"width": 390, "height": 800})
    page.wait_for_timeout(300)
    frames, sliders, words = (
        [one.bounding_box() for one in page.locator(which).all()]
        for which in (".play-frame", "input[type=range]", "output")
    )
    bottom = [box["y"] + box["height"] for box in frames]
    plane = [0, 1, 3, 5]  # words follow within two rows of controls
    assert all(0 < words[i]["y"] - bottom[k] < 140 for i, k in enumerate(plane))
    assert 0 < words[4]["y"] - bottom[7] < 90  # the recorded training
    assert bottom[8] < sliders[5]["y"] < frames[9]["y"] and frames[8]["height"] < 270
    assert 0 <= words[5]["y"] - bottom[9] < 30  # what BOOT guesses, below the signals
    page.close()


def test_tab_brings_the_whole_picture(browser, site):
    page = visit(browser, site, "score", viewport={"width": 500, "height": 560})
    frame = page.locator(".play-frame")
    bottom = "f => f.getBoundingClientRect().bottom"
    assert frame.evaluate(bottom) > 580  # the point is seen, its picture is not
    page.keyboard.press("Tab")
    page.wait_for_timeout(300)
    assert page.evaluate("document.activeElement.className") == "play-handle"
    assert frame.evaluate(bottom) <= 560 and frame.bounding_box()["y"] >= 0
    page.close()


def test_the_signal_goes_from_the_middle_to_the_data(browser, site):
    page = visit(browser, site, "signal")
    level = page.get_by_label("Noise", exact=True)
    level.fill("0")
    assert "(0.00, 0.00)" in wait_until_said(page, "sigma 5[.]")  # the exact one starts at 0
    page.get_by_role("button", name="Play", exact=True).click()
    text = wait_until_said(page, "sigma 0.002")
    assert level.input_value() == "17"
    exact, boot = re.findall(r"\((−?[\d.]+), (−?[\d.]+)\)", text)
    gap = math.dist(*([float(v.replace("−", "-")) for v in pair] for pair in (exact, boot)))
    assert gap < 0.2 and gap == pytest.approx(float(re.search(r"([\d.]+) away", text)[1]), abs=0.02)
    page.close()


def test_no_button_covers_the_playgrounds_page(browser, site):
    notebook = json.loads((ROOT / "nbs" / "playground.ipynb").read_text())
    title = notebook["cells"][0]["source"][0].removeprefix("# ").strip()
    page = visit(browser, site, "score")
    page.evaluate("""document.body.insertAdjacentHTML("beforeend",
      "<button id='pst-back-to-top' style='display: block'>Back to top</button>")""")
    assert page.locator("#pst-back-to-top").is_visible()  # as in the chapters
    page.evaluate(
        "id => (document.querySelector('h1').id = id)", re.sub(r"\W+", "-", title.lower())
    )
    assert not page.locator("#pst-back-to-top").is_visible()
    page.close()


def test_panels_share_their_point_and_level(browser, site):
    page = visit(browser, site, "all")
    page.locator("input[type=range]").first.fill("4")
    page.locator(".play-handle").last.focus()
    page.keyboard.press("Shift+ArrowLeft")
    page.wait_for_function("""() => {
      const all = [...document.querySelectorAll(".play-handle")], [one] = all;
      const levels = [...document.querySelectorAll("input[type=range]")].map((i) => i.value);
      const is = one.ariaLabel;
      const isMoved = all.every((h) => h.ariaLabel === is) && is.includes("at 0.60, 0.80");
      return isMoved && levels.filter((v) => v === "4").length >= 5;
    }""")
    assert not page.faults
    page.close()


def test_without_numbers_the_picture_stays(browser, site):
    page = browser.new_page()
    page.route("**/moons.safetensors", lambda route: route.abort())
    page.goto(f"{site}/path.html")
    page.wait_for_timeout(500)
    assert page.locator("img").count() == 1 and page.locator(".play").count() == 0
    page.close()


DARK = """html[data-theme=dark] { background: #121212; color: #ced6dd; color-scheme: dark;
  --pst-color-text-base: #ced6dd; --pst-color-border: #48566b; --pst-color-background: #121212;
  --pst-color-surface: #222832; --pst-color-text-muted: #9ca4af; }"""  # the theme's own


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["all", "images"])
def test_axe_finds_nothing(browser, site, name, scheme):
    axe = MODULES / "axe-core" / "axe.min.js"
    if not axe.exists():
        pytest.skip("no axe-core: `make pages` fetches it")
    page = visit(browser, site, name)
    page.evaluate("s => document.documentElement.dataset.theme = s", scheme)
    page.add_style_tag(content=DARK)
    page.add_script_tag(path=axe)
    found = page.evaluate("axe.run().then((r) => r.violations.map((v) => [v.id, v.nodes[0].html]))")
    assert not found
    page.close()


def levels_apart(ours, image):
    """How far pixels of the browser, RGBA, are from those of Python's `image` `[C, H, W]`."""
    pixels = to_pixels(image)
    pixels = pixels.expand(3, *pixels.shape[1:]).permute(1, 2, 0).reshape(-1, 3)
    return (torch.tensor(ours).reshape(-1, 4)[:, :3] - pixels.int()).abs()


def ask(page, about, noise, fresh, label, steps):
    code = """async ([about, noise, fresh, label, steps]) => {
      const student = (window.open_ ??= {})[about.name] ??= await I.open(about);
      const shots = await I.sample(student, Float32Array.from(noise),
        { steps, fresh: Float32Array.from(fresh), label });
      return [...I.pixels(shots[shots.length - 1].image, about.shape)];
    }"""
    return page.evaluate(
        code, [about, noise.flatten().tolist(), fresh.flatten().tolist(), label, steps]
    )


@needs_runtime
@pytest.mark.parametrize("name", [*pretrained_names(), "digits-by-class"])
def test_images_are_pythons_within_one_level(page, site, labelled, name):
    about = json.loads(page.evaluate("fetch('./playground/images.json').then((a) => a.text())"))
    (about,) = [one for one in about["students"] if one["name"] == name]
    run = load_run(labelled if name == "digits-by-class" else name, precision="float32")
    assert bool(about["classes"]) == run.recipe.labels and about["shape"] == list(run.shape)
    generator = torch.Generator().manual_seed(1)
    draw = functools.partial(torch.randn, 1, *run.shape)
    noise, fresh = draw(generator=generator), draw(generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([7]) if about["classes"] else None
    for steps in (1, 2):
        again = torch.Generator().manual_seed(2)  # draws `fresh`
        image = run.sample(noise, steps=steps, labels=labels, generator=again)[0]
        apart = levels_apart(ask(page, about, noise, fresh, 7, steps), image)
        assert apart.max() <= 1 and (apart > 0).float().mean() < 0.01
    with torch.no_grad():  # a wrong model must fail: all weights a hundredth larger
        for weight in run.model.parameters():
            weight.mul_(1.01)
    image = run.sample(noise, labels=labels)[0]
    assert levels_apart(ask(page, about, noise, fresh, 7, 1), image).max() > 1
    if about["classes"]:
        assert ask(page, about, noise, fresh, 3, 1) != ask(page, about, noise, fresh, 7, 1)


@needs_runtime
def test_controls_of_images(browser, site):
    page = visit(browser, site, "images")
    load = page.get_by_role("button", name="Load cifar10")  # the largest is proposed
    assert re.search(r"\((28|29)\.\d MB\)", load.inner_text())
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    student = page.get_by_label("Student", exact=True)
    student.select_option("digits-by-class")
    assert not asked  # nothing before the click
    page.get_by_role("button", name="Load digits-by-class").press("Enter")
    wait_until_said(page, "^4 images of digits-by-class")
    images = page.locator(".play-pictures canvas")
    assert images.count() == 4 and any(url.endswith(".wasm") for url in asked)
    assert re.match(r"Image 1: \w", images.first.get_attribute("aria-label"))
    assert page.get_by_role("button", name="Load").count() == 0
    label = "document.activeElement.labels?.[0].textContent"  # the keyboard goes on from here
    assert page.evaluate(label) == "Show"

    def shows(act, count):
        before = images.first.evaluate("c => c.toDataURL()")
        turn = page.locator(".play-pictures").get_attribute("data-drawn")
        act()
        code = """([turn, count]) => { const box = document.querySelector(".play-pictures");
          return box.dataset.drawn !== turn && box.querySelectorAll("canvas").length === count; }"""
        page.wait_for_function(code, arg=[turn, count])
        return images.first.evaluate("c => c.toDataURL()") != before

    assert not shows(lambda: page.get_by_label("Images", exact=True).select_option("9"), 9)
    assert shows(lambda: page.get_by_role("button", name="New seed").click(), 9)
    assert shows(lambda: page.get_by_label("Class", exact=True).select_option("3"), 9)
    assert shows(lambda: page.get_by_label("Steps", exact=True).select_option("2"), 9)
    assert shows(lambda: page.get_by_label("Show", exact=True).select_option("path"), 4)
    assert not page.get_by_label("Second seed").is_visible()
    kind = page.get_by_label("Class", exact=True)
    shows(lambda: page.get_by_label("Show", exact=True).select_option("samples"), 9)
    assert kind.locator("option:disabled").count() == 0 and kind.input_value() == "3"
    shows(lambda: kind.select_option(""), 9)
    shows(lambda: page.get_by_label("Show", exact=True).select_option("between"), 7)
    assert page.get_by_label("Second seed").is_visible()
    assert kind.input_value() == "0" and kind.locator("option:disabled").count() == 1  # one class
    ends = page.locator(".play-pictures figcaption").all_inner_texts()
    assert ends == ["seed 2", *[""] * 5, "seed 2"]
    page.set_viewport_size({"width": 700, "height": 720})
    assert len({one.bounding_box()["y"] for one in images.all()}) == 1  # seven in a row
    page.set_viewport_size({"width": 390, "height": 720})
    assert len({one.bounding_box()["y"] for one in images.all()}) == 2  # four in a row
    assert images.first.bounding_box()["width"] > 60
    shows(lambda: page.get_by_label("Show", exact=True).select_option("samples"), 9)
    assert kind.input_value() == ""  # in turn again
    for given, taken in (("-5", "0"), ("", "0"), ("7", "7")):
        page.get_by_label("Seed", exact=True).fill(given)
        page.get_by_label("Seed", exact=True).blur()
        assert page.get_by_label("Seed", exact=True).input_value() == taken
    shows(lambda: page.get_by_label("Show", exact=True).select_option("classes"), 10)
    student.focus()
    page.route("**/digits-cd.onnx", lambda route: None)  # is long in coming
    with page.expect_request("**/digits-cd.onnx"):
        student.select_option("digits-cd")
    assert images.count() == 10  # the pictures stay until then
    page.unroute_all()
    student.select_option("digits-by-class")  # another wish meanwhile
    wait_until_said(page, "^4 images of digits-by-class")
    student.select_option("digits-cd")
    wait_until_said(page, "^4 images of digits-cd")
    assert page.evaluate(label) == "Student"
    assert page.get_by_label("Class", exact=True).count() == 0 and not page.faults
    assert images.last.get_attribute("aria-label") == "Image 4"
    page.close()


@needs_runtime
@pytest.mark.parametrize("missing", ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "[.]onnx"])
def test_what_could_not_be_loaded_is_asked_for_again(browser, site, missing):
    page = visit(browser, site, "images")
    page.route(re.compile(missing), lambda route: route.abort())
    page.get_by_label("Student", exact=True).select_option("digits-cd")
    load = page.get_by_role("button", name="Load digits-cd")
    for _ in range(2):
        load.press("Enter")
        assert "Error" not in wait_until_said(page, "could not be loaded")
        page.wait_for_function("document.activeElement.textContent.startsWith('Load')")
    told = load.evaluate(f"button => {{ button.click(); return {SAID} }}")
    assert "loaded" not in told and " of " in told  # what the last try said is gone at once
    wait_until_said(page, "could not be loaded")
    page.unroute_all()
    load.click()
    assert wait_until_said(page, "^4 images of digits-cd") and not page.faults
    page.close()


def test_without_students_one_sentence_says_so(browser, site):
    page = browser.new_page()
    page.route("**/images.json", lambda route: route.fulfill(status=404))
    page.goto(f"{site}/images.html")
    assert "No student of images is on this site" in wait_until_said(page, "[.]$")
    page.close()
