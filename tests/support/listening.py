"""Ask whether a server that was started has begun to listen."""

import socket


def listens(port: int) -> bool:
    """Return whether somebody listens on *port* of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
