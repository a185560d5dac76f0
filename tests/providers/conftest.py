"""Fixtures of the provider tests: the calls that a test made, and a provider that answers from memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from voight_middleware.call import Call
from voight_middleware.meter import Meter, swap_meter
from voight_middleware.providers import gate, sdk
from voight_middleware.settings import Settings

from .provider import Provider


class Calls:
    """The finished calls of one test, as its listener heard them: through journal, ingester, price book and ledger."""

    def __init__(self, folder: Path) -> None:
        self.heard: list[Call] = []
        settings = Settings.from_environment(ledger=folder / "ledger.db", environ={})
        self.meter = Meter(settings, [self.heard.append])
        self.faults_expected = False

    def all(self) -> list[Call]:
        """Every call so far, in the order in which they began."""
        assert self.meter.flush(30), "the calls did not reach the ledger"
        return sorted(self.heard, key=lambda call: call.occurred_at)

    def one(self) -> Call:
        """The only call."""
        calls = self.all()
        assert len(calls) == 1, f"expected one call, found {calls}"
        return calls[0]

    @property
    def faults(self) -> int:
        """How often something of ours failed inside."""
        return self.meter.counters["internal_errors"]


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Calls]:
    """Collects the calls of a test; afterwards nothing is metered any more, and nothing of ours has failed that was not made to."""
    taken = Calls(tmp_path)
    outer = swap_meter(taken.meter)
    yield taken
    gate.uninstrument()
    sdk._refusing_usage.clear()
    swap_meter(outer)
    taken.meter.close()
    assert taken.faults == 0 or taken.faults_expected, "something of ours failed inside"


@pytest.fixture
def provider() -> Provider:
    """A provider that answers from memory."""
    return Provider()
