"""The page for contributors says what there is."""

import configparser
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def table(title: str) -> dict[str, list[str]]:
    """Return the names in the first column of the table under a heading, and the other cells of each."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| `")]
    return {name: cells for first, *cells in rows for name in re.findall(r"`(\w[\w-]*)`", first)}


def tox_environments() -> dict[str, str]:
    """Return the environments that tox.ini names, and where each runs: ``default``, ``ci`` or ``full``."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    found = dict.fromkeys(tox["tox"]["env_list"].split(), "default")
    for line in tox["tox"]["labels"].splitlines():
        if "=" in line and not line.startswith("#"):
            label, _, names = line.partition("=")
            found |= dict.fromkeys((name.strip() for name in names.split(",")), label.strip())
    return found


def test_every_environment_is_explained_where_it_runs() -> None:
    """A reader learns what each environment is for, and which runs in CI."""
    places = {"default": "the README's command", "ci": "CI", "full": "`full`"}
    explained = {name: cells[-1] for name, cells in table("Environments").items()}
    environments = tox_environments()
    assert explained.keys() == environments.keys()
    for name, label in environments.items():
        assert explained[name].startswith(places[label]), name


def test_every_marker_is_explained() -> None:
    """A marker that pytest knows is on the page."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert table("Markers").keys() == {marker.partition(":")[0] for marker in options["markers"]}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:tests|docs|example_apps|integrations|\.ci)/[\w/.]+", PAGE))))
def test_every_path_exists(path: str) -> None:
    """No file is named that has moved."""
    assert (ROOT / path).exists()


def test_ci_runs_the_commands_of_the_readme() -> None:
    """What a newcomer types is what CI runs."""
    readme, script = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    commands = re.findall(r"^    (python3 -m venv .*)$", readme, re.MULTILINE)
    assert len(commands) == 2
    assert all(command in script for command in commands)
