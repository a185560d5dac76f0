"""The finished calls of one test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from voight_middleware.config.settings import Settings
from voight_middleware.diagnostics import counters
from voight_middleware.pipeline.meter import Meter
from voight_middleware.records.call import is_new_call_id

if TYPE_CHECKING:
    from pathlib import Path

    from voight_middleware.records.call import Call


class Calls:
    """The finished calls of one test, as its listener heard them: through journal, ingester, price book and ledger."""

    def __init__(self, folder: Path) -> None:
        self.heard: list[Call] = []
        settings = Settings.from_environment(ledger=folder / "ledger.db", environ={})
        self._settings = settings
        self.meter = Meter(settings, [self.heard.append])
        self.faults_expected = False
        self._written = 0

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
        return counters["internal_errors"]

    def forget(self) -> bool:
        """
        Begin again for another test, with the same meter and ledger; whether that can be done.

        It can where the test has left nothing but plain calls. What else it may leave, another test could meet: jobs, and who has
        submitted them; ids that were chosen; what was counted; settings of its own.
        """
        if self.faults_expected or self.meter.settings is not self._settings or not self.meter.flush(30):
            return False
        plain = not any(counters.values()) and all(call.job is None and is_new_call_id(call.call_id) for call in self.heard)
        if not plain or self.meter.journal.written - self._written != len(self.heard):
            return False
        self._written = self.meter.journal.written
        counters.clear()
        self.heard.clear()
        return True
