"""The calls of a test. The fixtures of ``voight_pytest`` import this only when a test uses them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import overload

import pytest

from voight_middleware.config.settings import Settings
from voight_middleware.pipeline.configure import flush
from voight_middleware.pipeline.meter import Meter, swap_meter
from voight_middleware.records.call import Call


class VoightCalls:
    """
    The calls of one test, in its own ledger: finished, priced and attributed. Reading waits until
    all calls of the test are in the ledger.
    """

    def __init__(self, ledger: str) -> None:
        self.ledger = ledger
        """The URL of this test's ledger."""

    def all(self) -> list[Call]:
        """Return all calls, the oldest first."""
        from voight_middleware.ledger import open_ledger

        assert flush(30), "the calls of this test did not reach its ledger"
        ledger = open_ledger(self.ledger)
        try:
            return list(ledger.calls())
        finally:
            ledger.close()

    def one(self) -> Call:
        """Return the only call. Fail if there is not exactly one."""
        calls = self.all()
        assert len(calls) == 1, f"expected one call, found {len(calls)}"
        return calls[0]

    def by_user(self, user_id: str | None) -> list[Call]:
        """Return the calls of one user; None for calls without an owner."""
        return [call for call in self.all() if call.tags.user_id == user_id]

    def cost_usd(self) -> Decimal:
        """Return the total cost of the priced calls, in US dollars."""
        return sum((call.cost_usd for call in self.all() if call.cost_usd is not None), Decimal(0))

    def __iter__(self) -> Iterator[Call]:
        return iter(self.all())

    def __len__(self) -> int:
        return len(self.all())

    @overload
    def __getitem__(self, index: int) -> Call: ...
    @overload
    def __getitem__(self, index: slice) -> list[Call]: ...
    def __getitem__(self, index: int | slice) -> Call | list[Call]:
        return self.all()[index]


@contextmanager
def calls_of_a_test(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[VoightCalls]:
    """Separate the calls made in the block from those of other tests, and from the real ledger."""
    # In the environment too, for `voight.configure()` inside the test, and for child processes.
    monkeypatch.setenv("VOIGHT_LEDGER", str(folder / "voight" / "ledger.db"))
    monkeypatch.setenv("VOIGHT_CONFIG", "none")  # a settings file may name the real journal
    monkeypatch.delenv("VOIGHT_JOURNAL", raising=False)
    monkeypatch.delenv("VOIGHT_ENABLED", raising=False)
    monkeypatch.delenv("VOIGHT_KEY", raising=False)  # tests must not send events to Voight
    outer = swap_meter(None)
    try:
        settings = Settings.from_environment(
            release=outer.settings.release if outer is not None else None
        )
        swap_meter(Meter(settings))
        yield VoightCalls(settings.ledger)
    finally:
        inner = swap_meter(outer)
        if inner is not None:
            inner.close()
