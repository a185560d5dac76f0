"""The finished calls of one test."""

from pathlib import Path

from voight_middleware.call import Call
from voight_middleware.meter import Meter
from voight_middleware.settings import Settings


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
