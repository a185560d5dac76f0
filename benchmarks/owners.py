"""
Whether every call has the right owner, under load: 500 users and anonymous visitors at once, per
framework and server.

    python benchmarks/owners.py --apps starlette,flask --servers uvicorn,gthread --requests 100000

Each application of ``tests/apps/load_*.py`` is started as a deployment would start it. One loop in
this process is the visitors and the provider: connections are kept alive and pass from user to
user, a tenth of them pipelines, and some visitors leave in the middle of a stream. The provider
writes the number of the question into the id of its answer, so that every row of the ledger tells
whose question it was. The exit status is 1 where a single row has another owner, or is missing, or
is there twice.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.ingest import drain
from voight_middleware.records.call import Call

APPS = Path(__file__).parents[1] / "tests" / "apps"
PLANS = ("free", "pro", "team")
CONNECTIONS = 100

_PYTHON = sys.executable
_UVICORN = (
    f"{_PYTHON} -m uvicorn {{app}} --workers 2 --port {{port}} --log-level critical "
    "--timeout-keep-alive 60"
)
_GUNICORN = (
    f"{_PYTHON} -m gunicorn {{app}} -b 127.0.0.1:{{port}} --log-level critical --keep-alive 60"
)
SERVERS = {
    "uvicorn": _UVICORN,
    "hypercorn": (
        f"{_PYTHON} -m hypercorn {{app}} --workers 2 --bind 127.0.0.1:{{port}} --log-level "
        "CRITICAL --keep-alive 60"
    ),
    "asgi": f"{_GUNICORN} -k asgi -w 2",
    "sync": f"{_GUNICORN} -k sync -w 4",
    "gthread": f"{_GUNICORN} -k gthread -w 2 --threads 16",
    "gevent": f"{_GUNICORN} -k gevent -w 2",
}
PIPELINES = {"uvicorn", "hypercorn", "asgi", "gevent"}
"""The others close a connection after a request, or forget what they have read behind it."""
_ASGI = dict.fromkeys(("uvicorn", "hypercorn", "asgi"), "load_{}:app")
COLUMNS: dict[str, dict[str, str]] = {
    "starlette": _ASGI,
    "fastapi": _ASGI,
    # Not under gunicorn's own ASGI worker, where a stream of Litestar's hangs now and then, also
    # without any middleware (2.25, 27.0).
    "litestar": dict.fromkeys(("uvicorn", "hypercorn"), "load_{}:app"),
    "quart": _ASGI,
    "channels": _ASGI,
    "flask": dict.fromkeys(("sync", "gthread", "gevent"), "load_{}:app"),
    "django": {"gthread": "load_{}:application", "uvicorn": "load_{}:asgi_application"},
}


# -- who asks what, as a function of the question's number -----------------------------------------


def user_of(number: int, users: int) -> str | None:
    """Every fifth question is nobody's."""
    user = number * 7919 % (users + users // 4)
    return f"user-{user:03d}" if user < users else None


def plan_of(user: str) -> str:
    """The plan goes with the user."""
    return PLANS[int(user[5:]) % 3]


def path_of(number: int) -> int:
    """Six chats, two messages and a stream of each in ten."""
    return (0, 2, 0, 0, 2, 0, 0, 1, 3, 0)[number % 10]


def leaves(number: int) -> bool:
    """One visitor in fifty leaves in the middle of his stream."""
    return number % 100 in (17, 58)


# -- the provider ----------------------------------------------------------------------------------


class Provider(asyncio.Protocol):
    """As much of both providers as the four endpoints need, and as cheap as it can be."""

    def __init__(self, answered: collections.Counter[int]) -> None:
        self._answered = answered
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            if not end or length is None or len(rest) < int(length[1]):
                return
            body, self._buffer = rest[: int(length[1])], rest[int(length[1]) :]
            self._answer(b"/messages" in head[:40], body)

    def _answer(self, message: bool, body: bytes) -> None:
        asked = re.search(rb"question (\d+)", body)
        number = int(asked[1]) if asked is not None else 0
        self._answered[number] += 1
        identity = b"%d-%d" % (number, self._answered[number])
        if re.search(rb'"stream": ?true', body) is None:
            whole = (_MESSAGE if message else _CHAT) % identity
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(whole), whole)
            )
            return
        begin, end = (
            part.replace(b"%b", identity) for part in (_MESSAGE_STREAM if message else _CHAT_STREAM)
        )
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: "
            b"chunked\r\n\r\n" + _chunk(begin)
        )
        if leaves(number):
            asyncio.get_running_loop().call_later(
                0.2, self._transport.write, _chunk(end) + b"0\r\n\r\n"
            )
        else:
            self._transport.write(_chunk(end) + b"0\r\n\r\n")


def _chunk(part: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(part), part)


def _events(*events: bytes) -> bytes:
    """Server-sent events, of which Anthropic's have a name."""
    named = (
        b"event: %b\n" % kind[1] if (kind := re.match(rb'{"type":"(\w+)"', event)) else b""
        for event in events
    )
    return b"".join(b"%bdata: %b\n\n" % pair for pair in zip(named, events, strict=True))


_COUNT = b'"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}'
_CHAT = (
    b'{"id":"%b","object":"chat.completion","created":1,"model":"gpt-4o-mini","choices":'
    b'[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"ok"}}],' + _COUNT
)
_PIECE = b'{"id":"%b","object":"chat.completion.chunk","created":1,"model":"gpt-5-mini","choices":['
_CHAT_STREAM = (
    _events(
        _PIECE + b'{"index":0,"delta":{"role":"assistant","content":"o"},"finish_reason":null}]}'
    ),
    _events(
        _PIECE + b'{"index":0,"delta":{},"finish_reason":"stop"}]}',
        _PIECE + b"]," + _COUNT,
        b"[DONE]",
    ),
)
_BEGUN = b'{"id":"%b","type":"message","role":"assistant","model":"claude-haiku-4-5","stop_reason":null,"stop_sequence":null,'  # noqa: E501
_USAGE = b'"usage":{"input_tokens":9,"output_tokens":1}}'
_MESSAGE = _BEGUN + b'"content":[{"type":"text","text":"ok"}],' + _USAGE
_MESSAGE_STREAM = (
    _events(
        b'{"type":"message_start","message":' + _BEGUN + b'"content":[],' + _USAGE + b"}",
        b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"o"}}',
    ),
    _events(
        b'{"type":"content_block_stop","index":0}',
        b'{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":1}}',
        b'{"type":"message_stop"}',
    ),
)


# -- the visitors ----------------------------------------------------------------------------------


@dataclass
class Seen:
    """What the visitors have seen."""

    ended: dict[str, int] = field(default_factory=dict)
    """The question of every answer's id that arrived whole."""
    left: int = 0
    failed: collections.Counter[str] = field(default_factory=collections.Counter)


class Visitors:
    """Sends numbered questions over connections that pass from user to user."""

    def __init__(
        self,
        port: int,
        users: int,
        connections: int = CONNECTIONS,
        *,
        pipelines: bool = True,
        leaving: bool = True,
    ) -> None:
        self.port = port
        self.users = users
        self.connections = connections
        self.pipelines = pipelines
        self.leaving = leaving
        self.seen = Seen()

    async def ask(self, numbers: Iterable[int]) -> None:
        """Ask all of these questions."""
        waiting = iter(numbers)
        await asyncio.gather(
            *(
                self._visit(waiting, 3 if self.pipelines and turn % 10 == 0 else 1)
                for turn in range(self.connections)
            )
        )

    async def _visit(self, waiting: Iterator[int], at_once: int) -> None:
        """One connection after another: each is used until it ends."""
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        batch: list[int] = []
        while batch or (batch := list(itertools.islice(waiting, at_once))):
            try:
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", self.port)
                reader, writer = connection
                writer.write(b"".join(map(self._request, batch)))
                while batch and connection is not None:
                    if not await asyncio.wait_for(
                        self._read(reader, batch.pop(0), at_once == 1), 60
                    ):
                        writer.close()
                        connection = None
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                self.seen.failed[type(error).__name__] += 1
                batch.clear()
                if connection is not None:
                    connection[1].close()
                    connection = None
                await asyncio.sleep(0.02)
        if connection is not None:
            connection[1].close()

    def _request(self, number: int) -> bytes:
        user = user_of(number, self.users)
        who = "" if user is None else f"x-user: {user}\r\nx-plan: {plan_of(user)}\r\n"
        return f"GET /{path_of(number)} HTTP/1.1\r\nhost: 127.0.0.1\r\n{who}x-request: {number}\r\n\r\n".encode()  # noqa: E501

    async def _read(self, reader: asyncio.StreamReader, number: int, may_leave: bool) -> bool:
        """One answer; whether the connection can be used again."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = head[9:12].decode()
        length = re.search(rb"content-length: *(\d+)", head)
        if length is not None:
            body = await reader.readexactly(int(length[1]))
        elif b"transfer-encoding: chunked" in head:
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
                if may_leave and self.leaving and leaves(number):
                    self.seen.left += 1
                    return False
            await reader.readexactly(2)
        else:
            body = await reader.read(-1)
        if status == "200":
            self.seen.ended[body.decode().split(" ")[-1]] = number
        else:
            self.seen.failed[status] += 1
        return b"connection: close" not in head and (length is not None or b"chunked" in head)


# -- the server ------------------------------------------------------------------------------------


class Server:
    """A framework's application under a server with several workers, as a deployment starts it."""

    def __init__(self, app: str, server: str, folder: Path, providers: Mapping[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.ledger = f"sqlite:///{folder}/ledger.db"
        self.journal = folder / "ledger.db.journal"
        self.output = folder / "output.txt"
        environment = {
            **os.environ,
            **providers,
            "VOIGHT_LEDGER": self.ledger,
            "PYTHONPATH": str(APPS),
        }
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                SERVERS[server].format(app=app, port=self.port).split(),
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it answers."""
        for _ in range(600):
            if self.process.poll() is not None:
                break
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 5) as connection,
            ):
                connection.sendall(
                    b"GET /none HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
                )
                if connection.recv(100):
                    return
            time.sleep(0.05)
        raise RuntimeError(f"the server did not start: {self.output.read_text()[-2000:]}")

    def calls(self) -> list[Call]:
        """Stop gracefully, bring in what is left, and answer every call of the ledger."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        drain(self.ledger, self.journal)
        ledger = open_ledger(self.ledger, create=False)
        try:
            return list(ledger.calls())
        finally:
            ledger.close()

    def kill(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


# -- the comparison --------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What the ledger has got wrong."""

    calls: int
    wrong: int = 0
    """Rows whose user or plan is not the one who asked; of these, the ones that were anonymous."""
    anonymous: int = 0
    doubled: int = 0
    lost: int = 0
    unread: int = 0
    """Rows without an answer's id: nobody's question can be told from them."""

    @property
    def clean(self) -> bool:
        return not (self.wrong or self.anonymous or self.doubled or self.lost or self.unread)


def judge(calls: list[Call], answered: Mapping[int, int], users: int) -> Verdict:
    """Hold the ledger against what was asked."""
    verdict = Verdict(len(calls))
    rows: collections.Counter[str] = collections.Counter()
    for call in calls:
        if call.response_id is None:
            verdict.unread += 1
            continue
        rows[call.response_id] += 1
        user = user_of(int(call.response_id.split("-")[0]), users)
        if user is None:
            verdict.anonymous += call.tags.user_id is not None
        else:
            verdict.wrong += (call.tags.user_id, call.tags.plan) != (user, plan_of(user))
    verdict.doubled = sum(count - 1 for count in rows.values())
    expected = {
        f"{number}-{time + 1}" for number, times in answered.items() for time in range(times)
    }
    verdict.lost = len(expected - rows.keys())
    return verdict


async def run(app: str, server: str, requests: int, users: int, folder: Path) -> bool:
    """One framework under one server; prints its line, and answers whether it is clean."""
    answered: collections.Counter[int] = collections.Counter()
    provider = await asyncio.get_running_loop().create_server(
        lambda: Provider(answered), "127.0.0.1", 0
    )
    url = f"http://127.0.0.1:{provider.sockets[0].getsockname()[1]}"
    started = Server(
        COLUMNS[app][server].format(app),
        server,
        folder,
        {"PROVIDER_OPENAI": f"{url}/v1", "PROVIDER_ANTHROPIC": url},
    )
    try:
        await asyncio.to_thread(started.wait)
        began = time.perf_counter()
        visitors = Visitors(started.port, users, pipelines=server in PIPELINES)
        await visitors.ask(range(requests))
        seconds = time.perf_counter() - began
        calls = await asyncio.to_thread(started.calls)
    finally:
        started.kill()
        provider.close()
    seen, verdict = visitors.seen, judge(calls, answered, users)
    strange = sum(not identity.startswith(f"{number}-") for identity, number in seen.ended.items())
    answers = len(seen.ended) + seen.left
    clean = verdict.clean and not seen.failed and not strange and answers == requests
    figures = {
        "requests": requests,
        "ended": len(seen.ended),
        "left": seen.left,
        "calls": verdict.calls,
        "wrong": verdict.wrong,
        "anonymous with an owner": verdict.anonymous,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "without an id": verdict.unread,
        "answers of others": strange,
        "failed": dict(seen.failed) or 0,
        "seconds": round(seconds),
    }
    print(
        f"{app:10s} {server:10s} "
        + "  ".join(f"{name} {figure}" for name, figure in figures.items()),
        flush=True,
    )
    return clean


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--apps", default=",".join(COLUMNS))
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=500)
    options = parser.parse_args()
    clean = True
    for app in options.apps.split(","):
        if not (APPS / f"load_{app}.py").exists():
            print(f"{app:10s} there is no tests/apps/load_{app}.py", flush=True)
            continue
        for server in COLUMNS[app]:
            if server in options.servers.split(","):
                with tempfile.TemporaryDirectory() as folder:
                    clean &= asyncio.run(
                        run(app, server, options.requests, options.users, Path(folder))
                    )
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
