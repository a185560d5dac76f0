"""The pytest plugin: what a test has caused, and a provider that answers without an API key."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from voight_middleware.call import Call
from voight_middleware.meter import Meter, swap_meter
from voight_middleware.settings import Settings

if TYPE_CHECKING:
    from voight_middleware.testing.provider import LoopbackProvider


class VoightCalls:
    """
    The calls of one test, as they are in its own ledger: finished, priced, and settled. Reading waits until all that were made are there.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.ledger = meter.settings.ledger
        """The URL of this test's ledger."""

    def all(self) -> list[Call]:
        """Every call, the oldest first."""
        from voight_middleware.ledger import open_ledger

        assert self._meter.flush(30), "the calls of this test did not reach its ledger"
        ledger = open_ledger(self.ledger)
        try:
            return list(ledger.calls())
        finally:
            ledger.close()

    def one(self) -> Call:
        """The only call; fails where there is another number of them."""
        calls = self.all()
        assert len(calls) == 1, f"expected one call, found {len(calls)}"
        return calls[0]

    def by_user(self, user_id: str | None) -> list[Call]:
        """The calls of one user; None for those that nobody owns."""
        return [call for call in self.all() if call.tags.user_id == user_id]

    def cost_usd(self) -> Decimal:
        """What all priced calls cost together, in US dollars."""
        return sum((call.cost_usd for call in self.all() if call.cost_usd is not None), Decimal(0))

    def __iter__(self) -> Iterator[Call]:
        return iter(self.all())

    def __len__(self) -> int:
        return len(self.all())

    def __getitem__(self, index: int) -> Call:
        return self.all()[index]


@pytest.fixture
def voight_calls(tmp_path: Path) -> Iterator[VoightCalls]:
    """The calls that this test makes, kept apart from every other test's and from the real ledger."""
    meter = Meter(Settings.from_environment(ledger=tmp_path / "voight" / "ledger.db", enabled=True, environ={}))
    outer = swap_meter(meter)
    try:
        yield VoightCalls(meter)
    finally:
        swap_meter(outer)
        meter.close()


@pytest.fixture(scope="session")
def voight_provider() -> Iterator[LoopbackProvider]:
    """A provider on loopback that answers the openai and anthropic SDKs."""
    from voight_middleware.testing.provider import LoopbackProvider

    with LoopbackProvider() as provider:
        yield provider
