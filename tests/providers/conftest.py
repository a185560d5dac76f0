"""Fixtures of the provider tests: the calls that a test made, and a provider that answers from memory."""

import gc
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.instrumentation import sdk, wrap
from voight_middleware.pipeline import open_calls
from voight_middleware.pipeline.meter import swap_meter
from voight_middleware.testing.provider import LoopbackProvider

from ..support.calls import Calls
from ..support.memory_provider import Provider

platform.platform()  # The SDKs ask for it at their first request, and that starts a process (`uname -p`), once.


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Leave what was there before out of garbage collections: with the SDKs imported, each takes half a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@contextmanager
def _collecting(taken: Calls) -> Iterator[Calls]:
    outer = swap_meter(taken.meter)
    try:
        yield taken
    finally:
        open_calls.end_all()  # what the test has left open is its own, and no other test's
        wrap.uninstrument()
        sdk._refusing_usage.clear()
        swap_meter(outer)


def _nothing_failed(taken: Calls) -> None:
    assert taken.faults == 0 or taken.faults_expected, "something of ours failed inside"


@pytest.fixture(scope="module")
def _shared_calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Calls]]:
    """The meter and ledger that the tests of a file share, as making them takes longer than most of the tests."""
    made: list[Calls] = []

    def clean() -> Calls:
        if made and not made[-1].forget():
            made.pop().meter.close()
        if not made:
            made.append(Calls(tmp_path_factory.mktemp("calls")))
        return made[-1]

    yield clean
    for one in made:
        one.meter.close()


@pytest.fixture
def calls(_shared_calls: Callable[[], Calls]) -> Iterator[Calls]:
    """Collects the calls of a test; afterwards nothing is metered any more, and nothing of ours has failed that was not made to."""
    with _collecting(_shared_calls()) as taken:
        yield taken
    _nothing_failed(taken)


@pytest.fixture
def own_calls(tmp_path: Path) -> Iterator[Calls]:
    """The same with a meter and a ledger that no other test uses."""
    with _collecting(Calls(tmp_path)) as taken:
        yield taken
    taken.meter.close()
    _nothing_failed(taken)


@pytest.fixture
def provider() -> Provider:
    """A provider that answers from memory."""
    return Provider()


@pytest.fixture(scope="module")
def loopback() -> Iterator[LoopbackProvider]:
    """A provider on a port of its own."""
    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture
def server() -> Iterator[Any]:
    """A WebSocket server that answers as the APIs of OpenAI do."""
    from .sockets import Server

    running = Server()
    yield running
    running.stop()
