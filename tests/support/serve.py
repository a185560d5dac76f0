"""Serve ASGI applications from threads of the tests' own process."""

import threading
import time
from typing import Any


class Serve:
    """Serves ASGI applications with a real uvicorn, each in a thread of this process, on a free port."""

    def __init__(self) -> None:
        self._servers: list[tuple[Any, threading.Thread]] = []

    def __call__(self, app: Any, http: Any = "auto") -> str:
        """Start *app*; answers its URL."""
        import uvicorn

        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", http=http, ws="websockets-sansio"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "uvicorn did not start"
            time.sleep(0.005)
        self._servers.append((server, thread))
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        """Shut all of them down, gracefully."""
        while self._servers:
            server, thread = self._servers.pop()
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive(), "uvicorn did not stop"
