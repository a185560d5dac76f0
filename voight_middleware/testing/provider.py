"""
The loopback provider: an HTTP server for tests and demos, with the wire formats of OpenAI,
Anthropic and Google.

It serves the billed endpoints and those that belong to them, whole or streamed as the provider
does. It keeps its own counts of the reported usage. Under ``/v1``:

======================= ============================================================================
``chat/completions``    and the legacy ``completions``
``responses``           also with ``background``: queued, in progress at the first poll, then
                        completed. ``GET`` and ``cancel``; ``compact``, ``input_tokens``. The tools
                        ``web_search`` and ``image_generation`` yield ``tool_usage``
``embeddings``          and ``decisions``, ``moderations``, ``models``
``images/…``            ``generations``, ``edits``, ``variations``. DALL·E reports no usage; an
                        ``svg`` has a separate usage
``audio/…``             ``transcriptions`` with tokens, or seconds for ``whisper-1``;
                        ``translations``, ``speech``
``videos``              in progress at the first poll; ``remix``, ``edits``, ``extensions``. Billed
                        by the second, without usage
``threads/…``           with ``assistants``, ``messages`` and ``runs``: in progress at the first
                        poll, or streamed
``files``, ``batches``  completed at the first poll. Each line is a separate request, with the
                        faults in its prompt
``messages``            and ``messages/count_tokens``
``messages/batches``    ended at the first poll, with ``results``
======================= ============================================================================

Under ``/v1beta`` or ``/v1``, it serves ``models/{model}:generateContent``,
``:streamGenerateContent`` as events (``?alt=sse``) or as an array, and ``:countTokens``. With the
``websockets`` package, it serves these WebSockets:

======================= ============================================================================
``realtime``            speech is transcribed at ``input_audio_buffer.commit``
``responses``           the events of a streamed response
``live/sessions``       every ``session.input_audio.append`` gets an event with the seconds so far
======================= ============================================================================

The last 10,000 stored objects of requests can be retrieved until ``reset()``. Work that is shown
more than once is counted once, for the first user who asked for it. A request asks for a fault with
a header, through the SDKs' ``extra_headers``:

=============================== ====================================================================
``x-loopback-status: 429``      an error with this status. With ``x-loopback-status-times: N``, only
                                the first N requests with the same ``x-loopback-key`` fail
``x-loopback-delay-ms``         wait before the response
``x-loopback-chunk-delay-ms``   wait before each event
``x-loopback-chunks: N``        stream the text in N pieces (12)
``x-loopback-cut-after: N``     close the socket after N events (on a WebSocket, of all its events).
                                Close it in the middle of a response that is not streamed
``x-loopback-end-after: N``     end the stream cleanly after N events
``x-loopback-no-usage: 1``      report no usage
``x-loopback-usage: {…}``       report this usage
``x-loopback-polls: N``         N polls see a background job unfinished
``x-loopback-result: expired``  or ``canceled``; in the prompt of a request of a message batch
``x-loopback-encoding: gzip``   compress the response
``x-loopback-reject: NAME``     refuse the request if it has this parameter, like a server that does
                                not know ``stream_options``
=============================== ====================================================================

If an application does not pass headers on, put the same into the prompt, in brackets:
``[x-loopback-status: 500]``.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import time
from typing import Any, Self

from voight_middleware.testing.accounting import Accounting, Count, Counts
from voight_middleware.testing.store import Store

try:
    import uvicorn

    from voight_middleware.testing.server import application
except ImportError as error:
    raise ImportError(
        "the loopback provider needs starlette and uvicorn: pip install "
        "'voight-middleware[testing]'"
    ) from error

__all__ = ["Count", "Counts", "LoopbackProvider"]

_START_SECONDS = 10.0


class LoopbackProvider:
    """
    The loopback provider in a background thread, on a free port of 127.0.0.1::

        with LoopbackProvider() as provider:
            client = OpenAI(base_url=provider.openai_base_url, api_key="any")
    """

    def __init__(self, port: int = 0) -> None:
        self._accounting, self._store = Accounting(), Store()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        """The server's URL, without a path."""
        self._server = uvicorn.Server(
            uvicorn.Config(
                application(self._accounting, self._store),
                lifespan="off",
                ws="auto",  # with the websockets package, if it is installed
                log_config=None,
                log_level="critical",
                access_log=False,
                timeout_keep_alive=300,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="loopback-provider", daemon=True
        )

    @property
    def openai_base_url(self) -> str:
        """For ``OpenAI(base_url=…)``, or ``OPENAI_BASE_URL``."""
        return f"{self.url}/v1"

    @property
    def anthropic_base_url(self) -> str:
        """For ``Anthropic(base_url=…)``, or ``ANTHROPIC_BASE_URL``."""
        return self.url

    @property
    def requests(self) -> list[Any]:
        """The bodies of the last 1000 requests, the oldest first."""
        return self._accounting.requests

    def counts(self) -> Counts:
        """Return the counts so far."""
        return self._accounting.counts()

    def reset(self) -> None:
        """Clear all counts, requests and stored objects."""
        self._accounting.reset()
        self._store.clear()

    def start(self) -> None:
        """
        Start the server.

        Raises:
            RuntimeError: The server did not start within ten seconds.
        """
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError("the loopback provider did not start")
            time.sleep(0.005)

    def stop(self) -> None:
        """Stop the server. Running streams are cut."""
        self._server.should_exit = True
        self._thread.join(_START_SECONDS)
        self._socket.close()

    def serve(self) -> None:
        """Serve in this thread until the process is interrupted."""
        self._server.run([self._socket])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def main() -> None:
    """``python -m voight_middleware.testing.provider --port 8099``."""
    parser = argparse.ArgumentParser(
        description="A server that speaks the wire formats of OpenAI, Anthropic and Google."
    )
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    provider = LoopbackProvider(parser.parse_args().port)
    sys.stdout.write(
        f"export OPENAI_BASE_URL={provider.openai_base_url} OPENAI_API_KEY=loopback\n"
        f"export ANTHROPIC_BASE_URL={provider.anthropic_base_url} ANTHROPIC_API_KEY=loopback\n"
        f"# its counts: {provider.url}/_loopback/counts\n"
    )
    sys.stdout.flush()
    provider.serve()


if __name__ == "__main__":
    main()
