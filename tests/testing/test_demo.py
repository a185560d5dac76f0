"""`voight demo`, as a newcomer runs it: in a process of its own."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from voight_middleware.ledger import open_ledger
from voight_middleware.reports.spend import spend
from voight_middleware.testing.provider import LoopbackProvider

COMMAND = [sys.executable, "-c", "import sys; from voight_middleware.cli import main; sys.exit(main(sys.argv[1:]))"]
NUMBER = r"([\d,]+)"
COUNTS = re.compile(rf"provider's own count: {NUMBER} tokens in, {NUMBER} out; ledger: {NUMBER} in, {NUMBER} out")


def voight(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command in *folder*, which is also where temporary files go."""
    unwanted = ("OPENAI_", "ANTHROPIC_", "VOIGHT_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    env = {**inherited, "TMPDIR": str(folder), "XDG_STATE_HOME": str(folder / "state"), **environment}
    return subprocess.run([*COMMAND, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=100)


def total(folder: Path, where: dict[str, str | None] | None = None) -> tuple[int, int | None, int | None]:
    """Calls, input and output tokens of the ledger in *folder*."""
    ledger = open_ledger(str(folder / "ledger.db"), create=False)
    try:
        row = spend(ledger, (), where).total
        return row.calls, row.input_tokens, row.output_tokens
    finally:
        ledger.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One run of fifty requests: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    result = voight(folder, "demo", "--requests", "50")
    assert (result.returncode, result.stderr) == (0, "")
    return folder, result.stdout


def test_the_ledger_agrees_with_the_provider(demo: tuple[Path, str]) -> None:
    """The printed totals are the provider's own count, and those of the ledger that is left behind."""
    folder, text = demo
    found = COUNTS.search(text)
    assert found is not None
    numbers = [int(number.replace(",", "")) for number in found.groups()]
    (ledger,) = folder.glob("voight-demo-*/ledger.db")

    assert numbers[:2] == numbers[2:]
    assert numbers[0] > 10_000
    assert list(total(ledger.parent, {"outcome": "ok"})[1:]) == numbers[2:]


def test_every_request_is_one_call(demo: tuple[Path, str]) -> None:
    """Answered, failed and broken off: each of the fifty requests is in the ledger, once, with what became of it."""
    folder, text = demo
    (place,) = folder.glob("voight-demo-*")
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


def test_the_next_commands_work(demo: tuple[Path, str]) -> None:
    """Each command that is suggested at the end runs, on the ledger that the demo has left behind."""
    folder, text = demo
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("  voight ") and "--ledger" in line]

    assert len(commands) >= 3
    for _, *arguments in commands:
        result = voight(folder, *arguments)
        assert (result.returncode, result.stderr) == (0, "")
        assert len(result.stdout.splitlines()) > 3


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("top --since month", r"u_1 .*\$0\.\d+ +\d+\.\d%"),
        ("plans --since month", r"free +\d+ +\$0\.\d+ .*%"),
        ("release 2026.11.2", r"Release 2026\.11\.2 against 2026\.11\.1"),
        ("margin --on tenant --revenue voight-demo/revenue.csv", r"t_2 +\d+ +\$0\.0200 +\$0\.\d+ +\d+\.\d%"),
    ],
)
def test_the_four_questions_of_the_readme(demo: tuple[Path, str], command: str, answer: str) -> None:
    """Each command that the README gives for a question answers it from the demo's data."""
    folder, _ = demo
    (place,) = folder.glob("voight-demo-*")
    assert f"`voight {command}`" in (Path(__file__).parents[2] / "README.md").read_text()
    arguments = command.replace("voight-demo/", f"{place}/").split()
    result = voight(folder, *arguments, "--ledger", str(place / "ledger.db"))
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(answer, result.stdout)


def test_it_leaves_everything_else_alone(demo: tuple[Path, str]) -> None:
    """The demo writes to its own folder, never to the default ledger."""
    folder, _ = demo
    assert [path.name.rpartition("-")[0] for path in folder.iterdir()] == ["voight-demo"]


def test_keep(tmp_path: Path) -> None:
    """A kept ledger is in ./voight-demo; a second run adds to it, reports on its own calls only, and still agrees."""
    for run in (1, 2):
        result = voight(tmp_path, "demo", "--keep", "--requests", "12", VOIGHT_LEDGER=str(tmp_path / "real.db"))
        assert (result.returncode, result.stderr) == (0, "")
        assert total(tmp_path / "voight-demo")[0] == 12 * run
    assert [path.name for path in tmp_path.iterdir()] == ["voight-demo"]


@pytest.fixture
def real() -> Iterator[LoopbackProvider]:
    """Stands for the real API, where a user's variables point."""
    with LoopbackProvider() as provider:
        yield provider


@pytest.mark.parametrize("anthropic_key", ["", "key"])
def test_with_an_api_key(anthropic_key: str, tmp_path: Path, real: LoopbackProvider) -> None:
    """With OPENAI_API_KEY the real API is asked, a few times and with plain words; Anthropic's only where there is a key for it."""
    urls = {"OPENAI_BASE_URL": real.openai_base_url, "ANTHROPIC_BASE_URL": real.anthropic_base_url}
    result = voight(tmp_path, "demo", OPENAI_API_KEY="key", ANTHROPIC_API_KEY=anthropic_key, **urls)

    assert (result.returncode, result.stderr) == (0, "")
    assert "OPENAI_API_KEY is set: 10 requests go to the real API, and are billed to your account." in result.stdout
    assert "own count" not in result.stdout
    assert len(real.requests) == real.counts().total.completed == 10
    assert any("max_tokens" in body for body in real.requests) == bool(anthropic_key)
    assert not any("[user:" in str(body) or "x-loopback" in str(body) for body in real.requests)


def test_an_app_that_does_not_start(tmp_path: Path) -> None:
    """Where the app does not start, its last words are shown, without a traceback of ours."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nif '-m' in sys.orig_argv:\n    sys.exit('no app today')\n")
    begin = time.monotonic()
    result = voight(tmp_path, "demo", "--requests", "5", PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    assert result.returncode == 1
    assert re.search("^voight: the example app did not start: .*no app today", result.stderr)
    assert "Traceback" not in result.stderr
    assert time.monotonic() - begin < 20
