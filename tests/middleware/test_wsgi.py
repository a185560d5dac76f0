"""CostTagMiddleware for WSGI: the owner wherever the application's code runs, and not a byte of the answer changed."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
import wsgiref.handlers
import wsgiref.util
import wsgiref.validate
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware.context.context import current_context
from voight_middleware.diagnostics import counters
from voight_middleware.middleware.wsgi import CostTagMiddleware
from voight_middleware.records.tags import Owner, Tags

from ..support.garbage import collected
from ..support.listening import listens
from ..support.servers.ports import free_port
from ..support.waiting import wait_until

APPS = Path(__file__).parents[1] / "apps"
spec = importlib.util.spec_from_file_location("wsgi_bytes", APPS / "wsgi_bytes.py")
assert spec is not None
assert spec.loader is not None
wsgi_bytes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wsgi_bytes)


def environ_of(**headers: str) -> dict[str, Any]:
    environ: dict[str, Any] = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    wsgiref.util.setup_testing_defaults(environ)
    return environ


def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
    return lambda data: None


def get(app: Any, **headers: str) -> bytes:
    """Ask as a server does: call, iterate, close."""
    result = app(environ_of(**headers), start_response)
    try:
        return b"".join(result)
    finally:
        getattr(result, "close", lambda: None)()


def spend(**tags: str) -> str:
    return voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1, "completion_tokens": 1}, tags=tags)


def owners(calls: Any) -> list[tuple[str | None, str]]:
    return [(call.tags.user_id, call.attribution) for call in calls]


def header_user(request: Any) -> str | None:
    return request.headers.get("user")


async def slow_header_user(request: Any) -> str | None:
    await asyncio.sleep(0.001)
    return header_user(request)


@pytest.fixture(params=[header_user, slow_header_user])
def getter(request: pytest.FixtureRequest) -> Any:
    """A getter that reads a header: a function, and a coroutine function."""
    return request.param


class Places:
    """An application that spends at every moment of a request."""

    def __init__(self, sized: bool = False) -> None:
        self.sized = sized

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])(b"")
        spend(place="call")
        return type("Answer", (Answer,), {"__len__": lambda self: 2} if self.sized else {})()


class Answer:
    def __iter__(self) -> Iterator[bytes]:
        spend(place="iter")
        return self.steps()

    def steps(self) -> Iterator[bytes]:
        with voight.tag(feature="stream"):
            spend(place="first")
            yield b"a"
            spend(place="second")
            yield b"b"
        spend(place="end")

    def close(self) -> None:
        spend(place="close")


def test_the_owner_is_right_from_the_call_to_the_close(getter: Any, voight_calls: Any) -> None:
    """Every call of a request is its user's, a `with tag()` that is open over a yield stays in force, and between there is nobody."""
    app = CostTagMiddleware(
        Places(), getter, plan_getter=lambda request: "pro", tenant_getter=getter, tags_getter=lambda request: {"k": "v"}
    )
    for user in ("alice", "bob"):
        result: Any = app(environ_of(user=user), start_response)
        for _ in result:
            assert current_context().scope is None, "nothing is bound while the server sends"
        result.close()
        assert current_context().scope is None
    calls = voight_calls.all()
    assert owners(calls) == [("alice", "getter")] * 6 + [("bob", "getter")] * 6
    assert [call.tags.extra["place"] for call in calls[:6]] == ["call", "iter", "first", "second", "end", "close"]
    assert [call.tags.extra.get("feature") for call in calls[:6]] == [None, None, "stream", "stream", None, None]
    assert {(call.tags.plan, call.tags.tenant_id, call.tags.extra["k"]) for call in calls[6:]} == {("pro", "bob", "v")}


def test_a_server_that_iterates_and_closes_in_other_threads(getter: Any, voight_calls: Any) -> None:
    """The owner does not depend on which thread takes the next piece, and none of them keeps it."""
    app = CostTagMiddleware(Places(), getter)
    result: Any = app(environ_of(user="alice"), start_response)
    left: list[Any] = []

    def elsewhere(function: Callable[[], Any]) -> Any:
        answer: list[Any] = []

        def run() -> None:
            answer.append(function())
            left.append(current_context().scope)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return answer[0]

    steps = elsewhere(lambda: iter(result))
    assert [elsewhere(lambda: next(steps, None)) for _ in range(3)] == [b"a", b"b", None]
    elsewhere(result.close)
    assert left == [None] * 5
    assert owners(voight_calls) == [("alice", "getter")] * 6


def test_a_server_that_never_closes(voight_calls: Any) -> None:
    """A call that waits for its owner is settled when the answer is dropped."""
    asked: list[Any] = []
    app = CostTagMiddleware(Places(), lambda request: asked.append(request) or ("alice" if len(asked) > 5 else None))
    with collected():
        result: Any = app(environ_of(), start_response)
        assert list(result) == [b"a", b"b"]
        del result
    assert owners(voight_calls) == [("alice", "settled")] * 5


def test_known_only_at_the_end(getter: Any, voight_calls: Any) -> None:
    """A call made before the request's user is known gets its owner when the server closes the answer."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        spend()
        environ["HTTP_USER"] = "alice"
        start_response("200 OK", [])
        return iter([b""])

    get(CostTagMiddleware(app, getter))
    assert owners(voight_calls) == [("alice", "settled")]


@pytest.mark.parametrize("answer", [[b"list"], (b"tuple",)])
def test_known_only_at_the_end_of_a_whole_answer(answer: Any, voight_calls: Any) -> None:
    """A list of bytes is handed on as it is, and its calls are settled."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        spend()
        environ["HTTP_USER"] = "alice"
        start_response("200 OK", [])
        return answer

    assert CostTagMiddleware(app, header_user)(environ_of(), start_response) is answer
    assert owners(voight_calls) == [("alice", "settled")]


def test_the_next_request_on_the_thread_is_nobodys(voight_calls: Any) -> None:
    """An anonymous request after a signed-in one has no owner, also where that one raised, or was never iterated or closed."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        spend()
        if environ.get("HTTP_HOW") == "raise":
            raise LookupError
        start_response("200 OK", [])
        return (spend().encode() for _ in range(2))

    ours = CostTagMiddleware(app, header_user)
    kept = []
    for how in ("raise", "left", "half"):
        try:
            kept.append(ours(environ_of(user="alice", how=how), start_response))
        except LookupError:
            assert how == "raise"
        if how == "half":
            next(iter(kept[-1]))
        get(ours)
        spend()
    by_owner = [user for user, _ in owners(voight_calls)]
    assert by_owner == ["alice", *[None] * 4, "alice", *[None] * 4, "alice", "alice", *[None] * 4]


def test_nothing_is_asked_without_a_call(voight_calls: Any) -> None:
    """A request that makes no LLM call costs nobody a look-up."""
    asked: list[Any] = []

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return iter([b"hello"])

    assert get(CostTagMiddleware(app, asked.append, plan_getter=asked.append)) == b"hello"
    assert asked == []


def test_the_default_user_is_what_the_server_says(voight_calls: Any) -> None:
    """REMOTE_USER is the server's word; a header of that name is a client's, and no owner."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        spend()
        start_response("200 OK", [])
        return []

    ours = CostTagMiddleware(app)
    get(ours, remote_user="mallory", authorization="Basic bWFsbG9yeTpwdw==")
    list(ours({**environ_of(), "REMOTE_USER": "alice"}, start_response))
    assert owners(voight_calls) == [(None, "none"), ("alice", "getter")]


def test_getters_get_a_request_that_cannot_take_the_body(voight_calls: Any) -> None:
    """A getter that reads the body gets an error, which is counted; the application finds its body whole."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        spend()
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    environ = environ_of(content_length="4") | {"wsgi.input": io.BytesIO(b"a=bc"), "REQUEST_METHOD": "POST", "CONTENT_LENGTH": "4"}
    environ["CONTENT_TYPE"] = "application/x-www-form-urlencoded"
    assert list(CostTagMiddleware(app, lambda request: request.form["a"])(environ, start_response)) == [b"a=bc"]
    assert owners(voight_calls) == [(None, "error")]
    assert counters["getter_errors"] > 0
    assert "werkzeug.request" not in environ


def test_a_getter_that_raises_or_asks_the_model(voight_calls: Any) -> None:
    """Neither is noticed by the application; a call that a getter makes asks nobody."""

    def broken(request: Any) -> str:
        spend(place="getter")
        raise RuntimeError("no database")

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        spend(place="view")
        start_response("200 OK", [])
        return [b"fine"]

    assert get(CostTagMiddleware(app, broken)) == b"fine"
    assert {owner for owner in owners(voight_calls) if owner[1] != "none"} == {(None, "error")}


def test_an_async_getter_leaves_the_threads_loop_alone(voight_calls: Any) -> None:
    """An application that has set an event loop for its thread finds it again after an asynchronous getter has run in one of ours."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        get(CostTagMiddleware(Places(), slow_header_user), user="alice")
        assert asyncio.get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    assert {user for user, _ in owners(voight_calls)} == {"alice"}


def test_a_running_loop_is_not_blocked(voight_calls: Any) -> None:
    """Where the application runs a loop in the request's thread, a synchronous call there waits for its owner until the end."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        async def view() -> None:
            spend()

        asyncio.run(view())
        start_response("200 OK", [])
        return iter([b""])

    get(CostTagMiddleware(app, slow_header_user), user="alice")
    assert owners(voight_calls) == [("alice", "settled")]


def test_a_thread_that_outlives_the_request(voight_calls: Any) -> None:
    """`carry` asks before the thread begins: its calls have the owner, though the request has ended."""
    threads = []
    gate = threading.Event()

    def later() -> None:
        gate.wait(10)
        spend()

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        threads.append(threading.Thread(target=voight.carry(later)))
        threads[0].start()
        start_response("200 OK", [])
        return [b""]

    get(CostTagMiddleware(app, header_user), user="alice")
    gate.set()
    threads[0].join()
    assert owners(voight_calls) == [("alice", "getter")]


def test_a_frame_that_is_kept_past_the_request_asks_nobody(voight_calls: Any) -> None:
    """Who looks for the owner for the first time when the request has ended finds none, and the request is not kept alive."""
    frames = []

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        frames.append(current_context())
        start_response("200 OK", [])
        return [b""]

    get(CostTagMiddleware(app, header_user), user="alice")
    assert frames[0].resolve() == Owner(Tags(), "none")


def test_mounted_middleware(voight_calls: Any) -> None:
    """An application with a middleware of its own inside another's has its own user, and the outer one is there again afterwards."""
    inner = CostTagMiddleware(Places(), lambda request: "inner")

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        spend()
        yield from inner(environ, start_response)
        spend()

    get(CostTagMiddleware(app, lambda request: "outer"))
    assert [user for user, _ in owners(voight_calls)] == ["outer", *["inner"] * 5, "outer"]


def test_the_validator_of_the_standard_library(voight_calls: Any) -> None:
    """wsgiref's validator on both sides of the middleware has nothing to say."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter([b"a", b"b"])

    result: Any = wsgiref.validate.validator(CostTagMiddleware(wsgiref.validate.validator(app)))(
        environ_of() | {"QUERY_STRING": ""}, start_response
    )
    assert list(result) == [b"a", b"b"]
    result.close()


@pytest.mark.parametrize("wrapper", ["type", "function"])
def test_the_servers_own_file_is_handed_back_as_it_is(wrapper: str, voight_calls: Any) -> None:
    """A server knows its file by the type of its wrapper (gunicorn, wsgiref), or by the file that its function was given (uWSGI)."""
    given: list[Any] = []

    def sendfile(file: Any, size: int = 0) -> Any:
        given.append(file)
        return file

    def app(environ: Any, start_response: Any) -> Any:
        spend()
        environ["HTTP_USER"] = "alice"
        start_response("200 OK", [])
        given.append(environ["wsgi.file_wrapper"](io.BytesIO(b"file"), 8192))
        return given[-1]

    environ = environ_of() | {"wsgi.file_wrapper": wsgiref.util.FileWrapper if wrapper == "type" else sendfile}
    assert CostTagMiddleware(app, header_user)(environ, start_response) is given[-1]
    assert owners(voight_calls) == [("alice", "settled")]
    if wrapper == "type":
        given[-1].close()


# -- byte for byte ---------------------------------------------------------------------------------------------------------------------


class Handler(wsgiref.handlers.SimpleHandler):
    """The server side of wsgiref, without a socket."""

    http_version = "1.1"
    server_software = ""

    def log_exception(self, exc_info: Any) -> None:
        self.raised = repr(exc_info[1])


def by_wsgiref(app: Any, path: str) -> tuple[bytes, str, list[str]]:
    """What the client sees, what the server logs, and what was closed."""
    out = io.BytesIO()
    wsgi_bytes.CLOSED.clear()
    with collected():
        handler = Handler(io.BytesIO(), out, io.StringIO(), environ_of() | {"PATH_INFO": f"/{path}"}, multithread=False)
        handler.raised = ""
        try:
            handler.run(app)
        except Exception as error:
            handler.raised += repr(error)
    return re.sub(rb"Date: .*\r\n", b"", out.getvalue()), handler.raised, [*wsgi_bytes.CLOSED]


@pytest.mark.parametrize("path", wsgi_bytes.PATHS)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_byte_for_byte_under_wsgiref(path: str) -> None:
    """wsgiref sends, logs and closes the same with and without us: a Content-Length for one item, an error page, a file."""
    assert by_wsgiref(wsgi_bytes.ours, path) == by_wsgiref(wsgi_bytes.bare, path)


class Gunicorn:
    """gunicorn with one worker, as a deployment starts it."""

    def __init__(self, folder: Path, app: str, *options: str, **environ: str) -> None:
        self.port = free_port()
        self.log = folder / f"{environ.get('APP', 'app')}.log"
        command = [sys.executable, "-W", "ignore", "-m", "gunicorn", app, "-b", f"127.0.0.1:{self.port}", "--pythonpath", str(APPS)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--graceful-timeout", "5", *options], cwd=folder, env={**os.environ, **environ}, stdout=log, stderr=log
            )
        wait_until(self.listens)

    def listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return listens(self.port)

    def ask(self, path: str, timeout: float = 20) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(f"GET /{urllib.parse.quote(path)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            try:
                while data := connection.recv(65536):
                    answer += data
            except ConnectionResetError:
                answer += b"<reset>"
        return re.sub(rb"Date: .*\r\n", b"", answer)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.mark.server
@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_byte_for_byte_under_gunicorn(kind: str, tmp_path: Path, voight_calls: Any) -> None:
    """gunicorn answers the same with and without us, for every kind of answer and every broken one, and closes what it closed."""
    answers = []
    for app in ("bare", "ours"):
        server = Gunicorn(tmp_path, "wsgi_bytes:app", "-k", kind, APP=app)
        try:
            answers.append({path: server.ask(path) for path in [*wsgi_bytes.PATHS, "closed"]})
        finally:
            server.stop()
    assert answers[0] == answers[1]
    assert b"one item" in answers[0]["list"]
    assert b"Content-Length: 4" in answers[0]["lazy start"]
    assert b"200 OK" in answers[0]["file"]
