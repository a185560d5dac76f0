"""
What a request costs more with a middleware, ours beside others of the field.

    python benchmarks/middleware.py --families starlette,flask

A request without an LLM call, which is what most requests are. Every variant lives in a process of
its own, as some patch a framework globally; the rounds are interleaved, so that whatever else the
machine does hits all alike. CPU time, not time: no sockets, no server.

The last columns do not depend on the machine's other work. Objects: how many more the interpreter
has allocated while the endpoint runs than in the bare application (``sys.getallocatedblocks``), the
nodes of its context included. With ``--instructions``: how many more of them a request takes, by
valgrind.
"""
# No `from __future__ import annotations`: FastAPI cannot resolve names that are local to a
# function.

import argparse
import asyncio
import gc
import io
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

BARE = "bare"
IDLE = "a middleware that does nothing"
OURS = "voight-middleware"
WITH_DEPENDENCY = "bare, with the dependency"
COST_TAGS = "voight-middleware, cost_tags"
CORRELATION, CONTEXT, OTEL, SENTRY = (
    "asgi-correlation-id",
    "starlette-context",
    "OpenTelemetry",
    "Sentry",
)
FAMILIES = {
    "starlette": (BARE, IDLE, OURS, CORRELATION, CONTEXT, OTEL, SENTRY),
    "fastapi": (BARE, IDLE, OURS, WITH_DEPENDENCY, COST_TAGS, CORRELATION, OTEL, SENTRY),
    "flask": (BARE, IDLE, OURS, OTEL, SENTRY),
    "django": (BARE, IDLE, OURS, OTEL, SENTRY),
}
"""
The bare application comes first. Django is measured under WSGI: under ASGI its own noise is larger
than what a middleware adds.
"""
INSTRUCTIONS = "instructions"
OBJECTS = "objects"
_blocks: list[int] = []
"""The allocated blocks before a request and in its endpoint, if they are counted."""
_counting = False


def in_endpoint() -> None:
    """Count what is allocated now, which is slow, if the worker counts it."""
    if _counting:
        _blocks.append(sys.getallocatedblocks())


def sentry() -> None:
    """Sentry without tracing, and with nothing to send to."""
    import sentry_sdk

    sentry_sdk.init(
        dsn="http://a@127.0.0.1:9/1", transport=lambda _event: None, traces_sample_rate=0.0
    )


def tracer() -> Any:
    """OpenTelemetry's SDK, without an exporter."""
    from opentelemetry.sdk.trace import TracerProvider

    return TracerProvider()


# -- the applications ------------------------------------------------------------------------------


def starlette(variant: str) -> Any:
    """One route, one line of text."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def endpoint(_request: Request) -> PlainTextResponse:
        in_endpoint()
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", endpoint)])
    add_to_asgi(app, variant)
    return app


def fastapi(variant: str) -> Any:
    """One route, one line of JSON."""
    from fastapi import Depends, FastAPI
    from starlette.requests import HTTPConnection

    from voight_fastapi import cost_tags

    async def current_user(connection: HTTPConnection) -> str | None:
        return connection.headers.get("x-user")

    dependencies = {
        WITH_DEPENDENCY: [Depends(current_user)],
        COST_TAGS: [Depends(cost_tags(current_user))],
    }
    app = FastAPI(dependencies=dependencies.get(variant, []))

    @app.get("/")
    async def endpoint() -> dict[str, int]:
        in_endpoint()
        return {"ok": 1}

    add_to_asgi(app, OURS if variant == COST_TAGS else variant)
    return app


def add_to_asgi(app: Any, variant: str) -> None:
    """The middleware of *variant*."""
    if variant == OURS:
        from voight_middleware import CostTagMiddleware

        app.add_middleware(
            CostTagMiddleware, user_getter=lambda connection: connection.headers.get("x-user")
        )
    elif variant == IDLE:
        app.add_middleware(Idle)
    elif variant == CORRELATION:
        from asgi_correlation_id import CorrelationIdMiddleware

        app.add_middleware(CorrelationIdMiddleware)
    elif variant == CONTEXT:
        from starlette_context import plugins
        from starlette_context.middleware import RawContextMiddleware

        app.add_middleware(RawContextMiddleware, plugins=(plugins.RequestIdPlugin(),))
    elif variant == OTEL:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        app.add_middleware(OpenTelemetryMiddleware, tracer_provider=tracer())


def flask(variant: str) -> Any:
    """One route, one line of text."""
    from flask import Flask

    app = Flask("benchmark")

    @app.get("/")
    def endpoint() -> str:
        in_endpoint()
        return "ok"

    if variant == IDLE:
        inner = app.wsgi_app
        app.wsgi_app = lambda *arguments: inner(*arguments)  # type: ignore[method-assign]  # noqa: PLW0108
    elif variant == OURS:
        from voight_flask import CostTags

        CostTags(app)
    elif variant == OTEL:
        from opentelemetry.instrumentation.flask import FlaskInstrumentor

        FlaskInstrumentor().instrument_app(app, tracer_provider=tracer())
    return app


def django(variant: str) -> Any:
    """One view, one line of text."""
    import django
    from django.conf import settings

    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={},
        INSTALLED_APPS=[],
        LOGGING_CONFIG=None,
        MIDDLEWARE={OURS: ["voight_django.CostTagMiddleware"], IDLE: [f"{__name__}.idle"]}.get(
            variant, []
        ),
        ROOT_URLCONF=__name__,
        SECRET_KEY="benchmark",
    )
    if variant == OTEL:
        from opentelemetry.instrumentation.django import DjangoInstrumentor

        DjangoInstrumentor().instrument(tracer_provider=tracer())
    django.setup()
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    def view(_request: HttpRequest) -> HttpResponse:
        in_endpoint()
        return HttpResponse("ok")

    globals()["urlpatterns"] = [path("", view)]
    return WSGIHandler()


def idle(get_response: Any) -> Any:
    """A middleware of Django that does nothing."""
    return lambda request: get_response(request)  # noqa: PLW0108


class Idle:
    """An ASGI middleware that does nothing."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


# -- one request -----------------------------------------------------------------------------------

_HEADERS = {
    "host": "t",
    "user-agent": "benchmark",
    "accept": "*/*",
    "x-user": "u1",
    "authorization": "Bearer x",
}


async def asgi_requests(app: Any, count: int) -> None:
    """*count* requests, one after the other."""
    headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
    never = asyncio.Event()
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    for _ in range(count):
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive(messages: list[Any] = messages) -> Any:
            if messages:
                return messages.pop()
            return await never.wait()

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": list(headers),
            "client": ("1.2.3.4", 5),
            "server": ("t", 80),
            "state": {},
        }
        in_endpoint()  # before the request, to compare with
        await app(scope, receive, send)
    assert statuses == [200] * count


def wsgi_requests(app: Any, count: int) -> None:
    """*count* requests, one after the other."""
    statuses: list[str] = []

    def start_response(status: str, _headers: Any, _error: Any = None) -> Any:
        statuses.append(status)
        return None

    for _ in range(count):
        environ = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/",
            "QUERY_STRING": "",
            "SERVER_NAME": "t",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "1.2.3.4",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in _HEADERS.items()},
        }
        in_endpoint()  # before the request, to compare with
        body = app(environ, start_response)
        try:
            assert b"".join(body)
        finally:
            if hasattr(body, "close"):
                body.close()
    assert statuses == ["200 OK"] * count


# -- the processes ---------------------------------------------------------------------------------


def worker(family: str, variant: str) -> None:
    """
    Answer each number on standard input with the microseconds of CPU time that so many requests
    took, per request, and "objects" with how many objects more are allocated in the endpoint.
    """
    global _counting
    if variant == SENTRY:
        sentry()
    app = {"starlette": starlette, "fastapi": fastapi, "flask": flask, "django": django}[family](
        variant
    )
    loop = asyncio.new_event_loop()

    def requests(count: int) -> None:
        if family in ("flask", "django"):
            wsgi_requests(app, count)
        else:
            loop.run_until_complete(asgi_requests(app, count))

    requests(200)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == OBJECTS:
            gc.disable()
            _counting = True
            requests(200)
            _counting = False
            gc.enable()
            pairs = zip(_blocks[::2], _blocks[1::2], strict=True)
            print(statistics.median(inside - before for before, inside in pairs), flush=True)
            continue
        began = time.process_time_ns()
        requests(int(line))
        print((time.process_time_ns() - began) / int(line) / 1000, flush=True)


class Worker:
    """One variant in its own process."""

    def __init__(self, family: str, variant: str) -> None:
        self.name = variant
        self.figures: list[float] = []
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--worker", family, variant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.ready = self._process.stdout.readline().strip() == "ready"

    def measure(self, requests: int) -> None:
        """One round."""
        self.figures.append(self.ask(str(requests)))

    def ask(self, question: str) -> float:
        """The figure that the process gives."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> str:
        """Answers the last line of what it complained about."""
        return ["", *self._process.communicate(timeout=30)[1].strip().splitlines()][-1]


def instructions(family: str, variant: str, requests: int = 400) -> float:
    """The instructions of one request: the difference of two runs, without the start."""
    counted = []
    for count in (requests, 3 * requests):
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable]
        command += ["-W", "ignore", __file__, "--worker", family, variant]
        done = subprocess.run(
            command, input=f"{count}\n", capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        counted.append(int(re.findall(r"Collected : (\d+)", done.stderr)[0]))
    return (counted[1] - counted[0]) / (2 * requests)


def measure(family: str, rounds: int, requests: int, with_instructions: bool) -> None:
    """All variants of one family, side by side."""
    workers = [Worker(family, variant) for variant in FAMILIES[family]]
    running = [each for each in workers if each.ready]
    for number in range(rounds):
        for each in running if number % 2 == 0 else reversed(running):
            each.measure(requests)
    bare = workers[0].figures
    objects = {each.name: each.ask(OBJECTS) for each in running}
    counted: dict[str, float] = {}
    if with_instructions:
        with ThreadPoolExecutor(2) as pool:
            names = [each.name for each in running]
            counted = dict(
                zip(names, pool.map(lambda name: instructions(family, name), names), strict=True)
            )
    heading = f"{family:34s}{'µs per request':>15s}{'added':>9s}{'fastest round':>15s}{'added':>9s}"
    print(f"{heading}{OBJECTS:>9s}{INSTRUCTIONS if counted else '':>14s}")
    for each in workers:
        complaint = each.end()
        if not each.ready:
            print(f"  {each.name:32s} not measured: {complaint}")
            continue
        added = statistics.median(
            mine - base for mine, base in zip(each.figures, bare, strict=True)
        )
        fastest = min(each.figures)
        print(
            f"  {each.name:32s}{statistics.median(each.figures):15.2f}{added:+9.2f}",
            f"{fastest:14.2f}{fastest - min(bare):+9.2f}",
            f"{objects[each.name] - objects[BARE]:+8.0f}",
            f"{counted[each.name] - counted[BARE]:+13,.0f}" if counted else "",
            flush=True,
        )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="What a request costs more with a middleware.")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--requests", type=int, default=400, help="in each round")
    parser.add_argument(
        "--instructions", action="store_true", help="count them by valgrind, which takes minutes"
    )
    parser.add_argument("--worker", nargs=2, metavar=("FAMILY", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(*options.worker)
    for family in options.families.split(","):
        measure(family, options.rounds, options.requests, options.instructions)
    return None


if __name__ == "__main__":
    main()
