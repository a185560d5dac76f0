"""A small ledger by hand, for reports whose every figure a test works out."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.ledger import Ledger, open_ledger
from voight_middleware.records.call import Call, new_call_id
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

USD = 10**15
OWNER = ("plan", "tenant_id", "route", "release", "session_id", "extra")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    with closing(open_ledger(str(tmp_path / "ledger.db"))) as opened:
        yield opened


@pytest.fixture
def add(ledger: Ledger) -> Callable[..., None]:
    """Adds calls: of a user, at a time in UTC, at a cost in US dollars, of some tokens in, cached and out."""

    def add(user: str | None, cost: float | None = 1, at: str = "2026-11-10T12:00", times: int = 1, **values: Any) -> None:
        owner = {name: values.pop(name) for name in OWNER if name in values}
        tokens = [values.pop(name, default) for name, default in (("input", 100), ("cached", None), ("output", 10))]
        for _ in range(times):
            call = Call(
                **{
                    "call_id": new_call_id(),
                    "occurred_at": int(datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()) * 1_000_000,
                    "provider": "openai",
                    "endpoint": "chat",
                    "model": "m",
                    "attribution": "none" if user is None else "tag",
                    "cost_status": "unpriced" if cost is None else "priced",
                    **values,
                },
                tags=Tags(user_id=user, **owner),
                usage=None if tokens[0] is None else Usage(input=tokens[0], cache_read=tokens[1], output=tokens[2]),
                cost_femto=None if cost is None else round(cost * USD),
            )
            ledger.insert([call])

    return add
