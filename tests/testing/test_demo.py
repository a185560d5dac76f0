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
from types import SimpleNamespace

import pytest

from voight_middleware.cli import demo as demo_module
from voight_middleware.cli import main
from voight_middleware.ledger import open_ledger
from voight_middleware.reports.spend import spend
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
    found = re.search(r"(\d+) succeeded, (\d+) failed at the provider, (\d+) clients disconnected", text)
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


def real_keys(provider: LoopbackProvider) -> dict[str, str]:
    """The variables of a user who has keys."""
    return {
        "OPENAI_API_KEY": "key",
        "OPENAI_BASE_URL": provider.openai_base_url,
        "ANTHROPIC_API_KEY": "key",
        "ANTHROPIC_BASE_URL": provider.anthropic_base_url,
        "HTTPS_PROXY": "socks5://127.0.0.1:9",
    }


def test_keys_in_the_environment_are_not_used(tmp_path: Path, real: LoopbackProvider) -> None:
    """Whatever keys there are, no request reaches their provider without --real. One embedding has no output, which is no defect."""
    text = run_demo(tmp_path, "--requests", "1", **real_keys(real))

    assert "nothing is billed" in text
    assert "defect" not in text
    assert COUNTS.search(text)
    assert real.requests == []
    assert list(tmp_path.iterdir()) == [], "no folder is left behind"


@pytest.mark.parametrize("path", ["/search", "/remember"])
def test_embeddings_alone_agree(path: str, tmp_path: Path, patch: Patch) -> None:
    """No output at all is 0 tokens on both sides."""
    patch("_plan", lambda *_: [demo_module.Ask(path, 1, "What is it?")], within="demo")
    assert "defect" not in run_demo(tmp_path)


def test_the_real_api_answers_all_four_questions(tmp_path: Path, real: LoopbackProvider, capsys: pytest.CaptureFixture[str]) -> None:
    """With --real a few plain requests are sent, of two releases, and every command that is suggested has data."""
    keys = {**real_keys(real), "HTTPS_PROXY": ""}
    text = run_demo(tmp_path, "--real", "--yes", "--keep", **keys)

    assert "10 requests go to OpenAI at 127.0.0.1 and Anthropic at 127.0.0.1, and are billed to your account: about $0." in text
    assert "own count" not in text
    assert len(real.requests) == real.counts().total.completed == 10
    assert not any("[user:" in str(body) or "x-loopback" in str(body) for body in real.requests)
    assert total(tmp_path / "voight-demo")[0] == 10
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("  voight ")]
    assert {arguments[1] for arguments in commands} >= {"top", "plans", "release", "margin"}
    for _, *arguments in commands:
        assert len(ask(capsys, arguments).splitlines()) > 3


@pytest.mark.parametrize("anthropic_key", ["", "key"], ids=["no key", "key"])
def test_anthropic_is_asked_where_there_is_a_key_for_it(anthropic_key: str, monkeypatch: pytest.MonkeyPatch, patch: Patch) -> None:
    """The plan of a real run has requests to Anthropic with ANTHROPIC_API_KEY only, and the application sees that key."""
    driven: list[tuple[list[demo_module.Ask], dict[str, str]]] = []

    def drive(plan: list[demo_module.Ask], _folder: Path, environment: dict[str, str], _console: object) -> Counter[str]:
        driven.append((plan, environment))
        return Counter()

    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.setenv("ANTHROPIC_API_KEY", anthropic_key)
    patch("_drive", drive, within="demo")
    patch("_print_costs", lambda *_: 0, within="demo")

    assert main(["demo", "--requests", "30", "--real", "--yes"]) == 0
    plan = [ask for asks, _ in driven for ask in asks]
    assert len(plan) == 10
    assert any(ask.path.startswith("/summarise") for ask in plan) is bool(anthropic_key)
    assert {environment["VOIGHT_RELEASE"] for _, environment in driven} == {"2026.11.1", "2026.11.2"}
    assert all(environment["ANTHROPIC_API_KEY"] == (anthropic_key or "none") for _, environment in driven)


@pytest.mark.parametrize(
    ("keys", "answer", "said"),
    [
        ({}, "y", "--real needs OPENAI_API_KEY"),
        ({"OPENAI_API_KEY": "key"}, None, "10 requests go to OpenAI, and are billed to your account: about $0.0"),
        ({"OPENAI_API_KEY": "key"}, "", "nothing was sent"),
        ({"OPENAI_API_KEY": "key"}, "n", "nothing was sent"),
    ],
    ids=["no key", "nobody to ask", "enter", "no"],
)
def test_nothing_is_sent_without_a_yes(
    keys: dict[str, str],
    answer: str | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    patch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The question names the cost. Enter, no, a pipe and a missing key send nothing."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    patch("_drive", lambda *_: pytest.fail("a request was sent"), within="demo")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: answer is not None, readline=lambda: f"{answer}\n"))

    assert main(["demo", "--real"]) == 1
    assert said in capsys.readouterr().err


def test_an_app_that_does_not_start(tmp_path: Path) -> None:
    """Where the app does not start, its last words are shown, without a traceback of ours."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nif '-m' in sys.orig_argv:\n    sys.exit('no app today')\n")
    result = voight(tmp_path, "demo", "--requests", "5", PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    assert result.returncode == 1
    assert re.search("^voight: the example app did not start: .*no app today", result.stderr)
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("voight-demo*"))
