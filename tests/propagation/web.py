"""What the columns of the web frameworks share."""

from __future__ import annotations

import socket
from typing import Any

from ..support.servers.ports import free_port


def serve(workers: Any, provider: Any, command: str, **environ: str) -> int:
    """Start a server on the ``{port}`` of *command*, and answer the port once it listens; it only writes its calls down."""
    port = free_port()
    environ |= {"PROVIDER_OPENAI": provider.openai_base_url, "VOIGHT_INGEST": "0"}
    workers.start(*command.format(port=port).split(), **environ)
    workers.wait_until(lambda: _listens(port))
    return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
