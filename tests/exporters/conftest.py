"""Fixtures of the export tests: what OpenTelemetry is given for calls of the real SDKs, and who takes Voight's events."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

import voight_middleware as voight
import voight_middleware.events.sender
from voight_middleware.config.settings import Settings
from voight_middleware.diagnostics import counters
from voight_middleware.instrumentation import wrap as gate
from voight_middleware.instrumentation.request import current_request
from voight_middleware.pipeline.meter import Meter, current_meter, swap_meter
from voight_middleware.records.call import Call
from voight_middleware.testing.provider import LoopbackProvider

from ..support.event_server import EventServer
from ..support.patching import Patch
from .sending import FAST, NewCall, Sending
from .traced import Traced


class Listened:
    """A meter with listeners, in the place of this process's own."""

    def __init__(self, folder: Path, *listeners: Any) -> None:
        self.heard: list[Call] = []
        self.settings = Settings.from_environment(ledger=folder / "ledger.db", environ={})
        self.meter = Meter(self.settings, [self.heard.append, *listeners])

    def flush(self) -> list[Call]:
        """Every call so far, in the order in which they began."""
        assert self.meter.flush(30), "the calls did not reach the ledger"
        return sorted(self.heard, key=lambda call: call.occurred_at)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Any]:
    """Puts a meter with these listeners in place; afterwards nothing of ours has failed inside."""
    made: list[Listened] = []
    outer: list[Meter | None] = []

    def listen(*listeners: Any) -> Listened:
        listened = Listened(tmp_path / str(len(made)), *listeners)
        made.append(listened)
        outer.append(swap_meter(listened.meter))
        return listened

    yield listen
    gate.uninstrument()
    if outer:
        swap_meter(outer[0])
    for one in made:
        one.meter.close()
        assert counters["internal_errors"] == 0, "something of ours failed inside"


@pytest.fixture(scope="module")
def loopback() -> Iterator[LoopbackProvider]:
    """The loopback provider."""
    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture
def openai_client(loopback: LoopbackProvider) -> Iterator[openai.OpenAI]:
    """A metered client of the openai SDK."""
    with openai.OpenAI(base_url=f"{loopback.url}/v1", api_key="sk-test", max_retries=0) as client:
        yield gate.wrap(client)


@pytest.fixture
def anthropic_client(loopback: LoopbackProvider) -> Iterator[anthropic.Anthropic]:
    """A metered client of the anthropic SDK."""
    with anthropic.Anthropic(base_url=loopback.url, api_key="sk-test", max_retries=0) as client:
        yield gate.wrap(client)


@pytest.fixture
def traced() -> Traced:
    """A tracer provider that keeps its spans, and OTelSpans for it."""
    return Traced()


@pytest.fixture
def native(traced: Traced, loopback: LoopbackProvider) -> Iterator[anthropic.Anthropic]:
    """A metered client of the anthropic SDK that makes spans of its own."""
    if not hasattr(anthropic.Anthropic, "_tracer"):
        pytest.skip("this anthropic makes no spans")
    options: Any = {"tracer_provider": traced.provider}
    with anthropic.Anthropic(base_url=loopback.url, api_key="sk-test", max_retries=0, open_telemetry=options) as client:
        yield gate.wrap(client)


@pytest.fixture
def server() -> Iterator[EventServer]:
    """Voight, on loopback."""
    with EventServer() as running:
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, patch: Patch) -> None:
    """Have a sender pause for hundredths of seconds, and see no proxy."""
    patch("FIRST_PAUSE", 0.02, within="sender")
    patch("MAX_PAUSE", 0.2, within="sender")
    patch("SETTLE_SECONDS", 0.3, within="sender")
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def configured(voight_calls: Any, server: EventServer) -> Callable[..., Path]:
    """Configures this process to send to the server; answers the folder of the journal."""

    def configure(**values: Any) -> Path:
        given: dict[str, Any] = {"voight_api_key": "vk_test", "voight_agent": "tests", "events_url": server.url, "events_per_minute": FAST}
        voight.configure(**(given | values))
        return Path(current_meter().settings.journal)

    return configure


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the journals."""
    return tmp_path / "journal"


@pytest.fixture
def sending(server: EventServer, folder: Path, new_call: NewCall) -> Iterator[Sending]:
    """A delivery to the server."""
    made = Sending(server, folder, new_call)
    with closing(made.delivery):
        yield made


@pytest.fixture(autouse=True)
def no_block_left() -> Iterator[None]:
    """A generator that is closed elsewhere, or before one that began later, leaves its closed block behind in this context."""
    yield
    current_request.set(None)
