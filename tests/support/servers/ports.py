"""Ports of this machine for the servers of the tests."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """
    A free port on the loopback interface, which a server can be restarted on.

    It is below those that systems hand out to connections: while the server is down, nothing else gets it, and a client that dials
    it cannot be given the very port that it dials, and so reach itself.
    """
    while True:
        port = random.randint(15000, 30000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
