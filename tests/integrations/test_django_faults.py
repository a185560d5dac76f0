"""An application that breaks, and visitors who leave: Django behaves byte for byte as without us, and the calls keep their owner."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import socketserver
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.util import setup_testing_defaults

import httpx
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client
from django.urls import path

from ..support.waiting import wait_until
from .django_project import OURS, project

pytestmark = pytest.mark.slow  # a sweep over many cases

QUESTION: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
NOTHING = f"{__name__}.nothing"
SIGNS_IN = f"{__name__}.signs_in"


def nothing(get_response: Any) -> Any:
    """A middleware in the place of ours."""
    return get_response


nothing.async_capable = True  # type: ignore[attr-defined]


def signs_in(get_response: Any) -> Any:
    def middleware(request: Any) -> Any:
        request.user = SimpleNamespace(pk="alice")
        return get_response(request)

    async def amiddleware(request: Any) -> Any:
        request.user = SimpleNamespace(pk="alice")
        return await get_response(request)

    return amiddleware if asyncio.iscoroutinefunction(get_response) else middleware


signs_in.async_capable = True  # type: ignore[attr-defined]


@pytest.fixture
def wsgi() -> Iterator[Callable[[], str]]:
    """Serves Django's WSGI handler on a threading server; what its threads print about errors is kept out of the output."""
    servers: list[WSGIServer] = []

    class Server(socketserver.ThreadingMixIn, WSGIServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None: ...

    class Handler(WSGIRequestHandler):
        def log_message(self, *args: Any) -> None: ...
        def get_stderr(self) -> Any:
            return SimpleNamespace(write=lambda text: None, flush=lambda: None)

    def start() -> str:
        server = Server(("127.0.0.1", 0), Handler)
        server.set_app(WSGIHandler())
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def both(*urls: Any, **overridden: Any) -> Iterator[Any]:
    """The project without us, and then with us."""
    for middleware in (NOTHING, OURS):
        with project(*urls, middleware=(middleware, SIGNS_IN), **overridden):
            yield middleware


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("protocol", ["WSGI", "ASGI"])
def test_a_view_that_raises(protocol: str, debug: bool, kind: str, ask: Any, voight_calls: Any) -> None:
    """The 500 of the application, and the page that explains it, are the same; the call made before is its user's."""

    def view(request: HttpRequest) -> HttpResponse:
        ask()
        raise LookupError("the application's own fault")

    async def aview(request: HttpRequest) -> HttpResponse:
        return view(request)

    def answer() -> tuple[int, dict[str, str], str]:
        client: Any = Client(False, raise_request_exception=False) if protocol == "WSGI" else AsyncClient(raise_request_exception=False)
        if protocol == "WSGI":
            response = client.get("/", headers={"accept": "text/plain"})
        else:
            response = asyncio.run(client.get("/", headers={"accept": "text/plain"}))
        page = re.sub(
            r"0x[0-9a-f]+|Server time: .*|\[?'?(tests[\w.]*\.nothing|voight_django\.CostTagMiddleware)'?", "…", response.content.decode()
        )
        headers = {name: value for name, value in response.headers.items() if name != "Content-Length"}
        return response.status_code, headers, page

    answers = [answer() for _ in both(path("", view if kind == "sync" else aview), DEBUG=debug)]
    assert answers[0] == answers[1]
    assert answers[1][0] == 500
    assert ("the application's own fault" in answers[1][2]) == debug
    assert [call.tags.user_id for call in voight_calls] == [None, "alice"]


def raw(url: str) -> bytes:
    """Everything that the server sends until it closes the connection, and that it closes it."""
    received = b""
    try:
        with httpx.stream("GET", url, timeout=10, headers={"connection": "close"}) as response:
            received += repr((response.status_code, sorted(name for name in response.headers if name != "date"))).encode()
            for part in response.iter_raw():
                received += part
    except httpx.HTTPError as error:
        received += f" [{type(error).__name__}]".encode()
    return received


@pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")  # Django 5.2 forgets the request's body where a stream raises
@pytest.mark.parametrize("server", ["wsgi", "uvicorn"])
def test_a_stream_that_raises(server: str, ask: Any, wsgi: Any, serve: Any, voight_calls: Any, caplog: Any) -> None:
    """What the visitor receives of a stream that fails half-way is the same, to the way in which it breaks off."""

    def steps() -> Iterator[str]:
        yield "a"
        ask()
        yield "b"
        raise LookupError("half-way")

    async def asteps() -> AsyncIterator[str]:
        yield "a"
        await asyncio.to_thread(ask)
        yield "b"
        raise LookupError("half-way")

    content = steps if server == "wsgi" else asteps
    received = []
    for _ in both(path("", lambda request: StreamingHttpResponse(content()))):
        received.append(raw(wsgi() if server == "wsgi" else serve(ASGIHandler())))
        serve.stop()
    gc.collect()
    assert received[0] == received[1]
    assert b"ab" in received[1].replace(b"\r\n1\r\n", b"")
    assert [call.tags.user_id for call in voight_calls] == [None, "alice"]


def leave(url: str) -> None:
    """Read the first piece of a stream, and go away."""
    with httpx.stream("GET", url, timeout=10) as response:
        next(response.iter_raw())


@pytest.mark.parametrize("server", ["wsgi", "uvicorn"])
def test_a_visitor_who_leaves_a_stream(server: str, ask: Any, wsgi: Any, serve: Any, voight_calls: Any) -> None:
    """The stream ends in the application as without us, and what it does at its end belongs to its user."""
    events: list[str] = []

    def steps() -> Iterator[str]:
        try:
            for _ in range(500):
                yield "a" * 10_000
                time.sleep(0.005)
            events.append("read to the end")
        except BaseException as error:
            events.append(type(error).__name__)
            raise
        finally:
            ask()
            events.append("closed")

    async def asteps() -> AsyncIterator[str]:
        try:
            for _ in range(500):
                yield "a" * 10_000
                await asyncio.sleep(0.005)
            events.append("read to the end")
        except BaseException as error:
            events.append(type(error).__name__)
            raise
        finally:
            ask()
            events.append("closed")

    content = steps if server == "wsgi" else asteps
    seen = []
    for _ in both(path("", lambda request: StreamingHttpResponse(content()))):
        leave(wsgi() if server == "wsgi" else serve(ASGIHandler()))
        wait_until(lambda: "closed" in events)
        serve.stop()
        seen.append(events[:])
        events.clear()
    assert seen[0] == seen[1]
    assert seen[1][-1] == "closed"
    assert "read to the end" not in seen[1]
    assert [call.tags.user_id for call in voight_calls] == [None, "alice"]


def visit_until(url: str, condition: Callable[[], object]) -> None:
    """Send a request, and go away when *condition* holds, before its answer."""
    host, _, path = url.removeprefix("http://").partition("/")
    name, _, port = host.partition(":")
    with socket.create_connection((name, int(port))) as connection:
        connection.sendall(f"GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        wait_until(condition)


def test_a_visitor_who_leaves_before_the_answer(serve: Any, ask: Any, voight_calls: Any) -> None:
    """Django cancels the view; it is cancelled as without us, and its call is its user's."""
    events: list[str] = []

    async def view(request: HttpRequest) -> HttpResponse:
        await asyncio.to_thread(ask)
        events.append("asked")
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise
        return HttpResponse()

    seen = []
    for _ in both(path("", view)):
        visit_until(serve(ASGIHandler()), lambda: "asked" in events)
        wait_until(lambda: "cancelled" in events)
        serve.stop()
        seen.append(events[:])
        events.clear()
    assert seen == [["asked", "cancelled"]] * 2
    assert [call.tags.user_id for call in voight_calls] == [None, "alice"]


def test_a_getter_that_never_answers(serve: Any, ask: Any, voight_calls: Any) -> None:
    """A visitor who leaves while an asynchronous getter hangs is let go of: the next request is answered."""

    hanging: list[str] = []

    async def hangs(request: Any) -> str:
        if request.path == "/hang":
            hanging.append(request.path)
            await asyncio.sleep(30)
        return "alice"

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(ask())

    with project(path("hang", view), path("", view), middleware=(OURS,), voight={"USER_GETTER": hangs}):
        url = serve(ASGIHandler())
        visit_until(f"{url}/hang", lambda: hanging)
        assert httpx.get(url).status_code == 200
        serve.stop()
    assert [call.tags.user_id for call in voight_calls] == [None, "alice"]


@pytest.mark.parametrize("protocol", ["WSGI", "ASGI"])
def test_responses_of_other_kinds(protocol: str, ask: Any, voight_calls: Any) -> None:
    """A response class that lets nobody change its content is sent as it is, and the call in its view has its owner."""

    class Fixed(StreamingHttpResponse):
        def _set_streaming_content(self, value: Any) -> None:
            if hasattr(self, "_iterator"):
                raise TypeError("fixed")
            super()._set_streaming_content(value)  # type: ignore[misc]

    def view(request: HttpRequest) -> StreamingHttpResponse:
        ask()
        return Fixed([b"a"])

    async def agen() -> AsyncIterator[bytes]:
        yield b"a"

    async def aview(request: HttpRequest) -> StreamingHttpResponse:
        await asyncio.to_thread(ask)
        return Fixed(agen())

    async def chunks(application: Any) -> list[bytes]:
        sent: list[bytes] = []

        async def receive() -> Any:
            if not sent:
                sent.append(b"")
                return {"type": "http.request", "body": b"", "more_body": False}
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "http_version": "1.1"}
        await application(scope, receive, send)
        return sent

    with project(path("", view if protocol == "WSGI" else aview), middleware=(OURS, SIGNS_IN)):
        if protocol == "ASGI":
            assert b"".join(asyncio.run(chunks(ASGIHandler()))) == b"a"
        else:
            environ: dict[str, Any] = {}
            setup_testing_defaults(environ)
            response: Any = WSGIHandler()(environ, lambda status, headers: None)
            assert b"".join(response) == b"a"
            response.close()
    assert voight_calls.one().tags.user_id == "alice"
