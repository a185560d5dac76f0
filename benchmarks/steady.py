"""
A steady server: what metering adds to a request with one LLM call, at a given rate.

    python benchmarks/steady.py --servers asyncio,threads --rates 20,100,500 --seconds 60

Three servers run side by side: bare, bare once more (the control), and metered with a user, prices
and a ledger. Each has its own processes: Starlette under uvicorn (asyncio), or Flask under gunicorn
with threads. One of them at a time gets requests, for five seconds, then the next, in an order by
chance, until each has had ``--seconds``. Requests come at random moments (open loop): a slow answer
does not hold up the next request, and latency counts from the moment that a request was due.

The provider is in the process of the server, and answers after ``--answer-after`` milliseconds, so
that two cores suffice for the server and this process. CPU is that of all processes that the server
has started, by /proc (Linux), its idle time and the last round of its ingester included. It is an
error if a call is not in the ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import canned

HERE = Path(__file__).parent
WINDOW = 5.0
"""So many seconds of requests to one server, then to the next."""
BARE, CONTROL, METERED = "bare", "bare, once more", "metered"
COMMANDS = {
    "asyncio": (
        "-m uvicorn steady:asgi --factory --app-dir {here} --workers {workers} --port {port} "
        "--log-level critical --timeout-keep-alive 600"
    ),
    "threads": (
        "-m gunicorn steady:wsgi() --chdir {here} -k gthread --workers {workers} --threads 150 "
        "-b 127.0.0.1:{port} --log-level critical --keep-alive 600"
    ),
}


# -- in the server ---------------------------------------------------------------------------------


def asgi() -> Any:
    """Starlette with the asynchronous client."""
    import openai
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    after = float(os.environ["STEADY_ANSWER_AFTER"])
    http = canned.transport("openai", asynchronous=True, after=after)
    client = openai.AsyncOpenAI(api_key="k", http_client=http)
    arguments = canned.arguments("openai")

    async def endpoint(_request: Request) -> PlainTextResponse:
        answer = await client.chat.completions.create(**arguments)
        return PlainTextResponse(answer.choices[0].message.content)

    app = Starlette(routes=[Route("/", endpoint)])
    if os.environ["STEADY_VARIANT"] == METERED:
        import voight_middleware as voight

        voight.wrap(client)
        app.add_middleware(
            voight.CostTagMiddleware, user_getter=lambda request: request.headers.get("x-user")
        )
    return app


def wsgi() -> Any:
    """Flask with the synchronous client."""
    import flask
    import openai

    after = float(os.environ["STEADY_ANSWER_AFTER"])
    client = openai.OpenAI(api_key="k", http_client=canned.transport("openai", after=after))
    arguments = canned.arguments("openai")
    app = flask.Flask("steady")

    @app.get("/")
    def endpoint() -> str:
        return str(client.chat.completions.create(**arguments).choices[0].message.content)

    if os.environ["STEADY_VARIANT"] == METERED:
        import voight_flask
        import voight_middleware as voight

        voight.wrap(client)
        voight_flask.CostTags(app, user_getter=lambda request: request.headers.get("x-user"))
    return app


# -- the servers -----------------------------------------------------------------------------------


class Server:
    """One of the three servers, its processes and its figures."""

    def __init__(self, kind: str, variant: str, folder: Path, workers: int, after: float) -> None:
        self.variant = variant
        self.ledger = folder / "ledger.db"
        self.latencies: list[float] = []
        """Of each answer, in milliseconds."""
        self.failed = 0
        self.asked = 0
        self._mark = f"STEADY_SERVER={folder}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VOIGHT_")}
        environment |= {
            "STEADY_SERVER": str(folder),
            "STEADY_VARIANT": variant,
            "STEADY_ANSWER_AFTER": str(after),
            "VOIGHT_LEDGER": f"sqlite:///{self.ledger}",
        }
        self.output = folder / "output.txt"
        command = COMMANDS[kind].format(here=HERE, workers=workers, port=self.port)
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command.split()],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it listens."""
        for _ in range(1200):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return
            time.sleep(0.05)
        raise SystemExit(f"{self.variant} did not start: {self.output.read_text()[-2000:]}")

    def cpu(self) -> float:
        """Seconds of CPU that its processes have taken so far, those of its own children, too."""
        seconds = 0.0
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"\0{self._mark}\0".encode() in b"\0" + (path / "environ").read_bytes():
                    fields = (path / "stat").read_text().rpartition(")")[2].split()
                    seconds += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
        return seconds

    def end(self) -> int | None:
        """Stop it gracefully; return how many calls are in the ledger."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise
        if self.variant != METERED:
            return None
        with contextlib.closing(sqlite3.connect(self.ledger)) as connection:
            return int(connection.execute("SELECT count(*) FROM calls").fetchone()[0])


# -- the load --------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """A connection that is kept alive, with one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._due = 0.0
        self._asking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, request: bytes, due: float) -> None:
        """Send a request that was due at that time of the loop."""
        self._due, self._asking = due, True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0])
        if len(body) >= length:
            self._buffer, self._asking = b"", False
            self._load.answered(self, self._due, head.startswith(b"HTTP/1.1 200"))

    def close(self) -> None:
        """End it at the next turn of the loop."""
        self._transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self._load.lost(self, self._asking)


class Load:
    """The requests to one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._idle: deque[Connection] = deque()
        self._open = 0
        self._done = asyncio.Event()

    async def window(self, moments: list[float], counted: bool = True) -> list[float]:
        """
        Send a request at each of these seconds from now, and wait for all answers. Return how many
        milliseconds each was sent late.
        """
        loop = asyncio.get_running_loop()
        late = []
        self._counted = counted
        began = loop.time()
        for number, moment in enumerate(moments):
            due = began + moment
            if (pause := due - loop.time()) > 0:
                await asyncio.sleep(pause)
            late.append((loop.time() - due) * 1e3)
            if not self._idle:
                _, connection = await loop.create_connection(
                    lambda: Connection(self), "127.0.0.1", self._server.port
                )
            else:
                connection = self._idle.pop()
            self._open += 1
            self._server.asked += 1
            user = self._server.asked * 7919 % 500 + number % 2
            connection.ask(b"GET / HTTP/1.1\r\nhost: t\r\nx-user: u_%d\r\n\r\n" % user, due)
        while self._open:
            self._done.clear()
            await asyncio.wait_for(self._done.wait(), 60)
        return late

    def answered(self, connection: Connection, due: float, fine: bool) -> None:
        """An answer is there."""
        self._open -= 1
        self._idle.append(connection)
        self._server.failed += not fine
        if self._counted:
            latency = (asyncio.get_running_loop().time() - due) * 1e3
            self._server.latencies.append(latency)
        self._done.set()

    async def close(self) -> None:
        """End all connections."""
        for connection in self._idle:
            connection.close()
        await asyncio.sleep(0)

    def lost(self, connection: Connection, asking: bool) -> None:
        """The server has closed a connection."""
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        if asking:
            self._open -= 1
            self._server.failed += 1
            self._done.set()


def moments(rate: float, seconds: float, chance: random.Random) -> list[float]:
    """The moments of requests that come by chance, *rate* a second."""
    found = []
    moment = chance.expovariate(rate)
    while moment < seconds:
        found.append(moment)
        moment += chance.expovariate(rate)
    return found


# -- the comparison --------------------------------------------------------------------------------


@dataclass
class Figures:
    """What one server has shown."""

    requests: int
    cpu: float
    """Milliseconds per request."""
    latencies: list[float]
    late: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        return statistics.quantiles(self.latencies, n=1000)[round(share * 1000) - 1]


async def drive(servers: list[Server], rate: float, seconds: float) -> dict[str, Figures]:
    """Send requests to all servers in turn."""
    chance = random.Random(1)
    loads = {server.variant: Load(server) for server in servers}
    for server in servers:  # as many connections and threads as will be needed, and warm code
        await loads[server.variant].window(moments(max(rate, 50), 3, chance), counted=False)
    await asyncio.sleep(2.5)
    began = {server.variant: server.cpu() for server in servers}
    late: dict[str, list[float]] = {server.variant: [] for server in servers}
    windows = max(1, round(seconds / WINDOW))
    for number in range(windows):
        for server in chance.sample(servers, len(servers)):
            # the same moments for all of them
            when = moments(rate, seconds / windows, random.Random(number))
            late[server.variant] += await loads[server.variant].window(when)
    await asyncio.sleep(2.5)
    figures = {}
    for server in servers:
        await loads[server.variant].close()
        count = len(server.latencies)
        cpu = (server.cpu() - began[server.variant]) * 1e3 / count
        figures[server.variant] = Figures(count, cpu, server.latencies, late[server.variant])
    return figures


def compare(kind: str, rate: float, options: argparse.Namespace) -> bool:
    """One kind of server at one rate; return whether every call is in the ledger."""
    with tempfile.TemporaryDirectory() as made:
        servers = []
        for variant in (BARE, CONTROL, METERED):
            folder = Path(made, variant.replace(", ", "-").replace(" ", "-"))
            folder.mkdir()
            servers.append(
                Server(kind, variant, folder, options.workers, options.answer_after / 1000)
            )
        in_ledger: list[int | None] = []
        try:
            for server in servers:
                server.wait()
            load, own = os.getloadavg()[0], time.process_time()
            figures = asyncio.run(drive(servers, rate, options.seconds))
            own = time.process_time() - own
        finally:
            in_ledger.extend(server.end() for server in servers)
    asked = servers[-1].asked
    base = figures[BARE]
    for variant, one in figures.items():
        p50, p99 = one.quantile(0.5), one.quantile(0.99)
        line = f"{kind:8}{rate:5.0f}/s  {variant:16}{one.requests:8}{one.cpu:9.3f}"
        added = f"{one.cpu - base.cpu:+9.3f}{one.cpu / base.cpu - 1:+8.1%}"
        line += " " * 17 if one is base else added
        for now, was in ((p50, base.quantile(0.5)), (p99, base.quantile(0.99))):
            line += f"{now:10.2f}" + (" " * 8 if one is base else f"{now / was - 1:+8.1%}")
        print(line, flush=True)
    failed = sum(server.failed for server in servers)
    lateness = statistics.quantiles([one for f in figures.values() for one in f.late], n=100)[98]
    print(
        f"{'':16}sent late: p99 {lateness:.1f} ms; own CPU {own:.1f} s; load {load:.1f}, "
        f"then {os.getloadavg()[0]:.1f}; {failed} failed; {in_ledger[-1]} of {asked} calls in the "
        "ledger"
    )
    if lateness > 20:
        print(f"{'':16}This machine did not drive that rate: the latencies are its own.")
    return failed == 0 and in_ledger[-1] == asked


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="What metering adds to a steady server.")
    parser.add_argument("--servers", default=",".join(COMMANDS))
    parser.add_argument("--rates", default="20,100,500", help="requests a second")
    parser.add_argument("--seconds", type=float, default=60, help="of requests to each server")
    parser.add_argument("--workers", type=int, default=2, help="processes of each server")
    parser.add_argument("--answer-after", type=float, default=200, help="milliseconds")
    options = parser.parse_args()
    print(
        f"{'':16}{'':18}{'requests':>8}{'CPU ms':>9}{'added':>9}{'':8}{'p50 ms':>10}{'':8}"
        f"{'p99 ms':>10}"
    )
    fine = True
    for kind in options.servers.split(","):
        for rate in map(float, options.rates.split(",")):
            fine &= compare(kind, rate, options)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
