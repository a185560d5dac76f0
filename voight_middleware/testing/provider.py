"""
The loopback provider: a real HTTP server that speaks the wire formats of OpenAI, Anthropic and Google, for tests and demonstrations.

It answers what is billed, and what belongs to it, whole or streamed as the provider does, and keeps its own count of what it has
reported. Under ``/v1``:

======================= ========================================================================================================
``chat/completions``    and the legacy ``completions``
``responses``           also with ``background``: queued, in progress at the first poll, then completed; ``GET`` of one, its
                        ``cancel``; ``compact``, ``input_tokens``. The tools ``web_search`` and ``image_generation`` yield
                        ``tool_usage``
``embeddings``          and ``decisions``, ``moderations``, ``models``
``images/…``            ``generations``, ``edits``, ``variations``. DALL·E reports no usage; an ``svg`` has one of its own
``audio/…``             ``transcriptions`` with tokens, or seconds for ``whisper-1``, ``translations``, ``speech``
``videos``              in progress at the first poll; ``remix``, ``edits``, ``extensions``. Billed by the second: no usage
``threads/…``           with ``assistants``, ``messages`` and ``runs``: in progress at the first poll, or streamed
``files``, ``batches``  completed at the first poll. Each line is answered as a request of its own, with the faults in its prompt
``messages``            and ``messages/count_tokens``
``messages/batches``    ended at the first poll, with ``results``
======================= ========================================================================================================

and, under ``/v1beta`` or ``/v1``, ``models/{model}:generateContent``, ``:streamGenerateContent`` as events (``?alt=sse``) or as an
array, and ``:countTokens``; and, where the ``websockets`` package is installed, WebSockets:

======================= ========================================================================================================
``realtime``            what was said is written down at ``input_audio_buffer.commit``
``responses``           the events of a streamed response
``live/sessions``       every ``session.input_audio.append`` is answered, with the seconds so far
======================= ========================================================================================================

What a request leaves behind can be asked for until ``reset()``, the last 10,000 things. What is shown more than once is counted once,
for the user who asked for it first. A request asks for a fault with a header, through the SDKs' ``extra_headers``:

=============================== ================================================================================================
``x-loopback-status: 429``      an error of this status; with ``x-loopback-status-times: N`` only for the first N requests that
                                have the same ``x-loopback-key``
``x-loopback-delay-ms``         wait before the answer
``x-loopback-chunk-delay-ms``   wait before each event
``x-loopback-chunks: N``        stream the text in N pieces (12)
``x-loopback-cut-after: N``     close the socket after N events (of all that come over a WebSocket); in the middle of an answer that
                                is not streamed
``x-loopback-end-after: N``     end the stream cleanly after N events
``x-loopback-no-usage: 1``      report no usage
``x-loopback-usage: {…}``       report this usage
``x-loopback-polls: N``         of what goes on in the background: N polls see it unfinished
``x-loopback-result: expired``  or ``canceled``; in the prompt of a request of a message batch
``x-loopback-encoding: gzip``   compress the answer
``x-loopback-reject: NAME``     refuse the request if it has this parameter, as servers do that do not know ``stream_options``
=============================== ================================================================================================

An application that does not pass headers on can be given the same in the prompt, in brackets: ``[x-loopback-status: 500]``.
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
    raise ImportError("the loopback provider needs starlette and uvicorn: pip install 'voight-middleware[testing]'") from error

__all__ = ["Count", "Counts", "LoopbackProvider"]

_START_SECONDS = 10.0


class LoopbackProvider:
    """
    The loopback provider in a background thread, on a free port of 127.0.0.1::

        with LoopbackProvider() as provider:
            client = OpenAI(base_url=provider.openai_base_url, api_key="any")
    """

    def __init__(self, port: int = 0) -> None:
        self._books, self._store = Accounting(), Store()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        """Without a path."""
        self._server = uvicorn.Server(
            uvicorn.Config(
                application(self._books, self._store),
                lifespan="off",
                ws="auto",  # with the websockets package, if it is there
                log_config=None,
                log_level="critical",
                access_log=False,
                timeout_keep_alive=300,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="loopback-provider", daemon=True)

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
        return self._books.requests

    def counts(self) -> Counts:
        """What was counted so far."""
        return self._books.counts()

    def reset(self) -> None:
        """Forget what was counted, received and kept."""
        self._books.reset()
        self._store.forget()

    def start(self) -> None:
        """
        Start to answer.

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
        """Stop to answer; streams that are still running are cut."""
        self._server.should_exit = True
        self._thread.join(_START_SECONDS)
        self._socket.close()

    def serve(self) -> None:
        """Answer in this thread until the process is interrupted."""
        self._server.run([self._socket])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def main() -> None:
    """``python -m voight_middleware.testing.provider --port 8099``."""
    parser = argparse.ArgumentParser(description="A server that speaks the wire formats of OpenAI, Anthropic and Google.")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    provider = LoopbackProvider(parser.parse_args().port)
    sys.stdout.write(
        f"export OPENAI_BASE_URL={provider.openai_base_url} OPENAI_API_KEY=loopback\n"
        f"export ANTHROPIC_BASE_URL={provider.anthropic_base_url} ANTHROPIC_API_KEY=loopback\n"
        f"# what it counted: {provider.url}/_loopback/counts\n"
    )
    sys.stdout.flush()
    provider.serve()


if __name__ == "__main__":
    main()
