"""Lower bounds in settings.ini are the versions tried, and upper bounds have their reasons."""

from configparser import ConfigParser

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

TEXT = (ROOT / "settings.ini").read_text(encoding="utf-8")
TRIED = {
    wish.name: str(wish.specifier).removeprefix("==")
    for line in (ROOT / "tools" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
    for wish in [Requirement(line)]
}


def requirements():
    """Every requirement in settings.ini, extras' included."""
    ini = ConfigParser(delimiters=["="])
    ini.read_string(TEXT)
    keys = [key for key in ini["DEFAULT"] if key.endswith("requirements")]
    assert len(keys) == 6
    return [Requirement(word) for key in keys for word in ini["DEFAULT"][key].split()]


def test_all_that_is_tried_is_required():
    assert {wish.name for wish in requirements()} == set(TRIED)


@pytest.mark.parametrize("wish", requirements(), ids=str)
def test_a_lower_bound_is_the_version_tried(wish):
    lowest = [part.version for part in wish.specifier if part.operator in ("==", ">=")]
    assert lowest == [TRIED[wish.name]]


@pytest.mark.parametrize("wish", requirements(), ids=str)
def test_an_upper_bound_has_its_reason(wish):
    for part in wish.specifier:
        assert part.operator == ">=" or f"# {wish.name}{part}: " in TEXT
