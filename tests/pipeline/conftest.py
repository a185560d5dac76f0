"""Servers that can be down, and meters whose ledger is on them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import voight_middleware.cli.doctor  # noqa: F401 - what binds `open_ledger` by a later import would keep the replaced one
from voight_middleware.config.settings import Settings
from voight_middleware.pipeline.meter import Meter
from voight_middleware.records.call import Call

from ..support.patching import Patch
from .switched_server import Server


@pytest.fixture
def server(tmp_path: Path, patch: Patch) -> Iterator[Server]:
    """The server that every ledger of this process is on."""
    one = Server(tmp_path / "ledger.db")
    patch("open_ledger", one.open)
    yield one
    one.going.set()


@pytest.fixture
def make_meter(tmp_path: Path) -> Iterator[Callable[..., Meter]]:
    """Makes meters on one journal, which are closed behind the test."""
    made: list[Meter] = []

    def make(*listeners: Callable[[Call], None], **values: Any) -> Meter:
        values = {"ledger": "postgresql://u:hunter2@h/d", "journal": tmp_path / "journal"} | values
        made.append(Meter(Settings.from_environment(**values, environ={"HOME": str(tmp_path)}), listeners))
        return made[-1]

    yield make
    for meter in made:
        meter.close(0.2)


@pytest.fixture
def hurried(patch: Patch) -> None:
    """Rounds every 10 ms, and pauses of 50 to 400 ms in the place of 1 to 30 seconds."""
    patch("INTERVAL", 0.01, within="worker")
    patch("FIRST_PAUSE", 0.05, within="supervisor")
    patch("MAX_PAUSE", 0.4, within="supervisor")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the journals."""
    return tmp_path / "journal"
