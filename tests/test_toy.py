"""The toy experiment at full size: what `make toy` promises, run here and now."""

import json

import pytest
from conftest import run_cli
from test_readme import BOUNDS


@pytest.mark.slow
def test_the_toy_keeps_its_promises(tmp_path):
    done = run_cli("toy", "--seed", 0, "--methods", "all", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "results" / "toy_moons_seed0.json").read_text())
    rows = {(r["method"], r["teacher"], r["nfe"]): r for r in table["rows"]}
    for key, (sliced, paired) in BOUNDS.items():
        assert rows[key]["sliced_w2"] <= sliced, rows[key]
        assert paired is None or rows[key]["paired_error"] <= paired, rows[key]
    for kind in ("png", "gif"):
        path = tmp_path / "images" / f"toy_moons_seed0.{kind}"
        assert 20_000 < path.stat().st_size < 2_000_000
