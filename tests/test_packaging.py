"""What is shipped: the wheel's contents and metadata, the public names, and what an import pulls in."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

import voight_middleware

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INTEGRATIONS = sorted(path.name for path in (ROOT / "integrations").iterdir() if path.is_dir() and path.name != "__pycache__")

NOT_AT_IMPORT = {
    "anthropic",
    "django",
    "fastapi",
    "flask",
    "genai_prices",
    "httpx",
    "httpx2",
    "openai",
    "pydantic",
    "rich",
    "sqlite3",
    "starlette",
    "uvicorn",
}

needs_wheel = pytest.mark.skipif(
    "VOIGHT_TEST_WHEEL" not in os.environ, reason="tox tests the wheel; here the package is installed otherwise"
)


def shipped() -> dict[str, Path]:
    """The files of the installed distribution, by their names in the wheel."""
    return {str(file): Path(str(file.locate())) for file in metadata.files("voight-middleware") or ()}


@needs_wheel
def test_the_tests_import_the_wheel_and_not_the_checkout() -> None:
    """Under tox the package comes out of site-packages."""
    installed = shipped()["voight_middleware/__init__.py"]

    assert Path(voight_middleware.__file__).resolve() == installed.resolve()
    assert "site-packages" in installed.parts
    assert ROOT not in {Path(entry or ".").resolve() for entry in sys.path}


def test_there_is_an_integration() -> None:
    """The two tests below have something to look at."""
    assert "voight_fastapi" in INTEGRATIONS


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_every_integration_is_listed_for_the_wheel(name: str) -> None:
    """A folder of integrations/ is a typed package, and pyproject.toml names it wherever packages are listed by hand."""
    assert (ROOT / "integrations" / name / "__init__.py").is_file()
    assert (ROOT / "integrations" / name / "py.typed").is_file()
    assert f"integrations/{name}" in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert name in PROJECT["tool"]["mypy"]["packages"]
    assert name in PROJECT["tool"]["importlinter"]["root_packages"]
    (contract,) = (one for one in PROJECT["tool"]["importlinter"]["contracts"] if one["id"] == "integrations")
    assert name in contract["layers"][0].split(" | ")
    assert f"`{name}`" in (ROOT / "docs" / "api.md").read_text()


@pytest.mark.slow
@needs_wheel
@pytest.mark.parametrize("name", ["voight_middleware", *INTEGRATIONS])
def test_every_package_is_in_the_wheel_with_its_types(name: str) -> None:
    """All modules of the checkout are in the wheel, and py.typed beside them."""
    source = ROOT / name if name == "voight_middleware" else ROOT / "integrations" / name
    modules = {f"{name}/{path.relative_to(source).as_posix()}" for path in source.rglob("*.py")}

    assert modules
    assert modules | {f"{name}/py.typed"} <= shipped().keys()


@needs_wheel
def test_the_wheel_ships_nothing_else() -> None:
    """No tests, examples or benchmarks land in site-packages under names of their own."""
    beside = {name.split("/")[0] for name in shipped() if not name.startswith("..")}

    assert {name for name in beside if not name.endswith(".dist-info")} == {"voight_middleware", *INTEGRATIONS}


@needs_wheel
def test_the_demo_runs_the_example_that_the_repository_shows() -> None:
    """The FastAPI example is shipped inside the testing package, word for word."""
    example = shipped()["voight_middleware/cli/example_fastapi.py"]

    assert example.read_text() == (ROOT / "example_apps" / "fastapi_app" / "app.py").read_text()


def test_version_is_that_of_the_metadata() -> None:
    """`voight_middleware.__version__`, the metadata and pyproject.toml agree."""
    assert voight_middleware.__version__ == metadata.version("voight-middleware") == PROJECT["project"]["version"]


@pytest.mark.server
@pytest.mark.parametrize("module", ["voight_middleware", "voight_middleware.testing.plugin"])
def test_import_stays_light(module: str) -> None:
    """
    An import loads no framework, provider SDK, price library or database driver.
    """
    code = f"import json, sys; before = set(sys.modules); import {module}; print(json.dumps(sorted(set(sys.modules) - before)))"
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.split(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}

    assert "voight_middleware" in loaded
    assert loaded & NOT_AT_IMPORT == set()


@pytest.mark.server
def test_the_pytest_plugin_loads_nothing() -> None:
    """It is loaded in every pytest run of every environment that has us installed: it costs less than a millisecond."""
    code = f"import pytest, sys; sys.path.append({str(ROOT / 'integrations')!r}); before = set(sys.modules); import voight_pytest; "
    code += "print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == ["voight_pytest"]
    assert PROJECT["project"]["entry-points"]["pytest11"] == {"voight": "voight_pytest"}


def test_core_dependencies_are_few() -> None:
    """Without an extra, two packages are installed and no more."""
    core = {re.split(r"[^\w.-]", line)[0] for line in metadata.requires("voight-middleware") or () if "extra ==" not in line}

    assert core == {"genai-prices", "msgspec"}


def test_the_extra_all_has_every_extra() -> None:
    """`pip install 'voight-middleware[all]'` leaves none out but ARQ, whose redis client is older than Celery's transport can use."""
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = extras["all"]

    assert set(everything.removeprefix("voight-middleware[").rstrip("]").split(",")) == extras.keys() - {"all", "arq"}


def test_the_documentation_says_which_versions_are_tested() -> None:
    """From the lower bound of each extra to the version that the tests are run with."""
    lines = (ROOT / "docs" / "deployment.md").read_text().splitlines()
    told = {found[1]: (found[2], found[3]) for line in lines if (found := re.fullmatch(r"\| `([\w-]+)` \| ([\d.]+) \| (.+) \|", line))}
    pins = (ROOT / ".ci" / "locked.txt").read_text().splitlines()
    locked = {found[1].lower(): found[2] for pin in pins if (found := re.match(r"([\w.-]+)==([\d.]+)", pin))}
    needs = [need for name, extra in PROJECT["project"]["optional-dependencies"].items() if name != "all" for need in extra]
    bounds = {found[1]: found[2] for need in needs if (found := re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", need))}

    assert {name: bound for name, (bound, _) in told.items()} == bounds
    assert {name: to for name, (_, to) in told.items() if name != "arq"} == {name: locked[name] for name in bounds if name != "arq"}


def test_entry_points_can_be_loaded() -> None:
    """The command and the pytest plugin are where the metadata says."""
    points = {(point.group, point.name): point for point in metadata.distribution("voight-middleware").entry_points}

    assert points.keys() == {("console_scripts", "voight"), ("pytest11", "voight")}
    assert all(point.load() for point in points.values())


def test_ci_runs_the_commands_of_the_readme() -> None:
    """Both commands of the README, test and demo, stand in .ci/run as a newcomer types them."""
    commands = re.findall(r"^ *(python3 -m venv .*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    readme = [line.strip().removeprefix("$ ") for line in (ROOT / "README.md").read_text().splitlines()]

    assert len(commands) == 2
    assert [command for command in commands if command not in readme] == []


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_integrations_say_what_they_need(name: str) -> None:
    """An integration imports where its framework is installed; elsewhere the ImportError names the extra to install."""
    framework = name.removeprefix("voight_")
    if find_spec(framework) is not None:
        assert import_module(name).__all__
    else:
        with pytest.raises(ImportError, match=re.escape(f"pip install 'voight-middleware[{framework}]'")):
            import_module(name)
