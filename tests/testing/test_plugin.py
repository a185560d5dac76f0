"""The pytest plugin, in pytest runs of their own: in this process, but where what a process loads or leaves is the question."""

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

import voight_middleware as voight
from voight_middleware.config.settings import Settings
from voight_middleware.pipeline.meter import Meter, swap_meter
from voight_middleware.testing.plugin import VoightCalls

pytestmark = pytest.mark.slow  # a sweep over many cases

pytest_plugins = ["pytester"]

CALL = """
import voight_middleware as voight
from decimal import Decimal

def call(user="u_1", model="gpt-4o-mini"):
    tags = {"user_id": user} if user else {}
    voight.record(provider="openai", model=model, usage={"prompt_tokens": 1000, "completion_tokens": 100}, tags=tags)
"""


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory, voight_provider: object) -> None:
    """All of the library is loaded before: pytester forgets the modules that a run in this process has loaded first."""
    folder = tmp_path_factory.mktemp("loaded")
    outer = swap_meter(Meter(Settings.from_environment(ledger=folder / "ledger.db", environ={})))
    try:
        voight.record(provider="openai", model="gpt-4o-mini", usage={"prompt_tokens": 1})
        with voight.wrap(openai.OpenAI(api_key="k")) as client:
            assert client.chat.completions
        assert len(VoightCalls(f"sqlite:///{folder}/ledger.db").all()) == 1
    finally:
        inner = swap_meter(outer)
        assert inner is not None
        inner.close()


@pytest.fixture(autouse=True)
def _own_meter(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The runs have no meter of ours, and a default ledger of their own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(pytester.path / "state"))
    outer = swap_meter(None)
    yield
    if (inner := swap_meter(outer)) is not None:
        inner.close()


def run(pytester: pytest.Pytester, test: str) -> pytest.RunResult:
    """Run *test*, with no other plugins than ours."""
    pytester.makepyfile(CALL + test)
    return pytester.runpytest_inprocess(
        *("-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:xdist", "-p", "no:hypothesispytest", "-p", "no:anyio", "-W", "error")
    )


def state(pytester: pytest.Pytester) -> list[Path]:
    """What was written to the default place of the ledger."""
    return list((pytester.path / "state").rglob("*"))


def test_calls_of_a_test(pytester: pytest.Pytester) -> None:
    """`voight_calls` is a list of the finished, priced calls, which is up to date whenever it is read."""
    test = """
def test_it(voight_calls):
    assert len(voight_calls) == 0 and voight_calls.all() == []
    call()
    assert voight_calls.one().tags.user_id == "u_1"
    assert voight_calls.one().usage.input_tokens == 1000
    call("u_2"), call(None), call("u_1", model="no-such-model")
    assert [one.tags.user_id for one in voight_calls] == ["u_1", "u_2", None, "u_1"]
    assert [one.tags.user_id for one in voight_calls[1:3]] == ["u_2", None]
    assert voight_calls[-1].cost_usd is None and voight_calls[-1].cost_status == "unpriced"
    assert [len(voight_calls.by_user(user)) for user in ("u_1", "u_2", None, "u_9")] == [2, 1, 1, 0]
    assert voight_calls.cost_usd() == voight_calls[0].cost_usd * 3 == Decimal("0.00063")
"""
    run(pytester, test).assert_outcomes(passed=1)


def test_one_says_how_many_there_were(pytester: pytest.Pytester) -> None:
    """`one()` fails a test that made another number of calls."""
    result = run(pytester, "def test_it(voight_calls):\n    call(), call()\n    voight_calls.one()\n")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*expected one call, found 2*"])


def test_tests_are_kept_apart(pytester: pytest.Pytester) -> None:
    """Each test sees its own calls only, and none of them reaches the default ledger."""
    result = run(pytester, "def test_1(voight_calls):\n    call()\n    voight_calls.one()\n\ntest_2 = test_3 = test_1\n")

    result.assert_outcomes(passed=3)
    assert state(pytester) == []


def test_the_meter_outside_is_put_back(pytester: pytest.Pytester) -> None:
    """The meter that was configured before the test gives its release, hears nothing, and is in place again afterwards."""
    test = """
import pytest
from voight_middleware.pipeline.meter import current_meter

heard = []
voight.configure(ledger="outside.db", release="2026.11.3", listeners=[heard.append])
outside = current_meter()

def test_inside(voight_calls):
    call()
    assert voight_calls.one().tags.release == "2026.11.3"
    assert current_meter() is not outside

def test_outside():
    assert current_meter() is outside
    call("u_5")
    assert voight.flush()
    assert [one.tags.user_id for one in heard] == ["u_5"]
"""
    run(pytester, test).assert_outcomes(passed=2)


@pytest.mark.server
def test_configure_inside_a_test(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that configures itself inside the test, and a process that the test starts, write to the test's ledger too."""
    test = """
import subprocess, sys

def test_it(voight_calls):
    call("before")
    voight.configure(release="2026.11.4")
    call("after")
    code = "import voight_middleware as v; v.record(provider='openai', model='m', usage={'prompt_tokens': 1}, tags={'user_id': 'child'})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [one.tags.user_id for one in voight_calls] == ["before", "after", "child"]
    assert voight_calls[1].tags.release == "2026.11.4"
"""
    monkeypatch.setenv("VOIGHT_LEDGER", str(pytester.path / "real.db"))
    monkeypatch.setenv("VOIGHT_JOURNAL", str(pytester.path / "real"))
    monkeypatch.setenv("VOIGHT_ENABLED", "no")
    run(pytester, test).assert_outcomes(passed=1)
    assert state(pytester) == []
    assert not list(pytester.path.glob("real*"))


def test_provider_and_calls_together(pytester: pytest.Pytester) -> None:
    """`voight_provider` answers the SDKs, is the same for all tests of a run, and its count is the ledger's."""
    test = """
import openai
import pytest

ports = set()

@pytest.mark.parametrize("number", [1, 2])
def test_it(number, voight_calls, voight_provider):
    ports.add(voight_provider.url)
    voight_provider.reset()
    with voight.wrap(openai.OpenAI(base_url=voight_provider.openai_base_url, api_key="k")) as client:
        with voight.tag(user_id="u_7", plan="pro"):
            client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "[user:u_7] Hi"}])
    made = voight_calls.one()
    assert (made.tags.user_id, made.tags.plan, made.cost_status) == ("u_7", "pro", "priced")
    assert voight_provider.counts().by_user["u_7"].input_tokens == made.usage.input_tokens
    assert len(ports) == 1
"""
    run(pytester, test).assert_outcomes(passed=2)


def test_settlement_is_seen(pytester: pytest.Pytester) -> None:
    """A call that gets its owner only when its request has ended has it in the list."""
    test = """
import asyncio, time
from voight_middleware import CostTagMiddleware

def test_it(voight_calls):
    async def app(scope, receive, send):
        call(None)
        assert voight_calls.one().tags.user_id is None
        scope["user"] = "late"
    asyncio.run(CostTagMiddleware(app)({"type": "http", "path": "/", "headers": [], "method": "GET"}, None, None))
    assert (voight_calls.one().tags.user_id, voight_calls.one().attribution) == ("late", "settled")
"""
    run(pytester, test).assert_outcomes(passed=1)


@pytest.mark.server
def test_a_run_without_the_fixtures(pytester: pytest.Pytester) -> None:
    """A pytest run that does not use them is left alone: nothing is imported for it, not even the library, and nothing is written."""
    test = """
import json, sys

def test_it():
    loaded = {name.split(".")[0] for name in sys.modules}
    heavy = {"starlette", "uvicorn", "openai", "anthropic", "fastapi", "genai_prices", "sqlite3", "voight_middleware"}
    print("LOADED", json.dumps(sorted(loaded & heavy)))
"""
    pytester.makepyfile(test)
    # By its name: the metadata of the environment may be of another version.
    plugin = ("-p", "no:voight", "-p", "voight_pytest")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-s", "-p", "no:hypothesispytest", *plugin)

    result.assert_outcomes(passed=1)
    (line,) = (line for line in result.outlines if "LOADED" in line)
    assert json.loads(line.partition("LOADED ")[2]) == []
    assert state(pytester) == []


def test_fixtures_are_listed(pytester: pytest.Pytester) -> None:
    """`pytest --fixtures` explains both of them."""
    result = pytester.runpytest_inprocess("--fixtures", "-p", "no:cacheprovider", "-p", "no:asyncio")
    result.stdout.fnmatch_lines(["voight_calls*", "voight_provider*"])


def test_a_settings_file_does_not_lead_to_the_real_journal(pytester: pytest.Pytester) -> None:
    """What a project's file names is the application's: no call of a test is written there."""
    pytester.makefile(".toml", voight='journal = "real-journal"\nenabled = false\n')
    result = run(pytester, "def test(voight_calls):\n    call()\n    assert voight_calls.one().tags.user_id == 'u_1'\n")
    result.assert_outcomes(passed=1)
    assert not (pytester.path / "real-journal").exists()
