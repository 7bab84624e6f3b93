"""Stored pictures become smaller, and look as before."""

import base64
import importlib.util
import io

import nbformat
import numpy as np
from conftest import ROOT
from PIL import Image

spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "tools/run_notebooks.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def png(pixels):
    """Return the array `pixels` as the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def pixels_of(data, density=1):
    """Return what the PNG `data` shows with `density` dots a point, as red, green and blue."""
    picture = Image.open(io.BytesIO(data)).convert("RGB").reduce(density)
    return np.asarray(picture, dtype=int)


def test_few_colours_stay_exact_and_what_is_clear_becomes_white():
    rng = np.random.default_rng(0)
    table = np.concatenate([rng.integers(0, 256, (200, 3)), np.full((200, 1), 255)], 1)
    pixels = table[rng.integers(0, 200, (40, 50))].astype(np.uint8)
    pixels[0, :, 3] = 0
    small = tool.shrink_png(png(pixels))
    assert len(small) < len(png(pixels)) and Image.open(io.BytesIO(small)).mode == "P"
    pixels[0] = 255
    assert (pixels_of(small) == pixels[..., :3]).all()
    assert tool.shrink_png(small) == small  # nothing is left to do


def test_a_curve_with_soft_edges_takes_a_palette_and_noise_keeps_its_colours():
    x, y = np.meshgrid(np.linspace(0, 6, 200), np.linspace(-2, 2, 200))
    edge = np.clip(30 * abs(y - np.sin(x)), 0, 1)[..., None]
    curve = (255 * edge + np.array([0, 114, 178]) * (1 - edge)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    for pixels, mode, worst in ((curve, "P", 4), (noise, "RGB", 0)):
        small = tool.shrink_png(png(pixels))
        assert Image.open(io.BytesIO(small)).mode == mode and tool.shrink_png(small) == small
        assert abs(pixels_of(small, 2) - pixels_of(png(pixels), 2)).max() <= worst
        assert (pixels_of(small)[0, 0] == pixels[0, 0]).all()  # the ground keeps its colour


def test_only_the_pictures_of_a_notebook_change():
    data = base64.b64encode(png(np.zeros((64, 64, 3), np.uint8))).decode()
    output = nbformat.v4.new_output("display_data", {"image/png": data, "text/plain": "figure"})
    words = nbformat.v4.new_output("stream", text="a number")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output, words])])
    tool.shrink_pictures(nb)
    output, words = nb.cells[0].outputs
    assert len(output.data["image/png"]) < len(data) and words.text == "a number"
    assert output.data["text/plain"] == "figure"


def test_a_photograph_becomes_a_jpeg_of_the_same_size_on_the_page():
    x, y = np.meshgrid(np.arange(300), np.arange(200))
    waves = np.sin(x / 7) + np.cos(y / 9) + np.sin((x + y) / 40)
    tints = np.stack([waves, np.roll(waves, 90, 1), np.roll(waves, 60, 0)], 2)
    picture = base64.b64encode(png((127 + 40 * tints).astype(np.uint8))).decode()
    size = {"image/png": {"width": 150, "height": 100}}
    output = nbformat.v4.new_output("display_data", {"image/png": picture}, metadata=size)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])])
    tool.shrink_pictures(nb)
    (output,) = nb.cells[0].outputs
    assert list(output.data) == list(output.metadata) == ["image/jpeg"]
    assert output.metadata["image/jpeg"] == size["image/png"]
    jpeg = base64.b64decode(output.data["image/jpeg"])
    assert len(jpeg) < len(picture) / 4
    assert abs(pixels_of(jpeg, 2) - pixels_of(base64.b64decode(picture), 2)).mean() < 1
    before = dict(output.data)
    tool.shrink_pictures(nb)
    assert output.data == before
