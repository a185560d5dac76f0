"""A machine on which nothing is configured but a ledger's place, and calls by hand in it."""

import json
import os
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.cli import main
from voight_middleware.ledger import open_ledger
from voight_middleware.records.call import Call, new_call_id
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

from .kept_calls import HALF, USD

OWNER = ("plan", "tenant_id", "route", "release", "session_id", "extra")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the ledger is; there is none yet."""
    for name in [name for name in os.environ if name.startswith(("VOIGHT_", "STRIPE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("VOIGHT_LEDGER", str(tmp_path / "ledger.db"))
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(place: Path) -> Path:
    """Where the ledger is; there is none yet."""
    return place


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    """A file of one's own prices."""
    path = tmp_path / "prices.toml"
    path.write_text(HALF)
    return path


@pytest.fixture
def add(place: Path) -> Callable[..., None]:
    """Adds calls: of a user, at a cost in US dollars, at a time in UTC."""
    with closing(open_ledger(str(place))):
        pass

    def add(user: str | None, cost: float | None = 1, at: str = "2026-11-10T12:00", times: int = 1, **values: Any) -> None:
        owner = {name: values.pop(name) for name in OWNER if name in values}
        usage = Usage(input=values.pop("input", 100), cache_read=values.pop("cached", None), output=values.pop("output", 10))
        fixed: dict[str, Any] = {"provider": "openai", "endpoint": "chat", "model": "m", "attribution": "none" if user is None else "tag"}
        calls = [
            Call(
                **{**fixed, **values},
                call_id=new_call_id(),
                occurred_at=int(datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()) * 1_000_000,
                cost_status="unpriced" if cost is None else "priced",
                tags=Tags(user_id=user, **owner),
                usage=usage,
                cost_femto=None if cost is None else round(cost * USD),
            )
            for _ in range(times)
        ]
        with closing(open_ledger(str(place))) as ledger:
            ledger.insert(calls)

    return add


@pytest.fixture
def voight(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command that must succeed: what it printed, as JSON where that was asked for."""

    def voight(*arguments: str) -> Any:
        assert main(arguments) == 0, capsys.readouterr().err
        out = capsys.readouterr().out
        return json.loads(out) if "json" in arguments else out

    return voight
