"""What the README and the docs show is true: their Python runs, their commands work, their files can be read."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai  # noqa: F401  (pytester would forget it after a run in this process, and import it again)
import pytest
from starlette.testclient import TestClient

import voight_middleware as voight
from voight_middleware.cli import main
from voight_middleware.config.settings import VARIABLES, Settings
from voight_middleware.ledger import open_ledger
from voight_middleware.otlp.mapping import read
from voight_middleware.otlp.spans import Key, Span, wanted

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = {path.stem: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


PYTHON = [body for text in DOCUMENTS.values() for body in blocks(text, "python")]
LINES = dict.fromkeys(
    line[2:].split(" #")[0].strip() for text in DOCUMENTS.values() for body in blocks(text, "console") for line in body.splitlines()
)
SERVERS = [line for line in LINES if "voight otlp" in line]
COMMANDS = [line for line in LINES if line not in SERVERS]
SETTINGS, PRICES = (body for text in DOCUMENTS.values() for body in blocks(text, "toml"))
SPANS: Any = runpy.run_path(str(ROOT / "tests" / "apps" / "otlp_spans.py"))


def numbered(wanted: Callable[[str], bool]) -> list[Any]:
    """The numbers of the Python examples that are wanted, each named by the first thing that it does."""
    found = ((number, body) for number, body in enumerate(PYTHON) if wanted(body))
    return [pytest.param(number, id=f"{number}-{first_step(body)}") for number, body in found]


def first_step(body: str) -> str:
    """The first line that is no import."""
    lines = [line.strip() for line in body.splitlines() if line and not line.startswith(("import ", "from "))]
    return re.sub(r"\W+", " ", lines[0]).strip()[:40]


def sets_up_a_process(body: str) -> bool:
    """Whether an example makes settings that are those of a whole process."""
    return "opentelemetry" in body or "prometheus_client" in body


def has_tests(body: str) -> bool:
    """Whether an example is a file of tests."""
    return "def test_" in body


@pytest.fixture
def to_loopback(voight_provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDKs ask the loopback provider."""
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    monkeypatch.setenv("OPENAI_BASE_URL", voight_provider.openai_base_url)


@pytest.mark.slow
@pytest.mark.parametrize("number", numbered(lambda body: not sets_up_a_process(body) and not has_tests(body)))
def test_python(number: int, to_loopback: None, voight_calls: Any) -> None:
    """Every Python example runs as it stands, with the SDKs answered by the loopback provider."""
    body = PYTHON[number]
    exec(compile(body, f"Python example {number + 1}", "exec"), {"__name__": "readme"})
    if any(word in body for word in ("client.chat", "client.post", "voight.record", "metered_call")):
        assert [call.tags.user_id for call in voight_calls] == ["u_7"]


@pytest.mark.slow
@pytest.mark.parametrize("number", numbered(has_tests))
def test_python_of_tests(number: int, pytester: pytest.Pytester, voight_provider: Any) -> None:
    """Every example of a test passes."""
    pytester.makepyfile(PYTHON[number])
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:xdist")
    result.assert_outcomes(passed=1)


EXAMPLES = numbered(sets_up_a_process)
PROCESSES = """
import importlib, os, sys
from pathlib import Path

folder, *modules = sys.argv[1:]
for module in modules:
    importlib.import_module(module)
for example in sorted(Path(folder).glob("*.py")):
    child = os.fork()
    if child == 0:
        os.environ["VOIGHT_LEDGER"] = str(example.with_suffix(".db"))
        os.dup2(os.open(example.with_suffix(".err"), os.O_CREAT | os.O_WRONLY), 2)
        exec(compile(example.read_text(), example.name, "exec"), {"__name__": "readme"})
        break
    print(example.stem, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs the examples of a folder, each in a process of its own; what they import is imported once, before."""


class Examples(NamedTuple):
    """What has become of the examples that set up a process."""

    folder: Path
    statuses: dict[str, str]
    repeated: int
    """How many spans the receiver has been sent that the gate had metered."""


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, voight_provider: Any) -> Examples:
    """Run all examples that set up OpenTelemetry or Prometheus; they export to a receiver that is there."""
    folder = tmp_path_factory.mktemp("examples")
    modules = set()
    for (number,) in (example.values for example in EXAMPLES):
        (folder / f"{number}.py").write_text(PYTHON[number])
        modules |= set(re.findall(r"^(?:from|import) ([\w.]+)", PYTHON[number], re.MULTILINE))
    receiving = SPANS["Receiving"](folder / "receiver")
    try:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("VOIGHT_", "OTEL_"))} | {
            "OPENAI_API_KEY": "any",
            "OPENAI_BASE_URL": voight_provider.openai_base_url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiving.url,
        }
        command = [sys.executable, "-c", PROCESSES, str(folder), *sorted(modules)]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=100)
    finally:
        receiving.stop()
    assert done.returncode == 0, done.stderr
    return Examples(folder, dict(line.split() for line in done.stdout.splitlines()), receiving.server.receiver.totals.repeated)


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("number", EXAMPLES)
def test_python_of_a_process(number: int, examples: Examples) -> None:
    """The examples that set up OpenTelemetry or Prometheus run in processes of their own, and what they export arrives."""
    errors = (examples.folder / f"{number}.err").read_text()
    assert examples.statuses[str(number)] == "0", errors
    assert not re.search(r"Traceback|Failed to export|Transient error", errors), errors
    if "client.chat" in PYTHON[number]:
        ledger = open_ledger(f"sqlite:///{examples.folder / f'{number}.db'}")
        try:
            assert [call.tags.user_id for call in ledger.calls()] == ["u_7"]
        finally:
            ledger.close()


@pytest.mark.server
@pytest.mark.slow
def test_spans_of_calls_are_exported(examples: Examples) -> None:
    """The receiver is sent the span of each call that the examples make, and knows that the gate has metered it."""
    calling = [example for example in EXAMPLES if "client.chat" in PYTHON[example.values[0]]]
    assert examples.repeated == len(calling) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, voight_calls: Any) -> None:
    """Every command line works on a ledger that has calls."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prices.toml").write_text(PRICES)
    usage, call_id = {"prompt_tokens": 9, "completion_tokens": 1}, "01a1fd9613ba7090ac3519e4f920ba04"
    voight.record(provider="openai", model="gpt-4o-mini", usage=usage, tags={"user_id": "u_7"}, call_id=call_id)
    assert voight.flush()
    monkeypatch.setenv("VOIGHT_LEDGER", voight_calls.ledger)
    program, *arguments = shlex.split(command)
    assert program == "voight"
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(arguments))
    assert ended.value.code in (0, None)


@pytest.mark.server
@pytest.mark.parametrize("line", SERVERS, ids=["loopback", "with a token"])
def test_receivers(line: str, tmp_path: Path) -> None:
    """Every line that starts a receiver does, here on a free port of loopback: a span sent to it is in the ledger when it has stopped."""
    words = shlex.split(line)
    variables = dict(word.split("=", 1) for word in words[: words.index("voight")])
    token = "t" * 32
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VOIGHT_")}
    environment |= {**variables, "VOIGHT_LEDGER": str(tmp_path / "ledger.db")}
    if variables:
        assert set(variables) == {"VOIGHT_OTLP_TOKEN"}
        environment["VOIGHT_OTLP_TOKEN"] = token
    command = [sys.executable, "-c", "import sys; from voight_middleware.cli import main; sys.exit(main(sys.argv[1:]))"]
    arguments = [*words[words.index("voight") + 1 :], "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen([*command, *arguments], env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            found = re.search(r"http://\S+/v1/traces", said)
            assert found is not None, said
            body = json.dumps(SPANS["request"](SPANS["span"]())).encode()
            headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
            with urllib.request.urlopen(urllib.request.Request(found[0], body, headers), timeout=20) as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGTERM)
            said = process.stderr.read()
            assert process.wait(20) == 0, said
        finally:
            process.kill()
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    try:
        assert [call.tags.user_id for call in ledger.calls()] == ["u_1"]
    finally:
        ledger.close()


def test_signed_tags_arrive(voight_calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the example in front sends, the example behind believes; another host gets nothing."""
    monkeypatch.setenv("VOIGHT_HEADER_KEY", "k" * 32)
    voight.configure()
    sender, receiver = (body for body in blocks(DOCUMENTS["services"], "python") if "headers" in body)
    front: dict[str, Any] = {}
    behind: dict[str, Any] = {}
    exec(sender, front)
    exec(receiver, behind)
    behind["app"].get("/")(lambda: {"user": (tags := voight.current_tags()).user_id, "feature": tags.extra.get("feature")})
    seen = {}
    with voight.tag(user_id="u_7", feature="search"):
        for host in ("reports.internal", "a.svc.cluster.local", "api.openai.com"):
            seen[host] = httpx.Request("GET", f"https://{host}/")
            front["tags_along"](seen[host])
    answers = [TestClient(behind["app"]).get("/", headers=dict(request.headers)).json() for request in seen.values()]
    assert answers == [{"user": "u_7", "feature": "search"}] * 2 + [{"user": None, "feature": None}]


def test_the_vercel_example_is_the_tested_one() -> None:
    """Of version 6, as the script that the tests run with the real package; the attributes that version 7 is to set are read as tags."""
    six, seven = blocks(DOCUMENTS["opentelemetry"], "ts")
    app = (ROOT / "tests" / "apps" / "vercel_app.mjs").read_text()
    lines = [line for line in six.splitlines() if line.startswith(("import { Node", "const traces", "traces.register", "await traces"))]
    assert len(lines) == 4
    for line in lines:
        assert line.split(" //")[0] in app
    for name in ("generateText", "createOpenAI"):
        assert re.search(rf"import {{[^}}]*\b{name}\b", six)
        assert re.search(rf"import {{[^}}]*\b{name}\b", app)
    shown = re.search(r"experimental_telemetry: \{ (isEnabled: true, functionId: '\w+', metadata: \{ userId): 'u_7', plan: 'pro' } }", six)
    assert shown is not None
    assert f"({{ {shown[1]}, plan" in app

    attributes = {name: f"the {name}" for name in re.findall(r"'(voight\.\w+)': runtimeContext", seven)}
    assert all(map(wanted, attributes))
    span = Span(key=Key("1" * 32, "1" * 16), started=1, attributes={"gen_ai.operation.name": "chat", **attributes})
    owner = read(span).owner
    assert owner is not None
    assert (owner.tags.user_id, owner.tags.plan) == ("the voight.user_id", "the voight.plan")


def test_links_lead_somewhere() -> None:
    """Every file that a document links to is there, and has the heading that is meant."""
    for name, text in DOCUMENTS.items():
        here = ROOT / "README.md" if name == "README" else ROOT / "docs" / f"{name}.md"
        for link in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
            path, _, anchor = link.partition("#")
            target = here.parent / path if path else here
            assert target.exists(), f"{name} links to {link}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{name} links to {link}"


def test_every_variable_is_in_the_table() -> None:
    """The table of the configuration names every variable that the library reads, and no other."""
    source = "".join(path.read_text() for path in Path(voight.__file__).parent.rglob("*.py"))
    literal = set(re.findall(r'"(VOIGHT_[A-Z_]+[A-Z])"', source))
    assert set(re.findall(r"VOIGHT_[A-Z_]+", README)) == literal | set(VARIABLES.values())


def test_the_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is one that is read."""
    (tmp_path / "voight.toml").write_text(SETTINGS)
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environment(environ={"XDG_STATE_HOME": str(tmp_path)})
    assert (settings.prices, settings.tags, settings.tz) == (tmp_path / "prices.toml", {"app": "shop"}, "Europe/Berlin")
