"""The URL of a ledger that a test begins with: of no ledger yet, or of one that is empty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ENGINES = ["sqlite", *(pytest.param(name, marks=pytest.mark.server) for name in ("postgres", "clickhouse", "clickhouse-server"))]
"""Parameters of a fixture: each engine that a ledger can be in. ``clickhouse`` is the bridge, and the last one a real server."""


def require_driver(engine: str) -> None:
    """Skip the test if the driver of *engine* is not installed."""
    driver = {"postgres": "psycopg", "clickhouse": "clickhouse_connect", "clickhouse-server": "clickhouse_connect"}.get(engine)
    if driver is not None:
        pytest.importorskip(driver)


def empty_ledger(request: pytest.FixtureRequest, engine: str, folder: Path) -> str:
    """Return the URL of a ledger without calls: in *folder*, or that which the running server keeps for this."""
    require_driver(engine)
    if engine == "sqlite":
        return f"sqlite:///{_copied(request.config, folder / 'ledger.db')}"
    if engine == "clickhouse-server":
        return str(request.getfixturevalue("clickhouse_server_url"))
    server: Any = request.getfixturevalue("postgres_server" if engine == "postgres" else "clickhouse_bridge")
    return str(server.empty_ledger())


_made = pytest.StashKey[bytes]()


def _copied(config: pytest.Config, path: Path) -> Path:
    """Put an empty ledger at *path*, which the first one is made for, and the others are copies of."""
    from contextlib import closing

    from voight_middleware.ledger import open_ledger

    if _made not in config.stash:
        with closing(open_ledger(str(path))):
            pass
        config.stash[_made] = path.read_bytes()
        return path
    path.touch(0o600)
    path.write_bytes(config.stash[_made])
    return path
