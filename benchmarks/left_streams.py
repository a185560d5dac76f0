"""
Whether streams that clients leave at random moments are all in the ledger, each with its owner: a
thousand per framework and server.

    python benchmarks/left_streams.py --streams 1000

Each application of ``tests/apps/load_*.py`` is started as a deployment would start it. The provider
streams for two seconds. Each visitor leaves after a random number of pieces, or before the first.
As soon as the last one has left, the server gets SIGTERM. The exit status is 1 if a user has fewer
calls in the ledger than the provider has begun to answer, or more, or if the server does not end by
itself.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path

import owners

_UVICORN = f"{sys.executable} -m uvicorn {{app}} --port {{port}} --log-level critical"
owners.SERVERS |= {
    "uvicorn asyncio": f"{_UVICORN} --loop asyncio",
    "uvicorn uvloop": f"{_UVICORN} --loop uvloop",
    "gunicorn asgi": owners.SERVERS["asgi"],
    "gunicorn gthread": owners.SERVERS["gthread"],
    "gunicorn gevent": owners.SERVERS["gevent"],
}
_LOOPS = ("uvicorn asyncio", "uvicorn uvloop", "gunicorn asgi")
RUNS = [
    *(
        (f"starlette{kind}", "load_starlette:app", server, kind)
        for kind in ("", ", BaseHTTPMiddleware")
        for server in _LOOPS
    ),
    *(("fastapi", "load_fastapi:app", server, "") for server in _LOOPS),
    *(("django", "load_django:asgi_application", server, "") for server in _LOOPS[:2]),
    ("django", "load_django:application", "gunicorn gthread", ""),
    ("flask", "load_flask:app", "gunicorn gthread", ""),
    ("flask", "load_flask:app", "gunicorn gevent", ""),
]
USERS = 50
AT_ONCE = 25
PIECES, PAUSE = 100, 0.02
_DELTA = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"o"}}'


class Provider(owners.Provider):
    """Streams an answer piece by piece, for two seconds, or until it is left."""

    def _answer(self, message: bool, body: bytes) -> None:
        asked = re.search(rb"question (\d+)", body)
        assert asked is not None
        self._answered[int(asked[1])] += 1
        identity = b"%d-1" % int(asked[1])
        first, last = (
            part.replace(b"%b", identity)
            for part in (owners._MESSAGE_STREAM if message else owners._CHAT_STREAM)
        )
        piece = owners._events(_DELTA) if message else first
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: "
            b"chunked\r\n\r\n" + owners._chunk(first)
        )
        self._go_on(piece, last, PIECES)

    def _go_on(self, piece: bytes, last: bytes, left: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(owners._chunk(piece) if left else owners._chunk(last) + b"0\r\n\r\n")
        if left:
            asyncio.get_running_loop().call_later(PAUSE, self._go_on, piece, last, left - 1)


async def leave(port: int, number: int, after: int) -> None:
    """Ask for a stream, and leave after so many parts of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    user = owners.user_of(number, USERS)
    who = "" if user is None else f"x-user: {user}\r\nx-plan: {owners.plan_of(user)}\r\n"
    writer.write(
        f"GET /{1 + 2 * (number % 2)} HTTP/1.1\r\nhost: 127.0.0.1\r\n{who}x-request: {number}\r\n\r\n".encode()  # noqa: E501
    )
    with contextlib.suppress(EOFError, OSError):
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(after):
            await reader.readuntil(b".")
    writer.close()


async def run(name: str, app: str, server: str, kind: str, streams: int, folder: Path) -> bool:
    """One application under one server; print its line, and return whether every call is there."""
    answered: collections.Counter[int] = collections.Counter()
    provider = await asyncio.get_running_loop().create_server(
        lambda: Provider(answered), "127.0.0.1", 0
    )
    url = f"http://127.0.0.1:{provider.sockets[0].getsockname()[1]}"
    environment = {
        "PROVIDER_OPENAI": f"{url}/v1",
        "PROVIDER_ANTHROPIC": url,
        "LOAD_MIDDLEWARE": "http" if kind else "",
    }
    started = owners.Server(app, server, folder, environment)
    chance, waiting = random.Random(7), iter(range(streams))

    async def visitor() -> None:
        for number in waiting:
            await leave(started.port, number, chance.randrange(20))

    try:
        await asyncio.to_thread(started.wait)
        began = time.perf_counter()
        await asyncio.gather(*(visitor() for _ in range(AT_ONCE)))
        left = time.perf_counter()
        calls = await asyncio.to_thread(started.calls)
        ended = time.perf_counter()
    finally:
        started.kill()
        provider.close()
    asked = collections.Counter(owners.user_of(number, USERS) for number in answered.elements())
    found = collections.Counter(call.tags.user_id for call in calls)
    outcomes = dict(collections.Counter(call.outcome for call in calls))
    # Who leaves at once may leave before the request is at the provider: a call that got no answer,
    # and has no cost.
    unanswered = collections.Counter(
        call.tags.user_id for call in calls if call.http_status is None and call.usage is None
    )
    missing, strange = (asked - found).total(), (found - asked - unanswered).total()
    figures = {
        "streams": streams,
        "answered": asked.total(),
        "calls": len(calls),
        "missing": missing,
        "too many": strange,
        "outcomes": outcomes,
    }
    seconds = {"seconds": round(left - began, 1), "to the end": round(ended - left, 1)}
    print(
        f"{name:31s} {server:16s} "
        + "  ".join(f"{key} {figure}" for key, figure in (figures | seconds).items()),
        flush=True,
    )
    return not missing and not strange


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--only", default="", help="a word of the application or the server")
    options = parser.parse_args()
    clean = True
    for name, app, server, kind in RUNS:
        if options.only in f"{name} {server}":
            with tempfile.TemporaryDirectory() as folder:
                clean &= asyncio.run(run(name, app, server, kind, options.streams, Path(folder)))
    return 0 if clean else 1


if __name__ == "__main__":
    os.environ.pop("VOIGHT_LEDGER", None)
    sys.exit(main())
