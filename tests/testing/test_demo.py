"""`voight demo`, in this process; it starts the example in another one, as it does for a newcomer."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from voight_middleware.cli import main
from voight_middleware.ledger import open_ledger
from voight_middleware.reports.spend import spend
from voight_middleware.testing import demo as demo_module
from voight_middleware.testing.provider import LoopbackProvider

from ..support.patching import Patch

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(300)]

COMMAND = [sys.executable, "-c", "import sys; from voight_middleware.cli import main; sys.exit(main(sys.argv[1:]))"]
NUMBER = r"([\d,]+)"
COUNTS = re.compile(rf"provider's own count: {NUMBER} tokens in, {NUMBER} out; ledger: {NUMBER} in, {NUMBER} out")


def voight(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command in *folder*, which is also where temporary files go."""
    unwanted = ("OPENAI_", "ANTHROPIC_", "VOIGHT_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    env = {**inherited, "TMPDIR": str(folder), "XDG_STATE_HOME": str(folder / "state"), **environment}
    return subprocess.run([*COMMAND, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=100)


def run_demo(folder: Path, *arguments: str, **environment: str) -> str:
    """Run the demo in *folder*, which is also where temporary files go, and with only this environment; answers what it prints."""
    said, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in [name for name in os.environ if name.startswith(("OPENAI_", "ANTHROPIC_", "VOIGHT_"))]:
            monkeypatch.delenv(name)
        for name, value in {"XDG_STATE_HOME": str(folder / "state"), **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        Patch(monkeypatch)("_START_SECONDS", 300.0, within="demo")  # the example imports both SDKs, on a machine that others use
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            assert main(["demo", *arguments]) == 0
    assert errors.getvalue() == ""
    return said.getvalue()


def total(folder: Path, where: dict[str, str | None] | None = None) -> tuple[int, int | None, int | None]:
    """Calls, input and output tokens of the ledger in *folder*."""
    ledger = open_ledger(str(folder / "ledger.db"), create=False)
    try:
        row = spend(ledger, (), where).total
        return row.calls, row.input_tokens, row.output_tokens
    finally:
        ledger.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the demo runs."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(folder: Path) -> tuple[Path, str]:
    """One run of fifty requests: what it has kept, and what it printed."""
    text = run_demo(folder, "--keep", "--requests", "50", VOIGHT_LEDGER=str(folder / "real.db"))
    first = folder / "first"
    shutil.copytree(folder / "voight-demo", first)
    return first, text


def ask(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run a command that reads the ledger; answers what it prints."""
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_the_ledger_agrees_with_the_provider(demo: tuple[Path, str]) -> None:
    """The printed totals are the provider's own count, and those of the ledger that is left behind."""
    place, text = demo
    found = COUNTS.search(text)
    assert found is not None
    numbers = [int(number.replace(",", "")) for number in found.groups()]

    assert numbers[:2] == numbers[2:]
    assert numbers[0] > 10_000
    assert list(total(place, {"outcome": "ok"})[1:]) == numbers[2:]


def test_every_request_is_one_call(demo: tuple[Path, str]) -> None:
    """Answered, failed and broken off: each of the fifty requests is in the ledger, once, with what became of it."""
    place, text = demo
    found = re.search(r"(\d+) were answered, (\d+) failed at the provider, (\d+) clients left", text)
    assert found is not None
    answered, failed, left = map(int, found.groups())

    assert answered + failed + left == total(place)[0] == 50
    assert (total(place, {"outcome": "ok"})[0], total(place, {"outcome": "error"})[0]) == (answered, failed)
    assert failed >= 1
    assert left >= 1
    assert 0 < total(place, {"user_id": None})[0] < 10


def test_it_shows_the_answer(demo: tuple[Path, str]) -> None:
    """Users with calls, tokens and cost; cost by plan; the share without an owner; what was estimated."""
    _, text = demo
    head, _, rest = text.partition("Spend by user_id")
    users, _, plans = rest.partition("Spend by plan")

    assert "nothing is billed" in head
    assert re.search(r"u_\d+ +\d+ +[\d,]+ .*\$0\.\d+ +\d+\.\d%", users)
    assert "without an owner" in users
    assert "estimated tokens" in users
    assert {"free", "pro", "team"} <= set(plans.split())


def test_the_next_commands_work(demo: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each command that is suggested at the end runs, on the ledger that the demo has left behind."""
    _, text = demo
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("  voight ") and "--ledger" in line]

    assert len(commands) >= 3
    for _, *arguments in commands:
        assert len(ask(capsys, arguments).splitlines()) > 3


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("top --since month", r"u_1 .*\$0\.\d+ +\d+\.\d%"),
        ("plans --since month", r"free +\d+ +\$0\.\d+ .*%"),
        ("release 2026.11.2", r"Release 2026\.11\.2 against 2026\.11\.1"),
        ("margin --on tenant --revenue voight-demo/revenue.csv", r"t_2 +\d+ +\$0\.0200 +\$0\.\d+ +\d+\.\d%"),
    ],
    ids=["top", "plans", "release", "margin"],
)
def test_the_four_questions_of_the_readme(demo: tuple[Path, str], command: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command that the README gives for a question answers it from the demo's data."""
    place, _ = demo
    assert f"`voight {command}`" in (Path(__file__).parents[2] / "README.md").read_text()
    arguments = command.replace("voight-demo/", f"{place}/").split()
    assert re.search(answer, ask(capsys, [*arguments, "--ledger", str(place / "ledger.db")]))


def test_a_kept_ledger_goes_on(demo: tuple[Path, str], folder: Path) -> None:
    """It is in ./voight-demo, and no other is touched; a second run adds to it, reports on its own calls only, and still agrees."""
    text = run_demo(folder, "--keep", "--requests", "2", VOIGHT_LEDGER=str(folder / "real.db"))
    assert total(folder / "voight-demo")[0] == 50 + 2
    found = COUNTS.search(text)
    assert found is not None
    assert 0 < int(found[1].replace(",", "")) == int(found[3].replace(",", "")) < 10_000
    assert {path.name for path in folder.iterdir()} == {"first", "voight-demo"}


@pytest.fixture
def real() -> Iterator[LoopbackProvider]:
    """Stands for the real API, where a user's variables point."""
    with LoopbackProvider() as provider:
        yield provider


def test_with_an_api_key(tmp_path: Path, real: LoopbackProvider) -> None:
    """With OPENAI_API_KEY the real API is asked, a few times and with plain words; what is written is in a new temporary folder."""
    text = run_demo(tmp_path, OPENAI_API_KEY="key", ANTHROPIC_API_KEY="", OPENAI_BASE_URL=real.openai_base_url)

    assert "OPENAI_API_KEY is set: 10 requests go to the real API, and are billed to your account." in text
    assert "own count" not in text
    assert len(real.requests) == real.counts().total.completed == 10
    assert not any("max_tokens" in body for body in real.requests), "Anthropic is not asked without a key"
    assert not any("[user:" in str(body) or "x-loopback" in str(body) for body in real.requests)
    assert [path.name.rpartition("-")[0] for path in tmp_path.iterdir()] == ["voight-demo"]
    assert total(next(tmp_path.iterdir()))[0] == 10


@pytest.mark.parametrize("anthropic_key", ["", "key"], ids=["no key", "key"])
def test_anthropic_is_asked_where_there_is_a_key_for_it(anthropic_key: str, monkeypatch: pytest.MonkeyPatch, patch: Patch) -> None:
    """The plan of a run with OPENAI_API_KEY has requests to Anthropic with ANTHROPIC_API_KEY only, and the application sees that key."""
    driven: list[tuple[list[demo_module.Ask], dict[str, str]]] = []

    def drive(plan: list[demo_module.Ask], _folder: Path, environment: dict[str, str], _console: object) -> Counter[str]:
        driven.append((plan, environment))
        return Counter()

    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.setenv("ANTHROPIC_API_KEY", anthropic_key)
    patch("_drive", drive, within="demo")
    patch("_answer", lambda *_: 0, within="demo")

    assert main(["demo", "--requests", "30"]) == 0
    ((plan, environment),) = driven
    assert len(plan) == 10
    assert any(ask.path.startswith("/summarise") for ask in plan) is bool(anthropic_key)
    assert environment["ANTHROPIC_API_KEY"] == (anthropic_key or "none")


def test_an_app_that_does_not_start(tmp_path: Path) -> None:
    """Where the app does not start, its last words are shown, without a traceback of ours."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nif '-m' in sys.orig_argv:\n    sys.exit('no app today')\n")
    result = voight(tmp_path, "demo", "--requests", "5", PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    assert result.returncode == 1
    assert re.search("^voight: the example app did not start: .*no app today", result.stderr)
    assert "Traceback" not in result.stderr
